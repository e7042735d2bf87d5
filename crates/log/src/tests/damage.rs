//! Rot below the attested end: named, confined, and never wrong bytes.

use super::*;
use crate::files;

/// A log of several small segments, stopped uncleanly, with its records and its durable end.
fn victim() -> (tempfile::TempDir, Vec<(Offset, Bytes)>, LogPosition) {
    let directory = tempfile::tempdir().unwrap();
    let mut log = Log::create(directory.path(), ID, config(700), Timestamp(0)).unwrap();
    for n in 0..12 {
        append(&mut log, &values(2, 40, n), n as i64);
        sync(&mut log);
    }
    assert!(log.size().0 > 2);
    let expected = read_all(&log, 1 << 20).0;
    (directory, expected, log.durable_position())
}

pub(super) fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
    }
    to
}

/// Reads after the damage: each record is the right one or inside a named range, and the log goes on behind it.
fn judge(
    directory: &Path,
    expected: &[(Offset, Bytes)],
    witness: LogPosition,
    what: &str,
) -> Vec<(Offset, Offset)> {
    let mut named = Vec::new();
    for round in 0..2 {
        let options = OpenOptions { clean: false, witness: Some(witness), now: Timestamp(1) };
        let (mut log, _) =
            Log::open(directory, ID, config(700), options).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(log.durable_position().offset >= witness.offset, "{what}: offsets would be used again");
        let (found, damage) = read_all(&log, 200);
        for (at, value) in &found {
            if let Some((_, wanted)) = expected.get(at.get() as usize) {
                assert_eq!(value, wanted, "{what}: offset {at}");
            }
        }
        for (at, _) in expected {
            let there = found.iter().any(|(found, _)| found == at);
            let lost = damage.iter().any(|(from, until)| from <= at && at < until);
            assert!(there != lost, "{what}: offset {at} is served: {there}, named as lost: {lost}");
        }
        let base = append(&mut log, &values(1, 10, 1000 + round), 100);
        sync(&mut log);
        assert!(base >= witness.offset);
        named = damage;
    }
    named
}

#[test]
fn every_flipped_byte_is_noticed_and_costs_at_most_its_own_batch() {
    let (directory, expected, witness) = victim();
    let mut losses = 0;
    for base in files::list_offsets(directory.path(), "log").unwrap() {
        let length = std::fs::metadata(files::offset_path(directory.path(), base, "log")).unwrap().len();
        // The last segment's bytes behind the durable end would be a torn tail; here all is durable.
        for at in (0..length).step_by(3) {
            let victim = copy(directory.path());
            let path = files::offset_path(victim.path(), base, "log");
            let mut content = std::fs::read(&path).unwrap();
            content[at as usize] ^= 1 << (at % 8);
            std::fs::write(&path, &content).unwrap();
            let what = format!("segment {base}, byte {at}");
            let damage = judge(victim.path(), &expected, witness, &what);
            let lost: u64 = damage.iter().map(|(from, until)| until.since(*from)).sum();
            let in_header = at < crate::frame::SEGMENT_HEADER_LENGTH as u64;
            assert!(lost <= if in_header { 12 } else { 2 }, "{what}: {damage:?}");
            losses += usize::from(lost > 0);
        }
    }
    assert!(losses > 300, "only {losses} flips did anything");
}

