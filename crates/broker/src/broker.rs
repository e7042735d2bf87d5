//! The handle: start, shutdown, and what is shared. What it does is in the other rooms, a file per verb.

mod start;

use std::{
    future::Future,
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use rimstone_record::Limits as RecordLimits;
use rimstone_store::{Health, Storage, StoreError, SyncMethod};
use rimstone_types::Timestamp;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    catalog::Catalog,
    clock::Clock,
    compaction::Compacting,
    config::BrokerConfig,
    coordinator::Coordinator,
    error::{Failure, Reason, ShuttingDown},
    groups::CommitTable,
    lag::LagTable,
    limits::Limits,
    metrics::Metrics,
    pace::Pace,
    producer_ids::Producers,
    reserve::Budget,
    sessions::Sessions,
    topics::{Slot, TopicTable},
};

/// Partitions that are opened or made at one time: enough to keep a disk busy, few enough for its queue.
pub(crate) const OPENS_AT_ONCE: usize = 16;

/// The broker. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Broker {
    pub(crate) inner: Arc<Inner>,
}

/// What all clones share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) config: BrokerConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) server_id: Uuid,
    pub(crate) started: Timestamp,
    pub(crate) topics: TopicTable,
    pub(crate) producers: Producers,
    pub(crate) sessions: Sessions,
    pub(crate) coordinator: Coordinator,
    /// Sessions of group members that may be open.
    pub(crate) member_sessions: Arc<Semaphore>,
    /// Durable commits and owners of groups.
    /// Durable commits and owners of groups.
    pub(crate) commits: CommitTable,
    /// What was counted from each commit.
    pub(crate) lag: Arc<LagTable>,
    /// One log is compacted at a time.
    pub(crate) compacting: tokio::sync::Mutex<Compacting>,
    /// Every mutation of the catalog holds it from the decision until the tables say the same.
    pub(crate) catalog: tokio::sync::Mutex<Catalog>,
    pub(crate) budget: Budget,
    pub(crate) waiting_fetches: Semaphore,
    pub(crate) readers: Arc<Semaphore>,
    /// How readers of history give way to producers.
    pub(crate) pace: Arc<Pace>,
    pub(crate) metrics: Metrics,
    /// Whose turn it is to take records without a key and without a producer.
    pub(crate) sticky: AtomicU32,
    /// Which partition of a fetch is read first.
    pub(crate) fetch_turn: AtomicU32,
    pub(crate) shutdown: CancellationToken,
    /// What must end before the store is closed: produce requests in flight, changes of the catalog.
    pub(crate) tasks: TaskTracker,
}

/// Why the server is not ready to take work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadinessIssue {
    /// It stops.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// Reads go on.
    #[error("a sync failed, writes are refused until the server is started again: {reason}")]
    Poisoned {
        /// The first failure, in words.
        reason: String,
    },
}

/// The server as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerDescription {
    /// Made when the data directory was made.
    pub server_id: Uuid,
    /// When this broker started.
    pub started: Timestamp,
    /// Topics, those of the server not counted.
    pub topics: u32,
    /// Their partitions.
    pub partitions: u32,
    /// Those of them that could not be opened.
    pub unavailable_partitions: u32,
    /// Those, and of the server's own, in which damage is known.
    pub damaged_partitions: u32,
    /// How appends become durable.
    pub sync_method: SyncMethod,
    /// How the device is.
    pub health: Health,
}

impl Broker {
    /// The server as it is shown.
    pub fn describe_server(&self) -> ServerDescription {
        let inner = &self.inner;
        let (topics, partitions) = inner.topics.count();
        let unavailable = |slot: &Slot| matches!(slot, Slot::Unavailable(_));
        let unavailable_partitions: usize = inner
            .topics
            .all()
            .iter()
            .map(|topic| topic.slots.iter().filter(|slot| unavailable(slot)).count())
            .sum();
        ServerDescription {
            server_id: inner.server_id,
            started: inner.started,
            topics,
            partitions,
            damaged_partitions: inner.damaged_partitions(),
            unavailable_partitions: u32::try_from(unavailable_partitions).unwrap_or(u32::MAX),
            sync_method: inner.storage.sync_method(),
            health: inner.storage.health(),
        }
    }

    /// All metrics in the classic Prometheus text format.
    pub fn metrics_text(&self) -> String {
        self.inner.metrics.text()
    }

    /// Counts an error that a door answered by itself, beside those that the broker counts.
    pub fn count_error(&self, reason: Reason) {
        self.inner.metrics.reason(reason);
    }

    /// How the device is.
    pub fn health(&self) -> Health {
        self.inner.storage.health()
    }

    /// Whether work is taken. A full disk does not count: reads go on, and writes come back by themselves.
    ///
    /// # Errors
    /// [`ReadinessIssue`].
    pub fn ready(&self) -> Result<(), ReadinessIssue> {
        if self.inner.shutdown.is_cancelled() {
            return Err(ReadinessIssue::ShuttingDown);
        }
        match self.inner.storage.health() {
            Health::Poisoned { reason } => Err(ReadinessIssue::Poisoned { reason }),
            Health::Healthy | Health::DiskReserveReached { .. } => Ok(()),
        }
    }

    /// The bounds in force.
    pub fn limits(&self) -> &Limits {
        &self.inner.config.limits
    }

    /// The bounds within which stored batches are decoded.
    pub fn record_limits(&self) -> RecordLimits {
        self.inner.record_limits()
    }

    /// Cancelled by [`Broker::begin_shutdown`].
    pub fn shutdown_token(&self) -> CancellationToken {
        self.inner.shutdown.clone()
    }

    /// New work is refused from now on; fetches that wait and readers end.
    pub fn begin_shutdown(&self) {
        self.inner.shutdown.cancel();
    }

    /// Waits for what is in flight, at most for `deadline`, then closes the store, which makes everything
    /// durable. What is still open at the deadline is answered as the store decides.
    ///
    /// # Errors
    /// [`StoreError`]: the store could not be closed cleanly; the next start recovers.
    pub async fn finish_shutdown(&self, deadline: Duration) -> Result<(), StoreError> {
        self.begin_shutdown();
        self.inner.tasks.close();
        if tokio::time::timeout(deadline, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!(
                open = self.inner.tasks.len(),
                "requests are still open at the deadline of the shutdown"
            );
        }
        self.inner.storage.close().await
    }

    /// Counts the error of an operation.
    pub(crate) fn counted<T, E: Failure>(&self, result: Result<T, E>) -> Result<T, E> {
        result.inspect_err(|error| self.inner.metrics.error(error))
    }
}

impl Inner {
    pub(crate) fn refuse_when_stopping(&self) -> Result<(), ShuttingDown> {
        if self.shutdown.is_cancelled() { Err(ShuttingDown) } else { Ok(()) }
    }

    pub(crate) fn record_limits(&self) -> RecordLimits {
        let bytes = self.config.limits.uncompressed_batch.get();
        RecordLimits {
            uncompressed_bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            ..RecordLimits::default()
        }
    }

    /// Runs something that must not stop half-way when its caller goes away: a change of the catalog and of
    /// the tables that say the same.
    pub(crate) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        match self.tasks.spawn(work).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Nobody aborts these tasks: the runtime itself goes away, and whoever waits with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

#[cfg(test)]
mod tests;
