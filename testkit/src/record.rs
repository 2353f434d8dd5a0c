//! What a recording server remembers, and how a test waits for it without sleeping.

use std::collections::VecDeque;
use std::io::Read;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::socket::{Address, Listener, Socket};
use crate::wire::{self, Event, Head, Headers, Scanner};

/// A request as it stood on the wire.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// The method.
    pub method: String,
    /// The request target, byte for byte.
    pub target: Vec<u8>,
    /// The whole head, byte for byte, from the request line to the empty line.
    pub head: Vec<u8>,
    /// The fields in the order they came.
    pub headers: Headers,
    /// The content without its chunks; a [`crate::recorder::Recorder`] keeps the first 64 KiB.
    pub body: Vec<u8>,
    /// How many bytes of content have come.
    pub body_len: u64,
    /// Whether the whole request has come.
    pub state: State,
    /// On which connection it came, counted from 0.
    pub connection: usize,
    number: u64,
}

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The body is still being sent, or was cut.
    Incomplete,
    /// To its last byte.
    Complete,
}

impl RecordedRequest {
    /// The first value of a field, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        wire::first(&self.headers, name)
    }

    /// Every value of a field, in order.
    pub fn header_all(&self, name: &str) -> Vec<&str> {
        wire::all(&self.headers, name).collect()
    }

    /// The target as text.
    pub fn target_text(&self) -> String {
        String::from_utf8_lossy(&self.target).into_owned()
    }
}

/// Shared by a server's threads and the test.
#[derive(Default)]
pub(crate) struct Record {
    log: Mutex<Log>,
    changed: Condvar,
}

#[derive(Default)]
struct Log {
    requests: Vec<RecordedRequest>,
    next_number: u64,
    accepted: usize,
    open: usize,
    /// Connections that the client closed, which no test was told of yet.
    closed: VecDeque<usize>,
    /// Bytes that are no request.
    garbage: Vec<Vec<u8>>,
}

impl Record {
    pub(crate) fn requests(&self) -> Vec<RecordedRequest> {
        self.lock().requests.clone()
    }

    pub(crate) fn take(&self) -> Vec<RecordedRequest> {
        std::mem::take(&mut self.lock().requests)
    }

    pub(crate) fn last(&self) -> Option<RecordedRequest> {
        self.lock().requests.last().cloned()
    }

    /// The latest request of one connection.
    pub(crate) fn last_of(&self, connection: usize) -> Option<RecordedRequest> {
        self.lock().requests.iter().rev().find(|request| request.connection == connection).cloned()
    }

    pub(crate) fn connections(&self) -> usize {
        self.lock().accepted
    }

    pub(crate) fn open_connections(&self) -> usize {
        self.lock().open
    }

    pub(crate) fn garbage(&self) -> Vec<Vec<u8>> {
        self.lock().garbage.clone()
    }

    pub(crate) fn wait_requests(&self, count: usize, within: Duration) -> Result<Vec<RecordedRequest>> {
        self.wait(within, |log| (log.requests.len() >= count).then(|| log.requests.clone()))
            .map_err(|log| Error::new(format!("{} of {count} requests came within {within:?}", log.requests.len())))
    }

    pub(crate) fn wait_request(
        &self,
        within: Duration,
        is: impl Fn(&RecordedRequest) -> bool,
    ) -> Result<RecordedRequest> {
        let whole = |request: &&RecordedRequest| request.state == State::Complete && is(request);
        self.wait(within, |log| log.requests.iter().find(whole).cloned())
            .map_err(|log| Error::new(format!("none of {} requests was it within {within:?}", log.requests.len())))
    }

    pub(crate) fn wait_closed(&self, within: Duration) -> Result<usize> {
        self.wait(within, |log| log.closed.pop_front())
            .map_err(|log| Error::new(format!("no connection of {} was closed within {within:?}", log.open)))
    }

    pub(crate) fn wait_none_open(&self, within: Duration) -> Result<()> {
        self.wait(within, |log| (log.open == 0).then_some(()))
            .map_err(|log| Error::new(format!("{} connections are still open after {within:?}", log.open)))
    }

    pub(crate) fn opened(&self) -> usize {
        self.change(|log| {
            log.accepted += 1;
            log.open += 1;
            log.accepted - 1
        })
    }

    pub(crate) fn closed(&self, connection: usize, pending: &[u8]) {
        self.change(|log| {
            log.open -= 1;
            log.closed.push_back(connection);
            if !pending.is_empty() {
                log.garbage.push(pending.to_vec());
            }
        });
    }

    pub(crate) fn head(&self, head: Head, connection: usize) -> u64 {
        let (method, target) = head.request();
        self.change(|log| {
            let number = log.next_number;
            log.next_number += 1;
            log.requests.push(RecordedRequest {
                method,
                target,
                head: head.bytes,
                headers: head.headers,
                body: Vec::new(),
                body_len: 0,
                state: State::Incomplete,
                connection,
                number,
            });
            number
        })
    }

