//! The access record: what is written down about one exchange.
//!
//! [`AccessRecord`] is the whole list. A token, user id, address, path, query or header value has no field here.

use std::fmt;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::matrix::Flow;
use crate::policy::{self, TokenVerdict};

pub use writer::Writer;

mod json;
mod writer;

/// One exchange, as it is written down when it ends.
///
/// The order here is the order on the line; JSON writes every field every time, so that a column never moves.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// When the request head was complete; RFC 3339, UTC, milliseconds.
    pub time: SystemTime,
    /// The request id that Synapse sees too; 16 hexadecimal digits.
    pub id: u64,
    /// The direction.
    pub flow: Flow,
    /// The name that the operator gave to the listener.
    pub listener: Arc<str>,
    /// The method, if it is one of the known ones.
    pub method: Method,
    /// The endpoint's id: a template's name, never a path.
    pub endpoint: &'static str,
    /// What the client speaks.
    pub protocol: Protocol,
    /// Whether the client's connection is TLS with us.
    pub tls: bool,
    /// The status sent; 0 if none was.
    pub status: u16,
    /// The rule that answered or denied, or would have under `mode = "report"`.
    pub rule: Option<&'static str>,
    /// What became of the exchange.
    pub decision: Decision,
    /// Whether the rule was in force.
    pub mode: Mode,
    /// What is known of the client's access token.
    pub token: Token,
    /// Where the client is, roughly.
    pub network: Network,
    /// The kind of the failure, if there was one.
    pub error: Option<&'static str>,
    /// Body bytes received from the client.
    pub bytes_in: u64,
    /// Body bytes sent to the client.
    pub bytes_out: u64,
    /// Until the last byte was sent or the exchange was given up, in microseconds.
    pub duration_us: u64,
    /// The operator's name for the upstream that was asked; none if none was.
    pub upstream: Option<Arc<str>>,
    /// Until the upstream's response head, in microseconds; none if the upstream was not asked or did not answer.
    pub upstream_us: Option<u64>,
    /// The number of the policy generation that judged the exchange.
    pub generation: u64,
}

words! {
    /// A method in records: anything else a client can invent is `other`.
    pub enum Method {
        /// `GET`
        Get = "GET",
        /// `HEAD`
        Head = "HEAD",
        /// `POST`
        Post = "POST",
        /// `PUT`
        Put = "PUT",
        /// `DELETE`
        Delete = "DELETE",
        /// `OPTIONS`
        Options = "OPTIONS",
        /// `PATCH`
        Patch = "PATCH",
        /// `CONNECT`
        Connect = "CONNECT",
        /// Whatever else was sent.
        Other = "other",
    }
}

impl From<&http::Method> for Method {
    fn from(method: &http::Method) -> Self {
        Method::ALL.iter().copied().find(|known| known.as_str() == method.as_str()).unwrap_or(Method::Other)
    }
}

words! {
    /// The HTTP version between the client and us.
    pub enum Protocol {
        /// HTTP/1.0 and HTTP/1.1.
        H1 = "h1",
        /// HTTP/2.
        H2 = "h2",
    }
}

impl From<http::Version> for Protocol {
    fn from(version: http::Version) -> Self {
        if version == http::Version::HTTP_2 { Protocol::H2 } else { Protocol::H1 }
    }
}

words! {
    /// What became of an exchange.
    pub enum Decision {
        /// It went to the upstream, and the upstream's answer came back.
        Permit = "permit",
        /// A rule answered in the upstream's place.
        Answer = "answer",
        /// A rule refused it.
        Deny = "deny",
        /// It failed: the error's kind tells how.
        Error = "error",
        /// The client went away first.
        Cancelled = "cancelled",
    }
}

words! {
    /// Whether a rule is in force or only tells what it would do.
    pub enum Mode {
        /// In force.
        Enforce = "enforce",
        /// Only told.
        Report = "report",
    }
}

words! {
    /// What is known of the client's access token.
    pub enum Token {
        /// The request had none.
        None = "none",
        /// A user's, by the homeserver's word.
        Valid = "valid",
        /// A guest's, by the homeserver's word.
        Guest = "guest",
        /// The homeserver does not know it.
        Invalid = "invalid",
        /// The homeserver could not be asked.
        Unavailable = "unavailable",
        /// Nobody needed to know.
        Unread = "unread",
    }
}

