//! Keeps strangers from the homeserver's own interfaces: administration, metrics, replication.
//!
//! Leak: `/_synapse/admin` tells versions without any token, `/_synapse/metrics` tells everything to anybody, and
//!   `/_synapse/replication` and `/_synapse/mas` take a secret that should never be tried from outside.
//! Rule: they are answered 404 `M_UNRECOGNIZED`, also by every odd spelling that Synapse would understand, and so is the client
//!   API's `admin/whois`; listed networks reach those that are named. Without this rule nobody reaches any.
//! Cost: administration happens from the listed networks, or past the gateway.
//! Example:
//!     [rules.internal_endpoints]
//!     networks = ["10.0.0.0/8"]           # who may reach them; default: nobody
//!     endpoints = ["synapse_admin"]       # which of them; default: all but replication and mas

use ipnet::IpNet;
use serde::Deserialize;
use serde_spanned::Spanned;

use super::Rule;
use crate::matrix::endpoint::Endpoint;
use crate::policy::{Compiler, Mode};

/// What `[rules.internal_endpoints]` may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who may reach them. Default: nobody.
    networks: Vec<Spanned<String>>,
    /// Which of them. Naming `synapse_admin` opens all of the admin API. Default: all but replication and the MAS interface.
    endpoints: Option<Vec<Spanned<String>>>,
}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        if to.mode() == Mode::Report {
            let help = "without it nobody reaches them; list networks to open them";
            return to.problem(to.span(), "internal endpoints cannot be closed in report mode only", help);
        }
        let Some(Some(networks)) = super::networks(Some(&self.networks), to) else { return };
        let Some(open) = self.chosen(to) else { return };
        for endpoint in internal() {
            // Those that are not named are still this rule's to refuse.
            let networks: Vec<IpNet> = if open.contains(&endpoint) { networks.clone() } else { Vec::new() };
            to.open(endpoint, networks);
        }
    }
}

impl Config {
    fn chosen(&self, to: &mut Compiler<'_>) -> Option<Vec<Endpoint>> {
        let Some(names) = &self.endpoints else {
            let is_secret =
                |endpoint: &Endpoint| matches!(endpoint, Endpoint::SynapseReplication | Endpoint::SynapseMas);
            return Some(internal().filter(|endpoint| !is_secret(endpoint)).collect());
        };
        let mut chosen = Vec::new();
        for name in names {
            match Endpoint::from_id(name.get_ref()).filter(|endpoint| endpoint.is_internal()) {
                Some(Endpoint::SynapseAdmin) => {
                    chosen.extend(internal().filter(|it| it.id().starts_with("synapse_admin")))
                }
                Some(endpoint) => chosen.push(endpoint),
                None => {
                    let ids: Vec<_> = internal().map(Endpoint::id).collect();
                    let help = format!("write some of {}", ids.join(", "));
                    to.problem(name.span(), format!("`{}` is no internal endpoint", name.get_ref()), help);
                    return None;
                }
            }
        }
        Some(chosen)
    }
}

fn internal() -> impl Iterator<Item = Endpoint> {
    Endpoint::ALL.iter().copied().filter(|endpoint| endpoint.is_internal())
}

#[cfg(test)]
mod tests {
    use crate::rules::testing::*;

    const REFUSED: &str = "deny internal_endpoints 404 M_UNRECOGNIZED";
    const PATHS: [&str; 5] = [
        "/_synapse/admin/v1/server_version",
        "/_synapse/admin/v2/users/@a:hs",
        "/_synapse/metrics",
        "/_matrix/client/v3/admin/whois/@a:hs",
        "/health",
    ];

    #[test]
    fn nobody_reaches_them_by_default_and_listed_networks_do() {
        let closed = policy("[rules.internal_endpoints]");
        let open = policy("[rules.internal_endpoints]\nnetworks = [\"10.0.0.0/8\", \"192.0.2.7\"]");
        for path in PATHS {
            assert_eq!(judge_from(&closed, "GET", path, "10.1.2.3"), REFUSED, "{path}");
            assert_eq!(judge_from(&open, "GET", path, "10.1.2.3"), "permit", "{path}");
            assert_eq!(judge_from(&open, "GET", path, "192.0.2.7"), "permit", "{path}");
            assert_eq!(judge_from(&open, "GET", path, "192.0.2.8"), REFUSED, "{path}");
        }
    }

    #[test]
    fn only_the_one_spelling_is_opened() {
        let open = policy("[rules.internal_endpoints]\nnetworks = [\"0.0.0.0/0\"]");
        for path in ["/_synapse/%6Detrics", "/_synapse/m%61s/x", "/_synapse/%61dmin/v1/users"] {
            assert_eq!(judge(&open, "GET", path, &[]), REFUSED, "{path}");
        }
        assert!(judge(&open, "GET", "//_synapse/metrics", &[]).starts_with("deny "));
    }

    #[test]
    fn the_admin_api_may_be_opened_alone_and_secrets_only_by_name() {
        let admin = policy("[rules.internal_endpoints]\nnetworks = [\"0.0.0.0/0\"]\nendpoints = [\"synapse_admin\"]");
        assert_eq!(judge(&admin, "GET", "/_synapse/admin/v2/users", &[]), "permit");
        assert_eq!(judge(&admin, "GET", "/_synapse/metrics", &[]), REFUSED);
        let all = policy("[rules.internal_endpoints]\nnetworks = [\"0.0.0.0/0\"]");
        assert_eq!(judge(&all, "POST", "/_synapse/replication/x/y", &[]), REFUSED);
    }

    #[test]
    fn mistakes_are_told() {
        let told = problems("[rules.internal_endpoints]\nendpoints = [\"register\"]");
        assert!(told.contains("2:14: `register` is no internal endpoint"), "{told}");
        let told = problems("[rules.internal_endpoints]\nmode = \"report\"");
        assert!(told.contains("cannot be closed in report mode only"), "{told}");
    }
}
