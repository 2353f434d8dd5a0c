//! L02 and L04: other servers list no rooms, and under `strict` read no profiles; what they sign arrives as they signed it.

use mantlet_testkit::http::Request;
use serde_json::json;

use crate::world::{POLICIES, assert_names_no_software, through, world};

const ROOMS: &str = "/_matrix/federation/v1/publicRooms";

#[test]
fn other_servers_list_no_rooms() {
    let world = world();
    let direct = world.synapse.addr();
    let filter = json!({"limit": 50});
    let asked = [("GET", None), ("POST", Some(&filter)), ("HEAD", None)];
    for (method, content) in asked {
        let open = world.signed(direct, method, ROOMS, content);
        assert_eq!(open.status, 200, "{method}: {}", open.text());
        assert!(method == "HEAD" || world.lists_the_room(&open), "{method}: {}", open.text());
    }
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        for uri in [ROOMS.to_owned(), format!("{ROOMS}?limit=5&since=x"), format!("{ROOMS}?")] {
            for (method, content) in asked {
                let closed = world.signed(gateway.addr(), method, &uri, content);
                assert_names_no_software(&closed);
                assert_eq!(closed.status, 403, "{policy} {method} {uri}: {}", closed.text());
                if method != "HEAD" {
                    assert_eq!(closed.errcode().as_deref(), Some("M_FORBIDDEN"), "{policy} {method} {uri}");
                }
            }
        }
        // Without a signature it is no better.
        assert_eq!(through(&gateway, &Request::new("GET", ROOMS)).status, 403);
    }
}

#[test]
fn other_servers_read_profiles_under_balanced_and_not_under_strict() {
    let world = world();
    let alice = world.user("peer-alice");
    world.synapse.set_display_name(&alice, "Alice afar").unwrap();
    let query = |spelling: &str| format!("/_matrix/federation/v1/query/{spelling}?user_id={}", alice.user_id);
    let (plain, odd) = (query("profile"), query("%70rofile"));
    let field = format!("{plain}&field=displayname");
    let name = |answer: mantlet_testkit::http::Response| answer.try_json().unwrap_or_default()["displayname"].clone();

    for uri in [&plain, &field, &odd] {
        assert_eq!(name(world.signed(world.synapse.addr(), "GET", uri, None)), "Alice afar", "{uri}");
    }
    let balanced = world.gateway("balanced");
    for uri in [&plain, &field] {
        assert_eq!(name(world.signed(balanced.addr(), "GET", uri, None)), "Alice afar", "{uri}");
    }
    let strict = world.gateway("strict");
    for uri in [&plain, &field] {
        for method in ["GET", "HEAD"] {
            let closed = world.signed(strict.addr(), method, uri, None);
            assert_names_no_software(&closed);
            assert_eq!(closed.status, 403, "{method} {uri}: {}", closed.text());
        }
        assert_eq!(world.signed(strict.addr(), "GET", uri, None).errcode().as_deref(), Some("M_FORBIDDEN"));
    }
    let closed = world.signed(strict.addr(), "GET", &odd, None);
    assert_eq!((closed.status, closed.errcode().as_deref()), (404, Some("M_UNRECOGNIZED")), "{}", closed.text());
}

