//! Hosts that are looked into: who believes our certificates, and what both sides of us see.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mantlet::server::reload::Trigger;
use mantlet::tls::ca;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::recorder::RecordedRequest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::common::{SOON, ok};
use crate::process;
use crate::proxy_door::assert_ended;
use crate::support::Gateway;
use crate::support::outside::{self, Dns, TlsFront};

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A door that looks into `push.test`, `stats.test` and `bad.test`, and the world behind it.
struct World {
    gateway: Gateway,
    backend: Backend,
    front: TlsFront,
    _dns: Dns,
}

const POLICY: &str = "extends = \"balanced\"\n[rules.usage_stats]\n\
    [[egress.destination]]\nhost = \"push.test\"\naction = \"intercept\"\n\
    [[egress.destination]]\nhost = \"stats.test\"\naction = \"intercept\"\n\
    [[egress.destination]]\nhost = \"bad.test\"\naction = \"intercept\"\n\
    [[egress.destination]]\nhost = \"my_site.test\"\naction = \"intercept\"\n";

/// What a policy wants that looks into one host more than [`POLICY`].
const HOSTS_AND_TUNNEL: [&str; 8] = [
    "push.test",
    "stats.test",
    "bad.test",
    "my_site.test",
    "tunnel.test",
    "matrix.org",
    "matrix-federation.matrix.org",
    "vector.im",
];

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// An authority of our own in this directory.
pub fn authority(dir: &Path, hosts: &[&str]) {
    let made = ca::make(&names(hosts)).unwrap();
    std::fs::write(dir.join("our.crt"), made.certificate).unwrap();
    std::fs::write(dir.join("our.key"), made.key).unwrap();
    std::fs::set_permissions(dir.join("our.key"), PermissionsExt::from_mode(0o600)).unwrap();
}

impl World {
    fn new(play: impl FnMut(&RecordedRequest) -> Answer + Send + 'static) -> World {
        Self::within("", play)
    }

    /// The same with these limits.
    fn within(limits: &str, play: impl FnMut(&RecordedRequest) -> Answer + Send + 'static) -> World {
        let (dns, outside) = (Dns::start(), Authority::new().unwrap());
        let backend = Backend::start(play).unwrap();
        // Nobody has a certificate for bad.test.
        let at = "127.0.1.1:0".parse().unwrap();
        let front =
            TlsFront::start(&outside, &["push.test", "stats.test", "my_site.test", "tunnel.test"], at, backend.addr());
        for name in ["push.test", "stats.test", "my_site.test", "tunnel.test", "bad.test"] {
            dns.address(name, "127.0.1.1");
        }
        let dir = tempfile::tempdir().unwrap();
        outside.write(dir.path()).unwrap();
        authority(
            dir.path(),
            &[
                "push.test",
                "stats.test",
                "bad.test",
                "my_site.test",
                "matrix.org",
                "matrix-federation.matrix.org",
                "vector.im",
            ],
        );
        std::fs::write(dir.path().join("policy.toml"), POLICY).unwrap();
        let text = format!(
            "[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\nports = [{}]\nextra_roots = [\"ca.crt\"]\n\
             [policy]\nfile = \"policy.toml\"\n[upstream.synapse]\nservers = [\"http://127.0.0.1:9\"]\n\
             [egress]\nnameservers = [\"{}\"]\n[egress.ca]\ncertificate = \"our.crt\"\nkey = \"our.key\"\n\
             [egress.addresses]\nallow = [\"127.0.1.0/24\"]\n[limits]\n{limits}",
            front.addr().port(),
            dns.addr()
        );
        let gateway = Gateway::load(dir, &text, |_| {});
        World { gateway, backend, front, _dns: dns }
    }

    /// TLS with whoever shows itself as this host, of which our authority's word is believed and nobody else's.
    fn tls(&self, host: &str, name: &str) -> Tls {
        self.tls_at(&format!("{host}:{}", self.front.addr().port()), name)
    }

    fn tls_at(&self, to: &str, name: &str) -> Tls {
        tls(&self.gateway, to, name)
    }

