//! One with a proxy door and a way in: it notifies push gateways, one that is looked into and one that is not, shows pages, and
//! would unbind at identity servers.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use mantlet::tls::ca;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Request, Response, json_response, response};
use mantlet_testkit::recorder::RecordedRequest;
use mantlet_testkit::synapse::{Options, Role, Session, Synapse, free_port};
use serde_json::{Value, json};

use crate::contacts_with;
use crate::support::Gateway;
use crate::support::outside::{Dns, TlsFront};

/// A Synapse whose proxy is a door of ours, and whom it may ask: `push.test`, `page.test` and `is.test`, which are looked into, and
/// `tunnel.test`, `is1.test` and `is2.test`, which are not; `clear.test` is asked in the clear.
struct Web {
    gateway: Mutex<Gateway>,
    backend: Backend,
    front: TlsFront,
    synapse: Synapse,
    _dns: Dns,
    _directory: tempfile::TempDir,
}

fn web() -> &'static Web {
    static WEB: OnceLock<Web> = OnceLock::new();
    WEB.get_or_init(|| {
        let (dns, outside, directory) = (Dns::start(), Authority::new().unwrap(), tempfile::tempdir().unwrap());
        let backend = Backend::start(|request| Answer::Bytes(answer(request))).unwrap();
        let names = ["push.test", "tunnel.test", "is.test", "is1.test", "is2.test", "is3.test", "captcha.test", "page.test"];
        let front = TlsFront::start(&outside, &names, "127.0.1.1:0".parse().unwrap(), backend.addr());
        names.iter().for_each(|name| dns.address(name, "127.0.1.1"));
        dns.address("clear.test", "127.0.0.1");
        let of_the_policy = ["matrix.org", "matrix-federation.matrix.org", "vector.im"];
        let looked_into = [&["push.test", "is.test", "captcha.test", "page.test"][..], &of_the_policy].concat();
        let ours = ca::make(&looked_into.iter().map(|name| (*name).to_owned()).collect()).unwrap();
        let files = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(files.path().join(name), text).unwrap();
        write("our.crt", &ours.certificate);
        write("our.key", &ours.key);
        std::fs::set_permissions(files.path().join("our.key"), PermissionsExt::from_mode(0o600)).unwrap();
        outside.write(files.path()).unwrap();
        let bundle = directory.path().join("bundle.pem");
        std::fs::write(&bundle, format!("{}{}", outside.pem(), ours.certificate)).unwrap();
        let intercept = |host: &&str| format!("[[egress.destination]]\nhost = \"{host}\"\naction = \"intercept\"\n");
        let tunnel = "[[egress.destination]]\nhost = \"tunnel.test\"\naction = \"tunnel\"\ncause = \"push\"\n";
        let neutral = "[rules.url_previews]\npreviews = \"neutral\"\n";
        let intercepted: String = looked_into.iter().map(intercept).collect();
        write("policy.toml", &format!("extends = \"balanced\"\n{neutral}{intercepted}{tunnel}"));
        // Each has to be told of the other before it starts.
        let proxy = format!("127.0.0.1:{}", free_port().unwrap());
        let url = format!("http://{proxy}");
        let synapse = Synapse::start(Options {
            roots: Some(bundle),
            extra_yaml: json!({
                "https_proxy": url, "http_proxy": url,
                "url_preview_enabled": true, "url_preview_ip_range_blacklist": ["192.0.2.1"],
                "enable_registration_captcha": true, "recaptcha_public_key": "public", "recaptcha_private_key": "private",
                "recaptcha_siteverify_api": format!("https://captcha.test:{}/recaptcha/api/siteverify", front.addr().port()),
            })
            .to_string(),
            ..Options::default()
        });
        let synapse = synapse.unwrap();
        let text = format!(
            "[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"{proxy}\"\nports = [{}, {}]\nextra_roots = [\"ca.crt\"]\n\
             [[listener]]\nname = \"clients\"\ndoor = \"ingress\"\nbind = \"127.0.0.1:0\"\n\
             [policy]\nfile = \"policy.toml\"\n[upstream.synapse]\nservers = [\"{}\"]\n\
             [admin]\nbind = \"127.0.0.1:0\"\n[egress]\nnameservers = [\"{}\"]\n[egress.ca]\ncertificate = \"our.crt\"\nkey = \"our.key\"\n\
             [egress.addresses]\nallow = [\"127.0.1.0/24\", \"clear.test\"]\n",
            front.addr().port(),
            backend.addr().port(),
            synapse.base_url(),
            dns.addr()
        );
        let gateway = Gateway::load(files, &text, |_| {});
        Web { gateway: Mutex::new(gateway), backend, front, synapse, _dns: dns, _directory: directory }
    })
}

