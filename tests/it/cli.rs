//! The verbs of the binary and their exit codes.

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

use mantlet_testkit::backend::Answer;
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Connection, Request};
use serde_json::Value;

use crate::common::*;
use crate::process::{Ran, Site, run};

fn site() -> Site {
    Site::new("http://127.0.0.1:8008", "extends = \"balanced\"", "")
}

/// The lines that begin a problem, without their help.
fn told(ran: &Ran) -> Vec<&str> {
    ran.err.lines().filter(|line| !line.starts_with(' ')).collect()
}

#[test]
fn check_is_silent_on_what_is_good_and_has_two_spellings() {
    let site = site();
    for arguments in [&["check"][..], &["-t"], &["-c", "mantlet.toml", "check"], &["check", "--policy", "strict"]] {
        let ran = site.run(arguments);
        assert!(ran.code == Some(0) && ran.err.is_empty() && ran.out.contains(": good\n"), "{arguments:?}: {ran:?}");
    }
    let printed = site.run(&["check", "--print"]);
    assert!(printed.code == Some(0) && printed.out.contains("[rules.public_rooms]"), "{printed:?}");
    assert!(printed.out.contains("# built-in balanced:"), "each line tells its origin: {}", printed.out);
    // What is printed is a policy that says the same.
    site.write("printed.toml", &printed.out);
    assert_eq!(site.run(&["check", "--policy", "printed.toml"]).code, Some(0));
}

#[test]
fn what_is_wrong_with_a_policy_is_told_at_once_wherever_it_stands() {
    let site = site();
    let broken = "extends = \"balanced\"\nannounce_rules = true\n[[egress.destination]]\nhost = \"https://push.test\"\n\
                  action = \"tunnel\"\n[rules.profils]\n[rules.notary]\nfallback = \"matrix.org\"\n";
    site.write("broken.toml", broken);
    let ran = site.run(&["check", "--policy", "broken.toml"]);
    let places: Vec<_> =
        ran.err.lines().filter_map(|line| line.strip_prefix("broken.toml:")?.split(": ").next()).collect();
    assert_eq!((ran.code, places), (Some(1), vec!["2:1", "4:8", "6:8", "8:12"]), "{ran:?}");
}

#[test]
fn explain_tells_decision_rule_and_line() {
    let site = site();
    for (arguments, code, words) in [
        (&["explain", "GET", "/_matrix/client/versions"][..], 0, "permit"),
        (
            &["explain", "GET", "/_matrix/client/v3/publicRooms"],
            3,
            "deny with 401 M_MISSING_TOKEN, by public_rooms  [built-in balanced:",
        ),
        (&["explain", "GET", "/_matrix/client/v3/publicRooms", "-H", "Authorization: Bearer x"], 0, "permit"),
        (
            &[
                "explain",
                "GET",
                "/_matrix/client/v3/publicRooms",
                "-H",
                "Authorization: Bearer x",
                "--token",
                "invalid",
            ],
            3,
            "M_UNKNOWN_TOKEN",
        ),
        (
            &["explain", "GET", "/_matrix/client/v3/profile/@a:b", "-H", "Authorization: Bearer x", "--token", "guest"],
            3,
            "M_GUEST_ACCESS_FORBIDDEN",
        ),
        (&["explain", "GET", "https://hs.example/_matrix/federation/v1/version"], 0, "answer with 200"),
        (&["explain", "GET", "/_synapse/admin/v1/users"], 3, "by internal_endpoints"),
        (
            &["explain", "POST", "/_matrix/client/v3/account/3pid/unbind"],
            3,
            "told            as a privacy event, in the log",
        ),
        (
            &["explain", "--policy", "transparent", "GET", "/_matrix/client/v3/publicRooms"],
            0,
            "public_rooms would deny it, in report mode",
        ),
        (
            &["explain", "GET", "/_matrix/client/versions", "-H", "Host: a,b"],
            3,
            "deny with 400 M_UNKNOWN, before any rule: The request must name exactly one valid host",
        ),
        (
            &[
                "explain",
                "POST",
                "/_matrix/client/v3/login",
                "-H",
                "Content-Length: 3",
                "-H",
                "Transfer-Encoding: chunked",
            ],
            3,
            "The request must have one Content-Length, or be chunked and nothing else",
        ),
        (&["explain", "CONNECT", "/"], 3, "before any rule: This server opens no tunnels"),
        (&["explain", "CONNECT", "/", "--format", "json"], 3, "\"rule\": \"canonical\""),
    ] {
        let ran = site.run(arguments);
        assert!(ran.code == Some(code) && ran.out.contains(words) && ran.err.is_empty(), "{arguments:?}: {ran:?}");
    }
    for arguments in [
        &["explain", "GET"][..],
        &["explain", "G T", "/"],
        &["explain", "GET", "/", "-H", "nothing"],
        &["explain", "GET", "x y"],
    ] {
        let ran = site.run(arguments);
        assert!(ran.code == Some(2) && ran.out.is_empty() && !ran.err.is_empty(), "{arguments:?}: {ran:?}");
    }
}

