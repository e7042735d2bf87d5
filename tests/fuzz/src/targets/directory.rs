//! The golden directories as a corpus: in memory, written out mutated, one at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// A data directory, and what it holds.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its name below `tests/golden`.
    pub name: String,
    /// Files by their paths.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Offsets and values of all records that were ever written to it.
    pub expected: BTreeMap<u64, String>,
    /// Offsets of those that are there to be read.
    pub stays: BTreeSet<u64>,
}

/// All of them. Of those with the index of the last segment there is one more, with a checkpoint.
pub static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden");
    let mut cases = Vec::new();
    for version in list(&root) {
        for case in list(&version).into_iter().filter(|path| path.join("expected.txt").is_file()) {
            let mut files = BTreeMap::new();
            gather(&case.join("data"), "", &mut files);
            let expected = fs::read_to_string(case.join("expected.txt")).expect("it was there");
            let line = |line: &str| {
                line.split_once(' ').and_then(|(at, value)| Some((at.parse().ok()?, value.to_owned())))
            };
            let stays: BTreeMap<u64, String> = expected.lines().filter_map(line).collect();
            let end = stays.last_key_value().map_or(0, |(last, _)| last + 1);
            // Compaction has taken records away that a damaged directory may show again.
            let expected: BTreeMap<u64, String> = (0..end).map(|at| (at, written(at))).collect();
            assert!(stays.iter().all(|(at, value)| expected[at] == *value), "not what the generator writes");
            let name = case.strip_prefix(&root).expect("below the root").display().to_string();
            let stays = stays.into_keys().collect();
            let case = Case { name, files, expected, stays };
            cases.extend(with_checkpoint(&case));
            cases.push(case);
        }
    }
    assert!(cases.len() >= 15, "only {} golden directories in {}", cases.len(), root.display());
    cases
});

/// A file that is longer is a large one,
const SMALL: usize = 16 << 10;
/// of which so many bytes at each end are changed one by one; what is between is padding.
const ENDS: usize = 2 << 10;

/// How many bytes of a file are changed one by one.
pub fn places(content: &[u8]) -> u64 {
    if content.len() > SMALL { 2 * ENDS as u64 } else { content.len() as u64 }
}

/// The position of one of those bytes.
pub fn place(content: &[u8], number: u64) -> usize {
    let at = number as usize;
    if content.len() > SMALL && at >= ENDS { content.len() - 2 * ENDS + at } else { at }
}

/// What the generator of the golden directories writes at an offset.
fn written(at: u64) -> String {
    let (serial, number) = (at / 2 + 1, at % 2);
    if serial % 7 == 0 && number == 1 { "null".to_owned() } else { format!("value {serial}.{number}") }
}

fn list(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn gather(path: &Path, prefix: &str, into: &mut BTreeMap<String, Vec<u8>>) {
    for entry in list(path) {
        let name = format!("{prefix}{}", entry.file_name().unwrap_or_default().to_string_lossy());
        if entry.is_dir() {
            gather(&entry, &format!("{name}/"), into);
        } else {
            into.insert(name, fs::read(&entry).expect("a golden file"));
        }
    }
}

/// The same stopped uncleanly, with a checkpoint in place of index and snapshot: made from their bytes by the tables of
/// `docs/format.md`.
fn with_checkpoint(case: &Case) -> Option<Case> {
    let (log, content) = case.files.iter().rfind(|(name, _)| name.ends_with(".log"))?;
    let stem = log.strip_suffix(".log")?;
    let index = case.files.get(&format!("{stem}.idx"))?;
    let next = u64::from_be_bytes(index.get(40..48)?.try_into().ok()?);
    let snapshot = case.files.get(&format!("{}{next:020}.producers", &stem[..stem.len() - 20]))?;
    let mut record = vec![0; 4];
    record.extend_from_slice(&content[16..36]);
    record.extend_from_slice(&content[40..48]);
    record.extend_from_slice(&index[24..32]);
    record.extend_from_slice(&content[12..16]);
    record.extend_from_slice(&index[32..36]);
    record.extend_from_slice(&index[40..92]);
    record.extend_from_slice(&snapshot[24..snapshot.len() - 4]);
    let length = (record.len() + 4) as u32;
    record[..4].copy_from_slice(&length.to_be_bytes());
    let check = crc32fast::hash(&record);
    record.extend_from_slice(&check.to_be_bytes());
    let mut file = b"RIMSTCKP\0\x01\0\0".to_vec();
    let check = crc32fast::hash(&file);
    file.extend_from_slice(&check.to_be_bytes());
    file.extend_from_slice(&record);
    let mut case = case.clone();
    case.name.push_str(" with a checkpoint");
    case.files.remove("clean");
    case.files.insert("checkpoints".to_owned(), file);
    Some(case)
}

/// A directory that is removed when it is dropped; in memory where the system has a place for that.
///
/// # Panics
/// If there is none to be had.
pub fn temporary() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary directory")
}

/// Writes files below a path.
///
/// # Panics
/// If they cannot be written.
pub fn write(files: &BTreeMap<String, Vec<u8>>, to: &Path) {
    for (name, content) in files {
        let path = to.join(name);
        fs::create_dir_all(path.parent().expect("below the directory")).expect("a directory");
        fs::write(path, content).expect("a file");
    }
}
