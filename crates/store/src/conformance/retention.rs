//! What goes: trimming, retention by size and by age.

use super::*;
use crate::{Maintained, StoreError};

/// Maintains until nothing more is due; answers what was done in all, and in how many passes.
async fn maintain(partition: &Partition, now: Timestamp) -> (Maintained, u32) {
    let mut all = Maintained::default();
    for passes in 1..=1000 {
        let done = within("maintenance", partition.0.maintain(now)).await.expect("the partition is open");
        all.rolled += done.rolled;
        all.deleted += done.deleted;
        all.freed = ByteCount(all.freed.get() + done.freed.get());
        if !done.more {
            return (all, passes);
        }
    }
    panic!("maintenance does not end: {all:?}");
}

/// Forward only, to within the log, and for good.
pub async fn trimming_moves_the_log_start<H: Harness>() {
    let harness = H::create().await;
    let config = PartitionConfig::default();
    let partition = Partition::create(&harness, config.clone()).await;
    for n in 0..4 {
        partition.append(batch(None, &format!("b{n}"), 3)).await;
    }
    let trim = async |partition: &Partition, start| within("a trim", partition.0.trim(offset(start))).await;
    assert_eq!(trim(&partition, 4).await.expect("it is in the log"), offset(4));
    assert_eq!(trim(&partition, 2).await.expect("it is below the start"), offset(4), "never back");
    match trim(&partition, 13).await {
        Err(StoreError::OutOfRange { offset: told, start, end }) => {
            assert_eq!((told, start, end), (offset(13), offset(4), offset(12)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(partition.0.ends().start, offset(4));
    // The batch that holds the start is still whole.
    assert_eq!(partition.read(4, read_limit()).await.batches[0].batch.base_offset(), offset(3));
    assert_eq!(partition.values().await[0], "b1-1");

    let (_harness, partition) = restart(harness, partition, &config).await;
    assert_eq!(partition.0.ends().start, offset(4));
    assert_eq!(partition.values().await.len(), 8);
    // Everything may go; the offsets go on.
    assert_eq!(trim(&partition, 12).await.expect("it is the end"), offset(12));
    assert_eq!(partition.values().await, Vec::<String>::new());
    assert_eq!(partition.append(batch(None, "after", 1)).await, 12);
}

/// Whole segments from the oldest on, while what remains is at least the limit.
pub async fn retention_by_size_keeps_the_limit<H: Harness>() {
    let harness = H::create().await;
    let config = PartitionConfig {
        segment_bytes: ByteCount::kib(4),
        retention_bytes: Some(ByteCount::kib(20)),
        ..PartitionConfig::default()
    };
    let partition = Partition::create(&harness, config.clone()).await;
    for _ in 0..50 {
        partition.append(heavy(1000, NOW.as_millis())).await;
    }
    let before = partition.0.info();
    assert!(before.segments >= 12, "{before:?}");
    let (done, _) = maintain(&partition, NOW).await;
    let after = partition.0.info();
    assert_eq!(done.deleted, before.segments - after.segments);
    assert_eq!(done.freed, ByteCount(before.bytes.get() - after.bytes.get()));
    assert!(after.bytes >= ByteCount::kib(20) && after.bytes < ByteCount::kib(25), "{after:?}");
    assert!(after.ends.start > Offset::ZERO && after.ends.start < offset(50));
    assert_eq!(partition.values().await.len() as u64, 50 - after.ends.start.get());
    assert_eq!(maintain(&partition, NOW).await.0.deleted, 0);
    let (_harness, partition) = restart(harness, partition, &config).await;
    assert_eq!(partition.0.ends().start, after.ends.start);
}

/// By the largest time of each segment, so that one young record keeps its segment.
pub async fn retention_by_age_takes_whole_segments<H: Harness>() {
    const DAY: i64 = 24 * 60 * 60 * 1000;
    let harness = H::create().await;
    let config = PartitionConfig {
        segment_bytes: ByteCount::kib(4),
        retention_age: Some(Duration::from_millis(DAY as u64)),
        ..PartitionConfig::default()
    };
    let partition = Partition::create(&harness, config).await;
    let old = NOW.as_millis() - 2 * DAY;
    for n in 0..40 {
        // One record in the middle is young.
        partition.append(heavy(1000, if n == 20 { NOW.as_millis() } else { old })).await;
    }
    let (done, _) = maintain(&partition, NOW).await;
    assert!(done.deleted > 0);
    let start = partition.0.ends().start;
    assert!(start > offset(10) && start <= offset(20), "{start}");
    // Later that one is old as well.
    maintain(&partition, NOW.saturating_add(Duration::from_millis(2 * DAY as u64))).await;
    let ends = partition.0.ends();
    assert!(ends.start > offset(20), "{ends:?}");
    assert_eq!(partition.values().await.len() as u64, 40 - ends.start.get());
    assert_eq!(ends.stable, offset(40));
    assert_eq!(partition.append(heavy(1000, NOW.as_millis())).await, 40);
}

/// One pass takes a bounded share, and says that more is due.
pub async fn a_clock_that_jumps_empties_no_log<H: Harness>() {
    let harness = H::create().await;
    let config = PartitionConfig { segment_bytes: ByteCount::kib(4), ..PartitionConfig::default() };
    let partition = Partition::create(&harness, config).await;
    for _ in 0..50 {
        partition.append(heavy(1000, NOW.as_millis())).await;
    }
    let segments = partition.0.info().segments;
    let far = NOW.saturating_add(Duration::from_secs(100 * 365 * 24 * 60 * 60));
    let done = within("maintenance", partition.0.maintain(far)).await.expect("the partition is open");
    assert!(done.more, "{done:?}");
    assert!(done.deleted > 0 && done.deleted <= segments / 2, "{done:?} of {segments}");
    let (_, passes) = maintain(&partition, far).await;
    assert!(passes > 1);
}

/// A batch that was read stays what it is, whatever becomes of its segment.
pub async fn bytes_in_a_readers_hands_outlive_retention<H: Harness>() {
    let harness = H::create().await;
    let config = PartitionConfig { segment_bytes: ByteCount::kib(4), ..PartitionConfig::default() };
    let partition = Partition::create(&harness, config).await;
    for _ in 0..20 {
        partition.append(heavy(1000, NOW.as_millis())).await;
    }
    let held = partition.read(0, read_limit()).await;
    within("a trim", partition.0.trim(offset(20))).await.expect("it is the end");
    within("a deletion", harness.storage().delete(id(1, 0).topic)).await.expect("the topic is there");
    assert!(!held.batches.is_empty());
    for read in &held.batches {
        let again = Batch::verify(Bytes::copy_from_slice(read.batch.bytes()), &Limits::default());
        assert_eq!(again.expect("the bytes are what they were"), read.batch);
    }
}
