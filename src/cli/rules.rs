//! `mantlet rules`

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::json;

use super::USAGE;
use super::output::Output;
use crate::matrix::endpoint::Endpoint;
use crate::problem::{Problems, did_you_mean};
use crate::rules::{self, RULES, RuleFile};

#[derive(Debug, clap::Args)]
pub(super) struct Rules {
    /// A rule, to see what it hides, from whom, at what cost; or `endpoints`, to list their ids
    name: Option<String>,
}

impl Rules {
    pub(super) fn run(self, output: &Output) -> Result<ExitCode, Problems> {
        match self.name.as_deref() {
            None => list(output),
            Some("endpoints") => endpoints(output),
            Some(name) => match rules::find(name) {
                Some(rule) => show(rule, output),
                None => {
                    let near = did_you_mean(name, RULES.iter().map(|rule| rule.name).chain(["endpoints"]));
                    let help = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
                    eprintln!("error: there is no rule `{name}`{help}");
                    return Ok(ExitCode::from(USAGE));
                }
            },
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn list(output: &Output) {
    output.print(
        || {
            let mut text = String::new();
            for rule in RULES {
                let rows = if rule.ledger.is_empty() { "-".into() } else { rule.ledger.join(" ") };
                // Writing to a string does not fail.
                let _ = writeln!(text, "{:<18} {rows:<8} {}", rule.name, rule.summary());
            }
            text + "\n`mantlet rules NAME` shows one, `mantlet rules endpoints` the endpoints' ids."
        },
        || {
            RULES
                .iter()
                .map(|rule| json!({ "name": rule.name, "ledger": rule.ledger, "summary": rule.summary() }))
                .collect()
        },
    );
}

fn show(rule: &RuleFile, output: &Output) {
    output.print(
        || rule.head(),
        || json!({ "name": rule.name, "ledger": rule.ledger, "head": rule.head(), "example": rule.example() }),
    );
}

fn endpoints(output: &Output) {
    output.print(
        || {
            let mut text = String::new();
            for endpoint in Endpoint::ALL {
                let (methods, auth) = (endpoint.methods().join(","), endpoint.auth().as_str());
                // Writing to a string does not fail.
                let _ =
                    writeln!(text, "{:<44} {methods:<10} {auth:<18} {}", endpoint.id(), endpoint.templates().join(" "));
            }
            text
        },
        || {
            Endpoint::ALL
                .iter()
                .map(|endpoint| {
                    json!({
                        "id": endpoint.id(), "methods": endpoint.methods(), "authentication": endpoint.auth().as_str(),
                        "templates": endpoint.templates(),
                    })
                })
                .collect()
        },
    );
}
