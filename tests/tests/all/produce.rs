//! A record's life: produced, kept, found again; through five crashes.

use std::{fs, path::Path};

use rimstone_client::{Admin, OffsetQuery};
use rimstone_tests::{
    command::{Running, command, succeed},
    feed::{Feed, assert_kept},
    history::{Read, assert_exactly, read_all},
    input::{Line, NUMBER_HEADER, access_log_path, lines_of, made_up},
    server::{Server, Setup},
    skip::skip,
    wait::until,
};
use serde_json::Value;

const PARTITIONS: u32 = 6;
const LINES: usize = 10_000;
const KILLS: usize = 5;

async fn topic(server: &Server, name: &str) {
    let partitions = PARTITIONS.to_string();
    let server = server.endpoint();
    let create = ["topic", "create", name, "--partitions", &partitions, "--set", "retention.ms=-1"];
    succeed(create.into_iter().chain(["--server", &server])).await;
}

/// The records as `consume --json` prints them.
async fn consumed(server: &Server, topic: &str) -> Vec<Read> {
    let server = server.endpoint();
    let out =
        succeed(["consume", topic, "--server", &server, "--from", "earliest", "--until", "end", "--json"])
            .await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let record = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        let header = &record["headers"][0];
        assert_eq!(header["key"], NUMBER_HEADER);
        Read {
            partition: record["partition"].as_u64().unwrap().try_into().unwrap(),
            offset: record["offset"].as_u64().unwrap(),
            key: text(&record["key"]),
            value: text(&record["value"]),
            number: text(&header["value"]).parse().unwrap(),
        }
    };
    out.lines().map(record).collect()
}

fn produce_arguments<'a>(topic: &'a str, server: &'a str) -> Vec<&'a str> {
    vec!["produce", topic, "--server", server, "--key-field", "1", "--line-number-header", NUMBER_HEADER]
}

fn write_lines(home: &Path, lines: &[Line]) -> std::path::PathBuf {
    let path = home.join("input.txt");
    fs::write(&path, lines.iter().map(|line| line.value.clone() + "\n").collect::<String>()).unwrap();
    path
}

