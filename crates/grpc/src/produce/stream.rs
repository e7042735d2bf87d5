//! `ProduceStream`: one half reads requests and fixes their order, the other answers them in that order. What
//! may be between the two is bounded in bytes and in number.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rimstone_broker::{PendingProduce, ProduceRequest, Reservation};
use rimstone_proto::v1::{
    ProduceStreamAck, ProduceStreamOpen, ProduceStreamOpened, ProduceStreamResponse, produce_stream_response,
};
use rimstone_types::{ByteCount, TopicName};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    enlarged, produce_request, produce_response,
    wire::{WireAppend, WireKind, WireStreamRequest},
};
use crate::{
    convert::{producer_id, producer_states, topic_names},
    door::{Door, not_read},
    explain::explained,
    receive::Received,
    refusal::Refusal,
    status::{refusal, topic_refusal},
};

/// Requests of one stream that wait for their answers. The window in bytes is what binds with batches; this
/// binds with requests of a few bytes each.
const REQUESTS_IN_FLIGHT_MAX: usize = 4096;

/// Answers that wait for the connection; small, so that a client that does not read stops being read.
const ANSWERS_WAITING_MAX: usize = 64;

/// The first message must come this soon: an open stream holds a task and buffers.
const OPEN_WAIT_MAX: Duration = Duration::from_secs(30);

type Answer = Result<ProduceStreamResponse, Status>;

/// A request whose place in the order is fixed.
struct InFlight {
    correlation_id: u64,
    /// Whether it was taken; if not, why the whole of it was refused.
    taken: Result<(TopicName, PendingProduce), Refusal>,
    /// Its share of the window, given back once it is answered.
    _share: OwnedSemaphorePermit,
}

/// Why reading ended.
enum End {
    /// The client has sent everything.
    Finished,
    /// The client is gone; nobody reads answers.
    Gone,
    /// The stream ends with an error after what is in flight has been answered.
    Refused(Status),
}

/// Serves a stream in a task of its own; the answers are what is received.
pub(super) fn open(
    door: Door,
    window: ByteCount,
    received: Received,
    requests: Streaming<WireStreamRequest>,
) -> mpsc::Receiver<Answer> {
    let (answers, answered) = mpsc::channel(ANSWERS_WAITING_MAX);
    let stop = door.broker.shutdown_token();
    let window_bytes = u32::try_from(window.get()).unwrap_or(u32::MAX);
    let handed_on = AtomicU64::new(0);
    tokio::spawn(ProduceStream { door, stop, window_bytes, received, answers, handed_on }.serve(requests));
    answered
}

/// What every message but the first must be.
fn appended(kind: Option<WireKind>) -> Result<WireAppend, Refusal> {
    match kind {
        Some(WireKind::Append(append)) => Ok(append),
        Some(WireKind::Open(_)) => {
            Err(Refusal::invalid("open must be the first message, and only the first"))
        }
        None => Err(Refusal::invalid("a message of a produce stream must be open or append")),
    }
}

struct ProduceStream {
    door: Door,
    stop: CancellationToken,
    window_bytes: u32,
    received: Received,
    answers: mpsc::Sender<Answer>,
    /// Answers that the connection took.
    handed_on: AtomicU64,
}

impl ProduceStream {
    async fn serve(self, mut requests: Streaming<WireStreamRequest>) {
        match self.opened(&mut requests).await {
            Ok(opened) => {
                let opened = produce_stream_response::Kind::Opened(opened);
                if self.answers.send(Ok(ProduceStreamResponse { kind: Some(opened) })).await.is_err() {
                    return;
                }
            }
            Err(status) => return self.end(status).await,
        }
        let (in_flight, to_answer) = mpsc::channel(REQUESTS_IN_FLIGHT_MAX);
        // Joined, not raced: when reading ends, what is in flight is still answered.
        let (end, ()) = tokio::join!(self.read(&mut requests, in_flight), self.answer(to_answer));
        if let End::Refused(status) = end {
            self.end(status).await;
        }
    }

