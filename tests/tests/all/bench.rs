//! `rimstone bench` against a real server: tiny runs of every workload. Figures are not looked at, only that what
//! is told is what happened.

use rimstone_client::OffsetQuery;
use rimstone_tests::{
    command::{Running, command, run},
    server::{Server, Setup},
    wait::until,
};
use rustix::process::Signal;
use serde_json::Value;

async fn started(home: &tempfile::TempDir) -> Server {
    Setup::new(home.path()).start().await
}

/// Runs a workload that must succeed, and gives its document.
async fn bench(server: &Server, arguments: &str) -> Value {
    let endpoint = server.endpoint();
    let arguments = ["bench"].into_iter().chain(arguments.split_whitespace());
    let ran = run(command(arguments.chain(["--json", "--server", &endpoint]))).await;
    assert!(ran.status.success(), "{}\n{}", ran.stdout, ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

fn phase<'a>(document: &'a Value, name: &str) -> &'a Value {
    let phases = document["phases"].as_array().unwrap();
    phases.iter().find(|phase| phase["name"] == name).unwrap_or_else(|| panic!("no {name}: {document:#}"))
}

/// The number of records of a phase that has had some, and no errors.
fn records(document: &Value, name: &str) -> u64 {
    let phase = phase(document, name);
    assert_eq!(phase["errors"], Value::Array(Vec::new()));
    let records = phase["records"].as_u64().unwrap();
    assert!(records > 0 && phase["elapsed_s"].as_f64().unwrap() > 0.0, "{phase:#}");
    records
}

/// How often the latency of a phase was measured.
fn latencies(document: &Value, name: &str) -> u64 {
    let latency = &phase(document, name)["latency"];
    let order = ["min_ns", "p50_ns", "p75_ns", "p90_ns", "p99_ns", "p99_9_ns", "p99_99_ns", "max_ns"];
    let values: Vec<u64> = order.iter().map(|field| latency[field].as_u64().unwrap()).collect();
    assert!(values[0] > 0 && values.is_sorted(), "{latency:#}");
    latency["count"].as_u64().unwrap()
}

