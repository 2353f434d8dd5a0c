//! A programmable origin: slow, silent, cut, garbage or streaming upstreams, all under the test's control.

use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::Result;
use crate::record::{Milestone, Reader, Record, RecordedRequest, Server, Sockets, read};
use crate::recorder::tcp;
use crate::socket::{Address, Socket};

/// What a backend does with a request. Bytes are raw: status line, fields and body (see [`crate::http::response`]).
pub enum Answer {
    /// Writes these and keeps the connection.
    Bytes(Vec<u8>),
    /// Writes these and closes the connection: a cut answer, or one without a length.
    BytesThenClose(Vec<u8>),
    /// Closes the connection without a word.
    Close,
    /// Writes each piece as it comes, and keeps the connection when the sender is dropped.
    Stream(Receiver<Vec<u8>>),
    /// Writes each piece as it comes, and closes the connection when the sender is dropped.
    StreamThenClose(Receiver<Vec<u8>>),
    /// Says nothing until the client goes away.
    Hang,
}

impl Answer {
    /// Returns the pieces' sender with its answer: nothing is written until the test sends it.
    pub fn stream() -> (Sender<Vec<u8>>, Answer) {
        let (sender, pieces) = mpsc::channel();
        (sender, Answer::Stream(pieces))
    }

    /// Like [`Answer::stream`], and the end of the sender closes the connection.
    pub fn stream_then_close() -> (Sender<Vec<u8>>, Answer) {
        let (sender, pieces) = mpsc::channel();
        (sender, Answer::StreamThenClose(pieces))
    }
}

/// A server whose answers a closure makes; it records like a [`crate::recorder::Recorder`], with whole bodies.
pub struct Backend {
    server: Server,
    record: Arc<Record>,
    gate: Arc<Gate>,
}

type Handler = Arc<Mutex<dyn FnMut(&RecordedRequest) -> Answer + Send>>;

impl Backend {
    /// Listens on a free port of 127.0.0.1 and asks the closure for each request, once its body is whole.
    pub fn start(handler: impl FnMut(&RecordedRequest) -> Answer + Send + 'static) -> Result<Backend> {
        Backend::start_at(Address::any(), handler)
    }

    /// Listens on this port or unix socket.
    pub fn start_at(
        at: impl Into<Address>,
        handler: impl FnMut(&RecordedRequest) -> Answer + Send + 'static,
    ) -> Result<Backend> {
        serve_at(&at.into(), Milestone::End, Arc::new(Mutex::new(handler)))
    }

    /// Asks the closure as soon as a head has come: for answers that do not wait for the body.
    pub fn start_early(handler: impl FnMut(&RecordedRequest) -> Answer + Send + 'static) -> Result<Backend> {
        serve_at(&Address::any(), Milestone::Head, Arc::new(Mutex::new(handler)))
    }

    /// Where it listens; panics for a unix socket.
    pub fn addr(&self) -> SocketAddr {
        tcp(self.address())
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        self.server.address()
    }

    /// Every request since the start or the last [`Backend::take`], in the order their heads came.
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

    /// Waits until so many requests have come, each at least with its head.
    pub fn wait_requests(&self, count: usize, within: Duration) -> Result<Vec<RecordedRequest>> {
        self.record.wait_requests(count, within)
    }

    /// Waits for the first such request that has come to its last byte.
    pub fn wait_request(&self, within: Duration, is: impl Fn(&RecordedRequest) -> bool) -> Result<RecordedRequest> {
        self.record.wait_request(within, is)
    }

    /// How many connections have been accepted.
    pub fn connections(&self) -> usize {
        self.record.connections()
    }

    /// How many of them are open.
    pub fn open_connections(&self) -> usize {
        self.record.open_connections()
    }

    /// Waits until the other side has closed a connection that this has not yet told of; returns its number.
    pub fn wait_closed(&self, within: Duration) -> Result<usize> {
        self.record.wait_closed(within)
    }

    /// Waits until no connection is open.
    pub fn wait_none_open(&self, within: Duration) -> Result<()> {
        self.record.wait_none_open(within)
    }

    /// Closes every connection, and goes on listening.
    pub fn close_connections(&self) {
        self.server.close_connections();
    }

    /// Reads nothing more until told to: what a client can still send lies in the kernel's buffers.
    pub fn pause_reading(&self) {
        self.gate.set(Reading::Paused);
    }

    /// Reads on.
    pub fn resume_reading(&self) {
        self.gate.set(Reading::On);
    }
}

fn serve_at(at: &Address, when: Milestone, handler: Handler) -> Result<Backend> {
    let (record, gate) = (Arc::new(Record::default()), Arc::new(Gate::default()));
    let (record_here, gate_here) = (record.clone(), gate.clone());
    let server = Server::start(at, move |socket, _: &Sockets| serve(socket, &record_here, &gate_here, when, &handler))?;
    Ok(Backend { server, record, gate })
}

/// Reads one connection to its end, so that its closing is seen also while an answer hangs.
fn serve(mut socket: Socket, record: &Arc<Record>, gate: &Gate, when: Milestone, handler: &Handler) {
    let connection = record.opened();
    let (asked, requests) = mpsc::channel::<RecordedRequest>();
    let (Ok(answers), handler) = (socket.try_clone(), handler.clone()) else { return };
    std::thread::spawn(move || answer(answers, &requests, &handler));
    let mut reader = Reader::new(record, connection, usize::MAX);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        gate.wait();
        let read = read(&mut socket, &mut buffer);
        if read == 0 {
            break;
        }
        reader.push(&buffer[..read], |milestone| {
            if milestone == when
                && let Some(request) = record.last_of(connection)
            {
                let _ = asked.send(request);
            }
        });
    }
    record.closed(connection, reader.pending());
}

