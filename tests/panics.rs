//! What a process says of its own defects: where, and nothing of what a client sent.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::process::Command;

use mantlet::observe::log;

const SECRET: &str = "syt_c2VjcmV0_token";

#[test]
fn a_panic_is_told_by_its_place_and_not_in_its_words() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", "panics", "--ignored", "--nocapture"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("a defect stopped what a thread was doing"), "{told}");
    assert!(told.contains("tests/panics.rs:"), "{told}");
    assert!(!told.contains(SECRET), "{told}");
}

#[test]
#[ignore = "run by a_panic_is_told_by_its_place_and_not_in_its_words"]
fn panics() {
    log::init("info", log::Format::Text).unwrap();
    log::quote_no_panics();
    panic!("what was sent: {SECRET}");
}
