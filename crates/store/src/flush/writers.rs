//! Descriptors that segments are written through: kept while they are in use, given back when they are not.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rimstone_types::PartitionId;

use crate::{local::LocalPartition, partition::WRITTEN_SYNC_INTERVAL};

/// Segment files kept open for writing, at most, and of the descriptors that the process may have, at most this part.
/// With more in use at the same time, those that were not used for longest are given back and opened again in turn.
const OPEN_WRITERS_MAX: usize = 4096;
const OPEN_WRITERS_PART: u64 = 4;
/// A writer that was not used for so long is given back: a partition that is idle holds no descriptor.
const WRITER_IDLE: Duration = Duration::from_secs(10);

/// How many segment files may be open for writing at one time.
pub(super) fn most() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let part =
        limit.map_or(usize::MAX, |limit| usize::try_from(limit / OPEN_WRITERS_PART).unwrap_or(usize::MAX));
    part.clamp(1, OPEN_WRITERS_MAX)
}

/// Partitions whose segment file is open for writing.
pub(super) struct Writers {
    most: usize,
    used: HashMap<PartitionId, (Arc<LocalPartition>, Instant)>,
    /// When it is next looked for idle ones.
    look_at: Option<Instant>,
}

impl Writers {
    pub(super) fn new(most: usize) -> Self {
        Self { most, used: HashMap::new(), look_at: None }
    }

    pub(super) fn used(&mut self, partition: &Arc<LocalPartition>, now: Instant) {
        self.used.insert(partition.id, (Arc::clone(partition), now));
        self.look_at.get_or_insert(now + WRITER_IDLE);
    }

    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Gives back those that are idle, and those that are too many: some more than that, so that it is not looked
    /// through all of them after every round.
    pub(super) fn give_back(&mut self, now: Instant) {
        if self.look_at.is_some_and(|at| at <= now) {
            self.used.retain(|_, (partition, at)| {
                now.duration_since(*at) < WRITER_IDLE || !partition.release_writer()
            });
            let next = self.used.values().map(|(_, at)| *at + WRITER_IDLE).min();
            // One that could not be given back waits for a sync.
            self.look_at = next.map(|next| next.max(now + WRITTEN_SYNC_INTERVAL));
        }
        if self.used.len() > self.most {
            let mut by_age: Vec<_> = self.used.iter().map(|(id, (_, at))| (*at, *id)).collect();
            by_age.sort_unstable();
            let surplus = self.used.len() - (self.most - self.most / 8);
            for (_, id) in by_age.into_iter().take(surplus) {
                if self.used.get(&id).is_some_and(|(partition, _)| partition.release_writer()) {
                    self.used.remove(&id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rimstone_types::Offset;

    use super::*;
    use crate::{
        local::testing::{self, Opened},
        storage::Storage as _,
    };

    #[tokio::test]
    async fn those_that_are_too_many_or_idle_are_given_back() {
        let Opened { directory, partitions, storage } = testing::opened(10).await;
        let open = || {
            let descriptors = std::fs::read_dir("/proc/self/fd").expect("descriptors are listed").flatten();
            let files = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
            files
                .filter(|file| {
                    file.starts_with(directory.path()) && file.extension().is_some_and(|s| s == "log")
                })
                .count()
        };
        // The flusher has the files of the last group in its hands for a moment more.
        let until_open = async |most: usize| {
            let looked = async {
                while open() > most {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(120), looked).await.expect("they are closed");
            assert_eq!(open(), most);
        };
        let mut writers = Writers::new(4);
        for partition in &partitions {
            writers.used(partition, Instant::now());
        }
        assert_eq!(open(), 10);
        writers.give_back(Instant::now());
        // The most that may be open.
        until_open(4).await;
        writers.give_back(writers.look_at().expect("some are open") + WRITER_IDLE);
        assert_eq!(writers.look_at(), None);
        until_open(0).await;
        // One that was given back is opened again.
        testing::put(&partitions[0]).await;
        assert_eq!(open(), 1);
        assert_eq!(partitions[0].written_position().offset, Offset::new(2).expect("an offset"));
        storage.close().await.expect("it closes");
    }
}
