//! What a session tells its member: partitions by the difference between the latest view and what was told
//! before, then records in turn.

use std::{collections::BTreeMap, convert::Infallible, future::ready};

use rimstone_state::group::MemberView;
use tokio::time::{Instant, sleep_until};

use super::{
    MemberSession, SessionEvent, SessionRecords, StartedPartition,
    begin::AGAIN_PAUSE,
    cursor::{Beginning, Cursor, Turn},
    outbox::Answered,
    session::Place,
};
use crate::{
    coordinator::SessionUpdate,
    error::{CoordinatorLoading, Failure, SessionError, SessionFenced, SessionProblem, ShuttingDown},
};

/// Partitions in one start or stop: 1,000 long names fit a message of 4 MiB.
pub(super) const PARTITIONS_PER_EVENT: usize = 1_000;

impl MemberSession {
    /// The next thing for the member. Nothing is lost if this is dropped while it waits.
    ///
    /// # Errors
    /// [`SessionError`]: the session has ended.
    pub async fn next(&mut self) -> Result<SessionEvent, SessionError> {
        loop {
            if self.inner.shutdown.is_cancelled() {
                return Err(ShuttingDown.into());
            }
            if self.again_at.is_some_and(|at| at <= Instant::now()) {
                self.ask_again();
            }
            self.ask_to_begin();
            if self.events.is_empty() {
                self.take_update()?;
            }
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if let Some(answered) = self.outbox.try_next() {
                if let Some(event) = self.answered(answered)? {
                    return Ok(event);
                }
                continue;
            }
            if self.heartbeats > 0 {
                self.heartbeats -= 1;
                return Ok(SessionEvent::Alive { epoch: self.epoch });
            }
            while let Some((place, found)) = self.look_ups.take() {
                self.found(place, found);
            }
            if !self.events.is_empty() {
                continue;
            }
            let read = self.read().await?;
            let has_asked = self.ask_to_begin();
            if let Some(records) = read {
                return Ok(SessionEvent::Records(records));
            }
            if has_asked {
                continue;
            }
            if self.events.is_empty() {
                self.wait().await?;
            }
        }
    }

    /// To be run while the member takes nothing: from when an answer waits for it, its silence is its own again.
    /// Never ends; nothing is lost if it is dropped.
    pub async fn hear(&mut self) -> Infallible {
        self.outbox.wait().await;
        self.pulse.heard(!self.wants_room);
        std::future::pending().await
    }

