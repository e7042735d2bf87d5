//! Passes over real files.

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;
use rimstone_record::{BatchBuilder, Compression, NewRecord, ProducerStamp, Record};
use rimstone_types::{Numbering, ProducerEpoch, ProducerId};

use super::*;
use crate::{
    Access, Log, LogPosition, Offered, OpenOptions, ReadRange, files,
    producers::{Claim, Refusal},
    tests::{ID, config, open, sync},
};

/// A record with what the log adds to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) record: Record,
    pub(super) append_time: Timestamp,
}

/// What a pass shows of itself: a name for what was just done. `false`: it is to be given up.
pub(super) type Watch<'a> = &'a mut dyn FnMut(&Log, &str) -> bool;

/// One pass, if it is due, as the store makes it. Answers what it did.
pub(super) fn compact(
    log: &mut Log,
    settings: &CompactionSettings,
    now: i64,
    budget: u64,
    watch: Watch<'_>,
) -> Result<Option<Progress>, CompactionError> {
    compact_around(log, &BTreeMap::new(), settings, now, budget, watch)
}

/// The same, where an earlier pass has met damage.
pub(super) fn compact_around(
    log: &mut Log,
    damaged: &BTreeMap<Offset, String>,
    settings: &CompactionSettings,
    now: i64,
    budget: u64,
    watch: Watch<'_>,
) -> Result<Option<Progress>, CompactionError> {
    let until = log.durable_position().segment;
    let found = Log::compactable(&log.reader(), until, damaged, settings, Timestamp(now));
    if !found.dirtiness().due {
        return Ok(None);
    }
    log.stage_snapshot(true);
    sync(log);
    let mut pass = log.begin_compaction(found, settings, Timestamp(now));
    loop {
        let step = pass.advance(budget)?;
        if !watch(log, "slice") {
            return Ok(None);
        }
        match step {
            CompactionStep::More | CompactionStep::Room(_) => {}
            CompactionStep::Done => return Ok(Some(pass.progress())),
            CompactionStep::Replace(replacement) => {
                let snapshot = log.may_replace(&replacement)?;
                let replaced = replacement.install(snapshot)?;
                watch(log, "renamed");
                log.replaced(&replaced);
                watch(log, "published");
                replaced.clean_up();
                watch(log, "unlinked");
            }
        }
    }
}

pub(super) fn records(log: &Log, bytes: usize) -> Vec<Seen> {
    let reader = log.reader();
    let ends = reader.ends();
    let (mut from, mut all) = (ends.start, Vec::new());
    while from < ends.durable {
        let batches = reader.read(ReadRange { from, until: ends.durable, bytes }, Access::Blocking).unwrap();
        if batches.is_empty() {
            break;
        }
        for stored in batches {
            for record in stored.batch.records(&crate::inspect::LIMITS).unwrap().map(Result::unwrap) {
                if record.offset >= from {
                    all.push(Seen { record, append_time: stored.append_time });
                }
            }
            from = from.max(stored.batch.next_offset());
        }
    }
    all
}

/// The last value of each key.
pub(super) fn state(records: &[Seen]) -> BTreeMap<Bytes, Bytes> {
    let mut state = BTreeMap::new();
    for Seen { record, .. } in records {
        match (&record.key, &record.value) {
            (Some(key), Some(value)) => drop(state.insert(key.clone(), value.clone())),
            (Some(key), None) => drop(state.remove(key)),
            (None, _) => {}
        }
    }
    state
}

