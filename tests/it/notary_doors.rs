//! The key ring at the other doors: where a notary is looked into, and as a notary of our own.

use std::path::Path;
use std::time::Duration;

use mantlet::server::reload::Trigger;
use mantlet_testkit::http::{Request, Response, json_response};
use ruma_common::CanonicalJsonObject;
use ruma_common::serde::Base64;
use ruma_signatures::verify_json;
use serde_json::{Value, json};

use crate::common::{assert_matrix_error, eventually};
use crate::interception;
use crate::notary::{DIRECT, World, names, now, private, wanted};
use crate::support::Gateway;

/// The key of the specification's appendix on signing JSON.
const KEY: &str = "ed25519 notary YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n";
const VERIFY_KEY: &str = "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI";

/// Whether Mantlet's key signed this as the notary of that name.
fn is_signed_by(name: &str, object: &Value) -> bool {
    let is_there = object["signatures"][name]["ed25519:notary"].is_string();
    let mut object = object.clone();
    object["signatures"].as_object_mut().unwrap().retain(|signer, _| signer == name);
    let object: CanonicalJsonObject = serde_json::from_value(object).unwrap();
    let key = Base64::new(Base64::<ruma_common::serde::base64::Standard>::parse(VERIFY_KEY).unwrap().into_inner());
    let keys = [("ed25519:notary".to_owned(), key)].into();
    // Where there is no signature, none is wrong.
    is_there && verify_json(&[(name.to_owned(), keys)].into(), &object).is_ok()
}

/// A proxy door that looks into matrix.org.
fn proxy_door(world: &World, policy: &str) -> Gateway {
    let policy = format!("{policy}\n[[egress.destination]]\nhost = \"matrix.org\"\naction = \"intercept\"\n");
    let door = format!("door = \"proxy\"\nports = [{}]", world.front.addr().port());
    let egress = "notary_key = \"notary.key\"\nca = { certificate = \"our.crt\", key = \"our.key\" }\n\
                  [admin]\nbind = \"127.0.0.1:0\"";
    world.gateway_behind(&door, &policy, egress, |dir| {
        interception::authority(dir, &["matrix.org"]);
        private(&dir.join("notary.key"), KEY);
    })
}

/// What Synapse asks matrix.org inside a tunnel.
fn query(world: &World, gateway: &Gateway, request_line: &str, body: &str) -> (u16, String) {
    let to = format!("matrix.org:{}", world.front.addr().port());
    let head = format!(
        "{request_line} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: Synapse/1.163.2\r\nContent-Type: application/json\r\n\
         Authorization: X-Matrix origin=\"here.test\",key=\"ed25519:a\",sig=\"c2ln\",destination=\"matrix.org\"\r\n\
         Content-Length: {}\r\n",
        body.len()
    );
    let (status, all) = interception::exchange(interception::tls(gateway, &to, "matrix.org"), &head, body);
    (status, all.split_once("\r\n\r\n").unwrap_or_default().1.to_owned())
}

#[test]
fn where_matrix_org_is_looked_into_each_server_is_asked_for_its_own_keys() {
    let world = World::new();
    let gateway = proxy_door(&world, DIRECT);
    let servers = [world.honest("one", 3600), world.honest("two", 3600)];
    let (status, body) = query(&world, &gateway, "POST /_matrix/key/v2/query", &wanted(&servers, now()).to_string());
    let body: Value = serde_json::from_str(&body).unwrap();
    let found: Vec<_> = body["server_keys"].as_array().unwrap().iter().collect();
    assert_eq!((status, found.len()), (200, 2), "{body}");
    for (keys, server) in found.iter().zip(&servers) {
        assert_eq!(keys["server_name"], **server);
        // The name that Synapse knows it by, not the host and port where it was looked for.
        assert!(is_signed_by("matrix.org", keys), "{keys}");
    }
    let line = format!("GET /_matrix/key/v2/query/{}/ed25519:a", servers[0]);
    let (status, body) = query(&world, &gateway, &line, "");
    assert!(status == 200 && body.contains(&servers[0]), "{body}");
    let mut asked = world.asked();
    asked.sort();
    assert_eq!(asked, servers.each_ref().map(|server| (server.clone(), "/_matrix/key/v2/server".to_owned())));
    world.assert_matrix_org_heard_nothing();
    let record = &gateway.records(2)[0];
    assert_eq!(
        ["flow", "endpoint", "upstream", "decision", "rule"].map(|field| record[field].as_str().unwrap()),
        ["egress", "key_get_remote_server_keys_batch", "(key ring)", "permit", "notary"]
    );
    assert_all_was_asked_through("proxy", &gateway, &servers);
}

/// What Mantlet asked by itself is in the ledger as asked through the door that Synapse came to: these servers for their keys, and
/// whatever else.
#[track_caller]
fn assert_all_was_asked_through(door: &str, gateway: &Gateway, servers: &[String]) {
    let contacts = gateway.contacts();
    assert!(contacts.iter().all(|row| row["door"] == door), "{contacts:?}");
    for server in servers {
        assert!(contacts.iter().any(|row| row["cause"] == "keys" && row["destination"] == **server), "{contacts:?}");
    }
}

