//! A hop that passes bytes both ways untouched and remembers what was asked.

use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::record::{Reader, Record, Server, Sockets, read};
pub use crate::record::{RecordedRequest, State};
use crate::socket::{Address, Socket};

/// Stands before an upstream; what was judged at the gateway is compared with what arrives here.
pub struct Recorder {
    server: Server,
    record: Arc<Record>,
}

impl Recorder {
    /// Listens on a free port of 127.0.0.1.
    pub fn start(upstream: impl Into<Address>) -> Result<Recorder> {
        Recorder::start_at(Address::any(), upstream)
    }

    /// Listens on this port or unix socket.
    pub fn start_at(at: impl Into<Address>, upstream: impl Into<Address>) -> Result<Recorder> {
        let (upstream, record) = (upstream.into(), Arc::new(Record::default()));
        let here = record.clone();
        let server = Server::start(&at.into(), move |client, sockets| pass(client, sockets, &upstream, &here))?;
        Ok(Recorder { server, record })
    }

    /// Where it listens; panics for a unix socket.
    pub fn addr(&self) -> SocketAddr {
        tcp(self.address())
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        self.server.address()
    }

    /// Every request since the start or the last [`Recorder::take`], in the order their heads came.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.record.requests()
    }

    /// The same, and forgets them.
    pub fn take(&self) -> Vec<RecordedRequest> {
        self.record.take()
    }

    /// The latest request.
    pub fn last(&self) -> Option<RecordedRequest> {
        self.record.last()
    }

    /// Waits until so many requests have come.
    pub fn wait_requests(&self, count: usize, within: Duration) -> Result<Vec<RecordedRequest>> {
        self.record.wait_requests(count, within)
    }

    /// How many connections have been accepted.
    pub fn connections(&self) -> usize {
        self.record.connections()
    }

    /// How many of them are open.
    pub fn open_connections(&self) -> usize {
        self.record.open_connections()
    }

    /// Waits until a client has closed a connection that this has not yet told of; returns its number.
    pub fn wait_closed(&self, within: Duration) -> Result<usize> {
        self.record.wait_closed(within)
    }

    /// Waits until no connection is open.
    pub fn wait_none_open(&self, within: Duration) -> Result<()> {
        self.record.wait_none_open(within)
    }

    /// What ended connections had left that is no whole request.
    pub fn garbage(&self) -> Vec<Vec<u8>> {
        self.record.garbage()
    }

    /// Closes every connection at both ends, as a restarting upstream does.
    pub fn close_connections(&self) {
        self.server.close_connections();
    }
}

/// The port of an address; panics for a unix socket.
pub(crate) fn tcp(address: &Address) -> SocketAddr {
    match address {
        Address::Tcp(addr) => *addr,
        Address::Unix(path) => panic!("{} is no TCP address", path.display()),
    }
}

fn pass(mut client: Socket, sockets: &Sockets, upstream: &Address, record: &Record) {
    let connection = record.opened();
    let mut reader = Reader::new(record, connection, KEEP);
    if let Ok((upstream, back)) = connect(upstream, &client) {
        sockets.add(&upstream);
        let (mut upstream, (mut from, mut to)) = (upstream, back);
        let answers = std::thread::spawn(move || copy(&mut from, &mut to, |_| ()));
        copy(&mut client, &mut upstream, |bytes| reader.push(bytes, |_| ()));
        record.closed(connection, reader.pending());
        let _ = answers.join();
    } else {
        record.closed(connection, reader.pending());
    }
    let _ = client.shutdown(Shutdown::Both);
}

/// Connects, and clones both sockets for the way back.
fn connect(upstream: &Address, client: &Socket) -> Result<(Socket, (Socket, Socket))> {
    let what = |e| Error::caused("connect to the upstream", e);
    let upstream = Socket::connect(upstream, Duration::from_secs(5)).map_err(what)?;
    let back = (upstream.try_clone().map_err(what)?, client.try_clone().map_err(what)?);
    Ok((upstream, back))
}

