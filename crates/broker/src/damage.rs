//! Damage of partitions: looking for it in the background, showing it, giving it up on purpose.
//!
//! Not here: how a segment is checked, yielding to the flusher (the store).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rimstone_store::{
    AcceptedLoss, DamagedRange, OffsetRange, PartitionStore, ScrubScope, Scrubbed, StoreError,
};
use rimstone_types::{ByteCount, PartitionIndex, TopicName};

use crate::{
    broker::{Broker, Inner},
    error::{FindDamageError, InvalidRequest, LossError},
};

/// Log that is gone over before the loop rests.
const SLICE: ByteCount = ByteCount::mib(1);
/// How often what reads, compaction and a start have met is looked at.
const SUSPECTS_INTERVAL: Duration = Duration::from_secs(1);
/// The first pass begins this long after the start, or after the interval if that is shorter: a server that is started
/// again every day must be gone over too.
const FIRST_PASS_AFTER: Duration = Duration::from_secs(60 * 60);
/// Ranges that one request may name: as many as one answer lists. One name may stand for many of a segment.
const RANGES_MAX: usize = 1_000;

/// What one pass over everything did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubReport {
    /// Bytes gone over.
    pub read: ByteCount,
    /// Segments gone over.
    pub segments: u64,
    /// Damaged ranges that were not known.
    pub found: u64,
    /// Segments and partitions that could not be gone over; each was logged.
    pub failed: u64,
}

impl ScrubReport {
    fn add(&mut self, done: Scrubbed) {
        self.read = ByteCount(self.read.get() + done.read.get());
        self.segments += u64::from(done.segments);
        self.found += u64::from(done.found);
        self.failed += u64::from(done.failed);
    }
}

impl Broker {
    /// Goes over all sealed segments of all partitions, without a rest.
    pub async fn scrub(&self) -> ScrubReport {
        self.inner.scrub(ScrubScope::Sealed, None).await
    }

    /// The damage that is known in a partition, looked at once more on the disk, and what was given up.
    ///
    /// # Errors
    /// [`FindDamageError`].
    pub async fn find_damage(
        &self,
        topic: &TopicName,
        partition: PartitionIndex,
    ) -> Result<(Vec<DamagedRange>, Vec<AcceptedLoss>), FindDamageError> {
        let look = async {
            let topic = self.inner.topics.get(topic)?;
            let store = topic.partition(partition)?;
            let damaged = store.find_damage().await?;
            Ok((damaged, store.info().accepted_losses))
        };
        self.counted(look.await)
    }

    /// Gives damaged offsets up for ever. It goes on to its end, also when nobody waits for it any more.
    ///
    /// # Errors
    /// [`LossError`]: nothing was given up, except after a [`StoreError::Poisoned`], where the next start tells.
    pub async fn accept_loss(
        &self,
        topic: &TopicName,
        partition: PartitionIndex,
        ranges: Vec<OffsetRange>,
    ) -> Result<Vec<AcceptedLoss>, LossError> {
        let (inner, topic) = (Arc::clone(&self.inner), topic.clone());
        let accepted = self.inner.detached(async move { inner.accept_loss(&topic, partition, ranges).await });
        self.counted(accepted.await)
    }
}

