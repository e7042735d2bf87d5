//! The commands against a server of the same binary: what they print, how they end, what a signal does. Kills
//! and power cuts are in the workspace's `tests/`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::Stdio,
};

use common::{Server, rimstone, signal, wait_until};

fn started() -> (tempfile::TempDir, Server) {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&directory.path().join("data"));
    (directory, server)
}

#[test]
fn a_topic_from_its_making_to_its_end() {
    let (_directory, server) = started();
    server.ok(&["topic", "create", "visits", "--partitions", "3", "--set", "retention.ms=-1"]);
    let (code, _, err) = server.run(&["topic", "create", "visits"]);
    assert_eq!(code, 5, "{err}");
    server.ok(&["topic", "create", "visits", "--if-not-exists"]);
    let (code, _, err) = server.run(&["topic", "create", "more", "--set", "no.such=1"]);
    assert!(code == 2 && err.contains("retention.ms"), "{code} {err}");

    let list: serde_json::Value = serde_json::from_str(&server.ok(&["topic", "list", "--json"])).unwrap();
    assert_eq!((&list[0]["topic"], &list[0]["partitions"]), (&"visits".into(), &3.into()));
    let altered = server.ok(&["topic", "alter", "visits", "--partitions", "4", "--reset", "retention.ms"]);
    assert!(!altered.contains("retention.ms"), "{altered}");
    let described = server.ok(&["topic", "describe", "visits"]);
    assert!(described.contains("4 partitions") && described.contains("retention.ms"), "{described}");

    server.ok_with_input(&["produce", "visits", "--partition", "1"], "a\nb\nc\n");
    let starts = server.ok(&["topic", "delete-records", "visits", "--before", "2", "--partition", "1"]);
    assert!(starts.lines().any(|line| line.split_whitespace().eq(["1", "2"])), "{starts}");
    assert_eq!(server.ok(&["consume", "visits"]), "c\n");
    let (_, _, err) = server.run(&["topic", "delete-records", "visits", "--before", "9", "--partition", "1"]);
    assert!(err.contains("--before latest") && !err.contains("--from"), "{err}");
    server.ok(&["topic", "delete", "visits"]);
    let (code, _, err) = server.run(&["consume", "visits"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("topic create visits"), "{err}");
    server.ok(&["topic", "delete", "visits", "--if-exists"]);
}

#[test]
fn records_come_back_from_where_to_where_was_asked() {
    let (_directory, server) = started();
    server.ok(&["topic", "create", "visits", "--set", "retention.ms=-1"]);
    let lines: String =
        (0..10).map(|second| format!("k{},2015-05-17T10:05:0{second}Z,v\n", second % 2)).collect();
    let summary = server.ok_with_input(
        &[
            "produce",
            "visits",
            "--key-field",
            "1",
            "--time-field",
            "2",
            "--field-separator",
            ",",
            "--line-number-header",
            "line",
        ],
        &lines,
    );
    assert!(summary.contains("stored 10 records"), "{summary}");

    let offsets = |arguments: &[&str]| {
        let mut all = vec!["consume", "visits", "--format", "%o "];
        all.extend(arguments);
        server.ok(&all)
    };
    assert_eq!(offsets(&[]), "0 1 2 3 4 5 6 7 8 9 ");
    assert_eq!(offsets(&["--from", "7"]), "7 8 9 ");
    assert_eq!(offsets(&["--from", "2015-05-17T10:05:04Z", "--until", "8"]), "4 5 6 7 ");
    assert_eq!(offsets(&["--until", "2015-05-17T10:05:02Z"]), "0 1 ");
    assert_eq!(offsets(&["-n", "3"]), "0 1 2 ");
    assert_eq!(offsets(&["--key", "k1"]), "1 3 5 7 9 ");
    assert_eq!(offsets(&["--key-prefix", "k", "-n", "1"]), "0 ");
    assert_eq!(offsets(&["--header", "line=4"]), "3 ");
    assert_eq!(
        server.ok(&["consume", "visits", "-n", "1", "--format", r"%t/%p\t%k\t%D\t%H\n"]),
        "visits/0\tk0\t2015-05-17T10:05:00.000Z\tline=1\n"
    );
    let json: serde_json::Value =
        serde_json::from_str(&server.ok(&["consume", "visits", "-n", "1", "--json"])).unwrap();
    assert_eq!((&json["key"], &json["headers"][0]["value"]), (&"k0".into(), &"1".into()));

    let found = server.ok(&["offsets", "visits", "--at", "2015-05-17T10:05:04Z"]);
    assert!(found.lines().nth(1).unwrap().starts_with("0          4"), "{found}");
    let none = server.ok(&["offsets", "visits", "--at", "2016-01-01"]);
    assert!(none.contains("none"), "{none}");
    let (code, _, err) = server.run(&["consume", "visits", "--from", "99"]);
    assert!(code == 1 && err.contains("holds 0 to 10"), "{code} {err}");
}

#[test]
fn what_is_wrong_with_a_line_is_told_with_its_number() {
    let (_directory, server) = started();
    server.ok(&["topic", "create", "visits"]);
    let (code, _, err) = common::run_with_input(
        &["--server", &server.address, "produce", "visits", "--key-regex", r"id=(\d+)"],
        "id=1 a\nid=2 b\nno key\nid=4 d\n",
    );
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("error: line 3 has no key"), "{err}");
    assert!(err.contains("every line up to 2; go on with --skip 2"), "{err}");
    assert_eq!(server.ok(&["consume", "visits", "--format", "%k "]), "1 2 ");
    let (code, _, err) = common::run_with_input(
        &["--server", &server.address, "produce", "visits", "--time-format", "unix-ms", "--time-field", "1"],
        "1\n2\n99999999999999\n",
    );
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("line 1 is not stored") || err.contains("line 3 is not stored"), "{err}");
    assert!(err.contains("go on with --skip 2") || err.contains("nothing is stored"), "{err}");
}

