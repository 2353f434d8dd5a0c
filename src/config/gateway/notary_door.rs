//! What only a notary door has.

use std::ops::Range;

use ipnet::IpNet;
use serde::Serialize;
use serde_spanned::Spanned;

use super::Check;
use super::proxy_door::{Networks, are_bounds};
use crate::config::address::ListenerAddress;
use crate::matrix::ServerName;
use crate::problem::Problem;

/// Who is answered as by a notary, and under which name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotaryDoor {
    /// What Synapse calls it in its `trusted_key_servers`, and what its answers are signed as.
    pub server_name: ServerName,
    /// From where one may come; from everywhere that reaches the door, where there is none.
    pub networks: Vec<IpNet>,
}

impl NotaryDoor {
    /// Whether a door that is bound here is open to nobody but those it is for. Whoever asks has us connect to any server, and
    /// hears from how fast the answer is whom we know.
    pub fn is_guarded_at(&self, bind: &ListenerAddress) -> bool {
        match bind {
            ListenerAddress::Tcp(address) => address.ip().is_loopback() || are_bounds(&self.networks),
            ListenerAddress::Unix(_) => true,
            // What the socket is bound to is known when it is opened, and looked at then.
            ListenerAddress::Systemd(_) => true,
        }
    }
}

impl Check<'_> {
    pub(super) fn notary_door(
        &mut self,
        server_name: Option<Spanned<ServerName>>,
        networks: Option<Spanned<Networks>>,
        bind: &ListenerAddress,
        span: Range<usize>,
    ) -> Option<NotaryDoor> {
        let Some(server_name) = server_name else {
            let what = "a notary door needs the name by which Synapse knows it";
            let help = "server_name = \"notary.example.org:8449\", as in trusted_key_servers";
            self.problem(Problem::new(what).help(help), span);
            return None;
        };
        let networks = networks.map_or_else(Vec::new, |networks| networks.into_inner().0);
        let door = NotaryDoor { server_name: server_name.into_inner(), networks };
        if !door.is_guarded_at(bind) {
            let what = format!("everybody who reaches {bind} could have this notary ask any server for its keys");
            let help = "bind it to 127.0.0.1 or a unix socket, or add networks = [\"10.0.0.0/8\"]";
            self.problem(Problem::new(what).help(help), span);
        }
        Some(door)
    }

    /// At any other door.
    pub(super) fn no_server_name(&mut self, name: Option<Spanned<ServerName>>) {
        if let Some(name) = name {
            let what = "`server_name` of a listener belongs to a notary door";
            let help = "door = \"notary\"; the homeserver's own name stands under [homeserver]";
            self.problem(Problem::new(what).help(help), name.span());
        }
    }
}
