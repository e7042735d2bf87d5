//! A start that begins at a checkpoint knows what one that reads everything knows.

use super::*;
use crate::{Checkpoint, frame::Totals};

const SEGMENT: u64 = 2 << 20;

/// A log and the checkpoints that came up, the newest last; not closed.
fn written(batches: u64, size: usize) -> (tempfile::TempDir, LogPosition, Vec<Checkpoint>) {
    let directory = tempfile::tempdir().unwrap();
    let mut log = Log::create(directory.path(), ID, config(SEGMENT), Timestamp(0)).unwrap();
    let (mut found, mut next) = (Vec::new(), [0u32; 3]);
    for n in 0..batches {
        let producer = (n % 3) as usize;
        let (batch, claim) = dense(&values(2, size, n), n as i64, 10 + producer as u64, next[producer]);
        next[producer] += 2;
        log.offer(&batch, Some(&claim), None, Timestamp(n as i64)).unwrap();
        let mut plan = log.take_plan().unwrap();
        plan.execute().unwrap();
        let mut after = log.plan_succeeded(plan);
        found.extend(after.checkpoint.take());
        log.snapshots_written(&after.execute());
        let position = log.written_position();
        log.synced(position);
    }
    (directory, log.durable_position(), found)
}

type Seen = (Totals, Vec<u8>, Records, u32, crate::LogPosition);

fn seen(log: &Log) -> Seen {
    let (found, damage) = read_all(log, 1 << 20);
    assert_eq!(damage, []);
    let head = log.head();
    (head.index.totals, log.producers().encode(), found, head.frames.previous_check, log.durable_position())
}

fn open_with(
    directory: &std::path::Path,
    witness: Option<LogPosition>,
    checkpoint: Option<&Checkpoint>,
) -> (Log, OpenReport) {
    let options = OpenOptions { clean: false, witness, now: Timestamp(1) };
    Log::open_from(directory, ID, config(SEGMENT), options, checkpoint.cloned()).unwrap()
}

#[test]
fn what_lies_before_it_is_not_read_and_is_known_all_the_same() {
    for size in [50, 700, 9_000] {
        let (directory, end, checkpoints) = written(600_000 / size as u64, size);
        assert!(checkpoints.len() > 5, "{}", checkpoints.len());
        let (log, whole) = open_with(directory.path(), Some(end), None);
        let expected = seen(&log);
        drop(log);
        for (number, checkpoint) in checkpoints.iter().enumerate() {
            let (log, report) = open_with(directory.path(), Some(end), Some(checkpoint));
            assert_eq!(seen(&log), expected, "{number}");
            let is_last = number + 1 == checkpoints.len();
            assert!(!is_last || report.scanned_bytes < whole.scanned_bytes / 4, "{report:?}, {whole:?}");
        }
        // Then it is gone on with, and the seal tells of everything.
        let (mut log, _) = open_with(directory.path(), Some(end), checkpoints.last());
        append(&mut log, &values(1, 10, 1), 1);
        sync(&mut log);
        let sealed = log.segments();
        let sealed = &sealed[sealed.len() - 2];
        assert_eq!(sealed.read_seal().unwrap(), Some(expected.0));
        // What is found by time and by count is the same with an index of its tail only.
        let reader = log.reader();
        let from = sealed.base.saturating_add(1);
        let counted = reader.count(from, end.offset, Access::Blocking).unwrap();
        assert_eq!(counted.records, end.offset.since(from));
        assert_eq!(
            reader.count(offset(1), end.offset, Access::Blocking).unwrap().records,
            end.offset.get() - 1
        );
        // The index was rebuilt for that; nobody needs to do it again.
        let found = sealed.search(Access::Blocking, |entry| entry.offset_delta <= 40).unwrap();
        assert!(found.records_before > 0 && found.records_before <= 40, "{found:?}");
    }
}

