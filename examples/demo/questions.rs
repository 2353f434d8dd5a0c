//! What is asked on both ways, and how an answer is read.

use mantlet_testkit::Result;
use mantlet_testkit::http::{Request, Response};
use mantlet_testkit::recorder::RecordedRequest;
use serde_json::json;

use crate::house::{AVATAR, CUSTOM_FIELD, CUSTOM_VALUE, DISPLAY_NAME, House, Way};
use crate::table::{Row, Seen, State, Table, Want};

/// Asks everything without Mantlet and through it.
pub fn ask_all(house: &House) -> Result<Table> {
    let mut asking = Asking { house, table: Table::default() };
    asking.rooms()?;
    asking.profiles()?;
    asking.federation()?;
    asking.unbinding()?;
    asking.headers()?;
    asking.banner()?;
    asking.what_must_work()?;
    Ok(asking.table)
}

struct Asking<'a> {
    house: &'a House,
    table: Table,
}

impl Asking<'_> {
    fn rooms(&mut self) -> Result<()> {
        for (heading, token) in [
            ("A stranger lists the rooms", None),
            ("A stranger lists the rooms with a token that is none", Some("syt_c3RyYW5nZXI_garbage_0aBcDe")),
        ] {
            self.table.heading(heading);
            let versions = ["api/v1", "r0", "v3", "unstable"].map(|version| ("GET", version));
            for (method, version) in versions.into_iter().chain([("HEAD", "v3")]) {
                let path = format!("/client/{version}/publicRooms");
                self.closes("L01", &format!("{method:<4} {path}"), |way| {
                    let mut request = Request::new(method, format!("/_matrix{path}"));
                    if let Some(token) = token {
                        request = request.bearer(token);
                    }
                    Ok(read(&request.try_send(way.homeserver)?, method, &self.house.room_secrets(), "lists the room"))
                })?;
            }
        }
        Ok(())
    }

    fn profiles(&mut self) -> Result<()> {
        self.table.heading("A stranger reads a profile");
        let all = [DISPLAY_NAME, AVATAR, CUSTOM_VALUE];
        let custom = format!("/{CUSTOM_FIELD}");
        for (field, secrets) in [
            ("", &all[..]),
            ("/displayname", &[DISPLAY_NAME]),
            ("/avatar_url", &[AVATAR]),
            (custom.as_str(), &[CUSTOM_VALUE]),
        ] {
            self.closes("L03", &format!("GET  /client/v3/profile/{{user}}{field}"), |way| {
                let path = format!("/_matrix/client/v3/profile/{}{field}", self.house.alice.user_id);
                Ok(read(&Request::new("GET", path).try_send(way.homeserver)?, "GET", secrets, "shows it"))
            })?;
        }
        Ok(())
    }

    fn federation(&mut self) -> Result<()> {
        self.table.heading("Another server lists the rooms, and signs that it asks");
        for (method, content) in [("GET", None), ("POST", Some(json!({ "limit": 10 })))] {
            self.closes("L02", &format!("{method:<4} /federation/v1/publicRooms"), |way| {
                let uri = "/_matrix/federation/v1/publicRooms";
                let (peer, to) = (&self.house.peer, self.house.server_name());
                let answer = peer.request(way.homeserver, method, uri, content.as_ref(), to)?;
                Ok(read(&answer, method, &self.house.room_secrets(), "lists the room"))
            })?;
        }
        Ok(())
    }

    /// Synapse is no identity server, so one stands in that does whatever it is asked; Mantlet before it is the same.
    fn unbinding(&mut self) -> Result<()> {
        self.table.heading("Somebody has an e-mail address unbound (at a stand-in for an identity server, at Synapse)");
        let body = json!({ "medium": "email", "address": "alice@example.org", "mxid": self.house.alice.user_id });
        for version in ["v2", "api/v1"] {
            let path = format!("/identity/{version}/3pid/unbind");
            self.closes("L05", &format!("POST {path}"), |way| {
                way.identity_server.take();
                let answer = Request::new("POST", format!("/_matrix{path}")).json(&body).try_send(way.identity)?;
                Ok(unbound(&answer, &way.identity_server.take()))
            })?;
        }
        self.closes("L06", "POST /client/v3/account/3pid/unbind", |way| {
            way.arrivals.take();
            let request = Request::new("POST", "/_matrix/client/v3/account/3pid/unbind");
            let request = request.bearer(&self.house.alice.access_token);
            let answer =
                request.json(&json!({ "medium": "email", "address": "alice@example.org" })).try_send(way.homeserver)?;
            Ok(unbound(&answer, &way.arrivals.take()))
        })
    }

    fn headers(&mut self) -> Result<()> {
        self.table.heading("What a user's browser says of itself, as it stands on the wire before Synapse");
        let rooms = "/_matrix/client/v3/publicRooms";
        // The first time that Mantlet sees this token: so it asks Synapse about it, and that request is looked at too.
        let session = self.house.log_in()?;
        let ask = |way: Way<'_>| -> Result<Vec<RecordedRequest>> {
            way.arrivals.take();
            let request = Request::new("GET", rooms).bearer(&session.access_token);
            BROWSER
                .iter()
                .fold(request, |request, (name, value)| request.header(name, value))
                .try_send(way.homeserver)?;
            Ok(way.arrivals.take())
        };
        let (without, through) = (ask(self.house.without())?, ask(self.house.through()?)?);
        let find = |arrived: &[RecordedRequest], path: &str| {
            arrived.iter().find(|request| request.target == path.as_bytes()).cloned()
        };
        for (name, value) in BROWSER {
            let seen = |arrived: &[RecordedRequest]| match find(arrived, rooms) {
                None => Seen::new(State::Broken, "no request arrived"),
                Some(request) if carries(&request, name, value) => Seen::new(State::Open, "arrives"),
                Some(_) => Seen::new(State::Closed, "does not arrive"),
            };
            let (without, through) = (seen(&without), seen(&through));
            self.table.row(Row {
                leak: "L09",
                asked: format!("{name}: {value}"),
                without,
                through,
                want: Want::Closed,
            });
        }

        let count = |request: &RecordedRequest| BROWSER.iter().filter(|(n, v)| carries(request, n, v)).count();
        let check = |arrived: &[RecordedRequest]| match find(arrived, WHOAMI).as_ref().map(count) {
            None => Seen::new(State::Absent, "makes none"),
            Some(0) => Seen::new(State::Closed, "none of the 4 arrives"),
            Some(some) => Seen::new(State::Open, format!("{some} of the 4 arrive")),
        };
        self.table.row(Row {
            leak: "L09",
            asked: "Mantlet's own check of the token".into(),
            without: check(&without),
            through: check(&through),
            want: Want::Closed,
        });
        Ok(())
    }

    fn banner(&mut self) -> Result<()> {
        self.table.heading("Anybody asks which software this is");
        self.closes("L11", "the Server field of any answer", |way| {
            let answer = Request::new("GET", "/_matrix/client/versions").try_send(way.homeserver)?;
            Ok(match (answer.status, answer.header("server")) {
                (200, None) => Seen::new(State::Closed, "no such field"),
                (200, Some(server)) if names_synapse(server) => Seen::new(State::Open, server),
                (200, Some(server)) => Seen::new(State::Closed, server),
                (status, _) => Seen::new(State::Broken, status.to_string()),
            })
        })?;
        self.closes("L11", "GET  /federation/v1/version", |way| {
            let answer = Request::new("GET", "/_matrix/federation/v1/version").try_send(way.homeserver)?;
            let body = answer.try_json().unwrap_or_default();
            let words = ["name", "version"].map(|key| body["server"][key].as_str().unwrap_or_default());
            let said = format!("{} {}", answer.status, words.join(" "));
            let state = match answer.status {
                200 if names_synapse(&answer.text()) => State::Open,
                200 => State::Closed,
                _ => State::Broken,
            };
            Ok(Seen::new(state, said.trim_end()))
        })
    }

    fn what_must_work(&mut self) -> Result<()> {
        self.table.heading("What has to stay open");
        let token = &self.house.alice.access_token;
        self.stays_open("", "a user lists the rooms", |way| {
            let request = Request::new("GET", "/_matrix/client/v3/publicRooms").bearer(token);
            Ok(read(&request.try_send(way.homeserver)?, "GET", &self.house.room_secrets(), "lists the room"))
        })?;
        self.stays_open("", "a user reads a profile", |way| {
            let path = format!("/_matrix/client/v3/profile/{}", self.house.alice.user_id);
            let answer = Request::new("GET", path).bearer(token).try_send(way.homeserver)?;
            Ok(read(&answer, "GET", &[DISPLAY_NAME], "shows it"))
        })?;
        self.stays_open("L04", "another server reads a profile (strict: closed)", |way| {
            let user = self.house.alice.user_id.replace('@', "%40").replace(':', "%3A");
            let uri = format!("/_matrix/federation/v1/query/profile?user_id={user}");
            let answer = self.house.peer.request(way.homeserver, "GET", &uri, None, self.house.server_name())?;
            Ok(read(&answer, "GET", &[DISPLAY_NAME], "shows it"))
        })
    }

    fn closes(&mut self, leak: &'static str, asked: &str, ask: impl Fn(Way<'_>) -> Result<Seen>) -> Result<()> {
        self.ask(leak, asked, Want::Closed, ask)
    }

    fn stays_open(&mut self, leak: &'static str, asked: &str, ask: impl Fn(Way<'_>) -> Result<Seen>) -> Result<()> {
        self.ask(leak, asked, Want::Open, ask)
    }

    fn ask(
        &mut self,
        leak: &'static str,
        asked: &str,
        want: Want,
        ask: impl Fn(Way<'_>) -> Result<Seen>,
    ) -> Result<()> {
        let (without, through) = (ask(self.house.without())?, ask(self.house.through()?)?);
        self.table.row(Row { leak, asked: asked.into(), without, through, want });
        Ok(())
    }
}

