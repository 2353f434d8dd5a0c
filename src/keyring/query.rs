//! What Synapse asks a notary (Matrix specification v1.11, server-server API, "Querying keys through another server").

use std::collections::{BTreeMap, HashMap};

use http::{Method, Uri};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer};
use serde_json::Number;

use crate::matrix::ServerName;

/// What is wanted of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Until when its keys have to count, in milliseconds since 1970; `None` if nobody says.
    pub minimum: Option<u64>,
    /// The names of the keys; any, where there are none.
    pub names: Vec<String>,
}

/// Reads a question. Servers whose names are none are left out: nobody can be asked for their keys.
pub(super) fn read(method: &Method, uri: &Uri, body: &[u8]) -> Option<Vec<(ServerName, Wanted)>> {
    match *method {
        Method::POST => batch(body),
        _ => Some(one(uri).into_iter().collect()),
    }
}

fn batch(body: &[u8]) -> Option<Vec<(ServerName, Wanted)>> {
    #[derive(Deserialize)]
    struct Batch {
        server_keys: BTreeMap<String, BTreeMap<String, Criteria>>,
    }
    #[derive(Deserialize)]
    struct Criteria {
        minimum_valid_until_ts: Option<Time>,
    }
    let batch: Batch = serde_json::from_slice(body).ok()?;
    let wanted = |keys: BTreeMap<String, Criteria>| Wanted {
        minimum: keys.values().filter_map(|criteria| Some(criteria.minimum_valid_until_ts.as_ref()?.0)).max(),
        names: keys.into_keys().collect(),
    };
    let servers = batch.server_keys.into_iter();
    let servers = servers.filter_map(|(name, keys)| Some((ServerName::parse(&name)?, wanted(keys))));
    Some(in_turns(servers.collect()))
}

/// A time, in milliseconds since 1970, as near as one can be to any number: what is odd about one server costs no other its answer.
struct Time(u64);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = Number::deserialize(from)?;
        // Of what is no such integer, floats keep the size, and this the bounds.
        Ok(Self(number.as_u64().unwrap_or_else(|| number.as_f64().unwrap_or_default() as u64)))
    }
}

/// Domains take turns: names below one of them cost nothing, so whoever makes up a thousand does not come before all others.
fn in_turns(mut servers: Vec<(ServerName, Wanted)>) -> Vec<(ServerName, Wanted)> {
    let mut turns = HashMap::new();
    servers.sort_by_cached_key(|(server, _)| {
        let turn = turns.entry(server.host().domain().map(str::to_owned)).or_insert(0_usize);
        *turn += 1;
        *turn
    });
    servers
}

/// `/_matrix/key/v2/query/{serverName}/{keyId}?minimum_valid_until_ts=…`
fn one(uri: &Uri) -> Option<(ServerName, Wanted)> {
    let mut segments = uri.path().split('/').skip(5);
    let mut segment = || percent_decode_str(segments.next()?).decode_utf8().ok().filter(|text| !text.is_empty());
    let server = ServerName::parse(&segment()?)?;
    let names = segment().map(|name| vec![name.into_owned()]).unwrap_or_default();
    let mut arguments = uri.query().unwrap_or_default().split('&');
    let minimum = arguments.find_map(|argument| argument.strip_prefix("minimum_valid_until_ts=")?.parse().ok());
    Some((server, Wanted { minimum, names }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's name, the minimum, and the names of its keys.
    type Told = (String, Option<u64>, Vec<String>);

    fn read(method: Method, target: &str, body: &str) -> Option<Vec<Told>> {
        let servers = super::read(&method, &target.parse().unwrap(), body.as_bytes())?;
        let told = |(server, wanted): (ServerName, Wanted)| (server.as_str().to_owned(), wanted.minimum, wanted.names);
        Some(servers.into_iter().map(told).collect())
    }

    #[test]
    fn a_batch_wants_of_each_server_what_all_its_keys_need() {
        let body = r#"{"server_keys":{"b.example:1":{"ed25519:a":{"minimum_valid_until_ts":7},"ed25519:b":{"minimum_valid_until_ts":9},
            "ed25519:c":{}},"a.example":{},"a_b":{}}}"#;
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            read(Method::POST, "/_matrix/key/v2/query", body).unwrap(),
            [
                ("a.example".into(), None, vec![]),
                ("b.example:1".into(), Some(9), names(&["ed25519:a", "ed25519:b", "ed25519:c"])),
            ]
        );
        for odd in ["", "{}", "[]", r#"{"server_keys":{"a.example":1}}"#] {
            assert_eq!(read(Method::POST, "/_matrix/key/v2/query", odd), None, "{odd}");
        }
    }

    #[test]
    fn a_time_that_is_none_spoils_no_others_question() {
        for (time, minimum) in [
            ("-1", 0),
            ("-9223372036854775809", 0),
            ("18446744073709551615", u64::MAX),
            ("18446744073709551616", u64::MAX),
            ("1e300", u64::MAX),
            ("7.0", 7),
        ] {
            let body = format!(
                "{{\"server_keys\":{{\"a.example\":{{\"ed25519:a\":{{\"minimum_valid_until_ts\":{time}}}}},\"b.example\":{{}}}}}}"
            );
            let told = read(Method::POST, "/_matrix/key/v2/query", &body).unwrap();
            assert_eq!(
                told.iter().map(|(_, minimum, _)| *minimum).collect::<Vec<_>>(),
                [Some(minimum), None],
                "{time}"
            );
        }
    }

    #[test]
    fn who_has_many_names_does_not_come_before_all_others() {
        let servers = [
            "a1.evil.example",
            "a2.Evil.example:1",
            "a3.evil.example",
            "x.a.example",
            "b.example",
            "192.0.2.1",
            "[::1]",
            "z",
        ];
        let wanted = servers.map(|name| format!("\"{name}\":{{}}")).join(",");
        let told = read(Method::POST, "/_matrix/key/v2/query", &format!("{{\"server_keys\":{{{wanted}}}}}")).unwrap();
        let names: Vec<_> = told.iter().map(|(server, ..)| server.as_str()).collect();
        assert_eq!(
            names,
            [
                "192.0.2.1",
                "a1.evil.example",
                "b.example",
                "x.a.example",
                "z",
                "[::1]",
                "a2.Evil.example:1",
                "a3.evil.example"
            ]
        );
    }

    #[test]
    fn a_path_names_a_server_and_perhaps_a_key() {
        let get = |target: &str| read(Method::GET, target, "").unwrap();
        let target = "/_matrix/key/v2/query/a.example%3A1/ed25519%3Aa?x=1&minimum_valid_until_ts=7";
        assert_eq!(get(target), [("a.example:1".into(), Some(7), vec!["ed25519:a".into()])]);
        assert_eq!(get("/_matrix/key/v2/query/a.example"), [("a.example".into(), None, vec![])]);
        assert!(get("/_matrix/key/v2/query/a_b").is_empty());
    }
}
