//! What reaches Synapse of a request: nothing that tells of the client, and otherwise the bytes that were sent.

use mantlet_testkit::http::Request;
use mantlet_testkit::recorder::{RecordedRequest, Recorder};
use mantlet_testkit::synapse::Session;
use serde_json::json;

use crate::support::Gateway;
use crate::world::{PASSWORD, POLICIES, extends, through, world};

/// What browsers, other clients and other proxies add; each value tells on itself.
const TELLTALES: [(&str, &str); 34] = [
    ("Origin", "https://telltale.example"),
    ("Referer", "https://telltale.example/#/room/!a:b"),
    ("User-Agent", "Mozilla/5.0 (X11; Telltale x86_64)"),
    ("Accept-Language", "de-CH,telltale;q=0.5"),
    ("Sec-CH-UA", "\"Telltale\";v=\"140\""),
    ("Sec-CH-UA-Mobile", "?1telltale"),
    ("Sec-CH-UA-Platform", "\"telltale\""),
    ("Sec-Fetch-Dest", "telltale"),
    ("Sec-Fetch-Mode", "telltale"),
    ("Sec-Fetch-Site", "telltale"),
    ("Sec-GPC", "1telltale"),
    ("DNT", "1telltale"),
    ("Save-Data", "telltale"),
    ("Device-Memory", "telltale"),
    ("X-Requested-With", "app.telltale"),
    ("From", "telltale@example.org"),
    ("Via", "1.1 telltale"),
    ("Forwarded", "for=telltale"),
    ("X-Forwarded-For", "203.0.113.7, telltale"),
    ("X-Forwarded-For", "telltale"),
    ("x-forwarded-for", "telltale"),
    ("X-Forwarded-Proto", "telltale"),
    ("X-Forwarded-Proto", "telltale"),
    ("X-Forwarded-Host", "telltale.example"),
    ("X-Forwarded-Port", "telltale"),
    ("X-Forwarded-Server", "telltale"),
    ("X-Real-IP", "telltale"),
    ("X-Client-IP", "telltale"),
    ("X-Original-URL", "/telltale"),
    ("CF-Connecting-IP", "telltale"),
    ("CF-Ray", "telltale"),
    ("True-Client-IP", "telltale"),
    ("Fastly-Client-IP", "telltale"),
    ("X-Amzn-Trace-Id", "telltale"),
];

/// A browser behind other proxies.
fn telling(request: Request) -> Request {
    TELLTALES.iter().fold(request, |request, (name, value)| request.header(name, value))
}

/// Requests of every kind, one that makes Mantlet ask of a token among them.
fn requests(session: &Session, user: &str) -> Vec<(Request, u16)> {
    let login = json!({
        "type": "m.login.password", "password": PASSWORD, "identifier": {"type": "m.id.user", "user": user},
    });
    let name = format!("/_matrix/client/v3/profile/{}/displayname", session.user_id);
    let as_user = |method: &str, target: &str| Request::new(method, target).bearer(&session.access_token);
    vec![
        (Request::new("GET", "/_matrix/client/versions"), 200),
        (Request::new("OPTIONS", "/_matrix/client/v3/sync"), 204),
        (Request::new("POST", "/_matrix/client/v3/login").json(&login), 200),
        (as_user("GET", "/_matrix/client/v3/publicRooms"), 200),
        (as_user("HEAD", "/_matrix/client/v3/publicRooms"), 200),
        (Request::new("GET", format!("/_matrix/client/v3/publicRooms?access_token={}", session.access_token)), 200),
        (as_user("GET", "/_matrix/client/v3/sync"), 200),
        (as_user("PUT", &name).json(&json!({"displayname": "A"})), 200),
        (as_user("POST", "/_matrix/media/v3/upload").header("Content-Type", "text/plain").body("hello"), 200),
        (Request::new("GET", "/_matrix/key/v2/server"), 200),
        (Request::new("GET", "/_matrix/client/v3/nonsense"), 404),
        // An odd one: whoever names a field a hop's own has it removed, and not ours in its place.
        (Request::new("GET", "/_matrix/client/versions").header("Connection", "close, X-Forwarded-For, Via"), 200),
    ]
}