/// Open if the answer holds a secret, whatever its status; closed if it is a refusal.
fn read(answer: &Response, method: &str, secrets: &[&str], open: &str) -> Seen {
    let body = answer.text();
    if secrets.iter().any(|secret| body.contains(secret)) {
        return Seen::new(State::Open, format!("{}, {open}", answer.status));
    }
    let said = match answer.errcode() {
        Some(errcode) => format!("{} {errcode}", answer.status),
        None => answer.status.to_string(),
    };
    match answer.status {
        // HEAD has no body to look into: that it would be served is the answer.
        200 if method == "HEAD" => Seen::new(State::Open, said),
        401 | 403 | 404 => Seen::new(State::Closed, said),
        _ => Seen::new(State::Broken, said),
    }
}

/// Open if the request came as far as the server that would unbind, whatever that made of it.
fn unbound(answer: &Response, arrived: &[RecordedRequest]) -> Seen {
    let asked = arrived.iter().any(|request| request.target_text().contains("3pid/unbind"));
    let kind = answer.errcode().or_else(|| answer.header("content-type").map(kind_of)).unwrap_or_default();
    match answer.status {
        status if asked => Seen::new(State::Open, format!("{status}, was asked")),
        404 => Seen::new(State::Closed, format!("404 {kind}")),
        status => Seen::new(State::Broken, format!("{status} {kind}")),
    }
}

/// A content type without its parameters.
fn kind_of(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().into()
}

/// Whether a field, or its value under another name, stands in the request.
fn carries(request: &RecordedRequest, name: &str, value: &str) -> bool {
    request.header(name).is_some() || String::from_utf8_lossy(&request.head).contains(value)
}

fn names_synapse(text: &str) -> bool {
    text.to_lowercase().contains("synapse")
}

const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

const BROWSER: [(&str, &str); 4] = [
    ("Origin", "https://app.example"),
    ("Referer", "https://app.example/room/42"),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64)"),
    ("Accept-Language", "de-CH,de;q=0.9"),
];
