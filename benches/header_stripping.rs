//! What removing header fields costs: `cargo bench --bench header_stripping`
//!
//! The fields of a web client's request: taken out of its bytes where they came in one piece over HTTP/1, or edited before it goes
//! upstream where they did not. What either costs within a whole request, in instructions, tells `cargo test --bench icount`.

mod support;

use divan::Bencher;
use http::header::{HeaderMap, HeaderValue, SERVER};
use mantlet::ingress::cut::cut;
use mantlet::ingress::heads::Heads;
use mantlet::matrix::Flow;
use mantlet_testkit::sample;

fn main() {
    divan::main();
}

#[divan::bench]
fn none(bencher: Bencher<'_, '_>) {
    requests(bencher, "extends = \"balanced\"\n[rules.request_headers]\nmode = \"off\"", 13);
}

#[divan::bench]
fn three_headers(bencher: Bencher<'_, '_>) {
    requests(bencher, sample::STRIP_THREE, 10);
}

#[divan::bench]
fn balanced_list(bencher: Bencher<'_, '_>) {
    requests(bencher, "extends = \"balanced\"", 4);
}

#[divan::bench]
fn strict_allow_list(bencher: Bencher<'_, '_>) {
    requests(bencher, "extends = \"strict\"", 4);
}

/// The same three lists, taken out of the bytes of a head.
#[divan::bench(args = ["none", "three", "balanced", "strict"])]
fn bytes(bencher: Bencher<'_, '_>, list: &str) {
    let (text, left) = match list {
        "none" => ("extends = \"balanced\"\n[rules.request_headers]\nmode = \"off\"", 14),
        "three" => (sample::STRIP_THREE, 11),
        "balanced" => ("extends = \"balanced\"", 5),
        _ => ("extends = \"strict\"", 5),
    };
    let policy = support::policy(text);
    let fields = sample::FIELDS.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
    let head = format!("GET {} HTTP/1.1\r\nHost: hs\r\n{}\r\n", sample::OPEN, fields.collect::<String>());
    let taken = |bytes: &mut Vec<u8>| {
        let takes = |name: &[u8]| policy.cut().is_some_and(|cut| cut.takes(name));
        cut(&mut Heads::default(), bytes, |_| true, takes)
    };
    let mut bytes = head.clone().into_bytes();
    let length = taken(&mut bytes);
    let lines = bytes[..length].iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines, left + 2, "{}", String::from_utf8_lossy(&bytes[..length]));
    bencher.with_inputs(|| head.clone().into_bytes()).bench_refs(taken);
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
