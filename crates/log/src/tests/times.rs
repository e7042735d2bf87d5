//! Look-ups by time over damage: the record that a scan of the whole log would find, or the damage that may hold it.

use super::{damage::copy, *};
use crate::files;

/// Something that happens to a file.
type Change = Box<dyn Fn(&Path)>;

/// Records of the log: two in each batch.
const RECORDS: u64 = 40;

/// A log whose record times never go back, in several segments; its durable end. Batch `n` has the times 10n and 10n + 1.
fn written() -> (tempfile::TempDir, LogPosition) {
    let directory = tempfile::tempdir().unwrap();
    let mut log = Log::create(directory.path(), ID, config(900), Timestamp(0)).unwrap();
    for n in 0..RECORDS / 2 {
        append(&mut log, &values(2, 40, n), 10 * n as i64);
        sync(&mut log);
    }
    assert!(log.size().0 > 4);
    (directory, log.durable_position())
}

/// The time of a record.
fn time(offset: u64) -> i64 {
    10 * (offset / 2) as i64 + (offset % 2) as i64
}

/// The first record at or after a time from an offset on, before anything was damaged.
fn expected(at: i64, start: Offset) -> Option<(u64, i64)> {
    (start.get()..RECORDS).map(|offset| (offset, time(offset))).find(|(_, time)| *time >= at)
}

/// Every look-up is right, or names a range that readers hear of too and behind which the first record comes. How many
/// named one.
fn judge(log: &Log, what: &str) -> usize {
    let (records, damage) = read_all(log, 1 << 20);
    let there: Vec<u64> = records.iter().map(|(at, _)| at.get()).filter(|at| *at < RECORDS).collect();
    let (reader, end) = (log.reader(), offset(RECORDS));
    let mut named = 0;
    for at in (0..RECORDS).map(time).flat_map(|time| [time, time + 1]).chain([-1]) {
        let expected = expected(at, reader.start());
        let found = match reader.find_time(Timestamp(at), end, Access::Resident) {
            Err(LogReadError::NotResident) => reader.find_time(Timestamp(at), end, Access::Blocking),
            found => found,
        };
        match found {
            Ok(found) => {
                let found = found.map(|found| (found.offset.get(), found.time.0));
                assert_eq!(found, expected, "{what}: at {at}, {damage:?} are damaged");
            }
            Err(LogReadError::Damaged { from, until, .. }) => {
                named += 1;
                assert!(damage.contains(&(from, until)), "{what}: {from}..{until} is named, not {damage:?}");
                let behind = there.iter().copied().find(|at| *at >= until.get());
                assert!(
                    behind.is_none_or(|behind| time(behind) >= at),
                    "{what}: at {at}, {from}..{until} is followed by earlier records"
                );
            }
            Err(error) => panic!("{what}: at {at}: {error}"),
        }
    }
    named
}

/// Before and after two starts with an append in between; with the indexes and without.
fn judge_starts(home: &Path, end: LogPosition, what: &str) -> usize {
    let mut named = 0;
    for start in 0..3 {
        if start == 2 {
            for base in files::list_offsets(home, "idx").unwrap() {
                std::fs::remove_file(files::offset_path(home, base, "idx")).unwrap();
            }
        }
        let (mut log, _) = open(home, 900, Some(end), false);
        named += judge(&log, &format!("{what}, start {start}"));
        append(&mut log, &values(1, 10, 1000 + start), 100_000);
        sync(&mut log);
        named += judge(&log, &format!("{what}, start {start}, appended"));
    }
    named
}

#[test]
fn a_flipped_byte_is_never_stepped_over_by_time() {
    let (original, end) = written();
    assert_eq!(judge(&open(original.path(), 900, Some(end), false).0, "nothing is damaged"), 0);
    let mut named = 0;
    for base in files::list_offsets(original.path(), "log").unwrap() {
        let length = std::fs::metadata(files::offset_path(original.path(), base, "log")).unwrap().len();
        for at in (0..length).step_by(53) {
            let victim = copy(original.path());
            let path = files::offset_path(victim.path(), base, "log");
            let mut content = std::fs::read(&path).unwrap();
            content[at as usize] ^= 1 << (at % 8);
            std::fs::write(&path, &content).unwrap();
            named += judge_starts(victim.path(), end, &format!("segment {base}, byte {at}"));
        }
    }
    assert!(named > 300, "only {named} look-ups named damage");
}

