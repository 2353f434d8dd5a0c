//! Puts a new policy in force: read, compile, run its own tests, swap. Any problem keeps the old one and is told.
//!
//! The authority for hosts that are looked into is read again with it, as one. So are certificates and secrets, and none of these
//! waits for the others to be good.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::config::compiled::Compiled;
use crate::config::gateway::{Gateway, Listener, PolicySource};
use crate::config::notary_key::NotaryKeyFile;
use crate::config::secret::Secret;
use crate::observe::metrics::{Metrics, Reload};
use crate::origin::NextHop;
use crate::policy::Policy;
use crate::problem::{Problem, Problems};
use crate::server::certificates::{Certificates, tell_authority};
use crate::server::secrets::{Renewed, Secrets};
use crate::snapshot::{Generation, Snapshot};
use crate::tls::leaves::Interception;

/// Loads the policy, the certificates and the secrets, at start and whenever it is asked to.
pub struct Reloader {
    source: PolicySource,
    /// What the gateway file said at start.
    gateway: Gateway,
    /// Where that is.
    file: Option<PathBuf>,
    snapshot: Snapshot,
    metrics: Arc<Metrics>,
    certificates: Certificates,
    secrets: Secrets,
    loaded: Mutex<Loaded>,
}

/// What is in force, and what it was made of.
struct Loaded {
    number: u64,
    digest: String,
    text: String,
    files: Vec<PathBuf>,
    interception: Interception,
}

/// What came of a reload.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Reloaded {
    /// The generation in force.
    pub generation: u64,
    /// What happened, in a sentence.
    pub message: String,
    /// What changed in the gateway file and waits for a restart.
    pub needs_restart: Vec<String>,
}

/// What keeps something old in force, after a reload.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Refused {
    /// The generation in force.
    pub generation: u64,
    /// What stays as it was and what does not, in a sentence.
    pub message: String,
    /// All that is wrong.
    pub problems: Problems,
}

/// Who asked for a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// SIGHUP.
    Signal,
    /// `mantlet reload`.
    Command,
    /// A file changed.
    Change,
}

impl Reloader {
    /// Loads the first generation.
    ///
    /// # Errors
    /// All that is wrong with the policy, the certificates and the secrets.
    pub fn start(
        gateway: &Gateway,
        file: Option<PathBuf>,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Snapshot), Problems> {
        let read = (
            Compiled::load(&gateway.policy),
            Certificates::read(&gateway.listeners, &metrics),
            Interception::read(gateway),
            Secrets::read(gateway),
        );
        let (compiled, certificates, interception, secrets) = match read {
            (Ok(compiled), Ok(certificates), Ok(interception), Ok(secrets)) => {
                (compiled, certificates, interception, secrets)
            }
            (compiled, certificates, interception, secrets) => {
                let found = compiled.err().into_iter().chain(certificates.err());
                let found = found.chain(interception.err()).chain(secrets.err());
                return Err(Problems(found.flat_map(|problems| problems.0).collect()));
            }
        };
        let policy = possible(&interception, &compiled.policy);
        let leaves = interception.leaves(&policy)?;
        let snapshot = Snapshot::new(Generation::new(1, policy, leaves, &metrics));
        tell_authority(&metrics, &interception, SystemTime::now());
        metrics.policy_reload(Reload::Success);
        metrics.policy_generation.set(1);
        tracing::info!(policy = compiled.policy.name(), digest = compiled.policy.digest(), "the policy is in force");
        let reloader = Self {
            source: gateway.policy.clone(),
            gateway: gateway.clone(),
            file,
            snapshot: snapshot.clone(),
            metrics,
            certificates,
            secrets,
            loaded: Mutex::new(Loaded::of(1, &compiled, interception, gateway)),
        };
        Ok((reloader, snapshot))
    }

