//! Damage is found where it is, and nowhere else; what is given up is a gap for ever, and nothing else changes.

use std::{collections::BTreeSet, path::Path};

use rimstone_types::{Offset, Timestamp};

use super::*;
use crate::{
    Log, LogPosition, OpenOptions, files,
    tests::{ID, Records, append, config, offset, open, read_all, sync, values},
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);

/// A log of several small segments, durable to its end.
fn written(home: &Path) -> (Records, LogPosition) {
    let mut log = Log::create(home, ID, config(700), Timestamp(0)).unwrap();
    for n in 0..12 {
        append(&mut log, &values(2, 40, n), n as i64);
        sync(&mut log);
    }
    assert!(log.size().0 > 3);
    (read_all(&log, 1 << 20).0, log.durable_position())
}

fn opened(home: &Path, witness: LogPosition) -> Log {
    let options = OpenOptions { clean: false, witness: Some(witness), now: Timestamp(1) };
    Log::open(home, ID, config(700), options).unwrap().0
}

fn segments(home: &Path) -> Vec<Offset> {
    files::list_offsets(home, "log").unwrap()
}

fn segment(home: &Path, base: Offset) -> std::path::PathBuf {
    files::offset_path(home, base, "log")
}

fn flip(path: &Path, at: u64) {
    let mut content = std::fs::read(path).unwrap();
    content[at as usize] ^= 1 << (at % 8);
    std::fs::write(path, &content).unwrap();
}

/// Runs a pass to its end, in pieces.
fn run(mut pass: Scrub) -> (Vec<DamagedRange>, u64) {
    let (mut damage, mut bytes) = (Vec::new(), 0);
    loop {
        let step = pass.advance(100).unwrap();
        bytes += step.read;
        damage.extend(step.checked.into_iter().flat_map(|checked| checked.damage));
        if step.done {
            return (damage, bytes);
        }
    }
}

fn ranges(damage: &[DamagedRange]) -> Vec<(Offset, Offset)> {
    damage.iter().map(|range| (range.from, range.until)).collect()
}

/// Side by side is one.
fn joined(mut ranges: Vec<(Offset, Offset)>) -> Vec<(Offset, Offset)> {
    ranges.dedup_by(|later, earlier| {
        let touches = later.0 == earlier.1;
        if touches {
            earlier.1 = later.1;
        }
        touches
    });
    ranges
}

fn accept(log: &mut Log, home: &Path, ranges: &[(Offset, Offset)]) -> Result<Vec<AcceptedLoss>, AcceptError> {
    log.roll_for_loss(ranges, NOW);
    log.stage_snapshot(true);
    sync(log);
    let plan = log.reader().plan_loss(ranges)?;
    let mut accepted = Vec::new();
    for prepared in log.loss_writer()(plan, NOW) {
        let prepared = prepared?;
        let snapshot = log.may_replace(prepared.replacement()).unwrap();
        let (replaced, losses) = prepared.install(home, snapshot)?;
        log.replaced(&replaced);
        replaced.clean_up();
        accepted.extend(losses);
    }
    accepted.sort_by_key(|loss| loss.from);
    Ok(accepted)
}

#[test]
fn a_pass_over_what_is_whole_finds_nothing_and_goes_over_every_byte() {
    let home = tempfile::tempdir().unwrap();
    let (_, end) = written(home.path());
    let log = opened(home.path(), end);
    let (damage, bytes) = run(Scrub::whole(log.reader()));
    assert_eq!(damage, []);
    let sealed: u64 = segments(home.path())
        .iter()
        .rev()
        .skip(1)
        .map(|base| {
            segment(home.path(), *base).metadata().unwrap().len() - crate::frame::SEGMENT_HEADER_LENGTH as u64
        })
        .sum();
    assert_eq!(bytes, sealed, "every byte behind the headers, of what is sealed");
    let (damage, bytes) = run(Scrub::of(log.reader(), BTreeSet::from([offset(1), offset(23)])));
    assert!(damage.is_empty() && bytes > 0, "also the segment that is written to");
}

