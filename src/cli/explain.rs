//! `mantlet explain`

mod way_out;

use std::fmt::Write;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::output::Output;
use super::{Common, PolicyArgument, REFUSED, USAGE};
use crate::config::gateway::Gateway;
use crate::matrix::Flow;
use crate::message::Answer;
use crate::policy::decision::Need;
use crate::policy::plan::Edit;
use crate::policy::selftest::{Finding, Probe, Seen, Supposed};
use crate::policy::telling::Telling;
use crate::policy::{Decision, Gate, Policy, Reading, TokenVerdict};
use crate::problem::{Location, Problems};
use crate::stack::canonical;
use crate::tls::leaves::Interception;
use way_out::{closed_port, of_head, way};

#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    /// The method
    method: String,
    /// The path with its query, or a whole URL
    url: String,
    /// A field of the request: "Name: value"
    #[arg(short = 'H', long = "header", value_name = "FIELD")]
    headers: Vec<String>,
    /// The body of the request
    #[arg(long, value_name = "TEXT")]
    body: Option<String>,
    /// The direction, where the path does not tell it
    #[arg(long, value_enum)]
    flow: Option<FlowArgument>,
    /// The client's address
    #[arg(long, value_name = "ADDRESS")]
    from: Option<IpAddr>,
    /// What the homeserver would say of the request's token
    #[arg(long, value_enum, default_value_t = TokenArgument::Valid)]
    token: TokenArgument,
    #[command(flatten)]
    policy: PolicyArgument,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum FlowArgument {
    Client,
    Federation,
    Egress,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum TokenArgument {
    Valid,
    Guest,
    Invalid,
}

impl Explain {
    pub(super) fn run(self, common: &Common, output: &Output) -> Result<ExitCode, Problems> {
        let probe = match self.probe() {
            Ok(probe) => probe,
            Err(what) => {
                eprintln!("error: {what}");
                return Ok(ExitCode::from(USAGE));
            }
        };
        let policy = self.policy.load(common)?.policy;
        // A policy that is looked at by itself has no gateway file, unless one is named too.
        let gateway = match (&self.policy.policy, &common.config) {
            (Some(_), None) => None,
            (None, _) | (Some(_), Some(_)) => Some(common.gateway_alone()?),
        };
        let policy = match gateway.as_ref().is_some_and(Interception::is_wanting) {
            true => policy.without_authority(),
            false => policy,
        };
        let finding = probe.judge(&policy);
        // What is ambiguous is refused at the way in; at the way out Synapse asks, and not every port is led to.
        let refusal = match finding.flow.is_inbound() {
            true => canonical::refusal(&probe.method, &probe.target, &probe.headers)
                .map(|answer| Refused { by: canonical::NAME, answer }),
            false => gateway.as_ref().and_then(|gateway| closed_port(&probe, &finding, gateway)),
        };
        let upstream = gateway.as_ref().filter(|_| refusal.is_none());
        let upstream = upstream.and_then(|gateway| upstream_of(&probe, &finding, gateway));
        let refusal = refusal.as_ref();
        output.print(
            || text(&probe, &finding, &policy, refusal, upstream),
            || structure(&probe, &finding, &policy, refusal, upstream),
        );
        Ok(match finding.verdict.decision {
            _ if refusal.is_some() => ExitCode::from(REFUSED),
            Decision::Deny(_) | Decision::Fail(_) => ExitCode::from(REFUSED),
            Decision::Permit(_) | Decision::Answer(_) => ExitCode::SUCCESS,
        })
    }

    fn probe(&self) -> Result<Probe, String> {
        let mut probe = Probe::new(&self.method, &self.url)?;
        for header in &self.headers {
            let (name, value) =
                header.split_once(':').ok_or_else(|| format!("`{header}` is not of the form \"Name: value\""))?;
            probe.header(name, value)?;
        }
        probe.body = self.body.clone().map(Into::into);
        let flow = self.flow.map(|flow| match flow {
            FlowArgument::Client => Flow::Client,
            FlowArgument::Federation => Flow::Federation,
            FlowArgument::Egress => Flow::Egress,
        });
        probe.flow = flow.or(probe.flow);
        probe.from = self.from.unwrap_or(probe.from);
        probe.token = match self.token {
            TokenArgument::Valid => Supposed::Valid,
            TokenArgument::Guest => Supposed::Guest,
            TokenArgument::Invalid => Supposed::Invalid,
        };
        Ok(probe)
    }
}

/// What is answered before the policy is asked anything.
struct Refused {
    by: &'static str,
    answer: Answer,
}

/// What stands behind the method: path and query, or whom a tunnel is asked for to.
fn asked(probe: &Probe) -> &str {
    match (probe.target.path_and_query(), probe.target.authority()) {
        (Some(target), _) => target.as_str(),
        (None, Some(authority)) => authority.as_str(),
        (None, None) => "/",
    }
}

/// The upstream that answers the request, if it is permitted.
fn upstream_of<'a>(probe: &Probe, finding: &Finding, gateway: &'a Gateway) -> Option<&'a str> {
    let (Decision::Permit(_), true) = (&finding.verdict.decision, finding.flow.is_inbound()) else { return None };
    let position = gateway.routes.choose(&probe.method, probe.target.path(), finding.classified);
    gateway.upstreams.get(position).map(|upstream| &*upstream.name)
}