    /// Reads the policy, the certificates and the secrets again; what is good is in force then, whatever the others are.
    ///
    /// # Errors
    /// All that is wrong with any of them, and what became of the others.
    pub fn reload(&self, trigger: Trigger) -> Result<Reloaded, Refused> {
        let policy = self.reload_policy(trigger);
        let certificates = self.reload_certificates(trigger);
        let secrets = self.reload_secrets(trigger);
        let is_refused = [policy.is_err(), certificates.is_err(), secrets.is_err()];
        let what = ["the new policy", "a new certificate", "a new secret"].into_iter().zip(is_refused);
        let refused: Vec<_> = what.filter_map(|(what, is_refused)| is_refused.then_some(what)).collect();
        let new = renewed(*certificates.as_ref().unwrap_or(&0)) + &secrets.as_ref().copied().unwrap_or_default().told();
        let mut problems = Problems::default();
        problems.0.extend([certificates.err(), secrets.err()].into_iter().flatten().flat_map(|found| found.0));
        let message = match (refused.as_slice(), &policy) {
            ([], Ok(_)) => String::new(),
            ([one], Err(_)) => format!("{one} is refused, the old one stays"),
            ([one], Ok(reloaded)) => format!("{}; {one} is refused, the old one stays", reloaded.message),
            (several, Err(_)) => format!("{} are refused, the old ones stay", several.join(" and ")),
            (several, Ok(reloaded)) => {
                format!("{}; {} are refused, the old ones stay", reloaded.message, several.join(" and "))
            }
        };
        match policy {
            Ok(mut reloaded) if problems.is_empty() => {
                reloaded.message += &new;
                return Ok(reloaded);
            }
            Ok(_) => {}
            Err(found) => problems.0.splice(0..0, found.0).for_each(drop),
        }
        Err(Refused { generation: self.current().number, message: message + &new, problems })
    }

    /// Reads the certificates again; each listener shows what is good of its own. Gives how many show something new.
    ///
    /// # Errors
    /// All that is wrong with them; a listener with bad ones shows what it showed before.
    pub fn reload_certificates(&self, trigger: Trigger) -> Result<usize, Problems> {
        // One at a time, as below.
        let _loaded = self.lock();
        let result = self.certificates.reload();
        for problem in result.as_ref().err().iter().flat_map(|found| &found.0) {
            tracing::error!(?trigger, %problem, "a new certificate is refused, the old one stays");
        }
        result
    }

    /// Reads the secrets again: those of doors, of the next hop, and the notary key. Each that is good is in force then.
    ///
    /// # Errors
    /// All that is wrong with them; a bad one leaves what it was before.
    pub fn reload_secrets(&self, trigger: Trigger) -> Result<Renewed, Problems> {
        // One at a time, as below.
        let _loaded = self.lock();
        let result = self.secrets.reload();
        for problem in result.as_ref().err().iter().flat_map(|found| &found.0) {
            tracing::error!(?trigger, %problem, "a new secret is refused, the old one stays");
        }
        result
    }

    /// Reads the policy again and puts it in force.
    ///
    /// # Errors
    /// All that is wrong with it; the old one stays in force then.
    pub fn reload_policy(&self, trigger: Trigger) -> Result<Reloaded, Problems> {
        // One at a time: two that cross would put an older file over a newer one.
        let mut loaded = self.lock();
        let result = self.load(&mut loaded);
        match &result {
            Ok(reloaded) => {
                self.metrics.policy_reload(Reload::Success);
                tracing::info!(
                    ?trigger,
                    generation = reloaded.generation,
                    outcome = reloaded.message,
                    "policy reloaded"
                );
                for key in &reloaded.needs_restart {
                    tracing::warn!(key, "this changed in the gateway file and waits for a restart");
                }
            }
            Err(problems) => {
                self.metrics.policy_reload(Reload::Failure);
                for problem in &problems.0 {
                    tracing::error!(?trigger, generation = loaded.number, %problem, "the new policy is refused, the old one stays");
                }
            }
        }
        result
    }

    /// Makes the certificates anew that are shown in the place of hosts that are looked into, if they have lived half their life, or
    /// the clock went back.
    pub fn renew_leaves(&self, now: SystemTime) {
        // One at a time, as above.
        let loaded = self.lock();
        let current = self.snapshot.load();
        if !current.leaves.are_due(now) {
            return;
        }
        match loaded.interception.leaves(&current.policy) {
            Ok(leaves) => {
                let renewed = Generation::new(current.number, Arc::clone(&current.policy), leaves, &self.metrics);
                self.snapshot.store(renewed);
                tell_authority(&self.metrics, &loaded.interception, now);
            }
            Err(problems) => {
                for problem in &problems.0 {
                    tracing::error!(%problem, "a certificate for a host that is looked into cannot be made anew");
                }
            }
        }
    }

