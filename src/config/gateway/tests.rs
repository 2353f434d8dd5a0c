use super::*;
use crate::config::settings::{AccessLog, LogLevel};
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn parse(text: &str) -> Result<Gateway, Problems> {
    Gateway::parse("mantlet.toml", text, Path::new(""))
}

fn told(text: &str) -> Vec<String> {
    parse(text).unwrap_err().0.iter().map(ToString::to_string).collect()
}

/// Every table and key.
const WHOLE: &str = r#"
[[listener]]
door = "ingress"
bind = "0.0.0.0:8448"
name = "federation"
tls = { certificate = "cert.pem", key = "key.pem" }
client_ca = "cert.pem"
proxy_protocol = true
[[listener]]
door = "ingress"
bind = "unix:/run/mantlet.sock"
mode = "0600"
[[listener]]
door = "federation"
bind = "127.0.0.1:46900"
secret_file = "secret"
extra_roots = ["cert.pem"]
[[listener]]
door = "proxy"
bind = "10.0.0.1:8118"
credentials_file = "credentials"
networks = ["10.0.0.7", "10.20.0.0/16"]
ports = [443, 29318]
[[listener]]
door = "notary"
bind = "10.0.0.1:8449"
server_name = "notary.example.org:8449"
networks = ["10.0.0.7"]
[upstream.synapse]
servers = ["unix:/run/synapse.sock"]
[upstream.media]
servers = ["http://127.0.0.1:8009", "http://127.0.0.1:8010"]
[[route]]
path = "/_matrix/media/.*"
methods = ["POST"]
upstream = "media"
[policy]
file = "policy.toml"
[admin]
bind = "127.0.0.1:9090"
[limits]
handshake = "1s"
first_byte = "2s"
head = "3s"
body_idle = "4s"
upstream_head = "5s"
patience = "7s"
keep_alive = "6s"
tunnel_idle = "8s"
drain = "0s"
head_bytes = "8KiB"
fields = 7
body = "8MiB"
collect = "2MiB"
streams = 9
connections = 10
per_address = 11
[tokens]
positive = "12s"
negative = "1s"
capacity = 13
[forwarded]
trusted_hops = ["127.0.0.1", "10.1.2.3/8", "::1"]
[log]
access = "text"
level = "debug"
[workers]
count = 2
[homeserver]
server_name = "example.org:8448"
[egress]
nameservers = ["127.0.0.53", "[::1]:5353"]
store = "keys.redb"
ledger = 500
notary_key = "notary.key"
next_hop = "http://proxy.corp:3128"
next_hop_credentials = "credentials"
next_hop_except = ["bridge.internal"]
[egress.ca]
certificate = "ca.crt"
key = "ca.key"
[egress.addresses]
allow = ["Bridge.internal", "10.1.2.3/8"]
"#;

