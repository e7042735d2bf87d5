//! The bare generated clients, as a program without a client library has them, and words for their errors.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
};

use bytes::Bytes;
use rimstone_proto::v1::{
    self, admin_service_client::AdminServiceClient, consume_service_client::ConsumeServiceClient,
    group_service_client::GroupServiceClient, lag_service_client::LagServiceClient,
    produce_service_client::ProduceServiceClient, replay_service_client::ReplayServiceClient,
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{server::Server, wait::soon};

/// A connection of one's own, and the services on it.
#[derive(Debug, Clone)]
pub struct Calls {
    /// Topics, settings, offsets.
    pub admin: AdminServiceClient<Channel>,
    /// Writing.
    pub produce: ProduceServiceClient<Channel>,
    /// Reading.
    pub consume: ConsumeServiceClient<Channel>,
    /// Committed offsets and members.
    pub groups: GroupServiceClient<Channel>,
    /// How far behind groups are.
    pub lag: LagServiceClient<Channel>,
    /// Moving offsets.
    pub replay: ReplayServiceClient<Channel>,
}

impl Calls {
    /// Connects.
    ///
    /// # Panics
    /// If the server cannot be reached.
    pub async fn connect(server: &Server) -> Self {
        let address = format!("http://{}", server.grpc());
        let endpoint = Channel::from_shared(address).expect("the address of a server is an address");
        let channel = soon(endpoint.connect()).await.expect("a server that is ready can be reached");
        Self {
            admin: AdminServiceClient::new(channel.clone()),
            produce: ProduceServiceClient::new(channel.clone()),
            consume: ConsumeServiceClient::new(channel.clone()),
            groups: GroupServiceClient::new(channel.clone()),
            lag: LagServiceClient::new(channel.clone()),
            replay: ReplayServiceClient::new(channel),
        }
    }

    /// Makes a topic.
    ///
    /// # Panics
    /// If that is refused.
    pub async fn create_topic(&mut self, topic: &str, partitions: u32, settings: &[(&str, &str)]) {
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let request = v1::CreateTopicRequest { topic: topic.to_owned(), partitions, settings };
        soon(self.admin.create_topic(request)).await.expect("a new topic can be made");
    }

    /// Sends a request; what the only partition of its records answered.
    ///
    /// # Errors
    /// What the server said.
    ///
    /// # Panics
    /// If the records were for more than one partition.
    pub async fn append(&mut self, request: v1::ProduceRequest) -> Result<v1::PartitionAppend, Status> {
        let mut answer = soon(self.produce.produce(request)).await?.into_inner();
        assert_eq!(answer.appends.len(), 1, "one partition was written to");
        Ok(answer.appends.remove(0))
    }

    /// What a group has committed in a topic; partitions without a commit are left out.
    ///
    /// # Errors
    /// What the server said.
    pub async fn committed(&mut self, group: &str, topic: &str) -> Result<BTreeMap<u32, u64>, Status> {
        let request = v1::FetchOffsetsRequest { group: group.to_owned(), partitions: Vec::new() };
        let answer = soon(self.groups.fetch_offsets(request)).await?.into_inner();
        let of_topic = answer.offsets.into_iter().filter(|offset| offset.topic == topic);
        Ok(of_topic.filter_map(|offset| Some((offset.partition, offset.offset?))).collect())
    }

    /// How far behind a group is, partition by partition.
    ///
    /// # Errors
    /// What the server said.
    ///
    /// # Panics
    /// If a partition cannot tell.
    pub async fn lag_of(&mut self, group: &str) -> Result<Vec<v1::PartitionLag>, Status> {
        let request = v1::GetLagRequest { groups: vec![group.to_owned()], topics: Vec::new() };
        let answer = soon(self.lag.get_lag(request)).await?.into_inner();
        for partition in &answer.partitions {
            assert_eq!(partition.error, None, "{partition:?}");
        }
        Ok(answer.partitions)
    }

    /// Reads partition 0 of a topic from an offset on, without waiting.
    ///
    /// # Errors
    /// What the server said.
    ///
    /// # Panics
    /// If the answer is not for one partition.
    pub async fn fetch(&mut self, topic: &str, offset: u64) -> Result<v1::PartitionRecords, Status> {
        let request = v1::FetchRequest {
            topic: topic.to_owned(),
            partitions: vec![v1::FetchPartition { partition: 0, offset, max_bytes: 0 }],
            ..Default::default()
        };
        let mut answer = soon(self.consume.fetch(request)).await?.into_inner();
        assert_eq!(answer.partitions.len(), 1, "one partition was asked for");
        Ok(answer.partitions.remove(0))
    }
}

/// A record with this key and value.
pub fn record(key: Option<&str>, value: impl Into<Bytes>) -> v1::Record {
    let key = key.map(|key| Bytes::copy_from_slice(key.as_bytes()));
    v1::Record { key, value: Some(value.into()), ..Default::default() }
}

/// A request that writes these values, without keys, to partition 0.
pub fn to_partition_0<V: Into<Bytes>>(
    topic: &str,
    values: impl IntoIterator<Item = V>,
) -> v1::ProduceRequest {
    let records = values.into_iter().map(|value| v1::Record { partition: Some(0), ..record(None, value) });
    v1::ProduceRequest { topic: topic.to_owned(), records: records.collect(), ..Default::default() }
}

/// A request that hands this encoded batch to partition 0.
pub fn batch_to_partition_0(topic: &str, data: impl Into<Bytes>) -> v1::ProduceRequest {
    let batch = v1::EncodedBatch { data: data.into(), append_time_ms: 0 };
    let batches = vec![v1::PartitionBatch { partition: 0, batch: Some(batch), expected_end: None }];
    v1::ProduceRequest { topic: topic.to_owned(), batches, ..Default::default() }
}

/// An error as every door of the server must tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// The stable reason.
    pub reason: String,
    /// The numbers that explain it.
    pub metadata: HashMap<String, String>,
}