/// A gateway with a proxy door, and a policy that names a host for each way.
fn site_with_ways() -> Site {
    let to =
        |host: &str, action: &str| format!("[[egress.destination]]\nhost = \"{host}.test\"\naction = \"{action}\"\n");
    let ways = [to("push", "tunnel"), to("seen", "intercept"), to("shut", "deny")].concat();
    let tests = "[[test]]\nrequest = \"CONNECT push.test:443\"\nexpect = { decision = \"permit\", endpoint = \"tunnel\" }\n\
                 [[test]]\nrequest = \"POST https://push.test/_matrix/push/v1/notify\"\nflow = \"egress\"\n\
                 expect = { decision = \"permit\", endpoint = \"tunnel\" }\n";
    let door = "[[listener]]\ndoor = \"proxy\"\nname = \"web\"\nbind = \"127.0.0.1:0\"";
    Site::new("http://127.0.0.1:8008", &format!("extends = \"balanced\"\n{ways}{tests}"), door)
}

#[test]
fn explain_says_which_way_a_host_goes_and_edits_nothing_in_a_tunnel() {
    let site = site_with_ways();
    for (target, way, endpoint, edits, decision) in [
        (
            "CONNECT push.test:443",
            "tunnel, in which nothing is read or changed  [policy.toml:2:1]",
            "tunnel",
            false,
            "permit",
        ),
        (
            "POST https://push.test/_matrix/push/v1/notify",
            "tunnel, in which nothing is read or changed  [policy.toml:2:1]",
            "tunnel",
            false,
            "permit",
        ),
        (
            "CONNECT other.test:8448",
            "tunnel, in which nothing is read or changed  [built-in balanced:",
            "tunnel",
            false,
            "permit",
        ),
        (
            "CONNECT seen.test:443",
            "looked into, so rules read what is asked inside  [policy.toml:5:1]",
            "tunnel",
            false,
            "permit",
        ),
        (
            "GET https://seen.test/x",
            "looked into, so rules read what is asked inside  [policy.toml:5:1]",
            "unserved (",
            true,
            "permit",
        ),
        ("GET http://push.test/x", "in the clear, so rules read it\n", "unserved (", true, "permit"),
        ("CONNECT shut.test:443", "denied  [policy.toml:8:1]", "tunnel", false, "deny with 403 M_FORBIDDEN, by egress"),
        (
            "GET http://shut.test/x",
            "denied  [policy.toml:8:1]",
            "unserved (",
            true,
            "deny with 403 M_FORBIDDEN, by egress",
        ),
        (
            "CONNECT unbind.mantlet.invalid:22",
            "answered here, whatever the policy says\n",
            "tunnel",
            false,
            "answer with 404, by threepid_unbind",
        ),
    ] {
        let (method, url) = target.split_once(' ').unwrap();
        let ran = site.run(&["explain", method, url, "--flow", "egress"]);
        let line = |heading: &str, words: &str| ran.out.contains(&format!("\n{heading:<15} {words}"));
        assert!(line("way", way) && line("endpoint", endpoint) && line("decision", decision), "{target}: {}", ran.out);
        assert_eq!(!line("request edits", "none\n"), edits, "{target}: {}", ran.out);
    }
    let json = |method: &str, url: &str| -> Value {
        serde_json::from_str(&site.run(&["explain", method, url, "--flow", "egress", "--format", "json"]).out).unwrap()
    };
    for (method, url, way, endpoint) in [
        ("CONNECT", "push.test:443", "tunnel", "tunnel"),
        ("CONNECT", "seen.test:443", "intercept", "tunnel"),
        ("CONNECT", "shut.test:443", "deny", "tunnel"),
        ("GET", "http://push.test/x", "clear", "unserved"),
    ] {
        let told = json(method, url);
        assert_eq!((&told["way"]["is"], &told["endpoint"]["id"]), (&way.into(), &endpoint.into()), "{told}");
        assert_eq!(told["request_edits"].as_array().unwrap().is_empty(), method == "CONNECT", "{told}");
    }
    assert_eq!(json("GET", "/_matrix/federation/v1/version")["way"], Value::Null);
    let tests = site.run(&["test"]);
    assert!(tests.code == Some(0) && tests.out.ends_with("2 passed, 0 failed\n"), "{tests:?}");
}

