//! The ledger of the way out: whom Synapse asked, what for, and what became of it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use mantlet::config::egress::Ports;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Request, json_response, response};
use serde_json::{Value, json};

use crate::common::{SOON, eventually, ok};
use crate::notary::{Origin, private};
use crate::process::{self, Ran};
use crate::support::Gateway;
use crate::support::outside::{self, Dns, TlsFront};

/// Both doors, and the world behind them: homeservers and web sites at one address in TLS, a bridge within in the clear.
struct World {
    dns: Dns,
    authority: Authority,
    backend: Backend,
    web: TlsFront,
    home: TlsFront,
}

const POLICY: &str = "extends = \"balanced\"\n\
    [[egress.destination]]\nhost = \"push.test\"\naction = \"tunnel\"\ncause = \"push\"\n\
    [[egress.destination]]\nhost = \"denied.test\"\naction = \"deny\"\ncause = \"identity\"\n\
    [[egress.destination]]\nhost = \"named.test\"\naction = \"tunnel\"\ncause = \"preview\"\n";

impl World {
    fn new() -> World {
        let (dns, authority) = (Dns::start(), Authority::new().unwrap());
        let (origin, cdn) = (Origin::new(), Arc::new(AtomicU16::new(0)));
        let cdn_port = Arc::clone(&cdn);
        let backend = Backend::start(move |request| {
            let host = request.header("host").unwrap_or_default();
            Answer::Bytes(match request.target_text().as_str() {
                "/.well-known/matrix/server" => response(404, &[], ""),
                "/_matrix/key/v2/server" => json_response(200, &origin.keys(host, 7200)),
                "/_matrix/federation/v1/media/download/x" => {
                    let location = format!("https://cdn.test:{}/file", cdn_port.load(Ordering::Relaxed));
                    response(307, &[("Location", &location)], "")
                }
                "/file" => response(200, &[], "0123456789"),
                _ => return ok(),
            })
        });
        let backend = backend.unwrap();
        let names = ["hs.test", "cdn.test", "push.test", "other.test"];
        let front = || {
            let at: SocketAddr = "127.0.1.1:0".parse().unwrap();
            TlsFront::start(&authority, &names, at, backend.addr())
        };
        let (web, home) = (front(), front());
        cdn.store(web.addr().port(), Ordering::Relaxed);
        names.iter().for_each(|name| dns.address(name, "127.0.1.1"));
        ["bridge.test", "named.test"].iter().for_each(|name| dns.address(name, "127.0.0.1"));
        World { dns, authority, backend, web, home }
    }

    /// Both doors with this store, where there is one.
    fn gateway(&self, egress: &str) -> Gateway {
        let dir = tempfile::tempdir().unwrap();
        self.authority.write(dir.path()).unwrap();
        private(&dir.path().join("secret"), "hook-secret\n");
        private(&dir.path().join("credentials"), "synapse:web-secret\n");
        std::fs::write(dir.path().join("policy.toml"), POLICY).unwrap();
        let text = format!(
            "[[listener]]\nname = \"out\"\ndoor = \"federation\"\nbind = \"127.0.0.1:0\"\nsecret_file = \"secret\"\n\
             extra_roots = [\"ca.crt\"]\n[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\n\
             ports = PORTS\n[[listener]]\nname = \"guarded\"\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\n\
             credentials_file = \"credentials\"\nports = PORTS\n[policy]\nfile = \"policy.toml\"\n[upstream.synapse]\nservers = [\"http://127.0.0.1:9\"]\n\
             [admin]\nbind = \"unix:{}\"\n[egress]\nnameservers = [\"{}\"]\n{egress}\n\
             [egress.addresses]\nallow = [\"127.0.1.0/24\", \"bridge.test\", \"named.test\"]\n",
            dir.path().join("admin.sock").display(),
            self.dns.addr()
        );
        let text = text.replace("PORTS", &format!("[{}, {}]", self.web.addr().port(), self.backend.addr().port()));
        let ports = Ports { https: self.web.addr().port(), federation: self.home.addr().port() };
        Gateway::load(dir, &text, |config| config.egress.ports = ports)
    }

    /// What Synapse asks another server.
    fn federation(&self, gateway: &Gateway, method: &str, server: &str, path: &str, body: &str) -> u16 {
        let signed = format!("X-Matrix origin=\"here.test\",key=\"ed25519:a\",sig=\"c2ln\",destination=\"{server}\"");
        let request = Request::new(method, format!("matrix-federation://{server}{path}"))
            .header("Authorization", signed)
            .header("Proxy-Authorization", "Bearer hook-secret")
            .timeout(SOON);
        let request = if body.is_empty() { request } else { request.body(body) };
        request.send(gateway.addr_of("out")).status
    }

