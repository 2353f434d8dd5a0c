//! A foreign Matrix server: it has a name, a key and a certificate, and sends signed requests.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::certificate::Authority;
use crate::error::{Context, Error, Result};
use crate::http::{Request, Response};
use crate::lease::script;
use crate::socket::Address;
use crate::venv;

/// A running peer, `localhost:PORT`, which shows its keys over TLS; it ends when dropped or when our process ends.
pub struct Peer {
    server_name: String,
    addr: SocketAddr,
    key_id: String,
    ca_pem: String,
    ca_path: PathBuf,
    process: Mutex<Process>,
    _directory: TempDir,
}

/// The Python side: it answers one JSON line with one, and ends when its standard input closes.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts a peer; Synapse can fetch its keys when started with [`Peer::ca_path`] as `federation_ca`.
    pub fn start() -> Result<Peer> {
        let directory = tempfile::Builder::new().prefix("mantlet-peer-").tempdir();
        let directory = directory.context(|| "make a directory".into())?;
        let authority = Authority::new()?;
        let ca_path = authority.write(directory.path())?;
        let (certificate, key) = authority.issue(&["localhost", "127.0.0.1"])?.write(directory.path())?;
        let mut process = Process::start(&certificate, &key)?;
        let ready = process.read()?;
        let port = ready["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        let port = port.ok_or_else(|| Error::new(format!("the peer did not start: {ready}")))?;
        Ok(Peer {
            server_name: format!("localhost:{port}"),
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            key_id: ready["key_id"].as_str().unwrap_or_default().to_owned(),
            ca_pem: authority.pem(),
            ca_path,
            process: Mutex::new(process),
            _directory: directory,
        })
    }

    /// `localhost:PORT`, the origin of its requests.
    pub fn server_name(&self) -> &str {
        &self.server_name
    }

    /// Where it shows its keys, over TLS.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `ed25519:…`
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The authority of its certificate, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The same as a file.
    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// Sends a signed request to the server called `destination`, which is reached at `to`.
    pub fn request(
        &self,
        to: impl Into<Address>,
        method: &str,
        uri: &str,
        content: Option<&Value>,
        destination: &str,
    ) -> Result<Response> {
        self.signed(method, uri, content, destination)?.try_send(to)
    }

    /// Builds a signed request. The URI is signed and sent as these bytes.
    pub fn signed(&self, method: &str, uri: &str, content: Option<&Value>, destination: &str) -> Result<Request> {
        let authorization = self.sign(method, uri, content, destination)?;
        let request = Request::new(method, uri).header("Host", destination).header("Authorization", authorization);
        Ok(match content {
            Some(content) => request.json(content),
            None => request,
        })
    }

    /// The value of the `Authorization: X-Matrix` field for such a request.
    pub fn sign(&self, method: &str, uri: &str, content: Option<&Value>, destination: &str) -> Result<String> {
        let mut asked = json!({"method": method, "uri": uri, "destination": destination});
        if let Some(content) = content {
            asked["content"] = content.clone();
        }
        let mut process = self.process.lock().map_err(|_| Error::new("a thread panicked while it used the peer"))?;
        let answer = process.ask(&asked)?;
        let header = answer["authorization"].as_str().map(str::to_owned);
        header.ok_or_else(|| Error::new(format!("the peer did not sign: {answer}")))
    }
}

impl Process {
    fn start(certificate: &Path, key: &Path) -> Result<Process> {
        let python = venv::synapse_python()?;
        let mut command = Command::new(&python);
        // A group of its own, so that Ctrl-C in a terminal reaches it only by our end.
        command.arg(script("peer.py")).arg(certificate).arg(key).process_group(0);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context(|| format!("start {}", python.display()))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stdout = stdout.ok_or_else(|| Error::new("the peer has no output"))?;
        Ok(Process { child, stdin, stdout: BufReader::new(stdout) })
    }

    fn ask(&mut self, asked: &Value) -> Result<Value> {
        let Some(stdin) = &mut self.stdin else { return Err(Error::new("the peer has ended")) };
        writeln!(stdin, "{asked}").context(|| "write to the peer".into())?;
        self.read()
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).context(|| "read from the peer".into())?;
        serde_json::from_str(&line).context(|| format!("the peer said no JSON, but {line:?} (see stderr)"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}
