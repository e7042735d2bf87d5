//! `GroupService`.

use rimstone_proto::v1;
use tonic::Code;

use crate::support::{Server, assert_item, assert_refused, server, soon};

fn commit(group: &str, topic: &str, partition: u32, offset: Option<u64>) -> v1::CommitOffsetsRequest {
    let offset = v1::OffsetCommit { topic: topic.to_owned(), partition, offset, metadata: "m".to_owned() };
    v1::CommitOffsetsRequest { group: group.to_owned(), offsets: vec![offset], ..Default::default() }
}

async fn fetched(server: &Server, group: &str) -> Vec<v1::CommittedOffset> {
    let request = v1::FetchOffsetsRequest { group: group.to_owned(), partitions: Vec::new() };
    soon(server.groups().fetch_offsets(request)).await.unwrap().into_inner().offsets
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_committed_fetched_cloned_and_deleted() {
    let server = server().await;
    server.topic("t", 2).await;
    server.fill("t", &["a", "b", "c"]).await;
    let mut groups = server.groups();
    assert!(fetched(&server, "g").await.is_empty());
    let results =
        soon(groups.commit_offsets(commit("g", "t", 0, Some(2)))).await.unwrap().into_inner().results;
    assert_eq!(results, [v1::OffsetCommitResult { topic: "t".to_owned(), ..Default::default() }]);

    let both = ["t", "t"].iter().enumerate().map(|(partition, topic)| v1::TopicPartition {
        topic: (*topic).to_owned(),
        partition: partition as u32,
    });
    let request = v1::FetchOffsetsRequest { group: "g".to_owned(), partitions: both.collect() };
    let offsets = soon(groups.fetch_offsets(request)).await.unwrap().into_inner().offsets;
    assert_eq!((offsets[0].offset, offsets[0].metadata.as_str()), (Some(2), "m"));
    assert!(offsets[0].commit_time_ms > 0);
    assert_eq!((offsets[1].offset, offsets[1].commit_time_ms), (None, 0), "none, never 0");

    let request =
        v1::CloneGroupRequest { source: "g".to_owned(), target: "h".to_owned(), topics: Vec::new() };
    let copied = soon(groups.clone_group(request.clone())).await.unwrap().into_inner().offsets;
    assert_eq!(copied, fetched(&server, "h").await);
    assert_refused(soon(groups.clone_group(request)).await, Code::AlreadyExists, "GROUP_EXISTS");

    let listed = soon(groups.list_groups(v1::ListGroupsRequest { prefix: "h".to_owned() })).await;
    let listed = listed.unwrap().into_inner().groups;
    assert_eq!((listed.len(), listed[0].group.as_str(), listed[0].state()), (1, "h", v1::GroupState::Empty));
    assert_eq!(listed[0].topics, ["t"]);
    let describe = v1::DescribeGroupRequest { group: "h".to_owned() };
    let described = soon(groups.describe_group(describe.clone())).await.unwrap().into_inner();
    assert_eq!(described.group.unwrap(), listed[0]);
    soon(groups.delete_group(v1::DeleteGroupRequest { group: "h".to_owned() })).await.unwrap();
    let gone = soon(groups.describe_group(describe)).await;
    assert_eq!(assert_refused(gone, Code::NotFound, "GROUP_NOT_FOUND")["group"], "h");
    assert_eq!(fetched(&server, "g").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named() {
    let server = server().await;
    server.topic("t", 1).await;
    server.fill("t", &["a"]).await;
    let mut groups = server.groups();
    let refused = soon(groups.commit_offsets(commit("a:b", "t", 0, Some(1)))).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_NAME");
    let refused = soon(groups.commit_offsets(commit("g", "t", 0, Some(u64::MAX)))).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_REQUEST");
    let odd = v1::CommitOffsetsRequest { member_epoch: 3, ..commit("g", "t", 0, Some(1)) };
    assert_refused(soon(groups.commit_offsets(odd)).await, Code::InvalidArgument, "INVALID_REQUEST");
    let stranger = v1::CommitOffsetsRequest {
        member_id: "m".to_owned(),
        member_epoch: 3,
        ..commit("g", "t", 0, Some(1))
    };
    let fenced = assert_refused(soon(groups.commit_offsets(stranger)).await, Code::Aborted, "MEMBER_FENCED");
    assert_eq!(fenced["why"], "unknown_member");
    for (request, code, reason) in [
        (commit("g", "t", 0, Some(2)), Code::OutOfRange, "OFFSET_OUT_OF_RANGE"),
        (commit("g", "t", 1, Some(0)), Code::NotFound, "PARTITION_NOT_FOUND"),
        (commit("g", "u", 0, Some(0)), Code::NotFound, "TOPIC_NOT_FOUND"),
    ] {
        let answer = soon(groups.commit_offsets(request)).await.unwrap().into_inner();
        let metadata = assert_item(answer.results[0].error.as_ref(), code, reason);
        assert_eq!(metadata["topic"], answer.results[0].topic);
    }
}