/// The scrub and the readers agree on every flipped byte; once it is given up, nothing is damaged any more, now and
/// after restarts, and what was sound is as it was.
#[test]
fn every_flipped_byte_is_found_and_can_be_given_up() {
    let original = tempfile::tempdir().unwrap();
    let (expected, end) = written(original.path());
    let mut losses = 0;
    for base in segments(original.path()) {
        let length = segment(original.path(), base).metadata().unwrap().len();
        for at in (0..length).step_by(29) {
            let what = format!("segment {base}, byte {at}");
            let home = copied(original.path());
            flip(&segment(home.path(), base), at);
            let mut log = opened(home.path(), end);
            let (sound, met) = read_all(&log, 1 << 20);
            let met = joined(met);
            let sealed = segments(home.path()).last() != Some(&base);
            let found = if sealed {
                run(Scrub::whole(log.reader())).0
            } else {
                run(Scrub::of(log.reader(), BTreeSet::from([base]))).0
            };
            assert_eq!(ranges(&found), met, "{what}");
            if met.is_empty() {
                continue;
            }
            losses += 1;
            let kept = std::fs::read(segment(home.path(), base)).unwrap();
            let accepted =
                accept(&mut log, home.path(), &met).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(
                accepted.iter().map(|loss| (loss.from, loss.until)).collect::<Vec<_>>(),
                met,
                "{what}"
            );
            let aside = std::fs::read(&accepted[0].kept).unwrap();
            assert!(aside.starts_with(&kept), "{what}: the damaged bytes are kept");
            judge(&log, &sound, &what);
            let next = append(&mut log, &values(1, 10, 99), 100);
            assert!(next >= end.offset, "{what}: an offset was used again");
            sync(&mut log);
            let (sound, end) = (read_all(&log, 1 << 20).0, log.durable_position());
            drop(log);
            for _ in 0..2 {
                let log = opened(home.path(), end);
                judge(&log, &sound, &what);
                assert_eq!(run(Scrub::whole(log.reader())).0, [], "{what}");
                assert_eq!(accepted_losses(home.path()).unwrap(), accepted, "{what}");
            }
        }
    }
    println!("{losses} losses of {} records", expected.len());
    assert!(losses > 30);
}

/// Nothing is damaged; these records are there, and are counted.
fn judge(log: &Log, sound: &Records, what: &str) {
    let (records, damage) = read_all(log, 200);
    assert_eq!(damage, [], "{what}");
    assert_eq!(&records, sound, "{what}");
    let ends = log.reader().ends();
    for from in 0..ends.durable.get() {
        let counted =
            log.reader().count(offset(from), ends.durable, crate::Access::Blocking).unwrap().records;
        let there = sound.iter().filter(|(at, _)| at.get() >= from).count() as u64;
        assert_eq!(counted, there, "{what}: from {from}");
        let time = log.reader().append_time_at(offset(from), ends.durable, crate::Access::Blocking).unwrap();
        assert_eq!(time.is_some(), there > 0, "{what}: from {from}");
    }
    // What is given up is in the way of no look-up by time.
    for wanted in 0..15 {
        let time = |at: &Offset| if at.get() < 24 { (at.get() / 2 + at.get() % 2) as i64 } else { 100 };
        let first = sound.iter().map(|(at, _)| *at).find(|at| time(at) >= wanted);
        let found = log.reader().find_time(Timestamp(wanted), ends.durable, crate::Access::Blocking).unwrap();
        assert_eq!(found.map(|found| found.offset), first, "{what}: at {wanted}");
    }
}

fn copied(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
    }
    to
}

