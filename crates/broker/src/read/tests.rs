use std::{collections::BTreeMap, sync::atomic::Ordering};

use bytes::Bytes;
use rimstone_record::Header;
use rimstone_store::ReadError as StoreReadError;
use rimstone_types::{ByteCount, Offset, PartitionIndex, Timestamp};

use crate::{testing::*, *};

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

/// Reads to the end; answers (partition, value) in the order in which they came.
async fn all(fixture: &Fixture, request: ReadRequest) -> Vec<(u32, String)> {
    let mut reader = fixture.broker.read(request).await.expect("it can be read");
    let mut read = Vec::new();
    while let Some(chunk) = soon("the next chunk", reader.next()).await {
        let chunk = chunk.expect("it can be read");
        read.extend(texts(&chunk).into_iter().map(|text| (chunk.partition.0, text)));
    }
    read
}

fn to_end(start: ReadStart) -> ReadRequest {
    ReadRequest { end: ReadEnd::Latest, ..read_from("t", start) }
}

fn sorted(mut read: Vec<(u32, String)>) -> Vec<String> {
    read.sort();
    read.into_iter().map(|(_, text)| text).collect()
}

/// Partition 0: a0 a1 a2 (times 0, 10, 20); partition 1: b0 b1 (times 5, 15).
async fn two_partitions() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    for (partition, value, at) in [(0, "a0", 0), (0, "a1", 10), (1, "b0", 5), (0, "a2", 20), (1, "b1", 15)] {
        let record = PlainRecord { create_time: Some(Timestamp(at)), ..to_partition(partition, value) };
        fixture.produce(plain("t", vec![record])).await.unwrap();
    }
    fixture
}

#[tokio::test]
async fn starts_and_ends() {
    let fixture = two_partitions().await;
    let offsets = |pairs: &[(u32, u64)]| -> BTreeMap<PartitionIndex, Offset> {
        pairs.iter().map(|(partition, at)| (PartitionIndex(*partition), offset(*at))).collect()
    };
    let starts: Vec<(ReadStart, &[&str])> = vec![
        (ReadStart::Earliest, &["a0", "a1", "a2", "b0", "b1"]),
        (ReadStart::Latest, &[]),
        (ReadStart::Offset(offset(1)), &["a1", "a2", "b1"]),
        (ReadStart::Time(Timestamp(11)), &["a2", "b1"]),
        (ReadStart::Time(Timestamp(16)), &["a2"]),
        (ReadStart::Time(Timestamp(99)), &[]),
        (ReadStart::Offsets(offsets(&[(0, 2)])), &["a2"]),
    ];
    for (start, expected) in starts {
        assert_eq!(sorted(all(&fixture, to_end(start.clone())).await), expected, "{start:?}");
    }
    let ends: Vec<(ReadEnd, &[&str])> = vec![
        (ReadEnd::Latest, &["a0", "a1", "a2", "b0", "b1"]),
        (ReadEnd::Offset(offset(1)), &["a0", "b0"]),
        (ReadEnd::Offset(offset(0)), &[]),
        (ReadEnd::Time(Timestamp(10)), &["a0", "b0"]),
        (ReadEnd::Time(Timestamp(99)), &["a0", "a1", "a2", "b0", "b1"]),
        (ReadEnd::Offsets(offsets(&[(0, 1), (1, 2)])), &["a0", "b0", "b1"]),
    ];
    for (end, expected) in ends {
        let request = ReadRequest { end: end.clone(), ..read_from("t", ReadStart::Earliest) };
        assert_eq!(sorted(all(&fixture, request).await), expected, "{end:?}");
    }
    let one = ReadRequest { partitions: vec![PartitionIndex(1)], ..to_end(ReadStart::Earliest) };
    assert_eq!(sorted(all(&fixture, one).await), ["b0", "b1"]);
}

