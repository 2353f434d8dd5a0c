//! The federation door: what Synapse asks other servers, and what those and Synapse see of it.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hickory_resolver::proto::rr::RecordType;
use mantlet::config::egress::Ports;
use mantlet::server::reload::Trigger;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Request, Response, json_response, response};
use mantlet_testkit::recorder::RecordedRequest;
use serde_json::json;

use crate::common::{assert_matrix_error, eventually, noise, ok};
use crate::support::Gateway;
use crate::support::outside::{Dns, H2Server, TlsFront};

/// A door, and the world behind it.
struct World {
    gateway: Gateway,
    dns: Dns,
    /// What the other servers serve, by the name in `Host`.
    backend: Backend,
    /// The web at the port of `https`, at 127.0.1.1.
    web: TlsFront,
    /// A homeserver at the port of federation, at 127.0.1.1.
    home: TlsFront,
    authority: Authority,
    /// Others, by address, at the port of federation.
    others: HashMap<&'static str, TlsFront>,
}

/// Names that the fronts have certificates for.
const NAMES: [&str; 8] =
    ["hs.test", "delegated.test", "cdn.test", "web.test", "bare.test", "127.0.1.1", "127.0.1.2", "localhost"];

impl World {
    fn new(play: impl FnMut(&RecordedRequest) -> Answer + Send + 'static) -> World {
        Self::with("extends = \"transparent\"", "", play)
    }

    fn with(policy: &str, more: &str, play: impl FnMut(&RecordedRequest) -> Answer + Send + 'static) -> World {
        let (dns, authority) = (Dns::start(), Authority::new().unwrap());
        let backend = Backend::start(play).unwrap();
        let at = |address: &str, port: u16| SocketAddr::new(address.parse().unwrap(), port);
        let front = |address: &str, port| TlsFront::try_start(&authority, &NAMES, at(address, port), backend.addr());
        let web = front("127.0.1.1", 0).unwrap();
        // One port that is free at all three addresses.
        let (home, others) = std::iter::repeat_with(|| {
            let home = front("127.0.1.1", 0).ok()?;
            let others =
                ["127.0.1.2", "127.0.0.1"].map(|address| Some((address, front(address, home.addr().port()).ok()?)));
            Some((home, others.into_iter().collect::<Option<HashMap<_, _>>>()?))
        })
        .find_map(|found| found)
        .unwrap();
        let ports = Ports { https: web.addr().port(), federation: home.addr().port() };
        let dir = tempfile::tempdir().unwrap();
        authority.write(dir.path()).unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "hook-secret\n").unwrap();
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
        let text = format!(
            "[[listener]]\nname = \"out\"\ndoor = \"federation\"\nbind = \"127.0.0.1:0\"\nsecret_file = \"secret\"\n\
             extra_roots = [\"ca.crt\"]\n[policy]\nfile = \"policy.toml\"\n[upstream.synapse]\nservers = [\"http://127.0.0.1:9\"]\n\
             [egress]\nnameservers = [\"{}\"]\n[egress.addresses]\nallow = [\"127.0.1.0/24\"]\n{more}",
            dns.addr()
        );
        let gateway = Gateway::load(dir, &text, |config| config.egress.ports = ports);
        World { gateway, dns, backend, web, home, authority, others }
    }

    /// What Synapse would write for this server.
    fn request(&self, method: &str, server: &str, path: &str) -> Request {
        let signed = format!("X-Matrix origin=\"here.test\",key=\"ed25519:a\",sig=\"c2ln\",destination=\"{server}\"");
        Request::new(method, format!("matrix-federation://{server}{path}"))
            .header("Connection", "close")
            .header("User-Agent", "Synapse/1.163.2")
            .header("Authorization", signed)
            .header("Proxy-Authorization", "Bearer hook-secret")
            .timeout(Duration::from_secs(20))
    }

    fn ask(&self, server: &str, path: &str) -> Response {
        self.request("GET", server, path).send(self.gateway.addr())
    }

    /// The `Host` fields of what came, but for questions about delegations.
    fn hosts(&self) -> Vec<String> {
        let asked = self.backend.requests();
        let asked = asked.iter().filter(|request| !is_well_known(request));
        asked.map(|request| request.header("host").unwrap_or_default().to_owned()).collect()
    }

    fn well_knowns(&self) -> usize {
        self.backend.requests().iter().filter(|request| is_well_known(request)).count()
    }
}

fn is_well_known(request: &RecordedRequest) -> bool {
    request.target_text() == "/.well-known/matrix/server"
}

/// A world in which delegations are these: the whole answer, by host.
fn delegating(well_known: impl Fn(&str) -> Vec<u8> + Send + 'static) -> World {
    World::new(move |request| match is_well_known(request) {
        true => Answer::Bytes(well_known(request.header("host").unwrap_or_default())),
        false => ok(),
    })
}

const PROFILE: &str = "/_matrix/federation/v1/query/profile?user_id=%40a%3Ahs.test&x=%7e;/..//y";

fn nothing() -> Vec<u8> {
    response(404, &[], "")
}

