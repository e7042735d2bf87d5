//! Clients that send and do not read: what they cost the server is bounded, and others do not wait for them.

use std::time::Duration;

use rimstone_proto::v1::{
    self, consume_request::Kind as Ask, consume_response::Kind as Told,
    produce_service_client::ProduceServiceClient, produce_stream_request::Kind,
};
use rimstone_tests::{
    calls::{Calls, to_partition_0},
    server::{Server, Setup},
    wait::{soon, until},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Endpoint};

/// Streams that fill the server's whole budget, and requests whose answers fill what waits for a connection.
const STREAMS: usize = 3;
const SMALL: usize = 100;
const LARGE: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn producers_that_do_not_read_their_answers_do_not_keep_the_budget() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path())
        .setting("limits.in_flight_bytes", "8MiB")
        .setting("limits.stream_window_bytes", "4MiB")
        .setting("limits.request_bytes", "2MiB")
        .setting("limits.fetch_bytes", "2MiB");
    let server = setup.start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    let large: &'static str = "x".repeat(512 << 10).leak();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        // One byte of an answer may come, no more.
        let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc())).unwrap();
        let channel = soon(endpoint.initial_stream_window_size(1).connect()).await.unwrap();
        let (send, requests) = mpsc::channel(1);
        let open = Kind::Open(v1::ProduceStreamOpen::default());
        let values = std::iter::repeat_n("small", SMALL).chain(std::iter::repeat_n(large, LARGE));
        let appends = values.zip(1..).map(|(value, correlation_id)| {
            let request = Some(to_partition_0("t", [value]));
            Kind::Append(v1::ProduceStreamAppend { correlation_id, request })
        });
        let kinds: Vec<_> = std::iter::once(open).chain(appends).collect();
        let sending = tokio::spawn(async move {
            for kind in kinds {
                send.send(v1::ProduceStreamRequest { kind: Some(kind) }).await.unwrap();
            }
            send
        });
        let mut client = ProduceServiceClient::new(channel);
        let answers = soon(client.produce_stream(ReceiverStream::new(requests))).await.unwrap();
        // The stream stays open, and is never read.
        streams.push((soon(sending).await.unwrap(), answers, client));
    }
    // Of each stream's large ones the last may wait for its window.
    let stored = (STREAMS * (SMALL + LARGE - 1)) as f64;
    until("everything is stored and counted", async || {
        server.metric("rimstone_produced_records_total{topic=\"t\"}").filter(|count| *count >= stored)
    })
    .await;
    // A message that arrives while its stream's window is full waits, with its room; what is stored holds none.
    let waiting = (STREAMS * (large.len() + (64 << 10))) as f64;
    until("what was stored has given its room back", async || {
        server.metric("rimstone_in_flight_bytes").filter(|bytes| *bytes <= waiting)
    })
    .await;
    soon(calls.append(to_partition_0("t", [large]))).await.unwrap();
    drop(streams);
}

/// A produce stream that is not read, with a request that waits for the window and holds room.
struct Unread {
    answers: Streaming<v1::ProduceStreamResponse>,
    sending: tokio::task::JoinHandle<mpsc::Sender<v1::ProduceStreamRequest>>,
    _client: ProduceServiceClient<tonic::transport::Channel>,
}

/// More answers than wait for a connection and a client together.
const ANSWERS: usize = 400;
/// Requests of 1.8 MB: one fills a window, the next one waits with its room.
const HUGE: usize = 3;

async fn unread(server: &Server) -> Unread {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc())).unwrap();
    let channel = soon(endpoint.initial_stream_window_size(1000).connect()).await.unwrap();
    let (send, requests) = mpsc::channel(1);
    let huge: &'static str = "x".repeat(600_000).leak();
    let sending = tokio::spawn(async move {
        let open = Kind::Open(v1::ProduceStreamOpen::default());
        send.send(v1::ProduceStreamRequest { kind: Some(open) }).await.unwrap();
        for correlation_id in 1..=(ANSWERS + HUGE) as u64 {
            let small = correlation_id <= ANSWERS as u64;
            let values: &[&'static str] = if small { &["small"] } else { &[huge; 3] };
            let request = Some(to_partition_0("t", values.iter().copied()));
            let kind = Some(Kind::Append(v1::ProduceStreamAppend { correlation_id, request }));
            if send.send(v1::ProduceStreamRequest { kind }).await.is_err() {
                break;
            }
        }
        send
    });
    let mut client = ProduceServiceClient::new(channel);
    let answers = soon(client.produce_stream(ReceiverStream::new(requests))).await.unwrap().into_inner();
    Unread { answers, sending, _client: client }
}

