//! Streams stay streams: nothing is collected but uploads without a length, nobody waits for what is not needed, and whoever goes away ends the work.

use std::sync::mpsc::{self, TrySendError};
use std::time::{Duration, Instant};

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::{Connection, Request, json_response};
use serde_json::json;

use crate::common::*;
use crate::support::Gateway;

const UPLOAD: &str = "/_matrix/media/v3/upload";
/// Takes a body that declares no length as it comes.
const LOGIN: &str = "/_matrix/client/v3/login";

/// A homeserver that gives each of these answers once, in order.
fn once(answers: impl IntoIterator<Item = Answer>) -> Backend {
    let mut answers: Vec<_> = answers.into_iter().collect();
    answers.reverse();
    backend(move |_| answers.pop().unwrap_or(Answer::Hang))
}

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: hs\r\n\r\n").into_bytes()
}

/// Reads until these bytes have come, and gives all that did.
fn read_until(client: &mut Connection, wanted: &[u8]) -> Vec<u8> {
    let mut seen = Vec::new();
    while !seen.windows(wanted.len()).any(|window| window == wanted) {
        let more = client.read_some().unwrap();
        assert!(!more.is_empty(), "closed after {:?}", String::from_utf8_lossy(&seen));
        seen.extend(more);
    }
    seen
}

#[test]
fn the_first_piece_of_an_answer_arrives_while_the_second_is_held_back() {
    for head in ["Content-Length: 11", "Transfer-Encoding: chunked"] {
        let (pieces, answer) = Answer::stream();
        let upstream = once([answer]);
        let gateway = Gateway::start(&url(&upstream), OPEN);
        let mut client = Connection::open(gateway.addr()).unwrap();
        client.write(&get(VERSIONS)).unwrap();
        pieces.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").into()).unwrap();
        read_until(&mut client, b"\r\n\r\n");
        let is_chunked = head.starts_with('T');
        for piece in ["first", "second"] {
            let wire = if is_chunked { format!("{:x}\r\n{piece}\r\n", piece.len()) } else { piece.to_owned() };
            pieces.send(wire.into()).unwrap();
            read_until(&mut client, piece.as_bytes());
        }
    }
}

#[test]
fn the_homeserver_sees_the_first_bytes_of_an_upload_before_the_client_sends_the_last() {
    for (framing, first, second) in [
        ("Content-Length: 11", "first", "second"),
        ("Transfer-Encoding: chunked", "5\r\nfirst\r\n", "6\r\nsecond\r\n0\r\n\r\n"),
    ] {
        let upstream = homeserver();
        let gateway = Gateway::start(&url(&upstream), OPEN);
        let mut client = Connection::open(gateway.addr()).unwrap();
        client.write(format!("POST {LOGIN} HTTP/1.1\r\nHost: hs\r\n{framing}\r\n\r\n").as_bytes()).unwrap();
        upstream.wait_requests(1, SOON).unwrap();
        client.write(first.as_bytes()).unwrap();
        eventually("the first bytes arrive", || upstream.last().unwrap().body == b"first");
        client.write(second.as_bytes()).unwrap();
        assert_eq!(client.response("POST").unwrap().status, 200);
        assert_eq!(upstream.last().unwrap().body, b"firstsecond");
    }
}

#[test]
fn an_answer_before_the_end_of_an_upload_reaches_the_client() {
    let upstream =
        Backend::start_early(|_| Answer::BytesThenClose(json_response(413, &json!({ "errcode": "M_TOO_LARGE" }))))
            .unwrap();
    let gateway = Gateway::start(&url(&upstream), OPEN);
    let mut client = Connection::open(gateway.addr()).unwrap();
    client
        .write(format!("POST {UPLOAD} HTTP/1.1\r\nHost: hs\r\nContent-Length: 1000000\r\n\r\nabc").as_bytes())
        .unwrap();
    let answer = client.response("POST").unwrap();
    assert_eq!((answer.status, answer.errcode().as_deref()), (413, Some("M_TOO_LARGE")));
}

