//! 5 Which endpoint is this, by its raw and by its decoded path?

use std::task::{Context, Poll};

use http::Response;
use tower::{Layer, Service};

use super::Arrival;
use crate::error::Error;
use crate::matrix::Flow;
use crate::matrix::classify::{Classified, classify, flow};
use crate::message::{Body, BoxRequest};

/// Makes [`Classify`].
pub struct ClassifyLayer {
    direction: Direction,
}

/// Which way the requests of a chain go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

impl ClassifyLayer {
    /// For what others ask Synapse.
    pub fn inbound() -> Self {
        Self { direction: Direction::In }
    }

    /// For what Synapse asks others.
    pub fn outbound() -> Self {
        Self { direction: Direction::Out }
    }
}

/// Names what a request asks for.
pub struct Classify<S> {
    inner: S,
    direction: Direction,
}

/// A request whose endpoint is known.
pub struct Known {
    /// The request.
    pub arrival: Arrival<BoxRequest>,
    /// What it asks for.
    pub classified: Classified,
    /// The direction.
    pub flow: Flow,
}

impl<S> Layer<S> for ClassifyLayer {
    type Service = Classify<S>;

    fn layer(&self, inner: S) -> Classify<S> {
        Classify { inner, direction: self.direction }
    }
}

impl<'a, S> Service<Arrival<BoxRequest>> for &'a Classify<S>
where
    &'a S: Service<Known, Response = Response<Body>, Error = Error>,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = <&'a S as Service<Known>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, arrival: Arrival<BoxRequest>) -> Self::Future {
        let path = arrival.request.uri().path();
        let classified = classify(arrival.request.method(), path);
        let flow = match self.direction {
            Direction::In => flow(path),
            Direction::Out => Flow::Egress,
        };
        arrival.facts.classified(classified.raw, flow);
        (&self.inner).call(Known { arrival, classified, flow })
    }
}
