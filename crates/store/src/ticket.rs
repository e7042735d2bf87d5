//! The promise of an answer to an append.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use rimstone_types::{Numbering, Offset, ProducerEpoch};
use tokio::sync::oneshot;

use crate::partition::Appended;

/// Why an append has no offsets. A refusal has waited for the durability of the state that it cites.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// `expected_end` was not met.
    #[error("expected the end {expected}, it is {actual}")]
    ExpectedEndNotMet {
        /// What the caller expected.
        expected: Offset,
        /// The real, durable end.
        actual: Offset,
    },
    /// The sequence leaves a gap or overlaps what is stored.
    #[error("sequence {got} is out of order: expected {expected}")]
    SequenceGap {
        /// What should have come.
        expected: u32,
        /// What came.
        got: u32,
    },
    /// Nothing is known of this producer, and its first sequence is not 0.
    #[error("nothing is known of the producer, and its first sequence is {got}, not 0")]
    UnknownProducer {
        /// What came.
        got: u32,
    },
    /// A newer epoch has been seen.
    #[error("producer epoch {got} is fenced; {}", in_force(*current))]
    Fenced {
        /// What came.
        got: ProducerEpoch,
        /// The epoch in force; `None`: the producer was deleted or all epochs are fenced.
        current: FenceEpoch,
    },
    /// The request number has been used for other content.
    #[error("request number {got} was used before for other content; the last is {last}")]
    NumberReused {
        /// What came.
        got: u32,
        /// The last number stored.
        last: u32,
    },
    /// The request number lies before the window, so that nobody can tell whether it was stored.
    #[error("request number {got} is too old to be recognised; the last is {last}")]
    NumberTooOld {
        /// What came.
        got: u32,
        /// The last number stored.
        last: u32,
    },
    /// An earlier request of this producer failed and must be sent again first.
    #[error("request number {got} cannot be taken before {expected}, which failed, is sent again")]
    ResendFirst {
        /// The number that failed.
        expected: u32,
        /// What came.
        got: u32,
    },
    /// Dense numbering and numbering by request cannot be mixed by one producer.
    #[error("the producer's batches here are numbered {stored}, this one is numbered {got}")]
    NumberingMixed {
        /// What is stored.
        stored: Numbering,
        /// What came.
        got: Numbering,
    },
    /// The bound on producers remembered is reached.
    #[error("{limit} producers are remembered in this partition already")]
    TooManyProducers {
        /// The bound.
        limit: u64,
    },
    /// No more offsets.
    #[error("the partition has no offsets left")]
    OffsetsExhausted,
    /// The write failed and was undone: nothing of the batch is stored.
    #[error("the write failed and was undone: {reason}")]
    DidNotHappen {
        /// What the system said.
        reason: String,
        /// The disk is full: it heals by itself when space returns.
        disk_full: bool,
    },
    /// Nobody knows whether the batch survives a crash: a sync failed, or the store went away.
    #[error("it is unknown whether the batch was stored: {reason}")]
    Unknown {
        /// What the system said.
        reason: String,
    },
}

/// The epoch that fences.
pub type FenceEpoch = Option<ProducerEpoch>;

fn in_force(current: FenceEpoch) -> String {
    match current {
        Some(epoch) => format!("the epoch in force is {epoch}"),
        None => "its producer id takes no more records".to_owned(),
    }
}

/// The answer to an append, when it comes.
#[derive(Debug)]
pub struct AppendTicket(oneshot::Receiver<Result<Appended, AppendError>>);

/// The store's end of a ticket.
#[derive(Debug)]
pub struct TicketSender(oneshot::Sender<Result<Appended, AppendError>>);

impl AppendTicket {
    /// A ticket and its other end.
    pub fn new() -> (TicketSender, Self) {
        let (sender, receiver) = oneshot::channel();
        (TicketSender(sender), Self(receiver))
    }

    /// A ticket that has its answer.
    pub fn resolved(answer: Result<Appended, AppendError>) -> Self {
        let (sender, ticket) = Self::new();
        sender.resolve(answer);
        ticket
    }
}

impl TicketSender {
    /// Gives the answer. The caller may have gone: then the append stands all the same.
    pub fn resolve(self, answer: Result<Appended, AppendError>) {
        drop(self.0.send(answer));
    }
}

impl Future for AppendTicket {
    type Output = Result<Appended, AppendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| {
            answer.unwrap_or_else(|_| Err(AppendError::Unknown { reason: "the store went away".to_owned() }))
        })
    }
}
