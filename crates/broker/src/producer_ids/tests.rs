use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rimstone_store::{Append, AppendError, OpenMode, PartitionConfig, Storage};
use rimstone_types::{ProducerEpoch, ProducerId, ProducerName, Timestamp};

use super::ID_BLOCK;
use crate::{catalog::CATALOG_PARTITION, testing::*, *};

fn named(text: &str) -> Option<ProducerName> {
    Some(text.parse().unwrap())
}

fn dense(who: (ProducerId, ProducerEpoch), base: u32, value: &str) -> ProduceRequest {
    batches("t", vec![(0, encoded(Some((who.0, who.1, base)), &[value], Timestamp(0)))])
}

fn reason(outcome: &ProduceOutcome) -> Option<Reason> {
    outcome.appends[0].result.as_ref().err().map(Failure::reason)
}

#[tokio::test]
async fn unnamed_ids_come_in_blocks_and_never_twice() {
    let mut fixture = Fixture::new().await;
    let mut given = BTreeSet::new();
    for _ in 0..=ID_BLOCK {
        assert!(given.insert(fixture.broker.init_producer(None, &[]).await.unwrap().id));
    }
    let blocks = |texts: Vec<String>| texts.iter().filter(|text| text.contains("unnamed_end")).count();
    assert_eq!(blocks(fixture.values("__catalog", 0).await), 2, "one durable write per block");
    for _ in 0..3 {
        fixture = fixture.restart().await;
        for _ in 0..3 {
            let producer = fixture.broker.init_producer(None, &[]).await.unwrap();
            assert!(given.insert(producer.id), "{} was given out before", producer.id);
            assert!(!producer.id.is_named());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unnamed_ids_are_given_out_once_also_at_one_time() {
    let fixture = Fixture::new().await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let broker = fixture.broker.clone();
            tokio::spawn(async move {
                let mut given = Vec::new();
                for _ in 0..ID_BLOCK / 4 {
                    given.push(broker.init_producer(None, &[]).await.unwrap().id);
                }
                given
            })
        })
        .collect();
    let mut all = BTreeSet::new();
    for task in tasks {
        for id in soon("the ids", task).await.unwrap() {
            assert!(all.insert(id), "{id} was given out twice");
        }
    }
}

#[tokio::test]
async fn a_name_keeps_its_id_and_takes_a_higher_epoch() {
    let fixture = Fixture::new().await;
    let first = fixture.broker.init_producer(named("p"), &[]).await.unwrap();
    let other = fixture.broker.init_producer(named("q"), &[]).await.unwrap();
    let second = fixture.broker.init_producer(named("p"), &[]).await.unwrap();
    assert!(first.id.is_named() && other.id.is_named());
    assert_ne!(first.id, other.id);
    assert_eq!((second.id, second.epoch), (first.id, first.epoch.next().unwrap()));
    assert_eq!(fixture.store.fences().last(), Some(&(first.id, Some(second.epoch))));
}

#[tokio::test]
async fn a_resuming_producer_is_told_what_is_stored() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.topic("u", 1).await;
    let first = fixture.broker.init_producer(named("p"), &[name("t")]).await.unwrap();
    assert_eq!(first.state, ProducerState::default());
    let who = (first.id, first.epoch);
    fixture.produce(dense(who, 0, "a")).await.unwrap();
    fixture.produce(dense(who, 1, "b")).await.unwrap();
    let second = fixture.broker.init_producer(named("p"), &[name("u"), name("t")]).await.unwrap();
    let [only] = &second.state.partitions[..] else { panic!("{:?}", second.state) };
    assert_eq!((only.topic.as_str(), only.partition.0), ("t", 0));
    assert_eq!((only.view.last, only.view.last_offset.unwrap().get()), (1, 1));
    assert_eq!(second.state.highest_request_number, None, "it numbers records, not requests");
    assert_eq!(fixture.broker.producer_state(first.id, &[name("t")]).await.unwrap(), second.state);
    // The numbers of a named producer go on at last + 1.
    let who = (second.id, second.epoch);
    let resent = fixture.produce(dense(who, 1, "b")).await.unwrap();
    assert!(appended(&resent, 0).duplicate, "stored by the older epoch");
    assert_eq!(reason(&fixture.produce(dense(who, 3, "x")).await.unwrap()), Some(Reason::SequenceGap));
    assert_eq!(reason(&fixture.produce(dense(who, 2, "c")).await.unwrap()), None);
    let listed = fixture.broker.list_producers(Some(&name("t"))).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].name.clone(), listed[0].epoch, listed[0].partitions.len()),
        (named("p"), second.epoch, 1)
    );
    assert!(fixture.broker.list_producers(Some(&name("u"))).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_an_older_epoch_lands_after_the_answer() {
    let fixture = Arc::new(Fixture::new().await);
    fixture.topic("t", 1).await;
    for round in 0..20 {
        let old = fixture.broker.init_producer(named("p"), &[]).await.unwrap();
        let answered = Arc::new(AtomicBool::new(false));
        let started = Arc::new(AtomicBool::new(false));
        let base = match fixture.broker.producer_state(old.id, &[name("t")]).await.unwrap().partitions.first()
        {
            None => 0,
            Some(partition) => partition.view.last + 1,
        };
        let writer = {
            let (fixture, answered, started) = (fixture.clone(), answered.clone(), started.clone());
            tokio::spawn(async move {
                for number in base.. {
                    let late = answered.load(Ordering::SeqCst);
                    let outcome = fixture.produce(dense((old.id, old.epoch), number, "old")).await.unwrap();
                    started.store(true, Ordering::SeqCst);
                    match reason(&outcome) {
                        None => assert!(!late, "round {round}: it began after InitProducer had answered"),
                        Some(reason) => {
                            assert_eq!(reason, Reason::ProducerFenced);
                            break;
                        }
                    }
                }
            })
        };
        until("the older one to write", || started.load(Ordering::SeqCst)).await;
        let new = fixture.broker.init_producer(named("p"), &[name("t")]).await.unwrap();
        answered.store(true, Ordering::SeqCst);
        let end = fixture.ends("t", 0).written;
        let last = new.state.partitions[0].view.last_offset.unwrap();
        assert_eq!(last.get() + 1, end.get(), "what is told is all there is");
        soon("the older one's end", writer).await.unwrap();
        assert_eq!(fixture.ends("t", 0).written, end, "round {round}: nothing landed afterwards");
    }
}

#[tokio::test]
async fn an_epoch_is_durable_before_it_fences() {
    let fixture = Fixture::new().await;
    let first = fixture.broker.init_producer(named("p"), &[]).await.unwrap();
    fixture.store.script(CATALOG_PARTITION, |script| script.hold = true);
    let broker = fixture.broker.clone();
    let init = tokio::spawn(async move { broker.init_producer(named("p"), &[]).await });
    until("the catalog's append", || fixture.store.held(CATALOG_PARTITION) == 1).await;
    assert_eq!(fixture.store.fences().len(), 1);
    assert!(!init.is_finished());
    fixture.store.release(CATALOG_PARTITION, Some(undone())).await;
    let error = soon("the answer", init).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Reason::AppendUndone);
    assert_eq!(fixture.store.fences().len(), 1, "what did not happen fences nobody");

    // The caller goes away half-way: the epoch is taken all the same.
    let broker = fixture.broker.clone();
    let init = tokio::spawn(async move { broker.init_producer(named("p"), &[]).await });
    until("the catalog's append", || fixture.store.held(CATALOG_PARTITION) == 1).await;
    init.abort();
    assert!(init.await.is_err());
    fixture.store.release(CATALOG_PARTITION, None).await;
    until("the fence", || fixture.store.fences().len() == 2).await;
    assert_eq!(fixture.store.fences()[1], (first.id, first.epoch.next()));
    fixture.store.script(CATALOG_PARTITION, |script| script.hold = false);
    let third = fixture.broker.init_producer(named("p"), &[]).await.unwrap();
    assert_eq!(third.epoch.get(), 2);
}

