use std::time::Duration;

use rimstone_broker::{Details, Failure, LimitReached, NoRoom, OutOfRange, ShuttingDown, TopicNotFound};
use rimstone_proto::ERROR_DOMAIN;
use rimstone_store::{AppendError, Backpressure, ReadError, StoreError};
use rimstone_types::{ByteCount, Offset, ProducerEpoch};
use tonic::Status;
use tonic_types::StatusExt as _;

use super::*;

/// The table of docs/api.md, word for word.
const TABLE: &[(Reason, &str, Code)] = &[
    (Reason::TopicNotFound, "TOPIC_NOT_FOUND", Code::NotFound),
    (Reason::PartitionNotFound, "PARTITION_NOT_FOUND", Code::NotFound),
    (Reason::ProducerNotFound, "PRODUCER_NOT_FOUND", Code::NotFound),
    (Reason::TopicExists, "TOPIC_EXISTS", Code::AlreadyExists),
    (Reason::InvalidName, "INVALID_NAME", Code::InvalidArgument),
    (Reason::InvalidRequest, "INVALID_REQUEST", Code::InvalidArgument),
    (Reason::InvalidSetting, "INVALID_SETTING", Code::InvalidArgument),
    (Reason::BatchCorrupt, "BATCH_CORRUPT", Code::InvalidArgument),
    (Reason::BatchTooLarge, "BATCH_TOO_LARGE", Code::InvalidArgument),
    (Reason::RecordTooLarge, "RECORD_TOO_LARGE", Code::InvalidArgument),
    (Reason::KeyRequired, "KEY_REQUIRED", Code::InvalidArgument),
    (Reason::TimestampTooFar, "TIMESTAMP_TOO_FAR", Code::InvalidArgument),
    (Reason::OffsetOutOfRange, "OFFSET_OUT_OF_RANGE", Code::OutOfRange),
    (Reason::SequenceGap, "SEQUENCE_GAP", Code::FailedPrecondition),
    (Reason::UnknownProducer, "UNKNOWN_PRODUCER", Code::FailedPrecondition),
    (Reason::NumberReused, "NUMBER_REUSED", Code::FailedPrecondition),
    (Reason::NumberTooOld, "NUMBER_TOO_OLD", Code::FailedPrecondition),
    (Reason::ResendFirst, "RESEND_FIRST", Code::FailedPrecondition),
    (Reason::NumberingMixed, "NUMBERING_MIXED", Code::FailedPrecondition),
    (Reason::ProducerFenced, "PRODUCER_FENCED", Code::FailedPrecondition),
    (Reason::ExpectedEndNotMet, "EXPECTED_END_NOT_MET", Code::FailedPrecondition),
    (Reason::TooManyProducers, "TOO_MANY_PRODUCERS", Code::ResourceExhausted),
    (Reason::Backpressure, "BACKPRESSURE", Code::ResourceExhausted),
    (Reason::LimitReached, "LIMIT_REACHED", Code::ResourceExhausted),
    (Reason::DiskFull, "DISK_FULL", Code::ResourceExhausted),
    (Reason::PartitionPoisoned, "PARTITION_POISONED", Code::Unavailable),
    (Reason::PartitionUnavailable, "PARTITION_UNAVAILABLE", Code::Unavailable),
    (Reason::ShuttingDown, "SHUTTING_DOWN", Code::Unavailable),
    (Reason::AppendUndone, "APPEND_UNDONE", Code::Unavailable),
    (Reason::AppendUnknown, "APPEND_UNKNOWN", Code::Unavailable),
    (Reason::DataDamaged, "DATA_DAMAGED", Code::DataLoss),
    (Reason::GroupNotFound, "GROUP_NOT_FOUND", Code::NotFound),
    (Reason::GroupExists, "GROUP_EXISTS", Code::AlreadyExists),
    (Reason::GroupNotEmpty, "GROUP_NOT_EMPTY", Code::FailedPrecondition),
    (Reason::MemberFenced, "MEMBER_FENCED", Code::Aborted),
    (Reason::PartitionNotOwned, "PARTITION_NOT_OWNED", Code::FailedPrecondition),
    (Reason::StartPositionNeeded, "START_POSITION_NEEDED", Code::FailedPrecondition),
    (Reason::CoordinatorLoading, "COORDINATOR_LOADING", Code::Unavailable),
    (Reason::PlanChanged, "PLAN_CHANGED", Code::FailedPrecondition),
    (Reason::Internal, "INTERNAL", Code::Internal),
];

/// A failure of any reason.
#[derive(Debug, thiserror::Error)]
#[error("it failed")]
struct Sample(Reason);

impl Failure for Sample {
    fn reason(&self) -> Reason {
        self.0
    }

    fn details(&self) -> Details {
        vec![("expected_sequence", "7".to_owned())]
    }
}

