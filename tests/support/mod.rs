//! Starts Mantlet for a test: in this process, on a free port, with records that can be read.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

pub mod federation;
pub mod frames;
pub mod mutate;
pub mod outside;
pub mod spellings;
pub mod strict;

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use mantlet::config::address::{AdminAddress, ListenerAddress};
use mantlet::config::gateway::Gateway as Config;
use mantlet::server::{self, Running, Start};
use mantlet_testkit::http::Request;
use serde_json::Value;

/// A gateway that serves for as long as this lives.
pub struct Gateway {
    running: Option<Running>,
    dir: tempfile::TempDir,
    records: Records,
}

impl Gateway {
    /// In front of this upstream (`http://127.0.0.1:PORT` or `unix:/path`), with this policy text.
    pub fn start(upstream: &str, policy: &str) -> Self {
        Self::with(upstream, policy, "")
    }

    /// The same with further lines for the gateway file: tables other than `[[listener]]`, `[upstream]`, `[policy]`, `[admin]`.
    pub fn with(upstream: &str, policy: &str, more: &str) -> Self {
        Self::with_listener(upstream, policy, "", more)
    }

    /// The same with further keys for the listener, such as `tls`.
    pub fn with_listener(upstream: &str, policy: &str, listener: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("policy.toml"), policy).expect("the policy is written");
        let text = format!(
            "[[listener]]\nname = \"test\"\ndoor = \"ingress\"\nbind = \"127.0.0.1:0\"\n{listener}\n\
             [upstream.synapse]\nservers = [\"{upstream}\"]\n[policy]\nfile = \"policy.toml\"\n\
             [admin]\nbind = \"127.0.0.1:0\"\n{more}\n"
        );
        Self::load(dir, &text, |_| {})
    }

    /// With this gateway file in this directory, and what a file cannot say.
    pub fn load(dir: tempfile::TempDir, text: &str, adjust: impl FnOnce(&mut Config)) -> Self {
        let file = dir.path().join("mantlet.toml");
        std::fs::write(&file, text).expect("the gateway file is written");
        let records = Records::default();
        let mut gateway = Config::load(&file).unwrap_or_else(|problems| panic!("{problems}"));
        adjust(&mut gateway);
        let start = Start { gateway, file: Some(file), signals: false, access: Some(Box::new(records.clone())) };
        let running = server::start(start).unwrap_or_else(|problems| panic!("{problems}"));
        Self { running: Some(running), dir, records }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("it runs")
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.running().addr().expect("it listens on TCP")
    }

    /// Where the listener of this name is.
    pub fn addr_of(&self, name: &str) -> SocketAddr {
        let listener = self.running().listeners().iter().find(|(known, _)| known == name);
        match listener.map(|(_, address)| address) {
            Some(ListenerAddress::Tcp(address)) => *address,
            other => panic!("{name} is not on TCP: {other:?}"),
        }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Where its admin listener is.
    pub fn admin(&self) -> SocketAddr {
        match self.running().admin() {
            Some(AdminAddress::Tcp(address)) => *address,
            other => panic!("the admin listener is not on TCP: {other:?}"),
        }
    }

    /// The directory with `mantlet.toml` and `policy.toml`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The policy's file.
    pub fn policy_file(&self) -> PathBuf {
        self.dir.path().join("policy.toml")
    }

    /// What reloads it.
    pub fn reloader(&self) -> &Arc<server::reload::Reloader> {
        self.running().reloader()
    }

    /// Its metrics as they are shown.
    pub fn metrics(&self) -> String {
        self.running().metrics().render()
    }

    /// The value of one metric, by its whole name with labels; 0 if it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        let line = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        self.metrics().lines().find_map(line).unwrap_or_default()
    }

    /// The lines of its ledger, as the admin listener tells them.
    pub fn contacts(&self) -> Vec<Value> {
        let ledger = Request::new("GET", "/ledger").send(self.admin()).json();
        ledger["contacts"].as_array().expect("the ledger is a list").clone()
    }

    /// The access records, once there are so many.
    pub fn records(&self, at_least: usize) -> Vec<Value> {
        self.records.wait(at_least)
    }

    /// The access records, once there is one like this: they are written behind the answers.
    pub fn records_with(&self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut records = self.records(1);
        while !records.iter().any(&wanted) {
            records = self.records(records.len() + 1);
        }
        records
    }

    /// All that was written of exchanges so far, as text.
    pub fn written(&self) -> String {
        self.records.text()
    }

    /// Drains it.
    pub fn shutdown(mut self) -> server::Outcome {
        self.running.take().expect("it runs").shutdown()
    }
}

/// Where a gateway under test writes its records.
#[derive(Clone, Default)]
pub struct Records(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Write for Records {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.0.lock().expect("nobody panics here").extend_from_slice(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Records {
    fn text(&self) -> String {
        String::from_utf8(self.0.0.lock().expect("nobody panics here").clone()).expect("records are text")
    }

    fn wait(&self, at_least: usize) -> Vec<Value> {
        let (bytes, written) = &*self.0;
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut bytes = bytes.lock().expect("nobody panics here");
        while bytes.iter().filter(|byte| **byte == b'\n').count() < at_least {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "fewer than {at_least} records: {}", String::from_utf8_lossy(&bytes));
            bytes = written.wait_timeout(bytes, left).expect("nobody panics here").0;
        }
        let lines = String::from_utf8_lossy(&bytes).into_owned();
        lines.lines().map(|line| serde_json::from_str(line).expect("a record is JSON")).collect()
    }
}
