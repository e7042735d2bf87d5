//! The Rust programs in README.md: they are the code below, and they run.

use rimstone_client::{End, Reader, Start};
use rimstone_tests::{calls::Calls, server::Setup, wait::soon, workspace_root};

/// A program below begins here in this file, and ends at [`END`].
const BEGIN: &str = "    // README begins\n";
const END: &str = "    // README ends\n";

async fn from_the_readme(address: &str) -> anyhow::Result<()> {
    // README begins
    use rimstone_client::{End, Producer, ProducerRecord, Reader, Start};

    let producer = Producer::builder(address).name("importer")?.build()?;
    for line in ["a", "b", "c"] {
        drop(producer.send("visits", ProducerRecord::new(line).key("83.149.9.216")).await?);
    }
    producer.close().await?; // everything sent is stored, or the error says what is not

    let mut reader = Reader::builder(address, "visits").start(Start::Earliest).end(End::Latest).build()?;
    while let Some(record) = reader.next().await? {
        println!("{} {} {:?}", record.partition, record.offset, record.value);
    }
    // README ends
    Ok(())
}

async fn member_from_the_readme(address: &str) -> anyhow::Result<()> {
    // README begins
    use rimstone_client::{Consumer, StartPolicy};

    let mut consumer =
        Consumer::builder(address, "billing").topics(["visits"]).start(StartPolicy::Earliest).build()?;
    for _ in 0..3 {
        let record = consumer.next().await?;
        println!("{} {} {:?}", record.topic(), record.offset, record.value); // the work
        drop(consumer.commit(&record));
    }
    consumer.close().await?; // every commit is answered, and the partitions go to others at once
    // README ends
    Ok(())
}

/// The `rust` blocks of README.md.
fn shown() -> Vec<String> {
    let readme = std::fs::read_to_string(workspace_root().join("README.md")).unwrap();
    let blocks = readme.split("```rust\n").skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_readme_shows_the_program_that_is_tested() {
    let unindented = |program: &str| {
        let program = program.split(END).next().unwrap();
        program
            .lines()
            .map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line)))
            .collect::<String>()
    };
    let source: Vec<_> = include_str!("readme.rs").split(BEGIN).skip(1).map(unindented).collect();
    let shown: Vec<_> = shown().iter().map(|block| block.replace("\"127.0.0.1:9190\"", "address")).collect();
    assert_eq!(shown, source);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_in_the_readme_runs() {
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("visits", 6, &[]).await;
    soon(from_the_readme(&server.endpoint())).await.unwrap();
    let reader = Reader::builder(&server.endpoint(), "visits").start(Start::Earliest).end(End::Latest);
    let mut reader = reader.build().unwrap();
    for value in ["a", "b", "c"] {
        let record = soon(reader.next()).await.unwrap().unwrap();
        assert_eq!(
            (&*record.key.unwrap(), &*record.value.unwrap()),
            (&b"83.149.9.216"[..], value.as_bytes())
        );
    }
    assert!(soon(reader.next()).await.unwrap().is_none());

    soon(member_from_the_readme(&server.endpoint())).await.unwrap();
    let groups = rimstone_client::Groups::new(&server.endpoint()).unwrap();
    let committed = soon(groups.offsets("billing", &[])).await.unwrap();
    assert_eq!(committed.iter().filter_map(|found| found.offset).map(|offset| offset.get()).sum::<u64>(), 3);
}
