//! `mantlet.toml`: listeners, upstreams, limits. What stands here needs a restart to change; the policy is another file.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};
use serde_spanned::Spanned;

use crate::config::address::{AdminAddress, ListenerAddress, SocketMode, UpstreamAddress};
use crate::config::egress::Egress;
use crate::config::policy_file::{BuiltIn, PolicyFile};
use crate::config::route::Routes;
use crate::config::settings::{Forwarded, Homeserver, Limits, Log, Tokens, Workers};
use crate::config::upstream::Upstream;
use crate::document::read::recover;
use crate::document::source::{Sources, read_file};
use crate::document::value::Value;
use crate::problem::Problems;

mod file;
mod notary_door;
mod proxy_door;

use file::File;
pub(in crate::config) use file::{Check, Files};
pub use notary_door::NotaryDoor;
pub use proxy_door::ProxyDoor;

/// The whole gateway file, every value checked and every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    /// `[[listener]]`; never empty.
    pub listeners: Vec<Listener>,
    /// `[upstream.NAME]`, `[upstream.synapse]` first.
    pub upstreams: Vec<Upstream>,
    /// `[[route]]`.
    pub routes: Routes,
    /// `[policy] file`.
    pub policy: PolicySource,
    /// `[admin] bind`; without it there is no admin listener.
    pub admin: Option<AdminAddress>,
    /// `[limits]`.
    pub limits: Limits,
    /// `[tokens]`.
    pub tokens: Tokens,
    /// `[forwarded]`.
    pub forwarded: Forwarded,
    /// `[log]`.
    pub log: Log,
    /// `[workers]`.
    pub workers: Workers,
    /// `[homeserver]`.
    pub homeserver: Homeserver,
    /// `[egress]`.
    pub egress: Egress,
}

impl Gateway {
    /// Reads a gateway file; relative paths in it are relative to its directory.
    ///
    /// # Errors
    /// Every problem in the file, or the one that keeps it from being read.
    pub fn load(path: &Path) -> Result<Gateway, Problems> {
        Self::read(path, Files::MustBeThere)
    }

    /// The same without a look at the certificates it names: whether they are good is another question than what it says.
    ///
    /// # Errors
    /// As of [`Gateway::load`].
    pub fn load_alone(path: &Path) -> Result<Gateway, Problems> {
        Self::read(path, Files::AreNotLookedAt)
    }

    /// Reads the text of a gateway file.
    ///
    /// # Errors
    /// Every problem in it.
    pub fn parse(name: &str, text: impl Into<String>, base_dir: &Path) -> Result<Gateway, Problems> {
        Self::parse_with(name, text.into(), base_dir, Files::MustBeThere)
    }

    fn read(path: &Path, files: Files) -> Result<Gateway, Problems> {
        let text = read_file(path)?;
        Self::parse_with(&path.display().to_string(), text, path.parent().unwrap_or(Path::new("")), files)
    }

    fn parse_with(name: &str, text: String, base_dir: &Path, files: Files) -> Result<Gateway, Problems> {
        let mut problems = Problems::default();
        let mut sources = Sources::default();
        let tree = sources.parse(name, text, &mut problems);
        if !problems.is_empty() {
            // What is missing from half a tree is not missing from the file.
            return problems.or(Gateway::default());
        }
        let tree = Spanned::new(tree.span(), tree.into_inner().into());
        let Some(file) = recover::<File>(&tree, "", &sources, &mut problems) else {
            return problems.or(Gateway::default());
        };
        let upstreams = keys_of(&tree, "upstream");
        let mut check = Check { sources: &sources, problems: &mut problems, base_dir, files, upstreams };
        let gateway = file.check(&mut check);
        problems.or(gateway)
    }

    /// The names of the keys whose values differ, such as `[limits] head` and `[[listener]] 2 bind`.
    pub fn difference(&self, other: &Gateway) -> Vec<String> {
        let (ours, theirs) = (self.tables(), other.tables());
        let value = |tables: &Tables, header: &str, key: &str| {
            let (_, table) = tables.iter().find(|(known, _)| known == header)?;
            table.get(key).cloned()
        };
        let mut names = Vec::new();
        for (header, table) in ours.iter().chain(theirs.iter().filter(|(header, _)| !has(&ours, header))) {
            if !has(&ours, header) || !has(&theirs, header) {
                names.push(header.clone());
                continue;
            }
            let keys = table.as_object().into_iter().flat_map(|table| table.keys());
            names.extend(
                keys.filter(|key| value(&ours, header, key) != value(&theirs, header, key))
                    .map(|key| format!("{header} {key}")),
            );
        }
        return names;

        fn has(tables: &Tables, header: &str) -> bool {
            tables.iter().any(|(known, _)| known == header)
        }
    }

    /// All tables under their headers, each with all of its keys.
    fn tables(&self) -> Tables {
        fn table(value: &impl Serialize) -> serde_json::Value {
            serde_json::to_value(value).unwrap_or_default()
        }
        // Named one by one, so that a new table cannot be forgotten here.
        let Gateway {
            listeners,
            upstreams,
            routes,
            policy,
            admin,
            limits,
            tokens,
            forwarded,
            log,
            workers,
            homeserver,
            egress,
        } = self;
        let listeners = listeners.iter().enumerate();
        let mut tables: Tables =
            listeners.map(|(index, listener)| (format!("[[listener]] {}", index + 1), table(listener))).collect();
        tables.extend(upstreams.iter().map(|Upstream { name, servers }| {
            let servers: Vec<_> = servers.iter().map(UpstreamAddress::to_string).collect();
            (format!("[upstream.{name}]"), serde_json::json!({ "servers": servers }))
        }));
        tables
            .extend(routes.iter().enumerate().map(|(index, route)| (format!("[[route]] {}", index + 1), table(route))));
        tables.extend([
            ("[policy]".into(), serde_json::json!({ "file": policy.to_string() })),
            ("[admin]".into(), serde_json::json!({ "bind": admin.as_ref().map(AdminAddress::to_string) })),
            ("[limits]".into(), table(limits)),
            ("[tokens]".into(), table(tokens)),
            ("[forwarded]".into(), table(forwarded)),
            ("[log]".into(), table(log)),
            ("[workers]".into(), table(workers)),
            ("[homeserver]".into(), table(homeserver)),
            ("[egress]".into(), table(egress)),
        ]);
        tables
    }
}

