//! Topics and queues of a producer, behind one lock: which partition a record goes to, and what the driver
//! does to all queues at once. No I/O here.

use std::{
    collections::{HashMap, VecDeque},
    num::NonZeroU32,
    sync::Arc,
};

use rimstone_proto::v1;
use rimstone_record::{NewRecord, partitioner::partition_for_key};
use rimstone_types::{PartitionIndex, Sequence};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use crate::{
    error::{ClientError, Code, reason},
    producer::{
        closed,
        queue::{Identity, Outgoing, Pushed, Queue, QueueConfig, Verdict},
        record::Answer,
        tracker::Token,
    },
};

/// What the server said of a topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TopicFacts {
    pub(crate) partitions: NonZeroU32,
    pub(crate) record_bytes_max: usize,
    pub(crate) asked: Instant,
}

#[derive(Debug)]
struct Topic {
    facts: TopicFacts,
    /// Where the partition's queue is.
    queues: HashMap<PartitionIndex, usize>,
    /// Where records without a key go until the batch there is closed.
    sticky: PartitionIndex,
    /// For a named producer: the next sequence where something is stored. `None` until it was asked for.
    stored: Option<HashMap<PartitionIndex, Sequence>>,
}

/// Everything that the handles and the driver both touch.
#[derive(Debug)]
pub(crate) struct State {
    config: QueueConfig,
    named: bool,
    topics: HashMap<Arc<str>, Topic>,
    queues: Vec<Queue>,
    /// The queue that was served last.
    served: usize,
    identity: Option<Identity>,
    closing: bool,
    fatal: Option<ClientError>,
}

impl State {
    pub(crate) fn new(config: QueueConfig, named: bool) -> Self {
        Self {
            config,
            named,
            topics: HashMap::new(),
            queues: Vec::new(),
            served: 0,
            identity: None,
            closing: false,
            fatal: None,
        }
    }

    fn usable(&self) -> Result<(), ClientError> {
        match &self.fatal {
            Some(error) => Err(error.clone()),
            None if self.closing => Err(closed()),
            None => Ok(()),
        }
    }

    pub(crate) fn topic(&self, topic: &str) -> Result<Option<TopicFacts>, ClientError> {
        self.usable()?;
        Ok(self.topics.get(topic).map(|topic| topic.facts))
    }

    pub(crate) fn set_topic(&mut self, name: &str, facts: TopicFacts) -> Result<TopicFacts, ClientError> {
        self.usable()?;
        if let Some(topic) = self.topics.get_mut(name) {
            topic.facts = facts;
        } else {
            // Producers that start together do not all begin with partition 0.
            let sticky = PartitionIndex(rand::random_range(0..facts.partitions.get()));
            let topic = Topic { facts, queues: HashMap::new(), sticky, stored: None };
            self.topics.insert(name.into(), topic);
        }
        Ok(facts)
    }

