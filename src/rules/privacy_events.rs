//! Tells the operator that somebody tried what a rule refuses: that a binding was to be removed, above all.
//!
//! Leak: users never hear that somebody tried to unbind their addresses, for nobody does.
//! Rule: each exchange that a rule of the list refused or answered is one event: a line of the log, a count in
//!   `mantlet_privacy_events_total`, and, where there is a `webhook`, a part of a POST to it. What comes from others, and what
//!   Synapse asks others, are told alike. An event says when, which rule, which endpoint, in which direction, and the id of
//!   the record. Only with `identifiers` does it say who: the client's address and, if it is known, user; of what Synapse
//!   asks, the host that was to be asked and the user that was to be named there. Nobody waits for the webhook, which is
//!   tried again three times; its host has to be public, or allowed in `[egress.addresses]`.
//! Cost: one more line of the log for each try. Who gets the webhook's POST learns how often it is tried.
//! Example:
//!     [rules.privacy_events]
//!     of = ["threepid_unbind"]      # rules, or "surface", "spelling", "unknown", "egress"
//!     identifiers = false
//!     webhook = "https://example/privacy"    # none by default

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::Rule;
use crate::policy::Compiler;
use crate::policy::plan::RuleIndex;
use crate::policy::telling::{Identifiers, Telling, Webhook};
use crate::problem::did_you_mean;

/// What `[rules.privacy_events]` may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The rules whose refusals and answers are events. Default: `["threepid_unbind"]`.
    of: Vec<RuleName>,
    /// Whether it is told who asked, and who was to be asked. Default: `false`.
    identifiers: bool,
    /// Who is told in a POST. Default: nobody.
    webhook: Option<Webhook>,
}

impl Default for Config {
    fn default() -> Self {
        Self { of: vec![RuleName("threepid_unbind")], identifiers: false, webhook: None }
    }
}

/// A rule of the registry, or one of the gateway's own.
#[derive(Debug)]
struct RuleName(&'static str);

impl<'de> Deserialize<'de> for RuleName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let names = || super::RULES.iter().map(|rule| rule.name).chain(RuleIndex::OWN);
        names().find(|name| *name == text).map(Self).ok_or_else(|| {
            let near =
                did_you_mean(&text, names()).map_or_else(String::new, |near| format!("\ndid you mean \"{near}\"?"));
            D::Error::custom(format!("there is no rule {text:?}{near}"))
        })
    }
}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        to.tell(Telling {
            of: self.of.iter().map(|RuleName(name)| *name).collect(),
            mode: to.mode(),
            identifiers: if self.identifiers { Identifiers::Told } else { Identifiers::Hidden },
            webhook: self.webhook.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::matrix::Flow;
    use crate::policy::selftest::Probe;
    use crate::policy::{Decision, RuleIndex};
    use crate::rules::testing::*;

    /// Whether it is told what a policy does to this URL, of what Synapse asks in the clear.
    fn is_told(rules: &str, method: &str, url: &str) -> bool {
        let policy = policy(rules);
        let mut probe = Probe::new(method, url).unwrap();
        probe.flow = Some(Flow::Egress);
        match probe.judge(&policy).verdict.decision {
            Decision::Answer(denial) | Decision::Deny(denial) => policy.tells_of(denial.rule).is_some(),
            decision => panic!("{decision:?}"),
        }
    }

    #[test]
    fn what_the_list_names_is_told() {
        let unbind = ("POST", "http://is.test/_matrix/identity/v2/3pid/unbind");
        let statistics = ("PUT", "http://stats.test/report-usage-stats/push");
        let by_default = "[rules.threepid_unbind]\n[rules.usage_stats]\n[rules.privacy_events]\n";
        let named = format!("{by_default}of = [\"usage_stats\", \"egress\"]");
        assert!(is_told(by_default, unbind.0, unbind.1) && !is_told(by_default, statistics.0, statistics.1));
        assert!(!is_told(&named, unbind.0, unbind.1) && is_told(&named, statistics.0, statistics.1));
        assert!(!is_told("[rules.threepid_unbind]", unbind.0, unbind.1));
        assert!(policy(&named).tells_of(RuleIndex::EGRESS).is_some());
        assert!(policy(by_default).tells_of(RuleIndex::EGRESS).is_none());
    }

    #[test]
    fn a_rule_that_is_none_is_named_with_the_nearest() {
        let problems = problems("[rules.privacy_events]\nof = [\"threepid_unbound\"]");
        assert!(problems.contains("there is no rule \"threepid_unbound\""), "{problems}");
        assert!(problems.contains("did you mean \"threepid_unbind\"?"), "{problems}");
    }

    #[test]
    fn a_webhook_that_is_none_is_not_repeated() {
        let problems = problems("[rules.privacy_events]\nwebhook = \"https://user:secret@ops.test/\"");
        assert!(problems.contains("this is no URL of a webhook"), "{problems}");
    }
}
