//! Whom an identity server was to unbind, as Synapse says in the body of what was answered in that server's place.

use std::sync::Arc;

use http::{Method, Request};

use crate::message::RequestBody;
use crate::message::json::Object;

/// The user whom this request names as `mxid` (`synapse/handlers/identity.py`), if it is one that does. Its body is read, up to a
/// bound, and gone: nobody else wants that of a request that is answered here.
pub async fn user(request: &mut Request<RequestBody>) -> Option<Arc<str>> {
    if request.method() != Method::POST {
        return None;
    }
    let body = std::mem::replace(request.body_mut(), RequestBody::empty());
    let bytes = body.whole_within(MOST).await.ok().flatten()?;
    let user = Object::parse(&bytes).ok()?.text("mxid")?;
    let is_user = user.starts_with('@') && user.len() <= LONGEST && !user.contains(char::is_control);
    is_user.then(|| user.into())
}

/// Synapse writes some hundred bytes.
const MOST: usize = 64 * 1024;
/// As the specification says of user ids.
const LONGEST: usize = 255;
