//! Tables: commits, imports, deletion.

use rimstone_types::{GroupEpoch, Offset, PartitionIndex};

use super::common::{TestTopics, apply, at, group, join, member, offset, topic};
use crate::group::{
    Commit, CommitError, CommitOffset, Committed, Committer, FencedBecause, GroupError, Groups, Import,
    ImportOffset, ImportTo, METADATA_BYTES_MAX, OFFSETS_PER_GROUP_MAX,
};

type Results = Result<Vec<Result<Committed, CommitError>>, GroupError>;

fn commit(groups: &mut Groups, by: Committer<'_>, offsets: Vec<CommitOffset>) -> Results {
    let decision = groups.commit(Commit { group: &group(), by, keeps_place: false, offsets }, at(5))?;
    Ok(apply(groups, decision).1)
}

/// As [`commit`], by who reads under `latest`.
fn commit_keeping(groups: &mut Groups, by: Committer<'_>, offsets: Vec<CommitOffset>) -> Results {
    let decision = groups.commit(Commit { group: &group(), by, keeps_place: true, offsets }, at(5))?;
    Ok(apply(groups, decision).1)
}

fn committed(groups: &Groups, topics: &TestTopics) -> Vec<String> {
    let offsets = groups.offsets(&group(), topics);
    offsets.map(|(topic, index, value)| format!("{topic}:{index}={}", value.offset)).collect()
}

const FINE: Result<Committed, CommitError> = Ok(Committed { below_log_start: false, backwards: false });

#[test]
fn from_outside_only_while_nobody_is_in() {
    let topics = TestTopics::new(&[("t", 2)]);
    let mut groups = Groups::default();
    let results = commit(&mut groups, Committer::Outside, vec![offset(&topics, "t:0", 150)]).unwrap();
    assert_eq!(results, [FINE]);
    assert_eq!(committed(&groups, &topics), ["t:0=150"]);
    let decision = groups.join(&join("a", &["t"]), &topics, at(1)).unwrap();
    apply(&mut groups, decision);
    assert_eq!(
        commit(&mut groups, Committer::Outside, vec![offset(&topics, "t:0", 160)]),
        Err(GroupError::NotEmpty { group: group(), members: 1 })
    );
    assert_eq!(committed(&groups, &topics), ["t:0=150"]);
}

#[test]
fn a_member_commits_with_its_epoch_and_only_what_it_holds() {
    let topics = TestTopics::new(&[("t", 4)]);
    let mut groups = Groups::default();
    for id in ["a", "b"] {
        let decision = groups.join(&join(id, &["t"]), &topics, at(1)).unwrap();
        apply(&mut groups, decision);
    }
    // a @1 owns 0 and 1, is to stop 2 and 3; b @2 waits.
    let (a, b, x) = (member("a"), member("b"), member("x"));
    let all = |groups: &mut Groups, by| {
        let offsets = ["t:0", "t:2", "t:3"].map(|place| offset(&topics, place, 150));
        commit(groups, by, offsets.to_vec())
    };
    assert_eq!(all(&mut groups, Committer::Member(&a, GroupEpoch(1))).unwrap(), [FINE, FINE, FINE]);
    assert_eq!(all(&mut groups, Committer::Session(&a)).unwrap(), [FINE, FINE, FINE]);
    for by in [Committer::Member(&b, GroupEpoch(2)), Committer::Session(&b)] {
        let results = all(&mut groups, by).unwrap();
        assert!(
            results.iter().all(|result| matches!(result, Err(CommitError::NotOwned { .. }))),
            "{results:?}"
        );
    }
    for given in [0, 2] {
        let given = GroupEpoch(given);
        let because = FencedBecause::StaleEpoch { given, current: GroupEpoch(1) };
        assert_eq!(
            all(&mut groups, Committer::Member(&a, given)),
            Err(GroupError::Fenced { group: group(), member: a.clone(), because })
        );
    }
    let because = FencedBecause::UnknownMember;
    assert_eq!(
        all(&mut groups, Committer::Session(&x)),
        Err(GroupError::Fenced { group: group(), member: x.clone(), because })
    );
}

