//! Reads the head of a CONNECT. Synapse writes it as HTTP/1.0, without `Host`, and an IPv6 address without its brackets, which our
//! HTTP library refuses.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use crate::origin::Destination;
use crate::stack::Pace;

/// What somebody asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Connect {
    /// None where it is no host and port that we read.
    pub to: Option<Destination>,
    /// The values of `Proxy-Authorization`.
    pub credentials: Vec<Vec<u8>>,
}

/// Why there is no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The connection ended, or said nothing.
    Gone,
    /// Its patience is over.
    Late,
    /// It is too large, or is none.
    Bad,
}

/// Reads on until the head is whole, or as little as tells that it is none of a CONNECT; what follows it stays in `read`.
///
/// From its first byte on it has the patience of one head, in however many pieces it comes.
pub(super) async fn read(
    io: &mut (impl AsyncRead + Unpin),
    read: &mut BytesMut,
    pace: &Pace,
) -> Result<Option<Connect>, Failure> {
    while WORD.starts_with(&read[..read.len().min(WORD.len())]) {
        if let Some((head, length)) = parse(read)? {
            read.advance(length);
            return Ok(Some(head));
        }
        if read.len() >= MOST {
            return Err(Failure::Bad);
        }
        let deadline = pace.deadline().unwrap_or_else(Instant::now);
        match timeout_at(deadline, io.read_buf(read)).await {
            Ok(Ok(1..)) => pace.read(true),
            Ok(Ok(0) | Err(_)) => return Err(Failure::Gone),
            Err(_late) => return Err(if read.is_empty() { Failure::Gone } else { Failure::Late }),
        }
    }
    Ok(None)
}

/// The head, and its length; `None` if it is not whole yet.
fn parse(bytes: &[u8]) -> Result<Option<(Connect, usize)>, Failure> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let length = match head.parse(&bytes[..bytes.len().min(MOST)]) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Failure::Bad),
    };
    let Some(target) = head.path.filter(|_| head.method == Some("CONNECT")) else { return Err(Failure::Bad) };
    let mut credentials = Vec::new();
    let mut hosts = 0;
    for field in head.headers {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("proxy-authorization") {
            credentials.push(field.value.to_vec());
        } else if is("host") {
            hosts += 1;
        } else if is("content-length") || is("transfer-encoding") {
            // What follows is the tunnel's, whatever these say; others might read it as a body (RFC 9110, section 9.3.6).
            return Err(Failure::Bad);
        }
    }
    if hosts > 1 {
        return Err(Failure::Bad);
    }
    Ok(Some((Connect { to: Destination::parse(target, None), credentials }, length)))
}

/// How a CONNECT begins.
const WORD: &[u8] = b"CONNECT ";
/// A whole head.
const MOST: usize = 16 * 1024;
/// Of one head.
const FIELDS: usize = 64;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::stack::pace::PaceLimits;

    fn pace() -> Pace {
        let [first_byte, head, rest, keep_alive] = [7, 10, 1, 1].map(Duration::from_secs);
        Pace::new(PaceLimits { first_byte, head, rest, keep_alive })
    }

    fn to(head: &str) -> Result<Option<String>, Failure> {
        let to = |to: Option<Destination>| to.map_or("nobody".to_owned(), |to| format!("{} {}", to.host, to.port));
        parse(head.as_bytes()).map(|head| head.map(|(head, _)| to(head.to)))
    }

    #[test]
    fn what_synapse_and_others_write_is_read() {
        let is = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(to("CONNECT push.test:443 HTTP/1.0\r\n\r\n"), is("push.test 443"));
        assert_eq!(to("CONNECT 2001:db8::7:8448 HTTP/1.0\r\n\r\n"), is("2001:db8::7 8448"));
        assert_eq!(to("CONNECT [2001:db8::7]:443 HTTP/1.1\r\nHost: [2001:db8::7]:443\r\n\r\n"), is("2001:db8::7 443"));
        assert_eq!(
            to("CONNECT PUSH.test:443 HTTP/1.1\r\nHost: push.test\r\nUser-Agent: x\r\n\r\nrest"),
            is("push.test 443")
        );
        for length in 0.."CONNECT a:443 HTTP/1.0\r\n\r\n".len() {
            assert_eq!(to(&"CONNECT a:443 HTTP/1.0\r\n\r\n"[..length]), Ok(None), "{length}");
        }
    }

    #[test]
    fn what_is_no_host_and_port_leads_to_nobody() {
        for odd in [
            "push.test",
            "https://push.test:443",
            "u@push.test:443",
            "push.test:443/x",
            "push.test:0443x",
            "push.test:99999",
            "push.test.:443",
            "-push.test:443",
            "127.1:443",
            "0x7f000001:443",
        ] {
            assert_eq!(to(&format!("CONNECT {odd} HTTP/1.1\r\n\r\n")), Ok(Some("nobody".to_owned())), "{odd}");
        }
    }

    #[test]
    fn what_is_no_head_or_two_is_refused() {
        for bad in [
            "CONNECT  push.test:443 HTTP/1.1\r\n\r\n",
            "CONNECT push.test:443\r\n\r\n",
            "CONNECT push.test:443 HTTP/2.0\r\n\r\n",
            "CONNECT push.test:443 HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "CONNECT push.test:443 HTTP/1.1\r\nContent-Length: 3\r\n\r\n",
            "CONNECT push.test:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "CONNECT push.test:443 HTTP/1.1\r\n X: folded\r\n\r\n",
            "CONNECT push.test:443 HTTP/1.1\r\nX : y\r\n\r\n",
        ] {
            assert_eq!(to(bad), Err(Failure::Bad), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_head_without_an_end_is_not_read_for_ever() {
        let endless = format!("CONNECT a:443 HTTP/1.1\r\nX: {}", "x".repeat(1 << 20));
        let (mut io, mut buffer) = (endless.as_bytes(), BytesMut::new());
        assert_eq!(read(&mut io, &mut buffer, &pace()).await, Err(Failure::Bad));
        assert!(io.len() > 900_000, "{} are left", io.len());
    }

    #[tokio::test]
    async fn what_follows_a_head_is_the_tunnels() {
        let (mut io, mut buffer) = (&b"CONNECT a:443 HTTP/1.1\r\n\r\n\x16\x03\x01"[..], BytesMut::new());
        assert!(read(&mut io, &mut buffer, &pace()).await.is_ok_and(|head| head.is_some()));
        assert_eq!(&buffer[..], b"\x16\x03\x01");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_one_patience_in_however_many_pieces_it_comes() {
        for (said, result, seconds) in [
            ("CONNECT a:443 HTTP/1.1\r\n\r\n", Err(Failure::Late), 3 + 10),
            ("COPY", Ok(None), 3 + 3 + 3),
            ("", Err(Failure::Gone), 7),
        ] {
            let ((mut client, mut io), pace, began) = (tokio::io::duplex(64), pace(), Instant::now());
            let dribble = async {
                for byte in said.bytes() {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    client.write_all(&[byte]).await.unwrap();
                }
                std::future::pending().await
            };
            let mut buffer = BytesMut::new();
            tokio::select! {
                read = read(&mut io, &mut buffer, &pace) => assert_eq!(read, result, "{said}"),
                () = dribble => {}
            }
            assert_eq!(began.elapsed(), Duration::from_secs(seconds), "{said}");
            // Who reads on has what is left of it.
            let left = if said.is_empty() { 7 } else { 3 + 10 };
            assert_eq!(pace.deadline(), Some(began + Duration::from_secs(left)));
        }
    }
}
