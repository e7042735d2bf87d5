//! Damage that is met, looked for, shown and given up, while everything else goes on.

use super::*;
use crate::{AcceptLossError, OffsetRange, ReadError, ScrubScope, StoreError, StoreState};

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const RECORDS: u64 = 60;

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

fn small() -> PartitionConfig {
    PartitionConfig { segment_bytes: ByteCount(4096), ..PartitionConfig::default() }
}

fn open(directory: &Path) -> Arc<LocalStorage> {
    LocalStorage::open(options(directory, SyncPreference::Auto)).unwrap()
}

fn value(number: u64) -> String {
    format!("{number:0500}")
}

/// A partition of several segments, and its directory.
async fn filled(directory: &Path) -> (Arc<LocalStorage>, Arc<dyn PartitionStore>, PathBuf) {
    let storage = open(directory);
    let partition = storage.open(id(5), small(), OpenMode::CreateNew).await.unwrap();
    for number in 0..RECORDS {
        partition.submit(append(&value(number))).unwrap().await.unwrap();
    }
    let path = storage.shared.directory.partition_path(id(5));
    (storage, partition, path)
}

/// Flips a bit in the body of the batch at an offset.
fn rot(path: &Path, number: u64) {
    for entry in std::fs::read_dir(path).unwrap() {
        let file = entry.unwrap().path();
        let mut content = std::fs::read(&file).unwrap();
        let wanted = value(number);
        let found = content.windows(wanted.len()).position(|window| window == wanted.as_bytes());
        if let Some(at) = found.filter(|_| file.extension().is_some_and(|suffix| suffix == "log")) {
            content[at + 100] ^= 1;
            std::fs::write(&file, content).unwrap();
            return;
        }
    }
    panic!("offset {number} is in no segment");
}

/// Numbers of the records that can be read, and the ranges that cannot.
async fn read(partition: &Arc<dyn PartitionStore>) -> (Vec<u64>, Vec<OffsetRange>) {
    let (mut numbers, mut lost, mut from) = (Vec::new(), Vec::new(), partition.ends().start);
    let end = partition.ends().durable;
    while from < end {
        let limit = ReadLimit { bytes: ByteCount(2000), until: None, visibility: Visibility::Stable };
        match partition.read(from, limit).await {
            Ok(read) => {
                for read in read.batches {
                    for record in read.batch.records(&rimstone_record::Limits::default()).unwrap() {
                        let value = record.unwrap().value.unwrap();
                        numbers.push(std::str::from_utf8(&value).unwrap().parse().unwrap());
                    }
                    from = read.batch.next_offset();
                }
            }
            Err(ReadError::DataLoss { from: first, until, .. }) => {
                assert!(first == from && until > first);
                lost.push(OffsetRange { from: first, until });
                from = until;
            }
            Err(error) => panic!("{error}"),
        }
    }
    (numbers, lost)
}

async fn scrub(partition: &Arc<dyn PartitionStore>, scope: ScrubScope) -> (u64, u32, u32) {
    let (mut read, mut segments, mut found, mut slices) = (0, 0, 0, 0);
    loop {
        let done = partition.scrub(scope, ByteCount(1000)).await.unwrap();
        read += done.read.get();
        segments += done.segments;
        found += done.found;
        slices += 1;
        assert!(slices < 1000);
        if !done.more {
            return (read, segments, found);
        }
    }
}

fn known(partition: &Arc<dyn PartitionStore>) -> Vec<OffsetRange> {
    let info = partition.info();
    info.damage.iter().map(|range| OffsetRange { from: range.from, until: range.until }).collect()
}

fn all_but(lost: &[u64]) -> Vec<u64> {
    (0..RECORDS).filter(|number| !lost.contains(number)).collect()
}