impl Refusal {
    /// From the status of a whole call.
    ///
    /// # Panics
    /// If it does not explain itself.
    pub fn of_status(status: &Status) -> Self {
        let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo on {status:?}"));
        assert_eq!(info.domain, rimstone_proto::ERROR_DOMAIN);
        assert!(!status.message().is_empty(), "{status:?} has no message");
        Self { code: status.code(), reason: info.reason, metadata: info.metadata }
    }

    /// From the error of one item in an answer.
    ///
    /// # Panics
    /// If it does not explain itself.
    pub fn of_item(item: &v1::ItemError) -> Self {
        assert!(!item.message.is_empty(), "{item:?} has no message");
        Self { code: item.code.into(), reason: item.reason.clone(), metadata: item.metadata.clone() }
    }

    /// From an append that must have been refused, as a whole call or within its answer.
    ///
    /// # Panics
    /// If it was taken.
    pub fn of_append(outcome: Result<v1::PartitionAppend, Status>) -> Self {
        match outcome {
            Err(status) => Self::of_status(&status),
            Ok(append) => match &append.error {
                Some(error) => Self::of_item(error),
                None => panic!("it should have been refused: {append:?}"),
            },
        }
    }

    /// A number from the metadata.
    ///
    /// # Panics
    /// If it is not there.
    pub fn number(&self, key: &str) -> u64 {
        let value = self.metadata.get(key).unwrap_or_else(|| panic!("no {key} in {self:?}"));
        value.parse().unwrap_or_else(|_| panic!("{key} is no number in {self:?}"))
    }
}

/// Asserts that a call was refused in this way, and gives the refusal.
///
/// # Panics
/// If it was not.
#[track_caller]
pub fn assert_refused<T: Debug>(outcome: Result<T, Status>, code: Code, reason: &str) -> Refusal {
    let refusal = Refusal::of_status(&outcome.expect_err("it should have been refused"));
    assert_eq!((refusal.code, refusal.reason.as_str()), (code, reason), "{refusal:?}");
    refusal
}

/// The same for an append, which may be refused within its answer.
///
/// # Panics
/// If it was not.
#[track_caller]
pub fn assert_append_refused(
    outcome: Result<v1::PartitionAppend, Status>,
    code: Code,
    reason: &str,
) -> Refusal {
    let refusal = Refusal::of_append(outcome);
    assert_eq!((refusal.code, refusal.reason.as_str()), (code, reason), "{refusal:?}");
    refusal
}
