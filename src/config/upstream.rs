//! `[upstream.NAME]`: servers that answer alike, under a name.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error};
use serde_spanned::Spanned;

use super::address::UpstreamAddress;
use super::gateway::Check;
use crate::problem::Problem;

/// An upstream: servers that answer alike, under the name that the operator gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The name in routes, records and metrics.
    pub name: Arc<str>,
    /// Where its servers listen; never empty.
    pub servers: Vec<UpstreamAddress>,
}

impl Upstream {
    /// The name of the upstream that every gateway has: the homeserver itself, which answers what no route takes, and says
    /// whether a token is valid.
    pub const SYNAPSE: &str = "synapse";

    /// The homeserver where it is by default.
    pub fn synapse() -> Self {
        let server = UpstreamAddress::Tcp { host: "127.0.0.1".into(), port: 8008 };
        Self { name: Self::SYNAPSE.into(), servers: vec![server] }
    }
}

/// `[upstream.NAME]` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpstreamTable {
    #[serde(deserialize_with = "one_or_more")]
    servers: Vec<Spanned<UpstreamAddress>>,
}

/// Looks at all upstreams, the homeserver first; `is_our_own` tells whether an address is a listener of this gateway.
pub(super) fn upstreams(
    tables: BTreeMap<String, UpstreamTable>,
    is_our_own: impl Fn(&UpstreamAddress) -> bool,
    check: &mut Check<'_>,
) -> Vec<Upstream> {
    let mut upstreams = vec![Upstream::synapse()];
    for (name, table) in tables {
        if !is_name(&name) {
            let help = "write 1 to 64 of a-z, 0-9, - and _: the name stands in records and metrics";
            let problem = Problem::new(format!("{name:?} is not a name for an upstream")).help(help);
            check.problem(problem, check.place(&name));
            continue;
        }
        let mut servers: Vec<UpstreamAddress> = Vec::new();
        for server in table.servers {
            let (span, server) = (server.span(), server.into_inner());
            if is_our_own(&server) {
                let what = format!("{server} is this gateway's own listener: requests would go round for ever");
                check.problem(Problem::new(what), span);
            } else if servers.contains(&server) {
                check.problem(Problem::new(format!("{server} stands twice in [upstream.{name}]")), span);
            } else {
                servers.push(server);
            }
        }
        if name == Upstream::SYNAPSE {
            upstreams[0].servers = servers;
        } else {
            upstreams.push(Upstream { name: name.into(), servers });
        }
    }
    upstreams
}

impl Check<'_> {
    /// Where an upstream's name stands.
    pub(super) fn place(&self, name: &str) -> Range<usize> {
        self.upstreams.get(name).cloned().unwrap_or_default()
    }
}

fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Spanned<UpstreamAddress>>, D::Error> {
    let servers = Vec::deserialize(from)?;
    if servers.is_empty() {
        return Err(D::Error::custom("no server\nwrite servers = [\"http://127.0.0.1:8008\"]"));
    }
    Ok(servers)
}

fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    !name.is_empty() && name.len() <= 64 && name.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use crate::config::route::tests::{assert_told, parse};

    #[test]
    fn each_upstream_has_servers_of_its_own() {
        assert_told(
            "[upstream.synapse]\nservers = []\n",
            "mantlet.toml:2:11: `servers` in [upstream.synapse]: no server",
        );
        assert_told("[upstream.synapse]\nservers = ['http://a:1', 'http://a:1']\n", "2:26: http://a:1 stands twice");
        assert_told("[upstream.synapse]\nserver = 'http://a:1'\n", "did you mean `servers`?");
        assert_told("[upstream.Media]\nservers = ['http://a:1']\n", "mantlet.toml:1:11: \"Media\" is not a name");
        assert_told("[upstream.media]\nservers = ['http://127.0.0.1:8480']\n", "2:12: http://127.0.0.1:8480 is this");
        let two = parse("[upstream.synapse]\nservers = ['http://a:1', 'unix:/b']\n").unwrap();
        assert_eq!(two.upstreams[0].servers.len(), 2);
    }
}
