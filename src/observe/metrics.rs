//! Every metric of the process.
//!
//! A label's value is a word of a closed enum, an endpoint's id, a rule's name or a listener's name: never what a
//! client sent. Handles are resolved once (when a listener starts or a policy compiles); a request only adds to them.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::matrix::Flow;
use crate::observe::access::{Mode, Token};

pub use handles::{
    ContactMetrics, Counted, EventMetrics, KEY_RING, KeyMetrics, ListenerMetrics, ORIGINS, OriginMetrics,
    TunnelMetrics, UpstreamMetrics, WEB,
};
pub use labels::{
    Action, CacheResult, Code, Contacted, Delivery, Direction, KeyAnswer, KeyQuestion, PoolState, Refusal, Reload,
    Step, Tunnel,
};

mod handles;
mod labels;

/// The process's metrics.
///
/// The public fields have no labels left to choose; what needs a label has a method.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    started: Instant,
    uptime: Gauge,
    endpoint_ids: &'static [&'static str],
    /// By endpoint and code; a cell is made when its first request ends.
    endpoints: Box<[OnceLock<IntCounter>]>,
    endpoint_requests: IntCounterVec,
    requests: IntCounterVec,
    request_duration: [Histogram; Flow::ALL.len()],
    connections: IntGaugeVec,
    refused_by_parser: IntCounterVec,
    tls_handshake_failures: IntCounterVec,
    proxy_header_failures: IntCounterVec,
    certificate_not_after: IntGaugeVec,
    certificate_reloads: IntCounterVec,
    certificate_last_reload_successful: IntGaugeVec,
    rule_decisions: IntCounterVec,
    token_verdicts: Vec<IntCounter>,
    token_cache: Vec<IntCounter>,
    upstream_duration: HistogramVec,
    upstream_connections: IntGaugeVec,
    upstream_errors: IntCounterVec,
    upstream_retries: IntCounterVec,
    upstream_failovers: IntCounterVec,
    upstream_taken_out: IntCounterVec,
    upstream_waiting: IntGaugeVec,
    origin_routes: Arc<[IntCounter]>,
    tunnels: TunnelMetrics,
    interception_not_after: IntGauge,
    authority_not_after: IntGauge,
    contacts: ContactMetrics,
    events: EventMetrics,
    key_answers: Arc<[IntCounter]>,
    key_questions: Arc<[IntCounter]>,
    policy_reloads: Vec<IntCounter>,
    policy_last_reload_successful: IntGauge,
    policy_last_reload_success: IntGauge,
    unknown_endpoint: Vec<IntCounter>,
    requests_in_flight: IntGauge,
    /// Verdicts that the token cache holds.
    pub token_cache_entries: IntGauge,
    /// From our question to the homeserver until its answer.
    pub whoami_duration: Histogram,
    /// The generation in force.
    pub policy_generation: IntGauge,
    /// Whether the store could be used when it was last tried.
    pub store_last_use_successful: IntGauge,
    /// Access records that found the queue full.
    pub access_records_dropped: IntCounter,
    /// Writes of access records that failed.
    pub access_write_errors: IntCounter,
    /// Exchanges that the end of the process cut short.
    pub drained_exchanges: IntCounter,
}

