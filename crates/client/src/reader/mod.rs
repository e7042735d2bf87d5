//! Reading a topic from anywhere to anywhere: bounds are fixed when reading begins, and a lost connection is
//! made again from the reader's own next offsets, so that nothing is left out and nothing comes twice.
//!
//! Not here: being a member of a group ([`Consumer`](crate::Consumer)).

mod bounds;
mod builder;
pub(crate) mod decode;
mod fetch;

use std::{collections::BTreeMap, fmt, time::Duration};

use bytes::Bytes;
use futures::Stream;
use rimstone_proto::v1;
use rimstone_record::Header;
use rimstone_types::{Offset, PartitionIndex, Timestamp};
use tokio::time::Instant;
use tonic::Streaming;

use self::{bounds::Cursor, decode::Chunk};
pub use self::{
    builder::ReaderBuilder,
    fetch::{Fetch, Fetched, fetch},
};
use crate::{
    connect::Connection,
    error::{ClientError, Code, reason},
    groups::{Groups, StartPolicy},
    retry::Backoff,
};

/// A record as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The partition it is in.
    pub partition: PartitionIndex,
    /// Its place there.
    pub offset: Offset,
    /// Its key, if it has one.
    pub key: Option<Bytes>,
    /// Its value; `None` deletes the key in a compacted topic.
    pub value: Option<Bytes>,
    /// Its headers, in order.
    pub headers: Vec<Header>,
    /// Its create time (on a topic with append-time timestamps: the append time).
    pub create_time: Timestamp,
    /// When the server took it.
    pub append_time: Timestamp,
}

/// Where to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The first record there is.
    Earliest,
    /// The end: only what comes later.
    Latest,
    /// This offset, in every partition read.
    Offset(Offset),
    /// The first record at or after this time, by the topic's time; a partition without one is read from
    /// its end.
    Time(Timestamp),
    /// An offset per partition; the others are not read.
    Offsets(BTreeMap<PartitionIndex, Offset>),
    /// What is committed under this group's name. See [`Reader::commit`].
    Committed {
        /// The group.
        group: String,
        /// Where to begin in a partition without a committed offset, or with one outside the log.
        otherwise: StartPolicy,
    },
}

/// Where to end. All but [`End::Never`] are fixed when reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// On and on.
    Never,
    /// The end as it is when reading begins.
    Latest,
    /// Before this offset, in every partition read. On and on until it is reached.
    Offset(Offset),
    /// Before the first record at or after this time; in a partition without one, the end as it is when
    /// reading begins.
    Time(Timestamp),
}

/// Which records to read; the server sends no others. All conditions that are set must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// The key is exactly this.
    pub key: Option<Bytes>,
    /// The key begins with this.
    pub key_prefix: Option<Bytes>,
    /// A header of this name is there, with this value if one is given.
    pub header: Option<(String, Option<Bytes>)>,
}

impl Filter {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads records of one topic: per partition in the order of their offsets, each once, none left out.
///
/// A lost connection and an answer of "not now" are tried again with backoff for as long as
/// [`ReaderBuilder::retry_for`] says. What ends reading: [`reason::OFFSET_OUT_OF_RANGE`] (the start lies outside
/// the log, or retention has overtaken the reader), [`reason::DATA_DAMAGED`], `TOPIC_NOT_FOUND`. Memory is
/// bounded by HTTP/2's windows and one message.
pub struct Reader {
    connection: Connection,
    topic: String,
    partitions: Vec<PartitionIndex>,
    start: Start,
    end: End,
    remaining: Option<u64>,
    filter: Filter,
    retry_for: Duration,
    /// `None` until the bounds are known.
    cursors: Option<BTreeMap<PartitionIndex, Cursor>>,
    stream: Option<Streaming<v1::ReadResponse>>,
    chunk: Option<Chunk>,
    /// The present stream has brought something.
    progress: bool,
    silent_since: Option<Instant>,
    backoff: Backoff,
    retry_at: Option<Instant>,
}

impl Reader {
    /// Settings for a reader of `topic` at `endpoint` (`host:port` or `http://host:port`).
    pub fn builder(endpoint: &str, topic: &str) -> ReaderBuilder {
        ReaderBuilder::new(endpoint, topic)
    }

