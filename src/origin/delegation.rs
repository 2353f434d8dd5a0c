//! `/.well-known/matrix/server`: whom a server sends its peers to. Asked once for all workers, and remembered.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use quick_cache::sync::Cache;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::connector::Connector;
use super::url::Url;
use crate::error::{Error, Kind};
use crate::matrix::ServerName;
use crate::policy::Cause;

/// What is known of delegations.
pub(super) struct Delegations(Cache<String, Arc<Mutex<Known>>>);

/// What is known of one server's.
#[derive(Default)]
struct Known {
    /// Where it sends its peers, if it said so, and until when that counts.
    to: Option<(ServerName, Instant)>,
    /// When it is asked again.
    again: Option<Instant>,
    /// How often in a row it did not say.
    failures: u32,
    /// How often in a row nobody was reached, which may be our own network's fault.
    unreached: u32,
}

impl Delegations {
    pub fn new() -> Self {
        Self(Cache::new(MOST))
    }

    /// Where this host sends its peers; `None` if nowhere else, or if it does not say.
    ///
    /// One request asks while others wait; when its client goes away, the next one asks.
    pub async fn of(&self, host: &str, connector: &Connector) -> Option<ServerName> {
        let known = self.0.get_or_insert_with(host, || Ok::<_, ()>(Arc::default())).ok()?;
        let mut known = known.lock().await;
        if known.again.is_none_or(|again| again <= Instant::now()) {
            let asked = tokio::time::timeout(PATIENCE, ask(host, connector)).await;
            known.learn(asked.unwrap_or_else(|_late| Err(Error::new(Kind::OriginSilent))), Instant::now());
        }
        known.to.as_ref().filter(|(_, until)| *until > Instant::now()).map(|(to, _)| to.clone())
    }
}

impl Known {
    fn learn(&mut self, said: Result<(ServerName, Duration), Error>, now: Instant) {
        match said {
            Ok((to, period)) => {
                let period = period.clamp(SHORTEST, LONGEST);
                // A server whose web site is down for a while is still where it was.
                *self = Self { to: Some((to, now + LONGEST)), again: Some(now + period), ..Self::default() };
            }
            // Nobody has said that there is nothing.
            Err(error) if matches!(error.kind(), Kind::OriginUnknown | Kind::OriginConnect | Kind::OriginSilent) => {
                self.again = Some(now + pause(UNREACHED, self.unreached, SHORTEST));
                self.unreached = self.unreached.saturating_add(1);
            }
            Err(error) => {
                // Whoever answers that there is nothing has taken back what was there.
                if error.kind() == Kind::OriginGarbled {
                    self.to = None;
                }
                self.again = Some(now + pause(SHORTEST, self.failures, LONGEST_FAILURE));
                (self.failures, self.unreached) = (self.failures.saturating_add(1), 0);
            }
        }
    }
}

/// Twice as long each time.
fn pause(first: Duration, failures: u32, longest: Duration) -> Duration {
    (first * 2_u32.saturating_pow(failures.min(8))).min(longest)
}

/// What a host says, and how long it wants to be believed.
async fn ask(host: &str, connector: &Connector) -> Result<(ServerName, Duration), Error> {
    #[derive(Deserialize)]
    struct WellKnown {
        #[serde(rename = "m.server")]
        server: String,
    }
    let nothing = || Error::new(Kind::OriginGarbled);
    let mut url = Url::parse(format!("https://{host}/.well-known/matrix/server").as_bytes()).ok_or_else(nothing)?;
    let mut response = connector.get(&url, Cause::Federation).await?;
    for _ in 0..MOST_REDIRECTS {
        let Some(location) = redirect(&response) else { break };
        let next = Url::parse(location.as_bytes()).or_else(|| {
            // A path of the same host.
            let target = location.to_str().ok().filter(|path| path.starts_with('/') && !path.starts_with("//"))?;
            Some(Url { target: target.parse().ok()?, ..url.clone() })
        });
        url = next.ok_or_else(nothing)?;
        response = connector.get(&url, Cause::Federation).await?;
    }
    if response.status() != StatusCode::OK {
        // Only a server that is in trouble is believed to have meant something else.
        return Err(Error::new(if response.status().is_server_error() {
            Kind::OriginClosed
        } else {
            Kind::OriginGarbled
        }));
    }
    let period = period(response.headers(), SystemTime::now());
    let body = Limited::new(response.into_body(), MOST_BYTES).collect().await.map_err(|_| nothing())?.to_bytes();
    let said: WellKnown = serde_json::from_slice(&body).map_err(|_| nothing())?;
    Ok((ServerName::parse(&said.server).ok_or_else(nothing)?, period))
}