/// A server whose whole budget is held by streams that nobody reads.
async fn held(home: &std::path::Path, request_timeout: &str) -> (Server, Vec<Unread>) {
    let setup = Setup::new(home)
        .setting("limits.in_flight_bytes", "8MiB")
        .setting("limits.stream_window_bytes", "2MiB")
        .setting("limits.request_bytes", "2MiB")
        .setting("limits.fetch_bytes", "2MiB")
        .setting("limits.fetch_wait", "1s")
        .setting("limits.request_timeout", request_timeout);
    let server = setup.start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(unread(&server).await);
    }
    until("there is no room", async || {
        let held = server.metric("rimstone_in_flight_bytes").is_some_and(|bytes| bytes > (7 << 20) as f64);
        (held && refused(calls.append(to_partition_0("t", ["a"])).await)).then_some(())
    })
    .await;
    (server, streams)
}

fn refused(outcome: Result<v1::PartitionAppend, Status>) -> bool {
    outcome.is_err_and(|status| status.code() == Code::ResourceExhausted)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_read_ends_and_lets_others_write() {
    let home = tempfile::tempdir().unwrap();
    let (server, streams) = held(home.path(), "10s").await;
    let mut calls = Calls::connect(&server).await;
    // Less than a single one of them, and not just between one request and the next.
    let mut looks = 0;
    until("nobody holds any room", async || {
        let bytes = server.metric("rimstone_in_flight_bytes").unwrap_or(f64::MAX);
        looks = if bytes < (1 << 20) as f64 { looks + 1 } else { 0 };
        (looks == 50).then_some(())
    })
    .await;
    calls.append(to_partition_0("t", ["b"])).await.unwrap();
    // Who reads after all is told everything that was stored, and why there is no more; one that was not ended yet goes on.
    let mut ended = 0;
    for Unread { mut answers, sending, _client } in streams {
        let read = async {
            let mut told = 0;
            loop {
                match answers.message().await {
                    Ok(Some(_)) => told += 1,
                    Ok(None) => break (told, None),
                    Err(status) => break (told, Some(status)),
                }
            }
        };
        let sent = async { drop(sending.await) };
        let ((told, why), ()) = soon(async { tokio::join!(read, sent) }).await;
        // One of them is that the stream is open.
        assert!(told > ANSWERS, "{told}");
        if let Some(status) = why {
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
            assert!(status.message().contains("no answer of this stream was read"), "{status}");
            ended += 1;
        }
    }
    assert!(ended > 0, "room came back by itself");
}

/// Others hold all the room there is: members go on, with their commits as well.
#[tokio::test(flavor = "multi_thread")]
async fn members_commit_while_producers_hold_the_budget() {
    let home = tempfile::tempdir().unwrap();
    let (server, streams) = held(home.path(), "2m").await;
    let mut calls = Calls::connect(&server).await;
    let (send, requests) = mpsc::channel(4);
    let session_timeout = Duration::from_secs(30);
    let join = v1::ConsumeJoin {
        group: "g".to_owned(),
        topics: vec!["t".to_owned()],
        start: v1::StartPolicy::Earliest.into(),
        session_timeout_ms: session_timeout.as_millis() as u32,
        ..Default::default()
    };
    let say = async |kind| send.send(v1::ConsumeRequest { kind: Some(kind) }).await.unwrap();
    say(Ask::Join(join)).await;
    let stream = soon(calls.consume.consume(ReceiverStream::new(requests))).await.unwrap();
    let mut answers = stream.into_inner();
    let mut next = async || soon(answers.message()).await.unwrap().unwrap().kind.unwrap();
    let Told::Joined(_) = next().await else { panic!("the first answer is that it has joined") };
    let Told::Start(_) = next().await else { panic!("the only member has the partition") };
    let commit = |correlation_id, offset| {
        let offset = v1::OffsetCommit {
            topic: "t".to_owned(),
            partition: 0,
            offset: Some(offset),
            ..Default::default()
        };
        Ask::Commit(v1::ConsumeCommit { correlation_id, offsets: vec![offset] })
    };
    // Some at once, of which one can go without room; and heartbeats, each with its answer.
    for round in 1..=20 {
        for n in 0..3 {
            say(commit(3 * round + n, round)).await;
        }
        say(Ask::Heartbeat(v1::ConsumeHeartbeat::default())).await;
        let (mut committed, mut alive) = (0, 0);
        while committed < 3 || alive < 1 {
            match next().await {
                Told::Alive(_) => alive += 1,
                Told::Committed(answer) => {
                    assert_eq!(answer.correlation_id, 3 * round + committed);
                    assert_eq!(answer.results[0].error, None);
                    committed += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(refused(calls.append(to_partition_0("t", ["a"])).await), "the budget was full all the time");
    drop(streams);
    assert_eq!(calls.committed("g", "t").await.unwrap()[&0], 20);
}
