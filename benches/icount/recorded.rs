//! The figures that were recorded, and the gate that compares with them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use mantlet_testkit::{Error, Result};
use serde::{Deserialize, Serialize};

use super::gateway::cannot;

/// What was measured, each by its name.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Figures {
    /// User-space instructions of one request, by case.
    pub instructions: BTreeMap<String, f64>,
    /// System calls of one request on the allow path, by kind.
    pub calls: BTreeMap<String, f64>,
}

/// `recorded.toml`
#[derive(Debug, Deserialize, Serialize)]
pub struct Recorded {
    /// What built the gateway.
    compiler: String,
    #[serde(flatten)]
    figures: Figures,
}

impl Recorded {
    /// Reads the file.
    pub fn read() -> Result<Recorded> {
        let text = fs::read_to_string(file()).map_err(cannot("read recorded.toml"))?;
        toml::from_str(&text).map_err(|error| Error::caused("recorded.toml is not understood", error))
    }

    /// Writes what was measured over it; what was left out keeps its old figure.
    pub fn replace(mut self, compiler: String, figures: Figures) -> Result<()> {
        self.compiler = compiler;
        self.figures.instructions.extend(figures.instructions);
        self.figures.calls.extend(figures.calls);
        let text = toml::to_string(&self).map_err(|error| Error::caused("write the figures", error))?;
        fs::write(file(), format!("{HEAD}{text}")).map_err(cannot("write recorded.toml"))?;
        println!("recorded in {}", file().display());
        Ok(())
    }

    /// Compares with what was recorded. Figures of another compiler say nothing, so it only asks for new ones then.
    pub fn judge(&self, compiler: &str, figures: &Figures) -> ExitCode {
        let recorded = &self.figures;
        let mut worse = compare("instructions", &figures.instructions, &recorded.instructions, 0.0);
        worse += compare("calls", &figures.calls, &recorded.calls, CALLS);
        if compiler != self.compiler {
            println!("re-record: this is {compiler}, and recorded is {}", self.compiler);
            return ExitCode::SUCCESS;
        }
        match worse {
            0 => ExitCode::SUCCESS,
            _ => {
                println!(
                    "worse than recorded: {worse}. If that is the price of something, it is recorded with: -- --record"
                );
                ExitCode::FAILURE
            }
        }
    }
}

/// How many figures are worse than recorded, or were never recorded; each is told.
fn compare(what: &str, measured: &BTreeMap<String, f64>, recorded: &BTreeMap<String, f64>, slack: f64) -> usize {
    let mut worse = 0;
    for (name, now) in measured {
        let Some(then) = recorded.get(name) else {
            println!("WORSE   {what}.{name}: {now}, and nothing is recorded");
            worse += 1;
            continue;
        };
        let (more, allowed) = (now - then, then * MARGIN + slack);
        let verdict = match more {
            more if more > allowed => "WORSE ",
            more if -more > allowed => "BETTER",
            _ => "same  ",
        };
        worse += usize::from(more > allowed);
        println!("{verdict}  {what}.{name}: {now}, recorded {then}");
    }
    worse
}

fn file() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "benches", "icount", "recorded.toml"].iter().collect()
}

/// How much more than recorded is no news.
const MARGIN: f64 = 0.03;

/// Calls that are made now and then, by time and not by request.
const CALLS: f64 = 0.03;

const HEAD: &str = "# What one request costs, on x86-64 Linux: written by `cargo test --bench icount -- --record`.\n";
