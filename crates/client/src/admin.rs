//! Topics, settings, offsets, producers: one method per call of `AdminService`, with types instead of
//! messages. Nothing is retried here: whoever asks sees what the server says.

use std::collections::BTreeMap;

use rimstone_proto::v1;
use rimstone_types::{ByteCount, LogEnds, Offset, PartitionIndex, Timestamp};
use tonic::{Response, Status};

use crate::{connect::Connection, error::ClientError};

/// The calls that administer a server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admin {
    connection: Connection,
}

/// A topic in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSummary {
    /// Its name.
    pub name: String,
    /// A UUID; also the name of its directory.
    pub id: String,
    /// How many partitions it has.
    pub partitions: u32,
    /// It belongs to the server.
    pub internal: bool,
    /// When it was made.
    pub created: Timestamp,
}

/// A topic, its partitions and its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicDetails {
    /// What a list shows of it.
    pub summary: TopicSummary,
    /// Its partitions, by number.
    pub partitions: Vec<Partition>,
    /// Its settings, defaults included.
    pub settings: Vec<Setting>,
}

/// A partition as the server sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Partition {
    /// Its number.
    pub partition: PartitionIndex,
    /// Its ends.
    pub ends: LogEnds,
    /// How many segments it has.
    pub segments: u32,
    /// Its size on disk.
    pub bytes: ByteCount,
    /// What is written and not yet known to be durable.
    pub undurable: ByteCount,
    /// How many producers are remembered.
    pub producers: u32,
    /// `serving`, or what is wrong.
    pub state: String,
    /// Share of the bytes of its sealed segments that compaction has not gone over; `None` if it is not compacted.
    pub dirty_ratio: Option<f64>,
    /// Segments that compaction passes by, by their first offsets, and why; the first few.
    pub compaction_obstacles: Vec<(Offset, String)>,
    /// Ranges of acknowledged offsets that are known to be damaged, oldest first; the first few.
    pub damaged: Vec<DamagedRange>,
    /// Ranges that were given up and whose damaged bytes are still kept, oldest first; the first few.
    pub accepted_losses: Vec<AcceptedLoss>,
    /// How many damaged ranges are known in all.
    pub damaged_ranges: u64,
    /// How many ranges were given up in all.
    pub accepted_loss_count: u64,
}

/// What of a partition is damaged, and what was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDamage {
    /// Oldest first; the first of them, if there are many.
    pub damaged: Vec<DamagedRange>,
    /// How many damaged ranges there are in all.
    pub damaged_ranges: u64,
    /// Oldest first; the first of them, if there are many.
    pub accepted_losses: Vec<AcceptedLoss>,
    /// How many there are in all.
    pub accepted_loss_count: u64,
}

/// Offsets whose records cannot be read, or several such ranges of one segment as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRange {
    /// The first of them.
    pub from: Offset,
    /// The first offset behind them.
    pub until: Offset,
    /// How many damaged ranges these are; what is sound between them is served.
    pub ranges: u64,
    /// How many of the offsets are damaged.
    pub offsets: u64,
    /// What was found, with file and position; of several, the first.
    pub reason: String,
}

/// Offsets that were given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedLoss {
    /// The first of them.
    pub from: Offset,
    /// The first offset behind them.
    pub until: Offset,
    /// How many of them are gone; the others were sound and are served.
    pub offsets: u64,
    /// The segment as it was, a file of the server's.
    pub kept_in: String,
    /// Its bytes.
    pub kept_bytes: ByteCount,
}

/// A setting of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// It is not set on this topic.
    pub is_default: bool,
    /// Unit, meaning and bounds.
    pub description: String,
}

/// What to change of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopicChange {
    /// Settings to set.
    pub set: Vec<(String, String)>,
    /// Settings to put back to their defaults.
    pub reset: Vec<String>,
    /// The new number of partitions, not smaller than before.
    pub partitions: Option<u32>,
}

/// Which offset to look up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetQuery {
    /// The first record that is there.
    Earliest,
    /// The end.
    Latest,
    /// The record with the highest time.
    MaxTime,
    /// The first record at or after this time, by the topic's time.
    At(Timestamp),
}

/// The answer for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetAt {
    /// The partition.
    pub partition: PartitionIndex,
    /// The offset; `None` where there is no such record (which is not the end).
    pub offset: Option<Offset>,
    /// The time of that record, for look-ups by time.
    pub time: Option<Timestamp>,
}

/// A producer that the server remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerDetails {
    /// Its name; `None` for one without.
    pub name: Option<String>,
    /// Its id.
    pub id: u64,
    /// Its epoch.
    pub epoch: u32,
    /// What it wrote, by partition.
    pub partitions: Vec<ProducerAt>,
}

