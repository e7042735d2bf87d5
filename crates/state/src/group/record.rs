//! What `__consumer_offsets` says: keys in text, values JSON with a version, no value deletes.
//!
//! | key | value |
//! |---|---|
//! | `group:<group>` | [`GroupValue`] |
//! | `topics:<group>` | [`TopicsValue`] |
//! | `member:<group>:<member>` | [`MemberValue`] |
//! | `target:<group>:<member>` | [`TargetValue`] |
//! | `assignment:<group>:<member>` | [`AssignmentValue`] |
//! | `offset:<group>:<topic>:<partition>` | [`OffsetValue`] |
//! | `epochs` | [`EpochsValue`], one in each shard |
//!
//! Names contain no colon, so a key reads in one way only. The names follow KIP-848 (ConsumerGroupMetadata,
//! MemberMetadata, TargetAssignment, CurrentMemberAssignment).

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use rimstone_types::{
    GroupEpoch, GroupName, InstanceId, InvalidName, MemberId, Offset, PartitionIndex, Timestamp, TopicId,
    TopicName,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{assign::Assignor, partitions::Partitions};

/// The version of the values that this server writes, and the only one that it understands.
const VERSION: u32 = 1;

/// The one key that names no group: it has no colon, so it is not one that does.
const EPOCHS_KEY: &str = "epochs";

/// A record of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupRecord {
    /// A group's epoch. `None`: the group has been deleted.
    Group {
        /// The group.
        group: GroupName,
        /// `None` deletes.
        value: Option<GroupValue>,
    },
    /// What a group's targets were made from: apart, because it changes less often than the epoch. `None`: no
    /// topics.
    Topics {
        /// The group.
        group: GroupName,
        /// `None` deletes.
        value: Option<TopicsValue>,
    },
    /// Who a member is and what it wants to read. `None`: it is a member no more.
    Member {
        /// The group.
        group: GroupName,
        /// The member.
        member: MemberId,
        /// `None` deletes.
        value: Option<MemberValue>,
    },
    /// What the target gives a member.
    Target {
        /// The group.
        group: GroupName,
        /// The member.
        member: MemberId,
        /// `None` deletes.
        value: Option<TargetValue>,
    },
    /// What a member holds.
    Assignment {
        /// The group.
        group: GroupName,
        /// The member.
        member: MemberId,
        /// `None` deletes.
        value: Option<AssignmentValue>,
    },
    /// A committed offset.
    Offset {
        /// The group.
        group: GroupName,
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionIndex,
        /// `None` deletes.
        value: Option<OffsetValue>,
    },
    /// Which epochs groups that are no more have used.
    Epochs {
        /// `None`: none.
        value: Option<EpochsValue>,
    },
}

/// How many partitions a topic had when the target was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicCount {
    /// The topic.
    pub id: TopicId,
    /// How many partitions.
    pub partitions: u32,
    /// The partitions from this index on were made while members were subscribed to the topic: to the group
    /// all of their records are new. Values of before this was kept have none.
    #[serde(default = "no_index")]
    pub later_from: u32,
}

fn no_index() -> u32 {
    u32::MAX
}

/// What is kept of a group beside its members and offsets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupValue {
    /// Raised by any change of members, subscriptions or partitions; the targets are of this epoch.
    pub epoch: GroupEpoch,
    /// What made the targets.
    pub assignor: Assignor,
}

/// What the targets of a group were made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicsValue {
    /// The topics that members are subscribed to and that existed then.
    pub topics: BTreeMap<TopicName, TopicCount>,
}

/// Who a member is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberValue {
    /// Set for a static member.
    pub instance_id: Option<InstanceId>,
    /// What the member says of itself.
    pub client_id: String,
    /// Where it connects from.
    pub host: String,
    /// The topics that it wants to read.
    pub topics: BTreeSet<TopicName>,
    /// And those whose names begin with this.
    pub topic_prefix: Option<String>,
    /// Its vote; `None`: it does not choose.
    pub assignor: Option<Assignor>,
    /// Milliseconds.
    pub session_timeout_ms: u32,
    /// Milliseconds.
    pub max_poll_interval_ms: u32,
    /// Since when it is a member.
    pub joined_ms: Timestamp,
}

