//! `ProduceService`: producer ids, and appends one by one. The stream is in `stream`, the calls over HTTP are in
//! `service`, how records are read in `wire`.

mod service;
mod stream;
mod wire;

use std::sync::Arc;

use rimstone_broker::{
    Broker, PartitionAppend, PartitionBatch, Payload, ProduceOutcome, ProduceRequest, Records as _,
    RequestNumbering, Reservation, ReserveError,
};
use rimstone_proto::v1;
use rimstone_types::{ByteCount, PartitionIndex, TopicName};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    convert::{
        offset, producer_epoch, producer_id, producer_name, producer_states, request_number, topic_name,
        topic_names,
    },
    door::Door,
    receive::Received,
    refusal::Refusal,
    status::{partition_refusal, refusal, topic_refusal},
};
pub(crate) use service::ProduceDoor;
use wire::{WireRequest, WireResponse, WireStreamRequest};

/// The service.
#[derive(Debug)]
pub(crate) struct Produce {
    door: Door,
    stream_window: ByteCount,
}

impl Produce {
    pub(crate) fn new(door: Door, stream_window: ByteCount) -> Self {
        Self { door, stream_window }
    }

    async fn init(&self, request: v1::InitProducerRequest) -> Result<v1::InitProducerResponse, Refusal> {
        let name = match request.name.as_str() {
            "" => None,
            name => Some(producer_name(name)?),
        };
        let topics = topic_names(&request.topics)?;
        let given = self.door.broker.init_producer(name, &topics).await.map_err(|error| refusal(&error))?;
        Ok(v1::InitProducerResponse {
            producer_id: given.id.get(),
            producer_epoch: given.epoch.get().into(),
            partitions: producer_states(&given.state),
            highest_request_number: given.state.highest_request_number,
        })
    }

    async fn answer(&self, request: Request<WireRequest>) -> Result<Response<WireResponse>, Status> {
        let received = received(&request).take();
        self.door.answer(self.append(request.into_inner(), received)).await
    }

    fn stream(
        &self,
        request: Request<Streaming<WireStreamRequest>>,
    ) -> mpsc::Receiver<Result<v1::ProduceStreamResponse, Status>> {
        let received = received(&request);
        stream::open(self.door.clone(), self.stream_window, received, request.into_inner())
    }

    async fn append(
        &self,
        request: WireRequest,
        received: Option<Reservation>,
    ) -> Result<WireResponse, Refusal> {
        let request = produce_request(request)?;
        let topic = request.topic.clone();
        let reservation = match received {
            Some(received) => enlarged(&self.door.broker, received, request.reserved_bytes()),
            None => self.door.broker.try_reserve(request.reserved_bytes()),
        };
        let reservation = reservation.map_err(|error| topic_refusal(&error, &topic))?;
        let pending =
            self.door.broker.produce(request, reservation).map_err(|error| topic_refusal(&error, &topic))?;
        let outcome = pending.await.map_err(|error| topic_refusal(&error, &topic))?;
        match failure_of_all(&outcome, &topic) {
            Some(refusal) => Err(refusal),
            None => Ok(produce_response(outcome, &topic)),
        }
    }
}

/// Where the room is that the request's messages took while they arrived.
fn received<T>(request: &Request<T>) -> Received {
    request.extensions().get().cloned().unwrap_or_default()
}

/// Room for what a message became, from the room that it took while it arrived. Not waited for: who waits for more
/// while it holds some may wait for others that do the same.
fn enlarged(
    broker: &Broker,
    mut received: Reservation,
    bytes: ByteCount,
) -> Result<Reservation, ReserveError> {
    let more = bytes.get().saturating_sub(received.bytes().get());
    if more > 0 {
        received.add(broker.try_reserve(ByteCount(more))?);
    }
    Ok(received)
}

/// If every part of a request failed, the call fails, with the first failure.
fn failure_of_all(outcome: &ProduceOutcome, topic: &TopicName) -> Option<Refusal> {
    let first = outcome.appends.first()?;
    let error = first.result.as_ref().err()?;
    outcome
        .appends
        .iter()
        .all(|append| append.result.is_err())
        .then(|| partition_refusal(error, topic, first.partition))
}

fn produce_request(request: WireRequest) -> Result<ProduceRequest, Refusal> {
    let WireRequest { rest: request, records } = request;
    let topic = topic_name(&request.topic)?;
    let named = |refusal: Refusal| refusal.with("topic", &topic);
    if records.count() > 0 && !request.batches.is_empty() {
        return Err(named(Refusal::invalid("a request has either records or batches, not both")));
    }
    let numbering = request.request_number.map(numbering).transpose().map_err(named)?;
    let expected_end = request.expected_end.map(offset).transpose().map_err(named)?;
    let payload = if request.batches.is_empty() {
        Payload::Records(Arc::new(records))
    } else {
        if numbering.is_some() || expected_end.is_some() {
            return Err(named(Refusal::invalid(
                "request_number and expected_end of a request are for records; batches carry their own",
            )));
        }
        let batches = request.batches.into_iter().map(partition_batch).collect::<Result<_, _>>();
        Payload::Batches(batches.map_err(named)?)
    };
    Ok(ProduceRequest { topic, payload, numbering, expected_end })
}

fn numbering(number: v1::RequestNumber) -> Result<RequestNumbering, Refusal> {
    Ok(RequestNumbering {
        id: producer_id(number.producer_id)?,
        epoch: producer_epoch(number.producer_epoch)?,
        number: request_number(number.number)?,
    })
}

fn partition_batch(batch: v1::PartitionBatch) -> Result<PartitionBatch, Refusal> {
    let Some(encoded) = batch.batch else {
        return Err(Refusal::invalid("a batch has no bytes").with("partition", batch.partition));
    };
    Ok(PartitionBatch {
        partition: PartitionIndex(batch.partition),
        bytes: encoded.data,
        expected_end: batch.expected_end.map(offset).transpose()?,
    })
}

fn produce_response(outcome: ProduceOutcome, topic: &TopicName) -> WireResponse {
    let appends = outcome.appends.into_iter().map(|append| partition_append(append, topic)).collect();
    WireResponse { appends, records: outcome.records }
}

fn partition_append(append: PartitionAppend, topic: &TopicName) -> v1::PartitionAppend {
    let partition = append.partition;
    match append.result {
        Ok(appended) => v1::PartitionAppend {
            partition: partition.0,
            base_offset: appended.offsets.map(|(first, _)| first.get()),
            last_offset: appended.offsets.map(|(_, last)| last.get()),
            append_time_ms: appended.append_time.as_millis(),
            duplicate: appended.duplicate,
            error: None,
        },
        Err(error) => v1::PartitionAppend {
            partition: partition.0,
            error: Some(partition_refusal(&error, topic, partition).into_item()),
            ..Default::default()
        },
    }
}
