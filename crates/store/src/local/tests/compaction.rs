//! Compaction beside everything else that happens to a partition, and what it makes of damage.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
    task::Poll,
    time::Instant,
};

use rimstone_log::recording::{CallKind, Fault, Recorder};

use super::*;
use crate::{CleanupPolicy, Compacted, CompactionConfig, ReadError, Share, StoreError};

const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn compacted() -> PartitionConfig {
    PartitionConfig {
        segment_bytes: ByteCount(4096),
        cleanup: CleanupPolicy::Compact,
        compaction: CompactionConfig {
            min_dirty_ratio: Share::from_millionths(0).unwrap(),
            ..CompactionConfig::default()
        },
        ..PartitionConfig::default()
    }
}

fn keyed(key: &str, value: &str) -> Append {
    let mut builder = BatchBuilder::new(Compression::None);
    let (key, value) = (Some(Bytes::from(key.to_owned())), Some(Bytes::from(value.to_owned())));
    builder.push(&NewRecord { key, value, ..NewRecord::default() }).unwrap();
    Append { batch: builder.build(), expected_end: None, content_hash: None, now: NOW }
}

/// The last value of each key, and how many records there are; `None` if the log start overtook the reader.
async fn state(partition: &Arc<dyn PartitionStore>) -> Option<(BTreeMap<Bytes, Bytes>, usize)> {
    let (mut state, mut count) = (BTreeMap::new(), 0);
    let mut from = partition.ends().start;
    let start = from;
    loop {
        let limit = ReadLimit { bytes: ByteCount::kib(3), until: None, visibility: Visibility::Stable };
        let read = match partition.read(from, limit).await {
            Err(ReadError::OutOfRange { .. }) if partition.ends().start > start => return None,
            read => read.unwrap(),
        };
        if read.batches.is_empty() {
            return Some((state, count));
        }
        for read in &read.batches {
            for record in read.batch.records(&rimstone_record::Limits::default()).unwrap() {
                let record = record.unwrap();
                if record.offset >= start {
                    state.insert(record.key.unwrap(), record.value.unwrap());
                    count += 1;
                }
            }
        }
        from = read.next;
    }
}

