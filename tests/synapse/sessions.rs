//! An ordinary client goes on working: whole sessions of matrix-nio through Mantlet, plain and over TLS, under both policies.

use std::collections::BTreeSet;

use mantlet_testkit::certificate::Authority;
use mantlet_testkit::nio::{SessionOptions, Users, run_session};

use crate::support::Gateway;
use crate::world::{PASSWORD, extends, world};

/// What no session may leave out.
const WANTED: [&str; 10] = [
    "get_profile",
    "profile_is_what_was_set",
    "the_room_is_listed",
    "join_by_alias",
    "the_long_poll_waits",
    "the_message_arrives",
    "the_bytes_are_the_same",
    "a_download_needs_a_token",
    "logout",
    "the_token_is_dead",
];

fn hold(gateway: &Gateway, url: &str, options: &SessionOptions) {
    let passed = run_session(url, options).unwrap();
    for check in WANTED {
        assert!(passed.iter().any(|passed| passed == check), "{check} is not in {passed:?}");
    }
    // Everything that the client asked for passed, and it came through here.
    let records = gateway.records_with(|record| record["endpoint"] == "logout");
    let seen = |key: &str| -> BTreeSet<&str> { records.iter().filter_map(|record| record[key].as_str()).collect() };
    assert!(
        seen("endpoint").is_superset(&BTreeSet::from(["sync", "send_message_event", "logout"])),
        "{:?}",
        seen("endpoint")
    );
    assert_eq!(seen("decision"), BTreeSet::from(["permit"]), "{}", gateway.written());
}

/// Users that exist, for servers on which nobody registers.
fn users(names: [&str; 2]) -> Users {
    Users::Login(names.map(|name| {
        world().user(name);
        (name.to_owned(), PASSWORD.to_owned())
    }))
}

fn plain(policy: &str, users: Users) {
    let gateway = world().gateway(policy);
    hold(&gateway, &gateway.url(), &SessionOptions { ca: None, users });
}

fn tls(policy: &str, users: Users) {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let ca = authority.write(directory.path()).unwrap();
    let (certificate, key) = authority.issue(&["localhost"]).unwrap().write(directory.path()).unwrap();
    let listener = format!("tls = {{ certificate = {certificate:?}, key = {key:?} }}");
    let gateway = Gateway::with_listener(&world().synapse.base_url(), &extends(policy), &listener, "");
    let url = format!("https://localhost:{}", gateway.addr().port());
    hold(&gateway, &url, &SessionOptions { ca: Some(ca), users });
}

#[test]
fn a_session_under_balanced() {
    plain("balanced", Users::Register);
}

#[test]
fn a_session_under_balanced_over_tls() {
    tls("balanced", Users::Register);
}

#[test]
fn a_session_under_strict() {
    plain("strict", users(["session-one", "session-two"]));
}

#[test]
fn a_session_under_strict_over_tls() {
    tls("strict", users(["session-three", "session-four"]));
}
