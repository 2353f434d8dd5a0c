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