/// What the target gives a member.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TargetValue {
    /// No partition is in the targets of two members.
    pub partitions: Partitions,
}

/// What a member holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AssignmentValue {
    /// The epoch that the member had when this was written. A member with nothing to give back has the
    /// group's epoch, which may be later.
    pub epoch: GroupEpoch,
    /// The lowest epoch with which the member may come back (pushes may have been lost); accepted once.
    pub previous_epoch: GroupEpoch,
    /// What it reads.
    pub owned: Partitions,
    /// What it has been asked to give back and has not confirmed.
    pub stopping: Partitions,
}

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetValue {
    /// The topic that was committed to: if the topic of this name is another by now, nothing is committed.
    pub topic_id: TopicId,
    /// The next offset to read.
    #[serde(deserialize_with = "checked_offset")]
    pub offset: Offset,
    /// Of the leader that the record before it was read from, where the reader said so.
    pub leader_epoch: Option<u32>,
    /// For the reader's own use.
    pub metadata: String,
    /// By the server's clock.
    pub commit_time_ms: Timestamp,
}

/// Which epochs groups of the shard that are no more have used: a group that begins, perhaps under the name of one of
/// them, begins behind them, so that what a member of the earlier one says is not taken for the later one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EpochsValue {
    /// The highest of them.
    pub used: GroupEpoch,
}

/// A record that is not one of a shard.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Records of a compacted topic have keys.
    #[error("a record without a key")]
    NoKey,
    /// Keys are text.
    #[error("a key that is not UTF-8")]
    NotText,
    /// An unknown kind, or the wrong number of parts.
    #[error(
        "the key {key:?} is none of group:G, topics:G, member:G:M, target:G:M, assignment:G:M, offset:G:T:P, epochs"
    )]
    Key {
        /// The key, shortened.
        key: String,
    },
    /// A name in the key.
    #[error("in the key {key:?}: {source}")]
    Name {
        /// The key, shortened.
        key: String,
        /// Which name, and why.
        source: InvalidName,
    },
    /// A value that does not read.
    #[error("the value of {key:?} does not read: {source}")]
    Value {
        /// The key, shortened.
        key: String,
        /// What and where.
        source: serde_json::Error,
    },
    /// A value written by a later server.
    #[error("the value of {key:?} has version {found}; this server knows {VERSION}")]
    Version {
        /// The key, shortened.
        key: String,
        /// The version of the value.
        found: u32,
    },
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    v: u32,
    #[serde(flatten)]
    value: &'a T,
}

#[derive(Deserialize)]
struct OnlyVersion {
    v: u32,
}

fn checked_offset<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Offset, D::Error> {
    Offset::new(u64::deserialize(from)?).map_err(serde::de::Error::custom)
}

fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(&Versioned { v: VERSION, value }).expect("plain structs with string keys")
}

/// A key as errors show it.
fn shown(key: &str) -> String {
    key.chars().take(120).collect()
}

fn from_json<T: DeserializeOwned>(key: &str, value: Option<&[u8]>) -> Result<Option<T>, RecordError> {
    let Some(value) = value else { return Ok(None) };
    let unread = |source| RecordError::Value { key: shown(key), source };
    let OnlyVersion { v } = serde_json::from_slice(value).map_err(unread)?;
    if v != VERSION {
        return Err(RecordError::Version { key: shown(key), found: v });
    }
    serde_json::from_slice(value).map(Some).map_err(unread)
}

fn name<T: FromStr<Err = InvalidName>>(key: &str, part: &str) -> Result<T, RecordError> {
    part.parse().map_err(|source| RecordError::Name { key: shown(key), source })
}

/// How every value of this server's begins.
const BEGINS: &[u8] = b"{\"v\":1";

