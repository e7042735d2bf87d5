//! Group sessions of the fake server: one kind of assignment, sticky, with partitions that move when their old
//! owner confirms; and losses on purpose.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rimstone_proto::v1::{
    self, consume_request::Kind as RequestKind, consume_response::Kind as ResponseKind,
};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Code, Status, Streaming};

use super::{Fake, World, doors::message, item, status};
use crate::error::reason;

/// How often a session looks at the world.
const TICK: Duration = Duration::from_millis(2);

pub(crate) type Place = (String, u32);

/// What a member has said, for tests to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Joined { member: String, epoch: u32, owned: BTreeMap<Place, u64> },
    Heartbeat { member: String, progress: bool },
    Stopped { member: String, places: Vec<Place> },
    Committed { member: String, place: Place, offset: u64 },
    Left { member: String },
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) epoch: u32,
    topics: Vec<String>,
    pub(crate) owned: BTreeSet<Place>,
    pub(crate) stopping: BTreeSet<Place>,
    target: BTreeSet<Place>,
    /// The number of its present stream.
    stream: u64,
    heard: Instant,
    timeout: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) epoch: u32,
    pub(crate) members: BTreeMap<String, Member>,
    pub(crate) offsets: BTreeMap<Place, u64>,
    pub(crate) said: Vec<Said>,
    /// Why members are none any more.
    gone: BTreeMap<String, &'static str>,
}

/// What goes wrong in sessions: one time in so many; 0 never.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SessionFaults {
    /// The stream breaks before a request is looked at, or instead of an answer.
    pub(crate) cut: u32,
    /// A commit is taken, and the stream breaks instead of answering.
    pub(crate) lose_commit: u32,
    /// A commit is answered `COORDINATOR_LOADING`.
    pub(crate) refuse_commit: u32,
    /// Nothing is read and nothing is said, for as long as this is set.
    pub(crate) silent: bool,
    /// No join is looked at, for as long as this is set.
    pub(crate) hold_joins: bool,
    /// Nobody is told to stop anything, for as long as this is set.
    pub(crate) hold_stops: bool,
}

impl Group {
    /// Who holds a partition, having it or giving it back.
    fn holder(&self, place: &Place) -> Option<&String> {
        let holds = |member: &Member| member.owned.contains(place) || member.stopping.contains(place);
        self.members.iter().find(|(_, member)| holds(member)).map(|(id, _)| id)
    }

    /// A new target: even shares, and whoever has something keeps it as far as that goes.
    fn rebalance(&mut self, topics: &BTreeMap<String, u32>) {
        self.epoch += 1;
        let subscribed: BTreeSet<_> =
            self.members.values().flat_map(|member| member.topics.clone()).collect();
        let counts = topics.iter().filter(|(name, _)| subscribed.contains(*name));
        let all: Vec<Place> =
            counts.flat_map(|(name, count)| (0..*count).map(move |index| (name.clone(), index))).collect();
        let (share, mut extra) = match self.members.len() {
            0 => return,
            members => (all.len() / members, all.len() % members),
        };
        let mut free: BTreeSet<Place> = all.into_iter().collect();
        for member in self.members.values_mut() {
            let more = usize::from(extra > 0 && member.owned.len() > share);
            extra -= more;
            member.target = member
                .owned
                .iter()
                .filter(|place| free.contains(*place))
                .take(share + more)
                .cloned()
                .collect();
            free.retain(|place| !member.target.contains(place));
        }
        for member in self.members.values_mut() {
            while member.target.len() < share
                || (extra > 0 && member.target.len() == share && !free.is_empty())
            {
                extra -= usize::from(member.target.len() == share);
                let Some(place) = free.pop_first() else { break };
                member.target.insert(place);
            }
        }
        self.settle();
    }

    /// Moves members towards their targets.
    fn settle(&mut self) {
        for member in self.members.values_mut() {
            let leave: Vec<_> = member.owned.difference(&member.target).cloned().collect();
            for place in leave {
                member.owned.remove(&place);
                member.stopping.insert(place);
            }
            if member.stopping.is_empty() {
                member.epoch = self.epoch;
            }
        }
        let ids: Vec<_> = self.members.keys().cloned().collect();
        for id in ids {
            let wanted: Vec<_> = self.members[&id].target.iter().cloned().collect();
            for place in wanted {
                if self.holder(&place).is_none() {
                    self.members.get_mut(&id).expect("the id is one of its members").owned.insert(place);
                }
            }
        }
    }

