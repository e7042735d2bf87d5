//! `GroupService`: committed offsets, and groups as people look at them. Sessions of members are in `consume`.

use std::collections::BTreeSet;

use prost::Message as _;
use rimstone_broker::{
    Assignor, CommitRequest, CommittedOffset, GroupDescription, GroupState, GroupSummary, MemberDescription,
    OffsetCommitted, OffsetToCommit, Partitions,
};
use rimstone_proto::v1;
use rimstone_types::{ByteCount, GroupEpoch, PartitionIndex, Timestamp, TopicName};
use tonic::{Request, Response, Status};

use crate::{
    convert::{group_name, member_id, offset, topic_name, topic_names},
    door::Door,
    refusal::Refusal,
    status::{partition_refusal, refusal},
};

/// The service.
#[derive(Debug)]
pub(crate) struct Groups {
    door: Door,
}

impl Groups {
    pub(crate) fn new(door: Door) -> Self {
        Self { door }
    }

    async fn commit(&self, request: v1::CommitOffsetsRequest) -> Result<v1::CommitOffsetsResponse, Refusal> {
        let bytes = ByteCount(request.encoded_len() as u64);
        let group = group_name(&request.group)?;
        let member = match (request.member_id.as_str(), request.member_epoch) {
            ("", 0) => None,
            ("", _) => return Err(Refusal::invalid("member_epoch needs member_id")),
            (id, epoch) => Some((member_id(id)?, GroupEpoch(epoch))),
        };
        let offsets = offsets_to_commit(request.offsets)?;
        let room = self.door.broker.try_reserve(bytes).map_err(|error| refusal(&error))?;
        let committed = self.door.broker.commit_offsets(CommitRequest { group, member, offsets }, room).await;
        let committed = committed.map_err(|error| refusal(&error))?;
        Ok(v1::CommitOffsetsResponse { results: committed.into_iter().map(commit_result).collect() })
    }

    async fn fetch(&self, request: v1::FetchOffsetsRequest) -> Result<v1::FetchOffsetsResponse, Refusal> {
        let group = group_name(&request.group)?;
        let partitions = topic_partitions(&request.partitions)?;
        let offsets = self.door.broker.fetch_offsets(&group, partitions).await;
        let offsets = offsets.map_err(|error| refusal(&error))?;
        Ok(v1::FetchOffsetsResponse { offsets: offsets.into_iter().map(committed_offset).collect() })
    }

    async fn list(&self, request: v1::ListGroupsRequest) -> Result<v1::ListGroupsResponse, Refusal> {
        let groups = self.door.broker.list_groups(&request.prefix).await.map_err(|error| refusal(&error))?;
        Ok(v1::ListGroupsResponse { groups: groups.into_iter().map(group_summary).collect() })
    }

    async fn describe(
        &self,
        request: v1::DescribeGroupRequest,
    ) -> Result<v1::DescribeGroupResponse, Refusal> {
        let group = group_name(&request.group)?;
        let described = self.door.broker.describe_group(&group).await.map_err(|error| refusal(&error))?;
        let GroupDescription { group, connected, backward_commits } = described;
        let is_connected = |member: &MemberDescription| connected.contains(&member.member);
        Ok(v1::DescribeGroupResponse {
            group: Some(group_summary(group.summary)),
            assignor: assignor_out(group.assignor).into(),
            members: group
                .members
                .into_iter()
                .map(|member| v1::GroupMember { connected: is_connected(&member), ..group_member(member) })
                .collect(),
            backward_commits,
        })
    }

    async fn delete(&self, request: v1::DeleteGroupRequest) -> Result<v1::DeleteGroupResponse, Refusal> {
        let group = group_name(&request.group)?;
        self.door.broker.delete_group(&group).await.map_err(|error| refusal(&error))?;
        Ok(v1::DeleteGroupResponse {})
    }

    async fn copy(&self, request: v1::CloneGroupRequest) -> Result<v1::CloneGroupResponse, Refusal> {
        let (source, target) = (group_name(&request.source)?, group_name(&request.target)?);
        let topics = topic_names(&request.topics)?;
        let copied = self.door.broker.clone_group(&source, &target, &topics).await;
        let copied = copied.map_err(|error| refusal(&error))?;
        Ok(v1::CloneGroupResponse { offsets: copied.into_iter().map(committed_offset).collect() })
    }
}

pub(crate) fn offsets_to_commit(offsets: Vec<v1::OffsetCommit>) -> Result<Vec<OffsetToCommit>, Refusal> {
    let convert = |commit: v1::OffsetCommit| {
        Ok(OffsetToCommit {
            topic: topic_name(&commit.topic)?,
            partition: PartitionIndex(commit.partition),
            offset: commit.offset.map(offset).transpose()?,
            metadata: commit.metadata,
        })
    };
    offsets.into_iter().map(convert).collect()
}