#[tokio::test]
async fn bounds_cut_within_a_batch() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["0", "1", "2", "3", "4"]).await;
    let request =
        ReadRequest { end: ReadEnd::Offset(offset(4)), ..read_from("t", ReadStart::Offset(offset(1))) };
    assert_eq!(sorted(all(&fixture, request.clone()).await), ["1", "2", "3"]);
    // In pieces of one record each, the batch is still read once.
    let partition = fixture.partition("t", 0);
    let before = fixture.store.script(partition, |script| script.reads);
    let small = ReadRequest { chunk_bytes: Some(ByteCount(1)), ..request.clone() };
    let mut reader = fixture.broker.read(small).await.unwrap();
    for expected in ["1", "2", "3"] {
        let chunk = soon("the next chunk", reader.next()).await.unwrap().unwrap();
        assert_eq!(texts(&chunk), [expected]);
        assert_eq!(chunk.next.get().to_string(), (expected.parse::<u64>().unwrap() + 1).to_string());
    }
    assert!(soon("the end", reader.next()).await.is_none());
    assert_eq!(fixture.store.script(partition, |script| script.reads), before + 1);

    let batches = ReadRequest { format: ReadFormat::Batches, ..request };
    let mut reader = fixture.broker.read(batches).await.unwrap();
    let chunk = soon("the next chunk", reader.next()).await.unwrap().unwrap();
    let ChunkContent::Batches(read) = &chunk.content else { panic!("batches were asked for") };
    assert_eq!((read.len(), chunk.from, chunk.until), (1, offset(1), Some(offset(4))));
    assert!(soon("the end", reader.next()).await.is_none());
}

#[tokio::test]
async fn partitions_take_turns() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 3).await;
    for partition in 0..3 {
        for value in ["0", "1", "2"] {
            fixture.put("t", partition, &[value]).await;
        }
    }
    let request = ReadRequest { chunk_bytes: Some(ByteCount(1)), ..to_end(ReadStart::Earliest) };
    let read: Vec<u32> = all(&fixture, request).await.into_iter().map(|(partition, _)| partition).collect();
    assert_eq!(read, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
}

#[tokio::test]
async fn on_and_on_until_shutdown() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let mut reader = fixture.broker.read(read_from("t", ReadStart::Latest)).await.unwrap();
    for (partition, value) in [(0, "a"), (1, "b"), (0, "c")] {
        let values = [value];
        let put = fixture.put("t", partition, &values);
        let (chunk, _) = tokio::join!(soon("the next chunk", reader.next()), put);
        let chunk = chunk.unwrap().unwrap();
        assert_eq!((chunk.partition.0, texts(&chunk)), (partition, vec![value.to_owned()]));
    }
    let broker = fixture.broker.clone();
    let (end, ()) = tokio::join!(soon("the end", reader.next()), async move { broker.begin_shutdown() });
    assert_eq!(end.unwrap().unwrap_err().reason(), Reason::ShuttingDown);
    assert!(reader.next().await.is_none());
}

#[tokio::test]
async fn what_comes_between_the_read_and_the_wait_is_not_missed() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put_after_read("t", 0, "just then");
    let mut reader = fixture.broker.read(read_from("t", ReadStart::Latest)).await.unwrap();
    assert_eq!(texts(&soon("the next chunk", reader.next()).await.unwrap().unwrap()), ["just then"]);
}

#[tokio::test]
async fn an_end_that_is_not_there_yet_is_waited_for() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a"]).await;
    let request = ReadRequest { end: ReadEnd::Offset(offset(2)), ..read_from("t", ReadStart::Earliest) };
    let mut reader = fixture.broker.read(request).await.unwrap();
    assert_eq!(texts(&soon("the first", reader.next()).await.unwrap().unwrap()), ["a"]);
    let (chunk, _) = tokio::join!(soon("the second", reader.next()), fixture.put("t", 0, &["b", "too much"]));
    assert_eq!(texts(&chunk.unwrap().unwrap()), ["b"]);
    assert!(soon("the end", reader.next()).await.is_none());
}

