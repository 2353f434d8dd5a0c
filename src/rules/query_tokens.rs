//! Keeps access tokens out of the homeserver's logs and of everybody's who sees a URL.
//!
//! Leak: a token in `?access_token=` ends up in the logs of every proxy, and a token says whose it is.
//! Rule: on endpoints that take a client's token, and on no other, it is moved to the `Authorization` header; the rest of the
//!   query stays byte for byte. What Synapse would refuse (two tokens, one in the header too) is left for it to refuse.
//! Cost: none is known. Other secrets called `access_token`, as in `openid/userinfo`, are no client's tokens and stay.
//! Example:
//!     [rules.query_tokens]

use serde::Deserialize;

use super::Rule;
use crate::matrix::Auth;
use crate::matrix::endpoint::{Api, Endpoint};
use crate::policy::Compiler;

/// What `[rules.query_tokens]` may say: nothing but `mode`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        for endpoint in Endpoint::ALL.iter().copied().filter(takes_client_token) {
            to.move_token(endpoint);
        }
    }
}

/// Signed requests are other servers' and never among them: what they sign is the very query.
fn takes_client_token(endpoint: &Endpoint) -> bool {
    let is_token = match endpoint.auth() {
        Auth::Token | Auth::OptionalToken => true,
        Auth::None | Auth::ServerSignatures | Auth::OtherSecret => false,
    };
    is_token && matches!(endpoint.api(), Api::Client | Api::Media)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::testing::*;

    #[test]
    fn a_token_moves_to_the_header() {
        let policy = policy("[rules.query_tokens]");
        for (target, arrives) in [
            (
                "/_matrix/client/v3/sync?timeout=0&access%5Ftoken=T&x=%23",
                "/_matrix/client/v3/sync?timeout=0&x=%23 Bearer T",
            ),
            ("/_matrix/client/v3/profile/@a:hs?access_token=T", "/_matrix/client/v3/profile/@a:hs Bearer T"),
            ("/_matrix/media/v3/config?access_token=T", "/_matrix/media/v3/config Bearer T"),
        ] {
            assert_eq!(arrival(&policy, "GET", target, &[]), arrives);
        }
    }

    #[test]
    fn what_is_no_clients_token_stays() {
        let policy = policy("[rules.query_tokens]");
        for target in [
            "/_matrix/federation/v1/openid/userinfo?access_token=T",
            "/_matrix/identity/v2/hash_details?access_token=T",
            "/_matrix/client/v3/something_new?access_token=T",
            "/_matrix/client/v3/sync?access_token=a&access_token=b",
        ] {
            assert_eq!(arrival(&policy, "GET", target, &[]), target);
        }
        let mixed = "/_matrix/client/v3/sync?access_token=T";
        assert_eq!(arrival(&policy, "GET", mixed, &[("authorization", "Bearer U")]), format!("{mixed} Bearer U"));
    }

    #[test]
    fn no_signed_endpoint_is_touched() {
        for endpoint in Endpoint::ALL.iter().filter(|endpoint| takes_client_token(endpoint)) {
            assert!(
                !endpoint.id().starts_with("federation_") && !endpoint.id().starts_with("key_"),
                "{}",
                endpoint.id()
            );
        }
    }

    #[test]
    fn the_token_is_judged_the_same_in_either_place() {
        let policy = policy("[rules.query_tokens]\n[rules.public_rooms]");
        let target = "/_matrix/client/v3/publicRooms?access_token=T";
        assert_eq!(judge(&policy, "GET", target, &[]), "permit");
        assert_eq!(
            judge(&policy, "GET", target, &[("authorization", "Bearer T")]),
            "deny public_rooms 401 M_MISSING_TOKEN"
        );
    }
}
