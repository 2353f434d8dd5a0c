//! The tree of a parsed file: what the TOML parser gives, but owned, so that trees of several files can be merged.

use serde_spanned::Spanned;
use toml::value::Datetime;

/// One value; spans are offsets into [`Sources`](crate::document::Sources).
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `"text"`
    String(String),
    /// `10`
    Integer(i64),
    /// `1.5`
    Float(f64),
    /// `true`
    Boolean(bool),
    /// `1979-05-27`; nothing here takes one.
    Datetime(Datetime),
    /// `[1, 2]`, and all `[[name]]` tables of one name.
    Array(Vec<Spanned<Value>>),
    /// `[name]`, `{ a = 1 }`, and what a dotted key implies.
    Table(Table),
}

impl Value {
    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(text) = self { Some(text) } else { None }
    }

    /// The elements, if it is an array.
    pub fn as_array(&self) -> Option<&[Spanned<Value>]> {
        if let Value::Array(elements) = self { Some(elements) } else { None }
    }

    /// The table, if it is one.
    pub fn as_table(&self) -> Option<&Table> {
        if let Value::Table(table) = self { Some(table) } else { None }
    }

    /// The table to change, if it is one.
    pub fn as_table_mut(&mut self) -> Option<&mut Table> {
        if let Value::Table(table) = self { Some(table) } else { None }
    }

    /// What it is, in words that follow "found".
    pub fn kind(&self) -> &'static str {
        match self {
            Value::String(_) => "a string",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a fraction",
            Value::Boolean(_) => "true or false",
            Value::Datetime(_) => "a date",
            Value::Array(_) => "an array",
            Value::Table(_) => "a table",
        }
    }
}

/// Keys and values in the order of the file; no key twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table(Vec<(Spanned<String>, Spanned<Value>)>);

impl Table {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Spanned<Value>> {
        self.entry(key).map(|(_, value)| value)
    }

    /// The value of a key, to change.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Spanned<Value>> {
        self.0.iter_mut().find(|(known, _)| known.get_ref() == key).map(|(_, value)| value)
    }

    /// A key as written, and its value.
    pub fn entry(&self, key: &str) -> Option<&(Spanned<String>, Spanned<Value>)> {
        self.0.iter().find(|(known, _)| known.get_ref() == key)
    }

    /// Takes a key out, the others keep their order.
    pub fn remove(&mut self, key: &str) -> Option<(Spanned<String>, Spanned<Value>)> {
        let index = self.0.iter().position(|(known, _)| known.get_ref() == key)?;
        Some(self.0.remove(index))
    }

    /// Adds a key at the end; the caller has seen that it is not there.
    pub fn push(&mut self, key: Spanned<String>, value: Spanned<Value>) {
        self.0.push((key, value));
    }

    /// All entries, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, (Spanned<String>, Spanned<Value>)> {
        self.0.iter()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(Spanned<String>, Spanned<Value>)> for Table {
    fn from_iter<I: IntoIterator<Item = (Spanned<String>, Spanned<Value>)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

impl IntoIterator for Table {
    type Item = (Spanned<String>, Spanned<Value>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Table {
    type Item = &'a (Spanned<String>, Spanned<Value>);
    type IntoIter = std::slice::Iter<'a, (Spanned<String>, Spanned<Value>)>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl From<Table> for Value {
    fn from(table: Table) -> Self {
        Value::Table(table)
    }
}
