//! What a request and its answer look like on the other side.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use mantlet_testkit::backend::Answer;
use mantlet_testkit::http::{Connection, Request, json_response, raw, response};
use serde_json::json;

use crate::common::*;
use crate::support::Gateway;

#[test]
fn path_and_query_arrive_byte_for_byte() {
    let upstream = homeserver();
    let gateway = Gateway::start(&url(&upstream), OPEN);
    for target in [
        "/_matrix/client/v3/directory/room/%23a%2Fb%3Ahs+x;p?x=%C3%A9;y&z=+",
        "/_matrix/client/v3/directory/room/%23a%2fb%3ahs?x=%c3%a9",
        "/_matrix/client/v3/join/!a:b?",
        "/_matrix/client/v3/join/!a:b??a=?&=&&b",
        "/_matrix/client/v3/profile/..",
        "/_matrix/client/v3/profile/@a:b/../../x/.",
        "/_matrix/client/v3/rooms//state",
        "/_matrix/media/v3/download/hs//a",
        "/_matrix/client/v3/user/@%61%2e:b/filter/%00%ff%zz%",
        "/_matrix/client/v3/sync?filter={%22a%22:[1,'2']}&since=s1_2$3*4!5(6)7@8~9|10^11\\",
        "/_matrix/federation/v1/query/profile?user_id=@a%2Fb:hs&field=displayname",
        "/.well-known/matrix/client?",
        "/_matrix/client/versions/",
    ] {
        let answer = Request::new("GET", target).send(gateway.addr());
        assert_eq!((answer.status, upstream.last().unwrap().target_text().as_str()), (200, target));
    }
}

