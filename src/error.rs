//! Accidents on the way of a request: whose fault, of what kind, and which answer the client gets for it.
//!
//! A refusal is not an error: it is a [`Decision`](crate::policy::Decision). An error is what stopped an exchange that the policy
//! had let through, or had not judged yet.

use std::fmt;

use http::StatusCode;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong with one exchange.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    source: Option<Source>,
}

/// On which side an error arose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client or the other server.
    Downstream,
    /// The homeserver.
    Upstream,
    /// Another server, which the homeserver asked.
    Origin,
    /// The gateway itself.
    Gateway,
}

/// All kinds of error; each has one status, one error code and one sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No connection to the homeserver could be made.
    Connect,
    /// The homeserver closed the connection before it had answered.
    Closed,
    /// The homeserver did not answer in `[limits] upstream_head`.
    Silent,
    /// The homeserver's answer was no HTTP, or one that must not be passed on (101).
    Garbled,
    /// The homeserver could not say whether a token is valid: its answer was an error or no answer to the question.
    TokenCheck,
    /// The request's head is larger than `[limits] head_bytes`, or has more than `[limits] fields` fields.
    HeadTooLarge,
    /// The request's body is larger than `[limits] body`.
    TooLarge,
    /// An upload declares no length, and is larger than `[limits] collect`.
    LengthRequired,
    /// The client did not send the rest of its body in `[limits] body_idle`.
    SlowBody,
    /// The client's connection broke while its body was read.
    BrokenBody,
    /// The other server's name leads to no address.
    OriginUnknown,
    /// The other server's name leads to addresses or ports that nobody may be asked at from here.
    OriginForbidden,
    /// No connection to the other server could be made.
    OriginConnect,
    /// The other server's certificate is not good for its name.
    OriginUntrusted,
    /// The other server closed the connection before it had answered.
    OriginClosed,
    /// The other server did not answer in time.
    OriginSilent,
    /// The other server's answer was no HTTP, or one that cannot be passed on.
    OriginGarbled,
    /// The other server's answer points elsewhere, where it is not followed to.
    OriginRedirect,
    /// The other server answered, and the file that it has or points to cannot be had.
    OriginFile,
    /// A defect in the gateway.
    Panic,
}

impl Error {
    /// An error with nothing below it.
    pub fn new(kind: Kind) -> Self {
        Self { kind, source: None }
    }

    /// An error with its cause.
    pub fn caused_by(kind: Kind, source: impl Into<Source>) -> Self {
        Self { kind, source: Some(source.into()) }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 20] = [
        Kind::Connect,
        Kind::Closed,
        Kind::Silent,
        Kind::Garbled,
        Kind::TokenCheck,
        Kind::HeadTooLarge,
        Kind::TooLarge,
        Kind::LengthRequired,
        Kind::SlowBody,
        Kind::BrokenBody,
        Kind::OriginUnknown,
        Kind::OriginForbidden,
        Kind::OriginConnect,
        Kind::OriginUntrusted,
        Kind::OriginClosed,
        Kind::OriginSilent,
        Kind::OriginGarbled,
        Kind::OriginRedirect,
        Kind::OriginFile,
        Kind::Panic,
    ];

