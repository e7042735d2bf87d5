//! What is known to be damaged of a partition, the scrub that looks for it, and giving it up.
//!
//! Not here: how a segment is checked and written anew (`rimstone-log`), which partition is looked at next and how fast
//! (the broker).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rimstone_log::damage::{AcceptError, AcceptedLoss, CheckedSegment, DamagedRange, Scrub};
use rimstone_types::{ByteCount, Offset, Timestamp};

use super::{Counters, blocking, partition::LocalPartition, store_error};
use crate::{
    partition::{AcceptLossError, OffsetRange, ScrubScope, Scrubbed},
    storage::StoreError,
};

/// How much is read before the flusher is looked at again.
const UNIT_BYTES: u64 = 256 << 10;
/// How long such a piece waits at most for the flusher to have nothing to do.
const YIELD_MAX: Duration = Duration::from_millis(10);
/// Damaged ranges that are remembered of a partition: a disk that has more of them is to be replaced, not listed.
const KNOWN_MAX: usize = 1_000;

/// What is known of damage.
#[derive(Debug)]
pub(super) struct DamageState {
    known: Mutex<Known>,
    accepted: Mutex<Vec<AcceptedLoss>>,
    passes: Mutex<Passes>,
}

#[derive(Debug, Default)]
struct Passes {
    sealed: Option<Scrub>,
    suspects: Option<Scrub>,
}

/// Ranges that are known, oldest first, none over another.
#[derive(Debug, Default)]
struct Known {
    ranges: Vec<DamagedRange>,
    /// Offsets in whose segments there is damage that nobody has measured yet.
    suspects: BTreeSet<Offset>,
}

impl Known {
    /// Where the scrub is off, nobody takes them away.
    fn suspect(&mut self, offset: Offset) {
        if self.suspects.len() < KNOWN_MAX {
            self.suspects.insert(offset);
        }
    }

    /// Whether it is new, as far as is known.
    fn met(&mut self, range: DamagedRange) -> bool {
        let touches = |known: &DamagedRange| known.from < range.until && range.from < known.until;
        let Some(first) = self.ranges.iter().position(touches) else {
            self.suspect(range.from);
            if self.ranges.len() < KNOWN_MAX {
                let at = self.ranges.partition_point(|known| known.from < range.from);
                self.ranges.insert(at, range);
            }
            return true;
        };
        let count = self.ranges[first..].iter().take_while(|known| touches(known)).count();
        let gone: Vec<_> = self.ranges.drain(first..first + count).collect();
        let from = gone.iter().map(|known| known.from).min().unwrap_or(range.from).min(range.from);
        let until = gone.iter().map(|known| known.until).max().unwrap_or(range.until).max(range.until);
        let reason = gone.into_iter().next().map_or(range.reason, |known| known.reason);
        self.ranges.insert(first, DamagedRange { from, until, segment: range.segment, reason });
        false
    }

    /// A segment was gone over: what was found is all that is damaged of it. Answers how many ranges are new.
    fn checked(&mut self, checked: CheckedSegment) -> u32 {
        let CheckedSegment { base, until, damage } = checked;
        let inside = |range: &DamagedRange| range.from < until && base < range.until;
        let before: Vec<_> = self.ranges.extract_if(.., |range| inside(range)).collect();
        self.suspects.retain(|offset| *offset < base || *offset >= until);
        let is_new = |range: &&DamagedRange| {
            !before.iter().any(|known| known.from < range.until && range.from < known.until)
        };
        let new = damage.iter().filter(is_new).count();
        let room = KNOWN_MAX.saturating_sub(self.ranges.len());
        self.ranges.extend(damage.into_iter().take(room));
        self.ranges.sort_by_key(|range| range.from);
        u32::try_from(new).unwrap_or(u32::MAX)
    }

    /// What is left of it at or above the log start.
    fn shown(&mut self, start: Offset) -> Vec<DamagedRange> {
        self.ranges.retain(|range| range.until > start);
        let clip = |range: &DamagedRange| DamagedRange { from: range.from.max(start), ..range.clone() };
        self.ranges.iter().map(clip).collect()
    }
}