#[test]
fn a_place_in_the_log_is_kept_from_a_commit_below_it_under_latest() {
    let topics = TestTopics::new(&[("t", 2)]);
    let mut groups = Groups::default();
    let decision = groups.join(&join("a", &["t"]), &topics, at(1)).unwrap();
    apply(&mut groups, decision);
    let a = member("a");
    let mut keeping = |place: &str, at: u64| {
        let results = commit_keeping(&mut groups, Committer::Session(&a), vec![offset(&topics, place, at)]);
        (results.unwrap(), committed(&groups, &topics))
    };
    let told = |below_log_start, backwards| vec![Ok(Committed { below_log_start, backwards })];
    let is = |places: &[&str]| places.iter().map(|place| (*place).to_owned()).collect::<Vec<_>>();
    // The log is 100..200. Below it, where nothing is committed, or what is lies below too: it counts.
    assert_eq!(keeping("t:0", 50), (told(true, false), is(&["t:0=50"])));
    assert_eq!(keeping("t:0", 49), (told(true, true), is(&["t:0=49"])));
    // The place at log start, and behind it.
    for place in [100, 200] {
        keeping("t:0", place);
        assert_eq!(keeping("t:0", 99), (told(true, true), is(&[&format!("t:0={place}")])));
    }
    // Within the log it may go back.
    assert_eq!(keeping("t:0", 100), (told(false, true), is(&["t:0=100"])));
    // Only what it holds, all the same; and the place may be of the same commit.
    let both = vec![offset(&topics, "t:1", 150), offset(&topics, "t:1", 60)];
    commit_keeping(&mut groups, Committer::Session(&a), both).unwrap();
    assert_eq!(committed(&groups, &topics), ["t:0=100", "t:1=150"]);
    // Under another policy it is taken back.
    commit(&mut groups, Committer::Session(&a), vec![offset(&topics, "t:1", 60)]).unwrap();
    assert_eq!(committed(&groups, &topics), ["t:0=100", "t:1=60"]);
}

#[test]
fn each_offset_is_judged_by_itself() {
    let mut topics = TestTopics::new(&[("t", 9)]);
    let mut groups = Groups::default();
    let mut long = offset(&topics, "t:4", 150);
    long.metadata = "x".repeat(METADATA_BYTES_MAX + 1);
    let mut just_right = offset(&topics, "t:5", 150);
    just_right.metadata = "x".repeat(METADATA_BYTES_MAX);
    let offsets = vec![
        offset(&topics, "t:0", 100),
        offset(&topics, "t:1", 99),
        offset(&topics, "t:2", 200),
        offset(&topics, "t:3", 201),
        long,
        just_right,
    ];
    let results = commit(&mut groups, Committer::Outside, offsets).unwrap();
    assert_eq!(results[..3], [FINE, Ok(Committed { below_log_start: true, backwards: false }), FINE]);
    assert!(matches!(results[3], Err(CommitError::BeyondEnd { .. })));
    assert_eq!(
        results[3].as_ref().unwrap_err().to_string(),
        "offset 201 of t-3 is beyond the end: the log is 100..200"
    );
    assert!(matches!(results[4], Err(CommitError::MetadataTooLong { bytes: 4097, limit: 4096, .. })));
    assert_eq!(results[5], FINE);
    assert_eq!(committed(&groups, &topics), ["t:0=100", "t:1=99", "t:2=200", "t:5=150"]);

    // Backwards is allowed and said.
    let results = commit(&mut groups, Committer::Outside, vec![offset(&topics, "t:2", 199)]).unwrap();
    assert_eq!(results, [Ok(Committed { below_log_start: false, backwards: true })]);
    // Not over what belonged to another topic of the name.
    topics.make("t", 9);
    assert!(committed(&groups, &topics).is_empty());
    let results = commit(&mut groups, Committer::Outside, vec![offset(&topics, "t:2", 198)]).unwrap();
    assert_eq!(results, [FINE]);
    assert_eq!(committed(&groups, &topics), ["t:2=198"]);
    assert_eq!(groups.offset(&group(), &topic("t"), topics.id("t"), PartitionIndex(0)), None);
}