    /// On which side it arose.
    pub fn side(self) -> Side {
        match self {
            Kind::Connect | Kind::Closed | Kind::Silent | Kind::Garbled | Kind::TokenCheck => Side::Upstream,
            Kind::HeadTooLarge | Kind::TooLarge | Kind::LengthRequired | Kind::SlowBody | Kind::BrokenBody => {
                Side::Downstream
            }
            Kind::OriginUnknown
            | Kind::OriginForbidden
            | Kind::OriginConnect
            | Kind::OriginUntrusted
            | Kind::OriginClosed
            | Kind::OriginSilent
            | Kind::OriginGarbled
            | Kind::OriginRedirect
            | Kind::OriginFile => Side::Origin,
            Kind::Panic => Side::Gateway,
        }
    }

    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        match self {
            Kind::Connect | Kind::Closed | Kind::Garbled | Kind::TokenCheck => StatusCode::BAD_GATEWAY,
            // The status that Synapse takes most quietly from the way out, and tries again after.
            Kind::OriginUnknown
            | Kind::OriginForbidden
            | Kind::OriginConnect
            | Kind::OriginUntrusted
            | Kind::OriginClosed
            | Kind::OriginGarbled
            | Kind::OriginRedirect => StatusCode::BAD_GATEWAY,
            // Of a status below 500 Synapse does not conclude that the other server is down: it answered.
            Kind::OriginFile => StatusCode::FAILED_DEPENDENCY,
            Kind::Silent | Kind::OriginSilent => StatusCode::GATEWAY_TIMEOUT,
            Kind::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::LengthRequired => StatusCode::LENGTH_REQUIRED,
            Kind::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Kind::BrokenBody => StatusCode::BAD_REQUEST,
            Kind::Panic => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The Matrix error code of the answer. Never `M_UNKNOWN_TOKEN`: on that one, clients throw away local data.
    pub fn errcode(self) -> &'static str {
        match self {
            Kind::HeadTooLarge | Kind::TooLarge => "M_TOO_LARGE",
            Kind::LengthRequired => "M_MISSING_PARAM",
            Kind::Connect
            | Kind::Closed
            | Kind::Silent
            | Kind::Garbled
            | Kind::TokenCheck
            | Kind::SlowBody
            | Kind::BrokenBody
            | Kind::OriginUnknown
            | Kind::OriginForbidden
            | Kind::OriginConnect
            | Kind::OriginUntrusted
            | Kind::OriginClosed
            | Kind::OriginSilent
            | Kind::OriginGarbled
            | Kind::OriginRedirect
            | Kind::OriginFile
            | Kind::Panic => "M_UNKNOWN",
        }
    }

    /// The sentence of the answer, for the user of the client.
    pub fn sentence(self) -> &'static str {
        match self {
            Kind::Connect => "The homeserver cannot be reached",
            Kind::Closed => "The homeserver closed the connection before it answered",
            Kind::Silent => "The homeserver did not answer in time",
            Kind::Garbled => "The homeserver's answer could not be understood",
            Kind::TokenCheck => "The homeserver could not check the access token",
            Kind::HeadTooLarge => "The request's head is too large",
            Kind::TooLarge => "The request's body is too large",
            Kind::LengthRequired => "The upload must declare its length in Content-Length",
            Kind::SlowBody => "The request's body did not arrive in time",
            Kind::BrokenBody => "The request's body ended early",
            Kind::OriginUnknown => "The other server's name leads nowhere",
            Kind::OriginForbidden => "The other server's name leads to an address that may not be asked",
            Kind::OriginConnect => "The other server cannot be reached",
            Kind::OriginUntrusted => "The other server's certificate is not good for its name",
            Kind::OriginClosed => "The other server closed the connection before it answered",
            Kind::OriginSilent => "The other server did not answer in time",
            Kind::OriginGarbled => "The other server's answer could not be understood",
            Kind::OriginRedirect => "The other server's answer points elsewhere",
            Kind::OriginFile => "The other server answered, but its file cannot be fetched",
            Kind::Panic => "The gateway failed on this request",
        }
    }

    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Connect => "connect",
            Kind::Closed => "closed",
            Kind::Silent => "silent",
            Kind::Garbled => "garbled",
            Kind::TokenCheck => "token_check",
            Kind::HeadTooLarge => "head_too_large",
            Kind::TooLarge => "too_large",
            Kind::LengthRequired => "length_required",
            Kind::SlowBody => "slow_body",
            Kind::BrokenBody => "broken_body",
            Kind::OriginUnknown => "origin_unknown",
            Kind::OriginForbidden => "origin_forbidden",
            Kind::OriginConnect => "origin_connect",
            Kind::OriginUntrusted => "origin_untrusted",
            Kind::OriginClosed => "origin_closed",
            Kind::OriginSilent => "origin_silent",
            Kind::OriginGarbled => "origin_garbled",
            Kind::OriginRedirect => "origin_redirect",
            Kind::OriginFile => "origin_file",
            Kind::Panic => "panic",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.sentence())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
