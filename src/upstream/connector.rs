//! Opens connections to the homeserver: over TCP or over a unix socket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::config::address::UpstreamAddress;
use crate::error::{Error, Kind};

/// Knows where the homeserver listens.
#[derive(Clone, Debug)]
pub struct Connector {
    address: UpstreamAddress,
}

/// A connection to the homeserver.
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl Connector {
    /// A connector for this address.
    pub fn new(address: UpstreamAddress) -> Self {
        Self { address }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// [`Kind::Connect`]: nobody listens, or nobody answers within 10 seconds.
    pub async fn connect(&self) -> Result<Stream, Error> {
        let open = async {
            match &self.address {
                UpstreamAddress::Tcp { host, port } => {
                    let stream = TcpStream::connect((host.trim_matches(['[', ']']), *port)).await?;
                    // A head and a small body go out as they come: waiting to fill a packet would only delay them.
                    stream.set_nodelay(true)?;
                    Ok(Stream::Tcp(stream))
                }
                UpstreamAddress::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
            }
        };
        match tokio::time::timeout(CONNECT, open).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => {
                Err(Error::caused_by(Kind::Connect, io::Error::new(error.kind(), format!("{self}: {error}"))))
            }
            Err(late) => Err(Error::caused_by(Kind::Connect, late)),
        }
    }
}

impl std::fmt::Display for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

const CONNECT: Duration = Duration::from_secs(10);
