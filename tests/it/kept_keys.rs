//! What becomes of keys that are kept when the disk is full, and when the process is killed.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mantlet_testkit::http::Request;
use mantlet_testkit::tool::namespaces;

use crate::common::{eventually, within};
use crate::notary::{World, names, now, private, wanted};
use crate::process::{Process, Site, mantlet};

/// A gateway whose notary door keeps keys in this file.
fn site(world: &World, store: &Path) -> Site {
    let site = Site::new("http://127.0.0.1:9", "[rules.notary]", "");
    world.authority.write(site.path()).unwrap();
    private(&site.path().join("notary.key"), "ed25519 notary YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n");
    site.write(
        "mantlet.toml",
        &format!(
            "[[listener]]\nname = \"test\"\ndoor = \"notary\"\nbind = \"127.0.0.1:0\"\nserver_name = \"notary.gw:8449\"\n\
             extra_roots = [\"ca.crt\"]\n[policy]\nfile = \"policy.toml\"\n[admin]\nbind = \"unix:{}\"\n\
             [egress]\nnameservers = [\"{}\"]\nstore = {store:?}\n[egress.addresses]\nallow = [\"127.0.1.0/24\"]\n",
            site.admin().display(),
            world.dns.addr()
        ),
    );
    site
}

fn question(servers: &[String]) -> Request {
    let request = Request::new("POST", "/_matrix/key/v2/query").header("Host", "notary.gw:8449");
    request.json(&wanted(servers, now())).timeout(Duration::from_secs(30))
}

#[track_caller]
fn ask(process: &Process, servers: &[String]) {
    let (mut found, mut wanted) = (names(&question(servers).send(process.addr())), servers.to_vec());
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
}

fn servers(world: &World, name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| world.honest(&format!("{name}{number:03}"), 3600)).collect()
}

/// How often these were asked. What a process that was killed had sent may still arrive.
fn times_asked(world: &World, servers: &[String]) -> usize {
    world.asked().iter().filter(|(host, _)| servers.contains(host)).count()
}

/// All that is known is on the disk, or is not going to be: what is asked first waits behind it, and what is asked then finds that
/// done.
fn settle(world: &World, process: &Process) {
    for _ in 0..2 {
        ask(process, &servers(world, &format!("settled{}-", world.asked().len()), 1));
    }
}

const BROKEN: &str = "the store cannot be used";
const HANGS: &str = "the disk below the store hangs";

#[track_caller]
fn end(mut process: Process) {
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
    assert!(!process.log().contains(HANGS), "{}", process.log());
}

#[test]
fn a_process_that_is_killed_while_it_writes_loses_nothing_that_was_written() {
    let world = World::new();
    let kept = tempfile::tempdir().unwrap();
    let site = site(&world, &kept.path().join("keys.redb"));
    let old = servers(&world, "old", 30);
    let process = site.start();
    ask(&process, &old);
    end(process);
    for round in 0..6 {
        let new = servers(&world, &format!("new{round}-"), 40);
        let mut process = site.start();
        let door = process.addr();
        std::thread::scope(|scope| {
            // Nobody is there to answer it at the end.
            scope.spawn(|| question(&new).try_send(door));
            // In the midst of it, each time elsewhere.
            eventually("some have been asked", || times_asked(&world, &new) >= 3 + 7 * round);
            process.signal("KILL");
        });
        process.wait();
        let process = site.start();
        ask(&process, &old);
        assert_eq!(times_asked(&world, &old), old.len(), "what was written is asked for again");
        // What was on its way is asked for again, and all is kept.
        ask(&process, &new);
        assert!(!process.log().contains(BROKEN), "{}", process.log());
        end(process);
        let all = [&old[..], &new].concat();
        let asked = times_asked(&world, &all);
        let process = site.start();
        ask(&process, &all);
        assert_eq!(times_asked(&world, &all), asked, "what was asked for again is not kept");
        end(process);
    }
}

/// Whoever opens this file hangs until this ends: somebody has a lease on it, which the kernel takes from him after 45 s.
struct Hanging(Child);

