//! The admin listener: metrics, health, version, the ledger and reload, for the operator alone.
//!
//! It is on loopback or a unix socket, and refuses what a web page could make a browser send it: a request with an
//! `Origin`, from another site, or for a host that is a name (a name can be rebound to 127.0.0.1; an address cannot).

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use crate::config::address::AdminAddress;
use crate::problem::Problem;
use crate::server::reuseport::Bound;
use crate::server::socket_file::{self, SocketFile};

pub use client::call;

mod client;

/// A future that may move to another thread.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the admin listener can ask of the process.
pub trait AdminApi: Send + Sync {
    /// All metrics in Prometheus' text format.
    fn metrics(&self) -> String;
    /// Whether the gateway can serve; otherwise why not, in one line without anybody's data.
    fn ready(&self) -> BoxFuture<'_, Result<(), String>>;
    /// Name, version, generation and policy digest.
    fn version(&self) -> Value;
    /// Whom Synapse asked, and whether that is written down at all.
    fn ledger(&self) -> Value;
    /// Loads the policy again: what is in force now, or the problems that keep the old one.
    fn reload(&self) -> BoxFuture<'_, Result<Value, Value>>;
}

/// The bound admin socket; dropping it removes the socket's file.
#[derive(Debug)]
pub struct AdminListener(Socket);

/// Bound before there is a runtime, so that a gateway whose admin address is taken does not start at all.
#[derive(Debug)]
enum Socket {
    Tcp(Bound),
    Unix(std::os::unix::net::UnixListener, SocketFile),
}

/// The same on the runtime that serves it.
enum Listener {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        /// Removed when the listener goes.
        _file: SocketFile,
    },
}

impl AdminListener {
    /// Binds; a socket file is 0600 before anyone can connect, and replaces one on which nobody listens.
    ///
    /// # Errors
    /// When the address is not loopback, is in use, or cannot be bound.
    pub fn bind(address: &AdminAddress) -> Result<Self, Problem> {
        match address {
            AdminAddress::Tcp(tcp) if !tcp.ip().to_canonical().is_loopback() => {
                Err(Problem::new(format!("{tcp} is no loopback address; [admin] is for this machine only"))
                    .help("choose 127.0.0.1, [::1] or unix:/path"))
            }
            AdminAddress::Tcp(tcp) => Ok(Self(Socket::Tcp(Bound::bind(*tcp, "[admin]")?))),
            AdminAddress::Unix(path) => {
                let (listener, file) = socket_file::bind(path, 0o600, 64, "[admin]")?;
                Ok(Self(Socket::Unix(listener, file)))
            }
        }
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> AdminAddress {
        match &self.0 {
            Socket::Tcp(bound) => AdminAddress::Tcp(bound.address()),
            Socket::Unix(_, file) => AdminAddress::Unix(file.path().to_owned()),
        }
    }

    fn listen(self) -> std::io::Result<Listener> {
        Ok(match self.0 {
            Socket::Tcp(bound) => Listener::Tcp(bound.listener()?),
            Socket::Unix(listener, file) => Listener::Unix { listener: UnixListener::from_std(listener)?, _file: file },
        })
    }
}

impl Listener {
    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        match self {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| Box::new(stream) as Box<dyn Stream>),
            Listener::Unix { listener, .. } => {
                listener.accept().await.map(|(stream, _)| Box::new(stream) as Box<dyn Stream>)
            }
        }
    }
}

