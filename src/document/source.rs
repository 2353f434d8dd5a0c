//! The texts that were read, and where in them a thing stands.

use crate::document::value::{Table, Value};
use crate::problem::{Location, Problem, Problems};
use serde_spanned::Spanned;
use std::collections::HashSet;
use std::io::Read;
use std::num::IntErrorKind;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use toml::de::{DeTable, DeValue};

/// All texts that make up one configuration.
///
/// Each has its own stretch of one long line of byte offsets, so a span tells the file too, also after trees of several
/// files were merged. A clone shares the texts.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    texts: Vec<Arc<Text>>,
}

impl Sources {
    /// Parses one text, keeps it, and reports every syntax error in it.
    ///
    /// Where there are some, the tree is what could be understood: good for finding more problems, not for use.
    pub fn parse(&mut self, name: &str, text: impl Into<String>, problems: &mut Problems) -> Spanned<Table> {
        let text = Arc::new(Text::new(name, text.into(), self.end()));
        self.texts.push(Arc::clone(&text));
        // One mistake often upsets the rest of its line; the first error of a line is the one that helps.
        let mut lines = HashSet::new();
        let mut readable = text.text.clone();
        // The parser gives up at a key without `=`, so it is asked again without that line.
        for _ in 0..MOST {
            let (_, errors) = DeTable::parse_recoverable(&readable);
            let mut unreadable = None;
            for error in errors {
                let span = error.span().unwrap_or(text.text.len()..text.text.len());
                let location = text.location(span.start);
                if error.message().starts_with("key with no value") {
                    unreadable = Some(location.line);
                }
                if lines.insert(location.line) {
                    problems.push(text.syntax(error.message(), span).at(Some(location)));
                }
            }
            let Some(line) = unreadable else { break };
            let blank = readable.split_inclusive('\n').zip(1..);
            readable = blank.map(|(text, n)| if n == line { blanked(text) } else { text.to_owned() }).collect();
        }
        let (tree, _) = DeTable::parse_recoverable(&readable);
        let mut rebase = Rebase { text: &text, problems };
        Spanned::new(rebase.span(tree.span()), rebase.table(tree.into_inner()))
    }

    /// The place where a span starts; `None` for a span that is not of these texts, such as a default's `0..0`.
    pub fn locate(&self, span: Range<usize>) -> Option<Location> {
        let after = self.texts.partition_point(|text| text.base <= span.start);
        let text = self.texts.get(after.checked_sub(1)?)?;
        let offset = span.start - text.base;
        (offset <= text.text.len()).then(|| text.location(offset))
    }

    /// The texts, in the order in which they were read.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(|text| text.text.as_str())
    }

    fn end(&self) -> usize {
        // From 1, so that 0 is nowhere; one offset between two texts, so that the end of the first is not in the second.
        self.texts.last().map_or(1, |text| text.base + text.text.len() + 1)
    }
}

/// Reads a file that the operator named.
///
/// # Errors
/// One problem that names the file: missing, a directory, unreadable, too large, or not UTF-8.
pub fn read_file(path: &Path) -> Result<String, Problem> {
    let name = path.display();
    let fault = |error: std::io::Error| {
        Problem::new(match error.kind() {
            std::io::ErrorKind::NotFound => format!("{name} does not exist"),
            std::io::ErrorKind::PermissionDenied => format!("{name} may not be read by this user"),
            std::io::ErrorKind::IsADirectory => format!("{name} is a directory, not a file"),
            _ => format!("{name} cannot be read: {error}"),
        })
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(fault)?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(fault)?;
    if bytes.len() as u64 > LARGEST {
        return Err(Problem::new(format!("{name} is larger than {LARGEST} bytes: surely not a configuration")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        Problem::new(format!("{name} is not UTF-8 (line {line})")).help("save the file in the encoding UTF-8")
    })
}

/// The same length in bytes, so that places stay; also the line break that ended it.
fn blanked(line: &str) -> String {
    let end = if line.ends_with('\n') { "\n" } else { "" };
    " ".repeat(line.len() - end.len()) + end
}

/// So many lines without `=` are told in one go.
const MOST: usize = 100;

/// No configuration is so large, but what is not a file may never end.
const LARGEST: u64 = 16 * 1024 * 1024;

/// One text and its stretch.
#[derive(Debug)]
struct Text {
    name: String,
    base: usize,
    text: String,
    /// Where each line starts.
    lines: Vec<usize>,
}

impl Text {
    fn new(name: &str, text: String, base: usize) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name: name.to_owned(), base, text, lines }
    }

    fn location(&self, offset: usize) -> Location {
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or(0);
        // The byte order mark that some editors write is no character to whoever counts columns.
        let rest = self.text.get(start..).unwrap_or_default().char_indices();
        let before = rest.take_while(|(at, _)| start + at < offset);
        let column = 1 + before.filter(|(at, character)| (start + at, *character) != (0, '\u{feff}')).count();
        Location { file: self.name.clone(), line, column }
    }
}

impl Text {
    /// The parser's message, in an operator's words where it speaks of its grammar.
    fn syntax(&self, message: &str, span: Range<usize>) -> Problem {
        let message = message.trim_end_matches(", expected nothing").replace('\n', " ");
        let line = self.text.get(span.start..).and_then(|rest| rest.lines().next()).unwrap_or_default().trim();
        let what = message.split(',').next().unwrap_or_default();
        match what {
            "string values must be quoted" if line.is_empty() || line.starts_with('#') => {
                Problem::new("a value is missing")
            }
            "string values must be quoted" => Problem::new("a string needs quotes"),
            "duplicate key" => match self.text.get(span) {
                Some(key) => Problem::new(format!("duplicate key `{key}`")),
                None => Problem::new(message),
            },
            _ if what.starts_with("invalid ") && what.ends_with(" string") => Problem::new("a string is not closed"),
            _ if what.starts_with("invalid ") => {
                Problem::new(message).help("if it is meant as a string, it needs quotes")
            }
            _ => Problem::new(message),
        }
    }
}

