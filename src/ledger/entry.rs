//! A line of the ledger: as it is counted, as it is kept, and as it is shown.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Door, Verdict};
use crate::policy::Cause;

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// A server's name, or a host and a port.
    pub destination: String,
    /// What for.
    pub cause: Cause,
    /// Through which door.
    pub door: Door,
    /// What became of it.
    pub verdict: Verdict,
    /// How often.
    pub count: u64,
    /// Bytes that were sent there.
    pub bytes_out: u64,
    /// Bytes that came back.
    pub bytes_in: u64,
    /// The first time.
    #[serde(with = "rfc3339")]
    pub first_seen: SystemTime,
    /// The last time.
    #[serde(with = "rfc3339")]
    pub last_seen: SystemTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub to: Box<str>,
    pub cause: Cause,
    pub door: Door,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tally {
    /// Seconds since 1970.
    pub first: u64,
    pub last: u64,
    pub count: u64,
    pub out: u64,
    pub back: u64,
    pub is_saved: bool,
}

impl Key {
    /// What a line is of, whoever is in it.
    pub fn kind(&self) -> (Cause, Verdict) {
        (self.cause, self.verdict)
    }

    /// What the store keeps a line under.
    pub fn read(text: &str) -> Option<Self> {
        let mut words = text.splitn(4, ' ');
        let mut word = || words.next();
        let (cause, door, verdict, to) = (word()?, word()?, word()?, word()?);
        let door = Door::ALL.into_iter().find(|known| known.as_str() == door)?;
        let verdict = Verdict::ALL.iter().copied().find(|known| known.as_str() == verdict)?;
        Some(Self { to: to.into(), cause: Cause::named(cause)?, door, verdict })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { to, cause, door, verdict } = self;
        write!(f, "{} {} {verdict} {to}", cause.as_str(), door.as_str())
    }
}

impl Tally {
    /// Adds what else was seen. A last time that lies in the future, which a clock gone wrong wrote, gives way to one that does not.
    pub fn add(&mut self, other: Tally, now: u64) {
        let seen = [self.last, other.last].into_iter().filter(|last| *last <= now).max();
        *self = Tally {
            first: self.first.min(other.first),
            last: seen.unwrap_or(now),
            count: self.count.saturating_add(other.count),
            out: self.out.saturating_add(other.out),
            back: self.back.saturating_add(other.back),
            is_saved: false,
        };
    }

    /// What the store keeps beside the last time.
    pub fn value(&self) -> Vec<u8> {
        [self.first, self.count, self.out, self.back].map(u64::to_le_bytes).concat()
    }

    pub fn read(last: u64, value: &[u8]) -> Option<Self> {
        let (numbers, []) = value.as_chunks() else { return None };
        let [first, count, out, back] = <[[u8; 8]; 4]>::try_from(numbers).ok()?.map(u64::from_le_bytes);
        Some(Self { first, last, count, out, back, is_saved: true })
    }
}

impl From<(Key, Tally)> for Entry {
    fn from((key, tally): (Key, Tally)) -> Self {
        let Key { to, cause, door, verdict } = key;
        let Tally { first, last, count, out, back, is_saved: _ } = tally;
        let (first_seen, last_seen) = (time(first), time(last));
        Self {
            destination: to.into(),
            cause,
            door,
            verdict,
            count,
            bytes_out: out,
            bytes_in: back,
            first_seen,
            last_seen,
        }
    }
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

pub(super) fn time(seconds: u64) -> SystemTime {
    // What a clock gone wrong wrote is no reason to panic.
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds.min(LAST_SECOND))).unwrap_or(UNIX_EPOCH)
}

/// Times as people write them.
mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_rfc3339_seconds(*time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        humantime::parse_rfc3339(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// The end of the year 9999, which is the last that can be written.
const LAST_SECOND: u64 = 253_402_300_799;
