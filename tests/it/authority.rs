//! The authority of hosts that are looked into: the commands about it, and what its key is good for.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mantlet::tls::ca;
use mantlet_testkit::certificate::Authority;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, Issuer, KeyPair, NameConstraints, SanType,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::{Value, json};

use crate::common::eventually;
use crate::interception::{authority, exchange, roots, tls_at};
use crate::process::{self, Site};

#[test]
fn an_authority_without_the_reserved_name_is_told_of_where_a_rule_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    // As it was made before there was that name.
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("push.test".into())],
        excluded_subtrees: Vec::new(),
    });
    let key = KeyPair::generate().unwrap();
    write("our.crt", &params.self_signed(&key).unwrap().pem());
    write("our.key", &key.serialize_pem());
    std::fs::set_permissions(dir.path().join("our.key"), PermissionsExt::from_mode(0o600)).unwrap();
    write(
        "mantlet.toml",
        "[[listener]]\ndoor = \"proxy\"\nbind = \"127.0.0.1:8118\"\n[policy]\nfile = \"policy.toml\"\n\
         [egress.ca]\ncertificate = \"our.crt\"\nkey = \"our.key\"\n",
    );
    let check = |policy: &str| {
        write("policy.toml", policy);
        process::run(dir.path(), &["check"])
    };
    let told = check("[rules.profiles]\n[rules.threepid_unbind]\n");
    assert!(told.code == Some(1), "{told:?}");
    assert!(
        told.err.contains("policy.toml:2:1: the authority was made without unbind.mantlet.invalid")
            && told.err.contains("mantlet ca init --force"),
        "{told:?}"
    );
    for policy in ["[rules.profiles]\n", "[rules.threepid_unbind]\nmode = \"report\"\n"] {
        assert_eq!(check(policy).code, Some(0));
    }
}

/// A certificate for these names, signed by the authority in this directory whatever it may sign.
fn signed(dir: &Path, names: &[&str], common_name: Option<&str>) -> String {
    let key = KeyPair::from_pem(&std::fs::read_to_string(dir.join("our.key")).unwrap()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&std::fs::read_to_string(dir.join("our.crt")).unwrap(), key).unwrap();
    let mut params = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
    assert!(
        names.iter().all(|name| name.parse::<std::net::IpAddr>().is_err())
            || params.subject_alt_names.iter().any(|name| matches!(name, SanType::IpAddress(_)))
    );
    params.distinguished_name.push(DnType::CommonName, common_name.unwrap_or("x"));
    params.use_authority_key_identifier_extension = true;
    params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().pem()
}

/// Who believes it for this host: OpenSSL, rustls.
fn believed(dir: &Path, leaf: &str, host: &str) -> (bool, bool) {
    std::fs::write(dir.join("leaf.crt"), leaf).unwrap();
    let which = if host.parse::<std::net::IpAddr>().is_ok() { "-verify_ip" } else { "-verify_hostname" };
    let openssl = Command::new("openssl")
        .args(["verify", "-CAfile", "our.crt", "-x509_strict", which, host, "leaf.crt"])
        .current_dir(dir)
        .output()
        .unwrap();
    let roots = Arc::new(roots(&std::fs::read_to_string(dir.join("our.crt")).unwrap()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build().unwrap();
    let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let rustls = verifier.verify_server_cert(&leaf, &[], &name, &[], UnixTime::now());
    (openssl.status.success(), rustls.is_ok())
}

#[test]
fn the_key_of_the_authority_is_good_for_its_names_and_for_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), &["push.test", "matrix.test", "deep.matrix.test"]);
    for host in ["push.test", "matrix.test", "deep.matrix.test"] {
        assert_eq!(believed(dir.path(), &signed(dir.path(), &[host], None), host), (true, true), "{host}");
    }
    for (names, host) in [
        (&["other.test"][..], "other.test"),
        (&["notpush.test"], "notpush.test"),
        (&["push.test.evil"], "push.test.evil"),
        (&["sub.push.test"], "sub.push.test"),
        (&["a.deep.matrix.test"], "a.deep.matrix.test"),
        (&["push.test", "other.test"], "push.test"),
        (&["test"], "test"),
        (&["127.0.0.1"], "127.0.0.1"),
        (&["2001:db8::1"], "2001:db8::1"),
    ] {
        assert_eq!(believed(dir.path(), &signed(dir.path(), names, None), host), (false, false), "{names:?}");
    }
    // OpenSSL believes a common name where there is no other; the constraints hold there, too.
    assert_eq!(believed(dir.path(), &signed(dir.path(), &[], Some("other.test")), "other.test"), (false, false));
    // What is left open, and is said so: below a name that is above another.
    let open = signed(dir.path(), &["sub.matrix.test"], None);
    assert_eq!(believed(dir.path(), &open, "sub.matrix.test"), (true, true));
    let authority = ca::Authority::read(&dir.path().join("our.crt"), &dir.path().join("our.key")).unwrap();
    assert!(authority.leaf("sub.matrix.test").is_err(), "nobody asked for it");
    assert!(!authority.stated().closed_below.contains("matrix.test") && authority.stated().has_no_addresses);
}

