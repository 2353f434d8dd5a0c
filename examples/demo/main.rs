//! Shows what Mantlet closes: the real Synapse, asked the same questions without Mantlet and through it.
//!
//! `cargo run --release --example demo` prints the table and stays up until Ctrl-C, for a browser, a client or curl.
//! With `-- --once` it ends after the table. Either way exit code 1 means that a row was not as it should be, or that
//! something did not start, which is then said in a sentence.

mod house;
mod questions;
mod table;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use mantlet_testkit::{Error, Result};

use house::House;
use table::{Colours, Table};

fn main() -> ExitCode {
    let stay = match std::env::args().skip(1).collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Stay::UntilAsked,
        ["--once"] => Stay::Once,
        ["-h" | "--help"] => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("demo: only --once is known; see --help");
            return ExitCode::from(2);
        }
    };
    match run(stay) {
        Ok(table) if table.faults() == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            // With its causes, each after a colon.
            eprintln!("demo: {error:?}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Clone, Copy)]
enum Stay {
    Once,
    UntilAsked,
}

/// Starts everything, asks, prints, and stays as long as it should; all that was started has ended when this returns.
fn run(stay: Stay) -> Result<Table> {
    let mut house = House::start()?;
    house::progress("asking every question twice: without Mantlet, and through it");
    let table = questions::ask_all(&house)?;
    let colours = match std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty()) {
        true => Colours::Ansi,
        false => Colours::None,
    };
    print(&table.render(colours))?;
    match stay {
        Stay::Once => house::progress("ending"),
        Stay::UntilAsked => {
            print(&house.invitation())?;
            wait_for_the_end(&mut house)?;
            house::progress("ending Mantlet, Synapse and the foreign server");
        }
    }
    house.end();
    Ok(table)
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Error::caused("the table cannot be printed", e))
}

/// Waits for Ctrl-C or SIGTERM.
fn wait_for_the_end(house: &mut House) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let cannot = |e| Error::caused("no signal can be waited for", e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
        let mut sweep = tokio::time::interval(Duration::from_secs(5));
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = sweep.tick() => house.forget(),
            }
        }
    })
}

const HELP: &str = "\
Starts the real Synapse with Mantlet in front of it, on this machine only, and shows what Mantlet closes.

    cargo run --release --example demo              the table, then stays up until Ctrl-C
    cargo run --release --example demo -- --once    the table; exit code 0 if every row is as it should be, else 1

The first run installs Synapse from PyPI below cargo's target directory. Needs Python 3.10 or newer with venv.";
