//! The PROXY protocol, versions 1 and 2: a hop says, before the first byte of its client, who that client is.

use std::io::{self, ErrorKind};
use std::net::IpAddr;

use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// What a hop says before its client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It speaks for a client at this address.
    Client(IpAddr),
    /// It speaks for itself, or for somebody whom it cannot name.
    Nobody,
}

/// Reads the header and not a byte more.
///
/// # Errors
/// When what comes is no whole header; `UnexpectedEof` with nothing read is a connection that was only tried.
pub async fn read(io: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Said> {
    let mut head = Vec::with_capacity(128);
    while let Missing::Bytes(most) = missing(&head)? {
        let there = io.fill_buf().await?;
        if there.is_empty() {
            return Err(if head.is_empty() { ErrorKind::ConnectionAborted } else { ErrorKind::UnexpectedEof }.into());
        }
        let there = &there[..there.len().min(most)];
        // Version 1 is a line, whose length nobody tells.
        let taken = match there.iter().position(|byte| *byte == b'\n') {
            Some(end) if !is_v2(&head, there) => end + 1,
            _ => there.len(),
        };
        head.extend_from_slice(&there[..taken]);
        io.consume(taken);
    }
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    let (header, length) = ProxyHeader::parse(&head, config).map_err(|_| odd())?;
    if length != head.len() {
        return Err(odd());
    }
    match header.proxied_address() {
        Some(address) if address.protocol == Protocol::Stream => Ok(Said::Client(address.source.ip().to_canonical())),
        Some(_) => Err(odd()),
        None => Ok(Said::Nobody),
    }
}

enum Missing {
    Nothing,
    /// At most so many may be read without reading what follows the header.
    Bytes(usize),
}

fn missing(head: &[u8]) -> io::Result<Missing> {
    if is_v2(head, &[]) {
        let whole = match head.get(14..16) {
            None => V2_FIXED,
            Some(length) => length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)) + V2_FIXED,
        };
        return match whole.checked_sub(head.len()) {
            _ if whole > V2_MOST => Err(odd()),
            None | Some(0) => Ok(Missing::Nothing),
            Some(more) => Ok(Missing::Bytes(more)),
        };
    }
    let known = head.len().min(V1.len());
    if head[..known] != V1[..known] {
        return Err(odd());
    }
    match head.last() {
        Some(b'\n') => Ok(Missing::Nothing),
        _ if head.len() >= V1_MOST => Err(odd()),
        // As much as version 2 may have before it tells its length, or what is left of a line.
        _ if head.is_empty() => Ok(Missing::Bytes(V2.len())),
        _ => Ok(Missing::Bytes(V1_MOST - head.len())),
    }
}

/// Whether these bytes, with those that come next, begin as version 2 does.
fn is_v2(head: &[u8], next: &[u8]) -> bool {
    let first = head.iter().chain(next).take(V2.len());
    let count = (head.len() + next.len()).min(V2.len());
    count > 0 && first.eq(&V2[..count])
}

fn odd() -> io::Error {
    ErrorKind::InvalidData.into()
}

