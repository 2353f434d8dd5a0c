//! Makes of an accepted socket a connection that speaks HTTP: TLS, protocol, deadlines.

use std::net::IpAddr;
use std::rc::Rc;

use http::HeaderValue;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::connection;
use super::listener::Listener;
use crate::observe::access::Protocol;
use crate::stack::pace::PaceLimits;
use crate::stack::{Client, Pace, Peer};

/// Serves one connection until it ends.
pub async fn accept(listener: &Listener, stream: TcpStream, client: IpAddr) {
    // The kernel would hold back the second of two small writes for an acknowledgement of the first.
    if stream.set_nodelay(true).is_err() {
        return; // The client is gone already.
    }
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

fn peer(listener: &Listener, client: IpAddr, protocol: Protocol, tls: bool) -> Rc<Peer> {
    let limits = &listener.shared.limits;
    let pace = Pace::new(PaceLimits {
        first_byte: limits.first_byte.duration(),
        head: limits.head.duration(),
        keep_alive: limits.keep_alive.duration(),
    });
    let hops = &listener.shared.hops;
    Rc::new(Peer {
        client: Client::new(client, HeaderValue::from_static(if tls { "https" } else { "http" })),
        hops: hops.contain(client).then(|| hops.clone()),
        protocol,
        tls,
        listener: listener.metrics.clone(),
        pace: Rc::new(pace),
    })
}
