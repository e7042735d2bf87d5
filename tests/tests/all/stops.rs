//! Stopping: in order, and by force.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rimstone_proto::v1::{self, consume_service_client::ConsumeServiceClient};
use rimstone_tests::{
    calls::{Calls, Refusal, to_partition_0},
    feed::{Feed, assert_kept},
    history::{assert_exactly, read_all},
    input::made_up,
    server::{Server, Setup},
    wait::{soon, until},
};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket},
    sync::mpsc,
};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_is_marked_and_keeps_everything() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Setup::new(home.path()).start().await;
    let clean = server.data().join("clean");
    assert!(!clean.exists(), "a server that runs may crash");
    Calls::connect(&server).await.create_topic("lines", 3, &[]).await;
    let lines = made_up(2_000, 11);
    let acks = Feed::start(&server.endpoint(), "lines", &lines).finish().await;
    server.stop().await;
    assert!(clean.exists());
    let server = server.start_again().await;
    assert!(!clean.exists());
    let records = read_all(&server.endpoint(), "lines").await;
    assert_exactly(&records, &lines);
    assert_kept(&acks, &records);
    assert_eq!(server.metric("rimstone_torn_tail_bytes_total"), Some(0.0));
}

/// Whoever holds a stream is told to connect again; whoever retries loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_during_a_produce_ends_streams_and_the_producer_carries_on() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("lines", 3, &[]).await;
    calls.create_topic("stream", 1, &[]).await;

    // A stream for writing and one for reading, both open.
    let (send, requests) = mpsc::channel(4);
    let open = v1::produce_stream_request::Kind::Open(v1::ProduceStreamOpen::default());
    let append = v1::produce_stream_request::Kind::Append(v1::ProduceStreamAppend {
        correlation_id: 7,
        request: Some(to_partition_0("stream", ["first"])),
    });
    for kind in [open, append] {
        send.send(v1::ProduceStreamRequest { kind: Some(kind) }).await.unwrap();
    }
    let requests = tokio_stream_of(requests);
    let mut answers = soon(calls.produce.produce_stream(requests)).await.unwrap().into_inner();
    assert!(matches!(kind(&mut answers).await, v1::produce_stream_response::Kind::Opened(_)));
    let v1::produce_stream_response::Kind::Ack(ack) = kind(&mut answers).await else { panic!("no ack") };
    assert_eq!((ack.correlation_id, ack.error), (7, None));
    let start = v1::start_position::Position::Earliest(v1::Earliest {});
    let request = v1::ReadRequest {
        topic: "stream".to_owned(),
        start: Some(v1::StartPosition { position: Some(start) }),
        ..Default::default()
    };
    let mut following = soon(calls.consume.read(request)).await.unwrap().into_inner();
    let first = soon(following.message()).await.unwrap().unwrap();
    assert_eq!(first.records.unwrap().records.len(), 1);

    let lines = made_up(4_000, 12);
    let feed = Feed::start(&server.endpoint(), "lines", &lines);
    feed.allow(3_000);
    let before = feed.acknowledged_at_least(1_000).await;
    server.signal(Signal::TERM);
    for (what, ended) in [
        ("the stream of requests", soon(answers.message()).await.map(drop)),
        ("the stream of records", soon(following.message()).await.map(drop)),
    ] {
        let refusal = Refusal::of_status(&ended.expect_err(what));
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "SHUTTING_DOWN"), "{what}");
    }
    let status = server.ended().await;
    assert!(status.success(), "{status}");
    println!("stopped with {before} acknowledged and {} sent", feed.sent());
    assert!(before < lines.len());

    let server = server.start_again().await;
    let acks = feed.finish().await;
    let records = read_all(&server.endpoint(), "lines").await;
    assert_exactly(&records, &lines);
    assert_kept(&acks, &records);
    assert_eq!(server.metric("rimstone_torn_tail_bytes_total"), Some(0.0), "the stop was a clean one");
}

async fn kind(
    answers: &mut tonic::Streaming<v1::ProduceStreamResponse>,
) -> v1::produce_stream_response::Kind {
    soon(answers.message()).await.unwrap().unwrap().kind.unwrap()
}

fn tokio_stream_of<T: Send + 'static>(
    receiver: mpsc::Receiver<T>,
) -> impl futures::Stream<Item = T> + Send + 'static {
    futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

/// A stop does not wait for a client that neither reads nor goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_has_a_deadline_of_its_own() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).setting("server.shutdown_deadline", "500ms");
    let mut server = setup.start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    // A long poll that would last a minute, and a connection that never speaks.
    let waiting = tokio::spawn(async move {
        let request = v1::FetchRequest {
            topic: "t".to_owned(),
            partitions: vec![v1::FetchPartition::default()],
            max_wait_ms: 60_000,
            ..Default::default()
        };
        calls.consume.fetch(request).await
    });
    let mute = std::net::TcpStream::connect(server.grpc()).unwrap();
    until("the fetch waits", async || {
        server.metric("rimstone_waiting_fetches").filter(|count| *count >= 1.0)
    })
    .await;
    let begun = std::time::Instant::now();
    server.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(mute);
    // Answered or refused, but not left hanging.
    drop(soon(waiting).await.unwrap());
}