/// Copies until one side ends, and passes the end on.
fn copy(from: &mut Socket, to: &mut Socket, mut see: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = read(from, &mut buffer);
        if read == 0 {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        see(&buffer[..read]);
        if to.write_all(&buffer[..read]).is_err() {
            // Nobody listens there any more: whoever sends must learn of it.
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// How much of each body is kept.
const KEEP: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Answer, Backend};
    use crate::http::{Connection, Request, raw, response};

    fn echo() -> Backend {
        Backend::start(|request| Answer::Bytes(response(200, &[], &request.target))).unwrap()
    }

    #[test]
    fn shows_the_bytes_that_were_sent_and_passes_them_on_unchanged() {
        let backend = echo();
        let recorder = Recorder::start(backend.addr()).unwrap();
        let head = b"GET /a%2Fb%23?x=+&y=%C3%A9 HTTP/1.1\r\nhOsT: x\r\nA:  1\r\na: 2\r\nConnection: close\r\n\r\n";
        let answer = raw(recorder.addr(), head);
        assert!(answer.ends_with(b"\r\n\r\n/a%2Fb%23?x=+&y=%C3%A9"), "{answer:?}");
        assert_eq!(recorder.last().unwrap().head, head);
        assert_eq!(backend.last().unwrap().head, head);
        assert_eq!(recorder.last().unwrap().header_all("A"), ["1", "2"]);
    }

    #[test]
    fn tells_pipelined_and_kept_alive_requests_apart() {
        let backend = echo();
        let recorder = Recorder::start(backend.addr()).unwrap();
        let mut client = Connection::open(recorder.addr()).unwrap();
        client.write(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPUT /2 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\n\r\n").unwrap();
        for target in ["/1", "/2", "/3"] {
            assert_eq!(client.response("GET").unwrap().text(), target);
        }
        assert_eq!(client.send(&Request::new("POST", "/4").body("x".repeat(100_000))).unwrap().text(), "/4");
        let seen = recorder.take();
        let seen: Vec<_> = seen.iter().map(|r| (r.target_text(), r.body_len, r.state, r.connection)).collect();
        let wanted = [("/1", 0), ("/2", 3), ("/3", 0), ("/4", 100_000)];
        assert_eq!(seen, wanted.map(|(target, len)| (target.to_owned(), len, State::Complete, 0)));
        assert_eq!((recorder.connections(), recorder.requests().len()), (1, 0));
    }

    #[test]
    fn passes_on_that_a_client_went_away() {
        let backend = Backend::start(|_| Answer::Hang).unwrap();
        let recorder = Recorder::start(backend.addr()).unwrap();
        let mut client = Connection::open(recorder.addr()).unwrap();
        client.write(b"GET /sync HTTP/1.1\r\n\r\n").unwrap();
        backend.wait_requests(1, Duration::from_secs(5)).unwrap();
        assert_eq!(recorder.open_connections(), 1);
        drop(client);
        backend.wait_closed(Duration::from_secs(5)).unwrap();
        recorder.wait_none_open(Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn keeps_what_is_no_request() {
        let backend = echo();
        let recorder = Recorder::start(backend.addr()).unwrap();
        let mut client = Connection::open(recorder.addr()).unwrap();
        client.write(b"\x16\x03\x01 hello").unwrap();
        drop(client);
        recorder.wait_closed(Duration::from_secs(5)).unwrap();
        assert_eq!(recorder.garbage(), [b"\x16\x03\x01 hello"]);
    }

    #[test]
    fn goes_away_with_its_connections() {
        let backend = echo();
        let recorder = Recorder::start(backend.addr()).unwrap();
        let addr = recorder.addr();
        let mut client = Connection::open(addr).unwrap();
        client.send(&Request::new("GET", "/")).unwrap();
        drop(recorder);
        assert_eq!(client.read_to_end().unwrap(), b"");
        assert!(Connection::open(addr).is_err());
    }
}
