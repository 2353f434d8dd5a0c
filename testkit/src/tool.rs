//! Programs that neither cargo nor PyPI brings: found, or missing by name, or left out because somebody said so.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Context, Error, Result};

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
    /// Networks and disks of one's own: what runs in one has `unshare` before it.
    Namespaces,
}

/// Names of tools, with commas, whose tests are left out. Without it a missing tool is a failure.
pub const WITHOUT: &str = "MANTLET_WITHOUT";

impl Tool {
    /// All there are.
    pub const ALL: [Tool; 7] =
        [Tool::Node, Tool::Nginx, Tool::Valgrind, Tool::Strace, Tool::Haproxy, Tool::Caddy, Tool::Namespaces];

    /// Its name in [`WITHOUT`].
    pub fn name(self) -> &'static str {
        match self {
            Tool::Node => "node",
            Tool::Nginx => "nginx",
            Tool::Valgrind => "valgrind",
            Tool::Strace => "strace",
            Tool::Haproxy => "haproxy",
            Tool::Caddy => "caddy",
            Tool::Namespaces => "namespaces",
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
            Tool::Namespaces => &["unshare", "mount"],
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
            Tool::Namespaces => "util-linux mount",
        }
    }
}

/// Whether tests have networks and disks of their own: true, or somebody said that they are left out. The error says what is missing.
pub fn namespaces() -> Result<bool> {
    if Tool::Namespaces.left_out()? {
        return Ok(false);
    }
    let programs = Tool::Namespaces.find()?;
    let mut unshare = Command::new(&programs[0]);
    unshare.args(["--map-root-user", "--net", "--mount", "--", "true"]).stdin(Stdio::null());
    let output = unshare.output().context(|| "run unshare".into())?;
    if output.status.success() {
        return Ok(true);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    Err(Error::new(format!(
        "this system lets nobody have a network of their own ({said}). Run the tests as root, in a container with \
         --privileged, or allow it: sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0. \
         To test without it: {WITHOUT}={}",
        Tool::Namespaces.name()
    )))
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
        assert_eq!(
            error,
            "MANTLET_WITHOUT names \"nodejs\"; known are node, nginx, valgrind, strace, haproxy, caddy, namespaces"
        );
    }
}
