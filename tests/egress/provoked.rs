//! One with a proxy door that asks everybody whom Synapse asks by itself: what is provoked arrives where it should, and nowhere else.
//!
//! `push.test`, `preview.test` and `sso.test` are reached through tunnels, `bridge.test` in the clear; `ident.test`, `stats.test` and
//! `notary.test` are looked into.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use mantlet::tls::ca;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{json_response, response};
use mantlet_testkit::recorder::RecordedRequest;
use mantlet_testkit::synapse::{Options, Role, Session, Synapse};
use serde_json::{Value, json};

use crate::contacts_with;
use crate::notary::Stranger;
use crate::support::Gateway;
use crate::support::outside::{Dns, TlsFront};

/// Has Synapse send its statistics a second after its start, and not five minutes.
const SOON: &str = "from synapse.app import phone_stats_home\n\n\nclass Soon:\n    def __init__(self, config, api):\n        \
     delay = phone_stats_home.INITIAL_DELAY_BEFORE_FIRST_PHONE_HOME\n        \
     phone_stats_home.INITIAL_DELAY_BEFORE_FIRST_PHONE_HOME = type(delay)(seconds=1)\n";

struct World {
    gateway: Mutex<Gateway>,
    backend: Backend,
    front: TlsFront,
    synapse: Synapse,
    stranger: Stranger,
    _dns: Dns,
    _directory: tempfile::TempDir,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(World::start)
}

impl World {
    fn start() -> World {
        let (dns, outside, directory) = (Dns::start(), Authority::new().unwrap(), tempfile::tempdir().unwrap());
        let keys = std::sync::Arc::new(OnceLock::<Vec<u8>>::new());
        let here = std::sync::Arc::clone(&keys);
        let backend = Backend::start(move |request| Answer::Bytes(answer(request, here.get()))).unwrap();
        let tls = ["push.test", "preview.test", "sso.test", "ident.test", "stats.test", "notary.test"];
        let names = [&tls[..], &["127.0.1.1"]].concat();
        let front = TlsFront::start(&outside, &names, "127.0.1.1:0".parse().unwrap(), backend.addr());
        tls.iter().for_each(|name| dns.address(name, "127.0.1.1"));
        dns.address("bridge.test", "127.0.0.1");
        let stranger = Stranger::new(&front.addr().to_string());
        keys.set(stranger.keys()).unwrap();
        let gateway = door(&outside, &dns, &front, &backend);
        let ours = std::fs::read_to_string(gateway.dir().join("our.crt")).unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).unwrap();
            directory.path().join(name)
        };
        let roots = write("bundle.pem", &format!("{}{ours}", outside.pem()));
        write("soon.py", SOON);
        let bridge = write(
            "bridge.yaml",
            &json!({
                "id": "bridge", "url": format!("http://bridge.test:{}", backend.addr().port()), "as_token": "as", "hs_token": "hs",
                "sender_localpart": "bridge", "namespaces": {"users": [{"exclusive": false, "regex": "@.*"}]},
            })
            .to_string(),
        );
        let (proxy, port) = (gateway.url(), front.addr().port());
        let synapse = Synapse::start(Options {
            roots: Some(roots),
            modules: Some(directory.path().to_owned()),
            extra_yaml: json!({
                "https_proxy": proxy, "http_proxy": proxy,
                "trusted_key_servers": [{"server_name": format!("notary.test:{port}")}],
                "app_service_config_files": [bridge],
                "modules": [{"module": "soon.Soon"}],
                "report_stats": true, "report_stats_endpoint": format!("https://stats.test:{port}/report-usage-stats/push"),
                "url_preview_enabled": true, "url_preview_ip_range_blacklist": ["192.0.2.1"],
                "oidc_providers": [{
                    "idp_id": "sso", "idp_name": "sso", "issuer": format!("https://sso.test:{port}/"), "client_id": "mantlet",
                    "client_secret": "secret", "scopes": ["openid"],
                    "user_mapping_provider": {"config": {"localpart_template": "{{ user.sub }}"}},
                }],
            })
            .to_string(),
            ..Options::default()
        });
        let synapse = synapse.unwrap_or_else(|error| panic!("{error}\n{}", gateway.written()));
        World { gateway: Mutex::new(gateway), backend, front, synapse, stranger, _dns: dns, _directory: directory }
    }

    fn gateway(&self) -> MutexGuard<'_, Gateway> {
        self.gateway.lock().unwrap()
    }

    fn user(&self, name: &str) -> Session {
        self.synapse.register(name, "a password", Role::User).unwrap()
    }

    fn call(&self, session: &Session, method: &str, target: &str, body: &Value) -> Value {
        self.synapse.call(Some(session), method, target, Some(body)).unwrap()
    }

    fn at(&self, host: &str) -> String {
        let port = if host == "bridge.test" { self.backend.addr().port() } else { self.front.addr().port() };
        format!("{host}:{port}")
    }

    /// Waits until the ledger has this host with this cause and verdict.
    #[track_caller]
    fn assert_noted(&self, host: &str, cause: &str, verdict: &str) {
        let to = self.at(host);
        let is = |contact: &Value| {
            ["destination", "cause", "verdict", "door"].map(|key| &contact[key])
                == [to.as_str(), cause, verdict, "proxy"]
        };
        contacts_with(|| self.gateway().contacts(), |contacts| contacts.iter().any(is));
    }

    /// The first request that a host was asked for what begins so.
    fn asked(&self, host: &str, path: &str) -> RecordedRequest {
        let at = self.at(host);
        let is =
            |request: &RecordedRequest| request.header("host") == Some(&at) && request.target_text().starts_with(path);
        self.backend.wait_request(Duration::from_secs(60), is).unwrap_or_else(|error| {
            panic!(
                "{host} was not asked for {path}: {error}\n{}\n{}",
                self.gateway().written(),
                self.synapse.log_tail()
            )
        })
    }
}

