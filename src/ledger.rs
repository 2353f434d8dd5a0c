//! The ledger: whom this server asked, and whom it would have asked. Servers and hosts stand in it, no path and no user.
//!
//! It is kept in memory, shared by all workers, and saved now and then to the store, where there is one.

mod contact;
mod entry;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::observe::access::{self, AccessRecord};
use crate::observe::metrics::{ContactMetrics, Metrics};
use crate::store::{Change, Row, Store, Table, Written};
use contact::Answers;
use entry::{Key, Tally, seconds};

pub use crate::observe::metrics::Contacted as Verdict;
pub use contact::{Contact, Door};
pub use entry::Entry;

/// Who was contacted, for all workers.
pub struct Ledger {
    rows: Mutex<Rows>,
    most: usize,
    store: Option<Store>,
    metrics: ContactMetrics,
}

#[derive(Default)]
struct Rows {
    known: HashMap<Key, Tally>,
    /// What was forgotten, and may be in the store.
    gone: Vec<Key>,
    /// Whether what the store holds is among them.
    is_loaded: bool,
}

impl Ledger {
    /// An empty one that keeps so many lines, and saves them here.
    pub fn new(most: usize, store: Option<Store>, metrics: &Metrics) -> Arc<Self> {
        let metrics = metrics.contacts();
        Arc::new(Self { rows: Mutex::default(), most, store: store.filter(|_| most > 0), metrics })
    }

    /// Whether anything is written down.
    pub fn is_kept(&self) -> bool {
        self.most > 0
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
        if !rows.is_loaded {
            return;
        }
        let unsaved = rows.take_unsaved();
        // Nobody else is kept waiting by a disk that is behind.
        drop(rows);
        store.write_last(Table::Ledger, unsaved);
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
        if store.write_all(Table::Ledger, unsaved.clone()).await == Written::No {
            self.rows().put_back(unsaved);
        }
    }

    /// Adds what was kept to what was seen since.
    fn load(&self, kept: Vec<Row>) {
        let mut rows = self.rows();
        let now = seconds(SystemTime::now());
        for row in kept {
            if let (Some(key), Some(tally)) = (Key::read(&row.key), Tally::read(row.age, &row.value)) {
                rows.add(key, tally, now);
            }
        }
        // What was forgotten before is known again.
        rows.gone.clear();
        rows.is_loaded = true;
        self.make_room(&mut rows);
    }

    fn enter(&self, contact: Contact, verdict: Verdict, count: u64, out: u64, back: u64) {
        self.metrics.bytes(contact.cause, out, back);
        if !self.is_kept() {
            return;
        }
        let Contact { to, cause, door, answers: _ } = contact;
        let now = seconds(SystemTime::now());
        let tally = Tally { first: now, last: now, count, out, back, is_saved: false };
        let mut rows = self.rows();
        rows.add(Key { to, cause, door, verdict }, tally, now);
        self.make_room(&mut rows);
    }

    fn make_room(&self, rows: &mut Rows) {
        while rows.known.len() > self.most {
            let gone = rows.forget_some();
            self.metrics.forgotten.inc_by(gone.len() as u64);
            // What the store cannot be told of soon is not remembered for its sake.
            if self.store.is_some() && rows.gone.len() < self.most {
                rows.gone.extend(gone);
            }
        }
        self.metrics.lines.set(i64::try_from(rows.known.len()).unwrap_or(i64::MAX));
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        // Nothing in here panics half-way.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rows {
    fn add(&mut self, key: Key, tally: Tally, now: u64) {
        match self.known.entry(key) {
            Place::Vacant(place) => {
                place.insert(tally);
            }
            Place::Occupied(mut place) => place.get_mut().add(tally, now),
        }
    }

    /// What the store does not know yet; it is taken for saved.
    fn take_unsaved(&mut self) -> Vec<Change> {
        let gone = self.gone.drain(..).map(|key| Change::Forget(key.to_string()));
        let unsaved = self.known.iter_mut().filter(|(_, tally)| !tally.is_saved);
        let rows = unsaved.map(|(key, tally)| {
            tally.is_saved = true;
            Change::Keep(Row { key: key.to_string(), age: tally.last, value: tally.value() })
        });
        // One that was forgotten and is there again is kept.
        gone.chain(rows).collect()
    }

    /// What was taken is not saved.
    fn put_back(&mut self, unsaved: Vec<Change>) {
        for change in unsaved {
            match change {
                Change::Keep(row) => {
                    if let Some(tally) = Key::read(&row.key).and_then(|key| self.known.get_mut(&key)) {
                        tally.is_saved = false;
                    }
                }
                Change::Forget(key) => self.gone.extend(Key::read(&key)),
            }
        }
    }

    /// Forgets a tenth of those lines of which there are most, for one cause with one outcome: those that were not seen for longest.
    /// A time that lies in the future is nobody's last time; there is no telling how long ago it was. So whoever can have a line written, for names that he makes up, pushes out none but the like.
    fn forget_some(&mut self) -> Vec<Key> {
        let mut counts = HashMap::new();
        for key in self.known.keys() {
            *counts.entry(key.kind()).or_insert(0_usize) += 1;
        }
        let Some((kind, count)) = counts.into_iter().max_by_key(|(_, count)| *count) else { return Vec::new() };
        let mut oldest: Vec<_> = self.known.iter().filter(|(key, _)| key.kind() == kind).collect();
        let now = seconds(SystemTime::now());
        oldest.select_nth_unstable_by_key(count / 10, |(_, tally)| (tally.last <= now, tally.last));
        oldest.truncate(count / 10 + 1);
        let gone: Vec<Key> = oldest.into_iter().map(|(key, _)| key.clone()).collect();
        for key in &gone {
            self.known.remove(key);
        }
        gone
    }
}

/// How long a contact may be known to the memory alone.
const EVERY: Duration = Duration::from_secs(10);
#[cfg(test)]
mod tests;
