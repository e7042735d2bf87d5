//! Clients that send and do not read: what they cost the server is bounded, and others do not wait for them.

use rimstone_proto::v1::{self, produce_service_client::ProduceServiceClient, produce_stream_request::Kind};
use rimstone_tests::{
    calls::{Calls, to_partition_0},
    server::Setup,
    wait::{soon, until},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

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
