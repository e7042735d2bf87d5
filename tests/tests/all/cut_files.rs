//! Files that somebody cuts short under a running server: the bytes that a map shows are gone. No reader of any kind
//! brings the server down, and what is gone is named.

use std::{fs, path::PathBuf};

use futures::StreamExt as _;
use rimstone_client::{Consumer, Event, SeekTo, StartPolicy, TopicPartition, reason};
use rimstone_proto::v1;
use rimstone_record::{Batch, Limits};
use rimstone_tests::{
    calls::{Calls, Refusal, record, to_partition_0},
    command::{command, run},
    server::{Server, Setup},
    wait::{soon, until},
};
use rimstone_types::{Offset, PartitionIndex};
use tonic::Code;

use crate::damage::folder;

const RECORDS: u64 = 40;
const BYTES: usize = 30_000;

fn value(number: u64) -> Vec<u8> {
    format!("{number:05}").into_bytes().into_iter().cycle().take(BYTES).collect()
}

/// A server with a topic of several segments, all of it read before, so that its maps are warm.
async fn warm(home: &std::path::Path) -> (Server, Calls) {
    let server = Setup::new(home).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[("segment.bytes", "262144")]).await;
    for number in 0..RECORDS {
        let keyed = v1::Record { partition: Some(0), ..record(Some("key"), value(number)) };
        let request =
            v1::ProduceRequest { topic: "t".to_owned(), records: vec![keyed], ..Default::default() };
        calls.append(request).await.unwrap();
    }
    let mut at = 0;
    while at < RECORDS {
        at = calls.fetch("t", at).await.unwrap().next_offset;
    }
    (server, calls)
}

/// The segment files of `t`, by base offset.
async fn segments(server: &Server) -> Vec<(u64, PathBuf)> {
    let files = fs::read_dir(folder(server).await).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "log"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().parse().unwrap(), path))
        .collect();
    segments.sort();
    assert!(segments.len() >= 4, "{segments:?}");
    segments
}

fn cut(path: &PathBuf, length: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}

fn alive(server: &Server) {
    assert_eq!(server.page("/livez").map(|(status, _)| status), Some(200));
}

/// One record of the segment is left.
const ONE_RECORD: u64 = 40_000;

/// What is left of `t` when the second segment is cut, by the offsets that are lost.
fn lost(segments: &[(u64, PathBuf)]) -> std::ops::Range<u64> {
    segments[1].0 + 1..segments[2].0
}

fn read_request(from: u64, format: v1::RecordFormat) -> v1::ReadRequest {
    use v1::{end_position, start_position};
    v1::ReadRequest {
        topic: "t".to_owned(),
        start: Some(v1::StartPosition { position: Some(start_position::Position::Offset(from)) }),
        end: Some(v1::EndPosition { position: Some(end_position::Position::Offset(RECORDS)) }),
        format: format as i32,
        max_message_bytes: 1 << 20,
        ..Default::default()
    }
}

/// Offsets of the records of a message, each with the value that was written.
fn offsets_of(records: &v1::PartitionRecords) -> Vec<u64> {
    let mut offsets = Vec::new();
    for record in &records.records {
        assert_eq!(record.value.as_deref(), Some(&value(record.offset)[..]), "wrong bytes");
        offsets.push(record.offset);
    }
    for batch in &records.batches {
        let batch = Batch::verify(batch.data.clone(), &Limits::default()).expect("whole batches or none");
        for record in batch.records(&Limits::default()).unwrap() {
            let record = record.unwrap();
            assert_eq!(record.value.as_deref(), Some(&value(record.offset.get())[..]), "wrong bytes");
            offsets.push(record.offset.get());
        }
    }
    offsets
}

