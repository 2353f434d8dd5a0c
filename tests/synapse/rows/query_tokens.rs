//! L28: a client's token reaches Synapse in the header, and no URL that anybody logs holds it.

use mantlet_testkit::http::Request;
use mantlet_testkit::recorder::Recorder;
use serde_json::json;

use crate::support::Gateway;
use crate::world::{POLICIES, extends, through, world};

fn before(recorder: &Recorder, policy: &str) -> Gateway {
    Gateway::start(&format!("http://{}", recorder.addr()), &extends(policy))
}

#[test]
fn a_token_in_the_query_arrives_in_the_header() {
    let world = world();
    let alice = world.user("query-alice");
    let (token, user) = (&alice.access_token, &alice.user_id);
    let recorder = Recorder::start(world.synapse.addr()).unwrap();
    // What is sent, and what arrives.
    let targets = [
        (format!("/_matrix/client/v3/sync?access_token={token}"), "/_matrix/client/v3/sync".to_owned()),
        (
            format!("/_matrix/client/v3/sync?timeout=0&access_token={token}&filter=%7B%7D"),
            "/_matrix/client/v3/sync?timeout=0&filter=%7B%7D".to_owned(),
        ),
        (
            format!("/_matrix/client/r0/joined_rooms?a=%2F+;access%5Ftoken={token}"),
            "/_matrix/client/r0/joined_rooms?a=%2F+".to_owned(),
        ),
        (
            format!("/_matrix/client/v3/publicRooms?access_token={token}&limit=5"),
            "/_matrix/client/v3/publicRooms?limit=5".to_owned(),
        ),
        (
            format!("/_matrix/client/v3/profile/{user}?access_token={token}"),
            format!("/_matrix/client/v3/profile/{user}"),
        ),
        (format!("/_matrix/media/v3/config?access_token={token}"), "/_matrix/media/v3/config".to_owned()),
        (
            format!("/_matrix/client/v3/account/whoami?access_token={token}"),
            "/_matrix/client/v3/account/whoami".to_owned(),
        ),
    ];
    let open = before(&recorder, "transparent");
    for (target, _) in &targets {
        assert_eq!(Request::new("GET", target.as_str()).send(open.addr()).status, 200, "{target}");
        let seen = recorder.take().pop().unwrap();
        assert_eq!((&seen.target_text(), seen.header("authorization")), (target, None));
    }
    for policy in POLICIES {
        let gateway = before(&recorder, policy);
        for (target, arrives) in &targets {
            let passed = through(&gateway, &Request::new("GET", target.as_str()));
            assert_eq!(passed.status, 200, "{policy} {target}: {}", passed.text());
            let seen = recorder.take();
            let last = seen.last().unwrap();
            assert_eq!(&last.target_text(), arrives, "{policy} {target}");
            assert_eq!(last.header_all("authorization"), [format!("Bearer {token}")], "{policy} {target}");
            // Nor in what Mantlet itself asks.
            assert!(seen.iter().all(|request| !request.target_text().contains(token)), "{policy}: {seen:?}");
        }
        assert!(!gateway.written().contains(token), "{policy}");
    }
}

#[test]
fn what_is_no_clients_token_stays_where_it_is() {
    let world = world();
    let alice = world.user("query-widget");
    let recorder = Recorder::start(world.synapse.addr()).unwrap();
    for policy in POLICIES {
        let gateway = before(&recorder, policy);
        let path = format!("/_matrix/client/v3/user/{}/openid/request_token", alice.user_id);
        let request = Request::new("POST", path).bearer(&alice.access_token).json(&json!({}));
        let openid = through(&gateway, &request).json()["access_token"].as_str().unwrap().to_owned();
        recorder.take();
        let target = format!("/_matrix/federation/v1/openid/userinfo?access_token={openid}");
        let told = through(&gateway, &Request::new("GET", target.as_str()));
        assert_eq!(told.json(), json!({"sub": alice.user_id}), "{policy}");
        let seen = recorder.take().pop().unwrap();
        assert_eq!((seen.target_text(), seen.header("authorization")), (target, None), "{policy}");

        // What a server signed holds the whole query.
        let uri = "/_matrix/federation/v1/user/devices/@x:y?access_token=abc";
        assert_ne!(world.signed(gateway.addr(), "GET", uri, None).status, 401, "{policy}");
        assert_eq!(recorder.take().pop().unwrap().target_text(), uri, "{policy}");
    }
}

#[test]
fn what_synapse_refuses_it_refuses_itself() {
    let world = world();
    let alice = world.user("query-twice");
    let token = &alice.access_token;
    let recorder = Recorder::start(world.synapse.addr()).unwrap();
    let sync = "/_matrix/client/v3/sync";
    let requests = [
        (Request::new("GET", format!("{sync}?access_token={token}")).bearer(token), 401),
        (Request::new("GET", format!("{sync}?access_token={token}")).header("Authorization", "Basic x"), 401),
        (Request::new("GET", format!("{sync}?access_token=")), 401),
        (Request::new("GET", format!("{sync}?access_token=garbage")), 401),
        (Request::new("GET", format!("{sync}?access_token=garbage&access_token={token}")), 401),
        (Request::new("GET", format!("{sync}?ACCESS_TOKEN={token}")), 401),
        // Synapse reads the first of two.
        (
            Request::new("GET", format!("/_matrix/client/v3/joined_rooms?access_token={token}&access_token=garbage")),
            200,
        ),
    ];
    for policy in POLICIES {
        let gateway = before(&recorder, policy);
        for (request, status) in &requests {
            let (open, passed) = (world.direct(request), through(&gateway, request));
            assert_eq!(open.status, *status, "{request:?}: {}", open.text());
            assert_eq!((passed.status, passed.text()), (open.status, open.text()), "{policy} {request:?}");
        }
    }
}
