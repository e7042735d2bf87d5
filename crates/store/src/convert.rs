//! From the words of the log to the words of the seam.

use rimstone_log::producers::{Entry, Refusal};
use rimstone_types::ProducerId;

use crate::{AppendError, ProducerView};

impl From<Refusal> for AppendError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::SequenceGap { expected, got } => Self::SequenceGap { expected, got },
            Refusal::UnknownProducer { got } => Self::UnknownProducer { got },
            Refusal::Fenced { got, current } => Self::Fenced { got, current: Some(current) },
            Refusal::NumberReused { got, last } => Self::NumberReused { got, last },
            Refusal::NumberTooOld { got, last } => Self::NumberTooOld { got, last },
            Refusal::ResendFirst { expected, got } => Self::ResendFirst { expected, got },
            Refusal::NumberingMixed { stored, got } => Self::NumberingMixed { stored, got },
            Refusal::TooManyProducers { limit } => Self::TooManyProducers { limit },
        }
    }
}

impl ProducerView {
    /// What the log's table knows; `None` where nothing of the producer is stored.
    pub(crate) fn of(id: ProducerId, entry: &Entry) -> Option<Self> {
        Some(Self {
            id,
            epoch: entry.epoch(),
            numbering: entry.numbering(),
            last: entry.last()?,
            last_offset: entry.last_offset(),
            last_append: entry.last_append(),
        })
    }
}
