//! Synapse goes away, comes back, and stands still; Mantlet says so truly, and needs no restart of its own.

use std::time::Duration;

use mantlet_testkit::http::{Request, Response};
use mantlet_testkit::synapse::{Options, Role, Synapse};

use crate::support::Gateway;
use crate::world::extends;

/// Far more than Mantlet waits for Synapse here.
const PATIENCE: Duration = Duration::from_secs(30);

fn ready(gateway: &Gateway) -> u16 {
    Request::new("GET", "/readyz").send(gateway.admin()).status
}

/// The gateway's own answer to an accident: for clients to read, and nothing on which they throw away what they have.
#[track_caller]
fn assert_accident(answer: &Response, status: u16) {
    assert_eq!((answer.status, answer.errcode().as_deref()), (status, Some("M_UNKNOWN")), "{}", answer.text());
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[test]
fn another_server_does_not_notice_a_restart() {
    let options = Options { server_name: "patience.localtest".into(), unix_socket: false, ..Options::default() };
    let mut synapse = Synapse::start(options).unwrap();
    let gateway = Gateway::with(&synapse.base_url(), &extends("balanced"), "[limits]\npatience = \"1m\"");
    let key = Request::new("GET", "/_matrix/key/v2/server").timeout(2 * PATIENCE);
    assert_eq!(key.send(gateway.addr()).status, 200);
    synapse.stop().unwrap();
    let addr = gateway.addr();
    let answer = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| key.send(addr));
        while gateway.metric("mantlet_upstream_waiting{upstream=\"synapse\"}") < 1.0 {
            assert!(!waiting.is_finished(), "it does not wait");
            std::thread::park_timeout(Duration::from_millis(2));
        }
        // A person is told at once.
        assert_accident(&Request::new("GET", "/_matrix/client/versions").send(gateway.addr()), 502);
        assert!(!waiting.is_finished());
        synapse.start_again().unwrap();
        waiting.join().unwrap()
    });
    assert_eq!((answer.status, answer.json()["server_name"].as_str()), (200, Some("patience.localtest")));
}

#[test]
fn synapse_goes_and_comes_back() {
    let options = Options { server_name: "restart.localtest".into(), unix_socket: false, ..Options::default() };
    let mut synapse = Synapse::start(options).unwrap();
    let alice = synapse.register("alice", "pw", Role::User).unwrap();
    let gateway = Gateway::with(
        &synapse.base_url(),
        &extends("balanced"),
        "[limits]\nupstream_head = \"1s\"\n[tokens]\npositive = \"0s\"",
    );
    let versions = || Request::new("GET", "/_matrix/client/versions").timeout(PATIENCE).send(gateway.addr());
    let rooms = |token: &str| {
        Request::new("GET", "/_matrix/client/v3/publicRooms").bearer(token).timeout(PATIENCE).send(gateway.addr())
    };
    assert_eq!((versions().status, rooms(&alice.access_token).status, ready(&gateway)), (200, 200, 200));

    synapse.stop().unwrap();
    assert_accident(&versions(), 502);
    assert_accident(&rooms(&alice.access_token), 502);
    assert_eq!(rooms("").status, 401, "what needs no verdict is refused as ever");
    assert_eq!(ready(&gateway), 503);

    synapse.start_again().unwrap();
    assert_eq!((versions().status, rooms(&alice.access_token).status, ready(&gateway)), (200, 200, 200));

    synapse.pause().unwrap();
    assert_accident(&versions(), 504);
    assert_accident(&rooms(&alice.access_token), 504);
    assert_eq!(ready(&gateway), 503);
    synapse.resume().unwrap();
    assert_eq!((versions().status, rooms(&alice.access_token).status, ready(&gateway)), (200, 200, 200));

    synapse.kill().unwrap();
    assert_accident(&versions(), 502);
}