    /// Ends a membership.
    pub(crate) fn remove(&mut self, member: &str, why: &'static str, topics: &BTreeMap<String, u32>) {
        if self.members.remove(member).is_some() {
            self.gone.insert(member.to_owned(), why);
            self.rebalance(topics);
        }
    }
}

impl World {
    pub(crate) fn counts(&self) -> BTreeMap<String, u32> {
        self.topics.iter().map(|(name, topic)| (name.clone(), topic.len() as u32)).collect()
    }

    pub(crate) fn group(&mut self, name: &str) -> &mut Group {
        self.groups.entry(name.to_owned()).or_default()
    }

    pub(crate) fn fence(&mut self, group: &str, member: &str, why: &'static str) {
        let topics = self.counts();
        self.group(group).remove(member, why, &topics);
    }

    fn expire(&mut self, group: &str) {
        let topics = self.counts();
        let group = self.group(group);
        let late = |member: &Member| member.heard.elapsed() > member.timeout;
        let late: Vec<_> =
            group.members.iter().filter(|(_, member)| late(member)).map(|(id, _)| id.clone()).collect();
        for id in late {
            group.remove(&id, "session_timeout", &topics);
        }
    }
}

/// Where a session is in one partition.
#[derive(Debug, Default)]
struct Cursor {
    next: Option<u64>,
    seek_id: u64,
    paused: bool,
    stopping: bool,
}

/// One stream of one member.
pub(super) struct Session {
    fake: Fake,
    group: String,
    member: String,
    stream: u64,
    start: v1::StartPolicy,
    cursors: BTreeMap<Place, Cursor>,
    bytes: i64,
    records: i64,
    window: (i64, i64),
    answers: mpsc::Sender<Result<v1::ConsumeResponse, Status>>,
}

impl Session {
    /// Joins; the rest of the session runs by itself.
    pub(super) async fn begin(
        fake: Fake,
        mut requests: Streaming<v1::ConsumeRequest>,
        answers: mpsc::Sender<Result<v1::ConsumeResponse, Status>>,
    ) -> Result<(), Status> {
        let Some(RequestKind::Join(join)) = requests.message().await?.and_then(|first| first.kind) else {
            return Err(Status::invalid_argument("join first"));
        };
        while fake.world.lock().session_faults.silent {
            tokio::time::sleep(TICK).await;
        }
        if fake.world.lock().session_faults.hold_joins {
            fake.world.lock().joins_held += 1;
            while fake.world.lock().session_faults.hold_joins {
                tokio::time::sleep(TICK).await;
            }
        }
        let (session, joined) = Self::join(fake, join, answers)?;
        tokio::spawn(async move {
            let mut session = session;
            if session.say(ResponseKind::Joined(joined)).await.is_ok()
                && let Err(status) = session.run(&mut requests).await
            {
                let _ = session.answers.send(Err(status)).await;
            }
        });
        Ok(())
    }

