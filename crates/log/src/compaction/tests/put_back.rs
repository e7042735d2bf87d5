//! A segment file that comes back after its loss was accepted is set aside, and what a crash has left of a compaction
//! goes all the same.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{obstacles::*, pass::*, *};
use crate::{
    Log, OpenReport, files, inspect,
    recording::{Recorder, image::Images},
    tests::{open, sync},
};

const BYTES: u64 = 1 << 20;

fn again(directory: &Path, log: Log) -> (Log, OpenReport) {
    let witness = log.durable_position();
    drop(log);
    open(directory, BYTES, Some(witness), false)
}

/// Segments of two offsets each, five of them, and the active one.
fn five() -> (tempfile::TempDir, Log) {
    let (directory, mut log) = new_log(BYTES);
    for n in 0..5 {
        put(&mut log, &[(&format!("a {n}"), Some("1"))], n);
        put(&mut log, &[(&format!("b {n}"), Some("1"))], n);
        roll(&mut log, n);
    }
    (directory, log)
}

/// Gives ranges up, as the store does.
fn accept(log: &mut Log, directory: &Path, ranges: &[(u64, u64)]) {
    let ranges: Vec<_> = ranges.iter().map(|(from, until)| (offset(*from), offset(*until))).collect();
    log.stage_snapshot(true);
    sync(log);
    let plan = log.reader().plan_loss(&ranges).unwrap();
    for prepared in log.loss_writer()(plan, Timestamp(9)) {
        let prepared = prepared.unwrap();
        let snapshot = log.may_replace(prepared.replacement()).unwrap();
        let (replaced, _) = prepared.install(directory, snapshot).unwrap();
        log.replaced(&replaced);
        replaced.clean_up();
    }
}

/// A log that has lost the file of the segment of offset 2, and has accepted that; and what was in the file.
fn without_the_second() -> (tempfile::TempDir, Log, Vec<u8>) {
    let (directory, log) = five();
    let lost = path(directory.path(), 2);
    let content = std::fs::read(&lost).unwrap();
    std::fs::remove_file(&lost).unwrap();
    let (mut log, _) = again(directory.path(), log);
    accept(&mut log, directory.path(), &[(2, 4)]);
    assert_eq!(offsets(&log, 0, 10), [0, 1, 4, 5, 6, 7, 8, 9]);
    (directory, log, content)
}

fn set_aside(directory: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> =
        inspect::set_aside(directory).unwrap().into_iter().map(|(path, _)| path).collect();
    names.sort();
    names
}

#[test]
fn a_file_that_comes_back_after_its_loss_was_accepted_is_set_aside() {
    for compacted in [false, true] {
        let (directory, mut log, content) = without_the_second();
        let lost = path(directory.path(), 2);
        let index = lost.with_extension(files::INDEX_SUFFIX);
        if compacted {
            // The marker is in a segment that compaction has made of all of them.
            assert_eq!(all_passes(&mut log, &mut BTreeMap::new(), FAR), []);
            assert_eq!(log.size().0, 2);
        }
        let expected = [lost.with_extension("torn"), lost.with_extension("torn.1")];
        for (round, aside) in expected.iter().enumerate() {
            std::fs::write(&lost, &content).unwrap();
            std::fs::write(&index, "of the file that was lost").unwrap();
            let (opened, report) = again(directory.path(), log);
            log = opened;
            let what = format!("compacted: {compacted}, round {round}");
            assert_eq!(std::fs::read(aside).ok(), Some(content.clone()), "{what}");
            assert_eq!(set_aside(directory.path()), expected[..=round], "{what}");
            assert!(!lost.exists() && !index.exists(), "{what}");
            assert_eq!(report.superseded, 1, "{what}");
            assert_eq!(offsets(&log, 0, 10), [0, 1, 4, 5, 6, 7, 8, 9], "{what}: the marker serves");
            check_look_ups(&log, &records(&log, 1 << 20));
        }
        put(&mut log, &[("another", None)], 9);
        sync(&mut log);
        let (log, report) = again(directory.path(), log);
        assert_eq!((report.superseded, log.durable_position().offset), (0, offset(11)));
        assert_eq!(set_aside(directory.path()), expected);
        if compacted {
            continue;
        }
        // As docs/operations.md has it: the records are served again.
        let first = path(directory.path(), 0);
        std::fs::rename(files::lost_path(directory.path(), offset(2), offset(4), 2), &first).unwrap();
        std::fs::remove_file(first.with_extension(files::INDEX_SUFFIX)).unwrap();
        std::fs::rename(&expected[0], &lost).unwrap();
        let (log, report) = again(directory.path(), log);
        assert_eq!((report.superseded, offsets(&log, 0, 10)), (0, (0..10).collect()));
        check_look_ups(&log, &records(&log, 1 << 20));
    }
}

