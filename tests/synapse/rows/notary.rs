//! L13: under `strict`, strangers do not use the homeserver as a notary. Its own keys they get.

use mantlet_testkit::http::{Request, Response};
use serde_json::{Value, json};

use crate::world::{through, world};

/// Both forms of the question for a key of one server.
fn questions(server: &str, key: &str) -> [Request; 2] {
    [
        Request::new("GET", format!("/_matrix/key/v2/query/{server}/{key}")),
        Request::new("POST", "/_matrix/key/v2/query")
            .json(&json!({"server_keys": {server: {key: {"minimum_valid_until_ts": 0}}}})),
    ]
}

/// Whose keys an answer has.
fn servers(response: &Response) -> Vec<Value> {
    assert_eq!(response.status, 200, "{}", response.text());
    let json = response.json();
    json["server_keys"].as_array().unwrap().iter().map(|keys| keys["server_name"].clone()).collect()
}

#[test]
fn strangers_get_the_keys_of_nobody_else() {
    let world = world();
    let (ours, peers) = (world.synapse.server_name(), world.peer.server_name());
    let (balanced, strict) = (world.gateway("balanced"), world.gateway("strict"));
    for question in questions(peers, world.peer.key_id()) {
        assert_eq!(servers(&world.direct(&question)), [peers]);
        assert_eq!(servers(&through(&balanced, &question)), [peers]);
        assert!(servers(&through(&strict, &question)).is_empty());
    }
    let keys = world.direct(&Request::new("GET", "/_matrix/key/v2/server")).json();
    let key = keys["verify_keys"].as_object().unwrap().keys().next().unwrap().clone();
    for question in questions(ours, &key) {
        assert_eq!(servers(&through(&strict, &question)), servers(&world.direct(&question)));
    }
    // Among our own, another's are not given out either.
    let wanted = json!({"minimum_valid_until_ts": 0});
    let both = json!({"server_keys": {ours: {&key: wanted}, peers: {world.peer.key_id(): wanted}}});
    assert!(servers(&through(&strict, &Request::new("POST", "/_matrix/key/v2/query").json(&both))).is_empty());
}