#[tokio::test]
async fn a_scrub_finds_what_nobody_reads_and_the_rest_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, partition, path) = filled(directory.path()).await;
    let (bytes, segments, found) = scrub(&partition, ScrubScope::Sealed).await;
    let info = partition.info();
    assert_eq!((segments, found), (info.segments - 1, 0));
    assert!(bytes > info.bytes.get() / 2);
    assert_eq!(storage.statistics().damaged_ranges, 0);

    for number in [7, 8, 30] {
        rot(&path, number);
    }
    assert_eq!(known(&partition), []);
    let (_, _, found) = scrub(&partition, ScrubScope::Sealed).await;
    let damage = known(&partition);
    let range = |from, until| OffsetRange { from: offset(from), until: offset(until) };
    assert_eq!(damage.last(), Some(&range(30, 31)));
    assert_eq!(damage.first().map(|first| first.from), Some(offset(7)));
    assert_eq!(found as usize, damage.len());
    // Whoever reads it, and whoever looks again, finds nothing new.
    let (numbers, _) = read(&partition).await;
    assert_eq!(numbers, all_but(&[7, 8, 30]));
    assert_eq!(scrub(&partition, ScrubScope::Sealed).await.2, 0);
    assert_eq!(partition.find_damage().await.unwrap(), partition.info().damage);
    assert_eq!(storage.statistics().damaged_ranges, damage.len() as u64);
    partition.submit(append(&value(RECORDS))).unwrap().await.unwrap();

    // What lies below the log start is nobody's loss.
    partition.trim(offset(9)).await.unwrap();
    assert_eq!(known(&partition), [range(30, 31)]);
}

#[tokio::test]
async fn what_a_read_meets_is_measured_also_in_the_segment_that_is_written_to() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, partition, path) = filled(directory.path()).await;
    rot(&path, RECORDS - 1);
    assert_eq!(scrub(&partition, ScrubScope::Sealed).await.2, 0, "it is not sealed");
    assert_eq!(scrub(&partition, ScrubScope::Suspects).await, (0, 0, 0), "nobody has met anything");
    let (numbers, lost) = read(&partition).await;
    assert_eq!((numbers, lost.len()), (all_but(&[RECORDS - 1]), 1));
    assert_eq!(known(&partition), lost);
    let (bytes, segments, found) = scrub(&partition, ScrubScope::Suspects).await;
    assert!(bytes > 0 && segments == 1 && found == 0);
    assert_eq!(known(&partition), lost);
    assert_eq!(scrub(&partition, ScrubScope::Suspects).await, (0, 0, 0), "it is measured");
    assert_eq!(storage.statistics().damaged_ranges, 1);

    // A wrong name changes nothing, also where the segment is still written to.
    let segments = partition.info().segments;
    for wrong in [
        OffsetRange { from: offset(RECORDS - 2), until: offset(RECORDS) },
        OffsetRange { from: offset(RECORDS - 2), until: offset(RECORDS - 1) },
        OffsetRange { from: offset(RECORDS + 5), until: offset(RECORDS + 6) },
    ] {
        let refused = partition.accept_loss(vec![wrong], NOW).await.unwrap_err();
        assert!(matches!(&refused, AcceptLossError::Differs { found } if found.ranges == 1), "{refused}");
        assert_eq!(partition.info().segments, segments, "{wrong}");
    }

    // It can be given up there as well, and the log goes on behind it.
    let accepted = partition.accept_loss(lost, NOW).await.unwrap();
    assert_eq!(accepted, partition.info().accepted_losses);
    partition.submit(append(&value(RECORDS))).unwrap().await.unwrap();
    assert_eq!(read(&partition).await.1, []);
    assert_eq!(partition.ends().durable, offset(RECORDS + 1));
}

