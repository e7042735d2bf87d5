//! Where each partition begins and ends: fixed once, when reading begins.

use std::collections::BTreeMap;

use rimstone_types::{Offset, PartitionIndex};

use crate::{
    admin::{Admin, OffsetAt, OffsetQuery},
    error::{ClientError, Code, reason},
    groups::{Groups, StartPolicy, TopicPartition, start_needed},
    reader::{End, Reader, Start},
};

/// Where a partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) next: Offset,
    pub(crate) end: Option<Offset>,
    /// Something of it has been handed out, so nothing before `next` may be left out any more.
    pub(crate) begun: bool,
}

impl Cursor {
    pub(crate) fn is_done(&self) -> bool {
        self.end.is_some_and(|end| self.next >= end)
    }
}

/// Where each partition begins and ends.
pub(crate) async fn find(reader: &Reader) -> Result<BTreeMap<PartitionIndex, Cursor>, ClientError> {
    let admin = Admin::over(reader.connection.clone());
    let mut asked = reader.partitions.clone();
    if let Start::Offsets(offsets) = &reader.start {
        asked = offsets.keys().copied().collect();
    }
    let find = async |query| {
        let found = admin.list_offsets(&reader.topic, &asked, query).await?;
        Ok::<_, ClientError>(by_partition(found))
    };
    let earliest = find(OffsetQuery::Earliest).await?;
    let latest = find(OffsetQuery::Latest).await?;
    let starts = match reader.start {
        Start::Time(time) => find(OffsetQuery::At(time)).await?,
        _ => BTreeMap::new(),
    };
    let ends = match reader.end {
        End::Time(time) => find(OffsetQuery::At(time)).await?,
        _ => BTreeMap::new(),
    };
    let committed = match &reader.start {
        Start::Committed { group, .. } => committed(reader, group, latest.keys()).await?,
        _ => BTreeMap::new(),
    };
    let mut cursors = BTreeMap::new();
    for (partition, last) in &latest {
        let first = earliest.get(partition).copied().flatten().unwrap_or(Offset::ZERO);
        let last = last.unwrap_or(first);
        let explicit = |offset: Offset| in_range(reader, *partition, offset, first, last);
        let next = match &reader.start {
            Start::Earliest => first,
            Start::Latest => last,
            Start::Offset(offset) => explicit(*offset)?,
            Start::Time(_) => starts.get(partition).copied().flatten().unwrap_or(last),
            Start::Offsets(offsets) => explicit(offsets.get(partition).copied().unwrap_or(first))?,
            Start::Committed { group, otherwise } => {
                let committed = committed.get(partition).filter(|at| (first..=last).contains(*at));
                match (committed, otherwise) {
                    (Some(at), _) => *at,
                    (None, StartPolicy::Earliest) => first,
                    (None, StartPolicy::Latest) => last,
                    (None, StartPolicy::Error) => return Err(start_needed(group, &reader.topic, *partition)),
                }
            }
        };
        let end = match reader.end {
            End::Never => None,
            End::Latest => Some(last),
            End::Offset(offset) => Some(offset),
            End::Time(_) => Some(ends.get(partition).copied().flatten().unwrap_or(last)),
        };
        cursors.insert(*partition, Cursor { next, end, begun: false });
    }
    Ok(cursors)
}

fn in_range(
    reader: &Reader,
    partition: PartitionIndex,
    offset: Offset,
    first: Offset,
    last: Offset,
) -> Result<Offset, ClientError> {
    if (first..=last).contains(&offset) {
        return Ok(offset);
    }
    let message = format!(
        "offset {offset} is outside topic {}, partition {partition}, which holds {first} to {last}",
        reader.topic
    );
    Err(ClientError::new(Code::OutOfRange, reason::OFFSET_OUT_OF_RANGE, message)
        .with("topic", &reader.topic)
        .with("partition", partition)
        .with("log_start_offset", first)
        .with("high_watermark", last))
}

/// What is committed under the group's name; a group that does not exist has committed nothing.
async fn committed(
    reader: &Reader,
    group: &str,
    partitions: impl Iterator<Item = &PartitionIndex>,
) -> Result<BTreeMap<PartitionIndex, Offset>, ClientError> {
    let places: Vec<_> = partitions.map(|partition| TopicPartition::new(&reader.topic, *partition)).collect();
    let groups = Groups::over(reader.connection.clone());
    let found = match groups.offsets(group, &places).await {
        Err(error) if error.is(reason::GROUP_NOT_FOUND) => Vec::new(),
        found => found?,
    };
    Ok(found.into_iter().filter_map(|found| Some((found.at.partition, found.offset?))).collect())
}

fn by_partition(found: Vec<OffsetAt>) -> BTreeMap<PartitionIndex, Option<Offset>> {
    found.into_iter().map(|at| (at.partition, at.offset)).collect()
}
