//! What is asked of notaries, which the operator names, about servers that cannot be reached: beside all others, so that a notary
//! which is slow or gone keeps nobody from asking a server that is there.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::document::ServerKeys;
use crate::error::Error;
use crate::matrix::ServerName;

/// What all workers know of these notaries.
pub(super) struct Notaries {
    /// Questions at once. No server that is asked for its own keys waits for one of these places.
    places: Semaphore,
    /// Those that were silent, and when each may be asked again.
    silent: Mutex<Vec<(ServerName, Instant)>>,
}

/// The places of one question: who asks for a thousand servers that are gone leaves room for others.
pub(super) struct Share(Semaphore);

impl Notaries {
    pub fn new() -> Self {
        Self { places: Semaphore::new(PLACES), silent: Mutex::default() }
    }

    /// Asks one of these notaries after the other what this server said once, until one knows.
    ///
    /// One that cannot be reached, or is silent for [`PATIENCE`], is left alone for a while, whoever wants to ask.
    pub async fn ask(
        &self,
        notaries: &[ServerName],
        server: &ServerName,
        Share(share): &Share,
        ask: impl AsyncFn(&ServerName) -> Result<Option<ServerKeys>, Error>,
    ) -> Option<ServerKeys> {
        if notaries.is_empty() {
            return None;
        }
        let place = async { (share.acquire().await, self.places.acquire().await) };
        let Ok((Ok(_share), Ok(_place))) = timeout(WAITS, place).await else { return None };
        for notary in notaries.iter().filter(|notary| *notary != server) {
            if self.is_left_alone(notary) {
                continue;
            }
            match timeout(PATIENCE, ask(notary)).await {
                Ok(Ok(Some(keys))) => return Some(keys),
                Ok(Ok(None)) => {}
                Ok(Err(_)) | Err(_) => self.leave_alone(notary),
            }
        }
        None
    }

    fn is_left_alone(&self, notary: &ServerName) -> bool {
        let now = Instant::now();
        self.silent().iter().any(|(silent, again)| silent == notary && now < *again)
    }

    fn leave_alone(&self, notary: &ServerName) {
        let now = Instant::now();
        let mut silent = self.silent();
        // There are no more than policies name.
        silent.retain(|(other, again)| other != notary && now < *again);
        silent.push((notary.clone(), now + LEFT_ALONE));
    }

    fn silent(&self) -> MutexGuard<'_, Vec<(ServerName, Instant)>> {
        // Nothing is left half-done under this lock.
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    pub fn new() -> Self {
        Self(Semaphore::new(SHARE))
    }
}

const PLACES: usize = 32;
/// Of these, as many for one question.
const SHARE: usize = 16;
/// For a place: whoever gets none in that time is asked for another time, and none is held by a notary for as long.
const WAITS: Duration = Duration::from_secs(10);
/// For each notary.
const PATIENCE: Duration = Duration::from_secs(4);
/// A notary that was silent.
const LEFT_ALONE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use futures_util::future::join_all;

    use super::*;
    use crate::error::Kind;

    fn name(text: &str) -> ServerName {
        ServerName::parse(text).unwrap()
    }

    /// Asks two notaries about so many servers at once. The first says what it is told to, the second that it knows nothing; who was
    /// asked, and how long it took.
    async fn ask(notaries: &Notaries, servers: usize, first: impl AsyncFn() -> Result<(), Error>) -> (Vec<usize>, u64) {
        let names = [name("first.example"), name("second.example")];
        let (asked, began, share) = (RefCell::new(vec![0; 2]), Instant::now(), Share::new());
        let gone: Vec<_> = (0..servers).map(|number| name(&format!("gone{number}.example"))).collect();
        let answer = async |notary: &ServerName| {
            asked.borrow_mut()[usize::from(*notary == names[1])] += 1;
            if *notary == names[0] { first().await.map(|()| None) } else { Ok(None) }
        };
        let found = join_all(gone.iter().map(|server| notaries.ask(&names, server, &share, answer))).await;
        assert!(found.iter().all(Option::is_none));
        (asked.into_inner(), began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_notary_that_is_silent_is_left_alone_for_a_minute_by_those_who_wait_as_well() {
        let notaries = Notaries::new();
        let silent = async || std::future::pending().await;
        assert_eq!(ask(&notaries, 100, silent).await, (vec![SHARE, 100], 4));
        assert_eq!(ask(&notaries, 100, silent).await, (vec![0, 100], 0));
        tokio::time::advance(LEFT_ALONE - Duration::from_secs(1)).await;
        assert_eq!(ask(&notaries, 1, silent).await, (vec![0, 1], 0));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(ask(&notaries, 1, silent).await, (vec![1, 1], 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_notary_that_cannot_be_reached_is_left_alone_and_one_that_knows_nothing_is_not() {
        let notaries = Notaries::new();
        let gone = async || Err(Error::new(Kind::OriginConnect));
        assert_eq!(ask(&notaries, 1, gone).await, (vec![1, 1], 0));
        assert_eq!(ask(&notaries, 1, gone).await, (vec![0, 1], 0));
        let notaries = Notaries::new();
        assert_eq!(ask(&notaries, 100, async || Ok(())).await, (vec![100, 100], 0));
        assert_eq!(ask(&notaries, 100, async || Ok(())).await, (vec![100, 100], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_many_leaves_places_for_others_and_who_gets_none_does_not_wait_for_ever() {
        let notaries = Notaries::new();
        let slow = async || {
            tokio::time::sleep(PATIENCE - Duration::from_millis(1)).await;
            Ok(())
        };
        let (many, (_, took)) = tokio::join!(ask(&notaries, 1000, slow), ask(&notaries, 1, slow));
        assert_eq!(took, 3);
        // Three times in ten seconds as many as have places.
        assert_eq!(many.0, [3 * SHARE; 2]);
    }
}
