//! When an instruction holds: by method, host, network or query.

use std::net::IpAddr;
use std::sync::Arc;

use http::Method;
use ipnet::IpNet;

use super::exchange::Exchange;
use crate::matrix::{Host, token};

/// The conditions of one instruction; all must hold, an absent one always does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct When {
    /// One of these methods. HEAD counts as GET, because Synapse runs it as GET.
    pub methods: Option<Vec<Method>>,
    /// One of these hosts, in lower case, without port.
    pub hosts: Option<Vec<String>>,
    /// From one of these networks.
    pub networks: Option<Vec<IpNet>>,
    /// From none of these networks.
    pub except_networks: Option<Vec<IpNet>>,
    /// Some argument of the query has this name and value.
    pub argument: Option<(&'static str, &'static str)>,
    /// Asked of somebody, and of none of these.
    pub except_destinations: Option<Arc<[Host]>>,
    /// The first argument of this name, the one that Synapse reads, has another value or is not there.
    pub first_argument_is_not: Option<(&'static str, &'static str)>,
}

impl When {
    /// Whether all conditions hold for this exchange.
    pub fn holds(&self, exchange: &Exchange<'_>) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.contains(as_run(exchange.method)))
            && self.hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|host| host.eq_ignore_ascii_case(exchange.host)))
            && self.networks.as_ref().is_none_or(|networks| contains(networks, exchange.client))
            && self.except_networks.as_ref().is_none_or(|networks| !contains(networks, exchange.client))
            && self
                .except_destinations
                .as_ref()
                .is_none_or(|hosts| exchange.destination.is_some_and(|destination| !hosts.contains(destination)))
            && self.argument.is_none_or(|argument| has_argument(exchange, argument))
            && self.first_argument_is_not.is_none_or(|argument| !has_first_argument(exchange, argument))
    }

    /// Whether there is no condition.
    pub fn is_always(&self) -> bool {
        *self == Self::default()
    }
}

fn has_argument(exchange: &Exchange<'_>, (name, value): (&str, &str)) -> bool {
    exchange.query.is_some_and(|query| token::arguments(query, name).any(|found| *found == *value.as_bytes()))
}

fn has_first_argument(exchange: &Exchange<'_>, (name, value): (&str, &str)) -> bool {
    let first = exchange.query.and_then(|query| token::argument(query, name));
    first.is_some_and(|found| *found == *value.as_bytes())
}

fn as_run(method: &Method) -> &Method {
    if method == Method::HEAD { &Method::GET } else { method }
}

/// Whether a network holds the address; an IPv4 address in IPv6 clothes is taken as the IPv4 address it is.
pub(super) fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}
