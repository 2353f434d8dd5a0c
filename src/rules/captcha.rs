//! Keeps from the maker of a captcha at which address its user is.
//!
//! Leak: whoever registers with a captcha is told of to its maker by Synapse, with the user's address (`remoteip`).
//! Rule: `remoteip` is removed from what Synapse asks at paths that end in `/siteverify` (reCAPTCHA, hCaptcha and Turnstile have
//!   such), where nobody needs it. It acts where requests can be read: on hosts with `action = "intercept"`, and in the clear.
//! Cost: the maker judges by the answer alone. The page with the captcha is loaded by the user's browser, from its maker.
//! Example:
//!     [rules.captcha]

use serde::Deserialize;

use super::Rule;
use crate::policy::plan::Outbound;
use crate::policy::{BodyAction, Compiler};

/// What `[rules.captcha]` may say: nothing but `mode`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        // What `synapse/config/captcha.py` has for `recaptcha_siteverify_api` ends so, and so do the paths of all who took over
        // its interface.
        let verify = Outbound::PathEnd("/siteverify");
        to.read_outbound(verify, MOST, BodyAction::WithoutRemoteAddress);
    }
}

const MOST: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use crate::matrix::Flow;
    use crate::policy::selftest::Probe;
    use crate::rules::testing::*;

    #[test]
    fn the_users_address_is_left_out_where_it_can_be_read() {
        let rule = "[rules.captcha]\n[[egress.destination]]\nhost = \"www.recaptcha.net\"\naction = \"intercept\"\n";
        let form = "secret=s&response=r&remoteip=192.0.2.7";
        let sent = |toml: &str, url: &str| {
            let mut probe = Probe::new("POST", url).unwrap();
            (probe.flow, probe.body) = (Some(Flow::Egress), Some(form.into()));
            String::from_utf8(probe.judge(&policy(toml)).body.unwrap().to_vec()).unwrap()
        };
        let verify = "https://www.recaptcha.net/recaptcha/api/siteverify";
        for path in ["/recaptcha/api/siteverify", "/siteverify", "/turnstile/v0/siteverify"] {
            assert_eq!(sent(rule, &format!("https://www.recaptcha.net{path}")), "secret=s&response=r", "{path}");
        }
        for path in ["/other", "/recaptcha/api/siteverify/", "/notsiteverify", "/?siteverify=/siteverify"] {
            assert_eq!(sent(rule, &format!("https://www.recaptcha.net{path}")), form, "{path}");
        }
        assert_eq!(sent(rule, "https://other.test/recaptcha/api/siteverify"), form);
        assert_eq!(sent(&rule.replace("captcha]", "captcha]\nmode = \"report\""), verify), form);
    }
}
