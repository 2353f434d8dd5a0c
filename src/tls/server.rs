//! The certificates and keys of a TLS listener, and the configuration made of them.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};

use crate::config::gateway::Listener;
use crate::problem::{Problem, Problems};
use crate::tls::not_after::not_after;

/// All that the files of a TLS listener say: what it shows, and by whom its clients must be known.
#[derive(Clone, Debug, PartialEq)]
pub struct Credentials {
    /// Never empty; the first is for who asks for no name, or for one that no certificate has.
    identities: Vec<Identity>,
    /// Whose certificate a client must have; `None` where none is asked for.
    authorities: Option<Vec<CertificateDer<'static>>>,
}

impl Credentials {
    /// Reads the files of a listener, binds nothing: `check` calls it too. `None` is a listener without TLS.
    ///
    /// # Errors
    /// All that is wrong with the files; each problem names its path, and none shows what is in a key.
    pub fn read(listener: &Listener) -> Result<Option<Self>, Problems> {
        if listener.tls.is_empty() {
            return Ok(None);
        }
        let mut problems = Problems::default();
        let mut keep = |found: Problems| problems.0.extend(found.0);
        let read = listener.tls.iter().map(|files| Identity::read(&files.certificate, &files.key));
        let identities = read.filter_map(|identity| identity.map_err(&mut keep).ok()).collect();
        let authorities = listener.client_ca.as_deref().map(read_authorities).transpose();
        let authorities = authorities.map_err(|problem| keep(problem.into())).unwrap_or_default();
        problems.or(Some(Self { identities, authorities }))
    }

    /// Whether one of its certificates is for this host, by the rule that clients follow.
    pub fn is_for(&self, host: &ServerName<'_>) -> bool {
        self.identities.iter().any(|identity| identity.is_for(host))
    }

    /// When the first of the certificates that are shown ends.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.identities.iter().filter_map(Identity::not_after).min()
    }
}

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
        let help = "a PEM file with -----BEGIN CERTIFICATE----- is needed, this host's certificate first";
        match (read_chain(certificate, help), read_key(key)) {
            (Ok(chain), Ok(secret)) => Self::matching(chain, secret, certificate, key).map_err(Problems::from),
            (chain, secret) => Err(Problems(chain.err().into_iter().chain(secret.err()).collect())),
        }
    }

    /// When the first certificate of the chain ends.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.not_after
    }

    /// Whether it is for this host, by the rule that clients follow.
    fn is_for(&self, host: &ServerName<'_>) -> bool {
        let parsed = self.certified.cert.first().map(ParsedCertificate::try_from);
        matches!(parsed, Some(Ok(parsed)) if verify_server_name(&parsed, host).is_ok())
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

impl PartialEq for Identity {
    /// A chain has one key.
    fn eq(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }
}

/// The TLS side of a listener: one configuration for all workers, which can be replaced while it serves.
#[derive(Clone, Debug)]
pub struct Server {
    current: Arc<ArcSwap<Current>>,
    /// Outlives a replacement, so that sessions do.
    ticketer: Arc<dyn ProducesTickets>,
}

#[derive(Debug)]
struct Current {
    credentials: Credentials,
    config: Arc<ServerConfig>,
}

impl Server {
    /// Speaks TLS 1.3 and 1.2 (AEAD only) and offers `h2` before `http/1.1`.
    ///
    /// Sessions are resumed by tickets alone, whose key is made here: workers share it through this value, and two
    /// listeners do not. Where clients must show certificates there are no tickets: one would outlive what it stands for.
    ///
    /// # Errors
    /// When the system gives no randomness for the ticket key.
    pub fn new(credentials: Credentials) -> Result<Self, Problem> {
        let ticketer = Ticketer::new().map_err(unusable)?;
        let current = Current::new(credentials, &ticketer)?;
        Ok(Self { current: Arc::new(ArcSwap::from_pointee(current)), ticketer })
    }

    /// The configuration for the next handshake.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().config)
    }

    /// Shows and asks for other certificates from the next handshake on; whether they are others at all.
    ///
    /// # Errors
    /// When they cannot be used; what held before holds on then.
    pub fn replace(&self, credentials: Credentials) -> Result<bool, Problem> {
        if self.current.load().credentials == credentials {
            return Ok(false);
        }
        self.current.store(Arc::new(Current::new(credentials, &self.ticketer)?));
        Ok(true)
    }
}