impl Hanging {
    fn at(file: &Path) -> Self {
        let script = "import fcntl, os, signal, sys\n\
            signal.signal(signal.SIGIO, signal.SIG_IGN)\n\
            file = os.open(sys.argv[1], os.O_RDONLY | os.O_CREAT, 0o600)\n\
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)\n\
            print('leased', flush=True)\n\
            sys.stdin.read()";
        let mut python = Command::new("python3");
        python.args(["-c", script]).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut python = python.spawn().unwrap();
        let mut told = [0; 6];
        python.stdout.as_mut().unwrap().read_exact(&mut told).unwrap();
        Self(python)
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_disk_that_hangs_keeps_no_process_from_ending() {
    let world = World::new();
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("keys.redb");
    let site = site(&world, &file);
    for signals in [1, 2] {
        let _hanging = Hanging::at(&file);
        let mut process = site.start();
        ask(&process, &servers(&world, &format!("one{signals}-"), 1));
        process.signal("TERM");
        process.wait_log("it drains", |line| line["message"] == "draining");
        let asked = Instant::now();
        // Whoever asks again does not wait.
        (1..signals).for_each(|_| process.signal("TERM"));
        assert_eq!(process.wait().code(), Some(0), "{}", process.log());
        assert_eq!(asked.elapsed() > Duration::from_secs(4), signals == 1, "{:?}", asked.elapsed());
        assert!(process.log().contains(HANGS), "{}", process.log());
        assert!(process.records().contains("key_get_remote_server_keys_batch"), "{}", process.records());
    }
    // Where it hangs no longer, all is as it was.
    let process = site.start();
    ask(&process, &servers(&world, "two", 1));
    end(process);
}

/// With a disk of four mebibytes that only this process sees; and where others see it.
fn with_a_small_disk(site: &Site, at: &Path) -> (Process, PathBuf) {
    let mut command = Command::new("unshare");
    let script = format!("mount -t tmpfs -o size=4m none '{}' && exec \"$@\"", at.display());
    command.current_dir(site.path()).args(["--map-root-user", "--mount", "--", "sh", "-c", &script, "sh"]);
    command.arg(mantlet(site.path()).get_program());
    let process = site.spawn_by(command);
    process.addr();
    let root = format!("/proc/{}/root{}", process.id(), at.display());
    (process, root.into())
}

#[test]
fn a_disk_that_is_full_is_done_without_and_used_again_when_there_is_room() {
    if !namespaces().unwrap() {
        return;
    }
    let world = World::new();
    let kept = tempfile::tempdir().unwrap();
    let site = site(&world, &kept.path().join("keys.redb"));
    let (process, disk) = with_a_small_disk(&site, kept.path());
    let first = servers(&world, "first", 20);
    ask(&process, &first);
    settle(&world, &process);
    // Somebody else fills the disk.
    let mut filler = std::fs::File::create(disk.join("filler")).unwrap();
    while std::io::Write::write(&mut filler, &[0x55; 4096]).is_ok_and(|written| written > 0) {}
    drop(filler);
    // Enough that the file has to grow.
    let mut meanwhile = Vec::new();
    for batch in 0.. {
        let more = servers(&world, &format!("meanwhile{batch}-"), 50);
        ask(&process, &more);
        meanwhile.extend(more);
        if process.log().contains(BROKEN) {
            break;
        }
        assert!(batch < 80, "the disk is not full: {}", process.log());
    }
    // All are known, and nobody is asked twice.
    let asked = world.asked().len();
    ask(&process, &first);
    ask(&process, &meanwhile[meanwhile.len() - 50..]);
    assert_eq!(world.asked().len(), asked);
    std::fs::remove_file(disk.join("filler")).unwrap();
    let mut later = Vec::new();
    // However long it has been left alone by now.
    within(Duration::from_secs(75), "it is good again", || {
        later = servers(&world, &format!("later{}-", world.asked().len()), 1);
        ask(&process, &later);
        process.log().contains("the store is good again")
    });
    // What was written first and last is there, by a copy of the file as it is on that disk.
    settle(&world, &process);
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(disk.join("keys.redb"), copy.path().join("keys.redb")).unwrap();
    end(process);
    let again = self::site(&world, &copy.path().join("keys.redb")).start();
    let all = [&first[..], &later].concat();
    ask(&again, &all);
    assert_eq!(times_asked(&world, &all), all.len(), "what is on the disk is asked for again");
    end(again);
}