#[test]
fn the_homeserver_sees_exactly_one_address_and_scheme_whatever_the_client_claims() {
    let upstream = homeserver();
    let gateway = Gateway::start(&url(&upstream), OPEN);
    let claims = Request::new("GET", VERSIONS)
        .header("X-Forwarded-For", "203.0.113.9")
        .header("x-forwarded-for", "198.51.100.1, 203.0.113.9")
        .header("X-FORWARDED-PROTO", "https")
        .header("X-Forwarded-Proto", "ftp")
        .header("X-Request-ID", "mine")
        .header("X-Request-ID", "and mine");
    let nominated = claims
        .clone()
        .header("Connection", "close, x-forwarded-for, X-Forwarded-Proto, x-request-id, host, authorization")
        .bearer("T");
    for (request, authorization) in
        [(Request::new("GET", VERSIONS), None), (claims, None), (nominated, Some("Bearer T"))]
    {
        request.send(gateway.addr());
        let seen = upstream.last().unwrap();
        assert_eq!(seen.header_all("x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(seen.header_all("x-forwarded-proto"), ["http"]);
        assert_eq!(seen.header_all("x-request-id").len(), 1);
        assert_eq!(seen.header_all("host"), [gateway.addr().to_string()]);
        assert_eq!(seen.header("authorization"), authorization);
    }
}

#[test]
fn the_request_id_is_that_of_the_access_record() {
    let upstream = homeserver();
    let gateway = Gateway::start(&url(&upstream), OPEN);
    for _ in 0..3 {
        Request::new("GET", VERSIONS).header("X-Request-ID", "0123456789abcdef").send(gateway.addr());
    }
    let seen: Vec<_> =
        upstream.requests().iter().map(|request| request.header("x-request-id").unwrap().to_owned()).collect();
    let written: Vec<_> = gateway.records(3).iter().map(|record| record["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(seen, written);
    assert!(!seen.contains(&"0123456789abcdef".to_owned()) && seen[0] != seen[1] && seen[1] != seen[2], "{seen:?}");
}

#[test]
fn the_host_is_the_one_the_client_named() {
    let upstream = homeserver();
    let gateway = Gateway::start(&url(&upstream), OPEN);
    for host in ["matrix.example:8448", "Matrix.Example", "[2001:db8::1]:8448", "10.0.0.1"] {
        Request::new("GET", VERSIONS).header("Host", host).send(gateway.addr());
        assert_eq!(upstream.last().unwrap().header_all("host"), [host]);
    }
}

#[test]
fn hop_by_hop_fields_end_here_in_both_directions() {
    let upstream = backend(|_| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x-inner\r\nX-Inner: 1\r\nKeep-Alive: timeout=5\r\n\
                    Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Outer: 2\r\n\r\n{}";
        Answer::Bytes(head.into())
    });
    let gateway = Gateway::start(&url(&upstream), OPEN);
    let answer = Request::new("POST", "/_matrix/client/v3/login")
        .header("Connection", "close, X-Secret")
        .header("Connection", "x-other")
        .header("X-Secret", "1")
        .header("X-Other", "2")
        .header("Keep-Alive", "timeout=5")
        .header("Proxy-Authorization", "Bearer worker-secret")
        .header("Proxy-Connection", "keep-alive")
        .header("TE", "trailers")
        .header("Trailer", "x-late")
        .header("Upgrade", "websocket")
        .header("X-Kept", "3")
        .body("{}")
        .send(gateway.addr());
    let seen = upstream.last().unwrap();
    let mut names: Vec<_> = seen.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.sort();
    assert_eq!(names, ["content-length", "host", "x-forwarded-for", "x-forwarded-proto", "x-kept", "x-request-id"]);
    for name in ["x-inner", "keep-alive", "proxy-authenticate", "upgrade"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    assert_eq!((answer.header("x-outer"), answer.text().as_str()), (Some("2"), "{}"));
}

const BROWSER: [(&str, &str); 9] = [
    ("Origin", "https://app.example"),
    ("Referer", "https://app.example/room"),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64)"),
    ("Accept-Language", "de-CH"),
    ("Sec-CH-UA-Platform", "\"Linux\""),
    ("Sec-Fetch-Site", "cross-site"),
    ("Via", "1.1 squid"),
    ("X-Real-IP", "203.0.113.9"),
    ("X-Forwarded-Host", "evil.example"),
];

#[test]
fn listed_fields_do_not_arrive_not_even_in_our_own_question() {
    let upstream = backend(|_| Answer::Bytes(json_response(200, &json!({ "user_id": "@a:hs", "is_guest": false }))));
    let gateway = Gateway::start(&url(&upstream), "extends = \"balanced\"");
    let mut request = Request::new("GET", "/_matrix/client/v3/publicRooms").bearer("T").header("X-Kept", "1");
    for (name, value) in BROWSER {
        request = request.header(name, value);
    }
    assert_eq!(request.send(gateway.addr()).status, 200);
    let seen = upstream.requests();
    let targets: Vec<_> = seen.iter().map(|request| request.target_text()).collect();
    assert_eq!(targets, ["/_matrix/client/v3/account/whoami", "/_matrix/client/v3/publicRooms"]);
    for (name, value) in BROWSER {
        for request in &seen {
            let head = String::from_utf8_lossy(&request.head).to_ascii_lowercase();
            assert!(!head.contains(&format!("\n{}:", name.to_ascii_lowercase())), "{name}\n{head}");
            assert!(!head.contains(&value.to_ascii_lowercase()), "{value}\n{head}");
        }
    }
    assert_eq!((seen[0].header("x-kept"), seen[1].header("x-kept")), (None, Some("1")));
}

#[test]
fn bodies_of_both_framings_arrive_whole_in_both_directions() {
    let body = noise(3 * 1024 * 1024 + 17);
    for (size, framing) in
        [(0, "Content-Length"), (1, "one byte chunks"), (7 * 1024 + 1, "chunks"), (1 << 20, "big chunks")]
    {
        let sent = if size == 1 { body[..5000].to_vec() } else { body.clone() };
        let answered = sent.clone();
        let upstream = backend(move |_| {
            if size == 0 {
                return Answer::Bytes(response(200, &[], &answered));
            }
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            Answer::Bytes([head, chunked(&answered, size)].concat())
        });
        let gateway = Gateway::start(&url(&upstream), OPEN);
        let mut request = Request::new("POST", "/_matrix/client/v3/login").timeout(SOON);
        request = match size {
            0 => request.body(sent.clone()),
            size => request.header("Transfer-Encoding", "chunked").body(chunked(&sent, size)),
        };
        let answer = request.send(gateway.addr());
        let seen = upstream.last().unwrap();
        assert!(seen.body == sent, "{framing}: {} of {} bytes went up", seen.body.len(), sent.len());
        assert!(answer.body == sent, "{framing}: {} of {} bytes came down", answer.body.len(), sent.len());
        let length = (size == 0).then(|| sent.len().to_string());
        assert_eq!(seen.header("content-length"), length.as_deref(), "{framing}");
        assert_eq!(answer.header("content-length"), length.as_deref(), "{framing}");
    }
}

#[test]
fn an_answer_that_ends_with_its_connection_arrives_whole() {
    let body = noise(300_000);
    let sent = body.clone();
    let upstream =
        backend(move |_| Answer::BytesThenClose([b"HTTP/1.0 200 OK\r\n\r\n".to_vec(), sent.clone()].concat()));
    let gateway = Gateway::start(&url(&upstream), OPEN);
    assert!(Request::new("GET", VERSIONS).send(gateway.addr()).body == body);
}

#[test]
fn trailers_end_here_in_both_directions() {
    let (addr, seen) = raw_upstream(
        b"0\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-down\r\n\r\n4\r\ndown\r\n0\r\nX-Down: 1\r\nServer: 2\r\n\r\n",
    );
    let gateway = Gateway::start(&format!("http://{addr}"), OPEN);
    let request =
        b"POST /_matrix/client/v3/login HTTP/1.1\r\nHost: hs\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\
                    Trailer: x-up\r\n\r\n2\r\nup\r\n0\r\nX-Up: 1\r\nAuthorization: Bearer x\r\n\r\n";
    let answer = String::from_utf8(raw(gateway.addr(), request)).unwrap();
    let seen = String::from_utf8(seen.join().unwrap()).unwrap();
    assert!(seen.ends_with("\r\n\r\n2\r\nup\r\n0\r\n\r\n") && !seen.to_ascii_lowercase().contains("x-up"), "{seen}");
    assert!(
        answer.ends_with("\r\n\r\n4\r\ndown\r\n0\r\n\r\n") && !answer.to_ascii_lowercase().contains("x-down"),
        "{answer}"
    );
}

/// Takes one connection, reads until these bytes and an empty line, answers, and gives all that was read.
fn raw_upstream(until: &'static [u8], answer: &'static [u8]) -> (SocketAddr, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
        while !(seen.ends_with(b"\r\n\r\n") && seen.windows(until.len()).any(|window| window == until)) {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buffer[..read]);
        }
        stream.write_all(answer).unwrap();
        seen
    });
    (addr, thread)
}

