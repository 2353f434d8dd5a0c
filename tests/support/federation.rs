//! Two real Synapses that federate through their Mantlets, and what two servers do with each other.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mantlet::config::egress::Ports;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Request, Response, json_response};
use mantlet_testkit::recorder::{RecordedRequest, Recorder};
use mantlet_testkit::synapse::{Options, Packets, Place, Role, Session, Synapse, Watch};
use mantlet_testkit::tool::namespaces;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Gateway;
use super::outside::{Dns, TlsFront};

/// Each side with the other, so that everything is proved in both directions; and a word for names.
pub type Directions<'a> = [(&'a Side, &'a Side, &'a str); 2];

/// What there is beside the two: a name server, their web sites, and a notary.
pub struct Outside {
    dns: Dns,
    backend: Backend,
    web: TlsFront,
    notary: TlsFront,
    delegated: Arc<OnceLock<u16>>,
}

impl Outside {
    /// The server `one` is found by its web site, the server `other` in the DNS.
    pub fn start(authority: &Authority, one: &'static str, other: &'static str) -> Outside {
        let (dns, delegated) = (Dns::start(), Arc::new(OnceLock::new()));
        let port = Arc::clone(&delegated);
        let backend = Backend::start(move |request| {
            Answer::Bytes(match (request.header("host").unwrap_or_default(), request.target_text().as_str()) {
                (host, "/.well-known/matrix/server") if host == one => {
                    json_response(200, &json!({"m.server": format!("{one}:{}", port.get().unwrap())}))
                }
                ("matrix.org", "/_matrix/key/v2/query") => json_response(200, &json!({"server_keys": []})),
                _ => json_response(404, &json!({})),
            })
        });
        let backend = backend.unwrap();
        let front = |names: &[&str]| TlsFront::start(authority, names, "127.0.1.1:0".parse().unwrap(), backend.addr());
        let (web, notary) = (front(&[one, other, "matrix.org"]), front(&["matrix.org"]));
        for name in [one, other, "matrix.org"] {
            dns.address(name, "127.0.1.1");
        }
        Outside { dns, backend, web, notary, delegated }
    }

    fn ports(&self) -> Ports {
        Ports { https: self.web.addr().port(), federation: self.notary.addr().port() }
    }

    /// This server listens there: the first that is told has a web site that says so.
    fn has(&self, name: &str, port: u16) {
        if self.delegated.set(port).is_err() {
            self.dns.service(&format!("_matrix-fed._tcp.{name}"), 10, name, port);
        }
    }

    /// The names that were looked up.
    pub fn looked_up(&self) -> Vec<String> {
        self.dns.asked().into_iter().map(|(name, _)| name).collect()
    }

    /// What the notary and the web sites were asked.
    pub fn asked(&self) -> Vec<RecordedRequest> {
        self.backend.requests()
    }
}

/// What Synapse is told of notaries.
#[derive(Clone, Copy)]
pub enum Notary {
    /// What it has by default: matrix.org, with no key.
    Default,
    /// One whose key is Mantlet's.
    Pinned,
}

/// The notary key of Mantlets under test: that of the specification's appendix on signing JSON.
pub const NOTARY_SEED: &str = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";
/// What others verify with.
pub const NOTARY_VERIFY_KEY: &str = "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI";

/// A homeserver, what stands before it, and what is seen between the two.
pub struct Side {
    gateway: Mutex<Gateway>,
    addr: SocketAddr,
    hop: Recorder,
    synapse: Synapse,
    ca: String,
    directory: TempDir,
}

impl Side {
    /// Mantlet comes first, for its port is part of the homeserver's name; it finds Synapse at a socket.
    pub fn start(authority: &Authority) -> Side {
        let directory = tempfile::tempdir().unwrap();
        let ca = authority.write(directory.path()).unwrap();
        let (certificate, key) = authority.issue(&["localhost"]).unwrap().write(directory.path()).unwrap();
        let socket = directory.path().join("synapse.sock");
        let gateway = Gateway::with_listener(
            &format!("unix:{}", socket.display()),
            "extends = \"balanced\"",
            &format!("tls = {{ certificate = {certificate:?}, key = {key:?} }}"),
            "",
        );
        let addr = gateway.addr();
        let name = format!("localhost:{}", addr.port());
        let synapse = Synapse::start(Options {
            public_baseurl: Some(format!("https://{name}")),
            server_name: name,
            federation_ca: Some(ca),
            unix_socket: false,
            ..Options::default()
        });
        let synapse = synapse.unwrap();
        let hop = Recorder::start_at(socket.as_path(), synapse.addr()).unwrap();
        Side { gateway: Mutex::new(gateway), addr, hop, synapse, ca: authority.pem(), directory }
    }