/// Sends them all, and one that a server signed; returns what reached Synapse.
fn arrived(policy: &str, user: &str) -> Vec<RecordedRequest> {
    let world = world();
    let recorder = Recorder::start(world.synapse.addr()).unwrap();
    let gateway = Gateway::start(&format!("http://{}", recorder.addr()), &extends(policy));
    let user = format!("{user}-{policy}");
    let session = world.user(&user);
    for (request, status) in requests(&session, &user) {
        let answer = telling(request.clone()).send(gateway.addr());
        assert_eq!(answer.status, status, "{policy} {request:?}: {}", answer.text());
    }
    let uri = "/_matrix/federation/v1/user/devices/@x:y";
    let signed = world.peer.signed("GET", uri, None, world.synapse.server_name()).unwrap();
    let answer = telling(signed).send(gateway.addr());
    assert_ne!(answer.status, 401, "{policy}: {}", answer.text());
    recorder.requests()
}

#[test]
fn nothing_that_tells_of_the_client_reaches_synapse() {
    let open = arrived("transparent", "arrives");
    let told = |request: &RecordedRequest| String::from_utf8_lossy(&request.head).to_lowercase().contains("telltale");
    assert!(open.iter().filter(|request| told(request)).count() >= 10, "transparent shows what there is to hide");
    for policy in POLICIES {
        let seen = arrived(policy, "arrives");
        assert!(seen.iter().any(|request| request.target_text().contains("/whoami")), "Mantlet asked of no token");
        assert!(seen.len() > 12, "{policy}: {}", seen.len());
        for request in &seen {
            let head = String::from_utf8_lossy(&request.head).into_owned();
            assert!(!told(request), "{policy}: {head}");
            for (name, _) in TELLTALES {
                if !name.eq_ignore_ascii_case("x-forwarded-for") && !name.eq_ignore_ascii_case("x-forwarded-proto") {
                    assert_eq!(request.header(name), None, "{policy}: {head}");
                }
            }
        }
    }
}

#[test]
fn synapse_gets_exactly_one_address_and_one_scheme() {
    for policy in ["transparent", "balanced", "strict"] {
        for request in arrived(policy, "forwarded") {
            // Mantlet's own question whether Synapse is alive has no client.
            if request.target_text() == "/health" {
                continue;
            }
            let head = String::from_utf8_lossy(&request.head).into_owned();
            assert_eq!(request.header_all("x-forwarded-for"), ["127.0.0.1"], "{policy}: {head}");
            assert_eq!(request.header_all("x-forwarded-proto"), ["http"], "{policy}: {head}");
        }
    }
}

#[test]
fn path_and_query_reach_synapse_byte_for_byte() {
    let world = world();
    let alice = world.user("bytes-alice");
    let recorder = Recorder::start(world.synapse.addr()).unwrap();
    let targets = [
        "/_matrix/client/v3/directory/room/%23lobby%3Ahs.localtest",
        "/_matrix/client/v3/directory/room/%23lob%2Fby+x%3Ahs.localtest?x=%C3%A9;y&z=+",
        "/_matrix/client/v3/profile/%40bytes-alice%3Ahs.localtest/displayname",
        "/_matrix/client/v3/profile/%40a%2Fb%2Bc%3Ahs.localtest",
        "/_matrix/client/v3/profile/@%E2%98%83:hs.localtest?field=%e2%98%83",
        "/_matrix/client/v3/rooms/%21a%3Ahs.localtest/event/%24a%2Fb+c%2B",
        "/_matrix/client/v3/rooms/!a:hs.localtest/state/m.room.name/",
        "/_matrix/client/v3/rooms/!a:hs.localtest/messages?dir=b&filter=%7B%22types%22%3A%5B%5D%7D&from=t1-2_3;4",
        "/_matrix/client/v3/user/@bytes-alice:hs.localtest/account_data/a%20b%00c",
        "/_matrix/client/v3/x/../publicRooms",
        "/_matrix/client/v3/x/%2e%2e/joined_rooms",
        "/_matrix/client/v3/joined_rooms?",
        "/_matrix/client/v3/joined_rooms?a=1&a=2&&;=b&%",
        "/_matrix/client/versions?~'()*!$,-._[]|^",
    ];
    for policy in POLICIES {
        let gateway = Gateway::start(&format!("http://{}", recorder.addr()), &extends(policy));
        for target in targets {
            let request = Request::new("GET", target).bearer(&alice.access_token);
            let open = world.direct(&request);
            recorder.take();
            let passed = through(&gateway, &request);
            let seen: Vec<String> = recorder.take().iter().map(RecordedRequest::target_text).collect();
            assert_eq!(seen.last().map(String::as_str), Some(target), "{policy}: {seen:?}");
            assert_eq!((passed.status, passed.text()), (open.status, open.text()), "{policy} {target}");
            assert_eq!(passed.header("content-type"), open.header("content-type"), "{policy} {target}");
        }
    }
}