const V1: &[u8] = b"PROXY ";
/// The longest line that the specification knows.
const V1_MOST: usize = 107;
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version, family, length.
const V2_FIXED: usize = 16;
/// Addresses of every kind, and fields that describe a client's TLS; nobody needs more.
const V2_MOST: usize = 4096;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};

    use super::*;

    /// What is made of these bytes, and what is left for whoever reads next; each piece is a packet of its own.
    async fn read_pieces(pieces: &[&[u8]]) -> (Result<Said, ErrorKind>, Vec<u8>) {
        let (mut hop, us) = tokio::io::duplex(64 * 1024);
        let mut us = BufReader::new(us);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let sending = async move {
            for piece in pieces {
                // Nobody may read on after a refusal.
                if hop.write_all(&piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        let (_, said) = tokio::join!(sending, read(&mut us));
        let mut rest = Vec::new();
        if said.is_ok() {
            us.read_to_end(&mut rest).await.unwrap();
        }
        (said.map_err(|error| error.kind()), rest)
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [V2, &[command, family], &length[..], block].concat()
    }

    fn client(address: &str) -> Result<Said, ErrorKind> {
        Ok(Said::Client(address.parse().unwrap()))
    }

    const V4_BLOCK: &[u8] = &[203, 0, 113, 7, 10, 0, 0, 1, 1, 2, 3, 4];

    #[tokio::test]
    async fn both_versions_are_read_in_any_pieces_and_leave_what_follows() {
        let mut v6_block = vec![0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        v6_block.extend([0; 20]);
        let with_fields = [V4_BLOCK, b"\x01\x00\x02h2\x04\x00\x01\n"].concat();
        for (head, said) in [
            (b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n".to_vec(), client("203.0.113.7")),
            (b"PROXY TCP6 2001:db8::1 ::1 4711 443\r\n".to_vec(), client("2001:db8::1")),
            (b"PROXY TCP6 ::ffff:203.0.113.7 ::1 4711 443\r\n".to_vec(), client("203.0.113.7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Ok(Said::Nobody)),
            (b"PROXY UNKNOWN a b c\r\n".to_vec(), Ok(Said::Nobody)),
            (v2(0x21, 0x11, V4_BLOCK), client("203.0.113.7")),
            (v2(0x21, 0x21, &v6_block), client("2001:db8::1")),
            (v2(0x21, 0x11, &with_fields), client("203.0.113.7")),
            (v2(0x20, 0x00, b""), Ok(Said::Nobody)),
            (v2(0x20, 0x11, V4_BLOCK), Ok(Said::Nobody)),
            (v2(0x21, 0x31, &[7; 216]), Ok(Said::Nobody)),
        ] {
            let rest = b"GET / HTTP/1.1\r\n\r\n";
            let whole = [&head[..], rest].concat();
            assert_eq!(read_pieces(&[&whole]).await, (said, rest.to_vec()), "{head:?}");
            for end in 1..whole.len() {
                assert_eq!(read_pieces(&[&whole[..end], &whole[end..]]).await, (said, rest.to_vec()), "{head:?} {end}");
            }
            for end in 1..head.len() {
                let cut = read_pieces(&[&head[..end]]).await.0;
                assert_eq!(cut, Err(ErrorKind::UnexpectedEof), "{head:?} {end}");
            }
        }
        assert_eq!(read_pieces(&[]).await.0, Err(ErrorKind::ConnectionAborted), "only tried");
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused_without_waiting_for_more() {
        for odd in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01",
            b"PROXX",
            b"PROXY TCP4 203.0.113.7 10.0.0.1 4711\r\n",
            b"PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
            b"PROXY TCP4 203.0.113.256 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 203.0.113.7 10.0.0.1 1 65536\r\n",
            b"PROXY TCP4  203.0.113.7 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 203.0.113.7 10.0.0.1 1 2\n",
            b"PROXY \n",
            b"PROXY UDP4 203.0.113.7 10.0.0.1 1 2\r\n",
            &[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100]].concat(),
            &v2(0x31, 0x11, V4_BLOCK),
            &v2(0x22, 0x11, V4_BLOCK),
            &v2(0x21, 0x12, V4_BLOCK),
            &v2(0x21, 0x41, V4_BLOCK),
            &v2(0x21, 0x11, &V4_BLOCK[..11]),
            &v2(0x21, 0x31, &[7; 215]),
            &v2(0x21, 0x11, &[0; 4081])[..16],
            b"\r\n\r\n\0\r\nQUIX",
            b"\r\n\r\nGET / HTTP/1.1\r\n",
        ] {
            assert_eq!(read_pieces(&[odd]).await.0, Err(ErrorKind::InvalidData), "{odd:?}");
        }
    }
}
