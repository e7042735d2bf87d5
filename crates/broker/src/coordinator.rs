//! The coordinator of groups: one task per partition of `__consumer_offsets` that drives the pure deciders of
//! `rimstone-state`. It drains what waits for it, lets each request be decided, applies the records (with the
//! same `replay` that loading uses), submits them as batches, and lets nothing outward, refusals included,
//! before what it was decided on is durable. If an append fails, the state is thrown away and loaded from the
//! log; there is no second way to build it.
//!
//! Not here: the rules of groups (`rimstone-state`), what clients call (`groups`), the session of a member
//! (`member`).

mod command;
mod load;
mod members;
mod offsets_topic;
mod outward;
mod pulse;
mod shard;
mod shard_log;
mod table;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rimstone_record::partitioner::partition_for_key;
use rimstone_state::group::Decision;
use rimstone_store::{AppendError, Backpressure};
use rimstone_types::{GroupName, PartitionIndex};
use tokio::sync::{mpsc, oneshot};

use crate::{
    broker::Inner,
    error::{CoordinatorLoading, GroupRequestError, NoRoom, PartitionUnavailable, ShuttingDown},
    topics::{SlotError, Topic},
};

pub(crate) use command::{Command, Joining, Now, SessionStart};
pub(crate) use members::SessionUpdate;
pub(crate) use offsets_topic::{OFFSETS_TOPIC, SHARDS, offsets_settings};
pub(crate) use outward::Reply;
pub(crate) use pulse::{Overdue, Pulse};

/// Requests that wait for one shard. A drain takes a few hundred; more would only wait longer.
const MAILBOX: usize = 1024;

/// A request that finds the mailbox full waits so long: as long as a submit may wait for room.
const MAILBOX_WAIT_MAX: Duration = Duration::from_secs(10);

/// The shards, and what they share.
#[derive(Debug, Default)]
pub(crate) struct Coordinator {
    /// Set once `__consumer_offsets` exists.
    shards: OnceLock<Vec<mpsc::Sender<Command>>>,
    /// Tells sessions apart.
    tokens: AtomicU64,
    /// What is shown of groups in metrics, by shard.
    facts: Mutex<BTreeMap<u32, ShardFacts>>,
}

/// What is shown of one shard's groups.
#[derive(Debug, Clone, Default)]
pub(crate) struct ShardFacts {
    /// Groups, and how many members each has.
    pub(crate) members: BTreeMap<GroupName, u32>,
    /// Commits that went backwards since the shard was loaded.
    pub(crate) backwards: BTreeMap<GroupName, u64>,
}

impl ShardFacts {
    /// `None`: the group is no more.
    fn set(&mut self, group: GroupName, members: Option<u32>) {
        match members {
            Some(members) => drop(self.members.insert(group, members)),
            None => {
                self.members.remove(&group);
                self.backwards.remove(&group);
            }
        }
    }
}

/// Why the state that something was decided on is lost, or why nothing was decided.
#[derive(Debug, Clone)]
pub(crate) enum Lost {
    /// Its own append failed.
    Append(AppendError),
    /// Its append, or one before it, was not taken.
    Refused(Backpressure),
    /// The shard is being loaded, or an append before it failed.
    Loading,
    /// The shard cannot be loaded.
    Unusable(PartitionUnavailable),
}

impl From<Lost> for GroupRequestError {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Append(error) => error.into(),
            Lost::Refused(refusal) => refusal.into(),
            Lost::Loading => CoordinatorLoading.into(),
            Lost::Unusable(unusable) => unusable.into(),
        }
    }
}

/// The shard of a group: its name, partitioned as Kafka's clients partition a key.
pub(crate) fn shard_of(group: &GroupName) -> u32 {
    partition_for_key(group.as_str().as_bytes(), SHARDS).0
}

impl Coordinator {
    /// A number for a new session.
    pub(crate) fn token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether there have ever been groups.
    pub(crate) fn is_used(&self) -> bool {
        self.shards.get().is_some()
    }

    /// Shards that have not been loaded since the start: nobody knows their groups yet.
    pub(crate) fn not_loaded(&self) -> Vec<u32> {
        let facts = self.facts.lock();
        (0..SHARDS.get()).filter(|shard| self.is_used() && !facts.contains_key(shard)).collect()
    }

    /// What is shown of all groups.
    pub(crate) fn facts(&self) -> Vec<ShardFacts> {
        self.facts.lock().values().cloned().collect()
    }

