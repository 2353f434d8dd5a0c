//! The list of Synapse's routes, against which Mantlet's own table is proved, is the installed Synapse's.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use mantlet_testkit::venv::{SYNAPSE, synapse_python};

const KEPT: &str = include_str!("routes.txt");

#[test]
fn the_list_of_routes_is_the_installed_synapses() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("testkit/python/routes.py");
    let output = Command::new(synapse_python().unwrap()).arg(&script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = String::from_utf8(output.stdout).unwrap();
    let (kept, new): (BTreeSet<&str>, BTreeSet<&str>) = (KEPT.lines().collect(), found.lines().collect());
    let gone: String = kept.difference(&new).map(|line| format!("-{line}\n")).collect();
    let come: String = new.difference(&kept).map(|line| format!("+{line}\n")).collect();
    assert!(
        found == KEPT,
        "Synapse {SYNAPSE} has other routes than tests/synapse/routes.txt; look at each, then write what\n{} prints there:\n{gone}{come}",
        script.display()
    );
}
