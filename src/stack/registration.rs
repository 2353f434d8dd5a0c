//! Asks the homeserver what it wants of whoever registers: a registration with nothing in it, which it answers with its flows.
//!
//! So the policy need not believe what a client says of the stages it went through: where every flow of the homeserver has the
//! token's stage, nobody registers without one.

use std::rc::Rc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::error::{Error, Kind};
use crate::message::RequestBody;
use crate::policy::{Permit, Purpose, Registration};
use crate::upstream::Upstream;

/// Knows for a short time how the homeserver registers.
#[derive(Clone)]
pub struct Registrar {
    upstream: Rc<Upstream>,
    patience: Duration,
    /// Held while the homeserver is asked, so that many who register at once make one question.
    known: Rc<Mutex<Option<Known>>>,
}

#[derive(Clone, Copy)]
struct Known {
    registration: Registration,
    until: Instant,
}

impl Registrar {
    /// One that asks this homeserver, and waits so long for an answer.
    pub fn new(upstream: Rc<Upstream>, patience: Duration) -> Self {
        Self { upstream, patience, known: Rc::default() }
    }

    /// How the homeserver registers now, or did half a minute ago.
    pub async fn registration(&self) -> Registration {
        let mut known = self.known.lock().await;
        let before = known.map(|known| known.registration);
        if let Some(Known { registration, until }) = *known
            && Instant::now() < until
        {
            return registration;
        }
        let registration = match tokio::time::timeout(self.patience, self.ask()).await {
            Ok(Ok(registration)) => registration,
            Ok(Err(error)) => Registration::Unavailable(error.kind()),
            Err(_late) => Registration::Unavailable(Kind::Silent),
        };
        if before != Some(registration) {
            tell(registration);
        }
        let believed = if matches!(registration, Registration::Unavailable(_)) { UNAVAILABLE } else { BELIEVED };
        *known = Some(Known { registration, until: Instant::now() + believed });
        registration
    }

    async fn ask(&self) -> Result<Registration, Error> {
        let permit = Permit::internal(Purpose::Registration);
        let mut request = Request::new(RequestBody::whole(Bytes::from_static(b"{}")));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(REGISTER);
        let permitted = permit.permit(Box::new(request), |headers| {
            headers.insert(header::HOST, HeaderValue::from_static("localhost"));
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        });
        let response = self.upstream.send(permitted, false).await?.release(&permit);
        read_answer(response).await
    }
}

/// The flows, as a 401 that asks for more has them (Matrix client-server API, "User-Interactive Authentication").
#[derive(Deserialize)]
struct Flows {
    flows: Vec<Flow>,
}

#[derive(Deserialize)]
struct Flow {
    stages: Vec<String>,
}

async fn read_answer(response: Response<Incoming>) -> Result<Registration, Error> {
    let (head, body) = response.into_parts();
    match head.status {
        StatusCode::UNAUTHORIZED => {}
        // Synapse: 403 where registration is off, and 404 where an authentication service has taken it over.
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => return Ok(Registration::Closed),
        _ => return Err(Error::new(Kind::Garbled)),
    }
    let body = Limited::new(body, MOST).collect().await.map_err(|error| Error::caused_by(Kind::Garbled, error))?;
    // What was said is not repeated: it may hold anything.
    let Flows { flows } =
        serde_json::from_slice(&body.to_bytes()).map_err(|error| Error::caused_by(Kind::Garbled, error.to_string()))?;
    let needs_token = |flow: &Flow| flow.stages.iter().any(|stage| STAGES.contains(&stage.as_str()));
    let by_token = !flows.is_empty() && flows.iter().all(needs_token);
    Ok(if by_token { Registration::ByToken } else { Registration::Open })
}

fn tell(registration: Registration) {
    match registration {
        Registration::ByToken => tracing::info!("the homeserver registers by token only"),
        Registration::Closed => tracing::info!("the homeserver registers nobody"),
        Registration::Open => tracing::warn!(
            "the homeserver registers without a token, so nobody registers here: set registration_requires_token: true in homeserver.yaml"
        ),
        Registration::Unavailable(kind) => {
            tracing::warn!(kind = kind.as_str(), "the homeserver could not say how it registers, so nobody does");
        }
    }
}

const REGISTER: &str = "/_matrix/client/v3/register";
/// The stage of a token, by its name and by the one it had before (MSC3231).
const STAGES: [&str; 2] = ["m.login.registration_token", "org.matrix.msc3231.login.registration_token"];
/// It is written in the homeserver's configuration, which changes with a restart.
const BELIEVED: Duration = Duration::from_secs(30);
const UNAVAILABLE: Duration = Duration::from_secs(2);
/// The largest answer that is read.
const MOST: usize = 64 * 1024;
