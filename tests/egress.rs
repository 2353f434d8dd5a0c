//! Real Synapses and the doors of the way out.
//!
//! Two without a network: each has its Mantlet's federation door, and whatever others do with each other, they do.
//!
//! The door is a unix socket, and so is the way in, so that each Synapse can have a network of its own in which there is nothing.
//! One is found by its `.well-known`, the other by a service record. One has the default notary, the other believes Mantlet's
//! signature only.
//!
//! One with a proxy door: it notifies push gateways, one that is looked into and one that is not, and unbinds at an identity server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "support/mod.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use mantlet::tls::ca;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::json_response;
use mantlet_testkit::recorder::RecordedRequest;
use mantlet_testkit::synapse::{Options, Role, Session, Synapse, has_namespaces};
use serde_json::{Value, json};

use support::Gateway;
use support::federation::{self, Directions, Notary, Outside, Side};
use support::outside::{Dns, TlsFront};

struct World {
    outside: Outside,
    sides: [Side; 2],
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        if !has_namespaces() {
            eprintln!("no namespaces here: what keeps Synapse from the network is Python alone");
        }
        let authority = Authority::new().unwrap();
        let outside = Outside::start(&authority, "hs1.test", "hs2.test");
        let sides = [("hs1.test", Notary::Default), ("hs2.test", Notary::Pinned)]
            .map(|(name, notary)| Side::start_behind_a_door(&authority, name, &outside, notary));
        World { outside, sides }
    })
}

/// Each side with the other.
fn directions() -> Directions<'static> {
    let [one, other] = &world().sides;
    [(one, other, "there"), (other, one, "back")]
}

#[test]
fn synapse_reaches_nobody_but_the_door() {
    federation::a_profile_is_read_from_the_other_server(
        directions().map(|(here, there, way)| (here, there, if way == "there" { "alone" } else { "alone-back" })),
    );
    for side in &world().sides {
        let attempts = side.attempts();
        let door = format!("socket.connect {}", side.door());
        assert!(!attempts.is_empty() && attempts.iter().all(|attempt| *attempt == door), "{attempts:#?}");
    }
}

#[test]
fn keys_come_from_their_servers_and_the_notary_hears_of_nobody() {
    federation::device_keys_are_found_on_the_other_server(
        directions().map(|(here, there, way)| (here, there, if way == "there" { "notary" } else { "notary-back" })),
    );
    for side in &world().sides {
        let is = |record: &Value, endpoint: &str| record["flow"] == "egress" && record["endpoint"] == endpoint;
        let records = side.records_with(|record| is(record, "key_get_remote_server_keys_batch"));
        let answered: Vec<_> = records.iter().filter(|record| is(record, "key_get_remote_server_keys_batch")).collect();
        for record in &answered {
            let said = ["upstream", "rule", "status"].map(|field| &record[field]);
            assert_eq!(said, [&json!("(key ring)"), &json!("notary"), &json!(200)], "{record}");
        }
        // What it did not believe, Synapse would ask for itself.
        assert!(!records.iter().any(|record| is(record, "key_get_server_keys")), "{records:#?}");
    }
    let outside = world().outside.asked();
    assert!(outside.iter().all(|request| request.header("host") != Some("matrix.org")));
    let looked_up = world().outside.looked_up();
    assert!(
        !looked_up.is_empty() && !looked_up.iter().any(|name| name.contains("matrix.org") || name.contains("invalid"))
    );
}

#[test]
fn the_ledger_says_whom_synapse_asked_and_what_for() {
    let named =
        || directions().map(|(here, there, way)| (here, there, if way == "there" { "ledger" } else { "ledger-back" }));
    federation::a_profile_is_read_from_the_other_server(named());
    federation::media_come_over_with_a_token_and_every_byte(named());
    for (here, there, notary) in [(0, 1, "matrix.org"), (1, 0, "notary.invalid")] {
        let [here, there] = [here, there].map(|side: usize| &world().sides[side]);
        let is = |contact: &Value, to: &str, cause: &str, verdict: &str| {
            ["destination", "cause", "verdict", "door"].map(|key| &contact[key]) == [to, cause, verdict, "federation"]
        };
        let wanted = [
            (there.name(), "federation", "passed"),
            (there.name(), "media", "passed"),
            // By the key ring, for Synapse.
            (there.name(), "keys", "passed"),
            (notary, "keys", "answered"),
        ];
        let contacts = contacts_with(
            || here.contacts(),
            |contacts| {
                wanted.iter().all(|(to, cause, verdict)| contacts.iter().any(|contact| is(contact, to, cause, verdict)))
            },
        );
        let media = contacts.iter().find(|contact| is(contact, there.name(), "media", "passed")).unwrap();
        assert!(media["bytes_in"].as_u64().unwrap() >= 3_000_000, "{media}");
        // Nobody else: no notary, and nobody whom this test did not name.
        let known = |contact: &Value| {
            let to = contact["destination"].as_str().unwrap();
            is(contact, notary, "keys", "answered") || to.split(':').next() == Some(there.name())
        };
        assert!(contacts.iter().all(known), "{contacts:#?}");
    }
}

