//! The homeserver as a service: it takes what is permitted, and what it gives is held.

use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tower::Service;

use super::pool::Pool;
use crate::error::{Error, Kind};
use crate::message::{RequestBody, hop};
use crate::policy::{Held, Permit, Permitted, Purpose};

/// The homeserver, as one worker reaches it.
pub struct Synapse {
    pool: Pool,
}

impl Synapse {
    /// A service over this pool.
    pub fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// Sends a permitted request and waits for the head of the response.
    ///
    /// # Errors
    /// As [`Pool::send`]; also [`Kind::Garbled`] for a 101: nobody asked for an upgrade, so what follows is no HTTP.
    pub async fn send(&self, request: Permitted<Request<RequestBody>>) -> Result<Held<Response<Incoming>>, Error> {
        let (request, hold) = request.open();
        let mut response = self.pool.send(request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::new(Kind::Garbled));
        }
        hop::remove_hop_by_hop(response.headers_mut());
        Ok(hold.hold(response))
    }

    /// Whether the homeserver answers its own health check.
    ///
    /// # Errors
    /// Why not.
    pub async fn health(&self) -> Result<(), Error> {
        self.get(Purpose::Health, "/health").await.map(drop)
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
        let response = self.get(Purpose::ServerName, "/_matrix/key/v2/server").await?;
        let body = Limited::new(response.into_body(), MOST).collect().await;
        let body = body.map_err(|error| Error::caused_by(Kind::Garbled, error))?.to_bytes();
        let keys: ServerKeys = serde_json::from_slice(&body).map_err(|error| Error::caused_by(Kind::Garbled, error))?;
        Ok(keys.server_name)
    }

    /// Asks something of our own; only a 200 is an answer.
    async fn get(&self, purpose: Purpose, path: &'static str) -> Result<Response<Incoming>, Error> {
        let permit = Permit::internal(purpose);
        let mut request = Request::new(RequestBody::empty());
        *request.uri_mut() = http::Uri::from_static(path);
        let permitted = permit.permit(request, |headers| {
            headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        });
        let response = self.send(permitted).await?.release(&permit);
        if response.status() == StatusCode::OK { Ok(response) } else { Err(Error::new(Kind::Garbled)) }
    }
}

impl Service<Permitted<Request<RequestBody>>> for Rc<Synapse> {
    type Response = Held<Response<Incoming>>;
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Permitted<Request<RequestBody>>) -> Self::Future {
        let synapse = Rc::clone(self);
        Box::pin(async move { synapse.send(request).await })
    }
}

/// The largest answer to a question of our own that is read.
const MOST: usize = 64 * 1024;
