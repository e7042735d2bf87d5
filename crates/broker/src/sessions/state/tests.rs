use rimstone_types::{PartitionIndex, TopicId};

use super::*;

const E0: ProducerEpoch = ProducerEpoch::ZERO;

fn epoch(value: u64) -> ProducerEpoch {
    ProducerEpoch::new(value).unwrap()
}

fn partition(index: u32) -> Scope {
    Some(PartitionId { topic: TopicId::CATALOG, partition: PartitionIndex(index) })
}

/// A session driven step by step; the work is a label.
struct Driven {
    state: State<&'static str>,
    open: Vec<(&'static str, Turn<()>)>,
}

type Answers = Vec<(&'static str, Refusal)>;

impl Driven {
    fn new(named: bool, highest: Option<u32>) -> Self {
        let mut state = State::building(named, 8);
        assert!(state.built(E0, highest).is_empty());
        Self { state, open: Vec::new() }
    }

    fn building(named: bool) -> Self {
        Self { state: State::building(named, 8), open: Vec::new() }
    }

    fn answers(refused: Refused<&'static str>) -> Answers {
        refused.into_iter().map(|(work, _, refusal)| (work, refusal)).collect()
    }

    /// Takes every turn there is; answers what was submitted, in order.
    fn turns(&mut self) -> Vec<&'static str> {
        let mut submitted = Vec::new();
        while let Some(turn) = self.state.turn() {
            let (turn, work) = turn.split();
            submitted.push(work);
            self.open.push((work, turn));
        }
        submitted
    }

    fn arrive_at(&mut self, epoch: ProducerEpoch, number: u32, scope: Scope, work: &'static str) -> Answers {
        Self::answers(self.state.arrive(Arrival { epoch, number, scope }, work))
    }

    /// Arrives; answers what was submitted now.
    fn accepted(&mut self, number: u32, scope: Scope, work: &'static str) -> Vec<&'static str> {
        assert_eq!(self.arrive_at(self.state.epoch(), number, scope, work), [], "{work}");
        self.turns()
    }

    fn refused(&mut self, number: u32, work: &'static str) -> Refusal {
        let answers = self.arrive_at(self.state.epoch(), number, partition(0), work);
        assert_eq!(answers.len(), 1, "{work}: {answers:?}");
        assert_eq!(answers[0].0, work);
        assert_eq!(self.turns(), [] as [&str; 0]);
        answers[0].1
    }

    fn finish(&mut self, work: &'static str, failed: bool) -> Answers {
        self.ends_as(work, if failed { Fate::Failed { in_part: false } } else { Fate::Stored })
    }

    fn ends_as(&mut self, work: &'static str, fate: Fate) -> Answers {
        let at = self.open.iter().position(|(open, _)| *open == work).expect("it is open");
        let (_, turn) = self.open.remove(at);
        Self::answers(self.state.finished(&turn, fate))
    }

    /// The last turn is undone: the store took nothing.
    fn not_taken(&mut self, work: &'static str) -> Answers {
        let at = self.open.iter().position(|(open, _)| *open == work).expect("it is open");
        let (_, turn) = self.open.remove(at);
        Self::answers(self.state.not_taken(&turn))
    }
}

fn resend(expected: u32) -> Refusal {
    Refusal::ResendFirst { expected }
}

#[test]
fn numbers_come_in_order_from_zero() {
    let mut session = Driven::new(false, None);
    assert_eq!(session.refused(1, "1 before 0"), resend(0));
    assert_eq!(session.accepted(0, partition(0), "0"), ["0"]);
    assert_eq!(session.refused(2, "2 before 1"), resend(1));
    assert_eq!(session.finish("0", false), []);
    assert_eq!(session.accepted(1, partition(0), "1"), ["1"]);
}

#[test]
fn one_partition_pipelines_and_several_wait_for_each_other() {
    let mut session = Driven::new(false, None);
    assert_eq!(session.accepted(0, partition(1), "0"), ["0"]);
    assert_eq!(session.accepted(1, partition(1), "1"), ["1"], "the same partition keeps the order");
    assert_eq!(session.accepted(2, partition(2), "2"), [] as [&str; 0], "another partition does not");
    assert_eq!(session.accepted(3, partition(2), "3"), [] as [&str; 0]);
    assert_eq!(session.finish("0", false), []);
    assert_eq!(session.turns(), [] as [&str; 0]);
    assert_eq!(session.finish("1", false), []);
    assert_eq!(session.turns(), ["2", "3"]);
    session.finish("2", false);
    session.finish("3", false);
    assert_eq!(session.accepted(4, None, "4"), ["4"]);
    assert_eq!(
        session.accepted(5, None, "5"),
        [] as [&str; 0],
        "requests over several partitions one by one"
    );
    session.finish("4", false);
    assert_eq!(session.turns(), ["5"]);
}

#[test]
fn after_a_failure_later_ones_wait_for_the_failed_one() {
    let mut session = Driven::new(false, None);
    for (number, work) in [(0, "0"), (1, "1"), (2, "2")] {
        assert_eq!(session.accepted(number, partition(0), work), [work]);
    }
    assert_eq!(session.finish("0", false), []);
    assert_eq!(session.finish("1", true), []);
    assert_eq!(session.finish("2", true), []);
    assert_eq!(session.refused(3, "3"), resend(1));
    assert_eq!(session.refused(2, "2 again"), resend(1));
    assert_eq!(session.accepted(0, partition(0), "0 again"), ["0 again"], "older ones may be repeated");
    assert_eq!(session.accepted(1, partition(0), "1 again"), ["1 again"]);
    assert_eq!(session.refused(3, "3"), resend(2), "2 has failed too");
    assert_eq!(session.accepted(2, partition(0), "2 again"), ["2 again"]);
    assert_eq!(session.accepted(3, partition(0), "3"), ["3"]);
    for work in ["0 again", "1 again", "2 again", "3"] {
        assert_eq!(session.finish(work, false), []);
    }
    assert!(session.state.is_idle());
}

#[test]
fn a_failure_refuses_what_waits_and_their_numbers_are_not_used() {
    let mut session = Driven::new(false, None);
    session.accepted(0, partition(0), "0");
    session.accepted(1, None, "1");
    session.accepted(2, None, "2");
    assert_eq!(session.finish("0", true), [("1", resend(0)), ("2", resend(0))]);
    assert_eq!(session.refused(1, "1"), resend(0));
    assert_eq!(session.accepted(0, partition(0), "0 again"), ["0 again"]);
    assert_eq!(session.finish("0 again", false), []);
    assert_eq!(session.refused(2, "2"), resend(1));
    assert_eq!(session.accepted(1, None, "1"), ["1"]);
}

#[test]
fn the_last_attempt_decides() {
    let mut session = Driven::new(false, None);
    session.accepted(0, partition(0), "first");
    assert_eq!(session.accepted(0, partition(0), "second"), ["second"]);
    // The first was undone, the second came behind it and stands.
    assert_eq!(session.finish("first", true), []);
    assert_eq!(session.finish("second", false), []);
    assert_eq!(session.accepted(1, partition(0), "1"), ["1"]);

    assert_eq!(session.accepted(1, partition(0), "1 again"), ["1 again"]);
    assert_eq!(session.finish("1", false), []);
    assert_eq!(session.finish("1 again", true), []);
    assert_eq!(session.refused(2, "2"), resend(1));
}

#[test]
fn a_repeat_of_one_that_waits_comes_behind_it() {
    let mut session = Driven::new(false, None);
    session.accepted(0, partition(0), "0");
    assert_eq!(session.accepted(1, partition(1), "1"), [] as [&str; 0]);
    assert_eq!(session.accepted(2, partition(1), "2"), [] as [&str; 0]);
    assert_eq!(session.accepted(1, partition(1), "1 again"), [] as [&str; 0]);
    session.finish("0", false);
    assert_eq!(session.turns(), ["1", "1 again", "2"]);
}

#[test]
fn what_the_store_does_not_take_uses_no_number() {
    let mut session = Driven::new(false, None);
    session.accepted(0, partition(0), "0");
    session.accepted(1, partition(0), "1");
    assert_eq!(session.not_taken("1"), []);
    assert_eq!(session.refused(2, "2"), resend(1));
    assert_eq!(
        session.accepted(1, partition(1), "1 with other content"),
        [] as [&str; 0],
        "0 is open elsewhere"
    );
    session.finish("0", false);
    assert_eq!(session.turns(), ["1 with other content"]);
    // A repeat that is not taken changes nothing, whether its number was stored or had failed.
    session.finish("1 with other content", false);
    session.accepted(1, partition(1), "1 again");
    assert_eq!(session.not_taken("1 again"), []);
    assert_eq!(session.accepted(2, partition(1), "2"), ["2"]);
    session.finish("2", true);
    session.accepted(2, partition(1), "2 again");
    assert_eq!(session.not_taken("2 again"), []);
    assert_eq!(session.refused(3, "3"), resend(2), "2 still has to come");
    // An earlier attempt decides again when the later one was not taken.
    session.accepted(2, partition(1), "2 third");
    session.accepted(2, partition(1), "2 fourth");
    session.not_taken("2 fourth");
    session.finish("2 third", true);
    assert_eq!(session.refused(3, "3"), resend(2));
}

#[test]
fn not_taken_refuses_what_waits_behind() {
    let mut session = Driven::new(false, None);
    session.accepted(0, partition(0), "0");
    session.accepted(1, partition(1), "1");
    session.accepted(2, partition(1), "2");
    session.finish("0", false);
    let turn = session.state.turn().expect("1 has its turn");
    let (turn, work) = turn.split();
    assert_eq!(work, "1");
    assert_eq!(Driven::answers(session.state.not_taken(&turn)), [("2", resend(1))]);
    assert_eq!(session.turns(), [] as [&str; 0]);
    assert_eq!(session.accepted(1, partition(1), "1 again"), ["1 again"]);
}

#[test]
fn after_a_restart_the_highest_comes_first() {
    let mut session = Driven::new(false, Some(7));
    assert_eq!(session.refused(8, "8"), resend(7));
    assert_eq!(session.refused(9, "9"), resend(7));
    assert_eq!(session.accepted(7, None, "7"), ["7"]);
    assert_eq!(session.accepted(8, None, "8"), [] as [&str; 0]);
    session.finish("7", false);
    assert_eq!(session.turns(), ["8"]);
}

#[test]
fn only_the_request_itself_settles_a_number_that_stood_in_the_way() {
    let in_part = Fate::Failed { in_part: true };
    // What stood before (`None`: found after a restart), what the repeat met, whether later numbers may come.
    let rows = [
        (None, Fate::Stored, true),
        (None, Fate::Refused, false),
        (None, Fate::EndNotMet, false),
        (None, in_part, false),
        (Some(in_part), Fate::Stored, true),
        (Some(in_part), Fate::Refused, false),
        (Some(in_part), Fate::EndNotMet, false),
        (Some(Fate::Failed { in_part: false }), Fate::Stored, true),
        (Some(Fate::Failed { in_part: false }), Fate::Refused, false),
        // Nothing of it is there, and its condition does not hold any more: it can never be stored.
        (Some(Fate::Failed { in_part: false }), Fate::EndNotMet, true),
        // These were there already, or failed by their own verdict: nothing stands in the way.
        (Some(Fate::Stored), Fate::Refused, true),
        (Some(Fate::Refused), Fate::Refused, true),
    ];
    for (before, repeat, free) in rows {
        let row = format!("{before:?}, then {repeat:?}");
        let mut session = Driven::new(false, before.map_or(Some(7), |_| Some(6)));
        if let Some(before) = before {
            session.accepted(6, None, "6");
            session.finish("6", false);
            session.accepted(7, None, "7");
            session.ends_as("7", before);
        }
        assert_eq!(session.accepted(7, None, "7 again"), ["7 again"], "{row}");
        assert_eq!(session.ends_as("7 again", repeat), [], "{row}");
        if free {
            assert_eq!(session.accepted(8, None, "8"), ["8"], "{row}");
            continue;
        }
        assert_eq!(session.refused(8, "8"), resend(7), "{row}");
        // Nor do two wrong ones at the same time.
        session.accepted(7, None, "wrong");
        session.accepted(7, None, "wrong too");
        session.ends_as("wrong", Fate::Refused);
        assert_eq!(session.ends_as("wrong too", Fate::Refused), [], "{row}");
        assert_eq!(session.refused(8, "8"), resend(7), "{row}");
        session.accepted(7, None, "right");
        session.ends_as("right", Fate::Stored);
        assert_eq!(session.accepted(8, None, "8"), ["8"], "{row}");
    }
}

#[test]
fn what_an_earlier_attempt_left_in_part_stands_while_a_later_one_is_open() {
    for left in [Fate::Failed { in_part: true }, Fate::Failed { in_part: false }] {
        let mut session = Driven::new(false, Some(6));
        session.accepted(6, None, "6");
        session.finish("6", false);
        session.accepted(7, None, "7");
        session.accepted(7, None, "something else");
        assert_eq!(session.ends_as("7", left), []);
        assert_eq!(session.ends_as("something else", Fate::Refused), []);
        assert_eq!(session.refused(8, "8"), resend(7), "{left:?}");
        session.accepted(7, None, "7 again");
        session.ends_as("7 again", Fate::Stored);
        assert_eq!(session.accepted(8, None, "8"), ["8"], "{left:?}");
    }
}

#[test]
fn what_waits_behind_a_number_that_is_not_settled_is_refused() {
    let mut session = Driven::new(false, Some(7));
    session.accepted(7, None, "wrong");
    assert_eq!(session.accepted(8, None, "8"), [] as [&str; 0]);
    assert_eq!(session.ends_as("wrong", Fate::Refused), [("8", resend(7))]);
    // The request itself, and at the same time something else under its number: it is settled.
    session.accepted(7, None, "right");
    session.accepted(7, None, "wrong");
    session.ends_as("right", Fate::Stored);
    session.ends_as("wrong", Fate::Refused);
    assert_eq!(session.accepted(8, None, "8"), ["8"]);
}

#[test]
fn what_comes_before_the_state_is_read_is_judged_by_it() {
    let mut session = Driven::building(false);
    for (number, work) in [(4, "4"), (3, "3"), (5, "5"), (4, "4 again")] {
        assert_eq!(session.arrive_at(E0, number, partition(0), work), []);
    }
    assert_eq!(session.turns(), [] as [&str; 0]);
    assert!(!session.state.is_idle());
    let refused = Driven::answers(session.state.built(E0, Some(3)));
    assert_eq!(refused, [("4", resend(3)), ("5", resend(3)), ("4 again", resend(3))]);
    assert_eq!(session.turns(), ["3"]);
}

#[test]
fn an_unnamed_producer_begins_again_with_a_higher_epoch() {
    let mut session = Driven::new(false, Some(7));
    assert_eq!(session.arrive_at(epoch(2), 8, partition(0), "8"), [("8", resend(0))]);
    assert_eq!(session.accepted(7, partition(0), "7"), ["7"]);
    session.accepted(8, partition(1), "8");
    let fenced = Refusal::Fenced { current: epoch(2) };
    assert_eq!(session.arrive_at(epoch(2), 0, partition(0), "0"), [("8", fenced)]);
    assert_eq!(session.turns(), ["0"]);
    assert_eq!(session.arrive_at(epoch(1), 9, partition(0), "old"), [("old", fenced)]);
    assert_eq!(session.finish("7", true), [], "of the older epoch: nothing waits for it");
    assert_eq!(session.accepted(1, partition(0), "1"), ["1"]);
}

#[test]
fn a_named_producer_goes_on_with_a_new_epoch() {
    let mut session = Driven::new(true, Some(3));
    session.accepted(3, partition(0), "3");
    session.accepted(4, partition(1), "4");
    let fenced = Refusal::Fenced { current: epoch(1) };
    assert_eq!(session.arrive_at(epoch(1), 4, partition(0), "early"), [("early", Refusal::NotYet)]);
    assert_eq!(Driven::answers(session.state.replace(epoch(1), Some(3))), [("4", fenced)]);
    assert_eq!(Driven::answers(session.state.replace(epoch(0), Some(9))), [], "an older answer comes late");
    assert_eq!(session.arrive_at(E0, 4, partition(0), "old"), [("old", fenced)]);
    assert_eq!(session.refused(4, "4"), resend(3));
    assert_eq!(session.accepted(3, partition(0), "3 again"), ["3 again"]);
    assert_eq!(session.accepted(4, partition(0), "4"), ["4"]);
}

#[test]
fn open_and_waiting_requests_are_bounded() {
    let mut session = Driven::new(false, None);
    let works = ["0", "1", "2", "3", "4", "5", "6", "7"];
    for (number, work) in (0..).zip(works) {
        let scope = if number < 4 { partition(0) } else { None };
        assert_eq!(session.arrive_at(E0, number, scope, work), []);
        session.turns();
    }
    assert_eq!(session.refused(8, "8"), Refusal::TooManyOpen { limit: 8 });
    session.finish("0", false);
    assert_eq!(session.arrive_at(E0, 8, None, "8"), []);
    let mut early = Driven::building(false);
    for work in works {
        assert_eq!(early.arrive_at(E0, 0, None, work), []);
    }
    assert_eq!(early.arrive_at(E0, 0, None, "9th"), [("9th", Refusal::TooManyOpen { limit: 8 })]);
}

#[test]
fn the_highest_number_is_the_last() {
    let max = rimstone_types::RequestNumber::MAX.get();
    let mut session = Driven::new(false, Some(max - 1));
    assert_eq!(session.accepted(max - 1, partition(0), "resent"), ["resent"]);
    assert_eq!(session.accepted(max, partition(0), "last"), ["last"]);
    assert_eq!(session.accepted(max, partition(0), "last again"), ["last again"]);
}
