//! Opening a data directory whose files were mutated, of every kind, and going on in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, atomic::AtomicU32, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use rimstone_log::{
    Access, CHECKPOINTS_FILE, Checkpoints, DataDirectory, Log, LogConfig, LogReadError, OpenOptions,
    ReadRange, SaltSource, WITNESS_FILE, Witness, inspect, producers,
};
use rimstone_record::{BatchBuilder, Compression, NewRecord};
use rimstone_types::{Offset, PartitionId, PartitionIndex, Timestamp, TopicId};
use uuid::Uuid;

use super::directory::{CASES, Case, temporary, write};
use crate::{Random, repair};

/// Reads of one log; a mutated one may claim any range of offsets, but nobody steps through it in smaller steps.
const READS_MAX: usize = 2000;
const PARTITION: PartitionId =
    PartitionId { topic: TopicId(Uuid::from_u128(0x601d)), partition: PartitionIndex(0) };

pub(crate) fn config(salt: u32) -> LogConfig {
    let salt = AtomicU32::new(salt);
    LogConfig {
        segment_bytes: 1200,
        segment_age: Duration::from_secs(3600),
        index_interval_bytes: 256,
        retention_age: None,
        retention_bytes: None,
        retention: true,
        append_time_stamps: false,
        producers: producers::Limits::default(),
        salts: SaltSource(Arc::new(move || salt.fetch_add(0x0123_4567, Ordering::Relaxed))),
    }
}

/// One input.
pub fn run(random: &mut Random) -> bool {
    let case = random.one_of(&CASES);
    let mut files = case.files.clone();
    let names: Vec<String> = files.keys().filter(|name| *name != "lock").cloned().collect();
    // Where checks over the log itself are repaired, what is served is what the mutation made of it; everywhere
    // else it must be what was written.
    let mut forged = false;
    for _ in 0..1 + random.below(3) {
        let name = random.one_of(&names).clone();
        match random.below(12) {
            0 => drop(files.remove(&name)),
            1 => {
                let other = files.get(random.one_of(&names)).cloned();
                other.into_iter().for_each(|other| drop(files.insert(name.clone(), other)));
            }
            _ => {
                let Some(content) = files.get_mut(&name) else { continue };
                random.mutate(content);
                if !random.once_in(3) {
                    forged |= name.ends_with(".log");
                    repair::file(random, &name, content);
                }
            }
        }
    }
    let home = temporary();
    let path = home.path().join("data");
    write(&files, &path);
    let _said = Said(describe(case, &files, forged));
    look(&path);
    let mut expected = case.expected.clone();
    let mut opened = false;
    for round in 0..2 {
        opened |= open(random, &path, &mut expected, forged, round).is_some();
    }
    opened
}

/// Said when an input is found.
struct Said(String);