    /// Waits until there may be something.
    async fn wait(&mut self) -> Result<(), SessionError> {
        let shutdown = self.inner.shutdown.clone();
        let has_credit = self.allowed().is_some();
        let again_at = self.again_at;
        let answered = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            answered = self.outbox.next() => answered,
            changed = self.updates.changed() => match changed {
                Ok(()) => {
                    // Seen by `take_update`.
                    self.updates.mark_changed();
                    return Ok(());
                }
                // So is this.
                Err(_) => return Ok(()),
            },
            () = self.ready.wait(), if has_credit => return Ok(()),
            () = self.look_ups.wait() => return Ok(()),
            // Seen by `next`.
            () = at(again_at) => return Ok(()),
        };
        let event = self.answered(answered)?;
        self.events.extend(event);
        Ok(())
    }

    fn take_update(&mut self) -> Result<(), SessionError> {
        // The last word of a shard that has let go of the session is still there.
        let has_changed = self.updates.has_changed();
        if matches!(has_changed, Ok(false)) {
            return Ok(());
        }
        let update = self.updates.borrow_and_update().clone();
        match update {
            // It has let go without a word: the word went with an append that failed, or the shard has stopped.
            SessionUpdate::View(_) if has_changed.is_err() => Err(match self.inner.shutdown.is_cancelled() {
                true => ShuttingDown.into(),
                false => CoordinatorLoading.into(),
            }),
            SessionUpdate::View(view) => {
                self.follow(view);
                Ok(())
            }
            SessionUpdate::Fenced(why) => {
                let (group, member) = (self.group.clone(), self.facts.member.clone());
                let fenced = SessionFenced { group, member, why };
                self.inner.metrics.reason(fenced.reason());
                Err(fenced.into())
            }
        }
    }

    /// What the answer of the shard is to the member, if anything.
    fn answered(&mut self, answered: Answered) -> Result<Option<SessionEvent>, SessionError> {
        self.asked();
        match answered {
            Answered::Commit { correlation, named, result } => {
                Ok(Some(self.as_committed(correlation, named, result)))
            }
            Answered::Begun { number, named, result } => {
                self.begun(number, named, result);
                Ok(None)
            }
            Answered::Stopped { result: Ok(()), .. } => Ok(None),
            Answered::Stopped { named, result: Err(error) } => {
                // A session that has lost its member is told so by its update.
                tracing::debug!(group = %self.group, member = %self.facts.member, partitions = named.len(), %error, "a stop was not taken");
                self.again_at = Some(Instant::now() + AGAIN_PAUSE);
                Ok(None)
            }
        }
    }

    /// Tells the shard once more what it could not take.
    fn ask_again(&mut self) {
        self.again_at = None;
        self.to_begin.append(&mut self.unbegun);
        if !self.given_back.is_empty() {
            self.outbox.stopped(self.view.epoch, self.given_back.iter().cloned().collect());
            self.asked();
        }
    }

    /// Makes events of the difference between a view and what was told.
    pub(super) fn follow(&mut self, view: MemberView) {
        let held = view.assignment.clone();
        // What is to be given back at another epoch was the member's again in between, even if no view was seen
        // that says so: it is another stop.
        let is_same = view.epoch == self.view.epoch;
        self.given_back.retain(|(topic, partition)| is_same && held.stopping.contains(topic, *partition));
        self.epoch = view.epoch;

        let mut stopped = Vec::new();
        for (place, cursor) in &mut self.cursors {
            if !cursor.stopping && !held.owned.contains_id(&place.0, cursor.id, place.1) {
                stopped.push(place.clone());
            }
        }
        for place in &stopped {
            self.change(place, Cursor::stop);
            self.look_ups.forget(place);
        }
        // Asked for on an earlier stream, and not answered there: only an answer lets go of it.
        for (topic, id, partition) in held.stopping.iter() {
            let place = (topic.clone(), partition);
            if !self.cursors.contains_key(&place) && !self.given_back.contains(&place) {
                let seat = self.ready.seat(place.clone());
                let mut cursor = Cursor::new(&self.inner, (topic, id, partition), seat);
                cursor.stop();
                stopped.push(place.clone());
                self.cursors.insert(place, cursor);
            }
        }
        let mut started: BTreeMap<Place, Cursor> = BTreeMap::new();
        for (topic, id, partition) in held.owned.iter() {
            let place = (topic.clone(), partition);
            if !self.cursors.contains_key(&place) && !self.given_back.contains(&place) {
                let seat = self.ready.seat(place.clone());
                started.insert(place, Cursor::new(&self.inner, (topic, id, partition), seat));
            }
        }
        self.view = view;
        let changed = !stopped.is_empty() || !started.is_empty();
        self.tell_stopped(stopped);
        self.tell_started(started);
        if changed {
            self.tell_stopping();
        }
    }

    fn tell_stopped(&mut self, stopped: Vec<Place>) {
        for partitions in stopped.chunks(PARTITIONS_PER_EVENT) {
            let partitions = partitions.to_vec();
            self.events.push_back(SessionEvent::Stop { epoch: self.epoch, partitions });
        }
    }

    fn tell_started(&mut self, started: BTreeMap<Place, Cursor>) {
        let (mut partitions, mut problems) = (Vec::new(), Vec::new());
        for (place, mut cursor) in started {
            let committed = self.committed_offset(&place, &cursor);
            match cursor.begin(committed, self.reading) {
                Beginning::Told(begun, problem) => {
                    partitions.push(begun);
                    problems.extend(problem.map(|problem| (place.clone(), problem)));
                }
                Beginning::Held => drop(self.to_begin.insert(place.clone())),
            }
            self.cursors.insert(place, cursor);
        }
        self.ask_to_begin();
        self.tell(partitions, problems);
    }

    pub(super) fn tell(&mut self, partitions: Vec<StartedPartition>, problems: Vec<(Place, SessionProblem)>) {
        let mut partitions = partitions.into_iter().peekable();
        while partitions.peek().is_some() {
            let partitions = partitions.by_ref().take(PARTITIONS_PER_EVENT).collect();
            self.events.push_back(SessionEvent::Start { epoch: self.epoch, partitions });
        }
        for ((topic, partition), problem) in problems {
            self.problem(topic, partition, problem);
        }
    }

    /// One message of records, of the partition whose turn it is.
    async fn read(&mut self) -> Result<Option<SessionRecords>, SessionError> {
        while let Some(allowed) = self.allowed() {
            let Some(place) = self.ready.turn() else { break };
            let Some(cursor) = self.cursors.get_mut(&place) else {
                self.ready.end_turn(false);
                continue;
            };
            #[cfg(test)]
            {
                self.looks += 1;
            }
            let was_worked_on = cursor.is_worked_on();
            let turn = tokio::select! {
                biased;
                turn = cursor.turn(&self.inner, self.reading, allowed) => turn,
                // What has gathered does not wait for a slow read.
                () = ready(()), if self.beginning == 0 && !self.to_begin.is_empty() => break,
                // A slow read keeps nobody from hearing; it goes on. What it is, is found by who waits for it.
                () = self.inner.shutdown.cancelled() => break,
                () = self.outbox.wait() => break,
                _ = self.updates.changed() => {
                    self.updates.mark_changed();
                    break;
                }
                () = self.look_ups.wait() => break,
                () = at(self.again_at) => break,
            };
            self.worked_on += usize::from(!was_worked_on && cursor.is_worked_on());
            // Only now: if this was dropped while it read, it is the same partition's turn again. And not while it
            // holds what was not sent: a session holds the rest of one read at most.
            if !cursor.holds() {
                self.ready.end_turn(matches!(turn, Turn::Records(_)));
            }
            match turn {
                Turn::Nothing => {}
                Turn::Records(records) => {
                    self.pulse.sent();
                    self.use_credit(records.used);
                    return Ok(Some(records));
                }
                Turn::Problem(problem) => {
                    let (topic, partition) = place;
                    self.problem(topic, partition, problem);
                    break;
                }
                Turn::ByLatest => drop(self.to_begin.insert(place)),
                Turn::Closing => return Err(ShuttingDown.into()),
            }
        }
        Ok(None)
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
