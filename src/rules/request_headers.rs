//! Keeps from the homeserver what tells which client, on which device, in which place.
//!
//! Leak: `Origin`, `Referer`, `User-Agent`, `Accept-Language` and what browsers and other proxies add are stored or logged,
//!   and Synapse needs none of them: it shows the agent in the device list and stores it for 28 days.
//! Rule: with `fields = "remove"` these fields are removed; with `fields = "allow"` all are, but those that Synapse reads.
//!   `user_agent` is removed, reduced to its class, or kept. Our own token checks carry no more than the request did.
//! Cost: the device list shows no agent; spam checkers that look at it see none.
//! Example:
//!     [rules.request_headers]
//!     fields = "remove"       # remove (these fields) | allow (only what Synapse reads)
//!     user_agent = "strip"    # strip | class | keep
//!     remove = []             # further names; "x-my-*" stands for all that begin so
//!     keep = []               # names to leave after all

use std::sync::Arc;

use http::header::{HeaderName, USER_AGENT};
use serde::Deserialize;
use serde_spanned::Spanned;

use super::Rule;
use crate::matrix::Flow;
use crate::policy::{Compiler, FieldSet, HeadEdit};

/// What `[rules.request_headers]` may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which fields go. Default: `remove`.
    fields: Option<Spanned<Fields>>,
    /// What becomes of `User-Agent`. Default: `strip`.
    user_agent: Option<Spanned<Agent>>,
    /// Names to remove besides the list. Default: none.
    remove: Vec<Spanned<String>>,
    /// Names to leave although the list has them. Default: none.
    keep: Vec<Spanned<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Agent {
    Strip,
    Class,
    Keep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Fields {
    Remove,
    Allow,
}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let mut is_good = true;
        for written in self.remove.iter().chain(&self.keep) {
            if FieldSet::new([written.get_ref().as_str()]).is_err() {
                is_good = false;
                to.problem(
                    written.span(),
                    "this is no header name",
                    "write a name such as \"x-device\", or \"x-device-*\"",
                );
            }
        }
        if !is_good {
            return;
        }
        let agent = self.user_agent.as_ref().map_or(Agent::Strip, |agent| *agent.get_ref());
        let fields = super::chosen(to, self.fields.as_ref(), Fields::Remove);
        let is_stripped = agent == Agent::Strip;
        let edit = match fields {
            Fields::Remove => {
                let keep = set(self.keep.iter().map(|name| name.get_ref().as_str()));
                let own = self.remove.iter().map(|name| name.get_ref().as_str());
                let kept = |name: &&str| !name.parse().is_ok_and(|name: HeaderName| keep.contains(&name));
                let agent = is_stripped.then_some(USER_AGENT.as_str());
                HeadEdit::Strip(set(REMOVED.into_iter().filter(kept).chain(own).chain(agent)))
            }
            Fields::Allow => {
                let own = self.keep.iter().map(|name| name.get_ref().as_str());
                let removed = set(self.remove.iter().map(|name| name.get_ref().as_str()));
                let allowed = |name: &&str| !name.parse().is_ok_and(|name: HeaderName| removed.contains(&name));
                let agent = (!is_stripped).then_some(USER_AGENT.as_str());
                HeadEdit::KeepOnly(set(READ_BY_SYNAPSE.into_iter().filter(allowed).chain(own).chain(agent)))
            }
        };
        to.every(&Flow::INBOUND).request(edit);
        if agent != Agent::Class {
            return;
        }
        if let Some(written) = &self.user_agent {
            to.from(written.span());
        }
        to.every(&Flow::INBOUND).request(HeadEdit::ClassifyAgent);
    }
}

fn set<'a>(names: impl IntoIterator<Item = &'a str>) -> Arc<FieldSet> {
    // The operator's names have been looked at, and the lists below are tested.
    Arc::new(FieldSet::new(names).unwrap_or_default())
}

/// What tells of client, device or place. `X-Forwarded-For` and `-Proto` are the gateway's own, set after every edit.
const REMOVED: [&str; 32] = [
    "origin",
    "referer",
    "accept-language",
    "sec-ch-*",
    "sec-fetch-*",
    "sec-gpc",
    "dnt",
    "save-data",
    "device-memory",
    "downlink",
    "ect",
    "rtt",
    "dpr",
    "width",
    "viewport-width",
    "from",
    "via",
    "forwarded",
    "x-forwarded-*",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-*",
    "x-requested-with",
    "client-ip",
    "true-client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "cf-*",
    "cdn-loop",
    "x-amzn-*",
    "x-envoy-*",
];

/// What Synapse reads of a request, and what frames it.
const READ_BY_SYNAPSE: [&str; 12] = [
    "accept",
    "accept-encoding",
    "authorization",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "host",
    "if-match",
    "if-none-match",
    "range",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::testing::*;

    const BROWSER: [(&str, &str); 10] = [
        ("host", "hs"),
        ("authorization", "Bearer x"),
        ("content-type", "application/json"),
        ("origin", "https://app.element.io"),
        ("referer", "https://app.element.io/"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) Chrome/140.0"),
        ("accept-language", "de-CH"),
        ("sec-ch-ua-platform", "\"Linux\""),
        ("x-forwarded-host", "evil.test"),
        ("x-custom", "1"),
    ];

    fn upstream(toml: &str) -> String {
        upstream_fields(&policy(toml), "GET", "/_matrix/client/v3/sync", &BROWSER).join(" ")
    }

    #[test]
    fn removes_what_tells_of_the_client_and_leaves_the_rest() {
        assert_eq!(upstream("[rules.request_headers]"), "authorization content-type host x-custom");
    }

    #[test]
    fn an_allow_list_leaves_only_what_synapse_reads() {
        assert_eq!(upstream("[rules.request_headers]\nfields = \"allow\""), "authorization content-type host");
        let kept = upstream("[rules.request_headers]\nfields = \"allow\"\nkeep = [\"x-cust*\"]\nuser_agent = \"keep\"");
        assert_eq!(kept, "authorization content-type host user-agent x-custom");
    }

    #[test]
    fn an_operator_adds_names_and_excepts_others() {
        let toml = "[rules.request_headers]\nremove = [\"X-Custom\"]\nkeep = [\"Accept-Language\"]";
        assert_eq!(upstream(toml), "accept-language authorization content-type host");
    }

    #[test]
    fn a_bad_name_is_told_with_its_place() {
        let problems = problems("[rules.request_headers]\nremove = [\"x y\"]");
        assert!(problems.contains("test.toml:2:11: this is no header name"), "{problems}");
    }

    #[test]
    fn the_lists_hold_only_field_names() {
        assert!(FieldSet::new(REMOVED).is_ok() && FieldSet::new(READ_BY_SYNAPSE).is_ok());
    }
}
