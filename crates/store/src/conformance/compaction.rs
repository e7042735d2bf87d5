//! Compaction: what stays, what is told, and what a restart makes of it.

use std::collections::BTreeMap;

use super::*;
use crate::{CleanupPolicy, Compacted, CompactionConfig, Dirtiness, Share};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A topic that is compacted whenever something is dirty.
fn compacted(cleanup: CleanupPolicy) -> PartitionConfig {
    PartitionConfig {
        cleanup,
        segment_bytes: ByteCount::kib(4),
        segment_age: HOUR,
        compaction: CompactionConfig { min_dirty_ratio: share(0), ..CompactionConfig::default() },
        ..PartitionConfig::default()
    }
}

fn share(millionths: u32) -> Share {
    Share::from_millionths(millionths).expect("at most one")
}

fn later(hours: u32) -> Timestamp {
    NOW.saturating_add(HOUR * hours)
}

/// A batch of keys with values; without one it is a tombstone.
fn keyed(producer: Option<ProducerStamp>, records: &[(&str, Option<&str>)]) -> Batch {
    let mut builder = BatchBuilder::new(Compression::None);
    if let Some(stamp) = producer {
        builder = builder.producer(stamp);
    }
    for (key, value) in records {
        let record = NewRecord {
            key: (!key.is_empty()).then(|| Bytes::from((*key).to_owned())),
            value: value.map(|value| Bytes::from(value.to_owned())),
            headers: Vec::new(),
            timestamp: NOW,
        };
        builder.push(&record).expect("a small record fits");
    }
    builder.build()
}

/// Rolls the active segment by age, and compacts until nothing more is to be done.
async fn compact(partition: &Partition, now: Timestamp) -> Compacted {
    within("maintenance", partition.0.maintain(now)).await.expect("the partition is open");
    let mut all = Compacted::default();
    for _ in 0..10_000 {
        let done =
            within("a slice", partition.0.compact(now, ByteCount(1000))).await.expect("it can be compacted");
        all.finished |= done.finished;
        all.read.0 += done.read.get();
        all.written.0 += done.written.get();
        all.records_removed += done.records_removed;
        all.segments_before += done.segments_before;
        all.segments_after += done.segments_after;
        if !done.more {
            return all;
        }
    }
    panic!("it does not come to an end: {all:?}");
}

/// Offset, key and value of all records.
async fn shown(partition: &Partition) -> Vec<(u64, String, Option<String>)> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).expect("the tests write text");
    let start = partition.0.ends().start;
    let all = partition.read_all().await;
    all.iter()
        .flat_map(records)
        .filter(|record| record.offset >= start)
        .map(|record| {
            let key = record.key.as_ref().map_or(String::new(), text);
            (record.offset.get(), key, record.value.as_ref().map(text))
        })
        .collect()
}

/// The last record of each key, where and when it was; every other is gone, and counts and look-ups know it.
pub async fn the_last_record_of_each_key_stays<H: Harness>() {
    let harness = H::create().await;
    let config = compacted(CleanupPolicy::Compact);
    let mut partition = Partition::create(&harness, config.clone()).await;
    let mut last = BTreeMap::new();
    for n in 0..100u64 {
        let (key, value) = (format!("key-{}", n % 13), format!("value-{n}-{}", "x".repeat(50)));
        let now = NOW.saturating_add(Duration::from_millis(n));
        let batch = keyed(None, &[(&key, Some(&value)), ("", Some("no key"))]);
        within("an answer", partition.submit(Append { now, ..append(batch) })).await.expect("it is taken");
        last.insert(key, (n * 2, now, value));
    }
    let generation = partition.0.generation();
    let done = compact(&partition, later(2)).await;
    assert_eq!(done.records_removed, 87);
    assert_ne!(partition.0.generation(), generation, "what was counted before is not true any more");
    assert!(
        done.finished && done.segments_before >= done.segments_after && done.segments_after > 0,
        "{done:?}"
    );
    assert!(done.read.get() > 0 && done.written.get() > 0, "{done:?}");
    let mut harness = harness;
    for round in 0..3 {
        let all = shown(&partition).await;
        let keyed: Vec<_> = all.iter().filter(|(_, key, _)| !key.is_empty()).collect();
        assert_eq!(all.len() - keyed.len(), 100, "a record without a key is the last of none");
        assert_eq!(keyed.len(), last.len());
        for (at, key, value) in keyed {
            let (offset_then, time, value_then) = &last[key];
            assert_eq!((at, value.as_ref()), (offset_then, Some(value_then)));
            let told = partition.0.append_time_at(offset(*at)).await.expect("the log can be read");
            assert_eq!(told, Some(*time));
        }
        for (from, to) in [(0, 200), (1, 150), (77, 180), (173, 174)] {
            let there = all.iter().filter(|(at, ..)| (from..to).contains(at)).count() as u64;
            let counted = within("a count", partition.0.count(offset(from), offset(to))).await;
            assert_eq!(counted.expect("the log can be counted").records, there, "{from}..{to}");
        }
        // From every offset on the next record there is found, also from within a gap.
        for from in [0, 2, 100, 101, 150, 199] {
            let read = partition.read(from, read_limit()).await;
            let first =
                read.batches.iter().flat_map(|read| records(&read.batch)).find(|r| r.offset.get() >= from);
            let expected = all.iter().find(|(at, ..)| *at >= from).map(|(at, ..)| *at);
            assert_eq!(first.map(|record| record.offset.get()), expected, "from {from}");
        }
        assert_eq!(partition.end(), 200);
        if round < 2 {
            (harness, partition) = restart(harness, partition, &config).await;
        }
    }
    assert_eq!(partition.append(keyed(None, &[("key-0", Some("after"))])).await, 200);
}

