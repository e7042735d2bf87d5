//! What compaction has passed by comes back: no key that was deleted meanwhile comes back with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use proptest::prelude::*;

use super::{obstacles::*, pass::*, *};
use crate::{Access, Log, LogReadError, ReadRange, files, inspect, tests::open};

/// So small that no neighbours are merged.
const SMALL: u64 = 600;
const ONE: Option<&str> = Some("1");
/// Where a bit of the first batch's records lies.
const FIRST_BATCH: usize = 72 + 60 + 61 + 3;

fn again(directory: &Path, log: Log) -> Log {
    let (witness, segment_bytes) = (log.durable_position(), log.config().segment_bytes);
    drop(log);
    open(directory, segment_bytes, Some(witness), false).0
}

/// The records of a batch.
type Planned<'a> = &'a [(&'a str, Option<&'a str>)];

fn segment(log: &mut Log, batches: &[Planned<'_>]) {
    for batch in batches {
        put(log, batch, 1);
    }
    roll(log, 1);
}

fn clean(log: &mut Log, now: i64) -> Vec<Obstacle> {
    all_passes(log, &mut BTreeMap::new(), now)
}

/// Room for six keys.
fn small_map() -> CompactionSettings {
    CompactionSettings { map_bytes: 8 * 24, ..always() }
}

#[test]
fn a_deleted_key_stays_deleted_when_damage_is_forgotten_by_a_restart() {
    let (directory, mut log) = new_log(SMALL);
    segment(&mut log, &[&[("a", ONE)], &[("k", ONE)]]);
    assert_eq!(clean(&mut log, 1_000), []);
    let rotten = path(directory.path(), 0);
    flip(&rotten, FIRST_BATCH);
    segment(&mut log, &[&[("k", None), ("x", ONE)]]);
    let mut damaged = BTreeMap::new();
    assert_eq!(all_passes(&mut log, &mut damaged, 2_000).len(), 1);
    assert_eq!(damaged.keys().copied().collect::<Vec<_>>(), [Offset::ZERO]);
    assert_eq!(offsets(&log, 1, 4), [1, 2, 3]);
    // The header of the rotten segment says that it is clean, its seal that it is whole.
    for round in 1..4 {
        log = again(directory.path(), log);
        let obstacles = clean(&mut log, FAR * round);
        assert_eq!(offsets(&log, 1, 4), [1, 2, 3], "round {round}: the key is back");
        assert_eq!(obstacles.len(), 1, "round {round}");
    }
    flip(&rotten, FIRST_BATCH);
    let mut log = again(directory.path(), log);
    assert_eq!(clean(&mut log, FAR * 4), []);
    assert_eq!(offsets(&log, 0, 4), [0, 3]);
    assert_eq!(log.cleaned_size(&[]).1, 0);
    check_look_ups(&log, &records(&log, 1 << 20));
}

#[test]
fn what_was_compacted_before_comes_back() {
    type Break = fn(&Path);
    let seal: Break = |path| flip(path, std::fs::metadata(path).unwrap().len() as usize - 30);
    let missing: Break = |path| std::fs::remove_file(path).unwrap();
    // What, whether the log is opened again after that and after it is undone, and whether it is the oldest segment.
    let cases: [(&str, Break, bool, bool); 7] = [
        ("header", |path| flip(path, 20), true, false),
        ("header of the oldest", |path| flip(path, 20), true, true),
        ("file", missing, true, false),
        ("file of the oldest", missing, true, true),
        ("seal", seal, true, false),
        // As one look finds it; the next one can read it.
        ("one look", missing, false, false),
        ("one look at the oldest", missing, false, true),
    ];
    for (what, damage, restart, oldest) in cases {
        let (directory, mut log) = new_log(SMALL);
        let base = u64::from(!oldest);
        if !oldest {
            segment(&mut log, &[&[("p", ONE)]]);
        }
        segment(&mut log, &[&[("a", ONE)], &[("k", ONE)]]);
        assert_eq!(clean(&mut log, 1_000), [], "{what}");
        // Its totals are not known any more.
        log = again(directory.path(), log);
        let victim = path(directory.path(), base);
        let whole = std::fs::read(&victim).unwrap();
        damage(&victim);
        if restart {
            log = again(directory.path(), log);
        }
        segment(&mut log, &[&[("k", None), ("x", ONE)]]);
        let obstacles = clean(&mut log, 2_000);
        assert_eq!(obstacles.len(), 1, "{what}: {obstacles:?}");
        assert_eq!(log.cleaned_size(&obstacles).1, 0, "{what}: nothing else is dirty");
        assert_eq!(offsets(&log, base + 2, base + 4), [base + 2, base + 3], "{what}");
        std::fs::write(&victim, &whole).unwrap();
        if restart {
            log = again(directory.path(), log);
        }
        assert_eq!(clean(&mut log, FAR), [], "{what}");
        let expected: Vec<u64> = (0..=base).chain([base + 3]).collect();
        assert_eq!(offsets(&log, 0, base + 4), expected, "{what}");
        assert_eq!(log.cleaned_size(&[]).1, 0, "{what}");
        check_look_ups(&log, &records(&log, 1 << 20));
    }
}

/// A segment with `k`, never compacted and passed by; behind it two that were compacted, by what they hold. Then it is
/// back.
fn back(behind: [&[Planned<'_>]; 2]) -> (tempfile::TempDir, Log) {
    let (directory, mut log) = new_log(SMALL);
    segment(&mut log, &[&[("k", ONE), ("a", ONE)]]);
    for batches in behind {
        segment(&mut log, batches);
    }
    let victim = path(directory.path(), 0);
    flip(&victim, 20);
    log = again(directory.path(), log);
    assert_eq!(clean(&mut log, 1_000).len(), 1);
    assert_eq!(offsets(&log, 2, 7), [2, 3, 4, 5, 6]);
    flip(&victim, 20);
    log = again(directory.path(), log);
    (directory, log)
}

#[test]
fn the_keys_fill_their_table_where_a_segment_ends() {
    let (_directory, mut log) =
        back([&[&[("x", ONE), ("y", ONE)]], &[&[("k", None), ("z", ONE), ("w", ONE)]]]);
    // Four keys are in the table, and three more do not fit.
    compact(&mut log, &small_map(), 2_000, 300, &mut |_, _| true).unwrap().unwrap();
    assert_eq!(offsets(&log, 0, 7), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(passes(&mut log, &mut BTreeMap::new(), &small_map(), FAR), []);
    assert_eq!(offsets(&log, 0, 7), [1, 2, 3, 5, 6]);
}

#[test]
fn a_pass_is_dropped_when_it_has_replaced_what_is_back() {
    for restart in [false, true] {
        let (directory, mut log) =
            back([&[&[("x", ONE)], &[("k", None), ("a", None), ("z", ONE)]], &[&[("w", ONE)]]]);
        // The table ends inside the second one; the first one is in place.
        let settings = map_of_one_batch();
        let mut renamed = false;
        compact(&mut log, &settings, 2_000, 300, &mut |_, step| {
            renamed |= step == "renamed";
            !(renamed && step == "slice")
        })
        .unwrap();
        assert!(renamed);
        if restart {
            log = again(directory.path(), log);
        }
        assert_eq!(offsets(&log, 0, 7), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(passes(&mut log, &mut BTreeMap::new(), &settings, FAR), []);
        assert_eq!(offsets(&log, 0, 7), [2, 5, 6], "after a restart: {restart}");
    }
}

#[test]
fn one_of_two_comes_back() {
    let (directory, mut log) = new_log(SMALL);
    segment(&mut log, &[&[("a", ONE), ("k", ONE)]]);
    segment(&mut log, &[&[("b", ONE), ("l", ONE)]]);
    assert_eq!(clean(&mut log, 1_000), []);
    let victims = [path(directory.path(), 0), path(directory.path(), 2)];
    victims.iter().for_each(|path| flip(path, 20));
    log = again(directory.path(), log);
    let passed_by = || inspect::SegmentView::open(directory.path(), offset(4)).unwrap().header.passed_by;
    segment(&mut log, &[&[("k", None), ("l", Some("2"))]]);
    assert_eq!(clean(&mut log, 2_000).len(), 2);
    assert_eq!((offsets(&log, 4, 6), passed_by()), (vec![4, 5], 2));
    // Nothing older of a key is left beside the last one, and the other may hold some of the one that was deleted.
    flip(&victims[1], 20);
    log = again(directory.path(), log);
    assert_eq!(clean(&mut log, FAR).len(), 1);
    assert_eq!((offsets(&log, 2, 6), passed_by()), (vec![2, 4, 5], 1));
    flip(&victims[0], 20);
    log = again(directory.path(), log);
    assert_eq!(clean(&mut log, FAR * 2), []);
    assert_eq!((offsets(&log, 0, 6), passed_by()), (vec![0, 2, 5], 0));
}

#[derive(Debug, Clone)]
enum Event {
    /// A segment of some batches: which keys, and whether they are deleted.
    Segment(Vec<Vec<(u8, bool)>>),
    /// One of the sealed segments has a broken header, has rot in it, or is not there.
    Breaks(u8, Damage),
    /// One of those is back as it was.
    Back(u8),
    /// A pass, at the beginning of which a file is not there, perhaps; it is dropped after some slices, perhaps.
    Pass {
        away: Option<u8>,
        small_map: bool,
        slices: Option<usize>,
    },
    Restart,
    /// Tombstones expire.
    Wait,
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Header,
    Rot,
    File,
}

fn event() -> impl Strategy<Value = Event> {
    let batch = prop::collection::vec((0..5u8, prop::bool::weighted(0.3)), 1..4);
    let damage = prop_oneof![Just(Damage::Header), Just(Damage::Rot), Just(Damage::File)];
    prop_oneof![
        4 => prop::collection::vec(batch, 1..3).prop_map(Event::Segment),
        2 => (any::<u8>(), damage).prop_map(|(which, damage)| Event::Breaks(which, damage)),
        2 => any::<u8>().prop_map(Event::Back),
        4 => (prop::option::weighted(0.2, any::<u8>()), any::<bool>(), prop::option::weighted(0.3, 0..12usize))
            .prop_map(|(away, small_map, slices)| Event::Pass { away, small_map, slices }),
        1 => Just(Event::Restart),
        2 => Just(Event::Wait),
    ]
}

struct World {
    directory: tempfile::TempDir,
    log: Option<Log>,
    /// Key and whether it was deleted, by offset.
    all: Vec<(u8, bool)>,
    /// What is broken, and what it was.
    broken: Vec<(PathBuf, Vec<u8>)>,
    damaged: BTreeMap<Offset, String>,
    now: i64,
}

impl World {
    fn log(&mut self) -> &mut Log {
        self.log.as_mut().unwrap()
    }

    fn restart(&mut self) {
        self.damaged.clear();
        let log = self.log.take().unwrap();
        self.log = Some(again(self.directory.path(), log));
    }

    /// One of the sealed segments that are whole.
    fn whole(&self, which: u8) -> Option<PathBuf> {
        let mut bases = files::list_offsets(self.directory.path(), "log").unwrap();
        bases.pop();
        let paths = bases.into_iter().map(|base| path(self.directory.path(), base.get()));
        let whole: Vec<_> =
            paths.filter(|path| self.broken.iter().all(|(broken, _)| broken != path)).collect();
        (!whole.is_empty()).then(|| whole[usize::from(which) % whole.len()].clone())
    }

    fn apply(&mut self, event: &Event) {
        self.now += 10;
        match event {
            Event::Segment(batches) => {
                for batch in batches {
                    let keys: Vec<_> = batch.iter().map(|(key, _)| format!("key {key}")).collect();
                    let value = |deleted: bool| (!deleted).then_some("value");
                    let records: Vec<_> = keys
                        .iter()
                        .zip(batch)
                        .map(|(key, (_, deleted))| (key.as_str(), value(*deleted)))
                        .collect();
                    let now = self.now;
                    put(self.log(), &records, now);
                    self.all.extend(batch);
                }
                let now = self.now;
                roll(self.log(), now);
            }
            Event::Breaks(which, damage) => {
                let Some(path) = self.whole(*which) else { return };
                self.broken.push((path.clone(), std::fs::read(&path).unwrap()));
                match damage {
                    // Met by a pass, and known until the next start.
                    Damage::Rot => flip(&path, FIRST_BATCH),
                    Damage::Header => flip(&path, 20),
                    Damage::File => std::fs::remove_file(&path).unwrap(),
                }
                if !matches!(damage, Damage::Rot) {
                    self.restart();
                }
            }
            Event::Back(which) => {
                if self.broken.is_empty() {
                    return;
                }
                let (path, content) = self.broken.remove(usize::from(*which) % self.broken.len());
                std::fs::write(path, content).unwrap();
                self.restart();
            }
            Event::Pass { away, small_map, slices } => self.pass(*away, *small_map, *slices),
            Event::Restart => self.restart(),
            Event::Wait => self.now += 200_000,
        }
        self.check();
    }

    fn pass(&mut self, away: Option<u8>, small_map: bool, slices: Option<usize>) {
        let away = away.and_then(|which| self.whole(which)).map(|path| {
            self.restart();
            let content = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            (path, content)
        });
        let (now, mut left) = (self.now, slices.unwrap_or(usize::MAX));
        let settings = if small_map { map_of_one_batch() } else { always() };
        let damaged = std::mem::take(&mut self.damaged);
        let done = compact_around(self.log(), &damaged, &settings, now, 300, &mut |_, step| {
            left = left.saturating_sub(usize::from(step == "slice"));
            step != "slice" || left > 0
        });
        self.damaged = damaged;
        match done {
            Ok(_) => {}
            Err(CompactionError::Damaged { segment, reason }) => drop(self.damaged.insert(segment, reason)),
            Err(error) => panic!("{error}"),
        }
        if let Some((path, content)) = away {
            std::fs::write(&path, content).unwrap();
        }
    }

    /// What can be read, and the ranges that cannot.
    fn readable(&self) -> (BTreeSet<u64>, Vec<(Offset, Offset)>) {
        let reader = self.log.as_ref().unwrap().reader();
        let (mut from, until) = (Offset::ZERO, offset(self.all.len() as u64));
        let (mut found, mut damage) = (BTreeSet::new(), Vec::new());
        while from < until {
            match reader.read(ReadRange { from, until, bytes: 1 }, Access::Blocking) {
                Ok(batches) => {
                    let Some(stored) = batches.first() else { break };
                    let records = stored.batch.records(&inspect::LIMITS).unwrap().map(Result::unwrap);
                    found.extend(records.map(|record| record.offset.get()));
                    from = stored.batch.next_offset();
                }
                Err(LogReadError::Damaged { until, .. }) => {
                    damage.push((from, until));
                    from = until;
                }
                Err(error) => panic!("{error}"),
            }
        }
        (found, damage)
    }

    fn last(&self, key: u8) -> Option<usize> {
        self.all.iter().rposition(|(other, _)| *other == key)
    }

    /// Of each key whose last record can be read that one is the last, or it was a deletion and there is none.
    fn check(&self) {
        let (found, damage) = self.readable();
        for key in 0..5 {
            let Some(last) = self.last(key) else { continue };
            let lies_in =
                |(from, until): &(Offset, Offset)| (from.get()..until.get()).contains(&(last as u64));
            let there = found.iter().rfind(|at| self.all[**at as usize].0 == key);
            let right = match there {
                Some(at) => *at == last as u64,
                None => self.all[last].1,
            };
            assert!(
                right || damage.iter().any(lies_in),
                "key {key}: {there:?} is the last instead of {last}, of {found:?} beside {damage:?}"
            );
        }
    }

    /// Everything is back, and time is over.
    fn end(mut self) {
        for (path, content) in std::mem::take(&mut self.broken) {
            std::fs::write(path, content).unwrap();
        }
        self.restart();
        self.check();
        let mut log = self.log.take().unwrap();
        // Tombstones that were never met before have their time from now on.
        for now in [FAR, FAR * 2] {
            assert_eq!(clean(&mut log, now), []);
        }
        assert_eq!(log.cleaned_size(&[]).1, 0);
        self.log = Some(log);
        let lasting = (0..5).filter_map(|key| self.last(key)).filter(|at| !self.all[*at].1);
        assert_eq!(self.readable().0, lasting.map(|at| at as u64).collect());
    }
}

/// Room for the keys of one batch.
fn map_of_one_batch() -> CompactionSettings {
    CompactionSettings { map_bytes: 1, ..always() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_was_deleted_comes_back(
        segment_bytes in prop_oneof![Just(SMALL), Just(2_000u64)],
        events in prop::collection::vec(event(), 1..40),
    ) {
        let (directory, log) = new_log(segment_bytes);
        let (all, broken, damaged) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut world = World { directory, log: Some(log), all, broken, damaged, now: 1_000 };
        for event in &events {
            world.apply(event);
        }
        world.end();
    }
}
