//! What Synapse has to be told of the doors, in the words of `homeserver.yaml`.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::file::Homeserver;
use super::place::{self, Far, Is, Url};
use super::yaml::{Map, Node, Value};
use super::{hook, hosts, proxy};
use crate::config::gateway::{Door, Gateway, Listener};
use crate::config::notary_key::NotaryKey;
use crate::config::secret::Secret;

/// The settings for the doors of this gateway: beside what Synapse is told already, where that is known. No secret is in them.
pub fn settings(gateway: &Gateway, homeserver: Option<&Homeserver>) -> String {
    let mut yaml = String::new();
    let of = |door| gateway.listeners.iter().filter(move |listener| listener.door == door).collect::<Vec<_>>();
    let (federation, proxies) = (of(Door::Federation), of(Door::Proxy));
    if !federation.is_empty() {
        hook_lines(&federation, homeserver, &mut yaml);
    }
    if let Some(door) = proxies.first() {
        proxy_lines(door, homeserver, &mut yaml);
    }
    // A key that cannot be read is `check`'s to tell.
    let key = gateway.egress.notary_key.as_deref().and_then(|path| NotaryKey::read(path).ok());
    if let Some(lines) = notary_lines(gateway, key.as_ref()) {
        let _ = writeln!(yaml, "{lines}");
    }
    yaml
}

/// What makes Synapse ask the notary doors; and where there is a key, believe what it signs and nothing else. Without a door of its
/// own the name is nobody's: questions for it never leave.
pub fn notary_lines(gateway: &Gateway, key: Option<&NotaryKey>) -> Option<String> {
    let mut names: Vec<_> =
        gateway.listeners.iter().filter_map(|listener| Some(listener.notary.as_ref()?.server_name.as_str())).collect();
    if key.is_some() && names.is_empty() {
        names.push("notary.invalid");
    }
    let verify_keys = key.map(|key| format!("\n    verify_keys:\n      \"{}\": \"{}\"", key.id(), key.verify_key()));
    let verify_keys = verify_keys.unwrap_or_default();
    let entries: String = names.iter().map(|name| format!("\n  - server_name: \"{name}\"{verify_keys}")).collect();
    (!names.is_empty()).then(|| format!("trusted_key_servers:{entries}"))
}

fn hook_lines(doors: &[&Listener], homeserver: Option<&Homeserver>, yaml: &mut String) {
    let known = homeserver.and_then(|homeserver| homeserver.get("instance_map")?.as_map());
    let others =
        known.into_iter().flat_map(Map::iter).filter(|(_, place)| !doors.iter().any(|door| is_at(door, place)));
    let others = others.filter_map(|(name, place)| Some((name.as_str()?, place)));
    let has_moved = |name: &str, place: &Node| {
        homeserver.is_some_and(|homeserver| hook::is_but_a_door(homeserver, name))
            && place::first(doors, |door| leads_to(door, place)).0 == Is::Elsewhere
    };
    let (moved, others): (Vec<_>, Vec<_>) = others.partition(|(name, place)| has_moved(name, place));
    let mut names = Vec::new();
    for (name, _) in &moved {
        let _ = writeln!(yaml, "# without {}: it is where no federation door is", word(name));
    }
    let _ = writeln!(yaml, "instance_map:");
    for (name, place) in &others {
        let _ = writeln!(yaml, "  {}: {}", word(name), written(place));
    }
    for door in doors {
        let before = known.into_iter().flat_map(Map::iter).find(|(_, place)| is_at(door, place));
        let before = before.and_then(|(name, _)| name.as_str()).filter(|name| !["main", "master"].contains(name));
        let mut name = before.map_or_else(|| hook::name_of(door), str::to_owned);
        while others.iter().any(|(other, _)| *other == name) || names.contains(&name) {
            name.push('_');
        }
        let _ = writeln!(yaml, "  {}: {{{}}}", word(&name), hook::location_of(door));
        names.push(name);
    }
    let names: Vec<_> = names.iter().map(|name| word(name)).collect();
    let _ = writeln!(yaml, "{}: [{}]", hook::RESTRICTED, names.join(", "));
    for door in doors {
        let file = door.secret_file.as_deref().unwrap_or(Path::new("secret_file")).display();
        match homeserver.map(|homeserver| knows_secret(homeserver, door)) {
            Some(Knows::It) => {
                let _ = writeln!(yaml, "# the secret of {} is known already", door.name);
            }
            // Workers have it, too.
            Some(Knows::Another) => {
                let _ = writeln!(yaml, "# another secret stands here: write that one into {file}");
            }
            Some(Knows::None) | None => {
                let _ = writeln!(yaml, "worker_replication_secret_path: {A_COPY_OF}{file}{FOR_SYNAPSE}");
            }
        }
    }
}

/// Whether a path is what is printed above where somebody has to write one.
pub(super) fn is_placeholder(path: &str) -> bool {
    path.starts_with(A_COPY_OF) && path.ends_with(FOR_SYNAPSE)
}

