//! The same with the command line: two `consume --group` share what a `produce` is writing; one is killed, then
//! the server; every line is printed at least once, and what is committed was printed.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use rimstone_tests::{
    calls::Calls,
    command::{Running, command, succeed},
    history::{Read, read_all},
    input::{Line, NUMBER_HEADER, access_log_path, lines_of, made_up},
    server::{Server, Setup},
    skip::skip,
    wait::until,
};
use serde_json::Value;

use crate::groups::{SESSION_TIMEOUT, caught_up, lag};

const LINES: u64 = 10_000;
const TOPIC: &str = "lines";
const GROUP: &str = "printers";
/// Lines a second: slow enough for kills in the middle of it.
const RATE: &str = "2000";
/// The exit code after SIGINT, as shells have it.
const INTERRUPTED: i32 = 130;

/// A `consume --group` in a process of its own.
struct Printer {
    running: Running,
    out: PathBuf,
}

impl Printer {
    fn start(server: &Server, home: &Path, name: &str) -> Self {
        let endpoint = server.endpoint();
        let timeout = format!("{}ms", SESSION_TIMEOUT.as_millis());
        let arguments =
            ["consume", TOPIC, "--group", GROUP, "--server", &endpoint, "--start", "earliest", "--json"];
        let more = ["--session-timeout", &timeout, "--commit-interval", "50ms", "--member-id", name];
        let running = Running::start(command(arguments.into_iter().chain(more)), home, name);
        Self { running, out: home.join(format!("{name}.out")) }
    }

    /// What it has printed: whole lines only.
    fn printed(&self) -> Vec<Read> {
        let text = std::fs::read_to_string(&self.out).unwrap_or_default();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        text[..whole].lines().map(record).collect()
    }

    fn lines(&self) -> usize {
        std::fs::read(&self.out).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count()
    }
}

fn record(line: &str) -> Read {
    let record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Read {
        partition: record["partition"].as_u64().unwrap().try_into().unwrap(),
        offset: record["offset"].as_u64().unwrap(),
        key: text(&record["key"]),
        value: text(&record["value"]),
        number: text(&record["headers"][0]["value"]).parse().unwrap(),
    }
}

/// Whatever is committed now has been printed.
async fn committed_is_printed(server: &Server, printers: &[&Printer]) {
    let mut calls = Calls::connect(server).await;
    let committed = until("the group can be asked", async || calls.committed(GROUP, TOPIC).await.ok()).await;
    let printed: HashSet<_> = printers
        .iter()
        .flat_map(|printer| printer.printed())
        .map(|record| (record.partition, record.offset))
        .collect();
    for (partition, committed) in committed {
        let missing = (0..committed).find(|offset| !printed.contains(&(partition, *offset)));
        assert_eq!(missing, None, "of partition {partition}, {committed} is committed");
    }
}

/// In what one process printed, offsets of a partition go up; where they do not, the partition had come back
/// from elsewhere, to be read again from a commit. Gives how often that was.
fn turns(records: &[Read]) -> usize {
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    let mut turns = 0;
    for record in records {
        let expected = next.insert(record.partition, record.offset + 1);
        turns += usize::from(expected.is_some_and(|expected| expected != record.offset));
    }
    turns
}

async fn printed_through_two_kills(home: &Path, lines: &[Line]) {
    let mut server = Setup::new(home).start().await;
    let endpoint = server.endpoint();
    let create = ["topic", "create", TOPIC, "--partitions", "6", "--set", "retention.ms=-1"];
    succeed(create.into_iter().chain(["--server", &endpoint])).await;
    let mut one = Printer::start(&server, home, "one");
    let mut two = Printer::start(&server, home, "two");
    let produce = ["produce", TOPIC, "--server", &endpoint, "--rate", RATE];
    let key = ["--key-field", "1", "--line-number-header", NUMBER_HEADER];
    let produce = command(produce.into_iter().chain(key));
    let (mut producing, gate) = Running::start_fed(produce, home, "produce", lines);

    let total = lines.len();
    // Not all of them before both kills have come, however long what the first one had stands still.
    gate.allow(total * 9 / 10);
    until("a third is printed, by both", async || {
        let (by_one, by_two) = (one.lines(), two.lines());
        (by_one > 0 && by_two > 0 && by_one + by_two >= total / 3).then_some(())
    })
    .await;
    one.running.kill();
    let killed_at = one.lines() + two.lines();
    committed_is_printed(&server, &[&one, &two]).await;
    until("half is printed", async || (one.lines() + two.lines() >= total / 2).then_some(())).await;
    server.kill();
    println!("kills at {killed_at} and {} of {total} printed", one.lines() + two.lines());
    assert!(killed_at < total, "the kill came in the middle");
    assert!(two.running.is_running() && producing.is_running(), "they wait for the server");
    server = server.start_again().await;
    committed_is_printed(&server, &[&one, &two]).await;
    gate.open();
    let ran = producing.ended().await;
    assert!(ran.status.success(), "{ran:#?}");
    until("everything is produced and committed", async || {
        let mut calls = Calls::connect(&server).await;
        let ends: u64 = calls.lag_of(GROUP).await.ok()?.iter().map(|lag| lag.log_end_offset).sum();
        (ends == total as u64 && lag(&server, GROUP).await? == 0).then_some(())
    })
    .await;
    caught_up(&server, GROUP).await;
    two.running.interrupt();
    let ran = two.running.ended().await;
    assert_eq!(ran.status.code(), Some(INTERRUPTED), "{}", ran.stderr);

    let log = read_all(&server.endpoint(), TOPIC).await;
    assert_eq!(log.len(), total);
    committed_is_printed(&server, &[&one, &two]).await;
    let mut printed = HashSet::new();
    for printer in [&one, &two] {
        let records = printer.printed();
        let turns = turns(&records);
        println!("{} lines, {turns} turns", records.len());
        // One for each partition that came, and one for each that was read again after a kill; on a slow machine a session
        // may end although nobody has died, and then both happen once more.
        assert!(turns <= 24, "{turns} turns");
        printed.extend(records.into_iter().map(|record| (record.partition, record.offset, record.number)));
    }
    let log: HashSet<_> =
        log.into_iter().map(|record| (record.partition, record.offset, record.number)).collect();
    assert_eq!(printed, log, "what was printed is what is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_access_log_is_printed_by_two_of_whom_one_is_killed() {
    let Some(log) = access_log_path() else {
        return skip("a_real_access_log", "apache_access.log is not in RIMSTONE_TEST_DATA or ../shared/data");
    };
    let home = tempfile::tempdir().unwrap();
    printed_through_two_kills(home.path(), &lines_of(&std::fs::read_to_string(log).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn made_up_lines_are_printed_by_two_of_whom_one_is_killed() {
    let home = tempfile::tempdir().unwrap();
    printed_through_two_kills(home.path(), &made_up(LINES, 12)).await;
}
