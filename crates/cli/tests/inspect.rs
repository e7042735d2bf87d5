//! `rimstone inspect` on a directory that a server has left, whole and damaged.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{Server, run};

/// A directory with one topic of 30 records in one partition, stopped in order.
fn left_behind() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let server = Server::start(&data);
    server.ok(&["topic", "create", "visits"]);
    for round in 0..3 {
        let lines: String = (0..10).map(|line| format!("key-{line} value-{round}-{line}\n")).collect();
        server.ok_with_input(&["produce", "visits", "--key-field", "1", "--compression", "none"], &lines);
    }
    server.stop();
    (directory, data)
}

fn inspect(data: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut all = vec!["inspect", "--data", data.to_str().unwrap()];
    all.extend(arguments);
    run(&all)
}

fn shown(data: &Path, arguments: &[&str]) -> String {
    let (code, out, err) = inspect(data, arguments);
    assert_eq!(code, 0, "{arguments:?}: {err}");
    out
}

/// The segment file of the topic that holds records.
fn segment(data: &Path) -> PathBuf {
    let topics = fs::read_dir(data.join("topics")).unwrap().map(|entry| entry.unwrap().path());
    let ours = topics.filter(|topic| !topic.ends_with("00000000-0000-0000-0000-000000000001"));
    let partition = ours.last().unwrap().join("0");
    partition.join("00000000000000000000.log")
}

#[test]
fn everything_that_lies_there_is_shown_by_name() {
    let (_directory, data) = left_behind();
    let summary = shown(&data, &[]);
    assert!(summary.contains("stopped cleanly") && summary.contains("visits/0"), "{summary}");
    let row = summary.lines().find(|line| line.starts_with("visits/0")).unwrap();
    assert_eq!(row.split_whitespace().take(4).collect::<Vec<_>>(), ["visits/0", "0", "30", "1"]);

    let segments = shown(&data, &["segments", "visits"]);
    let row = segments.lines().nth(1).unwrap();
    let fields: Vec<_> = row.split_whitespace().collect();
    assert_eq!((fields[1], fields[2], fields[4]), ("0", "30", "30"), "{row}");

    let frames = shown(&data, &["frames", "visits/0", "--records"]);
    assert_eq!(frames.matches(" key \"key-").count(), 30, "{frames}");
    assert!(frames.contains("key \"key-9\" value \"key-9 value-2-9\""), "{frames}");
    assert!(frames.contains("sequence 0"), "{frames}");
    let brief = shown(&data, &["frames", "visits/0"]);
    assert!(!brief.contains("value-2-9") && brief.contains("batch 0..="), "{brief}");

    assert!(shown(&data, &["index", "visits/0"]).contains("up to"));
    let snapshot = shown(&data, &["snapshot", "visits/0"]);
    assert_eq!(snapshot.lines().filter(|line| line.starts_with("visits/0   30")).count(), 3, "{snapshot}");
    let witness = shown(&data, &["witness"]);
    let row = witness.lines().find(|line| line.starts_with("visits/0")).unwrap();
    assert_eq!(row.split_whitespace().nth(1), Some("30"));

    let catalog = shown(&data, &["catalog"]);
    assert!(catalog.contains("\"key\":\"topic:visits\""), "{catalog}");
    let (code, _, err) = inspect(&data, &["segments", "nothing"]);
    assert_eq!(code, 3, "{err}");
    let (code, _, err) = inspect(&data, &["frames", "visits/0", "--segment", "7"]);
    assert_eq!(code, 3, "{err}");
    let (code, _, err) = inspect(Path::new("/nowhere"), &[]);
    assert_eq!(code, 3, "{err}");
}

#[test]
fn verify_tells_damage_from_a_torn_tail_and_from_a_cache() {
    let (_directory, data) = left_behind();
    let path = segment(&data);
    let whole = fs::read(&path).unwrap();
    let verified = shown(&data, &["--verify"]);
    assert!(verified.contains("visits/0: 30 records in"), "{verified}");

    // Behind the attested end: a torn tail.
    let mut torn = whole.clone();
    torn.extend_from_slice(&[7; 100]);
    fs::write(&path, &torn).unwrap();
    let (code, _, err) = inspect(&data, &["--verify"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("100 bytes are no frame") && err.contains("nothing attests it"), "{err}");

    // Every byte of a record counts: find one, and flip it.
    let value = whole.windows(9).position(|bytes| bytes == b"value-1-4").unwrap();
    let mut rotten = whole.clone();
    rotten[value] ^= 1;
    fs::write(&path, &rotten).unwrap();
    let (code, out, err) = inspect(&data, &["--verify"]);
    assert_eq!(code, 6, "{err}");
    assert!(out.contains("visits/0: DAMAGED: segment 0") && out.contains("__catalog/0: "), "{out}");

    // Cut short: what the witness attests is not there.
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let (code, out, _) = inspect(&data, &["--verify"]);
    assert_eq!(code, 6);
    assert!(out.contains("everything up to offset 30 was durable"), "{out}");

    // An index is only a cache.
    fs::write(&path, &whole).unwrap();
    fs::remove_file(path.with_extension("idx")).unwrap();
    assert!(shown(&data, &["--verify"]).contains("visits/0: 30 records"));
    assert!(shown(&data, &["index", "visits/0"]).contains("none"));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(path, to).unwrap();
        }
    }
}

/// A seal attests what lies before it, where nothing else is left that does.
#[test]
fn verify_believes_a_seal() {
    let home = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/v1/clean/data");
    let data = home.path().join("data");
    copy(&golden, &data);
    fs::remove_file(data.join("witness")).unwrap();
    let partition = data.join("topics/00000000-0000-0000-0000-00000000601d/0");
    for later in ["00000000000000000020", "00000000000000000030"] {
        fs::remove_file(partition.join(later).with_extension("log")).unwrap();
    }
    // The last record before the seal, which has 112 bytes.
    let path = partition.join("00000000000000000010.log");
    let mut content = fs::read(&path).unwrap();
    let at = content.len() - 112 - 2;
    content[at] ^= 1;
    fs::write(&path, &content).unwrap();
    let (code, out, err) = inspect(&data, &["--verify"]);
    assert_eq!(code, 6, "{out}{err}");
    assert!(out.contains("DAMAGED: segment 10") && out.contains("offsets 18 to 19"), "{out}");
    let frames = shown(&data, &["frames", "00000000-0000-0000-0000-00000000601d/0"]);
    assert!(frames.contains("next offset 20, durable 10@"), "{frames}");
}
