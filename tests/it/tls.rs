//! HTTPS: HTTP/1.1 and HTTP/2 on one port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mantlet_testkit::backend::Answer;
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Connection, Request, raw, response};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use crate::common::*;
use crate::support::Gateway;

const NAME: &str = "matrix.example";

/// A gateway with a certificate for [`NAME`], and what to trust it by.
fn gateway(upstream: &str, policy: &str) -> (Gateway, String) {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let (certificate, key) = authority.issue(&[NAME]).unwrap().write(dir.path()).unwrap();
    let tls = format!("tls = {{ certificate = \"{}\", key = \"{}\" }}", certificate.display(), key.display());
    (Gateway::with_listener(upstream, policy, &tls, ""), authority.pem())
}

/// Handshakes with this ALPN; gives what was agreed on and the stream.
async fn connect(addr: SocketAddr, ca: &str, alpn: &[&[u8]]) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from(NAME).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

async fn h2<B>(addr: SocketAddr, ca: &str) -> SendRequest<B>
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let stream = connect(addr, ca, &[b"h2"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(SOON, future).await.expect("it ends in time") })
}

#[test]
fn http1_over_tls_says_https_to_the_homeserver() {
    let upstream = backend(|request| Answer::Bytes(response(200, &[], &request.body)));
    let (gateway, ca) = gateway(&url(&upstream), OPEN);
    let body = noise(1_000_000);
    let request =
        Request::new("POST", "/_matrix/media/v3/upload?a=%2F").header("X-Forwarded-Proto", "http").body(body.clone());
    let answer = request.send_tls(gateway.addr(), NAME, &ca);
    assert!(answer.status == 200 && answer.body == body);
    let seen = upstream.last().unwrap();
    assert_eq!(seen.header_all("x-forwarded-proto"), ["https"]);
    assert_eq!(seen.header("host"), Some(format!("{NAME}:{}", gateway.addr().port()).as_str()));
    let record = &gateway.records(1)[0];
    assert_eq!((record["protocol"].as_str(), record["tls"].as_bool()), (Some("h1"), Some(true)), "{record}");
}

#[test]
fn the_client_chooses_the_protocol() {
    let upstream = homeserver();
    let (gateway, ca) = gateway(&url(&upstream), OPEN);
    run(async {
        for (offered, agreed) in [
            (&[&b"h2"[..], b"http/1.1"][..], Some(&b"h2"[..])),
            (&[b"http/1.1", b"h2"], Some(b"h2")),
            (&[b"http/1.1"], Some(b"http/1.1")),
            (&[], None),
        ] {
            let stream = connect(gateway.addr(), &ca, offered).await;
            assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
        }
    });
}

