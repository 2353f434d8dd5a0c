//! Measures Mantlet beside other proxies that do the same work, in one run on one machine, and prints a Markdown table.
//!
//! ```sh
//! cargo run --release -p mantlet-peers                            # everything, beside nginx and HAProxy: some ten minutes
//! cargo run --release -p mantlet-peers -- h1 h2 --rounds 9        # two cases
//! cargo run --release -p mantlet-peers -- --peers nginx,caddy     # beside others
//! cargo run -p mantlet-peers -- --smoke                           # does it all work? The figures mean nothing
//! ```
//!
//! Every proxy has processor 0 for itself, one worker, and an access log in a file; the clients and the origin share
//! processor 1. Each proxy is looked at on the wire before it is measured. A case measures all in turn, again and again
//! (A B A B), and a ratio is the median of the ratios within a round: so what else the machine does hits all alike. Requests in a
//! second and latencies are those of a client and an origin that share one processor: read the ratios.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is what it is for")]

mod case;
mod load;
mod origin;
mod peer;
mod table;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use mantlet_testkit::certificate::Authority;

use case::{CASES, Case, Sample, Size};
use load::Fault;
use origin::Origin;
use peer::{Contender, Kind, Peer};
use table::Row;

#[derive(Debug, Parser)]
struct Arguments {
    /// The cases; all of them, if none is named
    #[arg(value_name = "CASE", value_parser = CASES.map(|case| case.name))]
    cases: Vec<String>,
    /// The proxies beside Mantlet
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Nginx, Kind::Haproxy])]
    peers: Vec<Kind>,
    /// How often each proxy is measured in each case
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// How long a measurement takes
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How many idle long polls
    #[arg(long, default_value_t = 9000)]
    idle: usize,
    /// As little of everything as shows that it works
    #[arg(long)]
    smoke: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let measured = settle(&arguments.peers).and_then(|processor| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(run(&arguments, processor))
    });
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            tell(&*fault);
            ExitCode::FAILURE
        }
    }
}

/// Builds what is built here, then becomes a process on processor 1 that may open many files; returns the processor of the
/// proxies.
fn settle(peers: &[Kind]) -> Result<Option<usize>, Fault> {
    const SETTLED: &str = "MANTLET_PEERS_SETTLED";
    if let Ok(settled) = std::env::var(SETTLED) {
        return Ok((settled == "pinned").then_some(0));
    }
    let (settled, pin) = match std::thread::available_parallelism()?.get() {
        1 => ("shared", ""),
        _ => ("pinned", "taskset -c 1"),
    };
    let line = format!("ulimit -n \"$(ulimit -Hn)\"; exec {pin} \"$0\" \"$@\"");
    let mut again = Command::new("sh");
    again.args(["-c", &line]).arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    for &kind in std::iter::once(&Kind::Mantlet).chain(peers) {
        if let Some(program) = kind.obtain()? {
            again.env(kind.variable(), program);
        }
    }
    Err(again.env(SETTLED, settled).exec().into())
}

async fn run(arguments: &Arguments, processor: Option<usize>) -> Result<(), Fault> {
    let size = match arguments.smoke {
        true => Size { rounds: 1, time: Duration::from_millis(100), stream: 1 << 20, idle: 50, rules: 100 },
        false => Size {
            rounds: usize::try_from(arguments.rounds)?,
            time: Duration::from_secs_f64(arguments.seconds.clamp(0.1, 60.0)),
            stream: 100 << 20,
            idle: arguments.idle,
            rules: 10_000,
        },
    };
    let mut peers = Vec::new();
    for &kind in &arguments.peers {
        if kind != Kind::Mantlet && !kind.tool().is_some_and(|tool| tool.left_out().unwrap_or(false)) {
            peers.push(kind);
        }
    }
    let bench = Bench { origin: Origin::start(size.stream).await?, authority: Authority::new()?, processor, size };
    let is_asked = |case: &&Case| arguments.cases.is_empty() || arguments.cases.iter().any(|name| name == case.name);
    let (mut rows, mut faults) = (Vec::new(), 0);
    for case in CASES.iter().filter(is_asked) {
        // What was measured is worth printing, whatever becomes of another case.
        match bench.measure(case, &peers).await {
            Ok(measured) => rows.extend(measured),
            Err(fault) => {
                tell(&*fault);
                faults += 1;
            }
        }
    }
    table::print(&rows, &peers, processor, &bench.size)?;
    if faults == 0 { Ok(()) } else { Err(format!("{faults} cases could not be measured").into()) }
}

/// Says what went wrong, and why.
fn tell(fault: &(dyn std::error::Error + 'static)) {
    eprintln!("error: {fault}");
    let causes = std::iter::successors(fault.source(), |&cause| cause.source());
    causes.for_each(|cause| eprintln!("    because: {cause}"));
}

struct Bench {
    origin: Origin,
    authority: Authority,
    processor: Option<usize>,
    size: Size,
}

impl Bench {
    async fn measure(&self, case: &Case, peers: &[Kind]) -> Result<Vec<Row>, Fault> {
        let contenders = (case.contenders)(peers, &self.size);
        let mut running = Vec::new();
        for contender in contenders {
            running.push((self.start(contender).await?, Vec::<Sample>::new()));
        }
        for round in 1..=case.rounds(&self.size) {
            for (peer, samples) in &mut running {
                let sample = case.measure(peer, &self.origin, &self.authority.pem(), &self.size).await;
                let sample = sample.map_err(|fault| format!("{}, {}: {fault}", case.name, peer.contender))?;
                eprintln!("{} {round}: {}: {:.3} {}", case.name, peer.contender, sample.cost, case.work.unit());
                samples.push(sample);
            }
        }
        for (peer, _) in &running {
            // Batches of a log are written a second later at most.
            let deadline = std::time::Instant::now() + Duration::from_secs(5);
            while !peer.has_logged(1) {
                if std::time::Instant::now() > deadline {
                    return Err(format!("{} wrote no access log", peer.contender).into());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(table::rows(case, &running))
    }

    async fn start(&self, contender: Contender) -> Result<Peer, Fault> {
        let leaf = self.authority.issue(&["localhost", "127.0.0.1"])?;
        let peer = Peer::start(contender, &self.origin, &leaf, self.processor)?;
        peer.verify(&self.origin, &self.authority.pem()).await?;
        Ok(peer)
    }
}