#[test]
fn an_offset_is_taken_away_and_the_last_one_takes_the_group_along() {
    let topics = TestTopics::new(&[("t", 2)]);
    let mut groups = Groups::default();
    commit(&mut groups, Committer::Outside, vec![offset(&topics, "t:0", 150), offset(&topics, "t:1", 150)])
        .unwrap();
    let none = |place| CommitOffset { offset: None, ..offset(&topics, place, 0) };
    commit(&mut groups, Committer::Outside, vec![none("t:0")]).unwrap();
    assert_eq!(committed(&groups, &topics), ["t:1=150"]);
    let unknown =
        Commit { group: &group(), by: Committer::Outside, keeps_place: false, offsets: vec![none("t:0")] };
    assert!(groups.commit(unknown, at(5)).unwrap().records.is_empty(), "nothing was there");
    // Named twice: the last counts.
    commit(&mut groups, Committer::Outside, vec![none("t:1"), offset(&topics, "t:1", 160)]).unwrap();
    assert_eq!(committed(&groups, &topics), ["t:1=160"]);
    commit(&mut groups, Committer::Outside, vec![offset(&topics, "t:0", 160), none("t:0"), none("t:1")])
        .unwrap();
    assert!(!groups.contains(&group()));
    assert_eq!(groups, Groups::default());
}

#[test]
fn offsets_of_deleted_topics_go() {
    let mut topics = TestTopics::new(&[("t", 2), ("u", 1)]);
    let mut groups = Groups::default();
    let offsets = ["t:0", "t:1", "u:0"].map(|place| offset(&topics, place, 150));
    commit(&mut groups, Committer::Outside, offsets.to_vec()).unwrap();
    assert!(groups.outdated(&topics).is_empty());
    topics.make("t", 2);
    commit(&mut groups, Committer::Outside, vec![offset(&topics, "t:1", 120)]).unwrap();
    assert_eq!(groups.outdated(&topics), [group()]);
    let decision = groups.topics_changed(&group(), &topics);
    assert_eq!(apply(&mut groups, decision).0, ["offset:g:t:0"]);
    assert!(groups.outdated(&topics).is_empty());
    assert_eq!(committed(&groups, &topics), ["t:1=120", "u:0=150"]);
}

fn import(groups: &mut Groups, to: ImportTo, offsets: Vec<ImportOffset>) -> Result<(), GroupError> {
    let decision = groups.import_offsets(Import { group: &group(), to, offsets })?;
    apply(groups, decision);
    Ok(())
}

#[test]
fn offsets_are_imported_where_nobody_is() {
    let topics = TestTopics::new(&[("t", 3)]);
    let mut groups = Groups::default();
    commit(&mut groups, Committer::Outside, vec![offset(&topics, "t:0", 150), offset(&topics, "t:1", 150)])
        .unwrap();
    let all: Vec<_> = groups
        .offsets(&group(), &topics)
        .map(|(topic, partition, value)| ImportOffset {
            topic: topic.clone(),
            partition,
            value: Some(value.clone()),
        })
        .collect();
    assert_eq!(import(&mut groups, ImportTo::New, all.clone()), Err(GroupError::Exists { group: group() }));
    let mut elsewhere = Groups::default();
    import(&mut elsewhere, ImportTo::New, all.clone()).unwrap();
    assert_eq!(elsewhere, groups);

    let mut moved = all;
    moved[0].value.as_mut().unwrap().offset = Offset::ZERO;
    moved[1].value = None;
    import(&mut groups, ImportTo::NoMembers, moved.clone()).unwrap();
    assert_eq!(committed(&groups, &topics), ["t:0=0"]);
    let decision = groups.join(&join("a", &["t"]), &topics, at(1)).unwrap();
    apply(&mut groups, decision);
    let refused = import(&mut groups, ImportTo::NoMembers, moved);
    assert_eq!(refused, Err(GroupError::NotEmpty { group: group(), members: 1 }));
}

