//! 4 One spelling, or a refusal: what is ambiguous in target, host or framing never reaches those who judge.

use std::future::{Ready, ready};
use std::net::Ipv6Addr;
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::header::{self, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use tower::{Layer, Service};

use super::Arrival;
use crate::error::Error;
use crate::message::{Answer, Body, BoxRequest, RequestBody, hop};
use crate::observe::access::Decision;

/// Makes [`Canonical`].
pub struct CanonicalLayer;

/// Refuses what could be read in two ways.
pub struct Canonical<S>(S);

impl<S> Layer<S> for CanonicalLayer {
    type Service = Canonical<S>;

    fn layer(&self, inner: S) -> Canonical<S> {
        Canonical(inner)
    }
}

impl<'a, S> Service<Arrival<BoxRequest>> for &'a Canonical<S>
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
        if let Err(refusal) = canonicalize(&mut arrival.request) {
            arrival.facts.note(|record| {
                record.decision = Decision::Deny;
                record.rule = Some(NAME);
            });
            return Either::Left(ready(Ok(refusal.answer().response(None))));
        }
        Either::Right((&self.0).call(arrival))
    }
}

/// What stands in the record for the rule.
pub const NAME: &str = "canonical";

/// What this layer would answer to a request of HTTP/1.1 with this head, if it did not let it pass. Where no host is named, one
/// is supposed.
pub fn refusal(method: &Method, target: &Uri, headers: &HeaderMap) -> Option<Answer> {
    let mut request = Request::new(RequestBody::empty());
    *request.method_mut() = method.clone();
    *request.uri_mut() = target.path_and_query().map_or_else(Uri::default, |target| Uri::from(target.clone()));
    *request.headers_mut() = headers.clone();
    request.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("localhost"));
    canonicalize(&mut request).err().map(Refusal::answer)
}

/// Marks a request, among its extensions, of which the HTTP library read one of two framings and hid the other.
#[derive(Clone, Copy, Debug)]
pub struct Unclear;

/// Why a request is not looked at any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// CONNECT asks for a tunnel; there is none from outside.
    Connect,
    /// The target is not a path: absolute-form, `*`, or one that begins with something else.
    Target,
    /// The target holds bytes that no URI holds.
    Bytes,
    /// No host, several, or two that differ.
    Host,
    /// A body whose end two readers would see in two places.
    Framing,
    /// Content of what has none by its method, and no length of it: HTTP/1.1 has no way to write that the library takes.
    Content,
}

impl Refusal {
    fn answer(self) -> Answer {
        let error = match self {
            Refusal::Connect => "This server opens no tunnels",
            Refusal::Target => "The request target must be a path",
            Refusal::Bytes => "The request target must be ASCII: percent-encode the rest",
            Refusal::Host => "The request must name exactly one valid host",
            Refusal::Framing => "The request must have one Content-Length, or be chunked and nothing else",
            Refusal::Content => "A GET or HEAD request with content must have a Content-Length",
        };
        Answer::matrix(StatusCode::BAD_REQUEST, "M_UNKNOWN", error)
    }
}

/// Leaves a request in origin-form, with one host, without hop-by-hop fields; or says why it cannot be.
fn canonicalize(request: &mut Request<RequestBody>) -> Result<(), Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    let authority = take_target(request)?;
    let host = one_host(request.headers(), authority)?;
    let is_h2 = request.version() == Version::HTTP_2;
    // The next hop is a connection of its own: one that a client of HTTP/1.0 asks for must not end with its request.
    *request.version_mut() = Version::HTTP_11;
    if request.extensions().get::<Unclear>().is_some() {
        return Err(Refusal::Framing);
    }
    // Towards Synapse the library would leave it away.
    if [Method::GET, Method::HEAD].contains(request.method()) && request.body().size_hint().exact().is_none() {
        return Err(Refusal::Content);
    }
    let headers = request.headers_mut();
    one_framing(headers)?;
    if let Some(host) = host {
        headers.insert(header::HOST, host);
    }
    hop::remove_hop_by_hop(headers);
    if is_h2 {
        join_cookies(headers);
    }
    Ok(())
}

