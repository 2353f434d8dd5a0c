//! Opens connections to other servers: to an address that was checked, with TLS, to whom the certificate names.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{HeaderValue, Request, Response, header};
use http_body::Body as _;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName as TlsName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::next_hop::{NextHop, Outward};
use super::resolver::Resolver;
use super::url::Url;
use crate::addresses::is_federation_port;
use crate::error::{Error, Kind};
use crate::ledger::{Contact, Door, Ledger, Verdict};
use crate::matrix::Host;
use crate::message::NEUTRAL_AGENT;
use crate::policy::Cause;

/// A connection to another server.
pub(super) type Stream = TlsStream<Outward>;

/// Opens them for one worker.
pub(super) struct Connector {
    pub resolver: Resolver,
    next_hop: Option<NextHop>,
    tls: TlsConnector,
    /// The same, for what is asked once: HTTP/1.1 and nothing else.
    once: TlsConnector,
    /// Where HTTPS is served by default.
    https: u16,
    /// Where it is noted who was asked for a URL, and through which door.
    ledger: Arc<Ledger>,
    pub door: Door,
}

/// A host and a port to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub host: Host,
    pub port: u16,
}

impl Connector {
    pub fn new(
        resolver: Resolver,
        next_hop: Option<NextHop>,
        tls: Arc<ClientConfig>,
        https: u16,
        ledger: Arc<Ledger>,
        door: Door,
    ) -> Self {
        let next_hop = next_hop.map(|hop| hop.known_by(&tls));
        let mut once = ClientConfig::clone(&tls);
        once.alpn_protocols = vec![b"http/1.1".to_vec()];
        let once = TlsConnector::from(Arc::new(once));
        Self { resolver, next_hop, tls: TlsConnector::from(tls), once, https, ledger, door }
    }

