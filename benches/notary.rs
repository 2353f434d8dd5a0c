//! What the key ring costs: servers that nobody knows yet, all at once and one after the other; then servers that are known.
//!
//! `cargo bench --bench notary` asks a thousand. `cargo test --bench notary` asks a few, and looks only whether it works. Mantlet
//! is a process of its own, so that what the servers cost is not in its figures.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark that cannot be set up has failed"
)]

#[path = "../tests/support/outside.rs"]
#[allow(dead_code, reason = "each part of it is for somebody")]
mod outside;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hickory_resolver::proto::rr::RecordType;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::Request;
use ruma_common::CanonicalJsonObject;
use ruma_common::serde::Base64;
use ruma_common::serde::base64::Standard;
use ruma_signatures::{Ed25519KeyPair, sign_json};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use outside::Dns;

fn main() {
    // As `cargo bench` calls it.
    let is_whole = std::env::args().any(|argument| argument == "--bench");
    // Every twentieth answers late, and every twentieth not at all.
    let (count, late) = if is_whole { (1000, Duration::from_secs(5)) } else { (40, Duration::from_secs(1)) };
    let origins = Origins::start(count, late);
    println!("{origins}\n");
    println!("| question | servers | keys | time | processor time of Mantlet |");
    println!("|---|---|---|---|---|");

    let mantlet = Mantlet::start(&origins);
    let all = origins.names(|_| true);
    let cold = mantlet.ask(&all);
    origins.assert_complete(&cold.keys, &all);
    cold.print("all at once, none known", all.len());
    let again = mantlet.ask(&all);
    origins.assert_complete(&again.keys, &all);
    again.print("the same at once again", all.len());
    origins.assert_nobody_was_asked_twice();

    let known: Vec<_> = origins.names(|kind| kind == Kind::Fast).into_iter().take(100).collect();
    let rounds = if is_whole { 200 } else { 3 };
    let warm = (0..rounds).map(|_| mantlet.ask(&known)).fold(Asked::default(), |sum, asked| Asked {
        keys: asked.keys,
        time: sum.time + asked.time,
        processor: sum.processor + asked.processor,
    });
    assert_eq!(warm.keys.len(), known.len());
    let each = Asked { time: warm.time / rounds, processor: warm.processor / rounds, ..warm };
    each.print(&format!("known ones, mean of {rounds}"), known.len());
    origins.assert_nobody_was_asked_twice();
    drop(mantlet);

    // Whoever asks one after the other waits for each that is late: for all of them that takes many minutes.
    let some: Vec<_> = all.into_iter().take(count / 10).collect();
    let mantlet = Mantlet::start(&origins);
    let mut one_by_one = Asked::default();
    for server in &some {
        let asked = mantlet.ask(std::slice::from_ref(server));
        one_by_one.keys.extend(asked.keys);
        one_by_one.time += asked.time;
        one_by_one.processor += asked.processor;
    }
    origins.assert_complete(&one_by_one.keys, &some);
    one_by_one.print("one after the other, none known", some.len());
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fast,
    Late,
    /// Refuses connections.
    Dead,
    /// Takes connections, and says nothing.
    Silent,
}

/// Servers in plenty, on loopback.
struct Origins {
    authority: Authority,
    dns: Dns,
    servers: Vec<(String, Kind)>,
    late: Duration,
    /// How often each was asked.
    asked: Arc<Mutex<HashMap<String, usize>>>,
    _silent: TcpListener,
}

impl Origins {
    fn start(count: usize, late: Duration) -> Self {
        let (dns, authority) = (Dns::start(), Authority::new().unwrap());
        let (socket, silent) = (listener("127.0.1.1:0"), listener("127.0.1.3:0"));
        let port = |socket: &TcpListener| socket.local_addr().unwrap().port();
        let (lively, quiet) = (port(&socket), port(&silent));
        let servers: Vec<_> = (0..count)
            .map(|number| {
                let (kind, address, port) = match number % 40 {
                    3 => (Kind::Dead, "127.0.1.2", lively),
                    23 => (Kind::Silent, "127.0.1.3", quiet),
                    13 | 33 => (Kind::Late, "127.0.1.1", lively),
                    _ => (Kind::Fast, "127.0.1.1", lively),
                };
                let name = format!("s{number:04}.many.test");
                dns.address(&name, address);
                (format!("{name}:{port}"), kind)
            })
            .collect();
        let answers = servers.iter().map(|(name, kind)| (name.clone(), (*kind, Bytes::from(keys(name))))).collect();
        let asked = Arc::new(Mutex::new(HashMap::new()));
        let (counted, config) = (Arc::clone(&asked), outside::config(&authority.issue(&["*.many.test"]).unwrap()));
        thread::spawn(move || serve(socket, config, answers, late, counted));
        Self { authority, dns, servers, late, asked, _silent: silent }
    }

    fn names(&self, wanted: impl Fn(Kind) -> bool) -> Vec<String> {
        self.servers.iter().filter(|(_, kind)| wanted(*kind)).map(|(name, _)| name.clone()).collect()
    }

    /// Whoever answers is there, and nobody else.
    fn assert_complete(&self, keys: &[String], of: &[String]) {
        let answers = |name: &&String| {
            self.servers.iter().any(|(known, kind)| known == *name && matches!(kind, Kind::Fast | Kind::Late))
        };
        assert_eq!(keys.iter().collect::<Vec<_>>(), of.iter().filter(answers).collect::<Vec<_>>());
    }

    fn assert_nobody_was_asked_twice(&self) {
        let asked = self.asked.lock().unwrap();
        assert!(asked.values().all(|times| *times == 1), "{asked:?}");
        // Those who are asked in vain are looked up all the same.
        let mut looked_up = HashMap::<_, usize>::new();
        for (name, of) in self.dns.asked() {
            *looked_up.entry((name, of)).or_default() += usize::from(of == RecordType::A);
        }
        assert!(looked_up.values().all(|times| *times <= 1), "{looked_up:?}");
    }
}

