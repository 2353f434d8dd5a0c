//! A server's keys as it publishes them, and whether they are its own (Matrix specification v1.11, server-server API,
//! "Retrieving server keys").

use std::sync::Arc;

use ruma_common::serde::Base64;
use ruma_common::serde::base64::Standard;
use ruma_common::{CanonicalJsonObject, CanonicalJsonValue};
use ruma_signatures::{SigningKeyAlgorithm, to_canonical_json_string_for_signing, verify_canonical_json_bytes};

use super::query::Wanted;

/// Keys that their server signed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ServerKeys {
    /// The whole object in its canonical form, the one that was verified.
    pub text: Arc<str>,
    /// When it was asked for, in milliseconds since 1970, as all times here.
    pub fetched: u64,
    /// Until when the server says that it counts.
    valid_until: u64,
}

/// Why an object is not taken for a server's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is no such object, or one that Synapse could not take in.
    Unreadable,
    /// It is about another server.
    OtherServer,
    /// It is longer than what is kept of one server.
    TooLong,
    /// The server did not sign it with its own keys, or one of its signatures is wrong.
    Unsigned,
}

impl ServerKeys {
    /// Reads what this server says of itself.
    ///
    /// # Errors
    /// Why it is not believed. What has expired is believed: it counted once.
    pub fn read(bytes: &[u8], server: &str, fetched: u64) -> Result<Self, Refused> {
        let mut object: CanonicalJsonObject = serde_json::from_slice(bytes).map_err(|_| Refused::Unreadable)?;
        let string = |key: &str| object.get(key).and_then(CanonicalJsonValue::as_str);
        if string("server_name") != Some(server) {
            return Err(Refused::OtherServer);
        }
        let valid_until = object.get("valid_until_ts").and_then(CanonicalJsonValue::as_integer);
        let valid_until =
            valid_until.and_then(|time| u64::try_from(i64::from(time)).ok()).ok_or(Refused::Unreadable)?;
        let map = |key: &str| object.get(key).and_then(CanonicalJsonValue::as_object);
        let verify_keys = map("verify_keys").ok_or(Refused::Unreadable)?;
        let none = CanonicalJsonObject::new();
        let old = match object.get("old_verify_keys") {
            None => &none,
            Some(keys) => keys.as_object().ok_or(Refused::Unreadable)?,
        };
        if !verify_keys.iter().all(is_key) || !old.iter().all(is_old_key) {
            return Err(Refused::Unreadable);
        }
        let signatures = map("signatures").and_then(|all| all.get(server)?.as_object()).ok_or(Refused::Unsigned)?;
        verify(&object, verify_keys, signatures)?;
        // Other names on it say nothing here, and Synapse trips over a notary's that is wrong.
        let signatures = CanonicalJsonObject::from([(server.to_owned(), signatures.clone().into())]);
        object.insert("signatures".into(), signatures.into());
        let text = serde_json::to_string(&object).map_err(|_| Refused::Unreadable)?;
        if text.len() > MOST_TEXT {
            return Err(Refused::TooLong);
        }
        Ok(Self { text: text.into(), fetched, valid_until })
    }

    /// Until when the server says that it counts.
    pub fn valid_until(&self) -> u64 {
        self.valid_until
    }

    /// Whether it has expired.
    pub fn is_over(&self, now: u64) -> bool {
        self.valid_until <= now
    }

    /// Whether it is what is wanted, and new enough.
    pub fn serves(&self, wanted: &Wanted, now: u64) -> bool {
        // "Servers MUST use the lesser of this field and 7 days into the future".
        let until = self.valid_until.min(self.fetched.saturating_add(WEEK));
        let is_fresh = match wanted.minimum {
            Some(minimum) => minimum <= until,
            // As Synapse does where nobody says: at half of its life, a key is asked for again.
            None => now <= self.fetched / 2 + until / 2,
        };
        is_fresh && wanted.names.iter().all(|name| self.has(name))
    }

    /// Whether a key of this name is in it, an old one perhaps. It is looked for in the text, for lists of names would take more room
    /// than that. What is canonical is written in one way only: such a name, and an object behind it, is a key wherever it counts.
    fn has(&self, name: &str) -> bool {
        is_known(name) && serde_json::to_string(name).is_ok_and(|name| self.text.contains(&format!("{name}:{{")))
    }
}

