//! `LagService`: how far behind groups are.

use rimstone_broker::{LagReport, LagRequest, PartitionLag, TopicSum};
use rimstone_proto::v1;
use rimstone_types::Timestamp;
use tonic::{Request, Response, Status};

use crate::{
    convert::{group_names, topic_names},
    door::Door,
    refusal::Refusal,
    status::{partition_refusal, refusal},
};

/// The service.
#[derive(Debug)]
pub(crate) struct Lag {
    door: Door,
}

impl Lag {
    pub(crate) fn new(door: Door) -> Self {
        Self { door }
    }

    async fn get(&self, request: &v1::GetLagRequest) -> Result<v1::GetLagResponse, Refusal> {
        let request =
            LagRequest { groups: group_names(&request.groups)?, topics: topic_names(&request.topics)? };
        let report = self.door.broker.lag(request).await.map_err(|error| refusal(&error))?;
        let LagReport { partitions, topics, measured } = report;
        Ok(v1::GetLagResponse {
            partitions: partitions.into_iter().map(partition_lag).collect(),
            topics: topics.into_iter().map(topic_lag).collect(),
            measured_ms: measured.as_millis(),
        })
    }
}

fn partition_lag(row: PartitionLag) -> v1::PartitionLag {
    let owner = row.owner;
    let (member_id, client_id, host) =
        owner.map(|owner| (owner.member.to_string(), owner.client_id, owner.host)).unwrap_or_default();
    let answer = v1::PartitionLag {
        group: row.group.to_string(),
        topic: row.topic.to_string(),
        partition: row.partition.0,
        committed_offset: row.committed.map(|(offset, _)| offset.get()),
        commit_time_ms: row.committed.map_or(0, |(_, time)| Timestamp::as_millis(time)),
        member_id,
        client_id,
        host,
        ..Default::default()
    };
    match row.measured {
        Ok(measured) => v1::PartitionLag {
            log_start_offset: measured.log_start.get(),
            log_end_offset: measured.end.get(),
            lag_records: measured.lag.records,
            lag_ms: measured.lag.millis,
            below_log_start: measured.below_log_start,
            ..answer
        },
        Err(unknown) => v1::PartitionLag {
            error: Some(partition_refusal(&unknown, &row.topic, row.partition).into_item()),
            ..answer
        },
    }
}

fn topic_lag(sum: TopicSum) -> v1::TopicLag {
    v1::TopicLag {
        group: sum.group.to_string(),
        topic: sum.topic.to_string(),
        lag_records: sum.lag.records,
        lag_ms: sum.lag.millis,
        partitions: sum.lag.partitions,
        unknown_partitions: sum.unknown,
    }
}

#[tonic::async_trait]
impl v1::lag_service_server::LagService for Lag {
    async fn get_lag(
        &self,
        request: Request<v1::GetLagRequest>,
    ) -> Result<Response<v1::GetLagResponse>, Status> {
        self.door.answer(self.get(request.get_ref())).await
    }
}
