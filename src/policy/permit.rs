//! The proof that a request was judged.
//!
//! The upstream service takes [`Permitted`] requests only and gives [`Held`] responses only; the constructors of both are sealed
//! in this module, so a check that was forgotten does not compile:
//!
//! ```compile_fail,E0423
//! let forged = mantlet::policy::Permitted(http::Request::new(()));
//! ```
//!
//! ```compile_fail,E0423
//! let leaked = mantlet::policy::Held(http::Response::new(()));
//! ```

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};

use super::Mode;
use super::plan::{Destination, Edit, Policy, Reroute, RuleIndex, TargetEdit};
use super::target;
use crate::matrix::{Endpoint, Flow};

/// The right to send one request upstream, and what must be done to it and to its answer.
#[derive(Debug)]
pub struct Permit(Grant);

#[derive(Debug)]
enum Grant {
    Policy { policy: Arc<Policy>, flow: Flow, endpoint: Endpoint },
    Internal(Purpose),
}

/// Why the gateway itself asks the homeserver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Whether a token is valid.
    Whoami,
    /// Whether the homeserver is there.
    Health,
    /// Which server it is.
    ServerName,
    /// What it asks of whoever registers.
    Registration,
    /// Which keys another server signs with.
    ServerKeys,
    /// Telling the operator of something.
    Webhook,
}

/// Noted on a request that goes another way than Synapse sent it.
#[derive(Clone, Debug)]
pub struct Rerouted {
    /// Who is asked.
    pub to: Destination,
    /// The rule that says so.
    pub rule: &'static str,
}

/// Something that may go upstream.
#[derive(Debug)]
pub struct Permitted<T>(T);

/// The duty to hold what comes back until the permit releases it.
#[derive(Debug)]
pub struct Hold(());

/// Something that came back, and may not go on yet.
#[derive(Debug)]
pub struct Held<T>(T);

impl Permit {
    pub(super) fn new(policy: Arc<Policy>, flow: Flow, endpoint: Endpoint) -> Self {
        Self(Grant::Policy { policy, flow, endpoint })
    }

    /// The right to ask something of our own.
    pub fn internal(purpose: Purpose) -> Self {
        Self(Grant::Internal(purpose))
    }

    /// Why, if the request is our own.
    pub fn purpose(&self) -> Option<Purpose> {
        match self.0 {
            Grant::Policy { .. } => None,
            Grant::Internal(purpose) => Some(purpose),
        }
    }

    /// Who is asked instead of the server that the request is for, and which rule says so.
    pub fn reroute(&self) -> Option<&Reroute> {
        match &self.0 {
            Grant::Policy { policy, flow, endpoint } => {
                reroute(policy, *flow, *endpoint).filter(|reroute| reroute.mode == Mode::Enforce)
            }
            Grant::Internal(_) => None,
        }
    }

    /// Makes the policy's edits to the request, notes [`Rerouted`] on one that goes another way, then adds the gateway's own
    /// fields, which no rule may touch.
    pub fn permit<B>(
        &self,
        mut request: Box<Request<B>>,
        own: impl FnOnce(&mut HeaderMap),
    ) -> Permitted<Box<Request<B>>> {
        if let Grant::Policy { policy, flow, endpoint } = &self.0 {
            if token_move(policy, *flow, *endpoint).is_some_and(|edit| edit.mode == Mode::Enforce) {
                let mut uri = std::mem::take(request.uri_mut());
                target::move_token(&mut uri, request.headers_mut());
                *request.uri_mut() = uri;
            }
            apply(policy.request_edits(*flow), request.headers_mut());
            if let Some(reroute) = self.reroute() {
                // It is signed for the server that it does not go to, and names us.
                request.headers_mut().remove(AUTHORIZATION);
                let rule = policy.rule(reroute.rule).name;
                request.extensions_mut().insert(Rerouted { to: reroute.to.clone(), rule });
            }
        }
        own(request.headers_mut());
        Permitted(request)
    }

    /// The rules in report mode that would have changed this request.
    pub fn unmade_edits<'a, B>(&'a self, request: &'a Request<B>) -> impl Iterator<Item = RuleIndex> + 'a {
        let (edits, token, reroute) = match &self.0 {
            Grant::Policy { policy, flow, endpoint } => (
                policy.request_edits(*flow),
                token_move(policy, *flow, *endpoint),
                reroute(policy, *flow, *endpoint).filter(|reroute| reroute.mode == Mode::Report),
            ),
            Grant::Internal(_) => (&[][..], None, None),
        };
        let headers = request.headers();
        let unmade = |edit: &&Edit| edit.mode == Mode::Report && edit.edit.bites(headers);
        let token = token.filter(|edit| edit.mode == Mode::Report);
        let token = token.filter(|_| target::has_movable_token(request.uri(), headers));
        let edits = edits.iter().filter(unmade).map(|edit| edit.rule);
        edits.chain(token.map(|edit| edit.rule)).chain(reroute.map(|reroute| reroute.rule))
    }
}

impl<T> Permitted<T> {
    /// What may go, to look at.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// The duty that goes with it, for an answer of our own where nobody else gives one.
    pub fn hold(&self) -> Hold {
        Hold(())
    }

    /// What may go, and the duty that goes with it.
    pub fn open(self) -> (T, Hold) {
        (self.0, Hold(()))
    }
}

impl Hold {
    /// Holds what came back.
    pub fn hold<R>(self, response: R) -> Held<R> {
        Held(response)
    }
}

impl<T> Held<T> {
    /// Holds what becomes of it.
    ///
    /// # Errors
    /// Those of the change.
    pub async fn and_then<R, E>(self, change: impl AsyncFnOnce(T) -> Result<R, E>) -> Result<Held<R>, E> {
        Ok(Held(change(self.0).await?))
    }
}

impl<B> Held<Response<B>> {
    /// Makes the policy's edits to the response and lets it go.
    pub fn release(self, permit: &Permit) -> Response<B> {
        let mut response = self.0;
        if let Grant::Policy { policy, flow, .. } = &permit.0 {
            apply(policy.response_edits(*flow), response.headers_mut());
        }
        response
    }
}

impl Policy {
    /// Makes the edits to the fields of an answer of our own, which has to look like any other.
    pub fn edit_response(&self, flow: Flow, headers: &mut HeaderMap) {
        apply(self.response_edits(flow), headers);
    }

    /// Makes the edits to the fields of a request that is not sent as it came: the gateway's own question about it.
    pub fn edit_request(&self, flow: Flow, headers: &mut HeaderMap) {
        apply(self.request_edits(flow), headers);
    }
}

/// A token in a query is a client's, and only what comes in has one.
fn token_move(policy: &Policy, flow: Flow, endpoint: Endpoint) -> Option<&TargetEdit> {
    policy.move_token(endpoint).filter(|_| flow.is_inbound())
}

/// Only what Synapse asks others goes another way.
fn reroute(policy: &Policy, flow: Flow, endpoint: Endpoint) -> Option<&Reroute> {
    policy.reroute(endpoint).filter(|_| !flow.is_inbound())
}

fn apply(edits: &[Edit], headers: &mut HeaderMap) {
    for edit in edits {
        if edit.mode == Mode::Enforce {
            edit.edit.apply(headers);
        }
    }
}
