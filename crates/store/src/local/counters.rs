//! What the store counts.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::storage::StoreStatistics;

/// Upper bounds of the sync histogram, in microseconds: from a fast disk's cache to a disk in trouble.
const SYNC_BOUNDS_US: [u64; 16] = [
    50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 204_800, 409_600,
    1_000_000, 10_000_000,
];

/// Counters since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_failures: AtomicU64,
    sync_us: AtomicU64,
    sync_buckets: [AtomicU64; SYNC_BOUNDS_US.len()],
    pub(crate) written_bytes: AtomicU64,
    pub(crate) write_failures: AtomicU64,
    pub(crate) groups: AtomicU64,
    pub(crate) group_partitions: AtomicU64,
    pub(crate) torn_tail_bytes: AtomicU64,
    pub(crate) damaged_ranges: AtomicU64,
    pub(crate) segments_deleted: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn synced(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Self::add(&self.syncs, 1);
        Self::add(&self.sync_us, us);
        if let Some(bucket) = SYNC_BOUNDS_US.iter().position(|bound| us <= *bound) {
            Self::add(&self.sync_buckets[bucket], 1);
        }
    }

    pub(crate) fn snapshot(&self) -> StoreStatistics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut below = 0;
        let buckets = SYNC_BOUNDS_US.iter().zip(&self.sync_buckets).map(|(bound, count)| {
            below += get(count);
            (*bound as f64 / 1e6, below)
        });
        StoreStatistics {
            sync_seconds_buckets: buckets.collect(),
            syncs: get(&self.syncs),
            sync_failures: get(&self.sync_failures),
            sync_seconds_sum: get(&self.sync_us) as f64 / 1e6,
            written_bytes: get(&self.written_bytes),
            write_failures: get(&self.write_failures),
            groups: get(&self.groups),
            group_partitions: get(&self.group_partitions),
            torn_tail_bytes: get(&self.torn_tail_bytes),
            damaged_ranges: get(&self.damaged_ranges),
            segments_deleted: get(&self.segments_deleted),
        }
    }
}
