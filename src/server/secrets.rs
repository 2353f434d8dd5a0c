//! The secrets that doors of the way out want to be shown: read at start, and again while they serve.

use std::path::{Path, PathBuf};

use crate::config::gateway::Listener;
use crate::config::secret::Secret;
use crate::problem::{Problem, Problems};

/// What each door wants, and where it was read.
#[derive(Default)]
pub(super) struct Secrets(Vec<Wanted>);

struct Wanted {
    listener: Listener,
    file: PathBuf,
    read: fn(&Path) -> Result<Secret, Problem>,
    secret: Secret,
}

impl Secrets {
    /// Reads those of all doors.
    ///
    /// # Errors
    /// All that is wrong with any of them.
    pub(super) fn read(listeners: &[Listener]) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let mut wanted = Vec::new();
        for listener in listeners {
            let credentials = listener.proxy.as_ref().and_then(|door| door.credentials_file.clone());
            let (file, read): (_, fn(&Path) -> _) = match (&listener.secret_file, credentials) {
                (Some(file), _) => (file.clone(), Secret::read),
                (None, Some(file)) => (file, Secret::read_credentials),
                (None, None) => continue,
            };
            match read(&file) {
                Ok(secret) => wanted.push(Wanted { listener: listener.clone(), file, read, secret }),
                Err(problem) => problems.push(problem),
            }
        }
        problems.or(Self(wanted))
    }

    /// What a door wants, if it wants anything.
    pub(super) fn of(&self, listener: &Listener) -> Option<Secret> {
        self.0.iter().find(|wanted| wanted.listener == *listener).map(|wanted| wanted.secret.clone())
    }

    /// The files they were read from.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.0.iter().map(|wanted| wanted.file.clone())
    }

    /// Reads all of them again, each for itself: a bad file keeps what its door wanted before. Gives how many doors want another.
    ///
    /// # Errors
    /// All that is wrong with any of them.
    pub(super) fn reload(&self) -> Result<usize, Problems> {
        let mut problems = Problems::default();
        let mut new = 0;
        for wanted in &self.0 {
            match (wanted.read)(&wanted.file) {
                Ok(secret) if wanted.secret.replace(&secret) => {
                    new += 1;
                    tracing::info!(listener = %wanted.listener.name, "this door wants a new secret");
                }
                Ok(_same) => {}
                Err(problem) => problems.push(problem),
            }
        }
        problems.or(new)
    }
}
