//! How a policy judges one exchange. A refusal is an answer, not an error.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use serde_json::json;

use super::Mode;
use super::egress::{self, Way};
use super::exchange::{Exchange, KeysOf, Registration, TokenVerdict};
use super::matcher::contains;
use super::permit::Permit;
use super::plan::{Action, Gate, Guests, Outbound, Policy, Reading, RuleIndex};
use crate::error::Kind;
use crate::matrix::Host;
use crate::matrix::classify::identity_behind;
use crate::matrix::endpoint::Endpoint;
use crate::message::Answer;
use crate::problem::Location;

/// What becomes of a request.
#[derive(Debug)]
pub enum Decision {
    /// It goes upstream.
    Permit(Permit),
    /// The gateway answers it in the homeserver's place.
    Answer(Denial),
    /// It is refused.
    Deny(Denial),
    /// It cannot be judged, so it does not pass: the homeserver could not be asked about its token.
    Fail(Kind),
}

/// The answer instead of the homeserver's, and whose it is.
#[derive(Clone, Debug)]
pub struct Denial {
    /// The rule.
    pub rule: RuleIndex,
    /// The line of the policy.
    pub location: Option<Location>,
    /// What the client gets.
    pub answer: Answer,
}

/// A decision, and what rules in report mode would have done before it.
#[derive(Debug)]
pub struct Verdict {
    /// What becomes of the request.
    pub decision: Decision,
    /// The first rule that only reports, and would have stopped the request.
    pub reported: Option<Reported>,
}

/// What a rule in report mode would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported {
    /// The rule.
    pub rule: RuleIndex,
    /// `deny` or `answer`.
    pub action: &'static str,
}

/// What must be found out before a request can be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// Whether the homeserver knows the token.
    Token,
    /// The same, and whether the homeserver registers anybody without a registration token.
    Registration,
}

/// What one request has to pass, in order: the operator's closed paths, its own shape, the gates of its endpoint.
#[derive(Debug)]
pub struct Steps<'a>(Vec<Step<'a>>);

impl Steps<'_> {
    /// What must be found out about the exchange before [`Policy::decide`].
    pub fn need(&self) -> Need {
        for step in &self.0 {
            match step {
                Step::Gate(Gate { action: Action::RequireToken(_) | Action::RequireTokenOr(_), .. }) => {
                    return Need::Token;
                }
                Step::Gate(Gate { action: Action::RequireRegistrationToken(_), .. }) => return Need::Registration,
                // How often it came is found out when it is judged; whose keys it is for is told with it.
                Step::Gate(Gate { action: Action::Limit(_) | Action::OnlyOwnKeys(_), .. }) => {}
                Step::Gate(Gate { mode: Mode::Report | Mode::Off, .. }) => {}
                Step::Gate(_) | Step::Refuse(_) => return Need::Nothing,
            }
        }
        Need::Nothing
    }
}

impl Policy {
    /// The refusal of whoever asks the proxy door for this host, if the policy leaves no way there.
    pub fn closed_way(&self, host: &Host) -> Option<Denial> {
        match self.egress().way(host) {
            (Way::Tunnel | Way::Intercept, _) => None,
            (Way::Deny, location) => {
                let error = "The policy leaves no way to this host";
                let answer = Answer::matrix(StatusCode::FORBIDDEN, "M_FORBIDDEN", error);
                Some(Denial { rule: RuleIndex::EGRESS, location: location.cloned(), answer })
            }
        }
    }

    /// What whoever asks for the reserved name gets, whatever the question: what Synapse takes for "not supported".
    pub fn unbound_nowhere(&self) -> Denial {
        let answer = Answer::text(StatusCode::NOT_FOUND, "Unbinding is not supported here\n");
        match self.unbinding() {
            Some(reading) => Denial { rule: reading.rule, location: reading.location.clone(), answer },
            None => Denial { rule: RuleIndex::EGRESS, location: None, answer },
        }
    }

    /// What the body of this exchange is to be read for, once it is permitted.
    pub fn readings_of<'a>(&'a self, exchange: &Exchange<'_>) -> Vec<&'a Reading> {
        let endpoint = exchange.classified.raw;
        if !exchange.flow.is_inbound() {
            let asked = Asked::of(exchange);
            let readings = exchange.destination.map(|_| self.outbound_readings.iter()).into_iter().flatten();
            return readings.filter(|(what, _)| asked.is(what)).map(|(_, reading)| reading).collect();
        }
        // Synapse reads no body under another method.
        let is_served = || endpoint.methods().contains(&exchange.method.as_str());
        let readings = self.readings(endpoint);
        if readings.is_empty() || !is_served() { Vec::new() } else { readings.iter().collect() }
    }