/// How much goes through before it stops for this long.
const STALL: Duration = Duration::from_millis(400);
/// Kernel buffers of two connections, and then some; far below what is offered.
const BOUND: usize = 48 << 20;

#[test]
fn a_client_that_does_not_read_stops_the_homeserver_from_writing() {
    let (pieces, answer) = mpsc::sync_channel(0);
    let upstream = once([Answer::Stream(answer)]);
    let gateway = Gateway::start(&url(&upstream), OPEN);
    let mut client = Connection::open(gateway.addr()).unwrap();
    client.write(&get(VERSIONS)).unwrap();
    pieces.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n".to_vec()).unwrap();
    let piece = vec![b'x'; 256 * 1024];
    let (mut written, mut last) = (0, Instant::now());
    while last.elapsed() < STALL {
        match pieces.try_send(piece.clone()) {
            Ok(()) => (written, last) = (written + piece.len(), Instant::now()),
            Err(TrySendError::Full(_)) => nap(),
            Err(TrySendError::Disconnected(_)) => panic!("the gateway gave up after {written} bytes"),
        }
        assert!(written < BOUND, "{written} bytes went into nobody's hands");
    }
    // Once it reads again, the rest flows.
    let mut read = 0;
    while read < written / 2 {
        read += client.read_some().unwrap().len();
    }
    eventually("the homeserver may write again", || pieces.try_send(piece.clone()).is_ok());
}

#[test]
fn a_homeserver_that_does_not_read_stops_the_client_from_writing() {
    let upstream = homeserver();
    let gateway = Gateway::with(&url(&upstream), OPEN, "[limits]\nbody = \"10GiB\"");
    let mut client = Connection::open(gateway.addr()).unwrap();
    client
        .write(format!("POST {UPLOAD} HTTP/1.1\r\nHost: hs\r\nContent-Length: 1000000000\r\n\r\n").as_bytes())
        .unwrap();
    upstream.wait_requests(1, SOON).unwrap();
    upstream.pause_reading();
    client.set_timeout(STALL);
    let piece = vec![b'x'; 1 << 20];
    assert!((0..BOUND >> 20).any(|_| client.write(&piece).is_err()), "{BOUND} bytes went into nobody's hands");
    upstream.resume_reading();
    drop(client);
    upstream.wait_closed(SOON).unwrap();
}

#[test]
fn a_client_that_goes_away_ends_the_homeservers_work_within_a_second() {
    const SECOND: Duration = Duration::from_secs(1);
    let began = || {
        let (pieces, answer) = Answer::stream();
        pieces.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun".to_vec()).unwrap();
        (pieces, answer)
    };

    let upstream = once([Answer::Hang]);
    let gateway = Gateway::start(&url(&upstream), OPEN);
    let mut client = Connection::open(gateway.addr()).unwrap();
    client.write(&get("/_matrix/client/v3/sync?timeout=30000")).unwrap();
    upstream.wait_requests(1, SOON).unwrap();
    drop(client);
    upstream.wait_closed(SECOND).expect("while it waited for the head");
    assert_eq!(gateway.records(1)[0]["decision"], "cancelled");

    let (_pieces, answer) = began();
    let upstream = once([answer]);
    let gateway = Gateway::start(&url(&upstream), OPEN);
    let mut client = Connection::open(gateway.addr()).unwrap();
    client.write(&get(VERSIONS)).unwrap();
    read_until(&mut client, b"begun");
    drop(client);
    upstream.wait_closed(SECOND).expect("in the middle of the answer");
    assert_eq!(gateway.records(1)[0]["decision"], "cancelled");

    let upstream = homeserver();
    let gateway = Gateway::start(&url(&upstream), OPEN);
    let mut client = Connection::open(gateway.addr()).unwrap();
    client.write(format!("POST {UPLOAD} HTTP/1.1\r\nHost: hs\r\nContent-Length: 100\r\n\r\nbegun").as_bytes()).unwrap();
    eventually("the upload begins", || upstream.last().is_some_and(|request| request.body == b"begun"));
    drop(client);
    upstream.wait_closed(SECOND).expect("in the middle of the upload");
}