    /// Asks a host in such a tunnel, and gives the status and all that is answered.
    fn ask(&self, host: &str, request_line: &str, fields: &str, body: &str) -> (u16, String) {
        let tls = self.tls(host, host);
        let (port, length) = (self.front.addr().port(), body.len());
        let head = format!("{request_line} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {length}\r\n{fields}");
        exchange(tls, &head, body)
    }
}

/// TLS through the proxy door of a gateway with whoever is at `to`, and shows itself as this name, of which the word of the
/// gateway's own authority is believed and nobody else's.
pub fn tls(gateway: &Gateway, to: &str, name: &str) -> Tls {
    tls_at(gateway.addr(), &std::fs::read_to_string(gateway.dir().join("our.crt")).unwrap(), to, name)
}

/// The same at this door, of which the word of this authority is believed.
pub fn tls_at(door: SocketAddr, authority: &str, to: &str, name: &str) -> Tls {
    let stream = connect(door, to);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(roots(authority)).with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

/// A tunnel through a proxy door.
fn connect(door: SocketAddr, to: &str) -> TcpStream {
    let mut stream = TcpStream::connect(door).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "CONNECT {to} HTTP/1.0\r\n\r\n").unwrap();
    let mut head = [0; "HTTP/1.1 200 Connection established\r\n\r\n".len()];
    stream.read_exact(&mut head).unwrap();
    stream
}

/// Asks once, and gives the status and all that is answered.
pub fn exchange(mut tls: Tls, head: &str, body: &str) -> (u16, String) {
    write!(tls, "{head}Connection: close\r\n\r\n{body}").unwrap();
    let mut all = Vec::new();
    let _ = tls.read_to_end(&mut all);
    let all = String::from_utf8_lossy(&all).into_owned();
    (all.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default(), all)
}

pub fn roots(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    roots
}

#[test]
fn what_is_looked_into_passes_the_same_chain_and_arrives_whole() {
    let world = World::new(|_| ok());
    let body = "x".repeat(200_000);
    let target = "/_matrix/push/v1/other?x=%7e;/..//y";
    let (status, all) = world.ask(
        "push.test",
        &format!("POST {target}"),
        "User-Agent: Synapse/1.163.2\r\nX-Other: kept\r\nTE: trailers\r\n",
        &body,
    );
    assert_eq!(status, 200, "{all}");
    let arrived = world.backend.last().unwrap();
    assert_eq!((arrived.method.as_str(), arrived.target_text().as_str()), ("POST", target));
    assert!(arrived.body == body.as_bytes());
    let mut fields: Vec<_> = arrived.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["content-length", "host", "user-agent", "x-other"]);
    assert_eq!(arrived.header("user-agent"), Some("Synapse"));
    // In TLS, to whom it is for.
    assert_eq!(world.front.names(), ["push.test"]);
    let records = world.gateway.records(1);
    let of = |field: &str| records[0][field].as_str().unwrap_or("-").to_owned();
    assert_eq!(["flow", "upstream", "decision", "method"].map(of), ["egress", "(web)", "permit", "POST"]);
    assert_eq!((records.len(), records[0]["tls"].as_bool()), (1, Some(true)));
    assert_eq!(world.gateway.metric("mantlet_tunnels_total{outcome=\"intercepted\"}"), 1.0);
    assert!(!world.gateway.written().contains("push.test"));
}

#[test]
fn a_name_with_an_underscore_is_looked_into_as_any() {
    let world = World::new(|_| ok());
    assert_eq!(world.ask("my_site.test", "PUT /report-usage-stats/push", "", "{}").0, 200);
    assert!(world.backend.requests().is_empty());
    assert_eq!(world.ask("my_site.test", "GET /page", "", "").0, 200);
    assert_eq!((world.backend.requests().len(), world.front.names()), (1, vec!["my_site.test".to_owned()]));
}

