//! The local store: the suite that every store passes, on every way to sync; and what only disks do.

mod compaction;
mod damage;
mod faults;
mod locks;
mod refusals;
mod trims;

use std::{
    path::Path,
    sync::atomic::{AtomicI64, Ordering as AtomicOrdering},
};

use bytes::Bytes;
use rimstone_record::{Batch, BatchBuilder, Compression, NewRecord};
use rimstone_types::{Offset, PartitionIndex};

use super::*;
use crate::{Append, AppendError, Backpressure, ReadLimit, Visibility, conformance::Harness};

pub(super) fn options(directory: &Path, sync: SyncPreference) -> LocalOptions {
    LocalOptions {
        directory: directory.to_owned(),
        disk_reserve: ByteCount(0),
        sync,
        producers: producers::Limits::default(),
        clock: StoreClock(Arc::new(|| Timestamp(1_700_000_000_000))),
    }
}

struct Local<const FDATASYNC: bool> {
    directory: tempfile::TempDir,
    storage: Arc<LocalStorage>,
}

impl<const FDATASYNC: bool> Local<FDATASYNC> {
    fn open(directory: tempfile::TempDir) -> Self {
        let sync = if FDATASYNC { SyncPreference::Fdatasync } else { SyncPreference::Auto };
        let storage = LocalStorage::open(options(directory.path(), sync)).expect("an own directory opens");
        Self { directory, storage }
    }
}

impl<const FDATASYNC: bool> Harness for Local<FDATASYNC> {
    async fn create() -> Self {
        Self::open(tempfile::tempdir().expect("a temporary directory"))
    }

    fn storage(&self) -> Arc<dyn Storage> {
        self.storage.clone()
    }

    async fn reopen(self) -> Self {
        self.storage.close().await.expect("it closes");
        drop(self.storage);
        let again = Self::open(self.directory);
        assert!(again.storage.was_clean());
        again
    }
}

mod conformance_auto {
    crate::conformance_suite!(super::Local<false>);
}

mod conformance_fdatasync {
    crate::conformance_suite!(super::Local<true>);
}

fn id(topic: u128) -> PartitionId {
    PartitionId { topic: TopicId(Uuid::from_u128(topic)), partition: PartitionIndex(0) }
}

fn batch(value: &str) -> Batch {
    let mut builder = BatchBuilder::new(Compression::None);
    let value = Some(Bytes::from(value.to_owned()));
    builder.push(&NewRecord { value, ..NewRecord::default() }).unwrap();
    builder.build()
}

pub(super) fn append(value: &str) -> Append {
    Append { batch: batch(value), expected_end: None, content_hash: None, now: Timestamp(1_700_000_000_000) }
}

async fn read_values(partition: &Arc<dyn PartitionStore>) -> Vec<Bytes> {
    let mut values = Vec::new();
    let mut from = partition.ends().start;
    while from < partition.ends().durable {
        let limit = ReadLimit { bytes: ByteCount(1000), until: None, visibility: Visibility::Stable };
        let read = partition.read(from, limit).await.unwrap();
        for stored in &read.batches {
            let records = stored.batch.records(&rimstone_record::Limits::default()).unwrap();
            values.extend(records.map(|record| record.unwrap().value.unwrap()));
        }
        from = read.next;
    }
    values
}

#[tokio::test]
async fn a_store_that_was_dropped_like_a_crash_keeps_what_it_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for round in 0..4 {
        let storage = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
        assert!(!storage.was_clean());
        let mode = if round == 0 { OpenMode::CreateNew } else { OpenMode::MustExist };
        let config = PartitionConfig { segment_bytes: ByteCount(4096), ..PartitionConfig::default() };
        let partition = storage.open(id(5), config, mode).await.unwrap();
        assert_eq!(read_values(&partition).await, expected, "round {round}");
        let tickets: Vec<_> = (0..50)
            .map(|n| {
                let value = format!("{round}-{n}-{}", "y".repeat(100));
                expected.push(Bytes::from(value.clone()));
                partition.submit(append(&value)).unwrap()
            })
            .collect();
        for ticket in tickets {
            ticket.await.unwrap();
        }
    }
}

#[tokio::test]
async fn one_directory_belongs_to_one_server_also_through_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let first = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
    let link = directory.path().with_extension("link");
    std::os::unix::fs::symlink(directory.path(), &link).unwrap();
    for path in [directory.path(), &link] {
        let error = LocalStorage::open(options(path, SyncPreference::Auto)).unwrap_err();
        assert!(error.to_string().contains("in use by another server"), "{error}");
    }
    std::fs::remove_file(&link).unwrap();
    drop(first);
    LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
}

