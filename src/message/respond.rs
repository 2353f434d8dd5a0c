//! The only writer of the gateway's own answers.
//!
//! Each is a Matrix JSON error with the CORS fields that Synapse sends (`synapse/http/server.py::set_cors_headers`): without
//! them a web client sees no error but a failed network. The exceptions are named constructors of [`Answer`].

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use super::Body;
use crate::error::Kind;

/// An answer that the gateway gives itself, ready to be sent any number of times.
#[derive(Clone, Debug)]
pub struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// A Matrix error: `{"errcode": …, "error": …}`.
    pub fn matrix(status: StatusCode, errcode: &str, error: &str) -> Self {
        Self::json(status, &json!({ "errcode": errcode, "error": error }))
    }

    /// What Synapse answers to a path it does not know; clients and peers take it as "not supported" and fall back.
    pub fn unrecognized() -> Self {
        Self::matrix(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", "Unrecognized request")
    }

    /// Any JSON, with CORS.
    pub fn json(status: StatusCode, body: &Value) -> Self {
        Self::json_bytes(status, Bytes::from(body.to_string()))
    }

    /// JSON that somebody else wrote, with CORS: Synapse's own words about a token.
    pub fn json_bytes(status: StatusCode, body: Bytes) -> Self {
        Self::with_type(status, "application/json", body)
    }

    /// Plain text, with CORS. To a client that talks to an identity server, a Matrix error means "failed" where plain text
    /// means "not supported".
    pub fn text(status: StatusCode, body: &'static str) -> Self {
        Self::with_type(status, "text/plain; charset=utf-8", Bytes::from_static(body.as_bytes()))
    }

    /// A redirect; `None` if `location` cannot stand in a header.
    pub fn redirect(status: StatusCode, location: &str) -> Option<Self> {
        let location = HeaderValue::from_str(location).ok()?;
        let mut answer = Self { status, headers: cors(), body: Bytes::new() };
        answer.headers.insert(header::LOCATION, location);
        Some(answer)
    }

    /// The answer to an accident.
    pub fn error(kind: Kind) -> Self {
        Self::matrix(kind.status(), kind.errcode(), kind.sentence())
    }

    /// Adds a field.
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Its body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Its fields.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The `errcode` in its body, if it is a Matrix error.
    pub fn errcode(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        Some(body.get("errcode")?.as_str()?.to_owned())
    }

    /// The response to send. `rule` is shown as `x-mantlet-rule`.
    pub fn response(&self, rule: Option<&'static str>) -> Response<Body> {
        let mut response = Response::new(Body::full(self.body.clone()));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        if let Some(rule) = rule {
            response.headers_mut().insert(RULE, HeaderValue::from_static(rule));
        }
        response
    }

    fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Self {
        let mut headers = cors();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
        Self { status, headers, body }
    }
}

fn cors() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS"),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("X-Requested-With, Content-Type, Authorization, Date"),
    );
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Synapse-Trace-Id, Server"));
    headers
}

/// Names the rule that refused or answered, so that an operator finds it from a user's report.
pub const RULE: HeaderName = HeaderName::from_static("x-mantlet-rule");