#[test]
fn statistics_and_unbinding_are_answered_here() {
    let world = World::new(|_| ok());
    let stats = world.ask("stats.test", "PUT /report-usage-stats/push", "", "{\"total_users\":7}");
    assert!(stats.0 == 200 && stats.1.ends_with("\r\n\r\n{}"), "{}", stats.1);
    for path in ["/_matrix/identity/v2/3pid/unbind", "/_matrix/identity/api/v1/3pid/unbind"] {
        let (status, all) = world.ask("push.test", &format!("POST {path}"), "", "{\"mxid\":\"@a:b\"}");
        assert_eq!(status, 404);
        assert!(all.to_lowercase().contains("content-type: text/plain") && !all.contains("errcode"), "{all}");
    }
    // Nobody was asked, nor connected to.
    assert!(world.backend.requests().is_empty() && world.front.names().is_empty());
    let records = world.gateway.records(3);
    let rules: Vec<_> = records.iter().map(|record| record["rule"].as_str().unwrap_or("-")).collect();
    assert_eq!(rules, ["usage_stats", "threepid_unbind", "threepid_unbind"]);
    assert_eq!(world.ask("stats.test", "PUT /report-usage-stats/other", "", "{}").0, 200);
    assert_eq!(world.backend.requests().len(), 1);
}

#[test]
fn of_what_synapse_tells_others_less_arrives() {
    let world = World::new(|_| ok());
    let arrived = |target: &str, content_type: &str, body: &str| {
        let fields = format!("Content-Type: {content_type}\r\n");
        assert_eq!(world.ask("push.test", &format!("POST {target}"), &fields, body).0, 200, "{target}");
        let arrived = world.backend.last().unwrap();
        assert_eq!(arrived.header("content-length"), Some(&*arrived.body.len().to_string()));
        assert_eq!((arrived.target_text().as_str(), arrived.header("content-type")), (target, Some(content_type)));
        String::from_utf8(arrived.body).unwrap()
    };
    let secret = "\u{e9}".repeat(100_000);
    let notification = format!(
        r#"{{"notification":{{"event_id":"$e","room_id":"!r","prio":"high","sender":"@a:b","content":{{"body":"{secret}"}},"devices":[{{"app_id":"a","pushkey":"k","tweaks":{{"sound":"x"}}}}]}}}}"#
    );
    assert_eq!(
        arrived("/_matrix/push/v1/notify", "application/json", &notification),
        r#"{"notification":{"event_id":"$e","room_id":"!r","prio":"high","devices":[{"app_id":"a","pushkey":"k"}]}}"#
    );
    let form = "application/x-www-form-urlencoded";
    assert_eq!(
        arrived("/recaptcha/api/siteverify", form, "secret=s&remoteip=192.0.2.7&response=r"),
        "secret=s&response=r"
    );
    assert_eq!(arrived("/turnstile/v0/siteverify", form, "remoteip=192.0.2.7&response=r"), "response=r");
    assert_eq!(arrived("/recaptcha/api/other", form, "secret=s&remoteip=192.0.2.7"), "secret=s&remoteip=192.0.2.7");
    assert_eq!(arrived("/_matrix/identity/api/v1/validate/msisdn/requestToken", form, "{ }"), "{ }");
    let before = world.backend.requests().len();
    let too_large = "x".repeat(512 * 1024 + 1);
    assert_eq!(world.ask("push.test", "POST /_matrix/push/v1/notify", "", &too_large).0, 413);
    for (line, status) in [
        ("POST /_matrix/identity/v2/lookup", 403),
        ("POST /x/../y/_matrix/identity/v2/3pid/bind", 403),
        ("POST /x?y=/_matrix/identity/v2/store-invite", 403),
        ("GET /_matrix/identity/v2/hash_details?access_token=t", 403),
        ("POST /_matrix/identity/api/v1/bulk_lookup", 404),
        ("GET /_matrix/identity/api/v1/lookup?medium=email&address=a", 404),
    ] {
        assert_eq!(world.ask("push.test", line, "", "").0, status, "{line}");
    }
    assert_eq!(world.backend.requests().len(), before);
    assert!(
        world.gateway.records(8).iter().any(|record| record["rule"] == "identity_servers" && record["status"] == 403)
    );
}