/// Members that are frozen, one with records that it does not take, one idle: they have connections that answer
/// nothing, not even a ping. Nothing waits for an answer, so the stop does not wait for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_frozen_members() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Setup::new(home.path()).setting("server.shutdown_deadline", "2m").start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    let large: &str = "x".repeat(64 << 10).leak();
    for _ in 0..40 {
        calls.append(to_partition_0("t", [large; 8])).await.unwrap();
    }
    let address = format!("http://{}", server.grpc());
    // Their runtime does not run any more once they have joined.
    let frozen = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let held = runtime.block_on(async {
            let mut held = Vec::new();
            for (group, credit) in [("reads", u64::from(u32::MAX)), ("idle", 0)] {
                let (send, requests) = mpsc::channel(4);
                let join = v1::ConsumeJoin {
                    group: group.to_owned(),
                    topics: vec!["t".to_owned()],
                    start: v1::StartPolicy::Earliest.into(),
                    credit: Some(v1::ConsumeCredit { bytes: credit, records: credit }),
                    ..Default::default()
                };
                let kind = Some(v1::consume_request::Kind::Join(join));
                send.send(v1::ConsumeRequest { kind }).await.unwrap();
                let connect = ConsumeServiceClient::connect(address.clone());
                let mut client = soon(connect).await.unwrap();
                let stream = soon(client.consume(tokio_stream_of(requests))).await.unwrap();
                let mut answers = stream.into_inner();
                let joined = soon(answers.message()).await.unwrap().unwrap();
                assert!(matches!(joined.kind, Some(v1::consume_response::Kind::Joined(_))));
                held.push((client, send, answers));
            }
            held
        });
        (runtime, held)
    });
    let frozen = frozen.join().unwrap();
    let begun = std::time::Instant::now();
    server.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    std::thread::spawn(move || drop(frozen)).join().unwrap();
    assert!(server.data().join("clean").exists());
}

/// A link on which answers take seconds: what the server says to `to` goes on in small pieces, with pauses. Also how
/// much of it has.
async fn slow_link(to: std::net::SocketAddr) -> (String, Arc<AtomicU64>) {
    const PIECE_BYTES: usize = 64 << 10;
    const PAUSE: Duration = Duration::from_millis(20);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let passed = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&passed);
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpSocket::new_v4().unwrap();
        // Most of what waits, waits at the server.
        server.set_recv_buffer_size(1 << 20).unwrap();
        let (mut said, mut asks) = server.connect(to).await.unwrap().into_split();
        let (mut asked, mut hears) = client.into_split();
        tokio::spawn(async move { drop(tokio::io::copy(&mut asked, &mut asks).await) });
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(read) = said.read(&mut piece).await
            && read > 0
            && hears.write_all(&piece[..read]).await.is_ok()
        {
            passed.fetch_add(read as u64, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
    });
    (address, told)
}

/// An answer that has been handed to the connection is not yet with the client.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_an_answer_come_over_a_slow_link() {
    const ANSWER_BYTES: usize = 16 << 20;
    let home = tempfile::tempdir().unwrap();
    let mut server = Setup::new(home.path()).setting("server.shutdown_deadline", "60s").start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    let large: &str = "x".repeat(512 << 10).leak();
    for _ in 0..10 {
        calls.append(to_partition_0("t", [large; 4])).await.unwrap();
    }
    let (address, passed) = slow_link(server.grpc()).await;
    let answer = tokio::spawn(async move {
        let client = soon(ConsumeServiceClient::connect(address)).await.unwrap();
        let max_bytes = ANSWER_BYTES as u32;
        let request = v1::FetchRequest {
            topic: "t".to_owned(),
            partitions: vec![v1::FetchPartition { max_bytes, ..Default::default() }],
            max_bytes,
            ..Default::default()
        };
        let mut client = client.max_decoding_message_size(2 * ANSWER_BYTES);
        soon(client.fetch(request)).await.map(|answer| answer.into_inner())
    });
    let under_way = || async { (passed.load(Ordering::Relaxed) > 1 << 20).then_some(()) };
    until("the answer is under way", under_way).await;
    server.stop().await;
    let answer = answer.await.unwrap().expect("it is answered");
    let records: usize = answer.partitions.iter().map(|partition| partition.records.len()).sum();
    assert!(records * large.len() > ANSWER_BYTES / 2, "{records}");
}

/// One line for the whole directory, however many partitions there are, and none where there was nothing to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_says_once_what_an_unclean_stop_cost() {
    let said = |server: &Server| {
        let output = server.output();
        output.lines().filter(|line| line.contains("recovered")).map(str::to_owned).collect::<Vec<_>>()
    };
    let home = tempfile::tempdir().unwrap();
    let mut server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 20, &[]).await;
    calls.append(to_partition_0("t", ["value"])).await.unwrap();
    assert_eq!(said(&server), [""; 0], "a new directory has nothing to recover");
    server.kill();
    let mut server = server.start_again().await;
    let lines = said(&server);
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["21", "scanned", "rewritten", "torn", "INFO"] {
        assert!(lines[0].contains(part), "no {part}: {lines:?}");
    }
    server.stop().await;
    let again = said(&server.start_again().await);
    assert!(again.len() <= 1 && again.iter().all(|line| lines.contains(line)), "{again:?}");
}
