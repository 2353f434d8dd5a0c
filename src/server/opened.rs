//! The socket of a listener, of whatever kind, as all workers share it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, PoisonError};

use super::inherited::{Inherited, Listening};
use super::reuseport::{BACKLOG, Bound};
use super::socket_file::{self, SocketFile};
use crate::config::address::ListenerAddress;
use crate::config::gateway::Listener;
use crate::ingress::listener::Socket;
use crate::problem::Problem;

/// A listener's socket. Connections queue from now on, so workers should soon follow.
#[derive(Debug)]
pub(super) enum Opened {
    /// One socket a worker, on one port.
    Tcp(Bound),
    /// One socket for all workers.
    Unix {
        shared: Shared<UnixListener>,
        /// Removed when the process has drained.
        file: SocketFile,
    },
    /// One socket for all workers, that is not ours to close for good.
    InheritedTcp(Shared<TcpListener>, SocketAddr),
    /// The same without an address.
    InheritedUnix(Shared<UnixListener>, ListenerAddress),
}

impl Opened {
    /// Opens what a listener asks for, to be taken once by each of so many workers.
    pub(super) fn open(listener: &Listener, workers: usize, inherited: &mut Inherited) -> Result<Self, Problem> {
        let table = format!("[[listener]] {}", listener.name);
        match &listener.bind {
            ListenerAddress::Tcp(address) => Bound::bind(*address, &table).map(Self::Tcp),
            ListenerAddress::Unix(path) => {
                let (socket, file) = socket_file::bind(path, listener.mode.0, BACKLOG, &table)?;
                Ok(Self::Unix { shared: Shared::new(socket, workers), file })
            }
            ListenerAddress::Systemd(name) => match inherited.take(name)? {
                Listening::Tcp(socket) => {
                    let address = socket.local_addr();
                    let address =
                        address.map_err(|e| Problem::new(format!("the socket {name} has no address: {e}")))?;
                    Ok(Self::InheritedTcp(Shared::new(socket, workers), address))
                }
                Listening::Unix(socket) => {
                    let path = socket.local_addr().ok().and_then(|address| Some(address.as_pathname()?.to_owned()));
                    let address = path.map_or_else(|| listener.bind.clone(), ListenerAddress::Unix);
                    Ok(Self::InheritedUnix(Shared::new(socket, workers), address))
                }
            },
        }
    }

    /// Where it listens, with the port it really has.
    pub(super) fn address(&self) -> ListenerAddress {
        match self {
            Self::Tcp(bound) => ListenerAddress::Tcp(bound.address()),
            Self::Unix { file, .. } => ListenerAddress::Unix(file.path().to_owned()),
            Self::InheritedTcp(_, address) => ListenerAddress::Tcp(*address),
            Self::InheritedUnix(_, address) => address.clone(),
        }
    }

    /// Whether somebody else keeps it open: who waits in its queue waits for our successor.
    pub(super) fn is_inherited(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix { .. } => false,
            Self::InheritedTcp(..) | Self::InheritedUnix(..) => true,
        }
    }

    /// One worker's way to it; for the current runtime.
    ///
    /// # Errors
    /// When the system has no socket to give.
    pub(super) fn socket(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(bound) => bound.listener().map(Socket::Tcp),
            Self::InheritedTcp(shared, _) => {
                let socket = shared.take(TcpListener::try_clone)?;
                tokio::net::TcpListener::from_std(socket).map(Socket::Tcp)
            }
            Self::Unix { shared, .. } | Self::InheritedUnix(shared, _) => {
                let socket = shared.take(UnixListener::try_clone)?;
                tokio::net::UnixListener::from_std(socket).map(Socket::Unix)
            }
        }
    }
}

/// One socket that several workers accept from, and that is closed when the last of them closes its own: nobody else keeps
/// a queue open that nobody looks at.
#[derive(Debug)]
pub(super) struct Shared<L>(Mutex<(Option<L>, usize)>);

impl<L> Shared<L> {
    fn new(socket: L, workers: usize) -> Self {
        Self(Mutex::new((Some(socket), workers)))
    }

    /// A further descriptor of it; the last worker gets the first one.
    fn take(&self, clone: impl Fn(&L) -> io::Result<L>) -> io::Result<L> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (socket, left) = &mut *held;
        *left = left.saturating_sub(1);
        let taken = if *left == 0 { socket.take() } else { socket.as_ref().map(clone).transpose()? };
        taken.ok_or_else(|| io::Error::other("all workers have the socket already"))
    }
}
