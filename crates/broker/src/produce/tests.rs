use std::{collections::BTreeMap, sync::atomic::Ordering};

use bytes::Bytes;
use rimstone_record::{Batch, BatchBuilder, Compression, NewRecord, ProducerStamp, partitioner};
use rimstone_store::{AppendError, Backpressure};
use rimstone_types::{
    ByteCount, Numbering, Offset, PartitionIndex, ProducerEpoch, ProducerId, RequestNumber, Timestamp,
};

use crate::{testing::*, *};

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

fn keyed(key: &str, value: &str) -> PlainRecord {
    PlainRecord {
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        partition: None,
        ..to_partition(0, value)
    }
}

#[tokio::test]
async fn records_go_by_partition_key_or_turn_and_answers_line_up() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 4).await;
    let count = std::num::NonZeroU32::new(4).unwrap();
    let by_key = |key: &str| partitioner::partition_for_key(key.as_bytes(), count);
    let records = vec![
        keyed("k1", "0"),
        to_partition(3, "1"),
        keyed("k2", "2"),
        keyed("k1", "3"),
        to_partition(3, "4"),
    ];
    let outcome = fixture.produce(plain("t", records)).await.unwrap();
    let partitions: Vec<_> = outcome.records.iter().map(|record| record.partition).collect();
    let three = PartitionIndex(3);
    assert_eq!(partitions, [by_key("k1"), three, by_key("k2"), by_key("k1"), three]);
    // Every record is at the offset that its answer names.
    for (index, position) in outcome.records.iter().enumerate() {
        let values = fixture.values("t", position.partition.0).await;
        assert_eq!(values[position.offset.unwrap().get() as usize], index.to_string());
    }
    let touched: Vec<_> = outcome.appends.iter().map(|append| append.partition).collect();
    let mut sorted = touched.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(touched, sorted, "one item per partition, in order");

    // Without a key one partition per request, then the next.
    let mut seen = Vec::new();
    for _ in 0..4 {
        let outcome = fixture.produce(plain("t", vec![PlainRecord::default(), PlainRecord::default()])).await;
        let outcome = outcome.unwrap();
        assert_eq!(outcome.records[0].partition, outcome.records[1].partition);
        seen.push(outcome.records[0].partition.0);
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3]);
}

#[tokio::test]
async fn requests_of_one_caller_are_appended_in_their_order() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let partition = fixture.partition("t", 0);
    fixture.store.script(partition, |script| script.hold = true);
    let pending: Vec<_> = (0..5)
        .map(|value| fixture.send(plain("t", vec![to_partition(0, &value.to_string())])).unwrap())
        .collect();
    assert_eq!(fixture.store.held(partition), 5, "the order is fixed before anything is awaited");
    for _ in 0..5 {
        fixture.store.release(partition, None).await;
    }
    for (index, pending) in (0..).zip(pending) {
        let outcome = soon("the answer", pending).await.unwrap();
        assert_eq!(appended(&outcome, 0).offsets, Some((offset(index), offset(index))));
    }
    assert_eq!(fixture.values("t", 0).await, ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn a_caller_that_goes_away_changes_nothing() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let partition = fixture.partition("t", 0);
    fixture.store.script(partition, |script| script.hold = true);
    drop(fixture.send(plain("t", vec![to_partition(0, "a")])).unwrap());
    assert!(fixture.broker.inner.budget.in_flight().get() > 0);
    fixture.store.release(partition, None).await;
    until("the room", || fixture.broker.inner.budget.in_flight().get() == 0).await;
    assert_eq!(fixture.values("t", 0).await, ["a"]);
    assert!(fixture.broker.metrics_text().contains("rimstone_produced_records_total{topic=\"t\"} 1"));
}

