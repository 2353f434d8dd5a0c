//! Requests after which tokens that were valid may not be: what is remembered of them is forgotten with the request, and again
//! when it has succeeded.

use std::sync::Arc;

use http::Method;

use crate::matrix::Endpoint;
use crate::matrix::endpoint::Api;

/// Whose tokens a request may end, by what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revokes {
    /// Nobody's.
    Nothing,
    /// Those of the session it is made in.
    Session,
    /// All of the user who makes it, or of one whom it does not name: a password reset by e-mail shows no token.
    User,
    /// Anybody's: an administrator's work.
    Anybody,
}

/// Whose tokens they are, once the memory was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// Nobody's.
    Nothing,
    /// The one that was shown; nothing is remembered of whose it is, nor of others of the same session.
    Token,
    /// This user's.
    User(Arc<str>),
    /// Somebody's, and it is not known whose.
    Everybody,
}

impl Revokes {
    /// What a request to this endpoint may end.
    pub fn by(endpoint: Endpoint, method: &Method) -> Self {
        if endpoint.is_internal() {
            let only_reads = matches!(*method, Method::GET | Method::HEAD);
            return if only_reads || endpoint.api() != Api::Synapse { Self::Nothing } else { Self::Anybody };
        }
        let (scope, by) = match endpoint {
            Endpoint::Logout => (Self::Session, Method::POST),
            Endpoint::LogoutAll | Endpoint::ChangePassword | Endpoint::Deactivate | Endpoint::DeleteDevices => {
                (Self::User, Method::POST)
            }
            Endpoint::DeleteDevice => (Self::User, Method::DELETE),
            _ => return Self::Nothing,
        };
        if *method == by { scope } else { Self::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_administrator_may_end_anybodys_session_and_reading_ends_none() {
        assert_eq!(Revokes::by(Endpoint::SynapseAdminResetPassword, &Method::POST), Revokes::Anybody);
        assert_eq!(Revokes::by(Endpoint::SynapseAdmin, &Method::PUT), Revokes::Anybody);
        assert_eq!(Revokes::by(Endpoint::SynapseMas, &Method::POST), Revokes::Anybody);
        assert_eq!(Revokes::by(Endpoint::SynapseAdminUsers, &Method::GET), Revokes::Nothing);
    }

    #[test]
    fn users_end_their_own() {
        assert_eq!(Revokes::by(Endpoint::Logout, &Method::POST), Revokes::Session);
        assert_eq!(Revokes::by(Endpoint::ChangePassword, &Method::POST), Revokes::User);
        assert_eq!(Revokes::by(Endpoint::DeleteDevice, &Method::DELETE), Revokes::User);
        assert_eq!(Revokes::by(Endpoint::DeleteDevice, &Method::GET), Revokes::Nothing);
        assert_eq!(Revokes::by(Endpoint::Sync, &Method::GET), Revokes::Nothing);
    }
}
