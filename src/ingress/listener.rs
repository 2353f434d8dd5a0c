//! Accepts connections of one listener on one worker, until it is told to stop.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, watch};

use super::acceptor;
use super::admission::Admissions;
use crate::config::gateway::Door;
use crate::config::settings::Limits;
use crate::egress::Proxy;
use crate::observe::metrics::{ListenerMetrics, Metrics};
use crate::snapshot::Current;
use crate::stack::{Chain, TrustedHops};
use crate::tls::server::Server as Tls;

/// One listener as one worker serves it.
pub struct Listener<C> {
    /// What its connections are served by.
    pub chain: Rc<C>,
    /// The policy, where it says what is taken out of requests before they are read.
    pub policy: Option<Current>,
    /// Who comes through it.
    pub door: Door,
    /// What it does with connections before they speak HTTP, where it is a proxy door.
    pub proxy: Option<Proxy>,
    /// Its certificates; without any it speaks plain HTTP.
    pub tls: Option<Tls>,
    /// Whether trusted hops begin with a PROXY header.
    pub proxy_protocol: bool,
    /// From where one may come; from everywhere that reaches it, where there is none.
    pub networks: Vec<IpNet>,
    /// Whether the socket stays open without us.
    pub inherited: bool,
    /// What it shares with the worker's other listeners.
    pub shared: Rc<Shared>,
    /// What it counts.
    pub metrics: ListenerMetrics,
}

/// What all listeners of a worker share.
pub struct Shared {
    /// The bounds.
    pub limits: Limits,
    /// Who may come in at all.
    pub admissions: Admissions,
    /// Whose word about its client is believed.
    pub hops: TrustedHops,
    /// Where the process stands.
    pub drain: watch::Receiver<Drain>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    open: Cell<usize>,
    gone: Notify,
}

impl Shared {
    /// What the listeners of one worker share.
    pub fn new(
        limits: Limits,
        admissions: Admissions,
        hops: TrustedHops,
        drain: watch::Receiver<Drain>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { limits, admissions, hops, drain, metrics, open: Cell::new(0), gone: Notify::new() }
    }

    /// Waits until the worker has no connection left.
    pub async fn all_gone(&self) {
        while self.open.get() > 0 {
            self.gone.notified().await;
        }
    }
}

/// Where the process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// It begins: nobody is let in before every thread has what it needs, or the first clients could take it away.
    Starting,
    /// It serves.
    Serving,
    /// It takes nothing new; exchanges that run may end.
    Draining,
    /// Its time is over.
    Over,
}

/// Where connections come from.
#[derive(Debug)]
pub enum Socket {
    /// Other machines, and this one.
    Tcp(TcpListener),
    /// Processes of this machine that may open a file.
    Unix(UnixListener),
}

/// A connection that came.
#[derive(Debug)]
pub enum Stream {
    /// With an address.
    Tcp(TcpStream, IpAddr),
    /// Without one.
    Unix(UnixStream),
}

impl Socket {
    /// What holds for all connections that come through it: the kernel must not hold back the second of two small writes for an
    /// acknowledgement of the first. They have it from the socket, which saves each a system call.
    fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => SockRef::from(socket).set_tcp_nodelay(true),
            Self::Unix(_) => Ok(()),
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(socket) => {
                socket.accept().await.map(|(stream, address)| Stream::Tcp(stream, address.ip().to_canonical()))
            }
            Self::Unix(socket) => socket.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        }
    }

    /// Closes the socket, and gives what still waits in its queue. The kernel itself is asked: of what came in this moment the
    /// runtime has not heard yet.
    fn queue(self) -> Vec<Stream> {
        let queue = match self {
            Self::Tcp(socket) => socket.into_std().map(|socket| {
                let next = || {
                    let (stream, address) = socket.accept()?;
                    stream.set_nonblocking(true)?;
                    io::Result::Ok(Stream::Tcp(TcpStream::from_std(stream)?, address.ip().to_canonical()))
                };
                std::iter::from_fn(|| next().ok()).collect()
            }),
            Self::Unix(socket) => socket.into_std().map(|socket| {
                let next = || {
                    let (stream, _) = socket.accept()?;
                    stream.set_nonblocking(true)?;
                    io::Result::Ok(Stream::Unix(UnixStream::from_std(stream)?))
                };
                std::iter::from_fn(|| next().ok()).collect()
            }),
        };
        queue.unwrap_or_default()
    }
}

impl<C: Chain> Listener<C> {
    /// Accepts until the process drains, and then what still waits in the socket's queue, unless a successor will.
    ///
    /// The socket is closed then, while connections live on: who comes later is refused at once, and can go elsewhere.
    pub async fn run(self: Rc<Self>, socket: Socket) {
        let mut drain = self.shared.drain.clone();
        if let Err(error) = socket.prepare() {
            tracing::warn!(listener = %self.metrics.name(), %error, "TCP_NODELAY cannot be set: answers may come late");
        }
        // A process that is gone before it served has nobody to serve.
        let _ = drain.wait_for(|drain| *drain != Drain::Starting).await;
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = drain.wait_for(|drain| *drain != Drain::Serving) => break,
            };
            match accepted {
                Ok(stream) => self.admit(stream),
                Err(error) => wait_out(&error).await,
            }
        }
        // Whoever was let in by the system believes to be connected: a close here would be a lost request.
        if self.inherited {
            return;
        }
        for stream in socket.queue() {
            self.admit(stream);
        }
    }

    /// Whether somebody at this address may come; `None` is whoever may open the file of a unix socket.
    fn lets_in(&self, address: Option<IpAddr>) -> bool {
        let is_listed = |address| self.networks.iter().any(|network| network.contains(&address));
        self.networks.is_empty() || address.is_none_or(is_listed)
    }

    fn admit(self: &Rc<Self>, stream: Stream) {
        let from = match stream {
            Stream::Tcp(_, address) => Some(address),
            Stream::Unix(_) => None,
        };
        if !self.lets_in(from) {
            tracing::debug!(listener = %self.metrics.name(), "a connection was refused: it comes from none of its networks");
            return;
        }
        let client = match stream {
            // Through the way out comes one Synapse, for as many servers as it knows.
            Stream::Tcp(_, address) if self.door == Door::Ingress && !self.shared.hops.contain(address) => {
                Some(address)
            }
            Stream::Tcp(..) | Stream::Unix(_) => None,
        };
        let Some(mut admitted) = self.shared.admissions.at(self.door).admit(client) else {
            tracing::debug!(listener = %self.metrics.name(), "a connection was refused: [limits] connections or per_address");
            return;
        };
        let this = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let _counted = this.metrics.connection();
            let _open = Open::new(&this.shared);
            acceptor::accept(&this, stream, &mut admitted).await;
            drop(admitted);
        });
    }
}

/// One open connection of a worker, also one whose task panics.
struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.open.set(shared.open.get() + 1);
        Self(shared)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.gone.notify_one();
    }
}

/// Accepting fails when descriptors run out; trying again at once would only burn the processor.
async fn wait_out(error: &io::Error) {
    let is_theirs = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    );
    if is_theirs {
        return;
    }
    tracing::warn!(%error, "no connection can be accepted; trying again in a second. Raise the limit of open files (LimitNOFILE=)");
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_have_from_their_socket_that_nothing_is_held_back() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let socket = Socket::Tcp(socket);
        socket.prepare().unwrap();
        let (_client, accepted) = tokio::join!(TcpStream::connect(address), socket.accept());
        let Ok(Stream::Tcp(stream, _)) = accepted else { panic!("{accepted:?}") };
        assert!(stream.nodelay().unwrap());
    }
}
