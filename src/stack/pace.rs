//! Where a connection stands between its exchanges, and until when it may stand there.
//!
//! The HTTP library has one time-out for a head, and begins it while a connection is idle; a first byte, a head and a rest between
//! two requests are three different things to wait for.

use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::message::Rest;

/// The state of one connection.
#[derive(Debug)]
pub struct Pace {
    phase: Cell<Phase>,
    running: Cell<usize>,
    rest: Rc<Rest>,
    limits: PaceLimits,
}

/// How long each wait may last.
#[derive(Clone, Copy, Debug)]
pub struct PaceLimits {
    /// Until a new connection says something.
    pub first_byte: Duration,
    /// From the first byte of a request to the end of its head.
    pub head: Duration,
    /// From the end of an answer to the end of its request, where that comes later.
    pub rest: Duration,
    /// From the end of an exchange to the next request.
    pub keep_alive: Duration,
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its first byte.
    New(Instant),
    /// The rest of a head.
    Head(Instant),
    /// An exchange to end.
    Busy,
    /// The next request, and before it the rest of one that was answered without.
    Idle(Instant),
}

impl Pace {
    /// A connection that was just accepted.
    pub fn new(limits: PaceLimits) -> Self {
        Self { phase: Cell::new(Phase::New(Instant::now())), running: Cell::new(0), rest: Rc::default(), limits }
    }

    /// Bytes came in. `begins_head`: where they can only be a request's, as in HTTP/1.
    pub fn read(&self, begins_head: bool) {
        match self.phase.get() {
            Phase::New(_) => self.phase.set(Phase::Head(Instant::now())),
            Phase::Idle(_) if begins_head && !self.rest.is_coming() => self.phase.set(Phase::Head(Instant::now())),
            Phase::Idle(_) | Phase::Head(_) | Phase::Busy => {}
        }
    }

    /// An exchange begins.
    pub fn begin(&self) {
        self.running.set(self.running.get() + 1);
        self.phase.set(Phase::Busy);
    }

    /// An exchange ended.
    pub fn end(&self) {
        self.running.set(self.running.get().saturating_sub(1));
        if self.running.get() == 0 {
            self.phase.set(Phase::Idle(Instant::now()));
        }
    }

    /// What comes of a request that was answered without it.
    pub fn rest(&self) -> &Rc<Rest> {
        &self.rest
    }

    /// Reads on what nobody wants.
    pub fn poll_rest(&self, cx: &mut Context<'_>) {
        if let (Poll::Ready(()), Phase::Idle(_)) = (self.rest.poll(cx), self.phase()) {
            self.phase.set(Phase::Idle(Instant::now()));
        }
    }

    /// What the connection waits for.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Exchanges that run.
    pub fn running(&self) -> usize {
        self.running.get()
    }

    /// When its patience ends; `None` while an exchange runs, which has bounds of its own.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase.get() {
            Phase::New(since) => since.checked_add(self.limits.first_byte),
            Phase::Head(since) => since.checked_add(self.limits.head),
            Phase::Idle(since) if self.rest.is_coming() => since.checked_add(self.limits.rest),
            Phase::Idle(since) => since.checked_add(self.limits.keep_alive),
            Phase::Busy => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_request_that_was_answered_without_is_no_head_and_has_a_bound_of_its_own() {
        let [first_byte, head, rest, keep_alive] = [1, 2, 3, 4].map(Duration::from_secs);
        let pace = Pace::new(PaceLimits { first_byte, head, rest, keep_alive });
        pace.read(true);
        pace.begin();
        pace.rest().begin();
        pace.end();
        let Phase::Idle(since) = pace.phase() else { panic!("{:?}", pace.phase()) };
        pace.read(true);
        assert_eq!((pace.phase(), pace.deadline()), (Phase::Idle(since), Some(since + rest)));
        pace.rest().end();
        assert_eq!(pace.deadline(), Some(since + keep_alive));
        pace.read(true);
        assert!(matches!(pace.phase(), Phase::Head(_)));
    }
}
