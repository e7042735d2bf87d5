//! The model's session: what the client of a member has been told. It turns views, of which some may have been
//! passed over, into starts and stops.

use std::collections::{BTreeMap, BTreeSet};

use rimstone_types::{GroupEpoch, PartitionIndex, TopicName};

use crate::group::{MemberView, Partitions};

/// What one session has told its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    epoch: GroupEpoch,
    /// What the client reads, as far as this session knows: claimed when it came, or started; not yet stopped.
    reads: BTreeSet<(TopicName, PartitionIndex)>,
    /// What it was told to stop and the shard has not seen let go.
    stops: BTreeMap<(TopicName, PartitionIndex), Stop>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stop {
    /// The epoch that it was told with: at a later one it is another stop.
    epoch: GroupEpoch,
    answered: bool,
}

/// What is new to the client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ToTell {
    /// The member's epoch.
    pub(super) epoch: GroupEpoch,
    /// To be told first. Only the client's answer confirms a stop, so it is told also what this session has
    /// never started; it answers at once for what it does not read, and once for each stop.
    pub(super) stop: Vec<(TopicName, PartitionIndex)>,
    /// From now on the member's.
    pub(super) start: Vec<(TopicName, PartitionIndex)>,
}

impl Told {
    /// A session whose join was answered with an epoch; `claimed` is what the client said that it reads, and
    /// nothing for one that does not go on with what it had.
    pub(super) fn new(
        epoch: GroupEpoch,
        claimed: impl IntoIterator<Item = (TopicName, PartitionIndex)>,
    ) -> Self {
        Self { epoch, reads: claimed.into_iter().collect(), stops: BTreeMap::new() }
    }

    /// The epoch that the client was told last; with this one a stop is confirmed.
    pub(super) fn epoch(&self) -> GroupEpoch {
        self.epoch
    }

    /// What of a durable view is new to the client. Views come in their order; of several that wait the last
    /// is enough.
    pub(super) fn show(&mut self, view: &MemberView) -> ToTell {
        self.epoch = view.epoch;
        let places = |partitions: &Partitions| -> BTreeSet<_> {
            partitions.iter().map(|(topic, _, index)| (topic.clone(), index)).collect()
        };
        let (owned, stopping) = (places(&view.assignment.owned), places(&view.assignment.stopping));
        self.stops.retain(|place, _| stopping.contains(place));
        let mut is_new = |place: &(_, _)| {
            let known = self.stops.get(place).is_some_and(|stop| stop.epoch == view.epoch);
            if !known {
                self.stops.insert(place.clone(), Stop { epoch: view.epoch, answered: false });
            }
            !known
        };
        let stop = stopping.into_iter().filter(|place| is_new(place)).collect();
        let start: Vec<_> = owned.difference(&self.reads).cloned().collect();
        self.reads.extend(start.iter().cloned());
        ToTell { epoch: view.epoch, stop, start }
    }

    /// The client says that it has stopped these: those for which that answers a stop of this session, to be
    /// confirmed to the shard. The others are passed over: the client could have said it before it was started
    /// again.
    pub(super) fn stopped(
        &mut self,
        places: impl IntoIterator<Item = (TopicName, PartitionIndex)>,
    ) -> Vec<(TopicName, PartitionIndex)> {
        let mut answers = Vec::new();
        for place in places {
            match self.stops.get_mut(&place) {
                Some(stop) if !stop.answered => stop.answered = true,
                _ => continue,
            }
            self.reads.remove(&place);
            answers.push(place);
        }
        answers
    }

    /// Whether records of a partition are to be sent: the client reads it and was not told to stop.
    pub(super) fn sends(&self, place: &(TopicName, PartitionIndex)) -> bool {
        self.reads.contains(place) && !self.stops.contains_key(place)
    }
}