#[tokio::test]
async fn used_up_epochs_take_a_new_id() {
    let fixture = Fixture::new().await;
    let first = fixture.broker.init_producer(named("p"), &[]).await.unwrap();
    fixture.broker.finish_shutdown(Duration::from_secs(20)).await.unwrap();
    let store = fixture.store.reopen();
    let catalog =
        store.open(CATALOG_PARTITION, PartitionConfig::default(), OpenMode::MustExist).await.unwrap();
    let mut builder = rimstone_record::BatchBuilder::new(rimstone_record::Compression::None);
    let value = format!("{{\"v\":1,\"id\":{},\"epoch\":32767,\"generation\":1}}", first.id);
    let (key, value) = (Some("producer:p".into()), Some(value.into()));
    builder.push(&rimstone_record::NewRecord { key, value, ..Default::default() }).unwrap();
    let append = Append { batch: builder.build(), expected_end: None, content_hash: None, now: Timestamp(0) };
    catalog.submit(append).unwrap().await.unwrap();

    let fixture = Fixture::over(store, still()).await;
    fixture.topic("t", 1).await;
    let second = fixture.broker.init_producer(named("p"), &[]).await.unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!(second.epoch, ProducerEpoch::ZERO);
    assert_eq!(fixture.store.fences().last(), Some(&(first.id, None)));
    let refused = fixture.produce(dense((first.id, ProducerEpoch::MAX), 0, "x")).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::UnknownProducer);
    fixture.produce(dense((second.id, second.epoch), 0, "a")).await.unwrap();
    let fixture = fixture.restart().await;
    let third = fixture.broker.init_producer(named("p"), &[]).await.unwrap();
    assert_eq!((third.id, third.epoch.get()), (second.id, 1));
}

