//! The proxy door: what Synapse asks those who are no homeservers.
//!
//! It looks at the beginning of each connection. A CONNECT digs a tunnel, if the policy leaves a way there; where the policy wants
//! a host to be looked into, the tunnel ends here, in TLS of our own. All else is given to the HTTP library, and to the chain.

mod asked;
mod connect;
mod rewound;
mod tunnel;

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use rustls::{AlertDescription, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::settings::Limits;
use crate::error::Kind;
use crate::events::Events;
use crate::ledger::{Contact, Door, Ledger};
use crate::matrix::Host;
use crate::message::Answer;
use crate::observe::access::{Decision, Writer};
use crate::observe::metrics::{self, TunnelMetrics, WEB};
use crate::origin::{Destination, Web};
use crate::policy::egress::{Way, is_reserved};
use crate::policy::{Cause, RuleIndex};
use crate::snapshot::{Current, Generation};
use crate::stack::forward::{NAME, Refusal, Terms};
use crate::stack::{Parts, Peer};
use crate::tls::leaves::Leaves;
use asked::Asked;
use connect::Connect;

pub use rewound::Rewound;

/// One worker's proxy door.
pub struct Proxy {
    web: Rc<Web>,
    terms: Terms,
    limits: Limits,
    current: Current,
    access: Arc<Writer>,
    ledger: Arc<Ledger>,
    events: Events,
    metrics: TunnelMetrics,
    upstream: Arc<str>,
}

/// What a connection turned out to be.
pub enum Received<IO> {
    /// Requests in the clear, from the first byte on.
    Requests(Rewound<IO>),
    /// Requests to this host, in whose place we are.
    InPlaceOf(Destination, Box<TlsStream<Rewound<IO>>>),
    /// All there was to do has been done.
    Nothing,
}

impl Proxy {
    /// A door with these terms, that leads here; the rest is as the chain's.
    pub fn new(web: Rc<Web>, terms: Terms, chain: &Parts) -> Self {
        let (current, metrics) = (chain.snapshot.current(), chain.metrics.tunnels());
        let (limits, access, ledger) = (chain.limits.clone(), Arc::clone(&chain.access), Arc::clone(&chain.ledger));
        let events = chain.events.clone();
        Self { web, terms, limits, current, access, ledger, events, metrics, upstream: WEB.into() }
    }

    /// Reads what a connection begins with, and digs the tunnel that it asks for, if it asks for one. Then this lasts as long as
    /// the tunnel does; once `draining` is over, it waits no longer for one in which nothing moves. Dropping it closes both ends.
    pub async fn receive<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut io: IO,
        peer: &Peer,
        draining: Pin<&mut impl Future<Output = ()>>,
    ) -> Received<IO> {
        let mut read = BytesMut::new();
        match connect::read(&mut io, &mut read, &peer.pace).await {
            Ok(Some(head)) => {
                let (io, asked) = (Rewound::new(io, read.freeze()), Asked::begin(self, peer));
                if let Some((host, io)) = self.connect(io, head, asked, draining).await {
                    return Received::InPlaceOf(host, Box::new(io));
                }
            }
            Ok(None) => return Received::Requests(Rewound::new(io, read.freeze())),
            // Nobody is there to be told anything.
            Err(connect::Failure::Gone) => {}
            Err(connect::Failure::Bad) => {
                peer.listener.refused_by_parser(metrics::Refusal::BadRequest);
                // Whether it arrives is the client's affair.
                let _ = asked::write(&mut io, &Refusal::Target.answer(), None).await;
            }
            Err(connect::Failure::Late) => peer.listener.refused_by_parser(metrics::Refusal::Timeout),
        }
        Received::Nothing
    }

    async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut io: Rewound<IO>,
        Connect { to, credentials }: Connect,
        asked: Asked<'_>,
        draining: Pin<&mut impl Future<Output = ()>>,
    ) -> Option<(Destination, TlsStream<Rewound<IO>>)> {
        let generation = self.current.load();
        let admitted = self.terms.admit(credentials.iter().map(Vec::as_slice));
        let to = match admitted.and_then(|()| self.leads_to(to, &asked, &generation)) {
            Ok(to) => to,
            Err(refusal) => {
                asked.came_to(metrics::Tunnel::Refused, Decision::Deny, Some(NAME));
                asked.answer(&mut io, &refusal.answer(), None).await;
                return None;
            }
        };
        asked.note(|record| record.generation = generation.number);
        if let Some(denial) = generation.policy.closed_way(&to.host) {
            generation.counters(RuleIndex::EGRESS).deny.inc();
            let rule = generation.policy.rule(RuleIndex::EGRESS).name;
            asked.came_to(metrics::Tunnel::Refused, Decision::Deny, Some(rule));
            if let Some(telling) = generation.policy.tells_of(RuleIndex::EGRESS) {
                self.events.tell(asked.event(rule, &to.host), telling);
            }
            let shown = generation.policy.announces_rules().then_some(rule);
            asked.answer(&mut io, &denial.answer, shown).await;
            return None;
        }
        if let Some(leaf) = generation.leaves.of(&to.host) {
            return Some((to, self.intercept(io, Arc::clone(leaf), &generation.leaves, asked).await?));
        }
        // Without an authority nobody is led there by us.
        if is_reserved(&to.host) {
            let denial = generation.policy.unbound_nowhere();
            generation.counters(denial.rule).answer.inc();
            asked.came_to(metrics::Tunnel::Refused, Decision::Answer, Some(generation.policy.rule(denial.rule).name));
            asked.answer(&mut io, &denial.answer, None).await;
            return None;
        }
        // One that is to be looked into, and cannot be, does not pass unread.
        if !passes_unread(&generation, &to.host) {
            asked.came_to(metrics::Tunnel::Failed, Decision::Error, None);
            asked.note(|record| record.error = Some(Kind::Panic.as_str()));
            asked.answer(&mut io, &Answer::error(Kind::Panic), None).await;
            return None;
        }
        drop(generation);
        tokio::select! {
            biased;
            // A tunnel that is in use would else outlast every policy.
            () = self.current.until(|generation| !passes_unread(generation, &to.host)) => {}
            () = self.dig(io, &to, &asked, draining) => {}
        }
        None
    }

    /// Where to, if the door leads there; noted for the ledger if it is anywhere.
    fn leads_to(
        &self,
        to: Option<Destination>,
        asked: &Asked<'_>,
        generation: &Generation,
    ) -> Result<Destination, Refusal> {
        let to = to.ok_or(Refusal::Host)?;
        let cause = generation.policy.egress().cause(&to.host).unwrap_or(Cause::Other);
        asked.contacts(Contact::host(&to.host, to.port, cause, Door::Proxy));
        self.terms.leads_to(&to.host, to.port)?;
        Ok(to)
    }

    /// Carries what passes unread, from the connection to the other end until it is over.
    async fn dig<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut io: Rewound<IO>,
        to: &Destination,
        asked: &Asked<'_>,
        draining: Pin<&mut impl Future<Output = ()>>,
    ) {
        let far = match self.web.connect(to).await {
            Ok(far) => far,
            Err(error) => {
                asked.came_to(metrics::Tunnel::Failed, Decision::Error, None);
                asked.note(|record| record.error = Some(error.kind().as_str()));
                asked.answer(&mut io, &Answer::error(error.kind()), None).await;
                return;
            }
        };
        let connected_us = asked.elapsed_us();
        if asked.open(&mut io).await.is_err() {
            return;
        }
        match tunnel::hello(&mut io, &to.host, self.limits.handshake.duration()).await {
            Ok(hello) => {
                asked.carries(connected_us);
                tunnel::carry(io, far, &hello, asked.flowed(), self.limits.tunnel_idle.duration(), draining).await;
            }
            Err(tunnel::NoHello::Gone) => {}
            Err(tunnel::NoHello::Other) => asked.came_to(metrics::Tunnel::Mismatch, Decision::Deny, Some(NAME)),
        }
    }

    /// Ends the tunnel here, in TLS of our own. What is asked inside is recorded by the chain.
    async fn intercept<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut io: Rewound<IO>,
        leaf: Arc<ServerConfig>,
        leaves: &Leaves,
        asked: Asked<'_>,
    ) -> Option<TlsStream<Rewound<IO>>> {
        asked.open(&mut io).await.ok()?;
        match timeout(self.limits.handshake.duration(), TlsAcceptor::from(leaf).accept(io)).await {
            Ok(Ok(io)) => {
                asked.goes_on(metrics::Tunnel::Intercepted);
                Some(io)
            }
            // Another name, or a client that does not believe us.
            Ok(Err(error)) => {
                if is_disbelief(&error) {
                    leaves.tell_once(|| {
                        tracing::warn!(
                            "somebody does not believe the authority by which hosts are looked into. If it is Synapse, give it \
                             the bundle as SSL_CERT_FILE, and start it again: mantlet ca synapse --bundle FILE. This is said once"
                        );
                    });
                }
                asked.came_to(metrics::Tunnel::Mismatch, Decision::Deny, Some(NAME));
                None
            }
            Err(_late) => None,
        }
    }
}

/// Whether a handshake failed for what the other end thinks of our certificate.
fn is_disbelief(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(
        cause,
        Some(rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
        ))
    )
}

/// Whether the policy lets pass what is asked of this host without a look into it.
fn passes_unread(generation: &Generation, host: &Host) -> bool {
    match generation.policy.egress().way(host).0 {
        Way::Tunnel => true,
        Way::Intercept | Way::Deny => false,
    }
}
