//! Tables: what a request does to a group.

use rimstone_types::{GroupEpoch, PartitionIndex};

use super::common::{TestTopics, apply, at, group, join, lines, member, offset, places, topic};
use crate::group::{
    Assignor, Commit, CommitOffset, Committer, FencedBecause, GroupError, GroupRecord, GroupValue, Groups,
    Import, ImportOffset, ImportTo, Join, Joined, Removal,
};

/// A group under test.
#[derive(Debug, Clone, Default)]
struct Case {
    groups: Groups,
    topics: TestTopics,
}

impl Case {
    fn new(topics: &[(&str, u32)]) -> Self {
        Self { groups: Groups::default(), topics: TestTopics::new(topics) }
    }

    fn join(&mut self, join: &Join) -> (Vec<String>, Joined) {
        let decision = self.groups.join(join, &self.topics, at(1)).expect("joins");
        apply(&mut self.groups, decision)
    }

    fn join_error(&self, join: &Join) -> GroupError {
        self.groups.join(join, &self.topics, at(1)).expect_err("refused")
    }

    fn confirm(&mut self, id: &str, epoch: u32, partitions: &[&str]) -> (Vec<String>, GroupEpoch) {
        let decision = self
            .groups
            .confirm_stop(&group(), &member(id), GroupEpoch(epoch), &places(partitions))
            .expect("confirms");
        apply(&mut self.groups, decision)
    }

    fn remove(&mut self, id: &str, why: Removal) -> (Vec<String>, bool) {
        let decision = self.groups.remove_member(&group(), &member(id), why, &self.topics);
        apply(&mut self.groups, decision)
    }

    /// Commits with a member's epoch, beside its session.
    fn commit(&mut self, id: &str, epoch: u32, places: &[&str]) {
        let id = member(id);
        let offsets = places.iter().map(|place| offset(&self.topics, place, 1)).collect();
        let by = Committer::Member(&id, GroupEpoch(epoch));
        let decision = self
            .groups
            .commit(Commit { group: &group(), by, keeps_place: false, offsets }, at(2))
            .expect("it may");
        assert!(apply(&mut self.groups, decision).1.iter().all(Result::is_ok));
    }

    fn topics_changed(&mut self) -> Vec<String> {
        let decision = self.groups.topics_changed(&group(), &self.topics);
        apply(&mut self.groups, decision).0
    }

    #[track_caller]
    fn is(&self, expected: &[&str]) {
        assert_eq!(lines(&self.groups), expected);
    }
}

fn fenced(id: &str, because: FencedBecause) -> GroupError {
    GroupError::Fenced { group: group(), member: member(id), because }
}

/// Two members with two partitions each, at epoch 2.
fn two_members() -> Case {
    let mut case = Case::new(&[("t", 4)]);
    case.join(&join("a", &["t"]));
    case.join(&join("b", &["t"]));
    case.confirm("a", 1, &["t:2", "t:3"]);
    case.is(&["epoch 2", "a @2 [t:0,1]", "b @2 [t:2,3]"]);
    case
}

#[test]
fn the_first_member_gets_everything_at_once() {
    let mut case = Case::new(&[("t", 4)]);
    let (records, joined) = case.join(&join("a", &["t"]));
    assert_eq!(records, ["group:g", "topics:g", "member:g:a", "target:g:a", "assignment:g:a"]);
    assert_eq!(joined, Joined { epoch: GroupEpoch(1), resumed: false, replaced: None });
    case.is(&["epoch 1", "a @1 [t:0,1,2,3]"]);
}

#[test]
fn a_partition_moves_when_its_owner_has_confirmed() {
    let mut case = Case::new(&[("t", 4)]);
    case.join(&join("a", &["t"]));
    let (_, joined) = case.join(&join("b", &["t"]));
    assert_eq!(joined.epoch, GroupEpoch(2));
    case.is(&["epoch 2", "a @1 [t:0,1] stop [t:2,3]", "b @2 [] want [t:2,3]"]);
    let (records, epoch) = case.confirm("a", 1, &["t:3"]);
    assert_eq!(epoch, GroupEpoch(1));
    assert_eq!(records, ["assignment:g:a", "assignment:g:b"]);
    case.is(&["epoch 2", "a @1 [t:0,1] stop [t:2]", "b @2 [t:3] want [t:2]"]);
    let (_, epoch) = case.confirm("a", 1, &["t:2"]);
    assert_eq!(epoch, GroupEpoch(2));
    case.is(&["epoch 2", "a @2 [t:0,1]", "b @2 [t:2,3]"]);
}

