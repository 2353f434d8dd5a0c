//! An upstream that reads requests by RFC 9112's grammar and by nothing more kindly: whatever two readers could take for two
//! things is an error here.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A whole request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// The target, as it came.
    pub target: String,
    /// The fields, names in lower case, in their order.
    pub fields: Vec<(String, String)>,
    /// The content.
    pub body: Vec<u8>,
}

impl Seen {
    /// Every value of a field.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }
}

/// Reads one request at the start of these bytes, as a gateway may send it: it and its length, or nothing yet.
///
/// # Errors
/// What no request of ours may look like.
pub fn parse(bytes: &[u8]) -> Result<Option<(Seen, usize)>, String> {
    let Some((seen, length)) = read(bytes)? else { return Ok(None) };
    if !seen.target.starts_with('/') || seen.target.contains('#') {
        return Err(format!("the target {:?}", seen.target));
    }
    for name in
        ["connection", "keep-alive", "proxy-connection", "proxy-authorization", "te", "trailer", "upgrade", "expect"]
    {
        if !seen.all(name).is_empty() {
            return Err(format!("the field {name}: {:?}", seen.all(name)));
        }
    }
    for name in ["x-forwarded-for", "x-forwarded-proto", "x-request-id"] {
        if seen.all(name).len() != 1 {
            return Err(format!("{name} {} times", seen.all(name).len()));
        }
    }
    Ok(Some((seen, length)))
}

/// Reads one request at the start of these bytes: it and its length, or nothing yet.
///
/// # Errors
/// What is not of the grammar, or could be read in two ways.
pub fn read(bytes: &[u8]) -> Result<Option<(Seen, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() > 64 * 1024 { Err("a head without an end".into()) } else { Ok(None) };
    };
    let head = &bytes[..end];
    if let Some(odd) = head.iter().enumerate().find(|(at, byte)| match byte {
        b'\r' => head.get(at + 1).is_some_and(|next| *next != b'\n'),
        b'\n' => *at == 0 || head[at - 1] != b'\r',
        byte => **byte == 0 || (**byte < 0x20 && **byte != b'\t') || **byte == 0x7f,
    }) {
        return Err(format!("the byte {:#x} in a head", odd.1));
    }
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let line = lines.next().unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let [method, target, b"HTTP/1.1"] = words[..] else { return Err(format!("the request line {:?}", text(line))) };
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err(format!("the method {:?}", text(method)));
    }
    if target.is_empty() || !target.iter().all(|byte| (0x21..0x7f).contains(byte)) {
        return Err(format!("the target {:?}", text(target)));
    }
    let mut fields = Vec::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| format!("the line {:?}", text(line)))?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return Err(format!("the field name {:?}", text(name)));
        }
        fields.push((text(name).to_ascii_lowercase(), text(value)));
    }
    let mut seen = Seen { method: text(method), target: text(target), fields, body: Vec::new() };
    if seen.all("host").len() != 1 {
        return Err(format!("the hosts {:?}", seen.all("host")));
    }
    let rest = &bytes[end + 4..];
    let length = match (&seen.all("content-length")[..], &seen.all("transfer-encoding")[..]) {
        ([], []) => Some(0),
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            let length = length.parse::<usize>().map_err(|error| error.to_string())?;
            if rest.len() < length {
                return Ok(None);
            }
            seen.body = rest[..length].to_vec();
            Some(length)
        }
        ([], ["chunked"]) => match chunked(rest)? {
            Some((body, length)) => {
                seen.body = body;
                Some(length)
            }
            None => None,
        },
        (lengths, codings) => return Err(format!("the lengths {lengths:?} and codings {codings:?}")),
    };
    Ok(length.map(|length| (seen, end + 4 + length)))
}

fn chunked(mut rest: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let (all, mut body) = (rest.len(), Vec::new());
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let size = text(&rest[..end]);
        if size.is_empty() || size.len() > 8 || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("the chunk size {size:?}"));
        }
        let size = usize::from_str_radix(&size, 16).map_err(|error| error.to_string())?;
        rest = &rest[end + 2..];
        if rest.len() < size + 2 {
            return Ok(None);
        }
        let (data, after) = rest.split_at(size);
        if !after.starts_with(b"\r\n") {
            return Err(format!("a trailer, or data that goes on behind its chunk: {:?}", text(&after[..2])));
        }
        body.extend_from_slice(data);
        rest = &after[2..];
        if size == 0 {
            return Ok(Some((body, all - rest.len())));
        }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Answers `200 {}` to each whole request.
pub struct Upstream {
    addr: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
}

/// What came.
#[derive(Debug, Default, Clone)]
pub struct State {
    /// Whole requests.
    pub seen: Vec<Seen>,
    /// What broke the grammar.
    pub wrong: Vec<String>,
    /// How many connections brought bytes that are no whole request (yet, or ever).
    pub partial: usize,
}

impl Upstream {
    /// On a free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let here = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&here);
                // Nobody but this thread holds the state any more once the test is over.
                if Arc::strong_count(&state) == 2 {
                    return;
                }
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { addr, state }
    }

    /// As the gateway file names it.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What came since it was last asked.
    pub fn take(&self) -> State {
        std::mem::take(&mut self.state.0.lock().unwrap())
    }

    /// Waits until this holds of what came, and takes it then or when the time is over.
    pub fn wait(&self, within: Duration, holds: impl Fn(&State) -> bool) -> State {
        let deadline = Instant::now() + within;
        let (state, changed) = &*self.state;
        let mut state = state.lock().unwrap();
        while !holds(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = changed.wait_timeout(state, left).unwrap().0;
        }
        std::mem::take(&mut state)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // The listening thread looks up only for a connection.
        let _ = TcpStream::connect(self.addr);
    }
}

fn serve(mut stream: TcpStream, state: &(Mutex<State>, Condvar)) {
    let (mut pending, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    let mut is_partial = false;
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        pending.extend_from_slice(&buffer[..read]);
        loop {
            let parsed = parse(&pending);
            let mut state_now = state.0.lock().unwrap();
            match parsed {
                Ok(Some((seen, length))) => {
                    pending.drain(..length);
                    if std::mem::take(&mut is_partial) {
                        state_now.partial = state_now.partial.saturating_sub(1);
                    }
                    let is_head = seen.method == "HEAD";
                    state_now.seen.push(seen);
                    state.1.notify_all();
                    drop(state_now);
                    let answer: &[u8] = match is_head {
                        true => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
                        false => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
                    };
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                    if pending.is_empty() {
                        break;
                    }
                }
                Ok(None) => {
                    if !std::mem::replace(&mut is_partial, true) {
                        state_now.partial += 1;
                        state.1.notify_all();
                    }
                    break;
                }
                Err(wrong) => {
                    state_now.wrong.push(wrong);
                    state.1.notify_all();
                    let _ = stream.shutdown(Shutdown::Both);
                    return;
                }
            }
        }
    }
}
