//! Fields are set and removed on Synapse's answers and on our own, and a web client goes on seeing them.

use mantlet_testkit::http::Request;

use crate::support::Gateway;
use crate::world::{POLICIES, extends, through, world};

const RULE: &str = "[rules.response_headers]\n\
    set = { Strict-Transport-Security = \"max-age=31536000\", Referrer-Policy = \"no-referrer\" }\n\
    remove = [\"Cache-Control\"]";

#[test]
fn every_answer_has_what_the_policy_sets_and_not_what_it_removes() {
    let world = world();
    let alice = world.user("response-alice");
    let requests = [
        (Request::new("GET", "/_matrix/client/versions"), 200),
        (Request::new("GET", "/_matrix/client/v3/sync").bearer(&alice.access_token), 200),
        (Request::new("GET", "/_matrix/client/v3/account/whoami"), 401),
        (Request::new("GET", "/_matrix/client/v3/nonsense"), 404),
        (Request::new("OPTIONS", "/_matrix/client/v3/sync"), 204),
        (Request::new("GET", "/_matrix/key/v2/server"), 200),
    ];
    // Answers that Synapse never sees.
    let ours = [
        (Request::new("GET", "/_matrix/client/v3/publicRooms"), 401),
        (Request::new("GET", "/_matrix/federation/v1/publicRooms"), 403),
        (Request::new("GET", "/_synapse/admin/v1/server_version"), 404),
        (Request::new("GET", "/index.html"), 404),
        (Request::new("GET", "/_matrix/federation/v1/version"), 200),
    ];
    for policy in POLICIES {
        let gateway = Gateway::start(&world.synapse.base_url(), &format!("{}\n{RULE}", extends(policy)));
        let without = world.gateway(policy);
        let mut removed = 0;
        for (request, status) in requests.iter().chain(&ours) {
            let answer = through(&gateway, request);
            assert_eq!(answer.status, *status, "{policy} {request:?}: {}", answer.text());
            assert_eq!(answer.header_all("strict-transport-security"), ["max-age=31536000"], "{policy} {request:?}");
            assert_eq!(answer.header_all("referrer-policy"), ["no-referrer"], "{policy} {request:?}");
            assert_eq!(answer.header("cache-control"), None, "{policy} {request:?}");
            // Nothing else differs from what there is without the rule.
            let plain = through(&without, request);
            assert_eq!(plain.header("strict-transport-security"), None, "{policy} {request:?}");
            removed += usize::from(plain.header("cache-control").is_some());
            for name in ["access-control-allow-origin", "access-control-allow-headers", "content-type"] {
                assert_eq!(answer.header_all(name), plain.header_all(name), "{policy} {request:?} {name}");
            }
        }
        assert!(removed >= 3, "{policy}: there was something to remove");
    }
}
