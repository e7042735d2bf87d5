//! The assignors.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rimstone_types::{MemberId, PartitionIndex, TopicId, TopicName};
use uuid::Uuid;

use super::common::{member, shown, topic};
use crate::group::{
    Assignor, Partitions, TopicCount,
    assign::{Candidate, assign},
};

/// What a target is made from.
#[derive(Debug, Clone)]
struct Scene {
    topics: BTreeMap<TopicName, TopicCount>,
    /// Members with their subscriptions, as positions.
    members: Vec<(MemberId, Vec<usize>)>,
}

impl Scene {
    fn new(counts: &[u32], subscriptions: &[&[usize]]) -> Self {
        let topics = counts.iter().enumerate().map(|(at, &partitions)| {
            let id = TopicId(Uuid::from_u128(at as u128));
            (topic(&format!("t{at}")), TopicCount { id, partitions, later_from: partitions })
        });
        let members =
            subscriptions.iter().enumerate().map(|(at, topics)| (member(&format!("m{at}")), topics.to_vec()));
        Self { topics: topics.collect(), members: members.collect() }
    }

    fn assign(&self, assignor: Assignor, previous: &[Partitions]) -> Vec<Partitions> {
        let nothing = Partitions::default();
        let mut subscriptions: Vec<Vec<usize>> =
            self.members.iter().map(|(_, topics)| topics.clone()).collect();
        subscriptions.sort();
        subscriptions.dedup();
        let candidates: Vec<_> = self
            .members
            .iter()
            .enumerate()
            .map(|(at, (id, topics))| Candidate {
                id,
                instance: None,
                subscription: subscriptions.binary_search(topics).expect("one of them"),
                previous: previous.get(at).unwrap_or(&nothing),
            })
            .collect();
        assign(assignor, &self.topics, &subscriptions, &candidates)
    }

    fn subscribed(&self, member: usize, name: &TopicName) -> bool {
        self.topics
            .keys()
            .position(|topic| topic == name)
            .is_some_and(|at| self.members[member].1.contains(&at))
    }

    /// Every partition that somebody wants has one owner, who wants it.
    fn check(&self, targets: &[Partitions]) {
        let mut seen = BTreeSet::new();
        for (at, target) in targets.iter().enumerate() {
            for (name, id, index) in target.iter() {
                assert!(self.subscribed(at, name), "m{at} is given {name}:{index}");
                assert_eq!(id, self.topics[name].id);
                assert!(index.0 < self.topics[name].partitions);
                assert!(seen.insert((name.clone(), index)), "{name}:{index} is given twice");
            }
        }
        for (at, (name, count)) in self.topics.iter().enumerate() {
            let wanted = self.members.iter().any(|(_, topics)| topics.contains(&at));
            for index in 0..count.partitions {
                assert_eq!(seen.contains(&(name.clone(), PartitionIndex(index))), wanted, "{name}:{index}");
            }
        }
    }

    /// Every way to give each wanted partition to somebody who wants it.
    fn all(&self) -> Vec<Vec<usize>> {
        let mut ways = vec![Vec::new()];
        for (at, count) in self.topics.values().enumerate() {
            let who: Vec<_> = (0..self.members.len()).filter(|&m| self.members[m].1.contains(&at)).collect();
            if who.is_empty() {
                continue;
            }
            for _ in 0..count.partitions {
                let longer = |way: &Vec<usize>| {
                    let way = way.clone();
                    who.iter()
                        .map(move |&member| way.iter().copied().chain([member]).collect())
                        .collect::<Vec<_>>()
                };
                ways = ways.iter().flat_map(longer).collect();
            }
        }
        ways
    }

    /// A target in the form of [`Scene::all`].
    fn as_way(&self, targets: &[Partitions]) -> Vec<Option<usize>> {
        let mut way = Vec::new();
        for (at, (name, count)) in self.topics.iter().enumerate() {
            if self.members.iter().any(|(_, topics)| topics.contains(&at)) {
                let owner = |index| {
                    targets
                        .iter()
                        .position(|target| target.contains_id(name, count.id, PartitionIndex(index)))
                };
                way.extend((0..count.partitions).map(owner));
            }
        }
        way
    }
}

fn loads_of(way: &[usize], members: usize) -> Vec<usize> {
    let mut loads = vec![0; members];
    way.iter().for_each(|&member| loads[member] += 1);
    loads
}

/// How uneven an assignment is: the least is reached exactly where no chain of moves makes it more even.
fn unevenness(loads: &[usize]) -> usize {
    loads.iter().map(|load| load * load).sum()
}

fn moved(previous: &[Option<usize>], way: &[Option<usize>]) -> usize {
    previous.iter().zip(way).filter(|(before, now)| before.is_some() && before != now).count()
}

fn texts(targets: &[Partitions]) -> Vec<String> {
    targets.iter().map(shown).collect()
}

#[test]
fn range_gives_neighbours_and_keeps_numbers_together() {
    let scene = Scene::new(&[5, 5, 1], &[&[0, 1, 2], &[0, 1, 2]]);
    assert_eq!(texts(&scene.assign(Assignor::Range, &[])), ["t0:0,1,2 t1:0,1,2 t2:0", "t0:3,4 t1:3,4"]);
    let scene = Scene::new(&[2], &[&[0], &[0], &[0]]);
    assert_eq!(texts(&scene.assign(Assignor::Range, &[])), ["t0:0", "t0:1", ""]);
    let scene = Scene::new(&[7], &[&[0], &[], &[0], &[0]]);
    assert_eq!(texts(&scene.assign(Assignor::Range, &[])), ["t0:0,1,2", "", "t0:3,4", "t0:5,6"]);
}