#[test]
fn truncated_missing_zeroed_and_exchanged_files_are_named() {
    let (directory, expected, witness) = victim();
    let bases = files::list_offsets(directory.path(), "log").unwrap();
    for (number, base) in bases.iter().enumerate() {
        let length = std::fs::metadata(files::offset_path(directory.path(), *base, "log")).unwrap().len();
        for cut in (0..length).step_by(11) {
            let victim = copy(directory.path());
            let path = files::offset_path(victim.path(), *base, "log");
            std::fs::File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
            judge(victim.path(), &expected, witness, &format!("segment {base} cut to {cut}"));
        }
        let victim = copy(directory.path());
        std::fs::remove_file(files::offset_path(victim.path(), *base, "log")).unwrap();
        judge(victim.path(), &expected, witness, &format!("segment {base} removed"));

        let victim = copy(directory.path());
        std::fs::write(files::offset_path(victim.path(), *base, "log"), vec![0; length as usize]).unwrap();
        judge(victim.path(), &expected, witness, &format!("segment {base} zeroed"));

        let other = bases[(number + 1) % bases.len()];
        let victim = copy(directory.path());
        let (one, two) = (
            files::offset_path(victim.path(), *base, "log"),
            files::offset_path(victim.path(), other, "log"),
        );
        let (first, second) = (std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
        std::fs::write(&one, second).unwrap();
        std::fs::write(&two, first).unwrap();
        judge(victim.path(), &expected, witness, &format!("segments {base} and {other} exchanged"));
    }
}

#[test]
fn indexes_and_snapshots_are_never_believed() {
    let (directory, expected, witness) = victim();
    let caches: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "idx" || suffix == "producers"))
        .collect();
    assert!(caches.len() >= 4, "{caches:?}");
    for cache in &caches {
        let name = cache.file_name().unwrap();
        let good = std::fs::read(cache).unwrap();
        for at in 0..good.len() {
            let victim = copy(directory.path());
            let mut bad = good.clone();
            bad[at] ^= 0x11;
            std::fs::write(victim.path().join(name), &bad).unwrap();
            assert_eq!(judge(victim.path(), &expected, witness, &format!("{name:?}, byte {at}")), []);
        }
        let victim = copy(directory.path());
        std::fs::remove_file(victim.path().join(name)).unwrap();
        assert_eq!(judge(victim.path(), &expected, witness, &format!("{name:?} removed")), []);
    }
}

#[test]
fn an_index_that_points_at_the_wrong_frame_misleads_nobody() {
    let (directory, expected, witness) = victim();
    let base = files::list_offsets(directory.path(), "log").unwrap()[0];
    let (header, mut entries) = crate::inspect::index(directory.path(), base).unwrap().unwrap();
    // Whole and well checked, and wrong: every entry claims the place of the last frame.
    let last = entries.last().unwrap().position;
    for entry in &mut entries {
        entry.position = last;
    }
    let path = files::offset_path(directory.path(), base, "idx");
    std::fs::write(path, crate::index::encode(header, &entries)).unwrap();
    assert_eq!(judge(directory.path(), &expected, witness, "a wrong index"), []);
}

#[test]
fn an_index_that_points_at_the_seal_or_behind_it_hides_nothing() {
    let (directory, expected, witness) = victim();
    let base = files::list_offsets(directory.path(), "log").unwrap()[0];
    let (header, good) = crate::inspect::index(directory.path(), base).unwrap().unwrap();
    let path = files::offset_path(directory.path(), base, "idx");
    let end = header.end as u32;
    for position in [end - crate::frame::SEAL_FRAME_LENGTH as u32, end, end + 1, u32::MAX] {
        let wrong: Vec<_> =
            good.iter().map(|entry| crate::index::IndexEntry { position, ..*entry }).collect();
        std::fs::write(&path, crate::index::encode(header, &wrong)).unwrap();
        let (log, _) = open(directory.path(), 700, Some(witness), false);
        for (at, value) in &expected {
            let range = ReadRange { from: *at, until: witness.offset, bytes: 1 };
            let found = log.reader().read(range, Access::Blocking).unwrap();
            let records = found[0].batch.records(&crate::inspect::LIMITS).unwrap().map(Result::unwrap);
            let there = records
                .into_iter()
                .any(|record| record.offset == *at && record.value.as_ref() == Some(value));
            assert!(there, "position {position}: offset {at} is passed over");
        }
    }
}

#[test]
fn counts_that_no_log_can_have_are_no_reason_to_panic() {
    let (directory, _, witness) = victim();
    let bases = files::list_offsets(directory.path(), "log").unwrap();
    for base in &bases[..bases.len() - 1] {
        let path = files::offset_path(directory.path(), *base, "log");
        let mut content = std::fs::read(&path).unwrap();
        let seal = content.len() - crate::frame::SEAL_FRAME_LENGTH;
        let payload = seal + crate::frame::FRAME_HEADER_LENGTH;
        content[payload + 8..payload + 16].fill(0xff);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&content[seal..seal + 56]);
        hasher.update(&content[payload..]);
        let check = hasher.finalize();
        content[seal + 56..seal + 60].copy_from_slice(&check.to_be_bytes());
        std::fs::write(&path, &content).unwrap();
    }
    let (log, _) = open(directory.path(), 700, Some(witness), false);
    let counted = log.reader().count(offset(0), witness.offset, Access::Blocking).unwrap();
    assert_eq!(counted.records, u64::MAX);
}

