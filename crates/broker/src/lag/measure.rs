//! Counting in one partition, from every offset that a group has committed there up to the end. What was counted
//! before is built on as long as the log has only grown.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rimstone_state::lag::{Unread, reads_from};
use rimstone_store::{LogEnds, PartitionStore, ReadError, StoreError};
use rimstone_types::{Offset, PartitionIndex};
use tokio::time::Instant;

use super::{LagUnknown, table::Counted};
use crate::{
    error::{PartitionReadError, PartitionUnavailable},
    topics::Topic,
};

/// A count is made again if log start moved or compaction went on meanwhile, which is rare; so often in a row only
/// if something is wrong.
const TRIES: usize = 16;

/// A partition that could not be counted is not tried again before this, unless it has moved: each try of damaged
/// bytes is logged and counted.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Where groups stand in a partition; `None`: nothing committed, from log start.
pub(super) type Positions = BTreeSet<Option<Offset>>;

/// What is known of one partition.
#[derive(Debug)]
pub(super) struct Measured {
    moment: Option<Moment>,
    counts: Result<BTreeMap<Option<Offset>, Unread>, Unknown>,
}

/// When nothing of these has changed, no count has. Each of them only goes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    start: Offset,
    end: Offset,
    generation: u64,
}

#[derive(Debug)]
struct Unknown {
    why: LagUnknown,
    since: Instant,
    positions: Positions,
}

impl Moment {
    fn of(store: &dyn PartitionStore) -> Self {
        let generation = store.generation();
        let LogEnds { start, stable: end, .. } = store.ends();
        Self { start, end, generation }
    }

    /// How a partition is now; `None`: it is not open.
    pub(super) fn now(topic: &Topic, partition: PartitionIndex) -> Option<Self> {
        topic.partition(partition).ok().map(|store| Self::of(&**store))
    }

    fn is_at_least(&self, other: &Self) -> bool {
        self.start >= other.start && self.end >= other.end && self.generation >= other.generation
    }
}

impl Measured {
    /// What was counted from a position; `None` if nobody stood there when it was.
    pub(super) fn from(&self, position: Option<Offset>) -> Option<Result<Counted, LagUnknown>> {
        match (&self.counts, self.moment) {
            (Ok(counts), Some(Moment { start, end, .. })) => {
                counts.get(&position).map(|&unread| Ok(Counted { start, end, unread }))
            }
            (Ok(_), None) => None,
            (Err(unknown), _) => Some(Err(unknown.why.clone())),
        }
    }

    /// What is told of a partition that was not counted in time after the moment at which that was wanted.
    pub(super) fn late(
        topic: &Topic,
        partition: PartitionIndex,
        within: Duration,
        asked: Option<Moment>,
    ) -> Self {
        let why = format!("its lag was not counted within {} s; try again", within.as_secs());
        let late = PartitionUnavailable { topic: topic.name.clone(), partition, why };
        let why = LagUnknown(Arc::new(late.into()));
        let unknown = Unknown { why, since: Instant::now(), positions: Positions::new() };
        Self { moment: asked, counts: Err(unknown) }
    }

    pub(super) fn is_late(&self) -> bool {
        self.counts.as_ref().is_err_and(|unknown| unknown.positions.is_empty())
    }

    /// Whether what is kept is to stay, for those who stand at these positions: it is of a later moment, or of the
    /// same and known.
    pub(super) fn yields_to(&self, kept: &Self, positions: &Positions) -> bool {
        let is_better = match (&self.moment, &kept.moment) {
            (Some(this), Some(kept_moment)) if this == kept_moment => {
                self.counts.is_err() && kept.counts.is_ok()
            }
            (Some(this), Some(kept_moment)) => kept_moment.is_at_least(this),
            _ => false,
        };
        is_better && kept.covers(positions)
    }

    /// Whether it answers a question about these positions that was asked when the partition was so.
    pub(super) fn answers(&self, asked: Option<Moment>, positions: &Positions) -> bool {
        let is_not_older = match (&self.moment, &asked) {
            (Some(then), Some(asked)) => then.is_at_least(asked),
            (then, asked) => then.is_none() && asked.is_none(),
        };
        is_not_older
            && self.covers(positions)
            && self.counts.as_ref().map_or_else(|unknown| unknown.since.elapsed() < RETRY_AFTER, |_| true)
    }