fn text(
    probe: &Probe,
    finding: &Finding,
    policy: &Arc<Policy>,
    refusal: Option<&Refused>,
    upstream: Option<&str>,
) -> String {
    let mut page = Page::default();
    let endpoint = finding.classified.raw;
    page.line("request", format!("{} {}", probe.method, asked(probe)));
    page.line("policy", format!("{} ({})", policy.name(), policy.digest()));
    page.line("flow", finding.flow.as_str());
    if let Some((words, _, location)) = way(probe, finding) {
        page.line("way", format!("{words}{}", place(location)));
    }
    match finding.is_tunnel {
        true => page.line("endpoint", finding.endpoint()),
        false => page.line("endpoint", format!("{} (authentication: {})", endpoint.id(), endpoint.auth().as_str())),
    }
    for template in endpoint.templates() {
        page.line("", template);
    }
    if finding.classified.raw != finding.classified.decoded {
        page.line("decoded", format!("{}: the spelling reads two ways", finding.classified.decoded.id()));
    }
    page.section("plan", gates(finding, policy).map(|(pattern, gate)| described(gate, pattern, policy)));
    if let Some(opened) = policy.opened(endpoint).filter(|_| finding.flow.is_inbound()) {
        page.line("open to", format!("{}{}", networks(&opened.networks), place(opened.location.as_ref())));
    }
    if let Some(edit) = policy.move_token(endpoint).filter(|_| finding.flow.is_inbound()) {
        let rule = policy.rule(edit.rule).name;
        let place = place(edit.location.as_ref());
        page.line("target edit", format!("{rule} ({}): move access_token to the header{place}", edit.mode.as_str()));
    }
    if let Some(reroute) = policy.reroute(endpoint).filter(|_| !finding.flow.is_inbound()) {
        let rule = policy.rule(reroute.rule).name;
        let place = place(reroute.location.as_ref());
        page.line("another way", format!("{rule} ({}): {}{place}", reroute.mode.as_str(), reroute.to.describe()));
    }
    page.section(
        "request edits",
        of_head(finding, policy.request_edits(finding.flow)).iter().map(|edit| edited(edit, policy)),
    );
    if !finding.readings.is_empty() {
        page.section("body", finding.readings.iter().map(|reading| read(reading, policy)));
    }
    page.section(
        "response edits",
        of_head(finding, policy.response_edits(finding.flow)).iter().map(|edit| edited(edit, policy)),
    );
    if let Some(token) = &finding.token {
        page.line("token", token_words(token));
    }
    if policy.asks_whose_keys(finding.flow, endpoint).is_some() {
        page.line("keys", "supposed another server's: the homeserver would be asked for its name");
    }
    if finding.need == Need::Registration {
        page.line("registration", "supposed by token only: the homeserver would be asked");
    }
    if let Some(reported) = finding.verdict.reported {
        let rule = policy.rule(reported.rule).name;
        page.line("reported", format!("{rule} would {} it, in report mode", reported.action));
    }
    if let Some(body) = &finding.body {
        page.line("sent body", String::from_utf8_lossy(body));
    }
    match refusal {
        None => page.line("decision", decision_words(finding, policy)),
        Some(refused) => page.line("decision", refusal_words(&refused.answer)),
    }
    if let Some(telling) = telling(finding, policy).filter(|_| refusal.is_none()) {
        page.line("told", telling.describe());
    }
    if let Some(upstream) = upstream {
        page.line("upstream", upstream);
    }
    page.0
}

