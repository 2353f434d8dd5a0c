//! From a tree to a struct, with every problem told at once and in an operator's words.

use crate::document::deserialize::{Fault, Kind, Node, PassedOver, Step, descend};
use crate::document::source::Sources;
use crate::document::value::Value;
use crate::problem::{Problem, Problems, did_you_mean};
use serde::de::DeserializeOwned;
use serde_spanned::Spanned;
use std::ops::Range;

/// Reads a value into a type that says `deny_unknown_fields`, and reports all that does not fit, each at its place.
///
/// `context` is the header the value stands under, such as `[limits]` or `[[listener]]`, and empty for a whole file. Fields
/// may be `Spanned<T>`. Where a type's own message (`serde::de::Error::custom`) has a line break, what follows is the help.
///
/// `None` if anything was wrong, even if the rest could be read. Of several keys missing in one table only the first is told.
pub fn read<T: DeserializeOwned>(
    value: &Spanned<Value>,
    context: &str,
    sources: &Sources,
    problems: &mut Problems,
) -> Option<T> {
    let before = problems.0.len();
    let read = recover(value, context, sources, problems);
    read.filter(|_| problems.0.len() == before)
}

/// Like [`read`], but gives what is left when all that is wrong is passed over: for finding more problems, not for use.
///
/// Deserializes, notes the fault, and deserializes again without the entry at fault, until nothing is wrong.
pub fn recover<T: DeserializeOwned>(
    value: &Spanned<Value>,
    context: &str,
    sources: &Sources,
    problems: &mut Problems,
) -> Option<T> {
    let mut passed_over = PassedOver::new();
    for _ in 0..MOST {
        let fault = match T::deserialize(Node { value, passed_over: &passed_over }) {
            Ok(read) => return Some(read),
            Err(fault) => Place::of(fault, value),
        };
        // A fault that comes again would come for ever.
        if passed_over.contains(&std::ptr::from_ref(fault.value)) {
            return None;
        }
        if !fault.follows(&passed_over) {
            problems.push(fault.problem(context).at(sources.locate(fault.span.clone())));
        }
        if fault.path.is_empty() {
            return None;
        }
        passed_over.insert(std::ptr::from_ref(fault.value));
    }
    problems.push(Problem::new(format!("more than {MOST} problems: the rest is not told")));
    None
}

/// After so many the operator has enough to do; it also bounds the work.
const MOST: usize = 200;

/// A fault, found again in the tree.
struct Place<'a> {
    kind: Kind,
    /// From the outermost step to the innermost.
    path: Vec<Step>,
    /// What is at fault; passed over the next time.
    value: &'a Spanned<Value>,
    /// What to point at.
    span: Range<usize>,
}

impl<'a> Place<'a> {
    fn of(fault: Fault, root: &'a Spanned<Value>) -> Self {
        let mut path: Vec<Step> = fault.path.into_iter().rev().collect();
        // A flattened or tagged type notices an unknown key only when its table is read: the key is one step further.
        if let Kind::UnknownKey { name, .. } = &fault.kind
            && path.last() != Some(&Step::Key(name.clone()))
        {
            path.push(Step::Key(name.clone()));
        }
        let mut value = root;
        let mut key = None;
        let mut found = 0;
        for step in &path {
            let Some((its_key, child)) = descend(value, step) else { break };
            (key, value) = (its_key, child);
            found += 1;
        }
        path.truncate(found);
        let span = match (&fault.kind, key) {
            (Kind::UnknownKey { .. }, Some(key)) => key.span(),
            _ => value.span(),
        };
        Self { kind: fault.kind, path, value, span }
    }

    /// Whether this is only because something was passed over.
    fn follows(&self, passed_over: &PassedOver) -> bool {
        let is_passed_over = |value: &Spanned<Value>| passed_over.contains(&std::ptr::from_ref(value));
        match (&self.kind, self.value.get_ref()) {
            // Its key was there with a wrong value, or misspelt.
            (Kind::MissingKey(name), Value::Table(table)) => table.iter().any(|(key, value)| {
                is_passed_over(value) && (key.get_ref() == name || did_you_mean(key.get_ref(), [*name]).is_some())
            }),
            (Kind::Mismatch { .. } | Kind::Other(_) | Kind::UnknownValue { .. } | Kind::MissingKey(_), _) => {
                any_below(self.value, &is_passed_over)
            }
            (Kind::UnknownKey { .. }, _) => false,
        }
    }

