//! Finds keys of servers: in memory, in the store, or at the server itself; for all workers.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma_common::CanonicalJsonObject;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::asking::{self, Unheard};
use super::document::ServerKeys;
use super::entry::{Entry, Look};
use super::fallback::{Notaries, Share};
use super::query::{self, Wanted};
use crate::config::notary_key::NotaryKeyFile;
use crate::error::{Error, Kind};
use crate::ledger::Ledger;
use crate::matrix::ServerName;
use crate::message::{Answer, Body, RequestBody};
use crate::observe::metrics::{KeyAnswer, KeyMetrics, KeyQuestion, Metrics};
use crate::origin::Client;
use crate::store::{Row, Store, Table, Unread};

/// What is known of other servers' keys, shared by all workers.
pub struct Ring {
    entries: Cache<ServerName, Weighed, Scale>,
    store: Option<Store>,
    notary_key: Option<NotaryKeyFile>,
    /// Servers that are asked at once.
    places: Semaphore,
    /// Those that have been silent for a while, and do not keep others waiting.
    slow: Semaphore,
    /// Servers that are asked, or wait to be.
    queue: Semaphore,
    notaries: Notaries,
    ledger: Arc<Ledger>,
    metrics: KeyMetrics,
}

/// An entry, and what it takes: the scale must find the same each time, and an entry learns.
#[derive(Clone)]
struct Weighed {
    entry: Arc<Entry>,
    bytes: u64,
}

/// Weighs entries.
#[derive(Clone)]
struct Scale;

impl Weighter<ServerName, Weighed> for Scale {
    fn weight(&self, _: &ServerName, weighed: &Weighed) -> u64 {
        weighed.bytes
    }
}

/// The key ring as one worker uses it.
#[derive(Clone)]
pub struct Keys {
    ring: Arc<Ring>,
    client: Rc<Client>,
    patience: Duration,
}

impl Ring {
    /// An empty ring, which keeps keys in this store and signs its answers with this key, where there are any, and notes in this
    /// ledger whom it asks.
    pub fn new(
        store: Option<Store>,
        notary_key: Option<NotaryKeyFile>,
        ledger: Arc<Ledger>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            entries: Cache::with_weighter(SERVERS, MOST_BYTES, Scale),
            store,
            notary_key,
            places: Semaphore::new(PLACES),
            slow: Semaphore::new(SLOW_PLACES),
            queue: Semaphore::new(QUEUE),
            notaries: Notaries::new(),
            ledger,
            metrics: metrics.keys(),
        }
    }

    /// What is known of a server, which may be nothing.
    fn entry(&self, server: &ServerName) -> Option<Arc<Entry>> {
        let unknown = || Ok::<_, ()>(Weighed { entry: Arc::default(), bytes: ENTRY });
        Some(self.entries.get_or_insert_with(server, unknown).ok()?.entry)
    }

    /// Makes room for what an entry has learnt.
    fn weigh(&self, server: &ServerName, entry: &Arc<Entry>) {
        let bytes = ENTRY + entry.keys().map_or(0, |keys| keys.text.len() as u64);
        self.entries.insert(server.clone(), Weighed { entry: Arc::clone(entry), bytes });
    }

    /// What the store has, if that is still believed.
    async fn kept(&self, server: &ServerName) -> Result<Option<ServerKeys>, Unread> {
        let Some(store) = &self.store else { return Ok(None) };
        let row = store.read(Table::ServerKeys, server.as_str()).await?;
        Ok(row.and_then(|row| ServerKeys::read(&row.value, server.as_str(), row.age).ok()))
    }
}

impl Keys {
    /// This ring, over the connections of this client. Nobody waits longer than `patience` for its answers, nor longer than ten
    /// seconds.
    pub fn new(ring: Arc<Ring>, client: Rc<Client>, patience: Duration) -> Self {
        Self { ring, client, patience: patience.min(PATIENCE) }
    }