fn redirect(response: &Response<Incoming>) -> Option<http::HeaderValue> {
    let follows = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    response.headers().get(header::LOCATION).filter(|_| follows).cloned()
}

/// How long an answer may be kept, as its fields say.
fn period(headers: &HeaderMap, now: SystemTime) -> Duration {
    let words = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut age = None;
    for word in words.flat_map(|value| value.split(',')).map(str::trim) {
        if word.eq_ignore_ascii_case("no-store") || word.eq_ignore_ascii_case("no-cache") {
            return Duration::ZERO;
        }
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        if name.trim().eq_ignore_ascii_case("max-age") {
            age = Some(value.trim().trim_matches('"').parse().map_or(Duration::ZERO, Duration::from_secs));
        }
    }
    let expires = || {
        let expires = headers.get(header::EXPIRES)?.to_str().ok()?;
        // Whatever is no date is in the past (RFC 9111, section 5.3).
        let left = httpdate::parse_http_date(expires).ok().and_then(|at| at.duration_since(now).ok());
        Some(left.unwrap_or_default())
    };
    age.or_else(expires).unwrap_or(DEFAULT)
}

/// Hosts that are remembered.
const MOST: usize = 10_000;
/// Until a host has said where it sends its peers, redirects and all.
const PATIENCE: Duration = Duration::from_secs(4);
const MOST_REDIRECTS: usize = 5;
/// Of an answer.
const MOST_BYTES: usize = 50 * 1024;
const DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
const LONGEST: Duration = Duration::from_secs(48 * 60 * 60);
/// However short an answer wants to be kept, and after a first failure.
const SHORTEST: Duration = Duration::from_secs(5 * 60);
/// After nobody was reached for the first time.
const UNREACHED: Duration = Duration::from_secs(15);
const LONGEST_FAILURE: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_kept_as_long_as_it_says() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let period = |fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            super::period(&headers, now).as_secs()
        };
        assert_eq!(period(&[]), 24 * 3600);
        assert_eq!(period(&[("cache-control", "public, Max-Age=600")]), 600);
        assert_eq!(period(&[("cache-control", "max-age=\"600\""), ("expires", "Sun, 06 Nov 1994 08:49:38 GMT")]), 600);
        assert_eq!(period(&[("expires", "Sun, 06 Nov 1994 08:49:47 GMT")]), 10);
        assert_eq!(period(&[("expires", "Sun, 06 Nov 1994 08:49:27 GMT")]), 0);
        assert_eq!(period(&[("expires", "0")]), 0);
        assert_eq!(period(&[("cache-control", "max-age=soon")]), 0);
        assert_eq!(period(&[("cache-control", "max-age=600"), ("cache-control", "no-store")]), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_kept_longer_each_time_and_never_longer_than_an_hour() {
        let (mut known, now) = (Known::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..7 {
            known.learn(Err(Error::new(Kind::OriginClosed)), now);
            pauses.push((known.again.unwrap() - now).as_secs() / 60);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60, 60]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_of_ours_is_forgotten_within_minutes_however_long_it_was() {
        let (mut known, now) = (Known::default(), Instant::now());
        let mut pause = |kind| {
            known.learn(Err(Error::new(kind)), now);
            (known.again.unwrap() - now).as_secs()
        };
        let nobody = [Kind::OriginUnknown, Kind::OriginConnect, Kind::OriginSilent].into_iter().cycle();
        let pauses: Vec<_> = nobody.take(7).map(&mut pause).collect();
        assert_eq!(pauses, [15, 30, 60, 120, 240, 300, 300]);
        assert_eq!([Kind::OriginGarbled, Kind::OriginGarbled, Kind::OriginConnect].map(pause), [300, 600, 15]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_stays_true_while_the_web_site_is_down_and_not_once_it_is_taken_back() {
        let now = Instant::now();
        let to = || ServerName::parse("matrix.example:443").unwrap();
        for (period, kept) in [(1, 5 * 60), (7200, 7200), (1_000_000, 48 * 3600)] {
            let mut known = Known::default();
            known.learn(Ok((to(), Duration::from_secs(period))), now);
            assert_eq!((known.again.unwrap() - now).as_secs(), kept);
            known.learn(Err(Error::new(Kind::OriginSilent)), now);
            assert_eq!(known.to, Some((to(), now + LONGEST)));
            known.learn(Err(Error::new(Kind::OriginGarbled)), now);
            assert_eq!(known.to, None);
        }
    }
}
