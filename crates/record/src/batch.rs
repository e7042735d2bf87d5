//! A verified batch.

use std::fmt;

use bytes::Bytes;
use rimstone_types::{Offset, Timestamp};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    compression::{self, Compression},
    error::BatchError,
    header::{
        APPEND_TIME_BIT, ATTRIBUTES_AT, BatchHeader, CRC_AT, HEADER_LENGTH, LEADER_EPOCH_AT, MAX_TIMESTAMP_AT,
    },
    iter::RecordIter,
    limits::Limits,
};

/// The shortest record: each of its seven fields takes a byte at least.
const RECORD_BYTES_MIN: usize = 7;

/// A batch whose header makes sense, whose length is that of its bytes and whose checksum matches. Cheap to
/// clone. Its records are checked when they are read.
#[derive(Clone, PartialEq, Eq)]
pub struct Batch {
    header: BatchHeader,
    bytes: Bytes,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Batch").field(&self.header).finish()
    }
}

impl Batch {
    /// Takes bytes that must be exactly one batch.
    ///
    /// # Errors
    /// Those of [`BatchHeader::parse`]; [`BatchError::Truncated`], [`BatchError::TrailingBytes`],
    /// [`BatchError::TooLarge`], [`BatchError::TooManyRecords`], [`BatchError::CountBeyondBytes`],
    /// [`BatchError::Crc`].
    pub fn verify(bytes: Bytes, limits: &Limits) -> Result<Self, BatchError> {
        let header = BatchHeader::parse(&bytes)?;
        if header.length > limits.batch_bytes {
            return Err(BatchError::TooLarge { bytes: header.length, limit: limits.batch_bytes });
        }
        if bytes.len() < header.length {
            return Err(BatchError::Truncated { have: bytes.len(), need: header.length });
        }
        if bytes.len() > header.length {
            return Err(BatchError::TrailingBytes {
                length: header.length,
                extra: bytes.len() - header.length,
            });
        }
        if header.record_count > limits.records {
            return Err(BatchError::TooManyRecords { count: header.record_count, limit: limits.records });
        }
        let computed = crc32c::crc32c(&bytes[ATTRIBUTES_AT..]);
        if computed != header.crc {
            return Err(BatchError::Crc { stated: header.crc, computed });
        }
        if header.compression() == Compression::None {
            check_count(header.record_count, bytes.len() - HEADER_LENGTH)?;
        }
        Ok(Self { header, bytes })
    }

    /// A batch of bytes that were just made, so that they cannot be wrong.
    pub(crate) fn from_own_bytes(mut bytes: Vec<u8>) -> Self {
        write_crc(&mut bytes);
        let header = BatchHeader::parse(&bytes).expect("the header was written from checked values");
        Self { header, bytes: bytes.into() }
    }

    /// The header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// All bytes, header included.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The offset of the first record.
    pub fn base_offset(&self) -> Offset {
        self.header.base_offset
    }

    /// The offset of the last record.
    pub fn last_offset(&self) -> Offset {
        self.header.last_offset()
    }

    /// The offset after the last record.
    pub fn next_offset(&self) -> Offset {
        self.header.next_offset()
    }

    /// The header with another base offset and leader epoch. Neither is covered by the checksum, so the batch
    /// stays valid with it. The caller sees to it that the last offset does not leave the range of offsets.
    pub fn stamped_header(&self, base: Offset, leader_epoch: i32) -> [u8; HEADER_LENGTH] {
        let mut header = *self.bytes.first_chunk().expect("a batch has a whole header");
        stamp(&mut header, base, leader_epoch);
        header
    }

    /// Everything behind the header, as it is stored (perhaps compressed). Shares the memory.
    pub fn body(&self) -> Bytes {
        self.bytes.slice(HEADER_LENGTH..)
    }

    /// A copy with another base offset and leader epoch. The caller sees to it that the last offset does not
    /// leave the range of offsets.
    pub fn with_base_offset(&self, base: Offset, leader_epoch: i32) -> Self {
        let mut bytes = self.bytes.to_vec();
        stamp(&mut bytes, base, leader_epoch);
        let header = BatchHeader { base_offset: base, leader_epoch, ..self.header };
        Self { header, bytes: bytes.into() }
    }

    /// A copy whose records all have the time `at`, which the server gave: sets attribute bit 3 and the max
    /// timestamp and makes the checksum anew. The body stays as it is.
    pub fn with_append_time(&self, at: Timestamp) -> Self {
        let mut bytes = self.bytes.to_vec();
        let attributes = self.header.attributes | APPEND_TIME_BIT;
        bytes[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.to_be_bytes());
        bytes[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&at.as_millis().to_be_bytes());
        let crc = write_crc(&mut bytes);
        Self {
            header: BatchHeader { attributes, max_timestamp: at, crc, ..self.header },
            bytes: bytes.into(),
        }
    }

    /// The records, in order of offset. A batch that is not compressed shares its memory with them; another
    /// is decompressed here, as far as the limits allow.
    ///
    /// # Errors
    /// [`BatchError::Decompress`], [`BatchError::UncompressedTooLarge`], [`BatchError::CountBeyondBytes`];
    /// the iterator yields [`BatchError::Record`] and [`BatchError::TrailingRecordBytes`].
    pub fn records(&self, limits: &Limits) -> Result<RecordIter, BatchError> {
        let records = compression::decompress(self.header.compression(), self.body(), limits)?;
        check_count(self.header.record_count, records.len())?;
        Ok(RecordIter::new(&self.header, records, limits))
    }

    /// A hash over what the records say: their count, and of each the key, the value and the headers with
    /// their lengths. Times, offsets and compression do not count, so that a request which is built again
    /// from the same records is recognised.
    ///
    /// # Errors
    /// Those of [`Batch::records`] and of its iterator.
    pub fn content_hash(&self, limits: &Limits) -> Result<u64, BatchError> {
        /// Stands for the length of what is absent; no length reaches it.
        const ABSENT: u64 = u64::MAX;
        fn add(hash: &mut Xxh3, field: Option<&[u8]>) {
            hash.update(&field.map_or(ABSENT, |field| field.len() as u64).to_le_bytes());
            hash.update(field.unwrap_or_default());
        }
        let mut hash = Xxh3::new();
        hash.update(&u64::from(self.header.record_count).to_le_bytes());
        for record in self.records(limits)? {
            let record = record?;
            add(&mut hash, record.key.as_deref());
            add(&mut hash, record.value.as_deref());
            hash.update(&(record.headers.len() as u64).to_le_bytes());
            for header in &record.headers {
                add(&mut hash, Some(header.key.as_bytes()));
                add(&mut hash, header.value.as_deref());
            }
        }
        Ok(hash.digest())
    }
}

/// Whether so many records can be in so many bytes.
fn check_count(count: u32, bytes: usize) -> Result<(), BatchError> {
    if (count as usize).saturating_mul(RECORD_BYTES_MIN) > bytes {
        return Err(BatchError::CountBeyondBytes { count, bytes });
    }
    Ok(())
}

fn write_crc(bytes: &mut [u8]) -> u32 {
    let crc = crc32c::crc32c(&bytes[ATTRIBUTES_AT..]);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    crc
}

fn stamp(bytes: &mut [u8], base: Offset, leader_epoch: i32) {
    bytes[..8].copy_from_slice(&base.as_i64().to_be_bytes());
    bytes[LEADER_EPOCH_AT..LEADER_EPOCH_AT + 4].copy_from_slice(&leader_epoch.to_be_bytes());
}

#[cfg(test)]
mod tests;
