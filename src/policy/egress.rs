//! Which way a connection goes that Synapse asks the proxy door for.

use serde::Deserialize;

use crate::matrix::{Host, ServerName};
use crate::problem::Location;

use super::cause::Cause;

/// The reserved name that Synapse is led to where it would unbind: nobody's, and always answered at the proxy door itself.
pub const UNBINDING: &str = "unbind.mantlet.invalid";

/// What records and tests say in an endpoint's place of what asks for a tunnel: what is asked inside has no part in it.
pub const TUNNEL: &str = "tunnel";

/// Whether this is the reserved name.
pub fn is_reserved(host: &Host) -> bool {
    matches!(host, Host::Name(name) if **name == *UNBINDING)
}

/// What `[egress]` of a policy says: the first destination that fits, else the default.
#[derive(Clone, Debug, Default)]
pub struct Egress {
    /// `[[egress.destination]]`, in the order in which they are tried.
    pub destinations: Vec<Destination>,
    /// `[egress] default`.
    pub default: Unlisted,
}

/// What becomes of a host that is not listed.
#[derive(Clone, Debug, Default)]
pub struct Unlisted {
    /// Its way.
    pub way: Way,
    /// The line that says so.
    pub location: Option<Location>,
}

/// What becomes of a host, or of all below a name.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Which.
    pub host: HostPattern,
    /// Its way.
    pub way: Way,
    /// Its way where it is to be looked into and there is no authority for that; by default such a policy is refused.
    pub without_authority: Option<Unread>,
    /// What it is asked for, if the operator says so.
    pub cause: Option<Cause>,
    /// The line that says so.
    pub location: Option<Location>,
}

/// A way out that needs no authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unread {
    /// As [`Way::Tunnel`].
    Tunnel,
    /// As [`Way::Deny`].
    Deny,
}

impl From<Unread> for Way {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Tunnel => Self::Tunnel,
            Unread::Deny => Self::Deny,
        }
    }
}

/// A way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// What is encrypted passes unread; its bytes are counted.
    #[default]
    Tunnel,
    /// It ends here, in TLS of our own; requests go on as those in the clear do, and rules can read them.
    Intercept,
    /// None.
    Deny,
}

impl Way {
    /// The word in policies.
    pub fn as_str(self) -> &'static str {
        match self {
            Way::Tunnel => "tunnel",
            Way::Intercept => "intercept",
            Way::Deny => "deny",
        }
    }
}

/// Hosts as an operator names them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum HostPattern {
    /// This one.
    Exact(Host),
    /// All whose names end so: `*.example.org` is what stands behind the asterisk.
    Below(Box<str>),
}

impl TryFrom<String> for HostPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let host =
            |text: &str| ServerName::parse_web(text).filter(|name| name.port().is_none()).map(|it| it.host().clone());
        let pattern = match text.strip_prefix('*') {
            Some(below) => match below.strip_prefix('.').and_then(host) {
                Some(Host::Name(name)) => Some(Self::Below(format!(".{name}").into())),
                Some(Host::Address(_)) | None => None,
            },
            None => host(&text).map(Self::Exact),
        };
        pattern.ok_or_else(|| {
            format!(
                "{text:?} is no host\nwrite \"push.example.org\", \"*.example.org\", \"192.0.2.1\" or \"[2001:db8::1]\""
            )
        })
    }
}

impl HostPattern {
    fn fits(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Exact(exact), host) => exact == host,
            // Names are in lower case on both sides.
            (Self::Below(end), Host::Name(name)) => name.ends_with(&**end),
            (Self::Below(_), Host::Address(_)) => false,
        }
    }
}

impl Egress {
    /// The names of the hosts that are to be looked into, and the lines that say so.
    pub fn intercepted(&self) -> impl Iterator<Item = (&str, Option<&Location>)> {
        self.destinations.iter().filter_map(|destination| match (&destination.host, destination.way) {
            // What an earlier line says of the same host counts.
            (HostPattern::Exact(host @ Host::Name(name)), Way::Intercept) if self.way(host).0 == Way::Intercept => {
                Some((&**name, destination.location.as_ref()))
            }
            (HostPattern::Exact(_) | HostPattern::Below(_), Way::Intercept | Way::Tunnel | Way::Deny) => None,
        })
    }

