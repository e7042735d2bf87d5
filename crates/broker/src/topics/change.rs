//! Making, changing and deleting topics: the catalog says what is, directories are made before it says so and
//! deleted after it no longer does.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{StreamExt, stream};
use rimstone_store::{OpenError, OpenMode, PartitionConfig, PartitionStore, StoreError};
use rimstone_types::{Offset, PartitionId, PartitionIndex, TopicId, TopicName};
use uuid::Uuid;

use super::{CountSince, Slot, Topic, TopicDescription, TopicSummary};
use crate::{
    broker::{Broker, Inner, OPENS_AT_ONCE},
    catalog::{Catalog, CatalogRecord, DeletedValue},
    error::{
        AlterTopicError, CreateTopicError, DeleteTopicError, FewerPartitions, InvalidRequest, LimitReached,
        ReservedName, TopicExists,
    },
    settings::{Overrides, TopicSettings, change},
};

impl Broker {
    /// Makes a topic. `partitions`: `None` for the server's default.
    ///
    /// # Errors
    /// [`CreateTopicError`]: the topic was not made, except after a [`CatalogError::Append`](crate::CatalogError::Append) that is unknown,
    /// where the next start tells.
    pub async fn create_topic(
        &self,
        name: TopicName,
        partitions: Option<u32>,
        settings: BTreeMap<String, String>,
    ) -> Result<TopicSummary, CreateTopicError> {
        let inner = Arc::clone(&self.inner);
        let made = self.inner.detached(async move { inner.create_topic(name, partitions, &settings).await });
        self.counted(made.await)
    }

    /// Sets and resets settings, adds partitions. New partitions are for producers that come later: those
    /// numbered by request keep the count that they began their epoch with.
    ///
    /// # Errors
    /// [`AlterTopicError`]: nothing was changed.
    pub async fn alter_topic(
        &self,
        name: &TopicName,
        set: BTreeMap<String, String>,
        reset: Vec<String>,
        partitions: Option<u32>,
    ) -> Result<TopicDescription, AlterTopicError> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        let altered =
            self.inner.detached(async move { inner.alter_topic(&name, &set, &reset, partitions).await });
        self.counted(altered.await)
    }

    /// Deletes a topic and its records. What is in flight to it fails.
    ///
    /// # Errors
    /// [`DeleteTopicError`]; with [`DeleteTopicError::Store`] the topic is gone, but some of its files are
    /// still there, until the next start.
    pub async fn delete_topic(&self, name: &TopicName) -> Result<(), DeleteTopicError> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        let deleted = self.inner.detached(async move { inner.delete_topic(&name).await });
        self.counted(deleted.await)
    }
}

fn refuse_reserved(name: &TopicName) -> Result<(), ReservedName> {
    if name.is_internal() { Err(ReservedName { topic: name.clone() }) } else { Ok(()) }
}

impl Inner {
    async fn create_topic(
        &self,
        name: TopicName,
        partitions: Option<u32>,
        settings: &BTreeMap<String, String>,
    ) -> Result<TopicSummary, CreateTopicError> {
        self.refuse_when_stopping()?;
        refuse_reserved(&name)?;
        let count = partitions.unwrap_or(self.config.default_partitions.get());
        if count == 0 {
            return Err(InvalidRequest::new("a topic has at least 1 partition").into());
        }
        let overrides = change(&Overrides::new(), settings, &[])?;
        let settings = self.config.topic_defaults.with(&overrides)?;
        settings.fits_a_request(self.config.limits.request)?;
        settings.fits_together()?;

        let mut catalog = self.catalog.lock().await;
        if self.topics.get(&name).is_ok() {
            return Err(TopicExists { topic: name }.into());
        }
        let limits = &self.config.limits;
        if self.topics.count().0 >= limits.topics {
            return Err(LimitReached { what: "topics", limit: u64::from(limits.topics) }.into());
        }
        self.check_partitions(count, count)?;

        let id = TopicId(Uuid::new_v4());
        let topic = self.make_topic(&mut catalog, name, id, count, overrides, settings).await?;
        Ok(topic.summary())
    }

    /// Makes the directories of a topic, then the catalog's record, then the entry of the table.
    pub(crate) async fn make_topic(
        &self,
        catalog: &mut Catalog,
        name: TopicName,
        id: TopicId,
        count: u32,
        overrides: Overrides,
        settings: TopicSettings,
    ) -> Result<Arc<Topic>, CreateTopicError> {
        let opened = self.make_partitions(id, 0..count, &settings.partition).await;
        let slots = match opened {
            Ok(slots) => slots,
            Err(error) => {
                self.clean_up(catalog, id).await;
                return Err(error.into());
            }
        };
        let from_unnamed_id = self.producers.ids_given_out_to();
        let first = CountSince { generation: catalog.generation(), from_unnamed_id, count };
        let counts = vec![first];
        let (created, counters) = (self.clock.now(), self.metrics.topic(&name));
        let topic = Topic { name, id, created, overrides, settings, slots, counts, counters };
        if let Err(error) = catalog.append(&[CatalogRecord::topic(&topic)], self.clock.now()).await {
            self.clean_up(catalog, id).await;
            return Err(error.into());
        }
        let topic = Arc::new(topic);
        self.topics.put(Arc::clone(&topic));
        Ok(topic)
    }

