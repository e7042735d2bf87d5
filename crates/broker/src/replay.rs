//! Reading again: what moving a group's offsets would do, and doing it. A plan says for every partition where the
//! reader would go on, how much it would read again, how much it would skip, and what retention has taken; it is
//! made once more before it is carried out, as one change of the group or as a new group.
//!
//! Not here: where an aim leads to (`rimstone-state`), keeping offsets (`coordinator`), reading.

mod plan;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rimstone_state::group::{ImportOffset, ImportTo, OffsetValue};
use rimstone_types::{GroupName, Offset, PartitionIndex, Timestamp, TopicName};

use self::plan::Planned;
use crate::{
    broker::{Broker, Inner},
    error::{Details, Failure, GroupRequestError, PartitionReadError, PlanChanged, Reason, ReplayError},
    groups::Importing,
};

/// A plan that is overtaken between planning and doing is made again so often, where any plan will do.
const TRIES: usize = 8;

/// What to replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplaySpec {
    /// The group whose offsets are looked at.
    pub group: GroupName,
    /// Only these topics; empty: all that the group has committed offsets of.
    pub topics: Vec<TopicName>,
    /// Only these partitions, of every topic; empty: all.
    pub partitions: Vec<PartitionIndex>,
    /// Where to go on.
    pub to: ReplayTo,
    /// Move the offsets of a new group of this name; `None`: those of the group itself.
    pub clone_to: Option<GroupName>,
}

/// Where a replay leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayTo {
    /// The first record there is.
    Earliest,
    /// The end.
    Latest,
    /// This offset in every partition.
    Offset(Offset),
    /// The first record at or after a time, by the topic's time.
    Time(Timestamp),
    /// The first record at or after so long ago.
    Ago(Duration),
    /// So many offsets on from the committed one, or back; within the log.
    Shift(i64),
    /// An offset per partition of one topic; others are left alone.
    Offsets(BTreeMap<PartitionIndex, Offset>),
}

/// What a replay would do, or has done.
#[derive(Debug)]
pub struct ReplayPlan {
    /// In order of topic and partition.
    pub partitions: Vec<PlannedPartition>,
    /// Records that will be read again, over all partitions.
    pub records: u64,
    /// Their bytes, as stored.
    pub bytes: u64,
    /// Offsets that were asked for and that retention has taken, over all partitions.
    pub gone: u64,
    /// By what the plan is recognised.
    pub fingerprint: String,
    /// Why it could not be done now.
    pub obstacle: Option<ReplayError>,
    /// When it was made.
    pub planned: Timestamp,
}

/// What a replay would do in one partition.
#[derive(Debug)]
pub struct PlannedPartition {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// What is committed; `None`: nothing.
    pub old: Option<Offset>,
    /// What would be planned, or why nothing can be.
    pub planned: Result<PlannedMove, Arc<PartitionReadError>>,
}

/// Where a partition would be moved to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedMove {
    /// The new offset; `None`: the partition is left alone.
    pub new: Option<Offset>,
    /// Log start.
    pub log_start: Offset,
    /// The end that readers see.
    pub end: Offset,
    /// Records that will be read again.
    pub records: u64,
    /// Their bytes as stored, rounded up to whole batches.
    pub bytes: u64,
    /// Records that will not be read.
    pub skipped: u64,
    /// Offsets below log start that were asked for; 0 for a time.
    pub gone: u64,
    /// For a time: retention may have taken records that were asked for. Nothing older than the time is left below
    /// the first record, and log start has moved; what there was, nobody knows.
    pub may_be_gone: bool,
}

impl PlannedPartition {
    /// The offset that is to be another than before; `None`: nothing is.
    pub(crate) fn moved_to(&self) -> Option<Offset> {
        let new = self.planned.as_ref().ok().and_then(|planned| planned.new);
        new.filter(|_| new != self.old)
    }
}

impl ReplayPlan {
    /// Partitions whose offset is to be another than before.
    pub(crate) fn moved(&self) -> usize {
        self.partitions.iter().filter_map(PlannedPartition::moved_to).count()
    }
}

