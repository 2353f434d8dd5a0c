//! A certificate authority for one test, and certificates under it.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

use crate::error::{Context, Result};

/// An authority that nothing trusts but what is told to.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate chain and its key, both PEM.
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// Makes a new authority.
    pub fn new() -> Result<Authority> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Mantlet test authority");
        let key = KeyPair::generate().context(|| "make a key".into())?;
        let issuer = CertifiedIssuer::self_signed(params, key).context(|| "make an authority".into())?;
        Ok(Authority { issuer })
    }

    /// The authority's own certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Makes a certificate for these host names and addresses.
    pub fn issue(&self, names: &[&str]) -> Result<Leaf> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let what = || format!("make a certificate for {}", names.join(", "));
        let mut params = CertificateParams::new(names.clone()).context(what)?;
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context(what)?;
        let certificate = params.signed_by(&key, &self.issuer).context(what)?;
        Ok(Leaf { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Writes the authority's certificate into a directory.
    pub fn write(&self, directory: &Path) -> Result<PathBuf> {
        let path = directory.join("ca.crt");
        std::fs::write(&path, self.pem()).context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

impl Leaf {
    /// Writes the certificate, and the key for the owner's eyes only; returns both paths.
    pub fn write(&self, directory: &Path) -> Result<(PathBuf, PathBuf)> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let (certificate, key) = (directory.join("server.crt"), directory.join("server.key"));
        std::fs::write(&certificate, &self.certificate).context(|| format!("write {}", certificate.display()))?;
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&key);
        file.and_then(|mut file| file.write_all(self.key.as_bytes())).context(|| format!("write {}", key.display()))?;
        Ok((certificate, key))
    }
}