/// Leaves only path and query of the target, byte for byte; what h2 said of the authority is given back.
fn take_target(request: &mut Request<RequestBody>) -> Result<Option<Authority>, Refusal> {
    let is_h2 = request.version() == Version::HTTP_2;
    let uri = request.uri();
    if !is_h2 && (uri.scheme().is_some() || uri.authority().is_some()) {
        return Err(Refusal::Target);
    }
    let target = uri.path_and_query().ok_or(Refusal::Target)?;
    if !target.as_str().starts_with('/') {
        return Err(Refusal::Target);
    }
    if !target.as_str().bytes().all(|byte| (0x21..0x7f).contains(&byte)) {
        return Err(Refusal::Bytes);
    }
    if !is_h2 {
        return Ok(None);
    }
    let is_ours = |scheme: &Scheme| *scheme == Scheme::HTTPS || *scheme == Scheme::HTTP;
    // Without an authority, the library drops the scheme.
    if uri.authority().is_some() && !uri.scheme().is_some_and(is_ours) {
        return Err(Refusal::Target);
    }
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    let authority = parts.authority.take();
    parts.scheme = None;
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Refusal::Target)?;
    Ok(authority)
}

/// The host to set, where only h2's `:authority` names it; `None` where the `Host` field stands as it is.
fn one_host(headers: &HeaderMap, authority: Option<Authority>) -> Result<Option<HeaderValue>, Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::Host);
    }
    let named = match (&authority, host) {
        (Some(authority), Some(host)) if !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) => {
            return Err(Refusal::Host);
        }
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host.to_str().map_err(|_| Refusal::Host)?,
        (None, None) => return Err(Refusal::Host),
    };
    if !is_host(named) {
        return Err(Refusal::Host);
    }
    match host {
        Some(_) => Ok(None),
        None => HeaderValue::from_str(named).map(Some).map_err(|_| Refusal::Host),
    }
}

