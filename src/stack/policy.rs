//! 6 Judges a request by one generation: permits it, answers it, or refuses it.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use tower::{Layer, Service};

use super::authenticate::{Authenticator, Credentials};
use super::classify::Known;
use super::client::{Client, FORWARDED_FOR, FORWARDED_PROTO};
use super::collect::Collector;
use super::read::read;
use super::revoke::Revokes;
use super::route::Cleared;
use super::whose_keys::WhoseKeys;
use super::{Arrival, Facts, unbound};
use crate::error::Error;
use crate::events::{Event, Events};
use crate::matrix::Flow;
use crate::message::Body;
use crate::observe::access::{self, Mode};
use crate::origin::Destination;
use crate::policy;
use crate::policy::decision::Need;
use crate::policy::telling::{Identifiers, Telling};
use crate::policy::{Decision, Denial, Exchange, Held, KeysOf, Permit, Reading, RuleIndex, TokenVerdict, Verdict};
use crate::snapshot::{Current, Generation, Snapshot};

/// Makes [`Policy`].
pub struct PolicyLayer {
    snapshot: Snapshot,
    events: Events,
    authenticator: Authenticator,
    collector: Collector,
    whose_keys: WhoseKeys,
}

/// Lets upstream only what the policy permits.
pub struct Policy<S> {
    upstream: S,
    current: Current,
    events: Events,
    authenticator: Authenticator,
    collector: Collector,
    whose_keys: WhoseKeys,
}

impl PolicyLayer {
    /// A layer that judges by what is in force, tells here what it refuses, asks this authenticator about tokens, lets this one
    /// collect what it permits, and this one see whose keys are asked for.
    pub fn new(
        snapshot: Snapshot,
        events: Events,
        authenticator: Authenticator,
        collector: Collector,
        whose_keys: WhoseKeys,
    ) -> Self {
        Self { snapshot, events, authenticator, collector, whose_keys }
    }
}

impl<S> Layer<S> for PolicyLayer {
    type Service = Policy<S>;

    fn layer(&self, upstream: S) -> Policy<S> {
        let (authenticator, collector) = (self.authenticator.clone(), self.collector.clone());
        let (whose_keys, events) = (self.whose_keys.clone(), self.events.clone());
        Policy { upstream, current: self.snapshot.current(), events, authenticator, collector, whose_keys }
    }
}

impl<'a, S, B> Service<Known> for &'a Policy<S>
where
    S: Clone + Service<Cleared, Response = Held<Response<B>>, Error = Error>,
    B: Into<Body> + 'a,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = LocalBoxFuture<'a, Result<Response<Body>, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, known: Known) -> Self::Future {
        Box::pin(self.judge(known))
    }
}

