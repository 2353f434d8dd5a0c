//! What a server signs of a request: `Authorization: X-Matrix …` (Matrix specification v1.11, server-server API, "Request
//! Authentication").

use http::HeaderMap;
use http::header::AUTHORIZATION;

/// The server that a request was signed for.
///
/// A server with several keys signs once with each, all for one destination. `None` if there is no such field, one of another
/// scheme beside it, one that cannot be read in exactly one way, or if two name different destinations.
pub fn destination(headers: &HeaderMap) -> Option<&str> {
    let mut found = None;
    for value in headers.get_all(AUTHORIZATION) {
        let destination = parameter(value.to_str().ok()?, "destination")?;
        if found.is_some_and(|earlier| earlier != destination) {
            return None;
        }
        found = Some(destination);
    }
    found
}

/// A parameter of the field, which must stand there once.
fn parameter<'a>(value: &'a str, wanted: &str) -> Option<&'a str> {
    let (scheme, mut rest) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("X-Matrix") {
        return None;
    }
    let mut found = None;
    loop {
        let (name, after) = rest.split_once('=')?;
        let content;
        (content, rest) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find([',', ' ', '\t']).unwrap_or(after.len())),
        };
        // No name of a server or of a key holds one, and not every reader knows what it means.
        if content.contains('\\') {
            return None;
        }
        if name.trim_matches([' ', '\t']).eq_ignore_ascii_case(wanted) && found.replace(content).is_some() {
            return None;
        }
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return found;
        }
        rest = rest.strip_prefix(',')?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(AUTHORIZATION, line.parse().unwrap());
        }
        destination(&headers).map(str::to_owned)
    }

    #[test]
    fn the_destination_is_read_as_synapse_writes_it_and_as_others_may() {
        let synapse = r#"X-Matrix origin="hs1.test",key="ed25519:a_hs1",sig="c39T+/=",destination="matrix.org:8448""#;
        assert_eq!(of(&[synapse]).as_deref(), Some("matrix.org:8448"));
        assert_eq!(of(&[synapse, &synapse.replace("a_hs1", "b")]).as_deref(), Some("matrix.org:8448"));
        assert_eq!(of(&["x-matrix Destination=a.example , origin=\"b\""]).as_deref(), Some("a.example"));
        assert_eq!(of(&[r#"X-Matrix key="a,destination=b",destination="[::1]:1""#]).as_deref(), Some("[::1]:1"));
    }

    #[test]
    fn what_is_not_clear_is_nothing() {
        for odd in [
            &[][..],
            &["Bearer token"],
            &["X-Matrix"],
            &[r#"X-Matrix origin="a",key="b",sig="c""#],
            &[r#"X-Matrix destination="a",destination="a""#],
            &[r#"X-Matrix destination="a"#],
            &[r#"X-Matrix destination="a\b""#],
            &[r#"X-Matrix destination="a" b="c""#],
            &[r#"X-Matrix destination="a""#, r#"X-Matrix destination="b""#],
            &[r#"X-Matrix destination="a""#, "Bearer token"],
            &[r#"X-Matrix destination="a""#, r#"X-Matrix origin="b""#],
        ] {
            assert_eq!(of(odd), None, "{odd:?}");
        }
    }
}
