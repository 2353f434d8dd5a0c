//! `mantlet ledger`

use std::process::ExitCode;
use std::time::SystemTime;

use bytesize::ByteSize;
use http::Method;
use serde::Deserialize;
use serde_json::json;

use super::output::Output;
use super::{Common, ask};
use crate::ledger::Entry;
use crate::problem::{Problem, Problems};
use crate::units::Period;

#[derive(Debug, clap::Args)]
pub(super) struct Ledger {
    /// Only who was asked since then: a duration before now (7d, 12h), a day or a time (2026-11-20, 2026-11-20T08:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = when)]
    since: Option<SystemTime>,
}

#[derive(Deserialize)]
struct Answer {
    /// Whether there is a ledger.
    kept: bool,
    contacts: Vec<Entry>,
}

impl Ledger {
    pub(super) fn run(self, common: &Common, output: &Output) -> Result<ExitCode, Problems> {
        let (status, body) = ask(common, Method::GET, "/ledger", "for its ledger")?;
        let answer = serde_json::from_slice::<Answer>(&body).ok().filter(|_| status == 200);
        let Answer { kept, mut contacts } = answer.ok_or_else(|| {
            Problem::new("what answers there has no ledger that can be read").help("is it a gateway of this version?")
        })?;
        contacts.retain(|entry| self.since.is_none_or(|since| entry.last_seen >= since));
        let page = || match (kept, contacts.is_empty(), self.since) {
            (false, ..) => "no ledger is kept: [egress] ledger = 0 in the gateway file".to_owned(),
            (true, true, None) => "nobody was asked".to_owned(),
            (true, true, Some(_)) => "nobody was asked since then".to_owned(),
            (true, false, _) => table(&contacts),
        };
        output.print(page, || json!({ "kept": kept, "contacts": contacts }));
        Ok(ExitCode::SUCCESS)
    }
}

/// A duration counts from now backwards.
fn when(text: &str) -> Result<SystemTime, String> {
    let ago = |text: &str| SystemTime::now().checked_sub(text.parse::<Period>().ok()?.duration());
    let at = |text: &str| humantime::parse_rfc3339_weak(text).ok();
    let day = |text: &str| humantime::parse_rfc3339_weak(&format!("{text}T00:00:00")).ok();
    ago(text).or_else(|| at(text)).or_else(|| day(text)).ok_or_else(|| {
        "write how long ago (7d, 12h), a day (2026-11-20) or a time in UTC (2026-11-20T08:00:00Z)".to_owned()
    })
}

fn table(contacts: &[Entry]) -> String {
    let rows = contacts.iter().map(|entry| {
        [
            entry.cause.as_str().to_owned(),
            entry.destination.clone(),
            entry.verdict.to_string(),
            entry.count.to_string(),
            ByteSize::b(entry.bytes_out).to_string(),
            ByteSize::b(entry.bytes_in).to_string(),
            minute(entry.first_seen),
            minute(entry.last_seen),
            entry.door.as_str().to_owned(),
        ]
    });
    let rows: Vec<_> = std::iter::once(HEAD.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; HEAD.len()] = std::array::from_fn(width);
    let line = |row: &[String; HEAD.len()]| {
        let cells = row.iter().zip(widths).zip(NUMBERS).map(|((cell, width), is_number)| match is_number {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A time in UTC, to the minute.
fn minute(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.chars().take("2026-11-20T08:00".len()).collect::<String>().replace('T', " ")
}

const HEAD: [&str; 9] =
    ["CAUSE", "DESTINATION", "VERDICT", "TIMES", "OUT", "IN", "FIRST SEEN (UTC)", "LAST SEEN (UTC)", "DOOR"];
const NUMBERS: [bool; 9] = [false, false, false, true, true, true, false, false, false];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn since_is_how_long_ago_or_a_day_or_a_time() {
        let at = |text: &str| humantime::parse_rfc3339(text).unwrap();
        assert_eq!(when("2026-11-20"), Ok(at("2026-11-20T00:00:00Z")));
        assert_eq!(when("2026-11-20T08:00:00Z"), Ok(at("2026-11-20T08:00:00Z")));
        assert_eq!(when("2026-11-20 08:00:00"), Ok(at("2026-11-20T08:00:00Z")));
        let (before, since) = (SystemTime::now(), when("7d").unwrap());
        let week = Duration::from_secs(7 * 86_400);
        assert!((before - week..=SystemTime::now() - week).contains(&since), "{since:?}");
        for odd in ["", "yesterday", "7", "-7d", "2026-13-01", "999999999years"] {
            assert!(when(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn columns_stand_under_their_heads() {
        let entry = json!({
            "destination": "push.example.org:443", "cause": "push", "door": "proxy", "verdict": "tunnelled", "count": 12,
            "bytes_out": 41_000, "bytes_in": 0, "first_seen": "2026-11-20T03:00:59Z", "last_seen": "2026-11-22T04:05:06Z",
        });
        let entry: Entry = serde_json::from_value(entry).unwrap();
        assert_eq!(
            table(&[entry]),
            "CAUSE  DESTINATION           VERDICT    TIMES       OUT   IN  FIRST SEEN (UTC)  LAST SEEN (UTC)   DOOR\n\
             push   push.example.org:443  tunnelled     12  40.0 KiB  0 B  2026-11-20 03:00  2026-11-22 04:05  proxy"
        );
    }
}