#[tokio::test]
async fn a_deleted_producer_is_forgotten_and_its_id_is_dead() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let first = fixture.broker.init_producer(named("p"), &[]).await.unwrap();
    let who = (first.id, first.epoch);
    fixture.produce(dense(who, 0, "a")).await.unwrap();
    fixture.broker.delete_producer(&"p".parse().unwrap()).await.unwrap();
    let unknown = fixture.broker.delete_producer(&"p".parse().unwrap()).await.unwrap_err();
    assert_eq!(unknown.reason(), Reason::ProducerNotFound);
    assert!(fixture.broker.list_producers(Some(&name("t"))).unwrap().is_empty());
    let refused = |fixture: &Fixture| fixture.send(dense(who, 1, "b")).unwrap_err().reason();
    assert_eq!(refused(&fixture), Reason::UnknownProducer);
    let fixture = fixture.restart().await;
    assert_eq!(refused(&fixture), Reason::UnknownProducer);
    let again = fixture.broker.init_producer(named("p"), &[name("t")]).await.unwrap();
    assert_ne!(again.id, first.id);
    assert_eq!(again.state, ProducerState::default());
}

#[tokio::test]
async fn what_cannot_be_asked() {
    let mut config = still();
    config.limits.named_producers = 1;
    config.limits.topics_per_request = 1;
    let fixture = Fixture::with(config).await;
    fixture.topic("t", 1).await;
    let init = async |named, topics: &[&str]| {
        let topics: Vec<_> = topics.iter().map(|topic| name(topic)).collect();
        fixture.broker.init_producer(named, &topics).await.map(|_| ()).map_err(|error| error.reason())
    };
    assert_eq!(init(named("p"), &["u"]).await, Err(Reason::TopicNotFound));
    assert_eq!(init(None, &["u"]).await, Err(Reason::TopicNotFound));
    assert_eq!(init(named("p"), &["t", "t"]).await, Err(Reason::LimitReached));
    assert!(fixture.broker.list_producers(None).unwrap().is_empty());
    assert_eq!(init(named("p"), &["t"]).await, Ok(()));
    assert_eq!(init(named("q"), &[]).await, Err(Reason::LimitReached));
    assert_eq!(init(named("p"), &[]).await, Ok(()), "one that is there goes on");
}

#[tokio::test]
async fn a_catalog_of_unknown_fate_gives_no_epoch() {
    let fixture = Fixture::new().await;
    fixture.store.script(CATALOG_PARTITION, |script| script.hold = true);
    let broker = fixture.broker.clone();
    let init = tokio::spawn(async move { broker.init_producer(named("p"), &[]).await });
    until("the catalog's append", || fixture.store.held(CATALOG_PARTITION) == 1).await;
    let unknown = AppendError::Unknown { reason: "EIO".to_owned() };
    fixture.store.release(CATALOG_PARTITION, Some(unknown)).await;
    let error = soon("the answer", init).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Reason::AppendUnknown);
    assert!(fixture.broker.list_producers(None).unwrap().is_empty());
    assert!(fixture.store.fences().is_empty());
}