/// Answers one request after the other, as HTTP/1.1 wants it.
fn answer(mut socket: Socket, requests: &Receiver<RecordedRequest>, handler: &Handler) {
    for request in requests {
        let answer = handler.lock().unwrap_or_else(PoisonError::into_inner)(&request);
        let go_on = match answer {
            Answer::Bytes(bytes) => socket.write_all(&bytes).is_ok(),
            Answer::BytesThenClose(bytes) => {
                let _ = socket.write_all(&bytes);
                false
            }
            Answer::Close => false,
            Answer::Stream(pieces) => write_pieces(&mut socket, &pieces),
            Answer::StreamThenClose(pieces) => {
                write_pieces(&mut socket, &pieces);
                false
            }
            // The reading thread sees the client go; nothing is left to do here.
            Answer::Hang => return,
        };
        if !go_on {
            let _ = socket.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// Writes each piece as it comes; false when nobody takes them any more.
fn write_pieces(socket: &mut Socket, pieces: &Receiver<Vec<u8>>) -> bool {
    pieces.iter().all(|piece| socket.write_all(&piece).is_ok())
}

/// Whether the reading threads may go on.
#[derive(Default)]
struct Gate {
    state: Mutex<Reading>,
    changed: Condvar,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Reading {
    #[default]
    On,
    Paused,
}

impl Gate {
    fn set(&self, reading: Reading) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = reading;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let paused = self.changed.wait_while(state, |state| *state == Reading::Paused);
        drop(paused.unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Connection, Request, response};

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn writes_pieces_when_the_test_says_so() {
        let (sender, stream) = Answer::stream_then_close();
        let mut stream = Some(stream);
        let backend = Backend::start(move |_| stream.take().unwrap()).unwrap();
        let mut client = Connection::open(backend.addr()).unwrap();
        client.write(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        for piece in ["HTTP/1.1 200 OK\r\n", "Content-Length: 9\r\n\r\n", "abc"] {
            sender.send(piece.into()).unwrap();
            assert_eq!(client.read_some().unwrap(), piece.as_bytes());
        }
        drop(sender);
        assert_eq!(client.read_some().unwrap(), b"");
    }

    #[test]
    fn a_cut_answer_is_an_error_that_says_so() {
        let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc".to_vec();
        let backend = Backend::start(move |_| Answer::BytesThenClose(cut.clone())).unwrap();
        let error = Request::new("GET", "/").try_send(backend.addr()).unwrap_err();
        assert!(format!("{error:?}").contains("cut after 3 bytes"), "{error:?}");
    }

    #[test]
    fn silence_is_an_error_in_time() {
        let backend = Backend::start(|_| Answer::Hang).unwrap();
        let request = Request::new("GET", "/slow").timeout(Duration::from_millis(100));
        let error = request.try_send(backend.addr()).unwrap_err();
        assert!(format!("{error:?}").contains("nothing more came within 100ms"), "{error:?}");
        backend.wait_closed(SOON).unwrap();
    }

    #[test]
    fn sees_whole_bodies_chunked_ones_too() {
        let backend = Backend::start(|request| Answer::Bytes(response(200, &[], &request.body))).unwrap();
        let big = "x".repeat(1_000_000);
        assert_eq!(Request::new("PUT", "/").body(big.clone()).send(backend.addr()).text(), big);
        let chunked = Request::new("PUT", "/").header("Transfer-Encoding", "chunked").body("3\r\nabc\r\n0\r\n\r\n");
        assert_eq!(chunked.send(backend.addr()).text(), "abc");
    }

    #[test]
    fn a_request_that_is_waited_for_has_come_to_its_last_byte() {
        let backend = Backend::start(|_| Answer::Bytes(response(200, &[], ""))).unwrap();
        let mut client = Connection::open(backend.addr()).unwrap();
        client.write(b"PUT /a HTTP/1.1\r\nContent-Length: 6\r\n\r\nabc").unwrap();
        backend.wait_requests(1, SOON).unwrap();
        let is = |request: &RecordedRequest| request.target == b"/a";
        assert!(backend.wait_request(Duration::ZERO, is).is_err());
        client.write(b"def").unwrap();
        assert_eq!(backend.wait_request(SOON, is).unwrap().body, b"abcdef");
    }

    #[test]
    fn answers_early_and_over_a_unix_socket() {
        let early = Backend::start_early(|_| Answer::Bytes(response(413, &[], ""))).unwrap();
        let mut client = Connection::open(early.addr()).unwrap();
        client.write(b"PUT / HTTP/1.1\r\nContent-Length: 10\r\n\r\n").unwrap();
        assert_eq!(client.response("PUT").unwrap().status, 413);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backend.sock");
        let backend = Backend::start_at(&path, |_| Answer::Bytes(response(204, &[], ""))).unwrap();
        assert_eq!(Request::new("GET", "/").send(backend.address()).status, 204);
    }

    #[test]
    fn a_client_cannot_send_on_while_reading_is_paused() {
        let backend = Backend::start(|_| Answer::Bytes(response(200, &[], ""))).unwrap();
        let mut client = Connection::open(backend.addr()).unwrap();
        client.write(b"PUT / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n").unwrap();
        backend.wait_requests(1, SOON).unwrap();
        backend.pause_reading();
        client.set_timeout(Duration::from_millis(200));
        let piece = vec![0; 1 << 20];
        assert!((0..100).any(|_| client.write(&piece).is_err()), "100 MB went into nobody's hands");
        backend.resume_reading();
        drop(client);
        backend.wait_closed(SOON).unwrap();
    }
}
