//! What is known of one producer in one partition.
//!
//! The window is ascending: each batch's numbers lie behind those of the batch before it, by the shorter way
//! round where they wrap.

use std::collections::VecDeque;

use rimstone_types::{Numbering, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};

use super::{Before, Claim, Refusal, Verdict, WINDOW};

/// How far back a sequence is told from one that lies ahead: half of the numbers there are.
pub(super) const OLDER_MAX: u32 = (1 << 30) - 1;

/// A batch that is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredBatch {
    /// The epoch it was written in.
    pub epoch: ProducerEpoch,
    /// Its first sequence, or its request number.
    pub first: u32,
    /// Its records.
    pub record_count: u32,
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The offset of its last record.
    pub last_offset: Offset,
    /// When it was taken.
    pub append_time: Timestamp,
    /// The hash of its content, if it is numbered by request.
    pub content_hash: Option<u64>,
}

impl StoredBatch {
    pub(super) fn new(claim: &Claim, base: Offset, last: Offset, append_time: Timestamp) -> Self {
        Self {
            epoch: claim.stamp.epoch,
            first: claim.stamp.base,
            record_count: claim.record_count,
            base_offset: base,
            last_offset: last,
            append_time,
            content_hash: claim.content_hash,
        }
    }

    fn duplicate(&self) -> Verdict {
        Verdict::Duplicate {
            offsets: Some((self.base_offset, self.last_offset)),
            append_time: self.append_time,
            depends_on: self.last_offset.saturating_add(1),
        }
    }
}

/// A request that was undone and must come again before any later one of its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resend {
    pub(super) epoch: ProducerEpoch,
    pub(super) number: u32,
}

/// What is known of one producer. Small while its window is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub(super) id: ProducerId,
    /// The highest epoch that wrote here.
    pub(super) epoch: ProducerEpoch,
    pub(super) numbering: Numbering,
    /// Oldest first. Empty only after an undo, to keep `resend`.
    pub(super) window: VecDeque<StoredBatch>,
    /// What lies directly before the window and is known to be stored, at most [`OLDER_MAX`]: sequences if
    /// dense, so that the first known one of the epoch is this far before the window; batches if by request.
    pub(super) older: u32,
    pub(super) resend: Option<Resend>,
    /// How many of the newest batches are neither settled nor undone.
    pub(super) staged: usize,
    /// When a batch of it was last taken.
    pub(super) last_append: Timestamp,
}

/// The sequence `count` after `sequence`, wrapping.
pub(super) fn step(sequence: u32, count: u32) -> u32 {
    wrapped(sequence).wrapping_add(count).get()
}

/// How many steps lead from `earlier` to `later`, wrapping.
fn steps(earlier: u32, later: u32) -> u32 {
    wrapped(later).wrapping_since(wrapped(earlier))
}

fn wrapped(sequence: u32) -> Sequence {
    Sequence::ZERO.wrapping_add(sequence)
}

/// A batch of a producer of which nothing is known: the first sequence must be 0. Requests are numbered over
/// all partitions, so that the first one here may have any number.
pub(super) fn check_first(claim: &Claim) -> Result<Verdict, Refusal> {
    match claim.stamp.numbering {
        Numbering::Dense if claim.stamp.base != 0 => Err(Refusal::UnknownProducer { got: claim.stamp.base }),
        Numbering::Dense | Numbering::ByRequest => Ok(Verdict::Append),
    }
}

impl Entry {
    pub(super) fn new(claim: &Claim, batch: StoredBatch) -> Self {
        Self {
            id: claim.stamp.id,
            epoch: claim.stamp.epoch,
            numbering: claim.stamp.numbering,
            window: VecDeque::from([batch]),
            older: 0,
            resend: None,
            staged: 1,
            last_append: batch.append_time,
        }
    }

    /// The highest epoch that wrote here.
    pub fn epoch(&self) -> ProducerEpoch {
        self.epoch
    }

    /// What its numbers count.
    pub fn numbering(&self) -> Numbering {
        self.numbering
    }

    /// Its last sequence, or its last request number; `None` if nothing of it is stored.
    pub fn last(&self) -> Option<u32> {
        self.window.back().map(|batch| self.last_of(batch))
    }

    /// The offset of its last record.
    pub fn last_offset(&self) -> Option<Offset> {
        self.window.back().map(|batch| batch.last_offset)
    }

