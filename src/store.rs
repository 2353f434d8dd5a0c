//! Where things outlive the process: one file, its own thread, and a queue that never makes anybody wait for a disk.

mod file;

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use tokio::sync::oneshot;

use crate::observe::metrics::Metrics;
use file::File;

pub use file::MOST_ROWS;

/// The way to the file. Clones lead to the same.
#[derive(Clone)]
pub struct Store {
    jobs: SyncSender<Job>,
}

/// What is kept in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Keys of other servers, by their names; as old as the answer.
    ServerKeys,
    /// Who was contacted; as old as the last time.
    Ledger,
}

/// What is kept of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which it is: no two rows of a table have the same.
    pub key: String,
    /// How new it is. Of too many rows, those with the lowest go; of keys, those of the domain that has most.
    pub age: u64,
    /// The rest.
    pub value: Vec<u8>,
}

/// What becomes of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is kept, in place of one with the same key.
    Keep(Row),
    /// That of this key goes, if there is one.
    Forget(String),
}

enum Job {
    // What cannot be read is not answered.
    Read(Table, String, oneshot::Sender<Option<Row>>),
    ReadAll(Table, oneshot::Sender<Vec<Row>>),
    Write(Table, Vec<Change>, Option<oneshot::Sender<()>>),
    End,
}

impl Store {
    /// Opens the file, or makes it, in a thread that lasts as long as any clone of this, or until its end is asked for, and then has written all it was given.
    /// A file that cannot be opened is told, and tried again now and then.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(path: &Path, metrics: &Metrics) -> std::io::Result<(Self, thread::JoinHandle<()>)> {
        let (jobs, queue) = sync_channel(QUEUE);
        let file = File::new(path, metrics);
        let thread = thread::Builder::new().name("store".into()).spawn(move || run(file, &queue))?;
        Ok((Self { jobs }, thread))
    }

    /// The row of this key, if there is one. However long the disk takes: whoever cannot wait for it has to leave.
    ///
    /// # Errors
    /// The file cannot be read, or the disk is behind.
    pub async fn read(&self, table: Table, key: &str) -> Result<Option<Row>, Unread> {
        let (answer, answered) = oneshot::channel();
        self.jobs.try_send(Job::Read(table, key.to_owned(), answer)).map_err(|_| Unread)?;
        answered.await.map_err(|_| Unread)
    }

    /// All rows; nothing where the file cannot be read, or the disk is behind.
    pub async fn read_all(&self, table: Table) -> Option<Vec<Row>> {
        let (answer, answered) = oneshot::channel();
        self.jobs.try_send(Job::ReadAll(table, answer)).ok()?;
        answered.await.ok()
    }

    /// Keeps this, unless the disk is behind.
    pub fn write(&self, table: Table, row: Row) {
        let _ = self.jobs.try_send(Job::Write(table, vec![Change::Keep(row)], None));
    }

    /// Makes these changes in their order, and says whether they are on the disk.
    pub async fn write_all(&self, table: Table, changes: Vec<Change>) -> Written {
        let (done, is_done) = oneshot::channel();
        if self.jobs.try_send(Job::Write(table, changes, Some(done))).is_err() {
            return Written::No;
        }
        is_done.await.map_or(Written::No, |()| Written::Yes)
    }

    /// Makes these changes before the thread ends, and waits for nothing but a place in the queue.
    pub fn write_last(&self, table: Table, changes: Vec<Change>) {
        // A thread that is gone writes nothing any more.
        let _ = self.jobs.send(Job::Write(table, changes, None));
    }

    /// Has the file closed and the thread end, once all that it was given is written. Waits for nothing but a place in the queue.
    pub fn end(&self) {
        // It may have ended by itself.
        let _ = self.jobs.send(Job::End);
    }
}

#[cfg(test)]
impl Store {
    /// One whose disk hangs, and how often it was wanted since that was looked at.
    pub fn hanging() -> (Self, impl Fn() -> usize) {
        let (jobs, queue) = sync_channel(QUEUE);
        (Self { jobs }, move || queue.try_iter().count())
    }
}

/// Nobody knows what is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread;

/// Whether something is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is.
    Yes,
    /// It is not.
    No,
}

