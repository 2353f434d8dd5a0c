//! `[[route]]`: who answers what. A route chooses among the operator's own servers; what a request may ask at all is the
//! policy's to say, and is said first.

use std::sync::Arc;

use http::Method;
use percent_encoding::percent_decode_str;
use regex::Regex;
use serde::Deserialize;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use serde_spanned::Spanned;

use super::gateway::Check;
use super::upstream::Upstream;
use crate::matrix::{Classified, Endpoint};
use crate::policy::paths::PathPattern;
use crate::problem::{Problem, did_you_mean};

/// All routes, in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes(Vec<Route>);

/// One `[[route]]`.
#[derive(Clone, Debug)]
pub struct Route {
    target: Target,
    methods: Option<Vec<Method>>,
    /// The position in the list of upstreams.
    upstream: usize,
    name: Arc<str>,
}

/// What a route takes.
#[derive(Clone, Debug)]
enum Target {
    Path { written: String, pattern: Regex },
    Endpoints(Vec<Endpoint>),
}

impl Routes {
    /// The position of the upstream that a request goes to: that of the first route which takes it, or else 0, Synapse.
    pub fn choose(&self, method: &Method, path: &str, classified: Classified) -> usize {
        if self.0.is_empty() {
            return 0;
        }
        // What does not decode to text is matched as it is spelled.
        let decoded = path.contains('%').then(|| percent_decode_str(path).decode_utf8().ok()).flatten();
        let paths = [Some(path), decoded.as_deref()];
        // Synapse runs HEAD as GET.
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let takes = |route: &&Route| {
            route.methods.as_ref().is_none_or(|methods| methods.contains(method))
                && match &route.target {
                    Target::Path { pattern, .. } => paths.iter().flatten().any(|path| pattern.is_match(path)),
                    Target::Endpoints(all) => all.contains(&classified.raw) || all.contains(&classified.decoded),
                }
        };
        self.0.iter().find(takes).map_or(0, |route| route.upstream)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.0.iter()
    }
}

impl PartialEq for Route {
    fn eq(&self, other: &Self) -> bool {
        self.written() == other.written() && self.methods == other.methods && self.name == other.name
    }
}

impl Route {
    fn written(&self) -> (Option<&str>, Vec<&'static str>) {
        match &self.target {
            Target::Path { written, .. } => (Some(written), Vec::new()),
            Target::Endpoints(endpoints) => (None, endpoints.iter().map(|endpoint| endpoint.id()).collect()),
        }
    }
}

impl Serialize for Route {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let (path, endpoints) = self.written();
        let mut table = to.serialize_struct("route", 4)?;
        table.serialize_field("path", &path)?;
        table.serialize_field("endpoint", &endpoints)?;
        let methods = self.methods.as_ref().map(|methods| methods.iter().map(Method::as_str).collect::<Vec<_>>());
        table.serialize_field("methods", &methods)?;
        table.serialize_field("upstream", &*self.name)?;
        table.end()
    }
}

/// `[[route]]` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteTable {
    path: Option<Spanned<String>>,
    endpoint: Option<Spanned<OneOrMore>>,
    methods: Option<Vec<Spanned<String>>>,
    upstream: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// Looks at all routes, and at the upstreams that they leave out.
pub(super) fn routes(tables: Vec<Spanned<RouteTable>>, upstreams: &[Upstream], check: &mut Check<'_>) -> Routes {
    let mut routes = Routes::default();
    let mut used = vec![false; upstreams.len()];
    for table in tables {
        let (span, table) = (table.span(), table.into_inner());
        let name = table.upstream.get_ref();
        let upstream = upstreams.iter().position(|upstream| *upstream.name == **name);
        match upstream {
            Some(upstream) => used[upstream] = true,
            // One that is there but wrong has been told of.
            None if check.upstreams.contains_key(name) => {}
            None => {
                let help = match did_you_mean(name, upstreams.iter().map(|upstream| &*upstream.name)) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("write [upstream.{name}] with its servers"),
                };
                let what = format!("there is no upstream {name:?}");
                check.problem(Problem::new(what).help(help), table.upstream.span());
            }
        }
        let methods = methods(table.methods.as_deref(), check);
        let (target, place) = match (table.path, table.endpoint) {
            (Some(path), None) => (path_target(&path, check), path.span()),
            (None, Some(ids)) => (endpoint_target(&ids, methods.as_deref(), check), ids.span()),
            (Some(path), Some(_)) => {
                let problem = Problem::new("both `path` and `endpoint` are given").help("write one of the two");
                check.problem(problem, path.span());
                continue;
            }
            (None, None) => {
                let problem =
                    Problem::new("neither `path` nor `endpoint` is given").help("write endpoint = \"sync\", for one");
                check.problem(problem, span);
                continue;
            }
        };
        let (Some(target), Some(upstream)) = (target, upstream) else { continue };
        let route = Route { target, methods, upstream, name: Arc::clone(&upstreams[upstream].name) };
        if let Some(what) = routes.0.iter().find_map(|earlier| earlier.hides(&route)) {
            let help = "the first route that matches is taken: remove this one, or write it before the other";
            check.problem(Problem::new(what).help(help), place);
        }
        routes.0.push(route);
    }
    for (upstream, _) in upstreams.iter().zip(used).skip(1).filter(|(_, used)| !used) {
        let name = &upstream.name;
        let help = format!("write a [[route]] with upstream = \"{name}\", or remove the table");
        check.problem(Problem::new(format!("no route leads to the upstream {name:?}")).help(help), check.place(name));
    }
    routes
}

