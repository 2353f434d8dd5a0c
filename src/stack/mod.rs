//! The tower chain: what happens to every request, in this order, read from the top.

pub mod authenticate;
pub mod canonical;
pub mod client;
mod classify;
mod collect;
pub mod forward;
mod elsewhere;
mod hook;
mod limit;
mod notary;
mod origin;
pub mod pace;
mod policy;
mod read;
pub mod record;
mod registration;
mod rescue;
mod revoke;
mod route;
pub mod tokens;
mod unbound;
mod web;
mod whose_keys;

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use hyper::body::Incoming;
use tower::{Service, ServiceBuilder};

use crate::config::route::Routes;
use crate::config::secret::Secret;
use crate::config::settings::Limits;
use crate::events::Events;
use crate::keyring::{Keys, Ring};
use crate::ledger::Ledger;
use crate::matrix::{Flow, ServerName};
use crate::observe::access::{AccessRecord, Decision, Method, Mode, Protocol, Token, Writer};
use crate::observe::metrics::{ListenerMetrics, Metrics};
use crate::origin as origins;
use crate::snapshot::{Generation, Snapshot};
use crate::upstream::Upstreams;
use authenticate::Authenticator;
use canonical::{Canonical, CanonicalLayer};
use classify::{Classify, ClassifyLayer};
use collect::Collector;
use forward::{Forward, ForwardLayer, Terms};
use hook::{Hook, HookLayer};
use limit::{Limit, LimitLayer};
use notary::Notary;
use origin::Origin;
use policy::{Policy, PolicyLayer};
use record::{Record, RecordLayer, RecordedBody};
use rescue::{Rescue, RescueLayer};
use route::{Route, RouteLayer};
use tokens::Tokens;
use web::Web;
use whose_keys::WhoseKeys;

pub use client::{Client, TrustedHops, UnlistedHop};
pub use pace::Pace;
pub use record::Facts;

/// The whole chain. A worker has one; an exchange borrows it, so that nothing is cloned for a request.
pub type Stack = Record<Rescue<Limit<Canonical<Classify<Policy<Route>>>>>>;

/// The same at the federation door: what Synapse asks other servers passes it.
pub type FederationStack = Record<Rescue<Limit<Hook<Classify<Policy<Origin>>>>>>;

/// The same at the proxy door, for what Synapse asks the world in the clear.
pub type ProxyStack = Record<Rescue<Limit<Forward<Classify<Policy<Web>>>>>>;

/// The same at the notary door.
pub type NotaryStack = Record<Rescue<Limit<Canonical<Classify<Policy<Notary>>>>>>;

/// Builds the chain of one worker.
#[rustfmt::skip]
pub fn stack(parts: Parts) -> Stack {
    let policy = parts.policy_layer();
    ServiceBuilder::new()
        .layer(RecordLayer::new(parts.metrics, parts.access, parts.ledger)) // 1 sees every outcome, once
        .layer(RescueLayer)                                                // 2 an Error may travel below here, none above
        .layer(LimitLayer::new(parts.limits))                              // 3 size and time
        .layer(CanonicalLayer)                                             // 4 one spelling, or a refusal
        .layer(ClassifyLayer::inbound())                                   // 5 which endpoint is this?
        .layer(policy)                                                     // 6 permit, answer or deny
        .layer(RouteLayer::new(parts.routes))                              // 7 which upstream?
        .service(parts.upstreams)                                          //   takes only what is permitted
}

/// Builds the chain of one worker behind a federation door: two layers are others.
#[rustfmt::skip]
pub fn federation_stack(parts: Parts, secret: Secret, client: Rc<origins::Client>, ring: Arc<Ring>) -> FederationStack {
    let policy = parts.policy_layer();
    let deadline = deadline(&parts.limits);
    let keys = Keys::new(ring, Rc::clone(&client), deadline * 3 / 4);
    ServiceBuilder::new()
        .layer(RecordLayer::new(parts.metrics, parts.access, parts.ledger))
        .layer(RescueLayer)
        .layer(LimitLayer::with_deadline(parts.limits, deadline))
        .layer(HookLayer::new(secret))                                     // 4 Synapse itself, one spelling, one server; or a refusal
        .layer(ClassifyLayer::outbound())
        .layer(policy)
        .service(Origin::new(client, keys))                                // 7 the other server
}

/// Builds the chain of one worker behind a proxy door: two layers are others.
#[rustfmt::skip]
pub fn proxy_stack(parts: Parts, terms: Terms, web: Rc<origins::Web>, client: Rc<origins::Client>, ring: Arc<Ring>) -> ProxyStack {
    let patience = parts.limits.upstream_head.duration();
    let policy = parts.policy_layer();
    let keys = Keys::new(ring, Rc::clone(&client), deadline(&parts.limits) * 3 / 4);
    ServiceBuilder::new()
        .layer(RecordLayer::new(parts.metrics, parts.access, parts.ledger))
        .layer(RescueLayer)
        .layer(LimitLayer::with_deadline(parts.limits, patience))
        .layer(ForwardLayer::new(terms))                                   // 4 whoever may, one place, one spelling; or a refusal
        .layer(ClassifyLayer::outbound())
        .layer(policy)
        .service(Web::new(web, client, keys))                              // 7 whoever is asked, or who answers for him
}