#[test]
fn missing_cut_and_zeroed_files_are_never_stepped_over_by_time() {
    let (original, end) = written();
    let bases = files::list_offsets(original.path(), "log").unwrap();
    for (number, base) in bases.iter().enumerate() {
        let length = std::fs::metadata(files::offset_path(original.path(), *base, "log")).unwrap().len();
        let zero = |from: u64, until: u64| {
            move |path: &Path| {
                let mut content = std::fs::read(path).unwrap();
                content[from as usize..until as usize].fill(0);
                std::fs::write(path, content).unwrap();
            }
        };
        let cut = |length: u64| {
            move |path: &Path| {
                std::fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap()
            }
        };
        let changes: Vec<(&str, Change)> = vec![
            ("removed", Box::new(|path: &Path| std::fs::remove_file(path).unwrap())),
            ("zeroed", Box::new(zero(0, length))),
            ("zeroed in the middle", Box::new(zero(length / 3, 2 * length / 3))),
            ("zeroed in the end", Box::new(zero(length / 2, length))),
            ("cut", Box::new(cut(length / 2))),
            ("cut in the header", Box::new(cut(20))),
            ("emptied", Box::new(cut(0))),
        ];
        for (what, change) in changes {
            let what = format!("segment {base} {what}");
            let victim = copy(original.path());
            change(&files::offset_path(victim.path(), *base, "log"));
            assert!(judge_starts(victim.path(), end, &what) > 0, "{what}");
            // And under a log that is open.
            let victim = copy(original.path());
            let (log, _) = open(victim.path(), 900, Some(end), false);
            change(&files::offset_path(victim.path(), *base, "log"));
            log.reader().sweep_maps();
            log.reader().sweep_maps();
            judge(&log, &format!("{what}, under an open log"));
        }
        // What lies below the log start is nobody's loss.
        let victim = copy(original.path());
        let (mut log, _) = open(victim.path(), 900, Some(end), false);
        zero(0, length)(&files::offset_path(victim.path(), *base, "log"));
        if let Some(next) = bases.get(number + 1) {
            for freed in log.advance_start(*next).unlink() {
                freed.unwrap();
            }
            assert_eq!(judge(&log, &format!("log start behind segment {base}")), 0);
        }
    }
}

/// With create times that go back, a record of an earlier time behind the damage speaks for it.
#[test]
fn where_times_go_back_damage_counts_by_its_neighbours() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = Log::create(directory.path(), ID, config(1 << 20), Timestamp(0)).unwrap();
    let times = [50, 90, 10, 20, 95, 30, 99];
    for (n, time) in times.into_iter().enumerate() {
        append(&mut log, &values(1, 600, n as u64), time);
        sync(&mut log);
    }
    let end = log.durable_position();
    drop(log);
    let path = files::offset_path(directory.path(), offset(0), "log");
    let mut content = std::fs::read(&path).unwrap();
    for number in [1, 4] {
        let wanted = values(1, 600, number)[0].clone();
        let at = content.windows(20).position(|window| window == &wanted[..20]).unwrap();
        content[at - 100..at + 100].fill(0);
    }
    std::fs::write(&path, &content).unwrap();
    let (log, _) = open(directory.path(), 1 << 20, Some(end), false);
    let find = |at| match log.reader().find_time(Timestamp(at), end.offset, Access::Blocking) {
        Ok(found) => Ok(found.map(|found| found.offset.get())),
        Err(LogReadError::Damaged { from, until, .. }) => Err((from.get(), until.get())),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(find(50), Ok(Some(0)));
    assert_eq!(find(51), Ok(Some(6)), "5 has an earlier time, and speaks for 4");
    assert_eq!(find(100), Ok(None));
    assert_eq!(find(i64::MIN), Ok(Some(0)));
    // The last one that is there goes too: nothing speaks for it.
    let wanted = values(1, 600, 6)[0].clone();
    let at = content.windows(20).position(|window| window == &wanted[..20]).unwrap();
    content[at + 50] ^= 1;
    std::fs::write(&path, &content).unwrap();
    assert_eq!(find(51), Err((6, 7)));
}
