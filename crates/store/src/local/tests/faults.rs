//! What fails, and what must go on all the same.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use rimstone_record::ProducerStamp;
use rimstone_types::Numbering;

use super::*;

const PRODUCER: u64 = 7;

fn open(directory: &Path, sync: SyncPreference) -> Arc<LocalStorage> {
    LocalStorage::open(options(directory, sync)).unwrap()
}

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

fn numbered(base: u32, value: &str) -> Append {
    let stamp = ProducerStamp {
        id: ProducerId::new(PRODUCER).unwrap(),
        epoch: ProducerEpoch::ZERO,
        base,
        numbering: Numbering::Dense,
    };
    let mut builder = BatchBuilder::new(Compression::None).producer(stamp);
    let value = Some(Bytes::from(value.to_owned()));
    builder.push(&NewRecord { value, ..NewRecord::default() }).unwrap();
    Append { batch: builder.build(), ..append("") }
}

/// One look, without waiting.
fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Waits for a condition that another thread brings about.
fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::yield_now();
    }
}

/// An answer that must come.
async fn told<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("an answer in time")
}

/// A place where no file can be made.
fn obstacle(storage: &LocalStorage, name: &str) -> std::path::PathBuf {
    let path = storage.shared.directory.partition_path(id(5)).join(name);
    std::fs::create_dir(&path).unwrap();
    path
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_written_fails_only_what_waits_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let storage = open(directory.path(), SyncPreference::Auto);
    let partition = storage.open(id(5), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    told(partition.submit(numbered(0, "first")).unwrap()).await.unwrap();
    let obstacle = obstacle(&storage, &format!("{:020}.producers.tmp", 2));

    // The snapshot and the third record go out in one plan.
    let gate = storage.shared.gate.lock();
    let second = partition.submit(append("second")).unwrap();
    until("the second is written", || partition.ends().written == offset(2));
    let mut forgotten = partition.forget_producer(ProducerId::new(PRODUCER).unwrap());
    assert!(poll(&mut forgotten).is_pending());
    let third = partition.submit(append("third")).unwrap();
    drop(gate);
    assert!(matches!(told(forgotten).await, Err(StoreError::Io { .. })));
    told(second).await.unwrap();
    told(third).await.expect("the log is whole, and its sync covers it");
    assert_eq!(partition.info().state, crate::StoreState::Serving);

    // Nothing is deleted before a snapshot is there.
    std::fs::rename(&obstacle, obstacle.with_file_name(format!("{:020}.producers.tmp", 3))).unwrap();
    told(partition.trim(offset(1))).await.unwrap_err();
    assert_eq!(partition.ends().start, offset(0));
    std::fs::remove_dir(obstacle.with_file_name(format!("{:020}.producers.tmp", 3))).unwrap();
    assert_eq!(told(partition.trim(offset(1))).await.unwrap(), offset(1));
    assert!(matches!(storage.health(), Health::Healthy));
    told(storage.close()).await.unwrap();
}

/// After a failed sync, what a witness says of a partition must not count what is in doubt.
#[tokio::test]
async fn a_partition_that_was_given_up_tells_the_witness_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let storage = open(directory.path(), SyncPreference::Auto);
    let partition = storage.open(id(5), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    let other = storage.open(id(6), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    let gate = storage.shared.gate.lock();
    let doubtful = partition.submit(append("doubtful")).unwrap();
    until("it is written", || partition.ends().written == offset(1));
    storage.shared.device_failed("made up");
    drop(gate);
    assert!(matches!(told(doubtful).await, Err(AppendError::Unknown { .. })));
    // The witness of this group is written with the one after it.
    for n in 1..=2 {
        told(other.submit(append("x")).unwrap()).await.unwrap();
        assert_eq!(other.ends().durable, offset(n));
    }
    drop(storage);
    let known = rimstone_log::inspect::read_witness(&directory.path().join(WITNESS_FILE)).unwrap();
    let end = |wanted| known.iter().find(|(known, _)| *known == wanted).map(|(_, end)| end.offset);
    assert!(end(id(6)).is_some());
    assert_ne!(end(id(5)), Some(offset(1)));
}