/// Writers, readers, trims, maintenance and slices at once, some slices given up by their caller; then a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_stands_beside_everything_else() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..3u32 {
        let storage = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
        let mode = if round == 0 { OpenMode::CreateNew } else { OpenMode::MustExist };
        let partition = storage.open(id(1), compacted(), mode).await.unwrap();
        let (done, is_done) = tokio::sync::watch::channel(false);
        let removed = Arc::new(AtomicU64::new(0));
        let compacting = {
            let (partition, is_done) = (Arc::clone(&partition), is_done.clone());
            let removed = Arc::clone(&removed);
            tokio::spawn(async move {
                let mut calls = 0u32;
                while !*is_done.borrow() {
                    calls += 1;
                    let slice = partition.compact(NOW, ByteCount(1));
                    if calls.is_multiple_of(5) {
                        // Its caller does not wait for it.
                        drop(tokio::time::timeout(std::time::Duration::ZERO, slice).await);
                        continue;
                    }
                    removed.fetch_add(slice.await.unwrap().records_removed, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        };
        let reading = {
            let (partition, is_done) = (Arc::clone(&partition), is_done);
            tokio::spawn(async move {
                while !*is_done.borrow() {
                    let ends = partition.ends();
                    let counted = partition.count(ends.start, ends.stable).await.unwrap();
                    assert!(counted.records <= ends.stable.since(ends.start));
                    state(&partition).await;
                    partition.append_time_at(ends.start).await.unwrap();
                    tokio::task::yield_now().await;
                }
            })
        };
        let mut expected = BTreeMap::new();
        let began = std::time::Instant::now();
        // At least so many, and until something was compacted meanwhile.
        for n in 0u32.. {
            if n >= 400 && removed.load(Ordering::Relaxed) > 0 {
                break;
            }
            assert!(began.elapsed().as_secs() < 120, "nothing was compacted");
            let (key, value) = (format!("key {}", n % 9), format!("{round} {n} {}", "x".repeat(300)));
            partition.submit(keyed(&key, &value)).unwrap().await.unwrap();
            expected.insert(Bytes::from(key), Bytes::from(value));
            if n % 100 == 50 {
                let end = partition.ends().stable.get();
                partition.trim(Offset::new(end - 40).unwrap()).await.unwrap();
                partition.maintain(NOW).await.unwrap();
            }
        }
        done.send_replace(true);
        compacting.await.unwrap();
        reading.await.unwrap();
        assert_eq!(state(&partition).await.unwrap().0, expected);
        loop {
            let done = partition.compact(NOW, ByteCount::mib(1)).await.unwrap();
            if !done.more && !done.finished {
                break;
            }
        }
        let (found, count) = state(&partition).await.unwrap();
        assert_eq!(found, expected);
        assert!(count < 30, "{count} records are left");
        if round == 1 {
            storage.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn damage_is_named_and_what_lies_beside_it_is_compacted() {
    let directory = tempfile::tempdir().unwrap();
    let storage = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
    let partition = storage.open(id(1), compacted(), OpenMode::CreateNew).await.unwrap();
    for n in 0..60 {
        partition.submit(keyed("same", &format!("{n} {}", "x".repeat(300)))).unwrap().await.unwrap();
    }
    let folder = storage.shared.directory.partition_path(id(1));
    let mut segments: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "log"))
        .collect();
    segments.sort();
    assert!(segments.len() > 4);
    let rotten = &segments[2];
    let mut content = std::fs::read(rotten).unwrap();
    let at = content.len() / 2;
    content[at] ^= 1;
    std::fs::write(rotten, &content).unwrap();

    let error = partition.compact(NOW, ByteCount::mib(1)).await.unwrap_err();
    assert!(error.to_string().contains("cannot be compacted"), "{error}");
    let mut all = Compacted::default();
    loop {
        let done = partition.compact(NOW, ByteCount::mib(1)).await.unwrap();
        all.segments_before += done.segments_before;
        all.records_removed += done.records_removed;
        if !done.more {
            break;
        }
    }
    assert_eq!(
        all.segments_before as usize,
        segments.len() - 2,
        "all but this one and the active one: {all:?}"
    );
    assert!(all.records_removed > 0);
    assert_eq!(std::fs::read(rotten).unwrap(), content, "what is damaged stays as it is");
    // It is named wherever somebody looks, and told of once.
    let base = rotten.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let info = partition.info();
    let found: Vec<_> = info.obstacles.iter().map(|obstacle| obstacle.segment.get()).collect();
    assert_eq!(found, [base], "{info:?}");
    assert!(matches!(info.obstacles[0].reason, crate::ObstacleReason::Damaged(_)), "{info:?}");
    assert_eq!(info.dirtiness.unwrap().dirty_bytes, 0);
    let local = Arc::clone(&storage.shared.all()[0]);
    assert_eq!(local.obstacles_found_again(), 0);
    // Once it is deleted it is in nobody's way.
    partition.trim(partition.ends().durable).await.unwrap();
    partition.dirtiness(NOW).await.unwrap();
    assert_eq!(partition.info().obstacles, []);
    // Everything else is served and taken.
    partition.submit(keyed("same", "after")).unwrap().await.unwrap();
}

#[tokio::test]
async fn a_partition_that_is_given_up_holds_no_pass() {
    let directory = tempfile::tempdir().unwrap();
    let storage = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
    let partition = storage.open(id(1), compacted(), OpenMode::CreateNew).await.unwrap();
    for n in 0..60 {
        partition.submit(keyed("same", &format!("{n} {}", "x".repeat(300)))).unwrap().await.unwrap();
    }
    assert!(partition.compact(NOW, ByteCount(1)).await.unwrap().more);
    let local = Arc::clone(&storage.shared.all()[0]);
    assert!(local.has_pass());
    local.poison("a sync failed");
    let refused = partition.compact(NOW, ByteCount(1)).await;
    assert!(matches!(refused, Err(StoreError::Poisoned { .. })), "{refused:?}");
    assert!(!local.has_pass());
}

/// What is free on the device is told by the test. A pass takes no more than half of the reserve: not for the largest
/// group that it would write, not when the device fills before a later group, and not while it writes.
#[tokio::test]
async fn a_pass_leaves_half_of_the_reserve_to_commits() {
    const RESERVE: u64 = 1 << 30;
    let directory = tempfile::tempdir().unwrap();
    let options =
        LocalOptions { disk_reserve: ByteCount(RESERVE), ..options(directory.path(), SyncPreference::Auto) };
    let storage = LocalStorage::open(options).unwrap();
    let guard = &storage.shared.guard;
    guard.pretend(RESERVE * 2);
    let partition = storage.open(id(1), compacted(), OpenMode::CreateNew).await.unwrap();
    let tickets: Vec<_> = (0..3000)
        .map(|n| (format!("key {}", n % 900), format!("{n} {}", "x".repeat(300))))
        .map(|(key, value)| partition.submit(keyed(&key, &value)).unwrap())
        .collect();
    for ticket in tickets {
        ticket.await.unwrap();
    }
    // Some of the neighbours together become one.
    let merged = 600 << 10;
    partition.configure(PartitionConfig { segment_bytes: ByteCount(merged), ..compacted() });
    let (before, segments) = (state(&partition).await.unwrap(), partition.info().segments);
    let folder = storage.shared.directory.partition_path(id(1));
    let unfinished = || {
        let mut names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
        names.any(|name| name.to_string_lossy().ends_with(".log.tmp"))
    };
    let local = Arc::clone(&storage.shared.all()[0]);
    let refused = async || {
        let refused = partition.compact(NOW, ByteCount(1)).await;
        assert!(matches!(refused, Err(StoreError::Full { .. })), "{refused:?}");
        assert!(!local.has_pass() && !unfinished());
    };

    // For any segment as it is there is room, but not for a group.
    guard.pretend(RESERVE / 2 + 8192);
    refused().await;
    // It was begun with room; then the device fills before the second group, and then while that one is written.
    for (writing, done) in [(false, 1), (true, 0)] {
        guard.pretend(RESERVE);
        let segments = partition.info().segments;
        let mut replaced = 0;
        while replaced < done || unfinished() != writing {
            let slice = partition.compact(NOW, ByteCount(1)).await.unwrap();
            assert!(slice.more, "{slice:?}");
            replaced += slice.segments_after;
        }
        guard.pretend(RESERVE / 2 + 8192);
        refused().await;
        assert_eq!(partition.info().segments < segments, done > 0, "what was done stays");
        assert_eq!(state(&partition).await.unwrap().0, before.0);
    }
    guard.pretend(RESERVE);
    loop {
        let slice = partition.compact(NOW, ByteCount::mib(1)).await.unwrap();
        if !slice.more && !slice.finished {
            break;
        }
    }
    let (found, count) = state(&partition).await.unwrap();
    assert_eq!(found, before.0);
    assert!(count < before.1 / 2 && partition.info().segments < segments / 3, "{count}");
}

/// Between what a pass writes and its own sync a sync of everything fails, for somebody else: what the pass has written may
/// be lost then, and its own sync does not say so.
#[tokio::test]
async fn a_pass_beside_a_failed_sync_replaces_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let recorder = Recorder::install(directory.path()).unwrap();
    let storage = LocalStorage::open_stepped(options(directory.path(), SyncPreference::Syncfs)).unwrap();
    let partition = stepped(&storage, storage.open(id(1), compacted(), OpenMode::CreateNew)).await.unwrap();
    let other = stepped(&storage, storage.open(id(2), compacted(), OpenMode::CreateNew)).await.unwrap();
    for n in 0..60 {
        let ticket = partition.submit(keyed("same", &format!("{n} {}", "x".repeat(300)))).unwrap();
        stepped(&storage, ticket).await.unwrap();
    }
    let folder = storage.shared.directory.partition_path(id(1));
    let local = storage.shared.all().into_iter().find(|local| local.id == id(1)).unwrap();
    let files = || {
        let paths = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let logs = paths.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.map(|path| (std::fs::read(&path).unwrap(), path)).collect::<BTreeSet<_>>()
    };
    let before = files();
    assert!(stepped(&storage, partition.compact(NOW, ByteCount(1))).await.unwrap().more);
    assert!(local.has_pass());
    let mut ticket = other.submit(keyed("a", "b")).unwrap();
    let error = rustix::io::Errno::IO.raw_os_error();
    recorder.fail(Fault { kind: CallKind::Sync, after: 0, short: 0, error });
    while storage.step(Instant::now()) {}
    assert_eq!(recorder.clear_faults(), 1);
    assert!(matches!(futures::poll!(&mut ticket), Poll::Ready(Err(_))));
    let mut done = Compacted::default();
    while local.has_pass() {
        done = stepped(&storage, partition.compact(NOW, ByteCount(1))).await.unwrap();
    }
    assert!(done.more && !done.finished, "{done:?}");
    assert_eq!(files(), before, "nothing was replaced");
    // The partition had nothing to lose: it goes on, and the next pass is as good as any.
    loop {
        let done = stepped(&storage, partition.compact(NOW, ByteCount::mib(1))).await.unwrap();
        if !done.more {
            break;
        }
    }
    assert_ne!(files(), before);
}

/// Takes the flusher's steps while something is waited for.
async fn stepped<T>(storage: &LocalStorage, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        if let Poll::Ready(done) = futures::poll!(work.as_mut()) {
            return done;
        }
        storage.step(Instant::now());
    }
}