#[test]
fn what_synapse_signed_is_what_the_other_server_reads() {
    let world = World::with("extends = \"balanced\"", "", |_| ok());
    world.dns.address("hs.test", "127.0.1.1");
    let server = format!("hs.test:{}", world.home.addr().port());
    let body = noise(300_000);
    let sent =
        world.request("PUT", &server, PROFILE).header("X-Other", "kept").body(body.clone()).send(world.gateway.addr());
    assert_eq!((sent.status, sent.text().as_str()), (200, "{}"));
    let arrived = world.backend.last().unwrap();
    assert_eq!((arrived.method.as_str(), arrived.target_text().as_str()), ("PUT", PROFILE));
    assert!(arrived.body == body, "the body is another one");
    let mut fields: Vec<_> = arrived.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["authorization", "content-length", "host", "user-agent", "x-other"], "{:?}", arrived.headers);
    assert_eq!(arrived.header("host"), Some(server.as_str()));
    assert_eq!(arrived.header("user-agent"), Some("Synapse"));
    assert!(arrived.header("authorization").unwrap().contains(&format!("destination=\"{server}\"")));
    assert_eq!(world.home.names(), ["hs.test"]);
    // Nobody was asked about a delegation, and no SRV record was looked for: the name has a port.
    assert!(
        world.dns.asked().iter().all(|(_, of)| matches!(of, RecordType::A | RecordType::AAAA)),
        "{:?}",
        world.dns.asked()
    );
}

#[test]
fn a_record_says_that_it_was_and_not_with_whom() {
    let world = World::new(|_| ok());
    world.dns.address("hs.test", "127.0.1.1");
    assert_eq!(
        world.ask(&format!("hs.test:{}", world.home.addr().port()), "/_matrix/federation/v1/version").status,
        200
    );
    assert_eq!(world.ask("nobody.test", "/_matrix/federation/v1/version").status, 502);
    let records = world.gateway.records(2);
    let of = |record: &serde_json::Value| {
        ["flow", "endpoint", "listener", "upstream", "decision"]
            .map(|field| record[field].as_str().unwrap_or("-").to_owned())
    };
    let version = ["egress", "federation_get_version", "out", "(other servers)"];
    assert_eq!(of(&records[0]), [version[0], version[1], version[2], version[3], "permit"]);
    assert_eq!(of(&records[1]), [version[0], version[1], version[2], version[3], "error"]);
    assert_eq!(records[1]["error"], "origin_unknown");
    let told = format!("{}{}", world.gateway.written(), world.gateway.metrics());
    assert!(!told.contains("hs.test") && !told.contains("nobody") && !told.contains("127.0.1"), "{told}");
    assert!(world.gateway.metric("mantlet_origin_routes_total{step=\"port\"}") == 1.0);
}

#[test]
fn a_name_without_more_is_at_its_own_address_and_the_usual_port() {
    let world = delegating(|_| nothing());
    world.dns.address("hs.test", "127.0.1.1");
    assert_eq!(world.ask("hs.test", PROFILE).status, 200);
    assert_eq!((world.hosts(), world.home.names()), (vec!["hs.test".to_owned()], vec!["hs.test".to_owned()]));
    assert_eq!(world.web.names(), ["hs.test"]);
    let asked: Vec<_> =
        world.dns.asked().into_iter().filter(|(_, of)| *of == RecordType::SRV).map(|(name, _)| name).collect();
    assert_eq!(asked, ["_matrix-fed._tcp.hs.test", "_matrix._tcp.hs.test"]);
}

#[test]
fn an_address_is_asked_by_its_address() {
    let world = World::new(|_| ok());
    assert_eq!(world.ask("127.0.1.1", PROFILE).status, 200);
    let with_port = format!("127.0.1.2:{}", world.home.addr().port());
    assert_eq!(world.ask(&with_port, PROFILE).status, 200);
    assert_eq!(world.hosts(), ["127.0.1.1".to_owned(), with_port]);
    assert!(world.dns.asked().is_empty(), "{:?}", world.dns.asked());
}

#[test]
fn a_delegation_is_followed_to_its_name_and_port() {
    let port = Arc::new(OnceLock::new());
    let here = Arc::clone(&port);
    let world = delegating(move |_| {
        json_response(200, &json!({"m.server": format!("delegated.test:{}", here.get().unwrap())}))
    });
    port.set(world.home.addr().port()).unwrap();
    world.dns.address("hs.test", "127.0.1.1");
    world.dns.address("delegated.test", "127.0.1.2");
    assert_eq!(world.ask("hs.test", PROFILE).status, 200);
    assert_eq!(world.hosts(), [format!("delegated.test:{}", world.home.addr().port())]);
    assert_eq!(world.others["127.0.1.2"].names(), ["delegated.test"]);
    // What it is signed for stays.
    assert!(world.backend.last().unwrap().header("authorization").unwrap().contains("destination=\"hs.test\""));
}

#[test]
fn a_delegation_without_a_port_asks_for_services_of_the_delegated_name() {
    let world = delegating(|_| json_response(200, &json!({"m.server": "delegated.test"})));
    world.dns.address("hs.test", "127.0.1.1");
    world.dns.address("else.test", "127.0.1.2");
    world.dns.address("gone.test", "127.0.1.3");
    world.dns.service("_matrix-fed._tcp.delegated.test", 5, "gone.test", 9999);
    world.dns.service("_matrix-fed._tcp.delegated.test", 10, "else.test", world.home.addr().port());
    assert_eq!(world.ask("hs.test", PROFILE).status, 200);
    // The name of the service's host is nowhere but in the DNS.
    assert_eq!(
        (world.hosts(), world.others["127.0.1.2"].names()),
        (vec!["delegated.test".into()], vec!["delegated.test".to_owned()])
    );
}

