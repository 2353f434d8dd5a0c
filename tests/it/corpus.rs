//! Requests byte for byte, `tests/corpus/*.txt`, judged by what the homeserver saw of them.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::Connection;

use crate::common::*;
use crate::support::Gateway;
use crate::support::frames;
use crate::support::strict::{Seen, State, Upstream};

/// Short, so that what waits for more is seen to end.
const LIMITS: &str = "[limits]\nhead = \"400ms\"\nfirst_byte = \"400ms\"\nkeep_alive = \"250ms\"\nbody_idle = \"400ms\"\nper_address = 10000";

/// How many cases run at a time.
const AT_ONCE: usize = 8;

struct Case {
    name: String,
    request: Vec<u8>,
    expect: Vec<Expect>,
}

enum Expect {
    /// Nothing arrives, and the client is told so.
    Refused,
    /// Nothing arrives whole.
    Cut,
    /// This arrives.
    Request { line: String, body: Vec<u8>, has: Vec<(String, String)>, lacks: Vec<String> },
}

/// Reads a file of cases; its form is told at the top of `h1.txt`. `line_end` is what stands behind each line.
fn cases(file: &str, line_end: &[u8]) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let mut cases = Vec::new();
    for block in text.split("\n== ").skip(1) {
        let (name, block) = block.split_once('\n').unwrap();
        let (request, rest) = match block.split_once("\n=> ") {
            Some((request, rest)) => (format!("{request}\n"), format!("=> {rest}")),
            None => panic!("{name}: nothing is expected"),
        };
        let rest: Vec<&str> = rest.lines().collect();
        let values: Vec<&str> = rest.iter().filter_map(|line| line.strip_prefix("~ ")).collect();
        let values = if values.is_empty() { vec![""] } else { values };
        for value in values {
            let expected = rest.iter().filter(|line| line.starts_with("=> ") || line.starts_with("  = "));
            cases.push(Case {
                name: format!("{file}: {name} {value}"),
                request: bytes(&request.replace("{}", value), line_end),
                expect: expect(expected.map(|line| line.replace("{}", value)), name),
            });
        }
    }
    cases
}

fn expect(lines: impl Iterator<Item = String>, case: &str) -> Vec<Expect> {
    let mut all = Vec::new();
    for line in lines {
        match (line.strip_prefix("=> "), all.last_mut()) {
            (Some("refused"), _) => all.push(Expect::Refused),
            (Some("cut"), _) => all.push(Expect::Cut),
            (Some(line), _) => {
                let line = String::from_utf8(bytes(line, b"")).unwrap();
                all.push(Expect::Request { line, body: Vec::new(), has: Vec::new(), lacks: Vec::new() });
            }
            (None, Some(Expect::Request { body, has, lacks, .. })) => {
                let (what, value) = line.trim_start_matches("  = ").split_once(' ').unwrap();
                match what {
                    "body" => *body = bytes(value, b""),
                    "has" => {
                        let (name, value) = value.split_once(": ").unwrap();
                        has.push((name.to_owned(), value.to_owned()));
                    }
                    "lacks" => lacks.push(value.to_owned()),
                    other => panic!("{case}: {other}"),
                }
            }
            (None, _) => panic!("{case}: {line} of what?"),
        }
    }
    all
}

