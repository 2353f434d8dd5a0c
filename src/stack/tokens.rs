//! What is known of tokens, for a short time, shared by all workers.
//!
//! No token is kept: entries are found by a keyed hash whose key is new at every start. One entry holds all that is known of one
//! token, under all circumstances in which it was shown, so that it can be forgotten as a whole. A question that is under way
//! writes into the entry it began with: once that was forgotten, nobody finds the answer any more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderValue, RETRY_AFTER};
use quick_cache::sync::Cache;
use tokio::sync::watch;

use crate::config::settings::Tokens as TokenLimits;
use crate::error::Kind;
use crate::message::Answer;
use crate::observe::metrics::{CacheResult, Metrics};
use crate::policy::TokenVerdict;

/// Verdicts on tokens.
pub struct Tokens {
    entries: Cache<Hash, Arc<Entry>>,
    secret: [u8; 32],
    positive: Duration,
    negative: Duration,
    metrics: Arc<Metrics>,
}

type Hash = [u8; 32];

/// A token and the circumstances in which it is shown, as hashes.
pub struct Key {
    token: Hash,
    circumstances: Hash,
}

/// What the homeserver said of a token, kept small: a stranger may make as many entries as there is room for.
#[derive(Clone, Debug)]
pub enum Remembered {
    /// It knows the user.
    Valid {
        /// Who that is.
        user: Arc<str>,
        /// Whether it is a guest.
        guest: bool,
    },
    /// It refused the token.
    Refused(Arc<Refusal>),
    /// It could not be asked.
    Unavailable(Kind),
}

/// The homeserver's own words.
#[derive(Debug)]
pub struct Refusal {
    /// Its status.
    pub status: StatusCode,
    /// Its JSON.
    pub body: Bytes,
    /// When to come again, if it said so.
    pub retry_after: Option<HeaderValue>,
}

#[derive(Default)]
struct Entry(Mutex<Vec<Known>>);

struct Known {
    circumstances: Hash,
    state: State,
}

enum State {
    /// Somebody asks; the answer will be here. It closes without one if the asker fails.
    Asked(watch::Receiver<Option<Remembered>>),
    /// It was answered, and is believed until then.
    Answered(Remembered, Instant),
}

impl Remembered {
    fn verdict(&self) -> TokenVerdict {
        match self {
            Remembered::Valid { guest, .. } => TokenVerdict::Valid { guest: *guest },
            Remembered::Refused(refusal) => TokenVerdict::Refused(refusal.answer()),
            Remembered::Unavailable(kind) => TokenVerdict::Unavailable(*kind),
        }
    }
}

impl Refusal {
    fn answer(&self) -> Answer {
        let answer = Answer::json_bytes(self.status, self.body.clone());
        match &self.retry_after {
            Some(after) => answer.with_header(RETRY_AFTER, after.clone()),
            None => answer,
        }
    }
}

