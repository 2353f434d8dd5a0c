//! What counts for one listener, upstream or part: handles that are resolved once and only added to.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::{
    Code, Contacted, Delivery, Direction, KeyAnswer, KeyQuestion, PoolState, Refusal, Reload, Step, Tunnel, counter,
    counters, gauge, timestamp,
};
use crate::matrix::Flow;
use crate::policy::Cause;

/// The metrics of one listener, resolved; clones count into the same cells.
#[derive(Clone, Debug)]
pub struct ListenerMetrics {
    pub(super) name: Arc<str>,
    /// By flow and code.
    pub(super) cells: Arc<[OnceLock<IntCounter>]>,
    pub(super) requests: IntCounterVec,
    pub(super) connections: IntGauge,
    pub(super) refused_by_parser: Arc<[IntCounter]>,
    pub(super) tls_handshake_failures: IntCounter,
    pub(super) proxy_header_failures: IntCounter,
    pub(super) certificate_not_after: IntGaugeVec,
    pub(super) certificate_reloads: IntCounterVec,
    pub(super) certificate_last_reload_successful: IntGaugeVec,
}

impl ListenerMetrics {
    /// The listener's name, for access records.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Counts a request that ended.
    pub fn request(&self, flow: Flow, status: u16) {
        let code = Code::from(status);
        let make = || self.requests.with_label_values(&[&*self.name, flow.as_str(), code.as_str()]);
        self.cells[flow as usize * Code::ALL.len() + code as usize].get_or_init(make).inc();
    }

    /// Counts a connection as open until what this returns is dropped.
    pub fn connection(&self) -> Counted {
        Counted::new(&self.connections)
    }

    /// Counts what the HTTP parser refused.
    pub fn refused_by_parser(&self, refusal: Refusal) {
        self.refused_by_parser[refusal as usize].inc();
    }

    /// Counts a TLS handshake that came to nothing.
    pub fn tls_handshake_failure(&self) {
        self.tls_handshake_failures.inc();
    }

    /// Counts a trusted hop that did not say who its client is.
    pub fn proxy_header_failure(&self) {
        self.proxy_header_failures.inc();
    }

    /// Tells when the first of the certificates ends.
    pub fn certificate_not_after(&self, time: SystemTime) {
        self.certificate_not_after.with_label_values(&[&*self.name]).set(timestamp(time));
    }

    /// Counts an attempt to read the certificates again.
    pub fn certificate_reload(&self, result: Reload) {
        self.certificate_reloads.with_label_values(&[&*self.name, result.as_str()]).inc();
        let is_success = i64::from(result == Reload::Success);
        self.certificate_last_reload_successful.with_label_values(&[&*self.name]).set(is_success);
    }
}

/// The metrics of one upstream, resolved; clones count into the same cells.
#[derive(Clone, Debug)]
pub struct UpstreamMetrics {
    pub(super) name: Arc<str>,
    /// From the request until the response head.
    pub duration: Histogram,
    /// Requests sent a second time because a pooled connection proved dead.
    pub retries: IntCounter,
    /// Requests given to another server because the first could not be reached.
    pub failovers: IntCounter,
    /// Times that a server was left alone for a while.
    pub taken_out: IntCounter,
    pub(super) waiting: IntGauge,
    pub(super) connections: Arc<[IntGauge]>,
    pub(super) errors: IntCounterVec,
}

impl UpstreamMetrics {
    /// Counts a connection as open or as idle until what this returns is dropped.
    pub fn connection(&self, state: PoolState) -> Counted {
        Counted::new(&self.connections[state as usize])
    }

    /// Counts a request as waiting until what this returns is dropped.
    pub fn waiting(&self) -> Counted {
        Counted::new(&self.waiting)
    }

    /// Counts a failure, by the error's kind.
    pub fn error(&self, kind: &'static str) {
        self.errors.with_label_values(&[&*self.name, kind]).inc();
    }
}

/// The metrics of all other servers together; clones count into the same cells.
#[derive(Clone, Debug)]
pub struct OriginMetrics {
    /// What is counted of every upstream.
    pub upstream: UpstreamMetrics,
    pub(super) routes: Arc<[IntCounter]>,
}

impl OriginMetrics {
    /// Counts a server that was found.
    pub fn found(&self, step: Step) {
        self.routes[step as usize].inc();
    }
}

/// What the proxy door's tunnels count; clones count into the same cells.
#[derive(Clone, Debug)]
pub struct TunnelMetrics {
    pub(super) open: IntGauge,
    pub(super) outcomes: Arc<[IntCounter]>,
    pub(super) bytes: Arc<[IntCounter]>,
}

