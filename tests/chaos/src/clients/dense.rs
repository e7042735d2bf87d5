//! A producer over the bare API: it numbers every record of each partition, keeps what is not answered, and sends it
//! again, in order, until it is. Now and then it sends a batch twice at once, takes a higher epoch while something is
//! open, and lets its older self speak.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use rand::RngExt as _;
use rimstone_proto::v1::{
    self, produce_stream_request::Kind as Request, produce_stream_response::Kind as Response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Client, Doors, Phase, answer::Failure, unix_ms, within};
use crate::{
    encode::batch,
    event::{Stamp, What},
};

/// Batches on their way at once.
const WINDOW: usize = 8;
/// Records in a batch.
const BATCH: u32 = 12;
/// Requests that wait for the connection: all of a window, and those that are sent twice.
const OUTGOING: usize = 4 * WINDOW;

/// What a producer writes to, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its topic.
    pub topic: String,
    /// Named producers keep their id, and take higher epochs.
    pub name: Option<String>,
    /// By a stream instead of single calls.
    pub stream: bool,
    /// After so many batches it ends.
    pub batches: u64,
}

#[derive(Debug, Clone)]
struct Open {
    partition: u32,
    stamp: Stamp,
    first: u64,
    count: u32,
    bytes: Bytes,
}

type Outcome = Result<v1::PartitionAppend, Failure>;

/// A stream of requests and their answers.
struct Stream {
    requests: mpsc::Sender<v1::ProduceStreamRequest>,
    answers: Streaming<v1::ProduceStreamResponse>,
}

struct Dense {
    client: Client,
    plan: Plan,
    doors: Doors,
    stream: Option<Stream>,
    producer: (u64, u32),
    next: Vec<u32>,
    open: VecDeque<Open>,
    /// Of each partition, what was acknowledged last.
    last: BTreeMap<u32, Open>,
    left: u64,
    compacted: bool,
}

/// Works until nothing is open and there is nothing more to send, or the run drains.
pub async fn run(client: Client, plan: Plan) {
    let topic = client.load.topics[&plan.topic];
    let doors = Doors::to(&client.load.producing_endpoint);
    let next = vec![0; topic.partitions as usize];
    let (stream, open) = (None, VecDeque::new());
    let left = plan.batches;
    let compacted = topic.compacted;
    let last = BTreeMap::new();
    let mut dense =
        Dense { client, plan, doors, stream, producer: (0, 0), next, open, last, left, compacted };
    if dense.begin().await {
        dense.work().await;
    }
    dense.client.note(What::Settled);
}

impl Dense {
    /// Asks for an id, or a higher epoch, until there is one; false if the run ends before.
    async fn begin(&mut self) -> bool {
        while self.client.load.phase() < Phase::Finish {
            let name = self.plan.name.clone().unwrap_or_default();
            let request = v1::InitProducerRequest { name, topics: vec![self.plan.topic.clone()] };
            if let Ok(answer) = within(self.doors.produce.init_producer(request)).await {
                let answer = answer.into_inner();
                let before = self.producer;
                self.producer = (answer.producer_id, answer.producer_epoch);
                if before.0 == self.producer.0 && before.1 >= self.producer.1 {
                    self.client.violation(4, format!("epoch {} after {}", self.producer.1, before.1));
                }
                self.open.clear();
                self.last.clear();
                self.next.fill(0);
                for state in answer.partitions {
                    let Some(at) = state.partition else { continue };
                    self.next[at.partition as usize] = (state.last_sequence + 1) & 0x7fff_ffff;
                }
                return true;
            }
            self.client.pause().await;
        }
        false
    }

    async fn work(&mut self) {
        loop {
            let phase = self.client.load.phase();
            let is_done = self.open.is_empty() && (phase == Phase::Drain || self.left == 0);
            if phase == Phase::Finish || is_done {
                break;
            }
            if self.open.is_empty() {
                self.client.rests();
            }
            if phase == Phase::Work && self.client.has_turn() {
                if self.plan.name.is_some() && self.client.random.random_bool(0.01) && !self.reborn().await {
                    break;
                }
                if self.open.is_empty() && self.client.random.random_bool(0.01) && !self.slept().await {
                    break;
                }
                self.fill();
            }
            let window: Vec<_> = self.open.iter().take(WINDOW).cloned().collect();
            let outcomes =
                if self.plan.stream { self.by_stream(window).await } else { self.by_calls(window).await };
            if !self.take(outcomes).await {
                break;
            }
        }
    }