fn networks(networks: &[IpNet]) -> String {
    if networks.is_empty() {
        return "nobody".into();
    }
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn decision_words(finding: &Finding, policy: &Policy) -> String {
    let seen = Seen::of(finding, policy);
    match &finding.verdict.decision {
        Decision::Permit(_) => "permit".to_owned(),
        Decision::Fail(kind) => format!("fail: {}", kind.sentence()),
        Decision::Answer(denial) | Decision::Deny(denial) => {
            let errcode = seen.errcode.map(|errcode| format!(" {errcode}")).unwrap_or_default();
            let rule = seen.rule.unwrap_or_default();
            let place = place(denial.location.as_ref());
            format!("{} with {}{errcode}, by {rule}{place}", seen.outcome, denial.answer.status().as_u16())
        }
    }
}

/// What no policy is asked about.
fn refusal_words(answer: &Answer) -> String {
    let errcode = answer.errcode().unwrap_or_default();
    format!("deny with {} {errcode}, before any rule: {}", answer.status().as_u16(), sentence(answer))
}

fn sentence(answer: &Answer) -> String {
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    body["error"].as_str().unwrap_or_default().to_owned()
}

fn token_words(token: &TokenVerdict) -> String {
    match token {
        TokenVerdict::Unreadable(why) => format!("none ({})", why.sentence()),
        TokenVerdict::Valid { guest: false } => "supposed valid: the homeserver would be asked".into(),
        TokenVerdict::Valid { guest: true } => "supposed a guest's: the homeserver would be asked".into(),
        TokenVerdict::Refused(_) => "supposed invalid: the homeserver would be asked".into(),
        TokenVerdict::Unavailable(kind) => kind.sentence().into(),
    }
}

fn structure(
    probe: &Probe,
    finding: &Finding,
    policy: &Arc<Policy>,
    refusal: Option<&Refused>,
    upstream: Option<&str>,
) -> Value {
    let seen = Seen::of(finding, policy);
    let location = match &finding.verdict.decision {
        Decision::Answer(denial) | Decision::Deny(denial) => denial.location.clone(),
        Decision::Permit(_) | Decision::Fail(_) => None,
    };
    let is_inbound = finding.flow.is_inbound();
    let edits = |edits: &[Edit]| -> Vec<Value> {
        let told = |edit: &Edit| {
            json!({
                "rule": policy.rule(edit.rule).name, "mode": edit.mode.as_str(), "edit": edit.edit.describe(), "location": edit.location,
            })
        };
        edits.iter().map(told).collect()
    };
    json!({
        "request": { "method": probe.method.as_str(), "target": asked(probe) },
        "policy": { "name": policy.name(), "digest": policy.digest() },
        "flow": finding.flow.as_str(),
        "way": way(probe, finding).map(|(_, word, location)| json!({ "is": word, "location": location })),
        "endpoint": {
            "id": finding.endpoint(),
            "decoded": if finding.is_tunnel { finding.endpoint() } else { finding.classified.decoded.id() },
            "authentication": finding.classified.raw.auth().as_str(),
            "templates": finding.classified.raw.templates(),
        },
        "plan": gates(finding, policy).map(|(pattern, gate)| json!({
            "rule": policy.rule(gate.rule).name, "mode": gate.mode.as_str(), "action": gate.action.describe(),
            "path": pattern, "location": gate.location,
        })).collect::<Vec<_>>(),
        "request_edits": edits(of_head(finding, policy.request_edits(finding.flow))),
        "open_to": policy.opened(finding.classified.raw).filter(|_| is_inbound).map(|opened| &opened.networks),
        "target_edit": policy.move_token(finding.classified.raw).filter(|_| is_inbound).map(|edit| json!({
            "rule": policy.rule(edit.rule).name, "mode": edit.mode.as_str(), "location": edit.location,
        })),
        "reroute": policy.reroute(finding.classified.raw).filter(|_| !is_inbound).map(|reroute| json!({
            "rule": policy.rule(reroute.rule).name, "mode": reroute.mode.as_str(), "to": reroute.to.describe(),
            "location": reroute.location,
        })),
        "body": finding.readings.iter().map(|reading| json!({
            "rule": policy.rule(reading.rule).name, "mode": reading.mode.as_str(), "action": reading.action.describe(),
            "location": reading.location,
        })).collect::<Vec<_>>(),
        "sent_body": finding.body.as_ref().map(|body| String::from_utf8_lossy(body)),
        "response_edits": edits(of_head(finding, policy.response_edits(finding.flow))),
        "token": finding.token.as_ref().map(TokenVerdict::class),
        "decision": if refusal.is_some() { "deny" } else { seen.outcome },
        "rule": refusal.map(|refused| refused.by).or(seen.rule),
        "location": location.filter(|_| refusal.is_none()),
        "status": refusal.map(|refused| refused.answer.status().as_u16()).or(seen.status),
        "errcode": refusal.map_or(seen.errcode, |refused| refused.answer.errcode()),
        "told": telling(finding, policy).filter(|_| refusal.is_none()).map(Telling::describe),
        "upstream": upstream,
    })
}

/// How it is told what the policy does to this request, or what a rule in report mode would do, if it is.
fn telling<'a>(finding: &Finding, policy: &'a Policy) -> Option<&'a Telling> {
    let of_decision = match &finding.verdict.decision {
        Decision::Answer(denial) | Decision::Deny(denial) => Some(denial.rule),
        Decision::Permit(_) | Decision::Fail(_) => None,
    };
    let of_report = finding.verdict.reported.map(|reported| reported.rule);
    of_decision.into_iter().chain(of_report).find_map(|rule| policy.tells_of(rule)).map(|telling| &**telling)
}

