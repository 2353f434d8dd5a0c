//! The proxy door: whether all else that Synapse asks passes it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::Surroundings;
use super::file::Homeserver;
use super::finding::Report;
use super::hosts::{self, Named};
use super::place::{self, Far, Is, Url};
use super::settings::word;
use super::yaml::Node;
use crate::config::address::ListenerAddress;
use crate::config::gateway::{Door, Listener};
use crate::config::secret::Secret;
use crate::matrix::Flow;
use crate::policy::Decision;
use crate::policy::selftest::{self, Probe};
use crate::problem::Location;

/// Looks at `https_proxy`, `http_proxy` and `no_proxy_hosts`, and at who is then asked how.
pub(super) fn examine(homeserver: &Homeserver, around: &Surroundings<'_>, report: &mut Report) {
    let doors = around.proxy_doors();
    if doors.is_empty() {
        let what = "the gateway has no proxy door: what Synapse asks push gateways, identity servers and link previews \
                    passes unseen";
        report.note(None, what, "[[listener]] door = \"proxy\", see docs/egress.md");
    } else {
        for key in ["https_proxy", "http_proxy"] {
            setting(homeserver, &doors, key, report);
        }
        belief(homeserver, around, &doors, report);
        past(homeserver, report);
        addresses(homeserver, report);
    }
    statistics(homeserver, around, report);
    captcha(homeserver, around, report);
    delegates(homeserver, around, report);
}

/// Looks at one of both settings.
fn setting(homeserver: &Homeserver, doors: &[&Listener], name: &str, report: &mut Report) {
    let help = format!("{name}: {}", doors.first().map(|door| url_of(door)).unwrap_or_default());
    let Some((key, value)) = homeserver.entry(name) else {
        let what = format!(
            "{} sets no `{name}`: what Synapse asks others goes past Mantlet, unless its environment sets one, which \
             cannot be seen from here",
            homeserver.name()
        );
        return report.finding(None, what, help);
    };
    let at = &key.location;
    let Some(text) = value.as_str().filter(|text| !text.is_empty()) else {
        let what = match value.is_null() || value.as_str().is_some() {
            true => format!("`{name}` says that there is no proxy, whatever the environment says"),
            false => format!("`{name}` is {}, and has to be a string: Synapse does not start", value.kind()),
        };
        return report.finding(at, what, help);
    };
    let url = match Url::of_proxy(text) {
        Ok(url) => url,
        Err(why) => return report.finding(at, format!("`{name}` {why}"), help),
    };
    let (is, door) = place::first(doors, |door| place::tcp(door, &url.host, url.port));
    match (is, door) {
        (Is::Door, Some(door)) => {
            if url.scheme != "http" {
                let what = format!("`{name}` wants TLS of the proxy, and a proxy door speaks none");
                report.finding(at, what, help.clone());
            }
            if place::parsed(&url.host).is_some_and(|address| address.is_unspecified()) {
                let what = format!(
                    "`{name}` leads to {}, which is whatever machine Synapse is on: to Mantlet only if that is there, too",
                    url.place()
                );
                report.note(at, what, help);
            }
            credentials(door, &url, name, at, report);
        }
        (Is::Unknown, _) => {
            let what = format!("whether {} is a proxy door cannot be seen from here", url.place());
            report.note(at, what, "");
        }
        (Is::Door | Is::Elsewhere, _) => {
            let what = format!("`{name}` leads to {}, where no proxy door is", url.place());
            report.finding(at, what, help);
        }
    }
}

/// Whether Synapse believes the authority stands in its environment alone.
fn belief(homeserver: &Homeserver, around: &Surroundings<'_>, doors: &[&Listener], report: &mut Report) {
    let Some((key, value)) = homeserver.entry("https_proxy") else { return };
    let url = value.as_str().and_then(|text| Url::of_proxy(text).ok());
    let leads_here =
        url.is_some_and(|url| place::first(doors, |door| place::tcp(door, &url.host, url.port)).0 == Is::Door);
    if around.gateway.egress.ca.is_some() && leads_here {
        let what = "whether Synapse's environment has it believe Mantlet's authority cannot be seen from here: where it does \
                    not, no account that has an address can be deactivated, and all fails that it asks hosts which are looked into";
        report.note(
            &key.location,
            what,
            "SSL_CERT_FILE in its unit: the file that `mantlet ca synapse --bundle` writes",
        );
    }
}

/// Whether Synapse shows what the door wants. Neither is ever told.
fn credentials(door: &Listener, url: &Url, name: &str, at: &Location, report: &mut Report) {
    let Some(file) = door.proxy.as_ref().and_then(|proxy| proxy.credentials_file.as_deref()) else { return };
    // One that cannot be read was told of with the gateway file.
    let Ok(wanted) = Secret::read_credentials(file) else { return };
    let shown = url.credentials.as_ref().map(|pair| BASE64_STANDARD.encode(pair));
    let help =
        format!("{name}: http://USER:PASSWORD@{}, as in {}; Synapse decodes no %40", url.place(), file.display());
    match shown {
        None => {
            report.finding(at, format!("the proxy door {} wants credentials, and `{name}` has none", door.name), help)
        }
        Some(shown) if !wanted.is(shown.as_bytes()) => {
            report.finding(at, format!("these are not the credentials of the proxy door {}", door.name), help);
        }
        Some(_) => {}
    }
}