#[test]
fn a_deprecated_service_counts_where_there_is_no_other() {
    let world = delegating(|_| nothing());
    world.dns.address("hs.test", "127.0.1.1");
    world.dns.address("else.test", "127.0.1.2");
    world.dns.service("_matrix._tcp.hs.test", 10, "else.test", world.home.addr().port());
    assert_eq!(world.ask("hs.test", PROFILE).status, 200);
    assert_eq!(
        (world.hosts(), world.others["127.0.1.2"].names()),
        (vec!["hs.test".into()], vec!["hs.test".to_owned()])
    );
    assert_eq!(world.gateway.metric("mantlet_origin_routes_total{step=\"srv_deprecated\"}"), 1.0);
}

#[test]
fn a_delegation_is_asked_for_once_also_by_many_at_once() {
    let world = delegating(|_| json_response(200, &json!({"m.server": "delegated.test"})));
    world.dns.address("hs.test", "127.0.1.1");
    world.dns.address("delegated.test", "127.0.1.1");
    let (request, door) = (world.request("GET", "hs.test", PROFILE), world.gateway.addr());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(request.send(door).status, 200));
        }
    });
    assert_eq!((world.hosts().len(), world.well_knowns()), (8, 1));
}

#[test]
fn what_is_no_delegation_is_as_if_there_were_none() {
    for answer in [
        nothing(),
        response(200, &[], "not json"),
        json_response(200, &json!({"m.server": 7})),
        json_response(200, &json!({"m.server": "not a name"})),
        json_response(200, &json!({"m.server": "127.1"})),
        json_response(200, &json!({"m.server": "delegated.test", "padding": "x".repeat(60_000)})),
        json_response(500, &json!({"m.server": "delegated.test"})),
        response(302, &[("Location", "http://delegated.test/")], ""),
        response(302, &[("Location", "https://127.0.0.1/")], ""),
        response(302, &[("Location", "/.well-known/matrix/server")], ""),
    ] {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(80)]).into_owned();
        let world = delegating(move |_| answer.clone());
        world.dns.address("hs.test", "127.0.1.1");
        world.dns.address("delegated.test", "127.0.1.2");
        assert_eq!(world.ask("hs.test", PROFILE).status, 200, "{shown}");
        assert_eq!(world.hosts(), ["hs.test"], "{shown}");
        assert!(world.others["127.0.0.1"].names().is_empty() && world.well_knowns() <= 6, "{shown}");
    }
}

#[test]
fn a_delegation_may_be_at_the_end_of_redirects() {
    let port = Arc::new(OnceLock::new());
    let here = Arc::clone(&port);
    let world = World::new(move |request| match request.target_text().as_str() {
        "/.well-known/matrix/server" => {
            let location = format!("https://web.test:{}/there", here.get().unwrap());
            Answer::Bytes(response(301, &[("Location", &location)], ""))
        }
        "/there" => Answer::Bytes(response(307, &[("Location", "/again?x")], "")),
        "/again?x" => Answer::Bytes(json_response(200, &json!({"m.server": "delegated.test"}))),
        _ => ok(),
    });
    port.set(world.web.addr().port()).unwrap();
    for name in ["hs.test", "web.test", "delegated.test"] {
        world.dns.address(name, "127.0.1.1");
    }
    assert_eq!(world.ask("hs.test", PROFILE).status, 200);
    assert_eq!(world.web.names(), ["hs.test", "web.test", "web.test"]);
    assert_eq!(world.home.names(), ["delegated.test"]);
}

#[test]
fn nobody_is_believed_without_a_certificate_for_the_name() {
    let world = delegating(|_| nothing());
    world.dns.address("stranger.test", "127.0.1.1");
    let answer = world.ask("stranger.test", PROFILE);
    assert_matrix_error(&answer, 502, "M_UNKNOWN");
    assert!(world.backend.requests().is_empty(), "{:?}", world.backend.requests());
    assert_eq!(world.gateway.records(1)[0]["error"], "origin_untrusted");
}

#[test]
fn nobody_is_asked_without_the_secret_or_for_another_server() {
    let world = World::new(|_| ok());
    world.dns.address("hs.test", "127.0.1.1");
    let server = format!("hs.test:{}", world.home.addr().port());
    let target = format!("matrix-federation://{server}/_matrix/federation/v1/version");
    let signed = |server: &str| format!("X-Matrix origin=\"a\",key=\"b\",sig=\"c\",destination=\"{server}\"");
    let ask = |secret: Option<&str>, target: &str, signed: &str| {
        let request = Request::new("GET", target).header("Authorization", signed);
        let request = match secret {
            Some(secret) => request.header("Proxy-Authorization", secret),
            None => request,
        };
        request.send(world.gateway.addr())
    };
    for secret in [None, Some("Bearer wrong"), Some("Basic hook-secret"), Some("Bearer hook-secret2")] {
        assert_matrix_error(&ask(secret, &target, &signed(&server)), 502, "M_UNKNOWN");
    }
    let known = Some("Bearer hook-secret");
    assert_matrix_error(&ask(known, &target, &signed("hs.test")), 403, "M_FORBIDDEN");
    assert_matrix_error(&ask(known, &target, "Bearer syt_token"), 403, "M_FORBIDDEN");
    for odd in
        ["/_matrix/federation/v1/version", &target.replace("matrix-federation", "https"), "matrix-federation://127.1/x"]
    {
        assert_matrix_error(&ask(known, odd, &signed(&server)), 400, "M_UNKNOWN");
    }
    assert!(world.backend.requests().is_empty() && world.dns.asked().is_empty());
    assert_eq!(ask(known, &target, &signed(&server)).status, 200);
    let written = world.gateway.records(9);
    let is_refused = |record: &serde_json::Value| {
        (&record["rule"], &record["decision"], &record["flow"])
            == (&json!("federation_door"), &json!("deny"), &json!("egress"))
    };
    assert!(written[..8].iter().all(is_refused), "{written:?}");
    assert!(!world.gateway.written().contains("hook-secret"));
}

