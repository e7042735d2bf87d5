//! What fails, and what must go on all the same.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use rimstone_log::recording::{CallKind, Fault, Recorder};
use rimstone_record::ProducerStamp;
use rimstone_types::Numbering;

use super::*;

const PRODUCER: u64 = 7;

fn open(directory: &Path, sync: SyncPreference) -> Arc<LocalStorage> {
    LocalStorage::open(options(directory, sync)).unwrap()
}

/// Segments that each large value begins anew.
fn small() -> PartitionConfig {
    PartitionConfig { segment_bytes: ByteCount(4096), ..PartitionConfig::default() }
}

fn large(value: &str) -> String {
    value.repeat(3000)
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
        assert!(began.elapsed() < Duration::from_secs(120), "{what}");
        std::thread::yield_now();
    }
}

/// An answer that must come.
async fn told<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(120), future).await.expect("an answer in time")
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

/// Without a sync for all: a new segment's name is to be made durable, and its directory is gone by then.
#[tokio::test]
async fn a_topic_that_is_deleted_under_a_sync_fails_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let storage = open(directory.path(), SyncPreference::Fdatasync);
    let partition = storage.open(id(5), small(), OpenMode::CreateNew).await.unwrap();
    let other = storage.open(id(6), small(), OpenMode::CreateNew).await.unwrap();
    told(partition.submit(append(&large("a"))).unwrap()).await.unwrap();
    let gate = storage.shared.gate.lock();
    let lost = partition.submit(append(&large("b"))).unwrap();
    until("it is written", || partition.ends().written == offset(2));
    let kept = other.submit(append("x")).unwrap();
    let mut deleted = futures::future::maybe_done(storage.delete(id(5).topic));
    // Begun, and waited for below.
    let _ = poll(&mut deleted);
    let path = storage.shared.directory.partition_path(id(5));
    until("its directory is gone", || !path.exists());
    drop(gate);
    told(&mut deleted).await;
    Pin::new(&mut deleted).take_output().expect("it is told once").unwrap();
    assert!(matches!(told(lost).await, Err(AppendError::Unknown { .. })));
    told(kept).await.unwrap();
    assert!(matches!(storage.health(), Health::Healthy), "{:?}", storage.health());
    told(storage.close()).await.unwrap();
}

/// Answers are told in order, but a duplicate rests on its original and not on what was staged before it.
#[tokio::test]
async fn a_duplicate_does_not_share_the_fate_of_a_failed_write_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let storage = open(directory.path(), SyncPreference::Auto);
    let partition = storage.open(id(5), small(), OpenMode::CreateNew).await.unwrap();
    told(partition.submit(append(&large("a"))).unwrap()).await.unwrap();
    let gate = storage.shared.gate.lock();
    let original = partition.submit(numbered(0, "b")).unwrap();
    until("the original is written", || partition.ends().written == offset(2));
    obstacle(&storage, &format!("{:020}.log", 2));
    let failed = partition.submit(append(&large("c"))).unwrap();
    let duplicate = partition.submit(numbered(0, "b")).unwrap();
    let gap = partition.submit(numbered(7, "b")).unwrap();
    drop(gate);
    assert_eq!(told(original).await.unwrap().offsets, Some((offset(1), offset(1))));
    assert!(matches!(told(failed).await, Err(AppendError::DidNotHappen { .. })));
    let answer = told(duplicate).await.expect("its original is stored");
    assert_eq!((answer.offsets, answer.duplicate), (Some((offset(1), offset(1))), true));
    // This one cites the end that was rolled back.
    assert!(matches!(told(gap).await, Err(AppendError::DidNotHappen { .. })));
}