    /// Answers what Synapse asks the notary of this name. Servers that have not answered by then are left out, and heard all
    /// the same, for the next time. About those that cannot be reached, these other notaries are asked.
    ///
    /// # Errors
    /// What is wrong with the request's body.
    pub async fn answer(
        &self,
        notary: &ServerName,
        request: Box<Request<RequestBody>>,
        fallback: &Arc<[ServerName]>,
    ) -> Result<Response<Body>, Error> {
        let deadline = Instant::now() + self.patience;
        let (head, mut body) = request.into_parts();
        let mut collected = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if collected.len() + data.len() > MOST_QUESTION {
                return Err(Error::new(Kind::TooLarge));
            }
            collected.extend_from_slice(&data);
        }
        let Some(servers) = query::read(&head.method, &head.uri, &collected) else {
            return Ok(
                Answer::matrix(StatusCode::BAD_REQUEST, "M_BAD_JSON", "This is no question for keys").response(None)
            );
        };
        let (share, notaries) = (Semaphore::new(SHARE), Share::new());
        let question = Rc::new(Question { share, notaries, fallback: Arc::clone(fallback), deadline });
        let found = servers.iter().map(|(server, wanted)| self.find(server, wanted, &question));
        let found = join_all(found).await;
        let texts = found.iter().flatten().map(|keys| self.signed(notary, &keys.text));
        Ok(Answer::json_bytes(StatusCode::OK, list(texts)).response(None))
    }

    /// How long somebody waits for an answer about keys.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The answer that nobody's keys are known.
    pub fn nothing() -> Response<Body> {
        Answer::json_bytes(StatusCode::OK, list(std::iter::empty())).response(None)
    }

    /// What a server of this name would say of its own keys, if our notary key were its own; `None` where we have none.
    pub fn own(&self, name: &ServerName) -> Option<Response<Body>> {
        let key = self.ring.notary_key.as_ref()?.key();
        let object = json!({
            "server_name": name.as_str(),
            "valid_until_ts": now() + DAY,
            "verify_keys": { key.id(): { "key": key.verify_key() } },
            "old_verify_keys": {},
        });
        let mut object: CanonicalJsonObject = serde_json::from_value(object).ok()?;
        key.sign(name.as_str(), &mut object).then_some(())?;
        Some(Answer::json_bytes(StatusCode::OK, serde_json::to_vec(&object).ok()?.into()).response(None))
    }

    /// The newest keys of a server that can be had in time for this question.
    async fn find(&self, server: &ServerName, wanted: &Wanted, question: &Rc<Question>) -> Option<Arc<ServerKeys>> {
        let entry = self.ring.entry(server)?;
        if entry.is_unread() {
            // A disk may hang; what it has is read another time, then.
            let kept = timeout_at(question.deadline - self.patience * 4 / 5, self.ring.kept(server)).await;
            if let Ok(Ok(keys)) = kept {
                entry.read(keys);
                self.ring.weigh(server, &entry);
            }
        }
        let (keys, result) = match entry.look(wanted, now()) {
            Look::Good(keys) => (Some(keys), KeyAnswer::Known),
            Look::Stale(keys) => (keys, KeyAnswer::Stale),
            look => {
                let mut asked = match look {
                    Look::Asked(asked) => asked,
                    Look::Good(_) | Look::Stale(_) => return entry.keys(),
                    Look::Nobody(asking) => {
                        let asked = asking.subscribe();
                        let (this, server, entry) = (self.clone(), server.clone(), Arc::clone(&entry));
                        let question = Rc::clone(question);
                        // It goes on when whoever wanted it has gone.
                        tokio::task::spawn_local(async move {
                            this.learn(&server, &entry, &question).await;
                            drop(asking);
                        });
                        asked
                    }
                };
                // Ends when the sender is dropped.
                let _ = timeout_at(question.deadline, asked.changed()).await;
                let keys = entry.keys();
                let is_wanted = keys.as_ref().is_some_and(|keys| keys.serves(wanted, now()));
                (keys, if is_wanted { KeyAnswer::Fetched } else { KeyAnswer::Stale })
            }
        };
        self.ring.metrics.answered(if keys.is_some() { result } else { KeyAnswer::Missing });
        keys
    }

    /// Asks a server, or who knew it, and remembers what was said.
    async fn learn(&self, server: &ServerName, entry: &Arc<Entry>, question: &Question) {
        // Of too many, some are asked another time.
        let Ok(_queued) = self.ring.queue.try_acquire() else { return };
        let Some(said) = self.ask(server, question).await else { return };
        match said {
            Ok(keys) => {
                self.ring.metrics.asked(KeyQuestion::Good);
                let keys = Arc::new(keys);
                entry.learn(&keys);
                self.keep(server, entry, &keys);
            }
            Err(unheard) => {
                entry.fail();
                self.ring.metrics.asked(match unheard {
                    Unheard::Unreachable => KeyQuestion::Unreachable,
                    Unheard::Refused => KeyQuestion::Refused,
                });
                // What it said once, others may know; what it says now, nobody else has to say.
                if unheard == Unheard::Unreachable
                    && entry.keys().is_none()
                    && let Some(keys) = self.fall_back(server, question).await
                {
                    let keys = Arc::new(keys);
                    entry.take(&keys);
                    self.keep(server, entry, &keys);
                }
            }
        }
    }

    /// What a server says, if there is a place for it in time, which is free again then. Who would be asked too late for those who
    /// wait is asked another time.
    async fn ask(&self, server: &ServerName, question: &Question) -> Option<Result<ServerKeys, Unheard>> {
        let Ring { places, slow, ledger, .. } = &*self.ring;
        let (share, until) = (&question.share, question.deadline - self.patience / 5);
        // A semaphore that nobody closes gives.
        let Ok((Ok(share), Ok(place))) =
            timeout_at(until, async { (share.acquire().await, places.acquire().await) }).await
        else {
            return None;
        };
        let mut asking = std::pin::pin!(asking::server(&self.client, ledger, server, now));
        if let Ok(said) = timeout(SILENT, &mut asking).await {
            return Some(said);
        }
        // Where so many are silent that this one would keep others waiting, it is given up.
        let Ok(_slow) = slow.try_acquire() else { return Some(Err(Unheard::Unreachable)) };
        drop((share, place));
        Some(timeout(GIVEN_UP - SILENT, asking).await.unwrap_or(Err(Unheard::Unreachable)))
    }

    /// What notaries know of a server that cannot be reached.
    async fn fall_back(&self, server: &ServerName, question: &Question) -> Option<ServerKeys> {
        let Ring { notaries, ledger, .. } = &*self.ring;
        let ask = async |notary: &ServerName| asking::notary(&self.client, ledger, notary, server, now).await;
        notaries.ask(&question.fallback, server, &question.notaries, ask).await
    }

    fn keep(&self, server: &ServerName, entry: &Arc<Entry>, keys: &ServerKeys) {
        self.ring.weigh(server, entry);
        if let Some(store) = &self.ring.store {
            let (key, value) = (server.as_str().to_owned(), keys.text.as_bytes().to_vec());
            store.write(Table::ServerKeys, Row { key, age: keys.fetched, value });
        }
    }

    /// The object with our own signature beside the server's, where we have a key.
    fn signed(&self, notary: &ServerName, text: &Arc<str>) -> Bytes {
        let signed = self.ring.notary_key.as_ref().and_then(|file| {
            let mut object: CanonicalJsonObject = serde_json::from_str(text).ok()?;
            file.key().sign(notary.as_str(), &mut object).then_some(())?;
            serde_json::to_vec(&object).ok()
        });
        signed.map_or_else(|| Bytes::copy_from_slice(text.as_bytes()), Bytes::from)
    }
}

