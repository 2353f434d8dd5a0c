//! All upstreams with what is known of their servers: made once, shared by all workers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::health::Health;
use crate::config::address::UpstreamAddress;
use crate::config::upstream::Upstream;
use crate::observe::metrics::{Metrics, UpstreamMetrics};

/// The upstreams of the gateway file, in its order: the homeserver is the first.
#[derive(Clone, Debug)]
pub struct Directory(Arc<[Entry]>);

/// One upstream.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub name: Arc<str>,
    pub servers: Vec<(UpstreamAddress, Arc<Health>)>,
    pub metrics: UpstreamMetrics,
    pub waiting: Waiting,
}

/// Who may wait for a server that cannot be reached.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    /// How long.
    pub patience: Duration,
    /// How many at once, over all upstreams and workers.
    pub places: Arc<Semaphore>,
}

impl Directory {
    /// Notes all upstreams, and nothing bad of any server. Requests that wait do so for as long as `patience`.
    pub fn new(upstreams: &[Upstream], patience: Duration, metrics: &Metrics) -> Self {
        let waiting = Waiting { patience, places: Arc::new(Semaphore::new(PLACES)) };
        let entry = |upstream: &Upstream| Entry {
            name: Arc::clone(&upstream.name),
            servers: upstream.servers.iter().map(|server| (server.clone(), Arc::default())).collect(),
            metrics: metrics.upstream(&upstream.name),
            waiting: waiting.clone(),
        };
        Self(upstreams.iter().map(entry).collect())
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.0
    }
}

/// Each holds a request's head and a connection; who comes when all are taken is answered at once.
const PLACES: usize = 1000;
