//! L27: strangers learn no room's id from its alias, nor whether it is published, nor its name from a summary.

use mantlet_testkit::http::Request;

use crate::support::Gateway;
use crate::world::{assert_names_no_software, extends, through, world};

const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

/// Every path that tells of the world's room, each with what it tells.
fn paths() -> Vec<(String, String)> {
    let (alias, room) = ("%23lobby%3Ahs.localtest", &world().room);
    let mut paths = Vec::new();
    for prefix in ["api/v1", "r0", "v3", "unstable"] {
        paths.push((format!("/_matrix/client/{prefix}/directory/room/{alias}"), room.clone()));
        paths.push((format!("/_matrix/client/{prefix}/directory/list/room/{room}"), "\"public\"".to_owned()));
    }
    for identifier in [alias, room] {
        // Any character may stand where Synapse's regular expression has a dot.
        for base in ["im.nheko.summary", "imXnheko/summary", "im~nheko~summary"] {
            paths.push((format!("/_matrix/client/unstable/{base}/summary/{identifier}"), "\"Lobby\"".to_owned()));
            paths.push((format!("/_matrix/client/unstable/{base}/rooms/{identifier}/summary"), "\"Lobby\"".to_owned()));
        }
        paths.push((format!("/_matrix/client/v1/room_summary/{identifier}"), "\"Lobby\"".to_owned()));
    }
    paths
}

#[test]
fn strangers_learn_nothing_of_a_room() {
    let world = world();
    let gateway = world.gateway("strict");
    for (path, told) in paths() {
        let shown: [(&str, Request); 3] = [
            ("no token", Request::new("GET", path.as_str())),
            ("garbage", Request::new("GET", path.as_str()).bearer("garbage")),
            ("garbage in the query", Request::new("GET", format!("{path}?access_token=garbage"))),
        ];
        for (form, request) in shown {
            let open = world.direct(&request);
            // Only the summary looks at a token at all, and refuses one that is wrong.
            if !(path.contains("summary") && form != "no token") {
                assert!(open.status == 200 && open.text().contains(&told), "{path}, {form}: {}", open.text());
            }
            let closed = through(&gateway, &request);
            assert_eq!(closed.status, 401, "{path}, {form}: {}", closed.text());
            let whoami = match form {
                "no token" => Request::new("GET", WHOAMI),
                _ => Request::new("GET", WHOAMI).bearer("garbage"),
            };
            assert_eq!(closed.json(), world.direct(&whoami).json(), "{path}, {form}");
        }
        let head = Request::new("HEAD", path.as_str());
        assert_eq!(world.direct(&head).status, 200, "HEAD {path}");
        let closed = through(&gateway, &head);
        assert_eq!((closed.status, closed.body.len()), (401, 0), "HEAD {path}");
    }
}

#[test]
fn users_and_guests_find_rooms_by_their_alias() {
    let world = world();
    let (user, guest) = (world.user("directory-user"), world.synapse.register_guest().unwrap());
    let gateway = world.gateway("strict");
    for (path, told) in paths() {
        for token in [&user.access_token, &guest.access_token] {
            for request in [
                Request::new("GET", path.as_str()).bearer(token),
                Request::new("GET", format!("{path}?access_token={token}")),
            ] {
                let (open, passed) = (world.direct(&request), through(&gateway, &request));
                assert!(passed.status == 200 && passed.text().contains(&told), "{request:?}: {}", passed.text());
                assert_eq!(passed.json(), open.json(), "{request:?}");
            }
        }
        assert_eq!(through(&gateway, &Request::new("HEAD", path.as_str()).bearer(&user.access_token)).status, 200);
    }
    // Under `balanced` nobody is asked for a token.
    let balanced = world.gateway("balanced");
    for (path, told) in paths() {
        let passed = through(&balanced, &Request::new("GET", path.as_str()));
        assert!(passed.status == 200 && passed.text().contains(&told), "{path}: {}", passed.text());
    }
}

#[test]
fn other_servers_resolve_an_alias_where_the_policy_lets_them() {
    let world = world();
    let uri = "/_matrix/federation/v1/query/directory?room_alias=%23lobby%3Ahs.localtest";
    let open = world.signed(world.synapse.addr(), "GET", uri, None);
    assert_eq!(open.json()["room_id"], *world.room);
    let passed = world.signed(world.gateway("strict").addr(), "GET", uri, None);
    assert_eq!((passed.status, passed.text()), (200, open.text()));

    let policy = format!("{}\n[rules.room_directory]\nfederation = \"deny\"", extends("strict"));
    let gateway = Gateway::start(&world.synapse.base_url(), &policy);
    for method in ["GET", "HEAD"] {
        let closed = world.signed(gateway.addr(), method, uri, None);
        assert_names_no_software(&closed);
        assert_eq!(closed.status, 403, "{method}: {}", closed.text());
    }
    assert_eq!(world.signed(gateway.addr(), "GET", uri, None).errcode().as_deref(), Some("M_FORBIDDEN"));
    let odd = uri.replace("query/directory", "query/d%69rectory");
    assert_eq!(world.signed(world.synapse.addr(), "GET", &odd, None).json()["room_id"], *world.room);
    assert_eq!(world.signed(gateway.addr(), "GET", &odd, None).status, 404);
}