    /// A higher epoch; then the older self sends once more, which must be refused. False if the run ends before.
    async fn reborn(&mut self) -> bool {
        let older = self.producer;
        let sequences = self.next.clone();
        if !self.begin().await {
            return false;
        }
        let partition = self.client.random.random_range(0..sequences.len());
        let sequence = sequences[partition];
        let stamp = Stamp { producer: older.0, epoch: older.1, sequence, by_request: false };
        let zombie = self.new_batch(partition as u32, stamp);
        let op = self.client.ask(self.told(&zombie));
        let outcome = append(self.doors.clone(), request(&self.plan.topic, &zombie)).await;
        match outcome {
            Ok(append) => {
                self.client.violation(4, format!("an older epoch was taken: {zombie:?}: {append:?}"));
                self.client.answer(op, sent(&zombie, &append));
            }
            Err(failure) => self.client.answer(op, failure.told()),
        }
        true
    }

    /// Says nothing for a while, in which others write, segments roll and are compacted, and the server may be started
    /// again. Then what was acknowledged last comes again: it must be known. False if the run ends before.
    async fn slept(&mut self) -> bool {
        for _ in 0..self.client.random.random_range(10..80) {
            if self.client.load.phase() == Phase::Work {
                self.client.pause().await;
            }
        }
        let again: Vec<Open> = self.last.values().cloned().collect();
        for (open, outcome) in self.by_calls(again).await {
            let Err(failure) = outcome else { continue };
            if matches!(failure.reason.as_str(), "UNKNOWN_PRODUCER" | "SEQUENCE_GAP" | "NUMBER_REUSED") {
                let what = format!("{} for {:?}, which was acknowledged", failure.reason, open.stamp);
                self.client.violation(4, what);
                return self.begin().await;
            }
        }
        true
    }

    fn new_batch(&mut self, partition: u32, stamp: Stamp) -> Open {
        let count = self.client.random.random_range(1..=BATCH);
        let first = self.client.load.take_numbers(count);
        let bytes = batch(first, count, self.compacted, Some(stamp), unix_ms());
        Open { partition, stamp, first, count, bytes }
    }

    /// New batches until the window is full.
    fn fill(&mut self) {
        let window = self.client.random.random_range(1..=WINDOW);
        while self.open.len() < window && self.left > 0 && self.client.take_turn() {
            self.left -= 1;
            let partition = self.client.random.random_range(0..self.next.len());
            let (producer, epoch) = self.producer;
            let stamp = Stamp { producer, epoch, sequence: self.next[partition], by_request: false };
            let new = self.new_batch(partition as u32, stamp);
            self.next[partition] = (self.next[partition] + new.count) & 0x7fff_ffff;
            self.open.push_back(new);
        }
    }

    fn told(&self, open: &Open) -> What {
        What::Send {
            topic: self.plan.topic.clone(),
            partition: Some(open.partition),
            stamp: Some(open.stamp),
            first: open.first,
            count: open.count,
        }
    }

    /// Those of a window, some of them twice: nobody knows which comes first.
    fn doubled(&mut self, window: Vec<Open>) -> Vec<Open> {
        let mut all = Vec::new();
        for open in window {
            if self.client.random.random_bool(0.15) {
                all.push(open.clone());
            }
            all.push(open);
        }
        all
    }

    async fn by_calls(&mut self, window: Vec<Open>) -> Vec<(Open, Outcome)> {
        let mut calls = FuturesUnordered::new();
        for open in self.doubled(window) {
            let op = self.client.ask(self.told(&open));
            let request = request(&self.plan.topic, &open);
            let doors = self.doors.clone();
            calls.push(async move { (op, open, append(doors, request).await) });
        }
        let mut outcomes = Vec::new();
        while let Some((op, open, outcome)) = calls.next().await {
            self.record(op, &open, &outcome);
            outcomes.push((open, outcome));
        }
        outcomes
    }

    fn record(&self, op: u64, open: &Open, outcome: &Outcome) {
        match outcome {
            Ok(append) => self.client.answer(op, sent(open, append)),
            Err(failure) => self.client.answer(op, failure.told()),
        }
    }

