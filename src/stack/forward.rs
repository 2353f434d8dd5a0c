//! 4 at the proxy door, for what is asked in the clear: who asks may, and for one place in one spelling; or a refusal.
//!
//! A request to a proxy has its target in absolute-form (RFC 9112, section 3.2.2). What is encrypted comes as CONNECT, and never
//! gets here.

use std::future::{Ready, ready};
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::header::{self, HeaderValue};
use http::uri::Scheme;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use memchr::memmem;
use tower::{Layer, Service};

use super::Arrival;
use super::canonical::{Unclear, one_framing};
use crate::config::secret::Secret;
use crate::error::{Error, Kind};
use crate::ledger::{Contact, Door};
use crate::matrix::{Flow, Host, ServerName, x_matrix};
use crate::message::{Answer, Body, BoxRequest, RequestBody, hop};
use crate::observe::access::Decision;
use crate::origin::Destination;
use crate::policy::Cause;
use crate::policy::egress::is_reserved;

/// What whoever uses a proxy door has to show, and which ports it leads to.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What whoever comes has to show, behind `Basic `.
    pub credentials: Option<Secret>,
    /// The ports that are connected to.
    pub ports: Vec<u16>,
}

/// Why nobody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Whoever asks does not show the credentials.
    Credentials,
    /// The target is none that a proxy is asked for.
    Target,
    /// It is for a host or a port that is none, as far as can be read here.
    Host,
    /// The port is not one to connect to.
    Port,
    /// A body whose end two readers would see in two places.
    Framing,
}

impl Terms {
    /// Whether these fields show the credentials, once.
    ///
    /// # Errors
    /// [`Refusal::Credentials`]
    pub fn admit<'a>(&self, mut offered: impl Iterator<Item = &'a [u8]>) -> Result<(), Refusal> {
        let Some(credentials) = &self.credentials else { return Ok(()) };
        let basic = offered.next().and_then(|value| value.split_at_checked("Basic ".len()));
        let basic = basic.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Basic ")).map(|(_, basic)| basic);
        if basic.is_some_and(|basic| credentials.is(basic)) && offered.next().is_none() {
            return Ok(());
        }
        credentials.tell_once(|| {
            tracing::warn!(
                "somebody came to a proxy door without its credentials. If it is Synapse, put user and password of \
                 credentials_file into its https_proxy and http_proxy. This is said once"
            );
        });
        Err(Refusal::Credentials)
    }

    /// Whether this is a port to connect to; at the reserved name every one is, for nobody connects there.
    ///
    /// # Errors
    /// [`Refusal::Port`]
    pub fn leads_to(&self, host: &Host, port: u16) -> Result<(), Refusal> {
        if self.ports.contains(&port) || is_reserved(host) { Ok(()) } else { Err(Refusal::Port) }
    }
}

impl Refusal {
    /// What whoever asks gets.
    pub fn answer(self) -> Answer {
        let (status, errcode, error) = match self {
            Self::Credentials => (
                StatusCode::PROXY_AUTHENTICATION_REQUIRED,
                "M_FORBIDDEN",
                "The proxy door was not given its credentials",
            ),
            Self::Target => (
                StatusCode::BAD_REQUEST,
                "M_UNKNOWN",
                "The proxy door takes CONNECT host:port, and http://host/path in HTTP/1",
            ),
            // As a host that is down: Synapse takes such names, and does not slow down after a 400.
            Self::Host => return Answer::error(Kind::OriginUnknown),
            Self::Port => (StatusCode::FORBIDDEN, "M_FORBIDDEN", "The proxy door does not lead to this port"),
            Self::Framing => (
                StatusCode::BAD_REQUEST,
                "M_UNKNOWN",
                "The request must have one Content-Length, or be chunked and nothing else",
            ),
        };
        let answer = Answer::matrix(status, errcode, error);
        match self {
            Self::Credentials => {
                answer.with_header(header::PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"mantlet\""))
            }
            Self::Target | Self::Host | Self::Port | Self::Framing => answer,
        }
    }
}

/// Makes [`Forward`].
pub struct ForwardLayer {
    terms: Terms,
}

/// Lets in what is asked of a proxy, and nothing else.
pub struct Forward<S> {
    inner: S,
    terms: Terms,
}