    async fn alter_topic(
        &self,
        name: &TopicName,
        set: &BTreeMap<String, String>,
        reset: &[String],
        partitions: Option<u32>,
    ) -> Result<TopicDescription, AlterTopicError> {
        self.refuse_when_stopping()?;
        refuse_reserved(name)?;
        let mut catalog = self.catalog.lock().await;
        let topic = self.topics.get(name)?;
        let overrides = change(&topic.overrides, set, reset)?;
        let settings = self.config.topic_defaults.with(&overrides)?;
        // What was made under another limit can still be altered otherwise.
        if settings.max_message_bytes != topic.settings.max_message_bytes {
            settings.fits_a_request(self.config.limits.request)?;
        }
        settings.fits_together()?;
        let current = topic.partition_count();
        let count = partitions.unwrap_or(current);
        if count < current {
            return Err(FewerPartitions { topic: name.clone(), current, given: count }.into());
        }
        let (mut slots, mut counts) = (topic.slots.clone(), topic.counts.clone());
        if count > current {
            self.check_partitions(count, count - current)?;
            slots.extend(self.make_partitions(topic.id, current..count, &settings.partition).await?);
            // Ids of the current block may be given out until the new count is in force: they keep the old one.
            let from_unnamed_id = self.producers.ids_reserved_to();
            counts.push(CountSince { generation: catalog.generation(), from_unnamed_id, count });
        }
        let altered = Topic {
            name: name.clone(),
            id: topic.id,
            created: topic.created,
            overrides,
            settings,
            slots,
            counts,
            counters: topic.counters.clone(),
        };
        catalog.append(&[CatalogRecord::topic(&altered)], self.clock.now()).await?;
        for (_, store) in altered.open_partitions() {
            store.configure(altered.settings.partition.clone());
        }
        let altered = Arc::new(altered);
        self.topics.put(Arc::clone(&altered));
        if count > current {
            self.producers.discard_block();
        }
        Ok(altered.describe())
    }

    async fn delete_topic(&self, name: &TopicName) -> Result<(), DeleteTopicError> {
        self.refuse_when_stopping()?;
        refuse_reserved(name)?;
        let mut catalog = self.catalog.lock().await;
        let topic = self.topics.get(name)?;
        let mark = CatalogRecord::DeletedTopic(topic.id, Some(DeletedValue {}));
        catalog.append(&[CatalogRecord::Topic(name.clone(), None), mark], self.clock.now()).await?;
        self.topics.remove(name);
        self.metrics.forget_topic(name);
        self.storage.delete(topic.id).await?;
        let gone = [CatalogRecord::DeletedTopic(topic.id, None)];
        if let Err(error) = catalog.append(&gone, self.clock.now()).await {
            // The next start finds nothing to delete, and says so in the catalog.
            tracing::warn!(topic = %name, %error, "that the files of a deleted topic are gone was not noted");
        }
        Ok(())
    }

    /// Whether a topic may have `count` partitions, `more` of them new.
    fn check_partitions(&self, count: u32, more: u32) -> Result<(), LimitReached> {
        let limits = &self.config.limits;
        if count > limits.partitions_per_topic {
            let limit = u64::from(limits.partitions_per_topic);
            return Err(LimitReached { what: "partitions of one topic", limit });
        }
        if self.topics.count().1.saturating_add(more) > limits.partitions {
            return Err(LimitReached { what: "partitions", limit: u64::from(limits.partitions) });
        }
        Ok(())
    }

    async fn make_partitions(
        &self,
        topic: TopicId,
        partitions: std::ops::Range<u32>,
        config: &PartitionConfig,
    ) -> Result<Vec<Slot>, StoreError> {
        let failed = &AtomicBool::new(false);
        let open = |partition| {
            let id = PartitionId { topic, partition: PartitionIndex(partition) };
            async move {
                if failed.load(Ordering::Relaxed) {
                    return None;
                }
                let made = self.make_partition(id, config.clone()).await;
                failed.fetch_or(made.is_err(), Ordering::Relaxed);
                Some(made.map(Slot::Open))
            }
        };
        // After a failure no more are begun, and those that were come to their ends: what is taken away then has to
        // be there.
        let made: Vec<_> = stream::iter(partitions.map(open)).buffered(OPENS_AT_ONCE).collect().await;
        made.into_iter().flatten().collect()
    }

    /// Makes a partition. One that is there already is left from an attempt that the catalog never saw: it
    /// is taken if it is empty.
    async fn make_partition(
        &self,
        id: PartitionId,
        config: PartitionConfig,
    ) -> Result<Arc<dyn PartitionStore>, StoreError> {
        let unusable =
            |reason: String| StoreError::Io { operation: "make the partition", path: id.to_string(), reason };
        match self.storage.open(id, config.clone(), OpenMode::CreateNew).await {
            Ok(store) => Ok(store),
            Err(OpenError::Store(error)) => Err(error),
            Err(OpenError::Exists(_)) => {
                let opened = self.storage.open(id, config, OpenMode::MustExist).await;
                let store = opened.map_err(|error| unusable(error.to_string()))?;
                if store.ends().written > Offset::ZERO {
                    return Err(unusable("it exists and holds records".to_owned()));
                }
                Ok(store)
            }
            Err(error) => Err(unusable(error.to_string())),
        }
    }

    /// Deletes what is left of a topic that did not come to be. After an unknown fate the catalog may hold it, now or by
    /// an earlier attempt (those for `__consumer_offsets` are all for the same topic): its directories stay, and the
    /// next start sees.
    async fn clean_up(&self, catalog: &Catalog, topic: TopicId) {
        if catalog.is_in_doubt() {
            return;
        }
        if let Err(error) = self.storage.delete(topic).await {
            tracing::warn!(%topic, %error, "the directories of a topic that was not made are left behind");
        }
    }
}

#[cfg(test)]
mod tests;
