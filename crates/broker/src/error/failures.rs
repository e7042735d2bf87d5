//! The structs behind the errors.

use std::time::Duration;

use rimstone_record::BatchError;
use rimstone_store::Backpressure;
use rimstone_types::{
    ByteCount, Offset, PartitionIndex, ProducerEpoch, ProducerId, ProducerName, Timestamp, TopicName,
};

use super::{Details, Failure, Reason};

/// There is no such topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic {topic} does not exist; `rimstone topic create {topic}` creates it")]
pub struct TopicNotFound {
    /// The name asked for.
    pub topic: TopicName,
}

/// A topic of this name exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic {topic} exists")]
pub struct TopicExists {
    /// The name.
    pub topic: TopicName,
}

/// The name begins with `__`: the topic belongs to the server and is only read from outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic {topic} belongs to the server: names that begin with \"__\" can only be read")]
pub struct ReservedName {
    /// The name.
    pub topic: TopicName,
}

/// There is no such partition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic {topic} has no partition {partition}; it has {partitions}, numbered from 0")]
pub struct PartitionNotFound {
    /// The topic.
    pub topic: TopicName,
    /// The partition asked for.
    pub partition: PartitionIndex,
    /// How many there are.
    pub partitions: u32,
}

/// The partition exists in the catalog but could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("partition {partition} of topic {topic} is unavailable: {why}")]
pub struct PartitionUnavailable {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// What was found when it was opened.
    pub why: String,
}

/// A bound of the server is reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the limit of {limit} {what} is reached")]
pub struct LimitReached {
    /// What is bounded.
    pub what: &'static str,
    /// The bound.
    pub limit: u64,
}

/// The server stops; new work is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server is shutting down")]
pub struct ShuttingDown;

/// A request that contradicts itself or asks for what clients may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct InvalidRequest {
    /// What is wrong and what is allowed.
    pub why: String,
}

impl InvalidRequest {
    /// Says why.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}

/// A topic cannot lose partitions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic {topic} has {current} partitions and cannot go down to {given}")]
pub struct FewerPartitions {
    /// The topic.
    pub topic: TopicName,
    /// How many it has.
    pub current: u32,
    /// How many were asked for.
    pub given: u32,
}

/// A queue or budget is full for the moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no room for {wanted} more {what}: the limit is {limit}; try again in {} ms", retry_after.as_millis())]
pub struct NoRoom {
    /// What is full.
    pub what: &'static str,
    /// How much was wanted.
    pub wanted: u64,
    /// The bound.
    pub limit: u64,
    /// When to try again.
    pub retry_after: Duration,
}

/// A client's batch is not what it says.
#[derive(Debug, Clone, thiserror::Error)]
#[error("batch for partition {partition} of topic {topic}: {error}")]
pub struct BatchCorrupt {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// What is wrong.
    #[source]
    pub error: BatchError,
}

/// A stored batch cannot be decoded: it was verified when it came, so something has changed since.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the stored batch at offsets {from} to {until} cannot be decoded: {error}")]
pub struct Undecodable {
    /// Its first offset.
    pub from: Offset,
    /// The first offset behind it.
    pub until: Offset,
    /// What is wrong.
    #[source]
    pub error: BatchError,
}

/// A batch is larger than the topic's `max.message.bytes`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a batch of {size} bytes for partition {partition} of topic {topic}: max.message.bytes is {limit}")]
pub struct BatchTooLarge {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// Its bytes.
    pub size: u64,
    /// The bound.
    pub limit: u64,
}

/// A single record is larger than the topic's `max.message.bytes`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "record {index} of the request makes a batch of {size} bytes; max.message.bytes of topic {topic} is {limit}"
)]
pub struct RecordTooLarge {
    /// The topic.
    pub topic: TopicName,
    /// Which record of the request, from 0.
    pub index: usize,
    /// The bytes of a batch of this record alone.
    pub size: u64,
    /// The bound.
    pub limit: u64,
}

/// A compacted topic refuses records without a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic {topic} is compacted: every record needs a key")]
pub struct KeyRequired {
    /// The topic.
    pub topic: TopicName,
}

/// A create time lies further in the future than the topic allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "create time {given} is not one that topic {topic} takes: {} (the year 0) to {allowed} are allowed now, \
     message.timestamp.after.max.ms from now",
    Timestamp::YEAR_0
)]
pub struct TimestampTooFar {
    /// The topic.
    pub topic: TopicName,
    /// The time given.
    pub given: Timestamp,
    /// The latest time allowed at this moment.
    pub allowed: Timestamp,
}

/// No producer has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("producer {producer} does not exist; InitProducer gives one out")]
pub struct ProducerNotFound {
    /// The name.
    pub producer: ProducerName,
}

/// This producer id was never given out, or its producer was deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("producer id {id} is nobody's; InitProducer gives one out")]
pub struct IdUnknown {
    /// The id.
    pub id: ProducerId,
}

