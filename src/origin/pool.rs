//! One worker's connections to other servers, kept open for a while between requests: of HTTP/1.1 one for each exchange, of HTTP/2,
//! where it is offered, one for all.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::connector::{MAX_FIELDS, Stream, broken};
use crate::error::{Error, Kind};
use crate::matrix::ServerName;
use crate::message::{BoxRequest, RequestBody};
use crate::observe::metrics::{Counted, PoolState, UpstreamMetrics};

/// The open connections that another request may use.
pub(super) struct Pool {
    /// Those of HTTP/1.1 that are idle, the one used last at the back.
    idle: RefCell<HashMap<ServerName, Vec<Rc<Line>>>>,
    /// How many those are.
    count: Cell<usize>,
    /// Those of HTTP/2, idle or not.
    shared: RefCell<HashMap<ServerName, Rc<Trunk>>>,
    metrics: UpstreamMetrics,
}

/// A connection that a request may be sent on.
pub(super) enum Way {
    /// Of HTTP/1.1; nobody else has it.
    Line(Rc<Line>),
    /// Of HTTP/2.
    Trunk(Rc<Trunk>),
}

/// A connection of HTTP/1.1 as its user and its driver both hold it.
pub(super) struct Line {
    server: ServerName,
    /// What the server is called in `Host`.
    host: HeaderValue,
    sender: RefCell<Option<http1::SendRequest<RequestBody>>>,
    is_busy: Cell<bool>,
}

/// A connection of HTTP/2. It ends when nobody can begin anything on it any more, and all that was begun has ended.
pub(super) struct Trunk {
    /// What the server is called in `:authority`.
    host: Authority,
    sender: http2::SendRequest<RequestBody>,
    used: Cell<Instant>,
}

/// Why there is no response.
pub(super) struct Failure {
    pub error: Error,
    /// The request, if nothing of it was written.
    pub unsent: Option<BoxRequest>,
}

impl Pool {
    pub fn new(metrics: UpstreamMetrics) -> Rc<Self> {
        Rc::new(Self { idle: RefCell::default(), count: Cell::new(0), shared: RefCell::default(), metrics })
    }

    /// A connection to this server that is open already.
    pub fn take(&self, server: &ServerName) -> Option<Way> {
        if let Some(trunk) = self.shared.borrow().get(server).filter(|trunk| trunk.is_open()) {
            trunk.used.set(Instant::now());
            return Some(Way::Trunk(Rc::clone(trunk)));
        }
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
        found.inspect(|line| line.is_busy.set(true)).map(Way::Line)
    }

