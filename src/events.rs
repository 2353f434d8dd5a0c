//! Privacy events: each is told in the log and in a metric at once, and to a webhook, where there is one, by a courier for whom
//! nobody waits.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{sleep, timeout};

use crate::config::egress::Egress;
use crate::error::{Error, Kind};
use crate::matrix::{Flow, Host};
use crate::message::RequestBody;
use crate::observe::access::Mode;
use crate::observe::metrics::{Delivery, EventMetrics, Metrics};
use crate::origin::{Destination, NameServers, NextHop, Web, Webs};
use crate::policy::telling::{Identifiers, Telling, Webhook};
use crate::policy::{self, Permit, Purpose};
use crate::problem::Problems;
use crate::tls;

/// Where events are told. Clones tell the same.
#[derive(Clone)]
pub struct Events {
    queue: Sender<Letter>,
    metrics: EventMetrics,
}

/// Something that a rule refused, or answered in somebody's place.
#[derive(Clone, Debug)]
pub struct Event {
    /// The rule.
    pub rule: &'static str,
    /// What it did, or would have done.
    pub action: &'static str,
    /// Whether it is in force.
    pub mode: Mode,
    /// The direction.
    pub flow: Flow,
    /// What was asked for.
    pub endpoint: &'static str,
    /// The id of the exchange, in the access record.
    pub id: u64,
    /// Who asked.
    pub client: Option<IpAddr>,
    /// Whose token it was, if that is known.
    pub user: Option<Arc<str>>,
    /// Who was to be asked.
    pub host: Option<Host>,
}

/// An event on its way to a webhook.
struct Letter {
    telling: Arc<Telling>,
    text: Value,
}

/// Brings letters to webhooks, one at a time.
pub struct Courier {
    queue: Receiver<Letter>,
    egress: Egress,
    next_hop: Option<NextHop>,
    all: Arc<Metrics>,
    metrics: EventMetrics,
    /// Whether it is told that a webhook cannot be reached.
    is_told: bool,
}

/// The two ends of what is told. Webhooks are found, reached and known as `[egress]` says, perhaps through this proxy.
pub fn events(egress: &Egress, next_hop: Option<NextHop>, all: &Arc<Metrics>) -> (Events, Courier) {
    let (sender, queue) = channel(WAITING);
    let (all, metrics) = (Arc::clone(all), all.events());
    let courier = Courier { queue, egress: egress.clone(), next_hop, all, metrics: metrics.clone(), is_told: false };
    (Events { queue: sender, metrics }, courier)
}

impl Events {
    /// Tells an event, as the policy wants it told. Nobody waits for anything.
    pub fn tell(&self, event: Event, telling: &Arc<Telling>) {
        self.metrics.event(event.rule, event.flow);
        if telling.mode != policy::Mode::Enforce {
            return;
        }
        let event = match telling.identifiers {
            Identifiers::Told => event,
            Identifiers::Hidden => Event { client: None, user: None, host: None, ..event },
        };
        event.log();
        if telling.webhook.is_some() {
            let letter = Letter { telling: Arc::clone(telling), text: event.structure() };
            if self.queue.try_send(letter).is_err() {
                self.metrics.delivered(Delivery::Dropped, 1);
            }
        }
    }
}

impl Event {
    fn log(&self) {
        let Self { rule, action, mode, flow, endpoint, id, client, user, host } = self;
        tracing::info!(
            rule,
            action,
            mode = mode.as_str(),
            flow = flow.as_str(),
            endpoint,
            id = format!("{id:016x}"),
            client = client.map(tracing::field::display),
            user = user.as_deref(),
            host = host.as_ref().map(tracing::field::display),
            "a privacy event"
        );
    }

    fn structure(&self) -> Value {
        let Self { rule, action, mode, flow, endpoint, id, client, user, host } = self;
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut text = json!({
            "time": time, "id": format!("{id:016x}"), "rule": rule, "action": action, "mode": mode.as_str(),
            "flow": flow.as_str(), "endpoint": endpoint,
        });
        let who = [
            ("client", client.map(|client| client.to_string())),
            ("user", user.as_deref().map(str::to_owned)),
            ("host", host.as_ref().map(Host::to_string)),
        ];
        for (key, value) in who {
            if let Some(value) = value {
                text[key] = value.into();
            }
        }
        text
    }
}

impl Courier {
    /// Brings what comes, for as long as this is polled.
    pub async fn run(mut self) {
        // The way there, once something is to be brought.
        let mut web = None;
        let mut letters = Vec::new();
        while self.queue.recv_many(&mut letters, AT_ONCE).await > 0 {
            for letters in letters.chunk_by(|one, next| Arc::ptr_eq(&one.telling, &next.telling)) {
                self.bring(letters, &mut web).await;
            }
            letters.clear();
            // Whoever makes many events must not make many requests of them.
            sleep(PAUSE).await;
        }
    }

    async fn bring(&mut self, letters: &[Letter], web: &mut Option<Web>) {
        let Some(webhook) = letters.first().and_then(|letter| letter.telling.webhook.as_ref()) else { return };
        let events: Vec<_> = letters.iter().map(|letter| &letter.text).collect();
        let body = Bytes::from(json!({ "events": events }).to_string());
        let post = async || {
            let sent = timeout(PATIENCE, self.post(webhook, body.clone(), web)).await;
            sent.unwrap_or(Err(Refused::ForNow(Kind::OriginSilent)))
        };
        let may_repeat = || {
            // Where many wait behind them, each pause would cost others their place.
            let has_time = self.queue.len() < AT_ONCE;
            if has_time {
                self.metrics.delivered(Delivery::Repeated, events.len());
            }
            has_time
        };
        match tried(post, may_repeat).await {
            Ok(()) => {
                self.metrics.delivered(Delivery::Sent, events.len());
                if std::mem::take(&mut self.is_told) {
                    tracing::info!("the webhook for privacy events takes them again");
                }
            }
            Err(kind) => {
                self.metrics.delivered(Delivery::Failed, events.len());
                if !std::mem::replace(&mut self.is_told, true) {
                    let kind = kind.as_str();
                    tracing::warn!(
                        kind,
                        "the webhook for privacy events does not take them; they are in the log alone. This is said once, \
                         until it takes them again"
                    );
                }
            }
        }
    }

