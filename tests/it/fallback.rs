//! Keys of servers that are gone, from notaries that the operator names.

use mantlet_testkit::http::json_response;
use serde_json::{Value, json};

use crate::notary::{Origin, World, names, now, query};

impl World {
    /// A policy that asks these notaries about servers that cannot be reached.
    fn falling_back_to(notaries: &[&String]) -> String {
        format!("[rules.notary]\nfallback = {}", json!(notaries))
    }

    /// A notary that knows these keys.
    fn notary(&self, name: &str, keys: &Value) -> String {
        let notary = self.server(name);
        self.answers(&notary, json_response(200, &json!({ "server_keys": keys })));
        notary
    }

    /// A server whose name leads nowhere any more.
    fn gone(&self) -> String {
        format!("gone.many.test:{}", self.front.addr().port())
    }
}

#[test]
fn notaries_are_asked_for_keys_of_servers_that_are_gone_and_not_told_who_asks() {
    let world = World::new();
    let (gone, here) = (world.gone(), world.honest("here", 3600));
    let origin = Origin::new();
    // Of two that it said once, the one that counted longer.
    let [older, newer] = [-7200, -3600].map(|seconds| origin.keys(&gone, seconds));
    let notaries = [
        world.notary("ignorant", &json!([])),
        world.notary("knowing", &json!([older, newer])),
        world.notary("unasked", &json!([])),
    ];
    let gateway = world.gateway(&World::falling_back_to(&notaries.each_ref()), "[admin]\nbind = \"127.0.0.1:0\"");
    let answer = query(&gateway, &[gone.clone(), here.clone()], now());
    assert_eq!(names(&answer), [gone.as_str(), here.as_str()]);
    assert_eq!(answer.json()["server_keys"][0], newer);
    let asked = world.backend.requests();
    let mut asked: Vec<_> = asked.iter().filter(|request| request.target_text() == "/_matrix/key/v2/query").collect();
    asked.sort_by_key(|request| request.header("host").map(str::to_owned));
    assert_eq!(asked.iter().map(|request| request.header("host").unwrap()).collect::<Vec<_>>(), &notaries[..2]);
    for request in asked {
        let mut fields: Vec<_> = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        fields.sort();
        assert_eq!(fields, ["content-length", "content-type", "host", "user-agent"]);
        assert_eq!(request.header("user-agent"), Some("Synapse"));
        assert_eq!(serde_json::from_slice::<Value>(&request.body).unwrap(), json!({"server_keys": {&gone: {}}}));
    }
    world.assert_matrix_org_heard_nothing();
    let contacts = gateway.contacts();
    let noted = |to: &String| contacts.iter().any(|row| row["destination"] == **to && row["cause"] == "keys");
    assert!(noted(&notaries[0]) && noted(&notaries[1]) && !noted(&notaries[2]), "{contacts:?}");
    // They are kept, and nobody is asked again soon.
    let before = world.backend.requests().len();
    assert_eq!(names(&query(&gateway, std::slice::from_ref(&gone), now())), [gone.as_str()]);
    assert_eq!(world.backend.requests().len(), before);
}

#[test]
fn what_a_notary_makes_up_is_not_believed_and_a_server_that_answers_is_asked_alone() {
    let world = World::new();
    let (gone, here, odd) = (world.gone(), world.honest("here", 3600), world.server("odd"));
    world.answers(&odd, json_response(200, &json!({"server_name": odd})));
    let mut forged = Origin::new().keys(&gone, 3600);
    forged["verify_keys"] = Origin::new().keys(&gone, 3600)["verify_keys"].clone();
    let notary = world.notary("notary", &json!([forged, Origin::new().keys("other.test", 3600), {}, 7]));
    let gateway = world.gateway(&World::falling_back_to(&[&notary]), "");
    assert_eq!(names(&query(&gateway, &[gone.clone(), here.clone(), odd.clone()], now())), [here]);
    let asked = world.asked().into_iter().filter(|(host, _)| *host == notary).count();
    assert_eq!(asked, 1, "{:?}", world.asked());
}

/// The notary takes every connection and never answers; each server that is gone says so at once.
#[test]
fn a_silent_notary_keeps_nobody_from_the_keys_of_a_server_that_is_there() {
    let world = World::new();
    let gone: Vec<_> = (0..300).map(|number| world.server_at(&format!("a-gone{number:03}"), "127.0.1.2")).collect();
    let keys = Origin::new().keys(&gone[0], -3600);
    let notaries = [world.server("silent"), world.notary("knowing", &json!([keys]))];
    let gateway = world.gateway(&World::falling_back_to(&notaries.each_ref()), "");
    let asked = |notary: &String| world.asked().iter().filter(|(host, _)| host == notary).count();
    let here = world.honest("here", 3600);
    // One patience for all whom it keeps waiting, and no more than their places; then the next one knows, in time for this answer.
    let found = names(&query(&gateway, &[&gone[..200], std::slice::from_ref(&here)].concat(), now()));
    assert_eq!(found, [gone[0].clone(), here]);
    assert!((1..=16).contains(&asked(&notaries[0])), "{}", asked(&notaries[0]));
    // It is left alone, whoever is gone.
    let (before, there) = (asked(&notaries[0]), world.honest("there", 3600));
    let found = names(&query(&gateway, &[&gone[200..], std::slice::from_ref(&there)].concat(), now()));
    assert_eq!(found, [there]);
    assert_eq!(asked(&notaries[0]), before);
    assert!(asked(&notaries[1]) > 200, "{}", asked(&notaries[1]));
    world.assert_matrix_org_heard_nothing();
}