/// Every question that a reader can ask is answered as a scan over the records answers it.
pub(super) fn check_look_ups(log: &Log, all: &[Seen]) {
    let reader = log.reader();
    let ends = reader.ends();
    let first_from = |from: Offset| all.iter().find(|seen| seen.record.offset >= from);
    for at in ends.start.get()..=ends.durable.get() {
        let at = offset(at);
        let count = all.iter().filter(|seen| seen.record.offset >= at).count() as u64;
        assert_eq!(reader.count(at, ends.durable, Access::Blocking).unwrap().records, count, "from {at}");
        let before = all.iter().filter(|seen| seen.record.offset < at).count() as u64;
        assert_eq!(reader.count(ends.start, at, Access::Blocking).unwrap().records, before, "to {at}");
        let time = reader.append_time_at(at, ends.durable, Access::Blocking).unwrap();
        assert_eq!(time, first_from(at).map(|seen| seen.append_time), "append time at {at}");
        let mut from = at;
        let found = loop {
            let range = ReadRange { from, until: ends.durable, bytes: 1 };
            let batches = reader.read(range, Access::Blocking).unwrap();
            let Some(stored) = batches.first() else { break None };
            let records = stored.batch.records(&crate::inspect::LIMITS).unwrap().map(Result::unwrap);
            if let Some(record) = records.into_iter().find(|record| record.offset >= at) {
                break Some(record);
            }
            from = stored.batch.next_offset();
        };
        assert_eq!(found.as_ref(), first_from(at).map(|seen| &seen.record), "read from {at}");
    }
    let mut times: Vec<_> = all.iter().map(|seen| seen.record.timestamp.0).collect();
    times.push(i64::MAX);
    for time in times {
        for time in [time.saturating_sub(1), time] {
            let found = reader.find_time(Timestamp(time), ends.durable, Access::Blocking).unwrap();
            let expected = all.iter().find(|seen| seen.record.timestamp.0 >= time);
            assert_eq!(
                found.map(|found| found.offset),
                expected.map(|seen| seen.record.offset),
                "time {time}"
            );
        }
    }
    let largest = all.iter().map(|seen| seen.record.timestamp).max();
    assert_eq!(reader.max_time(ends.durable, Access::Blocking).unwrap(), largest);
}

pub(super) fn put(log: &mut Log, records: &[(&str, Option<&str>)], time: i64) -> Offset {
    offer(log, None, records, time)
}

fn offer(log: &mut Log, stamp: Option<ProducerStamp>, records: &[(&str, Option<&str>)], time: i64) -> Offset {
    match send(log, stamp, records, time) {
        Ok(Offered::Staged { base, .. }) => base,
        other => panic!("{other:?}"),
    }
}

pub(super) fn send(
    log: &mut Log,
    stamp: Option<ProducerStamp>,
    records: &[(&str, Option<&str>)],
    time: i64,
) -> Result<Offered, crate::StageError> {
    let mut builder = BatchBuilder::new(Compression::Lz4);
    if let Some(stamp) = stamp {
        builder = builder.producer(stamp);
    }
    for (key, value) in records {
        let record = NewRecord {
            key: (!key.is_empty()).then(|| Bytes::from((*key).to_owned())),
            value: value.map(|value| Bytes::from(value.to_owned())),
            headers: Vec::new(),
            timestamp: Timestamp(time),
        };
        builder.push(&record).unwrap();
    }
    let batch = builder.build();
    let hash = stamp
        .filter(|stamp| stamp.numbering == Numbering::ByRequest)
        .map(|_| batch.content_hash(&crate::inspect::LIMITS).unwrap());
    log.offer(&batch, Claim::of(batch.header(), hash).as_ref(), None, Timestamp(time))
}

pub(super) fn stamp(id: u64, base: u32, numbering: Numbering) -> Option<ProducerStamp> {
    let id = ProducerId::new(id).unwrap();
    Some(ProducerStamp { id, epoch: ProducerEpoch::ZERO, base, numbering })
}

/// Ends the segment, so that everything so far can be compacted.
pub(super) fn roll(log: &mut Log, time: i64) {
    sync(log);
    let age = log.config().segment_age;
    log.roll_if_old(Timestamp(time).saturating_add(age));
    sync(log);
}

pub(super) fn new_log(segment_bytes: u64) -> (tempfile::TempDir, Log) {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::create(directory.path(), ID, config(segment_bytes), Timestamp(0)).unwrap();
    (directory, log)
}

pub(super) fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
    }
    to
}

pub(super) fn always() -> CompactionSettings {
    CompactionSettings { dirty_ratio: 0.0, ..settings() }
}

fn run(log: &mut Log, now: i64) -> Progress {
    compact(log, &always(), now, 300, &mut |_, _| true).unwrap().expect("there is something to clean")
}

fn shown(log: &Log) -> Vec<(u64, String, Option<String>)> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    records(log, 1 << 20)
        .into_iter()
        .map(|Seen { record, .. }| {
            let key = record.key.as_ref().map_or(String::new(), text);
            (record.offset.get(), key, record.value.as_ref().map(text))
        })
        .collect()
}

