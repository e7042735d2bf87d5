use std::collections::BTreeMap;

use rimstone_store::{AppendError, Backpressure, Health, MemoryStorage, ReadError, StoreError};
use rimstone_types::{ByteCount, Offset, PartitionId, PartitionIndex, TopicId};

use super::*;
use crate::{coordinator::shard_of, error::Failure, testing::*, *};

fn group(name: &str) -> GroupName {
    name.parse().expect("a valid name")
}

/// The partition that a group is kept in.
fn shard(group_name: &str) -> PartitionId {
    PartitionId { topic: TopicId::CONSUMER_OFFSETS, partition: PartitionIndex(shard_of(&group(group_name))) }
}

fn at(offset: u64) -> Offset {
    Offset::new(offset).expect("in bounds")
}

fn to_commit(topic: &str, partition: u32, offset: Option<u64>) -> OffsetToCommit {
    OffsetToCommit {
        topic: name(topic),
        partition: PartitionIndex(partition),
        offset: offset.map(at),
        metadata: String::new(),
    }
}

impl Fixture {
    async fn commit(
        &self,
        group_name: &str,
        offsets: Vec<OffsetToCommit>,
    ) -> Result<Vec<OffsetCommitted>, GroupRequestError> {
        let room = self.broker.try_reserve(ByteCount(1)).expect("there is room");
        let request = CommitRequest { group: group(group_name), member: None, offsets };
        soon("the answer to a commit", self.broker.commit_offsets(request, room)).await
    }

    async fn commit_one(&self, group_name: &str, topic: &str, partition: u32, offset: u64) {
        let committed = self.commit(group_name, vec![to_commit(topic, partition, Some(offset))]).await;
        for committed in committed.expect("it is taken") {
            committed.result.expect("it is committed");
        }
    }

    async fn offset(&self, group_name: &str, topic: &str, partition: u32) -> Option<u64> {
        let asked = vec![(name(topic), PartitionIndex(partition))];
        let group = group(group_name);
        let answer = soon("offsets", self.broker.fetch_offsets(&group, asked)).await;
        answer.expect("it is answered")[0].value.as_ref().map(|value| value.offset.get())
    }

    /// What lag would see.
    fn table_offset(&self, group_name: &str, topic: &str, partition: u32) -> Option<u64> {
        let group = self.broker.inner.commits.group(&group(group_name))?;
        let entry = group.topics.get(&name(topic))?.get(&PartitionIndex(partition))?;
        entry.commit.map(|commit| commit.offset.get())
    }
}

#[tokio::test]
async fn offsets_are_kept_over_a_restart_in_a_topic_that_users_only_read() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    assert!(fixture.broker.describe_topic(&name("__consumer_offsets")).is_err(), "made on first use");
    assert_eq!(fixture.offset("g", "t", 0).await, None);
    assert!(fixture.broker.describe_topic(&name("__consumer_offsets")).is_err(), "asking is no use");

    let mut with_metadata = to_commit("t", 0, Some(2));
    with_metadata.metadata = "where I was".to_owned();
    let committed = fixture.commit("g", vec![with_metadata, to_commit("t", 1, Some(0))]).await.unwrap();
    assert!(committed.iter().all(|committed| committed.result.as_ref().unwrap() == &Committed::default()));

    let topic = fixture.broker.describe_topic(&name("__consumer_offsets")).unwrap();
    assert_eq!((topic.topic.id, topic.partitions.len()), (TopicId::CONSUMER_OFFSETS, 16));
    let setting = |name: &str| topic.settings.iter().find(|setting| setting.name == name).unwrap();
    assert_eq!(setting("cleanup.policy").value, "compact");
    assert_eq!(setting("retention.ms").value, "-1");
    assert_eq!(setting("rimstone.ack").value, "durable");
    let partition = shard("g").partition.0;
    let kept = fixture.values("__consumer_offsets", partition).await;
    assert!(kept[0].contains("where I was"), "{kept:?}");
    let write = plain("__consumer_offsets", vec![to_partition(partition, "mine")]);
    assert_eq!(fixture.send(write).unwrap_err().reason(), Reason::InvalidName);
    let delete = fixture.broker.delete_topic(&name("__consumer_offsets")).await;
    assert_eq!(delete.unwrap_err().reason(), Reason::InvalidName);

    let fixture = fixture.restart().await;
    until_loaded(&fixture, "g").await;
    assert_eq!(fixture.offset("g", "t", 0).await, Some(2));
    assert_eq!(fixture.offset("g", "t", 1).await, Some(0), "0 was committed, which is not none");
    assert_eq!(fixture.offset("g", "u", 0).await, None);
    assert_eq!(fixture.table_offset("g", "t", 0), Some(2), "lag sees it too");
    let all = fixture.broker.fetch_offsets(&group("g"), Vec::new()).await.unwrap();
    assert_eq!(all.iter().map(|line| line.partition.0).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(all[0].value.as_ref().unwrap().metadata, "where I was");
}

