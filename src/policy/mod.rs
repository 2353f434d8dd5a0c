//! The policy engine: pure, no I/O.
//!
//! A rule compiles its TOML table into instructions from a small closed set ([`plan`], [`edit`], [`body`]); for each endpoint they make one
//! [`Plan`](plan::Plan). A request costs one look-up and its own edits, however many rules there are. What may go upstream is proved by
//! [`permit::Permitted`], what comes back is [`permit::Held`] until the permit releases it.

pub mod body;
pub mod cause;
pub mod compiler;
pub mod cut;
pub mod decision;
pub mod edit;
pub mod egress;
pub mod exchange;
pub mod limiter;
pub mod matcher;
pub mod paths;
pub mod permit;
pub mod plan;
pub mod selftest;
mod target;
pub mod telling;

pub use body::BodyAction;
pub use cause::Cause;
pub use compiler::Compiler;
pub use cut::Cut;
pub use decision::{Decision, Denial, Reported, Verdict};
pub use edit::{FieldSet, HeadEdit};
pub use exchange::{Exchange, KeysOf, Registration, TokenVerdict};
pub use permit::{Held, Permit, Permitted, Purpose, Rerouted};
pub use plan::{Action, Destination, Gate, Guests, Policy, Reading, RuleIndex};

use serde::Deserialize;

/// What a rule does with what it finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It acts.
    #[default]
    Enforce,
    /// It only tells: counted and recorded, nothing is changed or refused.
    Report,
    /// It is not there.
    Off,
}

impl Mode {
    /// The name in logs, metrics and policies.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Enforce => "enforce",
            Mode::Report => "report",
            Mode::Off => "off",
        }
    }
}
