use std::collections::BTreeMap;

use rimstone_store::{AppendError, Backpressure};
use rimstone_types::{ByteCount, Offset, ProducerEpoch, ProducerId};

use crate::{testing::*, *};

type Who = (ProducerId, ProducerEpoch);

async fn unnamed(fixture: &Fixture) -> Who {
    let producer = fixture.broker.init_producer(None, &[]).await.unwrap();
    (producer.id, producer.epoch)
}

async fn named(fixture: &Fixture, name: &str) -> (Who, Option<u32>) {
    let producer = fixture.broker.init_producer(Some(name.parse().unwrap()), &[]).await.unwrap();
    ((producer.id, producer.epoch), producer.state.highest_request_number)
}

/// The offsets of each partition, or the reason of its failure; `d` marks duplicates.
fn shown(outcome: &Result<ProduceOutcome, ProduceError>) -> String {
    match outcome {
        Err(error) => format!("{} {:?}", error.reason().as_str(), error.details()),
        Ok(outcome) => {
            let one = |append: &PartitionAppend| match &append.result {
                Ok(appended) => {
                    let offset = appended.offsets.map_or(-1, |(first, _)| first.as_i64());
                    format!("{offset}{}", if appended.duplicate { "d" } else { "" })
                }
                Err(error) => error.reason().as_str().to_owned(),
            };
            outcome.appends.iter().map(one).collect::<Vec<_>>().join(" ")
        }
    }
}

async fn sent(fixture: &Fixture, who: Who, number: u64, records: &[(u32, &str)]) -> String {
    shown(&fixture.produce(numbered("t", who, number, records)).await)
}

fn resend(expected: u32) -> String {
    format!("RESEND_FIRST [(\"expected_number\", \"{expected}\")]")
}

#[tokio::test]
async fn repeated_requests_are_duplicates_and_reused_numbers_are_not() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let who = unnamed(&fixture).await;
    assert_eq!(sent(&fixture, who, 1, &[(0, "too early")]).await, resend(0));
    assert_eq!(sent(&fixture, who, 0, &[(0, "a"), (1, "b")]).await, "0 0");
    assert_eq!(sent(&fixture, who, 0, &[(0, "a"), (1, "b")]).await, "0d 0d");
    assert_eq!(sent(&fixture, who, 1, &[(1, "c")]).await, "1");
    assert_eq!(sent(&fixture, who, 0, &[(0, "x"), (1, "b")]).await, "NUMBER_REUSED 0d");
    assert_eq!(sent(&fixture, who, 3, &[(0, "gap")]).await, resend(2));
    assert_eq!(sent(&fixture, who, 2, &[(0, "d")]).await, "1", "a reused number blocks nobody");
    assert_eq!(fixture.values("t", 0).await, ["a", "d"]);
    assert_eq!(fixture.values("t", 1).await, ["b", "c"]);
}

#[tokio::test]
async fn a_retry_after_a_partial_failure_appends_what_is_missing() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let who = unnamed(&fixture).await;
    let (first, second) = (fixture.partition("t", 0), fixture.partition("t", 1));
    fixture.store.script(second, |script| script.hold = true);
    let both = [(0, "a"), (1, "b")];
    let pending = fixture.send(numbered("t", who, 0, &both)).unwrap();
    let behind = fixture.send(numbered("t", who, 1, &[(0, "c")])).unwrap();
    until("0 to be submitted", || fixture.store.held(second) == 1).await;
    assert_eq!(fixture.ends("t", 0).durable.get(), 1, "1 waits for 0, which is open elsewhere");
    fixture.store.release(second, Some(undone())).await;
    assert_eq!(shown(&soon("the answer", pending).await), "0 APPEND_UNDONE");
    assert_eq!(shown(&soon("the answer", behind).await), resend(0));

    fixture.store.script(second, |script| script.hold = false);
    assert_eq!(sent(&fixture, who, 1, &[(0, "c")]).await, resend(0), "on any stream");
    assert_eq!(sent(&fixture, who, 0, &both).await, "0d 0");
    assert_eq!(sent(&fixture, who, 1, &[(0, "c")]).await, "1");
    assert_eq!(fixture.values("t", 0).await, ["a", "c"]);
    assert_eq!(fixture.values("t", 1).await, ["b"]);
    assert_eq!(fixture.store.held(first), 0);
}

