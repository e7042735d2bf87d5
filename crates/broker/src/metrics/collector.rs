//! Metrics that are read from the broker's and the store's state when somebody asks.

use std::sync::Weak;

use prometheus::{
    core::{Collector, Desc},
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};
use rimstone_store::{AckLevel, Dirtiness, Health, StoreState, StoreStatistics};

use crate::{broker::Inner, topics::Slot};

/// Reads the state of a broker that still exists.
#[derive(Debug)]
pub(crate) struct StateCollector(pub(crate) Weak<Inner>);

impl Collector for StateCollector {
    fn desc(&self) -> Vec<&Desc> {
        // What is collected has no fixed description; the registry asks only to find doubles.
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(inner) = self.0.upgrade() else { return Vec::new() };
        let mut families = server(&inner);
        families.extend(groups(&inner));
        families.extend(partitions(&inner));
        families.extend(store(&inner.storage.statistics()));
        families.extend(super::lag::families(&inner));
        families
    }
}

fn server(inner: &Inner) -> Vec<MetricFamily> {
    let (topics, _) = inner.topics.count();
    let method = inner.storage.sync_method();
    let health = inner.storage.health();
    let limits = &inner.config.limits;
    let waiting = limits.waiting_fetches - inner.waiting_fetches.available_permits();
    let readers = limits.readers - inner.readers.available_permits();
    let flag = |set: bool| f64::from(u8::from(set));
    let mut families = vec![
        gauge("rimstone_topics", "Topics, those of the server not counted.", f64::from(topics)),
        gauge(
            "rimstone_in_flight_bytes",
            "Bytes of produce requests between arrival and answer.",
            inner.budget.in_flight().get() as f64,
        ),
        gauge(
            "rimstone_in_flight_limit_bytes",
            "Bound on rimstone_in_flight_bytes; beyond it requests are refused or streams wait.",
            inner.budget.limit().get() as f64,
        ),
        gauge("rimstone_waiting_fetches", "Fetches that wait or read now.", waiting as f64),
        gauge("rimstone_readers", "Server-stream readers that are open.", readers as f64),
        gauge(
            "rimstone_producer_sessions",
            "Producers numbered by request whose order is watched.",
            inner.sessions.count() as f64,
        ),
        gauge(
            "rimstone_healthy",
            "1 if writes are taken; 0 below the disk reserve or after a failed sync.",
            flag(health == Health::Healthy),
        ),
        gauge(
            "rimstone_poisoned",
            "1 after a failed sync: writes are refused until the server is started again.",
            flag(matches!(health, Health::Poisoned { .. })),
        ),
    ];
    families.push(family(
        "rimstone_sync_method_info",
        "How appends become durable, and why this method; always 1.",
        MetricType::GAUGE,
        vec![gauge_of(&[("method", method.name), ("reason", &method.reason)], 1.0)],
    ));
    families
}

fn groups(inner: &Inner) -> Vec<MetricFamily> {
    let shards = inner.coordinator.facts();
    let members = || shards.iter().flat_map(|facts| &facts.members);
    let series = members().map(|(group, &count)| gauge_of(&[("group", group.as_str())], f64::from(count)));
    let limit = inner.config.limits.group_sessions;
    let sessions = limit - inner.member_sessions.available_permits();
    vec![
        gauge("rimstone_group_sessions", "Streams of group members that are open.", sessions as f64),
        gauge("rimstone_groups", "Consumer groups.", members().count() as f64),
        family("rimstone_group_members", "Members of a group.", MetricType::GAUGE, series.collect()),
    ]
}

/// The value of one partition for one family.
type PartitionValue = fn(&rimstone_store::StoreInfo) -> f64;

/// One series for each partition that is open.
const PER_PARTITION: &[(&str, &str, PartitionValue)] = &[
    ("rimstone_partition_log_start_offset", "First offset that is still there.", |info| {
        info.ends.start.get() as f64
    }),
    ("rimstone_partition_stable_end_offset", "End of what read-committed readers see.", |info| {
        info.ends.stable.get() as f64
    }),
    ("rimstone_partition_durable_end_offset", "End of what is acknowledged and read.", |info| {
        info.ends.durable.get() as f64
    }),
    ("rimstone_partition_written_end_offset", "End of what is in the file, durable or not.", |info| {
        info.ends.written.get() as f64
    }),
    ("rimstone_partition_undurable_bytes", "Bytes staged or written and not known to be durable.", |info| {
        info.undurable_bytes.get() as f64
    }),
    ("rimstone_partition_size_bytes", "Bytes of its segments.", |info| info.bytes.get() as f64),
    ("rimstone_partition_segments", "Segments.", |info| f64::from(info.segments)),
    ("rimstone_partition_producers", "Producers remembered.", |info| f64::from(info.producers)),
    (
        "rimstone_partition_damaged_ranges",
        "Ranges of acknowledged offsets that are known to be damaged; the rest is served.",
        |info| info.damage.iter().map(|range| range.ranges).sum::<u64>() as f64,
    ),
    (
        "rimstone_partition_accepted_losses",
        "Ranges that were given up and whose damaged bytes are still kept aside.",
        |info| info.accepted_losses.len() as f64,
    ),
    ("rimstone_partition_poisoned", "1 if it refuses writes after a failure.", |info| {
        f64::from(u8::from(matches!(info.state, StoreState::Poisoned { .. })))
    }),
];