/// A host as RFC 3986 has it, with an optional port: no user, no path, no list.
fn is_host(text: &str) -> bool {
    let (is_name, rest) = match text.strip_prefix('[') {
        Some(literal) => match literal.split_once(']') {
            Some((address, rest)) => (address.parse::<Ipv6Addr>().is_ok(), rest),
            None => return false,
        },
        None => {
            let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
            (is_name(name), rest)
        }
    };
    is_name && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    // One dot may stand at the end: the root of the domain names.
    let labels = name.strip_suffix('.').unwrap_or(name);
    labels.split('.').all(|label| !label.is_empty() && label.bytes().all(plain))
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// One length that is a number, or chunks and no other coding (RFC 9112, section 6).
///
/// The HTTP library reads the same, but passes on what it read: Synapse would read it again, by its own lights.
pub(super) fn one_framing(headers: &mut HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    let coding = codings.next();
    if coding.is_some_and(|coding| !is_chunked(coding)) || codings.next().is_some() {
        return Err(Refusal::Framing);
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(()) };
    if coding.is_some() || lengths.next().is_some() {
        return Err(Refusal::Framing);
    }
    let number = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = HeaderValue::from(number.and_then(|text| text.parse::<u64>().ok()).ok_or(Refusal::Framing)?);
    if number != length {
        headers.insert(header::CONTENT_LENGTH, number);
    }
    Ok(())
}

/// h2 may split cookies into crumbs; Synapse reads one field (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() < 2 {
        return;
    }
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, target: &str, version: Version, headers: &[(&str, &str)]) -> Request<RequestBody> {
        let mut builder = Request::builder().method(method).uri(target).version(version);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(RequestBody::empty()).unwrap()
    }

    fn h1(target: &str, hosts: &[&str]) -> Result<(), Refusal> {
        let hosts: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
        canonicalize(&mut request("GET", target, Version::HTTP_11, &hosts))
    }

    #[test]
    fn only_a_path_is_a_target() {
        assert_eq!(h1("/_matrix/client/versions?a=%23", &["hs"]), Ok(()));
        for target in ["http://hs/_matrix/client/versions", "matrix-federation://hs/x", "*", "hs:443"] {
            assert_eq!(h1(target, &["hs"]), Err(Refusal::Target), "{target}");
        }
        assert_eq!(h1("/\u{e9}", &["hs"]), Err(Refusal::Bytes));
    }

    #[test]
    fn a_tunnel_is_refused() {
        let mut connect = request("CONNECT", "hs:443", Version::HTTP_11, &[("host", "hs:443")]);
        assert_eq!(canonicalize(&mut connect), Err(Refusal::Connect));
    }

    #[test]
    fn exactly_one_valid_host() {
        for good in ["hs", "hs.example:8448", "[::1]:8008", "127.0.0.1"] {
            assert_eq!(h1("/", &[good]), Ok(()), "{good}");
        }
        let odd =
            ["a,b", "u@a", "a/b", "a b", "", ":8008", "a:", "a:+1", "a:65536", "[::1", "[::1]x", "[a]", "a..b", "."];
        for bad in odd.each_ref().map(std::slice::from_ref).into_iter().chain([&[][..], &["a", "a"]]) {
            assert_eq!(h1("/", bad), Err(Refusal::Host), "{bad:?}");
        }
    }

    #[test]
    fn a_body_ends_in_one_place() {
        let framed = |fields: &[(&str, &str)]| {
            let mut request = request("POST", "/", Version::HTTP_11, &[&[("host", "hs")], fields].concat());
            canonicalize(&mut request).map(|()| request.headers().get("content-length").cloned())
        };
        assert_eq!(framed(&[("transfer-encoding", "Chunked")]), Ok(None));
        assert_eq!(framed(&[("content-length", "007")]), Ok(Some("7".parse().unwrap())));
        for bad in [
            &[("transfer-encoding", "gzip, chunked")][..],
            &[("transfer-encoding", ",chunked")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("content-length", "3"), ("content-length", "3")],
            &[("content-length", "3"), ("transfer-encoding", "chunked")],
            &[("content-length", "+3")],
            &[("content-length", "")],
        ] {
            assert_eq!(framed(bad), Err(Refusal::Framing), "{bad:?}");
        }
    }

    #[test]
    fn the_next_hop_speaks_http_1_1_whatever_the_client_does() {
        let mut old = request("GET", "/", Version::HTTP_10, &[("host", "hs")]);
        assert_eq!(canonicalize(&mut old), Ok(()));
        assert_eq!(old.version(), Version::HTTP_11);
    }

    #[test]
    fn h2_names_its_host_in_the_authority_and_nowhere_else() {
        let mut good = request("GET", "https://hs:8448/x?y", Version::HTTP_2, &[]);
        assert_eq!(canonicalize(&mut good), Ok(()));
        assert_eq!((good.uri().to_string().as_str(), good.headers()["host"].to_str().unwrap()), ("/x?y", "hs:8448"));
        let mut other = request("GET", "matrix-federation://hs/x", Version::HTTP_2, &[]);
        assert_eq!(canonicalize(&mut other), Err(Refusal::Target));
        let mut two = request("GET", "https://hs/x", Version::HTTP_2, &[("host", "other")]);
        assert_eq!(canonicalize(&mut two), Err(Refusal::Host));
    }

    #[test]
    fn h2_cookie_crumbs_become_one_field() {
        let mut crumbs = request("GET", "https://hs/", Version::HTTP_2, &[("cookie", "a=1"), ("cookie", "b=2")]);
        assert_eq!(canonicalize(&mut crumbs), Ok(()));
        assert_eq!(crumbs.headers().get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }
}
