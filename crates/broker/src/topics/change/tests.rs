use std::{collections::BTreeMap, sync::Arc};

use rimstone_store::{AppendError, OpenMode, PartitionConfig, Storage};
use rimstone_types::{ByteCount, PartitionIndex, TopicId};
use tokio::sync::Semaphore;

use crate::{broker::OPENS_AT_ONCE, catalog::CATALOG_PARTITION, testing::*, *};

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn shown(description: &TopicDescription, setting: &str) -> (String, bool) {
    let found = description.settings.iter().find(|shown| shown.name == setting).expect("it is shown");
    (found.value.clone(), found.is_default)
}

#[tokio::test]
async fn what_cannot_be_made() {
    let mut config = still();
    config.limits.topics = 2;
    config.limits.partitions = 5;
    config.limits.partitions_per_topic = 4;
    let fixture = Fixture::with(config).await;
    let create = async |topic: &str, partitions, pairs: &[(&str, &str)]| {
        let made = fixture.broker.create_topic(name(topic), partitions, settings(pairs)).await;
        made.map(|made| made.partitions).map_err(|error| error.reason())
    };
    assert_eq!(create("a", None, &[]).await, Ok(1), "the server's default");
    assert_eq!(create("a", None, &[]).await, Err(Reason::TopicExists));
    assert_eq!(create("b", Some(0), &[]).await, Err(Reason::InvalidRequest));
    assert_eq!(create("b", Some(1), &[("retention", "1")]).await, Err(Reason::InvalidSetting));
    assert_eq!(create("b", Some(1), &[("cleanup.policy", "compacted")]).await, Err(Reason::InvalidSetting));
    assert_eq!(create("b", Some(5), &[]).await, Err(Reason::LimitReached), "of one topic");
    assert_eq!(create("b", Some(u32::MAX), &[]).await, Err(Reason::LimitReached));
    assert_eq!(create("b", Some(4), &[]).await, Ok(4));
    assert_eq!(create("c", Some(1), &[]).await, Err(Reason::LimitReached), "of topics");
    let alter = fixture.broker.alter_topic(&name("a"), settings(&[]), vec![], Some(2)).await;
    assert_eq!(alter.unwrap_err().reason(), Reason::LimitReached, "of partitions");
    assert_eq!(fixture.store.list().await.unwrap().len(), 6, "nothing is left of what was refused");
}

#[tokio::test]
async fn no_topic_takes_batches_that_no_request_carries() {
    let mut config = still();
    config.limits.request = ByteCount::mib(2);
    let fixture = Fixture::with(config.clone()).await;
    let size = |bytes: u64| settings(&[("max.message.bytes", &bytes.to_string())]);
    let most = (2 << 20) - (4 << 10);
    let create = async |topic: &str, bytes| fixture.broker.create_topic(name(topic), None, size(bytes)).await;
    let refused = create("t", most + 1).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::InvalidSetting);
    assert!(refused.details().contains(&("limit", most.to_string())), "{:?}", refused.details());
    assert!(refused.to_string().contains("limits.request_bytes"), "{refused}");
    create("t", most).await.unwrap();
    let alter =
        async |fixture: &Fixture, set| fixture.broker.alter_topic(&name("t"), set, vec![], None).await;
    let refused = alter(&fixture, size(most + 1)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::InvalidSetting);

    // A lower limit later does not stand in the way of other changes.
    config.limits.request = ByteCount::mib(1);
    let fixture = Fixture::over(fixture.store.reopen(), config).await;
    alter(&fixture, settings(&[("retention.ms", "1000")])).await.unwrap();
    alter(&fixture, size(1024)).await.unwrap();
}

