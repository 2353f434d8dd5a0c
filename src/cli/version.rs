//! `mantlet version`

use std::process::ExitCode;

use serde_json::json;

use super::output::Output;
use crate::problem::Problems;

#[derive(Debug, clap::Args)]
pub(super) struct Version {}

impl Version {
    pub(super) fn run(self, output: &Output) -> Result<ExitCode, Problems> {
        let version = env!("CARGO_PKG_VERSION");
        output.print(|| format!("mantlet {version}"), || json!({ "name": "mantlet", "version": version }));
        Ok(ExitCode::SUCCESS)
    }
}
