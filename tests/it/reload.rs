//! Reloads: each way to ask for one, what keeps the old policy, and a thousand of them under load.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use mantlet::server::reload::Trigger;
use mantlet_testkit::backend::Answer;
use mantlet_testkit::http::{Connection, Request, response};

use crate::common::*;
use crate::process::{Process, Site};
use crate::support::Gateway;

const CLOSED: &str = "[[rules.closed_endpoint]]\nendpoint = \"get_supported_versions\"\n";

/// Whether the policy in force closes the endpoint.
fn is_closed(process: &Process) -> bool {
    Request::new("GET", VERSIONS).send(process.addr()).status == 403
}

fn is_last_good(process: &Process) -> bool {
    process.metric("mantlet_policy_last_reload_successful") == Some(1.0)
}

#[test]
fn a_signal_reloads() {
    let upstream = homeserver();
    let site = Site::new(&url(&upstream), OPEN, "");
    let process = site.start();
    assert!(!is_closed(&process) && is_last_good(&process));
    assert_eq!((process.generation(), process.metric("mantlet_policy_generation")), (1, Some(1.0)));
    site.write("policy.toml", CLOSED);
    process.signal("HUP");
    eventually("the new policy is in force", || is_closed(&process));
    eventually("and counted", || process.generation() == 2);
    process.wait_log("it is told who asked", |line| line["generation"] == 2 && line["trigger"] == "Signal");
    process.wait_record("records name the generation", |record| record["generation"] == 2 && record["status"] == 403);
}

#[test]
fn the_command_reloads_and_says_what_came_of_it() {
    let upstream = homeserver();
    let site = Site::new(&url(&upstream), OPEN, "");
    let process = site.start();

    let unchanged = site.run(&["reload"]);
    assert_eq!((unchanged.code, unchanged.out.as_str()), (Some(0), "generation 1: the policy is unchanged\n"));

    site.write("policy.toml", CLOSED);
    let ran = site.run(&["reload"]);
    assert!(
        ran.code == Some(0) && ran.out.starts_with("generation 2: ") && ran.out.ends_with("is in force\n"),
        "{ran:?}"
    );
    assert!(is_closed(&process));

    // A comment changes the text, not what is in force; it is a generation all the same, for its digest is another.
    site.write("policy.toml", &format!("# again\n{CLOSED}"));
    let ran = site.run(&["--format", "json", "reload"]);
    let told: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, told["generation"].as_u64()), (Some(0), Some(3)), "{ran:?}");
    assert_eq!(site.run(&["reload"]).out, "generation 3: the policy is unchanged\n");
}

