//! What the gateway costs while it is used hard, and what it does when the machine has nothing more to give.

use std::io::{Read, Write};
use std::net::TcpStream;

use mantlet_testkit::backend::Answer;
use mantlet_testkit::http::{Connection, Request, json_response, response};
use serde_json::json;

use crate::common::*;
use crate::process::Site;

const ONE_WORKER: &str = "[workers]\ncount = 1\n[log]\naccess = \"off\"";

#[test]
fn descriptors_that_run_out_come_back() {
    let upstream = homeserver();
    let site = Site::new(&url(&upstream), OPEN, ONE_WORKER);
    let process = site.start_with_descriptors(64);
    let crowd: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(process.addr()).unwrap()).collect();
    process.wait_log("it says what is missing", |line| {
        line["message"].as_str().is_some_and(|message| message.contains("no connection can be accepted"))
    });
    drop(crowd);
    eventually("it serves again", || {
        Request::new("GET", VERSIONS).try_send(process.addr()).is_ok_and(|response| response.status == 200)
    });
}

#[test]
fn sixty_four_mebibytes_each_way_cost_at_most_sixteen() {
    const BODY: usize = 64 << 20;
    let upstream = backend(|request| match request.method.as_str() {
        "GET" => Answer::Bytes(response(200, &[], vec![b'x'; BODY])),
        _ => ok(),
    });
    let more = format!("{ONE_WORKER}\n[limits]\nbody = \"100MiB\"");
    let process = Site::new(&url(&upstream), OPEN, &more).start();
    assert_eq!(Request::new("GET", VERSIONS).send(process.addr()).body.len(), BODY);
    let before = process.memory();
    let mut stream = TcpStream::connect(process.addr()).unwrap();
    write!(stream, "GET {VERSIONS} HTTP/1.1\r\nHost: hs\r\nConnection: close\r\n\r\n").unwrap();
    let read = std::io::copy(&mut stream.take(u64::MAX), &mut std::io::sink()).unwrap();
    assert!(read > BODY as u64);
    let upload = Request::new("PUT", "/_matrix/client/v3/rooms/!r:hs/send/x/1").body(vec![b'y'; BODY]);
    assert_eq!(upload.send(process.addr()).status, 200);
    let grown = process.memory().saturating_sub(before);
    assert!(grown <= 16 << 20, "{grown} bytes");
}

#[test]
fn ten_thousand_bogus_tokens_cost_at_most_eight_mebibytes() {
    let refusal =
        json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "Invalid access token passed.", "soft_logout": false });
    let upstream = backend(move |_| Answer::Bytes(json_response(401, &refusal)));
    let process = Site::new(&url(&upstream), "[rules.public_rooms]", ONE_WORKER).start();
    let mut client = Connection::open(process.addr()).unwrap();
    let mut ask = |number: usize| {
        let request = Request::new("GET", "/_matrix/client/v3/publicRooms").bearer(&format!("bogus-{number}"));
        assert_eq!(client.send(&request).unwrap().status, 401);
    };
    (0..100).for_each(&mut ask);
    let before = process.memory();
    (100..10_100).for_each(&mut ask);
    let grown = process.memory().saturating_sub(before);
    assert!(grown <= 8 << 20, "{grown} bytes");
}
