//! Lag as metrics: a series per group and topic, and per partition where the setting says so. What is deleted has
//! none, for they are made from the table each time.

use prometheus::proto::{Metric, MetricFamily, MetricType};
use rimstone_types::Timestamp;

use super::collector::{family, gauge_of};
use crate::{
    broker::Inner,
    lag::{Row, TopicSum, topic_sums},
};

/// The value of one group in one topic for one family.
type TopicValue = fn(&TopicSum) -> f64;

const PER_TOPIC: [(&str, &str, TopicValue); 3] = [
    (
        "rimstone_group_lag_records",
        "Records really there that the group has not consumed, over the partitions that are known.",
        |sum| sum.lag.records as f64,
    ),
    (
        "rimstone_group_lag_seconds",
        "Age of the oldest record that the group has not consumed; 0 when caught up.",
        |sum| seconds(sum.lag.millis),
    ),
    (
        "rimstone_group_lag_unknown_partitions",
        "Partitions whose lag is not known, because they are damaged or unavailable.",
        |sum| f64::from(sum.unknown),
    ),
];

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

pub(super) fn families(inner: &Inner) -> Vec<MetricFamily> {
    let rows = inner.lag.rows(&inner.topics);
    let now = inner.clock.now();
    let sums = topic_sums(&rows, now);
    let mut families = Vec::new();
    let mut add = |name: &str, help: &str, series: Vec<Metric>| {
        // A family without series is no valid text.
        if !series.is_empty() {
            families.push(family(name, help, MetricType::GAUGE, series));
        }
    };
    for (name, help, value) in PER_TOPIC {
        let series = |sum: &TopicSum| {
            gauge_of(&[("group", sum.group.as_str()), ("topic", sum.topic.as_str())], value(sum))
        };
        add(name, help, sums.iter().map(series).collect());
    }
    if inner.config.lag_per_partition {
        let (records, ages) = rows.iter().filter_map(|row| of_partition(row, now)).unzip();
        add(
            "rimstone_group_partition_lag_records",
            "Records really there that the group has not consumed.",
            records,
        );
        add(
            "rimstone_group_partition_lag_seconds",
            "Age of the oldest record that the group has not consumed; 0 when caught up.",
            ages,
        );
    }
    families
}

fn of_partition(row: &Row, now: Timestamp) -> Option<(Metric, Metric)> {
    let lag = row.lag(now)?;
    let partition = row.partition.to_string();
    let labels = [("group", row.group.as_str()), ("partition", &*partition), ("topic", row.topic.as_str())];
    Some((gauge_of(&labels, lag.records as f64), gauge_of(&labels, seconds(lag.millis))))
}