#[test]
fn a_group_is_deleted_when_nobody_is_in() {
    let topics = TestTopics::new(&[("t", 3)]);
    let mut groups = Groups::default();
    assert_eq!(groups.delete_group(&group()), Err(GroupError::NotFound { group: group() }));
    let decision = groups.join(&join("a", &["t"]), &topics, at(1)).unwrap();
    apply(&mut groups, decision);
    let a = member("a");
    commit(&mut groups, Committer::Session(&a), vec![offset(&topics, "t:2", 150)]).unwrap();
    assert_eq!(groups.delete_group(&group()), Err(GroupError::NotEmpty { group: group(), members: 1 }));
    let decision =
        groups.remove_member(&group(), &a, crate::group::Removal::Leave { for_good: true }, &topics);
    apply(&mut groups, decision);
    assert_eq!(committed(&groups, &topics), ["t:2=150"]);
    let decision = groups.delete_group(&group()).unwrap();
    assert_eq!(apply(&mut groups, decision).0, ["offset:g:t:2", "group:g", "epochs"]);
    assert_eq!(groups.names().count(), 0);
}

#[test]
fn offsets_of_a_group_are_bounded() {
    let topics = TestTopics::new(&[("t", 20_000)]);
    let mut groups = Groups::default();
    let many =
        |range: std::ops::Range<usize>| range.map(|at| offset(&topics, &format!("t:{at}"), 150)).collect();
    let results = commit(&mut groups, Committer::Outside, many(0..OFFSETS_PER_GROUP_MAX + 2)).unwrap();
    assert!(results[..OFFSETS_PER_GROUP_MAX].iter().all(Result::is_ok));
    assert!(
        results[OFFSETS_PER_GROUP_MAX..]
            .iter()
            .all(|result| matches!(result, Err(CommitError::TooMany { .. })))
    );
    // Over what is there it goes on.
    let results = commit(&mut groups, Committer::Outside, many(0..3)).unwrap();
    assert_eq!(results, [FINE, FINE, FINE]);

    let mut big = Groups::default();
    let offsets: Vec<_> = (0..5_000)
        .map(|at| {
            let mut offset = offset(&topics, &format!("t:{at}"), 150);
            offset.metadata = "\u{1}".repeat(METADATA_BYTES_MAX);
            offset
        })
        .collect();
    let refused = commit(&mut big, Committer::Outside, offsets).unwrap_err().to_string();
    assert!(refused.starts_with("bytes of offsets in one decision of group g would be"), "{refused}");
}

#[test]
fn the_estimate_of_a_decision_is_above_what_it_takes() {
    let topics = TestTopics::new(&[("t", 1)]);
    let groups = Groups::default();
    let mut worst = offset(&topics, "t:0", 0);
    worst.partition = PartitionIndex(u32::MAX);
    worst.offset = Some(Offset::MAX);
    worst.ends.durable = Offset::MAX;
    worst.leader_epoch = Some(u32::MAX);
    worst.metadata = "\u{1}\"ä".to_owned();
    let decision = groups
        .commit(
            Commit { group: &group(), by: Committer::Outside, keeps_place: false, offsets: vec![worst] },
            at(i64::MIN),
        )
        .unwrap();
    let (key, value) = decision.records[0].encode();
    let framing = 20;
    let taken = key.len() + value.unwrap().len() + framing;
    let metadata = 6 + 2 + 2;
    let estimate = super::super::offsets::OFFSET_BYTES + "g".len() + "t".len() + metadata;
    assert!(taken <= estimate, "{taken} > {estimate}");
}
