//! The servers of one upstream, as one worker reaches them: any of them answers as well as any other.
//!
//! A request goes to the less busy of two neighbours, and the pair moves on with each request. Taking turns alone would go on
//! feeding a server that has become slow; looking at all of them costs more the more there are, and sends every worker's next
//! request to the same one.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_ok;
use http::Response;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::connector::Connector;
use super::directory::{Entry, Waiting};
use super::health::{Attempt, Health};
use super::pool::{Pool, Slot};
use crate::error::{Error, Kind, Side};
use crate::message::BoxRequest;
use crate::observe::metrics::UpstreamMetrics;

/// Servers that answer alike.
pub(super) struct Replicas {
    servers: Vec<Server>,
    turn: Cell<usize>,
    metrics: UpstreamMetrics,
    waiting: Waiting,
}

struct Server {
    pool: Pool,
    health: Arc<Health>,
}

impl Replicas {
    pub fn new(entry: &Entry) -> Self {
        let server = |(address, health): &(_, Arc<Health>)| Server {
            pool: Pool::new(Connector::new(Clone::clone(address)), entry.metrics.clone()),
            health: Arc::clone(health),
        };
        Self {
            servers: entry.servers.iter().map(server).collect(),
            turn: Cell::new(0),
            metrics: entry.metrics.clone(),
            waiting: entry.waiting.clone(),
        }
    }

    /// Sends a request to one of the servers, and to a second one if nothing of it could be sent to the first. If it is one that
    /// waits, that goes on until one of them can be reached, or the time is over.
    ///
    /// # Errors
    /// As [`Pool::send`].
    pub async fn send(&self, request: BoxRequest, waits: bool) -> Result<Response<Incoming>, Error> {
        let began = Instant::now();
        let slot = &mut Some(request);
        let sent = match self.send_once_or_twice(slot).await {
            Err(error) if waits => self.try_again(slot, error, began + self.waiting.patience).await,
            sent => sent,
        };
        match &sent {
            Ok(_) => self.metrics.duration.observe(began.elapsed().as_secs_f64()),
            Err(error) if error.kind().side() == Side::Upstream => self.metrics.error(error.kind().as_str()),
            Err(_) => {}
        }
        sent
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.servers.len()
    }

    /// Sends a request to one of them and no other.
    ///
    /// # Errors
    /// As [`Pool::send`].
    pub async fn send_to_one(&self, server: usize, request: BoxRequest) -> Result<Response<Incoming>, Error> {
        self.send_to(server, Attempt::Usual, &mut Some(request)).await
    }

    /// Whether a connection to one of them can be made.
    ///
    /// # Errors
    /// Why the last one could not be reached.
    pub async fn reach(&self) -> Result<(), Error> {
        let each = self.servers.iter().map(|server| Box::pin(server.pool.reach()));
        select_ok(each).await.map(|((), _)| ())
    }

    /// Goes on trying while nothing of the request could be sent to anybody.
    async fn try_again(&self, slot: &mut Slot, error: Error, deadline: Instant) -> Result<Response<Incoming>, Error> {
        let Ok(_place) = self.waiting.places.try_acquire() else { return Err(error) };
        let _counted = self.metrics.waiting();
        let mut error = error;
        while slot.is_some() && error.kind() == Kind::Connect && Instant::now() < deadline {
            tokio::time::sleep_until(deadline.min(Instant::now() + EVERY)).await;
            match self.send_once_or_twice(slot).await {
                Ok(response) => return Ok(response),
                Err(again) => error = again,
            }
        }
        Err(error)
    }

    async fn send_once_or_twice(&self, slot: &mut Slot) -> Result<Response<Incoming>, Error> {
        let (first, attempt) = self.pick();
        let sent = self.send_to(first, attempt, slot).await;
        if sent.is_err()
            && slot.is_some()
            && let Some((second, attempt)) = self.pick_other(first)
        {
            self.metrics.failovers.inc();
            return self.send_to(second, attempt, slot).await;
        }
        sent
    }

