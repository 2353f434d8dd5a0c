//! What is measured.

use std::time::Duration;

use mantlet_testkit::sample;

use super::load::{self, Done, Fault, Way};
use super::origin::Origin;
use super::peer::{Contender, Fields, Kind, Peer, Tokens};

/// One question, with those who answer it. The first contender is compared with all others.
pub struct Case {
    pub name: &'static str,
    pub what: &'static str,
    pub work: Work,
    pub over: Over,
    pub contenders: fn(&[Kind], &Size) -> Vec<Contender>,
}

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Requests for this target, over connections that stay.
    Requests(&'static str),
    /// A connection for each request.
    Connections,
    Download,
    Upload,
    /// Long polls that nothing happens on.
    Idle,
}

/// How the clients reach the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Plain,
    Tls,
    H2,
}

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub rounds: usize,
    pub time: Duration,
    /// Bytes of a stream.
    pub stream: usize,
    pub idle: usize,
    pub rules: usize,
}

/// What one run cost.
pub struct Sample {
    /// In the case's [`Work::unit`].
    pub cost: f64,
    /// Requests, or MiB, in a second.
    pub rate: f64,
    pub p50: f64,
    pub p99: f64,
    /// MiB in memory after it, and how much more there was at most than before it.
    pub memory: f64,
    pub growth: f64,
}

pub const CASES: [Case; 15] = [
    Case { name: "h1", what: "h1 keep-alive", work: SMALL, over: Over::Plain, contenders: everybody },
    Case { name: "h1-tls", what: "h1 over TLS", work: SMALL, over: Over::Tls, contenders: everybody },
    Case { name: "h2", what: "h2 over TLS", work: SMALL, over: Over::H2, contenders: everybody },
    Case { name: "new", what: "new connections", work: Work::Connections, over: Over::Plain, contenders: everybody },
    Case {
        name: "handshakes",
        what: "full handshakes",
        work: Work::Connections,
        over: Over::Tls,
        contenders: everybody,
    },
    Case { name: "down", what: "download", work: Work::Download, over: Over::Plain, contenders: everybody },
    Case { name: "up", what: "upload", work: Work::Upload, over: Over::Plain, contenders: everybody },
    Case { name: "down-tls", what: "download, TLS", work: Work::Download, over: Over::Tls, contenders: everybody },
    Case { name: "up-tls", what: "upload, TLS", work: Work::Upload, over: Over::Tls, contenders: everybody },
    Case { name: "idle", what: "idle long polls", work: Work::Idle, over: Over::Plain, contenders: everybody },
    Case { name: "idle-tls", what: "idle long polls, TLS", work: Work::Idle, over: Over::Tls, contenders: everybody },
    Case { name: "stripping", what: "header stripping", work: SMALL, over: Over::Plain, contenders: stripping },
    Case { name: "rules", what: "closed paths", work: SMALL, over: Over::Plain, contenders: rules },
    Case {
        name: "guarded",
        what: "guarded profile",
        work: Work::Requests(sample::GUARDED),
        over: Over::Plain,
        contenders: guarded,
    },
    Case { name: "workers", what: "workers", work: SMALL, over: Over::Plain, contenders: workers },
];

const SMALL: Work = Work::Requests(sample::OPEN);

fn everybody(peers: &[Kind], _: &Size) -> Vec<Contender> {
    std::iter::once(&Kind::Mantlet).chain(peers).map(|&kind| Contender::new(kind)).collect()
}

fn stripping(peers: &[Kind], _: &Size) -> Vec<Contender> {
    let pair = |kind| {
        let on = Contender { label: "on", ..Contender::new(kind) };
        [on, Contender { label: "off", fields: Fields::Kept, ..on }]
    };
    std::iter::once(&Kind::Mantlet).chain(peers).flat_map(|&kind| pair(kind)).collect()
}

fn rules(_: &[Kind], size: &Size) -> Vec<Contender> {
    let many = Contender { label: "many", rules: size.rules, ..Contender::new(Kind::Mantlet) };
    vec![many, Contender { label: "10", rules: 10, ..many }]
}

