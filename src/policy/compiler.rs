//! Where rules put their instructions, and a policy comes out.

use std::ops::Range;
use std::sync::Arc;

use http::StatusCode;
use ipnet::IpNet;

use super::Mode;
use super::body::BodyAction;
use super::cut::Cut;
use super::edit::HeadEdit;
use super::egress::Egress;
use super::limiter::Limiter;
use super::matcher::When;
use super::paths::{PathGates, PathPattern};
use super::plan::{
    Action, Destination, Edit, Edits, Gate, Guests, Opened, Outbound, Plan, Policy, Reading, Reroute, RuleIndex,
    RuleInfo, TargetEdit,
};
use super::telling::Telling;
use crate::document::Sources;
use crate::matrix::Flow;
use crate::matrix::endpoint::Endpoint;
use crate::message::Answer;
use crate::problem::{Location, Problem, Problems};

/// A policy in the making.
pub struct Compiler<'a> {
    sources: &'a Sources,
    problems: &'a mut Problems,
    rules: Vec<RuleInfo>,
    paths: Vec<(PathPattern, Gate)>,
    plans: Vec<Plan>,
    flows: [Edits; Flow::ALL.len()],
    egress: Egress,
    outbound: Vec<(Outbound, Gate)>,
    outbound_readings: Vec<(Outbound, Reading)>,
    telling: Option<Arc<Telling>>,
    /// What the next instruction comes from.
    origin: Origin,
}

#[derive(Clone)]
struct Origin {
    rule: RuleIndex,
    mode: Mode,
    location: Option<Location>,
    span: Range<usize>,
}

/// What a policy says of itself, besides its rules.
#[derive(Clone, Debug)]
pub struct Title {
    /// The file, or `built-in NAME`.
    pub name: String,
    /// A short hash over its text.
    pub digest: String,
    /// Whether our answers name their rule.
    pub announce: bool,
}

/// Instructions for all endpoints of some flows.
pub struct Every<'c, 'a> {
    compiler: &'c mut Compiler<'a>,
    flows: &'c [Flow],
}

/// Instructions for one endpoint, or for the paths of one pattern.
pub struct At<'c, 'a> {
    compiler: &'c mut Compiler<'a>,
    place: Place,
    when: When,
}

enum Place {
    Endpoint(Endpoint),
    ToServers(Endpoint),
    Path(PathPattern),
    Outbound(Outbound),
}

impl<'a> Compiler<'a> {
    /// An empty policy. Problems that rules find go to `problems`.
    pub fn new(sources: &'a Sources, problems: &'a mut Problems) -> Self {
        let own = |name| RuleInfo { name, mode: Mode::Enforce, location: None };
        Self {
            sources,
            problems,
            rules: RuleIndex::OWN.map(own).to_vec(),
            paths: Vec::new(),
            plans: vec![Plan::default(); Endpoint::ALL.len()],
            flows: Default::default(),
            egress: Egress::default(),
            outbound: Vec::new(),
            outbound_readings: Vec::new(),
            telling: None,
            origin: Origin { rule: RuleIndex::SURFACE, mode: Mode::Enforce, location: None, span: 0..0 },
        }
    }

    /// Begins a rule: what follows comes from it.
    pub fn begin(&mut self, name: &'static str, mode: Mode, span: Range<usize>) {
        let location = self.sources.locate(span.clone());
        // A rule written several times ([[rules.closed_endpoint]]) is one rule with several lines.
        let index = match self.rules.iter().position(|rule| rule.name == name) {
            Some(index) => index,
            None => {
                self.rules.push(RuleInfo { name, mode, location: location.clone() });
                self.rules.len() - 1
            }
        };
        // There are fewer rules than fit in 16 bits: they are files of this crate.
        self.origin = Origin { rule: RuleIndex(index as u16), mode, location, span };
    }

    /// Says which line the next instructions come from.
    pub fn from(&mut self, span: Range<usize>) -> &mut Self {
        self.origin.location = self.sources.locate(span);
        self
    }

    /// Where the rule itself is written.
    pub fn span(&self) -> Range<usize> {
        self.origin.span.clone()
    }

    /// Refuses endpoints of a flow that nobody knows.
    pub fn deny_unknown(&mut self, flow: Flow, span: Range<usize>) {
        let location = self.sources.locate(span.clone());
        self.origin = Origin { rule: RuleIndex::UNKNOWN, mode: Mode::Enforce, location, span };
        for endpoint in Endpoint::ALL.iter().copied().filter(|endpoint| endpoint.is_unknown()) {
            let is_federation = matches!(endpoint, Endpoint::UnknownFederation | Endpoint::UnknownKey);
            if is_federation == (flow == Flow::Federation) {
                self.endpoint(endpoint).deny(Answer::unrecognized());
            }
        }
    }

