//! Where another server is, by its name, and where it is not.

use std::sync::{Arc, OnceLock};

use hickory_resolver::proto::rr::RecordType;
use mantlet_testkit::backend::Answer;
use mantlet_testkit::http::{json_response, response};
use serde_json::json;

use crate::common::{assert_matrix_error, ok};
use crate::federation_door::{PROFILE, World, is_well_known};

/// A world in which delegations are these: the whole answer, by host.
fn delegating(well_known: impl Fn(&str) -> Vec<u8> + Send + 'static) -> World {
    World::new(move |request| match is_well_known(request) {
        true => Answer::Bytes(well_known(request.header("host").unwrap_or_default())),
        false => ok(),
    })
}

fn nothing() -> Vec<u8> {
    response(404, &[], "")
}

#[test]
fn a_name_without_more_is_at_its_own_address_and_the_usual_port() {
    let world = delegating(|_| nothing());
    world.dns.address("hs.test", "127.0.1.1");
    assert_eq!(world.ask("hs.test", PROFILE).status, 200);
    assert_eq!((world.hosts(), world.home.names()), (vec!["hs.test".to_owned()], vec!["hs.test".to_owned()]));
    assert_eq!(world.web.names(), ["hs.test"]);
    let asked: Vec<_> =
        world.dns.asked().into_iter().filter(|(_, of)| *of == RecordType::SRV).map(|(name, _)| name).collect();
    assert_eq!(asked, ["_matrix-fed._tcp.hs.test", "_matrix._tcp.hs.test"]);
}

#[test]
fn an_address_is_asked_by_its_address() {
    let world = World::new(|_| ok());
    assert_eq!(world.ask("127.0.1.1", PROFILE).status, 200);
    let with_port = format!("127.0.1.2:{}", world.home.addr().port());
    assert_eq!(world.ask(&with_port, PROFILE).status, 200);
    assert_eq!(world.hosts(), ["127.0.1.1".to_owned(), with_port]);
    assert!(world.dns.asked().is_empty(), "{:?}", world.dns.asked());
}

#[test]
fn a_delegation_is_followed_to_its_name_and_port() {
    let port = Arc::new(OnceLock::new());
    let here = Arc::clone(&port);
    let world = delegating(move |_| {
        json_response(200, &json!({"m.server": format!("delegated.test:{}", here.get().unwrap())}))
    });
    port.set(world.home.addr().port()).unwrap();
    world.dns.address("hs.test", "127.0.1.1");
    world.dns.address("delegated.test", "127.0.1.2");
    assert_eq!(world.ask("hs.test", PROFILE).status, 200);
    assert_eq!(world.hosts(), [format!("delegated.test:{}", world.home.addr().port())]);
    assert_eq!(world.others["127.0.1.2"].names(), ["delegated.test"]);
    // What it is signed for stays.
    assert!(world.backend.last().unwrap().header("authorization").unwrap().contains("destination=\"hs.test\""));
    // Web sites that serve no reader without a name serve this one, which is nobody's.
    let asked = &world.backend.requests()[0];
    assert_eq!((is_well_known(asked), asked.header("user-agent")), (true, Some("Mozilla/5.0 (compatible)")));
}

#[test]
fn a_delegation_without_a_port_asks_for_services_of_the_delegated_name() {
    let world = delegating(|_| json_response(200, &json!({"m.server": "delegated.test"})));
    world.dns.address("hs.test", "127.0.1.1");
    world.dns.address("else.test", "127.0.1.2");
    world.dns.address("gone.test", "127.0.1.3");
    world.dns.service("_matrix-fed._tcp.delegated.test", 5, "gone.test", 9999);
    world.dns.service("_matrix-fed._tcp.delegated.test", 10, "else.test", world.home.addr().port());
    assert_eq!(world.ask("hs.test", PROFILE).status, 200);
    // The name of the service's host is nowhere but in the DNS.
    assert_eq!(
        (world.hosts(), world.others["127.0.1.2"].names()),
        (vec!["delegated.test".into()], vec!["delegated.test".to_owned()])
    );
}

