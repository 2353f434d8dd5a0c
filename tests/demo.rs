//! The demo itself, run to its end as a new user runs it, and the logic of its table.

use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../examples/demo/table.rs"]
#[allow(dead_code, reason = "its own tests are what is wanted here")]
mod table;

#[test]
fn the_demo_closes_every_leak_and_leaves_open_what_must_work() {
    let output = Command::new(demo()).arg("--once").output().unwrap();
    let (text, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);

    let (leaks, work) = text.split_once("\nWhat has to stay open\n").unwrap();
    let rows: Vec<&str> = leaks.lines().filter(|line| line.starts_with('L')).collect();
    assert!(rows.iter().all(|row| row.ends_with("  closed")), "{text}");
    for leak in ["L01", "L02", "L03", "L05", "L06", "L09", "L11"] {
        assert!(rows.iter().any(|row| row.starts_with(leak)), "{leak} is missing:\n{text}");
    }
    let prefixes = ["api/v1", "r0", "v3", "unstable"].map(|version| format!("GET  /client/{version}/publicRooms"));
    for asked in prefixes.iter().map(String::as_str).chain(["HEAD /client/v3/publicRooms"]) {
        assert_eq!(
            rows.iter().filter(|row| row.contains(asked)).count(),
            2,
            "without a token and with garbage: {asked}"
        );
    }
    assert_eq!(work.lines().filter(|line| line.ends_with("  OPEN")).count(), 3, "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 110) && !text.contains('\x1b'), "{text}");
}

#[test]
fn without_python_the_demo_names_the_package_and_exits_with_1() {
    let empty = tempfile::tempdir().unwrap();
    let output = Command::new(demo())
        .arg("--once")
        .env("PATH", empty.path())
        // Where nothing is installed yet.
        .env("CARGO_TARGET_DIR", empty.path())
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let last = errors.lines().last().unwrap();
    assert!(
        last.starts_with("demo: no Python was found") && last.ends_with("apt-get install python3 python3-venv"),
        "{errors}"
    );
    assert!(output.stdout.is_empty());
}

/// The built example. `cargo test` builds it; `cargo test --test demo` does not, so an old one is not taken for proof.
fn demo() -> PathBuf {
    let demo = Path::new(env!("CARGO_BIN_EXE_mantlet")).with_file_name("examples").join("demo");
    let changed = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    let built = changed(&demo).expect("the demo is built: cargo build --example demo");
    // Cargo's own list of what the binary was built from: `demo: source source …`.
    let sources = std::fs::read_to_string(demo.with_extension("d")).expect("cargo wrote what it built from");
    let newer = sources.split_whitespace().find(|source| changed(Path::new(source)).is_some_and(|time| time > built));
    assert!(
        newer.is_none_or(|source| source.ends_with(':')),
        "{newer:?} is newer than the demo: cargo build --example demo"
    );
    demo
}
