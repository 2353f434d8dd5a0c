//! The gateway file as it is written, and what is looked at before it is believed.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_spanned::Spanned;

use super::proxy_door::{Networks, ProxyKeys, TargetPorts};
use super::{Door, Gateway, Listener, PolicySource, TlsFiles};
use crate::config::address::{AdminAddress, ListenerAddress, SocketMode, UpstreamAddress};
use crate::config::egress::EgressTable;
use crate::config::route::{self, RouteTable};
use crate::config::settings::{Forwarded, Homeserver, Limits, Log, Tokens, Workers};
use crate::config::upstream::{self, UpstreamTable};
use crate::document::source::Sources;
use crate::matrix::ServerName;
use crate::problem::{Location, Problem, Problems};

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
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
pub(super) struct ListenerTable {
    door: Door,
    name: Option<Spanned<ListenerName>>,
    bind: Spanned<ListenerAddress>,
    mode: Option<Spanned<SocketMode>>,
    tls: Option<TlsTables>,
    proxy_protocol: Option<Spanned<bool>>,
    client_ca: Option<Spanned<PathBuf>>,
    secret_file: Option<Spanned<PathBuf>>,
    extra_roots: Option<Spanned<Vec<Spanned<PathBuf>>>>,
    pub(super) credentials_file: Option<Spanned<PathBuf>>,
    pub(super) networks: Option<Spanned<Networks>>,
    pub(super) ports: Option<Spanned<TargetPorts>>,
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
    file: Option<Spanned<PathBuf>>,
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
pub(in crate::config) struct Check<'a> {
    pub(super) sources: &'a Sources,
    pub(super) problems: &'a mut Problems,
    pub(in crate::config) base_dir: &'a Path,
    pub(in crate::config) files: Files,
    /// The names under `[upstream]`, those of wrong tables too, and where they stand.
    pub(in crate::config) upstreams: BTreeMap<String, Range<usize>>,
}

/// What is asked of the certificates and keys that a gateway file names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum Files {
    MustBeThere,
    AreNotLookedAt,
}

impl Check<'_> {
    pub(in crate::config) fn problem(&mut self, problem: Problem, span: Range<usize>) {
        self.problems.push(problem.at(self.locate(span)));
    }

    pub(in crate::config) fn locate(&self, span: Range<usize>) -> Option<Location> {
        self.sources.locate(span)
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

    pub(in crate::config) fn file(
        &mut self,
        role: &str,
        path: Spanned<PathBuf>,
    ) -> (PathBuf, Option<std::fs::Metadata>) {
        let span = path.span();
        let path = self.base_dir.join(path.into_inner());
        if self.files == Files::AreNotLookedAt {
            return (path, None);
        }
        let found = std::fs::metadata(&path).and_then(|metadata| match metadata.is_file() {
            // Opened, for it may be there and not for this user.
            true => std::fs::File::open(&path).map(|_| Some(metadata)),
            false => Ok(None),
        });
        let problem = match found {
            Ok(Some(metadata)) => return (path, Some(metadata)),
            Ok(None) => Problem::new(format!("the {role} {} is not a file", path.display())),
            Err(error) => Problem::unreadable(role, &path, &error),
        };
        self.problem(problem, span);
        (path, None)
    }
}

impl File {
    pub(super) fn check(self, check: &mut Check<'_>) -> Gateway {
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
        let upstreams = upstream::upstreams(self.upstream, is_our_own, check);
        let routes = route::routes(self.route.unwrap_or_default(), &upstreams, check);
        Gateway {
            listeners,
            upstreams,
            routes,
            policy: self.policy.file.map_or(default.policy, |file| PolicySource::File(check.file("policy", file).0)),
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
