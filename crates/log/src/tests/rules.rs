//! One rule, one test.

use super::*;
use crate::{files, staging::WriteFailure};

fn new_log(segment_bytes: u64) -> (tempfile::TempDir, Log) {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::create(directory.path(), ID, config(segment_bytes), Timestamp(0)).unwrap();
    (directory, log)
}

#[test]
fn readers_see_only_what_is_durable_and_in_order() {
    let (_directory, mut log) = new_log(4096);
    append(&mut log, &values(3, 10, 1), 100);
    assert_eq!(log.reader().ends().written, offset(0));
    write(&mut log);
    let ends = log.reader().ends();
    assert_eq!((ends.durable, ends.written), (offset(0), offset(3)));
    assert!(read_all(&log, 1000).0.is_empty());
    sync(&mut log);
    assert_eq!(read_all(&log, 1000).0.len(), 3);
}

#[test]
fn append_times_never_go_back() {
    let (_directory, mut log) = new_log(1 << 20);
    append(&mut log, &values(1, 1, 1), 500);
    append(&mut log, &values(1, 1, 2), 400);
    sync(&mut log);
    let times: Vec<_> = (0..2)
        .map(|n| log.reader().append_time_at(offset(n), offset(2), Access::Blocking).unwrap().unwrap())
        .collect();
    assert_eq!(times, [Timestamp(500), Timestamp(500)]);
}

#[test]
fn look_ups_by_time_agree_with_a_linear_scan_over_unordered_times() {
    let (_directory, mut log) = new_log(2048);
    let times = [50, 10, 90, 20, 95, 30, 5, 200, 100, 7];
    for (n, time) in times.iter().cycle().take(200).enumerate() {
        append(&mut log, &values(1, 60, n as u64), *time);
    }
    sync(&mut log);
    assert!(log.size().0 > 3, "the log must have rolled");
    let reader = log.reader();
    for at in 0..210 {
        let expected = (0..200).find(|n| times[n % 10] >= at).map(|n| offset(n as u64));
        let found = reader.find_time(Timestamp(at), offset(200), Access::Blocking).unwrap();
        assert_eq!(found.map(|found| found.offset), expected, "time {at}");
    }
    assert_eq!(reader.max_time(offset(200), Access::Blocking).unwrap(), Some(Timestamp(200)));
    assert_eq!(reader.max_time(offset(7), Access::Blocking).unwrap(), Some(Timestamp(95)));
    for (from, to) in [(0, 200), (3, 7), (0, 0), (150, 199), (7, 8)] {
        assert_eq!(reader.count(offset(from), offset(to), Access::Blocking).unwrap().records, to - from);
    }
}

#[test]
fn a_failed_write_leaves_nothing_and_the_next_one_goes_on() {
    let (directory, mut log) = new_log(4096);
    append(&mut log, &values(2, 50, 1), 1);
    sync(&mut log);
    let before = std::fs::read(files::offset_path(directory.path(), offset(0), "log")).unwrap();

    let (first, claim) = dense(&values(1, 50, 2), 2, 9, 0);
    log.offer(&first, Some(&claim), None, Timestamp(2)).unwrap();
    let plan = log.take_plan().unwrap();
    // Staged behind the plan: its offsets follow from what fails.
    append(&mut log, &values(1, 50, 3), 3);
    let cause = crate::FileError {
        operation: "write",
        path: String::new(),
        source: std::io::ErrorKind::StorageFull.into(),
    };
    log.plan_failed(plan, &WriteFailure { cause, undone: Ok(()) });
    assert_eq!(log.staged_end(), offset(2));
    assert!(log.producer(claim.stamp.id).is_none(), "the sequence was not used up");
    assert_eq!(std::fs::read(files::offset_path(directory.path(), offset(0), "log")).unwrap(), before);

    let again = log.offer(&first, Some(&claim), None, Timestamp(4)).unwrap();
    assert!(matches!(again, Offered::Staged { base, .. } if base == offset(2)));
    sync(&mut log);
    assert_eq!(read_all(&log, 1 << 20).0.len(), 3);
}

