//! A session: what the member says. What it is told is in `events`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use rimstone_state::group::{Decision, MemberView, Removal};
use rimstone_types::{ByteCount, GroupEpoch, GroupName, Offset, PartitionIndex, TopicName};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};

use super::{
    Credit, JoinRequest, SeekTo, SessionEvent, SessionFacts,
    cursor::{Cursor, LookUp, Reading},
    look_up::{Found, LookUps},
    outbox::{Answered, Named, Outbox, committed},
    ready::Ready,
};
use crate::{
    broker::Inner,
    coordinator::{Pulse, SessionStart, SessionUpdate, shard_of},
    error::{GroupRequestError, LimitReached, PartitionNotOwned, SessionProblem},
    groups::OffsetToCommit,
    reserve::Reservation,
};

/// The most that credits add up to: more than anybody can hold, and far from what wraps.
const CREDIT_MAX: i64 = i64::MAX / 4;

/// Events that wait to be read, beyond which no more of the stream is: what is refused is an event each time, and a
/// member that does not read must not be a place to put them. As many as commits.
const EVENTS_MAX: usize = 64;

/// A partition by name.
pub(super) type Place = (TopicName, PartitionIndex);

/// The session of a member. Ends when dropped; the membership goes on until it times out.
#[derive(Debug)]
pub struct MemberSession {
    pub(super) inner: Arc<Inner>,
    pub(super) group: GroupName,
    pub(super) facts: SessionFacts,
    token: u64,
    pub(super) pulse: Arc<Pulse>,
    pub(super) updates: watch::Receiver<SessionUpdate>,
    pub(super) outbox: Outbox,
    /// A commit waits for room in the server's budget.
    pub(super) wants_room: bool,
    pub(super) reading: Reading,
    message_bytes: ByteCount,
    /// The epoch that the member was told.
    pub(super) epoch: GroupEpoch,
    /// What it was told to own, and has not given back.
    pub(super) cursors: BTreeMap<Place, Cursor>,
    /// What it has given back at the view's epoch; the shard has not answered with a view that says so.
    pub(super) given_back: BTreeSet<Place>,
    /// What the shard could not take, stops or beginnings: when to try again.
    pub(super) again_at: Option<Instant>,
    /// Whose beginnings it could not take.
    pub(super) unbegun: BTreeSet<Place>,
    /// Whose beginnings are to be asked for.
    pub(super) to_begin: BTreeSet<Place>,
    /// Requests for beginnings that are not answered.
    pub(super) beginning: usize,
    /// Requests for beginnings so far.
    pub(super) begins: u64,
    /// The latest view.
    pub(super) view: MemberView,
    /// Which of the partitions are to be looked at.
    pub(super) ready: Ready,
    /// How often one was.
    #[cfg(test)]
    pub(super) looks: usize,
    /// Seeks that are looked up.
    pub(super) look_ups: LookUps,
    /// Of how many partitions something was sent that the member is not done with.
    pub(super) worked_on: usize,
    bytes: i64,
    records: i64,
    /// Heartbeats that have not been answered.
    pub(super) heartbeats: u32,
    /// To be told before anything else.
    pub(super) events: VecDeque<SessionEvent>,
    _one_of_many: OwnedSemaphorePermit,
}

impl MemberSession {
    pub(super) fn new(
        inner: Arc<Inner>,
        request: JoinRequest,
        facts: SessionFacts,
        start: SessionStart,
        pulse: Arc<Pulse>,
        one_of_many: OwnedSemaphorePermit,
    ) -> Self {
        let limits = &inner.config.limits;
        let message_bytes =
            request.message_bytes.map_or(limits.read_message_default, |bytes| bytes.min(limits.response));
        let shard = shard_of(&request.group);
        let mailbox = inner.mailbox(shard).expect("the shard has answered the join").clone();
        let outbox = Outbox::new(request.group.clone(), facts.member.clone(), start.token, mailbox);
        let (mut cursors, mut unreadable, mut ready) = (BTreeMap::new(), Vec::new(), Ready::default());
        for (topic, partition, next) in request.positions {
            let held = [&start.view.assignment.owned, &start.view.assignment.stopping];
            let of = held.into_iter().find(|held| held.contains(&topic, partition));
            if let Some(id) = of.and_then(|held| held.get(&topic)).map(|of| of.id) {
                let seat = ready.seat((topic.clone(), partition));
                let mut cursor = Cursor::new(&inner, (&topic, id, partition), seat);
                match cursor.unavailable() {
                    Some(problem) if start.view.assignment.owned.contains(&topic, partition) => {
                        unreadable.push((topic.clone(), partition, problem));
                    }
                    _ => cursor.go_to(next),
                }
                cursors.insert((topic, partition), cursor);
            }
        }
        let mut session = Self {
            token: start.token,
            group: request.group,
            pulse,
            updates: start.updates,
            outbox,
            wants_room: false,
            reading: Reading {
                policy: request.start,
                visibility: request.visibility,
                format: request.format,
            },
            message_bytes: ByteCount(message_bytes.get().max(1)),
            epoch: facts.epoch,
            facts,
            cursors,
            given_back: BTreeSet::new(),
            again_at: None,
            unbegun: BTreeSet::new(),
            to_begin: BTreeSet::new(),
            beginning: 0,
            begins: 0,
            view: start.view.clone(),
            ready,
            #[cfg(test)]
            looks: 0,
            look_ups: LookUps::default(),
            worked_on: 0,
            bytes: 0,
            records: 0,
            heartbeats: 0,
            events: VecDeque::new(),
            inner,
            _one_of_many: one_of_many,
        };
        session.add_credit(request.credit);
        session.follow(start.view);
        // It is told no start of what it goes on with.
        for (topic, partition, problem) in unreadable {
            session.problem(topic, partition, problem);
        }
        session
    }