    /// The same without any way out but its Mantlet's federation door: Synapse has a network of its own, in which nobody is. The
    /// name is found in the outside world.
    pub fn start_behind_a_door(authority: &Authority, name: &str, outside: &Outside, notary: Notary) -> Side {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = authority.issue(&["localhost", name]).unwrap().write(directory.path()).unwrap();
        authority.write(directory.path()).unwrap();
        let (socket, door) = (directory.path().join("synapse.sock"), directory.path().join("door.sock"));
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "a secret of the hook\n".replace(' ', "-")).unwrap();
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        let signing_key = directory.path().join("notary.key");
        std::fs::write(&signing_key, format!("ed25519 notary {NOTARY_SEED}\n")).unwrap();
        std::fs::set_permissions(&signing_key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let (trusted, notary_key) = match notary {
            // What Synapse has by default.
            Notary::Default => (json!({"server_name": "matrix.org"}), String::new()),
            Notary::Pinned => (
                json!({"server_name": "notary.invalid", "verify_keys": {"ed25519:notary": NOTARY_VERIFY_KEY}}),
                format!("notary_key = {signing_key:?}\n"),
            ),
        };
        let files = tempfile::tempdir().unwrap();
        std::fs::write(
            files.path().join("policy.toml"),
            "extends = \"balanced\"\n[rules.public_rooms]\nfederation = \"open\"\n",
        )
        .unwrap();
        let text = format!(
            "[[listener]]\nname = \"test\"\ndoor = \"ingress\"\nbind = \"127.0.1.1:0\"\n\
             tls = {{ certificate = {certificate:?}, key = {key:?} }}\n\
             [[listener]]\nname = \"out\"\ndoor = \"federation\"\nbind = \"unix:{}\"\nsecret_file = {secret:?}\n\
             extra_roots = [{:?}]\n[upstream.synapse]\nservers = [\"unix:{}\"]\n[policy]\nfile = \"policy.toml\"\n\
             [admin]\nbind = \"127.0.0.1:0\"\n\
             [egress]\nstore = {:?}\nnameservers = [\"{}\"]\n{notary_key}[egress.addresses]\nallow = [\"127.0.1.0/24\"]\n",
            door.display(),
            directory.path().join("ca.crt"),
            socket.display(),
            directory.path().join("keys.redb"),
            outside.dns.addr(),
        );
        let gateway = Gateway::load(files, &text, |config| config.egress.ports = outside.ports());
        let addr = gateway.addr();
        outside.has(name, addr.port());
        let synapse = Synapse::start(Options {
            public_baseurl: Some(format!("https://{name}")),
            server_name: name.to_owned(),
            place: if namespaces().unwrap() { Place::Watched(Watch::default()) } else { Place::Alone },
            extra_yaml: json!({
                "instance_map": {"mantlet": {"path": door}},
                "outbound_federation_restricted_to": ["mantlet"],
                "worker_replication_secret_path": secret,
                "trusted_key_servers": [trusted],
            })
            .to_string(),
            ..Options::default()
        });
        let synapse = synapse.unwrap();
        let hop = Recorder::start_at(socket.as_path(), synapse.address()).unwrap();
        Side { gateway: Mutex::new(gateway), addr, hop, synapse, ca: authority.pem(), directory }
    }

    /// Whom Synapse asked, as its Mantlet's ledger says.
    pub fn contacts(&self) -> Vec<Value> {
        self.gateway.lock().unwrap_or_else(PoisonError::into_inner).contacts()
    }

    /// Whom Synapse tried to reach, where it is behind a door.
    pub fn attempts(&self) -> Vec<String> {
        self.synapse.attempts()
    }

    /// Every packet in the network of one that is watched.
    pub fn packets(&self) -> Vec<Packets> {
        self.synapse.packets().unwrap()
    }

    /// The federation door's socket, where there is one.
    pub fn door(&self) -> String {
        self.directory.path().join("door.sock").display().to_string()
    }

    pub fn name(&self) -> &str {
        self.synapse.server_name()
    }

