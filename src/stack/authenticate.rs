//! Asks the homeserver whether a token is valid: its own `whoami`, over the same pool as everything else.
//!
//! The question carries what the client itself would have sent, as the policy leaves it: Synapse notes address and agent of
//! whoever uses a token, and appservice tokens are good for some addresses only. Whatever is no clear answer is no verdict.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde::Deserialize;

use super::client::Client;
use super::policy::set_own_fields;
use super::registration::Registrar;
use super::revoke::{Revocation, Revokes};
use super::tokens::{Refusal, Remembered, Tokens};
use crate::error::{Error, Kind};
use crate::matrix::token::{self, Token};
use crate::message::{BoxRequest, RequestBody};
use crate::observe::metrics::Metrics;
use crate::policy::{Exchange, Permit, Policy, Purpose, Registration, TokenVerdict};
use crate::upstream::Upstream;

/// Gives verdicts on tokens: remembered ones, or the homeserver's.
#[derive(Clone)]
pub struct Authenticator {
    tokens: Arc<Tokens>,
    upstream: Rc<Upstream>,
    metrics: Arc<Metrics>,
    patience: Duration,
    registrar: Registrar,
}

/// What a request showed of a token, kept while its answer is awaited: counts of what is shared, no copies.
pub struct Credentials {
    authorization: Option<HeaderValue>,
    /// Of several, Synapse reads none.
    is_doubled: bool,
    /// Where the token may be if it is in no header.
    uri: Option<Uri>,
}

impl Credentials {
    /// Those of this request.
    pub fn of<B>(request: &Request<B>) -> Self {
        let mut all = request.headers().get_all(header::AUTHORIZATION).iter();
        let authorization = all.next().cloned();
        let uri = (authorization.is_none() && request.uri().query().is_some()).then(|| request.uri().clone());
        Self { authorization, is_doubled: all.next().is_some(), uri }
    }

    fn token(&self) -> Option<Token<'_>> {
        if self.is_doubled {
            return None;
        }
        token::read_from(&self.authorization, self.uri.as_ref().and_then(Uri::query)).ok()
    }
}

impl Authenticator {
    /// An authenticator over this memory and this homeserver, which waits so long for an answer, and never longer than 20
    /// seconds.
    pub fn new(tokens: Arc<Tokens>, upstream: Rc<Upstream>, metrics: Arc<Metrics>, patience: Duration) -> Self {
        let patience = patience.min(PATIENCE);
        Self { tokens, registrar: Registrar::new(Rc::clone(&upstream), patience), upstream, metrics, patience }
    }

    /// What is known of the token of this exchange; the homeserver is asked if nothing is.
    ///
    /// Many exchanges with the same token ask once. The question goes on when whoever asked first goes away.
    pub async fn verdict(&self, exchange: &Exchange<'_>, policy: &Policy, client: &Client, id: u64) -> TokenVerdict {
        let token = match exchange.read_token() {
            Ok(token) => token,
            Err(why) => return TokenVerdict::Unreadable(why),
        };
        let named = named(exchange);
        // What the answer depends on besides the token: an appservice's is good for some users and addresses only.
        let circumstances = [named.as_bytes(), b"\n", client.forwarded_for.as_bytes()].concat();
        let key = self.tokens.key(&token.value, &circumstances);
        let ask = || {
            let question =
                Question::new(&token, named, exchange, policy, |headers| set_own_fields(headers, client, id));
            let this = self.clone();
            async move { this.ask(question).await }
        };
        let verdict = self.tokens.verdict(key, ask).await;
        self.metrics.token_verdict((&verdict).into());
        verdict
    }

    /// Whose token these hold, if the homeserver said so lately.
    pub fn known_user(&self, credentials: &Credentials) -> Option<Arc<str>> {
        self.tokens.user_of(&credentials.token()?.value)
    }

    /// How the homeserver registers.
    pub async fn registration(&self) -> Registration {
        self.registrar.registration().await
    }

    /// Forgets what is known of the token: the homeserver has just refused it.
    pub fn forget(&self, credentials: &Credentials) {
        if let Some(token) = credentials.token() {
            self.tokens.forget(&token.value);
        }
    }

    /// Forgets what a request may end, as far as it is known whose it is.
    pub fn revoke(&self, revokes: Revokes, credentials: &Credentials) -> Revocation {
        // Asked first: once a token is forgotten, nobody knows whose it was.
        let user = || self.known_user(credentials);
        let revocation = match revokes {
            Revokes::Nothing => return Revocation::Nothing,
            Revokes::Anybody => return Revocation::Everybody,
            Revokes::Session | Revokes::User => match (user(), revokes) {
                (Some(user), _) => Revocation::User(user),
                (None, Revokes::Session) => Revocation::Token,
                (None, _) => return Revocation::Everybody,
            },
        };
        self.confirm(&revocation, credentials);
        revocation
    }

    /// Forgets it for good: the homeserver has done what it was asked.
    pub fn confirm(&self, revocation: &Revocation, credentials: &Credentials) {
        match revocation {
            Revocation::Nothing => {}
            Revocation::Token => self.forget(credentials),
            Revocation::User(user) => self.tokens.forget_user(user),
            Revocation::Everybody => self.tokens.forget_all(),
        }
    }

