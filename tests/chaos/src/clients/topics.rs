//! Makes topics, writes a little to them, deletes some; and now and then deletes records of a topic that may lose them.

use rand::RngExt as _;
use rimstone_proto::v1;

use super::{Client, Doors, Phase, answer::Failure, unix_ms, within};
use crate::{encode::batch, event::What};

/// Records in a batch.
const BATCH: u32 = 4;
/// Topics at one time.
const TOPICS: usize = 6;
/// Where rounds bound what is begun each of these comes in turn: making, writing, deleting, trimming.
const IN_TURN: [u32; 4] = [0, 9, 3, 5];

/// Works until the run drains. `trimmed` is the topic whose records it may delete.
pub async fn run(client: Client, trimmed: Option<String>) {
    let mut client = client;
    let mut doors = Doors::to(&client.load.endpoint);
    let mut alive: Vec<String> = Vec::new();
    let mut number = 0;
    let mut turns = (0..IN_TURN.len()).cycle();
    while client.load.phase() == Phase::Work {
        if !client.take_turn() {
            client.rests();
            client.pause().await;
            continue;
        }
        let is_bounded = client.is_bounded();
        let dice = match turns.next() {
            Some(turn) if is_bounded => IN_TURN[turn],
            _ => client.random.random_range(0..10),
        };
        let few = if is_bounded { 1 } else { 2 };
        if alive.len() < TOPICS && dice < 3 {
            number += 1;
            let topic = format!("tmp-{number}");
            if create(&client, &mut doors, &topic).await {
                alive.push(topic);
            }
        } else if alive.len() > few && dice < 5 {
            let topic = alive.swap_remove(client.random.random_range(0..alive.len()));
            let op = client.ask(What::Delete { topic: topic.clone() });
            let outcome = within(doors.admin.delete_topic(v1::DeleteTopicRequest { topic })).await;
            tell(&client, op, outcome.map(drop));
        } else if let Some(topic) = trimmed.as_ref().filter(|_| dice == 5) {
            trim(&mut client, &mut doors, topic).await;
        } else if !alive.is_empty() {
            let topic = alive[client.random.random_range(0..alive.len())].clone();
            append(&mut client, &mut doors, topic).await;
        }
        client.pause().await;
    }
    client.note(What::Settled);
}

fn tell(client: &Client, op: u64, outcome: Result<(), tonic::Status>) -> bool {
    match outcome {
        Ok(()) => client.answer(op, What::Done),
        Err(status) => {
            let failure = Failure::of_status(&status);
            client.answer(op, failure.told());
            return false;
        }
    }
    true
}

async fn create(client: &Client, doors: &mut Doors, topic: &str) -> bool {
    let op = client.ask(What::Create { topic: topic.to_owned() });
    // A clock that jumps ahead makes records old, and retention may take them.
    let settings = [("retention.ms".to_owned(), "-1".to_owned())].into();
    let request = v1::CreateTopicRequest { topic: topic.to_owned(), partitions: 1, settings };
    let outcome = within(doors.admin.create_topic(request)).await;
    tell(client, op, outcome.map(drop))
}

async fn trim(client: &mut Client, doors: &mut Doors, topic: &str) {
    let request = v1::ListOffsetsRequest {
        topic: topic.to_owned(),
        at: Some(v1::list_offsets_request::At::Latest(true)),
        ..Default::default()
    };
    let Ok(ends) = within(doors.admin.list_offsets(request)).await else { return };
    let Some(end) = ends.into_inner().offsets.into_iter().find(|end| end.partition == 0) else { return };
    let before = client.random.random_range(0..=end.offset.unwrap_or(0));
    let op = client.ask(What::Trim { topic: topic.to_owned(), partition: 0, before });
    let before_offsets = [(0, before)].into_iter().collect();
    let request = v1::DeleteRecordsRequest { topic: topic.to_owned(), before_offsets };
    let outcome = within(doors.admin.delete_records(request)).await;
    tell(client, op, outcome.map(drop));
}

/// Without a number: at least once, and here only once, since nothing is sent again.
async fn append(client: &mut Client, doors: &mut Doors, topic: String) {
    let count = client.random.random_range(1..=BATCH);
    let first = client.load.take_numbers(count);
    let what = What::Send { topic: topic.clone(), partition: Some(0), stamp: None, first, count };
    let op = client.ask(what);
    let data = batch(first, count, false, None, unix_ms());
    let batch = v1::EncodedBatch { data, append_time_ms: 0 };
    let batches = vec![v1::PartitionBatch { partition: 0, batch: Some(batch), expected_end: None }];
    let request = v1::ProduceRequest { topic, batches, ..Default::default() };
    let answer = within(doors.produce.produce(request)).await;
    let append = answer.map(|answer| answer.into_inner().appends.into_iter().next());
    match append {
        Ok(Some(v1::PartitionAppend { error: Some(error), .. })) => {
            client.answer(op, Failure::of_item(&error).told());
        }
        Ok(Some(append)) => {
            let offset = |index| append.base_offset.map(|base| base + u64::from(index));
            let places = (0..count).map(|index| (0, offset(index))).collect();
            client.answer(op, What::Sent { places, duplicate: append.duplicate });
            client.load.count_acknowledged(count as usize);
        }
        Ok(None) => client.answer(op, What::Unknown { why: "an answer without an append".to_owned() }),
        Err(status) => client.answer(op, Failure::of_status(&status).told()),
    }
}
