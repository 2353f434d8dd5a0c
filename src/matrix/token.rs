//! Reads the access token of a request exactly as Synapse does (`synapse/api/auth/base.py::get_access_token_from_request`).
//!
//! Whoever reads it more kindly judges another token than the one Synapse will see.

use std::borrow::Cow;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode;

/// Where a token stood, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    /// The token, decoded; maybe empty, maybe nonsense.
    pub value: Cow<'a, [u8]>,
    /// Where it stood.
    pub place: Place,
}

/// Where a token may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `Authorization: Bearer …`
    Header,
    /// `?access_token=…`
    Query,
}

/// Why a request has no token that Synapse would read. Each is answered 401 `M_MISSING_TOKEN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// There is none.
    Missing,
    /// One in the header and one in the query.
    Mixed,
    /// More than one `Authorization`.
    Doubled,
    /// `Authorization` is not exactly `Bearer`, one space, one token.
    Malformed,
}

impl Unreadable {
    /// Synapse's own sentence.
    pub fn sentence(self) -> &'static str {
        match self {
            Unreadable::Missing => "Missing access token",
            Unreadable::Mixed => "Mixing Authorization headers and access_token query parameters.",
            Unreadable::Doubled => "Too many Authorization headers.",
            Unreadable::Malformed => "Invalid Authorization header.",
        }
    }
}

/// Reads the token of a request.
///
/// # Errors
/// What Synapse would say of it.
pub fn read<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> Result<Token<'a>, Unreadable> {
    read_from(headers.get_all(AUTHORIZATION), query)
}

/// Reads the token that stands in these `Authorization` fields or in this query.
///
/// # Errors
/// What Synapse would say of it.
pub fn read_from<'a>(
    authorizations: impl IntoIterator<Item = &'a HeaderValue>,
    query: Option<&'a str>,
) -> Result<Token<'a>, Unreadable> {
    let in_query = query.and_then(|query| argument(query, "access_token"));
    let mut authorizations = authorizations.into_iter();
    let Some(authorization) = authorizations.next() else {
        let value = in_query.ok_or(Unreadable::Missing)?;
        return Ok(Token { value, place: Place::Query });
    };
    if in_query.is_some() {
        return Err(Unreadable::Mixed);
    }
    if authorizations.next().is_some() {
        return Err(Unreadable::Doubled);
    }
    let value = authorization.as_bytes().strip_prefix(b"Bearer ").ok_or(Unreadable::Malformed)?;
    // Synapse splits on single spaces and wants two parts; a token beyond ASCII makes it answer 500.
    if value.contains(&b' ') || !value.is_ascii() {
        return Err(Unreadable::Malformed);
    }
    Ok(Token { value: Cow::Borrowed(value), place: Place::Header })
}

/// The first value of an argument, as Twisted reads a query (`twisted/web/http.py::parse_qs`): split on `&` and `;`, items
/// without `=` skipped, names and values percent- and plus-decoded.
pub fn argument<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    arguments(query, name).next()
}

/// All values of an argument, read in the same way.
pub fn arguments<'a>(query: &'a str, name: &str) -> impl Iterator<Item = Cow<'a, [u8]>> {
    query
        .split(['&', ';'])
        .filter_map(|item| item.split_once('='))
        .filter(move |(key, _)| *decode(key) == *name.as_bytes())
        .map(|(_, value)| decode(value))
}

fn decode(text: &str) -> Cow<'_, [u8]> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text.as_bytes());
    }
    let spaced = text.replace('+', " ");
    Cow::Owned(percent_decode(spaced.as_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(headers: &[&'static str], query: Option<&'static str>) -> Result<String, Unreadable> {
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(AUTHORIZATION, value.parse().unwrap());
        }
        read(&map, query).map(|token| String::from_utf8_lossy(&token.value).into_owned())
    }

    #[test]
    fn reads_the_header_only_in_its_one_form() {
        assert_eq!(token(&["Bearer syt_x"], None), Ok("syt_x".into()));
        for odd in ["bearer x", "Bearer  x", "Bearer x y", "Bearer\tx", "Basic x", "X-Matrix origin=a", "", "Bearer"] {
            assert_eq!(token(&[odd], None), Err(Unreadable::Malformed), "{odd:?}");
        }
    }

    #[test]
    fn two_places_or_two_headers_are_none() {
        assert_eq!(token(&["Bearer x"], Some("access_token=x")), Err(Unreadable::Mixed));
        assert_eq!(token(&["Bearer x"], Some("a=1;access%5Ftoken=")), Err(Unreadable::Mixed));
        assert_eq!(token(&["Bearer x", "Bearer x"], None), Err(Unreadable::Doubled));
    }

    #[test]
    fn reads_the_query_as_twisted_splits_it() {
        assert_eq!(token(&[], Some("x=1;access_token=T")), Ok("T".into()));
        assert_eq!(token(&[], Some("access%5Ftoken=T%2B+")), Ok("T+ ".into()));
        assert_eq!(token(&[], Some("access_token=first&access_token=second")), Ok("first".into()));
        assert_eq!(token(&[], Some("access_token=")), Ok(String::new()));
        assert_eq!(token(&[], Some("access_token&ACCESS_TOKEN=x")), Err(Unreadable::Missing));
    }
}