    /// Whether a group is shown.
    fn shows(&self, shard: u32, group: &GroupName) -> bool {
        self.facts.lock().get(&shard).is_some_and(|facts| facts.members.contains_key(group))
    }

    /// Commits of a group's members that went backwards since it was loaded.
    pub(crate) fn backwards(&self, group: &GroupName) -> u64 {
        let facts = self.facts.lock();
        facts.get(&shard_of(group)).and_then(|facts| facts.backwards.get(group)).copied().unwrap_or(0)
    }

    /// Counts commits that went backwards, of a group that is shown.
    pub(crate) fn count_backwards(&self, group: &GroupName, count: u64) {
        self.show(shard_of(group), |facts| {
            if facts.members.contains_key(group) {
                *facts.backwards.entry(group.clone()).or_default() += count;
            }
        });
    }

    /// Changes what is shown of one shard.
    fn show(&self, shard: u32, change: impl FnOnce(&mut ShardFacts)) {
        change(self.facts.lock().entry(shard).or_default());
    }
}

impl Inner {
    /// Starts the shards over the partitions of `__consumer_offsets`. They load in the background.
    pub(crate) fn start_shards(self: &Arc<Self>, topic: &Topic) {
        self.coordinator.shards.get_or_init(|| {
            let start = |shard| {
                let (sender, mailbox) = mpsc::channel(MAILBOX);
                let store = match topic.partition(PartitionIndex(shard)) {
                    Ok(store) => Ok(Arc::clone(store)),
                    Err(SlotError::Unavailable(unavailable)) => Err(unavailable),
                    Err(SlotError::NotFound(not_found)) => Err(PartitionUnavailable {
                        topic: topic.name.clone(),
                        partition: PartitionIndex(shard),
                        why: not_found.to_string(),
                    }),
                };
                self.tasks.spawn(load::run(Arc::clone(self), shard, store, mailbox));
                sender
            };
            (0..SHARDS.get()).map(start).collect()
        });
    }

    /// Makes what groups are kept in, if this is the first that is asked of them.
    pub(crate) async fn ensure_coordinator(self: &Arc<Self>) -> Result<(), GroupRequestError> {
        if self.coordinator.is_used() {
            return Ok(());
        }
        let inner = Arc::clone(self);
        let made = async move {
            let topic = inner.make_offsets_topic().await?;
            inner.start_shards(&topic);
            Ok(())
        };
        self.detached(made).await
    }

    /// Has a group's shard decide something, and waits for the answer. There must be shards.
    pub(crate) async fn decide<T: Send + 'static>(
        &self,
        group: &GroupName,
        decide: impl FnOnce(&Now<'_>) -> Result<Decision<T>, GroupRequestError> + Send + 'static,
    ) -> Result<T, GroupRequestError> {
        self.ask_shard(shard_of(group), |reply| Command::ask(reply, decide)).await
    }

    /// Has a shard look at its groups, and waits for the answer. There must be shards.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        shard: u32,
        look: impl FnOnce(&Now<'_>) -> Result<T, GroupRequestError> + Send + 'static,
    ) -> Result<T, GroupRequestError> {
        self.ask_shard(shard, |reply| Command::look(reply, look)).await
    }

    /// Asks a shard and waits for the answer.
    pub(crate) async fn ask_shard<T: Send + 'static>(
        &self,
        shard: u32,
        ask: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, GroupRequestError> {
        let mailbox = self.mailbox(shard)?;
        let room = tokio::time::timeout(MAILBOX_WAIT_MAX, mailbox.reserve()).await;
        let room = room.map_err(|_| NoRoom::new("requests of a coordinator shard", 1, MAILBOX as u64))?;
        let (reply, answer) = oneshot::channel();
        // A closed mailbox is that of a shard that has stopped with the server.
        room.map_err(|_| ShuttingDown)?.send(ask(reply));
        answer.await.unwrap_or_else(|_| Err(ShuttingDown.into()))
    }

    /// The way to a shard.
    pub(crate) fn mailbox(&self, shard: u32) -> Result<&mpsc::Sender<Command>, GroupRequestError> {
        let shards = self.coordinator.shards.get();
        Ok(shards.and_then(|shards| shards.get(shard as usize)).ok_or(CoordinatorLoading)?)
    }
}

#[cfg(test)]
mod tests;
