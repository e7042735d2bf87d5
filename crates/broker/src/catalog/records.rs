//! What the catalog's records say: keys are `topic:<name>`, `deleted-topic:<id>`, `producer:<name>`, `producer-ids`
//! and `server`, values JSON with a version, no value deletes. Of each key only the last record counts: the others
//! may be gone.

use std::collections::{BTreeMap, BTreeSet};

use rimstone_types::{ProducerEpoch, ProducerId, ProducerName, Timestamp, TopicId, TopicName};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    settings::Overrides,
    topics::{CountSince, Topic},
};

/// The version of the values that this server writes, and the only one that it understands.
const VERSION: u32 = 1;

/// No topic has had more partitions than this; a number above it is not believed.
const PARTITIONS_MAX: u32 = 1_000_000;

/// A record of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CatalogRecord {
    /// `None`: deleted.
    Topic(TopicName, Option<TopicValue>),
    /// `Some`: what is left of its files is to be deleted. `None`: nothing is left.
    DeletedTopic(TopicId, Option<DeletedValue>),
    /// `None`: deleted.
    Producer(ProducerName, Option<ProducerValue>),
    ProducerIds(IdsValue),
    Server(ServerValue),
}

/// What is kept of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TopicValue {
    pub(crate) id: TopicId,
    pub(crate) created_ms: i64,
    pub(crate) settings: Overrides,
    pub(crate) counts: Vec<CountSince>,
}

/// A topic whose files may still be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeletedValue {}

/// What is kept of a named producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProducerValue {
    pub(crate) id: ProducerId,
    pub(crate) epoch: ProducerEpoch,
    /// The generation of the catalog that gave it this epoch.
    pub(crate) generation: u64,
}

/// Which ids may have been given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IdsValue {
    /// Unnamed ids below this one.
    pub(crate) unnamed_end: u64,
    /// Named ids below this one (without the bit that marks them).
    pub(crate) named_end: u64,
}

impl Default for IdsValue {
    fn default() -> Self {
        // 0 is what an unset field of a message says; nobody gets it.
        Self { unnamed_end: 1, named_end: 1 }
    }
}

/// The server's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServerValue {
    pub(crate) server_id: Uuid,
    pub(crate) created_ms: i64,
}

/// The fields of a value beside its version.
#[derive(Serialize)]
struct Versioned<'a, T> {
    v: u32,
    #[serde(flatten)]
    value: &'a T,
}

fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(&Versioned { v: VERSION, value }).expect("plain structs with string keys")
}

fn from_json<T: DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    let mut value: serde_json::Value = serde_json::from_slice(value).map_err(|error| error.to_string())?;
    let fields = value.as_object_mut().ok_or("the value is not a JSON object")?;
    match fields.remove("v").and_then(|version| version.as_u64()) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => return Err(format!("version {version} of the value; this server knows {VERSION}")),
        None => return Err("the value has no version".to_owned()),
    }
    serde_json::from_value(value).map_err(|error| error.to_string())
}

impl CatalogRecord {
    /// What is kept of a topic.
    pub(crate) fn topic(topic: &Topic) -> Self {
        let value = TopicValue {
            id: topic.id,
            created_ms: topic.created.as_millis(),
            settings: topic.overrides.clone(),
            counts: topic.counts.clone(),
        };
        Self::Topic(topic.name.clone(), Some(value))
    }

    pub(crate) fn encode(&self) -> (String, Option<Vec<u8>>) {
        match self {
            Self::Topic(name, value) => (format!("topic:{name}"), value.as_ref().map(to_json)),
            Self::DeletedTopic(id, value) => (format!("deleted-topic:{id}"), value.as_ref().map(to_json)),
            Self::Producer(name, value) => (format!("producer:{name}"), value.as_ref().map(to_json)),
            Self::ProducerIds(value) => ("producer-ids".to_owned(), Some(to_json(value))),
            Self::Server(value) => ("server".to_owned(), Some(to_json(value))),
        }
    }

