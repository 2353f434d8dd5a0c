//! Judges a request that nobody sent: for a policy's own `[[test]]`s and for `explain`. No network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue};
use http::uri::Scheme;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use serde::Deserialize;

use super::Mode;
use super::decision::{Decision, Denial, Need, Verdict};
use super::egress::{TUNNEL, Way};
use super::exchange::{Exchange, KeysOf, Registration, TokenVerdict};
use super::plan::{Policy, Reading};
use crate::matrix::classify::{Classified, classify, flow};
use crate::matrix::{Flow, Host, ServerName};
use crate::message::{Answer, hop};
use crate::problem::Location;

/// What the homeserver would say of a token, if it were asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Supposed {
    /// It knows the user.
    #[default]
    Valid,
    /// It knows the user as a guest.
    Guest,
    /// It knows no such token.
    Invalid,
}

/// A request as an operator writes it down.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The method.
    pub method: Method,
    /// Path and query, as they would be on the wire.
    pub target: Uri,
    /// The fields.
    pub headers: HeaderMap,
    /// The body, if anything is to be said of it.
    pub body: Option<Bytes>,
    /// Who asks.
    pub from: IpAddr,
    /// What the homeserver would say of the token.
    pub token: Supposed,
    /// How the homeserver would register.
    pub registration: Registration,
    /// The direction, where the path does not tell.
    pub flow: Option<Flow>,
    /// Whom the proxy door is asked for, if it is what is asked.
    pub destination: Option<Host>,
    /// Whose keys it asks for, where it asks for keys: whose the homeserver's are is not known here.
    pub keys_of: KeysOf,
}

/// What a policy says to a probe.
#[derive(Debug)]
pub struct Finding {
    /// The direction.
    pub flow: Flow,
    /// What the request asks for.
    pub classified: Classified,
    /// The way of the host that the proxy door is asked for, and the line that says so.
    pub way: Option<(Way, Option<Location>)>,
    /// Whether all that is seen of it is that a tunnel to the host is asked for.
    pub is_tunnel: bool,
    /// What had to be found out first.
    pub need: Need,
    /// How the token was taken, if it was needed.
    pub token: Option<TokenVerdict>,
    /// The decision.
    pub verdict: Verdict,
    /// What its body is read for, if it passes. The reserved name is taken for one that the proxy door answers.
    pub readings: Vec<Reading>,
    /// The body that would go upstream, if the probe has one.
    pub body: Option<Bytes>,
    /// The head that would go upstream, if the request passes; without the gateway's own fields. A CONNECT has none.
    pub upstream: Option<Request<()>>,
}

/// One `[[test]]` of a policy.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyTest {
    /// What it is about.
    #[serde(default)]
    pub name: Option<String>,
    /// `METHOD /path?query`.
    pub request: serde_spanned::Spanned<String>,
    /// The request's fields.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The request's body.
    #[serde(default)]
    pub body: Option<String>,
    /// What the homeserver would say of the token.
    #[serde(default)]
    pub token: Supposed,
    /// Who asks. Default: 203.0.113.7, an address for documentation.
    #[serde(default)]
    pub from: Option<IpAddr>,
    /// The direction, where the path does not tell: `egress` for what Synapse asks others.
    #[serde(default)]
    pub flow: Option<Flow>,
    /// What must come out.
    pub expect: serde_spanned::Spanned<Expect>,
}

/// What a `[[test]]` expects; what is not named is not looked at.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// `permit`, `answer` or `deny`.
    pub decision: Outcome,
    /// The rule that decided.
    #[serde(default)]
    pub rule: Option<String>,
    /// The status of our answer.
    #[serde(default)]
    pub status: Option<u16>,
    /// The error code of our answer.
    #[serde(default)]
    pub errcode: Option<String>,
    /// The endpoint's id, or `tunnel`.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Fields that must not reach the homeserver.
    #[serde(default)]
    pub removed: Vec<String>,
    /// Fields that must reach the homeserver.
    #[serde(default)]
    pub kept: Vec<String>,
    /// The body that must reach whom the request is for.
    #[serde(default)]
    pub body: Option<String>,
}

/// What becomes of a request, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It goes upstream.
    Permit,
    /// The gateway answers.
    Answer,
    /// It is refused.
    Deny,
}