    /// Those of them that have another way where there is no authority.
    pub fn half_open(&self) -> impl Iterator<Item = (&str, Unread)> {
        self.destinations.iter().filter_map(|destination| match &destination.host {
            HostPattern::Exact(host @ Host::Name(name)) if self.way(host).0 == Way::Intercept => {
                Some((&**name, destination.without_authority?))
            }
            HostPattern::Exact(_) | HostPattern::Below(_) => None,
        })
    }

    /// The ways where there is no authority.
    pub(super) fn without_authority(&self) -> Self {
        let mut egress = self.clone();
        for destination in &mut egress.destinations {
            if let Some(unread) = destination.without_authority.take() {
                destination.way = unread.into();
            }
        }
        egress
    }

    /// What a host is asked for, if the operator says so.
    pub fn cause(&self, host: &Host) -> Option<Cause> {
        self.destination(host)?.cause
    }

    fn destination(&self, host: &Host) -> Option<&Destination> {
        self.destinations.iter().find(|destination| destination.host.fits(host))
    }

    /// The way of a host, and the line that says so. No line says anything of the reserved name.
    pub fn way(&self, host: &Host) -> (Way, Option<&Location>) {
        if is_reserved(host) {
            return (Way::Intercept, None);
        }
        match self.destination(host) {
            Some(destination) => (destination.way, destination.location.as_ref()),
            None => (self.default.way, self.default.location.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Result<HostPattern, String> {
        HostPattern::try_from(text.to_owned())
    }

    fn host(text: &str) -> Host {
        ServerName::parse_web(text).unwrap().host().clone()
    }

    #[test]
    fn a_host_is_named_whole_or_by_its_end() {
        let fits = |text: &str, name: &str| pattern(text).unwrap().fits(&host(name));
        assert!(fits("push.example.org", "PUSH.example.org") && fits("Push.Example.org", "push.example.org"));
        assert!(!fits("example.org", "push.example.org") && !fits("example.org", "notexample.org"));
        assert!(fits("*.example.org", "push.example.org") && fits("*.Example.org", "a.b.example.org"));
        assert!(!fits("*.example.org", "example.org") && !fits("*.example.org", "notexample.org"));
        assert!(fits("my_site.example", "My_Site.example") && fits("*.my_site.example", "a.my_site.example"));
        assert!(!fits("my_site.example", "my-site.example"));
        assert!(fits("192.0.2.1", "192.0.2.1") && fits("[2001:db8::1]", "[2001:DB8:0::1]"));
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for odd in
            ["", "*", "*.", "*example.org", "a.*.org", "*.192.0.2.1", "a:443", "a/b", "127.1", "a.", "2001:db8::1"]
        {
            assert!(pattern(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn the_first_that_fits_counts() {
        let to = |host: &str, way| Destination {
            host: pattern(host).unwrap(),
            way,
            without_authority: None,
            cause: None,
            location: None,
        };
        let egress = Egress {
            destinations: vec![to("push.example.org", Way::Tunnel), to("*.example.org", Way::Deny)],
            default: Unlisted { way: Way::Tunnel, location: None },
        };
        let way = |name: &str| egress.way(&host(name)).0;
        assert_eq!(
            (way("push.example.org"), way("other.example.org"), way("example.org")),
            (Way::Tunnel, Way::Deny, Way::Tunnel)
        );
    }

    #[test]
    fn nothing_is_said_of_the_reserved_name() {
        let denied = |host: &str| Destination {
            host: pattern(host).unwrap(),
            way: Way::Deny,
            without_authority: None,
            cause: None,
            location: None,
        };
        let egress = Egress {
            destinations: vec![denied(UNBINDING), denied("*.invalid")],
            default: Unlisted { way: Way::Deny, location: None },
        };
        assert_eq!(egress.way(&host("Unbind.mantlet.invalid")).0, Way::Intercept);
        assert_eq!(egress.way(&host("x.unbind.mantlet.invalid")).0, Way::Deny);
        assert_eq!(egress.intercepted().count(), 0);
    }
}
