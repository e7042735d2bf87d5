//! The project's own client: a producer that does everything by itself, and members of a group.

use std::{collections::HashMap, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use rand::RngExt as _;
use rimstone_client::{
    CommitMode, Committing, Consumer, Event, OffsetCommit, Outcome, Producer, ProducerRecord, StartPolicy,
    TopicPartition,
};
use rimstone_proto::v1;
use rimstone_types::Offset;
use tokio::time::timeout;

use super::{Client, Doors, Phase, within};
use crate::{
    event::What,
    value::{NUMBER_HEADER, content, recognise},
};

/// The group of the members.
pub const GROUP: &str = "members";

/// Records on their way at once.
const OPEN: usize = 64;

/// Longer than any fault lasts.
const DEADLINE: Duration = Duration::from_secs(120);

/// How long a member may be away: longer than the server is.
const SESSION: Duration = Duration::from_secs(20);

/// How often a member looks up from its work.
const LOOK: Duration = Duration::from_millis(40);

fn producer(client: &Client) -> Producer {
    Producer::builder(&client.load.producing_endpoint)
        .linger(Duration::from_millis(1))
        .batch_bytes(2 << 10)
        .deadline(DEADLINE)
        .build()
        .expect("the driver knows where")
}

/// Sends records until the run drains, each once: the library sends again by itself. Ends when all are answered.
pub async fn produce(client: Client, topic: String, records: u64) {
    let mut client = client;
    let compacted = client.load.topics[&topic].compacted;
    let mut producer_now = producer(&client);
    let mut open = FuturesUnordered::new();
    let mut left = records;
    loop {
        let works = client.load.phase() == Phase::Work && left > 0;
        if !works && open.is_empty() || client.load.phase() == Phase::Finish {
            break;
        }
        if open.is_empty() {
            client.rests();
        }
        if works && open.len() < OPEN && client.take_turn() {
            left -= 1;
            let number = client.load.take_numbers(1);
            let sent = content(number, compacted);
            let record = match sent.value {
                Some(value) => ProducerRecord::new(value).key(sent.key),
                None => ProducerRecord::tombstone(sent.key),
            };
            let record = record.header(NUMBER_HEADER, sent.number);
            let what =
                What::Send { topic: topic.clone(), partition: None, stamp: None, first: number, count: 1 };
            let op = client.ask(what);
            match producer_now.send(&topic, record).await {
                Ok(pending) => open.push(async move { (op, pending.await) }),
                Err(error) => {
                    client.answer(op, What::Unknown { why: error.to_string() });
                    producer_now = producer(&client);
                    client.pause().await;
                }
            }
            if client.random.random_bool(0.9) {
                continue;
            }
        }
        match timeout(LOOK, open.next()).await {
            Ok(Some((op, Ok(delivery)))) => {
                let offset = delivery.offset.map(|offset| offset.get());
                let places = vec![(delivery.partition.0, offset)];
                client.answer(op, What::Sent { places, duplicate: delivery.duplicate });
                client.load.count_acknowledged(1);
            }
            Ok(Some((op, Err(error)))) => {
                let why = error.to_string();
                let what = match error.outcome {
                    Outcome::NotStored => What::Refused { why },
                    Outcome::Unknown => What::Unknown { why },
                };
                client.answer(op, what);
                producer_now = producer(&client);
                client.pause().await;
            }
            Ok(None) => client.pause().await,
            Err(_) => {}
        }
    }
    client.note(What::Settled);
}

fn consumer(client: &Client, topic: &str) -> Consumer {
    Consumer::builder(&client.load.endpoint, GROUP)
        .topics([topic])
        .start(StartPolicy::Earliest)
        .commit(CommitMode::ByHand)
        .member_id(&client.name)
        .session_timeout(SESSION)
        .prefetch(64 << 10, 200)
        .build()
        .expect("the driver knows where")
}

struct Member {
    client: Client,
    topic: String,
    sessions: u64,
    session: HashMap<TopicPartition, u64>,
    /// What was read and is not committed: the next offset.
    read: HashMap<TopicPartition, u64>,
}

/// Takes part in the group until the run is finished and everything of the topic is committed.
pub async fn member(client: Client, topic: String) {
    let mut doors = Doors::to(&client.load.endpoint);
    let mut consumer = consumer(&client, &topic);
    let mut member = Member { client, topic, sessions: 0, session: HashMap::new(), read: HashMap::new() };
    // Who asks for nothing else is to be settled all the same.
    let op = member.client.ask(What::AskOffsets { group: GROUP.to_owned() });
    member.client.answer(op, What::Unknown { why: "not asked".to_owned() });
    loop {
        match timeout(LOOK, consumer.next_event()).await {
            Ok(Ok(event)) => member.take(event).await,
            Ok(Err(_)) => member.client.pause().await,
            Err(_) if member.client.load.phase() == Phase::Finish => {
                member.commit_read(&consumer).await;
                if is_done(&mut doors, &member.topic).await {
                    break;
                }
            }
            Err(_) => {}
        }
    }
    member.client.note(What::Settled);
    // The server may be gone before it hears of this.
    drop(timeout(LOOK, consumer.close()).await);
}

/// Whether the group has committed everything.
async fn is_done(doors: &mut Doors, topic: &str) -> bool {
    let at = Some(v1::list_offsets_request::At::Latest(true));
    let request = v1::ListOffsetsRequest { topic: topic.to_owned(), at, ..Default::default() };
    let Ok(ends) = within(doors.admin.list_offsets(request)).await else { return false };
    let request = v1::FetchOffsetsRequest { group: GROUP.to_owned(), partitions: Vec::new() };
    let Ok(committed) = within(doors.groups.fetch_offsets(request)).await else { return false };
    let committed: HashMap<u32, u64> = committed
        .into_inner()
        .offsets
        .into_iter()
        .filter_map(|at| Some((at.partition, at.offset?)))
        .collect();
    let ends = ends.into_inner().offsets;
    ends.iter().all(|end| {
        let end_offset = end.offset.unwrap_or(0);
        committed.get(&end.partition).copied().unwrap_or(0) >= end_offset
    })
}

impl Member {
    async fn take(&mut self, event: Event) {
        match event {
            Event::Assigned(assigned) => {
                for assignment in assigned {
                    self.sessions += 1;
                    self.session.insert(assignment.at.clone(), self.sessions);
                    let Some(start) = assignment.start else { continue };
                    self.client.note(What::Assigned {
                        group: GROUP.to_owned(),
                        topic: self.topic.clone(),
                        partition: assignment.at.partition.0,
                        session: self.sessions,
                        committed: assignment.committed.map(|offset| offset.get()),
                        start: start.get(),
                    });
                }
            }
            Event::Record(record) => {
                let headers =
                    record.headers.iter().map(|header| (header.key.as_bytes(), header.value.as_deref()));
                let number = recognise(record.key.as_deref(), record.value.as_deref(), headers, false);
                let (partition, offset) = (record.partition.0, record.offset.get());
                self.client.note(What::Polled {
                    topic: self.topic.clone(),
                    partition,
                    session: self.session.get(&record.at()).copied().unwrap_or(0),
                    from: offset,
                    records: vec![(offset, number)],
                    next: offset + 1,
                    start: None,
                    end: None,
                });
                self.read.insert(record.at(), offset + 1);
                if self.client.random.random_bool(0.05) {
                    self.commit(&record.at(), record.commit()).await;
                }
            }
            Event::Stopping(stopping) => {
                self.read.retain(|at, _| !stopping.partitions().contains(at));
                stopping.confirm();
            }
            Event::Lost(lost) => self.read.retain(|at, _| !lost.contains(at)),
            Event::CaughtUp(_) => {}
        }
    }

    /// Commits everything that was read and is not committed.
    async fn commit_read(&mut self, consumer: &Consumer) {
        let read: Vec<_> = self.read.iter().map(|(at, offset)| (at.clone(), *offset)).collect();
        for (at, offset) in read {
            let offset = Offset::new(offset).expect("it was read, so it is an offset");
            let commit = OffsetCommit { at: at.clone(), offset: Some(offset), metadata: String::new() };
            self.commit(&at, consumer.commit_offsets(&[commit])).await;
        }
    }

    async fn commit(&mut self, at: &TopicPartition, committing: Committing) {
        let Some(&offset) = self.read.get(at) else { return };
        let (group, topic) = (GROUP.to_owned(), self.topic.clone());
        let op = self.client.ask(What::Commit { group, topic, partition: at.partition.0, offset });
        let what = match committing.await {
            Ok(()) => {
                self.read.remove(at);
                What::Done
            }
            // It may have been sent, and taken.
            Err(error) => What::Unknown { why: error.to_string() },
        };
        self.client.answer(op, what);
    }
}
