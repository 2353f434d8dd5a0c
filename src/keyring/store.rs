//! Where keys outlive the process: one file, its own thread, and a queue that never makes anybody wait for a disk.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use tokio::sync::oneshot;

/// The way to the file. Clones lead to the same.
#[derive(Clone)]
pub struct Store {
    jobs: SyncSender<Job>,
}

enum Job {
    Read(String, oneshot::Sender<Option<Row>>),
    Write(String, Row),
}

/// When keys were asked for, and the object.
pub(super) type Row = (u64, Vec<u8>);

const KEYS: TableDefinition<'static, &str, (u64, &[u8])> = TableDefinition::new("server_keys");

impl Store {
    /// Opens the file, or makes it, in a thread that lasts as long as any clone of this, and then has written all it was given.
    /// A file that cannot be opened is told, and tried again now and then.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(path: &Path) -> std::io::Result<(Self, thread::JoinHandle<()>)> {
        let (jobs, queue) = sync_channel(QUEUE);
        let file = File::new(path);
        let thread = thread::Builder::new().name("keys".into()).spawn(move || run(file, &queue))?;
        Ok((Self { jobs }, thread))
    }

    /// What is kept of this server; nothing where the disk is behind.
    pub(super) async fn read(&self, server: &str) -> Option<Row> {
        let (answer, answered) = oneshot::channel();
        self.jobs.try_send(Job::Read(server.to_owned(), answer)).ok()?;
        answered.await.ok().flatten()
    }

    /// Keeps this of a server, unless the disk is behind: then it is asked for again after a restart.
    pub(super) fn write(&self, server: &str, fetched: u64, text: &str) {
        let _ = self.jobs.try_send(Job::Write(server.to_owned(), (fetched, text.as_bytes().to_vec())));
    }
}

