//! A reader at the very end of a topic: whatever it sees must stay. It commits what it has read under a group's name,
//! and asks for what is committed.

use rand::RngExt as _;
use rimstone_proto::v1;

use super::{Client, Doors, Phase, answer::Failure, within};
use crate::{
    event::{Seen, What},
    value::recognise,
};

/// How long the server may hold an answer back for more records.
const WAIT_MS: u32 = 40;
/// So little that a partition takes many polls.
const POLL_BYTES: u32 = 16 << 10;

/// The group of a topic's reader.
pub fn group_of(topic: &str) -> String {
    format!("tail-{topic}")
}

struct Tail {
    client: Client,
    topic: String,
    compacted: bool,
    doors: Doors,
    /// Where it goes on, per partition.
    next: Vec<u64>,
    committed: Vec<u64>,
    session: u64,
}

/// Reads until the run is finished and it has read to the end.
pub async fn run(client: Client, topic: String) {
    let info = client.load.topics[&topic];
    let doors = Doors::to(&client.load.endpoint);
    let next = vec![0; info.partitions as usize];
    let committed = next.clone();
    let mut tail = Tail { client, topic, compacted: info.compacted, doors, next, committed, session: 1 };
    loop {
        let at_end = tail.poll().await;
        if at_end && tail.client.load.phase() == Phase::Finish && tail.commit().await {
            break;
        }
        if tail.client.random.random_bool(0.2) {
            tail.commit().await;
        }
        if tail.client.random.random_bool(0.05) {
            tail.ask().await;
        }
    }
    tail.client.note(What::Settled);
}

impl Tail {
    /// One long poll of all partitions; whether all of them are read to their ends.
    async fn poll(&mut self) -> bool {
        let partitions = (0..).zip(&self.next);
        let partitions = partitions.map(|(partition, offset)| v1::FetchPartition {
            partition,
            offset: *offset,
            max_bytes: POLL_BYTES,
        });
        let request = v1::FetchRequest {
            topic: self.topic.clone(),
            partitions: partitions.collect(),
            max_wait_ms: WAIT_MS,
            ..Default::default()
        };
        let answer = match within(self.doors.consume.fetch(request)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let failure = Failure::of_status(&status);
                if matches!(failure.reason.as_str(), "TOPIC_NOT_FOUND" | "PARTITION_NOT_FOUND") {
                    self.client.violation(3, format!("{}: {}", self.topic, failure.reason));
                }
                self.client.pause().await;
                return false;
            }
        };
        let mut at_end = true;
        let mut failed = false;
        for part in answer.partitions {
            match &part.error {
                Some(error) => {
                    self.failed(part.partition, &Failure::of_item(error));
                    (at_end, failed) = (false, true);
                }
                None => at_end &= self.took(part),
            }
        }
        if failed {
            self.client.pause().await;
        }
        at_end
    }

    fn took(&mut self, part: v1::PartitionRecords) -> bool {
        let next = &mut self.next[part.partition as usize];
        let (from, until) = (*next, part.next_offset);
        *next = until;
        let (start, end) = (
            part.ends.as_ref().map(|ends| ends.log_start_offset),
            part.ends.as_ref().map(|ends| ends.high_watermark),
        );
        if until != from {
            self.client.note(What::Polled {
                topic: self.topic.clone(),
                partition: part.partition,
                session: self.session,
                from,
                records: part.records.iter().map(|record| seen(record, self.compacted)).collect(),
                next: until,
                start,
                end,
            });
        }
        end.is_none_or(|end| until >= end)
    }

    fn failed(&mut self, partition: u32, failure: &Failure) {
        let from = self.next[partition as usize];
        let lost = failure.number("from_offset").zip(failure.number("until_offset"));
        let (topic, reason) = (self.topic.clone(), failure.reason.clone());
        self.client.note(What::PollFailed { topic, partition, from, reason, lost });
        let go_on = match failure.reason.as_str() {
            "OFFSET_OUT_OF_RANGE" => {
                let bounds = failure.number("log_start_offset").zip(failure.number("high_watermark"));
                let Some((start, end)) = bounds else { return };
                if from > end {
                    let what =
                        format!("{}/{partition} has been read up to {from}, and ends at {end}", self.topic);
                    self.client.violation(7, what);
                }
                // Never below what was read: nothing is polled twice in a session.
                start.max(from.min(end))
            }
            "DATA_DAMAGED" => {
                let Some((_, until)) = lost else { return };
                until.max(from)
            }
            _ => return,
        };
        self.next[partition as usize] = go_on;
        // The other partitions begin a session too: theirs goes on where it was.
        self.session += 1;
    }

    /// Commits what was read, where that is news; whether everything is committed.
    async fn commit(&mut self) -> bool {
        let mut all = true;
        for partition in 0..self.next.len() {
            let offset = self.next[partition];
            if offset <= self.committed[partition] {
                continue;
            }
            let group = group_of(&self.topic);
            let what = What::Commit {
                group: group.clone(),
                topic: self.topic.clone(),
                partition: partition as u32,
                offset,
            };
            let op = self.client.ask(what);
            let commit = v1::OffsetCommit {
                topic: self.topic.clone(),
                partition: partition as u32,
                offset: Some(offset),
                ..Default::default()
            };
            let request = v1::CommitOffsetsRequest { group, offsets: vec![commit], ..Default::default() };
            let outcome = match within(self.doors.groups.commit_offsets(request)).await {
                Ok(answer) => match answer.into_inner().results.into_iter().find_map(|result| result.error) {
                    None => Ok(()),
                    Some(error) => Err(Failure::of_item(&error)),
                },
                Err(status) => Err(Failure::of_status(&status)),
            };
            match outcome {
                Ok(()) => {
                    self.client.answer(op, What::Done);
                    self.committed[partition] = offset;
                }
                Err(failure) => {
                    self.client.answer(op, failure.told());
                    all = false;
                }
            }
        }
        all
    }

    async fn ask(&mut self) {
        let group = group_of(&self.topic);
        let op = self.client.ask(What::AskOffsets { group: group.clone() });
        let request = v1::FetchOffsetsRequest { group, partitions: Vec::new() };
        match within(self.doors.groups.fetch_offsets(request)).await {
            Ok(answer) => {
                let offsets = answer.into_inner().offsets.into_iter();
                let offsets = offsets.map(|offset| (offset.topic, offset.partition, offset.offset)).collect();
                self.client.answer(op, What::Offsets { offsets });
            }
            Err(status) if Failure::of_status(&status).reason == "GROUP_NOT_FOUND" => {
                self.client.answer(op, What::Offsets { offsets: Vec::new() });
            }
            Err(status) => self.client.answer(op, Failure::of_status(&status).told()),
        }
    }
}

/// A record as it was read.
pub fn seen(record: &v1::StoredRecord, compacted: bool) -> Seen {
    let headers = record.headers.iter().map(|header| (header.key.as_bytes(), header.value.as_deref()));
    (record.offset, recognise(record.key.as_deref(), record.value.as_deref(), headers, compacted))
}
