//! The certificates of all TLS listeners: read at start, and again while they serve.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::config::gateway::Listener;
use crate::observe::metrics::{ListenerMetrics, Metrics, Reload};
use crate::problem::{Problem, Problems};
use crate::tls::ca::End;
use crate::tls::leaves::Interception;
use crate::tls::server::{Credentials, Server as Tls};

/// What each listener shows, and where it was read.
#[derive(Debug, Default)]
pub struct Certificates(Vec<Shown>);

#[derive(Debug)]
struct Shown {
    listener: Listener,
    tls: Tls,
    metrics: ListenerMetrics,
}

impl Certificates {
    /// Reads the certificates of all listeners.
    ///
    /// # Errors
    /// All that is wrong with any of them.
    pub(super) fn read(listeners: &[Listener], metrics: &Metrics) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let mut shown = Vec::new();
        for listener in listeners {
            let made = Credentials::read(listener).and_then(|credentials| {
                let Some(credentials) = credentials else { return Ok(None) };
                let metrics = metrics.listener(&listener.name);
                metrics.certificate_reload(Reload::Success);
                tell_end(&metrics, &credentials);
                Ok(Some(Shown { listener: listener.clone(), tls: Tls::new(credentials)?, metrics }))
            });
            match made {
                Ok(made) => shown.extend(made),
                Err(found) => problems.0.extend(found.0),
            }
        }
        problems.or(Self(shown))
    }

    /// The TLS side of a listener, if it has one.
    pub(super) fn of(&self, listener: &Listener) -> Option<Tls> {
        self.0.iter().find(|shown| shown.listener == *listener).map(|shown| shown.tls.clone())
    }

    /// The files they were read from.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let of = |shown: &Shown| {
            let pairs = shown.listener.tls.iter().flat_map(|files| [files.certificate.clone(), files.key.clone()]);
            pairs.chain(shown.listener.client_ca.clone()).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }

    /// Reads all of them again and shows what is new, each listener for itself: a bad file keeps what its listener showed
    /// before. Gives how many listeners show something new.
    ///
    /// # Errors
    /// All that is wrong with any of them.
    pub(super) fn reload(&self) -> Result<usize, Problems> {
        let mut problems = Problems::default();
        let mut new = 0;
        for shown in &self.0 {
            match shown.reload() {
                Ok(is_new) => {
                    shown.metrics.certificate_reload(Reload::Success);
                    new += usize::from(is_new);
                }
                Err(found) => {
                    shown.metrics.certificate_reload(Reload::Failure);
                    let name = &shown.listener.name;
                    let named =
                        |problem: Problem| Problem { what: format!("listener {name}: {}", problem.what), ..problem };
                    problems.0.extend(found.0.into_iter().map(named));
                }
            }
        }
        problems.or(new)
    }
}

impl Shown {
    fn reload(&self) -> Result<bool, Problems> {
        let Some(credentials) = Credentials::read(&self.listener)? else { return Ok(false) };
        let is_new = self.tls.replace(credentials.clone())?;
        if is_new {
            tell_end(&self.metrics, &credentials);
            tracing::info!(listener = %self.listener.name, "new certificates are shown");
        }
        Ok(is_new)
    }
}

/// Tells when the authority ends by which hosts are looked into, and in the log where that is near, or where it has not begun.
pub(super) fn tell_authority(metrics: &Metrics, interception: &Interception, now: SystemTime) {
    let authority = interception.authority();
    metrics.authority_not_after(authority.map(|stated| stated.not_after));
    if authority.is_some_and(|stated| stated.is_ahead(now)) {
        tracing::error!(
            "the authority begins in the future, and nobody believes it yet: set the clock of this machine; if it is right, make a new \
             one with `mantlet ca init --force`, then restart Synapse with the new bundle"
        );
    }
    match authority.map(|stated| stated.end(now)) {
        None | Some(End::Far) => {}
        Some(End::Soon(days)) => tracing::warn!(
            days,
            "the authority ends soon: make a new one with `mantlet ca init --force`, then restart Synapse with the new bundle"
        ),
        Some(End::Past) => tracing::error!(
            "the authority has ended: what Synapse asks hosts that are looked into fails until it is made anew"
        ),
    }
}

fn tell_end(metrics: &ListenerMetrics, credentials: &Credentials) {
    let Some(not_after) = credentials.not_after() else { return };
    metrics.certificate_not_after(not_after);
    let listener = &**metrics.name();
    match not_after.duration_since(SystemTime::now()) {
        Ok(left) if left > Duration::from_secs(7 * 24 * 3600) => {}
        Ok(left) => tracing::warn!(listener, days = left.as_secs() / 86_400, "the certificate ends soon"),
        Err(_) => tracing::warn!(listener, "the certificate has ended: clients will refuse it"),
    }
}
