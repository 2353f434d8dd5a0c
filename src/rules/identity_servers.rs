//! Keeps e-mail addresses, phone numbers and address books from identity servers that nobody chose.
//!
//! Leak: a client has Synapse publish its user's e-mail address or phone number at an identity server of the client's choice,
//!   and ask there for the addresses of whom the user invites; old clients send whole address books in the clear.
//! Rule: `account/3pid/bind`, and invitations of an e-mail address or phone number (`/invite`, `createRoom`), pass only with an
//!   `id_server` that is listed; any other gets 403 `M_SERVER_NOT_TRUSTED`. Look-ups in the clear (v1 `lookup`, `bulk_lookup`)
//!   get 404. On hosts with `action = "intercept"`, and in the clear, Synapse binds, looks up and invites at listed ones only;
//!   sessions of a phone number's delegate (`validate`, `getValidated3pid`) pass.
//! Cost: nobody is found by an address at servers that are not listed, nor invited by one. Bodies of invitations are read up to
//!   64 KiB, of new rooms up to 256 KiB; larger ones get 413.
//! Example:
//!     [rules.identity_servers]
//!     servers = ["identity.example"]  # perhaps with a port; default: none

use std::sync::Arc;

use http::StatusCode;
use serde::Deserialize;
use serde_spanned::Spanned;

use super::Rule;
use crate::matrix::ServerName;
use crate::matrix::endpoint::Endpoint;
use crate::message::Answer;
use crate::policy::Compiler;
use crate::policy::body::{BodyAction, Place};
use crate::policy::matcher::When;
use crate::policy::plan::Outbound;

/// What `[rules.identity_servers]` may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Identity servers that Synapse may be led to. Default: none.
    servers: Vec<Spanned<String>>,
}

impl Rule for Config {
    fn compile(&self, to: &mut Compiler<'_>) {
        let mut listed = Vec::new();
        for server in &self.servers {
            match ServerName::parse(server.get_ref()) {
                Some(name) => listed.push(name),
                None => to.problem(
                    server.span(),
                    format!("`{}` is no server's name", server.get_ref()),
                    "write \"identity.example\", perhaps with a port",
                ),
            }
        }
        for endpoint in IN_CLEAR {
            to.endpoint(endpoint).deny(Answer::unrecognized());
            to.outbound(Outbound::Identity(endpoint)).deny(Answer::unrecognized());
        }
        let hosts: Arc<[_]> = listed.iter().map(|name| name.host().clone()).collect();
        for endpoint in TOLD_OR_ASKED {
            let others = When { except_destinations: Some(Arc::clone(&hosts)), ..When::default() };
            let refusal = Answer::matrix(StatusCode::FORBIDDEN, "M_FORBIDDEN", "This identity server is not used here");
            to.outbound(Outbound::Identity(endpoint)).when(others).deny(refusal);
        }
        let listed: Arc<[_]> = listed.into();
        let only = |place| BodyAction::OnlyIdentityServers(place, Arc::clone(&listed));
        to.read(Endpoint::ThreepidBind, MOST, only(Place::Bind));
        to.read(Endpoint::InviteUser, MOST, only(Place::Invite));
        to.read(Endpoint::CreateRoom, MOST_OF_A_ROOM, only(Place::CreateRoom));
    }
}

/// Look-ups that send addresses as they are.
const IN_CLEAR: [Endpoint; 2] = [Endpoint::IdentityLegacyLookup, Endpoint::IdentityBulkLookup];

/// What tells an identity server of an address, or asks it for one.
const TOLD_OR_ASKED: [Endpoint; 4] = [
    Endpoint::IdentityBind,
    Endpoint::IdentityStoreInvitation,
    Endpoint::IdentityGetHashDetails,
    Endpoint::IdentityLookup,
];

