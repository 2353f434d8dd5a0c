//! The proxy through which a network is left. It is asked for addresses that were looked at, never for names.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::connector::secure;
use super::resolver::Resolver;
use crate::addresses::{Class, Guard};
use crate::config::next_hop::{self as config, NextHopUrl};
use crate::config::secret::Basic;
use crate::error::{Error, Kind};
use crate::matrix::Host;
use crate::problem::Problem;

/// The next hop, as all workers share it.
#[derive(Clone)]
pub struct NextHop {
    inner: Arc<Inner>,
    /// How it is known, if it is spoken to in TLS.
    tls: Option<TlsConnector>,
}

/// A connection that leads out: directly, or to the next hop in TLS.
pub type Outward = Either<TcpStream, Box<TlsStream<TcpStream>>>;

struct Inner {
    url: NextHopUrl,
    credentials: Option<Shown>,
    except: Option<Guard>,
    is_told: AtomicBool,
}

/// What it is shown, and where that is read.
struct Shown {
    file: PathBuf,
    basic: ArcSwap<Basic>,
}

impl NextHop {
    /// Reads what the gateway file names. If it is to be spoken to in TLS, nobody vouches for it before [`NextHop::known_by`].
    ///
    /// # Errors
    /// What is wrong with the file of its credentials.
    pub fn read(config: &config::NextHop) -> Result<Self, Problem> {
        let read = |file: &PathBuf| {
            Basic::read(file).map(|basic| Shown { file: file.clone(), basic: ArcSwap::from_pointee(basic) })
        };
        let credentials = config.credentials_file.as_ref().map(read).transpose()?;
        let except = config.except.clone().map(Guard::new);
        let inner = Inner { url: config.url.clone(), credentials, except, is_told: AtomicBool::new(false) };
        Ok(Self { inner: Arc::new(inner), tls: None })
    }

    /// The same, known by the roots of this configuration, if it is spoken to in TLS.
    pub fn known_by(self, config: &ClientConfig) -> Self {
        let connector = || {
            // It is asked for tunnels, in the only version that has nothing else.
            let mut config = config.clone();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            TlsConnector::from(Arc::new(config))
        };
        Self { tls: self.inner.url.is_encrypted.then(connector), ..self }
    }

    /// The file of its credentials, if it is shown any.
    pub fn file(&self) -> Option<&Path> {
        self.inner.credentials.as_ref().map(|shown| &*shown.file)
    }

    /// Reads its credentials again, for all who are led there; whether they are others now.
    ///
    /// # Errors
    /// What is wrong with the file; what it was shown before, it is shown further.
    pub fn reload(&self) -> Result<bool, Problem> {
        let Some(Shown { file, basic }) = &self.inner.credentials else { return Ok(false) };
        let new = Basic::read(file)?;
        let is_new = new != **basic.load();
        if is_new {
            basic.store(Arc::new(new));
            self.inner.is_told.store(false, Ordering::Relaxed);
        }
        Ok(is_new)
    }

    /// Whether this address of this host is reached through it, and not directly.
    pub(super) fn leads_to(&self, host: &Host, address: IpAddr) -> bool {
        match &self.inner.except {
            Some(except) => !except.allows(&host.to_string(), address),
            None => Class::of(address) == Class::Public,
        }
    }

    /// Connects to an address through it.
    ///
    /// # Errors
    /// [`Kind::OriginConnect`]
    pub(super) async fn connect(&self, resolver: &Resolver, to: SocketAddr) -> Result<Outward, Error> {
        let asked = tokio::time::timeout(PATIENCE, self.ask(resolver, to)).await;
        asked.unwrap_or_else(|_late| Err(Error::new(Kind::OriginConnect)))
    }

    async fn ask(&self, resolver: &Resolver, to: SocketAddr) -> Result<Outward, Error> {
        let failed = |error| Error::caused_by(Kind::OriginConnect, error);
        let NextHopUrl { host, port, is_encrypted } = &self.inner.url;
        // The operator named it: it may be anywhere.
        let addresses = resolver.all_addresses(host).await.map_err(|_| Error::new(Kind::OriginConnect))?;
        let places: Vec<_> = addresses.into_iter().map(|address| SocketAddr::new(address, *port)).collect();
        let stream = TcpStream::connect(&*places).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let mut stream = match (is_encrypted, &self.tls) {
            (false, _) => Either::Left(stream),
            (true, Some(tls)) => Either::Right(Box::new(self.secured(tls, stream, host).await?)),
            // A defect of ours: what is to be in TLS does not go in the clear.
            (true, None) => return Err(Error::new(Kind::OriginConnect)),
        };
        let credentials = match &self.inner.credentials {
            Some(shown) => format!("Proxy-Authorization: Basic {}\r\n", shown.basic.load().as_str()),
            None => String::new(),
        };
        let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{credentials}\r\n");
        stream.write_all(request.as_bytes()).await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
        match status(&mut stream).await.map_err(failed)? {
            Some(200..=299) => Ok(stream),
            status => {
                self.tell_once(status);
                Err(Error::new(Kind::OriginConnect))
            }
        }
    }

