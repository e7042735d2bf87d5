//! A segment that cannot be read is passed by: it stays as it is, is named, and nothing that it could hold back goes.

use std::{collections::BTreeMap, path::Path};

use super::{pass::*, *};
use crate::{Access, Log, ReadRange, files, tests::open};

pub(super) const FAR: i64 = 10_000_000;

/// Segments of two offsets each: 0 `a b`, 2 `a d`, 4 `a b`, 6 `a`, a tombstone of `d`, 8 `c e`; then the active one.
fn several() -> (tempfile::TempDir, Log) {
    let (directory, mut log) = new_log(1 << 20);
    let one = Some("1");
    put(&mut log, &[("a", one), ("b", one)], 1);
    roll(&mut log, 1);
    put(&mut log, &[("a", Some("2")), ("d", one)], 2);
    roll(&mut log, 2);
    put(&mut log, &[("a", Some("3")), ("b", Some("2"))], 3);
    roll(&mut log, 3);
    put(&mut log, &[("a", Some("4")), ("d", None)], 4);
    roll(&mut log, 4);
    put(&mut log, &[("c", one), ("e", one)], 5);
    roll(&mut log, 5);
    (directory, log)
}

pub(super) fn path(directory: &Path, base: u64) -> std::path::PathBuf {
    files::offset_path(directory, offset(base), files::SEGMENT_SUFFIX)
}

pub(super) fn flip(path: &Path, at: usize) {
    let mut content = std::fs::read(path).unwrap();
    content[at] ^= 4;
    std::fs::write(path, &content).unwrap();
}

fn again(directory: &Path, log: Log) -> Log {
    let witness = log.durable_position();
    drop(log);
    open(directory, 1 << 20, Some(witness), false).0
}

/// Offsets of the records in a range.
pub(super) fn offsets(log: &Log, from: u64, until: u64) -> Vec<u64> {
    let (mut from, until, mut found) = (offset(from), offset(until), Vec::new());
    while from < until {
        let read = log.reader().read(ReadRange { from, until, bytes: 1 }, Access::Blocking).unwrap();
        let Some(stored) = read.first() else { break };
        let records = stored.batch.records(&crate::inspect::LIMITS).unwrap().map(Result::unwrap);
        found.extend(records.map(|record| record.offset.get()));
        from = stored.batch.next_offset();
    }
    found
}

/// Passes until nothing is due; those that meet damage count as well, and it is remembered as the store does.
pub(super) fn all_passes(log: &mut Log, damaged: &mut BTreeMap<Offset, String>, now: i64) -> Vec<Obstacle> {
    passes(log, damaged, &always(), now)
}

pub(super) fn passes(
    log: &mut Log,
    damaged: &mut BTreeMap<Offset, String>,
    settings: &CompactionSettings,
    now: i64,
) -> Vec<Obstacle> {
    for _ in 0..20 {
        let until = log.durable_position().segment;
        let found = Log::compactable(&log.reader(), until, damaged, settings, Timestamp(now));
        if !found.dirtiness().due {
            return found.obstacles().to_vec();
        }
        match compact_around(log, damaged, settings, now, 300, &mut |_, _| true) {
            Ok(_) => {}
            Err(CompactionError::Damaged { segment, reason }) => drop(damaged.insert(segment, reason)),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it does not come to an end");
}

#[test]
fn what_cannot_be_read_is_passed_by() {
    type Break = fn(&Path);
    type Case = (&'static str, bool, Break, &'static str);
    let cases: [Case; 4] = [
        ("header", true, |path| flip(path, 20), "its header is damaged"),
        ("frames", false, |path| flip(path, 72 + 60 + 61 + 3), "it is damaged: the batch"),
        ("file", false, |path| std::fs::remove_file(path).unwrap(), "it is damaged: "),
        (
            "seal",
            true,
            |path| flip(path, std::fs::metadata(path).unwrap().len() as usize - 30),
            "it is damaged",
        ),
    ];
    for (what, restart, damage, reason) in cases {
        let (directory, mut log) = several();
        let rotten = path(directory.path(), 2);
        let whole = std::fs::read(&rotten).unwrap();
        damage(&rotten);
        if restart {
            log = again(directory.path(), log);
        }
        let left = std::fs::read(&rotten).ok();
        let mut damaged = BTreeMap::new();
        let obstacles = all_passes(&mut log, &mut damaged, 1_000);
        assert_eq!(obstacles.len(), 1, "{what}: {obstacles:?}");
        assert_eq!(obstacles[0].segment, offset(2), "{what}");
        assert!(obstacles[0].reason.to_string().starts_with(reason), "{what}: {}", obstacles[0]);
        assert_eq!(std::fs::read(&rotten).ok(), left, "{what}: it stays as it is");
        // Of both sides only the last of each key is left, and nothing was merged over it.
        assert_eq!(offsets(&log, 0, 2), [] as [u64; 0], "{what}");
        assert_eq!(offsets(&log, 4, 10), [5, 6, 7, 8, 9], "{what}");
        assert_eq!(log.cleaned_size(&obstacles).1, 0, "{what}: nothing is dirty");
        // The tombstone holds back what the segment may have of its key, however long that takes.
        put(&mut log, &[("x", Some("1"))], 6);
        roll(&mut log, 6);
        all_passes(&mut log, &mut damaged, FAR);
        assert_eq!(offsets(&log, 4, 11), [5, 6, 7, 8, 9, 10], "{what}");

        // Somebody brings it back: now it is compacted as well, and its records are not the last of their keys.
        std::fs::write(&rotten, &whole).unwrap();
        let mut log = again(directory.path(), log);
        assert_eq!(all_passes(&mut log, &mut BTreeMap::new(), FAR), [], "{what}");
        assert_eq!(offsets(&log, 0, 11), [5, 6, 8, 9, 10], "{what}");
        check_look_ups(&log, &records(&log, 1 << 20));
    }
}

#[test]
fn a_hole_is_passed_by() {
    let (directory, mut log) = several();
    let rotten = path(directory.path(), 2);
    let whole = std::fs::read(&rotten).unwrap();
    std::fs::remove_file(&rotten).unwrap();
    log = again(directory.path(), log);
    let obstacles = all_passes(&mut log, &mut BTreeMap::new(), FAR);
    let reason = ObstacleReason::Hole { end: offset(2), next: offset(4) };
    assert_eq!(obstacles, [Obstacle { segment: Offset::ZERO, reason }]);
    assert_eq!(offsets(&log, 0, 2), [0, 1], "where it ends is not certain: it stays");
    put(&mut log, &[("x", Some("1"))], 6);
    roll(&mut log, 6);
    all_passes(&mut log, &mut BTreeMap::new(), FAR * 2);
    assert_eq!(offsets(&log, 4, 11), [5, 6, 7, 8, 9, 10]);
    std::fs::write(&rotten, &whole).unwrap();
    let mut log = again(directory.path(), log);
    assert_eq!(all_passes(&mut log, &mut BTreeMap::new(), FAR * 3), []);
    assert_eq!(offsets(&log, 0, 11), [5, 6, 8, 9, 10]);
}

#[test]
fn neighbours_are_not_merged_over_what_is_passed_by() {
    let beside = [facts(0, 10, 0, true), facts(2, 10, 0, true), facts(3, 10, 0, true)];
    assert_eq!(groups(&beside, 1 << 20), [0..1, 1..3]);
}
