//! Several upstreams: who answers what, equal servers, and servers that are not there.

use std::net::{SocketAddr, TcpListener};

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::{Connection, Request, json_response, response};
use serde_json::json;

use crate::common::*;
use crate::process::Site;
use crate::support::Gateway;

const ONE_WORKER: &str = "[workers]\ncount = 1\n";

/// A server that names itself.
fn named(name: &'static str) -> Backend {
    backend(move |_| Answer::Bytes(response(200, &[], name)))
}

/// Taken and given back: nobody listens there, and the system gives it to nobody else so soon.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// `[upstream.NAME]`
fn upstream(name: &str, servers: &[SocketAddr]) -> String {
    let servers: Vec<_> = servers.iter().map(|server| format!("\"http://{server}\"")).collect();
    format!("[upstream.{name}]\nservers = [{}]\n", servers.join(", "))
}

#[test]
fn the_first_route_that_matches_is_taken_and_all_else_goes_to_synapse() {
    let (synapse, media, mas, worker) = (named("synapse"), named("media"), named("mas"), named("worker"));
    let routes = format!(
        "{ONE_WORKER}{}{}{}
        [[route]]
        path = '/_matrix/client/[^/]+/login'
        methods = ['POST']
        upstream = 'mas'
        [[route]]
        endpoint = ['sync', 'media_get_config']
        upstream = 'worker'
        [[route]]
        path = '/_matrix/media/.*'
        upstream = 'media'
        [[route]]
        endpoint = 'get_supported_versions'
        methods = ['GET']
        upstream = 'worker'
        ",
        upstream("media", &[media.addr()]),
        upstream("mas", &[mas.addr()]),
        upstream("worker", &[worker.addr()]),
    );
    let gateway = Gateway::with(&url(&synapse), OPEN, &routes);
    for (method, target, expected) in [
        ("POST", "/_matrix/client/v3/login", "mas"),
        ("POST", "/_matrix/client/v3/login?x=/_matrix/media/", "mas"),
        ("POST", "/_matrix/client/v3/%6Cogin", "mas"),
        ("POST", "/x/_matrix/client/v3/login", ""),
        ("POST", "/_matrix/client/v3/login/", "synapse"),
        ("GET", "/_matrix/client/v3/login", "synapse"),
        ("GET", "/_matrix/client/r0/sync?timeout=1", "worker"),
        ("GET", "/_matrix/media/v3/config", "worker"),
        ("GET", "/_matrix/media/v3/download/hs/x", "media"),
        ("OPTIONS", "/_matrix/media/v3/upload", "media"),
        ("GET", VERSIONS, "worker"),
        ("POST", VERSIONS, "synapse"),
        ("GET", "/_matrix/client/v3/joined_rooms", "synapse"),
    ] {
        let answer = Request::new(method, target).send(gateway.addr());
        match expected {
            "" => assert_matrix_error(&answer, 404, "M_UNRECOGNIZED"),
            _ => assert_eq!(answer.text(), expected, "{method} {target}"),
        }
    }
    let seen = worker.requests().len();
    Request::new("HEAD", VERSIONS).send(gateway.addr());
    assert_eq!(worker.requests().len(), seen + 1, "HEAD goes where GET goes");
    let record = gateway.records(14);
    assert_eq!((&record[0]["upstream"], &record[3]["upstream"]), (&json!("mas"), &json!(null)));
    assert_eq!(gateway.metric("mantlet_upstream_duration_seconds_count{upstream=\"worker\"}"), 4.0);
    assert_eq!(gateway.metric("mantlet_upstream_connections{state=\"open\",upstream=\"mas\"}"), 1.0);
}

