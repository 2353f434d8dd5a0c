//! Hides which rooms exist from strangers and from other servers.
//!
//! Leak: anybody lists the rooms of a private server, and so does any other server. A token that merely looks like one is
//!   enough where Synapse allows the list without authentication: it ignores tokens that are wrong.
//! Rule: clients list rooms with a token that Synapse says is valid (a guest's counts), or not at all; other servers do not.
//! Cost: users of other servers cannot browse this server's rooms; they join by invitation, link or alias.
//! Example:
//!     [rules.public_rooms]
//!     client = "token"        # open | token | deny
//!     federation = "deny"     # open | deny

use serde::Deserialize;
use serde_spanned::Spanned;

use super::Rule;
use super::access::{Clients, Servers};
use crate::matrix::endpoint::Endpoint;
use crate::policy::{Compiler, Guests};

/// What `[rules.public_rooms]` may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who may list rooms through the client API. Default: `token`.
    client: Option<Spanned<Clients>>,
    /// Which servers may list rooms. Default: `deny`.
    federation: Option<Spanned<Servers>>,
}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let lists = [Endpoint::GetPublicRooms, Endpoint::GetPublicRoomsFiltered];
        let refusal = "This server does not list its rooms";
        Clients::close(self.client.as_ref(), Clients::Token, (&lists, Guests::Allowed, refusal), to);
        let lists = [Endpoint::FederationGetPublicRooms, Endpoint::FederationGetPublicRoomsFiltered];
        let refusal = "This server does not list its rooms to other servers";
        Servers::close(self.federation.as_ref(), Servers::Deny, (&lists, refusal), to);
    }
}

#[cfg(test)]
mod tests {
    use crate::rules::testing::*;

    #[test]
    fn a_stranger_gets_synapses_own_401_for_every_prefix_and_method() {
        let policy = policy("[rules.public_rooms]");
        for prefix in ["api/v1", "r0", "v3", "unstable"] {
            for method in ["GET", "HEAD", "POST"] {
                let seen = judge(&policy, method, &format!("/_matrix/client/{prefix}/publicRooms?limit=1"), &[]);
                assert_eq!(seen, "deny public_rooms 401 M_MISSING_TOKEN", "{method} {prefix}");
            }
        }
    }

    #[test]
    fn a_token_passes_if_synapse_knows_it_and_a_guests_too() {
        let policy = policy("[rules.public_rooms]");
        let path = "/_matrix/client/v3/publicRooms";
        assert_eq!(judge_token(&policy, "GET", path, Supposed::Valid), "permit");
        assert_eq!(judge_token(&policy, "GET", path, Supposed::Guest), "permit");
        assert_eq!(judge_token(&policy, "GET", path, Supposed::Invalid), "deny public_rooms 401 M_UNKNOWN_TOKEN");
    }

    #[test]
    fn an_odd_authorization_is_no_token() {
        let policy = policy("[rules.public_rooms]");
        for odd in ["bearer x", "Bearer  x", "Basic x", "X-Matrix origin=a"] {
            let seen = judge(&policy, "GET", "/_matrix/client/v3/publicRooms", &[("authorization", odd)]);
            assert_eq!(seen, "deny public_rooms 401 M_MISSING_TOKEN", "{odd}");
        }
    }

    #[test]
    fn other_servers_are_told_403_and_never_401() {
        let policy = policy("[rules.public_rooms]");
        for method in ["GET", "POST"] {
            let seen = judge(&policy, method, "/_matrix/federation/v1/publicRooms", &[]);
            assert_eq!(seen, "deny public_rooms 403 M_FORBIDDEN", "{method}");
        }
    }

    #[test]
    fn open_leaves_either_side_alone() {
        let policy = policy("[rules.public_rooms]\nclient = \"open\"\nfederation = \"open\"");
        assert_eq!(judge(&policy, "GET", "/_matrix/client/v3/publicRooms", &[]), "permit");
        assert_eq!(judge(&policy, "GET", "/_matrix/federation/v1/publicRooms", &[]), "permit");
    }

    #[test]
    fn a_spelling_that_reads_two_ways_is_refused() {
        let policy = policy("[rules.public_rooms]");
        for path in ["/_matrix/client/v3/public%52ooms", "/_matrix/client/v%33/publicRooms"] {
            assert_eq!(judge(&policy, "GET", path, &[]), "deny spelling 404 M_UNRECOGNIZED", "{path}");
        }
    }

    #[test]
    fn listed_is_refused_while_signatures_are_not_verified() {
        let problems = problems("[rules.public_rooms]\nfederation = \"listed\"");
        assert!(problems.contains("test.toml:2:14: `listed` needs verified signatures"), "{problems}");
    }
}
