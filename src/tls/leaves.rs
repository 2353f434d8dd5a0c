//! What is shown in the place of hosts that are looked into: a certificate for each, made when a policy loads, and again when it has
//! lived half its life.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{Error, ServerConfig};

use super::ca::{Authority, Stated};
use super::server::provider;
use crate::config::gateway::{Door, Gateway};
use crate::matrix::Host;
use crate::policy::egress::UNBINDING;
use crate::policy::{Mode, Policy};
use crate::problem::{Problem, Problems};

/// Whether a gateway can look into anything, and by whose word.
#[derive(PartialEq)]
pub enum Interception {
    /// Nothing comes that could be looked into: there is no proxy door.
    Needless,
    /// There is no authority.
    Unable,
    /// This one vouches.
    By(Box<Authority>),
}

/// A certificate for each host that a policy wants to be looked into.
#[derive(Clone, Debug, Default)]
pub struct Leaves {
    by_host: HashMap<Host, Arc<ServerConfig>>,
    /// Whether one of them is for the reserved name.
    unbinding: bool,
    made: Option<SystemTime>,
    not_after: Option<SystemTime>,
    is_told: Arc<AtomicBool>,
}

impl Interception {
    /// Whether something comes that could be looked into, and there is no authority.
    pub fn is_wanting(gateway: &Gateway) -> bool {
        has_proxy_door(gateway) && gateway.egress.ca.is_none()
    }

    /// Reads what the gateway file names.
    ///
    /// # Errors
    /// All that is wrong with the authority's files.
    pub fn read(gateway: &Gateway) -> Result<Self, Problems> {
        if !has_proxy_door(gateway) {
            return Ok(Self::Needless);
        }
        match &gateway.egress.ca {
            None => Ok(Self::Unable),
            Some(ca) => match Authority::read(&ca.certificate, &ca.key) {
                Ok(authority) => Ok(Self::By(Box::new(authority))),
                Err(Problems(found)) => {
                    Err(Problems(found.into_iter().map(|problem| problem.at(ca.location.clone())).collect()))
                }
            },
        }
    }

    /// What the authority says of itself, if there is one.
    pub fn authority(&self) -> Option<&Stated> {
        match self {
            Self::Needless | Self::Unable => None,
            Self::By(authority) => Some(authority.stated()),
        }
    }

    /// The policy as it can be in force here: where there is no authority, some hosts have another way.
    pub fn possible(&self, policy: &Arc<Policy>) -> Arc<Policy> {
        match self {
            Self::Needless | Self::By(_) => Arc::clone(policy),
            Self::Unable => Arc::clone(policy).without_authority(),
        }
    }

    /// Makes a certificate for each host that this policy wants to be looked into.
    ///
    /// # Errors
    /// There is no authority, or it was not made for all of them.
    pub fn leaves(&self, policy: &Policy) -> Result<Leaves, Problems> {
        let mut problems = Problems::default();
        let mut leaves = Leaves::default();
        let reserved = self.reserved(policy).map_err(|problem| problems.push(problem)).ok().flatten();
        leaves.unbinding = reserved.is_some();
        for (name, location) in policy.egress().intercepted().chain(reserved.map(|name| (name, None))) {
            let leaf = match self {
                Self::Needless => continue,
                Self::Unable => {
                    Err(Problem::new(format!("there is no authority by which {name} could be looked into"))
                        .help("name one in the gateway file, [egress.ca], and make it: mantlet ca init"))
                }
                Self::By(authority) => authority.leaf(name),
            };
            match leaf.and_then(|leaf| Ok((config(name, leaf.certified)?, leaf.not_after))) {
                Ok((config, not_after)) => {
                    leaves.by_host.insert(Host::Name(name.into()), config);
                    leaves.not_after = Some(leaves.not_after.map_or(not_after, |first| first.min(not_after)));
                    leaves.made = Some(SystemTime::now());
                }
                Err(problem) => problems.push(problem.at(location.cloned())),
            }
        }
        problems.or(leaves)
    }

