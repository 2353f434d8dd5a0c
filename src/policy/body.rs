//! All that the gateway can do with the body of a request, once it has been read whole.

mod form;
mod identity;
mod push;

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use super::egress::UNBINDING;
use crate::matrix::{Host, ServerName};
use crate::message::Answer;
use crate::message::json::{NoObject, Object};

pub use identity::Place;

/// What a body is read for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyAction {
    /// Has Synapse unbind at the reserved name and nowhere else: `id_server` is that name, whatever it was. It is made only
    /// where the proxy door answers for that name.
    UnbindNowhere,
    /// Refuses what leads Synapse to an identity server that is not among these.
    OnlyIdentityServers(Place, Arc<[ServerName]>),
    /// Has a push gateway told of an event by its id only: `data.format` of an HTTP pusher is `event_id_only`.
    OnlyEventIds,
    /// Refuses an HTTP pusher whose gateway is not at one of these hosts.
    OnlyPushGateways(Arc<[Host]>),
    /// Leaves of a notification what it would have with `event_id_only`.
    ReduceNotification,
    /// Takes `remoteip` out of a form.
    WithoutRemoteAddress,
}

/// Why a request is refused for its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is no JSON that all readers take.
    NotJson,
    /// It is no object, or something in it is none.
    NoObject,
    /// It names an identity server that is not listed.
    IdentityServer,
    /// It names a push gateway that is not listed.
    PushGateway,
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
            Self::OnlyIdentityServers(place, listed) => identity::look(*place, body, listed).map(|()| None),
            Self::OnlyEventIds => push::only_event_ids(body),
            Self::OnlyPushGateways(listed) => push::only_gateways(body, listed).map(|()| None),
            Self::ReduceNotification => push::reduce(body),
            Self::WithoutRemoteAddress => Ok(form::without(body, b"remoteip")),
        }
    }

    /// The action in words, for `explain`.
    pub fn describe(&self) -> String {
        match self {
            Self::UnbindNowhere => format!("set id_server to {UNBINDING}, where a proxy door answers for it"),
            Self::OnlyIdentityServers(_, listed) => {
                format!("deny other identity servers than {}", list(listed.iter().map(ServerName::as_str)))
            }
            Self::OnlyEventIds => "set data.format of an HTTP pusher to event_id_only".into(),
            Self::OnlyPushGateways(listed) => {
                format!("deny HTTP pushers at other hosts than {}", list(listed.iter()))
            }
            Self::ReduceNotification => "leave of a notification what event_id_only has".into(),
            Self::WithoutRemoteAddress => "remove remoteip".into(),
        }
    }
}

fn list(all: impl Iterator<Item: ToString>) -> String {
    let all: Vec<_> = all.map(|one| one.to_string()).collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}

impl Refusal {
    /// What whoever asked gets: Synapse's own words, where it would refuse it, too (`synapse/http/servlet.py`).
    pub fn answer(self) -> Answer {
        let (status, errcode, error) = match self {
            Self::NotJson => (StatusCode::BAD_REQUEST, "M_NOT_JSON", "Content not JSON."),
            Self::NoObject => (StatusCode::BAD_REQUEST, "M_BAD_JSON", "Content must be a JSON object."),
            Self::IdentityServer => {
                (StatusCode::FORBIDDEN, "M_SERVER_NOT_TRUSTED", "This identity server is not used here")
            }
            Self::PushGateway => (StatusCode::FORBIDDEN, "M_FORBIDDEN", "This push gateway is not used here"),
        };
        Answer::matrix(status, errcode, error)
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