impl std::fmt::Display for Origins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = |kind| self.servers.iter().filter(|(_, other)| *other == kind).count();
        let (fast, late, dead, silent) = (count(Kind::Fast), count(Kind::Late), count(Kind::Dead), count(Kind::Silent));
        let all = self.servers.len();
        write!(
            f,
            "{all} servers: {fast} answer, {late} after {:?}, {dead} refuse connections, {silent} say nothing",
            self.late
        )
    }
}

fn listener(at: &str) -> TcpListener {
    TcpListener::bind(at.parse::<SocketAddr>().unwrap()).unwrap()
}

/// What a server of this name publishes.
fn keys(server: &str) -> Vec<u8> {
    let pair = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "a".into()).unwrap();
    let key = Base64::<Standard, _>::new(pair.public_key().to_vec()).encode();
    let object = json!({
        "server_name": server, "valid_until_ts": now() + 3600 * 1000,
        "verify_keys": {"ed25519:a": {"key": key}}, "old_verify_keys": {},
    });
    let mut object: CanonicalJsonObject = serde_json::from_value(object).unwrap();
    sign_json(server, &pair, &mut object).unwrap();
    serde_json::to_vec(&object).unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Plays all servers that answer.
fn serve(
    socket: TcpListener,
    config: rustls::ServerConfig,
    answers: HashMap<String, (Kind, Bytes)>,
    late: Duration,
    asked: Arc<Mutex<HashMap<String, usize>>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        socket.set_nonblocking(true).unwrap();
        let (socket, acceptor) =
            (tokio::net::TcpListener::from_std(socket).unwrap(), TlsAcceptor::from(Arc::new(config)));
        let answers = Arc::new(answers);
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            let (acceptor, answers, asked) = (acceptor.clone(), Arc::clone(&answers), Arc::clone(&asked));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
                    let name = request.headers()["host"].to_str().unwrap().to_owned();
                    *asked.lock().unwrap().entry(name.clone()).or_default() += 1;
                    let (kind, answer) = answers[&name].clone();
                    async move {
                        if kind == Kind::Late {
                            tokio::time::sleep(late).await;
                        }
                        Ok::<_, Infallible>(http::Response::new(Full::new(answer)))
                    }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

/// Mantlet with a notary door and a store, which knows nobody yet.
struct Mantlet {
    process: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

#[derive(Default)]
struct Asked {
    keys: Vec<String>,
    time: Duration,
    processor: Duration,
}

impl Mantlet {
    fn start(origins: &Origins) -> Self {
        let dir = tempfile::tempdir().unwrap();
        origins.authority.write(dir.path()).unwrap();
        origins.asked.lock().unwrap().clear();
        let socket = dir.path().join("notary.sock");
        let text = format!(
            "[[listener]]\ndoor = \"notary\"\nserver_name = \"notary.test:8449\"\nbind = \"unix:{}\"\nextra_roots = [\"ca.crt\"]\n\
             [egress]\nnameservers = [\"{}\"]\nstore = \"keys.redb\"\nnotary_key = \"notary.key\"\n\
             [egress.addresses]\nallow = [\"127.0.1.0/24\"]\n[log]\nlevel = \"warn\"\n",
            socket.display(),
            origins.dns.addr()
        );
        fs::write(dir.path().join("mantlet.toml"), text).unwrap();
        let key = dir.path().join("notary.key");
        fs::write(&key, "ed25519 notary YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mantlet"));
        command.arg("--config").arg(dir.path().join("mantlet.toml")).arg("run");
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let mantlet = Self { process, socket, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&mantlet.socket).is_err() {
            assert!(Instant::now() < deadline, "Mantlet does not start");
            thread::sleep(Duration::from_millis(5));
        }
        mantlet
    }

    fn ask(&self, servers: &[String]) -> Asked {
        let minimum = now() + 60_000;
        let wanted: BTreeMap<_, _> =
            servers.iter().map(|server| (server, json!({"ed25519:a": {"minimum_valid_until_ts": minimum}}))).collect();
        let request = Request::new("POST", "/_matrix/key/v2/query").header("Host", "notary.test:8449");
        let request = request.json(&json!({ "server_keys": wanted })).timeout(Duration::from_secs(30));
        let (processor, began) = (self.processor(), Instant::now());
        let answer = request.send(self.socket.as_path());
        let (time, processor) = (began.elapsed(), self.processor().saturating_sub(processor));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer: Value = answer.json();
        let keys = answer["server_keys"].as_array().unwrap();
        assert!(keys.iter().all(|keys| keys["signatures"].as_object().unwrap().len() == 2), "it is signed by both");
        Asked {
            keys: keys.iter().map(|keys| keys["server_name"].as_str().unwrap().to_owned()).collect(),
            time,
            processor,
        }
    }

    /// What all its threads have used so far.
    fn processor(&self) -> Duration {
        let tasks = Path::new("/proc").join(self.process.id().to_string()).join("task");
        let used = |task: PathBuf| -> Option<u64> {
            fs::read_to_string(task.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
        };
        Duration::from_nanos(fs::read_dir(tasks).unwrap().filter_map(|task| used(task.ok()?.path())).sum())
    }
}

impl Drop for Mantlet {
    fn drop(&mut self) {
        let _ = self.process.kill().and_then(|()| self.process.wait());
    }
}

impl Asked {
    fn print(&self, question: &str, servers: usize) {
        println!("| {question} | {servers} | {} | {:.1?} | {:.1?} |", self.keys.len(), self.time, self.processor);
    }
}