#[test]
fn a_broken_policy_keeps_the_old_one_and_is_told_everywhere() {
    let upstream = homeserver();
    let site = Site::new(&url(&upstream), CLOSED, "");
    let process = site.start();
    let own_test = "[[test]]\nrequest = \"GET /_matrix/client/versions\"\nexpect = { decision = \"permit\" }\n";
    for (broken, words) in [
        ("[rules.public_romos]\n".to_owned(), "there is no rule `public_romos`"),
        ("[rules\n".to_owned(), "policy.toml:1:7"),
        (format!("{CLOSED}{own_test}"), "the policy's own test failed"),
    ] {
        site.write("policy.toml", &broken);
        let ran = site.run(&["reload"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.out.starts_with("generation 1: ") && ran.out.contains(words), "{ran:?}");
        assert!(is_closed(&process) && !is_last_good(&process), "{broken}");
        assert_eq!(process.generation(), 1);
        process.wait_log("it is told", |line| {
            line["level"] == "ERROR" && line["problem"].as_str().is_some_and(|problem| problem.contains(words))
        });
    }
    std::fs::remove_file(site.path().join("policy.toml")).unwrap();
    assert_eq!(site.run(&["reload"]).code, Some(1));
    assert!(is_closed(&process));
    site.write("policy.toml", OPEN);
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert!(!is_closed(&process) && is_last_good(&process));
}

#[test]
fn a_half_written_policy_is_not_taken() {
    let upstream = homeserver();
    let whole = format!("{OPEN}\n{CLOSED}\n[rules.server_banner]\n");
    let site = Site::new(&url(&upstream), &whole, "");
    let process = site.start();
    for end in 0..whole.len() {
        site.write("policy.toml", &whole[..end]);
        let ran = site.run(&["reload"]);
        assert_eq!(ran.code, Some(1), "{:?}: {ran:?}", &whole[..end]);
        assert_eq!(process.generation(), 1);
    }
    assert!(is_closed(&process));
}

#[test]
fn a_file_that_is_renamed_over_the_policy_is_noticed() {
    let upstream = homeserver();
    let site = Site::new(&url(&upstream), "extends = \"base.toml\"", "");
    site.write("base.toml", OPEN);
    let process = site.start();
    assert!(!is_closed(&process));
    site.write("base.toml", CLOSED);
    eventually("the base is in force", || is_closed(&process));
    site.write("policy.toml", OPEN);
    eventually("the policy is in force", || !is_closed(&process));
    site.write("policy.toml", "broken");
    eventually("a broken one is told", || !is_last_good(&process));
    assert!(!is_closed(&process));
}

#[test]
fn a_link_that_kubernetes_swaps_is_noticed() {
    let upstream = homeserver();
    let site = Site::new(&url(&upstream), OPEN, "");
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, site.path().join("link")).unwrap();
        std::fs::rename(site.path().join("link"), site.path().join(name)).unwrap();
    };
    for (version, policy) in [("..2026_01", OPEN), ("..2026_02", CLOSED)] {
        std::fs::create_dir(site.path().join(version)).unwrap();
        std::fs::write(site.path().join(version).join("policy.toml"), policy).unwrap();
    }
    link("..2026_01", "..data");
    link("..data/policy.toml", "policy.toml");
    let process = site.start();
    assert!(!is_closed(&process));
    link("..2026_02", "..data");
    std::fs::remove_dir_all(site.path().join("..2026_01")).unwrap();
    eventually("the new policy is in force", || is_closed(&process));
}

#[test]
fn what_changed_in_the_gateway_file_is_named_and_waits_for_a_restart() {
    let upstream = homeserver();
    let site = Site::new(&url(&upstream), OPEN, "[limits]\nbody = \"1MiB\"");
    let process = site.start();
    site.write(
        "mantlet.toml",
        &site.gateway_file("http://127.0.0.1:1", "127.0.0.1:0", "[limits]\nbody = \"2MiB\"\n[log]\nlevel = \"debug\""),
    );
    site.write("policy.toml", CLOSED);
    let ran = site.run(&["reload"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for key in ["[limits] body", "[upstream.synapse] servers", "[log] level"] {
        assert!(ran.out.contains(&format!("needs a restart: {key}\n")), "{key}: {ran:?}");
        process.wait_log("it is told", |line| line["level"] == "WARN" && line["key"] == key);
    }
    assert!(!ran.out.contains("[[listener]]"), "{ran:?}");
    assert!(is_closed(&process), "the policy does not wait");
    let other = Request::new("GET", "/_matrix/client/v3/login").send(process.addr());
    assert_eq!(other.status, 200, "the upstream is the old one");
    site.write("mantlet.toml", "nonsense");
    assert_eq!(site.run(&["-c", "mantlet.toml", "reload"]).code, Some(1));
}

#[test]
fn without_an_admin_listener_the_command_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mantlet.toml"), "[policy]\nfile = \"policy.toml\"").unwrap();
    let ran = crate::process::run(dir.path(), &["reload"]);
    assert!(ran.code == Some(1) && ran.err.contains("[admin]") && ran.err.contains("SIGHUP"), "{ran:?}");
}

