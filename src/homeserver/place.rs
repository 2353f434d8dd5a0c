//! Where Synapse is told to go, and whether that is a door of ours.

use std::net::IpAddr;
use std::path::Path;

use crate::addresses::Class;
use crate::config::address::ListenerAddress;
use crate::config::gateway::Listener;

/// Whether a place is a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Is {
    /// It is.
    Door,
    /// It is somewhere else.
    Elsewhere,
    /// It cannot be known from here: a name, or a socket that systemd opens.
    Unknown,
}

/// Whether what is sent to this host and port comes to this door.
pub(super) fn tcp(door: &Listener, host: &str, port: u16) -> Is {
    let bind = match &door.bind {
        ListenerAddress::Tcp(bind) => bind,
        ListenerAddress::Unix(_) => return Is::Elsewhere,
        ListenerAddress::Systemd(_) => return Is::Unknown,
    };
    if bind.port() == 0 {
        return Is::Unknown;
    }
    if bind.port() != port {
        return Is::Elsewhere;
    }
    let everywhere = bind.ip().is_unspecified();
    match parsed(host) {
        Some(address) if address == bind.ip() || everywhere => Is::Door,
        Some(_) => Is::Elsewhere,
        None if is_localhost(host) && (bind.ip().is_loopback() || everywhere) => Is::Door,
        None if is_localhost(host) => Is::Elsewhere,
        None => Is::Unknown,
    }
}

/// Whether this socket is this door.
pub(super) fn unix(door: &Listener, path: &Path) -> Is {
    match &door.bind {
        ListenerAddress::Unix(bind) if bind == path => Is::Door,
        ListenerAddress::Unix(bind) => match (bind.canonicalize(), path.canonicalize()) {
            (Ok(one), Ok(other)) if one == other => Is::Door,
            (Ok(_) | Err(_), Ok(_) | Err(_)) => Is::Elsewhere,
        },
        ListenerAddress::Tcp(_) => Is::Elsewhere,
        ListenerAddress::Systemd(_) => Is::Unknown,
    }
}

/// The first of these doors that it is, or what can be said of all of them.
pub(super) fn first<'a>(doors: &[&'a Listener], is: impl Fn(&Listener) -> Is) -> (Is, Option<&'a Listener>) {
    if let Some(door) = doors.iter().find(|door| is(door) == Is::Door) {
        return (Is::Door, Some(door));
    }
    match doors.iter().any(|door| is(door) == Is::Unknown) {
        true => (Is::Unknown, None),
        false => (Is::Elsewhere, None),
    }
}

/// How far a host is, as far as that can be known without asking anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Far {
    /// This machine.
    Here,
    /// An address, or a name, that is not public.
    Inside,
    /// All else.
    Anywhere,
}

impl Far {
    pub(super) fn of(host: &str) -> Self {
        match parsed(host) {
            Some(address) if address.is_loopback() => Self::Here,
            Some(address) if Class::of(address) == Class::Public => Self::Anywhere,
            Some(_) => Self::Inside,
            None if is_localhost(host) => Self::Here,
            // Names of containers; and those that are set aside (RFC 6762, RFC 8375, ICANN).
            None if !host.contains('.') || INSIDE.iter().any(|end| host.to_ascii_lowercase().ends_with(end)) => {
                Self::Inside
            }
            None => Self::Anywhere,
        }
    }
}

/// An address, with or without brackets.
pub(super) fn parsed(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

fn is_localhost(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost")
}

const INSIDE: [&str; 4] = [".internal", ".local", ".home.arpa", ".lan"];

/// A URL of a server, as far as it matters where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    /// In lower case.
    pub scheme: String,
    /// `user:password`, if there are both.
    pub credentials: Option<String>,
    /// Without brackets.
    pub host: String,
    pub port: u16,
}

impl Url {
    /// Reads `[scheme://][user:password@]host[:port]`, and what follows; without a port it is this one, or that of the scheme.
    pub(super) fn parse(text: &str, usual: Option<u16>) -> Option<Self> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let scheme = scheme.to_ascii_lowercase();
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (userinfo, place) =
            authority.rsplit_once('@').map_or((None, authority), |(user, place)| (Some(user), place));
        let (host, port) = match place.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => place.split_at(place.find(':').unwrap_or(place.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(digits) => digits.parse().ok()?,
            None if port.is_empty() => usual.unwrap_or(if scheme == "https" { 443 } else { 80 }),
            None => return None,
        };
        let is_pair =
            |text: &&str| text.split_once(':').is_some_and(|(user, word)| !user.is_empty() && !word.is_empty());
        let credentials = userinfo.filter(is_pair).map(str::to_owned);
        (!host.is_empty()).then(|| Self { scheme, credentials, host: host.to_ascii_lowercase(), port })
    }