    /// Says which way out is whose.
    pub fn egress(&mut self, egress: Egress) {
        self.egress = egress;
    }

    /// Instructions for all endpoints of these flows.
    pub fn every<'c>(&'c mut self, flows: &'c [Flow]) -> Every<'c, 'a> {
        Every { compiler: self, flows }
    }

    /// Instructions for one endpoint.
    pub fn endpoint<'c>(&'c mut self, endpoint: Endpoint) -> At<'c, 'a> {
        At { compiler: self, place: Place::Endpoint(endpoint), when: When::default() }
    }

    /// Instructions for what Synapse asks other servers at one endpoint.
    pub fn to_servers<'c>(&'c mut self, endpoint: Endpoint) -> At<'c, 'a> {
        At { compiler: self, place: Place::ToServers(endpoint), when: When::default() }
    }

    /// Asks somebody else what Synapse asks another server at this endpoint.
    pub fn reroute(&mut self, endpoint: Endpoint, to: Destination) {
        let Origin { rule, mode, location, .. } = self.origin.clone();
        self.plans[endpoint.index()].reroute = Some(Reroute { rule, mode, location, to });
    }

    /// Tells of what rules refuse and answer.
    pub fn tell(&mut self, telling: Telling) {
        self.telling = Some(Arc::new(telling));
    }

    /// Opens an internal endpoint to these networks, and to no one else.
    pub fn open(&mut self, endpoint: Endpoint, networks: Vec<IpNet>) {
        let Origin { rule, location, .. } = self.origin.clone();
        self.plans[endpoint.index()].opened = Some(Opened { rule, location, networks });
    }

    /// Reads bodies of requests to this endpoint, of at most so many bytes.
    pub fn read(&mut self, endpoint: Endpoint, most: usize, action: BodyAction) {
        let reading = self.reading(most, action);
        self.plans[endpoint.index()].readings.push(reading);
    }

    /// Reads bodies of what Synapse asks those who are no homeservers, where they can be read.
    pub fn read_outbound(&mut self, what: Outbound, most: usize, action: BodyAction) {
        let reading = self.reading(most, action);
        self.outbound_readings.push((what, reading));
    }

    /// Moves the token of requests to this endpoint out of the query.
    pub fn move_token(&mut self, endpoint: Endpoint) {
        let Origin { rule, mode, location, .. } = self.origin.clone();
        self.plans[endpoint.index()].move_token = Some(TargetEdit { rule, mode, location });
    }

    /// The mode of the rule that compiles.
    pub fn mode(&self) -> Mode {
        self.origin.mode
    }

    /// Instructions for all paths that match, raw or decoded, whatever their endpoint.
    pub fn path<'c>(&'c mut self, pattern: PathPattern) -> At<'c, 'a> {
        At { compiler: self, place: Place::Path(pattern), when: When::default() }
    }

    /// Instructions for what Synapse asks those who are no homeservers, where it can be read.
    pub fn outbound<'c>(&'c mut self, what: Outbound) -> At<'c, 'a> {
        At { compiler: self, place: Place::Outbound(what), when: When::default() }
    }

    /// Tells what is wrong with a rule.
    pub fn problem(&mut self, span: Range<usize>, what: impl Into<String>, help: impl Into<String>) {
        let location = self.sources.locate(span);
        self.problems.push(Problem::new(what).at(location).help(help));
    }

    /// The policy; whether it may be used depends on the problems that were found.
    pub fn finish(self, title: Title) -> Policy {
        for (plan, endpoint) in self.plans.iter().zip(Endpoint::ALL) {
            if let Some(problem) = contradiction(plan, *endpoint, &self.rules) {
                self.problems.push(problem);
            }
        }
        let paths = PathGates::new(self.paths).unwrap_or_else(|error| {
            let problem = Problem::new(format!("the path patterns are too large together: {error}"));
            self.problems.push(problem.help("name endpoints instead of paths: `mantlet rules endpoints` lists them"));
            PathGates::default()
        });
        let readings = self.plans.iter().flat_map(|plan| &plan.readings);
        let unbinding = readings.into_iter().find(|reading| reading.action == BodyAction::UnbindNowhere).cloned();
        let cut = Cut::of(&Flow::INBOUND.map(|flow| &self.flows[flow as usize].request[..]));
        Policy {
            name: title.name,
            digest: title.digest,
            announce: title.announce,
            rules: self.rules,
            paths,
            plans: self.plans,
            flows: self.flows,
            cut,
            egress: self.egress,
            outbound: self.outbound,
            outbound_readings: self.outbound_readings,
            unbinding,
            telling: self.telling,
        }
    }

    fn reading(&self, most: usize, action: BodyAction) -> Reading {
        let Origin { rule, mode, location, .. } = self.origin.clone();
        Reading { rule, mode, location, most, action }
    }

    fn edit(&self, edit: HeadEdit) -> Edit {
        let Origin { rule, mode, location, .. } = self.origin.clone();
        Edit { rule, mode, location, edit }
    }
}

