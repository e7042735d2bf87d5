//! `docs/format.md` is enough: a page of Python, written from it alone, reads the files and agrees with the server.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::Command};

use rimstone_client::{End, Reader, Start};
use rimstone_proto::v1;
use rimstone_tests::{
    calls::{Calls, record, to_partition_0},
    command::run,
    feed::Feed,
    input::made_up,
    server::{Server, Setup},
    skip::skip,
    wait::soon,
    workspace_root,
};
use serde_json::{Value, json};

const PARTITIONS: u32 = 3;

pub(crate) fn has_python() -> bool {
    Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// What the Python program prints of a partition: records, remarks, and at last the summary.
pub(crate) async fn by_python(data: &Path, topic: &str, partition: u32) -> (Vec<Value>, Vec<Value>, Value) {
    let mut command = Command::new("python3");
    command.arg(workspace_root().join("tests/format/read_segment.py"));
    command.arg(data).args([topic, &partition.to_string()]);
    let ran = run(command).await;
    assert!(ran.status.success(), "{ran:#?}");
    let mut lines: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().unwrap()["summary"].take();
    let (records, remarks) = lines.into_iter().partition(|line| line.get("offset").is_some());
    (records, remarks, summary)
}

fn hex(bytes: Option<&[u8]>) -> Value {
    let Some(bytes) = bytes else { return Value::Null };
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    json!(text)
}

/// What the server answers, in the same words, per partition.
async fn by_server(server: &Server, topic: &str) -> BTreeMap<u32, Vec<Value>> {
    let mut reader =
        Reader::builder(&server.endpoint(), topic).start(Start::Earliest).end(End::Latest).build().unwrap();
    let mut partitions = BTreeMap::<u32, Vec<Value>>::new();
    while let Some(record) = soon(reader.next()).await.unwrap() {
        let headers: Vec<_> =
            record.headers.iter().map(|header| json!([header.key, hex(header.value.as_deref())])).collect();
        partitions.entry(record.partition.0).or_default().push(json!({
            "offset": record.offset.get(),
            "key": hex(record.key.as_deref()),
            "value": hex(record.value.as_deref()),
            "headers": headers,
            "create_time_ms": record.create_time.as_millis(),
            "append_time_ms": record.append_time.as_millis(),
        }));
    }
    partitions
}

async fn topic_id(server: &Server, topic: &str) -> String {
    server.admin().describe_topic(topic).await.unwrap().summary.id
}

/// Compressed batches of our own client, batches that the server built, numbered and not, and odd records.
async fn fill(server: &Server, topic: &str) {
    let mut calls = Calls::connect(server).await;
    let lines = made_up(2_000, 31);
    let feed = Feed::start(&server.endpoint(), topic, &lines);
    feed.finish().await;
    let request = v1::InitProducerRequest { name: "numbered".to_owned(), topics: Vec::new() };
    let producer = soon(calls.produce.init_producer(request)).await.unwrap().into_inner();
    for number in 0..20 {
        let mut odd = record(None, "");
        odd.value = (number % 2 == 0).then(Default::default);
        odd.headers = vec![
            v1::Header { key: "empty".to_owned(), value: Some(Default::default()) },
            v1::Header { key: "null \u{e9}".to_owned(), value: None },
        ];
        odd.create_time_ms = Some(1_431_857_103_000 - i64::from(number) * 12_345);
        let records = vec![odd, record(Some(&format!("key {number}")), vec![0, 255, 10])];
        let request_number = Some(v1::RequestNumber {
            producer_id: producer.producer_id,
            producer_epoch: producer.producer_epoch,
            number,
        });
        let topic = topic.to_owned();
        let request = v1::ProduceRequest { topic, records, request_number, ..Default::default() };
        let answer = soon(calls.produce.produce(request)).await.unwrap().into_inner();
        assert!(answer.appends.iter().all(|append| append.error.is_none()), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_independent_reader_agrees_with_the_server() {
    if !has_python() {
        return skip("format", "python3 is not there");
    }
    let home = tempfile::tempdir().unwrap();
    let mut server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    let small = ("segment.bytes", "16384");
    calls.create_topic("create", PARTITIONS, &[small]).await;
    calls.create_topic("append", PARTITIONS, &[small, ("message.timestamp.type", "LogAppendTime")]).await;
    for clean in [false, true] {
        for topic in ["create", "append"] {
            fill(&server, topic).await;
        }
        let mut expected = BTreeMap::new();
        for topic in ["create", "append"] {
            expected.insert(topic_id(&server, topic).await, by_server(&server, topic).await);
        }
        if clean {
            server.stop().await;
        } else {
            server.kill();
        }
        for (topic, partitions) in &expected {
            assert_eq!(partitions.len(), PARTITIONS as usize);
            for (partition, records) in partitions {
                let (read, remarks, summary) = by_python(server.data(), topic, *partition).await;
                assert!(read == *records, "partition {partition} of {topic}, clean: {clean}");
                assert_eq!(remarks, Vec::<Value>::new());
                assert_eq!(summary["next_offset"], records.len());
                assert!(summary["sealed"].as_u64().unwrap() > 0, "{summary}");
                assert!(summary["indexed"].as_u64().unwrap() > 0, "{summary}");
                println!("clean: {clean}, {topic}/{partition}: {summary}");
            }
        }
        server = server.start_again().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_independent_reader_finds_the_same_damage_and_the_same_torn_tail() {
    if !has_python() {
        return skip("format", "python3 is not there");
    }
    let home = tempfile::tempdir().unwrap();
    let mut server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    for value in ["one", "two", "three"] {
        calls.append(to_partition_0("t", [value])).await.unwrap();
    }
    let id = topic_id(&server, "t").await;
    server.stop().await;
    let segment = server.data().join("topics").join(&id).join("0/00000000000000000000.log");
    let whole = fs::read(&segment).unwrap();

    // Half a frame behind the end: never acknowledged.
    let mut torn = whole.clone();
    torn.extend_from_slice(&whole[72..100]);
    fs::write(&segment, &torn).unwrap();
    let (records, remarks, _) = by_python(server.data(), &id, 0).await;
    assert_eq!((records.len(), remarks), (3, vec![json!({"torn": "00000000000000000000.log"})]));

    // A flipped bit in the middle: acknowledged, and lost.
    let mut damaged = whole.clone();
    let at = 72 + (whole.len() - 72) / 2;
    damaged[at] ^= 4;
    fs::write(&segment, &damaged).unwrap();
    let (records, remarks, _) = by_python(server.data(), &id, 0).await;
    let offsets: Vec<_> = records.iter().map(|record| record["offset"].as_u64().unwrap()).collect();
    assert_eq!((offsets, remarks), (vec![0, 2], vec![json!({"damaged": [1, 2]})]));
    let server = server.start_again().await;
    let mut calls = Calls::connect(&server).await;
    let error = calls.fetch("t", 1).await.unwrap().error.unwrap();
    assert_eq!(error.reason, "DATA_DAMAGED");
    assert_eq!((error.metadata["from_offset"].as_str(), error.metadata["until_offset"].as_str()), ("1", "2"));
}

/// The directories that released versions wrote, damaged ones among them.
#[tokio::test(flavor = "multi_thread")]
async fn an_independent_reader_reads_the_golden_directories() {
    if !has_python() {
        return skip("format", "python3 is not there");
    }
    let mut seen = 0;
    let golden = workspace_root().join("tests/golden");
    let versions = fs::read_dir(&golden).unwrap().map(|version| version.unwrap().path());
    let cases =
        versions.filter(|version| version.is_dir()).flat_map(|version| fs::read_dir(version).unwrap());
    for case in cases {
        let case = case.unwrap().path();
        if !case.is_dir() {
            continue;
        }
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let data = case.join("data");
        let topic = fs::read_dir(data.join("topics")).unwrap().next().unwrap().unwrap().file_name();
        let (records, remarks, _) = by_python(&data, topic.to_str().unwrap(), 0).await;
        let mut read = String::new();
        for record in &records {
            let value = match record["value"].as_str() {
                Some(digits) => {
                    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
                    String::from_utf8((0..digits.len()).step_by(2).map(byte).collect()).unwrap()
                }
                None => "null".to_owned(),
            };
            writeln!(read, "{} {value}", record["offset"]).unwrap();
        }
        assert_eq!(read, fs::read_to_string(case.join("expected.txt")).unwrap(), "{name}");
        let kinds: Vec<_> = remarks.iter().flat_map(|remark| remark.as_object().unwrap().keys()).collect();
        match name.as_str() {
            "rotten" | "passed-by" => assert_eq!(kinds, ["damaged"]),
            "torn" => assert_eq!(kinds, ["torn"]),
            "given-up" => assert_eq!(kinds, ["given_up"]),
            _ => assert!(kinds.is_empty(), "{name}: {remarks:?}"),
        }
        seen += 1;
    }
    assert!(seen >= 11, "only {seen} golden directories");
}
