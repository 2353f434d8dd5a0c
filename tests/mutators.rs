//! Chance against whatever reads bytes from outside: the same bytes in every run.
//!
//! A target runs for about three seconds; `MANTLET_FUZZ_SECONDS` says how long else. `fuzz/` has the same targets for
//! cargo-fuzz. What one of them finds becomes a case of its own where it belongs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "mutators/bodies.rs"]
mod bodies;
#[path = "mutators/framing.rs"]
mod framing;
#[path = "support/mod.rs"]
mod support;
#[path = "mutators/targets.rs"]
mod targets;

use std::path::Path;
use std::time::{Duration, Instant};

use support::mutate::{Random, mutate};

/// How long each target runs.
fn budget() -> Duration {
    let seconds = std::env::var("MANTLET_FUZZ_SECONDS").ok();
    Duration::from_secs(seconds.map_or(3, |seconds| seconds.parse().expect("MANTLET_FUZZ_SECONDS is a number")))
}

/// Tries a target until its time is over.
fn run(seed: u64, seeds: &[Vec<u8>], words: &[&[u8]], target: impl Fn(&[u8])) {
    let (mut random, until, mut tried) = (Random::new(seed), Instant::now() + budget(), 0_u64);
    for seed in seeds {
        target(seed);
    }
    while tried < 100 || Instant::now() < until {
        target(&mutate(&mut random, seeds, words));
        tried += 1;
    }
    println!("{tried} tried");
}

fn seeds(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn what_is_forwarded_reads_as_one_request_to_whoever_reads_it() {
    let until = Instant::now() + budget();
    std::thread::scope(|scope| {
        for seed in 0..16 {
            scope.spawn(move || {
                let gateway = framing::Framing::start();
                let mut random = Random::new(0x6672_616d + seed);
                let mut tried = 0;
                while tried < 10 || Instant::now() < until {
                    gateway.attempt(&mutate(&mut random, &seeds(framing::SEEDS), framing::WORDS));
                    tried += 1;
                }
            });
        }
    });
}

#[test]
fn an_edited_body_reads_to_synapse_as_before_but_for_one_name() {
    let words: &[&[u8]] = &[
        b"\"id_server\":",
        b"\"id\\u005fserver\":1,",
        b"\\",
        b"\"",
        b"{",
        b"}",
        b",",
        b":",
        b"\xef\xbb\xbf",
        b"\\ud800",
        b"NaN",
        b"\0",
        b"\xff",
    ];
    let (mut random, until) = (Random::new(0x626f_6479), Instant::now() + budget());
    // Python is slower than we are.
    let (mut tried, most) = (Vec::new(), 10_000 * budget().as_secs() as usize);
    while tried.len() < 1000 || Instant::now() < until && tried.len() < most {
        let object = bodies::object(&mut random, 3).into_bytes();
        let spoiled = mutate(&mut random, std::slice::from_ref(&object), words);
        tried.extend([object, spoiled]);
    }
    let (edited, refused) = bodies::held_against_python(&tried);
    println!("{} tried, {edited} edited, {refused} refused that Python reads", tried.len());
    assert!(
        edited > tried.len() / 3 && refused > 0 && refused < tried.len() / 10,
        "{edited} {refused} of {}",
        tried.len()
    );
}

#[test]
fn every_path_has_an_endpoint_that_escapes_do_not_change() {
    let paths = [
        "\0/_matrix/client/v3/publicRooms",
        "\0/_matrix/client/v3/profile/@a:b/displayname",
        "\x01/_matrix/client/unstable/im.nheko.summary/rooms/!a:b/summary",
        "\x02/_matrix/federation/v1/query/profile",
        "\0/_synapse/admin/v1/users/@a:b/login",
        "\x03/_matrix/client/v3/pushrules/global/override/.m.rule.master/enabled",
        "\0/.well-known/matrix/client/x",
        "\x04/_matrix/identity/v2/3pid/unbind",
    ];
    let words: &[&[u8]] =
        &[b"/", b"//", b"%2F", b"%2f", b"%", b"%00", b"%zz", b"..", b".", b";", b"v3", b"_matrix", b"%25", b"%c3"];
    run(0x656e_6470, &seeds(&paths), words, targets::endpoint);
}

#[test]
fn a_token_is_what_synapse_takes_for_one() {
    let requests = [
        "Bearer syt_token\n",
        "Bearer a\nBearer b\nx=1",
        "access_token=a&access_token=b",
        "Bearer a\naccess_token=b",
        "x=1;access%5Ftoken=%41+b",
        "bearer a\n",
        "X-Matrix origin=\"hs\"\n",
        "\n",
    ];
    let words: &[&[u8]] = &[
        b"Bearer ",
        b"Bearer",
        b" ",
        b"  ",
        b"\t",
        b"\n",
        b"access_token=",
        b"access_token",
        b"&",
        b";",
        b"=",
        b"%",
        b"%3D",
        b"%5F",
        b"+",
        b"\xc3\xa9",
        b"%ff",
    ];
    run(0x746f_6b65, &seeds(&requests), words, targets::token);
}

/// The files of a directory.
fn files(directory: &str) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .iter()
        .filter(|path| path.extension().is_some_and(|it| it == "toml"))
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

const TOML: &[&[u8]] = &[
    b"[",
    b"]",
    b"[[",
    b"\"",
    b"'''",
    b"{",
    b"}",
    b"=",
    b",",
    b"\n",
    b"#",
    b"true",
    b"0",
    b"-1",
    b"1e400",
    b"\"10s\"",
    b"\"1MiB\"",
    b"99999999999999999999",
    b"extends",
    b"extends = \"strict\"\n",
    b"[rules.profiles]\n",
    b"[[rules.closed_endpoint]]\n",
    b"[[test]]\n",
    b"mode = \"report\"\n",
    b"\xf0\x9f\xa6\x80",
    b"\\u0000",
    b"1979-05-27",
    b".",
    b"[limits]\n",
    b"[[listener]]\n",
];

#[test]
fn any_text_is_a_policy_or_says_where_it_is_none() {
    let seeds = [files("policies"), files("tests/policies/good"), files("tests/policies/bad")].concat();
    run(0x706f_6c69, &seeds, TOML, targets::policy);
}

#[test]
fn any_text_is_a_gateway_file_or_says_where_it_is_none() {
    let gateway = "[[listener]]\ndoor = \"ingress\"\nname = \"clients\"\nbind = \"0.0.0.0:443\"\ntls = { certificate = \"a.pem\", key = \"b.pem\" }\n\
        [upstream.synapse]\nservers = [\"http://127.0.0.1:8008\"]\n[policy]\nfile = \"policy.toml\"\n[admin]\nbind = \"127.0.0.1:9090\"\n\
        [limits]\nhead = \"10s\"\nbody = \"50MiB\"\nfields = 200\n[forwarded]\ntrusted_hops = [\"127.0.0.1\", \"::1\", \"10.0.0.0/8\"]\n\
        [tokens]\npositive = \"30s\"\n[log]\naccess = \"json\"\n[workers]\n";
    run(0x6761_7465, &seeds(&[gateway, "", "policy = \"strict\"\n"]), TOML, targets::gateway);
}
