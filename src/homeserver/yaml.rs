//! YAML with places, read as Synapse's PyYAML reads it: that is YAML 1.1, in which `yes` is true and the last of two equal keys counts.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use crate::problem::{Location, Problem};

/// A value and where it stands. It may be a secret, so there is no `Debug`.
#[derive(Clone)]
pub struct Node {
    /// What it says.
    pub value: Value,
    /// Where it begins.
    pub location: Location,
}

/// What a node says.
#[derive(Clone)]
pub enum Value {
    /// Nothing, `~`, `null`.
    Null,
    /// `true`, `yes`, `on` and their opposites.
    Boolean(bool),
    /// `8008`
    Integer(i64),
    /// All else that is one word or line.
    Text(String),
    /// `[a, b]`
    List(Vec<Node>),
    /// `{a: b}`
    Map(Map),
}

/// Keys and values in the order of the file.
#[derive(Clone, Default)]
pub struct Map(Vec<(Node, Node)>);

/// Reads a text that is one document.
///
/// # Errors
/// It is no YAML, or more than a configuration is. What stands in it is not repeated.
pub fn parse(name: &str, text: &str) -> Result<Node, Problem> {
    let mut reader = Reader { name, open: Vec::new(), anchors: HashMap::new(), nodes: 0, root: None };
    for event in Parser::new_from_str(text.trim_start_matches('\u{feff}')) {
        let (event, span) = event.map_err(|error| reader.syntax(&error))?;
        reader.take(event, span)?;
    }
    let location = Location { file: name.to_owned(), line: 1, column: 1 };
    Ok(reader.root.unwrap_or(Node { value: Value::Null, location }))
}

impl Node {
    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        if let Value::Text(text) = &self.value { Some(text) } else { None }
    }

    /// The number, if it is one that a port can be.
    pub fn as_port(&self) -> Option<u16> {
        if let Value::Integer(number) = &self.value { u16::try_from(*number).ok() } else { None }
    }

    /// The elements, if it is a list.
    pub fn as_list(&self) -> Option<&[Node]> {
        if let Value::List(list) = &self.value { Some(list) } else { None }
    }

    /// The entries, if it is a map.
    pub fn as_map(&self) -> Option<&Map> {
        if let Value::Map(map) = &self.value { Some(map) } else { None }
    }

    /// Whether it says nothing.
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// Whether Python would take it for true.
    pub fn is_true(&self) -> bool {
        match &self.value {
            Value::Null => false,
            Value::Boolean(boolean) => *boolean,
            Value::Integer(number) => *number != 0,
            Value::Text(text) => !text.is_empty(),
            Value::List(list) => !list.is_empty(),
            Value::Map(map) => !map.0.is_empty(),
        }
    }

    /// What it is, in words that follow "is".
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Boolean(_) => "true or false",
            Value::Integer(_) => "a number",
            Value::Text(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// How many nodes it is made of.
    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Boolean(_) | Value::Integer(_) | Value::Text(_) => 0,
            Value::List(list) => list.iter().map(Node::size).sum(),
            Value::Map(map) => map.0.iter().map(|(key, value)| key.size() + value.size()).sum(),
        }
    }
}

impl Map {
    /// The value of a key; `None` for one that says nothing.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|(_, value)| value).filter(|value| !value.is_null())
    }

    /// A key and its value, which may say nothing.
    pub fn entry(&self, key: &str) -> Option<(&Node, &Node)> {
        // The last one counts.
        self.0.iter().rev().find(|(known, _)| known.as_str() == Some(key)).map(|(key, value)| (key, value))
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = (&Node, &Node)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// Puts the entries of another behind its own: where both have a key, the other's counts.
    pub fn extend(&mut self, other: Map) {
        self.0.extend(other.0);
    }
}

/// Makes a tree of what the parser tells.
struct Reader<'a> {
    name: &'a str,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
}

/// A list or a map whose end has not come.
struct Open {
    location: Location,
    anchor: usize,
    what: Collected,
}

enum Collected {
    List(Vec<Node>),
    Map { entries: Map, key: Option<Node> },
}

