//! Records out of one message, one after another: from encoded batches, verified, or from plain records.

use std::{fmt, vec};

use rimstone_proto::v1;
use rimstone_record::{Batch, Header, Limits, RecordIter};
use rimstone_types::{Offset, PartitionIndex, Timestamp};

use crate::{admin::offset, connect::MESSAGE_BYTES_MAX, error::ClientError, reader::Received};

/// The records of one partition in one message.
pub(crate) struct Chunk {
    partition: PartitionIndex,
    next_offset: Offset,
    batches: vec::IntoIter<v1::EncodedBatch>,
    records: vec::IntoIter<v1::StoredRecord>,
    /// The batch that is being read, and its append time.
    current: Option<(RecordIter, Timestamp)>,
    limits: Limits,
}

impl Chunk {
    pub(crate) fn new(message: v1::PartitionRecords) -> Result<Self, ClientError> {
        Ok(Self {
            partition: PartitionIndex(message.partition),
            next_offset: offset(message.next_offset)?,
            batches: message.batches.into_iter(),
            records: message.records.into_iter(),
            current: None,
            // A topic may allow larger batches than the default; a message cannot bring more than this.
            limits: Limits { batch_bytes: MESSAGE_BYTES_MAX, ..Limits::default() },
        })
    }

    pub(crate) fn partition(&self) -> PartitionIndex {
        self.partition
    }

    /// Where to go on when all is read.
    pub(crate) fn next_offset(&self) -> Offset {
        self.next_offset
    }

    /// The next record, also of those before the offset asked for: a batch comes whole.
    pub(crate) fn next(&mut self) -> Result<Option<Received>, ClientError> {
        loop {
            if let Some((records, append_time)) = &mut self.current {
                if let Some(record) = records.next() {
                    let record = record?;
                    return Ok(Some(Received {
                        partition: self.partition,
                        offset: record.offset,
                        key: record.key,
                        value: record.value,
                        headers: record.headers,
                        create_time: record.timestamp,
                        append_time: *append_time,
                    }));
                }
                self.current = None;
            }
            let Some(encoded) = self.batches.next() else { break };
            let batch = Batch::verify(encoded.data, &self.limits)?;
            if !batch.header().is_control() {
                self.current = Some((batch.records(&self.limits)?, Timestamp(encoded.append_time_ms)));
            }
        }
        self.records.next().map(|record| self.plain(record)).transpose()
    }

    fn plain(&self, record: v1::StoredRecord) -> Result<Received, ClientError> {
        let headers = record.headers.into_iter();
        Ok(Received {
            partition: self.partition,
            offset: offset(record.offset)?,
            key: record.key,
            value: record.value,
            headers: headers.map(|header| Header { key: header.key, value: header.value }).collect(),
            create_time: Timestamp(record.create_time_ms),
            append_time: Timestamp(record.append_time_ms),
        })
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk")
            .field("partition", &self.partition)
            .field("next_offset", &self.next_offset)
            .finish_non_exhaustive()
    }
}
