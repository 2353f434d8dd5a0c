//! The ledger: whom this server asked, and whom it would have asked. Servers and hosts stand in it, no path and no user.
//!
//! It is kept in memory, shared by all workers, and saved now and then to the store, where there is one.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::matrix::{Host, ServerName};
use crate::observe::access::{self, AccessRecord};
use crate::observe::metrics::{ContactMetrics, Metrics};
use crate::policy::Cause;
use crate::store::{self, Store, Table, Written};

pub use crate::observe::metrics::Contacted as Verdict;

/// Who was contacted, for all workers.
pub struct Ledger {
    rows: Mutex<Rows>,
    most: usize,
    store: Option<Store>,
    metrics: ContactMetrics,
}

/// Somebody who is asked, as long as it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// A server's name, or a host and a port.
    to: Box<str>,
    cause: Cause,
    door: Door,
    answers: Answers,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    There,
    /// The same, through a tunnel that is written down already.
    Unread,
    Here,
}

/// The way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// What Synapse asks other servers.
    Federation,
    /// What else it asks.
    Proxy,
    /// Keys, which it asks us for as of any notary.
    Notary,
}

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

#[derive(Default)]
struct Rows {
    known: HashMap<Key, Tally>,
    /// Whether what the store holds is among them.
    is_loaded: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    to: Box<str>,
    cause: Cause,
    door: Door,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tally {
    /// Seconds since 1970.
    first: u64,
    last: u64,
    count: u64,
    out: u64,
    back: u64,
    is_saved: bool,
}

impl Ledger {
    /// An empty one that keeps so many lines, and saves them here.
    pub fn new(most: usize, store: Option<Store>, metrics: &Metrics) -> Arc<Self> {
        let metrics = metrics.contacts();
        Arc::new(Self { rows: Mutex::default(), most, store: store.filter(|_| most > 0), metrics })
    }

    /// Writes down what came of a contact.
    pub fn note(&self, contact: Contact, verdict: Verdict, out: u64, back: u64) {
        self.metrics.contact(contact.cause, verdict);
        self.enter(contact, verdict, 1, out, back);
    }

    /// Writes down a tunnel that is open now. What flows through it is added by [`Ledger::exchanged`] when it ends.
    pub fn opened(&self, contact: Contact) -> Contact {
        self.note(contact.clone(), Verdict::Tunnelled, 0, 0);
        Contact { answers: Answers::Unread, ..contact }
    }

    /// Writes down what came of an exchange, as its record says.
    pub fn exchanged(&self, contact: Contact, record: &AccessRecord) {
        if contact.answers == Answers::Unread {
            return self.enter(contact, Verdict::Tunnelled, 0, record.bytes_in, record.bytes_out);
        }
        let has_answered = record.upstream_us.is_some();
        let verdict = match (record.decision, contact.answers) {
            (access::Decision::Permit, Answers::There | Answers::Unread) => Verdict::Passed,
            (access::Decision::Permit, Answers::Here) | (access::Decision::Answer, _) => Verdict::Answered,
            (access::Decision::Deny, _) => Verdict::Denied,
            (access::Decision::Error, _) => Verdict::Failed,
            // Who asked went away: before there was an answer, or while it came.
            (access::Decision::Cancelled, Answers::There) if has_answered => Verdict::Passed,
            (access::Decision::Cancelled, _) => Verdict::Failed,
        };
        let (out, back) = match verdict {
            Verdict::Answered | Verdict::Denied => (0, 0),
            // What it got was ours.
            Verdict::Failed if !has_answered => (record.bytes_in, 0),
            Verdict::Passed | Verdict::Tunnelled | Verdict::Failed => (record.bytes_in, record.bytes_out),
        };
        self.note(contact, verdict, out, back);
    }

    /// All lines: what nobody named first, then the rarer causes; of one cause, the most frequent first.
    pub fn entries(&self) -> Vec<Entry> {
        let rows: Vec<_> = self.rows().known.iter().map(|(key, tally)| (key.clone(), *tally)).collect();
        let mut entries: Vec<_> = rows.into_iter().map(Entry::from).collect();
        entries.sort_by(|a, b| {
            b.cause.cmp(&a.cause).then(b.count.cmp(&a.count)).then_with(|| a.destination.cmp(&b.destination))
        });
        entries
    }