impl Probe {
    /// Reads `METHOD` and `/path?query`.
    ///
    /// # Errors
    /// What is wrong with either, in a sentence.
    pub fn new(method: &str, target: &str) -> Result<Self, String> {
        let method: Method = method.parse().map_err(|_| format!("`{method}` is no method"))?;
        let uri: Uri = target.parse().map_err(|error| format!("`{target}` is no request target: {error}"))?;
        // A whole URL is what people copy from a browser: its host becomes the Host field.
        let mut headers = HeaderMap::new();
        if let Some(authority) = uri.authority() {
            let host = HeaderValue::from_str(authority.as_str()).map_err(|error| error.to_string())?;
            headers.insert(HOST, host);
        }
        // Synapse asks so at the federation door alone, and at the proxy door nobody.
        let is_federation = uri.scheme_str() == Some("matrix-federation");
        let destination = uri.authority().filter(|_| !is_federation);
        let destination = destination.and_then(|authority| ServerName::parse_web(authority.as_str()));
        let is_tunnel = method == Method::CONNECT && uri.authority().is_some() && uri.scheme().is_none();
        if is_tunnel && destination.as_ref().is_none_or(|name| name.port().is_none()) {
            return Err(format!("`{target}` is no host with a port: write it as example.org:443"));
        }
        if !is_tunnel && !uri.path().starts_with('/') {
            return Err(format!("`{target}` has no path: write it as /_matrix/…"));
        }
        let from = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
        Ok(Self {
            method,
            target: uri,
            headers,
            body: None,
            from,
            token: Supposed::Valid,
            registration: Registration::ByToken,
            flow: (is_tunnel || is_federation).then_some(Flow::Egress),
            destination: destination.map(|name| name.host().clone()),
            keys_of: KeysOf::Others,
        })
    }

    /// Adds a field.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn header(&mut self, name: &str, value: &str) -> Result<(), String> {
        let name: HeaderName = name.trim().parse().map_err(|_| format!("`{name}` is no header name"))?;
        let value =
            HeaderValue::from_str(value.trim()).map_err(|_| format!("the value of {name} is no header value"))?;
        self.headers.append(name, value);
        Ok(())
    }

    /// What the policy says to it.
    pub fn judge(&self, policy: &Arc<Policy>) -> Finding {
        let mut headers = self.headers.clone();
        hop::remove_hop_by_hop(&mut headers);
        let destination = self.destination.as_ref().filter(|_| self.flow == Some(Flow::Egress));
        let way = destination.map(|host| policy.egress().way(host));
        let is_connect = self.method == Method::CONNECT;
        let is_tunnel = self.target.scheme() != Some(&Scheme::HTTP)
            && way.is_some_and(|(way, _)| is_connect || way != Way::Intercept);
        // Nobody sees what is asked in a tunnel.
        let (path, query) = if is_tunnel { ("", None) } else { (self.target.path(), self.target.query()) };
        let host = self.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        let mut exchange = Exchange {
            flow: self.flow.unwrap_or_else(|| flow(path)),
            classified: classify(&self.method, path),
            method: &self.method,
            path,
            query,
            headers: &headers,
            host: host.split_once(':').map_or(host, |(host, _)| host),
            destination,
            client: self.from,
            token: None,
            registration: None,
            keys_of: Some(self.keys_of),
        };
        let steps = policy.steps(&exchange);
        let need = steps.need();
        let token = (need != Need::Nothing).then(|| self.suppose(&exchange));
        exchange.token = token.as_ref();
        exchange.registration = (need == Need::Registration).then_some(self.registration);
        let mut verdict = policy.decide(&steps, &exchange);
        let (flow, classified) = (exchange.flow, exchange.classified);
        let is_permitted = matches!(verdict.decision, Decision::Permit(_));
        let readings: Vec<_> = policy.readings_of(&exchange).into_iter().filter(|_| is_permitted).cloned().collect();
        let body = self.body.as_ref().filter(|_| is_permitted).and_then(|body| match read(&readings, body) {
            Read::Goes(body) => Some(body),
            Read::Refused(denial) => {
                verdict.decision = Decision::Deny(denial);
                None
            }
        });
        let upstream = match &verdict.decision {
            Decision::Permit(_) if is_connect && is_tunnel => None,
            Decision::Permit(_) if is_tunnel => Some(self.head(&self.headers)),
            Decision::Permit(permit) => {
                let (request, _hold) = permit.permit(Box::new(self.head(&headers)), |_| {}).open();
                Some(*request)
            }
            Decision::Answer(_) | Decision::Deny(_) | Decision::Fail(_) => None,
        };
        let way = way.map(|(way, location)| (way, location.cloned()));
        Finding { flow, classified, way, is_tunnel, need, token, verdict, readings, body, upstream }
    }

    /// Its head with these fields.
    fn head(&self, headers: &HeaderMap) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.path_and_query().map_or_else(Uri::default, |it| Uri::from(it.clone()));
        *request.headers_mut() = headers.clone();
        request
    }

    fn suppose(&self, exchange: &Exchange<'_>) -> TokenVerdict {
        if let Err(why) = exchange.read_token() {
            return TokenVerdict::Unreadable(why);
        }
        match self.token {
            Supposed::Valid => TokenVerdict::Valid { guest: false },
            Supposed::Guest => TokenVerdict::Valid { guest: true },
            Supposed::Invalid => TokenVerdict::Refused(Answer::json(
                StatusCode::UNAUTHORIZED,
                &serde_json::json!({
                    "errcode": "M_UNKNOWN_TOKEN", "error": "Invalid access token passed.", "soft_logout": false
                }),
            )),
        }
    }
}

