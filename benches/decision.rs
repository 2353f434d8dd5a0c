//! Which endpoint is this, and may it pass? `cargo bench --bench decision`
//!
//! From a path to a decision: classification, look-up of the plan, judgement. The rules close paths that nobody asks for; what
//! is asked for is permitted.

mod support;

use std::fmt::Write;
use std::sync::Arc;

use divan::{Bencher, black_box};
use http::HeaderMap;
use mantlet::policy::{Decision, Policy};

fn main() {
    divan::main();
}

/// A long poll: the request that clients send most.
const SYNC: &str = "/_matrix/client/v3/sync";

/// How many rules.
const RULES: [usize; 4] = [10, 100, 1_000, 10_000];

#[divan::bench(args = [
    "/_matrix/client/versions",
    SYNC,
    "/_matrix/client/v3/rooms/!room:example.org/send/m.room.message/m1700000000.1",
    "/_matrix/client/v3/rooms/%21room%3Aexample.org/messages",
    "/_matrix/federation/v1/send/1700000000",
])]
fn balanced(bencher: Bencher<'_, '_>, path: &str) {
    permit(bencher, &support::policy("extends = \"balanced\""), path);
}

#[divan::bench(args = RULES)]
fn literal(bencher: Bencher<'_, '_>, rules: usize) {
    closed(bencher, rules, |n| format!("/_matrix/client/v3/closed/{n}"));
}

#[divan::bench(args = RULES)]
fn single_segment(bencher: Bencher<'_, '_>, rules: usize) {
    closed(bencher, rules, |n| format!("/_matrix/client/v3/rooms/[^/]+/closed{n}"));
}

#[divan::bench(args = RULES)]
fn regex(bencher: Bencher<'_, '_>, rules: usize) {
    closed(bencher, rules, |n| format!("/_matrix/client/(r0|v3)/closed{n}(/.*)?"));
}

/// With so many closed paths.
fn closed(bencher: Bencher<'_, '_>, rules: usize, path: impl Fn(usize) -> String) {
    let mut text = "extends = \"balanced\"\n".to_owned();
    for number in 0..rules {
        // Nothing is lost: it is a String.
        let _ = writeln!(text, "[[rules.closed_endpoint]]\npath = '{}'", path(number));
    }
    permit(bencher, &support::policy(&text), SYNC);
}

fn permit(bencher: Bencher<'_, '_>, policy: &Arc<Policy>, path: &str) {
    let headers = HeaderMap::new();
    let decide = || {
        let exchange = support::exchange(black_box(path), &headers);
        let steps = policy.steps(&exchange);
        let _ = black_box(steps.need());
        policy.decide(&steps, &exchange).decision
    };
    assert!(matches!(decide(), Decision::Permit(_)), "{path} should pass");
    bencher.bench(decide);
}
