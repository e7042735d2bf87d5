//! `AdminService`.

use rimstone_proto::v1::{self, list_offsets_request::At};
use tonic::Code;

use crate::support::{
    assert_item, assert_refused, batch, batches, pairs, partition_batch, server, server_with, soon,
};

fn create(topic: &str) -> v1::CreateTopicRequest {
    v1::CreateTopicRequest { topic: topic.to_owned(), ..Default::default() }
}

fn setting<'a>(settings: &'a [v1::TopicSetting], name: &str) -> &'a v1::TopicSetting {
    settings.iter().find(|setting| setting.name == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_topic() {
    let server = server().await;
    let mut admin = server.admin();
    let request = v1::CreateTopicRequest {
        partitions: 3,
        settings: pairs(&[("retention.ms", "1000"), ("segment.bytes", "8192")]),
        ..create("orders")
    };
    let created = soon(admin.create_topic(request)).await.unwrap().into_inner().topic.unwrap();
    assert_eq!((created.name.as_str(), created.partitions, created.internal), ("orders", 3, false));
    assert!(created.created_ms > 0);

    let listed = soon(admin.list_topics(v1::ListTopicsRequest::default())).await.unwrap().into_inner().topics;
    assert_eq!(listed, std::slice::from_ref(&created));
    let all = v1::ListTopicsRequest { include_internal: true };
    let all = soon(admin.list_topics(all)).await.unwrap().into_inner().topics;
    assert!(all.iter().any(|topic| topic.name == "__catalog" && topic.internal), "{all:?}");

    let alter = v1::AlterTopicRequest {
        topic: "orders".to_owned(),
        set: pairs(&[("retention.ms", "-1")]),
        reset: vec!["segment.bytes".to_owned()],
        partitions: Some(5),
    };
    let altered = soon(admin.alter_topic(alter)).await.unwrap().into_inner();
    assert_eq!(altered.topic.unwrap().partitions, 5);
    assert_eq!(setting(&altered.settings, "retention.ms").value, "-1");

    let describe = v1::DescribeTopicRequest { topic: "orders".to_owned() };
    let described = soon(admin.describe_topic(describe.clone())).await.unwrap().into_inner();
    assert_eq!(described.topic.unwrap().id, created.id);
    assert_eq!(described.partitions.iter().map(|part| part.partition).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert!(described.partitions.iter().all(|part| part.state == "serving" && part.ends.is_some()));
    assert!(!setting(&described.settings, "retention.ms").is_default);
    assert!(setting(&described.settings, "segment.bytes").is_default);
    assert_eq!(setting(&described.settings, "segment.bytes").value, "134217728");

    soon(admin.delete_topic(v1::DeleteTopicRequest { topic: "orders".to_owned() })).await.unwrap();
    let gone = soon(admin.describe_topic(describe)).await;
    assert!(gone.as_ref().unwrap_err().message().contains("rimstone topic create orders"), "{gone:?}");
    assert_eq!(assert_refused(gone, Code::NotFound, "TOPIC_NOT_FOUND")["topic"], "orders");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_cannot_be_made() {
    let server =
        server_with(&[("limits.partitions_per_topic", "10"), ("topic_defaults.partitions", "2")]).await;
    let mut admin = server.admin();
    let made = soon(admin.create_topic(create("t"))).await.unwrap().into_inner();
    assert_eq!(made.topic.unwrap().partitions, 2, "the server's default");

    let exists = soon(admin.create_topic(create("t"))).await;
    assert_eq!(assert_refused(exists, Code::AlreadyExists, "TOPIC_EXISTS")["topic"], "t");
    for bad in ["", "a/b", "..", "__mine"] {
        assert_refused(soon(admin.create_topic(create(bad))).await, Code::InvalidArgument, "INVALID_NAME");
    }
    for (name, value) in [("retention", "1"), ("cleanup.policy", "compacted"), ("segment.bytes", "1")] {
        let request = v1::CreateTopicRequest { settings: pairs(&[(name, value)]), ..create("u") };
        let metadata =
            assert_refused(soon(admin.create_topic(request)).await, Code::InvalidArgument, "INVALID_SETTING");
        assert_eq!(metadata["setting"], name);
    }
    let many = v1::CreateTopicRequest { partitions: 11, ..create("u") };
    let refused = soon(admin.create_topic(many)).await;
    use tonic_types::StatusExt as _;
    assert!(refused.as_ref().unwrap_err().get_details_retry_info().is_some(), "{refused:?}");
    assert_eq!(assert_refused(refused, Code::ResourceExhausted, "LIMIT_REACHED")["limit"], "10");

    let fewer = v1::AlterTopicRequest { topic: "t".to_owned(), partitions: Some(1), ..Default::default() };
    assert_refused(soon(admin.alter_topic(fewer)).await, Code::InvalidArgument, "INVALID_REQUEST");
    let internal = v1::DeleteTopicRequest { topic: "__catalog".to_owned() };
    assert_refused(soon(admin.delete_topic(internal)).await, Code::InvalidArgument, "INVALID_NAME");
}

fn offsets(at: At) -> v1::ListOffsetsRequest {
    v1::ListOffsetsRequest { topic: "t".to_owned(), at: Some(at), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_by_place_and_by_time() {
    let server = server().await;
    server.topic("t", 2).await;
    let mut admin = server.admin();
    let records = [(100, "a"), (300, "b"), (200, "c")].map(|(time, value)| v1::Record {
        create_time_ms: Some(time),
        ..crate::support::record(None, value)
    });
    let request = crate::support::to_partition_0("t", records.into());
    soon(server.produce().produce(request)).await.unwrap();

    for (at, in_0, in_1) in [
        (At::Earliest(true), Some((0, None)), Some((0, None))),
        (At::Latest(true), Some((3, None)), Some((0, None))),
        (At::MaxTime(true), Some((1, Some(300))), None),
        (At::TimeMs(150), Some((1, Some(300))), None),
        (At::TimeMs(301), None, None),
    ] {
        let answer = soon(admin.list_offsets(offsets(at))).await.unwrap().into_inner().offsets;
        let found: Vec<_> = answer.iter().map(|found| found.offset.map(|at| (at, found.time_ms))).collect();
        assert_eq!(found, [in_0, in_1], "{at:?}");
        assert!(answer.iter().all(|found| found.error.is_none()));
    }

    let some = v1::ListOffsetsRequest { partitions: vec![1, 7], ..offsets(At::Latest(true)) };
    let answer = soon(admin.list_offsets(some)).await.unwrap().into_inner().offsets;
    assert_eq!(answer.iter().map(|found| found.partition).collect::<Vec<_>>(), [1, 7]);
    let metadata = assert_item(answer[1].error.as_ref(), Code::NotFound, "PARTITION_NOT_FOUND");
    assert_eq!((metadata["topic"].as_str(), metadata["partition"].as_str()), ("t", "7"));

    let nothing = v1::ListOffsetsRequest { at: None, ..offsets(At::Latest(true)) };
    assert_refused(soon(admin.list_offsets(nothing)).await, Code::InvalidArgument, "INVALID_REQUEST");
    let refused = soon(admin.list_offsets(offsets(At::Earliest(false)))).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_start_moves_forward() {
    let server = server().await;
    server.topic("t", 1).await;
    server.fill("t", &["a", "b", "c"]).await;
    let mut admin = server.admin();
    let delete =
        |before| v1::DeleteRecordsRequest { topic: "t".to_owned(), before_offsets: [(0, before)].into() };
    let starts = soon(admin.delete_records(delete(2))).await.unwrap().into_inner().log_start_offsets;
    assert_eq!(starts, [(0, 2)].into());
    let back = soon(admin.delete_records(delete(1))).await.unwrap().into_inner().log_start_offsets;
    assert_eq!(back, [(0, 2)].into(), "never back");
    let metadata =
        assert_refused(soon(admin.delete_records(delete(4))).await, Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    assert_eq!((metadata["log_start_offset"].as_str(), metadata["high_watermark"].as_str()), ("2", "3"));
    let refused = soon(admin.delete_records(delete(u64::MAX))).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn producers_are_listed_and_forgotten() {
    let server = server().await;
    server.topic("t", 1).await;
    let init = v1::InitProducerRequest { name: "loader".to_owned(), ..Default::default() };
    let given = soon(server.produce().init_producer(init)).await.unwrap().into_inner();
    let bytes = batch(&["a", "b"], Some((given.producer_id, given.producer_epoch)), 0);
    soon(server.produce().produce(batches("t", vec![partition_batch(0, bytes)]))).await.unwrap();

    let mut admin = server.admin();
    let named = soon(admin.list_producers(v1::ListProducersRequest::default())).await.unwrap().into_inner();
    assert_eq!(named.producers.len(), 1);
    assert_eq!(
        (named.producers[0].name.as_str(), named.producers[0].producer_id),
        ("loader", given.producer_id)
    );
    let of_topic = v1::ListProducersRequest { topic: "t".to_owned() };
    let of_topic = soon(admin.list_producers(of_topic)).await.unwrap().into_inner().producers;
    assert_eq!(of_topic.len(), 1);
    let held = &of_topic[0].partitions[0];
    assert_eq!((held.last_sequence, held.by_request), (1, false));
    assert!(held.last_append_ms > 0);

    let delete = v1::DeleteProducerRequest { name: "loader".to_owned() };
    soon(admin.delete_producer(delete.clone())).await.unwrap();
    let again =
        assert_refused(soon(admin.delete_producer(delete)).await, Code::NotFound, "PRODUCER_NOT_FOUND");
    assert_eq!(again["producer"], "loader");
    let unknown = v1::ListProducersRequest { topic: "none".to_owned() };
    assert_refused(soon(admin.list_producers(unknown)).await, Code::NotFound, "TOPIC_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_describes_itself() {
    let server = server().await;
    server.topic("t", 3).await;
    let told = soon(server.admin().describe_server(v1::DescribeServerRequest {})).await.unwrap().into_inner();
    assert_eq!(told.sync_method, "memory");
    assert_eq!(told.health, "healthy");
    assert_eq!((told.topics, told.partitions), (1, 3));
    assert_eq!(told.grpc_address, server.started.grpc_address().to_string());
    assert_eq!(told.web_address, server.started.web_address().to_string());
    assert_eq!(told.server_id.len(), 36);
    assert!(!told.version.is_empty() && !told.sync_reason.is_empty() && told.started_ms > 0);
}