#[test]
fn a_plan_that_fails_half_way_puts_the_files_back() {
    let (directory, mut log) = new_log(600);
    append(&mut log, &values(1, 100, 1), 1);
    sync(&mut log);
    let before = std::fs::read(files::offset_path(directory.path(), offset(0), "log")).unwrap();
    for n in 0..6 {
        append(&mut log, &values(1, 100, n), 2);
    }
    let mut plan = log.take_plan().unwrap();
    assert!(plan.creates());
    // A file that stands where the plan wants to make its last segment.
    let last = plan.staged.steps.last().unwrap().segment.path().to_owned();
    std::fs::write(&last, b"in the way").unwrap();
    let failure = plan.execute().unwrap_err();
    assert!(failure.undone.is_ok());
    log.plan_failed(plan, &failure);
    assert_eq!(std::fs::read(files::offset_path(directory.path(), offset(0), "log")).unwrap(), before);
    assert!(files::list_offsets(directory.path(), "log").unwrap().len() <= 2);
    drop(std::fs::remove_file(&last));
    append(&mut log, &values(1, 100, 9), 3);
    sync(&mut log);
    assert_eq!(read_all(&log, 1000).0.len(), 2);
}

#[test]
fn a_clean_stop_is_gone_on_from_its_caches_without_a_scan() {
    let (directory, mut log) = new_log(2048);
    for n in 0..40 {
        append(&mut log, &values(2, 30, n), n as i64);
    }
    sync(&mut log);
    let expected = read_all(&log, 1 << 20).0;
    log.caches().write().unwrap();
    let witness = Some(log.durable_position());
    drop(log);
    let (mut log, report) = open(directory.path(), 2048, witness, true);
    assert!(report.from_caches);
    assert_eq!(report.scanned_bytes, 0);
    assert_eq!(read_all(&log, 300).0, expected);
    let segments = log.size().0;
    append(&mut log, &values(1, 1, 99), 99);
    sync(&mut log);
    assert_eq!(log.size().0, segments, "a cleanly stopped segment is gone on with");
    assert_eq!(read_all(&log, 300).0.len(), expected.len() + 1);
}

#[test]
fn an_unclean_start_seals_the_segment_and_takes_a_new_salt() {
    let (directory, mut log) = new_log(1 << 20);
    append(&mut log, &values(2, 30, 1), 1);
    sync(&mut log);
    let witness = log.durable_position();
    drop(log);
    for round in 0..3u64 {
        let (mut log, report) = open(directory.path(), 1 << 20, Some(witness), false);
        assert!(!report.from_caches);
        append(&mut log, &values(1, 30, 2), 2);
        sync(&mut log);
        assert_eq!(log.size().0 as u64, round + 2);
        assert_eq!(read_all(&log, 1000).0.len() as u64, round + 3);
    }
    let headers: Vec<_> = files::list_offsets(directory.path(), "log")
        .unwrap()
        .into_iter()
        .map(|base| crate::inspect::SegmentView::open(directory.path(), base).unwrap().header.salt)
        .collect();
    let distinct: std::collections::HashSet<_> = headers.iter().collect();
    assert_eq!(distinct.len(), headers.len());
}

#[test]
fn what_no_witness_attests_is_written_again_before_it_is_published() {
    let (directory, mut log) = new_log(700);
    append(&mut log, &values(1, 100, 1), 1);
    sync(&mut log);
    let witness = log.durable_position();
    for n in 0..10 {
        append(&mut log, &values(1, 100, n), 2);
    }
    write(&mut log);
    let end = log.written_position();
    assert!(end.segment > witness.segment);
    drop(log);
    let (log, report) = open(directory.path(), 700, Some(witness), false);
    assert!(report.rewritten_bytes > 1000, "{report:?}");
    assert_eq!(report.torn_bytes, 0);
    assert_eq!(log.durable_position().offset, end.offset);
    assert_eq!(read_all(&log, 1000).0.len(), 11);
}

