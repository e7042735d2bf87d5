//! Compaction under kills: at random moments, and before each of its steps. The last value of every key is there,
//! at its offset, on both starts that follow.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rimstone_proto::v1;
use rimstone_tests::{
    calls::{Calls, record},
    command::command,
    feed::{Ack, Feed},
    history::{Read, read_all},
    input::Line,
    server::{Server, Setup},
    skip::skip,
    wait::{soon, until},
};

use crate::{
    failing_disk::{Fault, why_not},
    format::{by_python, has_python},
};

/// Keys that come again and again.
const KEYS: u64 = 30;

/// Lines of few keys, each with a value of its own.
pub(crate) fn lines(count: u64, random: &mut StdRng) -> Vec<Line> {
    let line = |number| {
        let key = format!("key-{}", random.random_range(0..KEYS));
        // Noise, so that compression leaves something to compact.
        let noise: String =
            (0..random.random_range(1..30)).map(|_| format!("{:016x}", random.random::<u64>())).collect();
        let value = format!("{key} {number} {noise}");
        Line { number, key, value }
    };
    (1..=count).map(line).collect()
}

/// The last line of each key, and nothing that was not written; offsets as they were acknowledged.
pub(crate) fn check(read: &[Read], lines: &[Line], acks: &[Ack], what: &str) {
    let places: HashMap<u64, _> = acks.iter().map(|ack| (ack.number, ack.delivery)).collect();
    let mut there: HashMap<u64, &Read> = HashMap::new();
    for record in read {
        let line = &lines[record.number as usize - 1];
        assert_eq!((&record.key, &record.value), (&line.key, &line.value), "{what}");
        assert!(there.insert(record.number, record).is_none(), "{what}: line {} twice", record.number);
        let place = places[&record.number];
        assert_eq!(record.partition, place.partition.0, "{what}: line {}", record.number);
        if let Some(offset) = place.offset {
            assert_eq!(record.offset, offset.get(), "{what}: line {} has moved", record.number);
        }
    }
    let last: BTreeMap<&str, &Line> = lines.iter().map(|line| (line.key.as_str(), line)).collect();
    for line in last.values() {
        assert!(there.contains_key(&line.number), "{what}: the last value of {} is gone: {line:?}", line.key);
    }
}

/// What the server shows of a topic is in the files too, as an independent reader sees them, and they are whole.
pub(crate) async fn check_files(server: &mut Server, topic: &str, partitions: u32) {
    let id = server.admin().describe_topic(topic).await.unwrap().summary.id;
    let shown = read_all(&server.endpoint(), topic).await;
    server.stop().await;
    let verified = command(["inspect", "--data"]).arg(server.data()).arg("--verify").output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
    if !has_python() {
        return println!("python3 is not there");
    }
    for partition in 0..partitions {
        let (records, remarks, summary) = by_python(server.data(), &id, partition).await;
        assert!(remarks.is_empty(), "{remarks:?}");
        let offsets: Vec<_> = records.iter().map(|record| record["offset"].as_u64().unwrap()).collect();
        let ours = shown.iter().filter(|record| record.partition == partition);
        assert_eq!(offsets, ours.map(|record| record.offset).collect::<Vec<_>>(), "{summary}");
    }
}

/// The dirty ratio of the topic's dirtiest partition.
pub(crate) async fn dirtiness(server: &Server) -> f64 {
    let topic = server.admin().describe_topic("t").await.unwrap();
    topic.partitions.iter().map(|partition| partition.dirty_ratio.unwrap()).fold(0.0, f64::max)
}

