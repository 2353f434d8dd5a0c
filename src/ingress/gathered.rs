//! Gathers what an HTTP/2 connection writes within one turn, so that the answers to many requests leave in one TLS record and one
//! system call. The library flushes behind each piece of a body.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a TLS record holds at most.
const MOST: usize = 16 * 1024;

/// Room for the answers to a few requests.
const FIRST: usize = 4 * 1024;

/// A stream, and what was written and has not left.
#[derive(Debug)]
pub struct Gathered<IO> {
    io: IO,
    out: BytesMut,
}

/// The same stream in the hands of whoever writes. To flush it does nothing: whoever drives the writer drains it after each turn.
#[derive(Debug)]
pub struct Shared<IO>(pub Rc<RefCell<Gathered<IO>>>);

impl<IO> Gathered<IO> {
    /// A stream to which nothing has been written.
    pub fn new(io: IO) -> Self {
        Self { io, out: BytesMut::new() }
    }
}

impl<IO: AsyncWrite + Unpin> Gathered<IO> {
    /// Sends what was gathered.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let sent = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(sent);
        }
        // One that waits for its client holds no memory for it.
        self.out = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        if self.out.len() + length > MOST {
            ready!(self.poll_empty(cx))?;
        }
        if length > MOST {
            return Pin::new(&mut self.io).poll_write_vectored(cx, pieces);
        }
        if self.out.is_empty() {
            self.out.reserve(length.max(FIRST));
        }
        pieces.iter().for_each(|piece| self.out.extend_from_slice(piece));
        Poll::Ready(Ok(length))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Shared<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Shared<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.0.borrow_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes so many bytes at once, and shows each write, and what else is asked of it.
    #[derive(Default)]
    struct Slow {
        takes: usize,
        writes: Vec<Vec<u8>>,
        is_gone: bool,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            if self.is_gone {
                return Poll::Ready(Ok(0));
            }
            let now = std::mem::take(&mut self.takes).min(buf.len());
            if now == 0 {
                return Poll::Pending;
            }
            self.writes.push(buf[..now].to_vec());
            Poll::Ready(Ok(now))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.writes.push(b"flush".to_vec());
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.writes.push(b"end".to_vec());
            Poll::Ready(Ok(()))
        }
    }

    fn slow(takes: usize) -> (Rc<RefCell<Gathered<Slow>>>, Shared<Slow>) {
        let gathered = Rc::new(RefCell::new(Gathered::new(Slow { takes, ..Slow::default() })));
        (Rc::clone(&gathered), Shared(gathered))
    }

    #[test]
    fn small_writes_leave_as_one_and_a_large_one_behind_them() {
        let ((gathered, mut writer), cx) = (slow(usize::MAX), &mut Context::from_waker(Waker::noop()));
        for piece in ["one", "two"] {
            assert!(matches!(Pin::new(&mut writer).poll_write(cx, piece.as_bytes()), Poll::Ready(Ok(3))));
            assert!(Pin::new(&mut writer).poll_flush(cx).is_ready());
        }
        assert!(gathered.borrow().io.writes.is_empty());
        assert!(matches!(gathered.borrow_mut().poll_drain(cx), Poll::Ready(Ok(()))));
        assert_eq!(gathered.borrow().io.writes, [&b"onetwo"[..], b"flush"]);
        gathered.borrow_mut().io.takes = 3;
        assert!(Pin::new(&mut writer).poll_write(cx, b"six").is_ready());
        let large = vec![7; MOST + 1];
        assert!(Pin::new(&mut writer).poll_write(cx, &large).is_pending(), "it went before what was written before");
        assert_eq!(gathered.borrow().io.writes[2], b"six");
        gathered.borrow_mut().io.takes = usize::MAX;
        assert!(
            matches!(Pin::new(&mut writer).poll_write(cx, &large), Poll::Ready(Ok(length)) if length == large.len())
        );
        assert_eq!(gathered.borrow().io.writes[3], large);
    }

    #[test]
    fn nothing_is_lost_where_the_other_side_takes_little_or_the_end_comes() {
        let ((gathered, mut writer), cx) = (slow(2), &mut Context::from_waker(Waker::noop()));
        assert!(Pin::new(&mut writer).poll_write(cx, b"three").is_ready());
        assert!(gathered.borrow_mut().poll_drain(cx).is_pending());
        assert!(Pin::new(&mut writer).poll_shutdown(cx).is_pending());
        gathered.borrow_mut().io.takes = usize::MAX;
        assert!(Pin::new(&mut writer).poll_shutdown(cx).is_ready());
        assert_eq!(gathered.borrow().io.writes, [&b"th"[..], b"ree", b"flush", b"end"]);
    }

    #[test]
    fn no_more_is_gathered_than_a_record_holds() {
        let ((gathered, mut writer), cx) = (slow(usize::MAX), &mut Context::from_waker(Waker::noop()));
        let nearly = vec![7; MOST - 3];
        assert!(Pin::new(&mut writer).poll_write(cx, &nearly).is_ready());
        assert!(Pin::new(&mut writer).poll_write(cx, b"one").is_ready());
        assert!(gathered.borrow().io.writes.is_empty());
        assert!(Pin::new(&mut writer).poll_write(cx, b"two").is_ready());
        assert_eq!(gathered.borrow().io.writes, [[&nearly[..], b"one"].concat()]);
        assert_eq!(gathered.borrow().out, b"two"[..]);
    }

    #[test]
    fn the_pieces_of_one_write_stay_together() {
        let ((gathered, mut writer), cx) = (slow(usize::MAX), &mut Context::from_waker(Waker::noop()));
        assert!(writer.is_write_vectored());
        let pieces = [b"one", b"two"].map(|piece| IoSlice::new(piece));
        assert!(matches!(Pin::new(&mut writer).poll_write_vectored(cx, &pieces), Poll::Ready(Ok(6))));
        assert!(gathered.borrow_mut().poll_drain(cx).is_ready());
        assert_eq!(gathered.borrow().io.writes, [&b"onetwo"[..], b"flush"]);
    }

    #[test]
    fn one_that_has_sent_all_holds_no_memory_and_one_that_takes_nothing_fails() {
        let ((gathered, mut writer), cx) = (slow(usize::MAX), &mut Context::from_waker(Waker::noop()));
        assert!(Pin::new(&mut writer).poll_write(cx, b"one").is_ready());
        assert!(gathered.borrow_mut().poll_drain(cx).is_ready());
        assert_eq!(gathered.borrow().out.capacity(), 0);
        gathered.borrow_mut().io.is_gone = true;
        assert!(Pin::new(&mut writer).poll_write(cx, b"two").is_ready());
        let drained = gathered.borrow_mut().poll_drain(cx);
        assert!(matches!(drained, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::WriteZero));
    }
}
