//! Keeps from web sites that somebody here was sent a link to them.
//!
//! Leak: with `url_preview_enabled`, Synapse fetches each link that a client shows a preview of: the site sees our address,
//!   that this is a Matrix server, and when the link is read. Who controls a link learns so that its room is read.
//! Rule: with `previews = "closed"` clients get 404 `M_UNRECOGNIZED` in all versions of `preview_url`, as from a Synapse without
//!   previews. With `previews = "neutral"` they get them, and what Synapse fetches through the proxy door names no Matrix server
//!   and no language, where it can be read: on hosts with `action = "intercept"`, and in the clear. Addresses are looked at, as
//!   of all that passes that door.
//! Cost: no previews; or, with `neutral`, some sites show less to whom they do not know.
//! Example:
//!     [rules.url_previews]
//!     previews = "closed"     # closed | neutral

use serde::Deserialize;
use serde_spanned::Spanned;

use super::Rule;
use crate::matrix::Flow;
use crate::matrix::endpoint::Endpoint;
use crate::message::Answer;
use crate::policy::{Compiler, HeadEdit};

/// What `[rules.url_previews]` may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What becomes of previews. Default: `closed`.
    previews: Option<Spanned<Previews>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Previews {
    Closed,
    Neutral,
}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        match super::chosen(to, self.previews.as_ref(), Previews::Closed) {
            Previews::Closed => {
                for endpoint in [Endpoint::GetMediaPreview, Endpoint::MediaGetPreview] {
                    to.endpoint(endpoint).deny(Answer::unrecognized());
                }
            }
            Previews::Neutral => drop(to.every(&[Flow::Egress]).request(HeadEdit::NeutralPreview)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::matrix::Flow;
    use crate::policy::selftest::Probe;
    use crate::rules::testing::*;

    const PATHS: [&str; 4] = [
        "/_matrix/client/v1/media/preview_url",
        "/_matrix/media/r0/preview_url",
        "/_matrix/media/v1/preview_url",
        "/_matrix/media/v3/preview_url",
    ];

    #[test]
    fn previews_are_closed_in_all_versions() {
        let (closed, neutral) =
            (policy("[rules.url_previews]"), policy("[rules.url_previews]\npreviews = \"neutral\""));
        for path in PATHS {
            let target = format!("{path}?url=https%3A%2F%2Fexample.org");
            for method in ["GET", "HEAD"] {
                assert_eq!(judge(&closed, method, &target, &[]), "deny url_previews 404 M_UNRECOGNIZED", "{path}");
                assert_eq!(judge(&neutral, method, &target, &[]), "permit");
            }
            let odd = target.replace("preview", "previe%77");
            assert_eq!(judge(&closed, "GET", &odd, &[]), "deny spelling 404 M_UNRECOGNIZED");
        }
        assert_eq!(judge(&closed, "GET", "/_matrix/media/v3/config", &[]), "permit");
    }

    #[test]
    fn a_site_does_not_see_who_fetches() {
        let fetched = |toml: &str, agent: &str| {
            let mut probe = Probe::new("GET", "http://example.org/page").unwrap();
            probe.flow = Some(Flow::Egress);
            probe.header("user-agent", agent).unwrap();
            probe.header("accept-language", "en").unwrap();
            let upstream = probe.judge(&policy(toml)).upstream.unwrap();
            let field = |name: &str| upstream.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            (field("user-agent").unwrap(), field("accept-language"))
        };
        let neutral = "[rules.url_previews]\npreviews = \"neutral\"";
        let synapses = "Synapse (bot; +https://github.com/matrix-org/synapse)";
        assert_eq!(fetched(neutral, synapses), ("Mozilla/5.0 (compatible)".into(), None));
        assert_eq!(fetched("[rules.url_previews]", synapses), (synapses.into(), Some("en".into())));
        // Nothing else that Synapse asks is a preview.
        assert_eq!(fetched(neutral, "Synapse/1.163.2"), ("Synapse/1.163.2".into(), Some("en".into())));
    }
}
