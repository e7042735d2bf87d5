//! The one task that owns the connection of a producer: opens the stream, keeps it filled, hands answers to
//! the queues, and comes back after a break. What an answer means for a partition is decided in `queue`.

use std::{collections::VecDeque, future::Future, pin::Pin, sync::Arc, time::Duration};

use rimstone_proto::{
    Message as _,
    v1::{self, produce_stream_request::Kind as RequestKind, produce_stream_response::Kind as ResponseKind},
};
use tokio::{sync::mpsc, time::Instant};
use tonic::Streaming;

use crate::{
    error::{ClientError, Code, reason},
    producer::{
        Shared,
        link::{Learned, Link, Opened, Sent, ended, learn, open},
        queue::Verdict,
        verdict::verdict_of,
    },
    retry::Backoff,
};

/// How many topics one `Open` may ask for (said in `produce.proto`).
const TOPICS_PER_OPEN: usize = 100;
/// With nothing due, look again after this long.
const IDLE: Duration = Duration::from_secs(60);

type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

enum Event {
    Woken,
    Opened(Opened),
    Learned(Learned),
    Answer(Result<v1::ProduceStreamResponse, ClientError>),
    Room,
}

pub(crate) struct Driver {
    shared: Arc<Shared>,
    link: Option<Link>,
    opening: Option<Task<Opened>>,
    learning: Option<Task<Learned>>,
    retry_at: Option<Instant>,
    backoff: Backoff,
    correlation: u64,
    /// When the connection was lost, and not had again yet.
    away_since: Option<Instant>,
    /// Topics that the server cannot tell of now. A stream is opened without them, so that they hold up no other.
    untold: VecDeque<String>,
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            link: None,
            opening: None,
            learning: None,
            retry_at: None,
            backoff: Backoff::default(),
            correlation: 0,
            away_since: None,
            untold: VecDeque::new(),
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            let now = Instant::now();
            if self.prepare(now) {
                return;
            }
            let (timer, sendable) = self.plan(now);
            match self.next_event(timer, sendable).await {
                Event::Woken => {}
                Event::Room => self.fill(),
                Event::Opened(opened) => self.opened(opened),
                Event::Learned(learned) => self.learned(learned),
                Event::Answer(Ok(answer)) => self.answer(answer),
                Event::Answer(Err(error)) => self.lost(error),
            }
        }
    }

    /// Gives up what is late, renews, begins to connect; answers whether the producer has ended.
    fn prepare(&mut self, now: Instant) -> bool {
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        state.expire(now);
        if state.renewal_is_ready() {
            tracing::warn!(
                "taking a new producer id or epoch, since the numbering of the old one cannot go on"
            );
            state.renew();
            self.link = None;
            self.learning = None;
            // It would bring the old id back.
            self.opening = None;
        }
        if state.is_closing() && shared.tracker.is_empty() {
            return true;
        }
        let due = self.retry_at.is_none_or(|at| at <= now);
        if due {
            self.retry_at = None;
        }
        if due && state.has_work() && !state.has_failed() {
            if self.link.is_none() && self.opening.is_none() {
                let topics = state.to_ask(TOPICS_PER_OPEN, &self.untold);
                let name = shared.config.name.clone();
                self.opening =
                    Some(Box::pin(open(shared.connection.clone(), state.identity(), name, topics)));
            } else if self.link.is_some() && self.learning.is_none() {
                let mut topics = state.unlearned(TOPICS_PER_OPEN, &self.untold);
                if topics.is_empty() {
                    // Each alone, in turn.
                    self.untold.retain(|topic| state.is_unlearned(topic));
                    topics.extend(self.untold.pop_front());
                }
                if let (false, Some(identity)) = (topics.is_empty(), state.identity()) {
                    self.learning = Some(Box::pin(learn(shared.connection.clone(), identity, topics)));
                }
            }
        }
        false
    }

    fn plan(&self, now: Instant) -> (Instant, bool) {
        let state = self.shared.state.lock();
        let timer = state.next_timer(now, self.link.is_some()).into_iter().chain(self.retry_at).min();
        let fits = self.link.as_ref().is_some_and(Link::has_window);
        (timer.unwrap_or(now + IDLE), fits && state.is_sendable(now))
    }

    async fn next_event(&mut self, timer: Instant, sendable: bool) -> Event {
        let (requests, answers) = match &mut self.link {
            Some(link) => (Some(&link.requests), Some(&mut link.answers)),
            None => (None, None),
        };
        tokio::select! {
            opened = task(&mut self.opening) => Event::Opened(opened),
            learned = task(&mut self.learning) => Event::Learned(learned),
            answer = next_answer(answers) => Event::Answer(answer),
            () = room(requests), if sendable => Event::Room,
            () = self.shared.wake.notified() => Event::Woken,
            () = tokio::time::sleep_until(timer) => Event::Woken,
        }
    }

    /// Puts batches on the wire while there is room.
    fn fill(&mut self) {
        let Some(link) = &mut self.link else { return };
        while link.requests.capacity() > 0 && link.has_window() {
            let Some((queue, partition, topic, outgoing)) = self.shared.state.lock().take(Instant::now())
            else {
                return;
            };
            self.correlation += 1;
            let data = outgoing.batch.bytes().clone();
            let bytes = data.len() as u64;
            let batch = v1::EncodedBatch { data, append_time_ms: 0 };
            let append = v1::ProduceStreamAppend {
                correlation_id: self.correlation,
                request: Some(v1::ProduceRequest {
                    topic: topic.to_string(),
                    batches: vec![v1::PartitionBatch {
                        partition: partition.0,
                        batch: Some(batch),
                        expected_end: None,
                    }],
                    ..Default::default()
                }),
            };
            let request = v1::ProduceStreamRequest { kind: Some(RequestKind::Append(append)) };
            link.sent_bytes += bytes;
            link.sent.push_back(Sent {
                correlation: self.correlation,
                queue,
                uid: outgoing.uid,
                topic,
                partition,
                bytes,
                message_bytes: request.encoded_len() as u64,
            });
            if link.requests.try_send(request).is_err() {
                // The stream has ended; its answers will say why, and what is in `sent` goes out again.
                return;
            }
        }
    }

    fn opened(&mut self, opened: Opened) {
        self.opening = None;
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        if let Some(identity) = opened.identity {
            state.set_identity(identity);
        }
        match opened.stream {
            Ok((link, states)) => {
                let (stored, open) = state.learned(&opened.topics, &states);
                if let Some(since) = self.away_since.take() {
                    let away_ms = since.elapsed().as_millis() as u64;
                    tracing::info!(away_ms, stored, open, "connected again; sending what was not answered");
                }
                self.link = Some(link);
                // The backoff starts anew with the first answer: a server that opens and drops is not well.
            }
            Err(error) if error.is(reason::TOPIC_NOT_FOUND) && error.metadata.contains_key("topic") => {
                state.topic_gone(&error.metadata["topic"].clone(), &error);
            }
            Err(error) if error.is(reason::UNKNOWN_PRODUCER) || error.is(reason::PRODUCER_NOT_FOUND) => {
                state.state_lost(&error);
                drop(state);
                self.wait_to_connect(error);
            }
            // Told by the error which topic it is: opened at once without it.
            Err(error) if cannot_tell(&error, &opened.topics).is_some() => {
                self.untold.extend(cannot_tell(&error, &opened.topics));
                tracing::debug!(error = %error, "opening without this topic");
            }
            Err(error) if error.is_retriable() => {
                drop(state);
                self.wait_to_connect(error);
            }
            Err(error) => state.fail(error),
        }
    }

    fn learned(&mut self, learned: Learned) {
        self.learning = None;
        let mut state = self.shared.state.lock();
        match learned.states {
            Ok(states) => {
                state.learned(&learned.topics, &states);
            }
            Err(error) if error.is(reason::TOPIC_NOT_FOUND) && error.metadata.contains_key("topic") => {
                state.topic_gone(&error.metadata["topic"].clone(), &error);
            }
            Err(error) if error.is_retriable() => {
                let untold = cannot_tell(&error, &learned.topics);
                // With others the next question is without it, at once.
                if untold.is_none() || learned.topics.len() == 1 {
                    self.retry_at = Some(Instant::now() + self.backoff.next(error.retry_after));
                }
                self.untold.extend(untold);
            }
            Err(error) => state.fail(error),
        }
    }

    /// The connection is gone.
    fn lost(&mut self, error: ClientError) {
        let link = self.link.take();
        self.learning = None;
        if let Some(limit) = error.number("limit").filter(|_| error.is(reason::INVALID_REQUEST))
            && link.is_some_and(|link| self.too_long(link, limit, &error))
        {
            return;
        }
        // A message that was too slow to arrive ends the stream, and may be faster next time.
        let passes = error.is_retriable() || error.code == Code::DeadlineExceeded;
        let ends = !passes && !error.is(reason::PROTOCOL) && !error.reason.is_empty();
        {
            let mut state = self.shared.state.lock();
            if ends {
                state.fail(error);
                return;
            }
            state.disconnected();
            if !state.has_work() {
                return;
            }
        }
        self.wait_to_connect(error);
    }

    /// The server ended the stream for a message above its limit, and read nothing from there on: that batch can
    /// never be stored, those behind it were not. Answers whether there was one.
    fn too_long(&mut self, link: Link, limit: u64, error: &ClientError) -> bool {
        let is_too_long = |sent: &Sent| sent.message_bytes > limit;
        let Some(first) = link.sent.iter().position(is_too_long) else { return false };
        let mut state = self.shared.state.lock();
        let now = Instant::now();
        for sent in link.sent.iter().skip(first) {
            let verdict = match is_too_long(sent) {
                true => Verdict::Rejected(error.clone()),
                false => Verdict::Refused(error.clone()),
            };
            state.answered(sent.queue, sent.uid, verdict, now);
        }
        state.disconnected();
        true
    }

    fn wait_to_connect(&mut self, error: ClientError) {
        let wait = self.backoff.next(error.retry_after);
        let endpoint = self.shared.connection.endpoint();
        if self.away_since.is_none() {
            self.away_since = Some(Instant::now());
            tracing::warn!(endpoint, error = %error, "no connection to the server; trying again until the deadline");
        } else {
            tracing::debug!(endpoint, error = %error, wait_ms = wait.as_millis() as u64, "still no connection");
        }
        self.retry_at = Some(Instant::now() + wait);
    }

    fn answer(&mut self, answer: v1::ProduceStreamResponse) {
        let Some(link) = &mut self.link else { return };
        let Some(ResponseKind::Ack(ack)) = answer.kind else {
            return self.lost(ClientError::protocol("the server opened a stream twice"));
        };
        if link.sent.front().is_none_or(|sent| sent.correlation != ack.correlation_id) {
            let got = ack.correlation_id;
            return self.lost(ClientError::protocol(format!("answer {got} came out of order")));
        }
        let Some(sent) = link.sent.pop_front() else { return };
        link.sent_bytes -= sent.bytes;
        let error = match verdict_of(ack, sent.partition) {
            Ok(verdict) => {
                self.backoff.reset();
                return self.decided(&sent, verdict);
            }
            Err(error) => error,
        };
        if error.is(reason::PROTOCOL) {
            // It is not known what became of this one.
            link.sent.push_front(sent);
            return self.lost(error);
        }
        self.shared.state.lock().fail(error);
    }

    fn decided(&mut self, sent: &Sent, verdict: Verdict) {
        let gone = match &verdict {
            Verdict::Rejected(error) if error.is(reason::TOPIC_NOT_FOUND) => Some(error.clone()),
            Verdict::Refused(error) | Verdict::OutOfOrder(error) | Verdict::Unknown(error) => {
                let (topic, partition) = (&*sent.topic, sent.partition.0);
                tracing::debug!(topic, partition, reason = %error.reason, error = %error, "a batch was not taken");
                None
            }
            _ => None,
        };
        let mut state = self.shared.state.lock();
        state.answered(sent.queue, sent.uid, verdict, Instant::now());
        if let Some(error) = gone {
            state.topic_gone(&sent.topic, &error);
        }
    }
}

/// The topic, of those asked for, that the server cannot tell of now: a partition of it could not be opened.
fn cannot_tell(error: &ClientError, asked: &[String]) -> Option<String> {
    let topic = error.metadata.get("topic").filter(|_| error.is(reason::PARTITION_UNAVAILABLE))?;
    asked.contains(topic).then(|| topic.clone())
}

/// Waits for a task, for ever if there is none.
async fn task<T>(task: &mut Option<Task<T>>) -> T {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

async fn room(requests: Option<&mpsc::Sender<v1::ProduceStreamRequest>>) {
    let Some(requests) = requests else { return std::future::pending().await };
    // A closed channel means that the stream has ended; its answers will say so.
    if requests.reserve().await.is_err() {
        std::future::pending().await
    }
}

async fn next_answer(
    answers: Option<&mut Streaming<v1::ProduceStreamResponse>>,
) -> Result<v1::ProduceStreamResponse, ClientError> {
    let Some(answers) = answers else { return std::future::pending().await };
    answers.message().await?.ok_or_else(ended)
}
