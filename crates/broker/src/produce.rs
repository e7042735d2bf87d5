//! Producing: a request is prepared (verified, partitioned, batched), submitted (its place in the order is
//! fixed), and resolved. Not here: the order of numbered requests (`sessions`), duplicates (the store).

mod batching;
mod prepare;
mod records;
mod submit;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use rimstone_store::Appended;
use rimstone_types::{
    ByteCount, Offset, PartitionIndex, ProducerEpoch, ProducerId, RequestNumber, TopicName,
};
use tokio::{runtime::Handle, sync::oneshot};
use tokio_util::task::task_tracker::TaskTrackerToken;

pub(crate) use prepare::Prepared;
pub use records::{PlainRecord, RecordView, Records};
use submit::Submitted;
pub(crate) use submit::{is_end_not_met, needs_resend};

use crate::{
    broker::{Broker, Inner},
    error::{PartitionAppendError, ProduceError, ReserveError, ShuttingDown},
    reserve::Reservation,
};

/// A request to append to one topic.
#[derive(Debug, Clone)]
pub struct ProduceRequest {
    /// Where.
    pub topic: TopicName,
    /// What.
    pub payload: Payload,
    /// For plain records: which request of which producer this is. `None`: at least once.
    pub numbering: Option<RequestNumbering>,
    /// For plain records that all go to one partition: append only if this is the partition's end.
    pub expected_end: Option<Offset>,
}

/// What is appended.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Records that the server partitions and batches.
    Records(Arc<dyn Records>),
    /// Batches that a client encoded, each for one partition.
    Batches(Vec<PartitionBatch>),
}

/// An encoded batch for one partition.
#[derive(Debug, Clone)]
pub struct PartitionBatch {
    /// Where.
    pub partition: PartitionIndex,
    /// Exactly one batch.
    pub bytes: Bytes,
    /// Append only if this is the partition's end.
    pub expected_end: Option<Offset>,
}

/// Which request of which producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestNumbering {
    /// Who.
    pub id: ProducerId,
    /// Which instance.
    pub epoch: ProducerEpoch,
    /// 0 for the first request, then one more for each.
    pub number: RequestNumber,
}

/// What became of a request that was taken.
#[derive(Debug)]
pub struct ProduceOutcome {
    /// For plain records one for each partition touched, in order of the partition; for batches one for each,
    /// in their order.
    pub appends: Vec<PartitionAppend>,
    /// For plain records: where each went, lined up with the request. Empty for batches.
    pub records: Vec<RecordPosition>,
}

/// What became of the part of one partition.
#[derive(Debug)]
pub struct PartitionAppend {
    /// Which one.
    pub partition: PartitionIndex,
    /// Offsets and append time, or why there are none.
    pub result: Result<Appended, PartitionAppendError>,
}

/// Where a record went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordPosition {
    /// Its partition.
    pub partition: PartitionIndex,
    /// `None` where the append failed or the offset is no longer known.
    pub offset: Option<Offset>,
}

/// What a pending request resolves to.
pub(crate) type Answer = Result<ProduceOutcome, ProduceError>;

/// A request whose place in the order is fixed; resolves when its fate is as durable as the topic asks.
/// May be dropped: the request goes on all the same.
#[derive(Debug)]
pub struct PendingProduce(Pending);

#[derive(Debug)]
enum Pending {
    /// It is with the store. No task of its own: whoever waits for the answer asks the tickets.
    Submitted {
        submitted: Box<Submitted>,
        inner: Arc<Inner>,
        /// A stop waits for it.
        _open: TaskTrackerToken,
    },
    /// It waits for its turn, or somebody else asks.
    Elsewhere(oneshot::Receiver<Answer>),
    Known(Box<Answer>),
    Answered,
}

impl PendingProduce {
    pub(crate) fn new() -> (oneshot::Sender<Answer>, Self) {
        let (answer, pending) = oneshot::channel();
        (answer, Self(Pending::Elsewhere(pending)))
    }

    fn submitted(submitted: Submitted, inner: Arc<Inner>) -> Self {
        let _open = inner.tasks.token();
        Self(Pending::Submitted { submitted: Box::new(submitted), inner, _open })
    }
}

