//! A stop ends everything that is open, in time.

use std::time::{Duration, Instant};

use rimstone_proto::v1::{self, start_position};
use rimstone_server::{Ended, run};
use rustix::process::{Signal, getpid, kill_process};
use tokio::sync::oneshot;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use crate::{
    produce_stream::Stream,
    support::{Server, assert_refused, config, record, server_with, soon, to_partition_0},
    web::get,
};

fn endless(start: start_position::Position) -> v1::ReadRequest {
    v1::ReadRequest {
        topic: "t".to_owned(),
        start: Some(v1::StartPosition { position: Some(start) }),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_a_word_and_polls_with_what_there_is() {
    let server = server_with(&[("server.shutdown_deadline", "60s")]).await;
    server.topic("t", 1).await;
    let mut stream = Stream::open(&server).await;
    let latest = start_position::Position::Latest(v1::Latest {});
    let mut reading = soon(server.consume().read(endless(latest))).await.unwrap().into_inner();
    let watched = HealthCheckRequest { service: "rimstone.v1.ProduceService".to_owned() };
    let mut health =
        soon(HealthClient::new(server.channel.clone()).watch(watched)).await.unwrap().into_inner();
    assert_eq!(soon(health.message()).await.unwrap().unwrap().status(), ServingStatus::Serving);
    let mut consume = server.consume();
    let waiting = v1::FetchRequest {
        topic: "t".to_owned(),
        partitions: vec![v1::FetchPartition { partition: 0, offset: 1, max_bytes: 0 }],
        max_wait_ms: 60_000,
        ..Default::default()
    };
    stream.append(1, to_partition_0("t", vec![record(None, "a")])).await;
    let first = stream.ack().await;
    assert_eq!(first.response.unwrap().appends[0].base_offset, Some(0));
    let polled = tokio::spawn(async move { consume.fetch(waiting).await });

    let Server { started, channel } = server;
    let waits = |(_, _, metrics): (u16, String, String)| {
        metrics.lines().any(|line| line == "rimstone_waiting_fetches 1")
    };
    while !waits(get(started.web_address(), "/metrics").await.unwrap()) {}
    let begun = Instant::now();
    let stopping = tokio::spawn(started.stop());
    assert_refused(stream.next().await, Code::Unavailable, "SHUTTING_DOWN");
    let ended = async {
        loop {
            match soon(reading.message()).await {
                Ok(Some(_)) => {}
                other => break other,
            }
        }
    };
    let ended = ended.await;
    assert!(ended.as_ref().unwrap_err().message().contains("reconnect"), "{ended:?}");
    assert_refused(ended, Code::Unavailable, "SHUTTING_DOWN");
    assert_eq!(soon(health.message()).await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(soon(health.message()).await.unwrap().is_none(), "then the watch ends");
    // A poll that waits is answered with what there is.
    let polled = soon(polled).await.unwrap().unwrap().into_inner().partitions.remove(0);
    assert!(polled.records.is_empty() && polled.error.is_none() && polled.next_offset == 1, "{polled:?}");
    soon(stopping).await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30), "nothing was left for the deadline to break");
    drop(channel);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_let_go_is_broken_at_the_deadline() {
    // Long enough for some looks while it drains.
    const DEADLINE: Duration = Duration::from_secs(3);
    let server = server_with(&[("server.shutdown_deadline", "3s")]).await;
    // A reflection stream that says nothing never ends by itself.
    let mut client = ServerReflectionClient::new(server.channel.clone());
    let requests = tokio_stream::pending();
    let mut held = soon(client.server_reflection_info(requests)).await.unwrap().into_inner();
    let web = server.started.web_address();
    let grpc = server.started.grpc_address();
    assert_eq!(get(web, "/readyz").await.unwrap().0, 200);

    let begun = Instant::now();
    let stopping = tokio::spawn(server.started.stop());
    // Not ready as long as it drains, alive all the same.
    let mut seen = get(web, "/readyz").await;
    while matches!(seen, Ok((200, ..))) {
        seen = get(web, "/readyz").await;
    }
    let (status, _, body) = seen.expect("the page answers while calls are drained");
    assert_eq!((status, body.contains("shutting down")), (503, true), "{body}");
    assert_eq!(get(web, "/livez").await.unwrap().0, 200);
    soon(stopping).await.unwrap().unwrap();
    assert!(begun.elapsed() >= DEADLINE, "the deadline was waited for");
    assert!(soon(held.message()).await.is_err(), "the connection was broken");
    assert!(get(web, "/livez").await.is_err(), "the web port is closed");
    assert!(tokio::net::TcpStream::connect(grpc).await.is_err(), "the gRPC port is closed");
}

/// Both in one test: signals reach everything in this process.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_signal_stops_in_order_and_the_second_at_once() {
    let ended = run_until_signals(&[Signal::TERM], "10s", false).await;
    assert_eq!(ended, Ended::Clean);
    let ended = run_until_signals(&[Signal::INT, Signal::TERM], "1m", true).await;
    assert_eq!(ended, Ended::AtOnce);
}

/// Runs a server, sends signals to this process, and tells how it ended. With `held`, a client holds a stream
/// that only the deadline would break.
async fn run_until_signals(signals: &[Signal], deadline: &str, held: bool) -> Ended {
    let settings = [("server.shutdown_deadline", deadline)];
    let (listening, address) = oneshot::channel();
    let running = tokio::spawn(run(config(&settings), move |started| {
        listening.send((started.grpc_address(), started.web_address())).unwrap();
    }));
    let (grpc, web) = soon(address).await.unwrap();
    let channel = soon(Channel::from_shared(format!("http://{grpc}")).unwrap().connect()).await.unwrap();
    let mut client = ServerReflectionClient::new(channel);
    let stream = if held {
        Some(soon(client.server_reflection_info(tokio_stream::pending())).await.unwrap())
    } else {
        None
    };
    for signal in signals {
        kill_process(getpid(), *signal).unwrap();
        // The next only once this one has been seen: two that are pending may become one.
        while matches!(get(web, "/readyz").await, Ok((200, ..))) {}
    }
    let ended = soon(running).await.unwrap().unwrap();
    drop(stream);
    ended
}
