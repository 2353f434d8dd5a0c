//! L01: who is not known to Synapse does not list its rooms, whatever is shown in place of a token.

use mantlet_testkit::http::{Request, Response};
use serde_json::json;

use crate::support::Gateway;
use crate::world::{POLICIES, through, world};

const PREFIXES: [&str; 4] = ["api/v1", "r0", "v3", "unstable"];
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

fn rooms(prefix: &str) -> String {
    format!("/_matrix/client/{prefix}/publicRooms")
}

/// A way to show no token, or one wrongly.
struct Form {
    name: &'static str,
    authorizations: Vec<String>,
    query: String,
}

impl Form {
    fn request(&self, method: &str, path: &str) -> Request {
        let mut request = Request::new(method, format!("{path}{}", self.query));
        for authorization in &self.authorizations {
            request = request.header("Authorization", authorization);
        }
        if method == "POST" { request.json(&json!({})) } else { request }
    }
}

/// Forms without a token, with garbage, and with a valid token that Synapse does not take for one.
fn forms(token: &str) -> Vec<Form> {
    let form = |name, authorizations: &[String], query: &str| Form {
        name,
        authorizations: authorizations.to_vec(),
        query: query.to_owned(),
    };
    let bearer = format!("Bearer {token}");
    vec![
        form("no token", &[], ""),
        form("an empty query", &[], "?"),
        form("garbage", &["Bearer garbage".into()], ""),
        form("garbage that looks like a token", &["Bearer syt_bm9ib2R5_aaaaaaaaaaaaaaaaaaaa_000000".into()], ""),
        form("an empty bearer", &["Bearer ".into()], ""),
        form("an empty header", &[String::new()], ""),
        form("a lower-case bearer", &[format!("bearer {token}")], ""),
        form("two spaces", &[format!("Bearer  {token}")], ""),
        form("a tab", &[format!("Bearer\t{token}")], ""),
        form("another scheme", &[format!("Basic {token}")], ""),
        form("a server's scheme", &["X-Matrix origin=\"hs\",key=\"ed25519:a\",sig=\"b\"".into()], ""),
        form("a doubled header", &[bearer.clone(), bearer.clone()], ""),
        form("header and query", &[bearer], &format!("?access_token={token}")),
        form("garbage in the query", &[], "?access_token=garbage"),
        form("an empty token in the query", &[], "?access_token="),
        form("garbage first", &[], &format!("?access_token=garbage&access_token={token}")),
        form("an encoded name", &[], "?access%5Ftoken=garbage"),
        form("a semicolon", &[], "?limit=5;access_token=garbage"),
        form("another case", &[], &format!("?ACCESS_TOKEN={token}")),
        form("no server", &[], "?server="),
    ]
}

#[test]
fn strangers_list_no_rooms_by_any_version_method_or_form() {
    let world = world();
    let token = world.user("rooms-stranger").access_token;
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        for form in forms(&token) {
            // What Synapse says of such a token where it asks for one.
            let refusal = world.direct(&form.request("GET", WHOAMI));
            assert_eq!(refusal.status, 401, "{}: {}", form.name, refusal.text());
            for prefix in PREFIXES {
                let (path, at) = (rooms(prefix), format!("{policy}, {prefix}, {}", form.name));
                let open = world.direct(&form.request("GET", &path));
                assert!(open.status == 200 && world.lists_the_room(&open), "{at}: {}", open.text());
                assert_eq!(world.direct(&form.request("HEAD", &path)).status, 200, "{at}");
                for method in ["GET", "HEAD", "POST"] {
                    let closed = through(&gateway, &form.request(method, &path));
                    assert_eq!(closed.status, 401, "{method} {at}: {}", closed.text());
                    match method {
                        "HEAD" => assert_eq!(closed.text(), "", "{at}"),
                        _ => assert_eq!(closed.json(), refusal.json(), "{method} {at}"),
                    }
                    let announced = (policy == "balanced").then_some("public_rooms");
                    assert_eq!(closed.header("x-mantlet-rule"), announced, "{method} {at}");
                }
            }
        }
    }
}

#[test]
fn strangers_do_not_make_synapse_ask_other_servers() {
    let world = world();
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        for query in ["?server=other.localtest", "?limit=5;server=other.localtest", "?s%65rver=other.localtest"] {
            let request = Request::new("GET", rooms("v3") + query);
            // Synapse asks for a token here by itself.
            assert_eq!(world.direct(&request).status, 401, "{query}");
            assert_eq!(through(&gateway, &request).errcode().as_deref(), Some("M_MISSING_TOKEN"), "{query}");
        }
        let records = gateway.records(3);
        assert!(records.iter().all(|record| record["decision"] == "deny"), "{policy}: Synapse was asked: {records:?}");
    }
}