pub(crate) fn topic_partitions(
    partitions: &[v1::TopicPartition],
) -> Result<Vec<(TopicName, PartitionIndex)>, Refusal> {
    let convert =
        |named: &v1::TopicPartition| Ok((topic_name(&named.topic)?, PartitionIndex(named.partition)));
    partitions.iter().map(convert).collect()
}

pub(crate) fn commit_result(committed: OffsetCommitted) -> v1::OffsetCommitResult {
    let OffsetCommitted { topic, partition, result } = committed;
    let (flags, error) = match result {
        Ok(flags) => (flags, None),
        Err(error) => (Default::default(), Some(partition_refusal(&error, &topic, partition).into_item())),
    };
    v1::OffsetCommitResult {
        topic: topic.into(),
        partition: partition.0,
        below_log_start: flags.below_log_start,
        backwards: flags.backwards,
        error,
    }
}

fn committed_offset(committed: CommittedOffset) -> v1::CommittedOffset {
    let CommittedOffset { topic, partition, value, below_log_start } = committed;
    let (offset, time) = match &value {
        Some(value) => (Some(value.offset.get()), value.commit_time_ms),
        None => (None, Timestamp(0)),
    };
    v1::CommittedOffset {
        topic: topic.into(),
        partition: partition.0,
        offset,
        metadata: value.map(|value| value.metadata).unwrap_or_default(),
        commit_time_ms: time.as_millis(),
        below_log_start,
    }
}

fn group_summary(summary: GroupSummary) -> v1::GroupSummary {
    let state = match summary.state {
        GroupState::Empty => v1::GroupState::Empty,
        GroupState::Stable => v1::GroupState::Stable,
        GroupState::Reconciling => v1::GroupState::Reconciling,
    };
    v1::GroupSummary {
        group: summary.group.into(),
        state: state.into(),
        members: u32::try_from(summary.members).unwrap_or(u32::MAX),
        group_epoch: summary.epoch.0,
        topics: summary.topics.into_iter().map(String::from).collect(),
    }
}

fn assignor_out(assignor: Assignor) -> v1::Assignor {
    match assignor {
        Assignor::Sticky => v1::Assignor::Sticky,
        Assignor::Range => v1::Assignor::Range,
        Assignor::RoundRobin => v1::Assignor::RoundRobin,
    }
}

/// A member, but for its connection.
fn group_member(member: MemberDescription) -> v1::GroupMember {
    let MemberDescription { member, value, epoch, assignment, target } = member;
    let names = |topics: BTreeSet<TopicName>| topics.into_iter().map(String::from).collect();
    v1::GroupMember {
        member_id: member.into(),
        instance_id: value.instance_id.map(String::from).unwrap_or_default(),
        client_id: value.client_id,
        host: value.host,
        member_epoch: epoch.0,
        topics: names(value.topics),
        topic_prefix: value.topic_prefix.unwrap_or_default(),
        owned: partitions_out(&assignment.owned),
        stopping: partitions_out(&assignment.stopping),
        target: partitions_out(&target),
        connected: false,
        session_timeout_ms: value.session_timeout_ms,
        joined_ms: value.joined_ms.as_millis(),
    }
}

fn partitions_out(partitions: &Partitions) -> Vec<v1::TopicPartition> {
    let convert = |(topic, _, partition): (&TopicName, _, PartitionIndex)| v1::TopicPartition {
        topic: topic.to_string(),
        partition: partition.0,
    };
    partitions.iter().map(convert).collect()
}

#[tonic::async_trait]
impl v1::group_service_server::GroupService for Groups {
    async fn commit_offsets(
        &self,
        request: Request<v1::CommitOffsetsRequest>,
    ) -> Result<Response<v1::CommitOffsetsResponse>, Status> {
        self.door.answer(self.commit(request.into_inner())).await
    }

    async fn fetch_offsets(
        &self,
        request: Request<v1::FetchOffsetsRequest>,
    ) -> Result<Response<v1::FetchOffsetsResponse>, Status> {
        self.door.answer(self.fetch(request.into_inner())).await
    }

    async fn list_groups(
        &self,
        request: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        self.door.answer(self.list(request.into_inner())).await
    }

    async fn describe_group(
        &self,
        request: Request<v1::DescribeGroupRequest>,
    ) -> Result<Response<v1::DescribeGroupResponse>, Status> {
        self.door.answer(self.describe(request.into_inner())).await
    }

    async fn delete_group(
        &self,
        request: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::DeleteGroupResponse>, Status> {
        self.door.answer(self.delete(request.into_inner())).await
    }

    async fn clone_group(
        &self,
        request: Request<v1::CloneGroupRequest>,
    ) -> Result<Response<v1::CloneGroupResponse>, Status> {
        self.door.answer(self.copy(request.into_inner())).await
    }
}