#[test]
fn producers_survive_restart_trim_and_retention_of_their_records() {
    let (directory, mut log) = new_log(600);
    let (first, claim) = dense(&values(1, 100, 1), 1, 9, 0);
    log.offer(&first, Some(&claim), None, Timestamp(1)).unwrap();
    for n in 0..10 {
        append(&mut log, &values(1, 100, n), 2);
    }
    log.stage_snapshot(true);
    sync(&mut log);
    let start = log.clamp_start(offset(8));
    crate::write_log_start(directory.path(), start).unwrap();
    let removed = log.advance_start(start);
    assert!(removed.segments() > 0);
    for freed in removed.unlink() {
        freed.unwrap();
    }
    let witness = log.durable_position();
    for clean in [false, true] {
        if clean {
            log.caches().write().unwrap();
        }
        drop(log);
        let (again, _) = open(directory.path(), 600, Some(witness), clean);
        log = again;
        assert_eq!(log.reader().start(), offset(8));
        let verdict = log.offer(&first, Some(&claim), None, Timestamp(3)).unwrap();
        assert!(
            matches!(verdict, Offered::Duplicate { offsets: Some((base, _)), .. } if base == offset(0)),
            "{verdict:?}"
        );
    }
}

#[test]
fn by_request_content_is_recognised_after_an_unclean_start() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = Log::create(directory.path(), ID, config(1 << 20), Timestamp(0)).unwrap();
    let make = |content: u64| {
        let stamp = ProducerStamp {
            id: ProducerId::new(5).unwrap(),
            epoch: ProducerEpoch::ZERO,
            base: 0,
            numbering: Numbering::ByRequest,
        };
        let batch = build(BatchBuilder::new(Compression::None).producer(stamp), &values(2, 5, content), 7);
        let hash = batch.content_hash(&crate::inspect::LIMITS).unwrap();
        let claim = Claim::of(batch.header(), Some(hash)).unwrap();
        (batch, claim)
    };
    let (first, claim) = make(1);
    log.offer(&first, Some(&claim), None, Timestamp(1)).unwrap();
    sync(&mut log);
    drop(log);
    let (mut log, _) = open(directory.path(), 1 << 20, None, false);
    assert!(matches!(log.offer(&first, Some(&claim), None, Timestamp(2)), Ok(Offered::Duplicate { .. })));
    let (other, claim) = make(2);
    assert!(log.offer(&other, Some(&claim), None, Timestamp(2)).is_err());
}

#[test]
fn expected_end_is_met_or_named() {
    let (_directory, mut log) = new_log(4096);
    append(&mut log, &values(2, 1, 1), 1);
    let batch = batch(&values(1, 1, 2), 1);
    let refused = log.offer(&batch, None, Some(offset(1)), Timestamp(1)).unwrap_err();
    assert_eq!(refused.to_string(), "expected the end 1, it is 2");
    assert!(log.offer(&batch, None, Some(offset(2)), Timestamp(1)).is_ok());
}

#[test]
fn append_time_topics_are_stamped_and_look_ups_go_by_it() {
    let directory = tempfile::tempdir().unwrap();
    let config = LogConfig { append_time_stamps: true, ..config(4096) };
    let mut log = Log::create(directory.path(), ID, config, Timestamp(0)).unwrap();
    for now in [1000, 2000] {
        log.offer(&batch(&values(1, 5, 1), 77), None, None, Timestamp(now)).unwrap();
    }
    sync(&mut log);
    let found = log.reader().find_time(Timestamp(1500), offset(2), Access::Blocking).unwrap().unwrap();
    assert_eq!((found.offset, found.time), (offset(1), Timestamp(2000)));
}

#[test]
fn batches_larger_than_a_segment_and_than_a_read_are_served_whole() {
    let (_directory, mut log) = new_log(4096);
    for n in 0..3 {
        append(&mut log, &values(3, 50_000, n), 1);
    }
    sync(&mut log);
    assert_eq!(log.size().0, 3);
    assert_eq!(read_all(&log, 10).0.len(), 9);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let (directory, mut log) = new_log(4096);
    append(&mut log, &values(1, 5, 1), 1);
    sync(&mut log);
    drop(log);
    let path = files::offset_path(directory.path(), offset(0), "log");
    let mut content = std::fs::read(&path).unwrap();
    content[9] = 2;
    let check = crc32fast::hash(&content[..68]);
    content[68..72].copy_from_slice(&check.to_be_bytes());
    std::fs::write(&path, &content).unwrap();
    let options = OpenOptions { clean: false, witness: None, now: Timestamp(1) };
    let error = Log::open(directory.path(), ID, config(4096), options).unwrap_err();
    assert!(error.to_string().contains("newer"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), content);
}

