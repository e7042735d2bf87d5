//! Where the start policy `latest` begins, and the one that asks in an empty partition: committed before the member is told, or is sent anything. Otherwise
//! whoever gets the partition next would begin at a later end, and what came between would be read by nobody.
//!
//! Not here: what the policy says (`groups`, within the shard), reading.

use std::time::Duration;

use rimstone_state::group::CommitError;
use rimstone_types::Offset;
use tokio::time::Instant;

use super::{MemberSession, events::PARTITIONS_PER_EVENT, outbox::Named, session::Place};
use crate::{
    error::{GroupRequestError, OffsetCommitError},
    groups::{Begun, ToBegin},
};

/// What the shard could not take is told again after this long.
pub(super) const AGAIN_PAUSE: Duration = Duration::from_millis(200);

/// A partition that waits for its beginning to be durable; nothing of it is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    /// The request for it: an answer to another is none.
    number: u64,
    /// The member has been told that the partition is its own, and reads on.
    pub(super) told: bool,
    /// Where it begins if nothing usable is committed; `None`: where the policy says.
    at: Option<Offset>,
}

impl Held {
    pub(super) fn new(told: bool, at: Option<Offset>) -> Self {
        Self { number: 0, told, at }
    }
}

impl MemberSession {
    /// Asks for the beginnings that have gathered, unless some are asked for: those of partitions that are overtaken
    /// together are one request. Whether it has asked.
    pub(super) fn ask_to_begin(&mut self) -> bool {
        if self.beginning > 0 || self.to_begin.is_empty() {
            return false;
        }
        let places: Vec<_> = std::mem::take(&mut self.to_begin).into_iter().collect();
        for places in places.chunks(PARTITIONS_PER_EVENT) {
            self.begins += 1;
            let mut partitions = Vec::with_capacity(places.len());
            for place in places {
                let held = self.cursors.get_mut(place).and_then(|cursor| cursor.held.as_mut());
                let Some(held) = held else { continue };
                held.number = self.begins;
                let (topic, partition) = place.clone();
                partitions.push(ToBegin { topic, partition, at: held.at });
            }
            if !partitions.is_empty() {
                self.beginning += 1;
                self.outbox.begin(self.begins, self.reading.visibility, partitions);
            }
        }
        self.asked();
        true
    }

    /// The answer to a request for beginnings. What was stopped or sought meanwhile is passed over.
    pub(super) fn begun(&mut self, number: u64, named: Named, result: Result<Vec<Begun>, GroupRequestError>) {
        self.beginning -= 1;
        let begun = match result {
            Ok(begun) => begun,
            Err(error) => {
                // A session that has lost its member is told so by its update.
                tracing::debug!(group = %self.group, member = %self.facts.member, partitions = named.len(), %error, "a beginning was not taken");
                named.into_iter().for_each(|place| self.begin_later(number, place));
                return;
            }
        };
        let (mut started, mut problems) = (Vec::new(), Vec::new());
        for Begun { topic, partition, result } in begun {
            let place = (topic, partition);
            let Some(cursor) = self.cursors.get_mut(&place) else { continue };
            let Some(held) = cursor.held.filter(|held| held.number == number) else { continue };
            let (told, mut committed) = (held.told, None);
            match result {
                Ok(at) => {
                    cursor.begin_at(at);
                    committed = Some(at);
                }
                Err(error @ OffsetCommitError::Commit(CommitError::TooMany { .. })) => {
                    cursor.held = None;
                    problems.push((place.clone(), error.into()));
                }
                // The topic is gone, or the partition is another's: a view that says so is under way.
                Err(error) => {
                    tracing::debug!(group = %self.group, topic = %place.0, partition = %place.1, %error, "a beginning was not taken");
                    self.begin_later(number, place);
                    continue;
                }
            }
            if !told {
                started.push(cursor.started(committed));
            }
            self.ready.call(&cursor.seat);
        }
        self.tell(started, problems);
    }

    fn begin_later(&mut self, number: u64, place: Place) {
        let held = self.cursors.get(&place).and_then(|cursor| cursor.held);
        if held.is_some_and(|held| held.number == number) {
            self.unbegun.insert(place);
            self.again_at = Some(Instant::now() + AGAIN_PAUSE);
        }
    }
}