#[test]
fn who_has_something_to_give_back_gets_nothing_before() {
    let mut case = two_members();
    case.join(&join("c", &["t"]));
    case.is(&["epoch 3", "a @3 [t:0,1]", "b @2 [t:2] stop [t:3]", "c @3 [] want [t:3]"]);
    // a leaves: its partitions are free, and one of them is b's by the target.
    case.remove("a", Removal::Leave { for_good: true });
    case.is(&["epoch 4", "b @2 [t:2] stop [t:3] want [t:0]", "c @4 [t:1] want [t:3]"]);
    case.confirm("b", 2, &["t:3"]);
    case.is(&["epoch 4", "b @4 [t:0,2]", "c @4 [t:1,3]"]);
}

#[test]
fn confirming_again_or_too_late_changes_nothing() {
    let mut case = Case::new(&[("t", 2)]);
    case.join(&join("a", &["t"]));
    case.join(&join("b", &["t"]));
    let confirm = |case: &Case, epoch, places_: &[&str]| {
        case.groups.confirm_stop(&group(), &member("a"), GroupEpoch(epoch), &places(places_))
    };
    assert_eq!(
        confirm(&case, 2, &["t:1"]).unwrap_err(),
        fenced("a", FencedBecause::StaleEpoch { given: GroupEpoch(2), current: GroupEpoch(1) })
    );
    assert!(matches!(confirm(&case, 1, &["t:0"]).unwrap_err(), GroupError::NotStopping { .. }));
    let (records, _) = case.confirm("a", 1, &["u:7"]);
    assert!(records.is_empty(), "what nobody knows is passed over: {records:?}");
    case.confirm("a", 1, &["t:1"]);
    case.is(&["epoch 2", "a @2 [t:0]", "b @2 [t:1]"]);
    let (records, _) = case.confirm("a", 2, &["t:1"]);
    assert!(records.is_empty(), "it is another's by now: {records:?}");
    assert_eq!(
        confirm(&case, 1, &["t:1"]).unwrap_err(),
        fenced("a", FencedBecause::StaleEpoch { given: GroupEpoch(1), current: GroupEpoch(2) })
    );
}

#[test]
fn coming_back_changes_nothing() {
    let mut case = two_members();
    let (records, joined) = case.join(&join("a", &["t"]).back(2, &["t:0", "t:1"]));
    assert!(records.is_empty(), "{records:?}");
    assert_eq!(joined, Joined { epoch: GroupEpoch(2), resumed: true, replaced: None });
    // A start that was lost: the member does not know yet that it owns t:1.
    let (records, _) = case.join(&join("a", &["t"]).back(2, &["t:0"]));
    assert!(records.is_empty(), "{records:?}");
    case.is(&["epoch 2", "a @2 [t:0,1]", "b @2 [t:2,3]"]);
    // It connects from elsewhere.
    let mut elsewhere = join("a", &["t"]).back(2, &["t:0", "t:1"]);
    elsewhere.host = "10.0.0.7".to_owned();
    assert_eq!(case.join(&elsewhere).0, ["member:g:a"]);
}

#[test]
fn an_earlier_epoch_of_this_life_is_accepted_once() {
    let mut case = two_members();
    // Two pushes are lost: c comes and goes.
    case.join(&join("c", &["t"]));
    case.remove("c", Removal::SessionTimeout);
    case.is(&["epoch 4", "a @4 [t:0,1]", "b @2 [t:2] stop [t:3] want [t:3]"]);
    let (records, joined) = case.join(&join("a", &["t"]).back(2, &["t:0", "t:1"]));
    assert_eq!(
        (records, joined.epoch, joined.resumed),
        (vec!["assignment:g:a".to_owned()], GroupEpoch(4), true)
    );
    assert_eq!(
        case.join_error(&join("a", &["t"]).back(2, &["t:0", "t:1"])),
        fenced("a", FencedBecause::StaleEpoch { given: GroupEpoch(2), current: GroupEpoch(4) })
    );
    assert!(case.join(&join("a", &["t"]).back(4, &["t:0", "t:1"])).0.is_empty());
    // An epoch from before the life began, and one that has never been.
    case.join(&join("d", &["t"]));
    for given in [1, 3, 6] {
        assert!(matches!(
            case.join_error(&join("d", &["t"]).back(given, &[])),
            GroupError::Fenced { because: FencedBecause::StaleEpoch { .. }, .. }
        ));
    }
}

