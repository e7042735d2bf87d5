//! Made-up histories: a good one of which nothing is said, and for each anomaly one that differs in one thing.

use std::collections::BTreeMap;

use super::{Anomaly, Facts, Life, check};
use crate::group::event::{Event, What};

const TIMEOUT_NS: u64 = 1_000;

/// A life, told one event at each given time.
fn life(process: &str, owner: &str, events: Vec<(u64, What)>) -> Life {
    let events = events.into_iter().map(|(at_ns, what)| Event { at_ns, what }).collect();
    Life { process: process.to_owned(), owner: owner.to_owned(), events }
}

fn start(epoch: u32, partition: u32, committed: Option<u64>) -> What {
    What::Start { epoch, partition, offset: Some(committed.unwrap_or(0)), committed }
}

fn done(partition: u32, offset: u64) -> What {
    What::Done { partition, offset, number: u64::from(partition) * 100 + offset }
}

fn commit(id: u64, partition: u32, offset: u64) -> What {
    What::Commit { id, partition, offset }
}

fn durable(id: u64) -> What {
    What::Committed { id, refused: None }
}

/// Two partitions of four records. `a` has both, gives partition 1 to `b` half way, and is killed with partition
/// 0 in hand; `b` gets that after the session time-out and finishes both.
fn good() -> Facts {
    let a = vec![
        (10, What::Join { epoch: 0 }),
        (20, What::Joined { epoch: 1, resumed: false }),
        (30, start(1, 0, None)),
        (30, start(1, 1, None)),
        (40, done(1, 0)),
        (41, done(1, 1)),
        (42, commit(1, 1, 2)),
        (50, durable(1)),
        (60, What::Beat),
        (70, What::Stop { epoch: 1, partition: 1 }),
        (80, What::Stopped { partition: 1 }),
        (90, What::Alive { epoch: 2 }),
        (100, done(0, 0)),
        (101, done(0, 1)),
        (102, commit(2, 0, 1)),
        (110, durable(2)),
        // Killed with this one under way.
        (120, commit(3, 0, 2)),
    ];
    let b = vec![
        (65, What::Join { epoch: 0 }),
        (66, What::Joined { epoch: 2, resumed: false }),
        (95, start(2, 1, Some(2))),
        (96, done(1, 2)),
        (97, done(1, 3)),
        (98, commit(1, 1, 4)),
        (99, durable(1)),
        (900, What::Broken { why: "the server was killed".to_owned() }),
        (950, What::Join { epoch: 2 }),
        (960, What::Joined { epoch: 2, resumed: true }),
        (1500, start(3, 0, Some(1))),
        (1510, done(0, 1)),
        (1511, done(0, 2)),
        (1512, done(0, 3)),
        (1520, commit(2, 0, 4)),
        (1530, durable(2)),
        (1540, What::Leave),
    ];
    Facts {
        lives: vec![life("a-1", "a", a), life("b-1", "b", b)],
        log: (0..2)
            .map(|partition| (partition, (0..4).map(|offset| partition * 100 + offset).collect()))
            .map(|(partition, numbers): (u64, Vec<u64>)| (u32::try_from(partition).unwrap(), numbers))
            .collect(),
        committed: BTreeMap::from([(0, 4), (1, 4)]),
        session_timeout_ns: TIMEOUT_NS,
    }
}

/// The events of a process.
fn of<'a>(facts: &'a mut Facts, process: &str) -> &'a mut Vec<Event> {
    let life = facts.lives.iter_mut().find(|life| life.process == process);
    &mut life.expect("it is one of the two").events
}

/// The event at this time, to be changed.
fn at<'a>(facts: &'a mut Facts, process: &str, at_ns: u64) -> &'a mut What {
    let event = of(facts, process).iter_mut().find(|event| event.at_ns == at_ns);
    &mut event.expect("something happens at that time").what
}

/// Something more, in its place in time.
fn also(facts: &mut Facts, process: &str, at_ns: u64, what: What) {
    let events = of(facts, process);
    let place = events.partition_point(|event| event.at_ns <= at_ns);
    events.insert(place, Event { at_ns, what });
}

fn without(facts: &mut Facts, process: &str, at_ns: u64) {
    of(facts, process).retain(|event| event.at_ns != at_ns);
}

#[track_caller]
fn finds(facts: &Facts, expected: impl Fn(&Anomaly) -> bool) {
    let (wrong, _) = check(facts);
    assert!(wrong.iter().any(expected), "{wrong:#?}");
}

#[test]
fn a_good_history_has_nothing_wrong() {
    let (wrong, counts) = check(&good());
    assert_eq!(wrong, []);
    assert_eq!((counts.tenures, counts.stops_confirmed, counts.done), (4, 1, 9));
    assert_eq!((counts.commits, counts.commits_refused, counts.commits_unknown), (4, 0, 1));
    assert_eq!((counts.resumed, counts.fenced), (1, 0));
}

