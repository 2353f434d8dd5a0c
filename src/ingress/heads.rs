//! Follows the heads of an HTTP/1 connection, for what the library repairs without a word: of a Content-Length beside a
//! Transfer-Encoding, and of a second Content-Length, nothing is left in the request that it hands over (RFC 9112, section 6.3).
//!
//! Where a head ends is as the library sees it: at the first empty line behind a line that is not, and `\n` ends a line with or
//! without `\r`. Whatever else it may take offence at ends the connection, and nothing follows.

use std::ops::Range;

use memchr::memchr_iter;

/// Longer than any line that counts here. Of one that comes in pieces, no more is kept.
const LINE: usize = 64;

/// Follows one connection.
#[derive(Debug)]
pub struct Heads {
    at: At,
    /// The front of a line whose end has not come.
    line: [u8; LINE],
    /// The length of what has come of it.
    have: usize,
    /// How many lines the head has behind its first.
    fields: usize,
    length: Option<u64>,
    is_chunked: bool,
    is_unclear: bool,
    /// Heads that can be read in one way, until the first that cannot.
    clear: u64,
    handed: u64,
}

/// A head that came in one piece.
#[derive(Debug, PartialEq, Eq)]
pub struct Whole {
    /// Where it stands, from the first byte of its request line to the end of the empty line.
    pub at: Range<usize>,
    /// How many fields it has.
    pub fields: usize,
}

#[derive(Clone, Copy, Debug)]
enum At {
    /// Before a request line, where empty lines may stand.
    Start,
    /// Behind it.
    Fields,
    /// So much of a body is still to come.
    Body(u64),
    /// Whatever comes is not looked at: the connection ends with this request.
    Last,
}

impl Default for Heads {
    /// Before the first byte of a connection.
    fn default() -> Self {
        Self {
            at: At::Start,
            line: [0; LINE],
            have: 0,
            fields: 0,
            length: None,
            is_chunked: false,
            is_unclear: false,
            clear: 0,
            handed: 0,
        }
    }
}

impl Heads {
    /// Reads on. Gives the first head that is among these bytes from its first to its last, if the library hands it over next.
    /// Before, it may have told where fields of it stand.
    pub fn read(&mut self, bytes: &[u8], mut field: impl FnMut(Range<usize>)) -> Option<Whole> {
        let (mut whole, mut begin) = (None, 0);
        while begin < bytes.len() {
            match self.at {
                At::Last => break,
                At::Body(left) => {
                    let skipped = left.min((bytes.len() - begin) as u64);
                    self.at = if skipped == left { At::Start } else { At::Body(left - skipped) };
                    begin += skipped as usize;
                }
                At::Start | At::Fields => {
                    let is_next = self.handed == self.clear && whole.is_none();
                    let (end, head) = self.read_head(begin, bytes, is_next, &mut field);
                    whole = whole.or(head.map(|at| Whole { at, fields: self.fields }));
                    begin = end;
                }
            }
        }
        whole
    }

    /// Reads lines until a head ends, and tells where it does. If it is wanted and began here, tells where it and its fields stand.
    fn read_head(
        &mut self,
        mut begin: usize,
        bytes: &[u8],
        is_wanted: bool,
        field: &mut impl FnMut(Range<usize>),
    ) -> (usize, Option<Range<usize>>) {
        let (mut head, first) = (None, begin);
        for end in memchr_iter(b'\n', &bytes[first..]).map(|end| first + end) {
            let (is_outside, is_whole) = (matches!(self.at, At::Start), self.have == 0);
            if is_whole {
                self.end_line(&bytes[begin..end], end - begin);
            } else {
                self.keep(&bytes[begin..end]);
                let (line, length) = (self.line, std::mem::take(&mut self.have));
                self.end_line(&line[..length.min(LINE)], length);
            }
            let (line, is_inside) = (begin..end + 1, matches!(self.at, At::Fields));
            begin = line.end;
            match (is_outside, is_inside) {
                (true, true) => head = (is_wanted && is_whole).then_some(line.start),
                (false, true) if head.is_some() => field(line),
                (false, false) => return (begin, head.map(|head| head..begin)),
                (true | false, _) => {}
            }
        }
        self.keep(&bytes[begin..]);
        (bytes.len(), None)
    }

