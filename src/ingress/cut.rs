//! Takes fields out of a head before the library reads it.
//!
//! Only a line that the library would take for one field with exactly this name is taken out, and always whole: whatever it would
//! refuse is left for it to refuse, and what is left reads as if the client had not sent the line.

use std::ops::Range;

use super::heads::{Heads, Whole};

/// Reads on, and closes the gaps that fields with such names leave in the next head, if it is there from its first byte to its
/// last and is not too large. Gives how many bytes are left.
pub fn cut(
    heads: &mut Heads,
    bytes: &mut [u8],
    is_small: impl Fn(&Whole) -> bool,
    takes: impl Fn(&[u8]) -> bool,
) -> usize {
    let mut gaps = Gaps { all: [(0, 0); MOST], count: 0 };
    let head = heads.read(bytes, |line| {
        let mut name = [0; LONGEST];
        let is_gone = name_of(&bytes[line.clone()], &mut name).is_some_and(&takes) && is_field(bytes, &line);
        if is_gone {
            gaps.add(line);
        }
    });
    if head.is_some_and(|head| is_small(&head)) { gaps.close(bytes) } else { bytes.len() }
}

/// Where bytes are taken out, in their order.
struct Gaps {
    all: [(usize, usize); MOST],
    count: usize,
}

impl Gaps {
    fn add(&mut self, line: Range<usize>) {
        match self.all[..self.count].last_mut() {
            Some((_, end)) if *end == line.start => *end = line.end,
            _ => {
                if let Some(gap) = self.all.get_mut(self.count) {
                    *gap = (line.start, line.end);
                    self.count += 1;
                }
            }
        }
    }

    fn close(&self, bytes: &mut [u8]) -> usize {
        let gaps = &self.all[..self.count];
        let Some((first, _)) = gaps.first() else { return bytes.len() };
        let next = gaps.iter().skip(1).map(|(start, _)| *start).chain([bytes.len()]);
        let mut to = *first;
        for ((_, from), until) in gaps.iter().zip(next) {
            bytes.copy_within(*from..until, to);
            to += until - from;
        }
        to
    }
}

/// The name in front of a colon, in lower case, if it is not longer than any that is worth it.
fn name_of<'n>(line: &[u8], name: &'n mut [u8; LONGEST]) -> Option<&'n [u8]> {
    let mut length = 0;
    for (byte, lower) in line.iter().zip(name.iter_mut()) {
        *lower = TOKEN[usize::from(*byte)];
        if *lower == 0 {
            break;
        }
        length += 1;
    }
    (length > 0 && line.get(length) == Some(&b':')).then(|| &name[..length])
}

/// Whether this line is one field as RFC 9112 (section 5) wants it, with its `\r\n`, and does not go on in the next line.
fn is_field(bytes: &[u8], line: &Range<usize>) -> bool {
    let goes_on = matches!(bytes.get(line.end), Some(b' ' | b'\t'));
    !goes_on && bytes[line.clone()].strip_suffix(b"\r\n").is_some_and(is_text)
}

/// Whether no byte is a control character, tabs aside. Looks at eight at once, and again at each where one of them may be.
fn is_text(bytes: &[u8]) -> bool {
    let (eights, rest) = bytes.as_chunks::<8>();
    let suspects = eights.iter().fold(0, |suspects, eight| suspects | controls(u64::from_ne_bytes(*eight)));
    let is_good = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    (suspects == 0 || eights.as_flattened().iter().all(is_good)) && rest.iter().all(is_good)
}

/// Not 0 if one of eight bytes is below 0x20, or 0x7f.
fn controls(eight: u64) -> u64 {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    let below = |value: u64, bound: u64| value.wrapping_sub(EACH * bound) & !value & (EACH * 0x80);
    below(eight, 0x20) | below(eight ^ (EACH * 0x7f), 1)
}

/// In lower case, what a name is made of (RFC 9110, section 5.6.2); 0 for all else.
const TOKEN: [u8; 256] = {
    let (mut table, mut at) = ([0; 256], 0);
    while at < 128 {
        let byte = at as u8;
        if byte.is_ascii_alphanumeric()
            || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
        {
            table[at] = byte.to_ascii_lowercase();
        }
        at += 1;
    }
    table
};

/// Longer than the names of fields that are removed.
const LONGEST: usize = 48;

