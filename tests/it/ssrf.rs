//! No spelling of any host leads within: ten thousand of them, by every way that leads out, at both doors.
//!
//! What could be reached are canaries: they listen on this machine, at the very port that is asked for.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mantlet::config::egress::Ports;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Request, json_response, response};
use serde_json::{Value, json};

use crate::common::ok;
use crate::support::Gateway;
use crate::support::outside::{Dns, TlsFront};
use crate::support::spellings::Spellings;

/// By which way Mantlet is led to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// Synapse asks this server.
    Server,
    /// Synapse asks a notary for this server's keys.
    Keys,
    /// A server says that it is there.
    Delegation,
    /// A server says that where it is, is said there.
    DelegationElsewhere,
    /// A server sends whoever wants a file there.
    Redirect,
    /// A file's second part says that it is there.
    Part,
    /// Synapse wants a tunnel to there.
    Connect,
    /// Synapse asks there in the clear.
    Clear,
}

/// Each way, and how many hosts are tried by it.
const WAYS: [(Way, usize); 8] = [
    (Way::Server, 2800),
    (Way::Keys, 2600),
    (Way::Delegation, 300),
    (Way::DelegationElsewhere, 300),
    (Way::Redirect, 350),
    (Way::Part, 350),
    (Way::Connect, 2200),
    (Way::Clear, 2200),
];

struct World {
    gateway: Gateway,
    dns: Dns,
    front: TlsFront,
    /// What a host says, by what stands in `Host`.
    says: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    canaries: Vec<TcpListener>,
    _backend: Backend,
}