#[test]
fn who_comes_back_while_stopping_goes_on_stopping() {
    let mut case = Case::new(&[("t", 4)]);
    case.join(&join("a", &["t"]));
    case.join(&join("b", &["t"]));
    // It has not heard of the stop, or not answered.
    let (records, joined) = case.join(&join("a", &["t"]).back(1, &["t:0", "t:1", "t:2", "t:3"]));
    assert!(records.is_empty(), "{records:?}");
    assert_eq!(joined.epoch, GroupEpoch(1));
    case.is(&["epoch 2", "a @1 [t:0,1] stop [t:2,3]", "b @2 [] want [t:2,3]"]);
    // Its confirmation was lost: it is asked again, and only its answer counts.
    assert!(case.join(&join("a", &["t"]).back(1, &["t:0", "t:1"])).0.is_empty());
    case.is(&["epoch 2", "a @1 [t:0,1] stop [t:2,3]", "b @2 [] want [t:2,3]"]);
    case.confirm("a", 1, &["t:2", "t:3"]);
    case.is(&["epoch 2", "a @2 [t:0,1]", "b @2 [t:2,3]"]);
    // The push of that may be lost too: the epoch is the one before the current.
    assert_eq!(case.join(&join("a", &["t"]).back(1, &["t:0", "t:1"])).1.epoch, GroupEpoch(2));
}

#[test]
fn who_claims_what_it_does_not_hold_is_fenced() {
    let mut case = two_members();
    assert_eq!(
        case.join_error(&join("a", &["t"]).back(2, &["t:0", "t:2"])),
        fenced("a", FencedBecause::NotItsPartitions { current: GroupEpoch(2) })
    );
    assert_eq!(case.join_error(&join("x", &["t"]).back(2, &[])), fenced("x", FencedBecause::UnknownMember));
    case.remove("a", Removal::PollTimeout);
    assert_eq!(
        case.join_error(&join("a", &["t"]).back(2, &["t:0", "t:1"])),
        fenced("a", FencedBecause::UnknownMember)
    );
}

#[test]
fn a_new_start_under_the_same_id_fences_the_life_before() {
    let mut case = two_members();
    let (_, joined) = case.join(&join("a", &["t"]));
    assert_eq!(joined, Joined { epoch: GroupEpoch(3), resumed: false, replaced: Some(member("a")) });
    case.is(&["epoch 3", "a @3 [t:0,1]", "b @3 [t:2,3]"]);
    assert_eq!(
        case.join_error(&join("a", &["t"]).back(2, &["t:0", "t:1"])),
        fenced("a", FencedBecause::StaleEpoch { given: GroupEpoch(2), current: GroupEpoch(3) })
    );
}

#[test]
fn a_new_start_lets_go_of_what_was_to_be_stopped() {
    let mut case = Case::new(&[("t", 4)]);
    case.join(&join("a", &["t"]));
    case.join(&join("b", &["t"]));
    case.join(&join("a", &["t"]));
    case.is(&["epoch 3", "a @3 [t:0,1]", "b @3 [t:2,3]"]);
}

#[test]
fn a_static_member_comes_back_without_a_rebalance() {
    let mut case = Case::new(&[("t", 4)]);
    case.join(&join("a1", &["t"]).instance("a"));
    case.join(&join("b", &["t"]));
    case.confirm("a1", 1, &["t:2", "t:3"]);
    assert_eq!(case.remove("a1", Removal::Leave { for_good: false }), (vec![], false));
    let (records, joined) = case.join(&join("a2", &["t"]).instance("a"));
    assert_eq!(joined, Joined { epoch: GroupEpoch(2), resumed: false, replaced: Some(member("a1")) });
    assert!(!records.iter().any(|key| key == "group:g" || key.ends_with(":b")), "{records:?}");
    case.is(&["epoch 2", "a2 @2 [t:0,1]", "b @2 [t:2,3]"]);
    assert_eq!(
        case.join_error(&join("a1", &["t"]).instance("a").back(2, &["t:0"])),
        fenced("a1", FencedBecause::UnknownMember)
    );
    // With another subscription it is a change like any other.
    let (_, joined) = case.join(&join("a3", &["t", "u"]).instance("a"));
    assert_eq!((joined.epoch, joined.replaced), (GroupEpoch(3), Some(member("a2"))));
    // For good.
    assert!(case.remove("a3", Removal::Leave { for_good: true }).1);
    case.is(&["epoch 4", "b @4 [t:0,1,2,3]"]);
}

