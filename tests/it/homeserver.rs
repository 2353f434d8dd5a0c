//! `mantlet check --homeserver`: what in Synapse's configuration leads past the doors, and that no secret of it is told.

use std::os::unix::fs::PermissionsExt;

use mantlet_testkit::certificate::Authority;
use serde_json::Value;

use crate::process::{Ran, Site};

/// What is never told. Each is somewhere in the files below.
const HIDDEN: &str = "hidden-from-everybody";

const GATEWAY: &str = r#"
[[listener]]
door = "ingress"
bind = "127.0.0.1:8480"

[[listener]]
door = "federation"
name = "out"
bind = "127.0.0.1:46900"
secret_file = "federation.secret"

[[listener]]
door = "proxy"
name = "web"
bind = "127.0.0.1:8118"
credentials_file = "proxy.credentials"
ports = [443, 80, 29318]

[upstream.synapse]
servers = ["http://127.0.0.1:8008"]

[policy]
file = "policy.toml"

[homeserver]
server_name = "example.org"

[egress.addresses]
allow = ["10.20.0.0/16", "bridge.internal"]
"#;

/// One in which there is nothing to find.
const GOOD: &str = r#"server_name: "example.org"
public_baseurl: "https://matrix.example.org/"
listeners:
  - port: 8008
    type: http
    bind_addresses: ["127.0.0.1", "::1"]
    x_forwarded: yes
    resources: [{names: [client, federation]}]
instance_map:
  out: {host: localhost, port: 46900}
outbound_federation_restricted_to: [out]
worker_replication_secret: hidden-from-everybody-1
registration_shared_secret: hidden-from-everybody-2
macaroon_secret_key: &secret hidden-from-everybody-3
form_secret: *secret
https_proxy: http://synapse:hidden-from-everybody-4@127.0.0.1:8118
http_proxy: http://synapse:hidden-from-everybody-4@localhost:8118
no_proxy_hosts: [localhost, 127.0.0.1, bridge.other.internal]
app_service_config_files: [bridge.yaml, other.yaml]
report_stats: false
federation_domain_whitelist: [example.org, example.com]
trusted_key_servers: [{server_name: matrix.org}]
database: {name: sqlite3, args: {database: /data/homeserver.db}}
"#;

const KEY_SERVERS: &str = "trusted_key_servers: [{server_name: matrix.org}]";

const BRIDGE: &str = r#"id: bridge
url: http://10.20.0.7:29318
as_token: hidden-from-everybody-5
hs_token: hidden-from-everybody-6
"#;

fn site() -> Site {
    let site = Site::new("http://127.0.0.1:8008", "extends = \"balanced\"", "");
    site.write("mantlet.toml", GATEWAY);
    site.write("bridge.yaml", BRIDGE);
    site.write("other.yaml", &BRIDGE.replace("10.20.0.7", "bridge.other.internal"));
    for (name, text) in
        [("federation.secret", "hidden-from-everybody-1\n"), ("proxy.credentials", "synapse:hidden-from-everybody-4\n")]
    {
        site.write(name, text);
        std::fs::set_permissions(site.path().join(name), PermissionsExt::from_mode(0o600)).unwrap();
    }
    site.write("homeserver.yaml", GOOD);
    site
}

fn check(site: &Site) -> Ran {
    let ran = site.run(&["check", "--homeserver", "homeserver.yaml"]);
    assert!(!ran.out.contains(HIDDEN) && !ran.err.contains(HIDDEN), "{ran:?}");
    ran
}

/// What is found once this stands there instead; fails if it did not stand there.
fn with(site: &Site, file: &str, text: &str, old: &str, new: &str) -> Ran {
    assert!(text.contains(old), "{old}");
    site.write(file, &text.replacen(old, new, 1));
    let ran = check(site);
    site.write(file, text);
    ran
}

fn findings(ran: &Ran) -> Vec<&str> {
    let lines = ran.out.lines().take_while(|line| !line.is_empty());
    lines.filter(|line| !line.starts_with(' ') && !line.starts_with("note: ")).collect()
}

#[test]
fn where_nothing_leads_past_the_doors_nothing_is_found() {
    let ran = check(&site());
    assert!(ran.code == Some(0) && findings(&ran).is_empty() && ran.err.is_empty(), "{ran:?}");
    assert!(ran.out.ends_with("\nfindings 0, notes 0\n"), "{ran:?}");
    assert!(
        ran.out.contains("(sqlite3 /data/homeserver.db):\n  SELECT DISTINCT id_server FROM user_threepid_id_server")
    );
}

