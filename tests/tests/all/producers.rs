//! Producers across restarts: duplicates, gaps, fences, by both numberings.

use bytes::Bytes;
use rimstone_proto::v1;
use rimstone_record::{BatchBuilder, Compression, NewRecord, ProducerStamp};
use rimstone_tests::{
    calls::{Calls, assert_append_refused, assert_refused, batch_to_partition_0, record, to_partition_0},
    server::{Server, Setup},
    wait::soon,
};
use rimstone_types::{Numbering, ProducerEpoch, ProducerId, Timestamp};
use tonic::Code;

async fn init(calls: &mut Calls, name: &str) -> v1::InitProducerResponse {
    let request = v1::InitProducerRequest { name: name.to_owned(), topics: vec!["t".to_owned()] };
    soon(calls.produce.init_producer(request)).await.unwrap().into_inner()
}

/// A batch of these values with dense numbering from `sequence` on.
fn batch(producer: &v1::InitProducerResponse, sequence: u32, values: &[&str]) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::Lz4).producer(ProducerStamp {
        id: ProducerId::new(producer.producer_id).unwrap(),
        epoch: ProducerEpoch::new(producer.producer_epoch.into()).unwrap(),
        base: sequence,
        numbering: Numbering::Dense,
    });
    for value in values {
        let value = Some(Bytes::copy_from_slice(value.as_bytes()));
        builder.push(&NewRecord { value, timestamp: Timestamp(1_000), ..Default::default() }).unwrap();
    }
    builder.build().bytes().clone()
}

fn numbered(producer: &v1::InitProducerResponse, number: u32, values: &[&str]) -> v1::ProduceRequest {
    let request_number = Some(v1::RequestNumber {
        producer_id: producer.producer_id,
        producer_epoch: producer.producer_epoch,
        number,
    });
    let records = values.iter().map(|value| record(Some(value), value.to_string())).collect();
    v1::ProduceRequest { topic: "t".to_owned(), records, request_number, ..Default::default() }
}

async fn restart(server: Server, clean: bool) -> (Server, Calls) {
    let mut server = server;
    if clean {
        server.stop().await;
    } else {
        server.kill();
    }
    let server = server.start_again().await;
    let calls = Calls::connect(&server).await;
    (server, calls)
}

