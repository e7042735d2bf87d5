//! Random records, passes, trims, restarts and crashes against a plain list.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rimstone_types::Numbering;

use super::{pass::*, *};
use crate::{
    Access, Log, LogPosition, Offered, OpenOptions, files,
    tests::{ID, config, sync},
};

/// A record to come: which key (0: none), and whether it is a tombstone.
type Planned = (u8, bool);

#[derive(Debug, Clone)]
enum Operation {
    Put {
        records: Vec<Planned>,
        producer: u8,
    },
    Sync,
    Roll,
    /// A pass in slices of so many bytes; given up after some of them, perhaps.
    Compact {
        budget: u64,
        slices: Option<usize>,
        small_map: bool,
    },
    /// A pass, with a start from a copy of the directory after each of its steps.
    CrashThroughout {
        budget: u64,
        witness: u8,
    },
    /// Time goes by: tombstones expire.
    Wait,
    Trim {
        share: u8,
    },
    CleanReopen,
    /// What lies beyond the durable end is cut at a share of its length.
    Crash {
        kept: u8,
        witness: u8,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    let records = prop::collection::vec((0..6u8, prop::bool::weighted(0.2)), 1..5);
    prop_oneof![
        12 => (records, 0..4u8).prop_map(|(records, producer)| Operation::Put { records, producer }),
        3 => Just(Operation::Sync),
        3 => Just(Operation::Roll),
        3 => (1..2000u64, prop::option::of(0..6usize), any::<bool>())
            .prop_map(|(budget, slices, small_map)| Operation::Compact { budget, slices, small_map }),
        2 => (100..1000u64, 0..3u8)
            .prop_map(|(budget, witness)| Operation::CrashThroughout { budget, witness }),
        1 => Just(Operation::Wait),
        1 => any::<u8>().prop_map(|share| Operation::Trim { share }),
        1 => Just(Operation::CleanReopen),
        2 => (any::<u8>(), 0..3u8).prop_map(|(kept, witness)| Operation::Crash { kept, witness }),
    ]
}

/// A batch that was sent, to be sent again.
#[derive(Debug, Clone)]
struct Sent {
    number: u32,
    base: Offset,
    records: Vec<(String, Option<String>)>,
}

struct World {
    directory: tempfile::TempDir,
    segment_bytes: u64,
    log: Option<Log>,
    /// Everything that was ever taken, by offset.
    all: Vec<Seen>,
    start: Offset,
    /// Records from here on were never looked at by a pass.
    untouched: Offset,
    producers: BTreeMap<u64, Vec<Sent>>,
    now: i64,
    /// The last durable ends, newest first: what a witness may say.
    ends: Vec<LogPosition>,
    serial: u32,
}

fn numbering(producer: u64) -> Numbering {
    if producer == 2 { Numbering::ByRequest } else { Numbering::Dense }
}

fn text(records: &[(String, Option<String>)]) -> Vec<(&str, Option<&str>)> {
    records.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect()
}

impl World {
    fn new(segment_bytes: u64) -> Self {
        let (directory, log) = new_log(segment_bytes);
        let ends = vec![log.durable_position()];
        Self {
            directory,
            segment_bytes,
            log: Some(log),
            all: Vec::new(),
            start: Offset::ZERO,
            untouched: Offset::ZERO,
            producers: BTreeMap::new(),
            now: 1000,
            ends,
            serial: 0,
        }
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().unwrap()
    }

    fn sync(&mut self) {
        sync(self.log());
        self.note_end();
    }

    fn note_end(&mut self) {
        let end = self.log().durable_position();
        self.ends.insert(0, end);
        self.ends.truncate(2);
    }

    fn witness(&self, which: u8) -> Option<LogPosition> {
        self.ends.get(usize::from(which)).copied()
    }

    fn settings(small_map: bool) -> CompactionSettings {
        let map_bytes = if small_map { 1 } else { 1 << 20 };
        CompactionSettings { dirty_ratio: 0.0, map_bytes, ..settings() }
    }