#[test]
fn round_robin_goes_on_from_topic_to_topic() {
    let scene = Scene::new(&[3, 3], &[&[0, 1], &[0, 1]]);
    assert_eq!(texts(&scene.assign(Assignor::RoundRobin, &[])), ["t0:0,2 t1:1", "t0:1 t1:0,2"]);
    // Kafka's example of different subscriptions.
    let scene = Scene::new(&[1, 2, 3], &[&[0], &[0, 1], &[0, 1, 2]]);
    assert_eq!(texts(&scene.assign(Assignor::RoundRobin, &[])), ["t0:0", "t1:0", "t1:1 t2:0,1,2"]);
}

#[test]
fn sticky_evens_out_over_a_chain() {
    // m2, who only wants t1, takes it from m1, who takes something of t0 from m0.
    let scene = Scene::new(&[4, 1], &[&[0], &[0, 1], &[1]]);
    let first = Scene::new(&[4, 1], &[&[0], &[0, 1]]).assign(Assignor::Sticky, &[]);
    assert_eq!(texts(&first), ["t0:0,1,3", "t0:2 t1:0"]);
    let second = scene.assign(Assignor::Sticky, &first);
    scene.check(&second);
    assert_eq!(texts(&second), ["t0:0,1", "t0:2,3", "t1:0"]);
}

#[test]
fn sticky_moves_no_more_than_needed_when_members_come_and_go() {
    let counts = [40, 25, 7, 28];
    let everything: &[usize] = &[0, 1, 2, 3];
    let mut previous: Vec<Partitions> = Vec::new();
    for members in 1..=100_usize {
        let scene = Scene::new(&counts, &vec![everything; members]);
        let next = scene.assign(Assignor::Sticky, &previous);
        scene.check(&next);
        let loads: Vec<_> = next.iter().map(Partitions::len).collect();
        assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{loads:?}");
        // The one who comes gets its share, and nothing else moves.
        let kept: usize = previous.iter().zip(&next).map(|(before, now)| before.and(now).len()).sum();
        assert_eq!(100 - kept, if members == 1 { 100 } else { loads[members - 1] }, "{members} members");
        assert_eq!(scene.assign(Assignor::Sticky, &next), next, "a second time changes nothing");
        previous = next;
    }
}

fn scenes() -> impl Strategy<Value = (Scene, Vec<u8>)> {
    let counts = prop::collection::vec(1..=3_u32, 1..=3);
    let subscriptions = prop::collection::vec(prop::collection::vec(any::<bool>(), 3), 1..=3);
    (counts, subscriptions, prop::collection::vec(any::<u8>(), 9)).prop_map(|(counts, wants, previous)| {
        let wants: Vec<Vec<usize>> =
            wants.iter().map(|wants| (0..counts.len()).filter(|&topic| wants[topic]).collect()).collect();
        let wants: Vec<&[usize]> = wants.iter().map(Vec::as_slice).collect();
        (Scene::new(&counts, &wants), previous)
    })
}

/// Some assignment of before: by each byte to a member, or to nobody.
fn before(scene: &Scene, bytes: &[u8]) -> Vec<Partitions> {
    let mut previous = vec![Partitions::default(); scene.members.len()];
    let mut bytes = bytes.iter();
    for (name, count) in &scene.topics {
        for index in 0..count.partitions {
            let at = usize::from(*bytes.next().expect("nine partitions at most")) % (scene.members.len() + 1);
            if let Some(previous) = previous.get_mut(at) {
                previous.insert(name, count.id, PartitionIndex(index));
            }
        }
    }
    previous
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_partition_has_one_owner((scene, bytes) in scenes()) {
        let previous = before(&scene, &bytes);
        for assignor in [Assignor::Sticky, Assignor::Range, Assignor::RoundRobin] {
            scene.check(&scene.assign(assignor, &previous));
        }
    }

    #[test]
    fn sticky_is_as_even_as_can_be_and_moves_least((scene, bytes) in scenes()) {
        let members = scene.members.len();
        let previous = before(&scene, &bytes);
        let target = scene.assign(Assignor::Sticky, &previous);
        let loads: Vec<_> = target.iter().map(Partitions::len).collect();
        let ways = scene.all();
        let best = ways.iter().map(|way| unevenness(&loads_of(way, members))).min().expect("some way");
        prop_assert_eq!(unevenness(&loads), best, "{:?}", loads);

        let even = ways.iter().filter(|way| unevenness(&loads_of(way, members)) == best);
        let before = scene.as_way(&previous);
        let least = even
            .map(|way| moved(&before, &way.iter().copied().map(Some).collect::<Vec<_>>()))
            .min()
            .expect("some way");
        let moves = moved(&before, &scene.as_way(&target));
        let the_same = scene.members.iter().all(|(_, topics)| *topics == scene.members[0].1);
        if the_same {
            prop_assert_eq!(moves, least);
        }
        prop_assert!(moves <= least + 1, "{} moves, {} would do", moves, least);
        prop_assert_eq!(scene.assign(Assignor::Sticky, &target), target);
    }
}