    /// The next record; `None` at the end. Dropping the future before it is ready loses nothing.
    ///
    /// # Errors
    /// Those named at [`Reader`]. A call after an error goes on from the same place.
    pub async fn next(&mut self) -> Result<Option<Received>, ClientError> {
        loop {
            if self.remaining == Some(0) {
                self.stream = None;
                return Ok(None);
            }
            match self.next_of_chunk() {
                Ok(Some(record)) => return Ok(Some(record)),
                Ok(None) => {}
                Err(error) => {
                    // What is left of this message would leave a gap: it is read again from the next offset.
                    self.chunk = None;
                    self.stream = None;
                    return Err(error);
                }
            }
            if self.is_done() {
                self.stream = None;
                return Ok(None);
            }
            if let Err(error) = self.step().await {
                self.stream = None;
                self.try_again(error)?;
            }
        }
    }

    /// The records as a stream, which ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Received, ClientError>> {
        futures::stream::unfold(Some(self), |reader| async {
            let mut reader = reader?;
            match reader.next().await {
                Ok(Some(record)) => Some((Ok(record), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// The next offset of each partition, once reading has begun.
    pub fn positions(&self) -> BTreeMap<PartitionIndex, Offset> {
        let cursors = self.cursors.iter().flatten();
        cursors.map(|(partition, cursor)| (*partition, cursor.next)).collect()
    }

    /// Commits under a group's name where the reader stands: everything handed out so far has been processed. A
    /// group takes that while it has no members. Nothing is retried.
    ///
    /// # Errors
    /// Those of [`Groups::commit`]; the first refusal of a partition.
    pub async fn commit(&self, group: &str) -> Result<(), ClientError> {
        let groups = Groups::over(self.connection.clone());
        groups.commit_positions(group, &self.topic, &self.positions()).await
    }

    fn is_done(&self) -> bool {
        self.cursors.as_ref().is_some_and(|cursors| cursors.values().all(Cursor::is_done))
    }

    fn next_of_chunk(&mut self) -> Result<Option<Received>, ClientError> {
        let (Some(chunk), Some(cursors)) = (&mut self.chunk, &mut self.cursors) else { return Ok(None) };
        let Some(cursor) = cursors.get_mut(&chunk.partition()) else {
            return Err(ClientError::protocol("the server sent a partition that was not asked for"));
        };
        while let Some(record) = chunk.next()? {
            if record.offset < cursor.next {
                continue;
            }
            if cursor.end.is_some_and(|end| record.offset >= end) {
                break;
            }
            cursor.next = record.offset.saturating_add(1);
            cursor.begun = true;
            self.progress = true;
            self.remaining = self.remaining.map(|left| left - 1);
            return Ok(Some(record));
        }
        if chunk.next_offset() > cursor.next {
            cursor.next = chunk.next_offset();
            self.progress = true;
        }
        self.chunk = None;
        Ok(None)
    }

    /// Does the next thing that is needed to have records: waits, finds the bounds, opens a stream, takes a
    /// message from it.
    async fn step(&mut self) -> Result<(), ClientError> {
        if let Some(at) = self.retry_at {
            tokio::time::sleep_until(at).await;
            self.retry_at = None;
        }
        if self.cursors.is_none() {
            self.cursors = Some(bounds::find(self).await?);
            return Ok(());
        }
        if self.stream.is_none() {
            let request = self.request();
            self.stream = Some(self.connection.consume().read(request).await?.into_inner());
            self.progress = false;
        }
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let Some(message) = stream.message().await? else { return self.ended() };
        if let Some(since) = self.silent_since.take() {
            let away_ms = since.elapsed().as_millis() as u64;
            tracing::info!(away_ms, "connected again; reading on");
        }
        self.backoff.reset();
        let records = message.records.unwrap_or_default();
        if let Some(error) = records.error {
            return self.refused(PartitionIndex(records.partition), error.into());
        }
        self.chunk = Some(Chunk::new(records)?);
        Ok(())
    }

    /// The server has ended the stream without an error.
    fn ended(&mut self) -> Result<(), ClientError> {
        self.stream = None;
        if self.progress {
            return Ok(());
        }
        if let (true, Some(cursors)) = (self.end != End::Never, &mut self.cursors) {
            // Up to its end there is nothing more: what is missing before the bound is a gap in the log.
            for cursor in cursors.values_mut() {
                cursor.next = cursor.next.max(cursor.end.unwrap_or(cursor.next));
            }
            return Ok(());
        }
        Err(ClientError::new(Code::Unavailable, reason::UNREACHABLE, "the server ended the stream"))
    }

    fn refused(&mut self, partition: PartitionIndex, error: ClientError) -> Result<(), ClientError> {
        let cursor = self.cursors.as_mut().and_then(|cursors| cursors.get_mut(&partition));
        let start = error.number("log_start_offset").and_then(|start| Offset::new(start).ok());
        if let (Start::Earliest, true, Some(cursor), Some(start)) =
            (&self.start, error.is(reason::OFFSET_OUT_OF_RANGE), cursor, start)
            && !cursor.begun
            && start > cursor.next
        {
            // Retention was faster than the first read: the earliest record is another one now.
            cursor.next = start;
            self.stream = None;
            return Ok(());
        }
        Err(error)
    }

    fn try_again(&mut self, error: ClientError) -> Result<(), ClientError> {
        let now = Instant::now();
        let since = *self.silent_since.get_or_insert_with(|| {
            if error.is_retriable() {
                let endpoint = self.connection.endpoint();
                tracing::warn!(endpoint, error = %error, "reading was interrupted; trying again");
            }
            now
        });
        let wait = self.backoff.next(error.retry_after);
        if !error.is_retriable() || now + wait > since + self.retry_for {
            self.silent_since = None;
            self.backoff.reset();
            return Err(error);
        }
        self.retry_at = Some(now + wait);
        Ok(())
    }

    fn request(&self) -> v1::ReadRequest {
        let open = || self.cursors.iter().flatten().filter(|(_, cursor)| !cursor.is_done());
        let starts = open().map(|(partition, cursor)| (partition.0, cursor.next.get())).collect();
        let ends = open().filter_map(|(partition, cursor)| Some((partition.0, cursor.end?.get()))).collect();
        let start = v1::start_position::Position::Offsets(v1::PartitionOffsets { offsets: starts });
        let end = v1::end_position::Position::Offsets(v1::PartitionOffsets { offsets: ends });
        // Filtering is the server's work, on records; without a filter batches come as they are stored.
        let (filter, format) = if self.filter.is_empty() {
            (None, v1::RecordFormat::Batches)
        } else {
            (Some(message_of(&self.filter)), v1::RecordFormat::Records)
        };
        v1::ReadRequest {
            topic: self.topic.clone(),
            partitions: open().map(|(partition, _)| partition.0).collect(),
            start: Some(v1::StartPosition { position: Some(start) }),
            end: (self.end != End::Never).then_some(v1::EndPosition { position: Some(end) }),
            max_records: self.remaining.unwrap_or(0),
            filter,
            format: format.into(),
            ..Default::default()
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("connection", &self.connection)
            .field("topic", &self.topic)
            .field("start", &self.start)
            .field("end", &self.end)
            .field("cursors", &self.cursors)
            .finish_non_exhaustive()
    }
}

fn message_of(filter: &Filter) -> v1::RecordFilter {
    v1::RecordFilter {
        key: filter.key.clone(),
        key_prefix: filter.key_prefix.clone(),
        header: filter.header.clone().map(|(key, value)| v1::Header { key, value }),
    }
}

#[cfg(test)]
mod tests;
