//! The real binary, as an operator starts it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use mantlet_testkit::http::{Request, Response};
use serde_json::Value;

use crate::common::SOON;

/// The binary, with nothing of the test's surroundings.
pub fn mantlet(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mantlet"));
    command.current_dir(directory).env_remove("MANTLET_CONFIG").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs a verb to its end; one that does not end is killed, and has no code.
pub fn run(directory: &Path, arguments: &[&str]) -> Ran {
    let mut command = mantlet(directory);
    let mut child =
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let (out, err) = (Lines::default(), Lines::default());
    out.follow(child.stdout.take().expect("it is piped"));
    err.follow(child.stderr.take().expect("it is piped"));
    if !(out.ended() && err.ended()) {
        // It may have ended in this moment.
        let _ = child.kill();
    }
    let status = child.wait().expect("it is ours");
    Ran { code: status.code(), out: out.text(), err: err.text() }
}

/// What came of a verb.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// A directory with a gateway file and a policy.
pub struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    /// In front of this upstream, with this policy, the admin listener on a unix socket, and these further lines.
    pub fn new(upstream: &str, policy: &str, more: &str) -> Self {
        let site = Self { dir: tempfile::tempdir().expect("a directory") };
        site.write("policy.toml", policy);
        site.write("mantlet.toml", &site.gateway_file(upstream, "127.0.0.1:0", more));
        site
    }

    pub fn gateway_file(&self, upstream: &str, bind: &str, more: &str) -> String {
        format!(
            "[[listener]]\nname = \"test\"\ndoor = \"ingress\"\nbind = \"{bind}\"\n[upstream.synapse]\n\
             servers = [\"{upstream}\"]\n[policy]\nfile = \"policy.toml\"\n[admin]\nbind = \"unix:{}\"\n{more}\n",
            self.admin().display()
        )
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn admin(&self) -> PathBuf {
        self.path().join("admin.sock")
    }

    /// Writes a file beside the others and renames it into its place, as careful writers do.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.path().join(format!("{name}.new"));
        std::fs::write(&new, text).expect("the file is written");
        std::fs::rename(new, self.path().join(name)).expect("the file is renamed");
    }

    /// Starts the gateway and waits until it listens.
    pub fn start(&self) -> Process {
        let process = self.spawn();
        process.wait_log("it listens", |line| line["message"] == "listening");
        process
    }

    /// Starts the gateway where it may open no more files than these.
    pub fn start_with_descriptors(&self, most: usize) -> Process {
        let mut shell = Command::new("sh");
        let line = format!("ulimit -n {most}; exec \"$0\" run --log-format json");
        shell.current_dir(self.path()).args(["-c", &line, env!("CARGO_BIN_EXE_mantlet")]).stdin(Stdio::null());
        let process = self.follow(shell);
        process.wait_log("it listens", |line| line["message"] == "listening");
        process
    }

    /// Starts the gateway as a user who may do nothing, if the test is root; else as the test's own.
    pub fn start_as_nobody(&self) -> Process {
        let is_root = std::fs::metadata("/proc/self").expect("there is /proc").uid() == 0;
        let process = match is_root {
            false => self.spawn(),
            true => {
                let binary = self.path().join("mantlet");
                // Nobody may come to where it was built.
                std::fs::copy(env!("CARGO_BIN_EXE_mantlet"), &binary).expect("it is copied");
                std::fs::set_permissions(self.path(), PermissionsExt::from_mode(0o777)).expect("it is ours");
                let mut command = Command::new("setpriv");
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(binary);
                command.current_dir(self.path()).env_remove("MANTLET_CONFIG").stdin(Stdio::null());
                self.spawn_by(command)
            }
        };
        process.wait_log("it listens", |line| line["message"] == "listening");
        process
    }

    /// Starts the gateway and does not wait.
    pub fn spawn(&self) -> Process {
        self.spawn_by(mantlet(self.path()))
    }

    /// The same by a command of one's own that becomes the gateway.
    pub fn spawn_by(&self, mut command: Command) -> Process {
        command.args(["run", "--log-format", "json"]);
        self.follow(command)
    }

    fn follow(&self, mut command: Command) -> Process {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let (log, records) = (Lines::default(), Lines::default());
        log.follow(child.stderr.take().expect("it is piped"));
        records.follow(child.stdout.take().expect("it is piped"));
        Process { child, log, records, admin: self.admin() }
    }

    /// Runs a verb here.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        run(self.path(), arguments)
    }
}