#[test]
fn a_deprecated_service_counts_where_there_is_no_other() {
    let world = delegating(|_| nothing());
    world.dns.address("hs.test", "127.0.1.1");
    world.dns.address("else.test", "127.0.1.2");
    world.dns.service("_matrix._tcp.hs.test", 10, "else.test", world.home.addr().port());
    assert_eq!(world.ask("hs.test", PROFILE).status, 200);
    assert_eq!(
        (world.hosts(), world.others["127.0.1.2"].names()),
        (vec!["hs.test".into()], vec!["hs.test".to_owned()])
    );
    assert_eq!(world.gateway.metric("mantlet_origin_routes_total{step=\"srv_deprecated\"}"), 1.0);
}

#[test]
fn a_delegation_is_asked_for_once_also_by_many_at_once() {
    let world = delegating(|_| json_response(200, &json!({"m.server": "delegated.test"})));
    world.dns.address("hs.test", "127.0.1.1");
    world.dns.address("delegated.test", "127.0.1.1");
    let (request, door) = (world.request("GET", "hs.test", PROFILE), world.gateway.addr());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(request.send(door).status, 200));
        }
    });
    assert_eq!((world.hosts().len(), world.well_knowns()), (8, 1));
}

#[test]
fn what_is_no_delegation_is_as_if_there_were_none() {
    for answer in [
        nothing(),
        response(200, &[], "not json"),
        json_response(200, &json!({"m.server": 7})),
        json_response(200, &json!({"m.server": "not a name"})),
        json_response(200, &json!({"m.server": "127.1"})),
        json_response(200, &json!({"m.server": "my_hs.test"})),
        json_response(200, &json!({"m.server": "delegated.test", "padding": "x".repeat(60_000)})),
        json_response(500, &json!({"m.server": "delegated.test"})),
        response(302, &[("Location", "http://delegated.test/")], ""),
        response(302, &[("Location", "https://127.0.0.1/")], ""),
        response(302, &[("Location", "/.well-known/matrix/server")], ""),
    ] {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(80)]).into_owned();
        let world = delegating(move |_| answer.clone());
        world.dns.address("hs.test", "127.0.1.1");
        world.dns.address("delegated.test", "127.0.1.2");
        assert_eq!(world.ask("hs.test", PROFILE).status, 200, "{shown}");
        assert_eq!(world.hosts(), ["hs.test"], "{shown}");
        assert!(world.others["127.0.0.1"].names().is_empty() && world.well_knowns() <= 6, "{shown}");
    }
}

#[test]
fn a_delegation_may_be_at_the_end_of_redirects() {
    let port = Arc::new(OnceLock::new());
    let here = Arc::clone(&port);
    let world = World::new(move |request| match request.target_text().as_str() {
        "/.well-known/matrix/server" => {
            let location = format!("https://web.test:{}/there", here.get().unwrap());
            Answer::Bytes(response(301, &[("Location", &location)], ""))
        }
        "/there" => Answer::Bytes(response(307, &[("Location", "/again?x")], "")),
        "/again?x" => Answer::Bytes(json_response(200, &json!({"m.server": "delegated.test"}))),
        _ => ok(),
    });
    port.set(world.web.addr().port()).unwrap();
    for name in ["hs.test", "web.test", "delegated.test"] {
        world.dns.address(name, "127.0.1.1");
    }
    assert_eq!(world.ask("hs.test", PROFILE).status, 200);
    assert_eq!(world.web.names(), ["hs.test", "web.test", "web.test"]);
    assert_eq!(world.home.names(), ["delegated.test"]);
}

#[test]
fn nobody_is_believed_without_a_certificate_for_the_name() {
    let world = delegating(|_| nothing());
    world.dns.address("stranger.test", "127.0.1.1");
    let answer = world.ask("stranger.test", PROFILE);
    assert_matrix_error(&answer, 502, "M_UNKNOWN");
    assert!(world.backend.requests().is_empty(), "{:?}", world.backend.requests());
    assert_eq!(world.gateway.records(1)[0]["error"], "origin_untrusted");
}

