//! How many connections there may be, in all and from one address. Shared by all workers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::addresses::client_at;
use crate::config::gateway::Door;

/// Counts connections at the way in and at the way out, each by themselves: strangers at the one take no place from Synapse at the
/// other.
#[derive(Clone, Debug)]
pub struct Admissions {
    inward: Arc<Admission>,
    outward: Arc<Admission>,
}

impl Admissions {
    /// Each way has room for so many, and for so many from one address.
    pub fn new(most: usize, most_per_address: usize) -> Self {
        let admission = || Admission::new(most, most_per_address);
        Self { inward: admission(), outward: admission() }
    }

    /// Those who come through such a door.
    pub fn at(&self, door: Door) -> &Arc<Admission> {
        match door {
            Door::Ingress => &self.inward,
            Door::Federation | Door::Proxy | Door::Notary => &self.outward,
        }
    }
}

/// Counts connections.
#[derive(Debug)]
pub struct Admission {
    open: Mutex<Open>,
    most: usize,
    most_per_address: usize,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_client: HashMap<u128, usize>,
}

impl Open {
    /// Counts one more from there, unless there are as many already.
    fn count(&mut self, address: IpAddr, most: usize) -> bool {
        let count = self.by_client.entry(client_at(address)).or_default();
        // At least one may come, so nobody stays counted who never came.
        let has_room = *count < most;
        *count += usize::from(has_room);
        has_room
    }
}

/// The right of one connection to be there; it ends when this is dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    /// Whose it is counted as.
    address: Option<IpAddr>,
}

impl Admission {
    /// At most so many, and so many from one address.
    pub fn new(most: usize, most_per_address: usize) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), most, most_per_address })
    }

    /// Admits a connection, unless there are too many. Only the number in all bounds one without an address: a trusted hop, or
    /// whoever is behind a unix socket, brings many clients.
    pub fn admit(self: &Arc<Self>, address: Option<IpAddr>) -> Option<Admitted> {
        let mut open = self.lock();
        if open.all >= self.most || !address.is_none_or(|address| open.count(address, self.most_per_address)) {
            return None;
        }
        open.all += 1;
        Some(Admitted { admission: Arc::clone(self), address })
    }

    /// How many there are.
    pub fn open(&self) -> usize {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Both counts change together under this lock, and nothing between them can panic.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    /// Counts a connection that had no address as one from there, unless there are too many from there.
    pub fn count_as(&mut self, address: IpAddr) -> bool {
        if self.address.is_some() || !self.admission.lock().count(address, self.admission.most_per_address) {
            return false;
        }
        self.address = Some(address);
        true
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.admission.lock();
        open.all = open.all.saturating_sub(1);
        if let Some(address) = self.address
            && let Some(count) = open.by_client.get_mut(&client_at(address))
        {
            *count -= 1;
            if *count == 0 {
                open.by_client.remove(&client_at(address));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_places_and_gives_back_its_own() {
        let admission = Admission::new(3, 2);
        let (a, b) = (Some(IpAddr::from([127, 0, 0, 1])), Some(IpAddr::from([127, 0, 0, 2])));
        let first = admission.admit(a);
        let second = admission.admit(a);
        assert!(first.is_some() && second.is_some() && admission.admit(a).is_none());
        let other = admission.admit(b);
        assert!(other.is_some() && admission.admit(b).is_none(), "all places are taken");
        drop(first);
        let again = admission.admit(None);
        assert!(again.is_some());
        assert!(admission.admit(a).is_none() && admission.admit(None).is_none(), "all places are taken");
        let mut again = again.unwrap();
        let is_free = again.count_as(IpAddr::from([127, 0, 0, 1]));
        assert!(is_free && !again.count_as(IpAddr::from([127, 0, 0, 2])), "it is somebody's now");
        drop(other);
        let mut hop = admission.admit(None).unwrap();
        assert!(!hop.count_as(IpAddr::from([127, 0, 0, 1])), "there are two");
        let other = admission.admit(None);
        drop((second, other, again, hop));
        assert_eq!((admission.open(), admission.lock().by_client.len()), (0, 0));
    }

    #[test]
    fn all_addresses_of_one_network_of_ipv6_are_one_client() {
        let admission = Admission::new(10, 2);
        let admit = |address: &str| admission.admit(Some(address.parse().unwrap()));
        let one = (admit("2001:db8::1"), admit("2001:db8::dead:beef:1:2"));
        assert!(one.0.is_some() && one.1.is_some() && admit("2001:db8::3").is_none());
        let others = [admit("2001:db8:0:1::1"), admit("192.0.2.1"), admit("192.0.2.2"), admit("::ffff:192.0.2.1")];
        assert!(others.iter().all(Option::is_some) && admit("192.0.2.1").is_none(), "{others:?}");
        drop(one.0);
        assert!(admit("2001:db8::3").is_some());
    }
}