/// A segment that is removed, cut short or emptied, one after the other, at a start and under a running log.
#[test]
fn missing_and_short_files_are_found_and_can_be_given_up() {
    let original = tempfile::tempdir().unwrap();
    let (expected, end) = written(original.path());
    let all = segments(original.path());
    for running in [false, true] {
        for (number, base) in all.iter().enumerate() {
            for cut in [None, Some(0), Some(50), Some(72), Some(200)] {
                let what = format!("segment {base} cut to {cut:?}, while the log is open: {running}");
                let home = copied(original.path());
                let before = running.then(|| opened(home.path(), end));
                let path = segment(home.path(), *base);
                match cut {
                    None => std::fs::remove_file(&path).unwrap(),
                    Some(length) => {
                        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap()
                    }
                }
                let mut log = before.unwrap_or_else(|| opened(home.path(), end));
                let found: Vec<_> =
                    (0..=24).filter_map(|at| log.reader().check_segment(offset(at)).unwrap()).collect();
                let mut met = log.reader().evident_damage();
                met.extend(found.into_iter().flat_map(|checked| checked.damage));
                met.sort_by_key(|range| (range.from, range.until));
                met.dedup_by_key(|range| (range.from, range.until));
                assert!(!met.is_empty(), "{what}");
                if running && cut.is_none() && number + 1 == all.len() {
                    // Nothing can be written to it any more: only a start gets the log behind it.
                    continue;
                }
                if number == 0 && cut.is_none() && !running {
                    let refused = accept(&mut log, home.path(), &ranges(&met)).unwrap_err();
                    assert!(
                        matches!(refused, AcceptError::BeforeFirst { first } if first == all[1]),
                        "{refused}"
                    );
                    continue;
                }
                let accepted = accept(&mut log, home.path(), &ranges(&met));
                accepted.unwrap_or_else(|error| panic!("{what}: {error}: {met:?}"));
                let sound: Records = expected
                    .iter()
                    .filter(|(at, _)| !met.iter().any(|range| range.from <= *at && *at < range.until))
                    .cloned()
                    .collect();
                judge(&log, &sound, &what);
                let end = log.durable_position();
                drop(log);
                judge(&opened(home.path(), end), &sound, &what);
            }
        }
    }
}

#[test]
fn only_what_is_damaged_and_named_as_it_is_can_be_given_up() {
    let home = tempfile::tempdir().unwrap();
    let (_, end) = written(home.path());
    let second = segments(home.path())[1];
    let middle = segment(home.path(), second).metadata().unwrap().len() / 2;
    flip(&segment(home.path(), second), middle);
    let mut log = opened(home.path(), end);
    let (sound, met) = read_all(&log, 1 << 20);
    let (from, until) = met[0];
    let one = |at: Offset, by: i64| offset((at.get() as i64 + by) as u64);
    for wrong in [
        vec![],
        vec![(from, one(until, 1))],
        vec![(from, one(until, -1))],
        vec![(one(from, -1), until)],
        vec![(one(from, 1), until)],
        vec![(offset(0), offset(2))],
        vec![(from, until), (offset(0), offset(2))],
        vec![(from, until), (from, until)],
    ] {
        let before = segments(home.path());
        let refused = accept(&mut log, home.path(), &wrong).unwrap_err();
        let AcceptError::Differs { found } = &refused else { panic!("{refused}") };
        let looked_at = wrong.iter().any(|(from, _)| *from >= second && *from < until);
        assert_eq!(!found.first.is_empty(), looked_at, "{wrong:?}: {refused}");
        assert_eq!(segments(home.path()), before);
        assert_eq!(read_all(&log, 1 << 20), (sound.clone(), met.clone()));
    }
    assert!(accepted_losses(home.path()).unwrap().is_empty());
    accept(&mut log, home.path(), &met).unwrap();
    let again = accept(&mut log, home.path(), &met).unwrap_err();
    assert!(matches!(again, AcceptError::Differs { ref found } if found.ranges == 0), "{again}");
}

/// The decision was cut short between the second name and the new file: the damage stands, and can be given up again.
#[test]
fn a_crash_in_between_leaves_the_damage_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let (_, end) = written(home.path());
    let base = segments(home.path())[0];
    flip(&segment(home.path(), base), 200);
    let mut log = opened(home.path(), end);
    let (sound, met) = read_all(&log, 1 << 20);
    let kept = files::lost_path(home.path(), met[0].0, met[0].1, met[0].1.since(met[0].0));
    files::keep_as(&segment(home.path(), base), &kept).unwrap();
    std::fs::write(segment(home.path(), base).with_extension("log.tmp"), b"half of it").unwrap();
    log.roll_for_loss(&met, NOW);
    sync(&mut log);
    let end = log.durable_position();
    drop(log);
    let mut log = opened(home.path(), end);
    assert_eq!(read_all(&log, 1 << 20), (sound.clone(), met.clone()));
    accept(&mut log, home.path(), &met).unwrap();
    judge(&log, &sound, "after the second try");

    // What is given up twice keeps the bytes of both.
    let length = segment(home.path(), base).metadata().unwrap().len();
    let marker = (0..length).find(|at| {
        let bytes = std::fs::read(segment(home.path(), base)).unwrap();
        Frame::decode(&bytes[*at as usize..], crate::frame::SegmentHeader::decode(&bytes).unwrap().salt, *at)
            .is_ok_and(|frame| matches!(frame.content, Content::Batch(header) if header.is_lost()))
    });
    let first = std::fs::read(&kept).unwrap();
    flip(&segment(home.path(), base), marker.unwrap() + 70);
    assert_eq!(joined(read_all(&log, 1 << 20).1), met);
    accept(&mut log, home.path(), &met).unwrap();
    assert_eq!(std::fs::read(kept.with_extension("lost.1")).unwrap(), first);
    assert_ne!(std::fs::read(&kept).unwrap(), first);
    judge(&log, &sound, "after the second loss");
}