impl From<&TokenVerdict> for Token {
    fn from(verdict: &TokenVerdict) -> Self {
        match verdict {
            TokenVerdict::Unreadable(_) => Token::None,
            TokenVerdict::Valid { guest: false } => Token::Valid,
            TokenVerdict::Valid { guest: true } => Token::Guest,
            TokenVerdict::Refused(_) => Token::Invalid,
            TokenVerdict::Unavailable(_) => Token::Unavailable,
        }
    }
}

impl From<policy::Mode> for Mode {
    fn from(mode: policy::Mode) -> Self {
        match mode {
            policy::Mode::Enforce => Mode::Enforce,
            // A rule that is off is compiled into nothing, so it tells nothing either.
            policy::Mode::Report | policy::Mode::Off => Mode::Report,
        }
    }
}

words! {
    /// The class of a client's address.
    pub enum Network {
        /// This machine.
        Loopback = "loopback",
        /// Addresses that are not routed in public.
        Private = "private",
        /// The internet.
        Public = "public",
        /// A unix socket: there is no address.
        Unix = "unix",
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        // A dual-stack socket shows an IPv4 client as ::ffff:a.b.c.d.
        let address = address.to_canonical();
        let private = match address {
            IpAddr::V4(v4) => {
                let [a, b, ..] = v4.octets();
                let shared = a == 100 && (64..128).contains(&b);
                v4.is_private() || v4.is_link_local() || v4.is_unspecified() || shared
            }
            IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_unspecified(),
        };
        if address.is_loopback() {
            Network::Loopback
        } else if private {
            Network::Private
        } else {
            Network::Public
        }
    }
}

words! {
    /// How a record is written.
    pub enum Format {
        /// One JSON object a line.
        Json = "json",
        /// Aligned columns, then `key=value`.
        Text = "text",
        /// Not at all.
        Off = "off",
    }
}

impl Format {
    /// What appends one record's line; none for `off`.
    fn line(self) -> Option<fn(&AccessRecord, &mut Vec<u8>)> {
        match self {
            Format::Json => Some(json::line),
            Format::Text => Some(text),
            Format::Off => None,
        }
    }
}

fn text(record: &AccessRecord, line: &mut Vec<u8>) {
    // No `..` here: a new field has to be thought of.
    #[rustfmt::skip]
    let AccessRecord {
        time, id, flow, listener, method, endpoint, protocol, tls, status, rule, decision, mode, token, network,
        error, bytes_in, bytes_out, duration_us, upstream, upstream_us, generation,
    } = record;
    let upstream = upstream.as_deref().unwrap_or("-");
    let time = humantime::format_rfc3339_millis(*time);
    let (flow, method, decision) = (flow.as_str(), method.as_str(), decision.as_str());
    let (rule, error) = (rule.unwrap_or("-"), error.unwrap_or("-"));
    // Writing to a vector cannot fail.
    let _ = write!(line, "{time} {flow:<10} {decision:<9} {status:>3} {method:<7} {endpoint:<40}");
    let _ = write!(line, " id={id:016x} listener={} protocol={protocol} tls={tls}", Plain(listener));
    let _ = write!(line, " rule={rule} mode={mode} token={token} network={network} error={error}");
    let _ = write!(line, " bytes_in={bytes_in} bytes_out={bytes_out} duration_us={duration_us} upstream={upstream}");
    let _ = match upstream_us {
        Some(us) => write!(line, " upstream_us={us}"),
        None => write!(line, " upstream_us=-"),
    };
    let _ = writeln!(line, " generation={generation}");
}

/// A name as it is if it is one word, else quoted, so that it cannot look like another field.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=';
        if self.0.is_empty() || self.0.contains(odd) { write!(f, "{:?}", self.0) } else { f.write_str(self.0) }
    }
}

/// A request id as it is written everywhere: 16 hexadecimal digits.
pub fn hex(id: u64) -> [u8; 16] {
    std::array::from_fn(|place| b"0123456789abcdef"[(id >> (60 - 4 * place)) as usize & 15])
}

#[cfg(test)]
mod tests;
