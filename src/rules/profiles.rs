//! Hides display names, avatars and other profile fields from strangers.
//!
//! Leak: anybody reads the profile of any user, and learns so that the account exists; so does any other server.
//! Rule: clients read profiles with a token that Synapse says is valid and that is no guest's; other servers as they always
//!   did, or not at all. Custom fields (MSC4133, stable and `uk.tcpip.msc4133`) are profile fields like any other.
//! Cost: with `federation = "deny"`, users of other servers see no name when they search or invite by user id; names inside
//!   rooms travel in room events and stay.
//! Example:
//!     [rules.profiles]
//!     client = "token"        # open | token | deny
//!     federation = "open"     # open | deny

use serde::Deserialize;
use serde_spanned::Spanned;

use super::Rule;
use super::access::{Clients, Servers};
use crate::matrix::endpoint::Endpoint;
use crate::policy::{Compiler, Guests};

/// What `[rules.profiles]` may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who may read profiles through the client API. Default: `token`.
    client: Option<Spanned<Clients>>,
    /// Which servers may read profiles. Default: `open`.
    federation: Option<Spanned<Servers>>,
}

/// What is read; writing needs the user's own token at Synapse in any case.
const READS: [Endpoint; 4] =
    [Endpoint::GetProfile, Endpoint::GetDisplayName, Endpoint::GetAvatarUrl, Endpoint::GetProfileField];

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let refusal = "Profile isn't available";
        Clients::close(self.client.as_ref(), Clients::Token, (&READS, Guests::Refused, refusal), to);
        let refusal = "Profile lookup over federation is disabled on this homeserver";
        Servers::close(self.federation.as_ref(), Servers::Open, (&[Endpoint::FederationQueryProfile], refusal), to);
    }
}

#[cfg(test)]
mod tests {
    use crate::rules::testing::*;

    const PATHS: [&str; 8] = [
        "/_matrix/client/v3/profile/@alice:hs",
        "/_matrix/client/r0/profile/%40alice%3Ahs",
        "/_matrix/client/api/v1/profile/@alice:hs/displayname",
        "/_matrix/client/unstable/profile/@alice:hs/avatar_url",
        "/_matrix/client/v3/profile/@alice:hs/m.tz",
        "/_matrix/client/unstable/uk.tcpip.msc4133/profile/@alice:hs/m.tz",
        "/_matrix/client/v3/profile/@alice:hs/..",
        "/_matrix/client/v3/profile//displayname",
    ];

    #[test]
    fn a_stranger_reads_no_field_in_any_spelling_of_the_user() {
        let policy = policy("[rules.profiles]");
        for path in PATHS {
            for method in ["GET", "HEAD"] {
                assert_eq!(judge(&policy, method, path, &[]), "deny profiles 401 M_MISSING_TOKEN", "{method} {path}");
            }
        }
    }

    #[test]
    fn a_user_reads_and_a_guest_does_not() {
        let policy = policy("[rules.profiles]");
        for path in PATHS {
            assert_eq!(judge_token(&policy, "GET", path, Supposed::Valid), "permit", "{path}");
            let seen = judge_token(&policy, "GET", path, Supposed::Guest);
            assert_eq!(seen, "deny profiles 403 M_GUEST_ACCESS_FORBIDDEN", "{path}");
        }
    }

    #[test]
    fn writing_is_left_to_synapse() {
        let policy = policy("[rules.profiles]");
        assert_eq!(judge(&policy, "PUT", "/_matrix/client/v3/profile/@alice:hs/displayname", &[]), "permit");
    }

    #[test]
    fn an_encoded_field_name_does_not_slip_past() {
        let policy = policy("[rules.profiles]");
        let seen = judge(&policy, "GET", "/_matrix/client/v3/profile/@alice:hs/display%6Eame", &[]);
        assert_eq!(seen, "deny spelling 404 M_UNRECOGNIZED");
    }

    #[test]
    fn other_servers_read_unless_denied_and_no_spelling_helps() {
        let path = "/_matrix/federation/v1/query/profile?user_id=@alice:hs";
        assert_eq!(judge(&policy("[rules.profiles]"), "GET", path, &[]), "permit");
        let closed = policy("[rules.profiles]\nfederation = \"deny\"");
        assert_eq!(judge(&closed, "GET", path, &[]), "deny profiles 403 M_FORBIDDEN");
        let odd = "/_matrix/federation/v1/query/%70rofile?user_id=@alice:hs";
        assert_eq!(judge(&closed, "GET", odd, &[]), "deny spelling 404 M_UNRECOGNIZED");
        let directory = "/_matrix/federation/v1/query/directory?room_alias=%23a:hs";
        assert_eq!(judge(&closed, "GET", directory, &[]), "permit");
    }
}
