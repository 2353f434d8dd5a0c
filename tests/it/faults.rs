//! What goes wrong upstream or at the client, as the other side of it sees it.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Connection, Request, response};
use serde_json::json;

use crate::common::*;
use crate::process::Site;
use crate::support::Gateway;
use crate::support::frames::*;

const SECOND: Duration = Duration::from_secs(1);
const LOGIN: &str = "/_matrix/client/v3/login";

/// A gateway that speaks HTTP/2, and one client's connection to it.
struct H2 {
    // Dropped first: it does not answer when the gateway says that it ends.
    client: Connection,
    pending: Vec<u8>,
    gateway: Gateway,
}

impl H2 {
    fn start(upstream: &Backend, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new().unwrap();
        let gateway = Gateway::with_listener(&url(upstream), OPEN, &tls(&authority, dir.path()), more);
        let mut client = Connection::open_tls_for(gateway.addr(), "hs", &authority.pem(), b"h2").unwrap();
        client.write(&preface()).unwrap();
        Self { client, pending: Vec::new(), gateway }
    }

    /// Sends a head, with all that belongs to the request or only its beginning.
    fn send(&mut self, stream: u32, method: &str, target: &str, flags: u8) {
        self.client.write(&head(stream, &request_block(method, target), flags)).unwrap();
    }

    /// What comes on a stream until it ends: the first byte of its head, its content, and the frame that ended it.
    fn answer(&mut self, stream: u32) -> (Option<u8>, Vec<u8>, End) {
        let (mut first, mut content) = (None, Vec::new());
        loop {
            let Some((kind, flags, on, payload)) = take(&mut self.pending) else {
                let more = self.client.read_some().unwrap();
                assert!(!more.is_empty(), "the connection ended");
                self.pending.extend(more);
                continue;
            };
            match kind {
                GOAWAY => panic!("the connection ends"),
                HEADERS if on == stream => first = first.or(payload.first().copied()),
                DATA if on == stream => content.extend(payload),
                RST_STREAM if on == stream => return (first, content, End::Cut),
                _ => {}
            }
            if on == stream && matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                return (first, content, End::Whole);
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    Cut,
}

/// `:status: 200` as HPACK writes it.
const GOOD: Option<u8> = Some(0x88);

fn tls(authority: &Authority, dir: &std::path::Path) -> String {
    let (certificate, key) = authority.issue(&["hs"]).unwrap().write(dir).unwrap();
    format!("tls = {{ certificate = \"{}\", key = \"{}\" }}", certificate.display(), key.display())
}

fn request_block(method: &str, target: &str) -> Vec<u8> {
    block([
        (&b":method"[..], method.as_bytes()),
        (b":scheme", b"https"),
        (b":authority", b"hs"),
        (b":path", target.as_bytes()),
    ])
}

#[test]
fn a_cut_answer_is_cut_on_http2_too_and_the_connection_goes_on() {
    for what in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense\r\n",
    ] {
        let upstream = backend(move |request| match request.target_text().as_str() {
            VERSIONS => ok(),
            _ => Answer::BytesThenClose(what.to_vec()),
        });
        let mut h2 = H2::start(&upstream, "");
        h2.send(1, "GET", LOGIN, END_STREAM);
        let (head, content, end) = h2.answer(1);
        let what = String::from_utf8_lossy(what);
        assert!(b"abc".starts_with(&content), "{content:?} of {what}");
        assert_eq!((head, end), (GOOD, End::Cut), "{what}");
        let record = &h2.gateway.records(1)[0];
        assert_eq!((&record["decision"], &record["error"]), (&json!("error"), &json!("cut")), "{record}");
        h2.send(3, "GET", VERSIONS, END_STREAM);
        assert_eq!(h2.answer(3), (GOOD, b"{}".to_vec(), End::Whole), "{what}");
    }
}

#[test]
fn what_is_no_answer_and_what_is_none_in_time_are_answers_of_ours_on_http2_too() {
    let upstream = backend(|request| match request.target_text().as_str() {
        VERSIONS => Answer::Hang,
        _ => Answer::BytesThenClose(b"garbage\r\n\r\n".to_vec()),
    });
    let mut h2 = H2::start(&upstream, "[limits]\nupstream_head = \"200ms\"");
    h2.send(1, "GET", VERSIONS, END_STREAM);
    h2.send(3, "GET", LOGIN, END_STREAM);
    for (stream, status) in [(3, 502), (1, 504)] {
        let (_, content, end) = h2.answer(stream);
        let content: serde_json::Value = serde_json::from_slice(&content).unwrap();
        assert_eq!((&content["errcode"], end), (&json!("M_UNKNOWN"), End::Whole));
        h2.gateway.records_with(|record| record["status"] == status);
    }
}

#[test]
fn a_body_that_stops_flowing_is_given_up_on_http2_too() {
    let upstream = homeserver();
    let mut h2 = H2::start(&upstream, "[limits]\nbody_idle = \"100ms\"");
    h2.send(1, "POST", LOGIN, 0);
    h2.client.write(&frame(DATA, 0, 1, b"abc")).unwrap();
    let (_, content, _) = h2.answer(1);
    let content: serde_json::Value = serde_json::from_slice(&content).unwrap();
    assert_eq!(content["errcode"], "M_UNKNOWN");
    let record = &h2.gateway.records(1)[0];
    assert_eq!((&record["status"], &record["error"]), (&json!(408), &json!("slow_body")), "{record}");
    upstream.wait_closed(SOON).unwrap();
    h2.send(3, "GET", VERSIONS, END_STREAM);
    assert_eq!(h2.answer(3).2, End::Whole, "other streams go on");
}

#[test]
fn a_stream_or_a_client_that_goes_away_ends_the_homeservers_work_within_a_second() {
    let upstream = backend(|request| match request.target_text().as_str() {
        VERSIONS => ok(),
        LOGIN => Answer::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun".to_vec()),
        _ => Answer::Hang,
    });
    let mut h2 = H2::start(&upstream, "[workers]\ncount = 1");
    h2.send(1, "GET", "/_matrix/client/v3/sync?timeout=30000", END_STREAM);
    upstream.wait_requests(1, SOON).unwrap();
    h2.client.write(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes())).unwrap();
    upstream.wait_closed(SECOND).expect("while it waited for the head");
    h2.send(3, "GET", VERSIONS, END_STREAM);
    assert_eq!(h2.answer(3).2, End::Whole, "other streams go on");
    h2.send(5, "GET", "/_matrix/client/v3/sync?timeout=30000", END_STREAM);
    h2.send(7, "GET", LOGIN, END_STREAM);
    h2.send(9, "POST", LOGIN, 0);
    h2.client.write(&frame(DATA, 0, 9, b"begun")).unwrap();
    eventually("all have begun", || {
        let seen = upstream.requests();
        seen.len() == 5 && seen.iter().any(|request| request.body == b"begun")
    });
    drop(h2.client);
    for _ in 0..3 {
        upstream.wait_closed(SECOND).expect("when the client goes");
    }
    eventually("all are told as given up", || {
        let records = h2.gateway.records(5);
        records.iter().filter(|record| record["decision"] == "cancelled").count() == 4
    });
}

