//! Builds a batch from records.

use rimstone_types::{Numbering, Timestamp};

use crate::{
    batch::Batch,
    compression::{self, Compression},
    error::BuildError,
    header::{
        ATTRIBUTES_AT, BASE_SEQUENCE_AT, BASE_TIMESTAMP_AT, BY_REQUEST_BIT, HEADER_LENGTH,
        LAST_OFFSET_DELTA_AT, LENGTH_AT, LENGTH_EXCLUDES, MAGIC, MAGIC_AT, MAX_TIMESTAMP_AT,
        PRODUCER_EPOCH_AT, PRODUCER_ID_AT, ProducerStamp, RECORD_COUNT_AT,
    },
    limits::Limits,
    record::{AsHeader, HeaderParts, NewRecord, RecordParts, tail_bytes},
    varint,
};

/// Gathers records into a batch with the base offset 0. The caller decides when it is full.
#[derive(Debug, Clone)]
pub struct BatchBuilder {
    compression: Compression,
    producer: Option<ProducerStamp>,
    /// Room for the header and the encoded records, uncompressed; nothing before the first record.
    bytes: Vec<u8>,
    /// How many bytes to make room for with the first record.
    expected_bytes: usize,
    count: u32,
    base_timestamp: Timestamp,
    max_timestamp: Timestamp,
    /// No batch is built that a reader with default limits would refuse for its size.
    limits: Limits,
}