    /// What Synapse asks others in the clear.
    fn clear(&self, gateway: &Gateway, method: &str, path: &str, fields: &[(&str, &str)]) -> u16 {
        let url = format!("http://bridge.test:{}{path}", self.backend.addr().port());
        let request = fields.iter().fold(notify(method, url), |request, (name, value)| request.header(name, value));
        request.send(gateway.addr_of("web")).status
    }

    /// What is answered to CONNECT, and the tunnel.
    fn connect(&self, gateway: &Gateway, host: &str, port: u16) -> (u16, TcpStream) {
        self.connect_at(gateway, "web", &format!("CONNECT {host}:{port} HTTP/1.0\r\n"))
    }

    /// The same at this door, with this beginning of a head.
    fn connect_at(&self, gateway: &Gateway, door: &str, head: &str) -> (u16, TcpStream) {
        let mut stream = TcpStream::connect(gateway.addr_of(door)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "{head}\r\n").unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
            head.push(byte[0]);
        }
        (String::from_utf8_lossy(&head).split(' ').nth(1).unwrap().parse().unwrap(), stream)
    }

    fn tunnel(&self, gateway: &Gateway, host: &str) -> impl Sized + use<> {
        let (status, stream) = self.connect(gateway, host, self.web.addr().port());
        assert_eq!(status, 200);
        let mut tls = outside::tls(stream, host, &self.authority.pem());
        write!(tls, "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        let mut answer = [0; "HTTP/1.1 200".len()];
        tls.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        tls
    }
}

/// A request with a body that is good for a notification.
fn notify(method: &str, url: String) -> Request {
    Request::new(method, url).body("{\"notification\":{\"devices\":[]}}")
}

/// What `mantlet ledger` says.
fn run(gateway: &Gateway, arguments: &[&str]) -> Ran {
    process::run(gateway.dir(), &[&["ledger"], arguments].concat())
}

