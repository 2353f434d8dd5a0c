//! What `explain` says of the proxy door: which way it leads to a host, and where it does not.

use http::uri::Scheme;

use super::Refused;
use crate::config::gateway::{Door, Gateway};
use crate::policy::egress::{Way, is_reserved};
use crate::policy::plan::Edit;
use crate::policy::selftest::{Finding, Probe};
use crate::problem::Location;
use crate::stack::forward::{self, Terms};

/// What is answered where the proxy door is asked for a port that it does not lead to; of several, each of them.
pub(super) fn closed_port(probe: &Probe, finding: &Finding, gateway: &Gateway) -> Option<Refused> {
    let host = probe.destination.as_ref().filter(|_| finding.way.is_some())?;
    let port = probe.target.port_u16().unwrap_or(if is_clear(probe) { 80 } else { 443 });
    let doors = gateway.listeners.iter().filter(|listener| listener.door == Door::Proxy);
    let ports = doors.filter_map(|door| Some(door.proxy.as_ref()?.ports.clone()));
    let refusals = ports.map(|ports| Terms { credentials: None, ports }.leads_to(host, port).err());
    let refusal = refusals.reduce(Option::and).flatten()?;
    Some(Refused { by: forward::NAME, answer: refusal.answer() })
}

/// Which way the proxy door leads: in words, in a word, and by which line.
pub(super) fn way<'a>(
    probe: &Probe,
    finding: &'a Finding,
) -> Option<(&'static str, &'static str, Option<&'a Location>)> {
    let (way, location) = finding.way.as_ref()?;
    let (words, word) = match way {
        _ if probe.destination.as_ref().is_some_and(is_reserved) => {
            ("answered here, whatever the policy says", "answer")
        }
        Way::Deny => ("denied", way.as_str()),
        Way::Tunnel | Way::Intercept if is_clear(probe) => {
            return Some(("in the clear, so rules read it", "clear", None));
        }
        Way::Tunnel => ("tunnel, in which nothing is read or changed", way.as_str()),
        Way::Intercept => ("looked into, so rules read what is asked inside", way.as_str()),
    };
    Some((words, word, location.as_ref()))
}

/// The edits that may be made to these fields: to those of a tunnel none.
pub(super) fn of_head<'a>(finding: &Finding, edits: &'a [Edit]) -> &'a [Edit] {
    if finding.is_tunnel { &[] } else { edits }
}

fn is_clear(probe: &Probe) -> bool {
    probe.target.scheme() == Some(&Scheme::HTTP)
}