impl<S, B> Policy<S>
where
    S: Clone + Service<Cleared, Response = Held<Response<B>>, Error = Error>,
    B: Into<Body>,
{
    async fn judge(&self, mut known: Known) -> Result<Response<Body>, Error> {
        let generation = known.arrival.cut_by.take().unwrap_or_else(|| self.current.load());
        known.arrival.facts.note(|record| record.generation = generation.number);
        if let (Flow::Egress, Some(to)) = (known.flow, known.arrival.request.extensions().get::<Destination>()) {
            let cause = generation.policy.egress().cause(&to.host);
            known.arrival.facts.contact(|contact| contact.or_because(cause));
        }
        let keys_of = match generation.policy.asks_whose_keys(known.flow, known.classified.raw) {
            Some(policy::Mode::Enforce) => Some(self.whose_keys.of(&mut known.arrival.request).await?),
            // What only tells does not touch a body: it takes every question for one for others.
            Some(policy::Mode::Report) => Some(KeysOf::Others),
            Some(policy::Mode::Off) | None => None,
        };
        let (Verdict { decision, reported }, readings) = self.decide(&known, keys_of, &generation).await;
        let (facts, flow) = (Rc::clone(&known.arrival.facts), known.flow);
        if let Some(reported) = reported {
            self.tell(&known, reported.rule, (reported.action, Mode::Report), None, &generation);
            let counters = generation.counters(reported.rule);
            if reported.action == "answer" {
                counters.answer.inc()
            } else {
                counters.deny.inc()
            }
            facts.note(|record| {
                record.rule = Some(generation.policy.rule(reported.rule).name);
                record.mode = Mode::Report;
            });
        }
        match decision {
            Decision::Permit(permit) => {
                let refused = match readings.is_empty() {
                    true => None,
                    // Kept apart, so that requests whose bodies flow need no room for it.
                    false => Box::pin(read(&mut known.arrival.request, &readings, &generation, &facts)).await?,
                };
                match refused {
                    None => self.forward(known, &permit, &generation).await,
                    Some(denial) => {
                        self.tell(&known, denial.rule, ("deny", Mode::Enforce), None, &generation);
                        generation.counters(denial.rule).deny.inc();
                        Ok(answer(&denial, access::Decision::Deny, flow, &generation, &facts))
                    }
                }
            }
            Decision::Answer(denial) => {
                let user = match self.tells_who(&known, denial.rule, &generation) {
                    // Kept apart, as above.
                    true => Box::pin(unbound::user(&mut known.arrival.request)).await,
                    false => None,
                };
                self.tell(&known, denial.rule, ("answer", Mode::Enforce), user, &generation);
                generation.counters(denial.rule).answer.inc();
                Ok(answer(&denial, access::Decision::Answer, flow, &generation, &facts))
            }
            Decision::Deny(denial) => {
                self.tell(&known, denial.rule, ("deny", Mode::Enforce), None, &generation);
                generation.counters(denial.rule).deny.inc();
                Ok(answer(&denial, access::Decision::Deny, flow, &generation, &facts))
            }
            Decision::Fail(kind) => Err(Error::new(kind)),
        }
    }

    /// Whether the policy wants it told whose request of Synapse's this rule answered.
    fn tells_who(&self, known: &Known, rule: RuleIndex, generation: &Generation) -> bool {
        let telling = generation.policy.tells_of(rule);
        let is_told =
            |telling: &Arc<Telling>| telling.mode == policy::Mode::Enforce && telling.identifiers == Identifiers::Told;
        !known.flow.is_inbound() && telling.is_some_and(is_told)
    }

    /// Tells what a rule did to a request, or would have done, if the policy wants it told; and who is meant, where the request
    /// itself says so and is Synapse's.
    fn tell(
        &self,
        known: &Known,
        rule: RuleIndex,
        (action, mode): (&'static str, Mode),
        named: Option<Arc<str>>,
        generation: &Generation,
    ) {
        let Some(telling) = generation.policy.tells_of(rule) else { return };
        let Arrival { request, facts, .. } = &known.arrival;
        let is_inbound = known.flow.is_inbound();
        let event = Event {
            rule: generation.policy.rule(rule).name,
            action,
            mode,
            flow: known.flow,
            endpoint: facts.endpoint().id(),
            id: facts.id(),
            client: is_inbound.then(|| known.arrival.client().address),
            user: match is_inbound {
                true => self.authenticator.known_user(&Credentials::of(request)),
                false => named,
            },
            host: request.extensions().get::<Destination>().map(|destination| destination.host.clone()),
        };
        self.events.tell(event, telling);
    }

    /// The verdict, and what the body is to be read for if it is permitted.
    async fn decide<'a>(
        &self,
        known: &Known,
        keys_of: Option<KeysOf>,
        generation: &'a Generation,
    ) -> (Verdict, Vec<&'a Reading>) {
        let Arrival { request, facts, .. } = &known.arrival;
        let client = known.arrival.client();
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let mut exchange = Exchange {
            flow: known.flow,
            classified: known.classified,
            method: request.method(),
            path: request.uri().path(),
            query: request.uri().query(),
            headers: request.headers(),
            host: without_port(host),
            destination: request.extensions().get::<Destination>().map(|destination| &destination.host),
            client: client.address,
            token: None,
            registration: None,
            keys_of,
        };
        let readings = generation.policy.readings_of(&exchange);
        let steps = generation.policy.steps(&exchange);
        let need = steps.need();
        if need == Need::Nothing {
            return (generation.policy.decide(&steps, &exchange), readings);
        }
        let token = self.authenticator.verdict(&exchange, &generation.policy, client, facts.id()).await;
        facts.note(|record| record.token = access::Token::from(&token));
        exchange.token = Some(&token);
        if need == Need::Registration && !matches!(token, TokenVerdict::Valid { guest: false }) {
            exchange.registration = Some(self.authenticator.registration().await);
        }
        (generation.policy.decide(&steps, &exchange), readings)
    }

    async fn forward(&self, known: Known, permit: &Permit, generation: &Generation) -> Result<Response<Body>, Error> {
        let client = known.arrival.client().clone();
        let Known { arrival: Arrival { request, facts, .. }, classified, flow } = known;
        facts.note(|record| record.decision = access::Decision::Permit);
        for rule in permit.unmade_edits(&request) {
            generation.counters(rule).edit.inc();
        }
        // Kept for what the answer says of the token.
        let credentials = Credentials::of(&request);
        // What is known is forgotten now: a client that goes away before the answer has been heard all the same.
        let revokes = match flow {
            Flow::Client | Flow::Federation => Revokes::by(classified.raw, request.method()),
            Flow::Egress => Revokes::Nothing,
        };
        let revocation = self.authenticator.revoke(revokes, &credentials);
        let id = facts.id();
        // Only what is permitted is worth the memory.
        let (request, _place) = self.collector.with_length(request, classified).await?;
        let request = permit.permit(request, |headers| match flow {
            Flow::Client | Flow::Federation => set_own_fields(headers, &client, id),
            // What they say is nobody's business outside.
            Flow::Egress => {}
        });
        let mut upstream = self.upstream.clone();
        let sent = upstream.call(Cleared { request, classified, flow, facts: Rc::clone(&facts) }).await;
        let held = match sent {
            Ok(held) => held,
            Err(error) => {
                facts.note(|record| record.decision = access::Decision::Error);
                return Err(error);
            }
        };
        let response = held.release(permit);
        // Where something went wrong and there is an answer all the same, it is ours.
        facts.note(|record| record.upstream_us = record.error.is_none().then(|| facts.elapsed_us()));
        if response.status() == StatusCode::UNAUTHORIZED {
            self.authenticator.forget(&credentials);
        } else if response.status().is_success() {
            self.authenticator.confirm(&revocation, &credentials);
        }
        Ok(response.map(Into::into))
    }
}

fn answer(
    denial: &Denial,
    decision: access::Decision,
    flow: Flow,
    generation: &Generation,
    facts: &Facts,
) -> Response<Body> {
    let rule = generation.policy.rule(denial.rule).name;
    facts.note(|record| {
        record.decision = decision;
        record.rule = Some(rule);
        record.mode = Mode::Enforce;
    });
    let mut response = denial.answer.response(generation.policy.announces_rules().then_some(rule));
    generation.policy.edit_response(flow, response.headers_mut());
    response
}

/// The gateway's own fields: exactly one of each, whatever the client sent. Synapse believes the first `X-Forwarded-For` it
/// finds, and reads `X-Forwarded-Proto` only beside it.
pub(super) fn set_own_fields(headers: &mut HeaderMap, client: &Client, id: u64) {
    headers.insert(FORWARDED_FOR, client.forwarded_for.clone());
    headers.insert(FORWARDED_PROTO, client.forwarded_proto.clone());
    if let Ok(id) = HeaderValue::from_bytes(&access::hex(id)) {
        headers.insert(REQUEST_ID, id);
    }
}

/// The host without its port; an IPv6 literal keeps its brackets.
fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    }
}

/// Synapse writes it into its own log, if its listener says `request_id_header: X-Request-ID`.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
