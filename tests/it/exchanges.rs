//! Whole exchanges as files: what came in, what the homeserver got, what it answered, what went back. A new file is a new test.
//!
//! Five parts, each after a line of ten dashes: the policy; the client's request; all that reached the homeserver; what it
//! answers; what the client gets. Several messages of one part stand under each other with a line `- - -` between them. A
//! body stands behind the empty line, without the last line's end. Values that change with time or run are written in capitals:
//! `ID`, `DATE`.
//!
//! After a wanted change: `MANTLET_BLESS=1 cargo test --test it exchanges`, and read the difference.

use std::path::Path;

use mantlet_testkit::backend::Answer;
use mantlet_testkit::http::raw;

use crate::common::*;
use crate::support::Gateway;

const PART: &str = "----------\n";
const MESSAGE: &str = "- - -\n";
const NOTHING: &str = "(nothing)\n";

#[test]
fn exchanges_are_as_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exchanges");
    let entries = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "txt")).collect();
    paths.sort();
    assert!(paths.len() >= 15, "{} files", paths.len());
    let wrong: Vec<_> = paths.iter().filter_map(|path| check(path).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn check(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).unwrap();
    let parts: Vec<_> = text.split(PART).collect();
    let [policy, request, _, answers, _] = parts[..] else {
        return Err(format!("{}: {} parts, not 5", path.display(), parts.len()));
    };
    let mut left: Vec<_> = messages(answers).iter().map(|answer| wire(answer)).collect();
    left.reverse();
    let upstream = backend(move |_| left.pop().map_or(Answer::Close, Answer::Bytes));
    let gateway = Gateway::start(&url(&upstream), policy);
    let back = raw(gateway.addr(), &wire(request));
    let seen: Vec<_> =
        upstream.requests().iter().map(|request| shown(&[&request.head[..], &request.body].concat())).collect();
    let seen = if seen.is_empty() { NOTHING.to_owned() } else { seen.join(MESSAGE) };
    let found = [policy, request, &seen, answers, &shown(&back)].join(PART);
    if std::env::var_os("MANTLET_BLESS").is_some() {
        std::fs::write(path, &found).unwrap();
    } else if found != text {
        return Err(format!("{}: expected\n{text}\nfound\n{found}", path.display()));
    }
    Ok(())
}

fn messages(part: &str) -> Vec<&str> {
    if part == NOTHING { Vec::new() } else { part.split(MESSAGE).collect() }
}

/// The bytes that are meant: lines of the head end in CR LF, the body is as it stands.
fn wire(text: &str) -> Vec<u8> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text.trim_end(), ""));
    format!("{}\r\n\r\n{}", head.replace('\n', "\r\n"), body.strip_suffix('\n').unwrap_or(body)).into_bytes()
}

/// The text that means these bytes.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let lines = head.split("\r\n").map(|line| match line.split_once(": ") {
        Some((name, _)) if name.eq_ignore_ascii_case("x-request-id") => format!("{name}: ID\n"),
        Some((name, _)) if name.eq_ignore_ascii_case("date") => format!("{name}: DATE\n"),
        _ => format!("{line}\n"),
    });
    let head: String = lines.collect();
    if body.is_empty() { format!("{head}\n") } else { format!("{head}\n{body}\n") }
}
