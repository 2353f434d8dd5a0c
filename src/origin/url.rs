//! Where an answer points.

use http::Uri;
use http::uri::PathAndQuery;

use crate::matrix::ServerName;

/// An `https` URL: a server, and what is asked there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub server: ServerName,
    pub target: PathAndQuery,
}

impl Url {
    /// Reads a URL. One that is relative, of another scheme, or names a user, is none.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let uri = Uri::try_from(text).ok()?;
        if !uri.scheme_str()?.eq_ignore_ascii_case("https") {
            return None;
        }
        let server = ServerName::parse(uri.authority()?.as_str())?;
        let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        target.as_str().starts_with('/').then_some(Self { server, target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addresses::Guard;
    use crate::matrix::Host;

    /// Every way to write a host that some reader takes for an address: each part in any base, few parts or many, IPv6 in any
    /// clothes, and what stands around it.
    fn spellings() -> Vec<String> {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let inside = [
            0x7f00_0001_u32,
            0,
            0x0a00_0001,
            0xa9fe_a9fe,
            0xc0a8_0001,
            0xac10_0001,
            0x6464_64c8,
            0xa83f_8110,
            0xe000_0001,
        ];
        let mut all = Vec::new();
        while all.len() < 12_000 {
            let address = inside[random(inside.len() as u64) as usize];
            let [a, b, c, d] = address.to_be_bytes().map(u32::from);
            let parts = match random(4) {
                0 => vec![address],
                1 => vec![a, address & 0xff_ffff],
                2 => vec![a, b, address & 0xffff],
                _ => vec![a, b, c, d],
            };
            let mut part = |part: u32| match random(6) {
                0 => format!("{part:#x}"),
                1 => format!("0X{part:X}"),
                2 => format!("0{part:o}"),
                3 => format!("{part:0>5}"),
                4 => format!("0x{part:0>10x}"),
                _ => part.to_string(),
            };
            let dotted = parts.into_iter().map(&mut part).collect::<Vec<_>>().join(".");
            let (high, low) = (address >> 16, address & 0xffff);
            all.push(match random(14) {
                0 => format!("[::ffff:{high:x}:{low:x}]"),
                1 => format!("[0:0:0:0:0:ffff:{a}.{b}.{c}.{d}]"),
                2 => format!("[::{high:x}:{low:x}]"),
                3 => format!("[64:ff9b::{high:x}:{low:x}]"),
                4 => format!("[64:ff9b:1::{a}.{b}.{c}.{d}]"),
                5 => format!("[2002:{high:x}:{low:x}::{:x}]", random(0xffff)),
                6 => format!("[2001:0:{high:x}:{low:x}::{:x}]", random(0xffff)),
                7 => format!("[fe80::{:x}%25lo]", random(0xffff)),
                8 => format!("user@{dotted}"),
                9 => format!("cdn.example:443@{dotted}"),
                10 => format!("{dotted}."),
                11 => dotted.replace('.', "%2e"),
                _ => dotted,
            });
        }
        all
    }

    #[test]
    fn no_spelling_of_an_address_within_is_one_without() {
        let guard = Guard::default();
        for spelling in spellings() {
            for url in [format!("https://{spelling}/x"), format!("https://{spelling}:8448/x")] {
                match Url::parse(url.as_bytes()).map(|url| url.server.host().clone()) {
                    None => {}
                    Some(Host::Address(address)) => {
                        assert!(guard.check(&address.to_string(), address).is_err(), "{url} is {address}");
                    }
                    Some(Host::Name(name)) => panic!("{url} is a name: {name}"),
                }
            }
        }
    }

    #[test]
    fn only_what_is_encrypted_and_absolute_is_followed() {
        let url = |text: &str| {
            Url::parse(text.as_bytes()).map(|url| (url.server.as_str().to_owned(), url.target.to_string()))
        };
        let is = |server: &str, target: &str| Some((server.to_owned(), target.to_owned()));
        assert_eq!(url("https://cdn.example/a%20b?c=d&e"), is("cdn.example", "/a%20b?c=d&e"));
        assert_eq!(url("HTTPS://CDN.example:8443"), is("CDN.example:8443", "/"));
        assert_eq!(url("https://[2001:db8::1]/x"), is("[2001:db8::1]", "/x"));
        for odd in [
            "",
            "/relative",
            "//cdn.example/x",
            "http://cdn.example/x",
            "matrix-federation://cdn.example/x",
            "ftp://cdn.example/x",
            "https:///x",
            "https://user@cdn.example/x",
            "https://user:secret@cdn.example/",
            "https://127.1/x",
            "https://0x7f000001/",
            "https://2130706433/",
            "https://0177.0.0.1/x",
            "https://a.example./x",
            "https://[::1%25lo]/x",
            "https://a b/x",
            "https://a\\b/x",
            "file:///etc/passwd",
            "unix:/run/x.sock",
            "https://cdn.example:0/x",
            "https://cdn.example:99999/x",
        ] {
            assert_eq!(url(odd), None, "{odd}");
        }
    }
}