#[test]
fn the_reserved_name_is_answered_here_whatever_is_asked_and_whatever_the_policy_says() {
    let world = World::new(|_| ok());
    let deny =
        "[egress]\ndefault = \"deny\"\n[[egress.destination]]\nhost = \"unbind.mantlet.invalid\"\naction = \"deny\"\n";
    for (policy, rule) in [
        (POLICY.to_owned(), "threepid_unbind"),
        (format!("[rules.threepid_unbind]\nmode = \"report\"\n{deny}"), "threepid_unbind"),
        (format!("[rules.usage_stats]\n{deny}"), "egress"),
    ] {
        std::fs::write(world.gateway.policy_file(), policy).unwrap();
        world.gateway.reloader().reload(Trigger::Command).unwrap();
        // 443 is none of this door's ports.
        for line in ["POST /_matrix/identity/v2/3pid/unbind", "POST /x/_matrix/identity/v2/lookup", "GET /"] {
            let mut tls = world.tls_at("unbind.mantlet.invalid:443", "unbind.mantlet.invalid");
            write!(
                tls,
                "{line} HTTP/1.1\r\nHost: unbind.mantlet.invalid\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
            )
            .unwrap();
            let mut all = String::new();
            let _ = tls.read_to_string(&mut all);
            assert!(
                all.starts_with("HTTP/1.1 404") && all.to_lowercase().contains("content-type: text/plain"),
                "{all}"
            );
        }
        let records = world.gateway.records_with(|record| record["rule"] == rule);
        let record = records.iter().rev().find(|record| record["rule"] == rule).unwrap();
        assert_eq!((record["decision"].as_str(), record["status"].as_u64()), (Some("answer"), Some(404)));
    }
    assert!(world.backend.requests().is_empty() && world.front.names().is_empty());
    assert!(!world.gateway.written().contains("invalid"));
}

/// Synapse writes a head and then a body, and unbinds at two servers one directly after the other.
#[test]
fn who_is_answered_here_before_its_body_came_asks_again_on_the_same_connection() {
    let world = World::new(|_| ok());
    let name = "unbind.mantlet.invalid";
    let mut tls = BufReader::new(world.tls_at(&format!("{name}:443"), name));
    for _ in 0..3 {
        let head =
            format!("POST /_matrix/identity/v2/3pid/unbind HTTP/1.1\r\nHost: {name}\r\nContent-Length: 2\r\n\r\n");
        tls.get_mut().write_all(head.as_bytes()).unwrap();
        let head: Vec<_> = tls.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
        assert!(head[0].starts_with("HTTP/1.1 404"), "{head:?}");
        assert!(!head.iter().any(|field| field.to_lowercase().starts_with("connection:")), "{head:?}");
        let length = head.iter().find_map(|field| field.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        tls.read_exact(&mut vec![0; length.unwrap()]).unwrap();
        tls.get_mut().write_all(b"{}").unwrap();
    }
}

#[test]
fn check_says_when_unbinding_is_left_open() {
    let dir = tempfile::tempdir().unwrap();
    let check = |gateway: &str, arguments: &[&str]| {
        std::fs::write(dir.path().join("mantlet.toml"), gateway).unwrap();
        let told = process::run(dir.path(), arguments);
        assert_eq!(told.code, Some(0), "{told:?}");
        told.out.lines().find(|line| line.starts_with("  open   threepid_unbind: ")).map(str::to_owned)
    };
    let (ingress, proxy) =
        ("door = \"ingress\"\nbind = \"127.0.0.1:0\"\n", "door = \"proxy\"\nbind = \"127.0.0.1:0\"\n");
    let alone = check(&format!("[[listener]]\n{ingress}"), &["check"]).unwrap();
    assert!(alone.ends_with("there is no proxy door"), "{alone}");
    let both = format!("[[listener]]\n{ingress}[[listener]]\n{proxy}");
    let without = check(&both, &["check"]).unwrap();
    assert!(without.ends_with("[egress.ca] names no authority"), "{without}");
    assert_eq!(check(&both, &["check", "--policy", "balanced"]), None);
    authority(dir.path(), &["push.test", "matrix.org", "matrix-federation.matrix.org", "vector.im"]);
    let whole = format!("{both}[egress.ca]\ncertificate = \"our.crt\"\nkey = \"our.key\"\n");
    assert_eq!(check(&whole, &["check"]), None);
}

#[test]
fn whoever_cannot_be_known_is_not_asked() {
    let world = World::new(|_| ok());
    let (status, all) = world.ask("bad.test", "GET /", "", "");
    assert!(status == 502 && all.contains("certificate"), "{all}");
    assert!(world.backend.requests().is_empty());
    assert_eq!(world.gateway.records(1)[0]["error"], "origin_untrusted");
}

#[test]
fn in_a_hosts_place_nothing_is_asked_of_another() {
    let world = World::new(|_| ok());
    let port = world.front.addr().port();
    for head in [
        "GET / HTTP/1.1\r\nHost: stats.test\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: stats.test:{port}\r\n\r\n"),
        "GET / HTTP/1.1\r\nHost: push.test\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: push.test:{port}\r\nHost: push.test:{port}\r\n\r\n"),
        format!("GET http://stats.test:{port}/ HTTP/1.1\r\nHost: push.test:{port}\r\n\r\n"),
        format!("CONNECT stats.test:{port} HTTP/1.1\r\nHost: push.test:{port}\r\n\r\n"),
    ] {
        let mut tls = world.tls("push.test", "push.test");
        tls.write_all(head.as_bytes()).unwrap();
        let mut answer = [0; 12];
        tls.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 400", "{head}");
    }
    // Nor is a certificate shown for another.
    for name in ["stats.test", "tunnel.test", "sub.push.test"] {
        let mut tls = world.tls("push.test", name);
        assert!(tls.write_all(b"GET / HTTP/1.1\r\n").and_then(|()| tls.flush()).is_err(), "{name}");
    }
    assert!(world.backend.requests().is_empty() && world.front.names().is_empty());
}

