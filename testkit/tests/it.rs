//! Proves the kit against the real Synapse and a real client.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mantlet_testkit::http::{Connection, Request, raw};
use mantlet_testkit::nio::{SessionOptions, Users, run_session};
use mantlet_testkit::peer::Peer;
use mantlet_testkit::recorder::Recorder;
use mantlet_testkit::shared_synapse;
use mantlet_testkit::synapse::{Options, Role, Synapse};
use serde_json::json;

const ROOMS: &str = "/_matrix/client/v3/publicRooms";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

#[test]
fn synapse_protects_nothing_by_itself() {
    let synapse = shared_synapse();
    let alice = synapse.register("open-alice", "pw", Role::User).unwrap();
    let room = synapse.create_public_room(&alice, "Open", "open-room").unwrap();
    synapse.set_display_name(&alice, "Open Alice").unwrap();

    let rooms = Request::new("GET", ROOMS).send(synapse.addr());
    assert_eq!(rooms.status, 200);
    assert!(rooms.json()["chunk"].as_array().unwrap().iter().any(|entry| entry["room_id"] == room), "{}", rooms.text());
    assert!(rooms.header("server").unwrap().starts_with("Synapse/1.163.2"));
    assert_eq!(Request::new("HEAD", ROOMS).send(synapse.addr()).body, b"");
    let profile = format!("/_matrix/client/v3/profile/{}", alice.user_id);
    assert_eq!(Request::new("GET", profile).send(synapse.addr()).json()["displayname"], "Open Alice");
}

#[test]
fn sessions_of_every_kind_can_be_made() {
    let synapse = shared_synapse();
    let carol = synapse.register("kinds-carol", "pw", Role::User).unwrap();
    assert_eq!(carol.user_id, "@kinds-carol:hs.localtest");
    let again = synapse.login("kinds-carol", "pw").unwrap();
    assert_ne!(again.device_id, carol.device_id);
    let whoami = |token: &str| Request::new("GET", WHOAMI).bearer(token).send(synapse.addr());

    let guest = synapse.register_guest().unwrap();
    assert_eq!(whoami(&guest.access_token).json()["is_guest"], true);

    let admin = synapse.register("kinds-admin", "pw", Role::Admin).unwrap();
    let users = "/_synapse/admin/v2/users";
    assert_eq!(Request::new("GET", users).bearer(&admin.access_token).send(synapse.addr()).status, 200);
    assert_eq!(Request::new("GET", users).bearer(&carol.access_token).send(synapse.addr()).status, 403);

    synapse.logout(&again).unwrap();
    assert_eq!(whoami(&again.access_token).errcode().as_deref(), Some("M_UNKNOWN_TOKEN"));
    synapse.lock(&carol.user_id).unwrap();
    assert_eq!(whoami(&carol.access_token).errcode().as_deref(), Some("M_USER_LOCKED"));
    synapse.unlock(&carol.user_id).unwrap();
    assert_eq!(whoami(&carol.access_token).json()["user_id"], carol.user_id);
}

#[test]
fn synapse_answers_on_its_unix_socket_and_logs_the_request_id_it_is_given() {
    let synapse = shared_synapse();
    let socket = synapse.socket_path().unwrap();
    let request = Request::new("GET", "/_matrix/client/versions").header("X-Request-ID", "id-from-a-test");
    assert_eq!(request.send(&socket).status, 200);
    let answer = raw(&socket, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer.ends_with(b"OK"), "{answer:?}");
    // The log line is written after the answer.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !std::fs::read_to_string(synapse.log_path()).unwrap().contains("id-from-a-test") {
        assert!(Instant::now() < deadline, "{}", synapse.log_tail());
        std::thread::yield_now();
    }
}

#[test]
fn no_limit_is_met() {
    let synapse = shared_synapse();
    synapse.register("limits", "pw", Role::User).unwrap();
    for _ in 0..20 {
        synapse.login("limits", "pw").unwrap();
    }
}

