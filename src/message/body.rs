//! Bodies that flow: concrete enums, no box, nothing collected.

use std::cell::Cell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use memchr::memmem;
use tokio::time::{Instant, Sleep};

use crate::error::{Error, Kind};

/// The body of an answer: ours, or the one that flows from upstream.
#[derive(Debug)]
pub struct Body(Source);

#[derive(Debug)]
enum Source {
    Full(Option<Bytes>),
    Stream(Incoming),
    Composed(Box<Composed>),
}

/// A stream with something of ours before and after it.
#[derive(Debug)]
struct Composed {
    before: VecDeque<Bytes>,
    stream: Option<Incoming>,
    /// What ends the part of the stream that is wanted; all of it is where there is none.
    delimiter: Option<Finder>,
    after: Option<Bytes>,
}

/// Looks for a delimiter in pieces that may cut it anywhere.
#[derive(Debug)]
struct Finder {
    delimiter: Bytes,
    /// The end of what came, which may be the delimiter's beginning.
    held: BytesMut,
}

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self(Source::Full(None))
    }

    /// These bytes.
    pub fn full(bytes: Bytes) -> Self {
        Self(Source::Full(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }

    /// What upstream sends. Dropping it before its end closes the upstream connection.
    pub fn stream(incoming: Incoming) -> Self {
        Self(Source::Stream(incoming))
    }

    /// What upstream sends, with something before it and something after its end.
    pub fn around(before: Bytes, incoming: Incoming, after: Bytes) -> Self {
        let composed =
            Composed { before: [before].into(), stream: Some(incoming), delimiter: None, after: Some(after) };
        Self(Source::Composed(Box::new(composed)))
    }

    /// The same with what was read already, and only as far as a delimiter, without which the body breaks off.
    pub fn part(before: Bytes, read: Bytes, incoming: Incoming, delimiter: Bytes, after: Bytes) -> Self {
        let mut finder = Finder { delimiter, held: BytesMut::new() };
        let (found, read) = finder.push(&read);
        let composed = Composed {
            before: [before, read].into(),
            stream: (!found).then_some(incoming),
            delimiter: Some(finder),
            after: Some(after),
        };
        Self(Source::Composed(Box::new(composed)))
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        Self::stream(incoming)
    }
}

impl Composed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            match self.before.pop_front() {
                Some(bytes) if bytes.is_empty() => continue,
                Some(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => {}
            }
            let Some(stream) = &mut self.stream else {
                return Poll::Ready(self.after.take().map(|bytes| Ok(Frame::data(bytes))));
            };
            match (ready!(poll_data(stream, cx)), &mut self.delimiter) {
                (Some(Ok(frame)), Some(finder)) => {
                    let (is_found, bytes) = finder.push(frame.data_ref().map_or(&[], |data| data));
                    self.before.push_back(bytes);
                    if is_found {
                        self.stream = None;
                    }
                }
                (Some(Ok(frame)), None) => return Poll::Ready(Some(Ok(frame))),
                (Some(Err(error)), _) => return Poll::Ready(Some(Err(cut(error)))),
                (None, Some(_)) => return Poll::Ready(Some(Err(Error::new(Kind::OriginGarbled)))),
                (None, None) => self.stream = None,
            }
        }
    }
}

impl Finder {
    /// Whether the delimiter has come, and what can be told to stand before it.
    fn push(&mut self, piece: &[u8]) -> (bool, Bytes) {
        self.held.extend_from_slice(piece);
        match memmem::find(&self.held, &self.delimiter) {
            Some(at) => (true, self.held.split_to(at).freeze()),
            None => {
                let sure = self.held.len().saturating_sub(self.delimiter.len().saturating_sub(1));
                (false, self.held.split_to(sure).freeze())
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.0 {
            Source::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Stream(incoming) => poll_data(incoming, cx).map_err(cut),
            Source::Composed(composed) => composed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Full(bytes) => bytes.is_none(),
            Source::Stream(incoming) => incoming.is_end_stream(),
            Source::Composed(composed) => composed.after.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Stream(incoming) => incoming.size_hint(),
            // Nobody knows where a part ends, and whoever reads it is told by chunks.
            Source::Composed(_) => SizeHint::default(),
        }
    }
}

/// The body of a request on its way upstream: counted, bounded, and given up when it stops flowing.
pub struct RequestBody {
    source: Upload,
    flow: Rc<BodyFlow>,
    limit: u64,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
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
        Self { source, flow: Rc::default(), limit: 0, idle: Duration::MAX, timer: None }
    }

    /// What the client sends: at most `limit` bytes, never `idle` without one. Trailers are dropped: they could carry the very
    /// fields that a policy removes.
    pub fn new(incoming: Incoming, flow: Rc<BodyFlow>, limit: u64, idle: Duration) -> Self {
        let source = if incoming.is_end_stream() { Upload::Nothing } else { Upload::Stream(incoming) };
        Self { source, flow, limit, idle, timer: None }
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
        self.source = Upload::Nothing;
        Poll::Ready(Some(Err(error)))
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
            None => Poll::Ready(None),
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

/// Upstream broke off.
fn cut(error: hyper::Error) -> Error {
    Error::caused_by(Kind::Closed, error)
}

/// The next data frame; trailers end the body.
fn poll_data(incoming: &mut Incoming, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
    match ready!(Pin::new(incoming).poll_frame(cx)) {
        Some(Ok(frame)) if frame.is_data() => Poll::Ready(Some(Ok(frame))),
        Some(Ok(_trailers)) => Poll::Ready(None),
        other => Poll::Ready(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delimiter_is_found_wherever_it_is_cut() {
        let text = b"\r\n--abx\r\n--\r\n--abc--\r\n";
        for size in 1..text.len() {
            let mut finder = Finder { delimiter: Bytes::from_static(b"\r\n--abc"), held: BytesMut::new() };
            let mut before = Vec::new();
            let found = text.chunks(size).any(|piece| {
                let (found, bytes) = finder.push(piece);
                before.extend_from_slice(&bytes);
                found
            });
            assert!(found && before == b"\r\n--abx\r\n--", "{size}: {before:?}");
        }
    }
}