#[test]
fn an_end_that_the_files_do_not_reach_is_named() {
    let (directory, expected, _) = victim();
    let (mut log, _) = open(directory.path(), 1 << 20, None, false);
    append(&mut log, &values(1, 10, 7), 7);
    sync(&mut log);
    log.caches().write().unwrap();
    let end = log.durable_position();
    let producers = log.producers().clone();
    drop(log);
    // Index, snapshot and witness agree on an end that is not there.
    let claimed = end.offset.saturating_add(10);
    let (mut header, entries) = crate::inspect::index(directory.path(), end.segment).unwrap().unwrap();
    header.totals.next_offset = claimed;
    std::fs::write(
        files::offset_path(directory.path(), end.segment, "idx"),
        crate::index::encode(header, &entries),
    )
    .unwrap();
    std::fs::write(
        files::offset_path(directory.path(), claimed, "producers"),
        crate::snapshot::encode(claimed, &producers),
    )
    .unwrap();
    let witness = LogPosition { offset: claimed, ..end };
    let (log, report) = open(directory.path(), 1 << 20, Some(witness), true);
    assert!(report.from_caches);
    let (found, damage) = read_all(&log, 200);
    assert_eq!(found.len(), expected.len() + 1);
    assert_eq!(damage, [(end.offset, claimed)]);
}

#[test]
fn rot_while_the_log_is_open_is_named_when_it_is_read() {
    let (directory, _, witness) = victim();
    let (log, _) = open(directory.path(), 700, Some(witness), false);
    let path = files::offset_path(directory.path(), offset(0), "log");
    let mut content = std::fs::read(&path).unwrap();
    content[200] ^= 1;
    std::fs::write(&path, &content).unwrap();
    let (found, damage) = read_all(&log, 200);
    assert_eq!(damage.len(), 1);
    assert_eq!(found.len(), 24 - damage[0].1.since(damage[0].0) as usize);
}

