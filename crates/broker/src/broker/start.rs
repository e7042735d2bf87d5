//! Starting: the catalog is read whole, fences are set, partitions are opened, what the catalog does not know
//! is looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use futures::{StreamExt, stream};
use rimstone_store::{OpenError, OpenMode, PartitionConfig, Storage};
use rimstone_types::{Offset, PartitionId, PartitionIndex, Timestamp, TopicId, TopicName};
use tokio::{sync::Semaphore, task::AbortHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Broker, Inner, OPENS_AT_ONCE};
use crate::{
    catalog::{CATALOG_TOPIC, Catalog, CatalogRecord, Loaded, ServerValue, TopicValue, catalog_config},
    clock::Clock,
    config::BrokerConfig,
    coordinator::{Coordinator, OFFSETS_TOPIC, offsets_settings},
    error::StartError,
    groups::CommitTable,
    metrics::{Metrics, StateCollector},
    pace::Pace,
    producer_ids::Producers,
    reserve::Budget,
    sessions::Sessions,
    settings::{Overrides, SettingError, TopicSettings},
    topics::{CountSince, Slot, Topic, TopicTable},
};

/// Ends a task that is of no use to anybody else.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Broker {
    /// Reads the catalog, opens every partition and begins to serve. A topic whose partition is missing or
    /// unusable is served without it; that partition answers as unavailable.
    ///
    /// # Errors
    /// [`StartError`], above all a catalog that cannot be read: it is never taken for an empty one.
    pub async fn start(
        storage: Arc<dyn Storage>,
        config: BrokerConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let partitions = storage.list().await?;
        let progress = tokio::spawn(tell_progress(Arc::clone(&storage), partitions.len()));
        let _ends_with_the_start = AbortOnDrop(progress.abort_handle());
        let (mut catalog, loaded) = Catalog::open(&*storage, &partitions).await?;
        let now = clock.now();
        let server = match loaded.server {
            Some(server) => server,
            None => {
                let server = ServerValue { server_id: storage.identity(), created_ms: now.as_millis() };
                catalog.append(&[CatalogRecord::Server(server)], now).await?;
                server
            }
        };
        for producer in loaded.producers.values() {
            storage.fence(producer.id, Some(producer.epoch));
        }
        clear_unknown(&*storage, &loaded, &partitions).await;
        note_deletions(&*storage, &mut catalog, &loaded, now).await?;

        let metrics = Metrics::new();
        let topics = TopicTable::default();
        topics.put(Arc::new(catalog_topic(&catalog, &metrics, Timestamp(server.created_ms))));
        for (name, value) in &loaded.topics {
            let topic = open_topic(&*storage, &config.topic_defaults, &metrics, name, value).await?;
            topics.put(Arc::new(topic));
        }
        tell_recovery(&*storage);
        let limits = &config.limits;
        let inner = Arc::new(Inner {
            server_id: storage.identity(),
            started: now,
            topics,
            producers: Producers::new(loaded.producers, loaded.ids),
            coordinator: Coordinator::default(),
            member_sessions: Arc::new(Semaphore::new(limits.group_sessions)),
            commits: CommitTable::default(),
            lag: Arc::default(),
            sessions: Sessions::new(limits.sessions, limits.open_requests_per_producer),
            compacting: tokio::sync::Mutex::default(),
            catalog: tokio::sync::Mutex::new(catalog),
            budget: Budget::new(limits.in_flight),
            waiting_fetches: Semaphore::new(limits.waiting_fetches),
            readers: Arc::new(Semaphore::new(limits.readers)),
            pace: Arc::new(Pace::new(limits.history_rate)),
            metrics,
            sticky: AtomicU32::new(0),
            fetch_turn: AtomicU32::new(0),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            storage,
            config,
            clock,
        });
        inner.metrics.collect_from(StateCollector(Arc::downgrade(&inner)));
        inner.tasks.spawn(Arc::clone(&inner).keep_lag());
        if let Some(topic) = inner.offsets_topic() {
            inner.start_shards(&topic);
        }
        let every = inner.config.maintenance_interval;
        if !every.is_zero() {
            inner.tasks.spawn(Arc::clone(&inner).run_maintenance(every));
        }
        let every = inner.config.compaction_interval;
        if !every.is_zero() {
            inner.tasks.spawn(Arc::clone(&inner).run_compaction(every));
        }
        let (every, pace) = (inner.config.scrub_interval, inner.config.scrub_pace);
        if pace.get() > 0 {
            inner.tasks.spawn(Arc::clone(&inner).run_scrub(every, pace));
            inner.tasks.spawn(Arc::clone(&inner).run_suspects(pace));
        }
        Ok(Self { inner })
    }
}

/// How often a start that takes long says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Says how far the start is, for as long as it lasts.
async fn tell_progress(storage: Arc<dyn Storage>, partitions: usize) {
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let so_far = storage.recovery().unwrap_or_default();
        tracing::info!(
            opened = so_far.partitions,
            partitions,
            read_bytes = so_far.read_bytes,
            rewritten_bytes = so_far.rewritten_bytes,
            "still opening partitions"
        );
    }
}

