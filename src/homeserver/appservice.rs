//! Application services: whether Synapse still reaches them.

use super::Surroundings;
use super::file::{AppService, Homeserver};
use super::finding::Report;
use super::place::{self, Far, Url};
use super::proxy::is_bypassed;
use super::yaml::{Map, Node};
use crate::policy::egress::Way;
use crate::problem::Location;

/// Looks at each registration: behind a proxy door a bridge is reached only if the door may.
pub(super) fn examine(homeserver: &Homeserver, around: &Surroundings<'_>, report: &mut Report) {
    for (node, read) in homeserver.app_services() {
        match read {
            Ok(service) => {
                for (at, url) in urls(&service.entries) {
                    one(homeserver, around, &service, at, url, report);
                }
            }
            Err(problem) => {
                let at = problem.location.clone().unwrap_or_else(|| node.location.clone());
                let help = "run this as a user who may read it, and where it is";
                report.note(&at, format!("an application service was not looked at: {}", problem.what), help);
            }
        }
    }
}

/// The hosts of all application services.
pub(super) fn hosts(homeserver: &Homeserver) -> Vec<String> {
    let services = homeserver.app_services().into_iter().filter_map(|(_, read)| read.ok());
    let hosts = |service: AppService| {
        let urls = urls(&service.entries);
        urls.iter().filter_map(|(_, url)| Some(Url::parse(url, None)?.host)).collect::<Vec<_>>()
    };
    services.flat_map(hosts).collect()
}

/// Where a service is asked, each with its place.
fn urls(entries: &Map) -> Vec<(&Location, &str)> {
    let url = |key| entries.get(key).and_then(|node: &Node| Some((&node.location, node.as_str()?)));
    ["url", "io.element.msc4512.proxy_url"].into_iter().filter_map(url).collect()
}

fn one(
    homeserver: &Homeserver,
    around: &Surroundings<'_>,
    service: &AppService,
    at: &Location,
    url: &str,
    report: &mut Report,
) {
    let doors = around.proxy_doors();
    if doors.is_empty() {
        return;
    }
    let name = &service.name;
    let Some(url) = Url::parse(url, None) else {
        return report.finding(at, format!("the URL of the application service {name} cannot be read"), "");
    };
    let past = homeserver.get("no_proxy_hosts").and_then(Node::as_list).unwrap_or_default();
    if past.iter().any(|node| node.as_str().is_some_and(|entry| is_bypassed(entry, &url.host))) {
        return;
    }
    let place = url.place();
    let or = format!("or no_proxy_hosts: [{}] in homeserver.yaml", url.host);
    if around.way(&url.host) == Some(Way::Deny) {
        let what = format!("the policy leaves no way to the application service at {place}");
        let help = format!("[[egress.destination]] host = \"{}\", action = \"tunnel\"; {or}", url.host);
        return report.finding(at, what, help);
    }
    let is_open = |port| doors.iter().any(|door| door.proxy.as_ref().is_some_and(|door| door.ports.contains(&port)));
    if !is_open(url.port) {
        let what =
            format!("the proxy door does not connect to port {} of the application service at {place}", url.port);
        report.finding(at, what, format!("ports = [443, 8448, 80, {}] at the door; {or}", url.port));
    }
    let guard = around.gateway.egress.guard();
    let is_reached = match (place::parsed(&url.host), Far::of(&url.host)) {
        (Some(address), _) => guard.check(&url.host, address).is_ok(),
        (None, Far::Here) => guard.check(&url.host, std::net::Ipv4Addr::LOCALHOST.into()).is_ok(),
        (None, Far::Inside) => guard.names(&url.host),
        (None, Far::Anywhere) => return,
    };
    if !is_reached {
        let what =
            format!("the application service at {place} has no public address, so the proxy door does not reach it");
        report.finding(at, what, format!("[egress.addresses] allow = [\"{}\"] in the gateway file; {or}", url.host));
    }
}