    /// The reserved name, where it can be answered for.
    fn reserved(&self, policy: &Policy) -> Result<Option<&'static str>, Problem> {
        let Self::By(authority) = self else { return Ok(None) };
        if authority.stated().names.contains(UNBINDING) {
            return Ok(Some(UNBINDING));
        }
        match policy.unbinding().filter(|reading| reading.mode == Mode::Enforce) {
            None => Ok(None),
            Some(reading) => {
                Err(Problem::new(format!("the authority was made without {UNBINDING}, which this rule needs"))
                    .at(reading.location.clone())
                    .help("make a new one: `mantlet ca init --force`, then restart Synapse with the new bundle"))
            }
        }
    }
}

impl Leaves {
    /// What is shown in the place of this host.
    pub fn of(&self, host: &Host) -> Option<&Arc<ServerConfig>> {
        self.by_host.get(host)
    }

    /// Whether Synapse can be led to the reserved name, and is answered there.
    pub fn answer_for_unbinding(&self) -> bool {
        self.unbinding
    }

    /// Tells, once in their life, that somebody did not believe them.
    pub fn tell_once(&self, tell: impl FnOnce()) {
        if !self.is_told.swap(true, Ordering::Relaxed) {
            tell();
        }
    }

    /// When the first of them ends.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.not_after
    }

    /// Whether they have lived half their life, or were made under a clock that has gone back since: until it is as late again, they
    /// are not valid yet. By an authority that has ended others would not live at all.
    pub fn are_due(&self, now: SystemTime) -> bool {
        let Some((made, ends)) = self.made.zip(self.not_after) else { return false };
        now < made || ends.duration_since(made).is_ok_and(|life| !life.is_zero() && now >= made + life / 2)
    }
}

fn has_proxy_door(gateway: &Gateway) -> bool {
    gateway.listeners.iter().any(|listener| listener.door == Door::Proxy)
}

fn config(name: &str, certified: Arc<CertifiedKey>) -> Result<Arc<ServerConfig>, Problem> {
    let unusable = |error: Error| Problem::new(format!("TLS cannot be set up for {name}: {error}"));
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&TLS13, &TLS12]).map_err(unusable)?.with_no_client_auth();
    let mut config = builder.with_cert_resolver(Arc::new(Only { name: name.into(), certified }));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A session would outlive the certificate, and the policy that wanted it.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// One certificate, for whoever asks for its name.
#[derive(Debug)]
struct Only {
    name: Box<str>,
    certified: Arc<CertifiedKey>,
}

impl ResolvesServerCert for Only {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_asked = hello.server_name().is_some_and(|name| name.eq_ignore_ascii_case(&self.name));
        is_asked.then(|| Arc::clone(&self.certified))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::Duration;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    use super::*;
    use crate::config::gateway::PolicySource;
    use crate::tls::ca;

    fn authority(dir: &Path, names: &[&str]) -> Authority {
        let made = ca::make(&names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>()).unwrap();
        let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        std::fs::write(&certificate, made.certificate).unwrap();
        std::fs::write(&key, made.key).unwrap();
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        Authority::read(&certificate, &key).unwrap()
    }

    fn policy(dir: &Path, text: &str) -> Arc<Policy> {
        let path = dir.join("policy.toml");
        std::fs::write(&path, format!("[rules.usage_stats]\n{text}")).unwrap();
        crate::config::compiled::Compiled::load(&PolicySource::File(path)).unwrap().policy
    }

    fn wants(hosts: &[&str]) -> String {
        hosts
            .iter()
            .map(|host| format!("[[egress.destination]]\nhost = \"{host}\"\naction = \"intercept\"\n"))
            .collect()
    }

