//! A merged policy as TOML again, with the origin of every line.

use crate::document::source::Sources;
use crate::document::value::{Table, Value};
use serde_spanned::Spanned;
use std::fmt::Write;
use std::ops::Range;

/// Writes a merged tree as one file; reading it gives the same tree.
pub(super) fn print(merged: &Table, sources: &Sources) -> String {
    Printer { sources, out: String::new() }.policy(merged)
}

struct Printer<'a> {
    sources: &'a Sources,
    out: String,
}

impl Printer<'_> {
    fn policy(mut self, top: &Table) -> String {
        // Plain keys go before all headers, or they would belong to the last of them.
        let is_header = |value: &Value| value.as_table().is_some() || is_tables(value);
        for (key, value) in top.iter().filter(|(_, value)| !is_header(value.get_ref())) {
            self.key(&[key.get_ref()], value);
        }
        for (key, value) in top.iter().filter(|(_, value)| is_header(value.get_ref())) {
            match value.get_ref() {
                Value::Table(rules) if key.get_ref() == "rules" => {
                    rules.iter().for_each(|(name, rule)| self.headed(&["rules", name.get_ref()], name, rule));
                }
                _ => self.headed(&[key.get_ref()], key, value),
            }
        }
        self.out
    }

    /// A table, or each table of an array, under its header.
    fn headed(&mut self, path: &[&str], key: &Spanned<String>, value: &Spanned<Value>) {
        let header = dotted(path);
        match value.get_ref() {
            Value::Table(table) => {
                self.blank();
                self.line(&format!("[{header}]"), key.span());
                table.iter().for_each(|(key, value)| self.key(&[key.get_ref()], value));
            }
            Value::Array(elements) => {
                for element in elements {
                    self.blank();
                    self.line(&format!("[[{header}]]"), element.span());
                    let table = element.get_ref().as_table().into_iter().flat_map(Table::iter);
                    table.for_each(|(key, value)| self.key(&[key.get_ref()], value));
                }
            }
            Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {
                self.key(path, value);
            }
        }
    }

    /// One line for each value: those of a table may come from several files.
    fn key(&mut self, path: &[&str], value: &Spanned<Value>) {
        match value.get_ref() {
            Value::Table(table) if !table.is_empty() => {
                for (key, value) in table {
                    self.key(&[path, &[key.get_ref()]].concat(), value);
                }
            }
            plain => self.line(&format!("{} = {}", dotted(path), inline(plain)), value.span()),
        }
    }

    fn line(&mut self, text: &str, span: Range<usize>) {
        let origin = self.sources.locate(span).map(|place| format!("  # {}:{}", place.file, place.line));
        // A line break in a file's name would end the comment.
        let origin = origin.unwrap_or_default().replace(char::is_control, "?");
        let _ = writeln!(self.out, "{text:<48}{origin}");
    }

    fn blank(&mut self) {
        if !self.out.is_empty() {
            self.out.push('\n');
        }
    }
}

fn is_tables(value: &Value) -> bool {
    let tables = |elements: &[Spanned<Value>]| elements.iter().all(|element| element.get_ref().as_table().is_some());
    value.as_array().is_some_and(|elements| !elements.is_empty() && tables(elements))
}

fn dotted(path: &[&str]) -> String {
    let is_bare =
        |key: &str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let keys: Vec<String> = path.iter().map(|key| if is_bare(key) { (*key).to_owned() } else { quoted(key) }).collect();
    keys.join(".")
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Integer(integer) => integer.to_string(),
        // `{:?}` keeps the point of 1.0; TOML writes NaN in small letters.
        Value::Float(float) => format!("{float:?}").replace("NaN", "nan"),
        Value::Boolean(boolean) => boolean.to_string(),
        Value::Datetime(datetime) => datetime.to_string(),
        Value::Array(elements) => {
            let elements: Vec<String> = elements.iter().map(|element| inline(element.get_ref())).collect();
            format!("[{}]", elements.join(", "))
        }
        Value::Table(table) if table.is_empty() => "{}".into(),
        Value::Table(table) => {
            let entry = |(key, value): &(Spanned<String>, Spanned<Value>)| {
                format!("{} = {}", dotted(&[key.get_ref()]), inline(value.get_ref()))
            };
            format!("{{ {} }}", table.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
    }
}

/// A basic string: always on one line.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            character if character.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(character));
            }
            character => out.push(character),
        }
    }
    out.push('"');
    out
}
