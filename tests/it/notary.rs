//! The rule `notary`: what Synapse asks a notary, and what strangers ask Synapse as one.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hickory_resolver::proto::rr::RecordType;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Request, Response, json_response, response};
use ruma_common::CanonicalJsonObject;
use ruma_common::serde::Base64;
use ruma_common::serde::base64::Standard;
use ruma_signatures::{Ed25519KeyPair, sign_json, verify_json};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{backend, eventually, homeserver, ok, url};
use crate::support::Gateway;
use crate::support::outside::{Dns, TlsFront};

/// Servers in plenty: `NAME.many.test:PORT`, and matrix.org.
pub struct World {
    pub authority: Authority,
    pub dns: Dns,
    pub backend: Backend,
    pub front: TlsFront,
    /// The whole answer of each, by `Host`; who has none says nothing until it is told to.
    pub answers: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    silent: Arc<Mutex<Vec<Waiting>>>,
}

/// A server that was asked, and the way to have it answer.
type Waiting = (String, Sender<Vec<u8>>);

impl World {
    pub fn new() -> World {
        let (dns, authority) = (Dns::start(), Authority::new().unwrap());
        let answers = Arc::new(Mutex::new(HashMap::<String, Vec<u8>>::new()));
        let silent = Arc::new(Mutex::new(Vec::new()));
        let (answers_here, silent_here) = (Arc::clone(&answers), Arc::clone(&silent));
        let backend = backend(move |request| {
            let host = request.header("host").unwrap_or_default().to_owned();
            match answers_here.lock().unwrap().get(&host) {
                Some(answer) if is_last(answer) => Answer::BytesThenClose(answer.clone()),
                Some(answer) => Answer::Bytes(answer.clone()),
                None => {
                    let (sender, answer) = Answer::stream();
                    silent_here.lock().unwrap().push((host, sender));
                    answer
                }
            }
        });
        let at = SocketAddr::new("127.0.1.1".parse().unwrap(), 0);
        let front = TlsFront::start(&authority, &["*.many.test", "matrix.org"], at, backend.addr());
        dns.address("matrix.org", "127.0.1.1");
        World { authority, dns, backend, front, answers, silent }
    }

    /// A server of this name is there; its whole name.
    pub fn server(&self, name: &str) -> String {
        self.server_at(name, "127.0.1.1")
    }

    /// The same at another address, where nobody may be.
    pub fn server_at(&self, name: &str, address: &str) -> String {
        self.dns.address(&format!("{name}.many.test"), address);
        format!("{name}.many.test:{}", self.front.addr().port())
    }

    pub fn answers(&self, server: &str, answer: Vec<u8>) {
        self.answers.lock().unwrap().insert(server.to_owned(), answer);
    }

    /// A server that says which keys it has, until this time from now.
    pub fn honest(&self, name: &str, seconds: i64) -> String {
        let server = self.server(name);
        self.answers(&server, json_response(200, &Origin::new().keys(&server, seconds)));
        server
    }

    pub fn gateway(&self, policy: &str, egress: &str) -> Gateway {
        self.gateway_behind("door = \"federation\"\nsecret_file = \"secret\"", policy, egress, |_| {})
    }

    /// With this door, and further files beside it.
    pub fn gateway_behind(&self, door: &str, policy: &str, egress: &str, files: impl FnOnce(&Path)) -> Gateway {
        let dir = tempfile::tempdir().unwrap();
        self.authority.write(dir.path()).unwrap();
        private(&dir.path().join("secret"), "hook-secret\n");
        std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
        files(dir.path());
        let text = format!(
            "[[listener]]\nname = \"out\"\nbind = \"127.0.0.1:0\"\n{door}\n\
             extra_roots = [\"ca.crt\"]\n[policy]\nfile = \"policy.toml\"\n[limits]\nupstream_head = \"12s\"\n\
             [egress]\nnameservers = [\"{}\"]\n{egress}\n[egress.addresses]\nallow = [\"127.0.1.0/24\"]\n",
            self.dns.addr()
        );
        Gateway::load(dir, &text, |_| {})
    }

