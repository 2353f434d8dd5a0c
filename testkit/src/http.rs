//! A small blocking HTTP/1.1 client that sends what it is told, byte for byte, and shows what came back.
//!
//! Whatever takes longer than its time (10 s by default) is an error that says what had come until then.

mod connection;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;

use crate::error::{Context, Result};
use crate::socket::Address;
use crate::wire::{self, Headers};

pub use connection::Connection;

/// How long a request may take when it does not say otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// A request, written as it is told: only a missing `Host`, `Connection: close` and `Content-Length` are added.
#[derive(Clone)]
pub struct Request {
    method: String,
    target: Vec<u8>,
    headers: Vec<(String, Vec<u8>)>,
    body: Option<Vec<u8>>,
    timeout: Duration,
}

impl Request {
    /// Starts a request; the target goes out as these bytes.
    pub fn new(method: &str, target: impl Into<Vec<u8>>) -> Request {
        Request { method: method.into(), target: target.into(), headers: Vec::new(), body: None, timeout: TIMEOUT }
    }

    /// Adds a field; a second one of the same name is a second line.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Request {
        self.headers.push((name.into(), value.as_ref().to_vec()));
        self
    }

    /// Adds an access token as clients do.
    pub fn bearer(self, token: &str) -> Request {
        self.header("Authorization", format!("Bearer {token}"))
    }

    /// Sets the body, sent with a Content-Length unless the fields say how it is framed.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Request {
        self.body = Some(body.into());
        self
    }

    /// Sets a JSON body and its type.
    pub fn json(self, body: &Value) -> Request {
        self.header("Content-Type", "application/json").body(body.to_string())
    }

    /// Sets how long the answer may take.
    pub fn timeout(mut self, timeout: Duration) -> Request {
        self.timeout = timeout;
        self
    }

    /// Sends this on a connection of its own and returns the answer; panics with a sentence when there is none.
    #[track_caller]
    pub fn send(&self, to: impl Into<Address>) -> Response {
        self.try_send(to).unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// Like [`Request::send`], but returns the error.
    pub fn try_send(&self, to: impl Into<Address>) -> Result<Response> {
        self.send_on(Connection::open(to)?)
    }

    /// Sends this from this address of this machine; panics with a sentence when there is no answer.
    #[track_caller]
    pub fn send_from(&self, source: IpAddr, to: SocketAddr) -> Response {
        let answer = Connection::open_from(source, to).and_then(|connection| self.send_on(connection));
        answer.unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// Sends this over TLS to a server that has to prove this name under this authority; panics when it fails.
    #[track_caller]
    pub fn send_tls(&self, to: SocketAddr, server_name: &str, ca_pem: &str) -> Response {
        self.try_send_tls(to, server_name, ca_pem).unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// Like [`Request::send_tls`], but returns the error.
    pub fn try_send_tls(&self, to: SocketAddr, server_name: &str, ca_pem: &str) -> Result<Response> {
        self.send_on(Connection::open_tls(to, server_name, ca_pem)?)
    }

    /// The bytes that go out; `host` is used when no `Host` was set, `close` adds `Connection: close` likewise.
    fn to_bytes(&self, host: &str, close: Closing) -> Vec<u8> {
        let has = |name: &str| self.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        let mut bytes = [self.method.as_bytes(), b" ", &self.target, b" HTTP/1.1\r\n"].concat();
        let mut field = |name: &str, value: &[u8]| bytes.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        if !has("host") {
            field("Host", host.as_bytes());
        }
        for (name, value) in &self.headers {
            field(name, value);
        }
        if let Some(body) = self.body.as_ref().filter(|_| !has("content-length") && !has("transfer-encoding")) {
            field("Content-Length", body.len().to_string().as_bytes());
        }
        if matches!(close, Closing::Close) && !has("connection") {
            field("Connection", b"close");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }

    fn send_on(&self, connection: Connection) -> Result<Response> {
        let mut connection = connection;
        let bytes = self.to_bytes(&connection.host, Closing::Close);
        self.exchange(&mut connection, &bytes)
    }

    fn exchange(&self, connection: &mut Connection, bytes: &[u8]) -> Result<Response> {
        connection.set_timeout(self.timeout);
        let target = String::from_utf8_lossy(&self.target);
        let answer = connection.write_then_read(bytes, &self.method);
        answer.context(|| format!("{} {target} to {} got no answer", self.method, connection.host))
    }
}

/// As it would be sent, without its body.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, String::from_utf8_lossy(&self.target))?;
        self.headers.iter().try_for_each(|(name, value)| write!(f, " [{name}: {}]", String::from_utf8_lossy(value)))
    }
}

/// Whether a request asks for the end of its connection.
#[derive(Clone, Copy)]
enum Closing {
    Close,
    KeepAlive,
}

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The fields in the order they came.
    pub headers: Headers,
    /// The body, without its chunks.
    pub body: Vec<u8>,
    /// The head as it came, from the status line to the empty line.
    pub head: Vec<u8>,
}

impl Response {
    /// The first value of a field, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        wire::first(&self.headers, name)
    }

    /// Every value of a field, in order.
    pub fn header_all(&self, name: &str) -> Vec<&str> {
        wire::all(&self.headers, name).collect()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics and shows it when it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        self.try_json().unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// Like [`Response::json`], but returns the error.
    pub fn try_json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).context(|| format!("{} with no JSON body: {:?}", self.status, self.text()))
    }

    /// The `errcode` of a Matrix error, if this is one.
    pub fn errcode(&self) -> Option<String> {
        self.try_json().ok()?["errcode"].as_str().map(str::to_owned)
    }
}

/// Writes raw bytes and returns the raw bytes of one whole answer, or what came until the other side closed.
#[track_caller]
pub fn raw(to: impl Into<Address>, bytes: &[u8]) -> Vec<u8> {
    try_raw(to, bytes).unwrap_or_else(|e| panic!("{e:?}"))
}

/// Like [`raw`], but returns the error.
pub fn try_raw(to: impl Into<Address>, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut connection = Connection::open(to)?;
    // A server that refuses early may close before it has read all, and its answer is what counts.
    let _ = connection.write(bytes);
    let method = String::from_utf8_lossy(bytes.split(|&b| b == b' ').next().unwrap_or_default()).into_owned();
    connection.raw_response(&method)
}

/// Builds a raw answer with a Content-Length, for programmable servers.
pub fn response(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut bytes = format!("HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n", body.len()).into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// Builds a raw JSON answer.
pub fn json_response(status: u16, body: &Value) -> Vec<u8> {
    response(status, &[("Content-Type", "application/json")], body.to_string())
}
