//! `ConsumeService`: the long poll and the stream of records. The stream of a group member is in `session`; streams
//! of stored batches go past the generated service, in `raw`.

mod raw;
mod session;

use std::{collections::BTreeMap, pin::Pin, time::Duration};

use futures::stream::{self, Stream};
use rimstone_broker::{
    ChunkContent, FetchAnswer, FetchPartition, FetchRequest, Fetched, FetchedPartition, ReadChunk, ReadEnd,
    ReadFilter, ReadFormat, ReadRequest, ReadStart, Reader, Reason, decode,
};
use rimstone_proto::v1;
use rimstone_record::{Compression, Limits};
use rimstone_types::{ByteCount, Offset, PartitionIndex, Timestamp, TopicName};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use self::raw::RawReads;
use crate::{
    connection::Peer,
    convert::{encoded_batch, known, log_ends, offset, stored_record, topic_name, visibility},
    door::Door,
    receive::Received,
    refusal::Refusal,
    status::{partition_refusal, topic_refusal},
};

/// Decoding more than this, or anything compressed, leaves the threads that answer requests: it takes about
/// as long as a read from a disk.
const DECODE_IN_PLACE_BYTES_MAX: u64 = 64 << 10;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Consume {
    door: Door,
}

impl Consume {
    pub(crate) fn new(door: Door) -> Self {
        Self { door }
    }

    async fn fetch_once(&self, request: v1::FetchRequest) -> Result<v1::FetchResponse, Refusal> {
        let topic = topic_name(&request.topic)?;
        let format: v1::RecordFormat = known("format", request.format)?;
        let isolation: v1::Isolation = known("isolation", request.isolation)?;
        let partitions = request
            .partitions
            .iter()
            .map(|wanted| {
                Ok(FetchPartition {
                    partition: PartitionIndex(wanted.partition),
                    offset: offset(wanted.offset)?,
                    max_bytes: some_bytes(wanted.max_bytes),
                })
            })
            .collect::<Result<_, Refusal>>()?;
        let fetched = self
            .door
            .broker
            .fetch(FetchRequest {
                topic: topic.clone(),
                partitions,
                min_bytes: ByteCount(request.min_bytes.into()),
                max_bytes: some_bytes(request.max_bytes),
                max_wait: Duration::from_millis(request.max_wait_ms.into()),
                visibility: visibility(isolation),
            })
            .await
            .map_err(|error| topic_refusal(&error, &topic))?;
        match format {
            v1::RecordFormat::Batches => Ok(whole_batches(fetched, &topic)),
            v1::RecordFormat::Unspecified | v1::RecordFormat::Records => {
                let limits = self.door.broker.limits();
                let bytes_max = some_bytes(request.max_bytes).unwrap_or(limits.response_default);
                let decoder = Decoder {
                    topic,
                    bytes_max: request.partitions.iter().map(|wanted| some_bytes(wanted.max_bytes)).collect(),
                    budget: ByteCount(bytes_max.get().min(limits.response.get())),
                    limits: self.door.broker.record_limits(),
                };
                decoder.run(fetched).await
            }
        }
    }

    async fn open_reader(&self, request: v1::ReadRequest) -> Result<Reading, Refusal> {
        let topic = topic_name(&request.topic)?;
        let request = read_request(topic.clone(), request)?;
        let reader = self.door.broker.read(request).await.map_err(|error| topic_refusal(&error, &topic))?;
        Ok(Reading { topic, reader })
    }
}

fn some_bytes(bytes: u32) -> Option<ByteCount> {
    (bytes > 0).then_some(ByteCount(bytes.into()))
}

fn whole_batches(fetched: FetchAnswer, topic: &TopicName) -> v1::FetchResponse {
    let partitions = fetched
        .partitions
        .into_iter()
        .map(|answer| match answer.result {
            Ok(fetched) => v1::PartitionRecords {
                partition: answer.partition.0,
                batches: fetched.batches.into_iter().map(encoded_batch).collect(),
                next_offset: fetched.next.get(),
                ends: Some(log_ends(fetched.ends)),
                ..Default::default()
            },
            Err(error) => {
                failed(answer.partition, answer.from, partition_refusal(&error, topic, answer.partition))
            }
        })
        .collect();
    v1::FetchResponse { partitions }
}

