//! Sends what is permitted to another server.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use rustls::ClientConfig;

use super::connector::Connector;
use super::delegation::Delegations;
use super::discovery;
use super::media;
use super::next_hop::NextHop;
use super::pool::{Failure, Pool, Way};
use super::resolver::{NameServers, Resolver};
use crate::addresses::Guard;
use crate::config::egress::Ports;
use crate::error::{Error, Kind, Side};
use crate::ledger::{Door, Ledger};
use crate::matrix::ServerName;
use crate::message::{Body, BoxRequest, RequestBody, hop};
use crate::observe::metrics::{Metrics, OriginMetrics};
use crate::policy::{Held, Permitted};

/// How other servers are reached and known, and what is remembered of them: made once for a door, shared by its workers.
#[derive(Clone)]
pub struct Origins {
    tls: Arc<ClientConfig>,
    name_servers: NameServers,
    guard: Guard,
    next_hop: Option<NextHop>,
    ports: Ports,
    delegations: Arc<Delegations>,
    ledger: Arc<Ledger>,
    door: Door,
    metrics: OriginMetrics,
}

/// One worker's way to other servers. Not shared between threads: an exchange runs on one.
pub struct Client {
    connector: Connector,
    ports: Ports,
    delegations: Arc<Delegations>,
    pool: Rc<Pool>,
    metrics: OriginMetrics,
}

/// What becomes of an answer that points elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// It is followed, by us: the file is wherever its server says, in a redirect or in one of two parts.
    Parts,
    /// The same, in a redirect: what the file is made of says nothing.
    Redirects,
    /// It is an error, and so are parts.
    Nothing,
}

impl Origins {
    /// Knows other servers by this TLS configuration, finds them by these name servers, and reaches what this guard lets pass,
    /// perhaps through a proxy. Whom it asks by itself to find them, it notes in this ledger, as asked through a federation door.
    pub fn new(
        tls: Arc<ClientConfig>,
        name_servers: NameServers,
        guard: Guard,
        next_hop: Option<NextHop>,
        ports: Ports,
        ledger: Arc<Ledger>,
        metrics: &Metrics,
    ) -> Self {
        let delegations = Arc::new(Delegations::new());
        let door = Door::Federation;
        Self { tls, name_servers, guard, next_hop, ports, delegations, ledger, door, metrics: metrics.origins() }
    }

    /// The same behind another door.
    pub fn behind(self, door: Door) -> Self {
        Self { door, ..self }
    }

    /// A client for this thread.
    ///
    /// # Errors
    /// When its resolver cannot be set up.
    pub fn client(&self) -> Result<Client, Error> {
        let resolver = Resolver::new(&self.name_servers, self.guard.clone())?;
        Ok(Client {
            connector: Connector::new(
                resolver,
                self.next_hop.clone(),
                Arc::clone(&self.tls),
                self.ports.https,
                Arc::clone(&self.ledger),
                self.door,
            ),
            ports: self.ports,
            delegations: Arc::clone(&self.delegations),
            pool: Pool::new(self.metrics.upstream.clone()),
            metrics: self.metrics.clone(),
        })
    }
}

impl Client {
    /// The door that it is behind.
    pub fn door(&self) -> Door {
        self.connector.door
    }

    /// Sends a permitted request, in origin-form, to this server, and waits for the head of the response; of one that points
    /// elsewhere, for that of what it points to. `Host` is set to what the server is called where it was found. Dropping the
    /// future, or the response's body before its end, closes the connection.
    ///
    /// How long it takes until the server is found and connected to is bounded here, and nothing else.
    ///
    /// # Errors
    /// All kinds of [`Side::Origin`], but for [`Kind::OriginSilent`]; [`Kind::BrokenBody`] where the request's own body failed.
    pub async fn send(
        &self,
        to: &ServerName,
        request: Permitted<BoxRequest>,
        follow: Follow,
    ) -> Result<Held<Response<Body>>, Error> {
        let (request, hold) = request.open();
        let began = Instant::now();
        let sent = async {
            let response = self.exchange(to, request).await?;
            match follow {
                Follow::Parts | Follow::Redirects => self.file(response, follow, began + FILE).await,
                Follow::Nothing if media::points_elsewhere(&response).is_some() || media::has_parts(&response) => {
                    Err(Error::new(Kind::OriginRedirect))
                }
                Follow::Nothing => Ok(response.map(Body::stream)),
            }
        };
        match sent.await {
            Ok(mut response) => {
                self.metrics.upstream.duration.observe(began.elapsed().as_secs_f64());
                hop::remove_hop_by_hop(response.headers_mut());
                Ok(hold.hold(response))
            }
            Err(error) => {
                self.count(&error);
                Err(error)
            }
        }
    }

