//! `AdminService`: topics, partitions, settings, offsets, producers, the server itself.

use std::collections::HashMap;

use rimstone_broker::{
    AcceptedLoss, DamagedRange, FoundOffset, Health, OffsetQuery, OffsetRange, PartitionDescription,
    PartitionOffset, ProducerListing, ServerDescription, StoreState, TopicSetting, TopicSummary, Visibility,
};
use rimstone_proto::v1;
use rimstone_types::{Numbering, PartitionIndex, Timestamp, TopicName};
use tonic::{Request, Response, Status};

use crate::{
    convert::{log_ends, offset, producer_name, topic_name},
    door::Door,
    refusal::Refusal,
    serve::ServerFacts,
    status::{partition_refusal, refusal, topic_refusal},
};

/// The service.
#[derive(Debug)]
pub(crate) struct Admin {
    door: Door,
    facts: ServerFacts,
}

impl Admin {
    pub(crate) fn new(door: Door, facts: ServerFacts) -> Self {
        Self { door, facts }
    }

    async fn create(&self, request: v1::CreateTopicRequest) -> Result<v1::CreateTopicResponse, Refusal> {
        let topic = topic_name(&request.topic)?;
        let partitions = (request.partitions > 0).then_some(request.partitions);
        let settings = request.settings.into_iter().collect();
        let created = self
            .door
            .broker
            .create_topic(topic.clone(), partitions, settings)
            .await
            .map_err(|error| topic_refusal(&error, &topic))?;
        Ok(v1::CreateTopicResponse { topic: Some(topic_info(&created)) })
    }

    fn describe(&self, request: &v1::DescribeTopicRequest) -> Result<v1::DescribeTopicResponse, Refusal> {
        let topic = topic_name(&request.topic)?;
        let described = self.door.broker.describe_topic(&topic).map_err(|error| refusal(&error))?;
        Ok(v1::DescribeTopicResponse {
            topic: Some(topic_info(&described.topic)),
            partitions: described.partitions.into_iter().map(partition_info).collect(),
            settings: described.settings.into_iter().map(topic_setting).collect(),
        })
    }

    async fn alter(&self, request: v1::AlterTopicRequest) -> Result<v1::AlterTopicResponse, Refusal> {
        let topic = topic_name(&request.topic)?;
        let altered = self
            .door
            .broker
            .alter_topic(&topic, request.set.into_iter().collect(), request.reset, request.partitions)
            .await
            .map_err(|error| topic_refusal(&error, &topic))?;
        Ok(v1::AlterTopicResponse {
            topic: Some(topic_info(&altered.topic)),
            settings: altered.settings.into_iter().map(topic_setting).collect(),
        })
    }

    async fn delete(&self, request: &v1::DeleteTopicRequest) -> Result<v1::DeleteTopicResponse, Refusal> {
        let topic = topic_name(&request.topic)?;
        self.door.broker.delete_topic(&topic).await.map_err(|error| topic_refusal(&error, &topic))?;
        Ok(v1::DeleteTopicResponse {})
    }

    async fn trim(&self, request: v1::DeleteRecordsRequest) -> Result<v1::DeleteRecordsResponse, Refusal> {
        let topic = topic_name(&request.topic)?;
        let before = request
            .before_offsets
            .into_iter()
            .map(|(partition, before)| Ok((PartitionIndex(partition), offset(before)?)))
            .collect::<Result<_, Refusal>>()?;
        let starts = self
            .door
            .broker
            .delete_records(&topic, before)
            .await
            .map_err(|error| topic_refusal(&error, &topic))?;
        let log_start_offsets: HashMap<_, _> =
            starts.into_iter().map(|(partition, start)| (partition.0, start.get())).collect();
        Ok(v1::DeleteRecordsResponse { log_start_offsets })
    }

