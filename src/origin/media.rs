//! Media of other servers come in two parts, the second of which may only say where the file is (Matrix specification v1.11,
//! server-server API, "Content Repository"). Synapse would go there by itself. So the parts are read here and written anew, under
//! a delimiter that nobody else can know: what reaches Synapse is a type, a disposition and a file.

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use memchr::memmem;

use super::connector::Connector;
use super::url::Url;
use crate::error::{Error, Kind};
use crate::message::Body;
use crate::policy::Cause;

/// Follows where an answer points, as long as it does.
///
/// # Errors
/// [`Kind::OriginRedirect`] where it points to what is not followed to, or too often; and whatever goes wrong there.
pub(super) async fn follow(
    mut response: Response<Incoming>,
    connector: &Connector,
) -> Result<Response<Incoming>, Error> {
    for followed in 0..MOST_REDIRECTS {
        let Some(location) = points_elsewhere(&response) else {
            let is_told = followed == 0 || matches!(response.status(), StatusCode::OK | StatusCode::NOT_FOUND);
            // Whatever else a place says of itself would be taken for the word of the server that pointed there.
            return if is_told { Ok(response) } else { Err(Error::new(Kind::OriginRedirect)) };
        };
        let url = location.and_then(|location| Url::parse(location.as_bytes()));
        // Whoever is asked here hears neither who asks nor for whom: the signature was for the server that pointed here.
        response = connector.get(&url.ok_or_else(|| Error::new(Kind::OriginRedirect))?, Cause::Media).await?;
    }
    if points_elsewhere(&response).is_some() { Err(Error::new(Kind::OriginRedirect)) } else { Ok(response) }
}

/// Whether Synapse, or anybody who gets this answer, may go elsewhere for it; and where to, if it says so.
pub(super) fn points_elsewhere(response: &Response<Incoming>) -> Option<Option<&HeaderValue>> {
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    is_redirect.then(|| response.headers().get(header::LOCATION))
}

/// The answer with its file, wherever that is; as it came, if it is not in parts.
///
/// # Errors
/// [`Kind::OriginGarbled`] where the parts are not what they should be; as of [`follow`] where the file is elsewhere.
pub(super) async fn with_file(response: Response<Incoming>, connector: &Connector) -> Result<Response<Body>, Error> {
    let Some(theirs) = boundary(response.headers())? else { return Ok(response.map(Body::stream)) };
    let (mut head, body) = response.into_parts();
    let mut parts = Parts { body, read: BytesMut::new() };
    // The first part is a JSON object in which nothing stands yet.
    parts.skip_past(&[b"--", &theirs[..], b"\r\n"].concat()).await?;
    parts.fields().await?;
    let delimiter = [b"\r\n--", &theirs[..]].concat();
    parts.skip_past(&[&delimiter[..], b"\r\n"].concat()).await?;
    let fields = parts.fields().await?;

    let ours = boundary_of_our_own()?;
    let content_type = HeaderValue::try_from(format!("multipart/mixed; boundary={ours}"));
    head.headers.insert(header::CONTENT_TYPE, content_type.map_err(|_| garbled())?);
    head.headers.remove(header::CONTENT_LENGTH);
    let end = Bytes::from(format!("\r\n--{ours}--\r\n"));
    let body = match fields.get(header::LOCATION) {
        None => Body::part(before(&ours, &fields), parts.read.freeze(), parts.body, delimiter.into(), end),
        Some(location) => {
            let url = Url::parse(location.as_bytes()).ok_or_else(|| Error::new(Kind::OriginRedirect))?;
            let file = follow(connector.get(&url, Cause::Media).await?, connector).await?;
            if file.status() != StatusCode::OK {
                return Err(Error::new(Kind::OriginRedirect));
            }
            let before = before(&ours, file.headers());
            Body::around(before, file.into_body(), end)
        }
    };
    Ok(Response::from_parts(head, body))
}