impl Inner {
    /// How many partitions have damage that is known.
    pub(crate) fn damaged_partitions(&self) -> u32 {
        let topics = self.topics.all();
        let stores = topics.iter().flat_map(|topic| topic.open_partitions());
        let count = stores.filter(|(_, store)| !store.info().damage.is_empty()).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    async fn accept_loss(
        &self,
        topic: &TopicName,
        partition: PartitionIndex,
        ranges: Vec<OffsetRange>,
    ) -> Result<Vec<AcceptedLoss>, LossError> {
        self.refuse_when_stopping()?;
        if ranges.is_empty() || ranges.len() > RANGES_MAX {
            return Err(InvalidRequest::new(format!("name 1 to {RANGES_MAX} ranges of offsets")).into());
        }
        if let Some(range) = ranges.iter().find(|range| range.from >= range.until) {
            return Err(InvalidRequest::new(format!(
                "{range} is no range: its end must lie behind its start"
            ))
            .into());
        }
        let topic = self.topics.get(topic)?;
        let store = Arc::clone(topic.partition(partition)?);
        Ok(store.accept_loss(ranges, self.clock.now()).await?)
    }

    /// One pass. `pace` is in bytes per second; `None`: as fast as it goes.
    async fn scrub(&self, scope: ScrubScope, pace: Option<ByteCount>) -> ScrubReport {
        let mut report = ScrubReport::default();
        for topic in self.topics.all() {
            for (partition, store) in topic.open_partitions() {
                match self.scrub_one(&**store, scope, pace, &mut report).await {
                    Ok(()) => {}
                    Err(StoreError::ShuttingDown) => return report,
                    Err(StoreError::Deleted) => {}
                    Err(error) => {
                        report.failed += 1;
                        tracing::warn!(topic = %topic.name, %partition, %error, "a partition was not scrubbed");
                    }
                }
            }
        }
        report
    }

    async fn scrub_one(
        &self,
        store: &dyn PartitionStore,
        scope: ScrubScope,
        pace: Option<ByteCount>,
        report: &mut ScrubReport,
    ) -> Result<(), StoreError> {
        loop {
            if self.shutdown.is_cancelled() {
                return Err(StoreError::ShuttingDown);
            }
            let began = Instant::now();
            let done = store.scrub(scope, SLICE).await?;
            report.add(done);
            self.metrics.scrub.slice(&done);
            let rest = pace.map_or(Duration::ZERO, |pace| rest(done.read, pace, began.elapsed()));
            if !rest.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(rest) => {}
                    () = self.shutdown.cancelled() => return Err(StoreError::ShuttingDown),
                }
            }
            if !done.more {
                return Ok(());
            }
        }
    }

    /// Goes over what reads, compaction and a start have met, soon after; until shutdown. It waits for no pass over
    /// everything, which may take days.
    pub(crate) async fn run_suspects(self: Arc<Self>, pace: ByteCount) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SUSPECTS_INTERVAL) => {}
                () = self.shutdown.cancelled() => return,
            }
            self.scrub(ScrubScope::Suspects, Some(pace)).await;
        }
    }

    /// Goes over everything so often, at a pace; until shutdown.
    pub(crate) async fn run_scrub(self: Arc<Self>, every: Duration, pace: ByteCount) {
        let mut due = tokio::time::Instant::now() + every.min(FIRST_PASS_AFTER);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.shutdown.cancelled() => return,
            }
            due = tokio::time::Instant::now() + every;
            let began = Instant::now();
            let report = self.scrub(ScrubScope::Sealed, Some(pace)).await;
            if self.shutdown.is_cancelled() {
                return;
            }
            // What was left out is not known to be whole.
            if report.failed == 0 {
                self.metrics.scrub.passed(self.clock.now());
            }
            let ScrubReport { read, segments, found, failed } = report;
            let took_s = began.elapsed().as_secs();
            tracing::info!(bytes = read.get(), segments, found, failed, took_s, "scrubbed");
        }
    }
}

/// How long to wait after so many bytes, so that no more than `pace` go by in a second.
fn rest(read: ByteCount, pace: ByteCount, took: Duration) -> Duration {
    let wanted = Duration::from_secs_f64(read.get() as f64 / pace.get().max(1) as f64);
    wanted.saturating_sub(took)
}

#[cfg(test)]
mod tests {
    use rimstone_types::PartitionId;

    use super::*;
    use crate::testing::{Fixture, still};

    /// A topic whose pass takes so many slices of a second each; runs until it is over.
    async fn passed(slices: usize, each: Scrubbed) -> (Fixture, PartitionId) {
        let every = Duration::from_secs(5);
        let config = crate::BrokerConfig { scrub_interval: every, scrub_pace: SLICE, ..still() };
        let fixture = Fixture::with(config).await;
        let id = PartitionId { topic: fixture.topic("t", 1).await, partition: PartitionIndex(0) };
        fixture.store.script(id, |script| {
            script.sealed_slices = slices;
            script.scrubbed = Scrubbed { read: SLICE, ..each };
        });
        while fixture.store.script(id, |script| script.sealed_slices) > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // What the pass says when it is through comes behind its last slice.
        tokio::time::sleep(Duration::from_secs(2)).await;
        (fixture, id)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_met_during_a_pass_is_looked_at_during_it() {
        let (fixture, id) = passed(60, Scrubbed::default()).await;
        let scrubs = fixture.store.script(id, |script| script.scrubs.clone());
        let sealed = scrubs.iter().filter(|scope| **scope == ScrubScope::Sealed).count();
        assert!(sealed >= 60, "{scrubs:?}");
        let longest = scrubs.chunk_by(|one, other| one == other).map(|run| (run[0], run.len()));
        let longest = longest.filter(|(scope, _)| *scope == ScrubScope::Sealed).map(|(_, run)| run).max();
        assert!(longest < Some(5), "{longest:?} slices without a look at what was met");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_that_left_something_out_does_not_count() {
        for failed in [0, 1] {
            let (fixture, _) = passed(3, Scrubbed { failed, ..Scrubbed::default() }).await;
            let text = fixture.broker.metrics_text();
            let passes = text.lines().find(|line| line.starts_with("rimstone_scrub_passes_total")).unwrap();
            assert_eq!(passes.ends_with(" 0"), failed > 0, "{passes}");
        }
    }

    #[test]
    fn a_slice_waits_for_what_is_left_of_its_time() {
        let rest = |bytes, pace, took| {
            rest(ByteCount(bytes), ByteCount(pace), Duration::from_millis(took)).as_millis()
        };
        assert_eq!(rest(1000, 1000, 0), 1000);
        assert_eq!(rest(500, 1000, 200), 300);
        assert_eq!(rest(500, 1000, 800), 0);
        assert_eq!(rest(0, 1000, 0), 0);
        assert_eq!(rest(1, 0, 0), 1000, "no pace is the slowest one");
    }
}