impl Reader<'_> {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        let location = self.location(&span);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(Problem::new("a second document begins here, and Synapse reads one").at(Some(location)))
            }
            Event::DocumentStart(_) => Ok(()),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(Problem::new("this refers to what it is itself a part of").at(Some(location)));
                };
                let node = Node { value: node.value.clone(), location };
                self.count(node.size())?;
                self.put(node, 0)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let is_plain = style == ScalarStyle::Plain && tag.is_none();
                let value = if is_plain { plain(&text) } else { Value::Text(text.into_owned()) };
                self.put(Node { value, location }, anchor)
            }
            Event::SequenceStart(anchor, _) => self.begin(location, anchor, Collected::List(Vec::new())),
            Event::MappingStart(anchor, _) => {
                self.begin(location, anchor, Collected::Map { entries: Map::default(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                None => Ok(()),
                Some(Open { location, anchor, what }) => {
                    let value = match what {
                        Collected::List(list) => Value::List(list),
                        Collected::Map { entries, .. } => Value::Map(merged(entries)),
                    };
                    self.put(Node { value, location }, anchor)
                }
            },
        }
    }

    fn begin(&mut self, location: Location, anchor: usize, what: Collected) -> Result<(), Problem> {
        if self.open.len() >= DEEPEST {
            return Err(Problem::new(format!("more than {DEEPEST} lists and maps in each other")).at(Some(location)));
        }
        self.open.push(Open { location, anchor, what });
        Ok(())
    }

    /// What an alias stands for counts each time: else a few lines could be more than all memory.
    fn count(&mut self, more: usize) -> Result<(), Problem> {
        self.nodes += more;
        if self.nodes > MOST {
            let what = format!("{} stands for more than {MOST} values: surely not a configuration", self.name);
            return Err(Problem::new(what));
        }
        Ok(())
    }

    /// Gives a node to the list or map that it stands in.
    fn put(&mut self, node: Node, anchor: usize) -> Result<(), Problem> {
        self.count(1)?;
        if anchor != 0 {
            self.count(node.size())?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.what) {
            None => self.root = Some(node),
            Some(Collected::List(list)) => list.push(node),
            Some(Collected::Map { entries, key }) => match key.take() {
                None => *key = Some(node),
                Some(key) => entries.0.push((key, node)),
            },
        }
        Ok(())
    }

    fn location(&self, span: &Span) -> Location {
        Location { file: self.name.to_owned(), line: span.start.line(), column: span.start.col() + 1 }
    }

    fn syntax(&self, error: &ScanError) -> Problem {
        let (line, column) = (error.marker().line(), error.marker().col() + 1);
        // Behind a colon stands what was found.
        let what = error.info().split(':').next().unwrap_or_default();
        let help = match what.starts_with("invalid indentation") {
            true => {
                "indent with spaces, also what goes on in brackets or quotes, though Synapse reads it as it is; and close both"
            }
            false => "indent with spaces, and put into quotes what has a colon or begins with a sign",
        };
        Problem::new(format!("this is no YAML: {what}"))
            .at(Some(Location { file: self.name.to_owned(), line, column }))
            .help(help)
    }
}

/// The entries that `<<` stands for, before those of the map itself: these count where both have a key.
fn merged(Map(entries): Map) -> Map {
    let (merges, own): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(key, _)| key.as_str() == Some("<<"));
    let mut all = Map::default();
    for (_, value) in merges {
        match value.value {
            Value::Map(map) => all.extend(map),
            // The first of several counts.
            Value::List(list) => list.into_iter().rev().for_each(|node| {
                if let Value::Map(map) = node.value {
                    all.extend(map);
                }
            }),
            Value::Null | Value::Boolean(_) | Value::Integer(_) | Value::Text(_) => {}
        }
    }
    all.0.extend(own);
    all
}

/// A word without quotes.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Value::Boolean(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => return Value::Boolean(false),
        _ => {}
    }
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let begins = digits.starts_with(|first: char| first.is_ascii_digit());
    let digits = digits.replace('_', "");
    let number = match digits.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16),
        None if digits.len() > 1 && digits.starts_with('0') => i64::from_str_radix(&digits, 8),
        None => digits.parse(),
    };
    match number {
        Ok(number) if begins => Value::Integer(sign * number),
        Ok(_) | Err(_) => Value::Text(text.to_owned()),
    }
}

