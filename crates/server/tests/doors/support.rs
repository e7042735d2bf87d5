//! A server to talk to, and words for what it says.

use std::{collections::HashMap, future::Future, time::Duration};

use bytes::Bytes;
use rimstone_proto::v1::{
    self, admin_service_client::AdminServiceClient, consume_service_client::ConsumeServiceClient,
    group_service_client::GroupServiceClient, lag_service_client::LagServiceClient,
    produce_service_client::ProduceServiceClient, replay_service_client::ReplayServiceClient,
};
use rimstone_record::{BatchBuilder, Compression, NewRecord, ProducerStamp};
use rimstone_server::{Config, StartedServer, load_config, start};
use rimstone_types::{Numbering, ProducerEpoch, ProducerId, Timestamp};
use tokio::time::timeout;
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

/// Everything here answers in milliseconds, on a loaded machine in seconds; this only keeps a broken test from hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a future resolves to, if it does.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("the test waited too long")
}

pub(crate) struct Server {
    pub(crate) started: StartedServer,
    pub(crate) channel: Channel,
}

/// Settings of a server for tests, and some others.
pub(crate) fn config(settings: &[(&str, &str)]) -> Config {
    let base = [
        ("server.grpc_address", "127.0.0.1:0"),
        ("server.web_address", "127.0.0.1:0"),
        ("server.shutdown_deadline", "30s"),
        ("storage.backend", "memory"),
    ];
    let overrides: Vec<_> =
        base.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    load_config(None, &overrides).unwrap()
}

/// A server with some settings other than the defaults.
pub(crate) async fn server_with(settings: &[(&str, &str)]) -> Server {
    let started = soon(start(config(settings))).await.unwrap();
    let channel = connect(&started).await;
    Server { started, channel }
}

pub(crate) async fn server() -> Server {
    server_with(&[]).await
}

/// A connection of its own.
pub(crate) async fn connect(started: &StartedServer) -> Channel {
    let address = format!("http://{}", started.grpc_address());
    soon(Channel::from_shared(address).unwrap().connect()).await.unwrap()
}

impl Server {
    pub(crate) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    pub(crate) fn produce(&self) -> ProduceServiceClient<Channel> {
        ProduceServiceClient::new(self.channel.clone()).max_encoding_message_size(usize::MAX)
    }

    pub(crate) fn consume(&self) -> ConsumeServiceClient<Channel> {
        ConsumeServiceClient::new(self.channel.clone())
    }

    pub(crate) fn groups(&self) -> GroupServiceClient<Channel> {
        GroupServiceClient::new(self.channel.clone())
    }

    pub(crate) fn lag(&self) -> LagServiceClient<Channel> {
        LagServiceClient::new(self.channel.clone())
    }

    pub(crate) fn replay(&self) -> ReplayServiceClient<Channel> {
        ReplayServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn topic(&self, name: &str, partitions: u32) {
        let request = v1::CreateTopicRequest { topic: name.to_owned(), partitions, ..Default::default() };
        soon(self.admin().create_topic(request)).await.unwrap();
    }

    /// Appends records with these values to partition 0, in one request.
    pub(crate) async fn fill(&self, topic: &str, values: &[&str]) -> v1::ProduceResponse {
        let records = values.iter().map(|value| record(None, value)).collect();
        soon(self.produce().produce(to_partition_0(topic, records))).await.unwrap().into_inner()
    }
}

pub(crate) fn record(key: Option<&str>, value: &str) -> v1::Record {
    v1::Record {
        key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        ..Default::default()
    }
}

pub(crate) fn to_partition_0(topic: &str, mut records: Vec<v1::Record>) -> v1::ProduceRequest {
    for record in &mut records {
        record.partition = Some(0);
    }
    v1::ProduceRequest { topic: topic.to_owned(), records, ..Default::default() }
}

/// A batch of `values`, numbered densely from `sequence` on if a producer is given.
pub(crate) fn batch(values: &[&str], producer: Option<(u64, u32)>, sequence: u32) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::Lz4);
    if let Some((id, epoch)) = producer {
        builder = builder.producer(ProducerStamp {
            id: ProducerId::new(id).unwrap(),
            epoch: ProducerEpoch::new(epoch.into()).unwrap(),
            base: sequence,
            numbering: Numbering::Dense,
        });
    }
    for value in values {
        let value = Some(Bytes::copy_from_slice(value.as_bytes()));
        builder.push(&NewRecord { value, timestamp: Timestamp(1_000), ..Default::default() }).unwrap();
    }
    builder.build().bytes().clone()
}

pub(crate) fn partition_batch(partition: u32, data: Bytes) -> v1::PartitionBatch {
    v1::PartitionBatch {
        partition,
        batch: Some(v1::EncodedBatch { data, append_time_ms: 0 }),
        expected_end: None,
    }
}

pub(crate) fn batches(topic: &str, batches: Vec<v1::PartitionBatch>) -> v1::ProduceRequest {
    v1::ProduceRequest { topic: topic.to_owned(), batches, ..Default::default() }
}

/// Code, reason and metadata of an error; every error must have them.
pub(crate) fn explained(status: &Status) -> (Code, String, HashMap<String, String>) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo on {status:?}"));
    assert_eq!(info.domain, "rimstone.v1");
    assert!(!status.message().is_empty(), "{status:?}");
    (status.code(), info.reason, info.metadata)
}

/// Asserts what an error is, and gives its metadata.
#[track_caller]
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    outcome: Result<T, Status>,
    code: Code,
    reason: &str,
) -> HashMap<String, String> {
    let status = outcome.expect_err("it should have been refused");
    let (got_code, got_reason, metadata) = explained(&status);
    assert_eq!((got_code, got_reason.as_str()), (code, reason), "{status:?}");
    metadata
}

#[track_caller]
pub(crate) fn assert_item(
    error: Option<&v1::ItemError>,
    code: Code,
    reason: &str,
) -> HashMap<String, String> {
    let error = error.expect("it should have failed");
    assert_eq!((error.code, error.reason.as_str()), (code as i32, reason), "{error:?}");
    assert!(!error.message.is_empty());
    error.metadata.clone()
}

pub(crate) fn pairs(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
