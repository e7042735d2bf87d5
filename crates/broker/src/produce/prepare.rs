//! Verifying, partitioning and batching. Nothing is submitted here, so that a request that is refused stores
//! nothing.

use std::{
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use bytes::Bytes;
use rimstone_record::{
    Batch, BatchError, BatchHeader, BuildError, Compression, HeaderParts, Limits as RecordLimits,
    ProducerStamp, RecordParts, RecordRules, partitioner,
};
use rimstone_store::{Append, CleanupPolicy, PartitionStore, TimestampType};
use rimstone_types::{Numbering, PartitionIndex, Timestamp};

use super::{
    PartitionBatch, Payload, ProduceRequest, RecordView, Records, RequestNumbering, batching::Batching,
};
use crate::{
    broker::Inner,
    error::{
        BatchCorrupt, BatchTooLarge, InvalidRequest, KeyRequired, LimitReached, ProduceError, ReservedName,
        TimestampTooFar,
    },
    reserve::Reservation,
    topics::{Slot, Topic},
};

/// Compressed batches up to this are verified where they arrive; a larger one may take milliseconds, and
/// other tasks of the worker move elsewhere meanwhile.
const VERIFY_COMPRESSED_INLINE_BYTES: usize = 64 << 10;
/// The same for batches that are not compressed: their check takes 40 us a MiB, and a record some 20 ns. Moving the
/// other tasks elsewhere costs more than that.
const VERIFY_INLINE_BYTES: usize = 2 << 20;
const VERIFY_INLINE_RECORDS: u32 = 20_000;

/// A request that may be submitted.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) topic: Arc<Topic>,
    /// In order of the partition (plain records), or as sent.
    pub(crate) appends: Vec<PreparedAppend>,
    /// For plain records, lined up with them.
    pub(crate) places: Option<Vec<Place>>,
    pub(crate) reservation: Reservation,
    pub(crate) arrived: Instant,
}

/// Where a record of the request is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place {
    /// In which append, counted over the request.
    pub(crate) append: usize,
    /// Which record of it.
    pub(crate) record: u32,
}

/// Batches, and where each record of the request is in them.
pub(super) type Batched = (Vec<PreparedAppend>, Vec<Place>);

/// A batch for a partition.
#[derive(Debug)]
pub(crate) struct PreparedAppend {
    pub(crate) partition: PartitionIndex,
    pub(crate) store: Arc<dyn PartitionStore>,
    pub(crate) append: Append,
}

impl Prepared {
    /// The partition, if there is only one.
    pub(crate) fn scope(&self) -> Option<rimstone_types::PartitionId> {
        let first = self.appends.first()?.partition;
        let same = self.appends.iter().all(|append| append.partition == first);
        same.then(|| self.topic.partition_id(first))
    }
}

/// What a topic asks of the records of one request, at one moment.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    pub(super) topic: &'a Topic,
    pub(super) now: Timestamp,
    require_keys: bool,
    create_time_max: Option<Timestamp>,
    pub(super) batch_bytes_max: usize,
    pub(super) limits: RecordLimits,
}

impl Inner {
    pub(crate) fn prepare(
        &self,
        request: ProduceRequest,
        reservation: Reservation,
    ) -> Result<Prepared, ProduceError> {
        let arrived = Instant::now();
        let ProduceRequest { topic, payload, numbering, expected_end } = request;
        if topic.is_internal() {
            return Err(ReservedName { topic }.into());
        }
        let topic = self.topics.get(&topic)?;
        let count = match &payload {
            Payload::Records(records) => records.count(),
            Payload::Batches(batches) => batches.len(),
        };
        if count == 0 {
            return Err(InvalidRequest::new("the request has neither records nor batches").into());
        }
        let limit = self.config.limits.records_per_request;
        if count > limit {
            return Err(LimitReached { what: "records in one request", limit: limit as u64 }.into());
        }
        let rules = Rules::of(&topic, self.clock.now(), self.record_limits());
        let (appends, places) = match payload {
            Payload::Records(records) => {
                let (mut appends, places) = self.batch(&rules, &*records, numbering)?;
                if expected_end.is_some() {
                    let [only] = &mut appends[..] else {
                        let why = "expected_end needs records that make one batch of one partition";
                        return Err(InvalidRequest::new(why).into());
                    };
                    only.append.expected_end = expected_end;
                }
                (appends, Some(places))
            }
            Payload::Batches(batches) => {
                if numbering.is_some() || expected_end.is_some() {
                    let why = "a request number and expected_end of the request are for plain records; \
                               encoded batches carry their own";
                    return Err(InvalidRequest::new(why).into());
                }
                let verified = batches.into_iter().map(|batch| self.verify(&rules, batch));
                (verified.collect::<Result<_, _>>()?, None)
            }
        };
        Ok(Prepared { topic, appends, places, reservation, arrived })
    }

