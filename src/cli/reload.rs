//! `mantlet reload`

use std::process::ExitCode;

use http::Method;
use serde_json::Value;

use super::output::Output;
use super::{Common, PROBLEM, ask};
use crate::problem::{Problem, Problems};

#[derive(Debug, clap::Args)]
pub(super) struct Reload {}

impl Reload {
    pub(super) fn run(self, common: &Common, output: &Output) -> Result<ExitCode, Problems> {
        let (status, body) = ask(common, Method::POST, "/reload", "to reload; SIGHUP works without")?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        if answer.get("generation").is_none() {
            let what = "what answers there is no gateway that can be asked to reload";
            return Err(Problem::new(what).help("is it a gateway of this version?").into());
        }
        let is_good = status == 200;
        output.print(|| text(&answer), || answer.clone());
        Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::from(PROBLEM) })
    }
}

fn text(answer: &Value) -> String {
    let word = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut text = format!("generation {}: {}", answer.get("generation").unwrap_or(&Value::Null), word("message"));
    for key in answer.get("needs_restart").and_then(Value::as_array).into_iter().flatten() {
        text += &format!("\n  needs a restart: {}", key.as_str().unwrap_or_default());
    }
    for problem in answer.get("problems").and_then(Value::as_array).into_iter().flatten() {
        if let Ok(problem) = serde_json::from_value::<Problem>(problem.clone()) {
            text += &format!("\n{problem}");
        }
    }
    text
}