    /// Opens a connection to the first of these places that can be reached, and believes it to be `name` only with a
    /// certificate for that name. Names are looked up once: what was checked is what is connected to.
    ///
    /// # Errors
    /// That of the last place, of those that say why nothing can be reached here.
    pub async fn connect(&self, places: &[Place], name: &Host) -> Result<Stream, Error> {
        let mut last = Error::new(Kind::OriginUnknown);
        for place in places {
            match self.connect_to(place, name, &self.tls).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, place: &Place, name: &Host, tls: &TlsConnector) -> Result<Stream, Error> {
        if place.port != self.https && !is_federation_port(place.port) {
            return Err(Error::new(Kind::OriginForbidden));
        }
        let stream = reach(&self.resolver, self.next_hop.as_ref(), &place.host, place.port).await?;
        secure(tls, stream, name).await
    }

    /// Asks for a URL, on a connection of its own, without a word about who asks. What for, the ledger hears; of the bytes, as many
    /// as are declared.
    ///
    /// # Errors
    /// As of [`Connector::connect`], [`Kind::OriginClosed`], [`Kind::OriginGarbled`].
    pub async fn get(&self, url: &Url, cause: Cause) -> Result<Response<Incoming>, Error> {
        let place = Place { host: url.server.host().clone(), port: url.server.port().unwrap_or(self.https) };
        let contact = Contact::host(&place.host, place.port, cause, self.door);
        let asked = self.ask(url, place).await;
        match &asked {
            Ok(response) => self.ledger.note(contact, Verdict::Passed, 0, response.body().size_hint().lower()),
            Err(_) => self.ledger.note(contact, Verdict::Failed, 0, 0),
        }
        asked
    }

    async fn ask(&self, url: &Url, place: Place) -> Result<Response<Incoming>, Error> {
        let stream = self.connect_to(&place, &place.host, &self.once).await?;
        let handshake = http1::Builder::new().max_headers(MAX_FIELDS).handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
        tokio::task::spawn_local(async move {
            // How it ended is told to whoever asked.
            let _ = connection.await;
        });
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = url.target.clone().into();
        let host = HeaderValue::from_str(url.server.as_str()).map_err(|_| Error::new(Kind::OriginUnknown))?;
        request.headers_mut().insert(header::HOST, host);
        // What every reader sends: some places serve nobody who does not, and to send less than others do says more.
        for (name, value) in
            [(header::CONNECTION, "close"), (header::USER_AGENT, NEUTRAL_AGENT), (header::ACCEPT, "*/*")]
        {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        sender.send_request(request).await.map_err(|error| broken(&error))
    }
}

/// The kind of what the HTTP library says of another server. Its words are not kept: they may quote what came.
pub(super) fn broken(error: &hyper::Error) -> Error {
    Error::new(if error.is_parse() { Kind::OriginGarbled } else { Kind::OriginClosed })
}

/// Begins TLS, and believes the other end to be `name` only with a certificate for that name.
///
/// # Errors
/// [`Kind::OriginUntrusted`], [`Kind::OriginConnect`]
pub(super) async fn secure<IO: AsyncRead + AsyncWrite + Unpin>(
    tls: &TlsConnector,
    stream: IO,
    name: &Host,
) -> Result<TlsStream<IO>, Error> {
    let name = match name {
        Host::Address(address) => TlsName::from(*address),
        Host::Name(name) => {
            TlsName::try_from(name.to_string()).map_err(|error| Error::caused_by(Kind::OriginUntrusted, error))?
        }
    };
    let handshake = tokio::time::timeout(HANDSHAKE, tls.connect(name, stream)).await;
    handshake.map_err(|_late| Error::new(Kind::OriginConnect))?.map_err(|error| {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        let is_stranger =
            matches!(cause, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented));
        Error::new(if is_stranger { Kind::OriginUntrusted } else { Kind::OriginConnect })
    })
}

/// Connects to the first address of a host that answers. It is looked up once: what was checked is what is connected to.
///
/// # Errors
/// [`Kind::OriginUnknown`], [`Kind::OriginForbidden`], [`Kind::OriginConnect`]
pub(super) async fn reach(
    resolver: &Resolver,
    next_hop: Option<&NextHop>,
    host: &Host,
    port: u16,
) -> Result<Outward, Error> {
    let addresses = resolver.addresses(host).await?;
    let open = async |address: IpAddr| match next_hop.filter(|hop| hop.leads_to(host, address)) {
        Some(hop) => hop.connect(resolver, SocketAddr::new(address, port)).await,
        None => match directly(address, port).await {
            Ok(stream) => Ok(Either::Left(stream)),
            Err(error) => Err(Error::caused_by(Kind::OriginConnect, error)),
        },
    };
    let stream = tokio::time::timeout(CONNECT, first_to_answer(&addresses, open)).await;
    stream.unwrap_or_else(|_late| Err(Error::new(Kind::OriginConnect)))
}

async fn directly(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((address, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects to the first address that answers: the next one is tried when one fails, and also while it hesitates.
async fn first_to_answer<IO>(
    addresses: &[IpAddr],
    open: impl AsyncFn(IpAddr) -> Result<IO, Error>,
) -> Result<IO, Error> {
    let mut waiting = in_turns(addresses).into_iter().take(MOST_ADDRESSES);
    let mut attempts = FuturesUnordered::new();
    let mut last = Error::new(Kind::OriginConnect);
    loop {
        match waiting.next() {
            Some(address) => attempts.push(open(address)),
            None if attempts.is_empty() => return Err(last),
            None => {}
        }
        let is_last = waiting.len() == 0;
        tokio::select! {
            Some(attempt) = attempts.next() => match attempt {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            },
            () = tokio::time::sleep(HESITATES), if !is_last => {}
        }
    }
}

/// Both families in turns (RFC 8305, section 4): where one leads nowhere, the other is tried before many of the first.
fn in_turns(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
    (0..addresses.len()).flat_map(|turn| [v4.get(turn), v6.get(turn)]).flatten().copied().collect()
}

const CONNECT: Duration = Duration::from_secs(4);
const HANDSHAKE: Duration = Duration::from_secs(5);
/// After so long the next address is tried as well (RFC 8305).
const HESITATES: Duration = Duration::from_millis(250);
/// Of all that a name may resolve to.
const MOST_ADDRESSES: usize = 8;
pub(super) const MAX_FIELDS: usize = 200;

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_address_that_refuses_does_not_keep_from_the_next() {
        let listener = TcpListener::bind("127.0.1.2:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses = ["127.0.1.1", "127.0.1.2"].map(|text| text.parse().unwrap());
        let open = async |address| directly(address, port).await.map_err(|_| Error::new(Kind::OriginConnect));
        let stream = first_to_answer(&addresses, open).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
        assert!(first_to_answer(&addresses[..1], open).await.is_err());
        assert!(first_to_answer(&[], open).await.is_err());
    }

    #[tokio::test]
    async fn a_family_that_leads_nowhere_does_not_keep_from_the_other_however_many_addresses_it_has() {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let v4 = (1..=MOST_ADDRESSES).map(|last| format!("127.0.2.{last}"));
        let addresses: Vec<IpAddr> = v4.chain(["::1".to_owned()]).map(|text| text.parse().unwrap()).collect();
        let open = async |address| directly(address, port).await.map_err(|_| Error::new(Kind::OriginConnect));
        let stream = first_to_answer(&addresses, open).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
    }
}
