//! The reader against a server whose connections break: no gaps, no doubles, and the bounds that were asked
//! for.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rimstone_record::{BatchBuilder, Compression, NewRecord, ProducerStamp};
use rimstone_types::{Numbering, Offset, PartitionIndex, ProducerEpoch, ProducerId, Timestamp};

use super::{End, Fetch, Reader, Start, fetch};
use crate::{
    connect::Connection,
    error::{ClientError, reason},
    fake::{Fake, Faults},
};

const HUNG: Duration = Duration::from_secs(60);

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(HUNG, work).await.expect("hung")
}

/// Fills two partitions with batches of 1 to 9 records; the time of record n is n seconds.
async fn filled(seed: u64, records: u64) -> Fake {
    let fake = Fake::start(seed, &[("logs", 2)], Faults::default()).await;
    let mut rng = StdRng::seed_from_u64(seed);
    for partition in 0..2 {
        let mut offset = 0;
        while offset < records {
            let count = rng.random_range(1..10).min(records - offset);
            append(&fake, partition, offset, count);
            offset += count;
        }
    }
    fake
}

fn append(fake: &Fake, partition: usize, offset: u64, count: u64) {
    let mut builder = BatchBuilder::new(Compression::Lz4).producer(ProducerStamp {
        id: ProducerId::new(1).unwrap(),
        epoch: ProducerEpoch::ZERO,
        base: offset as u32,
        numbering: Numbering::Dense,
    });
    for number in offset..offset + count {
        let record = NewRecord {
            value: Some(format!("{partition}-{number}").into()),
            timestamp: Timestamp(number as i64 * 1000),
            ..NewRecord::default()
        };
        builder.push(&record).unwrap();
    }
    fake.world.lock().topics.get_mut("logs").unwrap()[partition].append(&builder.build()).unwrap();
}

async fn read(mut reader: Reader) -> Result<BTreeMap<u32, Vec<u64>>, ClientError> {
    let mut read: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    while let Some(record) = within(reader.next()).await? {
        let expected = format!("{}-{}", record.partition, record.offset);
        assert_eq!(record.value.as_deref(), Some(expected.as_bytes()));
        assert_eq!(record.create_time, Timestamp(record.offset.get() as i64 * 1000));
        assert_eq!(record.append_time, Timestamp(1));
        read.entry(record.partition.0).or_default().push(record.offset.get());
    }
    Ok(read)
}

fn both(range: std::ops::Range<u64>) -> BTreeMap<u32, Vec<u64>> {
    [(0, range.clone().collect()), (1, range.collect())].into()
}

#[tokio::test]
async fn everything_once_through_broken_connections() {
    for seed in 1..=6 {
        println!("seed {seed}");
        let fake = filled(seed, 150).await;
        fake.world.lock().cut_reads = 6;
        let reader = Reader::builder(&fake.endpoint(), "logs").start(Start::Earliest).end(End::Latest);
        assert_eq!(read(reader.build().unwrap()).await.unwrap(), both(0..150));
        assert!(fake.world.lock().fired > 2, "{} faults fired", fake.world.lock().fired);
        fake.kill().await;
    }
}

#[tokio::test]
async fn bounds_fall_inside_batches() {
    let fake = filled(7, 100).await;
    let reader = || Reader::builder(&fake.endpoint(), "logs");
    let at = |offset| Offset::new(offset).unwrap();
    let cases = [
        (Start::Offset(at(13)), End::Offset(at(77)), both(13..77)),
        (Start::Time(Timestamp(12_500)), End::Time(Timestamp(77_000)), both(13..77)),
        (Start::Time(Timestamp(50_000)), End::Time(Timestamp(999_000)), both(50..100)),
        (Start::Time(Timestamp(999_000)), End::Latest, BTreeMap::new()),
        (Start::Latest, End::Latest, BTreeMap::new()),
        (Start::Offsets([(PartitionIndex(1), at(98))].into()), End::Latest, [(1, vec![98, 99])].into()),
    ];
    for (start, end, expected) in cases {
        let case = format!("{start:?} {end:?}");
        assert_eq!(read(reader().start(start).end(end).build().unwrap()).await.unwrap(), expected, "{case}");
    }
    let one = reader().partitions([PartitionIndex(1)]).start(Start::Earliest).count(7).build().unwrap();
    assert_eq!(read(one).await.unwrap(), [(1, (0..7).collect())].into());
    assert!(reader().build().is_err(), "the reader chooses where to begin");
}