/// A gateway that runs.
pub struct Process {
    child: Child,
    log: Lines,
    records: Lines,
    admin: PathBuf,
}

impl Process {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        let line = self.wait_log("it listens", |line| line["message"] == "listening");
        line["address"].as_str().and_then(|address| address.parse().ok()).expect("it says where")
    }

    /// The first line of the log that is so, as soon as it is there.
    #[track_caller]
    pub fn wait_log(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        self.log.wait(what, is_so)
    }

    /// The first access record that is so.
    #[track_caller]
    pub fn wait_record(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        self.records.wait(what, is_so)
    }

    pub fn log(&self) -> String {
        self.log.text()
    }

    pub fn records(&self) -> String {
        self.records.text()
    }

    /// Asks the admin listener.
    pub fn admin(&self, path: &str) -> Response {
        Request::new("GET", path).send(&self.admin)
    }

    /// One metric by its whole name.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = self.admin("/metrics").text();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// The generation in force.
    pub fn generation(&self) -> u64 {
        self.admin("/version").json()["generation"].as_u64().expect("a number")
    }

    /// Whose it is, and whose what stands of it below `/proc/PID` (the directory itself is always its own).
    pub fn owner(&self) -> (u32, u32) {
        let environment = std::fs::metadata(format!("/proc/{}/environ", self.child.id())).expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let user = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
        (user.expect("it has a user"), environment.uid())
    }

    /// The memory it holds, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, by its name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs");
        assert!(sent.success(), "{name} reaches {pid}");
    }

    /// Stops it in its tracks; what comes in waits for [`Process::resume`].
    pub fn pause(&self) {
        self.signal("STOP");
        crate::common::eventually("all threads stand still", || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it runs");
            let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            tasks
                .filter_map(Result::ok)
                .map(stat)
                .all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
        });
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                self.log.ended();
                self.records.ended();
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.log());
            crate::common::nap();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, as the test wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines as they come.
#[derive(Clone, Default)]
struct Lines(Arc<(Mutex<(String, bool)>, Condvar)>);

impl Lines {
    fn follow(&self, from: impl Read + Send + 'static) {
        let lines = self.clone();
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = String::new();
            while from.read_line(&mut line).is_ok_and(|read| read > 0) {
                let (text, changed) = &*lines.0;
                text.lock().expect("nobody panics here").0.push_str(&std::mem::take(&mut line));
                changed.notify_all();
            }
            let (text, changed) = &*lines.0;
            text.lock().expect("nobody panics here").1 = true;
            changed.notify_all();
        });
    }

    #[track_caller]
    fn wait(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let (text, changed) = &*self.0;
        let deadline = Instant::now() + SOON;
        let mut text = text.lock().expect("nobody panics here");
        loop {
            let lines = text.0.lines().filter_map(|line| serde_json::from_str(line).ok());
            if let Some(line) = lines.into_iter().find(|line| is_so(line)) {
                return line;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!text.1 && !left.is_zero(), "never: {what}\n{}", text.0);
            text = changed.wait_timeout(text, left.min(Duration::from_secs(1))).expect("nobody panics here").0;
        }
    }

    /// Waits until the other side has closed, so that nothing is missed; `false` if it does not.
    fn ended(&self) -> bool {
        let (text, changed) = &*self.0;
        let text = text.lock().expect("nobody panics here");
        changed.wait_timeout_while(text, SOON, |text| !text.1).expect("nobody panics here").0.1
    }

    fn text(&self) -> String {
        self.0.0.lock().expect("nobody panics here").0.clone()
    }
}