fn reopened(directory: &Path, witness: Option<LogPosition>) -> Log {
    let options = OpenOptions { clean: false, witness, now: Timestamp(1) };
    Log::open(directory, ID, config(1 << 20), options).unwrap().0
}

#[test]
fn of_each_key_the_last_record_stays_where_it_was() {
    let (directory, mut log) = new_log(1 << 20);
    for n in 0..40 {
        let (key, value) = (format!("key {}", n % 7), format!("value {n}"));
        put(&mut log, &[(&key, Some(&value)), ("", Some("no key"))], n);
    }
    roll(&mut log, 100);
    put(&mut log, &[("key 0", Some("in the active segment"))], 200);
    sync(&mut log);
    let before = records(&log, 1 << 20);
    let progress = run(&mut log, 1000);
    assert_eq!(progress.records_removed, 33);
    let after = records(&log, 1 << 20);
    let expected: Vec<_> = before
        .iter()
        .filter(|seen| {
            let later = |other: &&Seen| {
                other.record.key == seen.record.key && other.record.offset > seen.record.offset
            };
            // The newest of all lies in the active segment, which does not count.
            seen.record.key.is_none() || before[..80].iter().find(later).is_none()
        })
        .cloned()
        .collect();
    assert_eq!(after, expected);
    check_look_ups(&log, &after);
    // Nothing is dirty any more.
    assert!(compact(&mut log, &always(), 2000, 300, &mut |_, _| true).unwrap().is_none());
    let witness = log.durable_position();
    drop(log);
    for witness in [Some(witness), None] {
        let log = reopened(directory.path(), witness);
        assert_eq!(records(&log, 1 << 20), after);
        check_look_ups(&log, &after);
        assert!(log.reader().ends().durable == offset(81));
    }
}

#[test]
fn batches_that_lose_nothing_stay_byte_for_byte() {
    let (_directory, mut log) = new_log(1 << 20);
    put(&mut log, &[("a", Some("1")), ("b", Some("1"))], 1);
    put(&mut log, &[("c", Some("1"))], 2);
    roll(&mut log, 3);
    let range = ReadRange { from: offset(0), until: offset(3), bytes: 1 << 20 };
    let before = log.reader().read(range, Access::Blocking).unwrap();
    run(&mut log, 10);
    let after = log.reader().read(range, Access::Blocking).unwrap();
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.batch.bytes(), after.batch.bytes());
    }
}

#[test]
fn a_tombstone_stays_until_its_time_after_it_was_first_cleaned() {
    let (directory, mut log) = new_log(1 << 20);
    put(&mut log, &[("gone", Some("value")), ("kept", Some("value"))], 1);
    put(&mut log, &[("gone", None), ("other", Some("x"))], 2);
    roll(&mut log, 3);
    run(&mut log, 1_000);
    let with_tombstone = vec![
        (1, "kept".to_owned(), Some("value".to_owned())),
        (2, "gone".to_owned(), None),
        (3, "other".to_owned(), Some("x".to_owned())),
    ];
    assert_eq!(shown(&log), with_tombstone);
    // 100 s from then on, through further passes and a restart, however the setting changes meanwhile.
    let again = |log: &mut Log, now: i64, n: u64| {
        put(log, &[("more", Some(&format!("{n}")))], now);
        roll(log, now);
        let longer = CompactionSettings { delete_retention: Duration::from_secs(1_000_000), ..always() };
        compact(log, &longer, now, 300, &mut |_, _| true).unwrap().unwrap();
    };
    again(&mut log, 50_000, 1);
    let witness = log.durable_position();
    drop(log);
    let mut log = reopened(directory.path(), Some(witness));
    again(&mut log, 100_999, 2);
    assert_eq!(shown(&log)[..3], with_tombstone);
    again(&mut log, 101_000, 3);
    assert_eq!(shown(&log)[..2], [with_tombstone[0].clone(), with_tombstone[2].clone()]);
    let all = records(&log, 100);
    assert!(all.iter().all(|seen| seen.record.timestamp.0 == seen.append_time.0), "times are as they were");
}

