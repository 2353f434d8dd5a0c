//! Where things outlive the process: one file, its own thread, and a queue that never makes anybody wait for a disk.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};
use tokio::sync::oneshot;

use crate::observe::metrics::Metrics;

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
    /// How new it is. Of too many rows, those with the lowest go.
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
}

impl Store {
    /// Opens the file, or makes it, in a thread that lasts as long as any clone of this, and then has written all it was given.
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
        let (mut writes, mut waiting) = (Vec::new(), Vec::new());
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
            }
        }
        if !writes.is_empty() && file.write(&writes) == Written::Yes {
            for done in waiting {
                let _ = done.send(());
            }
        }
    }
}

impl Table {
    const ALL: [Table; 2] = [Table::ServerKeys, Table::Ledger];

    fn definition(self) -> TableDefinition<'static, &'static str, (u64, &'static [u8])> {
        TableDefinition::new(match self {
            Table::ServerKeys => "server_keys",
            Table::Ledger => "ledger",
        })
    }
}

struct File {
    path: PathBuf,
    database: Option<Database>,
    /// When it is tried again.
    again: Option<Instant>,
    /// How long it is left alone when it fails next.
    pause: Duration,
    is_told: bool,
    is_good: IntGauge,
}

impl File {
    fn new(path: &Path, metrics: &Metrics) -> Self {
        let is_good = metrics.store_last_use_successful.clone();
        Self { path: path.to_owned(), database: None, again: None, pause: SHORTEST, is_told: false, is_good }
    }

    fn open(&mut self) {
        if self.database.is_some() || self.again.is_some_and(|again| Instant::now() < again) {
            return;
        }
        match guarded(|| open(&self.path)) {
            Ok(database) => {
                self.database = Some(database);
                // One that failed has to take a row first: a full disk can still be read.
                if !self.is_told {
                    self.is_good.set(1);
                }
            }
            Err(why) => self.fail(&why),
        }
    }

    fn read(&mut self, table: Table, key: &str) -> Option<Option<Row>> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(table.definition())?;
            Ok(table.get(key)?.map(|row| {
                let (age, value) = row.value();
                Row { key: key.to_owned(), age, value: value.to_vec() }
            }))
        })
    }

    fn read_all(&mut self, table: Table) -> Option<Vec<Row>> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(table.definition())?;
            table
                .iter()?
                .map(|row| {
                    let (key, value) = row?;
                    let (age, value) = value.value();
                    Ok(Row { key: key.value().to_owned(), age, value: value.to_vec() })
                })
                .collect()
        })
    }

    fn write(&mut self, changes: &[(Table, Change)]) -> Written {
        let written = self.with(|database| {
            let transaction = database.begin_write()?;
            for table in Table::ALL {
                let changes = changes.iter().filter(|(to, _)| *to == table);
                write(&transaction, table, changes.map(|(_, change)| change))?;
            }
            transaction.commit()?;
            Ok(())
        });
        if written.is_none() {
            return Written::No;
        }
        // One that takes a row now and then, as a disk does that is nearly full, is not tried and told of each second.
        if self.again.is_none_or(|again| again.elapsed() > LONGEST) {
            self.pause = SHORTEST;
        }
        self.is_good.set(1);
        if std::mem::take(&mut self.is_told) {
            tracing::info!("the store is good again");
        }
        Written::Yes
    }

    /// Does something with the file, where it can be used.
    fn with<T>(&mut self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Option<T> {
        self.open();
        let database = self.database.as_ref()?;
        match guarded(|| work(database)) {
            Ok(done) => Some(done),
            Err(why) => {
                self.fail(&why);
                None
            }
        }
    }

    /// Goes on without the file for a while. Said once, until it is good again.
    fn fail(&mut self, why: &str) {
        self.database = None;
        self.again = Some(Instant::now() + self.pause);
        self.pause = LONGEST.min(self.pause * 2);
        self.is_good.set(0);
        if !std::mem::replace(&mut self.is_told, true) {
            let path = self.path.display();
            tracing::error!(
                %path, why,
                "the store cannot be used: keys of servers, and the ledger of who was contacted, are kept in memory only. It is \
                 tried again, within a minute at the latest; a file that is broken can be removed while Mantlet is stopped: keys are then asked \
                 for again, and the ledger begins anew"
            );
        }
    }
}