#[test]
fn retention_goes_by_size_then_by_time_a_share_at_a_time() {
    use crate::retention::{SegmentFacts, plan};
    let sealed: Vec<_> = (0..8)
        .map(|n| SegmentFacts {
            base: offset(n * 10),
            next: offset(n * 10 + 10),
            bytes: 100,
            max_time: Some(Timestamp(n as i64)),
        })
        .collect();
    let none = config(4096);
    let planned = plan(&sealed, 50, offset(0), &none, Timestamp(1_000_000));
    assert_eq!((planned.start, planned.segments), (offset(0), 0));
    let planned = plan(&sealed, 50, offset(25), &none, Timestamp(0));
    assert_eq!((planned.start, planned.segments), (offset(25), 2), "wholly below log start");
    let by_size = LogConfig { retention_bytes: Some(250), ..config(4096) };
    // 850 bytes in all: six segments can go and leave 250.
    assert_eq!(plan(&sealed, 50, offset(0), &by_size, Timestamp(0)).segments, 6);
    let by_time = LogConfig { retention_age: Some(Duration::from_millis(10)), ..config(4096) };
    let planned = plan(&sealed, 50, offset(0), &by_time, Timestamp(1_000_000));
    assert_eq!((planned.segments, planned.more), (2, true), "a clock that jumps takes a quarter at a time");
    let planned = plan(&sealed, 50, offset(0), &by_time, Timestamp(11));
    assert_eq!((planned.segments, planned.more), (1, false), "only what is older than the age");
    let off = LogConfig { retention: false, ..by_time };
    assert_eq!(plan(&sealed, 50, offset(0), &off, Timestamp(1_000_000)).segments, 0);
}

/// Rolls leave snapshots behind; those of a group that a power cut takes back must not have displaced the one
/// that deleted records rest on.
#[test]
fn a_power_cut_behind_many_rolls_leaves_the_state_of_deleted_batches() {
    let (directory, mut log) = new_log(600);
    let (first, claim) = dense(&values(1, 100, 1), 1, 9, 0);
    log.offer(&first, Some(&claim), None, Timestamp(1)).unwrap();
    for n in 0..10 {
        append(&mut log, &values(1, 100, n), 2);
    }
    log.stage_snapshot(true);
    sync(&mut log);
    let start = log.clamp_start(offset(8));
    crate::write_log_start(directory.path(), start).unwrap();
    for freed in log.advance_start(start).unlink() {
        freed.unwrap();
    }
    let durable = log.durable_position();
    // One group, many rolls, never synced.
    for n in 0..30 {
        append(&mut log, &values(1, 100, n), 3);
    }
    write(&mut log);
    drop(log);
    for base in files::list_offsets(directory.path(), "log").unwrap() {
        let path = files::offset_path(directory.path(), base, "log");
        if base > durable.segment {
            std::fs::remove_file(path).unwrap();
        } else if base == durable.segment {
            std::fs::File::options().write(true).open(path).unwrap().set_len(durable.position).unwrap();
        }
    }
    let (mut log, _) = open(directory.path(), 600, Some(durable), false);
    assert_eq!(log.durable_position().offset, durable.offset);
    let verdict = log.offer(&first, Some(&claim), None, Timestamp(3));
    assert!(matches!(verdict, Ok(Offered::Duplicate { .. })), "{verdict:?}");
    let kept = files::list_offsets(directory.path(), "producers").unwrap().len();
    append(&mut log, &values(1, 100, 99), 4);
    sync(&mut log);
    assert!(files::list_offsets(directory.path(), "producers").unwrap().len() <= kept + 1);
}

#[test]
fn a_clean_mark_does_not_hide_that_the_last_segment_is_missing() {
    let (directory, mut log) = new_log(600);
    for n in 0..6 {
        append(&mut log, &values(1, 100, n), 1);
        sync(&mut log);
    }
    log.caches().write().unwrap();
    let end = log.durable_position();
    drop(log);
    std::fs::remove_file(files::offset_path(directory.path(), end.segment, "log")).unwrap();
    let (log, report) = open(directory.path(), 600, Some(end), true);
    assert!(!report.from_caches);
    assert_eq!(log.staged_end(), end.offset, "offsets are not used again");
}