impl Metrics {
    /// Makes all metrics, at zero. `endpoint_ids` are the labels of [`Metrics::endpoint_request`], in its order.
    pub fn new(endpoint_ids: &'static [&'static str]) -> Arc<Self> {
        let registry = Registry::new();
        let r = &registry;
        let build = gauges(r, "build_info", "Which version runs; always 1.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let request_duration = histograms(
            r,
            "request_duration_seconds",
            "From a whole request head to the last byte of the response.",
            &["flow"],
        );
        let verdicts = counters(r, "token_verdicts_total", "Access tokens asked for, by what was found.", &["class"]);
        let cache = counters(r, "token_cache_total", "Look-ups in the token verdict cache.", &["result"]);
        let reloads = counters(r, "policy_reloads_total", "Attempts to load a policy.", &["result"]);
        let routes =
            counters(r, "origin_routes_total", "Other servers looked for, by what said where they are.", &["step"]);
        let tunnels =
            counters(r, "tunnels_total", "Tunnels asked for at proxy doors, by what came of it.", &["outcome"]);
        let tunnelled = counters(r, "tunnel_bytes_total", "Bytes through tunnels.", &["direction"]);
        let answers = counters(
            r,
            "key_answers_total",
            "Servers whose keys Synapse asked a notary for, by what it got.",
            &["result"],
        );
        let questions = counters(
            r,
            "key_questions_total",
            "Servers that were asked for their keys, by what came of it.",
            &["result"],
        );
        let unknown = counters(r, "unknown_endpoint_requests_total", "Requests for no known endpoint.", &["flow"]);
        let metrics = Self {
            started: Instant::now(),
            uptime: register(r, Gauge::new("mantlet_uptime_seconds", "Since the process started.")),
            endpoint_ids,
            endpoints: std::iter::repeat_with(OnceLock::new).take(endpoint_ids.len() * Code::ALL.len()).collect(),
            endpoint_requests: counters(
                r,
                "endpoint_requests_total",
                "Requests by endpoint and class of status; code none if no status was sent.",
                &["endpoint", "code"],
            ),
            requests: counters(
                r,
                "requests_total",
                "Requests by listener, flow and class of status; code none if no status was sent.",
                &["listener", "flow", "code"],
            ),
            request_duration: Flow::ALL.map(|flow| request_duration.with_label_values(&[flow.as_str()])),
            requests_in_flight: gauge(r, "requests_in_flight", "Requests that have not ended."),
            connections: gauges(r, "connections", "Open connections of clients.", &["listener"]),
            refused_by_parser: counters(
                r,
                "refused_by_parser_total",
                "Answered by the HTTP parser, before there was a request.",
                &["listener", "reason"],
            ),
            tls_handshake_failures: counters(
                r,
                "tls_handshake_failures_total",
                "TLS handshakes that failed or took too long.",
                &["listener"],
            ),
            proxy_header_failures: counters(
                r,
                "proxy_header_failures_total",
                "Connections of trusted hops without a good PROXY header.",
                &["listener"],
            ),
            certificate_not_after: gauges(
                r,
                "tls_certificate_not_after_timestamp_seconds",
                "When the first of the listener's certificates ends.",
                &["listener"],
            ),
            certificate_reloads: counters(
                r,
                "tls_certificate_reloads_total",
                "Attempts to read a listener's certificates again.",
                &["listener", "result"],
            ),
            certificate_last_reload_successful: gauges(
                r,
                "tls_certificate_last_reload_successful",
                "Whether the last attempt to read the listener's certificates succeeded.",
                &["listener"],
            ),
            rule_decisions: counters(
                r,
                "rule_decisions_total",
                "What rules did, or under mode report would have done.",
                &["rule", "action", "mode"],
            ),
            token_verdicts: Token::ALL.iter().map(|class| verdicts.with_label_values(&[class.as_str()])).collect(),
            token_cache: CacheResult::ALL.iter().map(|result| cache.with_label_values(&[result.as_str()])).collect(),
            token_cache_entries: gauge(r, "token_cache_entries", "Verdicts held in the token verdict cache."),
            whoami_duration: histogram(r, "whoami_duration_seconds", "The homeserver's answers about access tokens."),
            upstream_duration: histograms(
                r,
                "upstream_duration_seconds",
                "Until the upstream's response head.",
                &["upstream"],
            ),
            upstream_connections: gauges(
                r,
                "upstream_connections",
                "Connections to upstreams.",
                &["upstream", "state"],
            ),
            upstream_retries: counters(
                r,
                "upstream_retries_total",
                "Requests sent again because a pooled connection proved dead.",
                &["upstream"],
            ),
            upstream_errors: counters(
                r,
                "upstream_errors_total",
                "Exchanges that failed at the upstream, by kind of error.",
                &["upstream", "kind"],
            ),
            upstream_failovers: counters(
                r,
                "upstream_failovers_total",
                "Requests given to another server because the first could not be reached.",
                &["upstream"],
            ),
            upstream_taken_out: counters(
                r,
                "upstream_taken_out_total",
                "Times that a server was left alone for a while because it could not be reached.",
                &["upstream"],
            ),
            upstream_waiting: gauges(
                r,
                "upstream_waiting",
                "Requests of other servers that wait for an upstream that cannot be reached.",
                &["upstream"],
            ),
            key_answers: KeyAnswer::ALL.iter().map(|result| answers.with_label_values(&[result.as_str()])).collect(),
            key_questions: KeyQuestion::ALL
                .iter()
                .map(|result| questions.with_label_values(&[result.as_str()]))
                .collect(),
            origin_routes: Step::ALL.iter().map(|step| routes.with_label_values(&[step.as_str()])).collect(),
            interception_not_after: gauge(
                r,
                "interception_certificate_not_after_timestamp_seconds",
                "When the first certificate that is shown in the place of another host ends; 0 if there is none.",
            ),
            authority_not_after: gauge(
                r,
                "interception_authority_not_after_timestamp_seconds",
                "When the authority ends by which hosts are looked into; 0 if there is none.",
            ),
            tunnels: TunnelMetrics {
                open: gauge(r, "tunnels", "Tunnels that are open."),
                outcomes: Tunnel::ALL.iter().map(|outcome| tunnels.with_label_values(&[outcome.as_str()])).collect(),
                bytes: Direction::ALL.iter().map(|way| tunnelled.with_label_values(&[way.as_str()])).collect(),
            },
            contacts: ContactMetrics::new(r),
            events: EventMetrics::new(r),
            store_last_use_successful: gauge(
                r,
                "store_last_use_successful",
                "Whether the store could be read or written when it was last tried; 1 where there is none.",
            ),
            policy_reloads: Reload::ALL.iter().map(|result| reloads.with_label_values(&[result.as_str()])).collect(),
            policy_last_reload_successful: gauge(
                r,
                "policy_last_reload_successful",
                "Whether the last attempt to load a policy succeeded.",
            ),
            policy_last_reload_success: gauge(
                r,
                "policy_last_reload_success_timestamp_seconds",
                "When a policy was last loaded.",
            ),
            policy_generation: gauge(r, "policy_generation", "The number of the policy in force."),
            access_records_dropped: counter(
                r,
                "access_records_dropped_total",
                "Access records lost because the writer did not keep up.",
            ),
            access_write_errors: counter(r, "access_write_errors_total", "Writes of access records that failed."),
            unknown_endpoint: Flow::ALL.map(|flow| unknown.with_label_values(&[flow.as_str()])).into(),
            drained_exchanges: counter(
                r,
                "drained_exchanges_total",
                "Exchanges closed because they outlasted the drain time.",
            ),
            registry,
        };
        metrics.store_last_use_successful.set(1);
        Arc::new(metrics)
    }

    /// Resolves the handles of one listener; called once for each, at start.
    pub fn listener(&self, name: &str) -> ListenerMetrics {
        let parser = |refusal: &Refusal| self.refused_by_parser.with_label_values(&[name, refusal.as_str()]);
        ListenerMetrics {
            name: name.into(),
            cells: std::iter::repeat_with(OnceLock::new).take(Flow::ALL.len() * Code::ALL.len()).collect(),
            requests: self.requests.clone(),
            connections: self.connections.with_label_values(&[name]),
            refused_by_parser: Refusal::ALL.iter().map(parser).collect(),
            tls_handshake_failures: self.tls_handshake_failures.with_label_values(&[name]),
            proxy_header_failures: self.proxy_header_failures.with_label_values(&[name]),
            certificate_not_after: self.certificate_not_after.clone(),
            certificate_reloads: self.certificate_reloads.clone(),
            certificate_last_reload_successful: self.certificate_last_reload_successful.clone(),
        }
    }

    /// Resolves the counter of a rule's action; called when a policy compiles.
    pub fn rule_counter(&self, rule: &'static str, action: Action, mode: Mode) -> IntCounter {
        self.rule_decisions.with_label_values(&[rule, action.as_str(), mode.as_str()])
    }

    /// Counts a request that ended. `endpoint` is the index in the ids given to [`Metrics::new`]; a wrong one is
    /// not counted.
    pub fn endpoint_request(&self, endpoint: usize, status: u16) {
        let Some(id) = self.endpoint_ids.get(endpoint) else { return };
        let code = Code::from(status);
        let make = || self.endpoint_requests.with_label_values(&[id, code.as_str()]);
        if let Some(cell) = self.endpoints.get(endpoint * Code::ALL.len() + code as usize) {
            cell.get_or_init(make).inc();
        }
    }

    /// Records how long a request took as a whole.
    pub fn request_duration(&self, flow: Flow, took: Duration) {
        self.request_duration[flow as usize].observe(took.as_secs_f64());
    }

    /// Counts a request as in flight until what this returns is dropped.
    pub fn request_in_flight(&self) -> Counted {
        Counted::new(&self.requests_in_flight)
    }

    /// Counts a request for an endpoint that nobody knows.
    pub fn unknown_endpoint(&self, flow: Flow) {
        self.unknown_endpoint[flow as usize].inc();
    }

    /// Counts what was found out about a token.
    pub fn token_verdict(&self, class: Token) {
        self.token_verdicts[class as usize].inc();
    }

    /// Counts a look-up in the verdict cache.
    pub fn token_cache(&self, result: CacheResult) {
        self.token_cache[result as usize].inc();
    }

    /// Resolves the handles of one upstream.
    pub fn upstream(&self, name: &str) -> UpstreamMetrics {
        let connections = |state: &PoolState| self.upstream_connections.with_label_values(&[name, state.as_str()]);
        UpstreamMetrics {
            name: name.into(),
            duration: self.upstream_duration.with_label_values(&[name]),
            retries: self.upstream_retries.with_label_values(&[name]),
            failovers: self.upstream_failovers.with_label_values(&[name]),
            taken_out: self.upstream_taken_out.with_label_values(&[name]),
            waiting: self.upstream_waiting.with_label_values(&[name]),
            connections: PoolState::ALL.iter().map(connections).collect(),
            errors: self.upstream_errors.clone(),
        }
    }

    /// Tells when the first of the certificates that are shown in the place of other hosts ends; 0 where there is none.
    pub fn leaves_not_after(&self, time: Option<SystemTime>) {
        self.interception_not_after.set(time.map_or(0, timestamp));
    }

    /// Tells when the authority ends that made them; 0 where there is none.
    pub fn authority_not_after(&self, time: Option<SystemTime>) {
        self.authority_not_after.set(time.map_or(0, timestamp));
    }

    /// Resolves the handles of the proxy door's tunnels.
    pub fn tunnels(&self) -> TunnelMetrics {
        self.tunnels.clone()
    }

    /// Resolves the handles of the ledger; called once, at start.
    pub fn contacts(&self) -> ContactMetrics {
        self.contacts.clone()
    }

    /// Resolves the handles of privacy events; called once, at start.
    pub fn events(&self) -> EventMetrics {
        self.events.clone()
    }

    /// Resolves the handles of other servers, which are told apart nowhere.
    pub fn origins(&self) -> OriginMetrics {
        OriginMetrics { upstream: self.upstream(ORIGINS), routes: Arc::clone(&self.origin_routes) }
    }

    /// Resolves the handles of the key ring; called once, at start.
    pub fn keys(&self) -> KeyMetrics {
        KeyMetrics { answers: Arc::clone(&self.key_answers), questions: Arc::clone(&self.key_questions) }
    }

    /// Counts an attempt to load a policy; `Reload::Success` also records the time.
    pub fn policy_reload(&self, result: Reload) {
        self.policy_reloads[result as usize].inc();
        match result {
            Reload::Success => {
                self.policy_last_reload_successful.set(1);
                self.policy_last_reload_success.set(timestamp(SystemTime::now()));
            }
            Reload::Failure => self.policy_last_reload_successful.set(0),
        }
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        self.uptime.set(self.started.elapsed().as_secs_f64());
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|e| {
            tracing::error!(error = %e, "metrics cannot be rendered");
            String::new()
        })
    }
}

/// From half a millisecond to two minutes: a long poll ends in the last.
const BUCKETS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(format!("mantlet_{name}"), help))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(format!("mantlet_{name}"), help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(format!("mantlet_{name}"), help))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(format!("mantlet_{name}"), help), labels))
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    let opts = HistogramOpts::new(format!("mantlet_{name}"), help).buckets(BUCKETS.to_vec());
    register(registry, Histogram::with_opts(opts))
}

fn histograms(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    let opts = HistogramOpts::new(format!("mantlet_{name}"), help).buckets(BUCKETS.to_vec());
    register(registry, HistogramVec::new(opts, labels))
}

/// Names and labels are constants of this file: any test that makes [`Metrics`] shows that they are valid and distinct.
fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("a metric's name and labels in this file are valid");
    registry.register(Box::new(collector.clone())).expect("a metric's name in this file is its own");
    collector
}

fn timestamp(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
