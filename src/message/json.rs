//! A JSON object whose members stay as they were written, but for those that are changed.
//!
//! Two readers of one text must not see two things: names count as they read once unescaped, and where one stands several times
//! the last counts, as with Synapse. What `serde_json` does not take for a value is refused, though Python may take it: lone
//! surrogates, more than 127 objects within each other, numbers like `1e400`.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// An object, member by member.
#[derive(Debug)]
pub struct Object<'a> {
    members: Vec<Member<'a>>,
}

#[derive(Debug)]
struct Member<'a> {
    /// As it reads.
    name: String,
    /// As it is written, in its quotes.
    written: Cow<'a, str>,
    /// As it is written.
    value: Cow<'a, str>,
}

/// Why a text is no object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoObject {
    /// It is no JSON, or none that all readers take.
    NotJson,
    /// It is another JSON value.
    Other,
}

impl<'a> Object<'a> {
    /// Reads a text.
    ///
    /// # Errors
    /// It is no object.
    pub fn parse(text: &'a [u8]) -> Result<Self, NoObject> {
        // Raw values are not looked into, so all of it is read as a value first.
        match serde_json::from_slice(text) {
            Ok(Value::Object(_)) => {}
            Ok(_) => return Err(NoObject::Other),
            Err(_) => return Err(NoObject::NotJson),
        }
        let Members(raw) = serde_json::from_slice(text).map_err(|_| NoObject::NotJson)?;
        let member = |(name, value): (&'a RawValue, &'a RawValue)| {
            let read = serde_json::from_str(name.get()).map_err(|_| NoObject::NotJson)?;
            Ok(Member { name: read, written: name.get().into(), value: value.get().into() })
        };
        Ok(Self { members: raw.into_iter().map(member).collect::<Result<_, _>>()? })
    }

    /// The value of this name as it is written: the last, if it stands several times.
    pub fn get(&self, name: &str) -> Option<&str> {
        let member = self.members.iter().rev().find(|member| member.name == name)?;
        Some(&member.value)
    }

    /// The value of this name, if it is a string.
    pub fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?).ok()
    }

    /// Gives this name this value, which is JSON; then it stands once, where it stood first.
    pub fn set(&mut self, name: &str, value: String) {
        let place = self.members.iter().position(|member| member.name == name).unwrap_or(self.members.len());
        self.members.retain(|member| member.name != name);
        let written = Value::from(name).to_string().into();
        self.members.insert(place, Member { name: name.to_owned(), written, value: value.into() });
    }

    /// Takes away all members but those of these names, and tells whether there were any.
    pub fn keep_only(&mut self, names: &[&str]) -> bool {
        let before = self.members.len();
        self.members.retain(|member| names.contains(&&*member.name));
        self.members.len() < before
    }
}

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, Member { written, value, .. }) in self.members.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{written}:{value}")?;
        }
        f.write_str("}")
    }
}

impl From<Object<'_>> for Bytes {
    fn from(object: Object<'_>) -> Self {
        object.to_string().into()
    }
}

/// Names and values of an object, each as it is written.
struct Members<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Each;

        impl<'de> Visitor<'de> for Each {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str, name: &str, value: &str) -> String {
        let mut object = Object::parse(text.as_bytes()).unwrap();
        object.set(name, value.to_owned());
        object.to_string()
    }

    #[test]
    fn what_is_not_touched_stays_as_it_was_written() {
        let text = r#" { "a" : 1.0e+5 , "\u0062":"\u00e9\/" ,"id_server":null, "c":[ 1 , {"x":1,"x":2} ] } "#;
        assert_eq!(
            set(text, "id_server", "\"is\""),
            r#"{"a":1.0e+5,"\u0062":"\u00e9\/","id_server":"is","c":[ 1 , {"x":1,"x":2} ]}"#
        );
        assert_eq!(set("{}", "a", "1"), r#"{"a":1}"#);
        assert_eq!(
            set(r#"{"b":123456789012345678901234567890}"#, "a", "1"),
            r#"{"b":123456789012345678901234567890,"a":1}"#
        );
    }

    #[test]
    fn a_name_in_any_spelling_stands_once() {
        let text = r#"{"id_server":1,"x":{"id_server":2},"id\u005fserver":3,"\u0069d_server":4,"Id_server":5}"#;
        assert_eq!(set(text, "id_server", "0"), r#"{"id_server":0,"x":{"id_server":2},"Id_server":5}"#);
        let object = Object::parse(text.as_bytes()).unwrap();
        assert_eq!((object.get("id_server"), object.get("x")), (Some("4"), Some(r#"{"id_server":2}"#)));
        assert_eq!((object.text("id_server"), object.get("y")), (None, None));
    }

    #[test]
    fn only_what_is_named_is_kept() {
        let mut object = Object::parse(br#"{"a":1,"b":2,"\u0061":3}"#).unwrap();
        assert!(object.keep_only(&["a"]) && !object.keep_only(&["a"]));
        assert_eq!(Bytes::from(object), r#"{"a":1,"\u0061":3}"#);
    }

    #[test]
    fn what_two_readers_may_take_differently_is_no_object() {
        let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(127), "]".repeat(127));
        let long = format!(r#"{{"a":{}}}"#, "9".repeat(400));
        for text in [
            "",
            " ",
            "{",
            r#"{"a":1}x"#,
            r#"{"a":1,}"#,
            r#"{a:1}"#,
            r#"{"a":NaN}"#,
            r#"{"a":Infinity}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"\udc00":1}"#,
            r#"{"a":1e400}"#,
            &long,
            &deep,
            "{\"a\":\"\n\"}",
            "\u{feff}{}",
            "id_server=a&x=1",
        ] {
            assert_eq!(Object::parse(text.as_bytes()).err(), Some(NoObject::NotJson), "{text}");
        }
        assert_eq!(Object::parse(b"{\"a\":\"\xff\"}").err(), Some(NoObject::NotJson));
        for text in ["[]", "1", "null", "\"id_server\""] {
            assert_eq!(Object::parse(text.as_bytes()).err(), Some(NoObject::Other), "{text}");
        }
    }
}
