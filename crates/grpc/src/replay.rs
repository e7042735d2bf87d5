//! `ReplayService`: plans, and what comes of them.

use std::time::Duration;

use rimstone_broker::{PlannedMove, PlannedPartition, ReplayPlan, ReplaySpec, ReplayTo};
use rimstone_proto::v1::{self, replay_spec::To};
use rimstone_types::{Offset, PartitionIndex, Timestamp};
use tonic::{Request, Response, Status};

use crate::{
    convert::{group_name, offset, topic_names},
    door::Door,
    refusal::Refusal,
    status::{partition_refusal, refusal},
};

/// The service.
#[derive(Debug)]
pub(crate) struct Replay {
    door: Door,
}

impl Replay {
    pub(crate) fn new(door: Door) -> Self {
        Self { door }
    }

    async fn plan(&self, request: v1::PlanReplayRequest) -> Result<v1::PlanReplayResponse, Refusal> {
        let spec = spec(request.spec)?;
        let plan = self.door.broker.plan_replay(&spec).await.map_err(|error| refusal(&error))?;
        Ok(v1::PlanReplayResponse { plan: Some(replay_plan(plan)) })
    }

    async fn start(&self, request: v1::StartReplayRequest) -> Result<v1::StartReplayResponse, Refusal> {
        let spec = spec(request.spec)?;
        let fingerprint = Some(request.fingerprint).filter(|fingerprint| !fingerprint.is_empty());
        let done = self.door.broker.start_replay(spec, fingerprint).await.map_err(|error| refusal(&error))?;
        Ok(v1::StartReplayResponse { plan: Some(replay_plan(done)) })
    }
}

fn spec(spec: Option<v1::ReplaySpec>) -> Result<ReplaySpec, Refusal> {
    let spec = spec.ok_or_else(|| Refusal::invalid("say what to replay: spec is missing"))?;
    let to = match spec.to {
        Some(To::Earliest(v1::Earliest {})) => ReplayTo::Earliest,
        Some(To::Latest(v1::Latest {})) => ReplayTo::Latest,
        Some(To::Offset(at)) => ReplayTo::Offset(offset(at)?),
        Some(To::TimeMs(time)) => ReplayTo::Time(Timestamp(time)),
        Some(To::AgoMs(ago)) => ReplayTo::Ago(Duration::from_millis(ago)),
        Some(To::Shift(by)) => ReplayTo::Shift(by),
        Some(To::Offsets(v1::PartitionOffsets { offsets })) => {
            let each =
                offsets.into_iter().map(|(partition, at)| Ok((PartitionIndex(partition), offset(at)?)));
            ReplayTo::Offsets(each.collect::<Result<_, Refusal>>()?)
        }
        None => {
            return Err(Refusal::invalid(
                "say where to go on: earliest, latest, offset, time_ms, ago_ms, shift or offsets",
            ));
        }
    };
    Ok(ReplaySpec {
        group: group_name(&spec.group)?,
        topics: topic_names(&spec.topics)?,
        partitions: spec.partitions.into_iter().map(PartitionIndex).collect(),
        to,
        clone_to: match spec.clone_to.as_str() {
            "" => None,
            name => Some(group_name(name)?),
        },
    })
}

fn replay_plan(plan: ReplayPlan) -> v1::ReplayPlan {
    v1::ReplayPlan {
        partitions: plan.partitions.into_iter().map(planned_partition).collect(),
        records: plan.records,
        bytes: plan.bytes,
        records_gone: plan.gone,
        fingerprint: plan.fingerprint,
        obstacle: plan.obstacle.map(|error| error.to_string()).unwrap_or_default(),
        planned_ms: plan.planned.as_millis(),
    }
}

fn planned_partition(row: PlannedPartition) -> v1::PlannedPartition {
    let answer = v1::PlannedPartition {
        topic: row.topic.to_string(),
        partition: row.partition.0,
        old_offset: row.old.map(Offset::get),
        ..Default::default()
    };
    match row.planned {
        Ok(PlannedMove { new, log_start, end, records, bytes, skipped, gone, may_be_gone }) => {
            v1::PlannedPartition {
                new_offset: new.map(Offset::get),
                log_start_offset: log_start.get(),
                log_end_offset: end.get(),
                records,
                bytes,
                records_skipped: skipped,
                offsets_gone: gone,
                records_may_be_gone: may_be_gone,
                ..answer
            }
        }
        Err(why) => v1::PlannedPartition {
            error: Some(partition_refusal(&*why, &row.topic, row.partition).into_item()),
            ..answer
        },
    }
}

#[tonic::async_trait]
impl v1::replay_service_server::ReplayService for Replay {
    async fn plan_replay(
        &self,
        request: Request<v1::PlanReplayRequest>,
    ) -> Result<Response<v1::PlanReplayResponse>, Status> {
        self.door.answer(self.plan(request.into_inner())).await
    }

    async fn start_replay(
        &self,
        request: Request<v1::StartReplayRequest>,
    ) -> Result<Response<v1::StartReplayResponse>, Status> {
        self.door.answer(self.start(request.into_inner())).await
    }
}