impl GroupRecord {
    /// Refuses a record whose value a later server has written. Whatever else is wrong with it, [`Self::decode`] says.
    ///
    /// # Errors
    /// [`RecordError::Version`].
    pub fn check_version(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<(), RecordError> {
        let Some(value) = value else { return Ok(()) };
        // Nearly always; a number does not go on with one of these.
        if value.starts_with(BEGINS) && matches!(value.get(BEGINS.len()), Some(b',' | b'}')) {
            return Ok(());
        }
        match serde_json::from_slice(value) {
            Ok(OnlyVersion { v }) if v > VERSION => {
                let key = shown(&String::from_utf8_lossy(key.unwrap_or_default()));
                Err(RecordError::Version { key, found: v })
            }
            _ => Ok(()),
        }
    }

    /// The group that the record belongs to; `None`: it is the shard's own.
    pub fn group(&self) -> Option<&GroupName> {
        match self {
            Self::Group { group, .. }
            | Self::Topics { group, .. }
            | Self::Member { group, .. }
            | Self::Target { group, .. }
            | Self::Assignment { group, .. }
            | Self::Offset { group, .. } => Some(group),
            Self::Epochs { .. } => None,
        }
    }

    /// The key in `__consumer_offsets`.
    pub fn key(&self) -> String {
        match self {
            Self::Group { group, .. } => format!("group:{group}"),
            Self::Topics { group, .. } => format!("topics:{group}"),
            Self::Member { group, member, .. } => format!("member:{group}:{member}"),
            Self::Target { group, member, .. } => format!("target:{group}:{member}"),
            Self::Assignment { group, member, .. } => format!("assignment:{group}:{member}"),
            Self::Offset { group, topic, partition, .. } => format!("offset:{group}:{topic}:{partition}"),
            Self::Epochs { .. } => EPOCHS_KEY.to_owned(),
        }
    }

    /// Key and value as they are written; no value deletes.
    pub fn encode(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        let value = match self {
            Self::Group { value, .. } => value.as_ref().map(to_json),
            Self::Topics { value, .. } => value.as_ref().map(to_json),
            Self::Member { value, .. } => value.as_ref().map(to_json),
            Self::Target { value, .. } => value.as_ref().map(to_json),
            Self::Assignment { value, .. } => value.as_ref().map(to_json),
            Self::Offset { value, .. } => value.as_ref().map(to_json),
            Self::Epochs { value } => value.as_ref().map(to_json),
        };
        (self.key().into_bytes(), value)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`] for what this server did not write.
    pub fn decode(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Self, RecordError> {
        let key = std::str::from_utf8(key.ok_or(RecordError::NoKey)?).map_err(|_| RecordError::NotText)?;
        let unknown = || RecordError::Key { key: shown(key) };
        if key == EPOCHS_KEY {
            return Ok(Self::Epochs { value: from_json(key, value)? });
        }
        let (kind, rest) = key.split_once(':').ok_or_else(unknown)?;
        // A part too many stays in the last part, where the colon is not allowed.
        let two = || rest.split_once(':').ok_or_else(unknown);
        Ok(match kind {
            "group" => Self::Group { group: name(key, rest)?, value: from_json(key, value)? },
            "topics" => Self::Topics { group: name(key, rest)?, value: from_json(key, value)? },
            "member" => {
                let (group, member) = two()?;
                let (group, member) = (name(key, group)?, name(key, member)?);
                Self::Member { group, member, value: from_json(key, value)? }
            }
            "target" => {
                let (group, member) = two()?;
                let (group, member) = (name(key, group)?, name(key, member)?);
                Self::Target { group, member, value: from_json(key, value)? }
            }
            "assignment" => {
                let (group, member) = two()?;
                let (group, member) = (name(key, group)?, name(key, member)?);
                Self::Assignment { group, member, value: from_json(key, value)? }
            }
            "offset" => {
                let (group, rest) = two()?;
                let (topic, index) = rest.split_once(':').ok_or_else(unknown)?;
                let partition = PartitionIndex(index.parse().map_err(|_| unknown())?);
                let (group, topic) = (name(key, group)?, name(key, topic)?);
                let record = Self::Offset { group, topic, partition, value: from_json(key, value)? };
                // "+1" and "01" read as numbers too, and would be other keys for the same offset.
                if record.key() != key {
                    return Err(unknown());
                }
                record
            }
            _ => return Err(unknown()),
        })
    }
}
