use std::collections::BTreeMap;

use rimstone_record::{BatchBuilder, Compression, NewRecord, ProducerStamp};
use rimstone_types::{Numbering, ProducerEpoch, ProducerId};
use tonic::Code;

use super::*;
use crate::{
    error::reason,
    fake::{Fake, Faults, item},
};

fn calls(fake: &Fake) -> Calls {
    Calls::over(Connection::new(&fake.endpoint()).unwrap())
}

/// The fake knows only numbered batches, of two records each here.
fn request(partition: u32, number: u32) -> Request {
    let stamp = ProducerStamp {
        id: ProducerId::new(7).unwrap(),
        epoch: ProducerEpoch::new(0).unwrap(),
        base: 2 * number,
        numbering: Numbering::Dense,
    };
    let mut builder = BatchBuilder::new(Compression::None).producer(stamp);
    for half in ["a", "b"] {
        let value = Some(format!("{number}{half}").into());
        builder.push(&NewRecord { value, ..NewRecord::default() }).unwrap();
    }
    Request::of_batches("t", [(PartitionIndex(partition), builder.build())])
}

fn place(partition: u32, first: u64) -> Vec<Place> {
    let offset = |offset| Offset::new(offset).unwrap();
    vec![Place { partition: PartitionIndex(partition), first: offset(first), last: offset(first + 1) }]
}

#[tokio::test]
async fn each_request_on_a_stream_has_its_own_answer() {
    let fake = Fake::start(1, &[("t", 2)], Faults::default()).await;
    let stream = calls(&fake).open_stream().await.unwrap();
    let mut later = Vec::new();
    for number in 0..50 {
        for partition in [0, 1] {
            later.push((partition, number, stream.send(&request(partition, number)).await.unwrap()));
        }
    }
    // The last first: the order of asking does not matter.
    for (partition, number, answer) in later.into_iter().rev() {
        assert_eq!(answer.await.unwrap(), place(partition, u64::from(2 * number)));
    }
}

#[tokio::test]
async fn a_refusal_is_the_answer_to_its_request_only() {
    let fake = Fake::start(1, &[("t", 2)], Faults::default()).await;
    let refusal = item(Code::ResourceExhausted, reason::DISK_FULL, &[]);
    fake.world.lock().refuse.insert(("t".to_owned(), 1), refusal);
    let stream = calls(&fake).open_stream().await.unwrap();
    assert_eq!(stream.call(&request(1, 0)).await.unwrap_err().reason, reason::DISK_FULL);
    assert_eq!(stream.call(&request(0, 0)).await.unwrap(), place(0, 0));
}

#[tokio::test]
async fn after_a_break_everything_fails_and_nothing_more_is_taken() {
    let fake = Fake::start(1, &[("t", 1)], Faults::default()).await;
    fake.world.lock().hang = true;
    let stream = calls(&fake).open_stream().await.unwrap();
    let waiting = [stream.send(&request(0, 0)).await.unwrap(), stream.send(&request(0, 1)).await.unwrap()];
    fake.kill().await;
    for answer in waiting {
        assert!(answer.await.unwrap_err().is_unreachable());
    }
    assert!(stream.call(&request(0, 2)).await.unwrap_err().is_unreachable());
}

#[tokio::test]
async fn an_answer_out_of_turn_ends_the_stream() {
    let fake = Fake::start(1, &[("t", 1)], Faults { skip_answer: 1, ..Faults::default() }).await;
    let stream = calls(&fake).open_stream().await.unwrap();
    let skipped = stream.send(&request(0, 0)).await.unwrap();
    let stored = |fake: &Fake| fake.world.lock().topics["t"][0].end;
    while stored(&fake) < 2 {
        tokio::task::yield_now().await;
    }
    fake.world.lock().faults = Faults::default();
    let next = stream.send(&request(0, 1)).await.unwrap();
    assert_eq!(skipped.await.unwrap_err().reason, reason::PROTOCOL);
    assert_eq!(next.await.unwrap_err().reason, reason::PROTOCOL);
}

#[tokio::test]
async fn pieces_are_counted_by_their_headers_and_decoded_whole() {
    let fake = Fake::start(1, &[("t", 2)], Faults::default()).await;
    let calls = calls(&fake);
    let stream = calls.open_stream().await.unwrap();
    for number in 0..3 {
        stream.call(&request(1, number)).await.unwrap();
    }
    let offsets = |offset| BTreeMap::from([(PartitionIndex(1), Offset::new(offset).unwrap())]);
    let from = ReadFrom { topic: "t".to_owned(), from: offsets(2), until: offsets(6), message_bytes: 0 };
    let mut read = calls.read(from).await.unwrap();
    let (mut count, mut bytes, mut next) = (0, 0, Offset::ZERO);
    let mut values = Vec::new();
    while let Some(piece) = read.next().await.unwrap() {
        assert_eq!(piece.partition, PartitionIndex(1));
        count += piece.count().unwrap();
        bytes += piece.bytes();
        next = piece.next;
        piece.decode(|record| values.push(record.value.unwrap())).unwrap();
    }
    assert_eq!((count, next.get()), (4, 6));
    assert_eq!(values, ["1a", "1b", "2a", "2b"]);
    assert!(bytes > 2 * 61);
}
