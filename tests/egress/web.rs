//! One with a proxy door: it notifies push gateways, one that is looked into and one that is not, and unbinds at an identity server.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use mantlet::tls::ca;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::json_response;
use mantlet_testkit::recorder::RecordedRequest;
use mantlet_testkit::synapse::{Options, Role, Session, Synapse};
use serde_json::json;

use crate::support::Gateway;
use crate::support::outside::{Dns, TlsFront};

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
        let ours = ca::make(&["push.test", "is.test", "matrix.org", "vector.im"].map(str::to_owned).into()).unwrap();
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
        let text = format!(
            "[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\nports = [{}]\nextra_roots = [\"ca.crt\"]\n\
             [policy]\nfile = \"policy.toml\"\n[upstream.synapse]\nservers = [\"http://127.0.0.1:9\"]\n\
             [egress]\nnameservers = [\"{}\"]\n[egress.ca]\ncertificate = \"our.crt\"\nkey = \"our.key\"\n\
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
