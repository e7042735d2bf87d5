//! The plan by tables, a pass by its rules, and everything against a model with a crash at each step.

mod model;
mod obstacles;
mod pass;
mod put_back;
mod returns;
mod swap;
mod tombstones;

use super::*;

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

fn settings() -> CompactionSettings {
    CompactionSettings {
        dirty_ratio: 0.5,
        min_lag: Duration::ZERO,
        max_lag: None,
        delete_retention: Duration::from_secs(100),
        map_bytes: 1 << 20,
    }
}

/// A segment of ten offsets with its bytes, the time of its appends, and whether it is cleaned.
fn facts(number: u64, bytes: u64, time: i64, cleaned: bool) -> Facts {
    let (base, next) = (offset(number * 10), offset(number * 10 + 10));
    Facts {
        base,
        next,
        bytes,
        first_append: Timestamp(time),
        last_append: Timestamp(time + 9),
        cleaned: if cleaned { next } else { base },
        horizon: None,
    }
}

#[test]
fn what_is_dirty_and_when_a_pass_is_due() {
    let log = [
        facts(0, 600, 1000, true),
        facts(1, 400, 2000, true),
        facts(2, 300, 3000, false),
        facts(3, 700, 4000, false),
    ];
    let lag = |min: u64, max: Option<u64>| CompactionSettings {
        min_lag: Duration::from_millis(min),
        max_lag: max.map(Duration::from_millis),
        ..settings()
    };
    // Sealed segments, stable end, settings, now; segments, dirty from, clean bytes, dirty bytes, due.
    type Case<'a> = (&'a [Facts], u64, CompactionSettings, i64, usize, u64, u64, u64, bool);
    let cases: &[Case<'_>] = &[
        (&[], 0, settings(), 9000, 0, 0, 0, 0, false),
        (&log, 40, settings(), 9000, 4, 20, 1000, 1000, true),
        // The stable end lies inside the last one, or before all.
        (&log, 39, settings(), 9000, 3, 20, 1000, 300, false),
        (&log, 9, settings(), 9000, 0, 0, 0, 0, false),
        // The last batch of the last one is too young by a millisecond, or just old enough.
        (&log, 40, lag(1000, None), 5008, 3, 20, 1000, 300, false),
        (&log, 40, lag(1000, None), 5009, 4, 20, 1000, 1000, true),
        // A cleaned segment is never too young.
        (&log, 20, lag(1_000_000, None), 5000, 2, 20, 1000, 0, false),
        // By time: the first dirty batch counts.
        (&log[..3], 30, lag(0, Some(2000)), 4999, 3, 20, 1000, 300, false),
        (&log[..3], 30, lag(0, Some(2000)), 5000, 3, 20, 1000, 300, true),
        (&log[..2], 20, lag(0, Some(1)), 9000, 2, 20, 1000, 0, false),
        (&log[2..], 40, settings(), 9000, 2, 20, 0, 1000, true),
    ];
    for (number, (sealed, stable, settings, now, segments, from, clean, dirty, due)) in
        cases.iter().enumerate()
    {
        let plan = plan(sealed, offset(*stable), settings, Timestamp(*now));
        let dirtiness = Dirtiness { clean_bytes: *clean, dirty_bytes: *dirty, due: *due };
        assert_eq!((plan.segments, plan.dirtiness), (*segments, dirtiness), "case {number}");
        assert_eq!(plan.dirty_from, offset(*from), "case {number}");
    }
}

#[test]
fn a_ratio_of_nothing_is_nothing_and_zero_asks_for_some_dirt() {
    assert_eq!(Dirtiness::default().ratio(), 0.0);
    let always = CompactionSettings { dirty_ratio: 0.0, ..settings() };
    let clean = [facts(0, 10, 0, true)];
    assert!(!plan(&clean, offset(10), &always, Timestamp(50)).dirtiness.due);
    assert!(plan(&[facts(0, 10, 0, false)], offset(10), &always, Timestamp(50)).dirtiness.due);
}

#[test]
fn a_segment_cleaned_in_part_is_dirty_from_there() {
    let half = Facts { cleaned: offset(4), ..facts(0, 500, 0, false) };
    let plan = plan(&[half, facts(1, 100, 0, false)], offset(20), &settings(), Timestamp(50));
    assert_eq!((plan.dirty_from, plan.dirtiness.dirty_bytes), (offset(4), 600));
}

#[test]
fn neighbours_are_merged_within_the_bounds_of_a_segment() {
    let sizes = |sizes: &[u64]| -> Vec<Facts> {
        sizes.iter().zip(0..).map(|(bytes, number)| facts(number, *bytes, 0, true)).collect()
    };
    let ends = |groups: Vec<Range<usize>>| -> Vec<(usize, usize)> {
        groups.into_iter().map(|group| (group.start, group.end)).collect()
    };
    type Case<'a> = (&'a [u64], &'a [(usize, usize)]);
    let cases: &[Case<'_>] = &[
        (&[], &[]),
        (&[50], &[(0, 1)]),
        (&[200], &[(0, 1)]),
        (&[30, 30, 40, 1], &[(0, 3), (3, 4)]),
        (&[90, 20, 80, 100, 5], &[(0, 1), (1, 3), (3, 4), (4, 5)]),
        (&[150, 10, 10], &[(0, 1), (1, 3)]),
    ];
    for (bytes, expected) in cases {
        assert_eq!(ends(groups(&sizes(bytes), 100)), *expected, "{bytes:?}");
    }
    // Offsets are bounded too.
    let wide =
        |base: u64, next: u64| Facts { base: offset(base), next: offset(next), ..facts(0, 1, 0, true) };
    let far = [wide(0, 10), wide(10, RANGE_MAX), wide(RANGE_MAX, RANGE_MAX + 1)];
    assert_eq!(ends(groups(&far, 100)), [(0, 2), (2, 3)]);
}
