//! Keeps identity servers from being told to forget a user whom nobody asked.
//!
//! Leak: an identity server is told which user had which e-mail address or phone number, on its removal and without a question.
//! Rule: `3pid/unbind` of an identity server (v1 and v2) is answered 404 in plain text, which callers take as "not supported"
//!   where a Matrix error would mean "failed"; Synapse's own `/account/3pid/unbind` is answered 404 `M_UNRECOGNIZED`. What
//!   Synapse asks identity servers itself is answered so on hosts with `action = "intercept"`, and in the clear.
//! Cost: a binding at an identity server is removed there, by its user, and not here. Removing an address from the account,
//!   and deactivating it, still make Synapse ask identity servers it remembers: list those, and have them intercepted.
//! Example:
//!     [rules.threepid_unbind]

use http::StatusCode;
use serde::Deserialize;

use super::Rule;
use crate::matrix::endpoint::Endpoint;
use crate::message::Answer;
use crate::policy::Compiler;
use crate::policy::plan::Outbound;

/// What `[rules.threepid_unbind]` may say: nothing but `mode`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let unsupported = Answer::text(StatusCode::NOT_FOUND, "Unbinding is not supported here\n");
        to.endpoint(Endpoint::IdentityUnbind).answer(unsupported.clone());
        to.outbound(Outbound::Endpoint(Endpoint::IdentityUnbind)).answer(unsupported);
        to.endpoint(Endpoint::ThreepidUnbind).deny(Answer::unrecognized());
    }
}

#[cfg(test)]
mod tests {
    use crate::matrix::Flow;
    use crate::policy::Decision;
    use crate::policy::selftest::Probe;
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
    fn an_identity_server_that_is_looked_into_is_told_nothing() {
        let policy =
            policy("[rules.threepid_unbind]\n[[egress.destination]]\nhost = \"is.test\"\naction = \"intercept\"\n");
        let judged = |url: &str| {
            let mut probe = Probe::new("POST", url).unwrap();
            probe.flow = Some(Flow::Egress);
            match probe.judge(&policy).verdict.decision {
                Decision::Answer(denial) => Some((denial.answer.status().as_u16(), denial.answer.errcode())),
                _ => None,
            }
        };
        for path in ["v2/3pid/unbind", "api/v1/3pid/unbind"] {
            assert_eq!(judged(&format!("https://is.test/_matrix/identity/{path}")), Some((404, None)), "{path}");
            assert_eq!(judged(&format!("https://other.test/_matrix/identity/{path}")), None, "{path}");
        }
        assert_eq!(judged("https://is.test/_matrix/identity/v2/3pid/bind"), None);
    }

    #[test]
    fn the_rest_of_an_identity_server_is_left_alone() {
        let policy = policy("[rules.threepid_unbind]");
        assert_eq!(judge(&policy, "GET", "/_matrix/identity/v2/hash_details", &[]), "permit");
    }
}