impl Finding {
    /// What records say of what it asks for.
    pub fn endpoint(&self) -> &'static str {
        if self.is_tunnel { TUNNEL } else { self.classified.raw.id() }
    }
}

/// What becomes of a body.
enum Read {
    Goes(Bytes),
    Refused(Denial),
}

/// The body as it goes on, or the refusal. What only tells does nothing here.
fn read(readings: &[Reading], body: &Bytes) -> Read {
    let mut body = body.clone();
    for reading in readings.iter().filter(|reading| reading.mode == Mode::Enforce) {
        match reading.action.apply(&body) {
            Ok(None) => {}
            Ok(Some(edited)) => body = edited,
            Err(why) => return Read::Refused(reading.denial(why)),
        }
    }
    Read::Goes(body)
}

impl PolicyTest {
    /// The probe this test sends.
    ///
    /// # Errors
    /// What is wrong with the test's request.
    pub fn probe(&self) -> Result<Probe, String> {
        let request = self.request.get_ref();
        let (method, target) =
            request.split_once(' ').ok_or_else(|| format!("`{request}` is not of the form \"GET /path\""))?;
        let mut probe = Probe::new(method, target.trim())?;
        for (name, value) in &self.headers {
            probe.header(name, value)?;
        }
        // A test that supposes something of a token, and shows none, means any token.
        if self.token != Supposed::Valid && !probe.headers.contains_key(AUTHORIZATION) {
            probe.headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer supposed"));
        }
        probe.token = self.token;
        probe.body = self.body.clone().map(Bytes::from);
        probe.flow = self.flow.or(probe.flow);
        probe.from = self.from.unwrap_or(probe.from);
        Ok(probe)
    }

    /// Runs the test.
    ///
    /// # Errors
    /// All that came out otherwise than expected, in sentences.
    pub fn run(&self, policy: &Arc<Policy>) -> Result<(), String> {
        let probe = self.probe()?;
        let finding = probe.judge(policy);
        let expect = self.expect.get_ref();
        let seen = Seen::of(&finding, policy);
        let mut wrong = Vec::new();
        let mut compare = |what: &str, expected: Option<String>, seen: Option<String>| {
            if let Some(expected) = expected
                && seen.as_ref() != Some(&expected)
            {
                wrong.push(format!("expected {what} {expected}, got {}", seen.as_deref().unwrap_or("none")));
            }
        };
        compare("decision", Some(expect.decision.as_str().into()), Some(seen.outcome.into()));
        compare("rule", expect.rule.clone(), seen.rule.map(Into::into));
        compare("status", expect.status.map(|status| status.to_string()), seen.status.map(|status| status.to_string()));
        compare("errcode", expect.errcode.clone(), seen.errcode);
        let body = finding.body.as_ref().map(|body| String::from_utf8_lossy(body).into_owned());
        compare("body", expect.body.clone(), body);
        compare("endpoint", expect.endpoint.clone(), Some(finding.endpoint().into()));
        for (names, is_kept) in [(&expect.removed, false), (&expect.kept, true)] {
            for name in names {
                match &finding.upstream {
                    Some(upstream) if upstream.headers().contains_key(name.as_str()) == is_kept => {}
                    Some(_) if is_kept => wrong.push(format!("{name} does not reach the homeserver")),
                    Some(_) => wrong.push(format!("{name} reaches the homeserver")),
                    None => wrong.push(format!("nothing reaches the homeserver, so nothing is said of {name}")),
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }
}

impl Outcome {
    /// The word in policies and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Permit => "permit",
            Outcome::Answer => "answer",
            Outcome::Deny => "deny",
        }
    }
}

/// A decision in words.
pub struct Seen {
    /// `permit`, `answer`, `deny` or `fail`.
    pub outcome: &'static str,
    /// The rule that decided, or that sends the request another way, or would have in report mode.
    pub rule: Option<&'static str>,
    /// The status of our answer.
    pub status: Option<u16>,
    /// The error code of our answer.
    pub errcode: Option<String>,
}

impl Seen {
    /// Puts a finding into words.
    pub fn of(finding: &Finding, policy: &Policy) -> Self {
        let mut reroute = None;
        let (outcome, denial) = match &finding.verdict.decision {
            Decision::Permit(permit) => {
                reroute = permit.reroute().map(|reroute| reroute.rule);
                (Outcome::Permit.as_str(), None)
            }
            Decision::Answer(denial) => (Outcome::Answer.as_str(), Some(denial)),
            Decision::Deny(denial) => (Outcome::Deny.as_str(), Some(denial)),
            Decision::Fail(_) => ("fail", None),
        };
        let reported = finding.verdict.reported.map(|reported| reported.rule);
        Self {
            outcome,
            rule: denial.map(|denial| denial.rule).or(reroute).or(reported).map(|rule| policy.rule(rule).name),
            status: denial.map(|denial| denial.answer.status().as_u16()),
            errcode: denial.and_then(|denial| denial.answer.errcode()),
        }
    }
}