#[tokio::test]
async fn a_directory_without_its_mark_is_not_taken_for_an_empty_one() {
    let directory = tempfile::tempdir().unwrap();
    let storage = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
    storage.open(id(1), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    storage.close().await.unwrap();
    drop(storage);
    let meta = directory.path().join("rimstone.meta");
    let good = std::fs::read(&meta).unwrap();
    std::fs::remove_file(&meta).unwrap();
    let error = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap_err();
    assert!(error.to_string().contains("not taken for an empty one"), "{error}");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&meta, &bad).unwrap();
        LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap_err();
    }
    std::fs::write(&meta, &good).unwrap();
    LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
}

/// A write that fails: a directory stands where the next segment file must be made.
#[tokio::test]
async fn a_failed_write_did_not_happen_and_the_partition_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let storage = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
    let config = PartitionConfig { segment_bytes: ByteCount(4096), ..PartitionConfig::default() };
    let partition = storage.open(id(5), config, OpenMode::CreateNew).await.unwrap();
    let value = "z".repeat(3000);
    partition.submit(append(&value)).unwrap().await.unwrap();
    let obstacle = storage.shared.directory.partition_path(id(5)).join(format!("{:020}.log", 1));
    std::fs::create_dir(&obstacle).unwrap();
    let first = partition.submit(append(&value)).unwrap();
    let second = partition.submit(append(&value));
    for failed in [first.await, second.unwrap().await] {
        assert!(matches!(failed, Err(AppendError::DidNotHappen { disk_full: false, .. })), "{failed:?}");
    }
    assert_eq!(partition.ends().written, Offset::new(1).unwrap());
    // One group or two, as the flusher happened to take them.
    assert!((1..=2).contains(&storage.statistics().write_failures));
    std::fs::remove_dir(&obstacle).unwrap();
    let appended = partition.submit(append(&value)).unwrap().await.unwrap();
    assert_eq!(appended.offsets.unwrap().0, Offset::new(1).unwrap());
    assert_eq!(read_values(&partition).await.len(), 2);
}

#[tokio::test]
#[expect(
    clippy::await_holding_lock,
    reason = "it holds the flusher, a thread of its own, until the failure was told"
)]
async fn a_failed_sync_poisons_what_is_undurable_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let storage = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
    let written = PartitionConfig { ack: crate::AckLevel::Written, ..PartitionConfig::default() };
    let clean = storage.open(id(1), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    let dirty = storage.open(id(2), written, OpenMode::CreateNew).await.unwrap();
    clean.submit(append("durable")).unwrap().await.unwrap();
    // Acknowledged when written; the sync that would come within a second stands.
    let gate = storage.shared.gate.lock();
    dirty.submit(append("written")).unwrap().await.unwrap();
    storage.shared.device_failed("made up");
    drop(gate);
    assert!(matches!(dirty.submit(append("more")), Err(Backpressure::Poisoned { .. })));
    assert!(matches!(storage.health(), Health::Poisoned { .. }));
    clean.submit(append("goes on")).unwrap().await.unwrap();
    assert_eq!(read_values(&clean).await.len(), 2);
    assert_eq!(read_values(&dirty).await.len(), 1, "reads go on");
    storage.close().await.unwrap_err();
    drop(storage);
    let again = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
    assert!(!again.was_clean(), "a poisoned store leaves no clean mark");
}

#[tokio::test]
#[expect(
    clippy::await_holding_lock,
    reason = "it holds the flusher, a thread of its own, until the ends were looked at"
)]
async fn what_readers_have_seen_they_go_on_seeing_when_written_is_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let storage = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
    let written = PartitionConfig { ack: crate::AckLevel::Written, ..PartitionConfig::default() };
    let partition = storage.open(id(1), written, OpenMode::CreateNew).await.unwrap();
    let gate = storage.shared.gate.lock();
    partition.submit(append("seen")).unwrap().await.unwrap();
    assert_eq!(partition.ends().durable.get(), 1);
    partition.configure(PartitionConfig::default());
    let ticket = partition.submit(append("not seen yet")).unwrap();
    assert_eq!(partition.ends().durable.get(), 1, "an end never goes back");
    assert_eq!(read_values(&partition).await.len(), 1);
    drop(gate);
    ticket.await.unwrap();
    assert_eq!(partition.ends().durable.get(), 2);
    storage.close().await.unwrap();
}

