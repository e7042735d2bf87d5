//! The batches of one partition: gathered, numbered, on the wire, and what each answer means for those
//! behind it. No I/O and no waiting here; time is passed in.
//!
//! The rules that keep the numbering sound:
//! - A batch gets its sequence when it is first sent, never before; from then on it is sent again only with
//!   the same bytes, unless it is *provably not stored*: every try was answered, and by a refusal.
//! - After a refusal nothing more is sent until every batch on the wire is answered (*draining*); then all
//!   that are not stored are sent again, in order.
//! - A batch that is given up leaves a hole. If it is provably not stored, the batches behind it are numbered
//!   anew (they were refused as well: the server takes no sequence out of order). If it may be stored, or one
//!   behind it was on a connection that broke, this producer id and epoch can write no more here: those that
//!   may be stored are given up too, the rest wait until the producer has taken a new epoch (*renewal*).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rimstone_record::{Batch, BatchBuilder, BuildError, Compression, NewRecord, ProducerStamp};
use rimstone_types::{Numbering, Offset, PartitionIndex, ProducerEpoch, ProducerId, Sequence, Timestamp};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use crate::{
    error::{ClientError, Code, reason},
    producer::{
        parcel::{Content, Parcel, unpack},
        record::{Answer, Outcome},
        tracker::Token,
    },
    retry::Backoff,
};

/// A batch that cannot be sent is closed at this age all the same, so that the records in it have about the
/// same deadline.
const GATHER_MAX: Duration = Duration::from_secs(1);

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: ProducerId,
    pub(crate) epoch: ProducerEpoch,
}

/// What a queue needs to know of the producer's settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueConfig {
    pub(crate) compression: Compression,
    pub(crate) linger: Duration,
    pub(crate) batch_bytes: usize,
    pub(crate) in_flight: usize,
    pub(crate) deadline: Duration,
}

/// What an answer says of a batch.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is stored.
    Stored { base: Option<Offset>, append_time: Timestamp, duplicate: bool },
    /// It is not, by this try; try again.
    Refused(ClientError),
    /// It is not, by this try, since the server expects another sequence or has no state.
    OutOfOrder(ClientError),
    /// It is not, by this try, and never will be.
    Rejected(ClientError),
    /// Nobody knows; try again.
    Unknown(ClientError),
}

/// A batch that still takes records.
#[derive(Debug)]
struct Open {
    parcel: Parcel,
    since: Instant,
}

/// A batch that has been sent.
#[derive(Debug)]
struct Numbered {
    /// Rises within a queue; never used again, unlike sequences.
    uid: u64,
    first: Sequence,
    parcel: Parcel,
    on_wire: bool,
    /// A try was not answered, or was answered with "unknown".
    maybe_stored: bool,
    /// Its waiters have been told that it failed.
    given_up: bool,
}

/// A batch to be put on the wire.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) uid: u64,
    pub(crate) batch: Batch,
}

/// What is known of the place for the next record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// Into a batch that is already gathering.
    Joined,
    /// As the first of a new batch.
    Began,
    /// The batch is full now.
    Filled,
}

/// The batches of one partition.
#[derive(Debug)]
pub(crate) struct Queue {
    topic: Arc<str>,
    partition: PartitionIndex,
    config: QueueConfig,
    open: Option<Open>,
    /// Closed, never sent, or provably not stored.
    ready: VecDeque<Parcel>,
    /// In order of their sequences.
    numbered: VecDeque<Numbered>,
    on_wire: usize,
    /// The sequence of the next batch to be numbered; `None` until the server has said what is stored.
    next: Option<Sequence>,
    next_uid: u64,
    draining: bool,
    state_lost: Option<ClientError>,
    hold_until: Option<Instant>,
    backoff: Backoff,
    needs_renewal: bool,
}

impl Queue {
    pub(crate) fn new(
        topic: Arc<str>,
        partition: PartitionIndex,
        config: QueueConfig,
        next: Option<Sequence>,
    ) -> Self {
        Self {
            topic,
            partition,
            config,
            open: None,
            ready: VecDeque::new(),
            numbered: VecDeque::new(),
            on_wire: 0,
            next,
            next_uid: 0,
            draining: false,
            state_lost: None,
            hold_until: None,
            backoff: Backoff::default(),
            needs_renewal: false,
        }
    }

