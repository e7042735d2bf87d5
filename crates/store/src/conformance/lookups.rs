//! Counts, append times and times over what is no record: control batches, batches that compaction has emptied,
//! gaps within batches; with log start inside a batch and over many segments.

use super::*;
use crate::{OffsetAt, ReadBatch, RecordCount};

/// Where the fields of a batch header lie that these tests change (docs/format.md).
const LENGTH_AT: usize = 8;
const CRC_AT: usize = 17;
const CRC_COVERS_FROM: usize = 21;
const ATTRIBUTES_LOW_AT: usize = 22;
const LAST_OFFSET_DELTA_AT: usize = 23;
const BASE_TIMESTAMP_AT: usize = 27;
const RECORD_COUNT_AT: usize = 57;
const CONTROL_BIT: u8 = 0x20;

/// A batch over `offsets` offsets, with a record (its time) at each of the given ones, below 64, and nothing at the
/// others: what compaction leaves.
pub fn sparse(offsets: u32, there: &[(u8, i8)]) -> Batch {
    let mut bytes = BatchBuilder::new(Compression::None).build().bytes().to_vec();
    let zigzag = |value: i8| ((value << 1) ^ (value >> 7)) as u8;
    for &(delta, time) in there {
        assert!(delta < 64 && (-64..64).contains(&time), "one byte as a varint");
        // Attributes, time, offset, no key, no value, no headers.
        bytes.extend_from_slice(&[zigzag(6), 0, zigzag(time), delta << 1, 1, 1, 0]);
    }
    let length = bytes.len() as u32 - 12;
    bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
    bytes[LAST_OFFSET_DELTA_AT..LAST_OFFSET_DELTA_AT + 4].copy_from_slice(&(offsets - 1).to_be_bytes());
    bytes[RECORD_COUNT_AT..RECORD_COUNT_AT + 4].copy_from_slice(&(there.len() as u32).to_be_bytes());
    let max = there.iter().map(|(_, time)| i64::from(*time)).max().unwrap_or_default();
    bytes[BASE_TIMESTAMP_AT..BASE_TIMESTAMP_AT + 16].copy_from_slice(&[[0; 8], max.to_be_bytes()].concat());
    sealed(bytes)
}

/// A marker of the server's, over one offset, as a transaction's end would leave it.
pub fn control(time: i64) -> Batch {
    let mut bytes = timed(None, "marker", &[time]).bytes().to_vec();
    bytes[ATTRIBUTES_LOW_AT] |= CONTROL_BIT;
    sealed(bytes)
}

/// The batch with its checksum made right.
fn sealed(mut bytes: Vec<u8>) -> Batch {
    let crc = crc32c::crc32c(&bytes[CRC_COVERS_FROM..]);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    Batch::verify(Bytes::from(bytes), &Limits::default()).expect("but for its checksum it was a batch")
}

async fn count(partition: &Partition, from: u64, to: u64) -> RecordCount {
    let counted = within("a count", partition.0.count(offset(from), offset(to))).await;
    counted.expect("the log can be counted")
}

async fn append_time_at(partition: &Partition, at: u64) -> Option<i64> {
    let found = within("a look-up", partition.0.append_time_at(offset(at))).await;
    found.expect("the log can be read").map(|time| time.millis_since(NOW))
}

async fn find(partition: &Partition, at: i64) -> Option<(u64, i64)> {
    let found = within("a search", partition.0.offset_for_time(Timestamp(at))).await;
    found.expect("the log can be searched").map(|found| (found.offset.get(), found.time.as_millis()))
}

async fn highest(partition: &Partition) -> Option<(u64, i64)> {
    let found = within("a search", partition.0.offset_of_max_time()).await;
    let found = found.expect("the log can be searched");
    found.map(|OffsetAt { offset, time }| (offset.get(), time.as_millis()))
}