#[test]
fn a_static_member_that_comes_back_lets_go_of_what_was_to_be_stopped() {
    let mut case = Case::new(&[("t", 4)]);
    case.join(&join("a1", &["t"]).instance("a"));
    case.join(&join("b", &["t"]));
    case.join(&join("a2", &["t"]).instance("a"));
    case.is(&["epoch 2", "a2 @2 [t:0,1]", "b @2 [t:2,3]"]);
}

#[test]
fn an_instance_is_part_of_a_membership() {
    let mut case = Case::new(&[("t", 2)]);
    case.join(&join("a", &["t"]).instance("i"));
    assert_eq!(
        case.join_error(&join("a", &["t"]).instance("j").back(1, &["t:0", "t:1"])),
        GroupError::OtherInstance {
            group: group(),
            member: member("a"),
            joined_as: Some("i".parse().unwrap())
        }
    );
    case.join(&join("a", &["t"]).instance("j"));
    let (_, joined) = case.join(&join("b", &["t"]).instance("i"));
    assert_eq!(joined.replaced, None, "nobody is i any more");
}

#[test]
fn leaving_frees_at_once_and_only_once() {
    let mut case = two_members();
    assert!(case.remove("a", Removal::Leave { for_good: false }).1, "not a static member");
    case.is(&["epoch 3", "b @3 [t:0,1,2,3]"]);
    assert_eq!(case.remove("a", Removal::SessionTimeout), (vec![], false));
    case.commit("b", 3, &["t:0"]);
    let (records, _) = case.remove("b", Removal::SessionTimeout);
    assert_eq!(records, ["group:g", "topics:g", "member:g:b", "target:g:b", "assignment:g:b"]);
    case.is(&["epoch 4"]);
    // The epochs go on.
    assert_eq!(case.join(&join("a", &["t"])).1.epoch, GroupEpoch(5));
}

const FORGOTTEN: [&str; 6] = ["member:g:b", "target:g:b", "assignment:g:b", "topics:g", "group:g", "epochs"];

#[test]
fn a_group_that_never_committed_goes_with_its_last_member_and_its_epochs_do_not_come_again() {
    for why in [Removal::Leave { for_good: false }, Removal::SessionTimeout, Removal::PollTimeout] {
        let mut case = two_members();
        case.remove("a", why);
        assert!(case.groups.contains(&group()), "somebody is in it");
        assert_eq!(case.remove("b", why), (FORGOTTEN.map(str::to_owned).to_vec(), true));
        assert!(!case.groups.contains(&group()), "{why:?}");
        assert_eq!(case.groups.outdated(&case.topics), []);
        // Whoever was in the earlier one is nobody in the later one, under whichever epoch.
        assert_eq!(case.join(&join("a", &["t"])).1.epoch, GroupEpoch(4));
        for epoch in 1..=3 {
            let because = FencedBecause::StaleEpoch { given: GroupEpoch(epoch), current: GroupEpoch(4) };
            assert_eq!(case.join_error(&join("a", &["t"]).back(epoch, &[])), fenced("a", because));
        }
        // So it is for another group of the shard, and after a deletion.
        let other = Join { group: "other".parse().unwrap(), ..join("a", &["t"]) };
        assert_eq!(case.join(&other).1.epoch, GroupEpoch(4));
        case.commit("a", 4, &["t:0"]);
        case.remove("a", why);
        let decision = case.groups.delete_group(&group()).expect("nobody is in it");
        apply(&mut case.groups, decision);
        assert_eq!(case.join(&join("a", &["t"])).1.epoch, GroupEpoch(6));
    }
}

#[test]
fn a_static_member_keeps_its_group_until_its_session_is_over() {
    let mut case = Case::new(&[("t", 1)]);
    case.join(&join("a", &["t"]).instance("i"));
    assert_eq!(case.remove("a", Removal::Leave { for_good: false }), (vec![], false));
    assert!(case.groups.contains(&group()));
    case.remove("a", Removal::SessionTimeout);
    assert!(!case.groups.contains(&group()));
}

