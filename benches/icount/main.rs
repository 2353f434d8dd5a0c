//! What a request costs, told without a clock: user-space instructions and system calls of the release binary.
//!
//! ```sh
//! cargo test --bench icount                          # measure, and fail where a figure is above the recorded one
//! cargo test --bench icount -- --record              # measure, and write what was measured
//! cargo test --bench icount -- --case guarded        # one case alone
//! cargo test --bench icount -- --profile allow       # where the instructions of one case are
//! ```
//!
//! Each case runs twice with a different number of requests, and the difference is divided by that of the numbers: so start,
//! warm-up and end are subtracted. The requests go one after the other over one connection, to one worker. While callgrind
//! counts, nobody reads the access record until the last request is answered: then the thread that writes it formats all of
//! them at one go, and how many share a batch is no matter of chance. So the figures hold on a busy machine.

#![allow(clippy::print_stdout, reason = "this is what it is for")]

mod callgrind;
mod gateway;
mod recorded;
mod strace;

use std::process::ExitCode;

use clap::Parser;
use mantlet_testkit::tool::Tool;
use mantlet_testkit::{Result, release, sample};

use gateway::Setup;
use recorded::{Figures, Recorded};

#[derive(Debug, Parser)]
struct Arguments {
    /// Writes what was measured into recorded.toml
    #[arg(long, conflicts_with_all = ["case", "profile"])]
    record: bool,
    /// Measures one case only
    #[arg(long, value_name = "NAME", value_parser = CASES.map(|case| case.name))]
    case: Option<String>,
    /// Shows the functions in which the instructions of one case are
    #[arg(long, value_name = "CASE", value_parser = CASES.map(|case| case.name))]
    profile: Option<String>,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// One kind of request under one policy.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    what: &'static str,
    setup: Setup,
}

const CASES: [Case; 5] = [
    Case {
        name: "allow",
        what: "the allow path under `balanced`, with everything on",
        setup: Setup {
            policy: "extends = \"balanced\"\n",
            target: sample::OPEN,
            removed: &["origin", "user-agent", "sec-ch-ua"],
        },
    },
    Case {
        name: "strip-none",
        what: "the same, and no field is removed",
        setup: Setup { policy: STRIP_NONE, target: sample::OPEN, removed: &[] },
    },
    Case {
        name: "strip-three",
        what: "the same, and Origin, Referer and User-Agent are removed",
        setup: Setup {
            policy: sample::STRIP_THREE,
            target: sample::OPEN,
            removed: &["origin", "referer", "user-agent"],
        },
    },
    Case {
        name: "strip-allow-list",
        what: "the same, and only what Synapse reads is left, as under `strict`",
        setup: Setup { policy: STRIP_ALL, target: sample::OPEN, removed: &["origin", "user-agent", "sec-ch-ua"] },
    },
    Case {
        name: "guarded",
        what: "a profile, for which a token is needed whose verdict is known",
        setup: Setup {
            policy: "extends = \"balanced\"\n",
            target: sample::GUARDED,
            removed: &["origin", "user-agent"],
        },
    },
];

const STRIP_NONE: &str = "extends = \"balanced\"\n[rules.request_headers]\nmode = \"off\"\n";

const STRIP_ALL: &str = "extends = \"balanced\"\n[rules.request_headers]\nfields = \"allow\"\n";

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            println!("error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(name) = &arguments.profile {
        for case in CASES.iter().filter(|case| case.name == name) {
            callgrind::profile(&release::gateway()?, &case.setup)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (no_valgrind, no_strace) = (Tool::Valgrind.left_out()?, Tool::Strace.left_out()?);
    if no_valgrind && no_strace {
        return Ok(ExitCode::SUCCESS);
    }
    let binary = release::gateway()?;
    let mut figures = Figures::default();
    for case in CASES.iter().filter(|case| arguments.case.as_deref().is_none_or(|name| name == case.name)) {
        println!("{}: {}", case.name, case.what);
        if !no_valgrind {
            let instructions = callgrind::per_request(&binary, &case.setup)?;
            println!("    {instructions:>9.0} instructions");
            figures.instructions.insert(case.name.to_owned(), instructions.round());
        }
        if !no_strace && case.name == CASES[0].name {
            let calls = strace::per_request(&binary, &case.setup)?;
            println!("{calls}");
            figures.calls = calls.gated();
        }
    }
    say_what_stripping_costs(&figures);

    let recorded = Recorded::read()?;
    let compiler = release::compiler()?;
    if arguments.record {
        recorded.replace(compiler, figures)?;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(recorded.judge(&compiler, &figures))
}

/// The same request without and with the removal: the difference is its price.
fn say_what_stripping_costs(figures: &Figures) {
    let of = |name: &str| figures.instructions.get(name).copied();
    let Some(none) = of("strip-none") else { return };
    for (what, name) in
        [("three fields", "strip-three"), ("the balanced list", "allow"), ("an allow-list", "strip-allow-list")]
    {
        if let Some(with) = of(name) {
            let more = with - none;
            println!("header stripping, {what}: {more:+.0} instructions, {:+.1} %", 100.0 * more / none);
        }
    }
}
