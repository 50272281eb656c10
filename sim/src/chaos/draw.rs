//! Numbers from a seed, keyed by purpose and place, so that leaving one fault out changes no other draw. Pure.

use std::ops::RangeInclusive;

/// Mixes a number well (splitmix64; Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draw {
    key: u64,
    next: u64,
}

impl Draw {
    /// Makes the stream of a seed for a purpose at a place.
    pub fn new(seed: u64, purpose: &str, place: &[u64]) -> Self {
        let bytes = purpose.bytes().fold(mix(seed), |key, b| mix(key ^ u64::from(b)));
        let key = place.iter().fold(bytes, |key, n| mix(key ^ mix(*n)));
        Self { key, next: 0 }
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        mix(self.key ^ mix(self.next))
    }

    /// Returns a number within a range.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (from, to) = (*range.start(), *range.end());
        from + self.number() % (to.saturating_sub(from)).saturating_add(1)
    }

    /// Is true so many times in a thousand.
    pub fn chance(&mut self, permille: u64) -> bool {
        self.number() % 1_000 < permille
    }

    /// Returns one of these, unless there are none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        let last = u64::try_from(of.len()).ok()?.checked_sub(1)?;
        of.get(usize::try_from(self.within(0..=last)).ok()?)
    }

    /// Returns an index below a length, which must not be zero.
    pub fn index(&mut self, len: usize) -> usize {
        let len = u64::try_from(len.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.number() % len).unwrap_or(0)
    }

    /// Returns 32 bytes.
    pub fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.number().to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_every_part_of_their_key_and_repeat() {
        let first = |seed, purpose: &str, place: &[u64]| Draw::new(seed, purpose, place).number();
        assert_eq!(first(1, "net", &[1, 2]), first(1, "net", &[1, 2]));
        for other in [first(2, "net", &[1, 2]), first(1, "disk", &[1, 2]), first(1, "net", &[2, 1])]
        {
            assert_ne!(first(1, "net", &[1, 2]), other);
        }
    }

    #[test]
    fn draws_keep_to_their_ranges_and_reach_their_ends() {
        let mut draw = Draw::new(7, "test", &[]);
        let seen: std::collections::BTreeSet<u64> = (0..200).map(|_| draw.within(3..=6)).collect();
        assert_eq!(seen, [3, 4, 5, 6].into());
        let hits = (0..10_000).filter(|_| draw.chance(250)).count();
        assert!((2_200..2_800).contains(&hits), "{hits}");
        assert!(draw.pick::<u8>(&[]).is_none() && draw.pick(&[1]).is_some());
    }
}
