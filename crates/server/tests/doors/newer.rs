//! A server on data that a later one has written: it does not start, says what it found, and leaves every byte, every
//! name and every time of change as it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use rimstone_proto::v1;
use rimstone_record::{BatchBuilder, Compression, NewRecord};
use rimstone_server::StartError;
use rimstone_store::{
    Append, LocalOptions, LocalStorage, OpenMode, PartitionConfig, Storage as _, StoreClock, SyncPreference,
};
use rimstone_types::{ByteCount, PartitionId, PartitionIndex, Timestamp, TopicId};

use crate::{local::over, support::soon};

type Tree = BTreeMap<PathBuf, (SystemTime, Option<Vec<u8>>)>;

fn look(path: &Path, into: &mut Tree) {
    let metadata = fs::symlink_metadata(path).unwrap();
    let content = metadata.is_file().then(|| fs::read(path).unwrap());
    into.insert(path.to_owned(), (metadata.modified().unwrap(), content));
    if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            look(&entry.unwrap().path(), into);
        }
    }
}

/// What the server says of the directory, which is as it was before.
async fn refused(directory: &Path, what: &str) -> String {
    let (mut before, mut after) = (Tree::new(), Tree::new());
    look(directory, &mut before);
    let error = match over(directory).await {
        Err(error) => error,
        Ok(server) => {
            soon(server.started.stop()).await.unwrap();
            panic!("{what}: it started");
        }
    };
    look(directory, &mut after);
    for (path, was) in &before {
        assert!(after.get(path) == Some(was), "{what}: {} was changed", path.display());
    }
    for path in after.keys() {
        assert!(before.contains_key(path), "{what}: {} was made", path.display());
    }
    assert!(matches!(error, StartError::Storage { .. }), "{what}: {error}");
    error.to_string()
}

/// A directory with every kind of file, stopped in order.
async fn filled() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let server = over(directory.path()).await.unwrap();
    server.topic("t", 1).await;
    server.fill("t", &["a", "b"]).await;
    let init = v1::InitProducerRequest { name: "loader".to_owned(), topics: Vec::new() };
    soon(server.produce().init_producer(init)).await.unwrap();
    let offset = v1::OffsetCommit { topic: "t".to_owned(), offset: Some(1), ..Default::default() };
    let commit =
        v1::CommitOffsetsRequest { group: "g".to_owned(), offsets: vec![offset], ..Default::default() };
    soon(server.groups().commit_offsets(commit)).await.unwrap();
    drop(server.channel);
    soon(server.started.stop()).await.unwrap();
    directory
}

/// A record, put behind those of an own topic of the server by somebody else than the server; stopped in order or not.
async fn put(directory: &Path, id: PartitionId, key: &str, value: &str, clean: bool) {
    let options = LocalOptions {
        directory: directory.to_owned(),
        disk_reserve: ByteCount(0),
        sync: SyncPreference::Auto,
        producers: Default::default(),
        clock: StoreClock(Arc::new(|| Timestamp(1))),
    };
    let storage = LocalStorage::open(options).unwrap();
    // All of them: a clean stop is one of all that there is.
    let mut partition = None;
    for each in storage.list().await.unwrap() {
        let opened = storage.open(each, PartitionConfig::default(), OpenMode::MustExist).await.unwrap();
        partition = if each == id { Some(opened) } else { partition };
    }
    let mut builder = BatchBuilder::new(Compression::None);
    builder
        .push(&NewRecord {
            key: Some(Bytes::from(key.to_owned())),
            value: Some(Bytes::from(value.to_owned())),
            ..Default::default()
        })
        .unwrap();
    let append = Append {
        batch: builder.build(),
        expected_end: None,
        content_hash: None,
        now: Timestamp(i64::MAX / 2),
    };
    soon(partition.expect("it is there").submit(append).unwrap()).await.unwrap();
    if clean {
        soon(storage.close()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_later_version_are_refused_and_nothing_is_touched() {
    let directory = filled().await;
    let mut tree = Tree::new();
    look(directory.path(), &mut tree);
    let mut kinds = BTreeSet::new();
    for (path, (_, content)) in &tree {
        let Some(content) = content else { continue };
        let kind = path.extension().or(path.file_name()).unwrap().to_str().unwrap();
        let check_at = match kind {
            "meta" => 36,
            "witness" => 508,
            "checkpoints" => 12,
            "log" => 68,
            "idx" => 92,
            "producers" => content.len() - 4,
            _ => continue,
        };
        if !kinds.insert(kind.to_owned()) {
            continue;
        }
        let mut newer = content.clone();
        newer[9] = 2;
        let check = crc32fast::hash(&newer[..check_at]);
        newer[check_at..check_at + 4].copy_from_slice(&check.to_be_bytes());
        fs::write(path, &newer).unwrap();
        for locked_before in [true, false] {
            if !locked_before {
                fs::remove_file(directory.path().join("lock")).unwrap();
            }
            let said = refused(directory.path(), kind).await;
            let name = path.file_name().unwrap().to_str().unwrap();
            for part in [name, "has format version 2", "reads version 1", "nothing was changed"] {
                assert!(said.contains(part), "{kind}: {part:?} is not in {said:?}");
            }
        }
        fs::write(path, content).unwrap();
        fs::write(directory.path().join("lock"), "").unwrap();
    }
    assert_eq!(kinds.len(), 6, "{kinds:?}");
    let server = over(directory.path()).await.unwrap();
    soon(server.started.stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_later_version_are_refused_and_nothing_is_touched() {
    let cases = [
        (TopicId::CATALOG, "topic:x", r#"{"v":2,"name":"x"}"#, "version 2 of the value; this server knows 1"),
        (TopicId::CATALOG, "server", r#"{"v":3}"#, "version 3 of the value; this server knows 1"),
        (TopicId::CATALOG, "acl:x", r#"{"v":1}"#, "\"acl:x\""),
        (TopicId::CONSUMER_OFFSETS, "group:g", r#"{"v":2,"epoch":1}"#, "has version 2; this server knows 1"),
        (
            TopicId::CONSUMER_OFFSETS,
            "offset:g:t:0",
            r#"{"kind":1,"v":7}"#,
            "has version 7; this server knows 1",
        ),
    ];
    for (topic, key, value, says) in cases {
        for clean in [true, false] {
            let directory = filled().await;
            let id = PartitionId { topic, partition: PartitionIndex(0) };
            put(directory.path(), id, key, value, clean).await;
            let said = refused(directory.path(), key).await;
            let segments = format!("{topic}/0/0000000000000000");
            for part in [segments.as_str(), ".log, offset ", key, says, "nothing was changed"] {
                assert!(said.contains(part), "{part:?} is not in {said:?}");
            }
        }
    }
}
