//! The plain tables of the gateway file, each with its defaults: `[limits]`, `[tokens]`, `[forwarded]`, `[log]`, `[workers]`,
//! `[homeserver]`.

use crate::units::{Period, Size};
use ipnet::IpNet;
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What one connection, one peer and all of them may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A TLS handshake.
    #[serde(deserialize_with = "above_zero")]
    pub handshake: Period,
    /// Until a new connection says something.
    #[serde(deserialize_with = "above_zero")]
    pub first_byte: Period,
    /// A whole request head.
    #[serde(deserialize_with = "above_zero")]
    pub head: Period,
    /// Between two reads of a body; and for the rest of one that nobody wants.
    #[serde(deserialize_with = "above_zero")]
    pub body_idle: Period,
    /// Until Synapse answers, except for long polls.
    #[serde(deserialize_with = "above_zero")]
    pub upstream_head: Period,
    /// How long a request of another server waits for an upstream that cannot be reached; at most 60 s, 0 waits for none.
    #[serde(deserialize_with = "patience")]
    pub patience: Period,
    /// An idle client connection; Synapse's own at the doors are kept longer.
    #[serde(deserialize_with = "above_zero")]
    pub keep_alive: Period,
    /// A tunnel in which nothing moves.
    #[serde(deserialize_with = "above_zero")]
    pub tunnel_idle: Period,
    /// Requests that still run on SIGTERM; 0 waits for none.
    pub drain: Period,
    /// A request head; Synapse refuses 16 KiB, ours added. At least 8 KiB, below which our HTTP library does not go.
    #[serde(deserialize_with = "head_bytes")]
    pub head_bytes: Size,
    /// Header fields of a request; at most 10,000.
    #[serde(deserialize_with = "fields")]
    pub fields: usize,
    /// A request body: Synapse's `max_upload_size`.
    #[serde(deserialize_with = "above_zero")]
    pub body: Size,
    /// An upload that declares no length: so much is collected, to declare it; 0 collects nothing.
    pub collect: Size,
    /// HTTP/2 streams, per connection.
    #[serde(deserialize_with = "above_zero")]
    pub streams: u32,
    /// Connections in all; at the way in, and as many at the doors of the way out.
    #[serde(deserialize_with = "above_zero")]
    pub connections: usize,
    /// Connections of one address; of IPv6, of one /64.
    #[serde(deserialize_with = "above_zero")]
    pub per_address: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Period::seconds(10),
            first_byte: Period::seconds(10),
            head: Period::seconds(10),
            body_idle: Period::seconds(30),
            upstream_head: Period::seconds(90),
            patience: Period::seconds(5),
            keep_alive: Period::seconds(75),
            tunnel_idle: Period::seconds(600),
            drain: Period::seconds(30),
            head_bytes: Size::kib(15),
            fields: 200,
            body: Size::mib(50),
            collect: Size::mib(1),
            streams: 100,
            connections: 20_000,
            per_address: 1000,
        }
    }
}

/// How long a verdict about an access token is believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tokens {
    /// A token that is good; at most 30 s, 0 asks every time.
    #[serde(deserialize_with = "at_most::<30, _>")]
    pub positive: Period,
    /// A token that is not; at most 2 s.
    #[serde(deserialize_with = "at_most::<2, _>")]
    pub negative: Period,
    /// How many verdicts are kept.
    #[serde(deserialize_with = "above_zero")]
    pub capacity: usize,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { positive: Period::seconds(30), negative: Period::seconds(2), capacity: 10_000 }
    }
}

/// Whom we believe about a client's address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Forwarded {
    /// Networks whose `X-Forwarded-For` is believed; a single address is a network of one.
    #[serde(deserialize_with = "networks")]
    pub trusted_hops: Vec<IpNet>,
}

/// What is written down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The access record.
    pub access: AccessLog,
    /// From which level on our own messages are told.
    pub level: LogLevel,
}

/// The form of the access record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// One JSON object a line.
    #[default]
    Json,
    /// Words.
    Text,
    /// None.
    Off,
}

/// The level of our own messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What fails.
    Error,
    /// What an operator should look into.
    Warn,
    /// What happens to the gateway.
    #[default]
    Info,
    /// What happens to each connection.
    Debug,
}

impl LogLevel {
    /// The name, as `tracing` reads it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// The threads that serve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workers {
    /// 0 is one a core.
    #[serde(deserialize_with = "worker_count")]
    pub count: usize,
}

/// The homeserver behind the gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Homeserver {
    /// Its name in Matrix. Where it is given, `/readyz` also asks the upstream whether it is that server.
    #[serde(deserialize_with = "server_name")]
    pub server_name: Option<String>,
}

fn above_zero<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default + PartialEq>(from: D) -> Result<T, D::Error> {
    let value = T::deserialize(from)?;
    if value == T::default() { Err(D::Error::custom("0 would refuse everything")) } else { Ok(value) }
}

fn at_most<'de, const SECONDS: u64, D: Deserializer<'de>>(from: D) -> Result<Period, D::Error> {
    let period = Period::deserialize(from)?;
    if period > Period::seconds(SECONDS) {
        return Err(D::Error::custom(format!(
            "{period} is too long: a token that was taken back would still pass\nat most \"{SECONDS}s\""
        )));
    }
    Ok(period)
}

fn patience<'de, D: Deserializer<'de>>(from: D) -> Result<Period, D::Error> {
    let period = Period::deserialize(from)?;
    if period > Period::seconds(60) {
        return Err(D::Error::custom(format!(
            "{period} is too long: the server that asks has given up by then\nat most \"1m\""
        )));
    }
    Ok(period)
}

fn head_bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Size, D::Error> {
    let size = Size::deserialize(from)?;
    if size < Size::kib(8) {
        Err(D::Error::custom(format!("{size} is too small\nat least \"8KiB\"")))
    } else {
        Ok(size)
    }
}

fn fields<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    let count = above_zero(from)?;
    if count > 10_000 {
        Err(D::Error::custom(
            "more than 10000 fields\nevery request takes room for as many, whether it has them or not",
        ))
    } else {
        Ok(count)
    }
}

fn worker_count<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    let count = usize::deserialize(from)?;
    if count > 1024 { Err(D::Error::custom("more than 1024 threads\n0 is one a core")) } else { Ok(count) }
}

pub(super) fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
    #[derive(Deserialize)]
    #[serde(try_from = "String")]
    struct Network(IpNet);
    impl TryFrom<String> for Network {
        type Error = String;

        fn try_from(text: String) -> Result<Self, String> {
            let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map(|network: IpNet| Self(network.trunc())).map_err(|_| {
                format!("{text:?} is not an address or a network\nwrite \"10.0.0.1\", \"10.0.0.0/8\" or \"fd00::/8\"")
            })
        }
    }
    Ok(Vec::<Network>::deserialize(from)?.into_iter().map(|Network(network)| network).collect())
}

fn server_name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(from)?;
    match ruma_identifiers_validation::server_name::validate(&name) {
        Ok(()) => Ok(Some(name)),
        Err(_) => Err(D::Error::custom(format!(
            "{name:?} is not a server name\nwrite what follows the colon in your user ids"
        ))),
    }
}