#[test]
fn a_profile_is_read_from_the_other_server() {
    federation::a_profile_is_read_from_the_other_server(directions());
}

#[test]
fn a_room_is_found_and_joined_by_its_alias_and_both_sides_talk() {
    federation::a_room_is_found_and_joined_by_its_alias_and_both_sides_talk(directions());
}

#[test]
fn an_invitation_is_taken_and_another_is_declined() {
    federation::an_invitation_is_taken_and_another_is_declined(directions());
}

#[test]
fn media_come_over_with_a_token_and_every_byte() {
    federation::media_come_over_with_a_token_and_every_byte(directions());
}

#[test]
fn device_keys_are_found_on_the_other_server() {
    federation::device_keys_are_found_on_the_other_server(directions());
}

#[test]
fn the_list_of_rooms_is_read_where_it_is_open() {
    federation::the_list_of_rooms_is_read_where_it_is_open(directions());
}

#[test]
fn nothing_that_servers_need_is_refused() {
    federation::nothing_that_servers_need_is_refused(directions());
}

/// The ledger once it is so: it is written behind the answers.
#[track_caller]
fn contacts_with(ledger: impl Fn() -> Vec<Value>, is_so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let contacts = ledger();
        if is_so(&contacts) {
            return contacts;
        }
        assert!(Instant::now() < deadline, "{contacts:#?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A Synapse whose proxy is a door of ours, and whom it may ask: `push.test` and `is.test`, which are looked into, and `tunnel.test`.
struct Web {
    gateway: Mutex<Gateway>,
    backend: Backend,
    front: TlsFront,
    synapse: Synapse,
    _dns: Dns,
    _directory: tempfile::TempDir,
}

fn web() -> &'static Web {
    static WEB: OnceLock<Web> = OnceLock::new();
    WEB.get_or_init(|| {
        let (dns, outside, directory) = (Dns::start(), Authority::new().unwrap(), tempfile::tempdir().unwrap());
        let backend = Backend::start(|_| Answer::Bytes(json_response(200, &json!({"rejected": []})))).unwrap();
        let names = ["push.test", "tunnel.test", "is.test"];
        let front = TlsFront::start(&outside, &names, "127.0.1.1:0".parse().unwrap(), backend.addr());
        names.iter().for_each(|name| dns.address(name, "127.0.1.1"));
        let ours = ca::make(&["push.test".to_owned(), "is.test".to_owned()].into()).unwrap();
        let files = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(files.path().join(name), text).unwrap();
        write("our.crt", &ours.certificate);
        write("our.key", &ours.key);
        std::fs::set_permissions(files.path().join("our.key"), PermissionsExt::from_mode(0o600)).unwrap();
        outside.write(files.path()).unwrap();
        let bundle = directory.path().join("bundle.pem");
        std::fs::write(&bundle, format!("{}{}", outside.pem(), ours.certificate)).unwrap();
        write(
            "policy.toml",
            "extends = \"balanced\"\n[[egress.destination]]\nhost = \"push.test\"\naction = \"intercept\"\n\
             [[egress.destination]]\nhost = \"is.test\"\naction = \"intercept\"\n\
             [[egress.destination]]\nhost = \"tunnel.test\"\naction = \"tunnel\"\ncause = \"push\"\n",
        );
        let text = format!(
            "[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\nports = [{}]\nextra_roots = [\"ca.crt\"]\n\
             [policy]\nfile = \"policy.toml\"\n[upstream.synapse]\nservers = [\"http://127.0.0.1:9\"]\n\
             [admin]\nbind = \"127.0.0.1:0\"\n[egress]\nnameservers = [\"{}\"]\n[egress.ca]\ncertificate = \"our.crt\"\nkey = \"our.key\"\n\
             [egress.addresses]\nallow = [\"127.0.1.0/24\"]\n",
            front.addr().port(),
            dns.addr()
        );
        let gateway = Gateway::load(files, &text, |_| {});
        let proxy = gateway.url();
        let synapse = Synapse::start(Options {
            roots: Some(bundle),
            extra_yaml: json!({"https_proxy": proxy, "http_proxy": proxy}).to_string(),
            ..Options::default()
        });
        Web { gateway: Mutex::new(gateway), backend, front, synapse: synapse.unwrap(), _dns: dns, _directory: directory }
    })
}

impl Web {
    fn gateway(&self) -> MutexGuard<'_, Gateway> {
        self.gateway.lock().unwrap()
    }

    fn port(&self) -> u16 {
        self.front.addr().port()
    }

    /// Has a user's notifications go to this push gateway.
    fn notify(&self, session: &Session, gateway: &str) {
        let url = format!("https://{gateway}:{}/_matrix/push/v1/notify", self.port());
        let pusher = json!({
            "kind": "http", "app_id": "test", "app_display_name": "test", "device_display_name": "test", "lang": "en",
            "pushkey": gateway, "data": {"url": url},
        });
        self.synapse.call(Some(session), "POST", "/_matrix/client/v3/pushers/set", Some(&pusher)).unwrap();
    }

    /// Waits until the ledger has this host with this cause and verdict.
    #[track_caller]
    fn assert_noted(&self, host: &str, cause: &str, verdict: &str) {
        let to = format!("{host}:{}", self.port());
        let is = |contact: &Value| {
            ["destination", "cause", "verdict", "door"].map(|key| &contact[key])
                == [to.as_str(), cause, verdict, "proxy"]
        };
        contacts_with(|| self.gateway().contacts(), |contacts| contacts.iter().any(is));
    }

    /// The first request that a host was asked.
    fn asked(&self, host: &str) -> RecordedRequest {
        let host = format!("{host}:{}", self.port());
        for count in 1..100 {
            let asked = self.backend.wait_requests(count, Duration::from_secs(60)).unwrap_or_else(|error| {
                panic!("{host} was not asked: {error}\n{}\n{}", self.gateway().written(), self.synapse.log_tail())
            });
            if let Some(request) = asked.into_iter().find(|request| request.header("host") == Some(&host)) {
                return request;
            }
        }
        panic!("{host} was not asked");
    }
}

