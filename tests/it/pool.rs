//! The connections to the homeserver, as it sees them.

use std::sync::{Arc, Mutex};

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::{Connection, Request, response};

use crate::common::*;
use crate::process::Site;
use crate::support::Gateway;

const ONE_WORKER: &str = "[workers]\ncount = 1";

#[test]
fn requests_in_turn_share_one_connection() {
    let upstream = homeserver();
    let gateway = Gateway::with(&url(&upstream), OPEN, ONE_WORKER);
    for n in 0..20 {
        let request = if n % 2 == 0 {
            Request::new("GET", VERSIONS)
        } else {
            Request::new("POST", "/_matrix/client/v3/login").body("{}")
        };
        assert_eq!(request.send(gateway.addr()).status, 200);
    }
    assert_eq!((upstream.requests().len(), upstream.connections()), (20, 1));
    assert_eq!(gateway.metric("mantlet_upstream_connections{state=\"open\",upstream=\"synapse\"}"), 1.0);
}

#[test]
fn an_answer_that_is_given_up_takes_its_connection_with_it() {
    let upstream = backend(|request| match request.target_text().as_str() {
        VERSIONS => ok(),
        _ => Answer::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\nbegun".to_vec()),
    });
    let gateway = Gateway::with(&url(&upstream), OPEN, ONE_WORKER);
    let mut client = Connection::open(gateway.addr()).unwrap();
    client.write(b"GET /_matrix/client/v3/sync HTTP/1.1\r\nHost: hs\r\n\r\n").unwrap();
    client.read_some().unwrap();
    drop(client);
    upstream.wait_none_open(SOON).unwrap();
    assert_eq!(Request::new("GET", VERSIONS).send(gateway.addr()).status, 200);
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn the_connection_used_last_is_used_next() {
    let held = Arc::new(Mutex::new(Vec::new()));
    let here = Arc::clone(&held);
    let upstream = backend(move |request| {
        if request.target_text() == VERSIONS {
            return ok();
        }
        let (pieces, answer) = Answer::stream();
        here.lock().unwrap().push((request.connection, pieces));
        answer
    });
    let gateway = Gateway::with(&url(&upstream), OPEN, ONE_WORKER);
    let mut clients: Vec<_> = (0..3)
        .map(|n| {
            let mut client = Connection::open(gateway.addr()).unwrap();
            client.write(b"GET /_matrix/client/v3/sync HTTP/1.1\r\nHost: hs\r\n\r\n").unwrap();
            upstream.wait_requests(n + 1, SOON).unwrap();
            eventually("it is held", || held.lock().unwrap().len() == n + 1);
            client
        })
        .collect();
    // They come back in the order 0, 2, 1: so 1 was used last.
    let mut held = std::mem::take(&mut *held.lock().unwrap());
    assert_eq!(held.iter().map(|(connection, _)| *connection).collect::<Vec<_>>(), [0, 1, 2]);
    held.swap(1, 2);
    for (connection, pieces) in held {
        pieces.send(response(200, &[], "")).unwrap();
        assert_eq!(clients[connection].response("GET").unwrap().status, 200);
        drop(pieces);
    }
    Request::new("GET", VERSIONS).send(gateway.addr());
    assert_eq!(upstream.last().unwrap().connection, 1);
}

#[test]
fn a_connection_that_was_closed_while_idle_is_replaced_unnoticed() {
    let upstream = homeserver();
    let gateway = Gateway::with(&url(&upstream), OPEN, ONE_WORKER);
    let mut client = Connection::open(gateway.addr()).unwrap();
    for n in 0..300_u32 {
        client.send(&Request::new("GET", VERSIONS)).unwrap();
        upstream.take();
        let body = format!("body {n}").repeat(1 + n as usize % 7 * 1000);
        let request = Request::new("POST", "/_matrix/client/v3/login").body(body.clone());
        upstream.close_connections();
        let answer = client.send(&request).unwrap();
        assert_eq!(answer.status, 200, "round {n}: {}", answer.text());
        let seen = upstream.take();
        assert_eq!(seen.len(), 1, "round {n}");
        assert!(seen[0].body == body.as_bytes(), "round {n}");
    }
}

#[test]
fn a_request_that_was_picked_up_before_the_news_of_the_closing_is_sent_once_on_a_fresh_connection() {
    let upstream = homeserver();
    let site = Site::new(&url(&upstream), OPEN, ONE_WORKER);
    let process = site.start();
    let mut client = Connection::open(process.addr()).unwrap();
    for n in 1..=10 {
        client.send(&Request::new("GET", VERSIONS)).unwrap();
        upstream.take();
        // The worker wakes up to both: the request first, the closing behind it.
        process.pause();
        client.write(b"POST /_matrix/client/v3/login HTTP/1.1\r\nHost: hs\r\nContent-Length: 4\r\n\r\nonce").unwrap();
        upstream.close_connections();
        process.resume();
        let answer = client.response("POST").unwrap();
        assert_eq!(answer.status, 200, "round {n}: {}", answer.text());
        let seen = upstream.take();
        assert_eq!(seen.iter().map(|request| &request.body[..]).collect::<Vec<_>>(), [b"once"], "round {n}");
        assert_eq!(process.metric("mantlet_upstream_retries_total{upstream=\"synapse\"}"), Some(f64::from(n)));
    }
}

#[test]
fn a_request_that_was_sent_is_never_sent_again() {
    let mut count = 0;
    let upstream = backend(move |_| {
        count += 1;
        if count == 1 { ok() } else { Answer::Close }
    });
    let gateway = Gateway::with(&url(&upstream), OPEN, ONE_WORKER);
    assert_eq!(Request::new("GET", VERSIONS).send(gateway.addr()).status, 200);
    for (n, method) in ["PUT", "GET"].into_iter().enumerate() {
        let answer = Request::new(method, "/_matrix/client/v3/rooms/!a:hs/send/m.room.message/1")
            .body("{}")
            .send(gateway.addr());
        assert_matrix_error(&answer, 502, "M_UNKNOWN");
        assert_eq!(upstream.requests().len(), n + 2, "{method}");
    }
}

#[test]
fn a_unix_socket_is_an_upstream_that_may_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("synapse.sock");
    let start = || Backend::start_at(&path, |request| Answer::Bytes(response(200, &[], &request.body))).unwrap();
    let gateway = Gateway::start(&format!("unix:{}", path.display()), OPEN);
    let request = Request::new("POST", "/_matrix/client/v3/login").body(noise(200_000));
    assert_matrix_error(&request.send(gateway.addr()), 502, "M_UNKNOWN");
    for _ in 0..2 {
        let upstream = start();
        let answer = request.send(gateway.addr());
        assert!(answer.status == 200 && answer.body == noise(200_000), "{}", answer.status);
        assert_eq!(upstream.requests().len(), 1);
        drop(upstream);
        assert_matrix_error(&request.send(gateway.addr()), 502, "M_UNKNOWN");
    }
    assert!(gateway.records(5)[0]["error"] == "connect");
}

#[test]
fn nobody_at_the_port_is_a_502_too() {
    // Taken and given back: nobody listens there, and the system gives it to nobody else so soon.
    let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = Gateway::start(&format!("http://{addr}"), "extends = \"balanced\"");
    assert_matrix_error(&Request::new("GET", VERSIONS).send(gateway.addr()), 502, "M_UNKNOWN");
    let protected = Request::new("GET", "/_matrix/client/v3/publicRooms").bearer("T");
    assert_matrix_error(&protected.send(gateway.addr()), 502, "M_UNKNOWN");
    let stranger = Request::new("GET", "/_matrix/client/v3/publicRooms");
    assert_matrix_error(&stranger.send(gateway.addr()), 401, "M_MISSING_TOKEN");
}
