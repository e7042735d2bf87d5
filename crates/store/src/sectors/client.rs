//! What schedules and checks do to a store: opening, sending, reading.

use std::{
    future::Future,
    path::Path,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rimstone_log::{producers, recording::image::Draw};
use rimstone_record::{BatchBuilder, Compression, Header, NewRecord, ProducerStamp};
use rimstone_types::{
    ByteCount, Numbering, PartitionId, PartitionIndex, ProducerEpoch, ProducerId, Timestamp, TopicId,
};
use uuid::Uuid;

use super::history::{At, Fate, Flavour, History, PartitionHistory, Sent, SentBatch, Shown, offset};
use crate::{
    AckLevel, Append, CleanupPolicy, CompactionConfig, LocalOptions, LocalStorage, PartitionConfig,
    PartitionStore, ReadLimit, Share, StoreClock, SyncPreference, Visibility,
};

/// Rounds of the flusher within which anything must happen: far more than it takes, so that only a store that hangs
/// fails.
const ROUNDS_MAX: u32 = 50;
/// The header that carries a record's number.
const NUMBER: &str = "n";
/// Keys of a compacted topic: few, so that most records are superseded.
const KEYS: usize = 7;

/// The time in a schedule.
pub(crate) type Time = Arc<std::sync::atomic::AtomicI64>;

/// Waits for something that may need rounds of the flusher. Nothing else can wake it: all happens on this thread.
pub(crate) async fn within<T>(
    what: &str,
    storage: &LocalStorage,
    now: impl Fn() -> Instant,
    future: impl Future<Output = T>,
) -> Result<T, String> {
    let mut future = std::pin::pin!(future);
    for _ in 0..ROUNDS_MAX {
        if let Poll::Ready(value) = futures::poll!(&mut future) {
            return Ok(value);
        }
        storage.step(now());
    }
    Err(format!("{what}: hangs"))
}

pub(crate) fn options(directory: &Path, sync: SyncPreference, time: &Time) -> LocalOptions {
    let time = Arc::clone(time);
    LocalOptions {
        directory: directory.to_owned(),
        disk_reserve: ByteCount(0),
        sync,
        producers: producers::Limits::default(),
        clock: StoreClock(Arc::new(move || Timestamp(time.load(std::sync::atomic::Ordering::Acquire)))),
    }
}

pub(crate) fn partition_id(topic: u32, partition: u32) -> PartitionId {
    let topic = TopicId(Uuid::from_u128(0x5ec7_0000 + u128::from(topic)));
    PartitionId { topic, partition: PartitionIndex(partition) }
}

/// Small segments and pieces, so that everything happens often.
pub(crate) fn config(flavour: Flavour, draw: &mut Draw) -> PartitionConfig {
    let plain = PartitionConfig {
        segment_bytes: ByteCount(*draw.pick(&[1024, 2048, 4096])),
        segment_age: Duration::from_secs(60),
        retention_age: None,
        index_interval: ByteCount(512),
        ..PartitionConfig::default()
    };
    match flavour {
        Flavour::Plain => PartitionConfig {
            retention_bytes: draw.percent(50).then(|| ByteCount(*draw.pick(&[4096, 16 << 10]))),
            ..plain
        },
        Flavour::Written => PartitionConfig { ack: AckLevel::Written, ..plain },
        Flavour::Keyed => PartitionConfig {
            cleanup: CleanupPolicy::Compact,
            compaction: CompactionConfig {
                min_dirty_ratio: Share::from_millionths(1).expect("less than one"),
                min_lag: Duration::ZERO,
                max_lag: None,
                delete_retention: Duration::from_secs(*draw.pick(&[0, 30, 3600])),
            },
            ..plain
        },
    }
}

impl PartitionHistory {
    pub(crate) fn new(flavour: Flavour, config: PartitionConfig, asked: At) -> Self {
        Self {
            flavour,
            config,
            asked,
            made: None,
            batches: Vec::new(),
            log: Default::default(),
            starts: Vec::new(),
        }
    }
}

/// Who numbers the records of a batch.
pub(crate) fn stamp(producer: u64, epoch: u64, base: u32) -> ProducerStamp {
    ProducerStamp {
        id: ProducerId::new(producer).expect("schedules use small numbers"),
        epoch: ProducerEpoch::new(epoch).expect("schedules use small numbers"),
        base,
        numbering: Numbering::Dense,
    }
}

impl History {
    /// Makes a batch of a few records that nobody has sent before.
    pub(crate) fn make(
        &mut self,
        id: PartitionId,
        stamp: Option<ProducerStamp>,
        at: At,
        time: i64,
        draw: &mut Draw,
    ) -> usize {
        let keyed = self.partitions[&id].flavour == Flavour::Keyed;
        let mut builder = BatchBuilder::new(Compression::None);
        if let Some(stamp) = stamp {
            builder = builder.producer(stamp);
        }
        let first = self.sent.len() as u64;
        let batch = self.partitions[&id].batches.len();
        for number in first..=first + draw.below(3) as u64 {
            let key = keyed.then(|| Bytes::from(format!("key-{}", draw.below(KEYS))));
            let length = *draw.pick(&[5, 40, 200, 700, 1100]);
            // Different all over, so that a piece of another record does not go for this one.
            let mut bytes = Draw::new(number);
            let filled: Vec<u8> = (0..length).map(|_| bytes.number() as u8).collect();
            let value = (!keyed || draw.percent(75)).then(|| Bytes::from(filled));
            let headers =
                vec![Header { key: NUMBER.to_owned(), value: Some(number.to_be_bytes().to_vec().into()) }];
            let record =
                NewRecord { key: key.clone(), value: value.clone(), headers, timestamp: Timestamp(time) };
            builder.push(&record).expect("a small record fits");
            self.sent.insert(number, Sent { partition: id, batch, key, value });
        }
        let ids = first..self.sent.len() as u64;
        let sent = SentBatch { batch: builder.build(), ids, stamp, sent: at, fate: Fate::Open };
        self.partition(id).batches.push(sent);
        batch
    }

    pub(crate) fn append(&self, id: PartitionId, batch: usize, time: i64) -> Append {
        let batch = self.partitions[&id].batches[batch].batch.clone();
        Append { batch, expected_end: None, content_hash: None, now: Timestamp(time) }
    }
}

/// Everything that a partition shows from an offset on, and between which ends.
pub(crate) async fn read_from(
    partition: &dyn PartitionStore,
    from: u64,
) -> Result<((u64, u64), Vec<Shown>), String> {
    let ends = partition.ends();
    let mut from = from.max(ends.start.get());
    let first = from;
    let mut shown = Vec::new();
    while from < ends.durable.get() {
        let limit = ReadLimit {
            bytes: ByteCount(64 << 10),
            until: Some(ends.durable),
            visibility: Visibility::Durable,
        };
        let read = partition
            .read(offset(from), limit)
            .await
            .map_err(|error| format!("a read at {from}: {error}"))?;
        for batch in &read.batches {
            let header = *batch.batch.header();
            let records =
                batch.batch.records(&rimstone_log::inspect::LIMITS).map_err(|error| error.to_string())?;
            for record in records {
                let record =
                    record.map_err(|error| format!("a record at {}: {error}", header.base_offset))?;
                let at = record.offset.get();
                if at < first || at >= ends.durable.get() {
                    continue;
                }
                let delta = (at - header.base_offset.get()) as u32;
                let number =
                    record.headers.first().and_then(|header| header.value.as_deref()?.try_into().ok());
                shown.push(Shown {
                    offset: at,
                    id: number.map(u64::from_be_bytes).ok_or_else(|| format!("offset {at} has no number"))?,
                    key: record.key,
                    value: record.value,
                    stamp: header.producer.map(|stamp| (stamp, stamp.base + delta)),
                    time: record.timestamp,
                });
            }
        }
        if read.next.get() <= from {
            return Err(format!("a read at {from} does not go on: {:?}", read.ends));
        }
        from = read.next.get();
    }
    Ok(((ends.start.get(), ends.durable.get()), shown))
}
