//! What is found: what leads past the gateway or keeps the two apart, and what is worth knowing.

use std::fmt;

use serde::Serialize;

use crate::problem::{Location, Problem};

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether something has to be done.
    pub weight: Weight,
    /// What, where, and what to do. No secret is in it.
    #[serde(flatten)]
    pub problem: Problem,
}

/// Whether something has to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// Something goes past the gateway, or does not work with it.
    Finding,
    /// Something cannot be seen from here, or is so by its nature.
    Note,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.weight {
            Weight::Finding => self.problem.fmt(f),
            Weight::Note => write!(f, "note: {}", self.problem),
        }
    }
}

/// All that was found, in the order in which it was looked for.
#[derive(Default)]
pub struct Report(pub Vec<Finding>);

impl Report {
    /// Something has to be done. What is not there has no place.
    pub(super) fn finding<'a>(
        &mut self,
        at: impl Into<Option<&'a Location>>,
        what: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(Weight::Finding, at.into(), what.into(), help.into());
    }

    /// Something is worth knowing.
    pub(super) fn note<'a>(
        &mut self,
        at: impl Into<Option<&'a Location>>,
        what: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(Weight::Note, at.into(), what.into(), help.into());
    }

    fn push(&mut self, weight: Weight, at: Option<&Location>, what: String, help: String) {
        let mut problem = Problem::new(what).at(at.cloned());
        problem.help = Some(help).filter(|help| !help.is_empty());
        self.0.push(Finding { weight, problem });
    }

    /// How many there are of a weight.
    pub fn count(&self, weight: Weight) -> usize {
        self.0.iter().filter(|finding| finding.weight == weight).count()
    }
}