impl Tokens {
    /// An empty memory with these bounds.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn new(limits: &TokenLimits, metrics: Arc<Metrics>) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let (positive, negative) = (limits.positive.duration(), limits.negative.duration());
        Ok(Self { entries: Cache::new(limits.capacity), secret, positive, negative, metrics })
    }

    /// The key of a token under these circumstances.
    pub fn key(&self, token: &[u8], circumstances: &[u8]) -> Key {
        Key { token: self.hash(token), circumstances: self.hash(circumstances) }
    }

    /// The verdict that is remembered; else the one that `ask` brings, from a task of its own that all who wait share.
    pub async fn verdict<F>(self: &Arc<Self>, key: Key, ask: impl FnOnce() -> F) -> TokenVerdict
    where
        F: Future<Output = Remembered> + 'static,
    {
        let entry = self.entry(&key.token);
        let mut waiting = match entry.look(&key.circumstances) {
            Look::Known(verdict) => {
                self.metrics.token_cache(CacheResult::Hit);
                return verdict;
            }
            Look::Asked(waiting) => {
                self.metrics.token_cache(CacheResult::Joined);
                waiting
            }
            Look::Nothing(sender, waiting) => {
                self.metrics.token_cache(CacheResult::Miss);
                let (question, this) = (ask(), Arc::clone(self));
                tokio::task::spawn_local(async move {
                    let remembered = question.await;
                    entry.answer(key.circumstances, &remembered, this.believed(&remembered));
                    // Nobody may be waiting any more: the verdict is remembered all the same.
                    let _ = sender.send(Some(remembered));
                });
                waiting
            }
        };
        let answered = waiting.wait_for(Option::is_some).await;
        match answered.as_deref() {
            Ok(Some(remembered)) => remembered.verdict(),
            // The asker ended without an answer: its worker went down.
            Ok(None) | Err(_) => TokenVerdict::Unavailable(Kind::TokenCheck),
        }
    }

    /// Forgets a token.
    pub fn forget(&self, token: &[u8]) {
        self.entries.remove(&self.hash(token));
        self.count();
    }

    /// Whose token this is, if it is known.
    pub fn user_of(&self, token: &[u8]) -> Option<Arc<str>> {
        self.entries.peek(&self.hash(token)).and_then(|entry| entry.user())
    }

    /// Forgets all tokens of this user.
    pub fn forget_user(&self, user: &str) {
        // What is asked at this moment may be answered from before: it is forgotten before it is known.
        self.entries.retain(|_, entry| !entry.is_asked() && entry.user().as_deref() != Some(user));
        self.count();
    }

    /// Forgets everything.
    pub fn forget_all(&self) {
        self.entries.clear();
        self.count();
    }

    fn entry(&self, token: &Hash) -> Arc<Entry> {
        let entry = self.entries.get_or_insert_with::<_, ()>(token, || Ok(Arc::default()));
        self.count();
        entry.unwrap_or_default()
    }

    fn count(&self) {
        self.metrics.token_cache_entries.set(i64::try_from(self.entries.len()).unwrap_or(i64::MAX));
    }

    fn hash(&self, bytes: &[u8]) -> Hash {
        *blake3::keyed_hash(&self.secret, bytes).as_bytes()
    }

    /// How long an answer is believed. What is no answer, and what says "not now", is not.
    fn believed(&self, remembered: &Remembered) -> Duration {
        match remembered {
            Remembered::Valid { .. } => self.positive,
            Remembered::Refused(refusal) if refusal.status == StatusCode::TOO_MANY_REQUESTS => Duration::ZERO,
            Remembered::Refused(_) => self.negative,
            Remembered::Unavailable(_) => Duration::ZERO,
        }
    }
}

enum Look {
    Known(TokenVerdict),
    Asked(watch::Receiver<Option<Remembered>>),
    Nothing(watch::Sender<Option<Remembered>>, watch::Receiver<Option<Remembered>>),
}

impl Entry {
    /// What is known; whoever finds nothing has to ask.
    fn look(&self, circumstances: &Hash) -> Look {
        let mut all = self.lock();
        let now = Instant::now();
        all.retain(|known| match &known.state {
            State::Answered(_, until) => *until > now,
            // Whoever asked is gone without an answer.
            State::Asked(waiting) => waiting.has_changed().is_ok(),
        });
        match all.iter().find(|known| known.circumstances == *circumstances) {
            Some(Known { state: State::Answered(remembered, _), .. }) => Look::Known(remembered.verdict()),
            Some(Known { state: State::Asked(waiting), .. }) => Look::Asked(waiting.clone()),
            None => {
                let (sender, waiting) = watch::channel(None);
                if all.len() >= MOST_CIRCUMSTANCES {
                    all.remove(0);
                }
                // Almost every token is shown in one way only.
                all.reserve_exact(1);
                all.push(Known { circumstances: *circumstances, state: State::Asked(waiting.clone()) });
                Look::Nothing(sender, waiting)
            }
        }
    }

    fn answer(&self, circumstances: Hash, remembered: &Remembered, believed: Duration) {
        let mut all = self.lock();
        all.retain(|known| known.circumstances != circumstances);
        if !believed.is_zero() {
            let state = State::Answered(remembered.clone(), Instant::now() + believed);
            all.push(Known { circumstances, state });
        }
    }

    fn user(&self) -> Option<Arc<str>> {
        self.lock().iter().find_map(|known| match &known.state {
            State::Answered(Remembered::Valid { user, .. }, _) => Some(Arc::clone(user)),
            State::Answered(Remembered::Refused(_) | Remembered::Unavailable(_), _) | State::Asked(_) => None,
        })
    }

    fn is_asked(&self) -> bool {
        self.lock().iter().any(|known| matches!(known.state, State::Asked(_)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Known>> {
        // Nothing is left half-done under this lock, so what a panic elsewhere poisoned is still good.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Addresses and masqueraded users under which one token is remembered at a time.
const MOST_CIRCUMSTANCES: usize = 8;
