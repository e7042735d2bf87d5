//! What leaves a shard: answers, refusals, views for sessions, lines of the commit table. All of it waits until
//! the state that it was decided on is durable, in the order of the decisions.

use std::{collections::VecDeque, fmt};

use rimstone_store::{AppendError, AppendTicket, Appended};
use tokio::sync::oneshot;

use super::Lost;
use crate::{
    error::GroupRequestError,
    groups::{CommitChange, CommitTable},
};

/// Where an answer goes. Whoever asked may have gone: what was decided stands all the same.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, GroupRequestError>>;

/// What is done when the fate of the state is known.
type OnFate = Box<dyn FnOnce(Result<(), &Lost>) + Send>;

/// Something that waits for durability.
pub(super) enum Outward {
    /// An answer; if its state is lost, it says so.
    Answer(OnFate),
    /// A line of the commit table.
    Commit(CommitChange),
    /// A push to a session, or a count; falls away if its state is lost.
    Push(Box<dyn FnOnce() + Send>),
}

impl fmt::Debug for Outward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answer(_) => "Answer",
            Self::Commit(_) => "Commit",
            Self::Push(_) => "Push",
        })
    }
}

impl Outward {
    pub(super) fn answer<T: Send + 'static>(reply: Reply<T>, answer: Result<T, GroupRequestError>) -> Self {
        Self::Answer(Box::new(move |kept| {
            drop(reply.send(match kept {
                Ok(()) => answer,
                Err(lost) => Err(lost.clone().into()),
            }));
        }))
    }

    pub(super) fn push(push: impl FnOnce() + Send + 'static) -> Self {
        Self::Push(Box::new(push))
    }
}

/// What they were decided on is durable: they go out. The table is first, so that whoever hears an answer
/// finds it there.
pub(super) fn deliver(outward: Vec<Outward>, table: &CommitTable) {
    let (mut changes, mut others) = (Vec::new(), Vec::new());
    for outward in outward {
        match outward {
            Outward::Commit(change) => changes.push(change),
            Outward::Answer(answer) => others.push(Ok(answer)),
            Outward::Push(push) => others.push(Err(push)),
        }
    }
    table.apply(changes);
    for other in others {
        match other {
            Ok(answer) => answer(Ok(())),
            Err(push) => push(),
        }
    }
}

/// What they were decided on is lost.
pub(super) fn lose(outward: Vec<Outward>, lost: &Lost) {
    for outward in outward {
        if let Outward::Answer(answer) = outward {
            answer(Err(lost));
        }
    }
}

/// A batch that was submitted, and what waits for it.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) ticket: AppendTicket,
    pub(super) outward: Vec<Outward>,
}

/// Waits for the oldest batch, which is then to be taken off; tickets resolve in order. Nothing is lost if
/// this is dropped while it waits.
pub(super) async fn oldest(in_flight: &mut VecDeque<InFlight>) -> Result<Appended, AppendError> {
    match in_flight.front_mut() {
        Some(first) => (&mut first.ticket).await,
        None => std::future::pending().await,
    }
}