/// A newer instance of the producer has been started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("producer epoch {got} is fenced by epoch {current}")]
pub struct ProducerFenced {
    /// What came.
    pub got: ProducerEpoch,
    /// The epoch in force.
    pub current: ProducerEpoch,
}

/// Request numbers must come in order, and one that failed must be sent again before later ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("request number {got} cannot be taken: {expected} must be sent first")]
pub struct ResendFirst {
    /// The number that must come.
    pub expected: u32,
    /// What came.
    pub got: u32,
}

/// A partition did not take the first batch of a request.
#[derive(Debug, Clone, thiserror::Error)]
#[error("partition {partition} of topic {topic} did not take the batch: {refusal}")]
pub struct SubmitRefused {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// Why.
    #[source]
    pub refusal: Backpressure,
}

/// An offset outside the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("offset {offset} is outside {start}..={end} of partition {partition} of topic {topic}")]
pub struct OutOfRange {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// What was asked for.
    pub offset: Offset,
    /// Log start.
    pub start: Offset,
    /// The visible end.
    pub end: Offset,
}

/// The catalog cannot be read or understood. Nothing is served from a catalog that is not understood whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the catalog cannot be read at offset {offset}: {why}")]
pub struct CatalogUnreadable {
    /// Which record, or where the damage begins.
    pub offset: Offset,
    /// What is wrong.
    pub why: String,
}

/// The reason of a struct, and the details that it carries.
macro_rules! failure {
    ($name:ident, $reason:ident $(, $self:ident => [$($key:literal: $value:expr),*])?) => {
        impl Failure for $name {
            fn reason(&self) -> Reason {
                Reason::$reason
            }

            $(fn details(&$self) -> Details {
                vec![$(($key, $value.to_string())),*]
            })?
        }
    };
}

failure!(TopicNotFound, TopicNotFound, self => ["topic": self.topic]);
failure!(TopicExists, TopicExists, self => ["topic": self.topic]);
failure!(ReservedName, InvalidName, self => ["topic": self.topic]);
failure!(PartitionNotFound, PartitionNotFound, self => [
    "topic": self.topic, "partition": self.partition, "partitions": self.partitions
]);
failure!(PartitionUnavailable, PartitionUnavailable, self => ["topic": self.topic, "partition": self.partition]);
failure!(LimitReached, LimitReached, self => ["what": self.what, "limit": self.limit]);
failure!(ShuttingDown, ShuttingDown);
failure!(InvalidRequest, InvalidRequest);
failure!(FewerPartitions, InvalidRequest, self => ["topic": self.topic, "partitions": self.current]);
failure!(BatchCorrupt, BatchCorrupt, self => ["topic": self.topic, "partition": self.partition]);
failure!(Undecodable, DataDamaged, self => ["from_offset": self.from, "until_offset": self.until]);
failure!(BatchTooLarge, BatchTooLarge, self => [
    "topic": self.topic, "partition": self.partition, "size": self.size, "limit": self.limit
]);
failure!(RecordTooLarge, RecordTooLarge, self => [
    "topic": self.topic, "record": self.index, "size": self.size, "limit": self.limit
]);
failure!(KeyRequired, KeyRequired, self => ["topic": self.topic]);
failure!(TimestampTooFar, TimestampTooFar, self => [
    "topic": self.topic, "create_time_ms": self.given.as_millis(),
    "earliest_ms": Timestamp::YEAR_0.as_millis(), "latest_ms": self.allowed.as_millis()
]);
failure!(ProducerNotFound, ProducerNotFound, self => ["producer": self.producer]);
failure!(IdUnknown, UnknownProducer, self => ["producer": self.id]);
failure!(ProducerFenced, ProducerFenced, self => ["current_epoch": self.current]);
failure!(ResendFirst, ResendFirst, self => ["expected_number": self.expected]);
failure!(OutOfRange, OffsetOutOfRange, self => [
    "topic": self.topic, "partition": self.partition, "log_start_offset": self.start, "high_watermark": self.end
]);

impl Failure for NoRoom {
    fn reason(&self) -> Reason {
        Reason::Backpressure
    }

    fn details(&self) -> Details {
        vec![("what", self.what.to_owned()), ("limit", self.limit.to_string())]
    }

    fn retry_after(&self) -> Option<Duration> {
        Some(self.retry_after)
    }
}

impl Failure for SubmitRefused {
    fn reason(&self) -> Reason {
        self.refusal.reason()
    }

    fn details(&self) -> Details {
        let mut details = vec![("topic", self.topic.to_string()), ("partition", self.partition.to_string())];
        details.extend(self.refusal.details());
        details
    }
}

impl NoRoom {
    pub(crate) fn new(what: &'static str, wanted: u64, limit: u64) -> Self {
        let retry_after = Reason::Backpressure.retry_after().expect("back-pressure passes");
        Self { what, wanted, limit, retry_after }
    }

    pub(crate) fn bytes(wanted: ByteCount, limit: ByteCount) -> Self {
        Self::new("bytes in flight", wanted.get(), limit.get())
    }
}