#[test]
fn damage_right_before_the_bound_of_a_read_is_named() {
    let (directory, mut log) = new_log(1 << 20);
    for n in 0..3 {
        append(&mut log, &values(2, 50, n), 1);
    }
    sync(&mut log);
    let path = files::offset_path(directory.path(), offset(0), "log");
    let first = std::fs::read(&path).unwrap();
    let frame = (first.len() - crate::frame::SEGMENT_HEADER_LENGTH) / 3;
    let mut content = first;
    content[crate::frame::SEGMENT_HEADER_LENGTH + frame + 20] ^= 1;
    std::fs::write(&path, &content).unwrap();
    let range = ReadRange { from: offset(2), until: offset(4), bytes: 1000 };
    let error = log.reader().read(range, Access::Blocking).unwrap_err();
    assert!(matches!(error, LogReadError::Damaged { .. }), "{error}");
}

/// A snapshot that was staged and could not be written must not displace the one that deleted records rest on.
#[test]
fn a_snapshot_counts_only_once_it_is_written() {
    let (directory, mut log) = new_log(600);
    let (first, claim) = dense(&values(1, 100, 1), 1, 9, 0);
    log.offer(&first, Some(&claim), None, Timestamp(1)).unwrap();
    log.stage_snapshot(true);
    sync(&mut log);
    for n in 0..8 {
        append(&mut log, &values(1, 100, n), 2);
    }
    sync(&mut log);
    for old in files::list_offsets(directory.path(), "producers").unwrap() {
        if old > offset(1) {
            std::fs::remove_file(files::offset_path(directory.path(), old, "producers")).unwrap();
        }
    }
    let obstacle = directory.path().join(format!("{:020}.producers.tmp", 9));
    std::fs::create_dir(&obstacle).unwrap();
    log.stage_snapshot(true);
    let mut plan = log.take_plan().unwrap();
    plan.execute().unwrap();
    let written = log.plan_succeeded(plan).execute();
    assert!(written.failure.is_some());
    log.snapshots_written(&written);
    sync(&mut log);
    for freed in log.advance_start(log.clamp_start(offset(5))).unlink() {
        freed.unwrap();
    }
    let witness = log.durable_position();
    drop(log);
    std::fs::remove_dir(&obstacle).unwrap();
    let (mut log, _) = open(directory.path(), 600, Some(witness), false);
    let verdict = log.offer(&first, Some(&claim), None, Timestamp(3));
    assert!(matches!(verdict, Ok(Offered::Duplicate { .. })), "{verdict:?}");
}

/// As when no descriptor is to be had: nothing was written, so there is nothing to undo.
#[test]
fn a_write_that_never_had_its_file_is_undone() {
    let (directory, mut log) = new_log(4096);
    append(&mut log, &values(1, 100, 1), 1);
    sync(&mut log);
    assert!(log.release_writer());
    let path = files::offset_path(directory.path(), offset(0), "log");
    let away = directory.path().join("away");
    std::fs::rename(&path, &away).unwrap();
    append(&mut log, &values(1, 100, 2), 2);
    let mut plan = log.take_plan().unwrap();
    let failure = plan.execute().unwrap_err();
    assert!(failure.undone.is_ok());
    log.plan_failed(plan, &failure);
    std::fs::rename(&away, &path).unwrap();
    append(&mut log, &values(1, 100, 3), 3);
    sync(&mut log);
    assert_eq!(read_all(&log, 1000).0.len(), 2);
}

