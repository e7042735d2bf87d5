//! `ProduceStream`.

use rimstone_proto::v1::{
    self, ProduceStreamAck, ProduceStreamAppend, ProduceStreamOpen, ProduceStreamOpened,
    ProduceStreamRequest, ProduceStreamResponse, produce_stream_request, produce_stream_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::support::{
    Server, assert_item, assert_refused, batch, batches, explained, partition_batch, record, server,
    server_with, soon, to_partition_0,
};

pub(crate) struct Stream {
    requests: mpsc::Sender<ProduceStreamRequest>,
    answers: Streaming<ProduceStreamResponse>,
}

impl Stream {
    /// A stream on which nothing has been said yet.
    pub(crate) async fn begin(server: &Server) -> Self {
        let (requests, sent) = mpsc::channel(1024);
        let answers =
            soon(server.produce().produce_stream(ReceiverStream::new(sent))).await.unwrap().into_inner();
        Self { requests, answers }
    }

    pub(crate) async fn open(server: &Server) -> Self {
        let mut stream = Self::begin(server).await;
        stream.say(open(None, &[])).await;
        stream.opened().await;
        stream
    }

    async fn say(&self, kind: produce_stream_request::Kind) {
        soon(self.requests.send(ProduceStreamRequest { kind: Some(kind) })).await.unwrap();
    }

    pub(crate) async fn append(&self, correlation_id: u64, request: v1::ProduceRequest) {
        assert!(append(&self.requests, correlation_id, request).await, "the stream has ended");
    }

    pub(crate) fn requests(&self) -> mpsc::Sender<ProduceStreamRequest> {
        self.requests.clone()
    }

    pub(crate) async fn next(&mut self) -> Result<Option<produce_stream_response::Kind>, Status> {
        Ok(soon(self.answers.message()).await?.map(|message| message.kind.unwrap()))
    }

    async fn opened(&mut self) -> ProduceStreamOpened {
        match self.next().await.unwrap() {
            Some(produce_stream_response::Kind::Opened(opened)) => opened,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn ack(&mut self) -> ProduceStreamAck {
        match self.next().await.unwrap() {
            Some(produce_stream_response::Kind::Ack(ack)) => ack,
            other => panic!("{other:?}"),
        }
    }
}

/// Sends a request; `false` if the stream has ended.
pub(crate) async fn append(
    requests: &mpsc::Sender<ProduceStreamRequest>,
    correlation_id: u64,
    request: v1::ProduceRequest,
) -> bool {
    let append = ProduceStreamAppend { correlation_id, request: Some(request) };
    let kind = Some(produce_stream_request::Kind::Append(append));
    soon(requests.send(ProduceStreamRequest { kind })).await.is_ok()
}

fn open(producer_id: Option<u64>, topics: &[&str]) -> produce_stream_request::Kind {
    let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
    produce_stream_request::Kind::Open(ProduceStreamOpen { producer_id, topics })
}

fn base(ack: &ProduceStreamAck) -> u64 {
    ack.response.as_ref().unwrap().appends[0].base_offset.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_in_flight_are_answered_in_order_and_one_bad_request_does_not_end_it() {
    const REQUESTS: u64 = 500;
    let server = server().await;
    server.topic("t", 1).await;
    let producer = soon(server.produce().init_producer(v1::InitProducerRequest::default())).await.unwrap();
    let producer = (producer.get_ref().producer_id, producer.get_ref().producer_epoch);
    let mut stream = Stream::begin(&server).await;
    stream.say(open(Some(producer.0), &["t"])).await;
    let opened = stream.opened().await;
    assert!(opened.window_bytes > 0 && opened.partitions.is_empty());

    let mut sequence = 0;
    for number in 0..REQUESTS {
        let request = match number % 10 {
            3 => to_partition_0("none", vec![record(None, "x")]),
            5 => batches("t", vec![partition_batch(0, batch(&["gap"], Some(producer), sequence + 7))]),
            7 => batches("t", vec![partition_batch(0, batch(&["x"], None, 0).slice(..30))]),
            _ => {
                let data = batch(&["a", "b"], Some(producer), sequence);
                sequence += 2;
                batches("t", vec![partition_batch(0, data)])
            }
        };
        stream.append(number * 3, request).await;
    }
    let mut next = 0;
    for number in 0..REQUESTS {
        let ack = stream.ack().await;
        assert_eq!(ack.correlation_id, number * 3);
        match number % 10 {
            3 => {
                let metadata = assert_item(ack.error.as_ref(), Code::NotFound, "TOPIC_NOT_FOUND");
                assert_eq!(metadata["topic"], "none");
                assert!(ack.response.is_none());
            }
            5 => {
                assert!(ack.error.is_none());
                let append = &ack.response.as_ref().unwrap().appends[0];
                let metadata = assert_item(append.error.as_ref(), Code::FailedPrecondition, "SEQUENCE_GAP");
                assert_eq!(metadata["expected_sequence"], next.to_string());
            }
            7 => drop(assert_item(ack.error.as_ref(), Code::InvalidArgument, "BATCH_CORRUPT")),
            _ => {
                assert_eq!(base(&ack), next);
                next += 2;
            }
        }
    }
    // The client has nothing more to say: the stream ends well.
    let Stream { requests, mut answers } = stream;
    drop(requests);
    assert!(soon(answers.message()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_the_end_is_answered() {
    let server = server().await;
    server.topic("t", 1).await;
    let Stream { requests, answers } = {
        let stream = Stream::open(&server).await;
        for number in 0..50 {
            stream.append(number, to_partition_0("t", vec![record(None, "a")])).await;
        }
        stream
    };
    drop(requests);
    let mut stream = Stream { requests: mpsc::channel(1).0, answers };
    for number in 0..50 {
        let ack = stream.ack().await;
        assert_eq!((ack.correlation_id, base(&ack)), (number, number));
    }
    assert!(stream.next().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_window_slows_down_and_does_not_stop() {
    let server = server_with(&[("limits.stream_window_bytes", "64 KiB")]).await;
    server.topic("t", 1).await;
    let mut stream = Stream::open(&server).await;
    let value = "x".repeat(40 << 10);
    // One is larger than the whole window.
    let values = [value.clone(), value.repeat(3), value.clone(), value.clone()];
    for (number, value) in values.iter().cycle().take(40).enumerate() {
        stream.append(number as u64, to_partition_0("t", vec![record(None, value)])).await;
    }
    for number in 0..40 {
        let ack = stream.ack().await;
        assert_eq!((ack.correlation_id, base(&ack)), (number, number));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_opening_tells_what_is_stored() {
    let server = server().await;
    server.topic("t", 2).await;
    let producer = soon(server.produce().init_producer(v1::InitProducerRequest::default())).await.unwrap();
    let (id, epoch) = (producer.get_ref().producer_id, producer.get_ref().producer_epoch);
    let data = batch(&["a", "b", "c"], Some((id, epoch)), 0);
    soon(server.produce().produce(batches("t", vec![partition_batch(1, data)]))).await.unwrap();
    let mut stream = Stream::begin(&server).await;
    stream.say(open(Some(id), &["t"])).await;
    let opened = stream.opened().await;
    assert_eq!(opened.partitions.len(), 1);
    assert_eq!((opened.partitions[0].last_sequence, opened.partitions[0].last_offset), (2, Some(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_begins_or_goes_on_wrong_ends() {
    let server = server().await;
    server.topic("t", 1).await;
    let append =
        |request| produce_stream_request::Kind::Append(ProduceStreamAppend { correlation_id: 1, request });

    let mut stream = Stream::begin(&server).await;
    stream.say(append(None)).await;
    assert_refused(stream.next().await, Code::InvalidArgument, "INVALID_REQUEST");

    let mut stream = Stream::begin(&server).await;
    stream.say(open(Some(0), &["none"])).await;
    assert_refused(stream.next().await, Code::NotFound, "TOPIC_NOT_FOUND");

    // What came before the mistake is answered; what makes a request of a message is not there: that is in the body.
    let mut stream = Stream::open(&server).await;
    stream.append(1, to_partition_0("t", vec![record(None, "a")])).await;
    stream.say(append(None)).await;
    stream.say(open(None, &[])).await;
    assert_eq!(base(&stream.ack().await), 0);
    assert_item(stream.ack().await.error.as_ref(), Code::InvalidArgument, "INVALID_REQUEST");
    let status = stream.next().await.unwrap_err();
    assert_eq!(explained(&status).1, "INVALID_REQUEST");
    assert!(status.message().contains("open"), "{status:?}");

    // A message over the limit cannot be read, so it cannot be answered by its number.
    let mut stream = Stream::open(&server).await;
    stream.append(1, to_partition_0("t", vec![record(None, &"x".repeat(9 << 20))])).await;
    let metadata = assert_refused(stream.next().await, Code::InvalidArgument, "INVALID_REQUEST");
    assert_eq!(metadata["limit"], (8 << 20).to_string());
}
