//! What a policy compiles to: for each endpoint, the gates that a request must pass and the edits that are made on its way.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::Mode;
use super::body::{BodyAction, Refusal};
use super::cut::Cut;
use super::decision::Denial;
use super::edit::HeadEdit;
use super::egress::Egress;
use super::limiter::Limiter;
use super::matcher::When;
use super::paths::PathGates;
use super::telling::Telling;
use crate::matrix::endpoint::Endpoint;
use crate::matrix::{Flow, ServerName};
use crate::message::Answer;
use crate::problem::Location;

/// A compiled policy: immutable, shared by all workers.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(super) name: String,
    pub(super) digest: String,
    pub(super) announce: bool,
    pub(super) rules: Vec<RuleInfo>,
    pub(super) paths: PathGates,
    pub(super) plans: Vec<Plan>,
    pub(super) flows: [Edits; Flow::ALL.len()],
    /// What the flows that come in all remove.
    pub(super) cut: Option<Cut>,
    pub(super) egress: Egress,
    pub(super) outbound: Vec<(Outbound, Gate)>,
    pub(super) outbound_readings: Vec<(Outbound, Reading)>,
    /// The first reading that leads Synapse to the reserved name.
    pub(super) unbinding: Option<Reading>,
    pub(super) telling: Option<Arc<Telling>>,
}

/// What Synapse may ask of somebody who is no homeserver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// This path, byte for byte.
    Path(&'static str),
    /// A path that ends so.
    PathEnd(&'static str),
    /// This endpoint.
    Endpoint(Endpoint),
    /// This endpoint of an identity server. Synapse writes its path behind whatever it takes for the server's name, which may
    /// be a path or a query of its own.
    Identity(Endpoint),
}

/// A rule of a policy: its place in [`Policy::rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleIndex(pub(super) u16);

impl RuleIndex {
    /// What the gateway does not serve at all, whatever the policy says.
    pub const SURFACE: RuleIndex = RuleIndex(0);
    /// Paths whose spelling is ambiguous where something is protected.
    pub const SPELLING: RuleIndex = RuleIndex(1);
    /// Endpoints that nobody knows, where the policy denies them.
    pub const UNKNOWN: RuleIndex = RuleIndex(2);
    /// Hosts that Synapse may not be led to, as `[egress]` says.
    pub const EGRESS: RuleIndex = RuleIndex(3);
    /// The names of these four, by their index.
    pub const OWN: [&str; 4] = ["surface", "spelling", "unknown", "egress"];

    /// The place in [`Policy::rules`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What is told of a rule.
#[derive(Clone, Debug)]
pub struct RuleInfo {
    /// Its name: that of its file, and of its table in a policy.
    pub name: &'static str,
    /// Whether it acts or only tells.
    pub mode: Mode,
    /// Where the policy turns it on; `None` for the gateway's own.
    pub location: Option<Location>,
}

/// The plan of one endpoint.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub(super) gates: Vec<Gate>,
    /// Who may reach it, where nobody may by default.
    pub(super) opened: Option<Opened>,
    /// The rule that moves a token out of the query, if one does.
    pub(super) move_token: Option<TargetEdit>,
    /// What may stop what Synapse asks other servers; the other gates are for what others ask Synapse.
    pub(super) to_servers: Vec<Gate>,
    /// Who is asked instead of the server that Synapse asks.
    pub(super) reroute: Option<Reroute>,
    /// What the bodies of requests to Synapse are read for.
    pub(super) readings: Vec<Reading>,
}

/// An internal endpoint that a rule opens to some networks.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The rule that opens it, and refuses everybody else.
    pub rule: RuleIndex,
    /// The line it comes from.
    pub location: Option<Location>,
    /// The networks.
    pub networks: Vec<IpNet>,
}

/// A change to the target of a request, and where it comes from. There is only one: a token leaves the query.
#[derive(Clone, Debug)]
pub struct TargetEdit {
    /// The rule it comes from.
    pub rule: RuleIndex,
    /// Whether it acts or only tells.
    pub mode: Mode,
    /// The line it comes from.
    pub location: Option<Location>,
}

/// An instruction for which the whole body of a request is read, once the request is permitted.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The rule it comes from.
    pub rule: RuleIndex,
    /// Whether it acts or only tells.
    pub mode: Mode,
    /// The line it comes from.
    pub location: Option<Location>,
    /// The largest body that is read; a larger one is refused.
    pub most: usize,
    /// What is done with it.
    pub action: BodyAction,
}