    async fn by_stream(&mut self, window: Vec<Open>) -> Vec<(Open, Outcome)> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => match self.open_stream().await {
                Ok(stream) => stream,
                Err(_) => {
                    self.client.pause().await;
                    return Vec::new();
                }
            },
        };
        let mut asked = VecDeque::new();
        for open in self.doubled(window) {
            let op = self.client.ask(self.told(&open));
            let request = Some(request(&self.plan.topic, &open));
            let append = v1::ProduceStreamAppend { correlation_id: op, request };
            // If it is closed, that is seen when the answer is waited for.
            drop(
                stream.requests.send(v1::ProduceStreamRequest { kind: Some(Request::Append(append)) }).await,
            );
            asked.push_back((op, open));
        }
        let mut outcomes = Vec::new();
        let mut broken = None;
        for (op, open) in asked {
            let outcome = match &broken {
                Some(failure) => Err(Failure::clone(failure)),
                None => match within(stream.answers.message()).await {
                    Ok(Some(answer)) => self.of_stream(answer, op),
                    Ok(None) => Err(Failure::lost("the server has ended the stream")),
                    Err(status) => Err(Failure::lost(&format!("the stream broke: {status}"))),
                },
            };
            if let Err(failure) = &outcome
                && failure.reason.is_empty()
            {
                broken = Some(failure.clone());
            }
            self.record(op, &open, &outcome);
            outcomes.push((open, outcome));
        }
        self.stream = broken.is_none().then_some(stream);
        outcomes
    }

    fn of_stream(&self, answer: v1::ProduceStreamResponse, op: u64) -> Outcome {
        let Some(Response::Ack(ack)) = answer.kind else {
            return Err(Failure::lost("an answer of another kind"));
        };
        if ack.correlation_id != op {
            self.client.violation(4, format!("answer {} where {op} is due", ack.correlation_id));
        }
        match (ack.error, ack.response) {
            (Some(error), _) => Err(Failure::of_item(&error)),
            (None, Some(response)) => of_response(response),
            (None, None) => Err(Failure::lost("an empty answer")),
        }
    }

    async fn open_stream(&mut self) -> Result<Stream, Failure> {
        let (requests, receiver) = mpsc::channel(OUTGOING);
        let open = v1::ProduceStreamOpen { producer_id: Some(self.producer.0), ..Default::default() };
        let open = v1::ProduceStreamRequest { kind: Some(Request::Open(open)) };
        requests.send(open).await.map_err(|_| Failure::lost("a channel that is new is open"))?;
        let call = self.doors.produce.produce_stream(ReceiverStream::new(receiver));
        let mut answers = within(call).await?.into_inner();
        within(answers.message()).await?;
        Ok(Stream { requests, answers })
    }

    /// Takes what is answered from what is open; false if the run ends.
    async fn take(&mut self, outcomes: Vec<(Open, Outcome)>) -> bool {
        let mut failed = outcomes.is_empty();
        // As it was when they were sent: behind the oldest of a partition a refusal may be due to those before it.
        let mut partitions = BTreeSet::new();
        let oldest: Vec<u64> = self
            .open
            .iter()
            .filter(|open| partitions.insert(open.partition))
            .map(|open| open.first)
            .collect();
        for (open, outcome) in outcomes {
            match outcome {
                Ok(_) => {
                    let before = self.open.len();
                    self.open.retain(|other| other.first != open.first);
                    if self.open.len() < before {
                        self.client.load.count_acknowledged(open.count as usize);
                        self.last.insert(open.partition, open);
                    }
                }
                Err(failure) => {
                    failed = true;
                    let is_oldest = oldest.contains(&open.first);
                    if self.is_lost(&open, &failure, is_oldest) && !self.begin().await {
                        return false;
                    }
                }
            }
        }
        if failed {
            self.client.pause().await;
        }
        true
    }

    /// Whether the server has forgotten what it must not forget; then the producer begins anew.
    fn is_lost(&self, open: &Open, failure: &Failure, is_oldest: bool) -> bool {
        let current = (open.stamp.producer, open.stamp.epoch) == self.producer;
        match failure.reason.as_str() {
            // Whoever is before it may not have been taken: only for the oldest there is none.
            "UNKNOWN_PRODUCER" | "SEQUENCE_GAP" if is_oldest && current => {
                let what = format!("{} for {:?}: {}", failure.reason, open.stamp, failure.message);
                self.client.violation(4, what);
                true
            }
            "PRODUCER_FENCED" | "NUMBER_REUSED" | "NUMBER_TOO_OLD" | "NUMBERING_MIXED" if current => {
                let what = format!("{} for {:?}: {}", failure.reason, open.stamp, failure.message);
                self.client.violation(4, what);
                true
            }
            "TOPIC_NOT_FOUND" | "PARTITION_NOT_FOUND" => {
                self.client.violation(3, format!("{}: {}", self.plan.topic, failure.reason));
                false
            }
            _ => false,
        }
    }
}

fn request(topic: &str, open: &Open) -> v1::ProduceRequest {
    let batch = v1::EncodedBatch { data: open.bytes.clone(), append_time_ms: 0 };
    let batch = v1::PartitionBatch { partition: open.partition, batch: Some(batch), expected_end: None };
    v1::ProduceRequest { topic: topic.to_owned(), batches: vec![batch], ..Default::default() }
}

async fn append(mut doors: Doors, request: v1::ProduceRequest) -> Outcome {
    of_response(within(doors.produce.produce(request)).await?.into_inner())
}

fn of_response(mut response: v1::ProduceResponse) -> Outcome {
    let Some(append) = response.appends.pop() else {
        return Err(Failure::lost("an answer without an append"));
    };
    match &append.error {
        Some(error) => Err(Failure::of_item(error)),
        None => Ok(append),
    }
}

fn sent(open: &Open, append: &v1::PartitionAppend) -> What {
    let offset = |index| append.base_offset.map(|base| base + u64::from(index));
    let places = (0..open.count).map(|index| (open.partition, offset(index))).collect();
    What::Sent { places, duplicate: append.duplicate }
}
