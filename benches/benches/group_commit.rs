//! The cost of durability against the number of partitions: one record of 1 KiB to each of them, all awaited
//! together, with one sync for all and with a sync for each. `cargo bench -p rimstone-benches --bench group_commit`

use std::{
    hint::black_box,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rimstone_record::{Batch, BatchBuilder, Compression, NewRecord};
use rimstone_store::{
    Append, LocalOptions, LocalStorage, OpenMode, PartitionConfig, PartitionStore, Storage, StoreClock,
    SyncPreference,
};
use rimstone_types::{ByteCount, PartitionId, PartitionIndex, Timestamp, TopicId};

const RECORD_BYTES: usize = 1024;

/// Pseudo-random bytes, so that no file system is flattered by zeros.
fn batch() -> Batch {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let value: Vec<u8> = (0..RECORD_BYTES)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect();
    let mut builder = BatchBuilder::new(Compression::None);
    let record = NewRecord { value: Some(Bytes::from(value)), ..NewRecord::default() };
    builder.push(&record).expect("one small record fits");
    builder.build()
}

fn open(directory: &Path, sync: SyncPreference) -> Arc<LocalStorage> {
    let now = AtomicI64::new(1_700_000_000_000);
    let options = LocalOptions {
        directory: directory.to_owned(),
        disk_reserve: ByteCount(0),
        sync,
        producers: Default::default(),
        clock: StoreClock(Arc::new(move || Timestamp(now.fetch_add(1, Ordering::Relaxed)))),
    };
    LocalStorage::open(options).expect("a temporary directory opens")
}

fn group_commit(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let batch = batch();
    let mut group = criterion.benchmark_group("group_commit");
    for partitions in [1u32, 16, 64, 256] {
        group.throughput(Throughput::Bytes(u64::from(partitions) * RECORD_BYTES as u64));
        for (name, sync) in [("syncfs", SyncPreference::Auto), ("fdatasync", SyncPreference::Fdatasync)] {
            if partitions == 256 && sync == SyncPreference::Fdatasync {
                continue;
            }
            // On the disk under test, not on a temporary file system in memory.
            let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
            let storage = open(directory.path(), sync);
            assert_eq!(storage.sync_method().name, name, "{}", storage.sync_method().reason);
            let topic = TopicId(uuid::Uuid::from_u128(7));
            let opened: Vec<Arc<dyn PartitionStore>> = runtime.block_on(async {
                let mut opened = Vec::new();
                for partition in 0..partitions {
                    let id = PartitionId { topic, partition: PartitionIndex(partition) };
                    let config = PartitionConfig::default();
                    opened.push(storage.open(id, config, OpenMode::CreateNew).await.expect("it opens"));
                }
                opened
            });
            group.bench_with_input(BenchmarkId::new(name, partitions), &opened, |bencher, opened| {
                bencher.iter(|| {
                    runtime.block_on(async {
                        let tickets: Vec<_> = opened
                            .iter()
                            .map(|partition| {
                                let append = Append {
                                    batch: batch.clone(),
                                    expected_end: None,
                                    content_hash: None,
                                    now: Timestamp(1_700_000_000_000),
                                };
                                partition.submit(append).expect("there is room")
                            })
                            .collect();
                        for ticket in tickets {
                            black_box(ticket.await.expect("it is durable"));
                        }
                    });
                });
            });
            runtime.block_on(storage.close()).expect("it closes");
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(3)).warm_up_time(std::time::Duration::from_secs(1));
    targets = group_commit
}
criterion_main!(benches);
