//! `mantlet test`

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::json;

use super::output::Output;
use super::{Common, PROBLEM, PolicyArgument};
use crate::policy::selftest::PolicyTest;
use crate::problem::{Location, Problems};

#[derive(Debug, clap::Args)]
pub(super) struct Test {
    #[command(flatten)]
    policy: PolicyArgument,
}

fn place(location: &Option<Location>) -> String {
    location.as_ref().map(ToString::to_string).unwrap_or_default()
}

struct Ran<'a> {
    test: &'a PolicyTest,
    location: Option<Location>,
    result: Result<(), String>,
}

impl Test {
    pub(super) fn run(self, common: &Common, output: &Output) -> Result<ExitCode, Problems> {
        let compiled = self.policy.load(common)?;
        let ran: Vec<Ran<'_>> = compiled
            .tests
            .iter()
            .map(|test| {
                let location = compiled.sources.locate(test.request.span());
                Ran { test, location, result: test.run(&compiled.policy) }
            })
            .collect();
        let failed = ran.iter().filter(|ran| ran.result.is_err()).count();
        output.print(
            || {
                let mut text = String::new();
                for Ran { test, location, result } in &ran {
                    let name = test.name.as_deref().unwrap_or(test.request.get_ref());
                    // Writing to a string does not fail.
                    let _ = match result {
                        Ok(()) => writeln!(text, "ok      {name}"),
                        Err(wrong) => writeln!(text, "FAILED  {name}  [{}]\n        {wrong}", place(location)),
                    };
                }
                let name = compiled.policy.name();
                if ran.is_empty() {
                    return format!("{name}: no tests. Write [[test]] tables beside the rules");
                }
                format!("{text}{name}: {} passed, {failed} failed", ran.len() - failed)
            },
            || {
                let tests = ran.iter().map(|Ran { test, location, result }| {
                    json!({
                        "name": test.name, "request": test.request.get_ref(), "location": location,
                        "passed": result.is_ok(), "wrong": result.as_ref().err(),
                    })
                });
                json!({ "policy": compiled.policy.name(), "failed": failed, "tests": tests.collect::<Vec<_>>() })
            },
        );
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(PROBLEM) })
    }
}
