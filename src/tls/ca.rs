//! The authority for hosts that are looked into: constrained to their names, so that whoever gets its key can be them and nobody
//! else.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::server::{provider, read_authorities, read_key_text};
use crate::policy::egress::UNBINDING;
use crate::problem::{Problem, Problems};

/// An authority, read and checked.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    stated: Stated,
}

/// What an authority's certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    /// The names that it may vouch for.
    pub names: BTreeSet<String>,
    /// Names below which it may vouch for nobody.
    pub closed_below: BTreeSet<String>,
    /// Whether it may vouch for no address.
    pub has_no_addresses: bool,
    /// When it begins.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

/// How near an authority is to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// There is time.
    Far,
    /// It is time to make another: so many days are left.
    Soon(u64),
    /// It has ended: nobody believes it any more.
    Past,
}

/// A new authority, both in PEM.
pub struct Made {
    /// Its certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// A certificate that is shown in a host's place.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The certificate and its key.
    pub certified: Arc<CertifiedKey>,
    /// When it ends.
    pub not_after: SystemTime,
}

/// Makes an authority for these names and the reserved one, and no other.
///
/// # Errors
/// The system gives no randomness.
pub fn make(names: &BTreeSet<String>) -> Result<Made, Problem> {
    let names = &names.iter().cloned().chain([UNBINDING.to_owned()]).collect::<BTreeSet<_>>();
    let mut params = CertificateParams::default();
    params.distinguished_name = named(NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Their subdomains would be permitted with them; but a name below one that is listed may be listed itself.
    let is_above = |name: &str| names.iter().any(|other| other.ends_with(&format!(".{name}")));
    let closed = names.iter().filter(|name| !is_above(name));
    let mut excluded: Vec<_> = closed.map(|name| GeneralSubtree::DnsName(format!(".{name}"))).collect();
    excluded.push(GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])));
    excluded.push(GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])));
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: names.iter().map(|name| GeneralSubtree::DnsName(name.clone())).collect(),
        excluded_subtrees: excluded,
    });
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + AUTHORITY_LASTS).into();
    let unusable = |error| Problem::new(format!("no authority can be made: {error}"));
    let key = KeyPair::generate().map_err(unusable)?;
    let certificate = params.self_signed(&key).map_err(unusable)?;
    Ok(Made { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Whether a certificate is that of an authority which was made here, now or before.
pub fn is_ours(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| {
        parsed.subject().iter_common_name().any(|name| name.as_str().is_ok_and(|name| name == NAME))
    })
}

impl PartialEq for Authority {
    /// A certificate has one key.
    fn eq(&self, other: &Self) -> bool {
        self.certificate == other.certificate
    }
}

impl Authority {
    /// Reads both files.
    ///
    /// # Errors
    /// All that is wrong with them: they are not made yet; the key is open to others, or is another's; the certificate has ended,
    /// or is constrained to no names.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, Problems> {
        let is_missing = |path: &Path| matches!(path.try_exists(), Ok(false));
        if is_missing(certificate) && is_missing(key) {
            let what =
                format!("there is no authority yet: neither {} nor {} exists", certificate.display(), key.display());
            return Err(Problem::new(what).help("make it: `mantlet ca init`").into());
        }
        let (read, secret) = (read_one(certificate), read_key_text(key));
        let (read, secret) = match (read, secret) {
            (Ok(read), Ok(secret)) => (read, secret),
            (read, secret) => {
                // What is there may be another's, so it is not to be written over unseen.
                let help = "one belongs to the other: is it elsewhere? If what is there is Mantlet's, `mantlet ca init --force` makes both anew";
                let told = |problem: Problem, path| if is_missing(path) { problem.help(help) } else { problem };
                let read = read.err().map(|problem| told(problem, certificate));
                let secret = secret.err().map(|problem| told(problem, key));
                return Err(Problems(read.into_iter().chain(secret).collect()));
            }
        };
        let shown = certificate.display();
        let stated = Stated::of(&read).map_err(|what| {
            Problem::new(format!("{shown} {what}")).help("make one with `mantlet ca init`, and tell Synapse of it")
        })?;
        if stated.not_after <= SystemTime::now() {
            return Err(Problem::new(format!("the authority {shown} has ended"))
                .help("make a new one: `mantlet ca init`")
                .into());
        }
        // What is wrong with a key is not repeated: it could quote it.
        let bad_key = || Problem::new(format!("{} holds no private key in PEM that can sign", key.display()));
        let secret = std::str::from_utf8(&secret).map_err(|_| bad_key())?;
        let key_pair = KeyPair::from_pem(secret).map_err(|_| bad_key())?;
        let (_, parsed) = X509Certificate::from_der(&read).map_err(|_| bad_key())?;
        if parsed.public_key().raw != key_pair.subject_public_key_info() {
            let what = format!("the key {} is not the one of {shown}", key.display());
            return Err(Problem::new(what).help("put together what `mantlet ca init` wrote together").into());
        }
        let issuer = Issuer::from_ca_cert_der(&read, key_pair)
            .map_err(|error| Problem::new(format!("{shown} cannot be used: {error}")))?;
        Ok(Self { issuer, certificate: read, stated })
    }

    /// What its certificate says.
    pub fn stated(&self) -> &Stated {
        &self.stated
    }

    /// A certificate for this name, which has to be one of those that it was made for: no name below one is.
    ///
    /// # Errors
    /// It is none of them.
    pub fn leaf(&self, name: &str) -> Result<Leaf, Problem> {
        if !self.stated.names.contains(name) {
            return Err(Problem::new(format!("the authority was not made for {name}"))
                .help("make a new one: `mantlet ca init --force`, then restart Synapse with the new bundle"));
        }
        let unusable = |error| Problem::new(format!("no certificate can be made for {name}: {error}"));
        let mut params = CertificateParams::new([name.to_owned()]).map_err(unusable)?;
        params.distinguished_name = named("Mantlet");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let begins = SystemTime::now() - CLOCKS_DIFFER;
        let not_after = (begins + LEAF_LASTS).min(self.stated.not_after);
        (params.not_before, params.not_after) = (begins.into(), not_after.into());
        let key = KeyPair::generate().map_err(unusable)?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(unusable)?;
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        let secret = PrivateKeyDer::try_from(key.serialize_der());
        let unusable =
            |error: &dyn std::fmt::Display| Problem::new(format!("no certificate can be made for {name}: {error}"));
        let secret = secret.map_err(|error| unusable(&error))?;
        let certified = CertifiedKey::from_der(chain, secret, &provider()).map_err(|error| unusable(&error))?;
        Ok(Leaf { certified: Arc::new(certified), not_after })
    }
}