/// What the witness attests is deleted, and it could not attest more before the power went: what lies behind is judged by
/// itself, also if any of the deleted segments is back. Found by images of power cuts.
#[test]
fn what_lies_behind_a_deleted_attested_end_is_kept() {
    for (deleted, back) in (12..=14).flat_map(|deleted| (0..9).map(move |back| (deleted, back))) {
        let (directory, mut log) = new_log(600);
        for n in 0..8 {
            append(&mut log, &values(1, 100, n), 1);
        }
        sync(&mut log);
        let witness = log.durable_position();
        // Staged before anything more is durable, so that no frame claims more either.
        for n in 8..16 {
            append(&mut log, &values(1, 100, n), 2);
        }
        sync(&mut log);
        let content = |base| {
            let path = files::offset_path(directory.path(), base, "log");
            (std::fs::read(&path).unwrap(), path)
        };
        let all: Vec<_> = files::list_offsets(directory.path(), "log").unwrap();
        let all: Vec<_> = all.into_iter().map(content).collect();
        let start = log.clamp_start(offset(deleted));
        crate::write_log_start(directory.path(), start).unwrap();
        for freed in log.advance_start(start).unlink() {
            freed.unwrap();
        }
        assert!(witness.segment > offset(0));
        assert!(!files::offset_path(directory.path(), witness.segment, "log").exists());
        let before = read_all(&log, 1000);
        drop(log);
        // The cut has kept the other removals and lost this one.
        let (bytes, path) = &all[back.min(all.len() - 1)];
        std::fs::write(path, bytes).unwrap();
        for _ in 0..2 {
            let (log, report) = open(directory.path(), 600, Some(witness), false);
            assert_eq!((log.reader().start(), report.damaged_ranges), (start, 0));
            assert_eq!(log.reader().ends().durable, offset(16), "deleted up to {deleted}, {path:?} is back");
            assert_eq!(read_all(&log, 1000), before);
        }
    }
}

/// All records are deleted, the new segment's header is lost, and an old segment is back: what was given out is not
/// given out again, and nothing is missing. Found by images of power cuts.
#[test]
fn offsets_below_the_log_start_are_not_given_out_again() {
    for back in [false, true] {
        let (directory, mut log) = new_log(600);
        let (first, claim) = dense(&values(1, 100, 1), 1, 9, 0);
        log.offer(&first, Some(&claim), None, Timestamp(1)).unwrap();
        sync(&mut log);
        let witness = log.durable_position();
        let oldest = files::offset_path(directory.path(), offset(0), "log");
        let before = std::fs::read(&oldest).unwrap();
        for n in 0..10 {
            append(&mut log, &values(1, 100, n), 2);
        }
        log.stage_snapshot(true);
        sync(&mut log);
        assert!(log.roll_if_old(Timestamp(10_000_000)));
        write(&mut log);
        let start = log.clamp_start(offset(11));
        assert_eq!(start, offset(11));
        crate::write_log_start(directory.path(), start).unwrap();
        for freed in log.advance_start(start).unlink() {
            freed.unwrap();
        }
        drop(log);
        let left = files::list_offsets(directory.path(), "log").unwrap();
        assert_eq!(left, [offset(11)]);
        std::fs::write(files::offset_path(directory.path(), offset(11), "log"), b"").unwrap();
        if back {
            std::fs::write(&oldest, &before).unwrap();
        }
        for start in 0..2 {
            let (mut log, report) = open(directory.path(), 600, Some(witness), false);
            assert_eq!((log.reader().start(), report.damaged_ranges), (offset(11), 0), "back: {back}");
            let again = log.offer(&first, Some(&claim), None, Timestamp(3)).unwrap();
            assert!(matches!(again, Offered::Duplicate { .. }), "{again:?}");
            assert_eq!(append(&mut log, &values(1, 100, 1), 3), offset(11 + start));
            sync(&mut log);
        }
    }
}

/// What is larger than any log start, or mark of a clean stop, is as good as none. Found by exchanged files.
#[test]
fn files_that_are_too_large_to_be_what_they_are_named_stop_nothing() {
    let (directory, mut log) = new_log(600);
    for n in 0..8 {
        append(&mut log, &values(1, 100, n), 1);
    }
    sync(&mut log);
    drop(log);
    std::fs::write(directory.path().join(files::LOG_START_FILE), [7; 4096]).unwrap();
    let (log, _) = open(directory.path(), 600, None, false);
    assert_eq!((log.reader().start(), read_all(&log, 1000).0.len()), (offset(0), 8));
    let home = tempfile::tempdir().unwrap();
    let data = crate::DataDirectory::open(home.path(), uuid::Uuid::from_u128(1), Timestamp(0)).unwrap();
    data.mark_clean().unwrap();
    drop(data);
    std::fs::write(home.path().join("clean"), [7; 4096]).unwrap();
    let data = crate::DataDirectory::open(home.path(), uuid::Uuid::from_u128(2), Timestamp(0)).unwrap();
    assert!(!data.was_clean());
    assert_eq!(data.server_id(), uuid::Uuid::from_u128(1));
}