#[test]
fn certificates_are_made_anew_before_they_end_and_when_the_clock_went_back_and_a_policy_that_wants_too_much_stays_out()
{
    let world = World::new(|_| ok());
    let shown = || {
        let mut tls = world.tls("push.test", "push.test");
        tls.write_all(b"G").and_then(|()| tls.flush()).unwrap();
        tls.conn.peer_certificates().unwrap()[0].clone()
    };
    let first = shown();
    let day = Duration::from_secs(24 * 3600);
    world.gateway.reloader().renew_leaves(SystemTime::now() + 2 * day);
    assert!(shown() == first);
    world.gateway.reloader().renew_leaves(SystemTime::now() + 4 * day);
    let second = shown();
    assert!(second != first);
    // They were made in what is the future now.
    world.gateway.reloader().renew_leaves(SystemTime::now() - day);
    assert!(shown() != second);
    let ends = world.gateway.metric("mantlet_interception_certificate_not_after_timestamp_seconds");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(ends > now + 6.0 * 86_400.0 && ends <= now + 7.0 * 86_400.0);
    let more = format!("{POLICY}[[egress.destination]]\nhost = \"tunnel.test\"\naction = \"intercept\"\n");
    std::fs::write(world.gateway.policy_file(), more).unwrap();
    let refused = world.gateway.reloader().reload(Trigger::Command).unwrap_err();
    assert!(refused.problems.to_string().contains("was not made for tunnel.test"), "{}", refused.problems);
    assert_eq!(refused.generation, 1);
}

#[test]
fn an_authority_that_is_made_anew_is_believed_without_a_restart_and_a_bad_one_changes_nothing() {
    let world = World::new(|_| ok());
    let told = || world.gateway.reloader().reload(Trigger::Command);
    assert_eq!(told().unwrap().message, "the policy is unchanged");
    let before = std::fs::read(world.gateway.dir().join("our.crt")).unwrap();
    authority(world.gateway.dir(), &HOSTS_AND_TUNNEL);
    let reloaded = told().unwrap();
    assert_eq!(reloaded.message, "the policy is unchanged; the authority is new, and Synapse has to believe it");
    assert_eq!(reloaded.generation, 1);
    // Only the new one's word is believed.
    assert_eq!(world.ask("push.test", "GET /x", "", "").0, 200);
    let more = format!("{POLICY}[[egress.destination]]\nhost = \"tunnel.test\"\naction = \"intercept\"\n");
    std::fs::write(world.gateway.policy_file(), more).unwrap();
    assert_eq!(told().unwrap().generation, 2);
    assert_eq!(world.ask("tunnel.test", "GET /x", "", "").0, 200);
    // A certificate that is not the key's.
    let good = std::fs::read(world.gateway.dir().join("our.crt")).unwrap();
    std::fs::write(world.gateway.dir().join("our.crt"), before).unwrap();
    let refused = told().unwrap_err();
    assert_eq!(refused.message, "the new policy is refused, the old one stays");
    assert!(refused.problems.to_string().contains("our.crt"), "{}", refused.problems);
    std::fs::write(world.gateway.dir().join("our.crt"), good).unwrap();
    assert_eq!(world.ask("push.test", "GET /x", "", "").0, 200);
}

