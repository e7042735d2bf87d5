//! From a client over loopback to the disk and back: durable appends and reads, server and client in one process, so
//! that a change shows; figures for others come of `rimstone bench` and `goals`, which keep them apart.
//! `cargo bench -p rimstone-benches --bench end_to_end`

use std::{collections::BTreeMap, hint::black_box, time::Duration};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rimstone_client::{
    Admin, Connection,
    bare::{Calls, ReadFrom, Request},
};
use rimstone_record::{Batch, BatchBuilder, Compression, NewRecord};
use rimstone_server::{StartedServer, load_config, start};
use rimstone_types::{Offset, PartitionIndex};

/// Batches that are unanswered at a time, each of 64 records of 1 KiB: 1 MiB in all.
const IN_FLIGHT: usize = 16;
const BATCH_RECORDS: usize = 64;
const VALUE_BYTES: usize = 1024;
/// Batches of the topic that is read: 32 MiB.
const READ_BATCHES: usize = 512;

async fn server(data: &std::path::Path) -> StartedServer {
    let settings = [
        ("server.grpc_address", "127.0.0.1:0"),
        ("server.web_address", "127.0.0.1:0"),
        ("storage.data_directory", &*data.display().to_string()),
        ("storage.disk_reserve", "0"),
    ];
    let settings: Vec<_> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let config = load_config(None, &settings).expect("these are settings");
    start(config).await.expect("a server on a temporary directory starts")
}

/// Pseudo-random values: no layer is flattered by zeros.
fn batch(records: usize) -> Batch {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut builder = BatchBuilder::new(Compression::None);
    for _ in 0..records {
        let value: Bytes = (0..VALUE_BYTES)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        let record = NewRecord { value: Some(value), ..NewRecord::default() };
        builder.push(&record).expect("it fits");
    }
    builder.build()
}

fn end_to_end(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    // On the disk under test, not on a temporary file system in memory.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let server = runtime.block_on(server(&directory.path().join("data")));
    let (connection, stream) = runtime.block_on(async {
        let connection =
            Connection::new(&format!("http://{}", server.grpc_address())).expect("it is an endpoint");
        let admin = Admin::over(connection.clone());
        for topic in ["written", "read"] {
            admin.create_topic(topic, 1, &[]).await.expect("it is new");
        }
        let stream = Calls::over(connection.clone()).open_stream().await.expect("the server is there");
        (connection, stream)
    });
    let request = |topic, records| Request::of_batches(topic, [(PartitionIndex(0), batch(records))]);
    let mut group = criterion.benchmark_group("end_to_end");

    let single = request("written", 1);
    group.throughput(Throughput::Bytes(VALUE_BYTES as u64));
    group.bench_function("produce/one record, durable", |bencher| {
        bencher.iter(|| {
            black_box(runtime.block_on(stream.call(&single)).expect("it is durable"));
        });
    });

    let large = request("written", BATCH_RECORDS);
    group.throughput(Throughput::Bytes((IN_FLIGHT * BATCH_RECORDS * VALUE_BYTES) as u64));
    group.bench_function("produce/16 batches of 64 KiB, durable", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let mut answers = Vec::with_capacity(IN_FLIGHT);
                for _ in 0..IN_FLIGHT {
                    answers.push(stream.send(&large).await.expect("the server is there"));
                }
                for answer in answers {
                    black_box(answer.await.expect("it is durable"));
                }
            });
        });
    });

    let fill = request("read", BATCH_RECORDS);
    runtime.block_on(async {
        for _ in 0..READ_BATCHES {
            stream.call(&fill).await.expect("it is durable");
        }
    });
    let records = (READ_BATCHES * BATCH_RECORDS) as u64;
    let end = Offset::new(records).expect("it is small");
    group.throughput(Throughput::Bytes(records * VALUE_BYTES as u64));
    group.bench_function("read/32 MiB, decoded", |bencher| {
        bencher.iter(|| {
            let read = runtime.block_on(async {
                let from = ReadFrom {
                    topic: "read".to_owned(),
                    from: BTreeMap::from([(PartitionIndex(0), Offset::ZERO)]),
                    until: BTreeMap::from([(PartitionIndex(0), end)]),
                    message_bytes: 1 << 20,
                };
                let mut call = Calls::over(connection.clone()).read(from).await.expect("it is there");
                let mut read = 0;
                while let Some(piece) = call.next().await.expect("it goes on to the end") {
                    piece.decode(|_| read += 1).expect("the batches are whole");
                }
                read
            });
            assert_eq!(read, records);
        });
    });
    group.finish();
    drop((stream, connection));
    runtime.block_on(server.stop()).expect("it stops");
}

criterion_group! {
    name = benches;
    // What is written stays until the end: not for long.
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = end_to_end
}
criterion_main!(benches);