/// The record may be in what is damaged: nobody steps over that by asking for a time.
#[tokio::test]
async fn a_look_up_by_time_names_the_damage_that_it_leads_to() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, partition, path) = filled(directory.path()).await;
    rot(&path, 7);
    rot(&path, RECORDS - 1);
    let (_, lost) = read(&partition).await;
    let first = partition.offset_for_time(Timestamp(i64::MIN)).await.unwrap();
    assert_eq!(first.map(|found| found.offset), Some(offset(0)), "it leads to none of it");
    partition.trim(lost[0].from).await.unwrap();
    match partition.offset_for_time(Timestamp(i64::MIN)).await {
        Err(ReadError::DataLoss { from, until, .. }) => assert_eq!(OffsetRange { from, until }, lost[0]),
        other => panic!("{other:?}"),
    }
    assert_eq!(storage.statistics().damaged_ranges, 2, "it was known");
    partition.accept_loss(lost.clone(), NOW).await.unwrap();
    let found = partition.offset_for_time(Timestamp(i64::MIN)).await.unwrap().unwrap();
    assert_eq!(found.offset, lost[0].until);
    assert_eq!(partition.offset_for_time(Timestamp(i64::MAX)).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_given_up_is_a_gap_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, partition, path) = filled(directory.path()).await;
    rot(&path, 7);
    rot(&path, 30);
    scrub(&partition, ScrubScope::Sealed).await;
    let damage = known(&partition);
    let generation = partition.generation();

    // Only what is damaged, named as it is.
    let wrong = OffsetRange { until: damage[0].until.checked_add(1).unwrap(), ..damage[0] };
    let refused = partition.accept_loss(vec![wrong], NOW).await.unwrap_err();
    assert!(matches!(&refused, AcceptLossError::Differs { found } if found.ranges == 1), "{refused}");
    assert_eq!(known(&partition), damage);

    let accepted = partition.accept_loss(damage.clone(), NOW).await.unwrap();
    let ranges: Vec<_> =
        accepted.iter().map(|loss| OffsetRange { from: loss.from, until: loss.until }).collect();
    assert_eq!(ranges, damage);
    assert!(accepted.iter().all(|loss| loss.bytes > 2000 && loss.kept.exists()));
    assert_ne!(partition.generation(), generation, "what was counted is counted anew");
    assert_eq!((known(&partition), read(&partition).await), (vec![], (all_but(&[7, 30]), vec![])));
    let count = partition.count(offset(0), offset(RECORDS)).await.unwrap();
    assert_eq!(count.records, RECORDS - 2);
    assert_eq!(scrub(&partition, ScrubScope::Sealed).await.2, 0);

    drop((partition, storage));
    for _ in 0..2 {
        let storage = open(directory.path());
        let partition = storage.open(id(5), small(), OpenMode::MustExist).await.unwrap();
        assert_eq!(read(&partition).await, (all_but(&[7, 30]), vec![]));
        assert_eq!(partition.info().accepted_losses, accepted);
        assert_eq!((known(&partition), storage.statistics().damaged_ranges), (vec![], 0));
    }
}

#[tokio::test]
async fn a_start_tells_of_damage_before_anybody_reads() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, partition, path) = filled(directory.path()).await;
    let last = partition.ends().durable;
    drop((partition, storage));
    // Without a header nothing of it can be read; without a snapshot, what is behind it is gone over by a start.
    let header = path.join(format!("{:020}.log", 0));
    let mut content = std::fs::read(&header).unwrap();
    content[20] ^= 1;
    std::fs::write(&header, content).unwrap();
    for entry in std::fs::read_dir(&path).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|suffix| suffix == "producers") {
            std::fs::remove_file(file).unwrap();
        }
    }
    rot(&path, 40);
    let body = path.join(format!("{:020}.log", 0));
    assert!(body.exists());

    let storage = open(directory.path());
    let partition = storage.open(id(5), small(), OpenMode::MustExist).await.unwrap();
    let first = known(&partition);
    assert_eq!((first.len(), first[0].from), (1, offset(0)), "the header shows at once");
    assert_eq!(storage.statistics().damaged_ranges, 1);
    assert_eq!(partition.ends().durable, last);
    let (_, lost) = read(&partition).await;
    assert_eq!(lost.len(), 2);
    let accepted = partition.accept_loss(lost, NOW).await.unwrap();
    assert_eq!(accepted.len(), 2);
    assert_eq!(read(&partition).await.1, []);
}

#[tokio::test]
async fn a_partition_that_was_poisoned_gives_nothing_up_and_is_still_scrubbed() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, partition, path) = filled(directory.path()).await;
    rot(&path, 7);
    storage.shared.all()[0].poison("made up");
    assert!(matches!(partition.info().state, StoreState::Poisoned { .. }));
    assert_eq!(scrub(&partition, ScrubScope::Sealed).await.2, 1);
    let damage = known(&partition);
    let refused = partition.accept_loss(damage.clone(), NOW).await.unwrap_err();
    assert!(matches!(refused, AcceptLossError::Store(StoreError::Poisoned { .. })), "{refused}");
    assert_eq!(known(&partition), damage);
    assert!(partition.info().accepted_losses.is_empty());
    drop(partition);
    storage.close().await.unwrap_err();
}

