//! Reading again: offsets go where a linear scan says, a clone reads the whole, and the group that it was made
//! from is left alone, members and all.

use std::{collections::BTreeMap, path::Path};

use rimstone_client::{Admin, OffsetQuery};
use rimstone_proto::v1;
use rimstone_tests::{
    calls::Calls,
    command::{command, run, succeed},
    group::{
        check::check,
        crowd::{Crew, Crowd},
    },
    input::{NUMBER_HEADER, access_log_path, made_up},
    server::{Server, Setup},
    skip::skip,
    wait::{soon, until},
};
use serde_json::Value;

use crate::groups::{caught_up, crew};

const TOPIC: &str = "lines";
const GROUP: &str = "live";
const CLONE: &str = "again";
/// Small segments: the place is looked for in many of them.
const SEGMENT_BYTES: &str = "segment.bytes=65536";

/// Offset and create time of each record, by partition.
type Times = BTreeMap<u32, Vec<(u64, i64)>>;

async fn times(server: &Server) -> Times {
    let mut calls = Calls::connect(server).await;
    let request = v1::ReadRequest {
        topic: TOPIC.to_owned(),
        start: Some(v1::StartPosition {
            position: Some(v1::start_position::Position::Earliest(v1::Earliest {})),
        }),
        end: Some(v1::EndPosition { position: Some(v1::end_position::Position::Latest(v1::Latest {})) }),
        ..Default::default()
    };
    let mut stream = soon(calls.consume.read(request)).await.unwrap().into_inner();
    let mut times = Times::new();
    while let Some(answer) = soon(stream.message()).await.unwrap() {
        let records = answer.records.unwrap();
        let of_partition = times.entry(records.partition).or_default();
        of_partition.extend(records.records.iter().map(|record| (record.offset, record.create_time_ms)));
    }
    times
}

/// In each partition the first record, in the order of offsets, at or after a time.
fn scan(times: &Times, time_ms: i64) -> BTreeMap<u32, u64> {
    let first =
        |records: &Vec<(u64, i64)>| records.iter().find(|(_, time)| *time >= time_ms).map(|(at, _)| *at);
    times.iter().filter_map(|(partition, records)| Some((*partition, first(records)?))).collect()
}

async fn plan(server: &Server, what: &str, more: &[&str]) -> Value {
    let endpoint = server.endpoint();
    let arguments = ["replay", what, GROUP, "--json", "--server", &endpoint];
    serde_json::from_str(&succeed(arguments.iter().chain(more)).await).unwrap()
}

fn offsets(plan: &Value, which: &str) -> BTreeMap<u32, u64> {
    let partitions = plan["partitions"].as_array().unwrap().iter();
    let offset = |planned: &Value| {
        Some((planned["partition"].as_u64()?.try_into().unwrap(), planned[which].as_u64()?))
    };
    partitions.filter_map(offset).collect()
}

async fn ends(admin: &Admin) -> BTreeMap<u32, u64> {
    let ends = admin.list_offsets(TOPIC, &[], OffsetQuery::Latest).await.unwrap();
    ends.iter().map(|end| (end.partition.0, end.offset.unwrap().get())).collect()
}

