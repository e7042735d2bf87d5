//! A disk that refuses calls on one kind of file for a while: what needs them fails by name and did not happen, everything
//! else goes on, nothing half-written is served, and all of it works again when the disk does.

use std::{collections::BTreeMap, time::Duration};

use rimstone_log::recording::{CallKind, Fault, Recorder, Refusal};
use rimstone_record::ProducerStamp;
use rimstone_types::Numbering;

use super::*;
use crate::{Appended, CleanupPolicy, CompactionConfig, OpenError, Share, StoreState};

/// What goes on all the same while calls are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct GoesOn {
    appends: bool,
    trims: bool,
    compaction: bool,
    creation: bool,
}

const ALL: GoesOn = GoesOn { appends: true, trims: true, compaction: true, creation: true };

/// Which calls are refused, and what goes on.
const CASES: [(CallKind, &str, GoesOn); 21] = {
    use CallKind::{Create, MakeDirectory, Rename, Unlink, Write};
    // A cache that is not there is rebuilt.
    let cache = ALL;
    // Before records go, what is known of their producers must be durable.
    let snapshot = GoesOn { trims: false, compaction: false, ..ALL };
    let log_start = GoesOn { trims: false, ..ALL };
    let compacted = GoesOn { compaction: false, ..ALL };
    let segment = GoesOn { appends: false, creation: false, ..ALL };
    [
        (Create, ".idx.tmp", cache),
        (Write, ".idx.tmp", cache),
        (Rename, ".idx.tmp", cache),
        (Create, ".producers.tmp", snapshot),
        (Write, ".producers.tmp", snapshot),
        (Rename, ".producers.tmp", snapshot),
        (Unlink, ".producers", ALL),
        (Write, "witness", ALL),
        (Write, "checkpoints", ALL),
        (Create, "log-start.tmp", log_start),
        (Write, "log-start.tmp", log_start),
        (Rename, "log-start.tmp", log_start),
        (Create, ".log.tmp", compacted),
        (Write, ".log.tmp", compacted),
        (Rename, ".log.tmp", compacted),
        (Unlink, ".log", ALL),
        (Unlink, ".idx", ALL),
        (Create, ".log", segment),
        (Write, ".log", segment),
        (MakeDirectory, "0", GoesOn { creation: false, ..ALL }),
        (MakeDirectory, "-000000000009", GoesOn { creation: false, ..ALL }),
    ]
};
const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn keyed(base: u32, value: String) -> Append {
    let stamp = ProducerStamp {
        id: ProducerId::new(7).unwrap(),
        epoch: ProducerEpoch::ZERO,
        base,
        numbering: Numbering::Dense,
    };
    let mut builder = BatchBuilder::new(Compression::None).producer(stamp);
    let (key, value) = (Some(Bytes::from(format!("key {}", base % 2))), Some(Bytes::from(value)));
    builder.push(&NewRecord { key, value, timestamp: NOW, ..NewRecord::default() }).unwrap();
    Append { batch: builder.build(), expected_end: None, content_hash: None, now: NOW }
}

/// An answer that must come.
async fn told<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("an answer in time")
}

/// Something that comes by itself must come.
async fn until(mut come: impl FnMut() -> bool, what: &str) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !come() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} has not come in time"));
}

/// A partition, and the values that it was asked to take and has taken, at their offsets.
struct Log {
    partition: Arc<dyn PartitionStore>,
    bytes: usize,
    taken: Vec<String>,
    compacts: bool,
}

impl Log {
    /// The next record; `Err`: it did not happen, which is looked after.
    async fn put(&mut self) -> Result<Appended, AppendError> {
        let number = self.taken.len();
        let value = format!("{number} {}", "x".repeat(self.bytes));
        let answer = told(self.partition.submit(keyed(number as u32, value.clone())).unwrap()).await;
        if let Ok(appended) = &answer {
            let at = Offset::new(number as u64).unwrap();
            assert_eq!((appended.offsets, appended.duplicate), (Some((at, at)), false));
            self.taken.push(value);
        }
        answer
    }

