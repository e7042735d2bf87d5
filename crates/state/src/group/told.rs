//! What the client of a member has been told: turns views, of which some may have been passed over, into
//! starts and stops.

use std::collections::{BTreeMap, BTreeSet};

use rimstone_types::{GroupEpoch, PartitionIndex, TopicName};

use super::{partitions::Partitions, query::MemberView};

/// What one session has told its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    epoch: GroupEpoch,
    /// What the client reads, as far as this session knows: claimed when it came, or started; not yet stopped.
    reads: BTreeSet<(TopicName, PartitionIndex)>,
    /// What it was told to stop, with the epoch of then: told at a later epoch, it is another stop.
    stops: BTreeMap<(TopicName, PartitionIndex), GroupEpoch>,
}

/// What is new to the client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ToTell {
    /// The member's epoch.
    pub epoch: GroupEpoch,
    /// To be told first. Only the client's answer confirms a stop, so it is told also what this session has
    /// never started; it answers at once for what it does not read.
    pub stop: Vec<(TopicName, PartitionIndex)>,
    /// From now on the member's.
    pub start: Vec<(TopicName, PartitionIndex)>,
}

impl Told {
    /// A session whose join was answered with an epoch; `claimed` is what the client said that it reads, and
    /// nothing for one that does not go on with what it had.
    pub fn new(epoch: GroupEpoch, claimed: impl IntoIterator<Item = (TopicName, PartitionIndex)>) -> Self {
        Self { epoch, reads: claimed.into_iter().collect(), stops: BTreeMap::new() }
    }

    /// The epoch that the client was told last; with this one a stop is confirmed.
    pub fn epoch(&self) -> GroupEpoch {
        self.epoch
    }

    /// What of a durable view is new to the client. Views come in their order; of several that wait the last
    /// is enough.
    pub fn show(&mut self, view: &MemberView) -> ToTell {
        self.epoch = view.epoch;
        let places = |partitions: &Partitions| -> BTreeSet<_> {
            partitions.iter().map(|(topic, _, index)| (topic.clone(), index)).collect()
        };
        let (owned, stopping) = (places(&view.assignment.owned), places(&view.assignment.stopping));
        self.stops.retain(|place, _| stopping.contains(place));
        let is_new = |place: &(_, _)| self.stops.insert(place.clone(), view.epoch) != Some(view.epoch);
        let stop = stopping.into_iter().filter(is_new).collect();
        let start: Vec<_> = owned.difference(&self.reads).cloned().collect();
        self.reads.extend(start.iter().cloned());
        ToTell { epoch: view.epoch, stop, start }
    }

    /// The client has stopped these, and the shard has taken its word for it.
    pub fn stopped<'a>(&mut self, places: impl IntoIterator<Item = &'a (TopicName, PartitionIndex)>) {
        for place in places {
            self.reads.remove(place);
        }
    }

    /// Whether records of a partition are to be sent: the client reads it and was not told to stop.
    pub fn sends(&self, place: &(TopicName, PartitionIndex)) -> bool {
        self.reads.contains(place) && !self.stops.contains_key(place)
    }
}
