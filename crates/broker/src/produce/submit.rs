//! Handing batches to the store in order, and what becomes of them.

use std::{
    collections::BTreeMap,
    future::{Future as _, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use rimstone_store::{AppendError, AppendTicket, Appended, Backpressure};
use rimstone_types::{Offset, PartitionIndex};

use super::{
    PartitionAppend, Prepared, ProduceOutcome, RecordPosition,
    prepare::{Place, PreparedAppend},
};
use crate::{
    broker::Inner,
    error::{PartitionAppendError, ProduceError, SubmitRefused},
    metrics::Metrics,
    reserve::Reservation,
    topics::Topic,
};

/// A request whose batches have their places.
#[derive(Debug)]
pub(crate) struct Submitted {
    topic: Arc<Topic>,
    parts: Vec<Part>,
    /// What became of the first of them.
    results: Vec<PartitionAppend>,
    places: Option<Vec<Place>>,
    arrived: Instant,
    _reservation: Reservation,
}

#[derive(Debug)]
struct Part {
    partition: PartitionIndex,
    records: u32,
    bytes: u64,
    ticket: Result<AppendTicket, Backpressure>,
}

impl Inner {
    /// Submits the batches in order.
    ///
    /// # Errors
    /// [`SubmitRefused`] if the first is not taken: then nothing is. A later one that is not taken becomes
    /// the error of its partition, and so do those behind it in the same partition.
    pub(crate) fn submit(&self, prepared: Prepared) -> Result<Submitted, ProduceError> {
        let Prepared { topic, appends, places, reservation, arrived } = prepared;
        let mut parts: Vec<Part> = Vec::with_capacity(appends.len());
        let mut refusals: BTreeMap<PartitionIndex, Backpressure> = BTreeMap::new();
        for PreparedAppend { partition, store, append } in appends {
            let (records, bytes) = (append.batch.header().record_count, append.batch.bytes().len() as u64);
            let ticket = match refusals.get(&partition) {
                Some(refusal) => Err(refusal.clone()),
                None => store.submit(append),
            };
            if let Err(refusal) = &ticket {
                if parts.is_empty() {
                    let (topic, refusal) = (topic.name.clone(), refusal.clone());
                    return Err(SubmitRefused { topic, partition, refusal }.into());
                }
                refusals.insert(partition, refusal.clone());
            }
            if ticket.is_ok() {
                self.pace.submitted(bytes);
            }
            parts.push(Part { partition, records, bytes, ticket });
        }
        let results = Vec::with_capacity(parts.len());
        Ok(Submitted { topic, parts, results, places, arrived, _reservation: reservation })
    }
}

impl Submitted {
    /// The outcome, once all tickets have theirs; they are told in order, so that whoever waits is woken for the
    /// first one and finds the others answered. Not to be asked again after that.
    pub(crate) fn poll(&mut self, metrics: &Metrics, context: &mut Context<'_>) -> Poll<ProduceOutcome> {
        while let Some(part) = self.parts.get_mut(self.results.len()) {
            let result = match &mut part.ticket {
                Ok(ticket) => ready!(Pin::new(ticket).poll(context)).map_err(PartitionAppendError::from),
                Err(refusal) => Err(refusal.clone().into()),
            };
            match &result {
                Ok(appended) => self.topic.counters.produced(part.records, part.bytes, appended.duplicate),
                Err(error) => metrics.error(error),
            }
            self.results.push(PartitionAppend { partition: part.partition, result });
        }
        metrics.produce_seconds.observe(self.arrived.elapsed().as_secs_f64());
        let results = std::mem::take(&mut self.results);
        Poll::Ready(match self.places.take() {
            None => ProduceOutcome { appends: results, records: Vec::new() },
            Some(places) => {
                let records = places.iter().map(|place| position(&results[place.append], place.record));
                let records = records.collect();
                ProduceOutcome { appends: merge(results), records }
            }
        })
    }

    /// Waits for all tickets.
    pub(crate) async fn outcome(mut self, metrics: &Metrics) -> ProduceOutcome {
        poll_fn(|context| self.poll(metrics, context)).await
    }
}

fn position(append: &PartitionAppend, record: u32) -> RecordPosition {
    let offset = |appended: &Appended| {
        let (first, _): (Offset, Offset) = appended.offsets?;
        first.checked_add(u64::from(record))
    };
    RecordPosition { partition: append.partition, offset: append.result.as_ref().ok().and_then(offset) }
}

/// One item per partition: where records were split into several batches, from the first to the last, or the
/// first error.
fn merge(appends: Vec<PartitionAppend>) -> Vec<PartitionAppend> {
    let mut merged: Vec<PartitionAppend> = Vec::with_capacity(appends.len());
    for append in appends {
        match merged.last_mut().filter(|last| last.partition == append.partition) {
            None => merged.push(append),
            Some(last) => match (&mut last.result, append.result) {
                (Ok(before), Ok(after)) => {
                    before.offsets =
                        before.offsets.zip(after.offsets).map(|((first, _), (_, end))| (first, end));
                    before.append_time = after.append_time;
                }
                (Ok(_), Err(error)) => last.result = Err(error),
                (Err(_), _) => {}
            },
        }
    }
    merged
}

/// Whether a numbered request with this answer has to be sent again before later ones are taken: the store
/// did not keep it, or nobody knows. A verdict that stands (the number was used before, the end was another,
/// the epoch is fenced) stands for a repeat too, so nobody has to wait for one.
pub(crate) fn needs_resend(error: &PartitionAppendError) -> bool {
    match error {
        PartitionAppendError::Refused(_) => true,
        PartitionAppendError::Append(error) => match error {
            AppendError::DidNotHappen { .. }
            | AppendError::Unknown { .. }
            | AppendError::ResendFirst { .. }
            | AppendError::TooManyProducers { .. } => true,
            AppendError::ExpectedEndNotMet { .. }
            | AppendError::SequenceGap { .. }
            | AppendError::UnknownProducer { .. }
            | AppendError::Fenced { .. }
            | AppendError::NumberReused { .. }
            | AppendError::NumberTooOld { .. }
            | AppendError::NumberingMixed { .. }
            | AppendError::OffsetsExhausted => false,
        },
    }
}

/// Whether the condition of a request stands in its way, and nothing else.
pub(crate) fn is_end_not_met(error: &PartitionAppendError) -> bool {
    matches!(error, PartitionAppendError::Append(AppendError::ExpectedEndNotMet { .. }))
}