    /// Judges an exchange, which has to pass these steps.
    pub fn decide(self: &Arc<Self>, steps: &Steps<'_>, exchange: &Exchange<'_>) -> Verdict {
        let mut reported = None;
        if let Some(denial) = exchange.destination.and_then(|host| self.closed_way(host)) {
            return Verdict { decision: Decision::Deny(denial), reported };
        }
        if exchange.destination.is_some_and(egress::is_reserved) {
            return Verdict { decision: Decision::Answer(self.unbound_nowhere()), reported };
        }
        for step in &steps.0 {
            let gate = match *step {
                Step::Refuse(rule) => {
                    let denial = Denial { rule, location: None, answer: Answer::unrecognized() };
                    return Verdict { decision: Decision::Deny(denial), reported };
                }
                Step::Gate(gate) => gate,
            };
            let Some(decision) = bite(gate, exchange) else { continue };
            if gate.mode == Mode::Enforce {
                return Verdict { decision, reported };
            }
            let action = if matches!(decision, Decision::Answer(_)) { "answer" } else { "deny" };
            reported = reported.or(Some(Reported { rule: gate.rule, action }));
        }
        Verdict {
            decision: Decision::Permit(Permit::new(Arc::clone(self), exchange.flow, exchange.classified.raw)),
            reported,
        }
    }

    /// What a request has to pass.
    pub fn steps<'a>(&'a self, exchange: &Exchange<'a>) -> Steps<'a> {
        // What an endpoint tells strangers is no concern of what Synapse asks others there.
        let is_inbound = exchange.flow.is_inbound();
        // Synapse answers OPTIONS before it looks at the path, with nothing but CORS: there is nothing to protect, and a
        // browser that gets no answer to its preflight shows a network error instead of our refusal.
        let is_preflight = exchange.classified.raw == Endpoint::Preflight;
        let mut steps = Vec::new();
        let holds = |gate: &&Gate| gate.when.holds(exchange);
        if is_inbound && !is_preflight {
            steps.extend(self.paths.matching(exchange.path).filter(holds).map(Step::Gate));
        }
        steps.extend(self.refuse_shape(exchange).map(Step::Refuse));
        let gates = match is_inbound {
            true if is_preflight => &[],
            true => self.gates(exchange.classified.raw),
            false => self.gates_to_servers(exchange.classified.raw),
        };
        steps.extend(gates.iter().filter(holds).map(Step::Gate));
        if exchange.destination.is_some() {
            steps.extend(self.outbound_to(exchange).filter(holds).map(Step::Gate));
        }
        Steps(steps)
    }

    /// The gates of what the proxy door is asked for, where it can be read.
    fn outbound_to<'a>(&'a self, exchange: &Exchange<'a>) -> impl Iterator<Item = &'a Gate> {
        let asked = Asked::of(exchange);
        self.outbound.iter().filter(move |(what, _)| asked.is(what)).map(|(_, gate)| gate)
    }

    /// What no rule needs to look at: endpoints that are not served, and spellings that two readers would read differently.
    fn refuse_shape(&self, exchange: &Exchange<'_>) -> Option<RuleIndex> {
        let classified = exchange.classified;
        if !exchange.flow.is_inbound() {
            return None;
        }
        if classified.raw.is_internal() || classified.decoded.is_internal() {
            // Opened in its one spelling only: the homeserver reads these paths more kindly than anyone else.
            let opened = self.opened(classified.raw).or(self.opened(classified.decoded));
            let is_open = classified.raw == classified.decoded
                && opened.is_some_and(|opened| contains(&opened.networks, exchange.client));
            return if is_open { None } else { Some(opened.map_or(RuleIndex::SURFACE, |opened| opened.rule)) };
        }
        if classified.raw == Endpoint::Unserved {
            return Some(RuleIndex::SURFACE);
        }
        if classified.raw != classified.decoded && (self.protects(classified.raw) || self.protects(classified.decoded))
        {
            return Some(RuleIndex::SPELLING);
        }
        None
    }
}

/// What is asked of somebody who is no homeserver.
#[derive(Clone, Copy)]
struct Asked<'a> {
    method: &'a Method,
    path: &'a str,
    query: Option<&'a str>,
    endpoint: Endpoint,
}

