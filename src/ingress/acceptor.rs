//! Makes of an accepted socket a connection that speaks HTTP: TLS, protocol, deadlines.

use std::net::IpAddr;
use std::rc::Rc;

use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::connection;
use super::listener::{Listener, Stream};
use crate::observe::access::Protocol;
use crate::stack::pace::PaceLimits;
use crate::stack::{Client, Pace, Peer};

/// Serves one connection until it ends.
pub async fn accept(listener: &Listener, stream: Stream) {
    match stream {
        Stream::Tcp(stream, address) => {
            // The kernel would hold back the second of two small writes for an acknowledgement of the first.
            if stream.set_nodelay(true).is_err() {
                return; // The client is gone already.
            }
            serve(listener, stream, Some(address)).await;
        }
        Stream::Unix(stream) => serve(listener, stream, None).await,
    }
}

async fn serve<IO: AsyncRead + AsyncWrite + Unpin + 'static>(listener: &Listener, stream: IO, client: Option<IpAddr>) {
    let peer = |protocol, tls| peer(listener, client, protocol, tls);
    let Some(tls) = &listener.tls else {
        return connection::serve_h1(listener, stream, peer(Protocol::H1, false)).await;
    };
    let handshake = TlsAcceptor::from(tls.config()).accept(stream);
    let stream = match tokio::time::timeout(listener.shared.limits.handshake.duration(), handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            listener.metrics.tls_handshake_failure();
            tracing::debug!(listener = %listener.metrics.name(), %error, "a TLS handshake failed");
            return;
        }
        Err(_late) => return listener.metrics.tls_handshake_failure(),
    };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        connection::serve_h2(listener, stream, peer(Protocol::H2, true)).await;
    } else {
        connection::serve_h1(listener, stream, peer(Protocol::H1, true)).await;
    }
}

fn peer(listener: &Listener, client: Option<IpAddr>, protocol: Protocol, tls: bool) -> Rc<Peer> {
    let limits = &listener.shared.limits;
    let pace = Pace::new(PaceLimits {
        first_byte: limits.first_byte.duration(),
        head: limits.head.duration(),
        keep_alive: limits.keep_alive.duration(),
    });
    let proto = HeaderValue::from_static(if tls { "https" } else { "http" });
    let hops = &listener.shared.hops;
    Rc::new(Peer {
        // Whoever may open the socket's file is trusted as a hop is: nobody else could name the client.
        hops: client.is_none_or(|client| hops.contain(client)).then(|| hops.clone()),
        client: client
            .map_or_else(|| Client::on_this_machine(proto.clone()), |client| Client::new(client, proto.clone())),
        protocol,
        tls,
        listener: listener.metrics.clone(),
        pace: Rc::new(pace),
    })
}
