//! The clients' part: connections that ask as fast as they are answered, and say how long it took.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mantlet_testkit::sample;
use memchr::memmem;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::origin::{DOWN, Origin, PIECE, POLL, UP};

/// What went wrong on a connection: the measurement is worth nothing then.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// How a proxy is reached.
#[derive(Clone)]
pub struct Way {
    /// Its address.
    pub to: SocketAddr,
    /// How to speak TLS with it, if so.
    pub tls: Option<TlsConnector>,
}

/// What came of a run.
#[derive(Default)]
pub struct Done {
    /// Requests that were answered as they should be.
    pub requests: usize,
    /// How long each took, in microseconds.
    pub latencies: Vec<u32>,
}

/// A TLS client that trusts this authority, offers this protocol, and never resumes a session.
pub fn tls(ca_pem: &str, alpn: &[u8]) -> Result<TlsConnector, Fault> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Way {
    async fn connect(&self) -> Result<Box<dyn Stream>, Fault> {
        let socket = TcpStream::connect(self.to).await?;
        socket.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(socket),
            Some(tls) => Box::new(tls.connect(ServerName::try_from("localhost")?, socket).await?),
        })
    }
}

/// GET requests over HTTP/1.1, one after the other on each of so many connections.
pub async fn keep_alive(way: &Way, target: &str, connections: usize, time: Duration) -> Result<Done, Fault> {
    let request: Arc<[u8]> = get(target, "keep-alive").into();
    gather((0..connections).map(|_| {
        let (way, request) = (way.clone(), Arc::clone(&request));
        async move {
            let mut connection = Connection::open(&way).await?;
            let mut done = Done::default();
            let until = Instant::now() + time;
            while Instant::now() < until {
                done.count(connection.exchange(&request)).await?;
            }
            Ok(done)
        }
    }))
    .await
}

/// A new connection for each GET request, which the proxy closes.
pub async fn new_connections(way: &Way, target: &str, at_once: usize, time: Duration) -> Result<Done, Fault> {
    let request: Arc<[u8]> = get(target, "close").into();
    gather((0..at_once).map(|_| {
        let (way, request) = (way.clone(), Arc::clone(&request));
        async move {
            let mut done = Done::default();
            let until = Instant::now() + time;
            while Instant::now() < until {
                let whole = async {
                    let mut connection = Connection::open(&way).await?;
                    connection.exchange(&request).await?;
                    connection.ended().await
                };
                done.count(whole).await?;
            }
            Ok(done)
        }
    }))
    .await
}

/// GET requests over HTTP/2, on so many connections with so many streams each.
pub async fn h2(way: &Way, target: &str, connections: usize, streams: usize, time: Duration) -> Result<Done, Fault> {
    let mut senders = Vec::new();
    for _ in 0..connections {
        let io = TokioIo::new(way.connect().await?);
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        // How it ended is seen by whoever asks.
        tokio::spawn(async move { connection.await.ok() });
        senders.extend(std::iter::repeat_n(sender, streams));
    }
    let request = h2_request(target)?;
    gather(senders.into_iter().map(|sender| {
        let request = request.clone();
        async move {
            let mut done = Done::default();
            let until = Instant::now() + time;
            while Instant::now() < until {
                done.count(h2_exchange(sender.clone(), request.clone())).await?;
            }
            Ok(done)
        }
    }))
    .await
}

/// Streams of `length` bytes from the origin, so many at a time, one on each connection.
pub async fn download(way: &Way, at_once: usize, length: usize) -> Result<Done, Fault> {
    let request: Arc<[u8]> = get(DOWN, "keep-alive").into();
    gather((0..at_once).map(|_| {
        let (way, request) = (way.clone(), Arc::clone(&request));
        async move {
            let mut connection = Connection::open(&way).await?;
            let mut done = Done::default();
            done.count(connection.receive(&request, length)).await?;
            Ok(done)
        }
    }))
    .await
}

/// Streams of `length` bytes to the origin, so many at a time, one on each connection.
pub async fn upload(way: &Way, at_once: usize, length: usize) -> Result<Done, Fault> {
    let head = String::from_utf8(get(UP, "keep-alive"))?.replacen("GET", "POST", 1);
    let head =
        head.replacen("\r\n\r\n", &format!("\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n"), 1);
    let head: Arc<[u8]> = head.into_bytes().into();
    gather((0..at_once).map(|_| {
        let (way, head) = (way.clone(), Arc::clone(&head));
        async move {
            let mut connection = Connection::open(&way).await?;
            let mut done = Done::default();
            let whole = async {
                connection.send(&head, length).await?;
                connection.answer().await
            };
            done.count(whole).await?;
            Ok(done)
        }
    }))
    .await
}