impl Stated {
    /// What it leaves open: names, below which whoever has the key could be anybody, as `*.example.org`.
    pub fn open(&self) -> impl Iterator<Item = String> {
        self.names.difference(&self.closed_below).map(|name| format!("*.{name}"))
    }

    /// Whether it is not valid yet: a clock was wrong when it was made, or is now.
    pub fn is_ahead(&self, now: SystemTime) -> bool {
        now < self.not_before
    }

    /// How near its end is.
    pub fn end(&self, now: SystemTime) -> End {
        match self.not_after.duration_since(now) {
            Err(_) | Ok(Duration::ZERO) => End::Past,
            Ok(left) if left <= SOON => End::Soon(left.as_secs() / (24 * 3600)),
            Ok(_) => End::Far,
        }
    }

    /// Reads the certificate of an authority.
    ///
    /// # Errors
    /// What is wrong with it, as what follows its name in a sentence.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, &'static str> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| "is no certificate that can be read")?;
        let begins = u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or_default();
        let ends = u64::try_from(parsed.validity().not_after.timestamp()).map_err(|_| "has ended")?;
        let constraints = parsed.name_constraints().ok().flatten().filter(|extension| extension.critical);
        let constraints = constraints.ok_or("is not constrained to names, so its key would be good for every site")?;
        let permitted = constraints.value.permitted_subtrees.iter().flatten().map(|subtree| &subtree.base);
        let excluded = || constraints.value.excluded_subtrees.iter().flatten().map(|subtree| &subtree.base);
        let mut names = BTreeSet::new();
        for base in permitted {
            match base {
                GeneralName::DNSName(name) => drop(names.insert((*name).to_owned())),
                _ => return Err("permits something else than names of hosts"),
            }
        }
        if names.is_empty() || names.contains("") {
            return Err("is not constrained to names, so its key would be good for every site");
        }
        let closed_below = excluded().filter_map(|base| match base {
            GeneralName::DNSName(name) => name.strip_prefix('.').map(str::to_owned),
            _ => None,
        });
        let whole = |length: usize| {
            excluded().any(|base| matches!(base, GeneralName::IPAddress(bytes) if *bytes == vec![0; length].as_slice()))
        };
        Ok(Self {
            names,
            closed_below: closed_below.collect(),
            has_no_addresses: whole(8) && whole(32),
            not_before: SystemTime::UNIX_EPOCH + Duration::from_secs(begins),
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(ends),
        })
    }
}

fn read_one(path: &Path) -> Result<CertificateDer<'static>, Problem> {
    let mut all = read_authorities(path)
        .map_err(|problem| problem.help("is it the file that is meant? `mantlet ca init` makes one where none is"))?;
    match (all.pop(), all.pop()) {
        (Some(one), None) => Ok(one),
        _ => Err(Problem::new(format!("{} holds several certificates: an authority is one", path.display()))),
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut all = DistinguishedName::new();
    all.push(DnType::CommonName, name);
    all
}

const NAME: &str = "Mantlet interception authority";
const AUTHORITY_LASTS: Duration = Duration::from_secs(5 * 365 * 24 * 3600);
/// Synapse has to be restarted for another, which wants to be planned.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
/// A certificate that gets away is good for no longer.
const LEAF_LASTS: Duration = Duration::from_secs(7 * 24 * 3600);
/// Synapse may be on another machine.
const CLOCKS_DIFFER: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_thirty_days_ahead() {
        let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
        let end = |not_after| {
            let (names, closed_below) = (BTreeSet::new(), BTreeSet::new());
            Stated { names, closed_below, has_no_addresses: true, not_before: now, not_after }.end(now)
        };
        assert_eq!((end(now + 31 * day), end(now + 30 * day)), (End::Far, End::Soon(30)));
        assert_eq!((end(now + day / 2), end(now), end(now - day)), (End::Soon(0), End::Past, End::Past));
    }
}
