//! One worker's connections to other servers, kept open for a while between requests.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use super::connector::{MAX_FIELDS, broken};
use crate::error::{Error, Kind};
use crate::matrix::ServerName;
use crate::message::RequestBody;
use crate::observe::metrics::{Counted, PoolState, UpstreamMetrics};

/// Idle connections by server, the one used last at the back.
pub(super) struct Pool {
    idle: RefCell<HashMap<ServerName, Vec<Rc<Line>>>>,
    count: Cell<usize>,
    metrics: UpstreamMetrics,
}

/// A connection as its user and its driver both hold it.
pub(super) struct Line {
    server: ServerName,
    /// What the server is called in `Host`.
    host: HeaderValue,
    sender: RefCell<Option<SendRequest<RequestBody>>>,
    is_busy: Cell<bool>,
}

/// Why there is no response.
pub(super) struct Failure {
    pub error: Error,
    /// The request, if nothing of it was written.
    pub unsent: Option<Box<Request<RequestBody>>>,
}

impl Pool {
    pub fn new(metrics: UpstreamMetrics) -> Rc<Self> {
        Rc::new(Self { idle: RefCell::default(), count: Cell::new(0), metrics })
    }

    /// An idle connection to this server.
    pub fn take(&self, server: &ServerName) -> Option<Rc<Line>> {
        let mut idle = self.idle.borrow_mut();
        let lines = idle.get_mut(server)?;
        let mut found = None;
        while found.is_none() {
            let Some(line) = lines.pop() else { break };
            self.count.set(self.count.get() - 1);
            found = Some(line).filter(|line| line.is_open());
        }
        if lines.is_empty() {
            idle.remove(server);
        }
        found.inspect(|line| line.is_busy.set(true))
    }

    /// Speaks HTTP on a new connection to this server.
    pub async fn begin<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
        self: &Rc<Self>,
        stream: IO,
        server: &ServerName,
        host: HeaderValue,
    ) -> Result<Rc<Line>, Error> {
        let handshake = http1::Builder::new().max_headers(MAX_FIELDS).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| broken(&error))?;
        let line = Rc::new(Line {
            server: server.clone(),
            host,
            sender: RefCell::new(Some(sender)),
            is_busy: Cell::new(true),
        });
        let open = self.metrics.connection(PoolState::Open);
        let driver = Driver { connection, line: Rc::clone(&line), pool: Rc::clone(self), idle: None, _open: open };
        tokio::task::spawn_local(driver);
        Ok(line)
    }

    /// Keeps a connection, if there is room; whether it does.
    fn put(&self, line: &Rc<Line>) -> Kept {
        let mut idle = self.idle.borrow_mut();
        let lines = idle.entry(line.server.clone()).or_default();
        if lines.len() >= MOST_PER_SERVER || self.count.get() >= MOST {
            return Kept::No;
        }
        lines.push(Rc::clone(line));
        self.count.set(self.count.get() + 1);
        Kept::Yes
    }

    /// Takes out a connection that nobody wanted.
    fn forget(&self, line: &Rc<Line>) {
        let mut idle = self.idle.borrow_mut();
        let Some(lines) = idle.get_mut(&line.server) else { return };
        let before = lines.len();
        lines.retain(|other| !Rc::ptr_eq(other, line));
        self.count.set(self.count.get() - (before - lines.len()));
        if lines.is_empty() {
            idle.remove(&line.server);
        }
    }
}

enum Kept {
    Yes,
    No,
}

impl Line {
    /// Sends a request and waits for the head of its response. Dropping the future, or the response's body before its end,
    /// closes the connection.
    pub async fn send(&self, mut request: Request<RequestBody>) -> Result<Response<Incoming>, Failure> {
        request.headers_mut().insert(header::HOST, self.host.clone());
        let Some(mut sender) = self.sender.take() else {
            return Err(Failure { error: Error::new(Kind::OriginClosed), unsent: Some(Box::new(request)) });
        };
        let response = sender.try_send_request(request);
        self.sender.replace(Some(sender));
        response.await.map_err(|mut failure| {
            let unsent = failure.take_message().map(Box::new);
            let error = failure.into_error();
            // Our side of the request broke: its body, which the homeserver did not send as it should.
            let error = if error.is_user() { Error::new(Kind::BrokenBody) } else { broken(&error) };
            Failure { error, unsent }
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

/// Moves the bytes of one connection, shelves it whenever an exchange is over, and closes it when nobody came for long.
struct Driver<IO: AsyncRead + AsyncWrite + Unpin + 'static> {
    connection: http1::Connection<TokioIo<IO>, RequestBody>,
    line: Rc<Line>,
    pool: Rc<Pool>,
    idle: Option<(Pin<Box<Sleep>>, Counted)>,
    _open: Counted,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> Future for Driver<IO> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            if Pin::new(&mut this.connection).poll(cx).is_ready() {
                this.line.close();
                this.pool.forget(&this.line);
                return Poll::Ready(());
            }
            if this.line.is_busy.get() {
                this.idle = None;
                let ready = this.line.sender.borrow_mut().as_mut().map(|sender| sender.poll_ready(cx));
                let Some(Poll::Ready(Ok(()))) = ready else { return Poll::Pending };
                this.line.is_busy.set(false);
                match this.pool.put(&this.line) {
                    Kept::Yes => {
                        let counted = this.pool.metrics.connection(PoolState::Idle);
                        this.idle = Some((Box::pin(tokio::time::sleep(IDLE)), counted));
                    }
                    Kept::No => {
                        this.line.close();
                        continue;
                    }
                }
            }
            let Some((timer, _)) = &mut this.idle else { return Poll::Pending };
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            this.idle = None;
            this.pool.forget(&this.line);
            this.line.close();
        }
    }
}

/// Less than most servers keep an idle connection, so that few are used in the moment in which they end.
const IDLE: Duration = Duration::from_secs(25);
const MOST_PER_SERVER: usize = 4;
/// Of one worker.
const MOST: usize = 256;
