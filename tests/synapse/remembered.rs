//! What `mantlet check --homeserver` says to ask the database, asked of a real one.

use std::process::Command;

use mantlet_testkit::synapse::Role;
use serde_json::{Value, json};

use crate::world::{PASSWORD, world};

#[test]
fn the_database_says_which_identity_servers_and_push_gateways_it_remembers() {
    let synapse = &world().synapse;
    let user = synapse.register("remembered", PASSWORD, Role::User).unwrap();
    for (key, url) in
        [("one", "https://push.test:8443/_matrix/push/v1/notify"), ("two", "http://other.test/_matrix/push/v1/notify")]
    {
        let pusher = json!({
            "kind": "http", "app_id": "test", "app_display_name": "test", "device_display_name": "test", "lang": "en",
            "pushkey": key, "data": {"url": url},
        });
        synapse.call(Some(&user), "POST", "/_matrix/client/v3/pushers/set", Some(&pusher)).unwrap();
    }
    // As Synapse does when an address is bound, for which an identity server would have to be there.
    for server in ["is.test", "vector.im", "is.test"] {
        let address = format!("{server}-{}@example.org", synapse.ask_database("SELECT hex(randomblob(8))").unwrap()[0]);
        let bound = format!(
            "INSERT INTO user_threepid_id_server (user_id, medium, address, id_server) VALUES ('{}', 'email', '{address}', '{server}')",
            user.user_id
        );
        synapse.ask_database(&bound).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("mantlet.toml"), "").unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_mantlet"))
        .current_dir(directory.path())
        .args(["--format", "json", "check", "--homeserver"])
        .args(synapse.files())
        .env_remove("MANTLET_CONFIG")
        .output()
        .unwrap();
    let told: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(told["database"]["with"], "sqlite3", "{told}");
    let ask = |question: &str| synapse.ask_database(told["database"][question].as_str().unwrap()).unwrap();
    assert_eq!(ask("identity_servers"), ["is.test", "vector.im"]);
    assert_eq!(ask("push_gateways"), ["other.test", "push.test:8443"]);
    // What this Synapse protects itself with is none of it told.
    let printed = String::from_utf8(ran.stdout).unwrap();
    let secrets = std::fs::read_to_string(&synapse.files()[0]).unwrap();
    let secrets: Value = serde_json::from_str(&secrets).unwrap();
    assert!(!printed.contains(secrets["registration_shared_secret"].as_str().unwrap()));
}