    /// Counts what another server failed on; where [`Client::send`] did not say so, because it went wrong behind the head.
    pub fn count(&self, error: &Error) {
        if error.kind().side() == Side::Origin {
            self.metrics.upstream.error(error.kind().as_str());
        }
    }

    /// The file that an answer has, or points to. What goes wrong from here on says nothing about the server that answered.
    async fn file(
        &self,
        response: Response<Incoming>,
        follow: Follow,
        deadline: Instant,
    ) -> Result<Response<Body>, Error> {
        let file = async {
            let response = media::follow(response, &self.connector).await?;
            match follow {
                Follow::Parts => media::with_file(response, &self.connector).await,
                Follow::Redirects | Follow::Nothing => Ok(response.map(Body::stream)),
            }
        };
        let file = tokio::time::timeout_at(deadline.into(), file).await;
        let file = file.unwrap_or_else(|_late| Err(Error::new(Kind::OriginSilent)));
        file.map_err(|error| Error::caused_by(Kind::OriginFile, error))
    }

    async fn exchange(&self, to: &ServerName, request: BoxRequest) -> Result<Response<Incoming>, Error> {
        let request = match self.pool.take(to) {
            None => request,
            Some(way) => {
                let again = match again(way, request).await {
                    Ok(again) => again,
                    Err(sent) => return passable(sent),
                };
                self.metrics.upstream.retries.inc();
                again
            }
        };
        let way = tokio::time::timeout(REACH, self.connect(to)).await;
        let way = way.unwrap_or_else(|_late| Err(Error::new(Kind::OriginConnect)))?;
        passable(way.send(request).await)
    }

    async fn connect(&self, to: &ServerName) -> Result<Way, Error> {
        let route = discovery::find(to, self.ports.federation, &self.delegations, &self.connector).await?;
        self.metrics.found(route.step);
        let stream = self.connector.connect(&route.places, &route.name).await?;
        self.pool.begin(stream, to, route.host).await
    }
}

/// Sends a request on a connection that was open already, and gives it back if it has to be sent again; else what came of it.
pub(super) async fn again(way: Way, request: BoxRequest) -> Result<BoxRequest, Result<Response<Incoming>, Failure>> {
    let copy = copy(&request);
    match way.send(request).await {
        Err(Failure { unsent: Some(request), .. }) => Ok(request),
        // The server ended the connection while the request was on its way, as every server does now and then.
        Err(Failure { error, unsent: None }) if error.kind() == Kind::OriginClosed => {
            copy.ok_or(Err(Failure { error, unsent: None }))
        }
        sent => Err(sent),
    }
}

/// The same request, if it may be sent twice and nothing flows with it.
fn copy(request: &BoxRequest) -> Option<BoxRequest> {
    if ![Method::GET, Method::HEAD].contains(request.method()) || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(RequestBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(Box::new(copy))
}

/// Nobody asked for another protocol, so what follows a 101 is no HTTP.
pub(super) fn passable(sent: Result<Response<Incoming>, Failure>) -> Result<Response<Incoming>, Error> {
    match sent {
        Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => Err(Error::new(Kind::OriginGarbled)),
        Ok(response) => Ok(response),
        Err(failure) => Err(failure.error),
    }
}

/// Until a server is found and connected to: a person who waits for a profile waits for ten seconds.
pub(super) const REACH: Duration = Duration::from_secs(9);
/// Until a file has begun to come, wherever it is: some seconds before Synapse is told that its server is silent.
const FILE: Duration = Duration::from_secs(45);