impl Every<'_, '_> {
    /// Edits every request.
    pub fn request(self, edit: HeadEdit) -> Self {
        for flow in self.flows {
            let edit = self.compiler.edit(edit.clone());
            self.compiler.flows[*flow as usize].request.push(edit);
        }
        self
    }

    /// Edits every response.
    pub fn response(self, edit: HeadEdit) -> Self {
        for flow in self.flows {
            let edit = self.compiler.edit(edit.clone());
            self.compiler.flows[*flow as usize].response.push(edit);
        }
        self
    }
}

impl At<'_, '_> {
    /// Under these conditions only.
    pub fn when(mut self, when: When) -> Self {
        self.when = when;
        self
    }

    /// Refuses with this answer.
    pub fn deny(self, answer: Answer) {
        self.gate(Action::Deny(answer));
    }

    /// Refuses as Synapse refuses another server: 403 `M_FORBIDDEN`. 401, 429 and 5xx would put us into the peer's back-off.
    pub fn forbid(self, error: &str) {
        self.deny(Answer::matrix(StatusCode::FORBIDDEN, "M_FORBIDDEN", error));
    }

    /// Answers in the homeserver's place.
    pub fn answer(self, answer: Answer) {
        self.gate(Action::Answer(answer));
    }

    /// Lets pass only with a user's token that the homeserver says is valid; all others get this answer.
    pub fn require_token_or(self, answer: Answer) {
        self.gate(Action::RequireTokenOr(answer));
    }

    /// Lets pass only where nobody registers without a registration token, and application services; all others get this answer.
    pub fn require_registration_token(self, otherwise: Answer) {
        self.gate(Action::RequireRegistrationToken(otherwise));
    }

    /// Lets pass only so often.
    pub fn limit(self, limiter: Arc<Limiter>) {
        self.gate(Action::Limit(limiter));
    }

    /// Lets a question for keys pass only if it is for the homeserver's own; any other gets this answer.
    pub fn only_own_keys(self, otherwise: Answer) {
        self.gate(Action::OnlyOwnKeys(otherwise));
    }

    /// Lets pass only with a token that the homeserver says is valid.
    pub fn require_token(self, guests: Guests) {
        self.gate(Action::RequireToken(guests));
    }

    fn gate(self, action: Action) {
        let Origin { rule, mode, location, .. } = self.compiler.origin.clone();
        let gate = Gate { rule, mode, location, when: self.when, action };
        match self.place {
            Place::Endpoint(endpoint) => self.compiler.plans[endpoint.index()].gates.push(gate),
            Place::ToServers(endpoint) => self.compiler.plans[endpoint.index()].to_servers.push(gate),
            Place::Path(pattern) => self.compiler.paths.push((pattern, gate)),
            Place::Outbound(what) => self.compiler.outbound.push((what, gate)),
        }
    }
}

/// Two rules that would answer the same request differently: the second could never speak.
fn contradiction(plan: &Plan, endpoint: Endpoint, rules: &[RuleInfo]) -> Option<Problem> {
    let mut answers = plan.gates.iter().filter_map(|gate| match &gate.action {
        Action::Answer(answer) if gate.mode == Mode::Enforce && gate.when.is_always() => Some((gate, answer)),
        Action::Answer(_)
        | Action::Deny(_)
        | Action::RequireToken(_)
        | Action::RequireTokenOr(_)
        | Action::RequireRegistrationToken(_)
        | Action::OnlyOwnKeys(_)
        | Action::Limit(_) => None,
    });
    let (first, said) = answers.next()?;
    let (second, _) = answers.find(|(_, answer)| answer.body() != said.body() || answer.status() != said.status())?;
    let name = |gate: &Gate| rules[gate.rule.index()].name;
    let what = format!("{} answers `{}` already, and differently", name(first), endpoint.id());
    let help = format!("remove one of the two answers, or turn {} off with mode = \"off\"", name(second));
    Some(Problem::new(what).at(second.location.clone()).help(help))
}
