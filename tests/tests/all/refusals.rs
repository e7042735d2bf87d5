//! Starts that must fail, and starts that must not.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use rimstone_tests::{
    calls::{Calls, assert_append_refused, to_partition_0},
    server::{Server, Setup, StartFailure},
};
use tonic::Code;

/// Exit code for a command line or settings that are wrong.
const EXIT_USAGE: i32 = 2;
/// Exit code for what failed.
const EXIT_FAILED: i32 = 1;

async fn refused(setup: Setup, exit: i32, words: &[&str]) -> StartFailure {
    match setup.try_start().await {
        Ok(server) => panic!("it should not have started: {server:?}"),
        Err(failure) => {
            assert_eq!(failure.status.code(), Some(exit), "{failure:#?}");
            for word in words {
                assert!(failure.output.contains(word), "no {word:?} in {failure:#?}");
            }
            assert!(!failure.output.contains("panicked"), "{failure:#?}");
            failure
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_directory_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    calls.append(to_partition_0("t", ["before"])).await.unwrap();
    let link = home.path().join("link");
    symlink(server.data(), &link).unwrap();
    let holder = format!("process {}", server.pid());
    for data in [server.data(), link.as_path()] {
        let second = Setup::new(&home.path().join("second")).data(data);
        refused(second, EXIT_FAILED, &["in use by another server", &holder]).await;
    }
    // The first has not noticed.
    calls.append(to_partition_0("t", ["after"])).await.unwrap();
    assert_eq!(calls.fetch("t", 0).await.unwrap().records.len(), 2);
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_port_is_named_with_its_setting() {
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    let (grpc, web) = (server.grpc(), server.web());
    let (free, other) = rimstone_tests::server::free_ports();
    for (ports, busy, setting) in
        [((grpc.port(), free), grpc, "server.grpc_address"), ((other, web.port()), web, "server.web_address")]
    {
        let second = Setup::new(&home.path().join("second")).ports(ports.0, ports.1);
        refused(second, EXIT_FAILED, &["cannot listen", &busy.to_string(), setting]).await;
    }
    assert!(
        !home.path().join("second/data/rimstone.meta").exists(),
        "nothing was made before the ports were had"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_nobody_knows_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    refused(setup.clone().setting("server.grpc_adress", "x"), EXIT_USAGE, &["RIMSTONE_SERVER__GRPC_ADRESS"])
        .await;
    refused(setup.clone().setting("limits.connections", "many"), EXIT_USAGE, &["limits.connections", "many"])
        .await;
    fs::write(home.path().join("rimstone.toml"), "[storage]\ndata_dir = \"x\"\n").unwrap();
    refused(setup.clone(), EXIT_USAGE, &["rimstone.toml", "data_dir"]).await;
    fs::write(home.path().join("rimstone.toml"), "[storage\n").unwrap();
    refused(setup.clone(), EXIT_USAGE, &["rimstone.toml"]).await;
    fs::write(home.path().join("rimstone.toml"), "[limits]\nconnections = 7\n").unwrap();
    setup.start().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_machines_need_a_setting_that_says_so() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).setting("server.grpc_address", "0.0.0.0:0");
    refused(setup, EXIT_USAGE, &["server.grpc_address", "allow_unauthenticated_remote"]).await;
}

fn segment_of(server: &Server, topic: &str, partition: u32) -> PathBuf {
    let folder = server.data().join("topics").join(topic).join(partition.to_string());
    folder.join("00000000000000000000.log")
}

/// The catalog's topic id, as `docs/format.md` has it.
const CATALOG: &str = "00000000-0000-0000-0000-000000000001";

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_catalog_stops_the_start() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    for topic in ["a", "b", "c"] {
        calls.create_topic(topic, 1, &[]).await;
    }
    server.stop().await;
    let setup = server.setup();
    let segment = segment_of(&server, CATALOG, 0);
    let whole = fs::read(&segment).unwrap();
    // In the middle of what is acknowledged: the name of a topic, perhaps.
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x40;
    let damages: [(&str, Vec<u8>); 4] = [
        ("a flipped bit", flipped),
        ("cut in the middle", whole[..middle].to_vec()),
        ("empty", Vec::new()),
        ("zeros", vec![0; whole.len()]),
    ];
    for (what, bytes) in damages {
        fs::write(&segment, &bytes).unwrap();
        println!("{what}");
        refused(setup.clone(), EXIT_FAILED, &["catalog"]).await;
        assert_eq!(fs::read(&segment).unwrap(), bytes, "{what}: the file is left as it is");
    }
    fs::remove_file(&segment).unwrap();
    println!("gone");
    refused(setup.clone(), EXIT_FAILED, &["catalog"]).await;
    fs::remove_dir_all(segment.ancestors().nth(2).unwrap()).unwrap();
    println!("its directory gone");
    refused(setup.clone(), EXIT_FAILED, &["catalog"]).await;
    // Whole again, all is there.
    fs::create_dir_all(segment.parent().unwrap()).unwrap();
    fs::write(&segment, &whole).unwrap();
    let server = setup.start().await;
    assert_eq!(server.admin().list_topics(false).await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_partition_is_unavailable_and_the_rest_is_served() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 2, &[]).await;
    calls.append(to_partition_0("t", ["kept"])).await.unwrap();
    let id = server.admin().describe_topic("t").await.unwrap().summary.id;
    server.stop().await;
    fs::remove_dir_all(segment_of(&server, &id, 1).parent().unwrap()).unwrap();
    let server = server.start_again().await;
    let mut calls = Calls::connect(&server).await;
    let mut elsewhere = to_partition_0("t", ["lost"]);
    elsewhere.records[0].partition = Some(1);
    let refusal =
        assert_append_refused(calls.append(elsewhere).await, Code::Unavailable, "PARTITION_UNAVAILABLE");
    assert_eq!((refusal.metadata["topic"].as_str(), refusal.metadata["partition"].as_str()), ("t", "1"));
    calls.append(to_partition_0("t", ["goes on"])).await.unwrap();
    assert_eq!(calls.fetch("t", 0).await.unwrap().records.len(), 2);
    assert_eq!(server.metric("rimstone_partition_available"), Some(2.0), "the catalog and partition 0");
    let described = server.admin().describe_topic("t").await.unwrap();
    assert!(described.partitions[1].state.starts_with("unavailable"), "{:?}", described.partitions[1].state);
    assert!(!segment_of(&server, &id, 1).exists(), "an empty partition was not put in its place");
}

/// Every byte of a small partition in turn: found or harmless, never wrong, and never a panic.
#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_in_a_segment_are_named_and_the_rest_is_served() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    for value in ["one", "two", "three"] {
        calls.append(to_partition_0("t", [value])).await.unwrap();
    }
    let id = server.admin().describe_topic("t").await.unwrap().summary.id;
    server.stop().await;
    let segment = segment_of(&server, &id, 0);
    let whole = fs::read(&segment).unwrap();
    let frame = (whole.len() - 72) / 3;
    // In the body of the second batch: attested by the frame behind it.
    let mut damaged = whole.clone();
    damaged[72 + frame + frame - 3] ^= 1;
    fs::write(&segment, &damaged).unwrap();
    let server = server.start_again().await;
    let mut calls = Calls::connect(&server).await;
    let first = calls.fetch("t", 0).await.unwrap();
    assert_eq!(first.records[0].value.as_deref(), Some(&b"one"[..]));
    let second = calls.fetch("t", 1).await.unwrap();
    let error = second.error.expect("the damage is named");
    assert_eq!((error.code, error.reason.as_str()), (Code::DataLoss as i32, "DATA_DAMAGED"), "{error:?}");
    assert_eq!((error.metadata["from_offset"].as_str(), error.metadata["until_offset"].as_str()), ("1", "2"));
    let third = calls.fetch("t", 2).await.unwrap();
    assert_eq!(third.records[0].value.as_deref(), Some(&b"three"[..]));
    assert!(server.metric("rimstone_damaged_ranges_total").unwrap() >= 1.0);
    // It is still written to, behind the damage.
    let append = calls.append(to_partition_0("t", ["four"])).await.unwrap();
    assert_eq!(append.base_offset, Some(3));
    let after = fs::read(&segment).unwrap();
    assert_eq!(after[..damaged.len()], damaged, "damaged bytes are kept as they are");
    drop(server);
}