#[test]
fn explain_refuses_a_port_that_no_proxy_door_leads_to() {
    let site = site_with_ways();
    let closed = "deny with 403 M_FORBIDDEN, before any rule: The proxy door does not lead to this port";
    for (method, url) in
        [("CONNECT", "push.test:22"), ("GET", "http://push.test:8080/x"), ("GET", "https://push.test:444/x")]
    {
        let ran = site.run(&["explain", method, url, "--flow", "egress"]);
        assert!(ran.code == Some(3) && ran.out.contains(closed), "{url}: {ran:?}");
        // A policy that is looked at by itself says nothing of doors.
        let alone = site.run(&["explain", method, url, "--flow", "egress", "--policy", "policy.toml"]);
        assert!(alone.code == Some(0) && !alone.out.contains(closed), "{url}: {alone:?}");
    }
    let json = site.run(&["explain", "CONNECT", "push.test:22", "--format", "json"]);
    assert!(json.out.contains("\"rule\": \"proxy_door\"") && json.out.contains("\"status\": 403"), "{json:?}");
    let more = "[[listener]]\ndoor = \"proxy\"\nname = \"odd\"\nbind = \"127.0.0.1:0\"\nports = [22]\n";
    let file = std::fs::read_to_string(site.path().join("mantlet.toml")).unwrap();
    site.write("mantlet.toml", &format!("{file}\n{more}"));
    let ran = site.run(&["explain", "CONNECT", "push.test:22"]);
    assert!(ran.code == Some(0) && ran.out.contains("permit"), "one of two doors leads there: {ran:?}");
}

#[test]
fn explain_takes_what_is_asked_at_the_federation_door_for_what_leaves() {
    let site = Site::new("http://127.0.0.1:8008", "extends = \"strict\"", "");
    let ran = site.run(&["explain", "GET", "matrix-federation://a.test/_matrix/federation/v1/version"]);
    assert!(ran.code == Some(0) && ran.out.contains("decision        permit"), "{ran:?}");
    assert!(
        ran.out.contains("flow            egress\nendpoint        federation_"),
        "no way of the proxy door: {ran:?}"
    );
}

#[test]
fn test_runs_the_policys_own_tests() {
    let site = site();
    let good = site.run(&["test", "--policy", "balanced"]);
    assert!(good.code == Some(0) && good.out.contains(" passed, 0 failed") && !good.out.contains("FAILED"), "{good:?}");
    site.write(
        "policy.toml",
        "extends = \"balanced\"\n[[test]]\nname = \"all is open\"\nrequest = \"GET /_matrix/client/v3/publicRooms\"\nexpect = { decision = \"permit\" }\n",
    );
    let bad = site.run(&["test"]);
    assert!(bad.code == Some(1) && bad.out.contains("FAILED  all is open  [policy.toml:4:"), "{bad:?}");
    let checked = site.run(&["check"]);
    assert!(
        checked.code == Some(1) && checked.err.contains("the policy's own test \"all is open\" failed"),
        "{checked:?}"
    );
}

