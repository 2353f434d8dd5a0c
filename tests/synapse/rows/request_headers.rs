//! L09: Synapse does not note which client somebody uses.

use mantlet_testkit::http::Request;

use crate::world::{POLICIES, through, world};

const AGENT: &str = "Mozilla/5.0 (X11; Telltale x86_64) Element/1.12";

#[test]
fn the_device_list_shows_no_agent() {
    let world = world();
    let alice = world.user("agent-alice");
    let agents = |user_id: &str| -> Vec<String> { world.noted(user_id).into_iter().map(|(_, agent)| agent).collect() };
    let sync = |token: &str| Request::new("GET", "/_matrix/client/v3/sync").bearer(token).header("User-Agent", AGENT);
    assert_eq!(world.direct(&sync(&alice.access_token)).status, 200);
    assert_eq!(agents(&alice.user_id), [AGENT]);
    for policy in POLICIES {
        let bob = world.user(&format!("agent-bob-{policy}"));
        let gateway = world.gateway(policy);
        let rooms = Request::new("GET", "/_matrix/client/v3/publicRooms").bearer(&bob.access_token);
        // The first makes Mantlet ask of the token.
        assert_eq!(through(&gateway, &rooms.header("User-Agent", AGENT)).status, 200);
        assert_eq!(through(&gateway, &sync(&bob.access_token)).status, 200);
        let noted = agents(&bob.user_id);
        assert!(!noted.is_empty() && noted.iter().all(String::is_empty), "{policy}: {noted:?}");
    }
}