/// Strips `x-a`, hides the server.
const A: &str = "[rules.public_rooms]\n[rules.request_headers]\nremove = [\"x-a\"]\n[rules.server_banner]\n";
/// Strips `x-b`, shows the server.
const B: &str = "[rules.public_rooms]\n[rules.request_headers]\nremove = [\"x-b\"]\n";

#[test]
fn a_thousand_reloads_under_load_drop_nothing_mix_nothing_and_open_nothing() {
    const RELOADS: usize = 1000;
    let upstream = mantlet_testkit::backend::Backend::start(|request| {
        let seen: Vec<_> = ["x-a", "x-b"].into_iter().filter(|name| request.header(name).is_some()).collect();
        Answer::Bytes(response(200, &[("Server", "Synapse")], seen.join(" ")))
    })
    .unwrap();
    let gateway = Gateway::with(&url(&upstream), A, "[workers]\ncount = 2\n[log]\naccess = \"off\"");
    let (is_over, by_a, by_b, refused) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|n| {
                let (addr, is_over, by_a, by_b, refused) = (gateway.addr(), &is_over, &by_a, &by_b, &refused);
                scope.spawn(move || {
                    let request = Request::new("PUT", "/_matrix/client/v3/rooms/!a:hs/send/m/1")
                        .header("X-A", "1")
                        .header("X-B", "1")
                        .body("{}");
                    let protected = Request::new("GET", "/_matrix/client/v3/publicRooms");
                    let mut client = Connection::open(addr).unwrap();
                    let mut count = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        let answer = client.send(&request).unwrap_or_else(|error| panic!("dropped: {error:?}"));
                        assert_eq!(answer.status, 200);
                        let judged = (answer.text(), answer.header("server").map(str::to_owned));
                        match (judged.0.as_str(), judged.1.as_deref()) {
                            ("x-b", None) => by_a.fetch_add(1, Ordering::Relaxed),
                            ("x-a", Some("Synapse")) => by_b.fetch_add(1, Ordering::Relaxed),
                            mixed => panic!("judged by two generations: {mixed:?}"),
                        };
                        let answer = client.send(&protected).unwrap_or_else(|error| panic!("dropped: {error:?}"));
                        assert_eq!(answer.status, 401);
                        refused.fetch_add(1, Ordering::Relaxed);
                        count += 1;
                        if count % 50 == n {
                            client = Connection::open(addr).unwrap();
                        }
                    }
                })
            })
            .collect();
        let (mut good, mut bad) = (0, 0);
        for n in 0..RELOADS {
            // Without a tenth of broken ones, A and B in turn; the texts differ, so that each is a new generation.
            let policy = if n % 2 == 0 { B } else { A };
            let text = match n % 20 {
                3 => format!("# {n}\n{policy}")[..20].to_owned(),
                13 => format!("# {n}\n{policy}[rules.none]\n"),
                _ => format!("# {n}\n{policy}"),
            };
            let new = gateway.dir().join("policy.new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, gateway.policy_file()).unwrap();
            match gateway.reloader().reload(Trigger::Command) {
                Ok(_) => good += 1,
                Err(_) => bad += 1,
            }
            if clients.iter().any(thread::ScopedJoinHandle::is_finished) {
                break;
            }
        }
        is_over.store(true, Ordering::Relaxed);
        for client in clients {
            if let Err(panic) = client.join() {
                std::panic::resume_unwind(panic);
            }
        }
        assert_eq!((good, bad), (RELOADS - RELOADS / 10, RELOADS / 10));
    });
    let (by_a, by_b) = (by_a.into_inner(), by_b.into_inner());
    assert!(by_a > 100 && by_b > 100 && refused.into_inner() > 100, "{by_a} by A, {by_b} by B");
    let generation = gateway.reloader().current().number;
    assert!(generation > 800, "{generation} generations");
    let protected = upstream.requests().iter().filter(|request| request.target.ends_with(b"publicRooms")).count();
    assert_eq!(protected, 0, "protected requests arrived");
}
