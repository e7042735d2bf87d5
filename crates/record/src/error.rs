//! What can be wrong with a batch. Each error says what was found and what is allowed.

use rimstone_types::{Offset, Timestamp};

use crate::compression::Compression;

/// Why bytes are not a batch, or a batch is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than a header has, or than the header says.
    #[error("the batch is cut off: {have} bytes of at least {need}")]
    Truncated {
        /// Bytes that are there.
        have: usize,
        /// Bytes that there must be.
        need: usize,
    },
    /// More bytes than the header says.
    #[error("{extra} bytes follow a batch of {length} bytes; exactly one batch is allowed")]
    TrailingBytes {
        /// Bytes of the batch.
        length: usize,
        /// Bytes behind it.
        extra: usize,
    },
    /// The length field cannot be true.
    #[error("the batch length field is {got}; at least 49 is needed for the header")]
    Length {
        /// The field.
        got: i32,
    },
    /// Larger than allowed.
    #[error("the batch has {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// Bytes of the batch.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Another version of the format, or something else.
    #[error("magic byte {got}; only record batches of version 2 are understood")]
    Magic {
        /// The field.
        got: i8,
    },
    /// The checksum does not match.
    #[error("the batch says its CRC-32C is {stated:#010x}, its bytes give {computed:#010x}")]
    Crc {
        /// The field.
        stated: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// Attribute bits that nobody has defined.
    #[error("attributes {got:#06x} have bits set outside {allowed:#06x}")]
    Attributes {
        /// The field.
        got: u16,
        /// The bits that are defined.
        allowed: u16,
    },
    /// A compression code that nobody has defined.
    #[error("compression code {got}; 0 (none), 1 (gzip), 2 (snappy), 3 (lz4) and 4 (zstd) are understood")]
    CompressionCode {
        /// The code.
        got: u8,
    },
    /// A number that must not be negative.
    #[error("{field} is {got}; it must not be negative")]
    Negative {
        /// Which field.
        field: &'static str,
        /// Its value.
        got: i64,
    },
    /// The batch would reach beyond the highest offset.
    #[error("base offset {base} and last offset delta {last_delta} reach beyond the highest offset")]
    OffsetOverflow {
        /// The base offset.
        base: Offset,
        /// The last offset delta.
        last_delta: u32,
    },
    /// More records than offsets.
    #[error("{count} records do not fit a last offset delta of {last_delta}")]
    RecordCount {
        /// The record count.
        count: u32,
        /// The last offset delta.
        last_delta: u32,
    },
    /// More records than bytes for them.
    #[error("{count} records cannot be in {bytes} bytes")]
    CountBeyondBytes {
        /// The record count.
        count: u32,
        /// Bytes of the uncompressed records.
        bytes: usize,
    },
    /// More records than allowed.
    #[error("the batch has {count} records; the limit is {limit}")]
    TooManyRecords {
        /// The record count.
        count: u32,
        /// The limit.
        limit: u32,
    },
    /// Numbered by request, but by no producer.
    #[error("the batch is marked as numbered by request but has no producer id")]
    NumberedWithoutProducer,
    /// The records cannot be decompressed.
    #[error("{compression} cannot be decompressed: {reason}")]
    Decompress {
        /// How they are compressed.
        compression: Compression,
        /// What is wrong.
        reason: String,
    },
    /// The records would be larger than allowed once decompressed.
    #[error(
        "{compressed} bytes of {compression} become more than {limit} bytes, which is the limit for them"
    )]
    UncompressedTooLarge {
        /// How they are compressed.
        compression: Compression,
        /// Bytes before.
        compressed: usize,
        /// The limit, after the absolute bound and the bound by ratio.
        limit: usize,
    },
    /// A record is malformed or not allowed.
    #[error("record {index} of the batch: {fault}")]
    Record {
        /// Which one, from 0.
        index: u32,
        /// What is wrong with it.
        fault: RecordFault,
    },
    /// Bytes are left over after the last record.
    #[error("{extra} bytes follow the last record")]
    TrailingRecordBytes {
        /// How many.
        extra: usize,
    },
    /// A batch from a client has no records.
    #[error("the batch has no records")]
    Empty,
    /// A batch from a client claims what only the server may.
    #[error("a client's batch must not be marked as {what}")]
    ServerOnly {
        /// The mark.
        what: &'static str,
    },
    /// The last offset delta of a client's batch is not the count less one.
    #[error("the last offset delta is {got}; for {count} records it must be {expected}", expected = .count.saturating_sub(1))]
    LastOffsetDelta {
        /// The field.
        got: u32,
        /// The record count.
        count: u32,
    },
    /// The header's max timestamp is not the highest of the records.
    #[error("the batch says its max timestamp is {stated}, the highest of its records is {real}")]
    MaxTimestamp {
        /// The field.
        stated: Timestamp,
        /// The highest time of the records.
        real: Timestamp,
    },
    /// A create time is too far in the future, or before the year 0.
    #[error("record {index} has the create time {time}; allowed is {} to {latest}", Timestamp::YEAR_0)]
    TimestampTooFar {
        /// Which record, from 0.
        index: u32,
        /// Its time.
        time: Timestamp,
        /// The latest allowed.
        latest: Timestamp,
    },
    /// A record without a key, where keys are needed.
    #[error("record {index} has no key; this topic needs one")]
    KeyMissing {
        /// Which record, from 0.
        index: u32,
    },
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// The bytes end within it.
    #[error("the bytes end within its {field}")]
    Truncated {
        /// Where.
        field: &'static str,
    },
    /// A variable-length integer has more bits than its type.
    #[error("its {field} is no valid variable-length integer")]
    Varint {
        /// Which one.
        field: &'static str,
    },
    /// A length below -1, or negative where something must be there.
    #[error("its {field} is {got}")]
    Length {
        /// Which one.
        field: &'static str,
        /// The length.
        got: i32,
    },
    /// Its length is not the length of its fields.
    #[error("its length leaves {extra} bytes over")]
    Slack {
        /// Bytes left over.
        extra: usize,
    },
    /// Attribute bits that nobody has defined.
    #[error("its attributes are {got:#04x}; none are defined")]
    Attributes {
        /// The field.
        got: u8,
    },
    /// Too many headers.
    #[error("it has {got} headers; the limit is {limit}")]
    TooManyHeaders {
        /// How many.
        got: i32,
        /// The limit.
        limit: u32,
    },
    /// A header's name is not UTF-8.
    #[error("the name of header {header} is not UTF-8")]
    HeaderName {
        /// Which header, from 0.
        header: u32,
    },
    /// Its time is outside the range of times.
    #[error("its time delta {delta} leads outside the range of times")]
    Time {
        /// The delta.
        delta: i64,
    },
    /// Its offset is not above that of the record before it, or above the batch's last.
    #[error("its offset delta is {got}; {least} to {most} is allowed")]
    OffsetDelta {
        /// The delta.
        got: i32,
        /// The least allowed.
        least: u32,
        /// The highest allowed.
        most: u32,
    },
}

/// Why a record cannot be added to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// We do not write this compression.
    #[error("batches are not written with {0}, only with none and lz4")]
    Compression(Compression),
    /// The batch is full by bytes.
    #[error("the batch would have {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// What it would have.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The batch is full by records.
    #[error("the batch has {limit} records, which is the limit")]
    TooManyRecords {
        /// The limit.
        limit: u32,
    },
    /// Too many headers.
    #[error("the record has {headers} headers; the limit is {limit}")]
    TooManyHeaders {
        /// How many.
        headers: usize,
        /// The limit.
        limit: u32,
    },
    /// Two times that are too far apart for one batch.
    #[error("the times {first} and {this} are too far apart for one batch")]
    TimeSpan {
        /// The time of the first record.
        first: Timestamp,
        /// The time of this one.
        this: Timestamp,
    },
}
