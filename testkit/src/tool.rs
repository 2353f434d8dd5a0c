//! Programs that neither cargo nor PyPI brings: found, or missing by name, or left out because somebody said so.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A program that some tests need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// Node.js with npm, for matrix-js-sdk.
    Node,
    /// The web server.
    Nginx,
    /// Counts instructions, with callgrind.
    Valgrind,
    /// Counts system calls.
    Strace,
    /// A proxy to be measured beside.
    Haproxy,
    /// Another one.
    Caddy,
}

/// Names of tools, with commas, whose tests are left out. Without it a missing tool is a failure.
pub const WITHOUT: &str = "MANTLET_WITHOUT";

impl Tool {
    /// All there are.
    pub const ALL: [Tool; 6] = [Tool::Node, Tool::Nginx, Tool::Valgrind, Tool::Strace, Tool::Haproxy, Tool::Caddy];

    /// Its name in [`WITHOUT`].
    pub fn name(self) -> &'static str {
        match self {
            Tool::Node => "node",
            Tool::Nginx => "nginx",
            Tool::Valgrind => "valgrind",
            Tool::Strace => "strace",
            Tool::Haproxy => "haproxy",
            Tool::Caddy => "caddy",
        }
    }

    /// Whether [`WITHOUT`] names it; then this is said, past the test harness, which would hold it back.
    pub fn left_out(self) -> Result<bool> {
        let without = std::env::var_os(WITHOUT).unwrap_or_default();
        let left_out = named(&without)?.contains(&self);
        if left_out {
            let _ = writeln!(std::io::stderr(), "NOT TESTED: what needs {}, because {WITHOUT} names it", self.name());
        }
        Ok(left_out)
    }

    /// Its programs, in the order of [`Tool::programs`]; the error names the Debian packages.
    pub fn find(self) -> Result<Vec<PathBuf>> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Where Debian has servers, and users have no PATH to.
        let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        self.find_in(&places.collect::<Vec<_>>())
    }

    fn find_in(self, places: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let find = |program: &&str| {
            let found = places.iter().map(|place| place.join(program)).find(|path| is_program(path));
            found.ok_or_else(|| Error::new(self.missing(program)))
        };
        self.programs().iter().map(find).collect()
    }

    fn missing(self, program: &str) -> String {
        let (name, packages) = (self.name(), self.packages());
        format!("{program} is missing. On Debian: apt-get install {packages}. To test without it: {WITHOUT}={name}")
    }

    /// What it brings to run.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Tool::Node => &["node", "npm"],
            Tool::Nginx => &["nginx"],
            Tool::Valgrind => &["valgrind", "callgrind_annotate", "callgrind_control"],
            Tool::Strace => &["strace"],
            Tool::Haproxy => &["haproxy"],
            Tool::Caddy => &["caddy"],
        }
    }

    fn packages(self) -> &'static str {
        match self {
            Tool::Node => "nodejs npm",
            Tool::Nginx => "nginx",
            Tool::Valgrind => "valgrind",
            Tool::Strace => "strace",
            Tool::Haproxy => "haproxy",
            Tool::Caddy => "caddy",
        }
    }
}

/// The tools of a list; a word that names none is an error, or something would be tested less than it seems.
fn named(list: &OsStr) -> Result<Vec<Tool>> {
    let list = list.to_string_lossy();
    let words = list.split(',').map(str::trim).filter(|word| !word.is_empty());
    let tool = |word: &str| {
        let known = Tool::ALL.map(Tool::name).join(", ");
        let found = Tool::ALL.into_iter().find(|tool| tool.name() == word);
        found.ok_or_else(|| Error::new(format!("{WITHOUT} names {word:?}; known are {known}")))
    };
    words.map(tool).collect()
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_package_of_what_is_missing() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let places = [dir.path().to_owned()];
        let error = |tool: Tool| tool.find_in(&places).unwrap_err().to_string();
        assert_eq!(
            error(Tool::Nginx),
            "nginx is missing. On Debian: apt-get install nginx. To test without it: MANTLET_WITHOUT=nginx"
        );
        let node = dir.path().join("node");
        std::fs::write(&node, "").unwrap();
        assert!(error(Tool::Node).starts_with("node is missing"), "what cannot be run is no program");
        std::fs::set_permissions(&node, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(error(Tool::Node).starts_with("npm is missing. On Debian: apt-get install nodejs npm."));
    }

    #[test]
    fn only_what_is_named_is_left_out() {
        let names = |list: &str| named(list.as_ref());
        assert_eq!(names("").unwrap(), []);
        assert_eq!(names("node, strace").unwrap(), [Tool::Node, Tool::Strace]);
        assert_eq!(names("nginx,").unwrap(), [Tool::Nginx]);
        let error = names("nodejs").unwrap_err().to_string();
        assert_eq!(error, "MANTLET_WITHOUT names \"nodejs\"; known are node, nginx, valgrind, strace, haproxy, caddy");
    }
}
