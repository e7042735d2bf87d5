//! Many requests on one produce stream, each with its own answer.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use parking_lot::Mutex;
use rimstone_proto::v1::{
    self, produce_stream_request::Kind as RequestKind, produce_stream_response::Kind as ResponseKind,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    bare::{Place, Request, places},
    connect::Connection,
    error::{ClientError, Code, reason},
};

/// Requests between those who send and the connection: enough that it never runs dry between two wake-ups of
/// a sender, little in memory.
const REQUESTS_QUEUED: usize = 64;

type Answer = Result<Vec<Place>, ClientError>;

/// A produce stream shared by many senders. Answers come in the order of the requests. Ends with the last
/// reference to it; after a break every request fails.
pub struct CallStream {
    requests: mpsc::Sender<v1::ProduceStreamRequest>,
    waiting: Arc<Mutex<Waiting>>,
    answering: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Waiting {
    correlation: u64,
    /// In the order of the requests, with their correlation ids.
    senders: VecDeque<(u64, oneshot::Sender<Answer>)>,
    /// Why the stream has ended.
    ended: Option<ClientError>,
}

impl CallStream {
    pub(crate) async fn open(connection: &Connection) -> Result<Self, ClientError> {
        let (requests, outgoing) = mpsc::channel(REQUESTS_QUEUED);
        let open = v1::ProduceStreamOpen { producer_id: None, topics: Vec::new() };
        let first = v1::ProduceStreamRequest { kind: Some(RequestKind::Open(open)) };
        requests.try_send(first).map_err(|_| ClientError::protocol("a new channel has room"))?;
        let answers = connection.produce().produce_stream(ReceiverStream::new(outgoing)).await?;
        let mut answers = answers.into_inner();
        let opened = answers.message().await?.and_then(|answer| answer.kind);
        let Some(ResponseKind::Opened(_)) = opened else {
            return Err(ClientError::protocol("the first answer of a produce stream does not open it"));
        };
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let answering = tokio::spawn(answer_all(answers, waiting.clone()));
        Ok(Self { requests, waiting, answering })
    }

    /// Sends a request, waiting for room on the way to the connection; resolves to what resolves to the answer.
    /// Dropping that loses the answer, not the request.
    ///
    /// # Errors
    /// The stream has ended; nothing was sent.
    pub async fn send(&self, request: &Request) -> Result<AnswerLater, ClientError> {
        let room = self.requests.reserve().await;
        let (sender, answer) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        let Ok(room) = room else {
            return Err(waiting.ended.clone().unwrap_or_else(ended));
        };
        if let Some(error) = &waiting.ended {
            return Err(error.clone());
        }
        waiting.correlation += 1;
        let correlation_id = waiting.correlation;
        let append = v1::ProduceStreamAppend { correlation_id, request: Some(request.message.clone()) };
        // Under the lock, so that requests are waited for in the order in which they are sent.
        room.send(v1::ProduceStreamRequest { kind: Some(RequestKind::Append(append)) });
        waiting.senders.push_back((correlation_id, sender));
        Ok(AnswerLater { answer })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// As [`Calls::produce`](crate::bare::Calls::produce); and that the stream has ended.
    pub async fn call(&self, request: &Request) -> Result<Vec<Place>, ClientError> {
        self.send(request).await?.await
    }
}

/// The answer to a request on a stream, when it comes.
#[derive(Debug)]
pub struct AnswerLater {
    answer: oneshot::Receiver<Answer>,
}

impl Future for AnswerLater {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        Pin::new(&mut self.answer).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(ended())))
    }
}

async fn answer_all(mut answers: Streaming<v1::ProduceStreamResponse>, waiting: Arc<Mutex<Waiting>>) {
    let error = loop {
        match answers.message().await {
            Ok(Some(answer)) => {
                if let Err(error) = answered(answer, &waiting) {
                    break error;
                }
            }
            Ok(None) => break ended(),
            Err(status) => break status.into(),
        }
    };
    let mut waiting = waiting.lock();
    for (_, sender) in waiting.senders.drain(..) {
        // Whoever waited may have gone.
        let _ = sender.send(Err(error.clone()));
    }
    waiting.ended = Some(error);
}

/// Hands an answer to whoever waits for it.
fn answered(answer: v1::ProduceStreamResponse, waiting: &Mutex<Waiting>) -> Result<(), ClientError> {
    let Some(ResponseKind::Ack(ack)) = answer.kind else {
        return Err(ClientError::protocol("the server opened a stream twice"));
    };
    let front = waiting.lock().senders.pop_front();
    let Some((correlation, sender)) = front else {
        return Err(ClientError::protocol(format!("answer {} was not asked for", ack.correlation_id)));
    };
    if correlation != ack.correlation_id {
        let error =
            ClientError::protocol(format!("answer {} came where {correlation} was due", ack.correlation_id));
        let _ = sender.send(Err(error.clone()));
        return Err(error);
    }
    let answer = match (ack.error, ack.response) {
        (Some(error), _) => Err(error.into()),
        (None, Some(response)) => places(response),
        (None, None) => Err(ClientError::protocol("an answer has neither a response nor an error")),
    };
    let _ = sender.send(answer);
    Ok(())
}

fn ended() -> ClientError {
    ClientError::new(Code::Unavailable, reason::UNREACHABLE, "the server ended the stream")
}

impl Drop for CallStream {
    fn drop(&mut self) {
        self.answering.abort();
    }
}

impl fmt::Debug for CallStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallStream")
            .field("waiting", &self.waiting.lock().senders.len())
            .finish_non_exhaustive()
    }
}
