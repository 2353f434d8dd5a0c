//! What is told of refusals: the events of `privacy_events`.

use std::fmt;

use http::Uri;
use http::uri::PathAndQuery;
use serde::Deserialize;

use super::Mode;
use crate::matrix::ServerName;

/// Which refusals and answers are told, and to whom.
#[derive(Debug)]
pub struct Telling {
    /// The rules whose they are.
    pub of: Vec<&'static str>,
    /// Whether it is told, or only counted.
    pub mode: Mode,
    /// Whether it is told who asked, and who was to be asked.
    pub identifiers: Identifiers,
    /// Who hears of it besides the log.
    pub webhook: Option<Webhook>,
}

/// Whether people can be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identifiers {
    /// They are left out.
    Hidden,
    /// They are told.
    Told,
}

/// Somebody who is told in a POST.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Webhook {
    /// Where it is.
    pub server: ServerName,
    /// Whether it is spoken to in TLS.
    pub is_encrypted: bool,
    /// What is asked there.
    pub target: PathAndQuery,
}

impl Telling {
    /// How it is told, for `explain`.
    pub fn describe(&self) -> String {
        match (self.mode, &self.webhook) {
            (Mode::Enforce, None) => "as a privacy event, in the log".into(),
            (Mode::Enforce, Some(webhook)) => {
                format!("as a privacy event, in the log and to {}", webhook.server.as_str())
            }
            (Mode::Report | Mode::Off, _) => "as a privacy event that is only counted".into(),
        }
    }
}

impl TryFrom<String> for Webhook {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // The text is not repeated: whoever knows it may write there.
        let help = "this is no URL of a webhook\nwrite \"https://ops.example.org/hook\", without a user; \"http://\" for one inside";
        let uri: Uri = text.parse().map_err(|_| help)?;
        let is_encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(help.to_owned()),
        };
        let server = uri.authority().and_then(|authority| ServerName::parse(authority.as_str())).ok_or(help)?;
        let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Self { server, is_encrypted, target })
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever knows the path may write there.
        f.debug_struct("Webhook").field("server", &self.server).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_is_a_url_without_a_user() {
        let read = |text: &str| {
            let Webhook { server, is_encrypted, target } = Webhook::try_from(text.to_owned()).ok()?;
            Some((server.as_str().to_owned(), is_encrypted, target.to_string()))
        };
        let is = |server: &str, is_encrypted, target: &str| Some((server.to_owned(), is_encrypted, target.to_owned()));
        assert_eq!(read("https://ops.test/hook?key=a"), is("ops.test", true, "/hook?key=a"));
        assert_eq!(read("http://10.0.0.1:8080"), is("10.0.0.1:8080", false, "/"));
        for odd in
            ["", "ops.test/hook", "https://", "https://u@ops.test/", "ftp://ops.test/", "https://127.1/", "/hook"]
        {
            assert_eq!(read(odd), None, "{odd}");
        }
        let hook = Webhook::try_from("https://ops.test/secret".to_owned()).unwrap();
        assert!(!format!("{hook:?}").contains("secret"));
    }
}
