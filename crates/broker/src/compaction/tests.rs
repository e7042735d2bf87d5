use std::collections::BTreeMap;

use rimstone_types::Timestamp;

use crate::{testing::*, *};

/// Until nothing is due any more; answers all that was done.
async fn compact_all(broker: &Broker, now: Timestamp) -> CompactionReport {
    let mut all = CompactionReport::default();
    for _ in 0..1000 {
        let did = broker.compact(now).await;
        all.read.0 += did.read.get();
        all.written.0 += did.written.get();
        all.records_removed += did.records_removed;
        all.finished |= did.finished;
        all.failed |= did.failed;
        if !did.more {
            return all;
        }
    }
    panic!("compaction does not come to an end: {all:?}");
}

/// A topic that is compacted, whose segments hold a few records.
async fn compacted(fixture: &Fixture, topic: &str, settings: &[(&str, &str)]) {
    let mut all = BTreeMap::from([
        ("cleanup.policy".to_owned(), "compact".to_owned()),
        ("segment.bytes".to_owned(), "4096".to_owned()),
    ]);
    all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    fixture.broker.create_topic(name(topic), Some(1), all).await.unwrap();
}

/// Records of so many keys in turn, of about 500 bytes each.
async fn put_keys(fixture: &Fixture, topic: &str, records: usize, keys: usize) {
    for n in 0..records {
        let record = PlainRecord {
            key: Some(format!("key-{}", n % keys).into()),
            ..to_partition(0, &format!("{n}-{}", "x".repeat(500)))
        };
        fixture.produce(plain(topic, vec![record])).await.unwrap();
    }
}

#[tokio::test]
async fn the_dirtiest_log_comes_first_and_only_those_that_are_due() {
    let fixture = Fixture::new().await;
    for (topic, settings) in
        [("half", ("x", "")), ("dirty", ("x", "")), ("clean-enough", ("min.cleanable.dirty.ratio", "1"))]
    {
        let settings: &[(&str, &str)] = if settings.0 == "x" { &[] } else { &[settings] };
        compacted(&fixture, topic, settings).await;
        put_keys(&fixture, topic, 40, 3).await;
    }
    fixture.topic("deleted", 1).await;
    put_keys(&fixture, "deleted", 40, 3).await;
    let now = fixture.clock.now();
    // All three are wholly dirty now.
    compact_all(&fixture.broker, now).await;
    for topic in ["half", "clean-enough"] {
        put_keys(&fixture, topic, 60, 60).await;
        compact_all(&fixture.broker, now).await;
        put_keys(&fixture, topic, 60, 60).await;
    }
    put_keys(&fixture, "dirty", 400, 3).await;
    let before: Vec<_> = ["half", "dirty", "clean-enough"]
        .map(|topic| fixture.store.slices(fixture.partition(topic, 0)))
        .into();
    let first = fixture.broker.compact(now).await;
    assert!(first.more && first.records_removed > 0, "{first:?}");
    let after =
        ["half", "dirty", "clean-enough"].map(|topic| fixture.store.slices(fixture.partition(topic, 0)));
    assert_eq!((after[0] - before[0], after[1] - before[1], after[2] - before[2]), (0, 1, 0));
    compact_all(&fixture.broker, now).await;
    assert_eq!(
        fixture.store.slices(fixture.partition("clean-enough", 0)),
        before[2],
        "its ratio is not reached"
    );
    assert_eq!(fixture.store.slices(fixture.partition("deleted", 0)), 0);
    assert!(fixture.ends("dirty", 0).durable > fixture.ends("dirty", 0).start);
    let text = fixture.broker.metrics_text();
    let line = |name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{name} in {text}"))
            .to_owned()
    };
    assert!(!line("rimstone_compactions_total ").ends_with(" 0"));
    assert!(!line("rimstone_compaction_removed_records_total ").ends_with(" 0"));
    assert!(!line("rimstone_topic_dirty_ratio{topic=\"clean-enough\"}").ends_with(" 0"));
    assert!(!text.contains("rimstone_topic_dirty_ratio{topic=\"deleted\"}"));
}

#[tokio::test]
async fn a_log_that_fails_does_not_keep_the_others_waiting() {
    let fixture = Fixture::new().await;
    for topic in ["good", "bad"] {
        compacted(&fixture, topic, &[]).await;
        put_keys(&fixture, topic, 40, 3).await;
    }
    let bad = fixture.partition("bad", 0);
    fixture.store.script(bad, |script| {
        script.compact_error = Some(rimstone_store::StoreError::Full { path: "d".to_owned() });
    });
    let did = compact_all(&fixture.broker, fixture.clock.now()).await;
    assert!(did.failed && did.finished && did.records_removed > 0, "{did:?}");
    assert_eq!(fixture.store.slices(bad), 1, "once in a round");
    fixture.store.script(bad, |script| script.compact_error = None);
    let did = compact_all(&fixture.broker, fixture.clock.now()).await;
    assert!(!did.failed && did.finished, "the next round tries again: {did:?}");
    assert!(fixture.broker.metrics_text().contains("rimstone_compaction_failures_total 1"));
}

