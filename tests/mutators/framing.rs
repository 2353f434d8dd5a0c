//! Heads and bodies through a gateway, with two readers that know no mercy: one before it, one behind it.

use std::time::Duration;

use mantlet_testkit::http::Connection;

use crate::support::Gateway;
use crate::support::strict::{self, Seen, Upstream};

pub const SEEDS: &[&str] = &[
    "GET /_matrix/client/versions HTTP/1.1\r\nHost: hs\r\n\r\n",
    "POST /_matrix/client/v3/login HTTP/1.1\r\nHost: hs\r\nContent-Length: 43\r\n\r\nGET /_matrix/client/b HTTP/1.1\r\nHost: hs\r\n\r\n",
    "POST /_matrix/client/v3/login HTTP/1.1\r\nHost: hs\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n",
    "POST /_matrix/client/v3/login HTTP/1.1\r\nHost: hs\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n2B\r\n\
     GET /_matrix/client/b HTTP/1.1\r\nHost: hs\r\n\r\n\r\n0\r\nX: y\r\n\r\n",
    "PUT /_matrix/client/v3/x?y HTTP/1.1\r\nhost:hs:80\r\nConnection: close, X-A\r\nX-A: b\r\nContent-Length: 3\r\n\r\nabc",
    "GET /_matrix/client/a HTTP/1.1\r\nHost: hs\r\n\r\nPOST /_matrix/client/v3/login HTTP/1.1\r\nHost: hs\r\nContent-Length: 5\r\n\
     Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "GET /_matrix/client/a HTTP/1.1\r\nOrigin: a\r\nHost: hs\r\nSec-Fetch-Mode: b\r\nReferer: c\r\nContent-Length: 40\r\nVia: d\r\n\r\n\
     Origin: GET /_matrix/client/b HTTP/1.1\r\nPOST /_matrix/client/b HTTP/1.1\r\nOrigin: e\r\nHost: hs\r\n\r\n",
    "HEAD /_matrix/client/versions HTTP/1.0\r\nHost: hs\r\nConnection: keep-alive\r\n\r\n",
    "POST /_matrix/client/v3/login HTTP/1.1\r\nHost: hs\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
];

pub const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\r\n ",
    b" ",
    b"\t",
    b"\0",
    b":",
    b",",
    b";",
    b"0",
    b"0\r\n\r\n",
    b"ffffffff",
    b"-1",
    b"+3",
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"transfer-encoding",
    b"chunked",
    b"Host: other\r\n",
    b"Origin: a\r\n",
    b"\r\nSec-Fetch-Mode: ",
    b"Connection: Transfer-Encoding\r\n",
    b"Connection: host\r\n",
    b"Upgrade: h2c\r\n",
    b"HTTP/1.0",
    b"http://other",
    b"*",
    b"CONNECT ",
    b"\xff",
    b"%",
    b"#",
    b"GET /_matrix/client/c HTTP/1.1\r\n",
];

/// All requests that these bytes are to a strict reader, and whether there can be no others.
fn readings(mut bytes: &[u8]) -> (Vec<Seen>, bool) {
    let mut sent = Vec::new();
    loop {
        match strict::read(bytes) {
            Ok(Some((seen, length))) => {
                sent.push(seen);
                bytes = &bytes[length..];
            }
            // A line may end with one byte; the strict reader waits for two.
            Ok(None) => {
                let is_clear = bytes.split(|byte| *byte == b'\n').rev().skip(1).all(|line| line.ends_with(b"\r"));
                return (sent, is_clear);
            }
            // Two lengths, or one beside a coding: whoever follows the grammar reads nothing more here.
            Err(error) => return (sent, error.starts_with("the lengths [\"")),
        }
    }
}

/// A gateway between two strict readers.
pub struct Framing {
    upstream: Upstream,
    gateway: Gateway,
}

impl Framing {
    /// Starts both.
    pub fn start() -> Self {
        let upstream = Upstream::start();
        // Short, for what waits for more is the most frequent find.
        let limits = "[limits]\nhead = \"30ms\"\nfirst_byte = \"30ms\"\nkeep_alive = \"30ms\"\nbody_idle = \"30ms\"";
        let gateway = Gateway::with(&upstream.url(), "[rules.threepid_unbind]\n[rules.request_headers]\n", limits);
        Self { upstream, gateway }
    }

    /// Sends these bytes. What arrives is whole requests by the grammar, and those that the bytes are.
    pub fn attempt(&self, bytes: &[u8]) {
        let mut client = Connection::open(self.gateway.addr()).unwrap();
        let _ = client.write(bytes);
        client.set_timeout(Duration::from_secs(10));
        let answer = client.read_to_end().unwrap_or_default();
        let seen = self.upstream.take();
        let text = String::from_utf8_lossy(bytes);
        assert!(seen.wrong.is_empty(), "{:?} from {text:?}", seen.wrong);
        let (sent, is_clear) = readings(bytes);
        let mut left = sent.iter();
        for seen in &seen.seen {
            let is_it = |sent: &&Seen| {
                let target = sent.target.split('#').next().unwrap_or_default();
                sent.method == seen.method && target == seen.target && sent.body == seen.body
            };
            // Some are refused; none is made up, changed or moved. What the strict reader gave up on, others may read.
            assert!(left.any(|sent| is_it(&sent)) || !is_clear, "{seen:?} from {text:?}");
        }
        // What is answered well was asked for.
        let good = answer.windows(12).filter(|window| window.starts_with(b"HTTP/1.1 200")).count();
        assert!(good <= seen.seen.len(), "{good} good answers to {} requests: {text:?}", seen.seen.len());
    }
}
