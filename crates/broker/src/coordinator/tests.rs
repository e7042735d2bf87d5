use std::collections::BTreeMap;

use futures::future::BoxFuture;
use rimstone_store::{AppendError, Backpressure};
use rimstone_types::{ByteCount, Offset, PartitionId, PartitionIndex, TopicId};

use super::*;
use crate::{error::Failure, testing::*, *};

fn group() -> GroupName {
    "g".parse().expect("a valid name")
}

fn shard() -> PartitionId {
    PartitionId { topic: TopicId::CONSUMER_OFFSETS, partition: PartitionIndex(shard_of(&group())) }
}

const PARTITIONS: u32 = 3;

/// Offsets committed by partition.
async fn offsets(broker: &Broker) -> BTreeMap<u32, u64> {
    let lines = loop {
        match soon("offsets", broker.fetch_offsets(&group(), Vec::new())).await {
            Err(error) if error.reason() == Reason::CoordinatorLoading => tokio::task::yield_now().await,
            answer => break answer.expect("it is answered"),
        }
    };
    lines.into_iter().map(|line| (line.partition.0, line.value.expect("all have one").offset.get())).collect()
}

type Answer = Result<Vec<OffsetCommitted>, GroupRequestError>;

/// A commit under way.
struct Open {
    partition: u32,
    offset: u64,
    answer: BoxFuture<'static, Answer>,
}

fn open(broker: &Broker, partition: u32, offset: u64) -> Open {
    let room = broker.try_reserve(ByteCount(1)).expect("there is room");
    let offset_to_commit = OffsetToCommit {
        topic: name("t"),
        partition: PartitionIndex(partition),
        offset: Some(Offset::new(offset).expect("in bounds")),
        metadata: String::new(),
    };
    let request = CommitRequest { group: group(), member: None, offsets: vec![offset_to_commit] };
    let broker = broker.clone();
    Open { partition, offset, answer: Box::pin(async move { broker.commit_offsets(request, room).await }) }
}

/// Numbers that look random, from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

/// What became of the commits, and what the log is to say.
#[derive(Default)]
struct Fates {
    /// The last acknowledged, by partition.
    kept: BTreeMap<u32, u64>,
    undone: u32,
    behind: u32,
}

impl Fates {
    fn hear(&mut self, open: &Open, answer: Answer) {
        match answer {
            Ok(results) => {
                results[0].result.as_ref().expect("it is in the log");
                self.kept.insert(open.partition, open.offset);
            }
            Err(error) => match error.reason() {
                Reason::AppendUndone | Reason::AppendUnknown => self.undone += 1,
                Reason::CoordinatorLoading => self.behind += 1,
                other => panic!("{other:?}: {error}"),
            },
        }
    }
}

/// Whatever fails, and whenever: what was acknowledged is there, what was refused is not, and the state is the
/// one that a start finds in the log.
#[tokio::test]
async fn random_failures_lose_nothing_and_invent_nothing() {
    let (mut undone_in_all, mut behind_in_all) = (0, 0);
    for seed in 1..=40_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let fixture = Fixture::new().await;
        fixture.topic("t", PARTITIONS).await;
        for partition in 0..PARTITIONS {
            fixture.put("t", partition, &vec!["x"; 200]).await;
        }
        let mut fates = Fates::default();
        let mut under_way: Vec<Open> =
            (0..PARTITIONS).map(|partition| open(&fixture.broker, partition, 0)).collect();
        for open in &mut under_way {
            fates.kept.insert(open.partition, 0);
            soon("the first commits", &mut open.answer).await.expect("nothing fails yet");
        }
        under_way.clear();
        fixture.store.script(shard(), |script| script.hold = true);
        for step in 1..=150 {
            match dice.roll(10) {
                0..5 => under_way.push(open(&fixture.broker, dice.roll(PARTITIONS.into()) as u32, step)),
                5..8 if fixture.store.held(shard()) > 0 => fixture.store.release(shard(), None).await,
                8 if fixture.store.held(shard()) > 0 && dice.roll(2) == 0 => {
                    let error = match dice.roll(2) {
                        0 => undone(),
                        _ => AppendError::Unknown { reason: "scripted".to_owned() },
                    };
                    fixture.store.release(shard(), Some(error)).await;
                }
                _ => tokio::task::yield_now().await,
            }
            let mut still = Vec::new();
            for mut open in under_way {
                match futures::poll!(&mut open.answer) {
                    std::task::Poll::Ready(answer) => fates.hear(&open, answer),
                    std::task::Poll::Pending => still.push(open),
                }
            }
            under_way = still;
        }
        fixture.store.script(shard(), |script| script.hold = false);
        while fixture.store.held(shard()) > 0 {
            fixture.store.release(shard(), None).await;
        }
        for mut open in under_way {
            let answer = soon("the rest", &mut open.answer).await;
            fates.hear(&open, answer);
        }
        assert_eq!(offsets(&fixture.broker).await, fates.kept, "seed {seed}");
        let fixture = fixture.restart().await;
        assert_eq!(offsets(&fixture.broker).await, fates.kept, "seed {seed}, after a restart");
        (undone_in_all, behind_in_all) = (undone_in_all + fates.undone, behind_in_all + fates.behind);
    }
    assert!(undone_in_all > 20 && behind_in_all > 20, "{undone_in_all} undone, {behind_in_all} behind them");
}

/// A batch that is not taken says nothing of those that are under way.
#[tokio::test]
async fn what_is_behind_a_failure_does_not_decide_what_is_before_it() {
    let fixture = Fixture::new().await;
    fixture.topic("t", PARTITIONS).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    soon("the first", open(&fixture.broker, 0, 1).answer).await.expect("it is taken");
    fixture.store.script(shard(), |script| script.hold = true);
    let mut before = open(&fixture.broker, 0, 2).answer;
    assert!(futures::poll!(&mut before).is_pending());
    until("it is submitted", || fixture.store.held(shard()) == 1).await;
    let refusal = Backpressure::Poisoned { reason: "a sync failed".to_owned() };
    fixture.store.script(shard(), |script| script.refuse_next = Some(refusal));
    let refused = soon("the refusal", open(&fixture.broker, 0, 3).answer).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::PartitionPoisoned);
    fixture.store.script(shard(), |script| script.hold = false);
    fixture.store.release(shard(), None).await;
    soon("its answer", before).await.expect("it is in the log");
    assert_eq!(offsets(&fixture.broker).await, [(0, 2)].into());
}

#[tokio::test]
async fn a_poisoned_partition_is_read_and_takes_nothing() {
    let fixture = Fixture::new().await;
    fixture.topic("t", PARTITIONS).await;
    fixture.put("t", 0, &["a", "b"]).await;
    soon("the first", open(&fixture.broker, 0, 1).answer).await.expect("it is taken");
    fixture.store.script(shard(), |script| {
        script.hold = true;
        script.poisoned = Some("a sync failed".to_owned());
    });
    let lost = open(&fixture.broker, 0, 2);
    let mut answer = lost.answer;
    assert!(futures::poll!(&mut answer).is_pending());
    until("it is submitted", || fixture.store.held(shard()) == 1).await;
    fixture.store.release(shard(), Some(AppendError::Unknown { reason: "a sync failed".to_owned() })).await;
    assert_eq!(soon("its answer", answer).await.unwrap_err().reason(), Reason::AppendUnknown);
    assert_eq!(offsets(&fixture.broker).await, [(0, 1)].into(), "as far as it is durable");
    let refused = soon("the next", open(&fixture.broker, 0, 2).answer).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::PartitionPoisoned);
    assert_eq!(fixture.store.held(shard()), 0, "nothing was decided");
}
