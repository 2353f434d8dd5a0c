//! A connection that a test holds in its hand.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::error::{Context, Error, Result};
use crate::http::{Closing, Request, Response, TIMEOUT};
use crate::socket::{Address, Socket};
use crate::wire::{self, Body, Head};

/// One connection held open: keep-alive, pipelining, half-written requests, clients that go away (drop it).
pub struct Connection {
    stream: Stream,
    /// The same socket, for timeouts and half-closing.
    control: Socket,
    pub(super) host: String,
    timeout: Duration,
    /// Read from the socket, and not yet part of an answer.
    pending: Vec<u8>,
}

enum Stream {
    Plain(Socket),
    Tls(Box<StreamOwned<ClientConnection, Socket>>),
}

impl Connection {
    /// Connects over TCP or to a unix socket.
    pub fn open(to: impl Into<Address>) -> Result<Connection> {
        let to = to.into();
        let socket = Socket::connect(&to, TIMEOUT).context(|| format!("connect to {to}"))?;
        Connection::over(socket, &to)
    }

    /// Connects over TCP from this address of this machine: 127.0.0.0/8 has many clients.
    pub fn open_from(source: IpAddr, to: SocketAddr) -> Result<Connection> {
        let socket = Socket::connect_from(source, to, TIMEOUT);
        Connection::over(socket.context(|| format!("connect to {to} from {source}"))?, &to.into())
    }

    fn over(socket: Socket, to: &Address) -> Result<Connection> {
        let control = socket.try_clone().context(|| "clone a socket".into())?;
        let host = match to {
            Address::Tcp(addr) => addr.to_string(),
            Address::Unix(_) => "localhost".into(),
        };
        Ok(Connection { stream: Stream::Plain(socket), control, host, timeout: TIMEOUT, pending: Vec::new() })
    }

    /// Connects over TLS (ALPN `http/1.1`) and trusts only this authority; the handshake is done on return.
    pub fn open_tls(to: SocketAddr, server_name: &str, ca_pem: &str) -> Result<Connection> {
        Connection::open_tls_for(to, server_name, ca_pem, b"http/1.1")
    }

