//! L03: who is not known to Synapse, and who is a guest, reads no profile.

use mantlet_testkit::http::Request;
use mantlet_testkit::synapse::Session;
use serde_json::json;

use crate::world::{POLICIES, World, through, world};

const NAME: &str = "Alice in the profile";
const FIELD: &str = "org.example.pronouns";

/// A user with a name, an avatar and a field of another kind.
fn named(world: &World, name: &str) -> Session {
    let alice = world.user(name);
    let base = format!("/_matrix/client/v3/profile/{}", alice.user_id);
    let fields = [("displayname", NAME), ("avatar_url", "mxc://hs.localtest/profile"), (FIELD, "she")];
    for (field, value) in fields {
        world.synapse.call(Some(&alice), "PUT", &format!("{base}/{field}"), Some(&json!({field: value}))).unwrap();
    }
    alice
}

/// Every path by which Synapse shows something of the user to anybody.
fn open_paths(user_id: &str) -> Vec<String> {
    let encoded = user_id.replace('@', "%40").replace(':', "%3A");
    let odd = user_id.replace('p', "%70");
    let mut paths = Vec::new();
    for user in [user_id, &encoded, &odd] {
        for prefix in ["api/v1", "r0", "v3", "unstable"] {
            for rest in ["", "/displayname", "/avatar_url"] {
                paths.push(format!("/_matrix/client/{prefix}/profile/{user}{rest}"));
            }
        }
        for field in ["displayname", "avatar_url", FIELD] {
            paths.push(format!("/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user}/{field}"));
        }
        paths.push(format!("/_matrix/client/v3/profile/{user}/{FIELD}"));
    }
    paths
}

/// The same by escapes where no honest client has any.
fn odd_paths(user_id: &str) -> Vec<String> {
    ["display%6Eame", "%64isplayname", "avatar%5Furl"]
        .iter()
        .map(|field| format!("/_matrix/client/v3/profile/{user_id}/{field}"))
        .collect()
}

#[test]
fn strangers_and_guests_read_no_profile_by_any_path() {
    let world = world();
    let (alice, guest) = (named(world, "profile-alice"), world.synapse.register_guest().unwrap());
    for path in open_paths(&alice.user_id).iter().chain(&odd_paths(&alice.user_id)) {
        for method in ["GET", "HEAD"] {
            let open = world.direct(&Request::new(method, path.as_str()));
            assert_eq!(open.status, 200, "{method} {path}: {}", open.text());
        }
        let text = world.direct(&Request::new("GET", path.as_str())).text();
        assert!([NAME, "mxc://hs.localtest/profile", "she"].iter().any(|value| text.contains(value)), "{path}: {text}");
    }
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        for method in ["GET", "HEAD"] {
            for path in open_paths(&alice.user_id) {
                let request = Request::new(method, path.as_str());
                let guests = through(&gateway, &request.clone().bearer(&guest.access_token));
                assert_eq!(guests.status, 403, "{policy} {method} {path}: {}", guests.text());
                if method == "GET" {
                    assert_eq!(guests.errcode().as_deref(), Some("M_GUEST_ACCESS_FORBIDDEN"), "{policy} {path}");
                }
                for (request, errcode) in [
                    (request.clone(), "M_MISSING_TOKEN"),
                    (request.clone().bearer("garbage"), "M_UNKNOWN_TOKEN"),
                    (
                        request.clone().header("Authorization", format!("bearer {}", alice.access_token)),
                        "M_MISSING_TOKEN",
                    ),
                ] {
                    let closed = through(&gateway, &request);
                    assert_eq!(closed.status, 401, "{policy} {method} {path}: {}", closed.text());
                    if method == "GET" {
                        assert_eq!(closed.errcode().as_deref(), Some(errcode), "{policy} {path}");
                    }
                }
            }
            for path in odd_paths(&alice.user_id) {
                let closed = through(&gateway, &Request::new(method, path.as_str()));
                assert_eq!(closed.status, 404, "{policy} {method} {path}: {}", closed.text());
            }
        }
    }
}

#[test]
fn dots_lead_nowhere() {
    let world = world();
    let alice = named(world, "profile-dots");
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        for rest in
            ["/..", "/.", "/", "/%2e%2e", "/../displayname", "/x/../displayname", "//displayname", "/displayname/"]
        {
            let path = format!("/_matrix/client/v3/profile/{}{rest}", alice.user_id);
            let answer = through(&gateway, &Request::new("GET", path.as_str()));
            assert!(matches!(answer.status, 401 | 404), "{policy} {path}: {} {}", answer.status, answer.text());
            assert!(!answer.text().contains(NAME), "{policy} {path}");
            // Who has a token gets Synapse's own answer, to these very bytes.
            let known = Request::new("GET", path.as_str()).bearer(&alice.access_token);
            let (open, passed) = (world.direct(&known), through(&gateway, &known));
            if answer.header("x-mantlet-rule") != Some("spelling") {
                assert_eq!((passed.status, passed.text()), (open.status, open.text()), "{policy} {path}");
            }
        }
    }
}

#[test]
fn users_read_profiles_and_write_their_own() {
    let world = world();
    let (alice, bob) = (named(world, "profile-owner"), world.user("profile-reader"));
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        for path in open_paths(&alice.user_id) {
            let request = Request::new("GET", path.as_str()).bearer(&bob.access_token);
            let (open, passed) = (world.direct(&request), through(&gateway, &request));
            assert_eq!((passed.status, passed.text()), (200, open.text()), "{policy} {path}");
        }
        for field in ["displayname", FIELD] {
            let path = format!("/_matrix/client/v3/profile/{}/{field}", alice.user_id);
            let value = json!({field: format!("written under {policy}")});
            let put = Request::new("PUT", path.as_str()).json(&value);
            assert_eq!(through(&gateway, &put.clone().bearer(&alice.access_token)).status, 200, "{policy} {path}");
            assert_eq!(world.synapse.call(None, "GET", &path, None).unwrap(), value);
            // Who may write is Synapse's affair.
            for refused in [put.clone().bearer(&bob.access_token), put] {
                let (open, passed) = (world.direct(&refused), through(&gateway, &refused));
                assert!(open.status >= 400, "{}", open.text());
                assert_eq!((passed.status, passed.text()), (open.status, open.text()), "{policy} {path}");
            }
        }
    }
}