    /// Speaks HTTP on a new connection to this server: of the version that it chose.
    pub async fn begin(self: &Rc<Self>, stream: Stream, server: &ServerName, host: HeaderValue) -> Result<Way, Error> {
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => self.begin_h2(stream, server, &host).await.map(Way::Trunk),
            _ => self.begin_h1(stream, server, host).await.map(Way::Line),
        }
    }

    /// Speaks HTTP/1.1 on a new connection to this server.
    pub async fn begin_h1<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
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

    async fn begin_h2(
        self: &Rc<Self>,
        stream: Stream,
        server: &ServerName,
        host: &HeaderValue,
    ) -> Result<Rc<Trunk>, Error> {
        let host = Authority::try_from(host.as_bytes()).map_err(|_| Error::new(Kind::OriginUnknown))?;
        let handshake = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEAD)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = handshake.map_err(|error| broken(&error))?;
        let trunk = Rc::new(Trunk { host, sender, used: Cell::new(Instant::now()) });
        let open = self.metrics.connection(PoolState::Open);
        tokio::task::spawn_local(async move {
            // How it ended is told to whoever used it.
            let _ = connection.await;
            drop(open);
        });
        if self.shared.borrow().len() < MOST {
            self.shared.borrow_mut().insert(server.clone(), Rc::clone(&trunk));
            let (pool, server, weak) = (Rc::clone(self), server.clone(), Rc::downgrade(&trunk));
            tokio::task::spawn_local(async move {
                while let Some(used) = weak.upgrade().filter(|trunk| trunk.is_open()).map(|trunk| trunk.used.get())
                    && used.elapsed() < IDLE
                {
                    tokio::time::sleep_until(used + IDLE).await;
                }
                let mut shared = pool.shared.borrow_mut();
                if shared.get(&server).is_some_and(|trunk| std::ptr::eq(Rc::as_ptr(trunk), weak.as_ptr())) {
                    shared.remove(&server);
                }
            });
        }
        Ok(trunk)
    }

    /// Keeps a connection, if there is room; whether it does.
    fn put(&self, line: &Rc<Line>) -> Kept {
        let mut idle = self.idle.borrow_mut();
        let beside = idle.get(&line.server).map_or(0, Vec::len);
        if beside >= MOST_PER_SERVER || self.count.get() >= MOST {
            return Kept::No;
        }
        let lines = idle.entry(line.server.clone()).or_default();
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

impl Way {
    /// Sends a request in origin-form and waits for the head of its response. Dropping the future, or the response's body before
    /// its end, ends the exchange, and with HTTP/1.1 the connection.
    pub async fn send(&self, request: BoxRequest) -> Result<Response<Incoming>, Failure> {
        match self {
            Self::Line(line) => line.send(request).await,
            Self::Trunk(trunk) => trunk.send(request).await,
        }
    }
}

impl Line {
    async fn send(&self, mut request: BoxRequest) -> Result<Response<Incoming>, Failure> {
        request.headers_mut().insert(header::HOST, self.host.clone());
        let Some(mut sender) = self.sender.take() else {
            return Err(Failure { error: Error::new(Kind::OriginClosed), unsent: Some(request) });
        };
        let response = sender.try_send_request(*request);
        self.sender.replace(Some(sender));
        response.await.map_err(Failure::from)
    }

    fn is_open(&self) -> bool {
        self.sender.borrow().as_ref().is_some_and(|sender| sender.is_ready() && !sender.is_closed())
    }

    /// Gives up the right to send: the driver then closes the connection.
    fn close(&self) {
        self.sender.take();
    }
}

impl Trunk {
    async fn send(&self, mut request: BoxRequest) -> Result<Response<Incoming>, Failure> {
        // The host is said in `:authority`, and there alone; the target stays as it is.
        request.headers_mut().remove(header::HOST);
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(self.host.clone());
        match Uri::from_parts(parts) {
            Ok(uri) => *request.uri_mut() = uri,
            Err(_) => return Err(Failure { error: Error::new(Kind::OriginUnknown), unsent: None }),
        }
        let sent = self.sender.clone().try_send_request(*request).await.map_err(Failure::from);
        sent.map_err(|mut failure| {
            // Whoever sends it next says the host in his own way.
            if let Some(request) = &mut failure.unsent {
                let target = request.uri().path_and_query().cloned();
                *request.uri_mut() = target.map_or_else(Uri::default, Uri::from);
            }
            failure
        })
    }

    fn is_open(&self) -> bool {
        self.sender.is_ready() && !self.sender.is_closed()
    }
}

impl From<TrySendError<Request<RequestBody>>> for Failure {
    fn from(mut failure: TrySendError<Request<RequestBody>>) -> Self {
        let unsent = failure.take_message().map(Box::new);
        let error = failure.into_error();
        // Our side of the request broke: its body, which the homeserver did not send as it should.
        let error = if error.is_user() { Error::new(Kind::BrokenBody) } else { broken(&error) };
        Self { error, unsent }
    }
}

/// Moves the bytes of one connection of HTTP/1.1, shelves it whenever an exchange is over, and closes it when nobody came for long.
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

/// Runs what a connection of HTTP/2 needs on this thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async {
            future.await;
        });
    }
}

/// Less than most servers keep an idle connection, so that few are used in the moment in which they end.
const IDLE: Duration = Duration::from_secs(25);
const MOST_PER_SERVER: usize = 4;
/// Of one worker: idle ones, and as many of HTTP/2.
const MOST: usize = 256;
/// Of the head of an answer of HTTP/2; of HTTP/1.1 the library reads some 400 KiB.
const MAX_HEAD: u32 = 64 * 1024;
/// A server that is gone without a word would otherwise take every request of a while with it.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(10);
