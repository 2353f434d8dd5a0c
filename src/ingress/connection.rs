//! Drives one HTTP connection: hyper speaks, the chain answers, the pace ends it.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, Request};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::cut::cut;
use super::frames::Frames;
use super::gathered::{Gathered, Shared};
use super::heads::{Heads, Whole};
use super::listener::{Drain, Listener};
use crate::config::settings::Limits;
use crate::observe::metrics::Refusal;
use crate::snapshot::{Current, Generation};
use crate::stack::canonical::Unclear;
use crate::stack::pace::Phase;
use crate::stack::{Chain, Pace, Peer};

/// Serves HTTP/1.
pub async fn serve_h1<IO: AsyncRead + AsyncWrite + Unpin>(listener: &Listener<impl Chain>, io: IO, peer: Rc<Peer>) {
    let limits = &listener.shared.limits;
    let heads = RefCell::new(Heads::default());
    let cut_by = Cell::new(None);
    let service = service_fn(|mut request: Request<Incoming>| {
        let (chain, peer) = (Rc::clone(&listener.chain), Rc::clone(&peer));
        if !heads.borrow_mut().is_next_clear() {
            request.extensions_mut().insert(Unclear);
        }
        let cut_by = cut_by.take();
        let is_last = is_last(&request);
        async move {
            let mut response = chain.answer(request, peer, cut_by).await;
            if is_last {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let follow = H1 { heads: &heads, cut_by: &cut_by, limits, policy: listener.policy.as_ref() };
    let io = Paced { io, pace: Rc::clone(&peer.pace), follow, parting: Parting::new(&peer) };
    // The same bound holds for the head of a request.
    let buffer = BUFFER + usize::try_from(limits.head_bytes.get()).unwrap_or(BUFFER);
    let mut connection = http1::Builder::new()
        .max_headers(limits.fields)
        .max_buf_size(buffer)
        .serve_connection(TokioIo::new(io), service);
    let ended = attend(listener, &peer.pace, |cx, stop| {
        if stop {
            Pin::new(&mut connection).graceful_shutdown();
        }
        let ended = Pin::new(&mut connection).poll(cx);
        peer.pace.poll_rest(cx);
        ended
    })
    .await;
    match ended {
        Ended::Closed(Ok(())) => {}
        Ended::Closed(Err(error)) => count_refusal(listener, &error),
        Ended::OutOfTime(Phase::Head(_)) => {
            listener.metrics.refused_by_parser(Refusal::Timeout);
            // Written past hyper, which has no request to answer. Whether it arrives is the client's affair.
            let mut io = connection.into_parts().io.into_inner().io;
            if let Ok(Ok(())) = tokio::time::timeout(LAST_WORD, io.write_all(TIMEOUT)).await {
                let _ = tokio::time::timeout(LAST_WORD, io.shutdown()).await;
            }
        }
        Ended::OutOfTime(Phase::New(_) | Phase::Idle(_) | Phase::Busy) => {}
    }
}

/// Serves HTTP/2.
pub async fn serve_h2<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    listener: &Listener<impl Chain>,
    io: IO,
    peer: Rc<Peer>,
) {
    let limits = &listener.shared.limits;
    let (chain, pace) = (Rc::clone(&listener.chain), Rc::clone(&peer.pace));
    let service = service_fn(move |request: Request<Incoming>| {
        let (chain, peer) = (Rc::clone(&chain), Rc::clone(&peer));
        async move { Ok::<_, Infallible>(chain.answer(request, peer, None).await) }
    });
    let io = Paced { io, pace: Rc::clone(&pace), follow: Frames::new(), parting: Parting::Spoken };
    let written = Rc::new(RefCell::new(Gathered::new(io)));
    let head_bytes = u32::try_from(limits.head_bytes.get()).unwrap_or(u32::MAX);
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(head_bytes)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .max_send_buf_size(BUFFER)
        .serve_connection(TokioIo::new(Shared(Rc::clone(&written))), service);
    let mut connection = pin!(connection);
    let ended = attend(listener, &pace, |cx, stop| {
        if stop {
            connection.as_mut().graceful_shutdown();
        }
        let ended = connection.as_mut().poll(cx);
        // What it wrote by then goes out at once; where the client takes no more, its socket wakes us.
        if ended.is_pending()
            && let Poll::Ready(Err(error)) = written.borrow_mut().poll_drain(cx)
        {
            tracing::debug!(listener = %listener.metrics.name(), %error, "an HTTP/2 connection broke");
            return Poll::Ready(Ok(()));
        }
        ended
    })
    .await;
    if let Ended::Closed(Err(error)) = ended {
        tracing::debug!(listener = %listener.metrics.name(), %error, "an HTTP/2 connection ended with an error");
    }
}

/// Whether nothing that follows this request may be taken for another one.
///
/// Nobody but the library reads chunks, so nobody could tell that it saw their end where others do. Behind what can be read in
/// two ways may be the rest of what somebody before us took for the body (RFC 9112, section 6.3). And who asks for a tunnel may
/// send on as if there were one.
fn is_last(request: &Request<Incoming>) -> bool {
    request.headers().contains_key(header::TRANSFER_ENCODING)
        || request.extensions().get::<Unclear>().is_some()
        || request.method() == Method::CONNECT
}

enum Ended {
    Closed(hyper::Result<()>),
    OutOfTime(Phase),
}

/// Polls a connection until it ends, its patience does, or the process's time is over.
async fn attend(
    listener: &Listener<impl Chain>,
    pace: &Pace,
    mut poll: impl FnMut(&mut Context<'_>, bool) -> Poll<hyper::Result<()>>,
) -> Ended {
    let mut stage = Drain::Serving;
    let mut leaves = pin!(left(listener.shared.drain.clone(), stage));
    let mut timer = pin!(tokio::time::sleep_until(pace.deadline().unwrap_or_else(Instant::now)));
    let mut told: Option<Instant> = None;
    std::future::poll_fn(|cx| {
        while let Poll::Ready(next) = leaves.as_mut().poll(cx) {
            stage = next;
            if stage == Drain::Over {
                listener.shared.metrics.drained_exchanges.inc_by(pace.running() as u64);
                return Poll::Ready(Ended::OutOfTime(pace.phase()));
            }
            leaves.set(left(listener.shared.drain.clone(), stage));
        }
        // One whose first request is on its way is served that request: it was let in before the end began.
        let is_due = || stage == Drain::Draining && matches!(pace.phase(), Phase::Busy | Phase::Idle(_));
        let stop = told.is_none() && is_due();
        if stop {
            told = Some(Instant::now());
        }
        if let Poll::Ready(result) = poll(cx, stop) {
            return Poll::Ready(Ended::Closed(result));
        }
        if told.is_none() && is_due() {
            cx.waker().wake_by_ref();
        }
        // Only a deadline that comes nearer has to move the timer; one that went away is seen when the timer fires.
        while let Some(deadline) = farewell(pace, told).or(pace.deadline()) {
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                break;
            }
            if deadline <= Instant::now() {
                return Poll::Ready(Ended::OutOfTime(pace.phase()));
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    })
    .await
}

/// Until when one is waited for that was told of the end: HTTP/2 asks it first whether something is on its way, and one that is
/// gone without a word never answers. All its answers have long been written, for it has long been idle.
fn farewell(pace: &Pace, told: Option<Instant>) -> Option<Instant> {
    match pace.phase() {
        Phase::Idle(since) => told.filter(|told| since + FAREWELL <= *told).map(|told| told + FAREWELL),
        Phase::New(_) | Phase::Head(_) | Phase::Busy => None,
    }
}

/// Where the process stands once it stands no longer where it did.
async fn left(mut drain: watch::Receiver<Drain>, stage: Drain) -> Drain {
    // A process that says nothing any more is over.
    drain.wait_for(|now| *now != stage).await.map_or(Drain::Over, |now| *now)
}

fn count_refusal(listener: &Listener<impl Chain>, error: &hyper::Error) {
    if error.is_parse_too_large() {
        listener.metrics.refused_by_parser(Refusal::HeadTooLarge);
    } else if error.is_parse() {
        listener.metrics.refused_by_parser(Refusal::BadRequest);
    } else if !error.is_closed() && !error.is_incomplete_message() {
        tracing::debug!(listener = %listener.metrics.name(), %error, "a connection ended with an error");
    }
}

/// Tells bytes that come in to the pace of their connection and to who follows them.
struct Paced<IO, F> {
    io: IO,
    pace: Rc<Pace>,
    follow: F,
    parting: Parting,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parting {
    /// Its last word is said before it is closed.
    Spoken,
    /// The same, unless the client ends it first.
    AsTheClientDoes,
    /// To close it says it all: the client has ended its side, and nothing of what it sent is unread.
    Closed,
}

impl Parting {
    fn new(peer: &Peer) -> Self {
        // The end of TLS is a message of its own.
        if peer.tls { Self::Spoken } else { Self::AsTheClientDoes }
    }
}

/// Follows what a client sends.
trait Follow {
    /// Whether a request begins with these bytes, if none is under way.
    const BEGINS: bool;

    /// Looks at new bytes, and gives how many of them are left for the library.
    fn read(&mut self, new: &mut [u8]) -> io::Result<usize>;
}

/// Follows the heads of HTTP/1, and takes out of them what the policy would remove.
struct H1<'a> {
    heads: &'a RefCell<Heads>,
    /// For the next request, whose policy took something out of it: the same has to judge it.
    cut_by: &'a Cell<Option<Arc<Generation>>>,
    limits: &'a Limits,
    policy: Option<&'a Current>,
}

impl Follow for H1<'_> {
    const BEGINS: bool = true;

    fn read(&mut self, new: &mut [u8]) -> io::Result<usize> {
        let mut heads = self.heads.borrow_mut();
        let generation = self.policy.map(Current::load);
        let Some(takes) = generation.as_ref().and_then(|generation| generation.policy.cut()) else {
            heads.read(new, drop);
            return Ok(new.len());
        };
        // One that is too large is refused for what it was.
        let is_small =
            |head: &Whole| head.fields <= self.limits.fields && head.at.len() as u64 <= self.limits.head_bytes.get();
        let left = cut(&mut heads, new, is_small, |name| takes.takes(name));
        if left < new.len() {
            self.cut_by.set(generation);
        }
        Ok(left)
    }
}

/// Ends a connection of HTTP/2 that asks for too much.
impl Follow for Frames {
    const BEGINS: bool = false;

    fn read(&mut self, new: &mut [u8]) -> io::Result<usize> {
        if Frames::read(self, new) {
            Ok(new.len())
        } else {
            Err(io::Error::other("too many frames that bring nothing"))
        }
    }
}

impl<IO: AsyncRead + Unpin, F: Follow + Unpin> AsyncRead for Paced<IO, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let new = &mut buf.filled_mut()[before..];
        if new.is_empty() {
            if matches!(read, Poll::Ready(Ok(()))) && self.parting == Parting::AsTheClientDoes {
                self.parting = Parting::Closed;
            }
            return read;
        }
        self.pace.read(F::BEGINS);
        let left = self.follow.read(new)?;
        buf.set_filled(before + left);
        read
    }
}

impl<IO: AsyncWrite + Unpin, F: Unpin> AsyncWrite for Paced<IO, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.parting {
            Parting::Spoken | Parting::AsTheClientDoes => Pin::new(&mut self.io).poll_shutdown(cx),
            Parting::Closed => Pin::new(&mut self.io).poll_flush(cx),
        }
    }
}

/// Runs the streams of an HTTP/2 connection on the thread of the connection.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        // A task is moved several times before it first runs.
        let future = Box::pin(future);
        tokio::task::spawn_local(async {
            future.await;
        });
    }
}

/// Streams that a client opened and took back before we looked at them, until its connection ends.
const PENDING_RESETS: usize = 20;

/// Streams that a client made us reset by breaking the protocol.
const LOCAL_RESETS: usize = 100;

/// What waits for a client that does not read, per exchange: the library's own bounds would let a few hundred such clients fill
/// the memory of a small machine.
const BUFFER: usize = 64 * 1024;

const FAREWELL: Duration = Duration::from_secs(2);
const LAST_WORD: Duration = Duration::from_secs(1);
const TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