/// Another way for what Synapse asks a server, and where it comes from.
#[derive(Clone, Debug)]
pub struct Reroute {
    /// The rule it comes from.
    pub rule: RuleIndex,
    /// Whether it acts or only tells.
    pub mode: Mode,
    /// The line it comes from.
    pub location: Option<Location>,
    /// Who is asked instead.
    pub to: Destination,
}

/// Who answers instead of the server that Synapse asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The gateway's own key ring, which asks each server for its own keys, and these notaries for those of servers that cannot be
    /// reached.
    KeyRing(Arc<[ServerName]>),
    /// Another server, which is not told who asks.
    Server(ServerName),
}

/// An instruction that may stop a request.
#[derive(Clone, Debug)]
pub struct Gate {
    /// The rule it comes from.
    pub rule: RuleIndex,
    /// Whether it acts or only tells.
    pub mode: Mode,
    /// The line it comes from.
    pub location: Option<Location>,
    /// When it holds.
    pub when: When,
    /// What it does.
    pub action: Action,
}

/// What a gate does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Refuses the request with this answer.
    Deny(Answer),
    /// Answers the request in the homeserver's place.
    Answer(Answer),
    /// Lets it pass only with a token that the homeserver says is valid.
    RequireToken(Guests),
    /// The same; whoever has none gets this answer and not the homeserver's.
    RequireTokenOr(Answer),
    /// Lets it pass with the token of a user or an application service, or where the homeserver registers nobody without a
    /// registration token; whoever else comes gets this answer.
    RequireRegistrationToken(Answer),
    /// Lets it pass only so often.
    Limit(Arc<Limiter>),
    /// Lets a question for keys of servers pass only if it is for those of the homeserver itself; any other gets this answer.
    OnlyOwnKeys(Answer),
}

/// Whether a guest's token counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guests {
    /// It does.
    Allowed,
    /// It does not: 403 `M_GUEST_ACCESS_FORBIDDEN`.
    Refused,
}

/// The edits of one direction of traffic.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    pub(super) request: Vec<Edit>,
    pub(super) response: Vec<Edit>,
}

/// An edit and where it comes from.
#[derive(Clone, Debug)]
pub struct Edit {
    /// The rule it comes from.
    pub rule: RuleIndex,
    /// Whether it acts or only tells.
    pub mode: Mode,
    /// The line it comes from.
    pub location: Option<Location>,
    /// The change.
    pub edit: HeadEdit,
}

impl Policy {
    /// The file, or `built-in NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A short hash over the text of all its files.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Whether our answers name their rule in `x-mantlet-rule`.
    pub fn announces_rules(&self) -> bool {
        self.announce
    }

    /// The rules that act at the proxy door by what is asked for, and so only where that can be read.
    pub fn outbound_rules(&self) -> impl Iterator<Item = &RuleInfo> {
        let gates = self.outbound.iter().map(|(_, gate)| gate.rule);
        let outbound = gates.chain(self.outbound_readings.iter().map(|(_, reading)| reading.rule));
        let of_plan =
            |plan: &Plan| plan.to_servers.first().map(|gate| gate.rule).or(plan.reroute.as_ref().map(|to| to.rule));
        let rules: BTreeSet<_> = outbound.chain(self.plans.iter().filter_map(of_plan)).map(RuleIndex::index).collect();
        rules.into_iter().map(|index| &self.rules[index])
    }

    /// The same for a gateway that has no authority by which hosts could be looked into.
    pub fn without_authority(self: Arc<Self>) -> Arc<Self> {
        if self.egress.half_open().next().is_none() {
            return self;
        }
        Arc::new(Self { egress: self.egress.without_authority(), ..Self::clone(&self) })
    }

    /// Which way out is whose.
    pub fn egress(&self) -> &Egress {
        &self.egress
    }

    /// How it is told that this rule refused something, or answered it; `None` if it is not.
    pub fn tells_of(&self, rule: RuleIndex) -> Option<&Arc<Telling>> {
        self.telling.as_ref().filter(|telling| telling.of.contains(&self.rule(rule).name))
    }

    /// All its rules; the first four are the gateway's own.
    pub fn rules(&self) -> &[RuleInfo] {
        &self.rules
    }

    /// What is told of one rule.
    pub fn rule(&self, rule: RuleIndex) -> &RuleInfo {
        // An index is only made by the compiler of this very policy.
        &self.rules[rule.index()]
    }

    /// The gates of an endpoint, in the order in which they are tried.
    pub fn gates(&self, endpoint: Endpoint) -> &[Gate] {
        &self.plans[endpoint.index()].gates
    }

    /// The gates that hold for paths, each with its pattern.
    pub fn path_gates(&self) -> impl Iterator<Item = (&str, &Gate)> {
        self.paths.iter()
    }

