//! How much a batch may be.

use crate::header::HEADER_LENGTH;

/// Below this a decompressed batch is never judged by its ratio: small batches of repetitive records
/// compress by more than any ratio that would stop a bomb.
pub(crate) const RATIO_FLOOR: usize = 1 << 20;

/// Bounds on a batch, each checked before anything is allocated by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The whole batch as it is sent and stored, header included, in bytes.
    pub batch_bytes: usize,
    /// Records in a batch.
    pub records: u32,
    /// The records of a batch after decompression, in bytes.
    pub uncompressed_bytes: usize,
    /// How many times larger than its compressed form a batch may become, above a floor of 1 MiB.
    pub ratio: u32,
    /// Headers of one record.
    pub headers_per_record: u32,
}

impl Limits {
    /// What `compressed` bytes may become at most.
    pub(crate) fn uncompressed_max(&self, compressed: usize) -> usize {
        compressed.saturating_mul(self.ratio as usize).max(RATIO_FLOOR).min(self.uncompressed_bytes)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch_bytes: (1 << 20) + HEADER_LENGTH,
            records: 1_000_000,
            uncompressed_bytes: 64 << 20,
            ratio: 1000,
            headers_per_record: 1000,
        }
    }
}
