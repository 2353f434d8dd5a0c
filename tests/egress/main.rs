//! Real Synapses and the doors of the way out.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod alone;
mod dead_door;
mod dead_proxy;
mod inside;
mod notary;
mod provoked;
mod proxy_alone;
mod web;

use std::time::{Duration, Instant};

use serde_json::Value;

/// The ledger once it is so: it is written behind the answers.
#[track_caller]
pub fn contacts_with(ledger: impl Fn() -> Vec<Value>, is_so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let contacts = ledger();
        if is_so(&contacts) {
            return contacts;
        }
        assert!(Instant::now() < deadline, "{contacts:#?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