    /// Reads the URL of a proxy, which is in the setting of this name. What it says is not repeated: it may be a password.
    pub(super) fn of_proxy(text: &str) -> Result<Self, &'static str> {
        let (_, rest) = text.split_once("://").unwrap_or(("", text));
        // Synapse ends the place there, and takes the piece of a password before it for the place.
        if rest.split_once(['/', '?', '#']).is_some_and(|(_, behind)| behind.contains('@')) {
            return Err(
                "is not the URL of a proxy: an `@` stands behind a `/`, `?` or `#`, which no password there can have",
            );
        }
        Self::parse(text, Some(USUAL_PORT)).ok_or("is not the URL of a proxy")
    }

    /// Where it leads, without its secrets.
    pub(super) fn place(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// Synapse's, for a proxy that names none.
const USUAL_PORT: u16 = 1080;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gateway::Door;

    #[test]
    fn a_url_is_read_as_synapse_reads_it() {
        let read = |text: &str| Url::parse(text, Some(1080)).map(|url| (url.credentials.clone(), url.place()));
        let is = |credentials: Option<&str>, place: &str| Some((credentials.map(str::to_owned), place.to_owned()));
        assert_eq!(read("http://127.0.0.1:8118"), is(None, "127.0.0.1:8118"));
        assert_eq!(read("proxy"), is(None, "proxy:1080"));
        assert_eq!(read("HTTP://u:p@ss@Proxy:3128/"), is(Some("u:p@ss"), "proxy:3128"));
        assert_eq!(read("http://u@proxy"), is(None, "proxy:1080"));
        assert_eq!(read("[::1]:8118"), is(None, "[::1]:8118"));
        for odd in ["", "http://", "http://:80", "http://a:x", "http://[::1", "http://[::1]x", "http://a:99999"] {
            assert_eq!(read(odd), None, "{odd}");
        }
        assert_eq!(Url::parse("https://bridge/x", None).unwrap().port, 443);
    }

    #[test]
    fn a_password_that_ends_the_place_is_none() {
        for odd in ["u:p@ss/w@proxy:1", "u:12/w@proxy:1", "u:p?w@proxy:1", "u:p#w@proxy:1", "u:p/w#x?@y@proxy:1"] {
            for text in [format!("http://{odd}"), odd.to_owned()] {
                assert!(Url::of_proxy(&text).is_err_and(|why| why.contains("stands behind")), "{text}");
            }
        }
        for good in ["http://u:p@ss@proxy:3128/", "http://proxy/?#", "u:p@proxy"] {
            assert!(Url::of_proxy(good).is_ok_and(|url| url.host == "proxy"), "{good}");
        }
        assert!(Url::of_proxy("http://u:p@").is_err());
    }

    #[test]
    fn a_place_is_a_door_if_what_is_sent_there_comes_to_it() {
        let door = |bind: &str| Listener::new(Door::Proxy, bind.parse().unwrap());
        for (bind, host, port, is) in [
            ("127.0.0.1:8118", "127.0.0.1", 8118, Is::Door),
            ("127.0.0.1:8118", "localhost", 8118, Is::Door),
            ("127.0.0.1:8118", "127.0.0.1", 8119, Is::Elsewhere),
            ("127.0.0.1:8118", "127.0.0.2", 8118, Is::Elsewhere),
            ("127.0.0.1:8118", "proxy.internal", 8118, Is::Unknown),
            ("0.0.0.0:8118", "10.0.0.1", 8118, Is::Door),
            ("10.0.0.1:8118", "localhost", 8118, Is::Elsewhere),
            ("[::1]:8118", "[::1]", 8118, Is::Door),
            ("127.0.0.1:0", "127.0.0.1", 8118, Is::Unknown),
        ] {
            assert_eq!(tcp(&door(bind), host, port), is, "{bind} {host}:{port}");
        }
        assert_eq!(unix(&door("127.0.0.1:8118"), Path::new("/run/a.sock")), Is::Elsewhere);
    }

    #[test]
    fn names_that_nobody_outside_knows_are_inside() {
        for (host, far) in [
            ("localhost", Far::Here),
            ("127.0.0.5", Far::Here),
            ("::1", Far::Here),
            ("10.0.0.1", Far::Inside),
            ("mautrix-signal", Far::Inside),
            ("bridge.internal", Far::Inside),
            ("is.example.org", Far::Anywhere),
            ("1.1.1.1", Far::Anywhere),
        ] {
            assert_eq!(Far::of(host), far, "{host}");
        }
    }
}
