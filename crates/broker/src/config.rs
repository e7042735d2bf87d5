//! What the broker is told at its start. Not here: where it comes from (files, environment, flags: `server`).

use std::{num::NonZeroU32, time::Duration};

use rimstone_types::ByteCount;

use crate::{limits::Limits, settings::TopicSettings};

/// The broker's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// Partitions of a topic whose creator names no number.
    pub default_partitions: NonZeroU32,
    /// What a topic has where it sets nothing of its own.
    pub topic_defaults: TopicSettings,
    /// How often partitions are rolled by age, retention is applied and producers expire (5 minutes, as in
    /// Kafka). Zero: never by itself ([`Broker::maintain`](crate::Broker::maintain) does it).
    pub maintenance_interval: Duration,
    /// How often compacted topics are looked at for what is due (15 s, as in Kafka: `log.cleaner.backoff.ms`). Zero:
    /// never by itself ([`Broker::compact`](crate::Broker::compact) does it).
    pub compaction_interval: Duration,
    /// How often all sealed segments are gone over, from the disk, to find damage.
    pub scrub_interval: Duration,
    /// How much of them in a second, at most. Zero: never by itself ([`Broker::scrub`](crate::Broker::scrub) does it).
    pub scrub_pace: ByteCount,
    /// Lag is shown in metrics for each partition too, not only for each topic of a group: many series.
    pub lag_per_partition: bool,
    /// Bounds.
    pub limits: Limits,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            default_partitions: NonZeroU32::MIN,
            topic_defaults: TopicSettings::default(),
            maintenance_interval: Duration::from_secs(5 * 60),
            compaction_interval: Duration::from_secs(15),
            scrub_interval: Duration::from_secs(7 * 24 * 60 * 60),
            scrub_pace: ByteCount::mib(8),
            lag_per_partition: false,
            limits: Limits::default(),
        }
    }
}