#[test]
fn what_leads_past_a_door_is_found_where_it_stands() {
    let site = site();
    let mapped = "instance_map:\n  out: {host: localhost, port: 46900}\n";
    let restricted = "outbound_federation_restricted_to: [out]";
    let https = "https_proxy: http://synapse:hidden-from-everybody-4@127.0.0.1:8118";
    for (old, new, place, words) in [
        // The federation door.
        (restricted, "", "", "sets no `outbound_federation_restricted_to`"),
        (restricted, "outbound_federation_restricted_to:", "", "sets no `outbound_federation_restricted_to`"),
        (restricted, "outbound_federation_restricted_to: out", "11:1", "has to be a list"),
        (restricted, "outbound_federation_restricted_to: []", "11:1", "asks no other server at all"),
        (restricted, "outbound_federation_restricted_to: [master]", "11:37", "past Mantlet, without a word"),
        (restricted, "outbound_federation_restricted_to: [main]", "11:37", "\"main\" is Synapse's name for its own"),
        (restricted, "outbound_federation_restricted_to: [out, other]", "11:42", "\"other\" is not in `instance_map`"),
        (restricted, "outbound_federation_restricted_to: [1]", "11:37", "names what is a number"),
        (mapped, "", "9:37", "\"out\" is not in `instance_map`"),
        ("port: 46900", "port: 46901", "10:8", "\"out\" is at localhost:46901, where no federation door is"),
        ("{host: localhost, port: 46900}", "{path: /run/door.sock}", "10:8", "at /run/door.sock, where no"),
        ("{host: localhost, port: 46900}", "localhost", "10:8", "says of \"out\" what is a string, not a map"),
        ("port: 46900}", "port: 46900, tls: true}", "10:8", "Synapse wants TLS"),
        ("host: localhost, ", "", "10:8", "does not say where \"out\" is"),
        ("worker_replication_secret: hidden-from-everybody-1\n", "", "11:1", "Synapse does not start"),
        ("everybody-1", "everybody-9", "12:1", "not the secret of the federation door out"),
        ("secret: hidden-from-everybody-1", "secret: 12", "12:1", "is a number, not a string"),
        (
            restricted,
            "outbound_federation_restricted_to: [out]\nstream_writers: {typing: out}",
            "12:18",
            "writes `typing`",
        ),
        (
            restricted,
            "outbound_federation_restricted_to: [out]\nworker_replication_secret_path: x",
            "12:1",
            "both stand",
        ),
        // Keys.
        (
            "server_name: matrix.org}",
            "server_name: matrix.org, verify_keys: {\"ed25519:a\": x}}",
            "22:23",
            "are pinned",
        ),
        (KEY_SERVERS, "trusted_key_servers: matrix.org", "22:1", "is a string, and has to be a list"),
        (KEY_SERVERS, "perspectives: {servers: {}}", "22:1", "is an old name for `trusted_key_servers`"),
        (
            "[example.org, example.com]",
            "example.org",
            "21:1",
            "takes its letters for servers, and federates with nobody",
        ),
        (
            "[example.org, example.com]",
            "true",
            "21:1",
            "is true or false, and has to be a list: Synapse does not start",
        ),
        ("[example.org, example.com]", "[example.com]", "21:1", "example.org itself is not in"),
        // The proxy door.
        ("https_proxy: http://synapse:hidden-from-everybody-4@127.0.0.1:8118\n", "", "", "cannot be seen from here"),
        (
            "http_proxy: http://synapse:hidden-from-everybody-4@localhost:8118",
            "http_proxy:",
            "17:1",
            "there is no proxy",
        ),
        (https, "https_proxy: \"\"", "16:1", "there is no proxy, whatever"),
        (https, "https_proxy: 8118", "16:1", "is a number, and has to be a string"),
        ("@127.0.0.1:8118", "@:8118", "16:1", "is not the URL of a proxy"),
        ("@127.0.0.1:8118", "@hidden-from-everybody/w#x?y@127.0.0.1:8118", "16:1", "an `@` stands behind a `/`"),
        ("synapse:hidden-from-everybody-4@127", "hidden-from-everybody:12/@127", "16:1", "an `@` stands behind a `/`"),
        ("@127.0.0.1:8118", "@127.0.0.1:8119", "16:1", "leads to 127.0.0.1:8119, where no proxy door is"),
        ("@127.0.0.1:8118", "@127.0.0.1", "16:1", "leads to 127.0.0.1:1080"),
        ("https_proxy: http:", "https_proxy: https:", "16:1", "speaks none"),
        ("synapse:hidden-from-everybody-4@127", "127", "16:1", "wants credentials"),
        ("everybody-4@127", "everybody-9@127", "16:1", "not the credentials"),
        ("[localhost, 127.0.0.1, bridge.other.internal]", "localhost", "18:1", "is a string, and has to be a list"),
        ("[localhost, 127.0.0.1, bridge.other.internal]", "[\"*\"]", "18:18", "nothing passes the proxy door"),
        ("[localhost, 127", "[1, 127", "18:18", "names what is a number, not a string: Synapse does not start"),
        (
            "[bridge.yaml, other.yaml]",
            "bridge.yaml",
            "19:1",
            "is a string, and has to be a list: Synapse does not start",
        ),
        ("[bridge.yaml, other.yaml]", "", "19:1", "is nothing, and has to be a list: Synapse does not start"),
        ("[bridge.yaml, other.yaml]", "[bridge.yaml, 1]", "19:41", "names what is a number, not a string: Synapse"),
        ("[localhost, 127", "[push.example.org, 127", "18:18", "push.example.org, and all names that end so"),
        ("bridge.other.internal]", "other.internal]", "18:40", "other.internal, and all names that end so"),
        ("bridge.other.internal]", ".INTERNAL]", "18:40", ".INTERNAL, and all names that end so"),
        ("report_stats: false", "report_stats: true", "20:1", "are sent to matrix.org"),
        ("report_stats: false", "report_stats: false\nurl_preview_enabled: true", "", "does not start"),
        ("report_stats: false", "account_threepid_delegates: {email: x}", "20:30", "does not start"),
        ("bridge.other.internal]", "x.localhost]", "", "has no public address"),
        // The way in.
        ("x_forwarded: yes", "x_forwarded: no", "7:5", "takes all clients for one"),
        ("    x_forwarded: yes\n", "", "4:5", "takes all clients for one"),
        ("    bind_addresses: [\"127.0.0.1\", \"::1\"]\n", "", "4:5", "port 8008 (client, federation) listens on ::"),
        ("\"::1\"", "\"0.0.0.0\"", "6:5", "listens on 0.0.0.0"),
        ("[\"127.0.0.1\", \"::1\"]", "127.0.0.1", "6:5", "is a string, and has to be a list: Synapse does not start"),
        ("type: http", "type: http\n    tls: true", "6:5", "it speaks TLS"),
        ("port: 8008", "port: 8009", "", "has no listener there"),
        ("https://matrix.example.org/", "https://", "2:1", "is no URL"),
        ("https://matrix.example.org/", "http://matrix.example.org:8008", "2:1", "Synapse's own"),
        ("server_name: \"example.org\"", "server_name: \"other.org\"", "1:1", "this is other.org"),
        ("server_name: \"example.org\"", "server_name: \"example.org\"\nbind_port: 8448", "2:1", "everybody reaches"),
    ] {
        let ran = with(&site, "homeserver.yaml", GOOD, old, new);
        let place = if place.is_empty() { String::new() } else { format!("homeserver.yaml:{place}: ") };
        let is_told = |line: &&str| line.starts_with(&place) && line.contains(words);
        let of_bridge = |line: &&str| line.contains(words) && line.starts_with("other.yaml:2:6: ");
        assert!(
            ran.code == Some(1) && findings(&ran).iter().any(|line| is_told(line) || of_bridge(line)),
            "{new}: {ran:?}"
        );
    }
}

#[test]
fn a_door_that_is_a_worker_too_is_found() {
    let site = site();
    for duty in [
        "federation_sender_instances",
        "pusher_instances",
        "run_background_tasks_on",
        "notify_appservices_from_worker",
        "update_user_directory_from_worker",
        "media_instance_running_background_jobs",
    ] {
        for (names, is_found) in [("out", true), ("[other, out]", true), ("[other]", false), ("other", false)] {
            let ran =
                with(&site, "homeserver.yaml", GOOD, "\nreport_stats", &format!("\n{duty}: {names}\nreport_stats"));
            let words = format!("homeserver.yaml:20:1: \"out\" is a worker in `{duty}`: ");
            let found = findings(&ran);
            assert_eq!(found.len(), usize::from(is_found), "{duty}: {names}: {ran:?}");
            assert!(found.iter().all(|line| line.starts_with(&words)), "{ran:?}");
        }
    }
    let ran = with(&site, "homeserver.yaml", GOOD, "\nreport_stats", "\nstream_writers: {typing: other}\nreport_stats");
    assert_eq!(findings(&ran), [""; 0]);
}

/// What is found of these settings beside the good ones, and what is noted, with this gateway file and this policy.
fn judged(site: &Site, gateway: &str, policy: &str, homeserver: &str) -> (Vec<String>, Vec<String>) {
    site.write("mantlet.toml", gateway);
    site.write("policy.toml", policy);
    site.write("homeserver.yaml", homeserver);
    let ran = check(site);
    assert!(ran.err.is_empty(), "{ran:?}");
    let notes = ran.out.lines().filter(|line| line.starts_with("note: ")).map(str::to_owned).collect();
    (findings(&ran).into_iter().map(str::to_owned).collect(), notes)
}

#[test]
fn what_leads_past_no_door_is_not_found() {
    let site = site();
    let good = |what: &str, gateway: &str, policy: &str, homeserver: &str| {
        assert_eq!(judged(&site, gateway, policy, homeserver), (vec![], vec![]), "{what}");
    };
    let balanced = "extends = \"balanced\"";
    let more = |lines: &str| format!("{GOOD}{lines}\n");
    for lines in [
        "bind_port:",
        "ip_range_whitelist: []",
        "email:\nsentry: {}\nmodules: []\nsaml2_config: {}\nmedia_storage_providers: []",
        "opentracing: {enabled: false}\nmatrix_authentication_service: {enabled: false}",
        "url_preview_enabled: false\naccount_threepid_delegates: {}",
        "worker_replication_secret_path: \"\"",
        "federation_domain_whitelist: []",
        "no_proxy_hosts: [.Bridge.Other.Internal]",
        "redis: {enabled: false}",
    ] {
        good(lines, GATEWAY, balanced, &more(lines));
    }
    let listener = "    resources: [{names: [client, federation]}]\n";
    let others = "    tls: false\n  - {port: 9093, type: http, bind_addresses: [\"127.0.0.1\"], resources: [{names: [replication]}]}\n";
    good("a listener of workers", GATEWAY, balanced, &GOOD.replace(listener, &format!("{listener}{others}")));
    let socket = GATEWAY.replace("http://127.0.0.1:8008", "unix:/run/synapse/main.sock");
    let listens =
        "  - port: 8008\n    type: http\n    bind_addresses: [\"127.0.0.1\", \"::1\"]\n    x_forwarded: yes\n";
    good("a socket", &socket, balanced, &GOOD.replace(listens, "  - path: /run/synapse/main.sock\n    type: http\n"));
    let workers = GATEWAY.replace(
        "[policy]",
        "[upstream.media]\nservers = [\"http://127.0.0.1:8009\"]\n[[route]]\n\
        path = \"/_matrix/media/.*\"\nupstream = \"media\"\n[policy]",
    );
    good("a worker elsewhere", &workers, balanced, GOOD);
    // One port, on two machines or addresses.
    let same = GATEWAY.replace("127.0.0.1:8480", "127.0.0.2:8008");
    good("one port", &same, balanced, &GOOD.replace("https://matrix.example.org/", "http://matrix.example.org:8008"));
}