    /// The same in TLS. That its certificate is not good is not the fault of whom it leads to.
    async fn secured(&self, tls: &TlsConnector, stream: TcpStream, host: &Host) -> Result<TlsStream<TcpStream>, Error> {
        secure(tls, stream, host).await.map_err(|error| {
            if error.kind() == Kind::OriginUntrusted && !self.inner.is_told.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "the certificate of the next hop is not good for its name, by the roots of this system and the door's \
                     extra_roots. This is said once"
                );
            }
            Error::new(Kind::OriginConnect)
        })
    }

    /// What it says is the same for all, so it is told once.
    fn tell_once(&self, status: Option<u16>) {
        if !self.inner.is_told.swap(true, Ordering::Relaxed) {
            let status = status.unwrap_or_default();
            tracing::warn!(
                status,
                "the next hop refuses a connection: 407 is for want of next_hop_credentials, others for addresses or ports that \
                 it does not let out to. This is said once, and once more for new credentials"
            );
        }
    }
}

/// The status of an answer to CONNECT, with whose head nothing else may come: at the far end we speak first. `None` is no HTTP.
async fn status(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<u16>> {
    let mut read = Vec::new();
    loop {
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer).await?;
        read.extend_from_slice(&buffer[..length]);
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let mut head = httparse::Response::new(&mut fields);
        match head.parse(&read) {
            Ok(httparse::Status::Complete(end)) => {
                // Of a refusal the rest does not matter.
                let is_alone = end == read.len() || head.code.is_some_and(|code| code >= 300);
                return Ok(head.code.filter(|_| is_alone));
            }
            Ok(httparse::Status::Partial) if length > 0 && read.len() < MOST => {}
            Ok(httparse::Status::Partial) | Err(_) => return Ok(None),
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(4);
const MOST: usize = 8 * 1024;
const FIELDS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addresses::Allowed;

    fn hop(except: Option<&[&str]>) -> NextHop {
        let url = NextHopUrl::try_from("http://proxy.corp:3128".to_owned()).unwrap();
        let allowed = |text: &&str| Allowed::try_from((*text).to_owned()).unwrap();
        let except = except.map(|list| list.iter().map(allowed).collect());
        NextHop::read(&config::NextHop { url, credentials_file: None, except }).unwrap()
    }

    #[test]
    fn what_is_not_public_is_reached_directly_unless_the_operator_says_what_is() {
        let leads = |hop: &NextHop, host: &str, address: &str| {
            let host = crate::matrix::ServerName::parse(host).unwrap().host().clone();
            hop.leads_to(&host, address.parse().unwrap())
        };
        let usual = hop(None);
        assert!(leads(&usual, "matrix.org", "1.1.1.1") && leads(&usual, "1.1.1.1", "1.1.1.1"));
        assert!(!leads(&usual, "bridge.internal", "10.20.0.7") && !leads(&usual, "localhost", "127.0.0.1"));
        let some = hop(Some(&["bridge.internal", "192.0.2.0/24"]));
        assert!(leads(&some, "other.internal", "10.20.0.7") && !leads(&some, "bridge.internal", "10.20.0.7"));
        assert!(!leads(&some, "x.test", "192.0.2.1") && leads(&some, "x.test", "1.1.1.1"));
        assert!(leads(&hop(Some(&[])), "localhost", "127.0.0.1"));
    }

    #[test]
    fn a_url_is_http_with_a_port_and_no_secret() {
        let read = |text: &str| {
            NextHopUrl::try_from(text.to_owned()).map(|url| (url.host.to_string(), url.port, url.is_encrypted))
        };
        assert_eq!(read("http://proxy.corp:3128/"), Ok(("proxy.corp".to_owned(), 3128, false)));
        assert_eq!(read("https://proxy.corp:3129"), Ok(("proxy.corp".to_owned(), 3129, true)));
        assert_eq!(read("http://[2001:db8::1]:80"), Ok(("2001:db8::1".to_owned(), 80, false)));
        for odd in [
            "proxy:3128",
            "socks5://proxy:3128",
            "https://proxy",
            "http://proxy",
            "http://proxy:0",
            "http://proxy:1/x",
            "http://:1",
        ] {
            assert!(read(odd).unwrap_err().contains("is not the URL of a proxy"), "{odd}");
        }
        assert!(!read("http://u:hidden@proxy:1").unwrap_err().contains("hidden"));
    }
}
