//! What a pass holds on to, what a failed replacement leaves, and trims in the middle of a pass.

use std::{collections::BTreeMap, path::Path};

use super::{pass::*, *};
use crate::{
    Access, Log, files,
    tests::{config, sync},
};

/// Descriptors of files in a directory that have no name any more.
fn open_and_nameless(directory: &Path) -> usize {
    open_files(directory).iter().filter(|name| name.ends_with("(deleted)")).count()
}

fn open_files(directory: &Path) -> Vec<String> {
    let directory = directory.canonicalize().unwrap();
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|path| path.starts_with(&directory))
        .map(|path| path.display().to_string())
        .collect()
}

/// A log of so many small segments, of which two become one.
fn many_segments(count: i64) -> (tempfile::TempDir, Log) {
    let (directory, mut log) = new_log(1 << 20);
    for n in 0..count {
        put(&mut log, &[("key", Some(&format!("{n}"))), (&format!("only {n}"), Some("x"))], n);
        roll(&mut log, n);
    }
    let two = log.reader().shared().segments.load()[..2].iter().map(|segment| segment.end()).sum();
    log.configure(config(two));
    (directory, log)
}

fn begin(log: &mut Log) -> Compaction {
    log.stage_snapshot(true);
    sync(log);
    let until = log.durable_position().segment;
    let found = Log::compactable(&log.reader(), until, &BTreeMap::new(), &always(), Timestamp(1000));
    log.begin_compaction(found, &always(), Timestamp(1000))
}

fn next_replacement(pass: &mut Compaction) -> Option<Box<Replacement>> {
    loop {
        match pass.advance(300).unwrap() {
            CompactionStep::More | CompactionStep::Room(_) => {}
            CompactionStep::Replace(replacement) => return Some(replacement),
            CompactionStep::Done => return None,
        }
    }
}

fn replace(log: &mut Log, replacement: Replacement) {
    let snapshot = log.may_replace(&replacement).unwrap();
    let replaced = replacement.install(snapshot).unwrap();
    log.replaced(&replaced);
    replaced.clean_up();
}

#[test]
fn what_is_replaced_is_closed_before_the_pass_ends() {
    let (directory, mut log) = many_segments(12);
    let mut pass = begin(&mut log);
    let mut groups = 0;
    while let Some(replacement) = next_replacement(&mut pass) {
        replace(&mut log, *replacement);
        groups += 1;
        assert_eq!(open_and_nameless(directory.path()), 0, "after group {groups}");
    }
    assert!(groups > 3, "{groups}");
}

#[test]
fn a_failed_replacement_leaves_nothing_open_and_the_segments_as_they_were() {
    for what in ["tmp", "log"] {
        let (directory, mut log) = many_segments(4);
        let before = records(&log, 1 << 20);
        let mut pass = begin(&mut log);
        let replacement = *next_replacement(&mut pass).unwrap();
        let held = log.reader().shared().segments.load_full();
        // The rename fails, or one of the old files cannot be opened.
        let lost = match what {
            "tmp" => files::offset_path(directory.path(), offset(0), "log.tmp"),
            _ => held[1].path().to_owned(),
        };
        let content = std::fs::read(&lost).unwrap();
        std::fs::remove_file(&lost).unwrap();
        let open = open_files(directory.path()).len();
        let snapshot = log.may_replace(&replacement).unwrap();
        let failed = replacement.install(snapshot);
        assert!(matches!(failed, Err(CompactionError::File(_))), "{what}: {failed:?}");
        drop(pass);
        // The new file was open until then.
        assert_eq!(open_files(directory.path()).len(), open - 1, "{what}");
        std::fs::write(&lost, content).unwrap();
        assert_eq!(records(&log, 1 << 20), before, "{what}");
        // A live segment's index goes to its file.
        std::fs::remove_file(held[0].index_path()).unwrap();
        assert!(held[0].search(Access::Blocking, |_| true).is_ok());
        assert!(held[0].index_path().exists(), "{what}");
    }
}

/// Moves log start to a segment's base.
fn trim(directory: &Path, log: &mut Log, start: u64) {
    log.stage_snapshot(true);
    sync(log);
    crate::write_log_start(directory, offset(start)).unwrap();
    for freed in log.advance_start(offset(start)).unlink() {
        freed.unwrap();
    }
}

#[test]
fn a_trim_in_the_middle_of_a_pass_does_not_end_it() {
    // Two records in each of eight segments.
    for start in [1, 2, 5, 8, 16] {
        for after in 0.. {
            let (directory, mut log) = many_segments(8);
            let before = records(&log, 1 << 20);
            let mut pass = begin(&mut log);
            let (mut steps, mut over) = (0, false);
            while !over {
                if steps == after {
                    trim(directory.path(), &mut log, start);
                }
                steps += 1;
                match pass.advance(100).unwrap() {
                    CompactionStep::More | CompactionStep::Room(_) => {}
                    CompactionStep::Replace(replacement) => replace(&mut log, *replacement),
                    CompactionStep::Done => over = true,
                }
            }
            if steps <= after {
                break;
            }
            let expected: Vec<_> = before
                .iter()
                .filter(|seen| seen.record.offset >= offset(start))
                .filter(|seen| seen.record.offset == offset(14) || seen.record.offset.get() % 2 == 1)
                .cloned()
                .collect();
            let found = records(&log, 1 << 20);
            assert_eq!(found, expected, "from {start} after {after} steps");
            check_look_ups(&log, &found);
            let left_over = std::fs::read_dir(directory.path())
                .unwrap()
                .any(|entry| entry.unwrap().path().extension().is_some_and(|suffix| suffix == "tmp"));
            assert!(!left_over, "from {start} after {after} steps");
        }
    }
}

#[test]
fn a_missing_file_that_was_not_trimmed_is_a_failure() {
    let (_directory, mut log) = many_segments(4);
    let mut pass = begin(&mut log);
    std::fs::remove_file(log.reader().shared().segments.load()[2].path()).unwrap();
    let failed = loop {
        match pass.advance(300) {
            Ok(CompactionStep::Done) => panic!("it was compacted"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    // It will not come back by itself: it is passed by from now on.
    assert!(matches!(failed, CompactionError::Damaged { .. }), "{failed}");
}

#[test]
fn so_many_neighbours_become_one_and_no_more() {
    let small: Vec<_> = (0..300).map(|number| facts(number, 1, 0, true)).collect();
    let sizes: Vec<_> = groups(&small, 1 << 20).into_iter().map(|group| group.len()).collect();
    assert_eq!(sizes, [128, 128, 44]);
}