/// Moves a parsed tree to its text's stretch, and makes it own what it says.
struct Rebase<'a> {
    text: &'a Text,
    problems: &'a mut Problems,
}

impl Rebase<'_> {
    fn span(&self, span: Range<usize>) -> Range<usize> {
        span.start + self.text.base..span.end + self.text.base
    }

    fn table(&mut self, table: DeTable<'_>) -> Table {
        table
            .into_iter()
            .map(|(key, value)| {
                (Spanned::new(self.span(key.span()), key.into_inner().into_owned()), self.spanned(value))
            })
            .collect()
    }

    fn spanned(&mut self, value: Spanned<DeValue<'_>>) -> Spanned<Value> {
        let span = value.span();
        let value = match value.into_inner() {
            DeValue::String(text) => Value::String(text.into_owned()),
            DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(integer) => Value::Integer(integer),
                // All else that is no number is a syntax error already.
                Err(error) if !matches!(error.kind(), IntErrorKind::PosOverflow | IntErrorKind::NegOverflow) => {
                    Value::Integer(0)
                }
                Err(_) => {
                    let location = self.text.location(span.start);
                    self.problems.push(Problem::new("this number is too large").at(Some(location)));
                    Value::Integer(0)
                }
            },
            DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(boolean) => Value::Boolean(boolean),
            DeValue::Datetime(datetime) => Value::Datetime(datetime),
            DeValue::Array(array) => Value::Array(array.into_iter().map(|value| self.spanned(value)).collect()),
            DeValue::Table(table) => Value::Table(self.table(table)),
        };
        Spanned::new(self.span(span), value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(sources: &Sources, span: Range<usize>) -> (String, usize, usize) {
        let location = sources.locate(span).unwrap();
        (location.file, location.line, location.column)
    }

    fn value_span(table: &Spanned<Table>, key: &str) -> Range<usize> {
        table.get_ref().get(key).unwrap().span()
    }

    #[test]
    fn a_span_tells_its_file() {
        let (mut sources, mut problems) = (Sources::default(), Problems::default());
        let first = sources.parse("first.toml", "a = 1\n", &mut problems);
        let second = sources.parse("second.toml", "\nb = { c = [1, 'x'] }\n", &mut problems);
        let third = sources.parse("third.toml", "", &mut problems);
        assert!(problems.is_empty());
        assert_eq!(place(&sources, value_span(&first, "a")), ("first.toml".into(), 1, 5));
        assert_eq!(place(&sources, value_span(&second, "b")), ("second.toml".into(), 2, 5));
        let c = second.get_ref().get("b").unwrap().get_ref().as_table().unwrap().get("c").unwrap();
        assert_eq!(place(&sources, c.get_ref().as_array().unwrap()[1].span()), ("second.toml".into(), 2, 15));
        assert_eq!(place(&sources, third.span()), ("third.toml".into(), 1, 1));
        assert_eq!(sources.locate(0..0), None);
        assert_eq!(sources.locate(1000..1001), None);
    }

    #[test]
    fn columns_count_characters_and_lines_may_end_in_crlf() {
        let (mut sources, mut problems) = (Sources::default(), Problems::default());
        let text = "\u{feff}x = 1\r\n'schlüssel 🗝' = 2\r\ny = 3\r\n";
        let tree = sources.parse("a.toml", text, &mut problems);
        assert!(problems.is_empty(), "{problems}");
        assert_eq!(place(&sources, value_span(&tree, "x")), ("a.toml".into(), 1, 5));
        assert_eq!(place(&sources, value_span(&tree, "schlüssel 🗝")), ("a.toml".into(), 2, 17));
        assert_eq!(place(&sources, value_span(&tree, "y")), ("a.toml".into(), 3, 5));
    }

    #[test]
    fn every_syntax_error_is_told_with_its_line() {
        let (mut sources, mut problems) = (Sources::default(), Problems::default());
        let text = "a = \nb = 1\nb = 2\nc 3\nd = 99999999999999999999\ne = 'ok'\nf = \"open\ng = 127.0.0.1\nh = # nothing\n\
                    i = yes\n[j]\n[j]\n";
        sources.parse("a.toml", text, &mut problems);
        problems.0.sort();
        let told: Vec<_> = problems.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "a.toml:1:5: a value is missing",
                "a.toml:3:1: duplicate key `b`",
                "a.toml:4:3: key with no value, expected `=`",
                "a.toml:5:5: this number is too large",
                "a.toml:7:10: a string is not closed",
                "a.toml:8:10: invalid float\n    help: if it is meant as a string, it needs quotes",
                "a.toml:9:5: a value is missing",
                "a.toml:10:5: a string needs quotes",
                "a.toml:12:2: duplicate key `j`",
            ]
        );
    }

    #[test]
    fn what_is_no_file_is_told_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let latin = dir.path().join("latin.toml");
        std::fs::write(&latin, b"# ok\n# caf\xe9\n").unwrap();
        let told = |path: &Path| read_file(path).unwrap_err().what;
        assert!(told(&dir.path().join("none.toml")).ends_with("none.toml does not exist"));
        assert!(told(dir.path()).ends_with("is a directory, not a file"));
        assert!(told(&latin).ends_with("latin.toml is not UTF-8 (line 2)"));
        assert!(told(Path::new("/dev/zero")).contains("surely not a configuration"));
    }
}
