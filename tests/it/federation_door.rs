//! The federation door: what Synapse asks other servers, and what those and Synapse see of it.

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use hickory_resolver::proto::rr::RecordType;
use mantlet::config::egress::Ports;
use mantlet::server::reload::Trigger;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Connection, Request, Response, response};
use mantlet_testkit::recorder::RecordedRequest;
use serde_json::json;

use crate::common::{assert_matrix_error, eventually, noise, ok};
use crate::support::Gateway;
use crate::support::outside::{Dns, H2Server, TlsFront};

/// A door, and the world behind it.
pub struct World {
    pub gateway: Gateway,
    pub dns: Dns,
    /// What the other servers serve, by the name in `Host`.
    pub backend: Backend,
    /// The web at the port of `https`, at 127.0.1.1.
    pub web: TlsFront,
    /// A homeserver at the port of federation, at 127.0.1.1.
    pub home: TlsFront,
    pub authority: Authority,
    /// Others, by address, at the port of federation.
    pub others: HashMap<&'static str, TlsFront>,
}

/// Names that the fronts have certificates for.
const NAMES: [&str; 8] =
    ["hs.test", "delegated.test", "cdn.test", "web.test", "bare.test", "127.0.1.1", "127.0.1.2", "localhost"];

impl World {
    pub fn new(play: impl FnMut(&RecordedRequest) -> Answer + Send + 'static) -> World {
        Self::with("extends = \"transparent\"", "", play)
    }

    pub fn with(policy: &str, more: &str, play: impl FnMut(&RecordedRequest) -> Answer + Send + 'static) -> World {
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
    pub fn request(&self, method: &str, server: &str, path: &str) -> Request {
        let signed = format!("X-Matrix origin=\"here.test\",key=\"ed25519:a\",sig=\"c2ln\",destination=\"{server}\"");
        Request::new(method, format!("matrix-federation://{server}{path}"))
            .header("Connection", "close")
            .header("User-Agent", "Synapse/1.163.2")
            .header("Authorization", signed)
            .header("Proxy-Authorization", "Bearer hook-secret")
            .timeout(Duration::from_secs(20))
    }

    pub fn ask(&self, server: &str, path: &str) -> Response {
        self.request("GET", server, path).send(self.gateway.addr())
    }

    /// The `Host` fields of what came, but for questions about delegations.
    pub fn hosts(&self) -> Vec<String> {
        let asked = self.backend.requests();
        let asked = asked.iter().filter(|request| !is_well_known(request));
        asked.map(|request| request.header("host").unwrap_or_default().to_owned()).collect()
    }

    pub fn well_knowns(&self) -> usize {
        self.backend.requests().iter().filter(|request| is_well_known(request)).count()
    }
}

pub fn is_well_known(request: &RecordedRequest) -> bool {
    request.target_text() == "/.well-known/matrix/server"
}

pub const PROFILE: &str = "/_matrix/federation/v1/query/profile?user_id=%40a%3Ahs.test&x=%7e;/..//y";

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
fn strangers_who_take_all_places_at_the_way_in_leave_synapse_its_own() {
    let inward = "[[listener]]\nname = \"in\"\ndoor = \"ingress\"\nbind = \"127.0.0.1:0\"\n[limits]\nconnections = 3\n";
    let world = World::with("extends = \"transparent\"", inward, |_| ok());
    world.dns.address("hs.test", "127.0.1.1");
    let clients = world.gateway.addr_of("in");
    let mut strangers: Vec<_> = (0..3).map(|_| Connection::open(clients).unwrap()).collect();
    // They are there, each with an answer, and nobody else is.
    let request = Request::new("GET", "/nothing/here");
    for stranger in &mut strangers {
        assert_eq!(stranger.send(&request).unwrap().status, 404);
    }
    assert!(request.try_send(clients).is_err());
    let server = format!("hs.test:{}", world.home.addr().port());
    assert_eq!(world.ask(&server, PROFILE).status, 200);
    // Those of the way out are counted, too.
    let (out, open) = (world.gateway.addr(), || world.gateway.metric("mantlet_connections{listener=\"out\"}"));
    eventually("its connection is gone", || open() == 0.0);
    let idle: Vec<_> = (0..3).map(|_| TcpStream::connect(out).unwrap()).collect();
    eventually("all places are taken", || open() == 3.0);
    assert!(world.request("GET", &server, PROFILE).try_send(out).is_err());
    drop((strangers, idle));
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
    for odd in ["/_matrix/federation/v1/version", &target.replace("matrix-federation", "https")] {
        assert_matrix_error(&ask(known, odd, &signed(&server)), 400, "M_UNKNOWN");
    }
    // Synapse takes the first two for names of servers, and leaves alone who is down, not who refuses.
    for name in ["127.1", "-a.test", "a.test.", "hs.test:99999", "my_hs.test"] {
        let target = format!("matrix-federation://{name}/_matrix/federation/v1/version");
        assert_matrix_error(&ask(known, &target, &signed(name)), 502, "M_UNKNOWN");
    }
    assert!(world.backend.requests().is_empty() && world.dns.asked().is_empty());
    assert_eq!(ask(known, &target, &signed(&server)).status, 200);
    let written = world.gateway.records(14);
    let is_refused = |record: &serde_json::Value| {
        (&record["rule"], &record["decision"], &record["flow"])
            == (&json!("federation_door"), &json!("deny"), &json!("egress"))
    };
    assert!(written[..13].iter().all(is_refused), "{written:?}");
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
