//! Keeps notaries from learning whom this server meets, and strangers from asking this one as theirs.
//!
//! Leak: for each server that Synapse meets it asks a notary, matrix.org by default, for that server's keys, and again when
//!   they expire; so one party learns whom all servers talk to. And any stranger who asks Synapse for keys of a third server
//!   makes it connect there, and sees which servers it knows.
//! Rule: what Synapse asks notaries through a door of the way out is answered here: `direct` asks each server for its own keys,
//!   checks them and keeps them; `empty` answers that nothing is known, so that Synapse asks each server itself; a `rewrite`
//!   asks another notary, which is not told who asks. Whoever asks Synapse as a notary gets its own keys only (`own`).
//! Cost: keys of servers that are gone for good cannot be had, so old messages of theirs are not verified anew; but from notaries
//!   that `fallback` names, which then learn whom we meet of the dead. Each server whose keys are asked for sees our address, as
//!   it does whenever we talk to it.
//! Example:
//!     [rules.notary]
//!     matrix_org = "direct"   # direct | empty | { rewrite = "notary.example" }
//!     fallback = []           # with direct: notaries that are asked for keys of servers that cannot be reached
//!     inbound = "own"         # own | open

use http::StatusCode;
use serde::Deserialize;
use serde::de::Error;
use serde_json::json;
use serde_spanned::Spanned;

use super::Rule;
use crate::matrix::ServerName;
use crate::matrix::endpoint::Endpoint;
use crate::message::Answer;
use crate::policy::{Compiler, Destination};

/// What `[rules.notary]` may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who answers what Synapse asks matrix.org, or whatever notary it was told of. Default: `direct`.
    matrix_org: Option<Spanned<Notary>>,
    /// Notaries that `direct` asks, one after the other, for the keys of a server that cannot be reached. Default: none.
    fallback: Option<Spanned<Vec<ServerName>>>,
    /// Whose keys others may ask Synapse for. Default: `own`.
    inbound: Option<Spanned<Inbound>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Notary {
    Direct,
    Empty,
    Rewrite(ServerName),
}

#[derive(Clone, Copy, Debug)]
enum Inbound {
    Open,
    Own,
    Listed,
}

impl<'de> Deserialize<'de> for Inbound {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match String::deserialize(from)?.as_str() {
            "open" => Ok(Self::Open),
            "own" => Ok(Self::Own),
            // It is known, to be refused with its reason; nobody is told to write it.
            "listed" => Ok(Self::Listed),
            other => Err(D::Error::unknown_variant(other, &["own", "open"])),
        }
    }
}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let nothing = || Answer::json(StatusCode::OK, &json!({ "server_keys": [] }));
        let notary = self.matrix_org.as_ref().map_or(&Notary::Direct, Spanned::get_ref);
        let fallback = self.fallback.as_ref().map_or(&[][..], |fallback| fallback.get_ref());
        if let (Notary::Empty | Notary::Rewrite(_), Some(written)) = (notary, &self.fallback)
            && !fallback.is_empty()
        {
            let what = "`fallback` is asked where `direct` finds nothing, and this policy asks otherwise";
            to.problem(written.span(), what, "remove it, or write matrix_org = \"direct\"");
        }
        let ring = Destination::KeyRing(fallback.into());
        if let Some(written) = &self.matrix_org {
            to.from(written.span());
        }
        for endpoint in QUERIES {
            match notary {
                Notary::Direct => to.reroute(endpoint, ring.clone()),
                Notary::Empty => to.to_servers(endpoint).answer(nothing()),
                Notary::Rewrite(server) => to.reroute(endpoint, Destination::Server(server.clone())),
            }
        }
        let whole = to.span();
        to.from(whole);
        match super::chosen(to, self.inbound.as_ref(), Inbound::Own) {
            Inbound::Open => {}
            Inbound::Own => QUERIES.into_iter().for_each(|endpoint| to.endpoint(endpoint).only_own_keys(nothing())),
            Inbound::Listed => {
                let span = self.inbound.as_ref().map_or_else(|| to.span(), Spanned::span);
                to.problem(
                    span,
                    "`listed` needs verified signatures of other servers, which this version does not check",
                    "write `own`, or `open`",
                );
            }
        }
    }
}

/// The two forms of a question to a notary.
const QUERIES: [Endpoint; 2] = [Endpoint::KeyGetRemoteServerKeys, Endpoint::KeyGetRemoteServerKeysBatch];

#[cfg(test)]
mod tests {
    use crate::matrix::Flow;
    use crate::policy::selftest::{Probe, Seen};
    use crate::policy::{Decision, KeysOf};
    use crate::rules::testing::*;

