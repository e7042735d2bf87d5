//! Random histories: requests, crashes between submit and durable, clients that are late, gone, or back.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, sample::Index};
use rimstone_types::{PartitionIndex, TopicName};

use super::{
    common::{group, join, places, topic},
    model::{Place, Process, ToServer, World},
};
use crate::group::{Assignor, GroupState, Groups, Removal};

#[derive(Debug, Clone)]
enum Op {
    /// A process appears, under one of a few ids: also one that is in use.
    Spawn {
        id: u8,
        what: u8,
        instance: u8,
        assignor: u8,
    },
    /// A process connects: with what it has, or (rarely) anew.
    Connect {
        process: Index,
        anew: bool,
    },
    Cut {
        conn: Index,
    },
    Serve {
        conn: Index,
    },
    Deliver {
        conn: Index,
    },
    /// A process wants something else, and connects to say so.
    Resubscribe {
        process: Index,
        what: u8,
    },
    /// A client confirms some of what it was asked to stop.
    Stop {
        process: Index,
        few: bool,
    },
    /// A client commits what it reads, or anything at all; on its stream, or beside it with its epoch.
    Commit {
        process: Index,
        anything: bool,
        unary: bool,
    },
    Leave {
        process: Index,
        for_good: bool,
    },
    /// A process is no more; nobody is told.
    Kill {
        process: Index,
    },
    /// A member is timed out, whether or not its client is still there.
    TimeOut {
        member: Index,
        poll: bool,
    },
    /// Everything that is under way arrives, up to so many messages each way.
    Settle,
    Flush {
        batches: usize,
        only_last: bool,
    },
    Crash {
        survive: usize,
    },
    Topic {
        name: u8,
        change: u8,
    },
    Notice,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let index = any::<Index>;
    let op = prop_oneof![
        3 => (0..6_u8, 0..4_u8, 0..8_u8, 0..8_u8)
            .prop_map(|(id, what, instance, assignor)| Op::Spawn { id, what, instance, assignor }),
        5 => (index(), 0..8_u8).prop_map(|(process, anew)| Op::Connect { process, anew: anew == 0 }),
        2 => index().prop_map(|conn| Op::Cut { conn }),
        14 => index().prop_map(|conn| Op::Serve { conn }),
        14 => index().prop_map(|conn| Op::Deliver { conn }),
        14 => (index(), any::<bool>()).prop_map(|(process, few)| Op::Stop { process, few }),
        8 => (index(), any::<bool>(), any::<bool>())
            .prop_map(|(process, anything, unary)| Op::Commit { process, anything, unary }),
        2 => (index(), 0..4_u8).prop_map(|(process, what)| Op::Resubscribe { process, what }),
        1 => (index(), any::<bool>()).prop_map(|(process, for_good)| Op::Leave { process, for_good }),
        1 => index().prop_map(|process| Op::Kill { process }),
        1 => (index(), any::<bool>()).prop_map(|(member, poll)| Op::TimeOut { member, poll }),
        9 => Just(Op::Settle),
        10 => (1..4_usize, any::<bool>()).prop_map(|(batches, only_last)| Op::Flush { batches, only_last }),
        1 => (0..4_usize).prop_map(|survive| Op::Crash { survive }),
        1 => (0..3_u8, 0..8_u8).prop_map(|(name, change)| Op::Topic { name, change }),
        3 => Just(Op::Notice),
    ];
    prop::collection::vec(op, 1..200)
}

fn subscription(what: u8) -> &'static [&'static str] {
    [&["t"][..], &["t", "u"], &["u", "later"], &["t"]][usize::from(what)]
}

const TOPICS: [&str; 3] = ["t", "u", "ux"];

