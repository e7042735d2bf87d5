//! Making a plan: which partitions, where each would go on, and what lies between.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{StreamExt, stream};
use rimstone_state::{
    group::GroupError,
    replay::{Aim, BeyondEnd, Fingerprint, Move, Span, Stand},
};
use rimstone_store::{LogEnds, PartitionStore, ReadError, RecordCount};
use rimstone_types::{Offset, PartitionIndex, Timestamp, TopicId, TopicName};

use super::{PlannedMove, PlannedPartition, ReplayBlocked, ReplayPlan, ReplaySpec, ReplayTo};
use crate::{
    broker::Inner,
    error::{GroupRequestError, InvalidRequest, LimitReached, PartitionReadError, ReplayError},
    groups::GroupOffset,
    topics::Topic,
};

/// Partitions that are looked up at one time.
const LOOK_UPS_AT_ONCE: usize = 16;

/// A plan with what it was made from.
pub(super) struct Planned {
    pub(super) plan: ReplayPlan,
    /// All offsets of the group.
    pub(super) before: Vec<GroupOffset>,
    pub(super) topics: BTreeMap<TopicName, Arc<Topic>>,
}

/// Where a partition is aimed at, before anything is looked up.
#[derive(Clone, Copy)]
enum Wanted {
    Known(Aim),
    Time(Timestamp),
}

struct Row {
    topic: Arc<Topic>,
    partition: PartitionIndex,
    committed: Option<Offset>,
    wanted: Wanted,
}

impl Planned {
    /// A topic of the plan, if it is this one.
    pub(super) fn topic(&self, name: &TopicName, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(name).filter(|topic| topic.id == id)
    }
}

impl Inner {
    pub(super) async fn make_plan(&self, spec: &ReplaySpec) -> Result<Planned, ReplayError> {
        self.check_spec(spec)?;
        let not_found = || GroupRequestError::from(GroupError::NotFound { group: spec.group.clone() });
        let found = self.group_offsets(&spec.group).await?.ok_or_else(not_found)?;
        let topics = self.topics_of(spec, &found.offsets)?;
        let now = self.clock.now();
        let rows = self.rows(spec, &topics, &found.offsets, now)?;
        let (mut partitions, mut marks) = (Vec::new(), Vec::new());
        let mut looked_up = stream::iter(rows).map(Row::look_up).buffered(LOOK_UPS_AT_ONCE);
        while let Some((topic, row, aim)) = looked_up.next().await {
            marks.push((topic, aim));
            partitions.push(row);
        }
        let fingerprint = fingerprint(spec, &found.offsets, &partitions, &marks);
        let mut plan = ReplayPlan::new(partitions, fingerprint, now);
        plan.obstacle = self.obstacle(spec, &plan, found.members).await?;
        Ok(Planned { plan, before: found.offsets, topics })
    }

    fn check_spec(&self, spec: &ReplaySpec) -> Result<(), ReplayError> {
        self.refuse_when_stopping()?;
        let limit = self.config.limits.partitions_per_fetch;
        if spec.topics.len() > limit || spec.partitions.len() > limit {
            return Err(LimitReached { what: "names in one replay", limit: limit as u64 }.into());
        }
        if matches!(spec.to, ReplayTo::Offsets(_)) && (spec.topics.len() != 1 || !spec.partitions.is_empty())
        {
            let why = "offsets per partition need exactly one topic, and say themselves which partitions";
            return Err(InvalidRequest { why: why.to_owned() }.into());
        }
        Ok(())
    }

    /// Those named, or those that the group has committed in; not an earlier topic of the same name.
    fn topics_of(
        &self,
        spec: &ReplaySpec,
        offsets: &[GroupOffset],
    ) -> Result<BTreeMap<TopicName, Arc<Topic>>, ReplayError> {
        let mut topics = BTreeMap::new();
        for name in &spec.topics {
            topics.insert(name.clone(), self.topics.get(name)?);
        }
        if spec.topics.is_empty() {
            let committed = offsets.iter().filter_map(|offset| {
                self.topics.get(&offset.topic).ok().filter(|topic| topic.id == offset.value.topic_id)
            });
            topics.extend(committed.map(|topic| (topic.name.clone(), topic)));
        }
        Ok(topics)
    }