#[test]
fn the_way_in_takes_nothing_of_the_way_out() {
    let homeserver = Backend::start(|_| ok()).unwrap();
    let gateway = Gateway::start(&format!("http://{}", homeserver.addr()), "extends = \"transparent\"");
    let request = Request::new("GET", "matrix-federation://hs.test/_matrix/federation/v1/version")
        .header("Proxy-Authorization", "Bearer hook-secret")
        .header("Authorization", "X-Matrix destination=\"hs.test\"");
    assert_eq!(request.send(gateway.addr()).status, 400);
    assert!(homeserver.requests().is_empty());
}

#[test]
fn rules_for_what_comes_in_do_not_judge_what_goes_out() {
    let world = World::with("extends = \"strict\"", "", |_| ok());
    world.dns.address("hs.test", "127.0.1.1");
    let server = format!("hs.test:{}", world.home.addr().port());
    for path in [
        "/_matrix/federation/v1/publicRooms?limit=1",
        PROFILE,
        "/_matrix/federation/v1/version",
        "/_matrix/federation/unstable/new",
    ] {
        assert_eq!((world.ask(&server, path).text().as_str(), path), ("{}", path));
        assert_eq!(world.backend.last().unwrap().target_text(), path);
    }
}

#[test]
fn a_connection_is_used_again_and_replaced_when_it_has_ended() {
    let world = World::new(|_| ok());
    world.dns.address("hs.test", "127.0.1.1");
    let server = format!("hs.test:{}", world.home.addr().port());
    // Each worker has its own, and one that is not yet put back when the next request comes is not waited for.
    for _ in 0..40 {
        assert_eq!(world.ask(&server, PROFILE).status, 200);
    }
    let connections = world.backend.connections();
    assert!(connections < 20, "{connections} connections");
    world.backend.close_connections();
    for _ in 0..40 {
        assert_eq!(world.ask(&server, PROFILE).status, 200);
    }
    assert!(world.backend.connections() < 40, "{} connections", world.backend.connections());
}

#[test]
fn what_meets_a_connection_at_its_end_is_sent_again_only_if_it_may_be() {
    let mut used = HashSet::new();
    // Each connection ends with its second request, unanswered.
    let world = World::new(move |request| if used.insert(request.connection) { ok() } else { Answer::Close });
    world.dns.address("hs.test", "127.0.1.1");
    let server = format!("hs.test:{}", world.home.addr().port());
    let retries = || world.gateway.metric("mantlet_upstream_retries_total{upstream=\"(other servers)\"}");
    for _ in 0..100 {
        assert_eq!(world.ask(&server, PROFILE).status, 200);
        if retries() >= 2.0 {
            break;
        }
    }
    assert!(retries() >= 2.0, "no connection was used twice");
    let put = world.request("PUT", &server, "/_matrix/federation/v1/send/1").body("{}");
    let statuses: Vec<_> = (0..20).map(|_| put.send(world.gateway.addr()).status).collect();
    assert!(statuses.contains(&502) && statuses.iter().all(|status| [200, 502].contains(status)), "{statuses:?}");
    let arrived = world.backend.requests().iter().filter(|request| request.method == "PUT").count();
    assert_eq!(arrived, statuses.len());
}

#[test]
fn a_server_of_http_2_is_asked_in_http_2_on_one_connection() {
    let world = World::with("extends = \"balanced\"", "[workers]\ncount = 1\n", |_| ok());
    let server = H2Server::start(&world.authority, &["hs.test"], "127.0.1.1:0".parse().unwrap());
    world.dns.address("hs.test", "127.0.1.1");
    let name = format!("hs.test:{}", server.addr().port());
    assert_eq!(world.ask(&name, PROFILE).status, 200);
    let sent = world.request("PUT", &name, PROFILE).body(noise(200_000));
    let door = world.gateway.addr();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(sent.send(door).text(), "{}"));
        }
    });
    let seen = server.seen();
    assert_eq!((seen.connections, seen.requests.len()), (1, 9));
    let (target, headers, length) = &seen.requests[8];
    assert_eq!((target.as_str(), *length), (format!("PUT https://{name}{PROFILE}").as_str(), 200_000));
    let mut fields: Vec<_> = headers.keys().map(|name| name.as_str()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["authorization", "content-length", "user-agent"]);
    // One that ends is replaced.
    drop(server);
    let answer = world.ask(&name, PROFILE);
    assert_eq!(
        (answer.status, world.gateway.metric("mantlet_upstream_retries_total{upstream=\"(other servers)\"}") <= 1.0),
        (502, true)
    );
}

