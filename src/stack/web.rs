//! 7 at the proxy door, for what can be read: whoever is asked, or who answers for him. Nothing comes here that the policy has
//! not permitted.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use http::Response;
use tower::Service;

use super::elsewhere::Elsewhere;
use super::forward;
use super::route::Cleared;
use crate::error::Error;
use crate::keyring::Keys;
use crate::message::Body;
use crate::observe::metrics::WEB;
use crate::origin;
use crate::policy::Held;

/// Sends each request to whom it is for.
#[derive(Clone)]
pub struct Web {
    web: Rc<origin::Web>,
    elsewhere: Elsewhere,
    name: Arc<str>,
}

impl Web {
    /// Over the connections of this one; what the policy wants to go elsewhere, over those of this client, or to this key ring.
    pub fn new(web: Rc<origin::Web>, client: Rc<origin::Client>, keys: Keys) -> Self {
        Self { web, elsewhere: Elsewhere::new(client, keys), name: WEB.into() }
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
        let instead = self.elsewhere.of(&request, &facts);
        let (web, elsewhere) = (Rc::clone(&self.web), self.elsewhere.clone());
        Box::pin(async move {
            match instead {
                None => web.send(&forward::destination(request.get())?, request).await,
                Some(to) => elsewhere.ask(&to, &forward::server(request.get())?, request, &facts).await,
            }
        })
    }
}
