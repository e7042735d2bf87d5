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
/// Damaged ranges that are remembered one by one of a partition. With more of them, those of a segment are remembered as
/// one, so that nothing is left out and there are no more than that and one for each segment.
const KNOWN_MAX: usize = 1_000;
/// Damaged ranges of one segment that are remembered one by one.
const SEGMENT_MAX: usize = 100;
/// Damaged ranges that are logged of one check of a segment.
const LOGGED_MAX: usize = 16;

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
    /// The bases of segments in which there is damage that nobody has measured yet; no more than there are segments.
    suspects: BTreeSet<Offset>,
}

impl Known {
    fn suspect(&mut self, segment: Offset) {
        self.suspects.insert(segment);
    }

    /// Whether it is new, as far as is known.
    fn met(&mut self, range: DamagedRange) -> bool {
        let touches = |known: &DamagedRange| known.from < range.until && range.from < known.until;
        let Some(first) = self.ranges.iter().position(touches) else {
            let segment = range.segment;
            self.suspect(segment);
            let at = self.ranges.partition_point(|known| known.from < range.from);
            self.ranges.insert(at, range);
            if self.ranges.len() > KNOWN_MAX {
                let of_segment = self.ranges.extract_if(.., |known| known.segment == segment).collect();
                self.ranges.extend(DamagedRange::as_one(of_segment));
                self.ranges.sort_by_key(|known| known.from);
            }
            return true;
        };
        let count = self.ranges[first..].iter().take_while(|known| touches(known)).count();
        let gone: Vec<_> = self.ranges.drain(first..first + count).collect();
        let from = gone.iter().map(|known| known.from).min().unwrap_or(range.from).min(range.from);
        let until = gone.iter().map(|known| known.until).max().unwrap_or(range.until).max(range.until);
        let mut grown = DamagedRange::new(from, until, range.segment, range.reason);
        if gone.iter().any(|known| known.ranges > 1) {
            // How much of it is damaged is known when its segment has been gone over.
            grown.ranges = gone.iter().map(|known| known.ranges).sum();
            let inside = gone.iter().map(|known| known.until.since(known.from)).sum::<u64>();
            let around = until.since(from).saturating_sub(inside);
            grown.offsets = around + gone.iter().map(|known| known.offsets).sum::<u64>();
            if around > 0 {
                self.suspect(grown.segment);
            }
        }
        if let Some(known) = gone.into_iter().next() {
            grown.reason = known.reason;
        }
        self.ranges.insert(first, grown);
        false
    }

    /// A segment was gone over: what was found is all that is damaged of it. Answers how many ranges are new.
    fn checked(&mut self, checked: CheckedSegment) -> u32 {
        let CheckedSegment { base, until, damage } = checked;
        let inside = |range: &DamagedRange| range.from < until && base < range.until;
        let before: Vec<_> = self.ranges.extract_if(.., |range| inside(range)).collect();
        self.suspects.retain(|offset| *offset < base || *offset >= until);
        let touches =
            |known: &DamagedRange, range: &DamagedRange| known.from < range.until && range.from < known.until;
        let is_new = |range: &&DamagedRange| !before.iter().any(|known| touches(known, range));
        let mut new = damage.iter().filter(is_new).count() as u64;
        for known in before.iter().filter(|known| known.ranges > 1) {
            let now = damage.iter().filter(|range| touches(known, range)).count() as u64;
            new += now.saturating_sub(known.ranges);
        }
        if damage.len() > SEGMENT_MAX || self.ranges.len() + damage.len() > KNOWN_MAX {
            self.ranges.extend(DamagedRange::as_one(damage));
        } else {
            self.ranges.extend(damage);
        }
        self.ranges.sort_by_key(|range| range.from);
        u32::try_from(new).unwrap_or(u32::MAX)
    }