impl World {
    fn new() -> Self {
        let mut world = Self::default();
        world.topics.make("t", 3);
        world.topics.make("u", 2);
        world
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Spawn { id, what, instance, assignor } => self.spawn(*id, *what, *instance, *assignor),
            Op::Connect { process, anew } => {
                let Some(process) = self.some_process(process) else { return };
                if *anew {
                    self.processes[process].drop_everything();
                }
                self.connect(process);
            }
            Op::Cut { conn } => {
                let Some(conn) = self.some_conn(conn, |conn| conn.open) else { return };
                self.cut(conn);
            }
            Op::Serve { conn } => {
                let Some(conn) = self.some_conn(conn, |conn| !conn.to_server.is_empty()) else { return };
                self.serve(conn);
            }
            Op::Deliver { conn } => {
                let Some(conn) = self.some_conn(conn, |conn| !conn.to_client.is_empty()) else { return };
                self.deliver(conn);
            }
            Op::Stop { process, few } => {
                let Some(process) = self.some_process(process) else { return };
                self.confirm(process, if *few { 1 } else { usize::MAX });
            }
            Op::Resubscribe { process, what } => {
                let Some(process) = self.some_process(process) else { return };
                self.processes[process].join.topics =
                    subscription(*what).iter().map(|name| topic(name)).collect();
                self.connect(process);
            }
            Op::Commit { process, anything, unary } => {
                let Some(process) = self.some_process(process) else { return };
                let places = match *anything {
                    true => places(&["t:0", "t:1", "t:2", "u:0", "u:1"]),
                    false => self.processes[process].reads().cloned().collect(),
                };
                if *unary {
                    self.commit_beside(process, &places);
                } else {
                    self.say(process, ToServer::Commit(places));
                }
            }
            Op::Leave { process, for_good } => {
                let Some(process) = self.some_process(process) else { return };
                if self.say(process, ToServer::Leave { for_good: *for_good }) {
                    self.processes[process].drop_everything();
                    let conn = self.processes[process].conn.expect("it has said something");
                    self.cut(conn);
                }
            }
            Op::Kill { process } => {
                let Some(process) = self.some_process(process) else { return };
                self.kill(process);
            }
            Op::TimeOut { member, poll } => {
                let members: Vec<_> = self.live.members(&group()).map(|(id, _)| id.clone()).collect();
                if members.is_empty() {
                    return;
                }
                let why = if *poll { Removal::PollTimeout } else { Removal::SessionTimeout };
                self.remove(member.get(&members), why);
            }
            Op::Settle => self.settle(6),
            Op::Flush { batches, only_last } => self.flush(*batches, *only_last),
            Op::Crash { survive } => self.crash(*survive),
            Op::Topic { name, change } => self.change_topic(TOPICS[usize::from(*name)], *change),
            Op::Notice => self.notice_topics(),
        }
    }

    fn spawn(&mut self, id: u8, what: u8, instance: u8, assignor: u8) {
        let what = subscription(what);
        let mut join = join(&format!("m{id}"), what);
        if what == ["t"] && assignor.is_multiple_of(2) {
            join = join.prefix("u");
        }
        join.assignor = match assignor {
            0 => Some(Assignor::Range),
            1 => Some(Assignor::RoundRobin),
            2 => Some(Assignor::Sticky),
            _ => None,
        };
        if instance < 3 {
            join = join.instance(&format!("i{instance}"));
        }
        self.processes.push(Process::new(join));
        self.connect(self.processes.len() - 1);
    }

    fn kill(&mut self, process: usize) {
        self.processes[process].alive = false;
        if let Some(conn) = self.processes[process].conn {
            self.cut(conn);
        }
    }

    fn confirm(&mut self, process: usize, most: usize) {
        let places: Vec<_> = self.processes[process].to_answer.iter().take(most).cloned().collect();
        if !places.is_empty() && self.say(process, ToServer::Stopped(places.clone())) {
            for place in &places {
                self.processes[process].to_answer.remove(place);
                self.processes[process].stopping.remove(place);
            }
        }
    }

    fn change_topic(&mut self, name: &str, change: u8) {
        let there = self.topics.topics.get(&topic(name)).map(|(_, partitions)| *partitions);
        match (there, change) {
            (None, _) => self.topics.make(name, 2),
            (Some(partitions), 0..4) if partitions < 6 => self.topics.grow(name, partitions + 1),
            (Some(partitions), 4..6) => self.topics.make(name, partitions),
            (Some(_), _) => self.topics.delete(name),
        }
    }

    fn settle(&mut self, messages: usize) {
        for conn in 0..self.conns.len() {
            for _ in 0..messages.min(self.conns[conn].to_server.len()) {
                self.serve(conn);
            }
        }
        self.flush(usize::MAX, false);
        for conn in 0..self.conns.len() {
            for _ in 0..messages.min(self.conns[conn].to_client.len()) {
                self.deliver(conn);
            }
        }
    }

    fn some_process(&self, index: &Index) -> Option<usize> {
        let alive: Vec<_> = (0..self.processes.len()).filter(|&at| self.processes[at].alive).collect();
        (!alive.is_empty()).then(|| *index.get(&alive))
    }

    fn some_conn(&self, index: &Index, fit: impl Fn(&super::model::Conn) -> bool) -> Option<usize> {
        let fitting: Vec<_> = (0..self.conns.len()).filter(|&at| fit(&self.conns[at])).collect();
        (!fitting.is_empty()).then(|| *index.get(&fitting))
    }

    /// What must hold at every moment.
    fn check(&self) {
        check_state(&self.live);
        for (name, count) in TOPICS.map(|name| (name, 8)) {
            for index in 0..count {
                let place: Place = (topic(name), PartitionIndex(index));
                let readers = self.readers(&place);
                assert!(readers.len() <= 1, "{name}:{index} is read by processes {readers:?}");
            }
        }
    }

    /// What must hold of the records at every moment.
    fn check_records(&self, compacted: usize) {
        assert_eq!(self.rebuilt(0), self.live, "rebuilt from records");
        assert_eq!(self.rebuilt(self.batches()), self.live, "rebuilt from the latest of each key");
        assert_eq!(self.rebuilt(compacted), self.live, "rebuilt, {compacted} batches compacted");
    }

    /// From now on nothing is lost and everybody answers: then all partitions have to find their owners.
    fn heal(&mut self) {
        self.keep_one_of_each();
        for _ in 0..12 {
            self.notice_topics();
            for process in 0..self.processes.len() {
                if self.processes[process].alive && self.processes[process].conn.is_none() {
                    self.connect(process);
                }
            }
            self.settle(usize::from(u8::MAX));
            for process in 0..self.processes.len() {
                self.confirm(process, usize::MAX);
            }
        }
        // The timers of those whose clients are no more.
        let alive: BTreeSet<_> = self
            .processes
            .iter()
            .filter(|process| process.alive)
            .map(|process| process.join.member.clone())
            .collect();
        let gone: Vec<_> = self.live.members(&group()).map(|(id, _)| id.clone()).collect();
        gone.iter().filter(|id| !alive.contains(id)).for_each(|id| self.remove(id, Removal::SessionTimeout));
        for _ in 0..12 {
            self.settle(usize::from(u8::MAX));
            for process in 0..self.processes.len() {
                self.confirm(process, usize::MAX);
            }
        }
    }

    /// Of processes that fight over an id or an instance one stays.
    fn keep_one_of_each(&mut self) {
        let (mut ids, mut instances) = (BTreeSet::new(), BTreeSet::new());
        for at in (0..self.processes.len()).rev() {
            let join = self.processes[at].join.clone();
            let taken = ids.contains(&join.member)
                || join.instance.as_ref().is_some_and(|instance| instances.contains(instance));
            if self.processes[at].alive && !taken {
                ids.insert(join.member);
                instances.extend(join.instance);
            } else {
                self.kill(at);
            }
        }
    }

    /// What must hold when everybody has answered.
    fn check_healed(&self) {
        let Ok(described) = self.live.describe(&group()) else {
            return assert!(self.processes.iter().all(|process| !process.alive));
        };
        let alive: BTreeMap<_, _> = self
            .processes
            .iter()
            .filter(|process| process.alive)
            .map(|process| (process.join.member.clone(), process))
            .collect();
        assert_ne!(described.summary.state, GroupState::Reconciling);
        assert_eq!(described.members.len(), alive.len());
        let mut loads = Vec::new();
        for member in &described.members {
            assert_eq!(member.epoch, described.summary.epoch);
            assert_eq!(member.assignment.owned, member.target);
            let process = alive[&member.member];
            let owned: BTreeSet<Place> =
                member.target.iter().map(|(topic, _, index)| (topic.clone(), index)).collect();
            assert_eq!(process.owned, owned, "what {} reads", member.member);
            assert!(process.stopping.is_empty());
            loads.push(owned.len());
        }
        let wanted = |(name, _): &(&TopicName, _)| {
            alive.values().any(|process| {
                let prefix = process.join.topic_prefix.as_ref();
                process.join.topics.contains(name)
                    || prefix.is_some_and(|prefix| name.as_str().starts_with(prefix.as_str()))
            })
        };
        let partitions: u32 = self.topics.topics.iter().filter(wanted).map(|(_, topic)| topic.1).sum();
        assert_eq!(loads.iter().sum::<usize>(), partitions as usize, "all partitions are read");
        let alike = described.members.windows(2).all(|pair| {
            pair[0].value.topics == pair[1].value.topics
                && pair[0].value.topic_prefix == pair[1].value.topic_prefix
        });
        if let (true, Assignor::Sticky, Some(most), Some(least)) =
            (alike, described.assignor, loads.iter().max(), loads.iter().min())
        {
            assert!(most - least <= 1, "{loads:?}");
        }
    }
}

