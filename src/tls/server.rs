//! The certificate and key of a TLS listener, and the configuration made of them.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{Error, InconsistentKeys, ServerConfig};

use crate::problem::{Problem, Problems};
use crate::tls::not_after::not_after;

/// A certificate chain and the key that belongs to it.
#[derive(Clone, Debug)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    not_after: Option<SystemTime>,
}

impl Identity {
    /// Reads both files, binds nothing: `check` calls it too.
    ///
    /// # Errors
    /// All that is wrong with the files; each problem names its path, and none shows what is in a key.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, Problems> {
        match (read_chain(certificate), read_key(key)) {
            (Ok(chain), Ok(secret)) => Self::matching(chain, secret, certificate, key).map_err(Problems::from),
            (chain, secret) => Err(Problems(chain.err().into_iter().chain(secret.err()).collect())),
        }
    }

    /// When the first certificate of the chain ends.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.not_after
    }

    fn matching(
        chain: Vec<CertificateDer<'static>>,
        secret: PrivateKeyDer<'static>,
        certificate: &Path,
        key: &Path,
    ) -> Result<Self, Problem> {
        let (certificate, key) = (certificate.display(), key.display());
        let not_after = chain.first().and_then(|first| not_after(first));
        let signing = aws_lc_rs::default_provider().key_provider.load_private_key(secret).map_err(|_| {
            Problem::new(format!("{key} holds a private key of a kind that cannot be used")).help(KINDS)
        })?;
        let certified = CertifiedKey::new(chain, signing);
        match certified.keys_match() {
            Ok(()) => Ok(Self { certified: Arc::new(certified), not_after }),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                Err(Problem::new(format!("the key {key} does not belong to the certificate {certificate}"))
                    .help("the certificate of this host must be the first one in its file"))
            }
            // rustls' own words speak of a peer's certificate here.
            Err(_) => {
                Err(Problem::new(format!("the first certificate in {certificate} is not a valid X.509 certificate")))
            }
        }
    }
}

/// The TLS side of a listener: one configuration for all workers, whose certificate can be replaced while it serves.
#[derive(Clone, Debug)]
pub struct Server {
    config: Arc<ServerConfig>,
    current: Arc<Current>,
}

impl Server {
    /// Speaks TLS 1.3 and 1.2 (AEAD only) and offers `h2` before `http/1.1`.
    ///
    /// Sessions are resumed by tickets alone, whose key is made here: workers share it through this value, and two
    /// listeners do not.
    ///
    /// # Errors
    /// When the system gives no randomness for the ticket key.
    pub fn new(identity: Identity) -> Result<Self, Problem> {
        let unusable = |e: Error| Problem::new(format!("TLS cannot be set up: {e}"));
        let current = Arc::new(Current(ArcSwap::new(identity.certified)));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(unusable)?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = Ticketer::new().map_err(unusable)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config), current })
    }

    /// The configuration for an acceptor.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// Shows another certificate from the next handshake on.
    pub fn replace(&self, identity: Identity) {
        self.current.0.store(identity.certified);
    }
}

/// Shows the certificate that holds now, whatever name is asked for: a gateway serves one homeserver.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// rustls has only AEAD suites with this provider: nothing weaker could be switched on.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

const KINDS: &str = "a key is RSA, ECDSA P-256, P-384 or P-521, or Ed25519; PKCS#8, PKCS#1 or SEC1 in PEM";

/// More than any chain or key; a wrong path may name a disk.
const FILE_BYTES: u64 = 1024 * 1024;

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let shown = path.display();
    let (_, text) = read("certificate", path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|_| Problem::new(format!("the certificate file {shown} is not valid PEM")))?;
    if chain.is_empty() {
        return Err(Problem::new(format!("there is no certificate in {shown}"))
            .help("a PEM file with -----BEGIN CERTIFICATE----- is needed, this host's certificate first"));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Problem> {
    let shown = path.display();
    let (file, text) = read("key", path)?;
    // Asked of the open file: the path may name another one by now.
    let mode = file.metadata().map_err(|e| unreadable("key", path, &e))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Problem::new(format!("the key file {shown} is open to other users (mode {mode:04o})"))
            .help(format!("chmod 600 {shown}")));
    }
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) if text.windows(9).any(|word| word == b"ENCRYPTED") => {
            Err(Problem::new(format!("the key in {shown} is encrypted"))
                .help("nobody is there to type a passphrase: openssl pkey -in OLD -out NEW"))
        }
        Err(pem::Error::NoItemsFound) => Err(Problem::new(format!("there is no private key in {shown}")).help(KINDS)),
        Err(_) => Err(Problem::new(format!("the key file {shown} is not valid PEM"))),
    }
}

fn read(what: &str, path: &Path) -> Result<(File, Vec<u8>), Problem> {
    let mut text = Vec::new();
    let read = |text: &mut Vec<u8>| {
        let file = File::open(path)?;
        (&file).take(FILE_BYTES + 1).read_to_end(text)?;
        Ok(file)
    };
    let file = read(&mut text).map_err(|e| unreadable(what, path, &e))?;
    if text.len() as u64 > FILE_BYTES {
        return Err(Problem::new(format!("the {what} file {} is larger than 1 MiB", path.display())));
    }
    Ok((file, text))
}

fn unreadable(what: &str, path: &Path, error: &io::Error) -> Problem {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => Problem::new(format!("the {what} file {shown} does not exist")),
        io::ErrorKind::PermissionDenied => {
            Problem::new(format!("the {what} file {shown} may not be read by this user"))
        }
        _ => Problem::new(format!("the {what} file {shown} cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests;