    /// The generation in force.
    pub fn current(&self) -> Arc<Generation> {
        self.snapshot.load()
    }

    /// The files that the policy in force was read from, and those of the authority.
    pub fn policy_files(&self) -> Vec<PathBuf> {
        self.lock().files.clone()
    }

    /// The files that the certificates and the secrets were read from.
    pub fn certificate_files(&self) -> Vec<PathBuf> {
        self.certificates.files().into_iter().chain(self.secrets.files()).collect()
    }

    /// What a door wants to be shown.
    pub(super) fn secret(&self, listener: &Listener) -> Option<Secret> {
        self.secrets.of(listener)
    }

    /// The proxy through which others are reached.
    pub(super) fn next_hop(&self) -> Option<NextHop> {
        self.secrets.next_hop()
    }

    /// The key that is signed with.
    pub(super) fn notary_key(&self) -> Option<NotaryKeyFile> {
        self.secrets.notary_key()
    }

    /// What the listeners show.
    pub(super) fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    fn load(&self, loaded: &mut Loaded) -> Result<Reloaded, Problems> {
        let needs_restart = self.needs_restart()?;
        let compiled = Compiled::load(&self.source)?;
        if is_cut(&loaded.text, &compiled.text) {
            let name = compiled.policy.name().to_owned();
            let what = format!("{name}: the file ends where the policy in force goes on: it looks half-written");
            let help = "write a new file and rename it over the old one; to really shorten it, change a line above the cut too";
            return Err(Problem::new(what).help(help).into());
        }
        let interception = Interception::read(&self.gateway)?;
        let is_other = compiled.policy.digest() != loaded.digest;
        let number = loaded.number + u64::from(is_other);
        let mut message = match is_other {
            true => format!("{} is in force", compiled.policy.name()),
            false => "the policy is unchanged".to_owned(),
        };
        let is_new = interception != loaded.interception;
        if is_new {
            message += "; the authority is new, and Synapse has to believe it";
        }
        if is_new {
            tell_authority(&self.metrics, &interception, SystemTime::now());
        }
        if is_other || is_new {
            let policy = possible(&interception, &compiled.policy);
            let leaves = interception.leaves(&policy)?;
            self.snapshot.store(Generation::new(number, policy, leaves, &self.metrics));
            self.metrics.policy_generation.set(i64::try_from(number).unwrap_or(i64::MAX));
        }
        *loaded = Loaded::of(number, &compiled, interception, &self.gateway);
        Ok(Reloaded { generation: number, message, needs_restart })
    }

    fn needs_restart(&self) -> Result<Vec<String>, Problems> {
        let Some(file) = &self.file else { return Ok(Vec::new()) };
        Ok(self.gateway.difference(&Gateway::load_alone(file)?))
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        // It is changed as a whole, last of all.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loaded {
    fn of(number: u64, compiled: &Compiled, interception: Interception, gateway: &Gateway) -> Self {
        let (digest, text) = (compiled.policy.digest().to_owned(), compiled.text.clone());
        let mut files = compiled.files.clone();
        files.extend(gateway.egress.ca.iter().flat_map(|ca| [ca.certificate.clone(), ca.key.clone()]));
        Self { number, digest, text, files, interception }
    }
}

/// The policy as it can be in force here, and a word in the log if that is less than it says.
fn possible(interception: &Interception, policy: &Arc<Policy>) -> Arc<Policy> {
    let possible = interception.possible(policy);
    if !Arc::ptr_eq(&possible, policy) {
        let hosts = policy.egress().half_open().count();
        tracing::warn!(
            hosts,
            "there is no authority, so hosts that the policy would look into are not: `mantlet check` names them"
        );
    }
    possible
}

fn renewed(listeners: usize) -> String {
    match listeners {
        0 => String::new(),
        1 => "; 1 listener shows new certificates".to_owned(),
        more => format!("; {more} listeners show new certificates"),
    }
}

/// Whether a text is the beginning of another: what a reader finds while a writer writes the same file anew.
fn is_cut(whole: &str, text: &str) -> bool {
    text.len() < whole.len() && whole.starts_with(text)
}
