//! The reader: a cursor per partition, read in turn.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rimstone_store::{LogEnds, PartitionStore, ReadBatch, ReadLimit, Visibility, Waiter};
use rimstone_types::{ByteCount, Offset, PartitionIndex};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    ChunkContent, Origin, PartitionFailed, ReadChunk, ReadEnd, ReadFilter, ReadFormat, ReadRequest,
    ReadStart, visible_end,
};
use crate::{
    broker::Inner,
    decode::{Decoder, StoredRecord},
    error::{
        Failure, InvalidRequest, LimitReached, PartitionNotFound, PartitionReadError, ReadError, ShuttingDown,
    },
    topics::Topic,
};

/// Reads until its end, its bound, an error or shutdown; ends when dropped.
#[derive(Debug)]
pub struct Reader {
    inner: Arc<Inner>,
    topic: Arc<Topic>,
    cursors: Vec<Cursor>,
    /// Whose turn it is: each gives one chunk, then the next.
    turn: usize,
    waiter: Waiter,
    filter: ReadFilter,
    format: ReadFormat,
    visibility: Visibility,
    chunk_bytes: ByteCount,
    /// How many records may still be answered.
    remaining: Option<u64>,
    /// Of the last chunk.
    origin: Option<Origin>,
    ended: bool,
    _one_of_many: OwnedSemaphorePermit,
}

/// Where reading stands in one partition.
#[derive(Debug)]
struct Cursor {
    partition: PartitionIndex,
    store: Arc<dyn PartitionStore>,
    next: Offset,
    /// Nothing from here on.
    until: Option<Offset>,
    /// Records that were read and not yet answered: a batch can hold more than fit a chunk.
    decoder: Decoder,
    ends: LogEnds,
}

impl Cursor {
    fn is_done(&self) -> bool {
        self.until.is_some_and(|until| self.next >= until)
    }
}

impl Reader {
    pub(super) async fn open(inner: &Arc<Inner>, request: ReadRequest) -> Result<Self, ReadError> {
        inner.refuse_when_stopping()?;
        let topic = inner.topics.get(&request.topic)?;
        let limits = &inner.config.limits;
        if request.format == ReadFormat::Batches && request.filter != ReadFilter::default() {
            let why = "a filter picks records; whole batches cannot be filtered";
            return Err(InvalidRequest::new(why).into());
        }
        let limit = limits.readers as u64;
        let one_of_many = Arc::clone(&inner.readers)
            .try_acquire_owned()
            .map_err(|_| LimitReached { what: "readers at one time", limit })?;
        let chunk_bytes =
            request.chunk_bytes.map_or(limits.read_message_default, |max| max.min(limits.response));

        let mut cursors = Vec::new();
        let waiter = Waiter::new();
        for partition in partitions(&topic, &request)? {
            let fail = |error| fail(&topic, partition, error);
            let store = topic.partition(partition).map_err(|error| fail(error.into()))?;
            // Subscribed before anything is looked up: nothing that comes in between is missed.
            store.subscribe(&waiter);
            let found = find(store, partition, &request).await.map_err(|error| fail(error.into()))?;
            let (next, until) = found;
            let store = Arc::clone(store);
            let ends = store.ends();
            let decoder = Decoder::new(next, until);
            cursors.push(Cursor { partition, store, next, until, decoder, ends });
        }
        Ok(Self {
            inner: Arc::clone(inner),
            topic,
            cursors,
            turn: 0,
            waiter,
            filter: request.filter,
            format: request.format,
            visibility: request.visibility,
            chunk_bytes: ByteCount(chunk_bytes.get().max(1)),
            remaining: request.max_records,
            origin: None,
            ended: false,
            _one_of_many: one_of_many,
        })
    }

    /// The next piece; `None` at the end. After an error there is nothing more. A piece may hold no record
    /// (all were filtered out): its `next` tells the progress.
    pub async fn next(&mut self) -> Option<Result<ReadChunk, ReadError>> {
        if self.ended {
            return None;
        }
        let chunk = self.find_chunk().await;
        match &chunk {
            Some(Ok(_)) => {}
            None => self.ended = true,
            Some(Err(error)) => {
                self.inner.metrics.reason(error.reason());
                self.ended = true;
            }
        }
        chunk
    }