    /// Who was asked for what, by name.
    pub fn asked(&self) -> Vec<(String, String)> {
        let asked = self.backend.requests();
        let of = |name: Option<&str>| name.unwrap_or_default().to_owned();
        asked.iter().map(|request| (of(request.header("host")), request.target_text())).collect()
    }

    /// Nobody asked matrix.org, nor where it is.
    #[track_caller]
    pub fn assert_matrix_org_heard_nothing(&self) {
        assert!(self.asked().iter().all(|(host, _)| !host.contains("matrix.org")), "{:?}", self.asked());
        assert!(self.dns.asked().iter().all(|(name, _)| !name.contains("matrix.org")), "{:?}", self.dns.asked());
        assert!(!self.front.names().contains(&"matrix.org".to_owned()));
    }
}

/// Whether nothing comes after this answer, be it whole or not.
fn is_last(answer: &[u8]) -> bool {
    answer.windows(17).any(|field| field == b"Connection: close")
}

/// A file that nobody else may read.
pub fn private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// A server's own key.
pub struct Origin(Ed25519KeyPair);

impl Origin {
    pub fn new() -> Self {
        Self(Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "a".into()).unwrap())
    }

    /// What it publishes, without a signature.
    fn says(&self, server: &str, seconds: i64) -> CanonicalJsonObject {
        let key = Base64::<Standard, _>::new(self.0.public_key().to_vec()).encode();
        let object = json!({
            "server_name": server, "valid_until_ts": now() + seconds * 1000,
            "verify_keys": {"ed25519:a": {"key": key}}, "old_verify_keys": {},
        });
        serde_json::from_value(object).unwrap()
    }

    fn signed(&self, name: &str, mut object: CanonicalJsonObject) -> Value {
        sign_json(name, &self.0, &mut object).unwrap();
        serde_json::to_value(&object).unwrap()
    }

    pub fn keys(&self, server: &str, seconds: i64) -> Value {
        self.signed(server, self.says(server, seconds))
    }
}

/// Milliseconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// The question for a key of each of these servers that counts until then.
pub fn wanted(servers: &[String], minimum: i64) -> Value {
    let wanted: BTreeMap<_, _> =
        servers.iter().map(|server| (server, json!({"ed25519:a": {"minimum_valid_until_ts": minimum}}))).collect();
    json!({ "server_keys": wanted })
}

/// What Synapse writes to a notary, through its door.
pub fn query(gateway: &Gateway, servers: &[String], minimum: i64) -> Response {
    query_at(gateway.addr(), servers, minimum)
}

fn query_at(door: SocketAddr, servers: &[String], minimum: i64) -> Response {
    let signed = "X-Matrix origin=\"here.test\",key=\"ed25519:a\",sig=\"c2ln\",destination=\"matrix.org\"";
    Request::new("POST", "matrix-federation://matrix.org/_matrix/key/v2/query")
        .header("Connection", "close")
        .header("User-Agent", "Synapse/1.163.2")
        .header("Authorization", signed)
        .header("Proxy-Authorization", "Bearer hook-secret")
        .json(&wanted(servers, minimum))
        .timeout(Duration::from_secs(30))
        .send(door)
}

/// The servers whose keys are in an answer, which has the form that Synapse takes.
#[track_caller]
pub fn names(answer: &Response) -> Vec<String> {
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{}", answer.text());
    let answer = answer.json();
    let all = answer["server_keys"].as_array().unwrap();
    all.iter().map(|keys| keys["server_name"].as_str().unwrap().to_owned()).collect()
}

pub const DIRECT: &str = "[rules.notary]\nmatrix_org = \"direct\"";