/// A file that somebody cuts short under a running log: what is gone is named, not a failure of the disk, through a map
/// that is warm and without one.
#[test]
fn a_file_that_is_cut_under_an_open_log_is_named_when_it_is_read() {
    for warm in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::create(directory.path(), ID, config(60_000), Timestamp(0)).unwrap();
        for n in 0..24 {
            append(&mut log, &values(1, 9000, n), n as i64);
            sync(&mut log);
        }
        let end = log.durable_position();
        drop(log);
        let (log, _) = open(directory.path(), 60_000, Some(end), false);
        if warm {
            assert_eq!(read_all(&log, 1 << 20).0.len(), 24);
        }
        let bases = files::list_offsets(directory.path(), "log").unwrap();
        for (number, length) in [(0, 20_000), (1, 0), (2, 50)] {
            let path = files::offset_path(directory.path(), bases[number], "log");
            std::fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
        }
        let (found, damage) = read_all(&log, 1 << 20);
        let third = offset(3);
        let expected = [(offset(2), third), (third, bases[1]), (bases[1], bases[2]), (bases[2], bases[3])];
        assert_eq!(damage, expected, "warm: {warm}");
        let lost: u64 = damage.iter().map(|(from, until)| until.since(*from)).sum();
        assert_eq!(found.len() as u64, 24 - lost, "warm: {warm}");
        let reader = log.reader();
        for from in 0..24 {
            // Whatever they answer, they answer.
            reader.count(offset(from), end.offset, Access::Blocking).unwrap();
            match reader.find_time(Timestamp(from as i64), end.offset, Access::Blocking) {
                Ok(Some(_)) | Err(LogReadError::Damaged { .. }) => {}
                other => panic!("{other:?}"),
            }
            match reader.append_time_at(offset(from), end.offset, Access::Blocking) {
                Ok(Some(_)) | Err(LogReadError::Damaged { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Who goes on at damage again and again reads what lies around it, not all of the segment, and writes nothing.
#[test]
fn damage_that_is_met_again_costs_no_walk_and_no_index() {
    for active in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let size = if active { 8 << 20 } else { 2 << 20 };
        let mut log = Log::create(directory.path(), ID, config(size), Timestamp(0)).unwrap();
        for n in 0..3000 {
            append(&mut log, &values(1, 1000, n), n as i64);
            if n % 50 == 0 {
                sync(&mut log);
            }
        }
        sync(&mut log);
        let range = |from| ReadRange { from: offset(from), until: offset(1500), bytes: 1 };
        let reader = log.reader();
        // The header of the frame at offset 1000: a reader that stopped before it has a hint that points there.
        let path = files::offset_path(directory.path(), offset(0), "log");
        let content = std::fs::read(&path).unwrap();
        let wanted = values(1, 1000, 1000)[0].clone();
        let at = content.windows(20).position(|window| window == &wanted[..20]).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0; 60], at as u64 - 120).unwrap();
        log.reader().sweep_maps();
        log.reader().sweep_maps();
        let index = path.with_extension("idx");
        assert_eq!(index.exists(), !active);
        reader.read(range(999), Access::Blocking).unwrap();
        let damaged = |reader: &crate::LogReader| match reader.read(range(1000), Access::Blocking) {
            Err(LogReadError::Damaged { from, until, .. }) => {
                assert_eq!((from, until), (offset(1000), offset(1001)))
            }
            other => panic!("{other:?}"),
        };
        damaged(&reader);
        let written = std::fs::read(&index).ok();
        let inode = files::bad_sectors::inode(&index);
        for _ in 0..3 {
            reader.read(range(999), Access::Blocking).unwrap();
            let before = files::READ_HERE.get();
            damaged(&reader);
            let read = files::READ_HERE.get() - before;
            assert!(read < 200_000, "{read} bytes for damage that is known, active: {active}");
        }
        assert_eq!(std::fs::read(&index).ok(), written, "active: {active}");
        assert_eq!(files::bad_sectors::inode(&index), inode, "active: {active}");
        assert_eq!(index.exists(), !active, "nothing is written for a segment that grows");
    }
}

/// A file that goes under a running log is named as lost from where it is asked for, never as a failure; what other
/// segments hold is served.
#[test]
fn a_file_that_goes_under_an_open_log_is_named_when_it_is_read() {
    for warm in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::create(directory.path(), ID, config(60_000), Timestamp(0)).unwrap();
        for n in 0..24 {
            append(&mut log, &values(1, 9000, n), n as i64);
            sync(&mut log);
        }
        let end = log.durable_position();
        drop(log);
        let (mut log, _) = open(directory.path(), 60_000, Some(end), false);
        if warm {
            assert_eq!(read_all(&log, 1 << 20).0.len(), 24);
        }
        let bases = files::list_offsets(directory.path(), "log").unwrap();
        assert!(bases.len() > 3);
        std::fs::remove_file(files::offset_path(directory.path(), bases[1], "log")).unwrap();
        if warm {
            // Who has it mapped still reads it, unless the kernel wants the memory; and then nobody has.
            let (found, damage) = read_all(&log, 1 << 20);
            assert!(found.len() == 24 && damage.is_empty() || damage == [(bases[1], bases[2])], "{damage:?}");
            log.reader().sweep_maps();
            log.reader().sweep_maps();
        }
        let (found, damage) = read_all(&log, 1 << 20);
        assert_eq!(damage, [(bases[1], bases[2])], "warm: {warm}");
        assert_eq!(found.len() as u64, 24 - bases[2].since(bases[1]), "warm: {warm}");
        let reader = log.reader();
        for from in 0..24 {
            reader.count(offset(from), end.offset, Access::Blocking).unwrap();
            reader.max_time(end.offset, Access::Blocking).unwrap();
            for result in [
                reader.find_time(Timestamp(from as i64), end.offset, Access::Blocking).map(drop),
                reader.append_time_at(offset(from), end.offset, Access::Blocking).map(drop),
            ] {
                assert!(matches!(result, Ok(()) | Err(LogReadError::Damaged { .. })), "{result:?}");
            }
        }
        // What is deleted is out of range, and no damage.
        for freed in log.advance_start(bases[1].saturating_add(1)).unlink() {
            freed.unwrap();
        }
        let gone = reader.read(ReadRange { from: bases[1], until: end.offset, bytes: 1 }, Access::Blocking);
        assert!(matches!(gone, Err(LogReadError::OutOfRange { .. })), "{gone:?}");
        append(&mut log, &values(1, 1, 1), 99);
    }
}
