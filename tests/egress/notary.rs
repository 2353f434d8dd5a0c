//! One with a notary door: a server that it does not know asks it something, and whose keys those are it asks our notary.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Request, json_response};
use mantlet_testkit::recorder::RecordedRequest;
use mantlet_testkit::synapse::{Options, Synapse, free_port};
use ruma_common::CanonicalJsonObject;
use ruma_common::serde::Base64;
use ruma_common::serde::base64::Standard;
use ruma_signatures::{Ed25519KeyPair, sign_json};
use serde_json::{Value, json};

use crate::support::Gateway;
use crate::support::federation::{NOTARY_SEED, NOTARY_VERIFY_KEY};
use crate::support::outside::TlsFront;

/// Each server is asked for its own keys, by Mantlet.
const DIRECT: &str = "\"direct\"";

/// What Synapse is told to believe of the notary that it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Believes {
    /// Whatever it says of others, if those signed it.
    Anything,
    /// What is signed with our key.
    OurKey,
    /// What is signed with another key.
    AnotherKey,
}

/// A server that nobody has heard of.
pub struct Stranger {
    name: String,
    key: Ed25519KeyPair,
}

impl Stranger {
    /// One of this name, with a key of its own.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), key: key() }
    }

    fn signed(&self, object: Value) -> CanonicalJsonObject {
        let mut object: CanonicalJsonObject = serde_json::from_value(object).unwrap();
        sign_json(&self.name, &self.key, &mut object).unwrap();
        object
    }

    /// What it answers when it is asked for its keys.
    pub fn keys(&self) -> Vec<u8> {
        let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64 + 24 * 3600 * 1000;
        let key = Base64::<Standard, _>::new(self.key.public_key().to_vec()).encode();
        let object = json!({
            "server_name": self.name, "valid_until_ts": until, "verify_keys": {"ed25519:a": {"key": key}}, "old_verify_keys": {},
        });
        json_response(200, &serde_json::to_value(self.signed(object)).unwrap())
    }

    /// Asks a homeserver for the profile of somebody who is not there. Who is not known gets another answer: 401.
    pub fn asks(&self, synapse: &Synapse) -> u16 {
        let target = format!("/_matrix/federation/v1/query/profile?user_id=%40nobody%3A{}", synapse.server_name());
        let destination = synapse.server_name();
        let signed =
            self.signed(json!({"method": "GET", "uri": target, "origin": self.name, "destination": destination}));
        let signature = serde_json::to_value(&signed).unwrap()["signatures"][&self.name]["ed25519:a"].clone();
        let field = format!(
            "X-Matrix origin=\"{}\",destination=\"{destination}\",key=\"ed25519:a\",sig={signature}",
            self.name
        );
        Request::new("GET", target)
            .header("Authorization", field)
            .timeout(Duration::from_secs(60))
            .send(synapse.addr())
            .status
    }
}

/// What Synapse says to a stranger, and who asked that one for its keys: by their `User-Agent`, in which Mantlet says no version.
fn asked_by_a_stranger(believes: Believes, matrix_org: &str, lies: bool) -> (u16, Vec<Option<String>>) {
    let authority = Authority::new().unwrap();
    let keys = std::sync::Arc::new(std::sync::OnceLock::<Vec<u8>>::new());
    let here = std::sync::Arc::clone(&keys);
    let backend = Backend::start(move |_| Answer::Bytes(here.get().unwrap().clone())).unwrap();
    let front = TlsFront::start(&authority, &["127.0.1.1"], "127.0.1.1:0".parse().unwrap(), backend.addr());
    let stranger = Stranger::new(&front.addr().to_string());
    keys.set(if lies { Stranger::new("another.test").keys() } else { stranger.keys() }).unwrap();

    let files = tempfile::tempdir().unwrap();
    let ca = authority.write(files.path()).unwrap();
    let notary = format!("localhost:{}", free_port().unwrap());
    let gateway = notary_door(&authority, &notary, matrix_org);
    let mut trusted = json!({"server_name": notary});
    match believes {
        Believes::Anything => {}
        Believes::OurKey => trusted["verify_keys"] = json!({"ed25519:notary": NOTARY_VERIFY_KEY}),
        Believes::AnotherKey => {
            let other = Base64::<Standard, _>::new(key().public_key().to_vec()).encode();
            trusted["verify_keys"] = json!({"ed25519:notary": other});
        }
    }
    let synapse = Synapse::start(Options {
        federation_ca: Some(ca),
        extra_yaml: json!({"trusted_key_servers": [trusted]}).to_string(),
        ..Options::default()
    });
    let synapse = synapse.unwrap();
    let status = stranger.asks(&synapse);
    let records = gateway.records_with(|record| record["endpoint"] == "key_get_remote_server_keys_batch");
    assert!(records.iter().all(|record| record["rule"] == "notary" && record["status"] == 200), "{records:?}");
    let agents = backend.requests().iter().map(|request| request.header("user-agent").map(str::to_owned)).collect();
    (status, agents)
}