#[tokio::test(flavor = "multi_thread")]
async fn fetches_and_streams_name_what_is_gone_and_go_on_behind_it() {
    let home = tempfile::tempdir().unwrap();
    let (server, mut calls) = warm(home.path()).await;
    let segments = segments(&server).await;
    cut(&segments[1].1, ONE_RECORD);
    let lost = lost(&segments);
    let expected: Vec<u64> = (0..RECORDS).filter(|at| !lost.contains(at)).collect();
    for format in [v1::RecordFormat::Records, v1::RecordFormat::Batches] {
        // By requests.
        let (mut at, mut found) = (0, Vec::new());
        while at < RECORDS {
            let request = v1::FetchRequest {
                topic: "t".to_owned(),
                partitions: vec![v1::FetchPartition { partition: 0, offset: at, max_bytes: 0 }],
                format: format as i32,
                ..Default::default()
            };
            let answer = soon(calls.consume.fetch(request)).await.unwrap().into_inner();
            let read = &answer.partitions[0];
            if let Some(error) = &read.error {
                let error = Refusal::of_item(error);
                assert_eq!((error.code, error.reason.as_str()), (Code::DataLoss, reason::DATA_DAMAGED));
                assert!(lost.contains(&at), "{at}: {error:?}");
                at = error.number("until_offset");
                continue;
            }
            found.extend(offsets_of(read));
            at = read.next_offset;
        }
        assert_eq!(found, expected, "{format:?}");
        // By streams.
        let (mut at, mut found, mut streams) = (0, Vec::new(), 0);
        while at < RECORDS {
            streams += 1;
            let mut stream = soon(calls.consume.read(read_request(at, format))).await.unwrap().into_inner();
            let mut ended = None;
            while let Some(message) = soon(stream.next()).await {
                match message {
                    Ok(message) => {
                        let records = message.records.unwrap();
                        if let Some(error) = &records.error {
                            ended = Some(Refusal::of_item(error));
                            break;
                        }
                        found.extend(offsets_of(&records));
                    }
                    Err(status) => {
                        ended = Some(Refusal::of_status(&status));
                        break;
                    }
                }
            }
            let Some(error) = ended else { break };
            assert_eq!((error.code, error.reason.as_str()), (Code::DataLoss, reason::DATA_DAMAGED));
            at = error.number("until_offset");
        }
        assert_eq!(found, expected, "{format:?}");
        assert!(streams > 1);
    }
    alive(&server);
    assert!(server.metric("rimstone_partition_damaged_ranges") >= Some(1.0));
    calls.append(to_partition_0("t", ["after"])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_counts_look_ups_and_the_command_line_name_it_too() {
    let home = tempfile::tempdir().unwrap();
    let (server, mut calls) = warm(home.path()).await;
    let segments = segments(&server).await;
    cut(&segments[1].1, ONE_RECORD);
    let lost = lost(&segments);

    // A member: one error with its name; a seek takes it over the loss.
    let mut member = Consumer::builder(&server.endpoint(), "g")
        .topics(["t"])
        .start(StartPolicy::Earliest)
        .build()
        .unwrap();
    let mut found = Vec::new();
    let mut errors = 0;
    while found.last() != Some(&(RECORDS - 1)) {
        match soon(member.next_event()).await {
            Ok(Event::Record(record)) => {
                assert_eq!(record.value.as_deref(), Some(&value(record.offset.get())[..]));
                found.push(record.offset.get());
            }
            Ok(_) => {}
            Err(error) => {
                assert!(error.is(reason::DATA_DAMAGED), "{error:?}");
                errors += 1;
                let until = Offset::new(error.number("until_offset").unwrap()).unwrap();
                let at = TopicPartition::new("t", PartitionIndex(0));
                soon(member.seek(&at, SeekTo::Offset(until))).await.unwrap();
            }
        }
    }
    assert_eq!(found, (0..RECORDS).filter(|at| !lost.contains(at)).collect::<Vec<_>>());
    assert!(errors >= 1);
    soon(member.close()).await.unwrap();

    // Lag is counted from what the seals say; a look-up by time answers, or names the loss.
    for from in 0..RECORDS {
        let commit = v1::CommitOffsetsRequest {
            group: "by-hand".to_owned(),
            offsets: vec![v1::OffsetCommit {
                topic: "t".to_owned(),
                partition: 0,
                offset: Some(from),
                ..Default::default()
            }],
            ..Default::default()
        };
        soon(calls.groups.commit_offsets(commit)).await.unwrap();
        let request = v1::GetLagRequest { groups: vec!["by-hand".to_owned()], topics: Vec::new() };
        let lag = soon(calls.lag.get_lag(request)).await.unwrap().into_inner();
        for partition in lag.partitions {
            match &partition.error {
                None => assert!(partition.lag_records <= RECORDS - from, "{partition:?}"),
                Some(error) => assert_eq!(Refusal::of_item(error).code, Code::DataLoss, "{error:?}"),
            }
        }
    }
    for at in [v1::list_offsets_request::At::MaxTime(true), v1::list_offsets_request::At::TimeMs(1)] {
        let request = v1::ListOffsetsRequest { topic: "t".to_owned(), at: Some(at), ..Default::default() };
        let found = soon(calls.admin.list_offsets(request)).await.unwrap().into_inner();
        if let Some(error) = &found.offsets[0].error {
            assert_eq!(Refusal::of_item(error).code, Code::DataLoss, "{error:?}");
        }
    }
    alive(&server);
    let data = server.data().display().to_string();
    let verified = run(command(["inspect", "--data", &data, "--verify"])).await;
    assert_eq!(verified.status.code(), Some(6), "{verified:?}");
    for what in ["segments", "frames"] {
        let shown = run(command(["inspect", "--data", &data, what, "t"])).await;
        assert!(shown.status.success(), "{shown:?}");
    }
}

/// Compaction meets it, passes it by and says so.
#[tokio::test(flavor = "multi_thread")]
async fn compaction_passes_it_by() {
    let home = tempfile::tempdir().unwrap();
    let (mut server, _) = warm(home.path()).await;
    let cut_before = segments(&server).await;
    let setup = server.setup().setting("storage.compaction_interval", "100ms");
    server.stop().await;
    drop(server);
    let server = setup.start().await;
    let mut calls = Calls::connect(&server).await;
    let mut at = 0;
    while at < RECORDS {
        at = calls.fetch("t", at).await.unwrap().next_offset;
    }
    cut(&cut_before[1].1, ONE_RECORD);
    let change = rimstone_client::TopicChange {
        set: vec![
            ("cleanup.policy".to_owned(), "compact".to_owned()),
            ("min.cleanable.dirty.ratio".to_owned(), "0".to_owned()),
        ],
        ..Default::default()
    };
    server.admin().alter_topic("t", change).await.unwrap();
    let described = until("compaction has met it", async || {
        let described = server.admin().describe_topic("t").await.unwrap();
        (!described.partitions[0].compaction_obstacles.is_empty()).then_some(described)
    })
    .await;
    assert_eq!(described.partitions[0].compaction_obstacles[0].0.get(), cut_before[1].0);
    until("it is measured as damage", async || {
        let described = server.admin().describe_topic("t").await.unwrap();
        (!described.partitions[0].damaged.is_empty()).then_some(())
    })
    .await;
    let last = calls.fetch("t", RECORDS - 1).await.unwrap();
    assert_eq!(last.records.len(), 1);
    alive(&server);
}

/// Slices of a map that wait in the server for a client that is slow, when the file goes: whole batches reach it, or its
/// connection breaks; never wrong bytes, and nobody else notices.
#[tokio::test(flavor = "multi_thread")]
async fn slices_on_their_way_to_a_slow_client_are_whole_or_break_its_connection() {
    let home = tempfile::tempdir().unwrap();
    let (server, mut calls) = warm(home.path()).await;
    let mut slow = Calls::connect(&server).await;
    let request = read_request(0, v1::RecordFormat::Batches);
    let mut stream = soon(slow.consume.read(request)).await.unwrap().into_inner();
    let first = soon(stream.next()).await.unwrap().unwrap();
    assert!(!first.records.unwrap().batches.is_empty());
    // The windows of the stream are full of what was sent; the rest waits as slices of the maps.
    for (_, path) in &segments(&server).await[..3] {
        cut(path, 100);
    }
    let mut messages = 0;
    let end = loop {
        match soon(stream.next()).await {
            Some(Ok(message)) => {
                let records = message.records.unwrap();
                if let Some(error) = records.error {
                    break error.reason;
                }
                for batch in &records.batches {
                    // What a client finds wrong by the checksum is not believed; without it nothing must be wrong.
                    if let Ok(batch) = Batch::verify(batch.data.clone(), &Limits::default()) {
                        for record in batch.records(&Limits::default()).unwrap() {
                            let record = record.unwrap();
                            assert_eq!(record.value.as_deref(), Some(&value(record.offset.get())[..]));
                        }
                    }
                }
                messages += 1;
            }
            Some(Err(status)) => break format!("{:?}", status.code()),
            None => break "the end".to_owned(),
        }
    };
    println!("{messages} messages more, then {end}");
    alive(&server);
    calls.append(to_partition_0("t", ["after"])).await.unwrap();
    let read = calls.fetch("t", RECORDS).await.unwrap();
    assert_eq!(read.records[0].value.as_deref(), Some(&b"after"[..]));
}