/// All gates that this request may meet, those of path patterns first.
fn gates<'a>(finding: &Finding, policy: &'a Policy) -> impl Iterator<Item = (Option<&'a str>, &'a Gate)> {
    let (is_inbound, endpoint) = (finding.flow.is_inbound(), finding.classified.raw);
    let own = if is_inbound { policy.gates(endpoint) } else { policy.gates_to_servers(endpoint) };
    // Paths are closed to those who ask Synapse.
    let paths = policy.path_gates().filter(move |_| is_inbound).map(|(pattern, gate)| (Some(pattern), gate));
    paths.chain(own.iter().map(|gate| (None, gate)))
}

fn described(gate: &Gate, pattern: Option<&str>, policy: &Policy) -> String {
    let path = pattern.map(|pattern| format!(" where the path is {pattern}")).unwrap_or_default();
    let when = if gate.when.is_always() { "" } else { " under its conditions" };
    let rule = policy.rule(gate.rule).name;
    format!("{rule} ({}): {}{path}{when}{}", gate.mode.as_str(), gate.action.describe(), place(gate.location.as_ref()))
}

fn edited(edit: &Edit, policy: &Policy) -> String {
    let rule = policy.rule(edit.rule).name;
    format!("{rule} ({}): {}{}", edit.mode.as_str(), edit.edit.describe(), place(edit.location.as_ref()))
}

fn read(reading: &Reading, policy: &Policy) -> String {
    let rule = policy.rule(reading.rule).name;
    format!("{rule} ({}): {}{}", reading.mode.as_str(), reading.action.describe(), place(reading.location.as_ref()))
}

fn place(location: Option<&Location>) -> String {
    location.map(|location| format!("  [{location}]")).unwrap_or_default()
}

/// Lines under headings of one width.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, heading: &str, text: impl AsRef<str>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{heading:<15} {}", text.as_ref());
    }

    fn section(&mut self, heading: &str, lines: impl Iterator<Item = String>) {
        let mut heading = heading;
        for line in lines {
            self.line(heading, line);
            heading = "";
        }
        if !heading.is_empty() {
            self.line(heading, "none");
        }
    }
}