    /// What a client says first that wants this name.
    fn hello(name: &str) -> Option<Vec<u8>> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).ok()?;
        let mut bytes = Vec::new();
        ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
        Some(bytes)
    }

    #[test]
    fn of_a_hundred_thousand_pairs_none_gets_a_certificate_that_nobody_listed() {
        let dir = tempfile::tempdir().unwrap();
        let listed = ["matrix.org", "vector.im", "push.matrix.org"];
        let by = Interception::By(Box::new(authority(dir.path(), &listed)));
        let leaves = by.leaves(&policy(dir.path(), &wants(&listed))).unwrap();
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let mut spell = |base: &str| match random(9) {
            0 => format!("sub.{base}"),
            1 => format!("{base}.example"),
            2 => format!("not{base}"),
            3 => base.replace('.', "-"),
            4 => base.to_ascii_uppercase(),
            5 => format!("{}.{base}", random(1000)),
            6 => base[1..].to_owned(),
            7 => format!("192.0.2.{}", random(256)),
            _ => base.to_owned(),
        };
        let said: Vec<_> = (0..300)
            .filter_map(|round| {
                let name = spell(listed[round % listed.len()]);
                Some((hello(&name)?, name))
            })
            .collect();
        let (mut shown, mut refused) = (0, 0);
        for round in 0..100_000 {
            let asked = spell(listed[round % listed.len()]);
            let Some(to) = crate::origin::Destination::parse(&asked, Some(443)) else { continue };
            let (hello, name) = &said[(round * 7) % said.len()];
            let Some(config) = leaves.of(&to.host) else {
                assert!(!listed.contains(&&*asked.to_ascii_lowercase()), "{asked}");
                refused += 1;
                continue;
            };
            assert!(listed.contains(&&*asked.to_ascii_lowercase()), "{asked}");
            let mut server = ServerConnection::new(Arc::clone(config)).unwrap();
            server.read_tls(&mut &hello[..]).unwrap();
            let is_shown = server.process_new_packets().is_ok();
            assert_eq!(is_shown, asked.eq_ignore_ascii_case(name), "{asked} and {name}");
            if is_shown { shown += 1 } else { refused += 1 }
        }
        assert!(shown > 1000 && refused > 50_000, "{shown} shown, {refused} refused");
    }

    #[test]
    fn a_host_that_the_authority_was_not_made_for_keeps_the_policy_out() {
        let dir = tempfile::tempdir().unwrap();
        let told = |by: &Interception, text: &str| {
            by.leaves(&policy(dir.path(), text)).map(drop).map_err(|problems| problems.to_string())
        };
        let by = Interception::By(Box::new(authority(dir.path(), &["matrix.org"])));
        assert_eq!(told(&by, &wants(&["matrix.org"])), Ok(()));
        for host in ["sub.matrix.org", "other.test"] {
            let told = told(&by, &wants(&[host])).unwrap_err();
            assert!(told.contains(&format!("policy.toml:2:1: the authority was not made for {host}")), "{told}");
            assert!(told.contains("restart Synapse"), "{told}");
        }
        let told = |by: &Interception| by.leaves(&policy(dir.path(), &wants(&["matrix.org"]))).map(drop);
        let without = told(&Interception::Unable).unwrap_err().to_string();
        assert!(without.contains("there is no authority") && without.contains("mantlet ca init"), "{without}");
        assert!(told(&Interception::Needless).is_ok());
    }

    #[test]
    fn leaves_live_for_seven_days_at_most_and_are_due_at_half_their_life() {
        let dir = tempfile::tempdir().unwrap();
        let by = Interception::By(Box::new(authority(dir.path(), &["matrix.org"])));
        let leaves = by.leaves(&policy(dir.path(), &wants(&["matrix.org"]))).unwrap();
        let day = Duration::from_secs(24 * 3600);
        let now = SystemTime::now();
        let ends = leaves.not_after().unwrap();
        assert!(ends <= now + 7 * day && ends > now + 6 * day);
        assert!(!leaves.are_due(now) && !leaves.are_due(now + 3 * day) && leaves.are_due(now + 4 * day));
        assert!(!Leaves::default().are_due(now + 400 * day) && !Leaves::default().are_due(now - 400 * day));
        for ends in [now, now - day] {
            let dead = Leaves { made: Some(now), not_after: Some(ends), ..leaves.clone() };
            assert!(!dead.are_due(now + day), "nothing better can be made");
        }
    }

    #[test]
    fn leaves_that_a_clock_ahead_has_made_are_due_once_it_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let by = Interception::By(Box::new(authority(dir.path(), &["matrix.org"])));
        let leaves = by.leaves(&policy(dir.path(), &wants(&["matrix.org"]))).unwrap();
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        for back in [hour, 24 * hour, 400 * 24 * hour] {
            assert!(leaves.are_due(now - back), "{back:?}");
        }
        // Also where the authority had ended by that clock.
        let dead = Leaves { made: Some(now), not_after: Some(now - hour), ..leaves };
        assert!(dead.are_due(now - hour));
    }
}
