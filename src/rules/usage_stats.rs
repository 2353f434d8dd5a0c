//! Keeps the homeserver's statistics about its users at home.
//!
//! Leak: with `report_stats: true`, Synapse tells matrix.org every three hours its name, its version, and how many users,
//!   rooms and messages it has.
//! Rule: `PUT /report-usage-stats/push` is answered `200 {}` here, and sent to nobody. It acts where requests can be read: on
//!   hosts with `action = "intercept"`, and in the clear.
//! Cost: whoever counts homeservers does not count this one.
//! Example:
//!     [rules.usage_stats]

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::Rule;
use crate::message::Answer;
use crate::policy::Compiler;
use crate::policy::matcher::When;
use crate::policy::plan::Outbound;

/// What `[rules.usage_stats]` may say: nothing but `mode`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let puts = When { methods: Some(vec![Method::PUT]), ..When::default() };
        // What `synapse/config/metrics.py` has for `report_stats_endpoint`.
        let at = to.outbound(Outbound::Path("/report-usage-stats/push"));
        at.when(puts).answer(Answer::json(StatusCode::OK, &json!({})));
    }
}

#[cfg(test)]
mod tests {
    use crate::matrix::Flow;
    use crate::policy::Decision;
    use crate::policy::selftest::Probe;
    use crate::rules::testing::*;

    fn judged(policy: &str, method: &str, url: &str) -> Option<u16> {
        let mut probe = Probe::new(method, url).unwrap();
        probe.flow = Some(Flow::Egress);
        let policy = super::super::testing::policy(policy);
        match probe.judge(&policy).verdict.decision {
            Decision::Answer(denial) => Some(denial.answer.status().as_u16()),
            _ => None,
        }
    }

    #[test]
    fn statistics_are_answered_here_where_they_can_be_read() {
        let rule = "[rules.usage_stats]\n[[egress.destination]]\nhost = \"matrix.org\"\naction = \"intercept\"\n";
        assert_eq!(judged(rule, "PUT", "https://matrix.org/report-usage-stats/push"), Some(200));
        assert_eq!(judged(rule, "PUT", "http://stats.test/report-usage-stats/push"), Some(200));
        assert_eq!(judged(rule, "GET", "https://matrix.org/report-usage-stats/push"), None);
        assert_eq!(judged(rule, "PUT", "https://matrix.org/report-usage-stats/pushed"), None);
        // Nobody can read what goes through a tunnel.
        assert_eq!(judged("[rules.usage_stats]", "PUT", "https://matrix.org/report-usage-stats/push"), None);
    }

    #[test]
    fn nothing_that_others_ask_synapse_is_answered() {
        let policy = policy("[rules.usage_stats]");
        assert_eq!(judge(&policy, "PUT", "/report-usage-stats/push", &[]), "deny surface 404 M_UNRECOGNIZED");
    }
}
