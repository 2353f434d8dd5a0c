//! The one table that comes of it.

use std::fs;
use std::process::Command;

use super::case::{Case, Sample, Size, Work};
use super::load::Fault;
use super::peer::{Kind, Peer};

/// One proxy in one case.
pub struct Row {
    case: &'static str,
    unit: &'static str,
    counted: &'static str,
    proxy: String,
    cost: f64,
    least: f64,
    most: f64,
    /// Of the cost of whom it is compared with to its own; none for the first.
    ratio: Option<f64>,
    /// In a second, and latencies; long polls have none.
    speed: Option<[f64; 3]>,
    memory: f64,
    growth: Option<f64>,
}

/// The rows of a case.
pub fn rows(case: &Case, measured: &[(Peer, Vec<Sample>)]) -> Vec<Row> {
    let costs = |samples: &[Sample]| samples.iter().map(|sample| sample.cost).collect::<Vec<_>>();
    let row = |(place, (peer, samples)): (usize, &(Peer, Vec<Sample>))| {
        let own = costs(samples);
        // The same proxy doing otherwise, if there is one before, or else the first of the case.
        let same = measured[..place].iter().find(|(before, _)| before.contender.kind == peer.contender.kind);
        let other = same.or_else(|| measured[..place].first()).map(|(_, samples)| costs(samples));
        let ratio = |other: Vec<f64>| median(other.iter().zip(&own).map(|(other, own)| other / own));
        let of = |field: fn(&Sample) -> f64| median(samples.iter().map(field));
        Row {
            case: case.what,
            unit: case.work.unit(),
            counted: case.work.counted(),
            proxy: peer.contender.to_string(),
            cost: median(own.iter().copied()),
            least: own.iter().copied().fold(f64::INFINITY, f64::min),
            most: own.iter().copied().fold(0.0, f64::max),
            ratio: other.map(ratio),
            speed: (case.work != Work::Idle).then(|| [of(|s| s.rate), of(|s| s.p50), of(|s| s.p99)]),
            memory: of(|sample| sample.memory),
            growth: matches!(case.work, Work::Download | Work::Upload)
                .then(|| samples.iter().map(|sample| sample.growth).fold(0.0, f64::max)),
        }
    };
    measured.iter().enumerate().map(row).collect()
}

/// Prints all, under a line that says where and with what it was measured.
pub fn print(rows: &[Row], peers: &[Kind], processor: Option<usize>, size: &Size) -> Result<(), Fault> {
    let versions: Vec<_> =
        std::iter::once(&Kind::Mantlet).chain(peers).map(|kind| kind.version()).collect::<Result<_, _>>()?;
    let pinned =
        if processor.is_some() { "proxy on processor 0, clients and origin on 1" } else { "one processor for all" };
    println!(
        "{}, {}, {}. {}; {pinned}; {} rounds of {:?}, streams of {} MiB, {} long polls.\n",
        output("date", &["-u", "+%F"])?,
        processor_name(),
        output("uname", &["-sr"])?,
        versions.join(", "),
        size.rounds,
        size.time,
        size.stream >> 20,
        size.idle,
    );
    println!(
        "ratio: the cost in the first row of the case, or in the first of the same proxy, to that in this one; below 1 the\nfirst is cheaper.\n"
    );
    println!("| case | proxy | cost, median (least..most) | ratio | a second | p50 ms | p99 ms | RSS MiB |");
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        let ratio = row.ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
        let growth = row.growth.map_or(String::new(), |growth| format!(" (+{growth:.1})"));
        let speed = row
            .speed
            .map_or("- | - | -".into(), |[rate, p50, p99]| format!("{rate:.0}{} | {p50:.2} | {p99:.2}", row.counted));
        println!(
            "| {} | {} | {:.2} ({:.2}..{:.2}) {} | {ratio} | {speed} | {:.0}{growth} |",
            row.case, row.proxy, row.cost, row.least, row.most, row.unit, row.memory,
        );
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 if middle > 0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values.get(middle).copied().unwrap_or(f64::NAN),
    }
}

fn processor_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or("an unnamed processor".into(), |(_, name)| name.to_owned())
}

fn output(program: &str, arguments: &[&str]) -> Result<String, Fault> {
    let output = Command::new(program).args(arguments).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median([].into_iter()).is_nan());
    }
}