fn contacts(gateway: &Gateway) -> Vec<Value> {
    let ran = run(gateway, &["--format", "json"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    serde_json::from_str::<Value>(&ran.out).unwrap()["contacts"].as_array().unwrap().clone()
}

/// Without ports, which differ, and times: `destination cause door verdict count`.
fn lines(gateway: &Gateway) -> Vec<String> {
    let line = |contact: &Value| {
        let word = |key: &str| contact[key].as_str().unwrap().to_owned();
        let destination = word("destination");
        let host = destination.rsplit_once(':').map_or(destination.as_str(), |(host, _)| host).to_owned();
        format!("{host} {} {} {} {}", word("cause"), word("door"), word("verdict"), contact["count"])
    };
    contacts(gateway).iter().map(line).collect()
}

/// Waits until these lines are in the ledger: they are written behind the answers.
#[track_caller]
fn assert_has(gateway: &Gateway, wanted: &[&str]) {
    let mut now = Vec::new();
    let mut is_so = || {
        now = lines(gateway);
        wanted.iter().all(|line| now.contains(&(*line).to_owned()))
    };
    for _ in 0..100 {
        if is_so() {
            return;
        }
        crate::common::nap();
    }
    let missing: Vec<_> = wanted.iter().filter(|line| !now.contains(&(**line).to_owned())).collect();
    panic!("{missing:#?} are not in {now:#?}");
}

#[test]
fn both_doors_write_down_whom_they_led_to_what_for_and_what_became_of_it() {
    let world = World::new();
    let gateway = world.gateway("");
    let of =
        |method: &str, server: &str, path: &str, body: &str| world.federation(&gateway, method, server, path, body);
    assert_eq!(of("GET", "hs.test", "/_matrix/federation/v1/query/profile?user_id=%40secret%3Ahs", ""), 200);
    assert_eq!(of("PUT", "HS.test", "/_matrix/federation/v1/send/7", "{\"pdus\":[]}"), 200);
    assert_eq!(of("GET", "hs.test", "/_matrix/key/v2/server", ""), 200);
    assert_eq!(of("GET", "hs.test", "/_matrix/federation/v1/media/download/x", ""), 200);
    assert_eq!(of("GET", "nobody.test", "/_matrix/federation/v1/version", ""), 502);
    let hs = format!("{{\"server_keys\":{{\"hs.test:{}\":{{}}}}}}", world.home.addr().port());
    assert_eq!(of("POST", "matrix.org", "/_matrix/key/v2/query", &hs), 200);

    assert_eq!(world.clear(&gateway, "PUT", "/_matrix/app/v1/transactions/secret?access_token=secret", &[]), 200);
    assert_eq!(world.clear(&gateway, "POST", "/_matrix/push/v1/notify", &[]), 200);
    assert_eq!(world.clear(&gateway, "PUT", "/report-usage-stats/push", &[]), 200);
    assert_eq!(world.clear(&gateway, "POST", "/_matrix/identity/v2/3pid/unbind", &[]), 404);
    let bot = "Synapse (bot; +https://github.com/matrix-org/synapse)";
    assert_eq!(world.clear(&gateway, "GET", "/secret", &[("User-Agent", bot)]), 200);
    assert_eq!(world.clear(&gateway, "GET", "/secret", &[]), 200);
    let named = format!("http://named.test:{}", world.backend.addr().port());
    for path in ["/x", "/_matrix/push/v1/notify"] {
        let request = notify("POST", format!("{named}{path}"));
        assert_eq!(request.send(gateway.addr_of("web")).status, 200);
    }
    let tunnels = [world.tunnel(&gateway, "push.test"), world.tunnel(&gateway, "other.test")];
    assert_eq!(world.connect(&gateway, "denied.test", world.web.addr().port()).0, 403);
    assert_eq!(world.connect(&gateway, "push.test", 22).0, 403);
    assert_eq!(world.connect(&gateway, "gone.test", world.web.addr().port()).0, 502);
    assert_has(
        &gateway,
        &[
            "hs.test federation federation passed 2",
            // Its web site was asked for a delegation.
            "hs.test federation federation passed 1",
            "hs.test keys federation passed 1",
            "hs.test media federation passed 1",
            "cdn.test media federation passed 1",
            "nobody.test federation federation failed 1",
            "matrix.org keys federation answered 1",
            "bridge.test appservice proxy passed 1",
            "bridge.test push proxy passed 1",
            "bridge.test statistics proxy answered 1",
            "bridge.test identity proxy answered 1",
            "bridge.test preview proxy passed 1",
            // What the operator says counts where the path does not say more.
            "named.test preview proxy passed 1",
            "named.test push proxy passed 1",
            "bridge.test other proxy passed 1",
            "push.test push proxy tunnelled 1",
            "other.test other proxy tunnelled 1",
            "denied.test identity proxy denied 1",
            "push.test push proxy denied 1",
            "gone.test other proxy failed 1",
        ],
    );
    // A tunnel is there as soon as it is open, and what flowed when it has ended.
    // The four bytes are those of two answers in the clear.
    assert_eq!(gateway.metric("mantlet_egress_bytes_total{cause=\"push\",direction=\"in\"}"), 4.0);
    drop(tunnels);
    eventually("the tunnels have ended", || {
        gateway.metric("mantlet_egress_bytes_total{cause=\"other\",direction=\"out\"}") > 100.0
            && gateway.metric("mantlet_egress_bytes_total{cause=\"push\",direction=\"out\"}") > 100.0
    });
    let all = contacts(&gateway);
    let text = serde_json::to_string(&all).unwrap();
    assert!(!text.contains("secret") && !text.contains('/') && !text.contains("_matrix"), "{text}");
    let bytes = |destination: &str, verdict: &str, key: &str| {
        let is = |contact: &&Value| {
            contact["destination"].as_str().unwrap().starts_with(destination) && contact["verdict"] == verdict
        };
        all.iter().filter(is).map(|contact| contact[key].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(bytes("cdn.test", "passed", "bytes_in"), 10);
    assert_eq!(bytes("matrix.org", "answered", "bytes_out"), 0);
    assert!(bytes("push.test", "tunnelled", "bytes_out") > 100 && bytes("push.test", "tunnelled", "bytes_in") > 100);
    // Metrics name nobody.
    let counted = |cause: &str, verdict: &str| {
        gateway.metric(&format!("mantlet_egress_contacts_total{{cause=\"{cause}\",verdict=\"{verdict}\"}}"))
    };
    assert_eq!(
        (counted("statistics", "answered"), counted("push", "tunnelled"), counted("push", "denied")),
        (1.0, 1.0, 1.0)
    );
    assert_eq!(gateway.metric("mantlet_egress_ledger_lines"), all.len() as f64);
    let told = format!("{}{}", gateway.written(), gateway.metrics());
    assert!(!told.contains(".test") && !told.contains("matrix.org"), "{told}");
}

#[test]
fn a_stranger_to_a_door_writes_nothing_into_the_ledger() {
    let world = World::new();
    let gateway = world.gateway("");
    let unsigned = Request::new("GET", "matrix-federation://stranger.test/_matrix/federation/v1/version");
    assert_eq!(unsigned.send(gateway.addr_of("out")).status, 502);
    let to = format!("push.test:{}", world.web.addr().port());
    let url = format!("http://bridge.test:{}/_matrix/push/v1/notify", world.backend.addr().port());
    let wrong = "Basic c3luYXBzZTp3cm9uZw==";
    for shown in ["", &format!("Proxy-Authorization: {wrong}\r\n")] {
        let head = format!("CONNECT {to} HTTP/1.0\r\n{shown}");
        assert_eq!(world.connect_at(&gateway, "guarded", &head).0, 407);
    }
    for clear in [notify("POST", url.clone()), notify("POST", url.clone()).header("Proxy-Authorization", wrong)] {
        assert_eq!(clear.send(gateway.addr_of("guarded")).status, 407);
    }
    // What is written down is written down before its record is.
    assert_eq!(gateway.records(5).len(), 5);
    assert_eq!(contacts(&gateway), [json!(null); 0]);
    let ran = run(&gateway, &[]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "nobody was asked\n"));
    let known = "Basic c3luYXBzZTp3ZWItc2VjcmV0";
    let clear = notify("POST", url).header("Proxy-Authorization", known);
    assert_eq!(clear.send(gateway.addr_of("guarded")).status, 200);
    let head = format!("CONNECT {to} HTTP/1.0\r\nProxy-Authorization: {known}\r\n");
    assert_eq!(world.connect_at(&gateway, "guarded", &head).0, 200);
    assert_has(&gateway, &["bridge.test push proxy passed 1"]);
}

#[test]
fn a_tunnel_through_which_nothing_went_did_not_pass() {
    let world = World::new();
    let gateway = world.gateway("");
    let (status, stream) = world.connect(&gateway, "push.test", world.web.addr().port());
    assert_eq!(status, 200);
    drop(stream);
    assert_has(&gateway, &["push.test push proxy failed 1"]);
    assert_eq!(contacts(&gateway).len(), 1);
    assert_eq!(gateway.metric("mantlet_tunnels_total{outcome=\"cancelled\"}"), 1.0);
    let record = &gateway.records(1)[0];
    assert_eq!((&record["decision"], &record["upstream"]), (&json!("cancelled"), &json!(null)));
}

#[test]
fn the_ledger_outlives_a_restart_and_tells_what_was_since() {
    let (world, kept) = (World::new(), tempfile::tempdir().unwrap());
    let egress = format!("store = {:?}", kept.path().join("store.redb"));
    for round in 1..=2 {
        let gateway = world.gateway(&egress);
        world.tunnel(&gateway, "push.test");
        let line = format!("push.test push proxy tunnelled {round}");
        assert_has(&gateway, &[&line]);
        if round == 2 {
            let of = |arguments: &[&str]| run(&gateway, arguments).out;
            assert!(of(&["--since", "1h"]).contains("push.test:"), "{}", of(&[]));
            assert_eq!(of(&["--since", "2999-01-01"]), "nobody was asked since then\n");
            let table = of(&[]);
            let cells: Vec<_> = table.lines().map(|line| line.split_whitespace().take(4).collect::<Vec<_>>()).collect();
            let destination = format!("push.test:{}", world.web.addr().port());
            assert_eq!(
                cells,
                [vec!["CAUSE", "DESTINATION", "VERDICT", "TIMES"], vec!["push", &destination, "tunnelled", "2"]]
            );
        }
        gateway.shutdown();
    }
    let file = kept.path().join("store.redb");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_store_that_cannot_be_used_is_done_without() {
    let world = World::new();
    for path in [Path::new("/dev/full"), Path::new("/proc/no/such/file")] {
        let gateway = world.gateway(&format!("store = {path:?}"));
        world.tunnel(&gateway, "push.test");
        assert_has(&gateway, &["push.test push proxy tunnelled 1"]);
        eventually("it is told", || gateway.metric("mantlet_store_last_use_successful") == 0.0);
    }
}

#[test]
fn a_ledger_that_is_not_wanted_is_not_kept() {
    let (world, kept) = (World::new(), tempfile::tempdir().unwrap());
    let gateway = world.gateway(&format!("ledger = 0\nstore = {:?}", kept.path().join("store.redb")));
    world.tunnel(&gateway, "push.test");
    eventually("it is counted", || {
        gateway.metric("mantlet_egress_contacts_total{cause=\"push\",verdict=\"tunnelled\"}") == 1.0
    });
    assert_eq!(contacts(&gateway), [json!(null); 0]);
    for arguments in [&[][..], &["--since", "7d"]] {
        let ran = run(&gateway, arguments);
        let told = "no ledger is kept: [egress] ledger = 0 in the gateway file\n";
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), told), "{arguments:?}");
    }
    let told = run(&gateway, &["--format", "json"]).out;
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["kept"], json!(false), "{told}");
}
