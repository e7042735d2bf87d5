//! Groups that go: those that nobody is in and that have no offsets, and those that are deleted. A group with an
//! offset stays, however long nobody is in it.
//!
//! Their epochs do not come again. A group that begins later, perhaps under the same name, begins behind them; so
//! a member of the earlier one that comes back late is fenced, and is not taken for one of the later group.

use rimstone_types::{GroupEpoch, GroupName};

use super::{
    record::{EpochsValue, GroupRecord},
    state::{Group, Groups},
};

/// The highest epoch that is noted for all that begin later in the shard: half of them all, more joins than any
/// server will see. One group cannot leave the others of its shard without epochs.
const NOTED_MAX: GroupEpoch = GroupEpoch(1 << 31);

impl Group {
    /// Whether it goes when this many members and offsets are left. With an epoch that is not noted it stays: no
    /// group of its name begins in which a late member could be mistaken for another.
    pub(super) fn goes_with(&self, members: usize, offsets: usize) -> bool {
        members == 0 && offsets == 0 && self.epoch() <= NOTED_MAX
    }

    /// Whether nothing keeps it: a server that let such groups stay has left it.
    pub(super) fn is_deserted(&self) -> bool {
        self.goes_with(self.live_count(), self.offset_count)
    }
}

impl Groups {
    /// The records that forget a group, its offsets excepted.
    pub(super) fn forget(&self, name: &GroupName, group: &Group) -> Vec<GroupRecord> {
        let mut records: Vec<_> =
            group.members.keys().flat_map(|id| GroupRecord::forget_member(name, id)).collect();
        if !group.topics.is_empty() {
            records.push(GroupRecord::Topics { group: name.clone(), value: None });
        }
        if group.meta.is_some() {
            records.push(GroupRecord::Group { group: name.clone(), value: None });
        }
        if group.epoch() > self.epochs_used && group.epoch() <= NOTED_MAX {
            records.push(GroupRecord::Epochs { value: Some(EpochsValue { used: group.epoch() }) });
        }
        records
    }

    /// The epoch behind which a group goes on, or begins.
    pub(super) fn last_epoch(&self, group: &Group) -> GroupEpoch {
        group.meta.as_ref().map_or(self.epochs_used, |meta| meta.epoch)
    }
}
