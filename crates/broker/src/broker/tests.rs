use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rimstone_store::{Append, Health, MemoryStorage, OpenMode, PartitionConfig, Storage};
use rimstone_types::{PartitionId, PartitionIndex, ProducerEpoch, TopicId};

use crate::{catalog::CATALOG_PARTITION, testing::*, *};

#[tokio::test]
async fn a_restart_finds_topics_settings_producers_and_fences() {
    let fixture = Fixture::new().await;
    let settings = BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned())]);
    fixture.broker.create_topic(name("kept"), Some(3), settings).await.unwrap();
    fixture.topic("gone", 1).await;
    fixture.topic("grown", 1).await;
    fixture.put("kept", 1, &["a", "b"]).await;
    fixture.broker.alter_topic(&name("grown"), BTreeMap::new(), vec![], Some(4)).await.unwrap();
    fixture.broker.delete_topic(&name("gone")).await.unwrap();
    let producer = Some("p".parse().unwrap());
    fixture.broker.init_producer(producer.clone(), &[]).await.unwrap();
    let second = fixture.broker.init_producer(producer.clone(), &[]).await.unwrap();
    let server = fixture.broker.describe_server().server_id;
    let before = fixture.broker.list_topics(true);

    let fixture = fixture.restart().await;
    assert_eq!(fixture.broker.list_topics(true), before);
    assert_eq!(fixture.broker.describe_server().server_id, server);
    let kept = fixture.broker.describe_topic(&name("kept")).unwrap();
    let retention = kept.settings.iter().find(|setting| setting.name == "retention.ms").unwrap();
    assert_eq!((retention.value.as_str(), retention.is_default), ("-1", false));
    assert_eq!(fixture.values("kept", 1).await, ["a", "b"]);
    assert_eq!(fixture.store.fences(), [(second.id, Some(second.epoch))]);
    let third = fixture.broker.init_producer(producer, &[]).await.unwrap();
    assert_eq!((third.id, third.epoch), (second.id, second.epoch.next().unwrap()));
    let listed: Vec<_> = fixture.store.list().await.unwrap().into_iter().map(|id| id.topic).collect();
    let expected: usize = before.iter().map(|topic| topic.partitions as usize).sum();
    assert_eq!(listed.len(), expected, "nothing is left of the deleted topic");
}

#[tokio::test]
async fn a_missing_partition_is_unavailable_and_others_serve() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 3).await;
    let broken = fixture.partition("t", 1);
    fixture.broker.finish_shutdown(Duration::from_secs(20)).await.unwrap();
    let store = fixture.store.reopen();
    store.script(broken, |script| script.open_error = Some("bad sector".to_owned()));
    let fixture = Fixture::over(store, still()).await;

    assert_eq!(fixture.put("t", 0, &["a"]).await, 0);
    assert_eq!(fixture.put("t", 2, &["b"]).await, 0);
    let error =
        fixture.produce(plain("t", vec![to_partition(0, "x"), to_partition(1, "y")])).await.unwrap_err();
    assert_eq!(error.reason(), Reason::PartitionUnavailable);
    assert!(error.to_string().contains("bad sector"), "{error}");
    assert_eq!(fixture.values("t", 0).await, ["a"], "a refused request stores nothing");
    let described = fixture.broker.describe_topic(&name("t")).unwrap();
    let states: Vec<_> = described.partitions.iter().map(|partition| partition.state.is_ok()).collect();
    assert_eq!(states, [true, false, true]);
    assert_eq!(fixture.broker.describe_server().unavailable_partitions, 1);

    // Records without a key go where there is a place.
    for _ in 0..6 {
        let outcome = fixture.produce(plain("t", vec![PlainRecord::default()])).await.unwrap();
        assert_ne!(outcome.appends[0].partition, PartitionIndex(1));
    }
    // Silence would let a producer begin again at 0.
    let init = fixture.broker.init_producer(Some("p".parse().unwrap()), &[name("t")]).await;
    assert_eq!(init.unwrap_err().reason(), Reason::PartitionUnavailable);
    assert!(fixture.broker.list_producers(None).unwrap().is_empty(), "no epoch was used up");
}

/// Puts raw records into a catalog that a stopped server left.
async fn spoil(store: &Arc<Faulty>, key: Option<&str>, value: Option<&str>) {
    let partition =
        store.open(CATALOG_PARTITION, PartitionConfig::default(), OpenMode::MustExist).await.unwrap();
    let mut builder = rimstone_record::BatchBuilder::new(rimstone_record::Compression::None);
    let bytes = |text: &str| bytes::Bytes::copy_from_slice(text.as_bytes());
    let record = rimstone_record::NewRecord {
        key: key.map(bytes),
        value: value.map(bytes),
        ..rimstone_record::NewRecord::default()
    };
    builder.push(&record).unwrap();
    let now = rimstone_types::Timestamp(0);
    let append = Append { batch: builder.build(), expected_end: None, content_hash: None, now };
    partition.submit(append).unwrap().await.unwrap();
}

