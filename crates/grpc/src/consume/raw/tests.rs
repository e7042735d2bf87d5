use std::collections::BTreeMap;

use rimstone_broker::{Broker, BrokerConfig, PartitionBatch, Payload, ProduceRequest, SystemClock};
use rimstone_record::{Batch, BatchBuilder, NewRecord};
use rimstone_store::{MemoryStorage, ReadBatch};
use rimstone_types::{LogEnds, Offset, PartitionIndex, Timestamp, TopicName};

use super::*;
use crate::{consume::read_response, door::Door, open::OpenCalls};

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

fn batch(base: u64, bytes: usize) -> Batch {
    let mut builder = BatchBuilder::new(rimstone_record::Compression::None);
    let value = Some(vec![base as u8; bytes].into());
    builder.push(&NewRecord { value, ..NewRecord::default() }).unwrap();
    builder.build().with_base_offset(offset(base), 0)
}

fn chunk(sizes: &[usize]) -> ReadChunk {
    let read = |(at, bytes): (usize, &usize)| ReadBatch {
        batch: batch(at as u64, *bytes),
        append_time: Timestamp(1_700_000_000_000 * (at as i64 % 2)),
    };
    let batches = sizes.iter().enumerate().map(read).collect();
    let end = offset(sizes.len() as u64);
    ReadChunk {
        partition: PartitionIndex(7),
        from: offset(0),
        until: None,
        content: ChunkContent::Batches(batches),
        next: end,
        ends: LogEnds { start: offset(0), stable: end, durable: end, written: end },
    }
}

#[test]
fn what_goes_over_the_wire_is_what_the_generated_encoder_means() {
    let small = [10, 20, 300];
    let mixed = [100, 20_000, 5, 70_000, SLICED_BYTES_MIN, 1 << 20, 9];
    for (sizes, slices) in [(&[][..], 0), (&small, 0), (&[40_000], 0), (&mixed, 4), (&[200_000], 1)] {
        let chunk = chunk(sizes);
        let pieces = pieces(chunk.clone(), usize::MAX).unwrap();
        let wire: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        let (head, message) = wire.split_at(MESSAGE_HEAD_BYTES);
        assert_eq!(head[0], 0, "not compressed");
        assert_eq!(u32::from_be_bytes(head[1..].try_into().unwrap()) as usize, message.len(), "{sizes:?}");
        assert_eq!(v1::ReadResponse::decode(message).unwrap(), read_response(chunk.clone()), "{sizes:?}");
        // Large batches leave from where they are.
        let ChunkContent::Batches(batches) = &chunk.content else { panic!("batches") };
        let is_slice =
            |piece: &&Bytes| batches.iter().any(|read| read.batch.bytes().as_ptr() == piece.as_ptr());
        assert_eq!(pieces.iter().filter(is_slice).count(), slices, "{sizes:?}");
        assert!(pieces.iter().all(|piece| !piece.is_empty()), "an empty frame is a frame all the same");
    }
}

/// A topic with some hundred KiB, and a call that reads it.
async fn reading() -> (Broker, TopicName, Consume, v1::ReadRequest) {
    let storage = Arc::new(MemoryStorage::new());
    let broker = Broker::start(storage, BrokerConfig::default(), Arc::new(SystemClock)).await.unwrap();
    let topic: TopicName = "t".parse().unwrap();
    broker.create_topic(topic.clone(), Some(1), BTreeMap::new()).await.unwrap();
    for _ in 0..4 {
        let bytes = batch(0, 200_000).bytes().clone();
        let batches = vec![PartitionBatch { partition: PartitionIndex(0), bytes, expected_end: None }];
        let payload = Payload::Batches(batches);
        let request = ProduceRequest { topic: topic.clone(), payload, numbering: None, expected_end: None };
        let room = broker.try_reserve(request.reserved_bytes()).unwrap();
        broker.produce(request, room).unwrap().await.unwrap();
    }
    let earliest = v1::start_position::Position::Earliest(v1::Earliest {});
    let latest = v1::end_position::Position::Latest(v1::Latest {});
    let request = v1::ReadRequest {
        topic: topic.to_string(),
        format: v1::RecordFormat::Batches.into(),
        start: Some(v1::StartPosition { position: Some(earliest) }),
        end: Some(v1::EndPosition { position: Some(latest) }),
        max_message_bytes: 300_000,
        ..Default::default()
    };
    let consume = Consume::new(Door::new(broker.clone(), Duration::from_secs(5), OpenCalls::default()));
    (broker, topic, consume, request)
}

async fn frame(body: &mut Body) -> Option<Frame<Bytes>> {
    let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
    frame.await.map(|frame| frame.unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_keeps_no_deleted_segment_for_long() {
    let (broker, topic, consume, request) = reading().await;
    let breakers: [CancellationToken; 3] = Default::default();
    let mut bodies = Vec::new();
    for breaker in &breakers {
        let reading = consume.open_reader(request.clone()).await.unwrap();
        bodies.push(response(reading, usize::MAX, breaker.clone()).into_body());
    }
    let [stuck, reads, gone] = &mut bodies[..] else { panic!("three") };
    for body in [&mut *stuck, &mut *reads, &mut *gone] {
        assert!(frame(body).await.unwrap().is_data());
    }
    // However long it takes: nobody waits for that space.
    sleep(KEPT_MAX * 3).await;
    assert!(breakers.iter().all(|breaker| !breaker.is_cancelled()));
    broker.delete_records(&topic, BTreeMap::from([(PartitionIndex(0), offset(4))])).await.unwrap();
    drop(bodies.pop());
    let reads = &mut bodies[1];
    while frame(reads).await.is_some_and(|frame| frame.is_data()) {}
    sleep(LOOK_INTERVAL * 2).await;
    assert_eq!(breakers.each_ref().map(CancellationToken::is_cancelled), [true, false, false]);
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused_as_the_generated_service_does() {
    let (_broker, _topic, consume, request) = reading().await;
    let reading = consume.open_reader(request).await.unwrap();
    let mut body = response(reading, 1000, CancellationToken::new()).into_body();
    let trailers = frame(&mut body).await.unwrap().into_trailers().unwrap();
    let status = Status::from_header_map(&trailers).unwrap();
    assert_eq!(status.code(), Code::OutOfRange);
    assert!(status.message().contains("the limit is: 1000 bytes"), "{status:?}");
    assert!(frame(&mut body).await.is_none() && body.is_end_stream());
}
