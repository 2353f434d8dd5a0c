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
use crate::store::{self, Store, Table, Written};
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
    /// Whether what the store holds is among them.
    is_loaded: bool,
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

/// How long a contact may be known to the memory alone.
const EVERY: Duration = Duration::from_secs(10);
#[cfg(test)]
mod tests;
