//! The driver's side of the state: what the server says, and what is to be said to it.

use std::{collections::BTreeSet, sync::Arc};

use rimstone_proto::v1::{self, consume_request::Kind};
use rimstone_types::{LogEnds, Offset, PartitionIndex};
use tokio::time::Instant;

use super::{Answered, Close, Item, State, Told, located};
use crate::{
    admin::{ends, offset},
    consumer::{
        credit::Amount,
        event::Assignment,
        owned::{Owned, Stop},
    },
    error::{ClientError, reason},
    groups::TopicPartition,
    reader::decode::Chunk,
};

impl State {
    /// Asks for the end. What was handed out last counts as processed if `settled`.
    pub(crate) fn begin_close(&mut self, close: Close, settled: bool) {
        if settled {
            self.settle_last();
        }
        self.close.get_or_insert(close);
        // Nobody asks for anything any more.
        for owned in self.owned.values_mut().filter(|owned| owned.stop == Stop::Told) {
            owned.stop = Stop::Released;
        }
    }

    /// A new stream is to carry the membership on: what its join says is owned. What the application asks for
    /// from here on, the join under way or not, is said on that stream.
    pub(crate) fn carry_on(&mut self) -> Vec<v1::ConsumePosition> {
        let owned = self.owned.iter_mut().filter_map(|(at, owned)| {
            owned.on_new_stream();
            let offset = owned.fetched?.get();
            Some(v1::ConsumePosition { topic: at.topic.to_string(), partition: at.partition.0, offset })
        });
        owned.collect()
    }

    /// The stream has broken.
    pub(crate) fn disconnected(&mut self) {
        let owned = &self.owned;
        self.commits.disconnected(|at| owned.contains_key(at));
        self.unknown_stops.clear();
    }

    /// Nothing is ours any more, for this reason.
    pub(crate) fn lost(&mut self, why: &ClientError) {
        if !self.owned.is_empty() {
            tracing::warn!(partitions = self.owned.len(), %why, "the member's partitions are lost");
        }
        if !self.commits.is_idle() {
            self.commit_failure.get_or_insert(why.clone());
        }
        self.forget_all();
    }

    fn forget_all(&mut self) {
        self.items.retain(|item| match item {
            Item::Chunk { used, .. } => {
                self.credit.freed(*used);
                false
            }
            Item::Problem { .. } => false,
        });
        self.commits.forget_all();
        self.unknown_stops.clear();
        self.epoch = 0;
        self.last = None;
        let mut lost: BTreeSet<_> = std::mem::take(&mut self.owned).into_keys().collect();
        // Losses that nobody has heard of become one.
        self.told.retain_mut(|told| match told {
            Told::Error(_) => true,
            Told::Lost(earlier) => {
                lost.extend(earlier.drain(..));
                false
            }
            Told::Assigned(_) | Told::Stopping(..) | Told::CaughtUp(_) => false,
        });
        if self.listens && !lost.is_empty() {
            self.told.push_back(Told::Lost(lost.into_iter().collect()));
        }
    }

    /// Partitions that are ours from now on.
    ///
    /// # Errors
    /// Offsets that are none.
    pub(crate) fn start(&mut self, start: v1::ConsumeStart) -> Result<(), ClientError> {
        self.epoch = self.epoch.max(start.member_epoch);
        let mut assigned = Vec::with_capacity(start.partitions.len());
        for started in start.partitions {
            let at = TopicPartition::new(&started.topic, PartitionIndex(started.partition));
            let begin = started.offset.map(offset).transpose()?;
            let ends = ends(started.ends.unwrap_or_default())?;
            if self.owned.get(&at).is_some_and(|owned| owned.stop == Stop::No) {
                self.started_again(&at, begin, ends);
                continue;
            }
            let committed = started.committed_offset.map(offset).transpose()?;
            // Ours once more while it was being given back: what was to be said of it before counts no more.
            self.commits.forget(&at);
            self.generations += 1;
            let owned = Owned::new(begin, committed, ends, self.generations, self.wake.clone());
            self.owned.insert(at.clone(), owned);
            assigned.push(Assignment { at, start: begin, committed, end: ends.stable });
        }
        if self.listens && !assigned.is_empty() {
            let places: Vec<_> = assigned.iter().map(|assignment| assignment.at.clone()).collect();
            self.told.push_back(Told::Assigned(assigned));
            self.catch_up_now(&places);
        } else {
            tracing::debug!(partitions = assigned.len(), "partitions were assigned");
        }
        Ok(())
    }

