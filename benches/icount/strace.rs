//! System calls, as strace counts them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use mantlet_testkit::Result;
use mantlet_testkit::tool::Tool;

use super::gateway::{Gateway, Record, Setup, cannot};

/// System calls of one request, in all threads, by name.
pub struct Calls(BTreeMap<String, f64>);

/// Counts those of a case.
pub fn per_request(binary: &Path, setup: &Setup) -> Result<Calls> {
    let (few, many) = (total(binary, setup, FEW)?, total(binary, setup, MANY)?);
    let names = few.keys().chain(many.keys()).cloned();
    let of = |run: &BTreeMap<String, f64>, name: &str| run.get(name).copied().unwrap_or_default();
    let each = |name: String| {
        let more = (of(&many, &name) - of(&few, &name)) / (MANY - FEW) as f64;
        (name, more)
    };
    Ok(Calls(names.map(each).filter(|(_, more)| *more >= 0.005).collect()))
}

fn total(binary: &Path, setup: &Setup, requests: usize) -> Result<BTreeMap<String, f64>> {
    let strace = Tool::Strace.find()?.remove(0).display().to_string();
    let tool = [&strace, "-f", "-c", "-U", "name,calls", "-o", "{}/counted"].map(str::to_owned);
    let mut gateway = Gateway::start(&tool, binary, setup, Record::File)?;
    gateway.send(setup.target, requests)?;
    let directory = gateway.end()?;
    let counted = fs::read_to_string(directory.path().join("counted")).map_err(cannot("read what strace wrote"))?;
    let line = |line: &str| {
        let (name, calls) = line.trim().split_once(char::is_whitespace)?;
        Some((name.to_owned(), calls.trim().parse().ok()?)).filter(|_| name != "total")
    };
    Ok(counted.lines().filter_map(line).collect())
}

impl Calls {
    /// What does not depend on the clock. The rest is shown only: how many records share a write, and how often a thread
    /// sleeps, is a matter of load.
    pub fn gated(&self) -> BTreeMap<String, f64> {
        let sum =
            |names: &[&str]| self.0.iter().filter(|(name, _)| names.contains(&name.as_str())).map(|(_, n)| n).sum();
        let other = |name: &str| ![&RECEIVE[..], &SEND, &TIMED].concat().contains(&name);
        let others = self.0.iter().filter(|(name, _)| other(name)).map(|(_, n)| n).sum::<f64>();
        let gated = [("receive", sum(&RECEIVE)), ("send", sum(&SEND)), ("other", others)];
        gated.map(|(what, calls): (&str, f64)| (what.to_owned(), (calls * 100.0).round() / 100.0 + 0.0)).into()
    }
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls: Vec<_> = self.0.iter().map(|(name, calls)| format!("{name} {calls:.2}")).collect();
        write!(f, "    system calls: {}", calls.join(", "))
    }
}

const RECEIVE: [&str; 4] = ["read", "readv", "recvfrom", "recvmsg"];
const SEND: [&str; 3] = ["sendto", "sendmsg", "writev"];

/// Waiting for sockets; and the record's writer, which is woken, lets records gather, and writes them.
const TIMED: [&str; 4] = ["epoll_wait", "futex", "clock_nanosleep", "write"];

const FEW: usize = 200;
const MANY: usize = 1200;