    async fn send_to(&self, server: usize, attempt: Attempt, slot: &mut Slot) -> Result<Response<Incoming>, Error> {
        let Server { pool, health } = &self.servers[server];
        let sent = pool.send(slot).await;
        match &sent {
            Err(error) if error.kind() == Kind::Connect => {
                if health.missed(attempt) {
                    self.metrics.taken_out.inc();
                }
            }
            // Whatever came of it, somebody was there.
            Ok(_) | Err(_) => health.reached(),
        }
        sent
    }

    /// The server for the next request; one that is out only if all are.
    fn pick(&self) -> (usize, Attempt) {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        self.choose(turn, None).unwrap_or((turn % self.servers.len().max(1), Attempt::Usual))
    }

    /// Another server than this one, if there is one that is not out.
    fn pick_other(&self, not: usize) -> Option<(usize, Attempt)> {
        self.choose(not + 1, Some(not))
    }

    /// Beginning at a place: one whose time out has just ended, else the less busy of the first two that are in.
    fn choose(&self, from: usize, not: Option<usize>) -> Option<(usize, Attempt)> {
        let count = self.servers.len();
        let mut found: Option<usize> = None;
        for place in (0..count).map(|step| (from + step) % count).filter(|place| Some(*place) != not) {
            match (self.servers[place].health.attempt(), found) {
                (None, _) => {}
                (Some(Attempt::Trial), _) => return Some((place, Attempt::Trial)),
                (Some(Attempt::Usual), None) => found = Some(place),
                (Some(Attempt::Usual), Some(earlier)) => {
                    let less = self.servers[place].pool.busy() < self.servers[earlier].pool.busy();
                    return Some((if less { place } else { earlier }, Attempt::Usual));
                }
            }
        }
        found.map(|place| (place, Attempt::Usual))
    }
}

/// Between two attempts of one request that waits. A thousand of them cost a core some percent, and when the server is back
/// they come spread over that time.
const EVERY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use http::Request;
    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::config::address::UpstreamAddress;
    use crate::message::RequestBody;
    use crate::observe::metrics::Metrics;

    /// One server that is not there, and this many places to wait for it.
    async fn nobody(patience: Duration, places: usize) -> Replicas {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = UpstreamAddress::Tcp { host: "127.0.0.1".into(), port };
        Replicas::new(&Entry {
            name: "synapse".into(),
            servers: vec![(address, Arc::default())],
            metrics: Metrics::new(&[]).upstream("synapse"),
            waiting: Waiting { patience, places: Arc::new(Semaphore::new(places)) },
        })
    }

    async fn took(replicas: &Replicas, waits: bool) -> Duration {
        let began = Instant::now();
        let failed = replicas.send(Box::new(Request::new(RequestBody::empty())), waits).await;
        assert_eq!(failed.unwrap_err().kind(), Kind::Connect);
        began.elapsed()
    }

    #[tokio::test]
    async fn a_request_that_waits_waits_no_longer_than_patience() {
        let patience = Duration::from_millis(400);
        let replicas = nobody(patience, 1).await;
        assert!(took(&replicas, true).await >= patience);
        assert!(took(&replicas, false).await < patience);
        assert!(took(&nobody(Duration::ZERO, 1).await, true).await < patience);
    }

    #[tokio::test]
    async fn whoever_finds_no_place_to_wait_is_answered_at_once() {
        let patience = Duration::from_millis(600);
        let replicas = nobody(patience, 2).await;
        let mut all = [Duration::ZERO; 3];
        (all[0], all[1], all[2]) = tokio::join!(took(&replicas, true), took(&replicas, true), took(&replicas, true));
        assert_eq!(all.iter().filter(|took| **took >= patience).count(), 2, "{all:?}");
        assert!(took(&replicas, true).await >= patience, "places are given back");
    }
}
