//! Addresses as an operator writes them: where we listen, where the homeserver does, where only this machine reaches us.

use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Where a homeserver listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum UpstreamAddress {
    /// `http://host:port`; an IPv6 address stands here without its brackets.
    Tcp {
        /// A name or an address.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// `unix:/path`.
    Unix(PathBuf),
}

impl TryFrom<String> for UpstreamAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        const HELP: &str = "write \"http://127.0.0.1:8008\" or \"unix:/run/synapse.sock\"";
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("{text:?} is not the URL of a server\n{HELP}"));
        };
        if scheme != "http" {
            return Err(format!(
                "{scheme}:// is not supported: Synapse is asked over plain HTTP or a unix socket\n{HELP}"
            ));
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains('@') {
            // Not echoed: what stands before the @ is a secret.
            return Err(format!("a server takes no user or password\n{HELP}"));
        }
        if authority.contains(['/', '?', '#']) {
            return Err(format!("{text:?} has a path: requests keep the path they came with\n{HELP}"));
        }
        let Some((host, port)) = authority.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !unclosed(host))
        else {
            return Err(format!("{text:?} has no port\n{HELP}"));
        };
        let port = match port.parse::<u16>() {
            Ok(port) if port != 0 && !text.contains(":+") => port,
            _ => return Err(format!("{port:?} is not a port\n{HELP}")),
        };
        let name = |host: &str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) if address.parse::<Ipv6Addr>().is_ok() => Ok(Self::Tcp { host: address.to_owned(), port }),
            None if name(host) => Ok(Self::Tcp { host: host.to_owned(), port }),
            Some(_) | None => Err(format!("{host:?} is not a host\n{HELP}")),
        }
    }
}

/// `[::1` of `[::1]` without a port.
fn unclosed(host: &str) -> bool {
    host.starts_with('[') && !host.ends_with(']')
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where the admin listener listens: never where somebody else's machine reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum AdminAddress {
    /// A loopback address.
    Tcp(SocketAddr),
    /// `unix:/path`.
    Unix(PathBuf),
}

impl TryFrom<String> for AdminAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        let address = socket_address(&text, "\"127.0.0.1:9090\" or \"unix:/run/mantlet/admin.sock\"")?;
        if address.ip().to_canonical().is_loopback() {
            return Ok(Self::Tcp(address));
        }
        Err(format!(
            "{} is not a loopback address, and whoever reaches the admin listener needs no password\n\
             write \"127.0.0.1:{}\", \"[::1]:{1}\" or \"unix:/run/mantlet/admin.sock\"",
            address.ip(),
            address.port()
        ))
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum ListenerAddress {
    /// An address and a port; 0 is a free one.
    Tcp(SocketAddr),
    /// `unix:/path`.
    Unix(PathBuf),
    /// `systemd:NAME`: a socket that is open when the process starts.
    Systemd(String),
}

impl TryFrom<String> for ListenerAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        if let Some(name) = text.strip_prefix("systemd:") {
            // What systemd takes for FileDescriptorName=.
            return match (1..=255).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
            {
                true => Ok(Self::Systemd(name.to_owned())),
                false => {
                    Err(format!("{name:?} is not the name of a socket\nwrite that of FileDescriptorName= in its unit"))
                }
            };
        }
        socket_address(&text, "\"0.0.0.0:8448\", \"[::]:8448\" or \"unix:/run/mantlet/mantlet.sock\"").map(Self::Tcp)
    }
}

impl From<SocketAddr> for ListenerAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for ListenerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Systemd(name) => write!(f, "systemd:{name}"),
        }
    }
}

impl Serialize for ListenerAddress {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl ListenerAddress {
    /// Whether a connection to one may end at the other.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(other)) => overlap(*one, *other),
            (Self::Unix(one), Self::Unix(other)) => one == other,
            // Each takes the next socket of its name.
            (Self::Tcp(_) | Self::Unix(_) | Self::Systemd(_), _) => false,
        }
    }

    /// Whether what is sent to this homeserver comes back to us.
    pub(super) fn is_behind(&self, upstream: &UpstreamAddress) -> bool {
        match (self, upstream) {
            (Self::Tcp(bind), UpstreamAddress::Tcp { host, port }) => host
                .parse::<IpAddr>()
                .is_ok_and(|address| overlap(*bind, SocketAddr::new(address, *port)) && is_ours(*bind, address)),
            (Self::Unix(bind), UpstreamAddress::Unix(path)) => bind == path,
            (Self::Tcp(_) | Self::Unix(_) | Self::Systemd(_), _) => false,
        }
    }
}

/// Who may connect to a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct SocketMode(pub u32);

impl Default for SocketMode {
    /// Its owner and its group.
    fn default() -> Self {
        Self(0o660)
    }
}

