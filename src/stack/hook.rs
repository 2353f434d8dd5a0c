//! 4 at the federation door: who asks is Synapse, and for one server; one spelling, or a refusal.
//!
//! Synapse writes `METHOD matrix-federation://server/path` and its worker secret (`outbound_federation_restricted_to`). Path and
//! query are signed, so they pass byte for byte.

use std::future::{Ready, ready};
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use tower::{Layer, Service};

use super::Arrival;
use super::canonical::{Unclear, one_framing};
use crate::config::secret::Secret;
use crate::error::{Error, Kind};
use crate::ledger::{Contact, Door};
use crate::matrix::{Flow, ServerName, x_matrix};
use crate::message::{Answer, Body, BoxRequest, RequestBody, hop};
use crate::observe::access::Decision;
use crate::policy::Cause;

/// Makes [`Hook`].
pub struct HookLayer {
    secret: Secret,
}

/// Lets in what Synapse asks another server, and nothing else.
pub struct Hook<S> {
    inner: S,
    secret: Secret,
}

impl HookLayer {
    /// A layer that knows Synapse by this secret.
    pub fn new(secret: Secret) -> Self {
        Self { secret }
    }
}

impl<S> Layer<S> for HookLayer {
    type Service = Hook<S>;

    fn layer(&self, inner: S) -> Hook<S> {
        Hook { inner, secret: self.secret.clone() }
    }
}

impl<'a, S> Service<Arrival<BoxRequest>> for &'a Hook<S>
where
    &'a S: Service<Arrival<BoxRequest>, Response = Response<Body>, Error = Error>,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = Either<Ready<Result<Response<Body>, Error>>, <&'a S as Service<Arrival<BoxRequest>>>::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut arrival: Arrival<BoxRequest>) -> Self::Future {
        if let Err(refusal) = admit(&mut arrival.request, &self.secret) {
            arrival.facts.note(|record| {
                record.flow = Flow::Egress;
                record.decision = Decision::Deny;
                record.rule = Some("federation_door");
            });
            if refusal == Refusal::Secret {
                self.secret.tell_once(|| {
                    tracing::warn!(
                        "somebody came to the federation door without its secret. If it is Synapse, make its \
                         worker_replication_secret what stands in the door's secret_file. This is said once"
                    );
                });
            }
            return Either::Left(ready(Ok(refusal.answer().response(None))));
        }
        if let Ok(server) = server(&arrival.request) {
            let cause = match Cause::of_path(arrival.request.uri().path()) {
                // This door is for nothing else.
                Cause::Other => Cause::Federation,
                cause => cause,
            };
            arrival.facts.contacts(Contact::server(&server, cause, Door::Federation));
        }
        Either::Right((&self.inner).call(arrival))
    }
}

/// Why a request is not looked at any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// Whoever asks does not know the secret.
    Secret,
    /// It is not what Synapse writes to its hook.
    Target,
    /// It is for a server whose name is none, as far as can be read here.
    Name,
    /// What it is signed for is another server than the one it is for, or not clear.
    Destination,
    /// A body whose end two readers would see in two places.
    Framing,
}

impl Refusal {
    fn answer(self) -> Answer {
        let (status, errcode, error) = match self {
            // Whatever Synapse takes for a refusal, it holds against the server that was to be asked, for ten minutes and more;
            // a 502 it tries again.
            Self::Secret => (StatusCode::BAD_GATEWAY, "M_UNKNOWN", "The federation door was not given its secret"),
            // As a server that is down: Synapse takes such names, and backs off from none after a 400.
            Self::Name => return Answer::error(Kind::OriginUnknown),
            Self::Target => (
                StatusCode::BAD_REQUEST,
                "M_UNKNOWN",
                "The federation door takes HTTP/1.1 with a target like matrix-federation://server/path",
            ),
            Self::Destination => {
                (StatusCode::FORBIDDEN, "M_FORBIDDEN", "The request must be signed for the server that it is for")
            }
            Self::Framing => (
                StatusCode::BAD_REQUEST,
                "M_UNKNOWN",
                "The request must have one Content-Length, or be chunked and nothing else",
            ),
        };
        Answer::matrix(status, errcode, error)
    }
}

