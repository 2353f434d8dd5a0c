//! Lets clients ask only so often.
//!
//! Leak: whoever may ask without end finds out by trying: which users, rooms, aliases and codes there are.
//! Rule: requests to the named endpoints beyond a rate, per address or per token, are answered 429 `M_LIMIT_EXCEEDED` with the
//!   time to wait, as Synapse does it.
//! Cost: clients behind one address share its rate; `by = "token"` tells users apart where they show a token. A reload of a
//!   changed policy begins to count anew.
//! Example:
//!     [[rules.rate_limit]]
//!     endpoints = ["login", "register"]
//!     requests = 10
//!     per = "1m"
//!     by = "address"          # address | token

use std::num::NonZeroU32;
use std::sync::Arc;

use serde::Deserialize;
use serde_spanned::Spanned;

use super::Rule;
use crate::matrix::Api;
use crate::policy::Compiler;
use crate::policy::limiter::{By, Limiter};
use crate::units::Period;

/// What one `[[rules.rate_limit]]` may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The endpoints, by id; they share one rate.
    endpoints: Vec<Spanned<String>>,
    /// How many requests …
    requests: NonZeroU32,
    /// … in what time. All may come at once.
    per: Spanned<Period>,
    /// By what clients are told apart. Default: `address`.
    #[serde(default)]
    by: By,
}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let Some(limiter) = Limiter::new(self.by, self.requests, *self.per.get_ref()) else {
            return to.problem(self.per.span(), "this is no time to spread requests over", "write \"1s\" or more");
        };
        let limiter = Arc::new(limiter);
        for name in &self.endpoints {
            let Some(endpoint) = super::endpoint(name.get_ref(), name.span(), to) else { continue };
            if matches!(endpoint.api(), Api::Federation | Api::Key) {
                to.problem(
                    name.span(),
                    "a server that is answered 429 stays away for ten minutes or more",
                    "name endpoints of clients only; Synapse limits other servers by their name",
                );
                continue;
            }
            to.from(name.span()).endpoint(endpoint).limit(Arc::clone(&limiter));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::rules::testing::*;

    const RULE: &str = "[[rules.rate_limit]]\nendpoints = [\"login\", \"get_login_types\"]\nrequests = 3\nper = \"1h\"";
    const REFUSED: &str = "deny rate_limit 429 M_LIMIT_EXCEEDED";

    #[test]
    fn an_address_asks_so_often_and_others_are_not_hindered() {
        let policy = policy(RULE);
        let ask = |method: &str, from: &str| judge_from(&policy, method, "/_matrix/client/v3/login", from);
        assert_eq!([ask("POST", "192.0.2.1"), ask("GET", "192.0.2.1"), ask("POST", "192.0.2.1")], ["permit"; 3]);
        assert_eq!(ask("POST", "192.0.2.1"), REFUSED);
        assert_eq!(ask("POST", "192.0.2.2"), "permit");
        assert_eq!(judge_from(&policy, "GET", "/_matrix/client/v3/sync", "192.0.2.1"), "permit");
    }

    #[test]
    fn an_ipv6_client_has_one_rate_for_all_its_addresses() {
        let policy = policy(RULE);
        let ask = |from: &str| judge_from(&policy, "POST", "/_matrix/client/v3/login", from);
        assert_eq!([ask("2001:db8::1"), ask("2001:db8::2"), ask("2001:db8::3")], ["permit"; 3]);
        assert_eq!(ask("2001:db8::4"), REFUSED);
        assert_eq!(ask("2001:db8:0:1::4"), "permit");
    }

    #[test]
    fn tokens_may_be_told_apart() {
        let policy = policy(&format!("{RULE}\nby = \"token\""));
        let ask = |token: &str| judge(&policy, "POST", "/_matrix/client/v3/login", &[("authorization", token)]);
        assert_eq!([ask("Bearer a"), ask("Bearer a"), ask("Bearer a"), ask("Bearer b")], ["permit"; 4]);
        assert_eq!(ask("Bearer a"), REFUSED);
    }

    #[test]
    fn the_answer_says_when_to_come_again() {
        let policy = policy(RULE);
        for _ in 0..3 {
            judge(&policy, "POST", "/_matrix/client/v3/login", &[]);
        }
        let answer = answer(&policy, "POST", "/_matrix/client/v3/login");
        let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert!(body["retry_after_ms"].as_u64().is_some_and(|wait| (1..=1_200_000).contains(&wait)), "{body}");
        assert!(
            answer.headers().contains_key("retry-after")
                && answer.headers().contains_key("access-control-allow-origin")
        );
    }

    #[test]
    fn other_servers_are_not_limited_here() {
        let told =
            problems("[[rules.rate_limit]]\nendpoints = [\"federation_get_version\"]\nrequests = 3\nper = \"1h\"");
        assert!(told.contains("2:14: a server that is answered 429 stays away"), "{told}");
    }
}
