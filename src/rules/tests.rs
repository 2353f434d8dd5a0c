//! What holds for every rule.

use super::testing::{judge, policy, problems};
use super::*;

#[test]
fn every_head_tells_leak_rule_cost_and_example() {
    for rule in RULES {
        let head = rule.head();
        assert!(rule.summary().ends_with('.'), "{}: the first line is no sentence", rule.name);
        for part in ["Leak:", "Rule:", "Cost:", "Example:"] {
            assert!(head.contains(&format!("\n{part}")), "{}: no {part}", rule.name);
        }
    }
}

#[test]
fn every_example_is_a_policy() {
    for rule in RULES {
        let example = rule.example();
        assert!(example.contains(&format!("rules.{}]", rule.name)), "{}: {example}", rule.name);
        policy(&example);
    }
}

#[test]
fn every_rule_without_keys_is_that_rule_with_its_defaults() {
    for rule in RULES.iter().filter(|rule| !rule.example().contains("[[rules.")) {
        let compiled = policy(&format!("[rules.{}]", rule.name));
        assert!(compiled.rules().iter().any(|info| info.name == rule.name && info.mode == Mode::Enforce));
    }
}

#[test]
fn every_rule_refuses_a_key_it_does_not_know() {
    for rule in RULES {
        let repeats = rule.example().contains("[[rules.");
        let header = if repeats { format!("[[rules.{}]]", rule.name) } else { format!("[rules.{}]", rule.name) };
        let problems = problems(&format!("{header}\nbogus = 1"));
        assert!(problems.contains("unknown key `bogus`"), "{}: {problems}", rule.name);
    }
}

#[test]
fn every_rule_can_be_turned_off_or_only_report() {
    let request = ("GET", "/_matrix/client/v3/publicRooms");
    for (mode, seen) in
        [("enforce", "deny public_rooms 401 M_MISSING_TOKEN"), ("report", "permit public_rooms"), ("off", "permit")]
    {
        let policy = policy(&format!("[rules.public_rooms]\nmode = \"{mode}\""));
        assert_eq!(judge(&policy, request.0, request.1, &[]), seen, "{mode}");
    }
    let problems = problems("[rules.public_rooms]\nmode = \"reprot\"");
    assert!(problems.contains("did you mean \"report\"?"), "{problems}");
}

#[test]
fn a_rule_that_does_not_exist_is_named_with_the_nearest() {
    let problems = problems("[rules.public_room]");
    assert!(problems.contains("test.toml:1:8: there is no rule `public_room`"), "{problems}");
    assert!(problems.contains("did you mean `public_rooms`?"), "{problems}");
}

#[test]
fn two_different_answers_to_one_endpoint_are_told_when_the_policy_compiles() {
    let problems = problems(
        "[[rules.closed_endpoint]]\nendpoint = \"federation_get_version\"\nanswer = { json = { a = 1 } }\n[rules.server_banner]",
    );
    assert!(
        problems.contains("closed_endpoint answers `federation_get_version` already, and differently"),
        "{problems}"
    );
}

#[test]
fn names_are_those_of_the_files_and_stand_once() {
    let mut names: Vec<_> = RULES.iter().map(|rule| rule.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), RULES.len());
}

#[test]
fn internal_endpoints_are_never_served() {
    let policy = policy("[rules.server_banner]");
    for path in [
        "/_synapse/admin/v1/server_version",
        "/_synapse/metrics",
        "/_synapse/replication/x",
        "/_synapse/mas/query_user",
        "/_matrix/client/v3/admin/whois/@a:hs",
        "/_synapse/%61dmin/v1/users",
        "/health",
        "/",
    ] {
        assert_eq!(judge(&policy, "GET", path, &[]), "deny surface 404 M_UNRECOGNIZED", "{path}");
    }
}
