//! Directories that released format versions wrote are read by this build, and are still what they were.

use super::*;
use crate::{CHECKPOINTS_FILE, Checkpoints, DataDirectory, WITNESS_FILE, Witness};

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

pub(super) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn nobody_has_changed_them() {
    let mut seen = 0;
    for version in std::fs::read_dir(root()).unwrap() {
        let version = version.unwrap().path();
        for line in std::fs::read_to_string(version.join("HASHES")).unwrap().lines() {
            let (hash, name) = line.split_once(' ').unwrap();
            let content = std::fs::read(version.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(format!("{:08x}", crc32fast::hash(&content)), hash, "{name}");
            seen += 1;
        }
    }
    assert!(seen > 20);
}

#[test]
fn they_hold_what_they_held() {
    let mut seen = 0;
    for version in std::fs::read_dir(root()).unwrap() {
        for case in std::fs::read_dir(version.unwrap().path()).unwrap() {
            let case = case.unwrap().path();
            if !case.is_dir() {
                continue;
            }
            let name = case.file_name().unwrap().to_string_lossy().into_owned();
            let copy = tempfile::tempdir().unwrap();
            copy_tree(&case, copy.path());
            let data = DataDirectory::open(&copy.path().join("data"), uuid::Uuid::from_u128(1), Timestamp(0))
                .unwrap();
            let is_clean = ["clean", "trimmed", "codecs"].contains(&name.as_str());
            assert_eq!(data.was_clean(), is_clean, "{name}");
            let (_, known) = Witness::open(&data.path().join(WITNESS_FILE)).unwrap();
            let id = data.partitions().unwrap()[0];
            let options =
                OpenOptions { clean: data.was_clean(), witness: known.get(&id).copied(), now: Timestamp(1) };
            let (_, mut checkpoints) = Checkpoints::open(&data.path().join(CHECKPOINTS_FILE)).unwrap();
            let checkpoint = checkpoints.remove(&id);
            assert_eq!(checkpoint.is_some(), name == "checkpoint");
            let (log, report) =
                Log::open_from(&data.partition_path(id), id, config(1200), options, checkpoint).unwrap();
            assert_eq!(report.from_caches, data.was_clean(), "{name}");
            assert_eq!(report.torn_bytes > 0, name == "torn", "{name}");
            assert_eq!(report.superseded > 0, name == "superseded", "{name}");
            let expected = std::fs::read_to_string(case.join("expected.txt")).unwrap();
            let (found, damage) = read_nullable(&log);
            let found: String = found.iter().map(|(offset, value)| format!("{offset} {value}\n")).collect();
            assert_eq!(found, expected, "{name}");
            if name == "checkpoint" {
                assert!(report.scanned_bytes < 2000, "a checkpoint that counts: {report:?}");
                assert_eq!(report.rewritten_bytes, 182, "{report:?}");
            }
            let passed_by = log.segments().iter().map(|segment| segment.header.passed_by).max();
            let expected = match name.as_str() {
                "passed-by" => 1,
                "given-up" => u32::MAX,
                _ => 0,
            };
            assert_eq!(passed_by, Some(expected), "{name}");
            let rotten = ["rotten", "passed-by"].contains(&name.as_str());
            let lost = if rotten { vec![(offset(0), offset(2))] } else { Vec::new() };
            assert_eq!(damage, lost, "{name}");
            assert_eq!(report.damaged_ranges, 0, "{name}: a start does not look at bodies");
            let given_up = crate::damage::accepted_losses(&data.partition_path(id)).unwrap();
            let ranges: Vec<_> = given_up.iter().map(|loss| (loss.from, loss.until)).collect();
            let lost = if name == "given-up" { vec![(offset(0), offset(2))] } else { Vec::new() };
            assert_eq!(ranges, lost, "{name}");
            // By request: the last number that is there is known, whatever became of the rest.
            let named = log.producer(ProducerId::new(ProducerId::NAMED_BIT | 9).unwrap()).unwrap();
            assert!(named.last().is_some_and(|last| last >= 18), "{name}: {:?}", named.last());
            seen += 1;
        }
    }
    assert!(seen >= 11);
}

/// Every compression that the format has, and what is no record, was really there.
#[test]
fn the_codecs_are_all_there() {
    let data = root().join("v1-codecs/codecs/data");
    let id = crate::list_partitions(&data).unwrap()[0];
    let path = crate::partition_path(&data, id);
    let mut seen = std::collections::BTreeMap::<_, usize>::new();
    for base in crate::inspect::segments(&path).unwrap() {
        let view = crate::inspect::SegmentView::open(&path, base).unwrap();
        view.each(|item| {
            let crate::inspect::Item::Batch { header, .. } = item else { return };
            let kind = match (header.is_control(), header.is_append_time()) {
                (true, _) => "control",
                (_, true) => "append time",
                _ => header.compression().name(),
            };
            *seen.entry(kind).or_default() += 1;
        })
        .unwrap();
    }
    let kinds = [
        ("none", 20),
        ("lz4", 1),
        ("gzip", 1),
        ("snappy", 2),
        ("zstd", 1),
        ("append time", 1),
        ("control", 1),
    ];
    assert_eq!(seen, kinds.into_iter().collect());
}

fn read_nullable(log: &Log) -> (Vec<(Offset, String)>, Damage) {
    let ends = log.reader().ends();
    let (mut from, mut found, mut damage) = (ends.start, Vec::new(), Vec::new());
    while from < ends.durable {
        match log.reader().read(ReadRange { from, until: ends.durable, bytes: 400 }, Access::Blocking) {
            Ok(batches) => {
                for stored in batches {
                    if stored.batch.header().is_control() {
                        from = from.max(stored.batch.next_offset());
                        continue;
                    }
                    for record in stored.batch.records(&crate::inspect::LIMITS).unwrap().map(Result::unwrap) {
                        let value = record
                            .value
                            .map_or("null".to_owned(), |value| String::from_utf8(value.to_vec()).unwrap());
                        if record.offset >= from {
                            found.push((record.offset, value));
                        }
                    }
                    from = from.max(stored.batch.next_offset());
                }
            }
            Err(LogReadError::Damaged { from: first, until, .. }) => {
                damage.push((first, until));
                from = until;
            }
            Err(error) => panic!("{error}"),
        }
    }
    (found, damage)
}
