//! HTTP/1.1 as it stands on the wire: heads kept byte for byte, and where each message ends.
//!
//! Lenient on purpose: a recorder must show what was sent, also when it is wrong.

use crate::error::{Error, Result};

/// Field names and values in the order they came. Bytes above 0x7f are read as Latin-1, so none is lost.
pub type Headers = Vec<(String, String)>;

/// The first line and the fields of a message.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// Everything up to and with the empty line.
    pub(crate) bytes: Vec<u8>,
    pub(crate) line: Vec<u8>,
    pub(crate) headers: Headers,
}

impl Head {
    /// Takes a whole head, the empty line included.
    pub(crate) fn parse(bytes: &[u8]) -> Head {
        let mut lines = bytes.split(|&b| b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let line = lines.next().unwrap_or_default().to_vec();
        let headers = lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let colon = line.iter().position(|&b| b == b':').unwrap_or(line.len());
                let value = line.get(colon + 1..).unwrap_or_default().trim_ascii();
                (latin1(&line[..colon]), latin1(value))
            })
            .collect();
        Head { bytes: bytes.to_vec(), line, headers }
    }

    /// The method and the target of a request line, whatever stands between its first and last space.
    pub(crate) fn request(&self) -> (String, Vec<u8>) {
        let first = self.line.iter().position(|&b| b == b' ').unwrap_or(self.line.len());
        let last = self.line.iter().rposition(|&b| b == b' ').unwrap_or(self.line.len());
        (latin1(&self.line[..first]), self.line.get(first + 1..last).unwrap_or_default().to_vec())
    }

    /// The status of a status line.
    pub(crate) fn status(&self) -> Result<u16> {
        let line = latin1(&self.line);
        let mut words = line.split(' ');
        words
            .next()
            .filter(|version| version.starts_with("HTTP/"))
            .and_then(|_| words.next()?.parse().ok())
            .ok_or_else(|| Error::new(format!("this is no HTTP status line: {line:?}")))
    }
}

/// The first value of a field, whatever the case of its name.
pub(crate) fn first<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    all(headers, name).next()
}

/// Every value of a field, in order.
pub(crate) fn all<'a>(headers: &'a Headers, name: &str) -> impl Iterator<Item = &'a str> {
    headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Where the head at the start of `bytes` ends, the empty line included.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// How the end of a body is known, and how far it has been read.
#[derive(Debug)]
pub(crate) enum Body {
    Length(u64),
    Chunked(Chunk),
    UntilClose,
}

/// Where in the chunked coding the next byte stands.
#[derive(Debug)]
pub(crate) enum Chunk {
    Size(Vec<u8>),
    Data(u64),
    /// The line end after a chunk's data.
    End(u8),
    /// A line of the trailer section, as far as it has been read.
    Trailer(Vec<u8>),
    Done,
}

impl Body {
    pub(crate) fn of_request(headers: &Headers) -> Result<Body> {
        if is_chunked(headers) {
            return Ok(Body::Chunked(Chunk::Size(Vec::new())));
        }
        Ok(Body::Length(content_length(headers)?.unwrap_or(0)))
    }

    pub(crate) fn of_response(method: &str, status: u16, headers: &Headers) -> Result<Body> {
        if method == "HEAD" || status < 200 || status == 204 || status == 304 {
            return Ok(Body::Length(0));
        }
        if is_chunked(headers) {
            return Ok(Body::Chunked(Chunk::Size(Vec::new())));
        }
        Ok(content_length(headers)?.map_or(Body::UntilClose, Body::Length))
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Body::Length(0) | Body::Chunked(Chunk::Done))
    }

    /// Reads on in `input`, hands out the content, and returns how many bytes belonged to this body.
    pub(crate) fn read(&mut self, input: &[u8], mut content: impl FnMut(&[u8])) -> Result<usize> {
        match self {
            Body::Length(left) => {
                let taken = take(left, input);
                content(&input[..taken]);
                Ok(taken)
            }
            Body::UntilClose => {
                content(input);
                Ok(input.len())
            }
            Body::Chunked(chunk) => {
                let mut at = 0;
                while at < input.len() && !matches!(chunk, Chunk::Done) {
                    at += chunk.read(&input[at..], &mut content)?;
                }
                Ok(at)
            }
        }
    }
}