    fn rows(
        &self,
        spec: &ReplaySpec,
        topics: &BTreeMap<TopicName, Arc<Topic>>,
        offsets: &[GroupOffset],
        now: Timestamp,
    ) -> Result<Vec<Row>, ReplayError> {
        let committed: BTreeMap<_, _> = offsets
            .iter()
            .map(|offset| ((offset.value.topic_id, offset.partition), offset.value.offset))
            .collect();
        let limit = self.config.limits.partitions_per_fetch;
        let mut rows = Vec::new();
        for topic in topics.values() {
            let partitions: BTreeSet<_> = match (&spec.to, &*spec.partitions) {
                (ReplayTo::Offsets(offsets), _) => offsets.keys().copied().collect(),
                (_, []) => topic.partitions().map(|(partition, _)| partition).collect(),
                (_, some) => some.iter().copied().collect(),
            };
            if rows.len() + partitions.len() > limit {
                return Err(LimitReached { what: "partitions in one replay", limit: limit as u64 }.into());
            }
            rows.extend(partitions.into_iter().map(|partition| Row {
                topic: Arc::clone(topic),
                partition,
                committed: committed.get(&(topic.id, partition)).copied(),
                wanted: wanted(&spec.to, partition, now),
            }));
        }
        Ok(rows)
    }

    async fn obstacle(
        &self,
        spec: &ReplaySpec,
        plan: &ReplayPlan,
        members: usize,
    ) -> Result<Option<ReplayError>, ReplayError> {
        let refused = match &spec.clone_to {
            None if members > 0 => Some(GroupError::NotEmpty { group: spec.group.clone(), members }),
            Some(group) if self.group_offsets(group).await?.is_some() => {
                Some(GroupError::Exists { group: group.clone() })
            }
            _ => None,
        };
        if let Some(refused) = refused {
            return Ok(Some(GroupRequestError::from(refused).into()));
        }
        for row in &plan.partitions {
            if let Err(why) = &row.planned {
                let (topic, partition, why) = (row.topic.clone(), row.partition, Arc::clone(why));
                return Ok(Some(ReplayBlocked { topic, partition, why }.into()));
            }
        }
        let moves = |row: &PlannedPartition| row.planned.as_ref().is_ok_and(|planned| planned.new.is_some());
        // A group is made by its offsets, moved or not.
        let counts = |row| moves(row) || (spec.clone_to.is_some() && row.old.is_some());
        if plan.partitions.iter().any(counts) {
            return Ok(None);
        }
        let why = if plan.partitions.is_empty() {
            "there is nothing to replay: the group has committed no offsets; name the topics"
        } else {
            "there is nothing to replay: no partition has anything to go to"
        };
        Ok(Some(InvalidRequest { why: why.to_owned() }.into()))
    }
}

fn wanted(to: &ReplayTo, partition: PartitionIndex, now: Timestamp) -> Wanted {
    match to {
        ReplayTo::Earliest => Wanted::Known(Aim::Earliest),
        ReplayTo::Latest => Wanted::Known(Aim::Latest),
        ReplayTo::Offset(offset) => Wanted::Known(Aim::Offset(*offset)),
        ReplayTo::Time(at) => Wanted::Time(*at),
        ReplayTo::Ago(ago) => Wanted::Time(now.saturating_sub(*ago)),
        ReplayTo::Shift(by) => Wanted::Known(Aim::Shift(*by)),
        ReplayTo::Offsets(offsets) => {
            let offset = offsets.get(&partition).expect("only partitions with an offset have a row");
            Wanted::Known(Aim::Offset(*offset))
        }
    }
}

