//! What the tests share: one Synapse that protects nothing, a room in its directory, and a foreign server that it believes.

use std::sync::{LazyLock, OnceLock};

use mantlet_testkit::http::{Request, Response};
use mantlet_testkit::peer::Peer;
use mantlet_testkit::synapse::{Options, Role, Session, Synapse};
use serde_json::{Value, json};

use crate::support::Gateway;

/// The policies under which a leak is closed.
pub const POLICIES: [&str; 2] = ["balanced", "strict"];

/// Every user's password.
pub const PASSWORD: &str = "a password";

/// The token of an application service that makes users whose names begin with `bridge-`.
pub const BRIDGE_TOKEN: &str = "the-token-of-the-bridge";

static BRIDGE: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "id": "bridge", "url": null, "as_token": BRIDGE_TOKEN, "hs_token": "unused", "sender_localpart": "bridge",
        "namespaces": {"users": [{"exclusive": true, "regex": "@bridge-.*"}]},
    })
});

/// One for the whole binary.
pub struct World {
    /// Protects nothing, and lists this world's room.
    pub synapse: Synapse,
    /// A server that Synapse federates with.
    pub peer: Peer,
    /// A server administrator.
    pub admin: Session,
    /// The room in the public directory.
    pub room: String,
}

/// Starts it when it is first asked for.
pub fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let peer = Peer::start().unwrap();
        // Synapse reads it at its start only.
        let directory = tempfile::tempdir().unwrap();
        let bridge = directory.path().join("bridge.yaml");
        std::fs::write(&bridge, BRIDGE.to_string()).unwrap();
        let options = Options {
            federation_ca: Some(peer.ca_path().to_owned()),
            metrics: true,
            extra_yaml: json!({
                "experimental_features": {"msc4133_enabled": true},
                "app_service_config_files": [bridge],
                // What Synapse says to whoever asks too often is seen where nothing else asks.
                "rc_registration_token_validity": {"per_second": 0.001, "burst_count": 1},
            })
            .to_string(),
            ..Options::default()
        };
        let synapse = Synapse::start(options).unwrap();
        let admin = synapse.register("administrator", PASSWORD, Role::Admin).unwrap();
        let room = synapse.create_public_room(&admin, "Lobby", "lobby").unwrap();
        World { synapse, peer, admin, room }
    })
}

impl World {
    /// A new user.
    pub fn user(&self, name: &str) -> Session {
        self.synapse.register(name, PASSWORD, Role::User).unwrap()
    }

    /// A gateway before Synapse with a built-in policy.
    pub fn gateway(&self, policy: &str) -> Gateway {
        Gateway::start(&self.synapse.base_url(), &extends(policy))
    }

    /// The answer of Synapse itself.
    #[track_caller]
    pub fn direct(&self, request: &Request) -> Response {
        request.send(self.synapse.addr())
    }

    /// The answer to a signed request of the foreign server, at Synapse itself or at a gateway.
    #[track_caller]
    pub fn signed(&self, to: std::net::SocketAddr, method: &str, uri: &str, content: Option<&Value>) -> Response {
        self.peer.request(to, method, uri, content, self.synapse.server_name()).unwrap()
    }

    /// Whether an answer lists the world's room.
    pub fn lists_the_room(&self, response: &Response) -> bool {
        let rooms = response.try_json().unwrap_or_default();
        let rooms = rooms["chunk"].as_array().map(Vec::as_slice).unwrap_or_default();
        rooms.iter().any(|room| room["room_id"] == *self.room)
    }

    /// What Synapse has noted of a user's devices: address and agent of each use.
    pub fn noted(&self, user_id: &str) -> Vec<(String, String)> {
        let whois = format!("/_synapse/admin/v1/whois/{user_id}");
        let whois = self.synapse.call(Some(&self.admin), "GET", &whois, None).unwrap();
        let connections = whois["devices"].as_object().unwrap().values();
        let connections = connections.flat_map(|device| device["sessions"].as_array().unwrap());
        let connections = connections.flat_map(|session| session["connections"].as_array().unwrap());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        connections.map(|connection| (text(&connection["ip"]), text(&connection["user_agent"]))).collect()
    }
}

/// A policy that is a built-in one.
pub fn extends(policy: &str) -> String {
    format!("extends = \"{policy}\"")
}

/// The answer of a gateway. Whatever it is, it does not name the software behind it.
#[track_caller]
pub fn through(gateway: &Gateway, request: &Request) -> Response {
    let response = request.send(gateway.addr());
    assert_names_no_software(&response);
    response
}

/// An answer through a gateway has no `Server` field, and nothing in its head names Synapse's version.
#[track_caller]
pub fn assert_names_no_software(response: &Response) {
    let head = String::from_utf8_lossy(&response.head);
    assert!(response.header("server").is_none() && !head.contains("1.163"), "{head}");
}