impl ForwardLayer {
    /// A layer with these terms.
    pub fn new(terms: Terms) -> Self {
        Self { terms }
    }
}

impl<S> Layer<S> for ForwardLayer {
    type Service = Forward<S>;

    fn layer(&self, inner: S) -> Forward<S> {
        Forward { inner, terms: self.terms.clone() }
    }
}

impl<'a, S> Service<Arrival<BoxRequest>> for &'a Forward<S>
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
        let admitted = admit(&mut arrival.request, &self.terms, arrival.peer.in_place_of.as_ref());
        if let Ok(to) = destination(&arrival.request) {
            let cause = cause(&arrival.request);
            arrival.facts.contacts(Contact::host(&to.host, to.port, cause, Door::Proxy));
        }
        if let Err(refusal) = admitted {
            arrival.facts.note(|record| {
                record.flow = Flow::Egress;
                record.decision = Decision::Deny;
                record.rule = Some(NAME);
            });
            return Either::Left(ready(Ok(refusal.answer().response(None))));
        }
        Either::Right((&self.inner).call(arrival))
    }
}

/// What a request is for, as far as it says so.
fn cause<B>(request: &Request<B>) -> Cause {
    // `synapse/media/url_previewer.py` calls itself "Synapse (bot; +https://…)".
    let is_bot = |agent: &HeaderValue| memmem::find(agent.as_bytes(), b"(bot;").is_some();
    match Cause::of_path(request.uri().path()) {
        Cause::Other if request.headers().get(header::USER_AGENT).is_some_and(is_bot) => Cause::Preview,
        cause => cause,
    }
}

/// Leaves a request in origin-form, without credentials and hop-by-hop fields; or says why it cannot be. Its destination is noted
/// on one that is for a place.
///
/// In the place of another host, whoever asks was let in by CONNECT, and asks as it would ask that host.
fn admit(request: &mut Request<RequestBody>, terms: &Terms, in_place_of: Option<&Destination>) -> Result<(), Refusal> {
    if in_place_of.is_none() {
        terms.admit(offered(request.headers()))?;
    }
    if request.version() == Version::HTTP_2 || request.method() == Method::CONNECT {
        return Err(Refusal::Target);
    }
    let (destination, host) = match in_place_of {
        None => asked_in_the_clear(request.uri())?,
        Some(host) => asked_of(host, request)?,
    };
    let target = request.uri().path_and_query().ok_or(Refusal::Target)?.clone();
    if !target.as_str().starts_with('/') || !target.as_str().bytes().all(|byte| (0x21..0x7f).contains(&byte)) {
        return Err(Refusal::Target);
    }
    request.extensions_mut().insert(destination.clone());
    terms.leads_to(&destination.host, destination.port)?;
    *request.uri_mut() = Uri::from(target);
    *request.version_mut() = Version::HTTP_11;
    let is_bare = [Method::GET, Method::HEAD].contains(request.method());
    if request.extensions().get::<Unclear>().is_some() || (is_bare && request.body().size_hint().exact().is_none()) {
        return Err(Refusal::Framing);
    }
    let headers = request.headers_mut();
    one_framing(headers).map_err(|_| Refusal::Framing)?;
    headers.insert(header::HOST, host);
    hop::remove_hop_by_hop(headers);
    // A homeserver may be at another host than its name says.
    let server = x_matrix::destination(headers).and_then(ServerName::parse).unwrap_or(destination.name().clone());
    request.extensions_mut().insert(server);
    Ok(())
}

/// What stands in `Host` does not count beside such a target, and must not be passed on (RFC 9112, section 3.2.2).
fn asked_in_the_clear(target: &Uri) -> Result<(Destination, HeaderValue), Refusal> {
    let authority = target.authority().filter(|_| target.scheme() == Some(&Scheme::HTTP)).ok_or(Refusal::Target)?;
    let destination = Destination::parse(authority.as_str(), Some(80)).ok_or(Refusal::Host)?;
    Ok((destination, HeaderValue::from_str(authority.as_str()).map_err(|_| Refusal::Target)?))
}

