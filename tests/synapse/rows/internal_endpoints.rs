//! L25: the admin API, the metrics and their like are reached by nobody, or by listed networks.

use mantlet_testkit::http::Request;
use serde_json::json;

use crate::support::Gateway;
use crate::world::{POLICIES, extends, through, world};

const VERSION: &str = "/_synapse/admin/v1/server_version";

/// Every spelling under which Synapse itself shows its metrics.
const METRICS: [&str; 7] = [
    "/_synapse/metrics",
    "/_synapse/metrics?x=1",
    "//_synapse/metrics",
    "///_synapse/metrics",
    "/_synapse/%6Detrics",
    "/_synapse/metrics/x",
    "/%5Fsynapse/m%65trics",
];

#[test]
fn nobody_reaches_what_is_internal() {
    let world = world();
    let admin = &world.admin.access_token;
    let whois = |prefix: &str| format!("/_matrix/client/{prefix}/admin/whois/{}", world.admin.user_id);
    let version = world.direct(&Request::new("GET", VERSION));
    assert!(version.text().contains("1.163.2"), "anybody learns the version: {}", version.text());
    for path in METRICS {
        let open = world.direct(&Request::new("GET", path));
        assert!(open.status == 200 && open.text().contains("synapse_build_info"), "{path}: {}", open.status);
    }
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        let mut paths: Vec<String> = METRICS.map(str::to_owned).into();
        paths.extend([VERSION.to_owned(), "/_synapse/admin/v2/users".to_owned(), "/health".to_owned()]);
        paths.extend(["api/v1", "r0", "v3", "unstable"].map(whois));
        for path in &paths {
            for method in ["GET", "HEAD"] {
                let request = Request::new(method, path.as_str()).bearer(admin);
                assert_eq!(world.direct(&request).status, 200, "{method} {path}");
                let closed = through(&gateway, &request);
                assert_eq!(closed.status, 404, "{policy} {method} {path}: {}", closed.text());
                if method == "GET" {
                    assert_eq!(closed.errcode().as_deref(), Some("M_UNRECOGNIZED"), "{policy} {path}");
                }
            }
        }
        // What this Synapse does not serve is refused here all the same.
        for path in [
            "/_synapse/m%61s/provision_user",
            "/_synapse/mas/x",
            "/_synapse/replication/x",
            "/_synapse/%72eplication/x",
        ] {
            let closed = through(&gateway, &Request::new("POST", path).json(&json!({})));
            assert_eq!((closed.status, closed.errcode().as_deref()), (404, Some("M_UNRECOGNIZED")), "{policy} {path}");
        }
        let records = gateway.records(paths.len() * 2 + 4);
        assert!(records.iter().all(|record| record["decision"] == "deny"), "{policy}: {}", gateway.written());
        assert!(records.iter().any(|record| record["rule"] == "internal_endpoints"), "{policy}");
    }
}

#[test]
fn listed_networks_administer() {
    let world = world();
    for policy in POLICIES {
        let gateway = |rule: &str| {
            let policy = format!("{}\n[rules.internal_endpoints]\n{rule}", extends(policy));
            Gateway::start(&world.synapse.base_url(), &policy)
        };
        let open = gateway("networks = [\"127.0.0.0/8\"]");
        let whois = format!("/_matrix/client/v3/admin/whois/{}", world.admin.user_id);
        for path in ["/_synapse/admin/v2/users?limit=3", VERSION, &whois] {
            let request = Request::new("GET", path).bearer(&world.admin.access_token);
            let passed = through_internal(&open, &request);
            assert_eq!(passed.status, 200, "{policy} {path}: {}", passed.text());
        }
        // An administrator's work goes both ways.
        let name = format!("@made-by-admin-{policy}:hs.localtest");
        let made = Request::new("PUT", format!("/_synapse/admin/v2/users/{name}"))
            .bearer(&world.admin.access_token)
            .json(&json!({"password": "a password"}));
        let made = through(&open, &made);
        assert_eq!((made.status, &made.json()["name"]), (201, &json!(name)), "{policy}");
        // A network is no password: Synapse asks for one.
        let stranger = through(&open, &Request::new("GET", "/_synapse/admin/v2/users"));
        assert_eq!((stranger.status, stranger.errcode().as_deref()), (401, Some("M_MISSING_TOKEN")), "{policy}");

        assert!(open_metrics(&open, METRICS[0]), "{policy}");
        for path in &METRICS[2..] {
            // One spelling is enough; `/x` behind it is the same resource under the same name.
            assert!(!open_metrics(&open, path) || *path == "/_synapse/metrics/x", "{policy} {path}");
        }
        let named = gateway("networks = [\"127.0.0.0/8\"]\nendpoints = [\"synapse_admin\"]");
        let users = Request::new("GET", "/_synapse/admin/v2/users").bearer(&world.admin.access_token);
        assert_eq!((through(&named, &users).status, open_metrics(&named, METRICS[0])), (200, false), "{policy}");
        let others = gateway("networks = [\"10.0.0.0/8\"]");
        assert_eq!((through(&others, &users).status, open_metrics(&others, METRICS[0])), (404, false), "{policy}");
    }
}

/// An answer that may name the version, since it is asked for.
#[track_caller]
fn through_internal(gateway: &Gateway, request: &Request) -> mantlet_testkit::http::Response {
    let response = request.send(gateway.addr());
    assert!(response.header("server").is_none(), "{response:?}");
    response
}

fn open_metrics(gateway: &Gateway, path: &str) -> bool {
    let answer = through_internal(gateway, &Request::new("GET", path));
    answer.status == 200 && answer.text().contains("synapse_build_info")
}