/// What must hold of every state: one holder and one target for a partition, and nothing that is free waits for
/// somebody who has nothing to give back.
fn check_state(groups: &Groups) {
    let Ok(described) = groups.describe(&group()) else { return };
    let kept = !described.members.is_empty() || groups.groups[&group()].offset_count > 0;
    assert!(kept, "a group without members and offsets stays");
    let (mut holders, mut targets) = (BTreeMap::new(), BTreeMap::new());
    for one in &described.members {
        assert!(one.epoch <= described.summary.epoch);
        assert!(one.assignment.previous_epoch <= one.epoch);
        for (topic, _, index) in one.assignment.owned.iter().chain(one.assignment.stopping.iter()) {
            let before = holders.insert((topic.clone(), index), one.member.clone());
            assert_eq!(before, None, "{topic}:{index} is held twice, by {} too", one.member);
        }
        for (topic, id, index) in one.target.iter() {
            let before = targets.insert((topic.clone(), index), one);
            assert!(before.is_none(), "{topic}:{index} is in two targets");
            let owns = one.assignment.owned.contains_id(topic, id, index);
            let waits = holders.contains_key(&(topic.clone(), index)) || !one.assignment.stopping.is_empty();
            assert!(
                owns || waits || described.members.iter().any(|other| other.assignment.holds(topic, index))
            );
        }
        for (topic, id, index) in one.assignment.owned.iter() {
            assert!(
                one.target.contains_id(topic, id, index),
                "{topic}:{index} stays though the target moves it"
            );
        }
    }
}