    pub fn user(&self, name: &str) -> Session {
        self.synapse.register(name, "a password", Role::User).unwrap()
    }

    /// Sends what a client sends, through this side's Mantlet.
    #[track_caller]
    pub fn send(&self, request: Request) -> Response {
        request.timeout(PATIENCE).send_tls(self.addr, "localhost", &self.ca)
    }

    /// Asks as a client, and wants a 200.
    #[track_caller]
    pub fn call(&self, session: &Session, method: &str, target: &str, body: Option<&Value>) -> Value {
        let mut request = Request::new(method, target).bearer(&session.access_token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = self.send(request);
        assert_eq!(answer.status, 200, "{method} {target}: {}\n{}", answer.text(), self.synapse.log_tail());
        answer.json()
    }

    /// Makes a room and returns its id; a public one has an alias of that name.
    pub fn room(&self, session: &Session, name: &str, preset: &str) -> String {
        let mut body = json!({"preset": preset, "name": name});
        if preset == "public_chat" {
            body["room_alias_name"] = json!(name);
        }
        let made = self.call(session, "POST", "/_matrix/client/v3/createRoom", Some(&body));
        made["room_id"].as_str().unwrap().to_owned()
    }

    /// How an alias of this server stands in a path.
    pub fn alias(&self, name: &str) -> String {
        format!("%23{name}%3A{}", self.name().replace(':', "%3A"))
    }

    #[track_caller]
    pub fn say(&self, session: &Session, room: &str, text: &str) {
        let target = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{text}");
        self.call(session, "PUT", &target, Some(&json!({"msgtype": "m.text", "body": text})));
    }

    /// Long polls until what comes has what is looked for.
    #[track_caller]
    pub fn wait(&self, session: &Session, what: &str, found: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut since = String::new();
        while Instant::now() < deadline {
            let target = format!("/_matrix/client/v3/sync?timeout=5000{since}");
            let news = self.call(session, "GET", &target, None);
            if found(&news) {
                return;
            }
            since = format!("&since={}", news["next_batch"].as_str().unwrap());
        }
        panic!("{what} did not come to {}:\n{}", session.user_id, self.synapse.log_tail());
    }

    /// What Mantlet wrote of its exchanges, once there is one like this.
    pub fn records_with(&self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        self.gateway.lock().unwrap_or_else(PoisonError::into_inner).records_with(wanted)
    }

    /// Whether such a request came from the other server.
    pub fn was_asked(&self, by: &Side, path: &str) -> bool {
        let signed = format!("origin=\"{}\"", by.name());
        self.hop.requests().iter().any(|request| {
            request.target_text().starts_with(path)
                && request.header("authorization").is_some_and(|value| value.contains(&signed))
        })
    }
}

fn has_message(news: &Value, room: &str, text: &str) -> bool {
    let events = news["rooms"]["join"][room]["timeline"]["events"].as_array();
    events.is_some_and(|events| events.iter().any(|event| event["content"]["body"] == text))
}

fn has_member(news: &Value, room: &str, user: &str, membership: &str) -> bool {
    let room = &news["rooms"]["join"][room];
    let events = ["timeline", "state"].map(|part| room[part]["events"].as_array());
    events.into_iter().flatten().flatten().any(|event| {
        event["type"] == "m.room.member" && event["state_key"] == user && event["content"]["membership"] == membership
    })
}

pub fn a_profile_is_read_from_the_other_server(directions: Directions<'_>) {
    for (here, there, way) in directions {
        let (alice, bob) = (here.user(&format!("profile-alice-{way}")), there.user(&format!("profile-bob-{way}")));
        let name = format!("/_matrix/client/v3/profile/{}/displayname", bob.user_id);
        there.call(&bob, "PUT", &name, Some(&json!({"displayname": "Bob afar"})));
        let profile = here.call(&alice, "GET", &format!("/_matrix/client/v3/profile/{}", bob.user_id), None);
        assert_eq!(profile["displayname"], "Bob afar");
        assert!(there.was_asked(here, "/_matrix/federation/v1/query/profile?"));
        // A stranger learns of it on neither side.
        for side in [here, there] {
            let stranger = side.send(Request::new("GET", format!("/_matrix/client/v3/profile/{}", bob.user_id)));
            assert_eq!(stranger.status, 401, "{}", stranger.text());
        }
    }
}

pub fn a_room_is_found_and_joined_by_its_alias_and_both_sides_talk(directions: Directions<'_>) {
    for (here, there, way) in directions {
        let (alice, bob) = (here.user(&format!("talk-alice-{way}")), there.user(&format!("talk-bob-{way}")));
        let name = format!("talk-{way}");
        let room = there.room(&bob, &name, "public_chat");
        let alias = there.alias(&name);

        let found = here.call(&alice, "GET", &format!("/_matrix/client/v3/directory/room/{alias}"), None);
        assert_eq!(found["room_id"], *room);
        assert!(there.was_asked(here, "/_matrix/federation/v1/query/directory?"));
        let joined = here.call(&alice, "POST", &format!("/_matrix/client/v3/join/{alias}"), Some(&json!({})));
        assert_eq!(joined["room_id"], *room);
        for step in ["v1/make_join", "v2/send_join"] {
            assert!(there.was_asked(here, &format!("/_matrix/federation/{step}/")), "{step}");
        }
        there.wait(&bob, "the join", |news| has_member(news, &room, &alice.user_id, "join"));

        here.say(&alice, &room, "hello");
        there.wait(&bob, "alice's message", |news| has_message(news, &room, "hello"));
        there.say(&bob, &room, "well-met");
        here.wait(&alice, "bob's answer", |news| has_message(news, &room, "well-met"));
        for (asked, by) in [(there, here), (here, there)] {
            assert!(asked.was_asked(by, "/_matrix/federation/v1/send/"), "{}", asked.name());
        }

        here.call(&alice, "POST", &format!("/_matrix/client/v3/rooms/{room}/leave"), Some(&json!({})));
        there.wait(&bob, "the leave", |news| has_member(news, &room, &alice.user_id, "leave"));
        there.say(&bob, &room, "gone");
        let read = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=50");
        let messages = here.call(&alice, "GET", &read, None)["chunk"].to_string();
        assert!(messages.contains("well-met") && !messages.contains("gone"), "{messages}");
    }
}

pub fn an_invitation_is_taken_and_another_is_declined(directions: Directions<'_>) {
    for (here, there, way) in directions {
        let (alice, bob) = (here.user(&format!("invite-alice-{way}")), there.user(&format!("invite-bob-{way}")));
        for answer in ["join", "leave"] {
            let room = there.room(&bob, &format!("private-{way}-{answer}"), "private_chat");
            let invite = json!({"user_id": alice.user_id});
            there.call(&bob, "POST", &format!("/_matrix/client/v3/rooms/{room}/invite"), Some(&invite));
            assert!(here.was_asked(there, &format!("/_matrix/federation/v2/invite/{}", room.replace('!', "%21"))));
            here.wait(&alice, "the invitation", |news| news["rooms"]["invite"][&room].is_object());
            here.call(&alice, "POST", &format!("/_matrix/client/v3/rooms/{room}/{answer}"), Some(&json!({})));
            there.wait(&bob, answer, |news| has_member(news, &room, &alice.user_id, answer));
        }
        // Who declines an invitation leaves by way of the other server.
        assert!(there.was_asked(here, "/_matrix/federation/v1/make_leave/"));
        assert!(there.was_asked(here, "/_matrix/federation/v2/send_leave/"));
    }
}

pub fn media_come_over_with_a_token_and_every_byte(directions: Directions<'_>) {
    let picture: Vec<u8> = (0..3_000_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (here, there, way) in directions {
        let (alice, bob) = (here.user(&format!("media-alice-{way}")), there.user(&format!("media-bob-{way}")));
        let upload = Request::new("POST", "/_matrix/media/v3/upload?filename=a%20b.bin")
            .bearer(&bob.access_token)
            .header("Content-Type", "application/octet-stream")
            .body(picture.clone());
        let upload = there.send(upload);
        assert_eq!(upload.status, 200, "{}", upload.text());
        let uri = upload.json()["content_uri"].as_str().unwrap().to_owned();
        let id = uri.strip_prefix("mxc://").unwrap();

        let download = format!("/_matrix/client/v1/media/download/{id}");
        assert_eq!(here.send(Request::new("GET", download.as_str())).status, 401);
        let media = here.send(Request::new("GET", download.as_str()).bearer(&alice.access_token));
        assert!(media.status == 200 && media.body == picture, "{} with {} bytes", media.status, media.body.len());
        assert!(there.was_asked(here, "/_matrix/federation/v1/media/download/"));
    }
}

pub fn device_keys_are_found_on_the_other_server(directions: Directions<'_>) {
    for (here, there, way) in directions {
        let (alice, bob) = (here.user(&format!("keys-alice-{way}")), there.user(&format!("keys-bob-{way}")));
        let device = &bob.device_id;
        let keys = json!({
            "user_id": bob.user_id, "device_id": device,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": {
                format!("curve25519:{device}"): "3C5BFWi2Y8MaVvjM8M22DBmh24PmgR0nPvJOIArzgyI",
                format!("ed25519:{device}"): "lEuiRJBit0IG6nUf5pUzWTUEsRVVe/HJkoKuEww9ULI",
            },
            "signatures": {&bob.user_id: {format!("ed25519:{device}"): "a-signature-that-nobody-checks-here"}},
        });
        there.call(&bob, "POST", "/_matrix/client/v3/keys/upload", Some(&json!({"device_keys": keys})));
        let query = json!({"device_keys": {&bob.user_id: []}});
        let found = here.call(&alice, "POST", "/_matrix/client/v3/keys/query", Some(&query));
        assert_eq!(found["failures"], json!({}), "{found}");
        assert_eq!(found["device_keys"][&bob.user_id][device]["keys"], keys["keys"], "{found}");
        assert!(there.was_asked(here, "/_matrix/federation/v1/user/keys/query"));
    }
}

pub fn the_list_of_rooms_stays_with_its_own_users(directions: Directions<'_>) {
    for (here, there, way) in directions {
        let (alice, bob) = (here.user(&format!("list-alice-{way}")), there.user(&format!("list-bob-{way}")));
        let name = format!("listed-{way}");
        there.synapse.create_public_room(&bob, &name, &name).unwrap();
        let own = there.call(&bob, "GET", "/_matrix/client/v3/publicRooms", None);
        assert!(own.to_string().contains(&name), "{own}");
        let rooms = format!("/_matrix/client/v3/publicRooms?server={}", there.name());
        let closed = here.send(Request::new("GET", rooms).bearer(&alice.access_token));
        assert!(closed.status >= 400 && !closed.text().contains("listed-"), "{}: {}", closed.status, closed.text());
        assert!(!there.was_asked(here, "/_matrix/federation/v1/publicRooms"), "Synapse was asked");
        let refused = |record: &Value| record["rule"] == "public_rooms" && record["flow"] == "federation";
        there.records_with(refused);
    }
}

pub fn the_list_of_rooms_is_read_where_it_is_open(directions: Directions<'_>) {
    for (here, there, way) in directions {
        let (alice, bob) = (here.user(&format!("open-alice-{way}")), there.user(&format!("open-bob-{way}")));
        let name = format!("open-{way}");
        there.synapse.create_public_room(&bob, &name, &name).unwrap();
        let rooms = format!("/_matrix/client/v3/publicRooms?server={}", there.name());
        let listed = here.call(&alice, "GET", &rooms, None);
        assert!(listed.to_string().contains(&name), "{listed}");
        assert!(there.was_asked(here, "/_matrix/federation/v1/publicRooms"));
    }
}

pub fn nothing_that_servers_need_is_refused(directions: Directions<'_>) {
    for (here, there, way) in directions {
        let (alice, bob) = (here.user(&format!("all-alice-{way}")), there.user(&format!("all-bob-{way}")));
        let name = format!("all-{way}");
        let room = there.room(&bob, &name, "public_chat");
        here.call(&alice, "POST", &format!("/_matrix/client/v3/join/{}", there.alias(&name)), Some(&json!({})));
        here.say(&alice, &room, "all");
        there.wait(&bob, "alice's message", |news| has_message(news, &room, "all"));

        let by_peer = |record: &&Value| record["flow"] == "federation";
        for endpoint in [
            "key_get_server_keys",
            "federation_prepare_join_event",
            "federation_create_join_event",
            "federation_send_transaction_message",
        ] {
            there.records_with(|record| by_peer(&record) && record["endpoint"] == endpoint);
        }
        let records = there.records_with(|_| true);
        for record in records.iter().filter(by_peer) {
            let endpoint = record["endpoint"].as_str().unwrap();
            assert!(!endpoint.starts_with("unknown") && endpoint != "unserved", "{record}");
            let listing = endpoint.starts_with("federation_get_public_rooms");
            assert!(listing || record["decision"] == "permit", "{record}");
        }
    }
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
