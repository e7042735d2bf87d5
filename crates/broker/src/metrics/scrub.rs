//! What the scrub counts.

use prometheus::{Gauge, IntCounter, Registry};
use rimstone_store::Scrubbed;
use rimstone_types::Timestamp;

/// Counters over all partitions.
#[derive(Debug)]
pub(crate) struct ScrubCounters {
    bytes: IntCounter,
    segments: IntCounter,
    passes: IntCounter,
    last: Gauge,
}

impl ScrubCounters {
    pub(super) fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            registry.register(Box::new(counter.clone())).expect("every name is registered once");
            counter
        };
        let help = "When the scrub last ended a pass over everything, Unix seconds; 0: not since the start.";
        let last = Gauge::new("rimstone_scrub_last_pass_timestamp_seconds", help).expect("a valid name");
        registry.register(Box::new(last.clone())).expect("every name is registered once");
        Self {
            bytes: counter("rimstone_scrub_bytes_total", "Bytes of segments that the scrub has verified."),
            segments: counter("rimstone_scrub_segments_total", "Segments that the scrub has verified."),
            passes: counter("rimstone_scrub_passes_total", "Passes of the scrub over everything that ended."),
            last,
        }
    }

    pub(crate) fn slice(&self, done: &Scrubbed) {
        self.bytes.inc_by(done.read.get());
        self.segments.inc_by(u64::from(done.segments));
    }

    pub(crate) fn passed(&self, now: Timestamp) {
        self.passes.inc();
        self.last.set(now.as_millis() as f64 / 1000.0);
    }
}
