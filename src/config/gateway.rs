//! `mantlet.toml`: listeners, upstreams, limits. What stands here needs a restart to change; the policy is another file.

use crate::config::address::{AdminAddress, ListenerAddress, SocketMode, UpstreamAddress};
use crate::config::policy_file::{BuiltIn, PolicyFile};
use crate::config::route::{self, RouteTable, Routes, Upstream, UpstreamTable};
use crate::config::settings::{Forwarded, Homeserver, Limits, Log, Tokens, Workers};
use crate::document::read::recover;
use crate::document::source::{Sources, read_file};
use crate::document::value::Value;
use crate::problem::{Problem, Problems};
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
        }
    }
}

/// Which way a listener leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// Clients and peers ask Synapse.
    Ingress,
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
    base_dir: &'a Path,
    files: Files,
    /// The names under `[upstream]`, those of wrong tables too, and where they stand.
    pub(super) upstreams: BTreeMap<String, Range<usize>>,
}

/// What is asked of the certificates and keys that a gateway file names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Files {
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

    fn file(&mut self, role: &str, path: Spanned<PathBuf>) -> (PathBuf, Option<std::fs::Metadata>) {
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
        for table in self.listener.into_iter().flatten() {
            let (span, bind) = (table.bind.span(), table.bind.into_inner());
            if let Some(earlier) = listeners.iter().find(|earlier| earlier.bind.overlaps(&bind)) {
                let what = format!("{bind} is taken by another listener ({})", earlier.bind);
                check.problem(Problem::new(what), span.clone());
            }
            let name_span = table.name.as_ref().map_or(span, Spanned::span);
            let name = table.name.map_or_else(|| bind.to_string(), |name| name.into_inner().0);
            let is_any = matches!(bind, ListenerAddress::Tcp(address) if address.port() == 0);
            // Two on one address are told of already.
            let is_other = |earlier: &Listener| earlier.bind != bind || matches!(bind, ListenerAddress::Systemd(_));
            if !is_any && listeners.iter().any(|earlier| earlier.name == name && is_other(earlier)) {
                check.problem(Problem::new(format!("two listeners are named {name:?}")), name_span);
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
                wanted.into_inner()
            });
            listeners.push(Listener { door: table.door, name, bind, mode, tls, proxy_protocol, client_ca });
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

fn lossy_option<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => lossy(path, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{AccessLog, LogLevel};
    use std::fs;

    fn parse(text: &str) -> Result<Gateway, Problems> {
        Gateway::parse("mantlet.toml", text, Path::new(""))
    }

    fn told(text: &str) -> Vec<String> {
        parse(text).unwrap_err().0.iter().map(ToString::to_string).collect()
    }

    /// Every table and key.
    const WHOLE: &str = r#"
[[listener]]
door = "ingress"
bind = "0.0.0.0:8448"
name = "federation"
tls = { certificate = "cert.pem", key = "key.pem" }
client_ca = "cert.pem"
proxy_protocol = true
[[listener]]
door = "ingress"
bind = "unix:/run/mantlet.sock"
mode = "0600"
[upstream.synapse]
servers = ["unix:/run/synapse.sock"]
[upstream.media]
servers = ["http://127.0.0.1:8009", "http://127.0.0.1:8010"]
[[route]]
path = "/_matrix/media/.*"
methods = ["POST"]
upstream = "media"
[policy]
file = "policy.toml"
[admin]
bind = "127.0.0.1:9090"
[limits]
handshake = "1s"
first_byte = "2s"
head = "3s"
body_idle = "4s"
upstream_head = "5s"
patience = "7s"
keep_alive = "6s"
drain = "0s"
head_bytes = "8KiB"
fields = 7
body = "8MiB"
collect = "2MiB"
streams = 9
connections = 10
per_address = 11
[tokens]
positive = "12s"
negative = "1s"
capacity = 13
[forwarded]
trusted_hops = ["127.0.0.1", "10.1.2.3/8", "::1"]
[log]
access = "text"
level = "debug"
[workers]
count = 2
[homeserver]
server_name = "example.org:8448"
"#;

    /// A directory in which `WHOLE` finds its files.
    fn dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("cert.pem", 0o644), ("key.pem", 0o600)] {
            fs::write(dir.path().join(name), "PEM").unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        dir
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse(""), Ok(Gateway::default()));
        assert_eq!(parse("[limits]\n[log]\n[upstream]\n[admin]\n"), Ok(Gateway::default()));
        let gateway = Gateway::default();
        assert_eq!(gateway.listeners[0].bind.to_string(), "127.0.0.1:8480");
        assert_eq!(gateway.upstreams, [Upstream::synapse()]);
        assert_eq!(gateway.upstreams[0].servers[0].to_string(), "http://127.0.0.1:8008");
        assert_eq!(gateway.policy, PolicySource::BuiltIn(BuiltIn::Balanced));
        assert_eq!(gateway.limits.head_bytes, crate::units::Size::kib(15));
    }

    #[test]
    fn every_key_is_read() {
        let dir = dir();
        let path = dir.path().join("mantlet.toml");
        fs::write(&path, WHOLE).unwrap();
        let gateway = Gateway::load(&path).unwrap_or_else(|problems| panic!("{problems}"));
        let [tls] = &gateway.listeners[0].tls[..] else { panic!("{:?}", gateway.listeners[0].tls) };
        assert_eq!((&tls.certificate, &tls.key), (&dir.path().join("cert.pem"), &dir.path().join("key.pem")));
        assert_eq!(gateway.listeners[0].name, "federation");
        assert_eq!(gateway.listeners[1].name, "unix:/run/mantlet.sock");
        assert_eq!(gateway.listeners[1].mode, SocketMode(0o600));
        assert_eq!(gateway.policy, PolicySource::File(dir.path().join("policy.toml")));
        assert_eq!(gateway.upstreams[0].servers, [UpstreamAddress::Unix("/run/synapse.sock".into())]);
        assert_eq!((&*gateway.upstreams[1].name, gateway.upstreams[1].servers.len()), ("media", 2));
        assert_eq!(gateway.admin.as_ref().unwrap().to_string(), "127.0.0.1:9090");
        let hops: Vec<String> = gateway.forwarded.trusted_hops.iter().map(ToString::to_string).collect();
        assert_eq!(hops, ["127.0.0.1/32", "10.0.0.0/8", "::1/128"]);
        assert_eq!(gateway.log, Log { access: AccessLog::Text, level: LogLevel::Debug });
        assert_eq!(gateway.homeserver.server_name.as_deref(), Some("example.org:8448"));
        // Every key of every table has another value than its default, so none was overlooked.
        let changed = gateway.difference(&Gateway::default());
        let is_new = |header: &str| ["[[listener]] 2", "[upstream.media]", "[[route]] 1"].contains(&header);
        for (header, table) in gateway.tables() {
            assert!(!is_new(&header) || changed.contains(&header), "{header}");
            for key in table.as_object().unwrap().keys().filter(|_| !is_new(&header)) {
                let same = header == "[[listener]] 1" && (key == "door" || key == "mode");
                assert_eq!(changed.contains(&format!("{header} {key}")), !same, "{header} {key}");
            }
        }
    }

    #[test]
    fn a_difference_names_its_keys() {
        let old = parse("[[listener]]\ndoor='ingress'\nbind='127.0.0.1:1'\n[[listener]]\ndoor='ingress'\nbind='127.0.0.1:2'\nname='b'").unwrap();
        let new = parse("[[listener]]\ndoor='ingress'\nbind='127.0.0.1:1'\n[[listener]]\ndoor='ingress'\nbind='127.0.0.1:3'\nname='b'\n[limits]\nhead='11s'\n[admin]\nbind='unix:/a'").unwrap();
        assert_eq!(old.difference(&new), ["[[listener]] 2 bind", "[admin] bind", "[limits] head"]);
        assert_eq!(new.difference(&old), old.difference(&new));
        assert_eq!(old.difference(&old), [""; 0]);
        let one = parse("[[listener]]\ndoor='ingress'\nbind='127.0.0.1:1'").unwrap();
        assert_eq!(old.difference(&one), ["[[listener]] 2"]);
        assert_eq!(one.difference(&old), ["[[listener]] 2"]);
    }

    #[test]
    fn problems_of_all_tables_are_told_at_once() {
        let text = "[[listener]]\r\ndoor = \"proxy\"\r\nbind = \"127.0.0.1:8118\"\r\n[[listener]]\r\ndoor = \"ingress\"\r\n\
                    bind = \"0.0.0.0\"\r\n[[listener]]\r\ndoor = \"ingress\"\r\ntls = { certificate = \"none.pem\" }\r\n\
                    [limits]\r\nhadshake = \"1s\"\r\nbody = 0\r\nhead_bytes = \"1KiB\"\r\n[limit]\r\n[tokens]\r\n\
                    positive = \"1m\"\r\nnegative = \"3s\"\r\n[upstream.synapse]\r\nservers = [\"https://a:1\"]\r\n\
                    [forwarded]\r\ntrusted_hops = [\"10.0.0.0/33\"]\r\n[homeserver]\r\nserver_name = \"not a name\"\r\n\
                    [log]\r\naccess = \"jason\"\r\n[workers]\r\ncount = -1\r\n[admin]\r\nbind = \"0.0.0.0:9090\"\r\n";
        let told = told(text);
        let starts = [
            "mantlet.toml:2:8: unknown value \"proxy\" for `door` in [[listener]]\n    help: known: ingress",
            "mantlet.toml:6:8: `bind` in [[listener]]: \"0.0.0.0\" has no port",
            "mantlet.toml:9:7: `key` is missing in [listener.tls]",
            "mantlet.toml:7:1: `bind` is missing in [[listener]]",
            "mantlet.toml:11:1: unknown key `hadshake` in [limits]\n    help: did you mean `handshake`?",
            "mantlet.toml:12:8: `body` in [limits]: 0 would refuse everything",
            "mantlet.toml:13:14: `head_bytes` in [limits]: 1KiB is too small\n    help: at least \"8KiB\"",
            "mantlet.toml:14:2: unknown key `limit`\n    help: did you mean `limits`?",
            "mantlet.toml:16:12: `positive` in [tokens]: 1m is too long",
            "mantlet.toml:17:12: `negative` in [tokens]: 3s is too long",
            "mantlet.toml:19:12: entry 1 of `servers` in [upstream.synapse]: https:// is not supported",
            "mantlet.toml:21:17: entry 1 of `trusted_hops` in [forwarded]: \"10.0.0.0/33\" is not an address",
            "mantlet.toml:23:15: `server_name` in [homeserver]: \"not a name\" is not a server name",
            "mantlet.toml:25:10: unknown value \"jason\" for `access` in [log]\n    help: did you mean \"json\"?",
            "mantlet.toml:27:9: `count` in [workers]: expected a whole number, not below 0, found -1",
            "mantlet.toml:29:8: `bind` in [admin]: 0.0.0.0 is not a loopback address",
        ];
        for start in starts {
            assert!(told.iter().any(|told| told.starts_with(start)), "{start}\n-- in --\n{}", told.join("\n"));
        }
        assert_eq!(told.len(), starts.len(), "{}", told.join("\n"));
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let dir = dir();
        let key = dir.path().join("key.pem");
        let check = || Gateway::parse("mantlet.toml", WHOLE, dir.path());
        for mode in [0o640, 0o604, 0o660, 0o644, 0o620] {
            fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
            let problems = check().unwrap_err();
            let expected = format!(
                "mantlet.toml:6:41: the private key {0} is open to its group or to others (mode {mode:04o})\n    help: chmod 600 {0}",
                key.display()
            );
            assert_eq!(problems.to_string(), expected);
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
            assert!(check().is_ok(), "{mode:o}");
        }
    }

    #[test]
    fn a_missing_certificate_is_told_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("key.pem")).unwrap();
        let problems = Gateway::parse("mantlet.toml", WHOLE, dir.path()).unwrap_err();
        let path = dir.path().display();
        assert_eq!(problems.0[0].what, format!("the certificate {path}/cert.pem does not exist"));
        assert_eq!(problems.0[1].what, format!("the private key {path}/key.pem is not a file"));
        assert_eq!(problems.0[2].what, format!("the client_ca {path}/cert.pem does not exist"));
        assert_eq!(problems.0.len(), 3);
        let file = dir.path().join("mantlet.toml");
        fs::write(&file, WHOLE).unwrap();
        assert!(Gateway::load(&file).is_err() && Gateway::load_alone(&file).is_ok());
    }

    #[test]
    fn several_certificates_are_a_list_or_tables() {
        let dir = dir();
        let listener = "[[listener]]\ndoor='ingress'\nbind='127.0.0.1:1'\n";
        let read = |tls: &str| Gateway::parse("mantlet.toml", format!("{listener}{tls}"), dir.path());
        let list = read("tls = [{ certificate='cert.pem', key='key.pem' }, { certificate='cert.pem', key='key.pem' }]");
        let pair = "[[listener.tls]]\ncertificate='cert.pem'\nkey='key.pem'\n";
        let tables = read(&format!("{pair}{pair}"));
        assert_eq!(list, tables);
        assert_eq!(list.unwrap().listeners[0].tls.len(), 2);
        let told = |tls: &str| read(tls).unwrap_err().to_string();
        assert_eq!(
            told("tls = []"),
            "mantlet.toml:4:7: `tls` in [[listener]]: no certificate\n    help: leave `tls` out for plain HTTP"
        );
        assert_eq!(
            told("tls = 'cert.pem'"),
            "mantlet.toml:4:7: `tls` in [[listener]]: expected a table or a list of tables, found \"cert.pem\""
        );
        assert_eq!(
            told("tls = [{ certificate='cert.pem', key='key.pem' }, { certificate='cert.pem', kee='key.pem' }]"),
            "mantlet.toml:4:77: unknown key `kee` in [[listener.tls]]\n    help: did you mean `key`?"
        );
        assert_eq!(
            told("client_ca = 'cert.pem'"),
            "mantlet.toml:4:13: client certificates are shown in TLS, and this listener has no `tls`"
        );
    }

    #[test]
    fn two_listeners_on_one_address_are_refused() {
        let two = |one: &str, other: &str| {
            parse(&format!(
                "[[listener]]\ndoor='ingress'\nbind='{one}'\n[[listener]]\ndoor='ingress'\nbind='{other}'\n"
            ))
        };
        let problems = two("127.0.0.1:1", "127.0.0.1:1").unwrap_err();
        assert_eq!(problems.to_string(), "mantlet.toml:6:6: 127.0.0.1:1 is taken by another listener (127.0.0.1:1)");
        assert!(two("0.0.0.0:1", "127.0.0.1:1").is_err());
        assert!(two("127.0.0.1:1", "127.0.0.1:2").is_ok());
        assert!(two("127.0.0.1:0", "127.0.0.1:0").is_ok());
        let twins = "[[listener]]\ndoor='ingress'\nbind='127.0.0.1:1'\nname='a'\n[[listener]]\ndoor='ingress'\nbind='127.0.0.1:2'\nname='a'\n";
        assert_eq!(told(twins), ["mantlet.toml:8:6: two listeners are named \"a\""]);
    }

    #[test]
    fn a_socket_has_a_mode_and_nothing_else_has() {
        let mode = |bind: &str, mode: &str| parse(&format!("[[listener]]\ndoor='ingress'\nbind='{bind}'\nmode={mode}"));
        assert_eq!(mode("unix:/a", "'0666'").unwrap().listeners[0].mode, SocketMode(0o666));
        for odd in ["'660'", "'0880'", "'0060'", "'01777'", "'rw'", "'0+66'", "''", "432"] {
            assert!(mode("unix:/a", odd).is_err(), "{odd}");
        }
        let problems = mode("127.0.0.1:1", "'0660'").unwrap_err();
        assert_eq!(
            problems.to_string(),
            "mantlet.toml:4:6: `mode` says who may connect to a unix socket, and this listener is none"
        );
    }

    #[test]
    fn sockets_of_systemd_may_share_a_name_but_listeners_may_not() {
        let listener = |more: &str| format!("[[listener]]\ndoor='ingress'\nbind='systemd:public'\n{more}\n");
        assert_eq!(parse(&listener("")).unwrap().listeners[0].name, "systemd:public");
        assert!(parse(&(listener("") + &listener("name='b'"))).is_ok());
        assert_eq!(
            told(&(listener("") + &listener(""))),
            ["mantlet.toml:7:6: two listeners are named \"systemd:public\""]
        );
        for odd in ["", "a b", "a:b", "ä"] {
            assert!(told(&listener("").replace("public", odd))[0].contains("is not the name of a socket"), "{odd}");
        }
    }

    #[test]
    fn somebody_must_be_able_to_send_a_proxy_header() {
        let listener = |bind: &str| format!("[[listener]]\ndoor='ingress'\nbind='{bind}'\nproxy_protocol=true\n");
        assert_eq!(
            told(&listener("127.0.0.1:1")),
            ["mantlet.toml:4:16: nobody may send a PROXY header: [forwarded] trusted_hops is empty"]
        );
        assert!(parse(&listener("unix:/a")).unwrap().listeners[0].proxy_protocol);
        assert!(parse(&format!("{}[forwarded]\ntrusted_hops=['10.0.0.1']", listener("127.0.0.1:1"))).is_ok());
    }

    #[test]
    fn a_gateway_in_front_of_itself_is_refused() {
        assert!(told("[upstream.synapse]\nservers = ['http://127.0.0.1:8480']\n")[0].contains("round for ever"));
        assert!(told("[admin]\nbind = '127.0.0.1:8480'\n")[0].contains("is taken by a listener"));
        let socket = "[[listener]]\ndoor='ingress'\nbind='unix:/a'\n";
        assert!(told(&format!("{socket}[admin]\nbind = 'unix:/a'"))[0].contains("is taken by a listener"));
        assert!(told(&format!("{socket}[upstream.synapse]\nservers = ['unix:/a']"))[0].contains("round for ever"));
        assert!(told(&format!("{socket}{socket}"))[0].contains("is taken by another listener (unix:/a)"));
        let all =
            "[[listener]]\ndoor='ingress'\nbind='0.0.0.0:8008'\n[upstream.synapse]\nservers=['http://10.0.0.1:8008']";
        assert!(parse(all).is_ok(), "Synapse on another machine may have our port");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_one_problem() {
        let dir = tempfile::tempdir().unwrap();
        let problems = Gateway::load(&dir.path().join("none.toml")).unwrap_err();
        assert_eq!(problems.to_string(), format!("{}/none.toml does not exist", dir.path().display()));
        assert!(Gateway::load(dir.path()).unwrap_err().to_string().ends_with("is a directory, not a file"));
    }

    #[test]
    fn a_syntax_error_hides_nothing_behind_guesses() {
        let told = told("[[listener]]\ndoor = \nbind = \"127.0.0.1:1\n[limits]\nhead = \"1s\"\n");
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("mantlet.toml:2:") && told[1].starts_with("mantlet.toml:3:"), "{told:?}");
    }

    #[test]
    fn no_broken_file_panics() {
        let dir = dir();
        for end in (0..=WHOLE.len()).filter(|end| WHOLE.is_char_boundary(*end)) {
            let _ = Gateway::parse("mantlet.toml", &WHOLE[..end], dir.path());
            let _ = Gateway::parse("mantlet.toml", &WHOLE[end..], dir.path());
            let with = ["\"", "[", "=", "\n", "{", "🗝", "\0", "]", ".", "\r"][end % 10];
            let mut broken = WHOLE.to_owned();
            broken.replace_range(end..(end + 1).min(WHOLE.len()), with);
            let _ = Gateway::parse("mantlet.toml", broken, dir.path());
        }
    }
}
