//! The bodies of requests, on their way upstream.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::Rest;
use super::body::poll_data;
use crate::error::{Error, Kind};

/// The body of a request on its way upstream: counted, bounded, and given up when it stops flowing.
///
/// On HTTP/1 the next request stands behind it: what nobody wants of it is left to its [`Rest`].
pub struct RequestBody {
    source: Upload,
    flow: Rc<BodyFlow>,
    limit: u64,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    rest: Option<Rc<Rest>>,
}

/// A request on its way upstream: it stays in one place while the layers hand it on.
pub type BoxRequest = Box<Request<RequestBody>>;

/// Where the bytes of a request come from.
enum Upload {
    /// There are none, or no more.
    Nothing,
    /// They flow.
    Stream(Incoming),
    /// They have been read, counted and bounded.
    Whole(Bytes),
}

/// What is known of a request body while it flows, shared with whoever waits for the answer.
#[derive(Debug, Default)]
pub struct BodyFlow {
    bytes: Cell<u64>,
    fault: Cell<Option<Kind>>,
}

impl BodyFlow {
    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Why the body was given up, if it was: what upstream then answers is only an echo of that.
    pub fn fault(&self) -> Option<Kind> {
        self.fault.get()
    }
}

impl RequestBody {
    /// No bytes: for the gateway's own requests.
    pub fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    /// These bytes, which have been read already.
    pub fn whole(bytes: Bytes) -> Self {
        let source = if bytes.is_empty() { Upload::Nothing } else { Upload::Whole(bytes) };
        Self { source, flow: Rc::default(), limit: 0, idle: Duration::MAX, timer: None, rest: None }
    }

    /// What the client sends: at most `limit` bytes, never `idle` without one. Trailers are dropped: they could carry the very
    /// fields that a policy removes. On HTTP/1 with the place where its rest is left.
    pub fn new(incoming: Incoming, flow: Rc<BodyFlow>, limit: u64, idle: Duration, rest: Option<&Rc<Rest>>) -> Self {
        if incoming.is_end_stream() {
            return Self { source: Upload::Nothing, flow, limit, idle, timer: None, rest: None };
        }
        let rest = rest.map(Rc::clone);
        if let Some(rest) = &rest {
            rest.begin();
        }
        Self { source: Upload::Stream(incoming), flow, limit, idle, timer: None, rest }
    }

    /// All of it; `None` where it is longer than `most`.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub async fn whole_within(mut self, most: usize) -> Result<Option<Bytes>, Error> {
        let is_too_long = |lower: u64| usize::try_from(lower).is_ok_and(|lower| lower > most);
        if is_too_long(http_body::Body::size_hint(&self).lower()) {
            return Ok(None);
        }
        let mut collected = BytesMut::new();
        while let Some(frame) = self.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if collected.len() + data.len() > most {
                return Ok(None);
            }
            collected.extend_from_slice(&data);
        }
        Ok(Some(collected.freeze()))
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = || Instant::now().checked_add(self.idle);
        if self.timer.is_none() {
            let Some(deadline) = deadline() else { return Poll::Pending };
            self.timer = Some(Box::pin(tokio::time::sleep_until(deadline)));
        }
        self.timer.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(cx))
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.flow.fault.set(Some(error.kind()));
        if error.kind() == Kind::SlowBody {
            // It has been waited for.
            self.source = Upload::Nothing;
        }
        self.give_up();
        Poll::Ready(Some(Err(error)))
    }

    /// Reads nothing more of it.
    fn give_up(&mut self) {
        let source = std::mem::replace(&mut self.source, Upload::Nothing);
        match (self.rest.take(), source) {
            (Some(rest), Upload::Stream(incoming)) if !incoming.is_end_stream() => rest.leave(incoming),
            (Some(rest), _) => rest.end(),
            (None, _) => {}
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let incoming = match &mut self.source {
            Upload::Nothing => return Poll::Ready(None),
            Upload::Stream(incoming) => incoming,
            Upload::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                self.source = Upload::Nothing;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
        };
        let frame = match poll_data(incoming, cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                ready!(self.poll_idle(cx));
                return self.fail(Error::new(Kind::SlowBody));
            }
        };
        self.timer = None;
        match frame {
            None => {
                self.source = Upload::Nothing;
                Poll::Ready(None)
            }
            Some(Err(error)) => self.fail(Error::caused_by(Kind::BrokenBody, error)),
            Some(Ok(frame)) => {
                let bytes = self.flow.bytes() + frame.data_ref().map_or(0, |data| data.len() as u64);
                self.flow.bytes.set(bytes);
                if bytes > self.limit {
                    return self.fail(Error::new(Kind::TooLarge));
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Upload::Nothing => true,
            Upload::Stream(incoming) => incoming.is_end_stream(),
            Upload::Whole(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Upload::Nothing => SizeHint::with_exact(0),
            Upload::Stream(incoming) => incoming.size_hint(),
            Upload::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}