#[test]
fn what_is_too_young_above_the_limit_or_below_log_start_is_left_out() {
    let (directory, mut log) = new_log(1 << 20);
    put(&mut log, &[("a", Some("1"))], 1_000);
    roll(&mut log, 1_000);
    put(&mut log, &[("a", Some("2"))], 5_000);
    roll(&mut log, 5_000);
    let young = CompactionSettings { min_lag: Duration::from_secs(10), ..always() };
    compact(&mut log, &young, 12_000, 300, &mut |_, _| true).unwrap().unwrap();
    assert_eq!(shown(&log).len(), 2, "the later record is too young to say that the earlier one may go");
    compact(&mut log, &young, 15_000, 300, &mut |_, _| true).unwrap().unwrap();
    assert_eq!(shown(&log), [(1, "a".to_owned(), Some("2".to_owned()))]);

    // Records below log start neither stay nor count.
    put(&mut log, &[("b", Some("3")), ("c", Some("4"))], 20_000);
    roll(&mut log, 20_000);
    log.stage_snapshot(true);
    sync(&mut log);
    crate::write_log_start(directory.path(), offset(3)).unwrap();
    assert!(log.advance_start(offset(3)).segments() == 1);
    assert_eq!(run(&mut log, 40_000).records_removed, 1);
    assert_eq!(shown(&log), [(3, "c".to_owned(), Some("4".to_owned()))]);
    check_look_ups(&log, &records(&log, 1000));
}

#[test]
fn small_neighbours_become_one_segment() {
    let (directory, mut log) = new_log(1 << 20);
    for n in 0..10 {
        put(&mut log, &[(&format!("key {n}"), Some("value"))], n);
        roll(&mut log, n);
    }
    assert_eq!(log.size().0, 11);
    let before = records(&log, 1000);
    let progress = run(&mut log, 1000);
    assert_eq!((progress.segments_before, progress.segments_after), (10, 1));
    assert_eq!(log.size().0, 2);
    assert_eq!(records(&log, 1000), before);
    let names = files::list_offsets(directory.path(), files::SEGMENT_SUFFIX).unwrap();
    assert_eq!(names, [offset(0), offset(10)]);
    let indexes = files::list_offsets(directory.path(), files::INDEX_SUFFIX).unwrap();
    assert_eq!(indexes, [offset(0)]);
}

#[test]
fn a_map_that_is_full_leaves_the_rest_to_the_next_pass() {
    let (directory, mut log) = new_log(1 << 20);
    // 48 keys fit; each batch has 20 others.
    let small = CompactionSettings { map_bytes: 24 * 64, ..always() };
    for round in 0..3 {
        for batch in 0..4 {
            let keys: Vec<_> = (0..20).map(|n| format!("key {}", batch * 20 + n)).collect();
            let value = format!("{round}");
            let records: Vec<_> = keys.iter().map(|key| (key.as_str(), Some(value.as_str()))).collect();
            put(&mut log, &records, round * 10 + batch);
        }
    }
    roll(&mut log, 100);
    let before = records(&log, 1 << 20);
    let mut passes = 0;
    loop {
        let done = compact(&mut log, &small, 1000 + passes, 500, &mut |_, _| true).unwrap();
        assert_eq!(state(&records(&log, 1 << 20)), state(&before), "pass {passes}");
        check_look_ups(&log, &records(&log, 1 << 20));
        if done.is_none() {
            break;
        }
        passes += 1;
        if passes == 2 {
            // How far it came is in the segment's header.
            let witness = log.durable_position();
            drop(log);
            log = reopened(directory.path(), Some(witness));
        }
        assert!(passes < 20, "it does not come to an end");
    }
    assert!(passes > 3, "{passes} passes");
    assert_eq!(records(&log, 1 << 20).len(), 80);
}

