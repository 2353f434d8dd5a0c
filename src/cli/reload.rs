//! `mantlet reload`

use std::process::ExitCode;

use http::Method;
use serde_json::Value;

use super::output::Output;
use super::{Common, PROBLEM};
use crate::problem::{Problem, Problems};
use crate::server::admin;

#[derive(Debug, clap::Args)]
pub(super) struct Reload {}

impl Reload {
    pub(super) fn run(self, common: &Common, output: &Output) -> Result<ExitCode, Problems> {
        let Some(address) = common.gateway_alone()?.admin else {
            let what = "the gateway file has no [admin], so the running gateway cannot be asked to reload";
            return Err(Problem::new(what)
                .help("add [admin] bind = \"127.0.0.1:9090\" and restart, or send it SIGHUP")
                .into());
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Problem::new(format!("no runtime can be started: {error}")))?;
        let (status, body) = runtime.block_on(admin::call(&address, Method::POST, "/reload"))?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
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
