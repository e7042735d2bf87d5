//! What the partitions hold of producers, asked of all of them.

use std::{collections::BTreeMap, sync::Arc};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use rimstone_store::{PartitionStore, ProducerView, StoreError};
use rimstone_types::{Numbering, PartitionIndex, ProducerEpoch, ProducerId, ProducerName, TopicName};

use super::{ProducerListing, ProducerPartition, ProducerState};
use crate::{
    broker::Inner,
    catalog::ProducerValue,
    error::{LimitReached, PartitionUnavailable, ProducerStateError, TopicNotFound},
    topics::{Slot, Topic},
};

/// Partitions that are asked at one time what they hold of a producer.
const VIEWS_AT_ONCE: usize = 64;

impl Inner {
    /// The topics asked for, or why the question is refused.
    pub(super) fn asked_topics(&self, topics: &[TopicName]) -> Result<Vec<Arc<Topic>>, ProducerStateError> {
        let limit = self.config.limits.topics_per_request;
        if topics.len() > limit {
            return Err(LimitReached { what: "topics in one request", limit: limit as u64 }.into());
        }
        let asked = topics.iter().map(|name| self.topics.get(name)).collect::<Result<Vec<_>, _>>()?;
        for topic in &asked {
            for (partition, slot) in topic.partitions() {
                if let Slot::Unavailable(why) = slot {
                    // Silence would say "nothing is stored", and numbering would begin again at 0.
                    let (topic, why) = (topic.name.clone(), why.clone());
                    return Err(PartitionUnavailable { topic, partition, why }.into());
                }
            }
        }
        Ok(asked)
    }

    pub(super) async fn producer_state(
        &self,
        id: ProducerId,
        topics: &[TopicName],
    ) -> Result<ProducerState, ProducerStateError> {
        self.refuse_when_stopping()?;
        let asked = self.asked_topics(topics)?;
        let mut partitions = Vec::new();
        for (topic, partition, view) in self.views(id, &asked).await {
            if let Some(view) = view? {
                partitions.push(ProducerPartition { topic: topic.name.clone(), partition, view });
            }
        }
        let (_, highest_request_number) = self.stored_requests(id).await;
        Ok(ProducerState { partitions, highest_request_number })
    }

    /// The epoch in force of a producer numbered by request, and the highest number that any partition of any
    /// topic has stored of it. A partition that cannot tell is passed over: requests that go there are refused.
    pub(crate) async fn stored_requests(&self, id: ProducerId) -> (ProducerEpoch, Option<u32>) {
        // Read first: a newer instance that comes meanwhile replaces the session itself.
        let named_epoch = self.producers.by_id(id).map(|(_, value)| value.epoch);
        let mut stored: Vec<ProducerView> = Vec::new();
        for (topic, partition, view) in self.views(id, &self.topics.all()).await {
            match view {
                Ok(view) => stored.extend(view.filter(|view| view.numbering == Numbering::ByRequest)),
                Err(error) => {
                    tracing::warn!(topic = %topic.name, %partition, %id, %error, "a producer's state cannot be read");
                }
            }
        }
        if let Some(epoch) = named_epoch {
            return (epoch, stored.iter().map(|view| view.last).max());
        }
        let epoch = stored.iter().map(|view| view.epoch).max().unwrap_or_default();
        let of_epoch = stored.iter().filter(|view| view.epoch == epoch);
        (epoch, of_epoch.map(|view| view.last).max())
    }

    /// What the open partitions of some topics hold of a producer, in order.
    async fn views(&self, id: ProducerId, topics: &[Arc<Topic>]) -> Vec<View> {
        let stores = topics.iter().flat_map(|topic| {
            let with_topic = move |(partition, store): (_, &Arc<dyn PartitionStore>)| {
                (Arc::clone(topic), partition, Arc::clone(store))
            };
            topic.open_partitions().map(with_topic)
        });
        let views: Vec<BoxFuture<'static, View>> = stores.map(|place| view(id, place).boxed()).collect();
        stream::iter(views).buffered(VIEWS_AT_ONCE).collect().await
    }

    pub(super) fn list_producers(
        &self,
        topic: Option<&TopicName>,
    ) -> Result<Vec<ProducerListing>, TopicNotFound> {
        let limit = self.config.limits.listed_producers;
        let Some(topic) = topic else {
            let named = self.producers.named.read();
            let listing = |(name, value): (&ProducerName, &ProducerValue)| ProducerListing {
                name: Some(name.clone()),
                id: value.id,
                epoch: value.epoch,
                partitions: Vec::new(),
            };
            return Ok(named.by_name.iter().take(limit).map(listing).collect());
        };
        let topic = self.topics.get(topic)?;
        let mut listings: BTreeMap<ProducerId, ProducerListing> = BTreeMap::new();
        for (partition, store) in topic.open_partitions() {
            for view in store.producers(limit) {
                if listings.len() >= limit && !listings.contains_key(&view.id) {
                    continue;
                }
                let listing = listings.entry(view.id).or_insert_with(|| {
                    let named = self.producers.by_id(view.id);
                    let (name, epoch) = named.map(|(name, value)| (name, value.epoch)).unzip();
                    let epoch = epoch.unwrap_or(view.epoch);
                    ProducerListing { name, id: view.id, epoch, partitions: Vec::new() }
                });
                listing.epoch = listing.epoch.max(view.epoch);
                listing.partitions.push(ProducerPartition { topic: topic.name.clone(), partition, view });
            }
        }
        Ok(listings.into_values().collect())
    }
}

/// A partition that is asked.
type Place = (Arc<Topic>, PartitionIndex, Arc<dyn PartitionStore>);
/// What one partition answered.
type View = (Arc<Topic>, PartitionIndex, Result<Option<ProducerView>, StoreError>);

/// Asks one partition.
async fn view(id: ProducerId, (topic, partition, store): Place) -> View {
    let view = store.producer(id).await;
    (topic, partition, view)
}
