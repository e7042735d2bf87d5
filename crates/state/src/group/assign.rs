//! Making targets: who is to read which partition.
//!
//! Works on numbers: topics and members are positions in slices. Not here: epochs, who holds what at present.

mod sticky;

use std::{cmp::Reverse, collections::BTreeMap};

use rimstone_types::{InstanceId, MemberId, PartitionIndex, TopicName};
use serde::{Deserialize, Serialize};

use super::{partitions::Partitions, record::TopicCount};

/// How the partitions of a group are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assignor {
    /// Even shares, and as few partitions as possible move.
    #[default]
    Sticky,
    /// Per topic, a run of neighbouring partitions to each member; partitions of one number stay together.
    Range,
    /// All partitions in turn.
    RoundRobin,
}

/// A member that partitions are to be given to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) id: &'a MemberId,
    pub(super) instance: Option<&'a InstanceId>,
    /// Its subscription, as a position among the subscriptions: most members share one.
    pub(super) subscription: usize,
    /// What the target gave it until now.
    pub(super) previous: &'a Partitions,
}

/// The owner of each partition of each topic, as positions among the members.
type Owners = Vec<Vec<Option<usize>>>;

/// Who is subscribed to which topic. Topics with the same subscribers share a list: where everybody wants the
/// same, there is one.
#[derive(Debug)]
struct Subscribers {
    lists: Vec<Vec<usize>>,
    /// Of each topic, its list.
    of_topic: Vec<usize>,
}

impl Subscribers {
    fn new(topics: usize, subscriptions: &[Vec<usize>], members: &[Candidate<'_>]) -> Self {
        let mut wanted_by = vec![Vec::new(); topics];
        for (subscription, wanted) in subscriptions.iter().enumerate() {
            wanted.iter().for_each(|&topic| wanted_by[topic].push(subscription));
        }
        let order = in_order(members);
        let (mut lists, mut known) = (Vec::new(), BTreeMap::new());
        let list_of = |wanted_by: Vec<usize>| {
            *known.entry(wanted_by).or_insert_with_key(|wanted_by| {
                let wants = |&member: &usize| wanted_by.binary_search(&members[member].subscription).is_ok();
                lists.push(order.iter().copied().filter(wants).collect());
                lists.len() - 1
            })
        };
        let of_topic = wanted_by.into_iter().map(list_of).collect();
        Self { lists, of_topic }
    }

    fn of(&self, topic: usize) -> &[usize] {
        &self.lists[self.of_topic[topic]]
    }
}

/// The choice of most of those who choose. A tie goes to the one that is named first in [`Assignor`].
pub(super) fn elect(votes: impl Iterator<Item = Assignor>) -> Assignor {
    let mut counts = BTreeMap::new();
    for vote in votes {
        *counts.entry(vote).or_insert(0_usize) += 1;
    }
    counts
        .into_iter()
        .max_by_key(|&(vote, count)| (count, Reverse(vote)))
        .map(|(vote, _)| vote)
        .unwrap_or_default()
}

/// Makes a target: for each member, in their order, its partitions. Every partition of a topic that somebody
/// is subscribed to has one owner, who is. A subscription is the positions of its topics, in order.
pub(super) fn assign(
    assignor: Assignor,
    topics: &BTreeMap<TopicName, TopicCount>,
    subscriptions: &[Vec<usize>],
    members: &[Candidate<'_>],
) -> Vec<Partitions> {
    let counts: Vec<_> = topics.values().map(|topic| topic.partitions as usize).collect();
    let subscribers = Subscribers::new(counts.len(), subscriptions, members);
    let owners = match assignor {
        Assignor::Sticky => {
            let previous = previous_owners(topics, subscriptions, members);
            sticky::assign(members.len(), &subscribers, previous)
        }
        Assignor::Range => range(&counts, &subscribers),
        Assignor::RoundRobin => round_robin(&counts, subscriptions, members),
    };
    let mut targets = vec![Partitions::default(); members.len()];
    for ((name, topic), owners) in topics.iter().zip(owners) {
        for (index, owner) in owners.into_iter().enumerate() {
            if let Some(owner) = owner {
                targets[owner].insert(name, topic.id, PartitionIndex(index as u32));
            }
        }
    }
    targets
}

/// Members in the order that range and round robin go by: static ones first and by their instances, so that
/// coming back under another member id changes nothing (Kafka's range assignor).
fn in_order(members: &[Candidate<'_>]) -> Vec<usize> {
    let mut order: Vec<_> = (0..members.len()).collect();
    order.sort_by_key(|&at| (members[at].instance.is_none(), members[at].instance, members[at].id));
    order
}

/// Who had which partition, as far as the topic is the same and the member is still subscribed to it.
fn previous_owners(
    topics: &BTreeMap<TopicName, TopicCount>,
    subscriptions: &[Vec<usize>],
    members: &[Candidate<'_>],
) -> Owners {
    let mut owners: Owners = topics.values().map(|topic| vec![None; topic.partitions as usize]).collect();
    let positions: BTreeMap<_, _> =
        topics.iter().enumerate().map(|(at, (name, topic))| (name, (at, topic.id))).collect();
    for (member, candidate) in members.iter().enumerate() {
        for (name, of) in candidate.previous.topics() {
            let Some(&(topic, id)) = positions.get(name) else { continue };
            if of.id != id || subscriptions[candidate.subscription].binary_search(&topic).is_err() {
                continue;
            }
            for partition in &of.partitions {
                if let Some(owner) = owners[topic].get_mut(partition.0 as usize) {
                    *owner = Some(member);
                }
            }
        }
    }
    owners
}

/// Kafka's RangeAssignor: of each topic the first members get one partition more than the last.
fn range(counts: &[usize], subscribers: &Subscribers) -> Owners {
    let of_topic = |(topic, &count): (usize, &usize)| {
        let members = subscribers.of(topic);
        let (share, rest) = (count / members.len().max(1), count % members.len().max(1));
        let with_one_more = rest * (share + 1);
        let owner = |partition: usize| {
            let at = match partition.checked_sub(with_one_more) {
                None => partition / (share + 1),
                Some(beyond) => rest + beyond / share.max(1),
            };
            members.get(at).copied()
        };
        (0..count).map(owner).collect()
    };
    counts.iter().enumerate().map(of_topic).collect()
}

/// Kafka's RoundRobinAssignor: one after the other over all partitions, passing by who is not subscribed.
fn round_robin(counts: &[usize], subscriptions: &[Vec<usize>], members: &[Candidate<'_>]) -> Owners {
    let order = in_order(members);
    let wants = |member: usize, topic: usize| {
        subscriptions[members[member].subscription].binary_search(&topic).is_ok()
    };
    let mut next = 0;
    let mut of_partition = |topic: usize| {
        let turn = (0..order.len()).map(|step| (next + step) % order.len());
        let at = turn.into_iter().find(|&at| wants(order[at], topic))?;
        next = (at + 1) % order.len();
        Some(order[at])
    };
    let of_topic = |(topic, &count): (usize, &usize)| (0..count).map(|_| of_partition(topic)).collect();
    counts.iter().enumerate().map(of_topic).collect()
}
