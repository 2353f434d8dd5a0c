//! What the engine sees of one exchange: borrowed, never changed.

use std::net::IpAddr;

use http::{HeaderMap, Method};

use crate::error::Kind;
use crate::matrix::classify::Classified;
use crate::matrix::token::{self, Unreadable};
use crate::matrix::{Flow, Host};
use crate::message::Answer;

/// One request as it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// The direction.
    pub flow: Flow,
    /// What it asks for, by the raw and by the decoded path.
    pub classified: Classified,
    /// The method as on the wire.
    pub method: &'a Method,
    /// The path as on the wire.
    pub path: &'a str,
    /// The query as on the wire.
    pub query: Option<&'a str>,
    /// The fields, hop-by-hop ones gone.
    pub headers: &'a HeaderMap,
    /// The host that the client asked, without port, as it spelled it.
    pub host: &'a str,
    /// Whom the proxy door is asked for; `None` at every other door.
    pub destination: Option<&'a Host>,
    /// Whoever asks.
    pub client: IpAddr,
    /// What Synapse said of the token; `None` until it was asked.
    pub token: Option<&'a TokenVerdict>,
    /// How Synapse registers users; `None` until it was asked.
    pub registration: Option<Registration>,
    /// Whose keys it asks for; `None` until that was looked up.
    pub keys_of: Option<KeysOf>,
}

/// What is known of the token of a request.
#[derive(Clone, Debug)]
pub enum TokenVerdict {
    /// There is none that Synapse would read.
    Unreadable(Unreadable),
    /// Synapse knows its user.
    Valid {
        /// Whether that user is a guest.
        guest: bool,
    },
    /// Synapse refused it, in its own words.
    Refused(Answer),
    /// Synapse could not be asked.
    Unavailable(Kind),
}

/// Whose keys a question for keys is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysOf {
    /// Those of the homeserver behind us, and nobody else's.
    Ourselves,
    /// Anybody else's, or it is not clear whose.
    Others,
}

/// What Synapse asks of whoever registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// A registration token, whichever way is taken.
    ByToken,
    /// No token, on one way at least.
    Open,
    /// It registers nobody.
    Closed,
    /// It could not be asked.
    Unavailable(Kind),
}

impl TokenVerdict {
    /// The class that metrics and the access record show.
    pub fn class(&self) -> &'static str {
        match self {
            TokenVerdict::Unreadable(_) => "none",
            TokenVerdict::Valid { guest: false } => "valid",
            TokenVerdict::Valid { guest: true } => "guest",
            TokenVerdict::Refused(_) => "invalid",
            TokenVerdict::Unavailable(_) => "unavailable",
        }
    }
}

impl<'a> Exchange<'a> {
    /// The token, read as Synapse reads it.
    ///
    /// # Errors
    /// There is none that it would read.
    pub fn read_token(&self) -> Result<token::Token<'a>, Unreadable> {
        token::read(self.headers, self.query)
    }
}