impl DamageState {
    /// What a start has found: damage that shows without a look into the files, and where to look.
    pub(super) fn new(
        evident: Vec<DamagedRange>,
        suspects: Vec<Offset>,
        accepted: Vec<AcceptedLoss>,
    ) -> Self {
        let mut known = Known { ranges: Vec::new(), suspects: suspects.into_iter().collect() };
        for range in evident {
            known.met(range);
        }
        Self { known: Mutex::new(known), accepted: Mutex::new(accepted), passes: Mutex::default() }
    }

    /// Somebody has met damage. Whether it was not known.
    pub(super) fn met(&self, from: Offset, until: Offset, reason: &str) -> bool {
        self.known.lock().met(DamagedRange { from, until, segment: from, reason: reason.to_owned() })
    }

    /// Something is wrong in the segment of an offset.
    pub(super) fn suspect(&self, offset: Offset) {
        self.known.lock().suspect(offset);
    }

    pub(super) fn known(&self, start: Offset) -> Vec<DamagedRange> {
        self.known.lock().shown(start)
    }

    pub(super) fn accepted(&self) -> Vec<AcceptedLoss> {
        self.accepted.lock().clone()
    }

    /// What a check has found that began when the log had this generation. Segments may have been replaced since, this one
    /// perhaps: what was given up does not come back, and is looked at once more.
    fn checked(&self, partition: &LocalPartition, began: u64, checked: CheckedSegment) -> u32 {
        let (id, counters) = (partition.id, &partition.shared.counters);
        let told = checked.damage.clone();
        let new = {
            let mut known = self.known.lock();
            if partition.reader.generation() != began {
                if !told.is_empty() {
                    known.suspect(checked.base);
                }
                return 0;
            }
            known.checked(checked)
        };
        if new > 0 {
            Counters::add(&counters.damaged_ranges, u64::from(new));
            for range in told {
                tracing::error!(partition = %id, from = %range.from, until = %range.until, reason = range.reason, "acknowledged data is damaged");
            }
        }
        new
    }

    /// Ends passes that are begun: they hold files.
    pub(super) fn stop(&self) {
        *self.passes.lock() = Passes::default();
    }
}

impl LocalPartition {
    /// Ends passes that are begun: they hold files.
    pub(super) fn stop_scrub(&self) {
        self.damage.stop();
    }

    pub(super) async fn scrub_some(
        self: &Arc<Self>,
        scope: ScrubScope,
        budget: ByteCount,
    ) -> Result<Scrubbed, StoreError> {
        if scope == ScrubScope::Suspects && self.has_no_suspects() {
            // Asked every second of every partition: it must cost nothing.
            return Ok(Scrubbed::default());
        }
        let partition = Arc::clone(self);
        blocking(move || partition.scrub_slice(scope, budget.get())).await
    }

    fn has_no_suspects(&self) -> bool {
        let begun = self.damage.passes.try_lock().is_none_or(|passes| passes.suspects.is_some());
        !begun && self.damage.known.lock().suspects.is_empty()
    }

    fn scrub_slice(&self, scope: ScrubScope, budget: u64) -> Result<Scrubbed, StoreError> {
        let mut passes = self.damage.passes.lock();
        // Under the lock: whoever shuts the partition takes it after that.
        self.check_open()?;
        let slot = match scope {
            ScrubScope::Sealed => &mut passes.sealed,
            ScrubScope::Suspects => &mut passes.suspects,
        };
        let mut pass = match slot.take() {
            Some(pass) => pass,
            None => match scope {
                ScrubScope::Sealed => Scrub::whole(self.reader.clone()),
                ScrubScope::Suspects => {
                    let suspects = std::mem::take(&mut self.damage.known.lock().suspects);
                    Scrub::of(self.reader.clone(), suspects)
                }
            },
        };
        let mut done = Scrubbed::default();
        let mut read = 0;
        loop {
            self.shared.queue.wait_until_idle(YIELD_MAX);
            let began = self.reader.generation();
            match pass.advance(UNIT_BYTES) {
                Ok(step) => {
                    read += step.read;
                    if let Some(checked) = step.checked {
                        done.segments += 1;
                        done.found += self.damage.checked(self, began, checked);
                    }
                    if step.done {
                        break;
                    }
                }
                Err(error) => {
                    done.failed += 1;
                    tracing::warn!(partition = %self.id, %error, "a segment was not checked");
                }
            }
            if read >= budget || self.check_open().is_err() {
                done.more = true;
                *slot = Some(pass);
                break;
            }
        }
        done.read = ByteCount(read);
        Ok(done)
    }

