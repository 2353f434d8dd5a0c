//! Listening sockets, one a worker, that share a port among us and with nobody else.
//!
//! `SO_REUSEPORT` lets each worker have its own accept queue, and would also let a second gateway of the same user
//! take half of the connections without anyone noticing. So the port is first taken without it:
//!
//! 1. The first socket binds and listens *without* the option. The kernel grants that only if nobody else listens on
//!    the port, and from then on refuses everybody else, with or without the option.
//! 2. The option is switched on for that socket, and a second one tries whether it could join.
//! 3. The first socket goes to the first worker; further ones join when asked for. The port was never free in between.
//!
//! Of gateways that start within the same microseconds at most one gets the port; they may also all be refused.
//!
//! Switching the option on after `bind` works on Linux, but socket(7) does not promise it. Where the kernel proves not
//! to do it, the first socket is closed and bound again with the option. There, and only there, the port is free for
//! a moment in which a second gateway could come to share it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;

use socket2::{Domain, Protocol, Socket, Type};

use crate::problem::Problem;

/// A port that is ours.
#[derive(Debug)]
pub struct Bound {
    address: SocketAddr,
    /// The socket that holds the port, until the first worker takes it.
    first: Mutex<Option<Socket>>,
}

impl Bound {
    /// Takes the port; with port 0, any free one. `table` is what the operator would change, such as
    /// `[[listener]] public`.
    ///
    /// Connections queue from now on, so a worker should soon follow.
    ///
    /// # Errors
    /// One line that says whether the port is in use, forbidden, or on no address of this machine.
    pub fn bind(address: SocketAddr, table: &str) -> Result<Self, Problem> {
        let take = || -> io::Result<Self> {
            let alone = socket(address)?;
            alone.bind(&address.into())?;
            alone.listen(BACKLOG)?;
            let address = alone
                .local_addr()?
                .as_socket()
                .ok_or_else(|| io::Error::other("the socket has no internet address"))?;
            let first = shared(alone, address)?;
            Ok(Self { address, first: Mutex::new(Some(first)) })
        };
        take().map_err(|e| refused(address, table, &e))
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// One more listening socket on the port, with an accept queue of its own; for the current runtime.
    ///
    /// The kernel deals connections to every socket made here, so each must be accepted from until it is dropped.
    ///
    /// # Errors
    /// When the system has no socket to give.
    ///
    /// # Panics
    /// Outside of a tokio runtime, as everything that registers a socket does.
    pub fn listener(&self) -> io::Result<tokio::net::TcpListener> {
        let first = self.first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let socket = match first {
            Some(first) => first,
            None => {
                let next = joining(self.address)?;
                next.listen(BACKLOG)?;
                next
            }
        };
        tokio::net::TcpListener::from_std(TcpListener::from(socket))
    }
}

/// Connections that wait to be accepted, for each socket; the kernel caps it at `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;

/// Opens a port that `alone` holds to further sockets of ours.
fn shared(alone: Socket, address: SocketAddr) -> io::Result<Socket> {
    alone.set_reuse_port(true)?;
    match joining(address) {
        Ok(_trial) => Ok(alone),
        // Either somebody else came at the same moment, or this kernel wants the option before `bind`. A port that
        // nobody else can know tells which.
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => match late_option(address)? {
            LateOption::Works => Err(e),
            LateOption::Ignored => reopened(alone, address),
        },
        Err(e) => Err(e),
    }
}

/// What the kernel makes of `SO_REUSEPORT` on a socket that is bound already.
enum LateOption {
    Works,
    Ignored,
}

fn late_option(address: SocketAddr) -> io::Result<LateOption> {
    let alone = socket(address)?;
    alone.bind(&SocketAddr::new(address.ip(), 0).into())?;
    alone.listen(1)?;
    alone.set_reuse_port(true)?;
    let joined = socket(address)?;
    joined.set_reuse_port(true)?;
    match joined.bind(&alone.local_addr()?) {
        Ok(()) => Ok(LateOption::Works),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(LateOption::Ignored),
        Err(e) => Err(e),
    }
}

/// The same port with the option from the start.
fn reopened(alone: Socket, address: SocketAddr) -> io::Result<Socket> {
    drop(alone);
    let first = joining(address)?;
    first.listen(BACKLOG)?;
    Ok(first)
}

/// A socket bound to a port that we share.
fn joining(address: SocketAddr) -> io::Result<Socket> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two listeners, and an IPv4 client never looks like an IPv6 one.
        socket.set_only_v6(true)?;
    }
    // Connections of an earlier run that are in TIME_WAIT do not keep the port from us; a listener still does.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn refused(address: SocketAddr, table: &str, error: &io::Error) -> Problem {
    Problem::new(match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{address} is in use by another process; choose another bind for {table}, or stop it")
        }
        io::ErrorKind::PermissionDenied => format!(
            "{address} may not be bound by this user; choose a port above 1023 for {table}, or grant CAP_NET_BIND_SERVICE"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("{address} is no address of this machine; choose another bind for {table}")
        }
        _ => format!("{address} cannot be bound for {table}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, UdpSocket};

    use super::*;

    const TABLE: &str = "[[listener]] public";

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn in_use(address: SocketAddr) -> String {
        format!("{address} is in use by another process; choose another bind for {TABLE}, or stop it")
    }

    #[tokio::test]
    async fn port_0_becomes_a_real_port_that_all_workers_share() {
        let bound = Bound::bind(any(), TABLE).unwrap();
        assert_ne!(bound.address().port(), 0);
        let workers: Vec<_> = (0..4).map(|_| bound.listener().unwrap()).collect();
        for worker in &workers {
            assert_eq!(worker.local_addr().unwrap(), bound.address());
        }
    }

    #[tokio::test]
    async fn every_worker_gets_connections() {
        let bound = Bound::bind(any(), TABLE).unwrap();
        let (one, two) = (bound.listener().unwrap(), bound.listener().unwrap());
        let (mut at_one, mut at_two) = (0, 0);
        // Dealt by a hash of the ports: 64 to one side are as likely as a key guessed.
        for _ in 0..64 {
            let _client = tokio::net::TcpStream::connect(bound.address()).await.unwrap();
            tokio::select! {
                accepted = one.accept() => { accepted.unwrap(); at_one += 1; }
                accepted = two.accept() => { accepted.unwrap(); at_two += 1; }
            }
        }
        assert!(at_one > 0 && at_two > 0, "{at_one} and {at_two}");
    }

    #[tokio::test]
    async fn a_second_gateway_is_refused_before_and_after_workers_joined() {
        let bound = Bound::bind(any(), TABLE).unwrap();
        assert_eq!(Bound::bind(bound.address(), TABLE).unwrap_err().to_string(), in_use(bound.address()));
        let _workers = [bound.listener().unwrap(), bound.listener().unwrap()];
        assert_eq!(Bound::bind(bound.address(), TABLE).unwrap_err().to_string(), in_use(bound.address()));
    }

    #[test]
    fn of_many_that_start_at_once_one_gets_the_port() {
        for _ in 0..50 {
            let free = TcpListener::bind(any()).unwrap().local_addr().unwrap();
            let start = std::sync::Barrier::new(8);
            let got = std::thread::scope(|scope| {
                let gateway = || {
                    start.wait();
                    Bound::bind(free, TABLE).ok()
                };
                let gateways: Vec<_> = (0..8).map(|_| scope.spawn(gateway)).collect();
                // Kept until all have tried.
                gateways.into_iter().filter_map(|gateway| gateway.join().unwrap()).collect::<Vec<_>>()
            });
            assert!(got.len() <= 1, "{} gateways share a port", got.len());
        }
    }

    #[tokio::test]
    async fn a_port_can_be_reopened_with_the_option() {
        let alone = socket(any()).unwrap();
        alone.bind(&any().into()).unwrap();
        alone.listen(1).unwrap();
        let address = alone.local_addr().unwrap().as_socket().unwrap();
        let first = Mutex::new(Some(reopened(alone, address).unwrap()));
        let bound = Bound { address, first };
        let _workers = [bound.listener().unwrap(), bound.listener().unwrap()];
        assert_eq!(Bound::bind(address, TABLE).unwrap_err().to_string(), in_use(address));
    }

    #[test]
    fn this_kernel_takes_the_option_late() {
        assert!(matches!(late_option(any()).unwrap(), LateOption::Works));
    }

    #[test]
    fn another_process_with_the_option_is_noticed_too() {
        let theirs = joining(any()).unwrap();
        theirs.listen(1).unwrap();
        let address = theirs.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(Bound::bind(address, TABLE).unwrap_err().to_string(), in_use(address));
    }

    #[test]
    fn one_address_of_a_port_is_in_use_for_all_addresses() {
        let bound = Bound::bind(any(), TABLE).unwrap();
        let all = SocketAddr::new("0.0.0.0".parse().unwrap(), bound.address().port());
        assert_eq!(Bound::bind(all, TABLE).unwrap_err().to_string(), in_use(all));
    }

    #[test]
    fn connections_queue_before_the_first_worker_starts() {
        let bound = Bound::bind(any(), TABLE).unwrap();
        TcpStream::connect(bound.address()).unwrap();
    }

    #[tokio::test]
    async fn a_port_with_connections_of_an_earlier_run_is_free() {
        let bound = Bound::bind(any(), TABLE).unwrap();
        let address = bound.address();
        let listener = bound.listener().unwrap();
        let client = tokio::net::TcpStream::connect(address).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        // We close first, so TIME_WAIT is on our side.
        drop(server);
        client.readable().await.unwrap();
        drop((client, listener, bound));
        Bound::bind(address, TABLE).unwrap();
    }

    #[tokio::test]
    async fn ipv6_leaves_ipv4_alone() {
        let v6 = match Bound::bind("[::1]:0".parse().unwrap(), TABLE) {
            Ok(v6) => v6,
            // A machine without IPv6 has nothing to show here.
            Err(_) if UdpSocket::bind("[::1]:0").is_err() => return,
            Err(problem) => panic!("{problem}"),
        };
        let any_v6 = SocketAddr::new("::".parse().unwrap(), 0);
        let wildcard = Bound::bind(any_v6, TABLE).unwrap();
        Bound::bind(SocketAddr::new("0.0.0.0".parse().unwrap(), wildcard.address().port()), TABLE).unwrap();
        assert!(v6.listener().unwrap().local_addr().unwrap().is_ipv6());
    }

    #[test]
    fn what_cannot_be_bound_is_told_in_one_line() {
        let elsewhere = "192.0.2.1:8448".parse().unwrap();
        assert_eq!(
            Bound::bind(elsewhere, TABLE).unwrap_err().to_string(),
            "192.0.2.1:8448 is no address of this machine; choose another bind for [[listener]] public"
        );
        let forbidden = refused("0.0.0.0:443".parse().unwrap(), TABLE, &io::ErrorKind::PermissionDenied.into());
        assert_eq!(
            forbidden.to_string(),
            "0.0.0.0:443 may not be bound by this user; choose a port above 1023 for [[listener]] public, \
             or grant CAP_NET_BIND_SERVICE"
        );
    }
}
