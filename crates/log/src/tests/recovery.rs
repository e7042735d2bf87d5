//! What recovery does to files, and what a kill in the middle of it leaves.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::{DataDirectory, files, frame::SEGMENT_HEADER_LENGTH};

/// A log that holds nothing, stopped uncleanly.
fn empty() -> (tempfile::TempDir, std::path::PathBuf, LogPosition) {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::create(directory.path(), ID, config(4096), Timestamp(0)).unwrap();
    let path = files::offset_path(directory.path(), offset(0), "log");
    let end = log.durable_position();
    (directory, path, end)
}

/// Recovery is killed where it makes a new segment: the salt is asked for then.
fn open_and_die(directory: &Path, witness: LogPosition) {
    let dying = LogConfig { salts: SaltSource(Arc::new(|| panic!("killed"))), ..config(4096) };
    let options = OpenOptions { clean: false, witness: Some(witness), now: Timestamp(1) };
    let died = catch_unwind(AssertUnwindSafe(|| drop(Log::open(directory, ID, dying, options))));
    assert!(died.is_err(), "recovery has made no new segment");
}

fn goes_on(directory: &Path, witness: LogPosition) {
    for round in 0..2 {
        let (mut log, _) = open(directory, 4096, Some(witness), false);
        assert_eq!(append(&mut log, &values(1, 10, round), 1), offset(round));
        sync(&mut log);
    }
}

#[test]
fn a_kill_while_an_empty_segment_is_replaced_leaves_one() {
    let (directory, path, witness) = empty();
    let mut content = std::fs::read(&path).unwrap();
    content.extend_from_slice(&[7; 300]);
    std::fs::write(&path, &content).unwrap();
    open_and_die(directory.path(), witness);
    goes_on(directory.path(), witness);
}

#[test]
fn a_kill_while_an_unreadable_segment_is_put_aside_leaves_both() {
    let (directory, path, witness) = empty();
    let mut content = std::fs::read(&path).unwrap();
    content[3] ^= 1;
    content.extend_from_slice(&[7; 300]);
    std::fs::write(&path, &content).unwrap();
    for _ in 0..2 {
        open_and_die(directory.path(), witness);
    }
    goes_on(directory.path(), witness);
    let aside = crate::inspect::set_aside(directory.path()).unwrap();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(std::fs::read(&aside[0].0).unwrap(), content);
}

#[test]
fn a_partition_that_a_kill_left_without_a_segment_is_none_yet() {
    let home = tempfile::tempdir().unwrap();
    let data = DataDirectory::open(home.path(), uuid::Uuid::from_u128(1), Timestamp(0)).unwrap();
    let path = data.create_partition(ID).unwrap();
    std::fs::write(path.join("x.tmp"), b"left").unwrap();
    assert_eq!(data.partitions().unwrap(), []);
    assert_eq!(data.create_partition(ID).unwrap(), path);
    let log = Log::create(&path, ID, config(4096), Timestamp(0)).unwrap();
    assert_eq!(log.staged_end(), offset(0));
    assert_eq!(data.partitions().unwrap(), [ID]);
    let again = data.create_partition(ID).unwrap_err();
    assert_eq!(again.source.kind(), std::io::ErrorKind::AlreadyExists);
    // Without its segment, and with something else: that is a loss, not a beginning.
    std::fs::rename(path.join(format!("{:020}.log", 0)), path.join("x.torn")).unwrap();
    assert_eq!(data.partitions().unwrap(), [ID]);
    data.create_partition(ID).unwrap_err();
}

/// The last file is gone; what the one before it tells of producers lies beyond the position of the attested end,
/// which is one in the missing file.
#[test]
fn producers_are_read_to_the_end_of_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = Log::create(directory.path(), ID, config(1500), Timestamp(0)).unwrap();
    append(&mut log, &values(1, 700, 1), 1);
    let (late, claim) = dense(&values(1, 100, 1), 1, 9, 0);
    log.offer(&late, Some(&claim), None, Timestamp(1)).unwrap();
    append(&mut log, &values(1, 600, 2), 1);
    sync(&mut log);
    let end = log.durable_position();
    assert_eq!((end.segment, log.size().0), (offset(2), 2));
    let first = std::fs::metadata(files::offset_path(directory.path(), offset(0), "log")).unwrap().len();
    assert!(end.position < first - 300, "the producer's frame lies behind {}: {first}", end.position);
    drop(log);
    std::fs::remove_file(files::offset_path(directory.path(), end.segment, "log")).unwrap();
    for snapshot in files::list_offsets(directory.path(), "producers").unwrap() {
        std::fs::remove_file(files::offset_path(directory.path(), snapshot, "producers")).unwrap();
    }
    let (mut log, report) = open(directory.path(), 1500, Some(end), false);
    assert!(report.damaged_ranges > 0);
    assert!(report.scanned_bytes >= first - SEGMENT_HEADER_LENGTH as u64);
    let verdict = log.offer(&late, Some(&claim), None, Timestamp(3));
    assert!(matches!(verdict, Ok(Offered::Duplicate { .. })), "{verdict:?}");
    assert_eq!(append(&mut log, &values(1, 10, 3), 2), end.offset, "offsets are not used again");
}

/// What nothing can be read of was appended to all the same, in its old salt.
#[test]
fn a_segment_of_which_nothing_can_be_read_is_not_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = Log::create(directory.path(), ID, config(1 << 20), Timestamp(0)).unwrap();
    append(&mut log, &values(3, 100, 1), 1);
    sync(&mut log);
    let end = log.durable_position();
    drop(log);
    let path = crate::files::offset_path(directory.path(), offset(0), "log");
    let mut content = std::fs::read(&path).unwrap();
    content[72..].fill(0);
    std::fs::write(&path, &content).unwrap();
    let (mut log, _) = open(directory.path(), 1 << 20, Some(end), false);
    assert_eq!(append(&mut log, &values(1, 10, 2), 2), offset(3));
    sync(&mut log);
    assert_eq!(crate::files::list_offsets(directory.path(), "log").unwrap(), [offset(0), offset(3)]);
    let (records, damage) = read_all(&log, 1000);
    assert_eq!((records.len(), damage), (1, vec![(offset(0), offset(3))]));
}
