//! Groups, lag and replay by the command line against a server of the same binary. Kills are in the workspace's
//! `tests/`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdout, Stdio},
};

use common::{Server, rimstone, signal, wait_until};
use serde_json::Value;

/// A server with a topic of three partitions and 30 lines in it, ten in each.
fn started() -> (tempfile::TempDir, Server) {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&directory.path().join("data"));
    server.ok(&["topic", "create", "visits", "--partitions", "3", "--set", "retention.ms=-1"]);
    for partition in 0..3 {
        // Line n of a partition is of second n.
        let lines: String = (0..10).map(|n| format!("2015-05-17T10:05:{n:02}Z,{partition}-{n}\n")).collect();
        let partition = partition.to_string();
        let fields = ["--time-field", "1", "--field-separator", ",", "--partition", &partition];
        server.ok_with_input(&[&["produce", "visits"], &fields[..]].concat(), &lines);
    }
    (directory, server)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The cells of each line below the head.
fn cells(table: &str) -> Vec<Vec<String>> {
    let rows = table.lines().skip(1);
    rows.map(|row| row.split_whitespace().map(str::to_owned).collect()).collect()
}

/// The committed offsets of a group, by partition.
fn offsets(server: &Server, group: &str) -> Vec<Option<u64>> {
    let described = json(&server.ok(&["group", "describe", group, "--json"]));
    described["offsets"].as_array().unwrap().iter().map(|offset| offset["offset"].as_u64()).collect()
}