/// Compaction passes damage by, a look measures it, and once it is given up nothing is in the way.
#[tokio::test]
async fn what_compaction_meets_is_named_and_what_is_given_up_is_no_obstacle() {
    let directory = tempfile::tempdir().unwrap();
    let storage = open(directory.path());
    let config = PartitionConfig {
        cleanup: crate::CleanupPolicy::Compact,
        compaction: crate::CompactionConfig {
            min_dirty_ratio: crate::Share::from_millionths(0).unwrap(),
            ..crate::CompactionConfig::default()
        },
        ..small()
    };
    let partition = storage.open(id(5), config, OpenMode::CreateNew).await.unwrap();
    for number in 0..RECORDS {
        let mut builder = BatchBuilder::new(Compression::None);
        let (key, value) = (Some(Bytes::from_static(b"key")), Some(Bytes::from(value(number))));
        builder.push(&NewRecord { key, value, ..NewRecord::default() }).unwrap();
        let append = Append { batch: builder.build(), ..append("") };
        partition.submit(append).unwrap().await.unwrap();
    }
    rot(&storage.shared.directory.partition_path(id(5)), 20);
    let pass = async || loop {
        match partition.compact(NOW, ByteCount::mib(1)).await {
            Ok(done) if done.more => {}
            done => return done.map(drop),
        }
    };
    pass().await.unwrap_err();
    assert_eq!(partition.find_damage().await.unwrap().len(), 1);
    pass().await.unwrap();
    assert_eq!(partition.info().obstacles.len(), 1);
    let damage = known(&partition);
    partition.accept_loss(damage, NOW).await.unwrap();
    pass().await.unwrap();
    partition.dirtiness(NOW).await.unwrap();
    assert_eq!(partition.info().obstacles, []);
    let (numbers, lost) = read(&partition).await;
    assert_eq!(lost, []);
    assert_eq!(numbers.last(), Some(&(RECORDS - 1)));
    assert!(numbers.len() < 20, "{numbers:?}");
}

/// A header that is damaged does not make a segment old.
#[tokio::test]
async fn retention_does_not_take_a_damaged_segment_for_an_old_one() {
    const HOUR: i64 = 3_600_000;
    let directory = tempfile::tempdir().unwrap();
    let config = PartitionConfig { timestamp_type: crate::TimestampType::AppendTime, ..small() };
    let storage = open(directory.path());
    let partition = storage.open(id(5), config.clone(), OpenMode::CreateNew).await.unwrap();
    for number in 0..RECORDS {
        partition.submit(append(&value(number))).unwrap().await.unwrap();
    }
    let path = storage.shared.directory.partition_path(id(5));
    drop((partition, storage));
    let first = path.join(format!("{:020}.log", 0));
    let mut content = std::fs::read(&first).unwrap();
    content[20] ^= 1;
    std::fs::write(&first, content).unwrap();
    let storage = open(directory.path());
    let partition = storage.open(id(5), config, OpenMode::MustExist).await.unwrap();
    let maintained =
        partition.maintain(NOW.saturating_add(Duration::from_millis(HOUR as u64))).await.unwrap();
    assert_eq!((maintained.deleted, partition.ends().start), (0, offset(0)));
    assert!(first.exists());
    let month = NOW.saturating_add(Duration::from_millis(30 * 24 * HOUR as u64));
    assert!(partition.maintain(month).await.unwrap().deleted > 0);
    assert!(!first.exists());
}

#[tokio::test]
async fn a_segment_that_could_not_be_checked_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let (_storage, partition, path) = filled(directory.path()).await;
    let first = path.join(format!("{:020}.log", 0));
    // Nothing that is damage: it cannot be read as a file at all.
    std::fs::remove_file(&first).unwrap();
    std::fs::create_dir(&first).unwrap();
    let (mut failed, mut segments) = (0, 0);
    loop {
        let done = partition.scrub(ScrubScope::Sealed, ByteCount(1000)).await.unwrap();
        failed += done.failed;
        segments += done.segments;
        if !done.more {
            break;
        }
    }
    assert_eq!((failed, segments), (1, partition.info().segments - 2));
}