/// Whoever waits is told, also where nothing is undurable.
#[tokio::test]
async fn a_flusher_that_dies_leaves_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let storage = open(directory.path(), SyncPreference::Auto);
    let idle = storage.open(id(5), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    let busy = storage.open(id(6), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    told(idle.submit(append("before")).unwrap()).await.unwrap();
    let gate = storage.shared.gate.lock();
    let undurable = busy.submit(append("x")).unwrap();
    until("it is written", || busy.ends().written == offset(1));
    let mut barrier = idle.close();
    assert!(poll(&mut barrier).is_pending());
    let shared = Arc::clone(&storage.shared);
    let died = std::thread::spawn(move || {
        let _last_words = flush::LastWords(shared);
        panic!("on purpose");
    });
    died.join().unwrap_err();
    drop(gate);
    assert!(matches!(told(undurable).await, Err(AppendError::Unknown { .. })));
    assert!(matches!(told(barrier).await, Err(StoreError::ShuttingDown)));
    for partition in [&idle, &busy] {
        assert!(matches!(partition.submit(append("after")), Err(Backpressure::Closed)));
        told(partition.close()).await.unwrap_err();
    }
    assert_eq!(read_values(&idle).await, ["before"], "reads go on");
    assert!(matches!(storage.health(), Health::Poisoned { .. }));
}

/// A batch that was taken is told of, however closely the stop follows it; and a stop of a sound store is clean.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_comes_with_appends_is_clean_and_answers_all_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut taken = 0;
    for round in 0..100 {
        let storage = open(directory.path(), SyncPreference::Auto);
        assert_eq!(storage.was_clean(), round > 0, "round {round}");
        let mode = if round == 0 { OpenMode::CreateNew } else { OpenMode::MustExist };
        let partition = storage.open(id(5), PartitionConfig::default(), mode).await.unwrap();
        assert_eq!(partition.ends().durable, offset(taken));
        let writer = std::thread::spawn(move || {
            let mut tickets = Vec::new();
            // Bounded: a machine that is slow to stop must not fill its disk.
            while tickets.len() < 5_000
                && let Ok(ticket) = partition.submit(append("x"))
            {
                tickets.push(ticket);
            }
            tickets
        });
        for _ in 0..round * 14 {
            std::thread::yield_now();
        }
        told(storage.close()).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        for ticket in writer.join().unwrap() {
            told(ticket).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
            taken += 1;
        }
    }
}