/// Compaction goes over a marker as over any batch, and keeps it.
#[test]
fn compaction_takes_a_segment_that_was_written_around_a_loss() {
    use crate::compaction::{CompactionSettings, CompactionStep};
    let settings = CompactionSettings {
        dirty_ratio: 0.0,
        min_lag: std::time::Duration::ZERO,
        max_lag: None,
        delete_retention: std::time::Duration::ZERO,
        map_bytes: 1 << 20,
    };
    let home = tempfile::tempdir().unwrap();
    let (expected, end) = written(home.path());
    let damaged = segments(home.path())[1];
    let middle = segment(home.path(), damaged).metadata().unwrap().len() - 150;
    flip(&segment(home.path(), damaged), middle);
    let mut log = opened(home.path(), end);
    let met = joined(read_all(&log, 1 << 20).1);
    accept(&mut log, home.path(), &met).unwrap();
    log.stage_snapshot(true);
    sync(&mut log);
    let until = log.durable_position().segment;
    let found = Log::compactable(&log.reader(), until, &Default::default(), &settings, NOW);
    assert_eq!(found.obstacles(), [], "it is no obstacle");
    let mut pass = log.begin_compaction(found, &settings, NOW);
    loop {
        match pass.advance(1 << 20).unwrap() {
            CompactionStep::Done => break,
            CompactionStep::More | CompactionStep::Room(_) => {}
            CompactionStep::Replace(replacement) => {
                let snapshot = log.may_replace(&replacement).unwrap();
                let replaced = replacement.install(snapshot).unwrap();
                log.replaced(&replaced);
                replaced.clean_up();
            }
        }
    }
    assert!(pass.progress().records_removed > 0);
    let (records, damage) = read_all(&log, 1 << 20);
    assert_eq!(damage, []);
    assert_eq!(records.last(), expected.last());
    let end = log.durable_position();
    let (log, report) = open(home.path(), 700, Some(end), false);
    assert_eq!((report.damaged_ranges, read_all(&log, 1 << 20).0), (0, records));
    let kept = segments(home.path()).into_iter().flat_map(|base| {
        let mut lost = Vec::new();
        let view = crate::inspect::SegmentView::open(home.path(), base).unwrap();
        view.each(|item| match item {
            crate::inspect::Item::Batch { header, .. } if header.is_lost() => {
                lost.push((header.base_offset, header.next_offset()));
            }
            crate::inspect::Item::Seal { agrees, .. } => assert!(agrees),
            crate::inspect::Item::Invalid { reason, .. } => panic!("{reason}"),
            crate::inspect::Item::Batch { .. } => {}
        })
        .unwrap();
        lost
    });
    assert_eq!(kept.collect::<Vec<_>>(), met, "the gap is there to see");
}

/// A bad sector, as a device names it to direct reads: found, measured, given up.
#[test]
fn a_sector_that_cannot_be_read_is_found_and_can_be_given_up() {
    let home = tempfile::tempdir().unwrap();
    let mut log = Log::create(home.path(), ID, config(50_000), Timestamp(0)).unwrap();
    for n in 0..5 {
        append(&mut log, &values(1, 20_000, n), 1);
        sync(&mut log);
    }
    let end = log.durable_position();
    drop(log);
    let mut log = opened(home.path(), end);
    files::bad_sectors::add_with(&segment(home.path(), offset(0)), 24_576..24_577, rustix::io::Errno::NODATA);
    let (found, _) = run(Scrub::whole(log.reader()));
    assert_eq!(ranges(&found), [(offset(1), offset(2))]);
    assert_eq!(log.reader().check_segment(offset(1)).unwrap().unwrap().damage, found);
    accept(&mut log, home.path(), &ranges(&found)).unwrap();
    assert!(
        std::fs::read_dir(home.path())
            .unwrap()
            .any(|entry| { entry.unwrap().path().extension().is_some_and(|suffix| suffix == "lost") })
    );
}

