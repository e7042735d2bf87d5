//! Reading again: moves the offsets of a group that nobody is in, or of a clone, after a plan.

use std::{collections::BTreeMap, time::Duration};

use rimstone_proto::v1;
use rimstone_types::{ByteCount, Offset, PartitionIndex, Timestamp};

use crate::{admin::offset, call::call, connect::Connection, error::ClientError, groups::TopicPartition};

/// Where a replay moves offsets to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayTo {
    /// The first record there is.
    Earliest,
    /// The end.
    Latest,
    /// This offset in every partition.
    Offset(Offset),
    /// The first record at or after this time, by the topic's time.
    Time(Timestamp),
    /// The first record at or after so long ago, by the topic's time.
    Ago(Duration),
    /// So many offsets on (or, negative, back) from the committed one.
    Shift(i64),
    /// An offset per partition of the one topic; the others are left alone.
    Offsets(BTreeMap<PartitionIndex, Offset>),
}

/// What to replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplaySpec {
    /// The group whose offsets are looked at.
    pub group: String,
    /// Only these topics. Empty: all that the group has committed offsets of.
    pub topics: Vec<String>,
    /// Only these partitions, of every topic. Empty: all.
    pub partitions: Vec<PartitionIndex>,
    /// Where to.
    pub to: ReplayTo,
    /// Move the offsets of a new group of this name and leave the group alone.
    pub clone_to: Option<String>,
}

/// What a replay would do, or has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayPlan {
    /// Per partition.
    pub partitions: Vec<PlannedPartition>,
    /// Records that will be read again, over all partitions.
    pub records: u64,
    /// Their bytes as stored, rounded up to whole batches.
    pub bytes: ByteCount,
    /// Offsets that were asked for and that retention has taken already.
    pub gone: u64,
    /// For [`start_replay`]: changes with every change of the group's offsets and of the plan.
    pub fingerprint: String,
    /// Why it could not be started now.
    pub obstacle: Option<String>,
    /// When it was planned.
    pub planned: Timestamp,
}

/// What a replay would do to one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedPartition {
    /// Where.
    pub at: TopicPartition,
    /// The committed offset; `None`: nothing is committed.
    pub old: Option<Offset>,
    /// The offset to be committed; `None`: this partition is left alone.
    pub new: Option<Offset>,
    /// The first offset that is still there.
    pub log_start: Offset,
    /// The end.
    pub log_end: Offset,
    /// Records that will be read again.
    pub records: u64,
    /// Their bytes as stored.
    pub bytes: ByteCount,
    /// Records between the old and a later new offset: they will not be read.
    pub skipped: u64,
    /// Offsets asked for that retention has taken; 0 for a time.
    pub gone: u64,
    /// For a time: nothing older is left before the first record there, so retention may have taken records that
    /// were asked for.
    pub may_be_gone: bool,
    /// Why this partition cannot be replayed.
    pub error: Option<ClientError>,
}

/// Plans a replay. Changes nothing.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use rimstone_client::{Connection, ReplaySpec, ReplayTo, plan_replay, start_replay};
///
/// let connection = Connection::new("127.0.0.1:9190")?;
/// let spec = ReplaySpec {
///     group: "billing".to_owned(),
///     topics: vec!["visits".to_owned()],
///     partitions: Vec::new(),
///     to: ReplayTo::Ago(Duration::from_secs(2 * 3600)),
///     clone_to: Some("billing-again".to_owned()),
/// };
/// let plan = plan_replay(&connection, &spec).await?;
/// println!("{} records, {} bytes; {} are gone", plan.records, plan.bytes, plan.gone);
/// start_replay(&connection, &spec, Some(&plan.fingerprint)).await?; // exactly this plan, or PLAN_CHANGED
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// `GROUP_NOT_FOUND`, `TOPIC_NOT_FOUND`, `INVALID_REQUEST`.
pub async fn plan_replay(connection: &Connection, spec: &ReplaySpec) -> Result<ReplayPlan, ClientError> {
    let request = v1::PlanReplayRequest { spec: Some(spec_message(spec)) };
    plan(call(connection, connection.replay().plan_replay(request)).await?.plan)
}

/// Plans once more and does it; with the fingerprint of a plan, only if that still is the plan. Answers what
/// was done, durable.
///
/// # Errors
/// `PLAN_CHANGED`, `GROUP_NOT_EMPTY`, `GROUP_NOT_FOUND`, `GROUP_EXISTS` (for the clone), `TOPIC_NOT_FOUND`,
/// `INVALID_REQUEST`.
pub async fn start_replay(
    connection: &Connection,
    spec: &ReplaySpec,
    fingerprint: Option<&str>,
) -> Result<ReplayPlan, ClientError> {
    let fingerprint = fingerprint.unwrap_or_default().to_owned();
    let request = v1::StartReplayRequest { spec: Some(spec_message(spec)), fingerprint };
    plan(call(connection, connection.replay().start_replay(request)).await?.plan)
}

fn spec_message(spec: &ReplaySpec) -> v1::ReplaySpec {
    use v1::replay_spec::To;
    let to = match &spec.to {
        ReplayTo::Earliest => To::Earliest(v1::Earliest {}),
        ReplayTo::Latest => To::Latest(v1::Latest {}),
        ReplayTo::Offset(offset) => To::Offset(offset.get()),
        ReplayTo::Time(time) => To::TimeMs(time.as_millis()),
        ReplayTo::Ago(ago) => To::AgoMs(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
        ReplayTo::Shift(by) => To::Shift(*by),
        ReplayTo::Offsets(offsets) => To::Offsets(v1::PartitionOffsets {
            offsets: offsets.iter().map(|(partition, offset)| (partition.0, offset.get())).collect(),
        }),
    };
    v1::ReplaySpec {
        group: spec.group.clone(),
        topics: spec.topics.clone(),
        partitions: spec.partitions.iter().map(|partition| partition.0).collect(),
        to: Some(to),
        clone_to: spec.clone_to.clone().unwrap_or_default(),
    }
}

fn plan(message: Option<v1::ReplayPlan>) -> Result<ReplayPlan, ClientError> {
    let message = message.ok_or_else(|| ClientError::protocol("the server answered without a plan"))?;
    Ok(ReplayPlan {
        partitions: message.partitions.into_iter().map(partition).collect::<Result<_, _>>()?,
        records: message.records,
        bytes: ByteCount(message.bytes),
        gone: message.records_gone,
        fingerprint: message.fingerprint,
        obstacle: (!message.obstacle.is_empty()).then_some(message.obstacle),
        planned: Timestamp(message.planned_ms),
    })
}

fn partition(message: v1::PlannedPartition) -> Result<PlannedPartition, ClientError> {
    Ok(PlannedPartition {
        at: TopicPartition::new(&message.topic, PartitionIndex(message.partition)),
        old: message.old_offset.map(offset).transpose()?,
        new: message.new_offset.map(offset).transpose()?,
        log_start: offset(message.log_start_offset)?,
        log_end: offset(message.log_end_offset)?,
        records: message.records,
        bytes: ByteCount(message.bytes),
        skipped: message.records_skipped,
        gone: message.offsets_gone,
        may_be_gone: message.records_may_be_gone,
        error: message.error.map(ClientError::from),
    })
}