/// What all who are asked for one answer have in common.
struct Question {
    /// Whoever asks for a thousand servers that are silent leaves room for others' questions.
    share: Semaphore,
    /// The same at notaries.
    notaries: Share,
    /// Notaries that are asked about servers that cannot be reached.
    fallback: Arc<[ServerName]>,
    deadline: Instant,
}

/// `{"server_keys":[…]}`
fn list(objects: impl Iterator<Item = Bytes>) -> Bytes {
    let mut list = BytesMut::from(&b"{\"server_keys\":["[..]);
    for (place, object) in objects.enumerate() {
        if place > 0 {
            list.extend_from_slice(b",");
        }
        list.extend_from_slice(&object);
    }
    list.extend_from_slice(b"]}");
    list.freeze()
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// How long our own keys count, each time anew.
const DAY: u64 = 24 * 3600 * 1000;
/// A person waits, perhaps, and Synapse for a minute at most.
const PATIENCE: Duration = Duration::from_secs(10);
const PLACES: usize = 128;
/// Of these, as many for one question.
const SHARE: usize = 64;
const SLOW_PLACES: usize = 192;
/// After that, a server that is asked counts as slow.
const SILENT: Duration = Duration::from_secs(2);
/// After that, it counts as unreachable.
const GIVEN_UP: Duration = Duration::from_secs(30);
const QUEUE: usize = 10_000;
/// What is kept in memory: twenty thousand servers, where their keys are as long as most. Of more, the least wanted go.
const MOST_BYTES: u64 = 40 * 1024 * 1024;
const SERVERS: usize = 20_000;
/// What a server takes without its keys, generously: its name twice, its place in the cache, what is allocated around it.
const ENTRY: u64 = 1024;
/// A question for ten thousand servers is about one megabyte.
const MOST_QUESTION: usize = 2 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::addresses::Guard;
    use crate::config::egress::Ports;
    use crate::origin::{NameServers, Origins};

    /// The keys of a server that is never connected to.
    async fn ask(keys: &Keys) -> Bytes {
        let mut request = Box::new(Request::new(RequestBody::empty()));
        *request.uri_mut() = http::Uri::from_static("/_matrix/key/v2/query/127.0.0.1:8448");
        let notary = ServerName::parse("notary.invalid").unwrap();
        let answer = keys.answer(&notary, request, &Arc::default()).await.unwrap();
        answer.into_body().collect().await.unwrap().to_bytes()
    }

    #[test]
    fn the_ring_is_bounded_by_what_it_takes() {
        let metrics = Metrics::new(&[]);
        let ring = Ring::new(None, None, Ledger::new(0, None, &metrics), &metrics);
        let long = Arc::new(ServerKeys::of_length(8 * 1024));
        let servers: Vec<_> =
            (0..SERVERS).map(|number| ServerName::parse(&format!("s{number}.example")).unwrap()).collect();
        for server in &servers {
            let entry = ring.entry(server).unwrap();
            entry.learn(&long);
            ring.weigh(server, &entry);
        }
        let kept = servers.iter().filter_map(|server| ring.entries.peek(server)).count() as u64;
        assert!((MOST_BYTES / 2..=MOST_BYTES).contains(&(kept * (8 * 1024 + ENTRY))), "{kept}");
        // Whoever has learnt nothing has a place, too.
        let ring = Ring::new(None, None, Ledger::new(0, None, &metrics), &metrics);
        servers.iter().for_each(|server| drop(ring.entry(server)));
        assert_eq!(servers.iter().filter_map(|server| ring.entries.peek(server)).count(), SERVERS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_waited_for_a_while_and_asked_again_each_time() {
        let metrics = Metrics::new(&[]);
        let (store, wanted) = Store::hanging();
        let ledger = Ledger::new(0, None, &metrics);
        let tls = crate::tls::client::config(&[] as &[PathBuf]).unwrap();
        let name_servers = NameServers::new(&["127.0.0.1:9".parse().unwrap()]).unwrap();
        let guard = Guard::new(Vec::new());
        let origins = Origins::new(tls, name_servers, guard, None, Ports::default(), Arc::clone(&ledger), &metrics);
        let ring = Arc::new(Ring::new(Some(store), None, ledger, &metrics));
        let keys = Keys::new(ring, Rc::new(origins.client().unwrap()), Duration::from_secs(60));
        let asked = async {
            for _ in 0..2 {
                let began = Instant::now();
                assert_eq!(ask(&keys).await, "{\"server_keys\":[]}");
                let took = began.elapsed();
                assert!((PATIENCE / 5..PATIENCE / 4).contains(&took), "{took:?}");
                assert_eq!(wanted(), 1);
            }
        };
        tokio::task::LocalSet::new().run_until(asked).await;
    }
}