#[test]
fn a_group_that_nobody_is_in_goes_with_its_last_offset() {
    let empty = || {
        let mut case = Case::new(&[("t", 1), ("u", 1)]);
        case.join(&join("a", &["t", "u"]));
        case.commit("a", 1, &["t:0", "u:0"]);
        case.remove("a", Removal::Leave { for_good: false });
        case.is(&["epoch 2"]);
        case
    };
    // Their topics are deleted.
    let mut case = empty();
    case.topics.delete("t");
    assert_eq!(case.topics_changed(), ["offset:g:t:0"]);
    assert!(case.groups.contains(&group()), "an offset keeps it");
    case.topics.delete("u");
    assert_eq!(case.groups.outdated(&case.topics), [group()]);
    assert_eq!(case.topics_changed(), ["group:g", "epochs", "offset:g:u:0"]);
    assert!(!case.groups.contains(&group()));
    // They are taken away, by a commit or by an import.
    let mut case = empty();
    let (group_of, topics) = (group(), case.topics.clone());
    let taken = |name: &str| CommitOffset { offset: None, ..offset(&topics, name, 0) };
    let by = Committer::Outside;
    let commit =
        Commit { group: &group_of, by, keeps_place: false, offsets: vec![taken("t:0"), taken("u:0")] };
    let decision = case.groups.commit(commit, at(2)).expect("nobody is in it");
    assert_eq!(apply(&mut case.groups, decision).0, ["offset:g:t:0", "offset:g:u:0", "group:g", "epochs"]);
    assert_eq!(case.groups.names().count(), 0);
    let mut case = empty();
    let none = |name: &str| ImportOffset { topic: topic(name), partition: PartitionIndex(0), value: None };
    let offsets = vec![none("t"), none("u")];
    let import = Import { group: &group_of, to: ImportTo::NoMembers, offsets };
    let decision = case.groups.import_offsets(import).expect("nobody is in it");
    assert_eq!(apply(&mut case.groups, decision).0, ["offset:g:t:0", "offset:g:u:0", "group:g", "epochs"]);
    assert_eq!(case.groups.names().count(), 0);
}

#[test]
fn what_a_server_that_let_such_groups_stay_has_left_goes_after_loading() {
    let mut case = Case::new(&[("t", 1)]);
    let value = GroupValue { epoch: GroupEpoch(7), assignor: Assignor::default() };
    case.groups.replay(GroupRecord::Group { group: group(), value: Some(value) });
    assert_eq!(case.groups.outdated(&case.topics), [group()]);
    assert_eq!(case.topics_changed(), ["group:g", "epochs"]);
    assert!(!case.groups.contains(&group()));
    assert_eq!(case.join(&join("a", &["t"])).1.epoch, GroupEpoch(8));
}

#[test]
fn several_that_are_removed_together_cost_one_epoch() {
    let mut case = two_members();
    case.join(&join("c", &["t"]).instance("i"));
    case.join(&join("d", &["t"]));
    case.is(&[
        "epoch 4",
        "a @3 [t:0] stop [t:1]",
        "b @2 [t:2] stop [t:3]",
        "c @4 [] want [t:3]",
        "d @4 [] want [t:1]",
    ]);
    let (a, c, d, nobody) = (member("a"), member("c"), member("d"), member("nobody"));
    let removed = [
        (&a, Removal::SessionTimeout),
        (&nobody, Removal::SessionTimeout),
        (&c, Removal::Leave { for_good: false }),
        (&d, Removal::PollTimeout),
    ];
    let decision = case.groups.remove_members(&group(), &removed, &case.topics);
    let (records, ended) = apply(&mut case.groups, decision);
    assert_eq!(ended, 2, "a static member stays when it leaves for a while");
    assert_eq!(records.iter().filter(|key| *key == "group:g").count(), 1);
    case.is(&["epoch 5", "b @2 [t:2] stop [t:3] want [t:1]", "c @5 [t:0] want [t:3]"]);
    let decision = case.groups.remove_members(&group(), &[(&a, Removal::PollTimeout)], &case.topics);
    assert_eq!(apply(&mut case.groups, decision), (vec![], 0));
}

