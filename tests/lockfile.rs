//! What stands in `Cargo.lock` and the manifests: no crate with a known hole, no other TLS, no unsafe code of ours.

use std::fs;
use std::path::Path;

/// The oldest version of a crate that may be built, and why. `deny.toml` says the same for `cargo deny`.
const OLDEST: [(&str, [u64; 3], &str); 10] = [
    ("hyper", [1, 11, 0], "Content-Length before Transfer-Encoding was kept and forwarded"),
    ("h2", [0, 4, 18], "RUSTSEC-2026-0258: floods of empty DATA frames"),
    ("rustls", [0, 23, 18], "RUSTSEC-2024-0399: panic in Acceptor::accept"),
    ("rustls-webpki", [0, 103, 13], "RUSTSEC-2026-0104 and others"),
    ("tokio", [1, 44, 2], "RUSTSEC-2025-0023"),
    ("ring", [0, 17, 12], "RUSTSEC-2025-0009; it stands in the lock file, and is not built"),
    ("idna", [1, 0, 0], "RUSTSEC-2024-0421"),
    ("time", [0, 3, 47], "RUSTSEC-2026-0009"),
    ("lru", [0, 18, 2], "RUSTSEC-2026-0253"),
    ("aws-lc-rs", [1, 19, 0], "RUSTSEC-2026-0044 to 0048"),
];

/// What is not even in the lock file.
const NEVER: [&str; 4] = ["openssl", "openssl-sys", "native-tls", "rustls-pemfile"];

#[test]
fn no_crate_is_older_than_the_fix_of_a_known_hole() {
    for (name, version) in packages() {
        for (_, oldest, why) in OLDEST.iter().filter(|(old, ..)| *old == name) {
            assert!(version_order(&version) >= (*oldest, true), "{name} {version} is older than {oldest:?}: {why}");
        }
    }
}

#[test]
fn tls_is_rustls_and_pem_is_read_by_what_is_maintained() {
    for (name, version) in packages() {
        assert!(!NEVER.contains(&name.as_str()), "{name} {version}");
    }
}

#[test]
fn the_bans_of_cargo_deny_are_the_same() {
    let deny = read("deny.toml");
    for (name, [major, minor, patch], _) in OLDEST.iter().filter(|(name, ..)| *name != "ring") {
        assert!(deny.contains(&format!("crate = \"{name}:<{major}.{minor}.{patch}\"")), "{name}");
    }
    for name in NEVER.iter().chain(&["ring"]) {
        assert!(deny.contains(&format!("crate = \"{name}\"")), "{name}");
    }
}

#[test]
fn every_package_of_ours_has_the_licence_and_forbids_unsafe_code() {
    let root = read("Cargo.toml");
    assert!(root.contains("[workspace.lints.rust]\nunsafe_code = \"forbid\""));
    for manifest in ["Cargo.toml", "testkit/Cargo.toml", "benches/peers/Cargo.toml"] {
        let manifest = read(manifest);
        assert!(manifest.contains("license = \"Apache-2.0 OR MIT\""));
        assert!(manifest.contains("[lints]\nworkspace = true"));
    }
    for (file, words) in
        [("LICENSE-APACHE", "Apache License"), ("LICENSE-MIT", "MIT License"), ("LICENSE", "at your option")]
    {
        assert!(read(file).contains(words), "{file}");
    }
}

/// Name and version of each package in the lock file.
fn packages() -> Vec<(String, String)> {
    let lock = read("Cargo.lock");
    let value =
        |line: &str, key: &str| Some(line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"')?.to_owned());
    let packages: Vec<_> = lock
        .split("[[package]]")
        .filter_map(|package| {
            let find = |key: &str| package.lines().find_map(|line| value(line, key));
            Some((find("name")?, find("version")?))
        })
        .collect();
    assert!(packages.iter().any(|(name, _)| name == "hyper"), "the lock file was not understood");
    packages
}

/// The numbers of a version, and whether it is a release: `1.0.0-rc.1` is older than `1.0.0`.
fn version_order(version: &str) -> ([u64; 3], bool) {
    let mut numbers = version.split(['-', '+']).next().unwrap_or_default().split('.').map(str::parse);
    (std::array::from_fn(|_| numbers.next().and_then(Result::ok).unwrap_or(0)), !version.contains('-'))
}

#[expect(clippy::panic, reason = "a test that cannot read the file has failed")]
fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
