//! Serde over a tree: like the TOML library's own, but a fault knows its kind, its path and the names that would have done.

use crate::document::value::{Table, Value};
use serde::de::{
    self, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde_spanned::Spanned;
use serde_spanned::de::{SpannedDeserializer, is_spanned};
use std::collections::HashSet;
use std::fmt;

/// What was found wrong before and is passed over, by address: the tree is borrowed for as long as it is read.
pub(super) type PassedOver = HashSet<*const Spanned<Value>>;

/// One value, to deserialize from.
#[derive(Clone, Copy)]
pub(super) struct Node<'de, 'p> {
    pub value: &'de Spanned<Value>,
    pub passed_over: &'p PassedOver,
}

/// Why a tree does not fit a type.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    pub kind: Kind,
    /// From the innermost step to the outermost, as serde returns through the levels.
    pub path: Vec<Step>,
}

/// One step down a tree.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// The kinds of fault; what serde derives for a type says all but `Other`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    UnknownKey {
        name: String,
        known: &'static [&'static str],
    },
    UnknownValue {
        name: String,
        known: &'static [&'static str],
    },
    MissingKey(&'static str),
    Mismatch {
        found: String,
        expected: String,
    },
    /// The own words of a type; what stands after a line break is help.
    Other(String),
}

impl Fault {
    fn new(kind: Kind) -> Self {
        Self { kind, path: Vec::new() }
    }

    fn below(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }

    fn mismatch(found: &Value, expected: impl Into<String>) -> Self {
        Self::new(Kind::Mismatch { found: describe(unexpected(found)), expected: expected.into() })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::Other(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Kind::Mismatch { found: describe(found), expected: plain(&expected.to_string()) })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::new(Kind::Mismatch { found: format!("{length} entries"), expected: plain(&expected.to_string()) })
    }

    fn unknown_variant(name: &str, known: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownValue { name: name.to_owned(), known })
    }

    fn unknown_field(name: &str, known: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownKey { name: name.to_owned(), known })
    }

    fn missing_field(name: &'static str) -> Self {
        Self::new(Kind::MissingKey(name))
    }

    fn duplicate_field(name: &'static str) -> Self {
        Self::new(Kind::Other(format!("`{name}` is said twice, under two names")))
    }
}

impl<'de> Deserializer<'de> for Node<'de, '_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value.get_ref() {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Integer(integer) => visitor.visit_i64(*integer),
            Value::Float(float) => visitor.visit_f64(*float),
            Value::Boolean(boolean) => visitor.visit_bool(*boolean),
            date @ Value::Datetime(_) => Err(de::Error::invalid_type(unexpected(date), &visitor)),
            Value::Array(elements) => visitor.visit_seq(Elements { elements: elements.iter().enumerate(), of: self }),
            Value::Table(table) => visitor.visit_map(Entries { entries: table.iter(), value: None, of: self }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        if is_spanned(name) {
            return visitor.visit_map(SpannedDeserializer::new(self, self.value.span()));
        }
        // Derived visitors would take an array for a struct, and silently ignore its further elements.
        match self.value.get_ref() {
            Value::Table(_) => self.deserialize_any(visitor),
            other => Err(Fault::mismatch(other, "a table")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.value.get_ref() {
            Value::String(name) => visitor.visit_enum(Variant { name, content: None }),
            Value::Table(table) => {
                let left = |(_, value): &&(Spanned<String>, Spanned<Value>)| {
                    !self.passed_over.contains(&std::ptr::from_ref(value))
                };
                let mut entries = table.iter().filter(left);
                match (entries.next(), entries.next()) {
                    (Some((name, value)), None) => {
                        visitor.visit_enum(Variant { name: name.get_ref(), content: Some(Node { value, ..self }) })
                    }
                    _ => Err(Fault::new(Kind::Other("expected exactly one key".into()))),
                }
            }
            other => Err(Fault::mismatch(other, "a string")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier
    }
}

impl<'de> IntoDeserializer<'de, Fault> for Node<'de, '_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

struct Elements<'de, 'p> {
    elements: std::iter::Enumerate<std::slice::Iter<'de, Spanned<Value>>>,
    of: Node<'de, 'p>,
}

impl<'de> SeqAccess<'de> for Elements<'de, '_> {
    type Error = Fault;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let passed_over = self.of.passed_over;
        let next = self.elements.find(|(_, value)| !passed_over.contains(&std::ptr::from_ref(*value)));
        let Some((index, value)) = next else { return Ok(None) };
        let node = Node { value, passed_over };
        seed.deserialize(node).map(Some).map_err(|fault| fault.below(Step::Index(index)))
    }
}

struct Entries<'de, 'p> {
    entries: std::slice::Iter<'de, (Spanned<String>, Spanned<Value>)>,
    value: Option<&'de (Spanned<String>, Spanned<Value>)>,
    of: Node<'de, 'p>,
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = Fault;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let passed_over = self.of.passed_over;
        self.value = self.entries.find(|(_, value)| !passed_over.contains(&std::ptr::from_ref(value)));
        let Some((key, _)) = self.value else { return Ok(None) };
        seed.deserialize(Key(key)).map(Some).map_err(|fault| fault.below(Step::Key(key.get_ref().clone())))
    }

    fn next_value_seed<T: de::DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Fault> {
        // Serde asks for a value only after its key.
        let Some((key, value)) = self.value.take() else { return Err(Fault::new(Kind::Other("no value".into()))) };
        let node = Node { value, passed_over: self.of.passed_over };
        seed.deserialize(node).map_err(|fault| fault.below(Step::Key(key.get_ref().clone())))
    }
}

/// A key, as a string, an enum or a `Spanned` of either.
#[derive(Clone, Copy)]
struct Key<'de>(&'de Spanned<String>);

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_borrowed_str(self.0.get_ref())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        if is_spanned(name) {
            return visitor.visit_map(SpannedDeserializer::new(self, self.0.span()));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_enum(Variant { name: self.0.get_ref(), content: None })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Fault> for Key<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// `"name"`, or `{ name = content }`.
struct Variant<'de, 'p> {
    name: &'de str,
    content: Option<Node<'de, 'p>>,
}

impl<'de, 'p> EnumAccess<'de> for Variant<'de, 'p> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<T: de::DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Fault> {
        Ok((seed.deserialize(de::value::BorrowedStrDeserializer::new(self.name))?, self))
    }
}

