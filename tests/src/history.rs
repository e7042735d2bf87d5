//! What was read back, and what must be true of it: every line once, in its place, with its own bytes.

use std::collections::{BTreeMap, HashMap};

use rimstone_client::{End, Reader, Received, Start};

use crate::{
    input::{Line, NUMBER_HEADER},
    wait::soon,
};

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Its partition.
    pub partition: u32,
    /// Its offset there.
    pub offset: u64,
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// The number of its line, from the header.
    pub number: u64,
}

impl From<Received> for Read {
    fn from(record: Received) -> Self {
        let text = |bytes: Option<bytes::Bytes>| {
            String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("tests write text")
        };
        let number = record.headers.iter().find(|header| header.key == NUMBER_HEADER);
        let number = text(number.and_then(|header| header.value.clone()));
        Self {
            partition: record.partition.0,
            offset: record.offset.get(),
            key: text(record.key),
            value: text(record.value),
            number: number.parse().unwrap_or_else(|_| panic!("{number:?} is no line number")),
        }
    }
}

/// Everything that a topic holds now.
///
/// # Panics
/// If it cannot be read.
pub async fn read_all(endpoint: &str, topic: &str) -> Vec<Read> {
    let reader = Reader::builder(endpoint, topic).start(Start::Earliest).end(End::Latest);
    let mut reader = reader.build().expect("the address of a server is an address");
    let mut records = Vec::new();
    while let Some(record) = soon(reader.next()).await.expect("a topic that is served can be read") {
        records.push(record.into());
    }
    records
}

/// Asserts that exactly these lines are there: each once, with its own key and value; offsets without gaps
/// from 0 on; a key in one partition only, and there in the order of the lines.
///
/// # Panics
/// If not, with what is wrong.
pub fn assert_exactly(records: &[Read], lines: &[Line]) {
    let mut seen: HashMap<u64, &Read> = HashMap::new();
    for record in records {
        if let Some(other) = seen.insert(record.number, record) {
            panic!("line {} is there twice: {other:?} and {record:?}", record.number);
        }
    }
    let missing: Vec<_> = lines.iter().filter(|line| !seen.contains_key(&line.number)).collect();
    assert!(missing.is_empty(), "{} lines are missing, the first: {:?}", missing.len(), missing[0]);
    assert_eq!(records.len(), lines.len(), "there are lines that nobody wrote");
    for line in lines {
        let record = seen[&line.number];
        assert_eq!((&record.key, &record.value), (&line.key, &line.value), "line {}", line.number);
    }
    assert_in_order(records);
}

/// Asserts that offsets have no gaps, that each key is in one partition, and there in the order of the lines.
///
/// # Panics
/// If not, with what is wrong.
pub fn assert_in_order(records: &[Read]) {
    let mut partitions: BTreeMap<u32, Vec<&Read>> = BTreeMap::new();
    for record in records {
        partitions.entry(record.partition).or_default().push(record);
    }
    let mut homes: HashMap<&str, u32> = HashMap::new();
    for (partition, records) in &mut partitions {
        records.sort_by_key(|record| record.offset);
        let mut last: HashMap<&str, &Read> = HashMap::new();
        for (record, expected) in records.iter().zip(0..) {
            assert_eq!(record.offset, expected, "partition {partition} has a gap or a double");
            let home = *homes.entry(&record.key).or_insert(*partition);
            assert_eq!(home, *partition, "key {} is in two partitions", record.key);
            if let Some(before) = last.insert(&record.key, record) {
                assert!(before.number < record.number, "out of order: {before:?} before {record:?}");
            }
        }
    }
}