    async fn damage(&self, request: v1::FindDamageRequest) -> Result<v1::FindDamageResponse, Refusal> {
        let (topic, partition) = (topic_name(&request.topic)?, PartitionIndex(request.partition));
        let found = self.door.broker.find_damage(&topic, partition).await;
        let (damaged, accepted) = found.map_err(|error| partition_refusal(&error, &topic, partition))?;
        Ok(v1::FindDamageResponse {
            damaged_ranges: ranges_in(&damaged),
            accepted_loss_count: accepted.len() as u64,
            damaged: damaged.into_iter().take(LISTED_MAX).map(damaged_range).collect(),
            accepted_losses: accepted.into_iter().take(LISTED_MAX).map(accepted_loss).collect(),
        })
    }

    async fn give_up(&self, request: v1::AcceptLossRequest) -> Result<v1::AcceptLossResponse, Refusal> {
        let (topic, partition) = (topic_name(&request.topic)?, PartitionIndex(request.partition));
        let range = |range: v1::OffsetRange| {
            Ok(OffsetRange { from: offset(range.from_offset)?, until: offset(range.until_offset)? })
        };
        let ranges = request.ranges.into_iter().map(range).collect::<Result<_, Refusal>>()?;
        let accepted = self.door.broker.accept_loss(&topic, partition, ranges).await;
        let accepted = accepted.map_err(|error| partition_refusal(&error, &topic, partition))?;
        Ok(v1::AcceptLossResponse { accepted_losses: accepted.into_iter().map(accepted_loss).collect() })
    }

    async fn offsets(&self, request: v1::ListOffsetsRequest) -> Result<v1::ListOffsetsResponse, Refusal> {
        use v1::list_offsets_request::At;
        let topic = topic_name(&request.topic)?;
        let query = match request.at {
            Some(At::Earliest(true)) => OffsetQuery::Earliest,
            Some(At::Latest(true)) => OffsetQuery::Latest,
            Some(At::MaxTime(true)) => OffsetQuery::MaxTime,
            Some(At::TimeMs(time)) => OffsetQuery::Time(Timestamp(time)),
            Some(At::Earliest(false) | At::Latest(false) | At::MaxTime(false)) | None => {
                return Err(Refusal::invalid(
                    "say which offset: earliest, latest or max_time, set to true, or time_ms",
                ));
            }
        };
        let visibility = if request.read_uncommitted { Visibility::Durable } else { Visibility::Stable };
        let partitions: Vec<_> = request.partitions.into_iter().map(PartitionIndex).collect();
        let found = self
            .door
            .broker
            .list_offsets(&topic, &partitions, query, visibility)
            .await
            .map_err(|error| topic_refusal(&error, &topic))?;
        Ok(v1::ListOffsetsResponse {
            offsets: found.into_iter().map(|found| partition_offset(found, &topic)).collect(),
        })
    }

    fn producers(&self, request: &v1::ListProducersRequest) -> Result<v1::ListProducersResponse, Refusal> {
        let topic = match request.topic.as_str() {
            "" => None,
            name => Some(topic_name(name)?),
        };
        let listed = self.door.broker.list_producers(topic.as_ref()).map_err(|error| refusal(&error))?;
        Ok(v1::ListProducersResponse { producers: listed.into_iter().map(producer_info).collect() })
    }

    async fn forget(
        &self,
        request: &v1::DeleteProducerRequest,
    ) -> Result<v1::DeleteProducerResponse, Refusal> {
        let name = producer_name(&request.name)?;
        self.door
            .broker
            .delete_producer(&name)
            .await
            .map_err(|error| refusal(&error).with("producer", &name))?;
        Ok(v1::DeleteProducerResponse {})
    }

    fn server(&self) -> v1::DescribeServerResponse {
        let server = self.door.broker.describe_server();
        v1::DescribeServerResponse {
            version: self.facts.version.to_owned(),
            server_id: server.server_id.to_string(),
            data_directory: self.facts.data_directory.clone(),
            sync_method: server.sync_method.name.to_owned(),
            sync_reason: server.sync_method.reason.clone(),
            topics: server.topics,
            partitions: server.partitions,
            started_ms: server.started.as_millis(),
            grpc_address: self.facts.grpc_address.to_string(),
            web_address: self.facts.web_address.to_string(),
            health: health(&server),
        }
    }
}

