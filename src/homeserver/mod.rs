//! Synapse's own configuration, read and compared with the gateway's: what of it leads past the doors.
//!
//! It holds secrets, and none is ever told: neither in a finding, nor in what is wrong with a file.

mod database;
mod file;
mod finding;
mod hook;
mod hosts;
mod listeners;
mod notary;
mod outside;
mod place;
mod proxy;
mod settings;
mod yaml;

pub use database::Remembered;
pub use file::Homeserver;
pub use finding::{Finding, Report, Weight};
pub use settings::{notary_lines, settings};

use std::sync::Arc;

use crate::config::gateway::Gateway;
use crate::policy::{Mode, Policy};

/// What Synapse's configuration is compared with.
pub struct Surroundings<'a> {
    /// The gateway file.
    pub gateway: &'a Gateway,
    /// The policy.
    pub policy: &'a Arc<Policy>,
}

impl Surroundings<'_> {
    /// Whether a rule of the policy acts.
    fn enforces(&self, rule: &str) -> bool {
        self.policy.rules().iter().any(|known| known.name == rule && known.mode == Mode::Enforce)
    }
}

/// Looks for all that leads past the gateway, or does not work with it.
pub fn examine(homeserver: &Homeserver, around: &Surroundings<'_>) -> Report {
    let mut report = Report::default();
    if homeserver.server_name().is_none() {
        // All else that it lacks would be told of the wrong file, or of half a configuration.
        let what =
            format!("{} says no `server_name`: is this Synapse's configuration, and all of it?", homeserver.name());
        report.finding(None, what, "--homeserver homeserver.yaml, and behind it what else Synapse is started with");
        return report;
    }
    listeners::examine(homeserver, around, &mut report);
    hook::examine(homeserver, around, &mut report);
    notary::examine(homeserver, around, &mut report);
    proxy::examine(homeserver, around, &mut report);
    hosts::examine(homeserver, around, &mut report);
    outside::examine(homeserver, &mut report);
    report
}
