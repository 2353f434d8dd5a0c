//! Policy files: one is read with all that it extends, merged into one tree, and every line keeps its origin.

use crate::config::print::print;
use crate::document::read::read;
use crate::document::source::{Sources, read_file};
use crate::document::value::{Table, Value};
use crate::matrix::Flow;
use crate::policy::compiler::Title;
use crate::problem::{Problem, Problems, did_you_mean};
use crate::rules::{Draft, EgressTable};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_spanned::Spanned;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A policy and its bases, merged; the rules are still tables.
#[derive(Clone, Debug)]
pub struct PolicyFile {
    /// The outermost file as the operator named it, or `built-in balanced`.
    pub name: String,
    /// Every file that was read, the outermost first: what a watcher watches.
    pub files: Vec<PathBuf>,
    /// The texts, to tell the place of a span.
    pub sources: Arc<Sources>,
    /// `[unknown]`.
    pub unknown: Unknown,
    /// `[egress]`.
    pub egress: EgressTable,
    /// `announce_rule`: whether our answers name the rule in `x-mantlet-rule`.
    pub announce: bool,
    /// `[rules.NAME]`, what the outermost file says first. An array holds the tables of a `[[rules.NAME]]`.
    pub rules: Vec<(Spanned<String>, Spanned<Value>)>,
    /// The outermost file's `[[test]]` tables.
    pub tests: Vec<Spanned<Value>>,
    /// Names these texts in logs and metrics: 16 characters.
    pub digest: String,
    merged: Table,
}

/// What becomes of an endpoint that this version does not know, by flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Unknown {
    /// Below `/_matrix/{client,media}`.
    pub client: UnknownPolicy,
    /// Below `/_matrix/{federation,key}`.
    pub federation: UnknownPolicy,
}

/// Whether an unknown endpoint may be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownPolicy {
    /// It passes and is counted, so that new versions of Matrix go on working.
    #[default]
    Pass,
    /// It does not.
    Deny,
}

/// A policy that is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BuiltIn {
    /// Whatever can be closed is.
    Strict,
    /// What a homeserver's users do not notice.
    Balanced,
    /// Only what no client or peer notices.
    Transparent,
}

impl BuiltIn {
    /// All of them.
    pub const ALL: [BuiltIn; 3] = [BuiltIn::Strict, BuiltIn::Balanced, BuiltIn::Transparent];

    /// The one of this name.
    pub fn named(name: &str) -> Option<BuiltIn> {
        Self::ALL.into_iter().find(|built_in| built_in.name() == name)
    }

    /// What `extends` calls it.
    pub fn name(self) -> &'static str {
        match self {
            BuiltIn::Strict => "strict",
            BuiltIn::Balanced => "balanced",
            BuiltIn::Transparent => "transparent",
        }
    }

    /// Its whole text.
    pub fn text(self) -> &'static str {
        match self {
            BuiltIn::Strict => include_str!("../../policies/strict.toml"),
            BuiltIn::Balanced => include_str!("../../policies/balanced.toml"),
            BuiltIn::Transparent => include_str!("../../policies/transparent.toml"),
        }
    }
}

impl fmt::Display for BuiltIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PolicyFile {
    /// Reads a policy file and all that it extends; and what is wrong with it, for its rules can be looked at all the same.
    ///
    /// # Errors
    /// Every problem with reading any of its files.
    pub fn load(path: &Path) -> Result<(PolicyFile, Problems), Problems> {
        let text = read_file(path)?;
        let base_dir = path.parent().unwrap_or(Path::new("")).to_owned();
        let name = path.display().to_string();
        Chain::read(Link { name, text, base_dir: Some(base_dir), path: Some(path.to_owned()) })
    }

    /// Reads a policy that is compiled in.
    ///
    /// # Errors
    /// Never, for the policies that are shipped: a test reads them.
    pub fn built_in(built_in: BuiltIn) -> Result<(PolicyFile, Problems), Problems> {
        Chain::read(Link::built_in(built_in))
    }

    /// Reads a policy from its text; a relative path in `extends` is relative to `base_dir`.
    ///
    /// # Errors
    /// Every problem with reading it, or a file it extends.
    pub fn from_text(name: &str, text: impl Into<String>, base_dir: &Path) -> Result<(PolicyFile, Problems), Problems> {
        let text = text.into();
        Chain::read(Link { name: name.to_owned(), text, base_dir: Some(base_dir.to_owned()), path: None })
    }

    /// The text of the outermost file.
    pub fn text(&self) -> &str {
        self.sources.texts().next().unwrap_or_default()
    }

    /// What it says, for the rules to compile.
    pub fn into_draft(self) -> Draft {
        let unknown =
            [(Flow::Client, "client", self.unknown.client), (Flow::Federation, "federation", self.unknown.federation)];
        let place = |flow: &str| {
            let table = self.merged.get("unknown").and_then(|unknown| unknown.get_ref().as_table());
            table.and_then(|table| table.get(flow)).map_or(0..0, Spanned::span)
        };
        let deny_unknown = unknown
            .into_iter()
            .filter(|(_, _, unknown)| *unknown == UnknownPolicy::Deny)
            .map(|(flow, name, _)| (flow, place(name)))
            .collect();
        let title = Title { name: self.name, digest: self.digest, announce: self.announce };
        Draft { title, deny_unknown, rules: self.rules, egress: self.egress, tests: self.tests }
    }