fn topic_info(topic: &TopicSummary) -> v1::TopicInfo {
    v1::TopicInfo {
        name: topic.name.to_string(),
        id: topic.id.to_string(),
        partitions: topic.partitions,
        internal: topic.internal,
        created_ms: topic.created.as_millis(),
    }
}

fn topic_setting(setting: TopicSetting) -> v1::TopicSetting {
    v1::TopicSetting {
        name: setting.name.to_owned(),
        value: setting.value,
        is_default: setting.is_default,
        description: setting.description.to_owned(),
    }
}

/// So many segments that compaction passes by, damaged ranges and accepted losses are told of a partition each: the
/// answer stays small.
const TOLD_MAX: usize = 16;
/// Damaged ranges and accepted losses in one answer about them: as many as one request may give up.
const LISTED_MAX: usize = 1_000;

fn ranges_in(damage: &[DamagedRange]) -> u64 {
    damage.iter().map(|range| range.ranges).sum()
}

fn damaged_range(range: DamagedRange) -> v1::DamagedRange {
    v1::DamagedRange {
        from_offset: range.from.get(),
        until_offset: range.until.get(),
        reason: range.reason,
        ranges: range.ranges,
        damaged_offsets: range.offsets,
    }
}

fn accepted_loss(loss: AcceptedLoss) -> v1::AcceptedLoss {
    v1::AcceptedLoss {
        from_offset: loss.from.get(),
        until_offset: loss.until.get(),
        kept_in: loss.kept.display().to_string(),
        kept_bytes: loss.bytes,
        lost_offsets: loss.offsets,
    }
}

fn partition_info(partition: PartitionDescription) -> v1::PartitionInfo {
    let index = partition.partition.0;
    match partition.state {
        Ok(info) => v1::PartitionInfo {
            partition: index,
            ends: Some(log_ends(info.ends)),
            segments: info.segments,
            bytes: info.bytes.get(),
            undurable_bytes: info.undurable_bytes.get(),
            producers: info.producers,
            state: match info.state {
                StoreState::Serving => "serving".to_owned(),
                StoreState::Poisoned { reason } => format!("poisoned: {reason}"),
                StoreState::Closed => "unavailable: closed".to_owned(),
            },
            dirty_ratio: info.dirtiness.map(|dirtiness| dirtiness.ratio()),
            compaction_obstacles: info
                .obstacles
                .into_iter()
                .take(TOLD_MAX)
                .map(|obstacle| v1::CompactionObstacle {
                    segment: obstacle.segment.get(),
                    reason: obstacle.reason.to_string(),
                })
                .collect(),
            damaged_ranges: ranges_in(&info.damage),
            accepted_loss_count: info.accepted_losses.len() as u64,
            damaged: info.damage.into_iter().take(TOLD_MAX).map(damaged_range).collect(),
            accepted_losses: info.accepted_losses.into_iter().take(TOLD_MAX).map(accepted_loss).collect(),
        },
        Err(why) => {
            v1::PartitionInfo { partition: index, state: format!("unavailable: {why}"), ..Default::default() }
        }
    }
}

fn partition_offset(found: PartitionOffset, topic: &TopicName) -> v1::PartitionOffset {
    let answer = v1::PartitionOffset { partition: found.partition.0, ..Default::default() };
    match found.result {
        Ok(Some(FoundOffset { offset, time })) => v1::PartitionOffset {
            offset: Some(offset.get()),
            time_ms: time.map(Timestamp::as_millis),
            ..answer
        },
        Ok(None) => answer,
        Err(error) => v1::PartitionOffset {
            error: Some(partition_refusal(&error, topic, found.partition).into_item()),
            ..answer
        },
    }
}

