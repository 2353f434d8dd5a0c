//! Notaries that the operator names, for the keys of servers that cannot be reached any more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::document::ServerKeys;
use crate::ledger::{Contact, Door, Ledger, Verdict};
use crate::matrix::ServerName;
use crate::message::RequestBody;
use crate::origin::{Client, Follow};
use crate::policy::{Cause, Permit, Purpose};

/// Asks one notary after the other what this server said of itself, until one knows. None is told who asks.
///
/// What a notary says is believed as a server is: by its certificate, and if the server's own keys have signed it. It may have
/// expired: it counted once.
pub(super) async fn ask(
    client: &Client,
    ledger: &Ledger,
    notaries: &Arc<[ServerName]>,
    server: &ServerName,
    now: u64,
) -> Option<ServerKeys> {
    for notary in notaries.iter().filter(|notary| *notary != server) {
        let contact = Contact::server(notary, Cause::Keys, Door::Federation);
        let said = timeout(PATIENCE, question(client, notary, server)).await.ok().flatten();
        match said {
            None => ledger.note(contact, Verdict::Failed, 0, 0),
            Some(said) => {
                ledger.note(contact, Verdict::Passed, 0, said.len() as u64);
                if let Some(keys) = newest(&said, server, now) {
                    return Some(keys);
                }
            }
        }
    }
    None
}

/// What a notary answers; `None` if it does not.
async fn question(client: &Client, notary: &ServerName, server: &ServerName) -> Option<Bytes> {
    let permit = Permit::internal(Purpose::ServerKeys);
    let body = json!({ "server_keys": { server.as_str(): {} } }).to_string();
    let mut request = Box::new(Request::new(RequestBody::whole(body.into())));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static("/_matrix/key/v2/query");
    let request = permit.permit(request, |headers| {
        for name in [header::ACCEPT, header::CONTENT_TYPE] {
            headers.insert(name, HeaderValue::from_static("application/json"));
        }
    });
    let response = client.send(notary, request, Follow::Nothing).await.ok()?.release(&permit);
    if response.status() != StatusCode::OK {
        return None;
    }
    Some(Limited::new(response.into_body(), MOST_ANSWER).collect().await.ok()?.to_bytes())
}

/// The keys of this server in a notary's answer that count longest.
fn newest(said: &[u8], server: &ServerName, now: u64) -> Option<ServerKeys> {
    #[derive(Deserialize)]
    struct Said<'a> {
        #[serde(borrow)]
        server_keys: Vec<&'a RawValue>,
    }
    let said: Said<'_> = serde_json::from_slice(said).ok()?;
    let keys = said.server_keys.iter().take(MOST_OBJECTS);
    let keys = keys.filter_map(|keys| ServerKeys::read(keys.get().as_bytes(), server.as_str(), now).ok());
    keys.max_by_key(ServerKeys::valid_until)
}

/// For each of them.
const PATIENCE: Duration = Duration::from_secs(4);
/// A notary may know several objects of one server.
const MOST_ANSWER: usize = 128 * 1024;
const MOST_OBJECTS: usize = 16;