#[tokio::test]
async fn the_in_flight_budget_refuses_or_lets_wait() {
    let mut config = still();
    config.limits.in_flight = ByteCount(1000);
    let fixture = Fixture::with(config).await;
    let first = fixture.broker.try_reserve(ByteCount(900)).unwrap();
    let refused = fixture.broker.try_reserve(ByteCount(200)).unwrap_err();
    assert_eq!(refused.reason(), Reason::Backpressure);
    assert!(refused.retry_after().is_some());
    assert_eq!(fixture.broker.try_reserve(ByteCount(1001)).unwrap_err().reason(), Reason::LimitReached);
    assert_eq!(fixture.broker.reserve(ByteCount(1001)).await.unwrap_err().reason(), Reason::LimitReached);

    let broker = fixture.broker.clone();
    let waiting = tokio::spawn(async move { broker.reserve(ByteCount(200)).await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(first);
    let second = soon("the room", waiting).await.unwrap().unwrap();
    let third = fixture.broker.reserve(ByteCount(800)).await.unwrap();
    let broker = fixture.broker.clone();
    let waiting = tokio::spawn(async move { broker.reserve(ByteCount(1)).await });
    tokio::task::yield_now().await;
    fixture.broker.begin_shutdown();
    let refused = soon("the refusal", waiting).await.unwrap().unwrap_err();
    assert_eq!(refused.reason(), Reason::ShuttingDown);
    drop((second, third));
}

#[tokio::test]
async fn too_much_is_split_or_refused() {
    let fixture = Fixture::new().await;
    let settings = BTreeMap::from([("max.message.bytes".to_owned(), "1024".to_owned())]);
    fixture.broker.create_topic(name("t"), Some(2), settings).await.unwrap();
    let value = |letter: &str| letter.repeat(300);
    let letters = ["a", "b", "c", "d", "e"];
    let records = || letters.map(|letter| to_partition(0, &value(letter))).to_vec();

    let outcome = fixture.produce(plain("t", records())).await.unwrap();
    assert_eq!(outcome.appends.len(), 1, "batches of one partition are one item");
    assert_eq!(appended(&outcome, 0).offsets, Some((offset(0), offset(4))));
    let offsets: Vec<_> = outcome.records.iter().map(|record| record.offset.unwrap().get()).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4]);
    assert_eq!(fixture.values("t", 0).await, letters.map(value));

    let producer = fixture.broker.init_producer(None, &[]).await.unwrap();
    let number = RequestNumber::ZERO;
    let numbering = Some(RequestNumbering { id: producer.id, epoch: producer.epoch, number });
    let refused = fixture.produce(ProduceRequest { numbering, ..plain("t", records()) }).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::BatchTooLarge);
    let expected_end = Some(offset(5));
    let refused =
        fixture.produce(ProduceRequest { expected_end, ..plain("t", records()) }).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::InvalidRequest);

    let mut with_large = records();
    with_large[3] = to_partition(0, &"x".repeat(1100));
    let refused = fixture.produce(plain("t", with_large)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::RecordTooLarge);
    assert!(refused.details().contains(&("record", "3".to_owned())), "{:?}", refused.details());

    let large = encoded(None, &[&"x".repeat(1100)], Timestamp(0));
    let refused =
        fixture.produce(batches("t", vec![(1, encoded(None, &["ok"], Timestamp(0))), (0, large)])).await;
    assert_eq!(refused.unwrap_err().reason(), Reason::BatchTooLarge);
    assert_eq!(fixture.values("t", 0).await.len(), 5, "a refused request stores nothing");
    assert!(fixture.values("t", 1).await.is_empty(), "in no partition");
}

/// A batch with a stamp of any kind.
fn stamped(stamp: Option<ProducerStamp>) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Compression::None);
    if let Some(stamp) = stamp {
        builder = builder.producer(stamp);
    }
    builder.push(&NewRecord { value: Some("v".into()), ..NewRecord::default() }).unwrap();
    builder.build().bytes().to_vec()
}

