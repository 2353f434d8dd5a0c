//! Synapse on its unix socket, where it has no other address of a client than the one that Mantlet names.

use mantlet_testkit::http::Request;
use serde_json::json;

use crate::support::Gateway;
use crate::world::{PASSWORD, POLICIES, extends, through, world};

#[test]
fn users_log_in_and_strangers_list_no_rooms() {
    let world = world();
    let socket = world.synapse.socket_path().unwrap();
    let alice = world.user("unix-alice");
    let body = json!({
        "type": "m.login.password", "password": PASSWORD, "identifier": {"type": "m.id.user", "user": "unix-alice"},
    });
    let login = Request::new("POST", "/_matrix/client/v3/login").json(&body);
    let rooms = Request::new("GET", "/_matrix/client/v3/publicRooms");

    // Without an address Synapse fails.
    assert_eq!(login.send(&socket).status, 500);
    assert!(world.lists_the_room(&rooms.send(&socket)));
    for policy in POLICIES {
        let gateway = Gateway::start(&format!("unix:{}", socket.display()), &extends(policy));
        let answer = through(&gateway, &login);
        assert_eq!(answer.json()["user_id"], alice.user_id, "{policy}");
        assert_eq!(through(&gateway, &rooms).errcode().as_deref(), Some("M_MISSING_TOKEN"), "{policy}");
        let token = answer.json()["access_token"].as_str().unwrap().to_owned();
        assert!(world.lists_the_room(&through(&gateway, &rooms.clone().bearer(&token))), "{policy}");
        let name = format!("/_matrix/client/v3/profile/{}", alice.user_id);
        assert_eq!(through(&gateway, &Request::new("GET", name)).status, 401, "{policy}");
        assert_eq!(Request::new("GET", "/readyz").send(gateway.admin()).status, 200, "{policy}");
    }
}