#[test]
fn the_policy_judges_before_any_route_and_asks_synapse_about_tokens() {
    let whoami = |request: &mantlet_testkit::recorder::RecordedRequest| {
        Answer::Bytes(match request.header("authorization") {
            Some("Bearer good") => json_response(200, &json!({"user_id": "@a:hs"})),
            _ => json_response(401, &json!({"errcode": "M_UNKNOWN_TOKEN", "error": "no"})),
        })
    };
    let (synapse, worker) = (backend(whoami), named("worker"));
    let routes = format!("{}[[route]]\npath = '/.*'\nupstream = 'worker'\n", upstream("worker", &[worker.addr()]));
    let gateway = Gateway::with(&url(&synapse), "extends = \"balanced\"", &routes);
    let rooms = Request::new("GET", "/_matrix/client/v3/publicRooms").header("Origin", "https://telltale.example");
    assert_matrix_error(&rooms.send(gateway.addr()), 401, "M_MISSING_TOKEN");
    assert_matrix_error(&rooms.clone().bearer("bad").send(gateway.addr()), 401, "M_UNKNOWN_TOKEN");
    for closed in ["/_synapse/admin/v1/users", "/_synapse/metrics", "/metrics", "/"] {
        assert_eq!(Request::new("GET", closed).send(gateway.addr()).status, 404, "{closed}");
    }
    assert_eq!((synapse.requests().len(), worker.requests().len()), (1, 0));
    assert_eq!(rooms.bearer("good").send(gateway.addr()).text(), "worker");
    let seen = worker.last().unwrap();
    assert_eq!((seen.header("origin"), seen.header("x-forwarded-for")), (None, Some("127.0.0.1")));
    assert!(synapse.requests().iter().all(|request| request.target_text().contains("/whoami")));
}

#[test]
fn an_upstream_that_is_down_fails_for_its_routes_only() {
    let synapse = named("synapse");
    let routes = format!("{}[[route]]\nendpoint = 'sync'\nupstream = 'worker'\n", upstream("worker", &[nobody()]));
    let gateway = Gateway::with(&url(&synapse), OPEN, &routes);
    assert_matrix_error(&Request::new("GET", "/_matrix/client/v3/sync").send(gateway.addr()), 502, "M_UNKNOWN");
    assert_eq!(Request::new("GET", VERSIONS).send(gateway.addr()).text(), "synapse");
    let record = &gateway.records(1)[0];
    assert_eq!((&record["upstream"], &record["error"]), (&json!("worker"), &json!("connect")));
    assert_eq!(gateway.metric("mantlet_upstream_errors_total{kind=\"connect\",upstream=\"worker\"}"), 1.0);
    assert_eq!(gateway.metric("mantlet_upstream_errors_total{kind=\"connect\",upstream=\"synapse\"}"), 0.0);
}

#[test]
fn readiness_names_the_upstream_that_has_no_server() {
    let (synapse, up) = (homeserver(), homeserver());
    let down = nobody();
    let routes = format!(
        "{}{}[[route]]\nendpoint = 'sync'\nupstream = 'one'\n[[route]]\nendpoint = 'login'\nupstream = 'two'\n",
        upstream("one", &[nobody(), up.addr()]),
        upstream("two", &[down]),
    );
    let gateway = Gateway::with(&url(&synapse), OPEN, &routes);
    let ready = || Request::new("GET", "/readyz").send(gateway.admin());
    let answer = ready();
    let reason = answer.json()["reason"].as_str().unwrap().to_owned();
    assert_eq!(answer.status, 503);
    assert!(reason.contains("The upstream two cannot be reached") && !reason.contains("one"), "{reason}");
    let two = Backend::start_at(down, |_| ok()).unwrap();
    assert_eq!(ready().status, 200);
    drop((two, synapse));
    let reason = ready().json()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("homeserver cannot be reached") && reason.contains("The upstream two"), "{reason}");
}

