//! What the store's errors say of themselves.

use rimstone_store::{AcceptLossError, AppendError, Backpressure, ReadError, StoreError};

use super::{Details, Failure, Reason};

impl Failure for StoreError {
    fn reason(&self) -> Reason {
        match self {
            Self::Io { .. } => Reason::Internal,
            Self::Full { .. } => Reason::DiskFull,
            Self::Poisoned { .. } => Reason::PartitionPoisoned,
            Self::ShuttingDown => Reason::ShuttingDown,
            Self::Deleted => Reason::PartitionUnavailable,
            Self::OutOfRange { .. } => Reason::OffsetOutOfRange,
            Self::Limit { .. } => Reason::LimitReached,
        }
    }

    fn details(&self) -> Details {
        match self {
            Self::OutOfRange { start, end, .. } => {
                vec![("log_start_offset", start.to_string()), ("high_watermark", end.to_string())]
            }
            Self::Limit { what, limit } => vec![("what", (*what).to_owned()), ("limit", limit.to_string())],
            Self::Io { .. }
            | Self::Full { .. }
            | Self::Poisoned { .. }
            | Self::ShuttingDown
            | Self::Deleted => Details::new(),
        }
    }
}

impl Failure for ReadError {
    fn reason(&self) -> Reason {
        match self {
            Self::OutOfRange { .. } => Reason::OffsetOutOfRange,
            Self::DataLoss { .. } => Reason::DataDamaged,
            Self::Store(error) => error.reason(),
        }
    }

    fn details(&self) -> Details {
        match self {
            Self::OutOfRange { start, end, .. } => {
                vec![("log_start_offset", start.to_string()), ("high_watermark", end.to_string())]
            }
            Self::DataLoss { from, until, .. } => {
                vec![("from_offset", from.to_string()), ("until_offset", until.to_string())]
            }
            Self::Store(error) => error.details(),
        }
    }
}

impl Failure for AcceptLossError {
    fn reason(&self) -> Reason {
        match self {
            Self::Differs { .. } => Reason::DamageDiffers,
            Self::Refused { .. } => Reason::LossRefused,
            Self::Store(error) => error.reason(),
        }
    }

    fn details(&self) -> Details {
        match self {
            Self::Differs { found } => {
                let first = found.first.iter().map(|range| format!("{}..{}", range.from, range.until));
                let first: Vec<_> = first.collect();
                vec![("damaged", first.join(",")), ("damaged_ranges", found.ranges.to_string())]
            }
            Self::Refused { .. } => Details::new(),
            Self::Store(error) => error.details(),
        }
    }
}

impl Failure for Backpressure {
    fn reason(&self) -> Reason {
        match self {
            Self::Staging { .. } => Reason::Backpressure,
            Self::DiskReserve { .. } => Reason::DiskFull,
            Self::Poisoned { .. } => Reason::PartitionPoisoned,
            Self::Closed => Reason::PartitionUnavailable,
        }
    }

    fn details(&self) -> Details {
        match self {
            Self::Staging { waiting, limit } => {
                vec![("waiting_bytes", waiting.get().to_string()), ("limit", limit.get().to_string())]
            }
            Self::DiskReserve { free, reserve } => {
                vec![("free_bytes", free.get().to_string()), ("reserve_bytes", reserve.get().to_string())]
            }
            Self::Poisoned { .. } | Self::Closed => Details::new(),
        }
    }
}

impl Failure for AppendError {
    fn reason(&self) -> Reason {
        match self {
            Self::ExpectedEndNotMet { .. } => Reason::ExpectedEndNotMet,
            Self::SequenceGap { .. } => Reason::SequenceGap,
            Self::UnknownProducer { .. } => Reason::UnknownProducer,
            Self::Fenced { .. } => Reason::ProducerFenced,
            Self::NumberReused { .. } => Reason::NumberReused,
            Self::NumberTooOld { .. } => Reason::NumberTooOld,
            Self::ResendFirst { .. } => Reason::ResendFirst,
            Self::NumberingMixed { .. } => Reason::NumberingMixed,
            Self::TooManyProducers { .. } => Reason::TooManyProducers,
            Self::OffsetsExhausted => Reason::LimitReached,
            Self::DidNotHappen { disk_full: true, .. } => Reason::DiskFull,
            Self::DidNotHappen { .. } => Reason::AppendUndone,
            Self::Unknown { .. } => Reason::AppendUnknown,
        }
    }

    fn details(&self) -> Details {
        match self {
            Self::ExpectedEndNotMet { actual, .. } => vec![("actual_end", actual.to_string())],
            Self::SequenceGap { expected, .. } => vec![("expected_sequence", expected.to_string())],
            Self::UnknownProducer { .. } => vec![("expected_sequence", "0".to_owned())],
            Self::Fenced { current, .. } => {
                current.map(|epoch| ("current_epoch", epoch.to_string())).into_iter().collect()
            }
            Self::NumberReused { last, .. } | Self::NumberTooOld { last, .. } => {
                vec![("last_number", last.to_string())]
            }
            Self::ResendFirst { expected, .. } => vec![("expected_number", expected.to_string())],
            Self::TooManyProducers { limit } => {
                vec![("what", "producers".to_owned()), ("limit", limit.to_string())]
            }
            Self::OffsetsExhausted => vec![("what", "offsets".to_owned()), ("limit", i64::MAX.to_string())],
            Self::NumberingMixed { .. } | Self::DidNotHappen { .. } | Self::Unknown { .. } => Details::new(),
        }
    }
}