impl BatchBuilder {
    /// An empty batch that will be compressed so. Compressions that we do not write are refused by
    /// [`BatchBuilder::push`].
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            producer: None,
            bytes: Vec::new(),
            expected_bytes: 0,
            count: 0,
            base_timestamp: Timestamp::default(),
            max_timestamp: Timestamp::default(),
            limits: Limits::default(),
        }
    }

    /// Says who writes the batch and which of its batches it is. A base above 2^31 - 1 wraps, as sequences do.
    #[must_use]
    pub fn producer(mut self, stamp: ProducerStamp) -> Self {
        self.producer = Some(stamp);
        self
    }

    /// Makes room for so many bytes of records at once. What they really have may be less or more.
    #[must_use]
    pub fn expecting(mut self, bytes: usize) -> Self {
        self.expected_bytes = bytes.min(self.limits.uncompressed_bytes);
        self
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`BuildError`]; the batch is as it was before.
    pub fn push(&mut self, record: &NewRecord) -> Result<(), BuildError> {
        self.push_parts(record.parts())
    }

    /// The same for a record whose bytes lie elsewhere.
    ///
    /// # Errors
    /// [`BuildError`]; the batch is as it was before.
    pub fn push_parts<H: AsHeader>(&mut self, record: RecordParts<'_, H>) -> Result<(), BuildError> {
        if !self.compression.is_written() {
            return Err(BuildError::Compression(self.compression));
        }
        if self.count >= self.limits.records {
            return Err(BuildError::TooManyRecords { limit: self.limits.records });
        }
        if record.headers.len() > self.limits.headers_per_record as usize {
            let (headers, limit) = (record.headers.len(), self.limits.headers_per_record);
            return Err(BuildError::TooManyHeaders { headers, limit });
        }
        let bytes = self.records_bytes().saturating_add(record.encoded_bytes_max());
        if bytes > self.limits.uncompressed_bytes {
            return Err(BuildError::TooLarge { bytes, limit: self.limits.uncompressed_bytes });
        }
        let (first, this) = if self.count == 0 {
            (record.timestamp, record.timestamp)
        } else {
            (self.base_timestamp, record.timestamp)
        };
        let time_delta =
            this.as_millis().checked_sub(first.as_millis()).ok_or(BuildError::TimeSpan { first, this })?;

        self.base_timestamp = first;
        self.max_timestamp = if self.count == 0 { this } else { self.max_timestamp.max(this) };
        if self.bytes.is_empty() {
            self.bytes.reserve(HEADER_LENGTH + self.expected_bytes.max(record.encoded_bytes_max()));
            self.bytes.resize(HEADER_LENGTH, 0);
        }
        let RecordParts { key, value, headers, .. } = record;
        put_record(&mut self.bytes, key, value, headers, time_delta, self.count as i32);
        self.count += 1;
        Ok(())
    }

    /// How many records are in it.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The bytes that the batch would have now, header included and before compression, which never makes it
    /// larger.
    pub fn estimated_bytes(&self) -> usize {
        HEADER_LENGTH + self.records_bytes()
    }

    fn records_bytes(&self) -> usize {
        self.bytes.len().saturating_sub(HEADER_LENGTH)
    }

    /// The batch. Records that compression would not make smaller are left as they are. Without records the
    /// batch holds one offset and no record.
    pub fn build(self) -> Batch {
        let mut compression = Compression::None;
        let mut bytes = self.bytes;
        // Without a record there is no room for the header yet.
        bytes.resize(bytes.len().max(HEADER_LENGTH), 0);
        if self.compression == Compression::Lz4 && self.count > 0 {
            let compressed = compression::lz4(&bytes[HEADER_LENGTH..]);
            if compressed.len() < bytes.len() - HEADER_LENGTH {
                compression = Compression::Lz4;
                bytes.truncate(HEADER_LENGTH);
                bytes.extend_from_slice(&compressed);
            }
        }
        let mut attributes = u16::from(compression.code());
        let (mut id, mut epoch, mut base) = (-1i64, -1i16, -1i32);
        if let Some(stamp) = self.producer {
            (id, epoch, base) =
                (stamp.id.as_signed(), stamp.epoch.as_signed(), (stamp.base & i32::MAX as u32) as i32);
            if stamp.numbering == Numbering::ByRequest {
                attributes |= BY_REQUEST_BIT;
            }
        }
        let length = (bytes.len() - LENGTH_EXCLUDES) as i32;
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(LENGTH_AT, &length.to_be_bytes());
        put(MAGIC_AT, &MAGIC.to_be_bytes());
        put(ATTRIBUTES_AT, &attributes.to_be_bytes());
        put(LAST_OFFSET_DELTA_AT, &self.count.saturating_sub(1).to_be_bytes());
        put(BASE_TIMESTAMP_AT, &self.base_timestamp.as_millis().to_be_bytes());
        put(MAX_TIMESTAMP_AT, &self.max_timestamp.as_millis().to_be_bytes());
        put(PRODUCER_ID_AT, &id.to_be_bytes());
        put(PRODUCER_EPOCH_AT, &epoch.to_be_bytes());
        put(BASE_SEQUENCE_AT, &base.to_be_bytes());
        put(RECORD_COUNT_AT, &self.count.to_be_bytes());
        Batch::from_own_bytes(bytes)
    }
}

/// Appends a record, its time and offset relative to the batch's.
pub(crate) fn put_record(
    out: &mut Vec<u8>,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[impl AsHeader],
    time_delta: i64,
    offset_delta: i32,
) {
    let length = 1
        + varint::length_i64(time_delta)
        + varint::length_i32(offset_delta)
        + tail_bytes(key.map(<[u8]>::len), value.map(<[u8]>::len), headers);
    // Itself, and its length: 5 bytes at most, for a batch is bounded.
    out.reserve(length + 5);
    varint::put_i64(out, length as i64);
    out.push(0);
    varint::put_i64(out, time_delta);
    varint::put_i32(out, offset_delta);
    put_field(out, key);
    put_field(out, value);
    varint::put_i64(out, headers.len() as i64);
    for header in headers {
        let HeaderParts { key, value } = header.parts();
        put_field(out, Some(key.as_bytes()));
        put_field(out, value);
    }
}

fn put_field(out: &mut Vec<u8>, field: Option<&[u8]>) {
    match field {
        None => varint::put_i32(out, -1),
        Some(field) => {
            varint::put_i64(out, field.len() as i64);
            out.extend_from_slice(field);
        }
    }
}

#[cfg(test)]
mod tests;