    /// What the session began with.
    pub fn facts(&self) -> &SessionFacts {
        &self.facts
    }

    /// Whether it takes more messages: while many commits wait for their answers, or one for room, or many events to
    /// be read, it does not.
    pub fn takes_messages(&self) -> bool {
        self.hears() && self.events.len() < EVENTS_MAX
    }

    /// A commit of the member waits for room, or no longer does. Until then nothing that it says is read, and its
    /// silence is the server's.
    pub fn waits_for_room(&mut self, wants: bool) {
        self.wants_room = wants;
        self.asked();
    }

    /// Whether a commit that has no room of its own waits for its answer.
    pub fn commits_without_room(&self) -> bool {
        self.outbox.commits_without_room()
    }

    /// Whether what the member says is read, as far as the server is concerned.
    pub(super) fn hears(&self) -> bool {
        self.outbox.has_room() && !self.wants_room
    }

    fn add_credit(&mut self, credit: Credit) {
        let add = |have: i64, more: u64| {
            have.saturating_add(i64::try_from(more).unwrap_or(i64::MAX)).min(CREDIT_MAX)
        };
        self.bytes = add(self.bytes, credit.bytes);
        self.records = add(self.records, credit.records);
    }

    /// What one message of records may cost; `None`: there is no credit.
    pub(super) fn allowed(&self) -> Option<Credit> {
        let bytes = u64::try_from(self.bytes).ok().filter(|bytes| *bytes > 0)?;
        let records = u64::try_from(self.records).ok().filter(|records| *records > 0)?;
        Some(Credit { bytes: bytes.min(self.message_bytes.get()), records })
    }

    pub(super) fn use_credit(&mut self, used: Credit) {
        let less = |have: i64, used: u64| have.saturating_sub(i64::try_from(used).unwrap_or(i64::MAX));
        self.bytes = less(self.bytes, used.bytes);
        self.records = less(self.records, used.records);
    }

    /// The member lets more be sent.
    pub fn credit(&mut self, credit: Credit) {
        self.pulse.beat();
        self.add_credit(credit);
        self.progress();
    }

    /// The member is alive; `progress`: it has asked for records, or has nothing left to work on.
    pub fn heartbeat(&mut self, progress: bool) {
        self.pulse.beat();
        if progress {
            self.progress();
        }
        self.heartbeats = self.heartbeats.saturating_add(1);
    }

    /// The member has stopped reading partitions that it was asked to give back. Others are passed over.
    pub fn stopped(&mut self, partitions: Vec<(TopicName, PartitionIndex)>) {
        self.pulse.beat();
        let mut stopped = Named::new();
        for place in partitions {
            let is_asked = self.cursors.get(&place).is_some_and(|cursor| cursor.stopping);
            if !is_asked {
                continue;
            }
            if let Some(was) = self.cursors.remove(&place) {
                self.ready.leave(&was.seat);
                self.worked_on -= usize::from(was.is_worked_on());
            }
            if self.view.assignment.stopping.contains(&place.0, place.1) {
                self.given_back.insert(place.clone());
                stopped.push(place);
            }
        }
        if !stopped.is_empty() {
            self.outbox.stopped(self.view.epoch, stopped);
            self.asked();
        }
        self.progress();
        self.tell_stopping();
        // What is the member's again by now begins again.
        self.follow(self.view.clone());
    }

    /// The member commits. The answer is an event. `room`: for the bytes of the request.
    ///
    /// # Errors
    /// [`LimitReached`] for more offsets than one commit may have.
    pub fn commit(
        &mut self,
        correlation: u64,
        offsets: Vec<OffsetToCommit>,
        room: Option<Reservation>,
    ) -> Result<(), LimitReached> {
        self.pulse.beat();
        let limit = self.inner.config.limits.offsets_per_request;
        if offsets.len() > limit {
            return Err(LimitReached { what: "offsets in one commit", limit: limit as u64 });
        }
        for OffsetToCommit { topic, partition, offset, .. } in &offsets {
            if let Some(offset) = *offset {
                self.change(&(topic.clone(), *partition), |cursor| cursor.done(offset));
            }
        }
        self.progress();
        self.outbox.commit(correlation, offsets, room);
        self.asked();
        Ok(())
    }

