//! What a batch from a client must keep to beyond being a batch (Kafka's `LogValidator`).

use rimstone_types::Timestamp;

use crate::{
    batch::Batch,
    error::{BatchError, RecordFault},
    header::BatchHeader,
    limits::Limits,
};

/// What a topic asks of the records that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordRules {
    /// Every record needs a key (compacted topics).
    pub require_keys: bool,
    /// The latest create time allowed; the earliest is then [`Timestamp::YEAR_0`].
    pub create_time_max: Option<Timestamp>,
}

impl BatchHeader {
    /// Checks what of a client's batch can be judged by the header alone: it has records, one offset for
    /// each, and none of the marks that only the server gives.
    ///
    /// # Errors
    /// [`BatchError::Empty`], [`BatchError::LastOffsetDelta`], [`BatchError::ServerOnly`].
    pub fn check_from_client(&self) -> Result<(), BatchError> {
        for (marked, what) in [
            (self.is_control(), "a control batch"),
            (self.is_append_time(), "stamped with the append time"),
            (self.has_delete_horizon(), "compacted (delete horizon)"),
        ] {
            if marked {
                return Err(BatchError::ServerOnly { what });
            }
        }
        if self.record_count == 0 {
            return Err(BatchError::Empty);
        }
        if self.last_offset_delta != self.record_count - 1 {
            return Err(BatchError::LastOffsetDelta {
                got: self.last_offset_delta,
                count: self.record_count,
            });
        }
        Ok(())
    }
}

impl Batch {
    /// Checks a client's batch to the last record: what [`BatchHeader::check_from_client`] checks, offset
    /// deltas 0, 1, 2 and so on, the max timestamp, and the topic's rules.
    ///
    /// # Errors
    /// Those of [`BatchHeader::check_from_client`] and [`Batch::records`]; [`BatchError::Record`],
    /// [`BatchError::TrailingRecordBytes`], [`BatchError::MaxTimestamp`], [`BatchError::KeyMissing`],
    /// [`BatchError::TimestampTooFar`].
    pub fn verify_records(&self, limits: &Limits, rules: RecordRules) -> Result<(), BatchError> {
        let header = self.header();
        header.check_from_client()?;
        let mut real = Timestamp::MIN;
        for (index, record) in (0u32..).zip(self.records(limits)?) {
            let record = record?;
            let delta = record.offset.since(self.base_offset());
            if delta != u64::from(index) {
                // Below the count, which is within i32: the iterator has checked the range.
                let fault = RecordFault::OffsetDelta { got: delta as i32, least: index, most: index };
                return Err(BatchError::Record { index, fault });
            }
            if rules.require_keys && record.key.is_none() {
                return Err(BatchError::KeyMissing { index });
            }
            if let Some(latest) = rules.create_time_max
                && !(Timestamp::YEAR_0..=latest).contains(&record.timestamp)
            {
                return Err(BatchError::TimestampTooFar { index, time: record.timestamp, latest });
            }
            real = real.max(record.timestamp);
        }
        if header.max_timestamp != real {
            return Err(BatchError::MaxTimestamp { stated: header.max_timestamp, real });
        }
        Ok(())
    }
}