#[test]
fn numbers_are_known_after_their_records_went() {
    let (directory, mut log) = new_log(1 << 20);
    let batch = |log: &mut Log, producer, number: u32, numbering| {
        send(log, stamp(producer, number, numbering), &[("same", Some(&format!("{number}")))], 5)
    };
    for number in 0..80 {
        batch(&mut log, 1, number, Numbering::Dense).unwrap();
        batch(&mut log, 2, number * 3, Numbering::ByRequest).unwrap();
    }
    roll(&mut log, 10);
    run(&mut log, 1000);
    assert_eq!(shown(&log).len(), 1);
    let known = |log: &mut Log, by_request: bool, older: bool, what: &str| {
        for number in 0..80u32 {
            let dense = batch(log, 1, number, Numbering::Dense);
            let first = offset(u64::from(number) * 2);
            match dense {
                Ok(Offered::Duplicate { offsets: Some(offsets), .. }) if number >= 16 => {
                    assert_eq!(offsets, (first, first), "{what} {number}");
                }
                Ok(Offered::Duplicate { offsets: None, .. }) if number < 16 && older => {}
                Err(crate::StageError::Producer(Refusal::SequenceGap { .. })) if number < 16 && !older => {}
                other => panic!("{what} {number}: {other:?}"),
            }
            match batch(log, 2, number * 3, Numbering::ByRequest) {
                Ok(Offered::Duplicate { offsets: Some((at, _)), .. }) if number >= 16 && by_request => {
                    assert_eq!(at, first.saturating_add(1), "{what} {number}");
                }
                // Never taken again, whatever is not known of it any more.
                Err(crate::StageError::Producer(
                    Refusal::NumberTooOld { .. } | Refusal::NumberReused { .. },
                )) if number < 16 || !by_request => {}
                other => panic!("{what} {number}: {other:?}"),
            }
        }
    };
    known(&mut log, true, true, "live");
    let witness = log.durable_position();
    drop(log);
    let mut log = reopened(directory.path(), Some(witness));
    known(&mut log, true, true, "restarted");
    drop(log);
    // The snapshots are lost: what the log itself still says is true, and refuses what it cannot say.
    for snapshot in files::list_offsets(directory.path(), files::PRODUCERS_SUFFIX).unwrap() {
        std::fs::remove_file(files::offset_path(directory.path(), snapshot, files::PRODUCERS_SUFFIX))
            .unwrap();
    }
    let mut log = reopened(directory.path(), Some(witness));
    // The very last one still has its record.
    let last = batch(&mut log, 2, 79 * 3, Numbering::ByRequest);
    assert!(matches!(last, Ok(Offered::Duplicate { .. })), "{last:?}");
    for number in 0..79u32 {
        let refused = batch(&mut log, 2, number * 3, Numbering::ByRequest);
        assert!(refused.is_err(), "{number}: {refused:?}");
    }
    for number in 16..80u32 {
        let first = offset(u64::from(number) * 2);
        let dense = batch(&mut log, 1, number, Numbering::Dense);
        assert!(
            matches!(dense, Ok(Offered::Duplicate { offsets: Some(at), .. }) if at == (first, first)),
            "{number}: {dense:?}"
        );
    }
}

#[test]
fn who_reads_a_segment_goes_on_in_it_and_then_in_the_new_ones() {
    let (_directory, mut log) = new_log(1 << 20);
    for n in 0..6 {
        put(&mut log, &[("key", Some(&format!("{n}"))), (&format!("only {n}"), Some("x"))], n);
        roll(&mut log, n);
    }
    let reader = log.reader();
    let held = reader.shared().segments.load_full();
    let before =
        reader.read(ReadRange { from: offset(2), until: offset(12), bytes: 1 << 20 }, Access::Blocking);
    let before = before.unwrap();
    run(&mut log, 1000);
    // Bytes in hand stay what they were; so does everything that is asked of a segment that was in hand.
    assert!(rimstone_record::Batch::verify(before[0].batch.bytes().clone(), &crate::inspect::LIMITS).is_ok());
    for (number, segment) in held[..6].iter().enumerate() {
        assert_eq!(segment.totals(Access::Blocking).unwrap().records, 2, "{number}");
        segment.replace_index().unwrap();
        let source = segment.source(Access::Blocking, segment.end());
        let bytes = crate::walk::Source::load(&source, 0, 72).unwrap();
        assert_eq!(crate::frame::SegmentHeader::decode(&bytes).unwrap(), segment.header);
        assert!(segment.search(Access::Blocking, |_| true).is_ok());
    }
    let all = records(&log, 1 << 20);
    assert_eq!(all.len(), 7);
    check_look_ups(&log, &all);
}