/// A notary of this name, at its port.
fn notary_door(authority: &Authority, name: &str, matrix_org: &str) -> Gateway {
    let dir = tempfile::tempdir().unwrap();
    authority.write(dir.path()).unwrap();
    let (certificate, key) = authority.issue(&["localhost"]).unwrap().write(dir.path()).unwrap();
    private(&dir.path().join("notary.key"), &format!("ed25519 notary {NOTARY_SEED}\n"));
    let policy = format!("extends = \"balanced\"\n[rules.notary]\nmatrix_org = {matrix_org}\n");
    std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
    let text = format!(
        "[[listener]]\nname = \"keys\"\ndoor = \"notary\"\nbind = \"{}\"\nserver_name = \"{name}\"\nextra_roots = [\"ca.crt\"]\n\
         tls = {{ certificate = {certificate:?}, key = {key:?} }}\n[policy]\nfile = \"policy.toml\"\n\
         [egress]\nnotary_key = \"notary.key\"\n[egress.addresses]\nallow = [\"127.0.1.0/24\"]\n",
        name.replace("localhost", "127.0.0.1"),
    );
    Gateway::load(dir, &text, |_| {})
}

fn key() -> Ed25519KeyPair {
    Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "a".into()).unwrap()
}

fn private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

#[test]
fn a_notary_of_our_own_is_believed_with_its_key_pinned_and_without() {
    let [unpinned, pinned, wrongly] = std::thread::scope(|scope| {
        [Believes::Anything, Believes::OurKey, Believes::AnotherKey]
            .map(|believes| scope.spawn(move || asked_by_a_stranger(believes, DIRECT, false)))
            .map(|thread| thread.join().unwrap())
    });
    // Mantlet asked, once, and Synapse believed it.
    let mantlet = Some("Synapse".to_owned());
    assert_eq!(unpinned, (404, vec![mantlet.clone()]));
    assert_eq!(pinned, (404, vec![mantlet.clone()]));
    // So it is the signature that counts: what is not signed with the key that is pinned, Synapse asks for itself.
    let (status, agents) = wrongly;
    assert!(status == 404 && agents.len() == 2, "{status} {agents:?}");
    assert!(
        agents[0] == mantlet && agents[1].as_ref().is_some_and(|agent| agent.starts_with("Synapse/")),
        "{agents:?}"
    );
}

#[test]
fn a_server_that_says_keys_of_another_is_refused_and_where_nothing_is_known_synapse_asks_each_itself() {
    // The other notary refuses the connection.
    let gone = "{ rewrite = \"127.0.1.2:8448\" }";
    let [(lied, agents), empty, rewritten] = std::thread::scope(|scope| {
        [(DIRECT, true), ("\"empty\"", false), (gone, false)]
            .map(|(matrix_org, lies)| scope.spawn(move || asked_by_a_stranger(Believes::Anything, matrix_org, lies)))
            .map(|thread| thread.join().unwrap())
    });
    let by_synapse = |agent: &Option<String>| agent.as_ref().is_some_and(|agent| agent.starts_with("Synapse/"));
    // It says keys, but those of another. Mantlet hands out none of them, and Synapse hears the same.
    assert!(
        lied == 401 && agents[0].as_deref() == Some("Synapse") && agents[1..].iter().all(by_synapse),
        "{lied} {agents:?}"
    );
    for (status, asked) in [empty, rewritten] {
        assert!(status == 404 && !asked.is_empty() && asked.iter().all(by_synapse), "{status} {asked:?}");
    }
}

#[test]
fn whose_notary_is_gone_asks_each_server_itself_and_the_notary_again_when_it_is_back() {
    let authority = Authority::new().unwrap();
    let keys = Arc::new(Mutex::new(HashMap::<String, Vec<u8>>::new()));
    let here = Arc::clone(&keys);
    let says = move |request: &RecordedRequest| here.lock().unwrap()[request.header("host").unwrap()].clone();
    let backend = Backend::start(move |request| Answer::Bytes(says(request))).unwrap();
    let files = tempfile::tempdir().unwrap();
    let notary = format!("localhost:{}", free_port().unwrap());
    let synapse = Synapse::start(Options {
        federation_ca: Some(authority.write(files.path()).unwrap()),
        extra_yaml: json!({"trusted_key_servers": [{"server_name": notary}]}).to_string(),
        ..Options::default()
    });
    let synapse = synapse.unwrap();
    // Each time another stranger; who asked that one for its keys, first.
    let asks = || {
        let front = TlsFront::start(&authority, &["127.0.1.1"], "127.0.1.1:0".parse().unwrap(), backend.addr());
        let name = front.addr().to_string();
        let stranger = Stranger::new(&name);
        keys.lock().unwrap().insert(name.clone(), stranger.keys());
        let began = Instant::now();
        assert_eq!(stranger.asks(&synapse), 404, "{}", synapse.log_tail());
        let asked = backend.requests().into_iter().find(|request| request.header("host") == Some(&name)).unwrap();
        (asked.header("user-agent").map(str::to_owned), began.elapsed())
    };
    let by_synapse = |agent: &Option<String>| agent.as_ref().is_some_and(|agent| agent.starts_with("Synapse/"));
    let (agent, took) = asks();
    println!("without its notary: {took:.1?}");
    assert!(by_synapse(&agent), "{agent:?}");
    let _gateway = notary_door(&authority, &notary, DIRECT);
    let deadline = Instant::now() + Duration::from_secs(120);
    while by_synapse(&asks().0) {
        // Here it is left alone for seconds only.
        assert!(Instant::now() < deadline, "{}", synapse.log_tail());
        std::thread::park_timeout(Duration::from_millis(100));
    }
}
