//! Mantlet as a process among others, judged by what the far side saw.

#[path = "../support/mod.rs"]
mod support;

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::{Request, json_response};
use serde_json::json;
use support::Gateway;

#[test]
fn a_permitted_request_reaches_the_homeserver_byte_for_byte() {
    let backend = Backend::start(|_| Answer::Bytes(json_response(200, &json!({})))).unwrap();
    let gateway = Gateway::start(&format!("http://{}", backend.addr()), "extends = \"balanced\"");
    let target = "/_matrix/client/v3/directory/room/%23a%2Fb%3Ahs+x?x=%C3%A9;y&z=+";
    let response = Request::new("GET", target).header("Origin", "https://app").send(gateway.addr());
    assert_eq!(response.status, 200);
    let seen = backend.last().unwrap();
    assert_eq!(seen.target, target.as_bytes());
}