#[test]
fn a_long_poll_outlasts_the_patience_that_others_end_by() {
    let (pieces, answer) = Answer::stream();
    let upstream = once([answer]);
    let gateway = Gateway::with(&url(&upstream), OPEN, "[limits]\nupstream_head = \"150ms\"");
    let mut poll = Connection::open(gateway.addr()).unwrap();
    poll.write(&get("/_matrix/client/v3/sync?timeout=30000")).unwrap();
    upstream.wait_requests(1, SOON).unwrap();
    for _ in 0..3 {
        // Each takes as long as the patience lasts.
        let answer = Request::new("GET", VERSIONS).send(gateway.addr());
        assert_matrix_error(&answer, 504, "M_UNKNOWN");
    }
    pieces.send(json_response(200, &json!({ "next_batch": "s1" }))).unwrap();
    assert_eq!(poll.response("GET").unwrap().json()["next_batch"], "s1");
    // The homeserver no longer works for those that were given up.
    eventually("only the poll's connection is left", || upstream.open_connections() == 1);
}

#[test]
fn a_slow_upload_is_no_silent_homeserver() {
    let upstream = homeserver();
    let gateway = Gateway::with(&url(&upstream), OPEN, "[limits]\nupstream_head = \"300ms\"");
    let mut client = Connection::open(gateway.addr()).unwrap();
    client.write(format!("POST {UPLOAD} HTTP/1.1\r\nHost: hs\r\nContent-Length: 10\r\n\r\n").as_bytes()).unwrap();
    let begun = Instant::now();
    for n in 1..=10 {
        client.write(b"x").unwrap();
        eventually("it arrives", || upstream.last().is_some_and(|request| request.body.len() == n));
        // The pace of the client: a wait that the gateway must bear, so nothing can be looked for.
        within(SOON, "time passes", || begun.elapsed() > Duration::from_millis(90) * n as u32);
    }
    assert_eq!(client.response("POST").unwrap().status, 200);
}

#[test]
fn a_body_beyond_the_limit_is_refused_with_an_answer_that_a_browser_can_read() {
    let upstream = homeserver();
    let gateway = Gateway::with(&url(&upstream), OPEN, "[limits]\nbody = \"64KiB\"");
    let exact = vec![b'x'; 64 * 1024];
    let beyond = vec![b'x'; 64 * 1024 + 1];
    let chunks =
        |body: &[u8]| Request::new("POST", UPLOAD).header("Transfer-Encoding", "chunked").body(chunked(body, 1000));
    assert_eq!(Request::new("POST", UPLOAD).body(exact.clone()).send(gateway.addr()).status, 200);
    assert_eq!(chunks(&exact).send(gateway.addr()).status, 200);
    upstream.take();
    assert_matrix_error(&Request::new("POST", UPLOAD).body(beyond.clone()).send(gateway.addr()), 413, "M_TOO_LARGE");
    assert!(upstream.requests().is_empty(), "a declared length is refused before anything is sent");
    assert_matrix_error(&chunks(&beyond).send(gateway.addr()), 413, "M_TOO_LARGE");
    let seen = upstream.requests();
    assert!(seen.iter().all(|request| request.state == mantlet_testkit::recorder::State::Incomplete), "{seen:?}");
}

#[test]
fn a_body_that_stops_flowing_is_given_up() {
    for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        let upstream = homeserver();
        let gateway = Gateway::with(&url(&upstream), OPEN, "[limits]\nbody_idle = \"100ms\"");
        let mut client = Connection::open(gateway.addr()).unwrap();
        client.write(format!("POST {LOGIN} HTTP/1.1\r\nHost: hs\r\n{framing}").as_bytes()).unwrap();
        let answer = client.response("POST").unwrap();
        assert_matrix_error(&answer, 408, "M_UNKNOWN");
        upstream.wait_closed(SOON).unwrap();
        // Whatever comes late is not taken for a request.
        assert_eq!(client.read_to_end().unwrap(), b"");
    }
}