fn open(path: &Path) -> Result<Database, redb::Error> {
    // Nobody else's to change; what is in it is no secret but for whom we know.
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    drop(file.map_err(redb::Error::from)?);
    let database = Database::builder().set_cache_size(CACHE).create(path)?;
    let transaction = database.begin_write()?;
    for table in Table::ALL {
        transaction.open_table(table.definition())?;
    }
    transaction.commit()?;
    Ok(database)
}

fn write<'a>(
    transaction: &WriteTransaction,
    table: Table,
    changes: impl Iterator<Item = &'a Change>,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(table.definition())?;
    for change in changes {
        match change {
            Change::Keep(row) => drop(table.insert(row.key.as_str(), (row.age, row.value.as_slice()))?),
            Change::Forget(key) => drop(table.remove(key.as_str())?),
        }
    }
    if table.len()? > MOST_ROWS {
        let mut ages = table.iter()?.map(|row| Ok(row?.1.value().0)).collect::<Result<Vec<_>, redb::Error>>()?;
        ages.sort_unstable();
        let oldest = ages[ages.len() / 10];
        table.retain(|_, (age, _)| age > oldest)?;
    }
    Ok(())
}

/// What a broken file makes of the library is an error, too.
fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_panic) => Err("the file is corrupt".into()),
    }
}

/// Jobs that wait for the disk.
const QUEUE: usize = 4096;
/// Of each table; of more, the oldest tenth goes.
pub const MOST_ROWS: u64 = 50_000;
const CACHE: usize = 4 * 1024 * 1024;
/// How long a file that failed is left alone, at first and at most.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    fn row(key: &str, age: u64, value: &str) -> Row {
        Row { key: key.to_owned(), age, value: value.as_bytes().to_vec() }
    }

    fn keep(key: &str, age: u64, value: &str) -> Change {
        Change::Keep(row(key, age, value))
    }

    const KEYS: Table = Table::ServerKeys;

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

    #[test]
    fn a_file_that_fails_is_left_alone_for_longer_each_time_and_no_longer_once_it_is_good() {
        let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(&[]));
        let mut file = File::new(&dir.path().join("later/store.redb"), &metrics);
        let rows = [(KEYS, keep("a.example", 7, "{}"))];
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            let before = Instant::now();
            file.again = None;
            assert_eq!(file.write(&rows), Written::No);
            let again = file.again.unwrap().duration_since(before).as_secs();
            assert!(file.is_told && again == pause, "{again} {pause}");
        }
        std::fs::create_dir(dir.path().join("later")).unwrap();
        // Not before its time.
        assert_eq!(file.read(KEYS, "a.example"), None);
        assert!(file.database.is_none() && !file.path.exists());
        file.again = None;
        assert_eq!((file.read(KEYS, "a.example"), file.is_told, file.is_good.get()), (Some(None), true, 0));
        assert_eq!((file.write(&rows), file.is_told, file.pause), (Written::Yes, false, SHORTEST));
        assert_eq!(file.is_good.get(), 1);
        // One that fails again soon is left alone for longer.
        file.fail("for once");
        assert!(file.database.is_none());
        file.again = Some(Instant::now());
        assert_eq!((file.write(&rows), file.is_told, file.pause), (Written::Yes, false, 2 * SHORTEST));
        // One that has been good for long enough is new again.
        file.again = Instant::now().checked_sub(LONGEST + SHORTEST);
        assert!(file.again.is_some());
        assert_eq!((file.write(&rows), file.pause), (Written::Yes, SHORTEST));
    }

    #[test]
    fn a_table_that_is_full_forgets_the_oldest() {
        let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(&[]));
        let mut file = File::new(&dir.path().join("store.redb"), &metrics);
        let rows: Vec<_> = (0..=MOST_ROWS).map(|age| (KEYS, keep(&format!("s{age}.example"), age, "x"))).collect();
        assert_eq!(file.write(&rows), Written::Yes);
        assert_eq!(file.read(KEYS, "s0.example"), Some(None));
        assert_eq!(file.read(KEYS, "s50000.example"), Some(Some(row("s50000.example", 50_000, "x"))));
    }
}