    /// The merged policy as one TOML file without a base; a comment tells each line's origin.
    pub fn print(&self) -> String {
        print(&self.merged, &self.sources)
    }
}

/// The top level of a merged policy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Top {
    #[serde(rename = "extends")]
    _extends: Option<IgnoredAny>,
    #[serde(default)]
    unknown: Unknown,
    #[serde(default)]
    egress: EgressTable,
    #[serde(default = "yes")]
    announce_rule: bool,
    #[serde(rename = "rules")]
    _rules: Option<IgnoredAny>,
    #[serde(rename = "test")]
    _test: Option<IgnoredAny>,
}

fn yes() -> bool {
    true
}

/// One file of a chain, before it is parsed.
struct Link {
    name: String,
    text: String,
    /// Where its `extends` looks for paths; a built-in policy looks for none.
    base_dir: Option<PathBuf>,
    path: Option<PathBuf>,
}

impl Link {
    fn built_in(built_in: BuiltIn) -> Self {
        Self { name: format!("built-in {built_in}"), text: built_in.text().to_owned(), base_dir: None, path: None }
    }

    /// The file that `extends = "…"` names.
    fn extended(&self, base: &str) -> Result<Link, Problem> {
        if let Some(built_in) = BuiltIn::named(base) {
            return Ok(Link::built_in(built_in));
        }
        let names = || BuiltIn::ALL.map(BuiltIn::name);
        let Some(base_dir) = &self.base_dir else {
            return Err(Problem::new(format!("there is no built-in policy {base:?}")));
        };
        let path = base_dir.join(base);
        let is_word = !base.contains(['/', '.']);
        if base.is_empty() || (is_word && !path.exists()) {
            let help = match did_you_mean(base, names()) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None => format!("write {} or the path of a file", names().join(", ")),
            };
            return Err(Problem::new(format!("there is neither a built-in policy nor a file {base:?}")).help(help));
        }
        let text = read_file(&path)?;
        let base_dir = path.parent().map(Path::to_owned);
        Ok(Link { name: path.display().to_string(), text, base_dir, path: Some(path) })
    }

    /// What makes it the same file, however it was named.
    fn identity(&self) -> String {
        match self.path.as_ref().and_then(|path| std::fs::canonicalize(path).ok()) {
            Some(path) => format!("file {}", path.display()),
            None => self.name.clone(),
        }
    }
}

/// How many files may stand on one another, the outermost included.
const DEEPEST: usize = 8;

/// `[[…]]` tables that a child adds to and does not replace. `peer` is merged, then refused as unknown, until
/// this version can enforce it.
const APPENDED: [&[&str]; 4] =
    [&["rules", "closed_endpoint"], &["rules", "rate_limit"], &["peer"], &["egress", "destination"]];

/// The files read so far, and what they say together.
#[derive(Default)]
struct Chain {
    sources: Sources,
    problems: Problems,
    files: Vec<PathBuf>,
    names: Vec<String>,
    identities: Vec<String>,
    merged: Table,
    tests: Option<(Spanned<String>, Spanned<Value>)>,
}

impl Chain {
    fn read(outermost: Link) -> Result<(PolicyFile, Problems), Problems> {
        let mut chain = Chain::default();
        let name = outermost.name.clone();
        let mut next = Some(outermost);
        while let Some(link) = next {
            next = chain.add(link);
        }
        // What half a file says is no policy, whose rules could be looked at.
        let is_whole = chain.problems.0.is_empty();
        let (file, problems) = chain.finish(name);
        if is_whole { Ok((file, problems)) } else { Err(problems) }
    }

    /// Parses one file, merges it below what is there, and gives the file that it extends.
    fn add(&mut self, link: Link) -> Option<Link> {
        self.files.extend(link.path.clone());
        self.identities.push(link.identity());
        self.names.push(link.name.clone());
        let before = self.problems.0.len();
        let tree = self.sources.parse(&link.name, link.text.as_str(), &mut self.problems);
        let understood = self.problems.0.len() == before;
        let span = tree.span();
        let mut table = tree.into_inner();
        let tests = table.remove("test");
        let extends = table.remove("extends").map(|(_, value)| value);
        if self.names.len() == 1 {
            self.tests = tests;
        }
        let has_rules =
            table.get("rules").is_some_and(|rules| rules.get_ref().as_table().is_none_or(|rules| !rules.is_empty()));
        if understood && extends.is_none() && !has_rules {
            // A file that is being written is empty for a moment; to take it would open everything.
            let problem = Problem::new(format!("{} says nothing: a half-written file?", link.name));
            let problem = problem.help("write extends = \"balanced\", or at least one rule");
            self.problems.push(problem.at(self.sources.locate(span)));
        }
        merge(&mut self.merged, table, &mut Vec::new());
        self.base(&link, &extends?)
    }

