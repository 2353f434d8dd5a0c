//! `mantlet check`

use std::process::ExitCode;

use serde_json::json;

use super::output::Output;
use super::{Common, PolicyArgument};
use crate::config::compiled::Compiled;
use crate::config::gateway::{Door, Gateway};
use crate::config::notary_key::NotaryKey;
use crate::origin::NameServers;
use crate::problem::Problems;
use crate::tls;
use crate::tls::server::Credentials;

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// Print the merged policy, each line with its origin
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    policy: PolicyArgument,
}

impl Check {
    pub(super) fn run(self, common: &Common, output: &Output) -> Result<ExitCode, Problems> {
        let mut problems = Problems::default();
        // With a policy of its own, only that is looked at; else the gateway file, its certificates and its policy.
        let gateway = match self.policy.policy {
            Some(_) => Gateway::default(),
            None => common.gateway().unwrap_or_else(|found| {
                problems.0.extend(found.0);
                Gateway::default()
            }),
        };
        let has_gateway = problems.is_empty();
        for listener in &gateway.listeners {
            if let Err(found) = Credentials::read(listener) {
                problems.0.extend(found.0);
            }
            if listener.door == Door::Federation {
                let roots = tls::client::config(&listener.extra_roots).map(drop);
                let name_servers = NameServers::new(&gateway.egress.nameservers()).map(drop);
                problems.0.extend(roots.err().into_iter().flat_map(|found| found.0).chain(name_servers.err()));
            }
        }
        let source = match self.policy.policy {
            Some(_) => self.policy.source(common)?,
            None => gateway.policy.clone(),
        };
        let compiled = Compiled::load(&source).map_err(|found| {
            // The policy of a gateway file that cannot be read is not the one that is meant.
            if has_gateway {
                problems.0.extend(found.0);
            }
        });
        let (Ok(compiled), true) = (compiled, problems.is_empty()) else {
            return problems.or(()).map(|()| ExitCode::SUCCESS);
        };
        let policy = &compiled.policy;
        let notary = gateway.egress.notary_key.as_deref().map(NotaryKey::read).transpose()?;
        let notary = notary.as_ref().map(homeserver_yaml);
        let rules: Vec<_> = policy.rules().iter().filter(|rule| rule.location.is_some()).collect();
        output.print(
            || {
                if self.print {
                    return compiled.print.clone();
                }
                let names: Vec<_> =
                    rules.iter().map(|rule| format!("{} ({})", rule.name, rule.mode.as_str())).collect();
                let notary = notary.as_ref().map(|lines| format!("\nin homeserver.yaml:\n{lines}")).unwrap_or_default();
                format!(
                    "{}: good\n  rules  {}\n  tests  {} passed\n  digest {}{notary}",
                    policy.name(),
                    names.join(", "),
                    compiled.tests.len(),
                    policy.digest()
                )
            },
            || {
                json!({
                    "ok": true,
                    "policy": policy.name(),
                    "digest": policy.digest(),
                    "tests": compiled.tests.len(),
                    "rules": rules.iter().map(|rule| json!({
                        "name": rule.name, "mode": rule.mode.as_str(), "location": rule.location,
                    })).collect::<Vec<_>>(),
                    "homeserver_yaml": notary,
                    "merged": self.print.then_some(&compiled.print),
                })
            },
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// What makes Synapse believe what this key signs, and nothing else. The name is nobody's: questions for it never leave.
fn homeserver_yaml(key: &NotaryKey) -> String {
    format!(
        "trusted_key_servers:\n  - server_name: \"notary.invalid\"\n    verify_keys:\n      \"{}\": \"{}\"",
        key.id(),
        key.verify_key()
    )
}