#[test]
fn rules_and_version_tell_what_there_is() {
    let site = site();
    let all = site.run(&["rules"]);
    assert_eq!(all.code, Some(0));
    for rule in ["closed_endpoint", "public_rooms", "profiles", "threepid_unbind", "request_headers", "server_banner"] {
        assert!(all.out.contains(rule), "{}", all.out);
        let one = site.run(&["rules", rule]);
        assert!(one.code == Some(0) && one.out.contains("Leak: ") && one.out.contains("Cost: "), "{one:?}");
    }
    let endpoints = site.run(&["rules", "endpoints"]);
    assert!(endpoints.code == Some(0) && endpoints.out.contains("get_public_rooms "), "{}", endpoints.out);
    let unknown = site.run(&["rules", "public_room"]);
    assert!(unknown.code == Some(2) && unknown.err.contains("did you mean `public_rooms`?"), "{unknown:?}");
    let version = site.run(&["version"]);
    assert_eq!((version.code, version.out), (Some(0), format!("mantlet {}\n", env!("CARGO_PKG_VERSION"))));
    assert_eq!(site.run(&[]).code, Some(2));
    assert_eq!(site.run(&["serve"]).code, Some(2));
}

#[test]
fn every_verb_speaks_json() {
    let site = site();
    for (arguments, code) in [
        (&["check"][..], 0),
        (&["check", "--print"], 0),
        (&["explain", "GET", "/_matrix/client/v3/publicRooms"], 3),
        (&["test", "--policy", "balanced"], 0),
        (&["rules"], 0),
        (&["rules", "profiles"], 0),
        (&["rules", "endpoints"], 0),
        (&["version"], 0),
        (&["check", "--policy", "none.toml"], 1),
        (&["reload"], 1),
    ] {
        let ran = site.run(&[&["--format", "json"], arguments].concat());
        assert_eq!(ran.code, Some(code), "{arguments:?}: {ran:?}");
        let value: Result<Value, _> = serde_json::from_str(&ran.out);
        assert!(value.is_ok() && ran.err.is_empty(), "{arguments:?}: {ran:?}");
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once_with_its_place() {
    let site = site();
    site.write(
        "mantlet.toml",
        "[[listener]]\ndoor = \"ingress\"\nbnd = \"127.0.0.1:0\"\n[limts]\nbody = \"1MiB\"\n[tokens]\npositive = \"5m\"\n\
         [policy]\nfile = \"policy.toml\"\n",
    );
    for arguments in [&["check"][..], &["run"]] {
        let ran = site.run(arguments);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.err.contains("mantlet.toml:3:1: ") && ran.err.contains("did you mean `bind`?"), "{}", ran.err);
        assert!(ran.err.contains("mantlet.toml:4:2: ") && ran.err.contains("did you mean `limits`?"), "{}", ran.err);
        assert!(ran.err.contains("mantlet.toml:7:12: "), "{}", ran.err);
        assert!(told(&ran).len() >= 3, "{}", ran.err);
    }
}

#[test]
fn a_certificate_that_is_missing_and_a_key_that_others_read_are_refused() {
    let site = site();
    let authority = Authority::new().unwrap();
    let (certificate, key) = authority.issue(&["hs"]).unwrap().write(site.path()).unwrap();
    let with = |certificate: &str, key: &str| {
        site.write("mantlet.toml", &format!(
            "[[listener]]\ndoor = \"ingress\"\nbind = \"127.0.0.1:0\"\ntls = {{ certificate = \"{certificate}\", key = \"{key}\" }}\n[policy]\nfile = \"policy.toml\"\n"
        ));
        [site.run(&["check"]), site.run(&["run"])]
    };
    for ran in with("gone.crt", "gone.key") {
        assert!(ran.code == Some(1) && ran.err.contains("gone.crt") && ran.err.contains("gone.key"), "{ran:?}");
    }
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    for ran in with(certificate.to_str().unwrap(), key.to_str().unwrap()) {
        assert!(
            ran.code == Some(1) && ran.err.contains(key.to_str().unwrap()) && ran.err.contains("chmod 600"),
            "{ran:?}"
        );
    }
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(with_check(&site).code, Some(0));
}

fn with_check(site: &Site) -> Ran {
    site.run(&["check"])
}

#[test]
fn a_port_in_use_is_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let site = site();
    site.write("mantlet.toml", &site.gateway_file("http://127.0.0.1:8008", &addr.to_string(), ""));
    let ran = site.run(&["run"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let problems: Vec<_> = ran.err.lines().filter(|line| line.contains(&addr.to_string())).collect();
    assert!(problems.len() == 1 && problems[0].contains("in use"), "{}", ran.err);
    assert!(!ran.err.contains("panicked") && !site.admin().exists(), "{}", ran.err);
}

#[test]
fn two_gateways_never_share_a_port() {
    let upstream = homeserver();
    let first = Site::new(&url(&upstream), OPEN, "");
    let process = first.start();
    let second = site();
    second.write("mantlet.toml", &second.gateway_file(&url(&upstream), &process.addr().to_string(), ""));
    assert_eq!(second.run(&["run"]).code, Some(1));
    assert_eq!(Request::new("GET", VERSIONS).send(process.addr()).status, 200);
}

#[test]
fn with_a_broken_policy_nothing_listens() {
    let site = site();
    site.write("policy.toml", "[rules.nonsense]\n");
    let ran = site.run(&["run"]);
    assert!(ran.code == Some(1) && ran.err.contains("policy.toml:1:8: there is no rule `nonsense`"), "{ran:?}");
    assert!(!ran.err.contains("listening") && !site.admin().exists(), "{}", ran.err);
}

#[test]
fn a_homeserver_that_is_down_at_the_start_may_come_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("synapse.sock");
    let site = Site::new(&format!("unix:{}", path.display()), "extends = \"balanced\"", "");
    let process = site.start();
    let ready = process.admin("/readyz");
    assert_eq!((ready.status, &ready.json()["ready"]), (503, &Value::Bool(false)));
    assert_eq!(process.admin("/livez").status, 200);
    assert_matrix_error(&Request::new("GET", VERSIONS).send(process.addr()), 502, "M_UNKNOWN");
    let upstream = mantlet_testkit::backend::Backend::start_at(&path, |_| ok()).unwrap();
    assert_eq!(process.admin("/readyz").status, 200);
    assert_eq!(Request::new("GET", VERSIONS).send(process.addr()).status, 200);
    assert_eq!(upstream.requests()[0].target_text(), "/health");
}

#[test]
fn sigterm_lets_exchanges_end_and_the_process_with_them() {
    for signal in ["TERM", "INT"] {
        let (pieces, answer) = Answer::stream();
        let mut answer = Some(answer);
        let upstream =
            backend(
                move |request| {
                    if request.target_text() == VERSIONS { ok() } else { answer.take().unwrap_or(Answer::Close) }
                },
            );
        let site = Site::new(&url(&upstream), OPEN, "[limits]\ndrain = \"60s\"");
        let mut process = site.start();
        let addr = process.addr();
        // One that idles, one that has not said anything, one in the middle of an answer.
        let mut idle = Connection::open(addr).unwrap();
        idle.send(&Request::new("GET", VERSIONS)).unwrap();
        let mut silent = Connection::open(addr).unwrap();
        let mut busy = Connection::open(addr).unwrap();
        busy.write(b"GET /_matrix/client/v3/sync HTTP/1.1\r\nHost: hs\r\n\r\n").unwrap();
        pieces.send(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nfirst".to_vec()).unwrap();
        let begun = busy.read_some().unwrap();
        process.signal(signal);
        process.wait_log("it drains", |line| line["message"] == "draining");
        assert_eq!(idle.read_to_end().unwrap(), b"", "an idle connection is closed at once");
        eventually("nobody new is let in", || Connection::open(addr).is_err());
        assert_eq!(silent.send(&Request::new("GET", VERSIONS)).unwrap().status, 200, "it was let in before");
        assert_eq!(silent.read_to_end().unwrap(), b"");
        pieces.send(b"second".to_vec()).unwrap();
        let rest = busy.read_to_end().unwrap();
        assert!([begun, rest].concat().ends_with(b"firstsecond"), "the exchange ends whole");
        assert_eq!(process.wait().code(), Some(0));
        assert!(process.records().contains("\"sync\""), "its record is written: {}", process.records());
        assert!(!site.admin().exists());
    }
}

#[test]
fn the_drain_has_an_end() {
    let upstream = backend(|_| Answer::Hang);
    let site = Site::new(&url(&upstream), OPEN, "[limits]\ndrain = \"200ms\"");
    let mut process = site.start();
    let mut client = Connection::open(process.addr()).unwrap();
    client.write(b"GET /_matrix/client/v3/sync HTTP/1.1\r\nHost: hs\r\n\r\n").unwrap();
    upstream.wait_requests(1, SOON).unwrap();
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0));
    assert_eq!(client.read_to_end().unwrap(), b"");
}

