//! Batches: encode, verify, decode. Throughput is in bytes of the records' keys and values.
//!
//! The payload is pseudo-random: words of a small vocabulary, so that it compresses about as log lines do,
//! with numbers in between that do not.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rimstone_record::{Batch, BatchBuilder, Compression, Limits, NewRecord, RecordRules};
use rimstone_types::{Offset, Timestamp};

/// The same payload in every run, so that runs can be compared.
const SEED: u64 = 0x5eed_0f57_0ae5_0001;

/// (bytes of a value, records in a batch): small lines, and lines that fill a batch of 1 MiB.
const SHAPES: [(usize, usize); 3] = [(100, 100), (100, 8000), (1000, 1000)];

const COMPRESSIONS: [Compression; 2] = [Compression::None, Compression::Lz4];

/// Marsaglia's xorshift: enough for a payload.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn line(&mut self, bytes: usize) -> Bytes {
        const WORDS: [&str; 16] = [
            "GET ",
            "POST ",
            "/index.html ",
            "/api/v1/orders ",
            "HTTP/1.1 ",
            "200 ",
            "404 ",
            "Mozilla/5.0 ",
            "(X11; Linux x86_64) ",
            "referer ",
            "https://example.org/ ",
            "cache-hit ",
            "ms ",
            "user ",
            "region-a ",
            "region-b ",
        ];
        let mut line = String::with_capacity(bytes + 32);
        while line.len() < bytes {
            let random = self.next();
            line.push_str(WORDS[(random % 16) as usize]);
            if random & 0x30 == 0 {
                line.push_str(&format!("{:x} ", random >> 32));
            }
        }
        line.truncate(bytes);
        Bytes::from(line)
    }
}

fn records(bytes: usize, count: usize) -> Vec<NewRecord> {
    let mut random = Random(SEED);
    let time = 1_700_000_000_000;
    (0..count)
        .map(|n| NewRecord {
            key: Some(Bytes::from(format!("{:016x}", random.next()))),
            value: Some(random.line(bytes)),
            headers: Vec::new(),
            timestamp: Timestamp(time + n as i64),
        })
        .collect()
}

fn build(records: &[NewRecord], compression: Compression) -> Batch {
    let mut builder = BatchBuilder::new(compression);
    for record in records {
        builder.push(record).expect("the shapes fit a batch");
    }
    builder.build()
}

fn payload(records: &[NewRecord]) -> u64 {
    let length = |field: &Option<Bytes>| field.as_ref().map_or(0, Bytes::len) as u64;
    records.iter().map(|record| length(&record.key) + length(&record.value)).sum()
}

/// Runs `bench` for every shape and compression.
fn each(criterion: &mut Criterion, name: &str, bench: impl Fn(&Batch, &[NewRecord]) -> usize) {
    let mut group = criterion.benchmark_group(name);
    for (bytes, count) in SHAPES {
        let records = records(bytes, count);
        group.throughput(Throughput::Bytes(payload(&records)));
        for compression in COMPRESSIONS {
            let batch = build(&records, compression);
            assert_eq!(batch.header().compression(), compression, "the payload compresses");
            let id = BenchmarkId::new(compression.name(), format!("{count}x{bytes}"));
            group
                .bench_function(id, |bencher| bencher.iter(|| bench(black_box(&batch), black_box(&records))));
        }
    }
    group.finish();
}

fn batches(criterion: &mut Criterion) {
    // The largest shape makes a little more than 1 MiB with its keys.
    let limits = Limits { batch_bytes: 2 << 20, ..Limits::default() };
    each(criterion, "batch/encode", |batch, records| {
        build(records, batch.header().compression()).bytes().len()
    });
    each(criterion, "batch/verify", |batch, _| {
        let batch = Batch::verify(batch.bytes().clone(), &limits).expect("the batch is whole");
        batch.bytes().len()
    });
    each(criterion, "batch/verify_records", |batch, _| {
        batch.verify_records(&limits, RecordRules::default()).expect("the records are whole");
        batch.bytes().len()
    });
    each(criterion, "batch/decode", |batch, _| {
        let records = batch.records(&limits).expect("the batch can be decompressed");
        records
            .map(|record| record.expect("the records are whole").value.map_or(0, |value| value.len()))
            .sum()
    });
    each(criterion, "batch/content_hash", |batch, _| {
        batch.content_hash(&limits).expect("the records are whole") as usize
    });
}

/// Stamping is per batch, whatever its size.
fn stamping(criterion: &mut Criterion) {
    let batch = build(&records(1000, 1000), Compression::None);
    let base = Offset::new(123_456_789).expect("a small offset");
    criterion.bench_function("batch/stamped_header", |bencher| {
        bencher.iter(|| black_box(&batch).stamped_header(black_box(base), 0));
    });
    criterion.bench_function("batch/with_append_time", |bencher| {
        let setup = || batch.clone();
        bencher.iter_batched(setup, |batch| batch.with_append_time(Timestamp(1)), BatchSize::SmallInput);
    });
}

criterion_group!(benches, batches, stamping);
criterion_main!(benches);