#[test]
fn each_server_is_asked_for_its_own_keys_and_nobody_for_anothers() {
    let world = World::new();
    let gateway = world.gateway(DIRECT, "");
    let servers = [world.honest("one", 3600), world.honest("two", 3600)];
    let answer = query(&gateway, &servers, now());
    assert_eq!(names(&answer), servers);
    // As the server said it, with no other signature.
    let said: Vec<_> = servers.iter().map(|server| world.answers.lock().unwrap()[server].clone()).collect();
    for (keys, said) in answer.json()["server_keys"].as_array().unwrap().iter().zip(said) {
        assert!(
            String::from_utf8_lossy(&said)
                .contains(keys["signatures"][keys["server_name"].as_str().unwrap()]["ed25519:a"].as_str().unwrap())
        );
        assert_eq!(keys["signatures"].as_object().unwrap().len(), 1);
    }
    let mut asked = world.asked();
    asked.sort();
    let own = |server: &String| (server.clone(), "/_matrix/key/v2/server".to_owned());
    assert_eq!(asked, servers.each_ref().map(own));
    // What it is asked tells nothing of who asks.
    for request in world.backend.requests() {
        let fields: Vec<_> = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        assert_eq!(fields, ["user-agent", "host"]);
        // As `server_banner` leaves it of Synapse's own questions.
        assert_eq!(request.header("user-agent"), Some("Synapse"));
    }
    // What is known is not asked again, by a notary's other form either, on whichever worker.
    for _ in 0..20 {
        assert_eq!(names(&query(&gateway, &servers, now() + 60_000)), servers);
    }
    assert_eq!(world.asked().len(), 2);
    world.assert_matrix_org_heard_nothing();
    let record = &gateway.records(1)[0];
    assert_eq!(
        ["flow", "endpoint", "upstream", "decision", "rule"].map(|field| record[field].as_str().unwrap()),
        ["egress", "key_get_remote_server_keys_batch", "(key ring)", "permit", "notary"]
    );
    let told = format!("{}{}", gateway.written(), gateway.metrics());
    assert!(!told.contains("many.test"), "{told}");
    assert_eq!(gateway.metric("mantlet_key_answers_total{result=\"fetched\"}"), 2.0);
    assert_eq!(gateway.metric("mantlet_key_answers_total{result=\"known\"}"), 40.0);
    assert_eq!(gateway.metric("mantlet_key_questions_total{result=\"good\"}"), 2.0);
}

