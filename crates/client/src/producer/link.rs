//! An open stream to the server: taking a producer id, opening, what is on it. What the answers mean is not
//! here (`verdict`).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rimstone_proto::v1::{
    self, produce_stream_request::Kind as RequestKind, produce_stream_response::Kind as ResponseKind,
};
use rimstone_types::{PartitionIndex, ProducerEpoch, ProducerId, ProducerName};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    connect::Connection,
    error::{ClientError, Code, reason},
    producer::queue::Identity,
};

/// Requests between the driver and the connection; what is further behind waits in the queues.
const REQUESTS_QUEUED: usize = 4;
/// How long a server may take to open a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// A batch whose answer has not come.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) correlation: u64,
    pub(crate) queue: usize,
    pub(crate) uid: u64,
    pub(crate) topic: Arc<str>,
    pub(crate) partition: PartitionIndex,
    pub(crate) bytes: u64,
    /// The whole request message.
    pub(crate) message_bytes: u64,
}

/// An open stream.
pub(crate) struct Link {
    pub(crate) requests: mpsc::Sender<v1::ProduceStreamRequest>,
    pub(crate) answers: Streaming<v1::ProduceStreamResponse>,
    /// Answers come in this order.
    pub(crate) sent: VecDeque<Sent>,
    pub(crate) sent_bytes: u64,
    /// How many unanswered bytes the server takes; 0: it did not say.
    pub(crate) window_bytes: u64,
}

/// What opening a stream gave.
pub(crate) struct Opened {
    /// Kept even if the stream then failed: each new one would raise the epoch.
    pub(crate) identity: Option<Identity>,
    pub(crate) topics: Vec<String>,
    pub(crate) stream: Result<(Link, Vec<v1::ProducerPartitionState>), ClientError>,
}

pub(crate) struct Learned {
    pub(crate) topics: Vec<String>,
    pub(crate) states: Result<Vec<v1::ProducerPartitionState>, ClientError>,
}

impl Link {
    /// Whether another batch may be sent: at least one always, then as many bytes as the server takes.
    pub(crate) fn has_window(&self) -> bool {
        self.sent.is_empty() || self.window_bytes == 0 || self.sent_bytes < self.window_bytes
    }
}

pub(crate) fn ended() -> ClientError {
    ClientError::new(Code::Unavailable, reason::UNREACHABLE, "the server ended the stream")
}

/// Takes an id if there is none, and opens a stream.
pub(crate) async fn open(
    connection: Connection,
    identity: Option<Identity>,
    name: Option<ProducerName>,
    topics: Vec<String>,
) -> Opened {
    let mut known = identity;
    let work = async {
        let identity = match known {
            Some(identity) => identity,
            None => *known.insert(init(&connection, name).await?),
        };
        open_stream(&connection, identity, topics.clone()).await
    };
    let stream = tokio::time::timeout(OPEN_TIMEOUT, work).await.unwrap_or_else(|_| Err(slow(&connection)));
    Opened { identity: known, topics, stream }
}

pub(crate) async fn learn(connection: Connection, identity: Identity, topics: Vec<String>) -> Learned {
    let work = open_stream(&connection, identity, topics.clone());
    let opened = tokio::time::timeout(OPEN_TIMEOUT, work).await.unwrap_or_else(|_| Err(slow(&connection)));
    Learned { topics, states: opened.map(|(_, states)| states) }
}

fn slow(connection: &Connection) -> ClientError {
    let message = format!("{} did not open a stream within {OPEN_TIMEOUT:?}", connection.endpoint());
    ClientError::new(Code::Unavailable, reason::UNREACHABLE, message)
}

async fn init(connection: &Connection, name: Option<ProducerName>) -> Result<Identity, ClientError> {
    let name = name.map(String::from).unwrap_or_default();
    let request = v1::InitProducerRequest { name, topics: Vec::new() };
    let answer = connection.produce().init_producer(request).await?.into_inner();
    let invalid =
        |error| ClientError::protocol(format!("the server gave a producer id that is not one: {error}"));
    Ok(Identity {
        id: ProducerId::new(answer.producer_id).map_err(invalid)?,
        epoch: ProducerEpoch::new(answer.producer_epoch.into()).map_err(invalid)?,
    })
}

async fn open_stream(
    connection: &Connection,
    identity: Identity,
    topics: Vec<String>,
) -> Result<(Link, Vec<v1::ProducerPartitionState>), ClientError> {
    let (requests, outgoing) = mpsc::channel(REQUESTS_QUEUED);
    let open = v1::ProduceStreamOpen { producer_id: Some(identity.id.get()), topics };
    let first = v1::ProduceStreamRequest { kind: Some(RequestKind::Open(open)) };
    requests.try_send(first).map_err(|_| ClientError::protocol("a new channel has room"))?;
    let mut answers = connection.produce().produce_stream(ReceiverStream::new(outgoing)).await?.into_inner();
    let Some(ResponseKind::Opened(opened)) = answers.message().await?.ok_or_else(ended)?.kind else {
        return Err(ClientError::protocol("the first answer of a produce stream does not open it"));
    };
    let window_bytes = opened.window_bytes;
    Ok((Link { requests, answers, sent: VecDeque::new(), sent_bytes: 0, window_bytes }, opened.partitions))
}
