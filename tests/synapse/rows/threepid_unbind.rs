//! L05, L06 and L31: no identity server is told to forget a binding, neither by whom asks it nor by Synapse for a client; and each try is told.

use std::path::Path;

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::{Request, json_response};
use mantlet_testkit::recorder::Recorder;
use serde_json::json;

use crate::support::Gateway;
use crate::world::{POLICIES, extends, through, world};

#[test]
fn an_identity_server_is_not_told_to_unbind() {
    let unbind = json!({"mxid": "@a:hs.localtest", "threepid": {"medium": "email", "address": "a@example.org"}});
    let identity_server = Backend::start(|_| Answer::Bytes(json_response(200, &json!({})))).unwrap();
    let upstream = format!("http://{}", identity_server.addr());
    let paths = ["/_matrix/identity/v2/3pid/unbind", "/_matrix/identity/api/v1/3pid/unbind"];
    let request = |path: &str| Request::new("POST", path).json(&unbind);

    let open = Gateway::start(&upstream, &extends("transparent"));
    for path in paths {
        assert_eq!(through(&open, &request(path)).status, 200);
        assert_eq!(identity_server.take()[0].target_text(), path);
    }
    for policy in POLICIES {
        let gateway = Gateway::start(&upstream, &extends(policy));
        for path in paths {
            let closed = through(&gateway, &request(path));
            assert_eq!(closed.status, 404, "{policy} {path}");
            // A Matrix error would mean "failed"; anything else means "not supported".
            assert!(closed.header("content-type").unwrap().starts_with("text/plain"), "{policy} {path}: {closed:?}");
            assert!(closed.try_json().is_err(), "{policy} {path}");
            assert_eq!(closed.header("access-control-allow-origin"), Some("*"), "{policy} {path}");
        }
        for path in ["/pre/fix/_matrix/identity/v2/3pid/unbind", "/_matrix/identity/v2/3pid/unb%69nd"] {
            assert_eq!(through(&gateway, &request(path)).status, 404, "{policy} {path}");
        }
        assert!(identity_server.requests().is_empty(), "{policy}: {:?}", identity_server.requests());
    }
}

#[test]
fn synapse_asks_no_identity_server_for_a_client() {
    let world = world();
    let alice = world.user("unbind-alice");
    // Hangs up on whoever connects: that somebody did is all that counts.
    let identity_server = Recorder::start(Path::new("/nonexistent/upstream")).unwrap();
    let id_server = format!("localhost:{}", identity_server.addr().port());
    let request = |prefix: &str, id_server: Option<&str>| {
        let mut body = json!({"medium": "email", "address": "a@example.org"});
        if let Some(id_server) = id_server {
            body["id_server"] = json!(id_server);
        }
        let path = format!("/_matrix/client/{prefix}/account/3pid/unbind");
        Request::new("POST", path).bearer(&alice.access_token).json(&body)
    };

    let mut asked = 0;
    for prefix in ["r0", "v3", "unstable"] {
        let open = world.direct(&request(prefix, Some(&id_server)));
        assert_eq!((open.status, open.errcode().as_deref()), (500, Some("M_UNKNOWN")), "{}", open.text());
        assert!(identity_server.connections() > asked, "{prefix}: Synapse asked nobody");
        asked = identity_server.connections();
        let open = world.direct(&request(prefix, None));
        assert_eq!((open.status, open.json()), (200, json!({"id_server_unbind_result": "no-support"})));
    }
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        for prefix in ["r0", "v3", "unstable"] {
            for id_server in [Some(id_server.as_str()), None] {
                let closed = through(&gateway, &request(prefix, id_server));
                assert_eq!(
                    (closed.status, closed.errcode().as_deref()),
                    (404, Some("M_UNRECOGNIZED")),
                    "{policy} {prefix}"
                );
            }
        }
        assert_eq!(identity_server.connections(), asked, "{policy}: Synapse asked the identity server");
        let told = "mantlet_privacy_events_total{flow=\"client\",rule=\"threepid_unbind\"}";
        assert_eq!(gateway.metric(told), 6.0, "{policy}");
    }
}