#[tokio::test]
async fn what_cannot_be_compacted_is_not_tried_again_and_again() {
    let fixture = Fixture::new().await;
    for topic in ["good", "bad"] {
        compacted(&fixture, topic, &[]).await;
        put_keys(&fixture, topic, 40, 3).await;
    }
    let (good, bad) = (fixture.partition("good", 0), fixture.partition("bad", 0));
    let fail = |partition, error: Option<rimstone_store::StoreError>| {
        fixture.store.script(partition, |script| script.compact_error = error.clone());
    };
    // The store takes no more work.
    for partition in [good, bad] {
        fail(partition, Some(rimstone_store::StoreError::ShuttingDown));
    }
    let did = fixture.broker.compact(fixture.clock.now()).await;
    assert!(!did.more && !did.failed, "{did:?}");
    assert_eq!(fixture.store.slices(good) + fixture.store.slices(bad), 1);
    // One that is gone does not keep the others waiting, and one that is poisoned is not asked.
    let asked = fixture.store.slices(bad);
    fail(good, None);
    fail(bad, Some(rimstone_store::StoreError::Deleted));
    let did = compact_all(&fixture.broker, fixture.clock.now()).await;
    assert!(!did.failed && did.finished, "{did:?}");
    assert_eq!(fixture.store.slices(bad), asked + 1);
    fixture.store.script(bad, |script| script.poisoned = Some("a sync failed".to_owned()));
    let did = compact_all(&fixture.broker, fixture.clock.now()).await;
    assert!(!did.failed, "{did:?}");
    assert_eq!(fixture.store.slices(bad), asked + 1);
}

#[tokio::test]
async fn a_compacted_topic_takes_only_records_with_keys() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["before"]).await;
    let compact = BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]);
    fixture.broker.alter_topic(&name("t"), compact, Vec::new(), None).await.unwrap();
    let refused = fixture.produce(plain("t", vec![to_partition(0, "x")])).await.unwrap_err();
    assert!(matches!(refused, ProduceError::KeyRequired(_)), "{refused:?}");
    // What came before it was compacted is the last of no key, and stays.
    assert_eq!(fixture.values("t", 0).await, ["before"]);
}

#[tokio::test]
async fn the_catalog_is_compacted_and_read_again() {
    let fixture = Fixture::new().await;
    fixture.topic("kept", 3).await;
    // Long settings, so that its segments fill.
    for n in 0..12_000u64 {
        let set = BTreeMap::from([("segment.ms".to_owned(), (n + 1000).to_string())]);
        fixture.broker.alter_topic(&name("kept"), set, Vec::new(), None).await.unwrap();
    }
    fixture.topic("gone", 1).await;
    fixture.broker.delete_topic(&name("gone")).await.unwrap();
    let generation = fixture.broker.inner.catalog.lock().await.generation();
    let did = compact_all(&fixture.broker, fixture.clock.now()).await;
    assert!(did.finished && did.records_removed > 5000, "{did:?}");
    let described = fixture.broker.describe_topic(&name("kept")).unwrap();
    let fixture = fixture.restart().await;
    assert_eq!(fixture.broker.describe_topic(&name("kept")).unwrap(), described);
    assert!(fixture.broker.describe_topic(&name("gone")).is_err());
    // The generation goes on where it was: it is the end, not a count.
    let end = fixture.broker.inner.catalog.lock().await.generation();
    assert_eq!(end, generation);
    fixture.topic("after", 1).await;
    assert!(fixture.broker.inner.catalog.lock().await.generation() > generation);
}

#[tokio::test]
async fn it_goes_on_by_itself_until_shutdown() {
    let config = BrokerConfig { compaction_interval: std::time::Duration::from_millis(1), ..still() };
    let fixture = Fixture::with(config).await;
    compacted(&fixture, "t", &[]).await;
    put_keys(&fixture, "t", 40, 3).await;
    let partition = fixture.partition("t", 0);
    until("a pass", || fixture.store.slices(partition) > 0).await;
    soon("the end", fixture.broker.finish_shutdown(std::time::Duration::from_secs(20))).await.unwrap();
    assert_eq!(fixture.broker.compact(Timestamp(1)).await, CompactionReport::default());
}