#[test]
fn the_command_makes_an_authority_and_says_what_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("policy.toml", "extends = \"balanced\"\n");
    write(
        "mantlet.toml",
        "[[listener]]\ndoor = \"proxy\"\nbind = \"127.0.0.1:8118\"\n[policy]\nfile = \"policy.toml\"\n\
         [egress.ca]\ncertificate = \"our.crt\"\nkey = \"our.key\"\n",
    );
    let run = |arguments: &[&str]| process::run(dir.path(), arguments);
    let before = run(&["check"]);
    let what = "mantlet.toml:6:1: there is no authority yet: neither our.crt nor our.key exists\n    \
                help: make it: `mantlet ca init`\n";
    assert!(before.code == Some(1) && before.err == what, "{before:?}");
    let short = run(&["ca", "init", "org"]);
    assert!(short.code == Some(1) && short.err.contains("org has one label only"), "{short:?}");
    assert!(!dir.path().join("our.key").exists());
    let made = run(&["ca", "init", "other.test"]);
    assert!(
        made.code == Some(0)
            && made
                .out
                .starts_with("made an authority for matrix-federation.matrix.org, matrix.org, other.test, unbind.mantlet.invalid, vector.im\n"),
        "{made:?}"
    );
    let open = "left open  *.matrix.org: whoever gets the key could be it, Mantlet makes no certificate for it\n";
    assert!(made.out.contains(open) && made.out.matches("left open").count() == 1, "{made:?}");
    let mode = std::fs::metadata(dir.path().join("our.key")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let good = run(&["check"]);
    let acts = "  out    usage_stats: only at matrix.org, matrix-federation.matrix.org, vector.im, and in the clear\n";
    assert!(good.code == Some(0) && good.out.contains(acts) && !good.out.contains("\n  open   "), "{good:?}");
    let shown = run(&["ca", "show"]);
    assert!(
        shown.out.contains("may be     matrix.org\nmay be     other.test\nmay be     unbind.mantlet.invalid\n")
            && shown.out.contains(open)
            && shown.out.matches("left open").count() == 1,
        "{shown:?}"
    );
    let key = std::fs::read(dir.path().join("our.key")).unwrap();
    let again = run(&["ca", "init"]);
    assert!(again.code == Some(1) && again.err.contains("is there already"), "{again:?}");
    assert_eq!(std::fs::read(dir.path().join("our.key")).unwrap(), key);
    let synapse = run(&["ca", "synapse", "--bundle", "bundle.pem"]);
    // Synapse is started somewhere else.
    let whole = format!("\nSSL_CERT_FILE={}\n", dir.path().canonicalize().unwrap().join("bundle.pem").display());
    assert!(
        synapse.out.contains("https_proxy: http://127.0.0.1:8118\n") && synapse.out.ends_with(&whole),
        "{synapse:?}"
    );
    let bundle = std::fs::read_to_string(dir.path().join("bundle.pem")).unwrap();
    assert!(bundle.starts_with(&std::fs::read_to_string(dir.path().join("our.crt")).unwrap()));
    assert!(bundle.matches("BEGIN CERTIFICATE").count() > 1);
    std::fs::set_permissions(dir.path().join("our.key"), PermissionsExt::from_mode(0o640)).unwrap();
    let open = run(&["check"]);
    assert!(open.code == Some(1) && open.err.contains("is open to other users (mode 0640)"), "{open:?}");
    assert_eq!(run(&["ca", "init", "--force"]).code, Some(0));
    assert!(std::fs::read(dir.path().join("our.key")).unwrap() != key);
    // Where one of the two is lost, the other's place is left for it.
    for (lost, left) in [("our.key", "our.crt"), ("our.crt", "our.key")] {
        let (lost, kept) = (dir.path().join(lost), std::fs::read(dir.path().join(left)).unwrap());
        let backup = std::fs::read(&lost).unwrap();
        std::fs::remove_file(&lost).unwrap();
        let again = run(&["ca", "init"]);
        let told = format!("{left} is there already\n    help: if it is an authority of Mantlet's, --force makes");
        assert!(again.code == Some(1) && again.err.contains(&told), "{again:?}");
        assert!(!lost.exists() && std::fs::read(dir.path().join(left)).unwrap() == kept);
        std::fs::write(&lost, backup).unwrap();
    }
}

