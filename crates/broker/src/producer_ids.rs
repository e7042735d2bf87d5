//! Who may write: producer ids in blocks, named producers and their epochs. What the partitions hold of them is in
//! `stored`. Not here: the order of numbered requests (`sessions`), recognising duplicates (the store).

mod stored;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock};
use rimstone_store::ProducerView;
use rimstone_types::{PartitionIndex, ProducerEpoch, ProducerId, ProducerName, TopicName};

use crate::{
    broker::{Broker, Inner},
    catalog::{Catalog, CatalogRecord, IdsValue, ProducerValue},
    error::{
        CatalogError, DeleteProducerError, IdUnknown, InitProducerError, InvalidRequest, LimitReached,
        ProduceError, ProducerFenced, ProducerNotFound, ProducerStateError, TopicNotFound,
    },
    topics::ProducerAge,
};

/// Unnamed ids that one record of the catalog makes available: one durable write per so many producers.
const ID_BLOCK: u64 = 1_000;

/// A producer id that was given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitializedProducer {
    /// The id.
    pub id: ProducerId,
    /// Its epoch; every lower one is fenced.
    pub epoch: ProducerEpoch,
    /// What is stored.
    pub state: ProducerState,
}

/// What is stored of a producer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProducerState {
    /// Of the topics asked for: the partitions that hold something of it.
    pub partitions: Vec<ProducerPartition>,
    /// By request: the highest number seen in any partition of any topic, possibly stored only in part. Must
    /// be sent again, identical, before the next. `None`: start with 0.
    pub highest_request_number: Option<u32>,
}

/// What one partition holds of a producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerPartition {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// What it knows.
    pub view: ProducerView,
}

/// A producer in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerListing {
    /// Its name, if it has one.
    pub name: Option<ProducerName>,
    /// Its id.
    pub id: ProducerId,
    /// The epoch in force; for an unnamed one, the highest seen in the topic.
    pub epoch: ProducerEpoch,
    /// What the topic's partitions hold of it; empty in a listing of the server's named producers.
    pub partitions: Vec<ProducerPartition>,
}

/// The table of named producers, and the ids that may be given out.
#[derive(Debug)]
pub(crate) struct Producers {
    named: RwLock<Named>,
    ids: Mutex<Ids>,
}

#[derive(Debug, Default)]
struct Named {
    by_name: BTreeMap<ProducerName, ProducerValue>,
    names: HashMap<ProducerId, ProducerName>,
}

#[derive(Debug)]
struct Ids {
    /// The next unnamed id to be given out; up to `durable.unnamed_end` without asking the catalog.
    next_unnamed: u64,
    /// What the catalog says.
    durable: IdsValue,
}

impl Producers {
    /// From the catalog. What was left of a block when the server stopped is not given out any more.
    pub(crate) fn new(named: BTreeMap<ProducerName, ProducerValue>, durable: IdsValue) -> Self {
        let names = named.iter().map(|(name, value)| (value.id, name.clone())).collect();
        Self {
            named: RwLock::new(Named { by_name: named, names }),
            ids: Mutex::new(Ids { next_unnamed: durable.unnamed_end, durable }),
        }
    }

    /// Unnamed ids below this one have been given out.
    pub(crate) fn ids_given_out_to(&self) -> u64 {
        self.ids.lock().next_unnamed
    }

    /// Unnamed ids below this one may be given out at any moment.
    pub(crate) fn ids_reserved_to(&self) -> u64 {
        self.ids.lock().durable.unnamed_end
    }

    /// Throws the rest of the current block away.
    pub(crate) fn discard_block(&self) {
        let mut ids = self.ids.lock();
        ids.next_unnamed = ids.durable.unnamed_end;
    }

    fn take_unnamed(&self) -> Option<ProducerId> {
        let mut ids = self.ids.lock();
        if ids.next_unnamed >= ids.durable.unnamed_end {
            return None;
        }
        let id = ProducerId::new(ids.next_unnamed).expect("blocks end below the bit of named ids");
        ids.next_unnamed += 1;
        Some(id)
    }

    fn named(&self, name: &ProducerName) -> Option<ProducerValue> {
        self.named.read().by_name.get(name).copied()
    }

    fn by_id(&self, id: ProducerId) -> Option<(ProducerName, ProducerValue)> {
        let named = self.named.read();
        let name = named.names.get(&id)?;
        Some((name.clone(), *named.by_name.get(name)?))
    }

    fn put(&self, name: ProducerName, value: ProducerValue) {
        let mut named = self.named.write();
        named.names.insert(value.id, name.clone());
        if let Some(before) = named.by_name.insert(name, value)
            && before.id != value.id
        {
            named.names.remove(&before.id);
        }
    }

