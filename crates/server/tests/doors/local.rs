//! The same doors over files: what was acknowledged is there after a stop, and the directory is locked.

use std::path::Path;

use rimstone_proto::v1::{self, produce_stream_response};
use rimstone_server::StartError;
use tonic::transport::Channel;

use crate::{
    produce_stream::{Stream, append},
    support::{
        Server, batch, batches, config, connect, explained, partition_batch, record, soon, to_partition_0,
    },
};

pub(crate) async fn over(directory: &Path) -> Result<Server, StartError> {
    let directory = directory.to_str().unwrap();
    let settings =
        [("storage.backend", "local"), ("storage.data_directory", directory), ("storage.disk_reserve", "0")];
    let started = soon(rimstone_server::start(config(&settings))).await?;
    let channel: Channel = connect(&started).await;
    Ok(Server { started, channel })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_stop() {
    let directory = tempfile::tempdir().unwrap();
    let server = over(directory.path()).await.unwrap();
    assert_ne!(server.started.sync_method().name, "memory");
    let shown = server.started.data_directory().unwrap().canonicalize().unwrap();
    assert_eq!(shown, directory.path().canonicalize().unwrap());
    server.topic("t", 3).await;
    let init = v1::InitProducerRequest { name: "loader".to_owned(), topics: vec!["t".to_owned()] };
    let given = soon(server.produce().init_producer(init.clone())).await.unwrap().into_inner();
    let data = batch(&["a", "b"], Some((given.producer_id, given.producer_epoch)), 0);
    soon(server.produce().produce(batches("t", vec![partition_batch(2, data)]))).await.unwrap();
    server.fill("t", &["c"]).await;
    drop(server.channel);
    soon(server.started.stop()).await.unwrap();

    let server = over(directory.path()).await.unwrap();
    let partitions =
        (0..3).map(|partition| v1::FetchPartition { partition, offset: 0, max_bytes: 0 }).collect();
    let fetch = v1::FetchRequest { topic: "t".to_owned(), partitions, ..Default::default() };
    let read = soon(server.consume().fetch(fetch)).await.unwrap().into_inner().partitions;
    let counts: Vec<_> = read.iter().map(|item| item.records.len()).collect();
    assert_eq!(counts, [1, 0, 2]);
    let again = soon(server.produce().init_producer(init)).await.unwrap().into_inner();
    assert_eq!(again.producer_id, given.producer_id);
    assert!(again.producer_epoch > given.producer_epoch);
    assert_eq!((again.partitions[0].last_sequence, again.partitions[0].last_offset), (1, Some(1)));
    drop(server.channel);
    soon(server.started.stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_directory_is_kept_out() {
    let directory = tempfile::tempdir().unwrap();
    let server = over(directory.path()).await.unwrap();
    let error = over(directory.path()).await.map(|_| ()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StartError::Storage { .. }), "{text}");
    assert!(
        text.contains(directory.path().to_str().unwrap()) && text.contains("storage.data_directory"),
        "{text}"
    );
    soon(server.started.stop()).await.unwrap();
    // What failed has left nothing behind that keeps the next one out.
    let server = over(directory.path()).await.unwrap();
    soon(server.started.stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_what_it_took_and_takes_nothing_else() {
    const REQUESTS: u64 = 2_000;
    let directory = tempfile::tempdir().unwrap();
    let server = over(directory.path()).await.unwrap();
    server.topic("t", 1).await;
    let mut stream = Stream::open(&server).await;
    let requests = stream.requests();
    let sending = tokio::spawn(async move {
        for number in 0..REQUESTS {
            if !append(&requests, number, to_partition_0("t", vec![record(None, "a")])).await {
                break;
            }
        }
        requests
    });
    // In the middle of it.
    assert_eq!(stream.ack().await.correlation_id, 0);
    let stopping = tokio::spawn(server.started.stop());
    let (mut answered, mut stored) = (1, 1);
    let status = loop {
        let ack = match stream.next().await {
            Ok(Some(produce_stream_response::Kind::Ack(ack))) => ack,
            Ok(other) => panic!("{other:?}"),
            Err(status) => break status,
        };
        assert_eq!(ack.correlation_id, answered);
        answered += 1;
        match (ack.response, ack.error) {
            (Some(response), None) => {
                assert_eq!(response.appends[0].base_offset, Some(stored));
                stored += 1;
            }
            // Read from the stream just before the stop, refused just after it.
            (None, Some(error)) => assert_eq!(error.reason, "SHUTTING_DOWN"),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(explained(&status).1, "SHUTTING_DOWN");
    drop((soon(sending).await.unwrap(), server.channel));
    soon(stopping).await.unwrap().unwrap();

    let server = over(directory.path()).await.unwrap();
    let latest = v1::list_offsets_request::At::Latest(true);
    let request = v1::ListOffsetsRequest { topic: "t".to_owned(), at: Some(latest), ..Default::default() };
    let ends = soon(server.admin().list_offsets(request)).await.unwrap().into_inner().offsets;
    assert_eq!(ends[0].offset, Some(stored), "what is stored was answered");
    drop(server.channel);
    soon(server.started.stop()).await.unwrap();
}
