//! The header of a batch: 61 bytes, big-endian.
//!
//! | from | bytes | field |
//! |---|---|---|
//! | 0 | 8 | base offset |
//! | 8 | 4 | batch length: the bytes after this field |
//! | 12 | 4 | leader epoch |
//! | 16 | 1 | magic: 2 |
//! | 17 | 4 | CRC-32C of everything from 21 on |
//! | 21 | 2 | attributes: bits 0-2 compression, 3 append time, 4 transactional, 5 control, 6 delete horizon, 8 numbered by request |
//! | 23 | 4 | last offset delta |
//! | 27 | 8 | base timestamp |
//! | 35 | 8 | max timestamp |
//! | 43 | 8 | producer id, -1: none |
//! | 51 | 2 | producer epoch |
//! | 53 | 4 | base sequence, or request number |
//! | 57 | 4 | record count |

use rimstone_types::{Numbering, Offset, ProducerEpoch, ProducerId, Timestamp};

use crate::{compression::Compression, error::BatchError};

/// The bytes of a batch header.
pub const HEADER_LENGTH: usize = 61;

pub(crate) const LENGTH_AT: usize = 8;
pub(crate) const LEADER_EPOCH_AT: usize = 12;
pub(crate) const MAGIC_AT: usize = 16;
pub(crate) const CRC_AT: usize = 17;
pub(crate) const ATTRIBUTES_AT: usize = 21;
pub(crate) const LAST_OFFSET_DELTA_AT: usize = 23;
pub(crate) const BASE_TIMESTAMP_AT: usize = 27;
pub(crate) const MAX_TIMESTAMP_AT: usize = 35;
pub(crate) const PRODUCER_ID_AT: usize = 43;
pub(crate) const PRODUCER_EPOCH_AT: usize = 51;
pub(crate) const BASE_SEQUENCE_AT: usize = 53;
pub(crate) const RECORD_COUNT_AT: usize = 57;

/// The bytes that the length field does not count: base offset and itself.
pub(crate) const LENGTH_EXCLUDES: usize = 12;

pub(crate) const MAGIC: i8 = 2;

pub(crate) const COMPRESSION_BITS: u16 = 0x0007;
pub(crate) const APPEND_TIME_BIT: u16 = 0x0008;
pub(crate) const TRANSACTIONAL_BIT: u16 = 0x0010;
pub(crate) const CONTROL_BIT: u16 = 0x0020;
pub(crate) const DELETE_HORIZON_BIT: u16 = 0x0040;
/// Ours: the base sequence is a request number. Kafka leaves the bits from 7 on unused.
pub(crate) const BY_REQUEST_BIT: u16 = 0x0100;

const DEFINED_BITS: u16 = COMPRESSION_BITS
    | APPEND_TIME_BIT
    | TRANSACTIONAL_BIT
    | CONTROL_BIT
    | DELETE_HORIZON_BIT
    | BY_REQUEST_BIT;

/// What a batch says of its producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProducerStamp {
    /// Who wrote it.
    pub id: ProducerId,
    /// In which epoch.
    pub epoch: ProducerEpoch,
    /// The sequence of the first record, or the number of the request: 0 to 2^31 - 1.
    pub base: u32,
    /// Which of the two.
    pub numbering: Numbering,
}

/// The fields of a batch header that make sense on their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// The offset of the first record (of the place of the first, after compaction).
    pub base_offset: Offset,
    /// All bytes of the batch, header included.
    pub length: usize,
    /// The leader epoch; not covered by the checksum.
    pub leader_epoch: i32,
    /// The CRC-32C of everything from the attributes on.
    pub crc: u32,
    /// The attribute bits.
    pub attributes: u16,
    /// The offset of the last record less the base offset.
    pub last_offset_delta: u32,
    /// The time that the records' times are relative to.
    pub base_timestamp: Timestamp,
    /// The highest time of the records; the append time, if [`BatchHeader::is_append_time`].
    pub max_timestamp: Timestamp,
    /// Who wrote it and which of its batches it is; `None` without a producer id, and in a control batch,
    /// which belongs to a producer but has no number.
    pub producer: Option<ProducerStamp>,
    /// How many records are in it.
    pub record_count: u32,
}

