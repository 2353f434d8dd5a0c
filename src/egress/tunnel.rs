//! A tunnel: looks at the name that the TLS inside begins with, then copies bytes both ways; counts them, reads none.

use std::cell::Cell;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional_with_sizes};
use tokio::time::{Instant, sleep_until, timeout};

use crate::matrix::Host;

/// What moved in a tunnel, and when.
pub(super) struct Flowed {
    out: Cell<u64>,
    back: Cell<u64>,
    last: Cell<Instant>,
}

/// Why nothing is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoHello {
    /// The connection ended, or said nothing.
    Gone,
    /// It is no TLS, or TLS with somebody else.
    Other,
}

/// Reads the first message of TLS, and gives its bytes if it is for this host: a tunnel to one name is no way to another behind the
/// same address.
pub(super) async fn hello(
    io: &mut (impl AsyncRead + Unpin),
    host: &Host,
    patience: Duration,
) -> Result<Vec<u8>, NoHello> {
    timeout(patience, read_hello(io, host)).await.unwrap_or(Err(NoHello::Gone))
}

async fn read_hello(io: &mut (impl AsyncRead + Unpin), host: &Host) -> Result<Vec<u8>, NoHello> {
    let (mut bytes, mut acceptor, mut buffer) = (Vec::new(), Acceptor::default(), [0; 4096]);
    loop {
        let read = io.read(&mut buffer).await.map_err(|_| NoHello::Gone)?;
        if read == 0 {
            return Err(NoHello::Gone);
        }
        bytes.extend_from_slice(&buffer[..read]);
        if bytes.len() > HELLO {
            return Err(NoHello::Other);
        }
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            if acceptor.read_tls(&mut rest).map_err(|_| NoHello::Other)? == 0 {
                return Err(NoHello::Other);
            }
            if let Some(accepted) = acceptor.accept().map_err(|_| NoHello::Other)? {
                let hello = accepted.client_hello();
                let is_meant = match (host, hello.server_name()) {
                    (Host::Name(name), Some(said)) => name.eq_ignore_ascii_case(said),
                    // TLS names no addresses (RFC 6066, section 3).
                    (Host::Address(_), None) => true,
                    (Host::Name(_), None) | (Host::Address(_), Some(_)) => false,
                };
                return if is_meant { Ok(bytes) } else { Err(NoHello::Other) };
            }
        }
    }
}

/// Carries bytes both ways, these first, until both sides have closed, one breaks, or nothing moves for so long.
pub(super) async fn carry<Near, Far>(
    mut near: Near,
    far: Far,
    first: &[u8],
    flowed: &Flowed,
    idle: Duration,
    mut draining: Pin<&mut impl Future<Output = ()>>,
) where
    Near: AsyncRead + AsyncWrite + Unpin,
    Far: AsyncRead + AsyncWrite + Unpin,
{
    flowed.last.set(Instant::now());
    let mut far = Metered { io: far, flowed };
    let mut copied = pin!(async {
        far.write_all(first).await?;
        copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER).await.map(drop)
    });
    let (mut patience, mut is_draining) = (idle, false);
    loop {
        let deadline = flowed.last.get() + patience;
        tokio::select! {
            // How it ended is nobody's business but of the two.
            _ended = &mut copied => return,
            () = sleep_until(deadline) => {
                if flowed.last.get() + patience <= Instant::now() {
                    return;
                }
            }
            () = &mut draining, if !is_draining => (patience, is_draining) = (idle.min(QUIET), true),
        }
    }
}

impl Flowed {
    pub fn new() -> Self {
        Self { out: Cell::new(0), back: Cell::new(0), last: Cell::new(Instant::now()) }
    }

    /// Bytes that went out.
    pub fn out(&self) -> u64 {
        self.out.get()
    }

    /// Bytes that came back.
    pub fn back(&self) -> u64 {
        self.back.get()
    }

    fn note(&self, count: &Cell<u64>, bytes: usize) {
        if bytes > 0 {
            count.set(count.get() + bytes as u64);
            self.last.set(Instant::now());
        }
    }
}

