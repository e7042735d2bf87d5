//! Compaction of one log: learning which record of each key is the last, judging batches by it, and a whole pass that
//! writes new segments and syncs them. Throughput is in bytes of the log that is gone over.
//! `cargo bench -p rimstone-benches --bench compaction`
//!
//! What a pass does to those who append meanwhile is measured by `compaction_pace`.

use std::{
    collections::BTreeMap,
    hint::black_box,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rimstone_log::{
    Access, Log, LogConfig, ReadRange, SaltSource,
    compaction::{CompactionSettings, CompactionStep, Dirtiness, Judged, Plan, Sieve},
    producers,
};
use rimstone_record::{Batch, BatchBuilder, Compression, NewRecord};
use rimstone_types::{Offset, PartitionId, PartitionIndex, Timestamp, TopicId};

/// Batches of the log, and records of each: some 9 MB.
const BATCHES: usize = 128;
const RECORDS: usize = 64;
const VALUE_BYTES: usize = 1024;
/// Each key is superseded three times.
const KEYS: u64 = (BATCHES * RECORDS / 4) as u64;
/// Several segments, of which all but the last can be compacted.
const SEGMENT_BYTES: u64 = 2 << 20;
/// Log gone over in one slice: as in the broker.
const SLICE: u64 = 4 << 20;
/// Later than any record.
const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn settings() -> CompactionSettings {
    CompactionSettings {
        dirty_ratio: 0.0,
        min_lag: Duration::ZERO,
        max_lag: None,
        delete_retention: Duration::from_secs(24 * 60 * 60),
        map_bytes: 16 << 20,
    }
}

fn config() -> LogConfig {
    let salt = AtomicU32::new(1);
    LogConfig {
        segment_bytes: SEGMENT_BYTES,
        segment_age: Duration::from_secs(1 << 30),
        index_interval_bytes: 4096,
        retention_age: None,
        retention_bytes: None,
        retention: false,
        append_time_stamps: false,
        producers: producers::Limits::default(),
        salts: SaltSource(Arc::new(move || salt.fetch_add(1, Ordering::Relaxed))),
    }
}

/// Keys come in a pseudo-random order, and values do not compress.
fn batches() -> Vec<Batch> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut batch = || {
        let mut builder = BatchBuilder::new(Compression::None);
        for _ in 0..RECORDS {
            let key = Some(Bytes::from(format!("key-{:08}", next() % KEYS)));
            let value = (0..VALUE_BYTES / 8).flat_map(|_| next().to_le_bytes()).collect();
            let record = NewRecord { key, value: Some(value), ..NewRecord::default() };
            builder.push(&record).expect("it fits");
        }
        builder.build()
    };
    (0..BATCHES).map(|_| batch()).collect()
}

fn sync(log: &mut Log) {
    if let Some(mut plan) = log.take_plan() {
        plan.execute().expect("the disk has room");
        let written = log.plan_succeeded(plan).execute();
        log.snapshots_written(&written);
    }
    let position = log.written_position();
    log.synced(position);
}

/// A log with all batches.
fn filled(directory: &Path) -> Log {
    let id = PartitionId { topic: TopicId::CATALOG, partition: PartitionIndex(0) };
    let mut log = Log::create(directory, id, config(), Timestamp(0)).expect("it is made");
    for batch in batches() {
        log.offer(&batch, None, None, Timestamp(1)).expect("it is taken");
        sync(&mut log);
    }
    log
}

/// The batches of a log, with the offsets that they got.
fn stored(log: &Log) -> Vec<Batch> {
    let reader = log.reader();
    let (mut from, until) = (Offset::ZERO, reader.ends().durable);
    let mut all = Vec::new();
    while from < until {
        let range = ReadRange { from, until, bytes: 1 << 20 };
        all.extend(
            reader.read(range, Access::Blocking).expect("it is whole").into_iter().map(|stored| stored.batch),
        );
        from = all.last().expect("not empty below the end").next_offset();
    }
    assert_eq!(all.len(), BATCHES);
    all
}

fn sieve() -> Sieve {
    let plan = Plan {
        segments: usize::MAX,
        dirty_from: Offset::ZERO,
        tombstones_only: false,
        dirtiness: Dirtiness::default(),
    };
    Sieve::new(&settings(), &plan, Offset::ZERO, NOW, Vec::new(), 7)
}

fn sieving(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let batches = stored(&filled(directory.path()));
    let bytes: usize = batches.iter().map(|batch| batch.bytes().len()).sum();
    let mut group = criterion.benchmark_group("compaction");
    group.throughput(Throughput::Bytes(bytes as u64));
    let learned = || {
        let mut sieve = sieve();
        for batch in &batches {
            assert!(sieve.learn(batch).expect("the batches are whole"), "the map is large enough");
        }
        sieve
    };
    group.bench_function("learn", |bencher| bencher.iter(|| black_box(learned())));
    let sieve = learned();
    let judge = || {
        let mut gone = 0;
        for batch in &batches {
            match sieve.judge(batch).expect("the batches are whole") {
                Judged::Changed { removed, .. } | Judged::Gone { removed } => gone += u64::from(removed),
                Judged::Same { .. } => {}
            }
        }
        gone
    };
    let left = (BATCHES * RECORDS) as u64 - judge();
    assert!((1..=KEYS).contains(&left), "of each key one record stays: {left}");
    group.bench_function("judge", |bencher| bencher.iter(|| black_box(judge())));
    group.finish();
}

/// A whole pass up to where new segments would take the place of the old ones; they do not, so that each pass meets
/// the same log.
fn pass(criterion: &mut Criterion) {
    // On the disk under test, not on a temporary file system in memory.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let log = filled(directory.path());
    let reader = log.reader();
    let found = || Log::compactable(&reader, reader.ends().durable, &BTreeMap::new(), &settings(), NOW);
    let dirty = found().dirtiness().dirty_bytes;
    assert!(dirty > 2 * SEGMENT_BYTES, "several segments are sealed: {dirty}");
    let mut group = criterion.benchmark_group("compaction");
    group.throughput(Throughput::Bytes(dirty));
    group.bench_function("pass, synced", |bencher| {
        bencher.iter_batched(
            || log.begin_compaction(found(), &settings(), NOW),
            |mut compaction| {
                let mut replacements = 0;
                loop {
                    match compaction.advance(SLICE).expect("the disk has room") {
                        CompactionStep::More | CompactionStep::Room { .. } => {}
                        CompactionStep::Replace(_) => replacements += 1,
                        CompactionStep::Done => break,
                    }
                }
                assert!(replacements > 0, "nothing was compacted");
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(500));
    targets = sieving, pass
}
criterion_main!(benches);
