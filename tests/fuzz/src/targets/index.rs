//! Indexes that are whole by their checks and lie about places: what is read must be what is read without them.
//!
//! Their counts of records are believed if their checks are right: nothing else has them without reading the segment.

use std::path::Path;

use rimstone_log::{Access, DataDirectory, Log, OpenOptions, WITNESS_FILE, Witness, inspect};
use rimstone_types::{Offset, Timestamp};
use uuid::Uuid;

use super::{
    directory::{CASES, temporary, write},
    recovery::config,
};
use crate::{Random, repair};

type Answers = Vec<String>;

/// One input. Taken for valid: at least one of the mutated indexes is read.
pub fn run(random: &mut Random) -> bool {
    let whole: Vec<_> = CASES.iter().filter(|case| case.name.ends_with("/clean")).collect();
    let case = *random.one_of(&whole);
    let mut files = case.files.clone();
    let names: Vec<String> = files.keys().filter(|name| name.ends_with(".idx")).cloned().collect();
    let good = temporary();
    write(&files, good.path());
    for _ in 0..1 + random.below(names.len()) {
        let content = files.get_mut(random.one_of(&names)).expect("an index of the case");
        random.mutate(content);
        if let Some(version) = content.get_mut(8..12) {
            // Another one is refused, and nothing is looked up.
            version.copy_from_slice(&[0, 1, 0, 0]);
        }
        repair::index(random, content);
    }
    let bad = temporary();
    write(&files, bad.path());
    let (wanted, _) = answers(good.path());
    let (found, read) = answers(bad.path());
    assert_eq!(found, wanted);
    read
}

fn answers(path: &Path) -> (Answers, bool) {
    let data =
        DataDirectory::open(path, Uuid::from_u128(1), Timestamp(0)).expect("only indexes were mutated");
    let (_, known) = Witness::open(&data.path().join(WITNESS_FILE)).expect("only indexes were mutated");
    let id = data.partitions().expect("they can be listed")[0];
    let place = data.partition_path(id);
    let bases = inspect::segments(&place).expect("they can be listed");
    let read = bases.iter().any(|base| matches!(inspect::index(&place, *base), Ok(Some(_))));
    let options =
        OpenOptions { clean: data.was_clean(), witness: known.get(&id).copied(), now: Timestamp(1) };
    let (log, _) = Log::open(&place, id, config(9), options).expect("an index is no reason not to open");
    let reader = log.reader();
    let ends = reader.ends();
    let mut found = Vec::new();
    for from in ends.start.get()..ends.durable.get() {
        let from = Offset::new(from).expect("an offset of the log");
        let _ = reader.append_time_at(from, ends.durable, Access::Blocking);
        let _ = reader.count(ends.start, from, Access::Blocking);
        let _ = reader.find_time(Timestamp(from.get() as i64), ends.durable, Access::Blocking);
        let range = rimstone_log::ReadRange { from, until: ends.durable, bytes: 1 };
        let first = reader.read(range, Access::Blocking).expect("nothing is damaged");
        found.push(format!("{from}: {:?}", first.first().map(|stored| stored.batch.base_offset())));
    }
    (found, read)
}