fn run(mut file: File, queue: &Receiver<Job>) {
    file.open();
    while let Ok(first) = queue.recv() {
        let mut writes = Vec::new();
        for job in std::iter::once(first).chain(queue.try_iter().take(QUEUE)) {
            match job {
                Job::Write(server, row) => writes.push((server, row)),
                Job::Read(server, answer) => {
                    // Whoever asked may have given up.
                    let _ = answer.send(file.read(&server));
                }
            }
        }
        if !writes.is_empty() {
            file.write(&writes);
        }
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
}

impl File {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), database: None, again: None, pause: SHORTEST, is_told: false }
    }

    fn open(&mut self) {
        if self.database.is_some() || self.again.is_some_and(|again| Instant::now() < again) {
            return;
        }
        match guarded(|| open(&self.path)) {
            Ok(database) => self.database = Some(database),
            Err(why) => self.fail(&why),
        }
    }

    fn read(&mut self, server: &str) -> Option<Row> {
        self.open();
        let database = self.database.as_ref()?;
        let read = || {
            let table = database.begin_read()?.open_table(KEYS)?;
            Ok(table.get(server)?.map(|row| (row.value().0, row.value().1.to_vec())))
        };
        guarded(read).unwrap_or_else(|why| {
            self.fail(&why);
            None
        })
    }

    fn write(&mut self, rows: &[(String, Row)]) {
        self.open();
        let Some(database) = self.database.as_ref() else { return };
        let write = || {
            let transaction = database.begin_write()?;
            {
                let mut table = transaction.open_table(KEYS)?;
                for (server, (fetched, text)) in rows {
                    table.insert(server.as_str(), (*fetched, text.as_slice()))?;
                }
                if table.len()? > MOST_SERVERS {
                    let mut ages =
                        table.iter()?.map(|row| Ok(row?.1.value().0)).collect::<Result<Vec<_>, redb::Error>>()?;
                    ages.sort_unstable();
                    let oldest = ages[ages.len() / 10];
                    table.retain(|_, (fetched, _)| fetched > oldest)?;
                }
            }
            transaction.commit()?;
            Ok(())
        };
        match guarded(write) {
            // Only now: a full disk can still be read.
            Ok(()) => {
                // One that takes a row now and then, as a disk does that is nearly full, is not tried and told of each second.
                if self.again.is_none_or(|again| again.elapsed() > LONGEST) {
                    self.pause = SHORTEST;
                }
                if std::mem::take(&mut self.is_told) {
                    tracing::info!("the store of server keys is good again");
                }
            }
            Err(why) => self.fail(&why),
        }
    }

    /// Goes on without the file for a while. Said once, until it is good again.
    fn fail(&mut self, why: &str) {
        self.database = None;
        self.again = Some(Instant::now() + self.pause);
        self.pause = LONGEST.min(self.pause * 2);
        if !std::mem::replace(&mut self.is_told, true) {
            let path = self.path.display();
            tracing::error!(
                %path, why,
                "the store of server keys cannot be used: keys are kept in memory only. It is tried again, within a minute at the \
                 latest; a file that is broken can be removed while Mantlet is stopped, all that is in it is asked for again"
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
    transaction.open_table(KEYS)?;
    transaction.commit()?;
    Ok(database)
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
/// Servers whose keys are kept; of more, the oldest tenth goes.
const MOST_SERVERS: u64 = 50_000;
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

    #[test]
    fn what_was_written_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.redb");
        let mut file = File::new(&path);
        file.write(&[("a.example".into(), (7, b"{}".to_vec()))]);
        drop(file);
        let (store, thread) = Store::start(&path).unwrap();
        assert_eq!(runtime().block_on(store.read("a.example")), Some((7, b"{}".to_vec())));
        assert_eq!(runtime().block_on(store.read("b.example")), None);
        store.write("b.example", 8, "[]");
        drop(store);
        thread.join().unwrap();
        let mut file = File::new(&path);
        assert_eq!(file.read("b.example"), Some((8, b"[]".to_vec())));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_broken_or_full_or_nowhere_is_done_without() {
        let dir = tempfile::tempdir().unwrap();
        let garbage = dir.path().join("garbage.redb");
        std::fs::write(&garbage, [0x55; 100_000]).unwrap();
        let nowhere = dir.path().join("no/such/directory.redb");
        for path in [garbage, nowhere, dir.path().to_owned(), "/dev/full".into()] {
            let (store, _thread) = Store::start(&path).unwrap();
            store.write("a.example", 7, "{}");
            assert_eq!(runtime().block_on(store.read("a.example")), None, "{path:?}");
        }
    }

    #[test]
    fn a_file_that_fails_is_left_alone_for_longer_each_time_and_no_longer_once_it_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("later/keys.redb");
        let mut file = File::new(&path);
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            let before = Instant::now();
            file.again = None;
            file.write(&[("a.example".into(), (7, b"{}".to_vec()))]);
            let again = file.again.unwrap().duration_since(before).as_secs();
            assert!(file.is_told && again == pause, "{again} {pause}");
        }
        std::fs::create_dir(dir.path().join("later")).unwrap();
        // Not before its time.
        assert_eq!(file.read("a.example"), None);
        file.again = None;
        assert_eq!((file.read("a.example"), file.is_told), (None, true));
        file.write(&[("a.example".into(), (7, b"{}".to_vec()))]);
        assert_eq!((file.read("a.example"), file.is_told, file.pause), (Some((7, b"{}".to_vec())), false, SHORTEST));
        // One that fails again soon is left alone for longer.
        file.fail("for once");
        file.again = Some(Instant::now());
        file.write(&[("a.example".into(), (8, b"{}".to_vec()))]);
        assert_eq!(
            (file.read("a.example"), file.is_told, file.pause),
            (Some((8, b"{}".to_vec())), false, 2 * SHORTEST)
        );
    }

    #[test]
    fn a_store_that_is_full_of_servers_forgets_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.redb");
        let mut file = File::new(&path);
        let rows: Vec<_> = (0..=MOST_SERVERS).map(|age| (format!("s{age}.example"), (age, vec![b'x']))).collect();
        file.write(&rows);
        assert_eq!(file.read("s0.example"), None);
        assert_eq!(file.read("s50000.example"), Some((50_000, vec![b'x'])));
    }
}