impl Current {
    fn new(credentials: Credentials, ticketer: &Arc<dyn ProducesTickets>) -> Result<Self, Problem> {
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(&[&TLS13, &TLS12]).map_err(unusable)?;
        let builder = match &credentials.authorities {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots(authorities)?.into(), provider());
                builder.with_client_cert_verifier(
                    verifier.build().map_err(|e| Problem::new(format!("client_ca cannot be used: {e}")))?,
                )
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName(credentials.identities.clone())));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if credentials.authorities.is_none() {
            config.ticketer = Arc::clone(ticketer);
        } else {
            config.send_tls13_tickets = 0;
        }
        Ok(Self { credentials, config: Arc::new(config) })
    }
}

/// Shows the first certificate for the name that is asked for; else the first of all.
#[derive(Debug)]
struct ByName(Vec<Identity>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let first = self.0.first()?;
        let host = match hello.server_name() {
            Some(host) if self.0.len() > 1 => ServerName::try_from(host).ok(),
            _ => None,
        };
        let named = host.and_then(|host| self.0.iter().find(|identity| identity.is_for(&host)));
        Some(Arc::clone(&named.unwrap_or(first).certified))
    }
}

fn unusable(error: Error) -> Problem {
    Problem::new(format!("TLS cannot be set up: {error}"))
}

fn roots(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, Problem> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(unusable)?;
    }
    Ok(roots)
}

/// rustls has only AEAD suites with this provider: nothing weaker could be switched on.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

const KINDS: &str = "a key is RSA, ECDSA P-256, P-384 or P-521, or Ed25519; PKCS#8, PKCS#1 or SEC1 in PEM";

/// More than any chain or key; a wrong path may name a disk.
const FILE_BYTES: u64 = 1024 * 1024;

/// `help` is for a file that holds none.
fn read_chain(path: &Path, help: &str) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let shown = path.display();
    let (_, text) = read("certificate", path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|_| Problem::new(format!("the certificate file {shown} is not valid PEM")))?;
    if chain.is_empty() {
        return Err(Problem::new(format!("there is no certificate in {shown}")).help(help));
    }
    Ok(chain)
}

/// Certificates of those who vouch for others.
pub(super) fn read_authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let authorities = read_chain(path, "a PEM file with the -----BEGIN CERTIFICATE----- of an authority is needed")?;
    roots(&authorities)
        .map_err(|_| Problem::new(format!("a certificate in {} is not a valid X.509 certificate", path.display())))?;
    Ok(authorities)
}

/// The text of a private key that nobody else may read.
pub(super) fn read_key_text(path: &Path) -> Result<Vec<u8>, Problem> {
    let shown = path.display();
    let (file, text) = read("key", path)?;
    // Asked of the open file: the path may name another one by now.
    let metadata = file.metadata().map_err(|e| Problem::unreadable("key file", path, &e))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Problem::new(format!("the key file {shown} is open to other users (mode {mode:04o})"))
            .help(format!("chmod 600 {shown}")));
    }
    Ok(text)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Problem> {
    let shown = path.display();
    let text = read_key_text(path)?;
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
    let file = read(&mut text).map_err(|e| Problem::unreadable(&format!("{what} file"), path, &e))?;
    if text.len() as u64 > FILE_BYTES {
        return Err(Problem::new(format!("the {what} file {} is larger than 1 MiB", path.display())));
    }
    Ok((file, text))
}

#[cfg(test)]
mod tests;