#[test]
fn a_client_that_is_gone_without_a_word_does_not_hold_up_the_end() {
    let upstream = homeserver();
    let mut h2 = H2::start(&upstream, "");
    h2.send(1, "GET", VERSIONS, END_STREAM);
    assert_eq!(h2.answer(1).2, End::Whole);
    let idle = Instant::now();
    within(SOON, "it is idle for a while", || idle.elapsed() > Duration::from_millis(2500));
    let begun = Instant::now();
    // It reads nothing and answers nothing from now on.
    h2.gateway.shutdown();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    drop(h2.client);
}

/// Who asks while the homeserver comes and goes.
struct Load {
    /// What the homeserver saw whole.
    seen: Mutex<HashMap<Vec<u8>, usize>>,
    done: AtomicUsize,
    failed: AtomicUsize,
    is_over: AtomicBool,
}

impl Load {
    fn homeserver(self: &Arc<Self>, at: SocketAddr) -> Backend {
        let load = Arc::clone(self);
        let play = move |request: &mantlet_testkit::recorder::RecordedRequest| {
            *load.seen.lock().unwrap().entry(request.body.clone()).or_default() += 1;
            Answer::Bytes(response(200, &[], &request.body))
        };
        Backend::start_at(at, play).unwrap()
    }

    /// Asks on one connection until it is over; each request has one answer, and it is its own.
    fn ask(&self, gateway: SocketAddr, client: usize) {
        let mut connection = Connection::open(gateway).unwrap();
        connection.set_timeout(3 * SOON);
        let mut n = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            n += 1;
            let id = format!("{client}-{n}");
            let (method, target) = match client % 2 {
                0 => ("POST", "/_matrix/client/v3/login".to_owned()),
                _ => ("PUT", format!("/_matrix/federation/v1/send/{id}")),
            };
            let answer = connection.send(&Request::new(method, target).body(id.clone())).unwrap();
            let seen = self.seen.lock().unwrap().get(id.as_bytes()).copied().unwrap_or_default();
            match answer.status {
                200 => assert_eq!((answer.text(), seen), (id, 1)),
                502 => {
                    assert!(seen <= 1, "{id} was sent {seen} times");
                    self.failed.fetch_add(1, Ordering::SeqCst);
                }
                other => panic!("{id}: {other} {}", answer.text()),
            }
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[test]
fn a_homeserver_that_restarts_under_load_costs_what_it_had_begun_and_nothing_else() {
    const CLIENTS: usize = 8;
    let load = Arc::new(Load {
        seen: Mutex::default(),
        done: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
    });
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut upstream = load.homeserver(addr);
    let gateway = Gateway::with(&format!("http://{addr}"), OPEN, "[limits]\npatience = \"30s\"");
    let _upstream = std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (load, gateway) = (&load, gateway.addr());
            scope.spawn(move || load.ask(gateway, client));
        }
        let done = || load.done.load(Ordering::SeqCst);
        for round in 0..5 {
            let before = done();
            eventually("the load flows", || done() > before + 100);
            drop(upstream);
            // Clients fail at once, other servers wait; none of both is forgotten.
            let failed = load.failed.load(Ordering::SeqCst);
            eventually("some fail", || load.failed.load(Ordering::SeqCst) > failed);
            eventually("some wait", || gateway.metric("mantlet_upstream_waiting{upstream=\"synapse\"}") > 0.0);
            upstream = load.homeserver(addr);
            eventually(&format!("nobody waits any more after round {round}"), || {
                gateway.metric("mantlet_upstream_waiting{upstream=\"synapse\"}") == 0.0
            });
        }
        load.is_over.store(true, Ordering::SeqCst);
        upstream
    });
    for n in 0..50 {
        let answer = Request::new("POST", LOGIN).body(format!("after-{n}")).send(gateway.addr());
        assert_eq!((answer.status, answer.text()), (200, format!("after-{n}")));
    }
    let seen = load.seen.lock().unwrap();
    assert!(seen.values().all(|times| *times == 1), "{:?}", seen.iter().find(|(_, times)| **times > 1));
}

