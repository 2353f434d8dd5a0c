//! A full session of a real client, matrix-nio, against any base URL.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::lease::{Leased, Network, Output, script};
use crate::venv;

/// Who takes part, and how they are reached.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// The authority of an `https` URL, as a PEM file; without it the system's are trusted.
    pub ca: Option<PathBuf>,
    /// The two users.
    pub users: Users,
}

/// Where the two users of a session come from.
#[derive(Debug, Clone, Default)]
pub enum Users {
    /// The session registers two new ones.
    #[default]
    Register,
    /// These exist: name and password.
    Login([(String, String); 2]),
}

/// Runs a whole session of two users and returns the names of the checks that passed, in order; the error of a failed
/// one has all its output.
///
/// Register or login, sync, public room with alias, directory with token, join, long poll, message, 5 MiB upload and
/// authenticated download, profile, logout.
pub fn run_session(url: &str, options: &SessionOptions) -> Result<Vec<String>> {
    let python = venv::nio_python()?;
    let asked = json!({"homeserver": url, "ca": options.ca, "users": users(options)}).to_string();
    let command = [python.clone().into(), script("session.py").into(), asked.into()];
    checks(&python, &command, &format!("matrix-nio with {url}"))
}

/// The users as a session's script wants them.
pub(crate) fn users(options: &SessionOptions) -> Value {
    match &options.users {
        Users::Register => Value::Null,
        Users::Login(users) => json!(users),
    }
}

/// Runs a session's script, which prints a JSON line for each check.
pub(crate) fn checks(python: &Path, command: &[OsString], whose: &str) -> Result<Vec<String>> {
    let output = Output { stdout: Stdio::piped(), stderr: Stdio::piped() };
    let command: Vec<&OsStr> = command.iter().map(OsString::as_os_str).collect();
    let mut child = Leased::spawn(python, None, &command, Network::Loopback, output)?;
    let (stdout, stderr) = (child.stdout(), child.stderr());
    let complaints = std::thread::spawn(move || read(stderr));
    let said = read(stdout);
    let status = child.wait(Duration::from_secs(10))?;
    let complaints = complaints.join().unwrap_or_default();

    let checks: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let passed = checks.iter().filter(|check| check["ok"] == true).filter_map(|check| check["check"].as_str());
    let passed: Vec<String> = passed.map(str::to_owned).collect();
    if status.success() && passed.len() == checks.len() && !passed.is_empty() {
        return Ok(passed);
    }
    Err(Error::new(format!("the session of {whose} failed ({status}):\n{said}{complaints}")))
}

fn read(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