/// What a producer wrote to one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerAt {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: PartitionIndex,
    /// The last sequence, or the last request number.
    pub last_sequence: u32,
    /// It numbers by request.
    pub by_request: bool,
    /// When its last batch was taken.
    pub last_append: Timestamp,
}

/// The server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerDetails {
    /// Its version.
    pub version: String,
    /// A UUID made when the data directory was made.
    pub id: String,
    /// Where its data is.
    pub data_directory: String,
    /// `syncfs`, `fdatasync` or `memory`.
    pub sync_method: String,
    /// Why this method.
    pub sync_reason: String,
    /// How many topics.
    pub topics: u32,
    /// How many partitions.
    pub partitions: u32,
    /// When it was started.
    pub started: Timestamp,
    /// Where gRPC listens.
    pub grpc_address: String,
    /// Where the web listens.
    pub web_address: String,
    /// `healthy`, or what is wrong.
    pub health: String,
}

impl Admin {
    /// The calls of the server at `endpoint` (`host:port` or `http://host:port`). Nothing is sent yet. Must be
    /// called within a Tokio runtime.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`](crate::Code::InvalidArgument) for an address that is not one.
    pub fn new(endpoint: &str) -> Result<Self, ClientError> {
        Ok(Self::over(Connection::new(endpoint)?))
    }

    /// The same over a connection that is there.
    pub fn over(connection: Connection) -> Self {
        Self { connection }
    }

