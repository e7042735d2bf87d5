//! Validated newtypes for every number and name that has a meaning. No I/O, no clock, no sentinels: the
//! -1 of other protocols lives only in the doors.
#![forbid(unsafe_code)]

mod group;
mod offset;
mod producer;
mod size;
mod time;
mod topic;

pub use group::{GroupEpoch, GroupName, InstanceId, MemberId};
pub use offset::{LogEnds, Offset, OffsetOutOfBounds, PartitionIndex};
pub use producer::{
    Numbering, ProducerEpoch, ProducerId, ProducerName, ProducerNumberOutOfBounds, RequestNumber, Sequence,
};
pub use size::ByteCount;
pub use time::Timestamp;
pub use topic::{InvalidName, PartitionId, TopicId, TopicName};