#[tokio::test]
async fn a_reader_without_an_end_sees_what_comes_later_also_after_a_restart() {
    let fake = filled(7, 10).await;
    let mut reader = Reader::builder(&fake.endpoint(), "logs")
        .start(Start::Latest)
        .partitions([PartitionIndex(0)])
        .build()
        .unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), reader.next()).await;
    assert!(early.is_err(), "there is nothing yet");
    append(&fake, 0, 10, 3);
    for offset in 10..13 {
        assert_eq!(within(reader.next()).await.unwrap().unwrap().offset.get(), offset);
    }
    fake.kill().await;
    append(&fake, 0, 13, 2);
    fake.revive();
    for offset in 13..15 {
        assert_eq!(within(reader.next()).await.unwrap().unwrap().offset.get(), offset);
    }
    assert_eq!(reader.positions(), [(PartitionIndex(0), Offset::new(15).unwrap())].into());
}

#[tokio::test]
async fn an_offset_outside_the_log_is_an_error_with_the_bounds() {
    let fake = filled(7, 10).await;
    for partition in fake.world.lock().topics.get_mut("logs").unwrap() {
        partition.start = 4;
    }
    for offset in [3, 11] {
        let start = Start::Offset(Offset::new(offset).unwrap());
        let reader = Reader::builder(&fake.endpoint(), "logs").start(start).end(End::Latest).build();
        let error = read(reader.unwrap()).await.unwrap_err();
        assert!(error.is(reason::OFFSET_OUT_OF_RANGE), "{error:?}");
        assert_eq!((error.number("log_start_offset"), error.number("high_watermark")), (Some(4), Some(10)));
    }
    let reader = Reader::builder(&fake.endpoint(), "logs").start(Start::Earliest).end(End::Latest);
    assert_eq!(read(reader.build().unwrap()).await.unwrap(), both(4..10));
}

#[tokio::test]
async fn retention_that_overtakes_a_reader_is_an_error_and_not_a_gap() {
    let fake = filled(7, 20).await;
    let mut reader = Reader::builder(&fake.endpoint(), "logs")
        .partitions([PartitionIndex(0)])
        .start(Start::Earliest)
        .build()
        .unwrap();
    assert_eq!(within(reader.next()).await.unwrap().unwrap().offset.get(), 0);
    fake.kill().await;
    // The first 20 may be on this side already; what follows never will be.
    append(&fake, 0, 20, 20);
    fake.world.lock().topics.get_mut("logs").unwrap()[0].start = 40;
    fake.revive();
    let error = within(async {
        loop {
            if let Err(error) = reader.next().await {
                return error;
            }
        }
    })
    .await;
    assert!(error.is(reason::OFFSET_OUT_OF_RANGE), "{error:?}");
    let position = reader.positions()[&PartitionIndex(0)].get();
    assert!((1..=20).contains(&position), "{position}");
}

#[tokio::test]
async fn a_server_that_is_not_there_ends_the_patience_of_a_reader() {
    let fake = filled(7, 1).await;
    fake.kill().await;
    let reader = Reader::builder(&fake.endpoint(), "logs")
        .start(Start::Earliest)
        .retry_for(Duration::from_millis(200))
        .build()
        .unwrap();
    let results: Vec<_> = within(reader.into_stream().collect::<Vec<_>>()).await;
    assert_eq!(results.len(), 1);
    assert!(results[0].as_ref().unwrap_err().is_unreachable(), "{results:?}");
}

#[tokio::test]
async fn fetch_answers_per_partition() {
    let fake = filled(7, 30).await;
    let connection = Connection::new(&fake.endpoint()).unwrap();
    let at = |offset| Offset::new(offset).unwrap();
    let request = Fetch {
        topic: "logs".to_owned(),
        from: vec![(PartitionIndex(1), at(5)), (PartitionIndex(0), at(99))],
        min_bytes: 1,
        max_bytes: 0,
        max_wait: Duration::ZERO,
    };
    let mut answers = fetch(&connection, &request).await.unwrap();
    assert!(answers.pop().unwrap().unwrap_err().is(reason::OFFSET_OUT_OF_RANGE));
    let fetched = answers.pop().unwrap().unwrap();
    assert_eq!(fetched.partition, PartitionIndex(1));
    assert_eq!(fetched.records[0].offset, at(5), "a batch that begins earlier is cut");
    let last = fetched.records.last().unwrap().offset;
    assert_eq!((fetched.next, fetched.ends.durable), (last.checked_add(1).unwrap(), at(30)));
}
