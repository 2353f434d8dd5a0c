//! 7 at the notary door: our key ring, or who answers in its place. Nothing comes here that the policy has not permitted.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use http::Response;
use tower::Service;

use super::elsewhere::Elsewhere;
use super::route::Cleared;
use crate::error::Error;
use crate::keyring::Keys;
use crate::ledger::{Contact, Door};
use crate::matrix::{Endpoint, ServerName};
use crate::message::{Answer, Body};
use crate::origin::Client;
use crate::policy::{Cause, Destination, Held};

/// Answers questions for keys as any notary does, and nothing else.
#[derive(Clone)]
pub struct Notary {
    name: ServerName,
    elsewhere: Elsewhere,
}

impl Notary {
    /// A notary of this name.
    pub fn new(name: ServerName, client: Rc<Client>, keys: Keys) -> Self {
        Self { name, elsewhere: Elsewhere::new(client, keys) }
    }
}

impl Service<Cleared> for Notary {
    type Response = Held<Response<Body>>;
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, Cleared { request, classified, facts, .. }: Cleared) -> Self::Future {
        // Whoever comes here wants a notary, also where no rule says who that is.
        facts.contacts(Contact::server(&self.name, Cause::Keys, Door::Notary));
        let to = self.elsewhere.of(&request, &facts).unwrap_or_else(|| {
            facts.contact(Contact::answered_here);
            Destination::KeyRing(Arc::default())
        });
        facts.note(|record| record.upstream = Some(self.elsewhere.name(&to)));
        let this = self.clone();
        Box::pin(async move {
            match classified.raw {
                Endpoint::KeyGetRemoteServerKeys | Endpoint::KeyGetRemoteServerKeysBatch => {
                    this.elsewhere.ask(&to, &this.name, request, &facts).await
                }
                endpoint => {
                    let own =
                        if endpoint == Endpoint::KeyGetServerKeys { this.elsewhere.own_keys(&this.name) } else { None };
                    let (_, hold) = request.open();
                    Ok(hold.hold(own.unwrap_or_else(|| Answer::unrecognized().response(None))))
                }
            }
        })
    }
}