    async fn post(&self, webhook: &Webhook, body: Bytes, web: &mut Option<Web>) -> Result<(), Refused> {
        let usual = if webhook.is_encrypted { 443 } else { 80 };
        let to =
            Destination::parse(webhook.server.as_str(), Some(usual)).ok_or_else(|| Error::new(Kind::OriginUnknown))?;
        let to = if webhook.is_encrypted { to.in_tls() } else { to };
        let mut request = Box::new(Request::new(RequestBody::whole(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = webhook.target.clone().into();
        let permit = Permit::internal(Purpose::Webhook);
        let request = permit.permit(request, |headers| {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        });
        let web = match web {
            Some(web) => web,
            None => web.insert(self.web()?),
        };
        let status = web.send(&to, request).await?.release(&permit).status();
        match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(Refused::ForNow(Kind::OriginGarbled)),
            _ if status.is_success() => Ok(()),
            _ if status.is_server_error() => Err(Refused::ForNow(Kind::OriginGarbled)),
            _ => Err(Refused::ForGood(Kind::OriginGarbled)),
        }
    }

    fn web(&self) -> Result<Web, Error> {
        let unusable = |problems: Problems| Error::caused_by(Kind::OriginConnect, problems.to_string());
        let roots = tls::client::config(&[] as &[&str]).map_err(unusable)?;
        let name_servers = NameServers::new(&self.egress.nameservers()).map_err(|problem| unusable(problem.into()))?;
        Webs::new(roots, name_servers, self.egress.guard(), self.next_hop.clone(), &self.all).web()
    }
}

/// Why a webhook did not take what it was brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// It may take it later.
    ForNow(Kind),
    /// It will not.
    ForGood(Kind),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        match error.kind() {
            // The operator has to change something first.
            kind @ (Kind::OriginForbidden | Kind::OriginUntrusted) => Self::ForGood(kind),
            kind => Self::ForNow(kind),
        }
    }
}

/// Posts until it is taken, with growing pauses, as long as it may be repeated.
async fn tried(
    mut post: impl AsyncFnMut() -> Result<(), Refused>,
    mut may_repeat: impl FnMut() -> bool,
) -> Result<(), Kind> {
    let mut pauses = PAUSES.into_iter();
    loop {
        match (post().await, pauses.next()) {
            (Ok(()), _) => return Ok(()),
            (Err(Refused::ForNow(_)), Some(pause)) if may_repeat() => sleep(pause).await,
            (Err(Refused::ForNow(kind) | Refused::ForGood(kind)), _) => return Err(kind),
        }
    }
}

/// Letters that wait; more are dropped, and counted.
const WAITING: usize = 1024;
/// Letters that one request brings.
const AT_ONCE: usize = 100;
/// Between two requests.
const PAUSE: Duration = Duration::from_secs(1);
/// For one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between a request that failed and the next with the same letters.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(25)];

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::Instant;

    use super::*;

    const BUSY: Result<(), Refused> = Err(Refused::ForNow(Kind::OriginClosed));

    /// When it is posted, in seconds since the first time, and what came of it: each answer once, the last for ever. It may be
    /// repeated so often.
    async fn posted(answers: &[Result<(), Refused>], mut repeated: usize) -> (Vec<u64>, Result<(), Kind>) {
        let (began, times) = (Instant::now(), RefCell::new(Vec::new()));
        let post = async || {
            let mut times = times.borrow_mut();
            times.push(began.elapsed().as_secs());
            answers[(times.len() - 1).min(answers.len() - 1)]
        };
        let may_repeat = || {
            repeated = repeated.saturating_sub(1);
            repeated > 0
        };
        let outcome = tried(post, may_repeat).await;
        (times.into_inner(), outcome)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_taken_is_brought_again_with_growing_pauses_and_then_given_up() {
        assert_eq!(posted(&[Ok(())], 9).await, (vec![0], Ok(())));
        assert_eq!(posted(&[BUSY, Ok(())], 9).await, (vec![0, 1], Ok(())));
        assert_eq!(posted(&[BUSY, BUSY, BUSY, Ok(())], 9).await, (vec![0, 1, 6, 31], Ok(())));
        assert_eq!(posted(&[BUSY], 9).await, (vec![0, 1, 6, 31], Err(Kind::OriginClosed)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waiting_does_not_change_and_what_keeps_others_waiting_is_not_brought_again() {
        let forbidden = Refused::from(Error::new(Kind::OriginForbidden));
        assert_eq!(posted(&[Err(forbidden), Ok(())], 9).await, (vec![0], Err(Kind::OriginForbidden)));
        assert_eq!(posted(&[BUSY, Err(forbidden)], 9).await, (vec![0, 1], Err(Kind::OriginForbidden)));
        assert_eq!(posted(&[BUSY, BUSY, Ok(())], 2).await, (vec![0, 1], Err(Kind::OriginClosed)));
        assert_eq!(posted(&[BUSY, Ok(())], 1).await, (vec![0], Err(Kind::OriginClosed)));
    }
}
