//! Reading: limits, visibility, waiting, times, counts.

use super::*;
use crate::{OffsetAt, ReadError, TimestampType, Waiter};

async fn ten_batches<H: Harness>(harness: &H) -> Partition {
    let partition = Partition::create(harness, PartitionConfig::default()).await;
    for n in 0..10 {
        partition.append(batch(None, &format!("b{n}"), 3)).await;
    }
    partition
}

/// At least one batch, then whole batches within the bytes, never one that begins at `until` or later.
pub async fn reads_keep_to_their_limits<H: Harness>() {
    let harness = H::create().await;
    let partition = ten_batches(&harness).await;
    let one = partition.read(0, ReadLimit { bytes: ByteCount(1), ..read_limit() }).await;
    assert_eq!((one.batches.len(), one.next), (1, offset(3)));
    let size = one.bytes();
    for count in [2, 3, 9] {
        let read = partition.read(0, ReadLimit { bytes: ByteCount(size * count), ..read_limit() }).await;
        assert_eq!((read.batches.len() as u64, read.next), (count, offset(3 * count)));
        let read = partition.read(3, ReadLimit { bytes: ByteCount(size * count - 1), ..read_limit() }).await;
        assert_eq!(read.batches.len() as u64, count - 1);
    }
    for (from, until, next) in [(0, 3, 3), (0, 4, 6), (4, 5, 6), (0, 30, 30), (0, 99, 30), (6, 6, 6)] {
        let read = partition.read(from, ReadLimit { until: Some(offset(until)), ..read_limit() }).await;
        assert_eq!(read.next, offset(next), "{from} until {until}");
        assert!(read.batches.iter().all(|read| read.batch.base_offset() < offset(until)));
    }
    let end = partition.read(30, read_limit()).await;
    assert!(end.batches.is_empty());
    assert_eq!((end.next, end.ends), (offset(30), partition.0.ends()));
}

/// An offset in the middle of a batch gets the whole batch.
pub async fn reads_begin_with_the_batch_that_holds_the_offset<H: Harness>() {
    let harness = H::create().await;
    let partition = ten_batches(&harness).await;
    for from in 0..30 {
        let read = partition.read(from, ReadLimit { bytes: ByteCount(1), ..read_limit() }).await;
        assert_eq!(read.batches[0].batch.base_offset(), offset(from / 3 * 3));
        assert_eq!(read.next, offset((from / 3 + 1) * 3));
    }
}

