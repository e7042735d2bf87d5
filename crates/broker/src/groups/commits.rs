//! What groups have committed and who owns what, as far as it is durable: the table that lag and metrics read
//! without asking a coordinator. Not here: metadata of offsets, members that own nothing (`coordinator`).

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;
use rimstone_types::{GroupName, MemberId, Offset, PartitionIndex, Timestamp, TopicId, TopicName};
use tokio::sync::watch;

/// Durable commits and owners of all groups. Changed only by the coordinator's shards, after durability; what
/// belongs to a deleted group, or to a deleted topic, is gone from it.
#[derive(Debug)]
pub(crate) struct CommitTable {
    groups: RwLock<BTreeMap<GroupName, GroupCommits>>,
    /// Goes up with every change, after the change can be read.
    version: watch::Sender<u64>,
}

/// The partitions of one group that have a committed offset or an owner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct GroupCommits {
    /// The version of the table in which this group changed last.
    pub(crate) version: u64,
    /// By topic and partition; never an empty map inside.
    pub(crate) topics: BTreeMap<TopicName, BTreeMap<PartitionIndex, PartitionCommit>>,
}

/// A committed offset, an owner, or both.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PartitionCommit {
    /// The version of the table in which this partition changed last.
    pub(crate) version: u64,
    /// `None`: nothing is committed.
    pub(crate) commit: Option<Commit>,
    /// `None`: nobody owns it at the moment.
    pub(crate) owner: Option<Arc<Owner>>,
}

/// A committed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Of which topic. If a topic of the same name has another identity now, the offset counts as none.
    pub(crate) topic_id: TopicId,
    /// The next offset to read.
    pub(crate) offset: Offset,
    /// When it was committed.
    pub(crate) time: Timestamp,
}

/// A member that owns partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Its id.
    pub(crate) member: MemberId,
    /// What it says of itself; may be empty.
    pub(crate) client_id: String,
    /// Where it connects from; may be empty.
    pub(crate) host: String,
}

/// Partitions of a group by owner, as a whole.
pub(crate) type Owners = BTreeMap<TopicName, BTreeMap<PartitionIndex, Arc<Owner>>>;

/// A change that has become durable.
#[derive(Debug, Clone)]
pub(crate) enum CommitChange {
    /// An offset was committed (`Some`) or taken away (`None`).
    Offset { group: GroupName, topic: TopicName, partition: PartitionIndex, commit: Option<Commit> },
    /// Who owns what now: whoever is not named owns nothing.
    Owners { group: GroupName, owners: Owners },
}

impl Default for CommitTable {
    fn default() -> Self {
        Self { groups: RwLock::default(), version: watch::Sender::new(0) }
    }
}

impl CommitTable {
    /// Reads the table. Short work only: changes wait for it.
    pub(crate) fn read<T>(&self, work: impl FnOnce(&BTreeMap<GroupName, GroupCommits>) -> T) -> T {
        work(&self.groups.read())
    }

    /// What is known of one group; `None` if it has neither offsets nor owners.
    #[cfg(test)]
    pub(crate) fn group(&self, group: &GroupName) -> Option<GroupCommits> {
        self.groups.read().get(group).cloned()
    }

    /// Resolves on changes; its value is the version.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Applies changes, all of them before the version goes up.
    pub(crate) fn apply(&self, changes: impl IntoIterator<Item = CommitChange>) {
        let mut groups = self.groups.write();
        let version = *self.version.borrow() + 1;
        let mut changed = false;
        for change in changes {
            changed = true;
            let group = change.group().clone();
            let entry = groups.entry(group.clone()).or_default();
            entry.apply(change, version);
            if entry.topics.is_empty() {
                groups.remove(&group);
            }
        }
        drop(groups);
        if changed {
            self.version.send_replace(version);
        }
    }

    /// Replaces all groups for which `is_mine` holds: a shard was loaded from its log.
    pub(crate) fn replace(
        &self,
        is_mine: impl Fn(&GroupName) -> bool,
        loaded: impl IntoIterator<Item = CommitChange>,
    ) {
        let mut groups = self.groups.write();
        let version = *self.version.borrow() + 1;
        let mut before = std::mem::take(&mut *groups);
        let mut after: BTreeMap<GroupName, GroupCommits> = BTreeMap::new();
        for change in loaded {
            after.entry(change.group().clone()).or_default().apply(change, version);
        }
        after.retain(|_, commits| !commits.topics.is_empty());
        before.retain(|group, _| !is_mine(group));
        before.append(&mut after);
        *groups = before;
        drop(groups);
        self.version.send_replace(version);
    }
}

impl CommitChange {
    fn group(&self) -> &GroupName {
        let (Self::Offset { group, .. } | Self::Owners { group, .. }) = self;
        group
    }
}