impl Chunk {
    /// One step: a run of data, or one byte of what stands around it.
    fn read(&mut self, input: &[u8], content: &mut impl FnMut(&[u8])) -> Result<usize> {
        let byte = input[0];
        match self {
            Chunk::Data(left) => {
                let taken = take(left, input);
                content(&input[..taken]);
                if *left == 0 {
                    *self = Chunk::End(b'\r');
                }
                return Ok(taken);
            }
            Chunk::Size(line) if byte == b'\n' => {
                let size = latin1(line);
                let digits = size.split(';').next().unwrap_or_default().trim();
                let size = u64::from_str_radix(digits, 16)
                    .map_err(|e| Error::caused(format!("this is no chunk size: {size:?}"), e))?;
                *self = if size == 0 { Chunk::Trailer(Vec::new()) } else { Chunk::Data(size) };
            }
            Chunk::Size(line) => line.push(byte),
            Chunk::End(wanted) if byte == *wanted => {
                *self = if byte == b'\r' { Chunk::End(b'\n') } else { Chunk::Size(Vec::new()) };
            }
            Chunk::End(_) => return Err(Error::new("a chunk's data is not followed by a line end")),
            Chunk::Trailer(line) if byte == b'\n' => {
                *self = if line.iter().all(|&b| b == b'\r') { Chunk::Done } else { Chunk::Trailer(Vec::new()) };
            }
            Chunk::Trailer(line) => line.push(byte),
            Chunk::Done => return Ok(0),
        }
        Ok(1)
    }
}

/// Finds the requests in a stream of bytes, pipelined or not.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    pending: Vec<u8>,
    body: Option<Body>,
}

/// What a scanner meets, in order.
pub(crate) enum Event<'a> {
    Head(Head),
    Body(&'a [u8]),
    End,
}

impl Scanner {
    /// Reads on. After an error the rest of the connection cannot be told apart into requests.
    pub(crate) fn push(&mut self, bytes: &[u8], mut on: impl FnMut(Event<'_>)) -> Result<()> {
        self.pending.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            let rest = &self.pending[at..];
            match &mut self.body {
                None => {
                    let Some(end) = head_end(rest) else { break };
                    let head = Head::parse(&rest[..end]);
                    let body = Body::of_request(&head.headers);
                    at += end;
                    on(Event::Head(head));
                    self.body = Some(body?);
                }
                Some(body) if body.is_done() => {
                    self.body = None;
                    on(Event::End);
                }
                Some(_) if rest.is_empty() => break,
                Some(body) => at += body.read(rest, |content| on(Event::Body(content)))?,
            }
        }
        self.pending.drain(..at);
        Ok(())
    }

    /// What came after the last whole head or within the last body.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.pending
    }
}

/// Takes as much of `input` as is still wanted.
fn take(left: &mut u64, input: &[u8]) -> usize {
    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    *left -= taken as u64;
    taken
}

fn is_chunked(headers: &Headers) -> bool {
    let last = all(headers, "transfer-encoding").last().and_then(|value| value.rsplit(',').next());
    last.is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"))
}

fn content_length(headers: &Headers) -> Result<Option<u64>> {
    first(headers, "content-length")
        .map(|value| value.parse().map_err(|e| Error::caused(format!("this is no Content-Length: {value:?}"), e)))
        .transpose()
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| char::from(b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(input: &[u8], step: usize) -> Vec<(String, Vec<u8>)> {
        let mut scanner = Scanner::default();
        let (mut found, mut current) = (Vec::new(), None);
        for part in input.chunks(step) {
            let on = |event: Event<'_>| match event {
                Event::Head(head) => current = Some((latin1(&head.line), Vec::new())),
                Event::Body(bytes) => current.as_mut().unwrap().1.extend_from_slice(bytes),
                Event::End => found.push(current.take().unwrap()),
            };
            scanner.push(part, on).unwrap();
        }
        assert!(scanner.pending().is_empty());
        found
    }

    #[test]
    fn finds_pipelined_requests_whatever_the_segments() {
        let wire = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nPOST /b HTTP/1.1\r\nContent-Length: 4\r\n\r\nbodyPUT /c HTTP/1.1\r\n\
            Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\n\r\n\r\n0\r\nTrailer: z\r\n\r\nGET /d HTTP/1.1\r\n\r\n";
        let wanted = [("GET /a", &b""[..]), ("POST /b", b"body"), ("PUT /c", b"abc\r\n"), ("GET /d", b"")];
        for step in [1, 2, 3, 7, 50, wire.len()] {
            let found = scan(wire, step);
            let found: Vec<_> =
                found.iter().map(|(line, body)| (line.trim_end_matches(" HTTP/1.1"), &body[..])).collect();
            assert_eq!(found, wanted, "in segments of {step}");
        }
    }

    #[test]
    fn keeps_the_target_as_it_was_sent() {
        let head = Head::parse(b"GET /a%2Fb c\xe9?x=%23 HTTP/1.1\r\nX: \xe9\r\n\r\n");
        assert_eq!(head.request(), ("GET".into(), b"/a%2Fb c\xe9?x=%23".to_vec()));
        assert_eq!(head.headers, [("X".to_owned(), "\u{e9}".to_owned())]);
    }

    #[test]
    fn names_broken_chunks() {
        let mut scanner = Scanner::default();
        let wire = b"PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
        assert!(scanner.push(wire, |_| ()).unwrap_err().to_string().contains("chunk size"));
    }
}