/// Undoes the escapes.
fn bytes(text: &str, line_end: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(char) = rest.chars().next() {
        rest = &rest[char.len_utf8()..];
        match char {
            '\n' => out.extend_from_slice(line_end),
            '\\' => {
                let escape = rest.chars().next().unwrap();
                rest = &rest[escape.len_utf8()..];
                match escape {
                    'r' => out.push(b'\r'),
                    'n' => out.push(b'\n'),
                    't' => out.push(b'\t'),
                    '0' => out.push(0),
                    '\\' => out.push(b'\\'),
                    '\n' => {}
                    'x' => {
                        out.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                        rest = &rest[2..];
                    }
                    '{' => {
                        let (inner, after) = rest.split_once('}').unwrap();
                        let (count, inner) = inner.split_once('*').unwrap();
                        out.extend(bytes(inner, b"").repeat(count.parse().unwrap()));
                        rest = after;
                    }
                    other => panic!("the escape {other} in {text}"),
                }
            }
            char => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out
}

/// What is wrong with what came of a case.
fn judge(case: &Case, state: &State, answer: &Answer) -> Result<(), String> {
    if let Some(wrong) = state.wrong.first() {
        return Err(format!("the homeserver saw {wrong}"));
    }
    let mut seen = state.seen.iter();
    for expect in &case.expect {
        match expect {
            Expect::Refused if state.partial > 0 => return Err("a part of it arrived".into()),
            Expect::Refused if answer.is_success => return Err("it was answered like a good one".into()),
            Expect::Refused | Expect::Cut => {}
            Expect::Request { line, body, has, lacks } => {
                let seen = seen.next().ok_or_else(|| format!("{line} did not arrive; the answer: {}", answer.text))?;
                compare(seen, line, body, has, lacks)?;
            }
        }
    }
    match seen.next() {
        Some(more) => Err(format!("{} {} arrived, too: {:?}", more.method, more.target, more.fields)),
        None => Ok(()),
    }
}

fn compare(seen: &Seen, line: &str, body: &[u8], has: &[(String, String)], lacks: &[String]) -> Result<(), String> {
    let arrived = format!("{} {}", seen.method, seen.target);
    if arrived != line {
        return Err(format!("{arrived} arrived in place of {line}"));
    }
    if seen.body != body {
        return Err(format!("its body was {:?}", String::from_utf8_lossy(&seen.body)));
    }
    for (name, value) in has {
        if seen.all(name) != [value] {
            return Err(format!("its {name} was {:?}", seen.all(name)));
        }
    }
    match lacks.iter().find(|name| !seen.all(name).is_empty()) {
        Some(name) => Err(format!("its {name} was {:?}", seen.all(name))),
        None => Ok(()),
    }
}

/// What the client got.
struct Answer {
    is_success: bool,
    text: String,
}

/// Runs all cases, each by this on a gateway that nobody else uses meanwhile; all failures are told at once.
fn run(cases: Vec<Case>, start: impl Fn(&Upstream) -> Target + Sync) {
    let count = cases.len();
    let queue = Mutex::new(VecDeque::from(cases));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let upstream = Upstream::start();
                let target = start(&upstream);
                loop {
                    let Some(case) = queue.lock().unwrap().pop_front() else { return };
                    let answer = (target.send)(&case.request);
                    // Whoever comes next is not harmed by what came before: no byte of it is left anywhere.
                    let probe = b"GET /_matrix/client/versions?next HTTP/1.1\r\nHost: hs\r\nConnection: close\r\n\r\n";
                    (target.probe)(probe);
                    let is_next = |seen: &Seen| seen.target == "/_matrix/client/versions?next";
                    let mut state =
                        upstream.wait(SOON, |state| state.seen.iter().any(is_next) || !state.wrong.is_empty());
                    let verdict = match state.seen.pop() {
                        Some(seen) if is_next(&seen) => judge(&case, &state, &answer),
                        _ => Err(format!("the next request did not arrive: {:?}", state.wrong)),
                    };
                    if let Err(wrong) = verdict {
                        failures.lock().unwrap().push(format!("{}: {wrong}", case.name));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    assert!(failures.is_empty(), "{} of {count} cases:\n{}", failures.len(), failures.join("\n"));
}

/// A gateway and how it is spoken to.
struct Target {
    send: Box<dyn Fn(&[u8]) -> Answer>,
    probe: Box<dyn Fn(&[u8])>,
}

#[test]
fn the_homeserver_sees_of_http1_what_the_rfc_says_or_nothing() {
    let cases = cases("h1.txt", b"\r\n");
    assert!(cases.len() > 250, "{}", cases.len());
    run(cases, |upstream| {
        let gateway = Gateway::with(&upstream.url(), OPEN, LIMITS);
        let addr = gateway.addr();
        let exchange = move |bytes: &[u8]| {
            let mut client = Connection::open(addr).unwrap();
            // What is refused early is not read to its end, and the rest cannot be written.
            let _ = client.write(bytes);
            client.read_to_end().unwrap_or_default()
        };
        Target {
            send: Box::new(move |bytes| {
                let _lives = &gateway;
                let text = exchange(bytes);
                Answer {
                    is_success: text.starts_with(b"HTTP/1.1 2"),
                    text: String::from_utf8_lossy(&text).into_owned(),
                }
            }),
            probe: Box::new(move |bytes| drop(exchange(bytes))),
        }
    });
}

#[test]
fn the_homeserver_sees_of_http2_what_the_rfc_says_or_nothing() {
    let cases = cases("h2.txt", b"\n");
    assert!(cases.len() > 80, "{}", cases.len());
    run(cases, |upstream| {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new().unwrap();
        let (certificate, key) = authority.issue(&["hs"]).unwrap().write(dir.path()).unwrap();
        let tls = format!("tls = {{ certificate = \"{}\", key = \"{}\" }}", certificate.display(), key.display());
        let gateway = Gateway::with_listener(&upstream.url(), OPEN, &tls, LIMITS);
        let (addr, ca) = (gateway.addr(), authority.pem());
        let ca_again = ca.clone();
        Target {
            send: Box::new(move |request| {
                let _lives = &gateway;
                let mut client = Connection::open_tls_for(addr, "hs", &ca, b"h2").unwrap();
                client.write(&frames::request(request)).unwrap();
                let status = frames::first_status(&mut client, Duration::from_secs(5));
                Answer { is_success: status == Some(200), text: format!("{status:?}") }
            }),
            probe: Box::new(move |bytes| {
                let mut client = Connection::open_tls(addr, "hs", &ca_again).unwrap();
                client.write(bytes).unwrap();
                let _ = client.read_to_end();
            }),
        }
    });
}