impl TryFrom<String> for SocketMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_prefix('0').filter(|digits| digits.len() == 3);
        match digits.and_then(|digits| u32::from_str_radix(digits, 8).ok()) {
            Some(mode) if mode & 0o600 == 0o600 => Ok(Self(mode)),
            _ => Err(format!("{text:?} is not the mode of a socket\nwrite \"0600\", \"0660\" or \"0666\"")),
        }
    }
}

impl Serialize for SocketMode {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{:04o}", self.0))
    }
}

/// Whether a connection to one may end at the other. Port 0 is a free port, so always another one.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip(), other.ip());
    let same = a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()));
    one.port() != 0 && one.port() == other.port() && same
}

/// Behind an unspecified address only a loopback address is surely ours.
fn is_ours(bind: SocketAddr, address: IpAddr) -> bool {
    bind.ip() == address || address.is_loopback()
}

fn socket_address(text: &str, help: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let what = if text.parse::<IpAddr>().is_ok() { "has no port" } else { "is not an address and a port" };
        format!("{text:?} {what}\nwrite {help}")
    })
}

fn socket_path(path: &str) -> Result<PathBuf, String> {
    // `sun_path` has 108 bytes, one of them for the end.
    match path.starts_with('/') && path.len() < 108 && !path.contains('\0') {
        true => Ok(PathBuf::from(path)),
        false => Err(format!("{path:?} is not the path of a socket\nwrite an absolute path of at most 107 bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(text: &str) -> Result<UpstreamAddress, String> {
        UpstreamAddress::try_from(text.to_owned())
    }

    #[test]
    fn an_upstream_is_a_host_and_a_port_or_a_socket() {
        let tcp = |host: &str, port| Ok(UpstreamAddress::Tcp { host: host.into(), port });
        assert_eq!(upstream("http://127.0.0.1:8008"), tcp("127.0.0.1", 8008));
        assert_eq!(upstream("http://synapse_main.local:80/"), tcp("synapse_main.local", 80));
        assert_eq!(upstream("http://[::1]:8008"), tcp("::1", 8008));
        assert_eq!(upstream("unix:/run/s.sock"), Ok(UpstreamAddress::Unix("/run/s.sock".into())));
        for text in ["http://127.0.0.1:8008", "http://[::1]:8008", "unix:/run/s.sock"] {
            assert_eq!(upstream(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_upstream_that_is_more_or_less_is_refused() {
        let what = |text: &str| upstream(text).unwrap_err().lines().next().unwrap().to_owned();
        assert!(what("https://127.0.0.1:8008").starts_with("https:// is not supported"));
        assert_eq!(what("http://me:secret@127.0.0.1:8008"), "a server takes no user or password");
        assert!(what("http://127.0.0.1:8008/_matrix").contains("has a path"));
        assert!(what("http://127.0.0.1:8008?a").contains("has a path"));
        assert!(what("http://127.0.0.1").contains("has no port"));
        assert!(what("http://[::1]").contains("has no port"));
        assert!(what("127.0.0.1:8008").contains("is not the URL"));
        for text in [
            "http://a:0",
            "http://a:+80",
            "http://a:65536",
            "http://a:",
            "http://a b:80",
            "http://::1:80",
            "http://:80",
        ] {
            assert!(upstream(text).is_err(), "{text}");
        }
        for text in ["unix:", "unix:relative", &format!("unix:/{}", "x".repeat(107))] {
            assert!(upstream(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_admin_listener_is_for_this_machine() {
        let admin = |text: &str| AdminAddress::try_from(text.to_owned());
        for text in ["127.0.0.1:9090", "127.9.9.9:1", "[::1]:9090", "unix:/run/a.sock"] {
            assert_eq!(admin(text).unwrap().to_string(), text);
        }
        for text in ["0.0.0.0:9090", "10.0.0.1:9090", "[::]:9090", "192.168.0.1:1"] {
            assert!(admin(text).unwrap_err().contains("needs no password"), "{text}");
        }
        assert!(admin("127.0.0.1").unwrap_err().contains("has no port"));
        assert!(admin("localhost:9090").unwrap_err().contains("is not an address and a port"));
    }

    #[test]
    fn an_unspecified_address_overlaps_all_of_its_family() {
        let overlap = |one: &str, other: &str| super::overlap(one.parse().unwrap(), other.parse().unwrap());
        assert!(overlap("0.0.0.0:1", "127.0.0.1:1"));
        assert!(overlap("[::1]:1", "[::]:1"));
        assert!(!overlap("0.0.0.0:1", "[::]:1"));
        assert!(!overlap("127.0.0.1:1", "127.0.0.1:2"));
        assert!(!overlap("127.0.0.1:0", "127.0.0.1:0"));
    }
}