    const QUERIES: [(&str, &str); 3] = [
        ("POST", "/_matrix/key/v2/query"),
        ("GET", "/_matrix/key/v2/query/other.example"),
        ("GET", "/_matrix/key/v2/query/other.example/ed25519:a?minimum_valid_until_ts=7"),
    ];

    /// What becomes of what Synapse asks a notary, and whether the notary would learn who asks.
    fn outbound(toml: &str, method: &str, target: &str) -> (String, bool) {
        let policy = policy(toml);
        let mut probe = Probe::new(method, target).unwrap();
        probe.header("authorization", "X-Matrix origin=\"here.example\"").unwrap();
        probe.flow = Some(Flow::Egress);
        let finding = probe.judge(&policy);
        let seen = Seen::of(&finding, &policy);
        let way = match &finding.verdict.decision {
            Decision::Permit(permit) => permit.reroute().map(|reroute| format!(": {}", reroute.to.describe())),
            Decision::Answer(denial) => Some(format!(" {:?}", denial.answer.body())),
            Decision::Deny(_) | Decision::Fail(_) => None,
        };
        let names_us = finding.upstream.is_some_and(|upstream| upstream.headers().contains_key("authorization"));
        (format!("{} {}{}", seen.outcome, seen.rule.unwrap_or("-"), way.unwrap_or_default()), names_us)
    }

    #[test]
    fn no_notary_is_asked_but_the_one_that_the_operator_names() {
        for (method, target) in QUERIES {
            let asked = |toml| outbound(toml, method, target);
            let direct = "permit notary: each server is asked for its own keys, and Mantlet answers";
            assert_eq!(asked("[rules.notary]"), (direct.into(), false), "{target}");
            assert_eq!(asked("[rules.notary]\nmatrix_org = \"direct\""), (direct.into(), false));
            let fallback = asked("[rules.notary]\nfallback = [\"a.example\", \"b.example:99\"]");
            let both = "; a.example, b.example:99 is asked for those of servers that cannot be reached";
            assert_eq!(fallback, (format!("{direct}{both}"), false));
            let empty = "answer notary b\"{\\\"server_keys\\\":[]}\"";
            assert_eq!(asked("[rules.notary]\nmatrix_org = \"empty\""), (empty.into(), false));
            let other = "permit notary: notary.example:8448 is asked instead, and not told who asks";
            let rewritten = asked("[rules.notary]\nmatrix_org = { rewrite = \"notary.example:8448\" }");
            assert_eq!(rewritten, (other.into(), false));
            assert_eq!(asked("[rules.notary]\nmode = \"report\""), ("permit -".into(), true));
            assert_eq!(asked("[rules.notary]\nmode = \"report\"\nmatrix_org = \"empty\"").0, "permit notary");
        }
    }

    #[test]
    fn nothing_else_that_synapse_asks_goes_another_way() {
        for target in ["/_matrix/key/v2/server", "/_matrix/federation/v1/query/profile?user_id=%40a%3Ab"] {
            assert_eq!(outbound("[rules.notary]", "GET", target), ("permit -".into(), true), "{target}");
        }
    }

    #[test]
    fn strangers_get_our_own_keys_and_no_others() {
        let closed = policy("[rules.notary]");
        let open = policy("[rules.notary]\ninbound = \"open\"");
        for (method, target) in QUERIES {
            assert_eq!(judge(&closed, method, target, &[]), "answer notary 200", "{target}");
            assert_eq!(answer(&closed, method, target).body(), &b"{\"server_keys\":[]}"[..]);
            assert_eq!(judge(&open, method, target, &[]), "permit");
            let mut probe = Probe::new(method, target).unwrap();
            probe.keys_of = KeysOf::Ourselves;
            assert!(matches!(probe.judge(&closed).verdict.decision, Decision::Permit(_)), "{target}");
        }
        assert_eq!(judge(&closed, "GET", "/_matrix/key/v2/server", &[]), "permit");
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        let problems = |toml: &str| problems(&format!("[rules.notary]\n{toml}"));
        assert!(problems("inbound = \"listed\"").contains("test.toml:2:11: `listed` needs verified signatures"));
        let near = problems("inbound = \"ownn\"");
        assert!(near.contains("did you mean \"own\"?"), "{near}");
        let odd = problems("matrix_org = { rewrite = \"a_b\" }");
        assert!(odd.contains("is no server's name"), "{odd}");
        for other in ["\"empty\"", "{ rewrite = \"notary.example\" }"] {
            let alone = problems(&format!("matrix_org = {other}\nfallback = [\"a.example\"]"));
            assert!(alone.contains("test.toml:3:12: `fallback` is asked where `direct` finds nothing"), "{alone}");
        }
        let unknown = problems("matrix_org = \"drect\"");
        assert!(unknown.contains("direct"), "{unknown}");
    }
}