impl World {
    /// One port is free, and asked for, everywhere: at 127.0.1.1, where other servers are, and within, where the canaries sit.
    fn new(allow: &str) -> World {
        let (dns, authority) = (Dns::start(), Authority::new().unwrap());
        let says = Arc::new(Mutex::new(HashMap::<String, Vec<u8>>::new()));
        let here = Arc::clone(&says);
        let backend = Backend::start(move |request| {
            let said = request.header("host").and_then(|host| here.lock().unwrap().get(host).cloned());
            said.map_or_else(ok, Answer::Bytes)
        });
        let backend = backend.unwrap();
        let names = ["hs.test", "*.way.test", "*.turn.test", "127.0.0.1", "127.0.1.1"];
        let (front, canaries) = std::iter::repeat_with(|| {
            let at = SocketAddr::new("127.0.1.1".parse().unwrap(), 0);
            let front = TlsFront::try_start(&authority, &names, at, backend.addr()).ok()?;
            let canary = |address: &str| {
                let canary = TcpListener::bind(SocketAddr::new(address.parse().unwrap(), front.addr().port())).ok()?;
                canary.set_nonblocking(true).ok().map(|()| canary)
            };
            let canaries = ["127.0.0.1", "127.0.0.2", "::1"].map(canary).into_iter().collect::<Option<Vec<_>>>()?;
            Some((front, canaries))
        })
        .take(100)
        .find_map(|found| found)
        .expect("a port that is free everywhere, and ::1");
        dns.address("hs.test", "127.0.1.1");
        let port = front.addr().port();
        let dir = tempfile::tempdir().unwrap();
        authority.write(dir.path()).unwrap();
        std::fs::write(dir.path().join("secret"), "hook-secret\n").unwrap();
        std::fs::set_permissions(dir.path().join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(dir.path().join("policy.toml"), "[egress]\ndefault = \"tunnel\"\n[rules.notary]\n").unwrap();
        let text = format!(
            "[[listener]]\nname = \"out\"\ndoor = \"federation\"\nbind = \"127.0.0.1:0\"\nsecret_file = \"secret\"\n\
             extra_roots = [\"ca.crt\"]\n[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\nports = [{port}]\n\
             [policy]\nfile = \"policy.toml\"\n[egress]\nnameservers = [\"{}\"]\n[egress.addresses]\nallow = [{allow}]\n",
            dns.addr()
        );
        let gateway = Gateway::load(dir, &text, |config| config.egress.ports = Ports { https: port, federation: port });
        World { gateway, dns, front, says, canaries, _backend: backend }
    }

    fn port(&self) -> u16 {
        self.front.addr().port()
    }

    /// What Synapse asks a server at the federation door; its status.
    fn ask(&self, server: &str, path: &str) -> u16 {
        let signed = format!("X-Matrix origin=\"here.test\",key=\"ed25519:a\",sig=\"c2ln\",destination=\"{server}\"");
        self.federation(
            Request::new("GET", format!("matrix-federation://{server}{path}")).header("Authorization", signed),
        )
    }

    fn federation(&self, request: Request) -> u16 {
        let request = request.header("Proxy-Authorization", "Bearer hook-secret").timeout(Duration::from_secs(30));
        request.send(self.gateway.addr_of("out")).status
    }

    /// What becomes of whoever is led there: the status that Synapse sees.
    fn lead(&self, way: Way, hosts: &[String], number: usize) -> u16 {
        let [host, ..] = hosts else { return 0 };
        let (here, port) = (format!("w{number}.way.test"), self.port());
        let with_port = format!("{host}:{port}");
        let says = |of: &str, what: Vec<u8>| self.says.lock().unwrap().insert(of.to_owned(), what);
        let to = if number.is_multiple_of(3) { host } else { &with_port };
        match way {
            Way::Server => self.ask(to, "/_matrix/key/v2/server"),
            Way::Keys => {
                let wanted: serde_json::Map<String, Value> =
                    hosts.iter().map(|host| (format!("{host}:{port}"), json!({}))).collect();
                let signed = "X-Matrix origin=\"here.test\",key=\"ed25519:a\",sig=\"c2ln\",destination=\"matrix.org\"";
                let request = Request::new("POST", "matrix-federation://matrix.org/_matrix/key/v2/query");
                self.federation(request.header("Authorization", signed).json(&json!({ "server_keys": wanted })))
            }
            Way::Delegation => {
                self.dns.address(&here, "127.0.1.1");
                says(&here, json_response(200, &json!({ "m.server": to })));
                self.ask(&here, PROFILE)
            }
            Way::DelegationElsewhere => {
                self.dns.address(&here, "127.0.1.1");
                says(&here, response(307, &[("Location", &format!("https://{with_port}/"))], ""));
                self.ask(&here, PROFILE)
            }
            Way::Redirect => {
                let server = format!("hs.test:{port}");
                let status = [302, 307, 308][number % 3];
                says(&server, response(status, &[("Location", &format!("https://{with_port}/"))], ""));
                self.ask(&server, MEDIA)
            }
            Way::Part => {
                let server = format!("hs.test:{port}");
                let body = format!(
                    "--b\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--b\r\nLocation: https://{with_port}/x\r\n\r\n\r\n--b--\r\n"
                );
                says(&server, response(200, &[("Content-Type", "multipart/mixed; boundary=b")], body));
                self.ask(&server, MEDIA)
            }
            Way::Connect => {
                let mut stream = TcpStream::connect(self.gateway.addr_of("web")).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                write!(stream, "CONNECT {with_port} HTTP/1.1\r\n\r\n").unwrap();
                let mut line = [0; "HTTP/1.1 200".len()];
                stream.read_exact(&mut line).unwrap();
                String::from_utf8_lossy(&line[9..]).parse().unwrap()
            }
            Way::Clear => {
                let request = Request::new("GET", format!("http://{with_port}/x")).header("Host", "a");
                request.timeout(Duration::from_secs(30)).send(self.gateway.addr_of("web")).status
            }
        }
    }

    /// How many connections the canaries had.
    fn reached(&self) -> usize {
        self.canaries.iter().map(|canary| std::iter::from_fn(|| canary.accept().ok()).count()).sum()
    }
}

const PROFILE: &str = "/_matrix/federation/v1/query/profile?user_id=%40a%3Ahs.test";
const MEDIA: &str = "/_matrix/federation/v1/media/download/abc";

#[test]
fn ten_thousand_spellings_reach_nobody_within() {
    let world = World::new("\"127.0.1.0/24\"");
    let mut tried = BTreeSet::new();
    for (way, count) in WAYS {
        let mut spellings = Spellings::new(way as u64);
        let mut hosts = BTreeSet::new();
        while hosts.len() < count {
            hosts.insert(spellings.host(&world.dns));
        }
        let hosts: Vec<_> = hosts.into_iter().collect();
        let batch = if way == Way::Keys { 200 } else { 1 };
        for (number, hosts) in hosts.chunks(batch).enumerate() {
            let status = world.lead(way, hosts, number);
            let expected: &[u16] = match way {
                // A delegation that leads nowhere is as none: the server is at its own name.
                Way::Delegation | Way::DelegationElsewhere => &[200, 502],
                Way::Keys => &[200],
                // What stands before `#`, `?` or `/` is the whole host, and that one may be reached.
                Way::Redirect | Way::Part if hosts[0].starts_with("hs.test") => &[200, 424],
                // The server has answered, and is not to blame for where its file is.
                Way::Redirect | Way::Part => &[424],
                Way::Server | Way::Connect | Way::Clear => &[400, 403, 502],
            };
            assert!(expected.contains(&status), "{way:?} {hosts:?}: {status}");
            assert_eq!(world.reached(), 0, "{way:?} {hosts:?}");
        }
        tried.extend(hosts.into_iter().map(|host| (way, host)));
    }
    assert!(tried.len() >= 10_000, "{}", tried.len());
    println!("{} hosts by {} ways, and no canary was reached", tried.len(), WAYS.len());
}

/// What the test above would see if nobody looked at addresses.
#[test]
fn by_each_way_whoever_is_allowed_is_reached() {
    let world = World::new("\"127.0.1.0/24\", \"127.0.0.0/8\"");
    // The canary takes connections and says nothing.
    for (way, _) in WAYS {
        let canary = world.canaries[0].try_clone().unwrap();
        let seen = std::thread::scope(|scope| {
            let door = scope.spawn(|| {
                loop {
                    match canary.accept() {
                        // Whoever is let go at once is not waited for.
                        Ok(_) => return true,
                        Err(_) => std::thread::park_timeout(Duration::from_millis(2)),
                    }
                }
            });
            world.lead(way, &["127.0.0.1".to_owned()], 1);
            door.join().unwrap()
        });
        assert!(seen, "{way:?}");
    }
}

#[test]
fn a_name_that_turns_is_connected_to_where_it_was_looked_at() {
    let world = World::new("\"127.0.1.0/24\"");
    let port = world.port();
    let mut reached = 0;
    for number in 0..100 {
        let name = format!("n{number}.turn.test");
        world.dns.turns(&name, &["127.0.1.1", ["127.0.0.1", "127.0.0.2", "0.0.0.0"][number % 3], "127.0.0.1"]);
        for _ in 0..3 {
            let status = match number % 2 {
                0 => world.ask(&format!("{name}:{port}"), PROFILE),
                _ => world.lead(Way::Connect, std::slice::from_ref(&name), number),
            };
            reached += usize::from(status == 200);
            assert!(matches!(status, 200 | 502), "{name}: {status}");
        }
        // Of two addresses, the good one is taken.
        let both = format!("both{number}.turn.test");
        for address in ["127.0.0.1", "127.0.1.1", "127.0.0.2"] {
            world.dns.address(&both, address);
        }
        assert_eq!(world.ask(&format!("{both}:{port}"), PROFILE), 200);
        assert_eq!(world.reached(), 0, "{name}");
    }
    assert!(reached >= 100, "{reached}");
}
