//! A secret that a file holds. What it says is shown nowhere.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::problem::Problem;

/// A secret that whoever comes has to know. Clones are one, also once it is replaced.
#[derive(Clone)]
pub struct Secret(Arc<Kept>);

struct Kept {
    /// Two of these are compared in a time that tells nothing of either.
    hash: ArcSwap<blake3::Hash>,
    is_told: AtomicBool,
}

impl Secret {
    /// A secret; `None` if it could not stand in a header.
    pub fn new(secret: &str) -> Option<Self> {
        let is_good = !secret.is_empty() && secret.bytes().all(|byte| byte.is_ascii_graphic());
        let hash = ArcSwap::from_pointee(blake3::hash(secret.as_bytes()));
        is_good.then(|| Self(Arc::new(Kept { hash, is_told: AtomicBool::new(false) })))
    }

    /// Reads it from a file that nobody else may read; white space around it does not count, as it does not to Synapse.
    ///
    /// # Errors
    /// What is wrong with the file, and never what stands in it.
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let shown = path.display();
        let secret = read_alone(path, Kind::Secret)?;
        Self::new(&secret).ok_or_else(|| {
            Problem::new(format!("the secret in {shown} cannot stand in a header"))
                .help("letters, digits and signs of ASCII, at most 4096 of them, no spaces")
        })
    }

    /// Reads `user:password` from such a file: a secret as it stands behind `Basic ` in a header.
    ///
    /// # Errors
    /// As of [`Secret::read`].
    pub fn read_credentials(path: &Path) -> Result<Self, Problem> {
        let pair = read_pair(path, Kind::Credentials)?;
        Self::new(&pair).ok_or_else(|| no_pair(path, Kind::Credentials))
    }

    /// Whether this is it.
    pub fn is(&self, offered: &[u8]) -> bool {
        **self.0.hash.load() == blake3::hash(offered)
    }

    /// Makes this one, and its clones, another; whether it was not that already.
    pub fn replace(&self, by: &Self) -> bool {
        let new = by.0.hash.load_full();
        let is_new = *self.0.hash.swap(Arc::clone(&new)) != *new;
        if is_new {
            self.0.is_told.store(false, Ordering::Relaxed);
        }
        is_new
    }

    /// Lets something be told once in the life of the secret: that somebody did not know it.
    pub fn tell_once(&self, tell: impl FnOnce()) {
        if !self.0.is_told.swap(true, Ordering::Relaxed) {
            tell();
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// `user:password` as it stands behind `Basic ` in a header: to be shown, where [`Secret`] is to be compared with.
#[derive(Clone, PartialEq, Eq)]
pub struct Basic(Arc<str>);

impl Basic {
    /// Reads it from a file that nobody else may read.
    ///
    /// # Errors
    /// As of [`Secret::read`].
    pub fn read(path: &Path) -> Result<Self, Problem> {
        read_pair(path, Kind::CredentialsOfAnother).map(|pair| Self(pair.into()))
    }

    /// What is shown.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Basic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Basic(…)")
    }
}

/// What a file is for, and so how one comes by it.
#[derive(Clone, Copy)]
enum Kind {
    Secret,
    Credentials,
    /// Somebody else wants to be shown them, so nobody here can make them up.
    CredentialsOfAnother,
}

impl Kind {
    /// What to do where nothing is that could be lost.
    fn help(self, path: &Path) -> String {
        let shown = path.display();
        match self {
            Self::Secret => format!("make one: (umask 077; openssl rand -hex 32 > {shown})"),
            Self::Credentials => {
                format!("make it: (umask 077; echo \"synapse:$(openssl rand -hex 32)\" > {shown})")
            }
            Self::CredentialsOfAnother => {
                "write USER:PASSWORD into it, as that proxy knows them, and chmod 600 it".to_owned()
            }
        }
    }
}

/// `user:password` in Base64.
fn read_pair(path: &Path, kind: Kind) -> Result<String, Problem> {
    let text = read_alone(path, kind)?;
    let is_pair = text.split_once(':').is_some_and(|(user, password)| !user.is_empty() && !password.is_empty());
    let is_text = !text.bytes().any(|byte| byte.is_ascii_control());
    if is_pair && is_text { Ok(BASE64_STANDARD.encode(&text)) } else { Err(no_pair(path, kind)) }
}

/// The file may be another one that was named by mistake, so nothing is said to be written there.
fn no_pair(path: &Path, kind: Kind) -> Problem {
    let shown = path.display();
    let help = match kind {
        Kind::Secret | Kind::Credentials => format!("{}, and move it there", kind.help(Path::new("A_NEW_FILE"))),
        Kind::CredentialsOfAnother => kind.help(path),
    };
    Problem::new(format!("{shown} does not hold a user and a password"))
        .help(format!("is it the file that is meant? If so, {help}"))
}

/// What stands in a file that nobody else may read, without the white space around it.
fn read_alone(path: &Path, kind: Kind) -> Result<String, Problem> {
    let shown = path.display();
    let unreadable = |error: io::Error| {
        let problem = Problem::unreadable("secret file", path, &error);
        if error.kind() == io::ErrorKind::NotFound { problem.help(kind.help(path)) } else { problem }
    };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Problem::new(format!("the secret file {shown} is open to other users (mode {mode:04o})"))
            .help(format!("chmod 600 {shown}, and think of the secret as known")));
    }
    let mut text = String::new();
    file.take(MOST + 1).read_to_string(&mut text).map_err(unreadable)?;
    match text.trim() {
        "" => {
            Err(Problem::new(format!("the secret file {shown} is empty: everybody would know it"))
                .help(kind.help(path)))
        }
        secret if secret.len() as u64 > MOST => {
            Err(Problem::new(format!("what stands in {shown} is too long for a secret"))
                .help("letters, digits and signs of ASCII, at most 4096 of them, no spaces"))
        }
        secret => Ok(secret.to_owned()),
    }
}

