//! What outlives the process: the store, and what is written into it last. A disk that hangs keeps no process from ending.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::{End, TellEnd};
use crate::config::gateway::{Door, Gateway, Listener};
use crate::ledger::Ledger;
use crate::observe::metrics::Metrics;
use crate::problem::Problem;
use crate::store::Store;

/// The store, and what it is given last.
pub(super) struct Kept {
    pub ledger: Arc<Ledger>,
    pub store: Store,
    pub thread: thread::JoinHandle<()>,
}

/// The store, and the thread that reads and writes it, where something is kept.
pub(super) fn open_store(
    gateway: &Gateway,
    metrics: &Metrics,
) -> Result<Option<(Store, thread::JoinHandle<()>)>, Problem> {
    let leads_out = |listener: &Listener| match listener.door {
        Door::Federation | Door::Proxy | Door::Notary => true,
        Door::Ingress => false,
    };
    let path = gateway.egress.store.as_deref().filter(|_| gateway.listeners.iter().any(leads_out));
    let started = path.map(|path| Store::start(path, metrics)).transpose();
    started.map_err(|error| Problem::new(format!("no thread can be started: {error}")))
}

impl Kept {
    /// Has what is new written and the file closed, and waits for it: not for long, and hardly at all once the operator has asked
    /// again.
    pub(super) fn finish(self, is_hurried: bool, ending: mpsc::Sender<End>, ended: &mpsc::Receiver<End>) {
        let Self { ledger, store, thread } = self;
        // Also a place in the queue may have to be waited for.
        let last = thread::Builder::new().name("last".into()).spawn(move || {
            let _tell = TellEnd { ending, end: End::Kept };
            ledger.save_last();
            store.end();
            // What became of it was told by the file.
            let _ = thread.join();
        });
        if let Err(error) = last {
            return tracing::warn!(%error, "no thread can be started: the ledger of the last seconds is lost");
        }
        let deadline = Instant::now() + if is_hurried { HURRIED } else { PATIENCE };
        loop {
            match ended.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(End::Kept) => return,
                Ok(End::AskedAgain) | Err(_) => break,
                Ok(End::Asked | End::Drained | End::Broke) => {}
            }
        }
        tracing::warn!(
            "the disk below the store hangs and is not waited for: what it has not taken is lost, which is keys of servers that were \
             asked for last, and of the ledger what is newer than its last line there"
        );
    }
}

/// A disk that is well needs a fraction of it. All doors are closed meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same, where the operator does not want to wait.
const HURRIED: Duration = Duration::from_millis(200);