/// Builds the chain of one worker behind a notary door of this name: the last layer is another.
#[rustfmt::skip]
pub fn notary_stack(parts: Parts, name: ServerName, client: Rc<origins::Client>, ring: Arc<Ring>) -> NotaryStack {
    let policy = parts.policy_layer();
    let deadline = deadline(&parts.limits);
    let keys = Keys::new(ring, Rc::clone(&client), deadline * 3 / 4);
    ServiceBuilder::new()
        .layer(RecordLayer::new(parts.metrics, parts.access, parts.ledger))
        .layer(RescueLayer)
        .layer(LimitLayer::with_deadline(parts.limits, deadline))
        .layer(CanonicalLayer)
        .layer(ClassifyLayer::outbound())
        .layer(policy)
        .service(Notary::new(name, client, keys))                          // 7 our key ring, or who answers in its place
}

/// Until when Synapse has the head of an answer: it gives up after a minute, and then takes the server for dead; before that, it takes
/// our word for it.
fn deadline(limits: &Limits) -> Duration {
    limits.upstream_head.duration().min(SYNAPSE_WAITS)
}

const SYNAPSE_WAITS: Duration = Duration::from_secs(54);

/// A request as it comes to the first layer.
type Come = (Request<Incoming>, Rc<Peer>, Option<Arc<Generation>>);

/// A chain as a connection sees it.
pub trait Chain: 'static {
    /// Answers a request, whatever happens. A generation that took something out of the request before is the one that judges it;
    /// else it is the one in force.
    fn answer(
        &self,
        request: Request<Incoming>,
        peer: Rc<Peer>,
        cut_by: Option<Arc<Generation>>,
    ) -> impl Future<Output = Response<RecordedBody>>;
}

impl<S: 'static> Chain for Record<S>
where
    for<'a> &'a Self: Service<Come, Response = Response<RecordedBody>, Error = Infallible>,
{
    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: Rc<Peer>,
        cut_by: Option<Arc<Generation>>,
    ) -> Response<RecordedBody> {
        let mut chain = self;
        let Ok(response) = chain.call((request, peer, cut_by)).await;
        response
    }
}

/// What the chain is made of.
#[derive(Clone)]
pub struct Parts {
    /// The policy in force.
    pub snapshot: Snapshot,
    /// What is known of tokens, shared by all workers.
    pub tokens: Arc<Tokens>,
    /// The bounds.
    pub limits: Limits,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// Where records go.
    pub access: Arc<Writer>,
    /// Where it is noted whom Synapse asked.
    pub ledger: Arc<Ledger>,
    /// Where privacy events are told.
    pub events: Events,
    /// Which upstream answers what.
    pub routes: Routes,
    /// The upstreams, as this worker reaches them.
    pub upstreams: Upstreams,
    /// The homeserver's name, where the gateway file says it.
    pub server_name: Option<String>,
}

impl Parts {
    /// The layer that judges, the same behind every door.
    fn policy_layer(&self) -> PolicyLayer {
        let (synapse, patience) = (self.upstreams.synapse(), self.limits.upstream_head.duration());
        let (tokens, metrics) = (Arc::clone(&self.tokens), Arc::clone(&self.metrics));
        PolicyLayer::new(
            self.snapshot.clone(),
            self.events.clone(),
            Authenticator::new(tokens, Rc::clone(synapse), metrics, patience),
            Collector::new(self.limits.collect.get()),
            WhoseKeys::new(Rc::clone(synapse), self.server_name.clone()),
        )
    }
}

/// A request with the connection it came on, and what is noted of it on its way.
pub struct Arrival<R> {
    /// The request.
    pub request: R,
    /// The connection it came on.
    pub peer: Rc<Peer>,
    /// Whom a trusted hop at the other end of the connection names; `None` where the other end is the client.
    pub named: Option<Box<Client>>,
    /// What the record will say.
    pub facts: Rc<Facts>,
    /// Who took something out of it before it was read.
    pub cut_by: Option<Arc<Generation>>,
}

/// What all requests of one connection share.
pub struct Peer {
    /// The other end.
    pub client: Client,
    /// The hops that are believed, if the other end is one of them.
    pub hops: Option<TrustedHops>,
    /// Tells the operator of a proxy that is not listed, if the other end may be one.
    pub hint: Option<UnlistedHop>,
    /// The HTTP version.
    pub protocol: Protocol,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// Whom a client takes us for: in whose place the connection was taken.
    pub in_place_of: Option<origins::Destination>,
    /// What the listener counts.
    pub listener: ListenerMetrics,
    /// Where the connection stands.
    pub pace: Rc<Pace>,
}

impl Peer {
    /// The record of an exchange on this connection, in which nothing is known yet but that it began: whoever asks may be gone
    /// before anything is.
    pub fn begin_record(&self, id: u64, flow: Flow, method: Method, endpoint: &'static str) -> AccessRecord {
        AccessRecord {
            time: SystemTime::now(),
            id,
            flow,
            listener: Arc::clone(self.listener.name()),
            method,
            endpoint,
            protocol: self.protocol,
            tls: self.tls,
            status: 0,
            rule: None,
            decision: Decision::Cancelled,
            mode: Mode::Enforce,
            token: Token::Unread,
            network: self.client.network,
            error: None,
            bytes_in: 0,
            bytes_out: 0,
            duration_us: 0,
            upstream: None,
            upstream_us: None,
            generation: 0,
        }
    }
}

impl<R> Arrival<R> {
    /// Who asks.
    pub fn client(&self) -> &Client {
        self.named.as_deref().unwrap_or(&self.peer.client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Period;

    #[test]
    fn synapse_has_an_answer_before_it_gives_up_whatever_the_limit_is() {
        let mut limits = Limits::default();
        assert_eq!(deadline(&limits), Duration::from_secs(54));
        for (upstream_head, until) in [(1, 1), (54, 54), (55, 54), (60, 54), (3600, 54)] {
            limits.upstream_head = Period::seconds(upstream_head);
            assert_eq!(deadline(&limits), Duration::from_secs(until), "{upstream_head}");
        }
    }
}
