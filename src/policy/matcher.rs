//! When an instruction holds: by method, host, network, or a path that no endpoint names.

use std::net::IpAddr;

use http::Method;
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use regex::{Regex, RegexSet};

use super::exchange::Exchange;
use super::plan::Gate;
use crate::matrix::token;

/// The conditions of one instruction; all must hold, an absent one always does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct When {
    /// One of these methods. HEAD counts as GET, because Synapse runs it as GET.
    pub methods: Option<Vec<Method>>,
    /// One of these hosts, in lower case, without port.
    pub hosts: Option<Vec<String>>,
    /// From one of these networks.
    pub networks: Option<Vec<IpNet>>,
    /// From none of these networks.
    pub except_networks: Option<Vec<IpNet>>,
    /// Some argument of the query has this name and value.
    pub argument: Option<(&'static str, &'static str)>,
    /// The first argument of this name, the one that Synapse reads, has another value or is not there.
    pub first_argument_is_not: Option<(&'static str, &'static str)>,
}

impl When {
    /// Whether all conditions hold for this exchange.
    pub fn holds(&self, exchange: &Exchange<'_>) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.contains(as_run(exchange.method)))
            && self.hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|host| host.eq_ignore_ascii_case(exchange.host)))
            && self.networks.as_ref().is_none_or(|networks| contains(networks, exchange.client))
            && self.except_networks.as_ref().is_none_or(|networks| !contains(networks, exchange.client))
            && self.argument.is_none_or(|argument| has_argument(exchange, argument))
            && self.first_argument_is_not.is_none_or(|argument| !has_first_argument(exchange, argument))
    }

    /// Whether there is no condition.
    pub fn is_always(&self) -> bool {
        *self == Self::default()
    }
}

fn has_argument(exchange: &Exchange<'_>, (name, value): (&str, &str)) -> bool {
    exchange.query.is_some_and(|query| token::arguments(query, name).any(|found| *found == *value.as_bytes()))
}

fn has_first_argument(exchange: &Exchange<'_>, (name, value): (&str, &str)) -> bool {
    let first = exchange.query.and_then(|query| token::argument(query, name));
    first.is_some_and(|found| *found == *value.as_bytes())
}

fn as_run(method: &Method) -> &Method {
    if method == Method::HEAD { &Method::GET } else { method }
}

/// Whether a network holds the address; an IPv4 address in IPv6 clothes is taken as the IPv4 address it is.
pub(super) fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// A regular expression over a whole path.
#[derive(Clone, Debug)]
pub struct PathPattern(Regex);

impl PathPattern {
    /// Compiles an operator's pattern; it always has to match the whole path, with or without its own anchors.
    ///
    /// # Errors
    /// What is wrong with the expression.
    pub fn new(pattern: &str) -> Result<Self, regex::Error> {
        Regex::new(pattern)?;
        Regex::new(&format!("^(?:{pattern})$")).map(Self)
    }

    /// Whether it matches this whole path as it is.
    pub fn matches(&self, path: &str) -> bool {
        self.0.is_match(path)
    }
}

/// The gates that hold for paths instead of endpoints.
#[derive(Debug, Default)]
pub struct PathGates {
    set: RegexSet,
    gates: Vec<Gate>,
}

impl PathGates {
    /// Puts all patterns into one automaton.
    ///
    /// # Errors
    /// Together they are too large.
    pub fn new(gates: Vec<(PathPattern, Gate)>) -> Result<Self, regex::Error> {
        let set = RegexSet::new(gates.iter().map(|(pattern, _)| pattern.0.as_str()))?;
        Ok(Self { set, gates: gates.into_iter().map(|(_, gate)| gate).collect() })
    }

    /// The gates whose pattern matches the raw or the decoded path, in the order in which they were written.
    pub fn matching<'p>(&'p self, path: &str) -> impl Iterator<Item = &'p Gate> {
        let mut hits = if self.gates.is_empty() { Vec::new() } else { self.set.matches(path).into_iter().collect() };
        if !self.gates.is_empty() && path.contains('%') {
            // A path that does not decode to text cannot be one that an operator meant: the raw form has been matched.
            if let Ok(decoded) = percent_decode_str(path).decode_utf8() {
                hits.extend(&self.set.matches(&decoded));
                hits.sort_unstable();
                hits.dedup();
            }
        }
        hits.into_iter().filter_map(|hit: usize| self.gates.get(hit))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Gate)> {
        self.set.patterns().iter().map(String::as_str).zip(&self.gates)
    }
}