#[test]
fn one_that_the_log_does_not_lead_on_from_is_not_used() {
    let (directory, end, checkpoints) = written(500, 700);
    let (_other, _, foreign) = written(500, 700);
    let (log, _) = open_with(directory.path(), Some(end), None);
    let expected = seen(&log);
    drop(log);
    let good = checkpoints.last().unwrap();
    let mut wrong = vec![foreign.last().unwrap().clone()];
    wrong.push(Checkpoint { last_check: good.last_check ^ 1, ..good.clone() });
    wrong.push(Checkpoint { salt: good.salt ^ 1, ..good.clone() });
    for position in [0, 1, good.at.position - 1, good.at.position + 1, end.position + 1, u64::MAX] {
        wrong.push(Checkpoint { at: LogPosition { position, ..good.at }, ..good.clone() });
    }
    wrong.push(Checkpoint { at: LogPosition { offset: offset(3), ..good.at }, ..good.clone() });
    let at_end = LogPosition { offset: offset(3), ..end };
    wrong.push(Checkpoint { at: at_end, ..good.clone() });
    for (number, wrong) in wrong.iter().enumerate() {
        let (log, _) = open_with(directory.path(), Some(end), Some(wrong));
        assert_eq!(seen(&log), expected, "{number}");
    }
}

#[test]
fn rot_where_it_begins_makes_the_start_read_the_segment() {
    let (directory, end, checkpoints) = written(500, 700);
    let good = checkpoints.last().unwrap();
    let path = crate::files::offset_path(directory.path(), good.at.segment, "log");
    let mut content = std::fs::read(&path).unwrap();
    content[good.at.position as usize + 30] ^= 1;
    std::fs::write(&path, &content).unwrap();
    let (log, report) = open_with(directory.path(), Some(end), Some(good));
    assert!(report.damaged_ranges > 0 && report.scanned_bytes > good.at.position / 2, "{report:?}");
    assert_eq!(log.durable_position().offset, end.offset);
    assert_eq!(read_all(&log, 1 << 20).1.len(), 1);
}

#[test]
fn a_clean_start_goes_on_with_the_index_that_the_stop_left() {
    let (directory, end, _) = written(500, 700);
    let (mut log, _) = open_with(directory.path(), Some(end), None);
    log.caches().write().unwrap();
    let mut last = log.durable_position();
    for round in 0..3 {
        drop(log);
        if round < 2 {
            let (header, entries) = crate::inspect::index(directory.path(), last.segment).unwrap().unwrap();
            assert!(header.end == last.position && entries.len() > 150, "{round}: {header:?}");
        }
        if round == 1 {
            // One that is damaged is made again from the log.
            let path = crate::files::offset_path(directory.path(), last.segment, "idx");
            let mut index = std::fs::read(&path).unwrap();
            let at = index.len() / 2;
            index[at] ^= 1;
            std::fs::write(&path, &index).unwrap();
        }
        let (reopened, report) = open(directory.path(), SEGMENT, Some(last), true);
        log = reopened;
        // Of the damaged one nothing was written behind it, so that the start after that reads the log.
        assert_eq!(report.from_caches, round < 2, "{round}: {report:?}");
        assert_eq!(report.scanned_bytes == 0, round < 2, "{round}: {report:?}");
        append(&mut log, &values(3, 500, round), 1000 + round as i64);
        sync(&mut log);
        assert_eq!(read_all(&log, 1 << 20).1, []);
        last = log.durable_position();
        let reader = log.reader();
        for from in [0, 5, end.offset.get() - 1, last.offset.get() - 1] {
            let counted = reader.count(offset(from), last.offset, Access::Blocking).unwrap();
            assert_eq!(counted.records, last.offset.get() - from);
        }
        log.caches().write().unwrap();
    }
}

/// Forgetting is in a snapshot; a checkpoint from before it knows nothing of that.
#[test]
fn who_was_forgotten_behind_a_checkpoint_does_not_come_back() {
    let (directory, end, checkpoints) = written(500, 700);
    let (mut log, _) = open_with(directory.path(), Some(end), checkpoints.last());
    let producer = ProducerId::new(10).unwrap();
    assert!(log.producers_mut().forget(producer));
    log.stage_snapshot(true);
    sync(&mut log);
    let expected = log.producers().encode();
    drop(log);
    for checkpoint in [None, checkpoints.last(), checkpoints.first()] {
        let (log, _) = open_with(directory.path(), Some(end), checkpoint);
        assert!(log.producer(producer).is_none(), "{checkpoint:?}");
        assert_eq!(log.producers().encode(), expected);
        assert_eq!(log.head().index.totals.frames, 500);
    }
}
