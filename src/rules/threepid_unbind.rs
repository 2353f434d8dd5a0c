//! Keeps identity servers from being told to forget a user whom nobody asked.
//!
//! Leak: an identity server is told which user had which e-mail address or phone number, on its removal and without a question.
//! Rule: `3pid/unbind` of an identity server (v1 and v2) is answered 404 in plain text, which callers take as "not supported"
//!   where a Matrix error would mean "failed"; Synapse's own `/account/3pid/unbind` is answered 404 `M_UNRECOGNIZED`.
//! Cost: a binding at an identity server is removed there, by its user, and not here. Removing an address from the account,
//!   and deactivating it, still make Synapse ask identity servers it remembers: that way goes out and is not closed here.
//! Example:
//!     [rules.threepid_unbind]

use http::StatusCode;
use serde::Deserialize;

use super::Rule;
use crate::matrix::endpoint::Endpoint;
use crate::message::Answer;
use crate::policy::Compiler;

/// What `[rules.threepid_unbind]` may say: nothing but `mode`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        to.endpoint(Endpoint::IdentityUnbind)
            .answer(Answer::text(StatusCode::NOT_FOUND, "Unbinding is not supported here\n"));
        to.endpoint(Endpoint::ThreepidUnbind).deny(Answer::unrecognized());
    }
}

#[cfg(test)]
mod tests {
    use crate::rules::testing::*;

    #[test]
    fn an_identity_server_behind_us_does_not_support_unbinding() {
        let policy = policy("[rules.threepid_unbind]");
        for path in [
            "/_matrix/identity/v2/3pid/unbind",
            "/_matrix/identity/api/v1/3pid/unbind",
            "/prefix/_matrix/identity/v2/3pid/unbind",
        ] {
            assert_eq!(judge(&policy, "POST", path, &[]), "answer threepid_unbind 404", "{path}");
        }
    }

    #[test]
    fn synapse_is_not_asked_to_unbind() {
        let policy = policy("[rules.threepid_unbind]");
        for prefix in ["r0", "v3", "unstable"] {
            let seen = judge(&policy, "POST", &format!("/_matrix/client/{prefix}/account/3pid/unbind"), &[]);
            assert_eq!(seen, "deny threepid_unbind 404 M_UNRECOGNIZED", "{prefix}");
        }
    }

    #[test]
    fn the_rest_of_an_identity_server_is_left_alone() {
        let policy = policy("[rules.threepid_unbind]");
        assert_eq!(judge(&policy, "GET", "/_matrix/identity/v2/hash_details", &[]), "permit");
    }
}
