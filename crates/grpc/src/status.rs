//! From failures of the broker to gRPC: one exhaustive match, used for whole calls and for items of answers.

#[cfg(test)]
mod tests;

use rimstone_broker::{Failure, Reason};
use rimstone_types::{PartitionIndex, TopicName};
use tonic::Code;

use crate::refusal::{Refusal, SHUTTING_DOWN};

/// The code that stands for a reason.
pub(crate) const fn code(reason: Reason) -> Code {
    match reason {
        Reason::TopicNotFound
        | Reason::PartitionNotFound
        | Reason::ProducerNotFound
        | Reason::GroupNotFound => Code::NotFound,
        Reason::TopicExists | Reason::GroupExists => Code::AlreadyExists,
        Reason::InvalidName
        | Reason::InvalidRequest
        | Reason::InvalidSetting
        | Reason::BatchCorrupt
        | Reason::BatchTooLarge
        | Reason::RecordTooLarge
        | Reason::KeyRequired
        | Reason::TimestampTooFar => Code::InvalidArgument,
        Reason::OffsetOutOfRange => Code::OutOfRange,
        Reason::SequenceGap
        | Reason::UnknownProducer
        | Reason::NumberReused
        | Reason::NumberTooOld
        | Reason::ResendFirst
        | Reason::NumberingMixed
        | Reason::ProducerFenced
        | Reason::ExpectedEndNotMet
        | Reason::GroupNotEmpty
        | Reason::PartitionNotOwned
        | Reason::StartPositionNeeded
        | Reason::DamageDiffers
        | Reason::LossRefused
        | Reason::PlanChanged => Code::FailedPrecondition,
        Reason::MemberFenced => Code::Aborted,
        Reason::TooManyProducers | Reason::Backpressure | Reason::LimitReached | Reason::DiskFull => {
            Code::ResourceExhausted
        }
        Reason::PartitionPoisoned
        | Reason::PartitionUnavailable
        | Reason::ShuttingDown
        | Reason::AppendUndone
        | Reason::AppendUnknown
        | Reason::CoordinatorLoading => Code::Unavailable,
        Reason::DataDamaged => Code::DataLoss,
        Reason::Internal => Code::Internal,
    }
}

/// What a client is told of a failure.
pub(crate) fn refusal(failure: &impl Failure) -> Refusal {
    let reason = failure.reason();
    let message = match reason {
        Reason::ShuttingDown => SHUTTING_DOWN.to_owned(),
        _ => failure.to_string(),
    };
    Refusal {
        code: code(reason),
        reason: reason.as_str(),
        message,
        metadata: failure.details().into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        retry: failure.retry_after(),
        uncounted: None,
    }
}

/// The same for a failure that belongs to a topic, which is named where the failure itself does not.
pub(crate) fn topic_refusal(failure: &impl Failure, topic: &TopicName) -> Refusal {
    let mut refusal = refusal(failure);
    refusal.metadata.entry("topic".to_owned()).or_insert_with(|| topic.to_string());
    refusal
}

/// The same for a failure that belongs to one partition.
pub(crate) fn partition_refusal(
    failure: &impl Failure,
    topic: &TopicName,
    partition: PartitionIndex,
) -> Refusal {
    let mut refusal = topic_refusal(failure, topic);
    refusal.metadata.entry("partition".to_owned()).or_insert_with(|| partition.to_string());
    refusal
}
