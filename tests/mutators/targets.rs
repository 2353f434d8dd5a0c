//! What must hold of any bytes at all. `tests/mutators.rs` tries it with chance, `fuzz/` with cargo-fuzz.

use std::path::Path;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};
use mantlet::config::gateway::Gateway;
use mantlet::config::policy_file::PolicyFile;
use mantlet::matrix::classify::{classify, flow};
use mantlet::matrix::token::{self, Place, Unreadable};
use mantlet::problem::Problems;
use mantlet::rules;

/// Any path has an endpoint; without escapes it has one, and with more escapes it decodes to the same one.
pub fn endpoint(data: &[u8]) {
    let (choice, path) = data.split_first().unwrap_or((&0, data));
    let Ok(path) = std::str::from_utf8(path) else { return };
    let methods = [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH];
    let method = &methods[usize::from(choice % 6)];
    let found = classify(method, path);
    assert_eq!(found, classify(method, path), "{method} {path}");
    if method == Method::GET {
        assert_eq!(found, classify(&Method::HEAD, path), "HEAD {path}");
    }
    if path.contains('%') || path.starts_with("//") || !path.is_ascii() {
        return;
    }
    assert_eq!(found.raw, found.decoded, "{method} {path}");
    // Each third byte by its escape, from the place that the choice says.
    let is_escaped = |at: usize, byte: u8| byte != b'/' && at > 0 && (at + usize::from(*choice)).is_multiple_of(3);
    let escaped: String = (path.bytes().enumerate())
        .map(|(at, byte)| if is_escaped(at, byte) { format!("%{byte:02x}") } else { char::from(byte).to_string() })
        .collect();
    assert_eq!(classify(method, &escaped).decoded, found.decoded, "{method} {path} and {escaped}");
    assert_eq!(flow(&escaped), flow(path), "{path} and {escaped}");
}

/// A token is read as Synapse reads it: `Authorization` fields on lines of their own, then the query.
pub fn token(data: &[u8]) {
    let mut lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let query = lines.pop().and_then(|query| std::str::from_utf8(query).ok()).filter(|query| !query.is_empty());
    let mut headers = HeaderMap::new();
    for line in &lines {
        // What stands around a value is no part of it: neither hyper nor Twisted keeps it.
        let Ok(value) = HeaderValue::from_bytes(line.trim_ascii()) else { return };
        headers.append(AUTHORIZATION, value);
    }
    let ours = token::read(&headers, query).map(|token| (token.value.into_owned(), token.place));
    let fields: Vec<&[u8]> = headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes).collect();
    assert_eq!(
        ours,
        synapses_token(&fields, query.unwrap_or_default().as_bytes()),
        "{:?}",
        String::from_utf8_lossy(data)
    );
}

/// `synapse/api/auth/base.py::get_access_token_from_request`, line by line.
fn synapses_token(fields: &[&[u8]], query: &[u8]) -> Result<(Vec<u8>, Place), Unreadable> {
    let arguments = parse_qs(query);
    let of_query: Vec<&Vec<u8>> =
        arguments.iter().filter(|(name, _)| name == b"access_token").map(|(_, it)| it).collect();
    if fields.is_empty() {
        return of_query.first().map(|value| (value.to_vec(), Place::Query)).ok_or(Unreadable::Missing);
    }
    if !of_query.is_empty() {
        return Err(Unreadable::Mixed);
    }
    if fields.len() > 1 {
        return Err(Unreadable::Doubled);
    }
    let parts: Vec<&[u8]> = fields[0].split(|byte| *byte == b' ').collect();
    match parts[..] {
        // Beyond ASCII it decodes to nothing, and Synapse fails.
        [b"Bearer", token] if token.iter().all(|byte| *byte < 0x80) => Ok((token.to_vec(), Place::Header)),
        _ => Err(Unreadable::Malformed),
    }
}

/// `twisted/web/http.py::parse_qs` with `keep_blank_values=1`.
fn parse_qs(query: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut arguments = Vec::new();
    for half in query.split(|byte| *byte == b'&') {
        for item in half.split(|byte| *byte == b';') {
            if let Some(equals) = item.iter().position(|byte| *byte == b'=') {
                arguments.push((unquote(&item[..equals]), unquote(&item[equals + 1..])));
            }
        }
    }
    arguments
}

fn unquote(text: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let hex = |at: usize| text.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (text[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    out
}

/// Any text is a policy, or each problem says where it is.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = PolicyFile::from_text("policy.toml", text, Path::new("/nowhere")).and_then(|(file, problems)| {
        let sources = Arc::clone(&file.sources);
        rules::compile(file.into_draft(), &sources, problems)
    });
    if let Err(problems) = read {
        assert_places(&problems, text);
    }
}

/// Any text is a gateway file, or each problem says where it is.
pub fn gateway(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(problems) = Gateway::parse("mantlet.toml", text, Path::new("/nowhere")) {
        assert_places(&problems, text);
    }
}

fn assert_places(problems: &Problems, text: &str) {
    assert!(!problems.is_empty(), "refused without a word: {text}");
    let lines = text.lines().count().max(1) + 1;
    for problem in &problems.0 {
        let Some(location) = &problem.location else { panic!("{problem}: where? In\n{text}") };
        let is_there = location.file.starts_with("built-in") || (1..=lines).contains(&location.line);
        assert!(is_there && location.column > 0, "{problem}: there is no such place in\n{text}");
    }
}
