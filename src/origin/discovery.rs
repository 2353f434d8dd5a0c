//! Where another server is (Matrix specification v1.11, server-server API, "Resolving server names").

use http::HeaderValue;

use super::connector::{Connector, Place};
use super::delegation::Delegations;
use super::resolver::Service;
use crate::error::{Error, Kind};
use crate::matrix::{Host, ServerName};
use crate::observe::metrics::Step;

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Where, in the order in which it is tried.
    pub places: Vec<Place>,
    /// For whom its certificate has to be.
    pub name: Host,
    /// What it is called in `Host`.
    pub host: HeaderValue,
    /// Which step of the specification said so.
    pub step: Step,
}

/// Finds a server. `port` is where servers are when nothing says otherwise.
///
/// # Errors
/// [`Kind::OriginUnknown`]
pub(super) async fn find(
    server: &ServerName,
    port: u16,
    delegations: &Delegations,
    connector: &Connector,
) -> Result<Route, Error> {
    // Steps 1 and 2.
    if let Some(route) = direct(server, port)? {
        return Ok(route);
    }
    // Steps 3.1 and 3.2; a delegation is not followed further.
    let delegated = match server.host() {
        Host::Name(name) => delegations.of(name, connector).await,
        Host::Address(_) => None,
    };
    let server = match &delegated {
        Some(delegated) => match direct(delegated, port)? {
            Some(route) => return Ok(Route { step: Step::Delegated, ..route }),
            None => delegated,
        },
        None => server,
    };
    // Steps 3.3 to 3.5 for the delegated name, 4 to 6 for the name itself.
    let route = |places, step| Ok(Route { places, name: server.host().clone(), host: host(server)?, step });
    let name = server.host().to_string();
    for (service, step) in [("_matrix-fed._tcp", Step::Srv), ("_matrix._tcp", Step::SrvDeprecated)] {
        let services = connector.resolver.services(service, &name).await?;
        if !services.is_empty() {
            return route(in_order(services), step);
        }
    }
    let step = if delegated.is_some() { Step::Delegated } else { Step::Default };
    route(vec![Place { host: server.host().clone(), port }], step)
}

/// The route to a name that says all by itself: an address, or a name with a port.
fn direct(server: &ServerName, default: u16) -> Result<Option<Route>, Error> {
    let (step, port) = match (server.host(), server.port()) {
        (Host::Address(_), port) => (Step::Address, port.unwrap_or(default)),
        (Host::Name(_), Some(port)) => (Step::Port, port),
        (Host::Name(_), None) => return Ok(None),
    };
    let places = vec![Place { host: server.host().clone(), port }];
    Ok(Some(Route { places, name: server.host().clone(), host: host(server)?, step }))
}

fn host(server: &ServerName) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(server.as_str()).map_err(|_| Error::new(Kind::OriginUnknown))
}

/// The lowest priority first; of those with one priority, by chance and weight (RFC 2782).
fn in_order(mut services: Vec<Service>) -> Vec<Place> {
    services.truncate(MOST_SERVICES);
    let weigh = |service: &Service| {
        // The least of as many throws as there are weights: the heavier, the earlier.
        let chance = (getrandom::u64().unwrap_or_default() >> 11) as f64 / (1_u64 << 53) as f64;
        -chance.max(f64::MIN_POSITIVE).ln() / f64::from(service.weight).max(0.01)
    };
    let mut weighed: Vec<_> =
        services.into_iter().map(|service| (service.priority, weigh(&service), service)).collect();
    weighed.sort_by(|(a, x, _), (b, y, _)| a.cmp(b).then(x.total_cmp(y)));
    weighed.into_iter().map(|(.., service)| Place { host: service.host, port: service.port }).collect()
}

/// More are not tried.
const MOST_SERVICES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_or_a_port_needs_no_question() {
        let route = |text: &str| {
            let route = direct(&ServerName::parse(text).unwrap(), 8448).unwrap()?;
            let host = route.host.to_str().unwrap().to_owned();
            Some((route.places[0].host.to_string(), route.places[0].port, route.name.to_string(), host))
        };
        let is = |place: &str, port, host: &str| Some((place.to_owned(), port, place.to_owned(), host.to_owned()));
        assert_eq!(route("198.51.100.7"), is("198.51.100.7", 8448, "198.51.100.7"));
        assert_eq!(route("198.51.100.7:99"), is("198.51.100.7", 99, "198.51.100.7:99"));
        assert_eq!(route("[2001:db8::7]:99"), is("2001:db8::7", 99, "[2001:db8::7]:99"));
        assert_eq!(route("Named.example:443"), is("named.example", 443, "Named.example:443"));
        assert_eq!(route("bare.example"), None);
    }

    #[test]
    fn services_are_tried_by_priority_and_then_by_weight() {
        let service =
            |priority, weight, name: &str| Service { priority, weight, host: Host::Name(name.into()), port: 8448 };
        let mut first = [0; 3];
        for _ in 0..2000 {
            let services =
                vec![service(20, 100, "last"), service(10, 0, "a"), service(10, 30, "b"), service(10, 70, "c")];
            let order: Vec<_> = in_order(services).into_iter().map(|place| place.host.to_string()).collect();
            assert_eq!((order.len(), order[3].as_str()), (4, "last"));
            first[["a", "b", "c"].iter().position(|name| *name == order[0]).unwrap()] += 1;
        }
        assert!(first[0] < 40 && (450..750).contains(&first[1]) && first[2] > 1200, "{first:?}");
    }
}