async fn assert_no_topics(server: &Server) {
    let topics = server.admin().list_topics(false).await.unwrap();
    assert!(topics.is_empty(), "{topics:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_to_be_stored_is_stored() {
    let home = tempfile::tempdir().unwrap();
    let server = started(&home).await;
    let admin = server.admin();
    admin.create_topic("load", 3, &[]).await.unwrap();
    let mut stored = 0;
    for arguments in [
        "produce -n 500 --size 100 --batch-bytes 4KiB",
        "produce -n 500 --size 100 --via records --batch-records 7 --keys uniform:50",
        "produce -n 500 --size 100 --via client --keys zipf:50 --compression lz4",
        "latency -n 60 --size 100 --callers 5 --streams 2",
        "latency -n 60 --size 100 --callers 5 --via unary --connections 2",
        "latency -n 60 --size 100 --callers 5 --via client",
    ] {
        let document = bench(&server, &format!("{arguments} --topic load --seed 9")).await;
        assert_eq!(document["seed"], 9);
        let name = document["workload"].as_str().unwrap();
        stored += records(&document, name);
        assert!(latencies(&document, name) > 0);
        assert!(phase(&document, name)["bytes"].as_u64().unwrap() >= 100 * records(&document, name));
        let ends = admin.list_offsets("load", &[], OffsetQuery::Latest).await.unwrap();
        let there: u64 = ends.iter().map(|end| end.offset.unwrap().get()).sum();
        assert_eq!(there, stored, "{arguments}");
        assert!(ends.iter().all(|end| end.offset.unwrap().get() > 0), "{arguments}: {ends:?}");
    }
    // The topic was there before, so it is there still; and reading it finds all of it.
    for via in ["raw", "batches", "client"] {
        let document = bench(&server, &format!("consume --topic load --read-via {via} --readers 2")).await;
        assert_eq!(records(&document, "read"), stored, "{via}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_make_their_topics_and_delete_them() {
    let home = tempfile::tempdir().unwrap();
    let server = started(&home).await;
    let data = server.data().display().to_string();

    let consume = format!("consume -n 2000 --size 200 --passes 2 --durability written --evict {data}");
    let document = bench(&server, &consume).await;
    let filled = records(&document, "fill");
    assert!(filled >= 2000);
    assert_eq!((records(&document, "read 1"), records(&document, "read 2")), (filled, filled));
    assert_eq!(phase(&document, "read 1")["bytes"], filled * 200);
    assert_eq!(document["load"]["durability"], "written");

    for via in ["--via batches", "--via records --read-via raw", "--via client --read-via client"] {
        let document = bench(&server, &format!("both -n 1000 --partitions 2 {via}")).await;
        let produced = records(&document, "produce");
        assert_eq!(records(&document, "read"), produced, "{via}");
        let told = latencies(&document, "end to end");
        assert!(told > 0 && told <= produced, "{via}: {told} of {produced}");
        assert_eq!(document["figures"]["end to end not told"], 0.0);
    }

    let document = bench(&server, "rate --rate 400 -n 100 --partitions 4 --size 50").await;
    assert_eq!(records(&document, "rate"), 100);
    for name in ["rate", "service", "late"] {
        assert_eq!(latencies(&document, name), 100, "{name}");
    }

    let document =
        bench(&server, &format!("cold -n 2000 --for 2s --warm-up 0s --rate 20000 --evict {data}")).await;
    for name in ["rate alone", "read alone", "read beside"] {
        records(&document, name);
    }
    let figures = document["figures"].as_object().unwrap();
    assert!(figures.keys().any(|name| name.starts_with("p99 of producers")), "{figures:?}");
    assert_no_topics(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_at_its_time_and_leaves_out_the_warm_up() {
    let home = tempfile::tempdir().unwrap();
    let server = started(&home).await;
    let histograms = home.path().join("latencies.hlog");
    let arguments = format!("latency --for 2s --warm-up 1s --keep --histograms {}", histograms.display());
    let document = bench(&server, &arguments).await;
    assert_eq!(phase(&document, "latency")["elapsed_s"], 2.0);
    let counted = records(&document, "latency");
    assert_eq!(latencies(&document, "latency"), counted);
    // The topic is left, and has what came while warming up as well.
    let topics = server.admin().list_topics(false).await.unwrap();
    let ends = server.admin().list_offsets(&topics[0].name, &[], OffsetQuery::Latest).await.unwrap();
    let there: u64 = ends.iter().map(|end| end.offset.unwrap().get()).sum();
    assert!(there > counted, "{there} {counted}");
    assert!(std::fs::read_to_string(histograms).unwrap().contains("Tag=latency"));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_named_and_nothing_is_left() {
    let home = tempfile::tempdir().unwrap();
    let server = started(&home).await;
    let endpoint = server.endpoint();
    let fail = async |arguments: &str| {
        let arguments = ["bench"].into_iter().chain(arguments.split_whitespace());
        let ran = run(command(arguments.chain(["--server", &endpoint]))).await;
        assert!(!ran.status.success(), "{}", ran.stdout);
        (ran.status.code(), ran.stdout, ran.stderr)
    };
    let (code, out, err) = fail("produce -n 1000 --set max.message.bytes=4096 --batch-bytes 64KiB").await;
    assert!(out.contains("x BATCH_TOO_LARGE: "), "{out}");
    assert!(err.contains("4096"), "{err}");
    assert_eq!(code, Some(1));
    assert_eq!(fail("produce -n 1 --topic nowhere").await.0, Some(3));
    assert_eq!(fail("produce -n 1 --payload /dev/null").await.0, Some(2));
    assert_eq!(fail("cold -n 1 --topic nowhere").await.0, Some(2));
    let (_, _, err) = fail("consume -n 10 --evict /nowhere").await;
    assert!(err.contains("/nowhere/topics/") && err.contains("data directory"), "{err}");
    assert_no_topics(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_deletes_its_topics() {
    let home = tempfile::tempdir().unwrap();
    let server = started(&home).await;
    let endpoint = server.endpoint();
    let command = command(["bench", "latency", "--for", "1h", "--server", &endpoint]);
    let mut running = Running::start(command, home.path(), "bench");
    until("records are stored", async || {
        let topics = server.admin().list_topics(false).await.unwrap();
        let topic = topics.first()?;
        let ends = server.admin().list_offsets(&topic.name, &[], OffsetQuery::Latest).await.ok()?;
        ends.iter().any(|end| end.offset.is_some_and(|end| end.get() > 0)).then_some(())
    })
    .await;
    running.signal(Signal::INT);
    assert_eq!(running.ended().await.status.code(), Some(130));
    assert_no_topics(&server).await;
}