/// Beyond either end is an error that tells the ends.
pub async fn reads_outside_the_log_are_refused<H: Harness>() {
    let harness = H::create().await;
    let partition = ten_batches(&harness).await;
    within("a trim", partition.0.trim(offset(7))).await.expect("it is in the log");
    for outside in [0, 6, 31, i64::MAX as u64] {
        match within("a read", partition.0.read(offset(outside), read_limit())).await {
            Err(ReadError::OutOfRange { offset: told, start, end }) => {
                assert_eq!((told, start, end), (offset(outside), offset(7), offset(30)));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(partition.read(7, read_limit()).await.next, offset(30));
    assert!(partition.read(30, read_limit()).await.batches.is_empty());
}

/// Reads end at the durable end at every moment, and what was acknowledged is below it.
pub async fn what_is_acknowledged_is_seen_and_nothing_else<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let mut tickets = Vec::new();
    for round in 0..50u64 {
        for n in 0..4 {
            tickets.push(partition.submit(append(batch(None, &format!("r{round}-{n}"), 1))));
        }
        let read = partition.read(0, read_limit()).await;
        let ends = read.ends;
        assert!(ends.start <= ends.stable && ends.stable <= ends.durable && ends.durable <= ends.written);
        assert!(read.next <= partition.0.ends().durable);
        if round % 5 == 0 {
            let last = tickets.pop().expect("tickets were just taken");
            let appended = within("an answer", last).await.expect("it is taken");
            let (_, last) = appended.offsets.expect("a new batch has offsets");
            assert!(partition.0.ends().durable > last);
            let read = partition.read(last.get(), read_limit()).await;
            assert_eq!(read.batches[0].batch.last_offset(), last);
        }
    }
    for ticket in tickets {
        within("an answer", ticket).await.expect("it is taken");
    }
    assert_eq!(partition.values().await.len(), 200);
}

/// One waiter over two partitions; those that are dropped do no harm.
pub async fn a_waiter_is_woken_by_any_of_its_partitions<H: Harness>() {
    let harness = H::create().await;
    let one = Partition::open(&harness, id(1, 0), PartitionConfig::default(), OpenMode::CreateNew).await;
    let two = Partition::open(&harness, id(1, 1), PartitionConfig::default(), OpenMode::CreateNew).await;
    for _ in 0..50 {
        one.0.subscribe(&Waiter::new());
    }
    let waiter = Waiter::new();
    one.0.subscribe(&waiter);
    two.0.subscribe(&waiter);
    for (round, partition) in [&one, &two, &one, &one, &two].into_iter().enumerate() {
        let before = partition.end();
        let ticket = partition.submit(append(batch(None, &format!("r{round}"), 1)));
        // A wake that is left over from the round before may come first.
        while partition.end() == before {
            within("a wake", waiter.wait()).await;
        }
        within("an answer", ticket).await.expect("it is taken");
    }
}

/// Create times need no order: the first record in the order of offsets that is not before the time.
pub async fn a_time_finds_the_first_record_at_or_after_it<H: Harness>() {
    let harness = H::create().await;
    // Small segments, so that the search crosses some.
    let config = PartitionConfig { segment_bytes: ByteCount::kib(4), ..PartitionConfig::default() };
    let partition = Partition::create(&harness, config).await;
    let find = async |at| {
        let found = within("a search", partition.0.offset_for_time(Timestamp(at))).await;
        found.expect("the log can be searched").map(|found| (found.offset.get(), found.time.as_millis()))
    };
    assert_eq!(find(0).await, None);
    partition.append(timed(None, "a", &[100, 300, 200])).await;
    partition.append(timed(None, "b", &[150, 400])).await;
    for n in 0..20 {
        partition.append(heavy(1000, 200 + n)).await;
    }
    partition.append(timed(None, "c", &[50, 500])).await;
    for (at, expected) in [
        (i64::MIN, Some((0, 100))),
        (100, Some((0, 100))),
        (101, Some((1, 300))),
        (250, Some((1, 300))),
        (300, Some((1, 300))),
        (301, Some((4, 400))),
        (401, Some((26, 500))),
        (501, None),
    ] {
        assert_eq!(find(at).await, expected, "{at}");
    }
    // What lies below log start is not found.
    within("a trim", partition.0.trim(offset(2))).await.expect("it is in the log");
    assert_eq!(find(100).await, Some((2, 200)));
    assert_eq!(find(250).await, Some((4, 400)));
}

/// On a topic that goes by append time, that is what a look-up finds.
pub async fn on_append_time_topics_the_append_time_is_found<H: Harness>() {
    let harness = H::create().await;
    let config = PartitionConfig { timestamp_type: TimestampType::AppendTime, ..PartitionConfig::default() };
    let partition = Partition::create(&harness, config).await;
    for step in 0..3 {
        let now = Timestamp(NOW.as_millis() + step * 10);
        let append = Append { now, ..append(timed(None, "x", &[1, i64::MAX / 2])) };
        within("an answer", partition.submit(append)).await.expect("it is taken");
    }
    for (after, expected) in
        [(-1, Some(0)), (0, Some(0)), (1, Some(2)), (10, Some(2)), (11, Some(4)), (21, None)]
    {
        let at = Timestamp(NOW.as_millis() + after);
        let found =
            within("a search", partition.0.offset_for_time(at)).await.expect("the log can be searched");
        assert_eq!(found.map(|found| found.offset.get()), expected, "{after}");
    }
}

/// The first of those that have the highest time.
pub async fn the_highest_time_is_found<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let highest = async || {
        let found = within("a search", partition.0.offset_of_max_time()).await;
        found.expect("the log can be searched")
    };
    assert_eq!(highest().await, None);
    partition.append(timed(None, "a", &[5, 90, 7])).await;
    partition.append(timed(None, "b", &[90, 8])).await;
    assert_eq!(highest().await, Some(OffsetAt { offset: offset(1), time: Timestamp(90) }));
    within("a trim", partition.0.trim(offset(2))).await.expect("it is in the log");
    assert_eq!(highest().await, Some(OffsetAt { offset: offset(3), time: Timestamp(90) }));
}

/// Counts clamp to the log and split batches.
pub async fn records_are_counted<H: Harness>() {
    let harness = H::create().await;
    let partition = ten_batches(&harness).await;
    let count = async |from, to| {
        let counted = within("a count", partition.0.count(offset(from), offset(to))).await;
        counted.expect("the log can be counted").records
    };
    for (from, to, expected) in [
        (0, 30, 30),
        (0, 0, 0),
        (1, 2, 1),
        (2, 7, 5),
        (3, 6, 3),
        (29, 30, 1),
        (30, 30, 0),
        (0, 99, 30),
        (9, 3, 0),
    ] {
        assert_eq!(count(from, to).await, expected, "{from} to {to}");
    }
    within("a trim", partition.0.trim(offset(10))).await.expect("it is in the log");
    assert_eq!(count(0, 30).await, 20);
}

/// The append time of the record at an offset, or of the next one.
pub async fn append_times_are_known_by_offset<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    for step in 0..3 {
        let append = Append { now: Timestamp(NOW.as_millis() + step), ..append(batch(None, "x", 2)) };
        within("an answer", partition.submit(append)).await.expect("it is taken");
    }
    let time_at = async |at| {
        let time = within("a look-up", partition.0.append_time_at(offset(at))).await;
        time.expect("the log can be read").map(|time| time.millis_since(NOW))
    };
    for (at, expected) in [(0, Some(0)), (1, Some(0)), (2, Some(1)), (5, Some(2)), (6, None)] {
        assert_eq!(time_at(at).await, expected, "{at}");
    }
    within("a trim", partition.0.trim(offset(3))).await.expect("it is in the log");
    assert_eq!(time_at(0).await, Some(1));
}
