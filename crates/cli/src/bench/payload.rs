//! What is in the records: pseudo-random bytes, or pieces of a file. Never all zero, which disks and
//! compression would flatter.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use bytes::Bytes;

/// Pseudo-random bytes that values are cut from: too many for a cache of the processor.
const RING_BYTES: usize = 8 << 20;
/// Of a file, this much is held in memory.
const FILE_BYTES_MAX: usize = 64 << 20;

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers for a seed for ever, which is why it is not taken
/// from a library.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another generator, for this purpose.
    pub(crate) fn fork(&self, purpose: u64) -> Self {
        Self(Self(self.0 ^ purpose.wrapping_mul(0xD6E8_FEB8_6659_FD93)).next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from 0 up to, but not including, 1.
    pub(crate) fn unit(&mut self) -> f64 {
        // 53 bits are what a double holds exactly.
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Where values are cut from. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    bytes: Bytes,
    size: usize,
    /// A place that is not zero, in case others are.
    nonzero: usize,
}

impl Values {
    /// Pseudo-random values of this size, at least 1.
    pub(crate) fn random(size: usize, random: &mut Random) -> Self {
        let mut bytes = vec![0; RING_BYTES + size];
        random.fill(&mut bytes);
        let nonzero = bytes.iter().position(|byte| *byte != 0).unwrap_or(0);
        Self { bytes: bytes.into(), size, nonzero }
    }

    /// Pieces of a file.
    ///
    /// # Errors
    /// It cannot be read; it is empty or all zero.
    pub(crate) fn of_file(path: &Path, size: usize) -> io::Result<Self> {
        let mut contents = Vec::new();
        File::open(path)?.take(FILE_BYTES_MAX as u64).read_to_end(&mut contents)?;
        Self::of(contents, size)
    }

    fn of(contents: Vec<u8>, size: usize) -> io::Result<Self> {
        let Some(nonzero) = contents.iter().position(|byte| *byte != 0) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is empty or all zero, which would measure nothing real",
            ));
        };
        // A piece may begin anywhere and goes on at the beginning.
        let wrapped = contents.iter().copied().cycle().take(contents.len() + size).collect::<Vec<_>>();
        Ok(Self { bytes: wrapped.into(), size, nonzero })
    }

    /// A value.
    pub(crate) fn value(&self, random: &mut Random) -> Bytes {
        let at = random.below((self.bytes.len() - self.size) as u64) as usize;
        let value = self.bytes.slice(at..at + self.size);
        if value.iter().any(|byte| *byte != 0) {
            return value;
        }
        self.bytes.slice(self.nonzero..self.nonzero + self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_for_ever() {
        // The reference values of SplitMix64 for the seed 1234567.
        let mut random = Random::new(1_234_567);
        let numbers: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(
            numbers,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn forks_differ_from_each_other() {
        let random = Random::new(7);
        let mut firsts: Vec<u64> = (0..100).map(|purpose| random.fork(purpose).next()).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 100);
    }

    #[test]
    fn random_values_differ_and_do_not_compress() {
        let mut random = Random::new(1);
        let values = Values::random(1024, &mut random);
        let (a, b) = (values.value(&mut random), values.value(&mut random));
        assert_eq!((a.len(), b.len()), (1024, 1024));
        assert_ne!(a, b);
        let mut counts = [0u32; 256];
        for byte in std::iter::repeat_with(|| values.value(&mut random)).take(100).flatten() {
            counts[usize::from(byte)] += 1;
        }
        // 400 of each are expected.
        assert!(counts.iter().all(|count| (250..600).contains(count)), "{counts:?}");
    }

    #[test]
    fn pieces_of_a_file_wrap_around_and_are_never_all_zero() {
        let mut random = Random::new(2);
        let values = Values::of(b"abc".to_vec(), 5).unwrap();
        for _ in 0..20 {
            let value = values.value(&mut random);
            assert!(["abcab", "bcabc", "cabca"].iter().any(|piece| value == piece), "{value:?}");
        }
        let mut holes = vec![0; 10_000];
        holes[9_999] = 1;
        let values = Values::of(holes, 10).unwrap();
        for _ in 0..1000 {
            assert!(values.value(&mut random).iter().any(|byte| *byte != 0));
        }
        for bad in [Vec::new(), vec![0; 100]] {
            assert!(Values::of(bad, 1).unwrap_err().to_string().contains("all zero"));
        }
    }
}
