//! Any program of this machine, for as long as somebody holds it.

use std::ffi::OsStr;
use std::process::{ChildStdout, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::lease::{Leased, Network, Output, Word};
use crate::venv;

/// A running program; it ends when this is dropped or when our process ends.
pub struct Program {
    process: Leased,
}

impl Program {
    /// Starts a command on loopback.
    pub fn start<S: AsRef<OsStr>>(command: &[S], stdout: Stdio, stderr: Stdio) -> Result<Program> {
        let words: Vec<&OsStr> = command.iter().map(AsRef::as_ref).collect();
        let process = Leased::spawn(&venv::python()?, None, &words, Network::Loopback, Output { stdout, stderr })?;
        Ok(Program { process })
    }

    /// The number of its process.
    pub fn pid(&self) -> Result<u32> {
        self.process.pid()
    }

    /// Its standard output, once, if that is a pipe.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.process.stdout()
    }

    /// Looks until the closure finds something; an error once the program has ended, or when it takes too long.
    pub fn wait_for<T>(&mut self, what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + within;
        loop {
            let ended = self.process.ended()?;
            if let Some(found) = look() {
                return Ok(found);
            }
            if let Some(status) = ended {
                return Err(Error::new(format!("the program ended ({status}) before this: {what}")));
            }
            if Instant::now() > deadline {
                return Err(Error::new(format!("not within {within:?}: {what}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end, and waits so long at most.
    pub fn end(mut self, within: Duration) -> Result<ExitStatus> {
        self.process.tell(Word::Ask)?;
        self.process.wait(within)
    }
}