/// What they all say.
fn answer(request: &RecordedRequest) -> Vec<u8> {
    let page =
        "<html><head><title>What is far away</title><meta property=\"og:image\" content=\"/picture\"></head></html>";
    match request.target_text().as_str() {
        "/page" => response(200, &[("Content-Type", "text/html; charset=utf-8")], page),
        "/elsewhere" => response(302, &[("Location", "/page")], ""),
        "/picture" => response(200, &[("Content-Type", "image/png")], PICTURE),
        _ => json_response(200, &json!({"rejected": [], "success": true})),
    }
}

/// One pixel.
const PICTURE: &[u8] =
    b"\x89\x50\x4e\x47\x0d\x0a\x1a\x0a\x00\x00\x00\x0d\x49\x48\x44\x52\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\
      \x00\x3a\x7e\x9b\x55\x00\x00\x00\x0a\x49\x44\x41\x54\x78\x9c\x63\xf8\x0f\x00\x01\x01\x01\x00\xb1\x38\xf6\x14\x00\
      \x00\x00\x00\x49\x45\x4e\x44\xae\x42\x60\x82";

impl Web {
    fn gateway(&self) -> MutexGuard<'_, Gateway> {
        self.gateway.lock().unwrap()
    }

    fn port(&self) -> u16 {
        self.front.addr().port()
    }

    /// What a user gets through the way in.
    fn through(&self, session: &Session, method: &str, target: &str, body: &str) -> Response {
        let clients = self.gateway().addr_of("clients");
        Request::new(method, target).bearer(&session.access_token).body(body).send(clients)
    }

    /// A user with an address, which two identity servers were told of.
    fn bound(&self, name: &str) -> Session {
        let admin = self.synapse.register(&format!("{name}-admin"), "a password", Role::Admin).unwrap();
        let user = self.synapse.register(name, "a password", Role::User).unwrap();
        let address = format!("{name}@example.org");
        let threepids = json!({"threepids": [{"medium": "email", "address": address}]});
        let target = format!("/_synapse/admin/v2/users/{}", user.user_id);
        self.synapse.call(Some(&admin), "PUT", &target, Some(&threepids)).unwrap();
        for server in ["is1.test", "is2.test"] {
            let row = json!([user.user_id, "email", address, format!("{server}:{}", self.port())]);
            self.synapse.sql("INSERT INTO user_threepid_id_server VALUES (?, ?, ?, ?)", &row).unwrap();
        }
        user
    }

    /// How many addresses a user has, and how many identity servers are remembered to know of them.
    fn remembered(&self, user: &Session) -> (Value, Value) {
        let count = |table: &str| {
            let statement = format!("SELECT count(*) FROM {table} WHERE user_id = ?");
            self.synapse.sql(&statement, &json!([user.user_id])).unwrap()[0][0].clone()
        };
        (count("user_threepids"), count("user_threepid_id_server"))
    }

    /// Which of the two identity servers were asked anything.
    fn identity_servers_asked(&self) -> usize {
        let names = self.front.names();
        ["is1.test", "is2.test"].iter().filter(|server| names.iter().any(|name| name == *server)).count()
    }

    /// A pusher at this push gateway, for `pushers/set`.
    fn pusher(&self, gateway: &str, key: &str) -> Value {
        let url = format!("https://{gateway}:{}/_matrix/push/v1/notify", self.port());
        json!({
            "kind": "http", "app_id": "test", "app_display_name": "test", "device_display_name": "test", "lang": "en",
            "pushkey": key, "data": {"url": url},
        })
    }

    /// Waits until the ledger has this host with this cause and verdict.
    #[track_caller]
    fn assert_noted(&self, host: &str, cause: &str, verdict: &str) {
        let to = format!("{host}:{}", self.port());
        let is = |contact: &Value| {
            ["destination", "cause", "verdict", "door"].map(|key| &contact[key])
                == [to.as_str(), cause, verdict, "proxy"]
        };
        contacts_with(|| self.gateway().contacts(), |contacts| contacts.iter().any(is));
    }

    /// The first request that a host was asked with this in its body.
    fn asked(&self, host: &str, body: &str) -> RecordedRequest {
        let host = format!("{host}:{}", self.port());
        let is = |request: &RecordedRequest| {
            request.header("host") == Some(&host) && String::from_utf8_lossy(&request.body).contains(body)
        };
        self.backend.wait_request(Duration::from_secs(60), is).unwrap_or_else(|error| {
            panic!("{host} was not asked: {error}\n{}\n{}", self.gateway().written(), self.synapse.log_tail())
        })
    }
}