/// Changes bytes of a batch and makes its checksum right again.
fn forged(mut bytes: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Bytes {
    change(&mut bytes);
    let crc = crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

#[tokio::test]
async fn clients_batches_are_verified() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let id = fixture.broker.init_producer(None, &[]).await.unwrap().id;
    let epoch = ProducerEpoch::ZERO;
    let by_request = ProducerStamp { id, epoch, base: 0, numbering: Numbering::ByRequest };
    let plain_batch = || stamped(None);
    let set = |at: usize, value: u8| move |bytes: &mut [u8]| bytes[at] |= value;
    let cases: Vec<(&str, Bytes, Reason)> = vec![
        ("nothing", Bytes::new(), Reason::BatchCorrupt),
        ("cut off", plain_batch()[..60].to_vec().into(), Reason::BatchCorrupt),
        ("a byte more", [plain_batch(), vec![0]].concat().into(), Reason::BatchCorrupt),
        (
            "wrong checksum",
            {
                let mut b = plain_batch();
                b[17] ^= 1;
                b.into()
            },
            Reason::BatchCorrupt,
        ),
        (
            "a length that lies",
            {
                let mut b = plain_batch();
                b[8] = 0x7f;
                b.into()
            },
            Reason::BatchCorrupt,
        ),
        ("a count that lies", forged(plain_batch(), set(60, 2)), Reason::BatchCorrupt),
        ("a max time that lies", forged(plain_batch(), set(42, 9)), Reason::BatchCorrupt),
        ("control", forged(plain_batch(), set(22, 1 << 5)), Reason::InvalidRequest),
        ("append time", forged(plain_batch(), set(22, 1 << 3)), Reason::InvalidRequest),
        ("transactional", forged(plain_batch(), set(22, 1 << 4)), Reason::InvalidRequest),
        ("no records", BatchBuilder::new(Compression::None).build().bytes().clone(), Reason::BatchCorrupt),
        ("numbered by request", stamped(Some(by_request)).into(), Reason::InvalidRequest),
        ("an unknown partition", Bytes::new(), Reason::PartitionNotFound),
    ];
    for (what, bytes, reason) in cases {
        let partition = u32::from(what == "an unknown partition") * 7;
        let good = encoded(None, &["good"], Timestamp(0));
        let refused = fixture.produce(batches("t", vec![(0, good), (partition, bytes)])).await.unwrap_err();
        assert_eq!(refused.reason(), reason, "{what}: {refused}");
    }
    assert!(fixture.values("t", 0).await.is_empty(), "not even the good batch beside the bad one");
    fixture
        .produce(batches("t", vec![(0, forged(plain_batch(), |_| {}))]))
        .await
        .expect("the forgery is not it");
}

#[tokio::test]
async fn requests_that_contradict_themselves() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let good = || encoded(None, &["good"], Timestamp(0));
    let id = fixture.broker.init_producer(None, &[]).await.unwrap().id;
    let numbering = Some(RequestNumbering { id, epoch: ProducerEpoch::ZERO, number: RequestNumber::ZERO });
    let end = Some(Offset::ZERO);
    let two = vec![to_partition(0, "a"), to_partition(1, "b")];
    let cases = [
        (plain("t", vec![]), Reason::InvalidRequest),
        (batches("t", vec![]), Reason::InvalidRequest),
        (plain("other", vec![to_partition(0, "a")]), Reason::TopicNotFound),
        (plain("t", vec![to_partition(2, "a")]), Reason::PartitionNotFound),
        (ProduceRequest { expected_end: end, ..plain("t", two) }, Reason::InvalidRequest),
        (ProduceRequest { expected_end: end, ..batches("t", vec![(0, good())]) }, Reason::InvalidRequest),
        (ProduceRequest { numbering, ..batches("t", vec![(0, good())]) }, Reason::InvalidRequest),
    ];
    for (request, reason) in cases {
        let text = format!("{request:?}");
        assert_eq!(fixture.produce(request).await.unwrap_err().reason(), reason, "{text}");
    }
    let mut config = still();
    config.limits.records_per_request = 2;
    let fixture = Fixture::with(config).await;
    fixture.topic("t", 1).await;
    let refused = fixture.produce(plain("t", vec![PlainRecord::default(); 3])).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::LimitReached);
    assert!(refused.to_string().contains("2 records in one request"), "{refused}");
}