    /// The same with another protocol, such as `h2`: its bytes are the test's to write and to read.
    pub fn open_tls_for(to: SocketAddr, server_name: &str, ca_pem: &str, alpn: &[u8]) -> Result<Connection> {
        let plain = Connection::open(to)?;
        let Stream::Plain(mut socket) = plain.stream else { return Err(Error::new("TLS within TLS")) };
        let mut tls = client(server_name, ca_pem, alpn)?;
        plain.control.set_timeout(TIMEOUT).context(|| "set a timeout".into())?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).context(|| format!("TLS handshake with {to} as {server_name}"))?;
        }
        let stream = Stream::Tls(Box::new(StreamOwned::new(tls, socket)));
        Ok(Connection { stream, host: format!("{server_name}:{}", to.port()), ..plain })
    }

    /// Sets how long each answer may take from now on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Sends a request, asks to keep the connection, and returns the answer.
    pub fn send(&mut self, request: &Request) -> Result<Response> {
        let bytes = request.to_bytes(&self.host, Closing::KeepAlive);
        request.exchange(self, &bytes)
    }

    /// Writes these bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.control.set_timeout(self.timeout).context(|| "set a timeout".into())?;
        let stream: &mut dyn Write = match &mut self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls,
        };
        stream.write_all(bytes).and_then(|()| stream.flush()).context(|| format!("write to {}", self.host))
    }

    /// Says that nothing more will be written; answers can still be read.
    pub fn half_close(&mut self) -> Result<()> {
        if let Stream::Tls(tls) = &mut self.stream {
            tls.conn.send_close_notify();
            tls.flush().context(|| "write the end of TLS".into())?;
        }
        self.control.shutdown(Shutdown::Write).context(|| "half-close a connection".into())
    }

    /// Reads the next answer; the method tells whether it may have a body. Answers 1xx are passed over.
    pub fn response(&mut self, method: &str) -> Result<Response> {
        let deadline = self.deadline();
        loop {
            let head = self.head(deadline)?;
            let status = head.status()?;
            if status < 200 && status != 101 {
                continue;
            }
            let mut framing = Body::of_response(method, status, &head.headers)?;
            let mut body = Vec::new();
            while !framing.is_done() {
                if self.pending.is_empty() && self.fill(deadline)? == 0 {
                    if matches!(framing, Body::UntilClose) {
                        break;
                    }
                    return Err(Error::new(format!(
                        "a {status} was cut after {} bytes of its body; head: {:?}",
                        body.len(),
                        String::from_utf8_lossy(&head.bytes)
                    )));
                }
                let taken = framing.read(&self.pending, |content| body.extend_from_slice(content))?;
                self.pending.drain(..taken);
            }
            return Ok(Response { status, headers: head.headers, body, head: head.bytes });
        }
    }

    /// Reads what comes next, at least a byte; empty means that the other side has closed.
    pub fn read_some(&mut self) -> Result<Vec<u8>> {
        if self.pending.is_empty() {
            self.fill(self.deadline())?;
        }
        Ok(std::mem::take(&mut self.pending))
    }

    /// Reads until the other side closes.
    pub fn read_to_end(&mut self) -> Result<Vec<u8>> {
        let deadline = self.deadline();
        while self.fill(deadline)? > 0 {}
        Ok(std::mem::take(&mut self.pending))
    }

    pub(super) fn write_then_read(&mut self, bytes: &[u8], method: &str) -> Result<Response> {
        let written = self.write(bytes);
        match (self.response(method), written) {
            // A server that refuses early may close before it has read all; its answer counts, else the first error.
            (Ok(response), _) => Ok(response),
            (Err(e), Ok(())) | (Err(_), Err(e)) => Err(e),
        }
    }

    pub(super) fn raw_response(&mut self, method: &str) -> Result<Vec<u8>> {
        let deadline = self.deadline();
        let mut all = Vec::new();
        // An answer that is none (garbage, a cut one) is still shown.
        let head = match self.head(deadline) {
            Ok(head) => head,
            Err(_) if self.pending.is_empty() => return Ok(all),
            Err(e) if self.fill(deadline).is_err() => return Err(e),
            Err(_) => return Ok(std::mem::take(&mut self.pending)),
        };
        all.extend_from_slice(&head.bytes);
        let mut framing = match head.status().and_then(|status| Body::of_response(method, status, &head.headers)) {
            Ok(framing) => framing,
            Err(_) => Body::UntilClose,
        };
        while !framing.is_done() && (!self.pending.is_empty() || self.fill(deadline)? > 0) {
            let taken = framing.read(&self.pending, |_| ())?;
            all.extend(self.pending.drain(..taken));
        }
        Ok(all)
    }

    fn head(&mut self, deadline: Instant) -> Result<Head> {
        loop {
            if let Some(end) = wire::head_end(&self.pending) {
                return Ok(Head::parse(&self.pending.drain(..end).collect::<Vec<_>>()));
            }
            if self.fill(deadline)? == 0 {
                let seen = String::from_utf8_lossy(&self.pending);
                return Err(Error::new(format!("the connection was closed before a whole head came: {seen:?}")));
            }
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Reads once; 0 means that the other side has closed.
    fn fill(&mut self, deadline: Instant) -> Result<usize> {
        let left = deadline.saturating_duration_since(Instant::now());
        let late = |pending: &[u8], timeout: Duration| {
            let seen = String::from_utf8_lossy(&pending[..pending.len().min(2000)]).into_owned();
            Error::new(format!("nothing more came within {timeout:?}; until then: {seen:?}"))
        };
        if left.is_zero() {
            return Err(late(&self.pending, self.timeout));
        }
        self.control.set_timeout(left).context(|| "set a timeout".into())?;
        let mut buffer = [0; 64 * 1024];
        let read = match &mut self.stream {
            Stream::Plain(socket) => socket.read(&mut buffer),
            Stream::Tls(tls) => tls.read(&mut buffer),
        };
        match read {
            Ok(read) => {
                self.pending.extend_from_slice(&buffer[..read]);
                Ok(read)
            }
            // A TLS server that closes without saying so.
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(0),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(late(&self.pending, self.timeout))
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => self.fill(deadline),
            Err(e) => Err(Error::caused(format!("read from {}", self.host), e)),
        }
    }
}

fn client(server_name: &str, ca_pem: &str, alpn: &[u8]) -> Result<ClientConnection> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.context(|| "read the authority's PEM".into())?;
        roots.add(certificate).context(|| "trust the authority".into())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context(|| "set up TLS".into())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from(server_name.to_owned()).context(|| format!("{server_name} is no name"))?;
    ClientConnection::new(Arc::new(config), name).context(|| "set up TLS".into())
}
