//! Nothing personal is written down: markers in every place of a request show up in no record, metric or log.

use mantlet_testkit::backend::Answer;
use mantlet_testkit::http::{Connection, Request, json_response, response};
use serde_json::json;

use crate::common::*;
use crate::process::Site;

const MARKER: &str = "canary";

/// A request full of markers; each has its own, so that a finding names its place.
fn marked(method: &str, path: &str) -> Request {
    Request::new(method, format!("{path}?since=canaryquery&user_id=%40canarymasq%3Ahs"))
        .bearer("syt_canarytoken")
        .header("Host", "canaryhost.example")
        .header("User-Agent", "canaryagent/1.0")
        .header("Origin", "https://canaryorigin.example")
        .header("Referer", "https://canaryreferer.example/")
        .header("X-Forwarded-For", "canaryforwarded")
        .header("X-Request-ID", "canaryid")
        .header("Cookie", "session=canarycookie")
        .header("X-Canaryname", "canaryvalue")
        .json(&json!({ "password": "canarybody" }))
}

#[test]
fn no_marker_is_written_at_the_finest_level() {
    let upstream = backend(|request| match request.target_text() {
        target if target.contains("whoami") && request.header("authorization") == Some("Bearer syt_canarytoken") => {
            Answer::Bytes(json_response(200, &json!({ "user_id": "@canaryuser:hs" })))
        }
        target if target.contains("whoami") => {
            Answer::Bytes(json_response(401, &json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "canaryrefusal" })))
        }
        target if target.contains("cut") => Answer::BytesThenClose(
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nX-Canary: canaryfield\r\n\r\ncanarycut".to_vec(),
        ),
        target if target.contains("garbled") => Answer::BytesThenClose(b"canarygarbage: \x01\r\n\r\n".to_vec()),
        target if target.contains("closed") => Answer::Close,
        target if target.contains("silent") => Answer::Hang,
        _ => Answer::Bytes(response(200, &[("Set-Cookie", "canaryset")], "canaryanswer")),
    });
    let policy = "extends = \"balanced\"\n[[rules.closed_endpoint]]\npath = \"/_matrix/client/v3/rooms/!canaryroom:hs/closed\"\n";
    let more = "[log]\nlevel = \"debug\"\n[limits]\nupstream_head = \"300ms\"\nbody = \"64KiB\"\nbody_idle = \"100ms\"\nhead_bytes = \"8KiB\"";
    let site = Site::new(&url(&upstream), policy, more);
    let mut process = site.start();
    let addr = process.addr();
    let mut statuses = Vec::new();
    for (method, path) in [
        ("PUT", "/_matrix/client/v3/rooms/!canaryroom:hs/send/m.room.message/canarytxn"),
        ("GET", "/_matrix/client/v3/publicRooms"),
        ("GET", "/_matrix/client/v3/profile/@canaryuser:hs"),
        ("GET", "/_matrix/client/v3/rooms/!canaryroom:hs/closed"),
        ("GET", "/_matrix/client/v3/canaryunknown/x"),
        ("GET", "/canaryelsewhere"),
        ("GET", "/_synapse/admin/v1/users/@canaryuser:hs"),
        ("GET", "/_matrix/client/v3/%70rofile/@canaryuser:hs"),
        ("GET", "/_matrix/client/v3/rooms/!canaryroom:hs/garbled"),
        ("GET", "/_matrix/client/v3/rooms/!canaryroom:hs/cut"),
        ("GET", "/_matrix/client/v3/rooms/!canaryroom:hs/closedearly"),
        ("GET", "/_matrix/client/v3/rooms/!canaryroom:hs/silent"),
        ("CANARYMETHOD", "/_matrix/client/v3/rooms/!canaryroom:hs/state"),
        ("GET", "/_matrix/federation/v1/publicRooms"),
        ("POST", "/_matrix/client/v3/logout"),
    ] {
        statuses.push(marked(method, path).try_send(addr).map_or(0, |answer| answer.status));
    }
    let bad = marked("GET", "/_matrix/client/v3/publicRooms").header("Authorization", "Bearer canarysecond");
    statuses.push(bad.send(addr).status);
    let unknown = Request::new("GET", "/_matrix/client/v3/publicRooms?access_token=canaryquerytoken");
    statuses.push(unknown.send(addr).status);
    statuses.push(marked("POST", "/_matrix/media/v3/upload").body(vec![b'x'; 100_000]).send(addr).status);
    let mut slow = Connection::open(addr).unwrap();
    slow.write(
        b"POST /_matrix/client/v3/login?canaryslow HTTP/1.1\r\nHost: canaryhost\r\nContent-Length: 20\r\n\r\ncanary",
    )
    .unwrap();
    statuses.push(slow.response("POST").unwrap().status);
    // What the parser refuses, and what the canonical layer does.
    for wire in [
        "GET http://canaryhost/ HTTP/1.1\r\nHost: canaryhost\r\n\r\n",
        "GET /canary HTTP/1.1\r\n\r\n",
        "GET /canary HTTP/9.9\r\nHost: canaryhost\r\n\r\n",
        "canary\r\n\r\n",
        "GET /canary HTTP/1.1\r\nHost: h\r\nBad Canary: 1\r\n\r\n",
        "CONNECT canaryhost:443 HTTP/1.1\r\nHost: canaryhost:443\r\n\r\n",
    ] {
        mantlet_testkit::http::try_raw(addr, wire.as_bytes()).unwrap();
    }
    let long = format!("GET /canary{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(20_000));
    mantlet_testkit::http::try_raw(addr, long.as_bytes()).unwrap();
    drop(Connection::open(addr).map(|mut client| client.write(b"GET /canary")));
    assert_eq!(statuses, [200, 200, 200, 403, 200, 404, 404, 404, 502, 0, 502, 504, 200, 403, 200, 401, 401, 413, 408]);

    site.write("policy.toml", "[rules.nonsense]\n");
    site.run(&["reload"]);
    let metrics = process.admin("/metrics").text();
    process.signal("TERM");
    process.wait();
    let (records, log) = (process.records(), process.log());
    assert!(records.lines().count() >= statuses.len(), "{records}");
    assert!(log.contains("\"DEBUG\"") && log.contains("the homeserver failed on a request"), "{log}");
    assert!(metrics.contains("mantlet_requests_total{"), "{metrics}");
    for (place, text) in [("a record", &records), ("a metric", &metrics), ("the log", &log)] {
        let found = text.lines().find(|line| line.to_ascii_lowercase().contains(MARKER));
        assert_eq!(found, None, "{place} holds a marker");
    }
    for (place, text) in [("a record", &records), ("a metric", &metrics)] {
        assert!(!text.contains("127.0.0.1"), "{place} holds an address");
    }
}
