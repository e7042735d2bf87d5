//! What happens by itself: partitions are rolled by age, retention is applied, producers expire. Not here:
//! group commit (the store).

use std::{sync::Arc, time::Duration};

use rimstone_types::{ByteCount, Timestamp};
use tokio::time::{Instant, MissedTickBehavior};

use crate::broker::{Broker, Inner};

/// What one pass of maintenance did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MaintenanceReport {
    /// Partitions looked at.
    pub partitions: u32,
    /// Segments rolled by age.
    pub rolled: u32,
    /// Segments deleted.
    pub deleted: u32,
    /// Bytes freed.
    pub freed: ByteCount,
    /// Partitions whose maintenance failed; each was logged.
    pub failed: u32,
    /// More is due; a bound on one pass held it back.
    pub more: bool,
}

impl Broker {
    /// One pass of maintenance over all partitions, as if the time were `now`.
    pub async fn maintain(&self, now: Timestamp) -> MaintenanceReport {
        self.inner.maintain(now).await
    }
}

impl Inner {
    pub(crate) async fn maintain(&self, now: Timestamp) -> MaintenanceReport {
        let mut report = MaintenanceReport::default();
        for topic in self.topics.all() {
            for (partition, store) in topic.open_partitions() {
                if self.shutdown.is_cancelled() {
                    return report;
                }
                report.partitions += 1;
                match store.maintain(now).await {
                    Ok(did) => {
                        report.rolled += did.rolled;
                        report.deleted += did.deleted;
                        report.freed = ByteCount(report.freed.get() + did.freed.get());
                        report.more |= did.more;
                        if did.deleted > 0 {
                            let (segments, bytes, more) = (did.deleted, did.freed, did.more);
                            tracing::info!(topic = %topic.name, %partition, segments, %bytes, more, "retention");
                        }
                    }
                    Err(error) => {
                        report.failed += 1;
                        tracing::warn!(topic = %topic.name, %partition, %error, "maintenance failed");
                    }
                }
            }
        }
        report
    }

    /// Runs maintenance every so often until shutdown.
    pub(crate) async fn run_maintenance(self: Arc<Self>, every: Duration) {
        let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.shutdown.cancelled() => return,
            }
            self.maintain(self.clock.now()).await;
        }
    }
}

#[cfg(test)]
mod tests;
