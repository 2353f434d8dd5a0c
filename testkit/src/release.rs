//! The gateway as it is shipped: what `cargo build --release` makes, without a feature that only tests ask for.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::venv;

/// Builds it if need be, and returns its path. Cargo says on standard error what it does.
pub fn gateway() -> Result<PathBuf> {
    build(Path::new(ROOT), &["--locked", "--package", "mantlet", "--bin", "mantlet"])
}

/// Builds the proxy of Pingora that measurements compare with, and returns its path. The first time takes minutes.
pub fn pingora() -> Result<PathBuf> {
    let target = venv::target_directory().join("pingora").display().to_string();
    build(&Path::new(ROOT).join("benches/peers/pingora"), &["--target-dir", &target])
}

fn build(directory: &Path, arguments: &[&str]) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--release", "--message-format=json-render-diagnostics"])
        .args(arguments)
        .current_dir(directory);
    let output = build.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context(|| "run cargo".into())?;
    if !output.status.success() {
        return Err(Error::new(format!("{} cannot be built ({})", directory.display(), output.status)));
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    };
    messages.lines().find_map(executable).ok_or_else(|| Error::new("cargo built no executable"))
}

/// What `rustc -V` prints here, and so what built it.
pub fn compiler() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-V").output().context(|| "run rustc".into())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
