//! Requests that do not arrive, or not as they should: what they may cost before they are refused.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::Frame;
use prost::Message as _;
use rimstone_proto::v1::{self, ProduceStreamOpen, ProduceStreamRequest, produce_stream_request};
use tokio::task::JoinSet;
use tonic::{
    Code, Status, Streaming,
    body::Body,
    codegen::{Service as _, http},
    transport::Channel,
};
use tonic_types::StatusExt as _;

use crate::{
    produce_stream::Stream,
    support::{assert_refused, record, server, server_with, soon, to_partition_0},
};

const PRODUCE: &str = "/rimstone.v1.ProduceService/Produce";
const PRODUCE_STREAM: &str = "/rimstone.v1.ProduceService/ProduceStream";

/// A body that says this and then nothing more, without an end.
struct Stalled(Option<Bytes>);

impl http_body::Body for Stalled {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Poll::Pending,
        }
    }
}

/// A message of `length` bytes of which these are there.
fn begun(length: usize, content: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap());
    bytes.extend_from_slice(content);
    bytes.freeze()
}

/// Calls with a body that stalls; answers when the server does.
async fn call(mut channel: Channel, path: &str, sent: Bytes) -> http::Response<Body> {
    let request = http::Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Stalled(Some(sent))))
        .unwrap();
    std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
    channel.call(request).await.unwrap()
}

fn refusal(response: &http::Response<Body>) -> Result<(), Status> {
    Err(Status::from_header_map(response.headers()).expect("refused before there was an answer"))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_stop_halfway_take_no_more_than_the_budget() {
    const CALLS: usize = 20;
    const LENGTH: usize = 100 << 10;
    let server = server_with(&[("limits.in_flight_bytes", "1 MiB")]).await;
    server.topic("t", 1).await;
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let channel = server.channel.clone();
        // 70 KiB of the topic's name, which is the last thing to be looked at.
        let mut content = vec![0x0a, 0x80, 0x90, 0x06];
        content.resize(70 << 10, b'x');
        calls.spawn(async move { call(channel, PRODUCE, begun(LENGTH, &content)).await });
    }
    // Nine have room, with what a message takes beside its bytes; the others are told to come back.
    for _ in 0..CALLS - 9 {
        let response = soon(calls.join_next()).await.unwrap().unwrap();
        let status = refusal(&response).unwrap_err();
        assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
        assert_refused(Err::<(), _>(status), Code::ResourceExhausted, "BACKPRESSURE");
    }
    // What comes in one piece needs room only for itself.
    server.fill("t", &["small"]).await;
    let large = || to_partition_0("t", vec![record(None, &"x".repeat(LENGTH))]);
    assert_refused(soon(server.produce().produce(large())).await, Code::ResourceExhausted, "BACKPRESSURE");
    assert!(calls.try_join_next().is_none(), "nine still wait");
    calls.abort_all();
    soon(async { while server.produce().produce(large()).await.is_err() {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_waits_for_room_and_goes_on() {
    let server = server_with(&[("limits.in_flight_bytes", "1 MiB")]).await;
    server.topic("t", 1).await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(Stream::open(&server).await);
    }
    // Each is a quarter of the budget and several HTTP/2 frames long.
    let value = "x".repeat(256 << 10);
    let mut sent = Vec::new();
    for (number, stream) in streams.iter().enumerate() {
        for round in 0..4 {
            let request = to_partition_0("t", vec![record(None, &value)]);
            let requests = stream.requests();
            sent.push(tokio::spawn(async move {
                crate::produce_stream::append(&requests, (number * 4 + round) as u64, request).await
            }));
        }
    }
    for stream in &mut streams {
        for _ in 0..4 {
            let ack = stream.ack().await;
            assert!(ack.error.is_none(), "{ack:?}");
        }
    }
    for sent in sent {
        assert!(soon(sent).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_arrive_in_time_is_refused() {
    let server = server_with(&[("limits.request_timeout", "3s"), ("limits.fetch_wait", "500ms")]).await;
    server.topic("t", 1).await;
    let mut idle = Stream::open(&server).await;

    let mut calls = JoinSet::new();
    for sent in [begun(10, b"\x0a"), begun(2, b"\x0a\0"), Bytes::new()] {
        calls.spawn(call(server.channel.clone(), PRODUCE, sent));
    }
    while let Some(response) = soon(calls.join_next()).await {
        let refused = refusal(&response.unwrap());
        let metadata = assert_refused(refused, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        assert_eq!(metadata["timeout_ms"], "3000");
    }

    // A stream that begins a message has to finish it.
    let opening = produce_stream_request::Kind::Open(ProduceStreamOpen::default());
    let opening = ProduceStreamRequest { kind: Some(opening) }.encode_to_vec();
    let mut sent = BytesMut::from(&begun(opening.len(), &opening)[..]);
    sent.extend_from_slice(&begun(1_000, b"\x12"));
    let response = soon(call(server.channel.clone(), PRODUCE_STREAM, sent.freeze())).await;
    let (head, body) = response.into_parts();
    let decoder = tonic_prost::ProstDecoder::<v1::ProduceStreamResponse>::default();
    let mut answers = Streaming::new_response(decoder, body, head.status, None, None);
    assert!(soon(answers.message()).await.unwrap().is_some(), "it was opened");
    assert_refused(soon(answers.message()).await, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");

    // One that has said all that it began may be silent: more than the time has passed by now.
    idle.append(1, to_partition_0("t", vec![record(None, "late")])).await;
    assert!(idle.ack().await.error.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn elements_are_counted_before_anything_is_decoded() {
    let server = server_with(&[("limits.items_per_request", "100000")]).await;
    server.topic("t", 1).await;
    // Empty records, and empty headers in one record: two bytes each on the wire. The rest never comes.
    let records = [0x12, 0].repeat(100_001);
    let mut headers = vec![0x12, 0x80, 0x80, 0x80, 0x02];
    headers.extend([0x1a, 0].repeat(100_001));
    for content in [records, headers] {
        let response = soon(call(server.channel.clone(), PRODUCE, begun(8 << 20, &content))).await;
        let metadata = assert_refused(refusal(&response), Code::ResourceExhausted, "LIMIT_REACHED");
        assert_eq!(metadata["limit"], "100000");
    }
    let record = v1::Record { headers: vec![v1::Header::default(); 98], ..Default::default() };
    let mut stream = Stream::open(&server).await;
    stream.append(1, to_partition_0("t", vec![record.clone(); 1_000])).await;
    let ack = stream.ack().await;
    assert!(ack.error.is_none(), "{ack:?}");
    stream.append(2, to_partition_0("t", vec![record; 1_020])).await;
    assert_refused(stream.next().await, Code::ResourceExhausted, "LIMIT_REACHED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_too_long_is_refused_by_its_head() {
    let server = server().await;
    let response = soon(call(server.channel.clone(), PRODUCE, begun((8 << 20) + 1, b""))).await;
    let metadata = assert_refused(refusal(&response), Code::InvalidArgument, "INVALID_REQUEST");
    assert_eq!(metadata["limit"], (8 << 20).to_string());
    // A unary call has one message.
    let list = "/rimstone.v1.AdminService/ListTopics";
    let mut twice = BytesMut::from(&begun(0, b"")[..]);
    twice.extend_from_slice(&begun(0, b""));
    let response = soon(call(server.channel.clone(), list, twice.freeze())).await;
    assert_refused(refusal(&response), Code::InvalidArgument, "INVALID_REQUEST");
}
