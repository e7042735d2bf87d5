//! Pseudo-random values, made as `rimstone bench` makes them: never all zero, not compressible.

use bytes::Bytes;

/// Values are cut from so many bytes: too many for a cache of the processor.
const RING_BYTES: usize = 8 << 20;

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

/// Where values are cut from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Values {
    ring: Bytes,
    random: Random,
}

impl Values {
    /// Values up to this size.
    pub fn new(size_max: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut ring = vec![0; RING_BYTES + size_max];
        for chunk in ring.chunks_mut(8) {
            chunk.copy_from_slice(&random.number().to_le_bytes()[..chunk.len()]);
        }
        Self { ring: ring.into(), random }
    }

    /// A value of this size, which is not above the largest.
    pub fn value(&mut self, size: usize) -> Bytes {
        let places = (self.ring.len() - size) as u128;
        let at = ((u128::from(self.random.number()) * places) >> 64) as usize;
        self.ring.slice(at..at + size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_their_seed() {
        // The reference values of SplitMix64 for the seed 1234567.
        let mut random = Random::new(1_234_567);
        assert_eq!(random.number(), 6_457_827_717_110_365_317);
        assert_eq!(random.number(), 3_203_168_211_198_807_973);
        let (mut one, mut same, mut other) = (Values::new(100, 1), Values::new(100, 1), Values::new(100, 2));
        let value = one.value(100);
        assert_eq!((value.len(), &value), (100, &same.value(100)));
        assert_ne!(value, other.value(100));
        assert!(value.iter().any(|byte| *byte != 0));
        assert_eq!(one.value(1).len(), 1);
    }
}