#[tokio::test(flavor = "multi_thread")]
async fn dense_numbering_survives_stops_and_kills() {
    for clean in [true, false] {
        let home = tempfile::tempdir().unwrap();
        let server = Setup::new(home.path()).start().await;
        let mut calls = Calls::connect(&server).await;
        calls.create_topic("t", 1, &[]).await;
        let producer = init(&mut calls, "").await;
        for (sequence, values) in [(0, ["a", "b"]), (2, ["c", "d"])] {
            let append = calls.append(batch_to_partition_0("t", batch(&producer, sequence, &values))).await;
            assert_eq!(append.unwrap().base_offset, Some(sequence.into()));
        }
        let (server, mut calls) = restart(server, clean).await;
        let mut again = async |sequence, values: &[&str]| {
            calls.append(batch_to_partition_0("t", batch(&producer, sequence, values))).await
        };
        // The same again: the original offsets, and nothing appended.
        for (sequence, values) in [(0, ["a", "b"]), (2, ["c", "d"])] {
            let append = again(sequence, &values).await.unwrap();
            assert_eq!(
                (append.base_offset, append.duplicate),
                (Some(sequence.into()), true),
                "clean: {clean}"
            );
            assert_eq!(append.last_offset, Some(u64::from(sequence) + 1));
        }
        let gap = assert_append_refused(again(6, &["g"]).await, Code::FailedPrecondition, "SEQUENCE_GAP");
        assert_eq!(gap.number("expected_sequence"), 4);
        let next = again(4, &["e"]).await.unwrap();
        assert_eq!((next.base_offset, next.duplicate), (Some(4), false));
        // Nobody knows this one, and it does not begin at the beginning.
        let stranger = init(&mut calls, "").await;
        assert_ne!(stranger.producer_id, producer.producer_id, "an id is given out once");
        let unknown = calls.append(batch_to_partition_0("t", batch(&stranger, 3, &["x"]))).await;
        assert_append_refused(unknown, Code::FailedPrecondition, "UNKNOWN_PRODUCER");
        drop(server);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_producer_fences_its_older_self_also_after_a_restart() {
    for clean in [true, false] {
        let home = tempfile::tempdir().unwrap();
        let server = Setup::new(home.path()).start().await;
        let mut calls = Calls::connect(&server).await;
        calls.create_topic("t", 2, &[]).await;
        let old = init(&mut calls, "importer").await;
        calls.append(batch_to_partition_0("t", batch(&old, 0, &["a", "b"]))).await.unwrap();
        // The newer instance writes nothing; the fence must hold all the same, in every partition.
        let new = init(&mut calls, "importer").await;
        assert_eq!(new.producer_id, old.producer_id);
        assert!(new.producer_epoch > old.producer_epoch);
        let (server, mut calls) = restart(server, clean).await;
        for (partition, sequence) in [(0, 2), (1, 0)] {
            let mut request = batch_to_partition_0("t", batch(&old, sequence, &["late"]));
            request.batches[0].partition = partition;
            let fenced = assert_append_refused(
                calls.append(request).await,
                Code::FailedPrecondition,
                "PRODUCER_FENCED",
            );
            assert_eq!(fenced.number("current_epoch"), u64::from(new.producer_epoch));
        }
        // Numbering goes on where the older one stopped, and the answer said where.
        assert_eq!((new.partitions.len(), new.partitions[0].last_sequence), (1, 1));
        let append = calls.append(batch_to_partition_0("t", batch(&new, 2, &["c"]))).await.unwrap();
        assert_eq!((append.base_offset, append.duplicate), (Some(2), false));
        let third = init(&mut calls, "importer").await;
        assert!(third.producer_epoch > new.producer_epoch, "epochs rise across restarts");
        assert_eq!(third.partitions[0].last_sequence, 2);
        drop(server);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_by_number_survive_stops_and_kills() {
    for clean in [true, false] {
        let home = tempfile::tempdir().unwrap();
        let server = Setup::new(home.path()).start().await;
        let mut calls = Calls::connect(&server).await;
        calls.create_topic("t", 4, &[]).await;
        let producer = init(&mut calls, "stranger").await;
        assert_eq!(producer.highest_request_number, None);
        let requests: [&[&str]; 3] = [&["a", "b", "c", "d", "e"], &["f", "g"], &["h", "i", "j"]];
        let mut places = Vec::new();
        for (values, number) in requests.iter().zip(0..) {
            let answer = soon(calls.produce.produce(numbered(&producer, number, values))).await.unwrap();
            places.push(answer.into_inner().records);
        }
        let (server, mut calls) = restart(server, clean).await;
        let again = init(&mut calls, "stranger").await;
        assert_eq!(again.highest_request_number, Some(2));
        assert_eq!(again.producer_id, producer.producer_id);
        // The highest may be stored only in part: it comes first.
        let early = soon(calls.produce.produce(numbered(&again, 3, &["k"]))).await;
        let early = assert_refused(early, Code::FailedPrecondition, "RESEND_FIRST");
        assert_eq!(early.number("expected_number"), 2);
        let other = soon(calls.produce.produce(numbered(&again, 2, &["h", "i", "other"]))).await;
        match other {
            Err(status) => drop(assert_refused::<()>(Err(status), Code::FailedPrecondition, "NUMBER_REUSED")),
            Ok(answer) => {
                let appends = answer.into_inner().appends;
                assert!(
                    appends.iter().any(|append| {
                        append.error.as_ref().is_some_and(|error| error.reason == "NUMBER_REUSED")
                    }),
                    "{appends:?}"
                );
            }
        }
        let same = soon(calls.produce.produce(numbered(&again, 2, requests[2]))).await.unwrap().into_inner();
        assert!(same.appends.iter().all(|append| append.duplicate && append.error.is_none()), "{same:?}");
        assert_eq!(same.records, places[2], "the original offsets");
        let next = soon(calls.produce.produce(numbered(&again, 3, &["k"]))).await.unwrap().into_inner();
        assert!(next.appends.iter().all(|append| !append.duplicate && append.error.is_none()), "{next:?}");
        let ends = server.admin().describe_topic("t").await.unwrap();
        let records: u64 = ends.partitions.iter().map(|partition| partition.ends.durable.get()).sum();
        assert_eq!(records, 11, "each once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expected_end_that_is_not_met_says_the_real_one() {
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    let at = |end, value: &str| v1::ProduceRequest {
        expected_end: Some(end),
        ..to_partition_0("t", [value.to_owned()])
    };
    assert_eq!(calls.append(at(0, "first")).await.unwrap().base_offset, Some(0));
    let refusal = assert_append_refused(
        calls.append(at(0, "other")).await,
        Code::FailedPrecondition,
        "EXPECTED_END_NOT_MET",
    );
    assert_eq!(refusal.number("actual_end"), 1);
    let (_server, mut calls) = restart(server, false).await;
    let refusal = assert_append_refused(
        calls.append(at(0, "other")).await,
        Code::FailedPrecondition,
        "EXPECTED_END_NOT_MET",
    );
    assert_eq!(refusal.number("actual_end"), 1);
    assert_eq!(calls.append(at(1, "second")).await.unwrap().base_offset, Some(1));
}
