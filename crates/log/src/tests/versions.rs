//! A build refuses what a later one has written, whatever kind of file it is in, before it writes anything.

use std::collections::BTreeMap;

use super::{golden::copy_tree, *};
use crate::{CHECKPOINTS_FILE, Checkpoints, DataDirectory, DirectoryError};

fn contents(path: &Path, into: &mut BTreeMap<std::path::PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            into.insert(path.clone(), Vec::new());
            contents(&path, into);
        } else {
            into.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
}

/// Where the check is of each kind of file that has a version.
fn check_at(path: &Path, length: usize) -> Option<usize> {
    let name = path.file_name()?.to_str()?;
    Some(match (name, path.extension().and_then(|suffix| suffix.to_str())) {
        ("rimstone.meta", _) => 36,
        ("witness", _) => 508,
        ("checkpoints", _) => 12,
        (_, Some("log")) => 68,
        (_, Some("idx")) => 92,
        (_, Some("producers")) => length - 4,
        _ => return None,
    })
}

fn open_data(path: &Path) -> Result<DataDirectory, DirectoryError> {
    DataDirectory::open(path, uuid::Uuid::from_u128(1), Timestamp(0))
}

#[test]
fn newer_data_is_refused_and_not_touched() {
    let home = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/v1/clean/data");
    copy_tree(&golden, home.path());
    drop(Checkpoints::open(&home.path().join(CHECKPOINTS_FILE)).unwrap());
    let mut good = BTreeMap::new();
    contents(home.path(), &mut good);
    let mut kinds = std::collections::BTreeSet::new();
    for (path, content) in &good {
        let Some(check_at) = check_at(path, content.len()) else { continue };
        for (byte, value, what) in [(9, 2, "version 2"), (8, 1, "version 257"), (11, 1, "flags 0x0001")] {
            let mut newer = content.clone();
            newer[byte] = value;
            // Rot is not the future: whatever becomes of it, it is not refused as newer.
            std::fs::write(path, &newer).unwrap();
            let copy = tempfile::tempdir().unwrap();
            copy_tree(home.path(), copy.path());
            let opened = open_data(copy.path());
            let refused = matches!(opened, Err(DirectoryError::Newer { .. } | DirectoryError::Flags { .. }));
            assert!(!refused, "{}: {opened:?}", path.display());

            let check = crc32fast::hash(&newer[..check_at]);
            newer[check_at..check_at + 4].copy_from_slice(&check.to_be_bytes());
            std::fs::write(path, &newer).unwrap();
            let mut before = BTreeMap::new();
            contents(home.path(), &mut before);
            let error = open_data(home.path()).unwrap_err().to_string();
            let name = path.file_name().unwrap().to_str().unwrap();
            for part in [name, what, "version 1"] {
                assert!(error.contains(part), "{part:?} is not in {error:?}");
            }
            let mut after = BTreeMap::new();
            contents(home.path(), &mut after);
            assert!(before == after, "{name} was refused, and something was changed");
        }
        std::fs::write(path, content).unwrap();
        kinds.insert(path.extension().or(path.file_name()).unwrap().to_owned());
    }
    assert_eq!(kinds.len(), 6, "{kinds:?}");
    open_data(home.path()).unwrap();
}
