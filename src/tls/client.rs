//! How we know other servers: their certificates are verified, always.

use std::path::Path;
use std::sync::Arc;

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};

use super::server::{provider, read_authorities};
use crate::problem::{Problem, Problems};

/// TLS 1.3 and 1.2, HTTP/2 and HTTP/1.1, to servers that the machine's roots vouch for, or those in these files: the system keeps its own current,
/// and the operator has put there whom Synapse believes as well.
///
/// # Errors
/// A file that holds no certificates, or no root at all.
pub fn config(extra_roots: &[impl AsRef<Path>]) -> Result<Arc<ClientConfig>, Problems> {
    let mut problems = Problems::default();
    let mut roots = RootCertStore::empty();
    let (_, _not_understood) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for path in extra_roots {
        match read_authorities(path.as_ref()) {
            Ok(authorities) => drop(roots.add_parsable_certificates(authorities)),
            Err(problem) => problems.push(problem),
        }
    }
    if roots.is_empty() && problems.is_empty() {
        problems.push(
            Problem::new("this machine has no root certificates, so no other server can be known")
                .help("install ca-certificates, point SSL_CERT_FILE at a bundle, or name files in `extra_roots`"),
        );
    }
    problems.or(())?;
    let unusable = |error| Problem::new(format!("TLS cannot be set up: {error}"));
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&TLS13, &TLS12]).map_err(unusable)?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
