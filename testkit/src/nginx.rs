//! nginx before a server of ours, as operators have it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::error::{Context, Error, Result};
use crate::lease::{Leased, Network, Output};
use crate::synapse::free_port;
use crate::tool::Tool;
use crate::venv;

/// A running nginx with one plain server; it ends when dropped or when our process ends.
pub struct Nginx {
    addr: SocketAddr,
    // Dropped in this order: the process has its files until its end.
    process: Leased,
    directory: TempDir,
}

impl Nginx {
    /// Starts one whose `server` block has this inside, and returns when it accepts connections.
    pub fn start(inside: &str) -> Result<Nginx> {
        let mut attempts = 0..5;
        loop {
            match (Nginx::start_at(free_port()?, inside), attempts.next()) {
                // Another process was quicker with this port.
                (Err(error), Some(_)) if error.to_string().contains("Address already in use") => (),
                (result, _) => return result,
            }
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn start_at(port: u16, inside: &str) -> Result<Nginx> {
        let program = Tool::Nginx.find()?.remove(0);
        let directory = tempfile::Builder::new().prefix("mantlet-nginx-").tempdir();
        let directory = directory.context(|| "make a directory".into())?;
        let (config, log) = (directory.path().join("nginx.conf"), directory.path().join("error.log"));
        fs::write(&config, configuration(directory.path(), port, inside))
            .context(|| format!("write {}", config.display()))?;
        let said = fs::File::create(&log).context(|| format!("make {}", log.display()))?;
        let command = [program.as_os_str(), "-e".as_ref(), log.as_os_str(), "-c".as_ref(), config.as_os_str()];
        let output = Output { stdout: Stdio::null(), stderr: said.into() };
        let process = Leased::spawn(&venv::python()?, Some(directory.path()), &command, Network::Loopback, output)?;
        let mut nginx = Nginx { addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), process, directory };
        nginx.wait_ready()?;
        Ok(nginx)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(status) = self.process.ended()? {
                let log = fs::read_to_string(self.directory.path().join("error.log")).unwrap_or_default();
                return Err(Error::new(format!("nginx ended while starting ({status}); its log:\n{log}")));
            }
            if TcpStream::connect_timeout(&self.addr, Duration::from_secs(1)).is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::new(format!("nginx accepts no connection after {START:?}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// One process, whose user is ours, with everything that it writes below one directory.
fn configuration(directory: &std::path::Path, port: u16, inside: &str) -> String {
    let home = directory.display();
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String = kinds.iter().map(|kind| format!("    {kind}_temp_path {home}/{kind};\n")).collect();
    format!(
        "daemon off;\nmaster_process off;\npid {home}/nginx.pid;\nevents {{}}\nhttp {{\n    access_log off;\n{temporary}\
         server {{\n    listen 127.0.0.1:{port};\n{inside}\n}}\n}}\n"
    )
}

/// How long it may take to start, on a busy machine.
const START: Duration = Duration::from_secs(20);
