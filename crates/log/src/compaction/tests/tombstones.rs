//! Tombstones whose time is over go although nothing is dirty.

use std::collections::BTreeMap;

use super::{pass::*, *};
use crate::{Log, files, tests::open};

fn look(log: &Log, settings: &CompactionSettings, now: i64) -> Dirtiness {
    let until = log.durable_position().segment;
    let found =
        Log::compactable(&log.reader(), until, &BTreeMap::new(), settings, Timestamp(now)).dirtiness();
    if found.due {
        assert!(log.may_be_compactable(settings, Timestamp(now)));
    }
    found
}

fn there(log: &Log) -> Vec<u64> {
    records(log, 1 << 20).iter().map(|seen| seen.record.offset.get()).collect()
}

/// Some 30 KB that do not compress well.
fn noise() -> String {
    (1..2_000u64).map(|n| format!("{:016x}", n.wrapping_mul(n).wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect()
}

#[test]
fn a_tombstone_goes_when_its_time_is_over_though_nothing_is_dirty() {
    let (directory, mut log) = new_log(20_000);
    // Segments that are too large to be merged: one without any tombstone, one with, and a third.
    let large = noise();
    for (key, other) in [("a", Some("1")), ("gone", None), ("b", Some("1"))] {
        put(&mut log, &[(key, other), (&format!("large {key}"), Some(&large))], 1_000);
        roll(&mut log, 1_000);
    }
    let settings = always();
    compact(&mut log, &settings, 1_000, 1 << 20, &mut |_, _| true).unwrap().unwrap();
    assert_eq!(there(&log), [0, 1, 2, 3, 4, 5]);
    // First met at 1 s, it stays for 100 s; a pass for nothing else waits for a tenth more.
    assert!(!look(&log, &settings, 101_000).due && !look(&log, &settings, 110_999).due);
    assert!(!log.may_be_compactable(&settings, Timestamp(110_999)));
    assert!(look(&log, &settings, 111_000).due);
    let lag = |seconds| CompactionSettings { max_lag: Some(Duration::from_secs(seconds)), ..settings };
    assert!(look(&log, &lag(2), 103_000).due && !look(&log, &lag(2), 102_999).due);
    assert!(!look(&log, &lag(50), 110_999).due && look(&log, &lag(50), 111_000).due);
    // A restart knows it, without an index.
    let witness = log.durable_position();
    drop(log);
    for index in files::list_offsets(directory.path(), files::INDEX_SUFFIX).unwrap() {
        std::fs::remove_file(files::offset_path(directory.path(), index, files::INDEX_SUFFIX)).unwrap();
    }
    let (mut log, _) = open(directory.path(), 20_000, Some(witness), false);
    assert!(!look(&log, &settings, 110_999).due && look(&log, &settings, 111_000).due);

    // Only the segment that has it is read and written, and it is done then: the batch keeps its mark.
    let file = |base: u64| std::fs::read(files::offset_path(directory.path(), offset(base), "log")).unwrap();
    let before = [file(0), file(2), file(4)];
    let done = compact(&mut log, &settings, 111_000, 1 << 20, &mut |_, _| true).unwrap().unwrap();
    assert_eq!((done.records_removed, done.segments_before, done.segments_after), (1, 1, 1));
    assert!(done.read_bytes < before[1].len() as u64, "{done:?}");
    assert!(file(0) == before[0] && file(2) != before[1] && file(4) == before[2]);
    assert_eq!(there(&log), [0, 1, 3, 4, 5]);
    for now in [111_001, 10_000_000] {
        assert!(!look(&log, &settings, now).due && !log.may_be_compactable(&settings, Timestamp(now)));
    }
    check_look_ups(&log, &records(&log, 1 << 20));
}

#[test]
fn what_is_dirty_waits_for_its_own_share() {
    let (_directory, mut log) = new_log(1 << 20);
    let noise = noise();
    put(&mut log, &[("gone", None), ("large", Some(&noise))], 1_000);
    roll(&mut log, 1_000);
    compact(&mut log, &always(), 1_000, 300, &mut |_, _| true).unwrap().unwrap();
    put(&mut log, &[("small", Some("1"))], 2_000);
    put(&mut log, &[("small", Some("2")), ("later", None)], 2_000);
    roll(&mut log, 2_000);
    let half = settings();
    assert!(!look(&log, &half, 50_000).due);
    let done = compact(&mut log, &half, 200_000, 300, &mut |_, _| true).unwrap().unwrap();
    assert_eq!((done.records_removed, done.segments_before), (1, 1));
    assert_eq!(there(&log), [1, 2, 3, 4]);
    let left = look(&log, &half, 300_000);
    assert!(left.dirty_bytes > 0 && !left.due, "{left:?}");
    // In the end everything goes its way, and the later one has its own time.
    compact(&mut log, &always(), 300_000, 300, &mut |_, _| true).unwrap().unwrap();
    assert_eq!(there(&log), [1, 3, 4]);
    compact(&mut log, &half, 410_000, 300, &mut |_, _| true).unwrap().unwrap();
    assert_eq!(there(&log), [1, 3]);
}

#[test]
fn a_pass_for_each_pass_that_met_tombstones_is_the_most() {
    let (_directory, mut log) = new_log(1 << 20);
    let mut passes = 0;
    for second in 0..3_000 {
        let now = second * 1_000;
        if second < 1_000 {
            put(&mut log, &[(&format!("{second}"), None)], now);
            roll(&mut log, now);
            compact(&mut log, &always(), now, 1 << 20, &mut |_, _| true).unwrap().unwrap();
        } else if compact(&mut log, &always(), now, 1 << 20, &mut |_, _| true).unwrap().is_some() {
            passes += 1;
        }
    }
    // A second apart they are met; a hundred of them are there then, which ten seconds more gather.
    assert!((1..=12).contains(&passes), "{passes}");
    assert_eq!(there(&log), [] as [u64; 0]);
}
