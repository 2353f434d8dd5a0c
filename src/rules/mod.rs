//! The registry: one privacy rule a file, in the order in which their gates are tried.

mod access;
mod captcha;
mod closed_endpoint;
mod identity_servers;
mod internal_endpoints;
mod notary;
mod privacy_events;
mod profiles;
mod public_rooms;
mod push;
mod query_tokens;
mod rate_limit;
mod registration;
mod request_headers;
mod response_headers;
mod room_directory;
mod server_banner;
mod threepid_unbind;
mod url_previews;
mod usage_stats;

use std::ops::Range;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use serde_spanned::Spanned;

use crate::document::{Sources, Table, Value, read};
use crate::matrix::{Endpoint, Flow, Host};
use crate::policy::compiler::Title;
use crate::policy::egress::{Destination, Egress, HostPattern, Unlisted, Unread, Way};
use crate::policy::selftest::PolicyTest;
use crate::policy::{Cause, Compiler, Mode, Policy};
use crate::problem::{Problem, Problems, did_you_mean};

/// What a rule's table in a policy becomes: a compiler of that table into instructions.
pub trait Rule {
    /// Puts the rule's instructions into the policy.
    fn compile(&self, to: &mut Compiler<'_>);
}

/// A rule as the registry knows it.
pub struct RuleFile {
    /// Its name: that of its file, and of its table in a policy.
    pub name: &'static str,
    /// The rows of the leak ledger it closes, or closes in part.
    pub ledger: &'static [&'static str],
    /// Its file, whose head tells leak, rule, cost and an example.
    pub source: &'static str,
    read: ReadRule,
}

/// Reads a rule's table, under the header it is written with.
type ReadRule = fn(Spanned<Value>, &str, &Sources, &mut Problems) -> Option<Box<dyn Rule>>;

/// What a policy file says, before it is compiled.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The policy's name and hash.
    pub title: Title,
    /// The flows whose unknown endpoints are refused, with the place that says so.
    pub deny_unknown: Vec<(Flow, Range<usize>)>,
    /// The rules' tables, by name, in the order of the file.
    pub rules: Vec<(Spanned<String>, Spanned<Value>)>,
    /// `[egress]`.
    pub egress: EgressTable,
    /// The policy's own tests.
    pub tests: Vec<Spanned<Value>>,
}

/// `[egress]` of a policy, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EgressTable {
    /// The way of hosts that are not listed.
    default: Option<Spanned<Way>>,
    /// `[[egress.destination]]`.
    destination: Vec<Spanned<DestinationTable>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DestinationTable {
    host: HostPattern,
    action: Way,
    without_authority: Option<Spanned<Unread>>,
    cause: Option<Cause>,
}

impl EgressTable {
    fn resolve(self, sources: &Sources, to: &mut Compiler<'_>) -> Egress {
        let destinations = self.destination.into_iter().map(|table| {
            let (location, span) = (sources.locate(table.span()), table.span());
            let DestinationTable { host, action, without_authority, cause } = table.into_inner();
            let is_name = matches!(host, HostPattern::Exact(Host::Name(_)));
            if action == Way::Intercept && !is_name {
                let what = "a certificate can be made for one name only, and this is an address or a pattern";
                to.problem(span, what, "name each host that is to be looked into");
            }
            if let Some(unread) = without_authority.as_ref().filter(|_| action != Way::Intercept) {
                let what = "`without_authority` is for hosts that are looked into, and this one is not";
                to.problem(unread.span(), what, "action = \"intercept\", or leave it out");
            }
            let without_authority = without_authority.map(Spanned::into_inner);
            Destination { host, way: action, without_authority, cause, location }
        });
        let default_span = self.default.as_ref().map_or(0..0, Spanned::span);
        let default = self.default.map_or_else(Unlisted::default, |way| {
            let location = sources.locate(way.span());
            Unlisted { way: way.into_inner(), location }
        });
        let destinations = destinations.collect();
        if default.way == Way::Intercept {
            let what = "hosts that nobody named cannot be looked into";
            to.problem(default_span, what, "default = \"tunnel\" or \"deny\"");
        }
        Egress { destinations, default }
    }
}