#[test]
fn statistics_are_found_where_nobody_answers_them() {
    let site = site();
    let authority = format!("{GATEWAY}\n[egress.ca]\ncertificate = \"ca.crt\"\nkey = \"ca.key\"\n");
    let (unread, reported) = (GATEWAY, GOOD.replace("report_stats: false", "report_stats: true"));
    site.write("mantlet.toml", &authority);
    assert_eq!(site.run(&["ca", "init"]).code, Some(0));
    let way = |action: &str| {
        format!(
            "extends = \"transparent\"\n[[egress.destination]]\nhost = \"matrix.org\"\naction = \"{action}\"\n\
        [rules.notary]\nmode = \"enforce\"\n"
        )
    };
    let answered = "[rules.usage_stats]\nmode = \"enforce\"\n";
    for (gateway, policy, is_found) in [
        (unread, way("tunnel"), true),
        (unread, way("deny"), false),
        (&authority, way("tunnel") + answered, true),
        (&authority, way("intercept") + answered, false),
        (&authority, way("intercept"), true),
    ] {
        let (found, _) = judged(&site, gateway, &policy, &reported);
        assert_eq!(
            found.iter().filter(|line| line.contains("are sent to matrix.org")).count(),
            usize::from(is_found),
            "{policy}: {found:?}"
        );
        assert_eq!(found.len(), usize::from(is_found), "{found:?}");
    }
    // Without a proxy door a policy denies nothing.
    let (found, _) = judged(&site, &without(&["proxy"]), &way("deny"), &reported);
    assert!(found.iter().any(|line| line.contains("are sent to matrix.org")), "{found:?}");
    // The rule answers at one path, in the clear at every host.
    for (endpoint, is_found) in [
        ("https://matrix.org/report-usage-stats/push", false),
        ("https://matrix.org/collect", true),
        ("http://stats.test/report-usage-stats/push", false),
        ("https://stats.test/report-usage-stats/push", true),
    ] {
        let homeserver = format!("{reported}report_stats_endpoint: {endpoint}\n");
        let (found, _) = judged(&site, &authority, &(way("intercept") + answered), &homeserver);
        assert_eq!(found.len(), usize::from(is_found), "{endpoint}: {found:?}");
    }
}