    /// The shard was asked something: while that is too much, no more of the stream is read, and the silence is not
    /// the member's.
    pub(super) fn asked(&self) {
        self.pulse.heard(self.hears());
    }

    /// Reads a partition from elsewhere; records sent from now on carry `seek_id`.
    pub fn seek(&mut self, topic: TopicName, partition: PartitionIndex, to: SeekTo, seek_id: u64) {
        self.pulse.beat();
        let place = (topic, partition);
        match self.cursors.get(&place).filter(|cursor| !cursor.is_untold()) {
            Some(cursor) if cursor.stopping => {}
            Some(_) => {
                self.change(&place, |cursor| cursor.seek(seek_id));
                self.look_up(place, to);
            }
            None => {
                let (topic, partition) = place;
                let error = PartitionNotOwned { topic: topic.clone(), partition };
                self.problem(topic, partition, error.into());
            }
        }
        self.progress();
    }

    fn look_up(&mut self, place: Place, to: SeekTo) {
        self.look_ups.forget(&place);
        let Some(cursor) = self.cursors.get(&place) else { return };
        match cursor.look_up(to, self.reading.visibility) {
            LookUp::Found(found) => self.found(place, found),
            LookUp::UnderWay(look_up) => self.look_ups.begin(place, look_up),
        }
    }

    /// A partition is read from here on.
    pub(super) fn found(&mut self, place: Place, found: Found) {
        match found {
            Ok(offset) => {
                if let Some(cursor) = self.cursors.get_mut(&place) {
                    cursor.go_to(offset);
                    self.ready.call(&cursor.seat);
                }
            }
            Err(problem) => self.problem(place.0, place.1, problem),
        }
    }

    /// No records of these partitions (`true`), or again (`false`). Others are passed over.
    pub fn pause(&mut self, partitions: &[(TopicName, PartitionIndex)], paused: bool) {
        self.pulse.beat();
        for place in partitions {
            if let Some(cursor) = self.cursors.get_mut(place) {
                cursor.paused = paused;
                cursor.let_go();
                self.ready.call(&cursor.seat);
            }
        }
    }

    /// Ends the membership; the partitions go to others at once. A static member is kept until it times out,
    /// unless it leaves `for_good`. Answers what commits that were under way came to.
    ///
    /// # Errors
    /// [`GroupRequestError`]: the membership ends by its time-out.
    pub async fn leave(mut self, for_good: bool) -> (Vec<SessionEvent>, Result<(), GroupRequestError>) {
        let mut answers = Vec::new();
        while !self.outbox.is_idle() {
            if let Answered::Commit { correlation, named, result } = self.outbox.next().await {
                answers.push(self.as_committed(correlation, named, result));
            }
        }
        let (group, member, token) = (self.group.clone(), self.facts.member.clone(), self.token);
        let left = self.inner.decide(&self.group, move |now| {
            now.check_session(&group, &member, token)?;
            let why = Removal::Leave { for_good };
            let Decision { records, .. } = now.groups.remove_member(&group, &member, why, now.topics());
            Ok(Decision { records, answer: () })
        });
        let left = left.await;
        if let Err(error) = &left {
            self.inner.metrics.error(error);
        }
        (answers, left)
    }

    pub(super) fn as_committed(
        &self,
        correlation: u64,
        named: Named,
        result: Result<Vec<crate::groups::OffsetCommitted>, GroupRequestError>,
    ) -> SessionEvent {
        match &result {
            Ok(results) => self.inner.count_commits(&self.group, results),
            Err(error) => self.inner.metrics.error(error),
        }
        committed(correlation, named, result)
    }

    pub(super) fn problem(&mut self, topic: TopicName, partition: PartitionIndex, error: SessionProblem) {
        self.inner.metrics.error(&error);
        self.events.push_back(SessionEvent::Problem { topic, partition, error });
    }

    /// Changes a cursor, and what is known of work because of it.
    pub(super) fn change(&mut self, place: &Place, change: impl FnOnce(&mut Cursor)) {
        let Some(cursor) = self.cursors.get_mut(place) else { return };
        let before = cursor.is_worked_on();
        change(cursor);
        match (before, cursor.is_worked_on()) {
            (false, true) => self.worked_on += 1,
            (true, false) => self.worked_on -= 1,
            _ => {}
        }
    }

    /// The member gets on.
    fn progress(&self) {
        self.pulse.progress(self.worked_on > 0);
    }

    pub(super) fn tell_stopping(&self) {
        self.pulse.stopping(self.cursors.values().any(|cursor| cursor.stopping));
    }

    /// What a partition's offset is committed at, as far as it is durable.
    pub(super) fn committed_offset(&self, place: &Place, cursor: &Cursor) -> Option<Offset> {
        self.inner.commits.read(|groups| {
            let entry = groups.get(&self.group)?.topics.get(&place.0)?.get(&place.1)?;
            entry.commit.filter(|commit| commit.topic_id == cursor.id).map(|commit| commit.offset)
        })
    }
}

impl Drop for MemberSession {
    fn drop(&mut self) {
        self.pulse.disconnected();
    }
}