    /// Whether the next request that the library hands over was framed in one way only. To be asked once for each.
    pub fn is_next_clear(&mut self) -> bool {
        self.handed += 1;
        self.handed <= self.clear
    }

    fn keep(&mut self, bytes: &[u8]) {
        if let Some(room) = self.line.get_mut(self.have..) {
            let kept = room.len().min(bytes.len());
            room[..kept].copy_from_slice(&bytes[..kept]);
        }
        self.have += bytes.len();
    }

    /// A line, or the front of one that was so long.
    fn end_line(&mut self, line: &[u8], length: usize) {
        let is_empty = matches!(line, [] | b"\r");
        match self.at {
            At::Start if !is_empty => (self.at, self.fields) = (At::Fields, 0),
            At::Fields if is_empty => self.end_head(),
            At::Fields => {
                self.fields += 1;
                self.field(line, line.len() == length);
            }
            At::Start | At::Body(_) | At::Last => {}
        }
    }

    fn field(&mut self, line: &[u8], is_whole: bool) {
        // Most fields are told from these two by their first letter.
        match line[0] {
            b'c' | b'C' => {
                let Some(value) = value_of(line, b"content-length") else { return };
                let length = number(value);
                self.is_unclear |= self.length.is_some() || length.is_none() || !is_whole;
                self.length = length;
            }
            b't' | b'T' => self.is_chunked |= value_of(line, b"transfer-encoding").is_some(),
            _ => {}
        }
    }

    fn end_head(&mut self) {
        let (length, is_chunked) = (self.length.take(), self.is_chunked);
        if self.is_unclear || (is_chunked && length.is_some()) {
            self.at = At::Last;
            return;
        }
        self.clear += 1;
        self.at = match length {
            _ if is_chunked => At::Last,
            None | Some(0) => At::Start,
            Some(length) => At::Body(length),
        };
    }
}

/// What stands behind the colon, if this is the name before it. The library refuses space between the two.
fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (front, rest) = line.split_at_checked(name.len())?;
    if front.eq_ignore_ascii_case(name) { rest.strip_prefix(b":") } else { None }
}

