//! A producer of plain records: the server partitions them, the producer numbers its requests and sends each until it
//! is answered as a whole. What a program with bare stubs does.

use futures::future::join;
use rand::RngExt as _;
use rimstone_proto::v1;

use super::{Client, Doors, Phase, answer::Failure, unix_ms, within};
use crate::{
    event::{Stamp, What},
    value::{NUMBER_HEADER, content},
};

/// Records in a request.
const RECORDS: u32 = 12;

#[derive(Debug, Clone)]
struct Open {
    stamp: Stamp,
    first: u64,
    count: u32,
    request: v1::ProduceRequest,
}

struct Requests {
    client: Client,
    topic: String,
    doors: Doors,
    producer: (u64, u32),
    next: u32,
    last: Option<Open>,
    left: u64,
}

/// Works until the run drains and nothing is open, or after so many requests.
pub async fn run(client: Client, topic: String, requests: u64) {
    let doors = Doors::to(&client.load.producing_endpoint);
    let mut requests =
        Requests { client, topic, doors, producer: (0, 0), next: 0, last: None, left: requests };
    if requests.begin().await {
        requests.work().await;
    }
    requests.client.note(What::Settled);
}

impl Requests {
    async fn begin(&mut self) -> bool {
        while self.client.load.phase() < Phase::Finish {
            let request = v1::InitProducerRequest { name: String::new(), topics: Vec::new() };
            if let Ok(answer) = within(self.doors.produce.init_producer(request)).await {
                let answer = answer.into_inner();
                self.producer = (answer.producer_id, answer.producer_epoch);
                (self.next, self.last) = (0, None);
                return true;
            }
            self.client.pause().await;
        }
        false
    }

    async fn work(&mut self) {
        while self.client.load.phase() == Phase::Work {
            if self.left == 0 {
                return;
            }
            if !self.client.take_turn() {
                self.client.rests();
                self.client.pause().await;
                continue;
            }
            self.left -= 1;
            let open = self.new_request();
            if !self.until_answered(&open).await {
                return;
            }
            self.last = Some(open);
        }
    }

    fn new_request(&mut self) -> Open {
        let count = self.client.random.random_range(1..=RECORDS);
        let first = self.client.load.take_numbers(count);
        let compacted = self.client.load.topics[&self.topic].compacted;
        let (producer, epoch) = self.producer;
        let stamp = Stamp { producer, epoch, sequence: self.next, by_request: true };
        self.next += 1;
        let record = |number| {
            let sent = content(number, compacted);
            let header = v1::Header { key: NUMBER_HEADER.to_owned(), value: Some(sent.number) };
            v1::Record {
                key: Some(sent.key),
                value: sent.value,
                headers: vec![header],
                create_time_ms: Some(unix_ms()),
                partition: None,
            }
        };
        let number =
            v1::RequestNumber { producer_id: producer, producer_epoch: epoch, number: stamp.sequence };
        let request = v1::ProduceRequest {
            topic: self.topic.clone(),
            records: (first..first + u64::from(count)).map(record).collect(),
            request_number: Some(number),
            ..Default::default()
        };
        Open { stamp, first, count, request }
    }

    /// Sends a request until every part of it is acknowledged; false if the run ends before.
    async fn until_answered(&mut self, open: &Open) -> bool {
        loop {
            let outcome = if self.client.random.random_bool(0.1) {
                // Twice at once.
                let (one, other) = join(self.attempt(open), self.attempt(open)).await;
                one.or(other)
            } else {
                self.attempt(open).await
            };
            let Err(failure) = outcome else {
                self.client.load.count_acknowledged(open.count as usize);
                return true;
            };
            if self.client.load.phase() == Phase::Finish {
                return false;
            }
            match failure.reason.as_str() {
                "RESEND_FIRST" => match (failure.number("expected_number"), &self.last) {
                    (Some(expected), Some(last)) if expected == u64::from(last.stamp.sequence) => {
                        let last = last.clone();
                        drop(self.attempt(&last).await);
                    }
                    // Where a partition refuses writes its numbers are not known, and an older request is asked for:
                    // until the server is started again. Whoever waits for ever is seen by rule 10.
                    (Some(expected), _) if expected <= u64::from(open.stamp.sequence) => {}
                    (expected, _) => {
                        let what =
                            format!("request {} is open, {expected:?} is asked for", open.stamp.sequence);
                        return self.lost(&what).await;
                    }
                },
                "UNKNOWN_PRODUCER" | "SEQUENCE_GAP" | "NUMBER_REUSED" | "NUMBER_TOO_OLD"
                | "PRODUCER_FENCED" => {
                    let what = format!("{} for {:?}: {}", failure.reason, open.stamp, failure.message);
                    return self.lost(&what).await;
                }
                _ => {}
            }
            self.client.pause().await;
        }
    }

    /// The server has forgotten what it must not forget; the producer begins anew.
    async fn lost(&mut self, what: &str) -> bool {
        self.client.violation(4, what);
        self.begin().await
    }

    async fn attempt(&self, open: &Open) -> Result<(), Failure> {
        let (topic, stamp) = (self.topic.clone(), Some(open.stamp));
        let what = What::Send { topic, partition: None, stamp, first: open.first, count: open.count };
        let op = self.client.ask(what);
        let mut doors = self.doors.clone();
        let outcome = within(doors.produce.produce(open.request.clone())).await;
        let response = match outcome {
            Ok(response) => response.into_inner(),
            Err(status) => {
                let failure = Failure::of_status(&status);
                self.client.answer(op, failure.told());
                return Err(failure);
            }
        };
        if let Some(error) = response.appends.iter().find_map(|append| append.error.as_ref()) {
            let failure = Failure::of_item(error);
            // Another part of it may be stored.
            self.client.answer(op, What::Unknown { why: format!("in part: {}", failure.reason) });
            return Err(failure);
        }
        let places = response.records.iter().map(|record| (record.partition, record.offset)).collect();
        let duplicate = response.appends.iter().any(|append| append.duplicate);
        self.client.answer(op, What::Sent { places, duplicate });
        Ok(())
    }
}
