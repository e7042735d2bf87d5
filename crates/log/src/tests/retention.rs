//! A segment that is damaged is not judged by what is left of it: intact records in it, or behind it, stay.

use std::path::Path;

use super::*;
use crate::files::{self, bad_sectors};

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
const BEGIN: i64 = 1_700_000_000_000;

fn aged() -> LogConfig {
    LogConfig { retention_age: Some(Duration::from_millis((7 * DAY) as u64)), ..config(700) }
}

/// Sealed segments of one batch each, and an active one; a minute between batches.
fn written(home: &Path) -> (LogPosition, Vec<Offset>) {
    let mut log = Log::create(home, ID, config(700), Timestamp(BEGIN)).unwrap();
    for n in 0..4 {
        append(&mut log, &values(2, 300, n), BEGIN + n as i64 * 60_000);
        sync(&mut log);
    }
    let bases = files::list_offsets(home, "log").unwrap();
    assert_eq!(bases, [0, 2, 4, 6].map(offset), "one batch each");
    (log.durable_position(), bases)
}

fn planned(home: &Path, witness: LogPosition, now: i64) -> u32 {
    let options = OpenOptions { clean: false, witness: Some(witness), now: Timestamp(BEGIN + HOUR) };
    let (log, _) = Log::open(home, ID, aged(), options).unwrap();
    Log::plan_retention(&log.reader(), &aged(), Timestamp(now)).segments
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = std::fs::read(path).unwrap();
    change(&mut content);
    std::fs::write(path, content).unwrap();
}

#[test]
fn a_damaged_segment_goes_no_sooner_than_the_next_whole_one() {
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 8] = [
        ("nothing", |_| {}),
        ("a flipped bit of the header", |path| change(path, |bytes| bytes[20] ^= 1)),
        ("an empty file", |path| change(path, Vec::clear)),
        ("a header and nothing else", |path| change(path, |bytes| bytes.truncate(72))),
        ("half a frame", |path| change(path, |bytes| bytes.truncate(200))),
        ("a first sector that cannot be read", |path| bad_sectors::add(path, 0..4096)),
        ("no frame and no seal", |path| change(path, |bytes| bytes[72..].fill(0))),
        ("no file", |path| std::fs::remove_file(path).unwrap()),
    ];
    let hour_later = BEGIN + 3 * 60_000 + HOUR;
    for (what, damage) in damages {
        for number in [0, 1] {
            let home = tempfile::tempdir().unwrap();
            let (witness, bases) = written(home.path());
            damage(&files::offset_path(home.path(), bases[number], "log"));
            drop(std::fs::remove_file(files::offset_path(home.path(), bases[number], "idx")));
            let gone = planned(home.path(), witness, hour_later);
            assert_eq!(gone, 0, "{what} in segment {number}: an hour is no week");
            // Damage does not keep for ever what is older than the retention: it goes with what comes behind it.
            let gone = planned(home.path(), witness, BEGIN + 30 * DAY);
            assert!(gone > 0, "{what} in segment {number}: a month is more than a week");
        }
    }
}

/// What can be read of a segment may be its older part.
#[test]
fn a_partly_readable_segment_is_not_judged_by_its_readable_part() {
    let home = tempfile::tempdir().unwrap();
    let config = LogConfig { segment_age: Duration::from_secs(86_400 * 365), ..config(1800) };
    let mut log = Log::create(home.path(), ID, config, Timestamp(BEGIN)).unwrap();
    for (n, time) in
        [BEGIN, BEGIN + 20 * DAY, BEGIN, BEGIN + 20 * DAY, BEGIN + 20 * DAY].into_iter().enumerate()
    {
        append(&mut log, &values(2, 300, n as u64), time);
        sync(&mut log);
    }
    let bases = files::list_offsets(home.path(), "log").unwrap();
    assert_eq!(bases[1], offset(4), "two batches each");
    let witness = log.durable_position();
    drop(log);
    // The younger batch of the first one, in the middle or at the end, and the seal that tells of it.
    let path = files::offset_path(home.path(), bases[0], "log");
    let middle = std::fs::read(&path).unwrap().len() / 2;
    change(&path, |bytes| bytes[middle + 50..].fill(0));
    drop(std::fs::remove_file(files::offset_path(home.path(), bases[0], "idx")));
    assert_eq!(planned(home.path(), witness, BEGIN + 21 * DAY), 0);
    assert!(planned(home.path(), witness, BEGIN + 40 * DAY) > 0);
}
