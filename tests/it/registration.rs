//! Registration by token only: what is asked of the homeserver, and who then registers.

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::{Connection, Request, Response, json_response, response};
use serde_json::{Value, json};

use crate::common::*;
use crate::support::Gateway;

const REGISTER: &str = "/_matrix/client/v3/register";
const POLICY: &str = "[rules.registration]\nusers = \"token\"";

/// A homeserver that answers the gateway's own question so, and makes an account for whoever else registers.
fn registering(mut flows: impl FnMut() -> Answer + Send + 'static) -> Backend {
    backend(move |request| {
        let is_question = request.target_text() == REGISTER && request.body == b"{}";
        if is_question { flows() } else { ok() }
    })
}

fn flows(status: u16, flows: &Value) -> Answer {
    Answer::Bytes(json_response(status, &json!({ "session": "s", "flows": flows, "params": {} })))
}

/// What a client sends that has been through the stage of the token, if one is to believe it.
fn register(gateway: &Gateway) -> Response {
    let body = json!({ "username": "a", "auth": { "type": "m.login.dummy", "session": "s" } });
    Request::new("POST", REGISTER).json(&body).send(gateway.addr())
}

fn accounts(upstream: &Backend) -> usize {
    upstream.requests().iter().filter(|request| request.body != b"{}").count()
}

#[test]
fn who_registers_is_for_the_homeserver_to_say_where_every_way_asks_for_a_token() {
    let upstream = registering(|| {
        let flows_by_token = json!([
            { "stages": ["m.login.registration_token", "m.login.dummy"] },
            { "stages": ["m.login.email.identity", "org.matrix.msc3231.login.registration_token"] },
        ]);
        flows(401, &flows_by_token)
    });
    let gateway = Gateway::with(&url(&upstream), POLICY, "[workers]\ncount = 1");
    for _ in 0..5 {
        assert_eq!(register(&gateway).status, 200);
    }
    let requests = upstream.requests();
    assert_eq!((requests.len(), accounts(&upstream)), (6, 5), "it was asked once");
    let question = &requests[0];
    assert_eq!((question.method.as_str(), question.header("content-type")), ("POST", Some("application/json")));
    assert_eq!((question.header("user-agent"), question.header("x-forwarded-for")), (None, None));
}

#[test]
fn nobody_registers_where_one_way_asks_for_none_or_the_homeserver_does_not_say() {
    let one_open = json!([{ "stages": ["m.login.registration_token"] }, { "stages": ["m.login.dummy"] }]);
    let cases = [
        (flows(401, &one_open), 403, "M_FORBIDDEN"),
        (flows(401, &json!([])), 403, "M_FORBIDDEN"),
        (flows(401, &json!([{ "stages": [] }])), 403, "M_FORBIDDEN"),
        (Answer::Bytes(json_response(403, &json!({ "errcode": "M_FORBIDDEN", "error": "off" }))), 403, "M_FORBIDDEN"),
        (flows(200, &json!([{ "stages": ["m.login.registration_token"] }])), 502, "M_UNKNOWN"),
        (Answer::Bytes(response(401, &[], b"no JSON")), 502, "M_UNKNOWN"),
        (Answer::Bytes(b"no HTTP\r\n\r\n".to_vec()), 502, "M_UNKNOWN"),
    ];
    for (index, (answer, status, errcode)) in cases.into_iter().enumerate() {
        let mut answer = Some(answer);
        let upstream = registering(move || answer.take().unwrap_or_else(ok));
        let gateway = Gateway::start(&url(&upstream), POLICY);
        let told = register(&gateway);
        assert_eq!((told.status, told.errcode().as_deref()), (status, Some(errcode)), "case {index}: {}", told.text());
        assert_eq!(accounts(&upstream), 0, "case {index}");
    }
}

#[test]
fn twenty_at_once_make_one_question() {
    let (pieces, answer) = Answer::stream();
    let mut answer = Some(answer);
    let upstream = registering(move || answer.take().unwrap_or_else(|| flows(401, &json!([]))));
    let gateway = Gateway::with(&url(&upstream), POLICY, "[workers]\ncount = 1");
    let body = "{\"auth\":{}}";
    let request = format!("POST {REGISTER} HTTP/1.1\r\nHost: hs\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut clients: Vec<_> = (0..20)
        .map(|_| {
            let mut client = Connection::open(gateway.addr()).unwrap();
            client.write(request.as_bytes()).unwrap();
            client
        })
        .collect();
    eventually("all wait", || gateway.metric("mantlet_requests_in_flight") >= 20.0);
    pieces.send(json_response(401, &json!({ "flows": [{ "stages": ["m.login.registration_token"] }] }))).unwrap();
    drop(pieces);
    for client in &mut clients {
        assert_eq!(client.response("POST").unwrap().status, 200);
    }
    assert_eq!((upstream.requests().len(), accounts(&upstream)), (21, 20));
}