impl BatchHeader {
    /// Reads the first 61 bytes and checks that each field makes sense, but not that the bytes behind them
    /// are there or match the checksum.
    ///
    /// # Errors
    /// [`BatchError::Truncated`], [`BatchError::Length`], [`BatchError::Magic`], [`BatchError::Attributes`],
    /// [`BatchError::CompressionCode`], [`BatchError::Negative`], [`BatchError::RecordCount`],
    /// [`BatchError::OffsetOverflow`], [`BatchError::NumberedWithoutProducer`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_LENGTH>() else {
            return Err(BatchError::Truncated { have: bytes.len(), need: HEADER_LENGTH });
        };
        let magic = bytes[MAGIC_AT] as i8;
        if magic != MAGIC {
            return Err(BatchError::Magic { got: magic });
        }
        let length = i32::from_be_bytes(field(bytes, LENGTH_AT));
        if length < (HEADER_LENGTH - LENGTH_EXCLUDES) as i32 {
            return Err(BatchError::Length { got: length });
        }
        let attributes = u16::from_be_bytes(field(bytes, ATTRIBUTES_AT));
        if attributes & !DEFINED_BITS != 0 {
            return Err(BatchError::Attributes { got: attributes, allowed: DEFINED_BITS });
        }
        Compression::from_code((attributes & COMPRESSION_BITS) as u8)?;
        let base = i64::from_be_bytes(field(bytes, 0));
        let base_offset = Offset::from_i64(base)
            .map_err(|_| BatchError::Negative { field: "the base offset", got: base })?;
        let last_offset_delta =
            not_negative("the last offset delta", i32::from_be_bytes(field(bytes, LAST_OFFSET_DELTA_AT)))?;
        let record_count =
            not_negative("the record count", i32::from_be_bytes(field(bytes, RECORD_COUNT_AT)))?;
        if u64::from(record_count) > u64::from(last_offset_delta) + 1 {
            return Err(BatchError::RecordCount { count: record_count, last_delta: last_offset_delta });
        }
        if base_offset.checked_add(u64::from(last_offset_delta) + 1).is_none() {
            return Err(BatchError::OffsetOverflow { base: base_offset, last_delta: last_offset_delta });
        }
        Ok(Self {
            base_offset,
            length: length as usize + LENGTH_EXCLUDES,
            leader_epoch: i32::from_be_bytes(field(bytes, LEADER_EPOCH_AT)),
            crc: u32::from_be_bytes(field(bytes, CRC_AT)),
            attributes,
            last_offset_delta,
            base_timestamp: Timestamp(i64::from_be_bytes(field(bytes, BASE_TIMESTAMP_AT))),
            max_timestamp: Timestamp(i64::from_be_bytes(field(bytes, MAX_TIMESTAMP_AT))),
            producer: parse_producer(bytes, attributes)?,
            record_count,
        })
    }

    /// How the records are compressed.
    pub fn compression(&self) -> Compression {
        Compression::from_code((self.attributes & COMPRESSION_BITS) as u8)
            .expect("a header is only made with a compression code that was checked")
    }

    /// Whether the times of the records are the batch's max timestamp, given by the server.
    pub const fn is_append_time(&self) -> bool {
        self.attributes & APPEND_TIME_BIT != 0
    }

    /// Whether the batch is part of a transaction.
    pub const fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL_BIT != 0
    }

    /// Whether the batch is a marker of the server's rather than records.
    pub const fn is_control(&self) -> bool {
        self.attributes & CONTROL_BIT != 0
    }

    /// Records that readers see: none in a control batch.
    pub const fn records_there(&self) -> u64 {
        if self.is_control() { 0 } else { self.record_count as u64 }
    }

    /// Whether readers see a record of it.
    pub const fn has_records(&self) -> bool {
        self.records_there() > 0
    }

    /// Whether the base timestamp is a time until which tombstones are kept; only compaction sets it.
    pub const fn has_delete_horizon(&self) -> bool {
        self.attributes & DELETE_HORIZON_BIT != 0
    }

    /// The offset of the last record.
    pub fn last_offset(&self) -> Offset {
        self.base_offset.saturating_add(u64::from(self.last_offset_delta))
    }

    /// The offset after the last record.
    pub fn next_offset(&self) -> Offset {
        self.base_offset.saturating_add(u64::from(self.last_offset_delta) + 1)
    }
}

/// The `N` bytes of a field.
pub(crate) fn field<const N: usize>(bytes: &[u8; HEADER_LENGTH], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

fn not_negative(field: &'static str, got: i32) -> Result<u32, BatchError> {
    u32::try_from(got).map_err(|_| BatchError::Negative { field, got: got.into() })
}

fn parse_producer(bytes: &[u8; HEADER_LENGTH], attributes: u16) -> Result<Option<ProducerStamp>, BatchError> {
    let by_request = attributes & BY_REQUEST_BIT != 0;
    let id = i64::from_be_bytes(field(bytes, PRODUCER_ID_AT));
    let base = i32::from_be_bytes(field(bytes, BASE_SEQUENCE_AT));
    if id == -1 {
        // Some clients leave 0 rather than -1 in the epoch and the sequence then.
        return if by_request { Err(BatchError::NumberedWithoutProducer) } else { Ok(None) };
    }
    let id = ProducerId::from_signed(id)
        .map_err(|_| BatchError::Negative { field: "the producer id", got: id })?;
    let epoch = i16::from_be_bytes(field(bytes, PRODUCER_EPOCH_AT));
    let epoch = ProducerEpoch::from_signed(epoch)
        .map_err(|_| BatchError::Negative { field: "the producer epoch", got: epoch.into() })?;
    if attributes & CONTROL_BIT != 0 && base == -1 {
        return Ok(None);
    }
    let base = not_negative("the base sequence", base)?;
    let numbering = if by_request { Numbering::ByRequest } else { Numbering::Dense };
    Ok(Some(ProducerStamp { id, epoch, base, numbering }))
}
