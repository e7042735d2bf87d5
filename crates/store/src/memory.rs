//! A store that keeps everything in memory: for tests, and for a server whose data may be lost. What it takes
//! is as durable as it will ever be at once.
//!
//! Not here: files, flushing, recovery.

mod contents;
mod partition;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures::future::{BoxFuture, FutureExt, ready};
use parking_lot::{Mutex, RwLock};
use rimstone_types::{ByteCount, PartitionId, ProducerEpoch, ProducerId, TopicId};
use uuid::Uuid;

use crate::{
    Health, OpenError, OpenMode, PartitionConfig, PartitionStore, Storage, StoreError, StoreStatistics,
    SyncMethod,
};
use contents::Contents;
use partition::MemoryPartition;

/// What all partitions together may hold, unless told otherwise: what fits a small machine.
const CAPACITY: ByteCount = ByteCount::mib(1024);

/// Partitions that there may be: a table without a bound would grow with whatever clients ask for.
const PARTITIONS_MAX: usize = 100_000;

/// Keeps partitions in memory.
#[derive(Debug)]
pub struct MemoryStorage {
    shared: Arc<Shared>,
    partitions: Mutex<BTreeMap<PartitionId, Kept>>,
}

/// A partition, and its handle if it is open.
#[derive(Debug)]
struct Kept {
    contents: Arc<Mutex<Contents>>,
    open: Option<Arc<MemoryPartition>>,
}

/// What the partitions of a store share.
#[derive(Debug)]
struct Shared {
    identity: Uuid,
    capacity: ByteCount,
    closed: AtomicBool,
    /// Read through the whole of a submit, so that a fence that was set has no submit behind it that did not
    /// see it.
    fences: RwLock<HashMap<ProducerId, Option<ProducerEpoch>>>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    held_bytes: AtomicU64,
    written_bytes: AtomicU64,
    segments_deleted: AtomicU64,
}

impl MemoryStorage {
    /// An empty store that holds at most 1 GiB.
    pub fn new() -> Self {
        Self::with_capacity(CAPACITY)
    }

    /// An empty store that refuses appends while it holds `capacity` or more.
    pub fn with_capacity(capacity: ByteCount) -> Self {
        Self::with_identity(capacity, Uuid::new_v4())
    }

    fn with_identity(capacity: ByteCount, identity: Uuid) -> Self {
        let shared = Shared {
            identity,
            capacity,
            closed: AtomicBool::new(false),
            fences: RwLock::default(),
            counters: Counters::default(),
        };
        Self { shared: Arc::new(shared), partitions: Mutex::default() }
    }

    /// What a closed store held, opened again: as after a clean stop and a start. Fences are the caller's to
    /// set again.
    pub fn reopen(&self) -> Self {
        let next = Self::with_identity(self.shared.capacity, self.shared.identity);
        let held = self.shared.counters.held_bytes.load(Ordering::Relaxed);
        next.shared.counters.held_bytes.store(held, Ordering::Relaxed);
        for (&id, kept) in self.partitions.lock().iter() {
            let contents = Arc::new(Mutex::new(kept.contents.lock().after_restart()));
            next.partitions.lock().insert(id, Kept { contents, open: None });
        }
        next
    }

    fn open_now(
        &self,
        id: PartitionId,
        config: PartitionConfig,
        mode: OpenMode,
    ) -> Result<Arc<dyn PartitionStore>, OpenError> {
        let mut partitions = self.partitions.lock();
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(StoreError::ShuttingDown.into());
        }
        let count = partitions.len();
        let kept = match (partitions.get_mut(&id), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(OpenError::Exists(id)),
            (None, OpenMode::MustExist) => return Err(OpenError::Missing(id)),
            (Some(kept), OpenMode::MustExist) => kept,
            (None, OpenMode::CreateNew) if count >= PARTITIONS_MAX => {
                return Err(StoreError::Limit { what: "partitions", limit: PARTITIONS_MAX as u64 }.into());
            }
            (None, OpenMode::CreateNew) => {
                let contents = Arc::new(Mutex::new(Contents::new(config.clone())));
                partitions.entry(id).or_insert(Kept { contents, open: None })
            }
        };
        if let Some(open) = kept.open.as_ref().filter(|open| open.is_open()) {
            return Ok(open.clone());
        }
        kept.contents.lock().configure(config);
        let open = Arc::new(MemoryPartition::new(Arc::clone(&self.shared), Arc::clone(&kept.contents)));
        kept.open = Some(Arc::clone(&open));
        Ok(open)
    }

    fn delete_now(&self, topic: TopicId) -> Result<(), StoreError> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(StoreError::ShuttingDown);
        }
        self.partitions.lock().retain(|id, kept| {
            if id.topic == topic {
                if let Some(open) = &kept.open {
                    open.delete();
                }
                let held = kept.contents.lock().bytes();
                self.shared.counters.held_bytes.fetch_sub(held, Ordering::Relaxed);
            }
            id.topic != topic
        });
        Ok(())
    }

    fn close_now(&self) {
        let partitions = self.partitions.lock();
        self.shared.closed.store(true, Ordering::Release);
        for open in partitions.values().filter_map(|kept| kept.open.as_ref()) {
            open.close_now();
        }
    }
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl Storage for MemoryStorage {
    fn open(
        &self,
        id: PartitionId,
        config: PartitionConfig,
        mode: OpenMode,
    ) -> BoxFuture<'_, Result<Arc<dyn PartitionStore>, OpenError>> {
        ready(self.open_now(id, config, mode)).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<PartitionId>, StoreError>> {
        ready(Ok(self.partitions.lock().keys().copied().collect())).boxed()
    }

    fn delete(&self, topic: TopicId) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(self.delete_now(topic)).boxed()
    }

    fn fence(&self, producer: ProducerId, epoch: Option<ProducerEpoch>) {
        self.shared.fences.write().insert(producer, epoch);
    }

    fn health(&self) -> Health {
        Health::Healthy
    }

    fn statistics(&self) -> StoreStatistics {
        let counters = &self.shared.counters;
        StoreStatistics {
            written_bytes: counters.written_bytes.load(Ordering::Relaxed),
            segments_deleted: counters.segments_deleted.load(Ordering::Relaxed),
            ..StoreStatistics::default()
        }
    }

    fn identity(&self) -> Uuid {
        self.shared.identity
    }

    fn sync_method(&self) -> SyncMethod {
        SyncMethod { name: "memory", reason: "nothing outlives the process".to_owned() }
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.close_now();
        ready(Ok(())).boxed()
    }
}

#[cfg(test)]
mod tests;