#[test]
fn push_gateways_are_told_through_the_proxy_door_and_no_version_where_it_is_looked_into() {
    let web = web();
    let user = |name: &str| web.synapse.register(name, "a password", Role::User).unwrap();
    let (alice, bob, open) = (user("alice"), user("bob"), user("open"));
    let set = "/_matrix/client/v3/pushers/set";
    // One was set before there was a rule, one through us, and one that nothing protects.
    web.synapse.call(Some(&alice), "POST", set, Some(&web.pusher("push.test", "before"))).unwrap();
    assert_eq!(web.through(&bob, "POST", set, &web.pusher("tunnel.test", "through-us").to_string()).status, 200);
    web.synapse.call(Some(&open), "POST", set, Some(&web.pusher("tunnel.test", "open"))).unwrap();
    let call = |session: &Session, method: &str, target: &str, body| {
        web.synapse.call(Some(session), method, target, Some(&body)).unwrap()
    };
    let room = json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [bob.user_id, open.user_id]});
    let room = call(&alice, "POST", "/_matrix/client/v3/createRoom", room)["room_id"].as_str().unwrap().to_owned();
    for session in [&bob, &open] {
        call(session, "POST", &format!("/_matrix/client/v3/join/{room}"), json!({}));
    }
    for session in [&alice, &bob] {
        let target = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/1");
        // Whoever is named is notified, in whatever room.
        let text = format!("hello {} {} {}", alice.user_id, bob.user_id, open.user_id);
        call(session, "PUT", &target, json!({"msgtype": "m.text", "body": text}));
    }
    let inside = web.asked("push.test", "\"$");
    assert_eq!((inside.method.as_str(), inside.target_text().as_str()), ("POST", "/_matrix/push/v1/notify"));
    assert_eq!(inside.header("user-agent"), Some("Synapse"));
    // Nobody reads, or changes, what goes through a tunnel.
    let through = web.asked("tunnel.test", "through-us");
    assert!(through.header("user-agent").unwrap().starts_with("Synapse/"), "{:?}", through.headers);
    // A gateway is told of an event by its id, whether we read what it is told or only how its pusher is set.
    let keys = |request: &RecordedRequest| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let mut keys: Vec<_> = body["notification"].as_object().unwrap().keys().cloned().collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(keys(&inside), ["counts", "devices", "event_id", "prio", "room_id"]);
    let through = web.asked("tunnel.test", "through-us\",\"pushkey_ts");
    assert!(!String::from_utf8_lossy(&through.body).contains("hello"), "{:?}", String::from_utf8_lossy(&through.body));
    let open = web.asked("tunnel.test", "hello");
    assert!(keys(&open).contains(&"sender".to_owned()) && String::from_utf8_lossy(&open.body).contains("\"open\""));
    assert!(web.backend.requests().iter().all(|request| {
        let body = String::from_utf8_lossy(&request.body);
        !body.contains("hello") || body.contains("\"open\"")
    }));
    let names = web.front.names();
    assert!(names.contains(&"push.test".to_owned()) && names.contains(&"tunnel.test".to_owned()), "{names:?}");
    web.assert_noted("push.test", "push", "passed");
    web.assert_noted("tunnel.test", "push", "tunnelled");
    let written = web.gateway().written();
    assert!(!written.contains("push.test") && !written.contains("tunnel.test"), "{written}");
}

