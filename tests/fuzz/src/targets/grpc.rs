//! Bodies of calls as they arrive, in pieces: counted before they are decoded, then decoded.

use prost::Message as _;
use rimstone_proto::v1;

use crate::{Random, repair, targets::batch};

/// Elements of a request, as the server's default has it.
const ITEMS_MAX: u64 = 100_000;

fn text(random: &mut Random) -> String {
    let length = *random.one_of(&[0, 1, 5, 300]);
    "n".repeat(length)
}

fn record(random: &mut Random) -> v1::Record {
    let mut record = v1::Record { value: Some(batch::seed(random).into()), ..v1::Record::default() };
    record.headers = (0..random.below(4))
        .map(|_| v1::Header { key: text(random), value: Some(vec![1; random.below(20)].into()) })
        .collect();
    record
}

/// The path of a call and a valid message for it.
fn seed(random: &mut Random) -> (&'static str, Vec<u8>) {
    let many = |random: &mut Random| 0..random.below(20);
    match random.below(4) {
        0 => {
            let mut request = v1::ProduceRequest { topic: text(random), ..v1::ProduceRequest::default() };
            request.records = many(random).map(|_| record(random)).collect();
            request.batches = (0..random.below(3))
                .map(|partition| v1::PartitionBatch {
                    partition: partition as u32,
                    batch: Some(v1::EncodedBatch {
                        data: batch::seed(random).into(),
                        ..v1::EncodedBatch::default()
                    }),
                    ..v1::PartitionBatch::default()
                })
                .collect();
            ("/rimstone.v1.ProduceService/Produce", request.encode_to_vec())
        }
        1 => {
            let topics = many(random).map(|_| text(random)).collect();
            let request = v1::InitProducerRequest { topics, ..v1::InitProducerRequest::default() };
            ("/rimstone.v1.ProduceService/InitProducer", request.encode_to_vec())
        }
        2 => {
            let partitions = many(random).map(|_| v1::FetchPartition::default()).collect();
            let request = v1::FetchRequest { partitions, ..v1::FetchRequest::default() };
            ("/rimstone.v1.ConsumeService/Fetch", request.encode_to_vec())
        }
        _ => {
            let request =
                v1::CommitOffsetsRequest { group: text(random), ..v1::CommitOffsetsRequest::default() };
            ("/rimstone.v1.GroupService/CommitOffsets", request.encode_to_vec())
        }
    }
}

/// One input: whatever the count lets through, the decoder takes or refuses.
pub fn run(random: &mut Random) -> bool {
    let (path, mut message) = seed(random);
    if !random.once_in(8) {
        random.mutate(&mut message);
    }
    let mut body = vec![0];
    let length = if random.once_in(8) { random.number() as u32 } else { message.len() as u32 };
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(&message);
    let whole = rimstone_grpc::look_at_request(path, &[&body], ITEMS_MAX);
    let pieces = random.cut(&body);
    let in_pieces = rimstone_grpc::look_at_request(path, &pieces, ITEMS_MAX);
    assert_eq!(whole, in_pieces, "it depends on where the bytes are cut");
    let Ok(counted) = whole else { return false };
    assert!(counted <= ITEMS_MAX);
    if length as usize != message.len() {
        return false;
    }
    match path.rsplit('/').next() {
        Some("Produce") => {
            let Ok(request) = v1::ProduceRequest::decode(&message[..]) else { return false };
            let there = request.records.len()
                + request.batches.len()
                + request.records.iter().map(|record| record.headers.len()).sum::<usize>();
            assert_eq!(counted, there as u64, "what was counted is what is decoded");
            for batch in request.batches {
                let mut bytes = batch.batch.map_or(Vec::new(), |batch| batch.data.to_vec());
                repair::batch(random, &mut bytes);
                let _ = rimstone_record::Batch::verify(bytes.into(), &rimstone_record::Limits::default());
            }
            true
        }
        Some("InitProducer") => v1::InitProducerRequest::decode(&message[..])
            .map(|request| assert_eq!(counted, request.topics.len() as u64))
            .is_ok(),
        Some("Fetch") => v1::FetchRequest::decode(&message[..]).is_ok(),
        _ => v1::CommitOffsetsRequest::decode(&message[..]).is_ok(),
    }
}
