//! Asks the DNS, and lets out only addresses that may be connected to.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData};
use hickory_resolver::system_conf::parse_resolv_conf;

use crate::addresses::Guard;
use crate::error::{Error, Kind};
use crate::matrix::Host;
use crate::problem::Problem;

/// Whom to ask for names.
#[derive(Clone, Debug)]
pub struct NameServers {
    config: ResolverConfig,
    options: ResolverOpts,
}

impl NameServers {
    /// These, or, where there are none, those of the system, whose hosts file then counts too.
    ///
    /// # Errors
    /// The system names none, or none that can be asked without its zone.
    pub fn new(addresses: &[SocketAddr]) -> Result<Self, Problem> {
        let (config, options) = if addresses.is_empty() {
            let read = std::fs::read(SYSTEM).map_err(NetError::from).and_then(|text| of_the_system(&text));
            read.map_err(|error| {
                Problem::new(format!("{SYSTEM} names nobody to ask for names: {error}"))
                    .help("put into the gateway file: [egress] nameservers = [\"ADDRESS:53\"]")
            })?
        } else {
            let server = |address: &SocketAddr| {
                let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                let at = |mut connection: ConnectionConfig| {
                    connection.port = address.port();
                    connection
                };
                let mut server = NameServerConfig::udp_and_tcp(address.ip());
                server.connections = connections.map(at).into();
                server
            };
            let mut options = ResolverOpts::default();
            options.use_hosts_file = ResolveHosts::Never;
            (ResolverConfig::from_name_servers(addresses.iter().map(server).collect()), options)
        };
        Ok(Self::asked((config, options)))
    }

    fn asked((config, mut options): (ResolverConfig, ResolverOpts)) -> Self {
        // What is asked here is asked by a server that will not wait for long.
        options.timeout = options.timeout.clamp(SHORTEST, TIMEOUT);
        options.attempts = options.attempts.clamp(1, ATTEMPTS);
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.cache_size = CACHED;
        Self { config, options }
    }
}

/// Whom the system asks, and how. The search list is left out: names are asked for as they are, so nothing in it is an error. So
/// are name servers with a zone (`fe80::1%eth0`): without it, which the library does not keep, nobody finds them.
fn of_the_system(text: &[u8]) -> Result<(ResolverConfig, ResolverOpts), NetError> {
    let mut has_zone = false;
    let mut is_needed = |line: &&[u8]| {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        match words.next() {
            Some(b"search" | b"domain") => false,
            Some(b"nameserver") if words.next().is_some_and(|address| address.contains(&b'%')) => {
                has_zone = true;
                false
            }
            _ => true,
        }
    };
    let lines: Vec<_> = text.split(|byte| *byte == b'\n').filter(&mut is_needed).collect();
    let nobody = |error| if has_zone { NetError::from("none without a zone") } else { error };
    parse_resolv_conf(lines.join(&b'\n')).map_err(nobody)
}

/// One worker's way to the DNS, with a cache of its own.
pub(super) struct Resolver {
    inner: TokioResolver,
    guard: Guard,
}

/// Where a service is, as an SRV record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub priority: u16,
    pub weight: u16,
    pub host: Host,
    pub port: u16,
}

impl Resolver {
    /// Asks these servers, and gives what this guard lets pass.
    ///
    /// # Errors
    /// When the resolver cannot be set up.
    pub fn new(name_servers: &NameServers, guard: Guard) -> Result<Self, Error> {
        let mut builder =
            TokioResolver::builder_with_config(name_servers.config.clone(), TokioRuntimeProvider::default());
        *builder.options_mut() = name_servers.options.clone();
        let inner = builder.build().map_err(|error| Error::caused_by(Kind::OriginUnknown, error))?;
        Ok(Self { inner, guard })
    }

    /// The addresses of a host that may be connected to; never none. A host that is an address is checked all the same.
    ///
    /// # Errors
    /// [`Kind::OriginUnknown`], [`Kind::OriginForbidden`]
    pub async fn addresses(&self, host: &Host) -> Result<Vec<IpAddr>, Error> {
        let (name, found) = (host.to_string(), self.all_addresses(host).await?);
        let is_known = !found.is_empty();
        let passed: Vec<_> = found.into_iter().filter(|address| self.guard.check(&name, *address).is_ok()).collect();
        match passed.is_empty() {
            false => Ok(passed),
            true => Err(Error::new(if is_known { Kind::OriginForbidden } else { Kind::OriginUnknown })),
        }
    }