/// A proxy door that looks into three hosts.
fn door(outside: &Authority, dns: &Dns, front: &TlsFront, backend: &Backend) -> Gateway {
    let hosts = ["ident.test", "stats.test", "notary.test"];
    // The last three `balanced` looks into by itself.
    let ours = ca::make(
        &[&hosts[..], &["matrix.org", "matrix-federation.matrix.org", "vector.im"]]
            .concat()
            .iter()
            .map(|&host| host.to_owned())
            .collect(),
    );
    let ours = ours.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("our.crt", &ours.certificate);
    write("our.key", &ours.key);
    std::fs::set_permissions(dir.path().join("our.key"), PermissionsExt::from_mode(0o600)).unwrap();
    outside.write(dir.path()).unwrap();
    let looked_into = hosts.map(|host| format!("[[egress.destination]]\nhost = \"{host}\"\naction = \"intercept\"\n"));
    let tunnels = [("push.test", "push"), ("preview.test", "preview")].map(|(host, cause)| {
        format!("[[egress.destination]]\nhost = \"{host}\"\naction = \"tunnel\"\ncause = \"{cause}\"\n")
    });
    let listed = "[rules.identity_servers]\nservers = [\"ident.test\"]\n";
    write("policy.toml", &format!("extends = \"balanced\"\n{listed}{}{}", looked_into.concat(), tunnels.concat()));
    let text = format!(
        "[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\nports = [{}, {}]\nextra_roots = [\"ca.crt\"]\n\
         [policy]\nfile = \"policy.toml\"\n[upstream.synapse]\nservers = [\"http://127.0.0.1:9\"]\n\
         [admin]\nbind = \"127.0.0.1:0\"\n[egress]\nnameservers = [\"{}\"]\n[egress.ca]\ncertificate = \"our.crt\"\nkey = \"our.key\"\n\
         [egress.addresses]\nallow = [\"127.0.1.0/24\", \"bridge.test\"]\n",
        front.addr().port(),
        backend.addr().port(),
        dns.addr()
    );
    Gateway::load(dir, &text, |_| {})
}