#[tokio::test]
async fn settings_are_set_and_reset_and_known_to_the_partitions() {
    let fixture = Fixture::new().await;
    let pairs = settings(&[("segment.bytes", "8192"), ("retention.ms", "1000")]);
    fixture.broker.create_topic(name("t"), Some(1), pairs).await.unwrap();
    let described = fixture.broker.describe_topic(&name("t")).unwrap();
    assert_eq!(shown(&described, "segment.bytes"), ("8192".to_owned(), false));
    assert_eq!(shown(&described, "max.message.bytes"), ("1048576".to_owned(), true));

    let set = settings(&[("max.message.bytes", "1024")]);
    let reset = vec!["retention.ms".to_owned()];
    let altered = fixture.broker.alter_topic(&name("t"), set, reset, None).await.unwrap();
    assert_eq!(shown(&altered, "retention.ms"), ("604800000".to_owned(), true));
    assert_eq!(shown(&altered, "segment.bytes"), ("8192".to_owned(), false));
    assert_eq!(shown(&altered, "max.message.bytes"), ("1024".to_owned(), false));
    let refused = fixture.produce(plain("t", vec![to_partition(0, &"x".repeat(1024))])).await;
    assert_eq!(refused.unwrap_err().reason(), Reason::RecordTooLarge, "in force at once");

    let before = fixture.broker.describe_topic(&name("t")).unwrap();
    for (set, reset) in
        [(settings(&[("segment.bytes", "1")]), vec![]), (settings(&[]), vec!["nonsense".to_owned()])]
    {
        let refused = fixture.broker.alter_topic(&name("t"), set, reset, Some(3)).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::InvalidSetting);
    }
    let fewer = fixture.broker.alter_topic(&name("t"), settings(&[]), vec![], Some(0)).await.unwrap_err();
    assert_eq!(fewer.reason(), Reason::InvalidRequest);
    assert_eq!(fixture.broker.describe_topic(&name("t")).unwrap(), before);
    let fixture = fixture.restart().await;
    assert_eq!(fixture.broker.describe_topic(&name("t")).unwrap(), before);
}

#[tokio::test]
async fn the_catalog_decides_whether_a_topic_is_made() {
    let fixture = Fixture::new().await;
    fixture.store.script(CATALOG_PARTITION, |script| script.hold = true);
    let create = |topic: &'static str| {
        let broker = fixture.broker.clone();
        tokio::spawn(async move { broker.create_topic(name(topic), Some(2), BTreeMap::new()).await })
    };
    let held = || fixture.store.held(CATALOG_PARTITION) == 1;

    let undone_topic = create("undone");
    until("the catalog's append", held).await;
    assert_eq!(fixture.store.list().await.unwrap().len(), 3, "directories first, then the record");
    assert!(fixture.broker.list_topics(false).is_empty());
    fixture.store.release(CATALOG_PARTITION, Some(undone())).await;
    let error = soon("the answer", undone_topic).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Reason::AppendUndone);
    assert_eq!(fixture.store.list().await.unwrap().len(), 1, "nothing is left");

    let abandoned = create("abandoned");
    until("the catalog's append", held).await;
    abandoned.abort();
    assert!(abandoned.await.is_err());
    fixture.store.release(CATALOG_PARTITION, None).await;
    until("the topic", || fixture.broker.list_topics(false).len() == 1).await;

    let unknown = create("unknown");
    until("the catalog's append", held).await;
    fixture.store.release(CATALOG_PARTITION, Some(AppendError::Unknown { reason: "EIO".to_owned() })).await;
    assert_eq!(soon("the answer", unknown).await.unwrap().unwrap_err().reason(), Reason::AppendUnknown);
    assert_eq!(fixture.store.list().await.unwrap().len(), 5, "the catalog may hold it: its directories stay");
}

/// Partitions that were being made when another one failed were made after everything had been taken away.
#[tokio::test]
async fn of_a_topic_that_fails_in_part_nothing_is_left() {
    let fixture = Fixture::new().await;
    let (failure, permits) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let fail = Some((PartitionIndex(0), Arc::clone(&failure)));
    *fixture.store.opens.lock() = Opens { fail, permits: Some(Arc::clone(&permits)), begun: 0 };
    let begun = || fixture.store.opens.lock().begun;
    let broker = fixture.broker.clone();
    let made = tokio::spawn(async move { broker.create_topic(name("t"), Some(40), BTreeMap::new()).await });
    until("all that are made at one time", || begun() == OPENS_AT_ONCE).await;
    failure.add_permits(1);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!made.is_finished(), "some are being made");
    permits.add_permits(1_000);
    assert_eq!(soon("the answer", made).await.unwrap().unwrap_err().reason(), Reason::DiskFull);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(begun(), OPENS_AT_ONCE, "behind a failure none is begun");
    assert_eq!(fixture.store.list().await.unwrap(), [CATALOG_PARTITION]);
    *fixture.store.opens.lock() = Opens::default();
    fixture.topic("t", 40).await;
}