fn partitions(inner: &Inner) -> Vec<MetricFamily> {
    let mut series: Vec<Vec<Metric>> = PER_PARTITION.iter().map(|_| Vec::new()).collect();
    let (mut available, mut acks) = (Vec::new(), Vec::new());
    let (mut dirty, mut obstacles) = (Vec::new(), Vec::new());
    for topic in inner.topics.all() {
        let ack = match topic.settings.partition.ack {
            AckLevel::Durable => "durable",
            AckLevel::Written => "written",
        };
        acks.push(gauge_of(&[("ack", ack), ("topic", topic.name.as_str())], 1.0));
        let mut dirtiness: Option<Dirtiness> = None;
        let mut in_the_way = 0;
        for (partition, slot) in topic.partitions() {
            let labels = [("partition", &*partition.to_string()), ("topic", topic.name.as_str())];
            let Slot::Open(store) = slot else {
                available.push(gauge_of(&labels, 0.0));
                continue;
            };
            available.push(gauge_of(&labels, 1.0));
            let info = store.info();
            if let Some(of_one) = info.dirtiness {
                let all = dirtiness.get_or_insert_default();
                all.clean_bytes += of_one.clean_bytes;
                all.dirty_bytes += of_one.dirty_bytes;
                in_the_way += info.obstacles.len();
            }
            for (series, (_, _, value)) in series.iter_mut().zip(PER_PARTITION) {
                series.push(gauge_of(&labels, value(&info)));
            }
        }
        if let Some(dirtiness) = dirtiness {
            let labels = [("topic", topic.name.as_str())];
            dirty.push(gauge_of(&labels, dirtiness.ratio()));
            obstacles.push(gauge_of(&labels, in_the_way as f64));
        }
    }
    let mut families = vec![
        family(
            "rimstone_partition_available",
            "0 if the partition could not be opened at start.",
            MetricType::GAUGE,
            available,
        ),
        family(
            "rimstone_topic_ack_info",
            "What an acknowledgement means on this topic (rimstone.ack); always 1.",
            MetricType::GAUGE,
            acks,
        ),
        family(
            "rimstone_topic_dirty_ratio",
            "Share of the bytes of a compacted topic's sealed segments that compaction has not cleaned.",
            MetricType::GAUGE,
            dirty,
        ),
        family(
            "rimstone_topic_compaction_obstacles",
            "Segments of a compacted topic that compaction passes by: damaged, unreadable, or before a hole.",
            MetricType::GAUGE,
            obstacles,
        ),
    ];
    for (series, (name, help, _)) in series.into_iter().zip(PER_PARTITION) {
        families.push(family(name, help, MetricType::GAUGE, series));
    }
    families
}

fn store(statistics: &StoreStatistics) -> Vec<MetricFamily> {
    let counters = [
        ("rimstone_sync_failures_total", "Syncs that failed.", statistics.sync_failures),
        ("rimstone_written_bytes_total", "Bytes written to segment files.", statistics.written_bytes),
        (
            "rimstone_write_failures_total",
            "Writes that failed and were rolled back.",
            statistics.write_failures,
        ),
        ("rimstone_flush_groups_total", "Groups flushed; one sync covers a group.", statistics.groups),
        (
            "rimstone_flush_group_partitions_total",
            "Partitions flushed, over all groups.",
            statistics.group_partitions,
        ),
        (
            "rimstone_torn_tail_bytes_total",
            "Bytes of torn tails set aside at start.",
            statistics.torn_tail_bytes,
        ),
        (
            "rimstone_damaged_ranges_total",
            "Damaged ranges of acknowledged data found, each once.",
            statistics.damaged_ranges,
        ),
        ("rimstone_deleted_segments_total", "Segments deleted.", statistics.segments_deleted),
    ];
    let counter = |(name, help, value): (&str, &str, u64)| {
        let mut metric = Metric::default();
        let mut counter = Counter::default();
        counter.set_value(value as f64);
        metric.set_counter(counter);
        family(name, help, MetricType::COUNTER, vec![metric])
    };
    let mut families: Vec<_> = counters.into_iter().map(counter).collect();
    families.push(syncs(statistics));
    families
}

fn syncs(statistics: &StoreStatistics) -> MetricFamily {
    let finite = statistics.sync_seconds_buckets.iter().filter(|(bound, _)| bound.is_finite());
    let buckets: Vec<Bucket> = finite
        .map(|&(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        })
        .collect();
    let last = buckets.last().map_or(0, Bucket::cumulative_count);
    let mut histogram = Histogram::default();
    // Read one after the other: the total must not be below a bucket.
    histogram.set_sample_count(statistics.syncs.max(last));
    histogram.set_sample_sum(statistics.sync_seconds_sum);
    histogram.set_bucket(buckets);
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    let help = "Time of one sync, which covers all partitions written before it.";
    family("rimstone_sync_duration_seconds", help, MetricType::HISTOGRAM, vec![metric])
}

fn gauge(name: &str, help: &str, value: f64) -> MetricFamily {
    family(name, help, MetricType::GAUGE, vec![gauge_of(&[], value)])
}

pub(super) fn gauge_of(labels: &[(&str, &str)], value: f64) -> Metric {
    let label = |(name, value): &(&str, &str)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value((*value).to_owned());
        label
    };
    let mut metric = Metric::from_label(labels.iter().map(label).collect());
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}

pub(super) fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}
