//! L11: which software answers, and of what age, is told to nobody.

use mantlet_testkit::http::Request;
use serde_json::json;

use crate::world::{POLICIES, assert_names_no_software, through, world};

#[test]
fn nobody_learns_the_version() {
    let world = world();
    let version = Request::new("GET", "/_matrix/federation/v1/version");
    let open = world.direct(&version);
    assert_eq!(open.json(), json!({"server": {"name": "Synapse", "version": "1.163.2"}}));
    assert_eq!(open.header("server"), Some("Synapse/1.163.2"));
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        let closed = through(&gateway, &version);
        assert_eq!(closed.status, 200);
        assert_eq!(closed.json()["server"]["name"], "matrix");
        assert!(!closed.text().contains("1.163") && !closed.text().contains("Synapse"), "{policy}: {}", closed.text());
        assert_eq!(through(&gateway, &Request::new("GET", "/_synapse/admin/v1/server_version")).status, 404);
    }
}

#[test]
fn no_answer_of_any_kind_names_its_server() {
    let world = world();
    let alice = world.user("banner-alice");
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        let requests = [
            ("OPTIONS", "/_matrix/client/v3/sync", 204),
            ("GET", "/_matrix/client/versions", 200),
            ("GET", "/_matrix/client/v3/login", 200),
            ("GET", "/_matrix/client/v3/sync", 401),
            ("POST", "/_matrix/client/v3/login", 400),
            ("GET", "/_matrix/client/v3/nonsense", 404),
            ("PATCH", "/_matrix/client/v3/login", 405),
            ("GET", "/_matrix/key/v2/server", 200),
            ("GET", "/_matrix/federation/v1/event/$a", 401),
            ("GET", "/_matrix/media/v3/download/hs.localtest/none", 404),
            ("GET", "/_matrix/client/v1/media/download/hs.localtest/none", 401),
            ("GET", "/_matrix/static/", 200),
            ("GET", "/.well-known/matrix/client", 200),
            ("GET", "/nowhere", 404),
        ];
        for (method, path, status) in requests {
            let request = Request::new(method, path).body("");
            let open = world.direct(&request);
            assert!(open.header("server").is_some_and(|server| server.contains("1.163.2")), "{path}: {open:?}");
            assert_eq!(through(&gateway, &request).status, status, "{policy} {method} {path}");
        }
        let sync = Request::new("GET", "/_matrix/client/v3/sync").bearer(&alice.access_token);
        assert_eq!(through(&gateway, &sync).status, 200);
        let signed = world.signed(gateway.addr(), "GET", "/_matrix/federation/v1/user/devices/@x:y", None);
        assert_names_no_software(&signed);
    }
}