#[tokio::test]
async fn below_the_reserve_topics_are_refused_and_those_of_the_server_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = options(directory.path(), SyncPreference::Auto);
    options.disk_reserve = ByteCount(u64::MAX);
    let storage = LocalStorage::open(options).unwrap();
    let topic = storage.open(id(7), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    let catalog = PartitionId { topic: TopicId::CATALOG, partition: PartitionIndex(0) };
    let catalog = storage.open(catalog, PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    assert!(matches!(topic.submit(append("x")), Err(Backpressure::DiskReserve { .. })));
    catalog.submit(append("x")).unwrap().await.unwrap();
    let offsets = PartitionId { topic: TopicId::CONSUMER_OFFSETS, partition: PartitionIndex(0) };
    let offsets = storage.open(offsets, PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    offsets.submit(append("x")).unwrap().await.unwrap();
    assert!(matches!(storage.health(), Health::DiskReserveReached { .. }));
}

#[tokio::test]
async fn one_sync_covers_many_partitions() {
    let directory = tempfile::tempdir().unwrap();
    let storage = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
    let mut partitions = Vec::new();
    for n in 0..32 {
        partitions
            .push(storage.open(id(100 + n), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap());
    }
    let before = storage.statistics();
    let mut tickets = Vec::new();
    // The first sync ends when all have been submitted.
    let gate = storage.shared.gate.lock();
    for _ in 0..20 {
        for partition in &partitions {
            tickets.push(partition.submit(append("x")).unwrap());
        }
    }
    drop(gate);
    let count = tickets.len() as u64;
    for ticket in tickets {
        ticket.await.unwrap();
    }
    let after = storage.statistics();
    let syncs = after.syncs - before.syncs;
    assert!(syncs * 4 < count, "{syncs} syncs for {count} appends");
    assert!(after.group_partitions > after.groups);
}

/// The witness of the last group becomes durable by itself, so that a later kill needs to believe nothing.
#[tokio::test]
async fn an_idle_store_hands_its_last_group_to_the_witness() {
    let directory = tempfile::tempdir().unwrap();
    let storage = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
    let partition = storage.open(id(5), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    partition.submit(append("x")).unwrap().await.unwrap();
    let began = std::time::Instant::now();
    let path = directory.path().join(WITNESS_FILE);
    loop {
        let known = rimstone_log::inspect::read_witness(&path).unwrap();
        if known.iter().any(|(known, end)| *known == id(5) && end.offset == Offset::new(1).unwrap()) {
            break;
        }
        assert!(began.elapsed().as_secs() < 120, "{known:?}");
        tokio::task::yield_now().await;
    }
}

/// A kill while a topic with a fixed id is made leaves a witness of partitions that nobody knows of; a start takes
/// those away, and the topic can be made all the same. Where records were durable it cannot.
#[tokio::test]
async fn what_was_taken_back_before_its_first_record_can_be_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let opened = || LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
    let create = async |storage: &LocalStorage| {
        storage.open(id(5), PartitionConfig::default(), OpenMode::CreateNew).await
    };
    let storage = opened();
    create(&storage).await.unwrap();
    storage.close().await.unwrap();
    drop(storage);
    let storage = opened();
    storage.delete(id(5).topic).await.unwrap();
    let partition = create(&storage).await.expect("nothing was lost");
    partition.submit(append("x")).unwrap().await.unwrap();
    storage.close().await.unwrap();
    drop((storage, partition));
    let storage = opened();
    storage.delete(id(5).topic).await.unwrap();
    assert!(matches!(create(&storage).await, Err(OpenError::Unusable { .. })));
}

#[tokio::test]
async fn a_clock_is_asked_for_each_segment() {
    let directory = tempfile::tempdir().unwrap();
    let asked = Arc::new(AtomicI64::new(0));
    let mut options = options(directory.path(), SyncPreference::Auto);
    let counter = Arc::clone(&asked);
    options.clock = StoreClock(Arc::new(move || Timestamp(counter.fetch_add(1, AtomicOrdering::Relaxed))));
    let storage = LocalStorage::open(options).unwrap();
    storage.open(id(5), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    assert!(asked.load(AtomicOrdering::Relaxed) >= 2);
}
