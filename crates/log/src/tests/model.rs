//! Random operations against a plain list, with crashes that lose any part of what was not synced.

use proptest::prelude::*;

use super::*;
use crate::files;

#[derive(Debug, Clone)]
enum Operation {
    Append {
        records: usize,
        size: usize,
    },
    Produce {
        producer: u64,
        records: usize,
    },
    Repeat {
        producer: u64,
    },
    Write,
    Sync,
    Trim {
        share: u8,
    },
    CleanReopen,
    /// What lies beyond the durable end is cut at a share of its length, and the rest is spoiled or not.
    Crash {
        kept: u8,
        spoil: bool,
        witnessed: bool,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (1..6usize, 0..200usize).prop_map(|(records, size)| Operation::Append { records, size }),
        4 => (1..4u64, 1..4usize).prop_map(|(producer, records)| Operation::Produce { producer, records }),
        2 => (1..4u64).prop_map(|producer| Operation::Repeat { producer }),
        4 => Just(Operation::Write),
        4 => Just(Operation::Sync),
        1 => any::<u8>().prop_map(|share| Operation::Trim { share }),
        1 => Just(Operation::CleanReopen),
        2 => (any::<u8>(), any::<bool>(), any::<bool>())
            .prop_map(|(kept, spoil, witnessed)| Operation::Crash { kept, spoil, witnessed }),
    ]
}

#[derive(Default)]
struct Producer {
    next: u32,
    last: Option<(Batch, Claim, Offset)>,
}

struct World {
    directory: tempfile::TempDir,
    segment_bytes: u64,
    log: Option<Log>,
    records: Vec<Bytes>,
    start: Offset,
    producers: std::collections::HashMap<u64, Producer>,
    serial: u64,
    witness: Option<LogPosition>,
}

impl World {
    fn log(&mut self) -> &mut Log {
        self.log.as_mut().unwrap()
    }

    fn apply(&mut self, operation: &Operation) {
        self.serial += 1;
        let serial = self.serial;
        match *operation {
            Operation::Append { records, size } => {
                let values = values(records, size, serial);
                let base = append(self.log(), &values, serial as i64);
                assert_eq!(base, offset(self.records.len() as u64));
                self.records.extend(values);
            }
            Operation::Produce { producer, records } => {
                let values = values(records, 20, serial);
                let next = self.producers.entry(producer).or_default().next;
                let (batch, claim) = dense(&values, serial as i64, producer, next);
                let offered = self.log().offer(&batch, Some(&claim), None, Timestamp(serial as i64)).unwrap();
                let Offered::Staged { base, .. } = offered else { panic!("{offered:?}") };
                assert_eq!(base, offset(self.records.len() as u64));
                self.records.extend(values);
                let known = self.producers.get_mut(&producer).unwrap();
                known.next += records as u32;
                known.last = Some((batch, claim, base));
            }
            Operation::Repeat { producer } => {
                let last = self.producers.get(&producer).and_then(|known| known.last.clone());
                if let Some((batch, claim, first)) = last {
                    let offered =
                        self.log().offer(&batch, Some(&claim), None, Timestamp(serial as i64)).unwrap();
                    assert!(
                        matches!(offered, Offered::Duplicate { offsets: Some((base, _)), .. } if base == first),
                        "{offered:?} instead of a duplicate of {first}"
                    );
                }
            }
            Operation::Write => write(self.log()),
            Operation::Sync => {
                // As in the flusher, the witness of a group is durable only with the next one.
                self.witness = Some(self.log().durable_position());
                sync(self.log());
            }
            Operation::Trim { share } => {
                self.log().stage_snapshot(true);
                sync(self.log());
                let end = self.log().durable_position().offset.get();
                let start = self.log().clamp_start(offset(end * u64::from(share) / 255));
                crate::write_log_start(self.directory.path(), start).unwrap();
                for freed in self.log().advance_start(start).unlink() {
                    freed.unwrap();
                }
                self.start = start;
            }
            Operation::CleanReopen => {
                sync(self.log());
                self.log().caches().write().unwrap();
                self.witness = Some(self.log().durable_position());
                self.reopen(true);
            }
            Operation::Crash { kept, spoil, witnessed } => self.crash(kept, spoil, witnessed),
        }
    }

    fn reopen(&mut self, clean: bool) {
        self.log = None;
        let (log, _) = open(self.directory.path(), self.segment_bytes, self.witness, clean);
        self.log = Some(log);
        self.check();
    }

