//! Everything that runs: Synapse, a foreign server, an identity server, Mantlet, and the hops that watch.

use std::net::SocketAddr;
use std::path::Path;

use mantlet::config::gateway::Gateway;
use mantlet::server::{self, Running, Start};
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::json_response;
use mantlet_testkit::peer::Peer;
use mantlet_testkit::recorder::Recorder;
use mantlet_testkit::synapse::{Options, Role, Session, Synapse};
use mantlet_testkit::{Error, Result, venv};
use serde_json::json;
use tempfile::TempDir;

/// All servers, and what was put into Synapse. Dropping it ends them.
pub struct House {
    // Fields are dropped in this order: first whoever asks, then whoever is asked.
    gateway: Running,
    identity_gateway: Running,
    straight: Recorder,
    hop: Recorder,
    identity: Backend,
    synapse: Synapse,
    /// The foreign server that signs its requests.
    pub peer: Peer,
    /// The user whose data strangers ask for.
    pub alice: Session,
    room_id: String,
    _directory: TempDir,
}

/// How requests come to Synapse, and where to look at what arrived.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    /// Where a client or another server connects.
    pub homeserver: SocketAddr,
    /// Where it reaches the identity server.
    pub identity: SocketAddr,
    /// What stands right before Synapse.
    pub arrivals: &'a Recorder,
    /// The identity server itself.
    pub identity_server: &'a Backend,
}

impl House {
    /// Installs Synapse if need be and starts everything.
    pub fn start() -> Result<House> {
        progress(&format!("looking for Synapse {}", venv::SYNAPSE));
        venv::synapse_python()?;
        let directory = tempfile::Builder::new().prefix("mantlet-demo-").tempdir();
        let directory = directory.map_err(|e| Error::caused("make a directory", e))?;

        progress("starting Mantlet with the built-in policy `balanced`");
        // Mantlet is first, since Synapse has to be told its URL: clients go where a login's answer sends them.
        let socket = directory.path().join("synapse.sock");
        let gateway = start_gateway(&format!("unix:{}", socket.display()))?;
        let identity = Backend::start(|_| Answer::Bytes(json_response(200, &json!({}))))?;
        let identity_gateway = start_gateway(&format!("http://{}", identity.addr()))?;

        progress("starting a foreign server");
        let peer = Peer::start()?;

        progress("starting Synapse, as open as it gets");
        let synapse = Synapse::start(Options {
            federation_ca: Some(peer.ca_path().to_owned()),
            public_baseurl: Some(url(address(&gateway)?)),
            unix_socket: false,
            ..Options::default()
        })?;
        let straight = Recorder::start(synapse.addr())?;
        let hop = Recorder::start_at(socket.as_path(), synapse.addr())?;
        let alice = synapse.register(USER, PASSWORD, Role::User)?;
        let room_id = synapse.create_public_room(&alice, ROOM_NAME, "union")?;
        for (field, value) in [("displayname", DISPLAY_NAME), ("avatar_url", AVATAR), (CUSTOM_FIELD, CUSTOM_VALUE)] {
            let path = format!("/_matrix/client/v3/profile/{}/{field}", alice.user_id);
            synapse.call(Some(&alice), "PUT", &path, Some(&json!({ field: value })))?;
        }
        Ok(House {
            gateway,
            identity_gateway,
            straight,
            hop,
            identity,
            synapse,
            peer,
            alice,
            room_id,
            _directory: directory,
        })
    }

    /// Straight to the servers.
    pub fn without(&self) -> Way<'_> {
        Way {
            homeserver: self.straight.addr(),
            identity: self.identity.addr(),
            arrivals: &self.straight,
            identity_server: &self.identity,
        }
    }

    /// Through Mantlet.
    pub fn through(&self) -> Result<Way<'_>> {
        Ok(Way {
            homeserver: address(&self.gateway)?,
            identity: address(&self.identity_gateway)?,
            arrivals: &self.hop,
            identity_server: &self.identity,
        })
    }

    /// Synapse's own name.
    pub fn server_name(&self) -> &str {
        self.synapse.server_name()
    }

    /// What no list of rooms for strangers may hold.
    pub fn room_secrets(&self) -> [&str; 2] {
        [&self.room_id, ROOM_NAME]
    }

    /// A new device of Alice's, whose token no cache has seen.
    pub fn log_in(&self) -> Result<Session> {
        self.synapse.login(USER, PASSWORD)
    }

    /// Drops what the hops remember, which would grow with every request of those who try it out.
    pub fn forget(&mut self) {
        self.straight.take();
        self.hop.take();
        self.identity.take();
    }

    /// What a person can do while it is up.
    pub fn invitation(&self) -> String {
        let here = self.gateway.addr().map(url).unwrap_or_default();
        let admin = self.gateway.admin().map(ToString::to_string).unwrap_or_default();
        let (straight, user_id) = (self.synapse.base_url(), &self.alice.user_id);
        format!(
            "\nUp until Ctrl-C:\n\
             \x20   Mantlet     {here}\n\
             \x20   Synapse     {straight}   (without Mantlet, to compare)\n\
             \x20   try         curl -i {here}/_matrix/client/v3/publicRooms\n\
             \x20   log in      homeserver {here}   user {user_id}   password {PASSWORD}\n\
             \x20   metrics     http://{admin}/metrics\n",
        )
    }

    /// Ends everything in good order: first whoever asks, then whoever is asked.
    pub fn end(self) {
        let House { gateway, identity_gateway, mut synapse, .. } = self;
        gateway.shutdown();
        identity_gateway.shutdown();
        // A stop that fails is followed by the drop, which ends Synapse for certain.
        let _ = synapse.stop();
    }
}

/// Tells the person who waits.
pub fn progress(line: &str) {
    eprintln!("demo: {line}");
}

/// A Mantlet in this process, as the gateway file below says it; without `[policy]` that is `balanced`.
fn start_gateway(upstream: &str) -> Result<Running> {
    let text = format!(
        "[[listener]]\nname = \"demo\"\ndoor = \"ingress\"\nbind = \"127.0.0.1:0\"\n\
         [upstream.synapse]\nservers = [\"{upstream}\"]\n\
         [admin]\nbind = \"127.0.0.1:0\"\n\
         [log]\naccess = \"off\"\n\
         # Ctrl-C does not wait for a client's long poll.\n\
         [limits]\ndrain = \"1s\"\n"
    );
    let gateway = Gateway::parse("the demo's gateway file", text, Path::new(""));
    let started =
        gateway.and_then(|gateway| server::start(Start { gateway, file: None, signals: false, access: None }));
    started.map_err(|problems| Error::new(format!("Mantlet did not start: {problems}")))
}

fn address(gateway: &Running) -> Result<SocketAddr> {
    let first = gateway.addr();
    first.ok_or_else(|| Error::new("Mantlet has no listener"))
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// What strangers ask for, and no answer to them may hold.
const ROOM_NAME: &str = "Works council";
pub const DISPLAY_NAME: &str = "Alice Liddell";
pub const AVATAR: &str = "mxc://hs.localtest/AliceAvatar";
pub const CUSTOM_FIELD: &str = "org.example.team";
pub const CUSTOM_VALUE: &str = "Night shift";

const USER: &str = "alice";
const PASSWORD: &str = "through-the-looking-glass";
