//! The process: sockets, workers, reload, the admin listener, and the end of it all.

pub mod admin;
pub mod certificates;
mod control;
mod doors;
mod inherited;
mod kept;
mod notify;
mod opened;
pub mod reload;
pub mod reuseport;
pub mod secrets;
pub(crate) mod socket_file;
mod watch;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::{oneshot, watch as latest};

use crate::config::address::{AdminAddress, ListenerAddress};
use crate::config::gateway::Gateway;
use crate::config::settings::AccessLog;
use crate::events::events;
use crate::ingress::admission::Admissions;
use crate::ingress::listener::Drain;
use crate::keyring::Ring;
use crate::ledger::Ledger;
use crate::matrix::endpoint::Endpoint;
use crate::observe::access::{Format, Writer};
use crate::observe::metrics::Metrics;
use crate::problem::{Problem, Problems};
use crate::stack::TrustedHops;
use crate::stack::tokens::Tokens;
use crate::upstream::Directory;
use admin::AdminListener;
use control::Control;
use kept::{Kept, open_store};
use reload::Reloader;

/// What to start.
pub struct Start {
    /// The gateway file as it was read.
    pub gateway: Gateway,
    /// Where it was read, so that a reload can tell what it would not take; `None` for the built-in one.
    pub file: Option<PathBuf>,
    /// Whether SIGHUP reloads and SIGTERM, SIGINT drain: for a process of its own, not inside another program.
    pub signals: bool,
    /// Where access records go; `None` is standard output.
    pub access: Option<Box<dyn std::io::Write + Send>>,
}

/// A gateway that serves. Dropping it drains it.
pub struct Running {
    listeners: Vec<(String, ListenerAddress)>,
    admin: Option<AdminAddress>,
    reloader: Arc<Reloader>,
    metrics: Arc<Metrics>,
    access: Arc<Writer>,
    drain: latest::Sender<Drain>,
    patience: Duration,
    ending: mpsc::Sender<End>,
    ended: mpsc::Receiver<End>,
    workers: Vec<thread::JoinHandle<()>>,
    /// The thread that hears signals, which are obeyed to the end; it ends when the sender is dropped.
    control: Option<(thread::JoinHandle<()>, oneshot::Sender<()>)>,
    kept: Option<Kept>,
}

/// Why a thread of the gateway ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Somebody asked the process to end.
    Asked,
    /// Somebody asked again: what still runs is not waited for.
    AskedAgain,
    /// A worker drained.
    Drained,
    /// What outlives the process is on the disk.
    Kept,
    /// A thread broke.
    Broke,
}

/// How a gateway ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It drained as it was asked to.
    Drained,
    /// A thread broke; nothing is served any more.
    Broke,
}

