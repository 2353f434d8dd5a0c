//! An ordinary web client goes on working: whole sessions of matrix-js-sdk through Mantlet, plain and over TLS.

use std::collections::BTreeSet;

use mantlet_testkit::certificate::Authority;
use mantlet_testkit::js_sdk::run_session;
use mantlet_testkit::nio::{SessionOptions, Users};
use mantlet_testkit::shared_synapse;
use mantlet_testkit::synapse::Role;
use mantlet_testkit::tool::Tool;
use serde_json::Value;

use crate::support::Gateway;

/// What no session may leave out.
const WANTED: [&str; 10] = [
    "sync",
    "the_profile_is_what_was_set",
    "the_room_is_listed",
    "join_by_alias",
    "the_message_arrives",
    "the_bytes_are_the_same",
    "a_download_needs_a_token",
    "the_device_has_its_name",
    "a_widget_learns_its_user",
    "the_token_is_dead",
];

fn hold(gateway: &Gateway, url: &str, options: &SessionOptions) {
    let passed = run_session(url, options).unwrap();
    for check in WANTED {
        assert!(passed.iter().any(|passed| passed == check), "{check} is not in {passed:?}");
    }
    // All that the client asked for came through here; only the dead token was refused.
    let records = gateway.records_with(|record| record["endpoint"] == "logout");
    let endpoints: BTreeSet<&str> = records.iter().filter_map(|record| record["endpoint"].as_str()).collect();
    assert!(endpoints.is_superset(&BTreeSet::from(["sync", "send_message_event", "logout"])), "{endpoints:?}");
    // A client that stops lets its last long poll go.
    let passed = |decision: &Value| decision == "permit" || decision == "cancelled";
    let refused: Vec<_> = records.iter().filter(|record| !passed(&record["decision"])).collect();
    let dead_token = |record: &&&Value| record["rule"] == "public_rooms" && record["status"] == 401;
    assert_eq!(refused.iter().filter(dead_token).count(), refused.len(), "{refused:?}");
    assert!(refused.len() <= 1, "{refused:?}");
}

#[test]
fn a_session_under_balanced() {
    if Tool::Node.left_out().unwrap() {
        return;
    }
    let gateway = Gateway::start(&shared_synapse().base_url(), "extends = \"balanced\"");
    hold(&gateway, &gateway.url(), &SessionOptions::default());
}

#[test]
fn a_session_under_strict_over_tls() {
    if Tool::Node.left_out().unwrap() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let ca = authority.write(directory.path()).unwrap();
    let (certificate, key) = authority.issue(&["localhost"]).unwrap().write(directory.path()).unwrap();
    let listener = format!("tls = {{ certificate = {certificate:?}, key = {key:?} }}");
    let upstream = shared_synapse().base_url();
    let gateway = Gateway::with_listener(&upstream, "extends = \"strict\"", &listener, "");
    // Nobody registers there.
    let users = ["js-one", "js-two"].map(|name| {
        shared_synapse().register(name, "a password", Role::User).unwrap();
        (name.to_owned(), "a password".to_owned())
    });
    let url = format!("https://localhost:{}", gateway.addr().port());
    hold(&gateway, &url, &SessionOptions { ca: Some(ca), users: Users::Login(users) });
}