/// One line for all partitions.
fn tell_recovery(storage: &dyn Storage) {
    let Some(recovery) = storage.recovery() else { return };
    tracing::info!(
        directory = %recovery.directory.display(),
        was_clean = recovery.was_clean,
        partitions = recovery.partitions,
        from_caches = recovery.from_caches,
        read_bytes = recovery.read_bytes,
        scanned_bytes = recovery.scanned_bytes,
        rewritten_bytes = recovery.rewritten_bytes,
        torn_partitions = recovery.torn_partitions,
        torn_bytes = recovery.torn_bytes,
        damaged_ranges = recovery.damaged_ranges,
        took_ms = u64::try_from(recovery.took.as_millis()).unwrap_or(u64::MAX),
        "{}",
        if recovery.was_clean { "opened after a clean stop" } else { "recovered after an unclean stop" }
    );
}

fn catalog_topic(catalog: &Catalog, metrics: &Metrics, created: Timestamp) -> Topic {
    let name: TopicName = CATALOG_TOPIC.parse().expect("a valid name");
    Topic {
        counters: metrics.topic(&name),
        name,
        id: TopicId::CATALOG,
        created,
        overrides: Overrides::from([
            ("cleanup.policy".to_owned(), "compact".to_owned()),
            ("retention.ms".to_owned(), "-1".to_owned()),
            ("segment.bytes".to_owned(), catalog_config().segment_bytes.get().to_string()),
        ]),
        settings: TopicSettings { partition: catalog_config(), ..TopicSettings::default() },
        slots: vec![Slot::Open(Arc::clone(catalog.store()))],
        counts: vec![CountSince { generation: 0, from_unnamed_id: 0, count: 1 }],
    }
}

async fn open_topic(
    storage: &dyn Storage,
    defaults: &TopicSettings,
    metrics: &Metrics,
    name: &TopicName,
    value: &TopicValue,
) -> Result<Topic, SettingError> {
    let settings = match name.as_str() {
        OFFSETS_TOPIC => offsets_settings(defaults),
        _ => defaults.with(&value.settings)?,
    };
    let open = |partition| {
        let id = PartitionId { topic: value.id, partition: PartitionIndex(partition) };
        let config = settings.partition.clone();
        async move {
            match storage.open(id, config, OpenMode::MustExist).await {
                Ok(store) => Slot::Open(store),
                Err(error) => {
                    tracing::error!(topic = %name, partition, %error, "the partition is unavailable");
                    Slot::Unavailable(error.to_string())
                }
            }
        }
    };
    let slots = stream::iter(0..value.partitions()).map(open).buffered(OPENS_AT_ONCE).collect().await;
    Ok(Topic {
        name: name.clone(),
        id: value.id,
        created: value.created(),
        overrides: value.settings.clone(),
        settings,
        slots,
        counts: value.counts.clone(),
        counters: metrics.topic(name),
    })
}

/// Deletes partitions that the catalog does not know, where the catalog shows that their topic was deleted or
/// where they hold nothing (their topic never came to be). Others are kept, and warned of.
async fn clear_unknown(storage: &dyn Storage, loaded: &Loaded, partitions: &[PartitionId]) {
    let known: BTreeSet<TopicId> = loaded.topics.values().map(|value| value.id).collect();
    let mut unknown: BTreeMap<TopicId, Vec<PartitionId>> = BTreeMap::new();
    for id in partitions {
        if id.topic != TopicId::CATALOG && !known.contains(&id.topic) {
            unknown.entry(id.topic).or_default().push(*id);
        }
    }
    for (topic, partitions) in unknown {
        let deleted = loaded.deleted_topics.contains(&topic) || loaded.deletions.contains(&topic);
        if !deleted && !all_empty(storage, &partitions).await {
            tracing::warn!(
                %topic,
                partitions = partitions.len(),
                "the catalog does not know this topic; its directories are kept"
            );
            continue;
        }
        match storage.delete(topic).await {
            Ok(()) => tracing::info!(%topic, deleted, "what was left of a topic is deleted"),
            Err(error) => tracing::warn!(%topic, %error, "what is left of a topic cannot be deleted"),
        }
    }
}

/// Takes the marks of deleted topics away whose files are gone.
async fn note_deletions(
    storage: &dyn Storage,
    catalog: &mut Catalog,
    loaded: &Loaded,
    now: Timestamp,
) -> Result<(), StartError> {
    if loaded.deletions.is_empty() {
        return Ok(());
    }
    let left: BTreeSet<TopicId> = storage.list().await?.into_iter().map(|id| id.topic).collect();
    let gone = loaded.deletions.difference(&left).map(|id| CatalogRecord::DeletedTopic(*id, None));
    let gone: Vec<_> = gone.collect();
    if !gone.is_empty() {
        catalog.append(&gone, now).await?;
    }
    Ok(())
}

async fn all_empty(storage: &dyn Storage, partitions: &[PartitionId]) -> bool {
    let mut empty = true;
    for id in partitions {
        let opened = storage.open(*id, PartitionConfig::default(), OpenMode::MustExist).await;
        match opened {
            Ok(store) => {
                empty &= store.ends().written == Offset::ZERO;
                if let Err(error) = store.close().await {
                    tracing::warn!(partition = %id, %error, "a partition that is not served cannot be closed");
                }
            }
            Err(OpenError::Missing(_)) => {}
            Err(error) => {
                tracing::warn!(partition = %id, %error, "a partition that the catalog does not know cannot be opened");
                empty = false;
            }
        }
    }
    empty
}
