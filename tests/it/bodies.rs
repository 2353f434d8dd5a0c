//! Bodies that a rule reads: what of them arrives at Synapse, byte for byte.

use std::os::unix::fs::PermissionsExt;

use mantlet::tls::ca;
use mantlet_testkit::backend::Backend;
use mantlet_testkit::http::{Connection, Request, Response};

use crate::common::*;
use crate::support::Gateway;

const DELETE: &str = "/_matrix/client/v3/account/3pid/delete";
const DEACTIVATE: &str = "/_matrix/client/v3/account/deactivate";
const POLICY: &str = "[rules.threepid_unbind]\n";
const LIMIT: usize = 64 * 1024;

/// A gateway with a proxy door that answers for the reserved name.
struct Doors {
    upstream: Backend,
    gateway: Gateway,
    _files: tempfile::TempDir,
}

impl Doors {
    fn new(policy: &str) -> Self {
        let (upstream, files) = (homeserver(), tempfile::tempdir().unwrap());
        let made = ca::make(&["push.test".to_owned()].into()).unwrap();
        let file = |name: &str| files.path().join(name);
        std::fs::write(file("our.crt"), made.certificate).unwrap();
        std::fs::write(file("our.key"), made.key).unwrap();
        std::fs::set_permissions(file("our.key"), PermissionsExt::from_mode(0o600)).unwrap();
        let more = format!(
            "[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\n\
             [egress.ca]\ncertificate = {:?}\nkey = {:?}\n",
            file("our.crt"),
            file("our.key")
        );
        let gateway = Gateway::with(&url(&upstream), policy, &more);
        Self { upstream, gateway, _files: files }
    }

    fn post(&self, path: &str, body: &str) -> Response {
        Request::new("POST", path).bearer("token").body(body).send(self.gateway.addr())
    }

    /// What arrives of a body.
    fn arrives(&self, path: &str, body: &str) -> String {
        assert_eq!(self.post(path, body).status, 200, "{path} {body}");
        let arrived = self.upstream.last().unwrap();
        assert_eq!(arrived.header("content-length"), Some(&*arrived.body.len().to_string()), "{body}");
        assert_eq!((arrived.target_text().as_str(), arrived.header("transfer-encoding")), (path, None));
        String::from_utf8(arrived.body).unwrap()
    }
}