    fn crash(&mut self, kept: u8, spoil: bool, witnessed: bool) {
        let durable = self.log().durable_position();
        self.log = None;
        let bases = files::list_offsets(self.directory.path(), "log").unwrap();
        for base in bases {
            let path = files::offset_path(self.directory.path(), base, "log");
            let length = std::fs::metadata(&path).unwrap().len();
            let safe = match base.cmp(&durable.segment) {
                std::cmp::Ordering::Less => length,
                std::cmp::Ordering::Equal => durable.position,
                std::cmp::Ordering::Greater => 0,
            };
            if length <= safe {
                continue;
            }
            let keep = safe + (length - safe) * u64::from(kept) / 255;
            let mut content = std::fs::read(&path).unwrap();
            content.truncate(keep as usize);
            if spoil && keep > safe {
                let at = safe as usize + (keep - safe) as usize / 2;
                content[at..].fill(0);
            }
            std::fs::write(&path, &content).unwrap();
        }
        if !witnessed {
            self.witness = None;
        }
        // Twice, with an append in between: some faults show only on the second start.
        self.log = Some(open(self.directory.path(), self.segment_bytes, self.witness, false).0);
        let end = self.log().durable_position().offset;
        assert!(end >= durable.offset, "acknowledged records are gone: {end} < {}", durable.offset);
        assert!(end <= offset(self.records.len() as u64));
        self.records.truncate(end.get() as usize);
        // What was not durable may be there or not; the producer learns from the log where it stands.
        for (id, known) in &mut self.producers {
            let stored = self.log.as_ref().unwrap().producer(ProducerId::new(*id).unwrap());
            let stored = stored.and_then(|entry| Some((entry.last()?, entry.last_offset()?)));
            known.next = stored.map_or(0, |(last, _)| last + 1);
            known.last = known.last.take().filter(|(batch, claim, _)| {
                stored.is_some_and(|(last, _)| claim.stamp.base + batch.header().record_count - 1 <= last)
            });
        }
        self.check();
        self.apply(&Operation::Append { records: 1, size: 3 });
        self.witness = Some(self.log().durable_position());
        sync(self.log());
        self.reopen(false);
    }

    fn check(&mut self) {
        let start = self.start;
        let log = self.log.as_ref().unwrap();
        let (found, damage) = read_all(log, 700);
        assert_eq!(damage, []);
        let ends = log.reader().ends();
        assert_eq!(ends.start, start);
        let expected = &self.records[start.get() as usize..ends.durable.get() as usize];
        assert_eq!(found.len(), expected.len());
        for (n, ((offset_found, value), wanted)) in found.iter().zip(expected).enumerate() {
            assert_eq!(*offset_found, offset(start.get() + n as u64));
            assert_eq!(value, wanted);
        }
        let count = log.reader().count(ends.start, ends.durable, Access::Blocking).unwrap();
        assert_eq!(count.records, expected.len() as u64);
    }
}

fn run(segment_bytes: u64, operations: &[Operation]) {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::create(directory.path(), ID, config(segment_bytes), Timestamp(0)).unwrap();
    let mut world = World {
        directory,
        segment_bytes,
        log: Some(log),
        records: Vec::new(),
        start: Offset::ZERO,
        producers: Default::default(),
        serial: 0,
        witness: None,
    };
    for operation in operations {
        world.apply(operation);
    }
    world.check();
    sync(world.log());
    world.check();
    world.reopen(false);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_the_list_whatever_happens(
        segment_bytes in prop_oneof![Just(500u64), Just(2_000), Just(1 << 20)],
        operations in prop::collection::vec(operation(), 1..60),
    ) {
        run(segment_bytes, &operations);
    }
}

/// A snapshot of the producers was written at a roll, and the crash took the batches that it knew of: it must not
/// be believed once other batches have taken their offsets.
#[test]
fn a_snapshot_from_beyond_the_end_is_not_believed_later() {
    let crash = Operation::Crash { kept: 0, spoil: false, witnessed: false };
    run(
        500,
        &[
            Operation::Produce { producer: 2, records: 2 },
            Operation::Append { records: 1, size: 0 },
            Operation::Write,
            crash.clone(),
            crash,
            Operation::Produce { producer: 2, records: 1 },
        ],
    );
}
