//! 7 at the federation door: the other server. Nothing comes here that the policy has not permitted.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use http::{Method, Response};
use tower::Service;

use super::hook;
use super::route::Cleared;
use crate::error::Error;
use crate::matrix::Endpoint;
use crate::message::Body;
use crate::observe::metrics::ORIGINS;
use crate::origin::{Client, Follow};
use crate::policy::Held;

/// Sends each request to the server that it is for.
#[derive(Clone)]
pub struct Origin {
    client: Rc<Client>,
    name: Arc<str>,
}

impl Origin {
    /// Over the connections of this client.
    pub fn new(client: Rc<Client>) -> Self {
        Self { client, name: ORIGINS.into() }
    }
}

impl Service<Cleared> for Origin {
    type Response = Held<Response<Body>>;
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, Cleared { request, classified, facts, .. }: Cleared) -> Self::Future {
        facts.note(|record| record.upstream = Some(Arc::clone(&self.name)));
        let follow = match request.get().method() {
            &Method::GET if is_media(classified.raw) => Follow::Media,
            _ => Follow::Nothing,
        };
        let client = Rc::clone(&self.client);
        Box::pin(async move {
            let server = hook::server(request.get())?;
            client.send(&server, request, follow).await
        })
    }
}

/// Endpoints whose answer is a file, or says where one is.
fn is_media(endpoint: Endpoint) -> bool {
    matches!(
        endpoint,
        Endpoint::FederationGetContent
            | Endpoint::FederationGetContentThumbnail
            | Endpoint::MediaGetContent
            | Endpoint::MediaGetContentThumbnail
    )
}
