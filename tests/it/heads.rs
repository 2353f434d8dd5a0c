//! Heads of HTTP/1 that lose fields: in one piece, in many, and too large ones.

use mantlet_testkit::http::Connection;

use crate::common::*;
use crate::support::Gateway;

/// A browser's request, with fields that are removed first, last, next to each other and twice.
const BROWSER: &str = "GET /_matrix/client/versions HTTP/1.1\r\nOrigin: https://app.example\r\nHost: hs\r\nSEC-FETCH-MODE: cors\r\n\
                       sec-ch-ua: \"a\"\r\nAccept: */*\r\nReferer:\r\nreferer: https://app.example/\r\nUser-Agent: Mozilla/5.0\r\n\
                       X-Custom: 1\r\nCookie: a=1\r\nAccept-Language: de\r\n\r\n";

#[test]
fn whether_a_head_comes_whole_or_in_pieces_the_homeserver_gets_the_same() {
    for policy in ["balanced", "strict"] {
        let upstream = homeserver();
        let gateway = Gateway::start(&url(&upstream), &format!("extends = \"{policy}\"\n"));
        let mut client = Connection::open(gateway.addr()).unwrap();
        let mut heads = Vec::new();
        // Where two pieces come as one, it is one more time what was asked before.
        for piece in [BROWSER.len(), BROWSER.len() - 1, BROWSER.len() / 2, 50, 17, 3] {
            for piece in BROWSER.as_bytes().chunks(piece) {
                client.write(piece).unwrap();
            }
            assert_eq!(client.response("GET").unwrap().status, 200);
            let mut fields = upstream.take().remove(0).headers;
            fields.retain(|(name, _)| name != "x-request-id");
            fields.sort();
            heads.push(fields);
        }
        let names: Vec<_> = heads[0].iter().map(|(name, _)| name.as_str()).collect();
        let kept = if policy == "strict" {
            &["accept", "cookie", "host"][..]
        } else {
            &["accept", "cookie", "host", "x-custom"]
        };
        let mut kept = [kept, &["x-forwarded-for", "x-forwarded-proto"]].concat();
        kept.sort_unstable();
        assert_eq!(names, kept, "{policy}");
        assert!(heads.iter().all(|head| *head == heads[0]), "{heads:#?}");
    }
}

#[test]
fn requests_behind_each_other_in_one_piece_lose_the_same_fields() {
    let upstream = homeserver();
    let gateway = Gateway::start(&url(&upstream), "extends = \"balanced\"\n");
    let mut client = Connection::open(gateway.addr()).unwrap();
    let post = "POST /_matrix/client/v3/login HTTP/1.1\r\nHost: hs\r\nOrigin: a\r\nContent-Length: 13\r\n\r\nOrigin: a\r\n\r\n";
    client.write([BROWSER, post, BROWSER].concat().as_bytes()).unwrap();
    for method in ["GET", "POST", "GET"] {
        assert_eq!(client.response(method).unwrap().status, 200);
    }
    let asked = upstream.take();
    assert_eq!(
        asked.iter().map(|request| request.body.as_slice()).collect::<Vec<_>>(),
        [b"", &b"Origin: a\r\n\r\n"[..], b""]
    );
    for request in asked {
        for name in ["origin", "referer", "user-agent", "sec-ch-ua", "sec-fetch-mode"] {
            assert_eq!(request.header(name), None, "{}", String::from_utf8_lossy(&request.head));
        }
    }
}

#[test]
fn a_head_that_is_too_large_is_refused_for_what_it_was() {
    let upstream = homeserver();
    let limits = "[limits]\nhead_bytes = \"8KiB\"\nfields = 20";
    let gateway = Gateway::with(&url(&upstream), "extends = \"balanced\"\n", limits);
    let status = |fields: &str| {
        let mut client = Connection::open(gateway.addr()).unwrap();
        client.write(format!("GET {VERSIONS} HTTP/1.1\r\nHost: hs\r\n{fields}\r\n").as_bytes()).unwrap();
        client.response("GET").unwrap().status
    };
    assert_eq!(status(&format!("Referer: {}\r\n", "a".repeat(7_900))), 200);
    assert_eq!(status(&format!("Referer: {}\r\n", "a".repeat(8_300))), 431);
    assert_eq!(status(&"Sec-Fetch-Mode: a\r\n".repeat(19)), 200);
    assert_eq!(status(&"Sec-Fetch-Mode: a\r\n".repeat(20)), 431);
}