#[tokio::test]
async fn filters_pick_records() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let record = |value: &str, key: Option<&str>, headers: &[(&str, Option<&str>)]| {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let header =
            |(key, value): &(&str, Option<&str>)| Header { key: (*key).to_owned(), value: value.map(bytes) };
        PlainRecord {
            key: key.map(bytes),
            headers: headers.iter().map(header).collect(),
            ..to_partition(0, value)
        }
    };
    let records = vec![
        record("0", Some("apple"), &[("color", Some("red"))]),
        record("1", Some("apple pie"), &[]),
        record("2", None, &[("color", None), ("color", Some("green"))]),
        record("3", Some("app"), &[("Color", Some("red"))]),
    ];
    fixture.produce(plain("t", records)).await.unwrap();
    let filter = |key: Option<&'static str>,
                  prefix: Option<&'static str>,
                  header: Option<(&str, Option<&'static str>)>| {
        ReadFilter {
            key: key.map(Bytes::from),
            key_prefix: prefix.map(Bytes::from),
            header: header.map(|(name, value)| (name.to_owned(), value.map(Bytes::from))),
        }
    };
    let cases: Vec<(ReadFilter, &[&str])> = vec![
        (filter(None, None, None), &["0", "1", "2", "3"]),
        (filter(Some("apple"), None, None), &["0"]),
        (filter(Some("none"), None, None), &[]),
        (filter(None, Some("apple"), None), &["0", "1"]),
        (filter(None, Some(""), None), &["0", "1", "3"]),
        (filter(None, None, Some(("color", None))), &["0", "2"]),
        (filter(None, None, Some(("color", Some("green")))), &["2"]),
        (filter(None, Some("app"), Some(("color", Some("red")))), &["0"]),
    ];
    for (filter, expected) in cases {
        let request = ReadRequest { filter: filter.clone(), ..to_end(ReadStart::Earliest) };
        assert_eq!(sorted(all(&fixture, request).await), expected, "{filter:?}");
    }
    let refused = ReadRequest {
        filter: filter(Some("apple"), None, None),
        format: ReadFormat::Batches,
        ..to_end(ReadStart::Earliest)
    };
    assert_eq!(fixture.broker.read(refused).await.unwrap_err().reason(), Reason::InvalidRequest);
}

#[tokio::test]
async fn max_records_count_what_is_answered() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    fixture.put("t", 1, &["d", "e"]).await;
    for most in 0..=6 {
        let request = ReadRequest { max_records: Some(most), ..to_end(ReadStart::Earliest) };
        assert_eq!(all(&fixture, request).await.len() as u64, most.min(5));
    }
    let mut reader = fixture
        .broker
        .read(ReadRequest { max_records: Some(2), ..read_from("t", ReadStart::Earliest) })
        .await
        .unwrap();
    let chunk = soon("the first", reader.next()).await.unwrap().unwrap();
    assert_eq!((texts(&chunk), chunk.next), (vec!["a".to_owned(), "b".to_owned()], offset(2)));
    assert!(soon("the end", reader.next()).await.is_none(), "although it reads on and on");

    let batches =
        ReadRequest { max_records: Some(1), format: ReadFormat::Batches, ..to_end(ReadStart::Earliest) };
    let mut reader = fixture.broker.read(batches).await.unwrap();
    let chunk = soon("the first", reader.next()).await.unwrap().unwrap();
    let ChunkContent::Batches(read) = &chunk.content else { panic!("batches were asked for") };
    assert_eq!((read.len(), chunk.next), (1, offset(3)));
    assert!(soon("the end", reader.next()).await.is_none());
}

#[tokio::test]
async fn damage_ends_the_reader_with_its_error() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put("t", 0, &["a"]).await;
    fixture.put("t", 1, &["b"]).await;
    fixture.store.script(fixture.partition("t", 1), |script| {
        let (from, until, reason) = (offset(0), offset(1), "rot".to_owned());
        script.read_error = Some(StoreReadError::DataLoss { from, until, reason });
    });
    // A time that leads to a place where something is damaged is told as such a read is.
    let told = |error: ReadError| {
        assert_eq!(error.reason(), Reason::DataDamaged);
        for detail in [("from_offset", "0"), ("until_offset", "1"), ("topic", "t"), ("partition", "1")] {
            assert!(error.details().contains(&(detail.0, detail.1.to_owned())), "{:?}", error.details());
        }
    };
    told(fixture.broker.read(to_end(ReadStart::Time(Timestamp(0)))).await.unwrap_err());
    let mut reader = fixture.broker.read(to_end(ReadStart::Earliest)).await.unwrap();
    assert_eq!(texts(&soon("the first", reader.next()).await.unwrap().unwrap()), ["a"]);
    told(soon("the error", reader.next()).await.unwrap().unwrap_err());
    assert!(soon("the end", reader.next()).await.is_none());
}

