//! 7 Which upstream answers this? Nothing comes here that the policy has not permitted.

use std::rc::Rc;
use std::task::{Context, Poll};

use http::Response;
use hyper::body::Incoming;
use tower::{Layer, Service};

use super::Facts;
use crate::config::route::Routes;
use crate::error::Error;
use crate::matrix::{Classified, Flow};
use crate::message::BoxRequest;
use crate::policy::{Held, Permitted};
use crate::upstream::{Outgoing, Upstreams};

/// Makes [`Route`].
pub struct RouteLayer {
    routes: Rc<Routes>,
}

/// Sends each request to the upstream that the operator's routes name.
#[derive(Clone)]
pub struct Route {
    upstreams: Upstreams,
    routes: Rc<Routes>,
}

/// A request that has been permitted.
pub struct Cleared {
    /// The request.
    pub request: Permitted<BoxRequest>,
    /// What it asks for.
    pub classified: Classified,
    /// The direction.
    pub flow: Flow,
    /// What the record will say.
    pub facts: Rc<Facts>,
}

impl RouteLayer {
    /// A layer with these routes.
    pub fn new(routes: Routes) -> Self {
        Self { routes: Rc::new(routes) }
    }
}

impl Layer<Upstreams> for RouteLayer {
    type Service = Route;

    fn layer(&self, upstreams: Upstreams) -> Route {
        Route { upstreams, routes: Rc::clone(&self.routes) }
    }
}

impl Service<Cleared> for Route {
    type Response = Held<Response<Incoming>>;
    type Error = Error;
    type Future = <Upstreams as Service<Outgoing>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, Cleared { request, classified, flow, facts }: Cleared) -> Self::Future {
        let head = request.get();
        let upstream = self.routes.choose(head.method(), head.uri().path(), classified);
        facts.note(|record| record.upstream = Some(self.upstreams.get(upstream).name().clone()));
        // An error puts us on another server's list of those to leave alone for a while, the longer the more there are. A person
        // wants to know at once.
        let waits = flow == Flow::Federation;
        self.upstreams.call(Outgoing { request, upstream, waits })
    }
}
