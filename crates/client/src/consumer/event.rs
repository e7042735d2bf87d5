//! What a consumer hands to the application.

use std::{
    fmt,
    future::Future,
    ops::Deref,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use rimstone_types::Offset;
use tokio::sync::watch;

use crate::{
    consumer::{Shared, hand::Lease, state::Answered},
    error::{ClientError, Code, reason},
    groups::TopicPartition,
    reader::Received,
};

/// A record that was handed to a member. It is *in hand* until it is committed, or until it was dropped and the
/// next one asked for: so long a stop of its partition is not confirmed, and so long an automatic commit does
/// not go beyond it.
pub struct ConsumerRecord {
    pub(crate) topic: Arc<str>,
    pub(crate) record: Received,
    pub(crate) lease: Lease,
    pub(crate) shared: Weak<Shared>,
}

impl ConsumerRecord {
    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The partition it came from.
    pub fn at(&self) -> TopicPartition {
        TopicPartition { topic: self.topic.clone(), partition: self.record.partition }
    }

    /// The same as [`Consumer::commit`](crate::Consumer::commit), for where the consumer is not at hand.
    pub fn commit(&self) -> Committing {
        match self.shared.upgrade() {
            Some(shared) => shared.commit(self),
            None => Committing::failed(closed()),
        }
    }

    /// The record alone: it is not held any more.
    pub fn into_inner(self) -> Received {
        self.record
    }
}

impl Deref for ConsumerRecord {
    type Target = Received;

    fn deref(&self) -> &Received {
        &self.record
    }
}

impl fmt::Debug for ConsumerRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerRecord").field("topic", &self.topic).field("record", &self.record).finish()
    }
}

/// What [`Consumer::next_event`](crate::Consumer::next_event) answers.
#[derive(Debug)]
pub enum Event {
    /// A record.
    Record(ConsumerRecord),
    /// These partitions are the member's from now on.
    Assigned(Vec<Assignment>),
    /// These partitions are to be given back. No more records of them come.
    Stopping(Stopping),
    /// These partitions are not the member's any more, without having been given back: it was fenced, or its
    /// session has ended. What is in hand of them is processed by somebody else again; it cannot be committed.
    Lost(Vec<TopicPartition>),
    /// Everything that was there when the partition was assigned has been handed out. Once per assignment.
    CaughtUp(TopicPartition),
}

/// A partition that was given to the member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Which.
    pub at: TopicPartition,
    /// Where reading begins; `None`: nowhere yet, and an error says why.
    pub start: Option<Offset>,
    /// What is committed; `None`: nothing.
    pub committed: Option<Offset>,
    /// The end that readers see, at this moment.
    pub end: Offset,
}

/// Partitions to be given back: finish or drop what is in hand, commit, and let go of this.
///
/// The stop is confirmed, and the partitions go to another member, when this value has been dropped, nothing of
/// the partitions is in hand ([`ConsumerRecord`]), and every commit of them is answered. Until then they are
/// still the member's and commits are taken. Whoever takes longer than the server allows
/// (`max_poll_interval`) is fenced.
#[derive(Debug)]
#[must_use = "dropping it says that these partitions may go"]
pub struct Stopping {
    pub(crate) partitions: Vec<TopicPartition>,
    pub(crate) shared: Weak<Shared>,
    /// Of which round of ownership.
    pub(crate) generation: u64,
}

impl Stopping {
    /// The partitions.
    pub fn partitions(&self) -> &[TopicPartition] {
        &self.partitions
    }

    /// The same as dropping it.
    pub fn confirm(self) {}
}

impl Drop for Stopping {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.state.lock().released(&self.partitions, self.generation);
            shared.wake.notify_one();
        }
    }
}

/// A commit on its way. Await it to know that it is durable; dropping it does not take it back.
pub struct Committing {
    answer: BoxFuture<'static, Result<(), ClientError>>,
}

impl Committing {
    pub(crate) fn failed(error: ClientError) -> Self {
        Self { answer: Box::pin(async { Err(error) }) }
    }

    /// Resolves when each of these has answered its number.
    pub(crate) fn when(answers: Vec<(watch::Receiver<Answered>, u64)>) -> Self {
        let answer = async move {
            for (mut answers, number) in answers {
                let answered = answers.wait_for(|answered| answered.number >= number).await;
                let answered = answered.map_err(|_| not_owned_any_more())?;
                if let Some(error) = &answered.error {
                    return Err(error.clone());
                }
            }
            Ok(())
        };
        Self { answer: Box::pin(answer) }
    }
}

impl Future for Committing {
    type Output = Result<(), ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.answer.as_mut().poll(context)
    }
}

impl fmt::Debug for Committing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committing").finish_non_exhaustive()
    }
}

pub(crate) fn closed() -> ClientError {
    ClientError::new(Code::FailedPrecondition, reason::CONSUMER_CLOSED, "the consumer is closed")
}

fn not_owned_any_more() -> ClientError {
    let message = "the partition was lost before the commit was answered; it may or may not have been taken";
    ClientError::new(Code::FailedPrecondition, reason::PARTITION_NOT_OWNED, message)
}

pub(crate) fn not_owned(at: &TopicPartition) -> ClientError {
    let message = format!("partition {at} is not this member's (any more)");
    ClientError::new(Code::FailedPrecondition, reason::PARTITION_NOT_OWNED, message)
        .with("topic", &at.topic)
        .with("partition", at.partition)
}