/// How many clients never read.
const CROWD: usize = 200;

#[test]
fn two_hundred_clients_that_never_read_cost_at_most_a_hundred_mebibytes() {
    in_a_process_of_its_own("faults::never_read_inner");
}

#[test]
#[ignore = "run by two_hundred_clients_that_never_read_cost_at_most_a_hundred_mebibytes"]
fn never_read_inner() {
    let written = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&written);
    // Answers without an end, of which one piece at a time is in this process.
    let upstream = backend(move |request| {
        if request.target_text() == VERSIONS {
            return ok();
        }
        let (pieces, answer) = mpsc::sync_channel(0);
        let written = Arc::clone(&counted);
        std::thread::spawn(move || {
            let _ = pieces.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n".to_vec());
            while pieces.send(vec![b'x'; 64 * 1024]).is_ok() {
                written.fetch_add(64 * 1024, Ordering::SeqCst);
            }
        });
        Answer::Stream(answer)
    });
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let secure = format!(
        "[[listener]]\nname = \"secure\"\ndoor = \"ingress\"\nbind = \"127.0.0.1:0\"\n{}\n[limits]\nper_address = 1000",
        tls(&authority, dir.path())
    );
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let all_windows = [
        frame(SETTINGS, 0, 0, &[&[0, 4][..], &(u32::MAX >> 1).to_be_bytes()].concat()),
        frame(WINDOW_UPDATE, 0, 0, &(u32::MAX >> 2).to_be_bytes()),
    ]
    .concat();
    let streams: Vec<u8> = (0..50).flat_map(|n| head(2 * n + 1, &request_block("GET", LOGIN), END_STREAM)).collect();
    let on_h1 = |at| {
        let mut client = Connection::open(at).unwrap();
        client.write(format!("GET {LOGIN} HTTP/1.1\r\nHost: hs\r\n\r\n").as_bytes()).unwrap();
        client
    };
    let on_h2 = |at, windows: &[u8]| {
        let mut client = Connection::open_tls_for(at, "hs", &authority.pem(), b"h2").unwrap();
        client.write(&[&preface()[..], windows, &streams].concat()).unwrap();
        client
    };
    let (without, with) = (|at| on_h2(at, &no_window), |at| on_h2(at, &all_windows));
    for (name, listener, clients, open) in [
        ("HTTP/1", "test", CROWD, &on_h1 as &dyn Fn(SocketAddr) -> Connection),
        ("HTTP/2 without windows", "secure", CROWD / 50, &without),
        ("HTTP/2 with all windows", "secure", CROWD / 50, &with),
    ] {
        // What one crowd left behind would hide what the other takes.
        let site = Site::new(&url(&upstream), OPEN, &secure);
        let process = site.start();
        let line =
            process.wait_log("it listens", |line| line["message"] == "listening" && line["listener"] == listener);
        let at = line["address"].as_str().unwrap().parse().unwrap();
        assert_eq!(Request::new("GET", VERSIONS).send(process.addr()).status, 200);
        upstream.take();
        let before = process.memory();
        let crowd: Vec<Connection> = (0..clients).map(|_| open(at)).collect();
        upstream.wait_requests(CROWD, 3 * SOON).unwrap();
        let (mut seen, mut last) = (0, Instant::now());
        while last.elapsed() < SECOND {
            let now = written.load(Ordering::SeqCst);
            if now != seen {
                (seen, last) = (now, Instant::now());
            }
            nap();
        }
        let grown = process.memory().saturating_sub(before);
        println!("{name}: {} KiB", grown / 1024);
        assert!(grown <= 100 << 20, "{name}: {grown} bytes");
        assert_eq!(Request::new("GET", VERSIONS).send(process.addr()).status, 200, "{name}");
        drop(crowd);
        eventually("their answers are given up", || upstream.open_connections() <= 2);
    }
}