    pub(super) async fn look_at_damage(self: &Arc<Self>) -> Result<Vec<DamagedRange>, StoreError> {
        let partition = Arc::clone(self);
        blocking(move || {
            let mut offsets: BTreeSet<Offset> = {
                let known = partition.damage.known.lock();
                known.ranges.iter().map(|range| range.from).chain(known.suspects.iter().copied()).collect()
            };
            while let Some(offset) = offsets.pop_first() {
                let began = partition.reader.generation();
                let checked = partition.reader.check_segment(offset).map_err(store_error)?;
                if let Some(checked) = checked {
                    offsets.retain(|other| *other >= checked.until);
                    partition.damage.checked(&partition, began, checked);
                }
            }
            Ok(partition.damage.known(partition.reader.start()))
        })
        .await
    }

    pub(super) async fn give_up(
        self: &Arc<Self>,
        ranges: Vec<OffsetRange>,
        now: Timestamp,
    ) -> Result<Vec<AcceptedLoss>, AcceptLossError> {
        let ranges: Vec<_> = ranges.into_iter().map(|range| (range.from, range.until)).collect();
        let _one_at_a_time = self.maintenance.lock().await;
        // Nothing of the log changes for a name that is wrong: what is known says enough of that.
        let reader = self.reader.clone();
        let wanted = ranges.clone();
        let looked = blocking(move || Ok(reader.plan_loss(&wanted).map(drop))).await?;
        match looked {
            // Its segment is still written to.
            Ok(()) | Err(AcceptError::Overtaken) => {}
            Err(error) => return Err(self.not_accepted(error)),
        }
        // The segment is sealed, and what is known of producers must outlive what is given up (semantics, rule 6).
        self.barrier(|log| {
            log.roll_for_loss(&ranges, now);
            log.stage_snapshot(true);
        })
        .await?;
        let partition = Arc::clone(self);
        let done = blocking(move || Ok(partition.carry_out(&ranges, now))).await?;
        self.wake();
        done
    }

    fn carry_out(
        &self,
        ranges: &[(Offset, Offset)],
        now: Timestamp,
    ) -> Result<Vec<AcceptedLoss>, AcceptLossError> {
        // Held to the end, also if nobody waits for it any more: no trim and no compaction comes in between.
        let mut work = self.compaction.work();
        work.give_up();
        self.check_serving()?;
        let plan = self.reader.plan_loss(ranges).map_err(|error| self.not_accepted(error))?;
        if self.shared.guard.spare(ByteCount(plan.bytes())).is_err() {
            return Err(self.full().into());
        }
        let failed_syncs = self.shared.syncs.failed();
        let writer = self.state.lock().log.loss_writer();
        let mut accepted = Vec::new();
        for prepared in writer(plan, now) {
            let prepared = prepared.map_err(|error| self.not_accepted(error))?;
            let base = prepared.segment();
            // What was written may be lost, though its own sync did not say so.
            if !self.shared.syncs.none_failed_since(failed_syncs) {
                return Err(self.not_accepted(AcceptError::Overtaken));
            }
            let snapshot = self.state.lock().log.may_replace(prepared.replacement());
            let snapshot = snapshot.map_err(|error| self.not_accepted(error.into()))?;
            let installed = prepared.install(&self.directory, snapshot);
            let (replaced, losses) = installed.map_err(|error| self.not_accepted(error))?;
            self.state.lock().log.replaced(&replaced);
            self.check_names(failed_syncs)?;
            replaced.clean_up();
            work.forget_damage(base);
            for loss in &losses {
                tracing::warn!(partition = %self.id, from = %loss.from, until = %loss.until, kept = %loss.kept.display(), "a loss was accepted: readers go over it");
            }
            self.damage.given_up(base, &losses);
            accepted.extend(losses);
        }
        accepted.sort_by_key(|loss| loss.from);
        Ok(accepted)
    }

