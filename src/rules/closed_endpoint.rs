//! Closes an endpoint, or a path, as operators did with a line of nginx configuration.
//!
//! Leak: whatever the operator knows of and no other rule closes.
//! Rule: requests to an endpoint (by its id) or to a path (a regular expression over the whole path, raw or decoded), of some
//!   methods, hosts and networks, are refused with a status and error code, redirected, or answered with fixed JSON.
//! Cost: what is closed does not work. HEAD counts as GET, because Synapse runs it as GET.
//! Example:
//!     [[rules.closed_endpoint]]
//!     endpoint = "register"                          # or path = "/_matrix/client/[^/]+/register"
//!     methods = ["POST"]                             # default: all
//!     except_networks = ["10.0.0.0/8"]               # or networks = [...]; default: everywhere
//!     answer = { status = 403, errcode = "M_FORBIDDEN", error = "Registration is closed" }
//!     #
//!     [[rules.closed_endpoint]]
//!     path = "/"
//!     hosts = ["matrix.example"]
//!     answer = { redirect = "https://example/", status = 302 }
//!     #
//!     [[rules.closed_endpoint]]
//!     endpoint = ["get_capabilities"]
//!     answer = { status = 200, json = { capabilities = {} } }

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_spanned::Spanned;

use super::Rule;
use crate::matrix::endpoint::Endpoint;
use crate::message::Answer;
use crate::policy::Compiler;
use crate::policy::matcher::When;
use crate::policy::paths::PathPattern;

/// What one `[[rules.closed_endpoint]]` may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The endpoints, by id: one or a list.
    #[serde(default)]
    endpoint: Option<Spanned<OneOrMore>>,
    /// The paths: a regular expression that has to match the whole path.
    #[serde(default)]
    path: Option<Spanned<String>>,
    /// The methods. Default: all.
    #[serde(default)]
    methods: Option<Vec<Spanned<String>>>,
    /// The hosts as clients name them, without port. Default: all.
    #[serde(default)]
    hosts: Option<Vec<String>>,
    /// Closed for these networks only. Default: everywhere.
    #[serde(default)]
    networks: Option<Vec<Spanned<String>>>,
    /// Closed but for these networks.
    #[serde(default)]
    except_networks: Option<Vec<Spanned<String>>>,
    /// The answer. Default: 403 `M_FORBIDDEN`.
    #[serde(default)]
    answer: Option<Spanned<Written>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// An answer as it is written: an error, a redirect or JSON.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    status: Option<u16>,
    errcode: Option<String>,
    error: Option<String>,
    redirect: Option<String>,
    json: Option<serde_json::Value>,
}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let default = Written::default();
        let (written, span) = self.answer.as_ref().map_or((&default, to.span()), |it| (it.get_ref(), it.span()));
        let answer = match written.answer() {
            Ok(answer) => answer,
            Err((what, help)) => return to.problem(span, what, help),
        };
        let Some(when) = self.when(to) else { return };
        let close = |at: crate::policy::compiler::At<'_, '_>| {
            let at = at.when(when.clone());
            if answer.status().is_success() || answer.status().is_redirection() {
                at.answer(answer.clone());
            } else {
                at.deny(answer.clone());
            }
        };
        match (&self.endpoint, &self.path) {
            (Some(ids), None) => {
                to.from(ids.span());
                for endpoint in endpoints(ids, to) {
                    close(to.endpoint(endpoint));
                }
            }
            (None, Some(path)) => match PathPattern::new(path.get_ref()) {
                Ok(pattern) => close(to.from(path.span()).path(pattern)),
                Err(error) => to.problem(path.span(), regex_error(&error), "the syntax is that of the crate regex"),
            },
            (Some(_), Some(path)) => {
                to.problem(path.span(), "both `endpoint` and `path` are given", "write one of the two");
            }
            (None, None) => {
                to.problem(
                    to.span(),
                    "neither `endpoint` nor `path` is given",
                    "write endpoint = \"register\", for one",
                );
            }
        }
    }
}