#[tokio::test]
async fn pipelined_requests_to_one_partition_fail_together_and_come_again_in_order() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let who = unnamed(&fixture).await;
    let partition = fixture.partition("t", 0);
    fixture.store.script(partition, |script| script.hold = true);
    let pending: Vec<_> =
        (0..3).map(|number| fixture.send(numbered("t", who, number, &[(0, "v")])).unwrap()).collect();
    until("all to be submitted", || fixture.store.held(partition) == 3).await;
    for _ in 0..3 {
        fixture.store.release(partition, Some(AppendError::Unknown { reason: "EIO".to_owned() })).await;
    }
    for pending in pending {
        assert_eq!(shown(&soon("the answer", pending).await), "APPEND_UNKNOWN");
    }
    fixture.store.script(partition, |script| script.hold = false);
    assert_eq!(sent(&fixture, who, 2, &[(0, "v")]).await, resend(0));
    assert_eq!(sent(&fixture, who, 0, &[(0, "v")]).await, "0");
    assert_eq!(sent(&fixture, who, 2, &[(0, "v")]).await, resend(1));
    assert_eq!(sent(&fixture, who, 1, &[(0, "v")]).await, "1");
    assert_eq!(sent(&fixture, who, 2, &[(0, "v")]).await, "2");
    assert_eq!(sent(&fixture, who, 3, &[(0, "v")]).await, "3");
}

#[tokio::test]
async fn a_request_that_is_refused_whole_uses_no_number() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let who = unnamed(&fixture).await;
    let partition = fixture.partition("t", 0);
    let waiting = ByteCount(1);
    fixture.store.script(partition, |script| {
        script.refuse = Some(Backpressure::Staging { waiting, limit: waiting });
    });
    assert!(sent(&fixture, who, 0, &[(0, "a")]).await.starts_with("BACKPRESSURE"));
    assert_eq!(sent(&fixture, who, 1, &[(0, "b")]).await, resend(0));
    fixture.store.script(partition, |script| script.refuse = None);
    assert_eq!(sent(&fixture, who, 0, &[(0, "other content")]).await, "0");

    // An end that is not met is a verdict, not a failure: the number is used, and the next one is free.
    let wrong = ProduceRequest { expected_end: Some(Offset::ZERO), ..numbered("t", who, 1, &[(0, "x")]) };
    assert_eq!(shown(&fixture.produce(wrong).await), "EXPECTED_END_NOT_MET");
    assert_eq!(sent(&fixture, who, 2, &[(0, "y")]).await, "1");
}

#[tokio::test]
async fn after_a_restart_the_highest_must_come_again_identical() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 3).await;
    let who = unnamed(&fixture).await;
    for number in 0..3 {
        sent(&fixture, who, number, &[(u32::try_from(number).unwrap(), "v")]).await;
    }
    let fixture = fixture.restart().await;
    let state = fixture.broker.producer_state(who.0, &[]).await.unwrap();
    assert_eq!(state.highest_request_number, Some(2));
    assert_eq!(sent(&fixture, who, 3, &[(0, "w")]).await, resend(2));
    assert_eq!(sent(&fixture, who, 2, &[(2, "other")]).await, "NUMBER_REUSED");
    assert_eq!(sent(&fixture, who, 3, &[(0, "w")]).await, resend(2), "other content settles nothing");
    let elsewhere = numbered("t", who, 2, &[(0, "v")]);
    let elsewhere = ProduceRequest { expected_end: Some(Offset::ZERO), ..elsewhere };
    assert_eq!(shown(&fixture.produce(elsewhere).await), "EXPECTED_END_NOT_MET");
    assert_eq!(
        sent(&fixture, who, 3, &[(0, "w")]).await,
        resend(2),
        "nor does a condition of another request"
    );
    assert_eq!(sent(&fixture, who, 2, &[(2, "v")]).await, "0d");
    assert_eq!(sent(&fixture, who, 3, &[(0, "w")]).await, "1");
}

#[tokio::test]
async fn requests_that_come_while_the_state_is_read_keep_their_order() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let who = unnamed(&fixture).await;
    // On a current-thread runtime the state is read only once this task waits.
    let pending: Vec<_> = [0, 1, 3, 2]
        .into_iter()
        .map(|number| fixture.send(numbered("t", who, number, &[(0, &number.to_string())])).unwrap())
        .collect();
    let mut answers = Vec::new();
    for pending in pending {
        answers.push(shown(&soon("the answer", pending).await));
    }
    assert_eq!(answers, ["0", "1", &resend(2), "2"]);
    assert_eq!(fixture.values("t", 0).await, ["0", "1", "2"]);
}

