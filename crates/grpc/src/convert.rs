//! Between messages and the types of the rooms below, in both directions. Numbers that are out of range are
//! refused by name; nothing is decided.

use rimstone_broker::{ProducerPartition, ProducerState, ReadBatch, Reason, StoredRecord, Visibility};
use rimstone_proto::v1;
use rimstone_types::{
    GroupName, InstanceId, InvalidName, LogEnds, MemberId, Numbering, Offset, ProducerEpoch, ProducerId,
    ProducerName, RequestNumber, TopicName,
};

use crate::refusal::Refusal;

pub(crate) fn topic_name(name: &str) -> Result<TopicName, Refusal> {
    name.parse().map_err(|error| invalid_name("topic", error))
}

pub(crate) fn topic_names(names: &[String]) -> Result<Vec<TopicName>, Refusal> {
    names.iter().map(|name| topic_name(name)).collect()
}

pub(crate) fn group_names(names: &[String]) -> Result<Vec<GroupName>, Refusal> {
    names.iter().map(|name| group_name(name)).collect()
}

pub(crate) fn producer_name(name: &str) -> Result<ProducerName, Refusal> {
    name.parse().map_err(|error| invalid_name("producer", error))
}

pub(crate) fn group_name(name: &str) -> Result<GroupName, Refusal> {
    name.parse().map_err(|error| invalid_name("group", error))
}

pub(crate) fn instance_id(name: &str) -> Result<InstanceId, Refusal> {
    name.parse().map_err(|error| invalid_name("instance", error))
}

pub(crate) fn member_id(name: &str) -> Result<MemberId, Refusal> {
    name.parse().map_err(|error| invalid_name("member", error))
}

fn invalid_name(what: &str, error: InvalidName) -> Refusal {
    Refusal::new(Reason::InvalidName, error.to_string()).with(what, error.name)
}

pub(crate) fn offset(value: u64) -> Result<Offset, Refusal> {
    Offset::new(value).map_err(|error| Refusal::invalid(error.to_string()))
}

pub(crate) fn producer_id(value: u64) -> Result<ProducerId, Refusal> {
    ProducerId::new(value).map_err(|error| Refusal::invalid(error.to_string()))
}

pub(crate) fn producer_epoch(value: u32) -> Result<ProducerEpoch, Refusal> {
    ProducerEpoch::new(value.into()).map_err(|error| Refusal::invalid(error.to_string()))
}

pub(crate) fn request_number(value: u32) -> Result<RequestNumber, Refusal> {
    RequestNumber::new(value.into()).map_err(|error| Refusal::invalid(error.to_string()))
}

pub(crate) fn visibility(isolation: v1::Isolation) -> Visibility {
    match isolation {
        v1::Isolation::Unspecified | v1::Isolation::ReadCommitted => Visibility::Stable,
        v1::Isolation::ReadUncommitted => Visibility::Durable,
    }
}

/// Reads an enum field; a number that this version does not know is refused, not taken for the default.
pub(crate) fn known<T: TryFrom<i32>>(field: &str, value: i32) -> Result<T, Refusal> {
    T::try_from(value).map_err(|_| Refusal::invalid(format!("{field} {value} is unknown to this server")))
}

pub(crate) fn log_ends(ends: LogEnds) -> v1::LogEnds {
    v1::LogEnds {
        log_start_offset: ends.start.get(),
        last_stable_offset: ends.stable.get(),
        high_watermark: ends.durable.get(),
        log_end_offset: ends.written.get(),
    }
}

pub(crate) fn stored_record(stored: StoredRecord) -> v1::StoredRecord {
    let StoredRecord { record, append_time } = stored;
    v1::StoredRecord {
        offset: record.offset.get(),
        key: record.key,
        value: record.value,
        headers: record
            .headers
            .into_iter()
            .map(|header| v1::Header { key: header.key, value: header.value })
            .collect(),
        create_time_ms: record.timestamp.as_millis(),
        append_time_ms: append_time.as_millis(),
        flags: 0,
    }
}

pub(crate) fn encoded_batch(read: ReadBatch) -> v1::EncodedBatch {
    v1::EncodedBatch { data: read.batch.bytes().clone(), append_time_ms: read.append_time.as_millis() }
}

pub(crate) fn producer_states(state: &ProducerState) -> Vec<v1::ProducerPartitionState> {
    state
        .partitions
        .iter()
        .map(|ProducerPartition { topic, partition, view }| v1::ProducerPartitionState {
            partition: Some(v1::TopicPartition { topic: topic.to_string(), partition: partition.0 }),
            producer_epoch: view.epoch.get().into(),
            last_sequence: view.last,
            last_offset: view.last_offset.map(Offset::get),
            by_request: view.numbering == Numbering::ByRequest,
        })
        .collect()
}