/// Serves until the future is dropped, which also ends the connections and removes the socket's file.
pub async fn serve(listener: AdminListener, api: Arc<dyn AdminApi>) {
    let mut connections = JoinSet::new();
    let listener = match listener.listen() {
        Ok(listener) => listener,
        Err(e) => return tracing::error!(error = %e, "the admin listener cannot be served"),
    };
    loop {
        while connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok(stream) => {
                connections.spawn(connection(stream, api.clone()));
            }
            Err(e) => {
                // Out of descriptors, most likely: they come back when somebody hangs up.
                tracing::warn!(error = %e, "admin connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 32;

/// For a whole request head, and so also for the next request on a connection that is kept.
const HEAD: Duration = Duration::from_secs(10);

/// For a request head.
const HEAD_BYTES: usize = 8 * 1024;

/// In a request head.
const FIELDS: usize = 50;

async fn connection(stream: Box<dyn Stream>, api: Arc<dyn AdminApi>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(answer(&request, &*api).await) }
    });
    // How a connection ends concerns only who is at its other end.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(FIELDS)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

async fn answer<B>(request: &Request<B>, api: &dyn AdminApi) -> Response<Full<Bytes>> {
    if let Sender::Browser(why) = sender(request) {
        return json_body(StatusCode::FORBIDDEN, &json!({ "error": why }));
    }
    let Some(resource) = Resource::at(request.uri().path()) else {
        return json_body(StatusCode::NOT_FOUND, &json!({ "error": "there is nothing here" }));
    };
    let method = request.method();
    // hyper leaves the body out of the answer to HEAD.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    if method != resource.method() {
        let mut refusal = json_body(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": "wrong method" }));
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(resource.allow()));
        return refusal;
    }
    match resource {
        Resource::Metrics => body(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", api.metrics()),
        Resource::Livez => body(StatusCode::OK, "text/plain; charset=utf-8", "ok\n"),
        Resource::Readyz => match api.ready().await {
            Ok(()) => json_body(StatusCode::OK, &json!({ "ready": true })),
            Err(reason) => json_body(StatusCode::SERVICE_UNAVAILABLE, &json!({ "ready": false, "reason": reason })),
        },
        Resource::Version => json_body(StatusCode::OK, &api.version()),
        Resource::Ledger => json_body(StatusCode::OK, &api.ledger()),
        Resource::Reload => match api.reload().await {
            Ok(now) => json_body(StatusCode::OK, &now),
            Err(problems) => json_body(StatusCode::CONFLICT, &problems),
        },
    }
}

/// All there is to ask.
#[derive(Clone, Copy)]
enum Resource {
    Metrics,
    Livez,
    Readyz,
    Version,
    Ledger,
    Reload,
}

impl Resource {
    fn at(path: &str) -> Option<Self> {
        match path {
            "/metrics" => Some(Self::Metrics),
            "/livez" => Some(Self::Livez),
            "/readyz" => Some(Self::Readyz),
            "/version" => Some(Self::Version),
            "/ledger" => Some(Self::Ledger),
            "/reload" => Some(Self::Reload),
            _ => None,
        }
    }

    fn method(self) -> Method {
        match self {
            Self::Metrics | Self::Livez | Self::Readyz | Self::Version | Self::Ledger => Method::GET,
            Self::Reload => Method::POST,
        }
    }

    fn allow(self) -> &'static str {
        match self {
            Self::Metrics | Self::Livez | Self::Readyz | Self::Version | Self::Ledger => "GET, HEAD",
            Self::Reload => "POST",
        }
    }
}

/// Who may have sent a request.
enum Sender {
    Operator,
    /// A web page might have; with the mark that tells.
    Browser(&'static str),
}

fn sender<B>(request: &Request<B>) -> Sender {
    let fields = request.headers();
    if fields.contains_key(ORIGIN) {
        return Sender::Browser("a request with an Origin is not answered here");
    }
    // Not every cross-site request has an Origin: an image's has not, but today's browsers mark it so.
    let own_site = |value: &HeaderValue| value == "none" || value == "same-origin";
    if !fields.get_all("sec-fetch-site").iter().all(own_site) {
        return Sender::Browser("a request from another site is not answered here");
    }
    let mut hosts = fields.get_all(HOST).iter();
    let named = match (hosts.next(), hosts.next()) {
        (Some(host), None) => is_address(host.as_bytes()),
        _ => false,
    };
    let absolute = request.uri().authority().is_none_or(|authority| is_address(authority.as_str().as_bytes()));
    if named && absolute { Sender::Operator } else { Sender::Browser("Host must be an IP address or localhost") }
}

/// Whether an authority is an IP literal or `localhost`, with or without a port.
fn is_address(authority: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(authority) else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    literal.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost")
}

fn json_body(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    body(status, "application/json", format!("{value}\n"))
}

fn body(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(content.into()));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests;