#[test]
fn what_is_wrong_with_the_authoritys_files_is_told_with_its_place_and_its_own_help() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), &["push.test"]);
    let gateway = |key: &str| {
        let text = format!(
            "[[listener]]\ndoor = \"proxy\"\nbind = \"127.0.0.1:8118\"\n[egress.ca]\ncertificate = \"our.crt\"\nkey = \"{key}\"\n"
        );
        std::fs::write(dir.path().join("mantlet.toml"), text).unwrap();
        let ran = process::run(dir.path(), &["check"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        ran.err
    };
    let told = gateway("gone.key");
    let what =
        "mantlet.toml:4:1: the key file gone.key does not exist\n    help: one belongs to the other: is it elsewhere?";
    assert!(told.starts_with(what), "{told}");
    std::fs::write(dir.path().join("our.crt"), "").unwrap();
    let told = gateway("our.key");
    let what = "mantlet.toml:4:1: there is no certificate in our.crt\n    help: is it the file that is meant? `mantlet ca init` makes";
    assert!(told.starts_with(what) && !told.contains("host's"), "{told}");
    // What is there may be something else.
    let again = process::run(dir.path(), &["ca", "init", "push.test"]);
    let help = "our.crt is there already\n    help: if it is an authority of Mantlet's, --force";
    assert!(again.code == Some(1) && again.err.starts_with(help), "{again:?}");
}

#[test]
fn without_an_authority_there_is_no_bundle_and_without_a_door_nothing_to_tell_synapse() {
    let dir = tempfile::tempdir().unwrap();
    let write = |text: &str| std::fs::write(dir.path().join("mantlet.toml"), text).unwrap();
    let run = |arguments: &[&str]| process::run(dir.path(), arguments);
    write("[[listener]]\ndoor = \"proxy\"\nbind = \"127.0.0.1:8118\"\n");
    let bundle = run(&["ca", "synapse", "--bundle", "bundle.pem"]);
    let what = "the gateway file names no authority\n    help: [egress.ca] certificate = ";
    assert!(bundle.code == Some(1) && bundle.out.is_empty() && bundle.err.starts_with(what), "{bundle:?}");
    assert!(!dir.path().join("bundle.pem").exists());
    assert!(run(&["ca", "synapse"]).out.contains("\nhttps_proxy: "));
    write("[[listener]]\ndoor = \"ingress\"\nbind = \"127.0.0.1:8480\"\n");
    let nothing = run(&["ca", "synapse"]);
    let said = "# homeserver.yaml\n# nothing: the gateway has no door of the way out\n";
    assert!(nothing.code == Some(0) && nothing.out == said, "{nothing:?}");
}

#[test]
fn without_an_authority_the_shipped_policies_say_what_they_cannot_look_into() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "mantlet.toml",
        "[[listener]]\ndoor = \"proxy\"\nbind = \"127.0.0.1:8118\"\n[policy]\nfile = \"policy.toml\"\n",
    );
    let run = |arguments: &[&str]| process::run(dir.path(), arguments);
    for (base, how, code) in [("balanced", "passes unread", 0), ("strict", "is refused", 3)] {
        write("policy.toml", &format!("extends = \"{base}\"\n"));
        let checked = run(&["check"]);
        assert_eq!(checked.code, Some(0), "{checked:?}");
        for host in ["matrix.org", "matrix-federation.matrix.org", "vector.im"] {
            let line = format!("\n  open   {host} {how}, for there is no authority: [egress.ca], then mantlet ca init");
            assert!(checked.out.contains(&line), "{checked:?}");
            assert_eq!(run(&["explain", "CONNECT", &format!("{host}:443")]).code, Some(code));
        }
        let told: serde_json::Value = serde_json::from_str(&run(&["--format", "json", "check"]).out).unwrap();
        assert_eq!(
            (&told["unread"], &told["intercepted"]),
            (&json!(["matrix.org", "matrix-federation.matrix.org", "vector.im"]), &json!([]))
        );
        assert!(
            checked.out.contains("  out    usage_stats: only in the clear, for no host is intercepted\n"),
            "{checked:?}"
        );
    }
    // Whoever names a host gets no less than that.
    write(
        "policy.toml",
        "extends = \"balanced\"\n[[egress.destination]]\nhost = \"matrix.org\"\naction = \"intercept\"\n",
    );
    let checked = run(&["check"]);
    let what = "policy.toml:2:1: there is no authority by which matrix.org could be looked into";
    assert!(
        checked.code == Some(1) && checked.err.contains(what) && checked.err.contains("mantlet ca init"),
        "{checked:?}"
    );
    write(
        "policy.toml",
        "[rules.usage_stats]\n[[egress.destination]]\nhost = \"a.test\"\naction = \"deny\"\nwithout_authority = \"deny\"\n",
    );
    let checked = run(&["check"]);
    assert!(
        checked.err.contains("policy.toml:5:21: `without_authority` is for hosts that are looked into"),
        "{checked:?}"
    );
}

