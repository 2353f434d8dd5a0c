//! Doors: which certificate is shown, to whom, and how it is replaced; sockets of other kinds; whom a hop names.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mantlet::server::reload::Trigger;
use mantlet_testkit::certificate::{Authority, Leaf};
use mantlet_testkit::http::{Connection, Request, raw};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::common::*;
use crate::process::{Process, Site};
use crate::support::Gateway;

const CLOSED: &str = "[[rules.closed_endpoint]]\nendpoint = \"get_supported_versions\"\n";

fn der(leaf: &Leaf) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap()
}

/// What a client that believes this authority agrees on; with a certificate of its own, if it has one.
fn client(authority: &Authority, own: Option<&Leaf>) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![der(leaf)], key).unwrap()
        }
    };
    // Each handshake shows a certificate.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// Asks for a name and for [`VERSIONS`]; the certificate that was shown, and the answer.
fn ask(
    to: SocketAddr,
    name: &'static str,
    client: &Arc<rustls::ClientConfig>,
) -> std::io::Result<(CertificateDer<'static>, String)> {
    let connection = rustls::ClientConnection::new(Arc::clone(client), ServerName::try_from(name).unwrap()).unwrap();
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut stream = rustls::StreamOwned::new(connection, stream);
    write!(stream, "GET {VERSIONS} HTTP/1.1\r\nHost: hs\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let shown = stream.conn.peer_certificates().unwrap()[0].clone().into_owned();
    Ok((shown, answer))
}

/// The certificate that is shown for a name, on a connection that serves.
#[track_caller]
fn shown(to: SocketAddr, name: &'static str, authority: &Authority) -> CertificateDer<'static> {
    let (shown, answer) = ask(to, name, &client(authority, None)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    shown
}

/// Writes a certificate and its key under these names, each renamed into its place.
fn write(directory: &Path, name: &str, leaf: &Leaf) {
    use std::os::unix::fs::OpenOptionsExt;
    for (end, text) in [("crt", &leaf.certificate), ("key", &leaf.key)] {
        let new = directory.join("new");
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
        file.unwrap().write_all(text.as_bytes()).unwrap();
        std::fs::rename(new, directory.join(format!("{name}.{end}"))).unwrap();
    }
}

/// A process whose listener shows `a.crt`, and its parts.
fn site(upstream: &str, leaf: &Leaf) -> Site {
    let site = Site::new(upstream, OPEN, "");
    let bind = "127.0.0.1:0\"\ntls = { certificate = \"a.crt\", key = \"a.key\" }\n# \"";
    site.write("mantlet.toml", &site.gateway_file(upstream, bind, ""));
    write(site.path(), "a", leaf);
    site
}

#[test]
fn each_name_gets_its_certificate_and_a_stranger_the_first() {
    let upstream = homeserver();
    let authority = Authority::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let first = authority.issue(&["a.example", "other.example"]).unwrap();
    let second = authority.issue(&["b.example", "*.c.example"]).unwrap();
    write(dir.path(), "a", &first);
    write(dir.path(), "b", &second);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let pair = |name: &str| {
        format!("certificate = \"{}\", key = \"{}\"", path(&format!("{name}.crt")), path(&format!("{name}.key")))
    };
    let list = format!("tls = [{{ {} }}, {{ {} }}]", pair("a"), pair("b"));
    let tables = ["a", "b"].map(|name| format!("[[listener.tls]]\n{}", pair(name).replace(", ", "\n"))).join("\n");
    for tls in [list, tables] {
        let gateway = Gateway::with_listener(&url(&upstream), OPEN, &tls, "");
        for (name, leaf) in
            [("a.example", &first), ("b.example", &second), ("x.c.example", &second), ("other.example", &first)]
        {
            assert!(shown(gateway.addr(), name, &authority) == der(leaf), "{name}");
        }
        let unknown = ask(gateway.addr(), "unknown.example", &client(&authority, None)).unwrap_err();
        assert!(
            unknown.to_string().contains("a.example"),
            "the first is shown, and the client sees that it is not for it: {unknown}"
        );
    }
}

#[test]
fn a_new_certificate_is_shown_without_a_restart_and_a_bad_one_keeps_the_old() {
    let upstream = homeserver();
    let authority = Authority::new().unwrap();
    let leaves: Vec<_> = (0..3).map(|_| authority.issue(&["hs.example"]).unwrap()).collect();
    let site = site(&url(&upstream), &leaves[0]);
    let process = site.start();
    let is_shown = |leaf: &Leaf| shown(process.addr(), "hs.example", &authority) == der(leaf);
    let is_last_good = || process.metric("mantlet_tls_certificate_last_reload_successful{listener=\"test\"}");
    assert!(is_shown(&leaves[0]));
    write(site.path(), "a", &leaves[1]);
    eventually("the change is noticed", || is_shown(&leaves[1]));

    // A key that belongs to another certificate, a file that is cut, none at all.
    let key = || std::fs::read(site.path().join("a.key")).unwrap();
    let good = (std::fs::read(site.path().join("a.crt")).unwrap(), key());
    for (broken, words) in [
        (leaves[2].certificate.clone().into_bytes(), "does not belong to the certificate"),
        (good.0[..good.0.len() / 2].to_vec(), "is not valid PEM"),
        (Vec::new(), "there is no certificate in"),
    ] {
        std::fs::write(site.path().join("a.crt"), broken).unwrap();
        let ran = site.run(&["reload"]);
        assert!(ran.code == Some(1) && ran.out.contains("listener test: ") && ran.out.contains(words), "{ran:?}");
        assert!(ran.out.contains("a new certificate is refused, the old one stays"), "{ran:?}");
        assert_eq!(is_last_good(), Some(0.0));
        assert!(is_shown(&leaves[1]));
        process.wait_log("it is told", |line| {
            line["level"] == "ERROR" && line["problem"].as_str().is_some_and(|problem| problem.contains(words))
        });
    }
    std::fs::remove_file(site.path().join("a.crt")).unwrap();
    assert!(site.run(&["reload"]).out.contains("does not exist"));
    assert!(is_shown(&leaves[1]));
    assert_eq!(process.metric("mantlet_policy_last_reload_successful"), Some(1.0), "the policy is another affair");

    write(site.path(), "a", &leaves[2]);
    let ran = site.run(&["reload"]);
    // The watch may have been faster.
    assert!(ran.code == Some(0) && ran.out.starts_with("generation 1: the policy is unchanged"), "{ran:?}");
    assert!(is_shown(&leaves[2]));
    assert_eq!(is_last_good(), Some(1.0));
}

#[test]
fn a_bad_certificate_does_not_block_a_good_policy_nor_a_bad_policy_a_good_certificate() {
    let upstream = homeserver();
    let authority = Authority::new().unwrap();
    let (old, new) = (authority.issue(&["hs.example"]).unwrap(), authority.issue(&["hs.example"]).unwrap());
    let site = site(&url(&upstream), &old);
    let process = site.start();
    std::fs::remove_file(site.path().join("a.key")).unwrap();
    site.write("policy.toml", CLOSED);
    process.signal("HUP");
    eventually("the policy is in force", || process.generation() == 2);
    let answer = ask(process.addr(), "hs.example", &client(&authority, None)).unwrap();
    assert!(answer.0 == der(&old) && answer.1.starts_with("HTTP/1.1 403 "), "{}", answer.1);

    site.write("policy.toml", "[rules.none]");
    write(site.path(), "a", &new);
    let ran = site.run(&["reload"]);
    assert!(ran.code == Some(1) && ran.out.contains("the new policy is refused, the old one stays"), "{ran:?}");
    // At once: the watch needs longer than that.
    let answer = ask(process.addr(), "hs.example", &client(&authority, None)).unwrap();
    assert!(answer.0 == der(&new), "the certificate does not wait");
    assert!(answer.1.starts_with("HTTP/1.1 403 "), "the policy stays");
    assert_eq!(process.generation(), 2);
    eventually("it is told", || process.metric("mantlet_policy_last_reload_successful") == Some(0.0));
}

#[test]
fn the_end_of_the_certificate_that_ends_first_is_told_and_follows_a_reload() {
    let upstream = homeserver();
    let site = site(&url(&upstream), &until(2031));
    let process = site.start();
    let end = |process: &Process| {
        process.metric("mantlet_tls_certificate_not_after_timestamp_seconds{listener=\"test\"}").unwrap()
    };
    assert_eq!(end(&process), 1_924_992_000.0);
    write(site.path(), "a", &until(2030));
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(end(&process), 1_893_456_000.0);
}

/// A certificate that ends with that year's first second.
fn until(year: i32) -> Leaf {
    let mut params = rcgen::CertificateParams::new(["hs.example".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    Leaf { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

#[test]
fn a_hundred_handshakes_succeed_while_certificates_are_swapped() {
    const HANDSHAKES: usize = 100;
    let upstream = homeserver();
    let authority = Authority::new().unwrap();
    let leaves = [authority.issue(&["hs.example"]).unwrap(), authority.issue(&["hs.example"]).unwrap()];
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a", &leaves[0]);
    let tls = format!("tls = {{ certificate = \"{0}/a.crt\", key = \"{0}/a.key\" }}", dir.path().display());
    let gateway = Gateway::with_listener(&url(&upstream), OPEN, &tls, "[workers]\ncount = 2");
    let is_over = AtomicBool::new(false);
    let (swaps, refused) = std::thread::scope(|scope| {
        let reloader = Arc::clone(gateway.reloader());
        let (is_over, leaves, dir) = (&is_over, &leaves, dir.path());
        let swapping = scope.spawn(move || {
            let (mut swaps, mut refused) = (0, 0);
            while !is_over.load(Ordering::Relaxed) {
                // Every third time the key is still the other's: what a reader sees between two renames.
                let (n, is_torn) = (swaps % 2, (swaps + refused) % 3 == 2);
                let leaf = &leaves[1 - n];
                let key = if is_torn { &leaves[n].key } else { &leaf.key };
                write(dir, "a", &Leaf { certificate: leaf.certificate.clone(), key: key.clone() });
                match reloader.reload(Trigger::Command) {
                    Ok(_) if !is_torn => swaps += 1,
                    Err(_) if is_torn => refused += 1,
                    other => panic!("{other:?}"),
                }
                if is_torn {
                    write(dir, "a", leaf);
                    reloader.reload(Trigger::Command).unwrap();
                    swaps += 1;
                }
            }
            (swaps, refused)
        });
        let mut seen = [0, 0];
        let client = client(&authority, None);
        for _ in 0..HANDSHAKES {
            let (shown, answer) = ask(gateway.addr(), "hs.example", &client).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            let which = leaves.iter().position(|leaf| der(leaf) == shown).expect("one of the two");
            seen[which] += 1;
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(seen.iter().all(|seen| *seen > 0), "{seen:?}");
        swapping.join().unwrap()
    });
    assert!(swaps > 10 && refused > 3, "{swaps} swaps, {refused} refused");
    assert_eq!(upstream.requests().len(), HANDSHAKES);
    assert_eq!(gateway.metric("mantlet_tls_handshake_failures_total{listener=\"test\"}"), 0.0);
}

#[test]
fn where_client_certificates_are_asked_for_only_their_owners_come_in() {
    let upstream = homeserver();
    let (server, clients) = (Authority::new().unwrap(), Authority::new().unwrap());
    let site = site(&url(&upstream), &server.issue(&["hs.example"]).unwrap());
    site.write("ca.pem", &clients.pem());
    let text = std::fs::read_to_string(site.path().join("mantlet.toml")).unwrap();
    site.write("mantlet.toml", &text.replace("tls = {", "client_ca = \"ca.pem\"\ntls = {"));
    let process = site.start();
    let failures = || process.metric("mantlet_tls_handshake_failures_total{listener=\"test\"}");
    let own = clients.issue(&["client.example"]).unwrap();
    let (_, answer) = ask(process.addr(), "hs.example", &client(&server, Some(&own))).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!((failures(), upstream.requests().len()), (Some(0.0), 1));

    assert!(ask(process.addr(), "hs.example", &client(&server, None)).is_err());
    eventually("one without is counted", || failures() == Some(1.0));
    // Of another authority that has the same name.
    let foreign = Authority::new().unwrap();
    let stranger = client(&server, Some(&foreign.issue(&["client.example"]).unwrap()));
    assert!(ask(process.addr(), "hs.example", &stranger).is_err());
    eventually("and a stranger's", || failures() == Some(2.0));
    assert_eq!(upstream.requests().len(), 1);

    // Another authority may take its place, and a broken file does not open the door.
    site.write("ca.pem", "nothing");
    assert_eq!(site.run(&["reload"]).code, Some(1));
    assert!(ask(process.addr(), "hs.example", &client(&server, None)).is_err());
    assert!(ask(process.addr(), "hs.example", &client(&server, Some(&own))).is_ok());
    site.write("ca.pem", &foreign.pem());
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert!(ask(process.addr(), "hs.example", &stranger).is_ok());
    assert!(ask(process.addr(), "hs.example", &client(&server, Some(&own))).is_err());
}

/// A gateway on a unix socket with further keys for it, before it is started.
fn on_a_socket(upstream: &str, keys: &str, more: &str) -> (Site, std::path::PathBuf) {
    let site = Site::new(upstream, OPEN, "");
    let socket = site.path().join("mantlet.sock");
    let bind = format!("unix:{}\"\n{keys}\n# \"", socket.display());
    site.write("mantlet.toml", &site.gateway_file(upstream, &bind, more));
    (site, socket)
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_unix_socket_serves_and_believes_whom_it_names() {
    let upstream = homeserver();
    let (site, socket) = on_a_socket(&url(&upstream), "", "[workers]\ncount = 3\n[limits]\nper_address = 1");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let mut process = site.start();
    assert_eq!(mode(&socket), 0o660, "the leftover is replaced");
    process.wait_log("it is told", |line| line["address"] == format!("unix:{}", socket.display()));

    let ask = |fields: &[(&str, &str)]| {
        let request = Request::new("GET", VERSIONS);
        let request = fields.iter().fold(request, |request, (name, value)| request.header(name, value));
        assert_eq!(request.send(&socket).status, 200);
        let seen = upstream.last().unwrap();
        (seen.header_all("x-forwarded-for").join("|"), seen.header_all("x-forwarded-proto").join("|"))
    };
    assert_eq!(ask(&[]), ("127.0.0.1".to_owned(), "http".to_owned()));
    process.wait_record("its class is told", |record| record["network"] == "unix");
    let named = [("X-Forwarded-For", "192.0.2.66, 203.0.113.7"), ("X-Forwarded-Proto", "https")];
    assert_eq!(ask(&named), ("203.0.113.7".to_owned(), "https".to_owned()));
    process.wait_record("the client's class is told", |record| record["network"] == "public");

    // Nobody's own limit holds: all clients of the proxy in front come through here.
    let mut open: Vec<_> = (0..20).map(|_| Connection::open(&socket).unwrap()).collect();
    for connection in &mut open {
        assert_eq!(connection.send(&Request::new("GET", VERSIONS)).unwrap().status, 200);
    }
    assert_eq!(process.metric("mantlet_connections{listener=\"test\"}"), Some(20.0));

    let mut second = site.spawn();
    assert_eq!(second.wait().code(), Some(1));
    let refused = second.log();
    assert!(refused.contains("in use by another process; choose another bind for "), "{refused}");
    drop(open);
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_unix_socket_has_the_mode_that_was_asked_for_and_can_speak_tls() {
    let upstream = homeserver();
    let authority = Authority::new().unwrap();
    let keys = "mode = \"0600\"\ntls = { certificate = \"a.crt\", key = \"a.key\" }";
    let (site, socket) = on_a_socket(&url(&upstream), keys, "");
    write(site.path(), "a", &authority.issue(&["hs.example"]).unwrap());
    let _process = site.start();
    assert_eq!(mode(&socket), 0o600);
    let name = ServerName::try_from("hs.example").unwrap();
    let connection = rustls::ClientConnection::new(client(&authority, None), name).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, std::os::unix::net::UnixStream::connect(&socket).unwrap());
    write!(stream, "GET {VERSIONS} HTTP/1.1\r\nHost: hs\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(upstream.last().unwrap().header_all("x-forwarded-proto"), ["https"]);
}

/// The hop that may send a PROXY header in these tests.
const HOP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const HOPS: &str = "[forwarded]\ntrusted_hops = [\"127.0.0.2\"]\n";

/// Version 2, for a client at 203.0.113.7.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x07\x0a\0\0\x01\x12\x34\x01\xbb";

#[test]
fn a_trusted_hop_says_who_its_client_is() {
    let upstream = homeserver();
    let gateway = Gateway::with_listener(&url(&upstream), OPEN, "proxy_protocol = true", HOPS);
    let request = format!("GET {VERSIONS} HTTP/1.1\r\nHost: hs\r\nX-Forwarded-For: 192.0.2.66\r\n\r\n");
    for (head, client) in [
        (&b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n"[..], "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::1 ::1 4711 443\r\n", "2001:db8::1"),
        (V2, "203.0.113.7"),
        // Its client is a hop, so the field is believed.
        (b"PROXY TCP4 127.0.0.2 10.0.0.1 4711 443\r\n", "192.0.2.66"),
        // Nobody is named: the hop itself, whatever the field says.
        (b"PROXY UNKNOWN\r\n", "127.0.0.2"),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", "127.0.0.2"),
    ] {
        // In one packet with the request, and in one of its own.
        for is_split in [false, true] {
            let mut connection = Connection::open_from(HOP, gateway.addr()).unwrap();
            if is_split {
                connection.write(head).unwrap();
                connection.write(request.as_bytes()).unwrap();
            } else {
                connection.write(&[head, request.as_bytes()].concat()).unwrap();
            }
            assert_eq!(connection.response("GET").unwrap().status, 200);
            assert_eq!(upstream.last().unwrap().header_all("x-forwarded-for"), [client], "{head:?}");
            // The second request of a connection is the same client's.
            connection.write(request.as_bytes()).unwrap();
            assert_eq!(connection.response("GET").unwrap().status, 200);
            assert_eq!(upstream.last().unwrap().header_all("x-forwarded-for"), [client], "{head:?}");
        }
    }
    assert_eq!(gateway.metric("mantlet_proxy_header_failures_total{listener=\"test\"}"), 0.0);
}

#[test]
fn a_hop_without_a_header_and_a_header_of_a_stranger_are_refused() {
    let upstream = homeserver();
    let gateway = Gateway::with_listener(&url(&upstream), OPEN, "proxy_protocol = true", HOPS);
    let failures = || gateway.metric("mantlet_proxy_header_failures_total{listener=\"test\"}");
    let request = format!("GET {VERSIONS} HTTP/1.1\r\nHost: hs\r\n\r\n");
    let mut hop = Connection::open_from(HOP, gateway.addr()).unwrap();
    hop.write(request.as_bytes()).unwrap();
    assert!(hop.read_to_end().unwrap_or_default().is_empty());
    eventually("it is counted", || failures() == 1.0);
    // A load balancer looks whether somebody listens: no failure.
    drop(Connection::open_from(HOP, gateway.addr()).unwrap());

    for head in [V2, b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n"] {
        let answer = raw(gateway.addr(), &[head, request.as_bytes()].concat());
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400 "), "{:?}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(upstream.requests().len(), 0);
    assert_eq!(Request::new("GET", VERSIONS).send(gateway.addr()).status, 200);
    assert_eq!(upstream.last().unwrap().header_all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(failures(), 1.0);
}

#[test]
fn a_slow_header_is_not_waited_for_and_a_named_client_has_its_own_bound() {
    let upstream = homeserver();
    let more = format!("{HOPS}[limits]\nhandshake = \"300ms\"\nper_address = 2");
    let gateway = Gateway::with_listener(&url(&upstream), OPEN, "proxy_protocol = true", &more);
    let mut slow = Connection::open_from(HOP, gateway.addr()).unwrap();
    slow.write(b"PROXY TCP4 203.0").unwrap();
    assert!(slow.read_to_end().unwrap_or_default().is_empty());
    assert_eq!(gateway.metric("mantlet_proxy_header_failures_total{listener=\"test\"}"), 1.0);

    let open = |client: &str| {
        let mut connection = Connection::open_from(HOP, gateway.addr()).unwrap();
        connection.write(format!("PROXY TCP4 {client} 10.0.0.1 1 2\r\n").as_bytes()).unwrap();
        // Whether it is served; a refused one may be gone before it is written to.
        let is_served = connection.send(&Request::new("GET", VERSIONS)).is_ok_and(|answer| answer.status == 200);
        (connection, is_served)
    };
    let (one, two, three) = (open("203.0.113.7"), open("203.0.113.7"), open("203.0.113.7"));
    assert_eq!((one.1, two.1, three.1), (true, true, false), "the third of a client is one too many");
    assert!(open("203.0.113.8").1 && open("203.0.113.9").1, "others are not bounded by it");
    drop(one);
    eventually("a place is free again", || open("203.0.113.7").1);
}

#[test]
fn a_header_goes_before_tls_and_over_a_unix_socket() {
    let upstream = homeserver();
    let authority = Authority::new().unwrap();
    let keys = "proxy_protocol = true\ntls = { certificate = \"a.crt\", key = \"a.key\" }";
    let (site, socket) = on_a_socket(&url(&upstream), keys, "");
    write(site.path(), "a", &authority.issue(&["hs.example"]).unwrap());
    let process = site.start();
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    stream.write_all(V2).unwrap();
    let name = ServerName::try_from("hs.example").unwrap();
    let connection = rustls::ClientConnection::new(client(&authority, None), name).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, stream);
    write!(stream, "GET {VERSIONS} HTTP/1.1\r\nHost: hs\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let seen = upstream.last().unwrap();
    assert_eq!(
        (seen.header("x-forwarded-for"), seen.header("x-forwarded-proto")),
        (Some("203.0.113.7"), Some("https"))
    );
    process.wait_record("the client's class is told", |record| record["network"] == "public");
}

#[test]
fn a_proxy_that_is_no_trusted_hop_is_told_of_once_with_the_line_to_add() {
    let upstream = homeserver();
    let site = Site::new(&url(&upstream), OPEN, "");
    let mut process = site.start();
    let plain = Request::new("GET", VERSIONS);
    assert_eq!(plain.send(process.addr()).status, 200);
    assert!(!process.log().contains("trusted_hops"), "who sends no field is a client");
    let named = plain.header("X-Forwarded-For", "203.0.113.77");
    for source in [HOP, IpAddr::from([127, 0, 0, 1])] {
        for _ in 0..3 {
            assert_eq!(named.send_from(source, process.addr()).status, 200);
            assert_eq!(upstream.last().unwrap().header("x-forwarded-for"), Some(source.to_string().as_str()));
        }
    }
    process.wait_log("the line to add", |line| {
        let is_there = |text: &str| text.contains("[forwarded] trusted_hops = [\"127.0.0.2\"]");
        line["level"] == "WARN" && line["message"].as_str().is_some_and(is_there)
    });
    process.signal("TERM");
    process.wait();
    assert_eq!(process.log().matches("trusted_hops").count(), 1, "{}", process.log());
    assert!(!process.log().contains("203.0.113.77"), "the client is not told");

    let site = Site::new(&url(&upstream), OPEN, "[forwarded]\ntrusted_hops = [\"127.0.0.2\"]");
    let mut process = site.start();
    assert_eq!(named.send_from(HOP, process.addr()).status, 200);
    assert_eq!(upstream.last().unwrap().header("x-forwarded-for"), Some("203.0.113.77"), "the line does what it says");
    process.signal("TERM");
    process.wait();
    assert!(!process.log().contains("trusted_hops"), "{}", process.log());
}

/// A gateway whose socket was opened by somebody else, as systemd does it: number 3, named `public`.
fn spawn_with(site: &Site, socket: impl Into<OwnedFd>, environment: &[(&str, &str)]) -> Process {
    // A shell can hand on a descriptor by number, which needs unsafe code here.
    const SCRIPT: &str = "exec 3<&0 </dev/null; LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, env!("CARGO_BIN_EXE_mantlet")]).current_dir(site.path()).stdin(socket.into());
    command.env_remove("MANTLET_CONFIG").env_remove("RUST_LOG").envs(environment.iter().copied());
    site.spawn_by(command)
}

const PUBLIC: [(&str, &str); 2] = [("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "public")];

fn for_systemd(upstream: &str) -> Site {
    let site = Site::new(upstream, OPEN, "");
    site.write("mantlet.toml", &site.gateway_file(upstream, "systemd:public", "[workers]\ncount = 2"));
    site
}

#[test]
fn a_socket_of_systemd_is_served_and_told_of() {
    let upstream = homeserver();
    let site = for_systemd(&url(&upstream));
    let told = UnixDatagram::bind(site.path().join("notify.sock")).unwrap();
    told.set_read_timeout(Some(SOON)).unwrap();
    let told = || {
        let mut state = [0; 1024];
        let length = told.recv(&mut state).unwrap();
        String::from_utf8(state[..length].to_vec()).unwrap()
    };
    let notify = site.path().join("notify.sock").display().to_string();
    let environment = [PUBLIC[0], PUBLIC[1], ("NOTIFY_SOCKET", &notify)];
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut process = spawn_with(&site, socket, &environment);
    assert_eq!(told(), "READY=1");
    assert_eq!(process.addr(), address);
    for _ in 0..20 {
        assert_eq!(Request::new("GET", VERSIONS).send(address).status, 200);
    }
    process.signal("HUP");
    assert_eq!((told().as_str(), told().as_str()), ("RELOADING=1", "READY=1\nSTATUS=the policy is unchanged"));
    process.signal("TERM");
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(process.wait().code(), Some(0));

    let path = site.path().join("passed.sock");
    let process = spawn_with(&site, std::os::unix::net::UnixListener::bind(&path).unwrap(), &PUBLIC);
    process.wait_log("it listens", |line| line["address"] == format!("unix:{}", path.display()));
    let named = Request::new("GET", VERSIONS).header("X-Forwarded-For", "203.0.113.7");
    assert_eq!(named.send(&path).status, 200);
    assert_eq!(upstream.last().unwrap().header("x-forwarded-for"), Some("203.0.113.7"));
}

#[test]
fn a_socket_that_is_not_passed_or_not_taken_keeps_the_gateway_from_starting() {
    let site = for_systemd("http://127.0.0.1:1");
    let socket = || TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = |environment: &[(&str, &str)], socket: OwnedFd| {
        let mut process = spawn_with(&site, socket, environment);
        assert_eq!(process.wait().code(), Some(1));
        process.log()
    };
    let log = refused(&[("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "other")], socket().into());
    assert!(log.contains("systemd passed no socket named public"), "{log}");
    let log = refused(&[], socket().into());
    assert!(log.contains("systemd passed no socket named public"), "{log}");
    let log = refused(&PUBLIC, std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into());
    assert!(log.contains("the socket public that systemd passed cannot be listened on"), "{log}");
    // Two of one name, of which the listener takes one; the second number is closed, which nobody gets to see.
    let log = refused(&[("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "public:more")], socket().into());
    assert!(log.contains("systemd passed sockets that no listener takes: more"), "{log}");
}

#[test]
fn a_successor_on_the_same_socket_loses_no_request() {
    let upstream = homeserver();
    let site = for_systemd(&url(&upstream));
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut old = spawn_with(&site, socket.try_clone().unwrap(), &PUBLIC);
    assert_eq!(old.addr(), address);
    // The old one's admin socket is in its way.
    let successor = for_systemd(&url(&upstream));
    let is_over = AtomicBool::new(false);
    let (mut new, served) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut served = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        let answer = Request::new("GET", VERSIONS).try_send(address);
                        assert_eq!(answer.unwrap_or_else(|error| panic!("lost after {served}: {error:?}")).status, 200);
                        served += 1;
                    }
                    served
                })
            })
            .collect();
        eventually("it serves", || upstream.requests().len() > 20);
        let new = spawn_with(&successor, socket.try_clone().unwrap(), &PUBLIC);
        new.addr();
        old.signal("TERM");
        assert_eq!(old.wait().code(), Some(0));
        let before = upstream.requests().len();
        eventually("the new one serves", || upstream.requests().len() > before + 20);
        is_over.store(true, Ordering::Relaxed);
        (new, clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>())
    });
    assert_eq!(upstream.requests().len(), served);
    new.signal("TERM");
    assert_eq!(new.wait().code(), Some(0));
}
