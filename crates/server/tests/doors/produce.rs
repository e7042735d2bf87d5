//! `ProduceService`, but for the stream.

use std::num::NonZeroU32;

use bytes::Bytes;
use rimstone_proto::v1;
use rimstone_record::partitioner::partition_for_key;
use tonic::Code;

use crate::support::{
    Server, assert_item, assert_refused, batch, batches, partition_batch, record, server, server_with, soon,
    to_partition_0,
};

async fn unnamed(server: &Server) -> (u64, u32) {
    let given = soon(server.produce().init_producer(v1::InitProducerRequest::default())).await.unwrap();
    (given.get_ref().producer_id, given.get_ref().producer_epoch)
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_records_go_by_key_and_come_back_lined_up() {
    let server = server().await;
    server.topic("t", 6).await;
    let keys = ["a", "b", "c", "a", "d", "a"];
    let mut records: Vec<_> = keys.iter().map(|key| record(Some(key), key)).collect();
    records[4].partition = Some(5);
    let request = v1::ProduceRequest { topic: "t".to_owned(), records, ..Default::default() };
    let answer = soon(server.produce().produce(request)).await.unwrap().into_inner();
    assert_eq!(answer.records.len(), keys.len());
    let of_a = [0, 3, 5].map(|index| answer.records[index]);
    let partitions = NonZeroU32::new(6).unwrap();
    let home = partition_for_key(b"a", partitions).0;
    assert!(of_a.iter().all(|position| position.partition == home), "{of_a:?}");
    assert!(
        of_a.iter().map(|position| position.offset.unwrap()).is_sorted_by(|one, next| one < next),
        "{of_a:?}"
    );
    assert_eq!(answer.records[4].partition, 5);
    let partitions: Vec<_> = answer.appends.iter().map(|append| append.partition).collect();
    assert!(partitions.is_sorted(), "{partitions:?}");
    for append in &answer.appends {
        assert!(append.error.is_none() && !append.duplicate && append.append_time_ms > 0, "{append:?}");
        let count =
            answer.records.iter().filter(|position| position.partition == append.partition).count() as u64;
        assert_eq!(append.last_offset.unwrap() - append.base_offset.unwrap() + 1, count);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_numbered_densely() {
    let server = server().await;
    server.topic("t", 2).await;
    let producer = Some(unnamed(&server).await);
    let first = batch(&["a", "b"], producer, 0);
    let answer = soon(server.produce().produce(batches("t", vec![partition_batch(0, first.clone())]))).await;
    let append = answer.unwrap().into_inner().appends[0].clone();
    assert_eq!((append.base_offset, append.last_offset, append.duplicate), (Some(0), Some(1), false));

    let again = soon(server.produce().produce(batches("t", vec![partition_batch(0, first)]))).await.unwrap();
    let append = again.into_inner().appends[0].clone();
    assert_eq!((append.base_offset, append.last_offset, append.duplicate), (Some(0), Some(1), true));

    // Every append failed: the call fails.
    let gap = batches("t", vec![partition_batch(0, batch(&["x"], producer, 5))]);
    let metadata =
        assert_refused(soon(server.produce().produce(gap)).await, Code::FailedPrecondition, "SEQUENCE_GAP");
    assert_eq!(metadata["expected_sequence"], "2");
    assert_eq!((metadata["topic"].as_str(), metadata["partition"].as_str()), ("t", "0"));

    // One of two failed: the call succeeds and says which.
    let mixed =
        vec![partition_batch(1, batch(&["y"], producer, 0)), partition_batch(0, batch(&["x"], producer, 9))];
    let appends = soon(server.produce().produce(batches("t", mixed))).await.unwrap().into_inner().appends;
    assert_eq!(appends.iter().map(|append| append.partition).collect::<Vec<_>>(), [1, 0]);
    assert_eq!(appends[0].base_offset, Some(0));
    assert_eq!(appends[1].base_offset, None);
    let metadata = assert_item(appends[1].error.as_ref(), Code::FailedPrecondition, "SEQUENCE_GAP");
    assert_eq!((metadata["expected_sequence"].as_str(), metadata["partition"].as_str()), ("2", "0"));

    let (id, epoch) = unnamed(&server).await;
    let unknown = batches("t", vec![partition_batch(0, batch(&["x"], Some((id, epoch)), 3))]);
    let refused = soon(server.produce().produce(unknown)).await;
    assert_refused(refused, Code::FailedPrecondition, "UNKNOWN_PRODUCER");
}

/// A request of records whose keys are "a", "b", "c" and so on.
fn numbered(producer: (u64, u32), number: u32, values: &[&str]) -> v1::ProduceRequest {
    let keys = ["a", "b", "c", "d"];
    let records = keys.iter().zip(values).map(|(key, value)| record(Some(key), value)).collect();
    let (producer_id, producer_epoch) = producer;
    v1::ProduceRequest {
        topic: "t".to_owned(),
        records,
        request_number: Some(v1::RequestNumber { producer_id, producer_epoch, number }),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_numbered() {
    let server = server().await;
    server.topic("t", 3).await;
    let producer = unnamed(&server).await;
    let send = async |number, values: &[&str]| {
        soon(server.produce().produce(numbered(producer, number, values))).await
    };
    let first = send(0, &["a", "b", "c"]).await.unwrap().into_inner();
    let again = send(0, &["a", "b", "c"]).await.unwrap().into_inner();
    assert!(first.appends.iter().all(|append| !append.duplicate));
    assert!(again.appends.iter().all(|append| append.duplicate));
    assert_eq!(first.records, again.records, "the original offsets");

    // Other content under the same number, in every partition and in one.
    assert_refused(send(0, &["x", "y", "z"]).await, Code::FailedPrecondition, "NUMBER_REUSED");
    let home = first.records[2].partition;
    let mixed = send(0, &["a", "b", "z"]).await.unwrap().into_inner();
    for append in &mixed.appends {
        if append.partition == home {
            assert_item(append.error.as_ref(), Code::FailedPrecondition, "NUMBER_REUSED");
        } else {
            assert!(append.duplicate && append.error.is_none(), "{append:?}");
        }
    }
    let metadata = assert_refused(send(2, &["d"]).await, Code::FailedPrecondition, "RESEND_FIRST");
    assert!(metadata.contains_key("expected_number"), "{metadata:?}");

    let unknown = (producer.0 + 1_000, 0);
    let refused = soon(server.produce().produce(numbered(unknown, 0, &["a"]))).await;
    assert_refused(refused, Code::FailedPrecondition, "UNKNOWN_PRODUCER");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_fences_its_older_instance_and_tells_what_is_stored() {
    let server = server().await;
    server.topic("t", 2).await;
    let init = v1::InitProducerRequest { name: "loader".to_owned(), topics: vec!["t".to_owned()] };
    let old = soon(server.produce().init_producer(init.clone())).await.unwrap().into_inner();
    assert!(old.partitions.is_empty() && old.highest_request_number.is_none());
    let bytes = batch(&["a", "b"], Some((old.producer_id, old.producer_epoch)), 0);
    soon(server.produce().produce(batches("t", vec![partition_batch(1, bytes)]))).await.unwrap();

    let new = soon(server.produce().init_producer(init)).await.unwrap().into_inner();
    assert_eq!(new.producer_id, old.producer_id);
    assert!(new.producer_epoch > old.producer_epoch);
    assert_eq!(new.partitions.len(), 1);
    let held = &new.partitions[0];
    assert_eq!(held.partition, Some(v1::TopicPartition { topic: "t".to_owned(), partition: 1 }));
    assert_eq!((held.last_sequence, held.last_offset, held.by_request), (1, Some(1), false));

    // Also where the new one has not written yet.
    for partition in [0, 1] {
        let bytes = batch(&["late"], Some((old.producer_id, old.producer_epoch)), 2 * partition);
        let refused =
            soon(server.produce().produce(batches("t", vec![partition_batch(partition, bytes)]))).await;
        let metadata = assert_refused(refused, Code::FailedPrecondition, "PRODUCER_FENCED");
        assert_eq!(metadata["current_epoch"], new.producer_epoch.to_string());
    }
    let bytes = batch(&["c"], Some((new.producer_id, new.producer_epoch)), 2);
    soon(server.produce().produce(batches("t", vec![partition_batch(1, bytes)]))).await.unwrap();

    let unknown = v1::InitProducerRequest { name: "x".to_owned(), topics: vec!["none".to_owned()] };
    assert_refused(soon(server.produce().init_producer(unknown)).await, Code::NotFound, "TOPIC_NOT_FOUND");
    let bad = v1::InitProducerRequest { name: "a b".to_owned(), topics: vec![] };
    assert_refused(soon(server.produce().init_producer(bad)).await, Code::InvalidArgument, "INVALID_NAME");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_may_name_the_end_it_expects() {
    let server = server().await;
    server.topic("t", 1).await;
    let at = |end| v1::ProduceRequest {
        expected_end: Some(end),
        ..to_partition_0("t", vec![record(None, "a"), record(None, "b")])
    };
    soon(server.produce().produce(at(0))).await.unwrap();
    let refused = soon(server.produce().produce(at(0))).await;
    assert_eq!(assert_refused(refused, Code::FailedPrecondition, "EXPECTED_END_NOT_MET")["actual_end"], "2");
    let mut conditional = partition_batch(0, batch(&["c"], None, 0));
    conditional.expected_end = Some(2);
    let append = soon(server.produce().produce(batches("t", vec![conditional]))).await.unwrap().into_inner();
    assert_eq!(append.appends[0].base_offset, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_named() {
    let server = server_with(&[("limits.request_bytes", "2 MiB")]).await;
    server.topic("t", 1).await;
    let send = async |request| soon(server.produce().produce(request)).await;
    let with_batch = |data: Bytes| batches("t", vec![partition_batch(0, data)]);
    let good = batch(&["a", "b"], None, 0);

    let mut flipped = good.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    let mut lying = good.to_vec();
    lying[8..12].copy_from_slice(&i32::MAX.to_be_bytes());
    let doubled = [&good[..], &good[..]].concat();
    for corrupt in [flipped, lying, doubled, good[..good.len() - 1].to_vec(), good[..20].to_vec(), Vec::new()]
    {
        let metadata =
            assert_refused(send(with_batch(corrupt.into())).await, Code::InvalidArgument, "BATCH_CORRUPT");
        assert_eq!((metadata["topic"].as_str(), metadata["partition"].as_str()), ("t", "0"));
    }

    let large = "x".repeat((1 << 20) + 1);
    let metadata = assert_refused(
        send(to_partition_0("t", vec![record(None, &large)])).await,
        Code::InvalidArgument,
        "RECORD_TOO_LARGE",
    );
    assert_eq!(metadata["limit"], "1048576");
    let over_the_message = "x".repeat((2 << 20) + 1);
    let refused = send(to_partition_0("t", vec![record(None, &over_the_message)])).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_REQUEST");

    let nowhere =
        v1::ProduceRequest { topic: "none".to_owned(), ..to_partition_0("t", vec![record(None, "a")]) };
    let refused = send(nowhere).await;
    assert!(refused.as_ref().unwrap_err().message().contains("rimstone topic create none"), "{refused:?}");
    assert_eq!(assert_refused(refused, Code::NotFound, "TOPIC_NOT_FOUND")["topic"], "none");
    let partition = batches("t", vec![partition_batch(4, good.clone())]);
    let metadata = assert_refused(send(partition).await, Code::NotFound, "PARTITION_NOT_FOUND");
    assert_eq!(metadata["partition"], "4");

    let both = v1::ProduceRequest { records: vec![record(None, "a")], ..with_batch(good.clone()) };
    let empty = v1::PartitionBatch { partition: 0, batch: None, expected_end: None };
    let number = v1::RequestNumber { producer_id: 0, producer_epoch: 0, number: u32::MAX };
    let out_of_range =
        v1::ProduceRequest { request_number: Some(number), ..to_partition_0("t", vec![record(None, "a")]) };
    for invalid in [both, batches("t", vec![empty]), out_of_range, batches("t", vec![])] {
        assert_refused(send(invalid).await, Code::InvalidArgument, "INVALID_REQUEST");
    }

    let future = i64::MAX / 2;
    let late = v1::Record { create_time_ms: Some(future), ..record(None, "a") };
    assert_refused(send(to_partition_0("t", vec![late])).await, Code::InvalidArgument, "TIMESTAMP_TOO_FAR");
}
