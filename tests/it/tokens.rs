//! Access tokens: what is asked of the homeserver, what is believed, and for how long.

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::{Connection, Request, Response, json_response, response};
use mantlet_testkit::recorder::RecordedRequest;
use serde_json::json;

use crate::common::*;
use crate::support::Gateway;

const ROOMS: &str = "/_matrix/client/v3/publicRooms";
const PROFILE: &str = "/_matrix/client/v3/profile/@a:hs";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
const POLICY: &str = "extends = \"balanced\"";

fn is_whoami(request: &RecordedRequest) -> bool {
    request.target.starts_with(WHOAMI.as_bytes())
}

/// A homeserver whose `whoami` is this, and to which all else is well.
fn knowing(mut whoami: impl FnMut(&RecordedRequest) -> Answer + Send + 'static) -> Backend {
    backend(move |request| if is_whoami(request) { whoami(request) } else { ok() })
}

/// It knows every token as the user whose name is the token's part before the first dash.
fn knowing_all() -> Backend {
    knowing(|request| {
        let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer ")).unwrap_or("nobody");
        valid(&format!("@{}:hs", token.split('-').next().unwrap()))
    })
}

fn valid(user: &str) -> Answer {
    Answer::Bytes(json_response(200, &json!({ "user_id": user, "is_guest": false, "device_id": "D" })))
}

fn whoamis(upstream: &Backend) -> Vec<RecordedRequest> {
    upstream.requests().into_iter().filter(is_whoami).collect()
}

fn others(upstream: &Backend) -> Vec<RecordedRequest> {
    upstream.requests().into_iter().filter(|request| !is_whoami(request)).collect()
}

fn rooms(gateway: &Gateway, token: &str) -> Response {
    Request::new("GET", ROOMS).bearer(token).send(gateway.addr())
}

#[test]
fn the_question_carries_what_the_client_would_have_sent_and_no_more() {
    for (agent, seen_agent) in [("strip", None), ("class", Some("browser")), ("keep", Some("Mozilla/5.0 (X11)"))] {
        let upstream = knowing_all();
        let policy = format!("[rules.public_rooms]\n[rules.request_headers]\nuser_agent = \"{agent}\"");
        let gateway = Gateway::start(&url(&upstream), &policy);
        let request =
            Request::new("POST", format!("{ROOMS}?server=other&user_id=%40bot%3Ahs;device%5Fid=A+B%26&limit=3"))
                .bearer("a-1")
                .header("Host", "matrix.example:8448")
                .header("User-Agent", "Mozilla/5.0 (X11)")
                .header("X-Forwarded-For", "203.0.113.9")
                .header("Cookie", "c=1")
                .header("X-Anything", "1")
                .json(&json!({ "filter": {} }));
        assert_eq!(request.send(gateway.addr()).status, 200);
        let asked = whoamis(&upstream);
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].target_text(), format!("{WHOAMI}?user_id=%40bot%3Ahs&device_id=A%20B%26"));
        assert_eq!((asked[0].method.as_str(), asked[0].body.len()), ("GET", 0));
        assert_eq!(asked[0].header_all("authorization"), ["Bearer a-1"]);
        assert_eq!(asked[0].header_all("x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(asked[0].header_all("x-forwarded-proto"), ["http"]);
        assert_eq!(asked[0].header_all("host"), ["matrix.example:8448"]);
        assert_eq!(asked[0].header("user-agent"), seen_agent, "{agent}");
        assert_eq!((asked[0].header("cookie"), asked[0].header("x-anything")), (None, None));
        // What follows is the request itself, and it is the client's.
        assert_eq!(others(&upstream)[0].header_all("authorization"), ["Bearer a-1"]);
    }
}

#[test]
fn a_verdict_is_believed_for_a_while_by_all_workers() {
    let upstream = knowing_all();
    let gateway = Gateway::with(&url(&upstream), POLICY, "[workers]\ncount = 2");
    for _ in 0..20 {
        assert_eq!(rooms(&gateway, "a-1").status, 200);
    }
    assert_eq!(Request::new("GET", PROFILE).bearer("a-1").send(gateway.addr()).status, 200);
    assert_eq!((whoamis(&upstream).len(), others(&upstream).len()), (1, 21));
    assert_eq!(rooms(&gateway, "a-2").status, 200);
    assert_eq!(whoamis(&upstream).len(), 2, "another token is another question");
    assert_eq!(gateway.metric("mantlet_token_cache_entries"), 2.0);
}

