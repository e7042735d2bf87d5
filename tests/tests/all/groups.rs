//! A group's life: two members share a topic, one is killed half way, then the server too; nothing is missed,
//! and what is committed was worked on. Then its place is moved, and that of a clone.

use std::{collections::HashMap, fs, path::Path, time::Duration};

use rimstone_tests::{
    calls::Calls,
    command::succeed,
    group::{
        check::{Facts, check},
        crowd::{Crew, Crowd},
        event::What,
    },
    input::{Line, NUMBER_HEADER, access_log_path, lines_of, made_up},
    server::{Server, Setup},
    skip::skip,
    wait::until,
};
use serde_json::Value;

const PARTITIONS: u32 = 6;
const LINES: u64 = 10_000;
const TOPIC: &str = "lines";
const GROUP: &str = "readers";

/// Short, so that a test need not wait long for what a dead member had; long enough for a loaded machine.
pub(crate) const SESSION_TIMEOUT: Duration = Duration::from_secs(3);

/// Members of this group, which are not there yet.
pub(crate) fn crew(server: &Server, home: &Path, group: &str) -> Crew {
    Crew {
        program: env!("CARGO_BIN_EXE_rimstone-member").into(),
        home: home.to_path_buf(),
        server: server.endpoint(),
        group: group.to_owned(),
        topic: TOPIC.to_owned(),
        session_timeout: SESSION_TIMEOUT,
        records_per_ms: 2,
    }
}

/// The file is in the topic, line by line.
pub(crate) async fn produced(server: &Server, file: &Path) {
    let endpoint = server.endpoint();
    let partitions = PARTITIONS.to_string();
    let create = ["topic", "create", TOPIC, "--partitions", &partitions, "--set", "retention.ms=-1"];
    succeed(create.into_iter().chain(["--server", &endpoint])).await;
    let file = file.to_str().unwrap();
    let key = ["--key-field", "1", "--line-number-header", NUMBER_HEADER];
    succeed(["produce", TOPIC, file, "--server", &endpoint].into_iter().chain(key)).await;
}

/// The records that a group has not committed; `None` while that cannot be told.
pub(crate) async fn lag(server: &Server, group: &str) -> Option<u64> {
    let mut calls = Calls::connect(server).await;
    let partitions = calls.lag_of(group).await.ok()?;
    let all = partitions.len() == PARTITIONS as usize;
    all.then(|| partitions.iter().map(|partition| partition.lag_records).sum())
}

/// Everything is committed: by the call, and by the command line.
pub(crate) async fn caught_up(server: &Server, group: &str) {
    until("the group has caught up", async || (lag(server, group).await? == 0).then_some(())).await;
    let mut calls = Calls::connect(server).await;
    for partition in calls.lag_of(group).await.unwrap() {
        assert_eq!(partition.committed_offset, Some(partition.log_end_offset), "{partition:?}");
        assert_eq!(partition.lag_ms, 0, "{partition:?}");
    }
    let endpoint = server.endpoint();
    let told = succeed(["lag", group, "--json", "--server", &endpoint]).await;
    let told: Value = serde_json::from_str(&told).unwrap();
    let partitions = told["partitions"].as_array().unwrap();
    assert_eq!(partitions.len(), PARTITIONS as usize, "{told}");
    for partition in partitions {
        assert_eq!((&partition["lag"], &partition["lag_ms"]), (&0.into(), &0.into()), "{told}");
        assert_eq!(partition["current_offset"], partition["log_end_offset"], "{told}");
    }
    // A limit of nothing holds.
    succeed(["lag", group, "--fail-above", "0", "--fail-above", "0s", "--server", &endpoint]).await;
}

/// What one process worked on, tenure by tenure, is in the order of the file for every key.
fn assert_keys_in_order(facts: &Facts, lines: &[Line]) {
    for life in &facts.lives {
        let mut last: HashMap<(u32, &str), u64> = HashMap::new();
        for event in &life.events {
            match event.what {
                What::Start { partition, .. } => last.retain(|(of, _), _| *of != partition),
                What::Done { partition, number, .. } => {
                    let line = &lines[usize::try_from(number).unwrap() - 1];
                    assert_eq!(line.number, number);
                    let before = last.insert((partition, &line.key), number);
                    assert!(before < Some(number), "{}: {before:?} before {number}", life.process);
                }
                _ => {}
            }
        }
    }
}

async fn through_two_kills(home: &Path, file: &Path) {
    let lines = lines_of(&fs::read_to_string(file).unwrap());
    let mut server = Setup::new(home).start().await;
    produced(&server, file).await;
    let mut crowd = Crowd::new(crew(&server, home, GROUP));
    crowd.join("one", None, 1);
    crowd.join("two", None, 2);
    let done = async |crowd: &mut Crowd, share: usize| {
        until("so much is done", async || {
            crowd.assert_running();
            (crowd.done() >= lines.len() * share / 100).then_some(())
        })
        .await;
    };
    done(&mut crowd, 45).await;
    crowd.kill("one");
    let behind = lag(&server, GROUP).await.expect("the server can tell");
    println!("one is killed: {} of {} done, {behind} behind", crowd.done(), lines.len());
    assert!(0 < behind && behind < lines.len() as u64);
    // More than what was two's from the beginning, and enough is left for whoever looks late.
    done(&mut crowd, 75).await;
    let behind = lag(&server, GROUP).await.expect("the server can tell");
    server.kill();
    println!("the server is killed: {} of {} done, {behind} behind", crowd.done(), lines.len());
    assert!(0 < behind && behind < lines.len() as u64);
    server = server.start_again().await;
    caught_up(&server, GROUP).await;
    crowd.leave("two").await;

    let facts = crowd.facts(&server).await;
    let (wrong, counts) = check(&facts);
    println!("{counts:?}");
    assert_eq!(wrong, []);
    assert_keys_in_order(&facts, &lines);
    assert_eq!(facts.log.values().map(Vec::len).sum::<usize>(), lines.len());
    for life in &facts.lives {
        let done = life.events.iter().filter(|event| matches!(event.what, What::Done { .. })).count();
        println!("{} has done {done}", life.process);
        assert!(done > lines.len() / 10, "{} had its share", life.process);
    }
    assert!(counts.resumed > 0, "two went on where the server had been killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_access_log_through_a_group_that_loses_a_member_and_its_server() {
    let Some(log) = access_log_path() else {
        return skip("a_real_access_log", "apache_access.log is not in RIMSTONE_TEST_DATA or ../shared/data");
    };
    let home = tempfile::tempdir().unwrap();
    through_two_kills(home.path(), &log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn made_up_lines_through_a_group_that_loses_a_member_and_its_server() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("input.txt");
    let text: String = made_up(LINES, 11).into_iter().map(|line| line.value + "\n").collect();
    fs::write(&file, text).unwrap();
    through_two_kills(home.path(), &file).await;
}
