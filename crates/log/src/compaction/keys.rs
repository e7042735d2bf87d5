//! The last offset of each key, in bounded memory (Kafka's `SkimpyOffsetMap`): keys are known by a hash of 128
//! bits, seeded anew for each pass, so that nobody can choose two keys that are taken for one.

use rimstone_types::Offset;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Bytes of a slot: the hash, and the offset plus one (0: free).
const SLOT_BYTES: usize = 16 + 8;
/// The table grows when more than this share, in quarters, is taken.
const LOAD_QUARTERS: usize = 3;
/// Slots of an empty table.
const SLOTS_MIN: usize = 4;

/// A table of keys.
#[derive(Debug)]
pub(crate) struct KeyMap {
    seed: u64,
    hashes: Vec<u128>,
    /// Offset plus one; 0: free.
    offsets: Vec<u64>,
    taken: usize,
    slots_max: usize,
}

impl KeyMap {
    /// An empty table that grows to about so many bytes.
    pub(crate) fn new(seed: u64, bytes_max: usize) -> Self {
        let slots = (bytes_max / SLOT_BYTES).max(SLOTS_MIN);
        // The largest power of two that fits.
        let slots_max = if slots.is_power_of_two() { slots } else { slots.next_power_of_two() / 2 };
        let (hashes, offsets) = (vec![0; SLOTS_MIN], vec![0; SLOTS_MIN]);
        Self { seed, hashes, offsets, taken: 0, slots_max }
    }

    /// Whether so many keys more fit into the bound. Into an empty table everything fits: a single batch must
    /// not stop a pass for ever, and is bounded itself.
    pub(crate) fn fits(&self, keys: usize) -> bool {
        self.taken == 0 || self.taken + keys <= self.slots_max / 4 * LOAD_QUARTERS
    }

    /// A record of the key is at this offset.
    pub(crate) fn put(&mut self, key: &[u8], offset: Offset) {
        if self.taken >= self.offsets.len() / 4 * LOAD_QUARTERS {
            self.grow();
        }
        let hash = xxh3_128_with_seed(key, self.seed);
        let slot = self.slot(hash);
        if self.offsets[slot] == 0 {
            self.taken += 1;
            self.hashes[slot] = hash;
        }
        self.offsets[slot] = self.offsets[slot].max(offset.get() + 1);
    }

    /// The last offset of the key.
    pub(crate) fn last(&self, key: &[u8]) -> Option<Offset> {
        let slot = self.slot(xxh3_128_with_seed(key, self.seed));
        self.offsets[slot].checked_sub(1).and_then(|offset| Offset::new(offset).ok())
    }

    /// Where the hash is, or where it would go.
    fn slot(&self, hash: u128) -> usize {
        let mask = self.offsets.len() - 1;
        let mut slot = hash as usize & mask;
        while self.offsets[slot] != 0 && self.hashes[slot] != hash {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        let slots = self.offsets.len() * 2;
        let hashes = std::mem::replace(&mut self.hashes, vec![0; slots]);
        let offsets = std::mem::replace(&mut self.offsets, vec![0; slots]);
        for (hash, offset) in hashes.into_iter().zip(offsets).filter(|(_, offset)| *offset != 0) {
            let slot = self.slot(hash);
            self.hashes[slot] = hash;
            self.offsets[slot] = offset;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(value: u64) -> Offset {
        Offset::new(value).unwrap()
    }

    #[test]
    fn the_last_offset_of_each_key_is_known_through_growth() {
        let mut map = KeyMap::new(7, 1 << 20);
        for n in 0..5000u64 {
            map.put(&(n % 3000).to_le_bytes(), offset(n));
        }
        for key in 0..3000u64 {
            let last = if key < 2000 { key + 3000 } else { key };
            assert_eq!(map.last(&key.to_le_bytes()), Some(offset(last)), "{key}");
        }
        assert_eq!(map.last(b"another"), None);
        assert_eq!(map.last(b""), None);
        map.put(b"", offset(0));
        assert_eq!(map.last(b""), Some(offset(0)));
    }

    #[test]
    fn the_bound_holds_but_for_the_first_batch() {
        let mut map = KeyMap::new(1, SLOT_BYTES * 128);
        assert!(map.fits(1_000_000), "into an empty table");
        map.put(b"a", offset(0));
        assert!(map.fits(95));
        assert!(!map.fits(96));
        for n in 0..95u64 {
            map.put(&n.to_le_bytes(), offset(n));
        }
        assert_eq!(map.offsets.len(), 128);
        assert!(!map.fits(1));
    }
}
