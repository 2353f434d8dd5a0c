//! What the rules' tests share: a policy from a few lines of TOML, and a judgement in a few words.

use std::path::Path;
use std::sync::Arc;

use http::{HeaderMap, Request, Response};

pub(crate) use crate::policy::selftest::Supposed;

use crate::config::policy_file::PolicyFile;
use crate::message::Answer;
use crate::policy::selftest::{Finding, Probe, Seen};
use crate::policy::{Decision, Policy, Registration};
use crate::problem::Problems;

/// The policy that these lines make.
pub(crate) fn policy(toml: &str) -> Arc<Policy> {
    match compile(toml) {
        Ok(policy) => policy,
        Err(problems) => panic!("{problems}"),
    }
}

/// What is wrong with these lines.
pub(crate) fn problems(toml: &str) -> String {
    compile(toml).map_or_else(|problems| problems.to_string(), |_| "no problem at all".into())
}

fn compile(toml: &str) -> Result<Arc<Policy>, Problems> {
    let (file, problems) = PolicyFile::from_text("test.toml", toml, Path::new("."))?;
    let sources = Arc::clone(&file.sources);
    super::compile(file.into_draft(), &sources, problems).map(|(policy, _)| policy)
}

/// `permit`, or `deny RULE STATUS ERRCODE`.
pub(crate) fn judge(policy: &Arc<Policy>, method: &str, target: &str, headers: &[(&str, &str)]) -> String {
    words(&probe(method, target, headers).judge(policy), policy)
}

/// The same with a token of which the homeserver would say this.
pub(crate) fn judge_token(policy: &Arc<Policy>, method: &str, target: &str, token: Supposed) -> String {
    let mut probe = probe(method, target, &[("authorization", "Bearer x")]);
    probe.token = token;
    words(&probe.judge(policy), policy)
}

/// The same for a client with nothing to show, where the homeserver would register so.
pub(crate) fn judge_registration(policy: &Arc<Policy>, target: &str, registration: Registration) -> String {
    let mut probe = probe("POST", target, &[]);
    probe.registration = registration;
    words(&probe.judge(policy), policy)
}

/// The same for a client at this address.
pub(crate) fn judge_from(policy: &Arc<Policy>, method: &str, target: &str, from: &str) -> String {
    let mut probe = probe(method, target, &[]);
    probe.from = from.parse().unwrap();
    words(&probe.judge(policy), policy)
}

/// The answer that the gateway itself gives.
pub(crate) fn answer(policy: &Arc<Policy>, method: &str, target: &str) -> Answer {
    match probe(method, target, &[]).judge(policy).verdict.decision {
        Decision::Answer(denial) | Decision::Deny(denial) => denial.answer,
        Decision::Permit(_) | Decision::Fail(_) => panic!("{method} {target} is not answered"),
    }
}

/// The names of the fields that reach the homeserver.
pub(crate) fn upstream_fields(
    policy: &Arc<Policy>,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Vec<String> {
    let upstream = probe(method, target, headers).judge(policy).upstream.unwrap_or_default();
    sorted(upstream.headers())
}

/// What reaches the homeserver of a request: the target, and the token in its header.
pub(crate) fn arrival(policy: &Arc<Policy>, method: &str, target: &str, headers: &[(&str, &str)]) -> String {
    let Some(request) = probe(method, target, headers).judge(policy).upstream else {
        panic!("{target} is not permitted")
    };
    let token = request.headers().get("authorization").map(|value| format!(" {}", value.to_str().unwrap()));
    format!("{}{}", request.uri(), token.unwrap_or_default())
}

/// The names of the fields that reach the client when the homeserver answers with these.
pub(crate) fn downstream_fields(policy: &Arc<Policy>, headers: &[(&'static str, &str)]) -> Vec<String> {
    let finding = probe("GET", "/_matrix/client/versions", &[]).judge(policy);
    let Decision::Permit(permit) = finding.verdict.decision else { panic!("versions are not permitted") };
    let (_, hold) = permit.permit(Box::new(Request::new(())), |_| {}).open();
    let mut response = Response::new(());
    *response.headers_mut() =
        headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>();
    sorted(hold.hold(response).release(&permit).headers())
}

fn sorted(headers: &HeaderMap) -> Vec<String> {
    let mut names: Vec<_> = headers.keys().map(ToString::to_string).collect();
    names.sort_unstable();
    names
}

fn probe(method: &str, target: &str, headers: &[(&str, &str)]) -> Probe {
    let mut probe = Probe::new(method, target).unwrap();
    for (name, value) in headers {
        probe.header(name, value).unwrap();
    }
    probe
}

fn words(finding: &Finding, policy: &Arc<Policy>) -> String {
    let seen = Seen::of(finding, policy);
    let parts = [
        Some(seen.outcome.to_owned()),
        seen.rule.map(Into::into),
        seen.status.map(|status| status.to_string()),
        seen.errcode,
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}
