//! What this build writes for the records of the golden directories is, byte for byte, what is in them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../examples/golden/generate.rs"]
mod generate;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Kinds, and where they lie.
const KINDS: [(&str, &str); 6] = [
    ("plain", "v1"),
    ("compacted", "v1-compacted"),
    ("given-up", "v1-given-up"),
    ("codecs", "v1-codecs"),
    ("passed-by", "v1-passed-by"),
    ("checkpoint", "v1-checkpoint"),
];

fn files(root: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else {
            into.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
}

fn under(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    files(root, &mut found);
    found.into_iter().map(|(path, content)| (path.strip_prefix(root).unwrap().to_owned(), content)).collect()
}

/// Where a difference is none of the format: how many older snapshots are kept is no part of it, and what a codec makes
/// of the same bytes is its own (none differs today). One file of the first compacted directories was written before the
/// seal told when tombstones expire (52 bytes behind a frame header, 0 there).
fn may_differ(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name == "HASHES"
        || path.starts_with("v1-compacted/clean")
            && [format!("{:020}.log", 20), format!("{:020}.idx", 20)].contains(&name.to_owned())
}

#[test]
fn what_is_written_is_what_was_written() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let home = tempfile::tempdir().unwrap();
    let mut kept: Vec<_> = fs::read_dir(&golden).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    kept.sort();
    let mut made: Vec<_> = KINDS.iter().map(|(_, name)| std::ffi::OsString::from(name)).collect();
    made.sort();
    assert_eq!(kept, made, "each golden directory has its generator");
    for (kind, name) in KINDS {
        generate::run(&home.path().join(name), kind).unwrap();
    }
    let (written, kept) = (under(home.path()), under(&golden));
    for (path, content) in &written {
        let Some(before) = kept.get(path) else { panic!("{} is new", path.display()) };
        assert!(before == content || may_differ(path), "{} is other than it was", path.display());
    }
    let snapshot = |path: &Path| path.extension().is_some_and(|suffix| suffix == "producers");
    let missing = kept.keys().filter(|path| !written.contains_key(*path)).find(|path| !snapshot(path));
    assert_eq!(missing, None, "a file that is not written any more");
    assert!(written.len() > 100);
}