#[test]
fn a_gap_is_not_taken_for_a_wrong_index() {
    use std::os::unix::fs::MetadataExt;
    let (directory, mut log) = new_log(1 << 20);
    for n in 0..60 {
        let key = if n % 3 == 0 { format!("only {n}") } else { "key".to_owned() };
        put(&mut log, &[(&key, Some("value"))], n);
    }
    roll(&mut log, 100);
    run(&mut log, 1000);
    let index = files::offset_path(directory.path(), offset(0), files::INDEX_SUFFIX);
    let made = std::fs::metadata(&index).unwrap().ino();
    // In small steps each read goes on where the last one stopped, before a gap.
    assert_eq!(records(&log, 1).len(), 21);
    check_look_ups(&log, &records(&log, 1 << 20));
    assert_eq!(std::fs::metadata(&index).unwrap().ino(), made, "the index was made anew");
}

#[test]
fn damage_stops_a_pass_and_is_never_copied_or_hidden() {
    let (directory, mut log) = new_log(1 << 20);
    for n in 0..3 {
        put(&mut log, &[("key", Some(&format!("{n}"))), (&format!("only {n}"), Some("x"))], n);
        roll(&mut log, n);
    }
    let path = files::offset_path(directory.path(), offset(2), files::SEGMENT_SUFFIX);
    let mut content = std::fs::read(&path).unwrap();
    content[72 + 60 + 61 + 3] ^= 4;
    std::fs::write(&path, &content).unwrap();
    let error = compact(&mut log, &always(), 1000, 300, &mut |_, _| true).unwrap_err();
    assert!(matches!(error, CompactionError::Damaged { segment, .. } if segment == offset(2)), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), content);
    assert_eq!(log.size().0, 4, "nothing was replaced");
    assert!(!files_with(directory.path(), "tmp"));
}

fn files_with(directory: &Path, suffix: &str) -> bool {
    std::fs::read_dir(directory)
        .unwrap()
        .any(|entry| entry.unwrap().path().extension().is_some_and(|found| found == suffix))
}

#[test]
fn append_times_do_not_go_back_when_the_last_records_went() {
    let (directory, mut log) = new_log(1 << 20);
    put(&mut log, &[("a", Some("1"))], 100);
    put(&mut log, &[("a", None)], 9_000);
    roll(&mut log, 9_000);
    run(&mut log, 10_000);
    put(&mut log, &[("b", Some("1"))], 9_500);
    roll(&mut log, 9_500);
    run(&mut log, 500_000);
    // Everything up to the empty active segment: the tombstone is gone too.
    assert_eq!(shown(&log).len(), 1);
    put(&mut log, &[("b", None)], 9_600);
    roll(&mut log, 9_600);
    run(&mut log, 600_000);
    run_until_clean(&mut log);
    let witness = log.durable_position();
    drop(log);
    let (mut log, _) = open(directory.path(), 1 << 20, Some(witness), false);
    let Ok(Offered::Staged { append_time, .. }) = send(&mut log, None, &[("x", None)], 1) else { panic!() };
    assert_eq!(append_time, Timestamp(9_600));
}

fn run_until_clean(log: &mut Log) {
    put(log, &[("z", Some("z"))], 9_600);
    roll(log, 9_600);
    while compact(log, &always(), 10_000_000, 300, &mut |_, _| true).unwrap().is_some() {}
}

#[test]
fn room_is_asked_for_whole_groups_and_before_each_of_them() {
    let (directory, mut log) = new_log(1 << 20);
    let before = log.size().1;
    for n in 0..10 {
        put(&mut log, &[(&format!("key {n}"), Some("value"))], n);
        roll(&mut log, n);
    }
    let sealed = log.size().1 - before;
    let until = log.durable_position().segment;
    let found = Log::compactable(&log.reader(), until, &BTreeMap::new(), &always(), Timestamp(1000));
    assert_eq!(found.room_bytes(1 << 20), sealed, "they all become one");
    assert_eq!(found.room_bytes(1), sealed / 10);
    // Not before the file is made: who has no room for it drops the pass, and nothing was done.
    let mut pass = log.begin_compaction(found, &always(), Timestamp(1000));
    loop {
        match pass.advance(300).unwrap() {
            CompactionStep::More => {}
            CompactionStep::Room(bytes) => break assert_eq!(bytes, sealed),
            other => panic!("{other:?}"),
        }
    }
    assert!(!files_with(directory.path(), "tmp"));
    assert!(matches!(pass.advance(300).unwrap(), CompactionStep::More));
    assert!(files_with(directory.path(), "tmp"));
    drop(pass);
    assert!(!files_with(directory.path(), "tmp"));
}