    /// Partitions plain records and makes batches of them: for each partition one, or without a request number as
    /// many as are needed.
    fn batch(
        &self,
        rules: &Rules<'_>,
        records: &dyn Records,
        numbering: Option<RequestNumbering>,
    ) -> Result<Batched, ProduceError> {
        let spread = self.spread(rules.topic, numbering)?;
        let mut batching = Batching::new(rules, numbering, records);
        records.each(&mut |record| batching.push(spread.partition_of(&record), record))?;
        batching.end()
    }

    /// How the records of a request are spread over partitions.
    fn spread(&self, topic: &Topic, numbering: Option<RequestNumbering>) -> Result<Spread, ProduceError> {
        let whole = |count| NonZeroU32::new(count).expect("a topic has at least one partition");
        let Some(RequestNumbering { id, epoch, number }) = numbering else {
            let count = whole(topic.partition_count());
            // One partition per request; the next request moves on. One that cannot be used is passed over.
            let turn = self.sticky.fetch_add(1, Ordering::Relaxed);
            let usable = |partition: &u32| matches!(topic.slots[*partition as usize], Slot::Open(_));
            let turns = (0..count.get()).map(|step| (turn.wrapping_add(step)) % count);
            let keyless = turns.clone().find(usable).unwrap_or(turn % count);
            return Ok(Spread { count, keyless: PartitionIndex(keyless) });
        };
        let count = whole(topic.count_for(self.producers.age(id, epoch)?));
        Ok(Spread { count, keyless: partitioner::partition_for_request(id, number, count) })
    }

    /// Verifies a client's batch.
    fn verify(&self, rules: &Rules<'_>, batch: PartitionBatch) -> Result<PreparedAppend, ProduceError> {
        let PartitionBatch { partition, bytes, expected_end } = batch;
        let store = rules.topic.partition(partition)?;
        let batch = rules.verify(partition, bytes)?;
        if let Some(producer) = batch.header().producer {
            self.check_client_stamp(&producer)?;
        }
        let append = Append { batch, expected_end, content_hash: None, now: rules.now };
        Ok(PreparedAppend { partition, store: Arc::clone(store), append })
    }

    fn check_client_stamp(&self, producer: &ProducerStamp) -> Result<(), ProduceError> {
        if producer.numbering == Numbering::ByRequest {
            let why = "numbering by request is the server's, for plain records; encoded batches are numbered densely";
            return Err(InvalidRequest::new(why).into());
        }
        self.producers.check_given_out(producer.id, producer.epoch)?;
        Ok(())
    }
}

/// How the records of one request are spread.
#[derive(Debug)]
struct Spread {
    count: NonZeroU32,
    keyless: PartitionIndex,
}

impl Spread {
    /// An explicit partition wins, then the key, then the request's own.
    fn partition_of(&self, record: &RecordView<'_>) -> PartitionIndex {
        match (record.partition, record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partitioner::partition_for_key(key, self.count),
            (None, None) => self.keyless,
        }
    }
}

