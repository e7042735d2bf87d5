//! A topic's batches as they come, without decoding them.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use rimstone_proto::v1;
use rimstone_record::{Batch, BatchHeader, Limits, Record};
use rimstone_types::{Offset, PartitionIndex};
use tonic::Streaming;

use crate::{
    admin::offset,
    connect::{Connection, MESSAGE_BYTES_MAX},
    error::ClientError,
};

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadFrom {
    /// The topic.
    pub topic: String,
    /// The first offset to read, by partition. Partitions not named are not read.
    pub from: BTreeMap<PartitionIndex, Offset>,
    /// Before which offset to end, by partition. Empty: on and on.
    pub until: BTreeMap<PartitionIndex, Offset>,
    /// About so many bytes in one message. 0: the server's default.
    pub message_bytes: u32,
}

/// A reading under way.
pub struct ReadCall {
    stream: Streaming<v1::ReadResponse>,
}

/// The batches of one partition in one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The partition.
    pub partition: PartitionIndex,
    /// Whole batches, encoded.
    pub batches: Vec<Bytes>,
    /// The offset after the last of them.
    pub next: Offset,
}

impl ReadCall {
    pub(crate) async fn begin(connection: &Connection, from: ReadFrom) -> Result<Self, ClientError> {
        let offsets = |offsets: &BTreeMap<PartitionIndex, Offset>| v1::PartitionOffsets {
            offsets: offsets.iter().map(|(partition, offset)| (partition.0, offset.get())).collect(),
        };
        let start = v1::start_position::Position::Offsets(offsets(&from.from));
        let end = v1::end_position::Position::Offsets(offsets(&from.until));
        let request = v1::ReadRequest {
            topic: from.topic,
            partitions: from.from.keys().map(|partition| partition.0).collect(),
            start: Some(v1::StartPosition { position: Some(start) }),
            end: (!from.until.is_empty()).then_some(v1::EndPosition { position: Some(end) }),
            format: v1::RecordFormat::Batches.into(),
            max_message_bytes: from.message_bytes,
            ..Default::default()
        };
        Ok(Self { stream: connection.consume().read(request).await?.into_inner() })
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// `OFFSET_OUT_OF_RANGE`, `DATA_DAMAGED`, and those of the connection.
    pub async fn next(&mut self) -> Result<Option<Piece>, ClientError> {
        let Some(message) = self.stream.message().await? else { return Ok(None) };
        let records = message.records.unwrap_or_default();
        if let Some(error) = records.error {
            return Err(error.into());
        }
        Ok(Some(Piece {
            partition: PartitionIndex(records.partition),
            batches: records.batches.into_iter().map(|batch| batch.data).collect(),
            next: offset(records.next_offset)?,
        }))
    }
}

impl Piece {
    /// How many bytes the batches have, as they are stored.
    pub fn bytes(&self) -> u64 {
        self.batches.iter().map(|batch| batch.len() as u64).sum()
    }

    /// How many records the headers of the batches tell of. Nothing else is looked at.
    ///
    /// # Errors
    /// A header that is not one.
    pub fn count(&self) -> Result<u64, ClientError> {
        let mut count = 0;
        for batch in &self.batches {
            count += BatchHeader::parse(batch)?.records_there();
        }
        Ok(count)
    }

    /// Verifies every batch and hands over every record. A batch comes whole: those before the offset that was
    /// asked for are among them.
    ///
    /// # Errors
    /// A batch that is not whole.
    pub fn decode(self, mut each: impl FnMut(Record)) -> Result<(), ClientError> {
        // A topic may allow larger batches than the default; a message cannot bring more than this.
        let limits = Limits { batch_bytes: MESSAGE_BYTES_MAX, ..Limits::default() };
        for batch in self.batches {
            let batch = Batch::verify(batch, &limits)?;
            if !batch.header().has_records() {
                continue;
            }
            for record in batch.records(&limits)? {
                each(record?);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ReadCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadCall").finish_non_exhaustive()
    }
}