#[test]
fn push_gateways_are_told_through_the_proxy_door_and_no_version_where_it_is_looked_into() {
    let web = web();
    let user = |name: &str| web.synapse.register(name, "a password", Role::User).unwrap();
    let (alice, bob) = (user("alice"), user("bob"));
    web.notify(&alice, "push.test");
    web.notify(&bob, "tunnel.test");
    let call = |session: &Session, method: &str, target: &str, body| {
        web.synapse.call(Some(session), method, target, Some(&body)).unwrap()
    };
    let room = json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [bob.user_id]});
    let room = call(&alice, "POST", "/_matrix/client/v3/createRoom", room)["room_id"].as_str().unwrap().to_owned();
    call(&bob, "POST", &format!("/_matrix/client/v3/join/{room}"), json!({}));
    for session in [&alice, &bob] {
        let target = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/1");
        call(session, "PUT", &target, json!({"msgtype": "m.text", "body": "hello"}));
    }
    let inside = web.asked("push.test");
    assert_eq!((inside.method.as_str(), inside.target_text().as_str()), ("POST", "/_matrix/push/v1/notify"));
    assert_eq!(inside.header("user-agent"), Some("Synapse"));
    // Nobody reads, or changes, what goes through a tunnel.
    let through = web.asked("tunnel.test");
    assert!(through.header("user-agent").unwrap().starts_with("Synapse/"), "{:?}", through.headers);
    let names = web.front.names();
    assert!(names.contains(&"push.test".to_owned()) && names.contains(&"tunnel.test".to_owned()), "{names:?}");
    web.assert_noted("push.test", "push", "passed");
    web.assert_noted("tunnel.test", "push", "tunnelled");
    let written = web.gateway().written();
    assert!(!written.contains("push.test") && !written.contains("tunnel.test"), "{written}");
}

#[test]
fn an_identity_server_that_is_looked_into_hears_nothing_of_an_address_that_is_removed() {
    let web = web();
    let admin = web.synapse.register("admin", "a password", Role::Admin).unwrap();
    let carol = web.synapse.register("carol", "a password", Role::User).unwrap();
    let bound = json!({"threepids": [{"medium": "email", "address": "carol@example.org"}]});
    let user = format!("/_synapse/admin/v2/users/{}", carol.user_id);
    web.synapse.call(Some(&admin), "PUT", &user, Some(&bound)).unwrap();
    let removed = json!({
        "medium": "email", "address": "carol@example.org", "id_server": format!("is.test:{}", web.port()),
    });
    let target = "/_matrix/client/v3/account/3pid/delete";
    let answer = web.synapse.call(Some(&carol), "POST", target, Some(&removed)).unwrap();
    assert_eq!(answer["id_server_unbind_result"], "no-support", "{answer}\n{}", web.synapse.log_tail());
    let left = web.synapse.call(Some(&carol), "GET", "/_matrix/client/v3/account/3pid", None).unwrap();
    assert_eq!(left["threepids"], json!([]));
    let records = web.gateway().records_with(|record| record["rule"] == "threepid_unbind");
    assert!(records.iter().any(|record| record["decision"] == "answer" && record["status"] == 404));
    assert!(!web.front.names().contains(&"is.test".to_owned()));
    web.assert_noted("is.test", "identity", "answered");
    let told = "mantlet_privacy_events_total{flow=\"egress\",rule=\"threepid_unbind\"}";
    assert_eq!(web.gateway().metric(told), 1.0);
}
