//! The policy against Synapse's own routers: whatever spelling reaches a protected servlet is refused to strangers, and
//! whatever is spelled honestly and protected by nothing passes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use mantlet::config::compiled::Compiled;
use mantlet::config::gateway::PolicySource;
use mantlet::config::policy_file::BuiltIn;
use mantlet::policy::Policy;
use mantlet::policy::selftest::{Probe, Seen, Supposed};
use mantlet_testkit::venv::synapse_python;

use crate::support::mutate::Random;

const SPELLINGS: usize = 120_000;

/// The places of servlets that a policy protects, each with its methods. A place is a pattern from its start, or one of
/// Twisted's tree. Written down from what the rules promise, and not taken from the table of endpoints.
const BOTH: &[(&str, &[&str])] = &[
    ("^/_matrix/client/(api/v1|r0|v3|unstable)/publicRooms", &["GET", "POST"]),
    ("^/_matrix/federation/v1/publicRooms", &["GET", "POST"]),
    ("^/_matrix/client/(api/v1|r0|v3|unstable)/profile/", &["GET"]),
    ("^/_matrix/client/v3/profile/", &["GET"]),
    (r"^/_matrix/client/unstable/uk\.tcpip\.msc4133/profile/", &["GET"]),
    ("^/_matrix/client/(r0|v3|unstable)/account/3pid/unbind", &["POST"]),
    ("^/_matrix/federation/v1/version", &["GET"]),
    ("^/_matrix/client/(api/v1|r0|v3|unstable)/admin/whois/", ANY),
    ("^/_synapse/admin/", ANY),
    ("^/_synapse/replication/", ANY),
    ("/_synapse/metrics", ANY),
    ("/_synapse/mas", ANY),
    ("/health", ANY),
    // The redirect to the static pages, which the gateway does not serve.
    ("/", ANY),
];

const STRICT: &[(&str, &[&str])] = &[
    // Questions for the homeserver's own keys pass; no place tells them from others.
    ("^/_matrix/key/v2/query", &["GET", "POST"]),
    ("^/_matrix/federation/v1/query/(?P<query_type>[^/]*)$ profile", &["GET"]),
    ("^/_matrix/client/(api/v1|r0|v3|unstable)/directory/room/", &["GET"]),
    ("^/_matrix/client/(api/v1|r0|v3|unstable)/directory/list/room/", &["GET"]),
    ("^/_matrix/client/v1/room_summary/", &["GET"]),
    ("^/_matrix/client/unstable/im.nheko.summary/", &["GET"]),
    ("^/_matrix/client/(r0|v3|unstable)/register$", &["POST"]),
    ("^/_matrix/client/(r0|v3|unstable)/register/available$", &["GET"]),
    ("^/_matrix/client/(v1|unstable)/register/m.login.registration_token/validity", &["GET"]),
    ("^/_matrix/client/v1/register/m.login.registration_token/validity", &["GET"]),
    ("^/_matrix/client/(r0|v3|unstable)/register/email/requestToken$", &["POST"]),
    ("^/_matrix/client/(r0|v3|unstable)/register/msisdn/requestToken$", &["POST"]),
    ("^/_matrix/client/v1/media/preview_url", &["GET"]),
    ("/_matrix/media/(r0|v3|v1)/preview_url", &["GET"]),
];

/// What passes under both policies, and not without a look at its body.
const READ: &[(&str, &[&str])] = &[
    ("^/_matrix/client/(r0|v3|unstable)/account/3pid/delete", &["POST"]),
    ("^/_matrix/client/(r0|v3|unstable)/account/deactivate", &["POST"]),
    ("^/_matrix/client/(r0|v3|unstable)/account/3pid/bind", &["POST"]),
    ("^/_matrix/client/(api/v1|r0|v3|unstable)/createRoom", &["POST", "PUT"]),
    ("^/_matrix/client/(api/v1|r0|v3|unstable)/pushers/set", &["POST"]),
];

/// What a pattern of Synapse holds that stands for more: of these, only invitations are read.
const MEMBERSHIP: &str = "/(?P<membership_action>join|invite|leave|ban|unban|kick)";

const ANY: &[&str] = &["GET", "POST", "PUT", "DELETE"];

/// Whether a policy protects what stands at this place.
fn is_protected(policy: BuiltIn, method: &str, place: &str) -> bool {
    let method = if method == "HEAD" { "GET" } else { method };
    let more = if policy == BuiltIn::Strict { STRICT } else { &[] };
    is_among(BOTH.iter().chain(more), method, place)
}

