//! Appending: offsets, order, times, the expected end.

use super::*;
use crate::TimestampType;

/// What is read is what was appended, byte for byte but for the offset, compressed as it came.
pub async fn appends_are_read_back_as_they_were<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let mut builder = BatchBuilder::new(Compression::Lz4);
    for _ in 0..100 {
        let value = Some(Bytes::from_static(b"again and again"));
        builder
            .push(&NewRecord { value, timestamp: NOW, ..NewRecord::default() })
            .expect("a small record fits");
    }
    let compressed = builder.build();
    assert_eq!(compressed.header().compression(), Compression::Lz4);
    let sent = [batch(None, "a", 3), compressed, heavy(100_000, 1), batch(dense(UNNAMED, 2, 0), "b", 1)];
    let mut next = 0;
    for batch in &sent {
        assert_eq!(partition.append(batch.clone()).await, next);
        next += u64::from(batch.header().record_count);
    }
    let read = partition.read(0, read_limit()).await;
    assert_eq!(read.next, offset(next));
    assert_eq!(read.batches.len(), sent.len());
    let mut base = 0;
    for (read, sent) in read.batches.iter().zip(&sent) {
        assert_eq!(read.append_time, NOW);
        let verified = Batch::verify(read.batch.bytes().clone(), &Limits::default()).expect("it is whole");
        assert_eq!(verified, read.batch);
        assert_eq!(read.batch.base_offset(), offset(base));
        assert_eq!(read.batch.body(), sent.body());
        assert_eq!(read.batch.header().crc, sent.header().crc);
        base = read.batch.next_offset().get();
    }
}

/// Submits that nobody waited for between them keep their order, without gaps.
pub async fn offsets_follow_the_order_of_submits<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let tickets: Vec<_> =
        (0..200).map(|n| partition.submit(append(batch(None, &format!("b{n}"), 1 + n % 3)))).collect();
    let mut next = 0;
    for (n, ticket) in tickets.into_iter().enumerate() {
        let count = 1 + n as u64 % 3;
        assert_eq!(within("an answer", ticket).await, stored(next, next + count - 1));
        next += count;
    }
    assert_eq!(partition.end(), next);
    let expected: Vec<_> = (0..200).flat_map(|n| (0..1 + n % 3).map(move |i| format!("b{n}-{i}"))).collect();
    assert_eq!(partition.values().await, expected);
}

/// Many tasks write at once; every batch is there once, at the offsets that were told.
pub async fn writers_at_once_lose_nothing<H: Harness>() {
    const WRITERS: usize = 8;
    const BATCHES: usize = 25;
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let partition = partition.clone();
            tokio::spawn(async move {
                let mut told = Vec::new();
                for n in 0..BATCHES {
                    let tag = format!("w{writer}-{n}");
                    told.push((partition.append(batch(None, &tag, 1)).await, format!("{tag}-0")));
                }
                told
            })
        })
        .collect();
    let mut told = Vec::new();
    for writer in writers {
        let of_one = within("a writer", writer).await.expect("the writer does not panic");
        assert!(of_one.is_sorted(), "{of_one:?}");
        told.extend(of_one);
    }
    told.sort();
    let offsets: Vec<_> = told.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, (0..(WRITERS * BATCHES) as u64).collect::<Vec<_>>());
    let values: Vec<_> = told.into_iter().map(|(_, value)| value).collect();
    assert_eq!(partition.values().await, values);
}

/// A clock that goes back does not take append times with it.
pub async fn append_times_never_decrease<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let at = |offset: i64| Timestamp(NOW.as_millis() + offset);
    let mut times = Vec::new();
    for offset in [0, 10, -5000, 10, 20, i64::from(i32::MIN)] {
        let append = Append { now: at(offset), ..append(batch(None, "x", 1)) };
        times.push(within("an answer", partition.submit(append)).await.expect("it is taken").append_time);
    }
    assert_eq!(times, [at(0), at(10), at(10), at(10), at(20), at(20)]);
    let read = partition.read(0, read_limit()).await;
    assert_eq!(read.batches.iter().map(|read| read.append_time).collect::<Vec<_>>(), times);
}

/// A batch with an expected end is appended exactly there, or not at all; the real end that is told is durable.
pub async fn the_expected_end_is_met_or_told<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let expecting = |end: u64| Append { expected_end: Some(offset(end)), ..append(batch(None, "e", 2)) };
    assert_eq!(within("an answer", partition.submit(expecting(0))).await, stored(0, 1));
    for wrong in [0, 1, 3, u64::from(u32::MAX)] {
        let refused = Err(AppendError::ExpectedEndNotMet { expected: offset(wrong), actual: offset(2) });
        assert_eq!(within("an answer", partition.submit(expecting(wrong))).await, refused);
    }
    // Of those that race for one place one wins, and the others learn of an end that is there.
    let tickets: Vec<_> = (0..5).map(|_| partition.submit(expecting(2))).collect();
    let mut won = 0;
    for ticket in tickets {
        match within("an answer", ticket).await {
            Ok(_) => won += 1,
            Err(AppendError::ExpectedEndNotMet { actual, .. }) => {
                assert_eq!(actual, offset(4));
                assert!(partition.0.ends().durable >= actual);
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((won, partition.end()), (1, 4));
}

/// A retry of a conditional append meets its own batch, not its own end.
pub async fn a_duplicate_is_told_before_the_expected_end<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let first = Append { expected_end: Some(Offset::ZERO), ..append(batch(dense(UNNAMED, 0, 0), "d", 3)) };
    assert_eq!(within("an answer", partition.submit(first.clone())).await, stored(0, 2));
    assert_eq!(within("an answer", partition.submit(first)).await, duplicate(0, 2));
    assert_eq!(partition.end(), 3);
}

/// On a topic that goes by append time, each batch is stamped with it and stays whole.
pub async fn append_time_topics_are_restamped<H: Harness>() {
    let harness = H::create().await;
    let config = PartitionConfig { timestamp_type: TimestampType::AppendTime, ..PartitionConfig::default() };
    let partition = Partition::create(&harness, config).await;
    partition.append(timed(None, "t", &[5, 9, 7])).await;
    let read = partition.read(0, read_limit()).await;
    let batch = &read.batches[0].batch;
    assert!(batch.header().is_append_time());
    assert_eq!(batch.header().max_timestamp, NOW);
    Batch::verify(batch.bytes().clone(), &Limits::default()).expect("its checksum was made anew");
    assert!(records(batch).iter().all(|record| record.timestamp == NOW));
    assert_eq!(partition.values().await, ["t-0", "t-1", "t-2"]);
}
