//! What compaction counts.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, Registry};
use rimstone_store::{Compacted, StoreError};

use super::latency;

/// Counters over all topics.
#[derive(Debug)]
pub(crate) struct CompactionCounters {
    passes: IntCounter,
    failures: IntCounter,
    read_bytes: IntCounter,
    written_bytes: IntCounter,
    removed_records: IntCounter,
    slice_seconds: Histogram,
}

impl CompactionCounters {
    pub(super) fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            registry.register(Box::new(counter.clone())).expect("every name is registered once");
            counter
        };
        Self {
            passes: counter("rimstone_compactions_total", "Passes over a partition that ended."),
            failures: counter("rimstone_compaction_failures_total", "Passes that failed."),
            read_bytes: counter("rimstone_compaction_read_bytes_total", "Bytes of log read by compaction."),
            written_bytes: counter(
                "rimstone_compaction_written_bytes_total",
                "Bytes of log written anew by compaction.",
            ),
            removed_records: counter(
                "rimstone_compaction_removed_records_total",
                "Records that compaction has taken away.",
            ),
            slice_seconds: latency(
                registry,
                "rimstone_compaction_slice_duration_seconds",
                "Time of one slice of compaction, waits for the flusher included.",
            ),
        }
    }

    /// A slice ended, one way or the other.
    pub(crate) fn slice(&self, result: &Result<Compacted, StoreError>, took: Duration) {
        self.slice_seconds.observe(took.as_secs_f64());
        match result {
            Ok(done) => {
                self.passes.inc_by(u64::from(done.finished));
                self.read_bytes.inc_by(done.read.get());
                self.written_bytes.inc_by(done.written.get());
                self.removed_records.inc_by(done.records_removed);
            }
            Err(StoreError::Deleted | StoreError::ShuttingDown) => {}
            Err(_) => self.failures.inc(),
        }
    }
}
