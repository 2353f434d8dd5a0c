//! Keeps strangers from making accounts on a private server.
//!
//! Leak: open registration, and guests, let anybody become somebody who may list rooms, read profiles and search for users.
//! Rule: `/register` and what belongs to it are answered 403 `M_FORBIDDEN`, and so is `kind=guest`; application services pass,
//!   with a token that Synapse says is valid. With `users = "token"` others register as long as Synapse itself asks every one of
//!   them for a registration token (`registration_requires_token: true`), which is asked of it each half minute.
//! Cost: accounts are made by an administrator or by an application service, or by whoever was given a registration token.
//! Example:
//!     [rules.registration]
//!     users = "closed"        # open | token | closed
//!     guests = "closed"       # open | closed

use http::StatusCode;
use serde::Deserialize;
use serde_spanned::Spanned;

use super::Rule;
use crate::matrix::endpoint::Endpoint;
use crate::message::Answer;
use crate::policy::Compiler;
use crate::policy::matcher::When;

/// What `[rules.registration]` may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether users may register. Default: `closed`.
    users: Option<Spanned<Users>>,
    /// Whether guests may. Default: `closed`.
    guests: Option<Spanned<Guests>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Users {
    Open,
    Token,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Guests {
    Open,
    Closed,
}

/// What asks about names and addresses on the way to an account.
const BESIDE: [Endpoint; 4] = [
    Endpoint::GetUsernameAvailability,
    Endpoint::CheckRegistrationTokenValidity,
    Endpoint::RequestRegistrationTokenViaEmail,
    Endpoint::RequestRegistrationTokenViaMsisdn,
];

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let guests = super::chosen(to, self.guests.as_ref(), Guests::Closed);
        if guests == Guests::Closed {
            // Synapse reads the first `kind` of the query only; whatever calls itself a guest anywhere is taken for one.
            let when = When { argument: Some(("kind", "guest")), ..When::default() };
            to.endpoint(Endpoint::Register).when(when).deny(closed("Guest access is disabled"));
        }
        let disabled = || closed("Registration has been disabled");
        let but_guests = When { first_argument_is_not: Some(("kind", "guest")), ..When::default() };
        match super::chosen(to, self.users.as_ref(), Users::Closed) {
            Users::Open => {}
            Users::Token => {
                to.endpoint(Endpoint::Register).when(but_guests).require_registration_token(disabled());
            }
            Users::Closed => {
                to.endpoint(Endpoint::Register).when(but_guests).require_token_or(disabled());
                for endpoint in BESIDE {
                    to.endpoint(endpoint).deny(disabled());
                }
            }
        }
    }
}

/// Synapse's own answer where registration is off (`synapse/rest/client/register.py`).
fn closed(error: &str) -> Answer {
    Answer::matrix(StatusCode::FORBIDDEN, "M_FORBIDDEN", error)
}

#[cfg(test)]
mod tests {
    use crate::error::Kind;
    use crate::policy::Registration;
    use crate::rules::testing::*;

    const REFUSED: &str = "deny registration 403 M_FORBIDDEN";

    #[test]
    fn nobody_registers_but_an_application_service() {
        let policy = policy("[rules.registration]");
        for path in ["/_matrix/client/v3/register", "/_matrix/client/r0/register?kind=user"] {
            assert_eq!(judge(&policy, "POST", path, &[]), REFUSED, "{path}");
            assert_eq!(judge_token(&policy, "POST", path, Supposed::Valid), "permit", "{path}");
            assert_eq!(judge_token(&policy, "POST", path, Supposed::Invalid), REFUSED, "{path}");
        }
        assert_eq!(judge(&policy, "GET", "/_matrix/client/v3/register/available?username=a", &[]), REFUSED);
        assert_eq!(judge(&policy, "POST", "/_matrix/client/v3/login", &[]), "permit");
    }

    #[test]
    fn users_may_register_by_token_where_the_homeserver_asks_each_of_them_for_one() {
        let policy = policy("[rules.registration]\nusers = \"token\"");
        let path = "/_matrix/client/v3/register";
        assert_eq!(judge_registration(&policy, path, Registration::ByToken), "permit");
        assert_eq!(judge_registration(&policy, path, Registration::Open), REFUSED);
        assert_eq!(judge_registration(&policy, path, Registration::Closed), REFUSED);
        assert_eq!(judge_registration(&policy, path, Registration::Unavailable(Kind::Silent)), "fail");
        assert_eq!(judge_registration(&policy, &format!("{path}?kind=guest"), Registration::ByToken), REFUSED);
        assert_eq!(judge_token(&policy, "POST", path, Supposed::Valid), "permit");
        let validity = "/_matrix/client/v1/register/m.login.registration_token/validity?token=a";
        assert_eq!(judge(&policy, "GET", validity, &[]), "permit");
    }

    #[test]
    fn guests_may_be_closed_alone() {
        let policy = policy("[rules.registration]\nusers = \"open\"");
        for query in ["kind=guest", "a=1;kind=guest", "kind=%67uest", "kind=user&kind=guest"] {
            let path = format!("/_matrix/client/v3/register?{query}");
            assert_eq!(judge(&policy, "POST", &path, &[]), REFUSED, "{path}");
        }
        assert_eq!(judge(&policy, "POST", "/_matrix/client/v3/register", &[]), "permit");
    }

    #[test]
    fn users_may_be_closed_alone() {
        let policy = policy("[rules.registration]\nguests = \"open\"");
        assert_eq!(judge(&policy, "POST", "/_matrix/client/v3/register?kind=guest", &[]), "permit");
        for query in ["", "?kind=user&kind=guest", "?kind=Guest"] {
            assert_eq!(judge(&policy, "POST", &format!("/_matrix/client/v3/register{query}"), &[]), REFUSED, "{query}");
        }
    }
}