#[test]
fn http2_arrives_as_http1_with_the_authority_as_host_and_one_cookie() {
    let upstream = backend(|request| Answer::Bytes(response(200, &[("X-Answer", "1")], &request.body)));
    let (gateway, ca) = gateway(&url(&upstream), OPEN);
    let body = noise(500_000);
    let target = "/_matrix/client/v3/directory/room/%23a%2Fb:hs?x=%C3%A9;y";
    let answer = run(async {
        let mut sender = h2(gateway.addr(), &ca).await;
        let request = http::Request::post(format!("https://matrix.example:8448{target}"))
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("te", "trailers")
            .header("proxy-authorization", "Bearer worker-secret")
            .header("x-forwarded-for", "203.0.113.9")
            .body(Full::from(body.clone()))
            .unwrap();
        let (head, answer) = sender.send_request(request).await.unwrap().into_parts();
        assert_eq!((head.status.as_u16(), head.headers.get("x-answer").unwrap().as_bytes()), (200, &b"1"[..]));
        answer.collect().await.unwrap().to_bytes()
    });
    assert!(answer == body);
    let seen = upstream.last().unwrap();
    assert!(seen.body == body);
    assert_eq!(seen.target_text(), target);
    assert_eq!(seen.header_all("host"), ["matrix.example:8448"]);
    assert_eq!(seen.header_all("cookie"), ["a=1; b=2"]);
    assert_eq!(seen.header_all("x-forwarded-proto"), ["https"]);
    assert_eq!(seen.header_all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!((seen.header("te"), seen.header("proxy-authorization")), (None, None));
    assert!(seen.head.starts_with(b"POST ") && seen.head.windows(11).any(|window| window == b" HTTP/1.1\r\n"));
    assert_eq!(gateway.records(1)[0]["protocol"], "h2");
}

#[test]
fn trailers_of_the_homeserver_do_not_reach_an_http2_client() {
    let upstream = backend(|_| {
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: server\r\n\r\n4\r\ndown\r\n0\r\nServer: x\r\n\r\n";
        Answer::Bytes(answer.into())
    });
    let (gateway, ca) = gateway(&url(&upstream), "[rules.server_banner]");
    run(async {
        let mut sender = h2(gateway.addr(), &ca).await;
        let request = http::Request::get(format!("https://hs{VERSIONS}")).body(Full::default()).unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        assert_eq!(head.headers.get("trailer"), None);
        let body = body.collect().await.unwrap();
        assert_eq!(body.trailers(), None);
        assert_eq!(body.to_bytes(), "down");
    });
}

#[test]
fn streams_of_one_connection_do_not_wait_for_each_other() {
    let upstream = backend(|request| match request.target_text().as_str() {
        "/_matrix/client/v3/sync" => Answer::Hang,
        _ => Answer::Bytes(response(200, &[], &request.target)),
    });
    let (gateway, ca) = gateway(&url(&upstream), OPEN);
    run(async {
        let sender = h2(gateway.addr(), &ca).await;
        let get = |target: &str| {
            let request = http::Request::get(format!("https://hs{target}")).body(Full::default()).unwrap();
            let mut sender = sender.clone();
            async move {
                let answer =
                    sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
                String::from_utf8(answer.to_vec()).unwrap()
            }
        };
        let poll = tokio::spawn(get("/_matrix/client/v3/sync"));
        let answers = futures_util::future::join_all((0..30).map(|n| {
            let target = format!("/_matrix/client/v3/rooms/!{n}:hs/state");
            let answer = get(&target);
            async move { (target, answer.await) }
        }))
        .await;
        assert!(answers.iter().all(|(target, answer)| target == answer), "{answers:?}");
        // One stream that is given up ends its request upstream, and the connection goes on.
        poll.abort();
        while upstream.wait_closed(std::time::Duration::from_millis(1)).is_err() {
            tokio::task::yield_now().await;
        }
        assert_eq!(get(VERSIONS).await, VERSIONS);
        assert_eq!(gateway.metric("mantlet_connections{listener=\"test\"}"), 1.0);
    });
}

#[test]
fn http2_bodies_beyond_the_limit_and_upstream_failures_are_answered() {
    let upstream = backend(|_| Answer::Close);
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let (certificate, key) = authority.issue(&[NAME]).unwrap().write(dir.path()).unwrap();
    let tls = format!("tls = {{ certificate = \"{}\", key = \"{}\" }}", certificate.display(), key.display());
    let gateway = Gateway::with_listener(&url(&upstream), OPEN, &tls, "[limits]\nbody = \"10KiB\"");
    run(async {
        let mut sender = h2(gateway.addr(), &authority.pem()).await;
        for (body, status) in [(20_000, 413), (100, 502), (20_000, 413)] {
            let request = http::Request::post(format!("https://hs{VERSIONS}")).body(Full::from(noise(body))).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.status().as_u16(), status);
            assert_eq!(answer.headers()["access-control-allow-origin"], "*");
        }
    });
}

#[test]
fn an_upload_over_http2_that_declares_no_length_gets_one() {
    let upstream = homeserver();
    let (gateway, ca) = gateway(&url(&upstream), OPEN);
    // 1 MiB is what is collected by default.
    let whole = noise(1024 * 1024 + 1);
    let upload = |size: usize| {
        let pieces: Vec<_> = whole[..size].chunks(10_000).map(Bytes::copy_from_slice).collect();
        let pieces = pieces.into_iter().map(|piece| Ok::<_, Infallible>(http_body::Frame::data(piece)));
        let body = StreamBody::new(futures_util::stream::iter(pieces));
        http::Request::post("https://hs/_matrix/media/v3/upload").body(body).unwrap()
    };
    run(async {
        let mut sender = h2(gateway.addr(), &ca).await;
        let answer = sender.send_request(upload(1024 * 1024)).await.unwrap();
        assert_eq!(answer.status(), 200);
        let answer = sender.send_request(upload(1024 * 1024 + 1)).await.unwrap();
        assert_eq!(answer.status(), 411);
    });
    let seen = upstream.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header_all("content-length"), [(1024 * 1024).to_string()]);
    assert!(seen[0].header("transfer-encoding").is_none() && seen[0].body == whole[..1024 * 1024]);
}

#[test]
fn plain_http_on_a_tls_port_is_closed_and_counted() {
    let upstream = homeserver();
    let (gateway, ca) = gateway(&url(&upstream), OPEN);
    let failures = || gateway.metric("mantlet_tls_handshake_failures_total{listener=\"test\"}");
    let answer = raw(gateway.addr(), format!("GET {VERSIONS} HTTP/1.1\r\nHost: hs\r\n\r\n").as_bytes());
    assert!(!answer.starts_with(b"HTTP"), "{:?}", String::from_utf8_lossy(&answer));
    eventually("it is counted", || failures() == 1.0);
    let stranger = Authority::new().unwrap();
    assert!(Connection::open_tls(gateway.addr(), NAME, &stranger.pem()).is_err());
    eventually("so is a client that does not trust us", || failures() == 2.0);
    assert_eq!(Request::new("GET", VERSIONS).send_tls(gateway.addr(), NAME, &ca).status, 200);
    assert_eq!(upstream.requests().len(), 1);
}