#[test]
fn another_subscription_makes_another_target() {
    let mut case = Case::new(&[("t", 2), ("u", 2)]);
    case.join(&join("a", &["t"]));
    case.join(&join("a", &["t", "u"]).back(1, &["t:0", "t:1"]));
    case.is(&["epoch 2", "a @2 [t:0,1 u:0,1]"]);
    case.join(&join("a", &["u"]).back(2, &["t:0", "t:1"]));
    case.is(&["epoch 3", "a @2 [u:0,1] stop [t:0,1]"]);
    // What is to be stopped comes back only after it has been.
    case.join(&join("a", &["t", "u"]).back(2, &["t:1", "u:0"]));
    case.is(&["epoch 4", "a @2 [u:0,1] stop [t:0,1] want [t:0,1]"]);
    case.confirm("a", 2, &["t:1", "t:0"]);
    case.is(&["epoch 4", "a @4 [t:0,1 u:0,1]"]);
}

#[test]
fn the_choice_of_most_members_counts() {
    let mut case = Case::new(&[("t", 2)]);
    case.join(&join("a", &["t"]));
    let assignor = |case: &Case| case.groups.describe(&group()).unwrap().assignor;
    assert_eq!(assignor(&case), Assignor::Sticky);
    case.join(&join("b", &["t"]).by(Assignor::RoundRobin));
    assert_eq!(assignor(&case), Assignor::RoundRobin);
    case.join(&join("c", &["t"]).by(Assignor::Range));
    assert_eq!(assignor(&case), Assignor::Range);
    case.join(&join("d", &["t"]).by(Assignor::RoundRobin));
    assert_eq!(assignor(&case), Assignor::RoundRobin);
}

#[test]
fn topics_come_grow_and_go() {
    let mut case = Case::new(&[("__x", 1)]);
    case.join(&join("a", &["later"]).prefix("logs-"));
    case.join(&join("b", &["__x"]).prefix("_"));
    case.is(&["epoch 2", "a @2 []", "b @2 [__x:0]"]);
    assert!(case.groups.outdated(&case.topics).is_empty());
    case.topics.make("logs-1", 1);
    case.topics.make("logs-2", 1);
    case.topics.make("unrelated", 1);
    case.topics.make("later", 1);
    assert_eq!(case.groups.outdated(&case.topics), [group()]);
    case.topics_changed();
    case.is(&["epoch 3", "a @3 [later:0 logs-1:0 logs-2:0]", "b @3 [__x:0]"]);
    assert!(case.groups.outdated(&case.topics).is_empty());
    case.topics.grow("logs-1", 2);
    case.topics_changed();
    case.is(&["epoch 4", "a @4 [later:0 logs-1:0,1 logs-2:0]", "b @4 [__x:0]"]);
    case.topics.delete("logs-1");
    case.topics_changed();
    case.is(&["epoch 5", "a @4 [later:0 logs-2:0] stop [logs-1:0,1]", "b @5 [__x:0]"]);
    assert!(case.topics_changed().is_empty());
}

/// The partitions of a topic that are later than the group's subscription to it.
fn later(case: &Case, name: &str) -> Vec<u32> {
    let (id, partitions) = case.topics.topics[&topic(name)];
    let is_later = |index: &u32| case.groups.is_later(&group(), &topic(name), id, PartitionIndex(*index));
    (0..partitions).filter(is_later).collect()
}

#[test]
fn what_is_made_while_somebody_is_subscribed_is_later() {
    let mut case = Case::new(&[("t", 2), ("u", 2), ("logs-1", 1)]);
    case.join(&join("a", &["t", "made-later"]).prefix("logs-"));
    assert_eq!((later(&case, "t"), later(&case, "logs-1")), (vec![], vec![]));
    case.topics.grow("t", 3);
    case.topics.make("logs-2", 1);
    // Whoever comes first: a member, or the news of the topics.
    case.join(&join("b", &["t", "u"]));
    case.topics.make("made-later", 2);
    case.topics.grow("t", 4);
    case.topics_changed();
    let expected: [(&str, &[u32]); 5] =
        [("t", &[2, 3]), ("u", &[]), ("logs-1", &[]), ("logs-2", &[0]), ("made-later", &[0, 1])];
    for (name, expected) in expected {
        assert_eq!(later(&case, name), expected, "{name}");
    }
    case.topics.make("u", 2);
    case.topics_changed();
    assert_eq!(later(&case, "u"), [0, 1], "another of that name");
    // Nobody is subscribed any more: who comes then finds what there is.
    case.remove("a", Removal::SessionTimeout);
    case.remove("b", Removal::SessionTimeout);
    assert_eq!(later(&case, "t"), [] as [u32; 0]);
    case.join(&join("c", &["t"]));
    assert_eq!(later(&case, "t"), [] as [u32; 0]);
    case.topics.grow("t", 5);
    case.topics_changed();
    assert_eq!(later(&case, "t"), [4]);
}