    /// Partitions that were at their ends when they were assigned.
    fn catch_up_now(&mut self, places: &[TopicPartition]) {
        for at in places {
            if self.owned.get_mut(at).is_some_and(Owned::catches_up) {
                self.told.push_back(Told::CaughtUp(at.clone()));
            }
        }
    }

    /// A partition that we have is told to be ours: after a reconnect, from where the server goes on.
    fn started_again(&mut self, at: &TopicPartition, begin: Option<Offset>, ends: LogEnds) {
        let Some(owned) = self.owned.get_mut(at) else { return };
        owned.end = ends.stable;
        if owned.is_sought() {
            // Asked for since the join; the server goes on there.
            return;
        }
        let follows = begin.is_some() && begin >= owned.fetched;
        owned.fetched = begin;
        owned.next = if begin.is_some() { owned.next.or(begin) } else { None };
        if !follows {
            // It comes once more: what is behind the next offset is passed over.
            self.purge(at);
        }
    }

    /// Partitions that are to be given back.
    pub(crate) fn stop(&mut self, stop: v1::ConsumeStop) {
        self.epoch = self.epoch.max(stop.member_epoch);
        let mut stopping = Vec::with_capacity(stop.partitions.len());
        for at in stop.partitions.into_iter().map(TopicPartition::from) {
            match self.owned.get_mut(&at) {
                None => self.unknown_stops.push(at),
                Some(owned) if owned.stop == Stop::No => {
                    owned.stop_came = true;
                    owned.stop = if self.listens { Stop::Told } else { Stop::Released };
                    self.purge(&at);
                    stopping.push(at);
                }
                Some(owned) => owned.stop_came = true,
            }
        }
        if self.listens && !stopping.is_empty() {
            self.told.retain(|told| !matches!(told, Told::CaughtUp(at) if stopping.contains(at)));
            self.told.push_back(Told::Stopping(stopping, self.generations));
        }
    }

    /// Records have come.
    ///
    /// # Errors
    /// A message that breaks the protocol.
    pub(crate) fn records(&mut self, message: v1::ConsumeRecords) -> Result<(), ClientError> {
        let used = message.used.map(Amount::from).ok_or_else(|| {
            ClientError::protocol("the server sent records without saying how much credit they used")
        })?;
        let records = message.records.unwrap_or_default();
        let at = TopicPartition::new(&message.topic, PartitionIndex(records.partition));
        let owned = self.owned.get_mut(&at);
        let Some(owned) = owned.filter(|owned| owned.is_read() && owned.seek_id == message.seek_id) else {
            self.credit.came(used, false);
            return Ok(());
        };
        if let Some(error) = records.error {
            self.credit.came(used, false);
            self.problem_at(at, error.into());
            return Ok(());
        }
        let ends = ends(records.ends.unwrap_or_default())?;
        owned.end = owned.end.max(ends.stable);
        let chunk = Chunk::new(records)?;
        owned.fetched = owned.fetched.max(Some(chunk.next_offset()));
        let at = TopicPartition { topic: self.known_topic(&at), ..at };
        self.credit.came(used, true);
        self.items.push_back(Item::Chunk { at, chunk, log_start: ends.start, used });
        Ok(())
    }

    /// The name as the table of partitions has it, so that it is kept once.
    fn known_topic(&self, at: &TopicPartition) -> Arc<str> {
        self.owned.get_key_value(at).map_or_else(|| at.topic.clone(), |(known, _)| known.topic.clone())
    }

    /// A partition cannot be read.
    pub(crate) fn problem(&mut self, problem: v1::ConsumeProblem) {
        let at = TopicPartition::new(&problem.topic, PartitionIndex(problem.partition));
        if let Some(error) = problem.error {
            self.problem_at(at, error.into());
        }
    }

    fn problem_at(&mut self, at: TopicPartition, error: ClientError) {
        if self.owned.get(&at).is_some_and(Owned::is_read) {
            // One per partition: a server that repeats itself fills nothing.
            self.items.retain(|item| !matches!(item, Item::Problem { at: other, .. } if *other == at));
            let error = located(error, &at);
            self.items.push_back(Item::Problem { at, error });
        }
    }