impl Row {
    /// The plan of the partition, and what it was aimed at.
    async fn look_up(self) -> (TopicId, PlannedPartition, Aim) {
        let Self { topic, partition, committed, wanted } = self;
        let planned = match topic.partition(partition) {
            Ok(store) => plan(&**store, committed, wanted).await.map_err(PartitionReadError::from),
            Err(error) => Err(PartitionReadError::from(error)),
        };
        let aim = planned.as_ref().map_or(Aim::Time(None), |(_, aim)| *aim);
        let planned = planned.map(|(planned, _)| planned).map_err(Arc::new);
        let row = PlannedPartition { topic: topic.name.clone(), partition, old: committed, planned };
        (topic.id, row, aim)
    }
}

async fn plan(
    store: &dyn PartitionStore,
    committed: Option<Offset>,
    wanted: Wanted,
) -> Result<(PlannedMove, Aim), ReadError> {
    let aim = match wanted {
        Wanted::Known(aim) => aim,
        Wanted::Time(at) => {
            let end = store.ends().stable;
            let found = store.offset_for_time(at).await?.filter(|found| found.offset < end);
            Aim::Time(found.map(|found| found.offset))
        }
    };
    let LogEnds { start, stable: end, .. } = store.ends();
    let moved = Move::decide(aim, Stand { committed, start, end })
        .map_err(|BeyondEnd { offset, end }| ReadError::OutOfRange { offset, start, end })?;
    let again = count(store, moved.again).await?;
    let skipped = count(store, moved.skipped).await?;
    let planned = PlannedMove {
        new: moved.to,
        log_start: start,
        end,
        records: again.records,
        bytes: again.bytes.get(),
        skipped: skipped.records,
        gone: moved.gone,
        may_be_gone: matches!(wanted, Wanted::Time(_)) && is_older_gone(store, moved.to, start, end).await?,
    };
    Ok((planned, aim))
}

/// Whether records that a time asks for may have lain below log start: something was taken, and no record is left
/// before the one that the time leads to, or (`None`, it leads to none) no record at all. With an older record before
/// it nothing is missing by append time, which never goes back; a create time may have gone back there too.
async fn is_older_gone(
    store: &dyn PartitionStore,
    to: Option<Offset>,
    start: Offset,
    end: Offset,
) -> Result<bool, ReadError> {
    Ok(start > Offset::ZERO && count(store, (start, to.unwrap_or(end))).await?.records == 0)
}

async fn count(store: &dyn PartitionStore, (from, to): Span) -> Result<RecordCount, ReadError> {
    if from < to { store.count(from, to).await } else { Ok(RecordCount::default()) }
}

fn fingerprint(
    spec: &ReplaySpec,
    offsets: &[GroupOffset],
    rows: &[PlannedPartition],
    marks: &[(TopicId, Aim)],
) -> String {
    let mut mark = Fingerprint::new(&spec.group, spec.clone_to.as_ref());
    if spec.clone_to.is_none() {
        for offset in offsets {
            mark.committed(offset.value.topic_id, offset.partition, offset.value.offset);
        }
    }
    for (row, (topic, aim)) in rows.iter().zip(marks) {
        let new = row.planned.as_ref().ok().and_then(|planned| planned.new);
        mark.moved(*topic, row.partition, *aim, new);
    }
    mark.finish()
}

impl ReplayPlan {
    fn new(partitions: Vec<PlannedPartition>, fingerprint: String, planned: Timestamp) -> Self {
        let (mut records, mut bytes, mut gone) = (0, 0, 0);
        for moved in partitions.iter().filter_map(|row| row.planned.as_ref().ok()) {
            records += moved.records;
            bytes += moved.bytes;
            gone += moved.gone;
        }
        Self { partitions, records, bytes, gone, fingerprint, obstacle: None, planned }
    }
}