    /// Where the bytes of the last piece come from.
    pub fn origin(&self) -> Option<Origin> {
        self.origin.clone()
    }

    async fn find_chunk(&mut self) -> Option<Result<ReadChunk, ReadError>> {
        loop {
            if self.remaining == Some(0) || self.cursors.iter().all(Cursor::is_done) {
                return None;
            }
            if self.inner.shutdown.is_cancelled() {
                return Some(Err(ShuttingDown.into()));
            }
            for _ in 0..self.cursors.len() {
                let index = self.turn;
                self.turn = (self.turn + 1) % self.cursors.len();
                match self.chunk_of(index).await {
                    Ok(None) => {}
                    Ok(Some(chunk)) => return Some(Ok(chunk)),
                    Err(error) => {
                        let partition = self.cursors[index].partition;
                        return Some(Err(fail(&self.topic, partition, error)));
                    }
                }
            }
            // Cursors may have come to their ends over gaps, without a chunk.
            if self.cursors.iter().all(Cursor::is_done) {
                return None;
            }
            let shutdown = self.inner.shutdown.clone();
            tokio::select! {
                () = self.waiter.wait() => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// A piece of one partition, if there is something.
    async fn chunk_of(&mut self, index: usize) -> Result<Option<ReadChunk>, PartitionReadError> {
        let cursor = &mut self.cursors[index];
        if cursor.is_done() {
            return Ok(None);
        }
        let from = cursor.next;
        let generation = cursor.store.generation();
        let mut batches = Vec::new();
        if !cursor.decoder.has_more() {
            let limit =
                ReadLimit { bytes: self.chunk_bytes, until: cursor.until, visibility: self.visibility };
            let read = cursor.store.read(from, limit).await?;
            cursor.ends = read.ends;
            if read.batches.is_empty() {
                cursor.next = read.next.max(from);
                return Ok(None);
            }
            self.inner.pace.give_way(&read.batches, self.inner.clock.now()).await;
            self.topic.counters.fetched(&read.batches);
            batches = read.batches;
        }
        let content = match self.format {
            ReadFormat::Batches => ChunkContent::Batches(take_batches(cursor, batches, &mut self.remaining)),
            ReadFormat::Records => {
                cursor.decoder.hold(batches);
                let records = cursor.decoder.take(self.chunk_bytes, &self.inner.record_limits())?;
                cursor.next = cursor.decoder.next;
                ChunkContent::Records(pick(cursor, records, &self.filter, &mut self.remaining))
            }
        };
        let Cursor { partition, until, next, ends, .. } = *cursor;
        self.origin = Some(Origin { store: Arc::clone(&cursor.store), next, generation });
        Ok(Some(ReadChunk { partition, from, until, content, next, ends }))
    }
}

/// All batches, or as many as reach the number of records wanted.
fn take_batches(
    cursor: &mut Cursor,
    mut batches: Vec<ReadBatch>,
    remaining: &mut Option<u64>,
) -> Vec<ReadBatch> {
    let end = batches.last().map_or(cursor.next, |read| read.batch.next_offset());
    let from = std::mem::replace(&mut cursor.next, end);
    batches.retain(|read| !read.batch.header().is_control());
    let Some(remaining) = remaining else { return batches };
    for (index, read) in batches.iter().enumerate() {
        let before = from.since(read.batch.base_offset());
        *remaining =
            remaining.saturating_sub(u64::from(read.batch.header().record_count).saturating_sub(before));
        if *remaining == 0 {
            cursor.next = read.batch.next_offset();
            batches.truncate(index + 1);
            break;
        }
    }
    batches
}

/// The records that are wanted, at most as many as may still be answered.
fn pick(
    cursor: &mut Cursor,
    records: Vec<StoredRecord>,
    filter: &ReadFilter,
    remaining: &mut Option<u64>,
) -> Vec<StoredRecord> {
    let mut picked: Vec<_> = records.into_iter().filter(|stored| filter.matches(stored)).collect();
    if let Some(remaining) = remaining {
        let most = usize::try_from(*remaining).unwrap_or(usize::MAX);
        if let Some(first_too_many) = picked.get(most) {
            cursor.next = first_too_many.record.offset;
            picked.truncate(most);
        }
        *remaining -= picked.len() as u64;
    }
    picked
}

impl ReadFilter {
    fn matches(&self, stored: &StoredRecord) -> bool {
        let record = &stored.record;
        let key = |wanted: &bytes::Bytes| record.key.as_ref() == Some(wanted);
        let prefix = |wanted: &bytes::Bytes| record.key.as_ref().is_some_and(|key| key.starts_with(wanted));
        let header = |(name, value): &(String, Option<bytes::Bytes>)| {
            let is_it = |header: &rimstone_record::Header| {
                header.key == *name && (value.is_none() || header.value == *value)
            };
            record.headers.iter().any(is_it)
        };
        self.key.as_ref().is_none_or(key)
            && self.key_prefix.as_ref().is_none_or(prefix)
            && self.header.as_ref().is_none_or(header)
    }
}

/// Which partitions a request reads, in order and each once.
fn partitions(topic: &Topic, request: &ReadRequest) -> Result<BTreeSet<PartitionIndex>, ReadError> {
    let known = |partition: &PartitionIndex| partition.0 < topic.partition_count();
    let named_offsets = |offsets: &BTreeMap<PartitionIndex, Offset>| offsets.keys().copied().collect();
    let starts: Option<BTreeSet<_>> = match &request.start {
        ReadStart::Offsets(offsets) => Some(named_offsets(offsets)),
        _ => None,
    };
    let ends = match &request.end {
        ReadEnd::Offsets(offsets) => named_offsets(offsets),
        _ => BTreeSet::new(),
    };
    let asked: BTreeSet<_> = request.partitions.iter().copied().collect();
    for partition in asked.iter().chain(starts.iter().flatten()).chain(&ends) {
        if !known(partition) {
            let (topic, partitions) = (topic.name.clone(), topic.partition_count());
            let error = PartitionNotFound { topic, partition: *partition, partitions };
            return Err(PartitionFailed::of(error.into(), request, *partition).into());
        }
    }
    let all = || (0..topic.partition_count()).map(PartitionIndex).collect();
    let chosen: BTreeSet<_> = match starts {
        Some(starts) if asked.is_empty() => starts,
        Some(starts) => asked.intersection(&starts).copied().collect(),
        None if asked.is_empty() => all(),
        None => asked,
    };
    if chosen.is_empty() {
        return Err(InvalidRequest::new("the request names no partition to read").into());
    }
    Ok(chosen)
}

/// Where a partition is read from and up to.
async fn find(
    store: &Arc<dyn PartitionStore>,
    partition: PartitionIndex,
    request: &ReadRequest,
) -> Result<(Offset, Option<Offset>), rimstone_store::ReadError> {
    let ends = store.ends();
    let end = visible_end(ends, request.visibility);
    let at_time = async |time| {
        let found = store.offset_for_time(time).await?;
        Ok::<_, rimstone_store::ReadError>(found.map_or(end, |found| found.offset).min(end))
    };
    let next = match &request.start {
        ReadStart::Earliest => ends.start,
        ReadStart::Latest => end,
        ReadStart::Offset(offset) => *offset,
        ReadStart::Time(time) => at_time(*time).await?,
        ReadStart::Offsets(offsets) => offsets.get(&partition).copied().unwrap_or(end),
    };
    if next < ends.start || next > end {
        return Err(rimstone_store::ReadError::OutOfRange { offset: next, start: ends.start, end });
    }
    let until = match &request.end {
        ReadEnd::Never => None,
        ReadEnd::Latest => Some(end),
        ReadEnd::Offset(offset) => Some(*offset),
        ReadEnd::Time(time) => Some(at_time(*time).await?),
        ReadEnd::Offsets(offsets) => offsets.get(&partition).copied(),
    };
    Ok((next, until))
}

fn fail(topic: &Topic, partition: PartitionIndex, error: PartitionReadError) -> ReadError {
    PartitionFailed { topic: topic.name.clone(), partition, error }.into()
}

impl PartitionFailed {
    fn of(error: PartitionReadError, request: &ReadRequest, partition: PartitionIndex) -> Self {
        Self { topic: request.topic.clone(), partition, error }
    }
}
