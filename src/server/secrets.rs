//! The secrets of the way out: those that doors want to be shown, that the next hop is shown, and the key that is signed with.
//! Read at start, and again while they are in use.

use std::path::{Path, PathBuf};

use crate::config::gateway::{Gateway, Listener};
use crate::config::notary_key::NotaryKeyFile;
use crate::config::secret::Secret;
use crate::origin::NextHop;
use crate::problem::{Problem, Problems};

/// All secrets, and where they were read.
pub(super) struct Secrets {
    doors: Vec<Wanted>,
    next_hop: Option<NextHop>,
    notary_key: Option<NotaryKeyFile>,
}

/// Which of them are others than before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// Doors that want another secret.
    pub doors: usize,
    /// Whether the next hop is shown other credentials.
    pub next_hop: bool,
    /// Whether another key is signed with.
    pub notary_key: bool,
}

/// What a door wants.
struct Wanted {
    listener: Listener,
    file: PathBuf,
    read: fn(&Path) -> Result<Secret, Problem>,
    secret: Secret,
}

impl Secrets {
    /// Reads all that this gateway file names.
    ///
    /// # Errors
    /// All that is wrong with any of them.
    pub(super) fn read(gateway: &Gateway) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let mut doors = Vec::new();
        for listener in &gateway.listeners {
            let credentials = listener.proxy.as_ref().and_then(|door| door.credentials_file.clone());
            let (file, read): (_, fn(&Path) -> _) = match (&listener.secret_file, credentials) {
                (Some(file), _) => (file.clone(), Secret::read),
                (None, Some(file)) => (file, Secret::read_credentials),
                (None, None) => continue,
            };
            match read(&file) {
                Ok(secret) => doors.push(Wanted { listener: listener.clone(), file, read, secret }),
                Err(problem) => problems.push(problem),
            }
        }
        let next_hop = problems.take(gateway.egress.next_hop.as_ref().map(NextHop::read).transpose()).flatten();
        let notary_key = gateway.egress.notary_key.as_deref().map(NotaryKeyFile::read).transpose();
        let notary_key = problems.take(notary_key).flatten();
        problems.or(Self { doors, next_hop, notary_key })
    }

    /// What a door wants, if it wants anything.
    pub(super) fn of(&self, listener: &Listener) -> Option<Secret> {
        self.doors.iter().find(|wanted| wanted.listener == *listener).map(|wanted| wanted.secret.clone())
    }

    /// The proxy through which others are reached, if there is one.
    pub(super) fn next_hop(&self) -> Option<NextHop> {
        self.next_hop.clone()
    }

    /// The key that is signed with, if there is one.
    pub(super) fn notary_key(&self) -> Option<NotaryKeyFile> {
        self.notary_key.clone()
    }

    /// The files they were read from.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        let doors = self.doors.iter().map(|wanted| wanted.file.clone());
        let next_hop = self.next_hop.iter().filter_map(NextHop::file).map(Path::to_path_buf);
        doors.chain(next_hop).chain(self.notary_key.iter().map(|file| file.path().to_path_buf()))
    }

    /// Reads all of them again, each for itself: a bad file keeps what was read from it before.
    ///
    /// # Errors
    /// All that is wrong with any of them.
    pub(super) fn reload(&self) -> Result<Renewed, Problems> {
        let mut problems = Problems::default();
        let mut new = Renewed::default();
        for wanted in &self.doors {
            match (wanted.read)(&wanted.file) {
                Ok(secret) if wanted.secret.replace(&secret) => {
                    new.doors += 1;
                    tracing::info!(listener = %wanted.listener.name, "this door wants a new secret");
                }
                Ok(_same) => {}
                Err(problem) => problems.push(problem),
            }
        }
        if let Some(next_hop) = &self.next_hop {
            new.next_hop = problems.take(next_hop.reload()).unwrap_or_default();
        }
        if let Some(file) = &self.notary_key {
            new.notary_key = problems.take(file.reload()).unwrap_or_default();
        }
        if new.next_hop {
            tracing::info!("the next hop is shown new credentials");
        }
        if new.notary_key {
            tracing::info!("the notary key is new: what is pinned in Synapse's trusted_key_servers has to be, too");
        }
        problems.or(new)
    }
}

impl Renewed {
    /// What a reload says of it, behind what it says of the rest.
    pub(super) fn told(self) -> String {
        let mut told = match self.doors {
            0 => String::new(),
            1 => "; 1 door wants a new secret".to_owned(),
            more => format!("; {more} doors want new secrets"),
        };
        if self.next_hop {
            told += "; the next hop is shown new credentials";
        }
        if self.notary_key {
            told += "; the notary key is new, and has to be pinned anew where it was: mantlet check prints it";
        }
        told
    }
}
