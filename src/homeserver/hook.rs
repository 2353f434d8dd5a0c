//! The federation door: whether Synapse asks other servers through it, and nobody past it.

use std::io::ErrorKind;
use std::path::Path;

use super::Surroundings;
use super::file::Homeserver;
use super::finding::Report;
use super::place::{self, Is};
use super::settings;
use super::yaml::{Map, Node};
use crate::config::address::ListenerAddress;
use crate::config::gateway::{Door, Listener};
use crate::config::secret::Secret;
use crate::policy::egress::Way;
use crate::problem::Location;

/// Looks at what Synapse is told of the federation door.
pub(super) fn examine(homeserver: &Homeserver, around: &Surroundings<'_>, report: &mut Report) {
    let doors: Vec<_> = around.gateway.listeners.iter().filter(|listener| listener.door == Door::Federation).collect();
    let Some(first) = doors.first() else {
        return without_a_door(homeserver, around, report);
    };
    let usual = name_of(first);
    let setting = format!("{RESTRICTED}: [{usual}]");
    let Some((key, value)) = homeserver.entry(RESTRICTED).filter(|(_, value)| !value.is_null()) else {
        let what = format!("{} sets no `{RESTRICTED}`: Synapse asks other servers by itself", homeserver.name());
        return report.finding(None, what, format!("{setting}, as `mantlet ca synapse` prints it"));
    };
    let at = &key.location;
    let Some(names) = value.as_list() else {
        let what = format!("`{RESTRICTED}` is {}, and has to be a list: Synapse does not start", value.kind());
        return report.finding(at, what, setting);
    };
    if names.is_empty() {
        let what = format!("`{RESTRICTED}` is empty: Synapse asks no other server at all");
        return report.finding(at, what, setting);
    }
    let mut used = Vec::new();
    for node in names {
        match node.as_str() {
            Some(name) => used.extend(instance(homeserver, &doors, name, &node.location, &usual, report)),
            None => {
                let what = format!("`{RESTRICTED}` names what is {}, not a string", node.kind());
                report.finding(&node.location, what, setting.clone());
            }
        }
    }
    secret(homeserver, &used, &doors, at, report);
}

/// What a door is called where Synapse knows it: its name, if that can be one.
pub(super) fn name_of(door: &Listener) -> String {
    let is_word = door.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let is_free = !["main", "master"].contains(&door.name.as_str());
    if is_word && is_free { door.name.clone() } else { "mantlet".to_owned() }
}

fn without_a_door(homeserver: &Homeserver, around: &Surroundings<'_>, report: &mut Report) {
    if homeserver.get("federation_domain_whitelist").is_some_and(|list| !list.is_true()) {
        return;
    }
    let mut help = "[[listener]] door = \"federation\", see docs/egress.md".to_owned();
    let is_seen = !around.proxy_doors().is_empty();
    let what = if !is_seen {
        "what Synapse asks other servers passes unseen"
    } else if around.policy.egress().default.way == Way::Deny {
        help += "; or [egress] default = \"tunnel\" in the policy";
        "federation is refused: without a door of its own it goes through the proxy door, where the policy lets out to no \
         server that it does not list"
    } else {
        "federation goes through the proxy door: as tunnels, which are not read, and Synapse asks the DNS for the service \
         records of other servers by itself"
    };
    match homeserver.entry(RESTRICTED).filter(|(_, value)| value.is_true()) {
        Some((key, _)) => {
            let what = format!(
                "whether a door of another gateway stands here cannot be seen, for this one has no federation door; where \
                 these are workers, {what}"
            );
            report.note(&key.location, what, help);
        }
        None if is_seen => report.finding(None, what, help),
        None => report.note(None, format!("the gateway has no federation door: {what}"), help),
    }
}

