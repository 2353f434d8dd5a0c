//! The real Synapse on loopback, for as long as the value lives.

mod config;
mod place;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use aws_lc_rs::{hmac, rand};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::error::{Context, Error, Result};
use crate::http::{Request, Response};
use crate::lease::{Leased, Network, Output, Word, script};
use crate::socket::Address;
use crate::tool;
use crate::venv;

use config::Instance;
pub use place::{Packets, Place, Watch};

/// What may differ from one Synapse to another. By default it protects nothing, so that only the gateway does.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name it signs with. Default: `hs.localtest`.
    pub server_name: String,
    /// Whether anyone may register, without any further step. Default: true.
    pub enable_registration: bool,
    /// Whether it also listens on a unix socket. Default: true.
    pub unix_socket: bool,
    /// Whether it shows its metrics to whoever reaches it, where clients do. Default: false.
    pub metrics: bool,
    /// The authority of the servers it federates with, as in [`crate::peer::Peer::ca_path`].
    pub federation_ca: Option<PathBuf>,
    /// The roots of everybody else whom it asks, in place of the system's. Default: the system's.
    pub roots: Option<PathBuf>,
    /// A directory in which its Python finds modules that the configuration names. Default: none.
    pub modules: Option<PathBuf>,
    /// Where clients are told to go. Default: itself. Most clients follow it, so tests through a gateway name that.
    pub public_baseurl: Option<String>,
    /// Where it runs. Default: among all others.
    pub place: Place,
    /// More configuration; a key here replaces ours as a whole.
    pub extra_yaml: String,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            server_name: "hs.localtest".into(),
            enable_registration: true,
            unix_socket: true,
            metrics: false,
            federation_ca: None,
            roots: None,
            modules: None,
            public_baseurl: None,
            place: Place::Here,
            extra_yaml: String::new(),
        }
    }
}

/// Who is logged in where.
#[derive(Debug, Clone)]
pub struct Session {
    /// `@alice:hs.localtest`
    pub user_id: String,
    /// The access token.
    pub access_token: String,
    /// The device.
    pub device_id: String,
}

/// A running Synapse; dropping it ends it and removes all its data, and so does the end of our process.
pub struct Synapse {
    options: Options,
    port: u16,
    key_id: String,
    secret: String,
    /// None while it is stopped.
    process: Option<Leased>,
    admin: OnceLock<Session>,
    directory: TempDir,
}

impl Synapse {
    /// Installs Synapse if need be, starts one (about 5 s) and returns when it answers under its own name and key.
    pub fn start(options: Options) -> Result<Synapse> {
        let directory = tempfile::Builder::new().prefix("mantlet-synapse-").tempdir();
        let directory = directory.context(|| "make a data directory".into())?;
        let (key_id, secret) = (format!("a_{}", random_text(6)?), random_text(32)?);
        let seed = random_text(43)?; // what 32 bytes are in unpadded base64
        write(&directory.path().join("signing.key"), &format!("ed25519 {key_id} {seed}\n"))?;
        write(&directory.path().join("extra.yaml"), &options.extra_yaml)?;
        let mut synapse =
            Synapse { options, port: 0, key_id, secret, process: None, admin: OnceLock::new(), directory };
        for attempt in 1.. {
            synapse.port = free_port()?;
            match synapse.start_again() {
                Ok(()) => break,
                // Another process was quicker with this port.
                Err(_) if attempt < 5 && synapse.log_tail().contains("already in use") => (),
                Err(e) => return Err(e),
            }
        }
        Ok(synapse)
    }

    /// `http://127.0.0.1:PORT`
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Where it listens; stays the same over a restart.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// How it is reached: by its socket alone, if it is isolated.
    pub fn address(&self) -> Address {
        match self.socket_path().filter(|_| self.options.place != Place::Here) {
            Some(socket) => Address::from(socket.as_path()),
            None => self.addr().into(),
        }
    }

