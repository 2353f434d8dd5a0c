//! Keeps from push gateways who wrote what in which room.
//!
//! Leak: unless a client asks otherwise, Synapse tells the push gateway of its app's maker the sender of each event, the name
//!   of the room, and what was written. A client may name any host as its gateway.
//! Rule: `pushers/set` of an HTTP pusher gets `"format": "event_id_only"`, whatever the client asked for; with a list of
//!   `gateways`, one at any other host gets 403 `M_FORBIDDEN`. On hosts with `action = "intercept"`, and in the clear, what is
//!   sent to `/_matrix/push/v1/notify` is reduced to the same: for pushers from before. Those of the kind `email` stay.
//! Cost: a client has to fetch the event that it was told of; one that shows what the push says shows less. Pushers that were
//!   set before, at gateways that are not looked into, go on until the client sets them again.
//! Example:
//!     [rules.push]
//!     content = "event_id_only"       # event_id_only | full
//!     gateways = "any"                # any | ["push.example"]

use std::sync::Arc;

use serde::Deserialize;
use serde_spanned::Spanned;

use super::Rule;
use crate::matrix::endpoint::Endpoint;
use crate::matrix::{Host, ServerName};
use crate::policy::plan::Outbound;
use crate::policy::{BodyAction, Compiler};

/// What `[rules.push]` may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What a push gateway is told of an event. Default: `event_id_only`.
    content: Option<Spanned<Content>>,
    /// The hosts of push gateways, or any. Default: `any`.
    gateways: Option<Spanned<Gateways>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Content {
    EventIdOnly,
    Full,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Gateways {
    Word(String),
    Hosts(Vec<String>),
}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        if let Some(hosts) = self.hosts(to) {
            to.read(Endpoint::SetPusher, MOST, BodyAction::OnlyPushGateways(hosts));
        }
        let whole = to.span();
        to.from(whole);
        match super::chosen(to, self.content.as_ref(), Content::EventIdOnly) {
            Content::Full => {}
            Content::EventIdOnly => {
                to.read(Endpoint::SetPusher, MOST, BodyAction::OnlyEventIds);
                let notify = Outbound::Path("/_matrix/push/v1/notify");
                to.read_outbound(notify, MOST_OF_A_NOTIFICATION, BodyAction::ReduceNotification);
            }
        }
    }
}

impl Config {
    /// The hosts that pushers may be at; `None` if they may be anywhere.
    fn hosts(&self, to: &mut Compiler<'_>) -> Option<Arc<[Host]>> {
        let gateways = self.gateways.as_ref()?;
        let help = "write \"any\", or a list of hosts: [\"push.example\"]";
        let names = match gateways.get_ref() {
            Gateways::Word(word) if word == "any" => return None,
            Gateways::Word(word) => {
                to.problem(gateways.span(), format!("unknown value \"{word}\" for `gateways` in [rules.push]"), help);
                return None;
            }
            Gateways::Hosts(names) => names,
        };
        let mut hosts = Vec::new();
        for name in names {
            match ServerName::parse(name).filter(|name| name.port().is_none()) {
                Some(name) => hosts.push(name.host().clone()),
                None => to.problem(gateways.span(), format!("`{name}` is no host"), help),
            }
        }
        to.from(gateways.span());
        Some(hosts.into())
    }
}

const MOST: usize = 64 * 1024;
/// An event has 64 KiB at most, and Python writes what is not ASCII in up to three times as many bytes.
const MOST_OF_A_NOTIFICATION: usize = 512 * 1024;

#[cfg(test)]
mod tests {
    use crate::matrix::Flow;
    use crate::policy::selftest::{Probe, Seen};
    use crate::rules::testing::*;

    /// What arrives of a body, or the error code of the refusal.
    fn sent(toml: &str, probe: &mut Probe, body: &str) -> String {
        let policy = policy(toml);
        probe.body = Some(body.to_owned().into());
        let finding = probe.judge(&policy);
        let refused = Seen::of(&finding, &policy).errcode;
        refused.unwrap_or_else(|| String::from_utf8(finding.body.unwrap().to_vec()).unwrap())
    }

