//! Asks the DNS, and lets out only addresses that may be connected to.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    hearing: Arc<Mutex<Hearing>>,
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
        Self { config, options, hearing: Arc::default() }
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
    hearing: Arc<Mutex<Hearing>>,
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
        Ok(Self { inner, guard, hearing: Arc::clone(&name_servers.hearing) })
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
            Host::Name(name) => {
                let found = self.heard(self.inner.lookup_ip(absolute(name)?).await);
                Ok(found.map_err(unknown)?.iter().collect())
            }
        }
    }

    /// The places of a service; none where the DNS knows of none, or cannot say.
    ///
    /// # Errors
    /// [`Kind::OriginUnknown`] where the DNS says that there is no such service.
    pub async fn services(&self, service: &str, name: &str) -> Result<Vec<Service>, Error> {
        let Ok(found) = self.heard(self.inner.srv_lookup(absolute(&format!("{service}.{name}"))?).await) else {
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

    /// Notes whether anybody answered, and tells when nobody does any more.
    fn heard<T>(&self, found: Result<T, NetError>) -> Result<T, NetError> {
        // That there is no such name, or that it cannot be said, is an answer.
        let is_answered = matches!(found, Ok(_) | Err(NetError::Dns(_) | NetError::Proto(_)));
        // Nothing in here panics half-way.
        let mut hearing = self.hearing.lock().unwrap_or_else(PoisonError::into_inner);
        match hearing.note(is_answered, Instant::now()) {
            Some(true) => tracing::info!("a name server answers again"),
            Some(false) => tracing::warn!(
                "no name server answers: nobody is found at the way out, unless by an address. They are named in [egress] \
                 nameservers, or in /etc/resolv.conf as it was at the start. Said once, until one answers"
            ),
            None => {}
        }
        found
    }
}

/// Whether name servers are heard, over all workers.
#[derive(Debug, Default)]
struct Hearing {
    last: Option<Instant>,
    unanswered: usize,
    is_told: bool,
}

impl Hearing {
    /// Whether it has to be told, now, that they answer again, or that they do not. Names that are dead are often met with silence, so
    /// one name server that says nothing for a moment proves nothing.
    fn note(&mut self, is_answered: bool, now: Instant) -> Option<bool> {
        if is_answered {
            (self.last, self.unanswered) = (Some(now), 0);
            return std::mem::take(&mut self.is_told).then_some(true);
        }
        self.unanswered += 1;
        let is_silent = match self.last {
            None => self.unanswered >= NEVER_ANSWERED,
            Some(last) => self.unanswered >= UNANSWERED && now.duration_since(last) >= SILENT,
        };
        let is_new = is_silent && !self.is_told;
        self.is_told |= is_silent;
        is_new.then_some(false)
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

/// So many questions in a row that nobody answered, and for so long; of name servers that have answered before, and of others.
const UNANSWERED: usize = 8;
const SILENT: Duration = Duration::from_secs(30);
const NEVER_ANSWERED: usize = 3;

/// Answers that one worker keeps, each no longer than it says.
const CACHED: u64 = 4096;

/// Where the system says whom to ask.
const SYSTEM: &str = "/etc/resolv.conf";

#[cfg(test)]
mod tests {
    use hickory_resolver::net::DnsError;
    use hickory_resolver::proto::op::ResponseCode;

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

    #[test]
    fn it_is_told_once_that_no_name_server_answers_and_once_that_one_does_again() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut hearing = Hearing::default();
        let unanswered = |hearing: &mut Hearing, count, at| -> Vec<_> {
            (0..count).filter_map(|_| hearing.note(false, at)).collect()
        };
        assert_eq!(unanswered(&mut hearing, 2, now), [false; 0]);
        assert_eq!(unanswered(&mut hearing, 10, now), [false]);
        assert_eq!([true, true].map(|is_answered| hearing.note(is_answered, now)), [Some(true), None]);
        // A few that are dead prove nothing, and nor do many at once.
        assert_eq!(unanswered(&mut hearing, 1000, now + 29 * second), [false; 0]);
        assert_eq!(hearing.note(true, now + 29 * second), None);
        assert_eq!(unanswered(&mut hearing, 7, now + 100 * second), [false; 0]);
        assert_eq!(unanswered(&mut hearing, 7, now + 101 * second), [false]);
        assert_eq!(hearing.note(true, now + 102 * second), Some(true));
    }

    #[tokio::test]
    async fn a_name_that_there_is_not_is_an_answer_and_a_port_where_nobody_is_gives_none() {
        let nobody = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut servers = NameServers::new(&[nobody.local_addr().unwrap()]).unwrap();
        (servers.options.timeout, servers.options.attempts) = (Duration::from_millis(20), 0);
        let resolver = Resolver::new(&servers, Guard::default()).unwrap();
        for _ in 0..NEVER_ANSWERED {
            assert!(resolver.addresses(&Host::Name("hs.test".into())).await.is_err());
        }
        assert!(servers.hearing.lock().unwrap().is_told);
        let gone = NetError::Dns(DnsError::ResponseCode(ResponseCode::ServFail));
        assert!(resolver.heard::<()>(Err(gone)).is_err());
        assert!(!servers.hearing.lock().unwrap().is_told);
    }
}
