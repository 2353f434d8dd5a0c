//! Instructions, as callgrind counts them: the same on a busy machine as on a quiet one.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use mantlet_testkit::tool::Tool;
use mantlet_testkit::{Error, Result};

use super::gateway::{Gateway, Record, Setup, cannot};

/// User-space instructions of one request, in all threads.
pub fn per_request(binary: &Path, setup: &Setup) -> Result<f64> {
    let [few, many] = thread::scope(|scope| {
        let runs = [FEW, MANY].map(|requests| scope.spawn(move || total(binary, setup, requests)));
        runs.map(|run| run.join().unwrap_or_else(|_| Err(Error::new("a run panicked"))))
    });
    Ok((many? - few?) / (MANY - FEW) as f64)
}

/// All instructions of a run with so many requests.
fn total(binary: &Path, setup: &Setup, requests: usize) -> Result<f64> {
    let mut gateway = Gateway::start(&callgrind(&[])?, binary, setup, Record::Held)?;
    gateway.send(setup.target, requests)?;
    let directory = gateway.end()?;
    let counted = fs::read_to_string(directory.path().join("counted")).map_err(cannot("read what callgrind wrote"))?;
    let total = counted.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    total.ok_or_else(|| Error::new("callgrind wrote no total"))
}

/// Prints where the instructions of a case are: by crate, by function, and by function with all that it calls.
pub fn profile(binary: &Path, setup: &Setup) -> Result<()> {
    let [_, annotate, control] = &Tool::Valgrind.find()?[..] else { return Err(Error::new("valgrind is not whole")) };
    let mut gateway = Gateway::start(&callgrind(&["--instr-atstart=no"])?, binary, setup, Record::Held)?;
    gateway.send(setup.target, FEW)?;
    output(Command::new(control).args(["-i", "on", &gateway.pid()?.to_string()]))?;
    gateway.send(setup.target, MANY)?;
    let directory = gateway.end()?;
    let of = |inclusive: &str| {
        let mut command = Command::new(annotate);
        command.args([&format!("--inclusive={inclusive}"), "--threshold=100", "--auto=no"]);
        output(command.arg(directory.path().join("counted"))).map(|text| lines(&text))
    };
    let (own, with_callees) = (of("no")?, of("yes")?);
    // What was inlined is told with its own file: a function is as many lines as there are files in it.
    print("by crate", own.iter().map(|line| (crate_of(&line.file), line.count)), |sum, count| sum + count);
    print("by function", own.iter().map(|line| (&line.function[..], line.count)), |sum, count| sum + count);
    print("with all they call", with_callees.iter().map(|line| (&line.function[..], line.count)), u64::max);
    Ok(())
}

/// A line of callgrind_annotate.
struct Line {
    count: u64,
    file: String,
    function: String,
}

fn lines(text: &str) -> Vec<Line> {
    let line = |line: &str| {
        let (count, place) = line.split_once("%)")?;
        let count = count.split('(').next()?.trim().replace(',', "").parse().ok()?;
        let (file, function) = place.trim().split_once(':')?;
        let function = function.rsplit_once(" [").map_or(function, |(function, _object)| function);
        Some(Line { count, file: file.into(), function: function.into() })
    };
    text.lines().filter_map(line).collect()
}

/// Prints the largest, each as instructions of one request.
fn print<'a>(what: &str, counts: impl Iterator<Item = (&'a str, u64)>, merge: impl Fn(u64, u64) -> u64) {
    let mut merged: HashMap<&str, u64> = HashMap::new();
    for (name, count) in counts {
        let so_far = merged.entry(name).or_default();
        *so_far = merge(*so_far, count);
    }
    let mut merged: Vec<_> = merged.into_iter().collect();
    merged.sort_unstable_by_key(|&(name, count)| (Reverse(count), name));
    println!("\nInstructions of one request, {what}:");
    for (name, count) in merged.into_iter().take(SHOWN) {
        println!("{:>9}  {name}", count / MANY as u64);
    }
}

/// The crate that a source file belongs to.
fn crate_of(file: &str) -> &str {
    let after = |marker: &str| file.split_once(marker).map(|(_, rest)| rest);
    match after("/registry/src/").and_then(|path| path.split('/').nth(1)) {
        Some(name) => name,
        None if after("/library/").is_some() => "the standard library",
        None if file.starts_with("./") => "libc",
        None if file.contains("src/") => "mantlet",
        None => "unknown",
    }
}

fn callgrind(more: &[&str]) -> Result<Vec<String>> {
    let valgrind = Tool::Valgrind.find()?.remove(0).display().to_string();
    let mut words = vec![valgrind, "--tool=callgrind".into(), "--callgrind-out-file={}/counted".into()];
    words.push("--log-file={}/valgrind.log".into());
    words.extend(more.iter().map(|&word| word.to_owned()));
    Ok(words)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(cannot("run a tool of valgrind"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Error::new(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr)))),
    }
}

/// Enough that the pipe is full, and nothing more is formatted until the end.
const FEW: usize = 400;

/// Fewer than the queue of records holds.
const MANY: usize = 2400;

/// Lines of a profile.
const SHOWN: usize = 40;
