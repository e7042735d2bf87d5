//! From the state of a shard to lines of the commit table.

use std::sync::Arc;

use rimstone_state::group::{Groups, OffsetValue, Topics};
use rimstone_types::GroupName;

use crate::groups::{Commit, CommitChange, Owner, Owners};

impl Commit {
    pub(super) fn of(value: &OffsetValue) -> Self {
        Self { topic_id: value.topic_id, offset: value.offset, time: value.commit_time_ms }
    }
}

/// Who holds what in a group; what a member has been asked to give back is still its own.
pub(super) fn owners(groups: &Groups, group: &GroupName) -> Owners {
    let mut owners = Owners::new();
    for (member, value) in groups.members(group) {
        let Some(view) = groups.view(group, member) else { continue };
        let owner = Arc::new(Owner {
            member: member.clone(),
            client_id: value.client_id.clone(),
            host: value.host.clone(),
        });
        for (topic, _, partition) in view.assignment.owned.iter().chain(view.assignment.stopping.iter()) {
            owners.entry(topic.clone()).or_default().insert(partition, Arc::clone(&owner));
        }
    }
    owners
}

/// Everything, as it was loaded.
pub(super) fn all(groups: &Groups, topics: &dyn Topics) -> Vec<CommitChange> {
    let mut changes = Vec::new();
    for group in groups.names() {
        let offsets = groups.offsets(group, topics).map(|(topic, partition, value)| CommitChange::Offset {
            group: group.clone(),
            topic: topic.clone(),
            partition,
            commit: Some(Commit::of(value)),
        });
        changes.extend(offsets);
        changes.push(CommitChange::Owners { group: group.clone(), owners: owners(groups, group) });
    }
    changes
}
