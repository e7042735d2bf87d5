//! How far behind readers are, as the server knows it from the log itself.

use std::time::Duration;

use rimstone_proto::v1;
use rimstone_types::{Offset, PartitionIndex, Timestamp};

use crate::{admin::offset, call::call, connect::Connection, error::ClientError, groups::TopicPartition};

/// Lag at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    /// Per partition, in order of group, topic and partition.
    pub partitions: Vec<PartitionLag>,
    /// Per group and topic.
    pub topics: Vec<TopicLag>,
    /// When it was measured.
    pub measured: Timestamp,
}

/// How far a group is behind in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionLag {
    /// The group.
    pub group: String,
    /// Where.
    pub at: TopicPartition,
    /// The next offset to read; `None`: nothing is committed, and lag is counted from log start.
    pub committed: Option<Offset>,
    /// The first offset that is still there.
    pub log_start: Offset,
    /// The end that readers see.
    pub log_end: Offset,
    /// Records that are really there and not yet read.
    pub records: u64,
    /// The age of the first of them since its append; 0 when caught up.
    pub behind: Duration,
    /// Retention has overtaken the reader: records were lost to it.
    pub below_log_start: bool,
    /// Who owns the partition at the moment.
    pub owner: Option<Owner>,
    /// When the offset was committed; `None` where nothing is.
    pub commit_time: Option<Timestamp>,
    /// Why the partition cannot tell at the moment; the numbers are then 0.
    pub error: Option<ClientError>,
}

/// The member that owns a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its id.
    pub member_id: String,
    /// What it says of itself.
    pub client_id: String,
    /// Where it connects from.
    pub host: String,
}

/// How far a group is behind in a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicLag {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// Summed over partitions.
    pub records: u64,
    /// The highest of its partitions.
    pub behind: Duration,
    /// How many partitions.
    pub partitions: u32,
    /// How many of them cannot tell at the moment, and count for nothing in the sums.
    pub unknown: u32,
}

/// Asks for the lag of these groups (none named: all) in these topics (none named: all).
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use rimstone_client::{Connection, lag};
///
/// let connection = Connection::new("127.0.0.1:9190")?;
/// for topic in lag(&connection, &["billing"], &[]).await?.topics {
///     println!("{} {}: {} records, {:?}", topic.group, topic.topic, topic.records, topic.behind);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Those of the connection; `GROUP_NOT_FOUND` and `TOPIC_NOT_FOUND` for a name that is not there. A group that has
/// committed nothing and has no partitions has no lines.
pub async fn lag(connection: &Connection, groups: &[&str], topics: &[&str]) -> Result<Lag, ClientError> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let request = v1::GetLagRequest { groups: owned(groups), topics: owned(topics) };
    let answer = call(connection, connection.lag().get_lag(request)).await?;
    let topics = answer.topics.into_iter().map(|topic| TopicLag {
        group: topic.group,
        topic: topic.topic,
        records: topic.lag_records,
        behind: Duration::from_millis(topic.lag_ms),
        partitions: topic.partitions,
        unknown: topic.unknown_partitions,
    });
    Ok(Lag {
        partitions: answer.partitions.into_iter().map(partition).collect::<Result<_, _>>()?,
        topics: topics.collect(),
        measured: Timestamp(answer.measured_ms),
    })
}

fn partition(message: v1::PartitionLag) -> Result<PartitionLag, ClientError> {
    let committed = message.committed_offset.map(offset).transpose()?;
    let owner = (!message.member_id.is_empty()).then_some(Owner {
        member_id: message.member_id,
        client_id: message.client_id,
        host: message.host,
    });
    Ok(PartitionLag {
        group: message.group,
        at: TopicPartition::new(&message.topic, PartitionIndex(message.partition)),
        committed,
        log_start: offset(message.log_start_offset)?,
        log_end: offset(message.log_end_offset)?,
        records: message.lag_records,
        behind: Duration::from_millis(message.lag_ms),
        below_log_start: message.below_log_start,
        owner,
        commit_time: committed.map(|_| Timestamp(message.commit_time_ms)),
        error: message.error.map(ClientError::from),
    })
}