    /// Saves what is new, now and then, for as long as this is polled.
    pub async fn keep(&self) {
        let Some(store) = &self.store else { return };
        loop {
            self.save(store).await;
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Saves what is new; the store's thread writes it before it ends.
    pub fn save_last(&self) {
        let Some(store) = &self.store else { return };
        let mut rows = self.rows();
        // What is in the store would be lost under what is not added to it.
        if rows.is_loaded {
            store.write_last(Table::Ledger, rows.take_unsaved());
        }
    }

    async fn save(&self, store: &Store) {
        if !self.rows().is_loaded {
            let Some(kept) = store.read_all(Table::Ledger).await else { return };
            self.load(kept);
        }
        let unsaved = self.rows().take_unsaved();
        if unsaved.is_empty() {
            return;
        }
        let keys: Vec<_> = unsaved.iter().map(|row| row.key.clone()).collect();
        if store.write_all(Table::Ledger, unsaved).await == Written::No {
            let mut rows = self.rows();
            for key in keys.iter().filter_map(|key| Key::read(key)) {
                if let Some(tally) = rows.known.get_mut(&key) {
                    tally.is_saved = false;
                }
            }
        }
    }

    /// Adds what was kept to what was seen since.
    fn load(&self, mut kept: Vec<store::Row>) {
        kept.sort_unstable_by_key(|row| std::cmp::Reverse(row.age));
        let mut rows = self.rows();
        for row in kept {
            if rows.known.len() >= self.most {
                break;
            }
            if let (Some(key), Some(tally)) = (Key::read(&row.key), Tally::read(row.age, &row.value)) {
                self.add(&mut rows, key, tally);
            }
        }
        rows.is_loaded = true;
    }

    fn enter(&self, contact: Contact, verdict: Verdict, count: u64, out: u64, back: u64) {
        self.metrics.bytes(contact.cause, out, back);
        if self.most == 0 {
            return;
        }
        let Contact { to, cause, door, answers: _ } = contact;
        let now = seconds(SystemTime::now());
        let tally = Tally { first: now, last: now, count, out, back, is_saved: false };
        self.add(&mut self.rows(), Key { to, cause, door, verdict }, tally);
    }

    fn add(&self, rows: &mut Rows, key: Key, tally: Tally) {
        if rows.known.len() >= self.most && !rows.known.contains_key(&key) {
            self.metrics.forgotten.inc_by(rows.forget_oldest());
        }
        match rows.known.entry(key) {
            Place::Vacant(place) => {
                place.insert(tally);
            }
            Place::Occupied(mut place) => place.get_mut().add(tally),
        }
        self.metrics.lines.set(i64::try_from(rows.known.len()).unwrap_or(i64::MAX));
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        // Nothing in here panics half-way.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contact {
    /// Another server, by its name.
    pub fn server(server: &ServerName, cause: Cause, door: Door) -> Self {
        let name = Name { host: server.host(), port: server.port() };
        Self { to: name.to_string().into(), cause, door, answers: Answers::There }
    }

    /// A host at a port.
    pub fn host(host: &Host, port: u16, cause: Cause, door: Door) -> Self {
        let name = Name { host, port: Some(port) };
        Self { to: name.to_string().into(), cause, door, answers: Answers::There }
    }

    /// The same, answered here.
    pub fn answered_here(self) -> Self {
        Self { answers: Answers::Here, ..self }
    }

    /// The same, for this reason if there was none.
    pub fn or_because(self, cause: Option<Cause>) -> Self {
        match (self.cause, cause) {
            (Cause::Other, Some(cause)) => Self { cause, ..self },
            _ => self,
        }
    }

    /// Another server in its place, for the same reason.
    pub fn instead(self, other: &ServerName) -> Self {
        Self::server(other, self.cause, self.door)
    }
}

/// A host as it stands in the ledger: two spellings of one are one.
struct Name<'a> {
    host: &'a Host,
    port: Option<u16>,
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
            host => host.fmt(f)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl Door {
    /// All of them.
    pub const ALL: [Door; 3] = [Door::Federation, Door::Proxy, Door::Notary];

    /// The word in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Door::Federation => "federation",
            Door::Proxy => "proxy",
            Door::Notary => "notary",
        }
    }
}

impl Rows {
    /// What the store does not have yet; it is taken for saved.
    fn take_unsaved(&mut self) -> Vec<store::Row> {
        let unsaved = self.known.iter_mut().filter(|(_, tally)| !tally.is_saved);
        let rows = unsaved.map(|(key, tally)| {
            tally.is_saved = true;
            store::Row { key: key.to_string(), age: tally.last, value: tally.value() }
        });
        rows.collect()
    }