/// All attempts for `__consumer_offsets` are for the same topic: one of which nobody knew what became of it was in the
/// catalog at the next start, and the one after it, which was refused, had taken its directories away.
#[tokio::test]
async fn an_attempt_that_is_refused_leaves_what_an_unknown_one_has_made() {
    let fixture = Fixture::new().await;
    fixture.store.script(CATALOG_PARTITION, |script| script.hold = true);
    let made = async |error| {
        let inner = std::sync::Arc::clone(&fixture.broker.inner);
        let made = tokio::spawn(async move { inner.make_offsets_topic().await.map(drop) });
        until("the catalog's append", || fixture.store.held(CATALOG_PARTITION) == 1).await;
        fixture.store.release(CATALOG_PARTITION, Some(error)).await;
        soon("the answer", made).await.unwrap().unwrap_err().reason()
    };
    let unknown = AppendError::Unknown { reason: "EIO".to_owned() };
    assert_eq!(made(unknown).await, Reason::AppendUnknown);
    let there = fixture.store.list().await.unwrap();
    assert!(there.len() > 2, "{there:?}");
    assert_eq!(made(undone()).await, Reason::AppendUndone);
    assert_eq!(fixture.store.list().await.unwrap(), there);
}

#[tokio::test]
async fn deleting_goes_by_the_catalog_first() {
    let fixture = Fixture::new().await;
    let id = fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a"]).await;
    fixture.store.script(CATALOG_PARTITION, |script| script.hold = true);
    let broker = fixture.broker.clone();
    let delete = tokio::spawn(async move { broker.delete_topic(&name("t")).await });
    until("the catalog's append", || fixture.store.held(CATALOG_PARTITION) == 1).await;
    fixture.store.release(CATALOG_PARTITION, Some(undone())).await;
    assert_eq!(soon("the answer", delete).await.unwrap().unwrap_err().reason(), Reason::AppendUndone);
    assert_eq!(fixture.values("t", 0).await, ["a"], "it is still there");

    fixture.store.script(CATALOG_PARTITION, |script| script.hold = false);
    fixture.broker.delete_topic(&name("t")).await.unwrap();
    assert_eq!(fixture.broker.delete_topic(&name("t")).await.unwrap_err().reason(), Reason::TopicNotFound);
    assert_eq!(
        fixture.send(plain("t", vec![to_partition(0, "b")])).unwrap_err().reason(),
        Reason::TopicNotFound
    );
    let again = fixture.topic("t", 1).await;
    assert_ne!(again, id);
    assert!(fixture.values("t", 0).await.is_empty(), "a topic of the same name is another one");
}

#[tokio::test]
async fn what_a_crash_left_of_a_deleted_topic_goes_at_the_next_start() {
    let fixture = Fixture::new().await;
    let id = fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a"]).await;
    fixture.broker.delete_topic(&name("t")).await.unwrap();
    fixture.broker.finish_shutdown(std::time::Duration::from_secs(20)).await.unwrap();
    let store = fixture.store.reopen();
    // As if the server had died between the catalog's record and the deletion of the directory.
    let left = rimstone_types::PartitionId { topic: id, partition: PartitionIndex(0) };
    let opened = store.open(left, PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    let batch = rimstone_record::Batch::verify(
        encoded(None, &["a"], rimstone_types::Timestamp(0)),
        &rimstone_record::Limits::default(),
    );
    let append = rimstone_store::Append {
        batch: batch.unwrap(),
        expected_end: None,
        content_hash: None,
        now: rimstone_types::Timestamp(0),
    };
    opened.submit(append).unwrap().await.unwrap();
    let fixture = Fixture::over(store, still()).await;
    assert_eq!(fixture.store.list().await.unwrap(), [CATALOG_PARTITION]);
}

#[tokio::test]
async fn partitions_left_from_a_failed_change_are_taken_if_they_are_empty() {
    let fixture = Fixture::new().await;
    let id: TopicId = fixture.topic("t", 1).await;
    let left = rimstone_types::PartitionId { topic: id, partition: PartitionIndex(1) };
    fixture.store.open(left, PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    let altered = fixture.broker.alter_topic(&name("t"), BTreeMap::new(), vec![], Some(3)).await.unwrap();
    assert_eq!(altered.topic.partitions, 3);
    assert_eq!(fixture.put("t", 1, &["a"]).await, 0);
    assert_eq!(fixture.put("t", 2, &["b"]).await, 0);

    let id = fixture.topic("u", 1).await;
    let left = rimstone_types::PartitionId { topic: id, partition: PartitionIndex(1) };
    let opened = fixture.store.open(left, PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    let batch = rimstone_record::Batch::verify(
        encoded(None, &["somebody's"], rimstone_types::Timestamp(0)),
        &rimstone_record::Limits::default(),
    );
    let append = rimstone_store::Append {
        batch: batch.unwrap(),
        expected_end: None,
        content_hash: None,
        now: rimstone_types::Timestamp(0),
    };
    opened.submit(append).unwrap().await.unwrap();
    let refused = fixture.broker.alter_topic(&name("u"), BTreeMap::new(), vec![], Some(2)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Internal);
    assert!(refused.to_string().contains("holds records"), "{refused}");
}