impl<'de> Variant<'de, '_> {
    fn content<T>(self, read: impl FnOnce(Self) -> Result<T, Fault>) -> Result<T, Fault> {
        let name = self.name;
        match self.content {
            Some(_) => read(self).map_err(|fault| fault.below(Step::Key(name.to_owned()))),
            None => Err(Fault::new(Kind::Other(format!("{name:?} needs a value\nwrite {{ {name} = … }}")))),
        }
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'de, '_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.content {
            None => Ok(()),
            Some(_) => {
                let name = self.name;
                Err(Fault::new(Kind::Other(format!("{name:?} takes no value\nwrite {name:?}"))))
            }
        }
    }

    fn newtype_variant_seed<T: de::DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        self.content(|variant| match variant.content {
            Some(content) => seed.deserialize(content),
            None => Err(Fault::mismatch(&Value::String(variant.name.to_owned()), "a table")),
        })
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.content(|variant| match variant.content {
            Some(content) => content.deserialize_any(visitor),
            None => Err(Fault::mismatch(&Value::String(variant.name.to_owned()), "a table")),
        })
    }

    fn struct_variant<V: Visitor<'de>>(self, known: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        self.content(|variant| match variant.content {
            Some(content) => content.deserialize_struct("", known, visitor),
            None => Err(Fault::mismatch(&Value::String(variant.name.to_owned()), "a table")),
        })
    }
}

fn unexpected(value: &Value) -> Unexpected<'_> {
    match value {
        Value::String(text) => Unexpected::Str(text),
        Value::Integer(integer) => Unexpected::Signed(*integer),
        Value::Float(float) => Unexpected::Float(*float),
        Value::Boolean(boolean) => Unexpected::Bool(*boolean),
        Value::Datetime(_) => Unexpected::Other("a date"),
        Value::Array(_) => Unexpected::Seq,
        Value::Table(_) => Unexpected::Map,
    }
}

/// What was found, in an operator's words.
fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(boolean) => boolean.to_string(),
        Unexpected::Unsigned(integer) => integer.to_string(),
        Unexpected::Signed(integer) => integer.to_string(),
        Unexpected::Float(float) => float.to_string(),
        Unexpected::Char(character) => format!("{:?}", character.to_string()),
        Unexpected::Str(text) => format!("{text:?}"),
        Unexpected::Seq => "an array".into(),
        Unexpected::Map => "a table".into(),
        // None of these comes from a file.
        other @ (Unexpected::Bytes(_)
        | Unexpected::Unit
        | Unexpected::Option
        | Unexpected::NewtypeStruct
        | Unexpected::Enum
        | Unexpected::UnitVariant
        | Unexpected::NewtypeVariant
        | Unexpected::TupleVariant
        | Unexpected::StructVariant
        | Unexpected::Other(_)) => other.to_string(),
    }
}

/// What a type expects, in an operator's words: serde speaks of Rust's types.
fn plain(expected: &str) -> String {
    let number = |bits: u32| format!("a whole number from 0 to {}", u64::MAX >> (64 - bits));
    match expected {
        "u8" => number(8),
        "u16" => number(16),
        "u32" => number(32),
        "u64" | "usize" => "a whole number, not below 0".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "an array".into(),
        "a map" => "a table".into(),
        "path string" => "a path".into(),
        "a character" => "one character".into(),
        _ if expected.starts_with("a nonzero ") => "a whole number above 0".into(),
        _ if expected.starts_with("struct ") || expected.starts_with("internally tagged enum ") => "a table".into(),
        _ => expected.to_owned(),
    }
}

/// The child that a step leads to.
pub(super) fn descend<'a>(
    value: &'a Spanned<Value>,
    step: &Step,
) -> Option<(Option<&'a Spanned<String>>, &'a Spanned<Value>)> {
    match (value.get_ref(), step) {
        (Value::Table(table), Step::Key(key)) => Table::entry(table, key).map(|(key, value)| (Some(key), value)),
        (Value::Array(elements), Step::Index(index)) => elements.get(*index).map(|value| (None, value)),
        _ => None,
    }
}