macro_rules! registry {
    ($($name:ident [$($row:literal),*],)*) => {
        /// All rules. `closed_endpoint` is tried first: it is the operator's own word.
        pub const RULES: &[RuleFile] = &[$(RuleFile {
            name: stringify!($name),
            ledger: &[$($row),*],
            source: include_str!(concat!(stringify!($name), ".rs")),
            read: |table, context, sources, problems| {
                let config: $name::Config = read(&table, context, sources, problems)?;
                Some(Box::new(config))
            },
        },)*];
    };
}

registry! {
    closed_endpoint [],
    internal_endpoints ["L25"],
    rate_limit [],
    registration ["L24"],
    public_rooms ["L01", "L02"],
    profiles ["L03", "L04"],
    room_directory ["L27"],
    threepid_unbind ["L05", "L06"],
    identity_servers ["L07", "L08"],
    push ["L16"],
    url_previews ["L21"],
    captcha ["L32"],
    usage_stats ["L20"],
    request_headers ["L09"],
    query_tokens ["L28"],
    server_banner ["L11"],
    notary ["L12", "L13"],
    response_headers [],
    privacy_events ["L31"],
}

/// The rule of that name.
pub fn find(name: &str) -> Option<&'static RuleFile> {
    RULES.iter().find(|rule| rule.name == name)
}

impl RuleFile {
    /// The head of the rule's file: what it hides, from whom, what it does, what it costs, and an example.
    pub fn head(&self) -> String {
        let lines = self.source.lines().map_while(|line| line.strip_prefix("//!"));
        lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }

    /// The first line of the head.
    pub fn summary(&self) -> String {
        self.head().lines().next().unwrap_or_default().to_owned()
    }