    fn put(&mut self, planned: &[Planned], producer: u8) {
        self.serial += 1;
        let serial = self.serial;
        let records: Vec<_> = planned
            .iter()
            .enumerate()
            .map(|(n, (key, tombstone))| {
                let key = if *key == 0 { String::new() } else { format!("key {key}") };
                (key, (!tombstone).then(|| format!("value {serial}.{n}")))
            })
            .collect();
        let producer = u64::from(producer);
        let now = self.now;
        let stamp = (producer > 0).then(|| {
            let last = self.producers.get(&producer).and_then(|sent| sent.last());
            let next = match (last, numbering(producer)) {
                (None, _) => 0,
                (Some(sent), Numbering::Dense) => sent.number + sent.records.len() as u32,
                (Some(sent), Numbering::ByRequest) => sent.number + 2,
            };
            stamp(producer, next, numbering(producer)).unwrap()
        });
        let Ok(Offered::Staged { base, append_time, .. }) = send(self.log(), stamp, &text(&records), now)
        else {
            panic!("refused");
        };
        assert_eq!(base, offset(self.all.len() as u64));
        for (n, (key, value)) in records.iter().enumerate() {
            self.all.push(Seen {
                record: rimstone_record::Record {
                    offset: base.saturating_add(n as u64),
                    timestamp: Timestamp(now),
                    key: (!key.is_empty()).then(|| key.clone().into()),
                    value: value.clone().map(Into::into),
                    headers: Vec::new(),
                },
                append_time,
            });
        }
        if let Some(stamp) = stamp {
            self.producers.entry(producer).or_default().push(Sent { number: stamp.base, base, records });
        }
    }

    fn apply(&mut self, operation: &Operation) {
        self.now += 10;
        match operation {
            Operation::Put { records, producer } => self.put(records, *producer),
            Operation::Sync => self.sync(),
            Operation::Roll => {
                let now = self.now;
                roll(self.log(), now);
                self.note_end();
            }
            Operation::Compact { budget, slices, small_map } => self.compact(*budget, *slices, *small_map),
            Operation::CrashThroughout { budget, witness } => self.crash_throughout(*budget, *witness),
            Operation::Wait => self.now += 200_000,
            Operation::Trim { share } => self.trim(*share),
            Operation::CleanReopen => {
                self.sync();
                self.log().caches().write().unwrap();
                self.log = None;
                self.log = Some(self.open(self.directory.path(), Some(self.ends[0]), true));
            }
            Operation::Crash { kept, witness } => self.crash(*kept, *witness),
        }
        self.check(self.log.as_ref().unwrap());
    }

    fn open(&self, directory: &std::path::Path, witness: Option<LogPosition>, clean: bool) -> Log {
        let options = OpenOptions { clean, witness, now: Timestamp(1) };
        Log::open(directory, ID, config(self.segment_bytes), options).unwrap().0
    }

    fn compact(&mut self, budget: u64, slices: Option<usize>, small_map: bool) {
        self.sync();
        let now = self.now;
        let until = self.log().durable_position().segment;
        let mut left = slices;
        let mut go_on = |_: &Log, step: &str| match &mut left {
            Some(0) => step != "slice",
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        };
        let settings = Self::settings(small_map);
        let done = compact(self.log(), &settings, now, budget, &mut go_on).unwrap();
        if done.is_some() && !small_map {
            self.check_complete(until);
        }
        let left_over = std::fs::read_dir(self.directory.path())
            .unwrap()
            .any(|entry| entry.unwrap().path().extension().is_some_and(|suffix| suffix == "tmp"));
        assert!(!left_over, "a pass leaves nothing behind, given up or not");
        self.untouched = self.untouched.max(until);
        self.note_end();
    }

    /// After a whole pass: below `until` only the last record of each key is left, and no older one is missing.
    fn check_complete(&self, until: Offset) {
        let below = |seen: &&Seen| seen.record.offset < until;
        let found = records(self.log.as_ref().unwrap(), 1 << 20);
        let kept: Vec<_> = found.iter().filter(below).map(|seen| seen.record.offset).collect();
        let all: Vec<_> = self.all[self.start.get() as usize..].iter().filter(below).collect();
        for seen in &all {
            let key = &seen.record.key;
            let newer = all.iter().any(|other| {
                key.is_some() && other.record.key == *key && other.record.offset > seen.record.offset
            });
            let there = kept.contains(&seen.record.offset);
            let tombstone = key.is_some() && seen.record.value.is_none();
            assert!(!there || !newer, "{seen:?} is not the last");
            assert!(there || newer || tombstone, "{seen:?} is the last, and gone");
        }
    }

