//! The largest decision there can be fits one batch.

use rimstone_types::{GroupName, MemberId};

use super::common::{TestTopics, apply, at, join, offset};
use crate::group::{
    Assignor, Commit, Committer, DECISION_BYTES_MAX, GroupRecord, Groups, MEMBERS_MAX, OFFSETS_PER_GROUP_MAX,
};

/// Length, time, offset and the lengths of key and value of a record in a batch, at most.
const FRAMING: usize = 30;

fn bytes(records: &[GroupRecord]) -> usize {
    let bytes = records.iter().map(|record| {
        let (key, value) = record.encode();
        FRAMING + key.len() + value.map_or(0, |value| value.len())
    });
    bytes.sum()
}

#[test]
fn the_largest_decision_fits_a_batch() {
    // As many topics as a server has partitions, with the longest names, and all of them made anew: every
    // member gives everything back, the target is another, and the offsets go.
    let names: Vec<_> = (0..OFFSETS_PER_GROUP_MAX).map(|at| format!("{}{at:05}", "x".repeat(244))).collect();
    let each_one: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let mut topics = TestTopics::new(&each_one);
    let group: GroupName = "g".repeat(249).parse().unwrap();
    let mut groups = Groups::default();
    let places = names.iter().map(|name| offset(&topics, &format!("{name}:0"), 150)).collect();
    let commit = Commit { group: &group, by: Committer::Outside, keeps_place: false, offsets: places };
    let decision = groups.commit(commit, at(1)).unwrap();
    assert!(bytes(&decision.records) < DECISION_BYTES_MAX);
    apply(&mut groups, decision);
    let members = 4;
    for member in 0..members {
        let mut join = join("m", &[]).prefix("x").by(Assignor::RoundRobin);
        join.group = group.clone();
        join.member = format!("{}{member}", "m".repeat(248)).parse::<MemberId>().unwrap();
        let decision = groups.join(&join, &topics, at(1)).unwrap();
        assert!(bytes(&decision.records) < DECISION_BYTES_MAX);
        apply(&mut groups, decision);
    }
    for (name, partitions) in each_one {
        topics.make(name, partitions);
    }
    let decision = groups.topics_changed(&group, &topics);
    let taken = bytes(&decision.records);
    // More members share the same partitions: each costs the keys and the frames of its records.
    let per_member = 3 * (FRAMING + 2 * 249 + 150);
    let most = taken + (MEMBERS_MAX - members) * per_member;
    assert!(taken > 10 << 20, "{taken} bytes: the case is not what it was made for");
    assert!(most < DECISION_BYTES_MAX, "{most} bytes");
}
