//! Groups that never committed go with their last member, and leave nothing behind.

use super::*;

/// What metrics say of the group.
fn series(fixture: &Fixture) -> usize {
    let text = fixture.broker.metrics_text();
    text.lines().filter(|line| line.starts_with("rimstone_group_") && line.contains("\"g\"")).count()
}

async fn is_gone(fixture: &Fixture) {
    soon("the end of the group", async {
        while !fixture.broker.list_groups("").await.expect("they are loaded").is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let described = fixture.broker.describe_group(&group("g")).await;
    assert_eq!(described.expect_err("it is gone").reason(), Reason::GroupNotFound);
    let request = LagRequest { groups: vec![group("g")], topics: Vec::new() };
    assert_eq!(fixture.broker.lag(request).await.expect_err("it is gone").reason(), Reason::GroupNotFound);
    soon("the end of its series", async {
        while series(fixture) > 0 {
            sleep(std::time::Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_group_that_never_committed_goes_with_its_last_member() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put("t", 0, &["a", "b"]).await;
    // It leaves.
    let session = fixture.join(joining("a")).await;
    soon("series", async {
        while series(&fixture) < 4 {
            sleep(std::time::Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(fixture.broker.list_groups("").await.expect("they are loaded").len(), 1);
    session.leave(false).await.1.expect("it leaves");
    is_gone(&fixture).await;
    // It is silent for too long; the epochs have gone on, and the old member is nobody any more.
    let mut session = fixture.join(joining("a")).await;
    assert_eq!(session.epoch, GroupEpoch(2));
    started(event(&mut session).await);
    advance(std::time::Duration::from_secs(46)).await;
    assert!(matches!(ended(&mut session).await, SessionError::Fenced(_)));
    is_gone(&fixture).await;
    let stale = JoinRequest { epoch: GroupEpoch(1), ..joining("a") };
    let refused = fixture.broker.join_group(stale).await.expect_err("nobody knows it");
    assert_eq!(refused.reason(), Reason::MemberFenced);
    // Gone it is after a restart too, and its epochs with it.
    let fixture = fixture.restart().await;
    let session = fixture.join_again(joining("a")).await.expect("it joins");
    assert_eq!(session.epoch, GroupEpoch(3));
}

#[tokio::test]
async fn a_group_with_an_offset_stays_until_the_topic_goes() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b"]).await;
    let mut session = fixture.join(joining("a")).await;
    started(event(&mut session).await);
    commit(&mut session, 1, 0, 1);
    session.leave(false).await.1.expect("it leaves");
    let left = fixture.broker.list_groups("").await.expect("they are loaded");
    assert_eq!(left.iter().map(|group| (group.members, group.topics.len())).collect::<Vec<_>>(), [(0, 1)]);
    fixture.broker.delete_topic(&name("t")).await.expect("it is deleted");
    is_gone(&fixture).await;
}