    /// Whether all of these positions were counted from, or tried.
    pub(super) fn covers(&self, positions: &Positions) -> bool {
        match &self.counts {
            Ok(counts) => positions.iter().all(|position| counts.contains_key(position)),
            Err(unknown) => positions.is_subset(&unknown.positions),
        }
    }

    /// Whether it is just what a count from these positions would find now.
    pub(super) fn serves(&self, moment: Option<Moment>, positions: &Positions) -> bool {
        self.moment == moment
            && match &self.counts {
                Ok(counts) => counts.keys().eq(positions),
                Err(unknown) => unknown.positions == *positions && unknown.since.elapsed() < RETRY_AFTER,
            }
    }
}

/// Counts, building on what was counted before.
pub(super) async fn measure(
    topic: &Topic,
    partition: PartitionIndex,
    positions: Positions,
    before: Option<Arc<Measured>>,
) -> Arc<Measured> {
    let store = topic.partition(partition);
    let moment = Moment::now(topic, partition);
    if let Some(before) = before.as_ref().filter(|before| before.serves(moment, &positions)) {
        return Arc::clone(before);
    }
    let counted = match store {
        Ok(store) => count_at_rest(&**store, &positions, before.as_deref()).await,
        Err(error) => Err(error.into()),
    };
    Arc::new(match counted {
        Ok((moment, counts)) => Measured { moment: Some(moment), counts: Ok(counts) },
        Err(why) => {
            tracing::warn!(topic = %topic.name, %partition, error = %why, "lag cannot be counted");
            let why = LagUnknown(Arc::new(why));
            Measured { moment, counts: Err(Unknown { why, since: Instant::now(), positions }) }
        }
    })
}

type Counts = BTreeMap<Option<Offset>, Unread>;

/// Counts while nothing but the end moves.
async fn count_at_rest(
    store: &dyn PartitionStore,
    positions: &Positions,
    before: Option<&Measured>,
) -> Result<(Moment, Counts), PartitionReadError> {
    for _ in 0..TRIES {
        let moment = Moment::of(store);
        let counted = count(store, moment, positions, before).await;
        let after = Moment::of(store);
        if (after.start, after.generation) == (moment.start, moment.generation) {
            return Ok((moment, counted?));
        }
    }
    Err(ReadError::Store(StoreError::Io {
        operation: "count",
        path: "the log".to_owned(),
        reason: format!("log start moved under {TRIES} counts in a row"),
    })
    .into())
}

async fn count(
    store: &dyn PartitionStore,
    moment: Moment,
    positions: &Positions,
    before: Option<&Measured>,
) -> Result<Counts, ReadError> {
    let built_on = before.and_then(|before| match (&before.counts, before.moment) {
        (Ok(counts), Some(then)) if then.generation == moment.generation && then.end <= moment.end => {
            Some((counts, then))
        }
        _ => None,
    });
    // Counted once, whoever stands where.
    let mut from_offsets: BTreeMap<Offset, Unread> = BTreeMap::new();
    let mut appended = None;
    let mut counts = Counts::new();
    for &position in positions {
        let from = reads_from(position, moment.start);
        let known = built_on.and_then(|(counts, then)| {
            let same = reads_from(position, then.start) == from && from <= then.end;
            counts.get(&position).filter(|_| same).map(|unread| (*unread, then.end))
        });
        let unread = match (known, from_offsets.get(&from)) {
            (_, Some(&unread)) => unread,
            (Some((unread, end)), None) => {
                let more = match appended {
                    Some(more) => more,
                    None => *appended.insert(between(store, end, moment.end).await?),
                };
                unread.and(more)
            }
            (None, None) => between(store, from, moment.end).await?,
        };
        from_offsets.insert(from, unread);
        counts.insert(position, unread);
    }
    Ok(counts)
}

async fn between(store: &dyn PartitionStore, from: Offset, to: Offset) -> Result<Unread, ReadError> {
    if from >= to {
        return Ok(Unread::default());
    }
    let records = store.count(from, to).await?.records;
    let first_append = if records > 0 { store.append_time_at(from).await? } else { None };
    Ok(Unread { records, first_append })
}
