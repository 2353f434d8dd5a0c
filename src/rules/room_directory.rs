//! Hides room ids, aliases and summaries from strangers and from other servers.
//!
//! Leak: anybody turns an alias into a room id and the list of servers in the room, sees whether a room is published, and
//!   reads name, topic and number of members from its summary; Synapse has no setting for any of it.
//! Rule: clients need a token that Synapse says is valid (a guest's counts); other servers resolve aliases, or do not.
//! Cost: with `federation = "deny"` nobody elsewhere joins by alias. Web pages that preview rooms without logging in show none.
//! Example:
//!     [rules.room_directory]
//!     client = "token"        # open | token | deny
//!     federation = "open"     # open | deny

use serde::Deserialize;
use serde_spanned::Spanned;

use super::Rule;
use super::access::{Clients, Servers};
use crate::matrix::endpoint::Endpoint;
use crate::policy::{Compiler, Guests};

/// What `[rules.room_directory]` may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who may resolve aliases and read summaries through the client API. Default: `token`.
    client: Option<Spanned<Clients>>,
    /// Which servers may resolve aliases. Default: `open`.
    federation: Option<Spanned<Servers>>,
}

/// What is read; writing needs a token at Synapse in any case.
const READS: [Endpoint; 3] = [Endpoint::GetAlias, Endpoint::GetRoomVisibility, Endpoint::GetRoomSummary];

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let refusal = "This server does not resolve its aliases";
        Clients::close(self.client.as_ref(), Clients::Token, (&READS, Guests::Allowed, refusal), to);
        let refusal = "This server does not resolve its aliases for other servers";
        Servers::close(self.federation.as_ref(), Servers::Open, (&[Endpoint::FederationQueryDirectory], refusal), to);
    }
}

#[cfg(test)]
mod tests {
    use crate::rules::testing::*;

    const PATHS: [&str; 6] = [
        "/_matrix/client/v3/directory/room/%23a%3Ahs",
        "/_matrix/client/r0/directory/list/room/!r:hs",
        "/_matrix/client/v1/room_summary/%23a:hs",
        "/_matrix/client/unstable/im.nheko.summary/summary/%23a:hs",
        "/_matrix/client/unstable/imXnheko/summary/summary/%23a:hs",
        "/_matrix/client/unstable/im.nheko.summary/rooms/%23a:hs/summary",
    ];

    #[test]
    fn a_stranger_resolves_and_reads_nothing_in_any_spelling_that_synapse_takes() {
        let policy = policy("[rules.room_directory]");
        for path in PATHS {
            for method in ["GET", "HEAD"] {
                let seen = judge(&policy, method, path, &[]);
                assert_eq!(seen, "deny room_directory 401 M_MISSING_TOKEN", "{method} {path}");
            }
            assert_eq!(judge_token(&policy, "GET", path, Supposed::Guest), "permit", "{path}");
        }
    }

    #[test]
    fn other_servers_resolve_unless_denied() {
        let path = "/_matrix/federation/v1/query/directory?room_alias=%23a:hs";
        assert_eq!(judge(&policy("[rules.room_directory]"), "GET", path, &[]), "permit");
        let closed = policy("[rules.room_directory]\nfederation = \"deny\"");
        assert_eq!(judge(&closed, "GET", path, &[]), "deny room_directory 403 M_FORBIDDEN");
        let odd = "/_matrix/federation/v1/query/d%69rectory?room_alias=%23a:hs";
        assert_eq!(judge(&closed, "GET", odd, &[]), "deny spelling 404 M_UNRECOGNIZED");
    }
}