const MOST: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, mode: u32) -> Result<Secret, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        Secret::read(&path).map_err(|problem| problem.what)
    }

    #[test]
    fn is_what_stands_in_the_file_without_the_line_end() {
        let secret = read(" s3cret=\n", 0o600).unwrap();
        assert!(secret.is(b"s3cret="));
        for other in [&b"s3cret"[..], b"s3cret=\n", b"", b"s3cret=="] {
            assert!(!secret.is(other));
        }
        assert!(!format!("{secret:?}").contains("s3cret"));
    }

    #[test]
    fn one_that_is_replaced_is_another_for_all_who_have_it() {
        let (old, new) = (Secret::new("old").unwrap(), Secret::new("new").unwrap());
        let clone = old.clone();
        assert!(!old.replace(&Secret::new("old").unwrap()) && clone.is(b"old"));
        let mut told = 0;
        old.tell_once(|| told += 1);
        assert!(old.replace(&new) && clone.is(b"new") && !clone.is(b"old"));
        clone.tell_once(|| told += 1);
        clone.tell_once(|| told += 1);
        assert_eq!(told, 2);
    }

    #[test]
    fn one_that_is_no_secret_is_refused_and_not_repeated() {
        for (text, mode, what) in [
            ("hidden", 0o644, "is open to other users (mode 0644)"),
            ("hidden", 0o640, "is open to other users (mode 0640)"),
            ("", 0o600, "is empty"),
            (" \n", 0o600, "is empty"),
            ("hidden hidden", 0o600, "cannot stand in a header"),
            ("hidd\u{e9}n", 0o600, "cannot stand in a header"),
            (&"hidden".repeat(1000), 0o600, "is too long for a secret"),
        ] {
            let told = read(text, mode).unwrap_err();
            assert!(told.contains(what) && !told.contains("hidd"), "{told}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        for text in ["hidden", ":hidden", "hidden:", "hidd\nen:x"] {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            let told = Secret::read_credentials(&path).unwrap_err().what;
            assert!(told.contains("does not hold a user and a password") && !told.contains("hidd"), "{told}");
        }
        std::fs::write(&path, "synapse:pass:word\n").unwrap();
        assert!(Secret::read_credentials(&path).unwrap().is(b"c3luYXBzZTpwYXNzOndvcmQ="));
    }

    #[test]
    fn the_help_makes_what_is_wanted_and_writes_over_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let told = || {
            let problems = [
                Secret::read(&path).unwrap_err(),
                Secret::read_credentials(&path).unwrap_err(),
                Basic::read(&path).unwrap_err(),
            ];
            problems.map(|problem| (problem.what, problem.help.unwrap()))
        };
        let write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        };
        let written_to = format!("> {}", path.display());
        let first = ["does not exist", "is empty"];
        for what in first {
            let [secret, credentials, of_another] = told();
            for (told, _) in [&secret, &credentials, &of_another] {
                assert!(told.contains(what), "{told}");
            }
            assert!(secret.1.contains("openssl rand -hex 32") && secret.1.contains(&written_to), "{secret:?}");
            assert!(
                credentials.1.contains("echo \"synapse:$(") && credentials.1.contains(&written_to),
                "{credentials:?}"
            );
            assert!(!of_another.1.contains("openssl") && of_another.1.contains("USER:PASSWORD"), "{of_another:?}");
            write("\n");
        }
        // What the help would make is good.
        write("synapse:0123456789abcdef\n");
        Secret::read_credentials(&path).unwrap();
        write("another secret\n");
        let [secret, credentials, of_another] = told();
        assert!(credentials.1.contains("echo \"synapse:$("), "{credentials:?}");
        assert!(!of_another.1.contains("openssl") && of_another.1.contains("USER:PASSWORD"), "{of_another:?}");
        for (_, help) in [secret, credentials, of_another] {
            assert!(!help.contains(&written_to), "{help}");
        }
    }
}
