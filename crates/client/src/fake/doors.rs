//! The gRPC services of the fake server: only what the client calls.

use std::{pin::Pin, sync::atomic::Ordering, time::Duration};

use futures::Stream;
use rimstone_proto::{
    Message as _,
    v1::{
        self, admin_service_server::AdminService, consume_service_server::ConsumeService,
        produce_service_server::ProduceService, produce_stream_request::Kind as RequestKind,
        produce_stream_response::Kind as ResponseKind,
    },
};
use rimstone_record::Limits;
use rimstone_types::ProducerId;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Fake, Partition, WRITTEN, item, sessions::Session, status};
use crate::error::reason;

/// A server that hangs does so for longer than any test.
const HANG: Duration = Duration::from_secs(3600);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ProduceService for Fake {
    type ProduceStreamStream = Answers<v1::ProduceStreamResponse>;

    async fn init_producer(
        &self,
        request: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        let mut world = self.world.lock();
        world.inits += 1;
        world.next_id += 1;
        let fresh = world.next_id;
        let name = request.into_inner().name;
        let (producer_id, producer_epoch) = if name.is_empty() {
            (fresh, 0)
        } else {
            let entry = world.names.entry(name).or_insert((fresh | ProducerId::NAMED_BIT, 0));
            entry.1 += 1;
            *entry
        };
        // The fence is known to every partition before the call answers.
        let id = ProducerId::new(producer_id).expect("ids count from 100");
        for partition in world.topics.values_mut().flatten() {
            partition.fence(id, producer_epoch as u16);
        }
        let answer = v1::InitProducerResponse { producer_id, producer_epoch, ..Default::default() };
        Ok(Response::new(answer))
    }

    async fn produce(
        &self,
        _request: Request<v1::ProduceRequest>,
    ) -> Result<Response<v1::ProduceResponse>, Status> {
        Err(Status::unimplemented("not faked"))
    }

    async fn produce_stream(
        &self,
        request: Request<Streaming<v1::ProduceStreamRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        self.streams.fetch_add(1, Ordering::SeqCst);
        let mut requests = request.into_inner();
        let Some(RequestKind::Open(open)) = requests.message().await?.and_then(|first| first.kind) else {
            return Err(Status::invalid_argument("open first"));
        };
        let partitions = match open.producer_id {
            Some(id) => self.stored_of(id, &open.topics)?,
            None => Vec::new(),
        };
        let (answers, stream) = mpsc::channel(64);
        let fake = self.clone();
        tokio::spawn(async move {
            while fake.world.lock().hold_opens {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let opened =
                v1::ProduceStreamOpened { partitions, highest_request_number: None, window_bytes: 1 << 20 };
            let opened = v1::ProduceStreamResponse { kind: Some(ResponseKind::Opened(opened)) };
            let _ = answers.send(Ok(opened)).await;
            // After an answer that was skipped the stream goes on or ends, but does not fall silent: no
            // server does that, and nobody could tell.
            let mut silence = HANG;
            while let Ok(Some(Ok(request))) = tokio::time::timeout(silence, requests.next()).await {
                let limit = fake.world.lock().message_max;
                if limit > 0 && request.encoded_len() > limit {
                    let limit = limit.to_string();
                    let refusal =
                        status(Code::InvalidArgument, reason::INVALID_REQUEST, &[("limit", limit.as_str())]);
                    drop(answers.send(Err(refusal)).await);
                    return;
                }
                let Some(RequestKind::Append(append)) = request.kind else { return };
                let answer = match fake.append(append) {
                    Ok(Some(ack)) => Ok(v1::ProduceStreamResponse { kind: Some(ResponseKind::Ack(ack)) }),
                    Ok(None) => {
                        if !fake.world.lock().hang {
                            silence = Duration::from_millis(50);
                        }
                        continue;
                    }
                    Err(status) => Err(status),
                };
                let ends = answer.is_err();
                if answers.send(answer).await.is_err() || ends {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

#[tonic::async_trait]
impl ConsumeService for Fake {
    type ReadStream = Answers<v1::ReadResponse>;
    type ConsumeStream = Answers<v1::ConsumeResponse>;

    async fn consume(
        &self,
        request: Request<Streaming<v1::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        self.streams.fetch_add(1, Ordering::SeqCst);
        let (answers, stream) = mpsc::channel(4);
        Session::begin(self.clone(), request.into_inner(), answers).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<v1::FetchResponse>, Status> {
        let request = request.into_inner();
        let world = self.world.lock();
        let topic = &world.topics[&request.topic];
        let answer = request.partitions.iter().map(|asked| {
            let partition = &topic[asked.partition as usize];
            let mut records = message(asked.partition, partition, asked.offset, 2);
            if asked.offset > partition.end {
                records.error = Some(item(Code::OutOfRange, reason::OFFSET_OUT_OF_RANGE, &[]));
            }
            records
        });
        Ok(Response::new(v1::FetchResponse { partitions: answer.collect() }))
    }

    /// Like the real one: whole batches, also those that begin before the offset; one batch a message.
    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let offsets = |position: v1::PartitionOffsets| position.offsets;
        let Some(v1::start_position::Position::Offsets(start)) =
            request.start.and_then(|start| start.position)
        else {
            return Err(Status::invalid_argument("our reader gives offsets"));
        };
        let ends = match request.end.and_then(|end| end.position) {
            Some(v1::end_position::Position::Offsets(ends)) => Some(offsets(ends)),
            None => None,
            Some(_) => return Err(Status::invalid_argument("our reader gives offsets")),
        };
        let mut next: Vec<_> = offsets(start).into_iter().collect();
        next.sort_unstable();
        let (messages, stream) = mpsc::channel(2);
        let fake = self.clone();
        tokio::spawn(async move {
            loop {
                let mut open = false;
                for (partition, next) in &mut next {
                    let end = ends.as_ref().map_or(u64::MAX, |ends| ends[&*partition]);
                    if *next >= end {
                        continue;
                    }
                    open = true;
                    let answer = {
                        let mut world = fake.world.lock();
                        let cut = world.cut_reads;
                        if world.chance(cut) {
                            Err(Status::unavailable("cut while reading"))
                        } else {
                            let partition_log = &world.topics[&request.topic][*partition as usize];
                            let mut records = message(*partition, partition_log, *next, 1);
                            if *next < partition_log.start {
                                let start = partition_log.start.to_string();
                                let metadata = [("log_start_offset", start.as_str())];
                                records.error =
                                    Some(item(Code::OutOfRange, reason::OFFSET_OUT_OF_RANGE, &metadata));
                            } else if records.batches.is_empty() {
                                continue;
                            }
                            *next = records.next_offset;
                            Ok(v1::ReadResponse { records: Some(records) })
                        }
                    };
                    let ends = answer.is_err();
                    if messages.send(answer).await.is_err() || ends {
                        return;
                    }
                }
                if !open {
                    return;
                }
                tokio::task::yield_now().await;
                if messages.is_closed() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

pub(super) fn message(index: u32, partition: &Partition, from: u64, batches: usize) -> v1::PartitionRecords {
    let here = partition.batches.iter().filter(|batch| batch.last_offset().get() >= from).take(batches);
    let here: Vec<_> = here.collect();
    v1::PartitionRecords {
        partition: index,
        next_offset: here.last().map_or(from, |batch| batch.next_offset().get()),
        batches: here
            .iter()
            .map(|batch| v1::EncodedBatch { data: batch.bytes().clone(), append_time_ms: 1 })
            .collect(),
        ends: Some(v1::LogEnds {
            log_start_offset: partition.start,
            last_stable_offset: partition.end,
            high_watermark: partition.end,
            log_end_offset: partition.end,
        }),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl AdminService for Fake {
    async fn describe_topic(
        &self,
        request: Request<v1::DescribeTopicRequest>,
    ) -> Result<Response<v1::DescribeTopicResponse>, Status> {
        let name = request.into_inner().topic;
        let world = self.world.lock();
        let Some(topic) = world.topics.get(&name) else {
            return Err(status(Code::NotFound, reason::TOPIC_NOT_FOUND, &[("topic", &name)]));
        };
        let info = v1::TopicInfo { name, partitions: topic.len() as u32, ..Default::default() };
        let setting = v1::TopicSetting {
            name: "max.message.bytes".to_owned(),
            value: "1048576".to_owned(),
            ..Default::default()
        };
        let answer =
            v1::DescribeTopicResponse { topic: Some(info), partitions: Vec::new(), settings: vec![setting] };
        Ok(Response::new(answer))
    }

    async fn list_offsets(
        &self,
        request: Request<v1::ListOffsetsRequest>,
    ) -> Result<Response<v1::ListOffsetsResponse>, Status> {
        use v1::list_offsets_request::At;
        let request = request.into_inner();
        let world = self.world.lock();
        let Some(topic) = world.topics.get(&request.topic) else {
            return Err(status(Code::NotFound, reason::TOPIC_NOT_FOUND, &[("topic", &request.topic)]));
        };
        let asked = |index: &u32| request.partitions.is_empty() || request.partitions.contains(index);
        let find = |partition: &Partition| match request.at {
            Some(At::Earliest(_)) => Some(partition.start),
            Some(At::TimeMs(time)) => {
                let batches = partition.batches.iter();
                let mut records = batches.flat_map(|batch| batch.records(&Limits::default()).expect(WRITTEN));
                records
                    .find(|record| record.as_ref().expect(WRITTEN).timestamp.as_millis() >= time)
                    .map(|record| record.expect(WRITTEN).offset.get())
            }
            _ => Some(partition.end),
        };
        let offsets = (0u32..).zip(topic).filter(|(index, _)| asked(index));
        let offsets = offsets.map(|(partition, log)| v1::PartitionOffset {
            partition,
            offset: find(log),
            ..Default::default()
        });
        Ok(Response::new(v1::ListOffsetsResponse { offsets: offsets.collect() }))
    }

    async fn create_topic(
        &self,
        _: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        Err(Status::unimplemented("not faked"))
    }

    async fn list_topics(
        &self,
        _: Request<v1::ListTopicsRequest>,
    ) -> Result<Response<v1::ListTopicsResponse>, Status> {
        Err(Status::unimplemented("not faked"))
    }

    async fn alter_topic(
        &self,
        _: Request<v1::AlterTopicRequest>,
    ) -> Result<Response<v1::AlterTopicResponse>, Status> {
        Err(Status::unimplemented("not faked"))
    }

    async fn delete_topic(
        &self,
        _: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        Err(Status::unimplemented("not faked"))
    }

    async fn delete_records(
        &self,
        _: Request<v1::DeleteRecordsRequest>,
    ) -> Result<Response<v1::DeleteRecordsResponse>, Status> {
        Err(Status::unimplemented("not faked"))
    }

    async fn list_producers(
        &self,
        _: Request<v1::ListProducersRequest>,
    ) -> Result<Response<v1::ListProducersResponse>, Status> {
        Err(Status::unimplemented("not faked"))
    }

    async fn delete_producer(
        &self,
        _: Request<v1::DeleteProducerRequest>,
    ) -> Result<Response<v1::DeleteProducerResponse>, Status> {
        Err(Status::unimplemented("not faked"))
    }

    async fn find_damage(
        &self,
        _: Request<v1::FindDamageRequest>,
    ) -> Result<Response<v1::FindDamageResponse>, Status> {
        Err(Status::unimplemented("not faked"))
    }

    async fn accept_loss(
        &self,
        _: Request<v1::AcceptLossRequest>,
    ) -> Result<Response<v1::AcceptLossResponse>, Status> {
        Err(Status::unimplemented("not faked"))
    }

    async fn describe_server(
        &self,
        _: Request<v1::DescribeServerRequest>,
    ) -> Result<Response<v1::DescribeServerResponse>, Status> {
        Err(Status::unimplemented("not faked"))
    }
}
