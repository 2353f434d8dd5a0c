//! The key that our own answers to questions for keys are signed with.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use ruma_common::CanonicalJsonObject;
use ruma_common::serde::Base64;
use ruma_signatures::{Ed25519KeyPair, sign_json};

use crate::problem::Problem;

/// A signing key, in a file of the form that Synapse's own have: `ed25519 VERSION SEED`. What it says is shown nowhere.
#[derive(Clone)]
pub struct NotaryKey(Arc<Ed25519KeyPair>);

impl NotaryKey {
    /// Reads it from a file that nobody else may read.
    ///
    /// # Errors
    /// What is wrong with the file, and never what stands in it.
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let shown = path.display();
        let make = |path: &Path| {
            let line = "echo \"ed25519 notary $(openssl rand -base64 32 | tr -d =)\"";
            format!("make one: (umask 077; {line} > {})", path.display())
        };
        // The file may be another one that was named by mistake, so nothing is said to be written there.
        let make_elsewhere = || format!("{}, and move it there", make(Path::new("A_NEW_FILE")));
        let unreadable = |error: io::Error| {
            let problem = Problem::unreadable("notary key", path, &error);
            if error.kind() == io::ErrorKind::NotFound { problem.help(make(path)) } else { problem }
        };
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(Problem::new(format!("the notary key {shown} is open to other users (mode {mode:04o})"))
                .help(format!("if it is the file that is meant, chmod 600 {shown}; or better, {}", make_elsewhere())));
        }
        let mut text = String::new();
        file.take(MOST).read_to_string(&mut text).map_err(unreadable)?;
        Self::parse(&text).ok_or_else(|| {
            let help = match text.trim().is_empty() {
                true => make(path),
                false => format!("is it the file that is meant? If so, {}", make_elsewhere()),
            };
            Problem::new(format!("the notary key {shown} is not of the form `ed25519 VERSION SEED`")).help(help)
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split_ascii_whitespace().collect();
        let [algorithm, version, seed] = words.try_into().ok()?;
        let is_version = version.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if algorithm != "ed25519" || !is_version {
            return None;
        }
        let seed: Base64 = Base64::parse(seed).ok()?;
        let seed: [u8; 32] = seed.as_bytes().try_into().ok()?;
        let document = [&PKCS8[..], &seed].concat();
        Ed25519KeyPair::from_der(&document, version.to_owned()).ok().map(|key| Self(Arc::new(key)))
    }

    /// Its name in signatures and in `verify_keys`.
    pub fn id(&self) -> String {
        format!("ed25519:{}", self.0.version())
    }

    /// What others verify with.
    pub fn verify_key(&self) -> String {
        Base64::<ruma_common::serde::base64::Standard, _>::new(self.0.public_key().to_vec()).encode()
    }

    /// Signs an object under this name, beside the signatures that it has; `false` if it cannot have any.
    pub fn sign(&self, name: &str, object: &mut CanonicalJsonObject) -> bool {
        sign_json(name, &*self.0, object).is_ok()
    }
}

impl PartialEq for NotaryKey {
    fn eq(&self, other: &Self) -> bool {
        (self.0.version(), self.0.public_key()) == (other.0.version(), other.0.public_key())
    }
}

impl fmt::Debug for NotaryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NotaryKey({})", self.id())
    }
}

/// The key of a file that is read again while it is signed with. Clones are one.
#[derive(Clone, Debug)]
pub struct NotaryKeyFile(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    key: ArcSwap<NotaryKey>,
}

impl NotaryKeyFile {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// As of [`NotaryKey::read`].
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let key = ArcSwap::from_pointee(NotaryKey::read(path)?);
        Ok(Self(Arc::new(Kept { path: path.to_owned(), key })))
    }

    /// The key as it is now. What is signed as a whole takes it once.
    pub fn key(&self) -> NotaryKey {
        NotaryKey::clone(&self.0.key.load())
    }

    /// Where it is read.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Reads it again; whether it is another key now.
    ///
    /// # Errors
    /// As of [`NotaryKey::read`]; the old key stays.
    pub fn reload(&self) -> Result<bool, Problem> {
        let new = NotaryKey::read(&self.0.path)?;
        let is_new = new != self.key();
        if is_new {
            self.0.key.store(Arc::new(new));
        }
        Ok(is_new)
    }
}

/// What stands before the seed of an Ed25519 key in PKCS #8 (RFC 8410).
const PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
const MOST: u64 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// The seed and the signature are those of the specification's appendix on signing JSON.
    const SPECIFICATION: &str = "ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";

    #[test]
    fn signs_as_the_specification_does() {
        let key = NotaryKey::parse(SPECIFICATION).unwrap();
        assert_eq!(key.id(), "ed25519:1");
        assert_eq!(key.verify_key(), "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI");
        let mut object = CanonicalJsonObject::new();
        assert!(key.sign("domain", &mut object));
        let text = serde_json::to_string(&object).unwrap();
        let signature = "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ";
        assert_eq!(text, format!(r#"{{"signatures":{{"domain":{{"ed25519:1":"{signature}"}}}}}}"#));
        assert!(!format!("{key:?}").contains("YJDB"));
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notary.key");
        let read = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            NotaryKey::read(&path).map(|_| ()).map_err(|problem| problem.to_string())
        };
        let written_to = format!("> {}", path.display());
        let missing = NotaryKey::read(&path).unwrap_err();
        assert!(missing.what.contains("does not exist") && missing.help.unwrap().contains(&written_to));
        read(&format!("{SPECIFICATION}=\n"), 0o600).unwrap();
        assert!(read(SPECIFICATION, 0o640).unwrap_err().contains("is open to other users (mode 0640)"));
        let seed = SPECIFICATION.rsplit(' ').next().unwrap();
        for odd in
            ["", seed, &format!("ed25519 a:b {seed}"), &format!("rsa 1 {seed}"), &format!("ed25519 1 {}", &seed[1..])]
        {
            let told = read(odd, 0o600).unwrap_err();
            assert!(told.contains("is not of the form") && !told.contains(&seed[1..]), "{told}");
            // Nothing is written over: it may be another file, named by mistake.
            assert_eq!(told.contains(&written_to), odd.is_empty(), "{told}");
        }
        assert!(!read(SPECIFICATION, 0o640).unwrap_err().contains(&written_to));
        // Nor does it take the place of one.
        read(SPECIFICATION, 0o600).unwrap();
        let file = NotaryKeyFile::read(&path).unwrap();
        assert_eq!(file.reload(), Ok(false));
        read("", 0o600).unwrap_err();
        assert!(file.reload().is_err() && file.key().id() == "ed25519:1");
        read(&SPECIFICATION.replace(" 1 ", " 2 "), 0o600).unwrap();
        assert_eq!((file.reload(), file.clone().key().id().as_str()), (Ok(true), "ed25519:2"));
    }
}
