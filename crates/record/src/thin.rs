//! A stored batch with fewer records, as compaction leaves it: offsets, producer and append time stay, the
//! records that went leave gaps (Kafka's `MemoryRecords.filterTo`).
//!
//! Not here: which records go (`rimstone-log`, `compaction`).

use rimstone_types::{Offset, Timestamp};

use crate::{
    batch::Batch,
    builder::put_record,
    compression::{self, Compression},
    error::BatchError,
    header::{
        APPEND_TIME_BIT, ATTRIBUTES_AT, BASE_SEQUENCE_AT, BASE_TIMESTAMP_AT, BatchHeader, COMPRESSION_BITS,
        CONTROL_BIT, DELETE_HORIZON_BIT, HEADER_LENGTH, LAST_OFFSET_DELTA_AT, LENGTH_AT, LENGTH_EXCLUDES,
        MAGIC, MAGIC_AT, MAX_TIMESTAMP_AT, PRODUCER_EPOCH_AT, PRODUCER_ID_AT, RECORD_COUNT_AT,
    },
    iter::RecordIter,
    limits::Limits,
    record::Record,
};

impl BatchHeader {
    /// Whether it stands in place of offsets whose bytes were given up ([`Batch::lost`]).
    pub fn is_lost(&self) -> bool {
        self.is_control() && !self.is_transactional() && self.producer.is_none() && self.record_count == 0
    }
}

/// Records that stay, encoded anew.
struct Kept {
    bytes: Vec<u8>,
    count: u32,
    max_timestamp: Timestamp,
}

impl Batch {
    /// A copy with only those records for which `keep` holds. Base offset, last offset delta, producer and
    /// compression stay; the max timestamp becomes that of what stays. A `delete_horizon` becomes the base
    /// timestamp and is marked (attribute bit 6); where the records' times are too far from it to be written
    /// relative to it, the batch stays without.
    ///
    /// # Errors
    /// Those of [`Batch::records`] and of its iterator.
    pub fn thinned(
        &self,
        records: RecordIter,
        delete_horizon: Option<Timestamp>,
        mut keep: impl FnMut(&Record) -> bool,
    ) -> Result<Self, BatchError> {
        let kept: Vec<Record> = records
            .filter(|record| record.as_ref().map_or(true, &mut keep))
            .collect::<Result<_, BatchError>>()?;
        if kept.is_empty() {
            return Ok(self.emptied());
        }
        let header = self.header();
        let at_horizon = delete_horizon.and_then(|base| Some((base, self.encode(&kept, base)?)));
        let marked = at_horizon.is_some();
        let (base, encoded) = match at_horizon {
            Some(at_horizon) => at_horizon,
            None => {
                let encoded = self.encode(&kept, header.base_timestamp);
                (header.base_timestamp, encoded.expect("what was read relative to a base can be written so"))
            }
        };
        let (code, body) = compress(header.compression(), encoded.bytes);
        let mut attributes = (header.attributes & !COMPRESSION_BITS) | u16::from(code.code());
        if marked {
            attributes |= DELETE_HORIZON_BIT;
        }
        let mut bytes = self.bytes()[..HEADER_LENGTH].to_vec();
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(LENGTH_AT, &((HEADER_LENGTH - LENGTH_EXCLUDES + body.len()) as i32).to_be_bytes());
        put(ATTRIBUTES_AT, &attributes.to_be_bytes());
        put(BASE_TIMESTAMP_AT, &base.as_millis().to_be_bytes());
        put(MAX_TIMESTAMP_AT, &encoded.max_timestamp.as_millis().to_be_bytes());
        put(RECORD_COUNT_AT, &encoded.count.to_be_bytes());
        bytes.extend_from_slice(&body);
        Ok(Self::from_own_bytes(bytes))
    }

    /// A copy without records: what is left is its place, its producer and its number.
    pub fn emptied(&self) -> Self {
        let mut bytes = self.bytes()[..HEADER_LENGTH].to_vec();
        let attributes = self.header().attributes & !COMPRESSION_BITS;
        bytes[LENGTH_AT..LENGTH_AT + 4]
            .copy_from_slice(&((HEADER_LENGTH - LENGTH_EXCLUDES) as i32).to_be_bytes());
        bytes[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.to_be_bytes());
        bytes[RECORD_COUNT_AT..RECORD_COUNT_AT + 4].fill(0);
        Self::from_own_bytes(bytes)
    }

    /// What stands in place of offsets whose bytes were given up: a control batch of no producer, without records, whose
    /// times say when. `None` for no offsets, or more than a batch spans.
    pub fn lost(from: Offset, until: Offset, at: Timestamp) -> Option<Self> {
        let last_delta = i32::try_from(until.get().checked_sub(from.get())?.checked_sub(1)?).ok()?;
        let mut bytes = vec![0; HEADER_LENGTH];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &from.as_i64().to_be_bytes());
        put(LENGTH_AT, &((HEADER_LENGTH - LENGTH_EXCLUDES) as i32).to_be_bytes());
        put(MAGIC_AT, &MAGIC.to_be_bytes());
        put(ATTRIBUTES_AT, &CONTROL_BIT.to_be_bytes());
        put(LAST_OFFSET_DELTA_AT, &last_delta.to_be_bytes());
        put(BASE_TIMESTAMP_AT, &at.as_millis().to_be_bytes());
        put(MAX_TIMESTAMP_AT, &at.as_millis().to_be_bytes());
        put(PRODUCER_ID_AT, &(-1i64).to_be_bytes());
        put(PRODUCER_EPOCH_AT, &(-1i16).to_be_bytes());
        put(BASE_SEQUENCE_AT, &(-1i32).to_be_bytes());
        Some(Self::from_own_bytes(bytes))
    }

    /// The records relative to a base time; `None` if one is too far from it.
    fn encode(&self, records: &[Record], base: Timestamp) -> Option<Kept> {
        let header = self.header();
        let append_time = header.attributes & APPEND_TIME_BIT != 0;
        let mut kept = Kept { bytes: Vec::new(), count: 0, max_timestamp: Timestamp::MIN };
        for record in records {
            // The create times below an append time are nobody's any more.
            let time_delta =
                if append_time { 0 } else { record.timestamp.as_millis().checked_sub(base.as_millis())? };
            let delta = record.offset.since(header.base_offset) as i32;
            let (key, value) = (record.key.as_deref(), record.value.as_deref());
            put_record(&mut kept.bytes, key, value, &record.headers, time_delta, delta);
            kept.count += 1;
            kept.max_timestamp = kept.max_timestamp.max(record.timestamp);
        }
        Some(kept)
    }
}

/// Compresses as the batch was compressed, unless that does not make it smaller or does not read back.
fn compress(compression: Compression, records: Vec<u8>) -> (Compression, Vec<u8>) {
    let compressed = compression::compress(compression, &records);
    let smaller = compressed.len() < records.len();
    // These bytes replace acknowledged ones: no encoder is believed.
    let unbounded = Limits {
        batch_bytes: usize::MAX,
        uncompressed_bytes: records.len(),
        ratio: u32::MAX,
        ..Limits::default()
    };
    if smaller {
        let read = compression::decompress(compression, compressed.clone().into(), &unbounded);
        if read.is_ok_and(|read| read == records) {
            return (compression, compressed);
        }
    }
    (Compression::None, records)
}

#[cfg(test)]
mod tests;