    fn remove(&self, name: &ProducerName) {
        let mut named = self.named.write();
        if let Some(value) = named.by_name.remove(name) {
            named.names.remove(&value.id);
        }
    }

    /// Whether somebody may write with this id and epoch. An epoch that is too low passes: the store refuses
    /// it, and says so when that is durable.
    ///
    /// # Errors
    /// [`IdUnknown`] for an id that was never given out or whose name was deleted;
    /// [`InvalidRequest`] for an epoch of a named producer that was never given out.
    pub(crate) fn check_given_out(&self, id: ProducerId, epoch: ProducerEpoch) -> Result<(), ProduceError> {
        if !id.is_named() {
            return match id.get() {
                // Epochs of unnamed producers are their own affair, as in Kafka.
                given if (1..self.ids_given_out_to()).contains(&given) => Ok(()),
                _ => Err(IdUnknown { id }.into()),
            };
        }
        let (_, value) = self.by_id(id).ok_or(IdUnknown { id })?;
        if epoch > value.epoch {
            let why = format!("producer {id} has the epoch {}; {epoch} was never given out", value.epoch);
            return Err(InvalidRequest::new(why).into());
        }
        Ok(())
    }

    /// How old a producer is, to find its partition count.
    ///
    /// # Errors
    /// As [`Producers::check_given_out`]; [`ProducerFenced`] for a named producer's older epoch.
    pub(crate) fn age(&self, id: ProducerId, epoch: ProducerEpoch) -> Result<ProducerAge, ProduceError> {
        self.check_given_out(id, epoch)?;
        if !id.is_named() {
            return Ok(ProducerAge::Unnamed { id });
        }
        let (_, value) = self.by_id(id).ok_or(IdUnknown { id })?;
        if epoch < value.epoch {
            return Err(ProducerFenced { got: epoch, current: value.epoch }.into());
        }
        Ok(ProducerAge::Named { generation: value.generation })
    }
}

impl Broker {
    /// Gives out a producer id. With a name: the same id each time with a higher epoch. The epoch is durable,
    /// and every older one refused by every partition, before this answers; what is stored is read after
    /// that. A name whose epochs are used up (32,767 of them) gets a new id, of which nothing is stored.
    ///
    /// `topics`: for which the answer tells what is stored.
    ///
    /// # Errors
    /// [`InitProducerError`].
    pub async fn init_producer(
        &self,
        name: Option<ProducerName>,
        topics: &[TopicName],
    ) -> Result<InitializedProducer, InitProducerError> {
        let (inner, topics) = (Arc::clone(&self.inner), topics.to_vec());
        let made = self.inner.detached(async move { inner.init_producer(name, &topics).await });
        self.counted(made.await)
    }

    /// What is stored of a producer: of the topics asked for, per partition, and over all topics the highest
    /// request number.
    ///
    /// # Errors
    /// [`ProducerStateError`].
    pub async fn producer_state(
        &self,
        id: ProducerId,
        topics: &[TopicName],
    ) -> Result<ProducerState, ProducerStateError> {
        self.counted(self.inner.producer_state(id, topics).await)
    }

    /// The named producers of the server, or with a topic what has written to it; at most
    /// [`Limits::listed_producers`](crate::Limits::listed_producers).
    ///
    /// # Errors
    /// [`TopicNotFound`].
    pub fn list_producers(&self, topic: Option<&TopicName>) -> Result<Vec<ProducerListing>, TopicNotFound> {
        self.counted(self.inner.list_producers(topic))
    }

    /// Forgets a named producer: its name, its epoch and its state in every partition. From the answer on
    /// nothing is taken from its id.
    ///
    /// # Errors
    /// [`DeleteProducerError`].
    pub async fn delete_producer(&self, name: &ProducerName) -> Result<(), DeleteProducerError> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        let deleted = self.inner.detached(async move { inner.delete_producer(&name).await });
        self.counted(deleted.await)
    }
}

impl Inner {
    async fn init_producer(
        &self,
        name: Option<ProducerName>,
        topics: &[TopicName],
    ) -> Result<InitializedProducer, InitProducerError> {
        self.refuse_when_stopping()?;
        // Before an id or an epoch is used up: a request that names nonsense changes nothing.
        self.asked_topics(topics).map_err(init_error)?;
        let Some(name) = name else {
            let id = self.unnamed_id().await?;
            return Ok(InitializedProducer {
                id,
                epoch: ProducerEpoch::ZERO,
                state: ProducerState::default(),
            });
        };
        let ProducerValue { id, epoch, .. } = self.next_epoch(name).await?;
        let state = self.producer_state(id, topics).await.map_err(init_error)?;
        self.replace_session(id, epoch, state.highest_request_number);
        Ok(InitializedProducer { id, epoch, state })
    }

