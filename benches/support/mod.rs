//! What the benchmarks share: policies from text, and requests as a web client sends them.

#![allow(dead_code, reason = "each benchmark uses its part")]
#![allow(clippy::panic, clippy::expect_used, reason = "a benchmark that cannot be set up has failed")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mantlet::config::compiled::Compiled;
use mantlet::config::gateway::PolicySource;
use mantlet::matrix::classify::{classify, flow};
use mantlet::policy::{Exchange, Policy};
use mantlet_testkit::sample;

/// The policy that this text is, its tests passed.
pub fn policy(text: &str) -> Arc<Policy> {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("policy.toml");
    std::fs::write(&file, text).expect("the policy is written");
    Compiled::load(&PolicySource::File(file)).unwrap_or_else(|problems| panic!("{problems}")).policy
}

/// The fields of a web client's request.
pub fn fields() -> HeaderMap {
    let host = [("Host", "matrix.example.org")];
    // `Connection` is gone before a request is judged.
    let all = host.iter().chain(sample::FIELDS.iter().filter(|(name, _)| *name != "Connection"));
    let parsed = |(name, value): &(&str, &'static str)| {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("it is a name");
        (name, HeaderValue::from_static(value))
    };
    all.map(parsed).collect()
}

/// A GET request as it is judged: its endpoint is found here.
pub fn exchange<'a>(path: &'a str, headers: &'a HeaderMap) -> Exchange<'a> {
    Exchange {
        flow: flow(path),
        classified: classify(&Method::GET, path),
        method: &Method::GET,
        path,
        query: None,
        headers,
        host: "matrix.example.org",
        destination: None,
        client: IpAddr::V4(Ipv4Addr::LOCALHOST),
        token: None,
        registration: None,
        keys_of: None,
    }
}