    /// Makes room: a tenth, those that were not seen for longest. How many that is.
    fn forget_oldest(&mut self) -> u64 {
        let mut last: Vec<_> = self.known.values().map(|tally| tally.last).collect();
        let tenth = last.len() / 10;
        let (_, oldest, _) = last.select_nth_unstable(tenth);
        let (oldest, before) = (*oldest, self.known.len());
        let mut left = tenth + 1;
        self.known.retain(|_, tally| {
            let goes = left > 0 && tally.last <= oldest;
            left -= usize::from(goes);
            !goes
        });
        (before - self.known.len()) as u64
    }
}

impl Key {
    fn read(text: &str) -> Option<Self> {
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
    fn add(&mut self, other: Tally) {
        *self = Tally {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            count: self.count.saturating_add(other.count),
            out: self.out.saturating_add(other.out),
            back: self.back.saturating_add(other.back),
            is_saved: false,
        };
    }

    /// What the store keeps beside the last time.
    fn value(&self) -> Vec<u8> {
        [self.first, self.count, self.out, self.back].map(u64::to_le_bytes).concat()
    }

    fn read(last: u64, value: &[u8]) -> Option<Self> {
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

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn time(seconds: u64) -> SystemTime {
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

/// How long a contact may be known to the memory alone.
const EVERY: Duration = Duration::from_secs(10);
/// The end of the year 9999, which is the last that can be written.
const LAST_SECOND: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    fn contact(to: &str, cause: Cause) -> Contact {
        Contact::server(&ServerName::parse(to).unwrap(), cause, Door::Federation)
    }

    fn ledger(most: usize, store: Option<&Store>) -> Arc<Ledger> {
        Ledger::new(most, store.cloned(), &Metrics::new(&[]))
    }

    fn lines(ledger: &Ledger) -> Vec<String> {
        let line = |entry: Entry| {
            let Entry { destination, cause, verdict, count, bytes_out, bytes_in, .. } = entry;
            format!("{destination} {} {verdict} {count} {bytes_out} {bytes_in}", cause.as_str())
        };
        ledger.entries().into_iter().map(line).collect()
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn one_server_for_one_reason_with_one_outcome_is_one_line() {
        let ledger = ledger(10, None);
        ledger.note(contact("A.example", Cause::Keys), Verdict::Passed, 1, 10);
        ledger.note(contact("a.example", Cause::Keys), Verdict::Passed, 2, 20);
        ledger.note(contact("a.example", Cause::Keys), Verdict::Failed, 3, 0);
        ledger.note(contact("a.example:8448", Cause::Federation), Verdict::Passed, 4, 40);
        ledger.note(contact("[2001:DB8::1]:8448", Cause::Federation), Verdict::Passed, 0, 0);
        let host = Host::Name("push.example".into());
        ledger.note(Contact::host(&host, 443, Cause::Other, Door::Proxy), Verdict::Tunnelled, 5, 50);
        assert_eq!(
            lines(&ledger),
            [
                "push.example:443 other tunnelled 1 5 50",
                "a.example keys passed 2 3 30",
                "a.example keys failed 1 3 0",
                "[2001:db8::1]:8448 federation passed 1 0 0",
                "a.example:8448 federation passed 1 4 40",
            ]
        );
    }

    #[test]
    fn a_full_ledger_forgets_who_was_not_seen_for_longest() {
        let ledger = ledger(100, None);
        for number in 0..100_u64 {
            let key = Key::read(&format!("keys federation passed s{number}")).unwrap();
            let tally = Tally { first: 0, last: number, count: 1, out: 0, back: 0, is_saved: true };
            ledger.add(&mut ledger.rows(), key, tally);
        }
        ledger.note(contact("s1", Cause::Keys), Verdict::Passed, 0, 0);
        assert_eq!((ledger.entries().len(), ledger.metrics.forgotten.get()), (100, 0));
        ledger.note(contact("new", Cause::Keys), Verdict::Passed, 0, 0);
        let left: Vec<_> = ledger.entries().into_iter().map(|entry| entry.destination).collect();
        assert_eq!((left.len(), ledger.metrics.forgotten.get(), ledger.metrics.lines.get()), (90, 11, 90));
        assert!(
            left.contains(&"s1".to_owned()) && left.contains(&"new".to_owned()) && left.contains(&"s12".to_owned())
        );
        assert!(!left.contains(&"s0".to_owned()) && !left.contains(&"s11".to_owned()));
        // Also where all were seen in one second.
        let ledger = self::ledger(3, None);
        for name in ["a", "b", "c", "d", "e"] {
            ledger.note(contact(name, Cause::Keys), Verdict::Passed, 0, 0);
            assert!((1..=3).contains(&ledger.entries().len()));
        }
    }

    #[test]
    fn what_was_seen_before_a_restart_is_added_to_what_is_seen_after_it() {
        let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(&[]));
        let path = dir.path().join("store.redb");
        for round in 1..=3 {
            let (store, thread) = Store::start(&path, &metrics).unwrap();
            let ledger = ledger(10, Some(&store));
            ledger.note(contact("a.example", Cause::Keys), Verdict::Passed, 1, 10);
            runtime().block_on(ledger.save(&store));
            assert_eq!(lines(&ledger), [format!("a.example keys passed {} {} {}", 2 * round - 1, round, 10 * round)]);
            // At the end, nobody waits for the next time.
            ledger.note(contact("a.example", Cause::Keys), Verdict::Passed, 0, 0);
            ledger.save_last();
            drop((ledger, store));
            thread.join().unwrap();
        }
    }

    #[test]
    fn what_could_not_be_saved_is_saved_once_it_can_be() {
        let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(&[]));
        let nowhere = dir.path().join("no/such/directory.redb");
        let (store, _thread) = Store::start(&nowhere, &metrics).unwrap();
        let ledger = ledger(10, Some(&store));
        ledger.note(contact("a.example", Cause::Keys), Verdict::Passed, 1, 10);
        runtime().block_on(ledger.save(&store));
        // Nothing was read, so nothing may be written over what may be there.
        assert!(!ledger.rows().is_loaded);
        ledger.load(Vec::new());
        runtime().block_on(ledger.save(&store));
        assert_eq!(ledger.rows().take_unsaved().len(), 1);
        assert_eq!(lines(&ledger), ["a.example keys passed 1 1 10"]);
    }

    #[test]
    fn a_line_that_cannot_be_read_is_left_out_and_the_rest_is_kept() {
        let ledger = ledger(2, None);
        let row = |key: &str, age, value: Vec<u8>| store::Row { key: key.into(), age, value };
        let good = Tally { first: 1, last: 9, count: 2, out: 3, back: 4, is_saved: true };
        assert_eq!(Tally::read(9, &good.value()), Some(good));
        ledger.load(vec![
            row("keys federation passed old.example", 1, good.value()),
            row("keys federation passed a.example", 9, good.value()),
            row("keys federation passed b.example", 9, vec![0; 31]),
            row("gossip federation passed c.example", 9, good.value()),
            row("keys window passed d.example", 9, good.value()),
            row("keys", 9, good.value()),
            row("other proxy denied e.example:443", 8, good.value()),
        ]);
        // Of too many, the newest.
        assert_eq!(lines(&ledger), ["e.example:443 other denied 2 3 4", "a.example keys passed 2 3 4"]);
        assert_eq!(ledger.rows().take_unsaved(), []);
    }

    #[test]
    fn a_ledger_of_no_lines_only_counts() {
        let ledger = ledger(0, None);
        ledger.note(contact("a.example", Cause::Keys), Verdict::Passed, 1, 10);
        assert!(ledger.entries().is_empty());
    }

    #[test]
    fn a_clock_that_went_wrong_is_no_reason_to_panic() {
        for seconds in [0, 1_700_000_000, u64::MAX] {
            let text = humantime::format_rfc3339_seconds(time(seconds)).to_string();
            assert!(humantime::parse_rfc3339(&text).is_ok(), "{text}");
        }
    }
}