    async fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        crate::call::call(&self.connection, call).await
    }

    /// Creates a topic; 0 partitions means the server's default.
    ///
    /// # Errors
    /// `TOPIC_EXISTS`, `INVALID_NAME`, `INVALID_SETTING`, `LIMIT_REACHED`.
    pub async fn create_topic(
        &self,
        topic: &str,
        partitions: u32,
        settings: &[(&str, &str)],
    ) -> Result<TopicSummary, ClientError> {
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let request = v1::CreateTopicRequest { topic: topic.to_owned(), partitions, settings };
        let answer = self.call(self.connection.admin().create_topic(request)).await?;
        Ok(summary(answer.topic.unwrap_or_default()))
    }

    /// All topics, by name; those of the server too if asked for.
    ///
    /// # Errors
    /// Only those of the connection.
    pub async fn list_topics(&self, include_internal: bool) -> Result<Vec<TopicSummary>, ClientError> {
        let request = v1::ListTopicsRequest { include_internal };
        let answer = self.call(self.connection.admin().list_topics(request)).await?;
        let mut topics: Vec<_> = answer.topics.into_iter().map(summary).collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// One topic with its partitions and settings.
    ///
    /// # Errors
    /// `TOPIC_NOT_FOUND`.
    pub async fn describe_topic(&self, topic: &str) -> Result<TopicDetails, ClientError> {
        let request = v1::DescribeTopicRequest { topic: topic.to_owned() };
        let answer = self.call(self.connection.admin().describe_topic(request)).await?;
        let partitions = answer.partitions.into_iter().map(partition).collect::<Result<_, _>>()?;
        Ok(TopicDetails {
            summary: summary(answer.topic.unwrap_or_default()),
            partitions,
            settings: answer.settings.into_iter().map(setting).collect(),
        })
    }

    /// Changes settings, adds partitions; answers all settings.
    ///
    /// # Errors
    /// `TOPIC_NOT_FOUND`, `INVALID_SETTING`, `INVALID_REQUEST`, `LIMIT_REACHED`.
    pub async fn alter_topic(&self, topic: &str, change: TopicChange) -> Result<Vec<Setting>, ClientError> {
        let request = v1::AlterTopicRequest {
            topic: topic.to_owned(),
            set: change.set.into_iter().collect(),
            reset: change.reset,
            partitions: change.partitions,
        };
        let answer = self.call(self.connection.admin().alter_topic(request)).await?;
        Ok(answer.settings.into_iter().map(setting).collect())
    }

    /// Deletes a topic and everything in it.
    ///
    /// # Errors
    /// `TOPIC_NOT_FOUND`.
    pub async fn delete_topic(&self, topic: &str) -> Result<(), ClientError> {
        let request = v1::DeleteTopicRequest { topic: topic.to_owned() };
        self.call(self.connection.admin().delete_topic(request)).await?;
        Ok(())
    }

    /// Moves the log start of partitions forward; answers the log starts as they are now.
    ///
    /// # Errors
    /// `TOPIC_NOT_FOUND`, `PARTITION_NOT_FOUND`, `OFFSET_OUT_OF_RANGE`.
    pub async fn delete_records(
        &self,
        topic: &str,
        before: &BTreeMap<PartitionIndex, Offset>,
    ) -> Result<BTreeMap<PartitionIndex, Offset>, ClientError> {
        let before_offsets = before.iter().map(|(partition, offset)| (partition.0, offset.get())).collect();
        let request = v1::DeleteRecordsRequest { topic: topic.to_owned(), before_offsets };
        let answer = self.call(self.connection.admin().delete_records(request)).await?;
        let starts = answer.log_start_offsets.into_iter();
        starts.map(|(partition, start)| Ok((PartitionIndex(partition), offset(start)?))).collect()
    }

    /// Looks up one offset in each of the partitions (none named: all), by number of the partition.
    ///
    /// # Errors
    /// `TOPIC_NOT_FOUND`, `PARTITION_NOT_FOUND`, or the first error of a partition.
    pub async fn list_offsets(
        &self,
        topic: &str,
        partitions: &[PartitionIndex],
        query: OffsetQuery,
    ) -> Result<Vec<OffsetAt>, ClientError> {
        use v1::list_offsets_request::At;
        let at = match query {
            OffsetQuery::Earliest => At::Earliest(true),
            OffsetQuery::Latest => At::Latest(true),
            OffsetQuery::MaxTime => At::MaxTime(true),
            OffsetQuery::At(time) => At::TimeMs(time.as_millis()),
        };
        let request = v1::ListOffsetsRequest {
            topic: topic.to_owned(),
            partitions: partitions.iter().map(|partition| partition.0).collect(),
            at: Some(at),
            read_uncommitted: false,
        };
        let answer = self.call(self.connection.admin().list_offsets(request)).await?;
        let mut offsets = Vec::with_capacity(answer.offsets.len());
        for found in answer.offsets {
            if let Some(error) = found.error {
                return Err(error.into());
            }
            offsets.push(OffsetAt {
                partition: PartitionIndex(found.partition),
                offset: found.offset.map(offset).transpose()?,
                time: found.time_ms.map(Timestamp),
            });
        }
        offsets.sort_by_key(|found| found.partition);
        Ok(offsets)
    }

    /// The producers that write to a topic, or the named producers of the server.
    ///
    /// # Errors
    /// `TOPIC_NOT_FOUND`.
    pub async fn list_producers(&self, topic: Option<&str>) -> Result<Vec<ProducerDetails>, ClientError> {
        let request = v1::ListProducersRequest { topic: topic.unwrap_or_default().to_owned() };
        let answer = self.call(self.connection.admin().list_producers(request)).await?;
        Ok(answer.producers.into_iter().map(producer).collect())
    }

    /// Forgets a named producer: its name, its epoch and its state in every partition.
    ///
    /// # Errors
    /// `PRODUCER_NOT_FOUND`.
    pub async fn delete_producer(&self, name: &str) -> Result<(), ClientError> {
        let request = v1::DeleteProducerRequest { name: name.to_owned() };
        self.call(self.connection.admin().delete_producer(request)).await?;
        Ok(())
    }

    /// The damage that is known in a partition, looked at once more on the disk, and what was given up.
    ///
    /// # Errors
    /// `TOPIC_NOT_FOUND`, `PARTITION_NOT_FOUND`.
    pub async fn find_damage(
        &self,
        topic: &str,
        partition: PartitionIndex,
    ) -> Result<FoundDamage, ClientError> {
        let request = v1::FindDamageRequest { topic: topic.to_owned(), partition: partition.0 };
        let answer = self.call(self.connection.admin().find_damage(request)).await?;
        Ok(FoundDamage {
            damaged: all(answer.damaged, damaged_range)?,
            damaged_ranges: answer.damaged_ranges,
            accepted_losses: all(answer.accepted_losses, accepted_loss)?,
            accepted_loss_count: answer.accepted_loss_count,
        })
    }

    /// Gives up for ever what is damaged from each of the first offsets up to, not including, the second; what is sound
    /// between damaged ranges stays.
    ///
    /// # Errors
    /// `DAMAGE_DIFFERS` unless they cover all that is damaged of their segments, and begin and end with it; `LOSS_REFUSED`, `TOPIC_NOT_FOUND`,
    /// `PARTITION_NOT_FOUND`, `PARTITION_POISONED`, `DISK_FULL`.
    pub async fn accept_loss(
        &self,
        topic: &str,
        partition: PartitionIndex,
        ranges: &[(Offset, Offset)],
    ) -> Result<Vec<AcceptedLoss>, ClientError> {
        let range = |(from, until): &(Offset, Offset)| v1::OffsetRange {
            from_offset: from.get(),
            until_offset: until.get(),
        };
        let request = v1::AcceptLossRequest {
            topic: topic.to_owned(),
            partition: partition.0,
            ranges: ranges.iter().map(range).collect(),
        };
        let answer = self.call(self.connection.admin().accept_loss(request)).await?;
        all(answer.accepted_losses, accepted_loss)
    }

    /// The server itself.
    ///
    /// # Errors
    /// Only those of the connection.
    pub async fn describe_server(&self) -> Result<ServerDetails, ClientError> {
        let answer = self.call(self.connection.admin().describe_server(v1::DescribeServerRequest {})).await?;
        Ok(ServerDetails {
            version: answer.version,
            id: answer.server_id,
            data_directory: answer.data_directory,
            sync_method: answer.sync_method,
            sync_reason: answer.sync_reason,
            topics: answer.topics,
            partitions: answer.partitions,
            started: Timestamp(answer.started_ms),
            grpc_address: answer.grpc_address,
            web_address: answer.web_address,
            health: answer.health,
        })
    }
}