    fn crash_throughout(&mut self, budget: u64, witness: u8) {
        self.sync();
        let (now, witness) = (self.now, self.witness(witness));
        let until = self.log().durable_position().segment;
        self.untouched = self.untouched.max(until);
        let mut log = self.log.take().unwrap();
        compact(&mut log, &Self::settings(false), now, budget, &mut |_, step| {
            let copy = copy(self.directory.path());
            for round in 0..2 {
                let mut log = self.open(copy.path(), witness, false);
                let expected = offset(self.all.len() as u64 + round);
                assert_eq!(log.durable_position().offset, expected, "{step}: the end moved");
                self.check(&log);
                // A second start, with something appended in between.
                put(&mut log, &[("", Some("another start"))], now);
                sync(&mut log);
                let expected = log.durable_position().offset;
                drop(log);
                let mut again = self.open(copy.path(), witness, false);
                assert_eq!(again.durable_position().offset, expected, "{step}: the second start differs");
                self.check(&again);
                self.check_numbers(&mut again, step);
            }
            true
        })
        .unwrap();
        self.log = Some(log);
        self.note_end();
    }

    fn trim(&mut self, share: u8) {
        self.log().stage_snapshot(true);
        self.sync();
        let end = self.ends[0].offset.get();
        let start = self.log().clamp_start(offset(end * u64::from(share) / 2 / 255));
        crate::write_log_start(self.directory.path(), start).unwrap();
        for freed in self.log().advance_start(start).unlink() {
            freed.unwrap();
        }
        self.start = start;
    }

    fn crash(&mut self, kept: u8, witness: u8) {
        crate::tests::write(self.log());
        let durable = self.log().durable_position();
        self.log = None;
        for base in files::list_offsets(self.directory.path(), "log").unwrap() {
            let path = files::offset_path(self.directory.path(), base, "log");
            let length = std::fs::metadata(&path).unwrap().len();
            let safe = match base.cmp(&durable.segment) {
                std::cmp::Ordering::Less => length,
                std::cmp::Ordering::Equal => durable.position,
                std::cmp::Ordering::Greater => 0,
            };
            let keep = safe + length.saturating_sub(safe) * u64::from(kept) / 255;
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(keep.min(length)).unwrap();
        }
        let log = self.open(self.directory.path(), self.witness(witness), false);
        let end = log.durable_position().offset;
        assert!(end >= durable.offset && end <= offset(self.all.len() as u64));
        self.all.truncate(end.get() as usize);
        for sent in self.producers.values_mut() {
            sent.retain(|sent| sent.base < end);
        }
        self.log = Some(log);
        self.ends = vec![self.log().durable_position()];
    }

    fn check(&self, log: &Log) {
        let end = log.durable_position().offset;
        let found = records(log, 700);
        for seen in &found {
            // A crash through a pass appends a record of its own.
            if let Some(original) = self.all.get(seen.record.offset.get() as usize) {
                assert_eq!(seen, original);
            }
        }
        let expected = &self.all[self.start.get() as usize..self.all.len().min(end.get() as usize)];
        let known = found.iter().filter(|seen| (seen.record.offset.get() as usize) < self.all.len());
        let known: Vec<Seen> = known.cloned().collect();
        assert_eq!(state(&known), state(expected));
        for seen in expected {
            if seen.record.key.is_none() || seen.record.offset >= self.untouched {
                assert!(known.contains(seen), "{seen:?} is gone");
            }
        }
        let count = log.reader().count(self.start, end, Access::Blocking).unwrap().records;
        assert_eq!(count, found.len() as u64);
    }

    /// Whatever was sent before is known, as long as the window goes.
    fn check_numbers(&self, log: &mut Log, what: &str) {
        for (producer, sent) in &self.producers {
            for sent in sent.iter().rev().take(crate::producers::WINDOW) {
                let stamp = stamp(*producer, sent.number, numbering(*producer));
                let offered = send(log, stamp, &text(&sent.records), self.now);
                let last = sent.base.saturating_add(sent.records.len() as u64 - 1);
                assert!(
                    matches!(offered, Ok(Offered::Duplicate { offsets: Some(at), .. }) if at == (sent.base, last)),
                    "{what}: {producer} {sent:?}: {offered:?}"
                );
            }
        }
    }
}

fn run(segment_bytes: u64, operations: &[Operation]) {
    let mut world = World::new(segment_bytes);
    for operation in operations {
        world.apply(operation);
    }
    world.apply(&Operation::Roll);
    world.apply(&Operation::CrashThroughout { budget: 400, witness: 1 });
    let mut log = world.log.take().unwrap();
    check_look_ups(&log, &records(&log, 1 << 20));
    world.check_numbers(&mut log, "at the end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_last_of_each_key_is_there_whatever_happens(
        segment_bytes in prop_oneof![Just(600u64), Just(2_000), Just(1 << 20)],
        operations in prop::collection::vec(operation(), 1..50),
    ) {
        run(segment_bytes, &operations);
    }
}