#[test]
fn a_captcha_whose_maker_is_told_the_users_address_is_found() {
    let site = site();
    let authority = format!("{GATEWAY}\n[egress.ca]\ncertificate = \"ca.crt\"\nkey = \"ca.key\"\n");
    site.write("mantlet.toml", &authority);
    let made = site.run(&["ca", "init", "www.recaptcha.net", "challenges.test", "my_site.test"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let way = |base: &str, host: &str, action: &str| {
        format!("extends = \"{base}\"\n[[egress.destination]]\nhost = \"{host}\"\naction = \"{action}\"\n")
    };
    let intercepted = way("balanced", "www.recaptcha.net", "intercept");
    let other = way("balanced", "challenges.test", "intercept");
    let at = |url: &str| format!("recaptcha_siteverify_api: {url}\n");
    let is_told = "is told the address of each user who solves a captcha";
    for (gateway, policy, more, words) in [
        (&*authority, "extends = \"balanced\"", String::new(), is_told),
        (&authority, &way("balanced", "www.recaptcha.net", "tunnel"), String::new(), is_told),
        (&authority, &way("transparent", "www.recaptcha.net", "intercept"), String::new(), is_told),
        (&authority, &way("balanced", "www.recaptcha.net", "deny"), String::new(), "nobody can register"),
        (&authority, &intercepted, String::new(), ""),
        (&authority, &intercepted, at("https://challenges.test/turnstile/v0/siteverify"), is_told),
        (&authority, &other, at("https://challenges.test/turnstile/v0/siteverify"), ""),
        (&authority, &other, at("https://challenges.test/verify"), is_told),
        (&without(&["proxy"]), "extends = \"balanced\"", String::new(), is_told),
    ] {
        let homeserver = format!("{GOOD}enable_registration_captcha: true\n{more}");
        let (found, _) = judged(&site, gateway, policy, &homeserver);
        let of_captcha: Vec<_> = found.iter().filter(|line| line.starts_with("homeserver.yaml:24:1: ")).collect();
        assert_eq!(of_captcha.len(), usize::from(!words.is_empty()), "{policy} {more}: {found:?}");
        assert!(of_captcha.iter().all(|line| line.contains(words)), "{policy} {more}: {found:?}");
    }
    let (found, _) =
        judged(&site, &authority, "extends = \"balanced\"", &format!("{GOOD}enable_registration_captcha: no\n"));
    assert_eq!(found, [""; 0]);
}

/// The gateway file without this door, or these.
fn without(doors: &[&str]) -> String {
    doors.iter().fold(GATEWAY.to_owned(), |text, door| {
        let (start, rest) = text.split_once(&format!("[[listener]]\ndoor = \"{door}\"")).unwrap();
        format!("{start}{}", rest.split_once("\n\n").unwrap().1)
    })
}

#[test]
fn without_a_door_it_is_said_once_what_passes_unseen() {
    let site = site();
    let balanced = "extends = \"balanced\"";
    let noted = |gateway: &str, homeserver: &str| judged(&site, gateway, balanced, homeserver);
    // What a bridge is, and which proxy is set, is nobody's business without a proxy door.
    site.write("bridge.yaml", &BRIDGE.replace("10.20.0.7", "10.21.0.7"));
    let (found, notes) =
        noted(&without(&["proxy"]), &GOOD.replace("\nhttps_proxy: ", "\nhttps_proxy: http://elsewhere # "));
    assert!(
        found.is_empty() && notes.len() == 1 && notes[0].contains("the gateway has no proxy door"),
        "{found:?} {notes:?}"
    );
    site.write("bridge.yaml", BRIDGE);
    let none = without(&["proxy", "federation"]);
    let alone = GOOD.replace("outbound_federation_restricted_to: [out]\n", "");
    let alone = alone.replace(KEY_SERVERS, "trusted_key_servers: []");
    let (found, notes) = noted(&none, &alone);
    assert!(
        found.is_empty() && notes.len() == 2 && notes[0].contains("the gateway has no federation door"),
        "{found:?} {notes:?}"
    );
    for gateway in [&none, &without(&["federation"])] {
        // Nobody is asked.
        let (found, notes) = noted(gateway, &alone.replace("[example.org, example.com]", "[]"));
        assert!(!found.iter().chain(&notes).any(|line| line.contains("federation")), "{found:?} {notes:?}");
    }
}

#[test]
fn federation_that_no_door_lets_out_is_found() {
    let site = site();
    let (alone, homeserver) =
        (without(&["federation"]), GOOD.replace("outbound_federation_restricted_to: [out]\n", ""));
    let (dead, unread) = ("federation is refused: ", "federation goes through the proxy door: as tunnels");
    for (gateway, policy, words) in [
        (&alone, "extends = \"strict\"", dead),
        (&alone, "extends = \"strict\"\n[egress]\ndefault = \"tunnel\"", unread),
        (&alone, "extends = \"balanced\"", unread),
        (&alone, "extends = \"balanced\"\n[egress]\ndefault = \"deny\"", dead),
        (&without(&["proxy", "federation"]), "extends = \"strict\"", ""),
    ] {
        let (found, _) = judged(&site, gateway, policy, &homeserver);
        let of_federation: Vec<_> = found.iter().filter(|line| line.contains("federation")).collect();
        assert_eq!(of_federation.len(), usize::from(!words.is_empty()), "{policy}: {found:?}");
        assert!(of_federation.iter().all(|line| line.starts_with(words)), "{policy}: {found:?}");
    }
    // A door of another process, or workers that go the same way.
    let open = "extends = \"balanced\"";
    let (unseen, words) =
        ("what Synapse asks other servers passes unseen", "note: homeserver.yaml:11:1: whether a door of");
    for (gateway, policy, what) in [
        (&alone, "extends = \"strict\"", dead),
        (&alone, open, unread),
        (&without(&["proxy", "federation"]), open, unseen),
        (&GATEWAY.to_owned(), open, ""),
    ] {
        let (found, notes) = judged(&site, gateway, policy, GOOD);
        assert!(!found.iter().any(|line| line.contains("federation")), "{found:?}");
        let told: Vec<_> = notes.iter().filter(|note| note.contains("federation")).collect();
        assert_eq!(told.len(), usize::from(!what.is_empty()), "{policy}: {notes:?}");
        assert!(told.iter().all(|note| note.starts_with(words) && note.contains(what)), "{policy}: {told:?}");
    }
    // Or nobody federates.
    let nobody = homeserver.replace("[example.org, example.com]", "[]");
    let (found, _) = judged(&site, &alone, "extends = \"strict\"", &nobody);
    assert!(!found.iter().any(|line| line.contains("federation")), "{found:?}");
}

#[test]
fn a_federation_door_in_tls_is_asked_in_tls() {
    let site = site();
    let (certificate, key) = Authority::new().unwrap().issue(&["localhost"]).unwrap().write(site.path()).unwrap();
    let bind = "bind = \"127.0.0.1:46900\"";
    let gateway = GATEWAY.replace(bind, &format!("{bind}\ntls = {{ certificate = {certificate:?}, key = {key:?} }}"));
    let balanced = "extends = \"balanced\"";
    let (found, _) = judged(&site, &gateway, balanced, GOOD);
    assert!(
        found.len() == 1 && found[0].starts_with("homeserver.yaml:10:8: the federation door speaks TLS, and"),
        "{found:?}"
    );
    let (found, _) = judged(&site, &gateway, balanced, &GOOD.replace("46900}", "46900, tls: true}"));
    assert_eq!(found, [""; 0]);
}

#[test]
fn what_workers_listen_on_counts_for_each_of_their_files() {
    let site = site();
    let worker = |port: u16, more: &str| {
        format!(
            "worker_app: synapse.app.generic_worker\nworker_name: w{port}\nworker_listeners:\n  - type: http\n    \
             port: {port}\n    bind_addresses: [\"127.0.0.1\"]\n{more}    resources: [{{names: [client]}}]\n"
        )
    };
    let forwarded = "    x_forwarded: true\n";
    let checked = |first: &str, second: &str| {
        site.write("one.yaml", first);
        site.write("two.yaml", second);
        let ran = site.run(&["check", "--homeserver", "homeserver.yaml", "one.yaml", "two.yaml"]);
        assert!(ran.err.is_empty(), "{ran:?}");
        let told: Vec<_> = ran.out.lines().take_while(|line| !line.is_empty()).map(str::to_owned).collect();
        told.into_iter().filter(|line| !line.starts_with(' ')).collect::<Vec<_>>()
    };
    let good = [worker(8083, forwarded), worker(8084, forwarded)];
    assert_eq!(checked(&good[0], &good[1]), [""; 0]);
    // Neither is only the last one's.
    let everywhere = |file: &str| file.replace("    bind_addresses: [\"127.0.0.1\"]\n", "");
    for (first, second, place) in [
        (everywhere(&good[0]), good[1].clone(), "one.yaml:4:5"),
        (good[0].clone(), everywhere(&good[1]), "two.yaml:4:5"),
    ] {
        let told = checked(&first, &second);
        let port = if place.starts_with("one") { 8083 } else { 8084 };
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with(&format!("{place}: port {port} (client) listens on ::")), "{told:?}");
    }
    // Those that are asked have to believe what is said of clients, and are known.
    let servers = "servers = [\"http://127.0.0.1:8008\"]";
    site.write(
        "mantlet.toml",
        &GATEWAY.replace(servers, "servers = [\"http://127.0.0.1:8083\", \"http://127.0.0.1:8084\"]"),
    );
    assert_eq!(checked(&good[0], &good[1]), [""; 0]);
    let told = checked(&good[0], &worker(8084, ""));
    assert!(told.len() == 1 && told[0].starts_with("two.yaml:4:5: `x_forwarded` is off"), "{told:?}");
    assert!(
        check(&site).out.contains("and homeserver.yaml has no listener there\n    help: [upstream.synapse] servers")
    );
    assert!(check(&site).out.contains("name the file of a worker that listens there as well"));
}

#[test]
fn a_listener_that_a_firewall_may_guard_is_noted() {
    let site = site();
    let balanced = "extends = \"balanced\"";
    let elsewhere = GATEWAY.replace("http://127.0.0.1:8008", "http://10.0.0.5:8008");
    for (gateway, address) in [(GATEWAY, "10.0.0.5"), (&elsewhere, "0.0.0.0"), (&elsewhere, "10.0.0.5")] {
        let homeserver = GOOD.replace("[\"127.0.0.1\", \"::1\"]", &format!("[\"{address}\"]"));
        let (found, notes) = judged(&site, gateway, balanced, &homeserver);
        let words = format!("note: homeserver.yaml:6:5: port 8008 (client, federation) listens on {address}: ");
        assert!(found.is_empty() && notes.len() == 1 && notes[0].starts_with(&words), "{found:?} {notes:?}");
    }
}

#[test]
fn an_application_service_that_the_proxy_door_does_not_reach_is_found() {
    let site = site();
    let read = |old: &str, new: &str| with(&site, "bridge.yaml", BRIDGE, old, new);
    for (new, words) in [
        ("http://localhost:29318", "at localhost:29318 has no public address"),
        ("http://127.0.0.1:29318", ""),
        ("http://10.21.0.7:29318", "at 10.21.0.7:29318 has no public address"),
        ("http://mautrix-signal:29318", "at mautrix-signal:29318 has no public address"),
        ("http://bridge.internal:29318", ""),
        ("http://mautrix_signal:29318", "at mautrix_signal:29318 has no public address"),
        ("http://127.1:80", "the application service at 127.1:80 has a name that the proxy door does not read"),
        ("http://bridge.example.org.:80", "at bridge.example.org.:80 has a name that the proxy door does not read"),
        ("http://10.20.0.7:29319", "does not connect to port 29319"),
        ("https://bridge.example.org", ""),
        ("null", ""),
        ("http://[bad", "cannot be read"),
    ] {
        let no_proxy = new.contains("localhost");
        site.write("homeserver.yaml", &GOOD.replace("[localhost, ", if no_proxy { "[" } else { "[localhost, " }));
        let ran = read("http://10.20.0.7:29318", new);
        let found = findings(&ran);
        match words {
            "" => assert!(ran.code == Some(0) && found.is_empty(), "{new}: {ran:?}"),
            words => assert!(
                found.len() == 1 && found[0].contains("bridge.yaml:2:6: ") && found[0].contains(words),
                "{ran:?}"
            ),
        }
    }
    // In the help it is as YAML has it.
    site.write("homeserver.yaml", &GOOD.replace("[localhost, 127.0.0.1, ", "["));
    let ran = read("http://10.20.0.7:29318", "\"http://[::1]:29318\"");
    assert!(ran.out.contains("; or no_proxy_hosts: [\"::1\"] in homeserver.yaml"), "{ran:?}");
    // Alone, an asterisk is everybody; beside others it is nobody.
    for (hosts, words) in
        [("\"*\"", "nothing passes the proxy door"), ("\"*\", bridge.other.internal", "no public address")]
    {
        site.write("homeserver.yaml", &GOOD.replace("localhost, 127.0.0.1, bridge.other.internal", hosts));
        let ran = read("10.20.0.7", "10.21.0.7");
        assert!(findings(&ran).len() == 1 && findings(&ran)[0].contains(words), "{ran:?}");
    }
    site.write("homeserver.yaml", GOOD);
    // The second place where a service may be asked.
    let ran = read("\nas_token", "\nio.element.msc4512.proxy_url: http://10.21.0.7:29318\nas_token");
    assert!(
        findings(&ran).len() == 1 && findings(&ran)[0].contains("bridge.yaml:3:31: the application service at 10.21"),
        "{ran:?}"
    );
    site.write("policy.toml", "extends = \"strict\"");
    let ran = read("bridge", "bridge");
    let is_no_way = |line: &&str| {
        line.contains("bridge.yaml:2:6: the policy leaves no way to the application service at 10.20.0.7")
    };
    assert!(findings(&ran).iter().any(is_no_way), "{ran:?}");
}

#[test]
fn whoever_else_is_named_and_not_reached_is_found() {
    let site = site();
    let strict = "extends = \"strict\"\n[[egress.destination]]\nhost = \"10.20.0.7\"\naction = \"tunnel\"\n";
    let balanced = "extends = \"balanced\"";
    let service = "matrix_authentication_service";
    let near = GOOD.replace("[localhost, 127.0.0.1, ", "[");
    let open = GATEWAY.replace("29318]", "29318, 8080]");
    let provider = |keys: &str| format!("oidc_providers: [{{idp_id: a, {keys}}}]");
    let issuer = |url: &str| provider(&format!("issuer: \"{url}\""));
    let delegate = |url: &str| format!("account_threepid_delegates: {{msisdn: \"{url}\"}}");
    let hears = "hears the phone number";
    for (gateway, policy, homeserver, lines, words) in [
        // Asked for its metadata through the door, at localhost:8080 where nothing else is said.
        (
            GATEWAY,
            balanced,
            &near,
            format!("{service}: {{enabled: true}}"),
            &[
                "24:1: the proxy door does not connect to port 8080 of the authentication service at localhost:8080",
                "24:1: the authentication service at localhost:8080 has no public address",
            ][..],
        ),
        (
            &open,
            balanced,
            &near,
            format!("{service}: {{enabled: true}}"),
            &["24:1: the authentication service at localhost:8080 has no public address"],
        ),
        (GATEWAY, balanced, &near, format!("{service}: {{enabled: true, endpoint: \"http://10.20.0.8:29318/\"}}"), &[]),
        (
            GATEWAY,
            strict,
            &near,
            format!("{service}: {{enabled: true, endpoint: \"https://auth.test/\"}}"),
            &["24:58: the policy leaves no way to the authentication service at auth.test:443"],
        ),
        (GATEWAY, strict, &GOOD.to_owned(), format!("{service}: {{enabled: true}}"), &[]),
        (GATEWAY, strict, &near, format!("{service}: {{enabled: false}}"), &[]),
        // Single sign-on.
        (GATEWAY, balanced, &near, issuer("https://sso.test/realms/a"), &[]),
        (
            GATEWAY,
            strict,
            &near,
            issuer("https://sso.test/realms/a"),
            &["24:38: the policy leaves no way to the identity provider at sso.test:443"],
        ),
        (
            GATEWAY,
            balanced,
            &near,
            issuer("https://sso.internal:8443/realms/a"),
            &["does not connect to port 8443 of the identity provider", "at sso.internal:8443 has no public address"],
        ),
        (GATEWAY, balanced, &near, issuer("https://[sso.test/"), &["the URL of the identity provider cannot be read"]),
        (
            GATEWAY,
            balanced,
            &near,
            provider(
                "discover: false, issuer: \"https://sso.test:1/\", authorization_endpoint: \"https://sso.test:2/\"",
            ),
            &[],
        ),
        (
            GATEWAY,
            balanced,
            &near,
            provider(
                "issuer: \"https://a.test:1/\", token_endpoint: \"https://a.test:1/token\", \
                 userinfo_endpoint: \"https://a.test:2\", jwks_uri: \"https://a.test:3/keys\"",
            ),
            &["port 1 of the identity provider", "port 2 of the identity provider", "port 3 of the identity provider"],
        ),
        (
            GATEWAY,
            balanced,
            &near,
            "oidc_config: {enabled: true, issuer: \"https://sso.test:1\"}".to_owned(),
            &["24:38: the proxy door does not connect to port 1 of the identity provider"],
        ),
        (GATEWAY, balanced, &near, "oidc_config: {issuer: \"https://sso.test:1\"}".to_owned(), &[]),
        (
            GATEWAY,
            strict,
            &near,
            "cas_config: {server_url: \"https://cas.test\"}".to_owned(),
            &["24:26: the policy leaves no way to the identity provider at cas.test:443"],
        ),
        (GATEWAY, strict, &near, "cas_config: {enabled: no, server_url: \"https://cas.test\"}".to_owned(), &[]),
        // Who is not reached hears nothing.
        (GATEWAY, balanced, &near, delegate("https://sms.test"), &[hears]),
        (
            GATEWAY,
            strict,
            &near,
            delegate("https://sms.test"),
            &["24:38: the policy leaves no way to the delegate for phone numbers at sms.test:443"],
        ),
        (&without(&["proxy"]), strict, &near, delegate("https://sms.test"), &[hears]),
    ] {
        let (found, notes) = judged(&site, gateway, policy, &format!("{homeserver}{lines}\n"));
        let told: Vec<_> = found.iter().chain(notes.iter().filter(|note| note.contains(hears))).collect();
        assert_eq!(told.len(), words.len(), "{lines}: {told:?}");
        assert!(told.iter().zip(words).all(|(line, words)| line.contains(words)), "{lines}: {told:?}");
    }
}

#[test]
fn what_is_done_about_a_host_that_is_not_reached_is_good() {
    let site = site();
    let near = GOOD.replace("[localhost, 127.0.0.1, ", "[");
    for (named, says, good) in [
        (
            "matrix_authentication_service: {enabled: true}",
            "8080] at the door; or no_proxy_hosts: [localhost] in homeserver.yaml",
            near.replace("no_proxy_hosts: [", "no_proxy_hosts: [localhost, "),
        ),
        (
            "oidc_providers: [{idp_id: a, issuer: \"https://sso.internal/\"}]",
            "allow = [\"sso.internal\"] in the gateway file; or no_proxy_hosts: [sso.internal] in homeserver.yaml",
            near.replace("no_proxy_hosts: [", "no_proxy_hosts: [sso.internal, "),
        ),
        (
            "oidc_providers: [{idp_id: a, issuer: \"https://sso.test./\"}]",
            "    help: no_proxy_hosts: [sso.test.] in homeserver.yaml\n",
            near.replace("no_proxy_hosts: [", "no_proxy_hosts: [sso.test., "),
        ),
        // Past Mantlet, others would hear of it.
        ("oidc_providers: [{idp_id: a, issuer: \"https://sso.test:1/\"}]", "80, 1] at the door\n", String::new()),
    ] {
        site.write("homeserver.yaml", &format!("{near}{named}\n"));
        let ran = check(&site);
        assert!(!findings(&ran).is_empty() && ran.out.contains(says), "{ran:?}");
        let printed = site.run(&["ca", "synapse", "--homeserver", "homeserver.yaml"]);
        assert_eq!(printed.out.contains("no_proxy_hosts: [bridge.other.internal, localhost]"), named.contains("true"));
        if !good.is_empty() {
            site.write("homeserver.yaml", &format!("{good}{named}\n"));
            assert_eq!(findings(&check(&site)), [""; 0]);
        }
    }
    site.write("homeserver.yaml", &GOOD.replace("bridge.other.internal]", "internal]"));
    assert!(check(&site).out.contains("name the one that is meant: no_proxy_hosts: [bridge.other.internal]"));
}

#[test]
fn a_policy_without_the_rule_and_a_gateway_without_the_door_leave_the_notary_to_matrix_org() {
    let site = site();
    site.write("policy.toml", "extends = \"transparent\"");
    let ran = check(&site);
    assert!(
        findings(&ran).iter().any(|line| line.starts_with("homeserver.yaml:22:23: matrix.org is asked")),
        "{ran:?}"
    );
    site.write("homeserver.yaml", &GOOD.replace(KEY_SERVERS, ""));
    assert!(findings(&check(&site)).iter().any(|line| line.contains("sets no `trusted_key_servers`")));
    // Which has another name here, and is told of under that.
    site.write("homeserver.yaml", &GOOD.replace(KEY_SERVERS, "perspectives: {servers: {}}"));
    assert_eq!(findings(&check(&site)).len(), 1);
    let pinned = KEY_SERVERS.replace("matrix.org", "matrix.org, verify_keys: {\"ed25519:a\": x}");
    site.write("homeserver.yaml", &GOOD.replace(KEY_SERVERS, &pinned));
    let ran = check(&site);
    assert!(
        findings(&ran).len() == 1 && findings(&ran)[0].starts_with("homeserver.yaml:22:23: matrix.org is asked"),
        "{ran:?}"
    );
    assert!(findings(&ran)[0].ends_with("and only its word counts"), "{ran:?}");
    // Our own notary is asked by that name.
    let notary = "[[listener]]\ndoor = \"notary\"\nbind = \"127.0.0.1:8449\"\nserver_name = \"keys.example.org:8449\"\n\n[upstream";
    site.write("mantlet.toml", &GATEWAY.replacen("[upstream", notary, 1));
    for (name, found) in [("keys.example.org:8449", 0), ("keys.example.com:8449", 1)] {
        site.write(
            "homeserver.yaml",
            &GOOD.replace("{server_name: matrix.org}", &format!("{{server_name: \"{name}\"}}")),
        );
        assert_eq!(findings(&check(&site)).len(), found, "{name}");
    }
    site.write("mantlet.toml", GATEWAY);
    site.write("homeserver.yaml", &GOOD.replace("[{server_name: matrix.org}]", "[]"));
    assert_eq!(check(&site).code, Some(0));
    site.write("policy.toml", "extends = \"balanced\"");
    site.write("homeserver.yaml", GOOD);
    site.write("mantlet.toml", &without(&["federation"]));
    let ran = check(&site);
    assert!(findings(&ran).iter().any(|line| line.contains("matrix.org is asked")), "{ran:?}");
    site.write("mantlet.toml", GATEWAY);
    site.write("homeserver.yaml", &GOOD.replace("outbound_federation_restricted_to: [out]", ""));
    let ran = check(&site);
    assert!(findings(&ran).iter().any(|line| line.contains("matrix.org is asked")), "{ran:?}");
    site.write("mantlet.toml", &without(&["federation"]));
    let ran = check(&site);
    assert!(findings(&ran).iter().any(|line| line.contains("the service records of other servers")), "{ran:?}");
    assert!(findings(&ran).iter().any(|line| line.contains("matrix.org is asked")), "{ran:?}");
}

#[test]
fn a_notary_that_the_proxy_door_looks_into_is_answered_here() {
    let site = site();
    let authority = format!("{}\n[egress.ca]\ncertificate = \"ca.crt\"\nkey = \"ca.key\"\n", without(&["federation"]));
    site.write("mantlet.toml", &authority);
    assert_eq!(site.run(&["ca", "init", "notary.test"]).code, Some(0));
    let alone = GOOD.replace("outbound_federation_restricted_to: [out]\n", "");
    let balanced = "extends = \"balanced\"\n";
    let to = |host: &str, action: &str| format!("[[egress.destination]]\nhost = \"{host}\"\naction = \"{action}\"\n");
    let base = |more: String| format!("{balanced}{more}");
    let other = alone.replace("server_name: matrix.org", "server_name: notary.test");
    let pinned = alone.replace("server_name: matrix.org", "server_name: matrix.org, verify_keys: {\"ed25519:a\": x}");
    let (asked, note) = ("is asked for the keys", "whether notary.test is asked for keys at another host");
    for (gateway, policy, homeserver, words) in [
        (&authority, base(String::new()), &alone, ""),
        (&authority, base(String::new()), &alone.replace(KEY_SERVERS, ""), ""),
        (&authority, base(to("matrix-federation.matrix.org", "tunnel")), &alone, asked),
        (&authority, base(to("matrix.org", "tunnel")), &alone, asked),
        (&authority, base("[rules.notary]\nmode = \"report\"\n".to_owned()), &alone, asked),
        (&authority, base(String::new()), &other, asked),
        (&authority, base(to("notary.test", "intercept")), &other, note),
        (&authority, base(String::new()), &pinned, "are pinned"),
        (&without(&["federation"]), base(String::new()), &alone, asked),
    ] {
        let (found, notes) = judged(&site, gateway, &policy, homeserver);
        // What is said of federation in tunnels, and of the authority, is another test's.
        let others = ["federation goes through the proxy", "believe Mantlet's authority"];
        let mut of_keys = found.iter().chain(&notes).filter(|line| !others.iter().any(|other| line.contains(other)));
        let first = of_keys.next().map_or("", |line| line);
        assert!(first.contains(words) && first.is_empty() == words.is_empty(), "{policy}: {first}");
        assert_eq!(of_keys.next(), None, "{policy}");
    }
}

#[test]
fn whether_synapse_believes_the_authority_is_noted_where_it_has_to() {
    let site = site();
    let authority = format!("{GATEWAY}\n[egress.ca]\ncertificate = \"ca.crt\"\nkey = \"ca.key\"\n");
    site.write("mantlet.toml", &authority);
    assert_eq!(site.run(&["ca", "init"]).code, Some(0));
    let elsewhere = GOOD.replace("@127.0.0.1:8118", "@proxy.internal:8118");
    for (gateway, homeserver, is_noted) in
        [(&*authority, GOOD, true), (GATEWAY, GOOD, false), (&authority, &elsewhere, false)]
    {
        let (_, notes) = judged(&site, gateway, "extends = \"balanced\"", homeserver);
        let words = "note: homeserver.yaml:16:1: whether Synapse's environment has it believe Mantlet's authority";
        assert_eq!(notes.iter().filter(|note| note.starts_with(words)).count(), usize::from(is_noted), "{notes:?}");
    }
}

#[test]
fn our_own_notary_key_may_be_pinned() {
    let site = site();
    site.write("notary.key", "ed25519 notary YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1");
    std::fs::set_permissions(site.path().join("notary.key"), PermissionsExt::from_mode(0o600)).unwrap();
    site.write("mantlet.toml", &format!("{GATEWAY}\n[egress]\nnotary_key = \"notary.key\"\n"));
    let pinned = |key: &str| {
        let entry = format!("[{{server_name: notary.invalid, verify_keys: {{\"ed25519:notary\": \"{key}\"}}}}]");
        site.write("homeserver.yaml", &GOOD.replace("[{server_name: matrix.org}]", &entry));
        check(&site)
    };
    let ran = pinned("XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI");
    assert!(ran.code == Some(0) && ran.out.ends_with("findings 0, notes 0\n"), "{ran:?}");
    assert!(pinned("XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI=").out.ends_with("findings 0, notes 0\n"));
    assert!(findings(&pinned("AAX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI"))[0].contains("are pinned"));
    let is_looked_at = |ran: &Ran| !ran.out.contains("note: homeserver.yaml:22:1: the notary key ed25519:notary");
    assert!(!is_looked_at(&pinned("AAX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI")));
    // Where nothing is pinned, the servers' own signatures are enough.
    site.write("homeserver.yaml", GOOD);
    assert!(check(&site).out.ends_with("findings 0, notes 0\n"));
}

#[test]
fn a_name_that_no_certificate_is_for_is_not_where_clients_are_told_to_go() {
    let site = site();
    for (name, code) in [("matrix.example.org", 0), ("other.example.org", 1)] {
        let (certificate, key) = Authority::new().unwrap().issue(&[name]).unwrap().write(site.path()).unwrap();
        let tls = format!("tls = {{ certificate = {certificate:?}, key = {key:?} }}");
        site.write(
            "mantlet.toml",
            &GATEWAY.replacen("bind = \"127.0.0.1:8480\"", &format!("bind = \"0.0.0.0:443\"\n{tls}"), 1),
        );
        let ran = check(&site);
        assert!(ran.code == Some(code) && findings(&ran).len() == usize::from(code == 1), "{ran:?}");
        assert!(
            code == 0 || ran.out.contains("homeserver.yaml:2:1: `public_baseurl` is at matrix.example.org, and no")
        );
        // A door behind another proxy may be where clients come.
        let gateway = std::fs::read_to_string(site.path().join("mantlet.toml")).unwrap();
        let plain = "[[listener]]\ndoor = \"ingress\"\nname = \"plain\"\nbind = \"127.0.0.1:8481\"\n\n[upstream";
        site.write("mantlet.toml", &gateway.replacen("[upstream", plain, 1));
        assert_eq!(check(&site).code, Some(0));
    }
}

#[test]
fn what_cannot_be_seen_from_here_is_noted_and_fails_nothing() {
    let site = site();
    for (old, new, place, words) in [
        ("host: localhost", "host: mantlet.container", "10:8", "whether mantlet.container:46900 is a federation door"),
        ("@127.0.0.1:8118", "@mantlet.container:8118", "16:1", "whether mantlet.container:8118 is a proxy door"),
        (
            "no_proxy_hosts: [localhost, 127.0.0.1, bridge.other.internal]",
            "",
            "",
            "the environment's `no_proxy` counts",
        ),
        (
            "no_proxy_hosts: [",
            "ip_range_whitelist: [10.0.0.0/8]\nno_proxy_hosts: [",
            "18:1",
            "`ip_range_whitelist` lets Synapse",
        ),
        (
            "public_baseurl: \"https://matrix.example.org/\"\n",
            "public_baseurl:\n",
            "",
            "tells its users https://example.org/",
        ),
        ("[localhost, 127", "[10.0.0.0/8, localhost, 127", "18:18", "10.0.0.0/8 in `no_proxy_hosts` does nothing"),
        ("[localhost, 127", "[\"*\", localhost, 127", "18:18", "`*` in `no_proxy_hosts` does nothing beside others"),
        ("[bridge.yaml, ", "[gone.yaml, bridge.yaml, ", "19:28", "gone.yaml does not exist"),
        ("public_baseurl: \"https://matrix.example.org/\"\n", "", "", "tells its users https://example.org/"),
        ("report_stats", "email: {smtp_host: x}\nreport_stats", "20:1", "goes past both doors: mail"),
        (
            "report_stats",
            "modules: [{module: x}]\nreport_stats",
            "20:1",
            "goes past both doors: whatever these modules",
        ),
        ("report_stats", "media_storage_providers: [x]\nreport_stats", "20:1", "goes past both doors: media"),
        ("report_stats", "saml2_config: {sp_config: x}\nreport_stats", "20:1", "goes past both doors: metadata"),
        ("report_stats", "opentracing: {enabled: true}\nreport_stats", "20:1", "goes past both doors: traces"),
        ("report_stats", "redis: {enabled: true}\nreport_stats", "20:1", "goes past both doors: what workers tell"),
        (
            "report_stats",
            "matrix_authentication_service: {enabled: true}\nreport_stats",
            "20:1",
            "questions about tokens",
        ),
        (
            "report_stats",
            "matrix_authentication_service: {enabled: true, endpoint: \"https://auth.test/\"}\nreport_stats",
            "20:58",
            "questions about tokens",
        ),
        ("report_stats", "worker_app: x\nreport_stats", "20:1", "this is a worker's configuration"),
        (
            "report_stats",
            "default_identity_server: \"https://is.test\"\nreport_stats",
            "20:26",
            "the identity server is.test",
        ),
        (
            "report_stats",
            "url_preview_enabled: true\nurl_preview_ip_range_blacklist: []\nreport_stats",
            "21:1",
            "counts for names no longer",
        ),
        ("report_stats", "sentry: {dsn: hidden-from-everybody}\nreport_stats", "20:1", "goes past both doors: errors"),
        (
            "report_stats",
            "account_threepid_delegates: {msisdn: \"https://sms.test\"}\nreport_stats",
            "20:38",
            "sms.test hears",
        ),
        (
            "secret: hidden-from-everybody-1",
            "secret_path: /gone/secret",
            "12:1",
            "/gone/secret does not exist here, so nobody compared the secrets: if this is Synapse's machine, it does not start",
        ),
        (
            "@127.0.0.1:8118",
            "@0.0.0.0:8118",
            "16:1",
            "`https_proxy` leads to 0.0.0.0:8118, which is whatever machine Synapse is on",
        ),
    ] {
        if new == "@0.0.0.0:8118" {
            site.write("mantlet.toml", &GATEWAY.replace("127.0.0.1:8118", "0.0.0.0:8118"));
        }
        let place = if place.is_empty() { "note: ".to_owned() } else { format!("note: homeserver.yaml:{place}: ") };
        let ran = with(&site, "homeserver.yaml", GOOD, old, new);
        let is_noted = ran.out.lines().any(|line| line.starts_with(&place) && line.contains(words));
        let is_alone = new.is_empty() || findings(&ran).is_empty();
        assert!(is_noted && is_alone, "{new}: {ran:?}");
    }
}

#[test]
fn what_is_not_synapses_configuration_is_the_one_finding() {
    let site = site();
    for text in [
        // A configuration of Python's logging.
        "version: 1\nformatters: {precise: {format: x}}\nroot: {level: INFO, handlers: [file]}\n".to_owned(),
        GOOD.replace("server_name: \"example.org\"\n", ""),
        GOOD.replace("server_name: \"example.org\"", "server_name:"),
    ] {
        site.write("homeserver.yaml", &text);
        let ran = check(&site);
        let first =
            "homeserver.yaml says no `server_name`: is this Synapse's configuration, and all of it?\n    help: ";
        assert!(ran.code == Some(1) && ran.out.starts_with(first), "{ran:?}");
        assert!(ran.out.ends_with("findings 1, notes 0\n"), "{ran:?}");
    }
    // It may be that another file says it.
    site.write("homeserver.yaml", &GOOD.replace("server_name: \"example.org\"\n", ""));
    site.write("name.yaml", "server_name: example.org\n");
    let both = site.run(&["check", "--homeserver", "homeserver.yaml", "name.yaml"]);
    assert!(both.code == Some(0) && both.out.contains("findings 0"), "{both:?}");
}

#[test]
fn a_secret_that_is_missing_is_told_from_one_that_cannot_be_read_and_a_copied_placeholder_is_found() {
    let site = site();
    let secret = |path: &str| {
        let ran =
            with(&site, "homeserver.yaml", GOOD, "secret: hidden-from-everybody-1", &format!("secret_path: {path}"));
        (ran.code, ran.out)
    };
    let (code, told) = secret("A COPY OF federation.secret, FOR SYNAPSE TO READ");
    let what = "homeserver.yaml:12:1: `worker_replication_secret_path` is what was printed in the place of a path: Synapse does not \
                start\n    help: worker_replication_secret_path: a copy of federation.secret that Synapse may read\n";
    assert!(code == Some(1) && told.contains(what), "{told}");
    let (code, told) = secret("gone.secret");
    let help = "    help: worker_replication_secret_path: a copy of federation.secret that Synapse may read\n";
    assert!(code == Some(0) && told.contains("does not exist here") && told.contains(help), "{told}");
    let (code, told) = secret(".");
    assert!(code == Some(0) && told.contains("cannot be read here (Is a directory"), "{told}");
}

#[test]
fn what_is_no_configuration_gets_one_error() {
    let site = site();
    for (text, words) in [
        ("registration_shared_secret: [hidden-from-everybody", "homeserver.yaml:"),
        ("a: \"hidden-from-everybody\nb: 1", "this is no YAML"),
        ("- hidden-from-everybody", "holds no `key: value`"),
    ] {
        site.write("homeserver.yaml", text);
        let ran = check(&site);
        let problems = ran.err.lines().filter(|line| !line.starts_with(' ')).count();
        assert!(ran.code == Some(1) && problems == 1 && ran.err.contains(words) && ran.out.is_empty(), "{ran:?}");
    }
    let ran = site.run(&["check", "--homeserver", "gone.yaml"]);
    assert!(ran.code == Some(1) && ran.err.contains("gone.yaml does not exist"), "{ran:?}");
    std::fs::write(site.path().join("latin.yaml"), b"a: \xe9\n").unwrap();
    let ran = site.run(&["check", "--homeserver", "latin.yaml"]);
    assert!(ran.code == Some(1) && ran.err.contains("latin.yaml is not UTF-8 (line 1)"), "{ran:?}");
    assert_eq!(site.run(&["check", "--homeserver", "homeserver.yaml", "--policy", "strict"]).code, Some(2));
}

#[test]
fn programs_get_the_same_in_json() {
    let site = site();
    site.write("homeserver.yaml", &GOOD.replace("x_forwarded: yes", "x_forwarded: off").replace("sqlite3", "psycopg2"));
    let ran = site.run(&["--format", "json", "check", "--homeserver", "homeserver.yaml"]);
    let told: Value = serde_json::from_str(&ran.out).unwrap();
    assert!(ran.code == Some(1) && told["ok"] == false && !ran.out.contains(HIDDEN), "{ran:?}");
    let first = &told["findings"][0];
    assert_eq!((&first["weight"], &first["location"]["line"]), (&"finding".into(), &7.into()));
    assert_eq!(first["help"], "x_forwarded: true");
    assert_eq!(told["database"]["with"], "psql");
    site.write("homeserver.yaml", "- x");
    let told: Value =
        serde_json::from_str(&site.run(&["--format", "json", "check", "--homeserver", "homeserver.yaml"]).out).unwrap();
    assert!(told["problems"][0]["what"].as_str().unwrap().contains("no configuration"));
}

#[test]
fn a_door_that_moved_takes_the_place_of_its_old_entry() {
    let site = site();
    let at_the_door = "  out: {host: localhost, port: 46900}\n";
    let printed = |entries: &str, more: &str| {
        let homeserver = GOOD.replace(at_the_door, entries) + more;
        assert!(homeserver.contains(entries));
        site.write("homeserver.yaml", &homeserver);
        let ran = site.run(&["ca", "synapse", "--homeserver", "homeserver.yaml"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.out
    };
    let whole =
        "\ninstance_map:\n  out: {host: \"127.0.0.1\", port: 46900}\noutbound_federation_restricted_to: [out]\n";
    for entries in ["  out: {path: /run/mantlet/federation.sock}\n", "  out: {host: localhost, port: 46901}\n"] {
        let told = printed(entries, "");
        assert!(told.starts_with("# homeserver.yaml\n# without out: it is where no federation door is\n"), "{told}");
        assert!(told.contains(whole), "{told}");
    }
    // Whether this is the door cannot be seen from here.
    let told = printed("  out: {host: mantlet.container, port: 46900}\n", "");
    assert!(
        told.contains("  out: {host: mantlet.container, port: 46900}\n  out_: {host") && !told.contains("without"),
        "{told}"
    );
    // Nothing is said of one that stayed where it is.
    let told = printed(at_the_door, "");
    assert!(told.contains(whole) && !told.contains("without"), "{told}");
    // A worker is a worker, whatever else it is.
    let workers = "  main: {host: localhost, port: 9093}\n  sender: {host: localhost, port: 9094}\n  \
                   out: {host: localhost, port: 9095}\n";
    let told = printed(workers, "federation_sender_instances: [sender]\nstream_writers: {typing: out}\n");
    let kept = "  main: {host: localhost, port: 9093}\n  sender: {host: localhost, port: 9094}\n  \
                out: {host: localhost, port: 9095}\n  out_: {host";
    assert!(told.contains(kept) && !told.contains("without"), "{told}");
}

#[test]
fn a_door_at_every_address_is_named_by_none_of_them() {
    let site = site();
    site.write("mantlet.toml", &GATEWAY.replace("127.0.0.1:8118", "0.0.0.0:8118"));
    site.write("homeserver.yaml", &GOOD.replace("@127.0.0.1:8118", "@0.0.0.0:8118"));
    let alone = site.run(&["ca", "synapse"]).out;
    let url = "http://USER:PASSWORD@ADDRESS:8118\n";
    assert!(alone.contains(&format!("https_proxy: {url}http_proxy: {url}")), "{alone}");
    let beside = site.run(&["ca", "synapse", "--homeserver", "homeserver.yaml"]).out;
    assert!(beside.contains(&format!("https_proxy: {url}# http_proxy is good as it is\n")), "{beside}");
    let told = check(&site).out;
    assert!(told.contains(&format!("    help: https_proxy: {url}")), "{told}");
}

#[test]
fn what_ca_synapse_prints_makes_a_bare_configuration_a_good_one() {
    let site = site();
    let bare = "server_name: example.org\npublic_baseurl: \"https://matrix.example.org/\"\nreport_stats: false\n\
                listeners: [{port: 8008, type: http, bind_addresses: [\"127.0.0.1\"], x_forwarded: true}]\n\
                registration_shared_secret: hidden-from-everybody-7\n";
    let workers = "instance_map: {main: {host: localhost, port: 9093}, out: {host: localhost, port: 9094, tls: true}}\n\
                   worker_replication_secret: hidden-from-everybody-1\nno_proxy_hosts: [\"*\", 10.0.0.0/8, old.internal]\n\
                   federation_sender_instances: [out]\napp_service_config_files: [bridge.yaml, other.yaml]\n";
    site.write("bridge.yaml", &BRIDGE.replace("10.20.0.7", "localhost"));
    site.write("other.yaml", &BRIDGE.replace("10.20.0.7", "old.internal"));
    for (text, lines) in [
        (
            bare.to_owned(),
            &[
                "\ninstance_map:\n  out: {host: \"127.0.0.1\", port: 46900}\noutbound_federation_restricted_to: [out]\n",
                "worker_replication_secret_path: A COPY OF federation.secret, FOR SYNAPSE TO READ\n",
                "\nhttp_proxy: http://USER:PASSWORD@127.0.0.1:8118\nno_proxy_hosts: []\n",
            ][..],
        ),
        (
            format!("{bare}{workers}"),
            &[
                "  main: {host: localhost, port: 9093}\n  out: {host: localhost, port: 9094, tls: true}\n",
                "  out_: {host: \"127.0.0.1\", port: 46900}\noutbound_federation_restricted_to: [out_]\n",
                "# the secret of out is known already\n",
                "no_proxy_hosts: [old.internal, localhost]\n",
            ],
        ),
        (
            GOOD.replace("bridge.other.internal", "old.internal"),
            &["  out: {host", "# https_proxy is good as it is\n# http_proxy is good as it is\n"],
        ),
    ] {
        site.write("homeserver.yaml", &text);
        let printed = site.run(&["ca", "synapse", "--homeserver", "homeserver.yaml"]);
        assert!(printed.code == Some(0) && !printed.out.contains(HIDDEN), "{printed:?}");
        for line in lines {
            assert!(printed.out.contains(line), "{line}\n{}", printed.out);
        }
        let copy = printed.out.replace("A COPY OF federation.secret, FOR SYNAPSE TO READ", "federation.secret");
        let copy = copy.replace("USER:PASSWORD", "synapse:hidden-from-everybody-4");
        // Of two equal keys the later counts.
        site.write("homeserver.yaml", &format!("{text}{copy}"));
        let ran = check(&site);
        assert!(ran.code == Some(0) && findings(&ran).is_empty(), "{copy}\n{ran:?}");
    }
    site.write("homeserver.yaml", &GOOD.replace("secret: hidden-from-everybody-1", "secret: hidden-from-everybody-9"));
    let printed = site.run(&["ca", "synapse", "--homeserver", "homeserver.yaml"]);
    assert!(printed.out.contains("# another secret stands here: write that one into federation.secret"), "{printed:?}");
}