    pub(crate) fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    pub(crate) fn partition(&self) -> PartitionIndex {
        self.partition
    }

    /// Whether anything is still to be sent or answered.
    pub(crate) fn has_work(&self) -> bool {
        self.open.is_some() || !self.ready.is_empty() || self.numbered.iter().any(|batch| !batch.given_up)
    }

    pub(crate) fn needs_renewal(&self) -> bool {
        self.needs_renewal
    }

    /// Whether batches of the present id and epoch are unresolved.
    pub(crate) fn has_numbered(&self) -> bool {
        !self.numbered.is_empty()
    }

    /// Of the batches that are unresolved, how many the server has up to this sequence.
    pub(crate) fn numbered_up_to(&self, last: Sequence) -> (usize, usize) {
        let stored = |batch: &&Numbered| {
            let end = batch.first.wrapping_add(batch.parcel.count - 1);
            end == last || end.is_before(last)
        };
        (self.numbered.iter().filter(stored).count(), self.numbered.len())
    }

    /// The producer has a new id or epoch, whose numbering here goes on at `next`.
    pub(crate) fn renew(&mut self, next: Option<Sequence>) {
        debug_assert!(self.numbered.is_empty(), "renewal waits until nothing is unresolved");
        self.next = next;
        self.needs_renewal = false;
        self.state_lost = None;
        self.draining = false;
    }

    /// The server has said what is stored.
    pub(crate) fn learned(&mut self, next: Sequence) {
        if self.next.is_none() {
            self.next = Some(next);
        }
    }

    /// Adds a record to the batch that is gathering, or begins one.
    ///
    /// # Errors
    /// What the format does not allow; the queue is as it was before.
    pub(crate) fn push(
        &mut self,
        record: &NewRecord,
        waiter: oneshot::Sender<Answer>,
        room: OwnedSemaphorePermit,
        token: impl FnOnce() -> Token,
        now: Instant,
    ) -> Result<Pushed, BuildError> {
        if let Some(open) = &mut self.open {
            let Content::Gathered(builder) = &mut open.parcel.content else {
                unreachable!("an open batch is gathering");
            };
            let fits = builder.estimated_bytes() + record.encoded_bytes_max() <= self.config.batch_bytes
                && now < open.since + self.config.linger.max(GATHER_MAX);
            // What the builder refuses for the batch's sake (count, time span) may begin a new one.
            if fits && builder.push(record).is_ok() {
                open.parcel.count += 1;
                open.parcel.waiters.push(waiter);
                open.parcel.room.merge(room);
                return Ok(Pushed::Joined);
            }
        }
        let mut builder = BatchBuilder::new(self.config.compression);
        builder.push(record)?;
        let closed_one = self.close_open();
        let full = builder.estimated_bytes() >= self.config.batch_bytes;
        let parcel = Parcel {
            content: Content::Gathered(builder),
            count: 1,
            deadline: now + self.config.deadline,
            waiters: vec![waiter],
            token: Some(token()),
            room,
        };
        self.open = Some(Open { parcel, since: now });
        let filled = (full && self.close_open()) || closed_one;
        Ok(if filled { Pushed::Filled } else { Pushed::Began })
    }

    /// Closes the batch that is gathering, if there is one.
    pub(crate) fn close_open(&mut self) -> bool {
        let Some(open) = self.open.take() else { return false };
        self.ready.push_back(open.parcel);
        true
    }

    fn held(&self, now: Instant) -> bool {
        self.hold_until.is_some_and(|until| now < until)
    }

    fn may_number(&self) -> bool {
        self.next.is_some() && !self.needs_renewal && self.numbered.len() < self.config.in_flight
    }

    /// Whether a batch could go out now. `numbering`: new batches may be numbered.
    pub(crate) fn is_sendable(&self, now: Instant, numbering: bool) -> bool {
        if self.draining || self.held(now) {
            return false;
        }
        if self.on_wire < self.numbered.len() {
            return true;
        }
        let due = |open: &Open| now >= open.since + self.config.linger;
        numbering && self.may_number() && (!self.ready.is_empty() || self.open.as_ref().is_some_and(due))
    }

