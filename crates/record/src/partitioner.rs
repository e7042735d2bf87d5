//! Which partition a record goes to. Every client must come to the same answer, so these functions never
//! change.

use std::num::NonZeroU32;

use rimstone_types::{PartitionIndex, ProducerId, RequestNumber};

/// Kafka's murmur2 (`Utils.murmur2`): 32 bits, seed 0x9747b28c.
pub fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let mut hash = SEED ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (index, &byte) in tail.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The partition of a key, as Kafka's Java client has it: `(murmur2(key) & 0x7fffffff) % partitions`.
pub fn partition_for_key(key: &[u8], partitions: NonZeroU32) -> PartitionIndex {
    PartitionIndex((murmur2(key) & 0x7fff_ffff) % partitions)
}

/// The partition of the records without a key of one request: a function of who sent it and of its number,
/// so that a retry goes the same way. The hash is over the id (8 bytes) and the number (4), big-endian.
pub fn partition_for_request(
    id: ProducerId,
    number: RequestNumber,
    partitions: NonZeroU32,
) -> PartitionIndex {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&id.get().to_be_bytes());
    bytes[8..].copy_from_slice(&number.get().to_be_bytes());
    partition_for_key(&bytes, partitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_agrees_with_kafka() {
        // Kafka's UtilsTest.testMurmur2.
        for (key, expected) in [
            (&b"21"[..], -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key) as i32, expected, "{}", key.escape_ascii());
        }
    }

    #[test]
    fn keys_go_where_kafka_puts_them() {
        let ten = NonZeroU32::new(10).unwrap();
        assert_eq!(
            partition_for_key(b"foobar", ten),
            PartitionIndex((-790_332_482i32 & 0x7fff_ffff) as u32 % 10)
        );
        assert_eq!(partition_for_key(b"abc", ten), PartitionIndex(7));
        assert_eq!(partition_for_key(b"abc", NonZeroU32::MIN), PartitionIndex(0));
    }

    #[test]
    fn requests_spread_over_all_partitions() {
        let partitions = NonZeroU32::new(6).unwrap();
        let id = ProducerId::new(7).unwrap();
        let mut hits = [0; 6];
        for number in 0..600 {
            let number = RequestNumber::new(number).unwrap();
            let partition = partition_for_request(id, number, partitions);
            assert_eq!(partition, partition_for_request(id, number, partitions));
            hits[partition.0 as usize] += 1;
        }
        assert!(hits.iter().all(|&hits| hits > 50), "{hits:?}");
    }
}
