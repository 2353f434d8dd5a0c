//! Hides which homeserver software and version answers, and which version asks.
//!
//! Leak: `/_matrix/federation/v1/version` and `Server:` tell anyone what to attack, and `User-Agent` tells every server we ask.
//! Rule: the header is removed; the endpoint answers the name given, without a version; outbound, `Synapse/1.2.3` becomes `Synapse`.
//! Cost: federation testers show an unknown version.
//! Example:
//!     [rules.server_banner]
//!     name = "matrix"

use std::sync::Arc;

use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::Rule;
use crate::matrix::Flow;
use crate::matrix::endpoint::Endpoint;
use crate::message::Answer;
use crate::policy::{Compiler, FieldSet, HeadEdit};

/// What `[rules.server_banner]` may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The name to show instead. Default: `matrix`.
    name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { name: "matrix".into() }
    }
}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let banners = FieldSet::new(["server", "x-powered-by"]).unwrap_or_default();
        to.every(&Flow::INBOUND).response(HeadEdit::Strip(Arc::new(banners)));
        to.every(&[Flow::Egress]).request(HeadEdit::Product);
        let version = Answer::json(StatusCode::OK, &json!({ "server": { "name": self.name } }));
        to.endpoint(Endpoint::FederationGetVersion).answer(version);
    }
}

#[cfg(test)]
mod tests {
    use crate::matrix::Flow;
    use crate::policy::selftest::Probe;
    use crate::rules::testing::*;

    #[test]
    fn a_peer_learns_a_name_and_no_version() {
        let policy = policy("[rules.server_banner]\nname = \"homeserver\"");
        let answer = answer(&policy, "GET", "/_matrix/federation/v1/version");
        assert_eq!((answer.status().as_u16(), &answer.body()[..]), (200, &br#"{"server":{"name":"homeserver"}}"#[..]));
    }

    #[test]
    fn another_server_learns_no_version_of_who_asks() {
        let policy = policy("[rules.server_banner]");
        let mut probe = Probe::new("GET", "/_matrix/federation/v1/version").unwrap();
        probe.header("user-agent", "Synapse/1.163.2").unwrap();
        probe.flow = Some(Flow::Egress);
        let asked = probe.judge(&policy).upstream.unwrap();
        assert_eq!(asked.headers()["user-agent"], "Synapse");
    }

    #[test]
    fn no_response_names_the_server() {
        let policy = policy("[rules.server_banner]");
        let fields = downstream_fields(&policy, &[("server", "Synapse/1.163.2"), ("content-type", "application/json")]);
        assert_eq!(fields, ["content-type"]);
    }
}
