//! What an answer of the server says of a batch: one table from reasons to what is done about them.

use rimstone_proto::v1;
use rimstone_types::{Offset, PartitionIndex, Timestamp};

use crate::{
    error::{ClientError, Code, reason},
    producer::queue::Verdict,
};

/// What an answer says of its batch.
///
/// # Errors
/// What ends the producer, or [`reason::PROTOCOL`], which ends the connection.
pub(crate) fn verdict_of(
    ack: v1::ProduceStreamAck,
    partition: PartitionIndex,
) -> Result<Verdict, ClientError> {
    if let Some(error) = ack.error {
        return verdict_of_error(error.into());
    }
    let mut appends = ack.response.map(|response| response.appends).unwrap_or_default();
    let (Some(append), true) = (appends.pop(), appends.is_empty()) else {
        return Err(ClientError::protocol("an answer to one batch does not tell of one batch"));
    };
    if let Some(error) = append.error {
        return verdict_of_error(error.into());
    }
    if append.partition != partition.0 {
        return Err(ClientError::protocol("an answer tells of another partition"));
    }
    let base = append.base_offset.map(Offset::new).transpose();
    let base = base.map_err(|error| {
        ClientError::protocol(format!("the server gave an offset that is not one: {error}"))
    })?;
    if base.is_none() && !append.duplicate {
        return Err(ClientError::protocol("an answer to a new batch has no offset"));
    }
    let append_time = Timestamp(append.append_time_ms);
    Ok(Verdict::Stored { base, append_time, duplicate: append.duplicate })
}

fn verdict_of_error(error: ClientError) -> Result<Verdict, ClientError> {
    match error.reason.as_str() {
        reason::SEQUENCE_GAP | reason::UNKNOWN_PRODUCER | reason::PRODUCER_NOT_FOUND => {
            Ok(Verdict::OutOfOrder(error))
        }
        // Somebody else writes under this id, or this producer and the server disagree on what it wrote.
        reason::PRODUCER_FENCED
        | reason::NUMBERING_MIXED
        | reason::NUMBER_REUSED
        | reason::NUMBER_TOO_OLD => Err(error),
        reason::BACKPRESSURE
        | reason::LIMIT_REACHED
        | reason::TOO_MANY_PRODUCERS
        | reason::DISK_FULL
        | reason::PARTITION_POISONED
        | reason::PARTITION_UNAVAILABLE
        | reason::SHUTTING_DOWN
        | reason::APPEND_UNDONE => Ok(Verdict::Refused(error)),
        _ => match error.code {
            Code::InvalidArgument
            | Code::NotFound
            | Code::OutOfRange
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented => Ok(Verdict::Rejected(error)),
            Code::ResourceExhausted => Ok(Verdict::Refused(error)),
            _ => Ok(Verdict::Unknown(error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::item;

    fn refused(code: Code, reason: &str, whole: bool) -> Result<Verdict, ClientError> {
        let error = Some(item(code, reason, &[]));
        let ack = if whole {
            v1::ProduceStreamAck { error, ..Default::default() }
        } else {
            let appends = vec![v1::PartitionAppend { partition: 3, error, ..Default::default() }];
            let response = Some(v1::ProduceResponse { appends, records: Vec::new() });
            v1::ProduceStreamAck { response, ..Default::default() }
        };
        verdict_of(ack, PartitionIndex(3))
    }

    #[test]
    fn every_reason_has_its_verdict_wherever_it_stands() {
        for whole in [false, true] {
            let verdict = |code, reason| refused(code, reason, whole);
            for (code, reason) in [
                (Code::ResourceExhausted, "BACKPRESSURE"),
                (Code::ResourceExhausted, "DISK_FULL"),
                (Code::ResourceExhausted, "TOO_MANY_PRODUCERS"),
                (Code::ResourceExhausted, "SOME_LATER_QUOTA"),
                (Code::Unavailable, "PARTITION_POISONED"),
                (Code::Unavailable, "SHUTTING_DOWN"),
                (Code::Unavailable, "APPEND_UNDONE"),
            ] {
                assert!(matches!(verdict(code, reason), Ok(Verdict::Refused(_))), "{reason}");
            }
            for reason in ["SEQUENCE_GAP", "UNKNOWN_PRODUCER"] {
                let verdict = verdict(Code::FailedPrecondition, reason);
                assert!(matches!(verdict, Ok(Verdict::OutOfOrder(_))), "{reason}");
            }
            for (code, reason) in [
                (Code::InvalidArgument, "TIMESTAMP_TOO_FAR"),
                (Code::InvalidArgument, "BATCH_TOO_LARGE"),
                (Code::NotFound, "TOPIC_NOT_FOUND"),
            ] {
                assert!(matches!(verdict(code, reason), Ok(Verdict::Rejected(_))), "{reason}");
            }
            // Nothing that is not known to be a refusal is taken for one.
            for (code, reason) in [
                (Code::Unavailable, "APPEND_UNKNOWN"),
                (Code::Internal, "INTERNAL"),
                (Code::Unavailable, "NEW"),
            ] {
                assert!(matches!(verdict(code, reason), Ok(Verdict::Unknown(_))), "{reason}");
            }
            for reason in ["PRODUCER_FENCED", "NUMBER_REUSED", "NUMBER_TOO_OLD", "NUMBERING_MIXED"] {
                let ends = verdict(Code::FailedPrecondition, reason).unwrap_err();
                assert!(ends.is(reason));
            }
        }
    }

    #[test]
    fn an_answer_that_makes_no_sense_ends_the_connection() {
        let append = |append: v1::PartitionAppend| {
            let response = Some(v1::ProduceResponse { appends: vec![append], records: Vec::new() });
            verdict_of(v1::ProduceStreamAck { response, ..Default::default() }, PartitionIndex(3))
        };
        let good = v1::PartitionAppend { partition: 3, base_offset: Some(7), ..Default::default() };
        assert!(matches!(append(good.clone()), Ok(Verdict::Stored { duplicate: false, .. })));
        let forgotten = v1::PartitionAppend { base_offset: None, duplicate: true, ..good.clone() };
        assert!(matches!(append(forgotten), Ok(Verdict::Stored { base: None, duplicate: true, .. })));
        for bad in [
            v1::PartitionAppend { partition: 4, ..good.clone() },
            v1::PartitionAppend { base_offset: None, ..good.clone() },
            v1::PartitionAppend { base_offset: Some(u64::MAX), ..good },
        ] {
            assert!(append(bad).unwrap_err().is(reason::PROTOCOL));
        }
        let empty = verdict_of(v1::ProduceStreamAck::default(), PartitionIndex(3));
        assert!(empty.unwrap_err().is(reason::PROTOCOL));
    }
}