/// A directory in which `WHOLE` finds its files.
fn dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, mode) in [("cert.pem", 0o644), ("key.pem", 0o600), ("secret", 0o600)] {
        fs::write(dir.path().join(name), "PEM").unwrap();
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(dir.path().join("credentials"), "synapse:a password\n").unwrap();
    fs::set_permissions(dir.path().join("credentials"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(dir.path().join("policy.toml"), "").unwrap();
    let key = dir.path().join("notary.key");
    fs::write(&key, "ed25519 notary YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    dir
}

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(parse(""), Ok(Gateway::default()));
    assert_eq!(parse("[limits]\n[log]\n[upstream]\n[admin]\n"), Ok(Gateway::default()));
    let gateway = Gateway::default();
    assert_eq!(gateway.listeners[0].bind.to_string(), "127.0.0.1:8480");
    assert_eq!(gateway.upstreams, [Upstream::synapse()]);
    assert_eq!(gateway.upstreams[0].servers[0].to_string(), "http://127.0.0.1:8008");
    assert_eq!(gateway.policy, PolicySource::BuiltIn(BuiltIn::Balanced));
    assert_eq!(gateway.limits.head_bytes, crate::units::Size::kib(15));
}

#[test]
fn every_key_is_read() {
    let dir = dir();
    let path = dir.path().join("mantlet.toml");
    fs::write(&path, WHOLE).unwrap();
    let gateway = Gateway::load(&path).unwrap_or_else(|problems| panic!("{problems}"));
    let [tls] = &gateway.listeners[0].tls[..] else { panic!("{:?}", gateway.listeners[0].tls) };
    assert_eq!((&tls.certificate, &tls.key), (&dir.path().join("cert.pem"), &dir.path().join("key.pem")));
    assert_eq!(gateway.listeners[0].name, "federation");
    assert_eq!(gateway.listeners[1].name, "unix:/run/mantlet.sock");
    assert_eq!(gateway.listeners[1].mode, SocketMode(0o600));
    assert_eq!(gateway.policy, PolicySource::File(dir.path().join("policy.toml")));
    assert_eq!(gateway.upstreams[0].servers, [UpstreamAddress::Unix("/run/synapse.sock".into())]);
    assert_eq!((&*gateway.upstreams[1].name, gateway.upstreams[1].servers.len()), ("media", 2));
    assert_eq!(gateway.admin.as_ref().unwrap().to_string(), "127.0.0.1:9090");
    let hops: Vec<String> = gateway.forwarded.trusted_hops.iter().map(ToString::to_string).collect();
    assert_eq!(hops, ["127.0.0.1/32", "10.0.0.0/8", "::1/128"]);
    assert_eq!(gateway.log, Log { access: AccessLog::Text, level: LogLevel::Debug });
    assert_eq!(gateway.homeserver.server_name.as_deref(), Some("example.org:8448"));
    let door = &gateway.listeners[2];
    assert_eq!((door.door, door.secret_file.clone()), (Door::Federation, Some(dir.path().join("secret"))));
    assert_eq!(door.extra_roots, [dir.path().join("cert.pem")]);
    assert_eq!(gateway.egress.nameservers(), ["127.0.0.53:53", "[::1]:5353"].map(|text| text.parse().unwrap()));
    let (store, key) = (dir.path().join("keys.redb"), dir.path().join("notary.key"));
    assert_eq!((&gateway.egress.store, &gateway.egress.notary_key), (&Some(store), &Some(key)));
    assert_eq!(serde_json::to_string(&gateway.egress.addresses.allow).unwrap(), r#"["bridge.internal","10.0.0.0/8"]"#);
    let door = gateway.listeners[3].proxy.as_ref().unwrap();
    assert_eq!(door.credentials_file, Some(dir.path().join("credentials")));
    assert_eq!(serde_json::to_string(&door.networks).unwrap(), r#"["10.0.0.7/32","10.20.0.0/16"]"#);
    assert_eq!(door.ports, [443, 29318]);
    let door = gateway.listeners[4].notary.as_ref().unwrap();
    assert_eq!(door.server_name.as_str(), "notary.example.org:8449");
    assert_eq!(serde_json::to_string(gateway.listeners[4].networks()).unwrap(), r#"["10.0.0.7/32"]"#);
    assert_eq!(gateway.egress.ca.as_ref().unwrap().key, dir.path().join("ca.key"));
    let hop = gateway.egress.next_hop.as_ref().unwrap();
    assert_eq!((hop.url.port, &hop.credentials_file), (3128, &Some(dir.path().join("credentials"))));
    assert_eq!(serde_json::to_string(&hop.except).unwrap(), r#"["bridge.internal"]"#);
    // Every key of every table has another value than its default, so none was overlooked.
    let changed = gateway.difference(&Gateway::default());
    let is_new = |header: &str| {
        header.starts_with("[[listener]]") && header != "[[listener]] 1"
            || ["[upstream.media]", "[[route]] 1"].contains(&header)
    };
    for (header, table) in gateway.tables() {
        assert!(!is_new(&header) || changed.contains(&header), "{header}");
        for key in table.as_object().unwrap().keys().filter(|_| !is_new(&header)) {
            let same =
                header == "[[listener]] 1" && ["door", "mode", "secret_file", "extra_roots"].contains(&key.as_str());
            assert_eq!(changed.contains(&format!("{header} {key}")), !same, "{header} {key}");
        }
    }
}

#[test]
fn a_difference_names_its_keys() {
    let old = parse(
        "[[listener]]\ndoor='ingress'\nbind='127.0.0.1:1'\n[[listener]]\ndoor='ingress'\nbind='127.0.0.1:2'\nname='b'",
    )
    .unwrap();
    let new = parse("[[listener]]\ndoor='ingress'\nbind='127.0.0.1:1'\n[[listener]]\ndoor='ingress'\nbind='127.0.0.1:3'\nname='b'\n[limits]\nhead='11s'\n[admin]\nbind='unix:/a'").unwrap();
    assert_eq!(old.difference(&new), ["[[listener]] 2 bind", "[admin] bind", "[limits] head"]);
    assert_eq!(new.difference(&old), old.difference(&new));
    assert_eq!(old.difference(&old), [""; 0]);
    let one = parse("[[listener]]\ndoor='ingress'\nbind='127.0.0.1:1'").unwrap();
    assert_eq!(old.difference(&one), ["[[listener]] 2"]);
    assert_eq!(one.difference(&old), ["[[listener]] 2"]);
}

#[test]
fn problems_of_all_tables_are_told_at_once() {
    let text = "[[listener]]\r\ndoor = \"exit\"\r\nbind = \"127.0.0.1:8118\"\r\n[[listener]]\r\ndoor = \"ingress\"\r\n\
                    bind = \"0.0.0.0\"\r\n[[listener]]\r\ndoor = \"ingress\"\r\ntls = { certificate = \"none.pem\" }\r\n\
                    [limits]\r\nhadshake = \"1s\"\r\nbody = 0\r\nhead_bytes = \"1KiB\"\r\nfields = 10001\r\n[limit]\r\n[tokens]\r\n\
                    positive = \"1m\"\r\nnegative = \"3s\"\r\n[upstream.synapse]\r\nservers = [\"https://a:1\"]\r\n\
                    [forwarded]\r\ntrusted_hops = [\"10.0.0.0/33\"]\r\n[homeserver]\r\nserver_name = \"not a name\"\r\n\
                    [log]\r\naccess = \"jason\"\r\n[workers]\r\ncount = -1\r\n[admin]\r\nbind = \"0.0.0.0:9090\"\r\n";
    let told = told(text);
    let starts = [
        "mantlet.toml:2:8: unknown value \"exit\" for `door` in [[listener]]\n    help: known: ingress",
        "mantlet.toml:6:8: `bind` in [[listener]]: \"0.0.0.0\" has no port",
        "mantlet.toml:9:7: `key` is missing in [listener.tls]",
        "mantlet.toml:7:1: `bind` is missing in [[listener]]",
        "mantlet.toml:11:1: unknown key `hadshake` in [limits]\n    help: did you mean `handshake`?",
        "mantlet.toml:12:8: `body` in [limits]: 0 would refuse everything",
        "mantlet.toml:13:14: `head_bytes` in [limits]: 1KiB is too small\n    help: at least \"8KiB\"",
        "mantlet.toml:14:10: `fields` in [limits]: more than 10000 fields",
        "mantlet.toml:15:2: unknown key `limit`\n    help: did you mean `limits`?",
        "mantlet.toml:17:12: `positive` in [tokens]: 1m is too long",
        "mantlet.toml:18:12: `negative` in [tokens]: 3s is too long",
        "mantlet.toml:20:12: entry 1 of `servers` in [upstream.synapse]: https:// is not supported",
        "mantlet.toml:22:17: entry 1 of `trusted_hops` in [forwarded]: \"10.0.0.0/33\" is not an address",
        "mantlet.toml:24:15: `server_name` in [homeserver]: \"not a name\" is not a server name",
        "mantlet.toml:26:10: unknown value \"jason\" for `access` in [log]\n    help: did you mean \"json\"?",
        "mantlet.toml:28:9: `count` in [workers]: expected a whole number, not below 0, found -1",
        "mantlet.toml:30:8: `bind` in [admin]: 0.0.0.0 is not a loopback address",
    ];
    for start in starts {
        assert!(told.iter().any(|told| told.starts_with(start)), "{start}\n-- in --\n{}", told.join("\n"));
    }
    assert_eq!(told.len(), starts.len(), "{}", told.join("\n"));
}

#[test]
fn a_way_out_is_for_synapse_alone() {
    let dir = dir();
    let secret = dir.path().join("secret");
    let told = |listener: &str| {
        let text = format!("[[listener]]\ndoor = \"federation\"\n{listener}\n");
        Gateway::parse("mantlet.toml", text, dir.path()).map(drop).map_err(|problems| problems.to_string())
    };
    let good = "bind = \"127.0.0.1:46900\"\nsecret_file = \"secret\"";
    assert_eq!(told(good), Ok(()));
    assert_eq!(told("bind = \"unix:/run/m.sock\"\nsecret_file = \"secret\"\nname = \"mantlet\""), Ok(()));
    for (listener, what) in [
        ("bind = \"127.0.0.1:46900\"", "mantlet.toml:3:8: a federation door needs a secret"),
        (
            "bind = \"0.0.0.0:46900\"\nsecret_file = \"secret\"",
            "mantlet.toml:3:8: a federation door is for Synapse on this machine",
        ),
        ("bind = \"10.0.0.1:46900\"\nsecret_file = \"secret\"", "and 10.0.0.1:46900 is for others, too"),
        ("bind = \"[::]:46900\"\nsecret_file = \"secret\"", "and [::]:46900 is for others, too"),
        (&format!("{good}\nname = \"master\""), "mantlet.toml:5:8: Synapse takes the name \"master\" for itself"),
        (
            &format!("{good}\nproxy_protocol = true\n[forwarded]\ntrusted_hops = [\"127.0.0.1\"]"),
            "Synapse sends no PROXY header",
        ),
        (&format!("{good}\nextra_roots = [\"none.pem\"]"), "mantlet.toml:5:16: the file of roots"),
        (
            &format!("{good}\n[egress]\nnameservers = [\"dns.example\"]"),
            "\"dns.example\" is not the address of a name server",
        ),
        (&format!("{good}\n[egress]\nledger = 50001"), "50001 lines are more than a ledger can have"),
        (
            &format!("{good}\n[egress.addresses]\nallow = [\"https://a\"]"),
            "\"https://a\" is no host, address or network",
        ),
    ] {
        let told = told(listener).unwrap_err();
        assert!(told.contains(what), "{listener}\n{told}");
    }
    fs::write(&secret, "\n").unwrap();
    assert!(told(good).unwrap_err().contains("mantlet.toml:4:15: the secret file"));
    fs::write(&secret, "known").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(told(good).unwrap_err().contains("is open to other users (mode 0644)"));
    let inward = "[[listener]]\ndoor = \"ingress\"\nbind = \"127.0.0.1:1\"\nsecret_file = \"secret\"\nextra_roots = []";
    let inward = Gateway::parse("mantlet.toml", inward, dir.path()).unwrap_err().to_string();
    assert!(
        inward.contains("`secret_file` belongs to a way out") && inward.contains("`extra_roots` belongs to a way out")
    );
}

#[test]
fn a_proxy_is_no_open_one() {
    let dir = dir();
    let credentials = dir.path().join("credentials");
    let told = |listener: &str| {
        let text = format!("[[listener]]\ndoor = \"proxy\"\n{listener}\n");
        Gateway::parse("mantlet.toml", text, dir.path()).map(drop).map_err(|problems| problems.to_string())
    };
    for good in [
        "bind = \"127.0.0.1:8118\"",
        "bind = \"[::1]:8118\"",
        "bind = \"unix:/run/m.sock\"",
        "bind = \"0.0.0.0:8118\"\ncredentials_file = \"credentials\"",
        "bind = \"10.0.0.1:8118\"\nnetworks = [\"10.0.0.7\"]",
        "bind = \"10.0.0.1:8118\"\nnetworks = [\"0.0.0.0/1\"]",
        "bind = \"127.0.0.1:8118\"\nnetworks = [\"0.0.0.0/0\"]",
        "bind = \"0.0.0.0:8118\"\nnetworks = [\"0.0.0.0/0\"]\ncredentials_file = \"credentials\"",
    ] {
        assert_eq!(told(good), Ok(()), "{good}");
    }
    for (listener, what) in [
        ("bind = \"0.0.0.0:8118\"", "mantlet.toml:3:8: everybody who reaches 0.0.0.0:8118 could use this proxy"),
        ("bind = \"[::]:8118\"\nnetworks = []", "everybody who reaches [::]:8118 could use this proxy"),
        ("bind = \"[::]:8118\"\nnetworks = [\"10.0.0.7\", \"0.0.0.0/0\"]", "everybody who reaches [::]:8118"),
        ("bind = \"[::]:8118\"\nnetworks = [\"::/0\"]", "everybody who reaches [::]:8118"),
        ("bind = \"[::]:8118\"\nnetworks = [\"128.0.0.0/1\", \"0.0.0.0/1\"]", "everybody who reaches [::]:8118"),
        ("bind = \"127.0.0.1:8118\"\nports = []", "mantlet.toml:4:9: `ports` in [[listener]]: these are no ports"),
        ("bind = \"127.0.0.1:8118\"\nports = [0]", "these are no ports to connect to"),
        ("bind = \"127.0.0.1:8118\"\nnetworks = [\"here\"]", "\"here\" is not an address or a network"),
        ("bind = \"127.0.0.1:8118\"\nsecret_file = \"secret\"", "`secret_file` belongs to a federation door"),
        (
            "bind = \"127.0.0.1:8118\"\ntls = { certificate = \"cert.pem\", key = \"key.pem\" }",
            "Synapse asks a proxy in the clear",
        ),
        ("bind = \"127.0.0.1:8118\"\ncredentials_file = \"none\"", "mantlet.toml:4:20: the secret file"),
        ("bind = \"127.0.0.1:8118\"\ncredentials_file = \"secret\"", "does not hold a user and a password"),
    ] {
        let told = told(listener).unwrap_err();
        assert!(told.contains(what), "{listener}\n{told}");
    }
    fs::set_permissions(&credentials, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(told("bind = \"127.0.0.1:1\"\ncredentials_file = \"credentials\"").unwrap_err().contains("mode 0640"));
    let inward = "[[listener]]\ndoor = \"ingress\"\nbind = \"127.0.0.1:1\"\nports = [443]\nnetworks = [\"::1\"]";
    let inward = Gateway::parse("mantlet.toml", inward, dir.path()).unwrap_err().to_string();
    assert!(
        inward.contains("`ports` belongs to a proxy door")
            && inward.contains("`networks` belongs to a proxy or a notary door")
    );
}

#[test]
fn a_notary_is_no_open_one() {
    let dir = dir();
    let told = |listener: &str| {
        let text = format!("[[listener]]\ndoor = \"notary\"\n{listener}\n");
        Gateway::parse("mantlet.toml", text, dir.path()).map(drop).map_err(|problems| problems.to_string())
    };
    let name = "server_name = \"notary.gw:8449\"";
    for good in [
        "bind = \"127.0.0.1:8449\"",
        "bind = \"unix:/run/m.sock\"",
        "bind = \"0.0.0.0:8449\"\nnetworks = [\"10.0.0.7\"]\nextra_roots = [\"cert.pem\"]",
        "bind = \"127.0.0.1:8449\"\ntls = { certificate = \"cert.pem\", key = \"key.pem\" }",
    ] {
        assert_eq!(told(&format!("{good}\n{name}")), Ok(()), "{good}");
    }
    for (listener, what) in [
        ("bind = \"127.0.0.1:8449\"", "mantlet.toml:3:8: a notary door needs the name by which Synapse knows it"),
        ("bind = \"127.0.0.1:8449\"\nserver_name = \"a_b\"", "\"a_b\" is no server's name"),
        (
            &format!("bind = \"0.0.0.0:8449\"\n{name}"),
            "mantlet.toml:3:8: everybody who reaches 0.0.0.0:8449 could have this notary ask",
        ),
        (&format!("bind = \"0.0.0.0:8449\"\n{name}\nnetworks = [\"0.0.0.0/0\"]"), "everybody who reaches 0.0.0.0:8449"),
        (
            &format!("bind = \"127.0.0.1:8449\"\n{name}\nsecret_file = \"secret\""),
            "mantlet.toml:5:15: `secret_file` belongs to a federation door",
        ),
        (&format!("bind = \"127.0.0.1:8449\"\n{name}\nports = [443]"), "`ports` belongs to a proxy door"),
        (
            &format!("bind = \"127.0.0.1:8449\"\n{name}\nproxy_protocol = true\n[forwarded]\ntrusted_hops = [\"::1\"]"),
            "Synapse sends no PROXY header",
        ),
    ] {
        let told = told(listener).unwrap_err();
        assert!(told.contains(what), "{listener}\n{told}");
    }
    let inward = format!("[[listener]]\ndoor = \"ingress\"\nbind = \"127.0.0.1:1\"\n{name}");
    let inward = Gateway::parse("mantlet.toml", inward, dir.path()).unwrap_err().to_string();
    assert!(inward.contains("`server_name` of a listener belongs to a notary door"), "{inward}");
}

#[test]
fn a_key_file_that_others_can_read_is_refused() {
    let dir = dir();
    let key = dir.path().join("key.pem");
    let check = || Gateway::parse("mantlet.toml", WHOLE, dir.path());
    for mode in [0o640, 0o604, 0o660, 0o644, 0o620] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let problems = check().unwrap_err();
        let expected = format!(
            "mantlet.toml:6:41: the private key {0} is open to its group or to others (mode {mode:04o})\n    help: chmod 600 {0}",
            key.display()
        );
        assert_eq!(problems.to_string(), expected);
    }
    for mode in [0o600, 0o400] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        assert!(check().is_ok(), "{mode:o}");
    }
}

#[test]
fn a_missing_certificate_is_told_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("key.pem")).unwrap();
    let problems = Gateway::parse("mantlet.toml", WHOLE, dir.path()).unwrap_err();
    let path = dir.path().display();
    assert_eq!(problems.0[0].what, format!("the certificate {path}/cert.pem does not exist"));
    assert_eq!(problems.0[1].what, format!("the private key {path}/key.pem is not a file"));
    assert_eq!(problems.0[2].what, format!("the client_ca {path}/cert.pem does not exist"));
    assert_eq!(problems.0[3].what, format!("the secret file {path}/secret does not exist"));
    assert_eq!(problems.0[4].what, format!("the file of roots {path}/cert.pem does not exist"));
    assert_eq!(problems.0[5].what, format!("the secret file {path}/credentials does not exist"));
    assert_eq!(problems.0[6].what, format!("the policy {path}/policy.toml does not exist"));
    assert_eq!(problems.0[7].what, format!("the notary key {path}/notary.key does not exist"));
    assert_eq!(problems.0[8].what, format!("the secret file {path}/credentials does not exist"));
    assert_eq!(problems.0.len(), 9);
    // Whoever made the one file is told how the others are made; the last are the other proxy's.
    let helps = [3, 5, 7, 8].map(|problem| problems.0[problem].help.clone().unwrap());
    for (help, words) in helps.iter().zip(["; openssl rand", "echo \"synapse:$(", "echo \"ed25519", "USER:PASSWORD"]) {
        assert!(help.contains(words), "{help}");
    }
    let file = dir.path().join("mantlet.toml");
    fs::write(&file, WHOLE).unwrap();
    assert!(Gateway::load(&file).is_err() && Gateway::load_alone(&file).is_ok());
}

#[test]
fn several_certificates_are_a_list_or_tables() {
    let dir = dir();
    let listener = "[[listener]]\ndoor='ingress'\nbind='127.0.0.1:1'\n";
    let read = |tls: &str| Gateway::parse("mantlet.toml", format!("{listener}{tls}"), dir.path());
    let list = read("tls = [{ certificate='cert.pem', key='key.pem' }, { certificate='cert.pem', key='key.pem' }]");
    let pair = "[[listener.tls]]\ncertificate='cert.pem'\nkey='key.pem'\n";
    let tables = read(&format!("{pair}{pair}"));
    assert_eq!(list, tables);
    assert_eq!(list.unwrap().listeners[0].tls.len(), 2);
    let told = |tls: &str| read(tls).unwrap_err().to_string();
    assert_eq!(
        told("tls = []"),
        "mantlet.toml:4:7: `tls` in [[listener]]: no certificate\n    help: leave `tls` out for plain HTTP"
    );
    assert_eq!(
        told("tls = 'cert.pem'"),
        "mantlet.toml:4:7: `tls` in [[listener]]: expected a table or a list of tables, found \"cert.pem\""
    );
    assert_eq!(
        told("tls = [{ certificate='cert.pem', key='key.pem' }, { certificate='cert.pem', kee='key.pem' }]"),
        "mantlet.toml:4:77: unknown key `kee` in [[listener.tls]]\n    help: did you mean `key`?"
    );
    assert_eq!(
        told("client_ca = 'cert.pem'"),
        "mantlet.toml:4:13: client certificates are shown in TLS, and this listener has no `tls`"
    );
}

#[test]
fn two_listeners_on_one_address_are_refused() {
    let two = |one: &str, other: &str| {
        parse(&format!("[[listener]]\ndoor='ingress'\nbind='{one}'\n[[listener]]\ndoor='ingress'\nbind='{other}'\n"))
    };
    let problems = two("127.0.0.1:1", "127.0.0.1:1").unwrap_err();
    assert_eq!(problems.to_string(), "mantlet.toml:6:6: 127.0.0.1:1 is taken by another listener (127.0.0.1:1)");
    assert!(two("0.0.0.0:1", "127.0.0.1:1").is_err());
    assert!(two("127.0.0.1:1", "127.0.0.1:2").is_ok());
    assert!(two("127.0.0.1:0", "127.0.0.1:0").is_ok());
    let twins = "[[listener]]\ndoor='ingress'\nbind='127.0.0.1:1'\nname='a'\n[[listener]]\ndoor='ingress'\nbind='127.0.0.1:2'\nname='a'\n";
    assert_eq!(told(twins), ["mantlet.toml:8:6: two listeners are named \"a\""]);
}

#[test]
fn a_socket_has_a_mode_and_nothing_else_has() {
    let mode = |bind: &str, mode: &str| parse(&format!("[[listener]]\ndoor='ingress'\nbind='{bind}'\nmode={mode}"));
    assert_eq!(mode("unix:/a", "'0666'").unwrap().listeners[0].mode, SocketMode(0o666));
    for odd in ["'660'", "'0880'", "'0060'", "'01777'", "'rw'", "'0+66'", "''", "432"] {
        assert!(mode("unix:/a", odd).is_err(), "{odd}");
    }
    let problems = mode("127.0.0.1:1", "'0660'").unwrap_err();
    assert_eq!(
        problems.to_string(),
        "mantlet.toml:4:6: `mode` says who may connect to a unix socket, and this listener is none"
    );
}

#[test]
fn sockets_of_systemd_may_share_a_name_but_listeners_may_not() {
    let listener = |more: &str| format!("[[listener]]\ndoor='ingress'\nbind='systemd:public'\n{more}\n");
    assert_eq!(parse(&listener("")).unwrap().listeners[0].name, "systemd:public");
    assert!(parse(&(listener("") + &listener("name='b'"))).is_ok());
    assert_eq!(told(&(listener("") + &listener(""))), ["mantlet.toml:7:6: two listeners are named \"systemd:public\""]);
    for odd in ["", "a b", "a:b", "ä"] {
        assert!(told(&listener("").replace("public", odd))[0].contains("is not the name of a socket"), "{odd}");
    }
}

#[test]
fn somebody_must_be_able_to_send_a_proxy_header() {
    let listener = |bind: &str| format!("[[listener]]\ndoor='ingress'\nbind='{bind}'\nproxy_protocol=true\n");
    assert_eq!(
        told(&listener("127.0.0.1:1")),
        ["mantlet.toml:4:16: nobody may send a PROXY header: [forwarded] trusted_hops is empty"]
    );
    assert!(parse(&listener("unix:/a")).unwrap().listeners[0].proxy_protocol);
    assert!(parse(&format!("{}[forwarded]\ntrusted_hops=['10.0.0.1']", listener("127.0.0.1:1"))).is_ok());
}

#[test]
fn a_gateway_in_front_of_itself_is_refused() {
    assert!(told("[upstream.synapse]\nservers = ['http://127.0.0.1:8480']\n")[0].contains("round for ever"));
    assert!(told("[admin]\nbind = '127.0.0.1:8480'\n")[0].contains("is taken by a listener"));
    let socket = "[[listener]]\ndoor='ingress'\nbind='unix:/a'\n";
    assert!(told(&format!("{socket}[admin]\nbind = 'unix:/a'"))[0].contains("is taken by a listener"));
    assert!(told(&format!("{socket}[upstream.synapse]\nservers = ['unix:/a']"))[0].contains("round for ever"));
    assert!(told(&format!("{socket}{socket}"))[0].contains("is taken by another listener (unix:/a)"));
    let all = "[[listener]]\ndoor='ingress'\nbind='0.0.0.0:8008'\n[upstream.synapse]\nservers=['http://10.0.0.1:8008']";
    assert!(parse(all).is_ok(), "Synapse on another machine may have our port");
}

#[test]
fn a_file_that_cannot_be_read_is_one_problem() {
    let dir = tempfile::tempdir().unwrap();
    let problems = Gateway::load(&dir.path().join("none.toml")).unwrap_err();
    assert_eq!(problems.to_string(), format!("{}/none.toml does not exist", dir.path().display()));
    assert!(Gateway::load(dir.path()).unwrap_err().to_string().ends_with("is a directory, not a file"));
}

#[test]
fn a_syntax_error_hides_nothing_behind_guesses() {
    let told = told("[[listener]]\ndoor = \nbind = \"127.0.0.1:1\n[limits]\nhead = \"1s\"\n");
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("mantlet.toml:2:") && told[1].starts_with("mantlet.toml:3:"), "{told:?}");
}

#[test]
fn no_broken_file_panics() {
    let dir = dir();
    for end in (0..=WHOLE.len()).filter(|end| WHOLE.is_char_boundary(*end)) {
        let _ = Gateway::parse("mantlet.toml", &WHOLE[..end], dir.path());
        let _ = Gateway::parse("mantlet.toml", &WHOLE[end..], dir.path());
        let with = ["\"", "[", "=", "\n", "{", "🗝", "\0", "]", ".", "\r"][end % 10];
        let mut broken = WHOLE.to_owned();
        broken.replace_range(end..(end + 1).min(WHOLE.len()), with);
        let _ = Gateway::parse("mantlet.toml", broken, dir.path());
    }
}
