//! What the broker counts, as classic Prometheus text. Not here: the HTTP that serves it (`rimstone-web`).

mod collector;
mod compaction;
mod groups;
mod lag;
mod scrub;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};
use rimstone_store::ReadBatch;
use rimstone_types::TopicName;

pub(crate) use collector::StateCollector;
pub(crate) use compaction::CompactionCounters;
use groups::GroupCounters;
use scrub::ScrubCounters;

use crate::error::{Failure, Reason};

/// From what a sync takes on a fast disk to what a client gives up at, in seconds.
const LATENCY_BUCKETS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    errors: IntCounterVec,
    produced_records: IntCounterVec,
    produced_bytes: IntCounterVec,
    duplicate_batches: IntCounterVec,
    fetched_records: IntCounterVec,
    fetched_bytes: IntCounterVec,
    pub(crate) groups: GroupCounters,
    pub(crate) compaction: CompactionCounters,
    pub(crate) scrub: ScrubCounters,
    pub(crate) produce_seconds: Histogram,
    pub(crate) fetch_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let per_topic = |name: &str, help: &str| counters(&registry, name, help, "topic");
        let metrics = Self {
            errors: counters(
                &registry,
                "rimstone_errors_total",
                "Errors answered, by their reason.",
                "reason",
            ),
            produced_records: per_topic("rimstone_produced_records_total", "Records appended."),
            produced_bytes: per_topic(
                "rimstone_produced_bytes_total",
                "Bytes of batches appended, as stored.",
            ),
            duplicate_batches: per_topic(
                "rimstone_duplicate_batches_total",
                "Batches recognised as stored before; nothing was appended for them.",
            ),
            fetched_records: per_topic(
                "rimstone_fetched_records_total",
                "Records in the batches read for clients.",
            ),
            fetched_bytes: per_topic(
                "rimstone_fetched_bytes_total",
                "Bytes of batches read for clients, as stored.",
            ),
            groups: GroupCounters::new(&registry),
            compaction: CompactionCounters::new(&registry),
            scrub: ScrubCounters::new(&registry),
            produce_seconds: latency(
                &registry,
                "rimstone_produce_duration_seconds",
                "Time from a produce request's arrival in the broker to its fate, durability included.",
            ),
            fetch_seconds: latency(
                &registry,
                "rimstone_fetch_duration_seconds",
                "Time that a fetch spent reading; waiting for records to come is not counted.",
            ),
            registry,
        };
        // A reason that never came is a zero, not a gap: alerts on rates need the zero.
        for reason in Reason::ALL {
            metrics.errors.with_label_values(&[reason.as_str()]);
        }
        metrics
    }

    /// Adds what is collected when asked for.
    pub(crate) fn collect_from(&self, collector: StateCollector) {
        self.registry.register(Box::new(collector)).expect("its names are its own");
    }

    pub(crate) fn error(&self, error: &impl Failure) {
        self.reason(error.reason());
    }

    pub(crate) fn reason(&self, reason: Reason) {
        self.errors.with_label_values(&[reason.as_str()]).inc();
    }

    /// The counters of a topic; they go on counting unseen once the topic is forgotten.
    pub(crate) fn topic(&self, topic: &TopicName) -> TopicCounters {
        let of = |counters: &IntCounterVec| counters.with_label_values(&[topic.as_str()]);
        TopicCounters {
            produced_records: of(&self.produced_records),
            produced_bytes: of(&self.produced_bytes),
            duplicate_batches: of(&self.duplicate_batches),
            fetched_records: of(&self.fetched_records),
            fetched_bytes: of(&self.fetched_bytes),
        }
    }

    /// A deleted topic leaves no series behind.
    pub(crate) fn forget_topic(&self, topic: &TopicName) {
        for counters in [
            &self.produced_records,
            &self.produced_bytes,
            &self.duplicate_batches,
            &self.fetched_records,
            &self.fetched_bytes,
        ] {
            // An error means that there was none.
            drop(counters.remove_label_values(&[topic.as_str()]));
        }
    }

    pub(crate) fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            tracing::error!(%error, "metrics cannot be encoded");
            String::new()
        })
    }
}

/// What is counted per topic.
#[derive(Debug, Clone)]
pub(crate) struct TopicCounters {
    produced_records: IntCounter,
    produced_bytes: IntCounter,
    duplicate_batches: IntCounter,
    fetched_records: IntCounter,
    fetched_bytes: IntCounter,
}

impl TopicCounters {
    pub(crate) fn produced(&self, records: u32, bytes: u64, duplicate: bool) {
        if duplicate {
            self.duplicate_batches.inc();
        } else {
            self.produced_records.inc_by(u64::from(records));
            self.produced_bytes.inc_by(bytes);
        }
    }

    pub(crate) fn fetched(&self, batches: &[ReadBatch]) {
        for read in batches {
            self.fetched_records.inc_by(u64::from(read.batch.header().record_count));
            self.fetched_bytes.inc_by(read.batch.bytes().len() as u64);
        }
    }
}

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    let counters = IntCounterVec::new(Opts::new(name, help), &[label]).expect("a valid name and label");
    registry.register(Box::new(counters.clone())).expect("every name is registered once");
    counters
}

fn latency(registry: &Registry, name: &str, help: &str) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
    let histogram = Histogram::with_opts(options).expect("a valid name and sorted buckets");
    registry.register(Box::new(histogram.clone())).expect("every name is registered once");
    histogram
}

#[cfg(test)]
mod tests;
