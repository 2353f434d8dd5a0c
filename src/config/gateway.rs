//! `mantlet.toml`: listeners, upstreams, limits. What stands here needs a restart to change; the policy is another file.

use crate::config::address::{AdminAddress, ListenerAddress, SocketMode, UpstreamAddress};
use crate::config::egress::{Egress, EgressTable};
use crate::config::policy_file::{BuiltIn, PolicyFile};
use crate::config::route::{self, RouteTable, Routes, Upstream, UpstreamTable};
use crate::config::settings::{Forwarded, Homeserver, Limits, Log, Tokens, Workers};
use crate::document::read::recover;
use crate::document::source::{Sources, read_file};
use crate::document::value::Value;
use crate::matrix::ServerName;
use crate::problem::{Problem, Problems};
use ipnet::IpNet;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_spanned::Spanned;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

mod notary_door;
mod proxy_door;

pub use notary_door::NotaryDoor;
pub use proxy_door::ProxyDoor;
use proxy_door::{Networks, ProxyKeys, TargetPorts};

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
    /// Reads the policy and its bases.
    ///
    /// # Errors
    /// Every problem in its files.
    pub fn load(&self) -> Result<PolicyFile, Problems> {
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

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listener: Option<Vec<ListenerTable>>,
    #[serde(default)]
    upstream: BTreeMap<String, UpstreamTable>,
    route: Option<Vec<Spanned<RouteTable>>>,
    #[serde(default)]
    policy: PolicyTable,
    #[serde(default)]
    admin: AdminTable,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    tokens: Tokens,
    #[serde(default)]
    forwarded: Forwarded,
    #[serde(default)]
    log: Log,
    #[serde(default)]
    workers: Workers,
    #[serde(default)]
    homeserver: Homeserver,
    #[serde(default)]
    egress: EgressTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenerTable {
    door: Door,
    name: Option<Spanned<ListenerName>>,
    bind: Spanned<ListenerAddress>,
    mode: Option<Spanned<SocketMode>>,
    tls: Option<TlsTables>,
    proxy_protocol: Option<Spanned<bool>>,
    client_ca: Option<Spanned<PathBuf>>,
    secret_file: Option<Spanned<PathBuf>>,
    extra_roots: Option<Spanned<Vec<Spanned<PathBuf>>>>,
    credentials_file: Option<Spanned<PathBuf>>,
    networks: Option<Spanned<Networks>>,
    ports: Option<Spanned<TargetPorts>>,
    server_name: Option<Spanned<ServerName>>,
}

/// One certificate or several.
struct TlsTables(Vec<TlsTable>);

impl<'de> Deserialize<'de> for TlsTables {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = TlsTables;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table or a list of tables")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TlsTables, A::Error> {
                Ok(TlsTables(vec![TlsTable::deserialize(MapAccessDeserializer::new(map))?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<TlsTables, A::Error> {
                let tables = Vec::deserialize(SeqAccessDeserializer::new(list))?;
                if tables.is_empty() {
                    return Err(A::Error::custom("no certificate\nleave `tls` out for plain HTTP"));
                }
                Ok(TlsTables(tables))
            }
        }
        from.deserialize_any(OneOrMore)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsTable {
    certificate: Spanned<PathBuf>,
    key: Spanned<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyTable {
    file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AdminTable {
    bind: Option<Spanned<AdminAddress>>,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct ListenerName(String);

impl TryFrom<String> for ListenerName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if name.is_empty() || name.len() > 64 || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(format!("{name:?} is not a name\nwrite 1 to 64 characters without spaces"));
        }
        Ok(Self(name))
    }
}

/// What the second look at a file needs: the one at what several tables, or the file system, say together.
pub(super) struct Check<'a> {
    sources: &'a Sources,
    problems: &'a mut Problems,
    pub(super) base_dir: &'a Path,
    pub(super) files: Files,
    /// The names under `[upstream]`, those of wrong tables too, and where they stand.
    pub(super) upstreams: BTreeMap<String, Range<usize>>,
}

/// What is asked of the certificates and keys that a gateway file names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    MustBeThere,
    AreNotLookedAt,
}

impl Check<'_> {
    pub(super) fn problem(&mut self, problem: Problem, span: Range<usize>) {
        self.problems.push(problem.at(self.sources.locate(span)));
    }

    fn certificate(&mut self, path: Spanned<PathBuf>) -> PathBuf {
        self.file("certificate", path).0
    }

    fn key(&mut self, path: Spanned<PathBuf>) -> PathBuf {
        let span = path.span();
        let (path, metadata) = self.file("private key", path);
        let mode = metadata.map_or(0, |metadata| metadata.permissions().mode() & 0o7777);
        if mode & 0o077 != 0 {
            let name = path.display().to_string();
            let quoted = if name.contains(|c: char| !c.is_ascii_alphanumeric() && !"/._-+".contains(c)) {
                format!("'{}'", name.replace('\'', "'\\''"))
            } else {
                name.clone()
            };
            let what = format!("the private key {name} is open to its group or to others (mode {mode:04o})");
            self.problem(Problem::new(what).help(format!("chmod 600 {quoted}")), span);
        }
        path
    }

    pub(super) fn file(&mut self, role: &str, path: Spanned<PathBuf>) -> (PathBuf, Option<std::fs::Metadata>) {
        let span = path.span();
        let path = self.base_dir.join(path.into_inner());
        if self.files == Files::AreNotLookedAt {
            return (path, None);
        }
        let name = path.display();
        let what = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => return (path, Some(metadata)),
            Ok(_) => format!("the {role} {name} is not a file"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => format!("the {role} {name} does not exist"),
            Err(error) => format!("the {role} {name} cannot be read: {error}"),
        };
        self.problem(Problem::new(what), span);
        (path, None)
    }
}

impl File {
    fn check(self, check: &mut Check<'_>) -> Gateway {
        let default = Gateway::default();
        let admin = self.admin.bind;
        let mut listeners: Vec<Listener> = Vec::new();
        for mut table in self.listener.into_iter().flatten() {
            let mut proxy_keys = ProxyKeys::take(&mut table);
            let (span, bind) = (table.bind.span(), table.bind.into_inner());
            if let Some(earlier) = listeners.iter().find(|earlier| earlier.bind.overlaps(&bind)) {
                let what = format!("{bind} is taken by another listener ({})", earlier.bind);
                check.problem(Problem::new(what), span.clone());
            }
            let (bind_span, door_span) = (span.clone(), span.clone());
            let name_span = table.name.as_ref().map_or(span, Spanned::span);
            let name = table.name.map_or_else(|| bind.to_string(), |name| name.into_inner().0);
            let is_any = matches!(bind, ListenerAddress::Tcp(address) if address.port() == 0);
            // Two on one address are told of already.
            let is_other = |earlier: &Listener| earlier.bind != bind || matches!(bind, ListenerAddress::Systemd(_));
            if !is_any && listeners.iter().any(|earlier| earlier.name == name && is_other(earlier)) {
                check.problem(Problem::new(format!("two listeners are named {name:?}")), name_span.clone());
            }
            let mode = table.mode.map_or_else(SocketMode::default, |mode| {
                if !matches!(bind, ListenerAddress::Unix(_)) {
                    let what = "`mode` says who may connect to a unix socket, and this listener is none";
                    check.problem(Problem::new(what), mode.span());
                }
                mode.into_inner()
            });
            let tls = table.tls.map_or_else(Vec::new, |tables| tables.0).into_iter();
            let tls: Vec<_> = tls
                .map(|tls| TlsFiles { certificate: check.certificate(tls.certificate), key: check.key(tls.key) })
                .collect();
            let client_ca = table.client_ca.map(|path| {
                if tls.is_empty() {
                    let what = "client certificates are shown in TLS, and this listener has no `tls`";
                    check.problem(Problem::new(what), path.span());
                }
                check.file("client_ca", path).0
            });
            let proxy_protocol = table.proxy_protocol.is_some_and(|wanted| {
                let nobody = self.forwarded.trusted_hops.is_empty() && matches!(bind, ListenerAddress::Tcp(_));
                if nobody && *wanted.get_ref() {
                    let what = "nobody may send a PROXY header: [forwarded] trusted_hops is empty";
                    check.problem(Problem::new(what), wanted.span());
                }
                if table.door != Door::Ingress && *wanted.get_ref() {
                    check.problem(Problem::new("Synapse sends no PROXY header"), wanted.span());
                }
                wanted.into_inner()
            });
            let (secret_file, extra_roots) = match table.door {
                Door::Federation => {
                    check.federation_door(&bind, bind_span.clone(), &name, name_span);
                    (check.secret(table.secret_file, bind_span), check.roots(table.extra_roots))
                }
                Door::Ingress => {
                    let keys = [
                        ("secret_file", table.secret_file.map(|path| path.span())),
                        ("extra_roots", table.extra_roots.map(|paths| paths.span())),
                    ];
                    for (key, span) in keys.into_iter().filter_map(|(key, span)| Some((key, span?))) {
                        let what = format!("`{key}` belongs to a way out, and this listener is a way in");
                        check.problem(Problem::new(what).help("door = \"federation\""), span);
                    }
                    (None, Vec::new())
                }
                Door::Proxy => {
                    check.no_secret(table.secret_file);
                    if !tls.is_empty() {
                        let what = "Synapse asks a proxy in the clear, for a tunnel that is encrypted";
                        check.problem(Problem::new(what).help("leave `tls` out"), bind_span.clone());
                    }
                    (None, check.roots(table.extra_roots))
                }
                Door::Notary => {
                    check.no_secret(table.secret_file);
                    (None, check.roots(table.extra_roots))
                }
            };
            let notary = match table.door {
                Door::Notary => {
                    check.notary_door(table.server_name, proxy_keys.networks.take(), &bind, door_span.clone())
                }
                Door::Ingress | Door::Federation | Door::Proxy => {
                    check.no_server_name(table.server_name);
                    None
                }
            };
            let proxy = match table.door {
                Door::Proxy => Some(check.proxy_door(proxy_keys, &bind, door_span)),
                Door::Ingress | Door::Federation | Door::Notary => {
                    check.no_proxy_keys(&proxy_keys);
                    None
                }
            };
            listeners.push(Listener {
                door: table.door,
                name,
                bind,
                mode,
                tls,
                proxy_protocol,
                client_ca,
                secret_file,
                extra_roots,
                proxy,
                notary,
            });
        }
        if listeners.is_empty() {
            listeners = default.listeners;
        }
        let is_taken = |address: &ListenerAddress| listeners.iter().any(|listener| listener.bind.overlaps(address));
        if let Some(admin) = &admin
            && is_taken(&match admin.get_ref() {
                AdminAddress::Tcp(address) => ListenerAddress::Tcp(*address),
                AdminAddress::Unix(path) => ListenerAddress::Unix(path.clone()),
            })
        {
            check.problem(Problem::new(format!("{} is taken by a listener", admin.get_ref())), admin.span());
        }
        let is_our_own = |server: &UpstreamAddress| listeners.iter().any(|listener| listener.bind.is_behind(server));
        let upstreams = route::upstreams(self.upstream, is_our_own, check);
        let routes = route::routes(self.route.unwrap_or_default(), &upstreams, check);
        Gateway {
            listeners,
            upstreams,
            routes,
            policy: self.policy.file.map_or(default.policy, |file| PolicySource::File(check.base_dir.join(file))),
            admin: admin.map(Spanned::into_inner),
            limits: self.limits,
            tokens: self.tokens,
            forwarded: self.forwarded,
            log: self.log,
            workers: self.workers,
            homeserver: self.homeserver,
            egress: check.egress(self.egress),
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
