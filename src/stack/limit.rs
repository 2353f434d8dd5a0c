//! 3 Bounds every exchange: the size of its body, and the time in which the homeserver begins to answer.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::{Layer, Service};

use super::{Arrival, Facts};
use crate::config::settings::Limits;
use crate::error::{Error, Kind};
use crate::matrix::endpoint::Endpoint;
use crate::message::{Body, BoxRequest, RequestBody};
use crate::observe::access::Protocol;

/// Makes [`Limit`].
pub struct LimitLayer {
    limits: Limits,
    patience: Patience,
}

/// How long the head of a response may take.
#[derive(Clone, Copy, Debug)]
enum Patience {
    /// So long while nothing moves; as long as it lasts, at endpoints that wait for something to happen.
    WhileItMoves(Duration),
    /// So long, whatever is asked.
    InAll(Duration),
}

/// Bounds exchanges.
pub struct Limit<S> {
    inner: S,
    limits: Limits,
    patience: Patience,
}

impl LimitLayer {
    /// A layer with these bounds.
    pub fn new(limits: Limits) -> Self {
        let patience = Patience::WhileItMoves(limits.upstream_head.duration());
        Self { limits, patience }
    }

    /// A layer with these bounds, for whoever gives up after a fixed time.
    pub fn with_deadline(limits: Limits, deadline: Duration) -> Self {
        Self { limits, patience: Patience::InAll(deadline) }
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit { inner, limits: self.limits.clone(), patience: self.patience }
    }
}

impl<'a, S> Service<Arrival<Box<Request<Incoming>>>> for &'a Limit<S>
where
    &'a S: Service<Arrival<BoxRequest>, Response = Response<Body>, Error = Error>,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = LimitFuture<<&'a S as Service<Arrival<BoxRequest>>>::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, arrival: Arrival<Box<Request<Incoming>>>) -> Self::Future {
        let Arrival { request, peer, named, facts, cut_by } = arrival;
        let most = self.limits.body.get();
        let (flow, idle) = (Rc::clone(facts.body()), self.limits.body_idle.duration());
        let rest = (peer.protocol == Protocol::H1).then(|| peer.pace.rest());
        let request = Box::new((*request).map(|body| RequestBody::new(body, flow, most, idle, rest)));
        // Synapse answers a body that is too large by resetting the connection, and a reset tells a client nothing.
        if request.body().size_hint().lower() > most {
            return LimitFuture::Refused { kind: Kind::TooLarge };
        }
        // The HTTP library bounds what it reads of a head, but more widely; Synapse drops the connection above 16 KiB.
        if head_bytes(&request) > self.limits.head_bytes.get() || request.headers().len() > self.limits.fields {
            return LimitFuture::Refused { kind: Kind::HeadTooLarge };
        }
        let patience = self.patience;
        let timer = tokio::time::sleep_until(Instant::now() + patience.first());
        let inner = (&self.inner).call(Arrival { request, peer, named, facts: Rc::clone(&facts), cut_by });
        LimitFuture::Waiting { inner, facts, timer, patience, bytes: 0 }
    }
}

impl Patience {
    /// Until it may end for the first time.
    fn first(self) -> Duration {
        match self {
            Self::WhileItMoves(patience) | Self::InAll(patience) => patience,
        }
    }
}

pin_project! {
    /// Waits for the head of the response, but not for ever.
    #[project = Waiting]
    pub enum LimitFuture<F> {
        /// Refused before anything was sent.
        Refused { kind: Kind },
        /// On its way.
        Waiting {
            #[pin]
            inner: F,
            facts: Rc<Facts>,
            #[pin]
            timer: Sleep,
            patience: Patience,
            bytes: u64,
        },
    }
}

impl<F: Future<Output = Result<Response<Body>, Error>>> Future for LimitFuture<F> {
    type Output = Result<Response<Body>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Waiting::Refused { kind } => Poll::Ready(Err(Error::new(*kind))),
            Waiting::Waiting { inner, facts, mut timer, patience, bytes } => {
                if let Poll::Ready(outcome) = inner.poll(cx) {
                    // What upstream did when the body broke off is an echo; the cause is on the client's side.
                    let fault = facts.body().fault().map(Error::new);
                    return Poll::Ready(outcome.map_err(|error| fault.unwrap_or(error)));
                }
                loop {
                    ready!(timer.as_mut().poll(cx));
                    let patience = match patience {
                        Patience::WhileItMoves(patience) => *patience,
                        Patience::InAll(_) => return Poll::Ready(Err(Error::new(Kind::OriginSilent))),
                    };
                    // The time counts while nothing moves: a large upload on a slow line is no silent homeserver.
                    let flowed = facts.body().bytes();
                    if flowed == *bytes && !is_patient(facts.endpoint()) {
                        return Poll::Ready(Err(Error::new(Kind::Silent)));
                    }
                    *bytes = flowed;
                    timer.as_mut().reset(Instant::now() + patience);
                }
            }
        }
    }
}

/// The bytes of a head as HTTP/1 writes it, whatever it came as.
fn head_bytes(request: &Request<RequestBody>) -> u64 {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    (request.method().as_str().len() + target + " HTTP/1.1\r\n\r\n ".len() + fields.sum::<usize>()) as u64
}

/// Endpoints that wait for something to happen, or do work that takes minutes: they last as long as they last. A client that
/// goes away ends them.
fn is_patient(endpoint: Endpoint) -> bool {
    matches!(
        endpoint,
        Endpoint::Sync
            | Endpoint::GetEvents
            | Endpoint::SlidingSync
            | Endpoint::InitialSync
            | Endpoint::RoomInitialSync
            | Endpoint::JoinRoomById
            | Endpoint::JoinRoomByIdOrAlias
            | Endpoint::KnockRoom
            | Endpoint::InviteUser
            | Endpoint::CreateRoom
            | Endpoint::FederationCreateJoinEvent
            | Endpoint::FederationCreateInvite
            | Endpoint::FederationCreateKnockEvent
    )
}
