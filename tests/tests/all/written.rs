//! Topics whose owner asked for `written`: acknowledged and read before they are durable, shown as such, and
//! safe from a kill of the process all the same.

use rimstone_tests::{
    calls::Calls,
    feed::{Feed, assert_kept},
    history::{assert_exactly, read_all},
    input::made_up,
    server::Setup,
    wait::until,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_written_topic_survives_kills_and_says_what_it_is() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Setup::new(home.path()).start().await;
    Calls::connect(&server).await.create_topic("t", 3, &[("rimstone.ack", "written")]).await;
    let described = server.admin().describe_topic("t").await.unwrap();
    let ack = described.settings.iter().find(|setting| setting.name == "rimstone.ack").unwrap();
    assert_eq!(ack.value, "written");
    let (_, metrics) = server.page("/metrics").unwrap();
    assert!(metrics.contains("rimstone_topic_ack_info{ack=\"written\",topic=\"t\"} 1"), "{metrics}");

    let lines = made_up(4_000, 21);
    let feed = Feed::start(&server.endpoint(), "t", &lines);
    for kill in 1..=2 {
        feed.allow(kill * 1_300 + 300);
        feed.acknowledged_at_least(kill * 1_300).await;
        server.kill();
        println!("kill {kill}: {} of {} acknowledged", feed.acknowledged(), lines.len());
        server = server.start_again().await;
    }
    let acks = feed.finish().await;
    // What is acknowledged is read at once.
    let records = read_all(&server.endpoint(), "t").await;
    assert_exactly(&records, &lines);
    assert_kept(&acks, &records);
    // And it becomes durable by itself.
    until("everything is synced", async || {
        (server.metric("rimstone_partition_undurable_bytes") == Some(0.0)).then_some(())
    })
    .await;
    server.stop().await;
    let server = server.start_again().await;
    assert_exactly(&read_all(&server.endpoint(), "t").await, &lines);
}
