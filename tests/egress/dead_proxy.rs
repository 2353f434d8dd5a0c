//! One whose Mantlet is not there yet, is killed in the midst of it, and comes back: what its users see of all that it asks through
//! the doors, and what mends itself.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Request, Response, json_response, response};
use mantlet_testkit::program::Program;
use mantlet_testkit::recorder::RecordedRequest;
use mantlet_testkit::synapse::{Options, Role, Session, Synapse, free_port};
use serde_json::{Value, json};

use crate::contacts_with;
use crate::notary::Stranger;
use crate::support::outside::{Dns, TlsFront};

const NAMES: [&str; 5] = ["push.test", "preview.test", "ident.test", "sso.test", "there.test"];

/// A Mantlet of one's own process, whose store outlives it.
struct Site {
    directory: tempfile::TempDir,
    doors: [String; 3],
}

impl Site {
    fn new(authority: &Authority, dns: &Dns, ports: [u16; 2]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        authority.write(directory.path()).unwrap();
        write("policy.toml", "extends = \"balanced\"\n");
        write("secret", "a-secret-of-the-hook\n");
        std::fs::set_permissions(directory.path().join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
        let doors = [(); 3].map(|()| format!("127.0.0.1:{}", free_port().unwrap()));
        let [web, federation, notary] = &doors;
        let text = format!(
            "[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"{web}\"\nports = {ports:?}\nextra_roots = [\"ca.crt\"]\n\
             [[listener]]\nname = \"out\"\ndoor = \"federation\"\nbind = \"{federation}\"\nsecret_file = \"secret\"\n\
             extra_roots = [\"ca.crt\"]\n\
             [[listener]]\nname = \"keys\"\ndoor = \"notary\"\nbind = \"{notary}\"\nserver_name = \"keys.test:1\"\n\
             extra_roots = [\"ca.crt\"]\n\
             [policy]\nfile = \"policy.toml\"\n[upstream.synapse]\nservers = [\"http://127.0.0.1:9\"]\n\
             [admin]\nbind = \"unix:{}\"\n[egress]\nnameservers = [\"{}\"]\nstore = \"store.redb\"\n\
             [egress.addresses]\nallow = [\"127.0.1.0/24\", \"bridge.test\"]\n",
            directory.path().join("admin.sock").display(),
            dns.addr()
        );
        write("mantlet.toml", &text);
        Self { directory, doors }
    }

    fn start(&self) -> Program {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.directory.path().join("log")).unwrap();
        let config = self.directory.path().join("mantlet.toml");
        let command = [env!("CARGO_BIN_EXE_mantlet"), "run", "--config", config.to_str().unwrap()];
        let mut program = Program::start(&command, Stdio::null(), log.into()).unwrap();
        let is_there = || {
            let health = Request::new("GET", "/livez").try_send(self.directory.path().join("admin.sock").as_path());
            health.is_ok_and(|answer| answer.status == 200).then_some(())
        };
        program
            .wait_for("it listens", Duration::from_secs(60), is_there)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
        program
    }