pub(crate) fn offset(value: u64) -> Result<Offset, ClientError> {
    Offset::new(value)
        .map_err(|error| ClientError::protocol(format!("the server gave an offset that is not one: {error}")))
}

fn summary(info: v1::TopicInfo) -> TopicSummary {
    TopicSummary {
        name: info.name,
        id: info.id,
        partitions: info.partitions,
        internal: info.internal,
        created: Timestamp(info.created_ms),
    }
}

fn partition(info: v1::PartitionInfo) -> Result<Partition, ClientError> {
    let obstacles = info.compaction_obstacles.into_iter();
    let compaction_obstacles = obstacles
        .map(|obstacle| Ok((offset(obstacle.segment)?, obstacle.reason)))
        .collect::<Result<_, ClientError>>()?;
    Ok(Partition {
        partition: PartitionIndex(info.partition),
        ends: ends(info.ends.unwrap_or_default())?,
        segments: info.segments,
        bytes: ByteCount(info.bytes),
        undurable: ByteCount(info.undurable_bytes),
        producers: info.producers,
        state: info.state,
        dirty_ratio: info.dirty_ratio,
        compaction_obstacles,
        damaged: all(info.damaged, damaged_range)?,
        accepted_losses: all(info.accepted_losses, accepted_loss)?,
        damaged_ranges: info.damaged_ranges,
        accepted_loss_count: info.accepted_loss_count,
    })
}

fn all<A, B>(items: Vec<A>, read: impl Fn(A) -> Result<B, ClientError>) -> Result<Vec<B>, ClientError> {
    items.into_iter().map(read).collect()
}

fn damaged_range(range: v1::DamagedRange) -> Result<DamagedRange, ClientError> {
    let v1::DamagedRange { from_offset, until_offset, reason, ranges, damaged_offsets } = range;
    let (from, until) = (offset(from_offset)?, offset(until_offset)?);
    Ok(DamagedRange { from, until, ranges, offsets: damaged_offsets, reason })
}

fn accepted_loss(loss: v1::AcceptedLoss) -> Result<AcceptedLoss, ClientError> {
    Ok(AcceptedLoss {
        from: offset(loss.from_offset)?,
        until: offset(loss.until_offset)?,
        offsets: loss.lost_offsets,
        kept_in: loss.kept_in,
        kept_bytes: ByteCount(loss.kept_bytes),
    })
}

pub(crate) fn ends(ends: v1::LogEnds) -> Result<LogEnds, ClientError> {
    Ok(LogEnds {
        start: offset(ends.log_start_offset)?,
        stable: offset(ends.last_stable_offset)?,
        durable: offset(ends.high_watermark)?,
        written: offset(ends.log_end_offset)?,
    })
}

fn setting(setting: v1::TopicSetting) -> Setting {
    Setting {
        name: setting.name,
        value: setting.value,
        is_default: setting.is_default,
        description: setting.description,
    }
}

fn producer(info: v1::ProducerInfo) -> ProducerDetails {
    let partitions = info.partitions.into_iter().map(|at| {
        let place = at.partition.unwrap_or_default();
        ProducerAt {
            topic: place.topic,
            partition: PartitionIndex(place.partition),
            last_sequence: at.last_sequence,
            by_request: at.by_request,
            last_append: Timestamp(at.last_append_ms),
        }
    });
    ProducerDetails {
        name: (!info.name.is_empty()).then_some(info.name),
        id: info.producer_id,
        epoch: info.producer_epoch,
        partitions: partitions.collect(),
    }
}
