//! The sticky assignor: as even as the subscriptions allow, and as few moves as that takes.
//!
//! Even means: no chain of moves leads from a member to one that has at least two partitions less. Where all
//! are subscribed to the same topics, no member then has two more than another, and no assignment that is as
//! even moves fewer partitions. Where subscriptions differ, each step takes the shortest chain, and of a
//! topic's partitions moves one that has to move anyway, if there is one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Owners, Subscribers};

/// An assignment in the making.
struct Work<'a> {
    subscribers: &'a Subscribers,
    previous: Owners,
    owners: Owners,
    /// Of each member: its partitions by topic.
    held: Vec<BTreeMap<usize, BTreeSet<usize>>>,
    load: Vec<usize>,
    /// Members for which it is proven that no chain leads from them to one with two less. What such a member
    /// reaches is proven as well, so that a later chain from elsewhere never ends among them.
    settled: Vec<bool>,
}

/// The owners, given those of before (only such as are still subscribed).
pub(super) fn assign(members: usize, subscribers: &Subscribers, previous: Owners) -> Owners {
    let mut work = Work {
        subscribers,
        owners: previous.clone(),
        previous,
        held: vec![BTreeMap::new(); members],
        load: vec![0; members],
        settled: vec![false; members],
    };
    work.keep();
    work.hand_out();
    while let Some(from) = work.most_loaded() {
        match work.chain_from(from) {
            Some(chain) => chain.into_iter().for_each(|step| work.pass_on(step)),
            None => work.settle(from),
        }
    }
    work.owners
}

/// One partition of a topic goes from one member to another.
struct Step {
    topic: usize,
    from: usize,
    to: usize,
}

impl Work<'_> {
    /// What everybody had, they have.
    fn keep(&mut self) {
        for (topic, owners) in self.owners.iter().enumerate() {
            for (partition, owner) in owners.iter().enumerate() {
                if let Some(owner) = *owner {
                    self.held[owner].entry(topic).or_default().insert(partition);
                    self.load[owner] += 1;
                }
            }
        }
    }

    /// What nobody had goes to who has least; first the topics with the fewest subscribers.
    fn hand_out(&mut self) {
        let mut topics: Vec<_> = (0..self.owners.len()).collect();
        topics.sort_by_key(|&topic| self.subscribers.of(topic).len());
        for topic in topics {
            for partition in 0..self.owners[topic].len() {
                if self.owners[topic][partition].is_some() {
                    continue;
                }
                let least =
                    self.subscribers.of(topic).iter().copied().min_by_key(|&member| self.load[member]);
                let Some(member) = least else { break };
                self.owners[topic][partition] = Some(member);
                self.held[member].entry(topic).or_default().insert(partition);
                self.load[member] += 1;
            }
        }
    }

    fn most_loaded(&self) -> Option<usize> {
        (0..self.load.len()).filter(|&member| !self.settled[member]).max_by_key(|&member| self.load[member])
    }

    /// The shortest chain of moves from a member to one that has at least two less; of the shortest, one that
    /// ends where least is.
    fn chain_from(&self, from: usize) -> Option<Vec<Step>> {
        let reached = self.reach(from, true);
        let goal = reached.iter().filter(|(_, step)| step.is_some()).map(|(&member, _)| member);
        let goal = goal
            .filter(|&member| self.load[member] + 2 <= self.load[from])
            .min_by_key(|&member| (self.load[member], member))?;
        let mut chain = Vec::new();
        let mut to = goal;
        while let Some(Some((by, topic))) = reached.get(&to).copied() {
            chain.push(Step { topic, from: by, to });
            to = by;
        }
        Some(chain)
    }

    /// Who can be given something in a chain of moves that begins at a member, and by whom and of which
    /// topic. With `only_as_far_as_needed` it stops after the first length at which a chain is worth it, and at
    /// once where the least loaded of all is reached.
    fn reach(&self, from: usize, only_as_far_as_needed: bool) -> BTreeMap<usize, Option<(usize, usize)>> {
        let mut reached = BTreeMap::from([(from, None)]);
        // Topics with the same subscribers reach the same members.
        let mut seen = vec![false; self.subscribers.lists.len()];
        let mut queue = VecDeque::from([(from, 0_usize)]);
        let mut last = usize::MAX;
        let open = (0..self.load.len()).filter(|&member| !self.settled[member]);
        let least = open.map(|member| self.load[member]).min().unwrap_or(0);
        while let Some((by, steps)) = queue.pop_front() {
            if steps >= last {
                break;
            }
            for &topic in self.held[by].keys() {
                if std::mem::replace(&mut seen[self.subscribers.of_topic[topic]], true) {
                    continue;
                }
                for &to in self.subscribers.of(topic) {
                    if self.settled[to] || reached.contains_key(&to) {
                        continue;
                    }
                    reached.insert(to, Some((by, topic)));
                    queue.push_back((to, steps + 1));
                    if only_as_far_as_needed && self.load[to] + 2 <= self.load[from] {
                        last = steps + 1;
                        if self.load[to] == least {
                            return reached;
                        }
                    }
                }
            }
        }
        reached
    }

    /// Nothing can be made more even from here, nor from anywhere that this member reaches: they all have
    /// at most as much as it has, and at least one less.
    fn settle(&mut self, from: usize) {
        for member in self.reach(from, false).into_keys() {
            self.settled[member] = true;
        }
    }

    /// Moves a partition: one that comes home, else one that has left home already, else the last.
    fn pass_on(&mut self, Step { topic, from, to }: Step) {
        let Some(partitions) = self.held[from].get_mut(&topic) else { return };
        let homes = &self.previous[topic];
        let best = partitions.iter().copied().max_by_key(|&partition| {
            let home = homes[partition];
            (home == Some(to), home != Some(from), partition)
        });
        let Some(partition) = best else { return };
        partitions.remove(&partition);
        if partitions.is_empty() {
            self.held[from].remove(&topic);
        }
        self.held[to].entry(topic).or_default().insert(partition);
        self.owners[topic][partition] = Some(to);
        self.load[from] -= 1;
        self.load[to] += 1;
    }
}