/// The active segment, young records, and logs that are clean enough or not to be compacted, stay as they are.
pub async fn compaction_waits_until_it_is_due<H: Harness>() {
    let harness = H::create().await;
    let ratio =
        |millionths| CompactionConfig { min_dirty_ratio: share(millionths), ..CompactionConfig::default() };
    let with = |compaction| PartitionConfig { compaction, ..compacted(CleanupPolicy::Compact) };
    let partition = Partition::create(&harness, with(ratio(0))).await;
    let put = async |n: u64| {
        let value = format!("{n}-{}", "x".repeat(300));
        partition.append(keyed(None, &[("same", Some(&value))])).await
    };
    let dirtiness =
        async |now| within("a look", partition.0.dirtiness(now)).await.expect("the partition is open");
    put(0).await;
    assert_eq!(dirtiness(NOW).await, Dirtiness::default(), "the active segment is not looked at");
    assert_eq!(
        within("a slice", partition.0.compact(NOW, ByteCount::mib(1))).await.expect("it is open"),
        Compacted::default()
    );
    for n in 1..40 {
        put(n).await;
    }
    let dirty = dirtiness(NOW).await;
    assert!(
        dirty.due && dirty.clean_bytes == 0 && dirty.dirty_bytes > 4000 && dirty.ratio() == 1.0,
        "{dirty:?}"
    );
    let info = partition.0.info();
    assert!(info.dirtiness.is_some_and(|told| told.dirty_bytes == dirty.dirty_bytes), "{info:?}");
    // Too young: the append times are those of `append`.
    partition.0.configure(with(CompactionConfig { min_lag: HOUR, ..ratio(0) }));
    assert_eq!(dirtiness(NOW).await, Dirtiness::default());
    // A ratio that is not reached, and the time that something may stay dirty.
    let kept = shown(&partition).await.len();
    partition.0.configure(with(ratio(0)));
    let done = compact(&partition, NOW).await;
    assert!(done.records_removed > 0 && done.records_removed < kept as u64, "{done:?}");
    assert_eq!(shown(&partition).await.len() as u64, kept as u64 - done.records_removed);
    put(40).await;
    partition.0.configure(with(ratio(990_000)));
    for n in 41..60 {
        put(n).await;
    }
    let dirty = dirtiness(later(1)).await;
    assert!(!dirty.due && dirty.clean_bytes > 0 && dirty.dirty_bytes > 0, "{dirty:?}");
    let lag = CompactionConfig { max_lag: Some(HOUR * 3), ..ratio(990_000) };
    partition.0.configure(with(lag));
    assert!(!dirtiness(later(2)).await.due && dirtiness(later(3)).await.due);
    // The active segment is rolled for it, so that what is in it can be compacted too.
    put(60).await;
    partition.0.configure(PartitionConfig { segment_age: HOUR * 1000, ..with(lag) });
    let rolled =
        async |now| within("maintenance", partition.0.maintain(now)).await.expect("it is open").rolled;
    assert_eq!((rolled(later(2)).await, rolled(later(3)).await), (0, 1));
    // Not compacted any more.
    partition.0.configure(PartitionConfig { cleanup: CleanupPolicy::Delete, ..with(lag) });
    assert_eq!(dirtiness(later(3)).await, Dirtiness::default());
    assert_eq!(partition.0.info().dirtiness, None);
    let slice = within("a slice", partition.0.compact(later(3), ByteCount::mib(1))).await;
    assert_eq!(slice.expect("it is open"), Compacted::default());
}

