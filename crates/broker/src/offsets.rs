//! Looking offsets up, and moving log start. Not here: committed offsets of groups.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, stream};
use rimstone_store::{OffsetAt, PartitionStore, Visibility};
use rimstone_types::{Offset, PartitionIndex, Timestamp, TopicName};

use crate::{
    broker::{Broker, Inner},
    error::{
        DeleteRecordsError, LimitReached, ListOffsetsError, OutOfRange, PartitionReadError, ReservedName,
    },
    read::visible_end,
};

/// Partitions that are looked up at one time.
const LOOK_UPS_AT_ONCE: usize = 32;

/// Which offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetQuery {
    /// Log start.
    Earliest,
    /// The visible end.
    Latest,
    /// The first record with the highest time.
    MaxTime,
    /// The first record at or after a time, by the topic's time.
    Time(Timestamp),
}

/// What one partition answered.
#[derive(Debug)]
pub struct PartitionOffset {
    /// Which one.
    pub partition: PartitionIndex,
    /// `Ok(None)`: there is no such record (it is not the end).
    pub result: Result<Option<FoundOffset>, PartitionReadError>,
}

/// An offset that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundOffset {
    /// The offset.
    pub offset: Offset,
    /// The time of its record, for look-ups by time.
    pub time: Option<Timestamp>,
}

impl Broker {
    /// Looks an offset up in some partitions of a topic; `partitions` empty: in all.
    ///
    /// # Errors
    /// [`ListOffsetsError`]; errors of single partitions are in the answer.
    pub async fn list_offsets(
        &self,
        topic: &TopicName,
        partitions: &[PartitionIndex],
        at: OffsetQuery,
        visibility: Visibility,
    ) -> Result<Vec<PartitionOffset>, ListOffsetsError> {
        self.counted(self.inner.list_offsets(topic, partitions, at, visibility).await)
    }

    /// Moves log start of some partitions forward, never back; answers log start of each once it is durable.
    /// If the store fails in between, some may have been moved.
    ///
    /// # Errors
    /// [`DeleteRecordsError`]; an offset behind the visible end of one partition moves none.
    pub async fn delete_records(
        &self,
        topic: &TopicName,
        before: BTreeMap<PartitionIndex, Offset>,
    ) -> Result<BTreeMap<PartitionIndex, Offset>, DeleteRecordsError> {
        let (inner, topic) = (Arc::clone(&self.inner), topic.clone());
        let trimmed = self.inner.detached(async move { inner.delete_records(&topic, before).await });
        self.counted(trimmed.await)
    }
}

impl Inner {
    async fn list_offsets(
        &self,
        topic: &TopicName,
        partitions: &[PartitionIndex],
        at: OffsetQuery,
        visibility: Visibility,
    ) -> Result<Vec<PartitionOffset>, ListOffsetsError> {
        self.refuse_when_stopping()?;
        let topic = self.topics.get(topic)?;
        let limit = self.config.limits.partitions_per_fetch;
        if partitions.len() > limit {
            return Err(LimitReached { what: "partitions in one request", limit: limit as u64 }.into());
        }
        let asked = match partitions {
            [] => (0..topic.partition_count()).map(PartitionIndex).collect(),
            some => some.to_vec(),
        };
        let look_up = |partition| {
            let topic = Arc::clone(&topic);
            async move {
                let result = match topic.partition(partition) {
                    Ok(store) => find(store, at, visibility).await,
                    Err(error) => Err(error.into()),
                };
                if let Err(error) = &result {
                    self.metrics.error(error);
                }
                PartitionOffset { partition, result }
            }
        };
        Ok(stream::iter(asked).map(look_up).buffered(LOOK_UPS_AT_ONCE).collect().await)
    }

    async fn delete_records(
        &self,
        topic: &TopicName,
        before: BTreeMap<PartitionIndex, Offset>,
    ) -> Result<BTreeMap<PartitionIndex, Offset>, DeleteRecordsError> {
        self.refuse_when_stopping()?;
        if topic.is_internal() {
            return Err(ReservedName { topic: topic.clone() }.into());
        }
        let topic = self.topics.get(topic)?;
        for (&partition, &offset) in &before {
            let ends = topic.partition(partition)?.ends();
            let (start, end) = (ends.start, visible_end(ends, Visibility::Stable));
            if offset > end {
                let topic = topic.name.clone();
                return Err(OutOfRange { topic, partition, offset, start, end }.into());
            }
        }
        let mut starts = BTreeMap::new();
        for (partition, offset) in before {
            starts.insert(partition, topic.partition(partition)?.trim(offset).await?);
        }
        Ok(starts)
    }
}

async fn find(
    store: &Arc<dyn PartitionStore>,
    at: OffsetQuery,
    visibility: Visibility,
) -> Result<Option<FoundOffset>, PartitionReadError> {
    let ends = store.ends();
    let known = |offset| Ok(Some(FoundOffset { offset, time: None }));
    let found = match at {
        OffsetQuery::Earliest => return known(ends.start),
        OffsetQuery::Latest => return known(visible_end(ends, visibility)),
        OffsetQuery::MaxTime => store.offset_of_max_time().await?,
        OffsetQuery::Time(time) => store.offset_for_time(time).await?,
    };
    Ok(found.map(|OffsetAt { offset, time }| FoundOffset { offset, time: Some(time) }))
}

#[cfg(test)]
mod tests;
