use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::*;

/// Is ready and reloads every second time it is asked.
#[derive(Default)]
struct Api {
    asked: AtomicU32,
    reloads: AtomicU32,
}

impl AdminApi for Api {
    fn ledger(&self) -> Value {
        json!({ "contacts": [] })
    }

    fn metrics(&self) -> String {
        "mantlet_up 1\n".into()
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            tokio::task::yield_now().await;
            match self.asked.fetch_add(1, Ordering::SeqCst) % 2 {
                0 => Err("Synapse's /health:\nno answer".to_owned()),
                _ => Ok(()),
            }
        })
    }

    fn version(&self) -> Value {
        json!({ "name": "mantlet", "version": "0.1.0", "generation": 3, "policy": "abc" })
    }

    fn reload(&self) -> BoxFuture<'_, Result<Value, Value>> {
        Box::pin(async {
            match self.reloads.fetch_add(1, Ordering::SeqCst) % 2 {
                0 => Ok(json!({ "generation": 4, "message": "loaded" })),
                _ => Err(json!({ "problems": ["policy.toml:1:1: broken"] })),
            }
        })
    }
}

/// A listener that serves until it is dropped.
struct Served {
    address: AdminAddress,
    api: Arc<Api>,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn served(address: &AdminAddress) -> Served {
    let listener = AdminListener::bind(address).unwrap();
    let api = Arc::new(Api::default());
    let address = listener.address();
    Served { address, api: api.clone(), task: tokio::spawn(serve(listener, api)) }
}

fn on_tcp() -> Served {
    served(&AdminAddress::Tcp("127.0.0.1:0".parse().unwrap()))
}

impl Served {
    async fn get(&self, path: &str) -> (u16, String) {
        self.call(Method::GET, path).await
    }

    async fn call(&self, method: Method, path: &str) -> (u16, String) {
        let (status, body) = call(&self.address, method, path).await.unwrap();
        (status, String::from_utf8(body).unwrap())
    }