    /// Puts a record into the queue of its partition; answers whether the driver should look.
    #[expect(
        clippy::too_many_arguments,
        reason = "what a record brings with it; a struct would only rename it"
    )]
    pub(crate) fn push(
        &mut self,
        topic: &str,
        partition: Option<PartitionIndex>,
        record: &NewRecord,
        waiter: oneshot::Sender<Answer>,
        room: OwnedSemaphorePermit,
        token: impl FnOnce() -> Token,
        now: Instant,
    ) -> Result<bool, ClientError> {
        self.usable()?;
        let Some((name, known)) = self.topics.get_key_value(topic) else {
            return Err(topic_gone(topic));
        };
        let name = name.clone();
        let count = known.facts.partitions;
        let sticky = known.sticky;
        let partition = match (partition, &record.key) {
            (Some(partition), _) if partition.0 >= count.get() => {
                return Err(ClientError::new(
                    Code::NotFound,
                    reason::PARTITION_NOT_FOUND,
                    format!("topic {topic} has no partition {partition}; it has {count}, from 0 on"),
                )
                .with("topic", topic)
                .with("partition", partition));
            }
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for_key(key, count),
            (None, None) => sticky,
        };
        let next = self.first_sequence(topic, partition);
        let known = self.topics.get_mut(topic).ok_or_else(|| topic_gone(topic))?;
        let at = *known.queues.entry(partition).or_insert_with(|| {
            self.queues.push(Queue::new(name, partition, self.config, next));
            self.queues.len() - 1
        });
        let pushed = self.queues[at].push(record, waiter, room, token, now)?;
        if pushed == Pushed::Filled {
            self.turn_sticky(at);
        }
        Ok(pushed != Pushed::Joined)
    }

    fn first_sequence(&self, topic: &str, partition: PartitionIndex) -> Option<Sequence> {
        self.identity?;
        if !self.named {
            return Some(Sequence::ZERO);
        }
        let stored = self.topics.get(topic)?.stored.as_ref()?;
        Some(stored.get(&partition).copied().unwrap_or(Sequence::ZERO))
    }

    /// The sticky batch of a topic is closed: its next records without a key go to the next partition.
    fn turn_sticky(&mut self, at: usize) {
        let queue = &self.queues[at];
        if let Some(topic) = self.topics.get_mut(queue.topic())
            && topic.sticky == queue.partition()
        {
            topic.sticky = PartitionIndex((topic.sticky.0 + 1) % topic.facts.partitions);
        }
    }

    pub(crate) fn close_open(&mut self) {
        for at in 0..self.queues.len() {
            if self.queues[at].close_open() {
                self.turn_sticky(at);
            }
        }
    }

    pub(crate) fn close(&mut self) {
        self.closing = true;
        self.close_open();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    pub(crate) fn has_work(&self) -> bool {
        self.queues.iter().any(Queue::has_work)
    }

    pub(crate) fn expire(&mut self, now: Instant) {
        for queue in &mut self.queues {
            queue.expire(now);
        }
    }

    pub(crate) fn next_timer(&self, now: Instant, connected: bool) -> Option<Instant> {
        self.queues.iter().filter_map(|queue| queue.next_timer(now, connected)).min()
    }

    /// While a renewal is due no batch is numbered: everything under the old id has to be resolved first.
    fn numbering(&self) -> bool {
        !self.queues.iter().any(Queue::needs_renewal)
    }

    pub(crate) fn is_sendable(&self, now: Instant) -> bool {
        let numbering = self.numbering();
        self.queues.iter().any(|queue| queue.is_sendable(now, numbering))
    }

    /// The next batch to go out, queues in turn.
    pub(crate) fn take(&mut self, now: Instant) -> Option<(usize, PartitionIndex, Arc<str>, Outgoing)> {
        let identity = self.identity?;
        let numbering = self.numbering();
        for step in 1..=self.queues.len() {
            let at = (self.served + step) % self.queues.len();
            let queue = &mut self.queues[at];
            if let Some(outgoing) = queue.take(now, numbering, identity) {
                let (topic, partition) = (queue.topic().clone(), queue.partition());
                self.served = at;
                self.turn_sticky(at);
                return Some((at, partition, topic, outgoing));
            }
        }
        None
    }

    pub(crate) fn answered(&mut self, queue: usize, uid: u64, verdict: Verdict, now: Instant) {
        self.queues[queue].answered(uid, verdict, now);
    }

    pub(crate) fn disconnected(&mut self) {
        for queue in &mut self.queues {
            queue.disconnected();
        }
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity
    }

    pub(crate) fn set_identity(&mut self, identity: Identity) {
        if self.identity == Some(identity) {
            return;
        }
        self.identity = Some(identity);
        if !self.named {
            for queue in &mut self.queues {
                queue.learned(Sequence::ZERO);
            }
        }
    }

    /// Whether a new id or epoch is due and nothing of the present one is unresolved.
    pub(crate) fn renewal_is_ready(&self) -> bool {
        self.identity.is_some() && !self.numbering() && !self.queues.iter().any(Queue::has_numbered)
    }

    /// Forgets id and epoch, so that the next connection takes new ones.
    pub(crate) fn renew(&mut self) {
        self.identity = None;
        for queue in &mut self.queues {
            queue.renew(None);
        }
        for topic in self.topics.values_mut() {
            topic.stored = None;
        }
    }

    /// The server has lost what it knew of this producer.
    pub(crate) fn state_lost(&mut self, error: &ClientError) {
        for queue in &mut self.queues {
            queue.state_lost(error);
        }
    }

    /// Whether it is not known yet what of a topic is stored (named producers).
    pub(crate) fn is_unlearned(&self, topic: &str) -> bool {
        self.named && self.topics.get(topic).is_some_and(|topic| topic.stored.is_none())
    }

    /// Topics whose stored sequences are not known yet (named producers), at most `count`, without some.
    pub(crate) fn unlearned(&self, count: usize, without: &VecDeque<String>) -> Vec<String> {
        let names = self.topics.keys().filter(|name| self.is_unlearned(name)).map(|name| name.to_string());
        names.filter(|name| !without.contains(name)).take(count).collect()
    }

    /// Topics to ask for when a stream is opened: the unlearned first, then those with open batches, without some.
    pub(crate) fn to_ask(&self, count: usize, without: &VecDeque<String>) -> Vec<String> {
        let mut names = self.unlearned(count, without);
        for queue in self.queues.iter().filter(|queue| queue.has_numbered()) {
            let asked = names.iter().chain(without).any(|name| **name == **queue.topic());
            if names.len() < count && !asked {
                names.push(queue.topic().to_string());
            }
        }
        names
    }

    /// The server said what is stored in these topics. Answers how many of the open batches that it tells of
    /// are stored, of how many.
    pub(crate) fn learned(
        &mut self,
        topics: &[String],
        states: &[v1::ProducerPartitionState],
    ) -> (usize, usize) {
        for name in topics {
            let Some(topic) = self.topics.get_mut(name.as_str()) else { continue };
            if !self.named || topic.stored.is_some() {
                continue;
            }
            let mut stored = HashMap::new();
            for (partition, last) in of_topic(name, states) {
                stored.insert(partition, last.wrapping_add(1));
            }
            for (partition, at) in &topic.queues {
                self.queues[*at].learned(stored.get(partition).copied().unwrap_or(Sequence::ZERO));
            }
            topic.stored = Some(stored);
        }
        let mut counts = (0, 0);
        for (name, topic) in topics.iter().filter_map(|name| Some((name, self.topics.get(name.as_str())?))) {
            for (partition, last) in of_topic(name, states) {
                if let Some(at) = topic.queues.get(&partition) {
                    let (stored, open) = self.queues[*at].numbered_up_to(last);
                    counts = (counts.0 + stored, counts.1 + open);
                }
            }
        }
        counts
    }

    /// The topic is not there any more: what is open for it fails, and it will be asked for again.
    pub(crate) fn topic_gone(&mut self, topic: &str, error: &ClientError) {
        if let Some(gone) = self.topics.remove(topic) {
            for at in gone.queues.into_values() {
                self.queues[at].fail_all(error);
            }
        }
    }

    /// Ends the producer.
    pub(crate) fn fail(&mut self, error: ClientError) {
        for queue in &mut self.queues {
            queue.fail_all(&error);
        }
        self.fatal.get_or_insert(error);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.fatal.is_some()
    }
}

fn of_topic<'a>(
    topic: &'a str,
    states: &'a [v1::ProducerPartitionState],
) -> impl Iterator<Item = (PartitionIndex, Sequence)> + 'a {
    states.iter().filter(|state| !state.by_request).filter_map(move |state| {
        let at = state.partition.as_ref().filter(|at| at.topic == topic)?;
        Some((PartitionIndex(at.partition), Sequence::new(state.last_sequence.into()).ok()?))
    })
}

fn topic_gone(topic: &str) -> ClientError {
    ClientError::new(Code::NotFound, reason::TOPIC_NOT_FOUND, format!("topic {topic} is not there any more"))
        .with("topic", topic)
}
