//! Which identity servers a body leads Synapse to.

use serde_json::value::RawValue;

use super::Refusal;
use crate::matrix::ServerName;
use crate::message::json::Object;

/// Where a body names identity servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In `id_server`.
    Bind,
    /// In `id_server`, if it invites an address: with `medium` and `address`, where Synapse otherwise looks for a user.
    Invite,
    /// In `id_server` of each address in `invite_3pid`.
    CreateRoom,
}

/// Refuses a body that names one which is not listed.
pub(super) fn look(place: Place, body: &[u8], listed: &[ServerName]) -> Result<(), Refusal> {
    // Of an invitation Synapse takes an empty body, too, and misses the user in it.
    if place == Place::Invite && body.is_empty() {
        return Ok(());
    }
    let object = Object::parse(body)?;
    match place {
        Place::Bind => one(&object, listed),
        Place::Invite if object.get("medium").and(object.get("address")).is_none() => Ok(()),
        Place::Invite => one(&object, listed),
        Place::CreateRoom => {
            let Some(invited) = object.get("invite_3pid") else { return Ok(()) };
            let invited: Option<Vec<&RawValue>> = serde_json::from_str(invited).map_err(|_| Refusal::NoObject)?;
            for address in invited.into_iter().flatten() {
                one(&Object::parse(address.get().as_bytes())?, listed)?;
            }
            Ok(())
        }
    }
}

/// Without any name, Synapse asks for one.
fn one(object: &Object<'_>, listed: &[ServerName]) -> Result<(), Refusal> {
    if object.get("id_server").is_none() {
        return Ok(());
    }
    // Synapse takes a path behind the name; nobody who is listed has one.
    let named = object.text("id_server").and_then(|text| ServerName::parse(&text)).ok_or(Refusal::IdentityServer)?;
    let port = |name: &ServerName| name.port().unwrap_or(443);
    let is_named = |server: &ServerName| server.host() == named.host() && port(server) == port(&named);
    if listed.iter().any(is_named) { Ok(()) } else { Err(Refusal::IdentityServer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(place: Place, body: &str) -> Result<(), Refusal> {
        let listed = ["is.test", "other.test:8090"].map(|name| ServerName::parse(name).unwrap());
        look(place, body.as_bytes(), &listed)
    }

    #[test]
    fn only_listed_servers_pass() {
        for good in ["is.test", "IS.test", "is.test:443", "other.test:8090"] {
            assert_eq!(looked(Place::Bind, &format!("{{\"id_server\":\"{good}\"}}")), Ok(()), "{good}");
        }
        for bad in [
            "evil.test",
            "is.test:8090",
            "other.test",
            "sub.is.test",
            "is.test.evil.test",
            "is.test/x",
            "is.test/../evil",
            "is.test?x=",
            "is.test#",
            "u@is.test",
            "is.test@evil.test",
            " is.test",
            "https://is.test",
            "",
        ] {
            let body = format!("{{\"id_server\":\"{bad}\"}}");
            assert_eq!(looked(Place::Bind, &body), Err(Refusal::IdentityServer), "{bad}");
        }
        for body in [
            "{\"id_server\":null}",
            "{\"id_server\":[\"is.test\"]}",
            "{\"id_server\":\"is.test\",\"id\\u005fserver\":\"evil.test\"}",
        ] {
            assert_eq!(looked(Place::Bind, body), Err(Refusal::IdentityServer), "{body}");
        }
        assert_eq!(looked(Place::Bind, "{}"), Ok(()));
        assert_eq!(looked(Place::Bind, ""), Err(Refusal::NotJson));
    }

    #[test]
    fn who_invites_a_user_may_say_whatever() {
        let invited = |more: &str| looked(Place::Invite, &format!("{{\"id_server\":\"evil.test\"{more}}}"));
        assert_eq!(invited(",\"user_id\":\"@a:b\""), Ok(()));
        assert_eq!(invited(",\"user_id\":\"@a:b\",\"medium\":\"email\""), Ok(()));
        assert_eq!(invited(",\"medium\":\"email\",\"addres\\u0073\":null"), Err(Refusal::IdentityServer));
        assert_eq!(looked(Place::Invite, ""), Ok(()));
        assert_eq!(looked(Place::Invite, "{\"medium\":1,\"address\":2}"), Ok(()));
        assert_eq!(looked(Place::Invite, "no JSON"), Err(Refusal::NotJson));
    }

    #[test]
    fn every_address_of_a_new_room_is_looked_at() {
        let created =
            |invited: &str| looked(Place::CreateRoom, &format!("{{\"name\":\"x\",\"invite_3pid\":{invited}}}"));
        assert_eq!(created("[]"), Ok(()));
        assert_eq!(created("null"), Ok(()));
        assert_eq!(created("[{\"id_server\":\"is.test\"},{\"id_server\":\"is.test:443\"}]"), Ok(()));
        assert_eq!(
            created("[{\"id_server\":\"is.test\"},{\"id_server\":\"evil.test\"}]"),
            Err(Refusal::IdentityServer)
        );
        assert_eq!(created("[],\"invite_3pi\\u0064\":[{\"id_server\":\"x\"}]"), Err(Refusal::IdentityServer));
        assert_eq!(created("[\"medium address id_server id_access_token\"]"), Err(Refusal::NoObject));
        assert_eq!(created("{\"medium address id_server id_access_token\":1}"), Err(Refusal::NoObject));
        assert_eq!(looked(Place::CreateRoom, "{\"id_server\":\"evil.test\"}"), Ok(()));
    }
}