#[test]
fn spellings_that_synapse_does_not_know_find_no_room_either() {
    let world = world();
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        for path in [
            "/_matrix/client/v1/publicRooms",
            "/_matrix/client/v3/publicRooms/",
            "/_matrix/client/v3/publicrooms",
            "/_matrix/client/v3/public%52ooms",
            "/_matrix/client%2Fv3/publicRooms",
            "/%5Fmatrix/client/v3/publicRooms",
            "//_matrix/client/v3/publicRooms",
            "/_matrix//client/v3/publicRooms",
            "/_matrix/client/./v3/publicRooms",
            "/_matrix/client/v3/x/../publicRooms",
            "/_matrix/client/v3/x/%2e%2e/publicRooms",
            "/_matrix/client/v3/publicRooms;a",
            // What is behind `#` is no part of a target: it is dropped before anything is judged.
            "/_matrix/client/v3/publicRooms#",
            "/_matrix/client/v3/publicRooms#?access_token=x",
            "/_matrix/client/v3/publicRooms%00",
        ] {
            let answer = through(&gateway, &Request::new("GET", path));
            // A path below no prefix is refused before anything else.
            assert!(matches!(answer.status, 401 | 404), "{policy} {path}: {} {}", answer.status, answer.text());
            assert!(answer.errcode().is_some(), "{policy} {path}: {}", answer.text());
        }
    }
}

#[test]
fn users_and_guests_list_the_rooms() {
    let world = world();
    let (user, guest) = (world.user("rooms-user"), world.synapse.register_guest().unwrap());
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        for token in [&user.access_token, &guest.access_token] {
            for prefix in PREFIXES {
                let requests = [
                    Request::new("GET", rooms(prefix)).bearer(token),
                    Request::new("POST", rooms(prefix)).bearer(token).json(&json!({})),
                    Request::new("GET", format!("{}?access_token={token}", rooms(prefix))),
                    Request::new("GET", format!("{}?limit=50;access%5Ftoken={token}", rooms(prefix))),
                ];
                for request in requests {
                    let answer = through(&gateway, &request);
                    assert!(world.lists_the_room(&answer), "{policy} {request:?}: {} {}", answer.status, answer.text());
                }
                let head = through(&gateway, &Request::new("HEAD", rooms(prefix)).bearer(token));
                assert_eq!((head.status, head.body.len()), (200, 0));
            }
        }
    }
}

fn listing(gateway: &Gateway, token: &str) -> Response {
    through(gateway, &Request::new("GET", rooms("v3")).bearer(token))
}

#[test]
fn a_token_is_dead_at_once_when_its_user_logs_out() {
    let world = world();
    world.user("rooms-leaver");
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        for logout in ["/_matrix/client/v3/logout", "/_matrix/client/v3/logout/all"] {
            let session = world.synapse.login("rooms-leaver", crate::world::PASSWORD).unwrap();
            let token = &session.access_token;
            assert_eq!(listing(&gateway, token).status, 200, "{policy}");
            let left = through(&gateway, &Request::new("POST", logout).bearer(token).json(&json!({})));
            assert_eq!(left.status, 200, "{}", left.text());

            let closed = listing(&gateway, token);
            let refusal = world.direct(&Request::new("GET", WHOAMI).bearer(token));
            assert_eq!(refusal.errcode().as_deref(), Some("M_UNKNOWN_TOKEN"));
            assert_eq!((closed.status, closed.body), (refusal.status, refusal.body), "{policy} {logout}");
            // Such tokens still do at Synapse itself.
            assert!(world.lists_the_room(&world.direct(&Request::new("GET", rooms("v3")).bearer(token))));
        }
    }
}

#[test]
fn a_locked_user_hears_it_in_synapses_own_words() {
    let world = world();
    let session = world.user("rooms-locked");
    world.synapse.lock(&session.user_id).unwrap();
    let refusal = world.direct(&Request::new("GET", WHOAMI).bearer(&session.access_token));
    assert_eq!((refusal.errcode().as_deref(), &refusal.json()["soft_logout"]), (Some("M_USER_LOCKED"), &json!(true)));
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        let closed = listing(&gateway, &session.access_token);
        assert_eq!((closed.status, closed.text()), (401, refusal.text()), "{policy}");
    }
}
