//! What is known of one server, and when it may be asked again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::document::ServerKeys;
use super::query::Wanted;

/// What is known of one server; shared by all workers.
#[derive(Debug, Default)]
pub(super) struct Entry(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    keys: Option<Arc<ServerKeys>>,
    /// Whether there is nothing in the store that is not known.
    is_read: bool,
    /// Ends when whoever asks the server now has learnt something.
    asked: Option<watch::Receiver<()>>,
    /// When the server may be asked again.
    again: Option<Instant>,
    /// How often in a row it did not say.
    failures: u32,
}

/// What a look at an entry comes to.
pub(super) enum Look {
    /// This is what is wanted.
    Good(Arc<ServerKeys>),
    /// Nothing better can be had now.
    Stale(Option<Arc<ServerKeys>>),
    /// Somebody asks, and this ends when he knows.
    Asked(watch::Receiver<()>),
    /// Whoever looks has to ask; others wait until the sender is dropped.
    Nobody(watch::Sender<()>),
}

impl Entry {
    /// Whether the store has to be asked first.
    pub fn is_unread(&self) -> bool {
        !self.lock().is_read
    }

    /// Takes what the store has.
    pub fn read(&self, keys: Option<ServerKeys>) {
        let mut known = self.lock();
        known.is_read = true;
        if known.keys.is_none() {
            known.keys = keys.map(Arc::new);
        }
    }

    /// Takes what somebody else has of a server that said nothing.
    pub fn take(&self, keys: &Arc<ServerKeys>) {
        self.lock().keys.get_or_insert_with(|| Arc::clone(keys));
    }

    /// The newest that is known.
    pub fn keys(&self) -> Option<Arc<ServerKeys>> {
        self.lock().keys.clone()
    }

    /// Looks for what is wanted.
    pub fn look(&self, wanted: &Wanted, now: u64) -> Look {
        let mut known = self.lock();
        if let Some(keys) = known.keys.as_ref().filter(|keys| keys.serves(wanted, now)) {
            return Look::Good(Arc::clone(keys));
        }
        // Whoever asked may be gone without an answer, with his worker.
        if let Some(asked) = known.asked.as_ref().filter(|asked| asked.has_changed().is_ok()) {
            return Look::Asked(asked.clone());
        }
        if known.again.is_some_and(|again| Instant::now() < again) {
            return Look::Stale(known.keys.clone());
        }
        let (sender, receiver) = watch::channel(());
        known.asked = Some(receiver);
        Look::Nobody(sender)
    }

    /// The server said this.
    pub fn learn(&self, keys: &Arc<ServerKeys>) {
        let mut known = self.lock();
        known.keys = Some(Arc::clone(keys));
        known.is_read = true;
        known.failures = 0;
        known.again = Some(Instant::now() + SHORTEST);
    }

    /// The server said nothing that counts.
    pub fn fail(&self) {
        let mut known = self.lock();
        let pause = SHORTEST * 2_u32.saturating_pow(known.failures.min(16));
        known.again = Some(Instant::now() + pause.min(LONGEST));
        known.failures = known.failures.saturating_add(1);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing is left half-done under this lock, so what a panic elsewhere poisoned is still good.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No server is asked more often than that, whatever is wanted of it.
const SHORTEST: Duration = Duration::from_secs(60);
/// The longest time that a server which does not answer is left alone.
const LONGEST: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_say_is_left_alone_for_longer_each_time() {
        let entry = Entry::default();
        let wanted = Wanted::default();
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(matches!(entry.look(&wanted, 0), Look::Nobody(_)), "{minutes}");
            entry.fail();
            tokio::time::advance(Duration::from_secs(minutes * 60 - 1)).await;
            assert!(matches!(entry.look(&wanted, 0), Look::Stale(None)), "{minutes}");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_asks_while_others_wait_and_another_asks_when_he_is_gone() {
        let entry = Entry::default();
        let wanted = Wanted::default();
        let Look::Nobody(sender) = entry.look(&wanted, 0) else { panic!("nobody asks") };
        let Look::Asked(mut waiting) = entry.look(&wanted, 0) else { panic!("somebody asks") };
        drop(sender);
        assert!(waiting.changed().await.is_err());
        assert!(matches!(entry.look(&wanted, 0), Look::Nobody(_)));
    }
}
