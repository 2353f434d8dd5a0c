//! Behind nginx, set up as our own page says: each client has its own address and its own limits at Synapse.

use std::net::{IpAddr, Ipv4Addr};

use mantlet_testkit::http::{Request, Response};
use mantlet_testkit::nginx::Nginx;
use mantlet_testkit::peer::Peer;
use mantlet_testkit::recorder::Recorder;
use mantlet_testkit::synapse::{Options, Role, Synapse};
use mantlet_testkit::tool::Tool;
use serde_json::json;

use crate::support::Gateway;

const PAGE: &str = include_str!("../../examples/nginx/README.md");
const TRUSTED: &str = "[forwarded]\ntrusted_hops = [\"127.0.0.1\"]";
const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

/// nginx before a gateway, with the block that the page shows.
fn before(gateway: &Gateway) -> Nginx {
    let block = PAGE.split_once("```nginx\n").and_then(|(_, rest)| rest.split_once("```")).expect("a block").0;
    let upstream = "http://127.0.0.1:8480;";
    assert!(block.contains(upstream), "{block}");
    Nginx::start(&block.replace(upstream, &format!("{};", gateway.url()))).unwrap()
}

fn login(from: IpAddr, to: &Nginx) -> Response {
    let body = json!({
        "type": "m.login.password", "password": "a password", "identifier": {"type": "m.id.user", "user": "alice"},
    });
    let request = Request::new("POST", "/_matrix/client/v3/login").json(&body);
    // What a client makes up does not help it.
    request.header("X-Forwarded-For", "203.0.113.7").header("X-Real-IP", "203.0.113.7").send_from(from, to.addr())
}

/// Logs in until Synapse has enough, and returns how often it went well.
fn exhaust(from: IpAddr, to: &Nginx) -> usize {
    let logins = (0..10).map(|_| login(from, to)).take_while(|answer| match answer.status {
        200 => true,
        429 => {
            assert_eq!(answer.errcode().as_deref(), Some("M_LIMIT_EXCEEDED"));
            false
        }
        status => panic!("{status}: {}", answer.text()),
    });
    logins.count()
}

fn synapse() -> Synapse {
    let synapse = Synapse::start(Options {
        server_name: "nginx.localtest".into(),
        unix_socket: false,
        extra_yaml: json!({
            "rc_login": {
                "address": {"per_second": 0.0001, "burst_count": 3},
                "account": {"per_second": 10000, "burst_count": 10000},
                "failed_attempts": {"per_second": 10000, "burst_count": 10000},
            },
        })
        .to_string(),
        ..Options::default()
    });
    let synapse = synapse.unwrap();
    synapse.register("alice", "a password", Role::User).unwrap();
    synapse
}

#[test]
fn one_client_exhausts_its_limit_and_another_logs_in() {
    if Tool::Nginx.left_out().unwrap() {
        return;
    }
    let synapse = synapse();
    let recorder = Recorder::start(synapse.addr()).unwrap();
    let upstream = format!("http://{}", recorder.addr());
    let gateway = Gateway::with(&upstream, "extends = \"balanced\"", TRUSTED);
    let nginx = before(&gateway);
    assert_eq!(exhaust(ONE, &nginx), 3);
    assert_eq!(login(OTHER, &nginx).status, 200);
    assert_eq!(login(ONE, &nginx).status, 429, "it stays so");
    let seen = recorder.take();
    assert!(seen.iter().any(|request| request.header_all("x-forwarded-for") == ["127.0.0.3"]));
    assert!(
        seen.iter().all(|request| ["127.0.0.2", "127.0.0.3"].contains(&request.header("x-forwarded-for").unwrap()))
    );

    // Where nginx is not trusted, it is the only client there is.
    let untrusted = Gateway::start(&upstream, "extends = \"balanced\"");
    let nginx = before(&untrusted);
    assert_eq!(exhaust(ONE, &nginx), 3);
    assert_eq!(login(OTHER, &nginx).status, 429);
    assert!(recorder.take().iter().all(|request| request.header_all("x-forwarded-for") == ["127.0.0.1"]));
}

#[test]
fn what_a_server_signs_and_a_client_uploads_passes_nginx_and_mantlet_unchanged() {
    if Tool::Nginx.left_out().unwrap() {
        return;
    }
    let peer = Peer::start().unwrap();
    let synapse = Synapse::start(Options {
        server_name: "signed.localtest".into(),
        federation_ca: Some(peer.ca_path().to_owned()),
        unix_socket: false,
        ..Options::default()
    });
    let synapse = synapse.unwrap();
    let alice = synapse.register("alice", "a password", Role::User).unwrap();
    synapse.set_display_name(&alice, "Alice").unwrap();
    let gateway = Gateway::with(&synapse.base_url(), "extends = \"balanced\"", TRUSTED);
    let nginx = before(&gateway);
    let user = alice.user_id.replace('@', "%40").replace(':', "%3A");
    let uris = [
        format!("/_matrix/federation/v1/query/profile?x=%2F+%2f;y=%3a&user_id={user}"),
        format!("/_matrix/federation/v1/event/%24a%2Fb+c;d%3A{}", synapse.server_name()),
        "/_matrix/federation/v1/backfill/!a:b/?v=%24x&limit=1".to_owned(),
    ];
    for uri in uris {
        let open = peer.request(synapse.addr(), "GET", &uri, None, synapse.server_name()).unwrap();
        let passed = peer.request(nginx.addr(), "GET", &uri, None, synapse.server_name()).unwrap();
        assert_ne!(open.status, 401, "{uri}: {}", open.text());
        assert_eq!((passed.status, passed.text()), (open.status, open.text()), "{uri}");
    }

    let picture: Vec<u8> = (0..3_000_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let upload = Request::new("POST", "/_matrix/media/v3/upload").bearer(&alice.access_token);
    let upload = upload.header("Content-Type", "application/octet-stream").body(picture.clone()).send(nginx.addr());
    let uri = upload.json()["content_uri"].as_str().unwrap().to_owned();
    let download = format!("/_matrix/client/v1/media/download/{}", uri.strip_prefix("mxc://").unwrap());
    let download = Request::new("GET", download).bearer(&alice.access_token).send(nginx.addr());
    assert!(download.status == 200 && download.body == picture, "{}", download.status);
}
