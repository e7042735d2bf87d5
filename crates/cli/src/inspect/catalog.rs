//! The catalog, as records and as names of topics.

use std::{
    collections::HashMap,
    io::{self, Write as _},
};

use bytes::Bytes;
use rimstone_log::inspect::{self as log, Item, SegmentView};
use rimstone_types::{Offset, PartitionId, PartitionIndex, TopicId};
use serde_json::{Value, json};

use crate::{
    exit::{Failure, Outcome},
    inspect::data::Data,
};

const PARTITION: PartitionId = PartitionId { topic: TopicId::CATALOG, partition: PartitionIndex(0) };

/// A record of the catalog: its offset, its key, its value.
type Entry = (Offset, Option<Bytes>, Option<Bytes>);

/// Every record that can be read, in order.
fn entries(data: &Data) -> Result<Vec<Entry>, Failure> {
    let directory = data.directory(PARTITION);
    let mut entries = Vec::new();
    for base in log::segments(&directory)? {
        let view = SegmentView::open(&directory, base).map_err(|error| Failure::failed(error.to_string()))?;
        view.each(|item| {
            let Item::Batch { batch: Ok(batch), .. } = item else { return };
            let Ok(records) = batch.records(&log::LIMITS) else { return };
            entries.extend(records.flatten().map(|record| (record.offset, record.key, record.value)));
        })?;
    }
    Ok(entries)
}

/// The name of each topic that there is.
pub(crate) fn names(data: &Data) -> HashMap<TopicId, String> {
    // A catalog that cannot be read is no reason not to show the rest, by id.
    names_in(&entries(data).unwrap_or_default())
}

fn names_in(entries: &[Entry]) -> HashMap<TopicId, String> {
    let mut ids: HashMap<String, TopicId> = HashMap::new();
    for (_, key, value) in entries {
        let key = key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
        let Some(name) = key.and_then(|key| key.strip_prefix("topic:")) else { continue };
        let value = value.as_deref().and_then(|value| serde_json::from_slice::<Value>(value).ok());
        let id = value.and_then(|value| serde_json::from_value(value["id"].clone()).ok());
        match id {
            Some(id) => ids.insert(name.to_owned(), id),
            None => ids.remove(name),
        };
    }
    ids.into_iter().map(|(name, id)| (id, name)).collect()
}

/// Prints every record as a JSON object on one line.
pub(crate) fn print(data: &Data) -> Outcome {
    let mut out = io::stdout().lock();
    for (offset, key, value) in entries(data)? {
        let value = value.map(|value| serde_json::from_slice(&value).unwrap_or_else(|_| text(&value)));
        let line = json!({ "offset": offset.get(), "key": key.as_deref().map(text), "value": value });
        writeln!(out, "{line}")?;
    }
    Ok(out.flush()?)
}

fn text(bytes: &[u8]) -> Value {
    String::from_utf8_lossy(bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_on_a_name_counts() {
        let id = |number: u128| TopicId(uuid::Uuid::from_u128(number));
        let record = |key: &str, value: Option<String>| {
            (Offset::ZERO, Some(Bytes::from(key.to_owned())), value.map(Bytes::from))
        };
        let topic = |number| Some(format!("{{\"v\":1,\"id\":\"{}\"}}", id(number)));
        let entries = [
            record("server", Some("{}".to_owned())),
            record("topic:kept", topic(1)),
            record("topic:gone", topic(2)),
            record("topic:gone", None),
            record("topic:again", topic(3)),
            record("topic:again", None),
            record("topic:again", topic(4)),
        ];
        let names = names_in(&entries);
        assert_eq!(names, [(id(1), "kept".to_owned()), (id(4), "again".to_owned())].into());
    }
}