impl Config {
    fn when(&self, to: &mut Compiler<'_>) -> Option<When> {
        let mut methods = None;
        if let Some(written) = &self.methods {
            let list: &mut Vec<Method> = methods.insert(Vec::new());
            for method in written {
                // Methods are case-sensitive, and Synapse knows none in lower case.
                let upper = method.get_ref().to_ascii_uppercase();
                match method.get_ref().parse() {
                    Ok(Method::HEAD) => list.push(Method::GET),
                    Ok(parsed) if *method.get_ref() == upper => list.push(parsed),
                    _ => {
                        to.problem(method.span(), "this is no HTTP method", format!("did you mean \"{upper}\"?"));
                        return None;
                    }
                }
            }
        }
        let hosts = self.hosts.clone();
        let only = super::networks(self.networks.as_deref(), to)?;
        let except_networks = super::networks(self.except_networks.as_deref(), to)?;
        Some(When { methods, hosts, networks: only, except_networks, ..When::default() })
    }
}

fn endpoints(ids: &Spanned<OneOrMore>, to: &mut Compiler<'_>) -> Vec<Endpoint> {
    let names = match ids.get_ref() {
        OneOrMore::One(name) => std::slice::from_ref(name),
        OneOrMore::More(names) => names,
    };
    names.iter().filter_map(|name| super::endpoint(name, ids.span(), to)).collect()
}

impl Written {
    /// The answer that is meant, or what is wrong with it and what to do.
    fn answer(&self) -> Result<Answer, (String, &'static str)> {
        const FORMS: &str = "write { status = 403, errcode = \"M_FORBIDDEN\" }, { redirect = \"https://…\" } or { status = 200, json = {…} }";
        let status = |default: StatusCode| match self.status {
            None => Ok(default),
            Some(written) => StatusCode::from_u16(written)
                .ok()
                .filter(|status| status.as_u16() >= 200 && status.as_u16() < 600)
                .ok_or_else(|| (format!("{written} is no final HTTP status"), FORMS)),
        };
        match (&self.redirect, &self.json) {
            (Some(_), Some(_)) => Err(("an answer is a redirect or JSON, not both".into(), FORMS)),
            (Some(_), None) | (None, Some(_)) if self.errcode.is_some() || self.error.is_some() => {
                Err(("`errcode` and `error` belong to an error, not to a redirect or JSON".into(), FORMS))
            }
            (Some(location), None) => {
                let status = status(StatusCode::FOUND)?;
                if !status.is_redirection() {
                    return Err((format!("{} is no redirect", status.as_u16()), FORMS));
                }
                Answer::redirect(status, location)
                    .ok_or_else(|| ("the redirect cannot stand in a header".into(), FORMS))
            }
            (None, Some(json)) => Ok(Answer::json(status(StatusCode::OK)?, json)),
            (None, None) => {
                let status = status(StatusCode::FORBIDDEN)?;
                if !status.is_client_error() && !status.is_server_error() {
                    return Err((format!("{} is no error", status.as_u16()), FORMS));
                }
                let errcode = self.errcode.as_deref().unwrap_or("M_FORBIDDEN");
                Ok(Answer::matrix(status, errcode, self.error.as_deref().unwrap_or("This is closed on this server")))
            }
        }
    }
}

/// The last line of the expression's own error: the ones before draw the pattern.
fn regex_error(error: &regex::Error) -> String {
    let text = error.to_string();
    let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
    format!("this is no regular expression: {reason}")
}

#[cfg(test)]
mod tests {
    use crate::rules::testing::*;

    #[test]
    fn closes_an_endpoint_in_all_its_versions() {
        let policy = policy("[[rules.closed_endpoint]]\nendpoint = \"register\"");
        for prefix in ["r0", "v3", "unstable"] {
            let path = format!("/_matrix/client/{prefix}/register?kind=guest");
            assert_eq!(judge(&policy, "POST", &path, &[]), "deny closed_endpoint 403 M_FORBIDDEN", "{path}");
        }
        assert_eq!(judge(&policy, "GET", "/_matrix/client/v3/sync", &[]), "permit");
    }

    #[test]
    fn a_path_matches_whole_and_neither_the_query_nor_a_part() {
        let policy = policy("[[rules.closed_endpoint]]\npath = \"/_matrix/client/[^/]+/thirdparty/.*\"");
        assert_eq!(
            judge(&policy, "GET", "/_matrix/client/v3/thirdparty/x", &[]),
            "deny closed_endpoint 403 M_FORBIDDEN"
        );
        assert_eq!(judge(&policy, "GET", "/_matrix/client/v3/x?/_matrix/client/v3/thirdparty/x", &[]), "permit");
        assert_eq!(judge(&policy, "GET", "/_matrix/client/v3/join/_matrix/client/v3/thirdparty/x", &[]), "permit");
    }