#[test]
fn following_prints_what_comes_and_ends_with_a_signal() {
    let (_directory, server) = started();
    server.ok(&["topic", "create", "visits"]);
    server.ok_with_input(&["produce", "visits"], "before\n");
    let mut child = rimstone(&["--server", &server.address, "consume", "visits", "--from", "earliest", "-f"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    server.ok_with_input(&["produce", "visits"], "after\n");
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "before\nafter\n");
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));

    // A reader that has had enough: the next record finds the pipe closed.
    let mut child = rimstone(&["--server", &server.address, "consume", "visits", "--from", "earliest", "-f"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    drop(out);
    server.ok_with_input(&["produce", "visits"], "too late\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(err, "");
}

#[test]
fn an_interrupted_produce_says_how_far_it_came_and_goes_on_from_there() {
    let (directory, server) = started();
    server.ok(&["topic", "create", "visits", "--partitions", "4"]);
    let file = directory.path().join("lines");
    let lines: Vec<String> = (1..=3000).map(|number| format!("{} {number}", number % 7)).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let file = file.to_str().unwrap();
    let produce = ["--server", &server.address, "produce", "visits", file, "--key-field", "1"];

    let child = rimstone(&produce).args(["--rate", "100/s"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("some records", || server.ok(&["consume", "visits", "-n", "100"]).lines().count() == 100);
    signal(&child, "INT");
    let (code, _, err) = common::answer(child.wait_with_output().unwrap());
    assert_eq!(code, 130, "{err}");
    let came = err.split("--skip ").nth(1).unwrap().trim();
    let stored = server.ok(&["consume", "visits"]).lines().count();
    assert_eq!(came.parse::<usize>().unwrap(), stored, "{err}");
    assert!((100..3000).contains(&stored), "{stored}");

    let (code, _, err) = common::answer(rimstone(&produce).args(["--skip", came]).output().unwrap());
    assert_eq!(code, 0, "{err}");
    let mut back: Vec<String> = server.ok(&["consume", "visits"]).lines().map(str::to_owned).collect();
    let number = |line: &String| line.split(' ').nth(1).unwrap().parse::<u32>().unwrap();
    back.sort_by_key(number);
    assert_eq!(back, lines);
}

#[test]
fn lines_are_sent_as_they_come() {
    let (_directory, server) = started();
    server.ok(&["topic", "create", "visits"]);
    let mut child = rimstone(&["--server", &server.address, "produce", "visits"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for line in ["one", "two"] {
        writeln!(input, "{line}").unwrap();
        wait_until(line, || server.ok(&["consume", "visits"]).lines().last() == Some(line));
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn named_producers_are_listed_fenced_and_forgotten() {
    let (_directory, server) = started();
    server.ok(&["topic", "create", "visits"]);
    for round in 0..2 {
        server.ok_with_input(&["produce", "visits", "--name", "importer"], &format!("{round}\n"));
    }
    let list: serde_json::Value = serde_json::from_str(&server.ok(&["producers", "list", "--json"])).unwrap();
    assert_eq!(list[0]["name"], "importer");
    let writers = server.ok(&["producers", "list", "--topic", "visits"]);
    assert!(writers.contains("importer") && writers.contains("visits/0"), "{writers}");
    server.ok(&["producers", "delete", "importer"]);
    let (code, _, err) = server.run(&["producers", "delete", "importer"]);
    assert_eq!(code, 3, "{err}");
}

#[test]
fn the_banner_says_what_to_type_as_long_as_there_is_nothing() {
    let (directory, server) = started();
    let banner = |data: &str| {
        let data = directory.path().join(data);
        let mut child = rimstone(&["serve", "--listen", "localhost:0", "--web", "localhost:0", "--data"])
            .arg(data)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut banner = String::new();
        while !banner.contains("  sync ") {
            assert_ne!(out.read_line(&mut banner).unwrap(), 0, "{banner}");
        }
        signal(&child, "INT");
        out.read_to_string(&mut banner).unwrap();
        assert!(child.wait().unwrap().success());
        banner
    };
    let new = banner("new");
    assert!(new.contains("topic create visits"), "{new}");
    server.ok(&["topic", "create", "visits"]);
    drop(server);
    let old = banner("data");
    assert!(old.contains("(1 topic, 1 partition)") && !old.contains("Type next"), "{old}");
}

#[test]
fn a_second_server_on_the_directory_and_a_busy_port_are_refused() {
    let (directory, server) = started();
    let data = directory.path().join("data");
    let data = data.to_str().unwrap();
    let (code, _, err) =
        common::run(&["serve", "--data", data, "--listen", "127.0.0.1:0", "--web", "127.0.0.1:0"]);
    assert!(code == 1 && err.contains("in use by another server"), "{code} {err}");
    let other = directory.path().join("other");
    let (code, _, err) = common::run(&[
        "serve",
        "--data",
        other.to_str().unwrap(),
        "--listen",
        &server.address,
        "--web",
        "127.0.0.1:0",
    ]);
    assert!(code == 1 && err.contains(&server.address), "{code} {err}");
}