fn history(ops: &[Op]) -> World {
    let mut world = World::new();
    for (at, op) in ops.iter().enumerate() {
        world.run(op);
        world.check();
        if at % 16 == 0 {
            world.check_records(at * 7 % (world.batches() + 1));
        }
    }
    world.check_records(world.batches() / 2);
    world.heal();
    world.check();
    world.check_records(world.batches() / 3);
    world.check_healed();
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_reader_at_a_time_and_everything_is_read_in_the_end(ops in ops()) {
        history(&ops);
    }
}

#[test]
fn histories_reach_what_they_are_for() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeMap::new();
    for _ in 0..150 {
        let ops = ops().new_tree(&mut runner).expect("a history").current();
        for (what, times) in history(&ops).seen {
            *seen.entry(what).or_insert(0_usize) += times;
        }
    }
    for (what, often) in [
        ("committed", 50),
        ("confirmed what it does not read", 3),
        ("crashed", 50),
        ("fenced on return", 20),
        ("refused to commit", 50),
        ("refused to commit beside", 20),
        ("committed beside", 5),
        ("removed", 50),
        ("replaced an instance", 10),
        ("replaced itself", 50),
        ("resumed", 50),
        ("stopped", 50),
        ("topics changed", 10),
    ] {
        assert!(seen.get(what).is_some_and(|&times| times >= often), "{what}: {seen:?}");
    }
}

/// A join over a connection that was given up arrives when another session has gone on, and names less than is
/// read by then.
#[test]
fn a_join_that_was_long_under_way_confirms_nothing() {
    let mut world = World::default();
    world.topics.make("t", 2);
    let everything_arrives = |world: &mut World, but: Option<usize>| {
        for _ in 0..4 {
            (0..world.conns.len()).filter(|conn| Some(*conn) != but).for_each(|conn| world.serve(conn));
            world.flush(usize::MAX, false);
            (0..world.conns.len()).for_each(|conn| (0..9).for_each(|_| world.deliver(conn)));
        }
        world.check();
    };
    let (q, p, r) = (0, 1, 2);
    let process = |world: &mut World, join: crate::group::Join| {
        world.processes.push(Process::new(join));
        world.connect(world.processes.len() - 1);
    };
    process(&mut world, join("m1", &["t"]));
    everything_arrives(&mut world, None);
    process(&mut world, join("m0", &["t"]));
    everything_arrives(&mut world, None);
    assert_eq!((world.processes[q].owned.len(), world.processes[p].owned.len()), (1, 0));
    // p comes back twice, and the first join is late.
    world.connect(p);
    let late = world.processes[p].conn.expect("connected");
    world.connect(p);
    everything_arrives(&mut world, Some(late));
    world.confirm(q, usize::MAX);
    everything_arrives(&mut world, Some(late));
    assert_eq!(world.processes[p].owned, BTreeSet::from_iter(places(&["t:1"])));
    // By range p gets the other one: both have to give back what they have.
    process(&mut world, join("m2", &["t"]).by(Assignor::Range));
    everything_arrives(&mut world, Some(late));
    assert_eq!(world.processes[p].stopping, BTreeSet::from_iter(places(&["t:1"])));
    world.serve(late);
    everything_arrives(&mut world, None);
    world.confirm(q, usize::MAX);
    everything_arrives(&mut world, None);
    assert_eq!(world.readers(&places(&["t:1"])[0]), [p]);
    world.heal();
    world.check_healed();
    assert_eq!(world.processes[r].owned.len(), 0);
}