/// What all those hosts say.
fn answer(request: &RecordedRequest, keys: Option<&Vec<u8>>) -> Vec<u8> {
    let host = request.header("host").unwrap_or_default();
    match request.target_text().split('?').next().unwrap_or_default() {
        "/_matrix/key/v2/server" => keys.cloned().unwrap_or_default(),
        "/.well-known/openid-configuration" => json_response(
            200,
            &json!({
                "issuer": format!("https://{host}/"), "authorization_endpoint": format!("https://{host}/authorize"),
                "token_endpoint": format!("https://{host}/token"), "jwks_uri": format!("https://{host}/jwks"),
                "response_types_supported": ["code"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
            }),
        ),
        "/jwks" => json_response(200, &json!({"keys": []})),
        "/page" => response(
            200,
            &[("Content-Type", "text/html; charset=utf-8")],
            "<html><head><title>What is far away</title></head><body>Far away</body></html>",
        ),
        "/_matrix/identity/v2/hash_details" => {
            json_response(200, &json!({"algorithms": ["sha256"], "lookup_pepper": "pepper"}))
        }
        "/_matrix/identity/v2/lookup" => json_response(200, &json!({"mappings": {}})),
        "/_matrix/identity/v2/3pid/bind" => {
            json_response(200, &json!({"medium": "email", "address": "alice@example.org"}))
        }
        "/_matrix/identity/v2/store-invite" => json_response(
            200,
            &json!({
                "token": "token", "display_name": "c...@e...",
                "public_keys": [{"public_key": "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI", "key_validity_url": format!("https://{host}/x")}],
            }),
        ),
        _ => json_response(200, &json!({})),
    }
}

#[test]
fn an_application_service_is_told_in_the_clear_what_happens() {
    let world = world();
    let alice = world.user("bridged");
    let room = world.call(&alice, "POST", "/_matrix/client/v3/createRoom", &json!({}))["room_id"].clone();
    let target = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/1", room.as_str().unwrap());
    world.call(&alice, "PUT", &target, &json!({"msgtype": "m.text", "body": "hello bridge"}));
    let told = world.asked("bridge.test", "/_matrix/app/v1/transactions/");
    assert_eq!((told.method.as_str(), told.header("authorization")), ("PUT", Some("Bearer hs")));
    assert_eq!((told.header("user-agent"), told.header("proxy-connection")), (Some("Synapse"), None));
    let record = |record: &Value| record["upstream"] == "(web)" && record["tls"] == false && record["method"] == "PUT";
    let records = world.gateway().records_with(record);
    let record = records.iter().find(|one| record(one)).unwrap();
    assert_eq!(["flow", "decision"].map(|field| &record[field]), [&json!("egress"), &json!("permit")]);
    world.assert_noted("bridge.test", "appservice", "passed");
}

#[test]
fn a_page_is_fetched_for_a_preview_through_a_tunnel() {
    let world = world();
    let alice = world.user("reader");
    let url = format!("https%3A%2F%2F{}%2Fpage", world.at("preview.test").replace(':', "%3A"));
    let target = format!("/_matrix/client/v1/media/preview_url?url={url}");
    let preview = world.synapse.call(Some(&alice), "GET", &target, None).unwrap();
    assert_eq!(preview["og:title"], "What is far away", "{preview}");
    let fetched = world.asked("preview.test", "/page");
    // Nobody reads, or changes, what goes through a tunnel.
    assert!(fetched.header("user-agent").is_some_and(|agent| agent.contains("Synapse")), "{:?}", fetched.headers);
    assert!(world.front.names().contains(&"preview.test".to_owned()));
    world.assert_noted("preview.test", "preview", "tunnelled");
}

#[test]
fn an_identity_server_binds_and_is_asked_about_an_address() {
    let world = world();
    let alice = world.user("bound");
    let bind = json!({
        "client_secret": "s3cret", "sid": "7", "id_server": world.at("ident.test"), "id_access_token": "token",
    });
    world.call(&alice, "POST", "/_matrix/client/v3/account/3pid/bind", &bind);
    let bound = world.asked("ident.test", "/_matrix/identity/v2/3pid/bind");
    let said: Value = serde_json::from_slice(&bound.body).unwrap();
    assert_eq!(said, json!({"sid": "7", "client_secret": "s3cret", "mxid": alice.user_id}));
    assert_eq!((bound.header("authorization"), bound.header("user-agent")), (Some("Bearer token"), Some("Synapse")));
    let room = world.call(&alice, "POST", "/_matrix/client/v3/createRoom", &json!({}))["room_id"].clone();
    let invite = json!({
        "id_server": world.at("ident.test"), "id_access_token": "token", "medium": "email", "address": "carol@example.org",
    });
    world.call(&alice, "POST", &format!("/_matrix/client/v3/rooms/{}/invite", room.as_str().unwrap()), &invite);
    for path in ["hash_details", "lookup", "store-invite"] {
        world.asked("ident.test", &format!("/_matrix/identity/v2/{path}"));
    }
    world.assert_noted("ident.test", "identity", "passed");
    let written = world.gateway().written();
    assert!(!written.contains("ident.test") && !written.contains("example.org"), "{written}");
}

#[test]
fn single_sign_on_is_discovered_through_a_tunnel() {
    let world = world();
    // Synapse does so at its start.
    let asked = world.asked("sso.test", "/.well-known/openid-configuration");
    assert_eq!(asked.method, "GET");
    world.asked("sso.test", "/jwks");
    world.assert_noted("sso.test", "other", "tunnelled");
    let tunnel = |record: &Value| record["endpoint"] == "tunnel" && record["status"] == 200;
    assert!(world.front.names().contains(&"sso.test".to_owned()));
    // A tunnel is written down when it ends, which may be long after.
    assert!(world.gateway().records(1).iter().filter(|record| record["endpoint"] == "tunnel").all(tunnel));
}

#[test]
fn statistics_about_users_stay_here() {
    let world = world();
    let is = |record: &Value| record["rule"] == "usage_stats";
    let records = world.gateway().records_with(is);
    let record = records.iter().find(|record| is(record)).unwrap();
    assert_eq!(
        ["flow", "decision", "method"].map(|field| &record[field]),
        [&json!("egress"), &json!("answer"), &json!("PUT")]
    );
    assert_eq!(record["status"], 200);
    assert!(!world.front.names().contains(&"stats.test".to_owned()));
    world.assert_noted("stats.test", "statistics", "answered");
    let at = world.at("stats.test");
    assert!(world.backend.requests().iter().all(|request| request.header("host") != Some(&at)));
}

#[test]
fn a_notary_that_is_looked_into_hears_nothing_and_keys_come_all_the_same() {
    let world = world();
    assert_eq!(world.stranger.asks(&world.synapse), 404);
    let asked = world.backend.requests();
    let keys: Vec<_> = asked.iter().filter(|request| request.target_text().starts_with("/_matrix/key/")).collect();
    // By Mantlet, once; Synapse believed what it said.
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert_eq!(
        (keys[0].target_text().as_str(), keys[0].header("user-agent")),
        ("/_matrix/key/v2/server", Some("Synapse"))
    );
    assert!(!world.front.names().contains(&"notary.test".to_owned()));
    world.assert_noted("notary.test", "keys", "answered");
    // What the key ring asked is noted at the door where somebody wanted to know.
    world.assert_noted("127.0.1.1", "keys", "passed");
    let is = |record: &Value| record["endpoint"] == "key_get_remote_server_keys_batch";
    let records = world.gateway().records_with(is);
    let record = records.iter().find(|record| is(record)).unwrap();
    assert_eq!(
        ["upstream", "rule", "flow"].map(|field| &record[field]),
        [&json!("(key ring)"), &json!("notary"), &json!("egress")]
    );
}

#[test]
fn a_push_gateway_is_told_through_a_tunnel() {
    let world = world();
    let (alice, bob) = (world.user("sender"), world.user("receiver"));
    let url = format!("https://{}/_matrix/push/v1/notify", world.at("push.test"));
    let pusher = json!({
        "kind": "http", "app_id": "test", "app_display_name": "test", "device_display_name": "test", "lang": "en",
        "pushkey": "key", "data": {"url": url},
    });
    world.call(&bob, "POST", "/_matrix/client/v3/pushers/set", &pusher);
    let room = json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [bob.user_id]});
    let room = world.call(&alice, "POST", "/_matrix/client/v3/createRoom", &room)["room_id"].clone();
    let told = world.asked("push.test", "/_matrix/push/v1/notify");
    let said: Value = serde_json::from_slice(&told.body).unwrap();
    world.assert_noted("push.test", "push", "tunnelled");
    assert_eq!((&said["notification"]["room_id"], &said["notification"]["sender"]), (&room, &json!(alice.user_id)));
}
