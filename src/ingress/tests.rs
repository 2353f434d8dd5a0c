//! A defect ends the exchange or the connection in which it shows, and nothing else: over real sockets, with defects that are
//! made of data that no file can hold.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::{self as wire, Connection};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;

use super::admission::Admissions;
use super::connection;
use super::listener::{Drain, Listener, Shared, Socket};
use crate::config::address::UpstreamAddress;
use crate::config::egress::Egress;
use crate::config::gateway::Door;
use crate::config::route::Routes;
use crate::config::settings::{Limits, Tokens as TokenLimits};
use crate::config::upstream::Upstream;
use crate::events::events;
use crate::ledger::Ledger;
use crate::matrix::endpoint::Endpoint;
use crate::observe::access::{Format, Protocol, Writer};
use crate::observe::metrics::Metrics;
use crate::rules::testing::policy;
use crate::snapshot::{Generation, Snapshot};
use crate::stack::pace::PaceLimits;
use crate::stack::tokens::Tokens;
use crate::stack::{self, Client, Pace, Peer, Stack, TrustedHops};
use crate::units::Period;
use crate::upstream::{Directory, Upstreams};

const GOOD: &str = "/_matrix/client/versions";
/// Denied by a rule, and with [`Defect::InJudgement`] counted where nothing counts.
const DENIED: &str = "/_matrix/client/v3/register?kind=guest";

/// Where a worker is broken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// While a request is judged: a rule has no counters.
    InJudgement,
    /// Before a request is judged: a patience that ends beyond the end of time.
    BeforeJudgement,
    /// Below all layers: room for more fields than memory holds.
    InTheLibrary,
}

/// A thread that serves, with one listener for each of these, and one socket more for HTTP/2 without TLS.
struct Worker {
    addrs: Vec<SocketAddr>,
    h2: SocketAddr,
    metrics: Arc<Metrics>,
    drain: watch::Sender<Drain>,
    thread: Option<thread::JoinHandle<()>>,
    upstream: Backend,
}

impl Worker {
    fn start(defects: &'static [Defect]) -> Self {
        static IDS: LazyLock<Vec<&str>> = LazyLock::new(|| Endpoint::ALL.iter().map(|it| it.id()).collect());
        let upstream = Backend::start(|_| Answer::Bytes(wire::response(200, &[], "good"))).unwrap();
        let (metrics, port) = (Metrics::new(&IDS), upstream.addr().port());
        let (drain, draining) = watch::channel(Drain::Serving);
        let (tell, told) = mpsc::channel();
        let counts = Arc::clone(&metrics);
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
            runtime.block_on(serve(defects, port, &counts, draining, tell));
        });
        let mut addrs: Vec<_> = told.iter().collect();
        let h2 = addrs.pop().unwrap();
        Self { addrs, h2, metrics, drain, thread: Some(thread), upstream }
    }

    /// Waits until a metric has this value: it counts behind the answers.
    #[track_caller]
    fn wait(&self, metric: &str, value: u32) {
        let (line, deadline) = (format!("{metric} {value}"), Instant::now() + Duration::from_secs(10));
        while !self.metrics.render().lines().any(|it| it == line) {
            assert!(Instant::now() < deadline, "never {line}: {}", self.metrics.render());
            thread::yield_now();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.drain.send(Drain::Over);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "the worker itself broke");
    }
}

async fn serve(
    defects: &[Defect],
    upstream: u16,
    metrics: &Arc<Metrics>,
    drain: watch::Receiver<Drain>,
    tell: mpsc::Sender<SocketAddr>,
) {
    let mut listeners = Vec::new();
    for defect in defects {
        let (chain, shared) = shared(*defect, upstream, metrics, drain.clone());
        let listener = Rc::new(Listener {
            chain: Rc::new(chain),
            policy: None,
            door: Door::Ingress,
            proxy: None,
            tls: None,
            networks: Vec::new(),
            proxy_protocol: false,
            inherited: false,
            shared: Rc::new(shared),
            metrics: metrics.listener("test"),
        });
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        tell.send(socket.local_addr().unwrap()).unwrap();
        let run = tokio::task::spawn_local(Rc::clone(&listener).run(Socket::Tcp(socket)));
        listeners.push((listener, run));
    }
    let h2 = TcpListener::bind("127.0.0.1:0").await.unwrap();
    tell.send(h2.local_addr().unwrap()).unwrap();
    drop(tell);
    let last = Rc::clone(&listeners.last().unwrap().0);
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = h2.accept().await {
            let listener = Rc::clone(&last);
            tokio::task::spawn_local(async move { connection::serve_h2(&listener, stream, h2_peer(&listener)).await });
        }
    });
    for (listener, run) in listeners {
        run.await.unwrap();
        listener.shared.all_gone().await;
    }
}