    /// Whom one that is not here tried to reach, a line each: `socket.connect /path`.
    pub fn attempts(&self) -> Vec<String> {
        let log = fs::read_to_string(self.directory.path().join("attempts")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// All packets in a network that is watched, from before the last start until now. An error if one was missed.
    pub fn packets(&self) -> Result<Vec<Packets>> {
        Packets::told_at(&self.watch_path())
    }

    fn watch_path(&self) -> PathBuf {
        self.directory.path().join("watch.sock")
    }

    /// Its unix socket, if it has one.
    pub fn socket_path(&self) -> Option<PathBuf> {
        (self.options.unix_socket || self.options.place != Place::Here)
            .then(|| self.directory.path().join("synapse.sock"))
    }

    /// What it was told, in the order in which it reads it.
    pub fn files(&self) -> [PathBuf; 2] {
        ["homeserver.yaml", "extra.yaml"].map(|name| self.directory.path().join(name))
    }

    /// Runs a statement on its database, and gives the first column of what comes of it.
    pub fn ask_database(&self, statement: &str) -> Result<Vec<String>> {
        let file = self.directory.path().join("homeserver.db");
        let program = "import sqlite3, sys\nwith sqlite3.connect(sys.argv[1], timeout=30) as db:\n  \
                       for row in db.execute(sys.argv[2]):\n    print(row[0])";
        let mut command = Command::new(venv::synapse_python()?);
        let output = command.args(["-c", program]).arg(file).arg(statement).output();
        let output = output.context(|| "run Python".into())?;
        if !output.status.success() {
            return Err(Error::new(format!("{statement}: {}", String::from_utf8_lossy(&output.stderr))));
        }
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    /// The name it signs with.
    pub fn server_name(&self) -> &str {
        &self.options.server_name
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Its whole log, which names every request it saw.
    pub fn log_path(&self) -> PathBuf {
        self.directory.path().join("synapse.log")
    }

    /// Ends it in good order (about 1 s); its data stay.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Word::Stop)
    }

    /// Ends it as a crash would; its data stay.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Word::Kill)
    }

    /// Starts it again on the same port with the same data; returns when it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = None;
        let socket = self.socket_path();
        let (directory, port, secret) = (self.directory.path(), self.port, self.secret.as_str());
        Instance { directory, port, socket: socket.as_deref(), secret }.configure(&self.options)?;
        let log = OpenOptions::new().create(true).append(true).open(self.log_path());
        let log: File = log.context(|| format!("open {}", self.log_path().display()))?;
        let same = log.try_clone().context(|| "clone the log".into())?;
        let python = venv::synapse_python()?;
        let file = |name: &str| self.directory.path().join(name).into_os_string();
        let (main, extra) = (file("homeserver.yaml"), file("extra.yaml"));
        let (isolated, watch, attempts) = (script("isolated.py"), script("watch.py"), file("attempts"));
        let variable = |name: &str, path: Option<&PathBuf>| {
            path.map(|path| [OsStr::new(name), OsStr::new("="), path.as_os_str()].into_iter().collect::<OsString>())
        };
        let roots = variable("SSL_CERT_FILE", self.options.roots.as_ref());
        let modules = variable("PYTHONPATH", self.options.modules.as_ref());
        let settings;
        let mut command: Vec<&OsStr> = vec![OsStr::new("env")];
        command.extend(roots.as_deref().into_iter().chain(modules.as_deref()));
        match &self.options.place {
            Place::Here => command.extend([python.as_os_str(), "-m".as_ref()]),
            Place::Alone => {
                // Where somebody said that there are no namespaces, Python alone stands in the way.
                if tool::namespaces()? {
                    command.extend(["unshare", "--map-root-user", "--net", "--"].map(OsStr::new));
                }
                command.extend([python.as_os_str(), isolated.as_os_str(), "refuse".as_ref(), attempts.as_os_str()]);
            }
            Place::Watched(Watch { dns, door }) => {
                if !tool::namespaces()? {
                    return Err(Error::new("nothing can be watched without namespaces"));
                }
                let dns = dns.map(|dns| (dns.ip().to_string(), dns.port()));
                settings = json!({"control": self.watch_path(), "dns": dns, "door": door}).to_string();
                command.extend([python.as_os_str(), "-I".as_ref(), watch.as_os_str(), settings.as_ref()]);
                command.extend([python.as_os_str(), isolated.as_os_str(), "allow".as_ref(), attempts.as_os_str()]);
            }
        }
        command.push("synapse.app.homeserver".as_ref());
        command.extend(["-c".as_ref(), main.as_os_str()]);
        if !self.options.extra_yaml.trim().is_empty() {
            command.extend(["-c".as_ref(), extra.as_os_str()]);
        }
        let output = Output { stdout: log.into(), stderr: Stdio::from(same) };
        self.process = Some(Leased::spawn(&python, Some(self.directory.path()), &command, Network::Loopback, output)?);
        self.wait_ready()
    }

    /// Stops it and starts it again.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Makes it stand still: it accepts connections and says nothing.
    pub fn pause(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), |process| process.tell(Word::Pause))
    }

    /// Lets it go on after [`Synapse::pause`].
    pub fn resume(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), |process| process.tell(Word::Resume))
    }

    /// Makes a user by the shared secret, whether registration is open or not.
    pub fn register(&self, user: &str, password: &str, role: Role) -> Result<Session> {
        let path = "/_synapse/admin/v1/register";
        let nonce = ok(Request::new("GET", path).try_send(self.address())?, "ask for a nonce")?;
        let nonce = text(&nonce, "nonce")?;
        let (admin, word) = match role {
            Role::Admin => (true, "admin"),
            Role::User => (false, "notadmin"),
        };
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, self.secret.as_bytes());
        let mac = hmac::sign(&key, [&nonce, user, password, word].join("\0").as_bytes());
        let mac: String = mac.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let body = json!({"nonce": nonce, "username": user, "password": password, "admin": admin, "mac": mac});
        session(&self.call(None, "POST", path, Some(&body))?)
    }

    /// Logs a user in by password, as a new device.
    pub fn login(&self, user: &str, password: &str) -> Result<Session> {
        let identifier = json!({"type": "m.id.user", "user": user});
        let body = json!({"type": "m.login.password", "identifier": identifier, "password": password});
        session(&self.call(None, "POST", "/_matrix/client/v3/login", Some(&body))?)
    }

    /// Makes a guest.
    pub fn register_guest(&self) -> Result<Session> {
        session(&self.call(None, "POST", "/_matrix/client/v3/register?kind=guest", Some(&json!({})))?)
    }

    /// Ends a session.
    pub fn logout(&self, session: &Session) -> Result<()> {
        self.call(Some(session), "POST", "/_matrix/client/v3/logout", Some(&json!({}))).map(drop)
    }

    /// Makes a room under `#alias:server` and waits until it stands in the public directory; returns its id.
    pub fn create_public_room(&self, session: &Session, name: &str, alias: &str) -> Result<String> {
        let body = json!({"preset": "public_chat", "visibility": "public", "name": name, "room_alias_name": alias});
        let room = text(&self.call(Some(session), "POST", "/_matrix/client/v3/createRoom", Some(&body))?, "room_id")?;
        // Synapse enters it behind its answer, and whoever asks while another asks is told what that one is told.
        let deadline = Instant::now() + LISTED;
        loop {
            let listed = self.call(Some(session), "GET", "/_matrix/client/v3/publicRooms", None)?;
            if listed["chunk"].as_array().is_some_and(|rooms| rooms.iter().any(|each| each["room_id"] == *room)) {
                return Ok(room);
            }
            if Instant::now() > deadline {
                return Err(Error::new(format!("{name} is not in the public directory within {LISTED:?}: {listed}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sets a user's own display name.
    pub fn set_display_name(&self, session: &Session, name: &str) -> Result<()> {
        let path = format!("/_matrix/client/v3/profile/{}/displayname", session.user_id);
        self.call(Some(session), "PUT", &path, Some(&json!({"displayname": name}))).map(drop)
    }

    /// Locks a user's account: its tokens get 401 `M_USER_LOCKED`.
    pub fn lock(&self, user_id: &str) -> Result<()> {
        self.set_user(user_id, &json!({"locked": true}))
    }

    /// Undoes [`Synapse::lock`].
    pub fn unlock(&self, user_id: &str) -> Result<()> {
        self.set_user(user_id, &json!({"locked": false}))
    }

    /// Sends a request with or without a session's token and returns the JSON of a 200; any other answer is an error.
    pub fn call(&self, session: Option<&Session>, method: &str, target: &str, body: Option<&Value>) -> Result<Value> {
        let mut request = Request::new(method, target).timeout(Duration::from_secs(30));
        if let Some(session) = session {
            request = request.bearer(&session.access_token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        ok(request.try_send(self.address())?, &format!("{method} {target}"))
    }

    /// Runs a statement on its database, with these parameters, and returns the rows: what no request can bring about, or show.
    pub fn sql(&self, statement: &str, parameters: &Value) -> Result<Value> {
        let database = self.directory.path().join("homeserver.db");
        let mut command = Command::new(venv::python()?);
        command.args(["-c", SQL]).arg(&database).args([statement, &parameters.to_string()]).stdin(Stdio::null());
        let output = command.output().context(|| format!("run {statement}"))?;
        if !output.status.success() {
            return Err(Error::new(format!("{statement}: {}", String::from_utf8_lossy(&output.stderr))));
        }
        serde_json::from_slice(&output.stdout).context(|| format!("read the rows of {statement}"))
    }

    fn set_user(&self, user_id: &str, change: &Value) -> Result<()> {
        let path = format!("/_synapse/admin/v2/users/{user_id}");
        self.call(Some(self.admin()?), "PUT", &path, Some(change)).map(drop)
    }

    /// A server administrator of our own, made when first needed.
    fn admin(&self) -> Result<&Session> {
        if self.admin.get().is_none() {
            let name = format!("testkit-{}", random_text(8)?.to_lowercase());
            let session = self.register(&name, &random_text(16)?, Role::Admin)?;
            return Ok(self.admin.get_or_init(|| session));
        }
        self.admin.get().ok_or_else(|| Error::new("no administrator"))
    }

    fn end(&mut self, word: Word) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.tell(word)?;
        process.wait(Duration::from_secs(15)).map(drop)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(process) = &mut self.process
                && let Some(status) = process.ended()?
            {
                self.process = None;
                let tail = self.log_tail();
                return Err(Error::new(format!("Synapse ended while starting ({status}); its log ends with:\n{tail}")));
            }
            if self.is_ready() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let tail = self.log_tail();
                return Err(Error::new(format!("Synapse is not ready after {START:?}; its log ends with:\n{tail}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether it answers, and whether it is ours: another server may have taken the port.
    fn is_ready(&self) -> bool {
        let get = |path| Request::new("GET", path).timeout(Duration::from_secs(2)).try_send(self.address()).ok();
        let Some(200) = get("/health").map(|response| response.status) else { return false };
        let keys = get("/_matrix/key/v2/server").and_then(|response| response.try_json().ok()).unwrap_or_default();
        keys["server_name"] == self.options.server_name
            && keys["verify_keys"].get(format!("ed25519:{}", self.key_id)).is_some()
    }
}

/// What a user made by shared secret may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything, on the admin API too.
    Admin,
    /// What users do.
    User,
}

/// A port that is free now, below the range from which the kernel takes ports for outgoing connections.
pub fn free_port() -> Result<u16> {
    for _ in 0..200 {
        let random = u16::from_be_bytes(random()?);
        let port = 10_000 + random % (32_768 - 10_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::new("no port between 10000 and 32767 is free on 127.0.0.1"))
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).context(|| "get random bytes".into())?;
    Ok(bytes)
}

/// Random letters and digits.
fn random_text(length: usize) -> Result<String> {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let bytes: [u8; 64] = random()?;
    Ok(bytes.iter().take(length).map(|&byte| char::from(LETTERS[usize::from(byte) % LETTERS.len()])).collect())
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).context(|| format!("write {}", path.display()))
}

fn ok(response: Response, what: &str) -> Result<Value> {
    if response.status != 200 {
        return Err(Error::new(format!("{what}: {} {}", response.status, response.text())));
    }
    response.try_json()
}

fn session(answer: &Value) -> Result<Session> {
    Ok(Session {
        user_id: text(answer, "user_id")?,
        access_token: text(answer, "access_token")?,
        device_id: text(answer, "device_id")?,
    })
}

fn text(answer: &Value, key: &str) -> Result<String> {
    let text = answer[key].as_str().map(str::to_owned);
    text.ok_or_else(|| Error::new(format!("the answer has no {key}: {answer}")))
}

/// Synapse has the database open: what it writes is waited for.
const SQL: &str = "import json, sqlite3, sys
with sqlite3.connect(sys.argv[1], timeout=30) as database:
    print(json.dumps(database.execute(sys.argv[2], json.loads(sys.argv[3])).fetchall()))";

/// How long a Synapse may take to start, on a busy machine.
const START: Duration = Duration::from_secs(90);

/// How long a room may take into the directory.
const LISTED: Duration = Duration::from_secs(20);