    /// When a batch of it was last taken.
    pub fn last_append(&self) -> Timestamp {
        self.last_append
    }

    /// The batches that are remembered, oldest first.
    pub fn batches(&self) -> impl Iterator<Item = &StoredBatch> {
        self.window.iter()
    }

    /// The request number that must come again before any higher one.
    pub fn resend_first(&self) -> Option<u32> {
        self.resend.map(|resend| resend.number)
    }

    pub(super) fn has_staged(&self) -> bool {
        self.staged > 0
    }

    fn last_of(&self, batch: &StoredBatch) -> u32 {
        match self.numbering {
            Numbering::Dense => step(batch.first, batch.record_count.saturating_sub(1)),
            Numbering::ByRequest => batch.first,
        }
    }

    /// Whether the numbering begins anew with the claim: a producer without a name, in a higher epoch.
    fn begins_anew(&self, claim: &Claim) -> bool {
        claim.stamp.epoch > self.epoch && !claim.stamp.id.is_named()
    }

    pub(super) fn check(&self, claim: &Claim) -> Result<Verdict, Refusal> {
        let (Some(oldest), Some(newest)) = (self.window.front(), self.window.back()) else {
            self.check_resend(claim)?;
            return check_first(claim);
        };
        if claim.stamp.epoch < self.epoch {
            return Err(Refusal::Fenced { got: claim.stamp.epoch, current: self.epoch });
        }
        if claim.stamp.numbering != self.numbering {
            return Err(Refusal::NumberingMixed { stored: self.numbering, got: claim.stamp.numbering });
        }
        match self.numbering {
            Numbering::Dense if self.begins_anew(claim) => match claim.stamp.base {
                0 => Ok(Verdict::Append),
                got => Err(Refusal::SequenceGap { expected: 0, got }),
            },
            Numbering::Dense => self.check_dense(claim, oldest, newest),
            Numbering::ByRequest if self.begins_anew(claim) => {
                self.check_resend(claim)?;
                Ok(Verdict::Append)
            }
            Numbering::ByRequest => self.check_by_request(claim, oldest, newest),
        }
    }

    fn check_dense(
        &self,
        claim: &Claim,
        oldest: &StoredBatch,
        newest: &StoredBatch,
    ) -> Result<Verdict, Refusal> {
        let got = claim.stamp.base;
        let expected = step(self.last_of(newest), 1);
        // No batch in the window can begin here: the window would have to span all sequences there are.
        if got == expected {
            return Ok(Verdict::Append);
        }
        let distance = steps(oldest.first, got);
        let at = self.window.partition_point(|batch| steps(oldest.first, batch.first) < distance);
        if let Some(batch) = self.window.get(at)
            && batch.first == got
            && batch.record_count == claim.record_count
        {
            return Ok(batch.duplicate());
        }
        let before_window = steps(got, oldest.first);
        if (claim.record_count.max(1)..=self.older).contains(&before_window) {
            // Stored before the oldest batch that is remembered, so durable if that one's offset is.
            return Ok(Verdict::Duplicate {
                offsets: None,
                append_time: oldest.append_time,
                depends_on: oldest.base_offset,
            });
        }
        Err(Refusal::SequenceGap { expected, got })
    }

    fn check_by_request(
        &self,
        claim: &Claim,
        oldest: &StoredBatch,
        newest: &StoredBatch,
    ) -> Result<Verdict, Refusal> {
        let got = claim.stamp.base;
        let last = newest.first;
        if got > last {
            self.check_resend(claim)?;
            return Ok(Verdict::Append);
        }
        let at = self.window.partition_point(|batch| batch.first < got);
        match self.window.get(at).filter(|batch| batch.first == got) {
            Some(batch)
                if batch.record_count == claim.record_count
                    && batch.content_hash.is_some()
                    && batch.content_hash == claim.content_hash =>
            {
                Ok(batch.duplicate())
            }
            None if got < oldest.first && self.older > 0 => Err(Refusal::NumberTooOld { got, last }),
            _ => Err(Refusal::NumberReused { got, last }),
        }
    }