    fn base(&mut self, link: &Link, extends: &Spanned<Value>) -> Option<Link> {
        let location = self.sources.locate(extends.span());
        let Value::String(base) = extends.get_ref() else {
            let what = format!("`extends`: expected the name of a policy, found {}", extends.get_ref().kind());
            self.problems.push(Problem::new(what).at(location));
            return None;
        };
        let base = match link.extended(base) {
            Ok(base) => base,
            Err(problem) => {
                self.problems.push(problem.at(location));
                return None;
            }
        };
        let identity = base.identity();
        if let Some(first) = self.identities.iter().position(|known| *known == identity) {
            let circle: Vec<&str> = self.names.iter().skip(first).map(String::as_str).collect();
            let what = format!("policies extend each other in a circle: {} → {}", circle.join(" → "), base.name);
            self.problems.push(Problem::new(what).at(location));
            return None;
        }
        if self.names.len() == DEEPEST {
            let what = format!("more than {DEEPEST} policies extend each other: {}", self.names.join(" → "));
            self.problems.push(Problem::new(what).at(location));
            return None;
        }
        Some(base)
    }

    fn finish(mut self, name: String) -> (PolicyFile, Problems) {
        let mut digest = blake3::Hasher::new();
        for text in self.sources.texts() {
            digest.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        let tests = self.tests();
        let rules = self.rules();
        if let Some((key, value)) = self.tests.take() {
            self.merged.push(key, value);
        }
        if let Some((key, _)) = self.merged.remove("peer") {
            let what = "`peer` cannot be enforced by this version of the gateway";
            self.problems.push(Problem::new(what).at(self.sources.locate(key.span())));
        }
        let merged = Spanned::new(0..0, Value::Table(self.merged.clone()));
        let top: Option<Top> = read(&merged, "", &self.sources, &mut self.problems);
        let top = top.unwrap_or(Top {
            _extends: None,
            unknown: Unknown::default(),
            egress: EgressTable::default(),
            announce_rule: true,
            _rules: None,
            _test: None,
        });
        let file = PolicyFile {
            name,
            files: self.files,
            sources: Arc::new(self.sources),
            unknown: top.unknown,
            egress: top.egress,
            announce: top.announce_rule,
            rules,
            tests,
            digest: digest.finalize().to_hex().chars().take(16).collect(),
            merged: self.merged,
        };
        (file, self.problems)
    }

    /// The rules, each in the one of the two forms that it has.
    fn rules(&mut self) -> Vec<(Spanned<String>, Spanned<Value>)> {
        let Some(rules) = self.merged.get("rules").cloned() else { return Vec::new() };
        let Value::Table(rules) = rules.get_ref() else {
            let what = format!("`rules`: expected tables [rules.NAME], found {}", rules.get_ref().kind());
            self.problems.push(Problem::new(what).at(self.sources.locate(rules.span())));
            return Vec::new();
        };
        let mut kept = Vec::new();
        for (name, value) in rules {
            let rule = name.get_ref();
            let repeated = APPENDED.contains(&&["rules", rule.as_str()][..]);
            let right = match value.get_ref() {
                Value::Table(_) => !repeated,
                Value::Array(elements) => {
                    repeated && elements.iter().all(|element| element.get_ref().as_table().is_some())
                }
                Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {
                    false
                }
            };
            if !right {
                let header = if repeated { format!("[[rules.{rule}]]") } else { format!("[rules.{rule}]") };
                let problem = Problem::new(format!("the rule `{rule}` is written {header}"));
                self.problems.push(problem.at(self.sources.locate(name.span())));
            } else if value.get_ref().as_array().is_none_or(|elements| !elements.is_empty()) {
                kept.push((name.clone(), value.clone()));
            }
        }
        kept
    }

    fn tests(&mut self) -> Vec<Spanned<Value>> {
        match &self.tests {
            None => Vec::new(),
            Some((_, value)) => match value.get_ref() {
                Value::Array(tests) => tests.clone(),
                other => {
                    let what = format!("a test is written [[test]], found {}", other.kind());
                    self.problems.push(Problem::new(what).at(self.sources.locate(value.span())));
                    Vec::new()
                }
            },
        }
    }
}

/// Adds to `child` what only `base` says.
fn merge(child: &mut Table, base: Table, path: &mut Vec<String>) {
    for (key, value) in base {
        let Some(ours) = child.get_mut(key.get_ref()) else {
            child.push(key, value);
            continue;
        };
        path.push(key.into_inner());
        match (ours.get_mut(), value.into_inner()) {
            (Value::Table(ours), Value::Table(theirs)) => merge(ours, theirs, path),
            (Value::Array(ours), Value::Array(theirs)) if APPENDED.iter().any(|appended| *appended == *path) => {
                ours.extend(theirs);
            }
            // The child replaces it.
            _ => {}
        }
        path.pop();
    }
}

#[cfg(test)]
mod tests;