    /// What comes back for these bytes, until the listener closes.
    async fn raw(&self, request: &str) -> String {
        let AdminAddress::Tcp(tcp) = &self.address else { panic!("not on TCP") };
        let mut stream = TcpStream::connect(tcp).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    /// The status for a GET of `/metrics` with these fields.
    async fn status(&self, fields: &str) -> u16 {
        self.status_of(&format!("GET /metrics HTTP/1.1\r\n{fields}Connection: close\r\n\r\n")).await
    }

    async fn status_of(&self, request: &str) -> u16 {
        self.raw(request).await.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

#[tokio::test]
async fn answers_what_it_is_for() {
    let served = on_tcp();
    assert_eq!(served.get("/metrics").await, (200, "mantlet_up 1\n".into()));
    assert_eq!(served.get("/livez").await, (200, "ok\n".into()));
    let version = r#"{"name":"mantlet","version":"0.1.0","generation":3,"policy":"abc"}"#;
    assert_eq!(served.get("/version?x=1").await, (200, format!("{version}\n")));
    assert_eq!(
        served.get("/readyz").await,
        (503, "{\"ready\":false,\"reason\":\"Synapse's /health:\\nno answer\"}\n".into())
    );
    assert_eq!(served.get("/readyz").await, (200, "{\"ready\":true}\n".into()));
}

#[tokio::test]
async fn reloads_and_tells_what_came_of_it() {
    let served = on_tcp();
    assert_eq!(served.call(Method::POST, "/reload").await, (200, "{\"generation\":4,\"message\":\"loaded\"}\n".into()));
    assert_eq!(
        served.call(Method::POST, "/reload").await,
        (409, "{\"problems\":[\"policy.toml:1:1: broken\"]}\n".into())
    );
}

#[tokio::test]
async fn wrong_methods_and_paths_do_nothing() {
    let served = on_tcp();
    let response = served.raw("GET /reload HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 405 "), "{response}");
    assert!(response.contains("\r\nallow: POST\r\n"), "{response}");
    let response = served.raw("POST /metrics HTTP/1.1\r\nHost: [::1]:9\r\nConnection: close\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 405 "), "{response}");
    assert!(response.contains("\r\nallow: GET, HEAD\r\n"), "{response}");
    for path in ["/", "/metrics/", "/Metrics", "/%6detrics", "/_matrix/client/versions"] {
        assert_eq!(served.get(path).await.0, 404, "{path}");
    }
    assert_eq!(served.api.reloads.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn head_has_no_body() {
    let response = on_tcp().raw("HEAD /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("\r\n\r\n"), "{response}");
}

#[tokio::test]
async fn every_answer_is_of_its_type_and_not_stored() {
    let served = on_tcp();
    for (target, kind) in [
        ("GET /metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("GET /livez", "text/plain; charset=utf-8"),
        ("GET /version", "application/json"),
        ("GET /nothing", "application/json"),
        ("DELETE /version", "application/json"),
        ("POST /reload", "application/json"),
    ] {
        let response = served.raw(&format!("{target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")).await;
        for field in [format!("content-type: {kind}"), "cache-control: no-store".into()] {
            assert!(response.contains(&format!("\r\n{field}\r\n")), "{target}: {response}");
        }
        assert!(response.contains("\r\nx-content-type-options: nosniff\r\n"), "{target}: {response}");
    }
}

#[tokio::test]
async fn answers_no_browser() {
    let served = on_tcp();
    for mark in ["Origin: https://evil.example", "Origin: null", "Origin:", "Sec-Fetch-Site: cross-site"] {
        assert_eq!(served.status(&format!("Host: 127.0.0.1\r\n{mark}\r\n")).await, 403, "{mark}");
    }
    // Typed into the address line, by whoever sits at this machine.
    assert_eq!(served.status("Host: 127.0.0.1\r\nSec-Fetch-Site: none\r\n").await, 200);
    let reload = "POST /reload HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\nConnection: close\r\n\r\n";
    assert_eq!(served.status_of(reload).await, 403);
    assert_eq!(served.api.reloads.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn answers_no_name_that_could_be_rebound() {
    let served = on_tcp();
    for host in ["127.0.0.1", "127.0.0.1:9090", "[::1]:9090", "[::1]", "localhost:9090", "LocalHost", "10.0.0.1"] {
        assert_eq!(served.status(&format!("Host: {host}\r\n")).await, 200, "{host}");
    }
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil@127.0.0.1",
        "evil.example:9090",
        "0x7f000001",
        "::1",
        "localhost.",
        "",
    ] {
        assert_eq!(served.status(&format!("Host: {host}\r\n")).await, 403, "{host:?}");
    }
    assert_eq!(served.status("").await, 403);
    assert_eq!(served.status("Host: 127.0.0.1\r\nHost: evil.example\r\n").await, 403);
    let absolute = "GET http://evil.example/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    assert_eq!(served.status_of(absolute).await, 403);
}

#[tokio::test]
async fn a_large_head_is_refused() {
    let served = on_tcp();
    let fields = "X: y\r\n".repeat(FIELDS);
    assert_eq!(served.status(&format!("Host: 127.0.0.1\r\n{fields}")).await, 431);
    let long = format!("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX: {}", "y".repeat(HEAD_BYTES));
    assert_eq!(served.status_of(&long).await, 431);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_is_closed() {
    let (mut client, server) = tokio::io::duplex(1024);
    let task = tokio::spawn(connection(Box::new(server), Arc::new(Api::default())));
    client.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
    let before = tokio::time::Instant::now();
    let mut response = Vec::new();
    client.read_to_end(&mut response).await.unwrap();
    task.await.unwrap();
    assert!(before.elapsed() >= HEAD && before.elapsed() < 2 * HEAD);
}

#[tokio::test]
async fn serves_others_when_some_have_hung_up() {
    let served = on_tcp();
    for _ in 0..3 * CONNECTIONS {
        assert_eq!(served.get("/livez").await.0, 200);
    }
}

#[tokio::test]
async fn more_connections_than_fit_wait_for_their_turn() {
    let served = on_tcp();
    let AdminAddress::Tcp(tcp) = served.address else { panic!("not on TCP") };
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        idle.push(TcpStream::connect(tcp).await.unwrap());
    }
    let mut late = TcpStream::connect(tcp).await.unwrap();
    late.write_all(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").await.unwrap();
    // Each idle connection is served, and the late one is not: it would answer before the last of these.
    for stream in &mut idle {
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    assert_eq!(late.try_read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(idle.pop());
    let mut answer = String::new();
    late.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
}

#[tokio::test]
async fn serves_on_a_unix_socket_that_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin");
    let served = served(&AdminAddress::Unix(path.clone()));
    assert_eq!(served.get("/livez").await, (200, "ok\n".into()));
    let mut kept = UnixStream::connect(&path).await.unwrap();
    kept.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    kept.read_exact(&mut [0; 12]).await.unwrap();
    served.task.abort();
    // Connections end with the listener.
    kept.read_to_end(&mut Vec::new()).await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn is_not_reachable_from_outside() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9090", "[::ffff:192.0.2.1]:9090"] {
        let problem = AdminListener::bind(&AdminAddress::Tcp(address.parse().unwrap())).unwrap_err();
        assert_eq!(problem.what, format!("{address} is no loopback address; [admin] is for this machine only"));
    }
}

#[tokio::test]
async fn calling_nobody_says_so_and_where() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let problem = call(&AdminAddress::Tcp(free), Method::POST, "/reload").await.unwrap_err();
    assert!(problem.what.starts_with(&format!("no gateway answers at {free}: Connection refused")), "{problem}");
    let unix = AdminAddress::Unix("/nowhere/admin".into());
    let problem = call(&unix, Method::POST, "/reload").await.unwrap_err();
    assert!(problem.what.starts_with("no gateway answers at unix:/nowhere/admin: No such file"), "{problem}");
}

#[tokio::test]
async fn calling_somebody_else_says_so() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = AdminAddress::Tcp(other.local_addr().unwrap());
    let talk = tokio::spawn(async move {
        let (mut stream, _) = other.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH\r\n").await.unwrap();
    });
    let problem = call(&address, Method::GET, "/livez").await.unwrap_err();
    talk.await.unwrap();
    assert!(problem.what.starts_with(&format!("no gateway answers at {address}: ")), "{problem}");
}