/// A member in the background.
fn member(server: &Server, arguments: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut child = rimstone(&["--server", &server.address, "consume", "visits", "--start", "earliest"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

#[test]
fn a_group_works_off_what_is_there_and_goes_on_where_it_was() {
    let (_directory, server) = started();
    let consume = |arguments: &[&str]| {
        let all =
            [&["consume", "visits", "--group", "billing", "--until-caught-up", "-q"], arguments].concat();
        server.run(&all)
    };
    let (code, out, err) = consume(&[]);
    assert_eq!((code, out.as_str()), (1, ""), "nobody has said where to begin");
    assert!(err.contains("--start earliest") && err.contains("group commit billing visits"), "{err}");

    let (code, out, err) = consume(&["--start", "earliest", "-n", "7"]);
    assert_eq!((code, out.lines().count(), err.as_str()), (0, 7, ""));
    let committed: u64 = offsets(&server, "billing").into_iter().flatten().sum();
    assert_eq!(committed, 7, "exactly what was printed");
    let (code, rest, err) = consume(&["--start", "earliest"]);
    assert_eq!((code, rest.lines().count(), err.as_str()), (0, 23, ""));
    let mut all: Vec<_> = out.lines().chain(rest.lines()).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 30);
    assert_eq!(consume(&[]).1, "", "everything is committed");
    server.ok_with_input(&["produce", "visits", "--partition", "1"], "new\n");
    assert_eq!(consume(&[]).1, "new\n");

    let listed = json(&server.ok(&["group", "list", "--json"]));
    assert_eq!((&listed[0]["group"], &listed[0]["state"]), (&"billing".into(), &"empty".into()));
    assert_eq!(server.ok(&["consume", "visits", "-g", "billing", "--until-idle", "200ms", "-q"]), "");
}

#[test]
fn where_no_record_is_nobody_has_to_say_where_to_begin() {
    let (_directory, server) = started();
    server.ok(&["topic", "create", "empty", "--partitions", "2"]);
    let consume = ["consume", "empty", "--group", "early", "--until-caught-up", "-q"];
    assert_eq!(server.run(&consume), (0, String::new(), String::new()));
    // The place is kept: what comes is not another choice.
    server.ok_with_input(&["produce", "empty", "--partition", "1"], "new\n");
    assert_eq!(server.run(&consume), (0, "new\n".to_owned(), String::new()));
    // Who was not there has one, also where the other partition is still empty.
    let late = ["consume", "empty", "--group", "late", "--until-caught-up", "-q"];
    let (code, _, err) = server.run(&late);
    assert!(code == 1 && err.contains("--start earliest"), "{code} {err}");

    server.ok(&["group", "commit", "billing", "visits", "--at", "earliest"]);
    server.ok(&["group", "commit", "other", "visits", "--at", "earliest"]);
    let by_place = server.ok(&["lag", "billing", "--by-topic"]);
    let by_name = server.ok(&["lag", "--group", "billing", "--by-topic"]);
    let rows = |text: &str| cells(text).into_iter().map(|row| row[..3].to_vec()).collect::<Vec<_>>();
    assert_eq!(rows(&by_name), rows(&by_place));
    assert_eq!(rows(&by_name).len(), 1, "{by_name}");
    assert_eq!(rows(&server.ok(&["lag", "other", "--group", "billing", "--by-topic"])).len(), 2);
}

#[test]
fn two_members_share_and_one_takes_over_when_the_other_leaves() {
    let (_directory, server) = started();
    let (first, mut out) = member(&server, &["--group", "pair", "--member-id", "a", "--client-id", "one"]);
    let mut line = String::new();
    for _ in 0..30 {
        out.read_line(&mut line).unwrap();
    }
    assert_eq!(line.lines().count(), 30);
    let (second, mut out) = member(&server, &["--group", "pair", "--member-id", "b", "--client-id", "two"]);
    let describe = || json(&server.ok(&["group", "describe", "pair", "--json"]));
    let owned = |described: &Value, member: usize| {
        described["members"][member]["owned"].as_array().map_or(0, Vec::len)
    };
    wait_until("both have a share", || {
        let described = describe();
        described["state"] == "stable" && owned(&described, 0) > 0 && owned(&described, 1) > 0
    });
    let described = server.ok(&["group", "describe", "pair"]);
    assert!(described.contains("pair, stable") && described.contains("2 members"), "{described}");
    assert!(described.contains("one") && described.contains("127.0.0.1"), "{described}");
    // Nothing that was printed comes again: it was committed before its partition was given away.
    let lag = server.ok(&["lag", "pair"]);
    for row in cells(&lag) {
        assert_eq!((row.len(), &*row[0], &*row[5]), (10, "pair", "0"), "{lag}");
        assert!(["a", "b"].contains(&&*row[7]) && ["one", "two"].contains(&&*row[9]), "{lag}");
    }
    let (code, _, err) = server.run(&["group", "delete", "pair"]);
    assert!(code == 1 && err.contains("group describe pair"), "{code} {err}");
    let (code, _, err) = server.run(&["group", "commit", "pair", "visits", "--at", "earliest"]);
    assert_eq!(code, 1, "{err}");

    signal(&first, "INT");
    let (code, _, err) = common::answer(first.wait_with_output().unwrap());
    assert_eq!(code, 130, "{err}");
    for partition in ["0", "1", "2"] {
        server.ok_with_input(&["produce", "visits", "--partition", partition], "after\n");
    }
    let mut line = String::new();
    for _ in 0..3 {
        out.read_line(&mut line).unwrap();
    }
    assert_eq!(line, "after\n".repeat(3));
    signal(&second, "TERM");
    assert_eq!(second.wait_with_output().unwrap().status.code(), Some(130));
    assert_eq!(offsets(&server, "pair"), [Some(11), Some(11), Some(11)]);
}

#[test]
fn a_closed_pipe_ends_a_member_quietly_and_commits_nothing_that_was_not_written() {
    let (_directory, server) = started();
    let (mut child, mut out) = member(&server, &["--group", "head", "--format", "%o\\n", "-q"]);
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    drop(out);
    server.ok_with_input(&["produce", "visits", "--partition", "1"], "too late\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(err, "");
    // It has left; if nothing was committed by then, the group went with it.
    match server.run(&["group", "describe", "head", "--json"]) {
        (0, described, _) => assert_eq!(json(&described)["members"].as_array().unwrap().len(), 0),
        (code, _, err) => assert!(code == 3 && err.contains("head"), "{code} {err}"),
    }
    let late =
        server.ok(&["consume", "visits", "-g", "head", "--until-caught-up", "-q", "--start", "earliest"]);
    assert!(late.contains("too late"), "{late}");
}

#[test]
fn offsets_are_committed_cloned_and_forgotten_from_outside() {
    let (_directory, server) = started();
    server.ok(&["group", "commit", "report", "visits", "--at", "2015-05-17T10:05:04Z", "--metadata", "mine"]);
    assert_eq!(offsets(&server, "report"), [Some(4), Some(4), Some(4)]);
    server.ok(&["group", "commit", "report", "visits", "--at", "latest", "-p", "1"]);
    let said = server.ok(&["group", "commit", "report", "visits", "--at", "2", "-p", "2"]);
    assert!(said.contains("further on before"), "{said}");
    let (code, out, err) = server.run(&["group", "commit", "report", "visits", "--at", "99"]);
    assert!(code == 1 && out.contains("refused: ") && err.contains("refused 3 of 3"), "{code} {out} {err}");
    assert_eq!(offsets(&server, "report"), [Some(4), Some(10), Some(2)]);
    let described = server.ok(&["group", "describe", "report"]);
    assert!(
        described.contains("mine") && described.contains("no") || described.contains("empty"),
        "{described}"
    );

    let copied = server.ok(&["group", "clone", "report", "again"]);
    assert_eq!(cells(&copied).len(), 3);
    let (code, _, err) = server.run(&["group", "clone", "report", "again"]);
    assert_eq!(code, 5, "{err}");
    server.ok(&["group", "commit", "again", "visits", "--none", "-p", "0"]);
    assert_eq!(offsets(&server, "again"), [Some(10), Some(2)]);
    assert_eq!(offsets(&server, "report"), [Some(4), Some(10), Some(2)]);
    server.ok(&["group", "delete", "again"]);
    let (code, _, err) = server.run(&["group", "describe", "again"]);
    assert!(code == 3 && err.contains("group list"), "{code} {err}");
    assert_eq!(server.run(&["group", "delete", "again"]).0, 3);
    server.ok(&["group", "delete", "again", "--if-exists"]);
}

#[test]
fn a_member_that_is_to_print_nothing_prints_nothing_and_ends() {
    let (_directory, server) = started();
    let consume = ["consume", "visits", "--group", "nothing", "--start", "earliest", "-q"];
    assert_eq!(server.ok(&[&consume[..], &["-n", "0"]].concat()), "");
    // Nothing was committed either.
    assert_eq!(server.ok(&[&consume[..], &["--until-caught-up"]].concat()).lines().count(), 30);
}

#[test]
fn nobody_is_idle_before_there_is_something_to_read() {
    let (_directory, server) = started();
    // It prints everything, commits nothing, and is frozen: what it has comes free when its session ends.
    let session = ["--group", "late", "--session-timeout", "4s", "--commit-interval", "1h", "-q"];
    let (mut frozen, mut out) = member(&server, &session);
    let mut line = String::new();
    for _ in 0..30 {
        out.read_line(&mut line).unwrap();
    }
    signal(&frozen, "STOP");
    let consume = ["consume", "visits", "--group", "late", "--start", "earliest", "--until-idle", "2s", "-q"];
    let (code, printed, err) = server.run(&consume);
    frozen.kill().unwrap();
    frozen.wait().unwrap();
    assert_eq!((code, printed.lines().count()), (0, 30), "{err}");
}

#[test]
fn whoever_is_to_have_nothing_is_idle_too() {
    let (_directory, server) = started();
    let consume = ["consume", "later", "--group", "early", "--until-idle", "100ms", "-q"];
    let (code, out, err) = server.run(&consume);
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    assert!(err.contains("not there yet"), "{err}");
}

#[test]
fn lag_is_told_in_records_and_seconds_and_has_an_exit_code() {
    let (_directory, server) = started();
    server.ok(&["group", "commit", "slow", "visits", "--at", "4"]);
    server.ok(&["group", "commit", "slow", "visits", "--at", "latest", "-p", "2"]);
    let lag = server.ok(&["lag", "slow"]);
    let head: Vec<_> = lag.lines().next().unwrap().split_whitespace().collect();
    let expected = [
        "GROUP",
        "TOPIC",
        "PARTITION",
        "CURRENT-OFFSET",
        "LOG-END-OFFSET",
        "LAG",
        "SECONDS",
        "MEMBER",
        "HOST",
        "CLIENT",
    ];
    assert_eq!(head, expected);
    let rows = cells(&lag);
    assert_eq!(rows[0][..6], ["slow", "visits", "0", "4", "10", "6"]);
    assert!(rows[0][6].parse::<f64>().unwrap() > 0.0 && rows[0][7..] == ["-", "-", "-"], "{lag}");
    assert_eq!(rows[2][..7], ["slow", "visits", "2", "10", "10", "0", "0.000"]);
    let sums = server.ok(&["lag", "slow", "--by-topic"]);
    assert_eq!(cells(&sums)[0][..4], ["slow", "visits", "3", "12"]);
    let document = json(&server.ok(&["lag", "slow", "--json", "--topic", "visits"]));
    assert_eq!((&document["topics"][0]["lag"], &document["partitions"][1]["lag"]), (&12.into(), &6.into()));

    assert_eq!(server.run(&["lag", "slow", "--fail-above", "12", "--fail-above", "1h"]).0, 0);
    let (code, out, err) = server.run(&["lag", "slow", "--fail-above", "11"]);
    assert!(code == 7 && cells(&out)[0][..6] == rows[0][..6], "{code} {out}");
    assert!(err.contains("group slow is 12 records behind in topic visits; 11 are allowed"), "{err}");
    let (code, _, err) = server.run(&["lag", "slow", "--fail-above", "1ms", "-q"]);
    assert_eq!(code, 7, "{err}");
    let (code, _, err) = server.run(&["lag", "solw", "--fail-above", "1000"]);
    assert_eq!(code, 3, "a name that is mistyped has no lag to be fine with: {err}");
    server.ok(&["topic", "create", "unread", "--partitions", "1"]);
    let (code, _, err) = server.run(&["lag", "slow", "--topic", "unread", "--fail-above", "1000"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("group slow has committed nothing in topic unread"), "{err}");
    assert_eq!(server.run(&["lag", "slow", "--topic", "visits", "--fail-above", "12"]).0, 0);

    let mut child = rimstone(&["--server", &server.address, "lag", "slow", "--watch=50ms", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..3 {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(json(&line)["topics"][0]["lag"], 12);
    }
    drop(out);
    assert_eq!(child.wait().unwrap().code(), Some(0), "a closed pipe is no failure");
}

#[test]
fn a_replay_is_planned_shown_and_done_only_when_told_to() {
    let (_directory, server) = started();
    server.ok(&["group", "commit", "billing", "visits", "--at", "latest"]);
    server.ok(&["topic", "delete-records", "visits", "--before", "3", "--partition", "0"]);
    let arguments = ["billing", "--to-time", "2015-05-17T10:05:05Z"];
    let plan = server.ok(&[&["replay", "plan"], &arguments[..]].concat());
    let rows = cells(&plan);
    assert_eq!(rows[1][..5], ["visits", "1", "10", "5", "5"], "{plan}");
    assert!(plan.contains("reads 15 records again"), "{plan}");
    assert!(!plan.contains('?'), "older records are left: {plan}");
    let fingerprint = plan.lines().find_map(|line| line.strip_prefix("plan ")).unwrap();

    let (code, out, err) = server.run(&[&["replay", "run"], &arguments[..]].concat());
    assert_eq!((code, cells(&out)), (0, rows.clone()));
    assert!(err.contains("nothing was changed") && err.contains("--execute"), "{err}");
    assert_eq!(offsets(&server, "billing"), [Some(10), Some(10), Some(10)]);
    let execute = [&["replay", "run"], &arguments[..], &["--execute", "--plan", fingerprint]].concat();
    assert_eq!(cells(&server.ok(&execute))[..3], rows[..3]);
    assert_eq!(offsets(&server, "billing"), [Some(5), Some(5), Some(5)]);
    let (code, _, err) = server.run(&execute);
    assert!(code == 1 && err.contains("plan again"), "{code} {err}");

    let earliest = json(&server.ok(&["replay", "plan", "billing", "--to-earliest", "--json"]));
    assert_eq!(earliest["partitions"][0]["new_offset"], 3);
    let gone =
        json(&server.ok(&["replay", "plan", "billing", "--shift", "-5", "--partition", "0", "--json"]));
    assert_eq!((&gone["partitions"][0]["gone"], &gone["gone"]), (&3.into(), &3.into()), "{gone}");
    let long_ago = ["replay", "plan", "billing", "--to-time", "2000-01-01T00:00:00Z"];
    let plan = server.ok(&long_ago);
    assert_eq!(cells(&plan).iter().take(3).map(|row| &*row[7]).collect::<Vec<_>>(), ["?", "0", "0"]);
    assert!(plan.contains("retention may have taken records of that time (GONE ?) in 1 partition"), "{plan}");
    let plan = json(&server.ok(&[&long_ago[..], &["--json"]].concat()));
    assert_eq!((&plan["partitions"][0]["may_be_gone"], &plan["gone"]), (&true.into(), &0.into()), "{plan}");
    let each = ["replay", "run", "billing", "--topic", "visits", "--to-offset", "1=2,2=7", "--execute", "-q"];
    server.ok(&each);
    assert_eq!(offsets(&server, "billing"), [Some(5), Some(2), Some(7)]);

    // A clone leaves a group alone that somebody is in.
    let (child, mut out) = member(&server, &["--group", "billing"]);
    let mut line = String::new();
    for _ in 0..5 + 8 + 3 {
        out.read_line(&mut line).unwrap();
    }
    let (code, _, err) = server.run(&["replay", "run", "billing", "--to-earliest", "--execute"]);
    assert!(code == 1 && err.contains("clone"), "{code} {err}");
    server.ok(&["replay", "run", "billing", "--to-earliest", "--clone-to", "whole", "--execute"]);
    let whole = server.ok(&["consume", "visits", "--group", "whole", "--until-caught-up", "-q"]);
    assert_eq!(whole.lines().count(), 27);
    wait_until("the first group is where it was", || {
        offsets(&server, "billing") == [Some(10), Some(10), Some(10)]
    });
    signal(&child, "INT");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert_eq!(
        server.ok(&["consume", "visits", "--from", "4", "--until", "6", "-p", "1"]).lines().count(),
        2
    );
}
