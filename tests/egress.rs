//! Real Synapses and the doors of the way out.
//!
//! Two without a network: each has its Mantlet's federation door, and whatever others do with each other, they do.
//!
//! The door is a unix socket, and so is the way in, so that each Synapse can have a network of its own in which there is nothing.
//! One is found by its `.well-known`, the other by a service record. One has the default notary, the other believes Mantlet's
//! signature only.
//!
//! One with a proxy door and a way in: it notifies push gateways, one that is looked into and one that is not, and would unbind at
//! identity servers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "support/mod.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use mantlet::tls::ca;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Request, Response, json_response};
use mantlet_testkit::recorder::RecordedRequest;
use mantlet_testkit::synapse::{Options, Role, Session, Synapse, free_port, has_namespaces};
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

/// A Synapse whose proxy is a door of ours, and whom it may ask: `push.test` and `is.test`, which are looked into, and `tunnel.test`,
/// `is1.test` and `is2.test`, which are not.
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
        let names = ["push.test", "tunnel.test", "is.test", "is1.test", "is2.test"];
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
             [[egress.destination]]\nhost = \"is.test\"\naction = \"intercept\"\n",
        );
        // Each has to be told of the other before it starts.
        let proxy = format!("127.0.0.1:{}", free_port().unwrap());
        let url = format!("http://{proxy}");
        let synapse = Synapse::start(Options {
            roots: Some(bundle),
            extra_yaml: json!({"https_proxy": url, "http_proxy": url}).to_string(),
            ..Options::default()
        });
        let synapse = synapse.unwrap();
        let text = format!(
            "[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"{proxy}\"\nports = [{}]\nextra_roots = [\"ca.crt\"]\n\
             [[listener]]\nname = \"clients\"\ndoor = \"ingress\"\nbind = \"127.0.0.1:0\"\n\
             [policy]\nfile = \"policy.toml\"\n[upstream.synapse]\nservers = [\"{}\"]\n\
             [egress]\nnameservers = [\"{}\"]\n[egress.ca]\ncertificate = \"our.crt\"\nkey = \"our.key\"\n\
             [egress.addresses]\nallow = [\"127.0.1.0/24\"]\n",
            front.addr().port(),
            synapse.base_url(),
            dns.addr()
        );
        let gateway = Gateway::load(files, &text, |_| {});
        Web { gateway: Mutex::new(gateway), backend, front, synapse, _dns: dns, _directory: directory }
    })
}

impl Web {
    fn gateway(&self) -> MutexGuard<'_, Gateway> {
        self.gateway.lock().unwrap()
    }

    fn port(&self) -> u16 {
        self.front.addr().port()
    }

    /// What a user gets through the way in.
    fn through(&self, session: &Session, method: &str, target: &str, body: &str) -> Response {
        let clients = self.gateway().addr_of("clients");
        Request::new(method, target).bearer(&session.access_token).body(body).send(clients)
    }

    /// A user with an address, which two identity servers were told of.
    fn bound(&self, name: &str) -> Session {
        let admin = self.synapse.register(&format!("{name}-admin"), "a password", Role::Admin).unwrap();
        let user = self.synapse.register(name, "a password", Role::User).unwrap();
        let address = format!("{name}@example.org");
        let threepids = json!({"threepids": [{"medium": "email", "address": address}]});
        let target = format!("/_synapse/admin/v2/users/{}", user.user_id);
        self.synapse.call(Some(&admin), "PUT", &target, Some(&threepids)).unwrap();
        for server in ["is1.test", "is2.test"] {
            let row = json!([user.user_id, "email", address, format!("{server}:{}", self.port())]);
            self.synapse.sql("INSERT INTO user_threepid_id_server VALUES (?, ?, ?, ?)", &row).unwrap();
        }
        user
    }

    /// How many addresses a user has, and how many identity servers are remembered to know of them.
    fn remembered(&self, user: &Session) -> (Value, Value) {
        let count = |table: &str| {
            let statement = format!("SELECT count(*) FROM {table} WHERE user_id = ?");
            self.synapse.sql(&statement, &json!([user.user_id])).unwrap()[0][0].clone()
        };
        (count("user_threepids"), count("user_threepid_id_server"))
    }

    /// Which of the two identity servers were asked anything.
    fn identity_servers_asked(&self) -> usize {
        let names = self.front.names();
        ["is1.test", "is2.test"].iter().filter(|server| names.iter().any(|name| name == *server)).count()
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
}

