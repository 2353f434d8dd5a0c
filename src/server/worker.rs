//! One thread: a runtime, a chain, a pool, and its share of every listener.

use std::rc::Rc;
use std::sync::{Arc, mpsc};

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;

use super::doors::{Door, Leads};
use crate::config::route::Routes;
use crate::config::settings::Limits;
use crate::egress::Proxy;
use crate::events::Events;
use crate::ingress::admission::Admissions;
use crate::ingress::listener::{Drain, Listener, Shared};
use crate::keyring::Ring;
use crate::ledger::Ledger;
use crate::observe::access::Writer;
use crate::observe::metrics::Metrics;
use crate::snapshot::{Current, Snapshot};
use crate::stack::tokens::Tokens;
use crate::stack::{self, Chain, TrustedHops, federation_stack, notary_stack, proxy_stack, stack};
use crate::upstream::{Directory, Upstreams};

/// What a worker is made of.
pub(super) struct Parts {
    pub snapshot: Snapshot,
    pub tokens: Arc<Tokens>,
    pub limits: Limits,
    pub metrics: Arc<Metrics>,
    pub access: Arc<Writer>,
    pub ledger: Arc<Ledger>,
    pub events: Events,
    pub directory: Directory,
    pub routes: Routes,
    pub server_name: Option<String>,
    pub ring: Arc<Ring>,
    pub admissions: Admissions,
    pub hops: TrustedHops,
    pub drain: watch::Receiver<Drain>,
    pub doors: Arc<Vec<Door>>,
    /// Told once the worker has its runtime and its sockets.
    pub ready: mpsc::Sender<()>,
}

/// Serves until the process drains.
///
/// # Panics
/// When the thread cannot have a runtime or its sockets: the process then ends, which is told by whoever started the thread.
#[expect(clippy::expect_used, reason = "a worker that cannot work must not go on, and its thread is watched")]
pub(super) fn run(parts: Parts) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .expect("a worker needs a runtime: raise the limit of open files");
    runtime.block_on(serve(parts));
}

#[expect(clippy::expect_used, reason = "as above")]
async fn serve(parts: Parts) {
    let chain = stack::Parts {
        snapshot: parts.snapshot,
        tokens: parts.tokens,
        limits: parts.limits.clone(),
        metrics: Arc::clone(&parts.metrics),
        access: parts.access,
        ledger: parts.ledger,
        events: parts.events,
        routes: parts.routes,
        upstreams: Upstreams::new(&parts.directory),
        server_name: parts.server_name,
    };
    let ingress = Rc::new(stack(chain.clone()));
    let shared = Rc::new(Shared::new(parts.limits, parts.admissions, parts.hops, parts.drain, parts.metrics));
    let listeners: Vec<_> = parts
        .doors
        .iter()
        .map(|door| match &door.leads {
            Leads::In => open(door, Rc::clone(&ingress), None, Some(chain.snapshot.current()), &shared),
            Leads::ToServers { secret, origins } => {
                let client = origins.client().expect("a worker needs its resolver");
                let chain = federation_stack(chain.clone(), secret.clone(), Rc::new(client), Arc::clone(&parts.ring));
                open(door, Rc::new(chain), None, None, &shared)
            }
            Leads::ToTheWeb { terms, webs, origins } => {
                let web = Rc::new(webs.web().expect("a worker needs its resolver"));
                let client = Rc::new(origins.client().expect("a worker needs its resolver"));
                let proxy = Proxy::new(Rc::clone(&web), terms.clone(), &chain);
                let chain = proxy_stack(chain.clone(), terms.clone(), web, client, Arc::clone(&parts.ring));
                open(door, Rc::new(chain), Some(proxy), None, &shared)
            }
            Leads::ToOurNotary { name, origins } => {
                let client = Rc::new(origins.client().expect("a worker needs its resolver"));
                let chain = notary_stack(chain.clone(), name.clone(), client, Arc::clone(&parts.ring));
                open(door, Rc::new(chain), None, None, &shared)
            }
        })
        .collect();
    // Whoever waits for it may have given up already.
    let _ = parts.ready.send(());
    drop(parts.ready);
    for listener in listeners {
        // A listener ends when the process drains; one that panics takes the worker, and so the process, with it.
        listener.await.expect("a listener ended by itself");
    }
    // Connections end by themselves: at once where nothing runs, after their exchange, or when the process's time is over.
    shared.all_gone().await;
}

/// This worker's share of a listener, served by this chain.
#[expect(clippy::expect_used, reason = "as above")]
fn open<C: Chain>(
    door: &Door,
    chain: Rc<C>,
    proxy: Option<Proxy>,
    policy: Option<Current>,
    shared: &Rc<Shared>,
) -> tokio::task::JoinHandle<()> {
    let socket = door.socket.socket().expect("a worker needs its sockets: raise the limit of open files");
    let listener = Listener {
        chain,
        policy,
        door: door.leads.door(),
        proxy,
        tls: door.tls.clone(),
        proxy_protocol: door.proxy_protocol,
        networks: door.networks.clone(),
        inherited: door.socket.is_inherited(),
        shared: Rc::clone(shared),
        metrics: door.metrics.clone(),
    };
    tokio::task::spawn_local(Rc::new(listener).run(socket))
}