#[test]
fn synapse_unbinds_at_the_reserved_name_and_nowhere_else() {
    let doors = Doors::new(POLICY);
    for version in ["r0", "v3", "unstable"] {
        for (path, query) in [("account/3pid/delete", ""), ("account/deactivate", "?access_token=x&a=%7e")] {
            let path = format!("/_matrix/client/{version}/{path}{query}");
            assert_eq!(doors.arrives(&path, "{}"), r#"{"id_server":"unbind.mantlet.invalid"}"#);
        }
    }
    for (body, arrives) in [
        (
            // Each request of an interactive authentication, also the last.
            r#"{"auth":{"type":"m.login.password","session":"s","id_server":"x"},"erase":true}"#,
            r#"{"auth":{"type":"m.login.password","session":"s","id_server":"x"},"erase":true,"id_server":"unbind.mantlet.invalid"}"#,
        ),
        (r#"{"id_server":null,"a":1.50}"#, r#"{"id_server":"unbind.mantlet.invalid","a":1.50}"#),
        (r#"{ "a" : "\u00e9" , "id_server" : "" }"#, r#"{"a":"\u00e9","id_server":"unbind.mantlet.invalid"}"#),
        (
            r#"{"id_server":"is.test","id\u005fserver":"other.test","\u0069d_server":["x"]}"#,
            r#"{"id_server":"unbind.mantlet.invalid"}"#,
        ),
    ] {
        for path in [DELETE, DEACTIVATE] {
            assert_eq!(doors.arrives(path, body), arrives);
        }
    }
}

#[test]
fn a_body_in_chunks_arrives_as_one_with_a_length() {
    let doors = Doors::new(POLICY);
    let body = format!("{{\"address\":\"a@b\",\"x\":\"{}\"}}", "y".repeat(3000));
    let mut client = Connection::open(doors.gateway.addr()).unwrap();
    let mut request = format!("POST {DELETE} HTTP/1.1\r\nHost: hs\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    request.extend(chunked(body.as_bytes(), 7));
    client.write(&request).unwrap();
    assert_eq!(client.response("POST").unwrap().status, 200);
    let arrived = doors.upstream.last().unwrap();
    let expected = format!("{},\"id_server\":\"unbind.mantlet.invalid\"}}", &body[..body.len() - 1]);
    assert_eq!(String::from_utf8(arrived.body.clone()).unwrap(), expected);
    assert_eq!(arrived.header("content-length"), Some(&*expected.len().to_string()));
    assert_eq!(arrived.header("transfer-encoding"), None);
}

#[test]
fn what_cannot_be_read_never_arrives() {
    let doors = Doors::new(POLICY);
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let long = format!("{{\"a\":{}}}", "9".repeat(1000));
    for path in [DELETE, DEACTIVATE] {
        for (body, errcode) in [
            ("", "M_NOT_JSON"),
            ("id_server=is.test", "M_NOT_JSON"),
            ("{\"id_server\":\"is.test\"", "M_NOT_JSON"),
            ("{\"id_server\":\"is.test\"}{}", "M_NOT_JSON"),
            // What Python would read.
            ("{\"a\":\"\\ud800\"}", "M_NOT_JSON"),
            ("{\"a\":1e400}", "M_NOT_JSON"),
            ("{\"a\":NaN}", "M_NOT_JSON"),
            (&deep, "M_NOT_JSON"),
            (&long, "M_NOT_JSON"),
            ("[]", "M_BAD_JSON"),
            ("\"id_server\"", "M_BAD_JSON"),
        ] {
            assert_matrix_error(&doors.post(path, body), 400, errcode);
        }
    }
    let too_large = format!("{{\"a\":\"{}\"}}", "x".repeat(LIMIT - 7));
    assert_matrix_error(&doors.post(DELETE, &too_large), 413, "M_TOO_LARGE");
    let mut in_chunks =
        format!("POST {DELETE} HTTP/1.1\r\nHost: hs\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    in_chunks.extend(chunked(too_large.as_bytes(), 8192));
    let mut client = Connection::open(doors.gateway.addr()).unwrap();
    client.write(&in_chunks).unwrap();
    assert_matrix_error(&client.response("POST").unwrap(), 413, "M_TOO_LARGE");
    // Two readers would read two endpoints.
    for path in ["/_matrix/client/v3/account/3pid/%64elete", "//_matrix/client/v3/account/deactivate"] {
        assert_matrix_error(&doors.post(path, "{}"), 404, "M_UNRECOGNIZED");
    }
    assert!(doors.upstream.requests().is_empty());
    let refused = doors.gateway.records_with(|record| record["error"] == "too_large");
    let record = &refused[0];
    let said = ["decision", "rule", "mode"].map(|field| record[field].as_str().unwrap_or("-"));
    assert_eq!((said, record["status"].as_u64()), (["deny", "threepid_unbind", "enforce"], Some(400)), "{record}");
    let largest = format!("{{\"a\":\"{}\"}}", "x".repeat(LIMIT - 8));
    assert!(doors.arrives(DELETE, &largest).ends_with(",\"id_server\":\"unbind.mantlet.invalid\"}"));
}

#[test]
fn every_other_body_flows() {
    let doors = Doors::new(POLICY);
    let body = "{ \"id_server\" : \"is.test\"}";
    for path in ["/_matrix/client/v3/account/password", "/_matrix/client/v3/account/3pid/add"] {
        assert_eq!(doors.arrives(path, body), body);
    }
    let put = Request::new("PUT", DELETE).body(body).send(doors.gateway.addr());
    assert_eq!((put.status, doors.upstream.last().unwrap().body), (200, body.as_bytes().to_vec()));
    let large = "x".repeat(2 * LIMIT);
    assert_eq!(doors.arrives("/_matrix/client/v3/rooms/!a:b/send/m.room.message", &large), large);
}

#[test]
fn where_nobody_answers_for_the_reserved_name_bodies_are_left_alone() {
    let upstream = homeserver();
    let proxy = "[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\n";
    let doors = Doors::new("[rules.threepid_unbind]\nmode = \"off\"\n[rules.profiles]\n");
    for (gateway, upstream) in [
        (&Gateway::start(&url(&upstream), POLICY), &upstream),
        (&Gateway::with(&url(&upstream), POLICY, proxy), &upstream),
        (&doors.gateway, &doors.upstream),
    ] {
        for body in ["{ \"id_server\" : \"is.test\"}", "no JSON"] {
            let response = Request::new("POST", DELETE).body(body).send(gateway.addr());
            assert_eq!((response.status, upstream.last().unwrap().body), (200, body.as_bytes().to_vec()));
        }
    }
}

#[test]
fn a_rule_that_only_tells_counts_what_it_would_change_and_refuse() {
    let doors = Doors::new("[rules.threepid_unbind]\nmode = \"report\"\n");
    let large = "x".repeat(2 * LIMIT);
    for body in ["{\"id_server\":\"is.test\"}", "{}", "no JSON", &large] {
        assert_eq!(doors.arrives(DELETE, body), body);
    }
    let mut in_chunks =
        format!("POST {DELETE} HTTP/1.1\r\nHost: hs\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    in_chunks.extend(chunked(large.as_bytes(), 8192));
    let mut client = Connection::open(doors.gateway.addr()).unwrap();
    client.write(&in_chunks).unwrap();
    assert_eq!(client.response("POST").unwrap().status, 200);
    assert!(doors.upstream.last().unwrap().body == large.as_bytes());
    let count = |action: &str| {
        let labels = format!("action=\"{action}\",mode=\"report\",rule=\"threepid_unbind\"");
        doors.gateway.metric(&format!("mantlet_rule_decisions_total{{{labels}}}"))
    };
    assert_eq!((count("edit"), count("deny")), (2.0, 1.0), "{}", doors.gateway.metrics());
    let told = doors.gateway.records_with(|record| record["rule"] == "threepid_unbind");
    let record = told.iter().find(|record| record["rule"] == "threepid_unbind").unwrap();
    assert_eq!((record["mode"].as_str(), record["decision"].as_str()), (Some("report"), Some("permit")));
}

#[test]
fn no_unlisted_identity_server_and_no_unlisted_push_gateway_reaches_synapse() {
    let policy = "[rules.identity_servers]\nservers = [\"is.test\"]\n[rules.push]\ngateways = [\"push.test\"]\n";
    let doors = Doors::new(policy);
    let invited = |server: &str| format!("{{ \"medium\":\"email\",\"address\":\"a@b\", \"id_server\":\"{server}\" }}");
    let room = |server: &str| format!("{{\"name\":\"{}\",\"invite_3pid\":[{}]}}", "x".repeat(200_000), invited(server));
    let paths = ["account/3pid/bind", "rooms/!a:b/invite"].map(|path| format!("/_matrix/client/v3/{path}"));
    for path in &paths {
        assert_matrix_error(&doors.post(path, &invited("evil.test")), 403, "M_SERVER_NOT_TRUSTED");
    }
    let create = "/_matrix/client/v3/createRoom";
    assert_matrix_error(&doors.post(create, &room("evil.test")), 403, "M_SERVER_NOT_TRUSTED");
    assert_matrix_error(&doors.post(create, "[]"), 400, "M_BAD_JSON");
    let set = "/_matrix/client/v3/pushers/set";
    let pusher = |host: &str, more: &str| {
        format!("{{\"kind\":\"http\", \"data\":{{\"url\":\"https://{host}/_matrix/push/v1/notify\"{more}}}}}")
    };
    assert_matrix_error(&doors.post(set, &pusher("evil.test", "")), 403, "M_FORBIDDEN");
    assert_matrix_error(&doors.post(set, &pusher("push.test@evil.test", "")), 403, "M_FORBIDDEN");
    assert!(doors.upstream.requests().is_empty());
    // What is listed passes as it was written, or with its one change.
    for path in &paths {
        assert_eq!(doors.arrives(path, &invited("IS.test:443")), invited("IS.test:443"));
    }
    assert_eq!(doors.arrives(create, &room("is.test")), room("is.test"));
    assert_eq!(doors.arrives(&paths[1], ""), "");
    let full = ",\"format\":\"full\",\"x\":1.0";
    let expected = pusher("push.test", ",\"format\":\"event_id_only\",\"x\":1.0").replace(", ", ",");
    assert_eq!(doors.arrives(set, &pusher("push.test", full)), expected);
    let records = doors.gateway.records_with(|record| record["rule"] == "push");
    let rules: Vec<_> = records.iter().filter_map(|record| record["rule"].as_str()).collect();
    assert_eq!(&rules[..4], ["identity_servers"; 4]);
    assert!(!doors.gateway.written().contains("evil.test"));
}
