//! Where the policy sends a question instead of the server that it is for: to our own key ring, or to another server.

use std::rc::Rc;
use std::sync::Arc;

use http::Response;

use super::Facts;
use crate::error::{Error, Kind};
use crate::keyring::Keys;
use crate::matrix::ServerName;
use crate::message::{Body, BoxRequest};
use crate::observe::access::Decision;
use crate::observe::metrics::{KEY_RING, ORIGINS};
use crate::origin::{Client, Follow};
use crate::policy::{Destination, Held, Permitted, Rerouted};

/// Whoever is asked instead.
#[derive(Clone)]
pub(super) struct Elsewhere {
    client: Rc<Client>,
    keys: Keys,
    ring: Arc<str>,
    servers: Arc<str>,
}

impl Elsewhere {
    /// Over the connections of this client, with this key ring.
    pub fn new(client: Rc<Client>, keys: Keys) -> Self {
        Self { client, keys, ring: KEY_RING.into(), servers: ORIGINS.into() }
    }

    /// Where the policy wants a request to go, if it does; noted in the record.
    pub fn of(&self, request: &Permitted<BoxRequest>, facts: &Facts) -> Option<Destination> {
        let Rerouted { to, rule } = request.get().extensions().get::<Rerouted>()?.clone();
        facts.note(|record| {
            record.upstream = Some(self.name(&to));
            record.rule = Some(rule);
        });
        facts.contact(|contact| match &to {
            Destination::KeyRing(_) => contact.answered_here(),
            Destination::Server(other) => contact.instead(other),
        });
        Some(to)
    }

    /// How records name it.
    pub fn name(&self, to: &Destination) -> Arc<str> {
        Arc::clone(match to {
            Destination::KeyRing(_) => &self.ring,
            Destination::Server(_) => &self.servers,
        })
    }

    /// Sends a request there that was for the server of this name. Whoever is silent for as long as the key ring would be is
    /// answered for with nothing, as that would do: to Synapse it is not the server that it asked which is down.
    ///
    /// # Errors
    /// As of [`Keys::answer`] and [`Client::send`].
    pub async fn ask(
        &self,
        to: &Destination,
        asked: &ServerName,
        request: Permitted<BoxRequest>,
        facts: &Facts,
    ) -> Result<Held<Response<Body>>, Error> {
        match to {
            Destination::Server(other) => {
                let hold = request.hold();
                let sent = self.client.send(other, request, Follow::Nothing);
                tokio::time::timeout(self.keys.patience(), sent).await.unwrap_or_else(|_silent| {
                    facts.note(|record| {
                        record.decision = Decision::Error;
                        record.error = Some(Kind::OriginSilent.as_str());
                    });
                    Ok(hold.hold(Keys::nothing()))
                })
            }
            Destination::KeyRing(fallback) => {
                let (request, hold) = request.open();
                Ok(hold.hold(self.keys.answer(asked, request, fallback).await?))
            }
        }
    }

    /// What we say of our own key, as a server says of its own; `None` where we have none.
    pub fn own_keys(&self, name: &ServerName) -> Option<Response<Body>> {
        self.keys.own(name)
    }
}