#[tokio::test]
async fn positions_outside_the_log_are_refused_with_the_bounds() {
    let fixture = two_partitions().await;
    let cut = BTreeMap::from([(PartitionIndex(0), offset(1))]);
    fixture.broker.delete_records(&name("t"), cut).await.unwrap();
    let reason = async |request: ReadRequest| {
        fixture.broker.read(request).await.map(|_| ()).map_err(|error| error.reason())
    };
    let at = |value| ReadRequest {
        partitions: vec![PartitionIndex(0)],
        ..to_end(ReadStart::Offset(offset(value)))
    };
    assert_eq!(reason(at(0)).await, Err(Reason::OffsetOutOfRange));
    assert_eq!(reason(at(1)).await, Ok(()));
    assert_eq!(reason(at(3)).await, Ok(()));
    let error = fixture.broker.read(at(4)).await.unwrap_err();
    assert_eq!(error.reason(), Reason::OffsetOutOfRange);
    for detail in [("log_start_offset", "1"), ("high_watermark", "3"), ("partition", "0")] {
        assert!(error.details().contains(&(detail.0, detail.1.to_owned())), "{:?}", error.details());
    }
    let no_such = ReadRequest { partitions: vec![PartitionIndex(2)], ..to_end(ReadStart::Earliest) };
    assert_eq!(reason(no_such).await, Err(Reason::PartitionNotFound));
    let nothing = ReadRequest {
        partitions: vec![PartitionIndex(1)],
        ..to_end(ReadStart::Offsets(BTreeMap::from([(PartitionIndex(0), offset(1))])))
    };
    assert_eq!(reason(nothing).await, Err(Reason::InvalidRequest));
    assert_eq!(reason(read_from("u", ReadStart::Earliest)).await, Err(Reason::TopicNotFound));
}

#[tokio::test]
async fn a_reader_that_retention_overtakes_ends_with_the_bounds() {
    let fixture = two_partitions().await;
    let request = ReadRequest {
        partitions: vec![PartitionIndex(0)],
        chunk_bytes: Some(ByteCount(1)),
        ..read_from("t", ReadStart::Earliest)
    };
    let mut reader = fixture.broker.read(request).await.unwrap();
    assert_eq!(texts(&soon("the first", reader.next()).await.unwrap().unwrap()), ["a0"]);
    let cut = BTreeMap::from([(PartitionIndex(0), offset(2))]);
    fixture.broker.delete_records(&name("t"), cut).await.unwrap();
    let error = soon("the error", reader.next()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Reason::OffsetOutOfRange);
}

#[tokio::test]
async fn append_times_are_the_servers() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a"]).await;
    let now = fixture.clock.0.load(Ordering::Relaxed);
    let mut reader = fixture.broker.read(to_end(ReadStart::Earliest)).await.unwrap();
    let chunk = soon("the first", reader.next()).await.unwrap().unwrap();
    let ChunkContent::Records(records) = &chunk.content else { panic!("records were asked for") };
    assert_eq!(records[0].append_time, Timestamp(now));
    assert_eq!(records[0].record.timestamp, Timestamp(now));
}

#[tokio::test]
async fn readers_are_bounded() {
    let mut config = still();
    config.limits.readers = 1;
    let fixture = Fixture::with(config).await;
    fixture.topic("t", 1).await;
    let first = fixture.broker.read(read_from("t", ReadStart::Earliest)).await.unwrap();
    let refused = fixture.broker.read(read_from("t", ReadStart::Earliest)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::LimitReached);
    drop(first);
    fixture.broker.read(read_from("t", ReadStart::Earliest)).await.unwrap();
}