/// One `Host`, and the one whose place is taken.
fn asked_of<B>(host: &Destination, request: &Request<B>) -> Result<(Destination, HeaderValue), Refusal> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(named), None) = (hosts.next(), hosts.next()) else { return Err(Refusal::Target) };
    let text = named.to_str().map_err(|_| Refusal::Target)?;
    let destination = Destination::parse(text, Some(443)).filter(|asked| asked.is_at(host)).ok_or(Refusal::Target)?;
    if request.uri().scheme().is_some() || request.uri().authority().is_some() {
        return Err(Refusal::Target);
    }
    Ok((destination.in_tls(), named.clone()))
}

fn offered(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(header::PROXY_AUTHORIZATION).iter().map(HeaderValue::as_bytes)
}

/// Whom a request that came this way is for.
///
/// # Errors
/// It came another way: a defect of ours.
pub(super) fn destination<B>(request: &Request<B>) -> Result<Destination, Error> {
    request.extensions().get::<Destination>().cloned().ok_or_else(|| Error::new(Kind::Panic))
}

/// The homeserver that a request which came this way is for: whoever it is signed for; else the host, if it is one.
///
/// # Errors
/// It came another way: a defect of ours.
pub(super) fn server<B>(request: &Request<B>) -> Result<ServerName, Error> {
    request.extensions().get::<ServerName>().cloned().ok_or_else(|| Error::new(Kind::Panic))
}

/// How records name what refuses here.
pub const NAME: &str = "proxy_door";

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(credentials: Option<&str>) -> Terms {
        Terms { credentials: credentials.map(|text| Secret::new(text).unwrap()), ports: vec![80, 8080] }
    }

    fn admitted(target: &str, fields: &[(&str, &str)], terms: &Terms) -> Result<Request<RequestBody>, Refusal> {
        let mut builder = Request::builder().uri(target);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        let mut request = builder.body(RequestBody::empty()).unwrap();
        admit(&mut request, terms, None).map(|()| request)
    }

    #[test]
    fn what_is_asked_of_a_proxy_becomes_what_the_other_end_reads() {
        let fields =
            [("host", "else.test"), ("connection", "close"), ("user-agent", "Synapse/1"), ("proxy-connection", "x")];
        let request = admitted("http://Bridge.test:8080/_matrix/x?a=%41&b=//..;y", &fields, &terms(None)).unwrap();
        assert_eq!(request.uri(), "/_matrix/x?a=%41&b=//..;y");
        assert_eq!(destination(&request).unwrap().port, 8080);
        let mut fields: Vec<_> =
            request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        fields.sort_unstable();
        assert_eq!(fields, [("host", "Bridge.test:8080"), ("user-agent", "Synapse/1")]);
    }

    #[test]
    fn only_an_http_url_is_a_target() {
        let refused = |target: &str| admitted(target, &[], &terms(None)).err();
        assert_eq!(refused("http://bridge.test"), None);
        for target in ["/x", "https://bridge.test/x", "matrix-federation://bridge.test/x", "bridge.test:80"] {
            assert_eq!(refused(target), Some(Refusal::Target), "{target}");
        }
        for host in ["u@bridge.test", "127.1", "0x7f000001", "-a.test", "a.test.", "a.test:99999"] {
            assert_eq!(refused(&format!("http://{host}/x")), Some(Refusal::Host), "{host}");
        }
        assert_eq!(Refusal::Host.answer().status(), StatusCode::BAD_GATEWAY);
        assert_eq!(refused("http://bridge.test:22/"), Some(Refusal::Port));
    }

    #[test]
    fn nobody_comes_in_without_the_credentials() {
        let terms = terms(Some("dTpw"));
        let offered = |values: &[&str]| {
            let fields: Vec<_> = values.iter().map(|value| ("proxy-authorization", *value)).collect();
            admitted("http://bridge.test/", &fields, &terms).map(drop)
        };
        assert_eq!(offered(&["Basic dTpw"]), Ok(()));
        assert_eq!(offered(&["basic dTpw"]), Ok(()));
        for bad in [
            &[][..],
            &["Basic dTp"],
            &["Basic  dTpw"],
            &["Bearer dTpw"],
            &["dTpw"],
            &["Basic"],
            &["Basic dTpw", "Basic dTpw"],
        ] {
            assert_eq!(offered(bad), Err(Refusal::Credentials), "{bad:?}");
        }
    }
}