impl Route {
    /// Why a later route is never taken, if it never is.
    fn hides(&self, later: &Route) -> Option<String> {
        let within = match (&self.methods, &later.methods) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(ours), Some(theirs)) => theirs.iter().all(|method| ours.contains(method)),
        };
        let to = &self.name;
        match (&self.target, &later.target) {
            _ if !within => None,
            (Target::Path { written, .. }, Target::Path { written: again, .. }) if written == again => {
                Some(format!("this route is never taken: an earlier one sends the same path to {to:?}"))
            }
            (Target::Endpoints(ours), Target::Endpoints(theirs)) => {
                let twice = theirs.iter().find(|endpoint| ours.contains(endpoint))?.id();
                Some(format!("`{twice}` is never taken here: an earlier route sends it to {to:?}"))
            }
            (Target::Path { .. }, _) | (Target::Endpoints(_), Target::Path { .. }) => None,
        }
    }
}

fn path_target(path: &Spanned<String>, check: &mut Check<'_>) -> Option<Target> {
    match PathPattern::new(path.get_ref()).and_then(|pattern| pattern.automaton()) {
        Ok(pattern) => Some(Target::Path { written: path.get_ref().clone(), pattern }),
        Err(error) => {
            // The last line of the error; those before draw the pattern.
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            let problem = Problem::new(format!("this is no regular expression: {reason}"));
            check.problem(problem.help("the syntax is that of the crate regex"), path.span());
            None
        }
    }
}

fn endpoint_target(ids: &Spanned<OneOrMore>, methods: Option<&[Method]>, check: &mut Check<'_>) -> Option<Target> {
    let names = match ids.get_ref() {
        OneOrMore::One(name) => std::slice::from_ref(name),
        OneOrMore::More(names) => names,
    };
    let mut endpoints = Vec::new();
    for name in names {
        let Some(endpoint) = Endpoint::from_id(name) else {
            let help = match did_you_mean(name, Endpoint::ALL.iter().map(|endpoint| endpoint.id())) {
                Some(near) => format!("did you mean `{near}`? `mantlet rules endpoints` lists all ids"),
                None => "`mantlet rules endpoints` lists all ids".into(),
            };
            check.problem(Problem::new(format!("there is no endpoint `{name}`")).help(help), ids.span());
            continue;
        };
        let served = endpoint.methods();
        let meets = |methods: &[Method]| methods.iter().any(|method| served.contains(&method.as_str()));
        if endpoint == Endpoint::Unserved {
            let problem = Problem::new("what is not served is not served by any upstream");
            check.problem(problem.help("the rule `closed_endpoint` answers or redirects a path"), ids.span());
        } else if methods.is_some_and(|methods| !served.contains(&"*") && !meets(methods)) {
            let problem = Problem::new(format!("`{name}` has none of these methods"));
            check.problem(problem.help(format!("it has {}", served.join(", "))), ids.span());
        } else {
            endpoints.push(endpoint);
        }
    }
    if names.is_empty() {
        check.problem(Problem::new("no endpoint is named").help("write endpoint = \"sync\", for one"), ids.span());
    }
    (!endpoints.is_empty()).then_some(Target::Endpoints(endpoints))
}

