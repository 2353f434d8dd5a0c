//! Fields that end at each hop and are never passed on (RFC 9110, section 7.6.1).

use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};

/// Removes the fields that end at this hop, and those that `Connection` names.
///
/// Framing is not carried over: the HTTP library writes `Content-Length` or `Transfer-Encoding` from the body itself.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // One look at all names: most messages carry at most `Connection: keep-alive`, and each blind removal costs a hash.
    let mut found = [false; HOP_BY_HOP.len()];
    for place in headers.keys().filter_map(hop_by_hop) {
        found[place] = true;
    }
    if found[CONNECTION] {
        remove_nominated(headers);
    }
    for (name, _) in HOP_BY_HOP.iter().zip(found).filter(|(_, is_there)| *is_there) {
        headers.remove(*name);
    }
}

fn remove_nominated(headers: &mut HeaderMap) {
    let is_plain = |value: &HeaderValue| value == "keep-alive" || value == "close";
    if headers.get_all(header::CONNECTION).iter().all(is_plain) {
        return;
    }
    let nominated: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !NEVER_NOMINATED.contains(name))
        .collect();
    for name in &nominated {
        headers.remove(name);
    }
}

/// The place of a name in [`HOP_BY_HOP`], if it has one.
fn hop_by_hop(name: &HeaderName) -> Option<usize> {
    let name = name.as_str();
    // None of them is as long or as short as most others.
    if !matches!(name.len(), 2 | 6 | 7 | 10 | 16..=19) {
        return None;
    }
    HOP_BY_HOP.iter().position(|known| *known == name)
}

/// The fields that always end here. `Proxy-Authorization` belongs to them: to Synapse it is the worker secret of its own
/// outbound proxy, which no client may ever offer. `Expect` does because the HTTP library answers `100-continue` itself, when
/// the body is first asked for.
pub const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "expect",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
const CONNECTION: usize = 0;

/// Fields that `Connection` may not take away: they frame, route or authenticate the message, and a client that names them
/// there wants the homeserver to see something else than what was judged.
const NEVER_NOMINATED: [HeaderName; 6] = [
    header::HOST,
    header::AUTHORIZATION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::COOKIE,
    HeaderName::from_static("x-forwarded-for"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn removes_what_connection_names() {
        let mut headers = headers(&[
            ("connection", "keep-alive, X-Secret"),
            ("connection", "x-other"),
            ("x-secret", "1"),
            ("x-other", "2"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn connection_cannot_take_away_what_was_judged() {
        let mut headers = headers(&[
            ("connection", "authorization, x-forwarded-for, host"),
            ("authorization", "Bearer x"),
            ("host", "h"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert!(headers.contains_key("authorization") && headers.contains_key("host"));
    }

    #[test]
    fn the_worker_secret_of_synapse_never_passes() {
        let mut headers = headers(&[
            ("proxy-authorization", "Bearer secret"),
            ("transfer-encoding", "gzip, chunked"),
            ("te", "trailers"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert!(headers.is_empty());
    }
}