    /// The next batch to go out; marks it as on the wire.
    pub(crate) fn take(&mut self, now: Instant, numbering: bool, identity: Identity) -> Option<Outgoing> {
        if !self.is_sendable(now, numbering) {
            return None;
        }
        if self.on_wire == self.numbered.len() {
            if self.ready.is_empty() {
                self.close_open();
            }
            self.number(identity)?;
        }
        let batch = self.numbered.iter_mut().find(|batch| !batch.on_wire)?;
        let Content::Encoded(encoded) = &batch.parcel.content else { return None };
        batch.on_wire = true;
        self.on_wire += 1;
        self.hold_until = None;
        Some(Outgoing { uid: batch.uid, batch: encoded.clone() })
    }

    fn number(&mut self, identity: Identity) -> Option<()> {
        let first = self.next?;
        let mut parcel = self.ready.pop_front()?;
        let stamp = ProducerStamp {
            id: identity.id,
            epoch: identity.epoch,
            base: first.get(),
            numbering: Numbering::Dense,
        };
        let builder = match parcel.content {
            Content::Gathered(builder) => builder,
            Content::Encoded(batch) => unpack(&batch, self.config.compression),
            Content::Gone => return None,
        };
        parcel.content = Content::Encoded(builder.producer(stamp).build());
        self.next = Some(first.wrapping_add(parcel.count));
        self.next_uid += 1;
        self.numbered.push_back(Numbered {
            uid: self.next_uid,
            first,
            parcel,
            on_wire: false,
            maybe_stored: false,
            given_up: false,
        });
        Some(())
    }

    /// The answer to a batch has come.
    pub(crate) fn answered(&mut self, uid: u64, verdict: Verdict, now: Instant) {
        let Some(at) = self.numbered.iter().position(|batch| batch.uid == uid) else { return };
        if std::mem::take(&mut self.numbered[at].on_wire) {
            self.on_wire -= 1;
        }
        match verdict {
            Verdict::Stored { base, append_time, duplicate } => {
                if let Some(batch) = self.numbered.remove(at) {
                    batch.parcel.stored(self.partition, base, append_time, duplicate);
                }
                self.backoff.reset();
            }
            Verdict::Refused(error) => self.hold(&error, now),
            Verdict::Unknown(error) => {
                self.numbered[at].maybe_stored = true;
                self.hold(&error, now);
            }
            // With another unresolved batch before it, it is only that one's shadow.
            Verdict::OutOfOrder(error) => {
                if at == 0 {
                    self.state_lost.get_or_insert(error);
                }
                self.draining = true;
            }
            Verdict::Rejected(error) => {
                self.give_up(at, error);
            }
        }
        self.settle_if_drained();
    }

    fn hold(&mut self, error: &ClientError, now: Instant) {
        if !self.draining {
            self.hold_until = Some(now + self.backoff.next(error.retry_after));
        }
        self.draining = true;
    }

    /// The connection is gone: what was on the wire may or may not be stored.
    pub(crate) fn disconnected(&mut self) {
        for batch in self.numbered.iter_mut().filter(|batch| batch.on_wire) {
            batch.on_wire = false;
            batch.maybe_stored = true;
        }
        self.on_wire = 0;
        self.hold_until = None;
        self.settle_if_drained();
    }

    /// The server does not know the producer any more.
    pub(crate) fn state_lost(&mut self, error: &ClientError) {
        self.state_lost.get_or_insert_with(|| error.clone());
        self.draining = true;
        self.settle_if_drained();
    }

    fn give_up(&mut self, at: usize, error: ClientError) {
        let batch = &mut self.numbered[at];
        let outcome = if batch.maybe_stored || batch.on_wire { Outcome::Unknown } else { Outcome::NotStored };
        batch.given_up = true;
        batch.parcel.failed(outcome, error);
        batch.parcel.content = Content::Gone;
        self.draining = true;
    }

