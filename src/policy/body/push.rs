//! What push gateways are told, and which of them.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::Refusal;
use crate::matrix::{Host, ServerName};
use crate::message::json::Object;

/// `POST /pushers/set`: an HTTP pusher gets `event_id_only`, whatever it asked for; any other goes on as it is.
pub(super) fn only_event_ids(body: &[u8]) -> Result<Option<Bytes>, Refusal> {
    let mut pusher = Object::parse(body)?;
    let Some(mut data) = http_data(&pusher)? else { return Ok(None) };
    if data.text("format").as_deref() == Some(FORMAT) {
        return Ok(None);
    }
    data.set("format", format!("\"{FORMAT}\""));
    let data = data.to_string();
    pusher.set("data", data);
    Ok(Some(pusher.into()))
}

/// The same: an HTTP pusher has its gateway at a listed host.
pub(super) fn only_gateways(body: &[u8], listed: &[Host]) -> Result<(), Refusal> {
    let pusher = Object::parse(body)?;
    let Some(data) = http_data(&pusher)? else { return Ok(()) };
    // Without any, Synapse asks for one.
    if data.get("url").is_none() {
        return Ok(());
    }
    let host = data.text("url").and_then(|url| gateway(&url)).ok_or(Refusal::PushGateway)?;
    if listed.contains(&host) { Ok(()) } else { Err(Refusal::PushGateway) }
}

/// `POST /_matrix/push/v1/notify`: what `synapse/push/httppusher.py` sends with `event_id_only`, and no more.
pub(super) fn reduce(body: &[u8]) -> Result<Option<Bytes>, Refusal> {
    let mut whole = Object::parse(body)?;
    let Some(text) = whole.get("notification").map(str::to_owned) else { return Ok(None) };
    let mut notification = Object::parse(text.as_bytes())?;
    let mut changed = whole.keep_only(&["notification"]);
    changed |= notification.keep_only(&["event_id", "room_id", "prio", "counts", "devices"]);
    if let Some(devices) = notification.get("devices").map(str::to_owned) {
        let devices: Vec<&RawValue> = serde_json::from_str(&devices).map_err(|_| Refusal::NoObject)?;
        let mut reduced = Vec::with_capacity(devices.len());
        for device in devices {
            let mut device = Object::parse(device.get().as_bytes())?;
            // Tweaks tell what the event is about: a sound for a call, a highlight for the user's name.
            changed |= device.keep_only(&["app_id", "pushkey", "pushkey_ts", "data"]);
            reduced.push(device.to_string());
        }
        notification.set("devices", format!("[{}]", reduced.join(",")));
    }
    if !changed {
        return Ok(None);
    }
    let notification = notification.to_string();
    whole.set("notification", notification);
    Ok(Some(whole.into()))
}

/// The data of a pusher of the kind `http`.
fn http_data<'a>(pusher: &'a Object<'_>) -> Result<Option<Object<'a>>, Refusal> {
    if pusher.text("kind").as_deref() != Some("http") {
        return Ok(None);
    }
    Ok(pusher.get("data").map(|data| Object::parse(data.as_bytes())).transpose()?)
}

/// The host of a gateway's URL, as nobody can misread it. Synapse wants this path.
fn gateway(url: &str) -> Option<Host> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let (authority, path) = rest.split_at(rest.find('/')?);
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    ServerName::parse(authority).filter(|_| path == "/_matrix/push/v1/notify").map(|name| name.host().clone())
}

