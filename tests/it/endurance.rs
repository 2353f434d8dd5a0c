//! What the gateway costs while it is used hard, and what it does when the machine has nothing more to give.

use std::io::{Read, Write};
use std::net::TcpStream;

use mantlet_testkit::backend::Answer;
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Connection, Request, json_response, response};
use serde_json::json;

use crate::common::*;
use crate::process::Site;
use crate::support::Gateway;

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

#[test]
fn a_connection_that_does_not_go_on_is_ended() {
    let upstream = homeserver();
    let limits = "[limits]\nfirst_byte = \"100ms\"\nhead = \"100ms\"\nkeep_alive = \"100ms\"";
    let gateway = Gateway::with(&url(&upstream), OPEN, limits);
    let mut silent = Connection::open(gateway.addr()).unwrap();
    assert_eq!(silent.read_to_end().unwrap(), b"", "nothing was said, so nothing is answered");
    let mut slow = Connection::open(gateway.addr()).unwrap();
    slow.write(b"GET / HTTP/1.1\r\nHost: hs\r\nX-Slow: ").unwrap();
    assert!(slow.read_to_end().unwrap().starts_with(b"HTTP/1.1 408 "));
    assert_eq!(gateway.metric("mantlet_refused_by_parser_total{listener=\"test\",reason=\"408\"}"), 1.0);
    let mut idle = Connection::open(gateway.addr()).unwrap();
    assert_eq!(idle.send(&Request::new("GET", VERSIONS)).unwrap().status, 200);
    assert_eq!(idle.read_to_end().unwrap(), b"", "between two requests it is closed without a word");
}

#[test]
fn a_handshake_that_stays_half_open_is_ended_and_counted() {
    let upstream = homeserver();
    let authority = Authority::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = authority.issue(&["localhost"]).unwrap().write(dir.path()).unwrap();
    let tls = format!("tls = {{ certificate = {certificate:?}, key = {key:?} }}");
    let gateway = Gateway::with_listener(&url(&upstream), OPEN, &tls, "[limits]\nhandshake = \"100ms\"");
    // Nothing at all, and the first bytes of a ClientHello that says it is longer.
    for said in [&b""[..], &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]] {
        let mut half = Connection::open(gateway.addr()).unwrap();
        half.write(said).unwrap();
        assert_eq!(half.read_to_end().unwrap(), b"");
    }
    eventually("both are counted", || gateway.metric("mantlet_tls_handshake_failures_total{listener=\"test\"}") == 2.0);
}

#[test]
fn no_message_of_ten_kibibytes_costs_more_than_a_mebibyte() {
    const CROWD: usize = 32;
    let upstream = backend(|_| Answer::Hang);
    let limits = format!("{ONE_WORKER}\n[limits]\nhead = \"60s\"\nbody_idle = \"60s\"");
    let process = Site::new(&url(&upstream), "extends = \"strict\"", &limits).start();
    let fill = "x".repeat(10 << 10);
    let fields: String = (0..190).map(|n| format!("x-{n}: {}\r\n", "y".repeat(40))).collect();
    let before = process.memory();
    let mut crowd = Vec::new();
    for message in [
        format!("GET {VERSIONS} HTTP/1.1\r\nHost: hs\r\nX-Long: {fill}"),
        format!("GET {VERSIONS}?{fill} HTTP/1.1\r\nHost: hs\r\n\r\n"),
        format!("GET {VERSIONS}?{} HTTP/1.1\r\nHost: hs\r\n\r\n", "a;".repeat(5 << 10)),
        format!("GET /{} HTTP/1.1\r\nHost: hs\r\n\r\n", "%2F/".repeat(2 << 10)),
        format!("GET {VERSIONS} HTTP/1.1\r\nHost: hs\r\n{fields}\r\n"),
        format!("POST {VERSIONS} HTTP/1.1\r\nHost: hs\r\nContent-Length: 99999\r\n\r\n{fill}"),
        format!(
            "POST {VERSIONS} HTTP/1.1\r\nHost: hs\r\nTransfer-Encoding: chunked\r\n\r\n{}",
            "1\r\nz\r\n".repeat(1700)
        ),
    ] {
        for _ in 0..CROWD {
            let mut client = Connection::open(process.addr()).unwrap();
            client.write(message.as_bytes()).unwrap();
            crowd.push(client);
        }
        // One that is answered comes after all that were sent before it.
        assert_eq!(Request::new("GET", "/nothing").send(process.addr()).status, 404);
    }
    let each = process.memory().saturating_sub(before) / crowd.len() as u64;
    assert!(each <= 1 << 20, "{each} bytes each");
}