impl<'a> Rules<'a> {
    fn of(topic: &'a Topic, now: Timestamp, limits: RecordLimits) -> Self {
        let settings = &topic.settings;
        // Kafka's message.timestamp.after.max.ms; one record from far in the future pins retention for ever. Before
        // the year 0 there is nothing but mistakes, which no tool could print.
        let create_time_max = match settings.partition.timestamp_type {
            TimestampType::CreateTime => Some(now.saturating_add(settings.timestamp_after_max)),
            TimestampType::AppendTime => None,
        };
        let batch_bytes_max = usize::try_from(settings.max_message_bytes.get()).unwrap_or(usize::MAX);
        Self {
            topic,
            now,
            require_keys: settings.partition.cleanup != CleanupPolicy::Delete,
            create_time_max,
            batch_bytes_max,
            limits: RecordLimits { batch_bytes: batch_bytes_max, ..limits },
        }
    }

    pub(super) fn corrupt(&self, partition: PartitionIndex, error: BatchError) -> ProduceError {
        BatchCorrupt { topic: self.topic.name.clone(), partition, error }.into()
    }

    pub(super) fn too_large(&self, partition: PartitionIndex, size: usize) -> ProduceError {
        let limit = self.batch_bytes_max as u64;
        BatchTooLarge { topic: self.topic.name.clone(), partition, size: size as u64, limit }.into()
    }

    fn too_far(&self, given: Timestamp, allowed: Timestamp) -> ProduceError {
        TimestampTooFar { topic: self.topic.name.clone(), given, allowed }.into()
    }

    /// A plain record as it goes into a batch.
    pub(super) fn check<'r>(
        &self,
        record: RecordView<'r>,
    ) -> Result<RecordParts<'r, HeaderParts<'r>>, ProduceError> {
        let RecordView { key, value, headers, create_time, .. } = record;
        if self.require_keys && key.is_none() {
            return Err(KeyRequired { topic: self.topic.name.clone() }.into());
        }
        let timestamp = create_time.unwrap_or(self.now);
        if let Some(allowed) = self.create_time_max
            && !(Timestamp::YEAR_0..=allowed).contains(&timestamp)
        {
            return Err(self.too_far(timestamp, allowed));
        }
        Ok(RecordParts { key, value, headers, timestamp })
    }

    pub(super) fn unbuildable(
        &self,
        partition: PartitionIndex,
        index: usize,
        error: BuildError,
    ) -> ProduceError {
        match error {
            BuildError::TooLarge { bytes, .. } => self.too_large(partition, bytes),
            BuildError::TooManyRecords { limit } => {
                LimitReached { what: "records in one batch", limit: u64::from(limit) }.into()
            }
            error => InvalidRequest::new(format!("record {index} of the request: {error}")).into(),
        }
    }

    /// A client's batch, verified to the last record: a header that lies about times or counts would lie to
    /// retention, to look-ups by time and to every reader (Kafka's LogValidator looks at them too).
    fn verify(&self, partition: PartitionIndex, bytes: Bytes) -> Result<Batch, ProduceError> {
        if bytes.len() > self.batch_bytes_max {
            return Err(self.too_large(partition, bytes.len()));
        }
        let verify = || {
            let batch = Batch::verify(bytes.clone(), &self.limits)?;
            let header = batch.header();
            if header.is_transactional() {
                return Err(BatchError::ServerOnly { what: "transactional; there are no transactions yet" });
            }
            let rules =
                RecordRules { require_keys: self.require_keys, create_time_max: self.create_time_max };
            batch.verify_records(&self.limits, rules)?;
            Ok(batch)
        };
        let is_slow = match BatchHeader::parse(&bytes) {
            Ok(header) if header.compression() != Compression::None => {
                bytes.len() > VERIFY_COMPRESSED_INLINE_BYTES
            }
            Ok(header) => bytes.len() > VERIFY_INLINE_BYTES || header.record_count > VERIFY_INLINE_RECORDS,
            // That it is not one is found out at once.
            Err(_) => false,
        };
        let verified = if is_slow { beside_other_tasks(verify) } else { verify() };
        verified.map_err(|error| match error {
            BatchError::KeyMissing { .. } => KeyRequired { topic: self.topic.name.clone() }.into(),
            BatchError::TimestampTooFar { time, latest, .. } => self.too_far(time, latest),
            BatchError::ServerOnly { .. } => InvalidRequest::new(error.to_string()).into(),
            error => self.corrupt(partition, error),
        })
    }
}

/// Runs something that may take milliseconds without holding up the other tasks of this worker.
fn beside_other_tasks<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