#[test]
fn what_the_process_holds_is_closed_to_others_of_its_user() {
    let process = Site::new("http://127.0.0.1:9", OPEN, "").start_as_nobody();
    // What cannot be dumped belongs to root below /proc, whoever runs it (proc(5)).
    let (user, owner) = process.owner();
    assert!(user != 0 && owner == 0, "user {user}, owner {owner}");
}

#[test]
fn what_this_user_may_not_read_is_told_with_its_place_and_whom_it_has_to_belong_to() {
    let site = site();
    let authority = Authority::new().unwrap();
    let leaf = authority.issue(&["hs.example"]).unwrap();
    for (name, text) in [
        ("our.crt", authority.pem()),
        ("our.key", leaf.key.clone()),
        ("tls.crt", leaf.certificate.clone()),
        ("tls.key", leaf.key.clone()),
        ("out.secret", "secret".to_owned()),
        ("notary.key", "ed25519 notary YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1".to_owned()),
    ] {
        site.write(name, &text);
    }
    // To root nothing is closed, so it is another user who looks there.
    let is_root = std::fs::metadata(site.path()).unwrap().uid() == 0;
    std::fs::set_permissions(site.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let binary = site.path().join("mantlet");
    let ours = env!("CARGO_BIN_EXE_mantlet");
    std::fs::hard_link(ours, &binary).or_else(|_| std::fs::copy(ours, &binary).map(drop)).unwrap();
    for closed in ["our.key", "tls.key", "out.secret", "notary.key"] {
        std::fs::set_permissions(site.path().join(closed), PermissionsExt::from_mode(0o000)).unwrap();
    }
    let check = |gateway: &str| {
        site.write("mantlet.toml", gateway);
        let mut command = Command::new(&binary);
        command.arg("check").current_dir(site.path()).env_remove("MANTLET_CONFIG");
        if is_root {
            command.uid(65_534).gid(65_534);
        }
        let ran = command.output().unwrap();
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        String::from_utf8(ran.stderr).unwrap()
    };
    let help = "may not be read by this user\n    help: chown it to the user that Mantlet runs as, and run this as that user\n";
    let told = check(
        "[[listener]]\ndoor = \"ingress\"\nbind = \"127.0.0.1:8448\"\ntls = { certificate = \"tls.crt\", key = \"tls.key\" }\n\
         [[listener]]\ndoor = \"federation\"\nbind = \"127.0.0.1:46900\"\nsecret_file = \"out.secret\"\n\
         [egress]\nnotary_key = \"notary.key\"\n",
    );
    let each =
        ["4:40: the private key tls.key", "8:15: the secret file out.secret", "10:14: the notary key notary.key"];
    assert_eq!(told, each.map(|what| format!("mantlet.toml:{what} {help}")).concat());
    let told = check(
        "[[listener]]\ndoor = \"proxy\"\nbind = \"127.0.0.1:8118\"\n\
         [egress.ca]\ncertificate = \"our.crt\"\nkey = \"our.key\"\n",
    );
    assert_eq!(told, format!("mantlet.toml:4:1: the key file our.key {help}"));
}

#[test]
fn the_missing_directory_of_a_socket_is_told_by_check_and_at_the_start() {
    let site = site();
    let run = site.path().join("run");
    let socket = run.join("federation.sock");
    let listener = format!("[[listener]]\ndoor = \"ingress\"\nbind = \"unix:{}\"\n", socket.display());
    let admin = format!("[admin]\nbind = \"unix:{}\"\n", run.join("admin.sock").display());
    site.write("mantlet.toml", &format!("{listener}{admin}"));
    let needs = format!("the directory {}, for a socket: make it, for the user that Mantlet runs as", run.display());
    let checked = site.run(&["check"]);
    assert!(checked.code == Some(0) && checked.out.matches(&format!("\n  needs  {needs}")).count() == 1, "{checked:?}");
    let told: Value = serde_json::from_str(&site.run(&["--format", "json", "check"]).out).unwrap();
    assert!(told["needs"][0].as_str().is_some_and(|told| told.starts_with(&needs)), "{told}");
    let started = site.run(&["run"]);
    let what = format!(
        "the socket {} cannot be made: the directory {} does not exist\n    help: make it, ",
        socket.display(),
        run.display()
    );
    assert!(started.code == Some(1) && started.err.contains(&what), "{started:?}");
    assert!(started.err.contains("RuntimeDirectory="), "{started:?}");
    std::fs::create_dir(&run).unwrap();
    assert!(!site.run(&["check"]).out.contains("needs"));
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let ran = run(dir.path(), &["-c", "gone.toml", "check"]);
    assert!(ran.code == Some(1) && ran.err.contains("gone.toml"), "{ran:?}");
}

#[test]
fn without_a_gateway_file_every_verb_that_needs_one_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let told = "there is no gateway file: neither mantlet.toml here nor /etc/mantlet/mantlet.toml\n    help: name it: --config FILE\n";
    std::fs::write(dir.path().join("homeserver.yaml"), "server_name: hs.test\n").unwrap();
    for arguments in [
        &["reload"][..],
        &["ledger"],
        &["ca", "init"],
        &["ca", "show"],
        &["ca", "synapse"],
        &["check", "--homeserver", "homeserver.yaml"],
    ] {
        let ran = run(dir.path(), arguments);
        assert!(ran.code == Some(1) && ran.err == told && ran.out.is_empty(), "{arguments:?}: {ran:?}");
    }
    let checked = run(dir.path(), &["check"]);
    assert!(
        checked.out.starts_with("built-in balanced: good\n  file   no gateway file: the defaults\n"),
        "{checked:?}"
    );
    let alone = run(dir.path(), &["check", "--policy", "balanced"]);
    assert!(alone.code == Some(0) && !alone.out.contains("  file   "), "no gateway file is looked at: {alone:?}");
}