#[cfg(test)]
impl ServerKeys {
    /// Something that takes so much room.
    pub fn of_length(bytes: usize) -> Self {
        Self { text: "x".repeat(bytes).into(), fetched: 0, valid_until: 0 }
    }
}

/// At least one of its keys has signed it, and no signature that can be checked is wrong.
fn verify(
    object: &CanonicalJsonObject,
    verify_keys: &CanonicalJsonObject,
    signatures: &CanonicalJsonObject,
) -> Result<(), Refused> {
    let signed = to_canonical_json_string_for_signing(object).map_err(|_| Refused::Unreadable)?;
    let mut is_signed = false;
    for (name, signature) in signatures {
        let Some(key) = verify_keys.get(name).filter(|_| is_known(name)) else { continue };
        let key = verify_key(key).ok_or(Refused::Unreadable)?;
        let signature = bytes(signature).ok_or(Refused::Unsigned)?;
        verify_canonical_json_bytes(&SigningKeyAlgorithm::Ed25519, &key, &signature, signed.as_bytes())
            .map_err(|_| Refused::Unsigned)?;
        is_signed = true;
    }
    if is_signed { Ok(()) } else { Err(Refused::Unsigned) }
}

/// Whether Synapse can take in a key of this name. It is told of many servers at once, and what it cannot read of one costs it the
/// answer for all. What it does not know, keys of other algorithms, it does not look at.
fn is_key((name, key): (&String, &CanonicalJsonValue)) -> bool {
    // Its database refuses names with NUL in them, and those that are too long for an index.
    let is_name = name.len() <= LONGEST_NAME && !name.contains(char::is_control);
    !is_known(name) || (is_name && verify_key(key).is_some())
}

/// The same of a key that is not in use any more.
fn is_old_key((name, key): (&String, &CanonicalJsonValue)) -> bool {
    let has_expired = || key.as_object().and_then(|key| key.get("expired_ts")?.as_integer()).is_some();
    is_key((name, key)) && (!is_known(name) || has_expired())
}

fn is_known(name: &str) -> bool {
    name.starts_with("ed25519:")
}

fn verify_key(key: &CanonicalJsonValue) -> Option<Vec<u8>> {
    bytes(key.as_object()?.get("key")?).filter(|key| key.len() == KEY)
}

fn bytes(value: &CanonicalJsonValue) -> Option<Vec<u8>> {
    Base64::<Standard>::parse(value.as_str()?).ok().map(Base64::into_inner)
}