#[test]
fn answers_without_a_body_have_none_and_the_connection_goes_on() {
    let upstream = backend(|request| {
        Answer::Bytes(match (request.method.as_str(), request.target_text().as_str()) {
            ("HEAD", _) => b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nContent-Type: text/plain\r\n\r\n".to_vec(),
            (_, VERSIONS) => b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n".to_vec(),
            (_, "/_matrix/client/v3/login") => b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n".to_vec(),
            _ => response(200, &[], "whole"),
        })
    });
    let gateway = Gateway::start(&url(&upstream), OPEN);
    let mut client = Connection::open(gateway.addr()).unwrap();
    for _ in 0..2 {
        let head = client.send(&Request::new("HEAD", VERSIONS)).unwrap();
        assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("1234"), 0));
        let none = client.send(&Request::new("GET", VERSIONS)).unwrap();
        assert_eq!((none.status, none.header("x-a"), none.body.len()), (204, Some("1"), 0));
        let unchanged = client.send(&Request::new("GET", "/_matrix/client/v3/login")).unwrap();
        assert_eq!((unchanged.status, unchanged.header("etag"), unchanged.body.len()), (304, Some("\"x\""), 0));
        assert_eq!(client.send(&Request::new("GET", "/_matrix/client/v3/sync")).unwrap().text(), "whole");
    }
    assert_eq!(upstream.requests().iter().filter(|request| request.method == "HEAD").count(), 2);
}