/// Leaves a request in origin-form, its server noted, without the secret and hop-by-hop fields; or says why it cannot be.
fn admit(request: &mut Request<RequestBody>, secret: &Secret) -> Result<(), Refusal> {
    let mut offered = request.headers().get_all(header::PROXY_AUTHORIZATION).iter();
    let bearer = offered.next().and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if !bearer.is_some_and(|bearer| secret.is(bearer)) || offered.next().is_some() {
        return Err(Refusal::Secret);
    }
    if request.version() != Version::HTTP_11 || request.uri().scheme_str() != Some("matrix-federation") {
        return Err(Refusal::Target);
    }
    let authority = request.uri().authority().ok_or(Refusal::Target)?;
    let server = ServerName::parse(authority.as_str()).ok_or(Refusal::Name)?;
    let target = request.uri().path_and_query().ok_or(Refusal::Target)?.clone();
    if !target.as_str().starts_with('/') || !target.as_str().bytes().all(|byte| (0x21..0x7f).contains(&byte)) {
        return Err(Refusal::Target);
    }
    // A redirect may lead Synapse to ask one server with what it signed for another.
    if x_matrix::destination(request.headers()) != Some(server.as_str()) {
        return Err(Refusal::Destination);
    }
    *request.uri_mut() = Uri::from(target);
    let is_bare = [Method::GET, Method::HEAD].contains(request.method());
    // Towards the other server the library would leave away what such a request brings without a length.
    if request.extensions().get::<Unclear>().is_some() || (is_bare && request.body().size_hint().exact().is_none()) {
        return Err(Refusal::Framing);
    }
    one_framing(request.headers_mut()).map_err(|_| Refusal::Framing)?;
    let host = HeaderValue::from_str(server.as_str()).map_err(|_| Refusal::Target)?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, host);
    hop::remove_hop_by_hop(headers);
    request.extensions_mut().insert(server);
    Ok(())
}

/// The server that a request which came this way is for.
///
/// # Errors
/// It came another way: a defect of ours.
pub(super) fn server<B>(request: &Request<B>) -> Result<ServerName, Error> {
    request.extensions().get::<ServerName>().cloned().ok_or_else(|| Error::new(Kind::Panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: &str = r#"X-Matrix origin="hs1.test",key="ed25519:a",sig="c39T",destination="Hs2.test:1234""#;

    fn admitted(target: &str, fields: &[(&str, &str)]) -> Result<Request<RequestBody>, Refusal> {
        let mut builder = Request::builder().uri(target);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        let mut request = builder.body(RequestBody::empty()).unwrap();
        admit(&mut request, &Secret::new("hook-secret").unwrap()).map(|()| request)
    }

    #[test]
    fn what_synapse_writes_becomes_what_the_other_server_reads() {
        let request = admitted(
            "matrix-federation://Hs2.test:1234/_matrix/federation/v1/query/profile?user_id=%40a%3Ahs2&x=//..;y",
            &[
                ("connection", "close"),
                ("user-agent", "Synapse/1.163.2"),
                ("authorization", SIGNED),
                ("proxy-authorization", "Bearer hook-secret"),
                ("host", "Hs2.test:80"),
            ],
        )
        .unwrap();
        assert_eq!(request.uri(), "/_matrix/federation/v1/query/profile?user_id=%40a%3Ahs2&x=//..;y");
        assert_eq!(server(&request).unwrap().as_str(), "Hs2.test:1234");
        let mut fields: Vec<_> =
            request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        fields.sort_unstable();
        assert_eq!(fields, [("authorization", SIGNED), ("host", "Hs2.test:1234"), ("user-agent", "Synapse/1.163.2")]);
    }

    #[test]
    fn nobody_comes_in_without_the_secret() {
        let target = "matrix-federation://Hs2.test:1234/";
        for offered in [
            &[][..],
            &["Bearer wrong"],
            &["Bearer hook-secre"],
            &["Bearer hook-secret "][..0],
            &["Bearer hook-secretx"],
            &["bearer hook-secret"],
            &["hook-secret"],
            &["Bearer "],
            &["Bearer hook-secret", "Bearer hook-secret"],
        ] {
            let mut fields: Vec<_> = offered.iter().map(|value| ("proxy-authorization", *value)).collect();
            fields.push(("authorization", SIGNED));
            assert_eq!(admitted(target, &fields).err(), Some(Refusal::Secret), "{offered:?}");
        }
    }

    #[test]
    fn only_the_server_that_it_is_signed_for_is_asked() {
        let asked = |target: &str, signed: &str| {
            admitted(target, &[("proxy-authorization", "Bearer hook-secret"), ("authorization", signed)]).map(drop)
        };
        assert_eq!(asked("matrix-federation://Hs2.test:1234/x", SIGNED), Ok(()));
        for target in [
            "matrix-federation://hs2.test:1234/x",
            "matrix-federation://Hs2.test/x",
            "matrix-federation://other.test/x",
            "matrix-federation://127.0.0.1:8008/x",
        ] {
            assert_eq!(asked(target, SIGNED), Err(Refusal::Destination), "{target}");
        }
        for target in ["/x", "http://Hs2.test:1234/x", "https://Hs2.test:1234/x", "Hs2.test:1234"] {
            assert_eq!(asked(target, SIGNED), Err(Refusal::Target), "{target}");
        }
        for name in ["u@Hs2.test:1234", "127.1", "a_b", "-a.test", "a.test.", "a.test:99999"] {
            assert_eq!(asked(&format!("matrix-federation://{name}/x"), SIGNED), Err(Refusal::Name), "{name}");
        }
        assert_eq!(Refusal::Name.answer().status(), StatusCode::BAD_GATEWAY);
        assert_eq!(asked("matrix-federation://Hs2.test:1234/x", "Bearer token"), Err(Refusal::Destination));
    }
}