/// Starts again without compacting by itself, after a kill or a stop.
async fn again(server: Server) -> Server {
    let setup = server.setup().setting("storage.compaction_interval", "1h");
    drop(server);
    setup.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_moments_the_last_of_each_key_is_there() {
    const PARTITIONS: u32 = 2;
    const ROUNDS: usize = 6;
    const CHUNK: usize = 700;
    let seed = std::env::var("RIMSTONE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random::<u64>());
    println!("RIMSTONE_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let lines = lines(((ROUNDS + 1) * CHUNK) as u64, &mut random);
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).setting("storage.compaction_interval", "100ms");
    let mut server = setup.start().await;
    let settings =
        [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.01"), ("segment.bytes", "16384")];
    Calls::connect(&server).await.create_topic("t", PARTITIONS, &settings).await;
    let feed = Feed::start(&server.endpoint(), "t", &lines);
    let (mut passes, mut during, mut left_behind) = (0.0, 0, 0);
    for round in 1..=ROUNDS {
        let chunk = (round * CHUNK).saturating_sub(CHUNK);
        feed.allow(round * CHUNK);
        // Half of the chunk, so that there is something to compact; then so many more, at random.
        feed.acknowledged_at_least(chunk + CHUNK / 2).await;
        feed.acknowledged_at_least(chunk + CHUNK / 2 + random.random_range(1..CHUNK / 2)).await;
        // While a segment is being written, the first or a later one, and a moment more.
        let (segments, more) = (random.random_range(1..12), random.random_range(0..20));
        let seen = soon(see_unfinished(server.data(), segments, more)).await;
        passes += server.metric("rimstone_compactions_total").unwrap_or(0.0);
        server.kill();
        let acknowledged = feed.acknowledged();
        assert!(acknowledged > 0 && acknowledged < lines.len());
        during += usize::from(seen);
        let found = leftovers(server.data());
        println!("killed at {acknowledged} of {} lines acknowledged; left behind: {found:?}", lines.len());
        left_behind += usize::from(!found.is_empty());
        server = server.start_again().await;
        assert_eq!(leftovers(server.data()).iter().filter(|name| name.ends_with(".tmp")).count(), 0);
    }
    let acks = feed.finish().await;
    println!(
        "{passes} passes ended between the kills; {during} kills came while a segment was written, {left_behind} left \
         it behind"
    );
    assert!(during > 0, "no kill came during a compaction");
    until("everything is compacted", async || (dirtiness(&server).await < 0.01).then_some(())).await;
    let read = read_all(&server.endpoint(), "t").await;
    check(&read, &lines, &acks, "at the end");
    assert!(read.len() < lines.len() / 4, "{} of {} lines are left", read.len(), lines.len());
    server.kill();
    for start in ["after a kill", "after a stop"] {
        server = again(server).await;
        assert_eq!(read_all(&server.endpoint(), "t").await, read, "{start}");
        check_files(&mut server, "t", PARTITIONS).await;
    }
}

/// Looks until so many unfinished segments have come, one after the other, and so often more; `false` if they did
/// not come within many looks.
pub(crate) async fn see_unfinished(data: &Path, mut segments: usize, more: usize) -> bool {
    let mut last = Vec::new();
    for _ in 0..20_000 {
        let now = leftovers(data);
        segments = segments.saturating_sub(usize::from(!now.is_empty() && now != last));
        last = now;
        if segments == 0 {
            for _ in 0..more {
                tokio::task::yield_now().await;
                leftovers(data);
            }
            return true;
        }
        tokio::task::yield_now().await;
    }
    false
}

/// What a kill leaves in the directories of partitions that is not a part of the log: unfinished files.
pub(crate) fn leftovers(data: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for topic in fs::read_dir(data.join("topics")).unwrap().flatten() {
        for partition in fs::read_dir(topic.path()).unwrap().flatten() {
            let names = fs::read_dir(partition.path()).unwrap().flatten().map(|entry| entry.file_name());
            let names = names.map(|name| name.to_string_lossy().into_owned());
            found.extend(names.filter(|name| name.ends_with(".log.tmp")));
        }
    }
    found
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// A directory with a dirty log of several segments, as a kill has left it; and where its files lie.
async fn dirty_directory(home: &Path, lines: &[Line]) -> (PathBuf, PathBuf, Vec<Ack>) {
    let setup = Setup::new(home).setting("storage.compaction_interval", "1h");
    let mut server = setup.start().await;
    let mut calls = Calls::connect(&server).await;
    let settings =
        [("cleanup.policy", "compact"), ("min.compaction.lag.ms", "86400000"), ("segment.bytes", "16384")];
    calls.create_topic("t", 1, &settings).await;
    let acks = Feed::start(&server.endpoint(), "t", lines).finish().await;
    let id = server.admin().describe_topic("t").await.unwrap().summary.id;
    server.kill();
    (server.data().to_owned(), PathBuf::from("topics").join(id).join("0"), acks)
}

/// Asks for the compaction: segments become four times larger, so that neighbours are merged.
async fn ask_for_compaction(server: &Server) {
    let set =
        [("min.compaction.lag.ms", "0"), ("min.cleanable.dirty.ratio", "0"), ("segment.bytes", "65536")];
    let request = v1::AlterTopicRequest {
        topic: "t".to_owned(),
        set: set.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..Default::default()
    };
    // The answer may not come any more.
    drop(soon(Calls::connect(server).await.admin.alter_topic(request)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_each_of_its_steps_the_old_or_the_new_is_there() {
    if let Some(why) = why_not() {
        return skip("compaction", why);
    }
    let mut random = StdRng::seed_from_u64(11);
    let lines = lines(600, &mut random);
    let home = tempfile::tempdir().unwrap();
    let (origin, partition, acks) = dirty_directory(&home.path().join("origin"), &lines).await;
    let mut bases: Vec<String> = fs::read_dir(origin.join(&partition))
        .unwrap()
        .filter_map(|entry| {
            entry.unwrap().file_name().into_string().ok()?.strip_suffix(".log").map(str::to_owned)
        })
        .collect();
    bases.sort();
    assert!(bases.len() > 6, "{bases:?}");
    let (first, second, third) = (&bases[0], &bases[1], &bases[2]);
    // Before: what is called, on which file, and which time of it.
    let steps = [
        ("openat", format!("{first}.log.tmp"), 1),
        ("pwrite64", format!("{first}.log.tmp"), 1),
        ("fsync", format!("{first}.log.tmp"), 1),
        ("rename", format!("{first}.log.tmp"), 1),
        // The flusher syncs the directory once for the producers' snapshot: the second time is the pass's own,
        // after its second rename.
        ("fsync", String::new(), 2),
        ("rename", format!("{first}.idx.tmp"), 1),
        ("unlink", format!("{second}.log"), 1),
        ("unlink", format!("{second}.idx"), 1),
        ("unlink", format!("{third}.log"), 1),
    ];
    for (number, (call, file, when)) in steps.iter().enumerate() {
        let what = format!("{call} of {file:?}, time {when}");
        let case = home.path().join(format!("case-{number}"));
        let data = case.join("data");
        copy_tree(&origin, &data);
        let setup = Setup::new(&case).setting("storage.compaction_interval", "100ms");
        let mut server = setup.start().await;
        let target = server.data().canonicalize().unwrap().join(&partition).join(file);
        let fault = Fault::begin_on(&server, &format!("{call}:signal=SIGKILL:when={when}"), &target).await;
        ask_for_compaction(&server).await;
        let status = server.ended().await;
        assert_eq!(
            status.signal(),
            Some(9),
            "{what}: the step was not reached, or it ended otherwise: {status}"
        );
        drop(fault);

        server = again(server).await;
        let read = read_all(&server.endpoint(), "t").await;
        check(&read, &lines, &acks, &what);
        let request = v1::ProduceRequest {
            topic: "t".to_owned(),
            records: vec![record(Some("another"), "start")],
            ..Default::default()
        };
        let next = Calls::connect(&server).await.append(request).await.unwrap().base_offset;
        assert_eq!(next, Some(lines.len() as u64), "{what}: offsets go on where they were");
        server.kill();
        server = again(server).await;
        let mut calls = Calls::connect(&server).await;
        assert_eq!(calls.fetch("t", lines.len() as u64).await.unwrap().records.len(), 1, "{what}");
        // Now it may do it to the end.
        drop(server);
        let setup = Setup::new(&case).setting("storage.compaction_interval", "100ms");
        server = setup.start().await;
        ask_for_compaction(&server).await;
        until("everything is compacted", async || (dirtiness(&server).await == 0.0).then_some(())).await;
        let compacted: Vec<Read> = read_all_but(&server, "another").await;
        check(&compacted, &lines, &acks, &what);
        assert!(compacted.len() < lines.len() / 2, "{what}: {} are left", compacted.len());
        check_files_of(&mut server).await;
    }
}

/// A disk that says no to a pass: the log is as it was and goes on being served, and a later pass does it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_fails_leaves_everything_as_it_was() {
    if let Some(why) = why_not() {
        return skip("compaction", why);
    }
    let mut random = StdRng::seed_from_u64(12);
    let lines = lines(600, &mut random);
    let home = tempfile::tempdir().unwrap();
    let (origin, partition, acks) = dirty_directory(&home.path().join("origin"), &lines).await;
    for (call, error) in [("pwrite64", "ENOSPC"), ("fsync", "EIO"), ("rename", "EIO")] {
        let case = home.path().join(call);
        let data = case.join("data");
        copy_tree(&origin, &data);
        let mut server = Setup::new(&case).setting("storage.compaction_interval", "100ms").start().await;
        let unfinished =
            server.data().canonicalize().unwrap().join(&partition).join("00000000000000000000.log.tmp");
        let fault = Fault::begin_on(&server, &format!("{call}:error={error}"), &unfinished).await;
        ask_for_compaction(&server).await;
        until("two passes have failed", async || {
            server.metric("rimstone_compaction_failures_total").filter(|failures| *failures >= 2.0)
        })
        .await;
        assert!(dirtiness(&server).await > 0.99, "{call}: nothing was replaced");
        let read = read_all(&server.endpoint(), "t").await;
        assert_eq!(read.len(), lines.len(), "{call}");
        assert_eq!(server.metric("rimstone_partition_poisoned"), Some(0.0), "{call}");
        drop(fault);
        until("everything is compacted", async || (dirtiness(&server).await == 0.0).then_some(())).await;
        assert_eq!(leftovers(server.data()), [] as [String; 0], "{call}");
        check(&read_all(&server.endpoint(), "t").await, &lines, &acks, call);
        check_files_of(&mut server).await;
    }
}

/// After a rename whose directory could not be synced nobody knows what a power cut would leave: the partition takes
/// nothing more and says so, what is there is read, and a start finds the last of each key.
#[tokio::test(flavor = "multi_thread")]
async fn a_rename_that_may_not_be_durable_poisons_the_partition() {
    if let Some(why) = why_not() {
        return skip("compaction", why);
    }
    let mut random = StdRng::seed_from_u64(13);
    let lines = lines(600, &mut random);
    let home = tempfile::tempdir().unwrap();
    let (data, partition, acks) = dirty_directory(home.path(), &lines).await;
    let mut server = Setup::new(home.path()).setting("storage.compaction_interval", "100ms").start().await;
    // Calls count by thread: the flusher syncs the directory once, the pass after each of its renames.
    let folder = data.canonicalize().unwrap().join(&partition);
    let fault = Fault::begin_on(&server, "fsync:error=EIO:when=2", &folder).await;
    ask_for_compaction(&server).await;
    until("the partition is poisoned", async || {
        server.metric("rimstone_partition_poisoned").filter(|poisoned| *poisoned > 0.0)
    })
    .await;
    let state = server.admin().describe_topic("t").await.unwrap().partitions[0].state.clone();
    assert!(state.starts_with("poisoned: a compacted segment may not be there"), "{state}");
    assert!(server.metric("rimstone_compaction_failures_total") >= Some(1.0));
    let request = || v1::ProduceRequest {
        topic: "t".to_owned(),
        records: vec![record(Some("another"), "value")],
        ..Default::default()
    };
    let refused = Calls::connect(&server).await.append(request()).await;
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.error.is_some()), "it takes nothing more");
    check(&read_all(&server.endpoint(), "t").await, &lines, &acks, "poisoned");
    drop(fault);
    server.kill();
    for expected in [600, 601] {
        server = again(server).await;
        assert_eq!(server.metric("rimstone_partition_poisoned"), Some(0.0));
        check(&read_all_but(&server, "another").await, &lines, &acks, "started again");
        let next = Calls::connect(&server).await.append(request()).await.unwrap();
        assert_eq!(next.base_offset, Some(expected), "offsets go on where they were");
        server.kill();
    }
    drop(server);
    server = Setup::new(home.path()).setting("storage.compaction_interval", "100ms").start().await;
    until("everything is compacted", async || (dirtiness(&server).await == 0.0).then_some(())).await;
    check(&read_all_but(&server, "another").await, &lines, &acks, "compacted");
    check_files_of(&mut server).await;
}

/// Rot in one segment: the others are compacted, and whoever looks sees which one is not, and why.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_segment_is_passed_by_and_named() {
    let mut random = StdRng::seed_from_u64(14);
    let lines = lines(600, &mut random);
    let home = tempfile::tempdir().unwrap();
    let (data, partition, _) = dirty_directory(home.path(), &lines).await;
    let mut logs: Vec<PathBuf> = fs::read_dir(data.join(&partition))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "log"))
        .collect();
    logs.sort();
    let rotten = &logs[2];
    let base: u64 = rotten.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let mut content = fs::read(rotten).unwrap();
    let at = content.len() / 2;
    content[at] ^= 1;
    fs::write(rotten, &content).unwrap();
    let mut server = Setup::new(home.path()).setting("storage.compaction_interval", "100ms").start().await;
    assert_eq!(server.metric("rimstone_topic_compaction_obstacles"), Some(0.0));
    ask_for_compaction(&server).await;
    until("the others are compacted", async || {
        let named = server.metric("rimstone_topic_compaction_obstacles") == Some(1.0);
        (named && dirtiness(&server).await == 0.0).then_some(())
    })
    .await;
    let described = server.admin().describe_topic("t").await.unwrap();
    let obstacles = &described.partitions[0].compaction_obstacles;
    assert_eq!(obstacles.len(), 1, "{obstacles:?}");
    assert_eq!(obstacles[0].0.get(), base);
    assert!(obstacles[0].1.starts_with("it is damaged: "), "{obstacles:?}");
    let told = command(["topic", "describe", "t", "--server", &server.endpoint()]).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains(&format!("compaction passes segment {base} by: it is damaged: ")), "{told}");
    assert_eq!(fs::read(rotten).unwrap(), content, "it stays as it is");
    assert!(described.partitions[0].segments < 6, "{described:?}");
    server.stop().await;
}

async fn read_all_but(server: &Server, key: &str) -> Vec<Read> {
    let mut calls = Calls::connect(server).await;
    let mut read = Vec::new();
    let mut from = 0;
    loop {
        let answer = calls.fetch("t", from).await.unwrap();
        assert_eq!(answer.error, None);
        if answer.next_offset == from {
            return read;
        }
        from = answer.next_offset;
        let text = |bytes: &Option<bytes::Bytes>| {
            String::from_utf8(bytes.clone().unwrap_or_default().to_vec()).unwrap()
        };
        for record in answer.records.iter().filter(|record| text(&record.key) != key) {
            read.push(Read {
                partition: 0,
                offset: record.offset,
                key: text(&record.key),
                value: text(&record.value),
                number: text(&record.value).split(' ').nth(1).unwrap().parse().unwrap(),
            });
        }
    }
}

async fn check_files_of(server: &mut Server) {
    server.stop().await;
    let verified = command(["inspect", "--data"]).arg(server.data()).arg("--verify").output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
}
