//! A record as one JSON object on a line.
//!
//! Written by hand, for it is written for every request, and all but two of its strings are words of ours, with nothing to escape:
//! a serializer takes five times as long to find that out.

use std::io::Write;

use super::{AccessRecord, hex};

/// Appends the record's line.
pub(super) fn line(record: &AccessRecord, line: &mut Vec<u8>) {
    // No `..` here: a new field has to be thought of.
    #[rustfmt::skip]
    let AccessRecord {
        time, id, flow, listener, method, endpoint, protocol, tls, status, rule, decision, mode, token, network,
        error, bytes_in, bytes_out, duration_us, upstream, upstream_us, generation,
    } = record;
    line.extend_from_slice(b"{\"time\":\"");
    // Cannot fail: a vector takes every byte.
    let _ = write!(line, "{}", humantime::format_rfc3339_millis(*time));
    line.extend_from_slice(b"\",\"id\":\"");
    line.extend_from_slice(&hex(*id));
    line.push(b'"');
    word(b",\"flow\":", flow.as_str(), line);
    name(b",\"listener\":", listener, line);
    word(b",\"method\":", method.as_str(), line);
    word(b",\"endpoint\":", endpoint, line);
    word(b",\"protocol\":", protocol.as_str(), line);
    line.extend_from_slice(if *tls { b",\"tls\":true" } else { b",\"tls\":false" });
    number(b",\"status\":", u64::from(*status), line);
    optional(word, b",\"rule\":", *rule, line);
    word(b",\"decision\":", decision.as_str(), line);
    word(b",\"mode\":", mode.as_str(), line);
    word(b",\"token\":", token.as_str(), line);
    word(b",\"network\":", network.as_str(), line);
    optional(word, b",\"error\":", *error, line);
    number(b",\"bytes_in\":", *bytes_in, line);
    number(b",\"bytes_out\":", *bytes_out, line);
    number(b",\"duration_us\":", *duration_us, line);
    optional(name, b",\"upstream\":", upstream.as_deref(), line);
    optional(number, b",\"upstream_us\":", *upstream_us, line);
    number(b",\"generation\":", *generation, line);
    line.extend_from_slice(b"}\n");
}

/// A word of ours.
fn word(key: &[u8], word: &str, line: &mut Vec<u8>) {
    line.extend_from_slice(key);
    line.push(b'"');
    line.extend_from_slice(word.as_bytes());
    line.push(b'"');
}

/// A name that the operator chose.
fn name(key: &[u8], text: &str, line: &mut Vec<u8>) {
    let is_plain = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        return word(key, text, line);
    }
    line.extend_from_slice(key);
    let _ = serde_json::to_writer(line, text);
}

fn number(key: &[u8], number: u64, line: &mut Vec<u8>) {
    line.extend_from_slice(key);
    line.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn optional<T>(write: fn(&[u8], T, &mut Vec<u8>), key: &[u8], value: Option<T>, line: &mut Vec<u8>) {
    match value {
        Some(value) => write(key, value, line),
        None => {
            line.extend_from_slice(key);
            line.extend_from_slice(b"null");
        }
    }
}
