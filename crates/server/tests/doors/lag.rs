//! `LagService`, and lag on the page of metrics.

use rimstone_proto::v1;
use tonic::Code;

use crate::{
    support::{Server, assert_refused, server, server_with, soon},
    web::get,
};

pub(crate) async fn commit(server: &Server, group: &str, topic: &str, offset: u64) {
    let commit = v1::OffsetCommit { topic: topic.to_owned(), offset: Some(offset), ..Default::default() };
    let request =
        v1::CommitOffsetsRequest { group: group.to_owned(), offsets: vec![commit], ..Default::default() };
    let results = soon(server.groups().commit_offsets(request)).await.unwrap().into_inner().results;
    assert!(results[0].error.is_none(), "{results:?}");
}

async fn lag(server: &Server, groups: &[&str]) -> v1::GetLagResponse {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    let request = v1::GetLagRequest { groups, topics: Vec::new() };
    soon(server.lag().get_lag(request)).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_and_appended_before_is_in_the_answer() {
    let server = server().await;
    server.topic("t", 1).await;
    let mut end = 0;
    for round in 0..5 {
        server.fill("t", &["a", "b", "c"]).await;
        end += 3;
        commit(&server, "g", "t", end - 2).await;
        commit(&server, "h", "t", end).await;
        let answer = lag(&server, &[]).await;
        let rows: Vec<_> = answer
            .partitions
            .iter()
            .map(|row| (row.group.as_str(), row.committed_offset, row.log_end_offset, row.lag_records))
            .collect();
        assert_eq!(rows, [("g", Some(end - 2), end, 2), ("h", Some(end), end, 0)], "round {round}");
        assert_eq!(answer.partitions[1].lag_ms, 0);
        let sums: Vec<_> = answer.topics.iter().map(|sum| (sum.lag_records, sum.partitions)).collect();
        assert_eq!(sums, [(2, 1), (0, 1)]);
        assert!(answer.measured_ms >= answer.partitions[0].commit_time_ms);
    }
    assert_eq!(lag(&server, &["h"]).await.partitions.len(), 1);
    for (groups, topics, code, reason) in [
        (vec!["nobody"], vec![], Code::NotFound, "GROUP_NOT_FOUND"),
        (vec![], vec!["nowhere"], Code::NotFound, "TOPIC_NOT_FOUND"),
        (vec!["not a name"], vec![], Code::InvalidArgument, "INVALID_NAME"),
    ] {
        let names = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        let request = v1::GetLagRequest { groups: names(groups), topics: names(topics) };
        assert_refused(soon(server.lag().get_lag(request)).await, code, reason);
    }
    soon(server.groups().delete_group(v1::DeleteGroupRequest { group: "h".to_owned() })).await.unwrap();
    let left = lag(&server, &[]).await;
    assert!(left.partitions.iter().all(|row| row.group == "g"), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_show_it_per_topic_and_where_asked_for_per_partition() {
    for per_partition in [false, true] {
        let server = server_with(&[("metrics.lag_per_partition", &per_partition.to_string())]).await;
        server.topic("t", 2).await;
        server.fill("t", &["a", "b", "c"]).await;
        commit(&server, "g", "t", 1).await;
        // Metrics may be a pass behind.
        let line = r#"rimstone_group_lag_records{group="g",topic="t"} 2"#;
        let metrics = soon(async {
            loop {
                let (_, _, metrics) = get(server.started.web_address(), "/metrics").await.unwrap();
                if metrics.lines().any(|found| found == line) {
                    break metrics;
                }
            }
        })
        .await;
        let has = |line: &str| metrics.lines().any(|found| found == line);
        let one = r#"rimstone_group_partition_lag_records{group="g",partition="0",topic="t"} 2"#;
        assert_eq!(has(one), per_partition, "{metrics}");
    }
}
