//! All that the gateway can do with the body of a request, once it has been read whole.

use bytes::Bytes;
use http::StatusCode;

use super::egress::UNBINDING;
use crate::message::Answer;
use crate::message::json::{NoObject, Object};

/// What a body is read for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyAction {
    /// Has Synapse unbind at the reserved name and nowhere else: `id_server` is that name, whatever it was. It is made only
    /// where the proxy door answers for that name.
    UnbindNowhere,
}

/// Why a request is refused for its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is no JSON that all readers take.
    NotJson,
    /// It is no object.
    NoObject,
}

impl BodyAction {
    /// The body as it goes on, or nothing if it goes on as it is.
    ///
    /// # Errors
    /// The request is refused for it.
    pub fn apply(&self, body: &[u8]) -> Result<Option<Bytes>, Refusal> {
        match self {
            Self::UnbindNowhere => {
                let mut object = Object::parse(body)?;
                object.set("id_server", format!("\"{UNBINDING}\""));
                Ok(Some(object.into()))
            }
        }
    }

    /// The action in words, for `explain`.
    pub fn describe(&self) -> String {
        match self {
            Self::UnbindNowhere => format!("set id_server to {UNBINDING}, where a proxy door answers for it"),
        }
    }
}

impl Refusal {
    /// What whoever asked gets: Synapse's own words, where it would refuse it, too (`synapse/http/servlet.py`).
    pub fn answer(self) -> Answer {
        match self {
            Self::NotJson => Answer::matrix(StatusCode::BAD_REQUEST, "M_NOT_JSON", "Content not JSON."),
            Self::NoObject => Answer::matrix(StatusCode::BAD_REQUEST, "M_BAD_JSON", "Content must be a JSON object."),
        }
    }
}

impl From<NoObject> for Refusal {
    fn from(why: NoObject) -> Self {
        match why {
            NoObject::NotJson => Self::NotJson,
            NoObject::Other => Self::NoObject,
        }
    }
}