#[test]
fn check_and_run_name_the_gateway_file() {
    let upstream = homeserver();
    let site = Site::new(&url(&upstream), OPEN, "");
    let checked = site.run(&["check"]);
    assert!(
        checked.code == Some(0) && checked.out.contains(": good\n  file   mantlet.toml (gateway)\n"),
        "{checked:?}"
    );
    let json = site.run(&["check", "--format", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&json.out).unwrap()["gateway"], "mantlet.toml");
    site.write("homeserver.yaml", "server_name: hs.test\n");
    let compared = site.run(&["check", "--homeserver", "homeserver.yaml"]);
    assert!(compared.out.contains("\ncompared with mantlet.toml\nfindings "), "{compared:?}");
    site.start().wait_log("it is named", |line| line["file"] == "mantlet.toml");
}

#[test]
fn what_is_no_gateway_is_not_taken_for_one_that_reloads() {
    let other = backend(|_| ok());
    let site = site();
    site.write("mantlet.toml", &format!("[admin]\nbind = \"{}\"\n", other.addr()));
    let ran = site.run(&["reload"]);
    let told =
        "what answers there is no gateway that can be asked to reload\n    help: is it a gateway of this version?\n";
    assert!(ran.code == Some(1) && ran.err == told && ran.out.is_empty(), "{ran:?}");
    site.write("mantlet.toml", "");
    let ran = site.run(&["reload"]);
    assert!(
        ran.err.starts_with("mantlet.toml has no [admin], so the running gateway cannot be asked to reload"),
        "{ran:?}"
    );
}