#[test]
fn an_identity_server_that_is_looked_into_hears_nothing_of_an_address_that_is_removed() {
    let web = web();
    let admin = web.synapse.register("admin", "a password", Role::Admin).unwrap();
    let carol = web.synapse.register("carol", "a password", Role::User).unwrap();
    let bound = json!({"threepids": [{"medium": "email", "address": "carol@example.org"}]});
    let user = format!("/_synapse/admin/v2/users/{}", carol.user_id);
    web.synapse.call(Some(&admin), "PUT", &user, Some(&bound)).unwrap();
    let removed = json!({
        "medium": "email", "address": "carol@example.org", "id_server": format!("is.test:{}", web.port()),
    });
    let target = "/_matrix/client/v3/account/3pid/delete";
    let answer = web.synapse.call(Some(&carol), "POST", target, Some(&removed)).unwrap();
    assert_eq!(answer["id_server_unbind_result"], "no-support", "{answer}\n{}", web.synapse.log_tail());
    let left = web.synapse.call(Some(&carol), "GET", "/_matrix/client/v3/account/3pid", None).unwrap();
    assert_eq!(left["threepids"], json!([]));
    let records = web.gateway().records_with(|record| record["rule"] == "threepid_unbind");
    assert!(records.iter().any(|record| record["decision"] == "answer" && record["status"] == 404));
    assert!(!web.front.names().contains(&"is.test".to_owned()));
    web.assert_noted("is.test", "identity", "answered");
    let told = "mantlet_privacy_events_total{flow=\"egress\",rule=\"threepid_unbind\"}";
    assert!(web.gateway().metric(told) >= 1.0);
}

#[test]
fn a_page_that_is_looked_into_or_in_the_clear_does_not_see_that_a_matrix_server_reads_it() {
    let web = web();
    let reader = web.synapse.register("reader", "a password", Role::User).unwrap();
    let (port, plain) = (web.port(), web.backend.addr().port());
    let fetched = |scheme: &str, host: &str, port: u16, first: &str| {
        let url = format!("{scheme}%3A%2F%2F{host}%3A{port}%2F{first}");
        let target = format!("/_matrix/client/v1/media/preview_url?url={url}");
        let shown = web.through(&reader, "GET", &target, "").json();
        assert_eq!(shown["og:title"], "What is far away", "{shown}\n{}", web.synapse.log_tail());
        assert!(shown["og:image"].as_str().is_some_and(|image| image.starts_with("mxc://")), "{shown}");
        let host = format!("{host}:{port}");
        ["/page", "/picture"].map(|path| {
            let is = |request: &RecordedRequest| request.header("host") == Some(&host) && request.target_text() == path;
            let request = web.backend.wait_request(Duration::from_secs(60), is).unwrap();
            request.headers.iter().map(|(name, value)| format!("{name}: {value}").to_lowercase()).collect::<Vec<_>>()
        })
    };
    for fields in
        [fetched("https", "page.test", port, "elsewhere"), fetched("http", "clear.test", plain, "page")].concat()
    {
        assert!(fields.contains(&"user-agent: mozilla/5.0 (compatible)".to_owned()), "{fields:#?}");
        let tells = |field: &&String| ["synapse", "matrix", "accept-language"].iter().any(|word| field.contains(word));
        assert_eq!(fields.iter().find(tells), None);
    }
    // Nobody reads, or changes, what goes through a tunnel.
    for fields in fetched("https", "tunnel.test", port, "page") {
        let says = |what: &str| fields.iter().any(|field| field.starts_with(what));
        assert!(says("user-agent: synapse (bot;") && says("accept-language: en"), "{fields:#?}");
    }
    web.assert_noted("page.test", "preview", "passed");
}

