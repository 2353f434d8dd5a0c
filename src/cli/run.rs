//! `mantlet run`

use std::process::ExitCode;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::{Common, PROBLEM};
use crate::observe::log::{self, Format};
use crate::problem::Problems;
use crate::server::{self, Outcome, Start};

#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// The form of the log on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl Run {
    pub(super) fn run(self, common: &Common) -> Result<ExitCode, Problems> {
        // Before the first secret is read. Where the system refuses it, all else goes on.
        let is_closed = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        let gateway = common.gateway()?;
        let format = match self.log_format {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        };
        log::init(gateway.log.level.as_str(), format)?;
        log::quote_no_panics();
        if let Err(error) = is_closed {
            tracing::warn!(%error, "this process can be read by others of its user");
        }
        let file = common.file();
        match &file {
            Some(file) => tracing::info!(file = %file.display(), "the gateway file is read"),
            None => tracing::info!("there is no gateway file: the defaults are in force"),
        }
        let running = server::start(Start { gateway, file, signals: true, access: None })?;
        match running.wait() {
            Outcome::Drained => Ok(ExitCode::SUCCESS),
            Outcome::Broke => Ok(ExitCode::from(PROBLEM)),
        }
    }
}