/// Values, those behind aliases with them.
const MOST: usize = 500_000;
const DEEPEST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Map {
        match parse("a.yaml", text) {
            Ok(Node { value: Value::Map(map), .. }) => map,
            Ok(_) => panic!("{text:?} is no map"),
            Err(problem) => panic!("{problem}"),
        }
    }

    fn told(text: &str) -> String {
        match parse("a.yaml", text) {
            Ok(_) => panic!("{text:?} was read"),
            Err(problem) => problem.to_string(),
        }
    }

    #[test]
    fn words_are_what_synapse_takes_them_for() {
        let map = read(
            "a: yes\nb: 'yes'\nc: 8_008\nd: 0o17\ne: 0x10\nf: 017\ng: ~\nh:\ni: -3\nj: 1.5\nk: !!str 12\nl: \"\"\n\
             m: 08\nn: |\n  s\n",
        );
        let is = |key: &str| match &map.entry(key).unwrap().1.value {
            Value::Null => "null".to_owned(),
            Value::Boolean(boolean) => format!("{boolean}"),
            Value::Integer(number) => format!("{number}"),
            Value::Text(text) => format!("{text:?}"),
            Value::List(_) | Value::Map(_) => "more".to_owned(),
        };
        let said: Vec<_> = "abcdefghijklmn".chars().map(|key| is(&key.to_string())).collect();
        assert_eq!(
            said,
            [
                "true", "\"yes\"", "8008", "\"0o17\"", "16", "15", "null", "null", "-3", "\"1.5\"", "\"12\"", "\"\"",
                "\"08\"", "\"s\\n\""
            ]
        );
    }

    #[test]
    fn a_place_is_a_line_and_a_column_and_the_last_of_two_keys_counts() {
        let map = read("\u{feff}# head\na: 1\nlist:\n  - x\n  - y: ü\n    z: 2\na: 3\n");
        let (key, value) = map.entry("a").unwrap();
        assert_eq!((key.location.to_string().as_str(), value.as_port()), ("a.yaml:7:1", Some(3)));
        let second = &map.get("list").unwrap().as_list().unwrap()[1];
        assert_eq!(second.as_map().unwrap().get("z").unwrap().location.to_string(), "a.yaml:6:8");
        assert_eq!(map.iter().count(), 3);
    }

    #[test]
    fn aliases_and_merges_stand_for_what_they_name() {
        let map = read("base: &b {x: 1, y: 2}\nother: &o {y: 3, z: 4}\nchild:\n  <<: [*b, *o]\n  x: 5\nsame: *b\n");
        let number = |map: &Map, key: &str| map.get(key).unwrap().as_port();
        let child = map.get("child").unwrap().as_map().unwrap();
        assert_eq!(["x", "y", "z"].map(|key| number(child, key)), [Some(5), Some(2), Some(4)]);
        assert_eq!(number(map.get("same").unwrap().as_map().unwrap(), "x"), Some(1));
    }

    #[test]
    fn what_is_no_yaml_is_told_in_a_line_that_repeats_nothing() {
        for (text, place) in [
            ("a: [hidden\nb: 1\n", "a.yaml:"),
            ("a: \"hidden\n", "a.yaml:"),
            ("a:\n\t- hidden\n", "a.yaml:2:"),
            ("a: hidden: hidden\n", "a.yaml:1:"),
            ("a: *hidden\n", "a.yaml:1:"),
            ("a: @hidden\n", "a.yaml:1:"),
        ] {
            let told = told(text);
            assert!(told.starts_with(place) && told.contains("no YAML") && !told.contains("hidden"), "{told}");
        }
        assert!(told("a: 1\n---\nb: 2\n").contains("a.yaml:2:1: a second document"));
        assert!(told("a: &x [*x]\n").contains("part of"));
    }

    #[test]
    fn lines_that_pyyaml_alone_takes_are_told_of() {
        for (text, place) in [
            ("a: [\nhidden,\nb\n]\n", "a.yaml:2:1"),
            ("a: {\nhidden: 1}\n", "a.yaml:2:1"),
            ("a: \"x\nhidden\"\n", "a.yaml:1:4"),
            ("a: 'x\nhidden'\n", "a.yaml:1:4"),
        ] {
            let told = told(text);
            assert!(told.starts_with(place) && told.contains("invalid indentation"), "{told}");
            assert!(told.contains("though Synapse reads it") && !told.contains("hidden"), "{told}");
        }
        let Value::Map(map) =
            parse("a.yaml", "a: [\n  b,\n]\nc: \"x\n  y\"\n").map(|node| node.value).unwrap_or(Value::Null)
        else {
            panic!("indented, it is read");
        };
        assert_eq!(map.get("c").and_then(Node::as_str), Some("x y"));
    }

    #[test]
    fn a_list_of_many_servers_is_read() {
        let many = format!("federation_domain_whitelist: [{}]\n", "a.example, ".repeat(150_000));
        assert_eq!(
            read(&many).get("federation_domain_whitelist").and_then(Node::as_list).map(<[_]>::len),
            Some(150_000)
        );
    }

    #[test]
    fn no_broken_text_panics() {
        let text = "a: &x {b: [1, 'y', \"z\\n\"]}\nc: |\n  d\n<<: *x\n? e\n: !!str f\n# g\n--- \n- h\n";
        for length in 0..text.len() {
            let _ = parse("a.yaml", &text[..length]);
            for odd in ["\t", "\u{0}", "*", "&", "!", "[", "}", "\"", "%", "\u{feff}", ": "] {
                let _ = parse("a.yaml", &format!("{}{odd}{}", &text[..length], &text[length..]));
            }
        }
    }

    #[test]
    fn neither_a_bomb_of_aliases_nor_a_deep_nest_takes_all_memory() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{}, ", level - 1).repeat(10);
            bomb += &format!("a{level}: &a{level} [{before}]\n");
        }
        assert!(told(&bomb).contains("surely not a configuration"));
        let anchored: String = (0..60).map(|level| format!("&a{level} [")).collect();
        assert!(
            told(&format!("{anchored}{}{}", "x, ".repeat(9_000), "]".repeat(60)))
                .contains("surely not a configuration")
        );
        assert!(told(&"[".repeat(DEEPEST + 1)).contains("in each other"));
        assert!(!told(&"[".repeat(100_000)).is_empty());
    }
}
