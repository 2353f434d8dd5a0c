//! Where Synapse sends a browser that logs in by single sign-on depends on host and scheme: both arrive as the browser used them.

use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Request, Response};
use mantlet_testkit::recorder::Recorder;
use mantlet_testkit::synapse::{Options, Synapse};

use crate::support::Gateway;
use crate::world::{POLICIES, extends};

#[track_caller]
fn location(answer: &Response) -> &str {
    assert_eq!(answer.status, 302, "{}", answer.text());
    answer.header("location").unwrap()
}

#[test]
fn a_browser_is_sent_to_single_sign_on_and_not_in_a_circle() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let (certificate, key) = authority.issue(&["localhost"]).unwrap().write(directory.path()).unwrap();
    let socket = directory.path().join("synapse.sock");
    let upstream = format!("unix:{}", socket.display());
    let listener = format!("tls = {{ certificate = {certificate:?}, key = {key:?} }}");
    // Synapse has to know where browsers find it, so Mantlet is first.
    let gateways = POLICIES.map(|policy| Gateway::with_listener(&upstream, &extends(policy), &listener, ""));
    let plain = Gateway::start(&upstream, &extends("balanced"));
    let host = format!("localhost:{}", gateways[0].addr().port());
    let synapse = Synapse::start(Options {
        server_name: "redirects.localtest".into(),
        public_baseurl: Some(format!("https://{host}/")),
        unix_socket: false,
        extra_yaml: "cas_config: {enabled: true, server_url: 'https://sso.example/cas'}".into(),
        ..Options::default()
    });
    let synapse = synapse.unwrap();
    let _hop = Recorder::start_at(socket.as_path(), synapse.addr()).unwrap();

    for path in ["/_matrix/client/v3/login/sso/redirect", "/_matrix/client/r0/login/cas/redirect"] {
        let target = format!("{path}?redirectUrl=https%3A%2F%2Fapp.example%2F%3Fa%3Db");
        let request = || Request::new("GET", target.as_str()).header("Host", &host);
        // Synapse believes the one field only beside the other.
        let direct = |scheme: &str| {
            let request = request().header("X-Forwarded-For", "127.0.0.2").header("X-Forwarded-Proto", scheme);
            request.send(synapse.addr())
        };
        let (at_home, circle) = (direct("https"), direct("http"));
        assert!(
            location(&at_home).starts_with("https://sso.example/cas/login?service=https%3A%2F%2Flocalhost"),
            "{at_home:?}"
        );
        // With another scheme or host Synapse first sends the browser to where it should have come.
        let canonical = format!("https://{host}{target}");
        assert_eq!(location(&circle), canonical);
        for gateway in &gateways {
            let made_up = request().header("X-Forwarded-Proto", "http").header("X-Forwarded-Host", "elsewhere.example");
            for request in [request(), made_up] {
                let passed = request.send_tls(gateway.addr(), "localhost", &authority.pem());
                assert_eq!(location(&passed), location(&at_home));
            }
            let elsewhere = Request::new("GET", target.as_str()).header("Host", "elsewhere.example");
            let sent = elsewhere.send_tls(gateway.addr(), "localhost", &authority.pem());
            assert_eq!(location(&sent), canonical);
        }
        assert_eq!(location(&request().send(plain.addr())), canonical);
        let made_up = request().header("X-Forwarded-Proto", "https");
        assert_eq!(location(&made_up.send(plain.addr())), canonical, "a client does not say that it came by TLS");
    }
}