impl GroupCommits {
    fn apply(&mut self, change: CommitChange, version: u64) {
        self.version = version;
        match change {
            CommitChange::Offset { topic, partition, commit: Some(commit), .. } => {
                let entry = self.topics.entry(topic).or_default().entry(partition).or_default();
                (entry.commit, entry.version) = (Some(commit), version);
            }
            CommitChange::Offset { topic, partition, commit: None, .. } => {
                let Some(partitions) = self.topics.get_mut(&topic) else { return };
                match partitions.get_mut(&partition) {
                    Some(entry) if entry.owner.is_some() => (entry.commit, entry.version) = (None, version),
                    Some(_) => drop(partitions.remove(&partition)),
                    None => {}
                }
                if partitions.is_empty() {
                    self.topics.remove(&topic);
                }
            }
            CommitChange::Owners { owners, .. } => self.own(owners, version),
        }
    }

    fn own(&mut self, owners: Owners, version: u64) {
        self.topics.retain(|topic, partitions| {
            partitions.retain(|partition, entry| {
                entry.own(owners.get(topic).and_then(|owners| owners.get(partition)), version);
                entry.commit.is_some() || entry.owner.is_some()
            });
            !partitions.is_empty()
        });
        for (topic, owned) in owners {
            for (partition, owner) in owned {
                let partitions = self.topics.entry(topic.clone()).or_default();
                partitions.entry(partition).or_default().own(Some(&owner), version);
            }
        }
    }
}

impl PartitionCommit {
    fn own(&mut self, owner: Option<&Arc<Owner>>, version: u64) {
        if self.owner.as_ref() != owner {
            self.owner = owner.cloned();
            self.version = version;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str) -> GroupName {
        name.parse().unwrap()
    }

    fn topic(name: &str) -> TopicName {
        name.parse().unwrap()
    }

    fn offset(name: &str, partition: u32, offset: Option<u64>) -> CommitChange {
        let commit = |offset| Commit {
            topic_id: TopicId::CATALOG,
            offset: Offset::new(offset).unwrap(),
            time: Timestamp(7),
        };
        CommitChange::Offset {
            group: group(name),
            topic: topic("t"),
            partition: PartitionIndex(partition),
            commit: offset.map(commit),
        }
    }

    fn owned(name: &str, owned: &[(u32, &str)]) -> CommitChange {
        let owner = |member: &str| {
            let member = member.parse().unwrap();
            Arc::new(Owner { member, client_id: String::new(), host: String::new() })
        };
        let partitions: BTreeMap<_, _> =
            owned.iter().map(|(partition, member)| (PartitionIndex(*partition), owner(member))).collect();
        let owners = if partitions.is_empty() { Owners::new() } else { [(topic("t"), partitions)].into() };
        CommitChange::Owners { group: group(name), owners }
    }

    fn entry(table: &CommitTable, name: &str, partition: u32) -> Option<PartitionCommit> {
        table.group(&group(name))?.topics.get(&topic("t"))?.get(&PartitionIndex(partition)).cloned()
    }

    #[test]
    fn what_has_neither_offset_nor_owner_is_gone() {
        let table = CommitTable::default();
        table.apply([offset("g", 0, Some(5)), owned("g", &[(0, "m"), (1, "m")])]);
        let zero = entry(&table, "g", 0).unwrap();
        assert_eq!((zero.commit.unwrap().offset.get(), zero.owner.is_some()), (5, true));
        table.apply([owned("g", &[(1, "n")])]);
        assert_eq!(entry(&table, "g", 0).unwrap().owner, None, "it owns nothing any more");
        assert_eq!(entry(&table, "g", 1).unwrap().owner.unwrap().member.as_str(), "n");
        table.apply([offset("g", 0, None)]);
        assert_eq!(entry(&table, "g", 0), None);
        table.apply([owned("g", &[])]);
        assert_eq!(table.group(&group("g")), None);
    }

    #[test]
    fn versions_tell_what_changed() {
        let table = CommitTable::default();
        let mut seen = table.subscribe();
        table.apply([offset("g", 0, Some(5)), owned("g", &[(0, "m")]), offset("h", 0, Some(1))]);
        assert!(seen.has_changed().unwrap());
        let first = *seen.borrow_and_update();
        assert_eq!(entry(&table, "g", 0).unwrap().version, first);
        table.apply([owned("g", &[(0, "m")]), offset("g", 1, Some(1))]);
        let second = *seen.borrow_and_update();
        assert_eq!(entry(&table, "g", 0).unwrap().version, first, "the same owner is no change");
        assert_eq!(entry(&table, "g", 1).unwrap().version, second);
        assert_eq!(table.group(&group("h")).unwrap().version, first);
        table.apply([]);
        assert!(!seen.has_changed().unwrap());
    }

    #[test]
    fn loading_replaces_one_shards_groups() {
        let table = CommitTable::default();
        table.apply([offset("mine", 0, Some(5)), offset("mine-2", 0, Some(1)), offset("other", 0, Some(9))]);
        table.replace(|group| group.as_str().starts_with("mine"), [offset("mine", 0, Some(6))]);
        assert_eq!(entry(&table, "mine", 0).unwrap().commit.unwrap().offset.get(), 6);
        assert_eq!(table.group(&group("mine-2")), None);
        assert!(entry(&table, "other", 0).is_some());
    }
}
