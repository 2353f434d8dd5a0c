//! The file itself: what is written there, and how it is done without while it cannot be used.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};

use super::{Change, Row, Table, Written};
use crate::matrix::ServerName;
use crate::observe::metrics::Metrics;

/// A file with tables, whether it is there or not.
pub(super) struct File {
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
    pub(super) fn new(path: &Path, metrics: &Metrics) -> Self {
        let is_good = metrics.store_last_use_successful.clone();
        Self { path: path.to_owned(), database: None, again: None, pause: SHORTEST, is_told: false, is_good }
    }

    pub(super) fn open(&mut self) {
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

    pub(super) fn read(&mut self, table: Table, key: &str) -> Option<Option<Row>> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(table.definition())?;
            Ok(table.get(key)?.map(|row| {
                let (age, value) = row.value();
                Row { key: key.to_owned(), age, value: value.to_vec() }
            }))
        })
    }

    pub(super) fn read_all(&mut self, table: Table) -> Option<Vec<Row>> {
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

    pub(super) fn write(&mut self, changes: &[(Table, Change)]) -> Written {
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
    // Nobody else's to read, for it tells whom we know, nor to change; also where it was there already.
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    close(&file).map_err(|error| io::Error::new(error.kind(), format!("others can read it, and go on to: {error}")))?;
    drop(file);
    let database = Database::builder().set_cache_size(CACHE).create(path)?;
    let transaction = database.begin_write()?;
    for table in Table::ALL {
        transaction.open_table(table.definition())?;
    }
    transaction.commit()?;
    Ok(database)
}

/// Takes everybody's rights but our own. A device is left as it is: a store it cannot be.
fn close(file: &fs::File) -> io::Result<()> {
    let found = file.metadata()?;
    let mut mode = found.permissions();
    if !found.is_file() || mode.mode() & 0o077 == 0 {
        return Ok(());
    }
    mode.set_mode(0o600);
    file.set_permissions(mode)
}

fn write<'a>(
    transaction: &WriteTransaction,
    of: Table,
    changes: impl Iterator<Item = &'a Change>,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(of.definition())?;
    for change in changes {
        match change {
            Change::Keep(row) => drop(table.insert(row.key.as_str(), (row.age, row.value.as_slice()))?),
            Change::Forget(key) => drop(table.remove(key.as_str())?),
        }
    }
    if table.len()? > MOST_ROWS {
        let rows = table.iter()?.map(|row| row.map(|(key, value)| (key.value().to_owned(), value.value().0)));
        for key in surplus(rows.collect::<Result<_, _>>()?, of, LEFT) {
            table.remove(key.as_str())?;
        }
    }
    Ok(())
}

/// What goes so that so many rows are left: the oldest of whoever has most of them, again and again. So one who makes up names pushes
/// out his own.
fn surplus(mut rows: Vec<(String, u64)>, of: Table, left: usize) -> Vec<String> {
    let surplus = rows.len().saturating_sub(left);
    rows.sort_unstable_by_key(|(_, age)| Reverse(*age));
    let mut counts = HashMap::new();
    // Of two with as many newer ones of the same owner the older goes first.
    rows.sort_by_cached_key(|(key, age)| {
        let newer = counts.entry(of.owner(key)).or_insert(0_usize);
        *newer += 1;
        (Reverse(*newer), *age)
    });
    rows.truncate(surplus);
    rows.into_iter().map(|(key, _)| key).collect()
}

/// What a broken file makes of the library is an error, too.
fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_panic) => Err("the file is corrupt".into()),
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

    /// Who could have made up this key, and others like it.
    fn owner(self, key: &str) -> Option<String> {
        match self {
            Table::ServerKeys => ServerName::parse(key)?.host().domain().map(str::to_owned),
            // It chooses by itself what it forgets.
            Table::Ledger => None,
        }
    }
}

/// Of each table; of more, a tenth goes.
pub const MOST_ROWS: u64 = 50_000;
const LEFT: usize = 45_000;
const CACHE: usize = 4 * 1024 * 1024;
/// How long a file that failed is left alone, at first and at most.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{KEYS, keep, row};

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
    fn a_file_that_others_could_read_is_closed_to_them() {
        let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(&[]));
        let path = dir.path().join("store.redb");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        let rows = [(KEYS, keep("a.example", 7, "{}"))];
        assert_eq!(File::new(&path, &metrics).write(&rows), Written::Yes);
        for (before, after) in [(0o666, 0o600), (0o640, 0o600), (0o604, 0o600), (0o600, 0o600), (0o700, 0o700)] {
            fs::set_permissions(&path, PermissionsExt::from_mode(before)).unwrap();
            assert_eq!(File::new(&path, &metrics).read(KEYS, "a.example"), Some(Some(row("a.example", 7, "{}"))));
            assert_eq!(mode(), after, "{before:o}");
        }
        // What is no file is nobody's to change.
        let device = fs::metadata("/dev/full").unwrap().permissions().mode();
        assert_eq!(File::new(Path::new("/dev/full"), &metrics).write(&rows), Written::No);
        assert_eq!(fs::metadata("/dev/full").unwrap().permissions().mode(), device);
    }

    #[test]
    fn whoever_makes_up_names_pushes_out_no_keys_but_his_own() {
        let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::new(&[]));
        let mut file = File::new(&dir.path().join("store.redb"), &metrics);
        let rare = ["gone.example", "a.hosted.example", "b.hosted.example:8448", "192.0.2.1", "[2001:db8::1]:8448"];
        let old: Vec<_> = rare.iter().map(|server| (KEYS, keep(server, 1, "{}"))).collect();
        assert_eq!(file.write(&old), Written::Yes);
        let made_up: Vec<_> = (0..MOST_ROWS)
            .map(|number| (KEYS, keep(&format!("s{number}.x.stranger.test:{}", 1024 + number % 9), 2, "x")))
            .collect();
        assert_eq!(file.write(&made_up), Written::Yes);
        for server in rare {
            assert_eq!(file.read(KEYS, server), Some(Some(row(server, 1, "{}"))));
        }
        let kept = file.read_all(KEYS).unwrap().len();
        assert_eq!(kept, LEFT);
    }

    #[test]
    fn of_two_that_have_as_many_keys_the_older_go_first() {
        let rows = |domain: &str, ages: std::ops::Range<u64>| {
            ages.map(|age| (format!("s{age}.{domain}"), age)).collect::<Vec<_>>()
        };
        let gone = |rows: Vec<Vec<(String, u64)>>| {
            let rows = rows.concat();
            let left = rows.len() - 4;
            let mut gone = surplus(rows, KEYS, left);
            gone.sort();
            gone
        };
        assert_eq!(
            gone(vec![rows("big.test", 20..40), rows("small.test", 0..10)]),
            ["s20.big.test", "s21.big.test", "s22.big.test", "s23.big.test"]
        );
        assert_eq!(
            gone(vec![rows("big.test", 20..32), rows("small.test", 0..10)]),
            ["s0.small.test", "s20.big.test", "s21.big.test", "s22.big.test"]
        );
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
