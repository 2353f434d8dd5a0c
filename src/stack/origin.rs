//! 7 at the federation door: the other server, or who answers for it. Nothing comes here that the policy has not permitted.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use http::{Method, Request, Response};
use tower::Service;

use super::elsewhere::Elsewhere;
use super::hook;
use super::route::Cleared;
use crate::error::Error;
use crate::keyring::Keys;
use crate::message::Body;
use crate::observe::metrics::ORIGINS;
use crate::origin::{Client, Follow};
use crate::policy::Held;

/// Sends each request to the server that it is for, or where the policy wants it to go.
#[derive(Clone)]
pub struct Origin {
    client: Rc<Client>,
    elsewhere: Elsewhere,
    name: Arc<str>,
}

impl Origin {
    /// Over the connections of this client, with this key ring.
    pub fn new(client: Rc<Client>, keys: Keys) -> Self {
        Self { elsewhere: Elsewhere::new(Rc::clone(&client), keys), client, name: ORIGINS.into() }
    }
}

impl Service<Cleared> for Origin {
    type Response = Held<Response<Body>>;
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, Cleared { request, facts, .. }: Cleared) -> Self::Future {
        facts.note(|record| record.upstream = Some(Arc::clone(&self.name)));
        let instead = self.elsewhere.of(&request, &facts);
        let follow = follow(request.get());
        let (client, elsewhere) = (Rc::clone(&self.client), self.elsewhere.clone());
        Box::pin(async move {
            let server = hook::server(request.get())?;
            match instead {
                None => client.send(&server, request, follow).await,
                Some(to) => elsewhere.ask(&to, &server, request, &facts).await,
            }
        })
    }
}

/// What Synapse would follow in an answer to this. It writes a file's id into the path as a client named it, slashes and all
/// (`federation_download_media`, synapse/federation/transport/client.py): such a path is no endpoint, and still asks for a file.
fn follow<B>(request: &Request<B>) -> Follow {
    let path = request.uri().path();
    if request.method() != Method::GET {
        Follow::Nothing
    } else if path.starts_with("/_matrix/federation/v1/media/") {
        Follow::Parts
    } else if path.starts_with("/_matrix/media/") {
        Follow::Redirects
    } else {
        Follow::Nothing
    }
}
