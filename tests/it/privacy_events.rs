//! The rule `privacy_events`: what is told of what rules refuse, to whom, and that nobody waits for it.

use std::time::Instant;

use mantlet::server::reload::Trigger;
use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::{Request, json_response, response};
use mantlet_testkit::recorder::RecordedRequest;
use serde_json::{Value, json};

use crate::common::{SOON, assert_matrix_error, backend, eventually, homeserver, ok, url};
use crate::process::Site;
use crate::support::Gateway;
use crate::support::outside::Dns;

const UNBIND: &str = "/_matrix/client/v3/account/3pid/unbind";
const IDENTITY_UNBIND: &str = "/_matrix/identity/v2/3pid/unbind";
const BODY: &str =
    "{\"mxid\":\"@carol:hs.test\",\"threepid\":{\"medium\":\"email\",\"address\":\"carol@example.org\"}}";

#[test]
fn a_try_to_unbind_is_one_event_at_each_door_and_names_nobody() {
    let upstream = homeserver();
    let proxy = "[[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\n";
    let site = Site::new(&url(&upstream), "extends = \"balanced\"", proxy);
    let process = site.start();
    let web = process.wait_log("the proxy door is there", |line| line["listener"] == "web");
    let web: std::net::SocketAddr = web["address"].as_str().unwrap().parse().unwrap();

    let unbind = Request::new("POST", UNBIND).bearer("secret-token").body(BODY);
    assert_matrix_error(&unbind.send(process.addr()), 404, "M_UNRECOGNIZED");
    assert_eq!(Request::new("POST", IDENTITY_UNBIND).body(BODY).send(process.addr()).status, 404);
    let out = format!("http://identity.test{IDENTITY_UNBIND}");
    assert_eq!(Request::new("POST", out).body(BODY).send(web).status, 404);

    let is = |line: &Value, flow: &str, endpoint: &str, action: &str| {
        line["message"] == "a privacy event"
            && ["flow", "endpoint", "action", "rule", "mode"].map(|key| &line[key])
                == [flow, endpoint, action, "threepid_unbind", "enforce"]
    };
    for (flow, endpoint, action) in [
        ("client", "threepid_unbind", "deny"),
        ("client", "identity_unbind", "answer"),
        ("egress", "identity_unbind", "answer"),
    ] {
        let told = process.wait_log("it is told", |line| is(line, flow, endpoint, action));
        let record = process.wait_record("and recorded", |record| record["id"] == told["id"]);
        assert_eq!((&record["flow"], &record["endpoint"]), (&json!(flow), &json!(endpoint)));
    }
    let counted = |flow: &str| {
        process.metric(&format!("mantlet_privacy_events_total{{flow=\"{flow}\",rule=\"threepid_unbind\"}}"))
    };
    assert_eq!((counted("client"), counted("egress")), (Some(2.0), Some(1.0)));
    let log = process.log();
    assert_eq!(log.matches("a privacy event").count(), 3, "{log}");
    for secret in ["carol", "identity.test", "secret-token", "\"client\":", "\"user\":", "\"host\":"] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}

/// A gateway with both ways, whose events go to this webhook at `hook.test`, which may be reached or not.
fn telling(upstream: &Backend, dns: &Dns, hook: &Backend, policy: &str, allow: &str) -> Gateway {
    let dir = tempfile::tempdir().unwrap();
    let port = hook.addr().port();
    let policy = format!(
        "[rules.threepid_unbind]\n[rules.profiles]\n[rules.privacy_events]\n\
         webhook = \"http://hook.test:{port}/privacy?key=1\"\n{policy}"
    );
    std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
    let text = format!(
        "[[listener]]\nname = \"in\"\ndoor = \"ingress\"\nbind = \"127.0.0.1:0\"\n\
         [[listener]]\nname = \"web\"\ndoor = \"proxy\"\nbind = \"127.0.0.1:0\"\n[policy]\nfile = \"policy.toml\"\n\
         [upstream.synapse]\nservers = [\"{}\"]\n[egress]\nnameservers = [\"{}\"]\n[egress.addresses]\nallow = [{allow}]\n",
        url(upstream),
        dns.addr()
    );
    dns.address("hook.test", "127.0.0.1");
    Gateway::load(dir, &text, |_| {})
}