/// Each batch taken a millisecond after the one before.
async fn fill(partition: &Partition, batches: &[Batch]) {
    for (step, batch) in batches.iter().enumerate() {
        let now = Timestamp(NOW.as_millis() + step as i64);
        let ticket = partition.submit(Append { now, ..append(batch.clone()) });
        within("an answer", ticket).await.expect("it is taken");
    }
}

/// Control batches and emptied batches take offsets, and are no records, have no append time and no time.
pub async fn what_is_no_record_is_not_counted<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let batches = [
        timed(None, "a", &[10, 20]), // 0, 1
        control(99),                 // 2
        sparse(5, &[]),              // 3 to 7
        timed(None, "b", &[30]),     // 8
        control(98),                 // 9
    ];
    fill(&partition, &batches).await;
    for (from, to, expected) in
        [(0, 10, 3), (0, 2, 2), (1, 8, 1), (2, 3, 0), (2, 8, 0), (3, 5, 0), (4, 9, 1), (9, 10, 0), (8, 99, 1)]
    {
        assert_eq!(count(&partition, from, to).await.records, expected, "{from} to {to}");
    }
    for (at, expected) in
        [(0, Some(0)), (1, Some(0)), (2, Some(3)), (5, Some(3)), (8, Some(3)), (9, None), (10, None)]
    {
        assert_eq!(append_time_at(&partition, at).await, expected, "{at}");
    }
    assert_eq!(find(&partition, 21).await, Some((8, 30)));
    assert_eq!(find(&partition, 31).await, None);
    assert_eq!(highest(&partition).await, Some((8, 30)));
    // The bytes are those of whole batches, with what lies around them.
    let (all, one) = (count(&partition, 0, 10).await.bytes.get(), count(&partition, 1, 2).await.bytes.get());
    let bare = |batches: &[Batch]| batches.iter().map(|batch| batch.bytes().len() as u64).sum::<u64>();
    assert!((bare(&batches)..bare(&batches) + 100 * 5).contains(&all), "{all}");
    assert!((bare(&batches[..1])..bare(&batches[..1]) + 100).contains(&one), "{one}");
    assert_eq!(count(&partition, 5, 5).await, RecordCount::default());
    // Log start inside a batch whose other record had the highest time.
    within("a trim", partition.0.trim(offset(9))).await.expect("it is in the log");
    assert_eq!(highest(&partition).await, None);
    assert_eq!(append_time_at(&partition, 0).await, None);
    assert_eq!(count(&partition, 0, 10).await.records, 0);
}

/// A batch that has gaps: before its first record, between two, behind the last.
pub async fn gaps_within_batches_are_not_counted<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    // Records at 2, 5 and 6 of 0 to 9; at 13 of 10 to 13.
    fill(&partition, &[sparse(10, &[(2, 60), (5, 20), (6, 30)]), sparse(4, &[(3, 40)])]).await;
    for (from, to, expected) in [
        (0, 14, 4),
        (0, 2, 0),
        (0, 3, 1),
        (3, 5, 0),
        (3, 6, 1),
        (6, 7, 1),
        (7, 13, 0),
        (7, 14, 1),
        (11, 12, 0),
    ] {
        assert_eq!(count(&partition, from, to).await.records, expected, "{from} to {to}");
    }
    for (at, expected) in [(0, Some(0)), (6, Some(0)), (7, Some(1)), (9, Some(1)), (13, Some(1)), (14, None)]
    {
        assert_eq!(append_time_at(&partition, at).await, expected, "{at}");
    }
    assert_eq!(find(&partition, 25).await, Some((2, 60)));
    assert_eq!(highest(&partition).await, Some((2, 60)));
    within("a trim", partition.0.trim(offset(3))).await.expect("it is in the log");
    assert_eq!(find(&partition, 25).await, Some((6, 30)));
    assert_eq!(highest(&partition).await, Some((13, 40)));
    within("a trim", partition.0.trim(offset(7))).await.expect("it is in the log");
    assert_eq!(count(&partition, 0, 14).await.records, 1);
    assert_eq!(append_time_at(&partition, 0).await, Some(1));
}