fn producer_info(listing: ProducerListing) -> v1::ProducerInfo {
    v1::ProducerInfo {
        name: listing.name.map(String::from).unwrap_or_default(),
        producer_id: listing.id.get(),
        producer_epoch: listing.epoch.get().into(),
        partitions: listing
            .partitions
            .into_iter()
            .map(|held| v1::ProducerPartition {
                partition: Some(v1::TopicPartition {
                    topic: held.topic.to_string(),
                    partition: held.partition.0,
                }),
                last_sequence: held.view.last,
                by_request: held.view.numbering == Numbering::ByRequest,
                last_append_ms: held.view.last_append.as_millis(),
            })
            .collect(),
    }
}

fn health(server: &ServerDescription) -> String {
    match &server.health {
        Health::Healthy => match (server.unavailable_partitions, server.damaged_partitions) {
            (0, 0) => "healthy".to_owned(),
            (unavailable, 0) => format!("{unavailable} partitions are unavailable"),
            (0, damaged) => format!("{damaged} partitions have damaged records"),
            (unavailable, damaged) => {
                format!("{unavailable} partitions are unavailable, {damaged} have damaged records")
            }
        },
        Health::DiskReserveReached { free, reserve } => {
            format!("appends are refused: {free} free, the reserve is {reserve}")
        }
        Health::Poisoned { reason } => format!("appends are refused: {reason}"),
    }
}

#[tonic::async_trait]
impl v1::admin_service_server::AdminService for Admin {
    async fn create_topic(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        self.door.answer(self.create(request.into_inner())).await
    }

    async fn list_topics(
        &self,
        request: Request<v1::ListTopicsRequest>,
    ) -> Result<Response<v1::ListTopicsResponse>, Status> {
        let topics = self.door.broker.list_topics(request.into_inner().include_internal);
        Ok(Response::new(v1::ListTopicsResponse { topics: topics.iter().map(topic_info).collect() }))
    }

    async fn describe_topic(
        &self,
        request: Request<v1::DescribeTopicRequest>,
    ) -> Result<Response<v1::DescribeTopicResponse>, Status> {
        self.door.answer(async { self.describe(request.get_ref()) }).await
    }

    async fn alter_topic(
        &self,
        request: Request<v1::AlterTopicRequest>,
    ) -> Result<Response<v1::AlterTopicResponse>, Status> {
        self.door.answer(self.alter(request.into_inner())).await
    }

    async fn delete_topic(
        &self,
        request: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        self.door.answer(self.delete(request.get_ref())).await
    }

    async fn delete_records(
        &self,
        request: Request<v1::DeleteRecordsRequest>,
    ) -> Result<Response<v1::DeleteRecordsResponse>, Status> {
        self.door.answer(self.trim(request.into_inner())).await
    }

    async fn list_offsets(
        &self,
        request: Request<v1::ListOffsetsRequest>,
    ) -> Result<Response<v1::ListOffsetsResponse>, Status> {
        self.door.answer(self.offsets(request.into_inner())).await
    }

    async fn list_producers(
        &self,
        request: Request<v1::ListProducersRequest>,
    ) -> Result<Response<v1::ListProducersResponse>, Status> {
        self.door.answer(async { self.producers(request.get_ref()) }).await
    }

    async fn delete_producer(
        &self,
        request: Request<v1::DeleteProducerRequest>,
    ) -> Result<Response<v1::DeleteProducerResponse>, Status> {
        self.door.answer(self.forget(request.get_ref())).await
    }

    async fn find_damage(
        &self,
        request: Request<v1::FindDamageRequest>,
    ) -> Result<Response<v1::FindDamageResponse>, Status> {
        self.door.answer(self.damage(request.into_inner())).await
    }

    async fn accept_loss(
        &self,
        request: Request<v1::AcceptLossRequest>,
    ) -> Result<Response<v1::AcceptLossResponse>, Status> {
        self.door.answer(self.give_up(request.into_inner())).await
    }

    async fn describe_server(
        &self,
        _request: Request<v1::DescribeServerRequest>,
    ) -> Result<Response<v1::DescribeServerResponse>, Status> {
        Ok(Response::new(self.server()))
    }
}