    fn join(
        fake: Fake,
        join: v1::ConsumeJoin,
        answers: mpsc::Sender<Result<v1::ConsumeResponse, Status>>,
    ) -> Result<(Self, v1::ConsumeJoined), Status> {
        let credit = join.credit.expect("our consumer gives credit");
        let claimed: BTreeMap<Place, u64> =
            join.owned.iter().map(|at| ((at.topic.clone(), at.partition), at.offset)).collect();
        let mut world = fake.world.lock();
        let cut = world.session_faults.cut;
        if world.chance(cut) {
            return Err(Status::unavailable("cut while joining"));
        }
        world.next_id += 1;
        let (stream, topics) = (world.next_id, world.counts());
        world.expire(&join.group);
        let group = world.group(&join.group);
        group.said.push(Said::Joined {
            member: join.member_id.clone(),
            epoch: join.member_epoch,
            owned: claimed.clone(),
        });
        let known = group.members.get(&join.member_id);
        let resumed = join.member_epoch > 0;
        if resumed {
            let fits = known.is_some_and(|member| {
                let held = |place: &Place| member.owned.contains(place) || member.stopping.contains(place);
                join.member_epoch <= member.epoch && claimed.keys().all(held)
            });
            if !fits {
                let why = group.gone.get(&join.member_id).copied().unwrap_or("removed");
                return Err(fenced(why));
            }
            // What it does not claim it does not read: a stop whose confirmation was lost.
            let member = group.members.get_mut(&join.member_id).expect("it has joined");
            member.stream = stream;
            member.heard = Instant::now();
        } else {
            group.members.remove(&join.member_id);
            let member = Member {
                epoch: 0,
                topics: join.topics.clone(),
                owned: BTreeSet::new(),
                stopping: BTreeSet::new(),
                target: BTreeSet::new(),
                stream,
                heard: Instant::now(),
                timeout: fake_timeout(&join),
            };
            group.members.insert(join.member_id.clone(), member);
            group.rebalance(&topics);
        }
        let timeout = fake_timeout(&join).as_millis() as u32;
        let joined = v1::ConsumeJoined {
            member_id: join.member_id.clone(),
            member_epoch: group.members[&join.member_id].epoch,
            session_timeout_ms: timeout,
            heartbeat_interval_ms: timeout / 3,
            max_poll_interval_ms: join.max_poll_interval_ms,
            resumed,
        };
        let cursors = claimed
            .into_iter()
            .map(|(place, next)| (place, Cursor { next: Some(next), ..Cursor::default() }));
        let session = Self {
            group: join.group.clone(),
            member: join.member_id.clone(),
            stream,
            start: join.start(),
            cursors: cursors.collect(),
            bytes: credit.bytes as i64,
            records: credit.records as i64,
            window: (credit.bytes as i64, credit.records as i64),
            answers,
            fake: fake.clone(),
        };
        drop(world);
        Ok((session, joined))
    }

    async fn say(&self, kind: ResponseKind) -> Result<(), Status> {
        let answer = v1::ConsumeResponse { kind: Some(kind) };
        self.answers.send(Ok(answer)).await.map_err(|_| Status::cancelled("the client has gone"))
    }

    fn cut(&self) -> Result<(), Status> {
        let mut world = self.fake.world.lock();
        let cut = world.session_faults.cut;
        if world.chance(cut) { Err(Status::unavailable("cut on purpose")) } else { Ok(()) }
    }

    async fn run(&mut self, requests: &mut Streaming<v1::ConsumeRequest>) -> Result<(), Status> {
        loop {
            while self.fake.world.lock().session_faults.silent {
                tokio::time::sleep(TICK).await;
                self.fake.world.lock().expire(&self.group);
            }
            match tokio::time::timeout(TICK, requests.message()).await {
                Ok(Ok(Some(request))) => {
                    self.cut()?;
                    if self.hear(request.kind.expect("our consumer says what it wants")).await? {
                        return Ok(());
                    }
                }
                Ok(_) => return Ok(()),
                Err(_) => {}
            }
            self.fake.world.lock().expire(&self.group);
            self.push_changes().await?;
            self.deliver().await?;
        }
    }

