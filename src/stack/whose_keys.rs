//! Whose keys does somebody ask Synapse for, as he would ask a notary?

use std::rc::Rc;

use http::{Method, Request};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::HashMap;
use tokio::sync::OnceCell;

use crate::error::Error;
use crate::message::RequestBody;
use crate::policy::KeysOf;
use crate::upstream::Upstream;

/// Tells questions for the homeserver's own keys from those for others'.
#[derive(Clone)]
pub struct WhoseKeys {
    upstream: Rc<Upstream>,
    own: Rc<OnceCell<String>>,
}

impl WhoseKeys {
    /// One for this homeserver, which is asked for its name once where that is not said.
    pub fn new(upstream: Rc<Upstream>, server_name: Option<String>) -> Self {
        Self { upstream, own: Rc::new(OnceCell::new_with(server_name)) }
    }

    /// Whose keys this request is for. Its body is read, and is whole in the request again if they are our own.
    ///
    /// # Errors
    /// Whatever is wrong with the body.
    pub async fn of(&self, request: &mut Request<RequestBody>) -> Result<KeysOf, Error> {
        let names = match *request.method() {
            Method::POST => {
                let body = std::mem::replace(request.body_mut(), RequestBody::empty());
                match body.whole_within(MOST).await? {
                    Some(bytes) => {
                        let names = names_in(&bytes);
                        *request.body_mut() = RequestBody::whole(bytes);
                        names
                    }
                    None => None,
                }
            }
            _ => name_of(request.uri().path()).map(|name| vec![name]),
        };
        let Some(names) = names else { return Ok(KeysOf::Others) };
        // Where the homeserver's name cannot be known, nobody's keys are its own.
        let Ok(own) = self.own.get_or_try_init(|| self.upstream.server_name()).await else { return Ok(KeysOf::Others) };
        let is_own = !names.is_empty() && names.iter().all(|name| name == own);
        Ok(if is_own { KeysOf::Ourselves } else { KeysOf::Others })
    }
}

/// The servers that a question names: `{"server_keys": {NAME: …}}`. A key that stands there twice is another question to each
/// reader, and so none.
fn names_in(body: &[u8]) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Query {
        // serde_json refuses a struct's key that comes twice.
        server_keys: HashMap<String, IgnoredAny>,
    }
    let query: Query = serde_json::from_slice(body).ok()?;
    Some(query.server_keys.into_keys().collect())
}

/// The server in `/_matrix/key/v2/query/{serverName}/…`.
fn name_of(path: &str) -> Option<String> {
    let name = path.split('/').nth(5)?;
    percent_decode_str(name).decode_utf8().ok().map(Into::into)
}

/// The largest body that is read: a longer one is no question for one server's keys.
const MOST: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_of_a_question_are_read() {
        assert_eq!(names_in(br#"{"server_keys":{"a.example:1":{"ed25519:a":{}}}}"#).unwrap(), ["a.example:1"]);
        assert_eq!(names_in(br#"{"server_keys":{}}"#).unwrap(), Vec::<String>::new());
        for odd in
            [&b""[..], b"{}", b"[]", br#"{"server_keys":["a"]}"#, br#"{"server_keys":{"a":{}},"server_keys":{"b":{}}}"#]
        {
            assert_eq!(names_in(odd), None, "{}", String::from_utf8_lossy(odd));
        }
        assert_eq!(name_of("/_matrix/key/v2/query/a.example%3A1/ed25519:a").unwrap(), "a.example:1");
        assert_eq!(name_of("/_matrix/key/v2/query/a.example").unwrap(), "a.example");
        assert_eq!(name_of("/_matrix/key/v2/query"), None);
    }
}
