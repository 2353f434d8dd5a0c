//! Web clients are told by their browser only what CORS fields allow: on preflights, and on our refusals as on Synapse's.

use mantlet_testkit::http::{Request, Response};

use crate::world::{POLICIES, through, world};

fn preflight(path: &str, method: &str) -> Request {
    Request::new("OPTIONS", path)
        .header("Origin", "https://app.example")
        .header("Access-Control-Request-Method", method)
        .header("Access-Control-Request-Headers", "authorization, content-type")
}

/// The fields of an answer by name, without those that are another one each time, or the server's own name.
pub fn fields(response: &Response) -> Vec<(String, String)> {
    let own = ["date", "server", "content-length", "transfer-encoding", "connection", "x-mantlet-rule"];
    let fields = response.headers.iter().map(|(name, value)| (name.to_lowercase(), value.clone()));
    let mut fields: Vec<_> = fields.filter(|(name, _)| !own.contains(&name.as_str())).collect();
    fields.sort();
    fields
}

#[test]
fn a_browser_may_ask_for_what_is_protected() {
    let world = world();
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        for (path, method) in [
            ("/_matrix/client/v3/publicRooms", "GET"),
            ("/_matrix/client/v3/publicRooms", "POST"),
            ("/_matrix/client/v3/profile/@alice:hs.localtest", "GET"),
            ("/_matrix/client/v3/profile/@alice:hs.localtest/displayname", "PUT"),
            ("/_matrix/client/v3/account/3pid/unbind", "POST"),
            ("/_matrix/identity/v2/3pid/unbind", "POST"),
            ("/_matrix/client/v3/sync", "GET"),
            ("/_matrix/federation/v1/publicRooms", "GET"),
            ("/_matrix/federation/v1/version", "GET"),
        ] {
            let request = preflight(path, method);
            let (open, passed) = (world.direct(&request), through(&gateway, &request));
            assert_eq!((open.status, passed.status), (204, 204), "{policy} {path}: {}", passed.text());
            assert_eq!(fields(&passed), fields(&open), "{policy} {path}");
            let cors = |name: &str| passed.header(name).unwrap_or_default().to_lowercase();
            assert_eq!(cors("access-control-allow-origin"), "*", "{policy} {path}");
            assert!(cors("access-control-allow-methods").contains(&method.to_lowercase()), "{policy} {path}");
            assert!(cors("access-control-allow-headers").contains("authorization"), "{policy} {path}");
        }
    }
}

#[test]
fn a_refusal_has_the_fields_of_synapses_own() {
    let world = world();
    let guest = world.synapse.register_guest().unwrap();
    let whoami = world.direct(&Request::new("GET", "/_matrix/client/v3/account/whoami"));
    assert_eq!(whoami.status, 401);
    assert!(fields(&whoami).len() >= 6, "{:?}", fields(&whoami));
    let get = |path: &str| Request::new("GET", path).header("Origin", "https://app.example");
    let unbind = Request::new("POST", "/_matrix/client/v3/account/3pid/unbind");
    for policy in POLICIES {
        let gateway = world.gateway(policy);
        for (request, status) in [
            (get("/_matrix/client/v3/publicRooms"), 401),
            (get("/_matrix/client/v3/publicRooms").bearer("garbage"), 401),
            (get("/_matrix/client/v3/profile/@alice:hs.localtest"), 401),
            (get("/_matrix/client/v3/profile/@alice:hs.localtest").bearer(&guest.access_token), 403),
            (get("/_matrix/client/v3/profile/@alice:hs.localtest/display%6Eame"), 404),
            (get("/_matrix/federation/v1/publicRooms"), 403),
            (get("/_synapse/admin/v1/server_version"), 404),
            (unbind.clone(), 404),
        ] {
            let refusal = through(&gateway, &request);
            assert_eq!(refusal.status, status, "{policy} {request:?}: {}", refusal.text());
            assert_eq!(fields(&refusal), fields(&whoami), "{policy} {request:?}");
        }
    }
}