#[test]
fn an_answer_has_an_end_that_synapse_can_see() {
    let world = World::new(|_| {
        Answer::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"a\":1}".to_vec())
    });
    world.dns.address("hs.test", "127.0.1.1");
    let answer = world.ask(&format!("hs.test:{}", world.home.addr().port()), PROFILE);
    assert_eq!((answer.status, answer.text().as_str()), (200, "{\"a\":1}"));
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
}

#[test]
fn what_breaks_is_a_502_and_soon() {
    for (broken, kind) in [
        (Answer::Close, "origin_closed"),
        (Answer::BytesThenClose(b"HTTP/1.1 200 O".to_vec()), "origin_closed"),
        (Answer::BytesThenClose(b"SSH-2.0-x\r\n\r\n".to_vec()), "origin_garbled"),
        (
            Answer::Bytes(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".to_vec()),
            "origin_garbled",
        ),
        (Answer::Bytes(response(307, &[("Location", "https://cdn.test/x")], "")), "origin_redirect"),
        (Answer::Bytes(response(302, &[("Location", "/x")], "")), "origin_redirect"),
    ] {
        let mut broken = Some(broken);
        let world = World::new(move |_| broken.take().unwrap_or(Answer::Close));
        world.dns.address("hs.test", "127.0.1.1");
        let began = Instant::now();
        assert_matrix_error(&world.ask(&format!("hs.test:{}", world.home.addr().port()), PROFILE), 502, "M_UNKNOWN");
        assert!(began.elapsed() < Duration::from_secs(5), "{kind}");
        assert_eq!(world.gateway.records(1)[0]["error"], kind);
    }
    let world = World::new(|_| ok());
    world.dns.address("refuses.test", "127.0.1.9");
    for (server, kind) in [
        ("refuses.test:9", "origin_forbidden"),
        ("refuses.test:9999", "origin_connect"),
        ("none.test", "origin_unknown"),
    ] {
        let began = Instant::now();
        assert_matrix_error(&world.ask(server, PROFILE), 502, "M_UNKNOWN");
        assert!(began.elapsed() < Duration::from_secs(9), "{server}");
        world.gateway.records_with(|record| record["error"] == kind);
    }
}

/// The parts of a file as Synapse writes them, with these fields before the content.
fn parts(fields: &[(&str, &str)], content: &[u8]) -> Vec<u8> {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "\r\n--6067d4698f8d40a0\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--6067d4698f8d40a0\r\n{fields}\r\n"
    );
    [head.as_bytes(), content, b"\r\n--6067d4698f8d40a0--\r\n\r\n"].concat()
}

fn multipart(body: &[u8]) -> Answer {
    Answer::Bytes(response(200, &[("Content-Type", "multipart/mixed; boundary=6067d4698f8d40a0")], body))
}

/// Type, disposition and content of the file in an answer, whose only other part is an empty object.
#[track_caller]
fn file(answer: &Response) -> (String, Option<String>, Vec<u8>) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let boundary = answer.header("content-type").unwrap().strip_prefix("multipart/mixed; boundary=").unwrap();
    let split = |text: &[u8], at: &str| {
        let at = at.as_bytes();
        let found = text.windows(at.len()).position(|window| window == at).unwrap();
        (text[..found].to_vec(), text[found + at.len()..].to_vec())
    };
    let (json, rest) = split(&answer.body, &format!("\r\n--{boundary}\r\n"));
    assert_eq!(String::from_utf8(json).unwrap(), format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}"));
    let (fields, rest) = split(&rest, "\r\n\r\n");
    let (content, rest) = split(&rest, &format!("\r\n--{boundary}--\r\n"));
    assert!(rest.is_empty());
    let fields = String::from_utf8(fields).unwrap();
    let field = |name: &str| fields.lines().find_map(|line| Some(line.strip_prefix(name)?.to_owned()));
    assert!(!fields.to_ascii_lowercase().contains("location"), "{fields}");
    (field("Content-Type: ").unwrap(), field("Content-Disposition: "), content)
}

const MEDIA: &str = "/_matrix/federation/v1/media/download/abc?timeout_ms=20000";

#[test]
fn a_file_comes_as_it_is_under_a_delimiter_that_only_we_know() {
    let content = [noise(200_000), b"\r\n--6067d4698f8d40a\r\nLocation: https://cdn.test/\r\n\r\n".to_vec()].concat();
    let body = parts(&[("Content-Type", "image/png"), ("content-disposition", "inline; filename=a.png")], &content);
    let world = World::new(move |_| multipart(&body));
    world.dns.address("hs.test", "127.0.1.1");
    let answer = world.ask(&format!("hs.test:{}", world.home.addr().port()), MEDIA);
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    let (kind, disposition, found) = file(&answer);
    assert_eq!((kind.as_str(), disposition.as_deref()), ("image/png", Some("inline; filename=a.png")));
    assert!(found == content, "{} bytes of {}", found.len(), content.len());
}