#[tokio::test]
async fn a_named_producer_goes_on_across_epochs() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let (old, highest) = named(&fixture, "p").await;
    assert_eq!(highest, None);
    assert_eq!(sent(&fixture, old, 0, &[(0, "a")]).await, "0");
    assert_eq!(sent(&fixture, old, 1, &[(0, "b"), (1, "c")]).await, "1 0");
    let (new, highest) = named(&fixture, "p").await;
    assert_eq!((new.0, highest), (old.0, Some(1)));
    assert!(sent(&fixture, old, 2, &[(0, "late")]).await.starts_with("PRODUCER_FENCED"));
    assert_eq!(sent(&fixture, new, 2, &[(0, "d")]).await, resend(1));
    assert_eq!(sent(&fixture, new, 1, &[(0, "b"), (1, "c")]).await, "1d 0d", "stored by the older epoch");
    assert_eq!(sent(&fixture, new, 2, &[(0, "d")]).await, "2");
    assert_eq!(fixture.values("t", 0).await, ["a", "b", "d"]);
}

#[tokio::test]
async fn what_waits_of_a_fenced_instance_is_refused() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let (old, _) = named(&fixture, "p").await;
    let partition = fixture.partition("t", 0);
    fixture.store.script(partition, |script| script.hold = true);
    let open = fixture.send(numbered("t", old, 0, &[(0, "a")])).unwrap();
    let waiting = fixture.send(numbered("t", old, 1, &[(1, "b")])).unwrap();
    until("0 to be submitted", || fixture.store.held(partition) == 1).await;
    let (new, highest) = named(&fixture, "p").await;
    assert_eq!(highest, None, "nothing of it is durable");
    assert!(shown(&soon("the refusal", waiting).await).starts_with("PRODUCER_FENCED"));
    fixture.store.release(partition, None).await;
    assert_eq!(
        shown(&soon("the answer", open).await),
        "PRODUCER_FENCED",
        "the store's fence holds for it too"
    );
    fixture.store.script(partition, |script| script.hold = false);
    assert_eq!(sent(&fixture, new, 0, &[(0, "new")]).await, "0");
    assert_eq!(fixture.values("t", 0).await, ["new"]);
    assert!(fixture.values("t", 1).await.is_empty());
}

#[tokio::test]
async fn the_partition_count_is_fixed_per_epoch() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let records = || {
        (0..40).map(|key| PlainRecord {
            key: Some(bytes::Bytes::from(format!("key {key}"))),
            ..PlainRecord::default()
        })
    };
    let request = |who: Who, number: u64| {
        let numbering = numbered("t", who, number, &[]).numbering;
        ProduceRequest { numbering, ..plain("t", records().collect()) }
    };
    let old = unnamed(&fixture).await;
    let (old_named, _) = named(&fixture, "p").await;
    let touched = async |who: Who, number: u64| {
        fixture
            .produce(request(who, number))
            .await
            .unwrap()
            .appends
            .iter()
            .map(|append| append.partition.0)
            .max()
    };
    assert_eq!(touched(old, 0).await, Some(1));
    fixture.broker.alter_topic(&name("t"), BTreeMap::new(), vec![], Some(8)).await.unwrap();
    assert_eq!(touched(old, 0).await, Some(1), "the repeat goes where it went");
    assert_eq!(touched(old, 1).await, Some(1));
    assert_eq!(touched(old_named, 0).await, Some(1));
    let repeated = fixture.produce(request(old, 0)).await.unwrap();
    assert!((0..2).all(|index| appended(&repeated, index).duplicate));

    let new = unnamed(&fixture).await;
    assert_eq!(touched(new, 0).await, Some(7));
    let (new_named, _) = named(&fixture, "p").await;
    assert_eq!(touched(new_named, 0).await, Some(7), "a new epoch has the new count");
    let without = fixture.produce(plain("t", records().collect())).await.unwrap();
    assert_eq!(without.appends.last().unwrap().partition.0, 7);
}

