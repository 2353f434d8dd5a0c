//! Sets and removes header fields of every answer, the gateway's own included.
//!
//! Leak: what a browser or a proxy on the way may do with an answer is left to its defaults.
//! Rule: the fields under `set` get these values on every answer, and those under `remove` are taken out.
//! Cost: whatever the fields do. CORS and framing fields cannot be touched: clients would break in ways that are hard to see.
//! Example:
//!     [rules.response_headers]
//!     set = { Strict-Transport-Security = "max-age=31536000", X-Content-Type-Options = "nosniff" }
//!     remove = ["Synapse-Trace-Id"]

use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::{self, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_spanned::Spanned;

use super::Rule;
use crate::matrix::Flow;
use crate::policy::{Compiler, FieldSet, HeadEdit};

/// What `[rules.response_headers]` may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Fields and their values. Default: none.
    set: BTreeMap<Spanned<String>, Spanned<String>>,
    /// Names of fields; one that ends in `*` stands for all that begin so. Default: none.
    remove: Vec<Spanned<String>>,
}

/// Fields that frame an answer, or without which a web client sees none.
const UNTOUCHABLE: [HeaderName; 9] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::LOCATION,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
];

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let mut names = Vec::new();
        for name in &self.remove {
            let own = FieldSet::new([name.get_ref().as_str()]).ok();
            match own {
                Some(own) if !UNTOUCHABLE.iter().any(|field| own.contains(field)) => {
                    names.push(name.get_ref().as_str())
                }
                Some(_) => return to.problem(name.span(), "this field cannot be removed", "without it clients break"),
                None => {
                    return to.problem(name.span(), "this is no header name", "write a name such as \"X-Powered-By\"");
                }
            }
        }
        let removed = FieldSet::new(names.iter().copied()).unwrap_or_default();
        if !names.is_empty() {
            to.every(&Flow::INBOUND).response(HeadEdit::Strip(Arc::new(removed)));
        }
        for (name, value) in &self.set {
            let field = match name.get_ref().parse::<HeaderName>() {
                Ok(field) if !UNTOUCHABLE.contains(&field) => field,
                Ok(_) => {
                    return to.problem(name.span(), "this field cannot be set", "without the real one clients break");
                }
                Err(_) => {
                    return to.problem(
                        name.span(),
                        "this is no header name",
                        "write a name such as \"Referrer-Policy\"",
                    );
                }
            };
            let Ok(value) = HeaderValue::from_str(value.get_ref()) else {
                return to.problem(value.span(), "this is no header value", "write visible characters and spaces only");
            };
            to.from(name.span());
            to.every(&Flow::INBOUND).response(HeadEdit::Set(field, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::rules::testing::*;

    #[test]
    fn sets_and_removes_on_every_answer() {
        let policy = policy("[rules.response_headers]\nset = { X-Frame-Options = \"DENY\" }\nremove = [\"x-trace-*\"]");
        let fields = downstream_fields(&policy, &[("x-trace-id", "1"), ("content-type", "text/html")]);
        assert_eq!(fields, ["content-type", "x-frame-options"]);
    }

    #[test]
    fn what_clients_need_cannot_be_touched() {
        for (line, told) in [
            ("remove = [\"Access-Control-*\"]", "2:11: this field cannot be removed"),
            ("set = { Content-Length = \"0\" }", "2:9: this field cannot be set"),
            ("set = { \"a b\" = \"0\" }", "2:9: this is no header name"),
            ("set = { a = \"\\n\" }", "2:13: this is no header value"),
        ] {
            let problems = problems(&format!("[rules.response_headers]\n{line}"));
            assert!(problems.contains(told), "{line}: {problems}");
        }
    }
}
