//! One that has a proxy door and no federation door, in a network in which nothing else is: every packet of it is looked at.
//!
//! Servers are found by service records, or have a port in their names; a page and a push gateway are there, too.

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::certificate::Authority;
use mantlet_testkit::http::{Request, json_response, response};
use mantlet_testkit::recorder::RecordedRequest;
use mantlet_testkit::synapse::{Options, Place, Role, Synapse, Watch};
use mantlet_testkit::tool::namespaces;
use serde_json::{Value, json};

use crate::contacts_with;
use crate::support::Gateway;
use crate::support::outside::{Dns, TlsFront};

const NAMES: [&str; 6] = ["fed.test", "old.test", "port.test", "moved.test", "preview.test", "push.test"];

fn answer(request: &RecordedRequest) -> Vec<u8> {
    let page = "<html><head><title>What is far away</title></head><body>Far away</body></html>";
    match request.target_text().split('?').next().unwrap_or_default() {
        "/page" => response(200, &[("Content-Type", "text/html; charset=utf-8")], page),
        "/_matrix/federation/v1/query/profile" => json_response(200, &json!({"displayname": "Bob afar"})),
        _ => json_response(200, &json!({})),
    }
}

/// A Mantlet whose proxy door is a socket.
fn door(at: &std::path::Path, authority: &Authority, dns: &Dns, front: &TlsFront) -> Gateway {
    let dir = tempfile::tempdir().unwrap();
    authority.write(dir.path()).unwrap();
    std::fs::write(dir.path().join("policy.toml"), "extends = \"balanced\"\n").unwrap();
    let text = format!(
        "[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"unix:{}\"\nports = [{}]\nextra_roots = [\"ca.crt\"]\n\
         [policy]\nfile = \"policy.toml\"\n[upstream.synapse]\nservers = [\"http://127.0.0.1:9\"]\n\
         [admin]\nbind = \"127.0.0.1:0\"\n[egress]\nnameservers = [\"{}\"]\n[egress.addresses]\nallow = [\"127.0.1.0/24\"]\n",
        at.display(),
        front.addr().port(),
        dns.addr()
    );
    Gateway::load(dir, &text, |_| {})
}

#[test]
fn synapse_asks_the_dns_for_services_alone_and_connects_to_nobody_but_the_proxy() {
    if !namespaces().unwrap() {
        return;
    }
    let (dns, authority, directory) = (Dns::start(), Authority::new().unwrap(), tempfile::tempdir().unwrap());
    let backend = Backend::start(|request| Answer::Bytes(answer(request))).unwrap();
    let front = TlsFront::start(&authority, &NAMES, "127.0.1.1:0".parse().unwrap(), backend.addr());
    let port = front.addr().port();
    NAMES.iter().for_each(|name| dns.address(name, "127.0.1.1"));
    dns.service("_matrix-fed._tcp.fed.test", 10, "fed.test", port);
    dns.service("_matrix._tcp.old.test", 10, "old.test", port);
    dns.service("_matrix-fed._tcp.moved.test", 10, "fed.test", port);
    let socket = directory.path().join("proxy.sock");
    let gateway = door(&socket, &authority, &dns, &front);
    let roots = authority.write(directory.path()).unwrap();
    let proxy = format!("http://{}", Watch::DOOR);
    // As Synapse has them by default: what is not in the list is not looked up to know that.
    let never = ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "192.0.2.0/24", "::1/128", "fc00::/7"];
    let synapse = Synapse::start(Options {
        place: Place::Watched(Watch { dns: Some(dns.addr()), door: Some(socket) }),
        federation_ca: Some(roots.clone()),
        roots: Some(roots),
        extra_yaml: json!({
            "https_proxy": proxy, "http_proxy": proxy, "url_preview_enabled": true,
            "ip_range_blacklist": never, "federation_ip_range_blacklist": never, "url_preview_ip_range_blacklist": never,
        })
        .to_string(),
        ..Options::default()
    });
    let synapse = synapse.unwrap();
    let user = |name: &str| synapse.register(name, "a password", Role::User).unwrap();
    let (alice, bob) = (user("alice"), user("bob"));
    let profile = |server: &str| {
        let request = Request::new("GET", format!("/_matrix/client/v3/profile/@bob:{server}"));
        let answer =
            request.bearer(&alice.access_token).timeout(std::time::Duration::from_secs(60)).send(synapse.address());
        (answer.status, answer.json()["displayname"].as_str().map(str::to_owned))
    };
    let there = (200, Some("Bob afar".to_owned()));
    for server in ["fed.test", "old.test", &format!("port.test:{port}")] {
        assert_eq!(profile(server), there, "{server}\n{}\n{}", gateway.written(), synapse.log_tail());
    }
    // A service record that names another host: the TLS inside is for the server, and not for the host of the tunnel.
    assert_eq!(profile("moved.test").0, 502);
    let call = |method: &str, target: &str, body: Option<Value>| {
        synapse.call(Some(&alice), method, target, body.as_ref()).unwrap_or_else(|error| panic!("{error}"))
    };
    let page = format!("/_matrix/client/v1/media/preview_url?url=https%3A%2F%2Fpreview.test%3A{port}%2Fpage");
    assert_eq!(call("GET", &page, None)["og:title"], "What is far away");
    let pusher = json!({
        "kind": "http", "app_id": "test", "app_display_name": "test", "device_display_name": "test", "lang": "en",
        "pushkey": "key", "data": {"url": format!("https://push.test:{port}/_matrix/push/v1/notify")},
    });
    call("POST", "/_matrix/client/v3/pushers/set", Some(pusher));
    let room = json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [bob.user_id]});
    let room = call("POST", "/_matrix/client/v3/createRoom", Some(room))["room_id"].as_str().unwrap().to_owned();
    synapse.call(Some(&bob), "POST", &format!("/_matrix/client/v3/join/{room}"), Some(&json!({}))).unwrap();
    let said = json!({"msgtype": "m.text", "body": format!("hello {}", alice.user_id)});
    let send = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/1");
    synapse.call(Some(&bob), "PUT", &send, Some(&said)).unwrap();
    let pushed = |request: &RecordedRequest| request.target_text() == "/_matrix/push/v1/notify";
    backend.wait_request(std::time::Duration::from_secs(60), pushed).unwrap();

    let packets = synapse.packets().unwrap();
    let mut questions: Vec<_> = packets.iter().filter_map(|packets| packets.question.as_deref()).collect();
    questions.sort_unstable();
    questions.dedup();
    assert_eq!(
        questions,
        [
            "SRV _matrix-fed._tcp.fed.test",
            "SRV _matrix-fed._tcp.moved.test",
            "SRV _matrix-fed._tcp.old.test",
            "SRV _matrix._tcp.old.test",
        ]
    );
    let is_known = |packets: &&mantlet_testkit::synapse::Packets| {
        let with = |peer: &str| packets.to == peer || packets.from == peer;
        match packets.protocol.as_str() {
            "udp" => with(Watch::NAME_SERVER),
            "tcp" => with(Watch::DOOR),
            _ => false,
        }
    };
    let strays: Vec<_> = packets.iter().filter(|packets| !is_known(packets)).collect();
    assert!(strays.is_empty(), "{strays:#?}");
    let federated =
        |contact: &Value| contact["destination"] == format!("fed.test:{port}") && contact["verdict"] == "tunnelled";
    contacts_with(|| gateway.contacts(), |contacts| contacts.iter().any(federated));
}
