//! A network that is left through a proxy: what that proxy is asked, and what it is not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::thread;

use mantlet::config::egress::Ports;
use mantlet::server::reload::Trigger;
use mantlet_testkit::backend::Backend;
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::Request;

use crate::common::{SOON, eventually, ok};
use crate::notary::private;
use crate::process;
use crate::support::Gateway;
use crate::support::outside::{self, Dns, TlsFront};

/// A proxy that connects to whatever it is asked for, if it is shown `corp:pass word`.
struct Parent {
    addr: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Parent {
    fn start() -> Parent {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&heads);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = Arc::clone(&kept);
                thread::spawn(move || serve(stream, &kept));
            }
        });
        Parent { addr, heads }
    }

    /// What it was asked, the newest last.
    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn serve(mut near: TcpStream, heads: &Mutex<Vec<String>>) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && near.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    heads.lock().unwrap().push(head.clone());
    let to = head.split(' ').nth(1).unwrap_or_default().to_owned();
    if !head.contains("\r\nProxy-Authorization: Basic Y29ycDpwYXNzIHdvcmQ=\r\n") {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 4\r\n\r\nhtml";
        return drop(near.write_all(refusal.as_bytes()));
    }
    let Ok(mut far) = TcpStream::connect(to) else {
        return drop(near.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"));
    };
    near.write_all(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 parent\r\n\r\n").unwrap();
    let (mut there, mut back) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let copying = thread::spawn(move || std::io::copy(&mut there, &mut back));
    let _ = std::io::copy(&mut far, &mut near);
    let _ = near.shutdown(std::net::Shutdown::Both);
    let _ = copying.join();
}

/// A door that leads out through the parent, and `hs.test` behind it, at 127.0.1.1.
struct World {
    gateway: Gateway,
    parent: Parent,
    /// What is before the parent, if it is in TLS.
    tls: Option<TlsFront>,
    dns: Dns,
    backend: Backend,
    front: TlsFront,
}

impl World {
    fn new(door: &str, egress: &str) -> World {
        World::behind(door, egress, &Authority::new().unwrap(), None)
    }

    /// The same, where this authority vouches for `hs.test`; and with a parent in TLS, if there is a certificate for it: by whose
    /// word, and for which name.
    fn behind(door: &str, egress: &str, authority: &Authority, in_tls: Option<(&Authority, &str)>) -> World {
        let (dns, parent) = (Dns::start(), Parent::start());
        let tls = in_tls.map(|(by, name)| TlsFront::start(by, &[name], "127.0.0.1:0".parse().unwrap(), parent.addr));
        let (scheme, at) = tls.as_ref().map_or(("http", parent.addr), |tls| ("https", tls.addr()));
        let backend = Backend::start(|_| ok()).unwrap();
        let front = TlsFront::start(authority, &["hs.test"], "127.0.1.1:0".parse().unwrap(), backend.addr());
        dns.address("hs.test", "127.0.1.1");
        dns.address("plain.test", "127.0.0.1");
        dns.address("parent.test", "127.0.0.1");
        let dir = tempfile::tempdir().unwrap();
        authority.write(dir.path()).unwrap();
        for (name, text) in [("secret", "hook-secret"), ("credentials", "corp:pass word\n")] {
            std::fs::write(dir.path().join(name), text).unwrap();
            std::fs::set_permissions(dir.path().join(name), PermissionsExt::from_mode(0o600)).unwrap();
        }
        let text = format!(
            "[[listener]]\nbind = \"127.0.0.1:0\"\nextra_roots = [\"ca.crt\"]\n{}\n[upstream.synapse]\nservers = [\"http://127.0.0.1:9\"]\n\
             [egress]\nnameservers = [\"{}\"]\nnext_hop = \"{scheme}://parent.test:{}\"\n{egress}\n\
             [egress.addresses]\nallow = [\"127.0.1.0/24\", \"plain.test\"]\n",
            door.replace("PORTS", &format!("ports = [{}, {}]", front.addr().port(), backend.addr().port())),
            dns.addr(),
            at.port(),
        );
        let ports = Ports { https: front.addr().port(), federation: front.addr().port() };
        let gateway = Gateway::load(dir, &text, |config| config.egress.ports = ports);
        World { gateway, parent, tls, dns, backend, front }
    }

    /// `hs.test` and its port.
    fn server(&self) -> String {
        format!("hs.test:{}", self.front.addr().port())
    }

    /// The status that Synapse gets for its CONNECT.
    fn connect(&self, to: &str) -> (u16, TcpStream) {
        let mut stream = TcpStream::connect(self.gateway.addr()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "CONNECT {to} HTTP/1.0\r\n\r\n").unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        (String::from_utf8_lossy(&head[9..]).parse().unwrap(), stream)
    }

    /// What Synapse gets from a server through the federation door.
    fn ask(&self) -> u16 {
        let server = self.server();
        let signed = format!("X-Matrix origin=\"here.test\",key=\"ed25519:a\",sig=\"c2ln\",destination=\"{server}\"");
        let request = Request::new("GET", format!("matrix-federation://{server}/_matrix/federation/v1/version"));
        let request = request.header("Authorization", signed).header("Proxy-Authorization", "Bearer hook-secret");
        request.timeout(SOON).send(self.gateway.addr()).status
    }
}

const PROXY: &str = "door = \"proxy\"\nPORTS";
const FEDERATION: &str = "door = \"federation\"\nsecret_file = \"secret\"";
const ALL: &str = "next_hop_credentials = \"credentials\"\nnext_hop_except = []";

#[test]
fn other_servers_are_reached_through_it_by_the_address_that_was_looked_at() {
    let world = World::new(FEDERATION, ALL);
    assert_eq!(world.ask(), 200);
    assert_eq!(world.backend.last().unwrap().header("host"), Some(&*world.server()));
    let at = format!("127.0.1.1:{}", world.front.addr().port());
    let asked =
        format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\nProxy-Authorization: Basic Y29ycDpwYXNzIHdvcmQ=\r\n\r\n");
    assert_eq!(world.parent.heads(), [asked]);
    // In TLS, known by its certificate: the parent sees none of it.
    assert_eq!(world.front.names(), ["hs.test"]);
}

#[test]
fn tunnels_and_what_is_in_the_clear_pass_it_too() {
    let world = World::new(PROXY, ALL);
    let (status, _stream) = world.connect(&world.server());
    assert_eq!(status, 200);
    let place = format!("plain.test:{}", world.backend.addr().port());
    let request = Request::new("GET", format!("http://{place}/x")).header("Host", &place).timeout(SOON);
    assert_eq!(request.send(world.gateway.addr()).status, 200);
    assert_eq!(world.backend.last().unwrap().target_text(), "/x");
    let heads = world.parent.heads();
    let asked: Vec<_> = heads.iter().filter_map(|head| head.split(' ').nth(1)).collect();
    let (tunnel, clear) = (world.front.addr(), world.backend.addr());
    assert_eq!(asked, [tunnel.to_string(), clear.to_string()]);
}

#[test]
fn one_in_tls_is_known_by_its_certificate_and_asked_the_same() {
    let authority = Authority::new().unwrap();
    let behind = |door| World::behind(door, ALL, &authority, Some((&authority, "parent.test")));
    let world = behind(FEDERATION);
    assert_eq!(world.ask(), 200);
    assert_eq!(world.backend.last().unwrap().header("host"), Some(&*world.server()));
    let at = format!("127.0.1.1:{}", world.front.addr().port());
    let asked =
        format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\nProxy-Authorization: Basic Y29ycDpwYXNzIHdvcmQ=\r\n\r\n");
    assert_eq!(world.parent.heads(), [asked]);
    assert_eq!(world.tls.as_ref().unwrap().names(), ["parent.test"]);
    assert_eq!(world.front.names(), ["hs.test"]);

    let world = behind(PROXY);
    let (status, mut stream) = world.connect(&world.server());
    assert_eq!(status, 200);
    let mut rest = [0; " Connection established\r\n\r\n".len()];
    stream.read_exact(&mut rest).unwrap();
    // More than one record, both ways.
    let (large, mut answer) = ("x".repeat(100_000), Vec::new());
    let mut inner = outside::tls(stream, "hs.test", &authority.pem());
    let head = format!("POST /large HTTP/1.1\r\nHost: hs.test\r\nContent-Length: {}\r\n\r\n", large.len());
    inner.write_all(head.as_bytes()).unwrap();
    inner.write_all(large.as_bytes()).unwrap();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        inner.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(world.backend.last().unwrap().body, large.as_bytes());
    let place = format!("plain.test:{}", world.backend.addr().port());
    let request = Request::new("GET", format!("http://{place}/x")).header("Host", &place).timeout(SOON);
    assert_eq!(request.send(world.gateway.addr()).status, 200);
    assert_eq!((world.parent.heads().len(), world.tls.as_ref().unwrap().names().len()), (2, 2));
}

#[test]
fn one_in_tls_with_a_certificate_that_is_not_for_it_is_told_nothing() {
    let (authority, stranger) = (Authority::new().unwrap(), Authority::new().unwrap());
    for by_whose_word in [(&authority, "other.test"), (&stranger, "parent.test")] {
        let world = World::behind(FEDERATION, ALL, &authority, Some(by_whose_word));
        assert_eq!((world.ask(), world.parent.heads().len(), world.backend.requests().len()), (502, 0, 0));
    }
}

#[test]
fn what_may_not_be_reached_is_not_asked_of_it() {
    let world = World::new(PROXY, ALL);
    let port = world.front.addr().port();
    for (name, address) in [("private.test", "10.0.0.1"), ("loop.test", "127.0.0.1"), ("cloud.test", "169.254.169.254")]
    {
        world.dns.address(name, address);
        assert_eq!(world.connect(&format!("{name}:{port}")).0, 502, "{name}");
    }
    assert_eq!(world.connect(&format!("10.0.0.1:{port}")).0, 502);
    assert!(world.parent.heads().is_empty(), "{:?}", world.parent.heads());
}

#[test]
fn what_is_not_public_or_is_excepted_goes_past_it() {
    for egress in ["", "next_hop_except = [\"hs.test\"]", "next_hop_except = [\"127.0.1.0/24\"]"] {
        let world = World::new(FEDERATION, egress);
        assert_eq!(world.ask(), 200, "{egress}");
        assert!(world.parent.heads().is_empty(), "{egress}: {:?}", world.parent.heads());
    }
}

#[test]
fn one_that_refuses_or_is_gone_is_as_a_server_that_is_down() {
    let world = World::new(FEDERATION, "next_hop_except = []");
    assert_eq!((world.ask(), world.backend.requests().len()), (502, 0));
    assert_eq!(world.parent.heads().len(), 1);
    assert!(!world.parent.heads()[0].contains("Proxy-Authorization"));
    let gone = World::new(FEDERATION, "next_hop_except = []");
    gone.dns.remove("parent.test");
    assert_eq!((gone.ask(), gone.parent.heads().len()), (502, 0));
}

#[test]
fn new_credentials_are_shown_without_a_restart_and_bad_ones_are_not_taken() {
    let world = World::new(FEDERATION, ALL);
    let (file, reload) =
        (world.gateway.dir().join("credentials"), || world.gateway.reloader().reload(Trigger::Command));
    let shown = || {
        let heads = world.parent.heads();
        let line = heads.last().unwrap().lines().find_map(|line| line.strip_prefix("Proxy-Authorization: Basic "));
        line.unwrap().to_owned()
    };
    private(&file, "corp:old\n");
    let told = "the policy is unchanged; the next hop is shown new credentials";
    assert_eq!(reload().unwrap().message, told);
    assert_eq!((world.ask(), shown().as_str()), (502, "Y29ycDpvbGQ="));
    assert_eq!(reload().unwrap().message, "the policy is unchanged");
    private(&file, "hidden");
    let refused = reload().unwrap_err();
    assert_eq!(refused.message, "the policy is unchanged; a new secret is refused, the old one stays");
    let problems = refused.problems.to_string();
    assert!(problems.contains("does not hold a user and a password") && !problems.contains("hidden"), "{problems}");
    assert_eq!((world.ask(), shown().as_str()), (502, "Y29ycDpvbGQ="));
    // Nobody has to ask for it. Twice, for all files are looked at once soon after the start.
    private(&file, "corp:other\n");
    eventually("the file is looked at", || world.ask() == 502 && shown() == "Y29ycDpvdGhlcg==");
    private(&file, "corp:pass word\n");
    eventually("the file is looked at", || world.ask() == 200);
}

#[test]
fn what_is_said_of_it_is_checked_and_its_credentials_are_never_told() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str, mode| {
        std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::set_permissions(dir.path().join(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    write("open", "corp:hidden", 0o644);
    write("odd", "hidden", 0o600);
    write("good", "corp:hidden", 0o600);
    let good = "next_hop = \"http://proxy.corp:3128\"";
    for (egress, words) in [
        ("next_hop = \"socks5://proxy.corp:3128\"".to_owned(), "is not the URL of a proxy that is asked in HTTP"),
        ("next_hop = \"http://corp:hidden@proxy.corp:3128\"".to_owned(), "takes no user or password"),
        ("next_hop_credentials = \"good\"".to_owned(), "belongs to a next hop, and there is none"),
        (format!("{good}\nnext_hop_credentials = \"open\""), "is open to other users"),
        (format!("{good}\nnext_hop_credentials = \"odd\""), "does not hold a user and a password"),
        (format!("{good}\nnext_hop_credentials = \"gone\""), "does not exist"),
        (format!("{good}\nnext_hop_except = [\"a/b\"]"), "is no host, address or network"),
        ("next_hop = \"https://proxy.corp:3129\"".to_owned(), ""),
        (format!("{good}\nnext_hop_credentials = \"good\"\nnext_hop_except = [\"10.0.0.0/8\"]"), ""),
    ] {
        write("mantlet.toml", &format!("[egress]\n{egress}\n"), 0o644);
        let ran = process::run(dir.path(), &["check"]);
        let is_good = words.is_empty();
        assert!(ran.code == Some(i32::from(!is_good)) && (is_good || ran.err.contains(words)), "{egress}: {ran:?}");
        assert!(!ran.err.contains("hidden") && !ran.out.contains("hidden"), "{ran:?}");
    }
}
