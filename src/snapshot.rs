//! The policy in force: one pointer that a reload swaps, and that a request takes once, at its start.

use std::cell::RefCell;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use prometheus::IntCounter;
use tokio::sync::watch;

use crate::observe::metrics::{Action, Metrics};
use crate::policy::plan::RuleInfo;
use crate::policy::{Policy, RuleIndex};
use crate::tls::leaves::Leaves;

/// A policy with its number and its counters. A request is judged wholly by one generation.
#[derive(Debug)]
pub struct Generation {
    /// Counted from 1, the one that was loaded at start.
    pub number: u64,
    /// What judges.
    pub policy: Arc<Policy>,
    /// What is shown in the place of hosts that the policy wants to be looked into.
    pub leaves: Leaves,
    /// What each rule of the policy counts, resolved once.
    counters: Vec<RuleCounters>,
}

/// What one rule counts.
#[derive(Clone, Debug)]
pub struct RuleCounters {
    /// Requests it refused, or would have.
    pub deny: IntCounter,
    /// Requests it answered, or would have.
    pub answer: IntCounter,
    /// Requests it would have changed, in report mode only: a change that is made costs no counting.
    pub edit: IntCounter,
}

/// The place where all workers find the generation in force.
#[derive(Clone, Debug)]
pub struct Snapshot {
    place: Arc<ArcSwap<Generation>>,
    swapped: watch::Sender<()>,
}

/// A worker's own view of it, which costs a comparison of two pointers.
pub struct Current {
    view: RefCell<Cache<Arc<ArcSwap<Generation>>, Arc<Generation>>>,
    swapped: watch::Receiver<()>,
}

impl Generation {
    /// Numbers a policy and resolves its counters.
    pub fn new(number: u64, policy: Arc<Policy>, leaves: Leaves, metrics: &Metrics) -> Self {
        let resolve = |rule: &RuleInfo| {
            let count = |action| metrics.rule_counter(rule.name, action, rule.mode.into());
            RuleCounters { deny: count(Action::Deny), answer: count(Action::Answer), edit: count(Action::Edit) }
        };
        let counters = policy.rules().iter().map(resolve).collect();
        metrics.leaves_not_after(leaves.not_after());
        Self { number, policy, leaves, counters }
    }

    /// One that breaks when it counts what a rule did.
    #[cfg(test)]
    pub(crate) fn without_counters(policy: Arc<Policy>) -> Self {
        Self { number: 1, policy, leaves: Leaves::default(), counters: Vec::new() }
    }

    /// What one rule counts.
    pub fn counters(&self, rule: RuleIndex) -> &RuleCounters {
        // An index is only made by the compiler of this very policy.
        &self.counters[rule.index()]
    }
}

impl Snapshot {
    /// The first generation.
    pub fn new(first: Generation) -> Self {
        Self { place: Arc::new(ArcSwap::from_pointee(first)), swapped: watch::Sender::default() }
    }

    /// The generation in force.
    pub fn load(&self) -> Arc<Generation> {
        self.place.load_full()
    }

    /// Puts a generation in force; requests under way end under theirs, tunnels only where it leaves them a way.
    pub fn store(&self, generation: Generation) {
        self.place.store(Arc::new(generation));
        self.swapped.send_replace(());
    }

    /// A view for one worker.
    pub fn current(&self) -> Current {
        Current { view: RefCell::new(Cache::new(Arc::clone(&self.place))), swapped: self.swapped.subscribe() }
    }
}

impl Current {
    /// The generation in force.
    pub fn load(&self) -> Arc<Generation> {
        Arc::clone(self.view.borrow_mut().load())
    }

    /// Waits until this is so of the generation in force.
    pub async fn until(&self, is_so: impl Fn(&Generation) -> bool) {
        // What is swapped from here on is seen, whatever was seen before.
        let mut swapped = self.swapped.clone();
        while !is_so(&self.load()) {
            // Where nobody swaps any more, it stays as it is.
            if swapped.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }
}
