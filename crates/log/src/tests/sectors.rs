//! Sectors that the disk cannot read: their range is lost, and nothing else.

use super::*;
use crate::files::{self, bad_sectors};

/// Three segments of two large batches each, and one of one; each batch has one record.
fn victim() -> (tempfile::TempDir, Log) {
    let directory = tempfile::tempdir().unwrap();
    let mut log = Log::create(directory.path(), ID, config(50_000), Timestamp(0)).unwrap();
    for n in 0..7 {
        append(&mut log, &values(1, 20_000, n), 1);
        sync(&mut log);
    }
    assert_eq!(log.size().0, 4);
    (directory, log)
}

fn segment(directory: &Path, base: u64) -> std::path::PathBuf {
    files::offset_path(directory, offset(base), "log")
}

#[test]
fn an_open_log_names_what_cannot_be_read_and_serves_the_rest() {
    let (directory, log) = victim();
    let path = segment(directory.path(), 2);
    bad_sectors::add(&path, 24_576..25_088);
    let (records, damage) = read_all(&log, 100_000);
    assert_eq!(damage, [(offset(3), offset(4))]);
    assert_eq!(records.len(), 6);
}

#[test]
fn recovery_goes_on_over_it() {
    let (directory, log) = victim();
    let witness = log.durable_position();
    drop(log);
    let path = segment(directory.path(), 2);
    bad_sectors::add(&path, 0..4096);
    for cache in ["idx", "producers"] {
        for name in files::list_offsets(directory.path(), cache).unwrap() {
            bad_sectors::add(&files::offset_path(directory.path(), name, cache), 0..1);
        }
    }
    for round in 0..2 {
        let (mut log, _) = open(directory.path(), 50_000, Some(witness), false);
        let (records, damage) = read_all(&log, 100_000);
        // The header of the segment lies in the same 4 KiB.
        assert_eq!(damage, [(offset(2), offset(4))]);
        assert_eq!(records.len(), 5 + round);
        append(&mut log, &values(1, 10, 9), 2);
        sync(&mut log);
    }
}

/// A torn write leaves sectors that can be read: what cannot be is no torn tail, and is not cut.
#[test]
fn behind_the_attested_end_it_is_not_taken_for_a_torn_tail() {
    let (directory, log) = victim();
    drop(log);
    let last = segment(directory.path(), 4);
    let behind = segment(directory.path(), 6);
    let content = std::fs::read(&last).unwrap();
    let witness = LogPosition { segment: offset(2), position: 72, offset: offset(2) };
    for (number, path) in [&last, &behind].into_iter().enumerate() {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        // Nothing else may attest what lies there.
        if number == 0 {
            std::fs::remove_file(copy.path().join(behind.file_name().unwrap())).unwrap();
        }
        let path = copy.path().join(path.file_name().unwrap());
        bad_sectors::add(&path, 0..1);
        let options = OpenOptions { clean: false, witness: Some(witness), now: Timestamp(1) };
        let error = Log::open(copy.path(), ID, config(50_000), options).unwrap_err();
        assert!(error.to_string().contains("Input/output error"), "{error}");
        assert!(error.to_string().contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
        assert_eq!(std::fs::read(copy.path().join(last.file_name().unwrap())).unwrap(), content);
        assert!(crate::inspect::set_aside(copy.path()).unwrap().is_empty());
    }
}
