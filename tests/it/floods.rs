//! Whoever asks for too much is cut off, and meanwhile everybody else is answered.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Connection, Request};

use crate::common::*;
use crate::support::Gateway;
use crate::support::frames::*;

/// No patience of the gateway ends a connection while a test looks.
const PATIENT: &str = "[limits]\nhead = \"60s\"\nkeep_alive = \"60s\"\nbody_idle = \"60s\"";

/// How many times a client may try before it is too many.
const MOST: u32 = 30_000;

fn request_block() -> Vec<u8> {
    block([
        (&b":method"[..], &b"GET"[..]),
        (b":scheme", b"https"),
        (b":authority", b"hs"),
        (b":path", VERSIONS.as_bytes()),
    ])
}

/// How often another client asks meanwhile.
const TIMES: usize = 20;

/// Sends what a flood makes of 0, 1, 2, … until the connection is over, and begins again on another one, and another client asks
/// all the while.
fn flood(name: &str, begin: &[u8], mut piece: impl FnMut(u32) -> Vec<u8> + Send) {
    let upstream = homeserver();
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let (certificate, key) = authority.issue(&["hs"]).unwrap().write(dir.path()).unwrap();
    let tls = format!("tls = {{ certificate = \"{}\", key = \"{}\" }}", certificate.display(), key.display());
    let gateway = Gateway::with_listener(&url(&upstream), OPEN, &tls, PATIENT);
    let (addr, ca, asked) = (gateway.addr(), authority.pem(), AtomicUsize::new(0));
    let mut attack = || {
        let mut client = Connection::open_tls_for(addr, "hs", &ca, b"h2").unwrap();
        client.set_timeout(SOON);
        client.write(&[&preface()[..], begin].concat()).unwrap();
        let begun = Instant::now();
        let sent = (0..MOST / 50).take_while(|batch| {
            let batch: Vec<u8> = (batch * 50..(batch + 1) * 50).flat_map(&mut piece).collect();
            client.write(&batch).is_ok()
        });
        let sent = sent.count();
        // What was sent may still be on its way; the end of the connection is what counts, not who sees it first.
        let _ = client.read_to_end();
        assert!(begun.elapsed() < SOON, "{name}: {sent} batches of 50 and the connection still lives");
    };
    std::thread::scope(|scope| {
        let attacks = scope.spawn(|| {
            while asked.load(Ordering::SeqCst) < TIMES {
                attack();
            }
        });
        let mut waits = Vec::new();
        while !attacks.is_finished() {
            let begun = Instant::now();
            let answer = Request::new("GET", VERSIONS).send_tls(addr, "hs", &ca);
            assert_eq!(answer.status, 200, "{name}");
            waits.push(begun.elapsed());
            asked.fetch_add(1, Ordering::SeqCst);
        }
        assert_waits(name, waits, Duration::from_secs(5), Duration::from_millis(250));
    });
}

/// How long another client waited: the longest as a machine with much else to do allows, half of all as nobody notices.
#[track_caller]
fn assert_waits(name: &str, mut waits: Vec<Duration>, most: Duration, half: Duration) {
    waits.sort();
    let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    println!("{name}: another client waited {median:?} in the middle and {longest:?} at most, {} times", waits.len());
    assert!(longest < most && median <= half, "{name}: another client waited {median:?}, and at most {longest:?}");
}

#[test]
fn streams_that_are_taken_back_at_once_end_their_connection() {
    let block = request_block();
    flood("rapid reset", b"", |n| {
        let stream = 2 * n + 1;
        [head(stream, &block, END_STREAM), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    });
}

#[test]
fn streams_that_we_are_made_to_reset_end_their_connection() {
    let block = request_block();
    // A window beyond all bounds is an error of the stream, and the reset is ours.
    flood("made to reset", b"", |n| {
        let stream = 2 * n + 1;
        let window = frame(WINDOW_UPDATE, 0, stream, &(u32::MAX >> 1).to_be_bytes());
        [head(stream, &block, END_STREAM), window].concat()
    });
}

#[test]
fn a_head_without_end_ends_its_connection() {
    flood("continuation", &frame(HEADERS, END_STREAM, 1, &request_block()), |_| {
        frame(CONTINUATION, 0, 1, &block([(&b"x-a"[..], &[b'a'; 100][..])]))
    });
}

#[test]
fn a_head_of_nothing_without_end_ends_its_connection() {
    flood("empty continuation", &frame(HEADERS, END_STREAM, 1, &request_block()), |_| frame(CONTINUATION, 0, 1, b""));
}

#[test]
fn data_without_data_ends_its_connection() {
    let block = block([
        (&b":method"[..], &b"POST"[..]),
        (b":scheme", b"https"),
        (b":authority", b"hs"),
        (b":path", b"/_matrix/client/v3/login"),
    ]);
    flood("empty data", &head(1, &block, 0), |_| frame(DATA, 0, 1, b""));
}

#[test]
fn pings_without_end_end_their_connection() {
    flood("ping", b"", |_| frame(PING, 0, 0, &[0; 8]));
}

#[test]
fn settings_without_end_end_their_connection() {
    flood("settings", b"", |_| frame(SETTINGS, 0, 0, b""));
}

#[test]
fn priorities_without_end_end_their_connection() {
    flood("priority", b"", |n| frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 9]));
}

#[test]
fn frames_of_no_known_kind_without_end_end_their_connection() {
    flood("unknown", b"", |_| frame(0xfa, 0, 0, &[0; 8]));
}

#[test]
fn two_thousand_slow_heads_keep_nobody_waiting() {
    in_a_process_of_its_own("floods::slow_heads_inner");
}

#[test]
#[ignore = "run by two_thousand_slow_heads_keep_nobody_waiting"]
fn slow_heads_inner() {
    let upstream = homeserver();
    let limits = "[limits]\nhead = \"1500ms\"\nper_address = 5000";
    let gateway = Gateway::with(&url(&upstream), OPEN, limits);
    let mut slow: Vec<_> = (0..2000)
        .map(|_| {
            let mut client = Connection::open(gateway.addr()).unwrap();
            client.write(b"GET /_matrix/client/versions HTTP/1.1\r\nHost: ").unwrap();
            client
        })
        .collect();
    let waits = (0..50).map(|_| {
        let asked = Instant::now();
        assert_eq!(Request::new("GET", VERSIONS).send(gateway.addr()).status, 200);
        asked.elapsed()
    });
    assert_waits("slow heads", waits.collect(), Duration::from_secs(1), Duration::from_millis(100));
    let since = Instant::now();
    for client in &mut slow {
        client.set_timeout(SOON);
        let answer = client.read_to_end().unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 408 "), "{:?}", String::from_utf8_lossy(&answer));
    }
    assert!(since.elapsed() < SOON, "closed after {:?}", since.elapsed());
    assert_eq!(upstream.requests().len(), 50);
}
