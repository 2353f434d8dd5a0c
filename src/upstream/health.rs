//! Whether a server is worth trying, by what became of the last attempts to connect; shared by all workers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What is known of one server.
///
/// Nobody asks a server how it is: a connection that cannot be made takes it out for a while. Then one request tries it again;
/// the others follow if that one succeeds, and if not, it is out for twice as long.
#[derive(Debug)]
pub struct Health {
    /// The clock's zero.
    born: Instant,
    /// When its time out ends, in milliseconds since zero, and below that, in a byte, how often in a row it was taken out. All
    /// in one word, so that no two workers see halves of it. 0 is well.
    state: AtomicU64,
}

/// Leave to try a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// One of many.
    Usual,
    /// The one that tells whether its time out was long enough.
    Trial,
}

impl Health {
    /// A server of which nothing bad is known.
    pub fn new() -> Self {
        Self { born: Instant::now(), state: AtomicU64::new(0) }
    }

    /// Leave to try it, unless it is out.
    pub fn attempt(&self) -> Option<Attempt> {
        match self.state.load(Ordering::Relaxed) {
            0 => Some(Attempt::Usual),
            state => self.trial_at(state, self.now()),
        }
    }

    /// Whether it is out now.
    pub fn is_out(&self) -> bool {
        self.state.load(Ordering::Relaxed) != 0
    }

    /// A connection was made.
    pub fn reached(&self) {
        if self.is_out() {
            self.state.store(0, Ordering::Relaxed);
        }
    }

    /// No connection could be made. Tells whether that took the server out, for the first time or again.
    pub fn missed(&self, attempt: Attempt) -> bool {
        self.missed_at(attempt, self.now())
    }

    fn trial_at(&self, state: u64, now: u64) -> Option<Attempt> {
        let (until, times) = (state >> 8, state & 0xff);
        // Until its trial has ended, or as long again has passed, there is no second one.
        let next = (now + pause(times)) << 8 | times;
        let is_mine = || self.state.compare_exchange(state, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        (now >= until && is_mine()).then_some(Attempt::Trial)
    }

    fn missed_at(&self, attempt: Attempt, now: u64) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        if attempt == Attempt::Usual && state != 0 {
            // It was begun before the server went out, or for want of any other.
            return false;
        }
        let times = ((state & 0xff) + 1).min(0xff);
        let next = (now + pause(times)) << 8 | times;
        self.state.compare_exchange(state, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX >> 9)
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

/// How long a server is out that was taken out so often in a row, in milliseconds.
fn pause(times: u64) -> u64 {
    (FIRST_MS << times.saturating_sub(1).min(16)).min(LONGEST_MS)
}

/// A process that is started again is back within a few seconds; a machine is not.
const FIRST_MS: u64 = 2_000;
const LONGEST_MS: u64 = 30_000;

#[cfg(test)]
mod tests {
    use super::*;

    impl Health {
        fn attempt_at(&self, now: u64) -> Option<Attempt> {
            match self.state.load(Ordering::Relaxed) {
                0 => Some(Attempt::Usual),
                state => self.trial_at(state, now),
            }
        }
    }

    #[test]
    fn a_failure_takes_a_server_out_and_only_one_tries_it_again() {
        let health = Health::new();
        assert_eq!(health.attempt_at(0), Some(Attempt::Usual));
        assert!(health.missed_at(Attempt::Usual, 1_000) && health.is_out());
        assert!(!health.missed_at(Attempt::Usual, 1_001), "those that began together are one failure");
        assert_eq!(health.attempt_at(2_999), None);
        assert_eq!(health.attempt_at(3_000), Some(Attempt::Trial));
        assert_eq!(health.attempt_at(3_000), None);
        assert_eq!(health.attempt_at(4_999), None);
        health.reached();
        assert_eq!(health.attempt_at(3_001), Some(Attempt::Usual));
    }

    #[test]
    fn a_trial_that_fails_doubles_the_time_up_to_a_bound() {
        let health = Health::new();
        let mut now = 0;
        health.missed_at(Attempt::Usual, now);
        for seconds in [2, 4, 8, 16, 30, 30, 30] {
            assert_eq!(health.attempt_at(now + seconds * 1_000 - 1), None, "{seconds}");
            now += seconds * 1_000;
            assert_eq!(health.attempt_at(now), Some(Attempt::Trial), "{seconds}");
            assert!(health.missed_at(Attempt::Trial, now));
        }
        health.reached();
        health.missed_at(Attempt::Usual, now);
        assert_eq!(health.attempt_at(now + 2_000), Some(Attempt::Trial), "a server that was well begins anew");
    }

    #[test]
    fn a_trial_that_never_ends_is_followed_by_another() {
        let health = Health::new();
        health.missed_at(Attempt::Usual, 0);
        assert_eq!(health.attempt_at(2_000), Some(Attempt::Trial));
        assert_eq!(health.attempt_at(4_000), Some(Attempt::Trial));
    }

    #[test]
    fn no_count_of_failures_overflows() {
        let health = Health::new();
        let mut now = 0;
        health.missed_at(Attempt::Usual, now);
        for times in 0..600 {
            now += LONGEST_MS;
            assert_eq!(health.attempt_at(now), Some(Attempt::Trial));
            assert!(health.missed_at(Attempt::Trial, now));
            assert!(times < 10 || health.attempt_at(now + LONGEST_MS - 1).is_none(), "{times}");
        }
    }
}
