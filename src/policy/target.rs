//! The one change that is ever made to the target of a request: an access token leaves the query for the header, where it is not
//! logged by everybody who sees the request pass.

use http::header::{AUTHORIZATION, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};
use percent_encoding::percent_decode_str;

/// Moves the token, if Synapse would read it the same way in the header: exactly one `access_token` in the query, no
/// `Authorization`, and a value that can stand in a field. All else stays as it is, for Synapse's own error.
///
/// Every other byte of the target is left. Whether there was anything to move is told.
pub(super) fn move_token(uri: &mut Uri, headers: &mut HeaderMap) -> bool {
    let Some((target, authorization)) = moved(uri, headers) else { return false };
    *uri = Uri::from(target);
    headers.insert(AUTHORIZATION, authorization);
    true
}

/// Whether there is a token to move.
pub(super) fn has_movable_token(uri: &Uri, headers: &HeaderMap) -> bool {
    moved(uri, headers).is_some()
}

fn moved(uri: &Uri, headers: &HeaderMap) -> Option<(PathAndQuery, HeaderValue)> {
    let query = uri.query()?;
    if !query.contains("access") || headers.contains_key(AUTHORIZATION) {
        return None;
    }
    let mut tokens = items(query).filter(|(_, item)| is_token(item));
    let (start, item) = tokens.next()?;
    if tokens.next().is_some() {
        return None;
    }
    let value = decode(item.split_once('=')?.1);
    if value.is_empty() || !value.iter().all(|byte| (0x21..0x7f).contains(byte)) {
        return None;
    }
    let mut authorization = HeaderValue::from_bytes(&[b"Bearer ", &value[..]].concat()).ok()?;
    authorization.set_sensitive(true);
    let rest = without(query, start, item.len());
    let target = if rest.is_empty() { uri.path().to_owned() } else { format!("{}?{rest}", uri.path()) };
    Some((target.parse().ok()?, authorization))
}

/// The items of a query with their places, as Twisted splits it.
fn items(query: &str) -> impl Iterator<Item = (usize, &str)> {
    query.split(['&', ';']).map(|item| (item.as_ptr() as usize - query.as_ptr() as usize, item))
}

fn is_token(item: &str) -> bool {
    item.split_once('=').is_some_and(|(key, _)| decode(key) == b"access_token")
}

fn decode(text: &str) -> Vec<u8> {
    percent_decode_str(&text.replace('+', " ")).collect()
}

/// A query without one of its items and without one separator beside it.
fn without(query: &str, start: usize, length: usize) -> String {
    let (before, after) = (&query[..start], &query[start + length..]);
    if before.is_empty() {
        return after.get(1..).unwrap_or_default().to_owned();
    }
    format!("{}{after}", &before[..before.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved_to(target: &str, authorization: Option<&str>) -> Option<(String, String)> {
        let mut uri: Uri = target.parse().unwrap();
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value.parse().unwrap());
        }
        move_token(&mut uri, &mut headers)
            .then(|| (uri.to_string(), headers[AUTHORIZATION].to_str().unwrap().to_owned()))
    }

    #[test]
    fn takes_the_token_and_leaves_every_other_byte() {
        for (target, left) in [
            ("/sync?access_token=T", "/sync"),
            ("/sync?access_token=T&a=%23;b&c", "/sync?a=%23;b&c"),
            ("/sync?a=%23;access_token=T&c=+", "/sync?a=%23&c=+"),
            ("/sync?a=1&access%5Ftoken=T", "/sync?a=1"),
            ("/sync?a=1&&access_token=%54&", "/sync?a=1&&"),
        ] {
            assert_eq!(moved_to(target, None), Some((left.into(), "Bearer T".into())), "{target}");
        }
    }

    #[test]
    fn leaves_to_synapse_what_synapse_would_refuse() {
        for target in [
            "/sync",
            "/sync?access_token",
            "/sync?access_token=",
            "/sync?access_token=a&access_token=b",
            "/sync?access_token=a+b",
            "/sync?access_token=%0A",
            "/sync?access_token=%C3%A9",
            "/sync?ACCESS_TOKEN=T",
        ] {
            assert_eq!(moved_to(target, None), None, "{target}");
        }
        assert_eq!(moved_to("/sync?access_token=T", Some("")), None);
    }
}