    /// Gives up what is past its deadline.
    pub(crate) fn expire(&mut self, now: Instant) {
        let late = |waited: Duration, sent: &str| {
            let message = format!(
                "no answer within the deadline of {waited:?} for a batch of topic {}, partition {} that was {sent}",
                self.topic, self.partition
            );
            ClientError::new(Code::DeadlineExceeded, reason::DEADLINE, message)
                .with("topic", &self.topic)
                .with("partition", self.partition)
        };
        let (unsent, sent) = (late(self.config.deadline, "never sent"), late(self.config.deadline, "sent"));
        while self.ready.front().is_some_and(|parcel| parcel.deadline <= now) {
            if let Some(mut parcel) = self.ready.pop_front() {
                parcel.failed(Outcome::NotStored, unsent.clone());
            }
        }
        if self.open.as_ref().is_some_and(|open| open.parcel.deadline <= now)
            && let Some(mut open) = self.open.take()
        {
            open.parcel.failed(Outcome::NotStored, unsent);
        }
        for at in 0..self.numbered.len() {
            if !self.numbered[at].given_up && self.numbered[at].parcel.deadline <= now {
                self.give_up(at, sent.clone());
            }
        }
        self.settle_if_drained();
        if !self.has_work() {
            // Whatever comes next does not wait for those that were given up.
            self.hold_until = None;
            self.backoff.reset();
        }
    }

    /// Fails everything, for an error that ends the producer or the topic.
    pub(crate) fn fail_all(&mut self, error: &ClientError) {
        for batch in &mut self.numbered {
            let maybe = batch.maybe_stored || batch.on_wire;
            batch.parcel.failed(if maybe { Outcome::Unknown } else { Outcome::NotStored }, error.clone());
        }
        let open = self.open.take().map(|open| open.parcel);
        for mut parcel in self.ready.drain(..).chain(open) {
            parcel.failed(Outcome::NotStored, error.clone());
        }
        self.numbered.clear();
        self.on_wire = 0;
        self.draining = false;
    }

    fn settle_if_drained(&mut self) {
        if !self.draining || self.on_wire > 0 {
            return;
        }
        self.draining = false;
        if let Some(error) = self.state_lost.take() {
            let all = std::mem::take(&mut self.numbered);
            self.end_numbering(all, &error);
            return;
        }
        let Some(hole) = self.numbered.iter().position(|batch| batch.given_up) else { return };
        let tail = self.numbered.split_off(hole);
        if tail.iter().any(|batch| batch.maybe_stored) {
            let error = ClientError::new(
                Code::Unavailable,
                reason::EARLIER_UNKNOWN,
                format!(
                    "an earlier batch of topic {}, partition {} was given up, so the answer to this one cannot be had",
                    self.topic, self.partition
                ),
            );
            self.end_numbering(tail, &error);
        } else {
            self.next = tail.front().map(|batch| batch.first);
            self.unnumber(tail);
        }
    }

    /// This id and epoch write no more here.
    fn end_numbering(&mut self, batches: VecDeque<Numbered>, error: &ClientError) {
        self.needs_renewal = true;
        let (lost, safe): (VecDeque<_>, VecDeque<_>) =
            batches.into_iter().partition(|batch| batch.maybe_stored);
        for mut batch in lost {
            batch.parcel.failed(Outcome::Unknown, error.clone());
        }
        self.unnumber(safe);
    }

    /// Puts batches that are provably not stored back to those that were never sent.
    fn unnumber(&mut self, batches: VecDeque<Numbered>) {
        for batch in batches.into_iter().rev().filter(|batch| !batch.given_up) {
            self.ready.push_front(batch.parcel);
        }
    }

    /// When something may be due here, if nothing else happens before.
    pub(crate) fn next_timer(&self, now: Instant, connected: bool) -> Option<Instant> {
        let deadlines =
            self.numbered.iter().filter(|batch| !batch.given_up).map(|batch| batch.parcel.deadline);
        let waiting = self.ready.front().map(|parcel| parcel.deadline);
        let gathering = self.open.as_ref().map(|open| open.parcel.deadline);
        let hold = self.hold_until.filter(|until| connected && *until > now);
        let linger = self.open.as_ref().filter(|_| connected && self.may_number() && !self.draining);
        let linger = linger.map(|open| open.since + self.config.linger).filter(|due| *due > now);
        deadlines.min().into_iter().chain(waiting).chain(gathering).chain(hold).chain(linger).min()
    }
}

#[cfg(test)]
mod tests;