#[test]
fn whoever_says_nothing_where_it_is_looked_into_asked_nobody() {
    let world = World::within("handshake = \"100ms\"", |_| ok());
    assert_ended(connect(world.gateway.addr(), &format!("push.test:{}", world.front.addr().port())));
    let record = &world.gateway.records(1)[0];
    assert_eq!((record["decision"].as_str(), record["upstream"].as_str()), (Some("cancelled"), None));
    assert_eq!(world.gateway.metric("mantlet_tunnels_total{outcome=\"cancelled\"}"), 1.0);
    assert_eq!(world.gateway.metric("mantlet_egress_contacts_total{cause=\"other\",verdict=\"failed\"}"), 1.0);
}

#[test]
fn a_reload_ends_a_tunnel_to_a_host_that_is_looked_into_from_then_on() {
    let world = World::new(|_| ok());
    let to = format!("tunnel.test:{}", world.front.addr().port());
    let outside = std::fs::read_to_string(world.gateway.dir().join("ca.crt")).unwrap();
    let mut tunnel = outside::tls(connect(world.gateway.addr(), &to), "tunnel.test", &outside);
    tunnel.write_all(b"GET /x HTTP/1.1\r\n").and_then(|()| tunnel.flush()).unwrap();
    authority(world.gateway.dir(), &HOSTS_AND_TUNNEL);
    let more = format!("{POLICY}[[egress.destination]]\nhost = \"tunnel.test\"\naction = \"intercept\"\n");
    std::fs::write(world.gateway.policy_file(), more).unwrap();
    world.gateway.reloader().reload(Trigger::Command).unwrap();
    assert_ended(tunnel.sock);
    assert_eq!(world.ask("tunnel.test", "GET /x", "", "").0, 200);
}

#[test]
fn without_an_authority_a_host_is_tunnelled_or_refused_as_the_policy_says() {
    let tunnelled = "without_authority = \"tunnel\"";
    for (unread, status) in [(tunnelled, "200"), ("without_authority = \"deny\"", "403")] {
        let (dns, outside) = (Dns::start(), Authority::new().unwrap());
        let backend = Backend::start(|_| ok()).unwrap();
        let front = TlsFront::start(&outside, &["push.test"], "127.0.1.1:0".parse().unwrap(), backend.addr());
        dns.address("push.test", "127.0.1.1");
        let dir = tempfile::tempdir().unwrap();
        let policy = format!(
            "[rules.usage_stats]\n[[egress.destination]]\nhost = \"push.test\"\naction = \"intercept\"\n{unread}\n"
        );
        std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
        let text = format!(
            "[[listener]]\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\nports = [{}]\n[policy]\nfile = \"policy.toml\"\n\
             [egress]\nnameservers = [\"{}\"]\n[egress.addresses]\nallow = [\"127.0.1.0/24\"]\n",
            front.addr().port(),
            dns.addr()
        );
        let gateway = Gateway::load(dir, &text, |_| {});
        let mut stream = TcpStream::connect(gateway.addr()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "CONNECT push.test:{} HTTP/1.0\r\n\r\n", front.addr().port()).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head[9..], status.as_bytes());
        if unread == tunnelled {
            // The far side's own certificate is what is seen: nobody stands between.
            let mut rest = [0; "Connection established\r\n\r\n".len() + 1];
            stream.read_exact(&mut rest).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            let config = builder.with_root_certificates(roots(&outside.pem())).with_no_client_auth();
            let name = ServerName::try_from("push.test").unwrap();
            let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream);
            tls.write_all(b"PUT /report-usage-stats/push HTTP/1.1\r\nHost: push.test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").unwrap();
            let mut answer = [0; "HTTP/1.1 200".len()];
            tls.read_exact(&mut answer).unwrap();
            assert!(&answer == b"HTTP/1.1 200" && backend.last().is_some());
        }
    }
}
