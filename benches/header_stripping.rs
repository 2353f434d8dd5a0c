//! What removing header fields costs: `cargo bench --bench header_stripping`
//!
//! The fields of a web client's request, edited as they are before it goes upstream. What it costs within a whole request, in
//! instructions, tells `cargo test --bench icount`.

mod support;

use divan::Bencher;
use http::header::{HeaderMap, HeaderValue, SERVER};
use mantlet::matrix::Flow;

fn main() {
    divan::main();
}

#[divan::bench]
fn none(bencher: Bencher<'_, '_>) {
    requests(bencher, "extends = \"balanced\"\n[rules.request_headers]\nmode = \"off\"", 13);
}

#[divan::bench]
fn three_headers(bencher: Bencher<'_, '_>) {
    requests(bencher, mantlet_testkit::sample::STRIP_THREE, 10);
}

#[divan::bench]
fn balanced_list(bencher: Bencher<'_, '_>) {
    requests(bencher, "extends = \"balanced\"", 4);
}

#[divan::bench]
fn strict_allow_list(bencher: Bencher<'_, '_>) {
    requests(bencher, "extends = \"strict\"", 4);
}

/// The agent's class instead of its name.
#[divan::bench]
fn agent_class(bencher: Bencher<'_, '_>) {
    requests(bencher, "extends = \"balanced\"\n[rules.request_headers]\nuser_agent = \"class\"", 5);
}

/// What is removed from and set in an answer.
#[divan::bench]
fn answer(bencher: Bencher<'_, '_>) {
    let text =
        "extends = \"balanced\"\n[rules.response_headers]\nset = { Strict-Transport-Security = \"max-age=63072000\" }";
    let policy = support::policy(text);
    let fields = HeaderMap::from_iter([(SERVER, HeaderValue::from_static("Synapse/1.163.2"))]);
    bencher.with_inputs(|| fields.clone()).bench_refs(|fields| policy.edit_response(Flow::Client, fields));
}

/// Edits the fields of a request, of which so many are left.
fn requests(bencher: Bencher<'_, '_>, text: &str, left: usize) {
    let policy = support::policy(text);
    let mut fields = support::fields();
    policy.edit_request(Flow::Client, &mut fields);
    assert_eq!(fields.len(), left, "{fields:?}");
    bencher.with_inputs(support::fields).bench_refs(|fields| policy.edit_request(Flow::Client, fields));
}
