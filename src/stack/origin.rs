//! 7 at the federation door: the other server, or who answers for it. Nothing comes here that the policy has not permitted.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use http::{Method, Response};
use tower::Service;

use super::hook;
use super::route::Cleared;
use crate::error::Error;
use crate::keyring::Keys;
use crate::ledger::{Contact, Door};
use crate::matrix::Endpoint;
use crate::message::Body;
use crate::observe::metrics::{KEY_RING, ORIGINS};
use crate::origin::{Client, Follow};
use crate::policy::{Destination, Held, Rerouted};

/// Sends each request to the server that it is for, or where the policy wants it to go.
#[derive(Clone)]
pub struct Origin {
    client: Rc<Client>,
    keys: Keys,
    name: Arc<str>,
    ring: Arc<str>,
}

impl Origin {
    /// Over the connections of this client, with this key ring.
    pub fn new(client: Rc<Client>, keys: Keys) -> Self {
        Self { client, keys, name: ORIGINS.into(), ring: KEY_RING.into() }
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
        let rerouted = request.get().extensions().get::<Rerouted>().cloned();
        let is_for_ring = rerouted.as_ref().is_some_and(|rerouted| rerouted.to == Destination::KeyRing);
        facts.note(|record| {
            record.upstream = Some(Arc::clone(if is_for_ring { &self.ring } else { &self.name }));
            record.rule = rerouted.as_ref().map(|rerouted| rerouted.rule).or(record.rule);
        });
        match rerouted.as_ref().map(|rerouted| &rerouted.to) {
            Some(Destination::KeyRing) => facts.contact(Contact::answered_here),
            Some(Destination::Server(other)) => {
                facts.contact(|contact| Contact::server(other, contact.cause(), Door::Federation));
            }
            None => {}
        }
        let follow = match request.get().method() {
            &Method::GET if is_media(classified.raw) => Follow::Media,
            _ => Follow::Nothing,
        };
        let (client, keys) = (Rc::clone(&self.client), self.keys.clone());
        Box::pin(async move {
            let server = hook::server(request.get())?;
            match rerouted.map(|rerouted| rerouted.to) {
                None => client.send(&server, request, follow).await,
                Some(Destination::Server(other)) => client.send(&other, request, follow).await,
                Some(Destination::KeyRing) => {
                    let (request, hold) = request.open();
                    Ok(hold.hold(keys.answer(&server, request).await?))
                }
            }
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
