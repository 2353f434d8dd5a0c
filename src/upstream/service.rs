//! The upstreams as a service: it takes what is permitted, and what it gives is held.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{LocalBoxFuture, select_ok};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tower::Service;

use super::directory::{Directory, Entry};
use super::replicas::Replicas;
use crate::error::{Error, Kind};
use crate::message::{BoxRequest, RequestBody, hop};
use crate::policy::{Held, Permit, Permitted, Purpose};

/// One upstream, as one worker reaches it.
pub struct Upstream {
    name: Arc<str>,
    replicas: Replicas,
}

/// All of them, the homeserver first.
#[derive(Clone)]
pub struct Upstreams(Rc<[Rc<Upstream>]>);

/// A permitted request, and who is to answer it.
pub struct Outgoing {
    /// The request.
    pub request: Permitted<BoxRequest>,
    /// The upstream's position.
    pub upstream: usize,
    /// Whether it waits for an upstream that cannot be reached.
    pub waits: bool,
}

impl Upstreams {
    /// Services over connections of this worker's own.
    pub fn new(directory: &Directory) -> Self {
        Self(directory.entries().iter().map(|entry| Rc::new(Upstream::new(entry))).collect())
    }

    /// The homeserver itself.
    pub fn synapse(&self) -> &Rc<Upstream> {
        &self.0[0]
    }

    /// All but the homeserver.
    pub fn others(&self) -> &[Rc<Upstream>] {
        &self.0[1..]
    }

    /// The one at a position; the homeserver where there is none.
    pub fn get(&self, position: usize) -> &Rc<Upstream> {
        self.0.get(position).unwrap_or_else(|| self.synapse())
    }
}

impl Upstream {
    fn new(entry: &Entry) -> Self {
        Self { name: Arc::clone(&entry.name), replicas: Replicas::new(entry) }
    }

    /// The operator's name for it.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Sends a permitted request and waits for the head of the response; where nobody can be reached, one that `waits` is sent
    /// once somebody can, within `[limits] patience`. Dropping the future, or the response's body before its
    /// end, closes the connection, so that nobody works for nobody.
    ///
    /// # Errors
    /// [`Kind::Connect`], [`Kind::Closed`] or [`Kind::Garbled`], also for a 101: nobody asked for an upgrade, so what follows is
    /// no HTTP. [`Kind::BrokenBody`] where the request's own body failed, whose flow tells how.
    pub async fn send(&self, request: Permitted<BoxRequest>, waits: bool) -> Result<Held<Response<Incoming>>, Error> {
        let (request, hold) = request.open();
        let mut response = self.replicas.send(request, waits).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::new(Kind::Garbled));
        }
        hop::remove_hop_by_hop(response.headers_mut());
        Ok(hold.hold(response))
    }

    /// Whether one of its servers answers Synapse's health check.
    ///
    /// # Errors
    /// Why one does not.
    pub async fn health(&self) -> Result<(), Error> {
        let each = (0..self.replicas.count()).map(|server| Box::pin(self.get(server, Purpose::Health, "/health")));
        select_ok(each).await.map(drop)
    }

    /// Whether one of its servers can be reached: all that is known of a server that may not be Synapse.
    ///
    /// # Errors
    /// Why not.
    pub async fn reach(&self) -> Result<(), Error> {
        self.replicas.reach().await
    }

    /// The name under which the homeserver signs.
    ///
    /// # Errors
    /// Why it cannot be known.
    pub async fn server_name(&self) -> Result<String, Error> {
        #[derive(serde::Deserialize)]
        struct ServerKeys {
            server_name: String,
        }
        let path = "/_matrix/key/v2/server";
        let each = (0..self.replicas.count()).map(|server| Box::pin(self.get(server, Purpose::ServerName, path)));
        let (response, _) = select_ok(each).await?;
        let body = Limited::new(response.into_body(), MOST).collect().await;
        let body = body.map_err(|error| Error::caused_by(Kind::Garbled, error))?.to_bytes();
        let keys: ServerKeys = serde_json::from_slice(&body).map_err(|error| Error::caused_by(Kind::Garbled, error))?;
        Ok(keys.server_name)
    }

    /// Asks one of the servers something of our own; only a 200 is an answer.
    async fn get(&self, server: usize, purpose: Purpose, path: &'static str) -> Result<Response<Incoming>, Error> {
        let permit = Permit::internal(purpose);
        let mut request = Request::new(RequestBody::empty());
        *request.uri_mut() = http::Uri::from_static(path);
        let permitted = permit.permit(Box::new(request), |headers| {
            headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        });
        let (request, hold) = permitted.open();
        let mut response = self.replicas.send_to_one(server, request).await?;
        hop::remove_hop_by_hop(response.headers_mut());
        let response = hold.hold(response).release(&permit);
        if response.status() == StatusCode::OK { Ok(response) } else { Err(Error::new(Kind::Garbled)) }
    }
}

impl Service<Outgoing> for Upstreams {
    type Response = Held<Response<Incoming>>;
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, Outgoing { request, upstream, waits }: Outgoing) -> Self::Future {
        let upstream = Rc::clone(self.get(upstream));
        Box::pin(async move { upstream.send(request, waits).await })
    }
}

/// The largest answer to a question of our own that is read.
const MOST: usize = 64 * 1024;