fn proxy_lines(door: &Listener, homeserver: Option<&Homeserver>, yaml: &mut String) {
    for key in ["https_proxy", "http_proxy"] {
        let before = homeserver.and_then(|homeserver| Url::of_proxy(homeserver.get(key)?.as_str()?).ok());
        match before.is_some_and(|url| is_good(door, &url)) {
            true => {
                let _ = writeln!(yaml, "# {key} is good as it is");
            }
            false => {
                let _ = writeln!(yaml, "{key}: {}", proxy::url_of(door));
            }
        }
    }
    let Some(homeserver) = homeserver else {
        let _ = writeln!(yaml, "no_proxy_hosts: [localhost, 127.0.0.1]");
        return;
    };
    let before = homeserver.get("no_proxy_hosts").and_then(Node::as_list).unwrap_or_default();
    let mut hosts: Vec<_> = before.iter().filter_map(|node| node.as_str()).map(str::to_owned).collect();
    // The first is everybody, the second nobody.
    hosts.retain(|host| host != "*" && !host.contains('/'));
    let named = hosts::named(homeserver).into_iter().filter_map(|named| named.host());
    for near in named.filter(|host| Far::of(host) == Far::Here) {
        if !hosts.iter().any(|host| proxy::is_bypassed(host, &near)) {
            hosts.push(near);
        }
    }
    let hosts: Vec<_> = hosts.iter().map(|host| word(host)).collect();
    let _ = writeln!(yaml, "no_proxy_hosts: [{}]", hosts.join(", "));
}

/// Whether an entry of `instance_map` is this door.
fn is_at(door: &Listener, place: &Node) -> bool {
    leads_to(door, place) == Is::Door
}

fn leads_to(door: &Listener, place: &Node) -> Is {
    let Some(map) = place.as_map() else { return Is::Elsewhere };
    let text = |key: &str| map.get(key).and_then(Node::as_str);
    match (text("path"), text("host"), map.get("port").and_then(Node::as_port)) {
        (Some(path), _, _) => place::unix(door, Path::new(path)),
        (None, Some(host), Some(port)) => place::tcp(door, host, port),
        (None, _, _) => Is::Elsewhere,
    }
}

/// Whether a proxy setting is the one for this door.
fn is_good(door: &Listener, url: &Url) -> bool {
    let wanted = door.proxy.as_ref().and_then(|proxy| proxy.credentials_file.as_deref());
    let shown = url.credentials.as_ref().map(|pair| BASE64_STANDARD.encode(pair));
    let is_known = match wanted.map(Secret::read_credentials) {
        None => true,
        Some(Ok(wanted)) => shown.is_some_and(|shown| wanted.is(shown.as_bytes())),
        Some(Err(_)) => false,
    };
    let is_somewhere = !place::parsed(&url.host).is_some_and(|address| address.is_unspecified());
    place::tcp(door, &url.host, url.port) == Is::Door && is_somewhere && url.scheme == "http" && is_known
}

enum Knows {
    It,
    Another,
    None,
}

fn knows_secret(homeserver: &Homeserver, door: &Listener) -> Knows {
    let inline = homeserver.get("worker_replication_secret").and_then(Node::as_str).map(str::to_owned);
    let path = homeserver.get("worker_replication_secret_path").and_then(Node::as_str);
    let read = || std::fs::read_to_string(homeserver.file(path?)).ok().map(|text| text.trim().to_owned());
    let wanted = door.secret_file.as_deref().and_then(|file| Secret::read(file).ok());
    match (inline.or_else(read), wanted) {
        (Some(secret), Some(wanted)) if wanted.is(secret.as_bytes()) => Knows::It,
        (Some(_), Some(_) | None) => Knows::Another,
        (None, _) if path.is_some() => Knows::Another,
        (None, _) => Knows::None,
    }
}

/// The place of another instance, as it was.
fn written(place: &Node) -> String {
    let entry = |key: &str| {
        let value = match &place.as_map()?.get(key)?.value {
            Value::Boolean(boolean) => boolean.to_string(),
            Value::Integer(number) => number.to_string(),
            Value::Text(text) => word(text),
            Value::Null | Value::List(_) | Value::Map(_) => return None,
        };
        Some(format!("{key}: {value}"))
    };
    // There is nothing else in it.
    let entries: Vec<_> = ["host", "port", "tls", "path"].into_iter().filter_map(entry).collect();
    format!("{{{}}}", entries.join(", "))
}

/// A string that needs no quotes, or one in quotes: JSON's are YAML's.
pub(super) fn word(text: &str) -> String {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        && text.starts_with(|first: char| first.is_ascii_alphabetic())
        && !["null", "true", "false", "yes", "no", "on", "off"].contains(&text.to_ascii_lowercase().as_str());
    if is_plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// What stands before and behind the secret's file where Synapse's copy of it has to be named.
const A_COPY_OF: &str = "A COPY OF ";
const FOR_SYNAPSE: &str = ", FOR SYNAPSE TO READ";