/// What a proxy door is called in `https_proxy`.
pub(super) fn url_of(door: &Listener) -> String {
    let credentials = match door.proxy.as_ref().and_then(|proxy| proxy.credentials_file.as_ref()) {
        Some(_) => "USER:PASSWORD@",
        None => "",
    };
    match &door.bind {
        // Where Synapse is on another machine, that is none of ours.
        ListenerAddress::Tcp(address) if address.ip().is_unspecified() => {
            format!("http://{credentials}ADDRESS:{}", address.port())
        }
        ListenerAddress::Tcp(address) => format!("http://{credentials}{address}"),
        ListenerAddress::Unix(_) | ListenerAddress::Systemd(_) => format!("http://{credentials}ADDRESS:PORT"),
    }
}

/// What is not asked through the proxy.
fn past(homeserver: &Homeserver, report: &mut Report) {
    let Some((key, value)) = homeserver.entry("no_proxy_hosts").filter(|(_, value)| !value.is_null()) else {
        let what = format!(
            "{} sets no `no_proxy_hosts`: the environment's `no_proxy` counts, which cannot be seen from here",
            homeserver.name()
        );
        return report.note(None, what, "no_proxy_hosts: []");
    };
    let Some(hosts) = value.as_list() else {
        let what = format!("`no_proxy_hosts` is {}, and has to be a list: Synapse does not start", value.kind());
        return report.finding(&key.location, what, "no_proxy_hosts: [localhost, 127.0.0.1]");
    };
    let named: Vec<_> =
        hosts::named(homeserver).iter().filter(|named| named.may_go_past()).filter_map(Named::host).collect();
    for node in hosts {
        let at = &node.location;
        let Some(host) = node.as_str().map(str::trim) else {
            let what = format!("`no_proxy_hosts` names what is {}, not a string: Synapse does not start", node.kind());
            report.finding(at, what, "put it into quotes");
            continue;
        };
        if host.contains('/') {
            let what = format!(
                "{host} in `no_proxy_hosts` does nothing: Synapse compares names and single addresses, not networks"
            );
            report.note(at, what, "name each host");
        } else if host == EVERYBODY && hosts.len() == 1 {
            let what = "`*` in `no_proxy_hosts` is everybody: nothing passes the proxy door";
            report.finding(at, what, "no_proxy_hosts: [localhost, 127.0.0.1]");
        } else if host == EVERYBODY {
            let what = "`*` in `no_proxy_hosts` does nothing beside others: alone it would be everybody";
            report.note(at, what, "take it out");
        } else if Far::of(host) != Far::Here && !named.iter().any(|named| is_itself(host, named)) {
            let what = format!("{host}, and all names that end so, are asked past Mantlet");
            let help = match named.iter().find(|named| is_bypassed(host, named)) {
                Some(meant) => format!("name the one that is meant: no_proxy_hosts: [{}]", word(meant)),
                None => "take it out of `no_proxy_hosts`, and allow it: [egress.addresses] allow".to_owned(),
            };
            report.finding(at, what, help);
        }
    }
}

/// Whether an entry of `no_proxy_hosts` is this host, and not the end of many names.
fn is_itself(entry: &str, host: &str) -> bool {
    entry.trim_start_matches('.').eq_ignore_ascii_case(host)
}

/// Whether Synapse asks this host past its proxy.
pub(super) fn goes_past(homeserver: &Homeserver, host: &str) -> bool {
    let entries = homeserver.get("no_proxy_hosts").and_then(Node::as_list).unwrap_or_default();
    match entries {
        [entry] if entry.as_str() == Some(EVERYBODY) => true,
        entries => entries.iter().filter_map(Node::as_str).any(|entry| is_bypassed(entry, host)),
    }
}

/// Whether an entry of `no_proxy_hosts` that stands beside others is for this host (Python's `proxy_bypass_environment`).
pub(super) fn is_bypassed(entry: &str, host: &str) -> bool {
    let (entry, host) = (entry.trim().trim_start_matches('.').to_ascii_lowercase(), host.to_ascii_lowercase());
    host == entry || host.strip_suffix(&*entry).is_some_and(|rest| rest.ends_with('.'))
}

fn statistics(homeserver: &Homeserver, around: &Surroundings<'_>, report: &mut Report) {
    let Some((key, _)) = homeserver.entry("report_stats").filter(|(_, value)| value.is_true()) else { return };
    let endpoint = homeserver.get("report_stats_endpoint").and_then(Node::as_str).unwrap_or(STATISTICS);
    let is_answered = match around.judged("PUT", endpoint, "{}").map(|found| found.verdict.decision) {
        Some(Decision::Answer(_) | Decision::Deny(_)) => true,
        Some(Decision::Permit(_) | Decision::Fail(_)) | None => false,
    };
    if !is_answered {
        let host = host_of(endpoint);
        let what = format!("statistics about your users are sent to {host}, where nobody answers them here");
        report.finding(&key.location, what, "report_stats: false");
    }
}

