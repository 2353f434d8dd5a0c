//! All upstreams with what is known of their servers: made once, shared by all workers.

use std::sync::Arc;

use super::health::Health;
use crate::config::address::UpstreamAddress;
use crate::config::route;
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
}

impl Directory {
    /// Notes all upstreams, and nothing bad of any server.
    pub fn new(upstreams: &[route::Upstream], metrics: &Metrics) -> Self {
        let entry = |upstream: &route::Upstream| Entry {
            name: Arc::clone(&upstream.name),
            servers: upstream.servers.iter().map(|server| (server.clone(), Arc::default())).collect(),
            metrics: metrics.upstream(&upstream.name),
        };
        Self(upstreams.iter().map(entry).collect())
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.0
    }
}