#[test]
fn a_file_that_is_elsewhere_is_fetched_from_there_and_nothing_is_told_there() {
    let content = noise(100_000);
    let (port, there) = (Arc::new(OnceLock::new()), content.clone());
    let here = Arc::clone(&port);
    let world = World::new(move |request| {
        let port: u16 = *here.get().unwrap();
        match (request.header("host").unwrap().split(':').next().unwrap(), request.target_text().as_str()) {
            ("hs.test", _) => multipart(&parts(&[("Location", &format!("https://cdn.test:{port}/one?sig=%2f"))], b"")),
            ("cdn.test", "/one?sig=%2f") => {
                Answer::Bytes(response(307, &[("Location", &format!("https://web.test:{port}/two"))], ""))
            }
            ("web.test", "/two") => {
                Answer::Bytes(response(200, &[("Content-Type", "image/webp"), ("Set-Cookie", "a=b")], &there))
            }
            other => panic!("{other:?}"),
        }
    });
    port.set(world.web.addr().port()).unwrap();
    for name in ["hs.test", "cdn.test", "web.test"] {
        world.dns.address(name, "127.0.1.1");
    }
    let answer = world.ask(&format!("hs.test:{}", world.home.addr().port()), MEDIA);
    assert_eq!((file(&answer), answer.header("set-cookie")), (("image/webp".into(), None, content), None));
    for request in &world.backend.requests()[1..] {
        let mut fields: Vec<_> = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["connection", "host"], "{:?}", request.headers);
    }
}

#[test]
fn an_old_redirect_of_media_is_followed_here_and_never_handed_on() {
    for media in [
        "/_matrix/media/v3/download/hs.test/abc?allow_redirect=true",
        MEDIA,
        "/_matrix/media/r0/thumbnail/hs.test/abc?width=1",
    ] {
        let port = Arc::new(OnceLock::new());
        let here = Arc::clone(&port);
        let world = World::new(move |request| match request.target_text().as_str() {
            "/file" => Answer::Bytes(response(200, &[("Content-Type", "image/png")], "a file")),
            _ => Answer::Bytes(response(
                308,
                &[("Location", &format!("https://cdn.test:{}/file", here.get().unwrap()))],
                "",
            )),
        });
        port.set(world.web.addr().port()).unwrap();
        world.dns.address("hs.test", "127.0.1.1");
        world.dns.address("cdn.test", "127.0.1.1");
        let answer = world.ask(&format!("hs.test:{}", world.home.addr().port()), media);
        assert_eq!((answer.status, answer.text().as_str(), answer.header("location")), (200, "a file", None));
        assert_eq!(world.backend.last().unwrap().header("authorization"), None);
    }
}

#[test]
fn no_answer_leads_to_where_nobody_may_go() {
    let canary = Backend::start(|_| Answer::Bytes(response(200, &[("Content-Type", "image/png")], "canary"))).unwrap();
    let canary_port = canary.addr().port();
    let port = Arc::new(OnceLock::new());
    let way = Arc::new(std::sync::Mutex::new(Vec::new()));
    let here = Arc::clone(&way);
    let world = World::new(move |_| Answer::Bytes(here.lock().unwrap().clone()));
    port.set(world.home.addr().port()).unwrap();
    world.dns.address("hs.test", "127.0.1.1");
    world.dns.address("inside.test", "127.0.0.1");
    world.dns.address("cdn.test", "127.0.1.1");
    world.dns.alias("alias.test", "inside.test");
    let federation = world.home.addr().port();
    let server = format!("hs.test:{federation}");
    let places = [
        format!("https://127.0.0.1:{federation}/"),
        format!("https://localhost:{federation}/"),
        format!("https://inside.test:{federation}/"),
        format!("https://alias.test:{federation}/"),
        format!("https://127.1:{federation}/"),
        format!("https://0x7f000001:{federation}/"),
        format!("https://2130706433:{federation}/"),
        format!("https://0177.0.0.1:{federation}/"),
        format!("https://[::ffff:127.0.0.1]:{federation}/"),
        format!("https://[::1]:{federation}/"),
        format!("https://0.0.0.0:{federation}/"),
        format!("https://user@127.0.0.1:{federation}/"),
        format!("https://hs.test@127.0.0.1:{federation}/"),
        format!("http://127.0.0.1:{canary_port}/"),
        format!("http://inside.test:{canary_port}/"),
        format!("http://cdn.test:{canary_port}/"),
        format!("//127.0.0.1:{federation}/"),
        "/relative".to_owned(),
        "matrix-federation://hs.test/x".to_owned(),
        "https://cdn.test:22/".to_owned(),
        "https://cdn.test:80/".to_owned(),
        "file:///etc/passwd".to_owned(),
    ];
    for place in &places {
        let redirect = response(307, &[("Location", place)], "");
        let location = response(
            200,
            &[("Content-Type", "multipart/mixed; boundary=6067d4698f8d40a0")],
            parts(&[("Location", place)], b""),
        );
        for answer in [redirect, location] {
            *way.lock().unwrap() = answer;
            let answer = world.ask(&server, MEDIA);
            assert_eq!((answer.status, answer.header("location")), (502, None), "{place}: {}", answer.text());
        }
    }
    // Round and round.
    *way.lock().unwrap() = response(307, &[("Location", &format!("https://cdn.test:{federation}/"))], "");
    assert_eq!(world.ask(&server, MEDIA).status, 502);
    assert!(world.others["127.0.0.1"].names().is_empty() && canary.requests().is_empty());
    assert!(
        world.dns.asked().iter().all(|(name, _)| !name.contains("127") && !name.contains("0x7f")),
        "{:?}",
        world.dns.asked()
    );
}