/// Long polls, so many at a time, until the origin holds them all; `look` is called then, and then they are answered.
pub async fn idle(way: &Way, origin: &Origin, polls: usize, look: impl FnOnce()) -> Result<Done, Fault> {
    let request = get(POLL, "keep-alive");
    let mut connections = Vec::with_capacity(polls);
    while connections.len() < polls {
        let mut connection = Connection::open(way).await?;
        connection.stream.write_all(&request).await?;
        connections.push(connection);
        // No more than a listen backlog bears.
        while connections.len() > origin.held() + BACKLOG {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while origin.held() < polls {
        if Instant::now() > deadline {
            return Err(format!("{} of {polls} long polls reached the origin", origin.held()).into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    look();
    origin.release();
    let mut done = Done::default();
    for mut connection in connections {
        done.count(connection.answer()).await?;
    }
    Ok(done)
}

/// Sends one request as it is, and returns the status of the answer and whether it is the origin's own.
pub async fn ask(way: &Way, request: &[u8]) -> Result<(u16, bool), Fault> {
    let mut connection = Connection::open(way).await?;
    connection.stream.write_all(request).await?;
    let (status, body) = connection.message().await?;
    Ok((status, body == sample::body().len()))
}

/// The client's request as it stands on the wire.
pub fn get(target: &str, connection: &str) -> Vec<u8> {
    let mut text = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in sample::FIELDS {
        let value = if name == "Connection" { connection } else { value };
        text.extend([name, ": ", value, "\r\n"]);
    }
    text.push_str("\r\n");
    text.into_bytes()
}

impl Done {
    async fn count(&mut self, exchange: impl Future<Output = Result<(), Fault>>) -> Result<(), Fault> {
        let start = Instant::now();
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(answered) => answered?,
            Err(_) => return Err(format!("no answer in {PATIENCE:?}").into()),
        }
        self.requests += 1;
        self.latencies.push(u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX));
        Ok(())
    }

    /// The latency, in milliseconds, that so many of a hundred requests do not exceed.
    pub fn percentile(&mut self, of_hundred: usize) -> f64 {
        self.latencies.sort_unstable();
        let at = (self.latencies.len() * of_hundred / 100).min(self.latencies.len().saturating_sub(1));
        f64::from(self.latencies.get(at).copied().unwrap_or_default()) / 1000.0
    }
}

/// Runs all at once; the first fault is that of the whole.
async fn gather<F>(clients: impl Iterator<Item = F>) -> Result<Done, Fault>
where
    F: Future<Output = Result<Done, Fault>> + Send + 'static,
{
    let mut running: JoinSet<_> = clients.collect();
    let mut all = Done::default();
    while let Some(done) = running.join_next().await {
        let done = done??;
        all.requests += done.requests;
        all.latencies.extend(done.latencies);
    }
    Ok(all)
}

/// A connection over HTTP/1.1, and what was read of it too early.
struct Connection {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
}

impl Connection {
    async fn open(way: &Way) -> Result<Connection, Fault> {
        Ok(Connection { stream: way.connect().await?, buffer: BytesMut::with_capacity(4096) })
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<(), Fault> {
        self.stream.write_all(request).await?;
        self.answer().await
    }

    /// Reads the origin's answer.
    async fn answer(&mut self) -> Result<(), Fault> {
        match self.message().await? {
            (200, length) if length == sample::body().len() => Ok(()),
            (status, length) => Err(format!("an answer {status} of {length} bytes").into()),
        }
    }

    /// Reads a whole answer, and returns its status and the length of its body.
    async fn message(&mut self) -> Result<(u16, usize), Fault> {
        let (status, length) = self.head().await?;
        while self.buffer.len() < length {
            self.more().await?;
        }
        let _ = self.buffer.split_to(length);
        Ok((status, length))
    }

    async fn head(&mut self) -> Result<(u16, usize), Fault> {
        let end = loop {
            if let Some(at) = memmem::find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let head = self.buffer.split_to(end);
        let status = std::str::from_utf8(head.get(9..12).unwrap_or_default())?.parse()?;
        let length = content_length(&head).ok_or("an answer without Content-Length")?;
        Ok((status, length))
    }

    async fn more(&mut self) -> Result<(), Fault> {
        self.buffer.reserve(2048);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err("the proxy closed the connection".into()),
            _ => Ok(()),
        }
    }

    /// Sends a head and a body of so many bytes.
    async fn send(&mut self, head: &[u8], length: usize) -> Result<(), Fault> {
        self.stream.write_all(head).await?;
        let piece = vec![0x5a; PIECE];
        let mut left = length;
        while left > 0 {
            let now = left.min(PIECE);
            self.stream.write_all(&piece[..now]).await?;
            left -= now;
        }
        Ok(self.stream.flush().await?)
    }

    /// Asks, and reads an answer of so many bytes.
    async fn receive(&mut self, request: &[u8], length: usize) -> Result<(), Fault> {
        self.stream.write_all(request).await?;
        let (status, declared) = self.head().await?;
        if (status, declared) != (200, length) {
            return Err(format!("an answer {status} of {declared} bytes").into());
        }
        let mut left = length.saturating_sub(self.buffer.len());
        self.buffer.clear();
        let mut piece = vec![0; PIECE];
        while left > 0 {
            match self.stream.read(&mut piece).await? {
                0 => return Err(format!("a stream was cut {left} bytes before its end").into()),
                read => left = left.saturating_sub(read),
            }
        }
        Ok(())
    }

    /// Waits until the proxy closes; one that says nothing of it over TLS has closed all the same.
    async fn ended(&mut self) -> Result<(), Fault> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => Err("bytes after the answer".into()),
        }
    }
}

async fn h2_exchange(mut sender: SendRequest<Empty<Bytes>>, request: http::Request<Empty<Bytes>>) -> Result<(), Fault> {
    sender.ready().await?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    match (status, body.len() == sample::body().len()) {
        (200, true) => Ok(()),
        _ => Err(format!("an answer {status} of {} bytes", body.len()).into()),
    }
}

fn h2_request(target: &str) -> Result<http::Request<Empty<Bytes>>, Fault> {
    let mut request = http::Request::get(format!("https://localhost{target}"));
    for (name, value) in sample::FIELDS.into_iter().filter(|(name, _)| *name != "Connection") {
        request = request.header(name, value);
    }
    Ok(request.body(Empty::new())?)
}

/// The number in `Content-Length`.
pub fn content_length(head: &[u8]) -> Option<usize> {
    let lines = head.split(|&byte| byte == b'\n').filter_map(|line| line.split_at_checked(15));
    let (_, value) = lines.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(b"content-length:"))?;
    std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()
}

/// Nothing that is measured here takes longer on a machine that works.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connections that are opened ahead of what a proxy has accepted.
const BACKLOG: usize = 64;