    pub(crate) fn body(&self, number: u64, content: &[u8], keep: usize) {
        self.change(|log| {
            if let Some(request) = find(log, number) {
                request.body_len += content.len() as u64;
                let room = keep.saturating_sub(request.body.len()).min(content.len());
                request.body.extend_from_slice(&content[..room]);
            }
        });
    }

    pub(crate) fn end(&self, number: u64) {
        self.change(|log| {
            if let Some(request) = find(log, number) {
                request.state = State::Complete;
            }
        });
    }

    fn change<T>(&self, with: impl FnOnce(&mut Log) -> T) -> T {
        let result = with(&mut self.lock());
        self.changed.notify_all();
        result
    }

    fn wait<T>(
        &self,
        within: Duration,
        mut look: impl FnMut(&mut Log) -> Option<T>,
    ) -> std::result::Result<T, MutexGuard<'_, Log>> {
        let deadline = Instant::now() + within;
        let mut log = self.lock();
        loop {
            if let Some(found) = look(&mut log) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(log);
            }
            log = self.changed.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that a test has already taken is no longer there.
fn find(log: &mut Log, number: u64) -> Option<&mut RecordedRequest> {
    log.requests.iter_mut().rev().find(|request| request.number == number)
}

/// Feeds one connection's bytes into the record.
pub(crate) struct Reader<'a> {
    record: &'a Record,
    scanner: Scanner,
    connection: usize,
    keep: usize,
    current: u64,
    /// After bytes that are no request the rest is only passed on.
    lost: bool,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(record: &'a Record, connection: usize, keep: usize) -> Reader<'a> {
        Reader { record, scanner: Scanner::default(), connection, keep, current: 0, lost: false }
    }

    /// Reads on, and says when a head or a whole request has been recorded.
    pub(crate) fn push(&mut self, bytes: &[u8], mut on: impl FnMut(Milestone)) {
        if self.lost {
            return;
        }
        let (record, connection, keep, current) = (self.record, self.connection, self.keep, &mut self.current);
        let pushed = self.scanner.push(bytes, |event| match event {
            Event::Head(head) => {
                *current = record.head(head, connection);
                on(Milestone::Head);
            }
            Event::Body(content) => record.body(*current, content, keep),
            Event::End => {
                record.end(*current);
                on(Milestone::End);
            }
        });
        self.lost = pushed.is_err();
    }

    /// What came that is no request.
    pub(crate) fn pending(&self) -> &[u8] {
        self.scanner.pending()
    }
}

/// What has just been reached in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Milestone {
    Head,
    End,
}

/// Accepts connections on a thread of its own until it is dropped, and then closes them all.
pub(crate) struct Server {
    address: Address,
    over: Arc<AtomicBool>,
    sockets: Arc<Mutex<Vec<Socket>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves each connection on its own thread.
    pub(crate) fn start(at: &Address, serve: impl Fn(Socket, &Sockets) + Send + Sync + 'static) -> Result<Server> {
        let listener = Listener::bind(at).context(|| format!("listen on {at}"))?;
        let address = listener.address(at).context(|| format!("listen on {at}"))?;
        let over = Arc::new(AtomicBool::new(false));
        let sockets: Arc<Mutex<Vec<Socket>>> = Arc::default();
        let (serve, over_here, sockets_here) = (Arc::new(serve), over.clone(), sockets.clone());
        let thread = std::thread::spawn(move || {
            while let Ok(socket) = listener.accept() {
                if over_here.load(Ordering::SeqCst) {
                    break;
                }
                let (serve, sockets) = (serve.clone(), Sockets(sockets_here.clone()));
                sockets.add(&socket);
                std::thread::spawn(move || serve(socket, &sockets));
            }
        });
        Ok(Server { address, over, sockets, thread: Some(thread) })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Closes every connection, and goes on listening.
    pub(crate) fn close_connections(&self) {
        for socket in self.sockets.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // The accepting thread wakes only for a connection.
        if Socket::connect(&self.address, Duration::from_secs(1)).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
        self.close_connections();
    }
}

/// The sockets to close when the server goes.
#[derive(Clone)]
pub(crate) struct Sockets(Arc<Mutex<Vec<Socket>>>);

impl Sockets {
    pub(crate) fn add(&self, socket: &Socket) {
        if let Ok(socket) = socket.try_clone() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
        }
    }
}

/// Reads what there is; nothing when the other side has closed or is gone.
pub(crate) fn read(socket: &mut Socket, buffer: &mut [u8]) -> usize {
    loop {
        match socket.read(buffer) {
            Ok(read) => return read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => (),
            Err(_) => return 0,
        }
    }
}
