//! Keeps identity servers from being told to forget a user whom nobody asked.
//!
//! Leak: an identity server is told which user had which e-mail address or phone number, on its removal and without a question.
//! Rule: `3pid/unbind` of an identity server (v1 and v2) is answered 404 in plain text, which callers take as "not supported"
//!   where a Matrix error would mean "failed"; Synapse's own `/account/3pid/unbind` is answered 404 `M_UNRECOGNIZED`. Where
//!   there is a proxy door with an authority, who removes an address or deactivates an account has Synapse unbind at
//!   `unbind.mantlet.invalid`: that name is written into `id_server` of each such body, and answered 404 at the proxy door; a
//!   body that cannot be read is answered 400. What Synapse asks identity servers all the same is answered 404 on hosts with
//!   `action = "intercept"`, and in the clear.
//! Cost: a binding at an identity server is removed there, by its user, and not here. Synapse must ask through the proxy door
//!   and believe its authority (`mantlet ca synapse`), or removals get 500 and deactivations 400. Identity servers that it
//!   remembers stay in its database, and an administrator who deactivates an account still has them asked, unless they are
//!   intercepted; where one is denied or cannot be reached, that account cannot be deactivated.
//! Example:
//!     [rules.threepid_unbind]

use http::StatusCode;
use serde::Deserialize;

use super::Rule;
use crate::matrix::endpoint::Endpoint;
use crate::message::Answer;
use crate::policy::plan::Outbound;
use crate::policy::{BodyAction, Compiler};

/// What `[rules.threepid_unbind]` may say: nothing but `mode`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let unsupported = Answer::text(StatusCode::NOT_FOUND, "Unbinding is not supported here\n");
        to.endpoint(Endpoint::IdentityUnbind).answer(unsupported.clone());
        to.outbound(Outbound::Identity(Endpoint::IdentityUnbind)).answer(unsupported);
        to.endpoint(Endpoint::ThreepidUnbind).deny(Answer::unrecognized());
        for endpoint in [Endpoint::ThreepidDelete, Endpoint::Deactivate] {
            to.read(endpoint, MOST, BodyAction::UnbindNowhere);
        }
    }
}

/// The largest body of a removal or a deactivation.
const MOST: usize = 64 * 1024;

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
    fn synapse_is_led_to_the_reserved_name_by_every_version_of_both_endpoints() {
        let sent = |method: &str, target: &str, toml: &str, body: &str| {
            let mut probe = Probe::new(method, target).unwrap();
            probe.body = Some(body.to_owned().into());
            let finding = probe.judge(&policy(toml));
            match finding.verdict.decision {
                Decision::Permit(_) => String::from_utf8(finding.body.unwrap().to_vec()).unwrap(),
                Decision::Deny(denial) => denial.answer.errcode().unwrap(),
                Decision::Answer(_) | Decision::Fail(_) => panic!("{method} {target} is answered"),
            }
        };
        let rule = "[rules.threepid_unbind]";
        for prefix in ["r0", "v3", "unstable"] {
            for end in ["3pid/delete", "deactivate"] {
                let target = format!("/_matrix/client/{prefix}/account/{end}");
                let led = "{\"a\":1,\"id_server\":\"unbind.mantlet.invalid\"}";
                assert_eq!(sent("POST", &target, rule, "{\"a\":1}"), led, "{target}");
                assert_eq!(sent("POST", &target, rule, ""), "M_NOT_JSON");
                assert_eq!(sent("POST", &target, rule, "[]"), "M_BAD_JSON");
                assert_eq!(sent("POST", &target, "[rules.threepid_unbind]\nmode = \"report\"", "{}"), "{}");
                // Synapse answers 405.
                assert_eq!(sent("PUT", &target, rule, "{}"), "{}");
            }
        }
        let odd = judge(&policy(rule), "POST", "/_matrix/client/v3/account/deactiv%61te", &[]);
        assert_eq!(odd, "deny spelling 404 M_UNRECOGNIZED");
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
            for prefix in ["", "/prefix", "/some/../pre%2Ffix", "/x?y=", "/_matrix/identity/v2/lookup?"] {
                let url = format!("https://is.test{prefix}/_matrix/identity/{path}");
                assert_eq!(judged(&url), Some((404, None)), "{url}");
            }
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