#[test]
fn synapse_stops_and_starts_again_with_its_data_and_its_port() {
    let mut synapse = Synapse::start(Options { server_name: "again.localtest".into(), ..Options::default() }).unwrap();
    let (addr, data) = (synapse.addr(), synapse.log_path().parent().unwrap().to_owned());
    let dora = synapse.register("dora", "pw", Role::User).unwrap();

    let since = Instant::now();
    synapse.stop().unwrap();
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    assert!(Connection::open(addr).is_err());
    synapse.start_again().unwrap();
    assert_eq!(synapse.addr(), addr);
    assert_eq!(synapse.call(Some(&dora), "GET", WHOAMI, None).unwrap()["user_id"], "@dora:again.localtest");

    synapse.pause().unwrap();
    let request = Request::new("GET", "/health").timeout(Duration::from_millis(300));
    let error = request.try_send(addr).unwrap_err();
    assert!(format!("{error:?}").contains("nothing more came"), "{error:?}");
    synapse.resume().unwrap();
    assert_eq!(Request::new("GET", "/health").send(addr).status, 200);

    synapse.kill().unwrap();
    assert!(Connection::open(addr).is_err());
    synapse.restart().unwrap();
    assert_eq!(synapse.login("dora", "pw").unwrap().user_id, dora.user_id);

    let since = Instant::now();
    drop(synapse);
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    assert!(Connection::open(addr).is_err() && !data.exists());
}

#[test]
fn a_synapse_that_does_not_start_shows_its_log() {
    let options = Options { extra_yaml: "no_such: [\nbroken".into(), ..Options::default() };
    let error = Synapse::start(options).err().unwrap().to_string();
    assert!(error.starts_with("Synapse ended while starting") && error.contains("extra.yaml"), "{error}");
}

#[test]
fn extra_yaml_replaces_our_settings() {
    let extra = "allow_public_rooms_without_auth: false\nenable_registration: false\n";
    let options = Options { extra_yaml: extra.into(), unix_socket: false, ..Options::default() };
    let synapse = Synapse::start(options).unwrap();
    assert_eq!(synapse.socket_path(), None);
    assert_eq!(Request::new("GET", ROOMS).send(synapse.addr()).status, 401);
    let register = Request::new("POST", "/_matrix/client/v3/register").json(&json!({}));
    assert_eq!(register.send(synapse.addr()).status, 403);
}

#[test]
fn a_synapse_ends_with_a_parent_that_was_killed() {
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "holds_a_synapse_until_killed", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines().map_while(Result::ok);
    let held = lines.into_iter().find_map(|line| line.split("HELD ").nth(1).map(str::to_owned)).unwrap();
    let (addr, data) = held.split_once(' ').unwrap();
    let (addr, data): (SocketAddr, PathBuf) = (addr.parse().unwrap(), data.into());
    assert_eq!(Request::new("GET", "/health").send(addr).status, 200);
    assert!(data.exists());

    parent.kill().unwrap(); // SIGKILL: nothing of the parent's own code runs
    parent.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while Connection::open(addr).is_ok() || data.exists() {
        assert!(Instant::now() < deadline, "{addr} or {} is still there", data.display());
        std::thread::yield_now();
    }
}