/// Whether both policies read the bodies of what is asked at this place.
fn is_read(method: &str, place: &str, path: &str) -> bool {
    is_among(READ.iter(), method, place)
        || (place.contains(MEMBERSHIP) && (path.ends_with("/invite") || path.contains("/invite/")))
}

fn is_among<'a>(mut list: impl Iterator<Item = &'a (&'a str, &'a [&'a str])>, method: &str, place: &str) -> bool {
    list.any(|(protected, methods)| {
        // `/` is a place and no beginning of one, and a query type is one or another.
        let is_whole = protected.len() == 1 || protected.contains(' ');
        let is_there = if is_whole { place == *protected } else { place.starts_with(protected) };
        is_there && methods.contains(&method)
    })
}

/// What the installed Synapse registers: method, place and paths of each route.
type Routes = Vec<(String, String, Vec<String>)>;

/// A request that Synapse's routers were asked about.
struct Asked {
    method: String,
    /// As a client writes it.
    target: String,
    /// Of that, what goes to Synapse without its query.
    path: String,
    /// The places that would run, one for each configuration that differs.
    places: Vec<String>,
}

/// All that they were asked, in one go: first what is spelled as Synapse's patterns are, then all else.
struct Answers {
    honest: Vec<Asked>,
    odd: Vec<Asked>,
}

fn answers() -> &'static Answers {
    static ANSWERS: OnceLock<Answers> = OnceLock::new();
    ANSWERS.get_or_init(ask)
}

fn ask() -> Answers {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("testkit/python/router.py");
    let mut command = Command::new(synapse_python().unwrap());
    let mut child = command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let routes = lines.by_ref().take_while(|line| !line.is_empty()).map(|line| {
        let columns: Vec<_> = line.split('\t').map(str::to_owned).collect();
        assert!(columns.len() > 3, "no path reaches {line}");
        (columns[0].clone(), columns[1].clone(), columns[3..].to_vec())
    });
    let routes: Routes = routes.collect();
    let honest: Vec<_> =
        routes.iter().flat_map(|(method, _, paths)| paths.iter().map(|path| (method.clone(), path.clone()))).collect();
    let odd = spellings(&routes);
    let count = honest.len();
    let asked = honest.into_iter().chain(odd).filter_map(|(method, target)| {
        let path = path_on_the_wire(&method, &target)?;
        Some(Asked { method, target, path, places: Vec::new() })
    });
    let mut asked: Vec<_> = asked.collect();
    let text: String = asked.iter().map(|asked| format!("{}\t{}\n", asked.method, asked.path)).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    for asked in &mut asked {
        let places = lines.next().expect("an answer to each");
        asked.places = places.split('\t').filter(|place| *place != "-").map(str::to_owned).collect();
    }
    writer.join().unwrap().unwrap();
    assert!(lines.next().is_none() && child.wait().unwrap().success());
    let odd = asked.split_off(count);
    Answers { honest: asked, odd }
}

fn policies() -> [(BuiltIn, Arc<Policy>); 2] {
    [BuiltIn::Balanced, BuiltIn::Strict]
        .map(|built_in| (built_in, Compiled::load(&PolicySource::BuiltIn(built_in)).unwrap().policy))
}

/// What becomes of a request with a token that Synapse does not know: `permit`, `read` (its body, first), or anything else.
fn outcome(policy: &Arc<Policy>, method: &str, target: &str) -> &'static str {
    let Ok(mut probe) = Probe::new(method, target) else { return "no request" };
    probe.token = Supposed::Invalid;
    let finding = probe.judge(policy);
    if finding.readings.is_empty() { Seen::of(&finding, policy).outcome } else { "read" }
}

