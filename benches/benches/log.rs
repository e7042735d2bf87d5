//! The log without syncing: staging frames, looking up offsets and times in the index, and reading warm. `cargo bench -p rimstone-benches --bench log`

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rimstone_log::{Access, Log, LogConfig, ReadRange, SaltSource, producers};
use rimstone_record::{Batch, BatchBuilder, Compression, NewRecord};
use rimstone_types::{Offset, PartitionId, PartitionIndex, Timestamp, TopicId};

fn config() -> LogConfig {
    let salt = AtomicU32::new(1);
    LogConfig {
        segment_bytes: 128 << 20,
        segment_age: Duration::from_secs(1 << 30),
        index_interval_bytes: 4096,
        retention_age: None,
        retention_bytes: None,
        retention: true,
        append_time_stamps: false,
        producers: producers::Limits::default(),
        salts: SaltSource(Arc::new(move || salt.fetch_add(1, Ordering::Relaxed))),
    }
}

fn batch(records: usize, bytes: usize) -> Batch {
    let mut builder = BatchBuilder::new(Compression::None);
    for number in 0..records {
        let value: Vec<u8> = (0..bytes).map(|at| (at * 31 + number * 17) as u8).collect();
        let record = NewRecord { value: Some(Bytes::from(value)), ..NewRecord::default() };
        builder.push(&record).expect("it fits");
    }
    builder.build()
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

fn log(criterion: &mut Criterion) {
    let id = PartitionId { topic: TopicId::CATALOG, partition: PartitionIndex(0) };
    let mut group = criterion.benchmark_group("log");
    for (name, records, bytes) in [("1x1KiB", 1, 1024), ("64x1KiB", 64, 1024)] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut log = Log::create(directory.path(), id, config(), Timestamp(0)).expect("it is made");
        let batch = batch(records, bytes);
        group.throughput(Throughput::Bytes(batch.bytes().len() as u64));
        group.bench_function(format!("stage/{name}"), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let began = std::time::Instant::now();
                    black_box(log.offer(&batch, None, None, Timestamp(1)).expect("it is taken"));
                    spent += began.elapsed();
                    if log.staged_bytes() > 4 << 20 {
                        // Thrown away again, so that the bench does not fill the disk.
                        let plan = log.take_plan().expect("something is staged");
                        let cause = rimstone_log::FileError {
                            operation: "bench",
                            path: String::new(),
                            source: std::io::ErrorKind::Other.into(),
                        };
                        log.plan_failed(plan, &rimstone_log::WriteFailure { cause, undone: Ok(()) });
                    }
                }
                spent
            });
        });
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut log = Log::create(directory.path(), id, config(), Timestamp(0)).expect("it is made");
    let batch = batch(64, 1024);
    for _ in 0..1000 {
        log.offer(&batch, None, None, Timestamp(1)).expect("it is taken");
    }
    sync(&mut log);
    let reader = log.reader();
    let end = reader.ends().durable;
    group.throughput(Throughput::Bytes(1000 * batch.bytes().len() as u64));
    group.bench_function("read/warm/64KiB batches", |bencher| {
        bencher.iter(|| {
            let mut from = Offset::ZERO;
            while from < end {
                let range = ReadRange { from, until: end, bytes: 1 << 20 };
                let batches = reader.read(range, Access::Blocking).expect("it is whole");
                from = batches.last().expect("not empty below the end").batch.next_offset();
                black_box(batches);
            }
        });
    });
    group.finish();
}

/// Batches of one record of 1 KiB, a millisecond apart, over several segments.
const INDEXED: u64 = 40_000;
/// Small, so that there are some, with indices in files, before the one that is written.
const INDEXED_SEGMENT_BYTES: u64 = 8 << 20;

/// Finding a place: the index leads to a frame nearby, from where frames are gone over.
fn look_up(criterion: &mut Criterion) {
    let id = PartitionId { topic: TopicId::CATALOG, partition: PartitionIndex(0) };
    let directory = tempfile::tempdir().expect("a directory");
    let config = LogConfig { segment_bytes: INDEXED_SEGMENT_BYTES, ..config() };
    let mut log = Log::create(directory.path(), id, config, Timestamp(0)).expect("it is made");
    let value = Bytes::from(vec![0xA5; 1024]);
    for number in 0..INDEXED {
        let mut builder = BatchBuilder::new(Compression::None);
        let timestamp = Timestamp(number as i64);
        let record = NewRecord { value: Some(value.clone()), timestamp, ..NewRecord::default() };
        builder.push(&record).expect("it fits");
        log.offer(&builder.build(), None, None, timestamp).expect("it is taken");
        if number % 1000 == 999 {
            sync(&mut log);
        }
    }
    let reader = log.reader();
    let end = reader.ends().durable;
    assert_eq!(end.get(), INDEXED);
    let (segments, _) = log.size();
    assert!(segments > 2, "{segments} segments");
    let mut group = criterion.benchmark_group("log");
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut anywhere = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 32) % INDEXED
    };
    group.bench_function("look_up/offset", |bencher| {
        bencher.iter(|| {
            let from = Offset::new(anywhere()).expect("it is small");
            let range = ReadRange { from, until: end, bytes: 1 };
            let found = reader.read(range, Access::Blocking).expect("it is whole");
            assert_eq!(found.first().expect("it is there").batch.next_offset(), from.saturating_add(1));
        });
    });
    group.bench_function("look_up/time", |bencher| {
        bencher.iter(|| {
            let at = anywhere();
            let found = reader.find_time(Timestamp(at as i64), end, Access::Blocking).expect("it is whole");
            assert_eq!(found.expect("it is there").offset.get(), at);
        });
    });
    group.finish();
}

criterion_group!(benches, log, look_up);
criterion_main!(benches);