    /// The example of the head: TOML that is the rule's own table.
    pub fn example(&self) -> String {
        let head = self.head();
        let example = head.split_once("Example:").map_or("", |(_, example)| example);
        example.lines().map(|line| line.strip_prefix("    ").unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }
}

/// Compiles what a policy file says.
///
/// # Errors
/// Every problem of every rule and test, at once. The tests are parsed here and run by [`self_test`].
pub fn compile(
    draft: Draft,
    sources: &Sources,
    mut problems: Problems,
) -> Result<(Arc<Policy>, Vec<PolicyTest>), Problems> {
    let tests = draft.tests.iter().filter_map(|test| read(test, "[[test]]", sources, &mut problems)).collect();
    let mut rules = Vec::new();
    for (name, table) in draft.rules {
        match find(name.get_ref()) {
            Some(rule) => read_tables(rule, table, sources, &mut problems, &mut rules),
            None => problems.push(unknown_rule(name.get_ref(), name.span(), sources)),
        }
    }
    rules.sort_by_key(|rule| rule.place);

    let mut compiler = Compiler::new(sources, &mut problems);
    for rule in &rules {
        compiler.begin(RULES[rule.place].name, rule.mode, rule.span.clone());
        rule.rule.compile(&mut compiler);
    }
    for (flow, span) in draft.deny_unknown {
        compiler.deny_unknown(flow, span);
    }
    let egress = draft.egress.resolve(sources, &mut compiler);
    compiler.egress(egress);
    let policy = compiler.finish(draft.title);
    problems.or((Arc::new(policy), tests))
}

/// Runs a policy's own tests.
///
/// # Errors
/// Each that failed, with what came out instead.
pub fn self_test(policy: &Arc<Policy>, tests: &[PolicyTest], sources: &Sources) -> Result<(), Problems> {
    let mut problems = Problems::default();
    for test in tests {
        if let Err(wrong) = test.run(policy) {
            let name = test.name.as_ref().map(|name| format!(" \"{name}\"")).unwrap_or_default();
            let what = format!("the policy's own test{name} failed: {wrong}");
            let location = sources.locate(test.request.span());
            problems.push(Problem::new(what).at(location).help("`mantlet explain` shows how a request is judged"));
        }
    }
    problems.or(())
}

struct Read {
    place: usize,
    mode: Mode,
    span: Range<usize>,
    rule: Box<dyn Rule>,
}

/// Reads a rule's table, or its tables where it may be written several times.
fn read_tables(
    rule: &'static RuleFile,
    table: Spanned<Value>,
    sources: &Sources,
    problems: &mut Problems,
    rules: &mut Vec<Read>,
) {
    let place = RULES.iter().position(|other| other.name == rule.name).unwrap_or_default();
    let (tables, context) = match table.get_ref() {
        Value::Array(tables) => (tables.clone(), format!("[[rules.{}]]", rule.name)),
        _ => (vec![table], format!("[rules.{}]", rule.name)),
    };
    for mut table in tables {
        let span = table.span();
        let mode = take_mode(&mut table, &context, sources, problems);
        if mode == Mode::Off {
            continue;
        }
        if let Some(rule) = (rule.read)(table, &context, sources, problems) {
            rules.push(Read { place, mode, span, rule });
        }
    }
}

/// Every rule may say `mode`; it is taken out before the rule reads the rest.
fn take_mode(table: &mut Spanned<Value>, context: &str, sources: &Sources, problems: &mut Problems) -> Mode {
    #[derive(Deserialize)]
    struct Only {
        mode: Mode,
    }
    let Some((key, value)) = table.get_mut().as_table_mut().and_then(|keys| keys.remove("mode")) else {
        return Mode::Enforce;
    };
    let mut only = Table::default();
    let span = value.span();
    only.push(key, value);
    read::<Only>(&Spanned::new(span, Value::Table(only)), context, sources, problems)
        .map_or(Mode::Enforce, |only| only.mode)
}

/// The value that was written, and its line as the origin of what follows; else the default.
fn chosen<T: Copy>(to: &mut Compiler<'_>, written: Option<&Spanned<T>>, default: T) -> T {
    let Some(written) = written else { return default };
    to.from(written.span());
    *written.get_ref()
}

/// Networks as they are written; a single address is the network of that address. `None` where one is none, which is told.
fn networks(written: Option<&[Spanned<String>]>, to: &mut Compiler<'_>) -> Option<Option<Vec<IpNet>>> {
    let Some(written) = written else { return Some(None) };
    let mut networks = Vec::new();
    for network in written {
        let text = network.get_ref();
        match text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)) {
            Ok(parsed) => networks.push(parsed),
            Err(_) => {
                to.problem(
                    network.span(),
                    format!("`{text}` is no network"),
                    "write it as \"10.0.0.0/8\" or \"2001:db8::/32\"",
                );
                return None;
            }
        }
    }
    Some(Some(networks))
}

/// The endpoint of that id; `None` where there is none, which is told.
fn endpoint(name: &str, span: Range<usize>, to: &mut Compiler<'_>) -> Option<Endpoint> {
    let endpoint = Endpoint::from_id(name);
    if endpoint.is_none() {
        let help = match did_you_mean(name, Endpoint::ALL.iter().map(|endpoint| endpoint.id())) {
            Some(near) => format!("did you mean `{near}`? `mantlet rules endpoints` lists all ids"),
            None => "`mantlet rules endpoints` lists all ids".into(),
        };
        to.problem(span, format!("there is no endpoint `{name}`"), help);
    }
    endpoint
}

fn unknown_rule(name: &str, span: Range<usize>, sources: &Sources) -> Problem {
    let help = match did_you_mean(name, RULES.iter().map(|rule| rule.name)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`mantlet rules` lists all rules".into(),
    };
    Problem::new(format!("there is no rule `{name}`")).at(sources.locate(span)).help(help)
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