    fn problem(&self, context: &str) -> Problem {
        let here = || entry_name(context, &self.path);
        match &self.kind {
            Kind::UnknownKey { name, known } => {
                let table = self.path.split_last().map_or(&[][..], |(_, parents)| parents);
                let table = match table_name(context, table).as_str() {
                    "" => String::new(),
                    header => format!(" in {header}"),
                };
                Problem::new(format!("unknown key `{name}`{table}")).help(
                    match did_you_mean(name, known.iter().copied()) {
                        Some(meant) => format!("did you mean `{meant}`?"),
                        None if known.is_empty() => "no key is known here".into(),
                        None => format!("known keys: {}", known.join(", ")),
                    },
                )
            }
            Kind::UnknownValue { name, known } => {
                let problem = Problem::new(format!("unknown value {name:?} for {}", here()));
                problem.help(match did_you_mean(name, known.iter().copied()) {
                    Some(meant) => format!("did you mean {meant:?}? (known: {})", known.join(", ")),
                    None => format!("known: {}", known.join(", ")),
                })
            }
            Kind::MissingKey(name) => match table_name(context, &self.path).as_str() {
                "" => Problem::new(format!("`{name}` is missing")),
                header => Problem::new(format!("`{name}` is missing in {header}")),
            },
            Kind::Mismatch { found, expected } => {
                Problem::new(format!("{}: expected {expected}, found {found}", here()))
            }
            Kind::Other(message) => {
                let (what, help) = message.split_once('\n').unwrap_or((message, ""));
                let problem = Problem::new(format!("{}: {what}", here()));
                if help.is_empty() { problem } else { problem.help(help) }
            }
        }
    }
}

fn any_below(value: &Spanned<Value>, is: &impl Fn(&Spanned<Value>) -> bool) -> bool {
    let here_or_below = |child: &Spanned<Value>| is(child) || any_below(child, is);
    match value.get_ref() {
        Value::Table(table) => table.iter().any(|(_, child)| here_or_below(child)),
        Value::Array(elements) => elements.iter().any(here_or_below),
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => false,
    }
}

/// "`bind` in [[listener]]", "entry 2 of `servers` in [upstream.synapse]".
fn entry_name(context: &str, path: &[Step]) -> String {
    match path.split_last() {
        Some((Step::Key(key), table)) => match table_name(context, table).as_str() {
            "" => format!("`{key}`"),
            header => format!("`{key}` in {header}"),
        },
        Some((Step::Index(index), array)) => format!("entry {} of {}", index + 1, entry_name(context, array)),
        None if context.is_empty() => "the file".into(),
        None => context.to_owned(),
    }
}

