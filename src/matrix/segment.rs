//! What stands behind one segment of a path, found by its bytes.

use std::collections::HashMap;

use foldhash::fast::FixedState;

/// Things by segments that we or the operator wrote. Few are compared one by one; among many, the hash finds the one.
#[derive(Clone, Debug)]
pub struct BySegment<T> {
    few: Vec<(Box<[u8]>, T)>,
    // With a hash that anybody can compute: whoever writes the path has no say in what is stored here.
    many: HashMap<Box<[u8]>, T, FixedState>,
}

impl<T: Copy> BySegment<T> {
    /// What stands behind this segment.
    pub fn get(&self, segment: &[u8]) -> Option<T> {
        if self.many.is_empty() {
            return self.few.iter().find(|(known, _)| **known == *segment).map(|(_, thing)| *thing);
        }
        self.many.get(segment).copied()
    }

    /// Puts this behind a segment behind which there is nothing yet.
    pub fn insert(&mut self, segment: &[u8], thing: T) {
        if self.many.is_empty() && self.few.len() < FEW {
            self.few.push((segment.into(), thing));
            return;
        }
        self.many.extend(std::mem::take(&mut self.few));
        self.many.insert(segment.into(), thing);
    }
}

impl<T> Default for BySegment<T> {
    fn default() -> Self {
        Self { few: Vec::new(), many: HashMap::default() }
    }
}

/// Most segments differ from others already in their lengths.
const FEW: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_found_however_many_there_are() {
        let mut map = BySegment::default();
        for count in 0..20_usize {
            assert_eq!(map.get(count.to_string().as_bytes()), None);
            map.insert(count.to_string().as_bytes(), count);
            assert!((0..=count).all(|n| map.get(n.to_string().as_bytes()) == Some(n)), "{count}");
            assert_eq!(map.get(b""), None);
        }
    }
}