#[tokio::test]
async fn the_partition_count_of_an_epoch_survives_a_restart() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let (who, _) = named(&fixture, "p").await;
    let plain_who = unnamed(&fixture).await;
    fixture.broker.alter_topic(&name("t"), BTreeMap::new(), vec![], Some(8)).await.unwrap();
    let fixture = fixture.restart().await;
    for who in [who, plain_who] {
        for number in 0..20 {
            let numbering = numbered("t", who, number, &[]).numbering;
            let request = ProduceRequest { numbering, ..plain("t", vec![PlainRecord::default()]) };
            let outcome = fixture.produce(request).await.unwrap();
            assert!(outcome.records[0].partition.0 < 2, "{outcome:?}");
        }
    }
}

#[tokio::test]
async fn sessions_are_bounded_and_the_idle_give_way() {
    let mut config = still();
    config.limits.sessions = 2;
    let fixture = Fixture::with(config).await;
    fixture.topic("t", 1).await;
    let whos = [unnamed(&fixture).await, unnamed(&fixture).await, unnamed(&fixture).await];
    for who in whos {
        fixture.clock.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert!(!sent(&fixture, who, 0, &[(0, "v")]).await.contains("LIMIT"));
    }
    assert_eq!(fixture.broker.inner.sessions.count(), 2);
    assert_eq!(sent(&fixture, whos[1], 1, &[(0, "w")]).await, "3", "the second is still known");
    assert_eq!(sent(&fixture, whos[0], 1, &[(0, "w")]).await, resend(0), "the first gave way");
    assert_eq!(sent(&fixture, whos[0], 0, &[(0, "v")]).await, "0d");

    let partition = fixture.partition("t", 0);
    fixture.store.script(partition, |script| script.hold = true);
    let open = [whos[0], whos[1]].map(|who| fixture.send(numbered("t", who, 1, &[(0, "x")])).unwrap());
    until("both to be submitted", || fixture.store.held(partition) == 2).await;
    let refused = fixture.send(numbered("t", whos[2], 1, &[(0, "x")])).unwrap_err();
    assert_eq!(refused.reason(), Reason::LimitReached);
    drop(open);
}

#[tokio::test]
async fn open_requests_of_one_producer_are_bounded() {
    let mut config = still();
    config.limits.open_requests_per_producer = 3;
    let fixture = Fixture::with(config).await;
    fixture.topic("t", 1).await;
    let who = unnamed(&fixture).await;
    sent(&fixture, who, 0, &[(0, "v")]).await;
    let partition = fixture.partition("t", 0);
    fixture.store.script(partition, |script| script.hold = true);
    let open: Vec<_> =
        (1..4).map(|number| fixture.send(numbered("t", who, number, &[(0, "v")])).unwrap()).collect();
    let refused = soon("the refusal", fixture.send(numbered("t", who, 4, &[(0, "v")])).unwrap()).await;
    assert_eq!(refused.as_ref().unwrap_err().reason(), Reason::Backpressure);
    assert!(refused.unwrap_err().retry_after().is_some());
    for pending in open {
        fixture.store.release(partition, None).await;
        soon("the answer", pending).await.unwrap();
    }
    fixture.store.script(partition, |script| script.hold = false);
    assert_eq!(sent(&fixture, who, 4, &[(0, "v")]).await, "4");
}

#[tokio::test]
async fn a_deleted_topic_leaves_the_producer_usable_with_a_new_epoch() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.topic("u", 1).await;
    let (who, _) = named(&fixture, "p").await;
    assert_eq!(sent(&fixture, who, 0, &[(0, "v")]).await, "0");
    let partition = fixture.partition("t", 0);
    fixture.store.script(partition, |script| script.hold = true);
    let open = fixture.send(numbered("t", who, 1, &[(0, "w")])).unwrap();
    until("1 to be submitted", || fixture.store.held(partition) == 1).await;
    fixture.store.release(partition, Some(undone())).await;
    soon("the answer", open).await.unwrap();
    fixture.broker.delete_topic(&name("t")).await.unwrap();
    let elsewhere = numbered("u", who, 2, &[(0, "x")]);
    assert_eq!(shown(&fixture.produce(elsewhere).await), resend(1));
    let (who, highest) = named(&fixture, "p").await;
    assert_eq!(highest, None);
    assert_eq!(shown(&fixture.produce(numbered("u", who, 0, &[(0, "x")])).await), "0");
}