    /// Answers whether the member has left.
    async fn hear(&mut self, kind: RequestKind) -> Result<bool, Status> {
        let member = self.member.clone();
        {
            let mut world = self.fake.world.lock();
            let group = world.group(&self.group);
            let Some(present) =
                group.members.get_mut(&member).filter(|present| present.stream == self.stream)
            else {
                return Err(fenced(group.gone.get(&member).copied().unwrap_or("replaced")));
            };
            present.heard = Instant::now();
        }
        match kind {
            RequestKind::Join(_) => return Err(Status::invalid_argument("joined already")),
            RequestKind::Credit(credit) => {
                self.bytes += credit.bytes as i64;
                self.records += credit.records as i64;
                assert!(
                    self.bytes <= self.window.0.max(1 << 20) && self.records <= self.window.1.max(1 << 20)
                );
            }
            RequestKind::Heartbeat(heartbeat) => {
                let epoch = {
                    let mut world = self.fake.world.lock();
                    let group = world.group(&self.group);
                    group.said.push(Said::Heartbeat { member: member.clone(), progress: heartbeat.progress });
                    group.members[&member].epoch
                };
                self.say(ResponseKind::Alive(v1::ConsumeAlive { member_epoch: epoch })).await?;
            }
            RequestKind::Commit(commit) => {
                let answer = self.commit(commit)?;
                self.say(ResponseKind::Committed(answer)).await?;
            }
            RequestKind::Stopped(stopped) => self.stopped(stopped)?,
            RequestKind::Seek(seek) => {
                let Some(v1::consume_seek::To::Offset(offset)) = seek.to else {
                    return Err(Status::invalid_argument("our client seeks by offset"));
                };
                if let Some(cursor) = self.cursors.get_mut(&(seek.topic, seek.partition)) {
                    cursor.next = Some(offset);
                    cursor.seek_id = seek.seek_id;
                }
            }
            RequestKind::Pause(pause) => self.set_paused(pause.partitions, true),
            RequestKind::Resume(resume) => self.set_paused(resume.partitions, false),
            RequestKind::Leave(_) => {
                let mut world = self.fake.world.lock();
                let topics = world.counts();
                let group = world.group(&self.group);
                group.said.push(Said::Left { member: member.clone() });
                group.remove(&member, "removed", &topics);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn set_paused(&mut self, places: Vec<v1::TopicPartition>, paused: bool) {
        for place in places {
            if let Some(cursor) = self.cursors.get_mut(&(place.topic, place.partition)) {
                cursor.paused = paused;
            }
        }
    }

    fn commit(&self, commit: v1::ConsumeCommit) -> Result<v1::ConsumeCommitted, Status> {
        let mut world = self.fake.world.lock();
        let faults = world.session_faults;
        let (refused, lost) = (world.chance(faults.refuse_commit), world.chance(faults.lose_commit));
        let group = world.group(&self.group);
        let mut results = Vec::new();
        for offset in commit.offsets {
            let place = (offset.topic.clone(), offset.partition);
            let error = if refused {
                Some(item(Code::Unavailable, reason::COORDINATOR_LOADING, &[]))
            } else if group.holder(&place) != Some(&self.member) {
                Some(item(Code::FailedPrecondition, reason::PARTITION_NOT_OWNED, &[]))
            } else {
                group
                    .offsets
                    .insert(place.clone(), offset.offset.expect("our consumer takes no commit away"));
                let (member, offset) =
                    (self.member.clone(), offset.offset.expect("our consumer takes no commit away"));
                group.said.push(Said::Committed { member, place, offset });
                None
            };
            let (topic, partition) = (offset.topic, offset.partition);
            results.push(v1::OffsetCommitResult { topic, partition, error, ..Default::default() });
        }
        if lost {
            return Err(Status::unavailable("the answer to a commit is lost"));
        }
        Ok(v1::ConsumeCommitted { correlation_id: commit.correlation_id, results })
    }

    fn stopped(&mut self, stopped: v1::ConsumeStopped) -> Result<(), Status> {
        let mut world = self.fake.world.lock();
        let group = world.group(&self.group);
        let places: Vec<Place> =
            stopped.partitions.into_iter().map(|place| (place.topic, place.partition)).collect();
        let member = group.members.get_mut(&self.member).expect("a session has its member");
        for place in &places {
            let asked_here = self.cursors.get(place).is_some_and(|cursor| cursor.stopping);
            if !asked_here || !member.stopping.remove(place) {
                return Err(Status::failed_precondition("that was not asked to stop"));
            }
            self.cursors.remove(place);
        }
        group.said.push(Said::Stopped { member: self.member.clone(), places });
        group.settle();
        Ok(())
    }

    /// Tells what has changed between what the member knows and what is.
    async fn push_changes(&mut self) -> Result<(), Status> {
        let (epoch, stops, starts) = {
            let mut world = self.fake.world.lock();
            let hold_stops = world.session_faults.hold_stops;
            let group = world.group(&self.group);
            let present = group.members.get(&self.member).filter(|present| present.stream == self.stream);
            let Some(member) = present else {
                return Err(fenced(group.gone.get(&self.member).copied().unwrap_or("replaced")));
            };
            let told = |place: &&Place| self.cursors.get(*place).is_some_and(|cursor| cursor.stopping);
            let untold = member.stopping.iter().filter(|place| !hold_stops && !told(place));
            let stops: Vec<Place> = untold.cloned().collect();
            let starts: Vec<(Place, Option<u64>)> = member
                .owned
                .iter()
                .filter(|place| !self.cursors.contains_key(*place))
                .map(|place| (place.clone(), group.offsets.get(place).copied()))
                .collect();
            (member.epoch, stops, starts)
        };
        if !stops.is_empty() {
            let partitions = stops
                .iter()
                .map(|(topic, partition)| v1::TopicPartition { topic: topic.clone(), partition: *partition });
            let stop = v1::ConsumeStop { member_epoch: epoch, partitions: partitions.collect() };
            for place in stops {
                self.cursors.entry(place).or_default().stopping = true;
            }
            self.cut()?;
            self.say(ResponseKind::Stop(stop)).await?;
        }
        if !starts.is_empty() {
            self.start(epoch, starts).await?;
        }
        Ok(())
    }

    async fn start(&mut self, epoch: u32, starts: Vec<(Place, Option<u64>)>) -> Result<(), Status> {
        let (mut partitions, mut problems) = (Vec::new(), Vec::new());
        for (place, committed) in starts {
            let ends = {
                let world = self.fake.world.lock();
                let partition = &world.topics[&place.0][place.1 as usize];
                message(place.1, partition, partition.end, 0).ends.expect("a message has its ends")
            };
            let usable = committed.filter(|at| (ends.log_start_offset..=ends.log_end_offset).contains(at));
            let begin = usable.or(match self.start {
                v1::StartPolicy::Earliest => Some(ends.log_start_offset),
                v1::StartPolicy::Latest => Some(ends.log_end_offset),
                _ => None,
            });
            if begin.is_none() {
                problems.push(v1::ConsumeProblem {
                    topic: place.0.clone(),
                    partition: place.1,
                    error: Some(item(Code::FailedPrecondition, reason::START_POSITION_NEEDED, &[])),
                });
            }
            partitions.push(v1::ConsumeStarted {
                topic: place.0.clone(),
                partition: place.1,
                offset: begin,
                committed_offset: committed,
                ends: Some(ends),
            });
            self.cursors.insert(place, Cursor { next: begin, ..Cursor::default() });
        }
        self.cut()?;
        self.say(ResponseKind::Start(v1::ConsumeStart { member_epoch: epoch, partitions })).await?;
        for problem in problems {
            self.say(ResponseKind::Problem(problem)).await?;
        }
        Ok(())
    }

    /// One message of records for each partition that has some, within the credit.
    async fn deliver(&mut self) -> Result<(), Status> {
        let places: Vec<_> = self.cursors.keys().cloned().collect();
        for place in places {
            if self.bytes <= 0 || self.records <= 0 {
                return Ok(());
            }
            let cursor = self.cursors.get_mut(&place).expect("the place has a cursor");
            let Some(next) = cursor.next.filter(|_| !cursor.paused && !cursor.stopping) else { continue };
            let records = {
                let world = self.fake.world.lock();
                let partition = &world.topics[&place.0][place.1 as usize];
                message(place.1, partition, next.max(partition.start), 1)
            };
            if records.batches.is_empty() {
                continue;
            }
            cursor.next = Some(records.next_offset);
            let seek_id = cursor.seek_id;
            let bytes: usize = records.batches.iter().map(|batch| batch.data.len()).sum();
            let used = v1::ConsumeCredit { bytes: bytes as u64, records: records.next_offset - next };
            self.bytes -= used.bytes as i64;
            self.records -= used.records as i64;
            self.cut()?;
            self.say(ResponseKind::Records(v1::ConsumeRecords {
                topic: place.0.clone(),
                records: Some(records),
                seek_id,
                used: Some(used),
            }))
            .await?;
        }
        Ok(())
    }
}

/// Tests cannot wait for as long as a real session lasts; the client refuses less than a second.
fn fake_timeout(join: &v1::ConsumeJoin) -> Duration {
    Duration::from_millis(join.session_timeout_ms.into())
}

fn fenced(why: &str) -> Status {
    status(Code::Aborted, reason::MEMBER_FENCED, &[("why", why)])
}
