//! Where the policy sends a question instead of the server that it is for: to our own key ring, or to another server.

use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::Semaphore;

use super::Facts;
use crate::error::{Error, Kind, Side};
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
    /// For answers of other notaries, which are in memory whole.
    places: Rc<Semaphore>,
    ring: Arc<str>,
    servers: Arc<str>,
}

impl Elsewhere {
    /// Over the connections of this client, with this key ring.
    pub fn new(client: Rc<Client>, keys: Keys) -> Self {
        let places = Rc::new(Semaphore::new(PLACES));
        Self { client, keys, places, ring: KEY_RING.into(), servers: ORIGINS.into() }
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

    /// Sends a request there that was for the server of this name.
    ///
    /// Another server that fails on it, in whatever way, is answered for with nothing, as is one that is silent for as long as the key
    /// ring would be: to Synapse it is the server that it asked which is down, and would be left alone.
    ///
    /// # Errors
    /// What is wrong with the request's body.
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
                match self.answer_of(other, request).await {
                    // What it did when the request broke off is an echo of that.
                    Err(error) if error.kind().side() == Side::Origin && facts.body().fault().is_none() => {
                        facts.note(|record| {
                            record.decision = Decision::Error;
                            record.error = Some(error.kind().as_str());
                        });
                        Ok(hold.hold(Keys::nothing()))
                    }
                    answer => answer,
                }
            }
            Destination::KeyRing(fallback) => {
                let (request, hold) = request.open();
                Ok(hold.hold(self.keys.answer(asked, request, fallback).await?))
            }
        }
    }

    /// What another notary answers, if it does with all of it in time.
    async fn answer_of(
        &self,
        other: &ServerName,
        request: Permitted<BoxRequest>,
    ) -> Result<Held<Response<Body>>, Error> {
        let answer = async {
            let head = self.client.send(other, request, Follow::Nothing).await?;
            head.and_then(async |head| self.whole(head).await).await.inspect_err(|error| self.client.count(error))
        };
        tokio::time::timeout(self.keys.patience(), answer).await.unwrap_or_else(|_silent| {
            let error = Error::new(Kind::OriginSilent);
            self.client.count(&error);
            Err(error)
        })
    }

    /// The same answer, once all of it is here.
    async fn whole(&self, response: Response<Body>) -> Result<Response<Body>, Error> {
        if response.status() != StatusCode::OK {
            return Err(Error::new(Kind::OriginGarbled));
        }
        // Nobody closes it.
        let _place = self.places.acquire().await.map_err(|_| Error::new(Kind::OriginSilent))?;
        let (head, mut body) = response.into_parts();
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Error::caused_by(Kind::OriginClosed, error))?;
            let Ok(data) = frame.into_data() else { continue };
            if whole.len() + data.len() > MOST {
                return Err(Error::new(Kind::OriginGarbled));
            }
            whole.extend_from_slice(&data);
        }
        Ok(Response::from_parts(head, Body::full(whole.freeze())))
    }

    /// What we say of our own key, as a server says of its own; `None` where we have none.
    pub fn own_keys(&self, name: &ServerName) -> Option<Response<Body>> {
        self.keys.own(name)
    }
}

/// What is read of another notary's answer: the keys of some five thousand servers.
const MOST: usize = 8 * 1024 * 1024;
/// Answers that one worker reads at once.
const PLACES: usize = 8;