/// More gaps than heads have. Further fields are left to the edits.
const MOST: usize = 24;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::convert::Infallible;

    use http::{Request, Response};
    use http_body_util::Empty;
    use hyper::body::{Bytes, Incoming};
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// What the library makes of these bytes: the fields of each request, until it refuses one.
    async fn read_by_the_library(bytes: &[u8]) -> Vec<Vec<(String, Vec<u8>)>> {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let seen = RefCell::new(Vec::new());
        let service = service_fn(async |request: Request<Incoming>| {
            let mut fields: Vec<_> =
                request.headers().iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
            fields.sort();
            seen.borrow_mut().push(fields);
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        });
        let connection = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(server), service);
        let write = async {
            let _ = client.write_all(bytes).await;
            let _ = client.shutdown().await;
        };
        let _ = tokio::join!(connection, write);
        seen.into_inner()
    }

    #[tokio::test]
    async fn the_library_reads_the_same_less_what_was_taken() {
        let pieces = [
            "Secret: a",
            "SECRET:",
            "secret-b:\tc ",
            "Secret: \u{e9}",
            "Host: hs",
            "Accept: */*",
            "X:",
            "A: secret: b",
            " fold: c",
            "\tfold",
            "secret : a",
            "Secret\0: a",
            "secret: \0",
            ": a",
            "secret",
            "x\rsecret: a",
            "Secret(: a",
            "Cookie: secret",
        ];
        let ends = ["\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r\r\n"];
        let (mut state, mut taken, mut refused) = (1_u32, 0, 0);
        let mut random = |below: usize| {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            (state >> 16) as usize % below
        };
        for _ in 0..3_000 {
            // Most lines are good ones, or few heads would be.
            let mut text = "GET /secret: HTTP/1.1\r\n".to_owned();
            for _ in 0..random(7) {
                let among = if random(6) == 0 { pieces.len() } else { 8 };
                text.push_str(pieces[random(among)]);
                let among = if random(6) == 0 { ends.len() } else { 1 };
                text.push_str(ends[random(among)]);
            }
            text.push_str("\r\n");
            let mut bytes = text.clone().into_bytes();
            let left = cut(&mut Heads::default(), &mut bytes, |_| true, is_secret);
            taken += usize::from(left < bytes.len());
            let [mut before, mut after] =
                [read_by_the_library(text.as_bytes()).await, read_by_the_library(&bytes[..left]).await];
            refused += usize::from(before.is_empty());
            // What was left although it could have been taken goes by the edits.
            for fields in before.iter_mut().chain(&mut after) {
                fields.retain(|(name, _)| !is_secret(name.as_bytes()));
            }
            assert_eq!(after, before, "{text:?}");
        }
        assert!(taken > 1_000 && refused > 500, "{taken} {refused}");
    }

    fn is_secret(name: &[u8]) -> bool {
        name.starts_with(b"secret")
    }

    fn without_secrets(text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        let left = cut(&mut Heads::default(), &mut bytes, |_| true, is_secret);
        bytes.truncate(left);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_go_whole_and_nothing_else_moves() {
        for (before, after) in [
            ("GET /secret HTTP/1.1\r\nHost: hs\r\n\r\n", "GET /secret HTTP/1.1\r\nHost: hs\r\n\r\n"),
            ("GET / HTTP/1.1\r\nSecret: a\r\nHost: hs\r\n\r\n", "GET / HTTP/1.1\r\nHost: hs\r\n\r\n"),
            ("GET / HTTP/1.1\r\nHost: hs\r\nsecret:\r\n\r\n", "GET / HTTP/1.1\r\nHost: hs\r\n\r\n"),
            (
                "\r\nPUT / HTTP/1.1\r\nSECRET: a\r\nSecret-2: b: c\r\nA: b\r\nsecret: \u{e9}\td\r\nContent-Length: 13\r\n\r\nSecret: a\r\nSe",
                "\r\nPUT / HTTP/1.1\r\nA: b\r\nContent-Length: 13\r\n\r\nSecret: a\r\nSe",
            ),
            // The next head waits for its turn.
            (
                "GET / HTTP/1.1\r\nsecret: a\r\n\r\nGET / HTTP/1.1\r\nsecret: a\r\n\r\n",
                "GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nsecret: a\r\n\r\n",
            ),
            ("GET / HTTP/1.1\nHost: hs\nsecret: a\r\n\n", "GET / HTTP/1.1\nHost: hs\n\n"),
        ] {
            assert_eq!(without_secrets(before), after, "{before:?}");
        }
    }

    #[test]
    fn control_characters_are_found_wherever_they_stand() {
        for length in 0..20 {
            let good = vec![b'a'; length];
            assert!(is_text(&good));
            for (place, byte) in (0..length).flat_map(|place| (0..=255).map(move |byte| (place, byte))) {
                let mut text = good.clone();
                text[place] = byte;
                assert_eq!(is_text(&text), byte == b'\t' || !byte.is_ascii_control(), "{byte} at {place} of {length}");
            }
        }
    }

    #[test]
    fn what_the_library_would_refuse_is_left_for_it_to_refuse() {
        for line in [
            "secret : a",
            "secret",
            "secret a: b",
            " secret: a",
            ": a",
            "secret: a\0b",
            "secret: a\x7f",
            "secret: a\rb",
            "secret: a\r\n b",
            "secret: a\r\n\tb",
            "secr\u{e9}t: a",
            "secret\0: a",
            "x\r\n secret: a",
            "secret=: a:",
        ] {
            let text = format!("GET / HTTP/1.1\r\nHost: hs\r\n{line}\r\nA: b\r\n\r\n");
            assert_eq!(without_secrets(&text), text);
        }
        let bare = "GET / HTTP/1.1\r\nsecret: a\nA: b\r\n\r\n";
        assert_eq!(without_secrets(bare), bare, "a line without its carriage return");
        let first = "secret: / HTTP/1.1\r\nA: b\r\n\r\n";
        assert_eq!(without_secrets(first), first, "the first line is no field");
    }
}
