//! A policy file, read, compiled and tested.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::gateway::PolicySource;
use crate::document::Sources;
use crate::policy::Policy;
use crate::policy::selftest::PolicyTest;
use crate::problem::Problems;
use crate::rules;

/// A policy with all that it was made of.
pub struct Compiled {
    /// What judges.
    pub policy: Arc<Policy>,
    /// Its own tests.
    pub tests: Vec<PolicyTest>,
    /// The texts, to tell where something stands.
    pub sources: Arc<Sources>,
    /// All files it was read from.
    pub files: Vec<PathBuf>,
    /// The text of the outermost file.
    pub text: String,
    /// The merged policy as TOML, each line with its origin.
    pub print: String,
}

impl Compiled {
    /// Reads and compiles a policy and runs its tests.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn load(source: &PolicySource) -> Result<Self, Problems> {
        let compiled = Self::read(source)?;
        rules::self_test(&compiled.policy, &compiled.tests, &compiled.sources)?;
        Ok(compiled)
    }

    /// Reads and compiles a policy; its tests are for the caller to run.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn read(source: &PolicySource) -> Result<Self, Problems> {
        let (file, problems) = source.load()?;
        let (sources, files, text, print) =
            (Arc::clone(&file.sources), file.files.clone(), file.text().to_owned(), file.print());
        let (policy, tests) = rules::compile(file.into_draft(), &sources, problems)?;
        Ok(Self { policy, tests, sources, files, text, print })
    }
}