    /// After a request was undone, no later one of its epoch is taken before it came again. A producer without
    /// a name leaves that behind with a higher epoch.
    fn check_resend(&self, claim: &Claim) -> Result<(), Refusal> {
        match self.resend {
            Some(resend)
                if claim.stamp.numbering == Numbering::ByRequest
                    && claim.stamp.base > resend.number
                    && (claim.stamp.epoch == resend.epoch || claim.stamp.id.is_named()) =>
            {
                Err(Refusal::ResendFirst { expected: resend.number, got: claim.stamp.base })
            }
            _ => Ok(()),
        }
    }

    /// Whether the window would stay ascending with a batch behind it that has this number.
    fn follows(&self, first: u32) -> bool {
        match (self.window.back(), self.numbering) {
            (None, _) => false,
            (Some(back), Numbering::ByRequest) => first > back.first,
            (Some(back), Numbering::Dense) => steps(step(self.last_of(back), 1), first) <= OLDER_MAX,
        }
    }

    pub(super) fn push(&mut self, claim: &Claim, batch: StoredBatch) -> Before {
        let goes_on = claim.stamp.numbering == self.numbering
            && !self.begins_anew(claim)
            && self.follows(claim.stamp.base);
        if !goes_on {
            let mut fresh = Self::new(claim, batch);
            fresh.staged += self.staged;
            fresh.resend = self.resend;
            fresh.clear_resend(claim);
            return Before::Fresh(Some(Box::new(std::mem::replace(self, fresh))));
        }
        let before = Before::Others { epoch: self.epoch, resend: self.resend };
        self.epoch = self.epoch.max(claim.stamp.epoch);
        self.clear_resend(claim);
        self.window.push_back(batch);
        self.staged += 1;
        self.last_append = batch.append_time;
        before
    }

    /// The request came again, or is left behind by a batch that would not have been taken otherwise.
    fn clear_resend(&mut self, claim: &Claim) {
        let stays = |resend: &Resend| {
            claim.stamp.numbering == Numbering::ByRequest
                && claim.stamp.base < resend.number
                && (claim.stamp.epoch == resend.epoch || claim.stamp.id.is_named())
        };
        self.resend = self.resend.filter(stays);
    }

    /// Takes the newest batch out again. Answers whether anything is left that must be remembered.
    pub(super) fn pop(&mut self, claim: &Claim, before: Before) -> bool {
        if self.window.back().is_none_or(|back| back.first != claim.stamp.base) {
            // Forgotten meanwhile, and come anew.
            return true;
        }
        match before {
            Before::Others { epoch, resend } => {
                self.window.pop_back();
                self.staged = self.staged.saturating_sub(1);
                self.epoch = epoch;
                self.resend = resend;
            }
            Before::Fresh(Some(mut entry)) => {
                // Some of those before may have been settled meanwhile.
                entry.staged = self.staged.saturating_sub(1);
                *self = *entry;
            }
            Before::Fresh(None) => {
                self.window.clear();
                self.staged = 0;
                self.resend = None;
            }
        }
        if claim.stamp.numbering == Numbering::ByRequest {
            self.resend = Some(Resend { epoch: claim.stamp.epoch, number: claim.stamp.base });
        }
        if let Some(back) = self.window.back() {
            self.last_append = back.append_time;
        }
        !self.window.is_empty() || self.resend.is_some()
    }

    /// Adds the next batch of a snapshot, if it can be one.
    pub(super) fn restore(&mut self, batch: StoredBatch) -> bool {
        let behind = self.window.back().is_some_and(|back| back.last_offset < batch.base_offset);
        let fits = behind && self.follows(batch.first);
        if fits {
            self.epoch = self.epoch.max(batch.epoch);
            self.last_append = batch.append_time;
            self.window.push_back(batch);
        }
        fits
    }

    pub(super) fn settle(&mut self) {
        self.staged = self.staged.saturating_sub(1);
        // Undoing what is still staged must leave a whole window.
        while self.window.len() > WINDOW + self.staged {
            self.forget_oldest();
        }
    }

    pub(super) fn forget_oldest(&mut self) {
        let Some(gone) = self.window.pop_front() else { return };
        let weight = match self.numbering {
            Numbering::ByRequest => 1,
            Numbering::Dense => gone.record_count.max(1),
        };
        let adjacent = self.numbering == Numbering::ByRequest
            || self.window.front().is_some_and(|front| front.first == step(self.last_of(&gone), 1));
        // Where a log has lost batches in between, what lies before is not known to be stored.
        self.older = if adjacent { self.older.saturating_add(weight).min(OLDER_MAX) } else { 0 };
    }
}
