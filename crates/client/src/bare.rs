//! The bare calls of the services: one request out, one answer back. For whoever gathers, numbers and
//! retries by himself, such as a generator of load.
//!
//! Not here: batching by time and size, exactly once, going on after a break ([`Producer`](crate::Producer),
//! [`Reader`](crate::Reader)).

mod read;
mod stream;

use bytes::Bytes;
use rimstone_proto::v1;
use rimstone_record::Batch;
use rimstone_types::{Offset, PartitionIndex};

pub use self::{
    read::{Piece, ReadCall, ReadFrom},
    stream::{AnswerLater, CallStream},
};
use crate::{admin::offset, connect::Connection, error::ClientError, producer::ProducerRecord};

/// Unary calls over a connection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Calls {
    connection: Connection,
}

/// A request to produce, without a number: stored once for each time that it is sent. Cheap to send again.
#[derive(Debug, Clone)]
pub struct Request {
    message: v1::ProduceRequest,
}

/// Where the records that one request brought to a partition are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The partition.
    pub partition: PartitionIndex,
    /// The offset of the first.
    pub first: Offset,
    /// The offset of the last.
    pub last: Offset,
}

impl Request {
    /// Plain records, which the server partitions and puts into batches. The server gives those without a time
    /// its own.
    pub fn of_records(topic: &str, records: impl IntoIterator<Item = ProducerRecord>) -> Self {
        let records = records.into_iter().map(|record| v1::Record {
            key: record.key,
            value: record.value,
            headers: record
                .headers
                .into_iter()
                .map(|header| v1::Header { key: header.key, value: header.value })
                .collect(),
            create_time_ms: record.time.map(|time| time.as_millis()),
            partition: record.partition.map(|partition| partition.0),
        });
        let message =
            v1::ProduceRequest { topic: topic.to_owned(), records: records.collect(), ..Default::default() };
        Self { message }
    }

    /// Encoded batches, each for its partition.
    pub fn of_batches(topic: &str, batches: impl IntoIterator<Item = (PartitionIndex, Batch)>) -> Self {
        let batches = batches.into_iter().map(|(partition, batch)| {
            let data: Bytes = batch.bytes().clone();
            let batch = Some(v1::EncodedBatch { data, append_time_ms: 0 });
            v1::PartitionBatch { partition: partition.0, batch, expected_end: None }
        });
        let message =
            v1::ProduceRequest { topic: topic.to_owned(), batches: batches.collect(), ..Default::default() };
        Self { message }
    }
}

impl Calls {
    /// Calls over this connection.
    pub fn over(connection: Connection) -> Self {
        Self { connection }
    }

    /// Produces by a unary call; answers one place for each partition or batch of the request.
    ///
    /// # Errors
    /// What the server refused, for the whole request or, of several parts, for the first that failed.
    pub async fn produce(&self, request: &Request) -> Result<Vec<Place>, ClientError> {
        let answer = self.connection.produce().produce(request.message.clone()).await?;
        places(answer.into_inner())
    }

    /// Opens a stream that carries many requests at once.
    ///
    /// # Errors
    /// Those of the connection; `PROTOCOL_VIOLATED` if the first answer does not open the stream.
    pub async fn open_stream(&self) -> Result<CallStream, ClientError> {
        CallStream::open(&self.connection).await
    }

    /// Begins to read encoded batches as they are stored.
    ///
    /// # Errors
    /// `TOPIC_NOT_FOUND`, `PARTITION_NOT_FOUND`, and those of the connection.
    pub async fn read(&self, from: ReadFrom) -> Result<ReadCall, ClientError> {
        ReadCall::begin(&self.connection, from).await
    }
}

fn places(answer: v1::ProduceResponse) -> Result<Vec<Place>, ClientError> {
    answer.appends.into_iter().map(place).collect()
}

fn place(append: v1::PartitionAppend) -> Result<Place, ClientError> {
    if let Some(error) = append.error {
        return Err(error.into());
    }
    let (Some(first), Some(last)) = (append.base_offset, append.last_offset) else {
        return Err(ClientError::protocol("an answer to a request without a number has no offsets"));
    };
    Ok(Place { partition: PartitionIndex(append.partition), first: offset(first)?, last: offset(last)? })
}

#[cfg(test)]
mod tests;