fn number(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    let is_number = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::convert::Infallible;

    use http::{Request, Response};
    use http_body_util::{BodyExt, Empty};
    use hyper::body::{Bytes, Incoming};
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::AsyncWriteExt;

    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nHost: hs\r\nCookie: c\r\nTE: trailers\r\nContent-Lengths: 3\r\n\r\n";

    fn post(fields: &str, body: &str) -> String {
        format!("POST / HTTP/1.1\r\nHost: hs\r\n{fields}\r\n\r\n{body}")
    }

    /// What is said of as many requests, in pieces of each size.
    fn verdicts<const N: usize>(text: &str) -> [bool; N] {
        let told = |piece| {
            let mut heads = Heads::default();
            text.as_bytes().chunks(piece).for_each(|piece| {
                heads.read(piece, drop);
            });
            [(); N].map(|()| heads.is_next_clear())
        };
        let whole = told(text.len());
        for piece in 1..text.len() {
            assert_eq!(told(piece), whole, "{text:?} in pieces of {piece}");
        }
        whole
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_unclear_and_so_is_what_follows() {
        let long = format!("Content-Length: {}3", " ".repeat(LINE));
        for fields in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
            "tRANSFER-eNCODING:chunked\r\nX: y\r\ncONTENT-lENGTH:3",
            "Content-Length: 3\r\nX: y\r\nContent-Length: 3",
            "Content-Length: 3\nContent-Length: 4",
            "Content-Length: 3, 3",
            "Content-Length: +3",
            "Content-Length:",
            "Content-Length: 18446744073709551616",
        ] {
            let text = [GET, &post(fields, "abc"), GET].concat();
            assert_eq!(verdicts(&text), [true, false, false, false], "{fields:?}");
        }
        // In one piece it can be seen; what a reader of pieces does not keep, it does not guess.
        let mut heads = Heads::default();
        post(&long, "abc").as_bytes().chunks(7).for_each(|piece| {
            heads.read(piece, drop);
        });
        assert!(!heads.is_next_clear());
    }

    #[test]
    fn a_body_is_no_head_and_behind_it_comes_the_next() {
        let evil = "Content-Length: 1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n";
        let body = format!("{evil}POST / HTTP/1.1\r\n{evil}");
        let posts = post(&format!("Content-Length: {}", body.len()), &body);
        assert_eq!(verdicts(&[&posts, GET, &posts].concat()), [true, true, true, false]);
        let bare = GET.replace("\r\n", "\n");
        assert_eq!(verdicts(&["\r\n\n", &bare, "\n\r\n", &posts, &bare].concat()), [true, true, true, false]);
        assert_eq!(verdicts(&[&post("Content-Length: 0", ""), GET].concat()), [true, true, false]);
        let named = "X-Content-Length: 3\r\nContent-Length-X: 3\r\nTransfer-Encodings: a\r\nT: b\r\nC: d";
        assert_eq!(verdicts(&[&post(named, ""), GET].concat()), [true, true, false]);
        assert_eq!(verdicts(&[&post("Transfer-Encoding: chunked", "0\r\n\r\n"), GET].concat()), [true, false]);
    }

    #[test]
    fn a_head_in_one_piece_is_found_if_it_is_the_next() {
        let found =
            |heads: &mut Heads, text: &str| heads.read(text.as_bytes(), drop).map(|whole| (whole.at, whole.fields));
        let mut heads = Heads::default();
        let two = ["\r\n\n", GET, GET].concat();
        assert_eq!(found(&mut heads, &two), Some((3..3 + GET.len(), 4)));
        assert_eq!(found(&mut heads, GET), None, "two are waiting to be handed over");
        for _ in 0..3 {
            assert!(heads.is_next_clear());
        }
        let post = post("Content-Length: 5", "a\r\n\r\n");
        assert_eq!(found(&mut heads, &post[..post.len() - 2]), Some((0..post.len() - 5, 2)));
        assert!(heads.is_next_clear());
        assert_eq!(found(&mut heads, &["\r\n", GET].concat()), Some((2..2 + GET.len(), 4)), "behind a body");
        assert!(heads.is_next_clear());
        for split in 1..GET.len() {
            assert_eq!(found(&mut heads, &GET[..split]), None);
            assert_eq!(found(&mut heads, &GET[split..]), None, "in two pieces, the second from {split}");
            assert!(heads.is_next_clear());
        }
        assert_eq!(found(&mut heads, &GET.replace("\r\n", "\n")), Some((0..GET.len() - 6, 4)));
    }

    /// Hands bytes to the library in these pieces, and tells of each request that it makes of them whether it was clear.
    async fn told_by_the_library(text: &str, piece: usize) -> Vec<bool> {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let (heads, told) = (RefCell::new(Heads::default()), RefCell::new(Vec::new()));
        let service = service_fn(async |request: Request<Incoming>| {
            told.borrow_mut().push(heads.borrow_mut().is_next_clear());
            let _ = request.into_body().collect().await;
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        });
        let connection = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(server), service);
        let write = async {
            for piece in text.as_bytes().chunks(piece) {
                heads.borrow_mut().read(piece, drop);
                if client.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            client.shutdown().await
        };
        let _ = tokio::join!(connection, write);
        told.into_inner()
    }

    #[tokio::test]
    async fn the_library_sees_the_same_heads() {
        let (mut state, mut count) = (1_u32, 0);
        let mut random = |below: usize| {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            (state >> 16) as usize % below
        };
        let bodies = ["", "a", "GET / HTTP/1.1\r\n\r\n", "\r\n\r\n", "\n", "Content-Length: 3\r\n\r\n"];
        let ends = ["\r\n", "\n"];
        for _ in 0..500 {
            let mut text = String::new();
            let requests = 1 + random(6);
            for _ in 0..requests {
                text.push_str(["", "\r\n", "\n", "\r\n\n"][random(4)]);
                let body = bodies[random(bodies.len())];
                let length = format!("Content-Length: {}{}", ["", " ", "00"][random(3)], body.len());
                let mut lines = vec!["POST / HTTP/1.1", "Host: hs", "Cookie:", "Te: x", &length];
                lines.truncate(if body.is_empty() { 1 + random(5) } else { 5 });
                for line in lines.into_iter().chain([""]) {
                    text.push_str(line);
                    text.push_str(ends[random(2)]);
                }
                text.push_str(body);
            }
            let told = told_by_the_library(&text, 1 + random(40)).await;
            assert_eq!(told, vec![true; requests], "{text:?}");
            count += requests;
        }
        assert!(count > 1000);
    }
}