/// An item for a partition that could not be read: nothing was read, so go on where you were.
fn failed(partition: PartitionIndex, from: Offset, refusal: Refusal) -> v1::PartitionRecords {
    v1::PartitionRecords {
        partition: partition.0,
        next_offset: from.get(),
        error: Some(refusal.into_item()),
        ..Default::default()
    }
}

/// Makes records of what was fetched, within one budget for the whole answer: compressed batches become more
/// than the broker counted.
struct Decoder {
    topic: TopicName,
    /// What each partition may take of the budget, in the order in which they were asked for.
    bytes_max: Vec<Option<ByteCount>>,
    budget: ByteCount,
    limits: Limits,
}

impl Decoder {
    async fn run(self, fetched: FetchAnswer) -> Result<v1::FetchResponse, Refusal> {
        if !is_slow(&fetched) {
            return Ok(self.decode(fetched));
        }
        tokio::task::spawn_blocking(move || self.decode(fetched)).await.map_err(|error| {
            tracing::error!(%error, "decoding an answer failed");
            Refusal::new(Reason::Internal, "decoding the answer failed; the server's log says more")
        })
    }

    fn decode(mut self, fetched: FetchAnswer) -> v1::FetchResponse {
        let bytes_max = std::mem::take(&mut self.bytes_max);
        let partitions = fetched
            .partitions
            .into_iter()
            .zip(bytes_max)
            .map(|(answer, bytes_max)| self.decode_partition(answer, bytes_max))
            .collect();
        v1::FetchResponse { partitions }
    }

    fn decode_partition(
        &mut self,
        answer: FetchedPartition,
        bytes_max: Option<ByteCount>,
    ) -> v1::PartitionRecords {
        let FetchedPartition { partition, from, result } = answer;
        let fetched: Fetched = match result {
            Ok(fetched) => fetched,
            Err(error) => return failed(partition, from, partition_refusal(&error, &self.topic, partition)),
        };
        let mut item = v1::PartitionRecords {
            partition: partition.0,
            next_offset: from.get(),
            ends: Some(log_ends(fetched.ends)),
            ..Default::default()
        };
        if self.budget == ByteCount(0) && !fetched.batches.is_empty() {
            return item;
        }
        let bytes_max = bytes_max.map_or(self.budget, |bytes| bytes.min(self.budget));
        match decode(&fetched.batches, from, None, bytes_max, &self.limits) {
            Ok(decoded) => {
                item.next_offset = decoded.cut_at.unwrap_or(fetched.next).get();
                item.records = decoded.records.into_iter().map(stored_record).collect();
                let sent = item.records.iter().map(prost::Message::encoded_len).sum::<usize>() as u64;
                self.budget = ByteCount(self.budget.get().saturating_sub(sent));
                item
            }
            Err(error) => failed(partition, from, partition_refusal(&error, &self.topic, partition)),
        }
    }
}

fn is_slow(fetched: &FetchAnswer) -> bool {
    let batches = || {
        fetched.partitions.iter().filter_map(|part| part.result.as_ref().ok()).flat_map(|part| &part.batches)
    };
    batches().any(|read| read.batch.header().compression() != Compression::None)
        || batches().map(|read| read.batch.bytes().len() as u64).sum::<u64>() > DECODE_IN_PLACE_BYTES_MAX
}

fn read_request(topic: TopicName, request: v1::ReadRequest) -> Result<ReadRequest, Refusal> {
    let format: v1::RecordFormat = known("format", request.format)?;
    let isolation: v1::Isolation = known("isolation", request.isolation)?;
    Ok(ReadRequest {
        topic,
        partitions: request.partitions.into_iter().map(PartitionIndex).collect(),
        start: read_start(request.start)?,
        end: read_end(request.end)?,
        max_records: (request.max_records > 0).then_some(request.max_records),
        filter: request.filter.map(read_filter).unwrap_or_default(),
        visibility: visibility(isolation),
        format: match format {
            v1::RecordFormat::Batches => ReadFormat::Batches,
            v1::RecordFormat::Unspecified | v1::RecordFormat::Records => ReadFormat::Records,
        },
        chunk_bytes: some_bytes(request.max_message_bytes),
    })
}