const MOST: usize = 64 * 1024;
/// A new room may come with some state.
const MOST_OF_A_ROOM: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use crate::matrix::Flow;
    use crate::policy::selftest::{Probe, Seen};
    use crate::rules::testing::*;

    const RULE: &str = "[rules.identity_servers]\nservers = [\"is.test\"]\n";

    fn sent(toml: &str, method: &str, target: &str, body: &str) -> String {
        let policy = policy(toml);
        let mut probe = Probe::new(method, target).unwrap();
        probe.body = Some(body.to_owned().into());
        let seen = Seen::of(&probe.judge(&policy), &policy);
        seen.errcode.unwrap_or_else(|| seen.outcome.to_owned())
    }

    #[test]
    fn only_a_listed_server_is_told_or_asked() {
        let body = |server: &str| {
            format!("{{\"medium\":\"email\",\"address\":\"a@b\",\"id_access_token\":\"t\",\"id_server\":\"{server}\"}}")
        };
        for (method, target) in [
            ("POST", "/_matrix/client/r0/account/3pid/bind"),
            ("POST", "/_matrix/client/unstable/account/3pid/bind?access_token=t"),
            ("POST", "/_matrix/client/v3/rooms/!a:b/invite"),
            ("PUT", "/_matrix/client/api/v1/rooms/!a:b/invite/txn"),
        ] {
            assert_eq!(sent(RULE, method, target, &body("is.test")), "permit", "{target}");
            assert_eq!(sent(RULE, method, target, &body("evil.test")), "M_SERVER_NOT_TRUSTED", "{target}");
            assert_eq!(sent("[rules.identity_servers]", method, target, &body("is.test")), "M_SERVER_NOT_TRUSTED");
            assert_eq!(sent(RULE, method, target, "x"), "M_NOT_JSON");
        }
        for (method, target) in
            [("POST", "/_matrix/client/v3/createRoom"), ("PUT", "/_matrix/client/api/v1/createRoom/txn")]
        {
            let room = |server: &str| format!("{{\"invite_3pid\":[{}]}}", body(server));
            assert_eq!(sent(RULE, method, target, &room("is.test")), "permit", "{target}");
            assert_eq!(sent(RULE, method, target, &room("evil.test")), "M_SERVER_NOT_TRUSTED", "{target}");
        }
        assert_eq!(sent(RULE, "POST", "/_matrix/client/v3/rooms/!a:b/invite", "{\"user_id\":\"@a:b\"}"), "permit");
        assert_eq!(sent(RULE, "POST", "/_matrix/client/v3/rooms/!a:b/join", &body("evil.test")), "permit");
    }

    #[test]
    fn look_ups_in_the_clear_are_not_served() {
        let policy = policy(RULE);
        for (method, path) in [("GET", "lookup"), ("POST", "bulk_lookup")] {
            let seen = judge(&policy, method, &format!("/_matrix/identity/api/v1/{path}"), &[]);
            assert_eq!(seen, "deny identity_servers 404 M_UNRECOGNIZED", "{path}");
        }
        assert_eq!(judge(&policy, "POST", "/_matrix/identity/v2/lookup", &[]), "permit");
    }

    #[test]
    fn where_it_can_be_read_synapse_asks_listed_servers_only() {
        let intercepted = ["is.test", "evil.test"]
            .map(|host| format!("[[egress.destination]]\nhost = \"{host}\"\naction = \"intercept\"\n"))
            .concat();
        let policy = policy(&format!("{RULE}{intercepted}"));
        let seen = |method: &str, url: &str| {
            let mut probe = Probe::new(method, url).unwrap();
            probe.flow = Some(Flow::Egress);
            Seen::of(&probe.judge(&policy), &policy).status
        };
        let identity = "_matrix/identity";
        for (method, path) in [
            ("POST", "v2/lookup"),
            ("GET", "v2/hash_details?access_token=t"),
            ("POST", "v2/3pid/bind"),
            ("POST", "v2/store-invite"),
            ("POST", "api/v1/store-invite"),
        ] {
            assert_eq!(seen(method, &format!("https://is.test/{identity}/{path}")), None, "{path}");
            for prefix in ["", "/pre/fix"] {
                let url = format!("https://evil.test{prefix}/{identity}/{path}");
                assert_eq!(seen(method, &url), Some(403), "{url}");
            }
        }
        assert_eq!(seen("POST", &format!("https://evil.test/x?y=/{identity}/v2/3pid/bind")), Some(403));
        for (method, path) in [("GET", "api/v1/lookup?medium=email"), ("POST", "api/v1/bulk_lookup")] {
            for host in ["is.test", "evil.test", "evil.test/pre"] {
                assert_eq!(seen(method, &format!("https://{host}/{identity}/{path}")), Some(404), "{host} {path}");
            }
        }
        // The delegate for phone numbers.
        for (method, path) in [
            ("POST", "api/v1/validate/msisdn/requestToken"),
            ("POST", "api/v1/validate/msisdn/submitToken"),
            ("GET", "api/v1/3pid/getValidated3pid?sid=1"),
            ("GET", "v2/pubkey/isvalid?public_key=x"),
        ] {
            assert_eq!(seen(method, &format!("https://evil.test/{identity}/{path}")), None, "{path}");
        }
    }

    #[test]
    fn what_is_no_server_is_told_with_its_place() {
        let told = problems("[rules.identity_servers]\nservers = [\"is.test\", \"https://is.test\"]");
        assert!(told.contains("test.toml:2:23: `https://is.test` is no server's name"), "{told}");
    }
}