    /// Ends it as a crash does.
    fn kill(program: Program) {
        let pid = program.pid().unwrap().to_string();
        assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
        drop(program);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn contacts(&self) -> Vec<Value> {
        let ledger = Request::new("GET", "/ledger").send(self.directory.path().join("admin.sock").as_path()).json();
        ledger["contacts"].as_array().unwrap().clone()
    }

    /// When the store was last written.
    fn written(&self) -> SystemTime {
        self.directory.path().join("store.redb").metadata().unwrap().modified().unwrap()
    }
}

/// What all of them say; what is asked for somebody who is slow hangs.
fn answer(request: &RecordedRequest, keys: Option<&Vec<u8>>) -> Answer {
    let page = "<html><head><title>What is far away</title></head><body>Far away</body></html>";
    let (host, target) = (request.header("host").unwrap_or_default(), request.target_text());
    Answer::Bytes(match target.split('?').next().unwrap_or_default() {
        _ if target.contains("slow") => return Answer::Hang,
        "/_matrix/key/v2/server" => keys.cloned().unwrap_or_default(),
        "/_matrix/federation/v1/query/profile" => json_response(200, &json!({"displayname": "Bob afar"})),
        "/.well-known/openid-configuration" => json_response(
            200,
            &json!({
                "issuer": format!("https://{host}/"), "authorization_endpoint": format!("https://{host}/authorize"),
                "token_endpoint": format!("https://{host}/token"), "jwks_uri": format!("https://{host}/jwks"),
                "response_types_supported": ["code"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
            }),
        ),
        "/jwks" => json_response(200, &json!({"keys": []})),
        "/_matrix/identity/v2/3pid/bind" => {
            json_response(200, &json!({"medium": "email", "address": "alice@example.org"}))
        }
        "/page" | "/other" | "/third" => response(200, &[("Content-Type", "text/html; charset=utf-8")], page),
        _ => json_response(200, &json!({})),
    })
}

#[test]
fn what_waits_for_a_proxy_that_is_gone_leaves_when_it_is_back_and_a_killed_one_forgets_nobody() {
    let (dns, authority, directory) = (Dns::start(), Authority::new().unwrap(), tempfile::tempdir().unwrap());
    let keys = Arc::new(OnceLock::<Vec<u8>>::new());
    let here = Arc::clone(&keys);
    let backend = Backend::start(move |request| answer(request, here.get())).unwrap();
    let names = [&NAMES[..], &["127.0.1.1"]].concat();
    let front = TlsFront::start(&authority, &names, "127.0.1.1:0".parse().unwrap(), backend.addr());
    let (port, plain) = (front.addr().port(), backend.addr().port());
    NAMES.iter().for_each(|name| dns.address(name, "127.0.1.1"));
    dns.address("bridge.test", "127.0.0.1");
    let stranger = Stranger::new(&front.addr().to_string());
    keys.set(stranger.keys()).unwrap();
    let site = Site::new(&authority, &dns, [port, plain]);
    let [web, federation, notary] = &site.doors;
    let bridge = directory.path().join("bridge.yaml");
    let registration = json!({
        "id": "bridge", "url": format!("http://bridge.test:{plain}"), "as_token": "as", "hs_token": "hs",
        "sender_localpart": "bridge", "namespaces": {"users": [{"exclusive": false, "regex": "@.*"}]},
    });
    std::fs::write(&bridge, registration.to_string()).unwrap();
    let proxy = format!("http://{web}");
    let synapse = Synapse::start(Options {
        roots: Some(authority.write(directory.path()).unwrap()),
        extra_yaml: json!({
            "https_proxy": proxy, "http_proxy": proxy, "app_service_config_files": [bridge],
            "instance_map": {"mantlet": {"host": "127.0.0.1", "port": federation.rsplit(':').next().unwrap().parse::<u16>().unwrap()}},
            "outbound_federation_restricted_to": ["mantlet"],
            "worker_replication_secret_path": site.directory.path().join("secret"),
            "trusted_key_servers": [{"server_name": "matrix.org"}],
            "oidc_providers": [{
                "idp_id": "sso", "idp_name": "sso", "issuer": format!("https://sso.test:{port}/"), "client_id": "mantlet",
                "client_secret": "secret", "scopes": ["openid"],
                "user_mapping_provider": {"config": {"localpart_template": "{{ user.sub }}"}},
            }],
            "url_preview_enabled": true, "url_preview_ip_range_blacklist": ["192.0.2.1"],
        })
        .to_string(),
        ..Options::default()
    });
    // It starts without any of them.
    let synapse = synapse.unwrap();
    let user = |name: &str| synapse.register(name, "a password", Role::User).unwrap();
    let (alice, bob) = (user("alice"), user("bob"));
    let ask = |session: &Session, method: &str, target: &str, body: Option<&Value>| -> Response {
        let began = Instant::now();
        let mut request = Request::new(method, target).bearer(&session.access_token).timeout(Duration::from_secs(60));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send(synapse.addr());
        println!("{method} {target}: {} after {:.1?}", answer.status, began.elapsed());
        answer
    };
    let preview = |page: &str| {
        let target = format!("/_matrix/client/v1/media/preview_url?url=https%3A%2F%2Fpreview.test%3A{port}%2F{page}");
        let answer = ask(&alice, "GET", &target, None);
        (answer.status, answer.json()["og:title"].as_str().map(str::to_owned))
    };
    let shown = (200, Some("What is far away".to_owned()));
    let bind = json!({"client_secret": "s3cret", "sid": "7", "id_server": format!("ident.test:{port}"), "id_access_token": "token"});
    let bind = || ask(&alice, "POST", "/_matrix/client/v3/account/3pid/bind", Some(&bind)).status;
    let sign_on = || {
        let target = "/_matrix/client/v3/login/sso/redirect/oidc-sso?redirectUrl=http%3A%2F%2Fclient.test%2F";
        let answer = ask(&alice, "GET", target, None);
        (
            answer.status,
            answer.header("location").is_some_and(|to| to.starts_with(&format!("https://sso.test:{port}/authorize?"))),
        )
    };
    let far = |name: &str| format!("/_matrix/client/v3/profile/@{name}:there.test:{port}");
    let own = || {
        assert_eq!(ask(&alice, "GET", &format!("/_matrix/client/v3/profile/{}", bob.user_id), None).status, 200);
    };

    // Nobody is there: users are served, and what cannot be asked fails at once.
    let pusher = json!({
        "kind": "http", "app_id": "test", "app_display_name": "test", "device_display_name": "test", "lang": "en",
        "pushkey": "key", "data": {"url": format!("https://push.test:{port}/_matrix/push/v1/notify")},
    });
    assert_eq!(ask(&alice, "POST", "/_matrix/client/v3/pushers/set", Some(&pusher)).status, 200);
    let room = json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [bob.user_id]});
    let room = ask(&alice, "POST", "/_matrix/client/v3/createRoom", Some(&room)).json()["room_id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(ask(&bob, "POST", &format!("/_matrix/client/v3/join/{room}"), Some(&json!({}))).status, 200);
    let say = |word: &str| {
        let target = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{word}");
        let said = json!({"msgtype": "m.text", "body": format!("{word} {}", alice.user_id)});
        assert_eq!(ask(&bob, "PUT", &target, Some(&said)).status, 200);
    };
    let told = |path: &str, word: &str| {
        let is = |request: &RecordedRequest| {
            request.target_text().starts_with(path) && String::from_utf8_lossy(&request.body).contains(word)
        };
        let told = backend.wait_request(Duration::from_secs(120), is);
        told.unwrap_or_else(|error| panic!("{path} {word}: {error}\n{}\n{}", site.log(), synapse.log_tail()));
    };
    say("early");
    assert_eq!((preview("page").0, bind(), sign_on()), (500, 500, (503, false)));
    assert_eq!(ask(&alice, "GET", &far("bob"), None).status, 502);
    own();
    assert!(backend.requests().is_empty());

    // It comes: what waited leaves, and what is asked anew is answered. A link that could not be shown is kept for an hour.
    let program = site.start();
    assert_eq!(stranger.asks(&synapse), 404);
    told("/_matrix/push/v1/notify", "early");
    told("/_matrix/app/v1/transactions/", "early");
    assert_eq!((preview("page").0, preview("other")), (500, shown));
    assert_eq!((bind(), sign_on()), (200, (302, true)));
    assert_eq!(ask(&alice, "GET", &far("bob"), None).status, 200);
    let keys_asked =
        || backend.requests().iter().filter(|request| request.target_text().starts_with("/_matrix/key/")).count();
    assert_eq!(keys_asked(), 1);
    let known = |contacts: &[Value], to: &str, cause: &str| {
        contacts.iter().any(|contact| contact["destination"] == to && contact["cause"] == cause)
    };
    let wanted = [
        (format!("there.test:{port}"), "federation"),
        (front.addr().to_string(), "keys"),
        ("matrix.org".to_owned(), "keys"),
    ];
    let has_all = |contacts: &[Value]| wanted.iter().all(|(to, cause)| known(contacts, to, cause));
    contacts_with(|| site.contacts(), has_all);
    // The ledger is written down some seconds behind: what is written now may have been gathered before that, what is written then
    // has all of it.
    for _ in 0..2 {
        let (before, deadline) = (site.written(), Instant::now() + Duration::from_secs(60));
        assert_eq!(ask(&alice, "GET", &far("bob"), None).status, 200);
        while site.written() == before {
            assert!(Instant::now() < deadline, "{}", site.log());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    // It is killed while it serves.
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| ask(&bob, "GET", &far("slow"), None).status);
        backend.wait_request(Duration::from_secs(60), |request| request.target_text().contains("slow")).unwrap();
        Site::kill(program);
        assert_eq!(slow.join().unwrap(), 502);
    });
    say("meanwhile");
    assert_eq!(preview("third").0, 500);
    assert_eq!(ask(&alice, "GET", &far("bob"), None).status, 502);
    own();

    // The next one has its store, and knows whom it knew.
    let program = site.start();
    contacts_with(|| site.contacts(), has_all);
    assert!(!site.log().contains("the store cannot be used"), "{}", site.log());
    let question = json!({"server_keys": {front.addr().to_string(): {}}});
    let question = Request::new("POST", "/_matrix/key/v2/query").header("Host", "keys.test:1").json(&question);
    let answer = question.send(notary.parse::<std::net::SocketAddr>().unwrap());
    assert_eq!(answer.json()["server_keys"][0]["server_name"], front.addr().to_string(), "{}", answer.text());
    assert_eq!(keys_asked(), 1, "its keys are asked for again");
    told("/_matrix/push/v1/notify", "meanwhile");
    told("/_matrix/app/v1/transactions/", "meanwhile");
    assert_eq!(ask(&alice, "GET", &far("bob"), None).status, 200);
    assert!(program.end(Duration::from_secs(60)).unwrap().success(), "{}", site.log());
}
