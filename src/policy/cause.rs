//! Why Synapse contacts somebody.

use serde::{Deserialize, Serialize};

/// What a contact is for, as far as can be told without reading what is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// Rooms, users and devices of other servers, and finding those servers.
    Federation,
    /// The keys that servers sign with.
    Keys,
    /// Files of other servers.
    Media,
    /// Notifications.
    Push,
    /// Identity servers.
    Identity,
    /// Previews of links.
    Preview,
    /// Telling somebody how many users there are.
    Statistics,
    /// Bridges and bots.
    Appservice,
    /// What nobody named.
    Other,
}

impl Cause {
    /// All of them, in the order of their index.
    pub const ALL: [Cause; 9] = [
        Cause::Federation,
        Cause::Keys,
        Cause::Media,
        Cause::Push,
        Cause::Identity,
        Cause::Preview,
        Cause::Statistics,
        Cause::Appservice,
        Cause::Other,
    ];

    /// The word in policies, labels and the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Federation => "federation",
            Cause::Keys => "keys",
            Cause::Media => "media",
            Cause::Push => "push",
            Cause::Identity => "identity",
            Cause::Preview => "preview",
            Cause::Statistics => "statistics",
            Cause::Appservice => "appservice",
            Cause::Other => "other",
        }
    }

    /// The cause of that word.
    pub fn named(word: &str) -> Option<Cause> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == word)
    }

    /// What a path is asked for. Application services, identity servers and push gateways may stand behind a path of their own.
    pub fn of_path(path: &str) -> Cause {
        if path == "/report-usage-stats/push" {
            return Cause::Statistics;
        }
        if path == "/.well-known/matrix/server" {
            return Cause::Federation;
        }
        let Some((_, below)) = path.split_once("/_matrix/") else { return Cause::Other };
        let mut segments = below.split('/');
        match segments.next().unwrap_or_default() {
            "key" => Cause::Keys,
            "media" => Cause::Media,
            "federation" if segments.nth(1) == Some("media") => Cause::Media,
            "federation" => Cause::Federation,
            "push" => Cause::Push,
            "identity" => Cause::Identity,
            "app" => Cause::Appservice,
            _ => Cause::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_what_is_asked_for() {
        for (path, cause) in [
            ("/_matrix/federation/v1/query/profile", Cause::Federation),
            ("/_matrix/federation/v1/media/download/abc", Cause::Media),
            ("/_matrix/media/v3/download/a/b", Cause::Media),
            ("/_matrix/key/v2/server", Cause::Keys),
            ("/_matrix/key/v2/query", Cause::Keys),
            ("/.well-known/matrix/server", Cause::Federation),
            ("/_matrix/push/v1/notify", Cause::Push),
            ("/_matrix/identity/v2/3pid/unbind", Cause::Identity),
            ("/below/_matrix/identity/api/v1/lookup", Cause::Identity),
            ("/report-usage-stats/push", Cause::Statistics),
            ("/_matrix/app/v1/transactions/7", Cause::Appservice),
            ("/bridge/_matrix/app/v1/users/x", Cause::Appservice),
            ("/", Cause::Other),
            ("/_matrix/", Cause::Other),
            ("/_matrix/client/v3/sync", Cause::Other),
            ("/.well-known/openid-configuration", Cause::Other),
        ] {
            assert_eq!(Cause::of_path(path), cause, "{path}");
        }
    }

    #[test]
    fn every_cause_has_a_word_of_its_own() {
        for (place, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!((cause as usize, Cause::named(cause.as_str())), (place, Some(cause)));
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        }
    }
}
