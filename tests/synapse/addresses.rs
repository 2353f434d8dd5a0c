//! Whose address Synapse notes: the client's own, neither the gateway's nor one that the client made up.

use std::net::{IpAddr, Ipv4Addr};

use mantlet_testkit::http::Request;
use serde_json::json;

use crate::world::{PASSWORD, POLICIES, world};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const ROOMS: &str = "/_matrix/client/v3/publicRooms";

/// The addresses that Synapse has noted for a user, each once.
fn noted(user_id: &str) -> Vec<String> {
    let mut addresses: Vec<String> = world().noted(user_id).into_iter().map(|(address, _)| address).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

#[test]
fn a_token_check_notes_the_clients_address_and_not_the_gateways() {
    let world = world();
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        let alice = world.user(&format!("address-alice-{policy}"));
        assert!(noted(&alice.user_id).is_empty(), "making a user notes no address");
        let rooms = Request::new("GET", ROOMS).bearer(&alice.access_token);
        assert_eq!(rooms.send_from(CLIENT, gateway.addr()).status, 200);
        assert_eq!(noted(&alice.user_id), ["127.0.0.2"], "{policy}");

        // The device list shows the same.
        let devices = format!("/_synapse/admin/v2/users/{}/devices", alice.user_id);
        let devices = world.synapse.call(Some(&world.admin), "GET", &devices, None).unwrap();
        assert_eq!(devices["devices"][0]["last_seen_ip"], "127.0.0.2", "{policy}: {devices}");

        // The verdict is remembered; that somebody uses the token from elsewhere is noted all the same.
        assert_eq!(rooms.send_from(ELSEWHERE, gateway.addr()).status, 200);
        assert_eq!(noted(&alice.user_id), ["127.0.0.2", "127.0.0.3"], "{policy}");
    }
}

#[test]
fn a_made_up_address_is_not_believed() {
    let world = world();
    let made_up = |request: Request| {
        let fields =
            ["X-Forwarded-For", "x-forwarded-for", "X-Real-IP", "Forwarded", "CF-Connecting-IP", "True-Client-IP"];
        fields.iter().fold(request, |request, name| request.header(name, "203.0.113.7"))
    };
    let requests = |token: &str| {
        let rooms = Request::new("GET", ROOMS).bearer(token);
        let sync = Request::new("GET", "/_matrix/client/v3/sync").bearer(token);
        [made_up(rooms), made_up(sync.clone()), made_up(sync).header("Connection", "close, X-Forwarded-For")]
    };

    // Synapse believes whoever is in front of it.
    let open = world.user("address-open");
    world.direct(&requests(&open.access_token)[1]);
    assert_eq!(noted(&open.user_id), ["203.0.113.7"]);
    for policy in ["transparent", "balanced", "strict"] {
        let gateway = world.gateway(policy);
        let bob = world.user(&format!("address-bob-{policy}"));
        for request in requests(&bob.access_token) {
            assert_eq!(request.send_from(CLIENT, gateway.addr()).status, 200);
        }
        assert_eq!(noted(&bob.user_id), ["127.0.0.2"], "{policy}");
    }
}

#[test]
fn a_login_is_noted_from_where_it_came() {
    let world = world();
    let gateway = world.gateway("balanced");
    let carol = world.user("address-carol");
    let body = json!({
        "type": "m.login.password", "password": PASSWORD,
        "identifier": {"type": "m.id.user", "user": "address-carol"},
    });
    let login = Request::new("POST", "/_matrix/client/v3/login").json(&body).send_from(CLIENT, gateway.addr());
    let token = login.json()["access_token"].as_str().unwrap().to_owned();
    let whoami = Request::new("GET", "/_matrix/client/v3/account/whoami").bearer(&token);
    assert_eq!(whoami.send_from(CLIENT, gateway.addr()).json()["user_id"], carol.user_id);
    assert_eq!(noted(&carol.user_id), ["127.0.0.2"]);
}