#[test]
fn where_matrix_org_is_looked_into_the_policy_says_who_answers() {
    let world = World::new();
    let servers = [world.honest("one", 3600)];
    let question = wanted(&servers, now()).to_string();
    let ask = |gateway: &Gateway| query(&world, gateway, "POST /_matrix/key/v2/query", &question);
    let nothing = (200, "{\"server_keys\":[]}".to_owned());
    assert_eq!(ask(&proxy_door(&world, "[rules.notary]\nmatrix_org = \"empty\"")), nothing);
    assert!(world.asked().is_empty() && world.dns.asked().is_empty());
    let notary = world.server("notary");
    world.answers(&notary, json_response(200, &json!({"server_keys": []})));
    let rewrite = format!("[rules.notary]\nmatrix_org = {{ rewrite = \"{notary}\" }}");
    let gateway = proxy_door(&world, &rewrite);
    assert_eq!(ask(&gateway), nothing);
    assert_eq!(world.asked(), [(notary, "/_matrix/key/v2/query".to_owned())]);
    assert_eq!(world.backend.last().unwrap().header("authorization"), None);
    assert_eq!(gateway.records(1)[0]["upstream"], "(other servers)");
    world.assert_matrix_org_heard_nothing();
    // Without the rule it is matrix.org that answers.
    world.answers(&format!("matrix.org:{}", world.front.addr().port()), json_response(200, &json!({"it": "is"})));
    assert_eq!(ask(&proxy_door(&world, "[rules.server_banner]")), (200, "{\"it\":\"is\"}".to_owned()));
}

const NOTARY: &str = "door = \"notary\"\nserver_name = \"notary.gw:8449\"";

fn our_notary(world: &World, door: &str, policy: &str, egress: &str) -> Gateway {
    world.gateway_behind(door, policy, egress, |dir: &Path| private(&dir.join("notary.key"), KEY))
}

/// What Synapse writes to a notary that it reaches itself.
fn ask(servers: &[String]) -> Request {
    let signed = "X-Matrix origin=\"here.test\",key=\"ed25519:a\",sig=\"c2ln\",destination=\"notary.gw:8449\"";
    Request::new("POST", "/_matrix/key/v2/query")
        .header("Host", "notary.gw:8449")
        .header("User-Agent", "Synapse/1.163.2")
        .header("Authorization", signed)
        .json(&wanted(servers, now()))
        .timeout(Duration::from_secs(30))
}

#[test]
fn a_notary_of_our_own_answers_questions_for_keys_under_its_name() {
    let world = World::new();
    let servers = [world.honest("one", 3600), world.honest("two", 3600)];
    let egress = "notary_key = \"notary.key\"\n[admin]\nbind = \"127.0.0.1:0\"";
    let gateway = our_notary(&world, NOTARY, DIRECT, egress);
    // Of the last one it is asked whom it delegates to, in vain.
    let gone = "gone.many.test".to_owned();
    let answer = ask(&[&servers[..], std::slice::from_ref(&gone)].concat()).send(gateway.addr());
    assert_eq!(names(&answer), servers);
    assert_all_was_asked_through("notary", &gateway, &[&servers[..], &[gone]].concat());
    assert!(
        gateway.contacts().iter().any(|row| row["destination"] == "gone.many.test:443"),
        "{:?}",
        gateway.contacts()
    );
    for keys in answer.json()["server_keys"].as_array().unwrap() {
        assert!(is_signed_by("notary.gw:8449", keys), "{keys}");
    }
    let get = |path: &str| Request::new("GET", path).header("Host", "elsewhere.test").send(gateway.addr());
    assert_eq!(names(&get(&format!("/_matrix/key/v2/query/{}", servers[1]))), servers[1..]);
    assert_eq!(world.asked().len(), 2);
    // What it says of its own key is what whoever pins it needs.
    let own = get("/_matrix/key/v2/server").json();
    assert_eq!(
        (&own["server_name"], &own["verify_keys"]["ed25519:notary"]["key"]),
        (&json!("notary.gw:8449"), &json!(VERIFY_KEY))
    );
    assert!(is_signed_by("notary.gw:8449", &own) && own["valid_until_ts"].as_i64().unwrap() > now() + 3_600_000);
    // Nothing else is there, by whatever name.
    for path in ["/_matrix/federation/v1/version", "/_matrix/client/versions", "/", "/health"] {
        assert_matrix_error(&get(path), 404, "M_UNRECOGNIZED");
    }
    for target in ["http://127.0.0.1/_matrix/key/v2/server", "matrix-federation://notary.gw:8449/_matrix/key/v2/server"]
    {
        assert_eq!(get(target).status, 400, "{target}");
    }
    let record = &gateway.records(1)[0];
    assert_eq!(
        ["flow", "endpoint", "upstream", "decision", "rule", "listener"].map(|field| record[field].as_str().unwrap()),
        ["egress", "key_get_remote_server_keys_batch", "(key ring)", "permit", "notary", "out"]
    );
    world.assert_matrix_org_heard_nothing();
}

