//! `ReplayService`.

use rimstone_proto::v1::{self, replay_spec::To};
use tonic::Code;

use crate::{
    lag::commit,
    support::{Server, assert_item, assert_refused, server, soon},
};

fn spec(to: To) -> v1::ReplaySpec {
    v1::ReplaySpec { group: "g".to_owned(), to: Some(to), ..Default::default() }
}

async fn plan(server: &Server, spec: &v1::ReplaySpec) -> v1::ReplayPlan {
    let request = v1::PlanReplayRequest { spec: Some(spec.clone()) };
    soon(server.replay().plan_replay(request)).await.unwrap().into_inner().plan.unwrap()
}

async fn offsets(server: &Server, group: &str) -> Vec<Option<u64>> {
    let request = v1::FetchOffsetsRequest { group: group.to_owned(), partitions: Vec::new() };
    let found = soon(server.groups().fetch_offsets(request)).await.unwrap().into_inner().offsets;
    found.into_iter().map(|found| found.offset).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_shown_and_then_done() {
    let server = server().await;
    server.topic("t", 1).await;
    server.fill("t", &["a", "b", "c", "d"]).await;
    commit(&server, "g", "t", 3).await;
    for (to, new, records, skipped) in [
        (To::Earliest(v1::Earliest {}), Some(0), 3, 0),
        (To::Latest(v1::Latest {}), Some(4), 0, 1),
        (To::Offset(2), Some(2), 1, 0),
        (To::TimeMs(0), Some(0), 3, 0),
        (To::TimeMs(i64::MAX), None, 0, 0),
        (To::AgoMs(u64::MAX), Some(0), 3, 0),
        (To::Shift(-1), Some(2), 1, 0),
        (To::Shift(i64::MAX), Some(4), 0, 1),
    ] {
        let planned = plan(&server, &spec(to.clone())).await;
        let row = &planned.partitions[0];
        assert_eq!((row.topic.as_str(), row.partition, row.old_offset), ("t", 0, Some(3)));
        assert_eq!((row.log_start_offset, row.log_end_offset), (0, 4));
        assert_eq!((row.new_offset, row.records, row.records_skipped), (new, records, skipped), "{to:?}");
        assert_eq!((planned.records, planned.bytes > 0), (records, records > 0));
        assert_eq!(planned.obstacle.is_empty(), new.is_some(), "{}", planned.obstacle);
    }
    let each = v1::PartitionOffsets { offsets: [(0, 1)].into() };
    let chosen = v1::ReplaySpec { topics: vec!["t".to_owned()], ..spec(To::Offsets(each)) };
    let planned = plan(&server, &chosen).await;
    let start = |spec: &v1::ReplaySpec, fingerprint: &str| v1::StartReplayRequest {
        spec: Some(spec.clone()),
        fingerprint: fingerprint.to_owned(),
    };
    let mut replay = server.replay();
    let done = soon(replay.start_replay(start(&chosen, &planned.fingerprint))).await.unwrap().into_inner();
    assert_eq!(done.plan.unwrap().partitions, planned.partitions);
    assert_eq!(offsets(&server, "g").await, [Some(1)]);
    let refused = soon(replay.start_replay(start(&chosen, &planned.fingerprint))).await;
    assert_eq!(assert_refused(refused, Code::FailedPrecondition, "PLAN_CHANGED")["group"], "g");

    let into = v1::ReplaySpec { clone_to: "h".to_owned(), ..spec(To::Earliest(v1::Earliest {})) };
    soon(replay.start_replay(start(&into, ""))).await.unwrap();
    assert_eq!((offsets(&server, "h").await, offsets(&server, "g").await), (vec![Some(0)], vec![Some(1)]));
    assert!(!plan(&server, &into).await.obstacle.is_empty());
    assert_refused(soon(replay.start_replay(start(&into, ""))).await, Code::AlreadyExists, "GROUP_EXISTS");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named() {
    let server = server().await;
    server.topic("t", 1).await;
    server.fill("t", &["a"]).await;
    commit(&server, "g", "t", 1).await;
    let earliest = || spec(To::Earliest(v1::Earliest {}));
    let offsets = v1::PartitionOffsets { offsets: [(0, u64::MAX)].into() };
    for (spec, code, reason) in [
        (None, Code::InvalidArgument, "INVALID_REQUEST"),
        (Some(v1::ReplaySpec { to: None, ..earliest() }), Code::InvalidArgument, "INVALID_REQUEST"),
        (Some(spec(To::Offset(u64::MAX))), Code::InvalidArgument, "INVALID_REQUEST"),
        (Some(spec(To::Offsets(offsets))), Code::InvalidArgument, "INVALID_REQUEST"),
        (
            Some(v1::ReplaySpec { group: "a:b".to_owned(), ..earliest() }),
            Code::InvalidArgument,
            "INVALID_NAME",
        ),
        (
            Some(v1::ReplaySpec { clone_to: "a:b".to_owned(), ..earliest() }),
            Code::InvalidArgument,
            "INVALID_NAME",
        ),
        (
            Some(v1::ReplaySpec { group: "nobody".to_owned(), ..earliest() }),
            Code::NotFound,
            "GROUP_NOT_FOUND",
        ),
        (
            Some(v1::ReplaySpec { topics: vec!["u".to_owned()], ..earliest() }),
            Code::NotFound,
            "TOPIC_NOT_FOUND",
        ),
    ] {
        let refused = soon(server.replay().plan_replay(v1::PlanReplayRequest { spec: spec.clone() })).await;
        assert_refused(refused, code, reason);
        let request = v1::StartReplayRequest { spec, fingerprint: String::new() };
        assert_refused(soon(server.replay().start_replay(request)).await, code, reason);
    }
    let beyond = spec(To::Offset(9));
    let planned = plan(&server, &beyond).await;
    assert_item(planned.partitions[0].error.as_ref(), Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    assert!(planned.obstacle.contains("partition 0 of topic t"), "{}", planned.obstacle);
    let request = v1::StartReplayRequest { spec: Some(beyond), fingerprint: String::new() };
    let refused = soon(server.replay().start_replay(request)).await;
    assert_eq!(assert_refused(refused, Code::OutOfRange, "OFFSET_OUT_OF_RANGE")["partition"], "0");
}
