//! `ConsumeService`.

use std::time::Instant;

use rimstone_proto::v1::{self, RecordFormat, end_position, start_position};
use rimstone_record::{Batch, Limits};
use tonic::{Code, Streaming};

use crate::support::{
    Server, assert_item, assert_refused, batch, batches, partition_batch, record, server, soon,
    to_partition_0,
};

fn fetch(partition: u32, offset: u64) -> v1::FetchRequest {
    v1::FetchRequest {
        topic: "t".to_owned(),
        partitions: vec![v1::FetchPartition { partition, offset, max_bytes: 0 }],
        ..Default::default()
    }
}

async fn fetched(server: &Server, request: v1::FetchRequest) -> Vec<v1::PartitionRecords> {
    soon(server.consume().fetch(request)).await.unwrap().into_inner().partitions
}

fn values(records: &[v1::StoredRecord]) -> Vec<(u64, &str)> {
    records
        .iter()
        .map(|record| (record.offset, std::str::from_utf8(record.value.as_ref().unwrap()).unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_and_batches_are_fetched() {
    let server = server().await;
    server.topic("t", 2).await;
    let sent = batch(&["a", "b", "c"], None, 0);
    soon(server.produce().produce(batches("t", vec![partition_batch(0, sent)]))).await.unwrap();
    let headers = vec![v1::Header { key: "h".to_owned(), value: None }];
    let mut last =
        v1::Record { headers: headers.clone(), create_time_ms: Some(77), ..record(Some("k"), "d") };
    last.partition = Some(0);
    soon(server.produce().produce(to_partition_0("t", vec![last]))).await.unwrap();

    // From the middle of a batch: what is before it is left out.
    let answer = fetched(&server, fetch(0, 1)).await.remove(0);
    assert_eq!(values(&answer.records), [(1, "b"), (2, "c"), (3, "d")]);
    assert_eq!((answer.next_offset, answer.batches.len()), (4, 0));
    assert_eq!(
        answer.ends.unwrap(),
        v1::LogEnds { log_start_offset: 0, last_stable_offset: 4, high_watermark: 4, log_end_offset: 4 }
    );
    assert_eq!(answer.records[0].create_time_ms, 1_000);
    let last = &answer.records[2];
    assert_eq!((last.create_time_ms, last.key.as_deref()), (77, Some(&b"k"[..])));
    assert_eq!(last.headers, headers);
    assert!(last.append_time_ms >= answer.records[0].append_time_ms && last.append_time_ms > 1_000);

    let whole = v1::FetchRequest { format: RecordFormat::Batches.into(), ..fetch(0, 1) };
    let answer = fetched(&server, whole).await.remove(0);
    assert_eq!((answer.records.len(), answer.batches.len(), answer.next_offset), (0, 2, 4));
    let first = Batch::verify(answer.batches[0].data.clone(), &Limits::default()).unwrap();
    assert_eq!((first.base_offset().get(), first.next_offset().get()), (0, 3));
    assert!(answer.batches[0].append_time_ms > 0);

    // Cut by bytes within a batch, and gone on from there.
    let little = v1::FetchRequest { max_bytes: 1, ..fetch(0, 0) };
    let answer = fetched(&server, little).await.remove(0);
    assert_eq!((values(&answer.records), answer.next_offset), (vec![(0, "a")], 1));

    let unknown_format = v1::FetchRequest { format: 9, ..fetch(0, 0) };
    assert_refused(
        soon(server.consume().fetch(unknown_format)).await,
        Code::InvalidArgument,
        "INVALID_REQUEST",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_partition_answers_for_itself() {
    let server = server().await;
    server.topic("t", 2).await;
    server.fill("t", &["a", "b"]).await;
    let partitions = [(1, 0), (0, 3), (7, 0), (0, 0)].map(|(partition, offset)| v1::FetchPartition {
        partition,
        offset,
        max_bytes: 0,
    });
    let request = v1::FetchRequest { partitions: partitions.into(), ..fetch(0, 0) };
    let answer = fetched(&server, request).await;
    assert_eq!(answer.iter().map(|item| item.partition).collect::<Vec<_>>(), [1, 0, 7, 0]);
    assert!(answer[0].error.is_none() && answer[0].records.is_empty());
    assert_eq!(answer[0].next_offset, 0);
    let metadata = assert_item(answer[1].error.as_ref(), Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    assert_eq!((metadata["log_start_offset"].as_str(), metadata["high_watermark"].as_str()), ("0", "2"));
    assert_eq!((metadata["topic"].as_str(), metadata["partition"].as_str()), ("t", "0"));
    assert_item(answer[2].error.as_ref(), Code::NotFound, "PARTITION_NOT_FOUND");
    assert_eq!(values(&answer[3].records), [(0, "a"), (1, "b")]);

    let nowhere = v1::FetchRequest { topic: "none".to_owned(), ..fetch(0, 0) };
    assert_refused(soon(server.consume().fetch(nowhere)).await, Code::NotFound, "TOPIC_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_waits_for_records_or_for_its_time() {
    let server = server().await;
    server.topic("t", 1).await;
    let begun = Instant::now();
    let waiting = v1::FetchRequest { max_wait_ms: 300, ..fetch(0, 0) };
    let answer = fetched(&server, waiting).await.remove(0);
    assert!(answer.records.is_empty() && answer.error.is_none());
    assert!(begun.elapsed().as_millis() >= 300, "it answered before its time");

    let mut consume = server.consume();
    let waiting = v1::FetchRequest { max_wait_ms: 60_000, min_bytes: 1, ..fetch(0, 0) };
    let polled = tokio::spawn(async move { consume.fetch(waiting).await });
    server.fill("t", &["a"]).await;
    let answer = soon(polled).await.unwrap().unwrap().into_inner().partitions.remove(0);
    assert_eq!(values(&answer.records), [(0, "a")]);
}

fn read(start: start_position::Position, end: Option<end_position::Position>) -> v1::ReadRequest {
    v1::ReadRequest {
        topic: "t".to_owned(),
        start: Some(v1::StartPosition { position: Some(start) }),
        end: end.map(|end| v1::EndPosition { position: Some(end) }),
        ..Default::default()
    }
}

const EARLIEST: start_position::Position = start_position::Position::Earliest(v1::Earliest {});
const TO_LATEST: Option<end_position::Position> = Some(end_position::Position::Latest(v1::Latest {}));

async fn reader(server: &Server, request: v1::ReadRequest) -> Streaming<v1::ReadResponse> {
    soon(server.consume().read(request)).await.unwrap().into_inner()
}

/// Everything up to the end of the stream: partition, offset, value.
async fn all(server: &Server, request: v1::ReadRequest) -> Vec<(u32, u64, String)> {
    let mut stream = reader(server, request).await;
    let mut seen = Vec::new();
    while let Some(message) = soon(stream.message()).await.unwrap() {
        let records = message.records.unwrap();
        seen.extend(
            values(&records.records)
                .iter()
                .map(|(offset, value)| (records.partition, *offset, (*value).to_owned())),
        );
    }
    seen.sort();
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_goes_from_a_place_to_a_bound() {
    let server = server().await;
    server.topic("t", 2).await;
    for (partition, time, value) in [(0, 10, "a"), (0, 20, "b"), (1, 15, "c"), (0, 30, "d"), (1, 25, "e")] {
        let mut record = v1::Record { create_time_ms: Some(time), ..record(Some(value), value) };
        record.partition = Some(partition);
        let request =
            v1::ProduceRequest { topic: "t".to_owned(), records: vec![record], ..Default::default() };
        soon(server.produce().produce(request)).await.unwrap();
    }
    let whole = [(0, 0, "a"), (0, 1, "b"), (0, 2, "d"), (1, 0, "c"), (1, 1, "e")];
    let only = |wanted: &[&str]| -> Vec<_> {
        let found = whole.iter().filter(|(_, _, value)| wanted.contains(value));
        found.map(|(partition, offset, value)| (*partition, *offset, (*value).to_owned())).collect()
    };
    use end_position::Position as End;
    use start_position::Position as Start;
    let offsets =
        |offsets: &[(u32, u64)]| v1::PartitionOffsets { offsets: offsets.iter().copied().collect() };

    assert_eq!(all(&server, read(EARLIEST, TO_LATEST)).await, only(&["a", "b", "c", "d", "e"]));
    assert_eq!(all(&server, read(Start::Offset(1), Some(End::Offset(2)))).await, only(&["b", "e"]));
    assert_eq!(all(&server, read(Start::TimeMs(15), Some(End::TimeMs(25)))).await, only(&["b", "c"]));
    let by_offsets = read(Start::Offsets(offsets(&[(0, 1)])), Some(End::Offsets(offsets(&[(0, 3)]))));
    assert_eq!(all(&server, by_offsets).await, only(&["b", "d"]));
    assert_eq!(all(&server, read(Start::Latest(v1::Latest {}), TO_LATEST)).await, []);
    let one = v1::ReadRequest { partitions: vec![1], ..read(EARLIEST, TO_LATEST) };
    assert_eq!(all(&server, one).await, only(&["c", "e"]));
    let two = v1::ReadRequest { max_records: 2, ..read(EARLIEST, None) };
    assert_eq!(all(&server, two).await.len(), 2, "a number of records is a bound as well");
    let filter = v1::RecordFilter { key: Some("d".into()), ..Default::default() };
    let filtered = v1::ReadRequest { filter: Some(filter), ..read(EARLIEST, TO_LATEST) };
    assert_eq!(all(&server, filtered).await, only(&["d"]));

    let nowhere = v1::ReadRequest { start: None, ..read(EARLIEST, TO_LATEST) };
    assert_refused(soon(server.consume().read(nowhere)).await, Code::InvalidArgument, "INVALID_REQUEST");
    let outside = read(Start::Offset(50), TO_LATEST);
    let refused = match soon(server.consume().read(outside)).await {
        Ok(stream) => soon(stream.into_inner().message()).await.map(drop),
        Err(status) => Err(status),
    };
    let metadata = assert_refused(refused, Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    assert_eq!(metadata["topic"], "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_without_a_bound_goes_on() {
    let server = server().await;
    server.topic("t", 1).await;
    server.fill("t", &["a"]).await;
    let mut stream = reader(&server, read(EARLIEST, None)).await;
    let mut seen = Vec::new();
    let mut produced = vec!["a"];
    for next in ["b", "c", "d"] {
        while seen.len() < produced.len() {
            let records = soon(stream.message()).await.unwrap().unwrap().records.unwrap();
            seen.extend(values(&records.records).iter().map(|(_, value)| (*value).to_owned()));
        }
        assert_eq!(seen, produced);
        // Only once everything has come out, so that the stream must wait for this one.
        server.fill("t", &[next]).await;
        produced.push(next);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_read_as_they_are_stored() {
    let server = server().await;
    server.topic("t", 1).await;
    for values in [["a", "b"], ["c", "d"]] {
        let request = batches("t", vec![partition_batch(0, batch(&values, None, 0))]);
        soon(server.produce().produce(request)).await.unwrap();
    }
    let request = v1::ReadRequest { format: RecordFormat::Batches.into(), ..read(EARLIEST, TO_LATEST) };
    let mut stream = reader(&server, request).await;
    let mut offsets = Vec::new();
    while let Some(message) = soon(stream.message()).await.unwrap() {
        for encoded in message.records.unwrap().batches {
            let batch = Batch::verify(encoded.data, &Limits::default()).unwrap();
            offsets.extend(
                batch.records(&Limits::default()).unwrap().map(|record| record.unwrap().offset.get()),
            );
        }
    }
    assert_eq!(offsets, [0, 1, 2, 3]);
}