#[tokio::test]
async fn a_catalog_that_is_not_understood_stops_the_start() {
    let cases: &[(Option<&str>, Option<&str>)] = &[
        (None, Some("{}")),
        (Some("nonsense"), Some("{}")),
        (Some("topic:t"), Some("not json")),
        (Some("topic:t"), Some("{\"v\":2}")),
        (Some("topic:t"), Some("{\"v\":1}")),
        (Some("topic:a/b"), None),
        (Some("server"), None),
        (Some("producer-ids"), Some("{\"v\":1,\"unnamed_end\":1,\"named_end\":1,\"more\":1}")),
        (Some("producer:p"), Some("{\"v\":1,\"id\":\"x\",\"epoch\":0,\"generation\":0}")),
        (
            Some("topic:t"),
            Some(
                "{\"v\":1,\"id\":\"67e55044-10b1-426f-9247-bb680e5fe0c8\",\"created_ms\":0,\"settings\":{},\
                 \"counts\":[{\"generation\":0,\"from_unnamed_id\":0,\"count\":4000000000}]}",
            ),
        ),
    ];
    for (key, value) in cases {
        let fixture = Fixture::new().await;
        fixture.broker.finish_shutdown(Duration::from_secs(20)).await.unwrap();
        let store = fixture.store.reopen();
        spoil(&store, *key, *value).await;
        let started = Broker::start(store, still(), fixture.clock.clone()).await;
        assert!(
            matches!(started, Err(StartError::CatalogUnreadable(CatalogUnreadable { offset, .. })) if offset.get() == 1),
            "{key:?} {value:?}: {started:?}"
        );
    }
}

#[tokio::test]
async fn a_damaged_or_missing_catalog_stops_the_start() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.broker.finish_shutdown(Duration::from_secs(20)).await.unwrap();
    let store = fixture.store.reopen();
    store.script(CATALOG_PARTITION, |script| {
        script.read_error = Some(rimstone_store::ReadError::DataLoss {
            from: rimstone_types::Offset::ZERO,
            until: rimstone_types::Offset::new(1).unwrap(),
            reason: "rot".to_owned(),
        });
    });
    let started = Broker::start(store, still(), fixture.clock.clone()).await;
    assert!(matches!(started, Err(StartError::CatalogUnreadable(_))), "{started:?}");

    let store = fixture.store.reopen();
    store.script(CATALOG_PARTITION, |script| script.blind = true);
    let started = soon("the refusal", Broker::start(store, still(), fixture.clock.clone())).await;
    assert!(matches!(started, Err(StartError::CatalogUnreadable(_))), "{started:?}");

    let store = fixture.store.reopen();
    store.script(CATALOG_PARTITION, |script| script.open_error = Some("no header".to_owned()));
    let started = Broker::start(store, still(), fixture.clock.clone()).await;
    assert!(matches!(started, Err(StartError::CatalogOpen(_))), "{started:?}");

    let store = fixture.store.reopen();
    store.delete(TopicId::CATALOG).await.unwrap();
    let started = Broker::start(store, still(), fixture.clock.clone()).await;
    assert!(matches!(started, Err(StartError::CatalogMissing { partitions: 1 })), "{started:?}");
}

#[tokio::test]
async fn what_the_catalog_does_not_know_is_deleted_if_empty_and_kept_if_not() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let known = fixture.partition("t", 0);
    fixture.broker.finish_shutdown(Duration::from_secs(20)).await.unwrap();
    let store = fixture.store.reopen();
    let stray = |id: u128, partition| PartitionId {
        topic: TopicId(uuid::Uuid::from_u128(id)),
        partition: PartitionIndex(partition),
    };
    for id in [stray(7, 0), stray(7, 1), stray(8, 0), stray(8, 1)] {
        let opened = store.open(id, PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
        if id == stray(8, 1) {
            let batch = rimstone_record::Batch::verify(
                encoded(None, &["mine"], rimstone_types::Timestamp(0)),
                &rimstone_record::Limits::default(),
            );
            let now = rimstone_types::Timestamp(0);
            let append = Append { batch: batch.unwrap(), expected_end: None, content_hash: None, now };
            opened.submit(append).unwrap().await.unwrap();
        }
    }
    let fixture = Fixture::over(store, still()).await;
    let mut left = fixture.store.list().await.unwrap();
    left.sort();
    let mut expected = vec![CATALOG_PARTITION, known, stray(8, 0), stray(8, 1)];
    expected.sort();
    assert_eq!(left, expected);
    assert_eq!(fixture.broker.list_topics(false).len(), 1);
}

