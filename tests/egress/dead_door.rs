//! One whose federation door is gone for a while: what its users see, and what mends itself.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Request, Response, json_response};
use mantlet_testkit::synapse::{Options, Place, Role, Session, Synapse};
use serde_json::json;

use crate::support::Gateway;
use crate::support::outside::{Dns, TlsFront};

/// A Mantlet whose federation door is the socket in this directory.
fn door(at: &Path, authority: &Authority, dns: &Dns) -> Gateway {
    let dir = tempfile::tempdir().unwrap();
    authority.write(dir.path()).unwrap();
    std::fs::write(dir.path().join("policy.toml"), "extends = \"balanced\"\n").unwrap();
    let text = format!(
        "[[listener]]\nname = \"out\"\ndoor = \"federation\"\nbind = \"unix:{}\"\nsecret_file = {:?}\nextra_roots = [\"ca.crt\"]\n\
         [policy]\nfile = \"policy.toml\"\n[egress]\nnameservers = [\"{}\"]\n[egress.addresses]\nallow = [\"127.0.1.0/24\"]\n",
        at.join("door.sock").display(),
        at.join("secret"),
        dns.addr()
    );
    Gateway::load(dir, &text, |_| {})
}

#[test]
fn while_its_door_is_gone_synapse_serves_its_users_and_afterwards_the_world_is_there_again() {
    let (dns, authority, directory) = (Dns::start(), Authority::new().unwrap(), tempfile::tempdir().unwrap());
    let backend = Backend::start(|_| Answer::Bytes(json_response(200, &json!({"displayname": "Bob afar"})))).unwrap();
    let front = TlsFront::start(&authority, &["there.test"], "127.0.1.1:0".parse().unwrap(), backend.addr());
    dns.address("there.test", "127.0.1.1");
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "a-secret-of-the-hook\n").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    // Synapse comes first: it starts without its door.
    let synapse = Synapse::start(Options {
        place: Place::Alone,
        extra_yaml: json!({
            "instance_map": {"mantlet": {"path": directory.path().join("door.sock")}},
            "outbound_federation_restricted_to": ["mantlet"],
            "worker_replication_secret_path": secret,
        })
        .to_string(),
        ..Options::default()
    });
    let synapse = synapse.unwrap();
    let alice = synapse.register("alice", "a password", Role::User).unwrap();
    let get = |session: &Session, target: &str| -> (Response, Duration) {
        let began = Instant::now();
        let request = Request::new("GET", target).bearer(&session.access_token).timeout(Duration::from_secs(60));
        (request.send(synapse.address()), began.elapsed())
    };
    let far = format!("/_matrix/client/v3/profile/@bob:there.test:{}", front.addr().port());
    let own = format!("/_matrix/client/v3/profile/{}", alice.user_id);
    let is_alone = || {
        let (answer, took) = get(&alice, &far);
        assert_eq!(answer.status, 502, "{}", answer.text());
        println!("without its door: {} after {took:.1?}", answer.status);
        assert_eq!(get(&alice, &own).0.status, 200);
        let room = synapse.call(Some(&alice), "POST", "/_matrix/client/v3/createRoom", Some(&json!({"name": "home"})));
        assert!(room.unwrap()["room_id"].is_string());
    };
    is_alone();
    for _ in 0..2 {
        let gateway = door(directory.path(), &authority, &dns);
        let (answer, _) = get(&alice, &far);
        assert_eq!((answer.status, &answer.json()["displayname"]), (200, &json!("Bob afar")), "{}", synapse.log_tail());
        gateway.shutdown();
        is_alone();
    }
    // One that was killed leaves its socket behind, and the next one takes its place.
    drop(std::os::unix::net::UnixListener::bind(directory.path().join("door.sock")).unwrap());
    assert!(directory.path().join("door.sock").exists());
    is_alone();
    let _gateway = door(directory.path(), &authority, &dns);
    assert_eq!(get(&alice, &far).0.status, 200);
    // Whatever it was, nobody but the door was tried.
    let door = format!("socket.connect {}", directory.path().join("door.sock").display());
    let attempts = synapse.attempts();
    assert!(!attempts.is_empty() && attempts.iter().all(|attempt| *attempt == door), "{attempts:#?}");
}