    async fn unnamed_id(&self) -> Result<ProducerId, InitProducerError> {
        loop {
            if let Some(id) = self.producers.take_unnamed() {
                return Ok(id);
            }
            let mut catalog = self.catalog.lock().await;
            if self.producers.ids.lock().has_unnamed() {
                continue;
            }
            let mut durable = self.producers.ids.lock().durable;
            durable.unnamed_end += ID_BLOCK;
            if durable.unnamed_end > ProducerId::NAMED_BIT {
                return Err(LimitReached { what: "producer ids", limit: ProducerId::NAMED_BIT }.into());
            }
            catalog.append(&[CatalogRecord::ProducerIds(durable)], self.clock.now()).await?;
            self.producers.ids.lock().durable = durable;
        }
    }

    /// A higher epoch for a name, durable, and fenced before this returns.
    async fn next_epoch(&self, name: ProducerName) -> Result<ProducerValue, InitProducerError> {
        let mut catalog = self.catalog.lock().await;
        let generation = catalog.generation();
        let before = self.producers.named(&name);
        let value = match before.and_then(|before| Some((before.id, before.epoch.next()?))) {
            Some((id, epoch)) => {
                let value = ProducerValue { id, epoch, generation };
                self.write_producer(&mut catalog, &name, value, None).await?;
                value
            }
            None => {
                let limit = self.config.limits.named_producers;
                if before.is_none() && self.producers.named.read().by_name.len() >= limit as usize {
                    return Err(LimitReached { what: "named producers", limit: u64::from(limit) }.into());
                }
                let mut ids = self.producers.ids.lock().durable;
                let id = ProducerId::new(ids.named_end | ProducerId::NAMED_BIT)
                    .ok()
                    .filter(|_| ids.named_end < ProducerId::NAMED_BIT)
                    .ok_or(LimitReached { what: "named producer ids", limit: ProducerId::NAMED_BIT })?;
                ids.named_end += 1;
                let value = ProducerValue { id, epoch: ProducerEpoch::ZERO, generation };
                self.write_producer(&mut catalog, &name, value, Some(ids)).await?;
                value
            }
        };
        self.producers.put(name.clone(), value);
        self.storage.fence(value.id, Some(value.epoch));
        if let Some(before) = before.filter(|before| before.id != value.id) {
            tracing::warn!(%name, old = %before.id, new = %value.id, "all epochs of the producer are used up: it has a new id");
            self.storage.fence(before.id, None);
            self.sessions.remove(before.id);
        }
        Ok(value)
    }

    async fn write_producer(
        &self,
        catalog: &mut Catalog,
        name: &ProducerName,
        value: ProducerValue,
        ids: Option<IdsValue>,
    ) -> Result<(), CatalogError> {
        let mut records = vec![CatalogRecord::Producer(name.clone(), Some(value))];
        records.extend(ids.map(CatalogRecord::ProducerIds));
        catalog.append(&records, self.clock.now()).await?;
        if let Some(ids) = ids {
            // The block of unnamed ids may only change under the catalog's lock, which is held.
            self.producers.ids.lock().durable = ids;
        }
        Ok(())
    }

    async fn delete_producer(&self, name: &ProducerName) -> Result<(), DeleteProducerError> {
        self.refuse_when_stopping()?;
        let value = {
            let mut catalog = self.catalog.lock().await;
            let value = self.producers.named(name);
            let value = value.ok_or_else(|| ProducerNotFound { producer: name.clone() })?;
            catalog.append(&[CatalogRecord::Producer(name.clone(), None)], self.clock.now()).await?;
            self.storage.fence(value.id, None);
            self.producers.remove(name);
            self.sessions.remove(value.id);
            value
        };
        for topic in self.topics.all() {
            for (partition, store) in topic.open_partitions() {
                // What is left behind belongs to an id that nobody can use again.
                if let Err(error) = store.forget_producer(value.id).await {
                    tracing::warn!(topic = %topic.name, %partition, %name, %error, "a deleted producer's state stays");
                }
            }
        }
        Ok(())
    }
}

impl Ids {
    fn has_unnamed(&self) -> bool {
        self.next_unnamed < self.durable.unnamed_end
    }
}

fn init_error(error: ProducerStateError) -> InitProducerError {
    match error {
        ProducerStateError::NotFound(error) => error.into(),
        ProducerStateError::Limit(error) => error.into(),
        ProducerStateError::Unavailable(error) => error.into(),
        ProducerStateError::ShuttingDown(error) => error.into(),
        ProducerStateError::Store(error) => error.into(),
    }
}

#[cfg(test)]
mod tests;