#[test]
fn equal_servers_share_what_comes() {
    let servers = [homeserver(), homeserver(), homeserver()];
    let more = format!(
        "{ONE_WORKER}{}[[route]]\nendpoint = 'get_supported_versions'\nupstream = 'workers'\n",
        upstream("workers", &[servers[0].addr(), servers[1].addr(), servers[2].addr()])
    );
    let gateway = Gateway::with("http://127.0.0.1:1", OPEN, &more);
    for _ in 0..30 {
        assert_eq!(Request::new("GET", VERSIONS).send(gateway.addr()).status, 200);
    }
    let shares: Vec<_> = servers.iter().map(|server| server.requests().len()).collect();
    assert_eq!(shares, [10, 10, 10]);
}

#[test]
fn a_server_that_is_busy_gets_less() {
    let slow = backend(|request| match request.target_text().as_str() {
        VERSIONS => ok(),
        _ => Answer::Hang,
    });
    let quick = backend(|_| Answer::Bytes(response(200, &[], "quick")));
    let more = format!(
        "{ONE_WORKER}{}[[route]]\npath = '/.*'\nupstream = 'workers'\n",
        upstream("workers", &[slow.addr(), quick.addr()])
    );
    let gateway = Gateway::with("http://127.0.0.1:1", OPEN, &more);
    let mut held = Connection::open(gateway.addr()).unwrap();
    held.write(b"GET /_matrix/client/v3/sync HTTP/1.1\r\nHost: hs\r\n\r\n").unwrap();
    slow.wait_requests(1, SOON).unwrap();
    for _ in 0..10 {
        assert_eq!(Request::new("GET", VERSIONS).send(gateway.addr()).text(), "quick");
    }
    drop(held);
    slow.wait_none_open(SOON).unwrap();
    for _ in 0..10 {
        Request::new("GET", VERSIONS).send(gateway.addr());
    }
    assert_eq!((slow.requests().len(), quick.requests().len()), (6, 15), "what is over counts no more");
}

#[test]
fn a_server_that_is_gone_is_left_alone_and_nobody_notices() {
    let up = homeserver();
    let servers = format!("http://{}\", \"http://{}", nobody(), up.addr());
    let gateway = Gateway::with(&servers, OPEN, ONE_WORKER);
    for n in 0..20 {
        let body = format!("body {n}").repeat(1000);
        let request = Request::new("POST", "/_matrix/client/v3/login").body(body.clone());
        assert_eq!(request.send(gateway.addr()).status, 200);
        assert!(up.last().unwrap().body == body.as_bytes(), "{n}");
    }
    assert_eq!(up.requests().len(), 20);
    let failovers = gateway.metric("mantlet_upstream_failovers_total{upstream=\"synapse\"}");
    let taken_out = gateway.metric("mantlet_upstream_taken_out_total{upstream=\"synapse\"}");
    // A slow machine may see it tried again.
    assert!((1.0..5.0).contains(&failovers) && taken_out == failovers, "{failovers} {taken_out}");
}

#[test]
fn a_request_is_given_to_one_other_server_and_not_to_a_third() {
    let up = homeserver();
    let servers = format!("http://{}\", \"http://{}\", \"http://{}", nobody(), nobody(), up.addr());
    let gateway = Gateway::with(&servers, OPEN, ONE_WORKER);
    assert_matrix_error(&Request::new("GET", VERSIONS).send(gateway.addr()), 502, "M_UNKNOWN");
    assert_eq!(up.connections(), 0);
    assert_eq!(Request::new("GET", VERSIONS).send(gateway.addr()).status, 200, "both are out now");
}

#[test]
fn what_was_sent_to_one_server_is_not_sent_to_another() {
    let (broken, up) = (backend(|_| Answer::Close), homeserver());
    let servers = format!("http://{}\", \"http://{}", broken.addr(), up.addr());
    let gateway = Gateway::with(&servers, OPEN, ONE_WORKER);
    let request = Request::new("PUT", "/_matrix/client/v3/rooms/!a:hs/send/m.room.message/1").body("{}");
    assert_matrix_error(&request.send(gateway.addr()), 502, "M_UNKNOWN");
    assert_eq!((broken.requests().len(), up.connections()), (1, 0));
}

