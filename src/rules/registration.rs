//! Keeps strangers from making accounts on a private server.
//!
//! Leak: open registration, and guests, let anybody become somebody who may list rooms, read profiles and search for users.
//! Rule: `/register` and what belongs to it are answered 403 `M_FORBIDDEN`, and so is `kind=guest`; application services pass,
//!   with a token that Synapse says is valid.
//! Cost: accounts are made by an administrator or by an application service.
//! Example:
//!     [rules.registration]
//!     users = "closed"        # open | closed
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
    users: Option<Spanned<Door>>,
    /// Whether guests may. Default: `closed`.
    guests: Option<Spanned<Door>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Door {
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
        let guests = super::chosen(to, self.guests.as_ref(), Door::Closed);
        if guests == Door::Closed {
            // Synapse reads the first `kind` of the query only; whatever calls itself a guest anywhere is taken for one.
            let when = When { argument: Some(("kind", "guest")), ..When::default() };
            to.endpoint(Endpoint::Register).when(when).deny(closed("Guest access is disabled"));
        }
        let users = super::chosen(to, self.users.as_ref(), Door::Closed);
        if users == Door::Closed {
            let but_guests = When { first_argument_is_not: Some(("kind", "guest")), ..When::default() };
            to.endpoint(Endpoint::Register).when(but_guests).require_token_or(closed("Registration has been disabled"));
            for endpoint in BESIDE {
                to.endpoint(endpoint).deny(closed("Registration has been disabled"));
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