    /// What is left of it at or above the log start.
    fn shown(&mut self, start: Offset) -> Vec<DamagedRange> {
        self.ranges.retain(|range| range.until > start);
        let clip = |range: &DamagedRange| {
            let mut range = range.clone();
            range.clip(start);
            range
        };
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

    /// Somebody has met damage in a segment. Whether it was not known.
    pub(super) fn met(&self, segment: Offset, from: Offset, until: Offset, reason: &str) -> bool {
        self.known.lock().met(DamagedRange::new(from, until, segment, reason.to_owned()))
    }

    /// Something is wrong in a segment.
    pub(super) fn suspect(&self, segment: Offset) {
        self.known.lock().suspect(segment);
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
        let (found, base) = (checked.damage.len(), checked.base);
        let told: Vec<_> = checked.damage.iter().take(LOGGED_MAX).cloned().collect();
        let new = {
            let mut known = self.known.lock();
            if partition.reader.generation() != began {
                if found > 0 {
                    known.suspect(base);
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
            if found > LOGGED_MAX {
                tracing::error!(partition = %id, segment = %base, ranges = found, "acknowledged data is damaged in more places than were named");
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
        let looked = blocking(move || Ok(reader.check_loss(&wanted))).await?;
        looked.map_err(|error| self.not_accepted(error))?;
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
            let extent = prepared.extent();
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
            work.forget_damage(extent.0);
            for loss in &losses {
                tracing::warn!(partition = %self.id, from = %loss.from, until = %loss.until, offsets = loss.offsets, kept = %loss.kept.display(), "a loss was accepted: readers go over it");
            }
            self.damage.given_up(extent, &losses);
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
            | AcceptError::TooMany
            | AcceptError::Overtaken) => AcceptLossError::Refused { reason: error.to_string() },
        }
    }
}

impl DamageState {
    /// Nothing of the segment is damaged any more.
    fn given_up(&self, (base, until): (Offset, Offset), losses: &[AcceptedLoss]) {
        self.known.lock().checked(CheckedSegment { base, until, damage: Vec::new() });
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
        DamagedRange::new(offset(from), offset(until), offset(from / 10 * 10), from.to_string())
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
        assert_eq!(known.suspects, BTreeSet::from([offset(10), offset(20), offset(30)]));
    }

    /// What there is no room for one by one is remembered by its segment, and nothing is new twice.
    #[test]
    fn nothing_that_was_met_is_left_out_or_counted_again() {
        let mut known = Known::default();
        let many = || (0..2 * KNOWN_MAX as u64).map(|n| range(2 * n, 2 * n + 1));
        assert!(many().all(|met| known.met(met)));
        assert!(!many().any(|met| known.met(met)), "it is known");
        let shown = known.shown(offset(0));
        let segments = 4 * KNOWN_MAX / 10;
        assert!(shown.len() <= KNOWN_MAX + segments, "{}", shown.len());
        assert_eq!(shown.iter().map(|range| range.ranges).sum::<u64>(), 2 * KNOWN_MAX as u64);
        assert_eq!(shown.iter().map(|range| range.offsets).sum::<u64>(), 2 * KNOWN_MAX as u64);
        assert!(
            many().all(|met| shown.iter().any(|known| known.from <= met.from && met.until <= known.until))
        );
        assert!(shown.is_sorted_by(|one, other| one.until <= other.from), "none over another");
        assert_eq!(known.suspects.len(), segments, "each segment is to be gone over");
    }

    /// A segment with many ranges is one, which can be named; the next check tells only what has come since.
    #[test]
    fn many_ranges_of_a_segment_are_remembered_as_one() {
        let mut known = Known::default();
        let base = offset(1_000);
        let until = offset(9_000);
        let damage: Vec<_> = (0..3_000)
            .map(|n| DamagedRange::new(offset(1_001 + 2 * n), offset(1_002 + 2 * n), base, n.to_string()))
            .collect();
        let checked = |damage: &[DamagedRange]| CheckedSegment { base, until, damage: damage.to_vec() };
        assert_eq!(known.checked(checked(&damage[..2_000])), 2_000);
        let one = known.ranges.clone();
        assert_eq!((one.len(), one[0].ranges, one[0].offsets), (1, 2_000, 2_000));
        assert_eq!((one[0].from, one[0].until, &*one[0].reason), (offset(1_001), offset(5_000), "0"));
        assert!(!known.met(DamagedRange::new(offset(1_101), offset(1_102), base, "again".to_owned())));
        assert_eq!((&known.ranges, known.suspects.len()), (&one, 0));
        assert_eq!(known.checked(checked(&damage[..2_000])), 0);
        assert_eq!(known.checked(checked(&damage)), 1_000);
        let mut clipped = known.shown(offset(6_999));
        assert_eq!((clipped.len(), clipped[0].from, clipped[0].offsets), (1, offset(6_999), 1));
        assert_eq!(clipped.remove(0).until, offset(7_000));
        assert_eq!(known.checked(checked(&[])), 0);
        assert!(known.ranges.is_empty(), "it was given up");
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
        assert_eq!(known.suspects, BTreeSet::from([offset(0), offset(20)]));
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
