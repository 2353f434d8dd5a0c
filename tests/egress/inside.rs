//! One whose users, and strangers, name hosts that lead within: to this machine, to private networks, to where clouds keep secrets.
//! It asks for all of them, and at the doors it ends.
//!
//! Canaries sit on this machine, at the very port that is asked for; other servers are at 127.0.1.1, which is allowed.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use mantlet::config::egress::Ports;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Request, Response, json_response, response};
use mantlet_testkit::recorder::RecordedRequest;
use mantlet_testkit::synapse::{Options, Role, Session, Synapse};
use serde_json::{Value, json};

use crate::contacts_with;
use crate::notary::Stranger;
use crate::support::Gateway;
use crate::support::outside::{Dns, TlsFront};

struct World {
    gateway: Gateway,
    canaries: Vec<TcpListener>,
    front: TlsFront,
    backend: Backend,
    synapse: Synapse,
    _dns: Dns,
    _directory: tempfile::TempDir,
}

impl World {
    fn start() -> World {
        let (dns, authority, directory) = (Dns::start(), Authority::new().unwrap(), tempfile::tempdir().unwrap());
        let backend = Backend::start(|request| Answer::Bytes(answer(request))).unwrap();
        let names = ["there.test", "told.test", "page.test", "127.0.0.1"];
        // One port that is free everywhere.
        let (front, canaries) = std::iter::repeat_with(|| {
            let front = TlsFront::try_start(&authority, &names, "127.0.1.1:0".parse().unwrap(), backend.addr()).ok()?;
            let canary = |address: &str| {
                let canary = TcpListener::bind(SocketAddr::new(address.parse().unwrap(), front.addr().port())).ok()?;
                canary.set_nonblocking(true).ok().map(|()| canary)
            };
            let canaries = ["127.0.0.1", "::1"].map(canary).into_iter().collect::<Option<Vec<_>>>()?;
            Some((front, canaries))
        })
        .take(100)
        .find_map(|found| found)
        .expect("a port that is free everywhere, and ::1");
        let port = front.addr().port();
        names[..3].iter().for_each(|name| dns.address(name, "127.0.1.1"));
        for (name, address) in [("loop.test", "127.0.0.1"), ("loop6.test", "::1"), ("lan.test", "10.1.2.3")] {
            dns.address(name, address);
        }
        dns.address("cloud.test", "169.254.169.254");
        dns.alias("alias.test", "loop.test");
        dns.service("_matrix-fed._tcp.service.test", 10, "loop.test", port);
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "a-secret-of-the-hook\n").unwrap();
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let roots = authority.write(dir.path()).unwrap();
        std::fs::write(dir.path().join("policy.toml"), "extends = \"balanced\"\n").unwrap();
        let text = format!(
            "[[listener]]\nname = \"out\"\ndoor = \"federation\"\nbind = \"127.0.0.1:0\"\nsecret_file = {secret:?}\n\
             extra_roots = [\"ca.crt\"]\n\
             [[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\nports = [{port}]\nextra_roots = [\"ca.crt\"]\n\
             [policy]\nfile = \"policy.toml\"\n[upstream.synapse]\nservers = [\"http://127.0.0.1:9\"]\n\
             [admin]\nbind = \"127.0.0.1:0\"\n[egress]\nnameservers = [\"{}\"]\n[egress.addresses]\nallow = [\"127.0.1.0/24\"]\n",
            dns.addr()
        );
        let gateway = Gateway::load(dir, &text, |config| config.egress.ports = Ports { https: port, federation: port });
        let (proxy, hook) = (format!("http://{}", gateway.addr_of("web")), gateway.addr_of("out"));
        // Synapse's own lists of addresses are empty here: what holds is ours.
        let synapse = Synapse::start(Options {
            roots: Some(roots),
            extra_yaml: json!({
                "https_proxy": proxy, "http_proxy": proxy,
                "instance_map": {"mantlet": {"host": "127.0.0.1", "port": hook.port()}},
                "outbound_federation_restricted_to": ["mantlet"],
                "worker_replication_secret_path": secret,
                "trusted_key_servers": [{"server_name": "matrix.org"}],
                "url_preview_enabled": true, "url_preview_ip_range_blacklist": ["192.0.2.1"],
            })
            .to_string(),
            ..Options::default()
        });
        let synapse = synapse.unwrap();
        World { gateway, canaries, front, backend, synapse, _dns: dns, _directory: directory }
    }

    fn port(&self) -> u16 {
        self.front.addr().port()
    }

    fn user(&self, name: &str) -> Session {
        self.synapse.register(name, "a password", Role::User).unwrap()
    }

    fn ask(&self, session: &Session, method: &str, target: &str, body: Option<&Value>) -> Response {
        let mut request = Request::new(method, target).bearer(&session.access_token).timeout(Duration::from_secs(60));
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send(self.synapse.addr())
    }

    /// How many connections the canaries had.
    fn reached(&self) -> usize {
        self.canaries.iter().map(|canary| std::iter::from_fn(|| canary.accept().ok()).count()).sum()
    }

    /// Waits until the ledger has these as asked for in vain, with this cause.
    #[track_caller]
    fn assert_failed(&self, door: &str, cause: &str, hosts: &[String]) {
        let is = |contact: &Value, to: &String| {
            ["destination", "cause", "verdict", "door"].map(|key| &contact[key]) == [to, cause, "failed", door]
        };
        let has_all = |contacts: &[Value]| hosts.iter().all(|to| contacts.iter().any(|contact| is(contact, to)));
        contacts_with(|| self.gateway.contacts(), has_all);
    }
}

