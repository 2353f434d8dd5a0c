//! The bodies of answers, which flow: a concrete enum, no box, nothing collected.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use memchr::memmem;

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

/// Upstream broke off.
fn cut(error: hyper::Error) -> Error {
    Error::caused_by(Kind::Closed, error)
}

/// The next data frame; trailers end the body.
pub(super) fn poll_data(
    incoming: &mut Incoming,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
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