#[test]
fn a_bundle_has_the_roots_of_the_system_and_no_authority_but_the_present_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let read = |name: &str| std::fs::read_to_string(file(name)).unwrap();
    authority(dir.path(), &["push.test"]);
    let outside = mantlet_testkit::certificate::Authority::new().unwrap();
    std::fs::write(file("roots.pem"), outside.pem()).unwrap();
    std::fs::write(
        file("mantlet.toml"),
        "[[listener]]\ndoor = \"proxy\"\nbind = \"127.0.0.1:8118\"\n\
         [egress.ca]\ncertificate = \"our.crt\"\nkey = \"our.key\"\n",
    )
    .unwrap();
    let bundle = |roots: &str, more: &str| {
        let mut command = process::mantlet(dir.path());
        command.args(["ca", "synapse", "--bundle", "bundle.pem"]);
        let ran = command.env("SSL_CERT_FILE", file(roots)).env("SSL_CERT_DIR", file(more)).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (ran.status.code(), text(ran.stdout), text(ran.stderr))
    };
    let (code, _, told) = bundle("gone.pem", "gone");
    assert!(code == Some(1) && told.contains("no root certificates") && told.contains("gone.pem"), "{told}");
    assert!(told.contains("install ca-certificates") && !file("bundle.pem").exists(), "{told}");
    std::fs::create_dir(file("more")).unwrap();
    assert_eq!(bundle("roots.pem", "more").0, Some(0));
    let certificates = |name: &str| {
        let text = read(name);
        CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap()
    };
    let root = certificates("roots.pem");
    assert_eq!(certificates("bundle.pem"), [certificates("our.crt"), root.clone()].concat());
    // An authority that is made anew, where the roots are the bundle of the one before.
    std::fs::rename(file("bundle.pem"), file("before.pem")).unwrap();
    authority(dir.path(), &["push.test", "other.test"]);
    assert_eq!(bundle("before.pem", "more").0, Some(0));
    assert_eq!(certificates("bundle.pem"), [certificates("our.crt"), root.clone()].concat());
    // What cannot be read is told, and the rest is there.
    let (code, told, _) = bundle("before.pem", "gone");
    assert!(code == Some(0) && told.contains("\n# not in it: ") && told.contains("gone"), "{told}");
    assert_eq!(certificates("bundle.pem"), [certificates("our.crt"), root].concat());
}

