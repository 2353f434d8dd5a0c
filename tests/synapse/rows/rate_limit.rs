//! Whoever asks too often is told so as Synapse tells it, and waits as long as it is told.

use std::net::{IpAddr, Ipv4Addr};

use mantlet_testkit::http::{Request, Response};
use serde_json::json;

use crate::cors::fields;
use crate::support::Gateway;
use crate::world::{PASSWORD, extends, through, world};

const LOGIN: &str = "/_matrix/client/v3/login";
const RULE: &str = "[[rules.rate_limit]]\nendpoints = [\"login\"]\nrequests = 2\nper = \"1h\"";

/// What Synapse itself says to whoever asks too often.
fn synapses_own() -> Response {
    let path = "/_matrix/client/v1/register/m.login.registration_token/validity?token=x";
    let ask = || world().direct(&Request::new("GET", path).header("Origin", "https://app.example"));
    (0..10).map(|_| ask()).find(|answer| answer.status != 200).expect("Synapse limits this")
}

fn login(user: &str) -> Request {
    let body = json!({
        "type": "m.login.password", "password": PASSWORD, "identifier": {"type": "m.id.user", "user": user},
    });
    Request::new("POST", LOGIN).header("Origin", "https://app.example").json(&body)
}

fn keys(response: &Response) -> Vec<String> {
    response.json().as_object().unwrap().keys().cloned().collect()
}

/// The fields, without how long to wait.
fn but_the_wait(response: &Response) -> Vec<(String, String)> {
    fields(response).into_iter().filter(|(name, _)| name != "retry-after").collect()
}

#[test]
fn a_client_hears_it_as_from_synapse() {
    let world = world();
    let (alice, own) = (world.user("rate-alice"), synapses_own());
    assert_eq!((own.status, own.errcode().as_deref()), (429, Some("M_LIMIT_EXCEEDED")), "{}", own.text());
    for _ in 0..3 {
        assert_eq!(world.direct(&login("rate-alice")).status, 200, "Synapse does not limit this");
    }
    for policy in ["balanced", "strict"] {
        let gateway = Gateway::start(&world.synapse.base_url(), &format!("{}\n{RULE}", extends(policy)));
        assert_eq!(through(&gateway, &login("rate-alice")).json()["user_id"], alice.user_id, "{policy}");
        assert_eq!(through(&gateway, &login("rate-alice")).status, 200, "{policy}");
        let limited = through(&gateway, &login("rate-alice"));
        assert_eq!((limited.status, limited.errcode()), (own.status, own.errcode()), "{policy}: {}", limited.text());
        assert_eq!(keys(&limited), keys(&own), "{policy}: {}", limited.text());
        assert_eq!(but_the_wait(&limited), but_the_wait(&own), "{policy}");
        let wait = limited.json()["retry_after_ms"].as_u64().unwrap();
        assert!((1..=1_800_000).contains(&wait), "{policy}: {wait}");
        let seconds = |answer: &Response| answer.header("retry-after").and_then(|text| text.parse::<u64>().ok());
        assert!(seconds(&own).is_some() && seconds(&limited) == Some(wait.div_ceil(1000)), "{policy}: {limited:?}");

        // Another way to ask is the same endpoint, another client is another one, and other endpoints go on.
        let old = Request::new("POST", LOGIN.replace("v3", "r0")).json(&json!({}));
        assert_eq!(through(&gateway, &old).status, 429, "{policy}");
        let elsewhere = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
        assert_eq!(login("rate-alice").send_from(elsewhere, gateway.addr()).status, 200, "{policy}");
        let sync = Request::new("GET", "/_matrix/client/v3/sync").bearer(&alice.access_token);
        assert_eq!(through(&gateway, &sync).status, 200, "{policy}");
        // A browser may still ask whether it may.
        let preflight = Request::new("OPTIONS", LOGIN).header("Origin", "https://app.example");
        assert_eq!(through(&gateway, &preflight).status, 204, "{policy}");
    }
}

#[test]
fn users_behind_one_address_are_told_apart_by_their_token() {
    let world = world();
    let rule = "[[rules.rate_limit]]\nendpoints = [\"whoami\"]\nrequests = 2\nper = \"1h\"\nby = \"token\"";
    let gateway = Gateway::start(&world.synapse.base_url(), &format!("{}\n{rule}", extends("balanced")));
    let whoami = |token: &str| {
        let request = Request::new("GET", "/_matrix/client/v3/account/whoami").bearer(token);
        through(&gateway, &request).status
    };
    let (bob, carol) = (world.user("rate-bob"), world.user("rate-carol"));
    let (bob, carol) = (&bob.access_token, &carol.access_token);
    assert_eq!([whoami(bob), whoami(bob), whoami(bob), whoami(carol)], [200, 200, 429, 200]);
}