#[test]
fn no_identity_server_hears_of_an_address_that_is_removed_nor_of_an_account_that_is_deactivated() {
    let web = web();
    let (delete, deactivate) = ("/_matrix/client/v3/account/3pid/delete", "/_matrix/client/r0/account/deactivate");
    let removed = |user: &str| format!("{{\"medium\":\"email\",\"address\":\"{user}@example.org\"}}");
    let dave = web.bound("dave");
    assert_eq!(web.remembered(&dave), (json!(1), json!(2)));
    let answer = web.through(&dave, "POST", delete, &removed("dave"));
    assert_eq!((answer.status, answer.text().as_str()), (200, "{\"id_server_unbind_result\":\"no-support\"}"));
    assert_eq!(web.remembered(&dave), (json!(0), json!(2)), "{}", web.synapse.log_tail());
    // A client that asks for one of them is not heard either, however it spells that.
    let erin = web.bound("erin");
    let named = format!("\"id\\u005fserver\":\"is1.test:{}\"", web.port());
    let first = web.through(&erin, "POST", deactivate, &format!("{{{named}}}"));
    let session = first.json()["session"].as_str().unwrap().to_owned();
    let auth = json!({
        "type": "m.login.password", "session": session, "password": "a password",
        "identifier": {"type": "m.id.user", "user": "erin"},
    });
    let last = web.through(&erin, "POST", deactivate, &format!("{{\"auth\":{auth},\"erase\":true,{named}}}"));
    let said = (last.status, last.text());
    let wanted = (200, "{\"id_server_unbind_result\":\"no-support\"}".to_owned());
    assert_eq!(said, wanted, "{}\n{}", web.gateway().written(), web.synapse.log_tail());
    assert_eq!(web.remembered(&erin).0, json!(0));
    let gone = "SELECT deactivated FROM users WHERE name = ?";
    assert_eq!(web.synapse.sql(gone, &json!([erin.user_id])).unwrap(), json!([[1]]));
    assert_eq!(web.identity_servers_asked(), 0, "{:?}", web.front.names());
    let records = web.gateway().records_with(|record| record["endpoint"] == "identity_unbind");
    let answered =
        records.iter().filter(|record| record["endpoint"] == "identity_unbind" && record["flow"] == "egress");
    assert!(answered.clone().count() >= 2 && answered.clone().all(|record| record["rule"] == "threepid_unbind"));
    // What Synapse refuses is refused with its words, and what only Synapse reads is refused, too.
    for (body, errcode, is_synapses) in [
        ("", "M_NOT_JSON", true),
        ("[]", "M_BAD_JSON", true),
        ("{", "M_NOT_JSON", true),
        ("{\"a\":\"\\ud800\"}", "M_NOT_JSON", false),
    ] {
        let through = web.through(&dave, "POST", delete, body);
        assert_eq!((through.status, through.errcode().as_deref()), (400, Some(errcode)), "{body}");
        let direct = Request::new("POST", delete).bearer(&dave.access_token).body(body).send(web.synapse.addr());
        assert_eq!(direct.text() == through.text(), is_synapses, "{body}: {} and {}", direct.text(), through.text());
    }
    // Without us both of them hear of it.
    let frank = web.bound("frank");
    let direct = Request::new("POST", delete).bearer(&frank.access_token).body(removed("frank"));
    assert_eq!(direct.send(web.synapse.addr()).json()["id_server_unbind_result"], "success");
    assert_eq!((web.identity_servers_asked(), web.remembered(&frank)), (2, (json!(0), json!(0))));
}

