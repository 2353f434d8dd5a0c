//! The thread that serves nobody: signals, the admin listener, the ledger, letters to webhooks, and the watch over the policy's
//! files, the certificates and the secrets.

use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc as queue, oneshot};

use super::End;
use super::admin::{self, AdminApi, AdminListener, BoxFuture};
use super::notify::notify;
use super::reload::{Reloader, Trigger};
use super::watch::{EVERY, Watch};
use crate::error::Error;
use crate::events::Courier;
use crate::ledger::Ledger;
use crate::observe::metrics::Metrics;
use crate::upstream::{Directory, Upstream, Upstreams};

/// What the thread is made of.
pub(super) struct Control {
    pub admin: Option<AdminListener>,
    pub ledger: Arc<Ledger>,
    pub courier: Courier,
    pub signals: bool,
    pub reloader: Arc<Reloader>,
    pub metrics: Arc<Metrics>,
    pub directory: Directory,
    pub server_name: Option<String>,
    pub ending: mpsc::Sender<End>,
    /// Told once the thread has its runtime, its signals and its socket.
    pub ready: mpsc::Sender<()>,
}

impl Control {
    /// Works until the process's time is over.
    ///
    /// # Panics
    /// When the thread cannot have a runtime: the process then ends.
    #[expect(clippy::expect_used, reason = "a gateway nobody can reload or stop must not go on")]
    pub(super) fn run(self, over: oneshot::Receiver<()>) {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .expect("the control thread needs a runtime: raise the limit of open files");
        runtime.block_on(async {
            tokio::task::spawn_local(watch_files(Arc::clone(&self.reloader)));
            let ledger = Arc::clone(&self.ledger);
            tokio::task::spawn_local(async move { ledger.keep().await });
            tokio::task::spawn_local(self.courier.run());
            if self.signals
                && let Some(signals) = Signals::catch()
            {
                tokio::task::spawn_local(signals.obey(Arc::clone(&self.reloader), self.ending));
            }
            if let Some(listener) = self.admin {
                let health = health_of(Upstreams::new(&self.directory), self.server_name);
                let api = Api { reloader: self.reloader, metrics: self.metrics, ledger: self.ledger, health };
                tokio::task::spawn_local(admin::serve(listener, Arc::new(api)));
            }
            // The tasks above take what they need when they are first polled.
            tokio::task::yield_now().await;
            let _ = self.ready.send(());
            drop(self.ready);
            // It is never sent, only dropped.
            let _ = over.await;
        });
    }
}

async fn watch_files(reloader: Arc<Reloader>) {
    let mut files = reloader.policy_files();
    let mut policy = Watch::new(files.clone());
    let mut certificates = Watch::new(Vec::new());
    certificates.follow(reloader.certificate_files());
    loop {
        tokio::time::sleep(EVERY).await;
        // What is wrong with a change has been told; the next change is the next try.
        if policy.changed() {
            let _ = reloader.reload_policy(Trigger::Change);
        }
        if certificates.changed() {
            let _ = reloader.reload_certificates(Trigger::Change);
            let _ = reloader.reload_secrets(Trigger::Change);
        }
        reloader.renew_leaves(SystemTime::now());
        let now = reloader.policy_files();
        if now != files {
            policy.follow(now.clone());
            files = now;
        }
    }
}

/// The signals that are obeyed.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn catch() -> Option<Self> {
        let signals = (signal(SignalKind::hangup()), signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        let (Ok(hangup), Ok(terminate), Ok(interrupt)) = signals else {
            tracing::error!("signals cannot be caught: SIGHUP and SIGTERM end the process at once");
            return None;
        };
        Some(Self { hangup, terminate, interrupt })
    }

    async fn obey(mut self, reloader: Arc<Reloader>, ending: mpsc::Sender<End>) {
        let mut end = End::Asked;
        loop {
            let is_end = tokio::select! {
                _ = self.hangup.recv() => false,
                _ = self.terminate.recv() => true,
                _ = self.interrupt.recv() => true,
            };
            if is_end {
                notify("STOPPING=1");
                // The process is gone when nobody listens.
                let _ = ending.send(end);
                end = End::AskedAgain;
            } else {
                notify("RELOADING=1");
                let outcome = match reloader.reload(Trigger::Signal) {
                    Ok(reloaded) => reloaded.message,
                    Err(refused) => refused.message,
                };
                notify(&format!("READY=1\nSTATUS={outcome}"));
            }
        }
    }
}