    /// All addresses of a host, whatever they are: for one that the operator named.
    ///
    /// # Errors
    /// [`Kind::OriginUnknown`]
    pub async fn all_addresses(&self, host: &Host) -> Result<Vec<IpAddr>, Error> {
        match host {
            Host::Address(address) => Ok(vec![*address]),
            Host::Name(name) => Ok(self.inner.lookup_ip(absolute(name)?).await.map_err(unknown)?.iter().collect()),
        }
    }

    /// The places of a service; none where the DNS knows of none, or cannot say.
    ///
    /// # Errors
    /// [`Kind::OriginUnknown`] where the DNS says that there is no such service.
    pub async fn services(&self, service: &str, name: &str) -> Result<Vec<Service>, Error> {
        let Ok(found) = self.inner.srv_lookup(absolute(&format!("{service}.{name}"))?).await else {
            return Ok(Vec::new());
        };
        let records = found.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(srv),
            _ => None,
        });
        let mut services = Vec::new();
        let mut is_refused = false;
        for srv in records {
            // A lone dot: decidedly not here (RFC 2782).
            is_refused |= srv.target.is_root();
            let target = srv.target.to_ascii();
            let target = crate::matrix::ServerName::parse(target.trim_end_matches('.'));
            if let Some(target) = target.filter(|target| target.port().is_none()) {
                services.push(Service {
                    priority: srv.priority,
                    weight: srv.weight,
                    host: target.host().clone(),
                    port: srv.port,
                });
            }
        }
        if services.is_empty() && is_refused { Err(Error::new(Kind::OriginUnknown)) } else { Ok(services) }
    }
}

/// The name as it is, without the search list of this machine.
fn absolute(name: &str) -> Result<Name, Error> {
    let mut name = Name::from_ascii(name).map_err(|error| Error::caused_by(Kind::OriginUnknown, error))?;
    name.set_fqdn(true);
    Ok(name)
}

/// What the resolver says is not repeated: it names the name.
fn unknown(_: NetError) -> Error {
    Error::new(Kind::OriginUnknown)
}

/// How long a name server has; at the least, whatever the system says, long enough for an answer.
const SHORTEST: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;

/// Answers that one worker keeps, each no longer than it says.
const CACHED: u64 = 4096;

/// Where the system says whom to ask.
const SYSTEM: &str = "/etc/resolv.conf";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_system_only_its_name_servers_count_and_an_odd_search_list_is_no_error() {
        for search in ["search -x.corp", "search\tcorp -x.corp", "domain -x.corp", "  search a..b", ""] {
            let text = format!("{search}\nnameserver 192.0.2.1\noptions attempts:1\nnameserver 2001:db8::1\n");
            let (config, options) = of_the_system(text.as_bytes()).unwrap_or_else(|error| panic!("{search}: {error}"));
            let asked: Vec<_> = config.name_servers().iter().map(|server| server.ip.to_string()).collect();
            assert_eq!((asked, options.attempts), (vec!["192.0.2.1".to_owned(), "2001:db8::1".to_owned()], 1));
            assert!(config.search().is_empty());
        }
        assert!(of_the_system(b"search corp\n").is_err());
    }

    #[test]
    fn a_name_server_that_is_nowhere_without_its_zone_is_not_asked() {
        let (config, _) = of_the_system(b"nameserver fe80::9%eth0\n nameserver\t2001:db8::1\n").unwrap();
        let asked: Vec<_> = config.name_servers().iter().map(|server| server.ip.to_string()).collect();
        assert_eq!(asked, ["2001:db8::1"]);
        let why = of_the_system(b"nameserver fe80::9%eth0\n").unwrap_err().to_string();
        assert!(why.contains("zone"), "{why}");
    }

    #[test]
    fn name_servers_have_the_time_for_an_answer_whatever_the_system_says() {
        for (written, expected) in
            [("timeout:0 attempts:0", (1, 1)), ("timeout:1", (1, 2)), ("timeout:30 attempts:9", (2, 2))]
        {
            let text = format!("nameserver 192.0.2.1\noptions {written}\n");
            let NameServers { options, .. } = NameServers::asked(of_the_system(text.as_bytes()).unwrap());
            assert_eq!((options.timeout.as_secs(), options.attempts), expected, "{written}");
        }
    }
}