fn methods(written: Option<&[Spanned<String>]>, check: &mut Check<'_>) -> Option<Vec<Method>> {
    let mut methods = Vec::new();
    for method in written? {
        // Methods are case-sensitive, and Synapse knows none in lower case.
        let upper = method.get_ref().to_ascii_uppercase();
        match method.get_ref().parse() {
            Ok(Method::HEAD) => methods.push(Method::GET),
            Ok(parsed) if *method.get_ref() == upper => methods.push(parsed),
            _ => {
                let problem = Problem::new("this is no HTTP method").help(format!("did you mean \"{upper}\"?"));
                check.problem(problem, method.span());
            }
        }
    }
    Some(methods)
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::gateway::Gateway;
    use crate::matrix::classify;

    const MEDIA: &str = "[upstream.media]\nservers = ['http://127.0.0.1:8009']\n";

    pub(in crate::config) fn parse(text: &str) -> Result<Gateway, String> {
        Gateway::parse("mantlet.toml", text, Path::new("")).map_err(|problems| problems.to_string())
    }

    #[track_caller]
    pub(in crate::config) fn assert_told(text: &str, expected: &str) {
        let told = parse(text).unwrap_err();
        assert!(told.contains(expected), "{expected}\n-- in --\n{told}");
    }

    fn to_media(route: &str) -> String {
        format!("{MEDIA}[[route]]\n{route}\nupstream = 'media'\n")
    }

    #[test]
    fn an_upstream_and_its_routes_need_each_other() {
        assert_told(MEDIA, "mantlet.toml:1:11: no route leads to the upstream \"media\"\n    help: write a [[route]]");
        let misspelt = to_media("path = '/a'").replace("upstream = 'media'", "upstream = 'medai'");
        assert_told(&misspelt, "5:12: there is no upstream \"medai\"\n    help: did you mean \"media\"?");
        assert_told("[[route]]\npath = '/a'\nupstream = 'mas'\n", "help: write [upstream.mas] with its servers");
        // A wrong table is told of once, and not as missing too.
        let wrong = to_media("path = '/a'").replace("8009", "http");
        assert_eq!(parse(&wrong).unwrap_err().lines().filter(|line| line.starts_with("mantlet")).count(), 1);
    }

    #[test]
    fn a_route_says_what_it_takes() {
        assert!(parse(&to_media("path = '/_matrix/media/.*'")).is_ok());
        assert!(parse(&to_media("endpoint = ['media_get_config', 'sync']\nmethods = ['GET']")).is_ok());
        assert_told(&to_media(""), "3:1: neither `path` nor `endpoint` is given");
        assert_told(&to_media("path = '/a'\nendpoint = 'sync'"), "4:8: both `path` and `endpoint` are given");
        assert_told(
            &to_media("path = '/(a'"),
            "4:8: this is no regular expression: unclosed group\n    help: the syntax",
        );
        assert_told(
            &to_media("endpoint = 'snyc'"),
            "4:12: there is no endpoint `snyc`\n    help: did you mean `sync`?",
        );
        assert_told(&to_media("endpoint = []"), "4:12: no endpoint is named");
        assert_told(&to_media("endpoint = 'unserved'"), "4:12: what is not served");
        assert_told(
            &to_media("path = '/a'\nmethods = ['post']"),
            "5:12: this is no HTTP method\n    help: did you mean \"POST\"?",
        );
        assert_told(&to_media("endpoint = 'sync'\nmethods = ['POST']"), "`sync` has none of these methods");
    }

    #[test]
    fn a_route_that_is_never_taken_is_told() {
        let two = |one: &str, other: &str| {
            let tail = "upstream = 'media'\n";
            format!("{MEDIA}[[route]]\n{one}\n{tail}[[route]]\n{other}\n{tail}")
        };
        assert_told(&two("path = '/a'", "path = '/a'"), "mantlet.toml:7:8: this route is never taken");
        assert_told(&two("path = '/a'", "path = '/a'\nmethods = ['GET']"), "is never taken");
        assert_told(&two("endpoint = ['sync', 'login']", "endpoint = 'login'"), "`login` is never taken here");
        for (one, other) in [
            ("path = '/a'\nmethods = ['GET']", "path = '/a'"),
            ("path = '/a'\nmethods = ['GET']", "path = '/a'\nmethods = ['GET', 'POST']"),
            ("path = '/a'", "path = '/b'"),
            ("path = '/a'\nmethods = ['GET']", "path = '/a'\nmethods = ['POST']"),
        ] {
            assert!(parse(&two(one, other)).is_ok(), "{one} / {other}");
        }
    }

    #[test]
    fn a_route_matches_the_whole_path_raw_or_decoded_and_head_as_get() {
        let gateway = parse(&to_media("path = '/_matrix/media/v3/config'\nmethods = ['GET']")).unwrap();
        let goes = |method: Method, path: &str| gateway.routes.choose(&method, path, classify(&method, path)) == 1;
        for path in ["/_matrix/media/v3/config", "/_matrix/media/v3/%63onfig", "/%5fmatrix/media/v3/config"] {
            assert!(goes(Method::GET, path) && goes(Method::HEAD, path) && !goes(Method::POST, path), "{path}");
        }
        for path in ["/_matrix/media/v3/config/", "/_matrix/media/v3/config2", "/a/_matrix/media/v3/config", "/%ff"] {
            assert!(!goes(Method::GET, path), "{path}");
        }
        let gateway = parse(&to_media("endpoint = 'media_get_config'")).unwrap();
        let goes = |path: &str| gateway.routes.choose(&Method::GET, path, classify(&Method::GET, path)) == 1;
        assert!(goes("/_matrix/media/r0/config") && goes("/_matrix/media/v3/%63onfig"));
        assert!(!goes("/_matrix/media/v3/configs"));
    }
}