#[test]
fn parts_that_say_two_things_say_nothing() {
    let boundary = "6067d4698f8d40a0";
    let elsewhere = "Location: https://inside.test/\r\n";
    for body in [
        // Before the file, after it, twice, in the clothes of a field of another kind.
        format!(
            "--{boundary}\r\nContent-Type: application/json\r\n{elsewhere}\r\n{{}}\r\n--{boundary}\r\nContent-Type: a/b\r\n\r\nx\r\n--{boundary}--\r\n"
        ),
        format!(
            "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\nContent-Type: a/b\r\n\r\nx\r\n--{boundary}\r\n{elsewhere}\r\n\r\n--{boundary}--\r\n"
        ),
    ] {
        let world = World::new(move |_| multipart(body.as_bytes()));
        world.dns.address("hs.test", "127.0.1.1");
        let answer = world.ask(&format!("hs.test:{}", world.home.addr().port()), MEDIA);
        assert_eq!(file(&answer), ("a/b".into(), None, b"x".to_vec()));
    }
    for body in [
        format!(
            "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\nLocation: https://a.test/\r\nlocation: https://b.test/\r\n\r\n\r\n--{boundary}--\r\n"
        ),
        format!(
            "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\nno field\r\n\r\nx\r\n--{boundary}--\r\n"
        ),
        format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}--\r\n"),
        format!(
            "--{boundary}\r\nContent-Type: application/json\r\n\r\n{}\r\n--{boundary}\r\n\r\nx\r\n--{boundary}--\r\n",
            " ".repeat(100_000)
        ),
        String::new(),
    ] {
        let world = World::new(move |_| multipart(body.as_bytes()));
        world.dns.address("hs.test", "127.0.1.1");
        assert_eq!(world.ask(&format!("hs.test:{}", world.home.addr().port()), MEDIA).status, 502);
    }
}

#[test]
fn a_file_that_breaks_off_is_never_whole() {
    let body = parts(&[("Content-Type", "a/b")], &noise(50_000));
    let cut = body[..body.len() - 30].to_vec();
    let world = World::new(move |_| multipart(&cut));
    world.dns.address("hs.test", "127.0.1.1");
    let request = world.request("GET", &format!("hs.test:{}", world.home.addr().port()), MEDIA);
    let error = request.try_send(world.gateway.addr()).unwrap_err();
    assert!(format!("{error:?}").contains("cut after"), "{error:?}");
}

