//! `__consumer_offsets`: made on first use through the catalog, opened at start like every topic. Users read
//! it like any other; only the coordinator writes it, and nobody deletes or alters it.

use std::{num::NonZeroU32, sync::Arc};

use rimstone_store::{AckLevel, CleanupPolicy, CompactionConfig, PartitionConfig, TimestampType};
use rimstone_types::{ByteCount, TopicId, TopicName};

use crate::{
    broker::Inner,
    error::CreateTopicError,
    settings::{Overrides, TopicSettings},
    topics::Topic,
};

/// Its name.
pub(crate) const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// Its partitions, one shard of the coordinator each: a group belongs to one for ever, so the number cannot
/// change. Kafka has 50 to spread them over brokers; one server needs no more tasks than it has cores.
pub(crate) const SHARDS: NonZeroU32 = NonZeroU32::new(16).expect("above zero");

/// Compaction never touches the active segment, and loading reads it whole: small segments keep both short.
const SEGMENT_BYTES: ByteCount = ByteCount::mib(16);

pub(crate) fn offsets_topic_name() -> TopicName {
    OFFSETS_TOPIC.parse().expect("a valid name")
}

/// What the catalog keeps and `describe` shows as set on the topic.
fn overrides() -> Overrides {
    let set = [
        ("cleanup.policy", "compact".to_owned()),
        ("message.timestamp.type", "CreateTime".to_owned()),
        ("retention.bytes", "-1".to_owned()),
        ("retention.ms", "-1".to_owned()),
        ("rimstone.ack", "durable".to_owned()),
        ("segment.bytes", SEGMENT_BYTES.get().to_string()),
    ];
    set.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Its settings, whatever the server's defaults are: what groups rely on is not a matter of taste.
pub(crate) fn offsets_settings(defaults: &TopicSettings) -> TopicSettings {
    let partition = PartitionConfig {
        segment_bytes: SEGMENT_BYTES,
        retention_age: None,
        retention_bytes: None,
        timestamp_type: TimestampType::CreateTime,
        cleanup: CleanupPolicy::Compact,
        // Above all the grace of tombstones: without it, loading beside a pass could miss one.
        compaction: CompactionConfig::default(),
        ack: AckLevel::Durable,
        ..defaults.partition.clone()
    };
    TopicSettings { partition, ..defaults.clone() }
}

impl Inner {
    /// The topic, if it was ever used.
    pub(crate) fn offsets_topic(&self) -> Option<Arc<Topic>> {
        self.topics.get(&offsets_topic_name()).ok()
    }

    /// The topic; it is made if this is its first use.
    pub(crate) async fn make_offsets_topic(&self) -> Result<Arc<Topic>, CreateTopicError> {
        self.refuse_when_stopping()?;
        let mut catalog = self.catalog.lock().await;
        if let Some(topic) = self.offsets_topic() {
            return Ok(topic);
        }
        let settings = offsets_settings(&self.config.topic_defaults);
        let (name, id) = (offsets_topic_name(), TopicId::CONSUMER_OFFSETS);
        self.make_topic(&mut catalog, name, id, SHARDS.get(), overrides(), settings).await
    }
}