impl PendingProduce {
    /// Lets the request come to its end, and give its room back, without being asked for its answer; the answer waits
    /// here. For when it will not be asked for some time. Must be called within a tokio runtime.
    pub fn detach(&mut self) {
        if !matches!(self.0, Pending::Submitted { .. }) {
            return;
        }
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(answer) = Pin::new(&mut *self).poll(&mut context) {
            self.0 = Pending::Known(Box::new(answer));
            return;
        }
        let (answer, pending) = oneshot::channel();
        let before = std::mem::replace(&mut self.0, Pending::Elsewhere(pending));
        if let Pending::Submitted { submitted, inner, _open: open } = before {
            tokio::spawn(async move {
                drop(answer.send(Ok(submitted.outcome(&inner.metrics).await)));
                drop(open);
            });
        }
    }
}

impl Future for PendingProduce {
    /// `Err`: the whole request was refused (also a numbered request can be, after it waited for its turn).
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if matches!(self.0, Pending::Known(_)) {
            let known = std::mem::replace(&mut self.0, Pending::Answered);
            return if let Pending::Known(answer) = known { Poll::Ready(*answer) } else { Poll::Pending };
        }
        let answer = match &mut self.0 {
            Pending::Submitted { submitted, inner, .. } => {
                Ok(ready!(submitted.poll(&inner.metrics, context)))
            }
            Pending::Elsewhere(pending) => {
                ready!(Pin::new(pending).poll(context)).unwrap_or_else(|_| Err(ShuttingDown.into()))
            }
            Pending::Known(_) | Pending::Answered => return Poll::Pending,
        };
        self.0 = Pending::Answered;
        Poll::Ready(answer)
    }
}

impl Drop for PendingProduce {
    /// Nobody waits any more: the room that the request takes is held, and its fate counted, until it has one.
    fn drop(&mut self) {
        let pending = std::mem::replace(&mut self.0, Pending::Answered);
        if let Pending::Submitted { submitted, inner, _open } = pending
            && let Ok(runtime) = Handle::try_current()
        {
            let tasks = inner.tasks.clone();
            tasks.spawn_on(async move { drop(submitted.outcome(&inner.metrics).await) }, &runtime);
        }
    }
}

impl ProduceRequest {
    /// How much room to reserve for it: the bytes that the request holds in memory, about.
    pub fn reserved_bytes(&self) -> ByteCount {
        /// What a batch costs beside its own bytes while it is in flight.
        const BATCH_OVERHEAD: usize = 128;
        let bytes: usize = match &self.payload {
            Payload::Batches(batches) => batches.iter().map(|batch| batch.bytes.len() + BATCH_OVERHEAD).sum(),
            Payload::Records(records) => records.reserved_bytes(),
        };
        ByteCount(bytes as u64)
    }
}

impl Broker {
    /// Takes a request and fixes its place in the order: requests of one caller that are handed in one after
    /// the other are appended in this order. Must be called within a tokio runtime. The reservation is held
    /// until the answer.
    ///
    /// Plain records without a request number become one batch per partition, or several where they would not
    /// fit `max.message.bytes`; with a number, or with `expected_end`, a request that does not fit one batch
    /// per partition is refused whole.
    ///
    /// # Errors
    /// [`ProduceError`]: nothing of the request was or will be stored.
    pub fn produce(
        &self,
        request: ProduceRequest,
        reservation: Reservation,
    ) -> Result<PendingProduce, ProduceError> {
        self.counted(self.inner.produce(request, reservation))
    }

    /// Room in the in-flight budget, if there is any now.
    ///
    /// # Errors
    /// [`ReserveError`].
    pub fn try_reserve(&self, bytes: ByteCount) -> Result<Reservation, ReserveError> {
        let reserved = self.inner.refuse_when_stopping().map_err(ReserveError::from);
        self.counted(reserved.and_then(|()| self.inner.budget.try_reserve(bytes)))
    }

    /// Room in the in-flight budget, when there is some: a stream that waits here stops reading.
    ///
    /// # Errors
    /// [`ReserveError::Limit`] for more than the whole budget, [`ReserveError::ShuttingDown`].
    pub async fn reserve(&self, bytes: ByteCount) -> Result<Reservation, ReserveError> {
        self.counted(self.inner.budget.reserve(bytes, &self.inner.shutdown).await)
    }
}

impl Inner {
    fn produce(
        self: &Arc<Self>,
        request: ProduceRequest,
        reservation: Reservation,
    ) -> Result<PendingProduce, ProduceError> {
        self.refuse_when_stopping()?;
        let numbering = request.numbering;
        let prepared = self.prepare(request, reservation)?;
        if let Some(numbering) = numbering {
            return self.produce_in_session(numbering, prepared);
        }
        Ok(PendingProduce::submitted(self.submit(prepared)?, Arc::clone(self)))
    }
}

#[cfg(test)]
mod tests;