/// Whoever says whether a captcha was solved is told the address of its user, unless that is taken out on the way.
fn captcha(homeserver: &Homeserver, around: &Surroundings<'_>, report: &mut Report) {
    let Some((key, _)) = homeserver.entry("enable_registration_captcha").filter(|(_, value)| value.is_true()) else {
        return;
    };
    let maker = homeserver.get("recaptcha_siteverify_api").and_then(Node::as_str).unwrap_or(CAPTCHA);
    let host = host_of(maker);
    let judged = around.judged("POST", maker, "remoteip=192.0.2.7");
    if let Some(Decision::Deny(_)) = judged.as_ref().map(|found| &found.verdict.decision) {
        let what =
            format!("the policy leaves no way to {host}, which says whether a captcha was solved: nobody can register");
        let help = format!("[[egress.destination]] host = \"{host}\", action = \"intercept\"");
        return report.finding(&key.location, what, help);
    }
    if judged.and_then(|found| found.body).is_none_or(|body| !body.is_empty()) {
        let what = format!("{host} is told the address of each user who solves a captcha, which nobody takes out here");
        let help = format!(
            "[rules.captcha] and [[egress.destination]] host = \"{host}\", action = \"intercept\" in the policy, behind a \
             proxy door with an authority"
        );
        report.finding(&key.location, what, help);
    }
}

fn host_of(url: &str) -> String {
    Url::parse(url, None).map(|url| url.host).unwrap_or_default()
}

fn delegates(homeserver: &Homeserver, around: &Surroundings<'_>, report: &mut Report) {
    let delegates = homeserver.get("account_threepid_delegates").and_then(Node::as_map);
    if let Some((key, _)) = delegates.and_then(|map| map.entry("email")) {
        let what = "`account_threepid_delegates.email` is no setting any more: Synapse does not start";
        report.finding(&key.location, what, "take it out: Synapse sends these mails by itself");
    }
    // Who is not reached hears nothing.
    if let Some(named) = hosts::delegate(homeserver).filter(|named| around.hindrances(homeserver, named).is_empty()) {
        let host = named.host().unwrap_or_default();
        report.note(&named.at, format!("{host} hears the phone number of each user who adds one"), "");
    }
    if let Some(node) = homeserver.get("default_identity_server") {
        let host = node.as_str().and_then(|url| Url::parse(url, None)).map(|url| url.host).unwrap_or_default();
        let what = format!("clients are told to use the identity server {host}, which they then ask past everybody");
        report.note(&node.location, what, "");
    }
}

/// Lists of addresses that Synapse looks at only where it connects by itself.
fn addresses(homeserver: &Homeserver, report: &mut Report) {
    if let Some((key, _)) = homeserver.entry("ip_range_whitelist").filter(|(_, value)| value.is_true()) {
        let what = "`ip_range_whitelist` lets Synapse ask networks that Mantlet does not reach: the doors have a list of their own";
        report.note(
            &key.location,
            what,
            "[egress.addresses] allow = […] in the gateway file, if they are meant to be reached",
        );
    }
    if !homeserver.get("url_preview_enabled").is_some_and(Node::is_true) {
        return;
    }
    match homeserver.entry("url_preview_ip_range_blacklist") {
        Some((key, _)) => {
            let what = "`url_preview_ip_range_blacklist` counts for names no longer, behind a proxy: the proxy door looks at \
                        the addresses";
            report.note(&key.location, what, "");
        }
        None => {
            let what = format!(
                "{} sets no `url_preview_ip_range_blacklist`: with link previews and a proxy Synapse does not start",
                homeserver.name()
            );
            report.finding(None, what, "url_preview_ip_range_blacklist: []; the proxy door looks at the addresses");
        }
    }
}

impl Surroundings<'_> {
    /// The doors that are proxies.
    pub(super) fn proxy_doors(&self) -> Vec<&Listener> {
        self.gateway.listeners.iter().filter(|listener| listener.door == Door::Proxy).collect()
    }

    /// What the policy says to what Synapse asks there through the proxy door; nothing without a door.
    fn judged(&self, method: &str, url: &str, body: &str) -> Option<selftest::Finding> {
        let mut probe = Probe::new(method, url).ok().filter(|_| !self.proxy_doors().is_empty())?;
        (probe.flow, probe.body) = (Some(Flow::Egress), Some(body.to_owned().into()));
        Some(probe.judge(self.policy))
    }
}

/// In `no_proxy_hosts`, alone.
const EVERYBODY: &str = "*";
const CAPTCHA: &str = "https://www.recaptcha.net/recaptcha/api/siteverify";
const STATISTICS: &str = "https://matrix.org/report-usage-stats/push";