    /// What can be read is what was taken, at its offset; in a compacted log at least the last of each key.
    async fn look(&self, what: &str) {
        let ends = self.partition.ends();
        assert_eq!(ends.durable.get(), self.taken.len() as u64, "{what}");
        let (mut from, mut seen) = (ends.start, Vec::new());
        while from < ends.durable {
            let limit = ReadLimit { bytes: ByteCount::kib(8), until: None, visibility: Visibility::Durable };
            let read = told(self.partition.read(from, limit)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
            for read in &read.batches {
                for record in read.batch.records(&rimstone_record::Limits::default()).unwrap() {
                    let record = record.unwrap();
                    if record.offset >= from {
                        let value = record.value.unwrap();
                        assert_eq!(value, self.taken[record.offset.get() as usize].as_bytes(), "{what}");
                        seen.push(record.offset.get());
                    }
                }
            }
            assert!(read.next > from, "{what}: nothing at {from}");
            from = read.next;
        }
        let all: Vec<u64> = (ends.start.get()..ends.durable.get()).collect();
        if self.compacts {
            assert!(seen.ends_with(&all[all.len() - 2..]), "{what}: {seen:?}");
        } else {
            assert_eq!(seen, all, "{what}");
        }
    }

    async fn compact(&self) -> Result<u64, StoreError> {
        let mut removed = 0;
        loop {
            let done = told(self.partition.compact(NOW, ByteCount::mib(1))).await?;
            removed += done.records_removed;
            if !done.more && !done.finished {
                return Ok(removed);
            }
        }
    }
}

/// Where syncs cost nothing, if there is such a place.
fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn configs() -> [(u128, PartitionConfig, usize); 3] {
    let small = PartitionConfig { segment_bytes: ByteCount(4096), ..PartitionConfig::default() };
    let compacted = PartitionConfig {
        cleanup: CleanupPolicy::Compact,
        compaction: CompactionConfig {
            min_dirty_ratio: Share::from_millionths(0).unwrap(),
            ..CompactionConfig::default()
        },
        ..small.clone()
    };
    // Each record of the first begins a segment; the second has a checkpoint every other one.
    [(5, small, 3000), (6, PartitionConfig::default(), 40_000), (7, compacted, 1500)]
}

async fn open_all(storage: &LocalStorage, mode: OpenMode, taken: &[Vec<String>]) -> Vec<Log> {
    let mut logs = Vec::new();
    for (number, (topic, config, bytes)) in configs().into_iter().enumerate() {
        let partition = storage.open(id(topic), config, mode).await.unwrap();
        let taken = taken.get(number).cloned().unwrap_or_default();
        logs.push(Log { partition, bytes, taken, compacts: topic == 7 });
    }
    logs
}

/// Everything that a store is asked for, while some calls are refused.
async fn under(
    storage: &LocalStorage,
    logs: &mut [Log],
    (kind, goes_on): (CallKind, GoesOn),
    full: bool,
    what: &str,
) {
    let names_it = |error: &StoreError| match error {
        StoreError::Full { .. } => full,
        StoreError::Io { .. } => !full,
        _ => false,
    };
    let mut refused = 0;
    for log in &mut *logs {
        for _ in 0..4 {
            match log.put().await {
                Ok(_) => {}
                Err(AppendError::DidNotHappen { disk_full, .. }) => {
                    assert_eq!(disk_full, full, "{what}");
                    refused += 1;
                }
                Err(other) => panic!("{what}: {other}"),
            }
            log.look(what).await;
        }
    }
    assert_eq!(refused == 0, goes_on.appends, "{what}: {refused} appends were refused");
    let start = logs[0].partition.ends().start;
    match told(logs[0].partition.trim(Offset::new(2).unwrap())).await {
        Ok(start) => assert!(goes_on.trims && start.get() == 2, "{what}"),
        Err(error) => {
            assert!(!goes_on.trims && names_it(&error), "{what}: {error}");
            assert_eq!(logs[0].partition.ends().start, start, "{what}");
        }
    }
    match logs[2].compact().await {
        Ok(_) => assert!(goes_on.compaction, "{what}: compaction went on"),
        Err(error) => assert!(!goes_on.compaction && names_it(&error), "{what}: {error}"),
    }
    match storage.open(id(9), PartitionConfig::default(), OpenMode::CreateNew).await {
        Ok(_) => assert!(goes_on.creation, "{what}: a partition was made"),
        Err(OpenError::Store(error)) => assert!(!goes_on.creation && names_it(&error), "{what}: {error}"),
        Err(other) => panic!("{what}: {other}"),
    }
    // Whoever asked for it takes it back. It is gone by name; what is left in the trash goes with the next start.
    match told(storage.delete(id(9).topic)).await {
        Ok(()) => {}
        Err(error) => assert!(kind == CallKind::Unlink && names_it(&error), "{what}: {error}"),
    }
    assert!(!storage.shared.directory.partition_path(id(9)).exists(), "{what}");
    for log in &*logs {
        log.look(what).await;
        assert_eq!(log.partition.info().state, StoreState::Serving, "{what}");
    }
    assert!(matches!(storage.health(), Health::Healthy), "{what}: {:?}", storage.health());
}

#[tokio::test]
async fn calls_that_the_disk_refuses_cost_what_needs_them_and_no_more() {
    for (number, (kind, name_ends, goes_on)) in CASES.into_iter().enumerate() {
        for full in [true, false] {
            // Each way to sync and to stop beside each error, over two cases.
            let (sync, clean, short) = match (number + usize::from(full)) % 2 {
                0 => (SyncPreference::Syncfs, true, 0),
                _ => (SyncPreference::Fdatasync, false, 100),
            };
            let error = if full { rustix::io::Errno::NOSPC } else { rustix::io::Errno::IO };
            let what = format!("{kind:?} of *{name_ends}, {error}, {sync:?}, clean: {clean}");
            let directory = in_memory();
            let recorder = Recorder::install(directory.path()).unwrap();
            let storage = LocalStorage::open(options(directory.path(), sync)).unwrap();
            let mut logs = open_all(&storage, OpenMode::CreateNew, &[]).await;
            for log in &mut logs {
                for _ in 0..4 {
                    log.put().await.unwrap();
                }
            }
            recorder.refuse(Refusal { kind, name_ends, short, error: error.raw_os_error() });
            under(&storage, &mut logs, (kind, goes_on), full, &what).await;
            // What nobody asks for comes when the store is idle, if it has not come yet: the witness.
            until(|| recorder.fired() > 0, &format!("{what}: a refused call")).await;
            recorder.clear_faults();

            // The disk is well again, and nobody does anything about it.
            for log in &mut logs {
                for _ in 0..3 {
                    log.put().await.unwrap_or_else(|error| panic!("{what}: {error}"));
                }
                log.look(&what).await;
            }
            assert_eq!(told(logs[0].partition.trim(Offset::new(3).unwrap())).await.unwrap().get(), 3);
            logs[2].compact().await.unwrap_or_else(|error| panic!("{what}: {error}"));
            told(storage.open(id(9), PartitionConfig::default(), OpenMode::CreateNew)).await.unwrap();
            let taken: Vec<_> = logs.iter().map(|log| log.taken.clone()).collect();
            drop(logs);
            if clean {
                told(storage.close()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            drop(storage);
            all_is_there(directory.path(), sync, Some(clean), &taken, &what).await;
        }
    }
}

/// Whichever call of a stop or of a start is refused, it says so or goes on without; the next start has everything.
#[tokio::test]
async fn a_stop_or_a_start_of_which_any_call_is_refused_loses_nothing() {
    use CallKind::{Create, MakeDirectory, Rename, Truncate, Unlink, Write};
    for at_start in [true, false] {
        let mut refused = BTreeMap::new();
        for kind in [Create, Write, Rename, Truncate, Unlink, MakeDirectory] {
            let mut after = 0;
            while refuse_one(kind, after, at_start).await {
                after += 1;
            }
            refused.insert(format!("{kind:?}"), after);
        }
        println!("at a start: {at_start}, {refused:?}");
        // A stop cuts nothing; what it removes are snapshots.
        let least = |kind: &str, at_least| assert!(refused[kind] >= at_least, "{kind}: {refused:?}");
        least("Create", 3);
        least("Write", 5);
        least("Rename", if at_start { 1 } else { 3 });
        least("Truncate", if at_start { 2 } else { 0 });
        least("Unlink", if at_start { 1 } else { 0 });
    }
}

/// The call of a kind behind so many others is refused. `false`: it never came.
async fn refuse_one(kind: CallKind, after: usize, at_start: bool) -> bool {
    let full = after.is_multiple_of(2);
    let error = if full { rustix::io::Errno::NOSPC } else { rustix::io::Errno::IO };
    let sync = if full { SyncPreference::Syncfs } else { SyncPreference::Fdatasync };
    let what = format!("{kind:?} {after}, {error}, at a start: {at_start}");
    let directory = in_memory();
    let storage = LocalStorage::open(options(directory.path(), sync)).unwrap();
    let mut logs = open_all(&storage, OpenMode::CreateNew, &[]).await;
    for log in &mut logs {
        for _ in 0..4 {
            log.put().await.unwrap();
        }
    }
    let taken: Vec<_> = logs.iter().map(|log| log.taken.clone()).collect();
    drop(logs);
    let fault = Fault { kind, after, short: 7, error: error.raw_os_error() };
    let (went_well, fired) = if at_start {
        let path = storage.shared.directory.partition_path(id(5)).join(format!("{:020}.log", 3));
        drop(storage);
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend_from_slice(&[7; 100]);
        std::fs::write(&path, &torn).unwrap();
        // Without it, and so without anything that attests the last group, there is more to write.
        std::fs::remove_file(directory.path().join(WITNESS_FILE)).unwrap();
        // As a kill leaves it while a file is replaced.
        std::fs::write(path.with_file_name("log-start.tmp"), "half").unwrap();
        let recorder = Recorder::install(directory.path()).unwrap();
        recorder.fail(fault);
        (start(directory.path(), sync).await, recorder.clear_faults())
    } else {
        let recorder = Recorder::install(directory.path()).unwrap();
        recorder.fail(fault);
        let closed = told(storage.close()).await;
        (closed.map_err(|error| error.to_string()), recorder.clear_faults())
    };
    if let Err(error) = &went_well {
        let named = error.contains("os error") || error.contains("no space left");
        assert!(fired > 0 && named, "{what}: {error}");
    }
    let clean = if at_start { None } else { Some(went_well.is_ok()) };
    all_is_there(directory.path(), sync, clean, &taken, &what).await;
    fired > 0
}

/// Opens everything, and answers what went wrong first.
async fn start(directory: &Path, sync: SyncPreference) -> Result<(), String> {
    let storage = LocalStorage::open(options(directory, sync)).map_err(|error| error.to_string())?;
    for (topic, config, _) in configs() {
        storage.open(id(topic), config, OpenMode::MustExist).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// What was taken is there at the next start, and it goes on.
async fn all_is_there(
    directory: &Path,
    sync: SyncPreference,
    clean: Option<bool>,
    taken: &[Vec<String>],
    what: &str,
) {
    let storage = LocalStorage::open(options(directory, sync)).unwrap();
    if let Some(clean) = clean {
        assert_eq!(storage.was_clean(), clean, "{what}");
    }
    for log in &mut open_all(&storage, OpenMode::MustExist, taken).await {
        log.look(what).await;
        // Its producer is known, and the next number is the next one.
        log.put().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let again = keyed(log.taken.len() as u32 - 1, log.taken.last().unwrap().clone());
        let answer = told(log.partition.submit(again).unwrap()).await.unwrap();
        assert!(answer.duplicate, "{what}");
        log.look(what).await;
    }
}
