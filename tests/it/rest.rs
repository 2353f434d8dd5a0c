//! What is left of a request that is answered before it is whole: the next one on its connection comes behind it.

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::{Connection, Request, json_response};
use serde_json::json;

use crate::common::*;
use crate::support::Gateway;

/// What the gateway answers itself, with its policy.
const POLICY: &str = "[rules.threepid_unbind]\n";
const ANSWERED: &str = "/_matrix/client/v3/account/3pid/unbind";
const UPLOAD: &str = "/_matrix/media/v3/upload";

fn head(path: &str, length: usize) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: hs\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

/// Sends the next request, which the homeserver answers.
#[track_caller]
fn assert_goes_on(client: &mut Connection) {
    assert_eq!(client.send(&Request::new("GET", VERSIONS)).unwrap().status, 200);
}

#[test]
fn a_connection_goes_on_behind_a_request_that_was_answered_before_its_body_came() {
    let upstream = homeserver();
    let gateway = Gateway::start(&url(&upstream), POLICY);
    let mut client = Connection::open(gateway.addr()).unwrap();
    for length in [1, 10, 100_000, 4_000_000] {
        client.write(&head(ANSWERED, length)).unwrap();
        let answered = client.response("POST").unwrap();
        assert_eq!((answered.status, answered.header("connection")), (404, None), "{}", answered.text());
        client.write(&noise(length)).unwrap();
        assert_goes_on(&mut client);
    }
    assert_eq!((upstream.connections(), gateway.records(8).len()), (1, 8));
}

#[test]
fn a_connection_goes_on_behind_a_request_that_the_homeserver_answered_before_its_body_came() {
    for closes in [false, true] {
        let upstream = Backend::start_early(move |request| match (&*request.method, closes) {
            ("POST", true) => Answer::BytesThenClose(json_response(401, &json!({}))),
            ("POST", false) => Answer::Bytes(json_response(401, &json!({}))),
            _ => ok(),
        });
        let upstream = upstream.unwrap();
        let gateway = Gateway::start(&url(&upstream), POLICY);
        let mut client = Connection::open(gateway.addr()).unwrap();
        for length in [10, 4_000_000] {
            client.write(&head(UPLOAD, length)).unwrap();
            assert_eq!(client.response("POST").unwrap().status, 401, "closes: {closes}");
            client.write(&noise(length)).unwrap();
            assert_goes_on(&mut client);
        }
    }
}

#[test]
fn who_writes_a_body_that_is_too_large_to_its_end_reads_why() {
    let upstream = homeserver();
    let gateway = Gateway::with(&url(&upstream), POLICY, "[limits]\nbody = \"1MiB\"\n");
    let body = noise(32 << 20);
    for request in [head(UPLOAD, body.len()), UNSIZED.to_vec()] {
        let mut client = Connection::open(gateway.addr()).unwrap();
        client.write(&request).unwrap();
        let is_chunked = request == UNSIZED;
        client.write(&if is_chunked { chunked(&body, 1 << 20) } else { body.clone() }).unwrap();
        let answer = client.response("POST").unwrap();
        assert_matrix_error(&answer, 413, "M_TOO_LARGE");
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(client.read_to_end().unwrap(), b"");
    }
}

const UNSIZED: &[u8] = b"POST /_matrix/media/v3/upload HTTP/1.1\r\nHost: hs\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn a_rest_that_does_not_come_ends_its_connection_without_a_word() {
    let upstream = homeserver();
    let gateway =
        Gateway::with(&url(&upstream), POLICY, "[limits]\nbody_idle = \"300ms\"\nhead = \"1h\"\nkeep_alive = \"1h\"\n");
    for sent in [0, 5] {
        let mut client = Connection::open(gateway.addr()).unwrap();
        client.write(&[head(ANSWERED, 10), noise(sent)].concat()).unwrap();
        assert_eq!(client.response("POST").unwrap().status, 404);
        assert_eq!(client.read_to_end().unwrap(), b"", "{sent} of 10 bytes");
    }
    // Nor is a client asked for it that waits to be.
    let mut client = Connection::open(gateway.addr()).unwrap();
    let head = format!("POST {ANSWERED} HTTP/1.1\r\nHost: hs\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n");
    client.write(head.as_bytes()).unwrap();
    let all = String::from_utf8(client.read_to_end().unwrap()).unwrap();
    assert!(all.starts_with("HTTP/1.1 404") && !all.contains("100 Continue"), "{all}");
}
