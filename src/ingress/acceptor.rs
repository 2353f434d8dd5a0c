//! Makes of an accepted socket a connection that speaks HTTP: TLS, protocol, deadlines.

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio_rustls::TlsAcceptor;

use super::admission::Admitted;
use super::connection;
use super::listener::{Drain, Listener, Stream};
use super::proxy_header::{self, Said};
use crate::config::gateway::Door;
use crate::egress::{Proxy, Received};
use crate::observe::access::Protocol;
use crate::origin::Destination;
use crate::stack::pace::PaceLimits;
use crate::stack::{Chain, Client, Pace, Peer, UnlistedHop};

/// Serves one connection until it ends.
pub async fn accept(listener: &Listener<impl Chain>, stream: Stream, admitted: &mut Admitted) {
    match stream {
        Stream::Tcp(stream, address) => {
            let origin = Origin {
                address: Some(address),
                is_hop: listener.door == Door::Ingress && listener.shared.hops.contain(address),
            };
            if listener.proxy_protocol && origin.is_hop {
                Box::pin(introduce(listener, Box::new(stream), origin, admitted)).await;
            } else {
                serve(listener, stream, origin).await;
            }
        }
        Stream::Unix(stream) => {
            // Whoever may open the socket's file is trusted as a hop is: nobody else could name the client.
            let origin = Origin { address: None, is_hop: listener.door == Door::Ingress };
            if listener.proxy_protocol {
                Box::pin(introduce(listener, Box::new(stream), origin, admitted)).await;
            } else {
                serve(listener, stream, origin).await;
            }
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Copy)]
struct Origin {
    /// None behind a unix socket.
    address: Option<IpAddr>,
    /// Whether it may name somebody else in `X-Forwarded-For`.
    is_hop: bool,
}

/// A socket of any kind. Only a connection that begins with a PROXY header pays for not being told which.
trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// Lets a hop say who its client is, and serves that one.
async fn introduce(listener: &Listener<impl Chain>, stream: Box<dyn Io>, hop: Origin, admitted: &mut Admitted) {
    let mut stream = BufReader::new(stream);
    let said = tokio::time::timeout(listener.shared.limits.handshake.duration(), proxy_header::read(&mut stream)).await;
    let origin = match said.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into())) {
        Ok(Said::Client(address)) => Origin { address: Some(address), is_hop: listener.shared.hops.contain(address) },
        // A field may still be there, written by somebody whom the hop itself cannot name.
        Ok(Said::Nobody) => Origin { is_hop: false, ..hop },
        // A check whether somebody listens, as load balancers make them.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return,
        Err(error) => {
            listener.metrics.proxy_header_failure();
            tracing::debug!(listener = %listener.metrics.name(), %error, "a trusted hop sent no PROXY header");
            return;
        }
    };
    if let Some(client) = origin.address.filter(|_| !origin.is_hop && origin.address != hop.address)
        && !admitted.count_as(client)
    {
        tracing::debug!(listener = %listener.metrics.name(), "a connection was refused: [limits] per_address");
        return;
    }
    serve(listener, stream, origin).await;
}

/// What a connection turns out to need is in a box of its own size: a task is moved several times before it first runs, and has
/// the size of the largest.
async fn serve<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    listener: &Listener<impl Chain>,
    stream: IO,
    origin: Origin,
) {
    let peer = |protocol, tls| peer(listener, origin, protocol, tls);
    if let Some(proxy) = &listener.proxy {
        return Box::pin(receive(listener, proxy, stream, peer(Protocol::H1, false))).await;
    }
    let Some(tls) = &listener.tls else {
        return Box::pin(connection::serve_h1(listener, stream, peer(Protocol::H1, false))).await;
    };
    let handshake = Box::pin(TlsAcceptor::from(tls.config()).accept(stream));
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
        Box::pin(connection::serve_h2(listener, stream, peer(Protocol::H2, true))).await;
    } else {
        Box::pin(connection::serve_h1(listener, stream, peer(Protocol::H1, true))).await;
    }
}

/// Serves who comes to a proxy door: a tunnel lasts as long as it lasts, but not longer than the process's time.
async fn receive<IO: AsyncRead + AsyncWrite + Unpin>(
    listener: &Listener<impl Chain>,
    proxy: &Proxy,
    stream: IO,
    peer: Rc<Peer>,
) {
    let mut drain = listener.shared.drain.clone();
    // A process that says nothing any more is over.
    let draining = pin!(async move { drop(drain.wait_for(|now| matches!(now, Drain::Draining | Drain::Over)).await) });
    let mut drain = listener.shared.drain.clone();
    let received = tokio::select! {
        received = proxy.receive(stream, &peer, draining) => received,
        _ = drain.wait_for(|now| *now == Drain::Over) => return listener.shared.metrics.drained_exchanges.inc(),
    };
    match received {
        Received::Requests(stream) => connection::serve_h1(listener, stream, peer).await,
        Received::InPlaceOf(host, stream) => {
            let peer = Rc::new(in_place_of(host, &peer, listener));
            connection::serve_h1(listener, stream, peer).await;
        }
        Received::Nothing => {}
    }
}

/// The same other end, in whose eyes we are another host.
fn in_place_of(host: Destination, peer: &Peer, listener: &Listener<impl Chain>) -> Peer {
    Peer {
        client: peer.client.clone(),
        hops: None,
        hint: None,
        protocol: peer.protocol,
        tls: true,
        in_place_of: Some(host),
        listener: peer.listener.clone(),
        pace: Rc::new(pace(listener)),
    }
}

fn pace(listener: &Listener<impl Chain>) -> Pace {
    let limits = &listener.shared.limits;
    let keep_alive = limits.keep_alive.duration();
    Pace::new(PaceLimits {
        first_byte: limits.first_byte.duration(),
        head: limits.head.duration(),
        rest: limits.body_idle.duration(),
        keep_alive: match listener.door {
            Door::Ingress => keep_alive,
            Door::Federation | Door::Proxy | Door::Notary => keep_alive.max(SYNAPSE_KEEPS),
        },
    })
}

fn peer(listener: &Listener<impl Chain>, origin: Origin, protocol: Protocol, tls: bool) -> Rc<Peer> {
    let proto = HeaderValue::from_static(if tls { "https" } else { "http" });
    let hops = &listener.shared.hops;
    Rc::new(Peer {
        // A listed hop that spoke for nobody is not unlisted.
        hint: match listener.door {
            Door::Ingress => origin.address.filter(|address| !hops.contain(*address)).and_then(UnlistedHop::new),
            Door::Federation | Door::Proxy | Door::Notary => None,
        },
        client: match origin.address {
            Some(address) => Client::new(address, proto),
            None => Client::on_this_machine(proto),
        },
        hops: origin.is_hop.then(|| hops.clone()),
        protocol,
        tls,
        in_place_of: None,
        listener: listener.metrics.clone(),
        pace: Rc::new(pace(listener)),
    })
}

/// Synapse keeps connections for two minutes (`cachedConnectionTimeout`, synapse/http/client.py). It is the one to close them: what
/// it sends just when we do is lost, and it sends a POST only once.
const SYNAPSE_KEEPS: Duration = Duration::from_secs(150);
