use std::collections::BTreeMap;

use rimstone_store::Visibility;
use rimstone_types::{Offset, PartitionIndex, Timestamp};

use crate::{testing::*, *};

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

type Shown = Vec<Result<Option<(u64, Option<i64>)>, Reason>>;

async fn listed(fixture: &Fixture, partitions: &[u32], at: OffsetQuery) -> Shown {
    let partitions: Vec<_> = partitions.iter().copied().map(PartitionIndex).collect();
    let found = fixture.broker.list_offsets(&name("t"), &partitions, at, Visibility::Stable).await.unwrap();
    let show = |answer: PartitionOffset| {
        let found = answer.result.map_err(|error| error.reason())?;
        Ok(found.map(|found| (found.offset.get(), found.time.map(Timestamp::as_millis))))
    };
    found.into_iter().map(show).collect()
}

async fn filled() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    for at in [10, 30, 20] {
        let record = PlainRecord { create_time: Some(Timestamp(at)), ..to_partition(0, "v") };
        fixture.produce(plain("t", vec![record])).await.unwrap();
    }
    fixture
}

#[tokio::test]
async fn offsets_are_found_and_none_is_not_the_end() {
    let fixture = filled().await;
    let time = |at| OffsetQuery::Time(Timestamp(at));
    let cases: Vec<(OffsetQuery, Shown)> = vec![
        (OffsetQuery::Earliest, vec![Ok(Some((0, None))), Ok(Some((0, None)))]),
        (OffsetQuery::Latest, vec![Ok(Some((3, None))), Ok(Some((0, None)))]),
        (OffsetQuery::MaxTime, vec![Ok(Some((1, Some(30)))), Ok(None)]),
        (time(10), vec![Ok(Some((0, Some(10)))), Ok(None)]),
        (time(11), vec![Ok(Some((1, Some(30)))), Ok(None)]),
        (time(31), vec![Ok(None), Ok(None)]),
    ];
    for (at, expected) in cases {
        assert_eq!(listed(&fixture, &[], at).await, expected, "{at:?}");
    }
    let asked = listed(&fixture, &[1, 9, 0], OffsetQuery::Latest).await;
    assert_eq!(asked, [Ok(Some((0, None))), Err(Reason::PartitionNotFound), Ok(Some((3, None)))]);
    let unknown = fixture.broker.list_offsets(&name("u"), &[], OffsetQuery::Latest, Visibility::Stable).await;
    assert_eq!(unknown.unwrap_err().reason(), Reason::TopicNotFound);
}

#[tokio::test]
async fn log_start_moves_forward_within_the_log() {
    let fixture = filled().await;
    let delete = async |pairs: &[(u32, u64)]| {
        let before = pairs.iter().map(|(partition, at)| (PartitionIndex(*partition), offset(*at))).collect();
        let starts = fixture.broker.delete_records(&name("t"), before).await;
        let show = |starts: BTreeMap<PartitionIndex, Offset>| {
            starts.into_iter().map(|(partition, at)| (partition.0, at.get())).collect::<Vec<_>>()
        };
        starts.map(show).map_err(|error| error.reason())
    };
    assert_eq!(delete(&[(0, 2), (1, 1)]).await, Err(Reason::OffsetOutOfRange));
    assert_eq!(fixture.ends("t", 0).start, offset(0), "a refused request moves nothing");
    assert_eq!(delete(&[(0, 2), (1, 0)]).await, Ok(vec![(0, 2), (1, 0)]));
    assert_eq!(delete(&[(0, 1)]).await, Ok(vec![(0, 2)]), "never back");
    assert_eq!(delete(&[(0, 3)]).await, Ok(vec![(0, 3)]));
    assert_eq!(delete(&[(5, 0)]).await, Err(Reason::PartitionNotFound));
    assert_eq!(listed(&fixture, &[0], OffsetQuery::Earliest).await, [Ok(Some((3, None)))]);
}

#[tokio::test]
async fn damage_that_may_hold_the_record_is_told_by_its_partition() {
    let fixture = filled().await;
    let id = fixture.partition("t", 0);
    let lost =
        rimstone_store::ReadError::DataLoss { from: offset(0), until: offset(2), reason: "rot".to_owned() };
    fixture.store.script(id, |script| script.read_error = Some(lost));
    let found = fixture
        .broker
        .list_offsets(&name("t"), &[], OffsetQuery::Time(Timestamp(10)), Visibility::Stable)
        .await
        .unwrap();
    let error = found[0].result.as_ref().unwrap_err();
    assert_eq!(error.reason(), Reason::DataDamaged);
    let details = error.details();
    for (key, value) in [("from_offset", "0"), ("until_offset", "2")] {
        assert!(details.contains(&(key, value.to_owned())), "{details:?}");
    }
    assert!(matches!(found[1].result, Ok(None)), "{:?}", found[1]);
}
