//! The verbs: one a file.

mod ca;
mod check;
mod explain;
mod ledger;
mod output;
mod reload;
mod rules;
mod run;
mod test;
mod version;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use http::Method;

use crate::config::compiled::Compiled;
use crate::config::gateway::{Gateway, PolicySource};
use crate::config::policy_file::BuiltIn;
use crate::problem::{Problem, Problems};
use crate::server::admin;
use output::Output;

/// A privacy gateway for Matrix homeservers.
#[derive(Debug, Parser)]
#[command(name = "mantlet", version, arg_required_else_help = true, max_term_width = 120)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Parser)]
struct Common {
    /// The gateway file [default: mantlet.toml here, then /etc/mantlet/mantlet.toml, then the built-in defaults]
    #[arg(short, long, global = true, value_name = "FILE", env = "MANTLET_CONFIG")]
    config: Option<PathBuf>,
    /// The form of what is printed
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve
    Run(run::Run),
    /// Say what is wrong with the configuration, all at once; binds nothing
    #[command(short_flag = 't')]
    Check(check::Check),
    /// Say how one request would be judged, and why; asks nobody. Exit code 3: it would be refused
    Explain(explain::Explain),
    /// Run the policy's own tests
    Test(test::Test),
    /// List the rules, show one, or list the endpoints by id
    Rules(rules::Rules),
    /// Make the running gateway read its policy and its certificates again
    Reload(reload::Reload),
    /// Show whom Synapse asked, what for, and what became of it
    Ledger(ledger::Ledger),
    /// Make and show the authority for hosts that are looked into, and what Synapse has to be told
    Ca(ca::Ca),
    /// Show the version
    Version(version::Version),
}

/// The policy that a verb looks at, where it is not the gateway file's.
#[derive(Debug, clap::Args)]
struct PolicyArgument {
    /// A policy file, or strict, balanced, transparent [default: the one of the gateway file]
    #[arg(short, long, value_name = "FILE|NAME")]
    policy: Option<String>,
}

/// Does what the arguments say; its code is 0 for good, 1 for a problem or a failed check, 2 for wrong usage, 3 for a request
/// that `explain` finds refused.
pub fn main() -> ExitCode {
    let Arguments { verb, common } = Arguments::parse();
    let output = Output::new(common.format);
    let done = match verb {
        Verb::Run(run) => run.run(&common),
        Verb::Check(check) => check.run(&common, &output),
        Verb::Explain(explain) => explain.run(&common, &output),
        Verb::Test(test) => test.run(&common, &output),
        Verb::Rules(rules) => rules.run(&output),
        Verb::Reload(reload) => reload.run(&common, &output),
        Verb::Ledger(ledger) => ledger.run(&common, &output),
        Verb::Ca(ca) => ca.run(&common, &output),
        Verb::Version(version) => version.run(&output),
    };
    match done {
        Ok(code) => code,
        Err(problems) => {
            output.problems(&problems);
            ExitCode::from(PROBLEM)
        }
    }
}

impl Common {
    /// The gateway file that is meant, if there is any.
    fn file(&self) -> Option<PathBuf> {
        if self.config.is_some() {
            return self.config.clone();
        }
        PLACES.into_iter().map(PathBuf::from).find(|path| path.exists())
    }

    /// The same, for what cannot be done on the defaults.
    fn needed_file(&self) -> Result<PathBuf, Problem> {
        let [here, system] = PLACES;
        let what = || Problem::new(format!("there is no gateway file: neither {here} here nor {system}"));
        self.file().ok_or_else(|| what().help("name it: --config FILE"))
    }

    fn gateway(&self) -> Result<Gateway, Problems> {
        self.file().map_or_else(|| Ok(Gateway::default()), |file| Gateway::load(&file))
    }

    /// The same, whatever its certificates are: for who only asks where something is.
    fn gateway_alone(&self) -> Result<Gateway, Problems> {
        self.file().map_or_else(|| Ok(Gateway::default()), |file| Gateway::load_alone(&file))
    }
}

/// Asks the running gateway; gives the status and the JSON of the answer. `what` is what cannot be done without.
fn ask(common: &Common, method: Method, path: &str, what: &str) -> Result<(u16, Vec<u8>), Problems> {
    let file = common.needed_file()?;
    let Some(address) = common.gateway_alone()?.admin else {
        let what = format!("{} has no [admin], so the running gateway cannot be asked {what}", file.display());
        let help = "add [admin] bind = \"127.0.0.1:9090\" and restart";
        return Err(Problem::new(what).help(help).into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Problem::new(format!("no runtime can be started: {error}")))?;
    Ok(runtime.block_on(admin::call(&address, method, path))?)
}

impl PolicyArgument {
    fn source(&self, common: &Common) -> Result<PolicySource, Problems> {
        Ok(match &self.policy {
            None => common.gateway()?.policy,
            Some(name) => match BuiltIn::named(name) {
                Some(built_in) => PolicySource::BuiltIn(built_in),
                None => PolicySource::File(name.into()),
            },
        })
    }

    fn load(&self, common: &Common) -> Result<Compiled, Problems> {
        Compiled::read(&self.source(common)?)
    }
}

/// Where a gateway file is looked for that nobody names.
const PLACES: [&str; 2] = ["mantlet.toml", "/etc/mantlet/mantlet.toml"];

const PROBLEM: u8 = 1;
const USAGE: u8 = 2;
const REFUSED: u8 = 3;