#[test]
fn a_server_that_lies_about_its_keys_is_refused_and_left_alone() {
    let world = World::new();
    let gateway = world.gateway(DIRECT, "");
    let honest = world.honest("honest", 3600);
    let (origin, thief) = (Origin::new(), Origin::new());
    type Lie<'a> = Box<dyn Fn(&str) -> Vec<u8> + 'a>;
    let json = |value: Value| json_response(200, &value);
    let lies: [(&str, Lie<'_>); 8] = [
        ("unsigned", Box::new(|name| json(serde_json::to_value(origin.says(name, 3600)).unwrap()))),
        ("stolen", Box::new(|name| json(thief.signed(name, origin.says(name, 3600))))),
        ("other", Box::new(|_| json(origin.keys("victim.many.test", 3600)))),
        ("expired", Box::new(|name| json(origin.keys(name, -1)))),
        (
            "changed",
            Box::new(|name| {
                let mut keys = origin.keys(name, 3600);
                keys["valid_until_ts"] = json!(now() + 7_200_000);
                json(keys)
            }),
        ),
        ("nothing", Box::new(|_| json_response(404, &json!({})))),
        (
            "elsewhere",
            Box::new(|name| {
                let keys = origin.keys(name, 3600).to_string();
                response(307, &[("Location", &format!("https://{honest}/"))], keys)
            }),
        ),
        ("endless", Box::new(|name| json(json!({"keys": origin.keys(name, 3600), "x": "x".repeat(40_000)})))),
    ];
    let mut servers = vec![honest.clone()];
    for (name, lie) in &lies {
        let server = world.server(name);
        world.answers(&server, lie(&server));
        servers.push(server);
    }
    assert_eq!(names(&query(&gateway, &servers, now())), std::slice::from_ref(&honest));
    assert_eq!(names(&query(&gateway, &servers, now())), std::slice::from_ref(&honest));
    let asked = world.asked();
    assert_eq!(asked.len(), servers.len(), "somebody was asked twice: {asked:?}");
    world.assert_matrix_org_heard_nothing();
    // A refusal and a silence are told apart.
    assert_eq!(gateway.metric("mantlet_key_questions_total{result=\"refused\"}"), 5.0);
    assert_eq!(gateway.metric("mantlet_key_questions_total{result=\"unreachable\"}"), 3.0);
}

/// Synapse drops the answer for all servers where it cannot take in the object of one.
#[test]
fn a_server_whose_keys_synapse_cannot_take_in_does_not_spoil_the_answer_for_others() {
    let world = World::new();
    let gateway = world.gateway(DIRECT, "");
    let honest = world.honest("honest", 3600);
    let origin = Origin::new();
    let key = origin.says("o", 1)["verify_keys"].as_object().unwrap()["ed25519:a"].clone();
    let key = serde_json::to_value(key).unwrap();
    let odd: [(&str, &str, Value); 5] = [
        ("empty", "verify_keys", json!({"ed25519:a": key, "ed25519:b": {}})),
        ("short", "verify_keys", json!({"ed25519:a": key, "ed25519:b": {"key": "AAAA"}})),
        ("control", "verify_keys", json!({"ed25519:a": key, "ed25519:\0": key})),
        ("null", "old_verify_keys", json!(null)),
        ("unexpired", "old_verify_keys", json!({"ed25519:old": key})),
    ];
    let mut servers = vec![honest.clone()];
    for (name, map, value) in odd {
        let server = world.server(name);
        let mut object = serde_json::to_value(origin.says(&server, 3600)).unwrap();
        object[map] = value;
        let signed = origin.signed(&server, serde_json::from_value(object).unwrap());
        world.answers(&server, json_response(200, &signed));
        servers.push(server);
    }
    assert_eq!(names(&query(&gateway, &servers, now())), [honest]);
    assert_eq!(gateway.metric("mantlet_key_questions_total{result=\"refused\"}"), 5.0);
}

/// The worst first: as many as fill all places are silent or dead. 1,000 servers, or fewer where nothing is optimised.
#[test]
fn nobody_who_answers_waits_for_those_who_do_not() {
    let count = if cfg!(debug_assertions) { 120 } else { 880 };
    let world = World::new();
    let gateway = world.gateway(DIRECT, "");
    let dead: Vec<_> = (0..50).map(|number| world.server_at(&format!("a-dead{number:03}"), "127.0.1.2")).collect();
    let slow: Vec<_> = (0..70).map(|number| world.server(&format!("a-slow{number:03}"))).collect();
    let fast: Vec<_> = (0..count).map(|number| world.honest(&format!("fast{number:03}"), 3600)).collect();
    let all: Vec<_> = [&dead[..], &slow, &fast].concat();
    let began = Instant::now();
    let found = names(&query(&gateway, &all, now()));
    let took = began.elapsed();
    assert!(found == fast, "{} of {count} after {took:?}", found.len());
    // Three quarters of Synapse's patience, as this gateway has it.
    assert!((Duration::from_secs(9)..Duration::from_secs(12)).contains(&took), "{took:?}");
    // The slow ones were heard all the same.
    let waiting: Vec<_> = world.silent.lock().unwrap().drain(..).collect();
    assert_eq!(waiting.len(), slow.len());
    for (server, sender) in waiting {
        sender.send(json_response(200, &Origin::new().keys(&server, 3600))).unwrap();
    }
    let began = Instant::now();
    let found = names(&query(&gateway, &all, now()));
    assert!(found == [slow, fast].concat(), "{} after {:?}", found.len(), began.elapsed());
    let learnt = began.elapsed();
    let began = Instant::now();
    query(&gateway, &all[all.len() - 100..], now());
    println!("{} servers: cold {took:?}, then {learnt:?}; 100 that are known {:?}", all.len(), began.elapsed());
    // Nobody was asked twice, the dead neither.
    assert_eq!(world.asked().len(), 70 + count);
    let looked_up = world.dns.asked();
    let of_dead = looked_up.iter().filter(|(name, of)| name.contains("a-dead") && *of == RecordType::A);
    assert_eq!(of_dead.count(), dead.len());
    world.assert_matrix_org_heard_nothing();
}

/// More than fill all places: some are given up, and others are never asked.
#[test]
fn however_many_are_silent_who_asks_for_others_has_his_answer() {
    let world = World::new();
    let gateway = world.gateway(DIRECT, "");
    let door = gateway.addr();
    let silent = |question: &str, count: usize| -> Vec<_> {
        (0..count).map(|number| world.server(&format!("{question}-{number:03}"))).collect()
    };
    let honest = |name: &str| [world.honest(&format!("{name}-one"), 3600), world.honest(&format!("{name}-two"), 3600)];
    let asked = || world.silent.lock().unwrap().len();
    let (many, long) = ([1, 2, 3, 4, 5, 6].map(|number| silent(&format!("many{number}"), 64)), silent("long", 700));
    std::thread::scope(|scope| {
        // One question for all of them.
        scope.spawn(|| assert_eq!(names(&query_at(door, &long, now())), Vec::<String>::new()));
        eventually("the first have been asked", || asked() >= 64);
        let fresh = honest("beside");
        assert_eq!(names(&query_at(door, &fresh, now())), fresh);
    });
    let of_long = || world.asked().iter().filter(|(host, _)| host.starts_with("long-")).count();
    let (before, of_long_before) = (asked(), of_long());
    std::thread::scope(|scope| {
        // As many questions as take all places, also those for the slow.
        for silent in &many {
            scope.spawn(|| assert_eq!(names(&query_at(door, silent, now())), Vec::<String>::new()));
        }
        eventually("all have been asked", || asked() >= before + 6 * 64);
        let fresh = honest("after");
        assert_eq!(names(&query_at(door, &fresh, now())), fresh);
    });
    // Whoever had not been asked in his time was not asked later, but for some who were on their way.
    let later = of_long() - of_long_before;
    assert!(later < 16, "{later} after {of_long_before}");
    // Whoever was given up was asked, and that is written down.
    let given_up = gateway.metric("mantlet_egress_contacts_total{cause=\"keys\",verdict=\"failed\"}");
    assert!(given_up >= 64.0, "{given_up}");
}

#[test]
fn what_a_server_says_is_counted_also_where_it_does_not_say_how_long_it_is() {
    let world = World::new();
    let gateway = world.gateway(DIRECT, "");
    let server = world.server("chunked");
    let keys = Origin::new().keys(&server, 3600).to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    world.answers(&server, format!("{head}{:x}\r\n{keys}\r\n0\r\n\r\n", keys.len()).into_bytes());
    assert_eq!(names(&query(&gateway, std::slice::from_ref(&server), now())), [server]);
    let counted = gateway.metric("mantlet_egress_bytes_total{cause=\"keys\",direction=\"in\"}");
    assert_eq!(counted, keys.len() as f64);
}

#[test]
fn keys_survive_a_restart_and_stale_ones_are_better_than_none() {
    let world = World::new();
    let kept = TempDir::new().unwrap();
    let store = format!("store = {:?}", kept.path().join("keys.redb"));
    let server = world.honest("one", 3600);
    let first = world.gateway(DIRECT, &store);
    let answer = query(&first, std::slice::from_ref(&server), now()).json();
    first.shutdown();
    let second = world.gateway(DIRECT, &store);
    assert_eq!(query(&second, std::slice::from_ref(&server), now() + 60_000).json(), answer);
    assert_eq!(world.asked().len(), 1, "it was asked for what is kept");
    // More is wanted than is kept, and the server has nothing to say.
    world.answers(&server, json_response(500, &json!({})));
    assert_eq!(query(&second, std::slice::from_ref(&server), now() + 7_200_000).json(), answer);
    assert_eq!(world.asked().len(), 2);
    assert_eq!(second.metric("mantlet_key_answers_total{result=\"stale\"}"), 1.0);
    second.shutdown();
    // What somebody else wrote into the file is not believed.
    let broken = kept.path().join("broken.redb");
    std::fs::write(&broken, [0x55; 70_000]).unwrap();
    let third = world.gateway(DIRECT, &format!("store = {broken:?}"));
    let honest = world.honest("two", 3600);
    assert_eq!(names(&query(&third, std::slice::from_ref(&honest), now())), [honest]);
}

#[test]
fn what_is_kept_is_found_once_it_can_be_read() {
    let world = World::new();
    let kept = TempDir::new().unwrap();
    let store = format!("store = {:?}", kept.path().join("keys.redb"));
    let server = world.honest("one", 3600);
    let first = world.gateway(DIRECT, &store);
    let answer = query(&first, std::slice::from_ref(&server), now()).json();
    // It has the file to itself.
    let second = world.gateway(DIRECT, &store);
    world.answers(&server, json_response(500, &json!({})));
    assert_eq!(names(&query(&second, std::slice::from_ref(&server), now())), Vec::<String>::new());
    first.shutdown();
    eventually("the file is tried again", || query(&second, std::slice::from_ref(&server), now()).json() == answer);
}

#[test]
fn our_own_signature_stands_beside_the_servers() {
    let world = World::new();
    let kept = TempDir::new().unwrap();
    let key = kept.path().join("notary.key");
    private(&key, "ed25519 notary YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n");
    let gateway = world.gateway(DIRECT, &format!("notary_key = {key:?}"));
    let server = world.server("one");
    let origin = Origin::new();
    world.answers(&server, json_response(200, &origin.keys(&server, 3600)));
    let answer = query(&gateway, std::slice::from_ref(&server), now()).json();
    let object: CanonicalJsonObject = serde_json::from_value(answer["server_keys"][0].clone()).unwrap();
    let signers: Vec<_> = object["signatures"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(signers, ["matrix.org".to_owned(), server.clone()]);
    let public = |name: &str, key: &[u8]| BTreeMap::from([(name.to_owned(), Base64::new(key.to_vec()))]);
    let notary = Base64::<Standard>::parse("XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI").unwrap();
    let believed = BTreeMap::from([
        ("matrix.org".to_owned(), public("ed25519:notary", notary.as_bytes())),
        (server, public("ed25519:a", &origin.0.public_key())),
    ]);
    verify_json(&believed, &object).unwrap();
}

#[test]
fn an_empty_answer_asks_nobody_at_all() {
    let world = World::new();
    let gateway = world.gateway("[rules.notary]\nmatrix_org = \"empty\"", "");
    let answer = query(&gateway, &[world.honest("one", 3600)], now());
    assert_eq!(names(&answer), Vec::<String>::new());
    assert_eq!(answer.text(), "{\"server_keys\":[]}");
    assert!(world.asked().is_empty() && world.dns.asked().is_empty());
    let record = &gateway.records(1)[0];
    assert_eq!((record["decision"].as_str(), record["rule"].as_str()), (Some("answer"), Some("notary")));
}

#[test]
fn another_notary_gets_the_question_and_not_who_asks() {
    let world = World::new();
    let notary = world.server("notary");
    world.answers(&notary, json_response(200, &json!({"server_keys": []})));
    let policy = format!("extends = \"balanced\"\n[rules.notary]\nmatrix_org = {{ rewrite = \"{notary}\" }}");
    let gateway = world.gateway(&policy, "");
    let servers = [world.honest("one", 3600)];
    assert_eq!(names(&query(&gateway, &servers, 7)), Vec::<String>::new());
    let asked = world.backend.requests();
    let [request] = &asked[..] else { panic!("{:?}", world.asked()) };
    let mut fields: Vec<_> = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    fields.sort();
    assert_eq!(fields, ["content-length", "content-type", "host", "user-agent"]);
    assert_eq!((request.header("host"), request.header("user-agent")), (Some(notary.as_str()), Some("Synapse")));
    let wanted = json!({"server_keys": {&servers[0]: {"ed25519:a": {"minimum_valid_until_ts": 7}}}});
    assert_eq!(serde_json::from_slice::<Value>(&request.body).unwrap(), wanted);
    world.assert_matrix_org_heard_nothing();
}

/// Synapse would leave matrix.org alone for what another failed on: it is matrix.org that it asked.
#[test]
fn whatever_goes_wrong_at_another_notary_synapse_is_told_that_nothing_is_known() {
    let world = World::new();
    let answers = |name: &str, answer: Vec<u8>| {
        let notary = world.server(name);
        world.answers(&notary, answer);
        notary
    };
    let keys = json!({"server_keys": []});
    world.dns.address("stranger.test", "127.0.1.1");
    let port = world.front.addr().port();
    let broken = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 90\r\nConnection: close\r\n\r\n{\"server_keys\":[";
    let long = json!({"server_keys": [], "x": "x".repeat(8 * 1024 * 1024)});
    for (notary, error) in [
        (format!("gone.many.test:{port}"), "origin_unknown"),
        (world.server_at("refuses", "127.0.1.2"), "origin_connect"),
        (world.server_at("forbidden", "127.0.0.1"), "origin_forbidden"),
        (format!("stranger.test:{port}"), "origin_untrusted"),
        (answers("garbled", b"220 mail.example ESMTP\r\n".to_vec()), "origin_garbled"),
        (answers("elsewhere", response(307, &[("Location", "https://matrix.org/")], "")), "origin_redirect"),
        (answers("busy", json_response(429, &keys)), "origin_garbled"),
        (answers("locked", json_response(401, &keys)), "origin_garbled"),
        (answers("down", json_response(503, &keys)), "origin_garbled"),
        (answers("broken", broken.into()), "origin_closed"),
        (answers("long", json_response(200, &long)), "origin_garbled"),
    ] {
        let policy = format!("extends = \"balanced\"\n[rules.notary]\nmatrix_org = {{ rewrite = \"{notary}\" }}");
        let gateway = world.gateway(&policy, "[admin]\nbind = \"127.0.0.1:0\"");
        let answer = query(&gateway, &["one.many.test".to_owned()], 7);
        assert_eq!((names(&answer), answer.text()), (Vec::new(), "{\"server_keys\":[]}".to_owned()), "{notary}");
        let record = &gateway.records(1)[0];
        assert_eq!(
            ["decision", "error", "rule", "upstream"].map(|field| record[field].as_str().unwrap()),
            ["error", error, "notary", "(other servers)"],
            "{notary}"
        );
        assert!(record["upstream_us"].is_null() && record["status"] == 200, "{record}");
        let counted = format!("mantlet_upstream_errors_total{{kind=\"{error}\",upstream=\"(other servers)\"}}");
        assert_eq!(gateway.metric(&counted), 1.0, "{notary}");
        let contacts = gateway.contacts();
        let of_keys: Vec<_> = contacts.iter().filter(|row| row["cause"] == "keys").collect();
        assert!(of_keys.len() == 1 && of_keys[0]["verdict"] == "failed", "{contacts:?}");
        assert_eq!((of_keys[0]["destination"].as_str(), of_keys[0]["bytes_in"].as_u64()), (Some(&*notary), Some(0)));
    }
    world.assert_matrix_org_heard_nothing();
}

#[test]
fn another_notary_that_says_nothing_or_half_of_it_is_nothing_known_in_time() {
    let world = World::new();
    let half = world.server("half");
    world.answers(&half, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{".to_vec());
    std::thread::scope(|scope| {
        for notary in [world.server("notary"), half] {
            let world = &world;
            scope.spawn(move || {
                let policy =
                    format!("extends = \"balanced\"\n[rules.notary]\nmatrix_org = {{ rewrite = \"{notary}\" }}");
                let gateway = world.gateway(&policy, "");
                let began = Instant::now();
                assert_eq!(query(&gateway, &["one.many.test".to_owned()], 7).text(), "{\"server_keys\":[]}");
                // Three quarters of what the gateway waits for any head.
                let took = began.elapsed();
                assert!((Duration::from_secs(9)..Duration::from_secs(12)).contains(&took), "{took:?}");
                let record = &gateway.records(1)[0];
                assert_eq!(
                    ["decision", "error", "rule", "upstream"].map(|field| record[field].as_str().unwrap()),
                    ["error", "origin_silent", "notary", "(other servers)"]
                );
                assert!(record["upstream_us"].is_null() && record["status"] == 200, "{record}");
                let counted = "mantlet_upstream_errors_total{kind=\"origin_silent\",upstream=\"(other servers)\"}";
                assert_eq!(gateway.metric(counted), 1.0);
                assert!(world.asked().contains(&(notary, "/_matrix/key/v2/query".to_owned())), "{:?}", world.asked());
            });
        }
    });
    assert_eq!(world.asked().len(), 2);
}

#[test]
fn without_the_rule_the_notary_hears_what_synapse_signed() {
    let world = World::new();
    let gateway = world.gateway("extends = \"transparent\"", "");
    // Where matrix.org is, the specification says; nobody is there. It was looked for all the same.
    assert_eq!(query(&gateway, &[], 7).status, 502);
    assert!(world.dns.asked().iter().any(|(name, _)| name.contains("matrix.org")));
}

const OWN: &str = "[rules.notary]\ninbound = \"own\"";

#[test]
fn strangers_get_no_keys_but_those_of_the_homeserver() {
    let synapse = backend(|request| match request.target_text().as_str() {
        "/_matrix/key/v2/server" => Answer::Bytes(json_response(200, &json!({"server_name": "own.example:1"}))),
        _ => ok(),
    });
    for more in ["", "[homeserver]\nserver_name = \"own.example:1\""] {
        let gateway = Gateway::with(&url(&synapse), OWN, more);
        let post = |body: &str| {
            let body = body.as_bytes().to_vec();
            let request = Request::new("POST", "/_matrix/key/v2/query").header("Content-Type", "application/json");
            request.body(body).send(gateway.addr())
        };
        let arrived = || {
            let requests = synapse.take();
            let queries = requests.into_iter().filter(|request| request.target_text().contains("query"));
            queries.map(|request| (request.target_text(), String::from_utf8(request.body).unwrap())).collect::<Vec<_>>()
        };
        let own = "{ \"server_keys\": {\"own.example:1\": {\"ed25519:a\": {\"minimum_valid_until_ts\": 1}}}}";
        assert_eq!(post(own).text(), "{}");
        assert_eq!(arrived(), [("/_matrix/key/v2/query".to_owned(), own.to_owned())]);
        let get = |path: &str| Request::new("GET", path).send(gateway.addr());
        assert_eq!(get("/_matrix/key/v2/query/own.example%3A1/ed25519:a").text(), "{}");
        assert_eq!(arrived().len(), 1);
        let long = format!("{{\"server_keys\":{{\"own.example:1\":{{\"{}\":{{}}}}}}}}", "x".repeat(70_000));
        for body in [
            "{\"server_keys\":{\"other.example\":{}}}",
            "{\"server_keys\":{\"own.example:1\":{},\"other.example\":{}}}",
            "{\"server_keys\":{\"own.example:1\":{}},\"server_keys\":{\"other.example\":{}}}",
            "{\"server_keys\":{\"own.example:1\":{}},\"server\\u005fkeys\":{\"other.example\":{}}}",
            "{\"server_keys\":{\"OWN.example:1\":{}}}",
            "{\"server_keys\":{}}",
            "{}",
            "",
            "garbage",
            &long,
        ] {
            assert_eq!(names(&post(body)), Vec::<String>::new(), "{body:.80}");
        }
        for path in ["other.example", "other.example/ed25519:a?minimum_valid_until_ts=9", "own.example%3A1x", "", "%FF"]
        {
            let answer = get(&format!("/_matrix/key/v2/query/{path}"));
            assert!(answer.status == 404 || names(&answer).is_empty(), "{path}: {}", answer.text());
        }
        assert_eq!(arrived(), []);
        assert_eq!(get("/_matrix/key/v2/server").status, 200);
    }
}

#[test]
fn whoever_may_ask_asks_synapse() {
    let synapse = homeserver();
    let gateway = Gateway::start(&url(&synapse), "extends = \"balanced\"");
    assert_eq!(Request::new("GET", "/_matrix/key/v2/query/other.example/ed25519:a").send(gateway.addr()).text(), "{}");
    assert_eq!(synapse.requests().len(), 1);
}