#[test]
fn a_new_notary_key_signs_without_a_restart_and_a_bad_one_is_not_taken() {
    let world = World::new();
    let servers = [world.honest("one", 3600)];
    let gateway = our_notary(&world, NOTARY, DIRECT, "notary_key = \"notary.key\"");
    let (file, reload) = (gateway.dir().join("notary.key"), || gateway.reloader().reload(Trigger::Command));
    // Who signs as the notary, by what it answers and by what it says of itself.
    let signers = || {
        let get = Request::new("GET", "/_matrix/key/v2/server").header("Host", "a");
        let (keys, own) = (ask(&servers).send(gateway.addr()).json(), get.send(gateway.addr()).json());
        [&keys["server_keys"][0], &own].map(|object| {
            let signatures = object["signatures"]["notary.gw:8449"].as_object().unwrap();
            signatures.keys().cloned().collect::<Vec<_>>().join(" ")
        })
    };
    assert_eq!(signers(), ["ed25519:notary"; 2]);
    private(&file, &KEY.replace("notary", "second"));
    let told = "the policy is unchanged; the notary key is new, and has to be pinned anew where it was: mantlet check \
                prints it";
    assert_eq!(reload().unwrap().message, told);
    assert_eq!(signers(), ["ed25519:second"; 2]);
    assert_eq!(reload().unwrap().message, "the policy is unchanged");
    private(&file, "ed25519 hidden");
    let refused = reload().unwrap_err();
    assert_eq!(refused.message, "the policy is unchanged; a new secret is refused, the old one stays");
    let problems = refused.problems.to_string();
    assert!(problems.contains("is not of the form") && !problems.contains("hidden"), "{problems}");
    assert_eq!(signers(), ["ed25519:second"; 2]);
    // Nobody has to ask for it. Twice, for all files are looked at once soon after the start.
    private(&file, &KEY.replace("notary", "third"));
    eventually("the file is looked at", || signers() == ["ed25519:third"; 2]);
    private(&file, KEY);
    eventually("the file is looked at", || signers() == ["ed25519:notary"; 2]);
    assert_eq!(world.asked().len(), 1);
}

#[test]
fn a_notary_of_our_own_obeys_the_rule_and_is_one_without_it() {
    let world = World::new();
    let servers = [world.honest("one", 3600)];
    let empty = our_notary(&world, NOTARY, "[rules.notary]\nmatrix_org = \"empty\"", "");
    assert_eq!(ask(&servers).send(empty.addr()).text(), "{\"server_keys\":[]}");
    assert!(world.asked().is_empty());
    let notary = world.server("notary");
    world.answers(&notary, json_response(200, &json!({"server_keys": []})));
    let rewrite = format!("[rules.notary]\nmatrix_org = {{ rewrite = \"{notary}\" }}");
    assert_eq!(ask(&servers).send(our_notary(&world, NOTARY, &rewrite, "").addr()).text(), "{\"server_keys\":[]}");
    assert_eq!(world.asked(), [(notary, "/_matrix/key/v2/query".to_owned())]);
    let without = our_notary(&world, NOTARY, "extends = \"transparent\"", "");
    let answer = ask(&servers).send(without.addr());
    assert_eq!(
        (names(&answer), answer.json()["server_keys"][0]["signatures"].as_object().unwrap().len()),
        (servers.to_vec(), 1)
    );
    // It has no key, and so none to show.
    let own: Response = Request::new("GET", "/_matrix/key/v2/server").header("Host", "a").send(without.addr());
    assert_matrix_error(&own, 404, "M_UNRECOGNIZED");
}

#[test]
fn a_notary_of_our_own_is_for_its_networks_and_speaks_tls() {
    let world = World::new();
    let servers = [world.honest("one", 3600)];
    let leaf = world.authority.issue(&["notary.gw"]).unwrap();
    let door = format!(
        "{NOTARY}\nnetworks = [\"127.0.0.7\"]\ntls = {{ certificate = \"notary.gw.crt\", key = \"notary.gw.key\" }}"
    );
    let gateway = world.gateway_behind(&door, DIRECT, "", |dir| {
        let (certificate, key) = leaf.write(dir).unwrap();
        std::fs::rename(certificate, dir.join("notary.gw.crt")).unwrap();
        std::fs::rename(key, dir.join("notary.gw.key")).unwrap();
    });
    let refused = ask(&servers).try_send_tls(gateway.addr(), "notary.gw", &world.authority.pem());
    assert!(refused.is_err(), "{refused:?}");
    assert!(world.asked().is_empty());
    let door = door.replace("127.0.0.7", "127.0.0.0/24");
    let gateway = world.gateway_behind(&door, DIRECT, "", |dir| {
        let (certificate, key) = leaf.write(dir).unwrap();
        std::fs::rename(certificate, dir.join("notary.gw.crt")).unwrap();
        std::fs::rename(key, dir.join("notary.gw.key")).unwrap();
    });
    assert_eq!(names(&ask(&servers).send_tls(gateway.addr(), "notary.gw", &world.authority.pem())), servers);
}