    /// Understands a record, or says in words why not.
    pub(crate) fn decode(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Self, String> {
        let key = key.ok_or("a record without a key")?;
        let key = std::str::from_utf8(key).map_err(|_| "a key that is not UTF-8")?;
        let in_key = |error: String| format!("record {key:?}: {error}");
        let must = || value.ok_or_else(|| format!("record {key:?} cannot be deleted"));
        if let Some(name) = key.strip_prefix("topic:") {
            let name = name.parse::<TopicName>().map_err(|error| in_key(error.to_string()))?;
            let value = value.map(from_json::<TopicValue>).transpose().map_err(in_key)?;
            if value.as_ref().is_some_and(|value| !value.has_sound_counts()) {
                return Err(in_key("its numbers of partitions make no sense".to_owned()));
            }
            Ok(Self::Topic(name, value))
        } else if let Some(id) = key.strip_prefix("deleted-topic:") {
            let id = Uuid::parse_str(id).map_err(|error| in_key(error.to_string()))?;
            let value = value.map(from_json::<DeletedValue>).transpose().map_err(in_key)?;
            Ok(Self::DeletedTopic(TopicId(id), value))
        } else if let Some(name) = key.strip_prefix("producer:") {
            let name = name.parse::<ProducerName>().map_err(|error| in_key(error.to_string()))?;
            let value = value.map(from_json::<ProducerValue>).transpose().map_err(in_key)?;
            if value.is_some_and(|value| !value.is_sound()) {
                return Err(in_key("its id or epoch is outside the format".to_owned()));
            }
            Ok(Self::Producer(name, value))
        } else if key == "producer-ids" {
            let value: IdsValue = from_json(must()?).map_err(in_key)?;
            if value.unnamed_end.max(value.named_end) > ProducerId::NAMED_BIT {
                return Err(in_key("its ids are outside the format".to_owned()));
            }
            Ok(Self::ProducerIds(value))
        } else if key == "server" {
            Ok(Self::Server(from_json(must()?).map_err(in_key)?))
        } else {
            Err(format!("record {key:?} is of no known kind"))
        }
    }
}

/// The catalog's state: what all records say together.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) topics: BTreeMap<TopicName, TopicValue>,
    /// Topics that were deleted, whose directories may still be there.
    pub(crate) deleted_topics: BTreeSet<TopicId>,
    /// Those of them that are marked until their files are gone.
    pub(crate) deletions: BTreeSet<TopicId>,
    pub(crate) producers: BTreeMap<ProducerName, ProducerValue>,
    pub(crate) ids: IdsValue,
    pub(crate) server: Option<ServerValue>,
}

impl Loaded {
    pub(crate) fn apply(&mut self, record: CatalogRecord) {
        match record {
            CatalogRecord::Topic(name, Some(value)) => {
                let id = value.id;
                let before = self.topics.insert(name, value);
                self.deleted_topics.extend(before.map(|before| before.id).filter(|before| *before != id));
            }
            CatalogRecord::Topic(name, None) => {
                self.deleted_topics.extend(self.topics.remove(&name).map(|before| before.id));
            }
            CatalogRecord::DeletedTopic(id, Some(_)) => {
                self.deletions.insert(id);
            }
            CatalogRecord::DeletedTopic(id, None) => {
                self.deletions.remove(&id);
            }
            CatalogRecord::Producer(name, Some(value)) => drop(self.producers.insert(name, value)),
            CatalogRecord::Producer(name, None) => drop(self.producers.remove(&name)),
            CatalogRecord::ProducerIds(value) => self.ids = value,
            CatalogRecord::Server(value) => self.server = Some(value),
        }
    }
}

impl ProducerValue {
    /// Whether the numbers are ones that this server gives out; the format of batches has room for no others.
    fn is_sound(&self) -> bool {
        self.id.is_named() && self.id <= ProducerId::MAX && self.epoch <= ProducerEpoch::MAX
    }
}

impl TopicValue {
    pub(crate) fn created(&self) -> Timestamp {
        Timestamp(self.created_ms)
    }

    fn has_sound_counts(&self) -> bool {
        let sound = |since: &CountSince| (1..=PARTITIONS_MAX).contains(&since.count);
        !self.counts.is_empty() && self.counts.iter().all(sound)
    }

    /// How many partitions it has now.
    pub(crate) fn partitions(&self) -> u32 {
        self.counts.last().map_or(0, |since| since.count)
    }
}