impl Drop for Said {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

fn describe(case: &Case, files: &BTreeMap<String, Vec<u8>>, forged: bool) -> String {
    let mut said = format!("{}, the log forged: {forged}", case.name);
    for (name, before) in &case.files {
        match files.get(name) {
            None => said += &format!("\n  {name} is gone"),
            Some(now) if now != before => {
                let first = before.iter().zip(now).position(|(one, other)| one != other);
                said +=
                    &format!("\n  {name}: {} bytes of {}, other from {first:?} on", now.len(), before.len());
            }
            Some(_) => {}
        }
    }
    said
}

/// What `inspect` shows must not panic either.
fn look(path: &Path) {
    let _ = (inspect::read_server_id(path), inspect::read_witness(&path.join(WITNESS_FILE)));
    let partition = inspect::partition_path(path, PARTITION);
    for base in inspect::segments(&partition).unwrap_or_default() {
        let _ = inspect::index(&partition, base);
        if let Ok(view) = inspect::SegmentView::open(&partition, base) {
            let _ = view.each(|_| {});
        }
    }
}

/// Opens, reads, asks, appends, reads again. Answers the offsets that were served at first; `None`: it was not opened.
pub(super) fn open(
    random: &mut Random,
    path: &Path,
    expected: &mut BTreeMap<u64, String>,
    forged: bool,
    round: u32,
) -> Option<BTreeSet<u64>> {
    let Ok(data) = DataDirectory::open(path, Uuid::from_u128(1), Timestamp(0)) else { return None };
    let Ok((_, witnessed)) = Witness::open(&data.path().join(WITNESS_FILE)) else { return None };
    let Ok((_, mut checkpoints)) = Checkpoints::open(&data.path().join(CHECKPOINTS_FILE)) else {
        return None;
    };
    let options = OpenOptions {
        clean: data.was_clean() && !random.once_in(3),
        witness: witnessed.get(&PARTITION).copied(),
        now: Timestamp(1),
    };
    let place = data.partition_path(PARTITION);
    let checkpoint = checkpoints.remove(&PARTITION);
    let opened = Log::open_from(&place, PARTITION, config(0x7000_0000 + round), options, checkpoint);
    let Ok((mut log, _)) = opened else { return None };
    let served = read(&log, expected, forged);
    ask(random, &log);
    // It goes on, and what is taken from here on is there with the next start.
    let value = format!("new {round}");
    let mut builder = BatchBuilder::new(Compression::None);
    let record = NewRecord {
        value: Some(Bytes::from(value.clone())),
        timestamp: Timestamp(5),
        ..NewRecord::default()
    };
    builder.push(&record).expect("a small record");
    let at = log.staged_end().get();
    if log.offer(&builder.build(), None, None, Timestamp(5)).is_err() {
        return Some(served);
    }
    let Some(mut plan) = log.take_plan() else { panic!("something was staged") };
    if plan.execute().is_err() {
        return Some(served);
    }
    let written = log.plan_succeeded(plan).execute();
    log.snapshots_written(&written);
    log.synced(log.written_position());
    // Without a witness that says so, what was cut off was no loss; but then nothing of it comes back.
    drop(expected.split_off(&at));
    expected.insert(at, value);
    read(&log, expected, forged);
    Some(served)
}

/// Reads everything, and answers the offsets that were served.
fn read(log: &Log, expected: &BTreeMap<u64, String>, forged: bool) -> BTreeSet<u64> {
    let mut seen = BTreeSet::new();
    let reader = log.reader();
    let ends = reader.ends();
    let mut from = ends.start;
    for _ in 0..READS_MAX {
        if from >= ends.durable {
            return seen;
        }
        let range = ReadRange { from, until: ends.durable, bytes: 1 << 16 };
        let before = from;
        match reader.read(range, Access::Blocking) {
            // Forged frames may leave out offsets that the seal counts.
            Ok(batches) if batches.is_empty() && forged => return seen,
            Ok(batches) => {
                for stored in batches {
                    served(&stored.batch, expected, forged, &mut seen);
                    from = from.max(stored.batch.next_offset());
                }
                assert!(
                    from > before,
                    "nothing is read at {before}, which is below the end {}",
                    ends.durable
                );
            }
            Err(LogReadError::Damaged { until, .. }) => {
                assert!(until > from, "damage at {from} that ends at {until}");
                from = until;
            }
            Err(_) => return seen,
        }
    }
    seen
}

/// What is served verifies, and is what was written.
fn served(
    batch: &rimstone_record::Batch,
    expected: &BTreeMap<u64, String>,
    forged: bool,
    seen: &mut BTreeSet<u64>,
) {
    rimstone_record::Batch::verify(batch.bytes().clone(), &inspect::LIMITS).expect("what is served verifies");
    if batch.header().is_control() {
        return;
    }
    let Ok(records) = batch.records(&inspect::LIMITS) else {
        assert!(forged, "a batch that was written does not read");
        return;
    };
    for record in records {
        let Ok(record) = record else {
            assert!(forged, "a record that was written does not read");
            return;
        };
        seen.insert(record.offset.get());
        if forged {
            continue;
        }
        let value =
            record.value.map_or("null".to_owned(), |value| String::from_utf8_lossy(&value).into_owned());
        let wanted = expected.get(&record.offset.get());
        assert_eq!(Some(&value), wanted, "offset {}", record.offset);
    }
}

fn ask(random: &mut Random, log: &Log) {
    let reader = log.reader();
    let ends = reader.ends();
    for _ in 0..4 {
        let any = |random: &mut Random| Offset::new(random.number() >> 1).unwrap_or(Offset::ZERO);
        let (one, two) = (any(random), any(random));
        let _ = reader.count(one.min(two), one.max(two), Access::Blocking);
        let _ = reader.count(ends.start, ends.durable, Access::Blocking);
        let _ = reader.find_time(Timestamp(random.number() as i64), ends.durable, Access::Blocking);
        let _ = reader.max_time(ends.durable, Access::Blocking);
        let _ = reader.append_time_at(one, ends.durable, Access::Blocking);
    }
}
