//! Old records go, by size, by age and by request; what is gone stays gone, what is kept keeps its place.

use std::collections::HashMap;

use rimstone_proto::v1;
use rimstone_tests::{
    calls::{Calls, assert_refused, record, to_partition_0},
    server::{Server, Setup},
    wait::{soon, until},
};
use tonic::Code;

const SEGMENT: &str = "4096";

async fn ends(server: &Server) -> (u64, u64, u32) {
    let topic = server.admin().describe_topic("t").await.unwrap();
    let partition = &topic.partitions[0];
    (partition.ends.start.get(), partition.ends.durable.get(), partition.segments)
}

/// Appends records of about 1 KiB each, all of this create time.
async fn fill(calls: &mut Calls, records: u64, create_time_ms: Option<i64>) {
    for number in 0..records {
        let value = format!("{number:01000}");
        let record = v1::Record { partition: Some(0), create_time_ms, ..record(None, value) };
        let request =
            v1::ProduceRequest { topic: "t".to_owned(), records: vec![record], ..Default::default() };
        let append = calls.append(request).await.unwrap();
        assert_eq!(append.error, None);
    }
}

async fn served_from(calls: &mut Calls, start: u64, end: u64) {
    assert_eq!(calls.fetch("t", start).await.unwrap().records[0].offset, start);
    let below = calls.fetch("t", start - 1).await.unwrap().error.expect("what is gone is named");
    assert_eq!((below.code, below.reason.as_str()), (Code::OutOfRange as i32, "OFFSET_OUT_OF_RANGE"));
    assert_eq!(below.metadata["log_start_offset"], start.to_string());
    assert_eq!(below.metadata["high_watermark"], end.to_string());
}

/// The same log start after a kill and after a stop, and offsets go on.
async fn stays(server: Server, start: u64, end: u64) {
    let mut server = server;
    for clean in [false, true] {
        if clean {
            server.stop().await;
        } else {
            server.kill();
        }
        // No maintenance in between: what is seen was kept, not decided again.
        server = server.setup().setting("storage.maintenance_interval", "1h").start().await;
        let (start_now, end_now, _) = ends(&server).await;
        assert_eq!((start_now, end_now), (start, end));
        served_from(&mut Calls::connect(&server).await, start, end).await;
    }
    let append = Calls::connect(&server).await.append(to_partition_0("t", ["next"])).await.unwrap();
    assert_eq!(append.base_offset, Some(end));
}

#[tokio::test(flavor = "multi_thread")]
async fn by_size_whole_segments_go_until_the_limit_would_be_undercut() {
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).setting("storage.maintenance_interval", "100ms").start().await;
    let mut calls = Calls::connect(&server).await;
    let settings = [("segment.bytes", SEGMENT), ("retention.bytes", "20000"), ("retention.ms", "-1")];
    calls.create_topic("t", 1, &settings).await;
    fill(&mut calls, 60, None).await;
    let bytes = async |server: &Server| {
        let topic = server.admin().describe_topic("t").await.unwrap();
        topic.partitions[0].bytes.get()
    };
    until("retention has done its work", async || (bytes(&server).await < 20_000 + 2 * 4096).then_some(()))
        .await;
    // The next pass may have something left to do: what is looked at from here on, no pass changes.
    let mut server = server;
    server.kill();
    let server = server.setup().setting("storage.maintenance_interval", "1h").start().await;
    let size = bytes(&server).await;
    assert!(size >= 20_000, "not more than what is over the limit: {size}");
    let (start, end, _) = ends(&server).await;
    assert!(0 < start && start < end);
    assert_eq!(end, 60);
    served_from(&mut Calls::connect(&server).await, start, end).await;
    stays(server, start, end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_age_segments_go_by_their_largest_time() {
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).setting("storage.maintenance_interval", "100ms").start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[("segment.bytes", SEGMENT), ("retention.ms", "-1")]).await;
    // 2015, then now: what is old goes when it is asked for, what is young stays.
    fill(&mut calls, 20, Some(1_431_857_103_000)).await;
    fill(&mut calls, 20, None).await;
    assert_eq!(ends(&server).await.0, 0, "nothing goes before it is asked for");
    let day = HashMap::from([("retention.ms".to_owned(), "86400000".to_owned())]);
    let request = v1::AlterTopicRequest { topic: "t".to_owned(), set: day, ..Default::default() };
    soon(calls.admin.alter_topic(request)).await.unwrap();
    // A segment that has one young record stays, so some of the old may be left.
    let (start, end, _) = until("retention has done its work", async || {
        let ends = ends(&server).await;
        (ends.0 > 16).then_some(ends)
    })
    .await;
    assert!(start <= 20, "a young record is gone");
    assert_eq!(end, 40);
    served_from(&mut calls, start, end).await;
    stays(server, start, end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_request_the_log_start_moves_and_stays() {
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[("segment.bytes", SEGMENT)]).await;
    fill(&mut calls, 30, None).await;
    let (_, _, segments) = ends(&server).await;
    let delete = |before| v1::DeleteRecordsRequest {
        topic: "t".to_owned(),
        before_offsets: HashMap::from([(0, before)]),
    };
    let answer = soon(calls.admin.delete_records(delete(17))).await.unwrap().into_inner();
    assert_eq!(answer.log_start_offsets[&0], 17);
    // Backwards is no move, beyond the end is refused.
    let answer = soon(calls.admin.delete_records(delete(3))).await.unwrap().into_inner();
    assert_eq!(answer.log_start_offsets[&0], 17);
    let beyond = soon(calls.admin.delete_records(delete(31))).await;
    let beyond = assert_refused(beyond, Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    assert_eq!(beyond.number("high_watermark"), 30);
    served_from(&mut calls, 17, 30).await;
    assert!(ends(&server).await.2 < segments, "whole segments below are gone");
    stays(server, 17, 30).await;
}