/// Starts a gateway: loads the policy, runs its tests, binds, serves.
///
/// # Errors
/// All that keeps it from starting. Nothing listens then.
pub fn start(start: Start) -> Result<Running, Problems> {
    let Start { gateway, file, signals, access } = start;
    let metrics = Metrics::new(endpoint_ids());
    // Everything that may be wrong with files is found before the first socket is bound.
    let (reloader, snapshot) = Reloader::start(&gateway, file, Arc::clone(&metrics))?;
    let reloader = Arc::new(reloader);

    let access = open_access(gateway.log.access, access, &metrics)?;
    let tokens = Tokens::new(&gateway.tokens, Arc::clone(&metrics))
        .map_err(|error| Problem::new(format!("the system gives no randomness: {error}")))?;
    let tokens = Arc::new(tokens);
    let (drain, draining) = latest::channel(Drain::Starting);
    let (store, store_thread) = open_store(&gateway, &metrics)?.unzip();
    let ledger = Ledger::new(gateway.egress.ledger.0, store.clone(), &metrics);
    let workers = worker_count(&gateway);
    let doors = doors::bind(&gateway, &reloader, &ledger, workers, &metrics)?;
    let admin = gateway.admin.as_ref().map(AdminListener::bind).transpose()?;

    let (ending, ended) = mpsc::channel();
    let (ready, readied) = mpsc::channel();
    let mut running = Running {
        listeners: doors.iter().map(|door| (door.metrics.name().to_string(), door.socket.address())).collect(),
        admin: admin.as_ref().map(AdminListener::address),
        reloader: Arc::clone(&reloader),
        metrics: Arc::clone(&metrics),
        access: Arc::clone(&access),
        drain,
        patience: gateway.limits.drain.duration(),
        ending,
        ended,
        workers: Vec::new(),
        control: None,
        kept: store.clone().zip(store_thread).map(|(store, thread)| Kept {
            ledger: Arc::clone(&ledger),
            store,
            thread,
        }),
    };
    let ring = Arc::new(Ring::new(store, reloader.notary_key(), Arc::clone(&ledger), &metrics));
    let (events, courier) = events(&gateway.egress, reloader.next_hop(), &metrics);
    let doors = Arc::new(doors);
    let directory = Directory::new(&gateway.upstreams, gateway.limits.patience.duration(), &metrics);
    let admissions = Admissions::new(gateway.limits.connections, gateway.limits.per_address);
    for number in 0..workers {
        let parts = worker::Parts {
            snapshot: snapshot.clone(),
            tokens: Arc::clone(&tokens),
            limits: gateway.limits.clone(),
            metrics: Arc::clone(&metrics),
            access: Arc::clone(&access),
            ledger: Arc::clone(&ledger),
            events: events.clone(),
            directory: directory.clone(),
            routes: gateway.routes.clone(),
            ring: Arc::clone(&ring),
            server_name: gateway.homeserver.server_name.clone(),
            admissions: admissions.clone(),
            hops: TrustedHops::new(&gateway.forwarded.trusted_hops),
            drain: draining.clone(),
            doors: Arc::clone(&doors),
            ready: ready.clone(),
        };
        let worker = running.spawn(&format!("worker-{number}"), move || worker::run(parts))?;
        running.workers.push(worker);
    }
    drop(ring);
    let control = Control {
        admin,
        ledger,
        courier,
        signals,
        reloader,
        metrics,
        directory,
        server_name: gateway.homeserver.server_name.clone(),
        ending: running.ending.clone(),
        ready,
    };
    let (over, is_over) = oneshot::channel();
    running.control = Some((running.spawn("control", move || control.run(is_over))?, over));
    // The workers, and the control thread.
    for _ in 0..=running.workers.len() {
        readied.recv().map_err(|_| {
            Problem::new("a thread could not be given what it needs")
                .help("raise the limit of open files (LimitNOFILE=)")
        })?;
    }
    // Nobody listens only if all threads are gone already, which `wait` tells.
    let _ = running.drain.send(Drain::Serving);
    for (name, address) in &running.listeners {
        tracing::info!(listener = %name, %address, "listening");
    }
    if let Some(admin) = &running.admin {
        tracing::info!(address = %admin, "the admin listener is up");
    }
    if signals {
        notify::notify("READY=1");
    }
    Ok(running)
}

impl Running {
    /// The listeners' names and addresses, with the ports they really have.
    pub fn listeners(&self) -> &[(String, ListenerAddress)] {
        &self.listeners
    }

    /// The first listener's address that has a port.
    pub fn addr(&self) -> Option<SocketAddr> {
        self.listeners.iter().find_map(|(_, address)| match address {
            ListenerAddress::Tcp(address) => Some(*address),
            ListenerAddress::Unix(_) | ListenerAddress::Systemd(_) => None,
        })
    }

    /// Where the admin listener is.
    pub fn admin(&self) -> Option<&AdminAddress> {
        self.admin.as_ref()
    }

    /// What loads the policy anew.
    pub fn reloader(&self) -> &Arc<Reloader> {
        &self.reloader
    }