#[test]
fn a_client_that_asks_before_it_sends_is_told_to_go_on() {
    let upstream = homeserver();
    let gateway = Gateway::start(&url(&upstream), OPEN);
    let mut client = Connection::open(gateway.addr()).unwrap();
    client
        .write(
            b"POST /_matrix/client/v3/login HTTP/1.1\r\nHost: hs\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        )
        .unwrap();
    assert_eq!(client.read_some().unwrap(), b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write(b"abc").unwrap();
    assert_eq!(client.response("POST").unwrap().status, 200);
    let seen = upstream.last().unwrap();
    assert_eq!((seen.header("expect"), &seen.body[..]), (None, &b"abc"[..]));
}

#[test]
fn interim_answers_of_the_homeserver_are_not_the_answer() {
    let upstream = backend(|_| {
        let early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n".to_vec();
        Answer::Bytes([early, response(200, &[], "final")].concat())
    });
    let gateway = Gateway::start(&url(&upstream), OPEN);
    let answer = raw(gateway.addr(), format!("GET {VERSIONS} HTTP/1.1\r\nHost: hs\r\n\r\n").as_bytes());
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nfinal"), "{answer}");
}

#[test]
fn the_homeserver_is_not_named_where_the_policy_hides_it() {
    let upstream =
        backend(|_| Answer::Bytes(response(200, &[("Server", "Synapse/1.163.2"), ("X-Powered-By", "Twisted")], "")));
    let hidden = Gateway::start(&url(&upstream), "[rules.server_banner]");
    let answer = Request::new("GET", VERSIONS).send(hidden.addr());
    assert_eq!((answer.header("server"), answer.header("x-powered-by")), (None, None));
    let open = Gateway::start(&url(&upstream), OPEN);
    let answer = Request::new("GET", VERSIONS).send(open.addr());
    assert_eq!(answer.header_all("server"), ["Synapse/1.163.2"]);
}

#[test]
fn requests_beyond_the_rate_are_refused_as_the_homeserver_does_it() {
    let upstream = homeserver();
    let policy = "[[rules.rate_limit]]\nendpoints = [\"login\"]\nrequests = 3\nper = \"1h\"\nby = \"address\"";
    // Two workers count together.
    let gateway = Gateway::with(&url(&upstream), policy, "[workers]\ncount = 2");
    let login = Request::new("POST", "/_matrix/client/v3/login").body("{}");
    let statuses: Vec<_> = (0..6).map(|_| login.send(gateway.addr()).status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429]);
    let refused = login.send(gateway.addr());
    assert_matrix_error(&refused, 429, "M_LIMIT_EXCEEDED");
    assert!(refused.json()["retry_after_ms"].as_u64().is_some_and(|wait| wait > 0), "{}", refused.text());
    assert_eq!(upstream.requests().len(), 3);
    assert_eq!(Request::new("GET", VERSIONS).send(gateway.addr()).status, 200, "others are not counted");
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let upstream = backend(|request| Answer::Bytes(response(200, &[], &request.target)));
    let gateway = Gateway::start(&url(&upstream), OPEN);
    let mut client = Connection::open(gateway.addr()).unwrap();
    let targets: Vec<_> = (0..20).map(|n| format!("/_matrix/client/v3/rooms/!{n}:hs/state")).collect();
    let mut wire = Vec::new();
    for (n, target) in targets.iter().enumerate() {
        wire.extend_from_slice(format!("PUT {target} HTTP/1.1\r\nHost: hs\r\nContent-Length: {n}\r\n\r\n").as_bytes());
        wire.resize(wire.len() + n, b'x');
    }
    client.write(&wire).unwrap();
    for target in &targets {
        assert_eq!(&client.response("PUT").unwrap().text(), target);
    }
    let seen: Vec<_> = upstream.requests().iter().map(|request| (request.target_text(), request.body.len())).collect();
    assert_eq!(seen, targets.into_iter().enumerate().map(|(n, target)| (target, n)).collect::<Vec<_>>());
}

#[test]
fn an_upgrade_that_nobody_asked_for_is_no_answer() {
    let upstream = backend(|_| {
        let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nHELLO";
        Answer::Bytes(head.to_vec())
    });
    let gateway = Gateway::start(&url(&upstream), OPEN);
    let answer = Request::new("GET", VERSIONS)
        .header("Connection", "upgrade")
        .header("Upgrade", "websocket")
        .send(gateway.addr());
    assert_matrix_error(&answer, 502, "M_UNKNOWN");
}

#[test]
fn what_is_no_answer_is_a_502_that_a_browser_can_read() {
    for what in [
        &b""[..],
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ] {
        let upstream = backend(move |_| Answer::BytesThenClose(what.to_vec()));
        let gateway = Gateway::start(&url(&upstream), OPEN);
        let answer = Request::new("GET", VERSIONS).try_send(gateway.addr());
        let answer = answer.unwrap_or_else(|error| panic!("{:?}: {error:?}", String::from_utf8_lossy(what)));
        assert_matrix_error(&answer, 502, "M_UNKNOWN");
        let record = &gateway.records(1)[0];
        assert_eq!((&record["status"], &record["decision"]), (&json!(502), &json!("error")), "{record}");
    }
}

#[test]
fn a_cut_answer_is_never_a_whole_one() {
    for what in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense\r\n",
    ] {
        let upstream = backend(move |_| Answer::BytesThenClose(what.to_vec()));
        let gateway = Gateway::start(&url(&upstream), OPEN);
        let answer = Request::new("GET", VERSIONS).try_send(gateway.addr());
        assert!(answer.is_err(), "{:?} became {answer:?}", String::from_utf8_lossy(what));
        let record = &gateway.records(1)[0];
        assert_eq!((&record["decision"], &record["error"]), (&json!("error"), &json!("cut")), "{record}");
    }
}