#[tokio::test]
async fn shutdown_refuses_new_work_and_waits_for_what_is_in_flight() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let partition = fixture.partition("t", 0);
    fixture.store.script(partition, |script| script.hold = true);
    let pending = fixture.send(plain("t", vec![to_partition(0, "a")])).unwrap();
    assert_eq!(fixture.broker.ready(), Ok(()));
    fixture.broker.begin_shutdown();
    assert_eq!(fixture.broker.ready(), Err(ReadinessIssue::ShuttingDown));
    assert!(fixture.broker.try_reserve(rimstone_types::ByteCount(1)).is_err());
    let created = fixture.broker.create_topic(name("u"), None, BTreeMap::new()).await;
    assert_eq!(created.unwrap_err().reason(), Reason::ShuttingDown);
    let init = fixture.broker.init_producer(None, &[]).await;
    assert_eq!(init.unwrap_err().reason(), Reason::ShuttingDown);

    let broker = fixture.broker.clone();
    let stopping = tokio::spawn(async move { broker.finish_shutdown(Duration::from_secs(20)).await });
    tokio::task::yield_now().await;
    assert!(!stopping.is_finished(), "a request is in flight");
    fixture.store.release(partition, None).await;
    let outcome = soon("the answer", pending).await.unwrap();
    assert_eq!(appended(&outcome, 0).offsets.unwrap().0.get(), 0);
    soon("the end", stopping).await.unwrap().unwrap();
}

/// A request that nobody asks for its answer is with the store all the same.
#[tokio::test]
async fn a_stop_waits_for_requests_that_were_left_to_themselves() {
    for detached in [true, false] {
        let fixture = Fixture::new().await;
        fixture.topic("t", 1).await;
        let partition = fixture.partition("t", 0);
        fixture.store.script(partition, |script| script.hold = true);
        let mut pending = Some(fixture.send(plain("t", vec![to_partition(0, "a")])).unwrap());
        if detached {
            pending.as_mut().unwrap().detach();
        } else {
            drop(pending.take());
        }
        let broker = fixture.broker.clone();
        let stopping = tokio::spawn(async move { broker.finish_shutdown(Duration::from_secs(20)).await });
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert!(!stopping.is_finished(), "a request is in flight, detached: {detached}");
        fixture.store.release(partition, None).await;
        soon("the end", stopping).await.unwrap().unwrap();
        if let Some(pending) = pending {
            let outcome = soon("the answer", pending).await.unwrap();
            assert_eq!(appended(&outcome, 0).offsets.unwrap().0.get(), 0);
        }
        let fixture = Fixture::over(fixture.store.reopen(), still()).await;
        assert_eq!(fixture.values("t", 0).await, ["a"]);
    }
}

#[tokio::test]
async fn shutdown_has_a_deadline() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let partition = fixture.partition("t", 0);
    fixture.store.script(partition, |script| script.hold = true);
    let _pending = fixture.send(plain("t", vec![to_partition(0, "a")])).unwrap();
    soon("the end", fixture.broker.finish_shutdown(Duration::from_millis(1))).await.unwrap();
}

#[tokio::test]
async fn readiness_tells_a_failed_sync_from_a_full_disk() {
    let fixture = Fixture::new().await;
    let free = rimstone_types::ByteCount(0);
    *fixture.store.health.lock() = Health::DiskReserveReached { free, reserve: free };
    assert_eq!(fixture.broker.ready(), Ok(()));
    *fixture.store.health.lock() = Health::Poisoned { reason: "EIO".to_owned() };
    assert!(matches!(fixture.broker.ready(), Err(ReadinessIssue::Poisoned { .. })));
}

#[tokio::test]
async fn the_catalog_is_read_like_a_topic_and_written_by_nobody_else() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    assert_eq!(fixture.broker.list_topics(false).len(), 1);
    let all = fixture.broker.list_topics(true);
    assert!(all.iter().any(|topic| topic.name == name("__catalog") && topic.internal));
    let texts = fixture.values("__catalog", 0).await;
    assert!(texts.iter().any(|text| text.contains("\"count\":2") && text.contains("\"v\":1")), "{texts:?}");

    let catalog = name("__catalog");
    let refused = fixture.produce(plain("__catalog", vec![to_partition(0, "x")])).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::InvalidName);
    let none = BTreeMap::new;
    assert!(fixture.broker.create_topic(name("__mine"), None, none()).await.is_err());
    assert!(fixture.broker.alter_topic(&catalog, none(), vec![], Some(2)).await.is_err());
    assert!(fixture.broker.delete_topic(&catalog).await.is_err());
    let trimmed = fixture.broker.delete_records(
        &catalog,
        BTreeMap::from([(PartitionIndex(0), 1)].map(|(p, o)| (p, rimstone_types::Offset::new(o).unwrap()))),
    );
    assert!(trimmed.await.is_err());
}

#[tokio::test]
async fn a_server_that_was_never_started_begins_empty() {
    let store = Faulty::new(MemoryStorage::new());
    let fixture = Fixture::over(store, still()).await;
    assert!(fixture.broker.list_topics(false).is_empty());
    let first = fixture.broker.init_producer(None, &[]).await.unwrap();
    assert_ne!(first.id.get(), 0, "0 is what an unset field says");
    assert_eq!(first.epoch, ProducerEpoch::ZERO);
}