#[test]
fn silence_is_a_504_before_synapse_gives_up() {
    let world = World::with("extends = \"transparent\"", "[limits]\nupstream_head = \"1s\"\n", |_| Answer::Hang);
    world.dns.address("hs.test", "127.0.1.1");
    let server = format!("hs.test:{}", world.home.addr().port());
    // Joins may take their time where clients ask for them; Synapse itself waits for no more than a minute.
    for path in [PROFILE, "/_matrix/federation/v2/send_join/!a/$b"] {
        let method = if path == PROFILE { "GET" } else { "PUT" };
        let began = Instant::now();
        let answer = world.request(method, &server, path).send(world.gateway.addr());
        assert_matrix_error(&answer, 504, "M_UNKNOWN");
        assert!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
    assert_eq!(world.gateway.records(2)[1]["error"], "origin_silent");
    world.backend.wait_none_open(Duration::from_secs(5)).unwrap();
}

#[test]
fn no_spelling_of_any_name_reaches_this_machine() {
    let world = World::with("extends = \"transparent\"", "", |_| ok());
    world.dns.address("inside.test", "127.0.0.1");
    world.dns.address("inside.test", "::1");
    world.dns.address("both.test", "127.0.0.1");
    world.dns.address("both.test", "127.0.1.1");
    world.dns.alias("alias.test", "inside.test");
    world.dns.service("_matrix-fed._tcp.service.test", 1, "inside.test", world.home.addr().port());
    world.dns.service("_matrix-fed._tcp.literal.test", 1, "127.0.0.1", world.home.addr().port());
    let port = world.home.addr().port();
    let mut names: Vec<String> =
        ["inside.test", "alias.test", "service.test", "literal.test", "localhost", "LOCALHOST", "a.localhost"]
            .map(str::to_owned)
            .into();
    for host in [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "[::]",
        "169.254.169.254",
        "10.0.0.1",
        "localhost",
        "inside.test",
        "alias.test",
    ] {
        names.extend([host.to_owned(), format!("{host}:{port}")]);
    }
    for name in names {
        let answer = world.ask(&name, "/_matrix/key/v2/server");
        assert_eq!(answer.status, 502, "{name}: {}", answer.text());
    }
    assert!(world.others["127.0.0.1"].names().is_empty() && world.backend.requests().is_empty());
    // What this machine is in spellings that some readers know: nobody is asked what they might mean.
    let asked = world.dns.asked().len();
    for address in [[127, 0, 0, 1], [0, 0, 0, 0], [10, 1, 2, 3], [169, 254, 169, 254], [192, 168, 0, 1]] {
        for spelling in spellings(address) {
            let answer = world.ask(&spelling, "/_matrix/key/v2/server");
            assert!(matches!(answer.status, 400 | 502), "{spelling}: {}", answer.text());
        }
    }
    assert_eq!(world.dns.asked().len(), asked, "{:?}", &world.dns.asked()[asked..]);
    assert!(world.others["127.0.0.1"].names().is_empty() && world.backend.requests().is_empty());
    // Of two addresses, the one that may be asked is.
    world.dns.address("hs.test", "127.0.0.1");
    world.dns.address("hs.test", "127.0.1.1");
    assert_eq!(world.ask(&format!("hs.test:{port}"), PROFILE).status, 200);
    assert!(world.others["127.0.0.1"].names().is_empty());
}

/// An address as a URL may hold it.
fn spellings([a, b, c, d]: [u8; 4]) -> Vec<String> {
    let whole = u32::from_be_bytes([a, b, c, d]);
    let (last_two, last_three) = (u32::from(c) << 8 | u32::from(d), whole & 0xff_ffff);
    vec![
        format!("{whole}"),
        format!("{whole:#x}"),
        format!("{whole:#X}").replace("0X", "0x"),
        format!("0{whole:o}"),
        format!("{a}.{last_three}"),
        format!("{a}.{b}.{last_two}"),
        format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("{a:#04x}.{b}.0{c:o}.{d}"),
        format!("{a:03}.{b:03}.{c:03}.{d:03}"),
        format!("{a}.{b}.{c}.{d}."),
        format!("[::ffff:{a}.{b}.{c}.{d}]"),
        format!("[::ffff:{:x}:{last_two:x}]", whole >> 16),
        format!("[::{a}.{b}.{c}.{d}]"),
        format!("[64:ff9b::{a}.{b}.{c}.{d}]"),
        format!("[2002:{:x}:{last_two:x}::]", whole >> 16),
        format!("[0:0:0:0:0:FFFF:{:X}:{last_two:X}]", whole >> 16),
        format!("[::ffff:{a}.{b}.{c}.{d}%25lo]"),
        format!("x@{a}.{b}.{c}.{d}"),
        format!("{a}.{b}.{c}.{d}%00.example"),
    ]
}

#[test]
fn what_was_looked_at_is_what_is_connected_to() {
    let world = World::new(|_| ok());
    world.dns.address("hs.test", "127.0.1.1");
    let server = format!("hs.test:{}", world.home.addr().port());
    assert_eq!(world.ask(&server, PROFILE).status, 200);
    let looked_up = |of| world.dns.asked().iter().filter(|(_, asked)| *asked == of).count();
    assert_eq!((looked_up(RecordType::A), looked_up(RecordType::AAAA)), (1, 1));
    // The name moves to an address within, and the connection that is open ends.
    world.dns.remove("hs.test");
    world.dns.address("hs.test", "127.0.0.1");
    world.backend.close_connections();
    for _ in 0..20 {
        let answer = world.ask(&server, PROFILE);
        assert!(matches!(answer.status, 200 | 502), "{}", answer.text());
    }
    assert_eq!(world.ask(&server, PROFILE).status, 502);
    assert!(world.others["127.0.0.1"].names().is_empty());
}

#[test]
fn a_secret_that_is_changed_is_wanted_without_a_restart_and_a_bad_one_is_not_taken() {
    let world = World::new(|_| ok());
    world.dns.address("hs.test", "127.0.1.1");
    let server = format!("hs.test:{}", world.home.addr().port());
    let with = |secret: &str| {
        let signed = format!("X-Matrix origin=\"here.test\",key=\"ed25519:a\",sig=\"c2ln\",destination=\"{server}\"");
        let request = Request::new("GET", format!("matrix-federation://{server}{PROFILE}"));
        let request = request.header("Authorization", signed).header("Proxy-Authorization", format!("Bearer {secret}"));
        request.send(world.gateway.addr()).status
    };
    let (file, told) = (world.gateway.dir().join("secret"), || world.gateway.reloader().reload(Trigger::Command));
    assert_eq!((with("hook-secret"), with("another")), (200, 502));
    std::fs::write(&file, "another\n").unwrap();
    assert_eq!(told().unwrap().message, "the policy is unchanged; 1 door wants a new secret");
    assert_eq!((with("hook-secret"), with("another")), (502, 200));
    assert_eq!(told().unwrap().message, "the policy is unchanged");
    std::fs::write(&file, "a third\n").unwrap();
    let refused = told().unwrap_err();
    assert_eq!(refused.message, "the policy is unchanged; a new secret is refused, the old one stays");
    assert!(refused.problems.to_string().contains("cannot stand in a header"), "{}", refused.problems);
    assert!(!refused.problems.to_string().contains("third"));
    std::fs::write(world.gateway.policy_file(), "[rules.nonsense]").unwrap();
    let refused = told().unwrap_err();
    assert_eq!(refused.message, "the new policy and a new secret are refused, the old ones stay");
    assert_eq!((refused.problems.0.len(), with("another")), (2, 200));
    // Nobody has to ask for it. Twice, for all files are looked at once soon after the start.
    std::fs::write(&file, "fourth\n").unwrap();
    eventually("the file is looked at", || with("fourth") == 200);
    std::fs::write(&file, "fifth\n").unwrap();
    eventually("the file is looked at again", || with("fifth") == 200);
}
