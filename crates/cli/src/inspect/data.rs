//! A data directory, its partitions, and the names that its catalog gives to topics.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use rimstone_log::inspect as log;
use rimstone_types::{PartitionId, PartitionIndex, TopicId};
use uuid::Uuid;

use crate::{
    exit::{Exit, Failure},
    inspect::catalog,
};

/// A data directory.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) path: PathBuf,
    pub(crate) server_id: Uuid,
    pub(crate) partitions: Vec<PartitionId>,
    names: HashMap<TopicId, String>,
}

impl Data {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let (server_id, partitions) = log::data_directory(path)?;
        let mut data = Self { path: path.to_owned(), server_id, partitions, names: HashMap::new() };
        data.names = catalog::names(&data);
        data.names.insert(TopicId::CATALOG, "__catalog".to_owned());
        Ok(data)
    }

    pub(crate) fn directory(&self, partition: PartitionId) -> PathBuf {
        log::partition_path(&self.path, partition)
    }

    /// `topic/partition`, by name where the catalog knows one.
    pub(crate) fn name(&self, partition: PartitionId) -> String {
        format!("{}/{}", self.topic(partition.topic), partition.partition)
    }

    pub(crate) fn topic(&self, topic: TopicId) -> String {
        self.names.get(&topic).cloned().unwrap_or_else(|| topic.to_string())
    }

    /// The partitions that `TOPIC` or `TOPIC/PARTITION` means.
    pub(crate) fn find(&self, place: &str) -> Result<Vec<PartitionId>, Failure> {
        let (topic, partition) = match place.rsplit_once('/') {
            Some((topic, number)) => {
                let number = number.parse().map_err(|_| {
                    Failure::usage(format!("{place:?} is not TOPIC/PARTITION, for example visits/0"))
                })?;
                (topic, Some(PartitionIndex(number)))
            }
            None => (place, None),
        };
        let is_meant = |id: &&PartitionId| {
            (self.names.get(&id.topic).is_some_and(|name| name == topic) || id.topic.to_string() == topic)
                && partition.is_none_or(|partition| id.partition == partition)
        };
        let found: Vec<_> = self.partitions.iter().filter(is_meant).copied().collect();
        if found.is_empty() {
            return Err(Failure::new(Exit::NotFound, format!("{} holds no {place}", self.path.display()))
                .hint("see what there is with: rimstone inspect"));
        }
        Ok(found)
    }
}
