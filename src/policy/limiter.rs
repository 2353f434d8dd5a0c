//! How often something may pass: per address, or per token.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};

use super::exchange::Exchange;
use crate::addresses::client_at;
use crate::units::Period;

/// Counts exchanges by whoever makes them. What is kept of them is a keyed hash, whose key is new for each limiter.
pub struct Limiter {
    by: By,
    requests: NonZeroU32,
    per: Period,
    buckets: DefaultKeyedRateLimiter<u64>,
    clock: DefaultClock,
    hasher: RandomState,
}

/// By what exchanges are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// By the client's address; of IPv6 by its /64, of which every client has as many as it likes.
    #[default]
    Address,
    /// By the access token; without one by the address.
    Token,
}

impl Limiter {
    /// At most so many requests in that time, at once or spread over it; `None` if that is no rate.
    pub fn new(by: By, requests: NonZeroU32, per: Period) -> Option<Self> {
        let quota = Quota::with_period(per.duration() / requests.get())?.allow_burst(requests);
        let buckets = DefaultKeyedRateLimiter::keyed(quota);
        Some(Self { by, requests, per, buckets, clock: DefaultClock::default(), hasher: RandomState::new() })
    }

    /// Counts an exchange, and tells how long it has to wait if it comes too soon.
    pub fn check(&self, exchange: &Exchange<'_>) -> Result<(), Duration> {
        if self.buckets.len() > MOST {
            self.buckets.retain_recent();
        }
        let result = self.buckets.check_key(&self.key(exchange));
        result.map_err(|too_soon| too_soon.wait_time_from(self.clock.now()))
    }

    fn key(&self, exchange: &Exchange<'_>) -> u64 {
        match (self.by, exchange.read_token()) {
            (By::Token, Ok(token)) => self.hasher.hash_one((1, &*token.value)),
            (By::Token | By::Address, _) => self.hasher.hash_one((0, client_at(exchange.client))),
        }
    }
}

impl fmt::Display for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            By::Address => "address",
            By::Token => "token",
        };
        write!(f, "{} requests in {} per {by}", self.requests, self.per)
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Limiter({self})")
    }
}

/// From so many clients on, those that have waited long enough are forgotten whenever another one comes.
const MOST: usize = 50_000;