impl TunnelMetrics {
    /// Counts a tunnel as open until what this returns is dropped.
    pub fn open(&self) -> Counted {
        Counted::new(&self.open)
    }

    /// Counts how asking for a tunnel ended.
    pub fn outcome(&self, outcome: Tunnel) {
        self.outcomes[outcome as usize].inc();
    }

    /// Counts bytes that passed.
    pub fn bytes(&self, direction: Direction, bytes: u64) {
        self.bytes[direction as usize].inc_by(bytes);
    }
}

/// What is counted of those who are contacted; clones count into the same cells.
#[derive(Clone, Debug)]
pub struct ContactMetrics {
    /// By cause and verdict.
    pub(super) contacts: Arc<[IntCounter]>,
    /// By cause and direction.
    pub(super) bytes: Arc<[IntCounter]>,
    /// Lines of the ledger.
    pub lines: IntGauge,
    /// Lines that went to make room.
    pub forgotten: IntCounter,
}

impl ContactMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        let contacts = counters(
            r,
            "egress_contacts_total",
            "Others whom Synapse asked, by what for and what came of it.",
            &["cause", "verdict"],
        );
        let bytes = counters(r, "egress_bytes_total", "Bytes to and from those.", &["cause", "direction"]);
        let of = |counters: &IntCounterVec, words: &[&str]| {
            let cell = |cause: Cause| words.iter().map(move |word| counters.with_label_values(&[cause.as_str(), word]));
            Cause::ALL.into_iter().flat_map(cell).collect()
        };
        Self {
            contacts: of(&contacts, &Contacted::ALL.iter().map(|verdict| verdict.as_str()).collect::<Vec<_>>()),
            bytes: of(&bytes, &Direction::ALL.iter().map(|direction| direction.as_str()).collect::<Vec<_>>()),
            lines: gauge(r, "egress_ledger_lines", "Lines that the ledger of those who were contacted has."),
            forgotten: counter(
                r,
                "egress_ledger_forgotten_total",
                "Lines of the ledger that went to make room for others.",
            ),
        }
    }

    /// Counts a contact.
    pub fn contact(&self, cause: Cause, verdict: Contacted) {
        self.contacts[cause as usize * Contacted::ALL.len() + verdict as usize].inc();
    }

    /// Counts what was said.
    pub fn bytes(&self, cause: Cause, out: u64, back: u64) {
        for (direction, bytes) in [(Direction::Out, out), (Direction::In, back)] {
            self.bytes[cause as usize * Direction::ALL.len() + direction as usize].inc_by(bytes);
        }
    }
}

/// What is counted of privacy events; clones count into the same cells.
#[derive(Clone, Debug)]
pub struct EventMetrics {
    pub(super) events: IntCounterVec,
    pub(super) deliveries: Arc<[IntCounter]>,
}

impl EventMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        let deliveries = counters(
            r,
            "privacy_event_deliveries_total",
            "Privacy events for the webhook, by what came of it.",
            &["result"],
        );
        Self {
            events: counters(
                r,
                "privacy_events_total",
                "What rules refused or answered that privacy_events tells of.",
                &["rule", "flow"],
            ),
            deliveries: Delivery::ALL.iter().map(|result| deliveries.with_label_values(&[result.as_str()])).collect(),
        }
    }

    /// Counts an event.
    pub fn event(&self, rule: &'static str, flow: Flow) {
        self.events.with_label_values(&[rule, flow.as_str()]).inc();
    }

    /// Counts events that were for a webhook.
    pub fn delivered(&self, result: Delivery, events: usize) {
        self.deliveries[result as usize].inc_by(events as u64);
    }
}

/// How those whom the proxy door asks are called where an upstream is named.
pub const WEB: &str = "(web)";
/// The metrics of the key ring; clones count into the same cells.
#[derive(Clone, Debug)]
pub struct KeyMetrics {
    pub(super) answers: Arc<[IntCounter]>,
    pub(super) questions: Arc<[IntCounter]>,
}

impl KeyMetrics {
    /// Counts what Synapse got of one server.
    pub fn answered(&self, result: KeyAnswer) {
        self.answers[result as usize].inc();
    }

    /// Counts what came of asking one server.
    pub fn asked(&self, result: KeyQuestion) {
        self.questions[result as usize].inc();
    }
}

/// How the key ring is called where an upstream is named.
pub const KEY_RING: &str = "(key ring)";

/// How other servers are called where an upstream is named: no name that an operator can give to one.
pub const ORIGINS: &str = "(other servers)";

/// Holds a gauge one higher until it is dropped.
#[derive(Debug)]
pub struct Counted(IntGauge);

impl Counted {
    pub(super) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