/// Of the peers only nginx can ask somebody else, and remember the answer.
fn guarded(peers: &[Kind], _: &Size) -> Vec<Contender> {
    let with = |kind, label| Contender { label, tokens: Tokens::Validated, ..Contender::new(kind) };
    let nginx = peers.contains(&Kind::Nginx).then(|| with(Kind::Nginx, "auth_request, cached"));
    std::iter::once(with(Kind::Mantlet, "")).chain(nginx).collect()
}

fn workers(_: &[Kind], _: &Size) -> Vec<Contender> {
    let two = Contender { label: "two", workers: 2, ..Contender::new(Kind::Mantlet) };
    vec![two, Contender { label: "one", workers: 1, ..two }]
}

impl Work {
    /// What costs are told in.
    pub fn unit(self) -> &'static str {
        match self {
            Work::Requests(_) | Work::Connections => "CPU-s/100k",
            Work::Download | Work::Upload => "CPU-s/GiB",
            Work::Idle => "KiB each",
        }
    }

    /// What is counted in a second.
    pub fn counted(self) -> &'static str {
        match self {
            Work::Requests(_) | Work::Connections | Work::Idle => "",
            Work::Download | Work::Upload => " MiB",
        }
    }
}

impl Case {
    /// How often each contender is measured. Memory that was once taken is seldom given back, so long polls come once.
    pub fn rounds(&self, size: &Size) -> usize {
        if self.work == Work::Idle { 1 } else { size.rounds }
    }

    /// Measures a proxy once.
    pub async fn measure(&self, peer: &Peer, origin: &Origin, ca_pem: &str, size: &Size) -> Result<Sample, Fault> {
        let way = match self.over {
            Over::Plain => Way { to: peer.plain, tls: None },
            Over::Tls => Way { to: peer.tls, tls: Some(load::tls(ca_pem, b"http/1.1")?) },
            Over::H2 => Way { to: peer.tls, tls: Some(load::tls(ca_pem, b"h2")?) },
        };
        // Pools, caches and the allocator have seen the work before it counts.
        if self.work != Work::Idle {
            let short = Size { time: size.time / 10, ..*size };
            self.run(&way, origin, &short, || ()).await?;
        }
        let (before, cpu) = (peer.memory()?.0, peer.cpu()?);
        let start = std::time::Instant::now();
        let mut held = Ok((0.0, 0.0));
        let mut done = self.run(&way, origin, size, || held = peer.memory()).await?;
        let took = start.elapsed().as_secs_f64();
        let (cpu, (now, most)) = (peer.cpu()? - cpu, peer.memory()?);
        let requests = done.requests as f64;
        let mebibytes = requests * size.stream as f64 / f64::from(1 << 20);
        let (cost, rate) = match self.work {
            Work::Requests(_) | Work::Connections => (cpu / requests * 100_000.0, requests / took),
            Work::Download | Work::Upload => (cpu / mebibytes * 1024.0, mebibytes / took),
            Work::Idle => ((held?.0 - before) / requests, requests / took),
        };
        let (p50, p99) = (done.percentile(50), done.percentile(99));
        Ok(Sample { cost, rate, p50, p99, memory: now / 1024.0, growth: (most - before).max(0.0) / 1024.0 })
    }

    async fn run(&self, way: &Way, origin: &Origin, size: &Size, look: impl FnOnce()) -> Result<Done, Fault> {
        match self.work {
            Work::Requests(target) if self.over == Over::H2 => load::h2(way, target, 32, 8, size.time).await,
            Work::Requests(target) => load::keep_alive(way, target, AT_ONCE, size.time).await,
            Work::Connections => load::new_connections(way, sample::OPEN, AT_ONCE, size.time).await,
            Work::Download => load::download(way, STREAMS, size.stream).await,
            Work::Upload => load::upload(way, STREAMS, size.stream).await,
            Work::Idle => load::idle(way, origin, size.idle, look).await,
        }
    }
}

/// Connections that ask at once.
const AT_ONCE: usize = 64;

/// Streams that flow at once.
const STREAMS: usize = 4;