    fn not_accepted(&self, error: AcceptError) -> AcceptLossError {
        match error {
            AcceptError::Differs { found } => AcceptLossError::Differs { found },
            AcceptError::File(error) => store_error(error).into(),
            AcceptError::Unknown(error) => {
                let reason = format!("whether a loss was accepted is not known after a power cut: {error}");
                self.poison(&reason);
                StoreError::Poisoned { reason }.into()
            }
            error @ (AcceptError::BeforeFirst { .. }
            | AcceptError::TooLarge { .. }
            | AcceptError::Overtaken) => AcceptLossError::Refused { reason: error.to_string() },
        }
    }
}

impl DamageState {
    fn given_up(&self, base: Offset, losses: &[AcceptedLoss]) {
        let mut known = self.known.lock();
        known
            .ranges
            .retain(|range| !losses.iter().any(|loss| loss.from <= range.from && range.until <= loss.until));
        known.suspects.remove(&base);
        drop(known);
        let mut accepted = self.accepted.lock();
        accepted.retain(|known| !losses.iter().any(|loss| loss.kept == known.kept));
        accepted.extend_from_slice(losses);
        accepted.sort_by_key(|loss| loss.from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(value: u64) -> Offset {
        Offset::new(value).unwrap()
    }

    fn range(from: u64, until: u64) -> DamagedRange {
        DamagedRange {
            from: offset(from),
            until: offset(until),
            segment: offset(0),
            reason: from.to_string(),
        }
    }

    fn ranges(known: &Known) -> Vec<(u64, u64)> {
        known.ranges.iter().map(|range| (range.from.get(), range.until.get())).collect()
    }

    #[test]
    fn what_is_met_again_is_not_new_and_grows_together() {
        let mut known = Known::default();
        assert!(known.met(range(10, 20)));
        assert!(!known.met(range(10, 20)));
        assert!(known.met(range(30, 40)));
        assert!(known.met(range(20, 25)), "side by side is not the same");
        assert!(!known.met(range(15, 18)));
        assert_eq!(ranges(&known), [(10, 20), (20, 25), (30, 40)]);
        assert!(!known.met(range(24, 35)));
        assert_eq!(ranges(&known), [(10, 20), (20, 40)]);
        assert_eq!(known.suspects.len(), 3);
        for n in 0..2 * KNOWN_MAX as u64 {
            known.met(range(100 + 2 * n, 101 + 2 * n));
        }
        assert_eq!((known.ranges.len(), known.suspects.len()), (KNOWN_MAX, KNOWN_MAX));
    }

    #[test]
    fn a_check_says_all_of_its_segment_and_nothing_of_others() {
        let mut known = Known::default();
        for (from, until) in [(5, 8), (12, 14), (16, 20), (25, 30)] {
            known.met(range(from, until));
        }
        let damage = vec![range(11, 14), range(18, 19), range(15, 16)];
        let checked = CheckedSegment { base: offset(10), until: offset(20), damage };
        assert_eq!(known.checked(checked.clone()), 1, "one of the three touches nothing that was known");
        assert_eq!(ranges(&known), [(5, 8), (11, 14), (15, 16), (18, 19), (25, 30)]);
        assert_eq!(known.suspects, BTreeSet::from([offset(5), offset(25)]));
        assert_eq!(known.checked(checked), 0);
        assert_eq!(
            known.checked(CheckedSegment { base: offset(10), until: offset(20), damage: Vec::new() }),
            0
        );
        assert_eq!(ranges(&known), [(5, 8), (25, 30)], "it is whole again");
        let shown = known.shown(offset(7));
        assert_eq!((shown.len(), shown[0].from), (2, offset(7)));
        assert_eq!(known.shown(offset(28))[0].from, offset(28));
        assert!(known.shown(offset(30)).is_empty() && known.ranges.is_empty());
        assert_eq!(known.suspects.len(), 2, "their segments may reach above the log start");
    }
}
