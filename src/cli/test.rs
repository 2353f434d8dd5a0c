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

struct Ran<'a> {
    test: &'a PolicyTest,
    location: Location,
    result: Result<(), String>,
}

impl Test {
    pub(super) fn run(self, common: &Common, output: &Output) -> Result<ExitCode, Problems> {
        let compiled = self.policy.load(common)?;
        let run = |test| {
            let PolicyTest { request, .. } = test;
            Ran { test, location: compiled.sources.locate(request.span()), result: test.run(&compiled.policy) }
        };
        let ran: Vec<Ran<'_>> = compiled.tests.iter().map(run).collect();
        let failed = ran.iter().filter(|ran| ran.result.is_err()).count();
        output.print(
            || {
                let mut text = String::new();
                for Ran { test, location, result } in &ran {
                    let name = test.name.as_deref().unwrap_or(test.request.get_ref());
                    // Writing to a string does not fail.
                    let _ = match result {
                        Ok(()) => writeln!(text, "ok      {name}"),
                        Err(wrong) => writeln!(text, "FAILED  {name}  [{location}]\n        {wrong}"),
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
