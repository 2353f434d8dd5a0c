//! Holds the table against the real thing: every route that Synapse registers, as `testkit/python/routes.py` prints
//! them. From each regular expression come paths that it matches, and each must be classified.

use std::collections::HashSet;

use http::Method;
use regex::Regex;

use super::classify;
use crate::matrix::endpoint::{Api, Endpoint};

const ROUTES: &str = include_str!("../../../tests/synapse/routes.txt");

/// What no route names: only the specification does, or a library that need not be installed, or it is a line of its
/// own here because a rule wants it (`query/profile`).
const WITHOUT_ROUTE: [Endpoint; 12] = [
    Endpoint::FederationQueryProfile,
    Endpoint::FederationQueryDirectory,
    Endpoint::WellKnownSupport,
    Endpoint::WellKnownPolicyServer,
    Endpoint::SynapseOidcCallback,
    Endpoint::SynapseOidcBackchannelLogout,
    Endpoint::SynapseSamlMetadata,
    Endpoint::SynapseSamlResponse,
    Endpoint::LegacySamlMetadata,
    Endpoint::LegacySamlResponse,
    Endpoint::Unserved,
    Endpoint::Preflight,
];

#[test]
fn every_route_of_synapse_is_in_the_table() {
    let mut problems = Vec::new();
    for (method, pattern) in routes() {
        for path in samples(pattern) {
            let found = classify(&method, &path);
            let endpoint = found.raw;
            if endpoint.is_unknown() || endpoint == Endpoint::Unserved || !endpoint.methods().contains(&method.as_str())
            {
                problems.push(format!("{method} {path} is {endpoint:?}, from {pattern}"));
            }
            if found.decoded != endpoint {
                problems.push(format!("{method} {path} is {endpoint:?}, and decoded {:?}", found.decoded));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_line_of_the_table_is_a_route_of_synapse() {
    let mut seen = HashSet::new();
    for (method, pattern) in routes() {
        seen.extend(samples(pattern).iter().map(|path| classify(&method, path).raw));
    }
    for endpoint in Endpoint::ALL.iter().filter(|endpoint| !endpoint.is_unknown() && endpoint.api() != Api::Identity) {
        assert_eq!(seen.contains(endpoint), !WITHOUT_ROUTE.contains(endpoint), "{}", endpoint.id());
    }
}

#[test]
fn a_sample_is_what_its_pattern_matches() {
    for (_, pattern) in routes().filter(|(_, pattern)| pattern.ends_with('$')) {
        let regex = Regex::new(&format!("^(?:{pattern})")).unwrap();
        let samples = samples(pattern);
        assert!(!samples.is_empty());
        for path in samples {
            assert!(regex.is_match(&path), "{path} from {pattern}");
        }
    }
    assert_eq!(samples(r"^/a\.b(/(?P<x>[^/]+))?$"), ["/a.b", "/a.b/!x%3Ay"]);
    assert_eq!(samples("^/(r0|v3)/x.y$"), ["/r0/x.y", "/r0/x/y", "/r0/x~y", "/v3/x.y", "/v3/x/y", "/v3/x~y"]);
}

/// Method and pattern of each line, but for the redirect at `/`, which the gateway does not serve.
fn routes() -> impl Iterator<Item = (Method, &'static str)> {
    ROUTES.lines().filter_map(|line| {
        let [_, method, pattern, _] = line.split('\t').collect::<Vec<_>>().try_into().expect("four columns");
        (pattern != "/").then(|| (method.parse().expect("a method"), pattern))
    })
}

/// Paths that match a pattern: every alternative, with and without what is optional, and values that hurt.
fn samples(pattern: &str) -> Vec<String> {
    if let Some(place) = pattern.strip_suffix("/*") {
        return vec![place.to_owned(), format!("{place}/"), format!("{place}/x/y%3Az")];
    }
    let Some(regex) = pattern.strip_suffix('$') else {
        return vec![pattern.to_owned()];
    };
    let mut rest = regex.trim_start_matches('^');
    let samples = alternatives(&mut rest);
    assert_eq!(rest, "", "all of {pattern} was read");
    samples
}

/// Reads `a|b|c` up to the end or a closing parenthesis.
fn alternatives(rest: &mut &str) -> Vec<String> {
    let mut all = sequence(rest);
    while let Some(after) = rest.strip_prefix('|') {
        *rest = after;
        all.extend(sequence(rest));
    }
    all
}

fn sequence(rest: &mut &str) -> Vec<String> {
    let mut all = vec![String::new()];
    while !rest.is_empty() && !rest.starts_with(['|', ')']) {
        let values = repeated(rest);
        all = all.iter().flat_map(|head| values.iter().map(move |tail| format!("{head}{tail}"))).collect();
    }
    all
}

/// Reads one atom and the `?`, `*` or `+` behind it.
fn repeated(rest: &mut &str) -> Vec<String> {
    let (values, class) = atom(rest);
    let mut chars = rest.chars();
    let values = match chars.next() {
        Some('?') => [vec![String::new()], values].concat(),
        Some('*') if class => [vec![String::new()], values].concat(),
        Some('+') if class => values,
        _ => return values,
    };
    *rest = chars.as_str();
    values
}

/// Reads a group, a class, an escape, a dot or a character: its samples, and whether it is of a class, which stands for
/// as many characters as its repetition says.
fn atom(rest: &mut &str) -> (Vec<String>, bool) {
    let owned = |values: &[&str]| values.iter().map(|value| value.to_string()).collect::<Vec<_>>();
    if let Some(after) = rest.strip_prefix('(') {
        *rest = match after.strip_prefix("?P<") {
            Some(named) => named.split_once('>').expect("a group's name ends").1,
            None => after,
        };
        let values = alternatives(rest);
        *rest = rest.strip_prefix(')').expect("a group ends");
        return (values, false);
    }
    for (class, values) in [
        ("[^/]", &["!x%3Ay"][..]),
        (r"[\w\.]", &["m.x"]),
        ("[A-Za-z0-9_.~-]", &["oidc-x"]),
        (".*", &["", "x", "a/b%2Fc/"]),
    ] {
        if let Some(after) = rest.strip_prefix(class) {
            *rest = after;
            return (owned(values), class.ends_with(']'));
        }
    }
    if let Some(after) = rest.strip_prefix('.') {
        *rest = after;
        return (owned(&[".", "/", "~"]), false);
    }
    let mut chars = rest.chars();
    let first = chars.next().filter(|c| *c != '\\').or_else(|| chars.next()).expect("an atom");
    assert!(!"[]{}^*+?".contains(first), "no reading of {rest}");
    *rest = chars.as_str();
    (vec![first.to_string()], false)
}
