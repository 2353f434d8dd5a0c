//! L24: nobody makes an account, of a user or a guest; an application service does.

use mantlet_testkit::http::Request;
use mantlet_testkit::synapse::{Options, Role, Synapse};
use serde_json::{Value, json};

use crate::support::Gateway;
use crate::world::{BRIDGE_TOKEN, PASSWORD, extends, through, world};

const PREFIXES: [&str; 3] = ["r0", "v3", "unstable"];

fn register(prefix: &str, query: &str, body: &Value) -> Request {
    Request::new("POST", format!("/_matrix/client/{prefix}/register{query}")).json(body)
}

fn account(name: &str) -> Value {
    json!({"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}})
}

/// Whether Synapse has such a user.
fn exists(name: &str) -> bool {
    let path = format!("/_synapse/admin/v2/users/@{name}:hs.localtest");
    world().direct(&Request::new("GET", path).bearer(&world().admin.access_token)).status == 200
}

#[test]
fn strangers_make_no_accounts() {
    let world = world();
    let gateway = world.gateway("strict");
    for prefix in PREFIXES {
        let open = world.direct(&register(prefix, "", &account(&format!("register-open-{prefix}"))));
        assert_eq!(open.status, 200, "{prefix}: {}", open.text());

        let name = format!("register-closed-{prefix}");
        for query in ["", "?kind=user", "?kind=user;kind=guest", "?kind=Guest"] {
            let closed = through(&gateway, &register(prefix, query, &account(&name)));
            let told = (closed.status, closed.errcode());
            assert_eq!(told, (403, Some("M_FORBIDDEN".into())), "{prefix} {query}: {}", closed.text());
        }
        // A token does not open it: it passes, and Synapse refuses whoever is no application service.
        let user = world.user(&format!("register-user-{prefix}"));
        let refused = through(&gateway, &register(prefix, "", &account(&name)).bearer(&user.access_token));
        assert_eq!(refused.status, 400, "{prefix}: {}", refused.text());
        let refused = through(&gateway, &register(prefix, "", &account(&name)).bearer("garbage"));
        assert_eq!(refused.status, 403, "{prefix}: {}", refused.text());
        assert!(!exists(&name), "{prefix}");
    }
}

#[test]
fn by_token_means_that_nobody_registers_without_one() {
    let policy = format!("{}\n[rules.registration]\nusers = \"token\"", extends("strict"));
    // This one asks nobody for a token.
    let lax = Gateway::start(&world().synapse.base_url(), &policy);
    let refused = through(&lax, &register("v3", "", &account("register-lax")));
    assert_eq!((refused.status, refused.errcode()), (403, Some("M_FORBIDDEN".into())), "{}", refused.text());
    assert!(!exists("register-lax"));
    let body = json!({"type": "m.login.application_service", "username": "bridge-by-token"});
    assert_eq!(through(&lax, &register("v3", "", &body).bearer(BRIDGE_TOKEN)).status, 200);

    let extra = json!({"registration_requires_token": true}).to_string();
    let careful = Synapse::start(Options { extra_yaml: extra, ..Options::default() }).unwrap();
    let admin = careful.register("administrator", PASSWORD, Role::Admin).unwrap();
    let made = careful.call(Some(&admin), "POST", "/_synapse/admin/v1/registration_tokens/new", Some(&json!({})));
    let token = made.unwrap()["token"].clone();
    let gateway = Gateway::start(&careful.base_url(), &policy);
    let asked = through(&gateway, &register("v3", "", &json!({"username": "invited", "password": PASSWORD})));
    let session = asked.json()["session"].clone();
    assert_eq!((asked.status, session.is_string()), (401, true), "{}", asked.text());
    let stage = |stage: Value| {
        let body = json!({"username": "invited", "password": PASSWORD, "auth": stage});
        through(&gateway, &register("v3", "", &body))
    };
    let skipped = stage(json!({"type": "m.login.dummy", "session": session}));
    assert_eq!(skipped.status, 401, "{}", skipped.text());
    let wrong = stage(json!({"type": "m.login.registration_token", "token": "wrong", "session": session}));
    assert_eq!(wrong.status, 401, "{}", wrong.text());
    let made = stage(json!({"type": "m.login.registration_token", "token": token, "session": session}));
    assert_eq!(made.json()["user_id"], "@invited:hs.localtest", "{}", made.text());
}

#[test]
fn nobody_is_a_guest() {
    let world = world();
    let gateway = world.gateway("strict");
    for query in ["?kind=guest", "?a=1;kind=guest", "?k%69nd=%67uest", "?kind=guest&kind=user"] {
        for prefix in PREFIXES {
            let open = world.direct(&register(prefix, query, &json!({})));
            assert!(open.status == 200 && open.json()["access_token"].is_string(), "{query}: {}", open.text());
            let closed = through(&gateway, &register(prefix, query, &json!({})));
            let told = (closed.status, closed.errcode());
            assert_eq!(told, (403, Some("M_FORBIDDEN".into())), "{prefix} {query}: {}", closed.text());
        }
    }
    let policy = format!("{}\n[rules.registration]\nguests = \"open\"", extends("strict"));
    let guests = Gateway::start(&world.synapse.base_url(), &policy);
    assert_eq!(through(&guests, &register("v3", "?kind=guest", &json!({}))).status, 200);
    assert_eq!(through(&guests, &register("v3", "", &account("register-no-guest"))).status, 403);
    assert!(!exists("register-no-guest"));
}

#[test]
fn nobody_tries_names_out() {
    let world = world();
    let gateway = world.gateway("strict");
    world.user("register-taken");
    for prefix in PREFIXES {
        let available =
            |name: &str| Request::new("GET", format!("/_matrix/client/{prefix}/register/available?username={name}"));
        assert_eq!(world.direct(&available("register-taken")).errcode().as_deref(), Some("M_USER_IN_USE"));
        assert_eq!(world.direct(&available("register-free")).status, 200);
        let (taken, free) =
            (through(&gateway, &available("register-taken")), through(&gateway, &available("register-free")));
        assert_eq!((taken.status, taken.errcode().as_deref()), (403, Some("M_FORBIDDEN")), "{}", taken.text());
        assert_eq!((taken.status, taken.body), (free.status, free.body), "{prefix}");
        let head = Request::new("HEAD", format!("/_matrix/client/{prefix}/register/available?username=register-free"));
        assert_eq!((world.direct(&head).status, through(&gateway, &head).status), (200, 403), "{prefix}");
    }
}

#[test]
fn an_application_service_makes_users() {
    let world = world();
    for policy in ["balanced", "strict"] {
        let gateway = world.gateway(policy);
        let body = |name: &str| json!({"type": "m.login.application_service", "username": name});
        let name = format!("bridge-{policy}");
        let made = through(&gateway, &register("v3", "", &body(&name)).bearer(BRIDGE_TOKEN));
        assert_eq!(made.json()["user_id"], format!("@{name}:hs.localtest"), "{policy}");
        // Old ones show it in the query.
        let query = format!("?access_token={BRIDGE_TOKEN}");
        let made = through(&gateway, &register("v3", &query, &body(&format!("{name}-query"))));
        assert_eq!(made.status, 200, "{policy}: {}", made.text());
        // The service speaks as that user.
        let whoami = format!("/_matrix/client/v3/account/whoami?user_id=%40{name}%3Ahs.localtest");
        let whoami = through(&gateway, &Request::new("GET", whoami).bearer(BRIDGE_TOKEN));
        assert_eq!(whoami.json()["user_id"], format!("@{name}:hs.localtest"), "{policy}");
    }
    // Who only says that it is one makes none.
    let body = json!({"type": "m.login.application_service", "username": "bridge-forged"});
    let gateway = world.gateway("strict");
    assert_eq!(through(&gateway, &register("v3", "", &body)).status, 403);
    assert_eq!(through(&gateway, &register("v3", "", &body).bearer("garbage")).status, 403);
    assert!(!exists("bridge-forged"));
}

#[test]
fn users_register_under_balanced_and_log_in_under_both() {
    let world = world();
    let made = through(&world.gateway("balanced"), &register("v3", "", &account("register-balanced")));
    assert_eq!(made.json()["user_id"], "@register-balanced:hs.localtest");
    let login = json!({
        "type": "m.login.password", "password": PASSWORD,
        "identifier": {"type": "m.id.user", "user": "register-balanced"},
    });
    for policy in ["balanced", "strict"] {
        let request = Request::new("POST", "/_matrix/client/v3/login").json(&login);
        assert_eq!(through(&world.gateway(policy), &request).status, 200, "{policy}");
    }
}