    fn pusher(toml: &str, target: &str, url: &str) -> String {
        let body = format!("{{\"kind\":\"http\",\"data\":{{\"url\":\"{url}\"}}}}");
        sent(toml, &mut Probe::new("POST", target).unwrap(), &body)
    }

    const URL: &str = "https://push.test/_matrix/push/v1/notify";

    #[test]
    fn an_http_pusher_is_told_event_ids_only_in_every_version() {
        for version in ["api/v1", "r0", "v3", "unstable"] {
            let target = format!("/_matrix/client/{version}/pushers/set");
            let set = pusher("[rules.push]", &target, URL);
            assert!(set.ends_with("/notify\",\"format\":\"event_id_only\"}}"), "{set}");
            assert!(!pusher("[rules.push]\ncontent = \"full\"", &target, URL).contains("format"));
            assert!(!pusher("[rules.push]\nmode = \"report\"", &target, URL).contains("format"));
        }
        let email = "{ \"kind\":\"email\",\"data\":{}}";
        let mut probe = Probe::new("POST", "/_matrix/client/v3/pushers/set").unwrap();
        assert_eq!(sent("[rules.push]", &mut probe, email), email);
    }

    #[test]
    fn pushers_are_at_listed_hosts() {
        let target = "/_matrix/client/v3/pushers/set";
        for (gateways, outcome) in [
            ("\"any\"", None),
            ("[\"push.test\"]", None),
            ("[\"other.test\", \"192.0.2.1\"]", Some("M_FORBIDDEN")),
            ("[]", Some("M_FORBIDDEN")),
        ] {
            for content in ["event_id_only", "full"] {
                let rule = format!("[rules.push]\ncontent = \"{content}\"\ngateways = {gateways}");
                let set = pusher(&rule, target, URL);
                assert_eq!(set == "M_FORBIDDEN", outcome.is_some(), "{rule}: {set}");
            }
        }
        let mut probe = Probe::new("POST", target).unwrap();
        let gone = "{\"kind\":null,\"app_id\":\"a\",\"pushkey\":\"k\"}";
        assert_eq!(sent("[rules.push]\ngateways = []", &mut probe, gone), gone);
    }

    #[test]
    fn a_notification_is_reduced_where_it_can_be_read() {
        let toml = "[rules.push]\n[[egress.destination]]\nhost = \"push.test\"\naction = \"intercept\"\n";
        let body = "{\"notification\":{\"event_id\":\"$e\",\"sender\":\"@a:b\"}}";
        let notified = |toml: &str, url: &str| {
            let mut probe = Probe::new("POST", url).unwrap();
            probe.flow = Some(Flow::Egress);
            sent(toml, &mut probe, body)
        };
        let few = "{\"notification\":{\"event_id\":\"$e\"}}";
        assert_eq!(notified(toml, URL), few);
        assert_eq!(notified(toml, "http://other.test/_matrix/push/v1/notify"), few);
        assert_eq!(notified(toml, "https://other.test/_matrix/push/v1/notify"), body);
        assert_eq!(notified(&toml.replace("push]", "push]\ncontent = \"full\""), URL), body);
    }

    #[test]
    fn what_is_no_host_is_told_with_its_place() {
        let told = |gateways: &str| problems(&format!("[rules.push]\ngateways = {gateways}"));
        assert!(
            told("\"all\"").contains("test.toml:2:12: unknown value \"all\" for `gateways`"),
            "{}",
            told("\"all\"")
        );
        for odd in ["https://push.test", "push.test:443", "*.push.test"] {
            let told = told(&format!("[\"{odd}\"]"));
            assert!(told.contains(&format!("test.toml:2:12: `{odd}` is no host")), "{told}");
        }
    }
}