const FORMAT: &str = "event_id_only";

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(body: &str) -> Option<String> {
        only_event_ids(body.as_bytes()).unwrap().map(|body| String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn an_http_pusher_is_told_event_ids_only() {
        assert_eq!(
            sent(r#"{"kind":"http","data":{"url":"u","x":1.0},"lang":"en"}"#).unwrap(),
            r#"{"kind":"http","data":{"url":"u","x":1.0,"format":"event_id_only"},"lang":"en"}"#
        );
        assert_eq!(
            sent(r#"{"kind":"x","\u006bind":"http","data":0,"dat\u0061":{"format":"full","form\u0061t":null}}"#)
                .unwrap(),
            r#"{"kind":"x","\u006bind":"http","data":{"format":"event_id_only"}}"#
        );
        for as_it_is in [
            r#"{"kind":"email","data":{"brand":"x"}}"#,
            r#"{"kind":null,"data":{}}"#,
            r#"{"kind":"http"}"#,
            r#"{"kind":"http","data":{"format":"full","format":"event_id_only"}}"#,
        ] {
            assert_eq!(sent(as_it_is), None, "{as_it_is}");
        }
        assert_eq!(only_event_ids(br#"{"kind":"http","data":[]}"#), Err(Refusal::NoObject));
        assert_eq!(only_event_ids(b"x"), Err(Refusal::NotJson));
    }

    #[test]
    fn an_http_pusher_is_at_a_listed_host() {
        let listed = [ServerName::parse("push.test").unwrap().host().clone()];
        let set = |url: &str| {
            let body = serde_json::json!({"kind": "http", "data": {"url": url}}).to_string();
            only_gateways(body.as_bytes(), &listed)
        };
        let path = "/_matrix/push/v1/notify";
        for good in ["https://push.test", "https://PUSH.test:8443", "http://push.test:80"] {
            assert_eq!(set(&format!("{good}{path}")), Ok(()), "{good}");
        }
        assert_eq!(set("https://push.test/_matrix/push/v1/notify?x=/@evil.test/"), Ok(()));
        for bad in [
            "https://evil.test",
            "https://push.test@evil.test",
            "https://evil.test#@push.test",
            "https://evil.test\\@push.test",
            "https://evil.test?push.test",
            "//push.test",
            "ftp://push.test",
            " https://push.test",
            "https://push.test.evil.test",
            "https:push.test",
        ] {
            assert_eq!(set(&format!("{bad}{path}")), Err(Refusal::PushGateway), "{bad}");
        }
        assert_eq!(set("https://push.test/other"), Err(Refusal::PushGateway));
        assert_eq!(set("https://push.test/_matrix/push/v1/notify;x"), Err(Refusal::PushGateway));
        for other in [r#"{"kind":"email","data":{"url":"https://evil.test"}}"#, r#"{"kind":"http","data":{}}"#] {
            assert_eq!(only_gateways(other.as_bytes(), &listed), Ok(()), "{other}");
        }
        assert_eq!(
            only_gateways(br#"{"kind":"http","data":{"url":["https://push.test/_matrix/push/v1/notify"]}}"#, &listed),
            Err(Refusal::PushGateway)
        );
    }

    #[test]
    fn a_notification_is_reduced_to_ids_and_counts() {
        let reduced =
            |body: &str| reduce(body.as_bytes()).unwrap().map(|body| String::from_utf8(body.to_vec()).unwrap());
        let full = r#"{"notification":{"id":"$e","event_id":"$e","room_id":"!r","type":"m.room.message","sender":"@a:b","prio":"high","counts":{"unread":1},"content":{"body":"secret"},"sender_display_name":"A","room_name":"R","user_is_target":true,"devices":[{"app_id":"a","pushkey":"k","pushkey_ts":12,"data":{"format":null},"tweaks":{"highlight":true}}]},"x":1}"#;
        let few = r#"{"notification":{"event_id":"$e","room_id":"!r","prio":"high","counts":{"unread":1},"devices":[{"app_id":"a","pushkey":"k","pushkey_ts":12,"data":{"format":null}}]}}"#;
        assert_eq!(reduced(full).unwrap(), few);
        assert_eq!(reduced(few), None);
        assert_eq!(reduced(r#"{"rejected":[]}"#), None);
        assert_eq!(reduce(br#"{"notification":[]}"#), Err(Refusal::NoObject));
        assert_eq!(reduce(br#"{"notification":{"devices":[1]}}"#), Err(Refusal::NoObject));
    }
}