#[test]
fn a_topic_made_again_is_another() {
    let mut case = two_members();
    case.topics.make("t", 4);
    assert_eq!(case.groups.outdated(&case.topics), [group()]);
    case.topics_changed();
    case.is(&["epoch 3", "a @2 [] stop [t:0,1] want [t:0,2]", "b @2 [] stop [t:2,3] want [t:1,3]"]);
    // Nobody is granted what another still reads under the same name.
    case.confirm("a", 2, &["t:0", "t:1"]);
    case.is(&["epoch 3", "a @3 [t:0] want [t:2]", "b @2 [] stop [t:2,3] want [t:1,3]"]);
    case.confirm("b", 2, &["t:2", "t:3"]);
    case.is(&["epoch 3", "a @3 [t:0,2]", "b @3 [t:1,3]"]);
}

#[test]
fn bounds_are_errors_that_name_them() {
    let mut case = Case::new(&[("t", 1)]);
    assert!(matches!(case.join_error(&join("a", &[])), GroupError::NoSubscription { .. }));
    let mut long = join("a", &["t"]);
    long.client_id = "x".repeat(250);
    assert_eq!(
        case.join_error(&long).to_string(),
        "bytes of a client id of group g would be 250; the limit is 249"
    );
    let many: Vec<_> = (0..1001).map(|at| format!("t{at}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert!(case.join_error(&join("a", &many)).to_string().contains("the limit is 1000"));
    for at in 0..1000 {
        case.join(&join(&format!("m{at}"), &["t"]).instance(&format!("i{at}")));
    }
    assert_eq!(
        case.join_error(&join("a", &["t"])).to_string(),
        "members of group g would be 1001; the limit is 1000"
    );
    // Coming back is not coming.
    case.join(&join("m7", &["t"]).instance("i7"));
    case.join(&join("a", &["t"]).instance("i8"));
}

#[test]
fn a_group_whose_epochs_are_used_up_takes_nobody_in_and_lets_everybody_go() {
    let mut case = Case::new(&[("t", 2)]);
    case.join(&join("a", &["t"]));
    case.join(&join("b", &["t"]));
    case.confirm("a", 1, &["t:1"]);
    let mut value = case.groups.groups[&group()].meta.clone().unwrap();
    value.epoch = GroupEpoch(u32::MAX);
    case.groups.replay(GroupRecord::Group { group: group(), value: Some(value) });
    assert_eq!(case.join_error(&join("c", &["t"])), GroupError::EpochsUsedUp { group: group() });
    case.remove("a", Removal::SessionTimeout);
    case.is(&["epoch 4294967295", "b @4294967295 [t:0,1]"]);
    // A group that began under this name would have no epoch to begin with: it stays, until it is deleted.
    case.remove("b", Removal::SessionTimeout);
    case.is(&["epoch 4294967295"]);
    let decision = case.groups.delete_group(&group()).expect("nobody is in it");
    apply(&mut case.groups, decision);
    assert_eq!(case.join(&join("a", &["t"])).1.epoch, GroupEpoch(1));
}

/// One group cannot use up the epochs of all that begin later in its shard.
#[test]
fn what_goes_leaves_half_of_the_epochs_to_others() {
    let half = GroupEpoch(1 << 31);
    for (at, next) in [(half, half.next().unwrap()), (half.next().unwrap(), GroupEpoch(1))] {
        let mut case = Case::new(&[("t", 2)]);
        case.join(&join("a", &["t"]));
        let mut value = case.groups.groups[&group()].meta.clone().unwrap();
        value.epoch = at;
        case.groups.replay(GroupRecord::Group { group: group(), value: Some(value) });
        // Of itself it only goes where a later member of its name can be told from its own.
        let goes = &case.groups.groups[&group()];
        assert_eq!(goes.goes_with(0, 0), at == half);
        let records = case.groups.forget(&group(), goes);
        records.into_iter().for_each(|record| case.groups.replay(record));
        assert_eq!(case.join(&join("b", &["t"])).1.epoch, next, "behind {at}");
    }
}