/// The header that a table stands under, or would: "[upstream.synapse]", "[[listener]]"; empty for a whole file.
fn table_name(context: &str, path: &[Step]) -> String {
    let mut dotted = context.trim_start_matches('[').trim_end_matches(']').to_owned();
    let mut repeated = context.starts_with("[[");
    for step in path {
        match step {
            Step::Key(key) if dotted.is_empty() => dotted.push_str(key),
            Step::Key(key) => {
                dotted.push('.');
                dotted.push_str(key);
            }
            Step::Index(_) => {}
        }
        repeated = matches!(step, Step::Index(_));
    }
    match (dotted.is_empty(), repeated) {
        (true, _) => dotted,
        (false, true) => format!("[[{dotted}]]"),
        (false, false) => format!("[{dotted}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Period, Size};
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rule {
        mode: Option<Spanned<Mode>>,
        client: Spanned<Access>,
        #[serde(default)]
        notary: Option<Notary>,
        names: Option<Vec<Spanned<String>>>,
        answer: Option<Answer>,
        wait: Option<Period>,
        most: Option<Size>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        Enforce,
        Report,
        Off,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Access {
        Open,
        Token,
        Deny,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Notary {
        Direct,
        Rewrite(String),
        Replace {
            #[serde(rename = "with")]
            _with: String,
        },
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Answer {
        status: Spanned<u16>,
        errcode: Spanned<String>,
    }

    fn try_read<T: DeserializeOwned>(text: &str) -> (Option<T>, Vec<String>, Sources) {
        let (mut sources, mut problems) = (Sources::default(), Problems::default());
        let tree = sources.parse("p.toml", text, &mut problems);
        let rule = tree.get_ref().get("rules").unwrap().get_ref().as_table().unwrap().get("x").unwrap().clone();
        let value = read(&rule, "[rules.x]", &sources, &mut problems);
        problems.0.sort();
        let told = problems.0.iter().map(ToString::to_string).collect();
        (value, told, sources)
    }

    fn told(text: &str) -> Vec<String> {
        let (rule, told, _) = try_read::<Rule>(text);
        assert_eq!(rule.is_none(), !told.is_empty());
        told
    }

    #[test]
    fn a_rule_keeps_the_places_of_its_values() {
        let text = "[rules.x]\nclient = \"token\"\nmode = \"report\"\nnames = [\"a\", \"b\"]\n\
                    notary = { rewrite = \"n\" }\nanswer = { status = 403, errcode = \"M_FORBIDDEN\" }\nmost = 10\nwait = \"1s\"\n";
        let (rule, told, sources) = try_read::<Rule>(text);
        let rule = rule.unwrap_or_else(|| panic!("{told:?}"));
        let line = |span| sources.locate(span).unwrap().line;
        assert_eq!((rule.client.get_ref(), line(rule.client.span())), (&Access::Token, 2));
        assert_eq!(rule.mode.as_ref().map(|mode| (mode.get_ref(), line(mode.span()))), Some((&Mode::Report, 3)));
        let names = rule.names.unwrap();
        assert_eq!(sources.locate(names[1].span()).map(|place| (place.line, place.column)), Some((4, 15)));
        assert_eq!(rule.notary, Some(Notary::Rewrite("n".into())));
        let answer = rule.answer.unwrap();
        assert_eq!((*answer.status.get_ref(), line(answer.status.span())), (403, 6));
        assert_eq!(answer.errcode.get_ref(), "M_FORBIDDEN");
        assert_eq!((rule.wait, rule.most), (Some(Period::seconds(1)), Some(Size::bytes(10))));
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = "[rules.x]\nclient = \"tokken\"\nmdoe = \"off\"\nnames = [\"a\", 2, \"b\", true]\nwait = 10\n\
                    most = \"64 potatoes\"\nnotary = { rewrit = \"n\" }\n\n[rules.x.answer]\nstatus = 99999\ncode = 1\n";
        assert_eq!(
            told(text),
            [
                "p.toml:2:10: unknown value \"tokken\" for `client` in [rules.x]\n    \
                 help: did you mean \"token\"? (known: open, token, deny)",
                "p.toml:3:1: unknown key `mdoe` in [rules.x]\n    help: did you mean `mode`?",
                "p.toml:4:15: entry 2 of `names` in [rules.x]: expected a string, found 2",
                "p.toml:4:23: entry 4 of `names` in [rules.x]: expected a string, found true",
                "p.toml:5:8: `wait` in [rules.x]: 10 has no unit\n    \
                 help: write \"10s\" for seconds, \"10ms\" for milliseconds",
                "p.toml:6:8: `most` in [rules.x]: \"64 potatoes\" is not a size\n    \
                 help: write a number and a unit: \"512B\", \"64KiB\", \"50MiB\"",
                "p.toml:7:10: unknown value \"rewrit\" for `notary` in [rules.x]\n    \
                 help: did you mean \"rewrite\"? (known: direct, rewrite, replace)",
                "p.toml:10:10: `status` in [rules.x.answer]: expected a whole number from 0 to 65535, found 99999",
                "p.toml:11:1: unknown key `code` in [rules.x.answer]\n    help: known keys: status, errcode",
            ]
        );
    }

    #[test]
    fn a_missing_key_is_told_unless_it_was_misspelt_or_wrong() {
        assert_eq!(told("[rules.x]\n"), ["p.toml:1:1: `client` is missing in [rules.x]"]);
        assert_eq!(
            told("[rules.x]\nclinet = \"open\"\n"),
            ["p.toml:2:1: unknown key `clinet` in [rules.x]\n    help: did you mean `client`?"]
        );
        assert_eq!(told("[rules.x]\nclient = 5\n"), ["p.toml:2:10: `client` in [rules.x]: expected a string, found 5"]);
        // What lacks in one table does not hide what is wrong in the next.
        assert_eq!(
            told("[rules.x]\nanswer = { status = 1 }\nnames = \"a\"\nclient = \"open\"\n"),
            [
                "p.toml:2:10: `errcode` is missing in [rules.x.answer]",
                "p.toml:3:9: `names` in [rules.x]: expected an array, found \"a\"",
            ]
        );
    }

    #[test]
    fn a_variant_is_told_what_it_needs() {
        let rule = |notary: &str| told(&format!("[rules.x]\nclient = \"open\"\nnotary = {notary}\n"));
        assert_eq!(rule("\"direct\""), [""; 0]);
        assert_eq!(rule("{ replace = { with = \"a\" } }"), [""; 0]);
        let help = "\n    help: write { rewrite = … }";
        assert_eq!(
            rule("\"rewrite\""),
            [format!("p.toml:3:10: `notary` in [rules.x]: \"rewrite\" needs a value{help}")]
        );
        assert_eq!(rule("{ direct = 1 }").len(), 1);
        assert_eq!(rule("{}"), ["p.toml:3:10: `notary` in [rules.x]: expected exactly one key"]);
        assert_eq!(rule("7"), ["p.toml:3:10: `notary` in [rules.x]: expected a string, found 7"]);
        let missing = "p.toml:3:22: `with` is missing in [rules.x.notary.replace]";
        assert_eq!(rule("{ replace = {} }"), [missing]);
    }

    #[test]
    fn a_table_written_as_an_array_is_refused() {
        assert_eq!(
            told("[rules.x]\nclient = \"open\"\nanswer = [403, \"M_FORBIDDEN\"]\n"),
            ["p.toml:3:10: `answer` in [rules.x]: expected a table, found an array"]
        );
        assert_eq!(
            told("[[rules.x]]\nclient = \"open\"\n"),
            ["p.toml:1:1: [rules.x]: expected a table, found an array"]
        );
    }

    #[test]
    fn a_check_of_a_whole_table_is_silent_about_what_was_told() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields, try_from = "Both")]
        struct Either;
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Both {
            path: Option<String>,
            endpoint: Option<String>,
        }
        impl TryFrom<Both> for Either {
            type Error = &'static str;

            fn try_from(both: Both) -> Result<Self, Self::Error> {
                let one = both.path.is_some() != both.endpoint.is_some();
                one.then_some(Either).ok_or("names neither path nor endpoint\nwrite one of them")
            }
        }
        #[derive(Debug, Deserialize)]
        struct Rule {
            #[serde(rename = "endpoints")]
            _endpoints: Vec<Either>,
        }
        let text = "[rules.x]\nendpoints = [\n{ path = 1 },\n{},\n{ path = \"a\" },\n{ endpint = \"a\" }]\n";
        assert_eq!(
            try_read::<Rule>(text).1,
            [
                "p.toml:3:10: `path` in [[rules.x.endpoints]]: expected a string, found 1",
                "p.toml:4:1: entry 2 of `endpoints` in [rules.x]: names neither path nor endpoint\n    \
                 help: write one of them",
                "p.toml:6:3: unknown key `endpint` in [[rules.x.endpoints]]\n    help: did you mean `endpoint`?",
            ]
        );
    }

    #[test]
    fn an_endless_list_of_problems_ends() {
        let keys: String = (0..1000).map(|n| format!("k{n} = 1\n")).collect();
        let told = told(&format!("[rules.x]\nclient = \"open\"\n{keys}"));
        assert_eq!(told.len(), MOST + 1);
        assert!(told.iter().any(|told| told.starts_with("more than 200 problems")));
    }
}