    /// A commit was answered; when its message was sent.
    ///
    /// # Errors
    /// An answer to something that was not asked; [`reason::MEMBER_FENCED`].
    pub(crate) fn committed(
        &mut self,
        message: v1::ConsumeCommitted,
        now: Instant,
    ) -> Result<Instant, ClientError> {
        let (answers, sent) = self.commits.answered(message, now)?;
        let mut fenced = None;
        for answer in answers {
            let error = match answer.result {
                Ok(flags) => {
                    if flags.below_log_start {
                        tracing::warn!(at = %answer.at, "committed below log start: retention is ahead");
                    }
                    None
                }
                Err(error) => {
                    tracing::warn!(at = %answer.at, %error, "a commit was refused");
                    self.commit_failure.get_or_insert(error.clone());
                    Some(error)
                }
            };
            if let Some(error) = error.as_ref().filter(|error| error.is(reason::MEMBER_FENCED)) {
                fenced = Some(error.clone());
            }
            if let Some(owned) = self.owned.get(&answer.at) {
                owned.answered.send_replace(Answered { number: answer.wanted.number, error });
            }
        }
        fenced.map_or(Ok(sent), Err)
    }

    /// Nobody answers: whoever waits for a commit is told so. It may be taken later all the same.
    pub(crate) fn unreachable(&mut self, error: ClientError) {
        for owned in self.owned.values() {
            if owned.answered.borrow().number < owned.commits {
                let number = owned.commits;
                owned.answered.send_replace(Answered { number, error: Some(error.clone()) });
            }
        }
        self.told.retain(|told| !matches!(told, Told::Error(other) if other.is_unreachable()));
        self.told.push_back(Told::Error(error));
    }

    /// Ends the consumer.
    pub(crate) fn fail(&mut self, error: ClientError) {
        self.forget_all();
        self.fatal.get_or_insert(error);
    }

    /// Whether the application has asked for records, or has nothing left to work on, since the last call.
    pub(crate) fn progress(&mut self) -> bool {
        let asked = std::mem::take(&mut self.asked);
        let idle = || self.items.is_empty() && self.owned.values().all(|owned| owned.hand.has_none());
        asked || self.waits || idle()
    }

    /// The next thing to say to the server, heartbeats and the end aside.
    pub(crate) fn next_request(&mut self, now: Instant, seek_ids: &mut u64) -> Option<Kind> {
        if let Some(kind) = self.seek_request(seek_ids).or_else(|| self.pause_request()) {
            return Some(kind);
        }
        if self.automatic && (self.close.is_some() || self.owned.values().any(|owned| owned.stop != Stop::No))
        {
            self.commit_processed();
        }
        if let Some(commit) = self.commits.next_message(now) {
            return Some(Kind::Commit(commit));
        }
        if let Some(partitions) = self.stopped() {
            return Some(Kind::Stopped(v1::ConsumeStopped { partitions }));
        }
        self.credit.next_message().map(Kind::Credit)
    }

    fn seek_request(&mut self, seek_ids: &mut u64) -> Option<Kind> {
        let (at, owned) = self.owned.iter_mut().find(|(_, owned)| owned.seek_due && !owned.paused)?;
        owned.seek_due = false;
        let to = v1::consume_seek::To::Offset(owned.next?.get());
        *seek_ids += 1;
        owned.seek_id = *seek_ids;
        let (topic, partition) = (at.topic.to_string(), at.partition.0);
        Some(Kind::Seek(v1::ConsumeSeek { topic, partition, to: Some(to), seek_id: *seek_ids }))
    }

    fn pause_request(&mut self) -> Option<Kind> {
        let mut changed = |paused: bool| {
            let mut changed = Vec::new();
            for (at, owned) in &mut self.owned {
                if owned.paused == paused && owned.told_paused != paused {
                    owned.told_paused = paused;
                    changed.push(at.message());
                }
            }
            changed
        };
        let partitions = changed(true);
        if !partitions.is_empty() {
            return Some(Kind::Pause(v1::ConsumePause { partitions }));
        }
        let partitions = changed(false);
        (!partitions.is_empty()).then_some(Kind::Resume(v1::ConsumeResume { partitions }))
    }

    /// Takes out the partitions whose stop can be confirmed.
    fn stopped(&mut self) -> Option<Vec<v1::TopicPartition>> {
        let mut stopped = std::mem::take(&mut self.unknown_stops);
        let commits = &self.commits;
        self.owned.retain(|at, owned| {
            let may_go = owned.stop == Stop::Released && owned.stop_came;
            let gone = may_go && owned.hand.is_empty() && !commits.has(at);
            if gone {
                stopped.push(at.clone());
            }
            !gone
        });
        let messages: Vec<_> = stopped.iter().map(TopicPartition::message).collect();
        (!messages.is_empty()).then_some(messages)
    }

    /// Whether everything is said that is to be said before leaving.
    pub(crate) fn may_leave(&self) -> bool {
        self.commits.is_idle()
    }
}
