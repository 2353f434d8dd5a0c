//! One worker's connections to one server, kept open between requests.
//!
//! The connection that was used last is used next, so that those above the need grow old and close. Each is driven by a task of
//! its own, which also puts it back: it is the first to know that an exchange is over, body and all.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Response;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::connector::{Connector, Stream};
use crate::error::{Error, Kind};
use crate::message::{BoxRequest, RequestBody};
use crate::observe::metrics::{Counted, PoolState, UpstreamMetrics};

/// One worker's connections. Not shared between threads: an exchange runs on one.
pub struct Pool {
    connector: Connector,
    shelf: Rc<Shelf>,
    metrics: UpstreamMetrics,
}

/// The idle connections, the one used last at the back.
#[derive(Default)]
struct Shelf {
    idle: RefCell<VecDeque<Idle>>,
    /// Connections that carry an exchange.
    busy: Cell<usize>,
}

struct Idle {
    line: Rc<Line>,
    since: Instant,
    _counted: Counted,
}

/// A connection as its user and its driver both hold it.
struct Line {
    sender: RefCell<Option<SendRequest<RequestBody>>>,
    is_busy: Cell<bool>,
}

impl Pool {
    /// An empty pool.
    pub fn new(connector: Connector, metrics: UpstreamMetrics) -> Self {
        Self { connector, shelf: Rc::default(), metrics }
    }

    /// Sends the request in the slot and waits for the head of its response. Dropping the future, or the response's body before
    /// its end, closes the connection, so that the homeserver stops working for nobody.
    ///
    /// A pooled connection that proves dead before anything of the request was written is replaced by a fresh one, once.
    ///
    /// # Errors
    /// [`Kind::Connect`], [`Kind::Closed`] or [`Kind::Garbled`]; [`Kind::BrokenBody`] where the request's own body failed, whose
    /// flow tells how. The request is still in its slot if nothing of it was written: it may be sent elsewhere.
    pub async fn send(&self, slot: &mut Slot) -> Result<Response<Incoming>, Error> {
        if let Some(line) = self.shelf.take() {
            match line.send(slot).await {
                Err(_) if slot.is_some() => self.metrics.retries.inc(),
                sent => return sent,
            }
        }
        self.connect().await?.send(slot).await
    }

    /// How many exchanges its connections carry.
    pub fn busy(&self) -> usize {
        self.shelf.busy.get()
    }

    /// Opens a connection and closes it again.
    ///
    /// # Errors
    /// [`Kind::Connect`].
    pub async fn reach(&self) -> Result<(), Error> {
        self.connector.connect().await.map(drop)
    }

    async fn connect(&self) -> Result<Rc<Line>, Error> {
        let stream = self.connector.connect().await?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_FIELDS)
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Error::caused_by(Kind::Connect, error))?;
        let line = Rc::new(Line { sender: RefCell::new(Some(sender)), is_busy: Cell::new(false) });
        line.begin(&self.shelf);
        let open = self.metrics.connection(PoolState::Open);
        let driver =
            Driver { connection, line: Rc::clone(&line), shelf: Rc::clone(&self.shelf), metrics: self.metrics.clone() };
        tokio::task::spawn_local(async move {
            // How it ended is told to whoever used it; here it only ends.
            driver.await;
            drop(open);
        });
        Ok(line)
    }
}

impl Shelf {
    fn take(&self) -> Option<Rc<Line>> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle { line, since, .. }) = idle.pop_back() {
            if since.elapsed() > IDLE {
                // All before it are older still.
                idle.drain(..).for_each(|older| older.line.close());
                line.close();
                return None;
            }
            if line.is_open() {
                line.begin(self);
                return Some(line);
            }
        }
        None
    }

    fn put(&self, line: Rc<Line>, counted: Counted) {
        let mut idle = self.idle.borrow_mut();
        while idle.front().is_some_and(|oldest| oldest.since.elapsed() > IDLE || !oldest.line.is_open())
            || idle.len() >= MOST_IDLE
        {
            if let Some(oldest) = idle.pop_front() {
                oldest.line.close();
            }
        }
        idle.push_back(Idle { line, since: Instant::now(), _counted: counted });
    }
}

/// A request until it is written.
pub type Slot = Option<BoxRequest>;

impl Line {
    async fn send(&self, slot: &mut Slot) -> Result<Response<Incoming>, Error> {
        let Some(mut sender) = self.sender.take() else { return Err(Error::new(Kind::Closed)) };
        let response = slot.take().map(|request| sender.try_send_request(*request));
        self.sender.replace(Some(sender));
        let Some(response) = response else { return Err(Error::new(Kind::Closed)) };
        response.await.map_err(|mut failure| {
            *slot = failure.take_message().map(Box::new);
            let error = failure.into_error();
            let kind = match &error {
                error if error.is_parse() => Kind::Garbled,
                // Our side of the request broke: its body, which the client did not send as it should.
                error if error.is_user() => Kind::BrokenBody,
                _ => Kind::Closed,
            };
            Error::caused_by(kind, error)
        })
    }

    /// An exchange begins; it ends when the driver shelves the connection or gives it up.
    fn begin(&self, shelf: &Shelf) {
        self.is_busy.set(true);
        shelf.busy.set(shelf.busy.get() + 1);
    }

    fn end(&self, shelf: &Shelf) {
        if self.is_busy.replace(false) {
            shelf.busy.set(shelf.busy.get() - 1);
        }
    }

    fn is_open(&self) -> bool {
        self.sender.borrow().as_ref().is_some_and(|sender| sender.is_ready() && !sender.is_closed())
    }

    /// Gives up the right to send: the driver then closes the connection.
    fn close(&self) {
        self.sender.take();
    }
}

/// Moves the bytes of one connection, and shelves it whenever an exchange is over.
struct Driver {
    connection: http1::Connection<TokioIo<Stream>, RequestBody>,
    line: Rc<Line>,
    shelf: Rc<Shelf>,
    metrics: UpstreamMetrics,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Pin::new(&mut self.connection).poll(cx).is_ready() {
            self.line.close();
            self.line.end(&self.shelf);
            return Poll::Ready(());
        }
        if self.line.is_busy.get() {
            let ready = self.line.sender.borrow_mut().as_mut().map(|sender| sender.poll_ready(cx));
            if let Some(Poll::Ready(Ok(()))) = ready {
                self.line.end(&self.shelf);
                let counted = self.metrics.connection(PoolState::Idle);
                self.shelf.put(Rc::clone(&self.line), counted);
            }
        }
        Poll::Pending
    }
}

/// Synapse closes idle connections after 60 seconds (`twisted/web/http.py`, `_REQUEST_TIMEOUT` in `synapse/http/site.py`); one
/// that is about to be closed there must not be used here.
const IDLE: Duration = Duration::from_secs(45);
const MOST_IDLE: usize = 512;
const MAX_FIELDS: usize = 200;
/// What an answer that nobody takes may fill here; the library's own bound is six times that.
const BUFFER: usize = 64 * 1024;