/// Loading goes on in the background.
async fn until_loaded(fixture: &Fixture, group_name: &str) {
    soon("loading", async {
        while let Err(error) = fixture.broker.describe_group(&group(group_name)).await {
            if error.reason() != Reason::CoordinatorLoading {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_goes_out_before_it_is_durable() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    fixture.commit_one("g", "t", 0, 1).await;
    fixture.store.script(shard("g"), |script| script.hold = true);

    let commit = fixture.commit("g", vec![to_commit("t", 0, Some(2))]);
    let beyond = fixture.commit("g", vec![to_commit("t", 0, Some(9))]);
    let (g, copy, none) = (group("g"), group("copy"), group("none"));
    let (fetch, describe, clone) = (
        fixture.offset("g", "t", 0),
        fixture.broker.describe_group(&none),
        fixture.broker.clone_group(&g, &copy, &[]),
    );
    // Polled in this order, so that each is decided upon the one before.
    let mut commit = Box::pin(commit);
    assert!(futures::poll!(&mut commit).is_pending());
    until("the commit is submitted", || fixture.store.held(shard("g")) == 1).await;
    let mut others = Box::pin(async { tokio::join!(beyond, fetch, clone) });
    for _ in 0..1_000 {
        assert!(futures::poll!(&mut others).is_pending(), "decided upon what is not durable");
        assert!(futures::poll!(&mut commit).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.table_offset("g", "t", 0), Some(1));
    // Another shard has nothing to wait for.
    assert_ne!(shard("none"), shard("g"));
    assert_eq!(soon("its answer", describe).await.unwrap_err().reason(), Reason::GroupNotFound);

    fixture.store.script(shard("g"), |script| script.hold = false);
    fixture.store.release(shard("g"), None).await;
    commit.await.unwrap()[0].result.as_ref().unwrap();
    assert_eq!(fixture.table_offset("g", "t", 0), Some(2));
    let (beyond, fetched, cloned) = soon("the others", others).await;
    let refused = beyond.unwrap().remove(0).result.unwrap_err();
    assert_eq!(refused.reason(), Reason::OffsetOutOfRange);
    assert!(refused.details().contains(&("high_watermark", "3".to_owned())), "{:?}", refused.details());
    assert_eq!(fetched, Some(2));
    assert_eq!(cloned.unwrap()[0].value.as_ref().unwrap().offset, at(2));
}

#[tokio::test]
async fn a_failed_append_takes_back_everything_that_rests_on_it() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    fixture.commit_one("g", "t", 0, 1).await;
    for unknown in [false, true] {
        fixture.store.script(shard("g"), |script| script.hold = true);
        let mut first = Box::pin(fixture.commit("g", vec![to_commit("t", 0, Some(2))]));
        assert!(futures::poll!(&mut first).is_pending());
        until("the first is submitted", || fixture.store.held(shard("g")) == 1).await;
        let mut second = Box::pin(fixture.commit("g", vec![to_commit("t", 0, Some(3))]));
        assert!(futures::poll!(&mut second).is_pending());
        until("the second is submitted", || fixture.store.held(shard("g")) == 2).await;
        let g = group("g");
        let mut look = Box::pin(fixture.broker.fetch_offsets(&g, Vec::new()));
        for _ in 0..100 {
            assert!(futures::poll!(&mut look).is_pending(), "decided upon what is not durable");
            tokio::task::yield_now().await;
        }

        let error = match unknown {
            true => AppendError::Unknown { reason: "scripted".to_owned() },
            false => undone(),
        };
        fixture.store.release(shard("g"), Some(error)).await;
        // It is refused by the store: it does not begin where the first would have ended.
        fixture.store.release(shard("g"), None).await;
        fixture.store.script(shard("g"), |script| script.hold = false);
        let reason = |error: GroupRequestError| error.reason();
        let own = if unknown { Reason::AppendUnknown } else { Reason::AppendUndone };
        // Whatever became of the first: this one was not taken.
        let behind = Reason::CoordinatorLoading;
        assert_eq!(soon("the first", first).await.map(drop).map_err(reason), Err(own));
        assert_eq!(soon("the second", second).await.map(drop).map_err(reason), Err(behind));
        assert_eq!(soon("the look", look).await.map(drop).map_err(reason), Err(behind));
        until_loaded(&fixture, "g").await;
        assert_eq!(fixture.offset("g", "t", 0).await, Some(1), "as the log has it");
        assert_eq!(fixture.table_offset("g", "t", 0), Some(1));
    }
    fixture.commit_one("g", "t", 0, 3).await;
    let fixture = fixture.restart().await;
    until_loaded(&fixture, "g").await;
    assert_eq!(fixture.offset("g", "t", 0).await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn back_pressure_is_waited_out_and_then_given_up() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    fixture.commit_one("g", "t", 0, 1).await;
    let full = || Backpressure::Staging { waiting: ByteCount(9), limit: ByteCount(8) };
    fixture.store.script(shard("g"), |script| script.refuse_next = Some(full()));
    fixture.commit_one("g", "t", 0, 2).await;

    fixture.store.script(shard("g"), |script| script.refuse = Some(full()));
    let before = tokio::time::Instant::now();
    let refused = fixture.commit("g", vec![to_commit("t", 0, Some(3))]).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Backpressure);
    assert!(before.elapsed() >= std::time::Duration::from_secs(10));
    fixture.store.script(shard("g"), |script| script.refuse = None);
    until_loaded(&fixture, "g").await;
    assert_eq!(fixture.offset("g", "t", 0).await, Some(2));
    fixture.commit_one("g", "t", 0, 3).await;
}

#[tokio::test]
async fn below_the_disk_reserve_groups_go_on() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    fixture.commit_one("g", "t", 0, 1).await;
    let full = Health::DiskReserveReached { free: ByteCount(1), reserve: ByteCount(2) };
    *fixture.store.health.lock() = full;
    // What a group writes lives out of the reserve: only the partition says when it takes nothing.
    fixture.commit_one("g", "t", 0, 3).await;
    assert_eq!(fixture.offset("g", "t", 0).await, Some(3));
    fixture.broker.delete_group(&group("g")).await.unwrap();
}

#[tokio::test]
async fn where_a_sync_has_failed_nothing_is_decided() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    fixture.commit_one("g", "t", 0, 1).await;
    *fixture.store.health.lock() = Health::Poisoned { reason: "a sync failed".to_owned() };
    let refused = fixture.commit("g", vec![to_commit("t", 0, Some(3))]).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::PartitionPoisoned);
    let refused = fixture.broker.delete_group(&group("g")).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::PartitionPoisoned);
    assert_eq!(fixture.offset("g", "t", 0).await, Some(1), "reads go on");
    *fixture.store.health.lock() = Health::Healthy;
    fixture.commit_one("g", "t", 0, 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_that_cannot_be_read_is_tried_again_and_a_damaged_one_is_not_served() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    fixture.commit_one("g", "t", 0, 1).await;
    fixture.broker.finish_shutdown(std::time::Duration::from_secs(5)).await.unwrap();

    let store = fixture.store.reopen();
    let io = StoreError::Io { operation: "read", path: "x".to_owned(), reason: "tired".to_owned() };
    store.script(shard("g"), |script| script.read_error = Some(ReadError::Store(io)));
    let again = Fixture::over(store.clone(), still()).await;
    let refused = again.broker.fetch_offsets(&group("g"), Vec::new()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::CoordinatorLoading);
    assert!(refused.retry_after().is_some());
    let listed = again.broker.list_groups("").await.unwrap_err();
    assert_eq!(listed.reason(), Reason::CoordinatorLoading, "not a part for the whole");
    store.script(shard("g"), |script| script.read_error = None);
    until_loaded_later(&again, "g").await;
    assert_eq!(again.offset("g", "t", 0).await, Some(1));
    again.broker.finish_shutdown(std::time::Duration::from_secs(5)).await.unwrap();

    let store = store.reopen();
    let lost = ReadError::DataLoss { from: at(0), until: at(1), reason: "rot".to_owned() };
    store.script(shard("g"), |script| script.read_error = Some(lost));
    let again = Fixture::over(store, still()).await;
    until_loaded_later(&again, "g").await;
    let refused = again.broker.fetch_offsets(&group("g"), Vec::new()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::PartitionUnavailable, "never an older offset, never none");
    // Other groups are served.
    assert_ne!(shard("none"), shard("g"));
    assert_eq!(again.offset("none", "t", 0).await, None);
}

/// As [`until_loaded`], for loading that waits before it tries again.
async fn until_loaded_later(fixture: &Fixture, group_name: &str) {
    soon("the shard is loaded", async {
        while let Err(error) = fixture.broker.describe_group(&group(group_name)).await
            && error.reason() == Reason::CoordinatorLoading
        {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn groups_are_listed_described_cloned_and_deleted() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.broker.list_groups("").await.unwrap(), []);
    for missing in ["delete", "describe", "clone"] {
        let missing = match missing {
            "delete" => fixture.broker.delete_group(&group("g")).await,
            "describe" => fixture.broker.describe_group(&group("g")).await.map(drop),
            _ => fixture.broker.clone_group(&group("g"), &group("h"), &[]).await.map(drop),
        };
        assert_eq!(missing.unwrap_err().reason(), Reason::GroupNotFound);
    }
    fixture.topic("t", 2).await;
    fixture.topic("u", 1).await;
    fixture.put("t", 1, &["a", "b"]).await;
    for name in ["b-1", "a-1", "a-2"] {
        fixture.commit_one(name, "t", 1, 2).await;
    }
    fixture.commit_one("a-1", "u", 0, 0).await;
    let names = |groups: Vec<GroupSummary>| {
        groups.into_iter().map(|group| group.group.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(fixture.broker.list_groups("").await.unwrap()), ["a-1", "a-2", "b-1"]);
    assert_eq!(names(fixture.broker.list_groups("a-").await.unwrap()), ["a-1", "a-2"]);
    let described = fixture.broker.describe_group(&group("a-1")).await.unwrap();
    assert_eq!(described.group.summary.state, GroupState::Empty);
    assert_eq!(described.group.summary.topics, [name("t"), name("u")].into());

    let copied = fixture.broker.clone_group(&group("a-1"), &group("c"), &[name("t")]).await.unwrap();
    assert_eq!((copied.len(), copied[0].topic.as_str()), (1, "t"));
    assert_eq!(fixture.offset("c", "t", 1).await, Some(2));
    assert_eq!(fixture.offset("c", "u", 0).await, None);
    let exists = fixture.broker.clone_group(&group("a-1"), &group("c"), &[]).await.unwrap_err();
    assert_eq!(exists.reason(), Reason::GroupExists);
    // Nothing to clone is said, not answered with a group that is not there.
    let nothing = fixture.broker.clone_group(&group("b-1"), &group("d"), &[name("u")]).await.unwrap_err();
    assert_eq!(nothing.reason(), Reason::InvalidRequest);
    assert!(nothing.to_string().contains("nothing to clone"), "{nothing}");

    fixture.broker.delete_group(&group("c")).await.unwrap();
    assert_eq!(fixture.offset("c", "t", 1).await, None);
    assert_eq!(fixture.table_offset("c", "t", 1), None);
    assert_eq!(fixture.table_offset("a-1", "t", 1), Some(2), "the first is left alone");
    let text = fixture.broker.metrics_text();
    assert!(text.contains("rimstone_groups 3\n"), "{text}");
    assert!(text.contains("rimstone_group_members{group=\"a-1\"} 0"), "{text}");
    assert!(!text.contains("group=\"c\""), "{text}");
    assert!(text.contains("rimstone_group_commits_total 4\n"), "{text}");
}

#[tokio::test]
async fn each_offset_is_judged_by_itself() {
    let limits = Limits { offsets_per_request: 5, ..Limits::default() };
    let fixture = Fixture::with(BrokerConfig { limits, ..still() }).await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    fixture.broker.delete_records(&name("t"), BTreeMap::from([(PartitionIndex(0), at(2))])).await.unwrap();
    let mut long = to_commit("t", 0, Some(3));
    long.metadata = "x".repeat(4097);
    let committed = fixture
        .commit(
            "g",
            vec![
                to_commit("none", 0, Some(1)),
                to_commit("t", 0, Some(1)),
                to_commit("t", 7, Some(1)),
                long,
                to_commit("t", 0, Some(4)),
            ],
        )
        .await
        .unwrap();
    let reasons: Vec<_> = committed
        .iter()
        .map(|line| line.result.as_ref().map_err(Failure::reason).map(|done| done.below_log_start))
        .collect();
    assert_eq!(
        reasons,
        [
            Err(Reason::TopicNotFound),
            Ok(true),
            Err(Reason::PartitionNotFound),
            Err(Reason::InvalidRequest),
            Err(Reason::OffsetOutOfRange),
        ]
    );
    let line = fixture.broker.fetch_offsets(&group("g"), Vec::new()).await.unwrap().remove(0);
    assert_eq!((line.value.unwrap().offset, line.below_log_start), (at(1), true));
    let many = (0..6).map(|_| to_commit("t", 0, Some(3))).collect();
    assert_eq!(fixture.commit("g", many).await.unwrap_err().reason(), Reason::LimitReached);

    let taken_away = fixture.commit("g", vec![to_commit("t", 0, None)]).await.unwrap();
    taken_away[0].result.as_ref().unwrap();
    assert_eq!(fixture.offset("g", "t", 0).await, None);
    assert_eq!(fixture.table_offset("g", "t", 0), None);
}

#[tokio::test]
async fn offsets_of_a_deleted_topic_are_none_also_when_it_is_made_again() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.topic("u", 1).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    fixture.commit_one("g", "t", 0, 2).await;
    fixture.commit_one("g", "u", 0, 0).await;
    fixture.broker.delete_topic(&name("t")).await.unwrap();
    assert_eq!(fixture.offset("g", "t", 0).await, None);
    fixture.topic("t", 1).await;
    assert_eq!(fixture.offset("g", "t", 0).await, None, "it is another topic");
    until("its line of the table is gone", || fixture.table_offset("g", "t", 0).is_none()).await;
    assert_eq!(fixture.table_offset("g", "u", 0), Some(0));
    let records = fixture.values("__consumer_offsets", shard("g").partition.0).await;
    assert_eq!(records.last().unwrap(), "", "a record without a value deletes it");
}

#[tokio::test]
async fn offsets_are_imported_only_over_what_was_planned() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    let inner = &fixture.broker.inner;
    assert_eq!(inner.group_offsets(&group("g")).await.unwrap(), None);
    fixture.commit_one("g", "t", 0, 2).await;
    let seen = inner.group_offsets(&group("g")).await.unwrap().unwrap();
    assert_eq!((seen.members, seen.offsets.len()), (0, 1));
    let mut value = seen.offsets[0].value.clone();
    value.offset = at(1);
    let importing = || Importing {
        group: group("g"),
        to: ImportTo::NoMembers,
        offsets: vec![ImportOffset {
            topic: name("t"),
            partition: PartitionIndex(0),
            value: Some(value.clone()),
        }],
        unchanged: Some(seen.offsets.clone()),
    };
    fixture.commit_one("g", "t", 0, 3).await;
    assert_eq!(inner.import_offsets(importing()).await.unwrap_err().reason(), Reason::PlanChanged);
    assert_eq!(fixture.offset("g", "t", 0).await, Some(3));
    let anyway = Importing { unchanged: None, ..importing() };
    inner.import_offsets(anyway).await.unwrap();
    assert_eq!(fixture.offset("g", "t", 0).await, Some(1));
}

#[tokio::test]
async fn a_stop_answers_what_waits_and_refuses_the_rest() {
    let fixture = Fixture::over(Faulty::new(MemoryStorage::new()), still()).await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a"]).await;
    fixture.commit_one("g", "t", 0, 0).await;
    fixture.store.script(shard("g"), |script| script.hold = true);
    let mut commit = Box::pin(fixture.commit("g", vec![to_commit("t", 0, Some(1))]));
    assert!(futures::poll!(&mut commit).is_pending());
    until("the commit is submitted", || fixture.store.held(shard("g")) == 1).await;
    fixture.broker.begin_shutdown();
    let refused = fixture.broker.describe_group(&group("g")).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::ShuttingDown);
    fixture.store.release(shard("g"), None).await;
    commit.await.unwrap()[0].result.as_ref().unwrap();
    fixture.broker.finish_shutdown(std::time::Duration::from_secs(20)).await.unwrap();
}