impl<'a> Asked<'a> {
    fn of(exchange: &Exchange<'a>) -> Self {
        let Exchange { method, path, query, classified, .. } = *exchange;
        Self { method, path, query, endpoint: classified.raw }
    }

    fn is(&self, what: &Outbound) -> bool {
        match what {
            Outbound::Path(exact) => self.path == *exact,
            Outbound::PathEnd(end) => self.path.ends_with(end),
            Outbound::Endpoint(one) => self.endpoint == *one,
            Outbound::Identity(one) => {
                let mut texts = [Some(self.path), self.query].into_iter().flatten();
                texts.any(|text| identity_behind(self.method, text) == Some(*one))
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Gate(&'a Gate),
    Refuse(RuleIndex),
}

fn bite(gate: &Gate, exchange: &Exchange<'_>) -> Option<Decision> {
    let denial = |answer: Answer| Denial { rule: gate.rule, location: gate.location.clone(), answer };
    match &gate.action {
        Action::Deny(answer) => Some(Decision::Deny(denial(answer.clone()))),
        Action::Answer(answer) => Some(Decision::Answer(denial(answer.clone()))),
        Action::RequireToken(guests) => match exchange.token {
            Some(TokenVerdict::Valid { guest: false }) => None,
            Some(TokenVerdict::Valid { guest: true }) => match guests {
                Guests::Allowed => None,
                Guests::Refused => Some(Decision::Deny(denial(guest_refused()))),
            },
            Some(TokenVerdict::Refused(answer)) => Some(Decision::Deny(denial(answer.clone()))),
            Some(TokenVerdict::Unavailable(kind)) => Some(Decision::Fail(*kind)),
            Some(TokenVerdict::Unreadable(why)) => Some(Decision::Deny(denial(Answer::matrix(
                StatusCode::UNAUTHORIZED,
                "M_MISSING_TOKEN",
                why.sentence(),
            )))),
            // Nobody asked about the token: a defect of ours, which must not open the door.
            None => Some(Decision::Fail(Kind::TokenCheck)),
        },
        Action::RequireTokenOr(answer) => match exchange.token {
            Some(TokenVerdict::Valid { guest: false }) => None,
            Some(TokenVerdict::Valid { guest: true } | TokenVerdict::Refused(_) | TokenVerdict::Unreadable(_)) => {
                Some(Decision::Deny(denial(answer.clone())))
            }
            Some(TokenVerdict::Unavailable(kind)) => Some(Decision::Fail(*kind)),
            None => Some(Decision::Fail(Kind::TokenCheck)),
        },
        Action::RequireRegistrationToken(answer) => match (exchange.token, exchange.registration) {
            (Some(TokenVerdict::Valid { guest: false }), _) | (_, Some(Registration::ByToken)) => None,
            (_, Some(Registration::Open | Registration::Closed)) => Some(Decision::Deny(denial(answer.clone()))),
            (_, Some(Registration::Unavailable(kind))) => Some(Decision::Fail(kind)),
            // Nobody asked how it registers: a defect of ours, which must not open the door.
            (_, None) => Some(Decision::Fail(Kind::Garbled)),
        },
        Action::OnlyOwnKeys(answer) => match exchange.keys_of {
            Some(KeysOf::Ourselves) => None,
            Some(KeysOf::Others) => Some(Decision::Answer(denial(answer.clone()))),
            // Nobody looked: a defect of ours, which must not open the door.
            None => Some(Decision::Fail(Kind::Panic)),
        },
        Action::Limit(limiter) => {
            let wait = limiter.check(exchange).err()?;
            Some(Decision::Deny(denial(too_soon(wait))))
        }
    }
}

/// Synapse's own form of it (`synapse/api/errors.py::LimitExceededError`).
fn too_soon(wait: Duration) -> Answer {
    let body = json!({
        "errcode": "M_LIMIT_EXCEEDED", "error": "Too Many Requests",
        "retry_after_ms": u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
    });
    let seconds = HeaderValue::from(wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
    Answer::json(StatusCode::TOO_MANY_REQUESTS, &body).with_header(RETRY_AFTER, seconds)
}

fn guest_refused() -> Answer {
    Answer::matrix(StatusCode::FORBIDDEN, "M_GUEST_ACCESS_FORBIDDEN", "Guest access not allowed")
}
