//! `mantlet check`

use std::process::ExitCode;

use serde_json::json;

use super::output::Output;
use super::{Common, PolicyArgument};
use crate::config::compiled::Compiled;
use crate::config::gateway::{Door, Gateway};
use crate::config::notary_key::NotaryKey;
use crate::origin::NameServers;
use crate::policy::{Mode, Policy};
use crate::problem::Problems;
use crate::tls;
use crate::tls::leaves::Interception;
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
            let name_servers = || NameServers::new(&gateway.egress.nameservers()).map(drop).err();
            match listener.door {
                Door::Ingress => {}
                Door::Federation | Door::Proxy => {
                    let roots = tls::client::config(&listener.extra_roots).map(drop).err();
                    problems.0.extend(roots.into_iter().flat_map(|found| found.0).chain(name_servers()));
                }
            }
        }
        let interception = Interception::read(&gateway).map_err(|found| problems.0.extend(found.0)).ok();
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
        if let (Ok(compiled), Some(interception)) = (&compiled, interception) {
            problems.0.extend(interception.leaves(&compiled.policy).err().into_iter().flat_map(|found| found.0));
        }
        let (Ok(compiled), true) = (compiled, problems.is_empty()) else {
            return problems.or(()).map(|()| ExitCode::SUCCESS);
        };
        let policy = &compiled.policy;
        let has_proxy = gateway.listeners.iter().any(|listener| listener.door == Door::Proxy);
        // A policy that is looked at by itself says nothing of doors.
        let open = self.policy.policy.is_none().then(|| left_open(policy, &gateway)).flatten();
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
                    "{}: good\n  rules  {}\n  tests  {} passed\n  digest {}{}{}{notary}",
                    policy.name(),
                    names.join(", "),
                    compiled.tests.len(),
                    policy.digest(),
                    if has_proxy { read_only_where(policy) } else { String::new() },
                    open.as_ref().map(|open| format!("\n  open   {open}")).unwrap_or_default()
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
                    "open": open,
                    "homeserver_yaml": notary,
                    "merged": self.print.then_some(&compiled.print),
                })
            },
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// Rules that act on what Synapse asks others can act only where that can be read.
fn read_only_where(policy: &Policy) -> String {
    let mut rules: Vec<_> = policy.outbound_gates().map(|gate| policy.rule(gate.rule).name).collect();
    rules.dedup();
    let hosts: Vec<_> = policy.egress().intercepted().map(|(name, _)| name).collect();
    match (rules.is_empty(), hosts.is_empty()) {
        (true, _) => String::new(),
        (false, true) => format!("\n  out    {}: only in the clear, for no host is intercepted", rules.join(", ")),
        (false, false) => format!("\n  out    {}: only on {}, and in the clear", rules.join(", "), hosts.join(", ")),
    }
}

/// What the policy wants to be closed, and this gateway cannot close.
fn left_open(policy: &Policy, gateway: &Gateway) -> Option<String> {
    let reading = policy.unbinding().filter(|reading| reading.mode == Mode::Enforce)?;
    let has_proxy = gateway.listeners.iter().any(|listener| listener.door == Door::Proxy);
    let why = match (has_proxy, &gateway.egress.ca) {
        (true, Some(_)) => return None,
        (true, None) => "[egress.ca] names no authority",
        (false, _) => "there is no proxy door",
    };
    let rule = policy.rule(reading.rule).name;
    Some(format!("{rule}: who removes an address or deactivates an account is told of to identity servers, for {why}"))
}

/// What makes Synapse believe what this key signs, and nothing else. The name is nobody's: questions for it never leave.
fn homeserver_yaml(key: &NotaryKey) -> String {
    format!(
        "trusted_key_servers:\n  - server_name: \"notary.invalid\"\n    verify_keys:\n      \"{}\": \"{}\"",
        key.id(),
        key.verify_key()
    )
}