#[tokio::test]
async fn create_times_may_not_lie_too_far_in_the_future() {
    let fixture = Fixture::new().await;
    let settings = |time_type: &str| {
        BTreeMap::from([
            ("message.timestamp.after.max.ms".to_owned(), "1000".to_owned()),
            ("message.timestamp.type".to_owned(), time_type.to_owned()),
        ])
    };
    fixture.broker.create_topic(name("create"), None, settings("CreateTime")).await.unwrap();
    fixture.broker.create_topic(name("append"), None, settings("LogAppendTime")).await.unwrap();
    let now = fixture.clock.0.load(Ordering::Relaxed);
    let at = |millis| PlainRecord { create_time: Some(Timestamp(millis)), ..to_partition(0, "v") };
    // 0000-01-01T00:00:00Z.
    let year_0 = -62_167_219_200_000;
    for (millis, allowed) in [
        (now + 1000, true),
        (now + 1001, false),
        (i64::MAX, false),
        (-1, true),
        (i64::MIN, false),
        (year_0, true),
        (year_0 - 1, false),
    ] {
        let produced = fixture.produce(plain("create", vec![at(millis)])).await;
        assert_eq!(produced.is_ok(), allowed, "{millis}: {produced:?}");
        let bytes = encoded(None, &["v"], Timestamp(millis));
        let produced = fixture.produce(batches("create", vec![(0, bytes.clone())])).await;
        assert_eq!(produced.is_ok(), allowed, "{millis}: {produced:?}");
        if let Err(error) = produced {
            assert_eq!(error.reason(), Reason::TimestampTooFar);
        }
        fixture
            .produce(batches("append", vec![(0, bytes)]))
            .await
            .expect("the producer's time does not matter");
    }
    // A record without a time has the server's.
    fixture.produce(plain("create", vec![to_partition(0, "now")])).await.unwrap();
    let at = OffsetQuery::Time(Timestamp(now));
    let visibility = rimstone_store::Visibility::Stable;
    let found = fixture.broker.list_offsets(&name("create"), &[], at, visibility).await.unwrap();
    assert_eq!(found[0].result.as_ref().unwrap().unwrap().time, Some(Timestamp(now + 1000)));
}

#[tokio::test]
async fn expected_end_is_answered_with_the_real_end() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let at =
        |end| ProduceRequest { expected_end: Some(offset(end)), ..plain("t", vec![to_partition(0, "v")]) };
    fixture.produce(at(0)).await.unwrap();
    let outcome = fixture.produce(at(0)).await.unwrap();
    let error = outcome.appends[0].result.as_ref().unwrap_err();
    assert_eq!(error.reason(), Reason::ExpectedEndNotMet);
    assert_eq!(error.details(), [("actual_end", "1".to_owned())]);
    assert_eq!(outcome.records[0].offset, None);
    fixture.produce(at(1)).await.unwrap();
    assert_eq!(fixture.values("t", 0).await.len(), 2);
}

#[tokio::test]
async fn dense_duplicates_are_answered_with_their_offsets() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let id = fixture.broker.init_producer(None, &[]).await.unwrap().id;
    let batch = |base, values: &[&str]| {
        batches("t", vec![(0, encoded(Some((id, ProducerEpoch::ZERO, base)), values, Timestamp(0)))])
    };
    fixture.put("t", 0, &["somebody else"]).await;
    let first = fixture.produce(batch(0, &["a", "b"])).await.unwrap();
    let again = fixture.produce(batch(0, &["a", "b"])).await.unwrap();
    assert!(!appended(&first, 0).duplicate);
    assert!(appended(&again, 0).duplicate);
    assert_eq!(appended(&again, 0).offsets, Some((offset(1), offset(2))));
    let gap = fixture.produce(batch(3, &["d"])).await.unwrap();
    let error = gap.appends[0].result.as_ref().unwrap_err();
    assert_eq!(error.reason(), Reason::SequenceGap);
    assert_eq!(error.details(), [("expected_sequence", "2".to_owned())]);
    assert_eq!(fixture.values("t", 0).await, ["somebody else", "a", "b"]);
    let text = fixture.broker.metrics_text();
    assert!(text.contains("rimstone_duplicate_batches_total{topic=\"t\"} 1"), "{text}");
    assert!(text.contains("rimstone_produced_records_total{topic=\"t\"} 3"), "{text}");
    assert!(text.contains("rimstone_errors_total{reason=\"SEQUENCE_GAP\"} 1"), "{text}");
}

#[tokio::test]
async fn ids_that_nobody_gave_out_are_refused() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let unnamed = fixture.broker.init_producer(None, &[]).await.unwrap().id;
    let named = fixture.broker.init_producer(Some("p".parse().unwrap()), &[]).await.unwrap();
    let id = |value: u64| ProducerId::new(value).unwrap();
    let cases = [
        (id(0), 0, Reason::UnknownProducer),
        (id(unnamed.get() + 1), 0, Reason::UnknownProducer),
        (id(named.id.get() + 1), 0, Reason::UnknownProducer),
        (named.id, 1, Reason::InvalidRequest),
    ];
    for (id, epoch, reason) in cases {
        let epoch = ProducerEpoch::new(epoch).unwrap();
        let bytes = encoded(Some((id, epoch, 0)), &["v"], Timestamp(0));
        let refused = fixture.produce(batches("t", vec![(0, bytes)])).await.unwrap_err();
        assert_eq!(refused.reason(), reason, "{id} {epoch}: {refused}");
        let refused = fixture.produce(numbered("t", (id, epoch), 0, &[(0, "v")])).await.unwrap_err();
        assert_eq!(refused.reason(), reason, "{id} {epoch}: {refused}");
    }
}

