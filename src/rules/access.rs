//! Who may read: what the rules have in common that close something to strangers and to other servers.

use http::StatusCode;
use serde::de::{Deserialize, Deserializer, Error};
use serde_spanned::Spanned;

use crate::matrix::endpoint::Endpoint;
use crate::message::Answer;
use crate::policy::{Compiler, Guests};

/// Which clients may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clients {
    /// All.
    Open,
    /// Those with a token that Synapse says is valid.
    Token,
    /// None.
    Deny,
}

/// Which other servers may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// All.
    Open,
    /// None.
    Deny,
    /// Those of a list. Refused: it is worth nothing while whoever asks may name himself as he likes.
    Listed,
}

impl Clients {
    /// Closes these endpoints to clients as it is written, or as the default has it.
    pub fn close(
        written: Option<&Spanned<Self>>,
        default: Self,
        (endpoints, guests, refusal): (&[Endpoint], Guests, &str),
        to: &mut Compiler<'_>,
    ) {
        let access = super::chosen(to, written, default);
        for endpoint in endpoints {
            match access {
                Clients::Open => {}
                Clients::Token => to.endpoint(*endpoint).require_token(guests),
                Clients::Deny => {
                    to.endpoint(*endpoint).deny(Answer::matrix(StatusCode::FORBIDDEN, "M_FORBIDDEN", refusal));
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Servers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match String::deserialize(from)?.as_str() {
            "open" => Ok(Self::Open),
            "deny" => Ok(Self::Deny),
            // It is known, to be refused with its reason; nobody is told to write it.
            "listed" => Ok(Self::Listed),
            other => Err(D::Error::unknown_variant(other, &["open", "deny"])),
        }
    }
}

impl Servers {
    /// Closes these endpoints to other servers as it is written, or as the default has it.
    pub fn close(
        written: Option<&Spanned<Self>>,
        default: Self,
        (endpoints, refusal): (&[Endpoint], &str),
        to: &mut Compiler<'_>,
    ) {
        match super::chosen(to, written, default) {
            Servers::Open => {}
            Servers::Deny => endpoints.iter().for_each(|endpoint| to.endpoint(*endpoint).forbid(refusal)),
            Servers::Listed => to.problem(
                written.map(Spanned::span).unwrap_or_default(),
                "`listed` needs verified signatures of other servers, which this version does not check",
                "write `deny`, or `open`",
            ),
        }
    }
}