#[test]
fn no_spelling_of_any_name_reaches_this_machine() {
    let world = World::with("extends = \"transparent\"", "", |_| ok());
    world.dns.address("inside.test", "127.0.0.1");
    world.dns.address("inside.test", "::1");
    world.dns.address("both.test", "127.0.0.1");
    world.dns.address("both.test", "127.0.1.1");
    world.dns.alias("alias.test", "inside.test");
    world.dns.service("_matrix-fed._tcp.service.test", 1, "inside.test", world.home.addr().port());
    world.dns.service("_matrix-fed._tcp.literal.test", 1, "127.0.0.1", world.home.addr().port());
    let port = world.home.addr().port();
    let mut names: Vec<String> =
        ["inside.test", "alias.test", "service.test", "literal.test", "localhost", "LOCALHOST", "a.localhost"]
            .map(str::to_owned)
            .into();
    for host in [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "[::]",
        "169.254.169.254",
        "10.0.0.1",
        "localhost",
        "inside.test",
        "alias.test",
    ] {
        names.extend([host.to_owned(), format!("{host}:{port}")]);
    }
    for name in names {
        let answer = world.ask(&name, "/_matrix/key/v2/server");
        assert_eq!(answer.status, 502, "{name}: {}", answer.text());
    }
    assert!(world.others["127.0.0.1"].names().is_empty() && world.backend.requests().is_empty());
    // What this machine is in spellings that some readers know: nobody is asked what they might mean.
    let asked = world.dns.asked().len();
    for address in [[127, 0, 0, 1], [0, 0, 0, 0], [10, 1, 2, 3], [169, 254, 169, 254], [192, 168, 0, 1]] {
        for spelling in spellings(address) {
            let answer = world.ask(&spelling, "/_matrix/key/v2/server");
            assert!(matches!(answer.status, 400 | 502), "{spelling}: {}", answer.text());
        }
    }
    assert_eq!(world.dns.asked().len(), asked, "{:?}", &world.dns.asked()[asked..]);
    assert!(world.others["127.0.0.1"].names().is_empty() && world.backend.requests().is_empty());
    // Of two addresses, the one that may be asked is.
    world.dns.address("hs.test", "127.0.0.1");
    world.dns.address("hs.test", "127.0.1.1");
    assert_eq!(world.ask(&format!("hs.test:{port}"), PROFILE).status, 200);
    assert!(world.others["127.0.0.1"].names().is_empty());
}

/// An address as a URL may hold it.
fn spellings([a, b, c, d]: [u8; 4]) -> Vec<String> {
    let whole = u32::from_be_bytes([a, b, c, d]);
    let (last_two, last_three) = (u32::from(c) << 8 | u32::from(d), whole & 0xff_ffff);
    vec![
        format!("{whole}"),
        format!("{whole:#x}"),
        format!("{whole:#X}").replace("0X", "0x"),
        format!("0{whole:o}"),
        format!("{a}.{last_three}"),
        format!("{a}.{b}.{last_two}"),
        format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("{a:#04x}.{b}.0{c:o}.{d}"),
        format!("{a:03}.{b:03}.{c:03}.{d:03}"),
        format!("{a}.{b}.{c}.{d}."),
        format!("[::ffff:{a}.{b}.{c}.{d}]"),
        format!("[::ffff:{:x}:{last_two:x}]", whole >> 16),
        format!("[::{a}.{b}.{c}.{d}]"),
        format!("[64:ff9b::{a}.{b}.{c}.{d}]"),
        format!("[2002:{:x}:{last_two:x}::]", whole >> 16),
        format!("[0:0:0:0:0:FFFF:{:X}:{last_two:X}]", whole >> 16),
        format!("[::ffff:{a}.{b}.{c}.{d}%25lo]"),
        format!("x@{a}.{b}.{c}.{d}"),
        format!("{a}.{b}.{c}.{d}%00.example"),
    ]
}

#[test]
fn what_was_looked_at_is_what_is_connected_to() {
    let world = World::new(|_| ok());
    world.dns.address("hs.test", "127.0.1.1");
    let server = format!("hs.test:{}", world.home.addr().port());
    assert_eq!(world.ask(&server, PROFILE).status, 200);
    let looked_up = |of| world.dns.asked().iter().filter(|(_, asked)| *asked == of).count();
    assert_eq!((looked_up(RecordType::A), looked_up(RecordType::AAAA)), (1, 1));
    // The name moves to an address within, and the connection that is open ends.
    world.dns.remove("hs.test");
    world.dns.address("hs.test", "127.0.0.1");
    world.backend.close_connections();
    for _ in 0..20 {
        let answer = world.ask(&server, PROFILE);
        assert!(matches!(answer.status, 200 | 502), "{}", answer.text());
    }
    assert_eq!(world.ask(&server, PROFILE).status, 502);
    assert!(world.others["127.0.0.1"].names().is_empty());
}