fn read_start(start: Option<v1::StartPosition>) -> Result<ReadStart, Refusal> {
    use v1::start_position::Position;
    Ok(match start.and_then(|start| start.position) {
        Some(Position::Earliest(_)) => ReadStart::Earliest,
        Some(Position::Latest(_)) => ReadStart::Latest,
        Some(Position::Offset(at)) => ReadStart::Offset(offset(at)?),
        Some(Position::TimeMs(time)) => ReadStart::Time(Timestamp(time)),
        Some(Position::Offsets(offsets)) => ReadStart::Offsets(offset_map(offsets)?),
        None => {
            return Err(Refusal::invalid(
                "say where to start: earliest, latest, offset, time_ms or offsets; there is no default",
            ));
        }
    })
}

fn read_end(end: Option<v1::EndPosition>) -> Result<ReadEnd, Refusal> {
    use v1::end_position::Position;
    Ok(match end.and_then(|end| end.position) {
        Some(Position::Latest(_)) => ReadEnd::Latest,
        Some(Position::Offset(at)) => ReadEnd::Offset(offset(at)?),
        Some(Position::TimeMs(time)) => ReadEnd::Time(Timestamp(time)),
        Some(Position::Offsets(offsets)) => ReadEnd::Offsets(offset_map(offsets)?),
        None => ReadEnd::Never,
    })
}

fn offset_map(offsets: v1::PartitionOffsets) -> Result<BTreeMap<PartitionIndex, Offset>, Refusal> {
    offsets.offsets.into_iter().map(|(partition, at)| Ok((PartitionIndex(partition), offset(at)?))).collect()
}

fn read_filter(filter: v1::RecordFilter) -> ReadFilter {
    ReadFilter {
        key: filter.key,
        key_prefix: filter.key_prefix,
        header: filter.header.map(|header| (header.key, header.value)),
    }
}

fn read_response(chunk: ReadChunk) -> v1::ReadResponse {
    let (records, batches) = match chunk.content {
        ChunkContent::Records(records) => (records.into_iter().map(stored_record).collect(), Vec::new()),
        ChunkContent::Batches(batches) => (Vec::new(), batches.into_iter().map(encoded_batch).collect()),
    };
    v1::ReadResponse {
        records: Some(v1::PartitionRecords {
            partition: chunk.partition.0,
            records,
            batches,
            next_offset: chunk.next.get(),
            ends: Some(log_ends(chunk.ends)),
            error: None,
        }),
    }
}

/// An open stream of records. The broker ends it at shutdown.
struct Reading {
    topic: TopicName,
    reader: Reader,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<v1::ReadResponse, Status>> {
        let chunk = self.reader.next().await?;
        Some(chunk.map(read_response).map_err(|error| topic_refusal(&error, &self.topic).into_status()))
    }
}

#[tonic::async_trait]
impl v1::consume_service_server::ConsumeService for Consume {
    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<v1::FetchResponse>, Status> {
        self.door.answer(self.fetch_once(request.into_inner())).await
    }

    type ReadStream = Pin<Box<dyn Stream<Item = Result<v1::ReadResponse, Status>> + Send>>;

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let reading = self.door.answer(self.open_reader(request.into_inner())).await?.into_inner();
        let responses = stream::unfold(reading, |mut reading| async move {
            reading.next().await.map(|response| (response, reading))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    type ConsumeStream = ReceiverStream<Result<v1::ConsumeResponse, Status>>;

    async fn consume(
        &self,
        request: Request<Streaming<v1::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let peer = request.extensions().get::<Peer>();
        let host = peer.map(|peer| peer.address.ip().to_string()).unwrap_or_default();
        let received = request.extensions().get::<Received>().cloned().unwrap_or_default();
        let answers = session::open(self.door.clone(), host, received, request.into_inner());
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}
