//! Lines to produce, each with its key and its number: a real access log, or made up.

use std::path::PathBuf;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rimstone_client::ProducerRecord;

use crate::workspace_root;

/// The header that carries the number of a line.
pub const NUMBER_HEADER: &str = "line";

/// One line of input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Counted from 1, as editors do.
    pub number: u64,
    /// Its first field.
    pub key: String,
    /// The whole line.
    pub value: String,
}

impl Line {
    /// The record that it becomes.
    pub fn record(&self) -> ProducerRecord {
        ProducerRecord::new(self.value.clone())
            .key(self.key.clone())
            .header(NUMBER_HEADER, self.number.to_string())
    }
}

/// Where the real log is: in the folder that `RIMSTONE_TEST_DATA` names, or in `../shared/data` seen from the
/// workspace. `None` if it is not there.
pub fn access_log_path() -> Option<PathBuf> {
    let folder = std::env::var_os("RIMSTONE_TEST_DATA")
        .map_or_else(|| workspace_root().join("../shared/data"), PathBuf::from);
    let path = folder.join("apache_access.log");
    path.is_file().then_some(path)
}

/// The lines of a text, keyed by their first field.
pub fn lines_of(text: &str) -> Vec<Line> {
    let lines = text.lines().zip(1..);
    lines
        .map(|(line, number)| Line {
            number,
            key: line.split(' ').next().unwrap_or_default().to_owned(),
            value: line.to_owned(),
        })
        .collect()
}

/// Made-up lines: few keys that come often and many that come rarely, as in a real log, and some lines that
/// repeat others.
pub fn made_up(lines: u64, seed: u64) -> Vec<Line> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut made: Vec<Line> = Vec::new();
    for number in 1..=lines {
        let spread: u32 = if random.random_bool(0.3) { 10 } else { 2_000 };
        let key = format!("client-{}", random.random_range(0..spread));
        let value = match made.last() {
            Some(last) if last.key == key => last.value.clone(),
            _ => format!("{key} {:x} {}", random.random::<u64>(), "x".repeat(random.random_range(0..200))),
        };
        made.push(Line { number, key, value });
    }
    made
}
