//! `mantlet check`

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::json;

use super::output::Output;
use super::{Common, PROBLEM, PolicyArgument};
use crate::config::address::{AdminAddress, ListenerAddress};
use crate::config::compiled::Compiled;
use crate::config::gateway::{Door, Gateway};
use crate::config::notary_key::NotaryKey;
use crate::homeserver::{self, Homeserver, Remembered, Surroundings, Weight};
use crate::matrix::Endpoint;
use crate::origin::NameServers;
use crate::policy::egress::Unread;
use crate::policy::plan::RuleInfo;
use crate::policy::{Mode, Policy};
use crate::problem::Problems;
use crate::server::socket_file::{MAKE_DIRECTORY, missing_directory};
use crate::tls;
use crate::tls::ca::End;
use crate::tls::leaves::Interception;
use crate::tls::server::Credentials;

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// Print the merged policy, each line with its origin
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    policy: PolicyArgument,
    /// Say what in Synapse's configuration leads past the gateway: its file, more of them, or a directory of them
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["policy", "print"])]
    homeserver: Vec<PathBuf>,
}

impl Check {
    pub(super) fn run(self, common: &Common, output: &Output) -> Result<ExitCode, Problems> {
        let mut problems = Problems::default();
        if !self.homeserver.is_empty() {
            common.needed_file()?;
        }
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
                Door::Federation | Door::Proxy | Door::Notary => {
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
        let possible = compiled.as_ref().ok().zip(interception.as_ref()).map(|(compiled, interception)| {
            let possible = interception.possible(&compiled.policy);
            problems.0.extend(interception.leaves(&possible).err().into_iter().flat_map(|found| found.0));
            possible
        });
        let homeserver = (!self.homeserver.is_empty()).then(|| Homeserver::load(&self.homeserver));
        let homeserver = homeserver.transpose().unwrap_or_else(|found| {
            problems.0.extend(found.0);
            None
        });
        let (Ok(compiled), Some(possible), true) = (compiled, possible, problems.is_empty()) else {
            return problems.or(()).map(|()| ExitCode::SUCCESS);
        };
        if let Some(homeserver) = homeserver {
            let around = Surroundings { gateway: &gateway, policy: &possible };
            return Ok(tell(&homeserver, &around, common, output));
        }
        let is_alone = self.policy.policy.is_some();
        let file = common.file().filter(|_| !is_alone).map(|file| file.display().to_string());
        let policy = &compiled.policy;
        let has_proxy = gateway.listeners.iter().any(|listener| listener.door == Door::Proxy);
        // A policy that is looked at by itself says nothing of doors.
        let open = (!is_alone).then(|| left_open(policy, &gateway)).flatten();
        let (beginning, ending) = (interception.as_ref().and_then(beginning), interception.as_ref().and_then(ending));
        let needs = missing_directories(&gateway);
        let notary = gateway.egress.notary_key.as_deref().map(NotaryKey::read).transpose()?;
        let notary = homeserver::notary_lines(&gateway, notary.as_ref());
        let rules: Vec<_> = policy.rules().iter().filter(|rule| rule.location.is_some()).collect();
        output.print(
            || {
                if self.print {
                    return compiled.print.clone();
                }
                let names: Vec<_> =
                    rules.iter().map(|rule| format!("{} ({})", rule.name, rule.mode.as_str())).collect();
                let notary = notary.as_ref().map(|lines| format!("\nin homeserver.yaml:\n{lines}")).unwrap_or_default();
                let file = match (&file, is_alone) {
                    (_, true) => String::new(),
                    (Some(file), false) => format!("\n  file   {file} (gateway)"),
                    (None, false) => "\n  file   no gateway file: the defaults".to_owned(),
                };
                format!(
                    "{}: good{file}\n  rules  {}\n  tests  {} passed\n  digest {}{}{}{}{}{}{notary}",
                    policy.name(),
                    names.join(", "),
                    compiled.tests.len(),
                    policy.digest(),
                    beginning.as_ref().map(|beginning| format!("\n  begins {beginning}")).unwrap_or_default(),
                    ending.as_ref().map(|ending| format!("\n  ends   {ending}")).unwrap_or_default(),
                    if has_proxy { way_out(policy, &possible, &gateway) } else { String::new() },
                    open.as_ref().map(|open| format!("\n  open   {open}")).unwrap_or_default(),
                    needs.iter().map(|needs| format!("\n  needs  {needs}")).collect::<String>()
                )
            },
            || {
                json!({
                    "ok": true,
                    "gateway": file,
                    "policy": policy.name(),
                    "digest": policy.digest(),
                    "tests": compiled.tests.len(),
                    "rules": rules.iter().map(|rule| json!({
                        "name": rule.name, "mode": rule.mode.as_str(), "location": rule.location,
                    })).collect::<Vec<_>>(),
                    "intercepted": possible.egress().intercepted().map(|(name, _)| name).collect::<Vec<_>>(),
                    "unread": unread(policy, &possible).map(|(name, _)| name).collect::<Vec<_>>(),
                    "open": open,
                    "needs": needs,
                    "beginning": beginning,
                    "ending": ending,
                    "homeserver_yaml": notary,
                    "merged": self.print.then_some(&compiled.print),
                })
            },
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// Tells what was found in Synapse's configuration, and what to ask its database.
fn tell(homeserver: &Homeserver, around: &Surroundings<'_>, common: &Common, output: &Output) -> ExitCode {
    let gateway = common.file().unwrap_or_default().display().to_string();
    let report = homeserver::examine(homeserver, around);
    let remembered = Remembered::of(homeserver);
    let (findings, notes) = (report.count(Weight::Finding), report.count(Weight::Note));
    output.print(
        || {
            let mut page: String = report.0.iter().map(|finding| format!("{finding}\n")).collect();
            let Remembered { with, identity_servers, push_gateways } = &remembered;
            let file = Remembered::file(homeserver).map(|file| format!(" {file}")).unwrap_or_default();
            let _ = write!(
                page,
                "\nwhom the database remembers, and Synapse will ask ({with}{file}):\n  {identity_servers}\n  {push_gateways}\n\n\
                 compared with {gateway}\nfindings {findings}, notes {notes}"
            );
            page
        },
        || json!({ "ok": findings == 0, "gateway": gateway, "findings": report.0, "database": remembered }),
    );
    ExitCode::from(if findings == 0 { 0 } else { PROBLEM })
}

/// What is to be done before the start about sockets whose directory is not there. It is no reason to refuse the file: a unit makes
/// that directory when it starts, and not before.
fn missing_directories(gateway: &Gateway) -> Vec<String> {
    let listeners = gateway.listeners.iter().filter_map(|listener| match &listener.bind {
        ListenerAddress::Unix(path) => Some(path),
        ListenerAddress::Tcp(_) | ListenerAddress::Systemd(_) => None,
    });
    let admin = gateway.admin.iter().filter_map(|admin| match admin {
        AdminAddress::Unix(path) => Some(path),
        AdminAddress::Tcp(_) => None,
    });
    let missing: BTreeSet<_> = listeners.chain(admin).filter_map(|path| missing_directory(path)).collect();
    let told = |directory: &Path| format!("the directory {}, for a socket: {MAKE_DIRECTORY}", directory.display());
    missing.into_iter().map(told).collect()
}

/// Which rules act on what Synapse asks others, each with the doors and the hosts at which that can be read; and what cannot be read
/// for want of an authority.
fn way_out(stated: &Policy, possible: &Policy, gateway: &Gateway) -> String {
    let hosts: Vec<_> = possible.egress().intercepted().map(|(name, _)| name).collect();
    let hosts = hosts.join(", ");
    let has = |door: Door| gateway.listeners.iter().any(|listener| listener.door == door);
    let doors = match (has(Door::Federation), has(Door::Notary)) {
        (true, true) => Some("at the federation and the notary door"),
        (true, false) => Some("at the federation door"),
        (false, true) => Some("at the notary door"),
        (false, false) => None,
    };
    let at = |rule| match (doors.filter(|_| is_for_servers(possible, rule)), hosts.is_empty()) {
        (None, true) => "only in the clear, for no host is intercepted".to_owned(),
        (None, false) => format!("only at {hosts}, and in the clear"),
        (Some(doors), true) => format!("{doors}, and in the clear; no host is intercepted"),
        (Some(doors), false) => format!("{doors}, at {hosts}, and in the clear"),
    };
    let mut page: String =
        possible.outbound_rules().map(|rule| format!("\n  out    {}: {}", rule.name, at(rule))).collect();
    for (name, how) in unread(stated, possible) {
        let how = match how {
            Unread::Tunnel => "passes unread",
            Unread::Deny => "is refused",
        };
        let _ = write!(page, "\n  open   {name} {how}, for there is no authority: [egress.ca], then mantlet ca init");
    }
    page
}

/// Whether a rule acts by what servers are asked for, which all doors of the way out can read.
fn is_for_servers(policy: &Policy, rule: &RuleInfo) -> bool {
    let of = |endpoint: &Endpoint| {
        let gates = policy.gates_to_servers(*endpoint).iter().map(|gate| gate.rule);
        gates.chain(policy.reroute(*endpoint).map(|reroute| reroute.rule)).collect::<Vec<_>>()
    };
    Endpoint::ALL.iter().flat_map(of).any(|index| policy.rule(index).name == rule.name)
}

/// Hosts that the policy would look into, and cannot.
fn unread<'a>(stated: &'a Policy, possible: &'a Policy) -> impl Iterator<Item = (&'a str, Unread)> {
    let is_read = |host: &str| possible.egress().intercepted().any(|(name, _)| name == host);
    stated.egress().half_open().filter(move |(name, _)| !is_read(name))
}

/// What is to be done about an authority that begins in the future. It is no reason to refuse it: the clock may be what is wrong.
fn beginning(interception: &Interception) -> Option<String> {
    let stated = interception.authority().filter(|stated| stated.is_ahead(SystemTime::now()))?;
    let begins = humantime::format_rfc3339_seconds(stated.not_before);
    Some(format!(
        "the authority begins in the future, at {begins}: until then nobody believes it. Set the clock of this machine; if it is right, \
         make a new one with `mantlet ca init --force`, then restart Synapse with the new bundle"
    ))
}

/// What is to be done about an authority that ends soon. One that has ended was refused.
fn ending(interception: &Interception) -> Option<String> {
    match interception.authority()?.end(SystemTime::now()) {
        End::Far | End::Past => None,
        End::Soon(days) => Some(format!(
            "the authority ends in {days} days: make a new one with `mantlet ca init --force`, then restart Synapse with the new \
             bundle"
        )),
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
