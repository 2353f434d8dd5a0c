//! The thread that writes access records, so that no exchange waits for a disk.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::IntCounter;

use super::{AccessRecord, Format};
use crate::observe::metrics::Metrics;

/// Hands records to the thread that writes them.
///
/// Dropping it waits a second at most for what was submitted to be written; [`Writer::flush`] says whether it was.
#[derive(Debug)]
pub struct Writer {
    records: Option<SyncSender<Message>>,
    dropped: IntCounter,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    /// Records that wait for the writing thread at most; more are dropped and counted.
    pub const CAPACITY: usize = 8192;

    /// Writes to standard output.
    ///
    /// # Errors
    /// When standard output cannot be duplicated or no thread can be started.
    pub fn stdout(format: Format, metrics: &Metrics) -> io::Result<Self> {
        // Not `io::stdout()`: its own buffer would hide how much of a batch a full disk took.
        let stdout = std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Self::start(format, Box::new(stdout), Self::CAPACITY, metrics)
    }

    /// Writes to `destination` from a thread of its own, which `Format::Off` does not need.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        format: Format,
        destination: Box<dyn Write + Send>,
        capacity: usize,
        metrics: &Metrics,
    ) -> io::Result<Self> {
        let dropped = metrics.access_records_dropped.clone();
        let Some(line) = format.line() else {
            return Ok(Self { records: None, dropped, thread: None });
        };
        let (sender, records) = mpsc::sync_channel(capacity);
        let scribe = Scribe {
            records,
            line,
            destination,
            batch: Vec::with_capacity(BATCH_BYTES),
            failing: false,
            dropped: dropped.clone(),
            failed: metrics.access_write_errors.clone(),
        };
        let thread = thread::Builder::new().name("access".into()).spawn(move || scribe.run())?;
        Ok(Self { records: Some(sender), dropped, thread: Some(thread) })
    }

    /// Queues a record; when the queue is full, drops and counts it. Never blocks, formats or allocates.
    pub fn submit(&self, record: AccessRecord) {
        let Some(records) = &self.records else { return };
        match records.try_send(Message::Record(record)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.dropped.inc(),
        }
    }

    /// Waits until all that was submitted before has been offered to the destination, but no longer than `patience`.
    ///
    /// Blocks the calling thread: this is for the end of the process, after the workers have drained.
    ///
    /// # Errors
    /// When time ran out (the destination hangs), or the destination refuses what is left.
    pub fn flush(&self, patience: Duration) -> io::Result<()> {
        let Some(records) = &self.records else { return Ok(()) };
        let deadline = Instant::now() + patience;
        let (done, answer) = mpsc::sync_channel(1);
        let mut message = Message::Flush(done);
        loop {
            match records.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(TrySendError::Full(_)) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
                Err(TrySendError::Full(back)) => message = back,
            }
            thread::sleep(LINGER);
        }
        match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Scribed::All) => Ok(()),
            Ok(Scribed::Part) => Err(io::ErrorKind::WriteZero.into()),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The thread ends when the channel is closed and empty. It is not waited for when a flush shows that it hangs.
        let flushed = self.flush(Duration::from_secs(1));
        self.records = None;
        if let (Ok(()), Some(thread)) = (flushed, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// Bytes after which a batch is written although more records wait.
const BATCH_BYTES: usize = 256 * 1024;

/// Bytes kept for a destination that refuses them, before further records are dropped.
const KEPT_BYTES: usize = 1024 * 1024;

/// How long the thread lets records gather, so that a busy worker wakes it once and not for each record.
const LINGER: Duration = Duration::from_millis(5);

#[derive(Debug)]
enum Message {
    Record(AccessRecord),
    Flush(SyncSender<Scribed>),
}

/// Whether the destination took all it was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scribed {
    All,
    Part,
}

/// The writing thread.
struct Scribe {
    records: Receiver<Message>,
    line: fn(&AccessRecord, &mut Vec<u8>),
    destination: Box<dyn Write + Send>,
    /// Whole lines, or the rest of one that was begun.
    batch: Vec<u8>,
    failing: bool,
    dropped: IntCounter,
    failed: IntCounter,
}

impl Scribe {
    fn run(mut self) {
        while let Ok(first) = self.records.recv() {
            if matches!(first, Message::Record(_)) {
                thread::sleep(LINGER);
            }
            self.take(first);
            loop {
                // A destination that refuses is tried once a round, not for each record.
                if self.batch.len() >= BATCH_BYTES && !self.failing {
                    self.write();
                }
                match self.records.try_recv() {
                    Ok(message) => self.take(message),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            self.write();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Record(_) if self.batch.len() >= KEPT_BYTES => self.dropped.inc(),
            Message::Record(record) => (self.line)(&record, &mut self.batch),
            Message::Flush(done) => {
                let _ = done.try_send(self.write());
            }
        }
    }

    /// Offers the batch; what is not taken stays for the next time, from the byte where it broke off.
    fn write(&mut self) -> Scribed {
        let mut taken = 0;
        let outcome = loop {
            if taken == self.batch.len() {
                break self.destination.flush();
            }
            match self.destination.write(&self.batch[taken..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => taken += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break Err(e),
            }
        };
        self.batch.drain(..taken);
        match outcome {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("access records are written again");
                }
                Scribed::All
            }
            Err(e) => {
                self.failed.inc();
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(error = %e, "access records cannot be written");
                }
                Scribed::Part
            }
        }
    }
}