    #[test]
    fn an_encoded_spelling_of_a_closed_path_is_closed() {
        let policy = policy("[[rules.closed_endpoint]]\npath = \"/_matrix/client/v3/rooms/!secret:hs/messages\"");
        let seen = judge(&policy, "GET", "/_matrix/client/v3/rooms/%21secret%3Ahs/messages", &[]);
        assert_eq!(seen, "deny closed_endpoint 403 M_FORBIDDEN");
    }

    #[test]
    fn closing_get_closes_head() {
        let policy = policy("[[rules.closed_endpoint]]\npath = \"/_matrix/client/v3/x\"\nmethods = [\"GET\"]");
        assert_eq!(judge(&policy, "HEAD", "/_matrix/client/v3/x", &[]), "deny closed_endpoint 403 M_FORBIDDEN");
        assert_eq!(judge(&policy, "POST", "/_matrix/client/v3/x", &[]), "permit");
    }

    #[test]
    fn a_network_may_be_the_only_one_closed_or_the_only_one_open() {
        let only = policy("[[rules.closed_endpoint]]\nendpoint = \"register\"\nnetworks = [\"198.51.100.0/24\"]");
        let but = policy("[[rules.closed_endpoint]]\nendpoint = \"register\"\nexcept_networks = [\"198.51.100.7\"]");
        let path = "/_matrix/client/v3/register";
        for (from, only_closed, but_closed) in
            [("198.51.100.7", true, false), ("::ffff:198.51.100.7", true, false), ("192.0.2.1", false, true)]
        {
            assert_eq!(judge_from(&only, "POST", path, from) != "permit", only_closed, "only, {from}");
            assert_eq!(judge_from(&but, "POST", path, from) != "permit", but_closed, "but, {from}");
        }
    }

    #[test]
    fn a_host_may_be_the_only_one_closed() {
        let policy = policy(
            "[[rules.closed_endpoint]]\npath = \"/\"\nhosts = [\"matrix.example\"]\nanswer = { redirect = \"https://example/\" }",
        );
        assert_eq!(judge(&policy, "GET", "/", &[("host", "Matrix.Example:443")]), "answer closed_endpoint 302");
        assert_eq!(judge(&policy, "GET", "/", &[("host", "other.example")]), "deny surface 404 M_UNRECOGNIZED");
    }

    #[test]
    fn fixed_json_is_answered_as_written() {
        let policy = policy(
            "[[rules.closed_endpoint]]\nendpoint = \"get_capabilities\"\nanswer = { json = { capabilities = { a = [1, true] } } }",
        );
        let answer = answer(&policy, "GET", "/_matrix/client/v3/capabilities");
        assert_eq!(&answer.body()[..], br#"{"capabilities":{"a":[1,true]}}"#);
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        for (toml, told) in [
            ("endpoint = \"regster\"", "2:12: there is no endpoint `regster`\n    help: did you mean `register`?"),
            ("path = \"(\"", "2:8: this is no regular expression"),
            ("path = \"/\"\nendpoint = \"register\"", "2:8: both `endpoint` and `path` are given"),
            ("methods = [\"GET\"]", "1:1: neither `endpoint` nor `path` is given"),
            ("path = \"/\"\nmethods = [\"get\"]", "3:12: this is no HTTP method\n    help: did you mean \"GET\"?"),
            ("path = \"/\"\nnetworks = [\"10.0.0.0/33\"]", "3:13: `10.0.0.0/33` is no network"),
            ("path = \"/\"\nanswer = { status = 99 }", "3:10: 99 is no final HTTP status"),
            ("path = \"/\"\nanswer = { status = 200 }", "3:10: 200 is no error"),
            ("path = \"/\"\nanswer = { status = 200, redirect = \"/\" }", "3:10: 200 is no redirect"),
        ] {
            let problems = problems(&format!("[[rules.closed_endpoint]]\n{toml}"));
            assert!(problems.contains(told), "{toml}\n{problems}");
        }
    }
}
