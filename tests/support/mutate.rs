//! Chance that is the same in every run.

#![allow(dead_code, reason = "each test binary uses its part")]

/// xorshift64*: small, and good enough to choose with.
pub struct Random(u64);

impl Random {
    /// One seed, one sequence; 0 is no seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below this one, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Changes some bytes of one of the seeds: what a fuzzer does, without its eyes.
pub fn mutate(random: &mut Random, seeds: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = random.pick(seeds).clone();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + 1 + random.below(8)).min(bytes.len());
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => drop(bytes.drain(at.min(end)..end)),
            3 => {
                let piece = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => {
                // The end of one, the beginning of another.
                let other = random.pick(seeds);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.below(other.len() + 1)..]);
            }
            5 => {
                let mut lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
                if lines.len() > 1 {
                    let (one, other) = (random.below(lines.len()), random.below(lines.len()));
                    match random.below(3) {
                        0 => lines.swap(one, other),
                        1 => drop(lines.remove(one)),
                        _ => lines.insert(other, lines[one].clone()),
                    }
                    bytes = lines.concat();
                }
            }
            _ => drop(bytes.splice(at..at, random.pick(words).iter().copied())),
        }
    }
    bytes
}