#[test]
fn no_identity_server_is_told_of_an_address_or_asked_for_one_unless_it_is_listed() {
    let web = web();
    let grace = web.synapse.register("grace", "a password", Role::User).unwrap();
    let room = web.synapse.create_public_room(&grace, "Room", "of-grace").unwrap();
    let named = |server: &str| {
        json!({
            "id_server": format!("{server}:{}", web.port()), "id_access_token": "token", "medium": "email",
            "address": "heidi@example.org", "sid": "1", "client_secret": "secret",
        })
    };
    let bind = "/_matrix/client/v3/account/3pid/bind";
    let invite = format!("/_matrix/client/v3/rooms/{room}/invite");
    let create = "/_matrix/client/v3/createRoom";
    for (target, body) in
        [(bind, named("is3.test")), (&invite, named("is3.test")), (create, json!({"invite_3pid": [named("is3.test")]}))]
    {
        let refused = web.through(&grace, "POST", target, &body.to_string());
        assert_eq!((refused.status, refused.errcode().as_deref()), (403, Some("M_SERVER_NOT_TRUSTED")), "{target}");
    }
    let knows = |server: &str| web.front.names().iter().any(|name| name == server);
    assert!(!knows("is3.test"));
    // Users are invited, and rooms are made, as ever.
    let made = web.through(&grace, "POST", create, "{\"name\":\"x\"}");
    assert_eq!(made.status, 200, "{}", made.text());
    let heidi = web.synapse.register("heidi", "a password", Role::User).unwrap();
    let invited = web.through(&grace, "POST", &invite, &json!({"user_id": heidi.user_id}).to_string());
    assert_eq!(invited.status, 200, "{}", invited.text());
    // Where Synapse is led to one past the way in, one that is looked into hears nothing.
    for (target, path) in [(bind, "/3pid/bind"), (&invite, "/hash_details")] {
        let direct = Request::new("POST", target).bearer(&grace.access_token).json(&named("is.test"));
        let refused = direct.send(web.synapse.addr());
        assert!(refused.status >= 400, "{} {}", refused.status, refused.text());
        assert!(!web.backend.requests().iter().any(|request| {
            request.header("host").is_some_and(|host| host.starts_with("is.test"))
                && request.target_text().contains(path)
        }));
    }
    let records =
        web.gateway().records_with(|record| record["rule"] == "identity_servers" && record["flow"] == "egress");
    assert!(
        records.iter().any(|record| record["endpoint"] == "identity_bind" && record["status"] == 403),
        "{records:#?}"
    );
    // Without us it is told; what it answers, Synapse does not like.
    Request::new("POST", bind).bearer(&grace.access_token).json(&named("is3.test")).send(web.synapse.addr());
    assert!(knows("is3.test"));
    assert!(web.asked("is3.test", "client_secret").target_text().ends_with("/3pid/bind"));
}

#[test]
fn the_maker_of_a_captcha_does_not_learn_at_which_address_its_user_is() {
    let web = web();
    let register = |auth: Value| {
        let body = json!({"username": "ivan", "password": "a password", "auth": auth});
        Request::new("POST", "/_matrix/client/v3/register").json(&body).send(web.gateway().addr_of("clients"))
    };
    let first = register(json!({}));
    assert_eq!(
        (first.status, &first.json()["flows"][0]["stages"][0]),
        (401, &json!("m.login.recaptcha")),
        "{}",
        first.text()
    );
    let auth = json!({"type": "m.login.recaptcha", "session": first.json()["session"], "response": "solved"});
    let done = register(auth);
    assert_eq!(done.json()["completed"], json!(["m.login.recaptcha"]), "{}\n{}", done.text(), web.synapse.log_tail());
    let asked = web.asked("captcha.test", "solved");
    assert_eq!(asked.target_text(), "/recaptcha/api/siteverify");
    assert_eq!(String::from_utf8(asked.body).unwrap(), "secret=private&response=solved");
}