#[test]
fn two_owners_in_an_epoch() {
    let mut facts = good();
    *at(&mut facts, "b-1", 1500) = start(2, 0, Some(1));
    finds(&facts, |wrong| matches!(wrong, Anomaly::TwoOwnersInAnEpoch { partition: 0, epochs: (2, 2), .. }));
}

#[test]
fn two_owners_at_a_time() {
    // It is given away before the session time-out of the one who was killed, and before a stop is confirmed.
    for (mine, again) in [(1500, 110), (95, 75)] {
        let mut facts = good();
        let event = of(&mut facts, "b-1").iter_mut().find(|event| event.at_ns == mine);
        event.unwrap().at_ns = again;
        of(&mut facts, "b-1").sort_by_key(|event| event.at_ns);
        finds(&facts, |wrong| matches!(wrong, Anomaly::TwoOwnersAtOnce { .. }));
    }
}

#[test]
fn the_same_epoch_again_is_fine_for_the_same_member() {
    let mut facts = good();
    for life in &mut facts.lives {
        life.owner = "static".to_owned();
    }
    *at(&mut facts, "b-1", 1500) = start(2, 0, Some(1));
    assert_eq!(check(&facts).0, []);
}

/// `a` comes again in another process while the first hangs, and gets everything at once.
fn taken_over() -> Facts {
    let mut facts = good();
    let again = vec![
        (103, What::Join { epoch: 0 }),
        (104, What::Joined { epoch: 3, resumed: false }),
        (105, start(3, 0, None)),
        (106, done(0, 0)),
        (107, commit(1, 0, 1)),
        (108, durable(1)),
        (109, What::Stopped { partition: 0 }),
    ];
    facts.lives.push(life("a-2", "a", again));
    *at(&mut facts, "b-1", 1500) = start(4, 0, Some(1));
    facts
}

#[test]
fn a_member_may_take_over_from_its_older_self_which_commits_no_more() {
    let mut facts = taken_over();
    without(&mut facts, "a-1", 110);
    assert_eq!(check(&facts).0, []);
    also(&mut facts, "a-1", 120, commit(4, 0, 2));
    also(&mut facts, "a-1", 121, durable(4));
    finds(&facts, |wrong| matches!(wrong, Anomaly::StaleCommit { partition: 0, offset: 2, .. }));
}

/// What the older self believed in for a while longer may be given to somebody else at once, but not before.
#[test]
fn what_a_member_took_over_may_be_given_away() {
    let mut facts = taken_over();
    without(&mut facts, "a-1", 110);
    // Given to `b` right away, and not to `a` again.
    let again = of(&mut facts, "a-2");
    again.truncate(2);
    let event = of(&mut facts, "b-1").iter_mut().find(|event| event.at_ns == 1500).unwrap();
    event.at_ns = 112;
    of(&mut facts, "b-1").sort_by_key(|event| event.at_ns);
    let at_once =
        |facts: &Facts| check(facts).0.iter().any(|wrong| matches!(wrong, Anomaly::TwoOwnersAtOnce { .. }));
    assert!(!at_once(&facts));
    facts.lives.retain(|life| life.process != "a-2");
    assert!(at_once(&facts));
}

#[test]
fn an_epoch_that_goes_back() {
    let mut facts = good();
    *at(&mut facts, "b-1", 960) = What::Joined { epoch: 1, resumed: true };
    finds(&facts, |wrong| matches!(wrong, Anomaly::EpochWentBack { from: 2, to: 1, .. }));
}

#[test]
fn work_after_a_stop_and_after_a_fence() {
    let mut facts = good();
    also(&mut facts, "a-1", 85, done(1, 2));
    finds(&facts, |wrong| matches!(wrong, Anomaly::NotTheOwner { partition: 1, offset: 2, .. }));
    let mut facts = good();
    also(&mut facts, "a-1", 99, What::Fenced { why: String::new() });
    finds(&facts, |wrong| matches!(wrong, Anomaly::NotTheOwner { partition: 0, offset: 0, .. }));
    // A reconnect that is no resumption ends what was owned before.
    let mut facts = good();
    *at(&mut facts, "b-1", 960) = What::Joined { epoch: 2, resumed: false };
    also(&mut facts, "b-1", 970, done(1, 3));
    finds(&facts, |wrong| matches!(wrong, Anomaly::NotTheOwner { partition: 1, offset: 3, .. }));
}

#[test]
fn a_hole_and_a_repetition_within_a_tenure() {
    let mut facts = good();
    without(&mut facts, "b-1", 1511);
    finds(&facts, |wrong| matches!(wrong, Anomaly::NotContiguous { expected: Some(2), offset: 3, .. }));
    let mut facts = good();
    also(&mut facts, "b-1", 97, done(1, 3));
    finds(&facts, |wrong| matches!(wrong, Anomaly::NotContiguous { expected: Some(4), offset: 3, .. }));
}