/// The far side, with what passes it.
struct Metered<'a, IO> {
    io: IO,
    flowed: &'a Flowed,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Metered<'_, IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.flowed.note(&self.flowed.back, buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Metered<'_, IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.flowed.note(&self.flowed.out, written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// One record of TLS is no longer.
const HELLO: usize = 16 * 1024 + 5;
const BUFFER: usize = 16 * 1024;
/// Once the process drains, a tunnel in which nothing moves for so long is taken for one that nobody uses.
const QUIET: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;
    use crate::matrix;

    /// What a client says first that wants this name.
    fn said(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut bytes = Vec::new();
        ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
        bytes
    }

    fn host(name: &str) -> Host {
        matrix::ServerName::parse(name).unwrap().host().clone()
    }

    async fn heard(bytes: &[u8], name: &str) -> Result<Vec<u8>, NoHello> {
        hello(&mut &*bytes, &host(name), Duration::from_secs(5)).await
    }

    #[tokio::test]
    async fn only_tls_for_the_host_that_was_asked_for_passes_and_every_byte_of_it() {
        let bytes = said("push.test");
        assert_eq!(heard(&bytes, "PUSH.test").await, Ok(bytes.clone()));
        assert_eq!(
            heard(&[&bytes[..], b"early data"].concat(), "push.test").await,
            Ok([&bytes[..], b"early data"].concat())
        );
        assert_eq!(heard(&bytes, "other.test").await, Err(NoHello::Other));
        assert_eq!(heard(&bytes, "192.0.2.1").await, Err(NoHello::Other));
        let bytes = said("192.0.2.1");
        assert_eq!(heard(&bytes, "192.0.2.1").await, Ok(bytes.clone()));
        assert_eq!(heard(&bytes, "push.test").await, Err(NoHello::Other));
    }

    #[tokio::test]
    async fn what_is_no_tls_goes_nowhere() {
        for bytes in [&b"GET / HTTP/1.1\r\nHost: push.test\r\n\r\n"[..], b"SSH-2.0-x\r\n", &[0; 64]] {
            assert_eq!(heard(bytes, "push.test").await, Err(NoHello::Other), "{bytes:?}");
        }
        let bytes = said("push.test");
        assert_eq!(heard(&bytes[..bytes.len() - 1], "push.test").await, Err(NoHello::Gone));
        assert_eq!(heard(b"", "push.test").await, Err(NoHello::Gone));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_ends_when_nothing_moves_and_sooner_when_the_process_drains() {
        for (draining, lasts) in [(false, 600), (true, 5)] {
            let ((near, _client), (far, _origin)) = (tokio::io::duplex(64), tokio::io::duplex(64));
            let flowed = Flowed::new();
            let mut draining = pin!(async {
                if !draining {
                    std::future::pending().await
                }
            });
            let began = Instant::now();
            carry(near, far, b"hello", &flowed, Duration::from_secs(600), draining.as_mut()).await;
            assert_eq!((began.elapsed().as_secs(), flowed.out(), flowed.back()), (lasts, 5, 0));
        }
    }

    #[tokio::test]
    async fn the_end_of_one_direction_is_not_the_end_of_the_other() {
        let ((near, mut client), (far, mut origin)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        let flowed = Flowed::new();
        let ends = async {
            client.write_all(b" and body").await.unwrap();
            client.shutdown().await.unwrap();
            let mut asked = String::new();
            origin.read_to_string(&mut asked).await.unwrap();
            origin.write_all(b"late answer").await.unwrap();
            drop(origin);
            let mut answered = String::new();
            client.read_to_string(&mut answered).await.unwrap();
            (asked, answered)
        };
        let mut never = pin!(std::future::pending());
        let carried = carry(near, far, b"head", &flowed, Duration::from_secs(5), never.as_mut());
        let ((asked, answered), ()) = tokio::join!(ends, carried);
        assert_eq!((asked.as_str(), answered.as_str()), ("head and body", "late answer"));
        assert_eq!((flowed.out(), flowed.back()), (13, 11));
    }
}