    async fn ask(&self, question: Question) -> Remembered {
        let started = std::time::Instant::now();
        let answer = tokio::time::timeout(self.patience, self.whoami(question)).await;
        self.metrics.whoami_duration.observe(started.elapsed().as_secs_f64());
        match answer {
            Ok(Ok(remembered)) => remembered,
            Ok(Err(error)) => unavailable(&error),
            Err(_late) => unavailable(&Error::new(Kind::Silent)),
        }
    }

    async fn whoami(&self, question: Question) -> Result<Remembered, Error> {
        let Question { permit, request } = question;
        let response = self.upstream.send(permit.permit(request, |_| {}), false).await?.release(&permit);
        read_answer(response).await
    }
}

/// One call of `whoami`.
struct Question {
    permit: Permit,
    request: BoxRequest,
}

impl Question {
    fn new(
        token: &Token<'_>,
        named: String,
        exchange: &Exchange<'_>,
        policy: &Policy,
        own: impl FnOnce(&mut HeaderMap),
    ) -> Self {
        let mut query = named;
        let mut headers = HeaderMap::new();
        for name in [header::HOST, header::USER_AGENT] {
            if let Some(value) = exchange.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        policy.edit_request(exchange.flow, &mut headers);
        match bearer(token) {
            Some(value) => {
                headers.insert(header::AUTHORIZATION, value);
            }
            None => add_argument(&mut query, "access_token", &token.value),
        }
        let mut request = Request::new(RequestBody::empty());
        *request.uri_mut() = format!("{WHOAMI}{query}").parse().unwrap_or_else(|_| Uri::from_static(WHOAMI));
        own(&mut headers);
        *request.headers_mut() = headers;
        Self { permit: Permit::internal(Purpose::Whoami), request: Box::new(request) }
    }
}

/// Whom an appservice names as the user and device it acts for, as a query.
fn named(exchange: &Exchange<'_>) -> String {
    let mut query = String::new();
    for name in ["user_id", "device_id"] {
        if let Some(value) = exchange.query.and_then(|query| token::argument(query, name)) {
            add_argument(&mut query, name, &value);
        }
    }
    query
}

fn add_argument(query: &mut String, name: &str, value: &[u8]) {
    query.push(if query.is_empty() { '?' } else { '&' });
    query.extend([name, "="]);
    query.extend(percent_encode(value, NON_ALPHANUMERIC));
}

/// The token as a field value, if it can stand in one.
fn bearer(token: &Token<'_>) -> Option<HeaderValue> {
    let is_visible = !token.value.is_empty() && token.value.iter().all(|byte| (0x21..0x7f).contains(byte));
    let value = [b"Bearer ", &*token.value].concat();
    is_visible.then(|| HeaderValue::from_bytes(&value).ok()).flatten()
}

#[derive(Deserialize)]
struct WhoAmI {
    user_id: String,
    #[serde(default)]
    is_guest: bool,
}

async fn read_answer(response: Response<Incoming>) -> Result<Remembered, Error> {
    let (head, body) = response.into_parts();
    let body =
        Limited::new(body, MOST).collect().await.map_err(|error| Error::caused_by(Kind::TokenCheck, error))?.to_bytes();
    match head.status {
        StatusCode::OK => {
            let whoami: WhoAmI = serde_json::from_slice(&body).map_err(|error| nonsense(&error))?;
            ruma_identifiers_validation::user_id::validate(&whoami.user_id).map_err(|error| nonsense(&error))?;
            Ok(Remembered::Valid { user: whoami.user_id.into(), guest: whoami.is_guest })
        }
        // Its clear refusals pass in its own words: clients act on `errcode` and `soft_logout`.
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
            refusal(head.status, &head.headers, body)
        }
        _ => Err(Error::new(Kind::TokenCheck)),
    }
}

fn refusal(status: StatusCode, headers: &HeaderMap, body: Bytes) -> Result<Remembered, Error> {
    #[derive(Deserialize)]
    struct MatrixError {
        #[serde(rename = "errcode")]
        _errcode: String,
    }
    serde_json::from_slice::<MatrixError>(&body).map_err(|error| nonsense(&error))?;
    let retry_after = headers.get(header::RETRY_AFTER).cloned();
    // A copy: what was read is a slice of a whole read buffer, and would keep it.
    let body = Bytes::copy_from_slice(&body);
    Ok(Remembered::Refused(Arc::new(Refusal { status, body, retry_after })))
}

/// What was said is not repeated: it may hold anything.
fn nonsense(error: &dyn std::fmt::Display) -> Error {
    Error::caused_by(Kind::TokenCheck, error.to_string())
}

fn unavailable(error: &Error) -> Remembered {
    tracing::warn!(kind = error.kind().as_str(), "the homeserver could not check a token");
    let kind = match error.kind() {
        Kind::Silent => Kind::Silent,
        Kind::Connect => Kind::Connect,
        _ => Kind::TokenCheck,
    };
    Remembered::Unavailable(kind)
}

const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
/// Synapse answers from memory; one that takes longer than this does not answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// The largest answer that is read.
const MOST: usize = 64 * 1024;