fn run(mut file: File, queue: &Receiver<Job>) {
    file.open();
    while let Ok(first) = queue.recv() {
        let (mut writes, mut waiting, mut is_over) = (Vec::new(), Vec::new(), false);
        for job in std::iter::once(first).chain(queue.try_iter().take(QUEUE)) {
            match job {
                Job::Write(table, changes, done) => {
                    writes.extend(changes.into_iter().map(|change| (table, change)));
                    waiting.extend(done);
                }
                // Whoever asked may have given up.
                Job::Read(_, _, answer) if answer.is_closed() => {}
                Job::Read(table, key, answer) => {
                    if let Some(row) = file.read(table, &key) {
                        let _ = answer.send(row);
                    }
                }
                Job::ReadAll(table, answer) => {
                    if let Some(rows) = file.read_all(table) {
                        let _ = answer.send(rows);
                    }
                }
                Job::End => is_over = true,
            }
        }
        if !writes.is_empty() && file.write(&writes) == Written::Yes {
            for done in waiting {
                let _ = done.send(());
            }
        }
        if is_over {
            return;
        }
    }
}

/// Jobs that wait for the disk.
const QUEUE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    pub(super) fn row(key: &str, age: u64, value: &str) -> Row {
        Row { key: key.to_owned(), age, value: value.as_bytes().to_vec() }
    }

    pub(super) fn keep(key: &str, age: u64, value: &str) -> Change {
        Change::Keep(row(key, age, value))
    }

    pub(super) const KEYS: Table = Table::ServerKeys;

    #[test]
    fn what_was_written_is_there_after_a_restart_each_in_its_table() {
        let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(&[]));
        let path = dir.path().join("store.redb");
        let mut file = File::new(&path, &metrics);
        assert_eq!(file.write(&[(KEYS, keep("a.example", 7, "{}"))]), Written::Yes);
        drop(file);
        let (store, thread) = Store::start(&path, &metrics).unwrap();
        runtime().block_on(async {
            assert_eq!(store.read(KEYS, "a.example").await, Ok(Some(row("a.example", 7, "{}"))));
            assert_eq!(store.read(KEYS, "b.example").await, Ok(None));
            assert_eq!(store.read(Table::Ledger, "a.example").await, Ok(None));
            assert_eq!(store.write_all(Table::Ledger, vec![keep("a", 1, "x"), keep("b", 2, "y")]).await, Written::Yes);
            assert_eq!(store.read_all(Table::Ledger).await, Some(vec![row("a", 1, "x"), row("b", 2, "y")]));
        });
        store.write(KEYS, row("b.example", 8, "[]"));
        let forget = |key: &str| Change::Forget(key.to_owned());
        store.write_last(Table::Ledger, vec![forget("a"), keep("a", 3, "z"), forget("b"), forget("c")]);
        drop(store);
        thread.join().unwrap();
        let mut file = File::new(&path, &metrics);
        assert_eq!(file.read(KEYS, "b.example"), Some(Some(row("b.example", 8, "[]"))));
        assert_eq!(file.read_all(Table::Ledger), Some(vec![row("a", 3, "z")]));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(metrics.store_last_use_successful.get(), 1);
    }

    #[test]
    fn a_file_that_is_broken_or_full_or_nowhere_is_done_without() {
        let dir = tempfile::tempdir().unwrap();
        let garbage = dir.path().join("garbage.redb");
        std::fs::write(&garbage, [0x55; 100_000]).unwrap();
        let nowhere = dir.path().join("no/such/directory.redb");
        for path in [garbage, nowhere, dir.path().to_owned(), "/dev/full".into()] {
            let metrics = Metrics::new(&[]);
            let (store, _thread) = Store::start(&path, &metrics).unwrap();
            store.write(KEYS, row("a.example", 7, "{}"));
            runtime().block_on(async {
                assert_eq!(store.read(KEYS, "a.example").await, Err(Unread), "{path:?}");
                assert_eq!(store.read_all(KEYS).await, None, "{path:?}");
                assert_eq!(store.write_all(KEYS, vec![keep("a.example", 7, "{}")]).await, Written::No, "{path:?}");
            });
            assert_eq!(metrics.store_last_use_successful.get(), 0, "{path:?}");
        }
    }
}
