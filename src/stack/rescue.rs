//! 2 Turns accidents into answers: above this layer there is no error, and a panic below it ends one exchange only.

use std::cell::Cell;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use super::{Arrival, Facts};
use crate::error::{Error, Kind, Side};
use crate::message::{Answer, Body};
use crate::observe::access::Decision;

/// Makes [`Rescue`].
pub struct RescueLayer;

/// Answers for what fails.
pub struct Rescue<S> {
    inner: S,
    teller: Rc<Teller>,
}

impl<S> Layer<S> for RescueLayer {
    type Service = Rescue<S>;

    fn layer(&self, inner: S) -> Rescue<S> {
        Rescue { inner, teller: Rc::default() }
    }
}

impl<'a, S> Service<Arrival<Box<Request<Incoming>>>> for &'a Rescue<S>
where
    &'a S: Service<Arrival<Box<Request<Incoming>>>, Response = Response<Body>, Error = Error>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = RescueFuture<<&'a S as Service<Arrival<Box<Request<Incoming>>>>>::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, arrival: Arrival<Box<Request<Incoming>>>) -> Self::Future {
        let facts = Rc::clone(&arrival.facts);
        let inner = caught(|| (&self.inner).call(arrival));
        RescueFuture { inner, facts, teller: Rc::clone(&self.teller) }
    }
}

pin_project! {
    /// Waits for a response, or makes one of what went wrong.
    pub struct RescueFuture<F> {
        // None if it could not even be called.
        #[pin]
        inner: Option<F>,
        facts: Rc<Facts>,
        teller: Rc<Teller>,
    }
}

impl<F: Future<Output = Result<Response<Body>, Error>>> Future for RescueFuture<F> {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = match this.inner.as_pin_mut() {
            Some(inner) => caught(|| inner.poll(cx)),
            None => None,
        };
        match ready!(outcome.unwrap_or_else(|| Poll::Ready(Err(Error::new(Kind::Panic))))) {
            Ok(response) => Poll::Ready(Ok(response)),
            Err(error) => {
                this.teller.tell(&error, this.facts);
                Poll::Ready(Ok(respond(&error, this.facts)))
            }
        }
    }
}

/// Runs what may panic. The state that a panic may leave half-changed is this exchange's own, and is dropped with it.
fn caught<T>(run: impl FnOnce() -> T) -> Option<T> {
    // What the panic says is not repeated: it may quote what a client sent.
    catch_unwind(AssertUnwindSafe(run)).ok()
}

fn respond(error: &Error, facts: &Facts) -> Response<Body> {
    let kind = error.kind();
    facts.note(|record| {
        record.decision = Decision::Error;
        record.error = Some(kind.as_str());
    });
    let mut response = Answer::error(kind).response(None);
    if kind.side() == Side::Downstream {
        // The rest of the request is still on its way and would be taken for the next one.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// As it stands in the record.
fn id(facts: &Facts) -> String {
    format!("{:016x}", facts.id())
}

/// Says in the log what went wrong: at once, and then no more than once a second. Every single failure is in the access
/// record and in the metrics; a homeserver that is down for an hour must not fill the disk.
#[derive(Default)]
struct Teller {
    last: Cell<Option<Instant>>,
    unsaid: Cell<u64>,
}

impl Teller {
    /// Says what happened, with the whole chain of causes; none of them holds anything of the request.
    fn tell(&self, error: &Error, facts: &Facts) {
        if error.kind().side() == Side::Downstream {
            return tracing::debug!(id = id(facts), kind = error.kind().as_str(), "a client failed on its request");
        }
        if error.kind().side() == Side::Origin {
            // Servers that are gone are everyday; each is in the access record and counted by kind. Its name is nobody's business.
            return tracing::debug!(id = id(facts), kind = error.kind().as_str(), "another server failed on a request");
        }
        if self.last.get().is_some_and(|last| last.elapsed() < PAUSE) {
            return self.unsaid.set(self.unsaid.get() + 1);
        }
        self.last.set(Some(Instant::now()));
        let unsaid = self.unsaid.take();
        let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
        let cause = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        let (id, endpoint, kind) = (id(facts), facts.endpoint().id(), error.kind().as_str());
        match error.kind().side() {
            Side::Upstream => tracing::warn!(id, endpoint, kind, cause, unsaid, "the homeserver failed on a request"),
            Side::Gateway | Side::Downstream | Side::Origin => {
                tracing::error!(id, endpoint, kind, cause, unsaid, "the gateway failed on a request");
            }
        }
    }
}

const PAUSE: Duration = Duration::from_secs(1);