/// Looks at one name of the list; gives the door that it is.
fn instance<'a>(
    homeserver: &Homeserver,
    doors: &[&'a Listener],
    name: &str,
    at: &Location,
    usual: &str,
    report: &mut Report,
) -> Option<&'a Listener> {
    let shown = quoted(name);
    match name {
        "master" => {
            let what =
                "Synapse takes the name \"master\" for itself: it asks other servers past Mantlet, without a word";
            report.finding(at, what, format!("another name, here and in `instance_map`: {usual}"));
            return None;
        }
        "main" => {
            let what = "\"main\" is Synapse's name for its own first process: workers would take the door for it";
            report.finding(at, what, format!("another name, here and in `instance_map`: {usual}"));
        }
        _ => {}
    }
    reused(homeserver, name, usual, report);
    let map = homeserver.get("instance_map").and_then(Node::as_map);
    let Some((_, location)) = map.and_then(|map| map.entry(name)) else {
        let what = format!("{shown} is not in `instance_map`: Synapse does not start");
        report.finding(at, what, format!("instance_map: {{{name}: {{{}}}}}", location_of(doors.first()?)));
        return None;
    };
    let at = &location.location;
    let Some(entry) = location.as_map() else {
        let what = format!("`instance_map` says of {shown} what is {}, not a map", location.kind());
        report.finding(at, what, location_of(doors.first()?));
        return None;
    };
    let text = |key: &str| entry.get(key).and_then(Node::as_str);
    let port = entry.get("port").and_then(Node::as_port);
    let (is, door, shown_place) = match (text("path"), text("host"), port) {
        (Some(path), _, _) => {
            let (is, door) = place::first(doors, |door| place::unix(door, Path::new(path)));
            (is, door, path.to_owned())
        }
        (None, Some(host), Some(port)) => {
            let (is, door) = place::first(doors, |door| place::tcp(door, host, port));
            (is, door, format!("{host}:{port}"))
        }
        (None, _, _) => {
            report.finding(at, format!("`instance_map` does not say where {shown} is"), location_of(doors.first()?));
            return None;
        }
    };
    match is {
        Is::Door => tls(entry, door?, at, report),
        Is::Elsewhere => {
            let what = format!("{shown} is at {shown_place}, where no federation door is");
            report.finding(at, what, location_of(doors.first()?));
        }
        Is::Unknown => {
            report.note(at, format!("whether {shown_place} is a federation door cannot be seen from here"), "");
        }
    }
    door
}

/// Both have to speak TLS, or neither.
fn tls(entry: &Map, door: &Listener, at: &Location, report: &mut Report) {
    let wants = entry.get("tls").is_some_and(Node::is_true);
    if wants == door.tls.is_empty() {
        let (what, help) = match wants {
            true => ("Synapse wants TLS of the federation door, which speaks none", "leave `tls` out"),
            false => ("the federation door speaks TLS, and Synapse does not", "tls: true"),
        };
        report.finding(at, what, help);
    }
}

/// A name that means a worker elsewhere gives the door a worker's duties, which it does not do.
fn reused(homeserver: &Homeserver, name: &str, usual: &str, report: &mut Report) {
    let help = || format!("take {usual} out: the door is named in `instance_map` and `{RESTRICTED}` only");
    for (key, what) in DUTIES {
        let Some((at, value)) = homeserver.entry(key) else { continue };
        let names = value.as_list().map_or_else(|| vec![value], |list| list.iter().collect());
        if names.iter().any(|node| node.as_str() == Some(name)) {
            report.finding(&at.location, format!("{} is a worker in `{key}`: {what}", quoted(name)), help());
        }
    }
    let writers = homeserver.get("stream_writers").and_then(Node::as_map);
    for (stream, value) in writers.into_iter().flat_map(Map::iter) {
        let names = value.as_list().map_or_else(|| vec![value], |list| list.iter().collect());
        if names.iter().any(|node| node.as_str() == Some(name)) {
            let stream_name = stream.as_str().unwrap_or_default();
            let what = format!("{} writes `{stream_name}` in `stream_writers`: that fails", quoted(name));
            report.finding(&stream.location, what, help());
        }
    }
}

/// Whether a name in `instance_map` is that of a door and of no worker: Synapse asks other servers there, and nothing else.
pub(super) fn is_but_a_door(homeserver: &Homeserver, name: &str) -> bool {
    let names = |value: &Node| match value.as_list() {
        Some(list) => list.iter().any(|node| node.as_str() == Some(name)),
        None => value.as_str() == Some(name),
    };
    let has = |key: &str| homeserver.get(key).is_some_and(names);
    let writers = homeserver.get("stream_writers").and_then(Node::as_map);
    let has_duties = DUTIES.iter().any(|(key, _)| has(key))
        || writers.into_iter().flat_map(Map::iter).any(|(_, value)| names(value))
        || ["main", "master"].contains(&name);
    has(RESTRICTED) && !has_duties
}