/// An application service's token is good for some users, devices and addresses, and for others it is not.
#[test]
fn a_verdict_is_for_one_user_one_device_and_one_address() {
    let upstream = knowing_all();
    let gateway = Gateway::start(&url(&upstream), POLICY);
    let from = |last: u8| std::net::IpAddr::from([127, 0, 0, last]);
    let ask = |query: &str, from| {
        let request = Request::new("GET", format!("{ROOMS}?{query}")).bearer("bridge-1");
        assert_eq!(request.send_from(from, gateway.addr()).status, 200);
    };
    let ways = [
        ("limit=1", 1),
        ("user_id=@b:hs", 1),
        ("user_id=@c:hs", 1),
        ("user_id=@b:hs&device_id=D", 1),
        ("device_id=D", 1),
        ("limit=1", 2),
    ];
    for (count, (query, last)) in ways.into_iter().enumerate() {
        ask(query, from(last));
        assert_eq!(whoamis(&upstream).len(), count + 1, "{query} from {last}");
    }
    for (query, last) in ways {
        ask(&format!("{query}&since=x"), from(last));
    }
    assert_eq!(whoamis(&upstream).len(), ways.len(), "all of it is remembered");
}

#[test]
fn a_verdict_is_believed_no_longer_than_it_may() {
    let upstream = knowing_all();
    let gateway = Gateway::with(&url(&upstream), POLICY, "[tokens]\npositive = \"50ms\"");
    eventually("it is asked again", || {
        assert_eq!(rooms(&gateway, "a-1").status, 200);
        whoamis(&upstream).len() == 3
    });
    assert!(others(&upstream).len() > 3, "it was believed in between");
}

#[test]
fn fifty_first_uses_at_once_are_one_question() {
    let (pieces, answer) = Answer::stream();
    let mut answer = Some(answer);
    let upstream = knowing(move |_| answer.take().unwrap_or_else(|| valid("@late:hs")));
    let gateway = Gateway::with(&url(&upstream), POLICY, "[workers]\ncount = 2");
    let mut clients: Vec<_> = (0..50)
        .map(|_| {
            let mut client = Connection::open(gateway.addr()).unwrap();
            client
                .write(format!("GET {ROOMS} HTTP/1.1\r\nHost: hs\r\nAuthorization: Bearer a-1\r\n\r\n").as_bytes())
                .unwrap();
            client
        })
        .collect();
    eventually("all wait", || gateway.metric("mantlet_token_cache_total{result=\"joined\"}") == 49.0);
    assert!(others(&upstream).is_empty(), "nobody passes before the answer");
    pieces.send(json_response(200, &json!({ "user_id": "@a:hs" }))).unwrap();
    drop(pieces);
    for client in &mut clients {
        assert_eq!(client.response("GET").unwrap().status, 200);
    }
    assert_eq!((whoamis(&upstream).len(), others(&upstream).len()), (1, 50));
}

#[test]
fn whoever_asked_first_may_go_away() {
    let (pieces, answer) = Answer::stream();
    let mut answer = Some(answer);
    let upstream = knowing(move |_| answer.take().unwrap_or_else(|| valid("@late:hs")));
    let gateway = Gateway::with(&url(&upstream), POLICY, "[workers]\ncount = 2");
    let request = format!("GET {ROOMS} HTTP/1.1\r\nHost: hs\r\nAuthorization: Bearer a-1\r\n\r\n");
    let mut first = Connection::open(gateway.addr()).unwrap();
    first.write(request.as_bytes()).unwrap();
    upstream.wait_requests(1, SOON).unwrap();
    let mut second = Connection::open(gateway.addr()).unwrap();
    second.write(request.as_bytes()).unwrap();
    eventually("the second waits", || gateway.metric("mantlet_token_cache_total{result=\"joined\"}") == 1.0);
    drop(first);
    eventually("the first is gone", || gateway.metric("mantlet_requests_in_flight") == 1.0);
    pieces.send(json_response(200, &json!({ "user_id": "@a:hs" }))).unwrap();
    drop(pieces);
    assert_eq!(second.response("GET").unwrap().status, 200);
    assert_eq!(whoamis(&upstream).len(), 1);
}

