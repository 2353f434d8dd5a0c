//! The release gateway with one worker, started below a tool that counts, and requests for it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::Connection;
use mantlet_testkit::program::Program;
use mantlet_testkit::{Error, Result, sample};
use serde_json::Value;
use tempfile::TempDir;

/// What is asked, under which policy, and which fields the homeserver must not see then.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub policy: &'static str,
    pub target: &'static str,
    pub removed: &'static [&'static str],
}

/// What becomes of the access record while requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// It goes to a file, as it comes.
    File,
    /// It waits until the last request is answered.
    Held,
}

/// A gateway that serves below a tool.
pub struct Gateway {
    // Dropped in this order: the process has its files until its end.
    program: Program,
    pub directory: TempDir,
    origin: Backend,
    connection: Connection,
    records: Record,
    sent: usize,
}

impl Gateway {
    /// Starts `tool BINARY run …`, and sends the first request, whose way it looks at.
    pub fn start(tool: &[String], binary: &Path, setup: &Setup, records: Record) -> Result<Gateway> {
        let origin = Backend::start(|request| Answer::Bytes(sample::answer(&request.target)))?;
        let directory =
            tempfile::Builder::new().prefix("mantlet-icount-").tempdir().map_err(cannot("make a directory"))?;
        let path = |name: &str| directory.path().join(name);
        fs::write(path("policy.toml"), setup.policy).map_err(cannot("write the policy"))?;
        fs::write(path("mantlet.toml"), gateway_file(origin.addr(), directory.path()))
            .map_err(cannot("write the gateway file"))?;

        let tool = tool.iter().map(|word| word.replace("{}", &directory.path().display().to_string()));
        // What the surroundings say to a gateway is not for this one.
        let mut command: Vec<String> = ["env", "-u", "RUST_LOG", "-u", "MANTLET_CONFIG"].map(str::to_owned).into();
        command.extend(tool);
        command.extend([binary.display().to_string(), "run".into(), "--log-format=json".into(), "--config".into()]);
        command.push(path("mantlet.toml").display().to_string());
        let stdout = match records {
            Record::File => File::create(path("records")).map_err(cannot("make a file"))?.into(),
            Record::Held => Stdio::piped(),
        };
        let log = File::create(path("log")).map_err(cannot("make a file"))?;
        let mut program = Program::start(&command, stdout, log.into())?;
        let addr = program.wait_for("it listens", PATIENCE, || listens_at(&path("log")));
        let addr = addr.map_err(|error| {
            let log = fs::read_to_string(path("log")).unwrap_or_default();
            Error::caused(format!("the gateway did not start; its log:\n{log}"), error)
        })?;
        let mut connection = Connection::open(addr)?;
        connection.set_timeout(PATIENCE);
        let mut gateway = Gateway { program, directory, origin, connection, records, sent: 0 };
        gateway.send(setup.target, 1)?;
        gateway.look_at_the_wire(setup)?;
        Ok(gateway)
    }

    /// The number of the tool's process, which is the gateway's under valgrind.
    pub fn pid(&self) -> Result<u32> {
        self.program.pid()
    }

    /// Sends so many requests, each after the answer to the one before.
    pub fn send(&mut self, target: &str, count: usize) -> Result<()> {
        let request = sample::request(target);
        for _ in 0..count {
            let answer = self.connection.send(&request)?;
            if answer.status != 200 || answer.body.len() != sample::body().len() {
                return Err(Error::new(format!("{target} was answered with {}: {}", answer.status, answer.text())));
            }
        }
        self.sent += count;
        Ok(())
    }

    /// Waits for the record of each request, lets the gateway end in good order, and returns the tool's directory.
    pub fn end(mut self) -> Result<TempDir> {
        let (sent, file) = (self.sent, self.directory.path().join("records"));
        match self.records {
            Record::Held => {
                let stdout = self.program.stdout().ok_or_else(|| Error::new("there is no pipe"))?;
                let written = BufReader::new(stdout).lines().take(sent).filter(Result::is_ok).count();
                if written < sent {
                    return Err(Error::new(format!("{written} of {sent} access records were written")));
                }
            }
            Record::File => {
                let all = || (lines(&file) >= sent).then_some(());
                self.program.wait_for("all access records are written", PATIENCE, all)?;
            }
        }
        drop(self.connection);
        let status = self.program.end(PATIENCE)?;
        match status.success() {
            true => Ok(self.directory),
            false => Err(Error::new(format!("the gateway ended badly ({status})"))),
        }
    }

    /// A figure counts only if the work was done.
    fn look_at_the_wire(&self, setup: &Setup) -> Result<()> {
        let seen = self.origin.last().ok_or_else(|| Error::new("no request reached the homeserver"))?;
        let fields = || String::from_utf8_lossy(&seen.head).into_owned();
        if seen.header("x-forwarded-for") != Some("127.0.0.1") || seen.header("x-forwarded-proto") != Some("http") {
            return Err(Error::new(format!("the homeserver is not told who asks: {}", fields())));
        }
        let (wanted, left): (Vec<_>, Vec<_>) = sample::FIELDS.iter().partition(|(name, _)| seen.header(name).is_some());
        let is_removed = |name: &str| left.iter().any(|(left, _)| left.eq_ignore_ascii_case(name));
        // `Connection` goes with every proxy.
        if setup.removed.iter().any(|name| !is_removed(name)) || (setup.removed.is_empty() && left.len() > 1) {
            return Err(Error::new(format!("{:?} should be removed, but this arrived: {}", setup.removed, fields())));
        }
        match wanted.iter().any(|(name, _)| *name == "Accept") {
            true => Ok(()),
            false => Err(Error::new(format!("Accept should arrive: {}", fields()))),
        }
    }
}

fn gateway_file(origin: SocketAddr, directory: &Path) -> String {
    format!(
        "[[listener]]\nname = \"clients\"\ndoor = \"ingress\"\nbind = \"127.0.0.1:0\"\n\
         [upstream.synapse]\nservers = [\"http://{origin}\"]\n[policy]\nfile = \"policy.toml\"\n\
         [admin]\nbind = \"unix:{}/admin.sock\"\n[log]\naccess = \"json\"\n[workers]\ncount = 1\n",
        directory.display()
    )
}

/// The address in the log, once it is there.
fn listens_at(log: &Path) -> Option<SocketAddr> {
    let log = fs::read_to_string(log).ok()?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = lines.into_iter().find(|line| line["message"] == "listening")?;
    line["address"].as_str()?.parse().ok()
}

fn lines(file: &PathBuf) -> usize {
    fs::read(file).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
}

/// An error of the file system with what was wanted.
pub fn cannot(what: &str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::caused(what, error)
}

/// Under valgrind, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