/// Whatever a stop meets, nobody waits for a flusher that is gone.
#[tokio::test]
async fn a_stop_that_fails_closes_every_partition() {
    let directory = tempfile::tempdir().unwrap();
    let storage = open(directory.path(), SyncPreference::Auto);
    let partition = storage.open(id(5), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    let other = storage.open(id(6), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    obstacle(&storage, &format!("{:020}.producers.tmp", 0));
    assert!(matches!(told(storage.close()).await, Err(StoreError::Io { .. })));
    for partition in [&partition, &other] {
        assert_eq!(partition.info().state, crate::StoreState::Closed);
        assert!(matches!(told(partition.close()).await, Err(StoreError::ShuttingDown)));
    }
    drop(storage);
    assert!(!open(directory.path(), SyncPreference::Auto).was_clean());
}

/// A kill after log start was made durable and before the files were unlinked.
#[tokio::test]
async fn segments_that_a_kill_left_below_log_start_are_deleted_later() {
    let directory = tempfile::tempdir().unwrap();
    let config = || PartitionConfig { retention_age: None, ..small() };
    for by_trim in [true, false] {
        let storage = open(directory.path(), SyncPreference::Auto);
        let topic = if by_trim { 5 } else { 6 };
        let partition = storage.open(id(topic), config(), OpenMode::CreateNew).await.unwrap();
        for n in 0..5 {
            told(partition.submit(append(&large(&n.to_string()))).unwrap()).await.unwrap();
        }
        let path = storage.shared.directory.partition_path(id(topic));
        drop((partition, storage));
        rimstone_log::write_log_start(&path, offset(3)).unwrap();

        let storage = open(directory.path(), SyncPreference::Auto);
        let partition = storage.open(id(topic), config(), OpenMode::MustExist).await.unwrap();
        assert_eq!((partition.ends().start, partition.info().segments), (offset(3), 5));
        if by_trim {
            assert_eq!(told(partition.trim(offset(1))).await.unwrap(), offset(3));
        } else {
            told(partition.maintain(Timestamp(1_700_000_000_000))).await.unwrap();
        }
        assert_eq!((partition.ends().start, partition.info().segments), (offset(3), 2), "{by_trim}");
        assert_eq!(read_values(&partition).await.len(), 2);
    }
}

/// An empty directory is what a kill leaves of a partition that was being made, unless something knows better.
#[tokio::test]
async fn a_partition_that_lost_its_only_file_is_not_taken_for_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let storage = open(directory.path(), SyncPreference::Auto);
    storage.shared.directory.create_partition(id(4)).unwrap();
    storage.open(id(4), PartitionConfig::default(), OpenMode::CreateNew).await.expect("it never was one");
    let partition = storage.open(id(5), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    for _ in 0..3 {
        told(partition.submit(append("x")).unwrap()).await.unwrap();
    }
    let path = storage.shared.directory.partition_path(id(5));
    drop((partition, storage));
    std::fs::remove_file(path.join(format!("{:020}.log", 0))).unwrap();
    let storage = open(directory.path(), SyncPreference::Auto);
    for mode in [OpenMode::CreateNew, OpenMode::MustExist] {
        let refused = storage.open(id(5), PartitionConfig::default(), mode).await.unwrap_err();
        assert!(matches!(refused, OpenError::Unusable { .. }), "{refused}");
    }
    assert!(std::fs::read_dir(&path).unwrap().next().is_none(), "it is left as it is");
}

#[tokio::test]
async fn what_a_start_costs_is_summed_up() {
    let directory = tempfile::tempdir().unwrap();
    let config = PartitionConfig::default;
    let storage = open(directory.path(), SyncPreference::Auto);
    for n in 0..3 {
        let partition = storage.open(id(n), config(), OpenMode::CreateNew).await.unwrap();
        told(partition.submit(append("x")).unwrap()).await.unwrap();
    }
    assert_eq!(storage.recovery(), None, "it is new");
    let path = storage.shared.directory.partition_path(id(1)).join(format!("{:020}.log", 0));
    drop(storage);
    let mut torn = std::fs::read(&path).unwrap();
    torn.extend_from_slice(&[7; 100]);
    std::fs::write(&path, &torn).unwrap();

    let storage = open(directory.path(), SyncPreference::Auto);
    assert_eq!(storage.recovery(), None, "nothing is open yet");
    for n in 0..3 {
        storage.open(id(n), config(), OpenMode::MustExist).await.unwrap();
    }
    let sum = storage.recovery().unwrap();
    assert_eq!((sum.partitions, sum.torn_partitions, sum.torn_bytes), (3, 1, 100), "{sum:?}");
    assert!(sum.scanned_bytes > 300 && sum.damaged_ranges == 0, "{sum:?}");
    assert_eq!(sum.directory, storage.directory());
    told(storage.close()).await.unwrap();
    drop(storage);
    let storage = open(directory.path(), SyncPreference::Auto);
    storage.open(id(0), config(), OpenMode::MustExist).await.unwrap();
    let sum = storage.recovery().unwrap();
    assert!(sum.was_clean && sum.from_caches == 1 && sum.scanned_bytes == 0, "{sum:?}");
    assert!(sum.read_bytes > 100, "{sum:?}");
}

/// A write that failed is undone durably: a sync that fails in the middle of that is a failed sync like any other.
#[tokio::test]
async fn an_undo_whose_sync_fails_poisons_everything_undurable() {
    let directory = tempfile::tempdir().unwrap();
    let recorder = Recorder::install(directory.path()).unwrap();
    let storage = LocalStorage::open_stepped(options(directory.path(), SyncPreference::Fdatasync)).unwrap();
    let mut partitions = Vec::new();
    for number in 5..8 {
        let config = PartitionConfig::default();
        partitions.push(storage.open(id(number), config, OpenMode::CreateNew).await.unwrap());
    }
    let mut tickets: Vec<_> =
        partitions[..2].iter().map(|partition| partition.submit(append("x")).unwrap()).collect();
    let error = rustix::io::Errno::IO.raw_os_error();
    for kind in [CallKind::Write, CallKind::Sync] {
        recorder.fail(Fault { kind, after: 0, short: 0, error });
    }
    while storage.step(Instant::now()) {}
    assert_eq!(recorder.clear_faults(), 2);
    for ticket in &mut tickets {
        let answer = poll(ticket);
        assert!(matches!(answer, Poll::Ready(Err(AppendError::Unknown { .. }))), "{answer:?}");
    }
    assert!(matches!(storage.health(), Health::Poisoned { .. }));
    // One that had nothing to lose goes on.
    let mut fresh = partitions[2].submit(append("y")).unwrap();
    while storage.step(Instant::now()) {}
    assert!(matches!(poll(&mut fresh), Poll::Ready(Ok(_))));
}