/// What stands before the file.
fn before(boundary: &str, fields: &HeaderMap) -> Bytes {
    let mut text = BytesMut::new();
    text.extend_from_slice(
        format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\n").as_bytes(),
    );
    let octets = HeaderValue::from_static("application/octet-stream");
    let content_type = fields.get(header::CONTENT_TYPE).unwrap_or(&octets);
    for (name, value) in
        [("Content-Type", Some(content_type)), ("Content-Disposition", fields.get(header::CONTENT_DISPOSITION))]
    {
        let Some(value) = value else { continue };
        text.extend_from_slice(&[name.as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    text.extend_from_slice(b"\r\n");
    text.freeze()
}

/// The beginning of a body, as far as it has been read.
struct Parts {
    body: Incoming,
    read: BytesMut,
}

impl Parts {
    /// Reads past the next of these.
    async fn skip_past(&mut self, needle: &[u8]) -> Result<(), Error> {
        self.take_past(needle).await.map(drop)
    }

    /// Reads past the next of these, and gives what stood before it.
    async fn take_past(&mut self, needle: &[u8]) -> Result<BytesMut, Error> {
        loop {
            let found = memmem::find(&self.read, needle);
            // However much came at once.
            if found.unwrap_or(self.read.len()) > MOST_HEAD {
                return Err(garbled());
            }
            if let Some(at) = found {
                let before = self.read.split_to(at);
                let _needle = self.read.split_to(needle.len());
                return Ok(before);
            }
            let frame = self.body.frame().await.ok_or_else(garbled)?;
            let frame = frame.map_err(|_| Error::new(Kind::OriginClosed))?;
            if let Some(data) = frame.data_ref() {
                self.read.extend_from_slice(data);
            }
        }
    }

    /// Reads the fields of a part.
    async fn fields(&mut self) -> Result<HeaderMap, Error> {
        let mut fields = HeaderMap::new();
        loop {
            let line = self.take_past(b"\r\n").await?;
            if line.is_empty() {
                return Ok(fields);
            }
            let colon = memchr::memchr(b':', &line).ok_or_else(garbled)?;
            let name = header::HeaderName::from_bytes(&line[..colon]).map_err(|_| garbled())?;
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|_| garbled())?;
            // Twice is once too often: two readers might take one each.
            if fields.insert(name, value).is_some() {
                return Err(garbled());
            }
        }
    }
}

/// Whether Synapse would read parts in this. It goes by the one word, whatever the type is (`federation_get_file`,
/// synapse/http/matrixfederationclient.py).
pub(super) fn has_parts(response: &Response<Incoming>) -> bool {
    names_a_boundary(response.headers())
}

fn names_a_boundary(headers: &HeaderMap) -> bool {
    let names = |value: &HeaderValue| memmem::find(&value.as_bytes().to_ascii_lowercase(), b"boundary=").is_some();
    headers.get_all(header::CONTENT_TYPE).iter().any(names)
}

/// What separates the parts, if there are parts.
///
/// # Errors
/// [`Kind::OriginGarbled`] where it cannot be told, and Synapse might think otherwise.
fn boundary(headers: &HeaderMap) -> Result<Option<Vec<u8>>, Error> {
    match headers.get(header::CONTENT_TYPE).and_then(|value| boundary_in(value.as_bytes())) {
        Some(boundary) => Ok(Some(boundary)),
        None if names_a_boundary(headers) => Err(garbled()),
        None => Ok(None),
    }
}

fn boundary_in(value: &[u8]) -> Option<Vec<u8>> {
    let end = memchr::memchr(b';', value).unwrap_or(value.len());
    let (essence, mut parameters) = value.split_at(end);
    if !essence.trim_ascii().get(..10).is_some_and(|kind| kind.eq_ignore_ascii_case(b"multipart/")) {
        return None;
    }
    while let Some(rest) = parameters.strip_prefix(b";") {
        let equals = memchr::memchr(b'=', rest)?;
        let (name, after) = (rest[..equals].trim_ascii(), &rest[equals + 1..]);
        let content;
        (content, parameters) = match after.strip_prefix(b"\"") {
            Some(quoted) => {
                let (content, rest) = quoted.split_at(memchr::memchr(b'"', quoted)?);
                (content, rest[1..].trim_ascii_start())
            }
            None => {
                let (content, rest) = after.split_at(memchr::memchr(b';', after).unwrap_or(after.len()));
                (content.trim_ascii(), rest)
            }
        };
        if name.eq_ignore_ascii_case(b"boundary") {
            return Some(content.to_vec());
        }
    }
    // Parts that nothing separates: nothing will be found of them.
    Some(Vec::new())
}

fn boundary_of_our_own() -> Result<String, Error> {
    let random = || getrandom::u64().map_err(|error| Error::caused_by(Kind::OriginGarbled, error));
    Ok(format!("{:016x}{:016x}", random()?, random()?))
}

fn garbled() -> Error {
    Error::new(Kind::OriginGarbled)
}

const MOST_REDIRECTS: usize = 3;
/// Until the file begins.
const MOST_HEAD: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boundary_is_found_however_it_is_written() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            boundary(&headers).map(|found| found.map(|boundary| String::from_utf8(boundary).unwrap())).ok()
        };
        let is = |boundary: &str| Some(Some(boundary.to_owned()));
        assert_eq!(of("multipart/mixed; boundary=6067d4698f8d40a0"), is("6067d4698f8d40a0"));
        assert_eq!(of("Multipart/Mixed;charset=x; Boundary=\"a b;c\" ; d=e"), is("a b;c"));
        assert_eq!(of("multipart/mixed"), is(""));
        assert_eq!(of("image/png"), Some(None));
    }

    #[test]
    fn a_boundary_that_only_synapse_would_read_is_no_answer() {
        for value in ["image/png; boundary=x", "boundary=x", "image/png;xBOUNDARY=x", "x; a=\"; boundary=y\""] {
            let mut headers = HeaderMap::new();
            headers.append(header::CONTENT_TYPE, value.parse().unwrap());
            assert!(boundary(&headers).is_err(), "{value}");
            headers.insert(header::CONTENT_TYPE, "image/png".parse().unwrap());
            headers.append(header::CONTENT_TYPE, value.parse().unwrap());
            assert!(boundary(&headers).is_err(), "a second {value}");
        }
    }
}