#[test]
fn what_a_server_signs_arrives_as_it_signed_it() {
    let world = world();
    let alice = world.user("peer-signed");
    world.synapse.set_display_name(&alice, "Signed").unwrap();
    let hs = world.synapse.server_name();
    let user = alice.user_id.replace('@', "%40").replace(':', "%3A");
    let profile = format!("/_matrix/federation/v1/query/profile?user_id={user}&field=displayname");
    let uris = [
        profile.clone(),
        format!("/_matrix/federation/v1/query/profile?x=%2F+%2f;y=%3a&user_id={user}"),
        format!("/_matrix/federation/v1/query/directory?room_alias=%23lobby%3A{hs}"),
        format!("/_matrix/federation/v1/query/directory?room_alias=%23lob+by%2Fa;b%3A{hs}"),
        format!("/_matrix/federation/v1/event/%24a%2Fb+c;d%3A{hs}"),
        format!("/_matrix/federation/v1/state/!a%2Fb:{hs}?event_id=$x%2By"),
        format!("/_matrix/federation/v1/user/devices/{user}"),
        format!("/_matrix/federation/v1/make_join/%21a%3A{hs}/@%E2%98%83:localhost?ver=1&ver=10"),
        "/_matrix/federation/v1/backfill/!a:b/?v=%24x&limit=1".to_owned(),
        "/_matrix/federation/v1/hierarchy/%21a%3Ab?".to_owned(),
    ];
    // What Synapse says where the signature is of other bytes that mean the same.
    let authorization = world.peer.sign("GET", &profile.replace("%40", "@"), None, hs).unwrap();
    let forged = Request::new("GET", profile.as_str()).header("Host", hs).header("Authorization", authorization);
    assert_eq!(world.direct(&forged).errcode().as_deref(), Some("M_UNAUTHORIZED"));

    let gateway = world.gateway("balanced");
    for uri in uris {
        let open = world.signed(world.synapse.addr(), "GET", &uri, None);
        assert_ne!(open.status, 401, "{uri}: {}", open.text());
        let passed = world.signed(gateway.addr(), "GET", &uri, None);
        assert_names_no_software(&passed);
        assert_eq!((passed.status, passed.text()), (open.status, open.text()), "{uri}");
    }
    assert_eq!(world.signed(gateway.addr(), "GET", &profile, None).json()["displayname"], "Signed");
    assert_eq!(through(&gateway, &forged).errcode().as_deref(), Some("M_UNAUTHORIZED"));
}

#[test]
fn several_signatures_and_a_signed_body_arrive() {
    let world = world();
    let hs = world.synapse.server_name();
    let (uri, devices) = ("/_matrix/federation/v1/user/keys/query", "/_matrix/federation/v1/user/devices/@x:y");
    let content =
        json!({"device_keys": {"@peer-nobody:hs.localtest": []}, "unicode": "\u{2603}", "order": {"b": 1, "a": 2}});
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        let answer = world.signed(gateway.addr(), "POST", uri, Some(&content));
        assert_eq!(answer.status, 200, "{policy}: {}", answer.text());
        // A signature with a key that nobody knows, and one that is good (server-server API, request authentication).
        let good = world.peer.sign("GET", devices, None, hs).unwrap();
        let unknown = good.replace(world.peer.key_id(), "ed25519:a_unknown");
        assert_ne!(unknown, good);
        let one = Request::new("GET", devices).header("Host", hs).header("Authorization", &unknown);
        assert_eq!(world.direct(&one).status, 401, "the one is not enough");
        let two = one.header("Authorization", &good);
        let (open, passed) = (world.direct(&two), through(&gateway, &two));
        assert_ne!(open.status, 401, "{}", open.text());
        assert_eq!((passed.status, passed.text()), (open.status, open.text()), "{policy}");
    }
}

#[test]
fn a_widget_still_learns_its_user() {
    let world = world();
    let alice = world.user("openid-alice");
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        let request = format!("/_matrix/client/v3/user/{}/openid/request_token", alice.user_id);
        let request = Request::new("POST", request).bearer(&alice.access_token).json(&json!({}));
        let token = through(&gateway, &request).json()["access_token"].as_str().unwrap().to_owned();
        let userinfo = |token: &str| {
            let path = format!("/_matrix/federation/v1/openid/userinfo?access_token={token}");
            through(&gateway, &Request::new("GET", path))
        };
        assert_eq!(userinfo(&token).json(), json!({"sub": alice.user_id}), "{policy}");
        assert_eq!(userinfo("garbage").status, 401, "{policy}");
    }
}