#[test]
fn what_is_spelled_honestly_passes_unless_it_is_protected() {
    let (policies, asked) = (policies(), &answers().honest);
    assert!(asked.len() > 500, "only {} paths", asked.len());
    let mut wrong = Vec::new();
    for Asked { method, path, places, .. } in asked {
        assert!(!places.is_empty(), "Synapse does not serve {method} {path}");
        for (built_in, policy) in &policies {
            let is_protected = places.iter().any(|place| is_protected(*built_in, method, place));
            let outcome = outcome(policy, method, path);
            let is_read = places.iter().any(|place| is_read(method, place, path));
            let is_right = match outcome {
                "permit" => !is_protected && !is_read,
                "read" => !is_protected && is_read,
                _ => is_protected,
            };
            if !is_right {
                wrong.push(format!("{built_in}: {method} {path}: {outcome}, and at Synapse {}", places.join(" or ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_spelling_that_synapse_serves_slips_past_a_rule() {
    let (policies, asked) = (policies(), &answers().odd);
    let mut served = BTreeMap::<&str, usize>::new();
    let mut slipped = BTreeMap::<String, &str>::new();
    for Asked { method, target, path, places } in asked {
        for (built_in, policy) in &policies {
            for place in
                places.iter().filter(|place| is_protected(*built_in, method, place) || is_read(method, place, path))
            {
                *served.entry(place).or_default() += 1;
                let outcome = outcome(policy, method, target);
                if outcome == "permit" || outcome == "read" && !is_read(method, place, path) {
                    // The shortest for each place: what is odd about it is all that is odd about it.
                    let told = slipped.entry(format!("{built_in}: {method} {place}")).or_insert(target);
                    if target.len() < told.len() {
                        *told = target;
                    }
                }
            }
        }
    }
    let slipped: Vec<_> = slipped.iter().map(|(place, target)| format!("{place}: {target}")).collect();
    assert!(slipped.is_empty(), "{}", slipped.join("\n"));
    // That so many spellings were served is what makes the silence above worth something.
    let (all, places) = (served.values().sum::<usize>(), served.len());
    assert!(asked.len() >= 100_000 && all > 10_000 && places > 100, "{} asked, {all} served at {places}", asked.len());
}

/// The path that would go to Synapse, where the request would reach the policy at all: what is no URI or not ASCII never
/// does, and the HTTP library drops a fragment.
fn path_on_the_wire(method: &str, target: &str) -> Option<String> {
    let uri: http::Uri = target.parse().ok()?;
    let method: http::Method = method.parse().ok()?;
    let is_path = uri.scheme().is_none() && uri.path().starts_with('/') && target.starts_with('/');
    let is_plain = uri.path().bytes().all(|byte| (0x21..0x7f).contains(&byte));
    (is_path && is_plain && method != http::Method::CONNECT).then(|| uri.path().to_owned())
}

/// Requests that are a few changes away from what Synapse serves; most of them from what is protected.
fn spellings(routes: &Routes) -> Vec<(String, String)> {
    let mut random = Random::new(0x6d61_6e74_6c65_7401);
    let all = routes.iter().flat_map(|(method, place, paths)| {
        paths.iter().map(move |path| (method.as_str(), place.as_str(), path.as_str()))
    });
    let (protected, other): (Vec<_>, Vec<_>) = all.partition(|(method, place, path)| {
        is_protected(BuiltIn::Strict, method, place)
            || is_read(method, place, path)
            || path.ends_with("/query/!x%3Ay.z")
            || path.contains("/query/")
    });
    // The query types are the variable of one pattern.
    let queries = ["profile", "directory", "client_keys"].map(|kind| format!("/_matrix/federation/v1/query/{kind}"));
    let queries = queries.each_ref().map(|path| ("GET", "", path.as_str()));
    let mut found = BTreeSet::new();
    let mut list = Vec::with_capacity(SPELLINGS);
    while list.len() < SPELLINGS {
        let (method, _, path) = match random.below(10) {
            0 => *random.pick(&other),
            // Administration is most of what is protected, and one prefix.
            1 | 2 => *random.pick(&protected),
            3 => *random.pick(&queries),
            _ => loop {
                let one = random.pick(&protected);
                if !one.1.starts_with("^/_synapse/") {
                    break *one;
                }
            },
        };
        let method = if random.below(4) == 0 { *random.pick(METHODS) } else { method };
        let mut target = path.as_bytes().to_vec();
        for _ in 0..1 + random.below(3) {
            respell(&mut random, &mut target);
        }
        if let Ok(target) = String::from_utf8(target)
            && !target.contains(['\t', '\n', '\r'])
            && found.insert((method, target.clone()))
        {
            list.push((method.to_owned(), target));
        }
    }
    list
}

const METHODS: &[&str] = &[
    "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "Get", "PROPFIND", "GETT", "M-SEARCH",
];

const VALUES: &[&str] = &[
    "@a:b",
    "%40a%3Ab",
    "..",
    ".",
    "",
    "%2e%2e",
    "%2F",
    "%00",
    "+",
    "*",
    "%ff",
    "%zz",
    "%",
    "displayname",
    "avatar_url",
    "display%6Eame",
    "profile",
    "directory",
    "publicRooms",
    "x;y",
    "a=b",
    "@a:b%2F..",
    "~",
    "!a:b",
    "%23a%3Ab",
    "%E2%80%AE",
];
const ENDS: &[&str] = &[
    "/",
    "//",
    "/.",
    "/..",
    "/x",
    "%2F",
    "%2f",
    ";",
    ";a=b",
    ".json",
    "%00",
    "%0a",
    "%20",
    "%3F",
    "%3Fx",
    "%23",
    "?",
    "?x",
    "?/../x",
    "??",
    "#",
    "#x",
    "%",
    "%2",
    "?access_token=x",
    "?access_token=",
    "?access%5Ftoken=x",
    "?kind=guest",
    "?kind=user",
    "?kind=user&kind=guest",
    "?user_id=%40a%3Ab",
    "?a;b",
    "%C0%AF",
    "\u{e9}",
    "%",
    "?%00",
];
const FRONTS: &[&str] = &[
    "/",
    "//",
    "/.",
    "/./",
    "/..",
    "/x/..",
    "/x",
    "/%2e",
    "/%2e%2e",
    "/%2F",
    "%2F",
    "\\",
    "/\\",
    "x",
    "/;",
    "/_matrix",
    "/ ",
    "/_matrix/client/..",
    "/_matrix/client/..%2f..",
    "/%5fmatrix",
    "/_synapse/client/..",
    "http://hs",
    "//hs",
    "/?",
    "/%00",
];
const PIECES: &[&str] = &[
    "/",
    "//",
    "/./",
    "/../",
    "%2F",
    "%5C",
    "\\",
    ";",
    "%",
    "%2",
    "%25",
    "%00",
    ".",
    "..",
    "?",
    "%u0070",
    "\u{ff0f}",
    "%EF%BC%8F",
    "%c0%ae",
    "_",
    "+",
    "%20",
    "&",
    "=",
    ":",
    "@",
    "!",
    "~",
    "'",
    "*",
];

/// Makes one change.
fn respell(random: &mut Random, path: &mut Vec<u8>) {
    if path.is_empty() {
        path.push(b'/');
    }
    let at = random.below(path.len());
    let segments = |path: &[u8]| path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
    match random.below(16) {
        0..=3 => escape(random, path, at, 1),
        4 => {
            // A whole segment.
            let mut parts = segments(path);
            let part = random.below(parts.len());
            let length = parts[part].len();
            if length > 0 {
                escape(random, &mut parts[part], 0, length);
            }
            *path = parts.join(&b'/');
        }
        5 => {
            // Twice.
            escape(random, path, at, 1);
            if let Some(escape) = path.iter().skip(at).position(|byte| *byte == b'%') {
                path.splice(at + escape..at + escape + 1, *b"%25");
            }
        }
        6 => path[at] ^= if path[at].is_ascii_alphabetic() { 0x20 } else { 0 },
        7 => path.extend_from_slice(random.pick(ENDS).as_bytes()),
        8 => {
            path.splice(0..0, random.pick(FRONTS).bytes());
        }
        9 => {
            path.splice(at..at, random.pick(PIECES).bytes());
        }
        10 => {
            // Any byte of a literal for another: patterns with unescaped dots take it.
            let dots: Vec<_> = path.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(at, _)| at).collect();
            let at = if dots.is_empty() { at } else { *random.pick(&dots) };
            path[at] = *random.pick(b"/x.%-~;_");
        }
        11 => {
            let mut parts = segments(path);
            parts.remove(random.below(parts.len()));
            *path = parts.join(&b'/');
        }
        12 => {
            let mut parts = segments(path);
            let part = random.below(parts.len());
            parts.insert(part, parts[part].clone());
            *path = parts.join(&b'/');
        }
        13 => {
            let mut parts = segments(path);
            if let Some(version) = parts.get_mut(3) {
                *version = random
                    .pick(&["v1", "v2", "v3", "r0", "unstable", "api/v1", "v%33", "r%30", "V3", "v9"])
                    .as_bytes()
                    .to_vec();
            }
            *path = parts.join(&b'/');
        }
        _ => {
            // A variable of another value; often enough it is a literal.
            let mut parts = segments(path);
            let part = match parts.iter().position(|part| part == b"!x%3Ay.z") {
                Some(variable) => variable,
                None => random.below(parts.len()),
            };
            parts[part] = random.pick(VALUES).as_bytes().to_vec();
            *path = parts.join(&b'/');
        }
    }
}

/// Percent-encodes some bytes.
fn escape(random: &mut Random, path: &mut Vec<u8>, at: usize, length: usize) {
    let escaped: String = path[at..at + length]
        .iter()
        .map(|byte| if random.below(2) == 0 { format!("%{byte:02x}") } else { format!("%{byte:02X}") })
        .collect();
    path.splice(at..at + length, escaped.into_bytes());
}