    /// Who may reach an internal endpoint, if a rule opens it to anybody.
    pub fn opened(&self, endpoint: Endpoint) -> Option<&Opened> {
        self.plans[endpoint.index()].opened.as_ref()
    }

    /// The rule that moves a token out of the query of requests to this endpoint.
    pub fn move_token(&self, endpoint: Endpoint) -> Option<&TargetEdit> {
        self.plans[endpoint.index()].move_token.as_ref()
    }

    /// The gates of what Synapse asks other servers at this endpoint.
    pub fn gates_to_servers(&self, endpoint: Endpoint) -> &[Gate] {
        &self.plans[endpoint.index()].to_servers
    }

    /// Who is asked instead of the server that Synapse asks at this endpoint.
    pub fn reroute(&self, endpoint: Endpoint) -> Option<&Reroute> {
        self.plans[endpoint.index()].reroute.as_ref()
    }

    /// Whether it matters whose keys such a request is for: to a rule that acts, or to one that only tells.
    pub fn asks_whose_keys(&self, flow: Flow, endpoint: Endpoint) -> Option<Mode> {
        let is_query = matches!(endpoint, Endpoint::KeyGetRemoteServerKeys | Endpoint::KeyGetRemoteServerKeysBatch);
        if flow != Flow::Federation || !is_query {
            return None;
        }
        let asks = |gate: &&Gate| matches!(gate.action, Action::OnlyOwnKeys(_));
        self.gates(endpoint).iter().find(asks).map(|gate| gate.mode)
    }

    /// What bodies of requests to this endpoint are read for.
    pub fn readings(&self, endpoint: Endpoint) -> &[Reading] {
        &self.plans[endpoint.index()].readings
    }

    /// What leads Synapse to the reserved name when it would unbind, if something does.
    pub fn unbinding(&self) -> Option<&Reading> {
        self.unbinding.as_ref()
    }

    /// The edits to requests of a flow.
    pub fn request_edits(&self, flow: Flow) -> &[Edit] {
        &self.flows[flow as usize].request
    }

    /// What of requests that come in may be taken away before they are read.
    pub fn cut(&self) -> Option<&Cut> {
        self.cut.as_ref()
    }

    /// The edits to responses of a flow.
    pub fn response_edits(&self, flow: Flow) -> &[Edit] {
        &self.flows[flow as usize].response
    }

    /// Whether something is protected at this endpoint, so that an ambiguous spelling of it is refused.
    pub(super) fn protects(&self, endpoint: Endpoint) -> bool {
        self.gates(endpoint)
            .iter()
            .map(|gate| gate.mode)
            .chain(self.readings(endpoint).iter().map(|it| it.mode))
            .any(|mode| mode == Mode::Enforce)
    }
}

impl Reading {
    /// The refusal of a request whose body does not pass.
    pub fn denial(&self, why: Refusal) -> Denial {
        Denial { rule: self.rule, location: self.location.clone(), answer: why.answer() }
    }
}

impl Action {
    /// The action in words, for `explain`.
    pub fn describe(&self) -> String {
        let told = |answer: &Answer| match answer.errcode() {
            Some(errcode) => format!("{} {errcode}", answer.status().as_u16()),
            None => answer.status().as_u16().to_string(),
        };
        match self {
            Action::Deny(answer) => format!("deny with {}", told(answer)),
            Action::Answer(answer) => format!("answer {}", told(answer)),
            Action::RequireToken(Guests::Allowed) => "require a validated token".into(),
            Action::RequireToken(Guests::Refused) => "require a validated token, not a guest's".into(),
            Action::RequireTokenOr(answer) => format!("require a validated token, else deny with {}", told(answer)),
            Action::RequireRegistrationToken(answer) => {
                format!("require that the homeserver asks for a registration token, else deny with {}", told(answer))
            }
            Action::Limit(limiter) => format!("let pass {limiter}, else deny with 429 M_LIMIT_EXCEEDED"),
            Action::OnlyOwnKeys(answer) => {
                format!("let pass questions for the homeserver's own keys, else answer {}", told(answer))
            }
        }
    }
}

impl Destination {
    /// The way in words, for `explain`.
    pub fn describe(&self) -> String {
        match self {
            Self::KeyRing(notaries) => {
                let asked = "each server is asked for its own keys, and Mantlet answers";
                match &*notaries.iter().map(ServerName::as_str).collect::<Vec<_>>().join(", ") {
                    "" => asked.into(),
                    notaries => format!("{asked}; {notaries} is asked for those of servers that cannot be reached"),
                }
            }
            Self::Server(server) => format!("{} is asked instead, and not told who asks", server.as_str()),
        }
    }
}