#[test]
fn every_reason_has_its_code_in_a_status_and_in_an_item() {
    for (reason, name, expected) in TABLE {
        let refused = refusal(&Sample(*reason));
        let item = refused.clone().into_item();
        assert_eq!((item.code, item.reason.as_str()), (*expected as i32, *name));
        assert_eq!(item.metadata["expected_sequence"], "7");
        let status = refused.into_status();
        assert_eq!(status.code(), *expected, "{name}");
        assert_eq!(status.message(), item.message);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (*name, ERROR_DOMAIN));
        assert_eq!(info.metadata, item.metadata);
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        assert_eq!(retry.map_or(0, |delay| delay.as_millis() as u64), item.retry_delay_ms);
        let is_limit = *expected == Code::ResourceExhausted;
        assert!(!is_limit || retry.is_some(), "{name}: over a limit the answer says when to try again");
        assert!(
            *expected != Code::InvalidArgument || retry.is_none(),
            "{name}: trying again changes nothing"
        );
    }
}

/// A refusal, its reason, and some of its metadata.
type Case = (Refusal, &'static str, &'static [(&'static str, &'static str)]);

#[test]
fn failures_carry_the_numbers_that_explain_them() {
    let offset = |value| Offset::new(value).unwrap();
    let topic: TopicName = "t".parse().unwrap();
    let partition = PartitionIndex(3);
    let cases: &[Case] = &[
        (refusal(&TopicNotFound { topic: topic.clone() }), "TOPIC_NOT_FOUND", &[("topic", "t")]),
        (
            partition_refusal(&AppendError::SequenceGap { expected: 4, got: 9 }, &topic, partition),
            "SEQUENCE_GAP",
            &[("expected_sequence", "4"), ("topic", "t"), ("partition", "3")],
        ),
        (
            partition_refusal(
                &AppendError::ExpectedEndNotMet { expected: offset(1), actual: offset(5) },
                &topic,
                partition,
            ),
            "EXPECTED_END_NOT_MET",
            &[("actual_end", "5"), ("partition", "3")],
        ),
        (
            partition_refusal(
                &AppendError::Fenced { got: ProducerEpoch::ZERO, current: ProducerEpoch::ZERO.next() },
                &topic,
                partition,
            ),
            "PRODUCER_FENCED",
            &[("current_epoch", "1")],
        ),
        (
            partition_refusal(&AppendError::ResendFirst { expected: 8, got: 9 }, &topic, partition),
            "RESEND_FIRST",
            &[("expected_number", "8")],
        ),
        (
            partition_refusal(
                &ReadError::DataLoss { from: offset(10), until: offset(20), reason: "rot".to_owned() },
                &topic,
                partition,
            ),
            "DATA_DAMAGED",
            &[("from_offset", "10"), ("until_offset", "20"), ("topic", "t")],
        ),
        (
            refusal(&OutOfRange {
                topic: topic.clone(),
                partition,
                offset: offset(9),
                start: offset(2),
                end: offset(5),
            }),
            "OFFSET_OUT_OF_RANGE",
            &[("log_start_offset", "2"), ("high_watermark", "5"), ("partition", "3")],
        ),
        (
            refusal(&LimitReached { what: "topics", limit: 7 }),
            "LIMIT_REACHED",
            &[("what", "topics"), ("limit", "7")],
        ),
        (
            partition_refusal(
                &Backpressure::Staging { waiting: ByteCount(9), limit: ByteCount(8) },
                &topic,
                partition,
            ),
            "BACKPRESSURE",
            &[("limit", "8")],
        ),
        (topic_refusal(&StoreError::Full { path: "x".to_owned() }, &topic), "DISK_FULL", &[("topic", "t")]),
        (
            partition_refusal(
                &AppendError::DidNotHappen { reason: "no space".to_owned(), disk_full: true },
                &topic,
                partition,
            ),
            "DISK_FULL",
            &[("partition", "3")],
        ),
        (
            partition_refusal(&AppendError::Unknown { reason: "sync failed".to_owned() }, &topic, partition),
            "APPEND_UNKNOWN",
            &[("partition", "3")],
        ),
    ];
    for (refused, reason, metadata) in cases {
        assert_eq!(refused.reason, *reason);
        for (key, value) in *metadata {
            assert_eq!(refused.metadata.get(*key).map(String::as_str), Some(*value), "{reason} {key}");
        }
    }
}

#[test]
fn delays_come_along() {
    let delay = Duration::from_millis(1_234);
    let status =
        refusal(&NoRoom { what: "bytes in flight", wanted: 1, limit: 2, retry_after: delay }).into_status();
    assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(delay));
}

#[test]
fn a_stop_tells_to_reconnect() {
    let status: Status = refusal(&ShuttingDown).into_status();
    assert_eq!(status.message(), "shutting down, reconnect");
    assert_eq!(refusal(&ShuttingDown).into_item(), Refusal::shutting_down().into_item());
}
