//! One worker's connections to the homeserver, kept open between requests.
//!
//! The connection that was used last is used next, so that those above the need grow old and close. Each is driven by a task of
//! its own, which also puts it back: it is the first to know that an exchange is over, body and all.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::connector::{Connector, Stream};
use crate::error::{Error, Kind, Side};
use crate::message::RequestBody;
use crate::observe::metrics::{Counted, Metrics, PoolState};

/// One worker's connections. Not shared between threads: an exchange runs on one.
pub struct Pool {
    connector: Connector,
    shelf: Rc<Shelf>,
    metrics: Arc<Metrics>,
}

/// The idle connections, the one used last at the back.
#[derive(Default)]
struct Shelf(RefCell<VecDeque<Idle>>);

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
    pub fn new(connector: Connector, metrics: Arc<Metrics>) -> Self {
        Self { connector, shelf: Rc::default(), metrics }
    }

    /// Sends a request and waits for the head of its response. Dropping the future, or the response's body before its end,
    /// closes the connection, so that the homeserver stops working for nobody.
    ///
    /// A pooled connection that proves dead before anything of the request was written is replaced by a fresh one, once.
    ///
    /// # Errors
    /// [`Kind::Connect`], [`Kind::Closed`] or [`Kind::Garbled`]; [`Kind::BrokenBody`] where the request's own body failed, whose
    /// flow tells how.
    pub async fn send(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, Error> {
        let began = Instant::now();
        let sent = self.send_once_or_twice(request).await;
        match &sent {
            Ok(_) => self.metrics.upstream_duration.observe(began.elapsed().as_secs_f64()),
            Err(error) if error.kind().side() == Side::Upstream => self.metrics.upstream_error(error.kind().as_str()),
            Err(_) => {}
        }
        sent
    }

    async fn send_once_or_twice(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, Error> {
        let request = match self.shelf.take() {
            None => request,
            Some(line) => match line.send(request).await {
                Ok(response) => return Ok(response),
                Err(failure) => match failure.unsent {
                    Some(request) => {
                        self.metrics.upstream_retries.inc();
                        *request
                    }
                    None => return Err(failure.error),
                },
            },
        };
        let line = self.connect().await?;
        line.send(request).await.map_err(|failure| failure.error)
    }

    async fn connect(&self) -> Result<Rc<Line>, Error> {
        let stream = self.connector.connect().await?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_FIELDS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Error::caused_by(Kind::Connect, error))?;
        let line = Rc::new(Line { sender: RefCell::new(Some(sender)), is_busy: Cell::new(true) });
        let open = self.metrics.upstream_connection(PoolState::Open);
        let driver = Driver {
            connection,
            line: Rc::clone(&line),
            shelf: Rc::clone(&self.shelf),
            metrics: Arc::clone(&self.metrics),
        };
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
        let mut idle = self.0.borrow_mut();
        while let Some(Idle { line, since, .. }) = idle.pop_back() {
            if since.elapsed() > IDLE {
                // All before it are older still.
                idle.drain(..).for_each(|older| older.line.close());
                line.close();
                return None;
            }
            if line.is_open() {
                return Some(line);
            }
        }
        None
    }

    fn put(&self, line: Rc<Line>, counted: Counted) {
        let mut idle = self.0.borrow_mut();
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

struct Failure {
    error: Error,
    /// The request, if nothing of it was written.
    unsent: Option<Box<Request<RequestBody>>>,
}

impl Line {
    async fn send(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, Failure> {
        let Some(mut sender) = self.sender.take() else {
            return Err(Failure { error: Error::new(Kind::Closed), unsent: Some(Box::new(request)) });
        };
        let response = sender.try_send_request(request);
        self.is_busy.set(true);
        self.sender.replace(Some(sender));
        response.await.map_err(|mut failure| {
            let unsent = failure.take_message().map(Box::new);
            let error = failure.into_error();
            let kind = match &error {
                error if error.is_parse() => Kind::Garbled,
                // Our side of the request broke: its body, which the client did not send as it should.
                error if error.is_user() => Kind::BrokenBody,
                _ => Kind::Closed,
            };
            Failure { error: Error::caused_by(kind, error), unsent }
        })
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
    metrics: Arc<Metrics>,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Pin::new(&mut self.connection).poll(cx).is_ready() {
            self.line.close();
            return Poll::Ready(());
        }
        if self.line.is_busy.get() {
            let ready = self.line.sender.borrow_mut().as_mut().map(|sender| sender.poll_ready(cx));
            if let Some(Poll::Ready(Ok(()))) = ready {
                self.line.is_busy.set(false);
                let counted = self.metrics.upstream_connection(PoolState::Idle);
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