#[test]
#[ignore = "run by a_synapse_ends_with_a_parent_that_was_killed"]
fn holds_a_synapse_until_killed() {
    let synapse = Synapse::start(Options::default()).unwrap();
    println!("\nHELD {} {}", synapse.addr(), synapse.log_path().parent().unwrap().display());
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_signed_peer_is_served_and_an_unsigned_one_is_not() {
    let peer = Peer::start().unwrap();
    let ca = Some(peer.ca_path().to_owned());
    let synapse = Synapse::start(Options { federation_ca: ca, ..Options::default() }).unwrap();
    let alice = synapse.register("alice", "pw", Role::User).unwrap();
    let room = synapse.create_public_room(&alice, "Lobby", "lobby").unwrap();
    synapse.set_display_name(&alice, "Alice").unwrap();
    let (rooms, name) = ("/_matrix/federation/v1/publicRooms", synapse.server_name());

    let answer = peer.request(synapse.addr(), "GET", rooms, None, name).unwrap();
    assert_eq!((answer.status, &answer.json()["chunk"][0]["room_id"]), (200, &json!(room)), "{}", answer.text());
    let answer = peer.request(synapse.addr(), "POST", rooms, Some(&json!({"limit": 5})), name).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    for path in ["profile", "%70rofile"] {
        let uri = format!("/_matrix/federation/v1/query/{path}?user_id=@alice:{name}&field=displayname");
        let answer = peer.request(synapse.addr(), "GET", &uri, None, name).unwrap();
        assert_eq!(answer.json(), json!({"displayname": "Alice"}));
    }

    assert_eq!(Request::new("GET", rooms).send(synapse.addr()).status, 401);
    let signed_for_another_path = peer.sign("GET", "/_matrix/federation/v1/version", None, name).unwrap();
    let forged = Request::new("GET", rooms).header("Authorization", signed_for_another_path);
    assert_eq!(forged.send(synapse.addr()).errcode().as_deref(), Some("M_UNAUTHORIZED"));
}

#[test]
fn a_peer_shows_its_keys_to_those_who_trust_its_authority() {
    let peer = Peer::start().unwrap();
    let keys = Request::new("GET", "/_matrix/key/v2/server").send_tls(peer.addr(), "localhost", peer.ca_pem());
    assert_eq!(keys.json()["server_name"], peer.server_name());
    assert!(keys.json()["verify_keys"].get(peer.key_id()).is_some());

    let mut connection = Connection::open_tls(peer.addr(), "localhost", peer.ca_pem()).unwrap();
    for _ in 0..2 {
        let version = connection.send(&Request::new("GET", "/_matrix/federation/v1/version")).unwrap();
        assert_eq!(version.json()["server"]["name"], "peer");
    }
    let other = mantlet_testkit::certificate::Authority::new().unwrap().pem();
    let error = Request::new("GET", "/").try_send_tls(peer.addr(), "localhost", &other).unwrap_err();
    assert!(format!("{error:?}").contains("invalid peer certificate"), "{error:?}");
    let error = Request::new("GET", "/").try_send_tls(peer.addr(), "other.example", peer.ca_pem()).unwrap_err();
    assert!(format!("{error:?}").contains("not valid for name"), "{error:?}");
}

#[test]
fn a_real_client_holds_a_full_session_that_the_recorder_sees() {
    let synapse = shared_synapse();
    let recorder = Recorder::start(synapse.addr()).unwrap();
    let url = format!("http://{}", recorder.addr());
    let passed = run_session(&url, &SessionOptions::default()).unwrap();
    for check in ["register", "long_poll", "the_message_arrives", "the_bytes_are_the_same", "the_token_is_dead"] {
        assert!(passed.iter().any(|passed| passed == check), "{check} is not in {passed:?}");
    }
    let seen = recorder.requests();
    let upload = seen.iter().find(|request| request.method == "POST" && request.target_text().contains("/upload"));
    assert_eq!(upload.unwrap().body_len, 5 * 1024 * 1024);
    assert!(
        seen.iter().any(|request| request.target_text().contains("/sync") && request.target_text().contains("30000"))
    );
}

#[test]
fn a_real_client_logs_in_with_users_that_exist() {
    let synapse = shared_synapse();
    let users = ["nio-one", "nio-two"].map(|name| {
        synapse.register(name, "a password", Role::User).unwrap();
        (name.to_owned(), "a password".to_owned())
    });
    let options = SessionOptions { users: Users::Login(users), ca: None };
    let passed = run_session(&synapse.base_url(), &options).unwrap();
    assert_eq!(passed[0], "login");
}

#[test]
fn a_failed_session_shows_what_failed() {
    let synapse = shared_synapse();
    let nobody = ("nobody".to_owned(), "wrong".to_owned());
    let options = SessionOptions { users: Users::Login([nobody.clone(), nobody]), ca: None };
    let error = run_session(&synapse.base_url(), &options).unwrap_err().to_string();
    assert!(error.contains(r#""check": "login", "ok": false"#) && error.contains("M_FORBIDDEN"), "{error}");
}

#[test]
fn a_session_with_a_dead_server_ends() {
    let closed = Recorder::start(Path::new("/nonexistent/upstream")).unwrap();
    let url = format!("http://{}", closed.addr());
    let error = run_session(&url, &SessionOptions::default()).unwrap_err().to_string();
    assert!(error.contains(r#""check": "register", "ok": false"#), "{error}");
}

#[test]
fn a_session_trusts_the_authority_it_is_given_and_no_other() {
    let peer = Peer::start().unwrap();
    let url = format!("https://{}", peer.server_name());
    let mut options = SessionOptions { ca: Some(peer.ca_path().to_owned()), users: Users::Register };
    let error = run_session(&url, &options).unwrap_err().to_string();
    assert!(error.contains("M_UNRECOGNIZED"), "a peer is no homeserver for clients, but it answers: {error}");
    options.ca = None;
    let error = run_session(&url, &options).unwrap_err().to_string();
    assert!(error.contains(r#""check": "register", "ok": false"#) && !error.contains("M_UNRECOGNIZED"), "{error}");
}
