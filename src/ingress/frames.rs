//! Counts the HTTP/2 frames that ask for work and bring nothing: the library bounds resets, heads and empty data, but answers
//! any number of pings and settings.

use tokio::time::Instant;

/// So many may come at once.
const BURST: u32 = 500;

/// And so many each second from then on. A client that is well sends one in many seconds.
const PER_SECOND: u32 = 20;

/// What stands before the first frame.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// Follows the frames of one connection.
#[derive(Debug)]
pub struct Frames {
    /// Bytes until the next frame begins.
    skip: usize,
    /// As much of the next frame's head as has come.
    head: [u8; 9],
    have: usize,
    left: u32,
    refilled: Instant,
}

impl Frames {
    /// Before the first byte of a connection.
    pub fn new() -> Self {
        Self { skip: PREFACE, head: [0; 9], have: 0, left: BURST, refilled: Instant::now() }
    }

    /// Reads on; false once too many frames were for nothing.
    pub fn read(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (self.head.len() - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have < self.head.len() {
                return true;
            }
            self.have = 0;
            let [high, middle, low, kind, ..] = self.head;
            self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
            if is_for_nothing(kind) && !self.pay() {
                return false;
            }
        }
    }

    fn pay(&mut self) -> bool {
        if self.left == 0 {
            let since = self.refilled.elapsed().as_secs_f64() * f64::from(PER_SECOND);
            // A float becomes the nearest number that fits.
            self.left = (since as u32).min(BURST);
            self.refilled = Instant::now();
        }
        let can = self.left > 0;
        self.left = self.left.saturating_sub(1);
        can
    }
}

/// PRIORITY, SETTINGS, PING, and what no RFC knows. Heads, data and their windows are the library's to bound.
fn is_for_nothing(kind: u8) -> bool {
    !matches!(kind, 0 | 1 | 3 | 7 | 8 | 9)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, 0, 0, 0, 0, 0][..], &vec![0xff; usize::from(length)]].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn pings_are_counted_and_work_is_not_in_whatever_pieces_they_come() {
        for piece in [1, 7, 9, 1000] {
            let mut frames = Frames::new();
            let mut all = |bytes: &[u8]| bytes.chunks(piece).all(|piece| frames.read(piece));
            assert!(all(&[b'x'; PREFACE]));
            for _ in 0..BURST {
                assert!(all(&frame(6, 8)) && all(&frame(0, 200)) && all(&frame(8, 4)));
            }
            assert!(!all(&frame(6, 8)), "in pieces of {piece}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_now_and_then_may_always_ask() {
        let mut frames = Frames::new();
        assert!(frames.read(&[b'x'; PREFACE]));
        for _ in 0..10 * BURST {
            assert!(frames.read(&frame(6, 8)));
            tokio::time::advance(Duration::from_millis(100)).await;
        }
    }
}