fn shared(defect: Defect, upstream: u16, metrics: &Arc<Metrics>, drain: watch::Receiver<Drain>) -> (Stack, Shared) {
    let policy = policy("[rules.registration]");
    let generation = match defect {
        Defect::InJudgement => Generation::without_counters(policy),
        Defect::None | Defect::BeforeJudgement | Defect::InTheLibrary => {
            Generation::new(1, policy, Default::default(), metrics)
        }
    };
    let mut limits = Limits::default();
    match defect {
        Defect::None | Defect::InJudgement => {}
        Defect::BeforeJudgement => limits.upstream_head = Period::seconds(u64::MAX),
        Defect::InTheLibrary => limits.fields = usize::MAX,
    }
    let server = UpstreamAddress::Tcp { host: "127.0.0.1".into(), port: upstream };
    let upstreams = [Upstream { name: Upstream::SYNAPSE.into(), servers: vec![server] }];
    let directory = Directory::new(&upstreams, limits.patience.duration(), metrics);
    let stack = stack::stack(stack::Parts {
        snapshot: Snapshot::new(generation),
        tokens: Arc::new(Tokens::new(&TokenLimits::default(), Arc::clone(metrics)).unwrap()),
        limits: limits.clone(),
        metrics: Arc::clone(metrics),
        access: Arc::new(Writer::start(Format::Off, Box::new(std::io::sink()), 1, metrics).unwrap()),
        ledger: Ledger::new(0, None, metrics),
        events: events(&Egress::default(), None, metrics).0,
        routes: Routes::default(),
        upstreams: Upstreams::new(&directory),
        server_name: None,
    });
    let admissions = Admissions::new(limits.connections, limits.per_address);
    (stack, Shared::new(limits, admissions, TrustedHops::default(), drain, Arc::clone(metrics)))
}

fn h2_peer(listener: &Listener<Stack>) -> Rc<Peer> {
    let limits = &listener.shared.limits;
    let (first_byte, head, rest) = (limits.first_byte.duration(), limits.head.duration(), limits.body_idle.duration());
    let pace = Pace::new(PaceLimits { first_byte, head, rest, keep_alive: limits.keep_alive.duration() });
    Rc::new(Peer {
        client: Client::on_this_machine(::http::HeaderValue::from_static("http")),
        hops: None,
        hint: None,
        protocol: Protocol::H2,
        tls: false,
        in_place_of: None,
        listener: listener.metrics.clone(),
        pace: Rc::new(pace),
    })
}

/// What these requests are answered on one connection of HTTP/2, all sent at once.
fn answers_on_h2<const N: usize>(addr: SocketAddr, requests: [(&str, &str); N]) -> [StatusCode; N] {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = TcpStream::connect(addr).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let sent = requests.map(|(method, target)| {
            let request = Request::builder().method(method).uri(format!("http://hs{target}"));
            sender.clone().send_request(request.body(Empty::<Bytes>::new()).unwrap())
        });
        let mut statuses = [StatusCode::default(); N];
        for (status, answer) in statuses.iter_mut().zip(sent) {
            let answer = answer.await.expect("an answer, for the connection lives");
            *status = answer.status();
            answer.into_body().collect().await.expect("a whole one");
        }
        statuses
    })
}

const REQUESTS: &str = "mantlet_requests_total{code=\"5xx\",flow=\"client\",listener=\"test\"}";
const OPEN: &str = "mantlet_connections{listener=\"test\"}";

#[test]
fn a_panic_while_a_request_is_judged_ends_its_exchange() {
    let worker = Worker::start(&[Defect::InJudgement]);
    let mut bystander = Connection::open(worker.addrs[0]).unwrap();
    let mut client = Connection::open(worker.addrs[0]).unwrap();
    for _ in 0..3 {
        let answer = client.send(&wire::Request::new("POST", DENIED).body("{}")).unwrap();
        assert_eq!((answer.status, answer.errcode().as_deref()), (500, Some("M_UNKNOWN")), "{}", answer.text());
        for unharmed in [&mut client, &mut bystander] {
            assert_eq!(unharmed.send(&wire::Request::new("GET", GOOD)).unwrap().text(), "good");
        }
    }
    worker.wait(REQUESTS, 3);
    let answers = answers_on_h2(worker.h2, [("GET", GOOD), ("POST", DENIED), ("GET", GOOD), ("POST", DENIED)]);
    assert_eq!(answers, [200, 500, 200, 500].map(|code| StatusCode::from_u16(code).unwrap()));
    worker.wait(REQUESTS, 5);
    assert_eq!(worker.upstream.requests().len(), 8);
}

#[test]
fn a_panic_before_a_request_is_judged_ends_its_exchange() {
    let worker = Worker::start(&[Defect::BeforeJudgement]);
    let mut client = Connection::open(worker.addrs[0]).unwrap();
    for _ in 0..2 {
        assert_eq!(client.send(&wire::Request::new("GET", GOOD)).unwrap().status, 500);
    }
    assert_eq!(answers_on_h2(worker.h2, [("GET", GOOD); 2]), [StatusCode::INTERNAL_SERVER_ERROR; 2]);
    worker.wait(REQUESTS, 4);
}

#[test]
fn a_panic_outside_of_all_exchanges_ends_its_connection() {
    let worker = Worker::start(&[Defect::InTheLibrary, Defect::None]);
    let mut bystander = Connection::open(worker.addrs[1]).unwrap();
    assert_eq!(bystander.send(&wire::Request::new("GET", GOOD)).unwrap().text(), "good");
    for _ in 0..3 {
        let mut client = Connection::open(worker.addrs[0]).unwrap();
        client.write(b"GET / HTTP/1.1\r\nHost: hs\r\n\r\n").unwrap();
        assert_eq!(client.read_to_end().unwrap(), b"");
        assert_eq!(bystander.send(&wire::Request::new("GET", GOOD)).unwrap().text(), "good");
    }
    // What broke is not open.
    worker.wait(OPEN, 1);
}