/// The same random numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn random_batch(random: &mut Random) -> Batch {
    match random.below(8) {
        0 => control(random.below(100) as i64),
        1 => sparse(1 + random.below(20) as u32, &[]),
        2..=4 => {
            let offsets = 1 + random.below(60) as u32;
            let there: Vec<_> =
                (0..offsets as u8).filter(|_| random.0 & (1 << 40) != 0 || random.below(3) == 0).collect();
            let there: Vec<_> = there.into_iter().map(|delta| (delta, random.below(60) as i8)).collect();
            sparse(offsets, &there)
        }
        5 => heavy(400 + random.below(800) as usize, random.below(60) as i64),
        _ => {
            let times: Vec<_> = (0..=random.below(4)).map(|_| random.below(60) as i64).collect();
            timed(None, "r", &times)
        }
    }
}

/// Offset, time and append time of every record from log start on, by reading everything.
async fn scan(partition: &Partition) -> Vec<(u64, i64, i64)> {
    let ends = partition.0.ends();
    let mut from = ends.start;
    let mut all = Vec::new();
    while from < ends.stable {
        let read = partition.read(from.get(), read_limit()).await;
        for ReadBatch { batch, append_time } in &read.batches {
            if !batch.header().is_control() {
                let append_time = append_time.millis_since(NOW);
                let row = |record: Record| (record.offset.get(), record.timestamp.as_millis(), append_time);
                all.extend(records(batch).into_iter().map(row).filter(|row| row.0 >= ends.start.get()));
            }
        }
        from = read.next;
    }
    all
}

async fn agree(partition: &Partition, random: &mut Random, seed: u64) {
    let all = scan(partition).await;
    let end = partition.end();
    for _ in 0..60 {
        let (from, to) = (random.below(end + 2), random.below(end + 2));
        let expected = all.iter().filter(|row| (from..to).contains(&row.0)).count() as u64;
        assert_eq!(
            count(partition, from, to).await.records,
            expected,
            "seed {seed}: {from} to {to} of {end}"
        );
        let expected = all.iter().find(|row| row.0 >= from).map(|row| row.2);
        assert_eq!(append_time_at(partition, from).await, expected, "seed {seed}: at {from} of {end}");
        let at = random.below(62) as i64;
        let expected = all.iter().find(|row| row.1 >= at).map(|row| (row.0, row.1));
        assert_eq!(find(partition, at).await, expected, "seed {seed}: time {at}");
    }
    let max = all.iter().map(|row| row.1).max();
    let expected = all.iter().find(|row| Some(row.1) == max).map(|row| (row.0, row.1));
    assert_eq!(highest(partition).await, expected, "seed {seed}");
}

/// Whatever the history: what look-ups answer is what reading everything finds, over many segments, behind a log
/// start anywhere, and after a restart.
pub async fn look_ups_agree_with_a_scan_of_all_records<H: Harness>() {
    for seed in 1..=6 {
        let random = &mut Random(seed);
        let harness = H::create().await;
        let config = PartitionConfig { segment_bytes: ByteCount::kib(8), ..PartitionConfig::default() };
        let partition = Partition::create(&harness, config.clone()).await;
        let batches: Vec<_> = (0..120).map(|_| random_batch(random)).collect();
        fill(&partition, &batches).await;
        assert!(partition.0.info().segments > 2, "several segments");
        agree(&partition, random, seed).await;
        for _ in 0..3 {
            let start = partition.0.ends().start.get();
            let to = start + random.below(partition.end() - start + 1) / 2;
            within("a trim", partition.0.trim(offset(to))).await.expect("it is in the log");
            agree(&partition, random, seed).await;
        }
        let (_harness, partition) = restart(harness, partition, &config).await;
        agree(&partition, random, seed).await;
    }
}