fn unbind(gateway: &Gateway) {
    let answer = Request::new("POST", UNBIND).bearer("token").body(BODY).send(gateway.addr_of("in"));
    assert_matrix_error(&answer, 404, "M_UNRECOGNIZED");
}

fn delivered(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(&format!("mantlet_privacy_event_deliveries_total{{result=\"{result}\"}}"))
}

/// All events that came, whole posts apart.
fn events(hook: &Backend) -> Vec<Value> {
    let posts = hook.requests();
    let of = |post: &RecordedRequest| serde_json::from_slice::<Value>(&post.body).unwrap()["events"].clone();
    posts.iter().flat_map(|post| of(post).as_array().unwrap().clone()).collect()
}

#[test]
fn a_webhook_hears_what_happened_and_no_more() {
    let (upstream, dns, hook) = (homeserver(), Dns::start(), homeserver());
    let gateway = telling(&upstream, &dns, &hook, "", "\"hook.test\"");
    unbind(&gateway);
    eventually("it is sent", || delivered(&gateway, "sent") == 1.0);
    let post = &hook.requests()[0];
    assert_eq!((post.method.as_str(), post.target_text().as_str()), ("POST", "/privacy?key=1"));
    let mut fields: Vec<_> = post.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["content-length", "content-type", "host"]);
    assert_eq!(
        (post.header("content-type"), post.header("host").map(|host| host.starts_with("hook.test:"))),
        (Some("application/json"), Some(true))
    );
    let events = events(&hook);
    let mut keys: Vec<_> = events[0].as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["action", "endpoint", "flow", "id", "mode", "rule", "time"]);
    assert_eq!(events[0]["rule"], "threepid_unbind");
    let record = &gateway.records(1)[0];
    assert_eq!((&record["id"], &record["endpoint"]), (&events[0]["id"], &events[0]["endpoint"]));
}

#[test]
fn who_it_was_is_told_only_to_whoever_asks_for_it() {
    let (dns, hook) = (Dns::start(), homeserver());
    let upstream = backend(|request| match request.target_text().ends_with("/account/whoami") {
        true => Answer::Bytes(json_response(200, &json!({"user_id": "@carol:hs.test"}))),
        false => ok(),
    });
    let gateway = telling(&upstream, &dns, &hook, "identifiers = true\n", "\"hook.test\"");
    // Whose the token is is known since the last request that needed to know.
    let profile = Request::new("GET", "/_matrix/client/v3/profile/@a:hs.test").bearer("token");
    assert_eq!(profile.send(gateway.addr_of("in")).status, 200);
    unbind(&gateway);
    let out = format!("http://identity.test{IDENTITY_UNBIND}");
    assert_eq!(Request::new("POST", out).body(BODY).send(gateway.addr_of("web")).status, 404);
    eventually("both are sent", || delivered(&gateway, "sent") == 2.0);
    let events = events(&hook);
    let who =
        |event: &Value| ["flow", "client", "user", "host"].map(|key| event[key].as_str().unwrap_or("-").to_owned());
    assert_eq!(who(&events[0]), ["client", "127.0.0.1", "@carol:hs.test", "-"]);
    // The other way, Synapse says whose it is in the body.
    assert_eq!(who(&events[1]), ["egress", "-", "@carol:hs.test", "identity.test"]);
    // A stranger may say whatever there, and is not believed; nor is what is no name of a user.
    assert_eq!(Request::new("POST", IDENTITY_UNBIND).body(BODY).send(gateway.addr_of("in")).status, 404);
    let out = || Request::new("POST", format!("http://identity.test{IDENTITY_UNBIND}"));
    let long = format!("{{\"mxid\":\"@{}:hs.test\"}}", "a".repeat(300));
    for body in ["", "{}", "no JSON", "{\"mxid\":7}", "{\"mxid\":\"carol\"}", "{\"mxid\":\"@carol\\n:hs\"}", &long] {
        assert_eq!(out().body(body).send(gateway.addr_of("web")).status, 404, "{body}");
    }
    eventually("all are sent", || delivered(&gateway, "sent") == 10.0);
    let events = self::events(&hook);
    assert_eq!(who(&events[2]), ["client", "127.0.0.1", "-", "-"]);
    for event in &events[3..] {
        assert_eq!(who(event), ["egress", "-", "-", "identity.test"]);
    }
}

