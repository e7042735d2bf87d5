//! The log against a model: append, duplicate, roll, trim, reopen, crash, torn tail, rot.

mod checkpoints;
mod cuts;
mod damage;
mod golden;
mod images;
mod model;
mod recovery;
mod retention;
mod rules;
mod sectors;
mod times;
mod versions;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rimstone_record::{Batch, BatchBuilder, Compression, NewRecord, ProducerStamp};
use rimstone_types::{
    Numbering, Offset, PartitionId, PartitionIndex, ProducerEpoch, ProducerId, Timestamp, TopicId,
};

use crate::{
    Access, Log, LogConfig, LogPosition, LogReadError, Offered, OpenOptions, OpenReport, ReadRange,
    SaltSource,
    producers::{self, Claim},
};

pub(crate) const ID: PartitionId = PartitionId { topic: TopicId::CATALOG, partition: PartitionIndex(3) };

pub(crate) fn config(segment_bytes: u64) -> LogConfig {
    let salt = AtomicU32::new(1);
    LogConfig {
        segment_bytes,
        segment_age: Duration::from_secs(3600),
        index_interval_bytes: 512,
        retention_age: None,
        retention_bytes: None,
        retention: true,
        append_time_stamps: false,
        producers: producers::Limits::default(),
        // Each call another one, also across logs of one test: recovery must never meet the same salt twice.
        salts: SaltSource(Arc::new(move || {
            static RUN: AtomicU32 = AtomicU32::new(1);
            RUN.fetch_add(0x9E37_79B9, Ordering::Relaxed) ^ salt.fetch_add(1, Ordering::Relaxed)
        })),
    }
}

pub(crate) fn batch(values: &[Bytes], time: i64) -> Batch {
    build(BatchBuilder::new(Compression::None), values, time)
}

fn build(mut builder: BatchBuilder, values: &[Bytes], time: i64) -> Batch {
    for (number, value) in values.iter().enumerate() {
        let record = NewRecord {
            key: Some(Bytes::from_static(b"key")),
            value: Some(value.clone()),
            headers: Vec::new(),
            timestamp: Timestamp(time + number as i64),
        };
        builder.push(&record).unwrap();
    }
    builder.build()
}

pub(crate) fn dense(values: &[Bytes], time: i64, producer: u64, base: u32) -> (Batch, Claim) {
    let stamp = ProducerStamp {
        id: ProducerId::new(producer).unwrap(),
        epoch: ProducerEpoch::ZERO,
        base,
        numbering: Numbering::Dense,
    };
    let batch = build(BatchBuilder::new(Compression::None).producer(stamp), values, time);
    let claim = Claim::of(batch.header(), None).unwrap();
    (batch, claim)
}

pub(crate) fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

pub(crate) fn values(count: usize, size: usize, seed: u64) -> Vec<Bytes> {
    (0..count).map(|n| format!("{seed}-{n}-{}", "x".repeat(size)).into()).collect()
}

/// Writes what is staged, as the flusher does.
pub(crate) fn write(log: &mut Log) {
    if let Some(mut plan) = log.take_plan() {
        plan.execute().unwrap();
        let written = log.plan_succeeded(plan).execute();
        assert!(written.failure.is_none(), "{written:?}");
        log.snapshots_written(&written);
    }
}

/// Writes what is staged and takes it for durable.
pub(crate) fn sync(log: &mut Log) {
    write(log);
    let position = log.written_position();
    log.synced(position);
}

pub(crate) fn append(log: &mut Log, values: &[Bytes], time: i64) -> Offset {
    match log.offer(&batch(values, time), None, None, Timestamp(time)).unwrap() {
        Offered::Staged { base, .. } => base,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn open(
    path: &Path,
    segment_bytes: u64,
    witness: Option<LogPosition>,
    clean: bool,
) -> (Log, OpenReport) {
    let options = OpenOptions { clean, witness, now: Timestamp(1) };
    Log::open(path, ID, config(segment_bytes), options).unwrap()
}

/// Offsets and values of records.
pub(crate) type Records = Vec<(Offset, Bytes)>;
/// Ranges of offsets that were named as damaged.
pub(crate) type Damage = Vec<(Offset, Offset)>;

/// Everything readable from log start to the durable end, with the damage that was met on the way.
pub(crate) fn read_all(log: &Log, bytes: usize) -> (Records, Damage) {
    let reader = log.reader();
    let ends = reader.ends();
    let (mut from, mut records, mut damage) = (ends.start, Vec::new(), Vec::new());
    while from < ends.durable {
        let range = ReadRange { from, until: ends.durable, bytes };
        let result = match reader.read(range, Access::Resident) {
            Err(LogReadError::NotResident) => reader.read(range, Access::Blocking),
            result => result,
        };
        match result {
            Ok(batches) if batches.is_empty() => break,
            Ok(batches) => {
                for stored in batches {
                    for record in stored.batch.records(&crate::inspect::LIMITS).unwrap() {
                        let record = record.unwrap();
                        if record.offset >= from {
                            records.push((record.offset, record.value.unwrap()));
                        }
                    }
                    from = from.max(stored.batch.next_offset());
                }
            }
            Err(LogReadError::Damaged { from: first, until, .. }) => {
                assert!(first >= from && until > first, "damage {first}..{until} met at {from}");
                damage.push((first, until));
                from = until;
            }
            Err(error) => panic!("{error}"),
        }
    }
    (records, damage)
}