/// Also where there was no file to keep at hand.
#[test]
fn a_segment_that_was_given_up_is_not_checked_in_its_successors_file() {
    for missing in [false, true] {
        let home = tempfile::tempdir().unwrap();
        let (_, end) = written(home.path());
        let mut log = opened(home.path(), end);
        let base = segments(home.path())[1];
        match missing {
            true => std::fs::remove_file(segment(home.path(), base)).unwrap(),
            false => flip(&segment(home.path(), base), 300),
        }
        let (old, until, sealed) = log.reader().extent(base).unwrap();
        let found = run(Scrub::whole(log.reader())).0;
        assert!(!found.is_empty());
        accept(&mut log, home.path(), &ranges(&found)).unwrap();
        assert!(SegmentCheck::begin(&old, until, sealed).unwrap().is_none(), "missing: {missing}");
        assert_eq!(log.reader().check_segment(base).unwrap().unwrap().damage, []);
        assert_eq!(run(Scrub::whole(log.reader())).0, []);
    }
}

/// A segment with more damaged ranges than anybody names one by one: one name covers them, and what is sound between them
/// stays.
#[test]
fn many_ranges_of_a_segment_are_given_up_by_one_name() {
    const RECORDS: u64 = 3000;
    let home = tempfile::tempdir().unwrap();
    let mut log = Log::create(home.path(), ID, config(1 << 20), Timestamp(0)).unwrap();
    for n in 0..RECORDS {
        append(&mut log, &values(1, 20, n), n as i64);
    }
    sync(&mut log);
    let end = log.durable_position();
    drop(log);
    // Every other batch from the third on.
    let path = segment(home.path(), offset(0));
    let mut content = std::fs::read(&path).unwrap();
    for n in (3..RECORDS - 1).step_by(2) {
        let wanted = values(1, 20, n)[0].clone();
        let at = content.windows(wanted.len()).position(|window| window == &wanted[..]).unwrap();
        content[at + 6] ^= 1;
    }
    std::fs::write(&path, &content).unwrap();
    let mut log = opened(home.path(), end);
    let (sound, met) = read_all(&log, 1 << 20);
    let lost = met.len() as u64;
    assert!(lost > 1_400 && met.iter().all(|(from, until)| until.since(*from) == 1));
    let (first, last) = (met[0].0, met[met.len() - 1].1);
    let before = segments(home.path());
    let one = |at: Offset, by: i64| offset((at.get() as i64 + by) as u64);
    for wrong in [
        vec![(first, one(last, 1))],
        vec![(one(first, -1), last)],
        vec![(one(first, 1), last)],
        vec![(first, one(last, -1))],
        vec![(first, last), (first, one(first, 1))],
        vec![(first, one(first, 1)), (first, last)],
        met[1..].to_vec(),
    ] {
        let refused = log.reader().check_loss(&wrong).unwrap_err();
        let told = refused.to_string();
        assert!(matches!(&refused, AcceptError::Differs { found } if found.ranges == lost), "{told}");
        assert!(told.len() < 4_000 && told.contains(&format!("; and {} more", lost - 8)), "{told}");
        assert!(matches!(log.reader().plan_loss(&wrong), Err(AcceptError::Overtaken)), "it is not sealed");
    }
    assert_eq!(segments(home.path()), before);
    log.reader().check_loss(&[(first, last)]).unwrap();
    let accepted = accept(&mut log, home.path(), &[(first, last)]).unwrap();
    assert_eq!(accepted.len(), 1);
    assert_eq!((accepted[0].from, accepted[0].until, accepted[0].offsets), (first, last, lost));
    assert_eq!(std::fs::read(&accepted[0].kept).unwrap()[..content.len()], content);
    for _ in 0..2 {
        assert_eq!(read_all(&log, 1 << 20), (sound.clone(), Vec::new()));
        assert_eq!(accepted_losses(home.path()).unwrap(), accepted);
        let count = log.reader().count(offset(0), end.offset, crate::Access::Blocking).unwrap();
        assert_eq!(count.records, RECORDS - lost);
        log = opened(home.path(), log.durable_position());
    }
}