#[test]
fn explain_names_the_upstream_and_check_what_is_wrong() {
    let media = "[upstream.media]\nservers = [\"http://127.0.0.1:8009\"]\n";
    let route = "[[route]]\npath = \"/_matrix/media/.*\"\nupstream = \"media\"\n";
    let site = Site::new("http://127.0.0.1:8008", OPEN, &format!("{media}{route}"));
    for (target, upstream) in [("/_matrix/media/v3/config", "media"), (VERSIONS, "synapse")] {
        let ran = site.run(&["explain", "GET", target]);
        assert!(ran.code == Some(0) && ran.out.ends_with(&format!("\nupstream        {upstream}\n")), "{ran:?}");
        let ran = site.run(&["explain", "GET", target, "--format", "json"]);
        let told: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(told["upstream"], upstream);
    }
    let refused = site.run(&["explain", "GET", "/_synapse/admin/v1/users"]);
    assert!(!refused.out.contains("\nupstream"), "{refused:?}");
    let alone = site.run(&["explain", "GET", VERSIONS, "--policy", "balanced"]);
    assert!(!alone.out.contains("\nupstream"), "{alone:?}");

    let wrong = format!("{media}[[route]]\npath = \"/a\"\nupstream = \"medai\"\n");
    let ran = Site::new("http://127.0.0.1:8008", OPEN, &wrong).run(&["check"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for told in
        ["mantlet.toml:15:12: there is no upstream \"medai\"\n    help: did you mean \"media\"?", "no route leads to"]
    {
        assert!(ran.err.contains(told), "{ran:?}");
    }
}

#[test]
fn another_servers_request_waits_for_a_restart_and_a_clients_does_not() {
    let addr = nobody();
    let gateway = Gateway::with(&format!("http://{addr}"), OPEN, "[limits]\npatience = \"30s\"");
    let waiting = || gateway.metric("mantlet_upstream_waiting{upstream=\"synapse\"}");
    let mut peer = Connection::open(gateway.addr()).unwrap();
    peer.set_timeout(3 * SOON);
    let head = "PUT /_matrix/federation/v1/send/1 HTTP/1.1\r\nHost: hs\r\nContent-Length: 4\r\n\r\nonce";
    peer.write(head.as_bytes()).unwrap();
    eventually("it waits", || waiting() == 1.0);
    for target in [VERSIONS, "/_matrix/client/v3/sync", "/_matrix/media/v3/config"] {
        assert_matrix_error(&Request::new("GET", target).send(gateway.addr()), 502, "M_UNKNOWN");
    }
    assert_eq!(waiting(), 1.0);
    let synapse = Backend::start_at(addr, |_| ok()).unwrap();
    assert_eq!(peer.response("PUT").unwrap().status, 200);
    assert_eq!(synapse.requests().iter().map(|request| &request.body[..]).collect::<Vec<_>>(), [b"once"]);
    assert_eq!(waiting(), 0.0);
    // Up and down again: what the pool still holds is no reason to fail.
    drop(synapse);
    peer.write(b"GET /_matrix/key/v2/server HTTP/1.1\r\nHost: hs\r\n\r\n").unwrap();
    eventually("it waits again", || waiting() == 1.0);
    let _synapse = Backend::start_at(addr, |_| ok()).unwrap();
    assert_eq!(peer.response("GET").unwrap().status, 200);
}

#[test]
fn patience_ends_and_so_does_a_wait_that_nobody_waits_for() {
    let addr = nobody();
    let key = "GET /_matrix/key/v2/server HTTP/1.1\r\nHost: hs\r\n\r\n";
    let gateway = Gateway::with(&format!("http://{addr}"), OPEN, "[limits]\npatience = \"300ms\"");
    let mut peer = Connection::open(gateway.addr()).unwrap();
    peer.write(key.as_bytes()).unwrap();
    assert_matrix_error(&peer.response("GET").unwrap(), 502, "M_UNKNOWN");
    assert!(gateway.records(1)[0]["duration_us"].as_u64().unwrap() >= 300_000);

    let gateway = Gateway::with(&format!("http://{addr}"), OPEN, "[limits]\npatience = \"60s\"");
    let waiting = || gateway.metric("mantlet_upstream_waiting{upstream=\"synapse\"}");
    let mut peer = Connection::open(gateway.addr()).unwrap();
    peer.write(key.as_bytes()).unwrap();
    eventually("it waits", || waiting() == 1.0);
    drop(peer);
    eventually("it waits no more", || waiting() == 0.0);
}

#[test]
fn a_request_that_was_sent_is_not_sent_again_however_patient() {
    let synapse = backend(|_| Answer::Close);
    let gateway = Gateway::with(&url(&synapse), OPEN, "[limits]\npatience = \"60s\"");
    let request = Request::new("PUT", "/_matrix/federation/v1/send/1").body("{}");
    assert_matrix_error(&request.send(gateway.addr()), 502, "M_UNKNOWN");
    assert_eq!(synapse.requests().len(), 1);
}

#[test]
fn an_upload_without_a_length_is_collected_and_gets_one() {
    let synapse = homeserver();
    let gateway = Gateway::with(&url(&synapse), OPEN, "[limits]\ncollect = \"8KiB\"");
    let chunks = |method: &str, target: &str, body: &[u8]| {
        let request = Request::new(method, target).header("Transfer-Encoding", "chunked");
        request.body(chunked(body, 1000)).send(gateway.addr())
    };
    for (method, target) in [
        ("POST", "/_matrix/media/v3/upload?filename=a"),
        ("POST", "/_matrix/media/r0/upload"),
        ("PUT", "/_matrix/media/v3/upload/hs/x"),
    ] {
        for size in [1, 999, 8 * 1024] {
            let body = noise(size);
            assert_eq!(chunks(method, target, &body).status, 200, "{method} {target} {size}");
            let seen = synapse.last().unwrap();
            assert_eq!(seen.header_all("content-length"), [size.to_string()]);
            assert_eq!(seen.header("transfer-encoding"), None);
            assert!(seen.body == body && seen.target_text() == target, "{method} {target} {size}");
        }
        synapse.take();
        assert_matrix_error(&chunks(method, target, &noise(8 * 1024 + 1)), 411, "M_MISSING_PARAM");
        assert!(synapse.requests().is_empty(), "{method} {target}");
    }
    let large = noise(100_000);
    let declared = Request::new("POST", "/_matrix/media/v3/upload").body(large.clone()).send(gateway.addr());
    assert!(declared.status == 200 && synapse.last().unwrap().body == large, "what declares its length just flows");
    assert_eq!(chunks("PUT", "/_matrix/client/v3/rooms/!a:hs/send/m.room.message/1", &large).status, 200);
    let seen = synapse.last().unwrap();
    assert!(seen.header("content-length").is_none() && seen.body == large, "what needs no length just flows");
    let records = gateway.records(14);
    let refused: Vec<_> = records.iter().filter(|record| record["status"] == 411).collect();
    assert!(refused.len() == 3 && refused.iter().all(|record| record["error"] == "length_required"), "{refused:?}");
}

#[test]
fn what_is_refused_is_not_collected() {
    let synapse = homeserver();
    let policy = "[[rules.closed_endpoint]]\nendpoint = \"media_create_content\"\n";
    let gateway = Gateway::start(&url(&synapse), policy);
    let mut client = Connection::open(gateway.addr()).unwrap();
    let head = "POST /_matrix/media/v3/upload HTTP/1.1\r\nHost: hs\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.write(format!("{head}5\r\nbegun").as_bytes()).unwrap();
    assert_matrix_error(&client.response("POST").unwrap(), 403, "M_FORBIDDEN");
}