#[test]
fn check_says_at_which_doors_a_rule_acts() {
    let door = |door: &str, more: &str| {
        format!("[[listener]]\ndoor = \"{door}\"\nname = \"{door}\"\nbind = \"127.0.0.1:0\"\n{more}\n")
    };
    let federation = door("federation", "secret_file = \"federation.secret\"");
    let notary = door("notary", "server_name = \"notary.test\"");
    for (doors, at) in [
        (String::new(), "only in the clear, for no host is intercepted"),
        (federation.clone(), "at the federation door, and in the clear; no host is intercepted"),
        (notary.clone(), "at the notary door, and in the clear; no host is intercepted"),
        (
            [federation, notary].concat(),
            "at the federation and the notary door, and in the clear; no host is intercepted",
        ),
    ] {
        let site = Site::new("http://127.0.0.1:8008", "extends = \"balanced\"", &[door("proxy", ""), doors].concat());
        site.write("federation.secret", "a-secret");
        let secret = site.path().join("federation.secret");
        std::fs::set_permissions(secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let ran = site.run(&["check"]);
        assert!(ran.code == Some(0) && ran.out.contains(&format!("\n  out    notary: {at}\n")), "{at}: {ran:?}");
        let push = "\n  out    push: only in the clear, for no host is intercepted\n";
        assert!(ran.out.contains(push), "other rules act at the proxy door alone: {ran:?}");
    }
}
