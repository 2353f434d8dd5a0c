//! Keys of other servers: whom Synapse asks for them, and whose answers it believes.

use super::Surroundings;
use super::file::Homeserver;
use super::finding::Report;
use super::hook::RESTRICTED;
use super::yaml::{Map, Node, Value};
use crate::config::gateway::Door;
use crate::config::notary_key::NotaryKey;
use crate::matrix::ServerName;
use crate::policy::egress::Way;

/// Looks at `trusted_key_servers`, and at what else decides who is asked.
pub(super) fn examine(homeserver: &Homeserver, around: &Surroundings<'_>, report: &mut Report) {
    whitelist(homeserver, report);
    if let Some((key, _)) = homeserver.entry("perspectives") {
        let what = "`perspectives` is an old name for `trusted_key_servers`, and is not looked at here";
        report.finding(&key.location, what, "move its servers to `trusted_key_servers`");
    }
    let servers = homeserver.entry("trusted_key_servers");
    let by_door = around.gateway.listeners.iter().any(|listener| listener.door == Door::Federation)
        && homeserver.get(RESTRICTED).is_some_and(Node::is_true)
        && around.enforces("notary");
    let is_answered = |name: &str| by_door || (around.enforces("notary") && around.looks_into(name));
    let help = "[rules.notary] in the policy, with a federation door or a proxy door that looks into it: then Mantlet answers; or \
                trusted_key_servers: []";
    let Some((key, list)) = servers else {
        if !is_answered(MATRIX_ORG) && homeserver.entry("perspectives").is_none() {
            let what = format!(
                "{} sets no `trusted_key_servers`, so {MATRIX_ORG} is asked for the keys of every server that yours meets",
                homeserver.name()
            );
            report.finding(None, what, help);
        }
        return;
    };
    let Some(list) = list.as_list() else {
        let what = format!("`trusted_key_servers` is {}, and has to be a list: Synapse does not start", list.kind());
        return report.finding(&key.location, what, "trusted_key_servers: []");
    };
    let ours = around.gateway.egress.notary_key.as_deref().and_then(|path| NotaryKey::read(path).ok());
    let is_door = |name: &str| {
        around
            .gateway
            .listeners
            .iter()
            .filter_map(|listener| listener.notary.as_ref())
            .any(|d| d.server_name.as_str() == name)
    };
    let mut is_ours_named = false;
    for server in list {
        let name =
            server.as_map().and_then(|map| map.get("server_name")?.as_str()).unwrap_or("a server without a name");
        let pinned = server.as_map().and_then(|map| map.get("verify_keys")?.as_map());
        match pinned {
            None if !is_answered(name) && !is_door(name) => {
                let what = format!("{name} is asked for the keys of every server that yours meets");
                report.finding(&server.location, what, help);
            }
            None => {
                if !by_door && !is_door(name) && name != MATRIX_ORG {
                    let what = format!("whether {name} is asked for keys at another host cannot be seen from here");
                    let help = format!("https://{name}/.well-known/matrix/server says so: look into that host as well");
                    report.note(&server.location, what, help);
                }
            }
            Some(keys) if ours.as_ref().is_some_and(|ours| is_key_of(keys, ours)) => is_ours_named = true,
            Some(_) if !is_answered(name) => {
                let what =
                    format!("{name} is asked for the keys of every server that yours meets, and only its word counts");
                report.finding(&server.location, what, help);
            }
            Some(_) => {
                let what = format!(
                    "`verify_keys` of {name} are pinned: Synapse believes no answer of Mantlet, and asks each server by itself"
                );
                let help = match &ours {
                    Some(_) => "leave out this entry, and take the one that `mantlet check` prints",
                    None => "leave out `verify_keys`; or make a notary key, [egress] notary_key, and pin that",
                };
                report.finding(&server.location, what, help);
            }
        }
    }
    if let (Some(ours), false, true) = (&ours, is_ours_named, list.iter().all(pins)) {
        let what = format!(
            "the notary key {} of this gateway is not in `trusted_key_servers`: nobody looks at what it signs",
            ours.id()
        );
        report.note(&key.location, what, "`mantlet check` prints the entry");
    }
}

impl Surroundings<'_> {
    /// Whether the proxy door looks into what this homeserver is asked, as far as it is known where that is.
    fn looks_into(&self, name: &str) -> bool {
        let delegated = (name == MATRIX_ORG).then_some(MATRIX_ORG_IS_AT);
        let is_read = |name| {
            ServerName::parse(name).is_some_and(|name| self.policy.egress().way(name.host()).0 == Way::Intercept)
        };
        !self.proxy_doors().is_empty() && is_read(name) && delegated.is_none_or(is_read)
    }
}

fn pins(server: &Node) -> bool {
    server.as_map().is_some_and(|map| map.get("verify_keys").is_some())
}

fn is_key_of(keys: &Map, ours: &NotaryKey) -> bool {
    let stated = keys.get(&ours.id()).and_then(Node::as_str);
    stated.is_some_and(|key| key.trim_end_matches('=') == ours.verify_key())
}

/// Synapse asks nobody who is not listed, itself included.
fn whitelist(homeserver: &Homeserver, report: &mut Report) {
    let Some((key, list)) = homeserver.entry("federation_domain_whitelist").filter(|(_, list)| !list.is_null()) else {
        return;
    };
    match list.value {
        Value::List(_) | Value::Map(_) => {}
        Value::Null | Value::Boolean(_) | Value::Integer(_) | Value::Text(_) => {
            let does = match list.as_str() {
                Some(_) => "takes its letters for servers, and federates with nobody",
                None => "does not start",
            };
            let what =
                format!("`federation_domain_whitelist` is {}, and has to be a list: Synapse {does}", list.kind());
            return report.finding(&key.location, what, "federation_domain_whitelist: [example.org]");
        }
    }
    let (Some(list), Some(name)) = (list.as_list(), homeserver.server_name()) else { return };
    if !list.is_empty() && !list.iter().any(|node| node.as_str() == Some(name)) {
        let what = format!(
            "{name} itself is not in `federation_domain_whitelist`: it gives nobody its own keys as a notary, and nothing \
             that it signs itself is let in"
        );
        report.finding(&key.location, what, format!("federation_domain_whitelist: [{name}, …]"));
    }
}

/// Whom Synapse asks if it is told of nobody.
const MATRIX_ORG: &str = "matrix.org";
/// Where its `.well-known` leads.
const MATRIX_ORG_IS_AT: &str = "matrix-federation.matrix.org";