/// A tombstone is there for as long as it was promised after it was first cleaned, and then it is not.
pub async fn tombstones_have_their_time<H: Harness>() {
    let harness = H::create().await;
    let config = compacted(CleanupPolicy::Compact);
    let mut partition = Partition::create(&harness, config.clone()).await;
    partition.append(keyed(None, &[("gone", Some("1")), ("kept", Some("1"))])).await;
    partition.append(keyed(None, &[("gone", None)])).await;
    compact(&partition, later(2)).await;
    let there = |shown: &[(u64, String, Option<String>)]| shown.iter().any(|(_, key, _)| key == "gone");
    let first_cleaned = shown(&partition).await;
    assert_eq!(first_cleaned.len(), 2);
    assert!(there(&first_cleaned));
    let mut harness = harness;
    for (hours, stays) in [(10, true), (25, true), (26, false)] {
        // Something must be dirty for a pass to be due.
        let append = Append { now: later(hours - 2), ..append(keyed(None, &[("more", Some("x"))])) };
        within("an answer", partition.submit(append)).await.expect("it is taken");
        (harness, partition) = restart(harness, partition, &config).await;
        compact(&partition, later(hours)).await;
        assert_eq!(there(&shown(&partition).await), stays, "after {hours} hours");
    }
    assert_eq!(shown(&partition).await.first(), Some(&(1, "kept".to_owned(), Some("1".to_owned()))));
    // Nothing has to be dirty for it, but then it may take a tenth longer.
    let append = Append { now: later(27), ..append(keyed(None, &[("gone", None)])) };
    within("an answer", partition.submit(append)).await.expect("it is taken");
    compact(&partition, later(30)).await;
    for (hours, stays) in [(54, true), (56, true), (57, false)] {
        (harness, partition) = restart(harness, partition, &config).await;
        let due = within("a look", partition.0.dirtiness(later(hours))).await.expect("it is open");
        assert_eq!((due.dirty_bytes, due.due), (0, !stays), "after {hours} hours");
        compact(&partition, later(hours)).await;
        assert_eq!(there(&shown(&partition).await), stays, "after {hours} hours");
    }
    let due = within("a look", partition.0.dirtiness(later(1000))).await.expect("it is open");
    assert!(!due.due, "{due:?}");
    drop(harness);
}

/// Numbers are known after the records that came with them went, by sequence and by request.
pub async fn numbers_survive_compaction<H: Harness>() {
    let harness = H::create().await;
    let config = compacted(CleanupPolicy::Compact);
    let mut partition = Partition::create(&harness, config.clone()).await;
    let by_sequence = |n: u32| keyed(dense(UNNAMED, 0, n), &[("same", Some(&format!("{n}")))]);
    let by_request =
        |n: u32| keyed(request(NAMED, 1, n * 5), &[("same", Some(&format!("{n}"))), ("two", None)]);
    for n in 0..40 {
        partition.append(by_sequence(n)).await;
        partition.append(by_request(n)).await;
    }
    compact(&partition, later(2)).await;
    assert_eq!(shown(&partition).await.len(), 2);
    let mut harness = harness;
    for _ in 0..3 {
        for n in 0..40u32 {
            let first = u64::from(n) * 3;
            assert_eq!(partition.offer(by_sequence(n)).await, duplicate(first, first));
            assert_eq!(partition.offer(by_request(n)).await, duplicate(first + 1, first + 2));
        }
        (harness, partition) = restart(harness, partition, &config).await;
    }
    assert_eq!(partition.append(by_sequence(40)).await, 120);
    drop(harness);
}

/// `compact,delete`: old segments go by age, and what is left is compacted.
pub async fn both_policies_do_both<H: Harness>() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let harness = H::create().await;
    let config =
        PartitionConfig { retention_age: Some(DAY * 7), ..compacted(CleanupPolicy::CompactAndDelete) };
    let partition = Partition::create(&harness, config.clone()).await;
    for n in 0..60 {
        let value = format!("{n}-{}", "x".repeat(300));
        partition.append(keyed(None, &[(&format!("key-{}", n % 4), Some(&value))])).await;
    }
    compact(&partition, NOW.saturating_add(DAY)).await;
    assert_eq!(partition.0.ends().start, Offset::ZERO);
    assert_eq!(shown(&partition).await.len(), 4, "everything was rolled by age");
    let far = NOW.saturating_add(DAY * 8);
    for _ in 0..20 {
        within("maintenance", partition.0.maintain(far)).await.expect("the partition is open");
    }
    assert_eq!(shown(&partition).await, []);
    assert_eq!(partition.0.ends().start, offset(60));
    let (_harness, partition) = restart(harness, partition, &config).await;
    assert_eq!(partition.append(keyed(None, &[("key-1", Some("1"))])).await, 60);
}

/// A batch that was read stays what it is, and a reader goes on, whatever becomes of the segments meanwhile.
pub async fn readers_go_on_through_a_compaction<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, compacted(CleanupPolicy::Compact)).await;
    for n in 0..80 {
        let value = format!("{n}-{}", "x".repeat(200));
        partition.append(keyed(None, &[(&format!("key-{}", n % 10), Some(&value))])).await;
    }
    let small = ReadLimit { bytes: ByteCount(1), ..read_limit() };
    let held = partition.read(33, small).await;
    within("maintenance", partition.0.maintain(later(2))).await.expect("the partition is open");
    let mut from = held.next.get();
    let mut found = Vec::new();
    // A slice after each read.
    while from < 80 {
        let slice = within("a slice", partition.0.compact(later(2), ByteCount(500))).await;
        slice.expect("it can be compacted");
        let read = partition.read(from, small).await;
        found.extend(read.batches.iter().flat_map(|read| records(&read.batch)).map(|r| r.offset.get()));
        from = read.next.get();
    }
    assert!((70..80).all(|last| found.contains(&last)), "{found:?}");
    assert!(found.is_sorted_by(|a, b| a < b), "{found:?}");
    let again = Batch::verify(Bytes::copy_from_slice(held.batches[0].batch.bytes()), &Limits::default());
    assert_eq!(again.expect("the bytes are what they were"), held.batches[0].batch);
}
