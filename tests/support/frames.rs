//! HTTP/2 frames as anybody could write them, without any check.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::time::Duration;

use mantlet_testkit::http::Connection;

/// Types of frames.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags of HEADERS and DATA.
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// What begins a connection.
pub fn preface() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, b"")].concat()
}

/// Fields as literals that enter no table.
pub fn block<'a>(fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        string(&mut block, name);
        string(&mut block, value);
    }
    block
}

fn string(block: &mut Vec<u8>, bytes: &[u8]) {
    let mut left = bytes.len();
    if left < 127 {
        block.push(left as u8);
    } else {
        block.push(127);
        left -= 127;
        while left >= 128 {
            block.push((left % 128) as u8 | 128);
            left /= 128;
        }
        block.push(left as u8);
    }
    block.extend_from_slice(bytes);
}

/// A head in as many frames as it takes.
pub fn head(stream: u32, block: &[u8], flags: u8) -> Vec<u8> {
    let mut pieces = block.chunks(16 * 1024).peekable();
    let first = pieces.next().unwrap_or_default();
    let end = |is_last: bool| if is_last { END_HEADERS } else { 0 };
    let mut frames = frame(HEADERS, flags | end(pieces.peek().is_none()), stream, first);
    while let Some(piece) = pieces.next() {
        frames.extend(frame(CONTINUATION, end(pieces.peek().is_none()), stream, piece));
    }
    frames
}

/// A connection with one request: lines of fields, an empty line, the content, an empty line, lines of trailers.
pub fn request(text: &[u8]) -> Vec<u8> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.windows(2).position(|two| two == b"\n\n") {
        parts.push(&rest[..end]);
        rest = &rest[end + 2..];
    }
    parts.push(rest.strip_suffix(b"\n").unwrap_or(rest));
    let fields = |part: &[u8]| {
        let lines = part.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| {
            // The colon of a pseudo field is of its name.
            let at = (1..line.len()).find(|at| line[*at..].starts_with(b":")).unwrap_or(line.len() - 1);
            let at = if line.starts_with(b": ") { 0 } else { at };
            (line[..at].to_vec(), line[at + 1..].strip_prefix(b" ").unwrap_or(&line[at + 1..]).to_vec())
        });
        let lines: Vec<_> = lines.collect();
        block(lines.iter().map(|(name, value)| (&name[..], &value[..])))
    };
    let (body, trailers) = (parts.get(1).copied().unwrap_or_default(), parts.get(2).copied().unwrap_or_default());
    let end = |is_last: bool| if is_last { END_STREAM } else { 0 };
    let mut frames = preface();
    frames.extend(head(1, &fields(parts[0]), end(body.is_empty() && trailers.is_empty())));
    if !body.is_empty() {
        frames.extend(frame(DATA, end(trailers.is_empty()), 1, body));
    }
    if !trailers.is_empty() {
        frames.extend(head(1, &fields(trailers), END_STREAM));
    }
    frames
}

/// Reads frames until stream 1 or the connection has ended; gives the status, where it is one of those that HPACK has a
/// number for.
pub fn first_status(client: &mut Connection, within: Duration) -> Option<u16> {
    client.set_timeout(within);
    let (mut pending, mut status) = (Vec::new(), None);
    loop {
        while let Some((kind, flags, stream, payload)) = take(&mut pending) {
            match (kind, stream) {
                (HEADERS, 1) => status = status.or(indexed_status(&payload)),
                (RST_STREAM, 1) | (GOAWAY, _) => return status,
                _ => {}
            }
            if stream == 1 && matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                return status;
            }
        }
        match client.read_some() {
            Ok(more) if !more.is_empty() => pending.extend(more),
            _ => return status,
        }
    }
}

/// Takes a whole frame off the front: type, flags, stream, payload.
pub fn take(pending: &mut Vec<u8>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let [a, b, c, kind, flags, s, t, u, v, ..] = pending[..] else { return None };
    let end = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
    if pending.len() < end {
        return None;
    }
    let payload = pending[9..end].to_vec();
    pending.drain(..end);
    Some((kind, flags, u32::from_be_bytes([s, t, u, v]) & 0x7fff_ffff, payload))
}

fn indexed_status(block: &[u8]) -> Option<u16> {
    // A change of the table's size may stand first.
    let first = block.iter().find(|byte| *byte & 0xe0 != 0x20)?;
    match first {
        0x88..=0x8e => Some([200, 204, 206, 304, 400, 404, 500][usize::from(first - 0x88)]),
        _ => None,
    }
}