type Health = queue::Sender<oneshot::Sender<Result<(), String>>>;

/// Answers questions about the upstreams' health; the pools stay on this thread.
fn health_of(upstreams: Upstreams, expected: Option<String>) -> Health {
    let (ask, mut asked) = queue::channel::<oneshot::Sender<Result<(), String>>>(16);
    tokio::task::spawn_local(async move {
        while let Some(answer) = asked.recv().await {
            let (upstreams, expected) = (upstreams.clone(), expected.clone());
            tokio::task::spawn_local(async move {
                let synapse = tokio::time::timeout(HEALTH, is_ready(upstreams.synapse(), expected.as_deref()));
                let others = join_all(upstreams.others().iter().map(|upstream| can_be_reached(upstream)));
                let (synapse, others) = tokio::join!(synapse, others);
                let late = |_| Err("The homeserver did not answer its health check within 5 s".to_owned());
                let reasons = std::iter::once(synapse.unwrap_or_else(late)).chain(others).filter_map(Result::err);
                let reasons = reasons.collect::<Vec<_>>();
                // Whoever asked may be gone.
                let _ = answer.send(if reasons.is_empty() { Ok(()) } else { Err(reasons.join("; ")) });
            });
        }
    });
    ask
}

/// Whether the homeserver is well, and the one that is meant.
async fn is_ready(synapse: &Upstream, expected: Option<&str>) -> Result<(), String> {
    let told = |error: Error| format!("{error}{}", cause(&error));
    synapse.health().await.map_err(told)?;
    let Some(expected) = expected else { return Ok(()) };
    let name = synapse.server_name().await.map_err(told)?;
    if name == expected { Ok(()) } else { Err(format!("The upstream is {name}, not {expected}")) }
}

/// Whether another upstream has a server that takes connections.
async fn can_be_reached(upstream: &Upstream) -> Result<(), String> {
    let why = match tokio::time::timeout(HEALTH, upstream.reach()).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => cause(&error),
        Err(_late) => ": no connection within 5 s".into(),
    };
    Err(format!("The upstream {} cannot be reached{why}", upstream.name()))
}

/// How long a readiness check waits for the homeserver.
const HEALTH: Duration = Duration::from_secs(5);

fn cause(error: &dyn std::error::Error) -> String {
    error.source().map(|source| format!(": {source}")).unwrap_or_default()
}

/// What the admin listener may ask.
struct Api {
    reloader: Arc<Reloader>,
    metrics: Arc<Metrics>,
    ledger: Arc<Ledger>,
    health: Health,
}

impl AdminApi for Api {
    fn metrics(&self) -> String {
        self.metrics.render()
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            let (answer, answered) = oneshot::channel();
            let gone = || "The gateway is ending".to_owned();
            self.health.send(answer).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        })
    }

    fn version(&self) -> Value {
        let generation = self.reloader.current();
        json!({
            "name": env!("CARGO_PKG_NAME"),
            "version": env!("CARGO_PKG_VERSION"),
            "generation": generation.number,
            "policy": generation.policy.name(),
            "digest": generation.policy.digest(),
        })
    }

    fn ledger(&self) -> Value {
        json!({ "kept": self.ledger.is_kept(), "contacts": self.ledger.entries() })
    }

    fn reload(&self) -> BoxFuture<'_, Result<Value, Value>> {
        Box::pin(async {
            match self.reloader.reload(Trigger::Command) {
                Ok(reloaded) => Ok(json!(reloaded)),
                Err(refused) => Err(json!(refused)),
            }
        })
    }
}