type Tables = Vec<(String, serde_json::Value)>;

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listeners: vec![Listener::new(Door::Ingress, SocketAddr::from((Ipv4Addr::LOCALHOST, 8480)))],
            upstreams: vec![Upstream::synapse()],
            routes: Routes::default(),
            policy: PolicySource::default(),
            admin: None,
            limits: Limits::default(),
            tokens: Tokens::default(),
            forwarded: Forwarded::default(),
            log: Log::default(),
            workers: Workers::default(),
            homeserver: Homeserver::default(),
            egress: Egress::default(),
        }
    }
}

/// A door to the outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listener {
    /// Who comes through it.
    pub door: Door,
    /// The name in logs and metrics; by default its address.
    pub name: String,
    /// Where it listens.
    pub bind: ListenerAddress,
    /// Who may connect, where that is a unix socket.
    pub mode: SocketMode,
    /// Its certificates, the first for names that none of them has; without any it speaks plain HTTP.
    pub tls: Vec<TlsFiles>,
    /// Whether trusted hops begin with a PROXY header.
    pub proxy_protocol: bool,
    /// Whose certificate its clients must show; without it none is asked for.
    #[serde(serialize_with = "lossy_option")]
    pub client_ca: Option<PathBuf>,
    /// The file with the secret that Synapse shows at the way out.
    #[serde(serialize_with = "lossy_option")]
    pub secret_file: Option<PathBuf>,
    /// Whose certificates are believed at the way out, besides those of the system's roots.
    #[serde(serialize_with = "lossy_all")]
    pub extra_roots: Vec<PathBuf>,
    /// What only a proxy door has.
    #[serde(flatten)]
    pub proxy: Option<ProxyDoor>,
    /// What only a notary door has.
    #[serde(flatten)]
    pub notary: Option<NotaryDoor>,
}

impl Listener {
    /// A plain listener with the default name.
    pub fn new(door: Door, bind: SocketAddr) -> Self {
        let name = bind.to_string();
        Self {
            door,
            name,
            bind: bind.into(),
            mode: SocketMode::default(),
            tls: Vec::new(),
            proxy_protocol: false,
            client_ca: None,
            secret_file: None,
            extra_roots: Vec::new(),
            proxy: None,
            notary: None,
        }
    }

    /// From where one may come; from everywhere that reaches it, where there is none.
    pub fn networks(&self) -> &[IpNet] {
        let proxy = self.proxy.as_ref().map(|door| &door.networks);
        proxy.or(self.notary.as_ref().map(|door| &door.networks)).map_or(&[], Vec::as_slice)
    }
}

/// Which way a listener leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// Clients and peers ask Synapse.
    Ingress,
    /// Synapse asks other servers: its `outbound_federation_restricted_to`.
    Federation,
    /// Synapse asks everybody else: its `http_proxy` and `https_proxy`.
    Proxy,
    /// Synapse asks for keys of other servers, as it asks any notary: its `trusted_key_servers`.
    Notary,
}

/// Where a listener's certificate is; both files were there, and the key was nobody else's to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlsFiles {
    /// The chain in PEM, the leaf first.
    #[serde(serialize_with = "lossy")]
    pub certificate: PathBuf,
    /// The private key in PEM.
    #[serde(serialize_with = "lossy")]
    pub key: PathBuf,
}

/// Where the policy comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PolicySource {
    /// One that is compiled in.
    BuiltIn(BuiltIn),
    /// A file.
    File(PathBuf),
}

impl PolicySource {
    /// Reads the policy and its bases; and what is wrong with it, for its rules can be looked at all the same.
    ///
    /// # Errors
    /// Every problem with reading its files.
    pub fn load(&self) -> Result<(PolicyFile, Problems), Problems> {
        match self {
            Self::BuiltIn(built_in) => PolicyFile::built_in(*built_in),
            Self::File(path) => PolicyFile::load(path),
        }
    }
}

impl Default for PolicySource {
    fn default() -> Self {
        Self::BuiltIn(BuiltIn::Balanced)
    }
}

impl fmt::Display for PolicySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(built_in) => write!(f, "built-in {built_in}"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// The keys of a table of the file, as they are written.
fn keys_of(tree: &Spanned<Value>, name: &str) -> BTreeMap<String, Range<usize>> {
    let entries = |value: &Spanned<Value>| match value.get_ref() {
        Value::Table(table) => table.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        _ => Vec::new(),
    };
    let table = entries(tree).into_iter().find(|(key, _)| key.get_ref() == name);
    let keys = table.iter().flat_map(|(_, table)| entries(table));
    keys.map(|(key, _)| (key.get_ref().clone(), key.span())).collect()
}

/// A path that is not UTF-8 is still told, and compared, well enough.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

fn lossy_all<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.display().to_string()))
}

pub(super) fn lossy_option<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => lossy(path, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests;
