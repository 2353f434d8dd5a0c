//! The proxy door: what Synapse asks everybody else, and what those and Synapse see of it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::thread;

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Connection, Request, response};
use mantlet_testkit::recorder::RecordedRequest;
use rustls::{ClientConnection, StreamOwned};

use crate::common::{SOON, assert_matrix_error, eventually, noise, ok};
use crate::support::Gateway;
use crate::support::outside::{Dns, TlsFront, tls};

/// A door, and the world behind it: `push.test` and `other.test` are at one address, in TLS; `bridge.test` is within, in the clear.
struct World {
    gateway: Gateway,
    dns: Dns,
    backend: Backend,
    tls: TlsFront,
    authority: Authority,
}

const TUNNEL: &str = "[egress]\ndefault = \"tunnel\"\n[rules.server_banner]\n";

impl World {
    fn new(policy: &str, listener: &str) -> World {
        Self::play(policy, listener, |_| ok())
    }

    fn play(policy: &str, listener: &str, play: impl FnMut(&RecordedRequest) -> Answer + Send + 'static) -> World {
        let (dns, authority) = (Dns::start(), Authority::new().unwrap());
        let backend = Backend::start(play).unwrap();
        let at = "127.0.1.1:0".parse().unwrap();
        let tls =
            TlsFront::start(&authority, &["push.test", "other.test", "my_push.test", "127.0.1.1"], at, backend.addr());
        for name in ["push.test", "other.test", "my_push.test"] {
            dns.address(name, "127.0.1.1");
        }
        for name in ["bridge.test", "mautrix_signal"] {
            dns.address(name, "127.0.0.1");
        }
        let dir = tempfile::tempdir().unwrap();
        let credentials = dir.path().join("credentials");
        std::fs::write(&credentials, "synapse:pass word\n").unwrap();
        std::fs::set_permissions(&credentials, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
        let text = format!(
            "[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\nports = [{}, {}]\n{listener}\n\
             [policy]\nfile = \"policy.toml\"\n[upstream.synapse]\nservers = [\"http://127.0.0.1:9\"]\n\
             [egress]\nnameservers = [\"{}\"]\n[egress.addresses]\nallow = [\"127.0.1.0/24\", \"bridge.test\", \"mautrix_signal\"]\n",
            tls.addr().port(),
            backend.addr().port(),
            dns.addr()
        );
        let gateway = Gateway::load(dir, &text, |_| {});
        World { gateway, dns, backend, tls, authority }
    }

    /// Asks for a tunnel as Synapse does, and gives what is answered, with the connection behind it.
    fn connect(&self, to: &str) -> (String, TcpStream) {
        self.connect_with(to, "")
    }

    fn connect_with(&self, to: &str, fields: &str) -> (String, TcpStream) {
        let mut stream = TcpStream::connect(self.gateway.addr()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "CONNECT {to} HTTP/1.0\r\n{fields}\r\n").unwrap();
        (head(&mut stream), stream)
    }

    /// `push.test` and the port of TLS.
    fn push(&self) -> String {
        format!("push.test:{}", self.tls.addr().port())
    }

    /// A client's TLS in this tunnel.
    fn tls(&self, stream: TcpStream, name: &str) -> StreamOwned<ClientConnection, TcpStream> {
        tls(stream, name, &self.authority.pem())
    }
}

/// A head of an answer, and no byte behind it.
fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// What comes through this connection comes to an end, whatever it is.
pub fn assert_ended(mut stream: TcpStream) {
    if let Err(error) = stream.read_to_end(&mut Vec::new()) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
}

#[test]
fn a_tunnel_carries_every_byte_and_nothing_of_it_is_read() {
    let body = noise(3_000_000);
    let answer = body.clone();
    let world = World::play("extends = \"balanced\"", "", move |_| Answer::BytesThenClose(response(200, &[], &answer)));
    let (head, stream) = world.connect(&world.push());
    // Synapse wants this status and no other, and what follows the head is the tunnel's.
    assert_eq!(head, "HTTP/1.1 200 Connection established\r\n\r\n");
    let mut tls = world.tls(stream, "push.test");
    write!(tls, "PUT /_matrix/push/v1/notify HTTP/1.1\r\nHost: push.test\r\nUser-Agent: Synapse/1.163.2\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
    tls.write_all(&body).unwrap();
    let mut answered = Vec::new();
    let _ = tls.read_to_end(&mut answered);
    assert!(answered.ends_with(&body), "{} bytes came back", answered.len());
    let arrived = world.backend.last().unwrap();
    assert!(arrived.body == body && arrived.header("user-agent") == Some("Synapse/1.163.2"));
    assert_eq!(world.tls.names(), ["push.test"]);
    drop(tls);
    let record = &world.gateway.records(1)[0];
    let of = |field: &str| record[field].as_str().unwrap_or("-").to_owned();
    assert_eq!(
        ["flow", "endpoint", "method", "listener", "upstream", "decision"].map(of),
        ["egress", "tunnel", "CONNECT", "web", "(web)", "permit"]
    );
    let bytes = |field: &str| record[field].as_u64().unwrap();
    assert!(bytes("bytes_in") > 3_000_000 && bytes("bytes_out") > 3_000_000, "{record}");
    assert_eq!(world.gateway.metric("mantlet_tunnels_total{outcome=\"open\"}"), 1.0);
    assert_eq!(world.gateway.metric("mantlet_tunnel_bytes_total{direction=\"in\"}"), bytes("bytes_out") as f64);
    eventually("no tunnel is open", || world.gateway.metric("mantlet_tunnels") == 0.0);
    let told = format!("{}{}", world.gateway.written(), world.gateway.metrics());
    assert!(!told.contains("push.test") && !told.contains("127.0.1"), "{told}");
}

/// Containers have such names, and some web sites.
#[test]
fn a_name_with_an_underscore_is_reached_by_all_ways() {
    let named = "[[egress.destination]]\nhost = \"my_push.test\"\naction = \"tunnel\"\n\
        [[egress.destination]]\nhost = \"mautrix_signal\"\naction = \"tunnel\"\n\
        [[test]]\nname = \"a\"\nrequest = \"CONNECT mautrix_signal:443\"\nexpect = { decision = \"permit\" }\n";
    let world = World::new(&format!("extends = \"balanced\"\n[egress]\ndefault = \"deny\"\n{named}"), "");
    let (head, stream) = world.connect(&format!("My_push.test:{}", world.tls.addr().port()));
    assert_eq!(status(&head), 200);
    let mut tls = world.tls(stream, "my_push.test");
    tls.write_all(b"GET / HTTP/1.1\r\nHost: my_push.test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answered = Vec::new();
    let _ = tls.read_to_end(&mut answered);
    assert!(answered.starts_with(b"HTTP/1.1 200 ") && world.tls.names() == ["my_push.test"]);
    let port = world.backend.addr().port();
    let sent = Request::new("PUT", format!("http://mautrix_signal:{port}/x")).send(world.gateway.addr());
    let host = format!("mautrix_signal:{port}");
    assert_eq!((sent.status, world.backend.last().unwrap().header("host")), (200, Some(&*host)));
    // It is another name than the one with a hyphen.
    let (head, stream) = world.connect(&format!("my_push.test:{}", world.tls.addr().port()));
    assert_eq!(status(&head), 200);
    assert!(world.tls(stream, "my-push.test").write_all(b"x").is_err());
}

#[test]
fn tls_for_another_name_does_not_pass() {
    let world = World::new(TUNNEL, "");
    for name in ["other.test", "127.0.1.1"] {
        let (head, stream) = world.connect(&world.push());
        assert_eq!(status(&head), 200);
        let mut tls = world.tls(stream, name);
        assert!(tls.write_all(b"GET / HTTP/1.1\r\n\r\n").and_then(|()| tls.flush()).is_err(), "{name}");
    }
    // In the clear, neither.
    let (_, mut stream) = world.connect(&world.push());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: push.test\r\n\r\n").unwrap();
    assert!(matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)));
    let records = world.gateway.records(3);
    for record in &records {
        assert_eq!((record["decision"].as_str(), record["rule"].as_str()), (Some("deny"), Some("proxy_door")));
        assert_eq!(record["bytes_in"], 0, "{record}");
    }
    assert!(world.tls.names().is_empty() && world.backend.requests().is_empty());
    assert_eq!(world.gateway.metric("mantlet_tunnels_total{outcome=\"mismatch\"}"), 3.0);
}

#[test]
fn an_address_is_tunnelled_to_without_a_name() {
    let world = World::new(TUNNEL, "");
    let (head, stream) = world.connect(&format!("127.0.1.1:{}", world.tls.addr().port()));
    assert_eq!(status(&head), 200);
    let mut tls = world.tls(stream, "127.0.1.1");
    tls.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = [0; "HTTP/1.1 200".len()];
    tls.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[test]
fn the_policy_says_where_there_is_no_way_and_a_reload_counts_at_once() {
    let world = World::new(
        "announce_rule = true\n[egress]\ndefault = \"deny\"\n[[egress.destination]]\nhost = \"push.test\"\naction = \"tunnel\"\n[rules.server_banner]\n",
        "",
    );
    assert_eq!(status(&world.connect(&world.push()).0), 200);
    let (head, mut stream) = world.connect(&format!("other.test:{}", world.tls.addr().port()));
    assert_eq!(status(&head), 403);
    assert!(head.contains("\r\nx-mantlet-rule: egress\r\n"), "{head}");
    let mut body = String::new();
    stream.read_to_string(&mut body).unwrap();
    assert!(body.contains("\"errcode\":\"M_FORBIDDEN\""), "{body}");
    // In the clear, too.
    let answer = Request::new("GET", format!("http://other.test:{}/x", world.backend.addr().port()));
    assert_matrix_error(&answer.send(world.gateway.addr()), 403, "M_FORBIDDEN");
    std::fs::write(world.gateway.policy_file(), "[egress]\ndefault = \"tunnel\"\n[[egress.destination]]\nhost = \"*.test\"\naction = \"deny\"\n[rules.server_banner]\n").unwrap();
    world.gateway.reloader().reload(mantlet::server::reload::Trigger::Command).unwrap();
    assert_eq!(status(&world.connect(&world.push()).0), 403);
    let denied = world.gateway.records_with(|record| record["generation"] == 2);
    let denied: Vec<_> = denied.iter().filter(|record| record["decision"] == "deny").collect();
    assert_eq!(denied.len(), 3);
    assert!(denied.iter().all(|record| record["rule"] == "egress" && record["flow"] == "egress"), "{denied:?}");
    let counted = "mantlet_rule_decisions_total{action=\"deny\",mode=\"enforce\",rule=\"egress\"}";
    assert_eq!(world.gateway.metric(counted), 3.0);
    assert!(!world.dns.asked().iter().any(|(name, _)| name == "other.test"), "a name that is denied is not looked up");
}

/// Synapse keeps a connection for as long as it is in use.
#[test]
fn a_reload_ends_the_tunnels_that_it_leaves_no_way_and_no_others() {
    let world = World::new(TUNNEL, "");
    let port = world.tls.addr().port();
    let ask = |tls: &mut StreamOwned<ClientConnection, TcpStream>| {
        tls.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let (mut answer, mut byte) = (Vec::new(), [0]);
        while !answer.ends_with(b"{}") {
            tls.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"));
    };
    let dig = |name: &str| {
        let mut tls = world.tls(world.connect(&format!("{name}:{port}")).1, name);
        ask(&mut tls);
        tls
    };
    let (mut kept, dug) = (dig("push.test"), dig("other.test"));
    let (head, begun) = world.connect(&format!("other.test:{port}"));
    assert_eq!(status(&head), 200);
    let denied = format!("{TUNNEL}[[egress.destination]]\nhost = \"other.test\"\naction = \"deny\"\n");
    std::fs::write(world.gateway.policy_file(), denied).unwrap();
    world.gateway.reloader().reload(mantlet::server::reload::Trigger::Command).unwrap();
    // None of them had to say anything before.
    assert_ended(dug.sock);
    assert_ended(begun);
    ask(&mut kept);
    assert_eq!(world.tls.names(), ["push.test", "other.test"]);
    eventually("one tunnel is open", || world.gateway.metric("mantlet_tunnels") == 1.0);
}

#[test]
fn nothing_within_is_reached_by_whatever_name() {
    let world = World::new(TUNNEL, "");
    let canary = TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    for (name, address) in [("inside.test", "127.0.0.1"), ("mapped.test", "::ffff:127.0.0.1"), ("zero.test", "0.0.0.0")]
    {
        world.dns.address(name, address);
    }
    world.dns.alias("alias.test", "inside.test");
    // The port is one to connect to; the address alone stands in the way.
    let port = world.tls.addr().port();
    for host in [
        "inside.test",
        "mapped.test",
        "zero.test",
        "alias.test",
        "127.0.0.1",
        "[::1]",
        "::1",
        "::ffff:7f00:1",
        "169.254.169.254",
    ] {
        let (head, _) = world.connect(&format!("{host}:{port}"));
        assert_eq!(status(&head), 502, "{host}: {head}");
        if host.starts_with(':') {
            continue;
        }
        let answer = Request::new("GET", format!("http://{host}:{port}/")).send(world.gateway.addr());
        assert_matrix_error(&answer, 502, "M_UNKNOWN");
    }
    for host in ["localhost.", "127.1", "0x7f.1", "2130706433", "017700000001", "a@127.0.0.1", "[::1%25lo]"] {
        let (head, _) = world.connect(&format!("{host}:{port}"));
        assert_eq!(status(&head), 502, "{host}: {head}");
    }
    let canary_port = canary.local_addr().unwrap().port();
    assert_eq!(status(&world.connect(&format!("push.test:{canary_port}")).0), 403, "a port that is not listed");
    assert!(canary.accept().is_err() && world.backend.requests().is_empty());
}

#[test]
fn what_is_asked_in_the_clear_arrives_as_it_would_without_us() {
    let world = World::new("extends = \"balanced\"", "");
    let port = world.backend.addr().port();
    let body = noise(200_000);
    let target = "/_matrix/app/v1/transactions/1?x=%7e;/..//y";
    let sent = Request::new("PUT", format!("http://Bridge.test:{port}{target}"))
        .header("Host", "elsewhere.test")
        .header("User-Agent", "Synapse/1.163.2")
        .header("Authorization", "Bearer hs_token")
        .header("Connection", "close, x-hop")
        .header("X-Hop", "1")
        .header("Proxy-Authorization", "Basic unasked")
        .body(body.clone())
        .send(world.gateway.addr());
    assert_eq!((sent.status, sent.text().as_str()), (200, "{}"));
    let arrived = world.backend.last().unwrap();
    assert_eq!((arrived.method.as_str(), arrived.target_text().as_str()), ("PUT", target));
    assert!(arrived.body == body);
    let mut fields: Vec<_> = arrived.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["authorization", "content-length", "host", "user-agent"]);
    assert_eq!(arrived.header("host"), Some(format!("Bridge.test:{port}").as_str()));
    assert_eq!(
        (arrived.header("user-agent"), arrived.header("authorization")),
        (Some("Synapse"), Some("Bearer hs_token"))
    );
    let record = &world.gateway.records(1)[0];
    let of = |field: &str| record[field].as_str().unwrap_or("-").to_owned();
    assert_eq!(["flow", "upstream", "decision"].map(of), ["egress", "(web)", "permit"]);
    assert!(!world.gateway.written().to_lowercase().contains("bridge"));
}

/// What Synapse sends on a connection just when it is closed is lost.
#[test]
fn a_connection_of_synapse_is_kept_longer_than_a_clients() {
    let clients = "[[listener]]\nname = \"clients\"\ndoor = \"ingress\"\nbind = \"127.0.0.1:0\"\n";
    let world = World::new("extends = \"balanced\"", &format!("{clients}[limits]\nkeep_alive = \"100ms\"\n"));
    let mut synapse = Connection::open(world.gateway.addr_of("web")).unwrap();
    let asked = Request::new("GET", format!("http://bridge.test:{}/", world.backend.addr().port()));
    assert_eq!(synapse.send(&asked).unwrap().status, 200);
    // Asks later, and is closed.
    let mut client = Connection::open(world.gateway.addr_of("clients")).unwrap();
    client.send(&Request::new("GET", "/_matrix/client/versions")).unwrap();
    assert_eq!(client.read_to_end().unwrap(), b"");
    assert_eq!(synapse.send(&asked).unwrap().status, 200);
}

#[test]
fn what_no_proxy_is_asked_for_is_refused() {
    let world = World::new(TUNNEL, "");
    let port = world.backend.addr().port();
    for target in
        ["/x".to_owned(), format!("https://push.test:{port}/"), format!("matrix-federation://push.test:{port}/")]
    {
        let answer = Request::new("GET", target.clone()).header("Host", "push.test").send(world.gateway.addr());
        assert_eq!(answer.status, 400, "{target}");
    }
    // A second request on a connection digs no tunnel.
    let mut stream = TcpStream::connect(world.gateway.addr()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(
        stream,
        "GET http://bridge.test:{port}/ HTTP/1.1\r\nHost: a\r\n\r\nCONNECT {} HTTP/1.1\r\nHost: a\r\n\r\n",
        world.push()
    )
    .unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 200") && all.contains("HTTP/1.1 400"), "{all}");
    for bad in ["Content-Length: 3\r\n", "Host: a\r\nHost: a\r\n", "X : y\r\n"] {
        assert_eq!(status(&world.connect_with(&world.push(), bad).0), 400, "{bad}");
    }
    assert_eq!(world.gateway.metric("mantlet_refused_by_parser_total{listener=\"web\",reason=\"400\"}"), 3.0);
    assert!(world.tls.names().is_empty());
}

/// Synapse takes some of these for names, and asks whom it can only be told off for without end.
#[test]
fn whoever_cannot_be_read_is_down() {
    let world = World::new(TUNNEL, "credentials_file = \"credentials\"");
    let shown = "Proxy-Authorization: Basic c3luYXBzZTpwYXNzIHdvcmQ=";
    let odd = ["127.1:443", "-a.test:443", "a.test.:443", "push.test:99999", "push.test:0", "push.test", "a/b:443"];
    for to in odd {
        let (head, mut stream) = world.connect_with(to, &format!("{shown}\r\n"));
        let mut body = String::new();
        stream.read_to_string(&mut body).unwrap();
        assert!(status(&head) == 502 && body.contains("\"errcode\":\"M_UNKNOWN\""), "{to}: {head}{body}");
        assert_eq!(status(&world.connect(to).0), 407, "{to}");
    }
    for host in ["127.1", "-a.test", "a.test.", "push.test:99999"] {
        let asked = Request::new("GET", format!("http://{host}/x"));
        assert_eq!(asked.send(world.gateway.addr()).status, 407, "{host}");
        let asked = Request::new("GET", format!("http://{host}/x"))
            .header("Proxy-Authorization", "Basic c3luYXBzZTpwYXNzIHdvcmQ=");
        assert_matrix_error(&asked.send(world.gateway.addr()), 502, "M_UNKNOWN");
    }
    for record in world.gateway.records(2 * (odd.len() + 4)) {
        assert_eq!((record["decision"].as_str(), record["rule"].as_str()), (Some("deny"), Some("proxy_door")));
    }
    assert!(world.dns.asked().is_empty());
}

#[test]
fn with_credentials_nobody_comes_in_without_them() {
    let world = World::new(TUNNEL, "credentials_file = \"credentials\"");
    // synapse:pass word
    let good = "Proxy-Authorization: Basic c3luYXBzZTpwYXNzIHdvcmQ=\r\n";
    for bad in
        ["", "Proxy-Authorization: Basic c3luYXBzZTpwYXNz\r\n", "Authorization: Basic c3luYXBzZTpwYXNzIHdvcmQ=\r\n"]
    {
        let (head, _) = world.connect_with(&world.push(), bad);
        assert_eq!(status(&head), 407, "{bad}");
        assert!(head.contains("\r\nproxy-authenticate: Basic realm=\"mantlet\"\r\n"), "{head}");
    }
    assert_eq!(status(&world.connect_with(&world.push(), &format!("{good}{good}")).0), 407, "twice");
    assert_eq!(status(&world.connect_with(&world.push(), good).0), 200);
    let plain = || Request::new("GET", format!("http://bridge.test:{}/", world.backend.addr().port()));
    assert_eq!(plain().send(world.gateway.addr()).status, 407);
    assert!(world.backend.requests().is_empty());
    let shown = plain().header("Proxy-Authorization", "Basic c3luYXBzZTpwYXNzIHdvcmQ=").send(world.gateway.addr());
    assert_eq!(shown.status, 200);
    assert_eq!(world.backend.last().unwrap().header("proxy-authorization"), None);
}

#[test]
fn with_networks_nobody_comes_in_from_elsewhere() {
    let world = World::new(TUNNEL, "networks = [\"127.0.0.7\"]");
    let mut stream = TcpStream::connect(world.gateway.addr()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let _ = write!(stream, "CONNECT {} HTTP/1.0\r\n\r\n", world.push());
    assert_eq!(head(&mut stream), "");
    let plain = Request::new("GET", format!("http://bridge.test:{}/", world.backend.addr().port()));
    assert_eq!(plain.send_from("127.0.0.7".parse().unwrap(), world.gateway.addr()).status, 200);
}

#[test]
fn one_side_may_end_while_the_other_goes_on() {
    let world = World::new(TUNNEL, "");
    // Somebody who looks at the name alone, and then at bytes.
    let listener = TcpListener::bind(SocketAddr::new("127.0.1.2".parse().unwrap(), world.tls.addr().port())).unwrap();
    world.dns.address("raw.test", "127.0.1.2");
    let raw = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(b"after the end").unwrap();
        all
    });
    let (head, mut stream) = world.connect(&format!("raw.test:{}", world.tls.addr().port()));
    assert_eq!(status(&head), 200);
    let mut hello = Vec::new();
    world.tls(stream.try_clone().unwrap(), "raw.test").conn.write_tls(&mut hello).unwrap();
    hello.extend_from_slice(b"and more");
    stream.write_all(&hello).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answered = String::new();
    stream.read_to_string(&mut answered).unwrap();
    assert_eq!((answered.as_str(), raw.join().unwrap()), ("after the end", hello));
}

#[test]
fn whoever_says_nothing_is_not_waited_for() {
    let limits = "[limits]\nfirst_byte = \"100ms\"\nhead = \"100ms\"\nhandshake = \"100ms\"\ntunnel_idle = \"100ms\"\n";
    let world = World::new(TUNNEL, &format!("\n{limits}"));
    let port = world.tls.addr().port();
    let silent = |said: &[u8]| {
        let mut stream = TcpStream::connect(world.gateway.addr()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(said).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        String::from_utf8(all).unwrap()
    };
    assert_eq!(silent(b""), "");
    assert_eq!(silent(b"CONN"), "");
    assert_eq!(silent(b"CONNECT push.test:443 HTTP/1.1\r\nX"), "");
    let tunnel = format!("CONNECT push.test:{port} HTTP/1.1\r\n\r\n");
    assert_eq!(silent(tunnel.as_bytes()), "HTTP/1.1 200 Connection established\r\n\r\n");
    // A tunnel in which nothing moves any more.
    let (_, stream) = world.connect(&world.push());
    let mut tls = world.tls(stream, "push.test");
    tls.flush().unwrap();
    assert!(tls.sock.read(&mut [0; 4096]).is_ok());
    let mut rest = Vec::new();
    let _ = tls.sock.read_to_end(&mut rest);
    eventually("no tunnel is open", || world.gateway.metric("mantlet_tunnels") == 0.0);
}

#[test]
fn the_end_of_the_process_ends_a_tunnel() {
    let world = World::new(TUNNEL, "\n[limits]\ndrain = \"200ms\"");
    let (head, stream) = world.connect(&world.push());
    assert_eq!(status(&head), 200);
    let mut tls = world.tls(stream, "push.test");
    tls.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    tls.flush().unwrap();
    world.gateway.shutdown();
    let mut rest = Vec::new();
    let _ = tls.sock.read_to_end(&mut rest);
}