#[test]
fn no_identity_server_hears_of_an_address_that_is_removed_nor_of_an_account_that_is_deactivated() {
    let web = web();
    let (delete, deactivate) = ("/_matrix/client/v3/account/3pid/delete", "/_matrix/client/r0/account/deactivate");
    let removed = |user: &str| format!("{{\"medium\":\"email\",\"address\":\"{user}@example.org\"}}");
    let dave = web.bound("dave");
    assert_eq!(web.remembered(&dave), (json!(1), json!(2)));
    let answer = web.through(&dave, "POST", delete, &removed("dave"));
    assert_eq!((answer.status, answer.text().as_str()), (200, "{\"id_server_unbind_result\":\"no-support\"}"));
    assert_eq!(web.remembered(&dave), (json!(0), json!(2)), "{}", web.synapse.log_tail());
    // A client that asks for one of them is not heard either, however it spells that.
    let erin = web.bound("erin");
    let named = format!("\"id\\u005fserver\":\"is1.test:{}\"", web.port());
    let first = web.through(&erin, "POST", deactivate, &format!("{{{named}}}"));
    let session = first.json()["session"].as_str().unwrap().to_owned();
    let auth = json!({
        "type": "m.login.password", "session": session, "password": "a password",
        "identifier": {"type": "m.id.user", "user": "erin"},
    });
    let last = web.through(&erin, "POST", deactivate, &format!("{{\"auth\":{auth},\"erase\":true,{named}}}"));
    assert_eq!((last.status, last.text().as_str()), (200, "{\"id_server_unbind_result\":\"no-support\"}"));
    assert_eq!(web.remembered(&erin).0, json!(0));
    let gone = "SELECT deactivated FROM users WHERE name = ?";
    assert_eq!(web.synapse.sql(gone, &json!([erin.user_id])).unwrap(), json!([[1]]));
    assert_eq!(web.identity_servers_asked(), 0, "{:?}", web.front.names());
    let records = web.gateway().records_with(|record| record["endpoint"] == "identity_unbind");
    let answered =
        records.iter().filter(|record| record["endpoint"] == "identity_unbind" && record["flow"] == "egress");
    assert!(answered.clone().count() >= 2 && answered.clone().all(|record| record["rule"] == "threepid_unbind"));
    // What Synapse refuses is refused with its words, and what only Synapse reads is refused, too.
    for (body, errcode, is_synapses) in [
        ("", "M_NOT_JSON", true),
        ("[]", "M_BAD_JSON", true),
        ("{", "M_NOT_JSON", true),
        ("{\"a\":\"\\ud800\"}", "M_NOT_JSON", false),
    ] {
        let through = web.through(&dave, "POST", delete, body);
        assert_eq!((through.status, through.errcode().as_deref()), (400, Some(errcode)), "{body}");
        let direct = Request::new("POST", delete).bearer(&dave.access_token).body(body).send(web.synapse.addr());
        assert_eq!(direct.text() == through.text(), is_synapses, "{body}: {} and {}", direct.text(), through.text());
    }
    // Without us both of them hear of it.
    let frank = web.bound("frank");
    let direct = Request::new("POST", delete).bearer(&frank.access_token).body(removed("frank"));
    assert_eq!(direct.send(web.synapse.addr()).json()["id_server_unbind_result"], "success");
    assert_eq!((web.identity_servers_asked(), web.remembered(&frank)), (2, (json!(0), json!(0))));
}