#[test]
fn something_else_than_the_log_has() {
    let mut facts = good();
    *at(&mut facts, "a-1", 41) = What::Done { partition: 1, offset: 1, number: 1 };
    finds(&facts, |wrong| {
        matches!(wrong, Anomaly::OtherRecord { offset: 1, expected: Some(101), number: 1, .. })
    });
    let mut facts = good();
    also(&mut facts, "b-1", 97, done(1, 4));
    finds(&facts, |wrong| matches!(wrong, Anomaly::OtherRecord { offset: 4, expected: None, .. }));
}

#[test]
fn a_tenure_that_begins_elsewhere() {
    let mut facts = good();
    *at(&mut facts, "b-1", 95) = What::Start { epoch: 2, partition: 1, offset: Some(3), committed: Some(2) };
    finds(&facts, |wrong| matches!(wrong, Anomaly::WrongStart { offset: Some(3), committed: Some(2), .. }));
}

#[test]
fn a_forgotten_commit() {
    let mut facts = good();
    *at(&mut facts, "b-1", 95) = start(2, 1, None);
    finds(&facts, |wrong| {
        matches!(wrong, Anomaly::CommitForgotten { partition: 1, acknowledged: 2, committed: None, .. })
    });
    let mut facts = good();
    facts.committed.insert(0, 2);
    finds(&facts, |wrong| {
        matches!(wrong, Anomaly::CommitForgotten { acknowledged: 4, committed: Some(2), .. })
    });
}

#[test]
fn an_unknown_commit_may_be_there_or_not() {
    let mut facts = good();
    *at(&mut facts, "b-1", 1500) = start(3, 0, Some(2));
    without(&mut facts, "b-1", 1510);
    assert_eq!(check(&facts).0, []);
    // A refused one may not.
    also(&mut facts, "a-1", 125, What::Committed { id: 3, refused: Some("fenced".to_owned()) });
    finds(&facts, |wrong| matches!(wrong, Anomaly::CommitOfNobody { committed: 2, .. }));
}

#[test]
fn a_commit_that_nobody_made() {
    let mut facts = good();
    *at(&mut facts, "a-1", 30) = start(1, 0, Some(0));
    finds(&facts, |wrong| matches!(wrong, Anomaly::CommitOfNobody { partition: 0, committed: 0, .. }));
}

#[test]
fn a_commit_of_what_was_not_done() {
    let mut facts = good();
    *at(&mut facts, "a-1", 102) = commit(2, 0, 3);
    finds(&facts, |wrong| {
        matches!(wrong, Anomaly::CommittedNotDone { partition: 0, committed: 3, missing: 2 })
    });
}

#[test]
fn a_commit_of_one_whom_another_has_followed() {
    let mut facts = good();
    also(&mut facts, "a-1", 5000, commit(9, 0, 4));
    also(&mut facts, "a-1", 5001, durable(9));
    finds(&facts, |wrong| matches!(wrong, Anomaly::StaleCommit { partition: 0, offset: 4, .. }));
    *at(&mut facts, "a-1", 5001) = What::Committed { id: 9, refused: Some("fenced".to_owned()) };
    assert_eq!(check(&facts).0, []);
}

#[test]
fn one_that_was_frozen_hears_late_of_what_is_anothers() {
    let mut facts = good();
    also(&mut facts, "b-1", 940, What::Stopped { partition: 1 });
    *at(&mut facts, "b-1", 1500) = start(4, 0, Some(1));
    // By now the partition may be anybody's, and further committed.
    also(&mut facts, "a-1", 5000, start(3, 1, None));
    also(&mut facts, "a-1", 5010, What::Fenced { why: String::new() });
    assert_eq!(check(&facts).0, []);
}

#[test]
fn a_commit_backwards() {
    let mut facts = good();
    also(&mut facts, "b-1", 1535, commit(7, 0, 3));
    also(&mut facts, "b-1", 1536, durable(7));
    finds(&facts, |wrong| matches!(wrong, Anomaly::CommitBackwards { partition: 0, from: 4, to: 3 }));
}

#[test]
fn a_record_that_nobody_did() {
    let mut facts = good();
    facts.log.get_mut(&1).unwrap().push(104);
    finds(&facts, |wrong| matches!(wrong, Anomaly::NeverDone { partition: 1, offset: 4 }));
    finds(&facts, |wrong| matches!(wrong, Anomaly::NotSettled { partition: 1, end: 5, .. }));
}

#[test]
fn a_partition_that_cannot_be_read() {
    let mut facts = good();
    also(&mut facts, "b-1", 1600, What::Problem { partition: 1, why: "DATA_LOSS".to_owned() });
    finds(&facts, |wrong| matches!(wrong, Anomaly::Problem { partition: 1, .. }));
}
