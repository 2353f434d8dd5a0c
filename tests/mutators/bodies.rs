//! Bodies that are edited, held against the reader that Synapse has: Python's.

use std::fmt::Write as _;
use std::process::Command;

use mantlet::policy::BodyAction;
use mantlet_testkit::venv;

use crate::support::mutate::Random;

/// A JSON object as somebody might write it who wants to be read in two ways.
pub fn object(random: &mut Random, depth: usize) -> String {
    let mut text = String::from("{");
    for index in 0..random.below(5) {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(text, "{comma}{}{}{}:{}", space(random), name(random), space(random), value(random, depth));
    }
    text.push_str(space(random));
    text + "}"
}

fn name(random: &mut Random) -> String {
    let name = *random.pick(&["id_server", "id_server", "auth", "Id_server", "id_server ", "", "é", "address"]);
    let mut text = String::from("\"");
    for letter in name.chars() {
        match random.below(6) {
            0 => drop(write!(text, "\\u{:04x}", u32::from(letter))),
            1 => drop(write!(text, "\\u{:04X}", u32::from(letter))),
            _ => text.push(letter),
        }
    }
    text + "\""
}

fn value(random: &mut Random, depth: usize) -> String {
    let plain = [
        "null",
        "true",
        "\"\"",
        "\"is.test\"",
        "\"\\ud83e\\udd80\\n\\/\"",
        "\"}\\\",\\\"id_server\\\":\"",
        "0",
        "-0.0",
        "1.50E+3",
        "123456789012345678901234567890",
        "1e308",
        "[]",
        "{}",
        "[ 1 , \"id_server\" ]",
        "\"\\ud800\"",
        "1e400",
    ];
    match random.below(if depth == 0 { 3 } else { 4 }) {
        3 => object(random, depth - 1),
        _ => {
            // What only Python reads stands last, and would spoil most bodies.
            let spoils = random.below(20) == 0;
            let plain = if spoils { &plain[..] } else { &plain[..plain.len() - 2] };
            (*random.pick(plain)).to_owned()
        }
    }
}

fn space(random: &mut Random) -> &'static str {
    random.pick::<&str>(&["", "", " ", "\n", "\t\r"])
}

/// What becomes of these bodies, as Python reads it; how many were edited, and how many of those that Python reads were refused.
pub fn held_against_python(bodies: &[Vec<u8>]) -> (usize, usize) {
    let directory = tempfile::tempdir().unwrap();
    let (script, lines) = (directory.path().join("script.py"), directory.path().join("lines"));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut text = String::new();
    for body in bodies {
        let edited = match BodyAction::UnbindNowhere.apply(body) {
            Ok(edited) => hex(&edited.expect("it is always edited")),
            Err(_) => "-".to_owned(),
        };
        let _ = writeln!(text, "{},{edited}", hex(body));
    }
    std::fs::write(&script, PYTHON).unwrap();
    std::fs::write(&lines, text).unwrap();
    let output = Command::new(venv::python().unwrap()).args([&script, &lines]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let counts = String::from_utf8(output.stdout).unwrap();
    let mut counts = counts.split_whitespace().map(|count| count.parse().unwrap());
    (counts.next().unwrap(), counts.next().unwrap())
}

/// `synapse/util/json.py`, and what has to be so.
const PYTHON: &str = r#"
import json, sys

def reject(constant):
    raise ValueError(constant)

plain = json.JSONDecoder(parse_constant=reject).decode
pairs = json.JSONDecoder(parse_constant=reject, object_pairs_hook=lambda pairs: pairs).decode

def read(decode, text):
    try:
        return decode(text.decode("utf-8"))
    except Exception:
        return None

edited = refused = 0
for line in open(sys.argv[1]):
    before, after = line.rstrip("\n").split(",")
    before = bytes.fromhex(before)
    was = read(plain, before)
    if after == "-":
        refused += isinstance(was, dict)
        continue
    after = bytes.fromhex(after)
    assert isinstance(was, dict), before
    edited += 1
    names = [name for name, _ in read(pairs, after)]
    assert names.count("id_server") == 1, (before, after)
    assert read(plain, after) == {**was, "id_server": "unbind.mantlet.invalid"}, (before, after)
    others = [pair for pair in read(pairs, before) if pair[0] != "id_server"]
    assert repr([pair for pair in read(pairs, after) if pair[0] != "id_server"]) == repr(others), (before, after)
print(edited, refused)
"#;
