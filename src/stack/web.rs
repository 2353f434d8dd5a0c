//! 7 at the proxy door, for what is asked in the clear: whoever is asked. Nothing comes here that the policy has not permitted.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use http::Response;
use tower::Service;

use super::forward;
use super::route::Cleared;
use crate::error::Error;
use crate::message::Body;
use crate::observe::metrics::WEB;
use crate::origin;
use crate::policy::Held;

/// Sends each request to whom it is for.
#[derive(Clone)]
pub struct Web {
    web: Rc<origin::Web>,
    name: Arc<str>,
}

impl Web {
    /// Over the connections of this one.
    pub fn new(web: Rc<origin::Web>) -> Self {
        Self { web, name: WEB.into() }
    }
}

impl Service<Cleared> for Web {
    type Response = Held<Response<Body>>;
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, Cleared { request, facts, .. }: Cleared) -> Self::Future {
        facts.note(|record| record.upstream = Some(Arc::clone(&self.name)));
        let web = Rc::clone(&self.web);
        Box::pin(async move {
            let destination = forward::destination(request.get())?;
            web.send(&destination, request).await
        })
    }
}