    /// All metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Serves until somebody asks for the end, then drains.
    pub fn wait(mut self) -> Outcome {
        let outcome = match self.ended.recv() {
            Ok(End::Asked | End::AskedAgain) => Outcome::Drained,
            Ok(End::Drained | End::Kept | End::Broke) | Err(_) => Outcome::Broke,
        };
        self.finish(outcome)
    }

    /// Drains: nothing new is taken; exchanges that end within `[limits] drain` are whole.
    pub fn shutdown(mut self) -> Outcome {
        self.finish(Outcome::Drained)
    }

    fn finish(&mut self, outcome: Outcome) -> Outcome {
        if self.workers.is_empty() {
            return outcome;
        }
        let mut is_hurried = false;
        if outcome == Outcome::Drained {
            tracing::info!(patience = ?self.patience, "draining");
            let _ = self.drain.send(Drain::Draining);
            is_hurried = self.await_workers();
        }
        let _ = self.drain.send(Drain::Over);
        for worker in self.workers.drain(..) {
            // How it ended was told by its guard.
            let _ = worker.join();
        }
        // Before anything that a disk can hold up.
        if let Err(error) = self.access.flush(Duration::from_secs(2)) {
            tracing::warn!(%error, "the last access records could not be written");
        }
        if let Some(kept) = self.kept.take() {
            kept.finish(is_hurried, self.ending.clone(), &self.ended);
        }
        if let Some((control, over)) = self.control.take() {
            drop(over);
            let _ = control.join();
        }
        tracing::info!("ended");
        outcome
    }

    /// Waits for all workers to drain, until patience or the operator's ends; and says whether it was his.
    fn await_workers(&self) -> bool {
        let deadline = std::time::Instant::now() + self.patience;
        let mut serving = self.workers.len();
        while serving > 0 {
            match self.ended.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now())) {
                Ok(End::Drained | End::Broke) => serving -= 1,
                Ok(End::Kept) => {}
                Ok(End::Asked | End::AskedAgain) => return true,
                Err(_late) => return false,
            }
        }
        false
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<thread::JoinHandle<()>, Problem> {
        let tell = TellEnd { ending: self.ending.clone(), end: End::Broke };
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            let mut tell = tell;
            work();
            tell.end = End::Drained;
        });
        thread.map_err(|error| Problem::new(format!("no thread can be started: {error}")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.finish(Outcome::Drained);
    }
}

/// Tells that a thread ended, also when it panics.
struct TellEnd {
    ending: mpsc::Sender<End>,
    end: End,
}

impl Drop for TellEnd {
    fn drop(&mut self) {
        // Nobody listens once the gateway has finished.
        let _ = self.ending.send(self.end);
    }
}

fn open_access(
    format: AccessLog,
    destination: Option<Box<dyn std::io::Write + Send>>,
    metrics: &Metrics,
) -> Result<Arc<Writer>, Problems> {
    let format = match format {
        AccessLog::Json => Format::Json,
        AccessLog::Text => Format::Text,
        AccessLog::Off => Format::Off,
    };
    let writer = match destination {
        Some(destination) => Writer::start(format, destination, Writer::CAPACITY, metrics),
        None => Writer::stdout(format, metrics),
    };
    let writer = writer.map_err(|error| Problem::new(format!("access records cannot be written: {error}")))?;
    Ok(Arc::new(writer))
}

/// One worker a core, unless the operator says otherwise.
fn worker_count(gateway: &Gateway) -> usize {
    match gateway.workers.count {
        0 => thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

/// The endpoints' ids in the order of their index, for the metrics; made once, kept for good.
fn endpoint_ids() -> &'static [&'static str] {
    static IDS: std::sync::LazyLock<Vec<&'static str>> =
        std::sync::LazyLock::new(|| Endpoint::ALL.iter().map(|endpoint| endpoint.id()).collect());
    &IDS
}