/// What is said at 127.0.1.1: each time, that it is elsewhere.
fn answer(request: &RecordedRequest) -> Vec<u8> {
    let host = request.header("host").unwrap_or_default();
    let port = host.rsplit_once(':').map_or("443", |(_, port)| port);
    let target = request.target_text();
    match target.split('?').next().unwrap_or_default() {
        "/.well-known/matrix/server" => {
            // Its port is in the `Host` that a web site is asked by, where that is not 443.
            json_response(200, &json!({"m.server": format!("loop.test:{port}")}))
        }
        "/elsewhere" => response(302, &[("Location", &format!("https://loop.test:{port}/page"))], ""),
        "/clear" => response(302, &[("Location", &format!("http://127.0.0.1:{port}/page"))], ""),
        path if path.ends_with("/redirect") => {
            response(307, &[("Location", &format!("https://127.0.0.1:{port}/x"))], "")
        }
        path if path.ends_with("/part") || path.ends_with("/clothes") => {
            let kind = if path.ends_with("/part") { "multipart/mixed" } else { "image/png" };
            let parts = format!(
                "--b\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--b\r\nLocation: https://loop.test:{port}/x\r\n\r\n\r\n--b--\r\n"
            );
            response(200, &[("Content-Type", &format!("{kind}; boundary=b"))], parts)
        }
        _ => json_response(200, &json!({})),
    }
}

#[test]
fn whoever_leads_synapse_within_is_refused_at_the_doors_and_it_serves_its_users() {
    let world = World::start();
    let (alice, bob, port) = (world.user("alice"), world.user("bob"), world.port());
    let hosts = [
        "127.0.0.1",
        "[::1]",
        "10.1.2.3",
        "169.254.169.254",
        "loop.test",
        "loop6.test",
        "lan.test",
        "cloud.test",
        "alias.test",
    ];
    let at = hosts.map(|host| format!("{host}:{port}"));

    // Servers: by an address, by a name, by what a web site and the DNS say of them.
    let servers = [&at[..], &["told.test".to_owned(), "service.test".to_owned(), "loop.test".to_owned()]].concat();
    for server in &servers {
        let answer = world.ask(&alice, "GET", &format!("/_matrix/client/v3/profile/@bob:{server}"), None);
        assert_eq!(answer.status, 502, "{server}: {}", answer.text());
    }
    world.assert_failed("federation", "federation", &servers);
    // A stranger says that it is there.
    for server in [&at[0], &at[4]] {
        assert_eq!(Stranger::new(server).asks(&world.synapse), 401, "{server}");
    }
    world.assert_failed("federation", "keys", &[at[0].clone(), at[4].clone()]);
    // A file of a server that may be reached is elsewhere: it says so in whatever clothes, and is asked again all the same. Synapse
    // is never led there itself, which would be through the other door.
    for (named, file) in [
        ("redirect", "redirect"),
        ("part", "part"),
        ("clothes", "clothes"),
        ("deep%2Fpart", "deep/part"),
        ("abc", "abc"),
    ] {
        let target = format!("/_matrix/client/v1/media/download/there.test:{port}/{named}");
        let answer = world.ask(&alice, "GET", &target, None);
        assert_eq!(answer.status, 502, "{file}: {}", answer.text());
        let is = |request: &RecordedRequest| request.target_text().contains(&format!("/download/{file}"));
        world.backend.wait_request(Duration::from_secs(60), is).unwrap();
    }
    let contacts = world.gateway.contacts();
    assert!(!contacts.iter().any(|contact| contact["door"] == "proxy"), "{contacts:?}");
    // Pages, of which two are at an honest site that sends who asks elsewhere.
    let honest = ["elsewhere", "clear"].map(|page| format!("https://page.test:{port}/{page}"));
    let pages = at.iter().flat_map(|at| ["http", "https"].map(|scheme| format!("{scheme}://{at}/page"))).chain(honest);
    for page in pages {
        let url = page.replace(':', "%3A").replace('/', "%2F").replace('[', "%5B").replace(']', "%5D");
        let answer = world.ask(&alice, "GET", &format!("/_matrix/client/v1/media/preview_url?url={url}"), None);
        assert!([500, 502].contains(&answer.status), "{page}: {} {}", answer.status, answer.text());
    }
    for page in ["/elsewhere", "/clear"] {
        world.backend.wait_request(Duration::from_secs(60), |request| request.target_text() == page).unwrap();
    }
    // An IPv6 address is no name to Synapse, which does not ask then.
    let at: Vec<_> = at.into_iter().filter(|at| !at.starts_with('[')).collect();
    world.assert_failed("proxy", "preview", &at);
    // Push gateways.
    for (number, at) in at.iter().enumerate() {
        let pusher = json!({
            "kind": "http", "app_id": "test", "app_display_name": "test", "device_display_name": "test", "lang": "en",
            "pushkey": format!("key{number}"), "data": {"url": format!("https://{at}/_matrix/push/v1/notify")}, "append": true,
        });
        assert_eq!(world.ask(&alice, "POST", "/_matrix/client/v3/pushers/set", Some(&pusher)).status, 200);
    }
    let room = json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [alice.user_id]});
    assert_eq!(world.ask(&bob, "POST", "/_matrix/client/v3/createRoom", Some(&room)).status, 200);
    world.assert_failed("proxy", "other", &at);

    assert_eq!(world.reached(), 0);
    let records = world.gateway.records_with(|record| record["error"] == "origin_forbidden");
    assert!(records.iter().filter(|record| record["error"] == "origin_forbidden").count() >= servers.len());
    assert_eq!(world.ask(&alice, "GET", &format!("/_matrix/client/v3/profile/{}", bob.user_id), None).status, 200);
    assert!(!world.gateway.written().contains(".test"), "a name is in a record");
}
