//! Asks for a server's keys: the server itself, or, where it cannot be reached, a notary that the operator names.

use bytes::BytesMut;
use http::header::{self, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::document::{Refused, ServerKeys};
use crate::error::Error;
use crate::ledger::{Contact, Ledger, Verdict};
use crate::matrix::ServerName;
use crate::message::{RequestBody, SYNAPSE_AGENT};
use crate::origin::{Client, Follow};
use crate::policy::{Cause, Permit, Purpose};

/// Why a server's keys are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unheard {
    /// It did not say.
    Unreachable,
    /// What it said is not believed.
    Refused,
}

impl From<Error> for Unheard {
    fn from(_: Error) -> Self {
        Self::Unreachable
    }
}

impl From<Refused> for Unheard {
    fn from(_: Refused) -> Self {
        Self::Refused
    }
}

/// Asks a server for its own keys. What has expired already is not believed.
///
/// # Errors
/// Why they are not known.
pub(super) async fn server(
    client: &Client,
    ledger: &Ledger,
    server: &ServerName,
    now: fn() -> u64,
) -> Result<ServerKeys, Unheard> {
    let mut request = Box::new(Request::new(RequestBody::empty()));
    *request.uri_mut() = Uri::from_static("/_matrix/key/v2/server");
    let said = answer(client, ledger, server, request, MOST_OF_A_SERVER).await?.ok_or(Unheard::Unreachable)?;
    let fetched = now();
    let keys = ServerKeys::read(&said, server.as_str(), fetched)?;
    if keys.is_over(fetched) { Err(Unheard::Refused) } else { Ok(keys) }
}

/// Asks a notary what this server said of itself; `None` where it does not know, or says nothing that is believed.
///
/// What a notary says is believed as a server is: by its certificate, and if the server's own keys have signed it. It may have
/// expired: it counted once.
///
/// # Errors
/// Why the notary did not answer.
pub(super) async fn notary(
    client: &Client,
    ledger: &Ledger,
    notary: &ServerName,
    server: &ServerName,
    now: fn() -> u64,
) -> Result<Option<ServerKeys>, Error> {
    let question = json!({ "server_keys": { server.as_str(): {} } }).to_string();
    let mut request = Box::new(Request::new(RequestBody::whole(question.into())));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static("/_matrix/key/v2/query");
    request.headers_mut().insert(header::CONTENT_TYPE, JSON);
    let said = answer(client, ledger, notary, request, MOST_OF_A_NOTARY).await?;
    Ok(said.and_then(|said| newest(&said, server, now())))
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

/// What somebody answers, who is not told who asks; `None` where it is an error, or longer than this.
///
/// # Errors
/// Why there is no answer.
async fn answer(
    client: &Client,
    ledger: &Ledger,
    to: &ServerName,
    request: Box<Request<RequestBody>>,
    most: usize,
) -> Result<Option<BytesMut>, Error> {
    let permit = Permit::internal(Purpose::ServerKeys);
    // What Synapse would send, but for its signature, which names us: some places serve nobody who sends less.
    let request = permit.permit(request, |headers| {
        headers.insert(header::USER_AGENT, HeaderValue::from_static(SYNAPSE_AGENT));
    });
    let contact = Contact::server(to, Cause::Keys, client.door());
    let mut noted = Noted { ledger, contact: Some(contact), verdict: Verdict::Failed, back: 0 };
    let response = client.send(to, request, Follow::Nothing).await?.release(&permit);
    noted.verdict = Verdict::Passed;
    let (head, mut body) = response.into_parts();
    let mut said = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        noted.back += data.len() as u64;
        if said.len() + data.len() > most {
            return Ok(None);
        }
        said.extend_from_slice(&data);
    }
    Ok((head.status == StatusCode::OK).then_some(said))
}

/// A line of the ledger that is written however asking ends, also where nobody waits for its end.
struct Noted<'a> {
    ledger: &'a Ledger,
    contact: Option<Contact>,
    verdict: Verdict,
    back: u64,
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        if let Some(contact) = self.contact.take() {
            self.ledger.note(contact, self.verdict, 0, self.back);
        }
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// What is read of a server's keys, with all the spaces that are not kept.
const MOST_OF_A_SERVER: usize = 32 * 1024;
/// A notary may know several objects of one server.
const MOST_OF_A_NOTARY: usize = 128 * 1024;
const MOST_OBJECTS: usize = 16;