const WEEK: u64 = 7 * 24 * 3600 * 1000;
/// The bytes of an Ed25519 key.
const KEY: usize = 32;
/// No name of a key that is in use comes near.
const LONGEST_NAME: usize = 255;
/// Most need less than one kibibyte, and an old key is some hundred bytes: whoever has a new one each month comes here after six
/// years. Synapse keeps the whole once for each key in it.
const MOST_TEXT: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use ruma_signatures::{Ed25519KeyPair, sign_json};
    use serde_json::{Value, json};

    use super::*;

    const HOUR: u64 = 3600 * 1000;

    struct Server(Ed25519KeyPair);

    impl Server {
        fn new() -> Self {
            Self(Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "a".into()).unwrap())
        }

        fn says(&self, change: impl FnOnce(&mut Value)) -> CanonicalJsonObject {
            let key = Base64::<Standard, _>::new(self.0.public_key().to_vec()).encode();
            let mut object = json!({
                "server_name": "o.example", "valid_until_ts": 1000 * HOUR, "verify_keys": {"ed25519:a": {"key": key}},
                "old_verify_keys": {"ed25519:old": {"key": key, "expired_ts": 1}}, "other": ["kept", {"a": null}],
            });
            change(&mut object);
            serde_json::from_value(object).unwrap()
        }

        fn signs(&self, change: impl FnOnce(&mut Value)) -> CanonicalJsonObject {
            let mut object = self.says(change);
            sign_json("o.example", &self.0, &mut object).unwrap();
            object
        }
    }

    fn read(object: &CanonicalJsonObject) -> Result<ServerKeys, Refused> {
        ServerKeys::read(&serde_json::to_vec(object).unwrap(), "o.example", 999 * HOUR)
    }

    #[test]
    fn what_a_server_signs_of_itself_is_kept_whole() {
        let object = Server::new().signs(|_| {});
        let keys = read(&object).unwrap();
        assert_eq!(serde_json::from_str::<CanonicalJsonObject>(&keys.text).unwrap(), object);
        assert!(!keys.is_over(999 * HOUR) && keys.is_over(1000 * HOUR));
        // Spaces and order are not signed.
        let pretty = serde_json::to_vec_pretty(&object).unwrap();
        assert_eq!(ServerKeys::read(&pretty, "o.example", 999 * HOUR).unwrap(), keys);
    }

    #[test]
    fn a_server_that_lies_is_not_believed() {
        let (server, other) = (Server::new(), Server::new());
        assert_eq!(read(&server.says(|_| {})).unwrap_err(), Refused::Unsigned);
        assert_eq!(
            read(&server.signs(|object| object["server_name"] = json!("p.example"))).unwrap_err(),
            Refused::OtherServer
        );
        // Signed with a key that it does not name, or changed afterwards.
        let mut stolen = server.says(|_| {});
        sign_json("o.example", &other.0, &mut stolen).unwrap();
        assert_eq!(read(&stolen).unwrap_err(), Refused::Unsigned);
        let mut changed = server.signs(|_| {});
        changed.insert("valid_until_ts".into(), serde_json::from_value(json!(2000 * HOUR)).unwrap());
        assert_eq!(read(&changed).unwrap_err(), Refused::Unsigned);
        // One signature that is right does not make up for one that is wrong.
        let mut half =
            server.signs(|object| object["verify_keys"]["ed25519:b"] = object["verify_keys"]["ed25519:a"].clone());
        let signatures = half.get_mut("signatures").unwrap().as_object_mut().unwrap().get_mut("o.example").unwrap();
        signatures.as_object_mut().unwrap().insert("ed25519:b".into(), "AAAA".into());
        assert_eq!(read(&half).unwrap_err(), Refused::Unsigned);
        // Somebody else's name on the signature, and old keys, do not count.
        let mut foreign = server.says(|_| {});
        sign_json("p.example", &server.0, &mut foreign).unwrap();
        assert_eq!(read(&foreign).unwrap_err(), Refused::Unsigned);
        for odd in [&b""[..], b"{}", b"[]", br#"{"server_name":"o.example"}"#] {
            assert!(ServerKeys::read(odd, "o.example", 0).is_err());
        }
    }

    #[test]
    fn what_synapse_could_not_take_in_is_refused_whole_and_what_it_does_not_look_at_is_not() {
        let server = Server::new();
        let key = server.says(|_| {})["verify_keys"].as_object().unwrap()["ed25519:a"].clone();
        let key = serde_json::to_value(key).unwrap();
        let old = json!({"key": key["key"], "expired_ts": 1});
        let changed = |map: &str, name: &str, value: &Value| {
            read(&server.signs(|object| object[map][name] = value.clone())).map(drop)
        };
        let (long, longer) = (format!("ed25519:{}", "x".repeat(247)), format!("ed25519:{}", "x".repeat(248)));
        for (name, value) in [
            ("ed25519:b", json!({})),
            ("ed25519:b", json!(null)),
            ("ed25519:b", json!({"key": null})),
            ("ed25519:b", json!({"key": "AAAA"})),
            ("ed25519:b", json!({"key": "A".repeat(44)})),
            ("ed25519:b", json!({"key": "\u{fc}".repeat(43)})),
            ("ed25519:b\0", key.clone()),
            (&longer, key.clone()),
        ] {
            assert_eq!(changed("verify_keys", name, &value), Err(Refused::Unreadable), "{name:?} {value}");
            assert_eq!(changed("old_verify_keys", name, &value), Err(Refused::Unreadable), "{name:?} {value}");
        }
        for expired in [json!(null), json!("1"), json!(true)] {
            let value = json!({"key": key["key"], "expired_ts": expired});
            assert_eq!(changed("old_verify_keys", "ed25519:old", &value), Err(Refused::Unreadable), "{value}");
        }
        assert_eq!(changed("old_verify_keys", "ed25519:old", &key), Err(Refused::Unreadable));
        for odd in [json!(null), json!([])] {
            let object = server.signs(|object| object["old_verify_keys"] = odd.clone());
            assert_eq!(read(&object), Err(Refused::Unreadable), "{odd}");
        }
        for (map, name, value) in [
            ("verify_keys", &*long, &key),
            ("old_verify_keys", &long, &old),
            ("verify_keys", "curve25519:\0", &json!(null)),
            ("old_verify_keys", "curve25519:x", &json!({"key": 7})),
        ] {
            assert_eq!(changed(map, name, value), Ok(()), "{map} {name:?}");
        }
        let without = server.signs(|object| drop(object.as_object_mut().unwrap().remove("old_verify_keys")));
        assert!(read(&without).is_ok());
    }

    #[test]
    fn a_long_history_of_keys_is_kept_and_an_endless_one_is_not() {
        let server = Server::new();
        let with = |count: usize| {
            read(&server.signs(|object| {
                let old = object["old_verify_keys"]["ed25519:old"].clone();
                for number in 0..count {
                    object["old_verify_keys"][format!("ed25519:a_{number:04}")] = old.clone();
                }
            }))
        };
        assert_eq!(with(64).map(drop), Ok(()));
        assert_eq!(with(128).map(drop), Err(Refused::TooLong));
    }

    #[test]
    fn only_the_servers_own_signatures_are_kept() {
        let own = Server::new().signs(|_| {});
        let mut more = own.clone();
        let signatures = more.get_mut("signatures").unwrap().as_object_mut().unwrap();
        signatures.insert("matrix.org".into(), "no signature".into());
        signatures
            .insert("notary.invalid".into(), CanonicalJsonObject::from([("ed25519:a".into(), "AA".into())]).into());
        assert_eq!(read(&more).unwrap(), read(&own).unwrap());
    }

    #[test]
    fn what_is_known_serves_until_it_expires_before_what_is_wanted() {
        let keys = read(&Server::new().signs(|_| {})).unwrap();
        let named = read(&Server::new().signs(|object| {
            object["old_verify_keys"]["ed25519:\"\u{fc}\\"] = object["old_verify_keys"]["ed25519:old"].clone();
        }))
        .unwrap();
        let wants = |minimum: Option<u64>, names: &[&str], now: u64| {
            let names = names.iter().map(ToString::to_string).collect();
            keys.serves(&Wanted { minimum, names }, now)
        };
        assert!(wants(Some(1000 * HOUR), &["ed25519:a", "ed25519:old"], 0));
        assert!(!wants(Some(1000 * HOUR + 1), &[], 0));
        assert!(!wants(Some(0), &["ed25519:b"], 0));
        // Nor is a name a key that stands elsewhere, or is a part of another.
        for name in ["ed25519:o", "old", "o.example", "server_name", "other", "kept", "", "\"", "ed25519:a\":{\"key"] {
            assert!(!wants(Some(0), &[name], 0), "{name}");
        }
        let mut more = Server::new().signs(|_| {});
        let signatures = more.get_mut("signatures").unwrap().as_object_mut().unwrap().get_mut("o.example").unwrap();
        signatures.as_object_mut().unwrap().insert("ed25519:b".into(), "AA".into());
        let names = vec!["ed25519:b".into()];
        assert!(!read(&more).unwrap().serves(&Wanted { minimum: Some(0), names }, 0));
        assert!(named.serves(&Wanted { minimum: Some(0), names: vec!["ed25519:\"\u{fc}\\".into()] }, 0));
        // Where nobody says how long, half of its life.
        assert!(wants(None, &[], 999 * HOUR + HOUR / 2) && !wants(None, &[], 999 * HOUR + HOUR / 2 + 2));
        // Nothing is believed for longer than a week.
        let long = read(&Server::new().signs(|object| object["valid_until_ts"] = json!(9000 * HOUR))).unwrap();
        let week = Wanted { minimum: Some(999 * HOUR + WEEK), names: Vec::new() };
        assert!(long.serves(&week, 0) && !long.serves(&Wanted { minimum: Some(999 * HOUR + WEEK + 1), ..week }, 0));
    }
}