async fn there_and_back(home: &Path, file: &Path) {
    let lines = lines_of(&fs::read_to_string(file).unwrap());
    let server = Setup::new(home).start().await;
    topic(&server, "lines").await;
    let endpoint = server.endpoint();
    let mut arguments = produce_arguments("lines", &endpoint);
    arguments.push(file.to_str().unwrap());
    succeed(arguments).await;
    let records = consumed(&server, "lines").await;
    assert_exactly(&records, &lines);
    let used = records.iter().map(|record| record.partition).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(used.len(), PARTITIONS as usize, "every partition has some");
    // The client sees the same as the command line.
    let mut read = read_all(&server.endpoint(), "lines").await;
    let mut records = records;
    read.sort_by_key(|record| (record.partition, record.offset));
    records.sort_by_key(|record| (record.partition, record.offset));
    assert_eq!(read, records);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_access_log_comes_back_whole_and_in_order() {
    let Some(log) = access_log_path() else {
        return skip("a_real_access_log", "apache_access.log is not in RIMSTONE_TEST_DATA or ../shared/data");
    };
    let home = tempfile::tempdir().unwrap();
    there_and_back(home.path(), &log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn made_up_lines_come_back_whole_and_in_order() {
    let home = tempfile::tempdir().unwrap();
    let file = write_lines(home.path(), &made_up(LINES as u64, 1));
    there_and_back(home.path(), &file).await;
}

/// The client goes on by itself through five kills; what it was told is where it was told.
#[tokio::test(flavor = "multi_thread")]
async fn five_kills_during_a_produce_lose_and_double_nothing() {
    /// Lines that may be on their way when the kill comes: fewer than from one kill to the next.
    const AHEAD: usize = 1_500;
    let home = tempfile::tempdir().unwrap();
    let lines = made_up(LINES as u64, 2);
    let mut server = Setup::new(home.path()).start().await;
    topic(&server, "lines").await;
    let feed = Feed::start(&server.endpoint(), "lines", &lines);
    let (mut before, mut on_their_way) = (0, 0);
    for kill in 1..=KILLS {
        let at = LINES * kill / (KILLS + 1);
        feed.allow(at + AHEAD);
        feed.acknowledged_at_least(at).await;
        server.kill();
        let acknowledged = feed.acknowledged();
        println!("kill {kill}: {acknowledged} of {LINES} acknowledged, {} sent", feed.sent());
        on_their_way += usize::from(acknowledged < feed.sent());
        assert!(before < acknowledged && acknowledged < LINES, "{before} < {acknowledged} < {LINES}");
        before = acknowledged;
        server = server.start_again().await;
    }
    // Who wakes late may find that all that was allowed is there, but not each time.
    assert!(on_their_way > 0, "nothing was on its way at any of the kills");
    let acks = feed.finish().await;
    assert_eq!(acks.len(), LINES);
    let records = read_all(&server.endpoint(), "lines").await;
    assert_exactly(&records, &lines);
    assert_kept(&acks, &records);
    let again = acks.iter().filter(|ack| ack.delivery.duplicate).count();
    println!("{again} lines were sent again and recognised");
    // And the same after one more start, a clean one.
    server.stop().await;
    let server = server.start_again().await;
    assert_eq!(read_all(&server.endpoint(), "lines").await.len(), LINES);
}

/// How many records are readable now.
async fn stored(admin: &Admin, topic: &str) -> Option<u64> {
    let ends = admin.list_offsets(topic, &[], OffsetQuery::Latest).await.ok()?;
    ends.iter().map(|end| Some(end.offset?.get())).sum()
}

/// The same with the command line: one `produce`, started once.
async fn five_kills_of_the_server_of_a_command(home: &Path, lines: &[Line]) {
    /// Lines that the command may have beyond those that a kill waits for: fewer than from one kill to the next, so that it
    /// is never done before the last.
    const AHEAD: usize = 1_500;
    let mut server = Setup::new(home).start().await;
    topic(&server, "lines").await;
    let endpoint = server.endpoint();
    let mut arguments = produce_arguments("lines", &endpoint);
    arguments.extend(["--rate", "3000"]);
    let (mut producing, gate) = Running::start_fed(command(arguments), home, "produce", lines);
    let mut before = 0;
    for kill in 1..=KILLS {
        let at = lines.len() * kill / (KILLS + 1);
        gate.allow(at + AHEAD);
        let admin = server.admin();
        let acknowledged = until("the next kill is due", async || {
            stored(&admin, "lines").await.filter(|count| *count >= at as u64)
        })
        .await;
        server.kill();
        println!("kill {kill}: {acknowledged} of {} stored", lines.len());
        assert!(before < acknowledged && acknowledged < lines.len() as u64, "{before} < {acknowledged}");
        assert!(producing.is_running(), "the command waits for the server");
        before = acknowledged;
        server = server.start_again().await;
    }
    gate.open();
    let ran = producing.ended().await;
    assert!(ran.status.success(), "{ran:#?}");
    assert_exactly(&consumed(&server, "lines").await, lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_carries_on_through_five_kills() {
    let home = tempfile::tempdir().unwrap();
    five_kills_of_the_server_of_a_command(home.path(), &made_up(LINES as u64, 3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_access_log_gets_through_five_kills() {
    let Some(log) = access_log_path() else {
        return skip("five_kills", "apache_access.log is not in RIMSTONE_TEST_DATA or ../shared/data");
    };
    let home = tempfile::tempdir().unwrap();
    let lines = lines_of(&fs::read_to_string(log).unwrap());
    five_kills_of_the_server_of_a_command(home.path(), &lines).await;
}
