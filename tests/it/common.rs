//! What the topics share: plain homeservers, and how one waits for what must happen.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::{Response, json_response};
use mantlet_testkit::recorder::RecordedRequest;
use serde_json::json;

/// Long enough for a loaded machine; what is slower is broken.
pub const SOON: Duration = Duration::from_secs(10);

/// A policy that hinders nothing that these tests send, and changes no field.
pub const OPEN: &str = "[rules.threepid_unbind]\n";

/// A path that needs nothing.
pub const VERSIONS: &str = "/_matrix/client/versions";

/// A homeserver to which all is well.
pub fn homeserver() -> Backend {
    backend(|_| ok())
}

/// A homeserver that this closure plays.
pub fn backend(play: impl FnMut(&RecordedRequest) -> Answer + Send + 'static) -> Backend {
    Backend::start(play).expect("the backend starts")
}

/// `200 {}`
pub fn ok() -> Answer {
    Answer::Bytes(json_response(200, &json!({})))
}

/// The address as the gateway file names it.
pub fn url(backend: &Backend) -> String {
    format!("http://{}", backend.addr())
}

/// Waits until it is so, and says what was waited for when it never is.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    within(SOON, what, &mut is_so);
}

/// The same with a bound of its own.
#[track_caller]
pub fn within(bound: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + bound;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {bound:?}: {what}");
        nap();
    }
}

/// Between two looks at something that nobody can wait for otherwise.
pub fn nap() {
    std::thread::park_timeout(Duration::from_millis(2));
}

/// An answer of the gateway's own: Matrix JSON that a browser may read.
#[track_caller]
pub fn assert_matrix_error(response: &Response, status: u16, errcode: &str) {
    assert_eq!((response.status, response.errcode().as_deref()), (status, Some(errcode)), "{}", response.text());
    assert!(response.json()["error"].as_str().is_some_and(|error| !error.is_empty()), "{}", response.text());
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_cors(response);
}

/// The fields without which a web client sees no answer at all.
#[track_caller]
pub fn assert_cors(response: &Response) {
    assert_eq!(response.header_all("access-control-allow-origin"), ["*"]);
    assert!(response.header("access-control-allow-headers").is_some_and(|names| names.contains("Authorization")));
    assert!(response.header("access-control-allow-methods").is_some_and(|names| names.contains("PUT")));
}

/// Bytes of which no two stretches are alike, so that a lost, doubled or moved piece is seen.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A body in chunks of this size.
pub fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 1024);
    for chunk in body.chunks(size) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// Runs an ignored test of this binary in a process of its own, whose bound of open files is higher than what is common.
#[track_caller]
pub fn in_a_process_of_its_own(test: &str) {
    let this = std::env::current_exe().unwrap();
    let inner = ["--exact", test, "--ignored", "--nocapture"];
    let output = Command::new("sh").args(["-c", FILES]).arg(this).args(inner).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    println!("{text}");
}

/// Open files that both ends of 2,000 connections need.
const FILES: &str = "ulimit -n 8192 && exec \"$0\" \"$@\"";