    async fn end(&self, status: Status) {
        // An error means that the client has gone, which is an end as well.
        drop(self.answers.send(Err(status)).await);
    }

    fn refused(&self, refusal: Refusal) -> Status {
        self.door.count(&refusal);
        refusal.into_status()
    }

    /// No message came. What was refused while it arrived says why by itself.
    fn not_received(&self, status: Status) -> Status {
        if status.details().is_empty() { self.refused(explained(&status)) } else { status }
    }

    /// Takes the first message and says what is stored.
    async fn opened(
        &self,
        requests: &mut Streaming<WireStreamRequest>,
    ) -> Result<ProduceStreamOpened, Status> {
        let first = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(self.refused(Refusal::shutting_down())),
            first = timeout(OPEN_WAIT_MAX, requests.message()) => first,
        };
        let opened = match first {
            Ok(Ok(message)) => self.stored(message).await,
            Ok(Err(status)) => return Err(self.not_received(status)),
            Err(_) => Err(Refusal::invalid("the first message, open, did not come within 30 s")),
        };
        opened.map_err(|refusal| self.refused(refusal))
    }

    /// What the first message asks for.
    async fn stored(&self, message: Option<WireStreamRequest>) -> Result<ProduceStreamOpened, Refusal> {
        let Some(WireKind::Open(ProduceStreamOpen { producer_id: id, topics })) =
            message.and_then(|message| message.kind)
        else {
            return Err(Refusal::invalid("the first message of a produce stream must be open"));
        };
        let topics = topic_names(&topics)?;
        let state = match id {
            Some(id) => {
                let id = producer_id(id)?;
                self.door.broker.producer_state(id, &topics).await.map_err(|error| refusal(&error))?
            }
            None => Default::default(),
        };
        Ok(ProduceStreamOpened {
            partitions: producer_states(&state),
            highest_request_number: state.highest_request_number,
            window_bytes: self.window_bytes.into(),
        })
    }

    /// Reads requests and fixes their order, as fast as the window allows.
    async fn read(
        &self,
        requests: &mut Streaming<WireStreamRequest>,
        in_flight: mpsc::Sender<InFlight>,
    ) -> End {
        let window = Arc::new(Semaphore::new(self.window_bytes as usize));
        // Once for the stream: what all streams wait for together has one lock.
        let (stopped, gone) = (self.stop.cancelled(), self.answers.closed());
        tokio::pin!(stopped, gone);
        loop {
            let message = tokio::select! {
                biased;
                () = &mut stopped => return End::Refused(self.refused(Refusal::shutting_down())),
                () = &mut gone => return End::Gone,
                message = requests.message() => message,
            };
            let append = match message {
                Ok(None) => return End::Finished,
                Err(status) => return End::Refused(self.not_received(status)),
                Ok(Some(WireStreamRequest { kind })) => match appended(kind) {
                    Ok(append) => append,
                    Err(refusal) => return End::Refused(self.refused(refusal)),
                },
            };
            let taken = tokio::select! {
                biased;
                () = &mut stopped => return End::Refused(self.refused(Refusal::shutting_down())),
                () = &mut gone => return End::Gone,
                taken = self.take(append, &window) => taken,
                // What waits here holds room of the server's, which must not depend on a client that does not read.
                () = self.unread() => return End::Refused(self.refused(not_read(self.door.request_timeout()))),
            };
            // The answering half ends early only when the client is gone.
            if in_flight.send(taken).await.is_err() {
                return End::Gone;
            }
        }
    }

    /// Ends when the client has read no answer for as long as a request may take. A disk that is slow does not count:
    /// then there is room for answers.
    async fn unread(&self) {
        loop {
            let before = self.handed_on.load(Ordering::Relaxed);
            sleep(self.door.request_timeout()).await;
            if self.answers.capacity() == 0 && self.handed_on.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    /// Waits for room in the window and in the server's budget, then fixes the request's place in the order.
    /// May be dropped while it waits: then the request was not taken.
    async fn take(&self, mut append: WireAppend, window: &Arc<Semaphore>) -> InFlight {
        let received = self.received.take();
        let request = append.request().ok_or_else(|| Refusal::invalid("an append must have a request"));
        let request =
            request.and_then(|request| request.map_err(|error| Refusal::invalid(error.to_string())));
        let request = request.and_then(produce_request);
        let bytes = request.as_ref().map_or(ByteCount(0), ProduceRequest::reserved_bytes);
        // A request larger than the window goes alone.
        let share = u32::try_from(bytes.get()).unwrap_or(u32::MAX).clamp(1, self.window_bytes);
        let share = Arc::clone(window).acquire_many_owned(share).await.expect("the window is never closed");
        let taken = match request {
            Ok(request) => self.submit(request, bytes, received).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = &taken {
            self.door.count(refusal);
        }
        InFlight { correlation_id: append.correlation_id, taken, _share: share }
    }

    async fn submit(
        &self,
        request: ProduceRequest,
        bytes: ByteCount,
        received: Option<Reservation>,
    ) -> Result<(TopicName, PendingProduce), Refusal> {
        let topic = request.topic.clone();
        let reservation = match received {
            Some(received) => enlarged(&self.door.broker, received, bytes),
            None => self.door.broker.reserve(bytes).await,
        };
        let reservation = reservation.map_err(|error| topic_refusal(&error, &topic))?;
        let pending =
            self.door.broker.produce(request, reservation).map_err(|error| topic_refusal(&error, &topic))?;
        Ok((topic, pending))
    }

    /// Answers in the order in which requests were read, until there are no more, or nobody listens.
    async fn answer(&self, to_answer: mpsc::Receiver<InFlight>) {
        let mut queue = Answering { to_answer, held: VecDeque::new() };
        while let Some(InFlight { correlation_id, taken, _share }) = queue.next().await {
            let answered = match taken {
                Ok((topic, pending)) => match pending.await {
                    Ok(outcome) => Ok(produce_response(outcome, &topic).into_generated()),
                    Err(error) => Err(topic_refusal(&error, &topic)),
                },
                Err(refusal) => Err(refusal),
            };
            let (response, error) = match answered {
                Ok(response) => (Some(response), None),
                Err(refusal) => (None, Some(refusal.into_item())),
            };
            let ack = ProduceStreamAck { correlation_id, error, response };
            let kind = Some(produce_stream_response::Kind::Ack(ack));
            let room = match self.answers.try_reserve() {
                Ok(room) => Some(room),
                Err(_) => queue.until(self.answers.reserve()).await.ok(),
            };
            let Some(room) = room else { return };
            self.handed_on.fetch_add(1, Ordering::Relaxed);
            room.send(Ok(ProduceStreamResponse { kind }));
        }
    }
}

/// Requests that are to be answered, in order.
struct Answering {
    to_answer: mpsc::Receiver<InFlight>,
    /// Those that came while the client did not read.
    held: VecDeque<InFlight>,
}

impl Answering {
    async fn next(&mut self) -> Option<InFlight> {
        match self.held.pop_front() {
            Some(next) => Some(next),
            None => self.to_answer.recv().await,
        }
    }

    /// Waits for the client to read. Meanwhile requests come to their ends all the same: what they hold of the
    /// server's budget must not depend on a client that does not read.
    async fn until<T>(&mut self, room: impl Future<Output = T>) -> T {
        self.held.iter_mut().for_each(detach);
        tokio::pin!(room);
        let mut more = true;
        loop {
            tokio::select! {
                biased;
                room = &mut room => return room,
                next = self.to_answer.recv(), if more && self.held.len() < REQUESTS_IN_FLIGHT_MAX => match next {
                    Some(mut next) => {
                        detach(&mut next);
                        self.held.push_back(next);
                    }
                    None => more = false,
                },
            }
        }
    }
}

fn detach(request: &mut InFlight) {
    if let Ok((_, pending)) = &mut request.taken {
        pending.detach();
    }
}