/// What lies in the range of another segment and cannot be one that compaction has replaced.
#[test]
fn a_file_that_no_compaction_has_left_is_set_aside() {
    type Change = fn(Vec<u8>) -> Vec<u8>;
    let cases: [(&str, Change); 4] = [
        ("cut", |content| content[..content.len() - 20].to_vec()),
        ("empty", |_| Vec::new()),
        ("header", |mut content| {
            content[20] ^= 1;
            content
        }),
        ("another partition's", |mut content| {
            content[35] ^= 1;
            let check = crc32fast::hash(&content[..68]);
            content[68..72].copy_from_slice(&check.to_be_bytes());
            content
        }),
    ];
    for (what, change) in cases {
        let (directory, mut log) = five();
        let replaced = path(directory.path(), 2);
        let content = change(std::fs::read(&replaced).unwrap());
        all_passes(&mut log, &mut BTreeMap::new(), FAR);
        assert!(!replaced.exists());
        std::fs::write(&replaced, &content).unwrap();
        let (log, _) = again(directory.path(), log);
        assert_eq!(std::fs::read(replaced.with_extension("torn")).ok(), Some(content), "{what}");
        assert!(!replaced.exists(), "{what}");
        assert_eq!(offsets(&log, 0, 10), (0..10).collect::<Vec<_>>(), "{what}");
    }
}

/// A crash between the rename and the removal: what was replaced goes, also if markers are in it or beside it.
#[test]
fn what_a_compaction_has_left_goes_though_a_loss_was_accepted() {
    // The file that was lost when it was accepted: its marker is in the segment before it, or in its own.
    for restart in [true, false] {
        let (directory, mut log) = five();
        std::fs::remove_file(path(directory.path(), 4)).unwrap();
        if restart {
            log = again(directory.path(), log).0;
        }
        accept(&mut log, directory.path(), &[(4, 6)]);
        let before: BTreeMap<_, _> = files::list_offsets(directory.path(), files::SEGMENT_SUFFIX)
            .unwrap()
            .into_iter()
            .map(|base| (base, std::fs::read(path(directory.path(), base.get())).unwrap()))
            .collect();
        all_passes(&mut log, &mut BTreeMap::new(), FAR);
        let left: Vec<_> = before.keys().copied().filter(|base| (1..10).contains(&base.get())).collect();
        assert_eq!(left.len(), if restart { 3 } else { 4 });
        for base in &left {
            std::fs::write(path(directory.path(), base.get()), &before[base]).unwrap();
        }
        let (log, report) = again(directory.path(), log);
        assert_eq!(report.superseded as usize, left.len());
        assert!(left.iter().all(|base| !path(directory.path(), base.get()).exists()));
        assert_eq!(set_aside(directory.path()), [] as [PathBuf; 0]);
        assert_eq!(offsets(&log, 0, 10), [0, 1, 2, 3, 6, 7, 8, 9]);
    }
}

/// Whatever a power cut leaves of a start that sets the file aside: it is there under one of its names, whole.
#[test]
fn a_power_cut_while_a_file_is_set_aside_does_not_lose_it() {
    let (directory, log, content) = without_the_second();
    let witness = log.durable_position();
    drop(log);
    std::fs::write(path(directory.path(), 2), &content).unwrap();
    let recorder = Recorder::install(directory.path()).unwrap();
    drop(open(directory.path(), BYTES, Some(witness), false));
    let journal = recorder.journal();
    assert!(!journal.events.is_empty());
    let (mut images, mut names) = (Images::new(&journal), [0; 2]);
    for at in 0..=journal.events.len() {
        images.advance(at);
        for seed in 0..20 {
            let to = tempfile::tempdir().unwrap();
            images.power_cut(seed).write(&journal, to.path()).unwrap();
            let under = [path(to.path(), 2), path(to.path(), 2).with_extension("torn")];
            let there = under.map(|path| std::fs::read(path).ok());
            assert!(there.iter().any(|found| found.as_ref() == Some(&content)), "image {seed} at {at}");
            for (count, there) in names.iter_mut().zip(&there) {
                *count += u32::from(there.is_some());
            }
            let (log, _) = open(to.path(), BYTES, Some(witness), false);
            assert_eq!(offsets(&log, 0, 10), [0, 1, 4, 5, 6, 7, 8, 9], "image {seed} at {at}");
            assert_eq!(
                set_aside(to.path()),
                [path(to.path(), 2).with_extension("torn")],
                "image {seed} at {at}"
            );
        }
    }
    assert!(names.iter().all(|count| *count > 0), "{names:?}");
}