#[tokio::test]
async fn a_partition_that_takes_nothing_refuses_the_whole_or_its_part() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 3).await;
    let refuse = |partition, refusal| {
        let id = fixture.partition("t", partition);
        fixture.store.script(id, |script| script.refuse = refusal);
    };
    let waiting = ByteCount(10);
    let staging = Some(Backpressure::Staging { waiting, limit: waiting });
    let request = || plain("t", (0..3).map(|partition| to_partition(partition, "v")).collect());

    refuse(0, staging.clone());
    let refused = fixture.produce(request()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Backpressure);
    assert!(refused.retry_after().is_some());
    assert!(refused.details().contains(&("partition", "0".to_owned())));
    assert!(fixture.values("t", 1).await.is_empty(), "nothing was taken before");

    refuse(0, None);
    refuse(1, staging.clone());
    let outcome = fixture.produce(request()).await.unwrap();
    let reasons: Vec<_> =
        outcome.appends.iter().map(|append| append.result.as_ref().err().map(Failure::reason)).collect();
    assert_eq!(reasons, [None, Some(Reason::Backpressure), None]);
    assert_eq!(outcome.records[1].offset, None);

    // What lies behind a refused batch of the same partition is refused too: its order would be lost.
    refuse(1, None);
    let id = fixture.partition("t", 1);
    fixture.store.script(id, |script| script.refuse_next = staging);
    let bytes = |value| encoded(None, &[value], Timestamp(0));
    let outcome =
        fixture.produce(batches("t", vec![(0, bytes("a")), (1, bytes("b")), (1, bytes("c"))])).await;
    let outcome = outcome.unwrap();
    assert!(outcome.appends[1].result.is_err() && outcome.appends[2].result.is_err());
    assert!(fixture.values("t", 1).await.is_empty());

    refuse(1, Some(Backpressure::DiskReserve { free: waiting, reserve: waiting }));
    let refused = fixture.produce(batches("t", vec![(1, bytes("a"))])).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::DiskFull);
    refuse(1, Some(Backpressure::Poisoned { reason: "EIO".to_owned() }));
    let refused = fixture.produce(batches("t", vec![(1, bytes("a"))])).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::PartitionPoisoned);
}

#[tokio::test]
async fn a_write_that_was_undone_says_so() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    for partition in [0, 1] {
        fixture.store.script(fixture.partition("t", partition), |script| script.hold = true);
    }
    let pending = fixture.send(plain("t", vec![to_partition(0, "a"), to_partition(1, "b")])).unwrap();
    fixture.store.release(fixture.partition("t", 0), Some(undone())).await;
    let unknown = AppendError::Unknown { reason: "EIO".to_owned() };
    fixture.store.release(fixture.partition("t", 1), Some(unknown)).await;
    let outcome = soon("the answer", pending).await.unwrap();
    let reasons: Vec<_> =
        outcome.appends.iter().map(|append| append.result.as_ref().unwrap_err().reason()).collect();
    assert_eq!(reasons, [Reason::AppendUndone, Reason::AppendUnknown]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_compressed_batches_are_verified_beside_other_tasks() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let mut builder = BatchBuilder::new(Compression::Lz4);
    let mut noise = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..2000 {
        let mut value = String::new();
        for _ in 0..8 {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            value.push_str(&format!("{noise:016x}"));
        }
        builder.push(&NewRecord { value: Some(value.into()), ..NewRecord::default() }).unwrap();
    }
    let batch: Batch = builder.build();
    assert!(batch.bytes().len() > 64 << 10);
    let outcome = fixture.produce(batches("t", vec![(0, batch.bytes().clone())])).await.unwrap();
    assert_eq!(appended(&outcome, 0).offsets, Some((offset(0), offset(1999))));
    assert_eq!(fixture.values("t", 0).await.len(), 2000);
}