/// Whether Synapse shows the secret that the door wants. Neither is ever told.
fn secret(homeserver: &Homeserver, used: &[&Listener], doors: &[&Listener], at: &Location, report: &mut Report) {
    let file = |door: &Listener| door.secret_file.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
    let of_the_door = doors.first().map(|door| file(door)).unwrap_or_default();
    let help = format!("worker_replication_secret_path: a copy of {of_the_door} that Synapse may read");
    let inline = homeserver.entry("worker_replication_secret").filter(|(_, value)| value.is_true());
    let path = homeserver.entry("worker_replication_secret_path").filter(|(_, value)| value.is_true());
    let (key, secret) = match (inline, path) {
        (None, None) => {
            let what =
                format!("`{RESTRICTED}` needs a `worker_replication_secret`: without one Synapse does not start");
            return report.finding(at, what, help);
        }
        (Some(_), Some((key, _))) => {
            let what = "`worker_replication_secret` and `worker_replication_secret_path` both stand here: Synapse does not start";
            return report.finding(&key.location, what, help);
        }
        (Some((key, value)), None) => match value.as_str() {
            Some(secret) => (key, secret.to_owned()),
            None => {
                let what = format!("`worker_replication_secret` is {}, not a string", value.kind());
                return report.finding(&key.location, what, help);
            }
        },
        (None, Some((key, value))) => {
            let path = homeserver.file(value.as_str().unwrap_or_default());
            match std::fs::read_to_string(&path) {
                Ok(text) => (key, text.trim().to_owned()),
                Err(_) if value.as_str().is_some_and(settings::is_placeholder) => {
                    let what = "`worker_replication_secret_path` is what was printed in the place of a path: Synapse does not start";
                    return report.finding(&key.location, what, help);
                }
                Err(error) => {
                    let (path, compared) = (path.display(), "so nobody compared the secrets");
                    let (what, help) = match error.kind() {
                        ErrorKind::NotFound => (
                            format!(
                                "{path} does not exist here, {compared}: if this is Synapse's machine, it does not start"
                            ),
                            help,
                        ),
                        ErrorKind::PermissionDenied => (
                            format!("{path} may not be read by this user, {compared}"),
                            "run this as a user who may, or compare them yourself".to_owned(),
                        ),
                        _ => (format!("{path} cannot be read here ({error}), {compared}"), help),
                    };
                    return report.note(&key.location, what, help);
                }
            }
        }
    };
    for door in used {
        // One that cannot be read was told of with the gateway file.
        let Some(Ok(wanted)) = door.secret_file.as_deref().map(Secret::read) else { continue };
        if !wanted.is(secret.as_bytes()) {
            let what =
                format!("this is not the secret of the federation door {}: it would let nothing pass", door.name);
            report.finding(&key.location, what, format!("the same as in {}", file(door)));
        }
    }
}

/// Where a door is, in the words of `instance_map`.
pub(super) fn location_of(door: &Listener) -> String {
    match &door.bind {
        ListenerAddress::Tcp(address) => {
            let tls = if door.tls.is_empty() { "" } else { ", tls: true" };
            format!("host: \"{}\", port: {}{tls}", address.ip(), address.port())
        }
        ListenerAddress::Unix(path) => format!("path: {}", super::settings::word(&path.display().to_string())),
        ListenerAddress::Systemd(_) => "path: THE SOCKET OF THE UNIT".to_owned(),
    }
}

/// A name, as long as it is one: what stands there by mistake may be anything.
fn quoted(name: &str) -> String {
    let is_name = name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if is_name { format!("{name:?}") } else { "a name".to_owned() }
}

pub(super) const RESTRICTED: &str = "outbound_federation_restricted_to";

/// Where workers are named, and what comes of it if the door is.
const DUTIES: [(&str, &str); 6] = [
    ("federation_sender_instances", "Synapse silently sends nothing to other servers"),
    ("pusher_instances", "nobody gets notifications"),
    ("run_background_tasks_on", "background tasks never run"),
    ("notify_appservices_from_worker", "application services hear nothing"),
    ("update_user_directory_from_worker", "the user directory stays as it is"),
    ("media_instance_running_background_jobs", "media jobs never run"),
];
