//! The way to everybody who is no homeserver: found in the DNS alone, reached at checked addresses.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Response};
use hyper::body::Incoming;
use rustls::ClientConfig;
use tokio_rustls::TlsConnector;

use super::client::{REACH, again, passable};
use super::connector::{reach, secure};
use super::next_hop::{NextHop, Outward};
use super::pool::{Pool, Way};
use super::resolver::{NameServers, Resolver};
use crate::addresses::Guard;
use crate::error::{Error, Kind, Side};
use crate::matrix::{Host, ServerName};
use crate::message::{Body, BoxRequest, hop};
use crate::observe::metrics::{Metrics, UpstreamMetrics, WEB};
use crate::policy::{Held, Permitted};

/// Somebody to ask: a host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// Both as they were spelled: what `Host` says.
    name: ServerName,
    speaks: Speaks,
}

/// How somebody is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Clear,
    Tls,
}

impl Destination {
    /// Reads `host:port`, or `host` alone where a port is usual. An IPv6 address before a port may lack its brackets: Synapse
    /// writes it so in CONNECT.
    pub fn parse(text: &str, usual: Option<u16>) -> Option<Self> {
        if let Some(name) = ServerName::parse_web(text) {
            return Some(Self { host: name.host().clone(), port: name.port().or(usual)?, name, speaks: Speaks::Clear });
        }
        let (address, port) = text.rsplit_once(':').filter(|(address, _)| address.contains(':'))?;
        let name = ServerName::parse(&format!("[{address}]:{port}"))?;
        Some(Self { host: name.host().clone(), port: name.port()?, name, speaks: Speaks::Clear })
    }
}

impl Destination {
    /// The same, asked in TLS, and known by its certificate.
    pub fn in_tls(self) -> Self {
        Self { speaks: Speaks::Tls, ..self }
    }

    /// Both, as they were spelled.
    pub fn name(&self) -> &ServerName {
        &self.name
    }

    /// Whether both are one host and one port, however they are spelled.
    pub fn is_at(&self, other: &Self) -> bool {
        self.host == other.host && self.port == other.port
    }
}

/// How the web is reached: made once for a door, shared by its workers.
#[derive(Clone)]
pub struct Webs {
    name_servers: NameServers,
    guard: Guard,
    next_hop: Option<NextHop>,
    tls: TlsConnector,
    metrics: UpstreamMetrics,
}

/// One worker's way to the web. Not shared between threads: an exchange runs on one.
pub struct Web {
    resolver: Resolver,
    next_hop: Option<NextHop>,
    tls: TlsConnector,
    clear: Rc<Pool>,
    encrypted: Rc<Pool>,
    metrics: UpstreamMetrics,
}

impl Webs {
    /// Finds hosts by these name servers, reaches what this guard lets pass, perhaps through a proxy, and knows hosts by this TLS
    /// configuration.
    pub fn new(
        tls: Arc<ClientConfig>,
        name_servers: NameServers,
        guard: Guard,
        next_hop: Option<NextHop>,
        metrics: &Metrics,
    ) -> Self {
        let next_hop = next_hop.map(|hop| hop.known_by(&tls));
        Self { name_servers, guard, next_hop, tls: TlsConnector::from(tls), metrics: metrics.upstream(WEB) }
    }

    /// A way for this thread.
    ///
    /// # Errors
    /// When its resolver cannot be set up.
    pub fn web(&self) -> Result<Web, Error> {
        let resolver = Resolver::new(&self.name_servers, self.guard.clone())?;
        let pool = || Pool::new(self.metrics.clone());
        Ok(Web {
            resolver,
            next_hop: self.next_hop.clone(),
            tls: self.tls.clone(),
            clear: pool(),
            encrypted: pool(),
            metrics: self.metrics.clone(),
        })
    }
}

impl Web {
    /// Connects, within 9 seconds.
    ///
    /// # Errors
    /// [`Kind::OriginUnknown`], [`Kind::OriginForbidden`], [`Kind::OriginConnect`]
    pub async fn connect(&self, to: &Destination) -> Result<Outward, Error> {
        self.reach(to).await.inspect_err(|error| self.note(error))
    }

    /// Sends a request, its target in origin-form. Dropping the future, or the response's body before its end, closes
    /// the connection.
    ///
    /// # Errors
    /// All kinds of [`Side::Origin`], but for [`Kind::OriginSilent`]; [`Kind::BrokenBody`] where the request's own body failed.
    pub async fn send(&self, to: &Destination, request: Permitted<BoxRequest>) -> Result<Held<Response<Body>>, Error> {
        let (request, hold) = request.open();
        let began = Instant::now();
        let sent = self.exchange(to, request).await;
        let mut response = sent.inspect_err(|error| self.note(error))?.map(Body::stream);
        self.metrics.duration.observe(began.elapsed().as_secs_f64());
        hop::remove_hop_by_hop(response.headers_mut());
        Ok(hold.hold(response))
    }

    async fn exchange(&self, to: &Destination, request: BoxRequest) -> Result<Response<Incoming>, Error> {
        let pool = match to.speaks {
            Speaks::Clear => &self.clear,
            Speaks::Tls => &self.encrypted,
        };
        let request = match pool.take(&to.name) {
            None => request,
            Some(way) => {
                let again = match again(way, request).await {
                    Ok(again) => again,
                    Err(sent) => return passable(sent),
                };
                self.metrics.retries.inc();
                again
            }
        };
        let host = HeaderValue::from_str(to.name.as_str()).map_err(|_| Error::new(Kind::OriginUnknown))?;
        let stream = self.reach(to).await?;
        let way = match to.speaks {
            Speaks::Clear => Way::Line(pool.begin_h1(stream, &to.name, host).await?),
            Speaks::Tls => pool.begin(secure(&self.tls, stream, &to.host).await?, &to.name, host).await?,
        };
        passable(way.send(request).await)
    }

    async fn reach(&self, to: &Destination) -> Result<Outward, Error> {
        let reached =
            tokio::time::timeout(REACH, reach(&self.resolver, self.next_hop.as_ref(), &to.host, to.port)).await;
        reached.unwrap_or_else(|_late| Err(Error::new(Kind::OriginConnect)))
    }

    fn note(&self, error: &Error) {
        if error.kind().side() == Side::Origin {
            self.metrics.error(error.kind().as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_host_and_a_port() {
        let read = |text: &str, usual| Destination::parse(text, usual).map(|to| (to.host.to_string(), to.port));
        let is = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(read("Push.example.org:443", None), is("push.example.org", 443));
        assert_eq!(read("push.example.org", Some(80)), is("push.example.org", 80));
        assert_eq!(read("push.example.org", None), None);
        assert_eq!(read("192.0.2.1:80", None), is("192.0.2.1", 80));
        assert_eq!(read("Mautrix_Signal:29328", None), is("mautrix_signal", 29328));
        assert_eq!(read("[2001:db8::1]:443", None), is("2001:db8::1", 443));
        // As Synapse writes it.
        assert_eq!(read("2001:db8::1:443", None), is("2001:db8::1", 443));
        assert_eq!(read("::1:443", None), is("::1", 443));
        for odd in [
            "",
            ":443",
            "a:",
            "a:0",
            "u@a:443",
            "a:443:1",
            "a b:443",
            "127.1:443",
            "[::1%lo]:443",
            "::1%lo:443",
            "a/b:443",
        ] {
            assert_eq!(read(odd, Some(443)), None, "{odd}");
        }
    }
}
