//! Child processes that cannot outlive us, whatever way we end.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};

/// A process that ends when this value is dropped or when our own process ends, be it by SIGKILL.
///
/// It runs below `python/lease.py`, whose standard input is a socket that we hold: the kernel closes it for us.
pub(crate) struct Leased {
    child: Child,
    /// None once the lease was given back.
    socket: Option<UnixStream>,
}

/// What may be said to a leased process.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Word {
    /// End in good order; the directory stays.
    Stop,
    /// The same, however long it takes.
    Ask,
    /// End at once.
    Kill,
    /// Stand still, with all connections open.
    Pause,
    /// Go on.
    Resume,
}

/// Whom a leased process speaks to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Network {
    /// A package index, by the proxy that the environment names.
    Index,
    /// This machine: a proxy of the environment would only be in the way.
    Loopback,
}

/// Where a leased process writes.
pub(crate) struct Output {
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
}

impl Leased {
    /// Starts a command; `remove` is a directory that goes away with it unless it is told to stop.
    pub(crate) fn spawn(
        python: &Path,
        remove: Option<&Path>,
        command: &[&OsStr],
        network: Network,
        output: Output,
    ) -> Result<Leased> {
        let mut lease = Command::new(python);
        lease.arg("-I").arg(script("lease.py"));
        if let Some(directory) = remove {
            lease.arg("--remove").arg(directory);
        }
        lease.arg("--").args(command);
        // Synapse asks git which commit it is, and below a clone of ours it would be told ours.
        lease.env("GIT_DIR", "/dev/null");
        if let Network::Loopback = network {
            for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
                lease.env_remove(name).env_remove(name.to_uppercase());
            }
        }
        // A group of its own: Ctrl-C in a terminal is ours to handle, and the lease hears of it by our end.
        let (ours, theirs) = UnixStream::pair().context(|| "make a pair of sockets".into())?;
        lease.process_group(0).stdin(OwnedFd::from(theirs)).stdout(output.stdout).stderr(output.stderr);
        let child = lease.spawn().context(|| format!("start {}", python.display()))?;
        Ok(Leased { child, socket: Some(ours) })
    }

    /// The number of the command's process, which is a child of the lease.
    pub(crate) fn pid(&self) -> Result<u32> {
        let lease = self.child.id();
        let path = format!("/proc/{lease}/task/{lease}/children");
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let children = std::fs::read_to_string(&path).context(|| format!("read {path}"))?;
            if let Some(pid) = children.split_whitespace().next() {
                return pid.parse().context(|| format!("{path} holds {children:?}"));
            }
            if Instant::now() > deadline {
                return Err(Error::new("the lease has started no process"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    pub(crate) fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Says a word; a pause has begun when this returns.
    pub(crate) fn tell(&mut self, word: Word) -> Result<()> {
        let line: &[u8] = match word {
            Word::Stop => b"stop\n",
            Word::Ask => b"ask\n",
            Word::Kill => b"kill\n",
            Word::Pause => b"pause\n",
            Word::Resume => b"resume\n",
        };
        let Some(socket) = &mut self.socket else { return Err(Error::new("the process has ended")) };
        let told = socket.write_all(line).and_then(|()| match word {
            Word::Pause => socket.read_exact(&mut [0; b"paused\n".len()]),
            Word::Stop | Word::Ask | Word::Kill | Word::Resume => Ok(()),
        });
        told.context(|| format!("tell a process to {word:?}"))
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context(|| "look after a process".into())
    }

    /// Waits for its end, at most so long.
    pub(crate) fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(Error::new(format!("the process has not ended within {within:?}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        drop(self.socket.take());
        let _ = self.child.wait();
    }
}

/// The path of a script in `python/`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(name)
}