#[test]
fn a_refusal_is_believed_shortly() {
    let refuse = |_: &RecordedRequest| {
        Answer::Bytes(json_response(401, &json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "no" })))
    };
    let upstream = knowing(refuse);
    let gateway = Gateway::with(&url(&upstream), POLICY, "[tokens]\nnegative = \"2s\"");
    for _ in 0..3 {
        assert_matrix_error(&rooms(&gateway, "bad"), 401, "M_UNKNOWN_TOKEN");
    }
    assert_eq!(whoamis(&upstream).len(), 1);

    let upstream = knowing(refuse);
    let gateway = Gateway::with(&url(&upstream), POLICY, "[tokens]\nnegative = \"50ms\"");
    eventually("it is asked again", || {
        assert_eq!(rooms(&gateway, "bad").status, 401);
        whoamis(&upstream).len() == 2
    });
    assert!(others(&upstream).is_empty());
}

#[test]
fn the_homeservers_own_refusals_pass_in_its_own_words() {
    for (status, fields, body) in [
        (401, &[][..], r#"{"errcode":"M_UNKNOWN_TOKEN","error":"Access token has expired","soft_logout":true}"#),
        (
            401,
            &[],
            "{ \"soft_logout\" : false,\n \"errcode\":\"M_UNKNOWN_TOKEN\", \"error\":\"\u{e9}\", \"x\": {\"b\":1,\"a\":2} }",
        ),
        (
            401,
            &[],
            r#"{"errcode":"M_USER_LOCKED","error":"locked","soft_logout":true,"org.matrix.msc3939.errcode":"M_USER_LOCKED"}"#,
        ),
        (403, &[], r#"{"errcode":"ORG_MATRIX_EXPIRED_ACCOUNT","error":"User account has expired"}"#),
        (400, &[], r#"{"errcode":"M_EXCLUSIVE","error":"Application service cannot masquerade as this device"}"#),
        (
            429,
            &[("Retry-After", "17")],
            r#"{"errcode":"M_LIMIT_EXCEEDED","error":"Too Many Requests","retry_after_ms":16001}"#,
        ),
    ] {
        let upstream = knowing(move |_| Answer::Bytes(response(status, fields, body)));
        let gateway = Gateway::start(&url(&upstream), POLICY);
        let answer = rooms(&gateway, "T");
        assert_eq!((answer.status, answer.text().as_str()), (status, body));
        assert_eq!(answer.header("retry-after"), fields.first().map(|(_, value)| *value));
        assert_eq!(answer.header("x-mantlet-rule"), Some("public_rooms"));
        assert_cors(&answer);
        assert!(others(&upstream).is_empty());
        rooms(&gateway, "T");
        let asked = if status == 429 { 2 } else { 1 };
        assert_eq!(whoamis(&upstream).len(), asked, "\"not now\" is not remembered, the rest is");
    }
}

#[test]
fn what_is_no_verdict_is_a_502_and_is_not_remembered() {
    type Play = fn() -> Answer;
    let plays: [(&str, Play); 9] = [
        ("500", || {
            Answer::Bytes(json_response(500, &json!({ "errcode": "M_UNKNOWN", "error": "Internal server error" })))
        }),
        ("503 that claims to know", || {
            Answer::Bytes(json_response(503, &json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "x" })))
        }),
        ("404", || Answer::Bytes(json_response(404, &json!({ "errcode": "M_UNRECOGNIZED", "error": "x" })))),
        ("200 without a user", || Answer::Bytes(json_response(200, &json!({ "device_id": "D" })))),
        ("200 with nobody's name", || Answer::Bytes(json_response(200, &json!({ "user_id": "alice" })))),
        ("200 HTML", || Answer::Bytes(response(200, &[("Content-Type", "text/html")], "<html>It works!</html>"))),
        ("401 HTML", || Answer::Bytes(response(401, &[("Content-Type", "text/html")], "<html>Login</html>"))),
        ("a redirect", || Answer::Bytes(response(302, &[("Location", "/login")], ""))),
        ("nothing", || Answer::Close),
    ];
    for (what, play) in plays {
        let upstream = knowing(move |_| play());
        let gateway = Gateway::start(&url(&upstream), POLICY);
        for n in 1..=2 {
            let answer = rooms(&gateway, "T");
            assert_eq!((answer.status, answer.errcode().as_deref()), (502, Some("M_UNKNOWN")), "{what}");
            assert_matrix_error(&answer, 502, "M_UNKNOWN");
            assert_eq!(whoamis(&upstream).len(), n, "{what}");
        }
        assert!(others(&upstream).is_empty(), "{what}");
    }
}

#[test]
fn silence_about_a_token_is_a_504() {
    let upstream = knowing(|_| Answer::Hang);
    let gateway = Gateway::with(&url(&upstream), POLICY, "[limits]\nupstream_head = \"200ms\"");
    assert_matrix_error(&rooms(&gateway, "T"), 504, "M_UNKNOWN");
    assert!(others(&upstream).is_empty());
    // The question ends with its patience, and is not one that others join for ever.
    upstream.wait_closed(SOON).unwrap();
    assert_matrix_error(&rooms(&gateway, "T"), 504, "M_UNKNOWN");
    assert_eq!(whoamis(&upstream).len(), 2);
}

#[test]
fn a_token_that_the_homeserver_refuses_is_not_believed_any_longer() {
    let upstream = backend(|request| match request.target_text().as_str() {
        WHOAMI => valid("@a:hs"),
        "/_matrix/client/v3/sync" => Answer::Bytes(json_response(401, &json!({ "errcode": "M_UNKNOWN_TOKEN" }))),
        _ => ok(),
    });
    let gateway = Gateway::start(&url(&upstream), POLICY);
    for round in 1..=2 {
        assert_eq!((rooms(&gateway, "a-1").status, rooms(&gateway, "a-2").status), (200, 200));
        assert_eq!(whoamis(&upstream).len(), round + 1);
        assert_eq!(Request::new("GET", "/_matrix/client/v3/sync").bearer("a-1").send(gateway.addr()).status, 401);
    }
}

#[test]
fn what_ends_tokens_makes_all_of_the_user_be_asked_again() {
    for (method, path) in [
        ("POST", "/_matrix/client/v3/logout"),
        ("POST", "/_matrix/client/r0/logout/all"),
        ("POST", "/_matrix/client/v3/account/password"),
        ("POST", "/_matrix/client/v3/account/deactivate"),
        ("POST", "/_matrix/client/v3/delete_devices"),
        ("DELETE", "/_matrix/client/v3/devices/ABC"),
    ] {
        let upstream = knowing_all();
        let gateway = Gateway::start(&url(&upstream), POLICY);
        let warm = |expected: usize| {
            for token in ["a-1", "a-2", "b-1"] {
                assert_eq!(rooms(&gateway, token).status, 200);
            }
            assert_eq!(whoamis(&upstream).len(), expected, "{method} {path}");
        };
        warm(3);
        warm(3);
        assert_eq!(Request::new(method, path).bearer("a-1").body("{}").send(gateway.addr()).status, 200);
        // Both of `a`, not the one of `b`.
        warm(5);
    }
}

#[test]
fn a_question_under_way_does_not_outlive_a_logout() {
    let (pieces, answer) = Answer::stream();
    let mut answer = Some(answer);
    let upstream = knowing(move |request| {
        let is_held = request.header("authorization") == Some("Bearer a-2");
        answer.take_if(|_| is_held).unwrap_or_else(|| valid("@a:hs"))
    });
    let gateway = Gateway::start(&url(&upstream), POLICY);
    rooms(&gateway, "a-1");
    let mut waiting = Connection::open(gateway.addr()).unwrap();
    waiting.write(format!("GET {ROOMS} HTTP/1.1\r\nHost: hs\r\nAuthorization: Bearer a-2\r\n\r\n").as_bytes()).unwrap();
    eventually("it is asked", || whoamis(&upstream).len() == 2);
    Request::new("POST", "/_matrix/client/v3/logout/all").bearer("a-1").body("{}").send(gateway.addr());
    // This answer is from before the logout.
    pieces.send(json_response(200, &json!({ "user_id": "@a:hs" }))).unwrap();
    drop(pieces);
    waiting.response("GET").unwrap();
    let before = whoamis(&upstream).len();
    rooms(&gateway, "a-2");
    assert_eq!(whoamis(&upstream).len(), before + 1);
}

#[test]
fn a_token_is_read_exactly_as_the_homeserver_reads_it() {
    const MISSING: &str = "Missing access token";
    const MIXED: &str = "Mixing Authorization headers and access_token query parameters.";
    const DOUBLED: &str = "Too many Authorization headers.";
    const INVALID: &str = "Invalid Authorization header.";
    let upstream = knowing_all();
    let gateway = Gateway::start(&url(&upstream), "[rules.public_rooms]");
    let ask = |fields: &[&str], query: &str| {
        let request = fields.iter().fold(Request::new("GET", format!("{ROOMS}{query}")), |request, value| {
            request.header("Authorization", value)
        });
        request.send(gateway.addr())
    };
    for (fields, query, sentence) in [
        (&[][..], "", MISSING),
        (&[], "?access_token", MISSING),
        (&[], "?Access_Token=a", MISSING),
        (&["bearer a"], "", INVALID),
        (&["BEARER a"], "", INVALID),
        (&["Bearer  a"], "", INVALID),
        (&["Bearer a b"], "", INVALID),
        (&["Bearer\ta"], "", INVALID),
        (&["Bearer"], "", INVALID),
        (&["Basic YTpi"], "", INVALID),
        (&["X-Matrix origin=hs"], "", INVALID),
        (&["a"], "", INVALID),
        (&[""], "", INVALID),
        (&["Bearer a", "Bearer a"], "", DOUBLED),
        (&["Bearer a", "x"], "", DOUBLED),
        (&["Bearer a"], "?access_token=a", MIXED),
        (&["Bearer a"], "?x=1;access%5Ftoken=", MIXED),
        (&["nonsense"], "?access_token=a", MIXED),
    ] {
        let answer = ask(fields, query);
        assert_matrix_error(&answer, 401, "M_MISSING_TOKEN");
        assert_eq!(answer.json()["error"], sentence, "{fields:?} {query}");
        assert_eq!(upstream.requests().len(), 0, "{fields:?} {query}");
    }
    for (query, authorization, whoami) in [
        ("?access_token=a-2", Some("Bearer a-2"), WHOAMI),
        ("?since=1;access%5Ftoken=a%2D3&x=", Some("Bearer a-3"), WHOAMI),
        ("?access_token=a-4&access_token=b", Some("Bearer a-4"), WHOAMI),
        ("?access_token=", None, "/_matrix/client/v3/account/whoami?access_token="),
        ("?access_token=a+b%0A", None, "/_matrix/client/v3/account/whoami?access_token=a%20b%0A"),
    ] {
        upstream.take();
        assert_eq!(ask(&[], query).status, 200, "{query}");
        let asked = whoamis(&upstream);
        assert_eq!(
            (asked.len(), asked[0].header("authorization"), asked[0].target_text().as_str()),
            (1, authorization, whoami)
        );
        // The request itself keeps its own spelling.
        assert_eq!(others(&upstream)[0].target_text(), format!("{ROOMS}{query}"));
        assert_eq!(others(&upstream)[0].header("authorization"), None);
    }
}

#[test]
fn a_token_that_is_moved_out_of_the_query_is_judged_as_it_stood_there() {
    let upstream = knowing_all();
    let gateway = Gateway::start(&url(&upstream), POLICY);
    let target = |query: &str| format!("{ROOMS}{query}");
    for (query, left) in [
        ("?access_token=a-1", ""),
        ("?since=%C3%A9;access%5Ftoken=a%2D1&x=", "?since=%C3%A9&x="),
        ("?a=1&access_token=a-1;b", "?a=1;b"),
    ] {
        let answer = Request::new("GET", target(query)).send(gateway.addr());
        let seen = others(&upstream).pop().unwrap();
        assert_eq!(
            (answer.status, seen.target_text(), seen.header("authorization")),
            (200, target(left), Some("Bearer a-1"))
        );
    }
    assert_eq!(whoamis(&upstream).len(), 1);
}

#[test]
fn guests_list_rooms_and_read_no_profiles() {
    let upstream = knowing(|_| Answer::Bytes(json_response(200, &json!({ "user_id": "@1:hs", "is_guest": true }))));
    let gateway = Gateway::start(&url(&upstream), POLICY);
    assert_eq!(rooms(&gateway, "guest").status, 200);
    let answer = Request::new("GET", PROFILE).bearer("guest").send(gateway.addr());
    assert_matrix_error(&answer, 403, "M_GUEST_ACCESS_FORBIDDEN");
    assert_eq!(others(&upstream).len(), 1);
    let records = gateway.records(2);
    assert_eq!((&records[0]["token"], &records[1]["token"]), (&json!("guest"), &json!("guest")));
}