#[test]
fn a_webhook_that_fails_hears_it_again_and_one_that_refuses_does_not() {
    let (upstream, dns) = (homeserver(), Dns::start());
    let mut answers = [503, 404].into_iter();
    let hook = backend(move |_| Answer::Bytes(response(answers.next().unwrap_or(200), &[], "")));
    let gateway = telling(&upstream, &dns, &hook, "", "\"hook.test\"");
    unbind(&gateway);
    eventually("it is given up", || delivered(&gateway, "failed") == 1.0);
    unbind(&gateway);
    eventually("the next is sent", || delivered(&gateway, "sent") == 1.0);
    assert_eq!((delivered(&gateway, "repeated"), delivered(&gateway, "dropped")), (1.0, 0.0));
    let (records, events) = (gateway.records(2), events(&hook));
    let ids: Vec<_> = events.iter().map(|event| &event["id"]).collect();
    assert_eq!(ids, [&records[0]["id"], &records[0]["id"], &records[1]["id"]]);
    // Each time it is the same, word for word.
    assert_eq!(events[0], events[1]);
}

#[test]
fn a_webhook_is_where_the_way_out_may_lead_or_nowhere() {
    let (upstream, dns, hook) = (homeserver(), Dns::start(), homeserver());
    let gateway = telling(&upstream, &dns, &hook, "", "");
    unbind(&gateway);
    eventually("it failed", || delivered(&gateway, "failed") == 1.0);
    assert_eq!((hook.requests().len(), hook.connections()), (0, 0));
}

#[test]
fn nobody_waits_for_a_webhook_that_is_silent_and_what_it_misses_is_counted() {
    let (upstream, dns) = (homeserver(), Dns::start());
    let mut unanswered = Vec::new();
    let hook = backend(move |_| {
        let (sender, answer) = Answer::stream();
        unanswered.push(sender);
        answer
    });
    let gateway = telling(&upstream, &dns, &hook, "", "\"hook.test\"");
    let began = Instant::now();
    for _ in 0..1500 {
        unbind(&gateway);
    }
    assert!(began.elapsed() < 6 * SOON, "{:?}", began.elapsed());
    let told = "mantlet_privacy_events_total{flow=\"client\",rule=\"threepid_unbind\"}";
    assert_eq!(gateway.metric(told), 1500.0);
    // One request is on its way, and so many wait.
    eventually("the rest is dropped", || delivered(&gateway, "dropped") >= 300.0);
    assert!(hook.requests().len() <= 2 + began.elapsed().as_secs() as usize);
}

#[test]
fn what_only_reports_is_counted_and_told_to_nobody() {
    let (upstream, dns, hook) = (homeserver(), Dns::start(), homeserver());
    let gateway = telling(&upstream, &dns, &hook, "mode = \"report\"\n", "\"hook.test\"");
    unbind(&gateway);
    assert_eq!(gateway.metric("mantlet_privacy_events_total{flow=\"client\",rule=\"threepid_unbind\"}"), 1.0);
    // What is in force is told, and in order: had the other been told, it would be there first, or with it.
    let policy = std::fs::read_to_string(gateway.policy_file()).unwrap();
    std::fs::write(gateway.policy_file(), policy.replace("report", "enforce")).unwrap();
    gateway.reloader().reload(Trigger::Command).unwrap();
    unbind(&gateway);
    eventually("it is sent", || delivered(&gateway, "sent") >= 1.0);
    let records = gateway.records(2);
    let told: Vec<_> = events(&hook).into_iter().map(|event| event["id"].clone()).collect();
    assert_eq!((delivered(&gateway, "sent"), told), (1.0, vec![records[1]["id"].clone()]));
}

#[test]
fn a_way_that_the_policy_closes_can_be_told_too() {
    let (upstream, dns, hook) = (homeserver(), Dns::start(), homeserver());
    let more = "of = [\"egress\"]\nidentifiers = true\n[egress]\ndefault = \"deny\"\n";
    let gateway = telling(&upstream, &dns, &hook, more, "\"hook.test\"");
    let mut stream = std::net::TcpStream::connect(gateway.addr_of("web")).unwrap();
    std::io::Write::write_all(&mut stream, b"CONNECT vector.im:443 HTTP/1.0\r\n\r\n").unwrap();
    eventually("it is sent", || delivered(&gateway, "sent") == 1.0);
    let event = &events(&hook)[0];
    assert_eq!(
        ["rule", "endpoint", "action", "host"].map(|key| &event[key]),
        ["egress", "tunnel", "deny", "vector.im"]
    );
}