/// A gateway with an authority that is valid at these times.
fn with_an_authority(begins: SystemTime, ends: SystemTime) -> Site {
    let site = Site::new("http://127.0.0.1:9", "[rules.profiles]\n", "");
    let more = "[egress.ca]\ncertificate = \"our.crt\"\nkey = \"our.key\"\n";
    let file = site.gateway_file("http://127.0.0.1:9", "127.0.0.1:0", more);
    site.write("mantlet.toml", &file.replacen("door = \"ingress\"", "door = \"proxy\"", 1));
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let permitted_subtrees = ["push.test", "unbind.mantlet.invalid"].map(|name| GeneralSubtree::DnsName(name.into()));
    params.name_constraints =
        Some(NameConstraints { permitted_subtrees: permitted_subtrees.into(), excluded_subtrees: Vec::new() });
    (params.not_before, params.not_after) = (begins.into(), ends.into());
    let key = KeyPair::generate().unwrap();
    site.write("our.crt", &params.self_signed(&key).unwrap().pem());
    site.write("our.key", &key.serialize_pem());
    std::fs::set_permissions(site.path().join("our.key"), PermissionsExt::from_mode(0o600)).unwrap();
    site
}

#[test]
fn an_authority_that_begins_in_the_future_is_told_of_by_check_and_at_the_start() {
    let now = SystemTime::now();
    let begins = now + Duration::from_secs(3600);
    let site = with_an_authority(begins, now + Duration::from_secs(400 * 24 * 3600));
    let checked = site.run(&["check"]);
    let begins = humantime::format_rfc3339_seconds(begins);
    let told = format!("\n  begins the authority begins in the future, at {begins}: until then nobody believes it");
    assert!(checked.code == Some(0) && checked.out.contains(&told), "{checked:?}");
    let process = site.start();
    process.wait_log("nobody believes it", |line| {
        line["message"].as_str().is_some_and(|text| text.starts_with("the authority begins in the future"))
    });
    // Of one that has begun nothing is said, once it is read.
    authority(site.path(), &["push.test"]);
    let checked = site.run(&["check"]);
    assert!(checked.code == Some(0) && !checked.out.contains("the authority begins"), "{checked:?}");
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(process.log().matches("the authority begins in the future").count(), 1);
}

#[test]
fn an_authority_that_ends_soon_is_told_of_by_check_and_at_the_start() {
    let ends = SystemTime::now() + Duration::from_secs(12 * 24 * 3600 + 3600);
    let site = with_an_authority(SystemTime::UNIX_EPOCH, ends);
    let checked = site.run(&["check"]);
    let told = "\n  ends   the authority ends in 12 days: make a new one with `mantlet ca init --force`";
    assert!(checked.code == Some(0) && checked.out.contains(told), "{checked:?}");
    let process = site.start();
    let is_told =
        |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("the authority ends soon"));
    assert_eq!(process.wait_log("the end is near", is_told)["days"], 12);
    let stated = ends.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let metric = process.metric("mantlet_interception_authority_not_after_timestamp_seconds").unwrap();
    assert_eq!(metric, stated as f64);
    // Of one that lasts nothing is said, once it is read.
    authority(site.path(), &["push.test"]);
    let checked = site.run(&["check"]);
    assert!(checked.code == Some(0) && !checked.out.contains("the authority ends"), "{checked:?}");
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert!(process.metric("mantlet_interception_authority_not_after_timestamp_seconds").unwrap() > metric);
    assert_eq!(process.log().matches("the authority ends soon").count(), 1);
}

#[test]
fn the_log_says_once_that_somebody_does_not_believe_the_authority() {
    let site = with_an_authority(SystemTime::UNIX_EPOCH, SystemTime::now() + Duration::from_secs(400 * 24 * 3600));
    let process = site.start();
    let (ours, stranger) = (std::fs::read_to_string(site.path().join("our.crt")).unwrap(), Authority::new().unwrap());
    let mismatches = || process.metric("mantlet_tunnels_total{outcome=\"mismatch\"}").unwrap_or_default();
    let tls = |pem: &str| tls_at(process.addr(), pem, "unbind.mantlet.invalid:443", "unbind.mantlet.invalid");
    assert_eq!(exchange(tls(&ours), "GET / HTTP/1.1\r\nHost: unbind.mantlet.invalid\r\n", "").0, 404);
    assert!(!process.log().contains("does not believe"));
    for expected in [1.0, 2.0] {
        assert!(tls(&stranger.pem()).flush().is_err());
        eventually("it is counted", || mismatches() == expected);
    }
    process.wait_log("who is to do what", |line| {
        line["level"] == "WARN" && line["message"].as_str().is_some_and(|text| text.contains("SSL_CERT_FILE"))
    });
    assert_eq!(process.log().matches("does not believe").count(), 1);
}