/// A group with a member in it has read everything, and goes on being one while a clone reads again.
async fn moved_to_the_middle(home: &Path, file: &Path, time_options: &[&str]) {
    let mut server = Setup::new(home).start().await;
    let endpoint = server.endpoint();
    let create =
        ["topic", "create", TOPIC, "--partitions", "6", "--set", "retention.ms=-1", "--set", SEGMENT_BYTES];
    succeed(create.into_iter().chain(["--server", &endpoint])).await;
    let produce = ["produce", TOPIC, file.to_str().unwrap(), "--server", &endpoint];
    let line = ["--line-number-header", NUMBER_HEADER];
    succeed(produce.iter().chain(&line).chain(time_options)).await;
    let mut live = Crowd::new(Crew { records_per_ms: 50, ..crew(&server, home, GROUP) });
    live.join("live", None, 1);
    caught_up(&server, GROUP).await;

    let times = times(&server).await;
    let mut all: Vec<_> = times.values().flatten().map(|(_, time)| *time).collect();
    let unsorted = times.values().any(|records| !records.is_sorted_by_key(|(_, time)| *time));
    assert!(unsorted, "times that only rise would not try the look-up");
    all.sort_unstable();
    let middle = all[all.len() / 2];
    let ends = ends(&server.admin()).await;
    let expected = scan(&times, middle);
    assert_eq!(expected.len(), 6, "every partition has something at or after the middle");
    let between = expected.iter().all(|(partition, offset)| 0 < *offset && *offset < ends[partition]);
    assert!(between, "the middle is in the middle: {expected:?} of {ends:?}");

    // Somebody is in the group: it cannot be moved, and says so; a clone can be made.
    let time = format!("{middle}ms");
    let told = plan(&server, "plan", &["--to-time", &time]).await;
    assert_eq!(offsets(&told, "new_offset"), expected);
    assert_eq!(offsets(&told, "old_offset"), ends);
    assert!(!told["obstacle"].as_str().unwrap_or_default().is_empty(), "{told}");
    let again: u64 = expected.iter().map(|(partition, offset)| ends[partition] - offset).sum();
    assert_eq!(told["records"], again);
    let run_it = ["replay", "run", GROUP, "--to-time", &time, "--execute", "--server", &endpoint];
    let refused = run(command(run_it)).await;
    assert!(!refused.status.success(), "{refused:#?}");
    // Without the flag nothing happens.
    plan(&server, "run", &["--to-time", &time, "--clone-to", CLONE]).await;
    let mut calls = Calls::connect(&server).await;
    assert_eq!(calls.committed(CLONE, TOPIC).await.unwrap(), BTreeMap::new());
    let told = plan(&server, "run", &["--to-time", &time, "--clone-to", CLONE, "--execute"]).await;
    assert_eq!(told["executed"], true, "{told}");
    assert_eq!(calls.committed(CLONE, TOPIC).await.unwrap(), expected);
    assert_eq!(calls.committed(GROUP, TOPIC).await.unwrap(), ends, "the group was left alone");

    // A clone at the start reads the whole; so does one that goes through a kill of the server.
    plan(&server, "run", &["--to-earliest", "--clone-to", "whole", "--execute"]).await;
    server.kill();
    server = server.start_again().await;
    let mut calls = Calls::connect(&server).await;
    let kept = until("the group is loaded", async || calls.committed(CLONE, TOPIC).await.ok()).await;
    assert_eq!(kept, expected, "what was moved stays moved");
    let mut whole = Crowd::new(Crew { records_per_ms: 50, ..crew(&server, home, "whole") });
    whole.join("whole", None, 2);
    caught_up(&server, "whole").await;
    whole.leave("whole").await;
    assert_eq!(whole.done(), all.len(), "the whole was read, once");
    assert_eq!(calls.committed(GROUP, TOPIC).await.unwrap(), ends, "the group was left alone");
    live.assert_running();
    live.leave("live").await;
    let (wrong, _) = check(&live.facts(&server).await);
    assert_eq!(wrong, [], "the live group saw nothing of all that");

    // Nobody is in it any more: it is moved itself, if it is as it was planned.
    let told = plan(&server, "plan", &["--to-time", &time]).await;
    let fingerprint = told["fingerprint"].as_str().unwrap();
    let told = plan(&server, "run", &["--to-time", &time, "--plan", fingerprint, "--execute"]).await;
    assert_eq!(told["executed"], true, "{told}");
    assert_eq!(calls.committed(GROUP, TOPIC).await.unwrap(), expected);
    let run_it = [
        "replay",
        "run",
        GROUP,
        "--to-time",
        &time,
        "--plan",
        fingerprint,
        "--execute",
        "--server",
        &endpoint,
    ];
    let refused = run(command(run_it)).await;
    assert!(!refused.status.success(), "the plan was for other offsets: {refused:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_access_log_is_read_again_from_the_middle() {
    let Some(log) = access_log_path() else {
        return skip("a_real_access_log", "apache_access.log is not in RIMSTONE_TEST_DATA or ../shared/data");
    };
    let home = tempfile::tempdir().unwrap();
    let times =
        ["--key-field", "1", "--time-regex", r"\[([^\]]+)\]", "--time-format", "%d/%b/%Y:%H:%M:%S %z"];
    moved_to_the_middle(home.path(), &log, &times).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn made_up_lines_are_read_again_from_the_middle() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("input.txt");
    // Stamped in seconds, and most a little earlier than some line before them, as in real logs.
    let stamp = |number: u64| 1_431_857_103_000 + number * 1_000 - number * 7_919 % 59_000;
    let text: String = made_up(10_000, 13)
        .into_iter()
        .map(|line| format!("{} {}\n", stamp(line.number), line.value))
        .collect();
    std::fs::write(&file, text).unwrap();
    let times = ["--key-field", "2", "--time-field", "1", "--time-format", "unix-ms"];
    moved_to_the_middle(home.path(), &file, &times).await;
}