impl Broker {
    /// What a replay would do. Changes nothing.
    ///
    /// # Errors
    /// [`ReplayError`]; what stands in the way of doing it is told in the plan.
    pub async fn plan_replay(&self, spec: &ReplaySpec) -> Result<ReplayPlan, ReplayError> {
        self.counted(self.inner.make_plan(spec).await.map(|planned| planned.plan))
    }

    /// Plans, and does it: all offsets move together, durably, or none. With a fingerprint it is refused if the
    /// plan is not the one that had it.
    ///
    /// # Errors
    /// [`ReplayError`]; with [`GroupRequestError::Append`] inside nobody knows whether it was done.
    pub async fn start_replay(
        &self,
        spec: ReplaySpec,
        fingerprint: Option<String>,
    ) -> Result<ReplayPlan, ReplayError> {
        let inner = Arc::clone(&self.inner);
        let started = self.inner.detached(async move { inner.start_replay(&spec, fingerprint).await });
        self.counted(started.await)
    }
}

impl Inner {
    async fn start_replay(
        self: &Arc<Self>,
        spec: &ReplaySpec,
        fingerprint: Option<String>,
    ) -> Result<ReplayPlan, ReplayError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let planned = self.make_plan(spec).await?;
            if fingerprint.as_ref().is_some_and(|wanted| *wanted != planned.plan.fingerprint) {
                return Err(GroupRequestError::from(PlanChanged { group: spec.group.clone() }).into());
            }
            if let Some(obstacle) = planned.plan.obstacle {
                return Err(obstacle);
            }
            match self.import_offsets(importing(spec, &planned)).await {
                Ok(()) => {
                    let (group, into) = (&spec.group, spec.clone_to.as_ref());
                    let plan = planned.plan;
                    let moved = plan.moved();
                    tracing::info!(%group, into = into.map(GroupName::as_str), moved, records = plan.records, "replay");
                    return Ok(plan);
                }
                Err(GroupRequestError::PlanChanged(_)) if fingerprint.is_none() && tries < TRIES => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What to set, and what must still be so then.
fn importing(spec: &ReplaySpec, planned: &Planned) -> Importing {
    let mut offsets = BTreeMap::new();
    if spec.clone_to.is_some() {
        // What is not moved goes along as it is.
        let along =
            planned.before.iter().filter(|kept| planned.topic(&kept.topic, kept.value.topic_id).is_some());
        offsets.extend(along.map(|kept| ((kept.topic.clone(), kept.partition), kept.value.clone())));
    }
    for row in &planned.plan.partitions {
        let Some(offset) = row.moved_to() else { continue };
        let topic_id = planned.topics[&row.topic].id;
        let value = OffsetValue {
            topic_id,
            offset,
            leader_epoch: None,
            metadata: String::new(),
            commit_time_ms: planned.plan.planned,
        };
        offsets.insert((row.topic.clone(), row.partition), value);
    }
    let import = |((topic, partition), value)| ImportOffset { topic, partition, value: Some(value) };
    let offsets = offsets.into_iter().map(import).collect();
    match &spec.clone_to {
        Some(group) => Importing { group: group.clone(), to: ImportTo::New, offsets, unchanged: None },
        None => {
            let unchanged = Some(planned.before.clone());
            Importing { group: spec.group.clone(), to: ImportTo::NoMembers, offsets, unchanged }
        }
    }
}

/// A partition stands in the way of a replay.
#[derive(Debug, Clone, thiserror::Error)]
#[error("partition {partition} of topic {topic} cannot be replayed: {why}")]
pub struct ReplayBlocked {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// Why.
    pub why: Arc<PartitionReadError>,
}

impl Failure for ReplayBlocked {
    fn reason(&self) -> Reason {
        self.why.reason()
    }

    fn details(&self) -> Details {
        let mut details = self.why.details();
        details.retain(|(name, _)| !matches!(*name, "topic" | "partition"));
        details.push(("topic", self.topic.to_string()));
        details.push(("partition", self.partition.to_string()));
        details
    }
}

#[cfg(test)]
mod tests;
