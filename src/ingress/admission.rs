//! How many connections there may be, in all and from one address. Shared by all workers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    by_address: HashMap<IpAddr, usize>,
}

/// The right of one connection to be there; it ends when this is dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Admission {
    /// At most so many, and so many from one address.
    pub fn new(most: usize, most_per_address: usize) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), most, most_per_address })
    }

    /// Admits a connection from this address, unless there are too many. A trusted hop brings many clients: only the number
    /// in all bounds it.
    pub fn admit(self: &Arc<Self>, address: IpAddr, is_hop: bool) -> Option<Admitted> {
        let mut open = self.lock();
        let from_there = open.by_address.get(&address).copied().unwrap_or_default();
        if open.all >= self.most || (from_there >= self.most_per_address && !is_hop) {
            return None;
        }
        open.all += 1;
        *open.by_address.entry(address).or_default() += 1;
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

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.admission.lock();
        open.all = open.all.saturating_sub(1);
        if let Some(count) = open.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&self.address);
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
        let (a, b) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let first = admission.admit(a, false);
        let second = admission.admit(a, false);
        assert!(first.is_some() && second.is_some() && admission.admit(a, false).is_none());
        let other = admission.admit(b, false);
        assert!(other.is_some() && admission.admit(b, false).is_none(), "all places are taken");
        drop(first);
        let again = admission.admit(a, true);
        assert!(again.is_some());
        assert!(admission.admit(a, false).is_none() && admission.admit(a, true).is_none(), "all places are taken");
        drop((second, other, again));
        assert_eq!((admission.open(), admission.lock().by_address.len()), (0, 0));
    }
}
